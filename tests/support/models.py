"""Directories with models as they are downloaded, of a few bytes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16", "vocab_size": 512,
}


def safetensors(size: int = 64) -> bytes:
    """A file of weights with one tensor of so many bytes."""
    header = json.dumps({"__metadata__": {"format": "pt"},
                         "weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def model_directory(path: Path, **more: Any) -> Path:
    """`config.json`, one file of weights; a key with None is left out."""
    path.mkdir(parents=True)
    config = {key: value for key, value in {**CONFIG, **more}.items() if value is not None}
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(safetensors())
    return path


def adapter(path: Path, rank: int = 16) -> Path:
    """A LoRA adapter."""
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps({"r": rank, "peft_type": "LORA"}))
    (path / "adapter_model.safetensors").write_bytes(safetensors())
    return path
