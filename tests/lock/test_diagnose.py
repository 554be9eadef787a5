"""The words for a request without an answer."""

from __future__ import annotations

import pytest
from packaging.specifiers import SpecifierSet

from lock.diagnose import asked, judge
from lock.simple import IndexFile
from lock.tags import supported
from lock.uv import Question

QUESTION = Question(("torch==2.13.0",), (), (), "3.11", "aarch64", "2.36", {}, {})
RANKS = supported("3.11", "aarch64", "2.36")


def words(specifier: str, *files: str, yanked: tuple[str, ...] = ()) -> str | None:
    listed = [IndexFile(file, "", yanked="" if file in yanked else None) for file in files]
    found = judge("torch", SpecifierSet(specifier), "jetson", listed, QUESTION, RANKS)
    return found[0] if found else None


@pytest.mark.parametrize(("specifier", "files", "expected"), [
    ("==2.13.0", ["torch-2.13.0-cp312-cp312-linux_aarch64.whl"],
     "index jetson has torch only for cp312, this base is 3.11"),
    ("==2.13.0", ["torch-2.13.0-cp310-cp310-linux_aarch64.whl", "torch-2.13.0-cp312-cp312-linux_aarch64.whl",
                  "torch-2.13.0-cp313-cp313t-linux_aarch64.whl"],
     "index jetson has torch only for cp310, cp312, cp313t, this base is 3.11"),
    ("", ["torch-2.9.1-cp312-cp312-linux_aarch64.whl", "torch-2.10.0-cp312-cp312-linux_aarch64.whl"],
     "index jetson has torch only for cp312, this base is 3.11"),
    ("==2.13.0", ["torch-2.13.0-cp312-cp312-linux_aarch64.whl", "torch-2.9.1-cp311-cp311-linux_aarch64.whl"],
     "index jetson has torch 2.13.0 only for cp312, this base is 3.11"),
    ("==2.13.0", ["torch-2.9.1-cp311-cp311-linux_aarch64.whl", "torch-2.10.0-cp311-cp311-linux_aarch64.whl"],
     "index jetson has torch 2.10.0, 2.9.1, not ==2.13.0"),
    ("==2.13.0", ["torch-2.9.1-cp312-cp312-linux_aarch64.whl"],
     "index jetson has torch 2.9.1, not ==2.13.0, and only for cp312, this base is 3.11"),
    ("==2.13.0", ["torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl", "torch-2.13.0-cp312-cp312-linux_aarch64.whl"],
     "index jetson has torch only for manylinux_2_28_x86_64, this base is aarch64"),
    ("==2.13.0", ["torch-2.13.0-cp311-cp311-manylinux_2_39_aarch64.whl"],
     "index jetson has torch only for glibc 2.39 and newer, this base has 2.36"),
    ("==2.13.0", ["torch-2.13.0.tar.gz"], "index jetson has torch only as source"),
    ("==2.13.0", [], "index jetson has no torch"),
    ("==2.13.0", ["torch-2.13.0-cp311-cp311-linux_aarch64.whl"], None),
    ("==2.13.0", ["torch-2.13.0+nv1-cp311-cp311-linux_aarch64.whl"], None),
    (">=2", ["torch-2.13.0-py3-none-any.whl", "garbage.whl"], None),
])
def test_words(specifier: str, files: list[str], expected: str | None) -> None:
    assert words(specifier, *files) == expected


def test_yanked_files_do_not_count() -> None:
    files = ("torch-2.13.0-cp311-cp311-linux_aarch64.whl", "torch-2.9.1-cp311-cp311-linux_aarch64.whl")
    assert words("==2.13.0", *files, yanked=files[:1]) == "index jetson has torch 2.9.1, not ==2.13.0"


def test_long_lists_are_cut() -> None:
    files = [f"torch-2.{number}-cp311-cp311-linux_aarch64.whl" for number in range(30)]
    assert words("==3", *files) == (
        "index jetson has torch 2.29, 2.28, 2.27, 2.26, 2.25, 2.24, 2.23, 2.22 and 22 more, not ==3")


def test_what_is_looked_at() -> None:
    """An override counts instead of the requirement; then what uv's text names."""
    question = Question(("torch==2.13.0", "vllm[x]>=0.30"), ("torch==2.12.0",), ("vllm<1",), "3.11", "aarch64", "2.36",
                        {"triton": "jetson"}, {})
    text = "Because foo.bar==1.0 has no wheels and vllm==0.32.0 depends on foo.bar>=1,<2, and baz was not found in the"
    assert [(name, str(bound)) for name, bound in asked(question, text)] == [
        ("torch", "==2.12.0"), ("vllm", "<1,>=0.30"), ("triton", ""), ("foo-bar", "==1.0"), ("baz", "")]
