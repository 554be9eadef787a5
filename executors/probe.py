"""What this machine lets a sandbox do, found by doing it: for `doctor` and the sandbox; no part of any key."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import ToolError

_LAUNCHER = Path(__file__).with_name("namespace.py")


@dataclass(frozen=True)
class Abilities:
    """What works here.

    Attributes:
        missing: what stands in the way of any sandbox, or empty; `cure` then says what to do.
        overlay, binfmt: an overlay, a binfmt_misc of our own can be mounted in a user namespace.
    """

    bubblewrap: str
    missing: str = ""
    cure: str = ""
    overlay: bool = False
    binfmt: bool = False


def launch(work: dict[str, Any], *fds: int, **options: Any) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start `namespace.py` with its work; what it has to say of a failure comes from the socket.

    Args:
        fds: descriptors that it shall have too.
    """
    ours, theirs = socket.socketpair()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LAUNCHER), str(theirs.fileno())],
            pass_fds=[theirs.fileno(), *fds], **options)
        ours.sendall(json.dumps({"parent": os.getpid(), "binds": {}, "overlay": None, "binfmt": None, "cgroup": None,
                                 "cpus": None, "pids": None, "terminal": False, "command": []} | work).encode() + b"\n")
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours


def said(answers: socket.socket) -> dict[str, Any] | None:
    """What the launcher says went wrong; None once it has become what it should."""
    with answers, answers.makefile("rb") as file:
        data = file.read()
    found: dict[str, Any] | None = json.loads(data) if data else None
    return found


@functools.cache
def abilities(directory: str) -> Abilities:
    """What works, with files in `directory` (of the store: an overlay depends on its file system)."""
    program = shutil.which("bwrap")
    if program is None:
        return Abilities("", "bubblewrap is not installed", "sudo apt-get install bubblewrap")
    with tempfile.TemporaryDirectory(prefix="probe-", dir=directory) as scratch:
        for name in ("0", "1", "at"):
            Path(scratch, name).mkdir()
        place = {"place": f"{scratch}/at"}
        failed = _try({**place, "command": [program, "--unshare-all", "--unshare-user", "--ro-bind", "/", "/",
                                            "--dev", "/dev", "--proc", "/proc", "true"]})
        if failed is not None:
            missing, cure = namespaces(failed)
            return Abilities(program, missing, cure)
        return Abilities(program, "", "", _try({**place, "overlay": {"in": scratch, "lower": "0:1"}}) is None,
                         _try({**place, "binfmt": {"line": ""}}) is None)


def _try(work: dict[str, Any]) -> str | None:
    """What went wrong, or None."""
    process, answers = launch(work, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    failure = said(answers)
    _, errors = process.communicate()
    if process.returncode == 0:
        return None
    if failure is not None:
        return f"{failure['step']}: {failure['text']}"
    return errors.decode("utf-8", "replace").strip() or "refused"


def namespaces(found: str, root: Path = Path("/")) -> tuple[str, str]:
    """Why user namespaces do not work here, and the cure, by the settings that are known to forbid them."""
    def setting(name: str) -> str:
        try:
            return (root / "proc/sys" / name).read_text(encoding="ascii").strip()
        except OSError:
            return ""

    if setting("user/max_user_namespaces") == "0":
        return ("user namespaces are switched off (user.max_user_namespaces = 0)",
                "sudo sysctl -w user.max_user_namespaces=10000")
    if setting("kernel/unprivileged_userns_clone") == "0":
        return ("user namespaces are switched off for ordinary users (kernel.unprivileged_userns_clone = 0)",
                "sudo sysctl -w kernel.unprivileged_userns_clone=1")
    if setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return ("AppArmor restricts user namespaces for ordinary users (Ubuntu 24.04)",
                "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
    inside = (root / ".dockerenv").exists() or (root / "run/.containerenv").exists()
    return (f"user namespaces are not allowed here ({found})",
            "start the container with --security-opt seccomp=unconfined --security-opt apparmor=unconfined" if inside
            else "allow them, or use a machine with a kernel and settings that do")


def require(directory: str) -> Abilities:
    """The abilities of a machine on which a sandbox works.

    Raises:
        ToolError: none does; with what is missing and the cure.
    """
    found = abilities(directory)
    if found.missing:
        raise ToolError(found.missing, cure=found.cure)
    return found


def kernel() -> tuple[int, int]:
    """Major and minor number of the running kernel."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)
