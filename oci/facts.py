"""Facts about a base image, read from its files: interpreter, glibc, distribution. Pure: a `Merged` in, values out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from cache.errors import LockError
from oci.merge import Merged

STATUS = "var/lib/dpkg/status"
_STATUS_D = "var/lib/dpkg/status.d/"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LIBC = re.compile(rb"GNU C Library [^\n\0]{0,80}? release version (\d+\.\d+)")


def kept(path: str) -> bool:
    """Which files' content the facts are read from."""
    return (path in (STATUS, "etc/passwd", "etc/group", "etc/os-release", "usr/lib/os-release")
            or (path.startswith(_STATUS_D) and not path.endswith(".md5sums"))
            or re.search(r"(^|/)(libc\.so\.6|libc-2\.\d+\.so)$", path) is not None)


def status_of(image: Merged) -> bytes:
    """dpkg's status database; of distroless images, which keep one file a package, those joined. Empty without dpkg."""
    found = image.read(STATUS)
    if found:
        return found
    parts = [image.content[path].strip() for path in sorted(image.content) if path.startswith(_STATUS_D)]
    return b"\n\n".join(parts) + b"\n" if parts else b""


def os_release_of(image: Merged) -> bytes:
    return image.read("etc/os-release") or image.read("usr/lib/os-release") or b""


def os_release(raw: bytes) -> dict[str, str]:
    """Keys and values of os-release (quotes taken off)."""
    found = {}
    for line in raw.decode("utf-8", "replace").splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and re.fullmatch(r"[A-Z_0-9]+", name):
            quoted = value[:1] in ("'", '"') and value[-1:] == value[:1] and len(value) > 1
            found[name] = re.sub(r'\\([\\"$`])', r"\1", value[1:-1]) if quoted else value
    return found


def glibc_of(image: Merged, reference: str) -> str:
    """The version of the image's C library, two numbers.

    Raises:
        LockError: there is no glibc, for instance because the image has musl.
    """
    match = re.search(rb"^Package: libc6\n(?:[^\n]+\n)*?Version: (?:\d+:)?(\d+\.\d+)", status_of(image), re.M)
    if match is None:
        contents = [data for path, data in sorted(image.content.items()) if "libc" in path.rpartition("/")[2]]
        match = next((m for data in contents if (m := _LIBC.search(data))), None)
    if match is None:
        raise LockError("the base image has no glibc that could be recognised", where=reference,
                        expected="glibc: wheels for manylinux need it", cure="use a base with glibc (Debian, Ubuntu …)")
    return match[1].decode()


def python_of(image: Merged, environment: Mapping[str, str], reference: str, *, added: Collection[str] = (),
              version: str = "") -> dict[str, str]:
    """The interpreter that `python3` means in the image, and where its wheels go.

    Args:
        environment: of the image: its PATH decides.
        added: names of packages that will be installed on it: one of them may bring the interpreter.
        version: the one wanted, two numbers; used with `added`.

    Returns:
        `version` ("3.11"), `executable` (absolute), `site`, `scripts`, `data` (relative to the root).

    Raises:
        LockError: no Python in the image, and none among `added`.
    """
    for directory in environment.get("PATH", _PATH).split(":"):
        place = directory.strip("/")
        found = _version(image, place)
        if found:
            return _scheme(image, place, found)
    brings = {"python3", "python3-minimal", f"python{version}", f"python{version}-minimal"} & set(added)
    if version and brings:
        return debian_scheme(version)
    raise LockError("the base image has no Python", where=reference,
                    expected=f"python{version or '3'} on its PATH, or among the target's packages",
                    cure="add python3 to packages, or use a base image with Python")


def debian_scheme(version: str) -> dict[str, str]:
    """Where Debian's and Ubuntu's Python has what is installed by hand."""
    return {"version": version, "executable": f"/usr/bin/python{version}",
            "site": f"usr/local/lib/python{version}/dist-packages", "scripts": "usr/local/bin", "data": "usr/local"}


def _version(image: Merged, place: str) -> str:
    """Version of the python3 in a directory, or ""."""
    if not image.exists(f"{place}/python3"):
        return ""
    match = re.search(r"(?:^|/)python(3\.\d+)$", image.real(f"{place}/python3"))
    if match:
        return match[1]
    # A hard link or a copy: the libraries beside it tell.
    prefix = place.rpartition("/")[0]
    there = {m[1] for path in image.items if (m := re.match(rf"{re.escape(prefix)}/lib/python(3\.\d+)/os\.py$", path))}
    return max(there, key=lambda text: int(text.partition(".")[2])) if there else ""


def _scheme(image: Merged, place: str, version: str) -> dict[str, str]:
    named = f"{place}/python{version}"
    executable = "/" + (named if image.exists(named) else f"{place}/python3")
    prefix = place.rpartition("/")[0]
    debian = image.real(place) == "usr/bin" and f"usr/lib/python{version}/os.py" in image.items
    if debian:
        return debian_scheme(version)
    lead = f"{prefix}/" if prefix else ""
    return {"version": version, "executable": executable, "site": f"{lead}lib/python{version}/site-packages",
            "scripts": place, "data": prefix or "."}
