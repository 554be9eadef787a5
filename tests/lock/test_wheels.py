"""Locking wheels: uv, run for real, against indexes of this machine."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from cache.errors import FetchError, InputError, LockError
from lock.indexes import Indexes, load_indexes
from lock.wheels import LockedWheel, WheelLock, WheelRequest, bound, lock_wheels
from tests.support.index_server import IndexServer, Options, client_environment, write_indexes
from tests.support.wheel_factory import make_wheel, sha256_of

THOR = WheelRequest(("lib",), "3.11", "aarch64", "2.36")


class Place:
    """A directory of wheels with a server on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.server = IndexServer(directory)

    def wheel(self, name: str, version: str, *requires: str, tag: str = "py3-none-any", **more: object) -> Path:
        return make_wheel(self.directory, name, version, requires=requires, tag=tag, **more)  # type: ignore[arg-type]


@pytest.fixture
def main(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "main")
    with place.server:
        yield place


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "mirror")
    with place.server:
        yield place


Lock = Callable[..., WheelLock]


@pytest.fixture
def indexes(tmp_path: Path, main: Place, mirror: Place) -> Indexes:
    path = write_indexes(tmp_path / "indexes.yaml", {"jetson": {"type": "simple", "url": mirror.server.url}})
    return load_indexes(path, client_environment(tmp_path, PIP_INDEX_URL=main.server.url))


@pytest.fixture
def lock(indexes: Indexes) -> Lock:
    def locked(request: WheelRequest = THOR, others: Indexes | None = None, **more: object) -> WheelLock:
        return lock_wheels(request, others or indexes, log=lambda line: None, **more)  # type: ignore[arg-type]
    return locked


def files(found: WheelLock) -> list[str]:
    return [wheel.file for wheel in found.wheels]


def versions(found: WheelLock) -> dict[str, str]:
    return {wheel.name: wheel.version for wheel in found.wheels}


# -- choosing -------------------------------------------------------------------------------------


def test_exact_files_sorted_by_name(main: Place, lock: Lock) -> None:
    path = main.wheel("Lib", "1.0", "z-needs", "a_needs>=1; platform_machine == 'aarch64'",
                      "never; platform_machine == 'x86_64'", tag="cp311-cp311-manylinux_2_28_aarch64")
    main.wheel("Lib", "1.0", tag="cp311-cp311-manylinux_2_28_x86_64")
    main.wheel("Lib", "1.0", tag="cp312-cp312-manylinux_2_28_aarch64")
    main.wheel("a-needs", "1.0")
    main.wheel("z-needs", "1.0", tag="cp39-abi3-manylinux_2_17_aarch64.manylinux2014_aarch64")
    found = lock()
    assert [wheel.name for wheel in found.wheels] == ["a-needs", "lib", "z-needs"]
    assert found.wheels[1] == LockedWheel("lib", "1.0", path.name, path.stat().st_size, sha256_of(path), "default")
    assert lock() == found


@pytest.mark.parametrize(("machine", "python", "glibc", "expected"), [
    ("aarch64", "3.11", "2.36", "lib-1.0-cp311-cp311-manylinux_2_34_aarch64.whl"),
    ("aarch64", "3.11", "2.31", "lib-1.0-cp311-cp311-manylinux_2_28_aarch64.whl"),
    ("aarch64", "3.13", "2.41", "lib-1.0-py3-none-any.whl"),
    ("x86_64", "3.12", "2.35", "lib-1.0-cp312-cp312-manylinux_2_28_x86_64.whl"),
])
def test_the_wheel_fits_the_target_not_the_host(
        main: Place, lock: Lock, machine: str, python: str, glibc: str, expected: str) -> None:
    for tag in ("cp311-cp311-manylinux_2_28_aarch64", "cp311-cp311-manylinux_2_34_aarch64", "py3-none-any",
                "cp312-cp312-manylinux_2_28_x86_64"):
        main.wheel("lib", "1.0", tag=tag)
    assert files(lock(WheelRequest(("lib",), python, machine, glibc))) == [expected]


def test_overrides_and_constraints(main: Place, lock: Lock) -> None:
    main.wheel("lib", "1.0", "numpy>=2", "dep")
    for version in ("1.26.4", "2.0", "2.1"):
        main.wheel("numpy", version)
        main.wheel("dep", version)
    assert versions(lock()) == {"lib": "1.0", "numpy": "2.1", "dep": "2.1"}
    found = lock(replace(THOR, overrides=("numpy==1.26.4",), constraints=("dep<2.1",)))
    assert versions(found) == {"lib": "1.0", "numpy": "1.26.4", "dep": "2.0"}


def test_taken_alone(main: Place, lock: Lock) -> None:
    main.wheel("lib", "1.0")
    main.wheel("nvidia-pytriton", "0.7.0", "tritonclient", "numpy<2", tag="py3-none-manylinux_2_35_aarch64")
    found = lock(replace(THOR, alone=("nvidia-pytriton==0.7.0",)))
    assert files(found) == ["lib-1.0-py3-none-any.whl"]
    assert [wheel.file for wheel in found.alone] == ["nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_aarch64.whl"]


def test_what_the_index_does_not_say_is_found_out(main: Place, lock: Lock) -> None:
    path = main.wheel("lib", "1.0")
    main.server.options = Options(json=False, hashes=True, sizes=False)
    expected = LockedWheel("lib", "1.0", path.name, path.stat().st_size, sha256_of(path), "default")
    assert lock().wheels == (expected,)
    assert main.server.count(path.name, "HEAD") >= 1
    main.server.options = Options(json=False, hashes=False, sizes=False)
    assert lock().wheels == (expected,)


def test_a_pre_release_is_taken_only_if_asked_for_or_if_there_is_nothing_else(
        main: Place, indexes: Indexes, lock: Lock) -> None:
    main.wheel("lib", "1.0", "beta")
    main.wheel("lib", "2.0rc1", "beta")
    main.wheel("beta", "0.5b1")
    said: list[str] = []
    found = lock_wheels(THOR, indexes, log=said.append)
    assert versions(found) == {"lib": "1.0", "beta": "0.5b1"}
    assert "beta 0.5b1 is a pre-release" in said
    assert versions(lock(replace(THOR, requirements=("lib>=2.0rc1",))))["lib"] == "2.0rc1"


# -- keeping pins ---------------------------------------------------------------------------------


@pytest.fixture
def locked(main: Place, lock: Lock) -> WheelLock:
    main.wheel("lib", "1.0", "dep")
    main.wheel("dep", "1.0")
    found = lock()
    main.wheel("lib", "1.1", "dep", "new")
    main.wheel("dep", "1.1")
    main.wheel("new", "1.0")
    return found


def test_pins_are_kept(lock: Lock, locked: WheelLock) -> None:
    assert lock(previous=locked.wheels) == locked
    assert versions(lock()) == {"lib": "1.1", "dep": "1.1", "new": "1.0"}


def test_upgrade_one(lock: Lock, locked: WheelLock) -> None:
    assert versions(lock(previous=locked.wheels, upgrade=["Dep"])) == {"lib": "1.0", "dep": "1.1"}
    assert versions(lock(previous=locked.wheels, upgrade=["lib"])) == {"lib": "1.1", "dep": "1.0", "new": "1.0"}


def test_upgrade_all(lock: Lock, locked: WheelLock) -> None:
    assert versions(lock(previous=locked.wheels, upgrade=True)) == {"lib": "1.1", "dep": "1.1", "new": "1.0"}


def test_a_pin_that_no_longer_satisfies_moves_alone(lock: Lock, locked: WheelLock) -> None:
    request = replace(THOR, requirements=("lib>1.0",))
    assert versions(lock(request, previous=locked.wheels)) == {"lib": "1.1", "dep": "1.0", "new": "1.0"}


def test_upgrade_of_a_name_that_is_not_locked(lock: Lock, locked: WheelLock) -> None:
    with pytest.raises(InputError, match="libb is not in the lock") as caught:
        lock(previous=locked.wheels, upgrade=["libb"])
    assert caught.value.cure == "did you mean 'lib'?"


def test_a_better_wheel_of_a_pinned_version_does_not_replace_it(main: Place, lock: Lock, locked: WheelLock) -> None:
    main.wheel("dep", "1.0", tag="cp311-cp311-manylinux_2_28_aarch64")
    assert lock(previous=locked.wheels) == locked
    assert files(lock(previous=locked.wheels, upgrade=["dep"]))[0] == "dep-1.1-py3-none-any.whl"


def test_a_replaced_file_is_not_taken_in_silence(main: Place, lock: Lock, locked: WheelLock) -> None:
    path = main.wheel("dep", "1.0", files={"dep.py": b"rebuilt\n"})
    with pytest.raises(LockError, match=r"index default replaced dep-1\.0") as caught:
        lock(previous=locked.wheels)
    assert locked.wheels[0].sha256 in str(caught.value.expected)
    assert sha256_of(path) in str(caught.value.found)
    assert "--upgrade dep" in str(caught.value.cure)


def test_pins_are_kept_when_an_extra_index_has_the_version_for_other_machines(
        tmp_path: Path, main: Place, mirror: Place, lock: Lock) -> None:
    """uv takes a preferred version from the first index that has it, and gives up when no wheel there fits."""
    main.wheel("lib", "1.0", "dep")
    main.wheel("dep", "1.0", tag="cp311-cp311-manylinux_2_28_aarch64")
    mirror.wheel("dep", "1.0", tag="cp311-cp311-manylinux_2_28_x86_64")
    both = load_indexes(tmp_path / "indexes.yaml", client_environment(
        tmp_path, PIP_INDEX_URL=main.server.url, PIP_EXTRA_INDEX_URL=mirror.server.url))
    found = lock(THOR, both)
    main.wheel("dep", "1.1", tag="cp311-cp311-manylinux_2_28_aarch64")
    assert lock(THOR, both, previous=found.wheels) == found
    assert versions(lock(replace(THOR, requirements=("lib", "dep>1.0")), both, previous=found.wheels))["dep"] == "1.1"


def test_only_pins_that_moved_are_named(tmp_path: Path, main: Place, mirror: Place, indexes: Indexes) -> None:
    main.wheel("lib", "1.0", "dep", "still")
    for name in ("dep", "still"):
        main.wheel(name, "1.0", tag="cp311-cp311-manylinux_2_28_aarch64")
        mirror.wheel(name, "1.0", tag="cp311-cp311-manylinux_2_28_x86_64")
    both = load_indexes(tmp_path / "indexes.yaml", client_environment(
        tmp_path, PIP_INDEX_URL=main.server.url, PIP_EXTRA_INDEX_URL=mirror.server.url))
    said: list[str] = []
    found = lock_wheels(THOR, both, log=said.append)
    main.wheel("dep", "1.1", tag="cp311-cp311-manylinux_2_28_aarch64")
    more = replace(THOR, requirements=("lib", "dep>1.0"))
    lock_wheels(more, both, log=said.append, previous=found.wheels)
    assert [line for line in said if "could not be kept" in line] == ["these pins could not be kept: dep 1.0"]


# -- dates ----------------------------------------------------------------------------------------


def test_exclude_newer(main: Place, lock: Lock) -> None:
    main.wheel("lib", "1.0")
    main.wheel("lib", "1.1")
    main.server.options = Options(uploaded={"lib-1.0-py3-none-any.whl": "2026-01-01T10:00:00Z",
                                            "lib-1.1-py3-none-any.whl": "2026-02-01T23:30:00Z"})
    assert versions(lock(exclude_newer="2026-01-31")) == {"lib": "1.0"}
    assert versions(lock(exclude_newer="2026-02-01")) == {"lib": "1.1"}
    assert versions(lock(exclude_newer="2026-02-01T23:00:00Z")) == {"lib": "1.0"}


@pytest.mark.parametrize("day", ["yesterday", "2026-13-01", "2026-01-01T10:00:00", "01.02.2026"])
def test_what_is_no_date(lock: Lock, day: str) -> None:
    with pytest.raises(InputError, match="not a date"):
        lock(exclude_newer=day)


def test_a_day_is_a_day_of_utc() -> None:
    assert bound("2026-02-28") == "2026-03-01T00:00:00Z"
    assert bound(None) == ""


# -- another index for a package ------------------------------------------------------------------


@pytest.fixture
def torches(main: Place, mirror: Place) -> None:
    main.wheel("torch", "2.13.0", "nvidia-x", tag="cp311-cp311-manylinux_2_28_aarch64")
    main.wheel("nvidia-x", "1.0")
    main.wheel("vllm", "0.32.0", "torch==2.13.0")
    mirror.wheel("torch", "2.13.0", "nvpl", tag="cp311-cp311-linux_aarch64")
    main.wheel("nvpl", "1.0")
    mirror.wheel("nvpl", "6.6.6")


ONE = WheelRequest(("torch==2.13.0", "vllm==0.32.0"), "3.11", "aarch64", "2.36", index_of={"torch": "default"})


@pytest.mark.usefixtures("torches")
def test_one_word_switches_the_index_of_torch(lock: Lock) -> None:
    assert files(lock(ONE)) == ["nvidia_x-1.0-py3-none-any.whl", "torch-2.13.0-cp311-cp311-manylinux_2_28_aarch64.whl",
                                "vllm-0.32.0-py3-none-any.whl"]
    found = lock(replace(ONE, index_of={"torch": "jetson"}))
    assert [(wheel.file, wheel.index) for wheel in found.wheels] == [
        ("nvpl-1.0-py3-none-any.whl", "default"),  # only torch comes from there
        ("torch-2.13.0-cp311-cp311-linux_aarch64.whl", "jetson"),
        ("vllm-0.32.0-py3-none-any.whl", "default")]
    assert lock(replace(ONE, index_of={"torch": "jetson"}), previous=found.wheels) == found


@pytest.mark.usefixtures("torches")
def test_a_switch_of_index_does_not_keep_the_old_file(mirror: Place, lock: Lock) -> None:
    """Not even if the other index has one of the same name."""
    before = lock(ONE)
    path = mirror.wheel("torch", "2.13.0", tag="cp311-cp311-manylinux_2_28_aarch64")
    found = lock(replace(ONE, index_of={"torch": "jetson"}), previous=before.wheels)
    assert [(wheel.index, wheel.sha256) for wheel in found.wheels if wheel.name == "torch"] == [
        ("jetson", sha256_of(path))]


@pytest.mark.usefixtures("torches")
def test_what_only_others_require_can_come_from_another_index(lock: Lock) -> None:
    found = lock(replace(ONE, requirements=("vllm==0.32.0",), index_of={"torch": "jetson"}))
    assert {wheel.name: wheel.index for wheel in found.wheels}["torch"] == "jetson"


@pytest.mark.usefixtures("torches")
def test_an_overridden_package_still_comes_from_its_index(main: Place, mirror: Place, lock: Lock) -> None:
    """uv forgets the index of a package that is overridden."""
    mirror.wheel("torch", "2.12.0", "nvpl", tag="cp311-cp311-linux_aarch64")
    main.wheel("torch", "2.12.0", tag="cp311-cp311-manylinux_2_28_aarch64")
    request = replace(ONE, requirements=("vllm==0.32.0", "torch"), overrides=("torch<2.13",),
                      index_of={"torch": "jetson"})
    found = lock(request)
    assert [(wheel.version, wheel.index, wheel.file) for wheel in found.wheels if wheel.name == "torch"] == [
        ("2.12.0", "jetson", "torch-2.12.0-cp311-cp311-linux_aarch64.whl")]
    with pytest.raises(LockError, match=r"index jetson has torch 2\.13\.0, 2\.12\.0, not ==2\.11"):
        lock(replace(request, overrides=("torch==2.11",)))


def test_an_index_with_torch_for_another_python_only(main: Place, mirror: Place, lock: Lock) -> None:
    main.wheel("torch", "2.13.0", tag="cp311-cp311-manylinux_2_28_aarch64")
    mirror.wheel("torch", "2.13.0", tag="cp312-cp312-linux_aarch64")
    with pytest.raises(LockError) as caught:
        lock(replace(THOR, requirements=("torch==2.13.0",), index_of={"torch": "jetson"}))
    error = caught.value
    assert error.message == "index jetson has torch only for cp312, this base is 3.11"
    assert error.expected == "torch==2.13.0 for CPython 3.11, aarch64, glibc 2.36"
    assert "torch-2.13.0-cp312-cp312-linux_aarch64.whl" in str(error.found)
    assert "uv: error: No solution found" in str(error.found)
    assert error.cure


def test_an_index_that_nobody_knows(lock: Lock) -> None:
    with pytest.raises(InputError, match="no index is called 'jetsn'"):
        lock(replace(THOR, index_of={"lib": "jetsn"}))


# -- refusals -------------------------------------------------------------------------------------


def refused(lock: Lock, request: WheelRequest = THOR) -> LockError:
    with pytest.raises(LockError) as caught:
        lock(request)
    return caught.value


def test_a_dependency_that_does_not_fit_is_found(main: Place, lock: Lock) -> None:
    main.wheel("lib", "1.0", "deep==3.0")
    main.wheel("deep", "3.0", tag="cp311-cp311-manylinux_2_28_x86_64")
    assert refused(lock).message == "index default has deep only for manylinux_2_28_x86_64, this base is aarch64"


def test_only_as_source(tmp_path: Path, main: Place, lock: Lock) -> None:
    """And no code of it is run to find out what it needs."""
    main.wheel("lib", "1.0", "src")
    backend = f"open({str(tmp_path / 'was-run')!r}, 'w').close()\n"
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    with tarfile.open(main.directory / "src-1.0.tar.gz", "w:gz") as archive:
        for name, text in (("backend.py", backend), ("pyproject.toml", project), ("PKG-INFO", "Name: src\n")):
            member = tarfile.TarInfo(f"src-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    assert refused(lock).message == "index default has src only as source"
    assert not (tmp_path / "was-run").exists()


def test_a_package_that_is_nowhere(main: Place, lock: Lock) -> None:
    main.wheel("lib", "1.0", "missing-one>=2")
    assert refused(lock).message == "index default has no missing-one"


def test_a_version_that_is_not_there(main: Place, lock: Lock) -> None:
    main.wheel("lib", "1.0")
    assert refused(lock, replace(THOR, requirements=("lib==2.0",))).message == "index default has lib 1.0, not ==2.0"


def test_a_real_conflict_is_told_in_uvs_words(main: Place, lock: Lock) -> None:
    main.wheel("lib", "1.0", "dep<2")
    main.wheel("other", "1.0", "dep>=2")
    main.wheel("dep", "1.0")
    main.wheel("dep", "2.0")
    error = refused(lock, replace(THOR, requirements=("lib", "other")))
    assert error.message == "no set of wheels satisfies the request"
    assert "other" in str(error.found)
    assert "dep" in str(error.found)


@pytest.mark.parametrize("line", ["lib=1", "lib @ https://x.example/lib.whl", "-e .", "lib==1 --hash=x"])
def test_what_is_no_requirement(lock: Lock, line: str) -> None:
    with pytest.raises(InputError, match="requirement"):
        lock(replace(THOR, requirements=(line,)))


def test_an_index_that_is_down_is_named(main: Place, lock: Lock) -> None:
    main.server.stop()
    with pytest.raises(FetchError, match="index default cannot be read"):
        lock()


# -- the client's configuration -------------------------------------------------------------------


def client(tmp_path: Path, **env: str) -> Indexes:
    return load_indexes(write_indexes(tmp_path / "indexes.yaml", {}), client_environment(tmp_path, **env))


def test_find_links_and_extra_indexes(tmp_path: Path, main: Place, mirror: Place, lock: Lock) -> None:
    main.wheel("lib", "1.0", "dep", "linked")
    mirror.wheel("dep", "1.0")
    mirror.wheel("lib", "0.9")
    (tmp_path / "links").mkdir()
    make_wheel(tmp_path / "links", "linked", "1.0")
    found = lock(THOR, client(tmp_path, PIP_INDEX_URL=main.server.url, PIP_EXTRA_INDEX_URL=mirror.server.url,
                              PIP_FIND_LINKS=str(tmp_path / "links")))
    assert versions(found) == {"lib": "1.0", "dep": "1.0", "linked": "1.0"}  # as pip: the best of all indexes
    assert all(wheel.size and len(wheel.sha256) == 64 for wheel in found.wheels)
    # as uv: a package comes from the first index that has it
    found = lock(THOR, client(tmp_path, UV_DEFAULT_INDEX=main.server.url, UV_INDEX=mirror.server.url))
    assert versions(found) == {"lib": "0.9"}


def test_only_find_links(tmp_path: Path, lock: Lock) -> None:
    path = make_wheel(tmp_path / "links", "lib", "1.0")
    found = lock(THOR, client(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "links")))
    assert found.wheels == (LockedWheel("lib", "1.0", path.name, path.stat().st_size, sha256_of(path), "default"),)


def test_an_index_in_files(tmp_path: Path, lock: Lock) -> None:
    path = make_wheel(tmp_path / "files", "lib", "1.0")
    (tmp_path / "simple" / "lib").mkdir(parents=True)
    (tmp_path / "simple" / "lib" / "index.html").write_text(f'<a href="../../files/{path.name}">{path.name}</a>')
    found = lock(THOR, client(tmp_path, PIP_INDEX_URL=(tmp_path / "simple").as_uri()))
    assert [(wheel.file, wheel.sha256) for wheel in found.wheels] == [(path.name, sha256_of(path))]


def test_credentials_reach_uv_and_no_message(tmp_path: Path, lock: Lock) -> None:
    make_wheel(tmp_path / "served", "lib", "1.0", requires=["nothing"])
    with IndexServer(tmp_path / "served", auth=("me", "s3cret")) as server:
        indexes = client(tmp_path, PIP_INDEX_URL=server.with_credentials("me", "s3cret"))
        error = refused(lambda request: lock(request, indexes))
        assert error.message == "index default has no nothing"
        assert "s3cret" not in error.diagnostics()
        make_wheel(tmp_path / "served", "nothing", "1.0")
        fresh = client(tmp_path, PIP_INDEX_URL=server.with_credentials("me", "s3cret"),
                       UV_CACHE_DIR=str(tmp_path / "c2"))
        assert versions(lock(THOR, fresh)) == {"lib": "1.0", "nothing": "1.0"}


def test_a_private_certificate_authority_reaches_uv(tmp_path: Path, lock: Lock) -> None:
    make_wheel(tmp_path / "served", "lib", "1.0")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    ca, cert, key = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    authority.cert_pem.write_to_path(str(ca))
    issued.cert_chain_pems[0].write_to_path(str(cert))
    issued.private_key_pem.write_to_path(str(key))
    with IndexServer(tmp_path / "served", tls=(cert, key)) as server:
        assert versions(lock(THOR, client(tmp_path, PIP_INDEX_URL=server.url, PIP_CERT=str(ca)))) == {"lib": "1.0"}
        with pytest.raises(FetchError, match="index default cannot be read"):
            lock(THOR, client(tmp_path, PIP_INDEX_URL=server.url, UV_CACHE_DIR=str(tmp_path / "c2")))


def test_pips_proxy_reaches_uv(tmp_path: Path, main: Place, lock: Lock) -> None:
    main.wheel("lib", "1.0")
    indexes = client(tmp_path, PIP_INDEX_URL="http://far.invalid/simple/", PIP_PROXY=main.server.root)
    main.server.options = Options(json=True)
    found = lock(THOR, indexes)
    assert versions(found) == {"lib": "1.0"}
    assert {item.headers["host"] for item in main.server.requests if "simple" in item.path} == {"far.invalid"}


def test_settings_of_uv_that_would_change_the_answer_do_not_reach_it(
        tmp_path: Path, main: Place, lock: Lock) -> None:
    main.wheel("lib", "1.0")
    main.wheel("lib", "2.0rc1")
    (tmp_path / "c.txt").write_text("lib==2.0rc1\n")
    indexes = client(tmp_path, PIP_INDEX_URL=main.server.url, UV_PRERELEASE="allow", UV_RESOLUTION="lowest",
                     UV_CONSTRAINT=str(tmp_path / "c.txt"), UV_EXCLUDE_NEWER="2001-01-01")
    assert versions(lock(THOR, indexes)) == {"lib": "1.0"}
