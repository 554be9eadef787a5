from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cache import canonical, verify
from cache.canonical import sha256
from cache.errors import IntegrityError, StoreError
from cache.store import Blob, Record, Store, default_root, hex_of
from tests.support.processes import Child
from tests.support.stores import build, derivation, key_of, record_of

ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


# -- opening --------------------------------------------------------------------------------------


def test_the_place_of_the_store() -> None:
    assert default_root({"STAGECRAFT_STORE": "/s"}) == Path("/s")
    assert default_root({"XDG_CACHE_HOME": "/c"}) == Path("/c/stagecraft")
    assert default_root({"XDG_CACHE_HOME": "relative"}) == Path("~/.cache/stagecraft").expanduser()
    assert default_root({}) == Path("~/.cache/stagecraft").expanduser()


def test_a_directory_with_other_things_is_not_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError) as caught:
        Store.open(tmp_path)
    assert caught.value.found == "thesis.tex"
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError):
            Store.open(root)


@pytest.mark.parametrize(("marker", "message"), [
    (b'{"format":"stagecraft.store.v9"}', "another format"), (b"", "damaged"), (b"[1]", "another format"),
])
def test_a_store_of_another_format_is_left_alone(store: Store, marker: bytes, message: str) -> None:
    path = store.root / "store.json"
    path.chmod(0o644)
    path.write_bytes(marker)
    with pytest.raises(StoreError, match=message) as caught:
        Store.open(store.root)
    assert caught.value.cure
    assert path.read_bytes() == marker


def test_many_processes_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    children = [Child(lambda: build(tmp_path / "store").key) for _ in range(8)]
    assert {child.wait().value for child in children} == {key_of(derivation())}


# -- blobs ----------------------------------------------------------------------------------------


def test_a_blob_lies_under_its_digest_and_cannot_be_written(store: Store) -> None:
    blob = store.put(b"content")
    assert blob == Blob(sha256(b"content"), 7)
    path = store.root / "blobs" / "sha256" / blob.digest[7:9] / blob.digest[7:]
    assert store.path_of(blob.digest) == path
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o444
    assert path.stat().st_nlink == 1
    assert store.has(blob.digest, 7)
    assert not store.has(blob.digest, 8)
    assert list((store.root / "tmp").iterdir()) == []


def test_the_same_content_twice_is_one_file(store: Store) -> None:
    first = store.put(b"content")
    inode = store.path_of(first.digest).stat().st_ino
    assert store.put([b"con", b"", b"tent"]) == first
    assert store.path_of(first.digest).stat().st_ino == inode


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (9 << 20) + 5])
@pytest.mark.parametrize("piece", [1 << 14, 3 << 20])
def test_content_of_any_size_in_any_pieces(store: Store, size: int, piece: int) -> None:
    content = os.urandom(size)
    buffer = bytearray(piece)
    with store.writer() as writer:
        for at in range(0, size, piece):
            count = len(content[at:at + piece])
            buffer[:count] = content[at:at + count]
            assert writer.write(memoryview(buffer)[:count]) == count  # the buffer is used again at once
        blob = writer.commit(sha256(content))
    assert blob == Blob(sha256(content), size)
    assert store.read(blob.digest) == content


def test_a_wrong_hash_publishes_nothing(store: Store) -> None:
    with store.writer() as writer:
        writer.write(b"other")
        with pytest.raises(IntegrityError) as caught:
            writer.commit(sha256(b"content"))
    assert (caught.value.expected, caught.value.found) == (sha256(b"content"), sha256(b"other"))
    assert not (store.root / "blobs").exists()
    assert list((store.root / "tmp").iterdir()) == []


def test_an_abandoned_writer_leaves_nothing(store: Store) -> None:
    threads = threading.active_count()

    def broken() -> None:
        with store.writer() as writer:
            writer.write(bytes(5 << 20))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert list((store.root / "tmp").iterdir()) == []
    assert threading.active_count() == threads


def test_an_error_of_the_writing_thread_reaches_the_writer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int, pieces: object) -> int:
        raise OSError(5, "Input/output error")

    def write() -> None:
        with store.writer() as writer:
            for _ in range(50):
                writer.write(bytes(1 << 20))
            writer.commit()

    monkeypatch.setattr(os, "writev", broken)
    with pytest.raises(StoreError) as caught:
        write()
    assert caught.value.found == "Input/output error"
    assert list((store.root / "tmp").iterdir()) == []


def test_a_blob_that_was_cut_is_replaced_by_right_content(store: Store) -> None:
    blob = store.put(b"content")
    path = store.path_of(blob.digest)
    path.chmod(0o644)
    path.write_bytes(b"cont")
    store.put(b"content")
    assert path.read_bytes() == b"content"
    with store.partial(blob.digest) as part:
        path.chmod(0o644)
        path.write_bytes(b"content and more")
        part.write(b"content")
        part.commit()
    assert path.read_bytes() == b"content"


def test_a_flipped_blob_is_not_read(store: Store) -> None:
    blob = store.put(b"content")
    store.path_of(blob.digest).chmod(0o644)
    store.path_of(blob.digest).write_bytes(b"c0ntent")
    with pytest.raises(IntegrityError, match="altered") as caught:
        store.read(blob.digest)
    assert "--repair" in str(caught.value.cure)


def test_missing_and_too_large_blobs(store: Store) -> None:
    for read in (store.use, store.open_blob, store.read):
        with pytest.raises(IntegrityError, match="missing"):
            read(sha256(b"no"))
    with pytest.raises(IntegrityError, match="larger than 3"):
        store.read(store.put(b"four").digest, 3)


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:" + "a" * 63, "sha256:" + "A" * 64, "md5:" + "a" * 64,
                                    "sha256:" + "a" * 63 + "/", "sha256:" + "../" * 21 + "a", "a" * 71])
def test_no_path_from_what_is_no_digest(digest: str) -> None:
    with pytest.raises(ValueError, match="digest"):
        hex_of(digest)


def test_threads_share_a_store(store: Store) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(40):
                content = b"%d" % (turn // (1 + number % 2))
                blob = store.put(content)
                assert store.use(blob.digest).read_bytes() == content
                with store.locked(f"l{turn % 3}"):
                    store.publish(record_of(store, f"{turn}"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert verify.verify(store).findings == ()
    assert len(list((store.root / "sessions").iterdir())) == 1


def test_a_session_ends_with_its_store_and_with_its_process(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.put(b"x")
    assert len(list((tmp_path / "sessions").iterdir())) == 1
    descriptors = len(os.listdir("/proc/self/fd"))
    del store
    assert list((tmp_path / "sessions").iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors - 2


# -- records --------------------------------------------------------------------------------------


def test_a_record_is_found_again_whole(store: Store) -> None:
    record = record_of(store)
    assert store.lookup(record.key) is None
    assert store.publish(record) == record
    found = Store.open(store.root).lookup(record.key)
    assert found == record
    assert found is not None
    assert found.derivation == derivation()
    assert found.to_json() == record.to_json()


def test_a_lookup_reads_the_derivation_only_when_asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every no-op looks up every stage, and derivations are large."""
    record = store.publish(record_of(store))
    monkeypatch.setattr(canonical, "loads", None)
    found = store.lookup(record.key)
    assert found is not None
    assert found.outputs == record.outputs
    monkeypatch.undo()
    assert found.facts["stage"] == "x"


def test_outputs_are_read_from_the_right_place(store: Store) -> None:
    """A derivation and outputs that look like the part that a look-up reads."""
    blob, other = store.put(b"x"), store.put(b"yy")
    key = key_of(derivation())
    trap = {"a": 1, "format": "stagecraft.record.v1", "key": key,
            "outputs": {"layer": {"digest": other.digest, "size": 2}}}
    derived = {**derivation(), "params": {"trap": trap, "text": json.dumps(trap, separators=(",", ":"))}}
    record = Record(key, derived, {"outputs": blob, 'a","outputs":{"': blob}, trap)
    store.publish(record)
    found = store.lookup(key)
    assert found is not None
    assert found.outputs == record.outputs
    assert found == record


def test_a_record_whose_blobs_are_not_there_cannot_be_published(store: Store) -> None:
    record = Record(key_of(derivation()), derivation(), {"layer": Blob(sha256(b"no"), 2)})
    with pytest.raises(IntegrityError, match="layer"):
        store.publish(record)
    assert not (store.root / "records").exists()


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [lose, cut])
def test_a_hit_needs_all_blobs(store: Store, damage: Callable[[Path], None]) -> None:
    record = build(store.root, size=1 << 10)
    damage(store.path_of(record.outputs["large"].digest))
    assert store.lookup(record.key) is None
    assert store.records(record.key) == [record]
    assert build(store.root, size=1 << 10) == record
    assert store.lookup(record.key) == record


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b'{"format":"stagecraft.record.v1"}',
                                     b'{"format":"stagecraft.record.v2"}'])
def test_a_damaged_record_is_a_miss_and_is_replaced(store: Store, content: bytes) -> None:
    record = store.publish(record_of(store))
    path = next((store.root / "records").glob("*/*/*.json"))
    path.chmod(0o644)
    path.write_bytes(content)
    assert store.lookup(record.key) is None
    store.publish(record)
    assert store.lookup(record.key) == record


def test_a_record_under_another_key_is_a_miss(store: Store) -> None:
    """Somebody renamed a directory: what it holds is still the record of its own key only."""
    record = store.publish(record_of(store))
    other = key_of(derivation("other"))[7:]
    directory = next((store.root / "records").glob("*/*"))
    target = store.root / "records" / other[:2] / other
    target.parent.mkdir(exist_ok=True)
    directory.rename(target)
    assert store.lookup(f"sha256:{other}") is None
    assert store.lookup(record.key) is None


def test_the_first_record_stays_with_its_facts(store: Store) -> None:
    first = store.publish(record_of(store))
    again = Record(first.key, first.derivation, first.outputs, {"ms": 999})
    store.publish(again)
    assert store.lookup(first.key) == first
    assert store.ledger() == []


def test_two_different_outputs_are_entered_in_the_ledger_and_the_first_counts(store: Store) -> None:
    first = store.publish(record_of(store, output=b"first"))
    second = record_of(store, output=b"second")
    assert store.publish(second) == first
    assert store.lookup(first.key) == first
    entry = {"format": "stagecraft.ledger.v1", "key": first.key, "kept": first.outputs_digest()}
    assert store.ledger() == [{**entry, "other": second.outputs_digest()}]
    third = record_of(store, output=b"third")
    assert store.publish(third) == first
    assert store.ledger() == [{**entry, "other": third.outputs_digest()}]
    assert store.publish(record_of(store, output=b"first")) == first
    assert store.ledger()[0]["kept"] == first.outputs_digest()
    assert len(store.records(first.key)) == 3


def test_the_first_output_counts_even_when_the_clock_was_set_back(store: Store) -> None:
    first = store.publish(record_of(store, output=b"first"))
    os.utime(next((store.root / "records").glob("*/*/*.json")))
    store.publish(record_of(store, output=b"second"))
    for path in (store.root / "records").glob("*/*/*.json"):
        if path.stem != first.outputs_digest()[7:]:
            os.utime(path, (0, 0))
    assert store.lookup(first.key) == first


def test_two_builders_that_publish_at_once_are_both_in_the_ledger(store: Store, monkeypatch: pytest.MonkeyPatch
                                                                  ) -> None:
    """Neither saw a record when it began: the one that publishes later must still notice."""
    first, second = record_of(store, output=b"first"), record_of(store, output=b"second")
    write_small = store._write_small

    def late(path: str, data: bytes, *, replace: bool = False) -> None:
        monkeypatch.undo()
        Store.open(store.root).publish(first)  # between the look-up and the writing of the other
        write_small(path, data, replace=replace)

    monkeypatch.setattr(store, "_write_small", late)
    assert store.publish(second).outputs_digest() == first.outputs_digest()
    assert [entry["other"] for entry in store.ledger()] == [second.outputs_digest()]


# -- verdicts, roots, locks -----------------------------------------------------------------------


def test_verdicts(store: Store) -> None:
    key = sha256(b"verdict")
    assert store.verdict(key) is None
    store.put_verdict(key, {"findings": []})
    store.put_verdict(key, {"findings": ["new"]})
    assert store.verdict(key) == {"findings": ["new"]}
    path = next((store.root / "verdicts").glob("*/*.json"))
    path.chmod(0o644)
    path.write_bytes(b'{"findings": []}')
    assert store.verdict(key) is None, "what is not canonical was not written by us"


def test_roots(store: Store) -> None:
    assert store.roots() == {}
    store.set_root("thor", {"keys": []})
    assert store.roots() == {"thor": {"keys": []}}
    assert store.root_named("thor") == {"keys": []}
    store.remove_root("thor")
    store.remove_root("thor")
    assert store.root_named("thor") is None


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".", "\0"])
def test_names_cannot_leave_their_directory(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        store.set_root(name, {})
    with pytest.raises(ValueError, match="plain name"), store.locked(name):
        pass


def test_a_lock_excludes_and_says_that_it_waits(store: Store) -> None:
    reader, writer = os.pipe()

    def holder() -> None:
        with Store.open(store.root).locked("key"):
            os.write(writer, b"x")
            time.sleep(0.4)
            (store.root / "proof").touch()

    child = Child(holder)
    os.read(reader, 1)
    waited = []
    with store.locked("key", lambda: waited.append(1)):
        assert (store.root / "proof").exists()
    assert waited == [1]
    assert child.wait().error is None
    with store.locked("key", lambda: waited.append(2)), store.locked("other"):
        assert waited == [1]


def test_a_wait_can_be_given_up(store: Store) -> None:
    def cancelled() -> None:
        raise KeyboardInterrupt

    def again() -> None:
        with store.locked("key", poll=cancelled):
            pytest.fail("it is held")

    with store.locked("key"), pytest.raises(KeyboardInterrupt):
        again()


def test_a_lock_dies_with_its_process(store: Store) -> None:
    def dies() -> None:
        with store.locked("key"):
            os.kill(os.getpid(), 9)

    assert Child(dies).wait().signal == 9
    with store.locked("key", lambda: pytest.fail("nobody holds it")):
        pass


def test_a_lock_whose_file_was_removed_while_waiting_still_excludes(store: Store) -> None:
    """Collection removes lock files; a waiter must not end up with a lock that nobody else can see."""
    path = store.root / "locks" / "key"
    inside = threading.Event()
    order = []

    def waiter() -> None:
        with store.locked("key", inside.set):
            order.append("waiter")
            assert path.exists()
            with pytest.raises(RuntimeError):
                give_up()

    def give_up() -> None:
        def held() -> None:
            raise RuntimeError
        with store.locked("key", poll=held):
            pytest.fail("two have one lock")

    with store.locked("key"):
        thread = threading.Thread(target=waiter)
        thread.start()
        assert inside.wait(10)
        path.unlink()
        order.append("holder")
    thread.join()
    assert order == ["holder", "waiter"]


def test_importing_the_store_is_cheap() -> None:
    """It is on the way of every no-op: only small parts of the standard library."""
    code = "import sys; import cache.store; print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {ROOT!r}); {code}"],
                            capture_output=True, text=True, check=True)
    names = set(result.stdout.split())
    assert "cache" in names
    assert not names & {"tempfile", "lzma", "tarfile", "zipfile", "shutil", "random", "subprocess", "logging",
                        "concurrent", "queue", "docker", "requests", "jinja2", "zstandard", "isal", "yaml", "uv"}
