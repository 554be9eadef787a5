"""Disks that are full, read-only or not ours: clear words, nothing published, nothing left behind."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache import archive, durable, gc, partial, verify
from cache.archive import LayerWriter
from cache.canonical import sha256
from cache.errors import StoreError
from cache.store import Store
from tests.support.processes import Child, as_user, run
from tests.support.small_disk import read_only, small_disk
from tests.support.stores import build, derivation, key_of, record_of

LOADED = (archive, partial)  # here, because another user's child may not be able to read the source


def write_zeros(store: Store, count: int) -> None:
    with store.writer() as writer:
        for _ in range(count):
            writer.write(bytes(1 << 20))
        writer.commit()


def write_layer(store: Store, size: int) -> None:
    with LayerWriter(store) as writer:
        writer.file("large", size, (bytes(1 << 16) for _ in range(size >> 16)))
        writer.finish()


def fill(disk: Path) -> list[Path]:
    """Use up the disk, to the last block."""
    fillers: list[Path] = []
    try:
        for number in range(100_000):
            fillers.append(disk / f"filler-{number}")
            fillers[-1].write_bytes(bytes(65536 if number < 40 else 1))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return fillers
        raise
    raise AssertionError("the disk did not become full")


def test_a_full_disk_while_a_large_blob_is_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        store = Store.open(disk / "store")
        before = store.put(b"before")
        with pytest.raises(StoreError) as caught:
            write_zeros(store, 8)
        assert "full" in caught.value.message
        assert "store:gc" in str(caught.value.cure)
        assert caught.value.where == str(disk / "store")
        assert [path.name for path in (disk / "store" / "blobs").rglob("?" * 64)] == [before.digest[7:]]
        assert list((disk / "store" / "tmp").iterdir()) == []
        assert store.put(b"room again").size == 10


def test_a_full_disk_while_a_layer_is_written_publishes_no_part_of_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        store = Store.open(disk / "store")
        with pytest.raises(StoreError, match="full"):
            write_layer(store, 16 << 20)
        assert list((disk / "store" / "tmp").iterdir()) == []
        assert verify.verify(store).blobs == 0


def test_a_full_disk_at_the_record(tmp_path: Path) -> None:
    """The blobs are there, the record is not: a miss, and no damage."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        store = Store.open(disk / "store")
        record = record_of(store)
        fillers = fill(disk)
        with pytest.raises(StoreError, match="full"):
            store.publish(record)
        for filler in fillers:
            filler.unlink(missing_ok=True)
        assert store.lookup(record.key) is None
        assert verify.verify(store).findings == ()
        assert list((disk / "store" / "tmp").iterdir()) == []
        assert store.publish(record) == record
        assert store.lookup(record.key) == record


def test_a_full_disk_while_downloading_keeps_what_is_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        store = Store.open(disk / "store")

        def download() -> None:
            with store.partial(sha256(b"x")) as part:
                part.keep()
                for _ in range(64):
                    part.write(b"a" * 65536)

        with pytest.raises(StoreError, match="full"):
            download()
        with store.partial(sha256(b"x")) as part:
            assert part.size > 0
            assert part.rehash().hexdigest() == sha256(b"a" * part.size)[7:]


def test_a_read_only_store_answers_and_refuses_to_be_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        built = build(disk / "store")
        unpublished = record_of(Store.open(disk / "store"), "other")
        read_only(disk)
        store = Store.open(disk / "store")
        assert store.lookup(built.key) == built
        assert store.lookup(built.key, use=True) == built
        assert store.read(built.outputs["layer"].digest) == b"x"
        assert store.use(built.outputs["layer"].digest).read_bytes() == b"x"
        assert store.roots().keys() == {"x"}
        assert verify.verify(store).ok
        assert [item.kind for item in gc.collect(store, dry_run=True).removed].count("blob") == 1
        for write in (lambda: store.put(b"new"), lambda: store.publish(unpublished),
                      lambda: store.set_root("r", {"keys": []}), lambda: gc.collect(store),
                      lambda: store.partial(sha256(b"x")).__enter__(), lambda: store.locked("l").__enter__()):
            with pytest.raises(StoreError) as caught:
                write()
            assert "cannot be written" in caught.value.message
            assert "STAGECRAFT_STORE" in str(caught.value.cure)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can reach (pytest's own is its user's)."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_another_users_store_can_be_read(open_directory: Path) -> None:
    built = build(open_directory / "store")

    def other() -> None:
        store = Store.open(open_directory / "store")
        assert store.lookup(built.key, use=True) == built
        assert store.read(built.outputs["layer"].digest) == b"x"
        with pytest.raises(StoreError, match="cannot be written") as caught:
            store.put(b"new")
        assert "docs/store.md" in str(caught.value.cure)

    ended = Child(as_user(60001, 60001, 0o022, other)).wait()
    assert (ended.signal, ended.error and ended.error.diagnostics()) == (0, None)


def test_no_store_where_nothing_may_be_made(open_directory: Path) -> None:
    ended = Child(as_user(60001, 60001, 0o022, lambda: Store.open(open_directory / "store"))).wait()
    assert isinstance(ended.error, StoreError)
    assert "cannot be written" in ended.error.message


def test_users_of_a_group_share_a_store(open_directory: Path) -> None:
    """docs/store.md: one setgid directory that the group may write; umasks do not matter."""
    root = open_directory / "store"
    root.mkdir()
    os.chown(root, 0, 60100)
    root.chmod(0o2775)
    head = b"a" * 5000
    content = head + b"b" * 5000

    def first() -> None:
        store = Store.open(root)
        build(root, "first", 1 << 21)
        with store.partial(sha256(content)) as part:
            part.write(head)
            part.keep()

    def second() -> None:
        store = Store.open(root)
        assert store.lookup(key_of(derivation("first"))) is not None
        for number in range(600):  # into every directory that the first one may have made
            store.put(b"%d" % number)
        build(root, "first")
        build(root, "second")
        with store.partial(sha256(content)) as part:
            assert part.size == len(head)
            part.write(content[len(head):])
            part.commit()
        assert store.read(sha256(content)) == content
        store.remove_root("first")

    def third() -> None:
        store = Store.open(root)
        gc.collect(store)
        assert store.lookup(key_of(derivation("first"))) is None
        assert store.lookup(key_of(derivation("second"))) is not None
        assert not store.has(sha256(content))
        assert list((root / "trash").iterdir()) == []

    for uid, umask, function in ((60001, 0o022, first), (60002, 0o077, second), (60003, 0o027, third)):
        ended = Child(as_user(uid, 60100, umask, function)).wait()
        assert (ended.signal, ended.error and ended.error.diagnostics()) == (0, None)
    for path in root.rglob("*"):
        there = path.lstat()
        assert there.st_gid == 60100, path
        if path.is_dir():
            assert there.st_mode & 0o7777 == 0o2775, path
        elif path.parent.name != "locks":
            assert there.st_mode & 0o777 == 0o444, path


def test_a_shared_directory_is_never_seen_without_its_mode(tmp_path: Path) -> None:
    """Another user may want to write in it the moment it is there."""
    tmp_path.chmod(0o2775)
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o2775)

    def watched() -> list[str]:
        mkdir, bad = os.mkdir, []

        def seen(path: str, mode: int = 0o777) -> None:
            mkdir(path, mode)
            if "/tmp/" not in path.removeprefix(str(root)) and not path.endswith("/tmp"):
                bad.append(path)

        os.umask(0o022)
        os.mkdir = seen  # type: ignore[assignment]
        build(root)
        return bad

    assert run(watched) == []


def test_a_private_store_stays_private(tmp_path: Path) -> None:
    run(lambda: os.umask(0o077) and build(tmp_path / "store"))
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "store").rglob("*") if path.is_dir()} == {0o700}


def test_a_file_system_without_hard_links_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vfat says EPERM to link(2), which a user would read as a matter of rights."""
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(durable.os, "link", refused)
    with pytest.raises(StoreError) as caught:
        Store.open(tmp_path / "store")
    assert "hard links" in str(caught.value.expected)
    assert "local disk" in str(caught.value.cure)
    assert not (tmp_path / "store" / "store.json").exists()
