"""What glibc's dynamic loader would do in an image: which file answers a NEEDED, what a library's scope is.

A model of ld.so(8): RPATH of the asking file and of those that loaded it (unless it has a RUNPATH), LD_LIBRARY_PATH of
the image, RUNPATH of the asking file, the directories of /etc/ld.so.conf, the built-in ones. A file for another machine
is passed over. A soname that is loaded already is not looked for again. Left out: glibc-hwcaps, LD_PRELOAD and
/etc/ld.so.preload.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

from checks.elf import DamagedElfError
from checks.symbols import Library
from checks.tree import ImageTree

#: Built-in directories, after those of ld.so.conf; `{triplet}` is Debian's and Ubuntu's.
_DEFAULT = ("lib/{triplet}", "usr/lib/{triplet}", "lib", "usr/lib", "lib64", "usr/lib64")


@dataclass
class Scope:
    """What is loaded when one file is loaded, in breadth-first order as the loader searches it.

    Attributes:
        files: paths, the asking file first.
        absent: (name, path of who needs it) for what no file of the image answers on the search path.
    """

    files: list[str] = field(default_factory=list)
    absent: list[tuple[str, str]] = field(default_factory=list)


class Image:
    """The libraries of an image and the loader's view of them.

    Attributes:
        damaged: path to what is wrong with a file that begins like an ELF file.
        library_path: directories of LD_LIBRARY_PATH.
        libraries: path to what is read of it; each content under one of its names.
    """

    def __init__(self, tree: ImageTree, machine: str, library_path: str = "") -> None:
        """`machine` as `uname -m` says it; `library_path` is LD_LIBRARY_PATH of the image."""
        self.tree, self.machine = tree, machine
        self.library_path = tuple(part.strip("/") for part in library_path.split(":") if part)
        self.libraries: dict[str, Library] = {}
        self.damaged: dict[str, str] = {}
        for path in tree.elf_files():
            try:
                self.libraries[path] = tree.library(path)
            except DamagedElfError as error:
                self.damaged[path] = str(error)
        self._scopes: dict[str, Scope] = {}
        self._found: dict[tuple[str, str], str | None] = {}

    @cached_property
    def search_path(self) -> tuple[str, ...]:
        """Directories of every search, in order: LD_LIBRARY_PATH is not among them."""
        triplet = f"{self.machine}-linux-gnu"
        return tuple(dict.fromkeys([*self._configured("etc/ld.so.conf", 0),
                                    *(part.format(triplet=triplet) for part in _DEFAULT)]))

    def _configured(self, path: str, depth: int) -> list[str]:
        try:
            lines = self.tree.read(path).decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return []
        found: list[str] = []
        for line in (line.partition("#")[0].strip() for line in lines):
            include = re.match(r"include\s+(.+)", line)
            if include and depth < 8:
                pattern = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), include[1])).lstrip("/")
                for name in sorted(name for name in self.tree.entries if fnmatchcase(name, pattern)):
                    found += self._configured(name, depth + 1)
            elif line:
                found += [part.strip("/") for part in re.split(r"[\s:,]+", line) if part]
        return found

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """Soname, and file name, to the paths that have it, anywhere in the image."""
        found: dict[str, list[str]] = {}
        for path, lib in self.libraries.items():
            if lib.elf.machine == self.machine:
                for name in {lib.elf.soname, posixpath.basename(path)} - {""}:
                    found.setdefault(name, []).append(path)
        return found

    @cached_property
    def by_symbol(self) -> dict[str, list[str]]:
        """Exported name to the paths that export it, anywhere in the image."""
        found: dict[str, list[str]] = {}
        for path, lib in self.libraries.items():
            if lib.elf.machine == self.machine:
                for name in lib.exports:
                    found.setdefault(name, []).append(path)
        return found

    def find(self, name: str, asking: str, above: Iterable[str] = ()) -> str | None:
        """The file that answers NEEDED `name` of `asking`; `above` are RPATH directories of those that loaded it."""
        elf = self.libraries[asking].elf
        if "/" in name:
            return self._usable(posixpath.normpath(name.lstrip("/"))) if name.startswith("/") else None
        own = [] if elf.runpath else [*self.directories(asking, elf.rpath), *above]
        key = (name, "\0".join([*own, *self.directories(asking, elf.runpath)]))
        if key not in self._found:
            places = [*own, *self.library_path, *self.directories(asking, elf.runpath), *self.search_path]
            self._found[key] = next((found for place in places
                                     if (found := self._usable(f"{place}/{name}")) is not None), None)
        return self._found[key]

    def directories(self, path: str, entries: Iterable[str]) -> list[str]:
        """RPATH or RUNPATH entries as directories of the image, without those relative to the working directory."""
        origin = "/" + posixpath.dirname(path)
        found = []
        for entry in entries:
            text = entry.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)
            text = re.sub(r"\$\{?LIB\}?", f"lib/{self.machine}-linux-gnu", text)
            if text.startswith("/"):
                found.append(posixpath.normpath(text).lstrip("/"))
        return found

    def _usable(self, path: str) -> str | None:
        found = self.tree.file(path)
        if found is None or found not in self.libraries or self.libraries[found].elf.machine != self.machine:
            return None
        return found

    def scope(self, path: str, loaded: Mapping[str, str] | None = None) -> Scope:
        """Everything that is loaded with `path`.

        Args:
            loaded: soname to path of what the process has already; a NEEDED of that name is not searched.
        """
        if loaded is None and path in self._scopes:
            return self._scopes[path]
        scope = Scope([path])
        there = dict(loaded or {})
        there.setdefault(self.libraries[path].elf.soname or posixpath.basename(path), path)
        waiting: list[tuple[str, tuple[str, ...]]] = [(path, ())]
        for asking, above in waiting:
            elf = self.libraries[asking].elf
            chain = above if elf.runpath else (*self.directories(asking, elf.rpath), *above)
            for name in elf.needed:
                if name in there:
                    if there[name] not in scope.files:
                        scope.files.append(there[name])
                        waiting.append((there[name], chain))
                    continue
                found = self.find(name, asking, chain)
                if found is None:
                    scope.absent.append((name, asking))
                    continue
                there[name] = found
                there[self.libraries[found].elf.soname or name] = found
                if found not in scope.files:
                    scope.files.append(found)
                    waiting.append((found, chain))
        if loaded is None:
            self._scopes[path] = scope
        return scope
