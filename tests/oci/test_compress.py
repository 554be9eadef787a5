"""Compressed layers: the same bytes whatever the cores and reads, tied to the library that made them."""

import gzip
import io
import random
import zlib
from pathlib import Path

import pytest
import zstandard

from cache.build import BuildContext
from cache.canonical import sha256
from cache.errors import InputError, ToolError
from cache.store import Store
from oci.compress import build, compress, compressor

#: (name, level, library, version) to the digest of SAMPLE compressed. Another version of a library needs its own line:
#: add it, look at whether the old lines still hold, and keep them.
SAMPLE_DIGEST = "sha256:a730cc3a382e5c3265d3d18949b130f5927c31b3eca7c0332f6c5e8478bd9273"
GOLDEN = {
    ("zstd", 3, "libzstd", "1.5.7"): "sha256:a62d3b58acca8a818d577b77c6e366a912945f59bf6a3517eb1e828bb8b70b17",
    ("zstd", 19, "libzstd", "1.5.7"): "sha256:20224f2f35a9d0491deec2e5951ff95b859ceb7cff25fdb600ebbf0d9ea34d1a",
    ("gzip", 6, "zlib", "1.2.13"): "sha256:0ea24cd6aa3cf731539550e4de99eeb23ecec729ca5a15adc058eec80ed82275",
}


def _sample() -> bytes:
    """3.3 MB: more than one block of gzip and one job of zstd; half repeats, half does not."""
    source = random.Random(7)
    words = [source.randbytes(source.randrange(3, 40)) for _ in range(400)]
    return b"".join(source.choice(words) for _ in range(80_000)) + source.randbytes(1_600_000)


SAMPLE = _sample()


def packed(name: str, level: int, data: bytes = SAMPLE, *, chunk: int = 1 << 20, threads: int = 0) -> bytes:
    chunks = (data[at:at + chunk] for at in range(0, len(data), chunk))
    return b"".join(compress(chunks, len(data), name, level, threads))


def unpacked(name: str, data: bytes) -> bytes:
    if name == "zstd":
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
    return gzip.decompress(data)


@pytest.mark.parametrize(("name", "level"), [("zstd", 3), ("zstd", 19), ("gzip", 6)])
def test_golden_bytes_of_the_library_at_hand(name: str, level: int) -> None:
    assert sha256(SAMPLE) == SAMPLE_DIGEST, "this Python's random gives other numbers: not the compressor's fault"
    key = tuple(compressor(name, level).values())
    found = sha256(packed(name, level))
    # libzstd is hash-locked, so its version must be known here; zlib is this Python's own, of any version.
    assert found == GOLDEN.get(key, found if name == "gzip" else f"no golden digest for {key}")


@pytest.mark.parametrize("name", ["zstd", "gzip"])
def test_threads_and_reads_do_not_change_the_bytes(name: str) -> None:
    expected = packed(name, 3, threads=1)
    for threads, chunk in ((2, 1 << 20), (4, 77_777), (1, 4 << 20), (3, 1000)):
        assert packed(name, 3, chunk=chunk, threads=threads) == expected


@pytest.mark.parametrize("name", ["zstd", "gzip"])
@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_what_goes_in_comes_out(name: str, size: int) -> None:
    assert unpacked(name, packed(name, 1, SAMPLE[:size])) == SAMPLE[:size]


def test_blocks_of_gzip_know_what_came_before() -> None:
    source = random.Random(3).randbytes(20_000)
    repeated = source * 200  # a block that forgot would hold the 20 kB again
    assert len(packed("gzip", 6, repeated)) < len(source) + 60_000


def test_gzip_has_neither_name_nor_time() -> None:
    assert packed("gzip", 6)[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


@pytest.mark.parametrize(("name", "level"), [("xz", 3), ("zstd", 0), ("zstd", 20), ("gzip", 10), ("gzip", 0)])
def test_an_unknown_compressor_or_level_is_refused(name: str, level: int) -> None:
    with pytest.raises(InputError):
        compressor(name, level)


def test_the_builder_gives_the_layer_and_reports(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    layer = store.put(SAMPLE)
    seen: list[tuple[int, int]] = []
    params = {"compressor": compressor("zstd", 3)}
    made = build(BuildContext(store, params, {"layer": layer.digest}, progress=lambda a, b: seen.append((a, b))))
    assert unpacked("zstd", store.read(made["layer"].digest)) == SAMPLE
    assert made["layer"].digest == sha256(packed("zstd", 3))
    assert seen[-1] == (len(SAMPLE), len(SAMPLE))


def test_another_library_than_recorded_is_refused(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    params = {"compressor": {**compressor("gzip", 6), "version": "0.0.1"}}
    with pytest.raises(ToolError) as caught:
        build(BuildContext(store, params, {"layer": store.put(b"x").digest}))
    assert (caught.value.expected, caught.value.found) == ("zlib 0.0.1", f"zlib {zlib.ZLIB_RUNTIME_VERSION}")
