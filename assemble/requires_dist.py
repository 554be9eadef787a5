"""What a wheel requires, as its METADATA says it: read, compared, rewritten. Pure.

A wheel that was compiled against one torch works with that one only, whatever its project's requirements say, so the
field is rewritten to what was compiled against: a project's own way of building against another torch drops the line
altogether, and a resolver then pairs the wheel with any torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from cache.errors import InputError

_FIELD = "Requires-Dist:"
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")


def of_metadata(text: str) -> list[str]:
    """The `Requires-Dist` values of a METADATA file, in its order."""
    return [" ".join(line[len(_FIELD):].split()) for line in _head(text)[0] if _is_field(line)]


def with_pins(metadata: str, pins: Mapping[str, str]) -> str:
    """METADATA that requires exactly these versions.

    Extras and markers stay as they are. A project that METADATA does not require, or only for an extra, is added.

    Args:
        pins: project to version.

    Raises:
        InputError: a requirement cannot be read.
    """
    head, rest = _head(metadata)
    lines = [_FIELD + " " + _pinned(line[len(_FIELD):], pins) if _is_field(line) else line for line in head]
    at = max((number for number, line in enumerate(lines) if _is_field(line)), default=len(lines) - 1) + 1
    lines[at:at] = [f"{_FIELD} {name}=={pins[name]}" for name in _missing(of_metadata(metadata), pins)]
    return "\n".join(lines) + "\n" + rest


def differences(metadata: str, requires: Iterable[str], pins: Mapping[str, str]) -> list[str]:
    """Where METADATA requires something else than `requires`: `+ torchvision==0.28.0` is METADATA's, `- …` the other's.

    What only an extra needs does not count; nor does how a requirement is spelled, nor the version of a pinned project.

    Raises:
        InputError: a requirement cannot be read.
    """
    found, wanted = _set(of_metadata(metadata), pins), _set(requires, pins)
    return [f"- {text}" for text in sorted(wanted - found)] + [f"+ {text}" for text in sorted(found - wanted)]


def normal(text: str) -> str:
    """One spelling of a requirement: canonical name, sorted extras and bounds.

    Raises:
        InputError: it cannot be read.
    """
    return _text(_requirement(text))


def for_extra(text: str) -> bool:
    """True if its marker names an extra.

    Raises:
        InputError: the requirement cannot be read.
    """
    return bool(re.search(r"\bextra\b", _QUOTED.sub("", str(_requirement(text).marker or ""))))


def _head(metadata: str) -> tuple[list[str], str]:
    """Its header lines, those that go on joined, and the rest with the empty line."""
    lines = metadata.split("\n")
    end = lines.index("") if "" in lines else len(lines)
    head: list[str] = []
    for line in lines[:end]:
        if line[:1] in (" ", "\t") and head and _is_field(head[-1]):
            head[-1] += " " + line.strip()
        else:
            head.append(line)
    return head, "\n".join(lines[end:])


def _is_field(line: str) -> bool:
    return line[:len(_FIELD)].lower() == _FIELD.lower()


def _requirement(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise InputError("a requirement that cannot be read", where=text.strip(), found=str(error).splitlines()[0],
                         cure="correct it where the package's build takes it from") from error


def _text(requirement: Requirement) -> str:
    requirement.name = canonicalize_name(requirement.name)
    return str(requirement)


def _pinned(text: str, pins: Mapping[str, str]) -> str:
    requirement = _requirement(text)
    version = _by_name(pins).get(canonicalize_name(requirement.name))
    if version is None:
        return " ".join(text.split())
    requirement.specifier, requirement.url = SpecifierSet(f"=={version}"), None
    return str(requirement)


def _by_name(pins: Mapping[str, str]) -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in pins.items()}


def _missing(requires: Iterable[str], pins: Mapping[str, str]) -> list[str]:
    """Pinned projects that nothing requires without an extra."""
    there = {canonicalize_name(_requirement(text).name) for text in requires if not for_extra(text)}
    return sorted(name for name in pins if canonicalize_name(name) not in there)


def _set(requires: Iterable[str], pins: Mapping[str, str]) -> set[str]:
    listed = [text for text in requires if not for_extra(text)]
    added = [f"{name}=={pins[name]}" for name in _missing(listed, pins)]
    return {normal(_pinned(text, pins)) for text in [*listed, *added]}
