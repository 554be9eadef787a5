"""Builder `debs-layer`: Debian packages become one layer, as if dpkg had installed them.

In process, on any host, for any architecture. No code of a package runs: what maintainer scripts
would have done, as far as the result needs it, is replayed by `assemble.effects`.

Each package's data is decompressed once into a spool below the store's `tmp/` (files without a
name, so they go with the process), then the members of all packages are written in one global order
of paths. Memory does not grow with the size of files. Durability and concurrency: the store's.

Inputs: `debs/<file name>`; on a base image also `base/status`, `base/passwd`, `base/group`,
`base/index` and perhaps
`base/os-release`. Params: `architecture` (Debian's name), `users`, `alternatives`. Outputs: `layer`,
`index`, `packages` (see ARCHITECTURE.md).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import IO

from assemble import dpkg
from assemble.deb_file import DebReader, Member
from assemble.deb_packages import described
from assemble.effects import Image, distribution, replay
from assemble.inflate import CHUNK
from assemble.tree import Node, Tree
from cache import canonical
from cache.archive import LayerWriter, read_index
from cache.build import BuildContext
from cache.durable import named_errors
from cache.errors import IntegrityError
from cache.store import Blob, Store


@dataclass(frozen=True)
class Unpacked:
    """A package and where its data lies: members with offsets into spool number `spool`."""

    package: dpkg.Package
    digest: str
    spool: int
    members: list[Member]


def build(context: BuildContext) -> Mapping[str, Blob]:
    """See the module text.

    Raises:
        IntegrityError: a package is malformed, for another architecture, or packages contradict each other.
        InputError: `users` or `alternatives` ask for what cannot be.
        StoreError: the store is full or cannot be written.
    """
    architecture = str(context.params["architecture"])
    base = {name.partition("/")[2]: digest for name, digest in context.inputs.items() if name.startswith("base/")}
    with contextlib.ExitStack() as stack, named_errors(context.store.root):
        spools = Spools(context.store, stack)
        unpacked = unpack(context, spools, architecture)
        below = list(read_index(context.store, base["index"])) if "index" in base else []
        tree = Tree(spools.read, merged=not base,
                    below={entry["path"]: entry["target"] for entry in below if entry["type"] == "symlink"},
                    standing=frozenset(entry["path"] for entry in below if entry["type"] == "directory"))
        lost = tree.add((item.package, item.spool, item.members) for item in unpacked)
        packages = [listed(item, tree, set(lost.get(item.package.name, ()))) for item in unpacked]
        image = Image(tree, {package.name: package for package in packages}, architecture,
                      {name: context.store.read(digest) for name, digest in base.items() if name != "index"})
        replay(image, context.params, context.log)
        context.log(f"{len(packages)} packages, {len(tree.nodes)} paths")
        layer, index = write(context, tree)
        listing = canonical.dumps({"format": "stagecraft.packages.v1", "packages": [
            described(package, item.digest, tree, distribution(image))
            for package, item in zip(packages, unpacked, strict=True)]})
    return {"layer": layer, "index": index, "packages": context.store.put(listing)}


class Spools:
    """One nameless file for each thread that decompresses."""

    def __init__(self, store: Store, stack: contextlib.ExitStack) -> None:
        self._directory = store.root / "tmp"
        self._stack = stack
        self._files: list[IO[bytes]] = []
        self._local = threading.local()
        self._lock = threading.Lock()

    def mine(self) -> tuple[int, IO[bytes]]:
        """Number and file of the calling thread's spool."""
        if not hasattr(self._local, "number"):
            with self._lock:
                self._directory.mkdir(parents=True, exist_ok=True)
                file = self._stack.enter_context(tempfile.TemporaryFile(dir=self._directory, buffering=0))  # noqa: SIM115
                self._local.number = len(self._files)
                self._files.append(file)
        return self._local.number, self._files[self._local.number]

    def read(self, spool: int, offset: int, size: int) -> bytes:
        return os.pread(self._files[spool].fileno(), size, offset)


def unpack(context: BuildContext, spools: Spools, architecture: str) -> list[Unpacked]:
    """Read all packages, several at once; sorted by name.

    Raises:
        IntegrityError: see `build`.
    """
    files = {name.partition("/")[2]: digest for name, digest in context.inputs.items() if name.startswith("debs/")}
    sizes = {name: os.stat(context.store.use(digest)).st_size for name, digest in files.items()}
    total, done, lock = sum(sizes.values()), 0, threading.Lock()

    def one(name: str) -> Unpacked:
        nonlocal done
        with context.store.open_blob(files[name]) as source:
            reader = DebReader(source, name)
            deb = reader.control()
            fields = dpkg.control_fields(deb.control, name)
            if fields["Architecture"] not in ("all", architecture):
                raise IntegrityError("a package is for another architecture", where=name, expected=architecture,
                                     found=fields["Architecture"], cure="relock the target")
            number, spool = spools.mine()
            members = reader.spool(spool)
        with lock:
            done += sizes[name]
            context.progress(done, total)
        return Unpacked(dpkg.Package(fields, deb.scripts, file=name), files[name], number, members)

    # Largest first, so that no large one is left for the end; more threads than four only take memory.
    order = sorted(files, key=lambda name: (-sizes[name], name))
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        try:
            found = sorted(pool.map(one, order), key=lambda item: (item.package.name, item.package.file))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # those not begun would only be waited for
            raise
    for item, following in pairwise(found):
        if item.package.name == following.package.name:
            raise IntegrityError("a package is there twice", where=item.package.name,
                                 found=f"{item.package.file}, {following.package.file}", cure="relock the target")
    return found


def listed(item: Unpacked, tree: Tree, lost: set[str]) -> dpkg.Package:
    """The package with its list of paths and the digests of its conffiles."""
    paths = ["/" + member.path if member.path else "/." for member in item.members if member.path not in lost]
    if paths[:1] != ["/."]:
        paths.insert(0, "/.")
    members = {"/" + member.path: member for member in item.members if member.kind == "file"}
    conffiles = {}
    for path, removed in dpkg.conffile_paths(item.package).items():
        if removed:
            conffiles[path] = "newconffile remove-on-upgrade"  # dpkg's words for one that was never there
        elif path in members:
            node = Node("file", size=members[path].size, spool=item.spool, offset=members[path].offset)
            conffiles[path] = dpkg.md5(tree.content(node, 0, node.size))
    return replace(item.package, paths=paths, conffiles=conffiles)


def write(context: BuildContext, tree: Tree) -> tuple[Blob, Blob]:
    """The tree as a layer: tar and index."""
    with LayerWriter(context.store) as writer:
        for path, node in tree.settled():
            if node.kind == "directory":
                writer.directory(path, node.mode, node.uid, node.gid)
            elif node.kind == "symlink":
                writer.symlink(path, node.target)
            elif node.kind == "hardlink":
                writer.hardlink(path, node.target)
            else:
                writer.file(path, node.size, _chunks(tree, node), node.mode, uid=node.uid, gid=node.gid)
        layer = writer.finish()
        return layer.layer, layer.index


def _chunks(tree: Tree, node: Node) -> Iterator[bytes]:
    for start in range(0, node.size, CHUNK):
        yield tree.content(node, start, CHUNK)


