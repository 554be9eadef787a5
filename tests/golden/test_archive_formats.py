"""Every file that the store writes satisfies its schema in docs/formats, and the schemas refuse what is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cache import canonical
from cache.archive import LayerWriter
from cache.store import Store
from tests.support.stores import build, record_of

FORMATS = Path(__file__).parents[2] / "docs" / "formats"
KEY = "sha256:" + "0" * 64


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((FORMATS / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    build(tmp_path / "store")
    store = Store.open(tmp_path / "store")
    store.publish(record_of(store, output=b"another"))
    store.set_root("thor", {"format": "stagecraft.root.v1", "keys": [KEY], "blobs": [KEY], "target": "thor",
                            "link": "/home/me/result-thor", "points_to": "/store/images/thor"})
    return store


def documents(store: Store) -> Iterator[tuple[str, Any]]:
    yield "store", store.root / "store.json"
    for path in (store.root / "records").glob("*/*/*.json"):
        yield "record", path
    for path in (store.root / "ledger").iterdir():
        yield "ledger", path
    yield "root", store.root / "roots" / "thor.json"
    for path in (store.root / "verdicts").glob("*/*.json"):
        yield "verdict", path


def test_what_the_store_writes(store: Store) -> None:
    seen = set()
    for name, path in documents(store):
        value = canonical.loads(path.read_bytes())
        if name == "verdict":  # the checks' own tests validate those
            continue
        validator(name).validate(value)
        if name == "record":
            validator("derivation").validate(value["derivation"])
        seen.add(name)
        for key in value:
            broken = {**value, key: 1.5}
            assert not validator(name).is_valid(broken), key
        if name != "root":
            assert not validator(name).is_valid({**value, "more": 1})
    assert seen == {"store", "record", "ledger", "root"}


def test_layer_index(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    with LayerWriter(store) as writer:
        writer.directory("a", 0o1777, 1, 0)
        writer.file("a/b", 3, [b"abc"], 0o4755)
        writer.hardlink("a/c", "a/b")
        writer.symlink("a/d", "/x")
        layer = writer.finish()
    check = validator("layer-index")
    lines = [json.loads(line) for line in store.read(layer.index.digest).splitlines()]
    for line in lines:
        check.validate(line)
        assert not check.is_valid({**line, "more": 1})
        for key in line:
            assert not check.is_valid({name: value for name, value in line.items() if name != key}), key
    for path in ("/a", "a/", "a//b", "../a", "a/..", "./a", "."):
        assert not check.is_valid({**lines[1], "path": path}), path


def test_the_example_of_a_derivation_is_one() -> None:
    text = (FORMATS / "derivation.md").read_text(encoding="utf-8")
    example = json.loads("".join(line[4:] for line in text.splitlines() if line.startswith("    ")))
    validator("derivation").validate(example)
    golden = "ae8a4db7167f3d73a3db3a647fd3be7d2de29749c0fa26f4459a03a262f9dc9d"
    assert canonical.digest_of("derivation", example) == f"sha256:{golden}"
    planned = {**example, "inputs": {"index": {"plan": KEY, "output": "index"}}}
    validator("derivation").validate(planned)
    assert not validator("record").is_valid({"format": "stagecraft.record.v1", "key": KEY, "derivation": planned,
                                             "outputs": {}, "facts": {}}), "records hold the action form"
