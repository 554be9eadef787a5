"""LZ4 blocks and zstd frames, good and hostile."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import fatbin
from fatbin import decompress
from fatbin.decompress import lz4, zstd


def block(*sequences: tuple[bytes, int, int]) -> tuple[bytes, bytes]:
    """An LZ4 block of (literals, distance, length of the match; 0 for none), and what it stands for."""
    out, text = bytearray(), bytearray()
    for literals, distance, length in sequences:
        rest = length - 4 if length else 0
        out.append(min(len(literals), 15) << 4 | min(rest, 15))
        out += more(len(literals)) + literals
        text += literals
        if length:
            out += distance.to_bytes(2, "little") + more(rest)
            for _ in range(length):
                text.append(text[-distance])
    return bytes(out), bytes(text)


def more(length: int) -> bytes:
    return b"" if length < 15 else b"\xff" * ((length - 15) // 255) + bytes([(length - 15) % 255])


@st.composite
def blocks(draw: st.DrawFn) -> tuple[bytes, bytes]:
    sequences: list[tuple[bytes, int, int]] = []
    size = 0
    for _ in range(draw(st.integers(1, 6))):
        literals = draw(st.binary(min_size=0 if size else 1, max_size=600))
        size += len(literals)
        length = draw(st.integers(4, 700))
        sequences.append((literals, draw(st.integers(1, size)), length))
        size += length
    return block(*sequences, (draw(st.binary(max_size=20)), 0, 0))


@given(blocks())
def test_lz4_gives_what_a_block_stands_for(made: tuple[bytes, bytes]) -> None:
    data, text = made
    assert lz4(data, len(text)) == text


@given(blocks(), st.data())
def test_a_cut_lz4_block_is_refused(made: tuple[bytes, bytes], data: st.DataObject) -> None:
    packed, text = made
    cut = packed[:data.draw(st.integers(0, len(packed) - 1))]
    try:
        assert lz4(cut, len(text)) == text  # what is cut off held nothing, such as an empty last sequence
    except fatbin.FatbinError:
        pass


@given(st.binary(max_size=300), st.integers(0, 2000))
def test_any_bytes_give_a_result_or_an_error(data: bytes, size: int) -> None:
    for decode in (lz4, zstd):
        try:
            assert len(decode(data, size)) == size
        except fatbin.FatbinError:
            pass


@pytest.mark.parametrize(("data", "size", "message"), [
    (b"\x10", 1, "literals do not fit"),
    (b"\xf0\xff", 300, "cut off"),
    (b"\x50hello", 4, "literals do not fit"),
    (b"\x50hello", 6, "5 bytes, expected 6"),
    (b"\x10a\x00\x00", 5, "0 back, does not fit"),
    (b"\x10a\x02\x00", 5, "2 back, does not fit"),
    (b"\x10a\x01", 5, "cut off"),
    (b"\x1fa\x01\x00" + b"\xff" * 1000 + b"\x00", 500, "does not fit"),
])
def test_malformed_lz4(data: bytes, size: int, message: str) -> None:
    with pytest.raises(fatbin.FatbinError, match=message) as caught:
        lz4(data, size, 0x1000)
    assert caught.value.offset >= 0x1000


def test_zstd_frames_of_other_sizes_are_refused() -> None:
    data = zstandard.ZstdCompressor().compress(b"kernel" * 1000)
    assert zstd(data, 6000) == b"kernel" * 1000
    with pytest.raises(fatbin.FatbinError, match="more than 5999 bytes, expected 5999"):
        zstd(data, 5999)
    with pytest.raises(fatbin.FatbinError, match="6000 bytes, expected 6001"):
        zstd(data, 6001)
    with pytest.raises(fatbin.FatbinError, match="expected 6000"):
        zstd(data[:-3], 6000)
    with pytest.raises(fatbin.FatbinError, match="zstd: ") as caught:
        zstd(b"not zstd", 6000, 77)
    assert caught.value.offset == 77


def peak(decode: object, *arguments: object) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(fatbin.FatbinError):
            decode(*arguments)  # type: ignore[operator]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_bomb_takes_no_more_memory_than_was_announced() -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(200 << 20))
    assert len(bomb) < 32 << 10
    assert peak(zstd, bomb, 1000) < 4 << 20
    # A frame whose header claims four exabytes of which there are three bytes.
    liar = b"\x28\xb5\x2f\xfd\xc0\x50" + (1 << 62).to_bytes(8, "little") + b"\x19\x00\x00abc"
    assert peak(zstd, liar, 1000) < 4 << 20
    assert peak(lz4, b"\x1fa\x01\x00" + b"\xff" * 400_000 + b"\x00", 1000) < 4 << 20


def test_a_header_that_claims_much_takes_little() -> None:
    assert peak(zstd, zstandard.ZstdCompressor().compress(b"little"), 1 << 29) < 8 << 20


def test_a_window_of_terabytes_is_refused() -> None:
    # Frame header: magic, descriptor without content size, window descriptor; one raw block of three bytes.
    for log in (28, 41):
        with pytest.raises(fatbin.FatbinError, match="zstd"):
            zstd(b"\x28\xb5\x2f\xfd\x00" + bytes([log - 10 << 3]) + b"\x19\x00\x00abc", 3)
    assert zstd(b"\x28\xb5\x2f\xfd\x00" + bytes([27 - 10 << 3]) + b"\x19\x00\x00abc", 3) == b"abc"


def test_without_zstd_the_error_says_what_to_install(samples: dict[str, Path]) -> None:
    program = f"""
import sys
sys.modules["zstandard"] = sys.modules["compression.zstd"] = None
import fatbin
found = fatbin.read(open({str(samples["size.so"])!r}, "rb"))
print([entry.target for entry in found.entries])
try:
    fatbin.kernels(found.entries[0])
except fatbin.MissingZstdError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          cwd=Path(decompress.__file__).parents[1])
    targets, error = done.stdout.splitlines()
    assert targets == "['sm_110f', 'compute_110f']"
    assert "install the package zstandard" in error
