"""Gate `advisories`: no part of the image has a known security hole, or a fault that the device is sure to meet.

What is known is data: `checks/data/advisories.yaml`, and for a prebuilt server its row in triton/pytriton-layout.yaml.
That a version has no row proves nothing. Debian's packages are not judged here: the SBOM is for scanners, which know
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from packaging.version import InvalidVersion, Version

from checks.packages import packages
from checks.verdict import CheckInputs, Finding


def run(inputs: CheckInputs) -> list[Finding]:
    """Subject: `<package> <version>: <id>`, so that a waiver ends with the version that it is for."""
    listed = [*packages(inputs), *packages(inputs, "generic")]
    return judge(listed, inputs.facts["rows"])


def judge(listed: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Hold packages against rows of the table. Pure.

    A version that cannot be read, and a server that does not say of which container it is, are errors, never passes.
    """
    found: list[Finding] = []
    by_part: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_part.setdefault(row["part"], []).append(row)
    for package in listed:
        for row in by_part.get(package["name"], ()):
            version = str(package.get("container" if row.get("by") == "container" else "version", ""))
            subject = f"{package['name']} {package['version']}: {row['id']}"
            try:
                hit = concerns(version, row)
            except InvalidVersion:
                found.append(Finding("error", subject, f"cannot be judged: its release is {version or 'not said'}",
                                     package.get("file", ""), "waive it with a reason once it is judged by hand"))
                continue
            if hit:
                fixed = f"fixed in {row['fixed']}" if row.get("fixed") else "no fixed version is known"
                also = f" ({', '.join(row['aliases'])})" if row.get("aliases") else ""
                found.append(Finding(
                    "warning" if row["severity"] == "low" else "error", subject,
                    f"{row['severity']}: {row['what']}; {fixed}{also}", package.get("file", ""),
                    f"take {package['name']} {row['fixed']} or newer" if row.get("fixed")
                    else f"take a newer {package['name']}, or waive it and say why it does no harm here"))
    return found


def concerns(version: str, row: Mapping[str, Any]) -> bool:
    """True if the version is among those of the row.

    A local build (`+cu130`) counts as its release; a pre-release of the fixed version as fixed not yet.

    Raises:
        InvalidVersion: it is no version.
    """
    given = Version(Version(version).public)
    if row.get("since") and given < Version(row["since"]):
        return False
    if row.get("fixed"):
        return given < Version(row["fixed"])
    return given <= Version(row["last"])
