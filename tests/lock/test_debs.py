"""Locking Debian packages: apt's own solver against a signed archive on loopback, and the pure parts around it."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cache.errors import InputError, IntegrityError, LockError, ToolError
from cache.store import Store
from lock.apt_archive import Archive
from lock.apt_root import Suite, configuration, release_date
from lock.debs import DebRequest, DebSource, LockedDeb, blamed, lock_debs, parse_uris, snapshot_date, suites_of
from lock.fetch import Wanted, fetch
from tests.support.apt_repository import AptRepository, served

REQUEST = DebRequest("debian", "stable", ("main",), "arm64", ("app",))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[AptRepository]:
    with AptRepository(tmp_path / "archive") as made:
        made.add("base", Essential="yes")
        made.add("libc", "2:1.0+b1~x")
        made.add("app", Depends="libc (>= 2:1.0), helper | other")
        made.add("helper", architecture="all", Recommends="never")
        made.add("never")
        made.add("other")
        made.publish()
        yield made


@pytest.fixture
def archives(repository: AptRepository) -> Iterator[dict[str, Archive]]:
    with served(repository.root) as url:
        yield {"debian": Archive("debian", "debian", url=url, keyring=str(repository.keyring))}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def names(debs: tuple[LockedDeb, ...]) -> list[str]:
    return [f"{deb.name} {deb.version}" for deb in debs]


def test_closure_with_essential_and_without_recommends(archives: dict[str, Archive], repository: AptRepository) -> None:
    found = lock_debs(REQUEST, archives)
    assert names(found.debs) == ["app 1", "base 1", "helper 1", "libc 2:1.0+b1~x"]
    libc = found.debs[-1]
    assert (libc.file, libc.index, libc.architecture) == ("pool/main/libc_1.0+b1~x_arm64.deb", "debian", "arm64")
    assert libc.size == (repository.root / libc.file).stat().st_size
    assert found.suites[0].date == "20231114T221320Z"
    assert found.suites[0].index == "debian"
    assert names(lock_debs(replace(REQUEST, essential=False), archives).debs)[0:2] == ["app 1", "helper 1"]


def test_what_is_locked_can_be_fetched(archives: dict[str, Archive], repository: AptRepository, store: Store) -> None:
    found = lock_debs(REQUEST, archives)
    fetch(store, wanted(found.debs), {"deb": DebSource(archives)})
    for deb in found.debs:
        assert store.read("sha256:" + deb.sha256) == (repository.root / deb.file).read_bytes()


def wanted(debs: tuple[LockedDeb, ...]) -> list[Wanted]:
    return [Wanted("deb", d.name, d.version, d.file, d.size, d.sha256, d.index) for d in debs]


def test_a_superseded_file_comes_from_the_snapshot(
    archives: dict[str, Archive], repository: AptRepository, store: Store, tmp_path: Path,
) -> None:
    found = lock_debs(REQUEST, archives)
    old = tmp_path / "snapshots" / "20231115T041320Z" / "debian"  # six hours after the Release
    old.parent.mkdir(parents=True)
    subprocess.run(["cp", "-r", str(repository.root), str(old)], check=True)
    repository.remove("app", "1")
    with served(tmp_path / "snapshots") as url:
        source = DebSource({"debian": replace(archives["debian"], snapshot=url + "{date}/{index}")}, found.suites)
        fetch(store, wanted(found.debs), {"deb": source})
    assert all(store.has("sha256:" + deb.sha256) for deb in found.debs)


def test_locked_at_a_date(archives: dict[str, Archive], repository: AptRepository, tmp_path: Path) -> None:
    old = tmp_path / "snapshots" / "20240101T000000Z"
    old.parent.mkdir()
    subprocess.run(["cp", "-r", str(repository.root), str(old)], check=True)
    repository.add("app", "2")
    repository.publish()
    with served(tmp_path / "snapshots") as url:
        dated = {"debian": replace(archives["debian"], snapshot=url + "{date}")}
        found = lock_debs(replace(REQUEST, snapshot="2024-01-01"), dated)
        assert "app 1" in names(found.debs)
        assert found.suites[0].snapshot == "20240101T000000Z"
        location = DebSource(dated, found.suites).locate(wanted(found.debs)[0])
        assert location.urls == (url + "20240101T000000Z/pool/main/app_1_arm64.deb",)
    with pytest.raises(InputError, match="none is configured"):
        lock_debs(replace(REQUEST, snapshot="2024-01-01"), archives)


def test_pins_stay_while_they_fit(archives: dict[str, Archive], repository: AptRepository) -> None:
    first = lock_debs(REQUEST, archives)
    repository.add("app", "2", Depends="libc, helper")
    repository.add("helper", "2", architecture="all")
    repository.publish()
    assert lock_debs(REQUEST, archives, previous=first.debs).debs == first.debs
    assert names(lock_debs(REQUEST, archives, previous=first.debs, upgrade=frozenset({"helper"})).debs) == [
        "app 1", "base 1", "helper 2", "libc 2:1.0+b1~x"]
    assert "app 2" in names(lock_debs(REQUEST, archives, previous=first.debs, upgrade=True).debs)


def test_only_the_pin_in_the_way_moves(archives: dict[str, Archive], repository: AptRepository) -> None:
    first = lock_debs(REQUEST, archives)
    repository.add("helper", "2", architecture="all")
    repository.add("libc", "2:2.0")
    repository.add("new", Depends="libc (>= 2:2)")
    repository.publish()
    said: list[str] = []
    found = lock_debs(replace(REQUEST, packages=("app", "new")), archives, previous=first.debs, log=said.append)
    assert names(found.debs) == ["app 1", "base 1", "helper 1", "libc 2:2.0", "new 1"]
    assert "libc" in said[0]
    assert "helper" not in said[0]


def test_solved_against_an_installed_base(archives: dict[str, Archive]) -> None:
    status = b"Package: libc\nStatus: install ok installed\nVersion: 2:1.0+b1~x\nArchitecture: arm64\nMaintainer: x\n\n"
    request = replace(REQUEST, essential=False, installed_status=status)
    assert names(lock_debs(request, archives).debs) == ["app 1", "helper 1"]
    older = status.replace(b"libc", b"helper").replace(b"2:1.0+b1~x", b"0.5") + status
    both = replace(request, packages=("app", "helper"), installed_status=older)
    assert names(lock_debs(both, archives).debs) == ["app 1"]


def test_security_suite_is_an_index_of_its_own(archives: dict[str, Archive], tmp_path: Path) -> None:
    with AptRepository(tmp_path / "security") as security, served(tmp_path / "security") as url:
        security.add("libc", "2:1.0+b1~x+sec", suite="stable-security")
        security.publish("stable-security")
        both = tmp_path / "both.gpg"
        both.write_bytes(Path(archives["debian"].keyring or "").read_bytes() + security.keyring.read_bytes())
        archive = replace(archives["debian"], security=url, keyring=str(both))
        found = lock_debs(replace(REQUEST, security=True), {"debian": archive})
        assert [(deb.version, deb.index) for deb in found.debs if deb.name == "libc"] == [
            ("2:1.0+b1~x+sec", "debian-security")]
        assert [state.suite for state in found.suites] == ["stable", "stable-security"]
        place = DebSource({"debian": archive}).locate(wanted(found.debs)[-1])
        assert place.urls[0].startswith(url)


def test_altered_release_is_refused(archives: dict[str, Archive], repository: AptRepository) -> None:
    repository.publish(spoil=True)
    with pytest.raises(IntegrityError, match="does not verify"):
        lock_debs(REQUEST, archives)


def test_foreign_key_is_refused(archives: dict[str, Archive], tmp_path: Path) -> None:
    with AptRepository(tmp_path / "other") as other, pytest.raises(IntegrityError, match="does not verify"):
        lock_debs(REQUEST, {"debian": replace(archives["debian"], keyring=str(other.keyring))})


def test_missing_keyring_names_the_package(archives: dict[str, Archive], monkeypatch: pytest.MonkeyPatch) -> None:
    from lock import apt_archive

    monkeypatch.setattr(apt_archive, "KEYRINGS", {"debian": ("debian-archive-keyring", ("/nowhere/key.gpg",))})
    with pytest.raises(ToolError) as caught:
        lock_debs(REQUEST, {"debian": replace(archives["debian"], keyring=None)})
    assert str(caught.value.cure).startswith("apt-get install debian-archive-keyring,")


@pytest.mark.parametrize(("change", "text"), [
    ({"packages": ("ap",)}, "no package ap"),
    ({"suite": "none"}, "no such suite"),
    ({"architecture": "riscv64"}, "no packages for riscv64"),
    ({"packages": ("app=9",)}, "no solution"),
])
def test_impossible_requests(archives: dict[str, Archive], change: dict[str, object], text: str) -> None:
    with pytest.raises(LockError, match=text) as caught:
        lock_debs(replace(REQUEST, **change), archives)  # type: ignore[arg-type]
    assert caught.value.cure
    if text.endswith("ap"):
        assert "app" in caught.value.cure


def test_unknown_archive() -> None:
    with pytest.raises(InputError, match="no archive of this name"):
        lock_debs(REQUEST, {})


def test_host_is_not_touched_and_its_apt_config_is_not_used(archives: dict[str, Archive], tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "host.conf"
    conf.write_text('APT::Install-Recommends "true";\nDir::State::lists "/nowhere";\n')
    monkeypatch.setenv("APT_CONFIG", str(conf))
    before = [(p, os.stat(p).st_mtime_ns) for p in ("/var/lib/apt/lists", "/var/lib/dpkg/status", "/var/cache/apt")]
    assert "never 1" not in names(lock_debs(REQUEST, archives).debs)
    assert before == [(p, os.stat(p).st_mtime_ns) for p, _ in before]


def test_configuration_takes_over_only_the_network(tmp_path: Path) -> None:
    text = configuration(tmp_path, "arm64", 'Acquire::http::Proxy "http://p:1";\nAcquire::Languages "de";\n'
                                            'APT::Install-Recommends "true";\n')
    assert 'Acquire::http::Proxy "http://p:1";' in text
    assert '"de"' not in text
    assert 'APT::Install-Recommends "true"' not in text
    assert f'Dir::State::status "{tmp_path}/status";' in text


def test_parse_uris_decodes_names_and_refuses_what_has_no_hash() -> None:
    sources = [Suite("debian", "http://a/debian/", "stable")]
    line = "'http://a/debian/pool/main/g/g%2b%2b_4%253a1_arm64.deb' g++_4%3a1_arm64.deb 12 SHA256:" + "0" * 64
    assert parse_uris(f"Reading…\n{line}\n", sources) == [
        LockedDeb("g++", "4:1", "arm64", "pool/main/g/g++_4%3a1_arm64.deb", 12, "0" * 64, "debian")]
    with pytest.raises(LockError, match="without its sha256"):
        parse_uris(line.replace("SHA256", "MD5Sum"), sources)
    with pytest.raises(LockError, match="another archive"):
        parse_uris(line, [Suite("debian", "http://b/", "stable")])


def test_blamed_reads_both_sides() -> None:
    text = (" libc6-dev : Depends: libc6 (= 2) but 1 is to be installed\n"
            "             Depends: linux-libc-dev but it is not going to be installed\n")
    assert blamed(text) == {"libc6-dev", "libc6", "linux-libc-dev"}


def test_dates() -> None:
    assert snapshot_date("2025-05-20") == "20250520T000000Z"
    assert snapshot_date("20250520T101112Z") == "20250520T101112Z"
    assert release_date("Sat, 11 Jul 2026 10:16:37 UTC") == "20260711T101637Z"
    assert release_date("") == ""
    with pytest.raises(InputError):
        snapshot_date("yesterday")


def test_suites_of_a_request() -> None:
    archive = Archive("debian", "debian", url="http://a/debian", security="http://s/")
    found = suites_of(replace(REQUEST, security=True, updates=True), archive)
    assert found == [Suite("debian", "http://a/debian/", "stable"),
                     Suite("debian", "http://a/debian/", "stable-updates"),
                     Suite("debian-security", "http://s/", "stable-security")]
