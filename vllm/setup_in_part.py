"""Runs setup.py of the working directory for a part of its extensions, on machines that cannot compile all of them.

EXTENSIONS: names of extensions without their packages; all others are left out.
OBJECTS: patterns of object files below the build directory: it is configured, these are compiled and copied to
/build/out/objects, and nothing is linked or installed.
"""

import fnmatch
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools

EXTENSIONS = set(os.environ.get("EXTENSIONS", "").split())
OBJECTS = os.environ.get("OBJECTS", "").split()
WHOLE = setuptools.setup


def setup(**given):
    """What setup.py calls instead of setuptools' own."""
    if EXTENSIONS:
        names = {extension.name.rpartition(".")[2] for extension in given["ext_modules"]}
        if not names >= EXTENSIONS:
            sys.exit(f"setup_in_part.py: no such extension\n  expected: {', '.join(sorted(names))}\n"
                     f"  found: {', '.join(sorted(EXTENSIONS - names))}")
        given["ext_modules"] = [extension for extension in given["ext_modules"]
                                if extension.name.rpartition(".")[2] in EXTENSIONS]
    given["cmdclass"] = {**given["cmdclass"], "build_ext": in_part(given["cmdclass"]["build_ext"])}
    return WHOLE(**given)


def in_part(whole):
    """The command `build_ext`, in part."""

    class InPart(whole):
        def build_extensions(self):
            if not OBJECTS:
                # Installed by its own command after all builds, and missed if it is not there.
                Path(self.build_lib, "vllm", "third_party", "triton_kernels").mkdir(parents=True)
                super().build_extensions()
                return
            os.makedirs(self.build_temp)
            self.configure(self.extensions[0])
            compile_objects(self.build_temp)
            sys.exit(0)

    return InPart


def compile_objects(directory):
    """Compile what the patterns name. `configure` alone: nothing is compiled."""
    known = subprocess.run(["ninja", "-t", "targets", "all"], cwd=directory, check=True, capture_output=True, text=True)
    objects = [line.partition(": ")[0] for line in known.stdout.splitlines() if line.partition(": ")[0].endswith(".o")]
    out = Path("/build/out/objects")
    out.mkdir(parents=True)
    (out / "all").write_text("".join(f"{name}\n" for name in objects))
    shutil.copy(Path(directory, "build.ninja"), out)
    wanted = [name for name in objects if any(fnmatch.fnmatchcase(name, pattern) for pattern in OBJECTS)]
    missing = [pattern for pattern in OBJECTS if not fnmatch.filter(objects, pattern) and pattern != "none"]
    if missing:
        sys.exit(f"setup_in_part.py: no object of this name\n  expected: one of {len(objects)}\n"
                 f"  found: {', '.join(missing)}")
    if wanted:
        subprocess.run(["ninja", f"-j{os.environ['STAGECRAFT_JOBS']}", *wanted], cwd=directory, check=True)
    for name in wanted:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(directory, name), out / name)


setuptools.setup = setup
sys.argv[0] = "setup.py"
sys.path.insert(0, os.getcwd())
runpy.run_path("setup.py", run_name="__main__")
