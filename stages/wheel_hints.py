"""What a person would add to "no set of wheels satisfies the request": what the pair would have done on the device, and
where there is one that fits. Which pairs and packages is data, `checks/data/wheel-sets.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from cache.errors import LockError
from checks import tables

TABLE = Path(__file__).resolve().parent.parent / "checks" / "data" / "wheel-sets.yaml"

#: uv: "torchvision==0.22.0 depends on torch==2.7.0", "all versions of torchaudio depend on torch==2.8.0".
_DEPENDS = re.compile(r"(?:all versions of )?([A-Za-z0-9][\w.-]*?)(?:==(\S+))? depends? on (?:\S+ and )?"
                      r"torch==([\w.+!]+)")
_ASKED = "stagecraft-request"


def hinted(error: LockError, requirements: Sequence[str], machine: str) -> LockError:
    """The same error, with the words for what is known of it."""
    pinned = _pinned(requirements, "torch")
    text = " ".join((error.found or "").split())
    table = tables.read(TABLE)
    if pinned is not None:
        for name, version, wanted in _DEPENDS.findall(text):
            if name != _ASKED and _other(wanted, pinned):
                return _pair(error, f"{name} {version}".rstrip(), canonicalize_name(name), wanted, pinned, table)
    for row in table["elsewhere"]:
        asked = _pinned(requirements, row["name"])
        older = asked is not None and Version(asked) < Version(row["before"])
        if older and row["machine"] == machine and error.message.startswith(f"index default has {row['name']} "):
            error.message += f": {row['why']}"
            error.cure = row["cure"]
    return error


def _pair(error: LockError, who: str, name: str, wanted: str, pinned: str, table: Mapping[str, Any]) -> LockError:
    seen = next((row["error"] for row in table["pairs"] if row["package"] == name), "")
    error.message = f"{who} was compiled against torch {wanted}, and torch {pinned} is asked for" + (
        f"; on the device: {seen}" if seen else "")
    plain = who.split(" ")[0]
    error.cure = f"pin torch {wanted}, or take a {plain} that was compiled against torch {pinned}"
    if "nv" in (Version(pinned).local or ""):
        error.cure = (f"torch {pinned} is a build of NVIDIA's own between releases, against which nothing on an index "
                      f"was compiled: take torch {wanted} and {plain} from one index, or compile {plain} for it "
                      f"(sources.packages.{name})")
    return error


def _pinned(requirements: Iterable[str], name: str) -> str | None:
    """The one version that the request allows of a package."""
    for line in requirements:
        try:
            need = Requirement(line)
        except InvalidRequirement:
            continue
        if canonicalize_name(need.name) == name:
            for item in need.specifier:
                if item.operator == "==" and "*" not in item.version:
                    return item.version
    return None


def _other(wanted: str, pinned: str) -> bool:
    """True if `torch==wanted` is not what `torch==pinned` gives."""
    try:
        one, two = Version(wanted.rstrip(".,")), Version(pinned)
    except InvalidVersion:
        return False
    return one.public != two.public if one.local is None else one != two
