"""What a package's own CMake files say that its modules will hold, told without a compiler.

Runs in a root (Python 3.11, cmake, ninja; no torch, no nvcc): the real CMakeLists.txt are configured with programs that
do nothing in the place of the compilers, and stand-ins for torch and CUDA. CMake's file API then has every source of
every module with the flags that nvcc would get, so `-gencode` of each is known before anything is compiled. Scripts
that the package runs while it configures (vLLM's generators of Marlin and Machete kernels) run.

Reads `/inputs/csrc` (`src`, `sources/<name>`), `/inputs/files/project.json` if there is one, and the variables of a
recipe: `TORCH_CUDA_ARCH_LIST`, `CUDA_VERSION`, `TORCH_VERSION`, `CMAKE_ARGS`, those of the pins. Writes
`/build/out/expected.json` (docs/formats/expected.md). Ends with an error rather than with a guess.
"""

import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

FORMAT = "stagecraft.expected.v1"

BUILD = Path("/build")
INPUTS = Path("/inputs")
MOCK = BUILD / "mock"
#: The compiler of host code that CMake is told of: new enough for every package so far, and never run.
GXX = "13.3.0"
#: What nvcc makes of a source for which nothing is asked, by CUDA's major.
DEFAULT = {"11": "52", "12": "52", "13": "75"}

_ARCH = re.compile(r"(\d+)\.(\d)([af]?)(\+PTX)?")
_TARGET = re.compile(r"(?:sm|compute)_\d+[af]?")
_NO_TARGET = "no target of CMake makes it: an empty tree stands for the one that does"
_APART = "its device code is linked apart"
_LEFT_OUT = re.compile(r"\bnot (?:build|compil)|\bskipping build", re.IGNORECASE)

Json = Mapping[str, Any]


class ExpectedError(Exception):
    """What the module's contents are cannot be told."""


# -- what is asked for ------------------------------------------------------------------------------


def gencode(archs: str) -> list[str]:
    """nvcc's flags for a TORCH_CUDA_ARCH_LIST, as torch's select_compute_arch.cmake makes them of numbers.

    Raises:
        ExpectedError: a name ("Blackwell"), or no architecture at all: torch would look for a GPU.
    """
    flags = []
    for one in re.split(r"[;\s]+", archs.strip()):
        found = _ARCH.fullmatch(one)
        if found is None:
            raise ExpectedError(f"TORCH_CUDA_ARCH_LIST={archs!r}: expected numbers such as 11.0a or 8.0+PTX")
        number = "".join(found.group(1, 2, 3))
        flags.append(f"-gencode arch=compute_{number},code=sm_{number}")
        if found[4]:
            flags.append(f"-gencode arch=compute_{number},code=compute_{number}")
    return list(dict.fromkeys(flags))


def targets(options: Sequence[str], default: str) -> set[str]:
    """What nvcc compiles for with these options: `sm_110a`, `compute_80`.

    Raises:
        ExpectedError: an architecture that depends on the machine or on the toolkit (`native`, `all`).
    """
    found: set[str] = set()
    arch, codes = "", []
    values = iter(options)
    for option in values:
        name, sign, value = option.partition("=")
        if name in ("-gencode", "--generate-code"):
            text = value if sign else next(values, "")
            found.update(_codes(text.partition("code=")[2]) or _codes(text))
        elif name in ("-arch", "--gpu-architecture"):
            arch = value if sign else next(values, "")
        elif name in ("-code", "--gpu-code"):
            codes = _codes(value if sign else next(values, ""))
    if arch and not _TARGET.fullmatch(arch):
        raise ExpectedError(f"-arch={arch}: which architectures that are is not told by the sources")
    if codes:
        found.update(codes)
    elif arch.startswith("sm_"):
        found |= {arch, arch.replace("sm_", "compute_")}
    elif arch:
        found.add(arch)
    return found or {f"sm_{default}", f"compute_{default}"}


def _codes(text: str) -> list[str]:
    return _TARGET.findall(text)


# -- what CMake said --------------------------------------------------------------------------------


class Reply:
    """CMake's answer of its file API (codemodel, version 2) to one configuration."""

    def __init__(self, directory: Path) -> None:
        index = json.loads(max(directory.glob("index-*.json")).read_text())
        model = next(one for one in index["objects"] if one["kind"] == "codemodel")
        self._directory = directory
        configuration = self._read(model["jsonFile"])["configurations"][0]
        self.targets = {one["id"]: self._read(one["jsonFile"]) for one in configuration["targets"]}

    def _read(self, name: str) -> Any:
        return json.loads((self._directory / name).read_text())

    def modules(self) -> dict[str, Json]:
        """Where it is installed, without suffix, to the target: every module, and every library that is installed."""
        found: dict[str, Json] = {}
        for target in self.targets.values():
            places = [one["path"] for one in target.get("install", {}).get("destinations", ())]
            if target["type"] == "MODULE_LIBRARY" or (target["type"] == "SHARED_LIBRARY" and places):
                stem = target["nameOnDisk"].partition(".")[0]
                found[f"{places[0].strip('/')}/{stem}" if places else stem] = target
        return found


def options(group: Json) -> list[str]:
    """The command line of a compile group, split."""
    return [word for one in group.get("compileCommandFragments", ()) for word in shlex.split(one["fragment"])]


def device_sources(target: Json, default: str) -> dict[str, list[str]]:
    """Source to what it is compiled for; a source counts once, however often it is listed."""
    found: dict[str, set[str]] = {}
    for number, group in enumerate(target.get("compileGroups", ())):
        if group["language"] != "CUDA":
            continue
        line = options(group)
        if {"-dc", "-dlto", "-rdc=true", "--relocatable-device-code=true"} & set(line):
            raise ExpectedError(_APART)
        made = targets(line, default)
        for source in target["sources"]:
            if source.get("compileGroupIndex") == number:
                found.setdefault(source["path"], set()).update(made)
    return {path: sorted(found[path]) for path in sorted(found)}


def contents(reply: Reply, default: str, missing: Iterable[str], apart: Collection[str],
             asked: Collection[str] | None) -> dict[str, Any]:
    """`modules`, `host`, `unknown` and `unasked` of the format.

    Args:
        missing: paths of sources that are listed and not there.
        apart: names of targets whose device code is linked apart.
        asked: names of targets that the package has built; None: whatever there is.
    """
    names = {target["name"] for target in reply.targets.values()}
    unknown = dict.fromkeys(sorted(set(asked or ()) - names), _NO_TARGET)
    modules: dict[str, Any] = {}
    host, unasked, gone = [], [], set(missing)
    for name, target in sorted(reply.modules().items()):
        if asked is not None and target["name"] not in asked:
            unasked.append(name)
            continue
        try:
            sources = device_sources(target, default)
            if sources and target["name"] in apart:
                raise ExpectedError(_APART)
            _no_parts(reply, target)
        except ExpectedError as error:
            unknown[name] = str(error)
            continue
        if not sources:
            host.append(name)
            continue
        modules[name] = {"units": len(sources), "missing": len(gone & _absolute(sources)),
                         "sass": _counted(sources, "sm_"), "ptx": _counted(sources, "compute_"),
                         "sources": {_shown(path): " ".join(made) for path, made in sources.items()}}
    return {"modules": modules, "host": host, "unknown": unknown, "unasked": unasked}


def _no_parts(reply: Reply, target: Json) -> None:
    """Of a static library with device code only what is referred to gets into a module."""
    for one in target.get("dependencies", ()):
        part = reply.targets[one["id"]]
        if part["type"] in ("STATIC_LIBRARY", "OBJECT_LIBRARY") and any(
                group["language"] == "CUDA" for group in part.get("compileGroups", ())):
            raise ExpectedError(f"the library {part['name']} with device code is linked into it")


def _counted(sources: Mapping[str, Sequence[str]], prefix: str) -> dict[str, int]:
    found = Counter(made.removeprefix(prefix) for of_one in sources.values() for made in of_one
                    if made.startswith(prefix))
    return dict(sorted(found.items(), key=lambda item: (int(item[0].rstrip("af")), item[0])))


def _absolute(paths: Iterable[str]) -> set[str]:
    return {str(BUILD / "src" / path) for path in paths}


def _shown(path: str) -> str:
    """A path that is the same wherever the trees lie."""
    for place in (BUILD, INPUTS / "csrc"):
        path = path.removeprefix(f"{place}/")
    return path


# -- the stand-ins ----------------------------------------------------------------------------------


def lay_out(versions: Mapping[str, str], empty: Iterable[str]) -> None:
    """Programs, headers and a torch that do nothing, below /build/mock."""
    release = f'#!/bin/sh\necho "release {versions["cuda"]}, V{versions["nvcc"]}"\n'
    _write(MOCK / "cuda" / "bin" / "nvcc", release).chmod(0o755)
    for name in ("g++", "gcc", "nvcc", "ar", "ranlib", "ld", "nm", "objcopy", "objdump", "strip"):
        _write(MOCK / "bin" / name, "#!/bin/sh\nexit 0\n").chmod(0o755)
    files = Path(__file__).resolve().parent
    for name in ("TorchConfig", "FindCUDAToolkit"):
        _write(MOCK / "cmake" / f"{name}.cmake", (files / f"{name}.cmake").read_text())
    major, minor, micro = sys.version_info[:3]
    _write(MOCK / "python" / "patchlevel.h",
           f"#define PY_MAJOR_VERSION {major}\n#define PY_MINOR_VERSION {minor}\n#define PY_MICRO_VERSION {micro}\n"
           f'#define PY_VERSION "{major}.{minor}.{micro}"\n')
    for name in ("python/Python.h", "python/pyconfig.h", "cuda/include/cuda.h", "cuda/lib64/none", "torch/include/none",
                 "torch/lib/libtorch_python.so", *(one for one in empty if not one.startswith("sources/"))):
        _write(MOCK / name, "")
    torch = MOCK / "site" / "torch"
    _write(torch / "__init__.py", f"__version__ = {versions['torch']!r}\nfrom torch import utils, version\n")
    _write(torch / "version.py",
           f"__version__ = {versions['torch']!r}\ncuda = {versions['cuda']!r}\nhip = xpu = None\n")
    _write(torch / "utils" / "__init__.py", f"cmake_prefix_path = {str(MOCK / 'cmake')!r}\n")
    _write(torch / "utils" / "cpp_extension.py",
           f"CUDA_HOME = {str(MOCK / 'cuda')!r}\nROCM_HOME = None\nCOMMON_NVCC_FLAGS = []\n")


def compilers(directory: Path, machine: str, nvcc: str, default: str) -> None:
    """What CMake writes down of compilers that it has tried: expected.cmake puts it where CMake looks first."""
    programs = {name: str(MOCK / "bin" / name) for name in ("ar", "ranlib", "nm", "strip", "objcopy", "objdump")}
    common = {f"CMAKE_{name.upper()}": path for name, path in programs.items()}
    common |= {"CMAKE_LINKER": str(MOCK / "bin" / "ld"), "CMAKE_SIZEOF_VOID_P": "8", "CMAKE_EXECUTABLE_FORMAT": "ELF"}
    cuda = {
        "ARCHITECTURES_DEFAULT": default, "COMPILER_TOOLKIT_VERSION": nvcc, "COMPILER_TOOLKIT_ROOT": str(MOCK / "cuda"),
        "COMPILER_LIBRARY_ROOT": str(MOCK / "cuda"), "HOST_LINK_LAUNCHER": str(MOCK / "bin" / "g++"),
        "TOOLKIT_INCLUDE_DIRECTORIES": str(MOCK / "cuda" / "include"), "DEVICE_LINKER": str(MOCK / "bin" / "ld"),
        "FATBINARY": str(MOCK / "bin" / "ld")}
    of_cxx = "C;M;c++;cc;cpp;cxx;m;mm;mpp;CPP;ixx;cppm"
    for language, identity, version, program, suffixes, variable, preference, more in (
            ("C", "GNU", GXX, "gcc", "c;m", "CC", "10", {}), ("CXX", "GNU", GXX, "g++", of_cxx, "CXX", "30", {}),
            ("CUDA", "NVIDIA", nvcc, "nvcc", "cu", "CUDACXX", "15", cuda)):
        known = {
            "COMPILER": str(MOCK / "bin" / program), "COMPILER_ID": identity, "COMPILER_VERSION": version,
            "COMPILER_LOADED": "1", "COMPILER_WORKS": "TRUE", "ABI_COMPILED": "TRUE", "COMPILER_ENV_VAR": variable,
            "SOURCE_FILE_EXTENSIONS": suffixes, "LINKER_PREFERENCE": preference, "STANDARD_COMPUTED_DEFAULT": "17",
            "EXTENSIONS_COMPUTED_DEFAULT": "ON", "SIZEOF_DATA_PTR": "8",
            "LIBRARY_ARCHITECTURE": f"{machine}-linux-gnu", **more}
        standards = ("99", "11", "17", "23") if language == "C" else ("98", "11", "14", "17", "20", "23", "26")
        features = {one: f"{language.lower()}_std_{one}" for one in standards}
        known["COMPILE_FEATURES"] = ";".join(features.values())
        known |= {f"{one}_COMPILE_FEATURES": feature for one, feature in features.items()}
        names = {f"CMAKE_{language}_{name}" if not name[0].isdigit() else f"CMAKE_{language}{name}": value
                 for name, value in known.items()}
        text = "".join(f'set({name} "{value}")\n' for name, value in {**names, **common}.items())
        if language == "CUDA":
            text += f"if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)\n  set(CMAKE_CUDA_ARCHITECTURES {default})\nendif()\n"
        _write(directory / f"CMake{language}Compiler.cmake", text)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def trees(sources: Path, empty: Iterable[str], headers: Iterable[str]) -> dict[str, str]:
    """Pinned trees that CMake gets from another place: an empty one with the files that are asked for, in a directory
    that can be written; one of `headers` without its CMakeLists.txt."""
    found = {}
    for tree in sorted(sources.iterdir()) if sources.is_dir() else ():
        there = sorted(tree.iterdir()) if tree.is_dir() else []
        if there and tree.name not in headers:
            continue
        place = MOCK / "sources" / tree.name
        place.mkdir(parents=True)
        found[str(tree)] = str(place)
        for one in there:
            if one.name != "CMakeLists.txt":
                (place / one.name).symlink_to(one)
        for name in empty:
            if name.startswith(f"sources/{tree.name}/") and not there:
                _write(MOCK / name, "")
    return found


# -- the run ----------------------------------------------------------------------------------------


def asked_for(project: Json, environment: Mapping[str, str]) -> list[str] | None:
    """Names of the targets that the package's setup.py has CMake build; None if the project says nothing of one.

    Raises:
        ExpectedError: setup.py failed.
    """
    if not project["setup"]:
        return None
    names = MOCK / "asked.json"
    done = subprocess.run([sys.executable, __file__, "--setup", str(names)], cwd=BUILD / "src", env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout, flush=True)
    if done.returncode:
        raise ExpectedError(f"setup.py ended with {done.returncode}")
    found: list[str] = json.loads(names.read_text())
    return found


def note_setup(result: Path) -> None:
    """Run setup.py of the working directory, and write the names of its extensions instead of making them."""
    setuptools: Any = importlib.import_module("setuptools")

    def setup(**given: Any) -> None:
        result.write_text(json.dumps([one.name.rpartition(".")[2] for one in given["ext_modules"]]))

    setuptools.setup = setup
    sys.argv[:] = ["setup.py", "build_ext"]
    sys.path.insert(0, os.getcwd())
    runpy.run_path("setup.py", run_name="__main__")


def prepared(project: Json, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of what runs: the stand-ins first."""
    version = environment.get("VERSION", "0")
    found = {**environment, **{name: text.replace("{version}", version)
                               for name, text in project["environment"].items()}}
    found["PYTHONPATH"] = f"{MOCK / 'site'}:/cross/python:{found.get('PYTHONPATH', '')}".rstrip(":")
    # Under an emulator the heap cannot always grow in place, and then CMake takes a directory that it lists for
    # unreadable (kwsys' Directory.cxx asks errno after it has allocated): a glob finds nothing, and nobody is told.
    found.setdefault("MALLOC_TOP_PAD_", str(512 << 20))
    found["PATH"] = ":".join((str(MOCK / "bin"), "/cross/python/cmake/data/bin", "/cross/python/bin", found["PATH"]))
    return found


def configure(project: Json, environment: dict[str, str], versions: Mapping[str, str]) -> list[str]:
    """Configure /build/src into /build/cmake; the lines that CMake wrote.

    Raises:
        ExpectedError: it failed, with its last lines.
    """
    moved = trees(INPUTS / "csrc" / "sources", project["empty"], project["headers"])

    def there(text: str) -> str:
        for tree, place in moved.items():
            text = re.sub(re.escape(tree) + r"(?=/|$)", place, text)
        return text

    environment = {name: there(text) for name, text in environment.items()}
    given = [there(one) for one in environment.pop("CMAKE_ARGS", "").split()]
    given += [one.replace("{python}", sys.executable).replace("{sources}", str(MOCK / "sources"))
              for one in project["arguments"]]
    cmake = shutil.which("cmake", path=environment["PATH"])
    if cmake is None:
        raise ExpectedError("no cmake in the root: expected it in /cross/python")
    build = BUILD / "cmake"
    compilers(MOCK / "compilers", os.uname().machine, versions["nvcc"], versions["default"])
    _write(build / ".cmake" / "api" / "v1" / "query" / "codemodel-v2", "")
    files = Path(__file__).resolve().parent
    own = {
        "CMAKE_BUILD_TYPE": "Release", "CMAKE_INSTALL_PREFIX": str(BUILD / "none"),
        "CMAKE_PROJECT_TOP_LEVEL_INCLUDES": str(files / "expected.cmake"), "CMAKE_MODULE_PATH": str(MOCK / "cmake"),
        "Torch_DIR": str(MOCK / "cmake"), "FETCHCONTENT_FULLY_DISCONNECTED": "ON",
        "FETCHCONTENT_BASE_DIR": str(BUILD / "fetched"),
        "STAGECRAFT_MOCK": str(MOCK), "STAGECRAFT_CUDA": versions["cuda"], "STAGECRAFT_NVCC": versions["nvcc"],
        "STAGECRAFT_TORCH": versions["torch"].partition("+")[0], "STAGECRAFT_GENCODE": versions["gencode"],
    }
    for prefix in ("Python", "Python3"):
        own |= {f"{prefix}_EXECUTABLE": sys.executable, f"{prefix}_INCLUDE_DIR": str(MOCK / "python")}
    command = [cmake, "-G", "Ninja", "-S", str(BUILD / "src"), "-B", str(build),
               *(f"-D{name}={value}" for name, value in own.items()), *given]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    print(done.stdout, flush=True)
    if done.returncode:
        raise ExpectedError(f"CMake ended with {done.returncode}")
    return done.stdout.splitlines()


def _lines(name: str) -> list[str]:
    """What expected.cmake wrote down."""
    path = BUILD / "cmake" / f"stagecraft-{name}"
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    """See the module text."""
    environment = dict(os.environ)
    described = INPUTS / "files" / "project.json"
    project = {"arguments": [], "empty": {}, "headers": {}, "environment": {}, "setup": False,
               **(json.loads(described.read_text()) if described.exists() else {})}
    missing = [name for name in ("CUDA_VERSION", "TORCH_CUDA_ARCH_LIST") if not environment.get(name)]
    if missing:
        raise ExpectedError(f"{missing[0]} is not set: there is no device to tell it for")
    cuda, archs = environment["CUDA_VERSION"], environment["TORCH_CUDA_ARCH_LIST"]
    if cuda.partition(".")[0] not in DEFAULT:
        raise ExpectedError(f"CUDA_VERSION={cuda}: what nvcc compiles for by default is known of {', '.join(DEFAULT)}")
    nvcc = cuda if cuda.count(".") > 1 else f"{cuda}.0"
    versions = {"cuda": ".".join(cuda.split(".")[:2]), "nvcc": nvcc, "default": DEFAULT[cuda.partition(".")[0]],
                "torch": environment.get("TORCH_VERSION", "0"), "gencode": " ".join(gencode(archs))}
    shutil.copytree(INPUTS / "csrc" / "src", BUILD / "src", symlinks=True)
    for path in (BUILD / "src").rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o111 else 0o644)
    lay_out(versions, project["empty"])
    environment = prepared(project, environment)
    asked = asked_for(project, environment)
    lines = configure(project, environment, versions)
    reply = Reply(BUILD / "cmake" / ".cmake" / "api" / "v1" / "reply")
    found = contents(reply, versions["default"], _lines("missing"), _lines("apart"), asked)
    left_out = sorted({line.removeprefix("-- ").strip() for line in lines if _LEFT_OUT.search(line)})
    result = {"format": FORMAT, "arch_list": archs, "cuda": versions["cuda"], **found, "left_out": left_out}
    _write(BUILD / "out" / "expected.json", json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    try:
        note_setup(Path(sys.argv[2])) if sys.argv[1:2] == ["--setup"] else main()
    except ExpectedError as error:
        sys.exit(f"the contents cannot be told: {error}")
