"""Layers as directories: each unpacked once into the store, and joined where an overlay cannot.

On disk: `trees/ab/<key>/` with `root/` and `tree.json` (docs/formats/tree.schema.json). A tree is made in `tmp/`,
flushed and renamed, so one that has its name is whole; one process makes it, others wait. It is a cache: collection
takes it when its layer goes or when nobody used it for a week, and any layer can be unpacked again.

Files belong to whoever unpacked them, without set-user-id bits, devices and extended attributes: a root is only ever
seen through a user namespace in which that user is everybody.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache import canonical, documents
from cache.durable import group_writes, named_errors
from cache.errors import IntegrityError, StoreError
from cache.store import Store, hex_of
from cache.untar import Entry, Limits, entries
from executors.process import PLACES

FORMAT = "stagecraft.tree.v1"

_LIMITS = Limits(entries=4_000_000, total=256 << 30, depth=128, devices=True, climbing=True)
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
#: Seconds after which a use is noted again, in the directory's time.
_REFRESH = 86400
_COPY = 1 << 20
_EPOCH = 315532800  # 1980-01-01, as in our layers


@dataclass(frozen=True)
class Tree:
    """A directory that must not be written.

    Attributes:
        root: the directory.
        whiteouts: paths of lower layers that this one takes away.
        opaque: directories whose content of lower layers it takes away.
    """

    root: Path
    whiteouts: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()

    @property
    def hides(self) -> bool:
        """True if it takes away what lower layers have, which an overlay of plain directories cannot say."""
        return bool(self.whiteouts or self.opaque)


def layer(store: Store, digest: str, log: Callable[[str], None] = lambda line: None,
          check: Callable[[], None] | None = None) -> Tree:
    """The tree of a layer, unpacked if it is not there.

    Raises:
        IntegrityError: the layer is missing or malformed.
        StoreError: no room, or the store cannot be written.
    """
    def fill(root: Path) -> dict[str, Any]:
        log(f"unpacking layer {digest[7:19]}")
        return _unpack(store, digest, root, check)

    return made(store, hex_of(digest), [digest], fill, check)


def places(store: Store) -> Tree:
    """Empty directories for what is mounted in every root: the lowest part of each."""
    def fill(root: Path) -> dict[str, Any]:
        for name in PLACES:
            (root / name).mkdir()
            os.utime(root / name, (_EPOCH, _EPOCH))
        return {}

    return made(store, canonical.digest_of("tree", {"places": list(PLACES)})[7:], [], fill, None)


def merged(store: Store, trees: Sequence[Tree], digests: Sequence[str], log: Callable[[str], None] = lambda line: None,
           check: Callable[[], None] | None = None) -> Tree:
    """One tree of several, lowest first: hard links, or copies where the file system refuses them.

    Args:
        digests: of the layers that the trees are, which name the result.
    """
    def fill(root: Path) -> dict[str, Any]:
        log(f"joining {len(trees)} layers into one tree")
        for tree in trees:
            for path in tree.opaque:
                _empty(root, path)
            for path in tree.whiteouts:
                _take_away(root, path)
            _lay(tree.root, root, check)
        return {}

    return made(store, canonical.digest_of("tree", {"merged": list(digests)})[7:], digests, fill, check)


def made(store: Store, key: str, of: Sequence[str], fill: Callable[[Path], dict[str, Any]],
         check: Callable[[], None] | None) -> Tree:
    """The tree of that key, made by `fill` if it is not there.

    Args:
        of: digests of the blobs without which it is of no use.
        fill: fills an empty directory; gives what else `tree.json` shall have.
    """
    name = f"trees/{key}"
    store.protect(name, *of)
    place = Path(f"{store.root}/trees/{key[:2]}/{key}")
    found = _load(place)
    if found is None:
        with store.locked(f"tree-{key}", poll=check):
            found = _load(place)
            if found is None:
                found = _make(store, place, list(of), fill)
    with contextlib.suppress(OSError):
        if time.time() - place.stat().st_mtime > _REFRESH:
            os.utime(place)
    return found


def _load(place: Path) -> Tree | None:
    data = documents.load(str(place / "tree.json"))
    if data is None or data.get("format") != FORMAT:
        return None
    return Tree(place / "root", tuple(data["whiteouts"]), tuple(data["opaque"]))


def _make(store: Store, place: Path, of: list[str], fill: Callable[[Path], dict[str, Any]]) -> Tree:
    temporary = Path(f"{store.directory('tmp')}/{os.getpid()}-{os.urandom(6).hex()}")
    with named_errors(store.root):
        store.directory(f"trees/{place.parent.name}")
        try:
            (temporary / "root").mkdir(parents=True)
            known = {"format": FORMAT, "of": of, "whiteouts": [], "opaque": [], "size": 0} | fill(temporary / "root")
            (temporary / "tree.json").write_bytes(canonical.dumps(known))
            (temporary / "tree.json").chmod(0o644)
            (temporary / "root").chmod(0o755)
            os.utime(temporary / "root", (_EPOCH, _EPOCH))
            temporary.chmod(0o2775 if group_writes(str(place.parent)) else 0o755)
            _flush(temporary)
            if place.exists():  # damaged
                os.rename(place, f"{temporary}/damaged")
            os.rename(temporary, place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    found = _load(place)
    if found is None:
        raise StoreError("a tree was not there after it was made", where=str(place))
    shutil.rmtree(place / "damaged", ignore_errors=True)
    return found


def _flush(path: Path) -> None:
    """Everything of the file system that `path` is on, to disk: a renamed tree must not lose content with the power."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(fd)


# -- what a command left --------------------------------------------------------------------------


def ours(path: Path, bits: int) -> None:
    """Take rights back that a command took away: they hold an ordinary user up, and root not."""
    mode = path.lstat().st_mode
    if mode & bits != bits:
        path.chmod(stat.S_IMODE(mode) | bits)


def discard(path: Path) -> None:
    """Remove a directory that a command wrote into, whatever rights it left. Raises OSError."""
    for directory, names, _ in os.walk(path):  # from above: a directory is listed after it became ours
        for name in names:
            below = Path(directory, name)
            if not below.is_symlink():
                ours(below, 0o700)
    if path.exists():
        shutil.rmtree(path)


# -- unpacking ------------------------------------------------------------------------------------


def _unpack(store: Store, digest: str, root: Path, check: Callable[[], None] | None) -> dict[str, Any]:
    """Members of the tar below an empty directory. `cache.untar` lets none through that could leave it."""
    whiteouts, opaque, size = [], [], 0
    directories: list[tuple[str, int, int]] = []
    with store.open_blob(digest) as file:
        for entry in entries(file, where=f"layer {digest[7:19]}", limits=_LIMITS):
            if check is not None:
                check()
            parent, _, name = entry.path.rpartition("/")
            if name == _OPAQUE:
                opaque.append(parent)
            elif name.startswith(_WHITEOUT):
                if not name.startswith(_WHITEOUT * 2):
                    whiteouts.append(f"{parent}/{_hidden(name, digest, entry.path)}".lstrip("/"))
            else:
                size += entry.size
                _member(root, entry, directories)
    for path, mode, mtime in reversed(directories):
        os.chmod(f"{root}/{path}", mode)
        os.utime(f"{root}/{path}", (mtime, mtime))
    return {"whiteouts": sorted(whiteouts), "opaque": sorted(opaque), "size": size}


def _hidden(name: str, digest: str, path: str) -> str:
    """What a whiteout takes away. `.wh...` would be the directory above."""
    hidden = name[len(_WHITEOUT):]
    if hidden in ("", ".", ".."):
        raise IntegrityError("a whiteout of no plain name", where=f"layer {digest[7:19]}: {path}",
                             cure="the layer is damaged or made to do harm: take the image from another place")
    return hidden


def _member(root: Path, entry: Entry, directories: list[tuple[str, int, int]]) -> None:
    path = f"{root}/{entry.path}"
    if entry.type == "directory":
        _parents(root, entry.path)
        if not os.path.isdir(path):
            os.mkdir(path)
        directories.append((entry.path, entry.mode & 0o1777 | 0o700, entry.mtime))
        return
    if entry.type in ("device", "fifo"):
        return
    try:
        _leaf(root, path, entry)
    except FileNotFoundError:
        _parents(root, entry.path)
        _leaf(root, path, entry)


def _parents(root: Path, path: str) -> None:
    """Directories without an entry of their own; anybody may read them, whatever the umask."""
    for at, sign in enumerate(path):
        if sign == "/" and not (place := root / path[:at]).is_dir():
            place.mkdir()
            place.chmod(0o755)


def _leaf(root: Path, path: str, entry: Entry) -> None:
    if entry.type == "symlink":
        os.symlink(entry.target, path)
        os.utime(path, (entry.mtime, entry.mtime), follow_symlinks=False)
    elif entry.type == "hardlink":
        os.link(f"{root}/{entry.target}", path)
    else:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            for chunk in entry.chunks(_COPY):
                left = memoryview(chunk)
                while left:
                    left = left[os.write(fd, left):]
            os.fchmod(fd, entry.mode & 0o777 | 0o400)
            os.utime(fd, (entry.mtime, entry.mtime))
        finally:
            os.close(fd)


# -- joining --------------------------------------------------------------------------------------


def _lay(source: Path, root: Path, check: Callable[[], None] | None) -> None:
    for entry in os.scandir(source):
        if check is not None:
            check()
        target = root / entry.name
        there = _mode(target)
        if entry.is_dir(follow_symlinks=False):
            if there is not None and not stat.S_ISDIR(there):
                os.unlink(target)
                there = None
            if there is None:
                target.mkdir()
            found = entry.stat(follow_symlinks=False)
            os.chmod(target, stat.S_IMODE(found.st_mode))
            _lay(Path(entry.path), target, check)
            os.utime(target, (found.st_mtime, found.st_mtime))
            continue
        if there is not None:
            _remove(target)
        try:
            os.link(entry.path, target, follow_symlinks=False)
        except OSError:  # another file system, too many links, or another user's file
            shutil.copy2(entry.path, target, follow_symlinks=False)


def _mode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _remove(path: Path) -> None:
    mode = _mode(path)
    if mode is None:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _take_away(root: Path, path: str) -> None:
    """Remove a path of the tree itself: nothing that a link on the way would lead to."""
    place = root
    *parents, name = path.split("/")
    for part in parents:
        place = place / part
        if not stat.S_ISDIR(_mode(place) or 0):
            return
    _remove(place / name)


def _empty(root: Path, path: str) -> None:
    place = root
    for part in filter(None, path.split("/")):
        place = place / part
        if not stat.S_ISDIR(_mode(place) or 0):
            return
    for entry in os.scandir(place):
        _remove(Path(entry.path))
