"""Gate backend-imports: names that Triton's vLLM backend takes from vLLM."""

from pathlib import Path

import pytest

from cache.store import Store
from checks.backend_imports import judge
from tests.support.gates import SITE, Gates

PLACE = "opt/tritonserver/backends/vllm"

VLLM = {
    "vllm": "__all__ = ['LLM']\nMODULE_ATTRS = {'LLM': '.entrypoints.llm:LLM'}\ndef __getattr__(name):\n    pass\n",
    "vllm.inputs": "from .data import TokensPrompt\n",
    "vllm.inputs.data": "class TokensPrompt(dict): ...\nclass TextPrompt(dict): ...\n",
    "vllm.inputs.__init__": "",
    "vllm.metrics": "import sys\ntry:\n    import fast\nexcept ImportError:\n    fast = None\n"
                    "if sys.version_info > (3,):\n    def build(): ...\nelse:\n    build = None\n"
                    "ONE = TWO = 1\nTHREE: int = 3\n",
    "vllm.stars": "from vllm.metrics import *\n",
    "vllm.near": "from .metrics import *\n",
    "vllm._C": "",
}


def missing(text: str) -> list[str]:
    return [finding.subject for finding in judge({"engine.py": text}, VLLM.get, "0.32.0")]


@pytest.mark.parametrize("text", [
    "from vllm.inputs import TokensPrompt",
    "from vllm import LLM",                                     # made on demand
    "from vllm import inputs",                                  # a module of the package
    "from vllm.metrics import build, fast, sys, ONE, TWO, THREE",
    "from vllm.stars import build, ONE",
    "from vllm.near import build",
    "from vllm._C import whatever",                             # compiled: no text to read
    "import vllm.inputs.data",
    "import json, numpy\nfrom vllmx import nothing\nfrom .vllm import nothing",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vllm.gone import X",
    "try:\n    from vllm.gone import X\nexcept ImportError:\n    from vllm.inputs import TokensPrompt as X",
    "try:\n    from vllm.gone import X\nexcept (ImportError, AttributeError):\n    X = None",
    "try:\n    from vllm.gone import X\nexcept ImportError:\n    try:\n        from vllm.away import X\n"
    "    except ImportError:\n        from vllm.inputs import TokensPrompt as X",
])
def test_names_that_are_there(text: str) -> None:
    assert missing(text) == []


@pytest.mark.parametrize(("text", "names"), [
    ("from vllm.inputs.data import TokenPrompt", ["vllm.inputs.data.TokenPrompt"]),
    ("from vllm.gone import X, Y", ["vllm.gone.X", "vllm.gone.Y"]),
    ("import vllm.gone.far", ["vllm.gone.far"]),
    ("from vllm import LLMEngine", ["vllm.LLMEngine"]),
    ("def start():\n    from vllm.inputs import Later", ["vllm.inputs.Later"]),
    ("try:\n    from vllm.gone import X\nexcept ValueError:\n    X = None", ["vllm.gone.X"]),
    ("try:\n    from vllm.gone import X\nexcept ImportError:\n    from vllm.inputs import X", ["vllm.gone.X"]),
    ("try:\n    from vllm.gone import X\nexcept ImportError:\n    try:\n        from vllm.away import X\n"
     "    except ImportError:\n        from vllm.inputs import X", ["vllm.gone.X"]),
    ("try:\n    pass\nexcept ImportError:\n    pass\nelse:\n    from vllm.gone import X", ["vllm.gone.X"]),
    ("try:\n    from vllm.gone import X\nexcept ImportError as error:\n    raise RuntimeError from error",
     ["vllm.gone.X"]),
    ("import sys\ntry:\n    from vllm.gone import X\nexcept ImportError:\n    print()\n    sys.exit(1)",
     ["vllm.gone.X"]),
    ("from vllm.inputs import (", ["engine.py"]),
])
def test_names_that_are_not(text: str, names: list[str]) -> None:
    assert missing(text) == names


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    found = Gates(Store.open(tmp_path / "store"))
    found.files("vllm", {f"{SITE}/vllm/__init__.py": b"", f"{SITE}/vllm/inputs/data.py": b"class TokensPrompt: ...\n",
                         f"{SITE}/vllm/sampling_params.py": b"class SamplingParams: ...\n"}, {"vllm": "0.20.0"})
    return found


def test_layers(gates: Gates) -> None:
    gates.files("backend", {f"{PLACE}/model.py": b"import json\n",
                            f"{PLACE}/engine.py": b"from vllm.sampling_params import SamplingParams\n"})
    assert gates.errors("backend-imports") == {}


def test_the_import_that_broke_nvidias_backend(gates: Gates) -> None:
    gates.files("vllm", {f"{SITE}/vllm/__init__.py": b"", f"{SITE}/vllm/inputs/__init__.py":
                         b"from .engine import TokensPrompt\n"}, {"vllm": "0.20.0"})
    gates.files("backend", {f"{PLACE}/model.py": b"\nfrom vllm.inputs.data import TokensPrompt\n"})
    assert gates.errors("backend-imports") == {
        "vllm.inputs.data.TokensPrompt": "model.py:2 imports it, and vLLM 0.20.0 has no such name"}
