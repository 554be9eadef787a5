"""apt on a private root: its own sources, lists, cache and status, away from the host's.

Of the host's configuration only how to reach the network is taken over (proxies, certificates,
retries, `auth.conf`). Works as an ordinary user. Writes below the directory that it is given.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timezone
from pathlib import Path
from urllib.parse import quote

from cache.errors import FetchError, IntegrityError, LockError, StagecraftError, ToolError


@dataclass(frozen=True)
class Suite:
    """One suite to resolve from: index name, address of the archive (ends with `/`), suite."""

    index: str
    url: str
    suite: str


class PrivateApt:
    """apt on a root of its own below `directory`, which is empty.

    Args:
        sources: the suites to resolve from; all signed by a key in the file `keys`.
        dated: the sources are snapshots, out of date by intent.
        status: dpkg's status to solve against.

    Raises:
        ToolError: apt is not installed.
    """

    def __init__(self, directory: Path, sources: Sequence[Suite], *, architecture: str, components: Sequence[str],
                 keys: Path, dated: bool = False, status: bytes = b"") -> None:
        self._root = directory
        self._sources = sources
        self._architecture = architecture
        self._names: frozenset[str] = frozenset()
        for name in ("etc/preferences.d", "etc/apt.conf.d", "etc/sources.list.d", "lists/partial",
                     "cache/archives/partial", "log"):
            (directory / name).mkdir(parents=True)
        (directory / "status").write_bytes(status)
        options = f"arch={architecture} signed-by={keys}" + (" check-valid-until=no" if dated else "")
        lines = [f"deb [{options}] {source.url} {source.suite} {' '.join(components)}" for source in sources]
        (directory / "etc/sources.list").write_text("\n".join(lines) + "\n", "utf-8")
        self._environment = {
            **{key: value for key, value in os.environ.items() if key != "APT_CONFIG"}, "LC_ALL": "C"}
        network = self._run(["apt-config", "dump", "Acquire"], self._environment).stdout
        (directory / "apt.conf").write_text(configuration(directory, architecture, network), "utf-8")
        self._environment["APT_CONFIG"] = str(directory / "apt.conf")

    def update(self) -> None:
        """Fetch and verify the lists. Raises FetchError, IntegrityError, LockError."""
        done = self._run(["apt-get", "update"], self._environment)
        text = done.stdout + done.stderr
        if done.returncode:
            said = "\n".join(line for line in text.splitlines() if line.startswith(("E:", "W:")))
            raise update_error(self._where(), said)
        if "doesn't support architecture" in text or not self.names():
            raise LockError(f"the archive has no packages for {self._architecture}", where=self._where(),
                            cure="set the address of the one that has (`url` in targets/indexes.yaml)")

    def names(self) -> frozenset[str]:
        """All package names that the archive knows."""
        if not self._names:
            self._names = frozenset(self._run(["apt-cache", "pkgnames"], self._environment).stdout.split())
        return self._names

    def solve(self, wanted: Sequence[str], pins: Mapping[str, str]) -> str:
        """What apt would fetch to have `wanted`, with `pins` held. Raises LockError."""
        (self._root / "etc/preferences").write_text("\n".join(
            f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n" for name, version in sorted(pins.items())))
        unknown = [name for name in wanted if re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", name) and name not in self.names()]
        if unknown:
            import difflib

            near = difflib.get_close_matches(unknown[0], sorted(self.names()), n=3)
            raise LockError(f"the archive has no package {', '.join(unknown)}", where=self._where(),
                            cure=f"is it {' or '.join(near)}?" if near else None)
        # What a base image has stays as it is, unless something needs a newer one.
        command = ["apt-get", "install", "--print-uris", "--no-remove", "--no-upgrade", "-q", *wanted]
        done = self._run(command, self._environment)
        if done.returncode:
            text = (done.stdout + done.stderr).rstrip()
            marker = "The following packages have unmet dependencies:\n"
            raise LockError("apt finds no solution for the packages that are wanted", where=self._where(),
                            found=text.rpartition(marker)[2], cure="correct `packages` in the target")
        return done.stdout

    def release(self, source: Suite) -> tuple[str, str]:
        """Date and `sha256:<hex>` of a suite's signed Release. Raises LockError."""
        name = quote(re.sub(r"^\w+://([^/@]*@)?", "", source.url) + f"dists/{source.suite}/InRelease", safe="/:~+-._%")
        try:
            data = (self._root / "lists" / name.replace("/", "_")).read_bytes()
        except FileNotFoundError as error:
            raise LockError("the archive has no signed InRelease", where=f"{source.index} {source.suite}",
                            cure="use a mirror that has it") from error
        date = re.search(rb"^Date: (.+?)\s*$", data, re.MULTILINE)
        return release_date(date[1].decode() if date else ""), "sha256:" + hashlib.sha256(data).hexdigest()

    def _where(self) -> str:
        return ", ".join(f"{source.index} {source.suite}" for source in self._sources) + f", {self._architecture}"

    @staticmethod
    def _run(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace",
                                  stdin=subprocess.DEVNULL, check=False)
        except FileNotFoundError as error:
            raise ToolError(f"{command[0]} is needed to lock Debian packages", expected=f"{command[0]} on the PATH",
                            cure="lock on a Debian or Ubuntu machine (a build needs no apt), or install apt") from error


def configuration(root: Path, architecture: str, network: str) -> str:
    """The text of apt.conf for a private root; `network` is `apt-config dump Acquire` of the host."""
    kept = [line for line in network.splitlines()
            if re.match(r"Acquire::(https?|Retries|Check-Valid-Until|Check-Date|Force|Max-ValidTime)\b", line)]
    return "\n".join([
        *kept,
        f'Dir "{root}/";',
        f'Dir::State "{root}/";',
        f'Dir::State::lists "{root}/lists/";',
        f'Dir::State::status "{root}/status";',
        f'Dir::State::extended_states "{root}/extended_states";',
        f'Dir::Cache "{root}/cache/";',
        f'Dir::Etc "{root}/etc/";',
        'Dir::Etc::netrc "/etc/apt/auth.conf";',
        'Dir::Etc::netrcparts "/etc/apt/auth.conf.d";',
        f'Dir::Log "{root}/log/";',
        f'APT::Architecture "{architecture}";',
        f'APT::Architectures {{ "{architecture}"; }};',
        'APT::Install-Recommends "false";',
        'APT::Install-Suggests "false";',
        'APT::Sandbox::User "root";',
        'pkgCacheGen::ForceEssential ",";',  # apt counts itself as essential; an image needs no apt
        'APT::Update::Error-Mode "any";',
        'APT::Get::Upgrade-Allow-New "false";',
        'Acquire::Languages "none";',
        'Acquire::PDiffs "false";',
        'Acquire::ForceHash "SHA256";',
        "",
    ])


def update_error(where: str, text: str) -> StagecraftError:
    """The error for a failed `apt-get update`, from what apt said."""
    if ("gpgv" in text and "not found" in text) or "Unknown error executing apt-key" in text:
        return ToolError("gpgv is needed to verify the archive", where=where, found=text, cure="apt-get install gpgv")
    if re.search(r"NO_PUBKEY|BADSIG|EXPKEYSIG|is not signed|Hash Sum mismatch|signatures? (were|was) invalid", text):
        return IntegrityError("the archive's signature does not verify", where=where, found=text,
                              cure="update the archive's keyring package, or configure another mirror")
    if "no longer has a Release file" in text or "does not have a Release file" in text:
        return LockError("the archive has no such suite", where=where, found=text,
                         cure="correct `suite` in the target, or configure an archive that has it")
    if "is not valid yet" in text or "is expired" in text:
        return LockError("the archive's Release is out of its time", where=where, found=text,
                         cure="check this machine's clock; for a dated archive use `snapshot`")
    return FetchError("the archive cannot be reached", where=where, found=text,
                      cure="check the network and the archive's address (`url` in targets/indexes.yaml)")


def release_date(text: str) -> str:
    """The `Date` of a Release file in the form of snapshots, `20250520T101530Z`; `""` if there is none."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(text).astimezone(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    except (TypeError, ValueError):
        return ""
