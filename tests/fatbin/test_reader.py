"""Files that are cut off, damaged or hostile: real ones, with bytes changed by hand."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest

import fatbin
from tests.support.device_code import section_header


@pytest.fixture
def plain(samples: dict[str, Path]) -> bytearray:
    """A container with a stored cubin and a PTX text in zstd, whose header has an extension."""
    return bytearray(samples["plain.fatbin"].read_bytes())


@pytest.fixture
def library(samples: dict[str, Path]) -> bytearray:
    return bytearray(samples["size.so"].read_bytes())


def refused(data: bytes | bytearray, message: str | None = None) -> int:
    with pytest.raises(fatbin.FatbinError, match=message) as caught:
        fatbin.read(bytes(data))
    return caught.value.offset


def test_bytes_and_files_are_read_alike(samples: dict[str, Path]) -> None:
    data = samples["many.so"].read_bytes()
    found = fatbin.read(data)
    assert found == fatbin.read(bytearray(data)) == fatbin.read(memoryview(data)) == fatbin.read(io.BytesIO(data))
    assert [entry.payload() for entry in found.entries] == [
        entry.payload() for entry in fatbin.read(io.BytesIO(data)).entries]


def test_a_file_that_gives_less_than_was_asked_for(samples: dict[str, Path]) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(7, size or 7))

    data = samples["plain.fatbin"].read_bytes()
    assert [entry.payload() for entry in fatbin.read(Slow(data)).entries] == [
        entry.payload() for entry in fatbin.read(data).entries]


def test_a_file_without_device_code(samples: dict[str, Path]) -> None:
    plain_object = Path(__import__("math").__file__).read_bytes()
    assert fatbin.read(plain_object).containers == ()
    assert fatbin.read(plain_object).consistent


def test_what_is_no_such_file(samples: dict[str, Path]) -> None:
    assert refused(b"", "not an ELF file") == 0
    assert refused(b"PK\x03\x04" * 10, "not an ELF file") == 0
    assert refused(b"\x7fELF", "not an ELF file") == 0
    refused(samples["bare.cubin"].read_bytes(), "a cubin, which is device code itself: `cubin_kernels` reads it")


def test_every_cut_is_noticed(plain: bytearray) -> None:
    whole = fatbin.read(bytes(plain))
    assert len(whole.entries) == 2
    for size in [*range(1, 400), *range(400, len(plain), 97), len(plain) - 1]:
        refused(plain[:size])


def test_every_cut_of_a_library_is_noticed(library: bytearray) -> None:
    for size in [*range(64), *range(64, len(library) - 1, 211), len(library) - 1]:
        refused(library[:size])  # the section headers come last


@pytest.mark.parametrize(("offset", "form", "value", "message", "where"), [
    (4, "H", 2, "a container of version 2", 0),
    (6, "H", 8, "with a header of 8 bytes", 0),
    (8, "Q", 1 << 62, "a container of 4611686018427387920 bytes where", 0),
    (8, "Q", 30, "an entry header of 64 bytes where 30 are left", 16),
    (16 + 2, "H", 0x0102, "entry of version 0x0102", 16),
    (16 + 4, "I", 63, "an entry of 63 bytes of header", 16),
    (16 + 4, "I", 0xFFFFFFFF, "an entry of 4294967295 bytes of header", 16),
    (16 + 8, "Q", 0xFFFFFFFFFFFFFFFF, "of payload where", 16),
    (16 + 40, "Q", 0xA011, "both LZ4 and zstd", 16),
    (16 + 40, "Q", 0x300011, "both architecture-specific and family-specific", 16),
    (16 + 40, "Q", 0x8011, "0 compressed bytes in a payload of", 16),
    (16 + 36, "I", 9, "identifier: 9 bytes at 0 of an entry header of", 16),
])
def test_headers_that_cannot_be(plain: bytearray, offset: int, form: str, value: int, message: str,
                                where: int) -> None:
    struct.pack_into("<" + form, plain, offset, value)
    assert refused(plain, message) == where


@pytest.mark.parametrize(("offset", "value", "message"), [
    (16, 0xFFFFFFFF, "compressed bytes in a payload"),
    (16, 0, "0 compressed bytes in a payload"),
    (20, 0xFFFFFFF0, "an extension at 4294967280 of"),
    (0x40, 0xFFFFFFF0, "options: .* bytes at 4294967280 of"),
    (0x44, 0xFFFFFFF0, "options: 4294967280 bytes at"),
])
def test_headers_of_compressed_text_that_cannot_be(samples: dict[str, Path], offset: int, value: int,
                                                   message: str) -> None:
    data = bytearray(samples["relocatable.o"].read_bytes())
    text = next(entry for entry in fatbin.read(bytes(data)).entries if entry.kind is fatbin.Kind.PTX)
    assert text.options.strip() == "--compile-only"
    struct.pack_into("<I", data, text.offset + offset, value)
    assert refused(data, message) == text.offset


def test_a_kind_that_is_not_known_is_listed(plain: bytearray) -> None:
    struct.pack_into("<H", plain, 16, 16)
    entry = fatbin.read(bytes(plain)).entries[0]
    assert (entry.kind, entry.kind_number, entry.isa) == (fatbin.Kind.OTHER, 16, "")
    assert fatbin.kernels(entry) is None


def test_zeros_between_containers_are_skipped_and_other_bytes_are_not(plain: bytearray) -> None:
    one = fatbin.read(bytes(plain))
    two = fatbin.read(bytes(plain) + bytes(200_000) + bytes(plain) + bytes(24))
    assert [container.offset for container in two.containers] == [0, len(plain) + 200_000]
    assert [entry.target for entry in two.entries] == 2 * [entry.target for entry in one.entries]
    refused(bytes(plain) + b"\0\1" + bytes(14) + bytes(plain), "no container: magic")
    refused(bytes(plain) + b"\1", "container header reaches over the end")


def test_limits(plain: bytearray) -> None:
    data = bytes(plain)
    sizes = [entry.full_size for entry in fatbin.read(data).entries]
    fatbin.read(data, limits=fatbin.Limits(entries=2, total=sum(sizes)))
    with pytest.raises(fatbin.FatbinError, match="more than 1 entries"):
        fatbin.read(data, limits=fatbin.Limits(entries=1))
    empty = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 0)
    assert len(fatbin.read(empty * 3, limits=fatbin.Limits(entries=3)).containers) == 3
    with pytest.raises(fatbin.FatbinError, match="more than 3 containers"):
        fatbin.read(empty * 4, limits=fatbin.Limits(entries=3))
    with pytest.raises(fatbin.FatbinError, match="payloads of more than"):
        fatbin.read(data, limits=fatbin.Limits(total=sum(sizes) - 1))
    for entry in fatbin.read(data).entries:
        assert entry.payload(fatbin.Limits(payload=entry.full_size))
        with pytest.raises(fatbin.FatbinError, match="bytes, more than"):
            entry.payload(fatbin.Limits(payload=entry.full_size - 1))
        with pytest.raises(fatbin.FatbinError, match="bytes, more than"):
            fatbin.kernels(entry, limits=fatbin.Limits(payload=10))


def test_a_payload_that_is_not_what_its_header_says(library: bytearray) -> None:
    entry = fatbin.read(bytes(library)).entries[0]
    assert entry.compression is fatbin.Compression.ZSTD
    struct.pack_into("<Q", library, entry.offset + 0x38, entry.full_size + 1)
    with pytest.raises(fatbin.FatbinError, match=f"{entry.full_size} bytes, expected {entry.full_size + 1}") as caught:
        fatbin.read(bytes(library)).entries[0].payload()
    assert caught.value.offset == entry.payload_offset


def test_ir_is_scrambled_when_it_is_compressed(samples: dict[str, Path]) -> None:
    scrambled, stored = ([entry for entry in fatbin.read(samples[name].read_bytes()).entries
                          if entry.kind is fatbin.Kind.IR] for name in ("lto.o", "lto-stored.o"))
    for found in (scrambled, stored):
        assert [entry.target for entry in found] == ["compute_110", "compute_110a"]
    for entry in stored:
        assert entry.payload().startswith(b"\xed\x43\x4e\x7f")
    for entry in scrambled:
        with pytest.raises(fatbin.FatbinError, match=r"payload of compute_110a? is scrambled"):
            entry.payload()


def test_wrappers_are_counted(library: bytearray) -> None:
    at = section_header(library, ".nvFatBinSegment")
    offset, size = struct.unpack_from("<QQ", library, at + 24)
    assert (size, fatbin.read(bytes(library)).consistent) == (24, True)
    for version in (1, 2):
        struct.pack_into("<I", library, offset + 4, version)
        assert fatbin.read(bytes(library)).wrappers == 1

    longer = bytearray(library)
    struct.pack_into("<Q", longer, at + 32, 25)
    assert refused(longer, "section .nvFatBinSegment of 25 bytes is no whole number of wrappers") == offset
    struct.pack_into("<QQ", longer, at + 24, len(longer), 48)
    more = fatbin.read(bytes(longer + library[offset:offset + 24] * 2))
    assert (more.wrappers, len(more.containers), more.consistent) == (2, 1, False)
    struct.pack_into("<Q", longer, at + 32, 0)
    assert fatbin.read(bytes(longer)).consistent is False

    struct.pack_into("<I", library, offset, 0)
    assert refused(library, "no wrapper: magic 0x00000000") == offset


@pytest.mark.parametrize(("field", "value", "message"), [
    (24, 1 << 63, "reaches over the end"),
    (32, 1 << 62, "reaches over the end of the file"),
    (8, 0x800, "is compressed as a whole"),
])
def test_sections_that_cannot_be(library: bytearray, field: int, value: int, message: str) -> None:
    struct.pack_into("<Q", library, section_header(library, ".nv_fatbin") + field, value)
    refused(library, message)


def test_sections_that_overlap(library: bytearray) -> None:
    at, other = section_header(library, ".nv_fatbin"), section_header(library, ".nvFatBinSegment")
    struct.pack_into("<I", library, other, struct.unpack_from("<I", library, at)[0])  # the same name
    struct.pack_into("<QQ", library, other + 24, *struct.unpack_from("<QQ", library, at + 24))
    refused(library, "section .nv_fatbin overlaps another")


def test_sections_without_bytes_have_none(library: bytearray) -> None:
    # SHT_NOBITS, as in separate debug files.
    struct.pack_into("<I", library, section_header(library, ".nv_fatbin") + 4, 8)
    found = fatbin.read(bytes(library))
    assert (found.containers, found.consistent) == ((), False)


@pytest.mark.parametrize(("offset", "form", "value", "message"), [
    (4, "B", 1, "not a 64-bit little-endian ELF file"),
    (5, "B", 2, "not a 64-bit little-endian ELF file"),
    (0x28, "Q", 0, "has no section headers, so its device code cannot be found"),
    (0x28, "Q", 1 << 63, "section headers reaches over the end"),
    (0x3A, "H", 63, "section headers of 63 bytes"),
    (0x3C, "H", 0xFFF0, "section headers reaches over the end"),
    (0x3E, "H", 0, "names no section with the names"),
    (0x3E, "H", 0xFFF0, "names no section with the names"),
])
def test_elf_headers_that_cannot_be(library: bytearray, offset: int, form: str, value: int, message: str) -> None:
    struct.pack_into("<" + form, library, offset, value)
    refused(library, message)


def test_counts_that_are_too_large_for_the_elf_section_header(library: bytearray) -> None:
    found = fatbin.read(bytes(library))
    start, count, names = (*struct.unpack_from("<Q", library, 0x28), *struct.unpack_from("<HH", library, 0x3C))
    struct.pack_into("<HH", library, 0x3C, 0, 0xFFFF)
    struct.pack_into("<Q", library, start + 32, count)
    struct.pack_into("<I", library, start + 40, names)
    assert fatbin.read(bytes(library)) == found
    struct.pack_into("<Q", library, start + 32, 1 << 40)
    refused(library, "1099511627776 sections, more than")


def test_a_section_name_without_end(library: bytearray) -> None:
    struct.pack_into("<I", library, section_header(library, ".nv_fatbin"), 0xFFFFFFF0)
    refused(library, "a name at 4294967280 of a table of .* has no end")
