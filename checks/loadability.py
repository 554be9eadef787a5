"""Which device code a GPU loads. Pure, over names as `sm_110f` and `compute_80@9.0` (PTX, with its ISA).

Rules of the CUDA C++ programming guide and the PTX ISA manual: code for an architecture runs on later ones of its major
version; with `f` on its family only, with `a` on itself only. PTX is compiled by the driver for any later device, if
the driver knows its ISA; with `f` and `a` as above. It says what loads, not what computes right.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable

_TARGET = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)(?:@(\d+)\.(\d+))?")


class Way(enum.IntEnum):
    """How a piece of device code serves a device, the best last."""

    NONE = 0
    NEWER_PTX = 1  # PTX of an ISA that the driver does not know
    PTX = 2
    SAME_MAJOR = 3
    FAMILY = 4
    NATIVE = 5


def way(target: str, capability: str, isa: str) -> Way:
    """How code for `target` serves a device of compute capability `capability` whose driver compiles PTX up to `isa`.

    Raises:
        ValueError: not a target.
    """
    found = _TARGET.fullmatch(target)
    if found is None:
        raise ValueError(f"not a target: {target!r}")
    kind, suffix = found[1], found[4]
    made, device = (int(found[2]), int(found[3])), numbers(capability)
    if suffix == "a":
        fits = made == device
    elif suffix == "f" or kind == "sm":
        fits = made[0] == device[0] and made[1] <= device[1]
    else:
        fits = made <= device
    if not fits:
        return Way.NONE
    if kind == "compute":
        written = (int(found[5] or 0), int(found[6] or 0))
        return Way.PTX if written <= numbers(isa) else Way.NEWER_PTX
    return Way.NATIVE if made == device else Way.FAMILY if suffix == "f" else Way.SAME_MAJOR


def best(targets: Iterable[str], capability: str, isa: str) -> Way:
    """The best way among several pieces of code."""
    return max((way(target, capability, isa) for target in targets), default=Way.NONE)


def numbers(version: str) -> tuple[int, int]:
    """`12.1` as (12, 1)."""
    major, _, minor = version.partition(".")
    return int(major), int(minor)
