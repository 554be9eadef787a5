"""The command, as people run it."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import fatbin
from tests.support.device_code import section_header

ROOT = Path(fatbin.__file__).parents[1]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fatbin", *map(str, arguments)], capture_output=True, text=True,
                          check=False, cwd=ROOT)


def test_table(samples: dict[str, Path]) -> None:
    done = run(samples["size.so"], samples["lto.o"])
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{samples['size.so']}: {os.uname().machine}, 1 containers, 1 wrappers"
    assert lines[1].split() == ["#", "kind", "target", "ISA", "compression", "size", "full", "size", "kernels", "notes"]
    cubin, text = (line.split() for line in lines[2:4])
    assert cubin[:4] == ["1", "cubin", "sm_110f", "zstd"]
    assert text[:5] == ["1", "ptx", "compute_110f", "9.0", "zstd"]
    entries = fatbin.read(samples["size.so"].read_bytes()).entries
    assert [cubin[4:7], text[5:8]] == [[str(entry.size), str(entry.full_size), "-"] for entry in entries]
    (code,) = (line for line in lines[6:] if line.split()[1:3] == ["ir", "compute_110a"])
    assert code.endswith("relocatable scrambled")


def test_kernels(samples: dict[str, Path]) -> None:
    lines = run(samples["plain.fatbin"], "--kernels").stdout.splitlines()
    assert lines[0].endswith("plain.fatbin: fatbin, 1 containers")
    assert [line.strip() for line in lines[3:5]] == ["_Z6hiddenPi", "fill"]
    assert lines[2].split()[-1] == "2"


def test_json(samples: dict[str, Path]) -> None:
    (report,) = json.loads(run("--json", "--kernels", samples["many.so"]).stdout)
    found = fatbin.read(samples["many.so"].read_bytes())
    assert (report["wrappers"], report["consistent"], report["machine"]) == (2, True, os.uname().machine)
    rows = [entry for container in report["containers"] for entry in container["entries"]]
    assert [(row["kind"], row["target"], row["offset"], tuple(row["kernels"])) for row in rows] == [
        (entry.kind.name.lower(), entry.target, entry.offset, fatbin.kernels(entry)) for entry in found.entries]


def test_files_that_cannot_be_read(samples: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("some text, nothing else")
    done = run(tmp_path / "text", tmp_path / "missing", samples["size.so"])
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"fatbin: {tmp_path}/text: not an ELF file (at offset 0x0)",
        f"fatbin: {tmp_path}/missing: No such file or directory"]
    assert "sm_110f" in done.stdout


def test_an_inconsistent_file_is_told(samples: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(samples["debug.o"].read_bytes())
    struct.pack_into("<Q", data, section_header(data, ".nvFatBinSegment") + 32, 0)
    (tmp_path / "lost.o").write_bytes(data)
    done = run(tmp_path / "lost.o")
    assert done.returncode == 3
    assert "1 containers, but 0 wrappers: device code was lost or added" in done.stderr


def test_names_do_not_steer_the_terminal(samples: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(samples["lineinfo.o"].read_bytes())
    entry = fatbin.read(bytes(data)).entries[0]
    at = entry.offset + struct.unpack_from("<I", data, entry.offset + 0x20)[0]
    data[at:at + 5] = b"\x1b[2J\xff"
    (tmp_path / "evil.o").write_bytes(data)
    done = run(tmp_path / "evil.o")
    assert "\x1b" not in done.stdout
    assert r"\x1b[2J\xfffdcu" in done.stdout


def test_a_reader_that_leaves(samples: dict[str, Path]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    for arguments in (f"--json {' '.join([str(samples['many.so'])] * 40)}", str(samples["size.so"])):
        program = f"(sleep 0.2; {sys.executable} -m fatbin {arguments}) | true; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, cwd=ROOT,
                              env=environment)
        assert (done.stdout, done.stderr) == ("0\n", "")


def test_the_package_stands_alone(samples: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fatbin", tmp_path / "fatbin", ignore=shutil.ignore_patterns("__pycache__"))
    program = ("import sys, fatbin; print(fatbin.__file__); found = fatbin.read(open(sys.argv[1], 'rb'));"
               "print(sum(len(fatbin.kernels(entry)) for entry in found.entries))")
    # No site-packages, so nothing but the standard library; LZ4 and stored payloads need no more.
    done = subprocess.run([sys.executable, "-S", "-E", "-c", program, samples["speed.so"]], capture_output=True,
                          text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == [str(tmp_path / "fatbin/__init__.py"), "6"]


@pytest.mark.parametrize("arguments", [[], ["--no-such", "x"]])
def test_wrong_usage(arguments: list[str]) -> None:
    assert run(*arguments).returncode == 2
