"""Builder `source-tree`: a package's source with the trees that it would fetch, patched, split into two layers.

What a compile reads goes into `csrc`, the rest into `python`: a change of Python files alone leaves `csrc` as it was,
so that what is compiled from it is not compiled again (docs/vllm-from-source.md).

Inputs: `source` (an sdist, or the layer of a git tree), `tree/<name>` (layers of git trees), `patch/<nn>-<name>`, whose
paths are those of the source; `sources/<name>/…` are files of a tree.
Params: `strip` (directories at the front of every path of the source), `csrc` (globs of paths that a compile reads),
`stubs` (names that an empty tree stands for). Outputs: `csrc` and `python` (layers: `src/…` the source,
`sources/<name>/…` the trees, which go into `csrc`), their indexes `csrc-index` and `python-index`, and `facts` (JSON).

    {"format": "stagecraft.source.v1", "patches": [{"name", "files": {path: digest after it, or ""}}], "stubs": [...],
     "trees": {name: number of files}, "csrc": number of files, "python": number of files}
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import IO

from assemble.patch import apply, parse
from cache import canonical, untar
from cache.archive import LayerWriter
from cache.build import BuildContext
from cache.errors import InputError, IntegrityError
from cache.store import Blob, Store

FORMAT = "stagecraft.source.v1"

_LIMITS = untar.Limits(entries=500_000, total=16 << 30, climbing=True)


@dataclass(frozen=True)
class _File:
    """A file (`offset`, `size` in the spool, `mode`) or a symlink (`target`)."""

    offset: int = 0
    size: int = 0
    mode: int = 0o644
    target: str = ""


class _Spool:
    """Contents of files on disk, one behind the other: trees may be larger than memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def add(self, pieces: Iterable[bytes], mode: int) -> _File:
        offset = size = 0
        offset = self._file.seek(0, 2)
        for piece in pieces:
            size += self._file.write(piece)
        return _File(offset, size, 0o755 if mode & 0o111 else 0o644)

    def read(self, file: _File) -> bytes:
        self._file.seek(file.offset)
        return self._file.read(file.size)

    def unpack(self, store: Store, digest: str, where: str, strip: int) -> dict[str, _File]:
        """Files and symlinks of an archive in the store, without the first `strip` directories of their paths."""
        found: dict[str, _File] = {}
        with store.open_blob(digest) as stream:
            for entry in untar.entries(stream, where=where, limits=_LIMITS):
                path = "/".join(entry.path.split("/")[strip:])
                if not path or entry.type == "directory":
                    continue
                if path in found:
                    raise IntegrityError("two files have one name without the directories above them",
                                         where=f"{where}: {entry.path}", found=path)
                if entry.type == "symlink":
                    found[path] = _File(target=entry.target)
                elif entry.type == "hardlink":
                    there = found.get("/".join(entry.target.split("/")[strip:]))
                    if there is None:
                        raise IntegrityError("a hard link to what is not in the archive", where=f"{where}: {path}",
                                             found=entry.target)
                    found[path] = there
                else:
                    found[path] = self.add(entry.chunks(), entry.mode)
        return found


def build(context: BuildContext) -> Mapping[str, Blob]:
    """See the module text.

    Raises:
        InputError: a patch does not apply exactly once; no file of the source is one that a compile reads.
        IntegrityError: an archive is malformed.
    """
    params, store = context.params, context.store
    with tempfile.TemporaryFile(dir=store.directory("tmp")) as file:
        spool = _Spool(file)
        files = spool.unpack(store, context.inputs["source"], "the source", params["strip"])
        names = sorted(key.partition("/")[2] for key in context.inputs if key.startswith("tree/"))
        for name in names:
            _beside(files, name, spool.unpack(store, context.inputs[f"tree/{name}"], name, 0))
        patched = _patch(context, spool, files)
        for name in params["stubs"]:
            _beside(files, name, {})  # a patch may have made files there
        fetched = {name: {path for path in files if path.startswith(f"sources/{name}/")} for name in names}
        source = {path: files[path] for path in files.keys() - set().union(*fetched.values())}
        csrc = {path for path in source if any(fnmatchcase(path, glob) for glob in params["csrc"])}
        if not csrc:
            raise InputError("no file of the source is one that a compile reads", expected=", ".join(params["csrc"]),
                             found=f"{len(source)} files", cure="correct the patterns, or the depth to strip")
        for glob in params["csrc"]:
            if not any(fnmatchcase(path, glob) for path in csrc):
                context.log(f"csrc: no file fits {glob}")
        tree: dict[str, _File | None] = {f"src/{path}": source[path] for path in csrc}
        counts = {name: len(paths) for name, paths in fetched.items()}
        tree |= {path: files[path] for paths in fetched.values() for path in paths}
        tree |= {f"sources/{name}": None for name in params["stubs"]}
        outputs = dict(zip(("csrc", "csrc-index"), _layer(store, spool, tree), strict=True))
        rest = {f"src/{path}": found for path, found in source.items() if path not in csrc}
        outputs |= dict(zip(("python", "python-index"), _layer(store, spool, rest), strict=True))
    facts = {"format": FORMAT, "patches": patched, "stubs": sorted(params["stubs"]), "trees": counts,
             "csrc": len(csrc), "python": len(rest)}
    context.log(f"{len(csrc)} files that a compile reads, {len(rest)} others, {sum(counts.values())} of fetched trees")
    return {**outputs, "facts": store.put(canonical.dumps(facts))}


def _beside(files: dict[str, _File], name: str, tree: Mapping[str, _File]) -> None:
    """Add a tree to the source's files, where a patch finds it."""
    place = f"sources/{name}/"
    taken = next((path for path in files if path.startswith(place)), None)
    if taken is not None:
        raise InputError("the source has files where the tree belongs, or the empty one that stands for it", where=name,
                         found=taken)
    files.update({place + path: file for path, file in tree.items()})


def _patch(context: BuildContext, spool: _Spool, files: dict[str, _File]) -> list[dict[str, object]]:
    """Apply every patch in the order of its name; what each made of its files."""
    told: list[dict[str, object]] = []
    for key in sorted(key for key in context.inputs if key.startswith("patch/")):
        name = key.partition("/")[2]
        patches = parse(context.store.read(context.inputs[key]), name)
        touched = {path for patch in patches for path in (patch.before, patch.after) if path in files}
        links = sorted(path for path in touched if files[path].target)
        if links:
            raise InputError("a patch of a symlink", where=f"{name}: {links[0]}", cure="patch the file it points to")
        changed = apply({path: spool.read(files[path]) for path in touched}, patches, name)
        made = {}
        for path, content in changed.items():
            if content is None:
                del files[path]
            else:
                files[path] = spool.add([content], files[path].mode if path in files else 0o644)
            made[path] = canonical.sha256(content) if content is not None else ""
        context.log(f"patch {name}: {len(made)} files")
        told.append({"name": name, "files": made})
    return told


def _layer(store: Store, spool: _Spool, files: Mapping[str, _File | None]) -> Sequence[Blob]:
    """A layer and its index; None is an empty directory."""
    above = {path[:at] for path in files for at, sign in enumerate(path) if sign == "/"}
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(LayerWriter(store))
        for path in sorted(above | files.keys(), key=str.encode):
            found = files.get(path)
            if found is None:
                writer.directory(path)
            elif found.target:
                writer.symlink(path, found.target)
            else:
                writer.file(path, found.size, [spool.read(found)], found.mode)
        layer = writer.finish()
    return layer.layer, layer.index
