"""Modules of the vLLM backend, loaded by path as Triton's stub does it: `triton/` is no package of ours."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any

from tests.support.front import HERE

BACKEND = HERE / "triton" / "backend"
STANDIN = HERE / "triton" / "smoke" / "standin.py"
PACKAGE = "stagecraft_vllm_backend"


def backend(name: str) -> Any:
    """A module of the backend that needs neither vLLM nor Triton; or the stand-in engine."""
    if PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(BACKEND)]
        sys.modules[PACKAGE] = package
    if name != "standin":
        return importlib.import_module(f"{PACKAGE}.{name}")
    full = f"{PACKAGE}.{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, STANDIN)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


class Array:
    """What the backend takes of a numpy array."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._values = list(values)
        self.size = len(self._values)

    def reshape(self, _: int) -> list[Any]:
        return self._values


def tensors(**values: Any) -> dict[str, Array]:
    """Inputs by name; texts become bytes, a list several values."""
    def plain(value: Any) -> Any:
        return value.encode() if isinstance(value, str) else value

    return {name: Array([plain(one) for one in value] if isinstance(value, list) else [plain(value)])
            for name, value in values.items()}


def settings(**more: Any) -> Any:
    """`Settings` of a model called m."""
    return backend("interface").Settings(**{
        "name": "m", "options": {"model": "any"}, "loras": {}, "tool_parser": "", "reasoning_parser": "",
        "by_family": frozenset(), "record": None, "log": lambda line: None, **more})
