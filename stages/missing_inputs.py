"""Which inputs of a target cannot be had, all of them at once: what `lock` says when one of them ends it.

Asks each archive of packages and each index of wheels that the target names whether it answers, side by side. Writes
nothing. Pinned sources of what is compiled are named by `lock.source_lock`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache.errors import FetchError, InputError, StagecraftError, ToolError
from stages.project import Project
from stages.target import Target

if TYPE_CHECKING:
    from lock.debs import DebRequest

_SECONDS = 10


@dataclass(frozen=True)
class Missing:
    """An input that cannot be had.

    Attributes:
        what: for people: `wheels of torch, vllm`.
        index: its name in targets/indexes.yaml.
        said: an address that was tried, and what came of it; or why there is no address.
        cure: what to do.
    """

    what: str
    index: str
    said: str
    cure: str

    def line(self) -> str:
        return f"{self.what} (index {self.index}): {self.said}"


def all_of_them(project: Project, target: Target, error: StagecraftError, only: str = "") -> StagecraftError:
    """The error for everything that is missing, if that is more than what `error` says; else `error`.

    Args:
        only: the part of the lock that is resolved, as `lock` takes it.
    """
    about_inputs = isinstance(error, FetchError | ToolError) or (
        isinstance(error, InputError) and "targets/indexes.yaml" in (error.where or ""))
    if not about_inputs:
        return error
    found = missing(project, target, only)
    lines = [one.line() for one in found]
    cures = [one.cure for one in found]
    words = f"{error.message} {error.where or ''} "
    if not any(error.message in one.said or f"{one.index} " in words for one in found):
        lines.insert(0, f"{error.message}" + (f" ({error.where})" if error.where else ""))
        cures.insert(0, error.cure or "")
    if len(lines) < 2:
        return error
    return FetchError(f"{len(lines)} inputs of {target.name} cannot be had; nothing was locked", where=target.files[0],
                      found="\n".join(lines), cure="\n".join(dict.fromkeys(filter(None, cures))))


def missing(project: Project, target: Target, only: str = "") -> list[Missing]:
    """Ask for each input; what cannot be had, in the order in which `lock` reads them."""
    questions: list[Callable[[], list[Missing]]] = []
    if only in ("", "debs", "sources"):
        questions += [_archive(project, request, "Debian packages of the base") for request in _base(target)]
    if only in ("", "wheels", "sources"):
        questions += [_wheels(project, index, names) for index, names in wheels_by_index(target).items()]
    if only in ("", "emulator"):
        questions += [_archive(project, request, f"the emulator for {request.architecture} machines")
                      for request in _emulators(target)]
    with ThreadPoolExecutor(max(1, len(questions))) as pool:
        answers = [pool.submit(question) for question in questions]
        return list(dict.fromkeys(one for answer in answers for one in answer.result()))


def wheels_by_index(target: Target) -> dict[str, list[str]]:
    """Index to the packages that the target takes from it by name; `default` has all the others."""
    data = target.data
    parts = {"torch": "torch", "vllm": "vllm", "triton": "nvidia-pytriton"}
    asked = {data[part].get("package", name): data[part]["index"] for part, name in parts.items()
             if part in data and (part != "triton" or data[part]["from"] == "pytriton")}
    asked |= data["wheels"].get("indexes", {})
    found: dict[str, list[str]] = {}
    for name, index in sorted(asked.items()):
        found.setdefault(index, []).append(name)
    if found or data["wheels"]["requirements"]:
        found["default"] = ["all other packages"]
    return found


def _base(target: Target) -> list[DebRequest]:
    from lock.debs import DebRequest

    described = target.data["base"].get("debian")
    return [] if described is None else [DebRequest(
        described["archive"], described["suite"], tuple(described["components"]), target.architecture, (),
        security=described["security"], updates=described["updates"], snapshot=described.get("snapshot"))]


def _emulators(target: Target) -> list[DebRequest]:
    from executors.emulator import rows
    from lock.debs import DebRequest

    if not ("torch" in target.data or target.recipes):
        return []
    return [DebRequest(row.archive, row.suite, (row.component,), row.architecture, (row.package,), essential=False)
            for row in rows() if row.machine == target.machine]


def _archive(project: Project, request: DebRequest, what: str) -> Callable[[], list[Missing]]:
    def ask() -> list[Missing]:
        from lock.apt_archive import keyring
        from lock.debs import suites_of
        from stages.fetching import archives

        named, name = f"{what}, {request.suite}, {request.architecture}", request.distribution
        known = archives(project.root)
        if name not in known:
            return []  # said by `lock` itself: the emulator is then left out
        found = []
        try:
            for suite in suites_of(request, known[name]):
                said = _answer(f"{suite.url}dists/{suite.suite}/InRelease")
                if said:
                    found.append(Missing(named, suite.index, said, f"{_variable(suite.index)}=URL of a mirror that has "
                                         f"{request.architecture}"))
        except InputError as error:
            found.append(Missing(named, name, f"{error.message}; {error.found}", error.cure or ""))
        try:
            keyring(known[name])
        except (InputError, ToolError) as error:
            found.append(Missing(named, name, f"{error.message}: {error.expected}", error.cure or ""))
        return found

    return ask


def _wheels(project: Project, index: str, names: list[str]) -> Callable[[], list[Missing]]:
    def ask() -> list[Missing]:
        from lock.indexes import load_indexes
        from lock.simple import probe
        from lock.sources import bare

        indexes = load_indexes(project.root / "targets" / "indexes.yaml")
        entry = indexes.wheels(index)
        said = probe(indexes, index)
        places = ", ".join(bare(place) for place in (*entry.pages, *entry.links))
        return [Missing(f"wheels of {', '.join(names)}", index, f"{places}: {said}",
                        f"{_variable(index)}=URL of a copy of it, or a directory (file:///…)")] if said else []

    return ask


def _answer(url: str) -> str:
    """Empty if there is something at `url`; else the address and what is wrong."""
    import requests

    from lock.sources import bare
    from lock.transfer import in_words

    if not url.startswith(("http://", "https://")):
        return ""
    try:
        with requests.head(url, timeout=_SECONDS, allow_redirects=True) as answer:
            return f"{bare(url)}: status {answer.status_code}" if answer.status_code >= 400 else ""
    except requests.RequestException as error:
        return f"{bare(url)}: {in_words(error)}"


def _variable(index: str) -> str:
    from lock.indexes import variable

    return variable(index)
