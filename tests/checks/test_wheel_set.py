"""Gate wheel-set: requirements of the set, judged for the target; families of wheels; files that one layer hides from
another, leaks, and code that protoc generated."""

from pathlib import Path
from typing import Any

import pytest

from cache.store import Store
from checks import facts
from checks.wheel_family import pairs, prereleases, same_version, variants
from checks.wheel_set import environment, requirements
from tests.support.gates import SITE, TARGET, Gates
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


def test_what_the_target_leaves_out_is_told_and_blocks_nothing() -> None:
    found = requirements([package("a", "1", "gone>=2", "gone-too")], (), ARM, excluded=["gone"])
    assert {finding.subject: finding.severity for finding in found} == {"a: gone>=2": "info", "a: gone-too": "error"}
    there = requirements([package("a", "1", "gone>=2"), package("gone", "1")], (), ARM, excluded=["gone"])
    assert [finding.severity for finding in there] == ["error"]


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


# -- families -------------------------------------------------------------------------------------

FACTS = facts.wheel_set(TARGET, {"python": {"version": "3.11", "site": SITE}})


def of_families(*packages: dict[str, Any], wanted: tuple[str, ...] = ()) -> dict[str, tuple[str, str]]:
    installed = {one["name"]: one for one in packages}
    errors = {(row["package"], row["needs"]): row["error"] for row in FACTS["pairs"]}
    found = [*requirements(packages, wanted, ARM, errors), *pairs(installed, FACTS["pairs"]),
             *same_version(installed, FACTS["same_version"]), *prereleases(packages, wanted)]
    return {finding.subject: (finding.severity, finding.message) for finding in found}


def test_torchvision_pins_the_torch_that_is_there() -> None:
    assert of_families(package("torch", "2.13.0"), package("torchvision", "0.28.0", "torch (==2.13.0)")) == {}


def test_torchvision_of_another_torch_says_what_the_device_will_say() -> None:
    found = of_families(package("torch", "2.11.0"), package("torchvision", "0.28.0", "torch (==2.13.0)"))
    [(subject, (severity, message))] = found.items()
    assert (subject, severity) == ("torchvision: torch==2.13.0", "error")
    assert "the set has torch 2.11.0" in message
    assert "operator torchvision::nms does not exist" in message


def test_torchvision_without_a_pin_and_of_another_build() -> None:
    found = of_families(package("torch", "2.13.0"), package("torchvision", "0.28.0", "torch", "torch-x; extra == 'x'"))
    assert found["torchvision: torch"][0] == "warning"
    both = package("torch", "2.13.0+cu130"), package("torchvision", "0.28.0+cpu", "torch==2.13.0")
    severity, message = of_families(*both)["torchvision: torch"]
    assert severity == "error"
    assert "Could not run 'torchvision::nms'" in message
    assert of_families(both[0], package("torchvision", "0.28.0+cu130", "torch==2.13.0")) == {}


def test_flashinfer_is_one_release() -> None:
    python = package("flashinfer-python", "0.7.0.post1")
    assert of_families(python) == {}
    assert of_families(python, package("flashinfer-cubin", "0.7.0.post1"),
                       package("flashinfer-jit-cache", "0.7.0.post1+cu130")) == {}
    found = of_families(python, package("flashinfer-cubin", "0.7.0"),
                        package("flashinfer-jit-cache", "0.6.14+cu130"))
    assert list(found) == ["flashinfer-cubin: version", "flashinfer-jit-cache: version"]
    assert all(severity == "error" and "does not match flashinfer version" in message
               for severity, message in found.values())


def test_packages_for_another_cuda_only() -> None:
    dsl = ["nvidia-cutlass-dsl-libs-base", "nvidia-cutlass-dsl-libs-cu12", "x-cu", "cuda-cu130"]
    [finding] = variants(dsl, "13")
    assert (finding.severity, finding.subject) == ("warning", "nvidia-cutlass-dsl-libs: CUDA 13")
    assert variants([*dsl, "nvidia-cutlass-dsl-libs-cu13"], "13") == variants(dsl, "12") == variants(dsl, "") == []


def test_pre_release_that_nobody_asks_for() -> None:
    assert list(of_families(package("cuda-tile", "1.6.0rc3"), package("a", "1", "cuda-tile>=1"))) == [
        "cuda-tile: pre-release 1.6.0rc3"]
    assert list(of_families(package("a", "1.dev3"))) == ["a: pre-release 1.dev3"]
    assert of_families(package("a", "1.0.post20261028"), package("b", "2!1.0+local")) == {}


@pytest.mark.parametrize("asked", ["semconv==0.66b2", "semconv>=0.60b1,<1", "SemConv==0.66b2; extra == 'x'"])
def test_pre_release_that_a_requirement_names_is_asked_for(asked: str) -> None:
    assert of_families(package("semconv", "0.66b2"), package("sdk", "1", asked)) == {}
    assert of_families(package("semconv", "0.66b2"), wanted=("semconv==0.66b2",)) == {}


# -- at the top of the site directory, and generated code ------------------------------------------------------------


def warnings(gates: Gates) -> dict[str, str]:
    return {finding.subject: finding.message for finding in gates.judge("wheel-set").findings
            if finding.severity == "warning"}


def test_what_belongs_into_a_source_archive_is_told_and_blocks_nothing(gates: Gates, tmp_path: Path) -> None:
    gates.layer("deps", make_wheel(tmp_path, "leaky", "1", files={"leaky/tests/test_x.py": b"", "tests/x.py": b"",
                                                                  "setup.py": b"", "build_backend.py": b""}))
    assert gates.errors("wheel-set") == {}
    found = {finding.subject: finding.message for finding in gates.judge("wheel-set").findings}
    assert list(found) == ["leak: build_backend.py", "leak: setup.py", "leak: tests"]
    assert found["leak: tests"].startswith("leaky 1 in layer deps leaves a test suite")


def test_project_of_that_name_leaks_nothing(gates: Gates, tmp_path: Path) -> None:
    gates.layer("deps", make_wheel(tmp_path, "tools", "1", files={"tools/x.py": b""}),
                make_wheel(tmp_path, "fine", "1", files={"fine/tests/x.py": b""}))
    assert gates.judge("wheel-set").findings == ()


def test_families_in_layers(gates: Gates, tmp_path: Path) -> None:
    gates.layer("torch", make_wheel(tmp_path, "torch", "2.13.0+cu130"),
                make_wheel(tmp_path, "torchvision", "0.28.0+cpu", requires=["torch==2.13.0"]))
    gates.layer("deps", make_wheel(tmp_path, "flashinfer-python", "0.7.0"), make_wheel(tmp_path, "odd", "1.0rc1"),
                make_wheel(tmp_path, "flashinfer-cubin", "0.6.14"), make_wheel(tmp_path, "part-cu12", "1"))
    assert list(gates.errors("wheel-set")) == ["flashinfer-cubin: version", "odd: pre-release 1.0rc1",
                                               "torchvision: torch"]
    assert list(warnings(gates)) == ["part: CUDA 13"]


def generated_by(version: str) -> bytes:
    return f"_v.ValidateProtobufRuntimeVersion(\n  _v.Domain.PUBLIC,\n  {version},\n  '',\n  'x.proto')".encode()


def test_generated_code_that_the_protobuf_of_the_set_refuses(gates: Gates, tmp_path: Path) -> None:
    protobuf = make_wheel(tmp_path, "protobuf", "6.33.5", files={"google/any_pb2.py": generated_by("6, 33, 5")})
    good = make_wheel(tmp_path, "good", "1", files={"good/a_pb2.py": generated_by("5, 29, 0"), "good/b_pb2.py": b""})
    gates.layer("deps", protobuf, good)
    assert gates.errors("wheel-set") == {}
    gates.layer("vllm", make_wheel(tmp_path, "bad", "1", files={"bad/a_pb2.py": generated_by("6, 33, 6")}))
    [(subject, message)] = gates.errors("wheel-set").items()
    assert subject == "bad/a_pb2.py: protobuf"
    assert "gencode 6.33.6 runtime 6.33.5" in message


@pytest.mark.parametrize("marker", ['implementation_version ~= "3"', 'python_version < "x.y"'])
def test_marker_that_cannot_be_judged_is_said(gates: Gates, tmp_path: Path, marker: str) -> None:
    """packaging raises for some: a finding, no traceback."""
    gates.layer("deps", make_wheel(tmp_path, "odd", "1", files={"odd.py": b""}, requires=[f"other; {marker}"]))
    for message in gates.errors("wheel-set").values():
        assert "cannot be judged" in message or "requires other" in message
