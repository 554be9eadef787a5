"""What fetching does when nothing is wrong; each against a real server. Faults: tests/faults/test_fetch_faults.py."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.errors import IntegrityError
from cache.store import Store
from lock.fetch import Location, Wanted, fetch, missing
from tests.support.index_server import IndexServer


class Direct:
    """A source whose files are all in one server's directory."""

    def __init__(self, server: IndexServer, **more: object) -> None:
        self.server, self.more = server, more

    def locate(self, wanted: Wanted) -> Location:
        return Location(urls=(f"{self.server.root}files/{wanted.file}",), **self.more)  # type: ignore[arg-type]


class Recorder:
    """Keeps what a fetch reports."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.begun: dict[str, int] = {}
        self.bytes: dict[str, int] = {}
        self.ended: list[str] = []

    def begin(self, name: str, size: int) -> None:
        self.begun[name] = size

    def advance(self, name: str, nbytes: int) -> None:
        with self.mutex:
            self.bytes[name] = self.bytes.get(name, 0) + nbytes

    def end(self, name: str) -> None:
        self.ended.append(name)


def wanted_of(path: Path, **more: object) -> Wanted:
    fields = {"kind": "wheel", "name": path.name.split("-")[0], "version": "1", "file": path.name,
              "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "index": "default"}
    return Wanted(**{**fields, **more})  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    directory = tmp_path / "served"
    directory.mkdir()
    paths = [directory / f"f{number}-1.whl" for number in range(12)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * (100_000 + number * 70_000))
    return paths


@pytest.fixture
def server(files: list[Path]) -> Iterator[IndexServer]:
    with IndexServer(files[0].parent) as server:
        yield server


def test_files_come_into_the_store(store: Store, files: list[Path], server: IndexServer) -> None:
    wanted, seen = [wanted_of(path) for path in files], Recorder()
    fetch(store, wanted, {"wheel": Direct(server)}, progress=seen)
    assert [store.read(item.digest) for item in wanted] == [path.read_bytes() for path in files]
    assert seen.begun == seen.bytes == {path.name: path.stat().st_size for path in files}
    assert sorted(seen.ended) == sorted(path.name for path in files)
    assert list((store.root / "partial").iterdir()) == []


def test_what_the_store_has_is_not_asked_for(store: Store, files: list[Path], server: IndexServer) -> None:
    store.put(files[3].read_bytes())
    fetch(store, [wanted_of(path) for path in files[2:5]], {"wheel": Direct(server)})
    assert server.count(files[3].name) == 0
    assert server.count(files[2].name) == server.count(files[4].name) == 1
    server.stop()
    fetch(store, [wanted_of(path) for path in files[2:5]], {})  # no source is asked, no server is there


def test_one_digest_is_fetched_once(store: Store, files: list[Path], server: IndexServer) -> None:
    fetch(store, [wanted_of(files[0]), wanted_of(files[0], name="other")], {"wheel": Direct(server)})
    assert server.count(files[0].name) == 1


def test_unknown_size(store: Store, files: list[Path], server: IndexServer) -> None:
    wanted = wanted_of(files[1], size=0)
    fetch(store, [wanted], {"wheel": Direct(server)})
    assert store.has(wanted.digest, files[1].stat().st_size)


def test_largest_first(store: Store, files: list[Path]) -> None:
    assert [item.file for item in missing(store, [wanted_of(path) for path in files])] == [
        path.name for path in reversed(files)]


@pytest.mark.parametrize("jobs", [1, 8])
def test_many_at_once(store: Store, files: list[Path], server: IndexServer, jobs: int) -> None:
    """With eight jobs eight files are under way together, with one job never two."""
    together, most, mutex = set[str](), 0, threading.Lock()
    everybody = threading.Barrier(jobs, timeout=20)  # broken if fewer come

    class Counting(Direct):
        def locate(self, wanted: Wanted) -> Location:
            nonlocal most
            with mutex:
                together.add(wanted.file)
                most = max(most, len(together))
            everybody.wait()
            return super().locate(wanted)

    class Ends(Recorder):
        def end(self, name: str) -> None:
            with mutex:
                together.discard(name)

    fetch(store, [wanted_of(path) for path in files[:8]], {"wheel": Counting(server)}, jobs=jobs, progress=Ends())
    assert most == jobs


def test_resumes_where_an_earlier_run_ended(store: Store, files: list[Path], server: IndexServer) -> None:
    path = files[5]
    wanted, seen = wanted_of(path), Recorder()
    with store.partial(wanted.digest) as part:
        part.write(path.read_bytes()[:123_456])
        part.keep()
    fetch(store, [wanted], {"wheel": Direct(server)}, progress=seen)
    assert server.requests[-1].headers["range"] == "bytes=123456-"
    assert server.count(path.name) == 1
    assert seen.bytes == {path.name: path.stat().st_size}
    assert store.read(wanted.digest) == path.read_bytes()


def test_a_server_without_ranges(store: Store, files: list[Path], server: IndexServer) -> None:
    wanted, seen = wanted_of(files[5]), Recorder()
    server.fault(files[5].name, "no-range")
    with store.partial(wanted.digest) as part:
        part.write(b"old and wrong")
        part.keep()
    fetch(store, [wanted], {"wheel": Direct(server)}, progress=seen)
    assert store.read(wanted.digest) == files[5].read_bytes()
    assert seen.bytes == {files[5].name: wanted.size}


def test_a_torn_head_is_read_again_from_the_first_byte(store: Store, files: list[Path], server: IndexServer) -> None:
    wanted = wanted_of(files[5])
    with store.partial(wanted.digest) as part:
        part.write(b"\xff" * 5000)
        part.keep()
    fetch(store, [wanted], {"wheel": Direct(server)})
    assert [item.headers.get("range") for item in server.requests] == ["bytes=5000-", None]
    assert store.read(wanted.digest) == files[5].read_bytes()


@pytest.mark.parametrize("size", [3, None, 10_000_000])
def test_a_partial_file_of_any_length(store: Store, files: list[Path], server: IndexServer, size: int | None) -> None:
    """Shorter than the file, complete, and longer."""
    wanted, data = wanted_of(files[5]), files[5].read_bytes()
    with store.partial(wanted.digest) as part:
        part.write((data * 30)[:size] if size else data)
        part.keep()
    fetch(store, [wanted], {"wheel": Direct(server)})
    assert store.read(wanted.digest) == data
    assert server.count() == (1 if size else 0)


def test_a_file_of_this_machine(store: Store, files: list[Path]) -> None:
    class Local:
        def locate(self, wanted: Wanted) -> Location:
            return Location(path=files[0].parent / wanted.file)

    wanted = [wanted_of(path) for path in files[:3]]
    fetch(store, wanted, {"wheel": Local()})
    assert all(store.has(item.digest, item.size) for item in wanted)
    files[1].write_bytes(b"\0" * files[1].stat().st_size)
    again = Store.open(store.root.parent / "again")
    with pytest.raises(IntegrityError, match="not the file that was locked"):
        fetch(again, wanted, {"wheel": Local()}, jobs=1)


def test_credentials_are_sent(store: Store, files: list[Path]) -> None:
    wanted = wanted_of(files[0])
    with IndexServer(files[0].parent, auth=("me", "s3cret")) as server:
        fetch(store, [wanted], {"wheel": Direct(server, auth=("me", "s3cret"))})
    assert store.has(wanted.digest)


def test_a_bearer_token_is_renewed_once_and_netrc_does_not_replace_it(
        store: Store, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    asked: list[str] = []

    class Tokens(Direct):
        def locate(self, wanted: Wanted) -> Location:
            token = "stale" if not asked else "fresh"
            asked.append(token)
            return Location(urls=super().locate(wanted).urls, headers={"Authorization": f"Bearer {token}"})

    wanted = wanted_of(files[0])
    with IndexServer(files[0].parent, token="fresh") as server:
        fetch(store, [wanted], {"wheel": Tokens(server)})
    assert asked == ["stale", "fresh"]
    assert store.has(wanted.digest)


def test_a_later_address_is_tried_when_an_earlier_one_has_it_no_more(
        store: Store, files: list[Path], server: IndexServer) -> None:
    class Archive:
        def locate(self, wanted: Wanted) -> Location:
            return Location(urls=(f"{server.root}files/gone/{wanted.file}", f"{server.root}files/{wanted.file}"))

    fetch(store, [wanted_of(files[0])], {"wheel": Archive()})
    assert server.paths() == [f"/files/gone/{files[0].name}", f"/files/{files[0].name}"]


def test_a_proxy_of_the_environment_is_used(store: Store, files: list[Path], server: IndexServer,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """The index's host does not exist: only a proxy can have answered."""
    class Elsewhere:
        def locate(self, wanted: Wanted) -> Location:
            return Location(urls=(f"http://index.invalid/files/{wanted.file}",))

    monkeypatch.setenv("http_proxy", server.root)
    monkeypatch.setenv("no_proxy", "")
    fetch(store, [wanted_of(files[0])], {"wheel": Elsewhere()})
    assert store.has(wanted_of(files[0]).digest)
    assert server.requests[0].headers["host"] == "index.invalid"


def test_a_bug_in_a_source_is_not_swallowed(store: Store, files: list[Path]) -> None:
    class Broken:
        def locate(self, wanted: Wanted) -> Location:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fetch(store, [wanted_of(path) for path in files], {"wheel": Broken()})
