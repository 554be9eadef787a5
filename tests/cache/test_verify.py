from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cache import gc, verify
from cache.canonical import sha256
from cache.store import Record, Store
from cache.verify import Share
from tests.support.stores import build, derivation, key_of, record_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def delete(path: Path) -> None:
    path.unlink()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    overwrite(path, bytes(data))


def cut(path: Path) -> None:
    overwrite(path, path.read_bytes()[:-1])


def test_a_sound_store(store: Store) -> None:
    build(store.root, size=3 << 20)
    seen: list[tuple[int, int]] = []
    report = verify.verify(store, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert report.findings == ()
    assert (report.blobs, report.records, report.verdicts) == (3, 1, 1)
    assert report.size == (3 << 20) + 1 + 4
    assert seen[-1] == (report.size, report.size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(("damage", "hit", "kinds"), [
    (delete, False, ["dangling"]), (flip, True, ["blob", "dangling"]), (cut, False, ["blob", "dangling"]),
])
def test_a_blob_damaged_behind_our_back_is_found_named_and_made_again(
        store: Store, damage: Callable[[Path], None], hit: bool, kinds: list[str]) -> None:
    record = build(store.root, size=1 << 16)
    large = record.outputs["large"]
    damage(store.path_of(large.digest))
    assert (store.lookup(record.key) is not None) == hit
    report = verify.verify(store)
    assert [finding.kind for finding in report.findings] == kinds
    assert report.ok == (kinds == ["dangling"])
    for finding in report.findings:
        assert not finding.repaired
        assert "stage x" in finding.needed_by
        assert large.digest in f"{finding.name} {finding.problem}"
    repaired = verify.verify(store, repair=True)
    assert [finding.repaired for finding in repaired.findings] == [kind == "blob" for kind in kinds]
    # Never "run clean": what is damaged is a miss now, the next build makes it again.
    assert store.lookup(record.key) is None
    assert verify.verify(store).ok
    assert build(store.root, size=1 << 16) == record
    assert verify.verify(store).findings == ()
    assert list((store.root / "trash").iterdir()) == []


def test_what_is_right_is_not_touched_by_repair(store: Store) -> None:
    build(store.root)
    before = {path: path.stat().st_ino for path in store.root.rglob("*") if path.is_file()}
    verify.verify(store, repair=True)
    assert {path: path.stat().st_ino for path in store.root.rglob("*") if path.is_file()} == before


def test_a_blob_that_was_replaced_during_repair_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = store.put(b"content")
    path = store.path_of(blob.digest)
    cut(path)

    def trash(of: Store) -> str:
        store.put(b"content")  # somebody builds it again, after it was read and found damaged
        return gc.trash_directory(of)

    monkeypatch.setattr(verify, "trash_directory", trash)
    finding, = verify.verify(store, repair=True).findings
    assert not finding.repaired
    assert store.read(blob.digest) == b"content"


@pytest.mark.parametrize(("content", "problem"), [
    (b"", "canonical"), (b"{}", "malformed"), (b'{"format": 1}', "canonical"), (b"[]", "malformed"),
])
def test_a_damaged_record(store: Store, content: bytes, problem: str) -> None:
    record = store.publish(record_of(store))
    path = next((store.root / "records").glob("*/*/*"))
    overwrite(path, content)
    finding, = verify.verify(store, repair=True).findings
    assert (finding.kind, finding.name, finding.repaired) == ("record", str(path.relative_to(store.root)), True)
    assert problem in finding.problem
    assert not path.exists()
    assert store.publish(record) == record


def test_records_that_contradict_their_place_or_themselves(store: Store) -> None:
    record = store.publish(record_of(store))
    path = next((store.root / "records").glob("*/*/*"))
    data = path.read_bytes()
    path.rename(path.with_name("f" * 64 + ".json"))
    moved = store.root / "records" / "ab" / ("ab" * 32)
    moved.mkdir(parents=True)
    (moved / path.name).write_bytes(data)
    other = Record(key_of(derivation("y")), record.derivation, record.outputs)
    store.publish(other)
    problems = {finding.problem for finding in verify.verify(store).findings}
    assert problems == {f"its outputs are {record.outputs_digest()}", f"it is a record of {record.key}",
                        "its key is not the digest of its derivation"}


@pytest.mark.parametrize("part", ["verdicts", "roots", "ledger"])
def test_other_damaged_documents(store: Store, part: str) -> None:
    build(store.root)
    store.publish(record_of(store, output=b"second"))
    path = next(path for path in (store.root / part).rglob("*.json"))
    for content in (b"{", b"[]", b'{"a": 1}', *([b'{"key":"sha256:0"}'] if part != "roots" else [])):
        overwrite(path, content)
        finding, = verify.verify(store).findings
        assert finding.name == str(path.relative_to(store.root))
        assert finding.kind == part.removesuffix("s")
    assert verify.verify(store, repair=True).findings[0].repaired
    assert verify.verify(store).findings == ()


def test_image_layouts(store: Store) -> None:
    blob = store.put(b"layer")
    directory = store.root / "images" / "thor" / "blobs" / "sha256"
    directory.mkdir(parents=True)
    (directory / blob.digest[7:]).symlink_to(os.path.relpath(store.path_of(blob.digest), directory))
    (directory / sha256(b"own")[7:]).write_bytes(b"own")
    assert verify.verify(store).findings == ()
    overwrite(directory / sha256(b"own")[7:], b"0wn")
    delete(store.path_of(blob.digest))
    found = verify.verify(store).findings
    assert [(finding.kind, finding.name) for finding in found] == [("dangling", "images/thor"),
                                                                  ("image", "images/thor")]
    assert blob.digest in found[0].problem
    assert sha256(b"own") in found[1].problem


def test_a_name_that_is_no_digest(store: Store) -> None:
    (store.root / "blobs" / "sha256" / "zz").mkdir(parents=True)
    (store.root / "blobs" / "sha256" / "zz" / "zz-top").write_bytes(b"x")
    finding, = verify.verify(store, repair=True).findings
    assert (finding.kind, finding.problem, finding.repaired) == ("blob", "its name is no digest", True)
    assert verify.verify(store).findings == ()


def test_info(store: Store) -> None:
    wheel = store.put(b"wheel" * 100)
    record = store.publish(record_of(store, "x" * 1000, wheel=wheel.digest))
    store.put(b"nobody's")
    store.set_root("thor", {"keys": [record.key]})
    found = verify.info(store)
    assert found.blobs == {"layers": Share(1, 1000), "outputs": Share(1, 4), "inputs": Share(1, 500),
                           "other": Share(1, 8)}
    assert found.parts["records"].count == 1
    assert found.roots == ("thor",)
    assert found.nondeterministic == ()
    assert found.size == 1512 + sum(share.size for share in found.parts.values())
    store.publish(record_of(store, "x" * 1000, b"other", wheel=wheel.digest))
    assert verify.info(store).nondeterministic == (record.key,)
