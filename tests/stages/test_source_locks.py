"""Locks with packages from source: what a build refuses of a lock that was edited, and what `lock` refuses to write."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache.errors import LockError
from cache.store import Store
from lock.git_tree import fetch_tree
from stages import lockfile, target
from stages.engine import Engine, FetchProgress
from stages.fetching import fetcher
from stages.graph import FileInput
from stages.lockfile import Lock, LockedFile
from tests.support.git_server import Repository
from tests.support.sourced import DEVICE, SOURCES, file, lock_of, package, tree, write

#: vLLM from wherever it is said.
VLLM = ('torch: {version: "2.0"}\nvllm: {version: "1.0", from: auto}\n'
        "sources: {packages: {vllm: {recipe: recipe/recipe.yaml}}}\n")


def load(root: Path, change: Callable[[Lock], Lock], text: str = DEVICE + SOURCES) -> Lock:
    """Of the small target with a lock that answers it and was changed then."""
    asked = target.load(write(root, text), "small")
    lockfile.path_of(root, "small").write_text(change(lock_of(asked)).dumps())
    return lockfile.load(root, asked)


@pytest.mark.parametrize(("text", "more", "says"), [
    (DEVICE + SOURCES, {"sources": (package(), package(name="other"))}, "it compiles other, which"),
    (DEVICE + SOURCES, {"sources": ()}, "pkg 1.0 is to be compiled, and it has the sources of nothing"),
    (DEVICE + SOURCES, {"sources": (package(version="2.0"),)}, "it has the sources of 2.0"),
    (DEVICE + SOURCES, {"wheels": (file("pkg", "1.0"),)}, "pkg is compiled, and it has a wheel of it too"),
    (DEVICE, {}, "it compiles pkg, which"),
    (DEVICE + VLLM, {"sources": ()}, "it does not say whether vllm is compiled"),
    (DEVICE + VLLM, {"sources": (), "decisions": {"vllm": {"from": "source", "why": []}}}, "the sources of nothing"),
    (DEVICE + VLLM, {"sources": (package(name="vllm"),), "decisions": {"vllm": {"from": "wheel", "why": []}}},
     "vllm is to be a wheel, and it has sources of it"),
])
def test_lock_that_contradicts_its_target(tmp_path: Path, text: str, more: dict[str, Any], says: str) -> None:
    with pytest.raises(LockError) as caught:
        load(tmp_path, lambda lock: replace(lock, **more), text)
    assert says in caught.value.message
    assert "./doit lock:small" in str(caught.value.cure)


@pytest.mark.parametrize("more", [
    {"sources": (), "wheels": (file("vllm", "1.0"),), "decisions": {"vllm": {"from": "wheel", "why": ["it passes"]}}},
    {"sources": (package(name="vllm"),), "decisions": {"vllm": {"from": "source", "why": ["abi: it does not load"]}}},
])
def test_lock_that_goes_by_its_own_decision(tmp_path: Path, more: dict[str, Any]) -> None:
    assert load(tmp_path, lambda lock: replace(lock, **more), DEVICE + VLLM).decisions


@pytest.mark.parametrize(("changed", "says"), [
    (package(trees=(tree("deep"), replace(tree("deep"), revision="9" * 40))), "deep is there twice"),
    (package(stubs={"deep": ""}), "deep is there twice"),
    (package(trees=(tree(".."),)), "a wrong value, '..'"),
    (package(stubs={".": ""}), "a wrong value, '.'"),
])
def test_source_that_would_take_the_place_of_another(tmp_path: Path, changed: Any, says: str) -> None:
    with pytest.raises(LockError, match=says):
        load(tmp_path, lambda lock: replace(lock, sources=(changed,)))


def test_tree_of_another_kind(tmp_path: Path) -> None:
    data = lock_of(target.load(write(tmp_path), "small")).to_json()
    data["sources"][0]["trees"][0]["kind"] = "svn"
    with pytest.raises(LockError, match="a wrong value, 'svn'") as caught:
        lockfile.parse(json.dumps(data), "small.lock.json")
    assert str(caught.value.where) == "small.lock.json: sources: pkg.trees[0].kind"


def test_size_of_a_tree_is_held_to_the_lock(tmp_path: Path) -> None:
    """Another size would have it fetched again and again."""
    repository = Repository(tmp_path / "git" / "deep")
    revision = repository.commit({"a.h": b"1"})
    store = Store.open(tmp_path / "store")
    made = fetch_tree(store, str(repository.directory), revision)
    wrong = replace(tree("deep"), repository=str(repository.directory), revision=revision, tree=made.digest,
                    size=made.size + 1, submodules={})
    wanted = FileInput("git", LockedFile("deep", revision, "deep.tar", wrong.size, made.digest[7:], ""))
    fetch = fetcher(tmp_path, trees=lambda: {made.digest: (wrong, {})})
    with pytest.raises(LockError, match="another size than the lock says"):
        fetch(store, [wanted], FetchProgress(Engine(store, tmp_path, fetch), "s", 1))
