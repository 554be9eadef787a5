"""Real shared libraries and programs, compiled from a few lines of C by the machine's gcc, without the C library."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

MACHINE = platform.machine()
PLATFORM = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}[MACHINE]


class Compiler:
    """Compiles into one directory; libraries are named for the linker by `against`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def library(self, name: str, source: str = "", *, soname: str = "", against: Iterable[str] = (),
                versions: str = "", flags: Iterable[str] = ()) -> bytes:
        """The bytes of the shared library `name`.

        Args:
            soname: default: `name`.
            against: names of libraries made before, which become NEEDED, used or not.
            versions: a version script of the linker.
            flags: for gcc, such as `-Wl,-rpath,$ORIGIN`.
        """
        out = self.directory / name
        command = ["gcc", "-shared", "-fPIC", "-nostdlib", "-O1", "-x", "c", "-", "-o", str(out),
                   f"-Wl,-soname,{soname or name}", *flags]
        if versions:
            script = self.directory / f"{name}.map"
            script.write_text(versions)
            command.append(f"-Wl,--version-script={script}")
        return self._run(command, source, against)

    def program(self, name: str, source: str = "", *, against: Iterable[str] = (),
                flags: Iterable[str] = ()) -> bytes:
        """The bytes of a dynamically linked program that exports its symbols."""
        command = ["gcc", "-nostdlib", "-fPIE", "-pie", "-rdynamic", "-O1", "-x", "c", "-",
                   "-o", str(self.directory / name), *flags]
        return self._run(command, source or "void _start(void) {}", against)

    def _run(self, command: list[str], source: str, against: Iterable[str]) -> bytes:
        libraries = [str(self.directory / name) for name in against]
        done = subprocess.run([*command, "-x", "none", "-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined", *libraries],
                              input=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return Path(command[command.index("-o") + 1]).read_bytes()
