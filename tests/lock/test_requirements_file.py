"""Requirement files: what pip would ask for, or an error that names the line."""

from __future__ import annotations

import pytest

from cache.errors import InputError
from lock.requirements_file import declared, requirements

COMMON = """\
# Common
regex # Replace re
numpy
requests >= 2.26.0

transformers >= 4.56.0, != 5.0.*, \\
    != 5.1.*  # not those
six>=1.16.0; python_version > '3.11' # transitive
fastapi[standard] >= 0.115.0
url-like#egg
"""
CUDA = "-r common.txt\n--extra-index-url https://example.org/whl/cu130\n-i https://example.org\n\ntorch==2.11.0\nnumpy\n"


def test_a_file_that_includes_another() -> None:
    texts = {"requirements/common.txt": COMMON.replace("url-like#egg\n", ""), "requirements/cuda.txt": CUDA}
    assert requirements(texts, "requirements/cuda.txt") == [
        "regex", "numpy", "requests>=2.26.0", "transformers!=5.0.*,!=5.1.*,>=4.56.0",
        'six>=1.16.0; python_version > "3.11"', "fastapi[standard]>=0.115.0", "torch==2.11.0"]


@pytest.mark.parametrize("line", ["-r common.txt", "--requirement common.txt", "--requirement=common.txt",
                                  "-rcommon.txt", "-r ../requirements/common.txt", "-r common.txt  # all"])
def test_ways_to_include(line: str) -> None:
    assert requirements({"requirements/x.txt": line, "requirements/common.txt": "numpy"},
                        "requirements/x.txt") == ["numpy"]


@pytest.mark.parametrize(("text", "expected"), [
    ("a \\\n# a comment ends it\nb\n", ["a", "b"]), ("a\\\n==1", ["a==1"]), ("a \\", ["a"]), ("", []),
    ("# a \\\nb", ["b"]), ("a\r\nb\r\n", ["a", "b"]), ("--find-links=x\n--no-index\na", ["a"])])
def test_lines(text: str, expected: list[str]) -> None:
    assert requirements({"x": text}, "x") == expected


@pytest.mark.parametrize(("line", "what"), [
    ("-e .", "editable"), ("--editable=git+https://example.org/x", "editable"), ("-c constraints.txt", "constraints"),
    ("https://example.org/x.whl", "address"), ("x @ https://example.org/x.whl", "address"),
    ("x @ file:///x.whl", "address"), ("git+ssh://example.org/x", "address"), ("./x", "address"), ("/x.whl", "address"),
    (".", "address"), ("--require-hashes", "hash"), ("x==1 --hash=sha256:00", "hash"), ("--pre", "option"),
    ("x==1 --global-option=y", "option"), ("x==", "cannot be read"), ("url-like#egg", "cannot be read"),
    ("x.whl y", "cannot be read")])
def test_what_is_no_plain_requirement(line: str, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        requirements({"requirements/x.txt": f"numpy\n\n{line}\n"}, "requirements/x.txt")
    assert caught.value.where == "requirements/x.txt:3"
    assert line in str(caught.value.found)


def test_file_that_is_not_there() -> None:
    with pytest.raises(InputError, match="not there") as caught:
        requirements({"requirements/cuda.txt": CUDA}, "requirements/cuda.txt")
    assert (caught.value.where, caught.value.expected) == ("requirements/cuda.txt:1", "requirements/common.txt")


def test_file_that_includes_itself() -> None:
    with pytest.raises(InputError, match="includes itself") as caught:
        requirements({"a": "-r b", "b": "x\n-r a"}, "a")
    assert (caught.value.where, caught.value.found) == ("b:2", "a > b > a")


@pytest.mark.parametrize(("text", "expected"), [
    ('[project]\nname = "x"\ndependencies = ["numpy >= 1", "six; python_version > \'3\'"]\n',
     ["numpy>=1", 'six; python_version > "3"']),
    ('[project]\nname = "x"\ndynamic = ["version"]\n', []),
    ('[project]\nname = "x"\ndynamic = ["dependencies"]\n', None),
    ('[build-system]\nrequires = ["setuptools"]\n', None), ("", None)])
def test_what_a_pyproject_declares(text: str, expected: list[str] | None) -> None:
    assert declared(text, "x 1: pyproject.toml") == expected


@pytest.mark.parametrize(("text", "what"), [
    ("[project\n", "cannot be read"), ('[project]\ndependencies = ["x @ https://example.org/x.whl"]\n', "address")])
def test_a_pyproject_that_is_wrong(text: str, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        declared(text, "x 1: pyproject.toml")
    assert str(caught.value.where).startswith("x 1: pyproject.toml")
