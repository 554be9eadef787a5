"""Which device code loads where."""

from __future__ import annotations

import pytest

from checks.facts import ptx_isa
from checks.loadability import Way, best, way


@pytest.mark.parametrize(("target", "capability", "expected"), [
    ("sm_110", "11.0", Way.NATIVE), ("sm_110a", "11.0", Way.NATIVE), ("sm_110f", "11.0", Way.NATIVE),
    ("sm_100", "11.0", Way.NONE), ("sm_100f", "11.0", Way.NONE), ("sm_120", "11.0", Way.NONE),
    ("sm_120", "12.1", Way.SAME_MAJOR), ("sm_120f", "12.1", Way.FAMILY), ("sm_120a", "12.1", Way.NONE),
    ("sm_121a", "12.1", Way.NATIVE), ("sm_121", "12.0", Way.NONE), ("sm_103f", "10.0", Way.NONE),
    ("compute_80@9.0", "11.0", Way.PTX), ("compute_80@9.1", "11.0", Way.NEWER_PTX),
    ("compute_90a@9.0", "12.1", Way.NONE),
    ("compute_110f@9.0", "11.0", Way.PTX), ("compute_120@9.0", "11.0", Way.NONE), ("compute_80@8.8", "8.7", Way.PTX),
])
def test_rules(target: str, capability: str, expected: Way) -> None:
    assert way(target, capability, "9.0") is expected


def test_the_best_counts() -> None:
    assert best(["sm_80", "compute_80@9.0", "sm_120f"], "12.1", "9.0") is Way.FAMILY
    assert best(["sm_80", "compute_80@9.2"], "11.0", "9.0") is Way.NEWER_PTX
    assert best([], "11.0", "9.0") is Way.NONE


@pytest.mark.parametrize("target", ["", "sm_", "110", "sm_110x", "sass_80"])
def test_what_is_no_target(target: str) -> None:
    with pytest.raises(ValueError, match="not a target"):
        way(target, "11.0", "9.0")


def test_isa_of_a_driver() -> None:
    assert (ptx_isa("13.0"), ptx_isa("12.6"), ptx_isa("99.0"), ptx_isa("")) == ("9.0", "8.5", "", "")
