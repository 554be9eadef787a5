from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cache import gc, verify
from cache.derived import derived, known
from cache.store import Store
from tests.support.processes import run

DIGEST = "sha256:" + "ab" * 32


class Maker:
    def __init__(self, fact: bytes = b"fact" * 1000) -> None:
        self.calls, self.fact = 0, fact

    def __call__(self) -> bytes:
        self.calls += 1
        return self.fact


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def files(store: Store) -> list[Path]:
    return [path for path in (store.root / "derived").rglob("*") if path.is_file()]


def test_made_once_and_then_kept(store: Store) -> None:
    make = Maker()
    assert known(store, "symbols", 1, DIGEST) is None
    assert derived(store, "symbols", 1, DIGEST, make) == make.fact == derived(store, "symbols", 1, DIGEST, make)
    assert make.calls == 1
    assert known(store, "symbols", 1, DIGEST) == make.fact


def test_another_version_and_another_kind_are_other_facts(store: Store) -> None:
    derived(store, "symbols", 1, DIGEST, Maker())
    for kind, version in (("symbols", 2), ("kernels", 1)):
        make = Maker(b"other")
        assert derived(store, kind, version, DIGEST, make) == b"other"
        assert make.calls == 1


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 400])
def test_damaged_entry_is_made_again(store: Store, damage: bytes) -> None:
    derived(store, "symbols", 1, DIGEST, Maker())
    path, = files(store)
    path.chmod(0o644)
    path.write_bytes(damage)
    make = Maker()
    assert derived(store, "symbols", 1, DIGEST, make) == make.fact
    assert make.calls == 1
    assert known(store, "symbols", 1, DIGEST) == make.fact


def test_cut_entry_is_made_again(store: Store) -> None:
    derived(store, "symbols", 1, DIGEST, Maker())
    path, = files(store)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    make = Maker()
    assert derived(store, "symbols", 1, DIGEST, make) == make.fact
    assert make.calls == 1


def test_store_that_cannot_be_written_is_no_obstacle(store: Store) -> None:
    def work() -> bytes:
        os.setgid(65534)
        os.setuid(65534)
        return derived(store, "symbols", 1, DIGEST, Maker(b"fact"))

    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    store.root.chmod(0o755)
    for parent in store.root.parents:
        if parent.owner() == "root" and parent != Path("/") and str(parent).startswith("/tmp/pytest"):
            parent.chmod(0o755)
    assert run(work) == b"fact"
    assert files(store) == []


def test_collection_drops_what_was_not_used_for_a_month_and_keeps_the_rest(store: Store) -> None:
    other = "sha256:" + "cd" * 32
    derived(store, "symbols", 1, DIGEST, Maker())
    derived(store, "symbols", 1, other, Maker())
    for path in files(store):
        os.utime(path, (0, time.time() - 31 * 86400))
    assert derived(store, "symbols", 1, other, Maker()) == Maker().fact  # a use
    report = gc.collect(store)
    assert [item.name for item in report.removed if item.kind == "derived"] == [f"symbols-1/ab/{'ab' * 32}"]
    assert known(store, "symbols", 1, DIGEST) is None
    assert known(store, "symbols", 1, other) is not None


def test_sizes_say_it(store: Store) -> None:
    derived(store, "symbols", 1, DIGEST, Maker())
    assert verify.info(store).parts["derived"].count == 1


def test_kind_cannot_lead_out_of_its_directory(store: Store) -> None:
    with pytest.raises(ValueError, match="not a kind"):
        derived(store, "../blobs", 1, DIGEST, Maker())
