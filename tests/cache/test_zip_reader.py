"""The zip reader: reads what zipfile writes, refuses what two readers could read in two ways."""

import os
import random
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from cache import zip_reader
from cache.errors import IntegrityError
from cache.zip_reader import ZipReader


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, **how: bool) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            with file.open(name, "w", **how) as member:
                member.write(data)
    return path


def contents(path: Path) -> dict[str, bytes]:
    with ZipReader(path, path.name) as reader:
        return {member.name: b"".join(reader.chunks(member)) for member in reader.members}


def refused(path: Path) -> IntegrityError:
    with pytest.raises(IntegrityError) as caught:
        contents(path)
    assert path.name in str(caught.value.where)
    return caught.value


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


MEMBERS = {
    "empty": b"", "small": b"abc" * 10, "text": b"a line of text\n" * 50_000,
    "noise": noise(3 * zip_reader.CHUNK + 17), "exact": noise(zip_reader.CHUNK), "zeros": bytes(5_000_000),
    "näme/ünicode": b"x",
}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("zip64", [False, True])
def test_reads_what_zipfile_writes(tmp_path: Path, method: int, zip64: bool) -> None:
    path = archive(tmp_path / "a.zip", MEMBERS, method, force_zip64=zip64)
    assert contents(path) == MEMBERS
    with ZipReader(path, "a.zip") as reader:
        for member in reader.members:
            assert reader.read(member) == MEMBERS[member.name]
            assert reader.head(member, 8) == MEMBERS[member.name][:8]


def test_reads_streamed_archives_with_data_descriptors(tmp_path: Path) -> None:
    class Pipe:
        def __init__(self, path: Path) -> None:
            self.file = path.open("wb")

        def write(self, data: bytes) -> int:
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

    path = tmp_path / "s.zip"
    with zipfile.ZipFile(Pipe(path), "w", zipfile.ZIP_DEFLATED) as file:  # type: ignore[call-overload]
        file.writestr("x", b"hello" * 1000)
    assert contents(path) == {"x": b"hello" * 1000}


def test_reads_an_archive_with_a_comment_and_more_than_65535_members(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.comment = b"PK\5\6 in a comment"
        for number in range(65_600):
            file.writestr(f"{number}", b"")
    with ZipReader(path, "many.zip") as reader:
        assert len(reader.members) == 65_600


def test_a_member_that_inflates_to_more_than_declared_stops_there(tmp_path: Path) -> None:
    for size in (10, 10 * zip_reader.CHUNK):
        path = archive(tmp_path / f"bomb{size}.zip", {"x": bytes(30 << 20)})
        lie(path, size=size)
        with ZipReader(path, path.name) as reader:
            member = reader.members[0]
            seen = 0

            def drain() -> None:
                nonlocal seen
                for chunk in reader.chunks(member):  # noqa: B023
                    seen += len(chunk)

            with pytest.raises(IntegrityError, match="another size than declared") as caught:
                drain()
            assert seen <= size
            assert str(caught.value.where).endswith(": x")


def lie(path: Path, *, size: int, local: bool = True) -> None:
    """Rewrite the declared size of the first member, in the directory and (if asked) in its local header."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, size)
    if local:
        struct.pack_into("<I", data, data.index(b"PK\3\4") + 22, size)
    path.write_bytes(data)


def test_a_member_that_inflates_to_less_than_declared(tmp_path: Path) -> None:
    for content, size in ((b"abc", 4), (noise(2 << 20), 3 << 20)):
        path = archive(tmp_path / f"{size}.zip", {"x": content})
        lie(path, size=size)
        assert "another size" in refused(path).message


def test_a_local_header_that_contradicts_the_directory(tmp_path: Path) -> None:
    path = archive(tmp_path / "size.zip", {"x": b"abc"})
    lie(path, size=2, local=False)
    assert "local header" in refused(path).message
    path = archive(tmp_path / "name.zip", {"good": b"abc"})
    path.write_bytes(path.read_bytes().replace(b"good", b"evil", 1))
    assert "another name" in refused(path).message
    path = archive(tmp_path / "method.zip", {"x": b"abc"})
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, 8, 0)
    path.write_bytes(data)
    assert "another method" in refused(path).message


def test_overlapping_members(tmp_path: Path) -> None:
    """The compact bomb: many directory entries share one body."""
    path = archive(tmp_path / "overlap.zip", {"aa": b"x" * 1000, "bb": b"x" * 1000}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    struct.pack_into("<I", data, second + 42, 0)
    path.write_bytes(data)
    assert "overlaps" in refused(path).message


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("x", b"2")
    assert "two members" in refused(path).message


def test_a_second_name_in_an_extra_field(tmp_path: Path) -> None:
    path = tmp_path / "names.zip"
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("plain")
        body = b"\1" + struct.pack("<I", zlib.crc32(b"plain")) + b"../evil"
        info.extra = struct.pack("<2H", 0x7075, len(body)) + body
        file.writestr(info, b"x")
    assert "two names" in refused(path).message


@pytest.mark.parametrize("cut", [1, 10, 30, 100])
def test_a_cut_archive(tmp_path: Path, cut: int) -> None:
    path = archive(tmp_path / "cut.zip", {"x": b"abc" * 100})
    os.truncate(path, path.stat().st_size - cut)
    refused(path)


def test_bytes_between_directory_and_end_or_before_the_start(tmp_path: Path) -> None:
    path = archive(tmp_path / "prefix.zip", {"x": b"abc"})
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert "just before its end" in refused(path).message
    path = archive(tmp_path / "more.zip", {"x": b"abc"})
    path.write_bytes(path.read_bytes() + b"more")
    refused(path)


def test_no_archive_at_all(tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"PK", b"<html>not found</html>" * 100)):
        path = tmp_path / f"{number}.zip"
        path.write_bytes(data)
        assert "not a zip archive" in refused(path).message


def test_a_flipped_byte_anywhere_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    members = {"a": b"some text " * 40, "b": noise(300)}
    good = archive(tmp_path / "good.zip", members).read_bytes()
    path = tmp_path / "bad.zip"
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x41]) + good[position + 1 :])
        try:
            with ZipReader(path, "bad.zip") as reader:
                found = {member.name: reader.read(member) for member in reader.members}
        except IntegrityError:
            continue
        # Only times, versions and attributes may differ unseen.
        assert found == members, position


def test_encrypted_or_strangely_packed_members(tmp_path: Path) -> None:
    path = archive(tmp_path / "bz.zip", {"x": b"abc"}, zipfile.ZIP_BZIP2)
    assert "cannot be read" in refused(path).message
    path = archive(tmp_path / "enc.zip", {"x": b"abc"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert "cannot be read" in refused(path).message
