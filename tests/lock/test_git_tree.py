"""Sources out of real Git repositories, served by a real git daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.archive import read_index
from cache.errors import FetchError, IntegrityError, LockError
from cache.layer import LayerReader
from cache.store import Store
from lock.git_tree import addresses, fetch_tree, resolve
from tests.support.git_server import Repository, git_server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repositories"


@pytest.fixture
def server(root: Path) -> Iterator[str]:
    root.mkdir()
    with git_server(root) as address:
        yield address


FILES: dict[str, bytes | str] = {"CMakeLists.txt": b"project(x)\n", "tool.sh": b"#!/bin/sh\n", "include/a.h": b"\n",
                                 "link": "include/a.h", ".gitattributes": b"*.h text eol=crlf\nsecret export-ignore\n",
                                 "secret": b"kept\n"}


def test_files_of_a_revision(store: Store, root: Path, server: str) -> None:
    revision = Repository(root / "x").commit(FILES, executable=("tool.sh",))
    tree = fetch_tree(store, server + "x", revision)
    entries = {entry["path"]: entry for entry in read_index(store, tree.index)}
    assert set(entries) == {*FILES, "include"}
    assert entries["tool.sh"]["mode"] == 0o755
    assert entries["CMakeLists.txt"]["mode"] == 0o644
    assert entries["link"]["target"] == "include/a.h"
    with LayerReader(store, tree.index) as layer:
        assert layer.read("include/a.h") == b"\n"  # as committed: no filter, no end-of-line conversion
        assert layer.read("secret") == b"kept\n"


def test_same_bytes_from_another_server_and_store(store: Store, root: Path, server: str, tmp_path: Path) -> None:
    repository = Repository(root / "x")
    revision = repository.commit(FILES)
    repository.git("clone", "--quiet", "--bare", str(root / "x"), str(tmp_path / "copy.git"))
    one = fetch_tree(store, server + "x", revision)
    other = fetch_tree(Store.open(tmp_path / "other"), f"file://{tmp_path}/copy.git", revision, expect=one.digest)
    assert one.digest == other.digest


def test_revision_that_no_branch_names(store: Store, root: Path, server: str) -> None:
    """A commit behind a branch: servers give it only to those who may ask for any."""
    repository = Repository(root / "x")
    first = repository.commit({"a": b"1"})
    repository.commit({"a": b"2"})
    with LayerReader(store, fetch_tree(store, server + "x", first).index) as layer:
        assert layer.read("a") == b"1"


def test_tags_resolve_to_commits(root: Path, server: str) -> None:
    repository = Repository(root / "x")
    revision = repository.commit(FILES)
    repository.git("tag", "v1")
    repository.git("tag", "--annotate", "--message", "m", "v2")
    assert repository.git("rev-parse", "v2") != revision
    assert [resolve(server + "x", name) for name in ("v1", "v2", "main", revision)] == [revision] * 4
    with pytest.raises(LockError, match="no tag or branch v3"):
        resolve(server + "x", "v3")


def test_mirror_that_is_older_than_a_tag_is_passed_over(root: Path, server: str) -> None:
    old = Repository(root / "old")
    old.commit(FILES)
    new = Repository(root / "x")
    revision = new.commit(FILES)
    new.git("tag", "v1")
    mirrors = {server + "x": [server + "old"]}
    assert resolve(server + "x", "v1", mirrors) == revision
    with pytest.raises(LockError, match="no tag or branch v2") as caught:
        resolve(server + "x", "v2", mirrors)
    lines = [f"{server}{name}: it has no tag or branch v2" for name in ("old", "x")]
    assert str(caught.value.found).splitlines() == lines


def test_moved_tag_does_not_move_what_is_locked(store: Store, root: Path, server: str) -> None:
    repository = Repository(root / "x")
    repository.commit(FILES)
    repository.git("tag", "v1")
    locked = resolve(server + "x", "v1")
    tree = fetch_tree(store, server + "x", locked)
    repository.commit({"CMakeLists.txt": b"evil\n"})
    repository.git("tag", "--force", "v1")
    assert resolve(server + "x", "v1") != locked
    assert fetch_tree(store, server + "x", locked, expect=tree.digest).digest == tree.digest


def test_submodules_are_put_in_their_places(store: Store, root: Path, server: str) -> None:
    inner = Repository(root / "inner").commit({"deep.h": b"deep\n"})
    cutlass = Repository(root / "cutlass")
    cutlass.commit({"cutlass.h": b"c\n"})
    middle = cutlass.submodule("third/inner", "../inner", inner)
    outer = Repository(root / "outer")
    outer.commit({"main.cu": b"m\n"})
    outer.submodule("csrc/cutlass", "../cutlass", middle)
    revision = outer.submodule("unused", "../not-there", inner)
    tree = fetch_tree(store, server + "outer", revision, submodules=["csrc/cutlass"])
    paths = {entry["path"] for entry in read_index(store, tree.index) if entry["type"] == "file"}
    assert paths == {".gitmodules", "main.cu", "csrc/cutlass/.gitmodules", "csrc/cutlass/cutlass.h",
                     "csrc/cutlass/third/inner/deep.h"}
    assert tree.submodules == {"csrc/cutlass": (server + "cutlass", middle),
                               "csrc/cutlass/third/inner": (server + "inner", inner)}
    without = fetch_tree(store, server + "outer", revision)
    assert without.digest != tree.digest
    with pytest.raises(FetchError, match="cannot be had"):
        fetch_tree(store, server + "outer", revision, submodules=None)


def test_submodule_that_is_not_there(store: Store, root: Path, server: str) -> None:
    revision = Repository(root / "x").commit(FILES)
    with pytest.raises(LockError, match="no submodule third_party/cutlass") as caught:
        fetch_tree(store, server + "x", revision, submodules=["third_party/cutlass"])
    assert "no submodules at all" in caught.value.diagnostics()


def test_mirrors_are_tried_in_order_and_only_their_content_counts(store: Store, root: Path, server: str,
                                                                  tmp_path: Path) -> None:
    revision = Repository(root / "org" / "x").commit(FILES)
    tree = fetch_tree(store, server + "org/x", revision)
    mirrors = {"https://github.invalid/": ["file:///not/there/", server]}
    again = fetch_tree(store, "https://github.invalid/org/x", revision, mirrors=mirrors, expect=tree.digest)
    assert again.digest == tree.digest
    with pytest.raises(IntegrityError, match="other files than were locked"):
        fetch_tree(store, "https://github.invalid/org/x", revision, mirrors=mirrors, expect="sha256:" + "0" * 64)


def test_longest_prefix_first_and_the_address_itself_last() -> None:
    mirrors = {"https://github.com/": ["file:///a/"], "https://github.com/nvidia/": ["file:///b/", "file:///c/"]}
    assert addresses("https://github.com/nvidia/cutlass.git", mirrors) == [
        "file:///b/cutlass.git", "file:///c/cutlass.git", "file:///a/nvidia/cutlass.git",
        "https://github.com/nvidia/cutlass.git"]


def test_what_is_away_is_named_with_every_address(store: Store, root: Path, server: str) -> None:
    with pytest.raises(FetchError) as caught:
        fetch_tree(store, "https://user:hush@github.invalid/org/x", "0" * 40,
                   mirrors={"https://user:hush@github.invalid/": [server, "file:///not/there/"]})
    text = caught.value.diagnostics()
    assert "file:///not/there/org/x" in text
    assert server in text
    assert "sources.mirrors" in text
    assert "hush" not in text


def test_revision_that_does_not_exist(store: Store, root: Path, server: str) -> None:
    Repository(root / "x").commit(FILES)
    with pytest.raises(FetchError):
        fetch_tree(store, server + "x", "1" * 40)


@pytest.mark.parametrize("revision", ["v1", "main", "abc123", "A" * 40])
def test_only_whole_revisions_are_fetched(store: Store, revision: str) -> None:
    with pytest.raises(LockError, match="40 hexadecimal digits"):
        fetch_tree(store, "file:///x", revision)


def test_nothing_of_the_repository_runs(store: Store, root: Path, server: str, tmp_path: Path) -> None:
    """Filters, hooks and transports that a repository or a submodule's address may name."""
    inner = Repository(root / "x")
    inner.commit({"a": b"1", ".gitattributes": b"* filter=evil\n"})
    revision = inner.submodule("sub", f"ext::sh -c touch% {tmp_path}/hit", "2" * 40)
    with pytest.raises(FetchError):
        fetch_tree(store, server + "x", revision, submodules=None)
    assert not (tmp_path / "hit").exists()


def test_helper_that_an_address_names_is_not_run(store: Store, root: Path, server: str, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "git-remote-evil"
    helper.write_text(f"#!/bin/sh\ntouch {tmp_path}/hit\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    Repository(root / "x").commit({"a": b"1"})
    inner = Repository(root / "y")
    inner.commit({"a": b"1"})
    with pytest.raises(FetchError):
        fetch_tree(store, server + "y", inner.submodule("sub", "evil::x", "2" * 40), submodules=None)
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_submodule_reads_no_repository_of_this_machine(store: Store, root: Path, server: str, tmp_path: Path,
                                                       form: str) -> None:
    private = Repository(tmp_path / "private")
    revision = private.commit({"key": b"1"})
    inner = Repository(root / "x")
    inner.commit({"a": b"1"})
    revision = inner.submodule("sub", form.format(private.directory), revision)
    with pytest.raises(LockError, match="of this machine"):
        fetch_tree(store, server + "x", revision, submodules=None)
    assert fetch_tree(store, f"file://{root}/x", revision, submodules=None).submodules  # its owner put it there


@pytest.mark.parametrize(("name", "value"), [
    ("GIT_DIR", "{}/elsewhere"), ("GIT_OBJECT_DIRECTORY", "{}/elsewhere"), ("GIT_DEFAULT_HASH", "sha256"),
    ("GIT_CONFIG_GLOBAL", "{}/settings"),
])
def test_what_git_is_told_elsewhere_counts_for_nothing(store: Store, root: Path, server: str, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    revision = Repository(root / "x").commit(FILES)
    (tmp_path / "settings").write_text("[safe]\n\tbareRepository = explicit\n")
    monkeypatch.setenv(name, value.format(tmp_path))
    assert fetch_tree(store, server + "x", revision).revision == revision
    assert not (tmp_path / "elsewhere").exists()


def test_name_that_is_no_text_is_named(store: Store, root: Path, server: str) -> None:
    repository = Repository(root / "x")
    repository.commit(FILES)
    (repository.directory / os.fsdecode(b"a\xff")).write_bytes(b"x")
    with pytest.raises(IntegrityError, match="not UTF-8"):
        fetch_tree(store, server + "x", repository.commit({}))


def test_passwords_are_in_no_log(store: Store) -> None:
    said: list[str] = []
    with pytest.raises(FetchError) as caught:
        fetch_tree(store, "https://user:hu@sh@github.invalid/org/x", "0" * 40, log=said.append)
    assert said
    texts = (*said, caught.value.diagnostics())
    assert not [text for text in texts if "hu@" in text or "sh@" in text]


def test_leaves_nothing_behind(store: Store, root: Path, server: str) -> None:
    revision = Repository(root / "x").commit(FILES)
    fetch_tree(store, server + "x", revision)
    with pytest.raises(FetchError):
        fetch_tree(store, server + "gone", revision)
    assert list((store.root / "tmp").iterdir()) == []
