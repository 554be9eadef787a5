"""Builder `tools-layer`: Debian packages of one machine as programs to run inside a root of another.

A cross compiler of the machine that compiles, laid over the root of the target: its programs go below a prefix, away
from the target's own, and what its dynamic loader looks for goes where that loader looks (`in_place`). Maintainer
scripts count for nothing; `links` are what they, or a user, would have made (`cc`, `c++`, `ld`).

Inputs: `debs/<file>`. Params: `prefix` (`cross`), `architecture` of the packages, `in_place` and `skip` (globs of
paths), `links` (path in the layer to target). Outputs: `layer`, `index`, `packages`.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import IO, Any

from assemble import dpkg
from assemble.deb_file import DebReader, Member
from cache import canonical
from cache.archive import LayerWriter
from cache.build import BuildContext
from cache.errors import InputError, IntegrityError
from cache.store import Blob

#: A root whose /usr is merged has these as links.
_MERGED = ("bin", "sbin", "lib")

_PIECE = 1 << 20


@dataclass(frozen=True)
class _Placed:
    member: Member
    package: str


def build(context: BuildContext) -> Mapping[str, Blob]:
    """See the module text.

    Raises:
        IntegrityError: a package is malformed, or for another machine; two of them differ in a file.
        InputError: a link is in the way of a file.
    """
    params, store = context.params, context.store
    placed: dict[str, _Placed] = {}
    packages = []
    with tempfile.TemporaryFile(dir=store.directory("tmp"), buffering=0) as spool:
        for key in sorted(key for key in context.inputs if key.startswith("debs/")):
            name = key.partition("/")[2]
            with store.open_blob(context.inputs[key]) as source:
                reader = DebReader(source, name)
                deb = reader.control()
                fields = dpkg.control_fields(deb.control, name)
                if fields["Architecture"] not in ("all", params["architecture"]):
                    raise IntegrityError("a package is for another architecture", where=name,
                                         expected=params["architecture"], found=fields["Architecture"])
                packages.append({"type": "deb", "name": fields["Package"], "version": fields["Version"],
                                 "architecture": fields["Architecture"], "file": name, "digest": context.inputs[key]})
                for member in reader.spool(spool):
                    _place(placed, member, fields["Package"], params, spool)
        context.log(f"{len(packages)} packages, {len(placed)} paths")
        layer = _write(context, placed, spool)
    listed = store.put(canonical.dumps({"packages": packages}))
    return {"layer": layer[0], "index": layer[1], "packages": listed}


def _place(placed: dict[str, _Placed], member: Member, package: str, params: Mapping[str, Any],
           spool: IO[bytes]) -> None:
    path = member.path
    if not path or member.kind == "directory" or _fits(path, params["skip"]):
        return
    where = where_to(path, params)
    before = placed.get(where)
    if before is not None and not _same(before.member, member, spool):
        raise IntegrityError("two packages have different files of one name", where=f"/{where}",
                             found=f"{before.package} and {package}")
    placed.setdefault(where, _Placed(member, package))


def _same(one: Member, other: Member, spool: IO[bytes]) -> bool:
    return (one.kind, one.target, one.size) == (other.kind, other.target, other.size) and \
        _digest(spool, one) == _digest(spool, other)


def _digest(spool: IO[bytes], member: Member) -> bytes:
    content = hashlib.sha256()
    for piece in _pieces(spool, member):
        content.update(piece)
    return content.digest()


def _pieces(spool: IO[bytes], member: Member) -> Iterator[bytes]:
    """A member's content. One read gives 2 GiB at most, and static libraries of CUDA are about as large."""
    at, end = member.offset, member.offset + member.size
    while at < end and (piece := os.pread(spool.fileno(), min(end - at, _PIECE), at)):
        yield piece
        at += len(piece)


def where_to(path: str, params: Mapping[str, Any]) -> str:
    """Where a path of a package goes in the layer. Pure."""
    if not _fits(path, params["in_place"]):
        return f"{params['prefix']}/{path}"
    first, _, rest = path.partition("/")
    return f"usr/{first}/{rest}" if first in _MERGED else path


def _fits(path: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(path, glob) for glob in globs)


def _target(where: str, member: Member, params: Mapping[str, Any]) -> str:
    """Of a symlink: an absolute one that leads to what has moved moves too."""
    if not member.target.startswith("/"):
        return member.target
    return "/" + where_to(posixpath.normpath(member.target).lstrip("/"), params)


def _write(context: BuildContext, placed: Mapping[str, _Placed], spool: IO[bytes]) -> tuple[Blob, Blob]:
    links: Mapping[str, str] = context.params["links"]
    clash = sorted(links.keys() & placed.keys())
    if clash:
        raise InputError("a link is in the way of a file", where=f"/{clash[0]}", found=placed[clash[0]].package)
    paths = {*placed, *links}
    above = {path[:at] for path in paths for at, sign in enumerate(path) if sign == "/"}
    with LayerWriter(context.store) as writer:
        for path in sorted(above | paths, key=str.encode):
            if path in links:
                writer.symlink(path, links[path])
            elif path not in placed:
                writer.directory(path)
            else:
                _one(writer, path, placed, context.params, spool)
        layer = writer.finish()
    return layer.layer, layer.index


def _one(writer: LayerWriter, path: str, placed: Mapping[str, _Placed], params: Mapping[str, Any],
         spool: IO[bytes]) -> None:
    member = placed[path].member
    if member.kind == "symlink":
        writer.symlink(path, _target(path, member, params))
        return
    if member.kind == "hardlink":  # written as a file of its own: the name it shares may come later in the order
        there = placed.get(where_to(member.target, params))
        if there is None or there.member.kind != "file":
            raise IntegrityError("a hard link to what is not in its package", where=f"/{path}", found=member.target)
        member = there.member
    writer.file(path, member.size, _pieces(spool, member), 0o755 if member.mode & 0o111 else 0o644)
