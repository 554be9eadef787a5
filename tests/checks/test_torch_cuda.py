"""Gate torch-cuda: each good torch passes, each bad twin does not."""

from pathlib import Path

import pytest

from cache.store import Store
from checks.torch_cuda import assigned, requires_nvidia, runs
from tests.support.elf_factory import make_elf
from tests.support.gates import Gates
from tests.support.wheel_factory import make_wheel

VERSION = """from typing import Optional

__all__ = ['__version__', 'cuda']
__version__ = '2.13.0+cu130'
cuda: Optional[str] = {cuda!r}
hip: Optional[str] = None
raise SystemExit("package code ran")
"""


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(Store.open(tmp_path / "store"))


def torch(directory: Path, cuda: str | None = "13.0", version: str = "2.13.0", library: bytes | None = None,
          source: str = VERSION, requires: tuple[str, ...] = ("nvidia-cublas==13.1; sys_platform == 'linux'",)) -> Path:
    files = {"torch/version.py": source.format(cuda=cuda).encode()}
    if library != b"":
        files["torch/lib/libtorch_cuda.so"] = make_elf() if library is None else library
    return make_wheel(directory, "torch", version, tag="cp311-cp311-manylinux_2_28_aarch64", files=files,
                      requires=requires)


def test_a_cuda_build_passes(gates: Gates, tmp_path: Path) -> None:
    gates.layer("torch", torch(tmp_path))
    assert gates.judge("torch-cuda").findings == ()


#: As PyPI's 2.10.0 for aarch64 has them.
FOR_X86 = ("filelock", "nvidia-cublas-cu12==12.8.4.1; platform_machine == 'x86_64'", "cuda-bindings; extra == 'x'")


def test_cpu_build_by_its_metadata(gates: Gates, tmp_path: Path) -> None:
    gates.layer("torch", torch(tmp_path, library=b"", requires=FOR_X86))
    found = gates.errors("torch-cuda")
    assert list(found) == ["torch: libtorch_cuda.so", "torch: requirements"]
    assert "requires no library of NVIDIA on aarch64: a CPU build" in found["torch: requirements"]


def test_cuda_build_for_a_cuda_from_elsewhere_is_told_and_passes(gates: Gates, tmp_path: Path) -> None:
    gates.layer("torch", torch(tmp_path, requires=FOR_X86))
    assert [(one.severity, one.subject) for one in gates.judge("torch-cuda").findings] == [
        ("info", "torch: requirements")]


@pytest.mark.parametrize(("text", "answer"), [
    ("cuda-toolkit[cublas]==13.0.3; platform_system == 'Linux'", True), ("NVIDIA-cudnn-cu13", True),
    (">=2 what", False), ("nvidia-cublas; platform_machine != 'aarch64'", False), ("numpy", False)])
def test_requires_nvidia(text: str, answer: bool) -> None:
    assert requires_nvidia([text], "aarch64", "3.11") is answer


def test_an_older_minor_passes(gates: Gates, tmp_path: Path) -> None:
    gates.layer("torch", torch(tmp_path))
    gates.target["device"]["cuda"] = "13.2"
    assert gates.errors("torch-cuda") == {}


def test_a_cpu_build(gates: Gates, tmp_path: Path) -> None:
    gates.layer("torch", torch(tmp_path, cuda=None, version="2.13.0+cpu", library=b""))
    assert set(gates.errors("torch-cuda")) == {"torch: version", "torch: version.py", "torch: libtorch_cuda.so"}


def test_a_cpu_build_that_does_not_say_so_in_its_version(gates: Gates, tmp_path: Path) -> None:
    gates.layer("torch", torch(tmp_path, cuda=None))
    assert set(gates.errors("torch-cuda")) == {"torch: version.py"}


@pytest.mark.parametrize("cuda", ["12.6", "13.1", "14.0"])
def test_a_cuda_that_the_driver_does_not_run(gates: Gates, tmp_path: Path, cuda: str) -> None:
    gates.layer("torch", torch(tmp_path, cuda=cuda))
    assert list(gates.errors("torch-cuda")) == [f"torch: CUDA {cuda}"]


def test_no_library_or_an_empty_one(gates: Gates, tmp_path: Path) -> None:
    gates.layer("torch", torch(tmp_path, library=b""))
    assert list(gates.errors("torch-cuda")) == ["torch: libtorch_cuda.so"]


def test_no_torch_at_all(gates: Gates, tmp_path: Path) -> None:
    gates.layer("torch", make_wheel(tmp_path, "torchvision", "1"))
    assert list(gates.errors("torch-cuda")) == ["torch: version"]


def test_a_version_file_that_is_no_python(gates: Gates, tmp_path: Path) -> None:
    gates.layer("torch", torch(tmp_path, source="cuda = ("))
    assert list(gates.errors("torch-cuda")) == ["torch: version.py"]


def test_a_target_without_cuda_takes_any_torch(gates: Gates, tmp_path: Path) -> None:
    gates.layer("torch", torch(tmp_path, cuda=None, library=b""))
    gates.target["device"] = {}
    assert gates.errors("torch-cuda") == {}


def test_what_a_module_assigns() -> None:
    assert assigned("a = 1\nb: str = 'x'\nc = f()\nd: int\n") == {"a": 1, "b": "x"}


@pytest.mark.parametrize(("built", "driver", "answer"), [
    ("13.0", "13.0", True), ("13.0", "13.2", True), ("13.2", "13.0", False), ("12.9", "13.0", False),
    ("13", "13.0", True), ("13.10", "13.9", False), ("x", "13.0", False), ("13.0.1", "13.0", True)])
def test_runs(built: str, driver: str, answer: bool) -> None:
    assert runs(built, driver) is answer
