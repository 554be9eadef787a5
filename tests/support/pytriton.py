"""Makes a small wheel that is laid out like nvidia-pytriton's, with real ELF headers and RPATHs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.support.elf_factory import make_elf
from tests.support.wheel_factory import make_wheel

_LIBS = "nvidia_pytriton.libs"
_SERVER = "pytriton/tritonserver"
DEEP = f"$ORIGIN/../../../../{_LIBS}"
SHALLOW = f"${{ORIGIN}}/../lib:$ORIGIN/../../../{_LIBS}"


def stub_of(python: str, machine: str = "aarch64") -> bytes:
    """A stub as the real ones are: linked to that libpython, libraries by a relative RPATH."""
    libpython = "libpython3-931631c3.13.so.1.0" if python == "3.13" else f"libpython{python}.so.1.0"
    return make_elf(machine, needed=["libcudart-a1.so.12", libpython, "libc.so.6"], rpath=DEEP)


def make_pytriton(directory: Path, *, machine: str = "aarch64", pythons: Iterable[str] = ("3.10", "3.11", "3.13"),
                  version: str = "0.7.0", files: Mapping[str, bytes | None] | None = None) -> Path:
    """Write the wheel; `files` adds members, or takes away those with None."""
    content: dict[str, bytes | None] = {
        f"{_SERVER}/bin/tritonserver": make_elf(
            machine, rpath=SHALLOW, needed=["libtritonserver-b2.so", "libcudart-a1.so.12"], interpreter="/lib/ld.so"),
        f"{_SERVER}/backends/python/libtriton_python.so": make_elf(
            machine, rpath=DEEP, needed=["libtritonserver-b2.so", "libarchive-c3.so.13"]),
        f"{_SERVER}/backends/python/triton_python_backend_utils.py": b"# utils\n",
        f"{_SERVER}/caches/local/libtritoncache_local.so": make_elf(machine, rpath=DEEP,
                                                                    needed=["libtritonserver-b2.so"]),
        f"{_LIBS}/libtritonserver-b2.so": make_elf(machine, soname="libtritonserver-b2.so", runpath="${ORIGIN}",
                                                   needed=["libcudart-a1.so.12"]),
        f"{_LIBS}/libcudart-a1.so.12": make_elf(machine, soname="libcudart-a1.so.12"),
        f"{_LIBS}/libarchive-c3.so.13": make_elf(machine, soname="libarchive-c3.so.13", needed=["libz-d4.so.1"]),
        f"{_LIBS}/libz-d4.so.1": make_elf(machine, soname="libz-d4.so.1"),
        f"{_LIBS}/libpython3-931631c3.13.so.1.0": make_elf(machine, soname="libpython3-931631c3.13.so.1.0"),
        "pytriton/__init__.py": b"raise SystemExit('package code ran')\n",
        **{f"{_SERVER}/python_backend_stubs/{python}/triton_python_backend_stub": stub_of(python, machine)
           for python in pythons},
        **(files or {}),
    }
    return make_wheel(directory, "nvidia-pytriton", version, tag=f"py3-none-manylinux_2_35_{machine}", purelib=True,
                      files={name: data for name, data in content.items() if data is not None},
                      dist_info={"LICENSE": b"Apache\n"}, entry_points={"pytriton": "pytriton.__main__:app"})
