"""Builder `server-tree`: files below one directory of a tar, or of an image's layers, as a deterministic layer.

For Triton's server tree out of a release's archive or out of an image, and for files of a Git tree. What an archive of
another holds is not run, nor unpacked; whiteouts count as the OCI image specification says.

Inputs: `archive/<nn>` (tars, lowest first, plain or compressed). Params: `diff_ids` (digest of each uncompressed, or
[]), `at` (the directory, or "" for the one in which `anchor` lies), `anchor` (a path below it), `root` (where in the
layer its files go), `keep` and `drop` (globs of paths below it; the second wins), `required` (paths that must be
there), `packages` (what the output `packages` lists; a version of "" is that of the file TRITON_VERSION), `release`
(the version that is listed where that file is not; need not be there). Outputs: `layer`, `index`, `packages`. Files
keep whether they are executable and nothing else.
"""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import IO, Any

from cache import canonical, untar
from cache.archive import LayerWriter
from cache.build import BuildContext
from cache.errors import IntegrityError
from cache.layer import LayerReader
from cache.store import Blob
from oci.merge import Item, Merged

_PIECE = 1 << 20


class _Spooled(Merged):
    """A root file system whose files' contents are on disk, one behind the other."""

    def __init__(self, file: IO[bytes], wanted: str) -> None:
        super().__init__(lambda path: False)
        self._file, self._wanted = file, wanted
        self._offsets: dict[str, int] = {}

    def _add(self, entry: untar.Entry, below: set[str]) -> None:
        super()._add(entry, below)
        parent, _, name = entry.path.rpartition("/")
        parent = self.real(parent)
        path = f"{parent}/{name}" if parent else name
        if entry.type == "file" and path.startswith(self._wanted):
            self._offsets[path] = self._file.seek(0, 2)
            for piece in entry.chunks():
                self._file.write(piece)

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        """The content of a file."""
        self._file.seek(self._offsets[path])
        while size:
            piece = self._file.read(min(size, _PIECE))
            size -= len(piece)
            yield piece

    def has(self, path: str) -> bool:
        return path in self._offsets


def build(context: BuildContext) -> Mapping[str, Blob]:
    """See the module text.

    Raises:
        IntegrityError: an archive is malformed, or not the one that the image names; it holds no such tree, several of
            them, or not all that is required.
    """
    params, store = context.params, context.store
    with tempfile.TemporaryFile(dir=store.directory("tmp")) as file:
        tree = _read(context, file, params["at"])
        at = tree.real(params["at"]) if params["at"] else _at(tree, params["anchor"])
        if params["at"] and at != params["at"]:  # a link leads there
            tree = _read(context, file, at)
        taken = _taken(tree, at, params)
        lacking = [path for path in params["required"] if path not in taken]
        if lacking:
            raise IntegrityError("the archive lacks a part of the server", where=f"/{at}" if at else "the archive",
                                 expected=", ".join(lacking), found=f"{len(taken)} files",
                                 cure="take an archive or image of a server with a Python backend; its address and "
                                      "digest are in the section triton of the target")
        layer = _layer(context, tree, taken, params["root"])
    listed = [dict(one) for one in params["packages"]]
    for one in listed:
        if not one["version"]:
            said = _text(context, layer[1], f"{params['root']}/TRITON_VERSION") if "TRITON_VERSION" in taken else ""
            one["version"] = said or params.get("release", "")
    context.log(f"{len(taken)} files of /{at}")
    packages = store.put(canonical.dumps({"format": "stagecraft.packages.v1", "packages": listed}))
    return {"layer": layer[0], "index": layer[1], "packages": packages}


def _read(context: BuildContext, file: IO[bytes], wanted: str) -> _Spooled:
    """All archives over each other, with the contents of files whose path begins so."""
    digests = [context.inputs[name] for name in sorted(context.inputs) if name.startswith("archive/")]
    known = context.params["diff_ids"] or [""] * len(digests)
    where = "layer {} of the server's image" if context.params["diff_ids"] else "the server's archive"
    tree = _Spooled(file, wanted)
    for number, (digest, diff_id) in enumerate(zip(digests, known, strict=True)):
        with context.store.open_blob(digest) as stream:
            tree.add_layer(stream, diff_id, where.format(number))
        context.progress(number + 1, len(digests))
    return tree


def _text(context: BuildContext, index: Blob, path: str) -> str:
    """A small file of a layer that was just made, stripped; "" for none."""
    with LayerReader(context.store, index.digest) as reader:
        entry = reader.resolve(path)
        return reader.read(path).decode("utf-8", "replace").strip() if entry and entry["type"] == "file" else ""


def _at(tree: Merged, anchor: str) -> str:
    """The one directory in which the anchor lies. Raises IntegrityError: there is none, or there are several."""
    found = sorted(path.removesuffix(anchor).rstrip("/") for path, item in tree.items.items()
                   if item.type == "file" and (path == anchor or path.endswith(f"/{anchor}")))
    if len(found) != 1:
        raise IntegrityError("the archive has not exactly one server in it", where="the archive", expected=anchor,
                             found=", ".join(f"/{path}/{anchor}" for path in found[:5]) or f"{len(tree.items)} paths",
                             cure="is it an archive of a Triton server, and not of clients?")
    return found[0]


def _taken(tree: _Spooled, at: str, params: Mapping[str, Any]) -> dict[str, tuple[str, Item]]:
    """Path below the directory to where its content lies, and what it is."""
    found: dict[str, tuple[str, Item]] = {}
    start = f"{at}/" if at else ""
    for path, item in tree.items.items():
        below = path.removeprefix(start)
        if (start and below == path) or item.type not in ("file", "symlink", "hardlink"):
            continue
        if not _fits(below, params["keep"]) or _fits(below, params["drop"]):
            continue
        place = path
        while item.type == "hardlink":
            place = item.target
            item = tree.items[place]
        if item.type == "file" and not tree.has(place):
            raise IntegrityError("a file of the server is a link to one outside of it", where=f"/{path}",
                                 found=f"/{place}")
        found[below] = (place, item)
    return found


def _fits(path: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _layer(context: BuildContext, tree: _Spooled, taken: Mapping[str, tuple[str, Item]],
           root: str) -> tuple[Blob, Blob]:
    files = {posixpath.join(root, path): entry for path, entry in taken.items()}
    above = {path[:at] for path in files for at, sign in enumerate(path) if sign == "/"}
    with LayerWriter(context.store) as writer:
        for path in sorted(above | files.keys(), key=str.encode):
            if path not in files:
                writer.directory(path)
                continue
            place, item = files[path]
            if item.type == "symlink":
                writer.symlink(path, item.target)
            else:
                writer.file(path, item.size, tree.pieces(place, item.size), 0o755 if item.mode & 0o111 else 0o644)
        layer = writer.finish()
    return layer.layer, layer.index
