"""The store: blobs by content, records by action key, verdicts, roots.

On disk (all below `Store.root`; docs/formats/store.md)::

    store.json                          {"format": "stagecraft.store.v1"}
    blobs/sha256/ab/abcd…               content, mode 0444; the name is its sha256
    records/ab/abcd…/<outputs>.json     realisations of one action key; the first one wins
    verdicts/ab/abcd….json              result of one check
    roots/<name>.json                   what garbage collection keeps
    sessions/<id>                       what a running process uses (flocked while it lives)
    partial/<sha256 hex>                interrupted downloads (flocked while one runs)
    locks/<name>                        flock files: one per action key being built, `gc` for collection
    ledger/<action key hex>.json        different outputs were seen for this key
    tmp/<id>                            files being written (flocked while they are)
    images/<name>/                      OCI image layouts; their blobs are symlinks into blobs/
    logs/<action key hex>.log           logs of failed builds
    trees/ab/abcd…/                     a layer unpacked, for executors
    ccache/<user>-<name>/               results of compilers (flocked while a build uses them)
    trash/                              what collection is deleting

Durability: a blob is written to tmp/, hashed while written, fsynced, linked into blobs/ and its
directory fsynced. A record is published the same way, after all its blobs. So a record that
exists names bytes that were on disk, whatever was killed or lost power when.

Concurrency: any number of threads, processes and users on one machine. Publishing is link(2), so two
writers of one blob both succeed; flocks die with their process. Not for network file systems
without coherent flock and link.

A hit is a record *and* all its blobs with their sizes. A lost blob is a miss, never an error and
never "run clean". Blobs are not re-hashed on a hit: `cache.verify` does that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cache import canonical, documents, durable
from cache.errors import IntegrityError, StoreError
from cache.record import Blob, Record, hex_of
from cache.session import Session

if TYPE_CHECKING:
    from cache.blobs import BlobWriter
    from cache.partial import Partial

__all__ = ["FORMAT", "Blob", "Record", "Store", "default_root", "hex_of"]

FORMAT = "stagecraft.store.v1"

_PARTS = frozenset({"store.json", "blobs", "records", "verdicts", "roots", "sessions", "partial", "locks", "ledger",
                    "tmp", "images", "logs", "trees", "ccache", "failed", "derived", "trash"})


def default_root(environ: Mapping[str, str] | None = None) -> Path:
    """`$STAGECRAFT_STORE`, else `stagecraft` below the XDG cache directory."""
    env = os.environ if environ is None else environ
    if env.get("STAGECRAFT_STORE"):
        return Path(env["STAGECRAFT_STORE"]).expanduser().absolute()
    base = env.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: a relative one is to be ignored
        base = os.path.expanduser("~/.cache")
    return Path(base) / "stagecraft"


class Store:
    """See the module text. Open one with `Store.open`. Threads may share one object."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = str(root)
        self._tmp = os.path.join(self._root, "tmp")
        self._session = Session(self._root, self._tmp)

    # -- opening ----------------------------------------------------------------------------------

    @classmethod
    def open(cls, root: Path | None = None) -> Store:
        """Open the store at `root` (default: `default_root()`), making it if it is not there.

        A store that cannot be written still answers look-ups; writing to it raises StoreError.

        Raises:
            StoreError: `root` is something else than a store of this format, cannot be made, or
                is on a file system without hard links or flock.
        """
        store = cls(default_root() if root is None else root)
        marker = f"{store._root}/store.json"
        try:
            with store._named_errors():
                data = durable.contents(marker)
            if data is None:
                store._create(marker)
                return store
            found = canonical.loads(data, where=marker)
        except IntegrityError as error:
            raise StoreError("the store's marker is damaged", where=marker, found=error.message,
                             expected=canonical.dumps({"format": FORMAT}).decode(),
                             cure="put the expected text there, then run ./doit store:verify") from error
        if found != {"format": FORMAT}:
            raise StoreError(
                "this store has another format",
                where=marker,
                expected=FORMAT,
                found=str(found.get("format")) if isinstance(found, dict) else str(found),
                cure="set STAGECRAFT_STORE to another directory, or use the Stagecraft that made it",
            )
        return store

    def _create(self, marker: str) -> None:
        with self._named_errors():
            if os.path.lexists(self._root) and not os.path.isdir(self._root):
                raise StoreError("the store is not a directory", where=self._root,
                                 cure="set STAGECRAFT_STORE to a directory")
            durable.make_store_directory(os.path.abspath(self._root))
            strangers = sorted(set(os.listdir(self._root)) - _PARTS)
            if strangers and not os.path.isdir(f"{self._root}/blobs"):
                raise StoreError(
                    "refusing to make a store in a directory that holds other things",
                    where=self._root,
                    found=", ".join(strangers[:5]),
                    cure="set STAGECRAFT_STORE to an empty or new directory",
                )
            durable.make_directory(self._tmp, self._tmp)
            durable.probe(self._tmp)
        self._write_small(marker, canonical.dumps({"format": FORMAT}))

    # -- blobs ------------------------------------------------------------------------------------

    def path_of(self, digest: str) -> Path:
        """Where a blob of that digest lies or would lie."""
        return Path(self._blob(digest))

    def _blob(self, digest: str) -> str:
        value = hex_of(digest)
        return f"{self._root}/blobs/sha256/{value[:2]}/{value}"

    def has(self, digest: str, size: int | None = None) -> bool:
        """True if the blob is there (and has that size)."""
        try:
            found = os.stat(self._blob(digest)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return False
        return size is None or found == size

    def use(self, digest: str) -> Path:
        """The path of a blob that stays as long as this object lives, whatever gc runs beside it.

        Raises:
            IntegrityError: the blob is not in the store.
        """
        self._protect(digest)
        path = self.path_of(digest)
        if not path.exists():
            raise IntegrityError("a blob is missing from the store", where=str(path), cure=_AGAIN)
        return path

    def protect(self, *names: str) -> None:
        """Keep digests, or `trees/<key>`, from collection as long as this object lives, even if they are not there."""
        self._protect(*names)

    def open_blob(self, digest: str) -> BinaryIO:
        """Open a blob for reading. Raises IntegrityError if it is not there.

        What is open stays readable, so this enters nothing that gc would have to know.
        """
        path = self._blob(digest)
        try:
            return open(path, "rb")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise IntegrityError("a blob is missing from the store", where=path, cure=_AGAIN) from error

    def read(self, digest: str, limit: int = 256 << 20) -> bytes:
        """A small blob's whole content.

        Raises:
            IntegrityError: the blob is not there, is larger than `limit` bytes, or was altered.
        """
        path = self._blob(digest)
        with self.open_blob(digest) as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise IntegrityError(f"blob larger than {limit} bytes", where=path)
            data = file.read()
        found = canonical.sha256(data)
        if found != digest:
            raise IntegrityError("a blob was altered", where=path, expected=digest, found=found,
                                 cure="./doit store:verify --repair")
        return data

    def discard(self, digest: str) -> None:
        """Take a blob that was found damaged out of the store: what needs it is a miss then, and is made again."""
        with self._named_errors(), contextlib.suppress(FileNotFoundError):
            os.unlink(self.path_of(digest))

    def writer(self) -> BlobWriter:
        """A writer for one new blob; see `cache.blobs.BlobWriter`."""
        from cache.blobs import BlobWriter

        return BlobWriter(self)

    def put(self, data: bytes | Iterable[bytes]) -> Blob:
        """Publish bytes, or chunks of bytes, as one blob."""
        with self.writer() as writer:
            for chunk in [data] if isinstance(data, bytes) else data:
                writer.write(chunk)
            return writer.commit()

    def partial(self, digest: str, on_wait: Callable[[], None] | None = None) -> AbstractContextManager[Partial]:
        """A download of `digest` that may be there in part; see `cache.partial.Partial`.

        Use as a context manager; `on_wait` is called once if another process has it. Without
        `commit` the file is removed at the end of the block, except after `keep` or when the block
        ends by what is no `Exception` (Ctrl-C). A killed process leaves it. The next call goes on with it.
        """
        from cache import partial

        return partial.opened(self, digest, Path(f"{self._root}/partial/{hex_of(digest)}"), on_wait)

    # -- records ----------------------------------------------------------------------------------

    def lookup(self, key: str, *, use: bool = False) -> Record | None:
        """The first record of an action key whose blobs are all there; None is a miss.

        Args:
            use: also keep the record, and all that it names, from collection as long as this object
                lives. For whoever goes on to build with it or to root it; a plan needs it not.
        """
        if use:
            self._protect(key)
        for record in self._records(key):
            if record.key == key and all(self.has(b.digest, b.size) for b in record.outputs.values()):
                return record
        return None

    def _records(self, key: str) -> list[Record]:
        """All readable records of a key, the one that counts first."""
        value = hex_of(key)
        directory = f"{self._root}/records/{value[:2]}/{value}"
        try:
            names = os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        for name in names:
            path = f"{directory}/{name}"
            try:
                data = durable.contents(path)
                if data is not None:
                    found.append((path, Record.from_bytes(data, key, path)))
            except IntegrityError:
                continue  # store:verify names it; here it is a miss
        if len(found) > 1:
            kept = f"{directory}/{self._kept(value)}.json"
            # The ledger says which one counts; before it does, the older one. (A clock may be set back.)
            found.sort(key=lambda item: (item[0] != kept, durable.mtime(item[0]), item[0]))
        return [record for _, record in found]

    def _kept(self, value: str) -> str:
        """File name of the record that the ledger says counts, without `.json`; empty if it says nothing."""
        entry = documents.load(f"{self._root}/ledger/{value}.json") or {}
        return str(entry.get("kept", "")).removeprefix("sha256:")

    def records(self, key: str) -> list[Record]:
        """All readable records of an action key, first published first, even those whose blobs are gone."""
        return self._records(key)

    def publish(self, record: Record) -> Record:
        """Publish a record whose blobs are all published. Returns the record that counts.

        If the key has complete records with different outputs, the first one counts and all are
        entered in the ledger (see `ledger`), whoever published them when.

        Raises:
            IntegrityError: a blob of the record is not in the store.
            StoreError: the store cannot be written.
        """
        log = record.facts.get("log")
        self._protect(record.key, *(b.digest for b in record.outputs.values()), *([log] if log else ()))
        for name, blob in record.outputs.items():
            if not self.has(blob.digest, blob.size):
                raise IntegrityError(f"output {name} is not in the store", where=record.key, expected=blob.digest)
        earlier = self.lookup(record.key)
        value, ours = hex_of(record.key), record.outputs_digest()
        path = f"{self._root}/records/{value[:2]}/{value}/{hex_of(ours)}.json"
        if not documents.holds_record(path):  # one with these outputs is there: the first one stays, with its facts
            self._write_small(path, canonical.dumps(record.to_json()), replace=True)
        # Written first, then looked: of two who publish at once, at least the later one sees both.
        others = [r for r in self._records(record.key) if r.outputs_digest() != ours]
        if not others:
            return record
        kept = earlier or self.lookup(record.key) or record
        other = ours if kept.outputs_digest() != ours else others[-1].outputs_digest()
        entry = {"format": "stagecraft.ledger.v1", "key": record.key, "kept": kept.outputs_digest(), "other": other}
        self._write_small(f"{self._root}/ledger/{value}.json", canonical.dumps(entry), replace=True)
        return record if kept.outputs_digest() == ours else kept

    def ledger(self) -> list[dict[str, Any]]:
        """Keys for which different outputs were seen: what is not deterministic.

        One entry a key: `kept` counts, `other` was seen last; `records` has all.
        """
        return list(documents.load_all(f"{self._root}/ledger").values())

    # -- verdicts ---------------------------------------------------------------------------------

    def verdict(self, key: str) -> dict[str, Any] | None:
        """The verdict stored under a key, or None."""
        value = hex_of(key)
        return documents.load(f"{self._root}/verdicts/{value[:2]}/{value}.json")

    def put_verdict(self, key: str, verdict: Mapping[str, Any]) -> None:
        """Store a verdict; a later one of the same key takes its place."""
        value = hex_of(key)
        self._write_small(f"{self._root}/verdicts/{value[:2]}/{value}.json", canonical.dumps(verdict), replace=True)

    def directory(self, relative: str) -> Path:
        """A directory of the store, made if it is not there, writable by whoever may write its parent."""
        with self._named_errors():
            durable.make_directory(f"{self._root}/{relative}", self._tmp)
        return self.root / relative

    def put_log(self, key: str, chunks: Iterable[bytes]) -> None:
        """Keep the log of a failed build (`cache.log`) under its action key; a later failure's takes its place."""
        temporary, fd = self._temporary()
        try:
            with self._named_errors():
                for chunk in chunks:
                    durable.write_all(fd, [chunk] if chunk else [])
                durable.seal(fd)
                durable.replace(temporary, str(self.log_path(key)), self._tmp)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            os.close(fd)

    def log_path(self, key: str) -> Path:
        """Where the log of a failed build lies or would lie."""
        return Path(f"{self._root}/logs/{hex_of(key)}.log")

    # -- roots ------------------------------------------------------------------------------------

    def set_root(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep what `content` names: `{"keys": [action key…], "blobs": [digest…], …}`.

        If `content` has a `link` (absolute path), the root counts only while that link exists and
        points to `content["points_to"]`, or while this object lives; an image layout there is kept too,
        with its blobs. To root what was only looked up, look it up with `use=True` first.
        """
        _plain_name(name)
        self._protect(f"roots/{name}", *content.get("keys", ()), *content.get("blobs", ()))
        self._write_small(f"{self._root}/roots/{name}.json", canonical.dumps(content), replace=True)

    def remove_root(self, name: str) -> None:
        """Forget a root; what only it kept is garbage from now on."""
        _plain_name(name)
        with self._named_errors(), contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._root}/roots/{name}.json")

    def root_named(self, name: str) -> dict[str, Any] | None:
        """The content of one root, or None."""
        return documents.load(f"{self._root}/roots/{name}.json")

    def roots(self) -> dict[str, dict[str, Any]]:
        """All roots by name. Raises IntegrityError if one cannot be read."""
        return documents.load_all(f"{self._root}/roots")

    # -- locks ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, name: str, on_wait: Callable[[], None] | None = None,
               poll: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the exclusive lock `name`; `on_wait` is called once if another process holds it.

        `poll` is called ten times a second while waiting; what it raises ends the wait.
        """
        _plain_name(name)
        with self._named_errors():
            durable.make_directory(f"{self._root}/locks", self._tmp)
            fd = durable.open_locked(f"{self._root}/locks/{name}", self._tmp, on_wait=on_wait, poll=poll)
        try:
            yield
        finally:
            os.close(fd)

    # -- below the surface ------------------------------------------------------------------------

    def _protect(self, *names: str) -> None:
        """Enter digests in this process's session file, so that gc leaves them alone."""
        with self._named_errors():
            self._session.protect(names)

    def _temporary(self) -> tuple[str, int]:
        with self._named_errors(), self._session.guard():
            return durable.temporary(self._tmp)

    def _publish(self, temporary: str, digest: str, size: int) -> None:
        durable.publish(temporary, self._blob(digest), size, self._tmp)

    def _write_small(self, path: str, data: bytes, *, replace: bool = False) -> None:
        temporary, fd = self._temporary()
        try:
            with self._named_errors():
                durable.write_all(fd, [data])
                durable.seal(fd)
                if replace:
                    durable.replace(temporary, path, self._tmp)
                else:
                    durable.publish(temporary, path, len(data), self._tmp)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            os.close(fd)

    def _named_errors(self) -> AbstractContextManager[None]:
        return durable.named_errors(self._root)


_AGAIN = "run the same command again: what is missing is built or fetched again"


def _plain_name(name: str) -> None:
    if not name or "/" in name or "\0" in name or name.startswith("."):
        raise ValueError(f"not a plain name: {name!r}")
