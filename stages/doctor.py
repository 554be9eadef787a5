"""`doctor`: what this machine is, which target fits it, what it can do, what is missing and the cure.

Reads the machine; changes nothing. The only part of Stagecraft that probes hardware, and no result of it ever enters a
key. Facts about boards: docs/doctor.md gives the source of each.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import StagecraftError
from checks.facts import platform_of
from stages.check_text import width
from stages.project import Project
from stages.target import names


@dataclass(frozen=True)
class Machine:
    """What was found; empty strings where nothing was."""

    kind: str
    architecture: str
    model: str = ""
    l4t: str = ""
    driver: str = ""
    system: str = ""


@dataclass(frozen=True)
class Finding:
    """One line: `state` is ok, missing or note."""

    what: str
    state: str
    found: str
    cure: str = ""


def identify(root: Path = Path("/")) -> Machine:
    """The machine, by the files that its kernel and OS show below `root`."""
    def read(path: str) -> str:
        try:
            return (root / path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:
            return ""

    model = read("proc/device-tree/model") or read("sys/class/dmi/id/product_name")
    release = read("etc/nv_tegra_release")
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    l4t = f"{match[1]}.{match[2]}" if match else ""
    driver = re.search(r"(?:NVRM version:.*?|Kernel Module.*?)\s(\d{3}\.[\d.]+)", read("proc/driver/nvidia/version"))
    names = re.search(r'^PRETTY_NAME="?([^"\n]+)', read("etc/os-release"), re.MULTILINE)
    architecture = os.uname().machine if root == Path("/") else "aarch64"
    kind = kind_of(model)
    return Machine(kind, architecture, model, l4t, driver[1] if driver else "", names[1] if names else "")


def kind_of(model: str) -> str:
    """`jetson-thor`, `jetson-orin`, `dgx-spark` or `generic`, by the words of a model's name."""
    words = set(re.findall(r"[a-z0-9]+", model.lower()))
    if {"jetson", "thor"} <= words:
        return "jetson-thor"
    if "orin" in words and words & {"jetson", "nvidia"}:
        return "jetson-orin"
    return "dgx-spark" if {"dgx", "spark"} <= words or "gb10" in words else "generic"


def fitting(machine: Machine) -> str:
    """The target that fits this machine, or empty; a checkout need not have it."""
    return {"jetson-thor": "thor", "dgx-spark": "spark", "jetson-orin": "orin"}.get(machine.kind, "")


def examine(project: Project, root: Path = Path("/")) -> tuple[dict[str, Any], str]:
    """Everything, as data and as text. What the machine is comes from below `root`."""
    machine = identify(root)
    suited = fitting(machine)
    target = suited if suited in names(project.root) else ""
    findings: list[Finding] = [*_python(), *_engine(), *_sandbox(_scratch(project)), *_emulator(), *_apt()]
    findings += _store(project)
    findings += _indexes(project)
    lines = [f"machine   {machine.model or 'unknown model'}, {machine.architecture}, {machine.system}"]
    if machine.l4t:
        brings = platform_of(machine.l4t)
        lines.append(f"          L4T {machine.l4t} ({brings.get('jetpack', 'unknown JetPack')}, "
                     f"CUDA {brings.get('cuda', '?')})")
    if machine.driver:
        lines.append(f"          NVIDIA driver {machine.driver}")
    lines.append(f"target    {target}" if target else
                 f"target    none: this device is known, a {machine.kind}, but there is no targets/{suited}.yaml"
                 if suited else "target    none runs here natively; images for any target can be built here")
    for finding in findings:
        lines.append(f"{finding.state:<9} {finding.what}: {finding.found}")
        if finding.cure:
            lines += textwrap.wrap(finding.cure, width(), initial_indent=" " * 10 + "-> ", subsequent_indent=" " * 13,
                                   break_long_words=False, break_on_hyphens=False)
    data = {"machine": vars(machine), "target": target, "findings": [vars(f) for f in findings]}
    return data, "\n".join(lines)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout or done.stderr).strip() if done.returncode == 0 else ""


def _python() -> list[Finding]:
    import sys

    return [Finding("Python", "ok", ".".join(map(str, sys.version_info[:3])))]


def _engine() -> list[Finding]:
    from oci.docker import connect

    try:
        client = connect()
        return [Finding("Docker engine", "ok", str(client.version()["Version"]))]
    except StagecraftError as error:
        return [Finding("Docker engine", "note", error.message,
                        "only load:<target> needs one; start it, or set DOCKER_HOST")]


def _sandbox(directory: str) -> list[Finding]:
    """What runs images' code here, by trying it; `directory` is on the store's file system."""
    from executors import emulator, probe

    found = probe.abilities(directory)
    what = "only checks that run the image need it; they are skipped without"
    if not found.bubblewrap:
        return [Finding("sandbox", "note", found.missing, f"{found.cure} ({what})")]
    if found.missing:
        return [Finding("sandbox", "missing", found.missing, found.cure)]
    lines = [Finding("sandbox", "ok", f"{_run(found.bubblewrap, '--version')}, roots "
                     + ("joined by overlays" if found.overlay else "merged into trees"),
                     "" if found.overlay else "a kernel of 5.11 or newer joins them without copying names")]
    if found.binfmt:
        lines.append(Finding("foreign programs", "ok", "the locked emulator, registered in the own namespace"))
    elif emulator.host_registers():
        lines.append(Finding("foreign programs", "ok", "the locked emulator, registered with the host for each run"))
    else:
        lines.append(Finding("foreign programs", "note", "the locked emulator, single processes only",
                             "a kernel of 6.7 or newer, or root, lets them start others too"))
    return lines


def _scratch(project: Project) -> str:
    import tempfile

    try:
        return str(project.store.directory("tmp"))
    except StagecraftError:
        return tempfile.gettempdir()


#: The first qemu-user that runs torch 2.13 (7.2 crashes).
QEMU = 10


def _emulator(registered: Path = Path("/proc/sys/fs/binfmt_misc")) -> list[Finding]:
    foreign = {"x86_64": "aarch64", "aarch64": "x86_64"}.get(os.uname().machine, "aarch64")
    what = f"emulator for {foreign}"
    cure = f"only Docker needs it for foreign images, checks bring theirs: qemu-user {QEMU} or newer with binfmt_misc"
    try:
        entry = (registered / f"qemu-{foreign}").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [Finding(what, "note", "not registered", cure)]
    path = next((line.split(maxsplit=1)[1] for line in entry if line.startswith("interpreter ")), "")
    if "enabled" not in entry:
        return [Finding(what, "note", f"{path}, but disabled", f"echo 1 > {registered}/qemu-{foreign}")]
    version = re.search(r"version (\d+)\.[\d.]+", _run(path, "--version"))
    if version is None:  # with flag F the kernel holds it open: it works though the file is elsewhere
        return [Finding(what, "note", f"{path}, whose version cannot be asked here", cure)]
    if int(version[1]) < QEMU:
        return [Finding(what, "missing", f"{path}, {version[0]}: older than {QEMU}, torch 2.13 crashes in it", cure)]
    return [Finding(what, "ok", f"{path}, {version[0]}")]


def _apt() -> list[Finding]:
    if shutil.which("apt-get"):
        return [Finding("apt", "ok", _run("apt-get", "--version").split("(")[0].strip())]
    return [Finding("apt", "note", "not installed", "only locking Debian packages needs it; builds do not")]


def _store(project: Project) -> list[Finding]:
    """The store, and whether what is not built yet fits on its disk."""
    try:
        root = project.store.root
        return [Finding("store", "ok", str(root)), *_disk(project)]
    except StagecraftError as error:
        detail = ", ".join(filter(None, (error.where, error.found)))
        return [Finding("store", "missing", f"{error.message}: {detail}",
                        error.cure or "set STAGECRAFT_STORE to a directory that you may write")]


def _disk(project: Project) -> list[Finding]:
    from stages.disk import free, needed
    from stages.report import size_text

    found = []
    available = free(project.store.root)
    for name in names(project.root):
        try:
            wanted = needed(project, name)
        except StagecraftError:
            continue
        state = "ok" if wanted <= available else "missing"
        if not wanted:
            found.append(Finding(f"disk for build:{name}", "ok", "everything is built"))
            continue
        found.append(Finding(f"disk for build:{name}", state,
                             f"needs about {size_text(wanted)}, {size_text(available)} free at {project.store.root}",
                             "" if state == "ok" else "./doit store:gc, or set STAGECRAFT_STORE to a larger disk"))
    return found


def _indexes(project: Project) -> list[Finding]:
    from lock.indexes import load_indexes

    try:
        indexes = load_indexes(project.root / "targets" / "indexes.yaml")
    except StagecraftError as error:
        return [Finding("indexes", "missing", error.message, error.cure or "")]
    found = []
    for name in indexes.names():
        try:
            problem = indexes.probe(name)
        except StagecraftError as error:
            problem = error.message
        found.append(Finding(f"index {name}", "note" if problem else "ok", problem or "answers"))
    return found
