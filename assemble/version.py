"""Order of Debian versions, as in deb-version(7)."""

from __future__ import annotations

import re


def satisfies(version: str, operator: str, bound: str) -> bool:
    """True if `version` stands in the relation `operator` (`<<`, `<=`, `=`, `>=`, `>>`) to `bound`."""
    one, other = sort_key(version), sort_key(bound)
    return {"<<": one < other, "<": one <= other, "<=": one <= other, "=": one == other, ">=": one >= other,
            ">": one >= other, ">>": one > other}.get(operator, False)


def sort_key(version: str) -> tuple[int, list[tuple[list[int], int]], list[tuple[list[int], int]]]:
    """A key that sorts as dpkg does: epoch, upstream version, revision."""
    epoch, colon, rest = version.partition(":")
    upstream, _, revision = (rest if colon else version).rpartition("-")
    if not upstream:
        upstream, revision = revision, ""
    return int(epoch) if colon and epoch.isdigit() else 0, _runs(upstream), _runs(revision)


def _runs(text: str) -> list[tuple[list[int], int]]:
    """Pairs of a run of other characters and the number after it, with an end mark."""
    pairs = re.findall(r"(\D*)(\d*)", text)[:-1]
    return [(_order(run), int(number or 0)) for run, number in pairs] + [(_order(""), 0)]


def _order(run: str) -> list[int]:
    # `~` sorts before the end of the run, the end before letters, letters before all else.
    return [-1 if c == "~" else ord(c) if c.isalpha() else ord(c) + 256 for c in run] + [0]
