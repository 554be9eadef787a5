"""Results of compilers kept between builds: real ccache, nvcc and g++ over thor's emulated root.

What must hold: the same bytes as without it, whatever was killed, torn or changed before; and what was compiled is not
compiled again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from assemble.tools import build as build_tools
from cache.build import BuildContext
from cache.store import Store
from executors.run_stage import build as run_script
from lock.debs import DebRequest, DebSource, lock_debs
from lock.fetch import Wanted, fetch
from tests.support.front import HERE
from tests.support.images import make_layer
from tests.support.source_build import EMULATED, Machine, archives, cross_compiler, requires_layer, thor, toolkit_layer

CMAKE = b"""\
cmake_minimum_required(VERSION 3.25)
project(small LANGUAGES CXX CUDA)
add_library(small SHARED plain.cpp one.cu two.cu)
target_include_directories(small PRIVATE include)
install(TARGETS small DESTINATION .)
"""
#: One line for the pass of the device, one for that of the host, which `nvcc -E` does not show.
HEADER = """\
#pragma once
#ifdef __CUDA_ARCH__
#define FACTOR {device}
#else
#define FACTOR {host}
#endif
"""
KERNEL = """\
#include "factor.h"
__global__ void {name}_kernel(int* p) {{ *p = FACTOR; }}
int {name}() {{ {name}_kernel<<<1, 1>>>(nullptr); return FACTOR; }}
"""
CONFIGURED = b"""\
set -eu
cp -a /inputs/csrc/src /build/src
mkdir /build/cuda
cp -a /cross/toolkit/nvidia/cu13/bin /cross/toolkit/nvidia/cu13/nvvm /cross/toolkit/nvidia/cu13/include /build/cuda/
ln -s "/$SITE/nvidia/cu13/lib" /build/cuda/lib64
export PATH=/cross/bin:/build/cuda/bin:/cross/python/cmake/data/bin:/cross/python/bin:$PATH
export NVCC_APPEND_FLAGS="-frandom-seed=small -objtemp"
launch=
[ -z "${STAGECRAFT_CCACHE:-}" ] || launch="-DCMAKE_CXX_COMPILER_LAUNCHER=$STAGECRAFT_CCACHE"
[ -z "${STAGECRAFT_CCACHE:-}" ] || launch="$launch -DCMAKE_CUDA_COMPILER_LAUNCHER=$STAGECRAFT_CCACHE"
cmake -S /build/src -B /build/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/build/out $launch \\
    -DCMAKE_CUDA_ARCHITECTURES=110a-real -DCMAKE_CUDA_COMPILER=/build/cuda/bin/nvcc \\
    -DCMAKE_CUDA_HOST_COMPILER=/cross/bin/g++
cmake --build /build/build -j "$STAGECRAFT_JOBS"
cmake --install /build/build --strip
"""
#: nvcc alone: with the list of what it reads, as CMake asks for it, then without.
ONE_BY_ONE = b"""\
set -eu
mkdir /build/out /build/cuda
cp -a /cross/toolkit/nvidia/cu13/bin /cross/toolkit/nvidia/cu13/nvvm /cross/toolkit/nvidia/cu13/include /build/cuda/
export PATH=/cross/bin:/build/cuda/bin:$PATH NVCC_APPEND_FLAGS="-frandom-seed=small -objtemp"
cd /build/out
compile() { ${STAGECRAFT_CCACHE:-} nvcc -arch=sm_110a -ccbin /cross/bin/g++ -I/inputs/csrc/src/include "$@"; }
compile -MD -MT one.o -MF /build/one.d -c /inputs/csrc/src/one.cu -o one.o
compile -c /inputs/csrc/src/two.cu -o two.o
"""
#: One file after the other, without CMake: for builds that are killed.
FILES = 6
IN_TURN = b"""\
set -eu
mkdir /build/out
for name in 1 2 3 4 5 6; do
    ${STAGECRAFT_CCACHE:-} /cross/bin/g++ -c /inputs/csrc/src/$name.cpp -o /build/out/$name.o
    echo "compiled $name"
done
"""
#: Half a second of a compiler: long enough to be killed in.
SLOW = """\
#include <map>
#include <string>
int f{0}() {{ return std::map<std::string, int>{{{{"a", {0}}}}}.size(); }}
"""

RUNNER = """
import json, signal, sys
from pathlib import Path
from cache.build import BuildContext
from cache.store import Store
from executors.run_stage import build
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell started in the background
given = json.loads(sys.stdin.read())
found = build(BuildContext(Store.open(Path(given["store"])), given["params"], given["inputs"],
                           log=lambda line: print(line, flush=True)))
print(json.dumps({name: blob.digest for name, blob in found.items()}))
"""

WHEELS = (
    ("cmake", "4.4.4", "cmake-4.4.4-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
     "b3029f586853e01ddf2824c1ff124a1c5284f8ae897994758e9c4eeb45903b58"),
    ("ninja", "1.13.2", "ninja-1.13.2-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
     "d775a5e43e9088f507a6250d57fcf5678eb31268c545feb5064ffeee33735622"),
)


@dataclass
class Bench:
    """A machine with its tools, and where this user's results lie."""

    machine: Machine
    tools: tuple[str, ...]

    def given(self, script: bytes, files: Mapping[str, bytes], name: str) -> dict[str, Any]:
        """Params and inputs of a stage; `name` keeps the results of tests apart."""
        store = self.machine.store
        layers = [self.machine.layers["base"], self.machine.layers["cuda"], *self.tools]
        csrc = make_layer(store, {f"src/{path}": content for path, content in files.items()})
        return {"store": str(store.root),
                "params": {"machine": "aarch64", "command": ["bash", "/inputs/files/build.sh"], "collect": "out",
                           "into": "", "emulators": self.machine.emulators,
                           "environment": {"SITE": self.machine.site, "SOURCE_DATE_EPOCH": "315532800", "TEST": name,
                                           **EMULATED}},
                "inputs": {**{f"root/{number:02}": layer for number, layer in enumerate(layers)},
                           "tree/csrc": csrc, "file/build.sh": store.put(script).digest}}

    def run(self, given: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
        """Outputs, and the notes of the record."""
        lines: list[str] = []
        notes: list[str] = []
        try:
            found = run_script(BuildContext(self.machine.store, given["params"], given["inputs"], log=lines.append,
                                            note=notes.append))
        except BaseException:
            print(*lines, sep="\n")
            raise
        return {name: blob.digest for name, blob in found.items()}, notes


@pytest.fixture(scope="module")
def bench(thor_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    machine = thor(thor_store, tmp_path_factory.mktemp("project"), "base", "cuda")
    builders = [Wanted("wheel", *wheel[:3], 0, wheel[3], "default") for wheel in WHEELS]
    return Bench(machine, (cross_compiler(machine.store), toolkit_layer(machine.store),
                           requires_layer(machine.store, builders), ccache_layer(machine.store)))


def ccache_layer(store: Store) -> str:
    """Debian's ccache of this machine, with its libraries."""
    lock = lock_debs(DebRequest("debian", "bookworm", ("main",), "amd64", ("ccache",), essential=False), archives())
    fetch(store, [Wanted("deb", deb.name, deb.version, deb.file, deb.size, deb.sha256, deb.index) for deb in lock.debs],
          {"deb": DebSource(archives(), lock.suites)})
    found = build_tools(BuildContext(store, {
        "prefix": "cross", "architecture": "amd64", "links": {"cross/bin/ccache": "../usr/bin/ccache"},
        "in_place": ["lib64/*", "lib/x86_64-linux-gnu/*", "usr/lib/x86_64-linux-gnu/*"],
        "skip": ["usr/share/*", "usr/lib/ccache/*"]},
        {f"debs/{deb.file.rpartition('/')[2]}": "sha256:" + deb.sha256 for deb in lock.debs}))
    return found["layer"].digest


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("STAGECRAFT_CCACHE", "on")
    monkeypatch.setenv("STAGECRAFT_JOBS", "2")
    return monkeypatch


def kept(taken: int, compiled: int) -> list[str]:
    return [f"results of compilers were kept between builds (ccache: {taken} results taken, {compiled} compiled)"]


def project(device: int, host: int) -> dict[str, bytes]:
    return {"CMakeLists.txt": CMAKE, "include/factor.h": HEADER.format(device=device, host=host).encode(),
            "plain.cpp": b'#include "factor.h"\nint plain() { return 1; }\n',
            **{f"{name}.cu": KERNEL.format(name=name).encode() for name in ("one", "two")}}


def called(notes: list[str]) -> tuple[int, int]:
    """Results taken and compiled; CMake's own tries, which need no result, are passed on."""
    match = re.search(r"(\d+) results taken, (\d+) compiled", notes[0])
    assert match is not None
    return int(match[1]), int(match[2])


def test_same_bytes_as_without_it_and_nothing_compiled_twice(bench: Bench, cached: pytest.MonkeyPatch,
                                                             tmp_path: Path) -> None:
    given = bench.given(CONFIGURED, project(7, 7), str(tmp_path))
    cold, notes = bench.run(given)
    first = called(notes)
    assert first[1] >= 3
    warm, notes = bench.run(given)
    assert called(notes) == (sum(first), 0)
    cached.delenv("STAGECRAFT_CCACHE")
    without, notes = bench.run(given)
    assert cold == warm == without
    assert notes == []


def test_change_that_one_pass_of_nvcc_sees_is_seen(bench: Bench, cached: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ccache, left alone, takes the old result here: `nvcc -E` does not show it what the host's pass reads."""
    builds = [bench.given(ONE_BY_ONE, project(*factors), str(tmp_path)) for factors in ((7, 7), (7, 8), (8, 8))]
    found = [bench.run(given) for given in builds]
    assert [notes for _, notes in found] == [kept(0, 1)] * 3
    results = [outputs for outputs, _ in found]
    assert len({outputs["layer"] for outputs in results}) == 3
    assert bench.run(builds[1]) == (results[1], kept(1, 0))  # two.cu was compiled without it, as always
    cached.delenv("STAGECRAFT_CCACHE")
    assert bench.run(builds[1])[0] == results[1]


def in_turn(bench: Bench, name: str) -> dict[str, Any]:
    return bench.given(IN_TURN, {f"{number}.cpp": SLOW.format(number).encode() for number in range(1, FILES + 1)}, name)


def start(given: Mapping[str, Any]) -> subprocess.Popen[str]:
    """The build in a process of its own, as Stagecraft is one."""
    process = subprocess.Popen([sys.executable, "-c", RUNNER], cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": str(HERE)})
    assert process.stdin is not None
    process.stdin.write(json.dumps(given))
    process.stdin.close()
    process.stdin = None  # or communicate would write to it
    return process


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_build_killed_half_way_compiles_only_what_was_missing(bench: Bench, cached: pytest.MonkeyPatch, tmp_path: Path,
                                                              how: signal.Signals) -> None:
    given = in_turn(bench, str(tmp_path))
    process = start(given)
    assert process.stdout is not None
    for line in process.stdout:
        if line == "compiled 2\n":
            process.send_signal(how)
            break
    shown = 2 + sum(line.startswith("compiled ") for line in process.stdout)
    assert process.wait(30) != 0
    assert shown < FILES
    again, notes = bench.run(given)
    taken, compiled = called(notes)
    assert taken >= shown
    assert taken + compiled == FILES
    assert compiled > 0
    assert bench.run(given) == (again, kept(FILES, 0))
    cached.delenv("STAGECRAFT_CCACHE")
    assert bench.run(given)[0] == again


def test_two_builds_at_once_share_results(bench: Bench, cached: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = in_turn(bench, str(tmp_path))
    found = [process.communicate()[0].splitlines()[-1] for process in (start(given), start(given))]
    assert found[0] == found[1]
    assert bench.run(given) == (json.loads(found[0]), kept(FILES, 0))


def test_torn_results_are_compiled_again(bench: Bench, cached: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As after a loss of power: files have their names, and half of their content."""
    given = in_turn(bench, str(tmp_path))
    before = set(bench.machine.store.directory("ccache").iterdir())
    whole, _ = bench.run(given)
    place, = set(bench.machine.store.directory("ccache").iterdir()) - before
    results = [path for path in place.rglob("*R") if path.is_file()]
    assert len(results) == FILES
    for path in results:
        os.truncate(path, path.stat().st_size // 2)
    assert bench.run(given) == (whole, kept(0, FILES))


def test_build_that_finds_ccache_itself_compiles_alone(bench: Bench, tmp_path: Path) -> None:
    """As vLLM's setup.py would: nobody asked for a cache."""
    script = IN_TURN.replace(b"${STAGECRAFT_CCACHE:-}", b"/cross/bin/ccache")
    script += b"test ! -e $HOME/.cache -a ! -e $HOME/.ccache\n"
    given = in_turn(bench, str(tmp_path))
    given["inputs"]["file/build.sh"] = bench.machine.store.put(script).digest
    assert bench.run(given)[1] == []
