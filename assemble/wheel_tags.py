"""Whether a wheel's tags fit an image: pure, no wheel is opened.

Only the image's facts count (interpreter, machine, glibc), never the host's. Order of preference is not our
business: the lock has chosen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from packaging.tags import Tag, compatible_tags, cpython_tags

#: OCI architecture to the machine names in wheel tags. `sbsa` is NVIDIA's own spelling for aarch64 servers in the
#: WHEEL files of some of its wheels (nvidia-cusparselt-cu13 0.8.1); their file names say aarch64.
MACHINES = {"arm64": ("aarch64", "sbsa"), "amd64": ("x86_64",)}

#: PEP 600's names for the old manylinux tags.
_LEGACY = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}

_PLATFORM = re.compile(r"(linux|manylinux1|manylinux2010|manylinux2014|manylinux_(\d+)_(\d+))_(.+)")


@dataclass(frozen=True)
class Image:
    """What tags must fit.

    Attributes:
        python: "3.11".
        architecture: OCI name, "arm64".
        glibc: "2.36", or empty: any glibc is taken for granted.
    """

    python: str
    architecture: str
    glibc: str = ""

    @cached_property
    def _pairs(self) -> frozenset[tuple[str, str]]:
        major, minor = (int(part) for part in self.python.split("."))
        short = f"cp{major}{minor}"
        tags = [*cpython_tags((major, minor), abis=[short], platforms=["any"]),
                *compatible_tags((major, minor), interpreter=short, platforms=["any"])]
        return frozenset((tag.interpreter, tag.abi) for tag in tags)

    def takes(self, tag: Tag) -> bool:
        """True if a file of that tag works in the image."""
        return (tag.interpreter, tag.abi) in self._pairs and self._takes_platform(tag.platform)

    def _takes_platform(self, platform: str) -> bool:
        if platform == "any":
            return True
        match = _PLATFORM.fullmatch(platform)
        if match is None or match[4] not in MACHINES.get(self.architecture, ()):
            return False
        if not self.glibc or match[1] == "linux":
            return True
        needed = _LEGACY.get(match[1]) or (int(match[2]), int(match[3]))
        return needed <= tuple(int(part) for part in self.glibc.split(".")[:2])

    def takes_any(self, tags: Iterable[Tag]) -> bool:
        return any(self.takes(tag) for tag in tags)

    def __str__(self) -> str:
        machine = MACHINES.get(self.architecture, (self.architecture,))[0]
        return f"CPython {self.python} on {machine}" + (f" with glibc {self.glibc}" if self.glibc else "")
