"""Which device code a GPU loads. Pure, over names as `sm_110f` and `compute_80@9.0` (PTX, with its ISA).

Rules of the CUDA C++ programming guide and the PTX ISA manual: machine code runs on later devices of its major version,
but for Tegra; with `f` on its family, with `a` on itself only. PTX is compiled by the driver for any later device, if
the driver knows its ISA; with `f` and `a` as above. What changes with new devices is data (checks/data/arch.yaml), and
comes in with the `Device`. It says what loads, not what computes right.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_TARGET = re.compile(r"(sm|compute)_(\d*)(\d)([af]?)(?:@(\d+)\.(\d+))?")

#: A driver that compiles any PTX: to ask what is there, apart from what the driver makes of it.
ANY_ISA = "999.0"


class Way(enum.IntEnum):
    """How a piece of device code serves a device, the best last."""

    NONE = 0
    NEWER_PTX = 1  # PTX of an ISA that the driver does not know
    UNKNOWN = 2  # sources disagree, or the tables say nothing
    PTX = 3  # the driver compiles it when it is first used
    SAME_MAJOR = 4
    FAMILY = 5
    NATIVE = 6

    @property
    def word(self) -> str:
        """For people: "same major"."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Device:
    """A device as far as loading code goes.

    Attributes:
        capability: compute capability, `12.1`.
        isa: newest PTX ISA that its driver compiles, `9.0`; empty if that is not known.
        tegra: compute capabilities of Tegra.
        families: compute capabilities of each family.
    """

    capability: str
    isa: str
    tegra: frozenset[str] = frozenset()
    families: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, found: Mapping[str, Any], isa: str | None = None) -> Device:
        """From what `checks.facts.device` gives; with another ISA if one is given."""
        return cls(found["capability"], found["isa"] if isa is None else isa, frozenset(found["tegra"]),
                   tuple(tuple(members) for members in found["families"]))


def way(target: str, device: Device) -> Way:
    """How code for `target` serves a device.

    Raises:
        ValueError: not a target.
    """
    found = _TARGET.fullmatch(target)
    if found is None:
        raise ValueError(f"not a target: {target!r}")
    kind, suffix = found[1], found[4]
    made, here = (int(found[2] or 0), int(found[3])), numbers(device.capability)
    machine_code = kind == "sm"
    if suffix == "a":
        serves = Way.NATIVE if made == here else Way.NONE
    elif suffix == "f":
        serves = _family(made, here, device)
    elif machine_code:
        serves = _plain(made, here, device)
    else:
        serves = Way.NATIVE if made <= here else Way.NONE
    if machine_code or serves in (Way.NONE, Way.UNKNOWN):
        return serves
    if not device.isa:
        return Way.UNKNOWN
    written = (int(found[5] or 0), int(found[6] or 0))
    return Way.PTX if written <= numbers(device.isa) else Way.NEWER_PTX


def _plain(made: tuple[int, int], here: tuple[int, int], device: Device) -> Way:
    if made == here:
        return Way.NATIVE
    if made[0] != here[0] or made[1] > here[1]:
        return Way.NONE
    tegra = {f"{made[0]}.{made[1]}", device.capability} & device.tegra
    return Way.UNKNOWN if tegra else Way.SAME_MAJOR


def _family(made: tuple[int, int], here: tuple[int, int], device: Device) -> Way:
    if made == here:
        return Way.NATIVE
    if made[0] != here[0] or made[1] > here[1]:
        return Way.NONE
    name = f"{made[0]}.{made[1]}"
    families = [members for members in device.families if name in members or device.capability in members]
    if not families:
        return Way.UNKNOWN
    return Way.FAMILY if any(name in members and device.capability in members for members in families) else Way.NONE


def best(targets: Iterable[str], device: Device) -> Way:
    """The best way among several pieces of code."""
    return max((way(target, device) for target in targets), default=Way.NONE)


def numbers(version: str) -> tuple[int, int]:
    """`12.1` as (12, 1)."""
    major, _, minor = version.partition(".")
    return int(major), int(minor)
