"""Power cuts: what may be lost is what no fsync covered, so the order of fsyncs is what keeps the promise.

A kill leaves the page cache alone; only the order of the calls can show what a power cut would. Here every call
of a build is recorded and judged by the rules of POSIX: content counts after fsync of the file, a name after fsync of
its directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.processes import run
from tests.support.stores import build

LARGE = 3 << 20


class Disk:
    """What is on disk for sure, as calls go by."""

    def __init__(self) -> None:
        self.path: dict[int, str] = {}
        self.dirty: set[str] = set()  # paths whose content is not on disk
        self.loose: dict[str, set[str]] = {}  # directory: names in it that are not on disk
        self.bad: list[str] = []
        self.published: list[str] = []

    def name(self, path: str) -> None:
        self.loose.setdefault(os.path.dirname(path), set()).add(path)

    def durable(self, path: str) -> bool:
        """All names on the way to `path` are on disk."""
        while path not in ("", "/"):
            if path in self.loose.get(os.path.dirname(path), ()):
                return False
            path = os.path.dirname(path)
        return True

    def publish(self, source: str, target: str) -> None:
        if os.path.basename(os.path.dirname(target)) == "tmp":
            return  # the probe of a new store
        if source in self.dirty:
            self.bad.append(f"{target}: named before its content was on disk")
        if "/records/" in target:
            self.bad += [f"{blob}: not on disk before the record" for blob in self.published
                         if "/blobs/" in blob and not self.durable(blob)]
        if "/roots/" in target or "/verdicts/" in target:
            self.bad += [f"{record}: not on disk before {target}" for record in self.published
                         if "/records/" in record and not self.durable(record)]
        self.published.append(target)
        self.name(target)


def watch(disk: Disk) -> None:
    """Record this process's calls from now on."""
    def patch(name: str, see: Callable[..., None]) -> None:
        call = getattr(os, name)

        def seen(*args: Any, **more: Any) -> Any:
            result = call(*args, **more)
            see(result, *args)
            return result

        setattr(os, name, seen)

    def opened(fd: int, path: Any, flags: int, *_: Any) -> None:
        disk.path[fd] = str(path)
        if flags & os.O_EXCL:
            disk.dirty.add(str(path))

    def synced(_: None, fd: int) -> None:
        disk.dirty.discard(disk.path[fd])
        disk.loose.pop(disk.path[fd], None)

    patch("open", opened)
    patch("writev", lambda _, fd, *__: disk.dirty.add(disk.path[fd]))
    patch("fchmod", lambda _, fd, *__: disk.dirty.add(disk.path[fd]))
    patch("fsync", synced)
    patch("mkdir", lambda _, path, *__: disk.name(str(path)))
    for name in ("link", "replace"):
        patch(name, lambda _, source, target: disk.publish(str(source), str(target)))


def test_names_come_after_content_and_records_after_blobs(tmp_path: Path) -> None:
    def watched() -> tuple[list[str], list[str], list[str]]:
        disk = Disk()
        watch(disk)
        build(tmp_path / "store", size=LARGE)
        last = [path for path in disk.published if "/tmp/" not in path.removeprefix(str(tmp_path))]
        return disk.bad, last, [path for path in last if not disk.durable(path)]

    bad, published, loose = run(watched)
    assert bad == []
    parts = [path.removeprefix(str(tmp_path / "store") + "/").split("/")[0] for path in published]
    assert parts == ["store.json", "blobs", "blobs", "blobs", "records", "verdicts", "roots"]
    assert loose == []


def test_a_blob_that_another_process_named_is_on_disk_before_our_record(tmp_path: Path) -> None:
    """It may have linked the blob and not yet synced the directory: finding it there is not enough."""
    build(tmp_path / "store", size=LARGE)
    for record in (tmp_path / "store" / "records").glob("*/*/*"):
        record.unlink()

    def watched() -> list[str]:
        disk = Disk()
        for blob in (tmp_path / "store" / "blobs").rglob("?" * 64):
            disk.published.append(str(blob))
            disk.name(str(blob))
        watch(disk)
        build(tmp_path / "store", size=LARGE)
        return disk.bad

    assert run(watched) == []
