"""The sources that a CMake project would fetch while it configures: read out of its own files, nothing is run.

    pins(read, {"VLLM_TARGET_DEVICE": "cuda"})

A small interpreter of the CMake language (cmake-language(7)): `set`, `include`, `if` with three truth values, and
`FetchContent_Declare` / `FetchContent_Populate` with a Git repository. A condition that cannot be told (a compiler's
version, a file of the build) takes every branch. So a new release of vLLM needs no hand-made table of its pins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cache.errors import InputError

_SPACE = re.compile(r"\s+|#\[(=*)\[.*?\]\1\]|#[^\n]*", re.S)
_NAME = re.compile(r"[A-Za-z_]\w*")
_BRACKET = re.compile(r"\[(=*)\[(.*?)\]\1\]", re.S)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.S)
_PLAIN = re.compile(r'(?:[^\s()#"\\]|\\.)+')
_VARIABLE = re.compile(r"\$(ENV)?\{([^${}]*)\}")
_FALSE = {"", "0", "OFF", "NO", "FALSE", "N", "IGNORE", "NOTFOUND"}
_TRUE = {"1", "ON", "YES", "TRUE", "Y"}
_BLOCKS = {"function": "endfunction", "macro": "endmacro"}
_LONGEST = 1 << 16  # characters that variables may put into one argument
_KEYWORDS = {
    "GIT_REPOSITORY", "GIT_TAG", "GIT_SUBMODULES", "GIT_PROGRESS", "GIT_SHALLOW", "GIT_SUBMODULES_RECURSE",
    "GIT_REMOTE_NAME", "GIT_CONFIG", "SOURCE_DIR", "BINARY_DIR", "SUBBUILD_DIR", "SOURCE_SUBDIR", "CONFIGURE_COMMAND",
    "BUILD_COMMAND", "INSTALL_COMMAND", "TEST_COMMAND", "PATCH_COMMAND", "UPDATE_COMMAND", "QUIET", "SYSTEM",
    "EXCLUDE_FROM_ALL", "OVERRIDE_FIND_PACKAGE", "FIND_PACKAGE_ARGS", "DOWNLOAD_EXTRACT_TIMESTAMP", "URL", "URL_HASH",
}


@dataclass(frozen=True)
class Pin:
    """One source.

    Attributes:
        name: as CMake calls it: `vllm-flash-attn`.
        repository, tag: as written; the tag may be a commit, a tag or a branch.
        submodules: paths of those that are wanted; None for all, an empty tuple for none.
        override: the environment variable that gives a directory instead, or "".
        where: `file:line`.
    """

    name: str
    repository: str
    tag: str
    submodules: tuple[str, ...] | None
    override: str
    where: str


@dataclass(frozen=True)
class Call:
    """One command: `arguments` are (text, quoted)."""

    name: str
    arguments: tuple[tuple[str, bool], ...]
    line: int


def pins(read: Callable[[str], str | None], variables: Mapping[str, str], start: str = "CMakeLists.txt",
         told: Collection[str] = ()) -> list[Pin]:
    """Every source that the project would fetch from Git, in order, each once.

    Args:
        read: gives the text of a file of the project by its path, None if it is not there.
        variables: what is known; the environment counts as empty.
        told: names whose repository and tag somebody else says: what depends on what is not known is empty then.

    Raises:
        InputError: a file cannot be read as CMake; a pin whose repository or tag depends on what is not known.
    """
    found: dict[tuple[str, str, str], Pin] = {}
    try:
        for pin in _Project(read, dict(variables), told).file(start):
            found.setdefault((pin.name, pin.repository, pin.tag), pin)
    except RecursionError as error:
        raise InputError("a file that pins sources is nested deeper than anybody writes it", where=start,
                         cure="is the source archive whole?") from error
    return list(found.values())


def calls(text: str, where: str) -> Iterator[Call]:
    """The commands of a file. Raises InputError for what is no CMake."""
    at = 0
    while True:
        at = _skip(text, at)
        if at >= len(text):
            return
        name = _NAME.match(text, at)
        line = text.count("\n", 0, at) + 1
        if not name:
            raise _unreadable(where, line, text[at:at + 20])
        at = _skip(text, name.end())
        if text[at:at + 1] != "(":
            raise _unreadable(where, line, text[at:at + 20])
        arguments, at = _arguments(text, at + 1, where)
        yield Call(name[0].lower(), tuple(arguments), line)


def _arguments(text: str, at: int, where: str) -> tuple[list[tuple[str, bool]], int]:
    found: list[tuple[str, bool]] = []
    depth = 1
    while True:
        at = _skip(text, at)
        here = text[at:at + 1]
        if not here:
            raise _unreadable(where, text.count("\n") + 1, "the end of the file inside a command")
        if here in "()":
            depth += 1 if here == "(" else -1
            at += 1
            if not depth:
                return found, at
            found.append((here, False))
            continue
        if match := _BRACKET.match(text, at):
            found.append((match[2], True))
        elif match := _QUOTED.match(text, at):
            found.append((re.sub(r"\\(.)", r"\1", match[1].replace("\\\n", "")), True))
        elif match := _PLAIN.match(text, at):
            found.append((match[0], False))
        else:
            raise _unreadable(where, text.count("\n", 0, at) + 1, text[at:at + 20])
        at = match.end()


def _skip(text: str, at: int) -> int:
    while match := _SPACE.match(text, at):
        at = match.end()
    return at


def _unreadable(where: str, line: int, found: str) -> InputError:
    return InputError("a file that pins sources cannot be read as CMake", where=f"{where}:{line}", found=repr(found),
                      cure="is the source archive whole?")


class _Project:
    def __init__(self, read: Callable[[str], str | None], variables: dict[str, str], told: Collection[str]) -> None:
        self._read, self._variables, self._told = read, variables, told
        self._unknown: set[str] = set()
        self._open: list[str] = []

    def file(self, path: str) -> Iterator[Pin]:
        """The pins of a file and of those that it includes; its variables stay."""
        text = self._read(path)
        if text is None or path in self._open:
            return
        self._open.append(path)
        yield from self._run(list(calls(text, path)), path, text)
        self._open.pop()

    def _run(self, commands: Sequence[Call], path: str, text: str) -> Iterator[Pin]:
        """Each entry of `branches` says of an open `if`: may this branch run, may a later one still."""
        branches: list[tuple[bool, bool]] = []
        inside = ""
        for call in commands:
            if inside:
                inside = "" if call.name == inside else inside
                continue
            if call.name in _BLOCKS:
                inside = _BLOCKS[call.name]
            elif call.name == "if":
                truth = self._truth(call)
                branches.append((truth is not False, truth is not True))
            elif call.name in ("elseif", "else") and branches:
                left = branches.pop()[1]
                truth = True if call.name == "else" else self._truth(call)
                branches.append((left and truth is not False, left and truth is not True))
            elif call.name == "endif" and branches:
                branches.pop()
            elif all(taken for taken, _ in branches):
                yield from self._call(call, path, text)

    def _call(self, call: Call, path: str, text: str) -> Iterator[Pin]:
        values = [self._expand(value) for value, _ in call.arguments]
        if call.name == "set" and values:
            name = values[0]
            value = ";".join(values[1:values.index("CACHE")] if "CACHE" in values else
                             [part for part in values[1:] if part != "PARENT_SCOPE"])
            if "CACHE" in values and name in self._variables:
                return
            self._variables[name] = value = value if len(value) <= _LONGEST else "\0"
            self._unknown.discard(name)
            if "\0" in value:
                self._unknown.add(name)
        elif call.name == "include" and values:
            yield from self.file(values[0].removeprefix("/source/"))
        elif call.name in ("fetchcontent_declare", "fetchcontent_populate") and "GIT_REPOSITORY" in values:
            yield self._pin(call, values, path, text)

    def _pin(self, call: Call, values: list[str], path: str, text: str) -> Pin:
        settings: dict[str, list[str]] = {}
        key = ""
        for value in values[1:]:
            if value in _KEYWORDS:
                key = value
                settings[key] = []
            elif key:
                settings[key].append(value)
        name, where = values[0], f"{path}:{call.line}"
        repository, tag = ("".join(settings.get(key, [])) for key in ("GIT_REPOSITORY", "GIT_TAG"))
        if name in self._told:
            repository, tag = ("" if "\0" in text else text for text in (repository, tag))
        elif not repository or not tag or "\0" in repository + tag:
            raise InputError(f"what CMake would fetch as {name} cannot be told", where=where,
                             found=f"{repository or 'no repository'} at {tag or 'no tag'}".replace("\0", "?"),
                             cure=f"name repository and tag of {name} under pins of the package in the target")
        submodules = settings.get("GIT_SUBMODULES")
        overrides = re.findall(r"ENV\{(\w+_SRC_DIR)\}", text)
        wanted = re.sub(r"[^A-Z0-9]", "", name.upper())
        override = next((found for found in overrides if wanted in found.replace("_", "")), "")
        return Pin(name, repository, tag, None if submodules is None else tuple(part for part in submodules if part),
                   override, where)

    def _expand(self, text: str) -> str:
        """Variables put in, innermost first; `\\0` stands for what is not known, and for what grows without end."""
        for _ in range(20):
            if sum(len(self._value(match)) for match in _VARIABLE.finditer(text)) > _LONGEST:
                return "\0"
            changed = _VARIABLE.sub(self._value, text)
            if changed == text:
                break
            text = changed
        return text

    def _value(self, match: re.Match[str]) -> str:
        if match[1]:
            return ""  # the environment counts as empty
        if match[2] in ("CMAKE_SOURCE_DIR", "CMAKE_CURRENT_SOURCE_DIR", "CMAKE_CURRENT_LIST_DIR", "PROJECT_SOURCE_DIR"):
            return "/source"
        if match[2] in self._variables:
            return self._variables[match[2]]
        return "\0" if match[2].startswith(("CMAKE_", "FETCHCONTENT_")) else ""

    # -- conditions -------------------------------------------------------------------------------

    def _truth(self, call: Call) -> bool | None:
        """True, False, or None for what cannot be told."""
        words = [(self._expand(value), quoted) for value, quoted in call.arguments]
        found, rest = self._any(words)
        return found if not rest else None

    def _any(self, words: list[tuple[str, bool]]) -> tuple[bool | None, list[tuple[str, bool]]]:
        found, words = self._all(words)
        while words and words[0] == ("OR", False):
            other, words = self._all(words[1:])
            found = True if found or other else None if None in (found, other) else False
        return found, words

    def _all(self, words: list[tuple[str, bool]]) -> tuple[bool | None, list[tuple[str, bool]]]:
        found, words = self._not(words)
        while words and words[0] == ("AND", False):
            other, words = self._not(words[1:])
            found = False if found is False or other is False else None if None in (found, other) else True
        return found, words

    def _not(self, words: list[tuple[str, bool]]) -> tuple[bool | None, list[tuple[str, bool]]]:
        if words and words[0] == ("NOT", False):
            found, words = self._not(words[1:])
            return (None if found is None else not found), words
        if words and words[0] == ("(", False):
            found, words = self._any(words[1:])
            return found, words[1:]
        return self._one(words)

    def _one(self, words: list[tuple[str, bool]]) -> tuple[bool | None, list[tuple[str, bool]]]:
        if not words:
            return None, []
        first = words[0]
        if first == ("DEFINED", False) and len(words) > 1:
            name = words[1][0]
            return (False if name.startswith("ENV{") else name in self._variables or None), words[2:]
        if first[0] in ("EXISTS", "IS_DIRECTORY", "IS_ABSOLUTE", "COMMAND", "TARGET", "POLICY", "TEST") \
                and not first[1] and len(words) > 1:
            return None, words[2:]
        if len(words) > 2 and not words[1][1] and re.fullmatch(r"[A-Z_]+", words[1][0]) \
                and words[1][0] not in ("AND", "OR"):
            left, right = (self._named(words[number]) for number in (0, 2))
            if words[1][0] == "STREQUAL" and "\0" not in left + right:
                return left == right, words[3:]
            return None, words[3:]
        return self._constant(first), words[1:]

    def _named(self, word: tuple[str, bool]) -> str:
        """A word of a comparison: a variable's name stands for its value."""
        return self._variables.get(word[0], word[0]) if not word[1] else word[0]

    def _constant(self, word: tuple[str, bool]) -> bool | None:
        text = word[0]
        if "\0" in text:
            return None
        if text.upper() in _TRUE or re.fullmatch(r"[1-9]\d*", text):
            return True
        if text.upper() in _FALSE or text.endswith("-NOTFOUND") or word[1]:
            return False
        if text in self._variables:
            return self._constant((self._variables[text], False)) is not False and "\0" not in self._variables[text]
        return False
