"""What the fuzzers share: changes to files, the loop, and the limits on time and memory.

Each round takes a good file, changes it, and reads it. What may come out is decided by the reader, which returns a word
for its outcome; any exception, more than the seconds for one file, or more memory than the limit ends the run with
status 1. The file is then kept, and the same seed makes the same rounds.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import resource
import signal
import struct
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

EDGES = (0, 1, 2, 7, 8, 15, 16, 24, 63, 64, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
         1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)

#: Offsets in a good file of what matters most, by what it is: each group is as likely as another.
Spots = list[list[int]]


class Hung(BaseException):
    """A read took too long. No Exception: a reader that makes one error of all must not make one of this."""


@dataclass(frozen=True)
class Group:
    """Samples that are read alike.

    Attributes:
        weight: how often, against the other groups.
        read: the bytes to the outcome, in a word; raises what must not be.
        spots: offsets in each sample where changes matter most.
    """

    weight: float
    samples: Mapping[str, bytes]
    read: Callable[[bytes, random.Random], str]
    spots: Mapping[str, Spots]


@dataclass(frozen=True)
class Limits:
    """For one file: seconds, far above what the slowest good one takes; bytes of address space beyond the start's."""

    seconds: int = 20
    memory: int = 256 << 20


class Mutator:
    """Changes to a file."""

    def __init__(self, rng: random.Random, spots: Spots) -> None:
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
        new = self.rng.choice((self.rng.choice(EDGES), old + self.rng.randrange(-9, 10), self.rng.randrange(len(data)),
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


def run(name: str, groups: Sequence[Group], seconds: float, seed: int, limits: Limits | None = None) -> int:
    """Fuzz until the time is over; the exit status."""
    limits = limits or Limits()
    # The good ones first: what they import must be there before memory is limited.
    for group in groups:
        for data in group.samples.values():
            group.read(data, random.Random(0))
    _limit_memory(limits.memory)
    choices = [sorted(group.samples.items()) for group in groups]
    outcomes: Counter[str] = Counter()
    slowest = (0.0, "")
    rounds = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rng = random.Random(f"{seed}/{rounds}")
        [index] = rng.choices(range(len(groups)), [group.weight for group in groups])
        sample, data = rng.choice(choices[index])
        data = Mutator(rng, groups[index].spots[sample]).change(data)
        begun = time.monotonic()
        try:
            outcomes[_within(limits.seconds, groups[index].read, data, rng)] += 1
        except (Exception, Hung):
            kept = Path(tempfile.gettempdir()) / f"{name}-fuzz-{seed}-{rounds}"
            kept.write_bytes(data)
            traceback.print_exc()
            print(f"seed {seed}, round {rounds}, from {sample}: kept as {kept}", flush=True)
            return 1
        slowest = max(slowest, (time.monotonic() - begun, f"round {rounds} from {sample}"))
        rounds += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{name}: {rounds} rounds, {dict(outcomes)}, slowest {slowest[0]:.2f} s ({slowest[1]}), peak {peak} MiB")
    return 0


def _limit_memory(more: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))


def _within(seconds: int, read: Callable[[bytes, random.Random], str], data: bytes, rng: random.Random) -> str:
    def hung(*_: object) -> None:
        raise Hung(f"more than {seconds} seconds")

    signal.signal(signal.SIGALRM, hung)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True)  # where a signal is not heard, as in a decompressor
    try:
        return read(data, rng)
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()


def main(name: str, groups: Callable[[Path | None], Sequence[Group]]) -> int:
    """The command line of a fuzzer; `groups` makes its samples, out of the files of a directory if one is given."""
    parser = argparse.ArgumentParser(description=f"Fuzz the {name} reader.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="repeat a run; else a new one is taken and printed")
    parser.add_argument("--samples", type=Path, help="begin with the files of this directory instead of making some")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    return run(name, groups(options.samples), options.seconds, seed)


def files_of(directory: Path, most: int = 2 << 20) -> dict[str, bytes]:
    """The files of a directory by name, but for empty and large ones."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())
            if path.is_file() and 0 < path.stat().st_size < most}
