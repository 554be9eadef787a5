"""The zip writer: what zipfile and our own reader read, the same bytes always, beyond 4 GiB too."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import pytest

from cache.errors import IntegrityError
from cache.zip_reader import ZipReader
from cache.zip_writer import ZipWriter

MEMBERS = {"a-b/x": b"", "a/run.sh": b"#!/bin/sh\n", "a/x": bytes(range(256)) * 5000, "a/é": b"text"}


def archive(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    writer = ZipWriter(out)
    for name, data in members.items():
        pieces = [data[at:at + 100_000] for at in range(0, len(data), 100_000)]
        writer.member(name, len(data), zlib.crc32(data), pieces, 0o755 if name.endswith(".sh") else 0o644)
    writer.finish()
    return out.getvalue()


def test_read_by_zipfile_and_by_our_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(archive(MEMBERS))
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert {info.filename: file.read(info) for info in file.infolist()} == MEMBERS
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.filename: info.external_attr >> 16 for info in file.infolist()} == {
            name: 0o100755 if name.endswith(".sh") else 0o100644 for name in MEMBERS}
        assert not any(info.flag_bits & 0x8 for info in file.infolist())
    with ZipReader(path, "a.zip") as reader:
        assert {member.name: reader.read(member) for member in reader.members} == MEMBERS


def test_order_is_held_to() -> None:
    with pytest.raises(ValueError, match="out of order"):
        archive(dict(reversed(MEMBERS.items())))


@pytest.mark.parametrize(("size", "crc"), [(3, zlib.crc32(b"text")), (5, zlib.crc32(b"text")), (4, 0)])
def test_content_that_changed(size: int, crc: int) -> None:
    with pytest.raises(IntegrityError, match="not what it was"):
        ZipWriter(io.BytesIO()).member("x", size, crc, [b"text"])


class Sparse:
    """A file whose zeros take no room."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    def write(self, data: bytes) -> None:
        if len(data) > 1 << 16:
            self.file.seek(len(data), 1)
        else:
            self.file.write(data)


def test_beyond_4_gib(tmp_path: Path) -> None:
    """One member of 4 GiB, one behind it: each needs zip64 in its own way."""
    piece = bytes(16 << 20)
    size, crc = 256 * len(piece), 0
    for _ in range(256):
        crc = zlib.crc32(piece, crc)
    path = tmp_path / "a.zip"
    sink = Sparse(path)
    writer = ZipWriter(sink)
    writer.member("large", size, crc, (piece for _ in range(256)))
    writer.member("small", 4, zlib.crc32(b"text"), [b"text"], 0o755)
    writer.finish()
    sink.file.close()
    with zipfile.ZipFile(path) as file:
        assert [info.file_size for info in file.infolist()] == [size, 4]
        assert file.read("small") == b"text"
        with file.open("large") as stream:
            assert stream.read(64) == bytes(64)
    with ZipReader(path, "a.zip") as reader:
        assert reader.read(reader.members[1]) == b"text"
        assert reader.head(reader.members[0], 8) == bytes(8)


def test_more_members_than_16_bits_count(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with path.open("wb") as file:
        writer = ZipWriter(file)
        for number in range(70_000):
            writer.member(f"{number:05}", 0, 0, [])
        writer.finish()
    with zipfile.ZipFile(path) as archived:
        assert len(archived.infolist()) == 70_000
    with ZipReader(path, "a.zip") as reader:
        assert len(reader.members) == 70_000
