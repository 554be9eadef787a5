"""Extension modules with device code, as vLLM's are: by nvcc 13.0, each source file for architectures of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.cuda import Toolkit

#: The device code of each source is one kernel, of this name.
KERNELS = ("first", "second")

_SOURCE = """
extern "C" __global__ void {name}(float *x) {{ x[threadIdx.x] += {number}; }}
void go_{name}(float *x) {{ {name}<<<1, 32>>>(x); }}
"""
_MODULE = 'extern "C" int PyInit_{name}() {{ return 0; }}\n'


def extension(toolkit: Toolkit, directory: Path, name: str, *archs: Sequence[str]) -> bytes:
    """A library with one kernel for each of `archs`, in the order of KERNELS.

    Args:
        archs: what to compile a kernel for, as `Entry.target` says it: `sm_110a`, `compute_80`.
    """
    place = directory / name
    place.mkdir(parents=True)
    (place / "module.cpp").write_text(_MODULE.format(name=name))
    objects = []
    for number, (kernel, targets) in enumerate(zip(KERNELS, archs, strict=False)):
        (place / f"{kernel}.cu").write_text(_SOURCE.format(name=kernel, number=number))
        codes = [option for target in targets
                 for option in ("-gencode", f"arch=compute_{target.partition('_')[2]},code={target}")]
        toolkit.nvcc("-c", "-Xcompiler", "-fPIC", *codes, f"{kernel}.cu", "-o", f"{kernel}.o", cwd=place)
        objects.append(f"{kernel}.o")
    toolkit.nvcc("-shared", "-Xcompiler", "-fPIC", "-cudart", "none", "module.cpp", *objects, "-o", "made.so",
                 cwd=place)
    return (place / "made.so").read_bytes()


def without_sections(directory: Path, data: bytes, *sections: str) -> bytes:
    """The same library with sections cut out, as a careless strip does."""
    directory.mkdir(parents=True, exist_ok=True)
    source, out = directory / "in.so", directory / "out.so"
    source.write_bytes(data)
    subprocess.run(["objcopy", *(f"--remove-section={section}" for section in sections), source, out], check=True)
    return out.read_bytes()


def extensions(toolkit: Toolkit, directory: Path, wanted: dict[str, Sequence[Sequence[str]]]) -> dict[str, bytes]:
    """Several, two compilers at a time."""
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda name: extension(toolkit, directory, name, *wanted[name]), wanted)
        return dict(zip(wanted, made, strict=True))
