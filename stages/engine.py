"""Realise stages: look up, wait, fetch, build, publish. Runs without doit.

Durability and concurrency are the store's (`cache.store`): one lock per action key, so that of two builders one builds
and the other waits and reuses; a record is published last; a failure publishes nothing but its log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cache.build import BuildContext
from cache.errors import IntegrityError, StagecraftError, StageError
from cache.log import StageLog
from cache.store import Record, Store, hex_of
from stages.graph import BlobInput, DataInput, FileInput, Graph, SourceInput, Stage, StageInput
from stages.plan import action_key


class CancelledError(StagecraftError):
    """The user stopped the run."""

    exit_code, code = 130, "cancelled"


class Observer(Protocol):
    """What the engine tells while it works; called from any thread."""

    def event(self, kind: str, stage: str, **details: Any) -> None:
        """`kind`: wait, reused, fetch, fetched, damaged, build, log, built, failed."""

    def progress(self, stage: str, what: str, done: int, total: int) -> None:
        """Bytes done of all; may be called very often."""


class Silent:
    """An observer that says nothing."""

    def event(self, kind: str, stage: str, **details: Any) -> None:
        """Drop it."""

    def progress(self, stage: str, what: str, done: int, total: int) -> None:
        """Drop it."""


Fetch = Callable[[Store, Sequence[FileInput], "FetchProgress"], None]


class FetchProgress:
    """Adds up the bytes of many downloads of one stage and passes them on; stops them when cancelled."""

    def __init__(self, engine: Engine, stage: str, total: int) -> None:
        self._engine, self._stage, self._total, self._done = engine, stage, total, 0
        self._lock = threading.Lock()

    def begin(self, name: str, size: int) -> None:
        """A download starts."""
        self._stop()

    def _stop(self) -> None:
        # The word that `lock.fetch` knows for "stop, and keep what is there to go on with".
        if self._engine.cancelled.is_set():
            raise KeyboardInterrupt

    def advance(self, name: str, nbytes: int) -> None:
        self._stop()
        with self._lock:
            self._done += nbytes
            done = self._done
        self._engine.observer.progress(self._stage, "fetch", done, self._total)

    def end(self, name: str) -> None:
        """A download is complete."""
        self._engine.observer.event("fetched", self._stage, file=name)


@dataclass
class Engine:
    """Realises the stages of graphs.

    Attributes:
        store: where everything is.
        root: the project, for repository files.
        fetch: gets locked files into the store.
        facts: facts about this host for the records; no part of any key.
        target: whose graph it is, for what a user is told; no part of any key.
    """

    store: Store
    root: Path
    fetch: Fetch
    observer: Observer = field(default_factory=Silent)
    facts: Mapping[str, Any] = field(default_factory=dict)
    target: str = "<target>"
    cancelled: threading.Event = field(default_factory=threading.Event)

    def check_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise CancelledError("stopped", cure="run the same command again: finished work is kept")

    def realise(self, stage: Stage, records: Mapping[str, Record]) -> Record:
        """The record of a stage whose dependencies are realised: from the store, else built now.

        Raises:
            StagecraftError: whatever went wrong, with the stage's name in `where`.
        """
        key = action_key(stage, records)
        found = self.store.lookup(key, use=True)
        if found is not None:
            return found

        def on_wait() -> None:
            self.observer.event("wait", stage.name, key=key)

        with self.store.locked(f"build-{hex_of(key)}", on_wait, self.check_cancelled):
            # Looked up again even without a wait: another builder may have finished just before the lock was ours.
            found = self.store.lookup(key, use=True)
            if found is not None:
                self.observer.event("reused", stage.name, key=key)
                return found
            return self._build(stage, key, records)

    def realise_all(self, graph: Graph, name: str | None = None) -> dict[str, Record]:
        """Realise a stage and all it needs, or the whole graph, one after the other."""
        done: dict[str, Record] = {}
        for stage in graph.stages if name is None else graph.closure(name):
            done[stage.name] = self.realise(stage, done)
        return done

    def rebuild(self, stage: Stage, records: Mapping[str, Record]) -> Record:
        """Build a stage although the store has it; its outputs as they came now. What differs enters the ledger.

        Nothing is reused but its inputs: no results of a compiler cache.

        Raises:
            StagecraftError: whatever went wrong, with the stage's name in `where`.
        """
        key = action_key(stage, records)
        with self.store.locked(f"build-{hex_of(key)}", poll=self.check_cancelled):
            record, _ = self._run(stage, key, records, fresh=True)
            self.store.publish(record)
        return record

    def prepare(self, stage: Stage, records: Mapping[str, Record]) -> dict[str, str]:
        """Fetch what a stage reads; its inputs by name as digests of what the store has now."""
        self._fetch(stage)
        return self._inputs(stage, records)

    def _build(self, stage: Stage, key: str, records: Mapping[str, Record]) -> Record:
        try:
            try:
                return self._attempt(stage, key, records)
            except IntegrityError:
                # Was it the store's copy of a locked file? Then fetching it again is the cure, and it is ours to do.
                damaged = self._damaged(stage)
                if not damaged:
                    raise
                self.observer.event("damaged", stage.name, files=damaged)
                return self._attempt(stage, key, records)
        except StagecraftError as error:
            self.observer.event("failed", stage.name, key=key, error=error.as_json())
            raise

    def _damaged(self, stage: Stage) -> list[str]:
        """Locked inputs whose copy in the store is not what its name says; they are taken out of the store."""
        from cache.verify import hash_file

        found = []
        for item in stage.inputs.values():
            if isinstance(item, FileInput) and self.store.has(item.locked.digest) \
                    and hash_file(self.store.path_of(item.locked.digest)) != item.locked.digest:
                self.store.discard(item.locked.digest)
                found.append(item.locked.filename)
        return found

    def _attempt(self, stage: Stage, key: str, records: Mapping[str, Record]) -> Record:
        record, fetched = self._run(stage, key, records)
        kept = self.store.publish(record)
        size = sum(blob.size for blob in kept.outputs.values())
        self.observer.event("built", stage.name, key=key, ms=record.facts["ms"], size=size, fetched=fetched,
                            nondeterministic=kept.outputs_digest() != record.outputs_digest())
        return kept

    def _run(self, stage: Stage, key: str, records: Mapping[str, Record], *,
             fresh: bool = False) -> tuple[Record, int]:
        """Fetch, build, check what came; the record, which is not published yet, and the bytes that were fetched."""
        with StageLog(self.store) as lines:
            return self._logged(stage, key, records, lines, fresh)

    def _logged(self, stage: Stage, key: str, records: Mapping[str, Record], lines: StageLog,
                fresh: bool) -> tuple[Record, int]:
        started = time.monotonic()
        fetched = 0
        notes: list[str] = []

        def log(line: str) -> None:
            lines.line(line)
            self.observer.event("log", stage.name, line=line)

        def progress(done: int, total: int) -> None:
            self.check_cancelled()
            self.observer.progress(stage.name, "build", done, total)

        try:
            fetched = self._fetch(stage)
            fetch_ms = _ms(started)
            inputs = self._inputs(stage, records)
            self.observer.event("build", stage.name, key=key)
            context = BuildContext(self.store, stage.params, inputs, stage.platform, log, progress, notes.append, fresh)
            outputs = dict(stage.builder.load()(context))
            if set(outputs) != set(stage.builder.outputs):
                raise StageError("the builder gave other outputs than it declares", where=stage.name,
                                 expected=", ".join(stage.builder.outputs), found=", ".join(sorted(outputs)))
            self._unchanged(stage)
        except StagecraftError as error:
            error.where = error.where or f"stage {stage.name}"
            if error.cure:  # builders know neither
                error.cure = error.cure.replace("<target>", self.target).replace("<stage>", stage.name)
            self._keep_failed_log(key, lines, error)
            raise
        except OSError as error:
            self._keep_failed_log(key, lines, error)
            where = f"stage {stage.name} {error.filename or ''}".rstrip()
            raise StageError(error.strerror or str(error), where=where) from error
        facts = {"ms": _ms(started), "fetch_ms": fetch_ms, "fetched": fetched, "log": lines.publish().digest,
                 "finished": int(time.time()), "stage": stage.name, "host": dict(self.facts)}
        if notes:
            facts["notes"] = notes
        return Record(key, stage.derivation(_outputs(records, stage)), outputs, facts), fetched

    def _fetch(self, stage: Stage) -> int:
        """Get the locked files that the store lacks; returns their bytes."""
        wanted = [i for i in stage.inputs.values()
                  if isinstance(i, FileInput) and not self.store.has(i.locked.digest, i.locked.size or None)]
        for item in wanted:
            if self.store.has(item.locked.digest):
                self.observer.event("damaged", stage.name, files=[item.locked.filename])
                self.store.discard(item.locked.digest)
        if not wanted:
            return 0
        total = sum(item.locked.size for item in wanted)
        self.observer.event("fetch", stage.name, files=len(wanted), bytes=total)
        try:
            self.fetch(self.store, wanted, FetchProgress(self, stage.name, total))
        except KeyboardInterrupt:
            self.check_cancelled()
            raise
        return total

    def _inputs(self, stage: Stage, records: Mapping[str, Record]) -> dict[str, str]:
        """Input name to digest, every one protected from collection and there."""
        found: dict[str, str] = {}
        for name, item in stage.inputs.items():
            if isinstance(item, FileInput):
                found[name] = item.locked.digest
            elif isinstance(item, StageInput):
                found[name] = records[item.stage].outputs[item.output].digest
            elif isinstance(item, DataInput):
                found[name] = self.store.put(item.content).digest
            elif isinstance(item, BlobInput):
                found[name] = item.digest
            else:
                found[name] = self._copy_in(item)
            self.store.use(found[name])
        return found

    def _copy_in(self, item: SourceInput) -> str:
        with self.store.writer() as writer:
            writer.write((self.root / item.path).read_bytes())
            try:
                return writer.commit(item.digest).digest
            except IntegrityError as error:
                raise _moved(item.path) from error

    def _unchanged(self, stage: Stage) -> None:
        """A repository file that moved while it was being used: what was built is nobody's input."""
        from cache.canonical import sha256

        for item in stage.inputs.values():
            if isinstance(item, SourceInput) and sha256((self.root / item.path).read_bytes()) != item.digest:
                raise _moved(item.path)

    def _keep_failed_log(self, key: str, lines: StageLog, error: Exception) -> None:
        """The log of a failed build, for `log:<target>:<stage>`; best effort, the error itself comes first."""
        text = error.diagnostics() if isinstance(error, StagecraftError) else repr(error)
        try:
            for line in text.splitlines():
                lines.line(line)
            lines.keep(key)
        except StagecraftError:
            return


def _moved(path: str) -> StageError:
    return StageError("an input changed while it was being used", where=path, cure="run the same command again")


def _outputs(records: Mapping[str, Record], stage: Stage) -> dict[str, dict[str, str]]:
    return {name: {output: blob.digest for output, blob in records[name].outputs.items()}
            for name in stage.dependencies()}


def _ms(started: float) -> int:
    return int((time.monotonic() - started) * 1000)
