"""What a file's device code is, as data. `Entry.payload` is the only thing here that reads."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from fatbin import decompress
from fatbin.source import Source


class Kind(enum.Enum):
    """What an entry holds; the value is the number in the file."""

    PTX = 1
    """Text that the driver compiles for its GPU when the program loads ("JIT")."""
    CUBIN = 2
    """Machine code for one architecture, an ELF file."""
    IR = 8
    """NVVM IR for the link-time optimiser; nothing can run it as it is."""
    OTHER = -1
    """A kind that this package does not know; `Entry.kind_number` has the number."""


class Compression(enum.Enum):
    """How an entry's payload lies in the file."""

    STORED = "stored"
    LZ4 = "lz4"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece of device code: a cubin, a PTX text or NVVM IR, as its header describes it.

    Attributes:
        offset: of its header in the file.
        kind: what it holds.
        kind_number: the same as the file says it.
        arch: number of the architecture: 80, 110, 121.
        suffix: "" plain, "a" architecture-specific, "f" family-specific.
        version: (major, minor): of a PTX text its ISA; of a cubin the ABI that cuobjdump calls "code version".
        compression: of the payload.
        size: bytes that the payload takes in the file, without padding where that is known.
        full_size: bytes after decompression; `size` if stored.
        flags: all flag bits, of which only some are understood.
        identifier: the source file that nvcc noted (with -G or -lineinfo), else "".
        options: what a PTX text or NVVM IR says with which options to compile it, else "".
    """

    offset: int
    kind: Kind
    kind_number: int
    arch: int
    suffix: str
    version: tuple[int, int]
    compression: Compression
    size: int
    full_size: int
    flags: int
    identifier: str
    options: str
    payload_offset: int
    _source: Source = field(repr=False, compare=False)

    @property
    def target(self) -> str:
        """The architecture as nvcc's options name it: "compute_80" for PTX and IR, "sm_110a" for a cubin."""
        return f"{'sm' if self.kind is Kind.CUBIN else 'compute'}_{self.arch}{self.suffix}"

    @property
    def isa(self) -> str:
        """The PTX ISA, "9.0"; "" for what is not PTX."""
        return f"{self.version[0]}.{self.version[1]}" if self.kind is Kind.PTX else ""

    @property
    def is_64bit(self) -> bool:
        """True if compiled for 64-bit hosts, as all is since CUDA 12."""
        return bool(self.flags & 0x1)

    @property
    def has_debug(self) -> bool:
        """True if compiled with debug information (-G)."""
        return bool(self.flags & 0x2)

    @property
    def is_scrambled(self) -> bool:
        """True if nvcc made the payload unreadable for all but its own tools, as it does with compressed NVVM IR."""
        return bool(self.flags & 0x10000)

    def payload(self, limits: decompress.Limits = decompress.LIMITS) -> bytes:
        """The payload, decompressed: the text of PTX without its terminating NULs, the bytes of a cubin.

        The file that was given to `read` must still be open.

        Raises:
            FatbinError: the payload is damaged, scrambled, or larger than `limits` allow.
            MissingZstdError: this Python has no zstd.
        """
        what = f"payload of {self.target}"
        if max(self.size, self.full_size) > limits.payload:
            raise self._source.error(f"{what} has {max(self.size, self.full_size)} bytes, more than {limits.payload}",
                                     self.offset)
        if self.is_scrambled:
            raise self._source.error(f"{what} is scrambled, as compressed NVVM IR is", self.payload_offset)
        data = self._source.read(self.payload_offset, self.size, what)
        if self.compression is Compression.LZ4:
            data = decompress.lz4(data, self.full_size, self.payload_offset)
        elif self.compression is Compression.ZSTD:
            data = decompress.zstd(data, self.full_size, self.payload_offset)
        return data.rstrip(b"\0") if self.kind is Kind.PTX else data


@dataclass(frozen=True, slots=True)
class Container:
    """One fat binary, which nvcc writes for each source file: the same code for several architectures.

    Attributes:
        section: of the ELF file; "" in a plain `.fatbin`.
        offset: of its header in the file.
        size: bytes with the header.
        entries: in the order of the file.
    """

    section: str
    offset: int
    size: int
    entries: tuple[Entry, ...]

    @property
    def relocatable(self) -> bool:
        """True for what -rdc=true leaves for the device linker, which may also have been linked into another."""
        return self.section == "__nv_relfatbin"


@dataclass(frozen=True, slots=True)
class Fatbin:
    """All device code of a file.

    Attributes:
        machine: of the ELF file as `uname -m` says it; "" for a plain `.fatbin`.
        containers: in the order of the sections and of the file.
        wrappers: how many control structures `.nvFatBinSegment` has, which the program registers with the CUDA
            runtime when it starts; None for a plain `.fatbin`.
    """

    machine: str
    containers: tuple[Container, ...]
    wrappers: int | None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries of all containers."""
        return tuple(entry for container in self.containers for entry in container.entries)

    @property
    def consistent(self) -> bool:
        """False if there are more or fewer wrappers than containers: device code was lost, or added by hand."""
        return self.wrappers is None or self.wrappers == len(self.containers)
