"""Checks device-code and ptx-floor, on extensions that nvcc 13.0 compiled for this and that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cache.store import Store
from checks import baseline, facts
from checks.kernels import cubin_arch
from checks.loadability import Way
from tests.support.cuda import toolkit
from tests.support.extensions import extensions, without_sections
from tests.support.front import HERE
from tests.support.gates import SITE, Gates

MAIN = "vllm/_C_stable_libtorch.abi3.so"
MOE = "vllm/_moe_C_stable_libtorch.abi3.so"
FA2 = "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"
REQUIRED = (MAIN, MOE, FA2)
NO_IMAGE = "no kernel image is available for execution on the device"

#: Name to what each of its kernels is compiled for. Plain `compute_80` becomes PTX of ISA 9.0.
SAMPLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "all": (("sm_80", "sm_110", "sm_120f", "compute_80"), ("sm_110f", "sm_120")),
    "sm80": (("sm_80",), ("sm_80",)),
    "ptx": (("sm_80", "compute_80"), ("compute_80",)),
    "thor": (("sm_110a",), ("sm_110",)),
    "ga120": (("sm_120a",), ("sm_120a",)),
    "gb10": (("sm_121a",), ("sm_121",)),
    "halved": (("sm_110", "sm_120"), ("sm_120",)),
    "later": (("compute_110",), ("sm_110", "compute_120")),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    scratch = tmp_path_factory.mktemp("extensions")
    found = extensions(toolkit(), scratch, dict(SAMPLES))
    found["stripped"] = without_sections(scratch / "stripped", found["all"], ".nv_fatbin", ".nvFatBinSegment")
    found["unregistered"] = without_sections(scratch / "unregistered", found["all"], ".nvFatBinSegment")
    found["cut"] = found["all"][:len(found["all"]) // 2]
    return found


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(Store.open(tmp_path / "store"))


def put(gates: Gates, made: dict[str, bytes], name: str = "all", **odd: str) -> None:
    """A vLLM layer of which all extensions are the sample `name`, but for `main`, `moe`, `fa2`."""
    files = {MAIN: odd.get("main", name), MOE: odd.get("moe", name), FA2: odd.get("fa2", name)}
    gates.files("vllm", {f"{SITE}/{file}": made[sample] for file, sample in files.items()}, {"vllm": "0.32.0"})


def device(gates: Gates, **fields: str) -> None:
    gates.target["device"].update(fields)


def notes(gates: Gates, check: str, severity: str = "info") -> dict[str, str]:
    return {one.subject: one.message for one in gates.judge(check).findings if one.severity == severity}


# -- device-code ----------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", ["11.0", "12.0", "12.1", "8.0"])
def test_all_have_code(gates: Gates, made: dict[str, bytes], capability: str) -> None:
    put(gates, made, fa2="ptx")
    device(gates, compute_capability=capability)
    # `second` has nothing for 8.0.
    assert set(gates.errors("device-code")) == ({f"{MAIN}: second", f"{MOE}: second"} if capability == "8.0" else set())


def test_how_well_is_told(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made, fa2="ptx")
    assert notes(gates, "device-code") == {MAIN: "2 native", MOE: "2 native", FA2: "2 ptx"}
    device(gates, compute_capability="12.1")
    assert notes(gates, "device-code")[MAIN] == "1 family, 1 same major"


@pytest.mark.parametrize(("sample", "capability"), [
    ("sm80", "11.0"), ("sm80", "12.1"), ("ga120", "12.1"), ("gb10", "12.0"), ("thor", "12.1"), ("ga120", "11.0")])
def test_an_extension_for_other_devices(gates: Gates, made: dict[str, bytes], sample: str, capability: str) -> None:
    """vllm#39233 (0.19 without sm_110), and sm_120a on 12.1, which no tool calls wrong."""
    put(gates, made, moe=sample)
    device(gates, compute_capability=capability)
    found = gates.errors("device-code")
    assert list(found) == [MOE]
    assert f"none of its 2 kernels has code for compute capability {capability}" in found[MOE]
    assert NO_IMAGE in found[MOE]


@pytest.mark.parametrize(("sample", "capability"), [("thor", "11.0"), ("ga120", "12.0"), ("gb10", "12.1")])
def test_the_same_on_its_own_device(gates: Gates, made: dict[str, bytes], sample: str, capability: str) -> None:
    put(gates, made, moe=sample)
    device(gates, compute_capability=capability)
    assert gates.errors("device-code") == {}


def test_one_kernel_without_code(gates: Gates, made: dict[str, bytes]) -> None:
    """vllm#53462: the others of the same library have code, so that a look at its architectures says all is well."""
    put(gates, made, main="halved")
    found = gates.errors("device-code")
    assert list(found) == [f"{MAIN}: second"]
    assert found[f"{MAIN}: second"].startswith("second: no code for compute capability 11.0, only for sm_120:")
    device(gates, compute_capability="12.1")
    assert gates.errors("device-code") == {}


def test_thor_and_spark_differ_over_the_same_layers(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made, fa2="thor")
    thor = gates.judge("device-code")
    device(gates, compute_capability="12.1")
    spark = gates.judge("device-code")
    assert (thor.errors, [one.subject for one in spark.errors]) == ((), [FA2])
    assert thor.key != spark.key
    device(gates, compute_capability="11.0")
    assert gates.judge("device-code").cached


def test_stripped(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made, main="stripped")
    assert "no device code at all" in gates.errors("device-code")[MAIN]


def test_code_without_registration(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made, main="unregistered")
    found = gates.errors("device-code")
    assert list(found) == [MAIN]
    assert found[MAIN].startswith("2 containers of device code, but 0 are registered")


def test_cut_off(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made, main="cut")
    assert "its device code cannot be read" in gates.errors("device-code")[MAIN]


def test_another_minor_on_tegra_is_unknown(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made, "sm80")
    device(gates, compute_capability="8.7")
    assert gates.errors("device-code") == {}
    assert "sources disagree" in notes(gates, "device-code", "warning")[MAIN]
    device(gates, compute_capability="8.6")
    assert notes(gates, "device-code", "warning") == {}


def test_policy_native(gates: Gates, made: dict[str, bytes]) -> None:
    """What a source build with flash-attention for the device gives, and the published wheel does not."""
    put(gates, made, fa2="ptx")
    gates.target["device_code"] = {"policy": "native"}
    assert list(gates.errors("device-code")) == [FA2]
    put(gates, made, fa2="all", moe="ptx")
    assert gates.errors("device-code") == {}


def test_what_does_not_serve_the_device_is_told(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made)
    fa3, new = "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so", "vllm/_new_C.abi3.so"
    gates.files("vllm", {**{f"{SITE}/{file}": made["all"] for file in REQUIRED},
                         f"{SITE}/{fa3}": made["sm80"], f"{SITE}/{new}": made["sm80"]}, {"vllm": "0.32.0"})
    assert gates.errors("device-code") == {}
    assert "for Hopper" in notes(gates, "device-code")[fa3]
    assert list(notes(gates, "device-code", "warning")) == [new]


def test_a_library_that_only_another_device_needs(gates: Gates, made: dict[str, bytes]) -> None:
    kda, qutlass = "vllm/_flashkda_C.abi3.so", "vllm/_qutlass_C.abi3.so"
    gates.files("vllm", {**{f"{SITE}/{file}": made["all"] for file in REQUIRED},
                         f"{SITE}/{kda}": made["sm80"], f"{SITE}/{qutlass}": made["sm80"]}, {"vllm": "0.32.0"})
    assert gates.errors("device-code") == {}
    device(gates, compute_capability="12.1")
    assert list(gates.errors("device-code")) == [kda]
    assert "sm_100f only" in notes(gates, "device-code")[qutlass]


def test_torch_must_have_something(gates: Gates, made: dict[str, bytes]) -> None:
    path = f"{SITE}/torch/lib/libtorch_cuda.so"
    gates.files("torch", {path: made["thor"]}, {"torch": "2.13.0"})
    gates.files("cuda", {f"{SITE}/nvidia/cu13/lib/libcufft.so.12": made["sm80"]}, {"nvidia-cufft": "12"})
    assert gates.errors("device-code") == {}
    assert "parts for 11.0: 2 nothing; compiled for sm_80" in notes(gates, "device-code")[
        "nvidia/cu13/lib/libcufft.so.12"]
    device(gates, compute_capability="12.1")
    assert list(gates.errors("device-code")) == ["torch/lib/libtorch_cuda.so"]
    device(gates, compute_capability="11.0")
    gates.files("torch", {path: made["stripped"]}, {"torch": "2.13.0"})
    assert "no device code at all" in gates.errors("device-code")["torch/lib/libtorch_cuda.so"]


def test_a_driver_of_which_nobody_knows_what_it_compiles(gates: Gates, made: dict[str, bytes]) -> None:
    gates.files("torch", {f"{SITE}/torch/lib/libtorch_cuda.so": made["ptx"]}, {"torch": "2.13.0"})
    device(gates, cuda="13.4")
    assert gates.errors("device-code") == {}
    assert "parts for 11.0: 2 unknown" in notes(gates, "device-code")["torch/lib/libtorch_cuda.so"]
    assert list(gates.errors("ptx-floor")) == ["driver"]


def test_cubins_that_are_files_are_told(gates: Gates, tmp_path: Path) -> None:
    """flashinfer#3344: a package of cubins for sm_100f only."""
    (tmp_path / "a.cu").write_text('extern "C" __global__ void fill(float *x) { *x = 1; }')
    files = {f"{SITE}/flashinfer_cubin/cubins/odd.cubin": b"not one"}
    for target in ("sm_90", "sm_100f", "sm_110a", "sm_120"):
        toolkit().nvcc("-cubin", f"-arch={target}", "a.cu", "-o", f"{target}.cubin", cwd=tmp_path)
        files[f"{SITE}/flashinfer_cubin/cubins/{target}/x.cubin"] = (tmp_path / f"{target}.cubin").read_bytes()
    gates.files("deps", files, {"flashinfer-cubin": "0.6.8"})
    assert notes(gates, "device-code") == {
        "flashinfer_cubin": "4 cubins as files, compiled for sm_90 1, sm_100 1, sm_110 1, sm_120 1: "
                            "1 of them may serve 11.0"}
    del files[f"{SITE}/flashinfer_cubin/cubins/sm_110a/x.cubin"]
    gates.files("deps", files, {"flashinfer-cubin": "0.6.8"})
    assert notes(gates, "device-code")["flashinfer_cubin"].endswith("none of them may serve 11.0")


@pytest.mark.parametrize(("abi", "flags", "arch"), [
    (7, 0x005A055A, 90), (7, 0x00500550, 80), (8, 0x06006402, 100), (8, 0x0600790A, 121)])
def test_architecture_of_a_cubin(abi: int, flags: int, arch: int) -> None:
    """Headers as toolkits 12.4 and 12.9 write them."""
    header = bytearray(64)
    header[:9] = b"\x7fELF\2\1\1\x33" + bytes([abi])
    header[18:20], header[48:52] = (190).to_bytes(2, "little"), flags.to_bytes(4, "little")
    assert cubin_arch(bytes(header)) == arch
    header[18] = 62
    assert cubin_arch(bytes(header)) is None
    assert cubin_arch(bytes(header[:50])) is None


def test_a_version_that_is_not_known(gates: Gates, made: dict[str, bytes]) -> None:
    gates.files("vllm", {f"{SITE}/{MAIN}": made["all"]}, {"vllm": "0.25.0"})
    assert list(gates.errors("device-code")) == ["vllm"]


def test_without_a_gpu_nothing_is_asked(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made, "sm80")
    device(gates, compute_capability="none", cuda="none")
    assert (gates.judge("device-code").findings, gates.judge("ptx-floor").findings) == ((), ())


# -- what is known to be left out -----------------------------------------------------------------


def test_noted_kernels_pass_and_new_ones_do_not(gates: Gates, made: dict[str, bytes], tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "0.32.0.yaml"
    monkeypatch.setattr(facts, "baseline_of", lambda version: table)
    facts._digest.cache_clear()
    put(gates, made, main="halved")
    assert list(gates.errors("device-code")) == [f"{MAIN}: second"]
    assert "leaves out for 11.0 is not known" in notes(gates, "device-code", "warning")[MAIN]
    def note(kernel: str) -> str:
        devices = {"11.0": {MAIN: {kernel: [baseline.note_of(kernel)]}}}
        return baseline.text({"version": "0.32.0", "source": "test", "devices": devices})

    table.write_text(note("second"))
    assert baseline.command("0.32.0", "12.1").split()[3:] == ["WHEEL", "--capability", "11.0", "--capability", "12.1"]
    assert gates.errors("device-code") == {}
    assert notes(gates, "device-code")[MAIN] == "1 native, 1 no code, as known"
    table.write_text(note("third"))
    facts._digest.cache_clear()
    assert list(gates.errors("device-code")) == [f"{MAIN}: second"]
    facts._digest.cache_clear()


def test_a_table_is_made_of_a_wheel(made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.wheel_factory import make_wheel

    monkeypatch.setattr(facts, "baseline_of", lambda version: tmp_path / "out" / f"{version}.yaml")
    files = {MAIN: made["halved"], MOE: made["all"], FA2: made["ptx"]}
    wheel = make_wheel(tmp_path, "vllm", "0.32.0", tag="cp38-abi3-manylinux_2_28_aarch64", files=files)
    assert baseline.main([str(wheel)]) == 0
    assert baseline.noted("0.32.0", "11.0") == {MAIN: frozenset({baseline.note_of("second")})}
    assert baseline.noted("0.32.0", "12.1") == {}
    assert baseline.noted("0.32.0", "9.0") is None


def test_a_wheel_for_other_devices_is_no_baseline(made: dict[str, bytes], tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.wheel_factory import make_wheel

    monkeypatch.setattr(facts, "baseline_of", lambda version: tmp_path / f"{version}.yaml")
    wheel = make_wheel(tmp_path, "vllm", "0.32.0", tag="cp38-abi3-manylinux_2_28_aarch64", files={MAIN: made["sm80"]})
    with pytest.raises(SystemExit, match="not compiled for"):
        baseline.main([str(wheel)])
    assert not (tmp_path / "0.32.0.yaml").exists()


@pytest.mark.parametrize("version", ["0.19.1", "0.20.0", "0.26.0", "0.32.0", "0.33.0"])
def test_shipped_tables(version: str) -> None:
    table = yaml.safe_load(facts.baseline_of(version).read_text(encoding="utf-8"))
    assert (table["format"], table["version"]) == (baseline.FORMAT, version)
    assert version in table["source"]
    assert baseline.noted(version, "12.1") is not None
    # 0.19.1 was compiled by CUDA 12.9, which knows no Thor: what it lacks there must not be excused.
    assert (baseline.noted(version, "11.0") is None) == (version == "0.19.1")
    assert facts.baseline_of(f"{version}+cu130") == facts.baseline_of(version)
    assert facts.baseline_of(version).parent == HERE / "vllm" / "kernels-without-code"


@pytest.mark.parametrize(("kernel", "function"), [
    ("fill", "fill"), ("_Z5scaleIfEvPT_S0_", "scale"),
    ("_ZN7cutlass13device_kernelINS_4gemmEEEvT_", "cutlass::device_kernel"),
    ("_ZN59_GLOBAL__N__77034d04_26_fused_kda_decode_kernel_cu_652fd05d3fooILb0EEEvv", "(anonymous)::foo"),
    ("_Z", "_Z"), ("_ZN", "_ZN"), ("_ZN99x", "x")])
def test_function_of(kernel: str, function: str) -> None:
    assert baseline.function_of(kernel) == function


def test_stable_names() -> None:
    """The same kernel of two builds: nvcc hashes the path of the source, and may add its process id."""
    one = "_ZN59_GLOBAL__N__77034d04_26_fused_kda_decode_kernel_cu_652fd05d4kdasILb0EEEvv"
    two = "_ZN65_GLOBAL__N__88888888_26_fused_kda_decode_kernel_cu_11111111_214704kdasILb0EEEvv"
    other = one.replace("ILb0E", "ILb1E")
    assert baseline.stable_name(one) == "_ZN<fused_kda_decode_kernel_cu>4kdasILb0EEEvv"
    assert baseline.stable_name(one) == baseline.stable_name(two) != baseline.stable_name(other)
    assert baseline.stable_name(f"_ZN4foo2{one[3:]}") == baseline.stable_name(f"_ZN4foo2{two[3:]}")


@pytest.mark.parametrize("name", [
    "_Z4fillPf", "_ZN3_GLOBAL__N__x", "_ZN999_GLOBAL__N__x", "0_GLOBAL__N__", "_GLOBAL__N__", "",
    "_ZN40_GLOBAL__N__this_is_not_what_nvcc_makes_x1x"])
def test_names_that_stay(name: str) -> None:
    assert baseline.stable_name(name) == name


# -- ptx-floor ------------------------------------------------------------------------------------


def test_ptx_that_the_driver_takes(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made, fa2="ptx")
    assert gates.errors("ptx-floor") == {}
    assert notes(gates, "ptx-floor") == {
        FA2: "2 kernels are compiled by the driver, from PTX of ISA 9.0 at most; it takes 9.0"}


def test_ptx_that_is_newer_than_the_driver(gates: Gates, made: dict[str, bytes]) -> None:
    """vllm#38411: flash-attention by a later toolkit than the driver's."""
    put(gates, made, fa2="ptx")
    device(gates, cuda="12.9", driver_floor="575")
    found = gates.errors("ptx-floor")
    assert list(found) == [FA2]
    assert "asks for a driver newer than CUDA 12.9's (575): 2 of its kernels, first among them" in found[FA2]
    assert "cudaErrorUnsupportedPtxVersion" in found[FA2]
    cure = next(one.cure for one in gates.judge("ptx-floor").errors)
    assert "CUDA 13.0 (driver 580.65.06)" in cure
    # That the code is there is another question.
    assert gates.errors("device-code") == {}


def test_newer_ptx_beside_machine_code_is_never_compiled(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made)
    device(gates, cuda="12.9")
    assert gates.errors("ptx-floor") == {}
    device(gates, compute_capability="9.0")  # `first` has PTX only then
    assert set(gates.errors("ptx-floor")) == set(REQUIRED)


def test_ptx_for_a_later_device_is_never_compiled(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made, fa2="later")
    device(gates, cuda="12.9", compute_capability="11.0")
    assert list(gates.errors("ptx-floor")) == [FA2]
    assert "1 of its kernels, first among them" in gates.errors("ptx-floor")[FA2]


def test_other_libraries_are_warned_of(gates: Gates, made: dict[str, bytes]) -> None:
    gates.files("deps", {f"{SITE}/odd/lib.so": made["ptx"]}, {"odd": "1"})
    assert gates.judge("ptx-floor").findings == ()
    device(gates, cuda="12.9")
    assert "2 of its 2 parts have only PTX of ISA 9.0" in notes(gates, "ptx-floor", "warning")["odd/lib.so"]


def test_a_driver_that_is_not_known(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made)
    device(gates, cuda="19.7")
    assert list(gates.errors("ptx-floor")) == ["driver"]


# -- reading --------------------------------------------------------------------------------------


def test_a_library_is_read_once(gates: Gates, made: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    from checks import kernels

    put(gates, made)
    read: list[Any] = []
    real = kernels.read_code
    monkeypatch.setattr(kernels, "read_code", lambda stream: read.append(1) or real(stream))
    gates.judge("device-code")
    device(gates, compute_capability="12.1")
    gates.judge("device-code")
    assert read == [1]  # the three files are one content


def test_facts_survive_the_store(gates: Gates, made: dict[str, bytes]) -> None:
    import io

    from checks.kernels import pack, read_code, unpack
    from checks.loadability import Device

    code = read_code(io.BytesIO(made["all"]))
    assert unpack(pack(code)) == code
    assert code.targets == {"sm_80": 1, "sm_110": 1, "sm_120f": 1, "compute_80@9.0": 1, "sm_110f": 1, "sm_120": 1}
    assert code.ways(Device("11.0", "9.0")) == {"first": Way.NATIVE, "second": Way.NATIVE}


def test_parts_for_the_linker_are_no_code_for_a_driver(tmp_path: Path) -> None:
    """Relocatable code and IR: nothing loads them as they are. The linker makes a container of its own of them."""
    import io

    from checks.kernels import read_code
    from checks.loadability import Device

    (tmp_path / "a.cu").write_text('extern "C" __global__ void fill(float *x) { *x = 1; }\nint main() { }')
    for name, options in {"part": ("-c", "-rdc=true"), "ir": ("-c", "-dlto"), "linked": ("-rdc=true",)}.items():
        toolkit().nvcc(*options, "-arch=sm_110a", "a.cu", "-o", name, cwd=tmp_path)
    device = Device("11.0", "9.0")
    part, ir, linked = (read_code(io.BytesIO((tmp_path / name).read_bytes())) for name in ("part", "ir", "linked"))
    assert (part.pieces, ir.pieces) == ((), ())
    assert {piece.target for container in part.containers for piece in container} >= {"relocatable sm_110a"}
    assert set(part.ways(device).values()) == {Way.NONE}
    assert linked.ways(device) == {"fill": Way.NATIVE}
    assert linked.targets["sm_110a"] == 1
