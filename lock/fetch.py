"""Fetch: files of a lock into the store, many at once.

    fetch(store, wanted, {"wheel": WheelSource(indexes), …})

Only what the store lacks is asked for; with nothing missing there is no request at all. Files go into the store by
digest, each after its sha256 was checked. When one fails, those on their way are finished, no further one is begun and
the error is raised; a failed file leaves nothing. Ctrl-C leaves the begun ones, and the next call goes on with them.

Concurrency: any number of processes may fetch into one store; one downloads a file, the others wait for it.
Not here: the HTTP of one file (`lock.transfer`), where files lie (`lock.simple`, and the sources of debs and blobs).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

import requests

from cache.errors import FetchError, IntegrityError, StagecraftError
from cache.store import Store
from lock.sources import Location, Progress, Source, Wanted, bare
from lock.transfer import Policy, Stopped, Transfer

__all__ = ["Location", "Policy", "Progress", "Source", "Wanted", "bare", "fetch", "missing"]


def missing(store: Store, wanted: Sequence[Wanted]) -> list[Wanted]:
    """What of `wanted` the store lacks, each digest once, largest first."""
    lacking: dict[str, Wanted] = {}
    for item in wanted:
        if item.digest not in lacking and not store.has(item.digest, item.size or None):
            lacking[item.digest] = item
    # Largest first: a big file begun last would be waited for alone.
    return sorted(lacking.values(), key=lambda item: (-item.size, item.file))


def fetch(
    store: Store,
    wanted: Sequence[Wanted],
    sources: Mapping[str, Source],
    *,
    jobs: int = 8,
    progress: Progress | None = None,
    policy: Policy | None = None,
) -> None:
    """Bring every file of `wanted` into the store.

    Args:
        sources: kind (`wheel`, `deb`, `oci`) to its source.
        jobs: files at once.
        progress: is told about each file; see `Progress`.

    Raises:
        FetchError: an index does not give a file.
        IntegrityError: an index gives another file than was locked; or a blob of the store was altered.
        StoreError: the store is full or cannot be written.
        KeyboardInterrupt: what was begun is kept.
    """
    lacking = missing(store, wanted)
    if not lacking:
        return
    for item in lacking:
        if store.has(item.digest):
            raise IntegrityError(f"{item.file} in the store has another size than was locked",
                                 where=str(store.path_of(item.digest)), expected=f"{item.size} bytes",
                                 cure="./doit store:verify --repair")
    crew = _Crew(store, lacking, sources, progress, policy or Policy())
    crew.work(max(1, min(jobs, len(lacking))))


class _Crew:
    """The threads of one fetch."""

    def __init__(self, store: Store, lacking: Sequence[Wanted], sources: Mapping[str, Source],
                 progress: Progress | None, policy: Policy) -> None:
        self._store, self._sources, self._progress, self._policy = store, sources, progress, policy
        self._queue = deque(enumerate(lacking))
        self._errors: dict[int, BaseException] = {}
        self._stop = threading.Event()
        self._latest = ""

    def work(self, jobs: int) -> None:
        # Daemons: a thread that waits for another process's download must not hold up Ctrl-C.
        threads = [threading.Thread(target=self._run, name=f"fetch-{n}", daemon=True) for n in range(jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)
                    if self._progress is not None and self._latest:
                        self._progress.advance(self._latest, 0)  # so that it can stop us while nothing comes
        except BaseException:
            self._stop.set()
            until = time.monotonic() + 2.0
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
            raise
        self._raise()

    def _run(self) -> None:
        with requests.Session() as session:
            while not self._errors and not self._stop.is_set():
                try:
                    number, item = self._queue.popleft()
                except IndexError:
                    return
                try:
                    self._one(session, item)
                except Stopped:
                    return
                except KeyboardInterrupt as error:
                    self._errors[number] = error
                    self._stop.set()
                except BaseException as error:  # a bug too must end the fetch, in the caller's thread
                    self._errors[number] = error

    def _one(self, session: requests.Session, item: Wanted) -> None:
        progress = self._progress
        self._latest = item.file
        if progress is not None:
            progress.begin(item.file, item.size)

        def report(nbytes: int) -> None:
            if progress is not None:
                progress.advance(item.file, nbytes)

        try:
            Transfer(self._store, item, self._sources[item.kind], session, self._policy, report, self._stop).run()
        finally:
            if progress is not None:
                progress.end(item.file)

    def _raise(self) -> None:
        """One error as it is; of several the first, with the others named."""
        errors = [self._errors[number] for number in sorted(self._errors)]
        for error in errors:
            if not isinstance(error, StagecraftError):
                raise error
        known = [error for error in errors if isinstance(error, StagecraftError)]
        if not known:
            return
        # What was altered or cannot be written comes before what may only be down for a while.
        known.sort(key=lambda error: isinstance(error, FetchError))
        first = known[0]
        if len(known) > 1:
            others = "; ".join(error.message for error in known[1:])
            first.message += f" ({len(known) - 1} more: {others})"
        raise first
