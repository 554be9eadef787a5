"""Makes small wheels for tests: right ones, and ones that are wrong in a chosen way.

What `make_wheel` writes is deterministic: equal arguments give equal bytes.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import itertools
import re
import stat
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

#: Time stamp of every member.
DATE = (2020, 1, 2, 3, 4, 6)


def _record_hash(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def sha256_of(path: Path) -> str:
    """64 hex digits of a file's sha256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _member(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, DATE)
    info.create_system = 3
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def _expand(tag: str) -> list[str]:
    """`cp311.cp312-abi3-linux_x86_64` to the tags that a WHEEL file lists, one each."""
    pythons, abis, platforms = tag.split("-")
    triples = itertools.product(pythons.split("."), abis.split("."), platforms.split("."))
    return ["-".join(triple) for triple in triples]


def make_wheel(
    directory: Path,
    name: str,
    version: str,
    *,
    files: Mapping[str, bytes] | None = None,
    requires: Iterable[str] = (),
    tag: str = "py3-none-any",
    build: str = "",
    entry_points: str | Mapping[str, str] | None = None,
    requires_python: str | None = None,
    extras: Iterable[str] = (),
    metadata: str = "",
    data: Mapping[str, bytes] | None = None,
    dist_info: Mapping[str, bytes] | None = None,
    modes: Mapping[str, int] | None = None,
    purelib: bool | None = None,
    symlinks: Mapping[str, str] | None = None,
    raw: Mapping[str, bytes] | None = None,
    wrong_hash: Iterable[str] = (),
    unrecorded: Iterable[str] = (),
    recorded_only: Iterable[str] = (),
    record: bool = True,
    filename: str | None = None,
) -> Path:
    """Write a wheel into `directory` (made if missing) and return its path.

    Args:
        name: project name as its author writes it.
        files: member name to content, below the wheel's root; names are taken as they are, so
            `../evil` and `/etc/evil` make an evil wheel. Default: `<name>.py` with its version.
        requires: `Requires-Dist` values.
        tag: as in the file name; `cp39.cp310-abi3-manylinux_2_17_aarch64` is expanded in WHEEL.
        build: build tag, such as `1` or `2local`.
        entry_points: `{"tool": "package.module:function"}` (console scripts), or the whole text.
        requires_python: `Requires-Python` value.
        extras: `Provides-Extra` values.
        metadata: further METADATA header lines, each ended by a newline.
        data: `scripts/tool`, `headers/x.h`, `data/etc/x` … below `<name>-<version>.data/`.
        dist_info: further files below `.dist-info/` (`licenses/LICENSE`), or a replacement of a generated one
            (`WHEEL`, `METADATA`, `entry_points.txt`).
        modes: member name to permission bits (default 0o644).
        purelib: `Root-Is-Purelib`; default: true for `none-any`.
        symlinks: member name to link target, stored the way Info-ZIP stores links.
        raw: members that are stored but not entered in RECORD.
        wrong_hash: members whose RECORD hash is of other bytes.
        unrecorded: members left out of RECORD.
        recorded_only: names entered in RECORD that the archive lacks.
        record: False leaves RECORD out.
        filename: use this file name whatever the metadata says.
    """
    stem = f"{re.sub(r'[-_.]+', '_', name)}-{version}"
    info_dir, data_dir = f"{stem}.dist-info", f"{stem}.data"
    if files is None:
        files = {re.sub(r"[-_.]+", "_", name) + ".py": f"__version__ = {version!r}\n".encode()}
    if purelib is None:
        purelib = tag.endswith("-none-any")

    head = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"]
    head += [f"Requires-Python: {requires_python}\n"] if requires_python else []
    head += [f"Provides-Extra: {extra}\n" for extra in extras]
    head += [f"Requires-Dist: {item}\n" for item in requires]
    wheel = f"Wheel-Version: 1.0\nGenerator: wheel_factory\nRoot-Is-Purelib: {'true' if purelib else 'false'}\n"
    wheel += f"Build: {build}\n" if build else ""
    wheel += "".join(f"Tag: {item}\n" for item in _expand(tag))

    info = {"METADATA": ("".join(head) + metadata + f"\n{name} for tests.\n").encode(), "WHEEL": wheel.encode()}
    if entry_points is not None:
        if not isinstance(entry_points, str):
            lines = "".join(f"{script} = {target}\n" for script, target in entry_points.items())
            entry_points = f"[console_scripts]\n{lines}"
        info["entry_points.txt"] = entry_points.encode()
    info.update(dist_info or {})

    members = dict(files)
    members.update({f"{data_dir}/{path}": content for path, content in (data or {}).items()})
    members.update({f"{info_dir}/{path}": content for path, content in info.items()})

    rows: list[tuple[str, str, str]] = []
    for member, content in members.items():
        if member not in set(unrecorded):
            told = content + b"other" if member in set(wrong_hash) else content
            rows.append((member, _record_hash(told), str(len(content))))
    for member, target in (symlinks or {}).items():
        rows.append((member, _record_hash(target.encode()), str(len(target.encode()))))
    rows.extend((member, _record_hash(b""), "0") for member in recorded_only)
    rows.append((f"{info_dir}/RECORD", "", ""))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / (filename or "-".join(part for part in (stem, build, tag) if part) + ".whl")
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in {**members, **(raw or {})}.items():
            archive.writestr(_member(member, stat.S_IFREG | (modes or {}).get(member, 0o644)), content)
        for member, target in (symlinks or {}).items():
            archive.writestr(_member(member, stat.S_IFLNK | 0o777), target)
        if record:
            archive.writestr(_member(f"{info_dir}/RECORD", stat.S_IFREG | 0o644), text.getvalue())
    return path
