"""What tests put into stores: one build with all that a real one publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cache import canonical
from cache.store import Blob, Record, Store


def derivation(text: str = "x", **inputs: str) -> dict[str, Any]:
    """A derivation that differs by `text` and by its inputs (name to digest of a locked file)."""
    return {"format": "stagecraft.derivation.v1", "builder": {"name": "test", "version": 1}, "kind": "assemble",
            "platform": {"os": "linux", "architecture": "arm64"}, "environment": {}, "params": {"text": text},
            "inputs": {name: {"digest": digest} for name, digest in inputs.items()}}


def key_of(derived: dict[str, Any]) -> str:
    return canonical.digest_of("derivation", derived)


def record_of(store: Store, text: str = "x", output: bytes | None = None, log: bytes = b"log\n",
              **inputs: str) -> Record:
    """A record with one output and a log, both published; the record itself is not."""
    derived = derivation(text, **inputs)
    blob = store.put(text.encode() if output is None else output)
    return Record(key_of(derived), derived, {"layer": blob}, {"log": store.put(log).digest, "ms": 1, "stage": text})


def build(root: Path, text: str = "x", size: int = 0) -> Record:
    """As an engine does: lock the key, look, build, publish, judge, root. `size` bytes more in a large output."""
    store = Store.open(root)
    key = key_of(derivation(text))
    with store.locked(f"build-{key[7:]}"):
        found = store.lookup(key, use=True)
        if found is None:
            record = record_of(store, text)
            outputs: dict[str, Blob] = dict(record.outputs)
            with store.writer() as writer:
                while writer.size < size:
                    writer.write(bytes([writer.size >> 16 & 255]) * 65536)
                outputs["large"] = writer.commit()
            found = store.publish(Record(record.key, record.derivation, outputs, record.facts))
        judged = {name: blob.digest for name, blob in found.outputs.items()}
        store.put_verdict(key, {"format": "stagecraft.verdict.v1", "key": key, "outputs": judged, "findings": []})
        store.set_root(text, {"keys": [key], "blobs": []})
    return found
