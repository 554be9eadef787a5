"""Layers as directories: what is in them, made once, joined, collected."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import jsonschema
import pytest

from cache.errors import IntegrityError
from cache.gc import collect
from cache.store import Store
from executors import trees
from tests.support.front import HERE
from tests.support.images import make_layer
from tests.support.tarballs import Member, make_tar, packed


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def unpacked(store: Store, *members: Member, how: str = "none") -> trees.Tree:
    return trees.layer(store, store.put(packed(make_tar(members), how)[0]).digest)


def test_layer_is_unpacked_once_as_its_index_says(store: Store) -> None:
    digest = make_layer(store, {"bin/tool": b"#!x", "bin/suid": b"x", "etc/text": b"hello"},
                        {"bin/tool": 0o755, "bin/suid": 0o4755})
    said: list[str] = []
    tree = trees.layer(store, digest, said.append)
    assert (tree.root / "etc/text").read_text() == "hello"
    assert stat.S_IMODE((tree.root / "bin/tool").stat().st_mode) == 0o755
    assert stat.S_IMODE((tree.root / "bin/suid").stat().st_mode) == 0o755  # no set-user-id in the store
    assert (tree.root / "etc/text").stat().st_mtime == 315532800
    assert trees.layer(store, digest, said.append) == tree
    assert said == [f"unpacking layer {digest[7:19]}"]
    schema = json.loads((HERE / "docs/formats/tree.schema.json").read_text())
    jsonschema.validate(json.loads((tree.root.parent / "tree.json").read_text()), schema)


@pytest.mark.parametrize("how", ["none", "gzip", "zstd"])
def test_layers_of_other_tools_work(store: Store, how: str) -> None:
    tree = unpacked(store, ("a", None), ("a/file", b"x"), ("a/same", ("a/file",)), ("a/link", "/a/file"),
                    ("a/.wh.gone", b""), ("b", None), ("b/.wh..wh..opq", b""), how=how)
    assert sorted(os.listdir(tree.root / "a")) == ["file", "link", "same"]
    assert (tree.root / "a/same").stat().st_ino == (tree.root / "a/file").stat().st_ino
    assert os.readlink(tree.root / "a/link") == "/a/file"
    assert (tree.whiteouts, tree.opaque, tree.hides) == (("a/gone",), ("b",), True)


@pytest.mark.parametrize("members", [
    [("../outside", b"x")], [("/absolute", b"x")], [("link", "/tmp"), ("link/x", b"x")],
    [("hard", ("/etc/passwd",))],
    [("a", None), ("a/.wh...", b"")], [(".wh...", b"")], [(".wh..", b"")], [(".wh.", b"")],
])
def test_evil_layer_is_refused_and_leaves_nothing(store: Store, tmp_path: Path, members: list[Member]) -> None:
    with pytest.raises(IntegrityError):
        unpacked(store, *members)
    assert not any((store.root / "trees").rglob("tree.json"))
    assert not any(path.is_dir() for path in (store.root / "tmp").iterdir())


def test_tree_is_for_everybody_whatever_the_umask(store: Store) -> None:
    before = os.umask(0o077)
    try:
        tree = unpacked(store, ("deep/er/file", b"x"), ("other/er", None))
    finally:
        os.umask(before)
    for path in (tree.root.parent / "tree.json", *tree.root.rglob("*")):
        assert path.stat().st_mode & 0o004, path


def test_damaged_tree_is_made_again(store: Store) -> None:
    digest = make_layer(store, {"etc/text": b"hello"})
    tree = trees.layer(store, digest)
    (tree.root.parent / "tree.json").write_text("{")
    assert (trees.layer(store, digest).root / "etc/text").read_text() == "hello"


def test_merged_tree_is_what_the_layers_make_together(store: Store) -> None:
    lower = unpacked(store, ("a", None), ("a/old", b"1"), ("a/gone", b"1"), ("b", None), ("b/hidden", b"1"),
                     ("c", b"a file"), ("d", None), ("d/x", b"1"))
    upper = unpacked(store, ("a", None), ("a/old", b"2"), ("a/.wh.gone", b""), ("b", None), ("b/.wh..wh..opq", b""),
                     ("b/new", b"2"), ("c", None), ("c/now", b"a directory"), (".wh.d", b""))
    tree = trees.merged(store, [lower, upper], ["sha256:" + "1" * 64, "sha256:" + "2" * 64])
    found = {str(path.relative_to(tree.root)): path.read_bytes() for path in tree.root.rglob("*") if path.is_file()}
    assert found == {"a/old": b"2", "b/new": b"2", "c/now": b"a directory"}
    assert (lower.root / "a/old").read_bytes() == b"1"


def test_whiteout_behind_a_link_reaches_nothing_outside(store: Store, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    lower = unpacked(store, ("link", str(victim)))
    upper = trees.Tree(unpacked(store, ("x", b"")).root, whiteouts=("link/file",), opaque=("link",))
    trees.merged(store, [lower, upper], ["sha256:" + "3" * 64])
    assert (victim / "file").read_text() == "precious"


def test_collection_takes_a_tree_with_its_layer_or_when_it_is_not_used(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = Store.open(root)
    kept, loose = (make_layer(store, {"x": text}) for text in (b"kept", b"loose"))
    store.set_root("r", {"keys": [], "blobs": [kept]})
    for digest in (kept, loose):
        trees.layer(store, digest)
    assert not [item for item in collect(store).removed if item.kind == "tree"]  # this process uses them
    del store
    removed = [item.name[3:] for item in collect(Store.open(root)).removed if item.kind == "tree"]
    assert removed == [loose[7:]]
    assert (root / "trees" / kept[7:9] / kept[7:] / "root" / "x").exists()
    later = [item for item in collect(Store.open(root), now=time.time() + 8 * 86400).removed if item.kind == "tree"]
    assert [(item.name[3:], item.why) for item in later] == [(kept[7:], "not used for 7 days")]
    assert not (root / "trees" / kept[7:9]).exists()
