"""Remote ends that fail: the error names the file, the index, expected and found; nothing partial is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cache.errors import FetchError, IntegrityError, StagecraftError, StoreError
from cache.store import Store
from lock.fetch import Location, Policy, Wanted, fetch
from tests.support.index_server import IndexServer
from tests.support.index_server import locked_file as make

#: As quick as a test should be; the kinds of decisions are those of the real one.
QUICK = Policy(attempts=3, backoff=0.01, longest=0.05, stall=5.0, window=0.4, rate=1000, progress=1 << 20)


class Direct:
    def __init__(self, server: IndexServer) -> None:
        self.root = server.root

    def locate(self, wanted: Wanted) -> Location:
        return Location(urls=(f"{self.root.replace('://', '://user:hidden@')}files/{wanted.file}",), timeout=2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[IndexServer]:
    with IndexServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    return make(tmp_path / "served", "bad")


def failing(store: Store, server: IndexServer, *wanted: Wanted, jobs: int = 8,
            policy: Policy = QUICK) -> StagecraftError:
    with pytest.raises(StagecraftError) as caught:
        fetch(store, wanted, {"wheel": Direct(server)}, policy=policy, jobs=jobs)
    error = caught.value
    assert list((store.root / "partial").iterdir()) == []
    assert list((store.root / "tmp").iterdir()) == []
    assert "hidden" not in error.diagnostics()
    assert error.cure
    return error


def says(error: StagecraftError, wanted: Wanted, server: IndexServer, *words: str) -> None:
    text = error.diagnostics()
    for word in (wanted.file, "index jetson", server.root, *words):
        assert word in text, f"{word!r} is not in:\n{text}"


def test_wrong_bytes(store: Store, server: IndexServer, wanted: Wanted) -> None:
    server.fault(wanted.file, "wrong")
    error = failing(store, server, wanted)
    assert isinstance(error, IntegrityError)
    says(error, wanted, server, wanted.sha256)
    assert error.found is not None
    assert error.found.startswith("sha256:")
    assert wanted.sha256 not in error.found
    assert not store.has(wanted.digest)
    assert server.count(wanted.file) == 1  # the same bytes would come again


@pytest.mark.parametrize(("kind", "size"), [("short", "150000"), ("long", "300004")])
def test_another_length(store: Store, server: IndexServer, wanted: Wanted, kind: str, size: str) -> None:
    server.fault(wanted.file, kind)
    error = failing(store, server, wanted)
    assert isinstance(error, IntegrityError)
    says(error, wanted, server, "300000 bytes", f"{size} bytes")


def test_a_body_without_end(store: Store, server: IndexServer, wanted: Wanted) -> None:
    """Of a file whose length is known no more than that is taken."""
    server.fault(wanted.file, "endless")
    error = failing(store, server, wanted)
    assert isinstance(error, IntegrityError)
    says(error, wanted, server, "300000 bytes", "more than that")


def test_missing(store: Store, server: IndexServer, wanted: Wanted) -> None:
    server.fault(wanted.file, "missing")
    error = failing(store, server, wanted)
    assert isinstance(error, FetchError)
    says(error, wanted, server, "404", "lock again")
    assert server.count(wanted.file) == 1


@pytest.mark.parametrize("status", [401, 403, 418])
def test_refused(store: Store, server: IndexServer, wanted: Wanted, status: int) -> None:
    server.fault(wanted.file, "error", value=status)
    error = failing(store, server, wanted)
    assert isinstance(error, FetchError)
    says(error, wanted, server, f"status {status}", "netrc")
    assert server.count(wanted.file) == (2 if status == 401 else 1)  # 401 once more: a token may have run out


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_server_that_fails_for_a_while(store: Store, server: IndexServer, wanted: Wanted, status: int) -> None:
    server.fault(wanted.file, "error", times=2, value=status)
    fetch(store, [wanted], {"wheel": Direct(server)}, policy=QUICK)
    assert store.has(wanted.digest, wanted.size)
    assert server.count(wanted.file) == 3


def test_a_server_that_goes_on_failing(store: Store, server: IndexServer, wanted: Wanted) -> None:
    server.fault(wanted.file, "error", value=502)
    error = failing(store, server, wanted)
    assert isinstance(error, FetchError)
    says(error, wanted, server, "status 502", "try 3")
    assert error.retryable
    assert server.count(wanted.file) == 3


def test_a_connection_that_breaks_is_resumed(store: Store, server: IndexServer, wanted: Wanted) -> None:
    server.fault(wanted.file, "truncate", times=2)
    fetch(store, [wanted], {"wheel": Direct(server)}, policy=QUICK)
    assert [item.headers.get("range") for item in server.requests] == [None, "bytes=150000-", "bytes=225000-"]
    assert store.has(wanted.digest, wanted.size)


def test_a_body_that_always_ends_early(store: Store, server: IndexServer, wanted: Wanted) -> None:
    server.fault(wanted.file, "truncate")
    error = failing(store, server, wanted)
    assert isinstance(error, FetchError)
    says(error, wanted, server, "300000 bytes", "262500 bytes so far", "ended early")


def test_progress_makes_a_broken_try_count_as_a_good_one(store: Store, server: IndexServer, tmp_path: Path) -> None:
    """Six broken connections, three tries: each brought enough."""
    wanted = make(tmp_path / "served", "big", 8 << 20)
    server.fault(wanted.file, "truncate", times=6)
    fetch(store, [wanted], {"wheel": Direct(server)}, policy=replace(QUICK, progress=1 << 16))
    assert server.count(wanted.file) == 7


def test_reset_before_an_answer(store: Store, server: IndexServer, wanted: Wanted) -> None:
    server.fault(wanted.file, "reset", times=2)
    fetch(store, [wanted], {"wheel": Direct(server)}, policy=QUICK)
    server.fault("other-1-py3-none-any.whl", "reset")
    other = make(server.directory, "other")
    says(failing(store, server, other), other, server)


def test_index_down(store: Store, server: IndexServer, wanted: Wanted) -> None:
    server.stop()
    error = failing(store, server, wanted)
    assert isinstance(error, FetchError)
    says(error, wanted, server, "connection refused")


def test_a_host_that_does_not_exist(store: Store, wanted: Wanted) -> None:
    class Nowhere:
        def locate(self, wanted: Wanted) -> Location:
            return Location(urls=(f"http://nowhere.invalid/{wanted.file}",))

    with pytest.raises(FetchError) as caught:
        fetch(store, [wanted], {"wheel": Nowhere()}, policy=QUICK)
    assert "cannot be resolved" in caught.value.diagnostics()


def test_silence(store: Store, server: IndexServer, wanted: Wanted) -> None:
    server.fault(wanted.file, "stall")
    error = failing(store, server, wanted, policy=replace(QUICK, stall=0.4))
    assert isinstance(error, FetchError)
    says(error, wanted, server, "no byte for too long")


def test_slow_drip(store: Store, server: IndexServer, tmp_path: Path) -> None:
    """A byte now and then keeps a connection alive for ever: the rate ends it."""
    wanted = make(tmp_path / "served", "small", 100)  # 5 s, were it not given up
    server.fault(wanted.file, "drip")
    error = failing(store, server, wanted)
    assert isinstance(error, FetchError)
    says(error, wanted, server, "less than 1000 a second")


def test_slow_but_fast_enough(store: Store, server: IndexServer, wanted: Wanted) -> None:
    server.fault(wanted.file, "slow", value=0.3)  # five times 64 KiB: longer than the window in all
    fetch(store, [wanted], {"wheel": Direct(server)}, policy=QUICK)
    assert server.count(wanted.file) == 1


def test_ranges_that_are_wrong_are_given_up(store: Store, server: IndexServer, wanted: Wanted) -> None:
    server.fault(wanted.file, "bad-range")
    with store.partial(wanted.digest) as part:
        part.write((server.directory / wanted.file).read_bytes()[:1000])
        part.keep()
    fetch(store, [wanted], {"wheel": Direct(server)}, policy=QUICK)
    assert [item.headers.get("range") for item in server.requests] == ["bytes=1000-", None]
    assert store.has(wanted.digest, wanted.size)


def test_finished_downloads_are_kept_and_no_further_one_is_begun(
        store: Store, server: IndexServer, tmp_path: Path) -> None:
    good = [make(tmp_path / "served", f"good{number}", 400_000 - number) for number in range(4)]
    bad = make(tmp_path / "served", "bad", 399_998)  # the third in order
    later = make(tmp_path / "served", "later", 10)
    server.fault(bad.file, "missing")
    error = failing(store, server, later, *good, bad, jobs=1)
    says(error, bad, server)
    assert [store.has(item.digest) for item in good] == [True, True, store.has(good[2].digest), False]
    assert not store.has(later.digest)
    assert server.count(later.file) == 0


def test_several_failures_are_all_named(store: Store, server: IndexServer, tmp_path: Path) -> None:
    bad = [make(tmp_path / "served", f"bad{number}") for number in range(3)]
    for item in bad[:2]:
        server.fault(item.file, "missing")
    server.fault(bad[2].file, "wrong")
    with pytest.raises(StagecraftError) as caught:
        fetch(store, bad, {"wheel": Direct(server)}, policy=QUICK, jobs=3)
    named = [item for item in bad if item.file in caught.value.diagnostics()]
    assert named
    if len(named) == 3:  # all were under way before the first failed
        assert isinstance(caught.value, IntegrityError)


def test_a_blob_of_the_store_that_has_another_length(store: Store, server: IndexServer, wanted: Wanted) -> None:
    fetch(store, [wanted], {"wheel": Direct(server)}, policy=QUICK)
    path = store.path_of(wanted.digest)
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match="another size") as caught:
        fetch(store, [wanted], {"wheel": Direct(server)}, policy=QUICK)
    assert "store:verify" in str(caught.value.cure)


def test_an_error_of_the_store_is_not_tried_again(store: Store, server: IndexServer, wanted: Wanted,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise StoreError("the store's disk is full", cure="./doit store:gc")

    monkeypatch.setattr("cache.partial.Partial.write", full)
    error = failing(store, server, wanted)
    assert isinstance(error, StoreError)
    assert server.count(wanted.file) == 1
