"""Our reading of files that nvcc compiled here, against NVIDIA's cuobjdump: headers, payloads and kernels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fatbin
from tests.support import cuobjdump
from tests.support.cuda import Toolkit

WITH_CODE = ("many.so", "stripped.so", "stored.so", "size.so", "speed.so", "all.so", "plain.fatbin", "debug.o",
             "lineinfo.o", "relocatable.o", "lto.o", "lto-stored.o", "program", "merged.o", "empty.so")


def in_their_order(found: fatbin.Fatbin) -> list[fatbin.Entry]:
    """Cuobjdump prints what can be loaded before what -rdc=true left for the device linker."""
    ordered = sorted(found.containers, key=lambda container: container.relocatable)
    return [entry for container in ordered for entry in container.entries]


def said(entry: fatbin.Entry) -> cuobjdump.Said:
    return cuobjdump.Said(
        entry.kind.name, f"sm_{entry.arch}{entry.suffix}", entry.version, entry.is_64bit,
        entry.compression is not fatbin.Compression.STORED, entry.has_debug, entry.identifier, entry.options.strip(),
        fatbin.kernels(entry) or () if entry.kind is fatbin.Kind.CUBIN else ())


@pytest.mark.parametrize("name", WITH_CODE)
def test_entries_are_those_of_cuobjdump(cuda: Toolkit, samples: dict[str, Path], name: str) -> None:
    with samples[name].open("rb") as file:
        ours = [said(entry) for entry in in_their_order(fatbin.read(file))]
    theirs = cuobjdump.entries(cuda, samples[name])
    assert ours == theirs
    assert ours  # a parser that finds nothing agrees with one that finds nothing


@pytest.mark.parametrize("name", WITH_CODE)
def test_payloads_are_those_of_cuobjdump(cuda: Toolkit, samples: dict[str, Path], name: str) -> None:
    found = in_their_order(fatbin.read(samples[name].read_bytes()))
    theirs = cuobjdump.payloads(cuda, samples[name])
    for kind, key in ((fatbin.Kind.CUBIN, "elf"), (fatbin.Kind.PTX, "ptx")):
        assert [entry.payload() for entry in found if entry.kind is kind] == theirs[key]
    assert sum(map(len, theirs.values())) == sum(entry.kind is not fatbin.Kind.IR for entry in found)


@pytest.mark.parametrize("name", WITH_CODE)
def test_kernels_of_ptx_are_those_that_ptxas_compiles(cuda: Toolkit, samples: dict[str, Path], tmp_path: Path,
                                                     name: str) -> None:
    for entry in fatbin.read(samples[name].read_bytes()).entries:
        if entry.kind is fatbin.Kind.PTX:
            (tmp_path / "a.ptx").write_bytes(entry.payload())
            arch = entry.target.replace("compute", "sm")
            cuda.run("ptxas", f"-arch={arch}", "-c", "a.ptx", "-o", "a.cubin", cwd=tmp_path)
            printed = cuda.cuobjdump("-symbols", "a.cubin", cwd=tmp_path)
            theirs = {line.split()[-1] for line in printed.splitlines() if " ENTRY " in line}
            assert set(fatbin.kernels(entry) or ()) == theirs
            assert bool(theirs) == (name != "empty.so")


@pytest.mark.parametrize(("name", "wrappers"), [
    ("many.so", 2), ("stripped.so", 2), ("size.so", 1), ("debug.o", 1), ("relocatable.o", 1), ("lto.o", 1),
    ("program", 3), ("merged.o", 2)])
def test_each_container_has_a_wrapper(samples: dict[str, Path], name: str, wrappers: int) -> None:
    found = fatbin.read(samples[name].read_bytes())
    assert (found.wrappers, len(found.containers), found.consistent) == (wrappers, wrappers, True)


def test_every_way_of_compressing_was_seen(samples: dict[str, Path]) -> None:
    seen = {(entry.kind.name, entry.compression.value)
            for name in WITH_CODE for entry in fatbin.read(samples[name].read_bytes()).entries}
    assert seen >= {("PTX", "stored"), ("PTX", "lz4"), ("PTX", "zstd"), ("CUBIN", "stored"), ("CUBIN", "zstd"),
                    ("IR", "zstd")}


def test_targets_of_a_library_for_many_devices(samples: dict[str, Path]) -> None:
    found = fatbin.read(samples["many.so"].read_bytes())
    targets = [entry.target for entry in found.containers[0].entries]
    assert sorted(targets) == ["compute_120f", "compute_80", "sm_110", "sm_110a", "sm_120f", "sm_121a", "sm_80",
                               "sm_90a"]
    assert {entry.isa for entry in found.entries} == {"", "9.0"}
    assert found.machine == os.uname().machine


def test_headers_of_a_large_file_are_read_alone(samples: dict[str, Path]) -> None:
    class Counting:
        def __init__(self, path: Path) -> None:
            self.file = path.open("rb")
            self.taken = 0

        def seek(self, offset: int, whence: int = 0) -> int:
            return self.file.seek(offset, whence)

        def read(self, size: int) -> bytes:
            self.taken += size
            return self.file.read(size)

    counting = Counting(samples["many.so"])
    found = fatbin.read(counting)  # type: ignore[arg-type]
    assert len(found.entries) == 16
    assert counting.taken < 8192 < samples["many.so"].stat().st_size
    payloads = sum(entry.size for entry in found.entries)
    before = counting.taken
    for entry in found.entries:
        entry.payload()
    assert counting.taken - before == payloads
    counting.file.close()
