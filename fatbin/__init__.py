"""Reads the GPU code that nvcc puts into ELF files ("fat binaries"), without NVIDIA's tools and without a GPU.

    with open("libx.so", "rb") as file:
        found = fatbin.read(file)                  # headers only: a few reads, nothing is decompressed
        for entry in found.entries:
            print(entry.kind, entry.target, entry.isa, entry.compression, entry.size)
            print(fatbin.kernels(entry))           # reads, decompresses and parses this entry

A package of its own: it imports nothing but the standard library, and one of `compression.zstd` (Python 3.14) or
`zstandard` at the moment when an entry that is compressed with zstd is decompressed.

What it reads: shared libraries, programs and object files (64-bit little-endian ELF), and plain `.fatbin` files. What
it leaves alone: device code as instructions (SASS), NVVM IR (listed, not parsed), archives (`.a`), and the question
what a GPU can load.

All bytes are untrusted. Whatever they are, a call ends with a result or with `FatbinError`, which says at which offset
what was wrong; time and memory are bounded by `Limits`.
"""

from fatbin.decompress import Limits, MissingZstdError
from fatbin.errors import FatbinError
from fatbin.kernels import cubin_kernels, kernels, ptx_kernels
from fatbin.model import Compression, Container, Entry, Fatbin, Kind
from fatbin.reader import read

__all__ = [
    "Compression",
    "Container",
    "Entry",
    "Fatbin",
    "FatbinError",
    "Kind",
    "Limits",
    "MissingZstdError",
    "cubin_kernels",
    "kernels",
    "ptx_kernels",
    "read",
]
