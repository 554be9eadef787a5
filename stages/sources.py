"""The stages of a package from source: source, tools, compile, wheel (docs/vllm-from-source.md).

The layer that takes the wheel is as for one of an index (`stages.layers`). What a compile reads is a stage output of
its own, so that a change of Python files alone compiles nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checks.facts import SERVER, SERVER_PARTS, wheel_tag
from stages.builders import BUILDERS
from stages.graph import FileInput, Input, Stage, StageInput
from stages.layers import platform, scheme
from stages.locked_source import SourcePackage
from stages.lockfile import Lock, LockedFile
from stages.recipe import Recipe
from stages.target import Target
from stages.triton import source as file_of

#: Where the tools lie in the root (docs/vllm-from-source.md).
TOOLKIT, PYTHON = "cross/toolkit", "cross/python"
#: What tells a package's device code without compiling it, and its files beside that of the package.
EXPECTED = "vllm/expected"
EXPECTED_FILES = ("expected.py", "expected.cmake", "TorchConfig.cmake", "FindCUDAToolkit.cmake")
#: Layers of the image that a compile reads, lowest first.
READ = ("base", "cuda", "torch")

_MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}
_BINUTILS = ("ar", "as", "ld", "nm", "objcopy", "objdump", "ranlib", "readelf", "strip")
_COMPILER = re.compile(r"g\+\+-(\d+)(-[\w-]+)?")
_SKIPPED = ["usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "usr/share/info/*", "usr/share/lintian/*"]
#: The date of files whose real one says nothing: the first that a zip file can hold.
_EPOCH = "315532800"


def stages(target: Target, lock: Lock, root: Path, layers: Sequence[Stage]) -> list[Stage]:
    """The stages of all packages from source, over those layers of the image that their compiles read."""
    below = [stage for stage in layers if stage.name in READ]
    return [stage for package in lock.sources for stage in _Package(target, lock, root, package, below).stages()]


class _Package:
    """One package."""

    def __init__(self, target: Target, lock: Lock, root: Path, package: SourcePackage,
                 below: Sequence[Stage]) -> None:
        self._target, self._lock, self._root, self._package, self._below = target, lock, root, package, below
        self._recipe: Recipe = target.recipes[package.name]
        self._described: Mapping[str, Any] = target.data["sources"]["packages"][package.name]
        self._execution: str = target.data["sources"]["execution"].partition("/")[2]

    def stages(self) -> list[Stage]:
        if "copy" in self._recipe.data:
            return [self._source(), self._copied()]
        tools = [self._compiler(), *self._development(),
                 *self._wheels("toolkit", "CUDA's toolkit for the machine that compiles"),
                 *self._wheels("requires", "what the build requires")]
        if "into" in self._recipe.data:
            below = [stage for stage in self._below if stage.name == "base"]
            return [self._source(), *tools, self._part([*below, *tools])]
        expected = [self._expected()] if "expected" in self._recipe.data else []
        return [self._source(), *tools, *expected, self._extensions([*self._below, *tools]), self._wheel()]

    def _name(self, part: str) -> str:
        return f"{self._package.name}-{part}"

    def _source(self) -> Stage:
        package, recipe = self._package, self._recipe.data
        patches = [*self._recipe.patches(package.version), *self._for_vllm(), *self._described["patches"]]
        inputs: dict[str, Input] = {"source": _own(package)}
        inputs |= {f"tree/{tree.name}": FileInput("git", _tree_file(tree.name, tree.revision, tree.size, tree.tree,
                                                                  tree.repository)) for tree in package.trees}
        inputs |= {f"patch/{number:02}-{Path(patch).name}": file_of(self._root, patch)
                   for number, patch in enumerate(patches)}
        return Stage(
            self._name("source"), f"source of {package.name}, patched", BUILDERS["source-tree"], platform(self._target),
            {"strip": 1 if package.source["kind"] == "sdist" else 0, "csrc": recipe["csrc"],
             "stubs": sorted(package.stubs)}, inputs)

    def _for_vllm(self) -> list[str]:
        """What makes NVIDIA's vLLM backend fit the target's vLLM; what does not fit, the check triton-pair says."""
        if self._package.name != "vllm-backend":
            return []
        from checks.triton_releases import PATCHES, judged, row_of

        wanted = judged(row_of(self._package.version) or {}, self._target.data["vllm"]["version"])
        return [f"{PATCHES}/{name}.patch" for name in wanted["patches"] if name not in wanted["lacking"]]

    def _copied(self) -> Stage:
        """Files of the source, as a layer: nothing is compiled."""
        recipe = self._recipe.data
        name = self._package.name
        return Stage(
            SERVER_PARTS[name], f"{name} {self._package.version}", BUILDERS["server-tree"], platform(self._target),
            {"diff_ids": [], "at": f"src/{recipe['copy']}", "anchor": "", "root": recipe["into"], "keep": ["*"],
             "drop": [], "required": [], "packages": [self._listed()]},
            {"archive/00": StageInput(self._name("source"), "csrc")})

    def _compiler(self) -> Stage:
        machine, execution = self._target.machine, _MACHINES[self._execution]
        triple = f"{machine}-linux-gnu"
        native = self._execution == self._target.architecture
        there = {deb.name for deb in self._lock.debs} if native else set()
        debs = [deb for deb in self._package.tools.debs if deb.name not in there]
        names = [deb.name for deb in self._package.tools.debs]
        # Beside the target's own where it has some already, and all of them see each other: a libstdc++.so below
        # /cross would lead to nothing there, and ld would silently take the static library.
        in_place = ["*"] if native else [f"{place}/*" for place in _loader_places(execution)]
        return Stage(
            self._name("compiler"), f"compilers for {machine} on {execution}", BUILDERS["tools-layer"],
            {"os": "linux", "architecture": self._execution},
            {"prefix": "cross", "architecture": self._execution, "skip": _SKIPPED, "in_place": in_place,
             "links": _links(names, triple, "../../usr/bin" if native else "../usr/bin")},
            {f"debs/{deb.filename}": FileInput("deb", deb) for deb in debs})

    def _development(self) -> list[Stage]:
        """Headers and libraries of the target's machine, where they always lie; what the image has it has already."""
        there = {deb.name for deb in self._lock.debs}
        debs = [deb for deb in self._package.tools.development if deb.name not in there]
        if not debs:
            return []
        return [Stage(
            self._name("development"), f"headers and libraries for {self._target.machine}", BUILDERS["tools-layer"],
            platform(self._target), {"prefix": "cross", "architecture": self._target.architecture, "skip": _SKIPPED,
                                     "in_place": ["*"], "links": {}},
            {f"debs/{deb.filename}": FileInput("deb", deb) for deb in debs})]

    def _wheels(self, part: str, title: str) -> list[Stage]:
        """Wheels as a layer below /cross; none if there are none."""
        wheels: tuple[LockedFile, ...] = getattr(self._package.tools, part)
        if not wheels:
            return []
        place, architecture = (TOOLKIT, self._execution) if part == "toolkit" else (PYTHON, self._target.architecture)
        return [Stage(
            self._name(part), title, BUILDERS["wheels-layer"], {"os": "linux", "architecture": architecture},
            {**scheme(self._lock), "purelib": place, "platlib": place, "scripts": f"{place}/bin", "data": place,
             "headers": f"{place}/include", "collisions": [], "records": []},
            {f"wheels/{wheel.filename}": FileInput("wheel", wheel) for wheel in wheels})]

    def _expected(self) -> Stage:
        """What the package's CMake files ask for, told without a compiler: neither CUDA nor torch is in the root."""
        project = self._recipe.data["expected"]
        files = {name: f"{EXPECTED}/{name}" for name in EXPECTED_FILES} | {"project.json": project}
        layers = [*(stage for stage in self._below if stage.name == "base"), *self._wheels("requires", "")]
        return self._run("expected", f"device code that {self._package.name} should hold", layers, files,
                         [self._lock.python["executable"], "/inputs/files/expected.py"], {})

    def _extensions(self, layers: Sequence[Stage]) -> Stage:
        recipe = self._recipe.data
        arch_list = self._target.data["device"]["arch_list"]
        files = {Path(path).name: path for path in (recipe["script"], *recipe["files"])}
        return self._run("extensions", f"{self._package.name} compiled for {arch_list}", layers, files,
                         ["bash", f"/inputs/files/{Path(recipe['script']).name}"],
                         {"refuse": self._recipe.refuse(arch_list)})

    def _part(self, layers: Sequence[Stage]) -> Stage:
        """What is no Python package: the layer itself, with what lists it."""
        package, recipe = self._package, self._recipe.data
        files = {Path(path).name: path for path in (recipe["script"], *recipe["files"])}
        return self._run("", f"{package.name} {package.version} compiled", layers, files,
                         ["bash", f"/inputs/files/{Path(recipe['script']).name}"],
                         {"refuse": self._recipe.refuse("none"), "into": recipe["into"], "packages": [self._listed()]})

    def _listed(self) -> dict[str, str]:
        """A piece of the server tree in a list of packages."""
        package = self._package
        revision, repository = str(package.source["revision"]), str(package.source["repository"]).removesuffix(".git")
        named = {"name": f"triton-{package.name}", "version": package.version}
        if package.name == "triton-server":
            named = {"name": SERVER, **_triton(package.version)}
        return {"type": "generic", **named, "architecture": self._target.architecture,
                "file": f"{package.name}-{revision}.tar",
                "digest": package.source["tree"], "licence": "BSD-3-Clause",
                "purl": f"pkg:github/{'/'.join(repository.split('/')[-2:])}@{revision}"}

    def _run(self, part: str, title: str, layers: Sequence[Stage], files: Mapping[str, str], command: list[str],
             more: Mapping[str, Any]) -> Stage:
        """A script over layers and `csrc`; `files` are those of the repository that it finds, by name."""
        emulators = () if self._execution == self._target.architecture else self._lock.emulator
        inputs: dict[str, Input] = {f"root/{number:02}-{stage.name}": StageInput(stage.name, "layer")
                                    for number, stage in enumerate(layers)}
        inputs["tree/csrc"] = StageInput(self._name("source"), "csrc")
        inputs |= {f"file/{name}": file_of(self._root, path) for name, path in files.items()}
        inputs |= {f"file/{file.filename}": FileInput("url", file) for file in self._package.archives}
        inputs |= {f"emulator/{deb.filename}": FileInput("deb", deb) for deb in emulators}
        return Stage(
            self._name(part) if part else SERVER_PARTS[self._package.name], title,
            BUILDERS["run-script" if part else "run-part"], platform(self._target),
            {"machine": self._target.machine, "execution": _MACHINES[self._execution], "command": command,
             "environment": self._environment(), "collect": "out", "into": "", **more,
             "emulators": [{"name": deb.name, "version": deb.version, "architecture": deb.architecture,
                            "sha256": deb.sha256} for deb in emulators]},
            inputs, kind="run")

    def _environment(self) -> dict[str, str]:
        """What the script is told; see docs/vllm-from-source.md."""
        package, device, recipe = self._package, self._target.data["device"], self._recipe.data
        variables = {tree.name: tree.variable for tree in package.trees} | dict(package.stubs)
        places = {name: f"/inputs/csrc/sources/{name}" for name in variables}
        found = {"SITE": self._lock.python["site"], "PYTHON": self._lock.python["executable"], "NAME": package.name,
                 "VERSION": package.version, "TORCH_CUDA_ARCH_LIST": device["arch_list"],
                 "CUDA_VERSION": device["cuda"], "LC_ALL": "C", "SOURCE_DATE_EPOCH": _EPOCH,
                 "TORCH_VERSION": str(self._target.data.get("torch", {}).get("version", ""))}
        if "into" in recipe:  # nothing of torch, and of CUDA only if its toolkit is there: devices share the layer
            found |= dict.fromkeys(["SITE", "TORCH_CUDA_ARCH_LIST", "TORCH_VERSION"], "")
            found["CUDA_VERSION"] = device["cuda"] if recipe["tools"]["toolkit"] else ""
        cloned = [row for row in self._recipe.trees(package.version) if row["clone"]]
        if cloned:
            found["CLONES"] = "\n".join(f"{row['name']} {row['repository']} {row['tag']}" for row in cloned)
        if package.name == "triton-server":
            found["TRITON_VERSION"] = _triton(package.version)["version"]
        found["CMAKE_ARGS"] = " ".join(["-DFETCHCONTENT_FULLY_DISCONNECTED=ON", *(
            f"-DFETCHCONTENT_SOURCE_DIR_{name.upper()}={place}" for name, place in sorted(places.items()))])
        for name, variable in sorted(variables.items()):
            if variable and variable not in recipe["pins"]["keep_back"]:
                below = recipe["pins"]["below"].get(name)
                found[variable] = f"{places[name]}/{below}" if below else places[name]
        return {**{name: text for name, text in found.items() if text not in ("", "none")}, **self._emulated(),
                **recipe["environment"]}

    def _emulated(self) -> dict[str, str]:
        """CMake takes a directory for unreadable if its heap cannot grow in place while it lists it (kwsys, Load: errno
        of malloc for that of readdir), which is common under the emulator; so the heap grows by much at once.
        """
        return {} if self._execution == self._target.architecture else {"MALLOC_TOP_PAD_": str(512 << 20)}

    def _wheel(self) -> Stage:
        package, recipe = self._package, self._recipe.data
        source, extensions = self._name("source"), self._name("extensions")
        torch = self._target.data.get("torch", {}).get("version")
        return Stage(
            self._name("wheel"), f"{package.name} {package.version} as a wheel", BUILDERS["source-wheel"],
            platform(self._target),
            {"name": package.name, "version": package.version,
             "tag": wheel_tag(self._lock.python["version"], self._target.machine),
             "python": recipe["python"], "without": recipe["without"], "replaces": recipe["replaces"],
             "pins": {"torch": torch} if torch else {}, "requires": list(package.requirements)},
            {"python": StageInput(source, "python"), "csrc": StageInput(source, "csrc"),
             "built": StageInput(extensions, "layer")})


def _triton(container: str) -> dict[str, str]:
    """A release as packages have it: `version` of Triton, and the container that it is in."""
    from checks.triton_releases import row_of

    return {"version": (row_of(container) or {}).get("triton", container), "container": container}


def _own(package: SourcePackage) -> FileInput:
    source = package.source
    if source["kind"] == "git":
        return FileInput("git", _tree_file(package.name, source["revision"], source["size"], source["tree"],
                                           source["repository"]))
    return FileInput("sdist", LockedFile(package.name, package.version, source["file"], source["size"],
                                         source["sha256"], source["index"]))


def _tree_file(name: str, revision: str, size: int, tree: str, repository: str) -> LockedFile:
    """A Git tree as a file: the layer of its files, known by its digest."""
    return LockedFile(name, revision[:12], f"{name}-{revision}.tar", size, tree.partition(":")[2], repository)


def _links(packages: Sequence[str], triple: str, place: str) -> dict[str, str]:
    """Programs by the names under which builds look for them, and by those under which compilers look for theirs.

    Args:
        place: where they lie, from the directory of the links.
    """
    version = next((found[1] for name in packages if (found := _COMPILER.fullmatch(name))), "")
    programs = {name: f"{triple}-{name}" for name in _BINUTILS}
    programs |= {f"{triple}-{name}": f"{triple}-{name}" for name in _BINUTILS}
    if version:
        programs |= {"gcc": f"{triple}-gcc-{version}", "cc": f"{triple}-gcc-{version}",
                     "g++": f"{triple}-g++-{version}", "c++": f"{triple}-g++-{version}"}
        # Debian's Python remembers its compiler by this name.
        programs |= {f"{triple}-{name}": f"{triple}-{name}-{version}" for name in ("gcc", "g++")}
    if "ccache" in packages:
        programs["ccache"] = "ccache"
    return {f"cross/bin/{name}": f"{place}/{program}" for name, program in programs.items()}


def _loader_places(machine: str) -> list[str]:
    """Where the loader of the machine that compiles looks."""
    loader = {"x86_64": ["lib64"], "aarch64": ["lib/ld-linux-aarch64.so.1"]}[machine]
    return [*loader, f"lib/{machine}-linux-gnu", f"usr/lib/{machine}-linux-gnu"]
