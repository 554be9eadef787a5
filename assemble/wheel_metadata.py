"""A wheel's METADATA as an entry of `packages` (format `stagecraft.packages.v1`, docs/formats/packages.md). Pure."""

from __future__ import annotations

import configparser
from collections.abc import Iterable
from email.message import Message
from typing import Any
from urllib.parse import quote

from packaging.tags import Tag
from packaging.utils import canonicalize_name

#: A `License` field longer than this is the text of a licence, not its name (cuda-python puts 20 kB there).
_NAME_LIMIT = 100


def package_of(metadata: Message, *, file: str, digest: str, architecture: str, tags: Iterable[Tag],
               entry_points: str) -> dict[str, Any]:
    """The entry of one wheel.

    Args:
        metadata: parsed METADATA.
        file: the wheel's file name; `digest`: its sha256.
        architecture: OCI name; entered unless the wheel runs anywhere.
        tags: of the file name.
        entry_points: text of entry_points.txt, or empty.
    """
    listed = sorted(str(tag) for tag in tags)
    name, version = canonicalize_name(metadata["Name"]), str(metadata["Version"]).strip()
    return {
        "type": "pypi",
        "name": name,
        "version": version,
        "architecture": "any" if all(tag.endswith("-any") for tag in listed) else architecture,
        "file": file,
        "digest": digest,
        "licence": licence_of(metadata),
        "purl": f"pkg:pypi/{name}@{quote(version, safe='')}",
        "requires_dist": _fields(metadata, "Requires-Dist"),
        "requires_python": " ".join(str(metadata.get("Requires-Python", "")).split()),
        "extras": _fields(metadata, "Provides-Extra"),
        "tags": listed,
        "entry_points": entry_points_of(entry_points),
    }


def licence_of(metadata: Message) -> str:
    """`License-Expression` (SPDX), else a short `License`, else what the classifiers name, else empty."""
    expression = str(metadata.get("License-Expression", "")).strip()
    lines = [line.strip() for line in str(metadata.get("License", "")).splitlines() if line.strip()]
    classified = [item.split(" :: ")[-1] for item in _fields(metadata, "Classifier") if item.startswith("License :: ")]
    if expression:
        return expression
    if lines and len(lines[0]) <= _NAME_LIMIT and lines[0] != "UNKNOWN":
        return lines[0]
    return "; ".join(sorted(set(classified)))


def entry_points_of(text: str) -> list[str]:
    """`["console_scripts: tool = module:function", …]`, sorted.

    Raises:
        configparser.Error: malformed text.
    """
    parser = configparser.ConfigParser(delimiters="=", interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # entry point names keep their case
    parser.read_string(text)
    return sorted(f"{group}: {name} = {' '.join(value.split())}"
                  for group in parser.sections() for name, value in parser.items(group))


def _fields(metadata: Message, field: str) -> list[str]:
    return [" ".join(str(value).split()) for value in metadata.get_all(field, [])]
