from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from cache import gc, verify
from cache.canonical import sha256
from cache.errors import IntegrityError
from cache.inventory import BlobFile, RecordFile
from cache.store import Store
from tests.support.processes import Child, run
from tests.support.stores import derivation, key_of, record_of

DAY = 86400


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Store.open(tmp_path / "store")
    return tmp_path / "store"


def publish(root: Path, text: str, *files: bytes) -> str:
    """Publish a record in a process of its own, so that no session of this one keeps it; returns its key."""
    def work() -> str:
        store = Store.open(root)
        inputs = {f"wheels/{number}": store.put(data).digest for number, data in enumerate(files)}
        return store.publish(record_of(store, text, log=f"log of {text}".encode(), **inputs)).key
    key: str = run(work)
    return key


def put(root: Path, data: bytes) -> str:
    digest: str = run(lambda: Store.open(root).put(data).digest)
    return digest


def set_root(root: Path, name: str, **content: object) -> None:
    run(lambda: Store.open(root).set_root(name, content))


def age(root: Path, days: float) -> None:
    """Make everything that is in the store now older."""
    for path in root.rglob("*"):
        if not path.is_symlink():
            there = path.stat()
            os.utime(path, (there.st_atime - days * DAY, there.st_mtime - days * DAY))


def removed(report: gc.GcReport) -> set[tuple[str, str]]:
    return {(item.kind, item.name) for item in report.removed if item.kind not in ("session", "lock")}


def alive(root: Path, *contents: bytes) -> list[bool]:
    store = Store.open(root)
    return [store.has(sha256(data)) for data in contents]


def test_what_a_root_names_stays_and_the_rest_goes(root: Path) -> None:
    kept = publish(root, "kept", b"wheel of kept")
    publish(root, "other", b"wheel of other")
    loose, named = put(root, b"loose"), put(root, b"named")
    set_root(root, "thor", keys=[kept], blobs=[named])
    report = gc.collect(Store.open(root))
    store = Store.open(root)
    assert store.lookup(kept) is not None
    assert store.lookup(key_of(derivation("other"))) is None
    assert alive(root, b"kept", b"wheel of kept", b"log of kept", b"named") == [True] * 4
    assert alive(root, b"other", b"wheel of other", b"log of other", b"loose") == [False] * 4
    kinds = sorted(item.kind for item in report.removed if item.kind not in ("session", "lock"))
    assert kinds == ["blob", "input", "output", "output", "record"]
    assert {item.name for item in report.removed if item.kind == "blob"} == {loose}
    assert all(item.why for item in report.removed)
    assert report.roots == ("thor",)
    assert report.freed == sum(item.size for item in report.removed)
    assert report.kept == sum(len(data) for data in (b"kept", b"wheel of kept", b"log of kept", b"named"))
    assert verify.verify(store).findings == ()
    assert list((root / "trash").iterdir()) == []
    assert removed(gc.collect(store)) == set()


def test_a_dry_run_says_the_same_and_does_nothing(root: Path) -> None:
    publish(root, "other", b"wheel")
    put(root, b"loose")
    before = sorted(path for path in root.rglob("*") if "locks" not in path.parts)
    dry = gc.collect(Store.open(root), dry_run=True)
    assert sorted(path for path in root.rglob("*") if "locks" not in path.parts) == before
    assert dry.dry_run
    assert gc.collect(Store.open(root)).removed == dry.removed
    assert alive(root, b"other", b"wheel", b"loose") == [False] * 3


def test_all_records_of_a_kept_key_stay(root: Path) -> None:
    """Also the second one of a stage that is not deterministic, with its entry in the ledger."""
    key = publish(root, "x")
    run(lambda: Store.open(root).publish(record_of(Store.open(root), output=b"second")).key)
    set_root(root, "r", keys=[key])
    gc.collect(Store.open(root))
    assert len(Store.open(root).records(key)) == 2
    assert len(Store.open(root).ledger()) == 1
    run(lambda: Store.open(root).remove_root("r"))
    assert ("ledger", f"{key[7:]}.json") in removed(gc.collect(Store.open(root)))
    assert Store.open(root).ledger() == []


def test_locked_files_can_be_dropped(root: Path) -> None:
    """They are needed to build again only; the blobs of a base image's layers are in the layout, and stay."""
    key = publish(root, "kept", b"wheel", b"base layer")
    layout = root / "images" / "thor"
    (layout / "blobs" / "sha256").mkdir(parents=True)
    value = sha256(b"base layer")[7:]
    (layout / "blobs" / "sha256" / value).symlink_to(f"../../../../blobs/sha256/{value[:2]}/{value}")
    link = root.parent / "result-thor"
    link.symlink_to(layout)
    set_root(root, "r", keys=[key], link=str(link), points_to=str(layout))
    gc.collect(Store.open(root), keep_inputs=False)
    assert alive(root, b"kept", b"wheel", b"base layer") == [True, False, True]


def test_a_root_counts_while_its_link_does(root: Path, tmp_path: Path) -> None:
    key = publish(root, "x")
    layout, link = root / "images" / "thor", tmp_path / "result-thor"
    layout.mkdir(parents=True)
    link.symlink_to(layout)
    set_root(root, "r", keys=[key], link=str(link), points_to=str(layout))
    age(root, 1)
    assert removed(gc.collect(Store.open(root))) == set()
    link.unlink()
    link.symlink_to(tmp_path)
    why = {item.kind: item.why for item in gc.collect(Store.open(root), dry_run=True).removed}
    assert "points elsewhere" in why["root"]
    link.unlink()
    report = gc.collect(Store.open(root))
    assert {"root", "image", "record", "output"} <= {item.kind for item in report.removed}
    assert str(link) in next(item.why for item in report.removed if item.kind == "root")
    assert not layout.exists()
    assert Store.open(root).roots() == {}
    assert alive(root, b"x") == [False]


def test_a_root_whose_link_is_about_to_be_made(root: Path, tmp_path: Path) -> None:
    """The root is written first, then the link: collection in between must not take the root."""
    store = Store.open(root)
    store.set_root("r", {"keys": [], "link": str(tmp_path / "result"), "points_to": str(root / "images" / "x")})
    run(lambda: gc.collect(Store.open(root)))
    assert store.roots().keys() == {"r"}


def test_a_damaged_root_stops_collection(root: Path) -> None:
    publish(root, "x")
    set_root(root, "r", keys=[])
    path = root / "roots" / "r.json"
    path.chmod(0o644)
    path.write_bytes(b'{"keys": [')
    with pytest.raises(IntegrityError):
        gc.collect(Store.open(root))
    assert alive(root, b"x") == [True]


def test_keep_days(root: Path) -> None:
    old = publish(root, "old")
    put(root, b"old download")
    age(root, 10)
    new = publish(root, "new", b"new wheel")
    put(root, b"new download")
    gc.collect(Store.open(root), keep_days=7)
    store = Store.open(root)
    assert (store.lookup(old), store.lookup(new) is not None) == (None, True)
    assert alive(root, b"old", b"old download", b"new wheel", b"new download") == [False, False, True, True]
    gc.collect(store, keep_days=7, now=time.time() + 8 * DAY)
    assert alive(root, b"new", b"new wheel", b"new download") == [False] * 3


def test_a_blob_from_before_stays_for_a_record_of_now(root: Path) -> None:
    put(root, b"wheel")
    age(root, 10)
    publish(root, "new", b"wheel")
    gc.collect(Store.open(root), keep_days=7)
    assert alive(root, b"new", b"wheel") == [True, True]


def test_max_size_keeps_the_newest_that_fits(root: Path) -> None:
    contents = [f"{number}".encode() * 1000 for number in range(4)]
    keys = []
    for data in contents:
        keys.append(publish(root, data.decode()))
        age(root, 1)
    set_root(root, "r", keys=[keys[0]])
    gc.collect(Store.open(root), max_size=10**9)
    assert alive(root, *contents) == [True] * 4
    one = len(contents[0]) + len(f"log of {contents[0].decode()}")
    report = gc.collect(Store.open(root), max_size=2 * one + 10)
    assert alive(root, *contents) == [True, False, False, True]
    assert (report.kept, report.over) == (2 * one, 0)
    report = gc.collect(Store.open(root), max_size=one - 1)
    assert alive(root, *contents) == [True, False, False, False], "what a root needs stays in any case"
    assert report.over == 1


def test_decide_is_pure() -> None:
    def blob(size: int, days: int) -> BlobFile:
        return BlobFile(size, int((100 - days) * DAY * 1e9), 0)

    record = RecordFile("ab/k/o.json", "k", 1, 0, frozenset({"out"}), frozenset({"file"}))
    dependent = RecordFile("ab/l/o.json", "l", 1, 0, frozenset({"end"}), frozenset({"out"}))
    damaged = RecordFile("ab/d/o.json", "k", 1, 0, damaged=True)
    blobs = {name: blob(1, 50) for name in ("out", "file", "end", "used", "loose")}

    def found(*keys: str) -> gc.Found:
        return gc.Found(100 * DAY, {"r": {"keys": keys}}, {}, frozenset({"used"}), blobs,
                        (record, dependent, damaged), {}, frozenset())

    assert gc.decide(found("k"), None, None, True).blobs == {"out", "file", "used"}
    assert gc.decide(found("k"), None, None, False).blobs == {"out", "used"}
    assert gc.decide(found("l"), None, None, True).blobs == {"end", "out", "used"}
    assert gc.decide(found("l"), None, None, False).blobs == {"end", "used"}
    assert gc.decide(found("k", "l"), None, None, False).blobs == {"end", "out", "used"}
    assert gc.decide(found("k"), 51, None, True).blobs == blobs.keys()
    assert gc.decide(found("k"), None, None, True).records == {record.name}


# -- beside builders ------------------------------------------------------------------------------


def test_what_a_running_process_uses_stays(root: Path) -> None:
    """Blobs, what it committed but nobody names yet, and records with all that they name."""
    used, record = put(root, b"used"), publish(root, "record", b"wheel")
    store = Store.open(root)
    store.use(used)
    store.put(b"committed")
    assert store.lookup(record, use=True) is not None
    run(lambda: gc.collect(Store.open(root)))
    assert alive(root, b"used", b"committed", b"record", b"wheel", b"log of record") == [True] * 5
    assert store.lookup(record) is not None
    del store
    gc.collect(Store.open(root))
    assert alive(root, b"used", b"committed", b"record", b"wheel") == [False] * 4


def test_a_published_record_stays_while_its_builder_lives(root: Path) -> None:
    """A build of many stages roots only its end."""
    store = Store.open(root)
    key = store.publish(record_of(store, "stage")).key
    run(lambda: gc.collect(Store.open(root)))
    assert store.lookup(key) is not None


def test_a_killed_process_uses_nothing(root: Path) -> None:
    def dies() -> None:
        store = Store.open(root)
        store.put(b"x")
        with store.writer() as writer:
            writer.write(b"half")
            os.kill(os.getpid(), 9)

    assert Child(dies).wait().signal == 9
    report = gc.collect(Store.open(root))
    assert {item.kind for item in report.removed} == {"blob", "session", "tmp"}
    assert list((root / "tmp").iterdir()) == []


def test_what_is_being_written_stays(root: Path) -> None:
    store = Store.open(root)
    with store.writer() as writer, store.partial(sha256(b"p")) as part:
        writer.write(b"half")
        part.write(b"p")
        run(lambda: gc.collect(Store.open(root), keep_days=0))
        part.commit()
        writer.write(b" done")
        writer.commit()
    assert alive(root, b"half done", b"p") == [True, True]


def test_builders_beside_collection(root: Path) -> None:
    """Builders that publish, use and read as fast as they can, collection without pause: nobody ever misses a thing."""
    until = time.time() + 3

    def builder(seed: int) -> int:
        turns = 0
        while time.time() < until:
            store = Store.open(root)  # a session of its own: what the last turn left is garbage
            for turn in range(8):
                text = f"{(turns + turn) % 5}"
                with store.locked(f"build-{text}"):
                    found = store.lookup(key_of(derivation(text)), use=True)
                    found = found or store.publish(record_of(store, text, log=text.encode()))
                for blob in found.outputs.values():
                    assert store.use(blob.digest).read_bytes() == text.encode()
                assert store.read(str(found.facts["log"])) == text.encode()
            for turn in range(8):
                assert store.lookup(key_of(derivation(f"{(turns + turn) % 5}"))) is not None
            turns += 1
        return turns

    builders = [Child(lambda seed=seed: builder(seed)) for seed in range(3)]
    rounds = dropped = 0
    while time.time() < until:
        report = gc.collect(Store.open(root))
        dropped += sum(item.kind == "record" for item in report.removed)
        rounds += 1
    for child in builders:
        ended = child.wait()
        assert ended.error is None
        assert ended.value > 0
    assert rounds > 0
    assert dropped > 0, "collection never met garbage: the test shows nothing"
    assert verify.verify(Store.open(root)).findings == ()


def test_collection_waits_for_who_enters_a_name_and_the_other_way_round(root: Path) -> None:
    """The gate: while a name is entered (shared), collection does not mark; while it sweeps, nobody enters."""
    store = Store.open(root)
    digest = put(root, b"x")
    done = threading.Event()
    with store._session.guard():
        thread = threading.Thread(target=lambda: (gc.collect(Store.open(root)), done.set()))
        thread.start()
        assert not done.wait(0.3)
        assert store.has(digest)
    assert done.wait(10)
    thread.join()
    assert not store.has(digest)


# -- the rest of the store ------------------------------------------------------------------------


def test_verdicts_go_with_what_they_judged(root: Path) -> None:
    key = publish(root, "kept")
    set_root(root, "r", keys=[key])
    store = Store.open(root)
    kept, other, strange = sha256(b"1"), sha256(b"2"), sha256(b"3")
    store.put_verdict(kept, {"outputs": {"layer": sha256(b"kept")}})
    store.put_verdict(other, {"outputs": {"layer": sha256(b"kept"), "index": sha256(b"gone")}})
    store.put_verdict(strange, {})
    gc.collect(store)
    assert [store.verdict(verdict) is not None for verdict in (kept, other, strange)] == [True, False, False]


def test_unfinished_downloads_and_failed_logs_wait_a_week(root: Path) -> None:
    def leave(digest: str) -> None:
        with Store.open(root).partial(digest) as part:
            part.write(b"half")
            part.keep()

    run(lambda: leave(sha256(b"a")))
    (root / "logs").mkdir()
    (root / "logs" / "x.log").write_text("failed")
    assert removed(gc.collect(Store.open(root))) == set()
    age(root, 8)
    assert removed(gc.collect(Store.open(root), keep_days=30)) == set()
    assert {kind for kind, _ in removed(gc.collect(Store.open(root)))} == {"partial", "log"}
    run(lambda: leave(sha256(b"b")))
    kept = Store.open(root)
    kept.put(b"b")
    assert {item.why for item in gc.collect(kept).removed if item.kind == "partial"} == {"its blob is there"}


def test_locks_that_nobody_holds_go(root: Path) -> None:
    store = Store.open(root)
    with store.locked("free"):
        pass
    with store.locked("held"):
        run(lambda: gc.collect(Store.open(root)))
        assert sorted(os.listdir(root / "locks")) == ["gc", "held"]


def test_a_lock_or_download_that_was_taken_after_the_look_stays(root: Path) -> None:
    store = Store.open(root)
    digest = sha256(b"p")
    with store.locked("taken"), store.partial(digest):
        gc._sweep(store, ["locks/taken", f"partial/{digest[7:]}"])
        assert (root / "locks" / "taken").exists()
        assert (root / "partial" / digest[7:]).exists()


def test_what_a_killed_collection_left_goes_with_the_next(root: Path) -> None:
    (root / "trash" / "1-x" / "deep").mkdir(parents=True)
    (root / "trash" / "1-x" / "deep" / "file").touch()
    report = gc.collect(Store.open(root))
    assert removed(report) == {("trash", "1-x")}
    assert list((root / "trash").iterdir()) == []


def test_a_path_longer_than_the_kernel_takes_can_be_deleted(root: Path) -> None:
    """One once made Nix's collection fail for ever (Lix c05e20d)."""
    here = os.open(root, os.O_RDONLY)
    try:
        os.mkdir("trash", dir_fd=here)
        at = os.open("trash", os.O_RDONLY, dir_fd=here)
        for _ in range(30):
            os.mkdir("d" * 200, dir_fd=at)
            below = os.open("d" * 200, os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        os.close(at)
    finally:
        os.close(here)
    gc.collect(Store.open(root))
    assert list((root / "trash").iterdir()) == []


def test_a_clock_from_the_future_makes_nothing_old(root: Path) -> None:
    put(root, b"x")
    age(root, -400)
    gc.collect(Store.open(root), keep_days=1)
    assert alive(root, b"x") == [True]
