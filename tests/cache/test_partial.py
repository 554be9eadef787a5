from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from cache.canonical import sha256
from cache.errors import IntegrityError
from cache.store import Store
from tests.support.processes import Child

CONTENT = bytes(range(256)) * 1000
DIGEST = sha256(CONTENT)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def leave(store: Store, data: bytes, error: type[BaseException] | None, *, keep: bool = False) -> None:
    with store.partial(DIGEST) as part:
        part.write(data)
        if keep:
            part.keep()
        if error is not None:
            raise error


def left(store: Store) -> list[str]:
    return os.listdir(store.root / "partial")


def test_a_download_in_one_go(store: Store) -> None:
    with store.partial(DIGEST) as part:
        assert part.size == 0
        part.write(memoryview(CONTENT)[:1000])
        part.write(CONTENT[1000:])
        assert part.size == len(CONTENT)
        assert part.commit().digest == DIGEST
    assert store.read(DIGEST) == CONTENT
    assert store.path_of(DIGEST).stat().st_mode & 0o777 == 0o444
    assert left(store) == []


@pytest.mark.parametrize("rehash", [True, False])
def test_a_download_goes_on_after_ctrl_c(store: Store, rehash: bool) -> None:
    with pytest.raises(KeyboardInterrupt):
        leave(store, CONTENT[:1000], KeyboardInterrupt)
    assert left(store) == [DIGEST[7:]]
    assert not store.has(DIGEST)
    with store.partial(DIGEST) as part:
        assert part.size == 1000
        if rehash:
            assert part.rehash().hexdigest() == sha256(CONTENT[:1000])[7:]
        part.write(CONTENT[1000:])
        part.commit()
    assert store.read(DIGEST) == CONTENT
    assert left(store) == []


def test_a_download_goes_on_after_kill(store: Store) -> None:
    def killed() -> None:
        with store.partial(DIGEST) as part:
            part.write(CONTENT[:1000])
            os.kill(os.getpid(), signal.SIGKILL)

    assert Child(killed).wait().signal == signal.SIGKILL
    with store.partial(DIGEST, lambda: pytest.fail("nobody has it")) as part:
        assert part.size == 1000


def test_what_stays_is_decided_by_how_the_block_ends(store: Store) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        leave(store, b"x", ValueError)
    assert left(store) == []
    leave(store, b"x", None)
    assert left(store) == []
    with pytest.raises(ValueError):  # noqa: PT011
        leave(store, b"x", ValueError, keep=True)
    assert left(store) == [DIGEST[7:]]
    leave(store, b"y", None, keep=True)
    with store.partial(DIGEST) as part:
        assert part.rehash().hexdigest() == sha256(b"xy")[7:]
        part.discard()
    assert left(store) == []


def test_a_wrong_hash_is_refused_and_nothing_stays(store: Store) -> None:
    leave(store, b"torn", None, keep=True)

    def wrong() -> None:
        with store.partial(DIGEST) as part:
            part.keep()
            part.write(CONTENT[4:])
            part.commit()

    with pytest.raises(IntegrityError) as caught:
        wrong()
    assert caught.value.expected == DIGEST
    assert left(store) == []
    assert not store.has(DIGEST)


def test_restart(store: Store) -> None:
    leave(store, b"torn", None, keep=True)
    with store.partial(DIGEST) as part:
        part.restart()
        assert part.size == 0
        part.write(CONTENT)
        part.commit()
    assert store.read(DIGEST) == CONTENT


def test_one_process_at_a_time_and_the_next_sees_what_it_did(store: Store) -> None:
    """Two terminals fetch one file: one downloads, the other waits and finds the blob there."""
    reader, writer = os.pipe()

    def first() -> None:
        with Store.open(store.root).partial(DIGEST) as part:
            os.write(writer, b"x")
            part.write(CONTENT)
            time.sleep(0.3)
            part.commit()

    child = Child(first)
    os.read(reader, 1)
    waited = []
    with store.partial(DIGEST, lambda: waited.append(1)) as part:
        assert store.has(DIGEST)
        assert part.size == 0, "not the file that was committed and has no name any more"
        part.discard()
    assert waited == [1]
    assert child.wait().error is None
    assert store.read(DIGEST) == CONTENT
