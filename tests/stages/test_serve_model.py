"""`model:<target>`: a model repository by the front door; every file read by the program it is for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from cache.store import Store
from checks import facts
from stages.serve_model import lacking
from tests.support.cuda import toolkit
from tests.support.extensions import extensions, without_sections
from tests.support.front import HERE, MINI, doit, make_project
from tests.support.gates import SITE, Gates
from tests.support.models import adapter, model_directory
from tests.support.serve import module

CPU = MINI.replace("triton:\n", 'torch: {version: "2.13.0"}\nvllm: {version: "0.32.0"}\ntriton:\n')
DISCRETE = CPU.replace("memory: none", "memory: discrete")
UNIFIED = CPU.replace("memory: none", "memory: unified")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project", cpu=CPU, discrete=DISCRETE, unified=UNIFIED, bare=MINI)


def make(root: Path, target: str, *said: str, name: str = "m") -> tuple[dict[str, Any], dict[str, Any], Any]:
    """The report, model.json and config.pbtxt, which the image's entrypoint finds sound."""
    done = doit(root, root / "store", f"model:{target}", *said, f"name={name}", "--json")
    place = root / f"serve-{target}" / "models" / name
    config = model_config_pb2.ModelConfig()
    text_format.Parse((place / "config.pbtxt").read_text(), config)
    engine = json.loads((place / "1" / "model.json").read_text())
    if not engine["model"].startswith("/"):
        module("repository").check([f"--model-repository={place.parent}", "--allow-http=false", "--allow-grpc=false",
                                    "--allow-metrics=false"], place / "no-backends")
    return json.loads(done.stdout), engine, config


def refused(root: Path, *said: str, target: str = "cpu") -> str:
    done = doit(root, root / "store", f"model:{target}", *said, rc=110)
    assert done.stdout == ""
    assert not (root / f"serve-{target}").exists()
    return done.stderr


def test_a_model_of_the_hub(root: Path) -> None:
    data, engine, config = make(root, "cpu", "model=Qwen/Qwen3-8B")
    assert engine == {"model": "Qwen/Qwen3-8B", "kv_cache_memory_bytes": 4 << 30, "disable_log_stats": False}
    assert config.backend == "vllm"
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (1, model_config_pb2.ModelInstanceGroup.KIND_MODEL)]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "REPORT_CUSTOM_METRICS": "true", "TOOL_CALL_PARSER": "hermes", "REASONING_PARSER": "qwen3"}
    assert all(one["why"] for one in data["settings"])
    assert data["mounts"] == {}
    assert [file["state"] for file in data["files"]] == ["new", "new"]


def test_a_directory_with_an_adapter(root: Path) -> None:
    path = model_directory(root / "Qwen3-4B copy!")
    adapter(root / "french", 24)
    data, engine, config = make(root, "cpu", "model=Qwen3-4B copy!", "lora=fr=french", name="m")
    assert engine == {"model": "/weights/m", "max_model_len": 40960, "kv_cache_memory_bytes": 4 << 30,
                      "enable_lora": True, "max_lora_rank": 32, "disable_log_stats": False}
    place = root / "serve-cpu/models/m"
    assert json.loads((place / "1/multi_lora.json").read_text()) == {"fr": "/weights/lora/m/fr"}
    assert data["mounts"] == {"/weights/m": str(path), "/weights/lora/m/fr": str(root / "french")}
    assert json.loads((root / "serve-cpu/stagecraft.json").read_text())["mounts"] == data["mounts"]
    assert config.parameters["TOOL_CALL_PARSER"].string_value == "hermes"
    make(root, "cpu", "model=Qwen3-4B copy!", name="m")
    assert not (place / "1/multi_lora.json").exists()


def test_two_models_keep_what_each_has_mounted(root: Path) -> None:
    one, two = model_directory(root / "one"), model_directory(root / "two")
    adapter(root / "french")
    adapter(root / "frisian")
    make(root, "cpu", "model=one", "lora=fr=french", name="a")
    make(root, "cpu", "model=two", "lora=fr=frisian", name="b")
    record = root / "serve-cpu/stagecraft.json"
    assert json.loads(record.read_text())["mounts"] == {
        "/weights/a": str(one), "/weights/b": str(two), "/weights/lora/a/fr": str(root / "french"),
        "/weights/lora/b/fr": str(root / "frisian")}

    def clash(*said: str) -> str:
        return doit(root, root / "store", "model:cpu", *said, rc=110).stderr

    assert "another directory has that place in the container" in clash("model=two", "name=c", "at=/weights/a")
    assert "a place in the container is inside another one" in clash("model=two", "name=c", "at=/weights")
    assert "a place in the container is inside another one" in clash("model=two", "name=lora")
    assert "names an adapter twice" in clash("model=two", "name=c", "lora=x=french,x=frisian")
    assert not (root / "serve-cpu/models/c").exists()
    make(root, "cpu", "model=one", "at=/weights/a", name="c")  # the same directory: two names for it
    assert "another directory has that place in the container" in clash("model=two", "name=a")
    for name in ("b", "c"):
        shutil.rmtree(root / "serve-cpu/models" / name)
    make(root, "cpu", "model=two", name="a")  # another directory, and no adapter any more
    assert json.loads(record.read_text())["mounts"] == {"/weights/a": str(two)}
    doit(root, root / "store", "model:cpu", "model=a/b", "name=c")
    (root / "serve-cpu/models/c/1/model.json").write_text("{")
    assert "models/c/1/model.json" in clash("model=a/b", "name=d")


def test_its_name_and_its_text(root: Path) -> None:
    model_directory(root / "Qwen3-4B copy!")
    done = doit(root, root / "store", "model:cpu", "model=Qwen3-4B copy!", "at=/elsewhere")
    assert (root / "serve-cpu/models/Qwen3-4B-copy-/config.pbtxt").exists()
    assert f"  mount {root}/Qwen3-4B copy! at /elsewhere\n" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if str(root) not in line) <= 80
    assert "the model's own, by its config.json" in done.stdout


def test_device_memory(root: Path) -> None:
    assert make(root, "unified", "model=a/b")[1] == {
        "model": "a/b", "gpu_memory_utilization": 0.5, "max_num_seqs": 32, "disable_log_stats": False}
    assert make(root, "discrete", "model=a/b", "memory=0.3", "sequences=8", "context=4096")[1] == {
        "model": "a/b", "max_model_len": 4096, "gpu_memory_utilization": 0.3, "max_num_seqs": 8,
        "disable_log_stats": False}
    comments = (root / "serve-unified/models/m/config.pbtxt").read_text()
    assert "#   gpu_memory_utilization\n#     CPU and GPU share one memory" in comments


def test_on_a_cpu_the_context_fits_the_cache_or_the_cache_the_context(root: Path) -> None:
    model_directory(root / "big", num_hidden_layers=48, num_key_value_heads=8, head_dim=128)  # 192 KiB a token
    engine = make(root, "cpu", "model=big")[1]
    assert (engine["max_model_len"], engine["kv_cache_memory_bytes"]) == (21840, 4 << 30)
    engine = make(root, "cpu", "model=big", "context=40960")[1]
    assert (engine["max_model_len"], engine["kv_cache_memory_bytes"]) == (40960, 8 << 30)
    assert make(root, "cpu", "model=big", "memory=8")[1]["max_model_len"] == 40960
    assert "expected: memory=8 (GiB)" in doit(root, root / "store", "model:cpu", "model=big", "context=40960",
                                              "memory=7", rc=110).stderr


def test_a_context_that_the_engine_stretches_is_left_to_it(root: Path) -> None:
    model_directory(root / "linear", rope_scaling={"type": "linear", "factor": 4.0})
    data, engine, _ = make(root, "cpu", "model=linear")
    assert "max_model_len" not in engine
    assert [note for note in data["notes"] if note.startswith("the context is stretched")]
    assert make(root, "cpu", "model=linear", "context=100000")[1]["max_model_len"] == 100000
    model_directory(root / "llama", rope_scaling={"rope_type": "llama3", "factor": 8.0})
    assert make(root, "cpu", "model=llama")[1]["max_model_len"] == 40960
    assert "the model's context is shorter" in doit(root, root / "store", "model:cpu", "model=llama", "name=m",
                                                    "context=50000", rc=110).stderr


def test_parsers_are_what_was_said(root: Path) -> None:
    _, _, config = make(root, "cpu", "model=Qwen/Qwen3-8B", "tool_parser=none", "reasoning_parser=deepseek_r1")
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "REPORT_CUSTOM_METRICS": "true", "TOOL_CALL_PARSER": "none", "REASONING_PARSER": "deepseek_r1"}
    data, _, config = make(root, "cpu", "model=nobody/knows-me", name="n")
    assert list(config.parameters) == ["REPORT_CUSTOM_METRICS"]
    assert data["notes"] == ["triton/backend/families.json has no family for knows-me: tool_call_parser is not set",
                             "triton/backend/families.json has no family for knows-me: reasoning_parser is not set"]


@pytest.mark.parametrize(("said", "message"), [
    ("", "which model?"),
    ("model=/not/there", "no such directory"),
    ("model=./not-there", "no such directory"),
    ("model=a/b/c", "neither a directory nor the id of a model"),
    ("model=a/b modle=c", "did you mean model=?"),
    ("model=a/b context=many", "context= is a whole number"),
    ("model=a/b memory=lots", "memory= is a whole number"),
    ("model=a/b sequences=0", "sequences= is a whole number"),
    ("model=a/b name=../x", "no name for a model of Triton"),
    ("model=a/b at=/x", "at= is for a directory"),
    ("model=a/b attention=TRITON_ATTN", "cpu has no GPU"),
    ("model=a/b tool_parser=a\"b", "tool_call_parser is a name of vLLM's"),
    ("model=a/b lora=x", "lora= takes adapters by name"),
    ("model=a/b lora=x=nowhere", "no such directory"),
])
def test_what_cannot_be_is_refused_and_nothing_written(root: Path, said: str, message: str) -> None:
    assert message in refused(root, *said.split())


def test_more_that_cannot_be(root: Path) -> None:
    path = model_directory(root / "m")
    assert "the model's context is shorter" in refused(root, "model=m", "context=50000")
    assert "at= is an absolute path" in refused(root, "model=m", "at=weights")
    assert "bare has no vLLM" in refused(root, "model=m", target="bare")
    assert "expected: 0.01 to 1" in refused(root, "model=m", "memory=2", target="unified")
    model_directory(root / "two\nlines")
    assert "characters that cannot be written down" in refused(root, "model=./two\nlines")
    assert "characters that cannot be written down" in refused(root, "model=a/b", "lora=x=two\nlines")
    (path / "config.json").write_text('{"architectures": ["Qwen3For')
    assert "config.json is malformed, or cut short" in refused(root, "model=m")
    adapter(root / "huge", 1024)
    assert "an adapter of a rank that vLLM has no room for" in refused(root, "model=a/b", "lora=x=huge")


def test_what_somebody_changed_stays_unless_forced(root: Path) -> None:
    make(root, "cpu", "model=a/b")
    file = root / "serve-cpu/models/m/1/model.json"
    file.write_text('{"model": "mine"}\n')
    done = doit(root, root / "store", "model:cpu", "model=a/b", "name=m", "context=4096", rc=110)
    assert "found:    models/m/1/model.json" in done.stderr
    assert file.read_text() == '{"model": "mine"}\n'
    doit(root, root / "store", "model:cpu", "--force", "model=a/b", "name=m", "context=4096")
    assert json.loads(file.read_text())["max_model_len"] == 4096


def test_out_is_where_the_user_stands(root: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    doit(root, root / "store", "model:cpu", "model=a/b", "out=there", STAGECRAFT_CWD=str(tmp_path / "here"))
    assert (tmp_path / "here/there/models/b/config.pbtxt").exists()


FA2 = f"{SITE}/vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    place = tmp_path_factory.mktemp("extensions")
    found = extensions(toolkit(), place, {
        "published": (("sm_80", "compute_80"), ("sm_80", "compute_80")), "native": (("sm_110",), ("sm_110", "sm_80")),
        "half": (("sm_110",), ("compute_80",)), "other": (("sm_90a",), ("sm_90a",))})
    found["stripped"] = without_sections(place / "stripped", found["published"], ".nv_fatbin", ".nvFatBinSegment")
    return found


@pytest.mark.parametrize(("name", "cuda", "why"), [
    ("published", "13.0", "2 of 2 kernels of _vllm_fa2_C.abi3.so are PTX 9.0 for compute capability 11.0: the driver "
                          "compiles them at first use, and one that is older refuses (vllm issue 38411)"),
    ("published", "12.9", "_vllm_fa2_C.abi3.so has PTX 9.0 only for compute capability 11.0, and the device's driver "
                          "compiles PTX up to 8.8 (vllm issue 38411)"),
    ("half", "13.0", "1 of 2 kernels of _vllm_fa2_C.abi3.so are PTX 9.0"),
    ("other", "13.0", "_vllm_fa2_C.abi3.so has no code that compute capability 11.0 loads"),
    ("stripped", "13.0", "_vllm_fa2_C.abi3.so has no code that compute capability 11.0 loads"),
    ("missing", "13.0", "_vllm_fa2_C.abi3.so is not in this image"),
    ("native", "13.0", ""),
])
def test_why_flash_attention_is_not_used(tmp_path: Path, made: dict[str, bytes], name: str, cuda: str,
                                         why: str) -> None:
    gates = Gates(Store.open(tmp_path / "store"))
    gates.target["device"]["cuda"] = cuda
    files = {FA2: made[name]} if name in made else {f"{SITE}/vllm/a.py": b""}
    gates.files("vllm", files, {"vllm": "0.32.0"})
    found = lacking(gates.store, facts.device_code(gates.target, gates.lock), gates.outputs["vllm/index"],
                    FA2.removeprefix(f"{SITE}/"))
    assert found.startswith(why)
    assert bool(found) == bool(why)


def test_table_is_as_its_schema_says() -> None:
    schema = json.loads((HERE / "docs/formats/serving.schema.json").read_text())
    table = yaml.safe_load((HERE / "triton/serving.yaml").read_text())
    jsonschema.validate(table, schema, jsonschema.Draft202012Validator)
    assert {row["kind"] for row in table["memory"]} == {"unified", "discrete", "none"}


@pytest.mark.parametrize(("text", "said"), [("format: other\nmemory: []\n", "format 'other'"), ("a: [", "expected"),
                                            ("- 1\n", "")])
def test_a_table_that_is_damaged(root: Path, text: str, said: str) -> None:
    (root / "triton/serving.yaml").write_text(text)
    error = refused(root, "model=a/b")
    assert "the table of serving values is malformed" in error
    assert said in error
