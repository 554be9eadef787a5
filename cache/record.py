"""Blobs and records as values: what the store holds, without the store.

A record file is canonical JSON (docs/formats/record.md). A look-up needs only its outputs, and every
no-op run looks up every stage: so `Record.from_bytes` reads the outputs, which canonical order puts
last, and leaves the derivation (tens of kilobytes) until somebody asks for it. `Record.parse` is the
strict reader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cache import canonical
from cache.errors import IntegrityError

FORMAT = "stagecraft.record.v1"

_HEX = "0123456789abcdef"


def hex_of(digest: str) -> str:
    """The 64 hex digits of `sha256:<hex>`.

    Raises:
        ValueError: anything else.
    """
    value = digest[7:]
    if len(value) != 64 or digest[:7] != "sha256:" or value.strip(_HEX):
        raise ValueError(f"not a sha256 digest: {digest!r}")
    return value


@dataclass(frozen=True)
class Blob:
    """Content in the store: `digest` is `sha256:<hex>`, `size` in bytes."""

    digest: str
    size: int


@dataclass(frozen=True)
class Record:
    """A realisation: what one action key gave.

    Attributes:
        key: the action key, `sha256:<hex>`.
        derivation: the whole resolved derivation (format `stagecraft.derivation.v1`).
        outputs: output name to blob.
        facts: everything worth keeping that is no part of the identity: log digest, times in
            milliseconds, host facts.
    """

    key: str
    derivation: Mapping[str, Any]
    outputs: Mapping[str, Blob]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def outputs_digest(self) -> str:
        return canonical.digest_of("outputs", {name: blob.digest for name, blob in self.outputs.items()})

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "key": self.key,
            "derivation": dict(self.derivation),
            "outputs": {name: {"digest": b.digest, "size": b.size} for name, b in self.outputs.items()},
            "facts": dict(self.facts),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Record:
        """Raises IntegrityError if `data` is no record."""
        try:
            if data["format"] != FORMAT:
                raise IntegrityError("unknown record format", where=where, found=str(data["format"]))
            hex_of(data["key"])
            record = cls(data["key"], data["derivation"], _outputs(data["outputs"]), data["facts"])
            if not isinstance(record.derivation, dict) or not isinstance(record.facts, dict):
                raise TypeError("derivation and facts are objects")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise IntegrityError(f"malformed record: {error!r}", where=where) from error
        return record

    @classmethod
    def parse(cls, data: bytes, where: str) -> Record:
        """The record in a file, read strictly. Raises IntegrityError."""
        return cls.from_json(canonical.loads(data, where=where), where)

    @classmethod
    def from_bytes(cls, data: bytes, key: str, where: str) -> Record:
        """The record of `key` in a file, reading only its outputs now.

        Asking for `derivation` or `facts` reads the file's bytes strictly, and so may raise IntegrityError.

        Raises:
            IntegrityError: no record of that key.
        """
        # In canonical order `outputs` is the last key, and holds nothing that could look like this.
        marker = f',"format":"{FORMAT}","key":"{key}","outputs":'.encode()
        start = data.rfind(marker)
        if start < 0 or not data.endswith(b"}"):
            return cls.parse(data, where)
        try:
            outputs = _outputs(json.loads(data[start + len(marker):-1]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise IntegrityError(f"malformed record: {error!r}", where=where) from error
        record = cls.__new__(cls)
        record.__dict__.update(key=key, outputs=outputs, _unread=(data, where))
        return record

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Read what `from_bytes` left: called only for attributes that are not there."""
            unread = self.__dict__.get("_unread")
            if unread is None or name not in ("derivation", "facts"):
                raise AttributeError(name)
            whole = Record.parse(*unread)
            self.__dict__.update(derivation=whole.derivation, facts=whole.facts)
            del self.__dict__["_unread"]
            return self.__dict__[name]


def _outputs(data: Mapping[str, Any]) -> dict[str, Blob]:
    found = {}
    for name, item in data.items():
        hex_of(item["digest"])
        if type(item["size"]) is not int or len(item) != 2:
            raise TypeError(f"output {name!r} is no digest and size")
        found[name] = Blob(item["digest"], item["size"])
    return found
