"""`lock` of what is compiled: a package's source with its pinned trees, and the tools, all exact.

The tools: compilers as Debian packages of the execution platform out of the base's own suite; CUDA's toolkit as wheels
of that platform, of the target's CUDA minor; build requirements as wheels of the target's machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cache.errors import LockError
from stages.locked_source import SourcePackage, Tools
from stages.lockfile import Lock, LockedFile
from stages.project import Project
from stages.recipe import Recipe
from stages.target import Target

if TYPE_CHECKING:
    from lock.source_lock import LockedSource

MACHINES = {"linux/arm64": "aarch64", "linux/amd64": "x86_64"}
#: The target's own C library is in the root; the copies for cross compilers name paths that are not there.
_LEFT_OUT = re.compile(r"(libc6|libc6-dev|linux-libc-dev)-\w+-cross")


@dataclass(frozen=True)
class SourceParts:
    """The resolvers of packages from source.

    Attributes:
        suite: where Debian packages come from, as `base.debian` of a target says it.
        python: of the image, as in a lock.
    """

    project: Project
    target: Target
    old: Lock | None
    log: Callable[[str], None]
    upgrade: bool | frozenset[str]
    exclude_newer: str
    suite: Mapping[str, Any]
    python: Mapping[str, str]

    def package(self, name: str) -> SourcePackage:
        """Everything that one package reads.

        Raises:
            FetchError: a source cannot be had; it is named with every address that was tried.
            LockError: no solution for its tools; nothing of that version.
        """
        recipe = self.target.recipes[name]
        before = next((one for one in self.old.sources if one.name == name), None) if self.old else None
        locked = self._source(name, recipe, before)
        tools = Tools() if "copy" in recipe.data else self._tools(recipe, before.tools if before else Tools())
        requirements = () if "into" in recipe.data else self._requirements(recipe, locked)
        return SourcePackage(name, locked.version, locked.source, locked.trees, locked.stubs, requirements, tools,
                             self._archives(recipe, locked.version))

    def _archives(self, recipe: Recipe, version: str) -> tuple[LockedFile, ...]:
        """The files that the compile reads beside Git trees; each is fetched."""
        from lock.url_source import lock_url

        found = []
        for row in recipe.archives(version):
            self.log(f"    {row['url']}")
            file = lock_url(self.project.store, row["name"], row["version"], row["url"], row["sha256"],
                            self.target.data["sources"]["mirrors"])
            found.append(LockedFile(file.name, file.version, file.file, file.size, file.sha256, file.index))
        return tuple(found)

    def _source(self, name: str, recipe: Recipe, before: SourcePackage | None) -> LockedSource:
        from lock.indexes import load_indexes
        from lock.source_lock import SourceRequest, lock_source

        described = self.target.data["sources"]["packages"][name]
        git = described.get("git", {})
        moves = self.upgrade is True or (self.upgrade is not False and name in self.upgrade)
        self.log(f"  resolving the source of {name} {described['version']} and what it pins")
        request = SourceRequest(
            name, described["version"], index="" if git else described["index"],
            repository=git.get("repository", ""), tag=git.get("tag", ""), submodules=tuple(git.get("submodules", ())),
            stubs=frozenset(described["stubs"]), variables=recipe.variables(described["version"]),
            more=tuple((row["name"], row["repository"], row["tag"]) for row in recipe.trees(described["version"])),
            stubs_if_pinned=frozenset(recipe.stubs(described["version"], self.target.data["device"]["arch_list"])),
            pins={pin: (moved.get("repository", ""), moved["tag"]) for pin, moved in described["pins"].items()})
        return lock_source(
            self.project.store, request, load_indexes(self.project.root / "targets" / "indexes.yaml"),
            self.target.data["sources"]["mirrors"], known=() if before is None or moves else before.all_trees(),
            log=lambda line: self.log(f"    {line}"))

    def _requirements(self, recipe: Recipe, locked: LockedSource) -> tuple[str, ...]:
        """What the finished wheel will ask for, as its source says it."""
        from lock.source_lock import texts_of

        where = f"{locked.name} {locked.version}"
        if recipe.data["requirements"]:
            from lock.requirements_file import requirements

            # One of these files may include others of its directory, and these theirs.
            texts = texts_of(self.project.store, locked.digest, locked.strip, None, where)
            lines = [line for file in recipe.data["requirements"] for line in requirements(texts, file)]
            return tuple(dict.fromkeys(lines))
        texts = texts_of(self.project.store, locked.digest, locked.strip, {"PKG-INFO", "pyproject.toml"}, where)
        if "PKG-INFO" not in texts:
            from lock.requirements_file import declared

            said = declared(texts.get("pyproject.toml", ""), f"{where}: pyproject.toml")
            if said is None:
                raise LockError("nothing says what the finished wheel will ask for", where=where,
                                expected="PKG-INFO, which every sdist has, or dependencies under [project] in "
                                         "pyproject.toml",
                                found="a source from Git", cure=f"name its requirement files under requirements in "
                                                                f"{recipe.path}")
            return tuple(said)
        from email.parser import HeaderParser

        asked = HeaderParser().parsestr(texts["PKG-INFO"]).get_all("Requires-Dist") or []
        return tuple(str(line) for line in asked if "extra ==" not in str(line))

    def _tools(self, recipe: Recipe, before: Tools) -> Tools:
        execution = self.target.data["sources"]["execution"]
        cuda = str(self.target.data["device"]["cuda"])
        self.log(f"  resolving compilers for {execution.partition('/')[2]} with apt")
        suites, debs = self._debs(recipe.compilers(execution, self.target.data["platform"]),
                                  execution.partition("/")[2], before.debs)
        names = [name.format(python=self.python["version"]) for name in recipe.data["tools"].get("development", ())]
        development: tuple[LockedFile, ...] = ()
        if names:
            self.log(f"  resolving headers and libraries for {self.target.architecture} with apt")
            more, development = self._debs(names, self.target.architecture, before.development)
            suites = (*suites, *(suite for suite in more if suite not in suites))
        toolkit = recipe.data["tools"]["toolkit"]
        if cuda == "none":
            toolkit = []
        return Tools(
            suites, debs,
            self._wheels("CUDA's toolkit", toolkit, MACHINES[execution], before.toolkit,
                         constraints=[f"=={cuda}.*"] if toolkit else []),
            self._wheels("build requirements", recipe.data["tools"]["requires"], self.target.machine, before.requires),
            development)

    def _debs(self, names: Collection[str], architecture: str, before: tuple[LockedFile, ...]
              ) -> tuple[tuple[Mapping[str, str], ...], tuple[LockedFile, ...]]:
        """Debian packages of one machine with all that they need, and the suites they are from."""
        from lock.debs import DebRequest, LockedDeb, lock_debs
        from stages.fetching import archives

        suite = self.suite
        request = DebRequest(suite["archive"], suite["suite"], tuple(suite["components"]), architecture, tuple(names),
                             essential=False, security=suite["security"], updates=suite["updates"],
                             snapshot=suite.get("snapshot"))
        previous = [LockedDeb(d.name, d.version, d.architecture, d.file, d.size, d.sha256, d.index)
                    for d in before]
        found = lock_debs(request, archives(self.project.root), previous=previous, upgrade=self.upgrade, log=self.log)
        debs = tuple(LockedFile(d.name, d.version, d.file, d.size, d.sha256, d.index, d.architecture)
                     for d in found.debs if not _LEFT_OUT.fullmatch(d.name))
        return tuple(dict(vars(state)) for state in found.suites), debs

    def _wheels(self, what: str, requirements: Collection[str], machine: str, before: tuple[LockedFile, ...],
                constraints: Collection[str] = ()) -> tuple[LockedFile, ...]:
        """Wheels of one machine. With constraints each is taken alone, within them."""
        from lock.wheels import WheelRequest
        from stages.resolve_wheels import locked_wheels

        if not requirements:
            return ()
        self.log(f"  resolving {what} for {machine} with uv")
        alone = tuple(f"{line}{',' if re.search('[=<>~!]', line) else ''}{bound}"
                      for line in requirements for bound in constraints)
        request = WheelRequest(
            requirements=() if alone else tuple(requirements), alone=alone, python=self.python["version"],
            machine=machine, glibc=self.python["glibc"])
        found, taken = locked_wheels(self.project.root, request, before, self.upgrade, self.exclude_newer,
                                     f"{what} of targets/{self.target.name}.yaml", self.log)
        return (*found, *taken)
