"""Exceptions that a target makes, each with its reason: as labels and provenance show them, and until when they hold.

Only `lock` asks for the day. A plan and a build never read the clock: what was built last month is built again today.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cache.errors import InputError
from stages.schema import Document, read
from stages.target import Target

#: Days before the last one on which `lock` begins to warn.
NOTICE = 30


def exceptions(target: Target) -> list[Mapping[str, str]]:
    """All of a target's, in a fixed order, waivers last, each with `reason` and perhaps `expires`."""
    wheels = target.data["wheels"]
    return [
        *({"override": entry["requirement"], "reason": entry["reason"]} for entry in wheels["overrides"]),
        *({"excluded": entry["wheel"], "reason": entry["reason"]} for entry in wheels.get("excluded", ())),
        *({"tags": entry["wheel"], "reason": entry["reason"]} for entry in wheels.get("tags", ())),
        *({"record": f"{entry['wheel']}: {entry['path']}", "reason": entry["reason"]} for entry in wheels["records"]),
        *({"collision": entry["path"], "winner": entry["winner"], "reason": entry["reason"]}
          for entry in wheels["collisions"]),
        *(dict(entry) for entry in target.data["waivers"]),
    ]


def judge_dates(root: Path, target: Target, today: datetime.date, log: Callable[[str], None]) -> None:
    """Refuse waivers whose last day is over, warn of those that end within `NOTICE` days. Whole days, of UTC.

    Raises:
        InputError: with every waiver that is over.
    """
    over = []
    for number, waiver in enumerate(target.data["waivers"]):
        if "expires" not in waiver:
            continue
        left = (datetime.date.fromisoformat(waiver["expires"]) - today).days
        words = f"{waiver['check']} {waiver['subject']!r}"
        if left < 0:
            over.append((number, f"{words}: {waiver['expires']}"))
        elif left <= NOTICE:
            when = "today" if not left else "tomorrow" if left == 1 else f"in {left} days"
            log(f"  warning: the waiver of {words} ends {when} ({waiver['expires']}): {waiver['reason']}")
    if over:
        raise InputError(
            "a waiver is over" if len(over) == 1 else f"{len(over)} waivers are over",
            where=_place(root, target, over[0][0]), found="\n".join(words for _, words in over),
            expected=f"{today.isoformat()} or later",
            cure="correct what it covers and delete it; or, if it still holds, give it a later day")


def _place(root: Path, target: Target, number: int) -> str:
    """`file:line` of a waiver's day: lists are taken whole from the nearest file that has one."""
    for file in target.files:
        document: Document = read(root / file, file)
        data: Any = document.data
        if "waivers" in data:
            return document.place(("waivers", str(number), "expires"))
    return target.files[0]
