"""The `links` stage: what a linker asks for in CUDA_HOME, and CUDA's wheels do not have.

The wheels have `nvidia/cu13/lib/libcudart.so.13`. Whoever compiles on the device (flashinfer, Inductor, tvm_ffi,
tilelang, nvcc itself) links `-lcudart -lcuda` with `-L$CUDA_HOME/lib64` or `lib64/stubs`, and ld takes only
`libcudart.so` (flashinfer#5064). So the layer gives the directory the shape that NVIDIA's own packages give it:

    lib64 -> lib
    lib/libcudart.so -> libcudart.so.13      and so on
    lib/stubs/libcuda.so                     soname libcuda.so.1

`lib64` is a link because some look for `libcudart.so.13` in it too, or name it as RPATH. Where the container runtime
puts the device's libcuda.so.1 is not known here, nor is it there when an image is tried without a device, so
`INPUT(libcuda.so.1)` would fail on some of them: a stub links everywhere, and the loader never takes it, for it is not
called by its soname. Its functions return CUDA_ERROR_STUB_LIBRARY.

Wheels that are named for a CUDA (`nvidia-cuda-runtime-cu12`) have no common directory, and get none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache import canonical
from cache.errors import InputError
from checks.stub_library import make
from stages.builders import BUILDERS
from stages.graph import DataInput, Stage
from stages.layers import platform
from stages.lockfile import Lock
from stages.target import Target

#: Functions of the driver, one a line.
DRIVER = "templates/libcuda.txt"
#: Wheels to libraries whose soname has the wheel's first number, as lib/lib<name>.so.<number>.
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "nvidia-cublas": ("cublas", "cublasLt"),
    "nvidia-cuda-cupti": ("cupti",),
    "nvidia-cuda-nvrtc": ("nvrtc",),
    "nvidia-cuda-runtime": ("cudart",),
    "nvidia-cufft": ("cufft", "cufftw"),
    "nvidia-curand": ("curand",),
    "nvidia-cusolver": ("cusolver", "cusolverMg"),
    "nvidia-cusparse": ("cusparse",),
    "nvidia-nvjitlink": ("nvJitLink",),
}
_STUB_LIBRARY = 34  # CUDA_ERROR_STUB_LIBRARY


def stage(target: Target, lock: Lock, root: Path) -> Stage | None:
    """None for a target without CUDA, or whose lock has no nvidia-cuda-runtime.

    Raises:
        InputError: the list of the driver's functions cannot be read, or has something else in it.
    """
    majors = {wheel.name: wheel.version.partition(".")[0] for wheel in lock.wheels}
    if target.data["device"]["cuda"] == "none" or "nvidia-cuda-runtime" not in majors:
        return None
    home = f"{lock.python['site']}/nvidia/cu{majors['nvidia-cuda-runtime']}"
    files: list[dict[str, Any]] = [{"path": f"{home}/lib64", "link": "lib"}]
    files += [{"path": f"{home}/lib/lib{name}.so", "link": f"lib{name}.so.{majors[wheel]}"}
              for wheel, names in LIBRARIES.items() if wheel in majors for name in names]
    files.append({"path": f"{home}/lib/stubs/libcuda.so", "copy": "libcuda", "mode": 0o644})
    stub = make(target.machine, "libcuda.so.1", functions(root), _STUB_LIBRARY)
    return Stage("links", "names of CUDA's libraries for linkers", BUILDERS["files-layer"], platform(target),
                 {"files": files, "values": {}}, {"libcuda": DataInput(stub, canonical.sha256(stub))})


def functions(root: Path) -> list[str]:
    """The names in the list of the driver's functions."""
    try:
        lines = (root / DRIVER).read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("a file of the repository that is an input cannot be read", where=DRIVER,
                         found=str(error), cure="restore it from version control") from error
    for number, line in enumerate(lines, start=1):
        if not re.fullmatch(r"#.*|cu[A-Z]\w*", line):
            raise InputError("the list of the driver's functions is malformed", where=f"{DRIVER}:{number}",
                             expected="a function's name, or a line that begins with #", found=line[:80],
                             cure="restore it from version control")
    return [line for line in lines if not line.startswith("#")]
