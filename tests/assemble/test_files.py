"""Files of the repository as a layer: rendered, as they are, and links."""

from __future__ import annotations

from typing import Any

import pytest

from assemble.files import build
from cache.build import BuildContext
from cache.errors import InputError
from cache.layer import LayerReader
from cache.store import Store

FILES: list[dict[str, Any]] = [{"path": "opt/one/run", "template": "run", "mode": 0o755},
                               {"path": "opt/one/raw.bin", "copy": "raw", "mode": 0o644},
                               {"path": "opt/one/lib64", "link": "lib"}, {"path": "opt/a.so", "link": "one/raw.bin"}]
INPUTS = {"run": b"exec {{ server }}\n", "raw": b"\x7fELF\xff{{ server }}"}


def made(store: Store, files: list[dict[str, Any]] | None = None, **inputs: bytes) -> dict[str, str]:
    given = {name: store.put(content).digest for name, content in {**INPUTS, **inputs}.items()}
    found = build(BuildContext(store, {"files": files or FILES, "values": {"server": "/bin/x"}}, given))
    return {name: blob.digest for name, blob in found.items()}


def test_each_kind(store: Store) -> None:
    with LayerReader(store, made(store)["index"]) as layer:
        assert layer.read("opt/one/run") == b"exec /bin/x\n"
        assert layer.read("opt/one/raw.bin") == layer.read("opt/a.so") == INPUTS["raw"]  # nothing is rendered in it
        assert {path: (entry["type"], entry.get("mode"), entry.get("target"))
                for path, entry in layer.entries.items()} == {
            "opt": ("directory", 0o755, None), "opt/a.so": ("symlink", None, "one/raw.bin"),
            "opt/one": ("directory", 0o755, None), "opt/one/lib64": ("symlink", None, "lib"),
            "opt/one/raw.bin": ("file", 0o644, None), "opt/one/run": ("file", 0o755, None)}


def test_a_directory_of_its_own_mode(store: Store) -> None:
    files = [*FILES, {"path": "opt/one", "directory": True, "mode": 0o1777},
             {"path": "var/empty", "directory": True, "mode": 0o700}]
    with LayerReader(store, made(store, files)["index"]) as layer:
        assert {path: entry["mode"] for path, entry in layer.entries.items() if entry["type"] == "directory"} == {
            "opt": 0o755, "opt/one": 0o1777, "var": 0o755, "var/empty": 0o700}


def test_order_of_the_files_is_nothing(store: Store) -> None:
    assert made(store, FILES[::-1]) == made(store)


@pytest.mark.parametrize("template", [b"{{ nothing_like_this }}", b"{% if %}"])
def test_template_that_cannot_be_rendered(store: Store, template: bytes) -> None:
    with pytest.raises(InputError, match="cannot be rendered") as caught:
        made(store, run=template)
    assert str(caught.value.where).startswith("run")
