"""A look at a model's directory before vLLM is asked: what is wrong with it, in one line. Weights are not read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from .interface import LoadError

#: What may hold weights, by the end of its name.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".tensors")
#: Bytes; the header of a safetensors file is no longer (its own library's limit).
_HEADER = 100_000_000
#: What says how the model is made: Hugging Face, Mistral.
_CONFIGS = ("config.json", "params.json")


def look_at(directory: Path, weights: bool = True) -> list[str]:
    """The architectures that the model's configuration names.

    Args:
        weights: whether they are read from there (`load_format: dummy` reads none).

    Raises:
        LoadError: no model, or one that is not whole.
    """
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise LoadError(f"the model's directory cannot be read: {directory}: {error.strerror}") from None
    if not names:
        raise LoadError(f"the model's directory is empty: {directory}")
    config = next((name for name in _CONFIGS if name in names), None)
    if config is None and not any(name.endswith(".gguf") for name in names):
        raise LoadError(f"not a model: {directory} has no config.json (it has {', '.join(names[:4])}"
                        + (" …)" if len(names) > 4 else ")"))
    found = {} if config is None else _object(directory / config)
    files = [directory / name for name in names if name.endswith(_WEIGHTS)]
    if weights:
        index = directory / "model.safetensors.index.json"
        if index.name in names:
            files += [directory / name for name in sorted({*_object(index).get("weight_map", {}).values()})]
        if not files:
            raise LoadError(f"the model has no weights: {directory} has none of *{', *'.join(_WEIGHTS)}")
        for path in dict.fromkeys(files):
            _whole(path)
    architectures = found.get("architectures")
    return [str(name) for name in architectures] if isinstance(architectures, list) else []


def _object(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise LoadError(f"a file of the model cannot be read: {path}: {error.strerror}") from None
    except ValueError as error:
        raise LoadError(f"a file of the model is no JSON: {path}: {error}") from None
    if not isinstance(found, dict):
        raise LoadError(f"a file of the model is no JSON object: {path}")
    return found


def _whole(path: Path) -> None:
    """A file of weights is there; one of safetensors is as long as its header says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if path.suffix != ".safetensors":
                if not size:
                    raise LoadError(f"a file of the model is empty: {path}")
                return
            begin = file.read(8)
            length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else _HEADER + 1
            header = json.loads(file.read(length)) if length <= _HEADER else None
            ends = [row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"]
    except OSError as error:
        raise LoadError(f"a file of the model cannot be read: {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        raise LoadError(f"a file of the model is cut short, or no safetensors: {path} ({size} bytes)") from None
    wanted = 8 + length + max(ends, default=0)
    if size != wanted:
        raise LoadError(f"a file of the model is cut short: {path} has {size} of {wanted} bytes" if size < wanted
                        else f"a file of the model is damaged: {path} has {size} bytes, {wanted} by its header")
