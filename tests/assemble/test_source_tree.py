"""Builder `source-tree`: what a compile reads apart from the rest, patched, with the fetched trees."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from assemble.source_tree import build
from cache.archive import read_index
from cache.build import BuildContext
from cache.errors import InputError, IntegrityError
from cache.layer import LayerReader
from cache.store import Store
from lock.git_tree import fetch_tree
from tests.support.git_server import Repository
from tests.support.tarballs import Member, make_tar

SDIST: list[Member] = [
    ("vllm-1", None), ("vllm-1/CMakeLists.txt", b"project(vllm)\nset(FA2 8.0)\n"), ("vllm-1/csrc/a.cu", b"kernel\n"),
    ("vllm-1/vllm/__init__.py", b"import x\n"), ("vllm-1/vllm/engine.py", b"run()\n"),
    ("vllm-1/vllm/link.py", "engine.py"),
]
CSRC = ["CMakeLists.txt", "csrc/*", "cmake/*"]
PATCH = b"--- a/CMakeLists.txt\n+++ b/CMakeLists.txt\n@@ -1,2 +1,2 @@\n project(vllm)\n-set(FA2 8.0)\n+set(FA2 11.0a)\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def built(store: Store, members: list[Member] = SDIST, inputs: Mapping[str, bytes | str] | None = None,
          **params: Any) -> dict[str, str]:
    given = {"source": gzip.compress(make_tar(members), mtime=0), **(inputs or {})}
    digests = {name: data if isinstance(data, str) else store.put(data).digest for name, data in given.items()}
    found = build(BuildContext(store, {"strip": 1, "csrc": CSRC, "stubs": [], **params}, digests))
    return {name: blob.digest for name, blob in found.items()}


def paths(store: Store, index: str) -> set[str]:
    return {entry["path"] for entry in read_index(store, index) if entry["type"] != "directory"}


def test_split(store: Store) -> None:
    found = built(store)
    assert paths(store, found["csrc-index"]) == {"src/CMakeLists.txt", "src/csrc/a.cu"}
    assert paths(store, found["python-index"]) == {"src/vllm/__init__.py", "src/vllm/engine.py", "src/vllm/link.py"}


def test_pattern_that_fits_nothing_is_told(store: Store) -> None:
    """Versions differ, so it is no error; but who writes a recipe looks for it in the log."""
    said: list[str] = []
    source = store.put(gzip.compress(make_tar(SDIST), mtime=0)).digest
    build(BuildContext(store, {"strip": 1, "csrc": CSRC, "stubs": []}, {"source": source}, log=said.append))
    assert [line for line in said if "fits" in line] == ["csrc: no file fits cmake/*"]


def test_python_change_leaves_what_a_compile_reads(store: Store) -> None:
    one = built(store)
    other = built(store, [*SDIST[:4], ("vllm-1/vllm/engine.py", b"walk()\n"), ("vllm-1/vllm/new.py", b"")])
    assert (one["csrc"], one["csrc-index"]) == (other["csrc"], other["csrc-index"])
    assert one["python"] != other["python"]
    third = built(store, [*SDIST[:2], ("vllm-1/csrc/a.cu", b"other\n"), *SDIST[3:]])
    assert third["csrc"] != one["csrc"]
    assert third["python"] == one["python"]


def test_stub_stays_an_empty_tree(store: Store) -> None:
    """A patch for the tree would put files into the source, at a path that nobody reads."""
    patch = b"--- /dev/null\n+++ b/sources/flashmla/a.h\n@@ -0,0 +1 @@\n+1\n"
    with pytest.raises(InputError, match="or the empty one that stands for it") as caught:
        built(store, inputs={"patch/00-more.patch": patch}, stubs=["flashmla"])
    assert caught.value.found == "sources/flashmla/a.h"


def test_order_and_times_of_the_archive_do_not_count(store: Store) -> None:
    assert built(store)["csrc"] == built(store, [SDIST[0], *reversed(SDIST[1:])])["csrc"]


def test_patch_is_applied_and_recorded(store: Store) -> None:
    found = built(store, inputs={"patch/00-fa2.patch": PATCH})
    with LayerReader(store, found["csrc-index"]) as layer:
        assert layer.read("src/CMakeLists.txt") == b"project(vllm)\nset(FA2 11.0a)\n"
        digest = layer.entries["src/CMakeLists.txt"]["digest"]
    facts = json.loads(store.read(found["facts"]))
    assert facts["patches"] == [{"name": "00-fa2.patch", "files": {"CMakeLists.txt": digest}}]


def test_patch_that_does_not_apply(store: Store) -> None:
    with pytest.raises(InputError, match="does not apply"):
        built(store, inputs={"patch/00-fa2.patch": PATCH, "patch/01-again.patch": PATCH})
    with pytest.raises(InputError, match="patch of a symlink"):
        built(store, inputs={"patch/00": b"--- a/vllm/link.py\n+++ b/vllm/link.py\n@@ -1 +1 @@\n-a\n+b\n"})


def test_patch_that_makes_and_removes_files(store: Store) -> None:
    patch = (b"--- /dev/null\n+++ b/csrc/new.cu\n@@ -0,0 +1 @@\n+new\n"
             b"--- a/csrc/a.cu\n+++ /dev/null\n@@ -1 +0,0 @@\n-kernel\n")
    found = built(store, inputs={"patch/00": patch})
    assert paths(store, found["csrc-index"]) == {"src/CMakeLists.txt", "src/csrc/new.cu"}


def test_fetched_trees_lie_beside_the_source(store: Store, tmp_path: Path) -> None:
    revision = Repository(tmp_path / "cutlass").commit({"include/c.h": b"c\n", "tools/t.sh": b"#!\n", "l": "include"},
                                                       executable=("tools/t.sh",))
    tree = fetch_tree(store, f"file://{tmp_path}/cutlass", revision)
    found = built(store, inputs={"tree/cutlass": tree.digest}, stubs=["flashmla"])
    entries = {entry["path"]: entry for entry in read_index(store, found["csrc-index"])}
    assert entries["sources/cutlass/tools/t.sh"]["mode"] == 0o755
    assert entries["sources/cutlass/l"]["target"] == "include"
    assert entries["sources/flashmla"]["type"] == "directory"
    facts = json.loads(store.read(found["facts"]))
    assert (facts["trees"], facts["stubs"]) == ({"cutlass": 3}, ["flashmla"])


def test_patch_of_a_fetched_tree(store: Store, tmp_path: Path) -> None:
    revision = Repository(tmp_path / "fa").commit({"CMakeLists.txt": b"set(FA2 8.0)\n", "a/b.cu": b"kernel\n"})
    tree = fetch_tree(store, f"file://{tmp_path}/fa", revision)
    patch = (b"--- a/sources/fa/CMakeLists.txt\n+++ b/sources/fa/CMakeLists.txt\n@@ -1 +1 @@\n-set(FA2 8.0)\n"
             b"+set(FA2 11.0a)\n--- a/CMakeLists.txt\n+++ b/CMakeLists.txt\n@@ -1 +1 @@\n-project(vllm)\n+project(v)\n")
    found = built(store, inputs={"tree/fa": tree.digest, "patch/00": patch}, csrc=["*"])
    with LayerReader(store, found["csrc-index"]) as layer:
        assert layer.read("sources/fa/CMakeLists.txt") == b"set(FA2 11.0a)\n"
        assert layer.read("src/CMakeLists.txt") == b"project(v)\nset(FA2 8.0)\n"
    facts = json.loads(store.read(found["facts"]))
    assert set(facts["patches"][0]["files"]) == {"CMakeLists.txt", "sources/fa/CMakeLists.txt"}
    assert (facts["trees"], facts["csrc"], facts["python"]) == ({"fa": 2}, 5, 0)
    with pytest.raises(InputError, match="file is not there"):
        built(store, inputs={"tree/other": tree.digest, "patch/00": patch})


def test_source_where_a_tree_belongs(store: Store, tmp_path: Path) -> None:
    revision = Repository(tmp_path / "fa").commit({"a.cu": b"kernel\n"})
    tree = fetch_tree(store, f"file://{tmp_path}/fa", revision)
    with pytest.raises(InputError, match="where the tree belongs"):
        built(store, [*SDIST, ("vllm-1/sources/fa/b.cu", b"another\n")], {"tree/fa": tree.digest})


def test_source_from_git_needs_no_strip(store: Store, tmp_path: Path) -> None:
    revision = Repository(tmp_path / "vllm").commit({"CMakeLists.txt": b"x\n", "vllm/a.py": b""})
    tree = fetch_tree(store, f"file://{tmp_path}/vllm", revision)
    found = built(store, inputs={"source": tree.digest}, strip=0)
    assert paths(store, found["csrc-index"]) == {"src/CMakeLists.txt"}


def test_hard_links_are_files(store: Store) -> None:
    found = built(store, [*SDIST, ("vllm-1/csrc/b.cu", ("vllm-1/csrc/a.cu",))])
    with LayerReader(store, found["csrc-index"]) as layer:
        assert layer.read("src/csrc/b.cu") == b"kernel\n"


def test_names_that_become_one(store: Store) -> None:
    with pytest.raises(IntegrityError, match="one name"):
        built(store, [*SDIST, ("vllm-2", None), ("vllm-2/csrc/a.cu", b"another\n")])


def test_source_without_anything_to_compile(store: Store) -> None:
    with pytest.raises(InputError, match="no file of the source"):
        built(store, csrc=["cuda/*"])


def test_archive_that_leads_out(store: Store) -> None:
    with pytest.raises(IntegrityError):
        built(store, [("vllm-1/../../etc/passwd", b"x")])


def test_golden(store: Store) -> None:
    """A change of these bytes needs a new version of the builder."""
    found = built(store, inputs={"patch/00-fa2.patch": PATCH}, stubs=["flashmla"])
    assert found["csrc"] == "sha256:eaee5dba6c3f189854170e0657db3a7b1239f5cbb0db8eb76aa10c93d6d870ed"
