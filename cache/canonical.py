"""Canonical JSON and the digests made from it.

Records, derivations, keys and verdicts are JSON of str, int, bool, list and dict
only. No floats and no null: both have more than one spelling. Keys are sorted by
their UTF-8 bytes; there is no insignificant space. Two equal values have one byte
string, and a byte string that is not canonical is refused on read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cache.errors import IntegrityError

Json = Any  # str | int | bool | list[Json] | dict[str, Json]; mypy has no recursive alias we like


def _check(value: Json, path: str) -> None:
    kind = type(value)
    if kind is str:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TypeError(f"{path}: a lone surrogate has no UTF-8 form") from error
    elif kind is int or kind is bool:
        pass
    elif kind is dict or isinstance(value, Mapping):
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{path}: key {key!r} is not a string")
            _check(key, path)
            _check(item, f"{path}.{key}")
    elif kind is list or kind is tuple or (isinstance(value, Sequence) and kind is not bytes):
        for number, item in enumerate(value):
            _check(item, f"{path}[{number}]")
    else:
        raise TypeError(f"{path}: {kind.__name__} has no canonical form (str, int, bool, list, dict)")


def _plain(value: Json) -> Json:
    if isinstance(value, Mapping):
        # Sorting by UTF-8 bytes equals sorting by code point, which is how Python sorts str.
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def dumps(value: Json) -> bytes:
    """The one byte string of `value`.

    Raises:
        TypeError: a value outside str, int, bool, list, dict; a key that is no string.
    """
    _check(value, "$")
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _no_float(text: str) -> Json:
    raise ValueError(f"number {text} is not an integer")


def _no_duplicates(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def loads(data: bytes, *, where: str = "record") -> Json:
    """Parse canonical JSON strictly.

    Raises:
        IntegrityError: not UTF-8, not JSON, a duplicate key, a float, or not canonical.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_float=_no_float,
            parse_constant=_no_float,
            object_pairs_hook=_no_duplicates,
        )
        canonical = dumps(value) == data.rstrip(b"\n")
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"not canonical JSON: {error}", where=where) from error
    if not canonical:
        raise IntegrityError("not canonical JSON: same value, other bytes", where=where)
    return value


def digest_of(domain: str, value: Json) -> str:
    """`sha256:<hex>` of a value in a named domain.

    The domain (for instance "derivation") and the schema version are inside the hash, so that
    equal JSON in two roles never shares a digest.
    """
    prefix = b"stagecraft\0" + domain.encode() + b"\0v1\0"
    return "sha256:" + hashlib.sha256(prefix + dumps(value)).hexdigest()


def sha256(data: bytes) -> str:
    """`sha256:<hex>` of bytes as they are: the digest of a blob."""
    return "sha256:" + hashlib.sha256(data).hexdigest()
