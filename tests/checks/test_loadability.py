"""Which device code loads where."""

from __future__ import annotations

import pytest
import yaml

from checks import facts
from checks.facts import ptx_isa
from checks.loadability import ANY_ISA, Device, Way, best, way
from tests.support.front import HERE


def device(capability: str, cuda: str = "13.0") -> Device:
    return Device.of(facts.device({"device": {"compute_capability": capability, "cuda": cuda}}))


@pytest.mark.parametrize(("target", "capability", "expected"), [
    ("sm_110", "11.0", Way.NATIVE), ("sm_110a", "11.0", Way.NATIVE), ("sm_110f", "11.0", Way.NATIVE),
    ("sm_100", "11.0", Way.NONE), ("sm_100f", "11.0", Way.NONE), ("sm_120", "11.0", Way.NONE),
    ("sm_120", "12.1", Way.SAME_MAJOR), ("sm_120f", "12.1", Way.FAMILY), ("sm_120a", "12.1", Way.NONE),
    ("sm_121a", "12.1", Way.NATIVE), ("sm_121", "12.0", Way.NONE), ("sm_103f", "10.0", Way.NONE),
    ("compute_80@9.0", "11.0", Way.PTX), ("compute_80@9.1", "11.0", Way.NEWER_PTX),
    ("compute_90a@9.0", "12.1", Way.NONE),
    ("compute_110f@9.0", "11.0", Way.PTX), ("compute_120@9.0", "11.0", Way.NONE), ("compute_80@8.8", "8.7", Way.PTX),
    ("sm_80", "8.9", Way.SAME_MAJOR), ("sm_89", "8.6", Way.NONE), ("sm_80", "8.7", Way.UNKNOWN),
    ("sm_87", "8.9", Way.UNKNOWN), ("sm_87", "8.7", Way.NATIVE), ("sm_110a", "12.1", Way.NONE),
    ("sm_100f", "10.3", Way.FAMILY), ("sm_121f", "12.1", Way.NATIVE), ("sm_120f", "12.0", Way.NATIVE),
    ("sm_100f", "10.1", Way.NONE), ("sm_101", "11.0", Way.NONE), ("sm_200f", "20.1", Way.UNKNOWN),
    ("compute_120f@9.0", "12.1", Way.PTX), ("compute_120a@9.0", "12.1", Way.NONE),
    ("compute_121a@9.1", "12.1", Way.NEWER_PTX), ("compute_80", "11.0", Way.PTX),
    ("sm_5", "11.0", Way.NONE),
])
def test_rules(target: str, capability: str, expected: Way) -> None:
    assert way(target, device(capability)) is expected


def test_the_best_counts() -> None:
    assert best(["sm_80", "compute_80@9.0", "sm_120f"], device("12.1")) is Way.FAMILY
    assert best(["sm_80", "compute_80@9.2"], device("11.0")) is Way.NEWER_PTX
    assert best([], device("11.0")) is Way.NONE


@pytest.mark.parametrize("target", ["", "sm_", "110", "sm_110x", "sass_80"])
def test_what_is_no_target(target: str) -> None:
    with pytest.raises(ValueError, match="not a target"):
        way(target, device("11.0"))


def test_isa_of_a_driver() -> None:
    assert (ptx_isa("13.0"), ptx_isa("12.6"), ptx_isa("99.0"), ptx_isa("")) == ("9.0", "8.5", "", "")


def test_code_that_is_there_apart_from_what_the_driver_makes_of_it() -> None:
    found = facts.device({"device": {"compute_capability": "11.0", "cuda": "12.9"}})
    assert way("compute_80@9.0", Device.of(found)) is Way.NEWER_PTX
    assert way("compute_80@9.0", Device.of(found, ANY_ISA)) is Way.PTX


def test_a_driver_of_which_nobody_knows_what_it_compiles() -> None:
    odd = device("11.0", cuda="13.4")
    assert way("compute_80@9.0", odd) is Way.UNKNOWN
    assert way("compute_120@9.0", odd) is Way.NONE
    assert way("sm_110", odd) is Way.NATIVE


def test_each_row_of_the_tables_has_its_source() -> None:
    for name, keys in (("arch", ("tegra", "families")), ("ptx-isa", ("versions",))):
        table = yaml.safe_load((HERE / "checks" / "data" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert all(row["source"] for key in keys for row in table[key])
