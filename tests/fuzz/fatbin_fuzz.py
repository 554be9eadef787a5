"""Fuzzes the fatbin reader: real small files with bytes changed, until the time is over.

    python tests/fuzz/fatbin_fuzz.py [--seconds 60] [--seed N] [--samples DIR]

Each round takes a file that nvcc compiled (or one of DIR), changes it, and reads it with everything the package has:
headers, payloads, kernels. What may come out is a result or `FatbinError`. Limits are set low, so that a read over them
shows; see `harness` for those on time and memory.
"""

from __future__ import annotations

import random
import re
import struct
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fatbin
from fatbin import decompress
from tests.fuzz.harness import Group, Spots, files_of, main

LIMITS = fatbin.Limits(payload=16 << 20, entries=4096, total=64 << 20)


def read_all(data: bytes, _: random.Random) -> str:
    """Everything there is to read; what came out, in a word."""
    try:
        found = fatbin.read(data, limits=LIMITS)
    except fatbin.FatbinError as error:
        _shown(error)
        return "refused"
    damaged = 0
    for entry in found.entries:
        assert entry.target
        assert entry.isa is not None
        try:
            payload = entry.payload(LIMITS)
            assert len(payload) <= max(entry.full_size, entry.size) <= LIMITS.payload
            fatbin.kernels(entry, limits=LIMITS)
        except fatbin.FatbinError as error:
            _shown(error)
            damaged += 1
    return "payload refused" if damaged else "read"


def read_parts(data: bytes, rng: random.Random) -> str:
    """The same bytes as what they are not: a cubin, a PTX text, LZ4, zstd."""
    size = rng.choice((0, 1, len(data), len(data) * 4, 1 << 20))
    for part in (lambda: fatbin.cubin_kernels(data), lambda: fatbin.ptx_kernels(data),
                 lambda: decompress.lz4(data, size), lambda: decompress.zstd(data, size)):
        try:
            part()
        except fatbin.FatbinError as error:
            _shown(error)
    return "as parts"


def _shown(error: fatbin.FatbinError) -> None:
    assert str(error)
    assert error.offset >= 0


def spots_of(data: bytes) -> Spots:
    """Offsets in a good file of the headers of sections, containers, entries and wrappers, and of payloads."""
    sections, containers, entries, payloads = [0], [], [], []
    try:
        found = fatbin.read(data)
    except fatbin.FatbinError:
        found = fatbin.Fatbin("", (), None)
    for container in found.containers:
        containers.append(container.offset)
        for entry in container.entries:
            entries.append(entry.offset)
            payloads += [entry.payload_offset, entry.payload_offset + entry.size // 2]
    if data.startswith(b"\x7fELF"):
        start, count = struct.unpack_from("<Q", data, 0x28)[0], struct.unpack_from("<H", data, 0x3C)[0]
        sections += [start + 64 * index for index in range(count)]
    wrappers = [match.start() for match in re.finditer(re.escape(b"\xb1\x43\x62\x46"), data)]
    return [sections, containers, wrappers, *[entries] * 2, *[payloads] * 4]


def groups(directory: Path | None) -> list[Group]:
    """The files to begin with, and the payloads in them, as they lie and decompressed."""
    if directory is not None:
        files = files_of(directory)
    else:
        from tests.support.cuda import toolkit
        from tests.support.device_code import compile_all

        with tempfile.TemporaryDirectory() as scratch:
            made = compile_all(toolkit(), Path(scratch))
            files = {name: data for name, data in files_of(Path(scratch)).items() if name in made}
    parts = {}
    for name, data in files.items():
        try:
            entries = fatbin.read(data).entries
        except fatbin.FatbinError:
            continue
        for index, entry in enumerate(entries[:4]):
            parts[f"{name}-{index}"] = data[entry.payload_offset:entry.payload_offset + entry.size]
            if not entry.is_scrambled:
                parts[f"{name}-{index}-unpacked"] = entry.payload()
    return [Group(weight, samples, read, {name: spots_of(data) for name, data in samples.items()})
            for weight, samples, read in ((0.7, files, read_all), (0.3, parts, read_parts)) if samples]


if __name__ == "__main__":
    sys.exit(main("fatbin", groups))
