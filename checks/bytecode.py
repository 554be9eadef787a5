"""Check `bytecode`: what the layer `bytecode` holds is bytecode of the modules beside it, and nothing else.

Python takes an unchecked hash-based file (PEP 552) without looking at the source, so one of another source would run
instead of it, for ever. Evidence is the first 16 bytes of each: the number of the Python, the flags, and the hash of
the source, which is computed again from the source in the layer that has it. What follows them is not judged: the
stage makes it, and it is the same from run to run. A layer that leaves most modules out was made wrong too: what is
below the image's site directory is counted.
"""

from __future__ import annotations

import _imp
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from cache.layer import LayerReader, read_index
from checks.registry import LAYER_STAGES
from checks.tree import BASE, ImageTree, indexes
from checks.verdict import CheckInputs, Finding, SkippedError

STAGE = "bytecode"
_HEADER = 16
_UNCHECKED = (1).to_bytes(4, "little")
#: SipHash-1-3 of nothing, keyed with 1. Python 3.10 has SipHash-2-4 there.
_KNOWN = bytes.fromhex("8125964ebf0e4ac4")
_AGAIN = "build the layer again; ./doit store:verify says whether the store was altered"

#: Why a file must not be there, by subject: what is said of it, and what to do.
_WRONG = {
    "python": ("not of the image's Python", "build the layer again"),
    "flags": ("not unchecked and hash-based: Python would look at the source each time", "build the layer again"),
    "stale": ("of another source than the one beside it, which Python would not notice", _AGAIN),
    "source": ("without a source beside it", _AGAIN),
    "stray": ("no bytecode", "only __pycache__ belongs into this layer"),
    "hides": ("in the place of what a layer below has there", "only what has no bytecode yet gets some"),
    "directory": ("a directory that no layer below has, or that is otherwise there", "build the layer again"),
    "few": ("most modules there have no bytecode, so that each start compiles them", "build the layer again; its log "
            "says what was compiled, and for which directories"),
    "above": ("the source of bytecode, changed by a layer above it", "let that layer come before bytecode"),
}


def run(inputs: CheckInputs) -> list[Finding]:
    """A finding per kind of fault, with the first file and how many there are. Subjects: the keys of `_WRONG`;
    `python` also if that Python is not known here; `base image` (only told) for sources that are in it.

    Raises:
        SkippedError: this Python hashes otherwise.
    """
    version, number = inputs.facts["python"], inputs.facts["magic"]
    if not number:
        return [Finding("error", "python", f"nobody has looked at the bytecode of Python {version}", "",
                        "add a row to checks/data/bytecode.yaml, or set bytecode: false")]
    if _imp.source_hash(1, b"") != _KNOWN:
        raise SkippedError("the hash of sources that this Python has is another one", "run it by Python 3.11 or newer")
    magic = int(number).to_bytes(2, "little") + b"\r\n"
    order = (BASE, *LAYER_STAGES)
    at = order.index(STAGE)
    wrong: dict[str, list[str]] = {}
    unread = 0
    with ImageTree(inputs.store, indexes(inputs.outputs, order[:at]), inputs.facts["base"]) as tree, \
            LayerReader(inputs.store, inputs.outputs[f"{STAGE}/index"]) as layer:
        above = {entry["path"]: stage for stage, index in indexes(inputs.outputs, order[at + 1:]).items()
                 for entry in read_index(inputs.store, index) if entry["type"] != "directory"}
        suffix = f".cpython-{version.replace('.', '')}.pyc"
        if _few(tree.entries, layer.entries, inputs.facts["site"], suffix):
            wrong.setdefault("few", []).append(inputs.facts["site"])
        for path, entry in layer.entries.items():
            below = tree.entries.get(path)
            for subject in _place(path, entry, below, suffix):
                wrong.setdefault(subject, []).append(path)
            if entry["type"] != "file" or not path.endswith(suffix):
                continue
            source = source_of(path, suffix)
            if source in above:
                wrong.setdefault("above", []).append(source)
            if tree.entries.get(source, {}).get("type") not in ("file", "hardlink"):
                wrong.setdefault("source", []).append(path)
            elif tree.readable(source):
                subject = judge(layer.peek(entry, _HEADER), magic, tree.read(source))
                if subject:
                    wrong.setdefault(subject, []).append(path)
            else:
                unread += 1
    found = [_finding(subject, paths) for subject, paths in wrong.items()]
    if unread:
        found.append(Finding("info", "base image", f"{unread} sources are in the base image, and not read"))
    return found


def source_of(path: str, suffix: str) -> str:
    """The source that bytecode at a path is taken for."""
    directory, name = posixpath.split(path)
    return f"{posixpath.dirname(directory)}/{name.removesuffix(suffix)}.py"


def bytecode_of(path: str, suffix: str) -> str:
    """Where Python looks for the bytecode of a source."""
    directory, name = posixpath.split(path)
    return f"{directory}/__pycache__/{name.removesuffix('.py')}{suffix}"


def judge(header: bytes, magic: bytes, source: bytes) -> str:
    """What is wrong with bytecode that begins so, beside that source: `python`, `flags`, `stale`; or nothing. Pure."""
    if header[:4] != magic:
        return "python"
    if header[4:8] != _UNCHECKED:
        return "flags"
    return "" if header[8:] == _imp.source_hash(int.from_bytes(magic, "little"), source) else "stale"


def _few(below: Mapping[str, Any], layer: Mapping[str, Any], site: str, suffix: str) -> bool:
    """True if no bytecode is there at all, or less than half of the site directory's modules have some."""
    modules = [path for path, entry in below.items() if path.startswith(f"{site}/") and path.endswith(".py")
               and entry["type"] in ("file", "hardlink")
               and all(part.isidentifier() for part in path[len(site) + 1:-3].split("/"))]
    wanted = [bytecode_of(path, suffix) for path in modules]
    there = sum(path in layer or path in below for path in wanted)
    return 2 * there < len(wanted) or not any(path.endswith(suffix) for path in layer)


def _place(path: str, entry: Mapping[str, Any], below: Mapping[str, Any] | None, suffix: str) -> Iterator[str]:
    directory, name = posixpath.split(path)
    if entry["type"] == "directory":
        kept = below is not None and all(below.get(key) == entry.get(key) for key in ("type", "mode", "uid", "gid"))
        if not kept and (below is not None or name != "__pycache__"):
            yield "directory"
        return
    if below is not None:
        yield "hides"
    if entry["type"] != "file" or not name.endswith(suffix) or posixpath.basename(directory) != "__pycache__":
        yield "stray"


def _finding(subject: str, paths: list[str]) -> Finding:
    what, cure = _WRONG[subject]
    more = f", and {len(paths) - 1} more" if len(paths) > 1 else ""
    return Finding("error", subject, f"/{paths[0]}{more}: {what}", f"/{paths[0]}", cure)
