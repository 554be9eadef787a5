"""Sources of a package locked as a whole: from a real index and real git servers."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cache.errors import FetchError, InputError, IntegrityError, LockError
from cache.store import Store
from lock.indexes import Indexes, load_indexes
from lock.source_lock import LockedSource, LockedTree, SourceRequest, lock_source
from tests.support.git_server import Repository, git_server
from tests.support.index_server import IndexServer, client_environment, write_indexes

CMAKE = """\
set(TAG "v1")
if (DEFINED ENV{VLLM_CUTLASS_SRC_DIR})
  set(VLLM_CUTLASS_SRC_DIR $ENV{VLLM_CUTLASS_SRC_DIR})
endif()
FetchContent_Declare(cutlass GIT_REPOSITORY https://github.invalid/nvidia/cutlass.git GIT_TAG ${TAG} GIT_SUBMODULES "")
include(cmake/flashmla.cmake)
"""
MORE = "FetchContent_Declare(flashmla GIT_REPOSITORY https://github.invalid/vllm/FlashMLA GIT_TAG main)\n"


class Place:
    """An index, a git server, a store."""

    def __init__(self, directory: Path, git: str, indexes: Indexes) -> None:
        self.directory, self.git, self.indexes = directory, git, indexes
        self.store = Store.open(directory / "store")
        self.mirrors = {"https://github.invalid/": [git]}
        self.cutlass = Repository(directory / "git" / "nvidia" / "cutlass.git")
        self.revision = self.cutlass.commit({"include/c.h": b"1\n"})
        self.cutlass.git("tag", "v1")
        self.flashmla = Repository(directory / "git" / "vllm" / "FlashMLA")
        self.flashmla.commit({"f.cu": b"f\n"})

    def sdist(self, version: str = "1.0", cmake: str = CMAKE) -> None:
        files = {"CMakeLists.txt": cmake, "cmake/flashmla.cmake": MORE, "setup.py": ""}
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for name, text in files.items():
                info = tarfile.TarInfo(f"my_pkg-{version}/{name}")
                info.size = len(text.encode())
                archive.addfile(info, io.BytesIO(text.encode()))
        (self.directory / "files" / f"my_pkg-{version}.tar.gz").write_bytes(out.getvalue())

    def lock(self, request: SourceRequest | None = None, known: tuple[LockedTree, ...] = ()) -> LockedSource:
        return lock_source(self.store, request or SDIST, self.indexes, self.mirrors, known=known)


SDIST = SourceRequest("my-pkg", "1.0", index="default")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "files").mkdir()
    (tmp_path / "git").mkdir()
    with IndexServer(tmp_path / "files") as index, git_server(tmp_path / "git") as git:
        environ = client_environment(tmp_path, PIP_INDEX_URL=index.url)
        found = Place(tmp_path, git, load_indexes(write_indexes(tmp_path / "indexes.yaml", {}), environ))
        found.sdist()
        yield found


def test_everything_that_a_build_reads(place: Place) -> None:
    locked = place.lock()
    assert (locked.name, locked.version, locked.source["kind"]) == ("my-pkg", "1.0", "sdist")
    assert locked.source["file"] == "my_pkg-1.0.tar.gz"
    assert place.store.has("sha256:" + locked.source["sha256"], locked.source["size"])
    cutlass, flashmla = locked.trees
    assert (cutlass.name, cutlass.pinned, cutlass.revision, cutlass.variable) == (
        "cutlass", "v1", place.revision, "VLLM_CUTLASS_SRC_DIR")
    assert cutlass.repository == "https://github.invalid/nvidia/cutlass.git"  # the mirror is no part of a lock
    assert flashmla.pinned == "main"
    assert all(place.store.has(tree.tree, tree.size) for tree in locked.trees)
    assert json.loads(json.dumps(locked.to_json()))["trees"][0]["kind"] == "git"
    assert place.git not in json.dumps(locked.to_json())


def test_same_lock_from_another_store(place: Place, tmp_path: Path) -> None:
    one = place.lock()
    place.store = Store.open(tmp_path / "other")
    assert place.lock() == one


def test_moved_tag_keeps_its_revision_until_the_lock_before_is_left_out(place: Place) -> None:
    before = place.lock()
    newer = place.cutlass.commit({"include/c.h": b"2\n"})
    place.cutlass.git("tag", "--force", "v1")
    assert place.lock(known=before.trees).trees[0].revision == place.revision
    assert place.lock().trees[0].revision == newer


def test_another_pin_moves(place: Place) -> None:
    before = place.lock()
    newer = place.cutlass.commit({"include/c.h": b"2\n"})
    place.cutlass.git("tag", "v2")
    place.sdist(cmake=CMAKE.replace('"v1"', '"v2"'))
    assert place.lock(known=before.trees).trees[0].revision == newer


def test_stub_is_not_fetched(place: Place) -> None:
    locked = place.lock(SourceRequest("my-pkg", "1.0", index="default", stubs=frozenset({"flashmla"})))
    assert [tree.name for tree in locked.trees] == ["cutlass"]
    assert list(locked.stubs) == ["flashmla"]
    with pytest.raises(LockError, match="nothing pins flashmal, which the target names") as caught:
        place.lock(SourceRequest("my-pkg", "1.0", index="default", stubs=frozenset({"flashmal"})))
    assert "cutlass, flashmla" in caught.value.diagnostics()


def test_stub_of_the_recipe_counts_only_where_it_is_pinned(place: Place) -> None:
    locked = place.lock(SourceRequest("my-pkg", "1.0", index="default",
                                      stubs_if_pinned=frozenset({"flashmla", "of-another-version"})))
    assert list(locked.stubs) == ["flashmla"]


def test_another_revision_than_the_project_pins(place: Place) -> None:
    newer = place.cutlass.commit({"include/c.h": b"2\n"})
    place.cutlass.git("tag", "ours")
    request = SourceRequest("my-pkg", "1.0", index="default", stubs=frozenset({"flashmla"}),
                            pins={"cutlass": ("", "ours")})
    tree, = place.lock(request).trees
    assert (tree.pinned, tree.revision) == ("ours", newer)
    with pytest.raises(LockError, match="nothing pins cutlas"):
        place.lock(SourceRequest("my-pkg", "1.0", index="default", pins={"cutlas": ("", "ours")}))


def test_all_that_is_away_is_named_at_once_with_every_address(place: Place) -> None:
    place.mirrors = {"https://github.invalid/": ["file:///not/there/"]}
    with pytest.raises(FetchError, match=r"2 of the sources of my-pkg 1\.0 cannot be had") as caught:
        place.lock()
    text = caught.value.diagnostics()
    assert "file:///not/there/nvidia/cutlass.git" in text
    assert "file:///not/there/vllm/FlashMLA" in text
    assert "https://github.invalid/vllm/FlashMLA" in text
    assert "sources.mirrors" in text
    assert "sources.packages.my-pkg.stubs" in text
    assert "nothing was locked" in text


def test_package_from_git(place: Place) -> None:
    repository = Repository(place.directory / "git" / "me" / "pkg")
    revision = repository.commit({"CMakeLists.txt": CMAKE.encode(), "cmake/flashmla.cmake": MORE.encode()})
    repository.git("tag", "v1.0")
    locked = place.lock(SourceRequest("my-pkg", "1.0", repository="https://github.invalid/me/pkg", tag="v1.0"))
    assert (locked.source["revision"], locked.source["pinned"]) == (revision, "v1.0")
    assert [tree.name for tree in locked.trees] == ["cutlass", "flashmla"]


def test_submodules_that_the_pin_names(place: Place) -> None:
    inner = place.flashmla.git("rev-parse", "HEAD")
    place.cutlass.submodule("third", "../../vllm/FlashMLA", inner)
    place.cutlass.git("tag", "--force", "v1")
    plain = place.lock().trees[0]
    place.sdist(cmake=CMAKE.replace('GIT_SUBMODULES ""', "GIT_SUBMODULES third"))
    whole = place.lock().trees[0]
    assert (plain.submodules, list(whole.submodules)) == ({}, ["third"])
    assert plain.tree != whole.tree


def test_submodules_that_are_pinned_newly_are_no_other_files_than_were_locked(place: Place) -> None:
    inner = place.flashmla.git("rev-parse", "HEAD")
    revision = place.cutlass.submodule("third", "../../vllm/FlashMLA", inner)
    place.sdist(cmake=CMAKE.replace('"v1"', f'"{revision}"'))
    before = place.lock()
    place.sdist(cmake=CMAKE.replace('"v1"', f'"{revision}"').replace('GIT_SUBMODULES ""', "GIT_SUBMODULES third"))
    after = place.lock(known=before.trees)
    assert (after.trees[0].revision, list(after.trees[0].submodules)) == (revision, ["third"])


TWICE = """\
if (CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER 13)
  FetchContent_Declare(cutlass GIT_REPOSITORY https://github.invalid/nvidia/cutlass.git GIT_TAG v1)
else()
  FetchContent_Declare(cutlass GIT_REPOSITORY https://github.invalid/vllm/FlashMLA GIT_TAG main)
endif()
"""


def test_two_sources_of_one_name_are_not_locked_unless_the_target_says_which(place: Place) -> None:
    place.sdist(cmake=TWICE)
    with pytest.raises(LockError, match="cutlass is pinned 2 times") as caught:
        place.lock()
    assert "vllm/FlashMLA main" in caught.value.diagnostics()
    assert "sources.packages.my-pkg.pins" in caught.value.diagnostics()
    told = replace(SDIST, pins={"cutlass": ("https://github.invalid/nvidia/cutlass.git", "v1")})
    assert [(tree.name, tree.revision) for tree in place.lock(told).trees] == [("cutlass", place.revision)]
    stub = place.lock(replace(SDIST, stubs=frozenset({"cutlass"})))
    assert (stub.trees, list(stub.stubs)) == ((), ["cutlass"])


def test_source_whose_revision_only_the_target_can_tell(place: Place) -> None:
    place.sdist(cmake=CMAKE.replace("${TAG}", "${CMAKE_X}"))
    with pytest.raises(InputError, match="cannot be told") as caught:
        place.lock()
    assert "under pins of the package" in str(caught.value.cure)
    assert place.lock(replace(SDIST, pins={"cutlass": ("", "v1")})).trees[0].revision == place.revision
    place.sdist(cmake=CMAKE.replace("https://github.invalid/nvidia/cutlass.git", "${CMAKE_X}"))
    with pytest.raises(LockError, match="where cutlass comes from cannot be told"):
        place.lock(replace(SDIST, pins={"cutlass": ("", "v1")}))
    told = {"cutlass": ("https://github.invalid/nvidia/cutlass.git", "v1")}
    assert place.lock(replace(SDIST, pins=told)).trees[0].revision == place.revision


@pytest.mark.parametrize("name", ["..", "a/b", "${CMAKE_X}"])
def test_source_whose_name_is_no_directorys(place: Place, name: str) -> None:
    place.sdist(cmake=CMAKE.replace("(cutlass", f"({name}"))
    with pytest.raises(LockError, match="a name that no directory can have"):
        place.lock()


def test_version_without_an_sdist(place: Place) -> None:
    with pytest.raises(LockError, match=r"no sdist of my-pkg 2\.0") as caught:
        place.lock(SourceRequest("my-pkg", "2.0", index="default"))
    assert "my_pkg-1.0.tar.gz" in caught.value.diagnostics()


def test_known_tree_that_is_another_now(place: Place) -> None:
    """A server that gives other files for a revision, or a lock that was edited."""
    before = place.lock()
    forged = replace(before.trees[0], tree="sha256:" + "0" * 64)
    with pytest.raises(IntegrityError, match="other files than were locked"):
        place.lock(known=(forged,))
