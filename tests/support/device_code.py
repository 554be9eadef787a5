"""Small CUDA sources, and what nvcc makes of them in each of its ways: samples for the fatbin reader."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.cuda import Toolkit

SOURCES = {
    "scale.cu": """
        template <typename T> __global__ void scale(T *x, T f) { x[threadIdx.x] *= f; }
        __global__ void add(float *x, const float *y) { x[threadIdx.x] += y[threadIdx.x]; }
        void go(float *x, double *d) { scale<<<1, 32>>>(x, 2.f); scale<<<1, 32>>>(d, 2.); add<<<1, 32>>>(x, x); }
    """,
    "fill.cu": """
        extern "C" __global__ void fill(float *x) { x[threadIdx.x] = 1; }
        static __global__ void hidden(int *x) { x[threadIdx.x] = 1; }
        void go2(float *x, int *y) { fill<<<1, 32>>>(x); hidden<<<1, 32>>>(y); }
    """,
    "uses.cu": """
        extern __device__ float twice(float);
        __global__ void uses(float *x) { x[threadIdx.x] = twice(x[threadIdx.x]); }
        int main() { uses<<<1, 32>>>(nullptr); }
    """,
    "twice.cu": """
        __device__ float twice(float v) { return v * 2 + 1; }
        __global__ void other(float *x) { x[threadIdx.x] = twice(x[threadIdx.x]); }
    """,
    "empty.cu": "int nothing() { return 0; }",
}

_SHARED = ("-shared", "-Xcompiler", "-fPIC", "-cudart", "none")
_MANY = [option for arch, code in (("80", "[sm_80,compute_80]"), ("90a", "sm_90a"), ("110", "sm_110"),
                                   ("110a", "sm_110a"), ("120f", "[sm_120f,compute_120f]"), ("121a", "sm_121a"))
         for option in ("-gencode", f"arch=compute_{arch},code={code}")]
_TWO = ("-gencode", "arch=compute_110f,code=[sm_110f,compute_110f]")

#: Name to nvcc's arguments, without those for the output.
_COMMANDS: Mapping[str, tuple[str, ...]] = {
    "many.so": (*_SHARED, *_MANY, "scale.cu", "fill.cu"),
    "stored.so": (*_SHARED, *_TWO, "-no-compress", "scale.cu"),
    "size.so": (*_SHARED, *_TWO, "-compress-mode=size", "scale.cu"),
    "speed.so": (*_SHARED, *_TWO, "-compress-mode=speed", "scale.cu"),
    "all.so": (*_SHARED, *_TWO, "-Xfatbin", "-compress-all", "scale.cu"),
    "plain.fatbin": ("-fatbin", *_TWO, "fill.cu"),
    "debug.o": ("-c", "-G", *_TWO, "fill.cu"),
    "lineinfo.o": ("-c", "-lineinfo", *_TWO, "fill.cu"),
    "relocatable.o": ("-c", "-rdc=true", *_TWO, "twice.cu"),
    "lto.o": ("-c", "-dlto", "-arch=sm_110a", "uses.cu"),
    "lto-stored.o": ("-c", "-dlto", "-arch=sm_110a", "-no-compress", "uses.cu"),
    "program": ("-rdc=true", *_TWO, "uses.cu", "twice.cu"),
    "empty.so": (*_SHARED, *_TWO, "empty.cu"),
    "bare.cubin": ("-cubin", "-arch=sm_110a", "fill.cu"),
    "bare.ptx": ("-ptx", "-arch=compute_80", "scale.cu"),
}


def compile_all(toolkit: Toolkit, directory: Path) -> dict[str, Path]:
    """Every sample, two compilers at a time, by name; also a stripped library and two objects linked into one."""
    for name, text in SOURCES.items():
        (directory / name).write_text(text)

    def one(name: str) -> Path:
        toolkit.nvcc(*_COMMANDS[name], "-o", name, cwd=directory)
        return directory / name

    with ThreadPoolExecutor(2) as pool:
        samples = dict(zip(_COMMANDS, pool.map(one, _COMMANDS), strict=True))
    subprocess.run(["strip", "-o", "stripped.so", "many.so"], cwd=directory, check=True)
    subprocess.run(["ld", "-r", "-o", "merged.o", "debug.o", "relocatable.o"], cwd=directory, check=True)
    return samples | {name: directory / name for name in ("stripped.so", "merged.o")}


def section_header(data: bytes, name: str) -> int:
    """Offset of the section header of this name in a 64-bit ELF file."""
    start, count, names = (*struct.unpack_from("<Q", data, 0x28), *struct.unpack_from("<HH", data, 0x3C))
    table = struct.unpack_from("<Q", data, start + 64 * names + 24)[0]
    for at in range(start, start + 64 * count, 64):
        string = table + struct.unpack_from("<I", data, at)[0]
        if data[string:data.index(b"\0", string)] == name.encode():
            return at
    raise KeyError(name)
