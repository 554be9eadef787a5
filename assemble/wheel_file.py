"""One wheel: what an installer would put where, without writing anything.

The format (schemes, entry points, RECORD) is pypa `installer`'s business: it is given a wheel to read (`_Source`)
and a destination that notes instead of writing (`_Plan`). Content is not read here, except the few small
files that the installer reads or rewrites; `assemble.wheels` streams the rest and holds each file to its promise.

Where installers differ, this one does:

- files below `__pycache__/` are left out, with their RECORD rows (as pypa installer); a `.pyc` elsewhere is a
  module without source and stays;
- INSTALLER says `stagecraft`; there is no REQUESTED and no direct_url.json, and ones in the wheel are not installed;
- modes are 0755 for executables and for all of the `scripts` scheme, else 0644 (as uv; pip and pypa installer leave a
  script from a wheel made on Windows without its x bit);
- headers go to `<headers>/<distribution>/` (as pip and pypa installer).
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import io
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, BinaryIO

import installer
from installer.destinations import WheelDestination
from installer.exceptions import InstallerError
from installer.records import Hash, InvalidRecordEntry, RecordEntry, parse_record_file
from installer.scripts import Script
from installer.sources import WheelContentElement, WheelSource
from installer.utils import Scheme, construct_record_file, fix_shebang, parse_metadata_file
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from assemble.wheel_metadata import package_of
from assemble.wheel_tags import Image
from cache.errors import IntegrityError, StageError
from cache.zip_reader import Member, ZipReader

if TYPE_CHECKING:
    from installer.scripts import ScriptSection

_INSTALLER = b"stagecraft\n"
#: What an installer records about its own run: never taken from the wheel (PEP 376, PEP 610).
_INSTALLERS_OWN = {"INSTALLER", "REQUESTED", "direct_url.json"}
#: Signatures, which RECORD cannot list (PEP 427).
_SIGNATURES = {"RECORD.jws", "RECORD.p7s"}
#: Hashes that the wheel format allows: sha256 or better.
_HASHES = {"sha256", "sha384", "sha512"}
#: What `installer` raises for a malformed wheel, besides its own errors.
_MALFORMED = (InstallerError, InvalidRecordEntry, configparser.Error, UnicodeDecodeError, ValueError, AssertionError,
              KeyError, TypeError)


@dataclass(frozen=True)
class Places:
    """Where the image keeps things; paths are relative to its root, `interpreter` is what `#!` lines name."""

    interpreter: str
    purelib: str
    platlib: str
    scripts: str
    data: str
    headers: str

    def root(self, scheme: str, distribution: str) -> str:
        found: str = getattr(self, scheme)
        return f"{found}/{distribution}" if scheme == "headers" else found


class PlannedFile:
    """A file of the image: path, size in bytes, mode, `promise` (`<algorithm>:<hex>`), content or where it is."""

    __slots__ = ("mode", "path", "promise", "size", "source", "wheel")

    def __init__(self, path: str, size: int, mode: int, promise: str, source: Member | bytes, wheel: Wheel) -> None:
        self.path, self.size, self.mode, self.promise = path, size, mode, promise
        self.source, self.wheel = source, wheel


class Wheel:
    """An open wheel: its file name, its name (canonical), its files in the image, its entry in `packages`.

    `left_out` members are not installed; `waived` ones are not as RECORD says.
    """

    def __init__(self, reader: ZipReader, file: str, name: str) -> None:
        self.reader, self.file, self.name = reader, file, name
        self.files: list[PlannedFile] = []
        self.package: dict[str, Any] = {}
        self.left_out = self.waived = 0


def read_wheel(reader: ZipReader, file: str, digest: str, image: Image, places: Places,
               records: Iterable[Mapping[str, Any]] = (), tags_by_name: Iterable[str] = ()) -> Wheel:
    """Plan the installation of one wheel.

    Args:
        reader: the open archive.
        file: the wheel's file name; `digest`: its sha256.
        records: waivers `{"wheel": name, "path": glob}`: members whose RECORD row is known to be wrong
            (their bytes are still those of the wheel's own locked sha256). The installed RECORD is right.
        tags_by_name: wheels whose WHEEL file is known to name the tags of another build: their file name counts.

    Raises:
        IntegrityError: not a sound wheel; names the wheel and the member.
        StageError: a wheel for another Python or platform.
    """
    try:
        name, version, _, tags = parse_wheel_filename(file)
    except (InvalidWheelFilename, InvalidVersion) as error:
        raise IntegrityError(f"not a wheel's file name: {error}", where=file) from error
    if not image.takes_any(tags):
        raise _misfit(file, image, "its file name", sorted(map(str, tags)))
    wheel = Wheel(reader, file, name)
    try:
        waived = [rule["path"] for rule in records if canonicalize_name(rule["wheel"]) == name]
        source = _Source(reader, file, name, version, waived)
        if name not in map(canonicalize_name, tags_by_name):
            _check_wheel_file(source, file, image)
        metadata = parse_metadata_file(source.read_dist_info("METADATA"))
        if canonicalize_name(metadata["Name"]) != name or Version(metadata["Version"]) != version:
            raise IntegrityError("a wheel's METADATA contradicts its file name", where=file,
                                 expected=f"{name} {version}", found=f"{metadata['Name']} {metadata['Version']}")
        points = source.read_dist_info("entry_points.txt") if "entry_points.txt" in source.dist_info_filenames else ""
        wheel.package = package_of(metadata, file=file, digest=digest, architecture=image.architecture, tags=tags,
                                   entry_points=points)
        installer.install(source, _Plan(wheel, places, source), {"INSTALLER": _INSTALLER})
        wheel.left_out, wheel.waived = source.left_out, source.waived
    except _MALFORMED as error:
        raise IntegrityError(f"malformed wheel: {error or type(error).__name__}", where=file) from error
    return wheel


def _check_wheel_file(source: _Source, file: str, image: Image) -> None:
    from packaging.tags import parse_tag

    listed = parse_metadata_file(source.read_dist_info("WHEEL")).get_all("Tag", [])
    if not listed:
        raise IntegrityError("its WHEEL file has no tag", where=file)
    if not image.takes_any(tag for item in listed for tag in parse_tag(str(item).strip())):
        raise _misfit(file, image, "its WHEEL file", sorted(map(str, listed)))


def _misfit(file: str, image: Image, where: str, found: list[str]) -> StageError:
    return StageError("a wheel for another Python or platform", where=f"{file} ({where})", expected=str(image),
                      found=", ".join(found), cure="lock again for this target")


class _Content(io.BytesIO):
    """A member's content for `installer`: read only if someone asks."""

    def __init__(self, member: Member, row: tuple[str, str, str]) -> None:
        super().__init__()
        self.member, self.row = member, row


class _Source(WheelSource):
    """A wheel as `installer` reads it; holds the archive to its RECORD."""

    def __init__(self, reader: ZipReader, file: str, name: str, version: Version, waived: Sequence[str]) -> None:
        self._reader, self._file, self._waived = reader, file, waived
        self.left_out = self.waived = 0
        self._members = {member.name: member for member in reader.members}
        tops = set()
        for path in self._members:
            parts = path.removesuffix("/").split("/")
            if not parts[0] or "" in parts or "." in parts or ".." in parts:
                raise IntegrityError("a member's path leads out of the wheel", where=f"{file}: {path}",
                                     cure="do not use this file; fetch it again or take another version")
            tops.add(parts[0])
        self._info = self._one([top for top in tops if top.endswith(".dist-info")], name, version)
        data = [top for top in tops if top.endswith(".data")]
        self._data = self._one(data, name, version) if data else f"{self._info.removesuffix('.dist-info')}.data"
        super().__init__(*file.split("-")[:2])

    def _one(self, tops: list[str], name: str, version: Version) -> str:
        stem = tops[0].rpartition(".")[0].partition("-") if len(tops) == 1 else ("", "", "")
        try:
            fits = canonicalize_name(stem[0]) == name and Version(stem[2]) == version
        except InvalidVersion:
            fits = False
        if not fits:
            raise IntegrityError("a wheel has one .dist-info directory (and at most one .data), named like its file",
                                 where=self._file, expected=f"{name}-{version}",
                                 found=", ".join(sorted(tops)) or "none")
        return tops[0]

    @property
    def dist_info_dir(self) -> str:
        return self._info

    @property
    def data_dir(self) -> str:
        return self._data

    @property
    def dist_info_filenames(self) -> list[str]:
        start = self._info + "/"
        return [path[len(start):] for path in self._members if path.startswith(start) and not path.endswith("/")]

    def read_dist_info(self, filename: str) -> str:
        member = self._members.get(f"{self._info}/{filename}")
        if member is None:
            raise IntegrityError(f"a wheel without {filename}", where=self._file)
        return self._reader.read(member).decode("utf-8")

    def _rows(self) -> dict[str, tuple[str, str, str]]:
        rows: dict[str, tuple[str, str, str]] = {}
        for row in parse_record_file(self.read_dist_info("RECORD").splitlines()):
            if rows.setdefault(row[0], row) != row:
                raise self._wrong(row[0], "RECORD has it twice, with different hashes")
        return rows

    def get_contents(self) -> Iterator[WheelContentElement]:
        rows = self._rows()
        start = self._info + "/"
        for member in self._reader.members:
            path = member.name
            if member.is_directory:
                continue
            if member.mode & 0o170000 not in (0, 0o100000):
                raise self._wrong(path, "not a plain file", "a file or a directory", f"mode {member.mode:o}")
            row = rows.pop(path, None)
            own = path[len(start):] if path.startswith(start) else ""
            if own == "RECORD" or own in _SIGNATURES:
                row = (path, "", "")
            elif any(fnmatchcase(path, pattern) for pattern in self._waived):
                self.waived += 1
                row = (path, "", "")
            elif row is None:
                raise self._wrong(path, "not listed in RECORD")
            elif row[1].partition("=")[0] not in _HASHES:
                raise self._wrong(path, "no usable hash in RECORD", "sha256 or better", row[1] or "none")
            elif row[2] and row[2] != str(member.size):
                raise self._wrong(path, "another size than in RECORD", row[2], str(member.size))
            if own in _INSTALLERS_OWN or "/__pycache__/" in f"/{path}":
                self.left_out += 1
                continue
            yield row, _Content(member, row), member.is_executable
        rows.pop(f"{self._info}/RECORD", None)
        if rows:
            raise self._wrong(min(rows), "listed in RECORD but not in the archive")

    def _wrong(self, path: str, what: str, expected: str | None = None, found: str | None = None) -> IntegrityError:
        return IntegrityError(f"bad wheel: {what}", where=f"{self._file}: {path}", expected=expected, found=found,
                              cure="do not use this file; fetch it again or take another version")


class _Plan(WheelDestination):
    """Notes what `installer` would write."""

    def __init__(self, wheel: Wheel, places: Places, source: _Source) -> None:
        self._wheel, self._places, self._source = wheel, places, source

    def write_script(self, name: str, module: str, attr: str, section: ScriptSection) -> RecordEntry:
        if "/" in name or name in ("", ".", ".."):
            raise IntegrityError("an entry point's name is no file name", where=f"{self._wheel.file}: {name!r}")
        name, data = Script(name, module, attr, section).generate(self._places.interpreter, "posix")
        return self._note_bytes("scripts", name, data, 0o755)

    def write_file(self, scheme: Scheme, path: Any, stream: BinaryIO, is_executable: bool) -> RecordEntry:
        mode = 0o755 if is_executable or scheme == "scripts" else 0o644
        if not isinstance(stream, _Content):
            return self._note_bytes(scheme, path, stream.read(), mode)
        member, (_, told, _) = stream.member, stream.row
        if not told:  # a signature of RECORD, or a waived row: what is there counts
            told = f"sha256={_encode(self._wheel.reader.sha256(member))}"
        algorithm, _, value = told.partition("=")
        try:
            promise = f"{algorithm}:{base64.urlsafe_b64decode(value + '=' * (-len(value) % 4)).hex()}"
        except ValueError as error:
            raise IntegrityError("a hash in RECORD cannot be read", where=f"{self._wheel.file}: {member.name}",
                                 found=told[:80]) from error
        if scheme == "scripts" and self._wheel.reader.head(member, 8) == b"#!python":
            data = self._wheel.reader.read(member)
            if hashlib.new(algorithm, data).hexdigest() != promise.partition(":")[2]:
                raise IntegrityError("wrong hash", where=f"{self._wheel.file}: {member.name}", expected=promise)
            with fix_shebang(io.BytesIO(data), self._places.interpreter) as fixed:
                return self._note_bytes(scheme, path, fixed.read(), mode)
        self._note(scheme, path, member.size, mode, promise, member)
        return RecordEntry(path, Hash(algorithm, value), member.size)

    def finalize_installation(self, scheme: Scheme, record_file_path: str,
                              records: Iterable[tuple[Scheme, RecordEntry]]) -> None:
        def prefix(other: str) -> str | None:
            found = posixpath.relpath(self._root(other), self._root(scheme))
            return None if found == "." else found + "/"

        with construct_record_file(list(records), prefix) as stream:
            self._note_bytes(scheme, record_file_path, stream.read(), 0o644)

    def _note_bytes(self, scheme: str, path: str, data: bytes, mode: int) -> RecordEntry:
        digest = hashlib.sha256(data)
        self._note(scheme, path, len(data), mode, f"sha256:{digest.hexdigest()}", data)
        return RecordEntry(path, Hash("sha256", _encode(digest.digest())), len(data))

    def _note(self, scheme: str, path: str, size: int, mode: int, promise: str, source: Member | bytes) -> None:
        self._wheel.files.append(PlannedFile(f"{self._root(scheme)}/{path}", size, mode, promise, source, self._wheel))

    def _root(self, scheme: str) -> str:
        return self._places.root(scheme, self._source.distribution)


def _encode(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def places_of(params: Mapping[str, Any]) -> Places:
    """The places that a builder's params describe."""
    return Places(params["interpreter"], params["purelib"], params["platlib"], params["scripts"], params["data"],
                   params["headers"])
