"""The list of indexes: names that targets and locks use, and where each is found today.

`targets/indexes.yaml` (format `stagecraft.indexes.v1`, docs/indexes.md) is the one place with addresses, and it
holds none of the registries' own: those come from the client's configuration. `STAGECRAFT_INDEX_<NAME>` replaces an
entry's address. Reading only; no network except when `probe` is called.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cache.errors import InputError
from lock.apt_archive import Archive
from lock.client import Client, credentials_in, read_client, with_credentials
from lock.sources import Location, bare

FORMAT = "stagecraft.indexes.v1"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_FIELDS: dict[str, tuple[str, ...]] = {
    "client": ("type",),
    "simple": ("type", "url"),
    "links": ("type", "url"),
    "apt": ("type", "distribution", "url", "snapshot", "security", "keyring"),
}


@dataclass(frozen=True)
class WheelIndex:
    """Where wheels of one index are: simple indexes and pages or directories of links, in order of preference.

    Attributes:
        name: as in `targets/indexes.yaml`.
        pages: addresses of simple indexes (the directory of projects), perhaps with credentials.
        links: addresses or directories.
        place: `file:line` of the entry.
    """

    name: str
    pages: tuple[str, ...]
    links: tuple[str, ...]
    place: str


@dataclass(frozen=True)
class Indexes:
    """The parsed list, with the client's configuration. Attributes: see `load_indexes`."""

    path: str
    entries: Mapping[str, Mapping[str, str]]
    places: Mapping[str, str]
    environ: Mapping[str, str] = field(repr=False)

    @cached_property
    def client(self) -> Client:
        """The client's configuration, read when first needed. Raises InputError."""
        return read_client(self.environ)

    def names(self, *types: str) -> list[str]:
        """Names in the order of the file, of these types or of all."""
        return [name for name, entry in self.entries.items() if not types or entry["type"] in types]

    def wheels(self, name: str) -> WheelIndex:
        """The wheel index of that name.

        Raises:
            InputError: there is none; or it is an apt archive.
            ToolError: the client's default index is unknown.
        """
        entry = self._entry(name, ("client", "simple", "links"), "wheels")
        place, other = self.places[name], self._override(name)
        if entry["type"] == "client" and not other:
            return WheelIndex(name, self.client.pages(), self.client.find_links, place)
        url = with_credentials(other or entry["url"], name, self.environ)
        links = entry["type"] == "links"
        return WheelIndex(name, () if links else (url,), (url,) if links else (), place)

    def apt(self, name: str) -> Archive:
        """The apt archive of that name.

        Raises:
            InputError: there is none; or it is a wheel index.
        """
        entry = self._entry(name, ("apt",), "Debian packages")
        return Archive(name, entry["distribution"], url=self._override(name) or entry.get("url"),
                       security=self._override(f"{name}-security") or entry.get("security"),
                       snapshot=entry.get("snapshot"), keyring=entry.get("keyring"))

    def location(self, url: str, of: WheelIndex) -> Location:
        """How to read `url`, which an index named: credentials of an index go to its own host only."""
        parts = urlsplit(url)
        if parts.scheme in ("", "file"):
            return Location(path=local_path(url))
        auth = credentials_in(url)
        for known in (*of.pages, *of.links):
            if auth is None and _origin(known) == _origin(url):
                auth = credentials_in(known)
        client = self.client
        return Location(urls=(without_credentials(url),), auth=auth, verify=client.verify(url),
                        cert=client.client_cert or None, proxies=client.proxies(), timeout=client.timeout)

    def probe(self, name: str) -> str:
        """Ask an index whether it answers; empty if it does, else what is wrong, in a line. Raises InputError."""
        if self.entries[name]["type"] == "apt":
            from lock.apt_archive import probe as probe_archive

            return probe_archive(self.apt(name))
        from lock.simple import probe

        return probe(self, name)

    def _entry(self, name: str, types: tuple[str, ...], what: str) -> Mapping[str, str]:
        entry = self.entries.get(name)
        if entry is None:
            raise InputError(f"no index is called {name!r}", where=self.path, expected=", ".join(self.names(*types)),
                             found=name, cure=_nearest(name, self.entries))
        if entry["type"] not in types:
            raise InputError(f"index {name} has no {what}", where=self.places[name],
                             expected=" or ".join(types), found=entry["type"])
        return entry

    def _override(self, name: str) -> str:
        return self.environ.get(variable(name), "")


def variable(name: str) -> str:
    """The environment variable that replaces an index's address."""
    return "STAGECRAFT_INDEX_" + name.upper().replace("-", "_")


def without_credentials(url: str) -> str:
    """`url` as it is, without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def local_path(url: str) -> Path:
    """The path that a `file:` address or a plain path means."""
    parts = urlsplit(url)
    return Path(unquote(parts.path) if parts.scheme == "file" else url).expanduser()


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def load_indexes(path: Path, environ: Mapping[str, str] = os.environ) -> Indexes:
    """Read `targets/indexes.yaml`.

    Args:
        environ: where `STAGECRAFT_INDEX_*` and the configuration of pip and uv are looked for.

    Raises:
        InputError: not there, not YAML, an unknown or missing key, a wrong value, credentials in an address.
    """
    shown = f"{path.parent.name}/{path.name}"
    data, lines = _read(path, shown)
    _known(data, ("format", "indexes"), shown, lines, ())
    if data.get("format") != FORMAT:
        raise InputError("this list of indexes has another format", where=_place(shown, lines, ("format",)),
                         expected=FORMAT, found=str(data.get("format")))
    indexes = data.get("indexes")
    if not isinstance(indexes, dict) or not indexes:
        raise InputError("no indexes", where=_place(shown, lines, ("indexes",)), expected="name: {type: …}")
    for name, entry in indexes.items():
        _check(name, entry, shown, lines)
    if "default" not in indexes:
        raise InputError("no index is called default", where=shown, expected="default: {type: client}")
    places = {name: _place(shown, lines, ("indexes", name)) for name in indexes}
    return Indexes(shown, indexes, places, environ)


Lines = Mapping[tuple[str, ...], int]


def _check(name: str, entry: Any, shown: str, lines: Lines) -> None:
    at = ("indexes", name)
    if not _NAME.fullmatch(name):
        raise InputError("not a name for an index", where=_place(shown, lines, at), found=name,
                         expected="lower-case letters, digits, single hyphens")
    if not isinstance(entry, dict):
        raise InputError(f"index {name} is no mapping", where=_place(shown, lines, at), expected="type: …")
    kind = entry.get("type")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise InputError(f"index {name} has no known type", where=_place(shown, lines, (*at, "type")),
                         expected=" or ".join(_FIELDS), found=str(kind), cure=_nearest(str(kind), _FIELDS))
    _known(entry, _FIELDS[kind], shown, lines, at)
    needed = {"simple": "url", "links": "url", "apt": "distribution"}.get(kind)
    if needed and needed not in entry:
        raise InputError(f"index {name} has no {needed}", where=_place(shown, lines, at), expected=f"{needed}: …")
    for key in set(entry) - {"type"}:
        value, place = entry[key], _place(shown, lines, (*at, key))
        if not isinstance(value, str) or not value:
            raise InputError(f"{key} of index {name} is no text", where=place, found=str(value))
        if key in ("url", "snapshot", "security"):
            _check_address(value, place)


def _check_address(value: str, place: str) -> None:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https", "file") or not (parts.netloc or parts.scheme == "file"):
        raise InputError("not an address", where=place, expected="https://host/path", found=bare(value))
    if "@" in parts.netloc:
        raise InputError("an address with credentials in a file that is committed", where=place, found=bare(value),
                         cure="put them into netrc, or into UV_INDEX_<NAME>_USERNAME and _PASSWORD")


def _known(data: Mapping[str, Any], keys: Collection[str], shown: str, lines: Lines, at: tuple[str, ...]) -> None:
    for key in data:
        if key not in keys:
            raise InputError(f"unknown key {key!r}", where=_place(shown, lines, (*at, key)),
                             expected=", ".join(keys), found=key, cure=_nearest(key, keys))


def _nearest(word: str, known: Collection[str]) -> str | None:
    close = difflib.get_close_matches(word, known, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else None


def _place(shown: str, lines: Lines, at: tuple[str, ...]) -> str:
    while at not in lines:
        at = at[:-1]
    return f"{shown}:{lines[at]}"


def _read(path: Path, shown: str) -> tuple[dict[str, Any], Lines]:
    """The file's mappings of plain text, and the line of each key."""
    import yaml

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list of indexes cannot be read: {error}", where=shown) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError(f"not YAML: {getattr(error, 'problem', error)}",
                         where=f"{shown}:{mark.line + 1}" if mark else shown) from error
    lines: dict[tuple[str, ...], int] = {(): 1}

    def plain(node: Any, at: tuple[str, ...]) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return node.value if isinstance(node, yaml.ScalarNode) else [plain(item, at) for item in node.value]
        found: dict[str, Any] = {}
        for key, value in node.value:
            word = str(key.value)
            if word in found:
                raise InputError(f"key {word!r} is here twice", where=f"{shown}:{key.start_mark.line + 1}")
            here = (*at, word)
            lines[here] = key.start_mark.line + 1
            found[word] = plain(value, here)
        return found

    data = plain(root, ()) if root is not None else {}
    if not isinstance(data, dict):
        raise InputError("the list of indexes is no mapping", where=f"{shown}:1", expected="format: …")
    return data, lines
