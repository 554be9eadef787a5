"""A small target with a package from source, its recipe and a lock of it, made by hand: for tests without a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lock.source_lock import LockedTree
from stages import lockfile, target
from stages.graph import Graph
from stages.locked_source import SourcePackage, Tools
from stages.lockfile import Lock, LockedFile
from stages.project import graph
from stages.target import Target
from tests.support.project import TARGET

RECIPE = """\
format: stagecraft.recipe.v1
csrc: [CMakeLists.txt, csrc/*]
python: [pkg/*]
without: ["*.md"]
pins: {keep_back: [KEPT_SRC_DIR], below: {deep: python/deep}}
script: recipe/build.sh
environment: {SETTING: "1"}
tools:
  compilers:
    linux/amd64: {linux/arm64: [g++-12-aarch64-linux-gnu, ccache], linux/amd64: [g++-12]}
    linux/arm64: {linux/arm64: [g++-12]}
  toolkit: [nvidia-cuda-nvcc]
  requires: [cmake]
stubs:
  - {sources: [hopper], archs: ["11.0a", "12.1a"], reason: it has no code for these}
  - {sources: [old], archs: ["11.0a"], versions: "<1", reason: later versions need it}
patches:
  - {file: recipe/one.patch, versions: "==1.*", reason: the first one of them}
  - {file: recipe/two.patch, versions: "==2.*", reason: the second one of them}
refuse:
  - {pattern: "no (.*) here", allow: {"11.0a": [one, both], "12.1a": [both], any: [all]}, reason: it would be missing}
"""
SOURCES = """\
sources:
  mirrors: {"https://github.com/": ["file:///srv/git/"]}
  packages:
    pkg:
      version: "1.0"
      recipe: recipe/recipe.yaml
"""
DEVICE = (TARGET.replace("linux/amd64", "linux/arm64").replace("compute_capability: none", 'compute_capability: "11.0"')
          .replace("arch_list: none", 'arch_list: "11.0a"').replace("cuda: none", 'cuda: "13.0"')
          .replace("driver_floor: none", 'driver_floor: "580"'))
PYTHON = {"version": "3.11", "executable": "/usr/bin/python3.11", "glibc": "2.36", "site": "usr/lib/python3/site",
          "scripts": "usr/bin", "data": "usr"}


def write(root: Path, text: str = DEVICE + SOURCES, recipe: str = RECIPE) -> Path:
    """A project with the target `small` and its recipe."""
    files = {"targets/small.yaml": text, "recipe/recipe.yaml": recipe, "recipe/build.sh": "exit 1\n",
             "recipe/one.patch": "a patch\n"}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def file(name: str, version: str = "1", suffix: str = "whl", **more: str) -> LockedFile:
    return LockedFile(name, version, f"{name}-{version}.{suffix}", 10, name.encode().hex().ljust(64, "0")[:64],
                      "default", **more)


def tree(name: str, variable: str = "") -> LockedTree:
    return LockedTree(name, f"https://github.com/x/{name}", "v1", "a" * 40, "sha256:" + "b" * 64, 100, variable,
                      {"sub": ("https://github.com/x/sub", "c" * 40)})


def package(**more: object) -> SourcePackage:
    sdist = {"kind": "sdist", "file": "pkg-1.0.tar.gz", "size": 5, "sha256": "d" * 64, "index": "default"}
    tools = Tools((), (file("g++-12-aarch64-linux-gnu", suffix="deb", architecture="amd64"),
                       file("ccache", suffix="deb", architecture="amd64")),
                  (file("nvidia-cuda-nvcc"),), (file("cmake"),))
    made = SourcePackage("pkg", "1.0", sdist, (tree("deep", "DEEP_SRC_DIR"), tree("kept", "KEPT_SRC_DIR")),
                         {"hopper": "HOPPER_SRC_DIR"}, ("click>=8",), tools)
    return replace(made, **more)  # type: ignore[arg-type]


def lock_of(asked: Target, *packages: SourcePackage) -> Lock:
    return Lock(asked.name, lockfile.request_digests(asked), {"kind": "debian", "suites": []}, PYTHON,
                debs=(file("bash", suffix="deb", architecture=asked.architecture),),
                emulator=(file("qemu-user", suffix="deb", architecture="amd64"),),
                sources=packages or (package(),))


def graph_of(root: Path, *packages: SourcePackage) -> Graph:
    asked = target.load(root, "small")
    return graph(asked, lock_of(asked, *packages), root)
