"""`coverage:<target>`: which device code the image's libraries hold, and how it serves the device.

The table that people make by hand with cuobjdump. Of vLLM's libraries, and of those that are named, every kernel is
counted; of the others only the headers are read. The format `stagecraft.coverage.v1` is in docs/formats/coverage.md.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cache.errors import InputError
from cache.layer import LayerReader
from checks import facts
from checks.kernels import DamagedCodeError, DeviceCode, Headers, device_codes, headers
from checks.loadability import Device, Way, way
from checks.registry import WHEEL_STAGES
from stages.schema import nearest

if TYPE_CHECKING:
    from cache.store import Store
    from stages.tasks import Session

FORMAT = "stagecraft.coverage.v1"


@dataclass(frozen=True)
class Row:
    """Code for one target: `count` kernels, or parts where only headers were read."""

    target: str
    count: int
    way: Way


@dataclass(frozen=True)
class Library:
    """The device code of a library.

    Attributes:
        unit: "kernels", or "parts": containers of code, of which only the headers were read.
        ways: how many of them load how; a kernel counts once, under the best.
        damaged: why its code cannot be read.
        unneeded: why the device does without it (vllm/extensions.yaml).
    """

    path: str
    stage: str
    unit: str
    ways: Mapping[Way, int] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    damaged: str = ""
    unneeded: str = ""

    @property
    def total(self) -> int:
        return sum(self.ways.values())

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "stage": self.stage, "unit": self.unit, "damaged": self.damaged,
                "unneeded": self.unneeded,
                "loads": {found.word: self.ways[found] for found in sorted(self.ways, reverse=True)},
                "code": [{"target": row.target.partition("@")[0], "isa": row.target.partition("@")[2],
                          "count": row.count, "loads": row.way.word} for row in self.rows]}


def run(session: Session, target: str, names: Sequence[str], as_json: bool) -> None:
    """`coverage:<target> [PATH…]`; a path is below the site directory, or from the image's root.

    Raises:
        InputError: the target has no GPU, or a path is no file of the image's wheels.
    """
    from stages.commands import show

    project = session.project
    _gpu_of(target, project.target(target).data)  # before the lock is asked for
    indexes = {stage: session.records[target, stage].outputs["index"].digest for stage in WHEEL_STAGES
               if (target, stage) in session.records}
    data, words = report(project.store, target, project.target(target).data, project.lock_data(target), indexes, names)
    show(data, words, as_json)


def report(store: Store, name: str, target: Mapping[str, Any], lock: Mapping[str, Any], indexes: Mapping[str, str],
           names: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """The document, and the same as text.

    Args:
        name, target, lock: the target's, as plain data.
        indexes: stage to the digest of its layer's index.

    Raises:
        InputError: the target has no GPU, or one of `names` is no file of these layers.
    """
    device, cuda = _gpu_of(name, target), str(target["device"]["cuda"])
    given, site = facts.device_code(target, lock), lock["python"]["site"]
    unneeded = {f"{site}/{row['file']}": row["why"] for row in given["others"]}
    libraries = [replace(library, unneeded=unneeded.get(library.path, ""))
                 for library in survey(store, indexes, device, site, names)]
    data = {"format": FORMAT, "target": name,
            "device": {"capability": device.capability, "cuda": cuda, "isa": device.isa},
            "libraries": [library.to_json() for library in libraries]}
    head = (f"{name}: compute capability {device.capability}; its driver, of CUDA {cuda}, compiles PTX up to "
            f"{device.isa or '(not known)'}")
    return data, "\n".join([head, *text(libraries, site)])


def _gpu_of(name: str, target: Mapping[str, Any]) -> Device:
    given = facts.device(target)
    if not given["capability"]:
        raise InputError(f"{name} has no GPU", where=f"targets/{name}.yaml", found="device.compute_capability: none")
    return Device.of(given)


def survey(store: Store, indexes: Mapping[str, str], device: Device, site: str,
           names: Sequence[str] = ()) -> list[Library]:
    """The libraries of these layers, or only the named ones.

    Raises:
        InputError: a name is no file of these layers.
    """
    left = list(names)
    found: list[Library] = []
    seen: list[str] = []
    for stage, index in indexes.items():
        with LayerReader(store, index) as layer:
            chosen = {path: name for name in left for path in (f"{site}/{name}", name.lstrip("/"))
                      if (entry := layer.resolve(path)) is not None and entry["type"] == "file"}
            left = [name for name in left if name not in chosen.values()]
            known = headers(store, layer, index)
            seen += [path.removeprefix(f"{site}/") for path in known]
            whole = list(chosen) if names else list(known) if stage == "vllm" else []
            codes = device_codes(store, layer, whole)
            found += [_by_kernels(path, stage, codes[path], device) for path in whole]
            if not names:
                found += [_by_headers(path, stage, known[path], device) for path in known if path not in codes]
    if left:
        guess = nearest(left[0], seen)
        raise InputError(f"no such file in the layers of the wheels: {left[0]}",
                         expected="a path below the site directory (vllm/_C.abi3.so) or from the image's root",
                         cure=f"did you mean {guess}?" if guess else None)
    return sorted(found, key=lambda library: (library.stage != "vllm", library.path))


def _by_kernels(path: str, stage: str, code: DeviceCode | DamagedCodeError, device: Device) -> Library:
    if isinstance(code, DamagedCodeError):
        return Library(path, stage, "kernels", damaged=str(code))
    return Library(path, stage, "kernels", _counted(code.ways(device).values()), _rows(code.targets, device))


def _by_headers(path: str, stage: str, found: Headers, device: Device) -> Library:
    counts: dict[str, int] = {}
    for targets, number in found.containers:
        for target in targets:
            if " " not in target:
                counts[target] = counts.get(target, 0) + number
    return Library(path, stage, "parts", dict(found.ways(device)), _rows(counts, device), found.damaged)


def _counted(ways: Iterable[Way]) -> dict[Way, int]:
    found: dict[Way, int] = {}
    for one in ways:
        found[one] = found.get(one, 0) + 1
    return found


def _rows(counts: Mapping[str, int], device: Device) -> tuple[Row, ...]:
    rows = [Row(target, number, way(target, device)) for target, number in counts.items()]
    return tuple(sorted(rows, key=lambda row: (-row.way, row.target.startswith("compute"), _order(row.target))))


def _order(target: str) -> tuple[int, str]:
    name = target.partition("@")[0].partition("_")[2]
    return int(name.rstrip("af")), target


def text(libraries: Sequence[Library], site: str) -> list[str]:
    """For people, 80 columns: vLLM's libraries and the named ones in full, a line for each other."""
    lines: list[str] = []
    for library in libraries:
        if library.unit == "kernels":
            lines += ["", *_full(library, site)]
    others = [library for library in libraries if library.unit == "parts"]
    if others:
        lines += ["", "Other libraries, by their headers: parts that load, of all, and how"]
    for library in others:
        name = _cut(library.path.removeprefix(f"{site}/"), 46)
        loads = {found: number for found, number in library.ways.items() if found > Way.NEWER_PTX}
        said = library.damaged or f"{sum(loads.values()):>5} of {library.total:<5} {_ways(loads)}".rstrip()
        lines += [f"{name:<46} {said}"] if len(said) <= 33 else \
            [f"{name:<46} {said[:14].rstrip()}", *textwrap.wrap(said[14:], 79, initial_indent=" " * 8,
                                                              subsequent_indent=" " * 8)]
    return lines


def _full(library: Library, site: str) -> list[str]:
    name = library.path.removeprefix(f"{site}/")
    if library.damaged:
        return [name, f"  its device code cannot be read: {library.damaged}"]
    lines = [name, f"  {library.total} kernels: {_ways(library.ways)}" if library.total else "  no device code"]
    lines += textwrap.wrap(f"not needed: {library.unneeded}", 79, initial_indent="  ", subsequent_indent="  ") \
        if library.unneeded else []
    for row in library.rows:
        if row.way is Way.NONE:
            continue
        target, _, isa = row.target.partition("@")
        lines.append(f"  {target:<14} {'PTX ' + isa if isa else '':<8} {row.count:>7}  {row.way.word}")
    rest = ", ".join(f"{row.target}\N{NO-BREAK SPACE}{row.count}" for row in library.rows if row.way is Way.NONE)
    lines += [line.replace("\N{NO-BREAK SPACE}", " ") for line in textwrap.wrap(
        rest, 79, initial_indent="  for others:   ", subsequent_indent=" " * 16, break_long_words=False,
        break_on_hyphens=False)]
    return lines


def _ways(ways: Mapping[Way, int]) -> str:
    return ", ".join(f"{ways[found]} {found.word}" for found in sorted(ways, reverse=True))


def _cut(words: str, width: int) -> str:
    return words if len(words) <= width else "…" + words[-width + 1:]
