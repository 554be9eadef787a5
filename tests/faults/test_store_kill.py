"""kill -9 at every system call of a build's publish path: nothing wrong is published, the next run goes on."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from cache import blobs, gc, partial, verify  # noqa: F401  (imported here, so that no child has to)
from cache.canonical import sha256
from cache.store import Store
from tests.support.processes import Child, killed_at, run
from tests.support.stores import build, derivation, key_of

LARGE = 3 << 20  # enough for the writer's thread


def check_after_kill(root: Path, texts: tuple[str, ...] = ("x",)) -> None:
    """What must hold whatever was killed: all that is published is right, nothing is in the way."""
    if not (root / "store.json").exists():
        return
    store = Store.open(root)
    report = verify.verify(store)
    assert report.findings == ()
    for text in texts:
        record = store.lookup(key_of(derivation(text)))
        if record is not None:
            assert store.read(record.outputs["layer"].digest) == text.encode()
            assert record.outputs["large"].size == LARGE
            assert record.facts["log"] == sha256(b"log\n")


def test_killed_at_every_step(tmp_path: Path) -> None:
    steps = 0
    published = []
    while True:
        root = tmp_path / str(steps)
        ended = Child(killed_at(steps, lambda root=root: build(root, size=LARGE), torn=True)).wait()
        if ended.signal == 0:
            assert ended.error is None
            break
        assert ended.signal == signal.SIGKILL
        check_after_kill(root)
        published.append(root.exists() and run(lambda root=root: Store(root).lookup(key_of(derivation())) is not None))
        # The next run, in the same place, ends well and leaves nothing behind.
        run(lambda root=root: build(root, size=LARGE) and None)
        store = Store.open(root)
        found = store.lookup(key_of(derivation()))
        assert found is not None
        assert store.read(found.outputs["layer"].digest) == b"x"
        report = gc.collect(store)
        assert {item.kind for item in report.removed} <= {"tmp", "session", "lock"}
        assert list((root / "tmp").iterdir()) == []
        assert store.lookup(key_of(derivation())) is not None
        steps += 1
    assert steps > 60, "the whole publish path was not walked"
    assert published == sorted(published), "once published, a record stays"
    assert set(published) == {False, True}


def test_a_partial_download_killed_at_every_step_goes_on(tmp_path: Path) -> None:
    content = bytes(range(256)) * 64
    digest = sha256(content)

    def download(root: Path) -> None:
        store = Store.open(root)
        if store.has(digest):
            return
        with store.partial(digest) as part:
            part.rehash()
            for at in range(part.size, len(content), 4096):
                part.write(content[at:at + 4096])
            part.commit()

    for step in range(1000):
        root = tmp_path / str(step)
        ended = Child(killed_at(step, lambda root=root: download(root))).wait()
        if ended.signal == 0:
            assert ended.error is None
            assert step > 30
            break
        check_after_kill(root)
        run(lambda root=root: download(root))
        assert Store.open(root).read(digest) == content
        gc.collect(Store.open(root), keep_days=1)
        assert list((root / "partial").glob("*")) == []
        assert Store.open(root).has(digest)
    else:
        pytest.fail("it never came to its end")


@pytest.mark.parametrize("seed", range(4))
def test_two_builders_killed_at_random_steps(tmp_path: Path, seed: int) -> None:
    """Both build the same two keys in one store; one or both die somewhere, again and again."""
    chance = random.Random(seed)
    killed = 0
    for _ in range(12):
        children = [Child(killed_at(chance.randrange(160), lambda: [build(tmp_path, text, LARGE) for text in "xy"],
                                    torn=True)) for _ in range(2)]
        for ended in [child.wait() for child in children]:
            assert ended.error is None
            killed += ended.signal == signal.SIGKILL
        check_after_kill(tmp_path, ("x", "y"))
    assert killed
    run(lambda: [build(tmp_path, text, LARGE) for text in "xy"] and None)
    check_after_kill(tmp_path, ("x", "y"))
    store = Store.open(tmp_path)
    assert all(store.lookup(key_of(derivation(text))) for text in "xy")
    assert store.ledger() == []


def test_collection_killed_at_every_step(tmp_path: Path) -> None:
    """What roots keep is there after any kill; what is left over goes with the next collection."""
    steps = 0
    while True:
        root = tmp_path / str(steps)
        build(root, "kept")
        build(root, "dropped")
        Store.open(root).remove_root("dropped")
        ended = Child(killed_at(steps, lambda root=root: gc.collect(Store.open(root)))).wait()
        store = Store.open(root)
        assert verify.verify(store).findings == ()
        assert store.lookup(key_of(derivation("kept"))) is not None
        if ended.signal == 0:
            assert ended.error is None
            assert store.lookup(key_of(derivation("dropped"))) is None
            break
        gc.collect(store)
        assert store.lookup(key_of(derivation("kept"))) is not None
        assert store.lookup(key_of(derivation("dropped"))) is None
        assert not store.has(sha256(b"dropped"))
        assert list((root / "trash").iterdir()) == []
        steps += 1
    assert steps > 20
