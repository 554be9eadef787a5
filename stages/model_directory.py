"""A directory with a model as Hugging Face lays it out: what its files say, and whether they are whole.

Nothing of it is run, and of weights only the headers are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import InputError

#: How configurations call the longest context (vllm/transformers_utils/model_arch_config_convertor.py of 0.32.0).
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length",
           "max_target_positions", "max_sequence_length", "max_seq_length", "seq_len")
#: Kinds of RoPE scaling whose factor vLLM 0.32.0 does not multiply the context by: the configuration's has it already.
NOT_MULTIPLIED = ("default", "llama3", "longrope", "su")
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_POINTER = b"version https://git-lfs"
_HEADER = 100 << 20  # bytes that a safetensors header has at most


@dataclass(frozen=True)
class ModelDirectory:
    """What config.json says.

    Attributes:
        context: tokens; 0 if it does not say.
        stretched: vLLM multiplies the context by a factor of RoPE scaling: `context` is no upper bound.
        per_token: bytes that a token takes in the KV cache; 0 if that cannot be told from here.
        vision: there is an encoder for images.
    """

    path: Path
    architectures: tuple[str, ...]
    context: int
    stretched: bool
    per_token: int
    vision: bool


def read(path: Path) -> ModelDirectory:
    """Look at a model directory.

    Raises:
        InputError: it is none, it cannot be read, or a file in it is malformed or cut short.
    """
    if not path.exists():
        raise InputError("no such directory", where=str(path))
    if not path.is_dir():
        raise InputError("a model is a directory", where=str(path), found="a file",
                         cure="name the directory that holds config.json and the weights")
    said = document(path / "config.json", path)
    architectures = said.get("architectures")
    if not isinstance(architectures, list) or not architectures or not all(isinstance(a, str) for a in architectures):
        raise InputError("this is no model that vLLM can load", where=str(path / "config.json"),
                         expected="architectures: a list of names", found=json.dumps(architectures))
    _weights(path)
    inner = said.get("text_config")
    text: Mapping[str, Any] = inner if isinstance(inner, dict) else said
    lengths = [text[key] for key in CONTEXT if _number(text.get(key))]
    return ModelDirectory(path, tuple(architectures), min(lengths, default=0), _stretched(text), _per_token(text),
                          "vision_config" in said)


def _stretched(text: Mapping[str, Any]) -> bool:
    """As `_get_and_verify_max_len` of vllm/config/model.py multiplies; each kind of layer may have a set of its own."""
    given = text.get("rope_scaling") or text.get("rope_parameters")
    if not isinstance(given, dict) or "gemma3" in str(text.get("model_type")):
        return False
    sets = [one for one in given.values() if isinstance(one, dict)] or [given]
    return any(one.get("rope_type", one.get("type", "default")) not in NOT_MULTIPLIED and one.get("factor", 1) != 1
               for one in sets)


def document(path: Path, directory: Path) -> dict[str, Any]:
    """A JSON object of a model directory."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        adapter = (directory / "adapter_config.json").exists()
        raise InputError("not a model: no " + path.name, where=str(directory),
                         found="a LoRA adapter" if adapter else None,
                         cure="name its base model, and the adapter as lora=NAME=DIR" if adapter else
                         "name the directory that holds config.json and the weights") from error
    except OSError as error:
        raise InputError("a file of the model cannot be read", where=str(path), found=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is malformed, or cut short", where=str(path), found=str(error),
                         cure="download the model again") from error
    if not isinstance(said, dict):
        raise InputError(f"{path.name} is malformed", where=str(path), expected="a JSON object",
                         found=type(said).__name__)
    return said


def _weights(path: Path) -> None:
    found = sorted({file for pattern in WEIGHTS for file in path.glob(pattern)})
    if not found:
        raise InputError("the model has no weights", where=str(path), expected="a file *.safetensors",
                         cure="download the model again, all of it")
    for file in found:
        whole(file)
    index = path / "model.safetensors.index.json"
    if index.exists():
        parts = document(index, path).get("weight_map")
        if not isinstance(parts, dict):
            raise InputError("the index of the weights is malformed", where=str(index), expected="a weight_map")
        missing = sorted({str(part) for part in parts.values() if not (path / str(part)).exists()})
        if missing:
            raise InputError("weights are missing", where=str(path), found=", ".join(missing) + " not there",
                             expected=f"all that {index.name} names", cure="download the model again, all of it")


def whole(file: Path) -> None:
    """Is a file of weights as long as it says?

    Raises:
        InputError: it is not, or it cannot be read.
    """
    cure = "download this file again"
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(len(_POINTER))
            if start == _POINTER:
                raise InputError("a file of weights is only a pointer of Git LFS", where=str(file),
                                 cure="git lfs pull, in the model's directory")
            if file.suffix != ".safetensors":
                return
            length = int.from_bytes(start[:8], "little")
            if not 2 <= length <= min(size - 8, _HEADER):
                raise InputError("a file of weights is cut short, or no safetensors file", where=str(file),
                                 found=f"{size} bytes, a header of {length}", cure=cure)
            opened.seek(8)
            header = json.loads(opened.read(length))
        wanted = 8 + length + max((int(tensor["data_offsets"][1]) for name, tensor in header.items()
                                   if name != "__metadata__"), default=0)
    except OSError as error:
        raise InputError("a file of the model cannot be read", where=str(file), found=error.strerror) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise InputError("the header of a file of weights is malformed", where=str(file), found=repr(error)[:200],
                         cure=cure) from error
    if size != wanted:
        raise InputError("a file of weights is cut short" if size < wanted else "a file of weights is too long",
                         where=str(file), expected=f"{wanted} bytes", found=f"{size} bytes", cure=cure)


def _per_token(text: Mapping[str, Any]) -> int:
    """Keys and values of all layers for a token. Only for plain attention: elsewhere other rules hold."""
    if "kv_lora_rank" in text or "layer_types" in text or "sliding_window_pattern" in text:
        return 0
    layers, heads, hidden = (_number(text.get(key)) for key in ("num_hidden_layers", "num_attention_heads",
                                                                "hidden_size"))
    if not (layers and heads and hidden):
        return 0
    kept = _number(text.get("num_key_value_heads")) or heads
    size = _number(text.get("head_dim")) or hidden // heads
    kind = text.get("dtype") or text.get("torch_dtype")
    return 2 * layers * kept * size * (4 if kind == "float32" else 2)


def _number(value: Any) -> int:
    """A positive whole number, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
