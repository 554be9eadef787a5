"""Reading a wheel on an index in parts, each against a real server; and what a wrong server gets."""

from __future__ import annotations

import hashlib
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from cache.errors import FetchError, IntegrityError
from cache.store import Store
from lock.indexes import load_indexes
from lock.remote_wheel import RemoteWheel
from lock.simple import WheelSource
from lock.sources import Wanted
from lock.transfer import Policy
from tests.support.index_server import IndexServer, Options, client_environment, metadata_of, write_indexes
from tests.support.wheel_factory import make_wheel

QUICK = Policy(attempts=3, backoff=0.01, stall=1.0)
NOISE = random.Random(7).randbytes(3_000_000)
TEXT = b"a line that deflates well\n" * 200_000


class Place:
    """A wheel on an index, and readers of it."""

    def __init__(self, tmp_path: Path, options: Options) -> None:
        self.store = Store.open(tmp_path / "store")
        self.path = make_wheel(tmp_path / "files", "big", "1", requires=["torch==2.13.0"],
                               files={"big/noise.bin": NOISE, "big/text.txt": TEXT, "big/small.py": b"x = 1\n"})
        with zipfile.ZipFile(self.path) as archive:
            assert {item.compress_type for item in archive.infolist()} == {zipfile.ZIP_DEFLATED}
        self.server = IndexServer(tmp_path / "files", options=options)
        environ = client_environment(tmp_path, PIP_INDEX_URL=self.server.url)
        self.source = WheelSource(load_indexes(write_indexes(tmp_path / "indexes.yaml", {}), environ))
        data = self.path.read_bytes()
        self.wanted = Wanted("wheel", "big", "1", self.path.name, len(data), hashlib.sha256(data).hexdigest(),
                             "default")
        self.lines: list[str] = []

    def open(self, wanted: Wanted | None = None) -> RemoteWheel:
        return RemoteWheel(self.store, wanted or self.wanted, self.source, requests.Session(), policy=QUICK,
                           log=self.lines.append)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path, Options())
    with found.server:
        yield found


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Place]:
    """An index that serves METADATA apart."""
    found = Place(tmp_path, Options(metadata=True))
    with found.server:
        yield found


def test_parts_are_read_and_the_rest_stays_where_it_is(place: Place) -> None:
    with place.open() as wheel, zipfile.ZipFile(place.path) as archive:
        assert wheel.metadata() == metadata_of(place.path)
        assert wheel.members() == {item.filename: item.file_size for item in archive.infolist()}
        assert wheel.read("big/small.py") == b"x = 1\n"
        assert wheel.read("big/nothing.py") is None
        assert not wheel.verified
        assert 0 < wheel.fetched < 100_000 < place.wanted.size
    assert not place.store.has(place.wanted.digest)
    assert place.server.count(place.wanted.file, "GET") <= 3


def test_every_byte_that_comes_is_counted(place: Place) -> None:
    with place.open() as wheel:
        assert wheel.read("big/noise.bin") == NOISE
        assert len(NOISE) < wheel.fetched < len(NOISE) + 100_000
        assert place.server.count(place.wanted.file, "GET") <= 3  # a member is one request, whatever its size


def test_a_member_over_the_limit_is_not_fetched_first(place: Place) -> None:
    with place.open() as wheel:
        with pytest.raises(IntegrityError):
            wheel.read("big/noise.bin", limit=1000)
        assert wheel.fetched < 200_000


def test_a_beginning_costs_no_more_than_it_needs(place: Place) -> None:
    with place.open() as wheel:
        wheel.members()
        before = wheel.fetched
        assert wheel.beginning("big/noise.bin", lambda data: data[:10] if len(data) >= 150_000 else None) == NOISE[:10]
        assert 150_000 < wheel.fetched - before < 300_000
        assert wheel.beginning("big/text.txt", lambda data: bytes(data[:4])) == b"a li"


def test_a_beginning_ends_at_its_limit_and_at_the_members_end(place: Place) -> None:
    seen: list[int] = []

    def never(data: bytes) -> None:
        seen.append(len(data))

    with place.open() as wheel:
        assert wheel.beginning("big/noise.bin", never, limit=100_000) is None
        assert 100_000 <= seen[-1] < 500_000
        assert wheel.beginning("big/small.py", never) is None
        assert seen[-1] == 6
        assert wheel.beginning("big/nothing.py", never) is None


@pytest.mark.parametrize("fault", ["no-range", "bad-range", "bad-total"])
def test_a_server_without_sound_ranges_is_asked_once_for_all(place: Place, fault: str) -> None:
    place.server.fault(place.wanted.file, fault, times=1)
    with place.open() as wheel:
        assert wheel.read("big/text.txt") == TEXT
        assert (wheel.verified, wheel.fetched) == (True, place.wanted.size)
        assert wheel.metadata() == metadata_of(place.path)
    assert place.store.has(place.wanted.digest)
    assert place.server.count(place.wanted.file, "GET") == 2
    assert "the whole wheel is fetched" in place.lines[0]


def test_ranges_that_stop_working_half_way_do_no_harm(place: Place) -> None:
    with place.open() as wheel:
        wheel.members()
        place.server.fault(place.wanted.file, "no-range")
        assert wheel.read("big/noise.bin") == NOISE
        assert wheel.verified


def test_what_is_in_the_store_is_read_there(place: Place) -> None:
    place.store.put(place.path.read_bytes())
    with place.open() as wheel:
        assert wheel.read("big/text.txt") == TEXT
        assert (wheel.verified, wheel.fetched) == (True, 0)
    assert place.server.requests == []


@pytest.mark.parametrize("fault", ["truncate", "reset", "error"])
def test_a_broken_answer_is_asked_for_again(place: Place, fault: str) -> None:
    place.server.fault(place.wanted.file, fault, times=2)
    with place.open() as wheel:
        assert wheel.read("big/small.py") == b"x = 1\n"


@pytest.mark.parametrize("fault", ["truncate", "error"])
def test_an_answer_that_stays_broken_is_given_up(place: Place, fault: str) -> None:
    place.server.fault(place.wanted.file, fault)
    with place.open() as wheel, pytest.raises(FetchError) as caught:
        wheel.members()
    assert place.wanted.file in caught.value.message
    assert place.server.count(place.wanted.file) == QUICK.attempts


def test_a_wheel_that_went_away_says_so(place: Place) -> None:
    place.server.fault(place.wanted.file, "missing")
    with place.open() as wheel, pytest.raises(FetchError, match="is not there any more"):
        wheel.members()


def test_other_bytes_than_the_directory_promises_are_refused(place: Place) -> None:
    with place.open() as wheel:
        wheel.members()
        place.server.fault(place.wanted.file, "wrong")
        with pytest.raises(IntegrityError):
            wheel.read("big/noise.bin")


def test_a_file_of_another_length_is_not_the_locked_one(place: Place) -> None:
    place.path.write_bytes(place.path.read_bytes() + b"more")
    place.server.options.hashes = False
    with place.open() as wheel, pytest.raises(IntegrityError, match="is not the file that was locked"):
        wheel.members()


# -- PEP 658 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("json", [True, False])
def test_metadata_from_beside_the_wheel_costs_its_own_bytes_only(apart: Place, json: bool) -> None:
    apart.server.options.json = json
    with apart.open() as wheel:
        assert wheel.metadata() == metadata_of(apart.path)
        assert wheel.fetched == len(metadata_of(apart.path))
    assert apart.server.count(apart.wanted.file) == 0


def test_metadata_that_is_not_what_the_index_says_is_refused(apart: Place) -> None:
    apart.server.fault(".metadata", "wrong")
    with apart.open() as wheel, pytest.raises(IntegrityError, match="is not what its index says"):
        wheel.metadata()


def test_metadata_that_is_promised_and_missing_comes_out_of_the_wheel(apart: Place) -> None:
    apart.server.fault(".metadata", "missing")
    with apart.open() as wheel:
        assert wheel.metadata() == metadata_of(apart.path)
        assert wheel.fetched < apart.wanted.size / 10


def test_metadata_that_does_not_come_is_asked_for_again_then_given_up(apart: Place) -> None:
    apart.server.fault(".metadata", "truncate", times=1)
    with apart.open() as wheel:
        assert wheel.metadata() == metadata_of(apart.path)
    apart.server.fault(".metadata", "error")
    with apart.open() as wheel, pytest.raises(FetchError, match="metadata of big-1"):
        wheel.metadata()


def test_credentials_go_along_and_without_them_it_says_where_they_belong(tmp_path: Path) -> None:
    place = Place(tmp_path, Options())
    place.server.auth = ("me", "secret")
    with place.server:
        environ = client_environment(tmp_path, PIP_INDEX_URL=place.server.with_credentials("me", "secret"))
        place.source = WheelSource(load_indexes(tmp_path / "indexes.yaml", environ))
        with place.open() as wheel:
            assert wheel.read("big/small.py") == b"x = 1\n"
            place.server.auth = ("me", "another")
            with pytest.raises(FetchError) as caught:
                wheel.read("big/noise.bin")
    assert "netrc" in str(caught.value.cure)
    assert "secret" not in caught.value.diagnostics()


def test_a_wheel_in_a_directory_is_read_there(tmp_path: Path) -> None:
    place = Place(tmp_path, Options())
    environ = client_environment(tmp_path, PIP_FIND_LINKS=str(tmp_path / "files"), PIP_NO_INDEX="1")
    place.source = WheelSource(load_indexes(tmp_path / "indexes.yaml", environ))
    with place.open() as wheel:
        assert wheel.metadata() == metadata_of(place.path)
        assert (wheel.fetched, wheel.verified) == (0, False)
    place.server._server.server_close()
