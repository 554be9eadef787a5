"""dpkg's database: what dpkg would have written for packages that were unpacked and configured.

Tools in the image (`dpkg -l`, `-S`, `-V`, a later `apt-get install`) and scanners outside read it.
Pure functions over text; the files they give are listed in `database`.

Source of the formats: dpkg's own sources (lib/dpkg/parse.c for the order of fields, dump.c,
trigdeferred.c) and deb-control(5), deb-triggers(5).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cache.errors import IntegrityError

#: Fields in the order in which dpkg writes them; all others follow in the order of the package.
_ORDER = (
    "Package", "Essential", "Protected", "Status", "Priority", "Section", "Installed-Size", "Origin", "Maintainer",
    "Bugs", "Architecture", "Multi-Arch", "Source", "Version", "Config-Version", "Replaces", "Provides", "Depends",
    "Pre-Depends", "Recommends", "Suggests", "Breaks", "Conflicts", "Enhances", "Conffiles", "Description",
)
_RELATIONS = frozenset(_ORDER[15:23])
_CANONICAL = {name.lower(): name for name in _ORDER}
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*")


@dataclass(frozen=True)
class Package:
    """A package as its control file describes it.

    Attributes:
        fields: by name, as written; names in dpkg's spelling.
        scripts: other control files by name, each with its mode.
        paths: its members' paths in the order of the archive, each with a leading `/`; `/.` is the root.
        conffiles: path to what `status` says of it (its md5), in the order of the `conffiles` file.
        file: file name of the package.
    """

    fields: Mapping[str, str]
    scripts: Mapping[str, tuple[int, bytes]] = field(default_factory=dict)
    paths: Sequence[str] = ()
    conffiles: Mapping[str, str] = field(default_factory=dict)
    file: str = ""

    @property
    def name(self) -> str:
        return self.fields["Package"]

    @property
    def info_name(self) -> str:
        """The stem of its files in `var/lib/dpkg/info`."""
        if self.fields.get("Multi-Arch") == "same":
            return f"{self.name}:{self.fields['Architecture']}"
        return self.name


def parse_stanzas(text: str, where: str) -> list[dict[str, str]]:
    """Parse control text: stanzas of `Name: value` with continuation lines, kept as they are.

    Raises:
        IntegrityError: a line that is neither.
    """
    found: list[dict[str, str]] = []
    stanza: dict[str, str] = {}
    last = ""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            if stanza:
                found.append(stanza)
            stanza, last = {}, ""
        elif line[0] in " \t" and last:
            stanza[last] += "\n" + line.rstrip()
        else:
            name, colon, value = line.partition(":")
            if not colon or not re.fullmatch(r"[!-9;-~]+", name):
                raise IntegrityError("malformed control data", where=f"{where}, line {number}", found=line[:80])
            last = _CANONICAL.get(name.lower(), name)
            stanza[last] = value.strip()
    return [*found, stanza] if stanza else found


def control_fields(text: str, where: str) -> dict[str, str]:
    """The fields of a package's control file, checked as far as we rely on them.

    Raises:
        IntegrityError: not one stanza, or a name, version or architecture is missing or malformed.
    """
    stanzas = parse_stanzas(text, where)
    if len(stanzas) != 1:
        raise IntegrityError("a control file has one stanza", where=where, found=str(len(stanzas)))
    fields = stanzas[0]
    for name, pattern in (("Package", _NAME.pattern), ("Version", r"[0-9A-Za-z.+:~-]+"),
                          ("Architecture", r"[a-z0-9-]+")):
        if not re.fullmatch(pattern, fields.get(name, "")):
            raise IntegrityError(f"a package has no usable {name}", where=where, found=fields.get(name) or "nothing")
    return fields


def status_stanza(package: Package) -> str:
    """The package's stanza in `status`, as installed; ends with one newline."""
    fields = {**package.fields, "Status": "install ok installed"}
    if package.conffiles:
        fields["Conffiles"] = "".join(f"\n {path} {said}" for path, said in package.conffiles.items())
    ordered = [name for name in _ORDER if name in fields] + [name for name in fields if name not in _ORDER]
    return "".join(_field(name, fields[name]) for name in ordered)


def _field(name: str, value: str) -> str:
    if name in _RELATIONS:  # dpkg parses these and writes them in one spelling
        value = ", ".join(" | ".join(_relation(option) for option in part.split("|"))
                          for part in value.replace("\n", " ").split(",") if part.strip())
    return f"{name}:{'' if value.startswith(chr(10)) else ' '}{value}\n"


def _relation(text: str) -> str:
    match = re.fullmatch(r"\s*([^\s(]+)\s*(?:\(\s*([<>=]+)\s*([^\s)]+)\s*\))?\s*", text)
    if match is None:
        return text.strip()
    name, operator, version = match.groups()
    return f"{name} ({operator} {version})" if operator else name


def database(packages: Iterable[Package], *, diversions: Sequence[tuple[str, str, str]] = (),
             base: str = "") -> dict[str, tuple[int, bytes]]:
    """All files of the database by path, each with its mode.

    Args:
        diversions: (path, diverted to, by package).
        base: the status text of an image below; its packages stay unless one of the same name is given.

    Raises:
        IntegrityError: `base` is malformed.
    """
    known = sorted(packages, key=lambda package: (package.name, package.fields["Architecture"]))
    files: dict[str, tuple[int, bytes]] = {}
    stanzas = {(package.name, package.fields["Architecture"]): status_stanza(package) for package in known}
    new = {package.name for package in known}
    for fields in parse_stanzas(base, "dpkg's status of the base image"):
        if fields.get("Package", "") not in new:
            stanzas[fields.get("Package", ""), fields.get("Architecture", "")] = "".join(
                f"{name}:{'' if value.startswith(chr(10)) else ' '}{value}\n" for name, value in fields.items())
    files["status"] = (0o644, "".join(stanzas[key] + "\n" for key in sorted(stanzas)).encode())
    for package in known:
        stem = f"info/{package.info_name}"
        files[f"{stem}.list"] = (0o644, "".join(path + "\n" for path in package.paths).encode())
        for name, (mode, data) in package.scripts.items():
            files[f"{stem}.{name}"] = (0o755 if mode & 0o111 else 0o644, data)
    if not base:
        files["info/format"] = (0o644, b"1\n")
        files["available"] = (0o644, b"")
        files["diversions"] = (0o644, "".join(f"{a}\n{b}\n{by}\n" for a, b, by in diversions).encode())
        files |= {f"triggers/{name}": (0o644, data) for name, data in _triggers(known).items()}
    return {f"var/lib/dpkg/{name}": content for name, content in files.items()}


def _triggers(packages: Iterable[Package]) -> dict[str, bytes]:
    """Who is interested in what: `File` for paths, a file per named trigger; `Unincorp`: nothing waits."""
    paths: list[str] = []
    named: dict[str, list[str]] = {}
    for package in packages:
        for line in package.scripts.get("triggers", (0, b""))[1].decode("utf-8", "replace").splitlines():
            words = line.partition("#")[0].split()
            if len(words) != 2 or not words[0].startswith("interest"):
                continue
            who = package.info_name + ("/noawait" if words[0] == "interest-noawait" else "")
            if words[1].startswith("/"):
                paths.append(f"{words[1]} {who}\n")
            elif re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+.:_-]*", words[1]):
                named.setdefault(words[1], []).append(who + "\n")
    return {"File": "".join(paths).encode(), "Unincorp": b""} | {
        name: "".join(who).encode() for name, who in named.items()}


def conffile_paths(package: Package) -> dict[str, bool]:
    """The paths in the package's `conffiles`; True for those that an upgrade is to remove."""
    found = {}
    for line in package.scripts.get("conffiles", (0, b""))[1].decode("utf-8", "replace").splitlines():
        flag, _, path = line.strip().rpartition(" ")
        if path.startswith("/") and flag.strip() in ("", "remove-on-upgrade"):
            found[path] = bool(flag)
    return found


def md5(data: bytes) -> str:
    """dpkg's digest of conffiles; no security rests on it."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def replaces(package: Package, other: Package) -> bool:
    """True if `package` says that it may take over files of `other`."""
    from assemble.version import satisfies

    for part in package.fields.get("Replaces", "").replace("\n", " ").split(","):
        match = re.fullmatch(r"\s*([^\s(:]+)(?::\S+)?\s*(?:\(\s*([<>=]+)\s*([^\s)]+)\s*\))?\s*", part)
        if match and match[1] == other.name and (
                match[2] is None or satisfies(other.fields["Version"], match[2], match[3])):
            return True
    return False
