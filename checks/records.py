"""RECORD files of installed wheels, held against the layer that they are in (facts F37: stale and altered files).

The digests of the files are those of the layer's index, which were made of the layer's bytes: nothing is hashed again.
"""

from __future__ import annotations

import base64
import csv
import posixpath
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from cache.layer import LayerReader
from checks.verdict import Finding

_CURE = "build the layer again; ./doit store:verify says whether the store was altered"


def installed(layer: LayerReader, site: str) -> dict[str, str]:
    """RECORD path of every distribution of a layer, to `name version` as its directory has them."""
    found = {}
    for path in layer.entries:
        directory, _, rest = path.removeprefix(f"{site}/").partition("/")
        if rest == "RECORD" and directory.endswith(".dist-info") and path.startswith(f"{site}/"):
            name, _, version = directory.removesuffix(".dist-info").partition("-")
            found[path] = f"{name} {version}"
    return found


def judge(layer: LayerReader, site: str, decided: Iterable[str]) -> list[Finding]:
    """Files that are missing, altered, or no distribution's. Subjects: `record: <path>` (below the site directory).

    Args:
        decided: globs of paths that several wheels own and the target gave to one (`wheels.collisions`).
    """
    patterns = list(decided)
    owners: dict[str, str] = {}
    wrong: list[tuple[str, str, str]] = []
    for record, name in installed(layer, site).items():
        for row in csv.reader(layer.read(record).decode("utf-8", "replace").splitlines()):
            if not row:
                continue
            path = posixpath.normpath(f"{site}/{row[0]}")
            owners[path] = name
            what = _differs(layer.get(path), row[1] if len(row) > 1 else "")
            below = path.removeprefix(f"{site}/")
            if what and not any(fnmatchcase(path, pattern) or fnmatchcase(below, pattern) for pattern in patterns):
                wrong.append((path, name, what))
    found = [_finding(path, site, f"{what} RECORD of {name} says") for path, name, what in wrong]
    strays: dict[str, list[str]] = {}
    for path, entry in layer.entries.items():
        if entry["type"] != "directory" and path.startswith(f"{site}/") and path not in owners:
            strays.setdefault(path[len(site) + 1:].partition("/")[0], []).append(path)
    return found + [_finding(paths[0], site, "no distribution's RECORD lists it"
                             + (f", nor {len(paths) - 1} more of {top}" if len(paths) > 1 else ""))
                    for top, paths in sorted(strays.items())]


def _differs(entry: Mapping[str, Any] | None, told: str) -> str:
    if entry is None:
        return "missing, though the"
    algorithm, _, value = told.partition("=")
    if algorithm != "sha256" or entry["type"] != "file":
        return ""
    try:
        promised = "sha256:" + base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()
    except ValueError:
        return f"the hash {value[:60]!r} cannot be read, which the"
    return "" if entry["digest"] == promised else "not what the"


def _finding(path: str, site: str, what: str) -> Finding:
    return Finding("error", f"record: {path.removeprefix(f'{site}/')}", what, f"/{path}", _CURE)
