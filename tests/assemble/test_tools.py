"""Builder `tools-layer`: programs of one machine inside a root of another."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from assemble.tools import build, where_to
from cache.archive import read_index
from cache.build import BuildContext
from cache.errors import InputError, IntegrityError
from cache.layer import LayerReader
from cache.store import Store
from tests.support.deb_factory import directory, file, hardlink, make_deb, symlink

PARAMS: dict[str, Any] = {
    "prefix": "cross", "architecture": "amd64", "skip": ["usr/share/doc/*"], "links": {},
    "in_place": ["lib64/*", "lib/x86_64-linux-gnu/*", "usr/lib/x86_64-linux-gnu/*"]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def built(store: Store, *debs: bytes, **params: Any) -> dict[str, str]:
    inputs = {f"debs/{number}.deb": store.put(data).digest for number, data in enumerate(debs)}
    found = build(BuildContext(store, {**PARAMS, **params}, inputs))
    return {name: blob.digest for name, blob in found.items()}


def entries(store: Store, index: str) -> dict[str, dict[str, Any]]:
    return {entry["path"]: entry for entry in read_index(store, index) if entry["type"] != "directory"}


GCC = make_deb("gcc", [
    directory("./usr/bin/"), file("./usr/bin/aarch64-linux-gnu-gcc-12", b"gcc", 0o755),
    hardlink("./usr/bin/aarch64-linux-gnu-cc", "./usr/bin/aarch64-linux-gnu-gcc-12"),
    symlink("./usr/bin/gcc-abs", "/usr/bin/aarch64-linux-gnu-gcc-12"), symlink("./usr/lib/x.so", "../bin/x"),
    file("./usr/share/doc/gcc/copyright", b"words")], architecture="amd64")
LIBC = make_deb("libc6", [
    file("./lib/x86_64-linux-gnu/libc.so.6", b"libc", 0o755), file("./usr/lib/x86_64-linux-gnu/libz.so.1", b"z"),
    symlink("./lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
    file("./usr/bin/ldd", b"ldd", 0o755)], architecture="amd64")


def test_programs_below_the_prefix_and_libraries_where_their_loader_looks(store: Store) -> None:
    found = entries(store, built(store, GCC, LIBC)["index"])
    assert set(found) == {
        "cross/usr/bin/aarch64-linux-gnu-gcc-12", "cross/usr/bin/aarch64-linux-gnu-cc", "cross/usr/bin/gcc-abs",
        "cross/usr/lib/x.so", "cross/usr/bin/ldd", "usr/lib/x86_64-linux-gnu/libc.so.6",
        "usr/lib/x86_64-linux-gnu/libz.so.1", "lib64/ld-linux-x86-64.so.2"}
    assert found["cross/usr/bin/aarch64-linux-gnu-gcc-12"]["mode"] == 0o755
    assert found["cross/usr/bin/aarch64-linux-gnu-cc"]["size"] == 3
    assert found["cross/usr/bin/gcc-abs"]["target"] == "/cross/usr/bin/aarch64-linux-gnu-gcc-12"
    assert found["cross/usr/lib/x.so"]["target"] == "../bin/x"
    assert found["lib64/ld-linux-x86-64.so.2"]["target"] == "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"


@pytest.mark.parametrize(("path", "where"), [
    ("usr/bin/gcc", "cross/usr/bin/gcc"), ("lib/x86_64-linux-gnu/a/b.so", "usr/lib/x86_64-linux-gnu/a/b.so"),
    ("usr/lib/x86_64-linux-gnu/c.so", "usr/lib/x86_64-linux-gnu/c.so"), ("lib64/ld.so", "lib64/ld.so"),
    ("lib/systemd/x", "cross/lib/systemd/x")])
def test_where_a_path_goes(path: str, where: str) -> None:
    assert where_to(path, PARAMS) == where


def test_everything_in_place() -> None:
    for path, where in (("usr/include/a.h", "usr/include/a.h"), ("bin/x", "usr/bin/x"), ("lib/a/x", "usr/lib/a/x")):
        assert where_to(path, {**PARAMS, "in_place": ["*"]}) == where


def test_links(store: Store) -> None:
    found = built(store, GCC, links={"cross/bin/cc": "../usr/bin/aarch64-linux-gnu-gcc-12"})
    assert entries(store, found["index"])["cross/bin/cc"]["target"] == "../usr/bin/aarch64-linux-gnu-gcc-12"
    with pytest.raises(InputError, match="in the way"):
        built(store, GCC, links={"cross/usr/bin/gcc-abs": "x"})


def test_packages_are_listed(store: Store) -> None:
    listed = json.loads(store.read(built(store, GCC, LIBC)["packages"]))["packages"]
    assert [(one["name"], one["version"], one["architecture"]) for one in listed] == [
        ("gcc", "1", "amd64"), ("libc6", "1", "amd64")]


def test_same_file_in_two_packages_is_one_file_and_another_is_refused(store: Store) -> None:
    one = make_deb("one", [file("./usr/bin/x", b"x")], architecture="amd64")
    same = make_deb("same", [file("./usr/bin/x", b"x")], architecture="all")
    other = make_deb("other", [file("./usr/bin/x", b"y")], architecture="amd64")
    with LayerReader(store, built(store, one, same)["index"]) as layer:
        assert layer.read("cross/usr/bin/x") == b"x"
    with pytest.raises(IntegrityError, match="different files of one name") as caught:
        built(store, one, other)
    assert "one and other" in caught.value.diagnostics()


def test_another_architecture_is_refused(store: Store) -> None:
    with pytest.raises(IntegrityError, match="another architecture"):
        built(store, make_deb("x", architecture="arm64"))


def test_hard_link_to_nothing(store: Store) -> None:
    with pytest.raises(IntegrityError):
        built(store, make_deb("x", [hardlink("./usr/bin/a", "./usr/bin/b")], architecture="amd64"))


def test_order_of_packages_does_not_count(store: Store) -> None:
    assert built(store, GCC, LIBC)["layer"] == built(store, LIBC, GCC)["layer"]


def test_files_that_no_single_read_gives(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read gives less than was asked for, as Linux does above 2 GiB."""
    whole = built(store, GCC, LIBC)
    short = SimpleNamespace(pread=lambda fd, size, at: os.pread(fd, min(size, 3), at))
    monkeypatch.setattr("assemble.tools.os", short)
    assert built(store, GCC, LIBC, LIBC) | {"packages": ""} == whole | {"packages": ""}
