"""Debian's order of versions, against dpkg itself."""

import itertools
import subprocess

import pytest

from assemble.version import satisfies, sort_key

VERSIONS = ["0.9", "1.0~beta1~svn1245", "1.0~beta1", "1.0", "1.0-1", "1.0-1+b1", "1.0a", "1.0+x", "1.9", "1.10",
            "1:0.1", "1.0-1~bpo12+1", "1:1-1-1", "2:0", "0a", "1.00-01"]


def test_order_is_that_of_dpkg() -> None:
    for one, other in itertools.combinations(VERSIONS, 2):
        before = subprocess.run(["dpkg", "--compare-versions", one, "lt", other], check=False).returncode == 0
        assert satisfies(one, "<<", other) is before, (one, other)


def test_equal() -> None:
    assert sort_key("1.00-01") == sort_key("1.0-1")
    assert sort_key("0:1") == sort_key("1")


@pytest.mark.parametrize(("version", "operator", "bound", "holds"), [
    ("1.0", "<<", "1.0", False), ("1.0", "<=", "1.0", True), ("1.0", "=", "1.0", True), ("1.0~a", "<<", "1.0", True),
    ("1.1", ">>", "1.0", True), ("1.1", ">=", "1.2", False), ("1.1", "?", "1.1", False),
])
def test_satisfies(version: str, operator: str, bound: str, holds: bool) -> None:
    assert satisfies(version, operator, bound) is holds
