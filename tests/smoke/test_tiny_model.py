"""The model that smoke tests serve: its files as their formats say, the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.project import Project
from stages.smoke import load_tool
from tests.support.front import HERE

tiny: Any = load_tool(Project(HERE), "tiny_model")
PROGRAM = HERE / "triton" / "smoke" / "tiny_model.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tiny.write_model(directory, tiny.Shape())
    return directory


def read(model: Path, name: str) -> Any:
    return json.loads((model / name).read_text(encoding="utf-8"))


def weights(model: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data, read as https://huggingface.co/docs/safetensors says."""
    data = (model / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def test_weights_are_the_tensors_of_the_configuration_without_gap(model: Path) -> None:
    header, data = weights(model)
    assert header.pop("__metadata__") == {"format": "pt"}
    config, at = read(model, "config.json"), 0
    for entry in header.values():
        begin, end = entry["data_offsets"]
        assert (begin, end - begin) == (at, 2 * math.prod(entry["shape"]))
        at = end
    assert at == len(data) == 2 * tiny.Shape().parameters
    vocabulary, hidden, width = config["vocab_size"], config["hidden_size"], config["head_dim"]
    assert header["lm_head.weight"]["shape"] == [vocabulary, hidden]
    prefix = "model.layers.1.self_attn"
    assert header[f"{prefix}.q_proj.weight"]["shape"] == [config["num_attention_heads"] * width, hidden]
    assert header[f"{prefix}.k_proj.weight"]["shape"] == [config["num_key_value_heads"] * width, hidden]
    assert "model.layers.2.mlp.up_proj.weight" not in header


def test_weights_are_small_numbers_of_both_signs(model: Path) -> None:
    header, data = weights(model)
    begin, end = header["lm_head.weight"]["data_offsets"]
    # bfloat16 is the upper half of a float.
    found = [struct.unpack("<f", b"\0\0" + data[at : at + 2])[0] for at in range(begin, end, 2)]
    assert all(2**-7 <= abs(value) < 2**-3 for value in found)
    assert abs(sum(value > 0 for value in found) / len(found) - 0.5) < 0.02
    assert len(set(found)) > 900  # of 1024 that there are
    begin, end = header["model.norm.weight"]["data_offsets"]
    assert data[begin:end] == struct.pack("<f", 1.0)[2:] * tiny.Shape().hidden


def test_same_arguments_same_bytes_another_seed_other_weights(tmp_path: Path) -> None:
    def digest(name: str, *more: str) -> str:
        subprocess.run([sys.executable, PROGRAM, tmp_path / name, "--layers", "1", *more], check=True,
                       capture_output=True)
        content = b"".join(path.read_bytes() for path in sorted((tmp_path / name).iterdir()))
        return hashlib.sha256(content).hexdigest()

    assert digest("one") == digest("two") != digest("three", "--seed", "1")


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(b"".join(tiny.numbers((1 << 20) + 3, "x"))) == 2 * (1 << 20) + 6
    first = next(tiny.numbers(4, "x"))
    assert b"".join(tiny.numbers(1 << 20, "x")).startswith(first)
    assert first != next(tiny.numbers(4, "y"))


@pytest.mark.parametrize("vocabulary", [263, 2000])
def test_vocabulary_is_whole_and_every_merge_has_its_word(vocabulary: int) -> None:
    shape = tiny.Shape(vocabulary=vocabulary)
    found = tiny.tokenizer(shape)
    words, merges = found["model"]["vocab"], found["model"]["merges"]
    added = {token["content"]: token["id"] for token in found["added_tokens"]}
    assert sorted([*words.values(), *added.values()]) == list(range(vocabulary))
    assert [one + other for one, other in merges] == [word for word, number in words.items() if number >= 256]
    assert all(one in words and other in words for one, other in merges)
    assert added["<think>"] == tiny.token_id(shape, "<think>")
    assert tiny.config(shape)["eos_token_id"] == added["<|im_end|>"]


def test_alphabet_has_a_printable_sign_for_every_byte() -> None:
    signs = tiny.alphabet()
    assert len(set(signs)) == 256
    assert not any(sign.isspace() or not sign.isprintable() for sign in signs)
    assert (signs[0x41], signs[0x20], signs[0x0A]) == ("A", "\u0120", "\u010a")  # as GPT-2's vocabulary has them


def test_chat_template_writes_every_kind_of_turn(model: Path) -> None:
    import jinja2

    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(
        read(model, "tokenizer_config.json")["chat_template"])
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    text = template.render(add_generation_prompt=True, tools=[{"type": "function", "function": {"name": "f"}}],
                           messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                                     {"role": "assistant", "content": None, "reasoning_content": "hm",
                                      "tool_calls": [call]},
                                     {"role": "tool", "tool_call_id": "c1", "content": "sun"}])
    assert text.startswith("<|im_start|>system\nBe brief.\nTools:\n")
    assert '<think>hm</think><tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n' in text
    assert "<tool_response>c1\nsun</tool_response>" in text
    assert text.endswith("<|im_start|>assistant\n")
    plain = template.render(messages=[{"role": "user", "content": "Hi"}])
    assert plain == "<|im_start|>user\nHi<|im_end|>\n"


def test_benchmarks_get_a_hundred_million_parameters() -> None:
    shape = tiny.Shape(hidden=768, layers=11, heads=12, kv_heads=4, intermediate=3072, vocabulary=32000)
    assert shape.parameters > 100_000_000


@pytest.mark.parametrize(("argument", "value"), [("--vocabulary", "200"), ("--kv-heads", "3"), ("--layers", "0")])
def test_shape_that_cannot_be_is_a_line_of_usage(tmp_path: Path, argument: str, value: str) -> None:
    done = subprocess.run([sys.executable, PROGRAM, tmp_path / "x", argument, value], check=False, text=True,
                          capture_output=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_repository_names_backend_parsers_and_model(tmp_path: Path) -> None:
    tiny.write_repository(tmp_path, "tiny", tiny.engine_arguments("/model", tiny.Shape()), ENGINE="standin")
    text = (tmp_path / "tiny" / "config.pbtxt").read_text()
    assert 'backend: "vllm"' in text
    assert 'parameters { key: "ENGINE" value { string_value: "standin" } }' in text
    assert read(tmp_path / "tiny" / "1", "model.json")["model"] == "/model"
