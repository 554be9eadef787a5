"""What leaves the store: what is said of an image that was not built from its inputs alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.store import Record
from stages.deliver import impurities
from stages.graph import key_of
from stages.tasks import Session
from tests.support.project import stage, write_target


def test_stage_that_used_what_is_in_no_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_STORE", str(tmp_path / "store"))
    write_target(tmp_path)
    session = Session(tmp_path)
    store = session.project.store
    keys = {}
    for name, notes in (("clean", []), ("compiled", ["results of compilers were kept between builds"])):
        derivation = stage(name, name).derivation({})
        keys[name] = key_of(derivation)
        facts = {"ms": 1, "finished": 1, "stage": name, **({"notes": notes} if notes else {})}
        store.publish(Record(keys[name], derivation, {"out": store.put(name.encode())}, facts))
    assert impurities(session, "small") == []
    store.set_root(session.project.root_name("small"), {
        "format": "stagecraft.root.v1", "target": "small", "stages": keys, "keys": sorted(keys.values()), "blobs": [],
        "link": str(tmp_path / "link"), "points_to": str(tmp_path)})
    assert impurities(session, "small") == [("compiled", "results of compilers were kept between builds")]
