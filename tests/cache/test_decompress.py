from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable

import pytest
import zstandard

from cache.decompress import decompressed
from cache.errors import IntegrityError

COMPRESSORS: list[Callable[[bytes], bytes]] = [gzip.compress, lzma.compress, bz2.compress, zstandard.compress]
CONTENT = bytes(range(256)) * 100


@pytest.mark.parametrize("compress", COMPRESSORS)
def test_every_cut_is_noticed(compress: Callable[[bytes], bytes]) -> None:
    data = compress(CONTENT)
    assert decompressed(io.BytesIO(data), "x").read() == CONTENT
    for end in range(8, len(data)):
        with pytest.raises(IntegrityError) as caught:
            decompressed(io.BytesIO(data[:end]), "x").read()
        assert caught.value.where == "x"


@pytest.mark.parametrize("data", [b"", b"x", b"plain text", CONTENT])
def test_what_is_not_compressed_is_given_as_it_is(data: bytes) -> None:
    assert decompressed(io.BytesIO(data), "x").read() == data
    stream = decompressed(io.BytesIO(data), "x")
    assert b"".join(iter(lambda: stream.read(3), b"")) == data


@pytest.mark.parametrize("compress", COMPRESSORS)
def test_garbage_after_the_end_is_no_content(compress: Callable[[bytes], bytes]) -> None:
    with pytest.raises(IntegrityError):
        decompressed(io.BytesIO(compress(CONTENT) + b"garbage"), "x").read()


def test_an_error_of_the_disk_stays_one() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 5:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(OSError, match="Input/output"):
        decompressed(Broken(gzip.compress(CONTENT)), "x").read()
