"""Which wheels fit an interpreter, a machine and a glibc, and which of them fits best.

Pure; knows nothing of this host: the same answer on any machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from packaging import tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from cache.errors import InputError

#: The oldest glibc that manylinux knows, by machine; and the names that tags had before PEP 600.
_OLDEST = {"x86_64": 5, "aarch64": 17}
_EARLIER = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


def numbers(version: str, what: str) -> tuple[int, int]:
    """`3.11` as (3, 11).

    Raises:
        InputError: it is not two numbers.
    """
    parts = version.split(".")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise InputError(f"{what} must be two numbers", expected="3.11" if what == "python" else "2.36", found=version)
    return int(parts[0]), int(parts[1])


def platforms(machine: str, glibc: str) -> list[str]:
    """Platform tags of Linux on `machine` with that glibc, the most special first.

    Raises:
        InputError: a machine or a version that manylinux does not know.
    """
    if machine not in _OLDEST:
        raise InputError("no wheels are made for this machine", expected=" or ".join(sorted(_OLDEST)), found=machine)
    major, minor = numbers(glibc, "glibc")
    found = []
    for number in range(minor, _OLDEST[machine] - 1, -1):
        found.append(f"manylinux_{major}_{number}_{machine}")
        if number in _EARLIER:
            found.append(f"{_EARLIER[number]}_{machine}")
    return [*found, f"linux_{machine}"]  # a mirror's own builds; uv takes them too


def supported(python: str, machine: str, glibc: str) -> dict[tags.Tag, int]:
    """Every tag that fits CPython `python` there, with its rank: 0 fits best."""
    version, known = numbers(python, "python"), platforms(machine, glibc)
    name = f"cp{version[0]}{version[1]}"
    # `abis` is given: left out, packaging looks at the interpreter that runs us.
    ordered = [*tags.cpython_tags(version, [name], known), *tags.compatible_tags(version, name, known)]
    ranks: dict[tags.Tag, int] = {}
    for tag in ordered:
        ranks.setdefault(tag, len(ranks))
    return ranks


def rank(file: str, ranks: Mapping[tags.Tag, int]) -> int | None:
    """How well a wheel fits by its file name; None: it does not, or the name is no wheel's."""
    try:
        offered = parse_wheel_filename(file)[3]
    except (InvalidWheelFilename, InvalidVersion):
        return None
    return min((ranks[tag] for tag in offered if tag in ranks), default=None)


def build_of(file: str) -> tuple[int, str]:
    """A wheel's build tag; without one `(-1, "")`, which is less than any."""
    build = parse_wheel_filename(file)[2]
    return (build[0], build[1]) if build else (-1, "")


def version_of(file: str) -> Version | None:
    """The version in a wheel's file name; None if it is no wheel's name."""
    try:
        return parse_wheel_filename(file)[1]
    except (InvalidWheelFilename, InvalidVersion):
        return None


def pythons(files: Iterable[str]) -> list[str]:
    """The interpreters that wheels are for (`cp310`, `cp39-abi3`, `py3`), sorted by version."""
    found: dict[str, tuple[str, int]] = {}
    for file in files:
        for tag in parse_wheel_filename(file)[3]:
            word = f"{tag.interpreter}-abi3" if tag.abi == "abi3" else tag.interpreter
            if tag.abi.endswith("t") and tag.abi.startswith("cp"):
                word = tag.abi  # the free-threaded interpreter is another one
            digits = "".join(char for char in tag.interpreter if char.isdigit())
            found[word] = (tag.interpreter.rstrip("0123456789"), int(digits or 0))
    return sorted(found, key=lambda word: (found[word], word))


def machines(files: Iterable[str]) -> list[str]:
    """The platforms that wheels are for, as their tags say, sorted."""
    return sorted({tag.platform for file in files for tag in parse_wheel_filename(file)[3]})
