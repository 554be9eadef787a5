"""What is read of a model's directory, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cache.errors import InputError
from stages.model_directory import read
from tests.support.models import CONFIG, model_directory, safetensors


def test_what_the_configuration_says(tmp_path: Path) -> None:
    found = read(model_directory(tmp_path / "plain"))
    assert (found.architectures, found.context, found.stretched, found.vision) == (
        ("Qwen3ForCausalLM",), 40960, False, False)
    assert found.per_token == 2 * 2 * 2 * 16 * 2
    assert read(model_directory(tmp_path / "float", torch_dtype="float32")).per_token == 2 * 2 * 2 * 16 * 4
    assert read(model_directory(tmp_path / "old", num_key_value_heads=None, head_dim=None)).per_token == 2 * 2 * 64 * 2
    assert read(model_directory(tmp_path / "mla", kv_lora_rank=512)).per_token == 0
    assert read(model_directory(tmp_path / "gpt", max_position_embeddings=None, n_positions=1024)).context == 1024
    assert read(model_directory(tmp_path / "none", max_position_embeddings=None)).context == 0
    yarn = read(model_directory(tmp_path / "yarn", rope_scaling={"rope_type": "yarn", "factor": 4}))
    assert (yarn.context, yarn.stretched) == (40960, True)
    for number, (scaling, stretched) in enumerate([
            ({"type": "linear", "factor": 2.0}, True), ({"rope_type": "dynamic", "factor": 2.0}, True),
            ({"rope_type": "llama3", "factor": 8.0}, False), ({"type": "longrope", "factor": 32}, False),
            ({"type": "su"}, False), ({"type": "mrope", "mrope_section": [1]}, False), ([], False),
            ({"full_attention": {"rope_type": "linear", "factor": 8.0}}, True),
            ({"full_attention": {"rope_type": "default"}}, False)]):
        assert read(model_directory(tmp_path / f"rope-{number}", rope_scaling=scaling)).stretched == stretched, scaling
    assert not read(model_directory(tmp_path / "gemma", model_type="gemma3_text",
                                    rope_scaling={"rope_type": "linear", "factor": 8.0})).stretched
    eyes = read(model_directory(tmp_path / "eyes", text_config={**CONFIG, "max_position_embeddings": 8192},
                                vision_config={}))
    assert (eyes.context, eyes.vision) == (8192, True)


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read(path)
    return caught.value


def test_what_is_no_model(tmp_path: Path) -> None:
    assert refused(tmp_path / "no").message == "no such directory"
    (tmp_path / "file.gguf").write_text("")
    assert refused(tmp_path / "file.gguf").message == "a model is a directory"
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty").message == "not a model: no config.json"
    (tmp_path / "empty/adapter_config.json").write_text("{}")
    assert "lora=NAME=DIR" in str(refused(tmp_path / "empty").cure)
    assert refused(model_directory(tmp_path / "other", architectures=None)).message \
        == "this is no model that vLLM can load"
    bare = model_directory(tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    assert refused(bare).message == "the model has no weights"


def test_a_configuration_that_is_cut_or_no_object(tmp_path: Path) -> None:
    path = model_directory(tmp_path / "cut")
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text[:-20])
    error = refused(path)
    assert error.message == "config.json is malformed, or cut short"
    assert "line 1 column" in str(error.found)
    (path / "config.json").write_text("[" * 400_000)
    assert refused(path).message == "config.json is malformed, or cut short"
    (path / "config.json").write_text("[]")
    assert refused(path).message == "config.json is malformed"
    (path / "config.json").write_bytes(b"\xff\xfe")
    assert refused(path).message == "config.json is malformed, or cut short"


@pytest.mark.skipif(os.geteuid() != 0, reason="root reads everything, and can be somebody else")
def test_unreadable(tmp_path: Path) -> None:
    path = model_directory(tmp_path / "m")
    for place in path.parents:
        if not place.stat().st_mode & 1:
            place.chmod(place.stat().st_mode | 0o11)
    for name in ("config.json", "model.safetensors"):
        (path / name).chmod(0o600)
        os.seteuid(65534)
        try:
            error = refused(path)
        finally:
            os.seteuid(0)
        assert (error.message, error.found) == ("a file of the model cannot be read", "Permission denied")
        assert error.where == str(path / name)
        (path / name).chmod(0o644)


def test_weights_that_are_cut_short(tmp_path: Path) -> None:
    path = model_directory(tmp_path / "m")
    weights = path / "model.safetensors"
    whole = safetensors()
    weights.write_bytes(whole[:-1])
    error = refused(path)
    assert (error.message, error.expected, error.found) == (
        "a file of weights is cut short", f"{len(whole)} bytes", f"{len(whole) - 1} bytes")
    weights.write_bytes(whole + b"x")
    assert refused(path).message == "a file of weights is too long"
    weights.write_bytes(whole[:20])
    assert refused(path).message == "a file of weights is cut short, or no safetensors file"
    weights.write_bytes(b"")
    assert refused(path).message == "a file of weights is cut short, or no safetensors file"
    weights.write_bytes(whole[:8] + b"}" + whole[9:])
    assert refused(path).message == "the header of a file of weights is malformed"
    for header in (b"[" * 400_000, b'{"a": {"data_offsets": [0, Infinity]}}'):
        weights.write_bytes(len(header).to_bytes(8, "little") + header)
        assert refused(path).message == "the header of a file of weights is malformed"
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "Git LFS" in refused(path).message


def test_a_part_of_the_weights_is_missing(tmp_path: Path) -> None:
    path = model_directory(tmp_path / "m")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused(path).found == "model-00002.safetensors not there"
    (path / "model.safetensors.index.json").write_text("{}")
    assert refused(path).message == "the index of the weights is malformed"
