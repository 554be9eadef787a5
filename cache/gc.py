"""Garbage collection: what no root, no running process and no rule keeps is removed.

Kept: what roots name (action keys, blobs, the image layout that a result link points to); what running
processes use (`cache.session`); every record of a kept key, its outputs, its log and its inputs, locked files
among them, unless `keep_inputs` is off; what is younger than `keep_days`; with `max_size`, the newest of the
rest that fits. No access times: many systems do not keep them.

Concurrency: safe beside any number of builders. Marking and sweeping happen under the exclusive flock of
`locks/gc`; sweeping only renames into `trash/`, records before blobs, so that a kill at any point leaves a
store without dangling records. Deleting comes after, without the lock; what a killed collection left in
`trash/` the next one deletes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cache import durable, inventory
from cache.inventory import BlobFile, Layout, RecordFile
from cache.store import Store

_HOUR, _DAY = 3600, 86400
#: Days that an interrupted download or the log of a failed build waits, if `keep_days` says nothing.
_UNFINISHED_DAYS = 7
#: Days that a derived fact stays after its last use.
_DERIVED_DAYS = 30


@dataclass(frozen=True)
class Item:
    """One thing that goes (or would go): kind, name, bytes, and why."""

    kind: str
    name: str
    size: int
    why: str


@dataclass(frozen=True)
class GcReport:
    """What a collection did, or would do.

    Attributes:
        removed: what goes, in the order in which it goes.
        freed: bytes of all that.
        kept: bytes of the blobs that stay.
        roots: name of each root that counts.
        over: bytes by which what must stay is larger than `max_size`; 0 if it is not.
        dry_run: nothing was removed.
    """

    removed: tuple[Item, ...]
    freed: int
    kept: int
    roots: tuple[str, ...]
    over: int = 0
    dry_run: bool = False


@dataclass(frozen=True)
class Found:
    """The store as it was found, for `decide`."""

    now: float
    roots: Mapping[str, Mapping[str, Any]]
    dead_roots: Mapping[str, str]
    used: frozenset[str]
    blobs: Mapping[str, BlobFile]
    records: tuple[RecordFile, ...]
    layouts: Mapping[str, Layout]
    linked: frozenset[str]


@dataclass(frozen=True)
class Kept:
    """What stays, and why the rest does not."""

    keys: frozenset[str]
    records: frozenset[str]
    blobs: frozenset[str]
    layouts: frozenset[str]
    over: int = 0
    why: Mapping[str, str] = field(default_factory=dict)


def collect(store: Store, *, dry_run: bool = False, keep_days: int | None = None, max_size: int | None = None,
            keep_inputs: bool = True, now: float | None = None) -> GcReport:
    """Remove what nothing needs.

    Args:
        dry_run: only say what would go.
        keep_days: keep also what was written in the last so many days.
        max_size: keep also the newest of what nothing needs, as long as all blobs together have at most so
            many bytes. None: keep nothing of it.
        keep_inputs: False drops what kept records were made of (packages, wheels) too, if no record or image
            layout holds it as an output: it is only needed to build again, and is fetched again then.
        now: seconds since 1970, for tests.

    Raises:
        StoreError: the store cannot be written.
        IntegrityError: a root cannot be read; nothing is removed then.
    """
    with store._named_errors(), contextlib.ExitStack() as stack:
        if not dry_run:
            stack.callback(os.close, _exclusive(store))
        found = _look(store, time.time() if now is None else now)
        kept = decide(found, keep_days, max_size, keep_inputs)
        items, moves = _plan(store, found, kept, keep_days)
        if not dry_run:
            _sweep(store, moves)
    if not dry_run:
        empty_trash(store)
    return GcReport(tuple(items), sum(item.size for item in items),
                    sum(found.blobs[digest].size for digest in kept.blobs if digest in found.blobs),
                    tuple(name for name in sorted(found.roots) if name not in found.dead_roots), kept.over, dry_run)


def _exclusive(store: Store) -> int:
    path = f"{store.root}/locks/gc"
    durable.make_directory(os.path.dirname(path), store._tmp)
    fd = durable.open_shared(path, store._tmp)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


# -- what there is --------------------------------------------------------------------------------


def _look(store: Store, now: float) -> Found:
    roots = store.roots()
    used, _ = inventory.sessions(store)
    dead, linked = {}, set()
    images = os.path.realpath(store.root / "images")
    for name, content in roots.items():
        why = _dead(content)
        if why is not None and f"roots/{name}" not in used:  # its owner is about to make the link
            dead[name] = why
            continue
        for name_of in ("points_to", "was"):
            target = os.path.realpath(str(content.get(name_of, "")))
            if target.startswith(images + os.sep):
                linked.add(os.path.relpath(target, images).split(os.sep)[0])
    return Found(now, roots, dead, used, inventory.blobs(store), tuple(inventory.records(store)),
                 inventory.layouts(store), frozenset(linked))


def _dead(content: Mapping[str, Any]) -> str | None:
    """Why a root does not count any more, or None. A link that we may not look at counts."""
    link = content.get("link")
    if not link:
        return None
    try:
        there = os.readlink(str(link))
    except (FileNotFoundError, NotADirectoryError):
        return f"its result link {link} is gone"
    except PermissionError:
        return None
    except OSError:
        return f"{link} is no link any more"
    # While a link moves, its root names the layout that it leaves (`was`) beside the one that it goes to.
    return None if there in (content.get("points_to"), content.get("was")) else f"{link} points elsewhere now"


# -- what stays -----------------------------------------------------------------------------------


def decide(found: Found, keep_days: int | None, max_size: int | None, keep_inputs: bool) -> Kept:
    """What stays: a pure function."""
    live = [content for name, content in found.roots.items() if name not in found.dead_roots]
    keys = {str(key) for content in live for key in content.get("keys", ())} | set(found.used)
    blobs = {str(digest) for content in live for digest in content.get("blobs", ())} | set(found.used)
    for name in found.linked & found.layouts.keys():
        blobs |= found.layouts[name].digests
    young = _young(found.now, keep_days)
    records = {}
    for record in found.records:
        if not record.damaged and (record.key in keys or young(record.mtime)):
            records[record.name] = record
            blobs |= _needed(record, keep_inputs)
    blobs.update(digest for digest, blob in found.blobs.items() if young(blob.mtime))
    over = 0
    if max_size is not None:
        over = _fill(found, max_size, keep_inputs, records, blobs)
    layouts = {name for name, layout in found.layouts.items()
               if name in found.linked or young(layout.mtime)
               or _age(found.now, layout.mtime) < _HOUR}  # its link and its root come after it
    return Kept(frozenset(record.key for record in records.values()), frozenset(records),
                frozenset(blobs & found.blobs.keys()), frozenset(layouts), over)


def _needed(record: RecordFile, keep_inputs: bool) -> frozenset[str]:
    # An input that is another stage's output is kept by that stage's record, if that one is kept.
    return record.outputs | record.inputs if keep_inputs else record.outputs


def _fill(found: Found, max_size: int, keep_inputs: bool, records: dict[str, RecordFile], blobs: set[str]) -> int:
    """Keep the newest of the rest that fits; returns by how much too large what must stay is."""
    def size(digests: Iterable[str]) -> int:
        return sum(found.blobs[digest].size for digest in digests if digest in found.blobs)

    total = size(blobs)
    if total > max_size:
        return total - max_size
    named = frozenset(digest for record in found.records for digest in _needed(record, keep_inputs))
    rest: list[tuple[int, RecordFile | None, frozenset[str]]] = [
        (record.mtime, record, _needed(record, keep_inputs))
        for record in found.records if record.name not in records and not record.damaged]
    rest += [(blob.mtime, None, frozenset({digest}))
             for digest, blob in found.blobs.items() if digest not in blobs and digest not in named]
    for _, record, needed in sorted(rest, key=lambda item: item[0], reverse=True):
        total += size(needed - blobs)
        if total > max_size:
            break
        blobs |= needed
        if record is not None:
            records[record.name] = record
    return 0


def _age(now: float, mtime_ns: int) -> float:
    """Seconds since a file was written; one from the future (a clock was set back) is new."""
    return max(0.0, now - mtime_ns / 1e9)


def _young(now: float, days: int | None) -> Callable[[int], bool]:
    def young(mtime_ns: int) -> bool:
        return days is not None and _age(now, mtime_ns) < days * _DAY
    return young


# -- what goes ------------------------------------------------------------------------------------


def _plan(store: Store, found: Found, kept: Kept, keep_days: int | None) -> tuple[list[Item], list[str]]:
    """The report, and the paths below the store to move to the trash, in order."""
    items: list[Item] = []
    moves: list[str] = []

    def drop(kind: str, part: str, name: str, size: int, why: str) -> None:
        items.append(Item(kind, name, size, why))
        moves.append(f"{part}/{name}")

    for name, why in found.dead_roots.items():
        drop("root", "roots", f"{name}.json", 0, why)
    young = _young(found.now, keep_days)
    for path, there, verdict in inventory.verdicts(store):
        judged = verdict.get("outputs", {}) if verdict else {}
        digests = set(judged.values()) if isinstance(judged, dict) else set()
        if not (digests and digests <= kept.blobs) and not young(there.st_mtime_ns):
            drop("verdict", "verdicts", path, there.st_size,
                 "damaged" if verdict is None else "what it judged is not kept")
    for name, there in inventory.files(store, "ledger"):
        if f"sha256:{name.removesuffix('.json')}" not in kept.keys:
            drop("ledger", "ledger", name, there.st_size, "no record of its key is kept")
    for record in found.records:
        if record.name not in kept.records:
            drop("record", "records", record.name, record.size, "damaged" if record.damaged else "no root needs it")
    for name, layout in found.layouts.items():
        if name not in kept.layouts:
            drop("image", "images", name, layout.size, "no result link points to it")
    outputs = {digest for record in found.records for digest in record.outputs}
    inputs = {digest for record in found.records for digest in record.inputs}
    for digest, blob in found.blobs.items():
        if digest not in kept.blobs:
            kind = "output" if digest in outputs else "input" if digest in inputs else "blob"
            value = digest.removeprefix("sha256:")
            items.append(Item(kind, digest, blob.size, "no kept record names it"))
            moves.append(f"blobs/sha256/{value[:2]}/{value}")
    _plan_trees(store, found, kept, keep_days, drop)
    _plan_leftovers(store, found, keep_days, drop)
    return items, moves


def _plan_trees(store: Store, found: Found, kept: Kept, keep_days: int | None,
                drop: Callable[[str, str, str, int, str], None]) -> None:
    """Unpacked layers: they can be made again as long as their layer is there, and are of no use without it.
    And what compilers and failed checks left, which goes when nobody used it for some days."""
    days = _UNFINISHED_DAYS if keep_days is None else keep_days
    for path, there, of, size in inventory.trees(store):
        old = _age(found.now, there.st_mtime_ns) >= days * _DAY
        if f"trees/{os.path.basename(path)}" not in found.used and (old or not of <= kept.blobs):
            drop("tree", "trees", path, size, f"not used for {days} days" if old else "its layer is not kept")
    for name, there, size in inventory.ccache(store):
        if _age(found.now, there.st_mtime_ns) >= days * _DAY and not _held(f"{store.root}/ccache/{name}"):
            drop("ccache", "ccache", name, size, f"not used for {days} days")
    for name, there in inventory.files(store, "failed"):
        if _age(found.now, there.st_mtime_ns) >= days * _DAY:
            drop("failed", "failed", name, there.st_size, f"kept of a check that failed {days} days ago or more")


def _plan_leftovers(store: Store, found: Found, keep_days: int | None,
                    drop: Callable[[str, str, str, int, str], None]) -> None:
    days = _UNFINISHED_DAYS if keep_days is None else keep_days
    for name, there in inventory.files(store, "partial"):
        old = _age(found.now, there.st_mtime_ns) >= days * _DAY
        if (old or store.has(f"sha256:{name}")) and not durable.locked_elsewhere(f"{store.root}/partial/{name}"):
            drop("partial", "partial", name, there.st_size,
                 f"a download that nobody went on with for {days} days" if old else "its blob is there")
    for name, there in inventory.files(store, "logs"):
        if _age(found.now, there.st_mtime_ns) >= days * _DAY:
            drop("log", "logs", name, there.st_size, f"a failed build of {days} days ago or more")
    for path, there in inventory.derived(store):
        if _age(found.now, there.st_mtime_ns) >= _DERIVED_DAYS * _DAY:
            drop("derived", "derived", path, there.st_size, f"not used for {_DERIVED_DAYS} days")
    for name, there in inventory.files(store, "tmp"):
        # Directories are locked where they may be in use for more than a day: what a command runs in.
        if stat.S_ISDIR(there.st_mode):
            free = _age(found.now, there.st_mtime_ns) >= _DAY and not _held(os.path.join(store.root, "tmp", name))
        else:
            free = not durable.locked_elsewhere(os.path.join(store.root, "tmp", name))
        if free:
            drop("tmp", "tmp", name, there.st_size, "unfinished, and its process is gone")
    for name in inventory.sessions(store)[1]:
        drop("session", "sessions", name, 0, "its process is gone")
    for name, _ in inventory.files(store, "locks"):
        if name != "gc" and not durable.locked_elsewhere(f"{store.root}/locks/{name}"):
            drop("lock", "locks", name, 0, "nobody holds it")
    for name, there in inventory.files(store, "trash"):
        drop("trash", "trash", name, there.st_size, "left by a collection that was stopped")


# -- removing -------------------------------------------------------------------------------------


def _held(directory: str) -> bool:
    """True too of another user's, whose locks we cannot see."""
    try:
        return durable.locked_elsewhere(directory)
    except PermissionError:
        return True


def _sweep(store: Store, moves: list[str]) -> None:
    """Rename everything into one directory of the trash; under the exclusive lock."""
    moves = [move for move in moves if not move.startswith("trash/")]
    if not moves:
        return
    into = trash_directory(store)
    emptied = set()
    for number, move in enumerate(moves):
        path = f"{store.root}/{move}"
        # These are opened without the collection's lock: holding theirs while the name goes makes whoever
        # waits for it look at the name again.
        fd = -1
        if move.startswith(("locks/", "partial/", "ccache/")):
            fd = durable.lock_if_free(path)
            if fd < 0:
                continue
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, f"{into}/{number}")
        if fd >= 0:
            os.close(fd)
        if move.startswith(("records/", "derived/", "trees/")):
            emptied.add(os.path.dirname(path))
    for directory in emptied:
        with contextlib.suppress(OSError):
            os.rmdir(directory)  # not empty: a record of it is kept


def trash_directory(store: Store) -> str:
    """A new directory in the trash, to move things to."""
    path = f"{store.root}/trash/{os.getpid()}-{os.urandom(6).hex()}"
    durable.make_directory(path, store._tmp)
    return path


def empty_trash(store: Store) -> None:
    """Delete what is in the trash; another process may be at it too. What cannot be deleted stays there."""
    import shutil

    for name, _ in inventory.files(store, "trash"):
        shutil.rmtree(store.root / "trash" / name, ignore_errors=True)
