"""Tars from outside: what Python's tarfile and GNU tar write is read the same; what could mislead is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from cache import tar
from cache.errors import IntegrityError
from cache.untar import Entry, Limits, entries

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "gzip in two members": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
    "xz": lzma.compress,
    "xz in two streams, padded": lambda data: lzma.compress(data[:700]) + bytes(8) + lzma.compress(data[700:]),
    "bzip2": bz2.compress,
    "zstd": zstandard.compress,
    "zstd in two frames": lambda data: zstandard.compress(data[:700]) + zstandard.compress(data[700:]),
}


def made(*members: tuple[str, Any], form: int = tarfile.PAX_FORMAT, **pax: str) -> bytes:
    """A tar by Python: (name, content) or (name, {TarInfo attribute: value})."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers=pax) as file:
        for name, what in members:
            info = tarfile.TarInfo(name)
            data = what if isinstance(what, bytes) else b""
            info.size = len(data)
            for key, value in ({} if isinstance(what, bytes) else what).items():
                setattr(info, key, value)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(data: bytes, limits: Limits | None = None) -> list[tuple[Entry, bytes]]:
    return [(entry, entry.read()) for entry in entries(io.BytesIO(data), where="x.tar", limits=limits)]


def refused(data: bytes, message: str | None, limits: Limits | None = None) -> IntegrityError:
    with pytest.raises(IntegrityError, match=message) as caught:
        read(data, limits)
    assert str(caught.value.where).startswith("x.tar")
    return caught.value


DIRECTORY = {"type": tarfile.DIRTYPE, "mode": 0o755}


def link(target: str) -> dict[str, Any]:
    return {"type": tarfile.SYMTYPE, "linkname": target}


def hard(target: str) -> dict[str, Any]:
    return {"type": tarfile.LNKTYPE, "linkname": target}


# -- what is right --------------------------------------------------------------------------------

LONG = "d" * 90 + "/" + "é" * 70
MEMBERS: list[tuple[str, Any]] = [
    ("./", DIRECTORY), ("./" + "d" * 90, DIRECTORY), (LONG, b"long"), ("./bin", DIRECTORY), ("./bin/sh", bytes(3000)),
    ("./bin/dash", hard("./bin/sh")), ("bin/rsh", link("sh")), ("bin/abs", link("/usr/bin/../x")),
    ("bin/up", link("../lib/y")), ("h", hard(LONG)), ("s", link("t" * 200)), ("bin/.wh.gone", b""),
    ("suid", {"mode": 0o4755, "uid": 3_000_000, "gid": 7, "mtime": 1.5, "uname": "u", "gname": "g"}),
]


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS.keys())
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_what_python_writes(compress: Callable[[bytes], bytes], form: int) -> None:
    found = {entry.path: (entry, data) for entry, data in read(compress(made(*MEMBERS, form=form)))}
    assert list(found) == [name.removeprefix("./").rstrip("/") for name, _ in MEMBERS[1:]]
    assert found[LONG][1] == b"long"
    assert found["bin/sh"] == (Entry("bin/sh", "file", 0o644, 0, 0, 3000), bytes(3000))
    assert found["bin"][0].type == "directory"
    assert (found["bin/dash"][0].type, found["bin/dash"][0].target) == ("hardlink", "bin/sh")
    assert found["h"][0].target == LONG
    assert (found["s"][0].type, found["s"][0].target) == ("symlink", "t" * 200)
    assert found["bin/abs"][0].target == "/usr/bin/../x"
    assert found["suid"][0] == Entry("suid", "file", 0o4755, 3_000_000, 7, 0, mtime=1, user="u", group="g")


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7", "oldgnu"])
def test_what_gnu_tar_writes(tmp_path: Path, form: str) -> None:
    (tmp_path / "a" / ("b" * 60)).mkdir(parents=True)
    long = f"a/{'b' * 60}/{'c' * 60 if form != 'v7' else 'c'}"
    (tmp_path / long).write_bytes(b"content")
    (tmp_path / "z").symlink_to("a")
    data = subprocess.run(["tar", "-C", tmp_path, f"--format={form}", "--sort=name", "-c", "a", "z"],
                          capture_output=True, check=True).stdout
    assert [(entry.path, entry.type, content) for entry, content in read(data)] == [
        ("a", "directory", b""), ("a/" + "b" * 60, "directory", b""), (long, "file", b"content"), ("z", "symlink", b"")]


def test_content_that_nobody_reads_is_passed_over() -> None:
    data = gzip.compress(made(("a", bytes(5_000_000)), ("b", b"b")))
    assert [entry.path for entry in entries(io.BytesIO(data))] == ["a", "b"]
    for entry in entries(io.BytesIO(data)):
        chunk = next(entry.chunks(100))
        assert len(chunk) == min(100, entry.size)


def test_it_streams_from_what_cannot_seek() -> None:
    class Pipe(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self._rest = data

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            count = min(len(buffer), 1000, len(self._rest))
            buffer[:count], self._rest = self._rest[:count], self._rest[count:]
            return count

    data = lzma.compress(made(("a", b"x" * 100_000)))
    assert [entry.read() for entry in entries(io.BufferedReader(Pipe(data)))] == [b"x" * 100_000]
    assert [entry.read() for entry in entries(Pipe(data))] == [b"x" * 100_000]  # type: ignore[arg-type]


def test_extended_attributes_are_told() -> None:
    found = read(made(("a", {"pax_headers": {"SCHILY.xattr.security.capability": "\x01\x02"}})))
    assert found[0][0].xattrs == {"security.capability": b"\x01\x02"}


def test_a_huge_member_is_not_read_whole() -> None:
    data = made(("a", bytes(100)))
    with pytest.raises(IntegrityError, match="larger than 99"):
        next(entries(io.BytesIO(data))).read(99)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(("members", "message", "member"), [
    ([("/etc/passwd", b"")], "absolute", "/etc/passwd"),
    ([("../x", b"")], "outside", "../x"),
    ([("a/../../x", b"")], "outside", "a/../../x"),
    ([("..", DIRECTORY)], "outside", ".."),
    ([("a//b", b"")], "plain name", "a//b"),
    ([("a/./b", b"")], "plain name", "a/./b"),
    ([("././b", b"")], "plain name", "./b"),
    ([("a", b""), ("a", b"")], "one name", "a"),
    ([("a", b""), ("./a", b"")], "one name", "a"),
    ([("a", DIRECTORY), ("a/", DIRECTORY)], "one name", "a"),
    ([("a", DIRECTORY), ("a", link("b"))], "one name", "a"),
    ([("a/b", b""), ("a", link("/etc"))], "one name", "a"),
    ([("a", link("/etc")), ("a/passwd", b"")], "below", "a/passwd"),
    ([("a", b""), ("a/b/c", b"")], "below", "a/b/c"),
    ([("a", link("../x"))], "leaves the tree", "a"),
    ([("a/b", link("c/../../../x"))], "leaves the tree", "a/b"),
    ([("a", link("/../x"))], "leaves the tree", "a"),
    ([("a", link(""))], "to nothing", "a"),
    ([("a", hard("/etc/passwd"))], "absolute", "/etc/passwd"),
    ([("a", hard("../x"))], "outside", "../x"),
    ([("a", hard("b")), ("b", b"")], "no earlier file", "a"),
    ([("d", DIRECTORY), ("a", hard("d"))], "no earlier file", "a"),
    ([("l", link("/etc/passwd")), ("a", hard("l"))], "no earlier file", "a"),
    ([("a", {"type": tarfile.CHRTYPE, "devmajor": 1})], "device", "a"),
    ([("a", {"type": tarfile.BLKTYPE})], "device", "a"),
    ([("a", {"type": tarfile.FIFOTYPE})], "fifo", "a"),
    ([("a", {"type": b"S"})], "not supported", "a"),
    ([("a", {"type": b"V"})], "not supported", "a"),
    ([("", b"")], "without a name", ""),
    ([(".", b"")], "without a name", ""),
    ([("a", {"pax_headers": {"GNU.sparse.major": "1"}})], "not supported", "a"),
    ([("a", {"pax_headers": {"size": "-1"}})], "no number", "a"),
    ([("a", {"pax_headers": {"size": "1" * 5000}})], "no number", "a"),
    ([("a/" * 64 + "b", b"")], "deeper than 64", "a/a"),
    ([("a\x00b", {"pax_headers": {"path": "a\0b"}})], "plain name", "a"),
])
def test_members_that_could_mislead(members: list[tuple[str, Any]], message: str, member: str) -> None:
    error = refused(made(("first", b"fine"), *members), message)
    assert member in str(error.where)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_long_name_cannot_hide_a_bad_one(form: int) -> None:
    refused(made(("x" * 200 + "/../../../y", b""), form=form), "outside")
    refused(made(("a", link("../" * 60 + "y")), form=form), "leaves")


def test_a_global_header_cannot_hide_a_bad_name() -> None:
    refused(made(("fine", b""), path="../../evil"), "outside")


def test_names_that_are_not_utf8() -> None:
    raw = tar.header(b"caf\xe9", tar.FILE, 0o644).replace(b"path=caf\xe9", b"path=caf\xe9")
    refused(raw + bytes(1024), "not UTF-8")


def test_devices_if_they_are_allowed() -> None:
    data = made(("dev/null", {"type": tarfile.CHRTYPE}), ("pipe", {"type": tarfile.FIFOTYPE}))
    assert [entry.type for entry, _ in read(data, Limits(devices=True))] == ["device", "fifo"]


def test_limits() -> None:
    three = made(("a", bytes(600)), ("b", bytes(600)), ("c", b""))
    assert len(read(three, Limits(entries=3, total=1200))) == 3
    refused(three, "more than 2 members", Limits(entries=2))
    assert "b" in str(refused(three, "more than 1199 bytes", Limits(total=1199)).where)
    refused(made(("a/b/c", b"")), "deeper than 2", Limits(depth=2))


def test_a_bomb_is_refused_by_what_its_header_says() -> None:
    """Before a byte of it is inflated."""
    header = tar.header(b"bomb", tar.FILE, 0o644, size=1 << 50)
    refused(header + bytes(512), "more than")


def test_a_header_extension_of_absurd_size_is_not_read() -> None:
    """tarfile reads it all into memory."""
    refused(tar._block(b"././@LongLink", b"L", 0, 8 ** 11 - 1, b"", 0, 0, 0) + bytes(512), "absurd")


@pytest.mark.parametrize("kind", ["plain", "gzip", "xz", "bzip2", "zstd", "gzip in two members", "zstd in two frames"])
def test_what_is_cut_is_not_taken_for_the_whole(kind: str) -> None:
    """tarfile takes many a cut for the end."""
    data = COMPRESSORS[kind](made(("a", bytes(range(256)) * 20), ("b", b"x" * 1000)))
    end = 8192 if kind == "plain" else len(data)  # without the padding after the end marker
    for cut in {0, 1, 5, 100, end // 3, end // 2, end - 9, end - 4, end - 1}:
        refused(data[:min(cut, 5120 + 512 + 1000)] if kind == "plain" else data[:cut], None)


@pytest.mark.parametrize("kind", ["gzip", "xz", "bzip2", "zstd"])
def test_what_was_flipped_is_noticed(kind: str) -> None:
    compress = zstandard.ZstdCompressor(write_checksum=True).compress if kind == "zstd" else COMPRESSORS[kind]
    data = bytearray(compress(made(("a", bytes(range(256)) * 2000))))
    data[len(data) // 2] ^= 1
    refused(bytes(data), None)


def test_a_flipped_header() -> None:
    data = bytearray(made(("name", b"x")))
    data[2] ^= 1
    refused(bytes(data), "checksum")


@pytest.mark.parametrize("data", [b"", b"PK\3\4" + bytes(600), b"hello" * 200, b"\x1f\x8b", b"\xfd7zXZ\0",
                                  gzip.compress(b""), bytes(511)])
def test_what_is_no_tar(data: bytes) -> None:
    refused(data, None)


def test_a_second_archive_after_the_end() -> None:
    """Some readers go on after the end marker, so that two readers would see two trees."""
    refused(made(("a", b"")) + made(("b", b"")), "after its end")
    refused(gzip.compress(made(("a", b""))) + gzip.compress(made(("b", b""))), "after its end")


def test_memory_of_a_decompressor_is_limited() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    refused(lzma.compress(b"x", filters=filters), "damaged xz")
    parameters = zstandard.ZstdCompressionParameters(window_log=30)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    refused(writer.compress(b"x" * 100) + writer.flush(), "damaged zstd")


@pytest.mark.parametrize("kind", ["gzip", "xz", "bzip2", "zstd"])
def test_a_bomb_inside_one_member_streams(kind: str) -> None:
    """256 MiB of zeros out of some KiB: a consumer sees it in pieces and can stop."""
    import tracemalloc

    size = 256 << 20
    plain = tar.header(b"zeros", tar.FILE, 0o644, size=size)
    data = b"".join(pieces(kind, plain, size))
    tracemalloc.start()
    assert sum(map(len, next(entries(io.BytesIO(data))).chunks())) == size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20


def pieces(kind: str, head: bytes, size: int) -> list[bytes]:
    import zlib

    makers: dict[str, Callable[[], Any]] = {
        "gzip": lambda: zlib.compressobj(1, wbits=31), "xz": lambda: lzma.LZMACompressor(preset=0),
        "bzip2": lambda: bz2.BZ2Compressor(9), "zstd": lambda: zstandard.ZstdCompressor().compressobj()}
    writer = makers[kind]()
    zeros = bytes(1 << 20)
    return [writer.compress(head), *(writer.compress(zeros) for _ in range(size >> 20)),
            writer.compress(bytes(1024)), writer.flush()]
