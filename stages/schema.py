"""Reading YAML that people write: every mistake is named with file, line, what was expected and the nearest known key.

Scalars are taken as the text that stands in the file (`3.10` is "3.10", not 3.1); the schema says what a text must
look like. Nothing is guessed, nothing unknown is ignored. Holds the little schema language and the reader; what a
target may say is in `stages.target`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.errors import InputError

Path_ = tuple[str, ...]

#: What YAML reads as no value when it stands there without quotes.
_NULL = ("", "~", "null", "Null", "NULL")
#: Levels; no format of ours has more than a handful.
_DEEPEST = 20


@dataclass(frozen=True)
class Document:
    """A YAML document: plain data (dict, list, str) and where each value stands (`file:line`)."""

    data: Any
    places: Mapping[Path_, str]

    def place(self, path: Path_) -> str:
        """`file:line` of a value, or of the nearest thing around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "?")


def read(path: Path, shown: str) -> Document:
    """Read one YAML file; `shown` is its name in messages.

    Raises:
        InputError: not there, not UTF-8, not YAML, a key twice, an empty value, an anchor, an alias or a tag.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError("no such file", where=shown) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=shown) from error
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Reader(yaml.parse(text, Loader=loader), shown).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"not YAML: {getattr(error, 'problem', error)}", where=shown + line) from error


class _Reader:
    """Plain data out of YAML's events: these tell an anchor or a tag that a composed node no longer shows."""

    def __init__(self, events: Iterator[Any], shown: str) -> None:
        self._events = events
        self._shown = shown
        self._places: dict[Path_, str] = {}

    def document(self) -> Document:
        next(self._events)  # the stream's start
        if self._kind(next(self._events)) == "StreamEnd":
            raise InputError("the file is empty", where=self._shown)
        data = self._value(next(self._events), ())
        next(self._events)  # the document's end
        after = next(self._events)
        if self._kind(after) != "StreamEnd":
            raise InputError("the file holds more than one document", where=self._place(after))
        return Document(data, self._places)

    def _value(self, event: Any, at: Path_) -> Any:
        place = self._plain(event)
        self._places.setdefault(at, place)
        kind = self._kind(event)
        if kind == "Scalar":
            if event.implicit[0] and event.value in _NULL:
                raise InputError(f"{'.'.join(at) or 'the file'} has no value", where=place,
                                 cure="give it a value or delete the line")
            return event.value
        if len(at) == _DEEPEST:
            raise InputError("too deep: nothing here is so many levels below the top", where=place)
        if kind == "SequenceStart":
            items: list[Any] = []
            while self._kind(event := next(self._events)) != "SequenceEnd":
                items.append(self._value(event, (*at, str(len(items)))))
            return items
        found: dict[str, Any] = {}
        while self._kind(event := next(self._events)) != "MappingEnd":
            here = self._plain(event)
            if self._kind(event) != "Scalar":
                raise InputError("a key must be plain text", where=here)
            if event.value in found:
                raise InputError(f"key {event.value!r} is here twice", where=here)
            below = (*at, event.value)
            self._places[below] = here
            found[event.value] = self._value(next(self._events), below)
        return found

    def _plain(self, event: Any) -> str:
        """Where the event is. Raises InputError for what YAML can and we do not take."""
        place = self._place(event)
        if self._kind(event) == "Alias":
            raise InputError(f"the alias *{event.anchor}: aliases are not taken", where=place,
                             cure="write the value out where it is needed")
        if event.anchor is not None:
            raise InputError(f"the anchor &{event.anchor}: anchors are not taken", where=place,
                             cure="delete it; in plain text, put the value in quotes")
        if event.tag is not None:
            raise InputError(f"the tag {event.tag}: tags are not taken", where=place,
                             cure="delete it; in plain text, put the value in quotes")
        return place

    def _place(self, event: Any) -> str:
        return f"{self._shown}:{event.start_mark.line + 1}"

    @staticmethod
    def _kind(event: Any) -> str:
        return type(event).__name__.removesuffix("Event")


def merge(below: Document, above: Document) -> Document:
    """`above` laid over `below`: maps merge key by key, everything else is replaced."""
    places = dict(below.places)

    def lay(low: Any, high: Any, at: Path_) -> Any:
        if isinstance(low, dict) and isinstance(high, dict):
            return {
                key: lay(low[key], high[key], (*at, key)) if key in low and key in high else high.get(key, low.get(key))
                for key in dict.fromkeys([*low, *high])
            }
        for path in [path for path in places if path[: len(at)] == at]:
            places.pop(path)
        return high

    data = lay(below.data, above.data, ())
    places.update(above.places)
    return Document(data, places)


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that `word` was probably meant to be, or None."""
    import difflib

    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return found[0] if found else None


class Kind(ABC):
    """What a value may be."""

    @abstractmethod
    def check(self, value: Any, document: Document, at: Path_) -> Any:
        """The value as plain data. Raises InputError."""

    @abstractmethod
    def json_schema(self) -> dict[str, Any]:
        """The same as JSON Schema 2020-12, for editors and for docs/formats."""

    def fail(self, value: Any, document: Document, at: Path_, expected: str) -> InputError:
        shown = "a map" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
        # An address may have a password in it, before its host or in its query.
        shown = re.sub(r"(://)(?:[^/\s]*@)?([^\s?#]*)(?:[?#][^\s'\"]*)?", r"\1\2", shown)
        return InputError(f"wrong value for {'.'.join(at)}", where=document.place(at), expected=expected, found=shown)


@dataclass(frozen=True)
class Text(Kind):
    """Text; `pattern` must match all of it, `expected` says that in words; `choices` lists all allowed."""

    pattern: str = ""
    expected: str = "text"
    choices: tuple[str, ...] = ()

    def check(self, value: Any, document: Document, at: Path_) -> Any:
        if not isinstance(value, str):
            raise self.fail(value, document, at, self.expected)
        if self.choices and value not in self.choices:
            error = self.fail(value, document, at, " or ".join(self.choices))
            guess = nearest(value, self.choices)
            error.cure = f"did you mean {guess!r}?" if guess else None
            raise error
        if self.pattern and not re.fullmatch(self.pattern, value):
            raise self.fail(value, document, at, self.expected)
        return value


    def json_schema(self) -> dict[str, Any]:
        found: dict[str, Any] = {"type": ["string", "number"]}  # YAML reads 11.0 as a number; here its text counts
        if self.choices:
            found = {"enum": list(self.choices)}
        elif self.pattern:
            found |= {"pattern": f"^({self.pattern})$"}
        return found if self.expected == "text" else {**found, "description": self.expected}


@dataclass(frozen=True)
class Integer(Kind):
    low: int = 0
    high: int = 2**31

    def check(self, value: Any, document: Document, at: Path_) -> Any:
        if not isinstance(value, str) or not re.fullmatch(r"-?\d+", value) or not self.low <= int(value) <= self.high:
            raise self.fail(value, document, at, f"a whole number from {self.low} to {self.high}")
        return int(value)

    def json_schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True)
class Boolean(Kind):
    def check(self, value: Any, document: Document, at: Path_) -> Any:
        if value not in ("true", "false"):
            raise self.fail(value, document, at, "true or false")
        return value == "true"

    def json_schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class ListOf(Kind):
    item: Kind

    def check(self, value: Any, document: Document, at: Path_) -> Any:
        if not isinstance(value, list):
            raise self.fail(value, document, at, "a list")
        return [self.item.check(entry, document, (*at, str(number))) for number, entry in enumerate(value)]

    def json_schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self.item.json_schema()}


@dataclass(frozen=True)
class MapOf(Kind):
    """A map with free keys that match `key`."""

    item: Kind
    key: str = r".+"

    def check(self, value: Any, document: Document, at: Path_) -> Any:
        if not isinstance(value, dict):
            raise self.fail(value, document, at, "a map")
        for name in value:
            if not re.fullmatch(self.key, name):
                raise InputError(f"wrong key in {'.'.join(at)}", where=document.place((*at, name)),
                                 expected=f"a name like {self.key}", found=repr(name))
        return {name: self.item.check(entry, document, (*at, name)) for name, entry in value.items()}

    def json_schema(self) -> dict[str, Any]:
        return {"type": "object", "propertyNames": {"pattern": f"^({self.key})$"},
                "additionalProperties": self.item.json_schema()}


@dataclass(frozen=True)
class Fields(Kind):
    """A map with known keys. `required` must be there; `defaults` are filled in; others may be absent."""

    known: Mapping[str, Kind]
    required: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    one_of: tuple[str, ...] = ()

    def check(self, value: Any, document: Document, at: Path_) -> Any:
        name = ".".join(at) or "the file"
        if not isinstance(value, dict):
            raise self.fail(value, document, at, "a map with " + ", ".join(self.known))
        for key in value:
            if key not in self.known:
                guess = nearest(key, list(self.known))
                raise InputError(
                    f"unknown key {key!r} in {name}", where=document.place((*at, key)),
                    expected="one of " + ", ".join(sorted(self.known)),
                    cure=f"did you mean {guess!r}?" if guess else "delete it; docs/formats/target.md lists all keys")
        for key in self.required:
            if key not in value:
                raise InputError(f"{name} lacks {key!r}", where=document.place(at))
        if self.one_of and sum(key in value for key in self.one_of) != 1:
            raise InputError(f"{name} must say exactly one of {' and '.join(self.one_of)}", where=document.place(at))
        found = dict(self.defaults)
        found.update({key: self.known[key].check(entry, document, (*at, key)) for key, entry in value.items()})
        return {key: found[key] for key in self.known if key in found}

    def json_schema(self) -> dict[str, Any]:
        properties = {key: kind.json_schema() for key, kind in self.known.items()}
        for key, value in self.defaults.items():
            properties[key]["default"] = value
        found: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
        if self.required:
            found["required"] = list(self.required)
        if self.one_of:
            found["oneOf"] = [{"required": [key]} for key in self.one_of]
        return found
