"""`rebuild:<target>[:stage]`: builds again beside what is stored, and compares byte for byte.

Every stage of the target (or the one) is built anew from the same inputs, those that the store has of the stages below.
What differs is told as deep as it can be: the path in a layer, the section of an ELF file, the line of a text; it goes
to the store's ledger (docs/formats/store.md), and the first result stays the one that counts.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import NondeterminismError, StageError
from cache.layer import LayerReader
from cache.record import Record
from cache.store import Store

if TYPE_CHECKING:
    from stages.tasks import Session

FORMAT = "stagecraft.rebuild.v1"

#: Differences told of one stage; the rest is counted.
_MOST = 20
_TEXT_LIMIT = 16 << 20
#: An output that is no layer is read whole up to here.
_WHOLE = 256 << 20
#: Seconds for diffoscope and one file.
_PATIENCE = 120


@dataclass(frozen=True)
class Difference:
    """One place where two results differ: `path` in the output (empty for the whole), and how."""

    output: str
    path: str
    what: str


def run(session: Session, target: str, name: str, as_json: bool) -> None:
    """Build again and compare; `name` of a stage, or "" for all.

    Raises:
        StageError: something is not built yet.
        NondeterminismError: an output differs.
    """
    from stages.commands import show

    graph = session.project.graph(target)
    chosen = [stage for stage in graph.stages if name in ("", stage.name)]
    session.busy = True
    told: list[dict[str, Any]] = []
    for stage in chosen:
        session.check_cancelled()
        if not session.uptodate(target, stage):
            raise StageError("there is nothing to compare with: it is not built", where=f"stage {stage.name}",
                             cure=f"./doit build:{target}")
        stored = session.records[target, stage.name]
        fresh = session.engine(target).rebuild(stage, session.known(target, stage))
        found = differences(session.project.store, stored, fresh)
        told.append({"stage": stage.name, "key": stored.key, "same": not found,
                     "ms": fresh.facts["ms"], "differences": [vars(item) for item in found[:_MOST]],
                     "more": max(0, len(found) - _MOST)})
        session.report.event("rebuilt", stage.name, target=target, same=not found, ms=fresh.facts["ms"],
                             text=f"{len(stage.builder.outputs)} outputs, " + ("the same bytes" if not found
                                                                              else "other bytes"))
    bad = [entry for entry in told if not entry["same"]]
    show({"format": FORMAT, "target": target, "stages": told}, _text(target, told), as_json)
    if bad:
        raise NondeterminismError(
            "built twice, two results", where=", ".join(f"stage {entry['stage']}" for entry in bad),
            expected="the same bytes", found=f"{sum(len(e['differences']) + e['more'] for e in bad)} differences",
            cure="find what the builder reads beside its inputs; the first result stays the one that counts")


def _text(target: str, told: list[dict[str, Any]]) -> str:
    lines = []
    width = max([10, *(len(entry["stage"]) for entry in told)])
    for entry in told:
        lines.append(f"{target}: {entry['stage']:<{width}} {'the same bytes' if entry['same'] else 'OTHER BYTES'}")
        lines += [f"  {item['output']}{': /' + item['path'] if item['path'] else ''}: {item['what']}"
                  for item in entry["differences"]]
        lines += [f"  and {entry['more']} more"] if entry["more"] else []
    return "\n".join(lines)


# -- comparing ------------------------------------------------------------------------------------


def differences(store: Store, stored: Record, fresh: Record) -> list[Difference]:
    """Where the outputs of two records differ; empty if they are the same."""
    found: list[Difference] = []
    for name, blob in stored.outputs.items():
        other = fresh.outputs.get(name)
        if other is None or other.digest == blob.digest:
            continue
        index = "index" if name == "layer" else f"{name}-index"
        if name == "index" or (name.endswith("-index") and name.removesuffix("-index") in stored.outputs):
            continue  # told by the layer that it describes
        if index in stored.outputs and index in fresh.outputs:
            found += [replace(item, output=name) for item in
                      _layers(store, stored.outputs[index].digest, fresh.outputs[index].digest)]
        elif max(blob.size, other.size) > _WHOLE:
            found.append(Difference(name, "", f"{blob.size} bytes then {other.size}, too large to look into"))
        else:
            found += [Difference(name, "", what) for what in _contents(store.read(blob.digest),
                                                                       store.read(other.digest))]
    if not found and stored.outputs_digest() != fresh.outputs_digest():
        found.append(Difference("index", "", "an index, not what it describes"))
    return found


def _layers(store: Store, one: str, other: str) -> Iterator[Difference]:
    with LayerReader(store, one) as left, LayerReader(store, other) as right:
        for path in sorted(left.entries.keys() | right.entries.keys()):
            ours, theirs = left.get(path), right.get(path)
            if ours is None or theirs is None:
                yield Difference("layer", path, "only in the first" if theirs is None else "only in the second")
                continue
            for key in sorted(ours.keys() | theirs.keys()):
                if key in ("offset", "digest", "size", "path") or ours.get(key) == theirs.get(key):
                    continue
                yield Difference("layer", path, f"{key}: {_value(key, ours)} then {_value(key, theirs)}")
            if ours["type"] == theirs["type"] == "file" and ours["digest"] != theirs["digest"]:
                for what in _contents(left.read(path), right.read(path)):
                    yield Difference("layer", path, what)


def _value(key: str, entry: Mapping[str, Any]) -> str:
    found = entry.get(key, 0 if key in ("uid", "gid") else "none")
    return f"{found:o}" if key == "mode" and isinstance(found, int) else str(found)


def _contents(one: bytes, other: bytes) -> Iterator[str]:
    """How two contents differ, in words."""
    if one[:4] == other[:4] == b"\x7fELF":
        yield from _sections(one, other)
    elif max(len(one), len(other)) <= _TEXT_LIMIT and b"\0" not in one[:4096] + other[:4096]:
        yield from _lines(one, other)
    else:
        yield _bytes(one, other)
    yield from _diffoscope(one, other)


def _bytes(one: bytes, other: bytes) -> str:
    if len(one) != len(other):
        return f"{len(one)} bytes then {len(other)}"
    at = next(number for number, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
    return f"byte {at:#x}: {one[at:at + 8].hex()} then {other[at:at + 8].hex()}"


def _lines(one: bytes, other: bytes) -> Iterator[str]:
    ours, theirs = one.splitlines(), other.splitlines()
    for number, (left, right) in enumerate(zip(ours, theirs, strict=False), start=1):
        if left != right:
            yield f"line {number}: {_short(left)} then {_short(right)}"
            return
    yield f"{len(ours)} lines then {len(theirs)}" if len(ours) != len(theirs) else _bytes(one, other)


def _short(line: bytes) -> str:
    return repr(line[:60].decode("utf-8", "replace"))


def _sections(one: bytes, other: bytes) -> Iterator[str]:
    """The sections of two ELF files that differ."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        ours, theirs = ({section.name: section.data() for section in ELFFile(io.BytesIO(data)).iter_sections()
                         if section["sh_type"] != "SHT_NOBITS"} for data in (one, other))
    except (ELFError, ValueError, AssertionError):
        yield _bytes(one, other)
        return
    differing = [name or "(no name)" for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    yield "ELF sections " + ", ".join(differing) if differing else "outside the ELF sections: " + _bytes(one, other)


def _diffoscope(one: bytes, other: bytes) -> Iterator[str]:
    """What diffoscope says, if it is there: the first lines."""
    program = shutil.which("diffoscope")
    if program is None:
        return
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory, name) for name in ("first", "second")]
        for path, data in zip(paths, (one, other), strict=True):
            path.write_bytes(data)
        try:
            said = subprocess.run([program, "--text", "-", "--max-report-size", "20000", *map(str, paths)],
                                  stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace",
                                  check=False, timeout=_PATIENCE).stdout
        except subprocess.TimeoutExpired:
            yield f"diffoscope: nothing after {_PATIENCE} s"
            return
    yield from (f"diffoscope: {line}" for line in said.splitlines()[3:23])
