"""The tree that packages make together, in memory: paths and where their content lies, no content.

Members of many packages become one set of nodes: `/bin` and the like are `/usr/bin`, one owner a
path, every parent a real directory. What dpkg would refuse, and what could lead a later extraction
out of the image, is an IntegrityError that names package and path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from assemble.deb_file import Member
from assemble.dpkg import Package, replaces
from cache.errors import IntegrityError

#: Top-level directories that are symlinks into /usr on a merged system.
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libo32", "libx32")
_SMALL = 16 << 20


@dataclass(frozen=True)
class Node:
    """One path.

    Attributes:
        kind: `file`, `directory`, `symlink` or `hardlink`.
        target: of a symlink as it is; of a hardlink the path of its file.
        owner: the package it is from; `""` for what an effect made.
        content: its bytes if they are at hand; else they are `size` bytes at `offset` of spool `spool`.
    """

    kind: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    size: int = 0
    target: str = ""
    owner: str = ""
    content: bytes | None = None
    spool: int = -1
    offset: int = 0


class Tree:
    """Nodes by path (relative, `/` between parts).

    Args:
        read: gives `size` bytes at `offset` of a spool.
        below: symlinks of an image below, path to target: members go where these lead.
        standing: directories of an image below: they keep their modes and owners, as under dpkg.
        merged: make /bin and the like symlinks into /usr.
    """

    def __init__(self, read: Callable[[int, int, int], bytes], *, below: Mapping[str, str] | None = None,
                 standing: frozenset[str] = frozenset(), merged: bool = True) -> None:
        self.nodes: dict[str, Node] = {}
        self._read = read
        self._below = dict(below or {})
        self._standing = standing
        self._merged = merged

    # -- packages -------------------------------------------------------------------------------

    def add(self, packages: Iterable[tuple[Package, int, list[Member]]]) -> dict[str, list[str]]:
        """Enter the members of all packages; the order of packages does not matter.

        Returns:
            By package name, the paths (as the package says them) that another package took over.
        """
        known = sorted(packages, key=lambda item: item[0].name)
        by_name = {package.name: package for package, _, _ in known}
        origin: dict[str, str] = {}
        lost: dict[str, list[str]] = {}
        used: set[str] = set()
        for package, spool, members in known:
            own: set[str] = set()
            for member in members:
                if not member.path:
                    continue
                first = member.path.partition("/")[0]
                if self._merged and first in MERGED:
                    used.add(first)
                    if member.path == first:
                        continue  # whatever the package has there, we make the symlink
                path = self.place(member.path, whole=member.kind == "directory")
                if not path:
                    continue
                new = self._node(package, spool, member)
                old = self.nodes.get(path)
                if path in own and old is not None and not (old.kind == new.kind == "directory"):
                    raise _bad("a path is in the package twice", package, member.path)
                own.add(path)
                winner = new if old is None else self._judge(path, old, new, by_name)
                if old is not None and old.kind != "directory":
                    loser = old if winner is new else new
                    lost.setdefault(loser.owner, []).append(origin[path] if loser is old else member.path)
                if winner is new:
                    self.nodes[path], origin[path] = new, member.path
        if self._merged:
            for first in sorted(used | {"bin", "sbin", "lib"}):
                self.nodes[first] = Node("symlink", 0o777, target=f"usr/{first}")
                self.nodes.setdefault(f"usr/{first}", Node("directory"))
        self._parents()
        return lost

    def place(self, path: str, *, whole: bool = False) -> str:
        """Where a path of a package really lies: through the symlinks into /usr and those of the image below.

        `whole`: follow a symlink at the path itself too, as for a directory; gives `""` for the root.
        """
        if self._merged and path.partition("/")[0] in MERGED:
            path = "usr/" + path
        if not self._below:
            return path
        parts, steps = path.split("/"), 0
        done: list[str] = []
        while len(parts) > (not whole):
            done.append(parts.pop(0))
            target = self._below.get("/".join(done))
            if target is None:
                continue
            steps += 1
            if steps > 40:
                raise IntegrityError("the base image has a loop of symlinks", where=path)
            done = [] if target.startswith("/") else done[:-1]
            for part in target.split("/"):
                if part == "..":
                    done = done[:-1]
                elif part not in ("", "."):
                    done.append(part)
            parts, done = done + parts, []
        return "/".join(done + parts)

    def _node(self, package: Package, spool: int, member: Member) -> Node:
        target = self.place(member.target) if member.kind == "hardlink" else member.target
        return Node(member.kind, member.mode, member.uid, member.gid, member.size, target, package.name,
                    spool=spool, offset=member.offset)

    def _judge(self, path: str, old: Node, new: Node, by_name: Mapping[str, Package]) -> Node:
        if old.kind == new.kind == "directory":
            return old
        if old.owner == new.owner:
            raise _bad("a path is in the package twice", by_name[new.owner], path)
        one, other = by_name[old.owner], by_name[new.owner]
        if "directory" not in (old.kind, new.kind):
            if replaces(other, one):
                return new
            if replaces(one, other):
                return old
        raise IntegrityError(
            "two packages have the same path, and neither says that it replaces the other", where="/" + path,
            found=f"{one.file} ({old.kind}), {other.file} ({new.kind})", cure="leave one of them out")

    def _parents(self) -> None:
        for path in list(self.nodes):
            child, parent = path, path.rpartition("/")[0]
            while parent:
                node = self.nodes.get(parent)
                if node is None:
                    self.nodes[parent] = Node("directory")
                elif node.kind != "directory":
                    raise IntegrityError(
                        f"a member lies below a {node.kind} of {node.owner or 'the merged /usr'}", where="/" + child,
                        found=f"/{parent} -> {node.target}" if node.kind == "symlink" else f"/{parent}",
                        cure=f"take another version of {self.nodes[path].owner}")
                else:
                    break
                child, parent = parent, parent.rpartition("/")[0]

    # -- effects --------------------------------------------------------------------------------

    def find(self, path: str) -> str | None:
        """The path at which `path` ends when symlinks are followed inside the tree; None if nothing is there."""
        parts, steps = [part for part in path.split("/") if part], 0
        done: list[str] = []
        while parts:
            part = parts.pop(0)
            if part == "..":
                done = done[:-1]
                continue
            if part == ".":
                continue
            done.append(part)
            node = self.nodes.get("/".join(done))
            if node is None:
                return None
            if node.kind == "symlink":
                steps += 1
                if steps > 40:
                    return None
                done = [] if node.target.startswith("/") else done[:-1]
                parts = [part for part in node.target.split("/") if part] + parts
        return "/".join(done)

    def read(self, path: str, limit: int = _SMALL) -> bytes:
        """Content of the file at `path`, symlinks followed.

        Raises:
            IntegrityError: there is none, or it is larger than `limit` bytes.
        """
        found = self.find(path)
        node = self.nodes[found] if found is not None else None
        if node is not None and node.kind == "hardlink":
            node = self.nodes.get(node.target)
        if node is None or node.kind != "file":
            raise IntegrityError("a file that Debian packages need to work together is not there", where="/" + path)
        if node.size > limit:
            raise IntegrityError(f"a file is larger than {limit} bytes", where="/" + path)
        return self.content(node, 0, node.size)

    def content(self, node: Node, start: int, size: int) -> bytes:
        """`size` bytes of a file node from `start`; fewer at its end."""
        size = max(0, min(size, node.size - start))
        if node.content is not None:
            return node.content[start:start + size]
        return self._read(node.spool, node.offset + start, size)

    def children(self, directory: str) -> list[str]:
        """Names directly below a directory, sorted."""
        prefix = directory.rstrip("/") + "/"
        return sorted(path[len(prefix):] for path in self.nodes
                      if path.startswith(prefix) and "/" not in path[len(prefix):])

    def put(self, path: str, content: bytes, mode: int = 0o644, *, uid: int = 0, gid: int = 0) -> None:
        """Make or replace a file."""
        self._make_parents(path)
        self.nodes[path] = Node("file", mode, uid, gid, len(content), content=content)

    def link(self, path: str, target: str) -> None:
        """Make or replace a symlink."""
        self._make_parents(path)
        self.nodes[path] = Node("symlink", 0o777, target=target)

    def directory(self, path: str, mode: int = 0o755, *, uid: int = 0, gid: int = 0) -> None:
        """Make a directory, or set the mode and owner of one."""
        self._make_parents(path)
        self.nodes[path] = replace(self.nodes.get(path, Node("directory")), kind="directory", mode=mode, uid=uid,
                                   gid=gid)

    def _make_parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        while parent and parent not in self.nodes:
            self.nodes[parent] = Node("directory")
            parent = parent.rpartition("/")[0]

    # -- result ---------------------------------------------------------------------------------

    def settled(self) -> list[tuple[str, Node]]:
        """All nodes in byte order of their paths; of hardlinked paths the first is the file.

        Raises:
            IntegrityError: a hardlink has no file.
        """
        names: dict[str, list[str]] = {}
        for path, node in self.nodes.items():
            if node.kind == "hardlink":
                names.setdefault(self._file_of(path), []).append(path)
        nodes = dict(self.nodes)
        for path, links in names.items():
            first, *others = sorted([path, *links], key=str.encode)
            nodes[first] = self.nodes[path]
            for other in others:
                nodes[other] = Node("hardlink", target=first, owner=self.nodes[other].owner)
        return sorted(((path, node) for path, node in nodes.items()
                       if node.kind != "directory" or path not in self._standing), key=lambda item: item[0].encode())

    def _file_of(self, path: str) -> str:
        node, seen = self.nodes[path], {path}
        while node.kind == "hardlink":
            owner, target = node.owner, node.target
            found = self.nodes.get(target)
            if found is None or found.owner != owner or target in seen or found.kind not in ("file", "hardlink"):
                raise IntegrityError("a hardlink leads to no file of its package", where=f"{owner}: /{path}",
                                     found=f"/{target}", cure=f"take another version of {owner}")
            seen.add(target)
            node = found
            path = target
        return path


def _bad(message: str, package: Package, path: str) -> IntegrityError:
    return IntegrityError(message, where=f"{package.file}: {path}", cure="take another version of this package")
