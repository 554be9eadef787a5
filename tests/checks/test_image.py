"""Gate image: a good image passes, and for each thing that is looked for a bad twin does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cache.build import BuildContext
from cache.layer import LayerReader
from cache.store import Store
from checks import facts
from checks.image import layers, runtimes
from checks.image_environment import preloads, requirements, shadows
from checks.registry import LAYER_STAGES
from checks.secrets import configuration, harmless
from oci.image import build
from tests.support.gates import SITE, Gates
from tests.support.pytriton import make_pytriton
from tests.support.wheel_factory import make_wheel, sha256_of

ENVIRONMENT = {"PATH": "/usr/bin", "NVIDIA_VISIBLE_DEVICES": "all", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    found = Gates(Store.open(tmp_path / "store"))
    found.target["device"] |= {"name": "Jetson Thor", "arch_list": "11.0a", "driver_floor": "580"}
    found.lock |= {"target": "small", "debs": []}
    found.files("base", {"usr/bin/python3.11": b"x", "usr/lib/libtcmalloc.so.4": b"x"})
    found.lock["wheels"] = []
    return found


def wheels(gates: Gates, stage: str, *files: Path) -> None:
    known = len(gates.lock["wheels"])
    gates.layer(stage, *files)
    gates.lock["wheels"][known:] = [
        {**entry, "file": path.name, "sha256": sha256_of(path)}
        for entry, path in zip(gates.lock["wheels"][known:], files, strict=True)]


def finish(gates: Gates, environment: Mapping[str, str] | None = None, *, labels: Mapping[str, str] | None = None,
           **params: Any) -> None:
    """The image over the layers, as its stage makes it."""
    stages = [stage for stage in LAYER_STAGES if f"{stage}/layer" in gates.outputs]
    versions = {wheel["name"]: wheel["version"] for wheel in gates.lock["wheels"]}
    written = facts.image(gates.target, gates.lock)["labels"] | {
        f"io.stagecraft.{name}": versions[name] for name in ("torch", "vllm") if name in versions}
    if "triton" in stages:
        written["io.stagecraft.triton"] = "2.51.0"
    made = build(BuildContext(
        gates.store, {"environment": ENVIRONMENT | dict(environment or {}), "labels": written | dict(labels or {}),
                      **params},
        {f"layers/{number:02}-{stage}": gates.outputs[f"{stage}/layer"] for number, stage in enumerate(stages)},
        {"os": "linux", "architecture": "arm64"}))
    gates.outputs.update({f"image/{name}": blob.digest for name, blob in made.items()})


def found(gates: Gates, severity: str = "error") -> dict[str, str]:
    return {finding.subject: finding.message for finding in gates.judge("image").findings
            if finding.severity == severity}


def test_good_image(gates: Gates, tmp_path: Path) -> None:
    wheels(gates, "torch", make_wheel(tmp_path, "torch", "2.13.0"))
    wheels(gates, "vllm", make_wheel(tmp_path, "vllm", "0.32.0", entry_points={"vllm": "vllm:main"}))
    gates.triton(make_pytriton(tmp_path))
    finish(gates, {"LD_PRELOAD": "libtcmalloc.so.4:/usr/lib/libtcmalloc.so.4", "NVIDIA_REQUIRE_CUDA": "cuda>=13.0",
                   "HF_TOKEN": "", "SSL_CERT_FILE": "/etc/x", "API_KEY": "/run/secrets/key", "PYTHONPATH": f"/{SITE}"})
    assert gates.judge("image").findings == ()


@pytest.mark.parametrize(("environment", "subject"), [
    ({"HF_TOKEN": "hunter2"}, "secret: HF_TOKEN"), ({"PYTHONPATH": "/workspace"}, "PYTHONPATH: six"),
    ({"LD_PRELOAD": "libjemalloc.so.2"}, "LD_PRELOAD: libjemalloc.so.2"),
    ({"NVIDIA_REQUIRE_CUDA": "cuda>=13.3"}, "NVIDIA_REQUIRE_CUDA"),
    ({"FLASHINFER_DISABLE_VERSION_CHECK": "1"}, "environment: FLASHINFER_DISABLE_VERSION_CHECK")])
def test_bad_environment(gates: Gates, tmp_path: Path, environment: dict[str, str], subject: str) -> None:
    wheels(gates, "deps", make_wheel(tmp_path, "six", "1"))
    gates.files("base", {"usr/bin/python3.11": b"", "workspace/six.py": b""})
    del gates.lock["wheels"][1:]
    finish(gates)
    assert found(gates) == {}
    finish(gates, environment)
    assert list(found(gates)) == [subject]


def test_runtime_in_a_layer(gates: Gates) -> None:
    gates.files("base", {"usr/bin/python3.11": b"", "usr/local/cuda/lib64/libcudart.so.13.3.29": b""})
    finish(gates)
    assert list(found(gates)) == ["driver: libcudart.so.13.3.29"]


# -- secrets ------------------------------------------------------------------------------------------------------


RULES = {key: facts._table("checks/data/secrets.yaml")[key] for key in ("names", "shapes", "files", "read")}


@pytest.mark.parametrize("name", [
    "TWINE_PASSWORD", "PIP_UPLOAD_PASS", "SCP_UPLOAD_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID",
    "OPENAI_API_KEY", "db.passwd", "CLIENT_SECRET", "APIKEY"])
def test_name_of_a_secret_with_a_value(name: str) -> None:
    [finding] = configuration({"config": {"Env": [f"{name}=s3same-open"]}}, RULES)
    assert finding.subject == f"secret: {name}"
    assert "s3same" not in str(vars(finding))
    assert not configuration({"config": {"Env": [f"{name}="]}}, RULES)
    assert configuration({"config": {"Labels": {name: "s3same-open"}}}, RULES)[0].subject == f"secret: label {name}"


@pytest.mark.parametrize("name", [
    "TOKENIZERS_PARALLELISM", "PASSTHROUGH", "KEYBOARD", "SSH_AUTH_SOCK", "MONKEY", "COMPASS", "VLLM_API_KEY_FILE",
    "GPG_KEY"])
def test_name_that_only_looks_like_one(name: str) -> None:
    assert not configuration({"config": {"Env": [f"{name}=something"]}}, RULES)


def test_values_that_are_no_secrets() -> None:
    assert all(map(harmless, ["", "1", "true", "${TOKEN}", "$TOKEN", "/run/secrets/token", "<your token>", "xxxx",
                              "****"]))
    assert all(map(harmless, ["$(cat /run/secrets/token)", "$(</run/secrets/token)", "`cat", "$(cat", "${TOKEN:-}"]))
    assert not any(map(harmless, ["$(echo hunter2)", "${TOKEN:-hunter2}", "$(category)"]))
    assert not any(map(harmless, ["hunter2", "/9j4AAQ", "trueish", "a/b"]))


@pytest.mark.parametrize("value", [
    "ghp_" + "a1B2" * 9, "hf_" + "aBcD" * 8 + "xY", "AKIA" + "Q3EG" * 4, "pypi-AgEIcHlwaS5vcmc" + "x" * 60,
    "dckr_pat_" + "y" * 27, "-----BEGIN OPENSSH PRIVATE KEY-----", "https://me:s3same@index.example/simple"])
def test_shape_of_a_token_wherever_it_stands(value: str) -> None:
    for config, subject in (
            ({"config": {"Env": [f"ANYTHING={value}"]}}, "secret: ANYTHING"),
            ({"config": {"Cmd": ["serve", "--with", value]}}, "secret: command"),
            ({"config": {"Entrypoint": [value]}}, "secret: entrypoint"),
            ({"history": [{}, {"created_by": f"RUN use {value}"}]}, "secret: history 1"),
            ({"history": [{"comment": value}]}, "secret: history 0")):
        assert [finding.subject for finding in configuration(config, RULES)] == [subject]


@pytest.mark.parametrize("value", [
    "https://index.example/simple", "https://${USER}:${PASS}@index.example", "me@example.org", "sha256:" + "a" * 64,
    "hf_transfer", "git@example.org:x/y"])
def test_what_has_no_such_shape(value: str) -> None:
    assert not configuration({"config": {"Env": [f"ANYTHING={value}"], "Cmd": [value]}}, RULES)


@pytest.mark.parametrize(("text", "answer"), [
    ("|1 TWINE_PASSWORD=hunter2 /bin/sh -c twine upload", True), ("login --token hunter2", True),
    ("login --api-key=hunter2", True), ("serve --token-limit 5 --tokenizer x", False), ("ENV TWINE_PASSWORD=", False),
    ("x TWINE_PASSWORD=$TWINE_PASSWORD y", False), ("RUN --mount=type=secret,id=token cat", False)])
def test_secrets_in_a_command_line(text: str, answer: bool) -> None:
    assert bool(configuration({"history": [{"created_by": text}]}, RULES)) is answer


def test_files_that_hold_secrets(gates: Gates) -> None:
    gates.files("base", {"usr/bin/python3.11": b"", "root/.netrc": b"", "etc/pip.conf": b"index-url=https://a:b@x.example/",
                         "home/x/.ssh/id_rsa": b"", "home/x/.ssh/known_hosts": b"", "etc/apt/sources.list": b"deb x"})
    gates.lock["wheels"] = []
    finish(gates)
    assert list(found(gates)) == ["secret: /etc/pip.conf", "secret: /home/x/.ssh/id_rsa", "secret: /root/.netrc"]
    assert found(gates)["secret: /etc/pip.conf"] == "holds an address with a password"


# -- layers and environment ---------------------------------------------------------------------------------------


def test_number_of_layers() -> None:
    def image(count: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return ({"config": {"digest": "d"}, "layers": [{}] * count}, {"rootfs": {"diff_ids": ["x"] * count}})

    assert layers(*image(127), "d", ["x"]) == []
    [finding] = layers(*image(128), "d", ["x"])
    assert (finding.subject, "max depth exceeded" in finding.message) == ("layers", True)


def test_manifest_of_other_parts() -> None:
    manifest, config = {"config": {"digest": "d"}, "layers": [{}, {}]}, {"rootfs": {"diff_ids": ["a", "b"]}}
    assert layers(manifest, config, "d", ["b"]) == []
    assert [f.subject for f in layers(manifest, config, "e", ["b"])] == ["manifest"]
    assert [f.subject for f in layers(manifest, config, "d", ["a"])] == ["manifest"]
    assert [f.subject for f in layers({**manifest, "layers": [{}]}, config, "d", ["b"])] == ["manifest"]


@pytest.mark.parametrize(("name", "bad", "good", "severity"), [
    ("FLASHINFER_DISABLE_VERSION_CHECK", "1", "", "error"),
    ("TEMPORARILY_DISABLE_PROTOBUF_VERSION_CHECK", "true", "false", "error"),
    ("NVIDIA_DISABLE_REQUIRE", "true", "0", "error"),
    ("VLLM_USE_PRECOMPILED", "1", "0", "error"),
    ("SETUPTOOLS_SCM_PRETEND_VERSION_FOR_VLLM", "1.0", "", "warning"),
    ("LD_LIBRARY_PATH", "/a:/usr/local/cuda/lib64/stubs", "/usr/lib/stubsy:/a", "error"),
    ("VLLM_WORKER_MULTIPROC_METHOD", "fork", "spawn", "warning"),
    ("PYTHONHOME", "/usr", "", "warning")])
def test_variables_that_hide_problems(gates: Gates, name: str, bad: str, good: str, severity: str) -> None:
    finish(gates, {name: good})
    assert gates.judge("image").findings == ()
    finish(gates, {name: bad})
    assert list(found(gates, severity)) == [f"environment: {name}"]


@pytest.mark.parametrize(("name", "value", "answer"), [
    ("TORCH_CUDA_ARCH_LIST", "11.0a", True), ("TORCH_CUDA_ARCH_LIST", "10.0;11.0+PTX", True),
    ("FLASHINFER_CUDA_ARCH_LIST", "10.0a 11.0f", True), ("FLASHINFER_CUDA_ARCH_LIST", "", True),
    ("TORCH_CUDA_ARCH_LIST", "12.0", False), ("FLASHINFER_CUDA_ARCH_LIST", "10.0a 12.1a", False)])
def test_list_of_architectures_that_leaves_out_the_device(gates: Gates, name: str, value: str, answer: bool) -> None:
    finish(gates, {name: value})
    assert list(found(gates)) == ([] if answer else [f"environment: {name}"])


def test_every_variable_of_the_table_has_a_source() -> None:
    rows = facts._table("checks/data/environment.yaml")["variables"]
    assert len(rows) > 5
    for row in [*rows, *RULES["names"], *RULES["shapes"], *RULES["files"]]:
        assert row["source"]


def test_module_in_pythonpath_that_hides_a_wheel_s() -> None:
    paths = {f"{SITE}/torch/__init__.py", f"{SITE}/six.py", f"{SITE}/torch-2.dist-info/RECORD", "workspace/torch/x.py",
             "workspace/six.py", "workspace/mine.py", "workspace/torch-2.dist-info/RECORD", "workspace/README.md"}
    assert [one.subject for one in shadows({"PYTHONPATH": "/workspace:/none"}, paths, SITE)] == [
        "PYTHONPATH: six", "PYTHONPATH: torch"]
    for good in ("", f"/{SITE}", "/elsewhere", f"/{SITE}/"):
        assert shadows({"PYTHONPATH": good}, paths, SITE) == []


def test_library_of_ld_preload_that_is_not_there() -> None:
    paths = {"usr/lib/libtcmalloc.so.4"}
    assert preloads({"LD_PRELOAD": "/usr/lib/libtcmalloc.so.4 libtcmalloc.so.4"}, paths) == []
    bad = preloads({"LD_PRELOAD": "/usr/lib/libjemalloc.so.2:libx.so"}, paths)
    assert [one.subject for one in bad] == ["LD_PRELOAD: /usr/lib/libjemalloc.so.2", "LD_PRELOAD: libx.so"]
    assert "cannot be preloaded: ignored" in bad[0].message


# -- driver -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "answer"), [
    ("cuda>=13.0", True), ("cuda>=12.4 brand=tesla,driver>=470,driver<471", True), ("driver>=580", True), ("", True),
    ("cuda>=13.3", False), ("cuda>=13.3 brand=tesla,driver>=535,driver<536", False), ("driver>=610", False),
    ("cuda>=13.3 driver>=580,driver<581", True), ("cuda>=13.0,driver>=610", False), ("driver>=580.95.05", False),
    ("brand=jetson", False), ("nonsense", False), ("cuda>=a.b", False)])
def test_required_driver(text: str, answer: bool) -> None:
    judged = requirements({"NVIDIA_REQUIRE_CUDA": text, "PATH": "x"}, "13.0", "580")
    assert (not judged) is answer
    if judged:
        assert "asks for a newer driver than the device has (CUDA 13.0, driver 580)" in judged[0].message
        assert "unsatisfied condition" in judged[0].message


def test_runtime_that_is_newer_than_the_driver_s() -> None:
    good = ["a/libcudart.so.13", "a/libcudart.so.13.0.96", "b/libcudart-f795754c.so.12.9.79", "c/libcudart.so.13.3.txt"]
    assert runtimes(good, "13.0", "580") == []
    bad = runtimes(["usr/local/cuda/lib64/libcudart.so.13.3.29", "b/libcudart-0123abcd.so.14.0.1"], "13.0", "580")
    assert [one.subject for one in bad] == ["driver: libcudart-0123abcd.so.14.0.1", "driver: libcudart.so.13.3.29"]


def test_target_without_cuda_is_asked_for_no_driver(gates: Gates) -> None:
    gates.target["device"] = {"cuda": "none", "driver_floor": "none"}
    finish(gates, {"NVIDIA_REQUIRE_CUDA": "cuda>=99", "NVIDIA_VISIBLE_DEVICES": ""})
    assert gates.judge("image").findings == ()


def test_no_visible_device_is_told(gates: Gates) -> None:
    finish(gates, {"NVIDIA_VISIBLE_DEVICES": ""})
    assert list(found(gates, "warning")) == ["NVIDIA_VISIBLE_DEVICES"]


# -- labels, lock, RECORD -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [
    "io.stagecraft.torch", "io.stagecraft.lock", "io.stagecraft.cuda",
    "io.stagecraft.arch-list", "io.stagecraft.driver-floor", "io.stagecraft.triton"])
def test_label_that_is_not_true(gates: Gates, tmp_path: Path, label: str) -> None:
    wheels(gates, "torch", make_wheel(tmp_path, "torch", "2.13.0"))
    finish(gates, labels={label: "9.9"})
    assert list(found(gates)) == [f"label: {label}"]
    assert "says 9.9" in found(gates)[f"label: {label}"]


def test_label_of_a_version_in_another_spelling_is_true(gates: Gates, tmp_path: Path) -> None:
    wheels(gates, "torch", make_wheel(tmp_path, "torch", "2.13.0"))
    finish(gates, labels={"io.stagecraft.torch": "2.13"})
    assert found(gates) == {}


def test_label_of_a_python_that_is_not_there(gates: Gates) -> None:
    gates.files("base", {"usr/bin/python3.12": b""})
    gates.lock["wheels"] = []
    finish(gates)
    assert list(found(gates)) == ["label: io.stagecraft.python"]


def test_layer_of_another_lock(gates: Gates, tmp_path: Path) -> None:
    wheels(gates, "deps", make_wheel(tmp_path, "six", "1"), make_wheel(tmp_path, "seven", "1"))
    gates.lock["wheels"][0]["sha256"] = "0" * 64
    gates.lock["wheels"][1] |= {"file": "seven-2-py3-none-any.whl"}
    finish(gates)
    assert found(gates) == {
        "lock: seven-1-py3-none-any.whl": "a layer has it, the lock does not name it",
        "lock: seven-2-py3-none-any.whl": "the lock names it, no layer has it",
        "lock: six-1-py3-none-any.whl": "a layer has it with other bytes than the lock names"}


def doctored(gates: Gates, stage: str, change: Mapping[str, bytes | None]) -> None:
    """The layer of a stage with other files; its packages stay what they were."""
    with LayerReader(gates.store, gates.outputs[f"{stage}/index"]) as layer:
        content: dict[str, bytes | str] = {path: layer.read(path) for path, entry in layer.entries.items()
                                           if entry["type"] == "file"}
    for path, data in change.items():
        content.pop(f"{SITE}/{path}", None)
        if data is not None:
            content[f"{SITE}/{path}"] = data
    listed = gates.outputs[f"{stage}/packages"]
    gates.files(stage, content)
    gates.outputs[f"{stage}/packages"] = listed


@pytest.mark.parametrize(("change", "subject", "words"), [
    ({"six/x.py": b"altered"}, "record: six/x.py", "not what the RECORD of six 1 says"),
    ({"six/x.py": None}, "record: six/x.py", "missing, though the RECORD of six 1 says"),
    ({"six/stale.so": b"x", "six/stale2.so": b"x"}, "record: six/stale.so",
     "no distribution's RECORD lists it, nor 1 more of six")])
def test_files_that_are_not_those_of_the_wheel(gates: Gates, tmp_path: Path, change: dict[str, bytes | None],
                                               subject: str, words: str) -> None:
    wheels(gates, "deps", make_wheel(tmp_path, "six", "1", files={"six/x.py": b"good", "six/y.py": b""},
                                     data={"scripts/tool": b"#!python\nx"}))
    finish(gates)
    assert found(gates) == {}
    doctored(gates, "deps", change)
    finish(gates)
    assert found(gates) == {subject: words}


def test_path_of_several_wheels_that_the_target_decided(gates: Gates, tmp_path: Path) -> None:
    one = make_wheel(tmp_path, "one", "1", files={"shared.py": b"1", "a.py": b""})
    two = make_wheel(tmp_path, "two", "1", files={"shared.py": b"2", "b.py": b""})
    rule = {"path": "shared.py", "winner": "two", "reason": "it is newer"}
    gates.layer("deps", one, two, collisions=[rule])
    gates.lock["wheels"] = [{"name": path.name[:3], "version": "1", "file": path.name, "sha256": sha256_of(path)}
                            for path in (one, two)]
    finish(gates)
    assert list(found(gates)) == ["record: shared.py"]
    gates.target["wheels"]["collisions"] = [rule]
    finish(gates)
    assert found(gates) == {}


def test_exception_for_a_record_holds(gates: Gates, tmp_path: Path) -> None:
    """The builder writes a RECORD that is true where the wheel's own was not."""
    wheel = make_wheel(tmp_path, "odd", "1", files={"odd/x.so": b"altered"}, wrong_hash=["odd/x.so"])
    gates.layer("deps", wheel, records=[{"wheel": "odd", "path": "odd/*.so"}])
    gates.lock["wheels"] = [{"name": "odd", "version": "1", "file": wheel.name, "sha256": sha256_of(wheel)}]
    finish(gates)
    assert found(gates) == {}


def test_findings_are_data(gates: Gates) -> None:
    finish(gates, {"HF_TOKEN": "hunter2"})
    assert "hunter2" not in json.dumps([vars(finding) for finding in gates.judge("image").findings])


@pytest.mark.parametrize("told", ["sha256=x", "sha256=" + "é" * 3, "sha256="])
def test_hash_of_record_that_cannot_be_read_is_a_difference(told: str) -> None:
    from checks.records import _differs

    assert _differs({"type": "file", "digest": "sha256:" + "0" * 64}, told)
