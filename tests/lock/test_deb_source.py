"""Addresses of locked packages."""

from dataclasses import replace

import pytest

from cache.errors import FetchError
from lock.apt_archive import Archive
from lock.deb_source import DebSource, apt_proxies, later
from lock.debs import SuiteState
from lock.fetch import Wanted

DEB = Wanted("deb", "g++", "4:1", "pool/main/g/g++_4%3a1~x_arm64.deb", 3, "0" * 64, "debian")


def test_address_is_encoded_and_snapshots_follow() -> None:
    archive = Archive("debian", "debian", url="http://u:p@a/debian", snapshot="http://s/{index}/{date}/")
    state = SuiteState("debian", "stable", "20250520T101112Z", "sha256:" + "0" * 64)
    found = DebSource({"debian": archive}, [state]).locate(DEB)
    path = "pool/main/g/g%2B%2B_4%253a1~x_arm64.deb"
    assert found.urls[:2] == (f"http://a/debian/{path}", f"http://s/debian/20250520T161112Z/{path}")
    assert found.auth == ("u", "p")
    assert len(found.urls) == 4


def test_unknown_archive() -> None:
    with pytest.raises(FetchError, match="no archive debian"):
        DebSource({}).locate(DEB)


def test_packages_of_no_architecture_come_from_the_main_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def address(archive: Archive, suite: str, architecture: str, *, security: bool) -> str:
        asked.append(architecture)
        return f"http://{architecture}/"

    monkeypatch.setattr("lock.deb_source.address", address)
    source = DebSource({"debian": Archive("debian", "debian")})
    for name in ("x_1_all.deb", "x_1_arm64.deb", "x_1_arm64.deb"):
        source.locate(replace(DEB, file=name))
    assert asked == ["amd64", "arm64"]


def test_later() -> None:
    assert later("20250520T101112Z") == ["20250520T161112Z", "20250521T101112Z", "20250520T101112Z"]
    assert later("") == []


def test_proxies_of_apt() -> None:
    dump = ('Acquire "";\nAcquire::http::Proxy "http://p:3128";\nAcquire::http::Proxy::local "DIRECT";\n'
            'Acquire::http::Timeout "3";\n')
    assert apt_proxies(dump) == {"http": "http://p:3128", "https": "http://p:3128", "http://local": ""}
