"""Fuzzes the fatbin reader: real small files with bytes changed, until the time is over.

    python tests/fuzz/fatbin_fuzz.py [--seconds 60] [--seed N] [--samples DIR]

Each round takes a file that nvcc compiled (or one of DIR), changes it, and reads it with everything the package has:
headers, payloads, kernels. What may come out is a result or `FatbinError`; another exception, more than 20 seconds for
one file, or more memory than the limits allow ends the run with status 1. The file is then kept; and the same seed
makes the same rounds. Limits are set low, so that a read over them shows.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fatbin
from fatbin import decompress

LIMITS = fatbin.Limits(payload=16 << 20, entries=4096, total=64 << 20)
#: Address space that the process may take beyond what it has when it starts: several times LIMITS.
_MEMORY = 256 << 20
#: The slowest good sample takes hundredths of a second.
_SECONDS = 20

_EDGES = (0, 1, 2, 7, 8, 15, 16, 24, 63, 64, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
          1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


class Mutator:
    """Changes to a file; `spots` are offsets of headers, where changes matter most, by what they are headers of."""

    def __init__(self, rng: random.Random, spots: list[list[int]]) -> None:
        self.rng = rng
        self.spots = [group for group in spots if group]
        self.ways: tuple[Callable[[bytearray], None], ...] = (
            *[self.flip] * 6, *[self.number] * 9, *[self.copy] * 3, *[self.zero] * 3, self.cut, self.insert)

    def change(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.rng.choice((1, 1, 1, 2, 3, 8))):
            if changed:
                self.rng.choice(self.ways)(changed)
        return bytes(changed)

    def at(self, data: bytearray) -> int:
        if self.spots and self.rng.random() < 0.8:
            return min(self.rng.choice(self.rng.choice(self.spots)) + self.rng.randrange(64), len(data) - 1)
        return self.rng.randrange(len(data))

    def flip(self, data: bytearray) -> None:
        data[self.at(data)] ^= 1 << self.rng.randrange(8)

    def number(self, data: bytearray) -> None:
        """A field becomes an edge, a neighbour of what it was, or a place in the file."""
        form = self.rng.choice("BHIIQQ")
        size = struct.calcsize(form)
        at = self.at(data) // size * size
        if at + size > len(data):
            return
        old = struct.unpack_from("<" + form, data, at)[0]
        new = self.rng.choice((self.rng.choice(_EDGES), old + self.rng.randrange(-9, 10), self.rng.randrange(len(data)),
                               old * 2, len(data) - at))
        struct.pack_into("<" + form, data, at, new % (1 << 8 * size))

    def cut(self, data: bytearray) -> None:
        del data[self.at(data):]

    def copy(self, data: bytearray) -> None:
        start, to, size = self.at(data), self.at(data), self.rng.randrange(1, 256)
        piece = data[start:start + size]
        data[to:to + len(piece)] = piece

    def zero(self, data: bytearray) -> None:
        at = self.at(data)
        size = min(self.rng.randrange(1, 64), len(data) - at)
        data[at:at + size] = bytes(size)

    def insert(self, data: bytearray) -> None:
        at = self.at(data)
        data[at:at] = self.rng.randbytes(self.rng.randrange(1, 64))


def read_all(data: bytes) -> str:
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


def _hung(*_: object) -> None:
    raise TimeoutError(f"more than {_SECONDS} seconds")


def _shown(error: fatbin.FatbinError) -> None:
    assert str(error)
    assert error.offset >= 0


def spots_of(data: bytes) -> list[list[int]]:
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


def corpus(directory: Path | None) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files to begin with, by name, and the payloads in them, as they lie and decompressed."""
    if directory is not None:
        files = {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}
    else:
        from tests.support.cuda import toolkit
        from tests.support.device_code import compile_all

        with tempfile.TemporaryDirectory() as scratch:
            files = {name: path.read_bytes() for name, path in compile_all(toolkit(), Path(scratch)).items()}
    files = {name: data for name, data in files.items() if data and len(data) < 2 << 20}
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
    return files, parts


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the fatbin reader.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="repeat a run; else a new one is taken and printed")
    parser.add_argument("--samples", type=Path, help="begin with the files of this directory instead of compiling some")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    files, parts = corpus(options.samples)
    choices = {True: sorted(parts.items()), False: sorted(files.items())}
    spots = {name: spots_of(data) for name, data in (files | parts).items()}
    # The good ones first: what they import must be there before memory is limited.
    for data in (files | parts).values():
        read_all(data)
        read_parts(data, random.Random(0))
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    signal.signal(signal.SIGALRM, _hung)
    outcomes: Counter[str] = Counter()
    slowest = (0.0, "")
    rounds = 0
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        rng = random.Random(f"{seed}/{rounds}")
        as_part = rng.random() < 0.3
        name, data = rng.choice(choices[as_part])
        data = Mutator(rng, spots[name]).change(data)
        signal.alarm(_SECONDS)
        faulthandler.dump_traceback_later(3 * _SECONDS, exit=True)  # where a signal is not heard, as in a decompressor
        begun = time.monotonic()
        try:
            outcomes[read_parts(data, rng) if as_part else read_all(data)] += 1
        except Exception:
            kept = Path(tempfile.gettempdir()) / f"fatbin-fuzz-{seed}-{rounds}"
            kept.write_bytes(data)
            traceback.print_exc()
            print(f"seed {seed}, round {rounds}, from {name}: kept as {kept}", flush=True)
            return 1
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, (time.monotonic() - begun, f"round {rounds} from {name}"))
        rounds += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{rounds} rounds, {dict(outcomes)}, slowest {slowest[0]:.2f} s ({slowest[1]}), peak memory {peak} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
