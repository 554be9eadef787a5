"""`lock:<target>`: resolve what a target wants and write its lock. The only step that may see "latest".

Joins the resolvers of `lock/` and `oci/`; decides nothing about packages itself. The lock is written whole, after
everything was resolved: a failure leaves the old one as it was.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import FetchError, InputError, LockError, ToolError
from checks.facts import SERVER_PARTS
from stages.lockfile import PARTS, Change, Lock, LockedFile, compare, path_of, read, request_digests
from stages.project import Project
from stages.schema import nearest
from stages.target import Target
from stages.waivers import judge_dates

if TYPE_CHECKING:
    from oci.base import LockedBase
    from stages.locked_source import SourcePackage

ARCHITECTURES = {"arm64": "aarch64", "amd64": "x86_64"}


@dataclass(frozen=True)
class LockChange:
    """What locking did."""

    target: str
    changes: tuple[Change, ...]
    counts: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {"target": self.target, "counts": dict(self.counts),
                "changes": [vars(change) for change in self.changes]}

    def text(self) -> str:
        lines = [f"  {c.section:<6} {c.name:<36} {c.old or '(new)'} -> {c.new or '(gone)'}" for c in self.changes]
        counts = ", ".join(f"{count} {section}" for section, count in self.counts.items() if count)
        if not self.changes:
            return f"{self.target}: the lock is as it was ({counts})"
        return "\n".join([*lines, f"{self.target}: {len(self.changes)} changes; {counts}"])


def lock(project: Project, name: str, log: Callable[[str], None], *, upgrade: bool | Collection[str] = False,
         only: str = "", exclude_newer: str = "", judged: bool = True,
         today: datetime.date | None = None) -> LockChange:
    """Resolve and write `targets/<name>.lock.json`.

    Args:
        upgrade: True moves every pin, a collection of names only those; otherwise what satisfies stays.
        only: "wheels", "debs", "sources" or "emulator" leaves the other parts as they were, and answering what they
            answered.
        exclude_newer: a date; wheels uploaded later are not seen.
        judged: by preflight, if wheels were resolved; False writes the lock whatever it holds.
        today: by which waivers are over or not; without it the day it is, in UTC.

    Raises:
        InputError: a waiver of the target is over.
        LockError: no solution, or an index that cannot serve it.
        FetchError: an index that does not answer; if others do not either, all of them are named.
        GateError: preflight does not let it pass.
    """
    target = project.target(name)
    try:
        return _lock(project, target, log, upgrade, only, exclude_newer, judged, today)
    except (FetchError, InputError, ToolError) as error:
        from stages.missing_inputs import all_of_them

        told = all_of_them(project, target, error, only)
        if told is error:
            raise
        raise told from error


def _lock(project: Project, target: Target, log: Callable[[str], None], upgrade: bool | Collection[str], only: str,
          exclude_newer: str, judged: bool, today: datetime.date | None) -> LockChange:
    name = target.name
    judge_dates(project.root, target, today or datetime.datetime.now(datetime.timezone.utc).date(), log)
    path = path_of(project.root, name)
    old = _previous(path, log)
    if only and old is None:
        raise LockError(f"there is no sound lock to keep the rest of, so --only {only} cannot work",
                        where=f"targets/{name}.lock.json", cure=f"./doit lock:{name}")
    if only == "sources" and not target.recipes:
        raise LockError(f"{name} takes nothing from source", where=target.files[0], cure=f"./doit lock:{name}")
    parts = _Parts(project, target, old, log, _moving(upgrade, old), exclude_newer)
    if only in ("wheels", "sources", "emulator") and old is not None:
        base, python, debs = old.base, old.python, old.debs
    else:
        base, python, debs = parts.base()
    sources: tuple[SourcePackage, ...]
    decisions: Mapping[str, Mapping[str, Any]]
    if only in ("wheels", "debs", "emulator") and old is not None:
        sources, decisions = old.sources, {**old.decisions}
        if only == "wheels":  # what is not compiled any more is resolved as a wheel now
            sources = tuple(package for package in sources if package.name in target.recipes)
            decisions = {name: one for name, one in decisions.items() if name in target.recipes}
    else:
        sources, decisions = parts.sources(base, python, debs)
    if only in ("debs", "sources", "emulator") and old is not None:
        wheels, files = old.wheels, old.files
        _still_fit(name, only, old, python, sources)
    else:
        wheels, files = parts.wheels(python, sources)
    server = old.server if only in ("debs", "sources", "emulator") and old is not None else parts.server()
    emulator, suites = parts.emulator() if only not in ("wheels", "debs", "sources") or old is None else \
        (old.emulator, old.emulator_suites)
    new = Lock(name, _answered(target, old, only), base, python, debs, wheels, files, emulator, suites,
               sources, decisions, server)
    if only not in ("debs", "sources", "emulator") and new.wheels:
        if judged:
            _judge(project, target, new, log)
        else:
            log(f"  the wheels are not judged; ./doit preflight:{name} does")
    changes = compare(old, new)
    text = new.dumps()
    if not path.exists() or path.read_bytes() != text.encode():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    return LockChange(name, tuple(changes), {"debs": len(debs), "wheels": len(wheels), "files": len(files),
                                             "emulator": len(emulator), "sources": len(sources)})


def _still_fit(name: str, only: str, old: Lock, python: Mapping[str, str], sources: tuple[SourcePackage, ...]) -> None:
    """Wheels that stay were resolved for the Python, and for what packages from source ask for. Raises LockError."""
    where, cure = f"targets/{name}.lock.json", f"./doit lock:{name}"
    if only == "debs" and (old.wheels or old.files) and dict(python) != dict(old.python):
        raise LockError("the base has another Python or glibc than the wheels were resolved for", where=where,
                        found=f"Python {python['version']}, glibc {python['glibc']}",
                        expected=f"Python {old.python['version']}, glibc {old.python['glibc']}", cure=cure)
    if only != "sources":
        return
    before = {one.name: set(one.requirements) for one in old.sources}
    after = {one.name: set(one.requirements) for one in sources}
    for package in sorted((before.keys() ^ after.keys()) - SERVER_PARTS.keys()):
        raise LockError(f"{package} is {'' if package in after else 'not '}compiled now, and the locked wheels were "
                        "resolved for the opposite", where=where, cure=cure)
    for package, asked in after.items():
        changed = sorted(before.get(package, set()) ^ asked)
        if changed:
            raise LockError(f"{package} asks for other wheels than the locked ones were resolved for", where=where,
                            found=", ".join(changed), cure=cure)


def _judge(project: Project, target: Target, new: Lock, log: Callable[[str], None]) -> None:
    """Preflight of a lock that is not written yet. Raises GateError."""
    from stages.preflight import preflight

    log("  judging the wheels by their index")
    found = preflight(project, target, new, log)
    for line in found.notes():
        log(f"  {line}")
    log(f"  {found.summary()}")
    error = found.error(f"preflight does not let the new lock of {target.name} pass; the lock is as it was",
                        f"or ./doit lock:{target.name} --no-preflight, which writes it all the same")
    if error is not None:
        raise error


def _previous(path: Path, log: Callable[[str], None]) -> Lock | None:
    """The lock whose pins are kept. A malformed one (a merge gone wrong) keeps none: the way out is to lock again."""
    try:
        return read(path, f"targets/{path.name}")
    except FileNotFoundError:
        return None
    except LockError as error:
        log(f"  warning: {error.message} ({error.where}); its pins are not kept")
        return None


def _answered(target: Target, old: Lock | None, only: str) -> dict[str, str]:
    """`request` of the new lock: a part that was left alone still answers what it answered before."""
    asked = request_digests(target)
    if not only or old is None:
        return asked
    return {part: digest if PARTS[part][0] == only else old.request.get(part, "sha256:" + "0" * 64)
            for part, digest in asked.items()}


def _moving(upgrade: bool | Collection[str], old: Lock | None) -> bool | frozenset[str]:
    """What moves, by the names that the lock has. Raises InputError for a name that no part of it has."""
    if isinstance(upgrade, bool):
        return upgrade
    known: set[str] = set()
    if old is not None:
        lists = [old.debs, old.wheels, old.files, old.emulator]
        lists += [one.tools.files() for one in old.sources]
        known = {file.name for files in lists for file in files} | {one.name for one in old.sources}
        known |= {"tritonserver"} if old.server else set()
    found = set()
    for name in upgrade:
        wheel = re.sub(r"[-_.]+", "-", name).lower()
        if name not in known and wheel not in known:
            guess = nearest(name, sorted(known))
            raise InputError(f"{name} is not in the lock, so it cannot be upgraded", found=name,
                             cure=f"did you mean {guess!r}?" if guess else None)
        found.add(name if name in known else wheel)
    return frozenset(found)


@dataclass(frozen=True)
class _Parts:
    """The resolvers, each called with what the target says."""

    project: Project
    target: Target
    old: Lock | None
    log: Callable[[str], None]
    upgrade: bool | frozenset[str]
    exclude_newer: str

    def base(self) -> tuple[dict[str, Any], dict[str, str], tuple[LockedFile, ...]]:
        """Base, Python facts and Debian packages."""
        described = self.target.data["base"]
        if "image" in described:
            return self._on_image(described["image"])
        debian = described["debian"]
        debs, suites = self._debs(debian, essential=True, status=None)
        version = self.target.data["python"]["version"]
        interpreter = f"python{version}"
        if not any(deb.name in (interpreter, f"{interpreter}-minimal") for deb in debs) and self._needs_python():
            found = sorted(d.name for d in debs if d.name.startswith("python3.") and d.name.endswith("-minimal"))
            raise LockError(f"the base has no Python {version}", where=f"targets/{self.target.name}.yaml",
                            found=", ".join(found) or "no Python at all",
                            cure="set python.version to what the suite has, and add python3 to packages")
        python = {"version": version, "executable": f"/usr/bin/{interpreter}",
                  "glibc": self.target.data["python"]["glibc"],
                  "site": f"usr/local/lib/{interpreter}/dist-packages", "scripts": "usr/local/bin",
                  "data": "usr/local"}
        return {"kind": "debian", "suites": suites}, python, debs

    def _needs_python(self) -> bool:
        return bool(self.target.data["wheels"]["requirements"]) or "torch" in self.target.data

    def _on_image(self, reference: str) -> tuple[dict[str, Any], dict[str, str], tuple[LockedFile, ...]]:
        from oci.base import lock_base

        wanted = self.target.data["python"]["version"]

        def resolved(name: str) -> LockedBase:
            self.log(f"  reading the base image {name}")
            return lock_base(name, {"os": "linux", "architecture": self.target.architecture},
                             added=self.target.data["packages"], python=wanted)

        kept = self._kept(reference)
        try:
            found = resolved(kept)
        except LockError as error:
            if kept == reference:
                raise
            self.log(f"  {error.message}: what {reference} is now is looked up again")
            found = resolved(reference)
        python = dict(found.python)
        if python["version"] != wanted:
            raise LockError("the base image has another Python", where=reference, expected=wanted,
                            found=python["version"], cure=f'set python.version to "{python["version"]}"')
        debs: tuple[LockedFile, ...] = ()
        suites: list[dict[str, str]] = []
        if self.target.data["packages"]:
            system = found.os_release
            for key in ("ID", "VERSION_CODENAME"):
                if not system.get(key):
                    raise LockError(f"the base image does not say which release it is: no {key} in its os-release",
                                    where=reference, expected="Debian, Ubuntu or another with apt and named releases",
                                    found=system.get("PRETTY_NAME") or system.get("ID"),
                                    cure="take another base image, or add no packages to this one")
            # An image is updated when it is made: what fits its exact versions is in these suites too.
            debs, suites = self._debs(
                {"distribution": system["ID"], "suite": system["VERSION_CODENAME"],
                 "components": ["main", "universe"] if system["ID"] == "ubuntu" else ["main"],
                 "archive": system["ID"], "security": True, "updates": True},
                essential=False, status=found.status)
        return {**found.to_json(), "suites": suites}, python, debs

    def _kept(self, reference: str) -> str:
        """The reference with the digest that the old lock has for it: a tag that moved is followed when asked to."""
        from oci.reference import parse_reference

        name = parse_reference(reference)
        if self.old is None or self.old.base["kind"] != "image" or name.digest or self.upgrade is True:
            return reference
        before = parse_reference(self.old.base["reference"])
        return f"{reference}@{self.old.base['digest']}" if (before.name, before.tag) == (name.name, name.tag) \
            else reference

    def _debs(self, debian: Mapping[str, Any], *, essential: bool,
              status: bytes | None) -> tuple[tuple[LockedFile, ...], list[dict[str, str]]]:
        from lock.debs import DebRequest, LockedDeb, lock_debs
        from stages.fetching import archives

        self.log(f"  resolving Debian packages of {debian['suite']} with apt")
        request = DebRequest(
            debian["archive"], debian["suite"], tuple(debian["components"]), self.target.architecture,
            tuple(sorted(self.target.data["packages"])), essential=essential, security=debian["security"],
            updates=debian["updates"], snapshot=debian.get("snapshot"), installed_status=status)
        previous = [LockedDeb(d.name, d.version, d.architecture, d.file, d.size, d.sha256, d.index)
                    for d in (self.old.debs if self.old else ())]
        found = lock_debs(request, archives(self.project.root), previous=previous, upgrade=self.upgrade, log=self.log)
        return (tuple(LockedFile(d.name, d.version, d.file, d.size, d.sha256, d.index, d.architecture)
                      for d in found.debs), [dict(vars(state)) for state in found.suites])

    def emulator(self) -> tuple[tuple[LockedFile, ...], tuple[Mapping[str, str], ...]]:
        """What runs the image's programs on other machines: for the check `load`, which targets without torch skip, and
        for compiles.
        """
        from executors.emulator import rows
        from stages.fetching import archives

        wanted = [row for row in rows() if row.machine == ARCHITECTURES[self.target.architecture]]
        if not wanted or not ("torch" in self.target.data or self.target.recipes):
            return (), ()
        from lock.debs import DebRequest, LockedDeb, lock_debs

        debs: list[LockedFile] = []
        suites: list[Mapping[str, str]] = []
        known = archives(self.project.root)
        previous = [LockedDeb(d.name, d.version, d.architecture, d.file, d.size, d.sha256, d.index)
                    for d in (self.old.emulator if self.old else ())]
        for row in wanted:
            if row.archive not in known:
                self.log(f"  warning: no archive {row.archive} in targets/indexes.yaml: no emulator is locked, and on "
                         f"{row.host} the check load will be skipped")
                continue
            self.log(f"  resolving the emulator for {row.host} with apt")
            found = lock_debs(DebRequest(row.archive, row.suite, (row.component,), row.architecture, (row.package,),
                                         essential=False), known, previous=previous, upgrade=self.upgrade, log=self.log)
            # The program alone: it is static, and runs without what its package asks for.
            debs += [LockedFile(d.name, d.version, d.file, d.size, d.sha256, d.index, d.architecture)
                     for d in found.debs if d.name == row.package]
            suites += [dict(vars(state)) for state in found.suites]
        return tuple(debs), tuple(suites)

    def server(self) -> dict[str, Any]:
        """A Triton server out of an archive or an image."""
        from stages.server import resolve

        moves = self.upgrade is True or (self.upgrade is not False and "tritonserver" in self.upgrade)
        return resolve(self.project, self.target, self.old.server if self.old else {}, moves, self.log)

    def sources(self, base: Mapping[str, Any], python: Mapping[str, str], debs: tuple[LockedFile, ...]
                ) -> tuple[tuple[SourcePackage, ...], dict[str, dict[str, Any]]]:
        """Packages that are compiled; and where the target leaves that to `lock`, what was decided and why."""
        names = list(self.target.recipes)
        decisions: dict[str, dict[str, Any]] = {}
        if not names:
            return (), {}
        if self.target.data.get("vllm", {}).get("from") == "auto":
            why = self._against_the_wheel(base, python, debs)
            decisions["vllm"] = {"from": "source" if why else "wheel",
                                 "why": why or ["preflight lets the wheel of the index pass"]}
            self.log(f"  vllm: from {decisions['vllm']['from']}: {decisions['vllm']['why'][0]}")
            names = [name for name in names if name != "vllm" or why]
        from stages.resolve_sources import SourceParts

        described = self.target.data["base"]
        compiled = [name for name in names if "copy" not in self.target.recipes[name].data]
        if compiled and "debian" not in described:
            raise LockError("compilers are Debian packages, and the base is an image", where=self.target.files[0],
                            found=str(described.get("image")), cure="take base.debian for a target with sources")
        if compiled:
            self._runs_where_it_compiles()
        parts = SourceParts(self.project, self.target, self.old, self.log, self.upgrade, self.exclude_newer,
                            described.get("debian", {}), python)
        return tuple(parts.package(name) for name in names), decisions

    def _runs_where_it_compiles(self) -> None:
        """A compile runs the image's programs. Raises LockError: its machine cannot."""
        from executors.emulator import row_for
        from stages.resolve_sources import MACHINES

        execution = self.target.data["sources"]["execution"]
        wanted, host = self.target.machine, MACHINES[execution]
        if wanted != host and row_for(wanted, host) is None:
            raise LockError(f"no emulator is known that runs {wanted} programs on {host}", where=self.target.files[0],
                            expected=f"sources.execution {self.target.data['platform']}", found=execution,
                            cure=f"set sources.execution to {self.target.data['platform']}")

    def _against_the_wheel(self, base: Mapping[str, Any], python: Mapping[str, str], debs: tuple[LockedFile, ...]
                           ) -> list[str]:
        """What preflight has against vLLM's wheel, under the target's policy and waivers; nothing if it passes."""
        from stages.locked_source import SourcePackage
        from stages.preflight import preflight

        others = tuple(name for name in self.target.recipes if name != "vllm")
        try:
            wheels, files = self.wheels(python, (), skipped=others)
        except LockError as error:
            return [f"no set of wheels: {error.message}"]
        packages = self.target.data["sources"]["packages"]
        there = tuple(SourcePackage(name, packages[name]["version"], {"kind": "unresolved"}) for name in others)
        candidate = Lock(self.target.name, {}, base, python, debs, wheels, files, sources=there)
        self.log("  judging the wheel of vllm by its index")
        found = preflight(self.project, self.target, candidate, self.log)
        return [f"{one.check}: {one.weighed.finding.subject}: {one.weighed.finding.message}" for one in found.blocking]

    def wheels(self, python: Mapping[str, str], sources: tuple[SourcePackage, ...], skipped: tuple[str, ...] = ()
               ) -> tuple[tuple[LockedFile, ...], tuple[LockedFile, ...]]:
        """Wheels of the target, and those that are taken alone; of what is compiled, what it asks for.

        Args:
            skipped: packages from source that are left out for the time being.
        """
        from lock.wheels import WheelRequest
        from stages.resolve_wheels import locked_wheels

        data = self.target.data
        compiled = ({package.name for package in sources} | set(skipped)) - SERVER_PARTS.keys()
        pinned = {name: data[name] for name in ("torch", "vllm") if name in data and name not in compiled}
        if "package" in pinned.get("vllm", {}):
            vllm = pinned.pop("vllm")
            pinned[vllm["package"]] = vllm
        requirements = [f"{name}=={part['version']}" for name, part in pinned.items()]
        requirements += [line for package in sources for line in package.requirements]
        alone = [f"nvidia-pytriton=={data['triton']['version']}"] \
            if data.get("triton", {}).get("from") == "pytriton" else []
        if not (requirements or data["wheels"]["requirements"] or alone):
            return (), ()
        self.log("  resolving wheels with uv")
        index_of = dict(data["wheels"].get("indexes", {}))
        index_of |= {name: part["index"] for name, part in pinned.items()}
        if alone:
            index_of["nvidia-pytriton"] = data["triton"]["index"]
        request = WheelRequest(
            requirements=(*requirements, *data["wheels"]["requirements"]),
            overrides=(*(entry["requirement"] for entry in data["wheels"]["overrides"]),
                       # What is compiled is asked of no index, whoever requires it.
                       *(f"{name} ; python_version < '0'" for name in sorted(compiled)),
                       *(f"{entry['wheel']} ; python_version < '0'" for entry in data["wheels"].get("excluded", ()))),
            constraints=(), python=python["version"], machine=ARCHITECTURES[self.target.architecture],
            glibc=min(python["glibc"], data["python"]["glibc"], key=lambda v: tuple(map(int, v.split(".")))),
            index_of={name: index for name, index in index_of.items() if index != "default"}, alone=tuple(alone))
        return locked_wheels(
            self.project.root, request, (*self.old.wheels, *self.old.files) if self.old else (), self.upgrade,
            self.exclude_newer, f"targets/{self.target.name}.yaml", self.log)
