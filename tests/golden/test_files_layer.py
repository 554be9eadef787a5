"""Golden: fixed files give a fixed layer. If it changes, raise the version of `files-layer` (stages/builders.py)."""

from __future__ import annotations

from assemble.files import build
from cache.build import BuildContext
from cache.store import Store


def test_files(store: Store) -> None:
    files = [{"path": "opt/one/run", "template": "run", "mode": 0o755},
             {"path": "opt/one/raw.bin", "copy": "raw", "mode": 0o644},
             {"path": "opt/one/lib64", "link": "lib"}, {"path": "opt/a.so", "link": "one/raw.bin"}]
    inputs = {"run": b"exec {{ server }}\n", "raw": b"\x7fELF\xff{{ server }}"}
    found = build(BuildContext(store, {"files": files, "values": {"server": "/bin/x"}},
                               {name: store.put(content).digest for name, content in inputs.items()}))
    assert {name: blob.digest for name, blob in found.items()} == {
        "layer": "sha256:e194e9de9cb6d8f2f71e45d6894d411c6b0fe4d7623e530fbac9a4133e681ae4",
        "index": "sha256:871390b5bc03f3b6a8dd1d03529541c39d21e8734ba5cca7206aaedbed6d36e4"}
