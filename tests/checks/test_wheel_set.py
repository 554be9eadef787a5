"""Gate wheel-set: requirements of the set, judged for the target; files that one layer hides from another."""

from pathlib import Path
from typing import Any

import pytest

from cache.store import Store
from checks.wheel_set import environment, requirements
from tests.support.gates import Gates
from tests.support.wheel_factory import make_wheel

ARM = environment("aarch64", "3.11")


def package(name: str, version: str = "1", *requires: str, python: str = "", stage: str = "deps") -> dict[str, Any]:
    return {"name": name, "version": version, "requires_dist": list(requires), "requires_python": python,
            "stage": stage}


def judged(*packages: dict[str, Any], wanted: tuple[str, ...] = ()) -> dict[str, str]:
    return {finding.subject: finding.message for finding in requirements(packages, wanted, ARM)}


def test_a_satisfied_set() -> None:
    assert judged(package("a", "1", "B_b >=1,<3", "c ; python_version >= '3.8'"), package("b-b", "2.5"),
                  package("c", "0.1rc1")) == {}


def test_a_broken_pin_has_a_subject_that_a_waiver_can_name() -> None:
    found = judged(package("opencv-python-headless", "5.0", 'numpy >=2; python_version >= "3.9"'),
                   package("numpy", "1.26.4"))
    assert found == {"opencv-python-headless: numpy>=2":
                     'opencv-python-headless requires numpy >=2; python_version >= "3.9", the set has numpy 1.26.4'}


def test_a_missing_package() -> None:
    assert list(judged(package("a", "1", "Missing.Thing[x]~=2.0"))) == ["a: missing-thing~=2.0"]


@pytest.mark.parametrize("marker", [
    "platform_machine == 'x86_64'", "sys_platform == 'win32'", "python_version < '3.11'",
    "platform_system == 'Darwin'", "implementation_name == 'pypy'", "python_full_version < '3.11'",
    "extra == 'tests'", "os_name == 'nt'"])
def test_markers_that_do_not_hold_on_the_target(marker: str) -> None:
    assert judged(package("a", "1", f"missing; {marker}")) == {}


@pytest.mark.parametrize("marker", [
    "platform_machine == 'aarch64'", "sys_platform == 'linux'", "python_version == '3.11'",
    "platform_system == 'Linux'",
    "platform_python_implementation == 'CPython'", "python_full_version < '3.11.3'"])
def test_markers_that_hold_on_the_target(marker: str) -> None:
    assert list(judged(package("a", "1", f"missing; {marker}"))) == ["a: missing"]


def test_extras_count_when_somebody_asks_for_them() -> None:
    server = package("server", "1", "loop>=1; extra == 'Fast_Lane'", "lib[tls]; extra == 'fast-lane'",
                     "never; extra == 'x'")
    lib = package("lib", "1", "tls-lib>=3; extra == 'tls'", "lib[more]; extra == 'tls'", "deep; extra == 'more'")
    rest = (package("tls-lib", "2"), lib)
    assert judged(server, *rest, package("deep")) == {}
    found = judged(server, *rest, package("app", "1", "server[fast_lane]"))
    assert set(found) == {"server: loop>=1", "lib: tls-lib>=3", "lib: deep"}
    assert "(extra fast-lane)" in found["server: loop>=1"]
    assert set(judged(server, *rest, wanted=("server[fast-lane]",))) == set(found)


def test_a_broken_pin_is_told_once_whatever_extras_are_asked_for() -> None:
    listed = [package("a", "1", "numpy>=2", "x; extra == 'more'"), package("numpy", "1"), package("x"),
              package("b", "1", "a[more]"), package("c", "1", "a[other]")]
    assert [finding.subject for finding in requirements(listed, (), ARM)] == ["a: numpy>=2"]


def test_circles_end() -> None:
    assert judged(package("a", "1", "b[x]"), package("b", "1", "a[y]; extra == 'x'", "b[x]")) == {}


def test_pre_releases_and_local_versions() -> None:
    assert judged(package("a", "1", "torch==2.13.0", "b>=1"), package("torch", "2.13.0+cu130"),
                  package("b", "2.0b1")) == {}
    found = judged(package("a", "1", "torch==2.13.0+cu130"), package("torch", "2.13.0"))
    assert list(found) == ["a: torch==2.13.0+cu130"]


def test_requires_python() -> None:
    assert judged(package("a", python=">=3.9,<4"), package("b", python="")) == {}
    assert list(judged(package("a", python=">=3.12"))) == ["a: python>=3.12"]


def test_one_package_twice() -> None:
    found = judged(package("a", "1", stage="torch"), package("a", "2", stage="deps"))
    assert found == {"a: installed twice": "1 in layer torch and 2 in layer deps"}


def test_requirements_of_the_target_itself() -> None:
    assert list(judged(package("a", "1"), wanted=("a>=2", "b"))) == ["target: a>=2", "target: b"]


def test_a_requirement_by_address_asks_only_that_it_is_there() -> None:
    assert judged(package("a", "1", "b @ https://example.org/b.whl"), package("b", "9")) == {}


def test_an_unreadable_requirement() -> None:
    assert list(judged(package("a", "1", ">=2 what"))) == ["a: >=2 what"]


# -- on layers ------------------------------------------------------------------------------------


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(Store.open(tmp_path / "store"))


def test_layers_that_fit(gates: Gates, tmp_path: Path) -> None:
    gates.layer("cuda", make_wheel(tmp_path, "nvidia-x", "1", files={"nvidia/__init__.py": b"", "nvidia/x/a.so": b"x"}))
    gates.layer("torch", make_wheel(tmp_path, "torch", "2", requires=["nvidia-x==1", "numpy>=1"]))
    gates.layer("deps", make_wheel(tmp_path, "numpy", "1.26.4"),
                make_wheel(tmp_path, "nvidia-y", "1", files={"nvidia/__init__.py": b"", "nvidia/y.py": b""}))
    assert gates.judge("wheel-set").findings == ()


def test_requirements_across_layers(gates: Gates, tmp_path: Path) -> None:
    gates.layer("torch", make_wheel(tmp_path, "torch", "2", requires=["numpy>=2"]))
    gates.layer("deps", make_wheel(tmp_path, "numpy", "1.26.4"))
    assert list(gates.errors("wheel-set")) == ["torch: numpy>=2"]
    gates.target["wheels"]["requirements"] = ["torch[all]<2"]
    assert list(gates.errors("wheel-set")) == ["target: torch<2", "torch: numpy>=2"]


def test_a_file_that_one_layer_hides_from_another(gates: Gates, tmp_path: Path) -> None:
    gates.layer("torch", make_wheel(tmp_path, "torch_ext", "1", files={"build_backend.py": b"one", "x.py": b""}))
    gates.layer("deps", make_wheel(tmp_path, "flashinfer", "2", files={"build_backend.py": b"two", "x.py": b""}))
    assert gates.errors("wheel-set") == {
        "file: build_backend.py": "flashinfer 2 in layer deps hides the different file of torch_ext 1 in layer torch"}


def test_a_file_in_place_of_a_directory(gates: Gates, tmp_path: Path) -> None:
    gates.layer("torch", make_wheel(tmp_path, "one", "1", files={"thing/x.py": b""}))
    gates.layer("deps", make_wheel(tmp_path, "two", "1", files={"thing": b""}))
    assert list(gates.errors("wheel-set")) == ["file: thing"]
