"""Check `load` for real, on this machine's own platform: a small image with Debian's Python and compiled extensions."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cache.archive import LayerWriter
from cache.errors import ToolError
from cache.store import Store
from checks import load
from checks.verdict import CheckInputs, SkippedError
from executors import probe
from stages.plan import evaluate
from stages.project import Project
from tests.support.docker_engine import running_engine
from tests.support.front import MINI, doit, make_project
from tests.support.shared_objects import MACHINE, Compiler

pytestmark = pytest.mark.skipif(MACHINE != "x86_64", reason="the small target is for amd64")
SITE = "usr/local/lib/python3.13/dist-packages"

#: An extension module without Python's headers: the definition of a module as its memory lies.
EXTENSION = """
extern void *PyModule_Create2(void *, int);
extern void PyErr_SetString(void *, const char *);
extern void *PyExc_ImportError;
extern int cuInit(unsigned);
%(declared)s
static void *definition[13] = {(void *)1, 0, 0, 0, 0, "%(name)s", 0, (void *)-1};
void *PyInit_%(name)s(void) {
    %(body)s
    return PyModule_Create2(definition, 1013);
}
"""
GOOD = 'if (cuInit(0) != 100) { PyErr_SetString(PyExc_ImportError, "no stub"); return 0; }'

TORCH = """
class _Namespace:
    def __getattr__(self, name):
        raise AttributeError(f"'_OpNamespace' 'torchvision' object has no attribute '{name}'")
class ops:
    torchvision = _Namespace()
    @staticmethod
    def load_library(path):
        import ctypes
        ctypes.CDLL(path)
"""


def extension(directory: Path, name: str, body: str = GOOD, declared: str = "", *, against: Iterable[str] = (),
              flags: Iterable[str] = ()) -> bytes:
    compiler = Compiler(directory)
    compiler.library("libcuda.so.1", "int cuInit(unsigned flags) { return 1; }")
    return compiler.library(f"{name}.so", EXTENSION % {"name": name, "body": body, "declared": declared},
                            against=["libcuda.so.1", *against], flags=flags)


def layer(store: Store, files: Mapping[str, bytes]) -> str:
    """A layer with these files; the digest of its index."""
    directories = {"/".join(path.split("/")[:count]) for path in files for count in range(1, path.count("/") + 1)}
    with LayerWriter(store) as writer:
        for path in sorted({*files, *directories}, key=lambda path: path.encode()):
            if path in files:
                writer.file(path, len(files[path]), [files[path]], 0o644)
            else:
                writer.directory(path)
        return writer.finish().index.digest


class Image:
    """Debian's Python, and what a test lays on it."""

    def __init__(self, root: Path, store: Path) -> None:
        doit(root, store, "lock:mini")
        doit(root, store, "base:mini")
        self.store = Store.open(store)
        project = Project(root)
        record = evaluate(project.graph("mini"), self.store)["base"][1]
        assert record is not None
        self.base = record.outputs["index"].digest

    def findings(self, files: Mapping[str, bytes], *extensions: str, **more: Any) -> dict[str, str]:
        """Subject to message. `extensions`: names of the required ones, in vllm/."""
        facts = {
            "machine": "x86_64", "site": SITE, "executable": "/usr/bin/python3.13", "environment": {"OWN": "1"},
            "base": [], "emulator": [], "wheels": ["torch", "torchvision", "vllm"],
            "rows": [{"module": f"vllm.{name}", "file": f"vllm/{name}.abi3.so"} for name in extensions],
            "stubs": [{"name": "libcuda.so.1", "symbols": "cu[A-Z]\\w*", "value": 100}], **more.pop("facts", {})}
        top = layer(self.store, {f"{SITE}/{path}": content for path, content in files.items()})
        inputs = CheckInputs(self.store, {"base/index": self.base, "vllm/index": top}, facts, **more)
        return {finding.subject: finding.message for finding in load.run(inputs)}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    directory = tmp_path_factory.mktemp("load")
    text = MINI.replace("triton:\n  version: \"0.7.0\"\n", "").replace("[click==8.1.8]", "[]")
    found = Image(make_project(directory / "project", mini=text), directory / "store")
    yield found
    shutil.rmtree(directory, ignore_errors=True)


def whole(directory: Path) -> dict[str, bytes]:
    """An image in which everything loads."""
    return {"torch/__init__.py": TORCH.encode() + b"ops.torchvision.__dict__['nms'] = 1\n",
            "torchvision/__init__.py": b"", "vllm/_custom_ops.py": b"", "vllm/_C.abi3.so": extension(directory, "_C"),
            "vllm/__init__.py": b"import os\nassert os.environ['OWN'] == '1'\n"}


def test_good_image_has_no_finding(image: Image, tmp_path: Path) -> None:
    said: list[str] = []
    assert image.findings(whole(tmp_path), "_C", log=said.append) == {}
    assert [line for line in said if line.startswith("vllm._C: ")]


def test_each_fault_is_found_with_the_loaders_own_message(image: Image, tmp_path: Path) -> None:
    Compiler(tmp_path).library("libnowhere.so.3", "void nowhere(void) {}")
    files = whole(tmp_path) | {
        "vllm/_undefined.abi3.so": extension(tmp_path, "_undefined", "missing_symbol();", "void missing_symbol(void);"),
        "vllm/_crash.abi3.so": extension(tmp_path, "_crash", "*(volatile int *)definition[1] = 1;"),
        "vllm/_needed.abi3.so": extension(tmp_path, "_needed", GOOD + " nowhere();", "void nowhere(void);",
                                          against=["libnowhere.so.3"]),
        "vllm/_raises.abi3.so": extension(tmp_path, "_raises",
                                          'PyErr_SetString(PyExc_ImportError, "not today"); return 0;'),
        "vllm/_custom_ops.py": b"import gone\n", "torch/__init__.py": TORCH.encode(),
    }
    found = image.findings(files, "_C", "_undefined", "_crash", "_needed", "_raises", "_absent")
    assert set(found) == {"vllm._undefined", "vllm._crash", "vllm._needed", "vllm._raises", "vllm._absent",
                          "torchvision::nms", "vllm._custom_ops"}
    assert f"/{SITE}/vllm/_undefined.abi3.so: undefined symbol: missing_symbol" in found["vllm._undefined"]
    assert found["vllm._crash"] == "the interpreter died while loading it: killed by SIGSEGV"
    assert "libnowhere.so.3: cannot open shared object file: No such file or directory" in found["vllm._needed"]
    assert found["vllm._raises"] == "ImportError: not today"
    assert "no such file" in found["vllm._absent"].lower()
    assert "has no attribute 'nms'" in found["torchvision::nms"]
    assert found["vllm._custom_ops"] == "ModuleNotFoundError: No module named 'gone'"


def test_operator_that_is_missing_because_its_library_does_not_load_says_why(image: Image, tmp_path: Path) -> None:
    broken = extension(tmp_path, "_C2", "missing_symbol();", "void missing_symbol(void);",
                       flags=["-Wl,-z,now"])
    files = whole(tmp_path) | {"torch/__init__.py": TORCH.encode(), "torchvision/_C.so": broken}
    assert "undefined symbol: missing_symbol" in image.findings(files, "_C")["torchvision::nms"]


def test_torch_that_does_not_load_is_the_only_finding(image: Image, tmp_path: Path) -> None:
    files = whole(tmp_path) | {"torch/__init__.py": b"raise OSError('libtorch_cuda.so: cut off')\n"}
    assert image.findings(files, "_C") == {"torch": "OSError: libtorch_cuda.so: cut off"}


def test_python_that_is_not_there_is_said(image: Image, tmp_path: Path) -> None:
    found = image.findings(whole(tmp_path), "_C", facts={"executable": "/usr/bin/python3.99"})
    assert "cannot start: execvp /usr/bin/python3.99" in found["python"]


def test_failed_run_is_kept_when_asked_for(image: Image, tmp_path: Path) -> None:
    files = whole(tmp_path) | {"vllm/__init__.py": b"open('/tmp/trace', 'w').write('here'); raise ImportError('no')\n"}
    keep = tmp_path / "kept" / "load"
    image.findings(files, "_C", keep=keep)
    assert (keep / "tmp" / "trace").read_text() == "here"
    assert [json.loads(line)["state"] for line in (keep / "build" / "results.jsonl").read_text().splitlines()][:2] == [
        "begun", "passed"]
    assert not list((image.store.root / "tmp").glob("load-*"))


def test_nothing_that_can_run_it_is_a_skip(image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ToolError("bubblewrap is not installed", cure="sudo apt-get install bubblewrap")

    monkeypatch.setattr("executors.choose.executor", missing)
    with pytest.raises(SkippedError, match="bubblewrap is not installed") as caught:
        image.findings(whole(tmp_path), "_C")
    assert caught.value.cure == "sudo apt-get install bubblewrap"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start an engine")
def test_docker_runs_it_where_there_is_no_bubblewrap(image: Image, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    files = whole(tmp_path) | {"vllm/_crash.abi3.so": extension(tmp_path, "_crash",
                                                                "*(volatile int *)definition[1] = 1;")}
    said: list[str] = []
    with running_engine(tmp_path / "engine") as engine:
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        probe.abilities.cache_clear()
        monkeypatch.setattr("shutil.which", lambda name: None)
        found = image.findings(files, "_C", "_crash", log=said.append)
        assert engine.client.images.list() == []
    probe.abilities.cache_clear()
    assert found == {"vllm._crash": "the interpreter died while loading it: killed by SIGSEGV"}
    assert any("limited by Docker" in line for line in said)
