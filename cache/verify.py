"""Verification: everything in the store is read again; and how large it is.

A blob is right if its bytes have the hash that is its name. What is wrong is named; with `repair` it is moved
out of the way, so that it is a miss: the next run builds or fetches it again. Nothing that is right is ever
touched, and no damage needs the store to be thrown away.

Concurrency: safe beside builders and collection. What vanishes while it is read is not reported.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cache import canonical, durable, inventory
from cache.errors import IntegrityError
from cache.gc import empty_trash, trash_directory
from cache.record import Record, hex_of
from cache.store import Store

_CHUNK = 4 << 20


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: `blob`, `record`, `verdict`, `root`, `ledger`, `image`; or `dangling`, a record or an image layout
            whose blobs are not all there. That is a miss and no damage: the next build cures it.
        name: digest of a blob, else the path below the store.
        problem: what is wrong with it.
        needed_by: what names it: stages of the records, roots.
        repaired: it was moved out of the way.
    """

    kind: str
    name: str
    problem: str
    needed_by: tuple[str, ...] = ()
    repaired: bool = False


@dataclass(frozen=True)
class VerifyReport:
    """What was read, and what is wrong.

    Attributes:
        ok: nothing is damaged (dangling records are no damage).
    """

    blobs: int
    size: int
    records: int
    verdicts: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.kind == "dangling" for finding in self.findings)


def _no_progress(done: int, total: int) -> None:
    """Drop a progress report."""


def verify(store: Store, *, repair: bool = False,
           progress: Callable[[int, int], None] = _no_progress) -> VerifyReport:
    """Re-hash all blobs, read all records, verdicts, roots and the ledger strictly.

    Args:
        repair: move what is damaged out of the way. A record without its blobs stays: it is a miss, and
            still tells a plan what was built before.
        progress: takes (bytes read, bytes in all), from several threads but not at once.

    Raises:
        StoreError: the store cannot be read, or with `repair` not be written.
    """
    with store._named_errors():
        blobs = inventory.blobs(store)
        damaged = _damaged_blobs(store, blobs, progress)
        findings, records = _records(store, damaged)
        needed_by = _needed_by(store, records)
        found = [Finding("blob", digest, problem, needed_by.get(digest, ())) for digest, problem in damaged.items()]
        found += findings
        count = 0
        for path, _, _ in inventory.verdicts(store):
            count += 1
            found += _document(store, "verdict", f"verdicts/{path}")
        for kind, part in (("root", "roots"), ("ledger", "ledger")):
            for name, _ in inventory.files(store, part):
                found += _document(store, kind, f"{part}/{name}")
        found += _images(store)
        if repair and found:
            found = _repair(store, found, blobs)
    return VerifyReport(len(blobs), sum(blob.size for blob in blobs.values()), len(records), count, tuple(found))


# -- reading --------------------------------------------------------------------------------------


def _damaged_blobs(store: Store, blobs: Mapping[str, inventory.BlobFile],
                   progress: Callable[[int, int], None]) -> dict[str, str]:
    total = sum(blob.size for blob in blobs.values())
    done = 0
    mutex = threading.Lock()

    def read(count: int) -> None:
        nonlocal done
        with mutex:
            done += count
            progress(done, total)

    def check(digest: str) -> str | None:
        try:
            found = hash_file(store.path_of(digest), read)
        except ValueError:
            return "its name is no digest"
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"cannot be read: {os.strerror(error.errno or 0)}"
        return None if found == digest else f"its content is {found}"

    # Large ones first, so that no thread is left alone with one at the end.
    order = sorted(blobs, key=lambda digest: blobs[digest].size, reverse=True)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        problems = dict(zip(order, pool.map(check, order), strict=True))
    return {digest: problem for digest in sorted(order) if (problem := problems[digest]) is not None}


def hash_file(path: str | os.PathLike[str], read: Callable[[int], None] = lambda count: None) -> str:
    """`sha256:<hex>` of a file; `read` is told the bytes of each step."""
    content = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while count := os.readv(fd, [buffer]):
            content.update(view[:count])
            read(count)
    finally:
        os.close(fd)
    return "sha256:" + content.hexdigest()


def _records(store: Store, damaged: Mapping[str, str]) -> tuple[list[Finding], list[tuple[str, Record]]]:
    found, good = [], []
    for file in inventory.records(store):
        name = f"records/{file.name}"
        data = durable.contents(f"{store.root}/{name}")
        if data is None:
            continue
        try:
            record = Record.parse(data, name)
            problem = _wrong_place(record, file)
        except IntegrityError as error:
            problem = error.message
        if problem is not None:
            found.append(Finding("record", name, problem))
            continue
        good.append((name, record))
        lost = [f"{output} ({blob.digest})" for output, blob in record.outputs.items()
                if blob.digest in damaged or not store.has(blob.digest, blob.size)]
        if lost:
            problem = f"not there or damaged: {', '.join(lost)}"
            found.append(Finding("dangling", name, problem, (f"stage {_stage(record)}",)))
    return found, good


def _wrong_place(record: Record, file: inventory.RecordFile) -> str | None:
    """What in a record contradicts its place or itself."""
    if record.key != file.key:
        return f"it is a record of {record.key}"
    if os.path.basename(file.name) != hex_of(record.outputs_digest()) + ".json":
        return f"its outputs are {record.outputs_digest()}"
    if canonical.digest_of("derivation", record.derivation) != record.key:
        return "its key is not the digest of its derivation"
    return None


def _stage(record: Record) -> str:
    return str(record.facts.get("stage") or record.derivation.get("kind") or record.key)


def _needed_by(store: Store, records: Iterable[tuple[str, Record]]) -> dict[str, tuple[str, ...]]:
    """Digest to the stages whose records name it and the roots that do."""
    found: dict[str, set[str]] = {}
    for _, record in records:
        given = record.derivation.get("inputs", {})
        digests = {blob.digest for blob in record.outputs.values()} | {record.facts.get("log")}
        if isinstance(given, dict):
            digests |= {item.get("digest") for item in given.values() if isinstance(item, dict)}
        for digest in digests:
            found.setdefault(str(digest), set()).add(f"stage {_stage(record)}")
    with contextlib.suppress(IntegrityError):  # a damaged root is a finding of its own
        for name, content in store.roots().items():
            for digest in content.get("blobs", ()):
                found.setdefault(str(digest), set()).add(f"root {name}")
    return {digest: tuple(sorted(names)) for digest, names in found.items()}


def _document(store: Store, kind: str, name: str) -> list[Finding]:
    data = durable.contents(f"{store.root}/{name}")
    if data is None:
        return []
    try:
        value = canonical.loads(data, where=name)
    except IntegrityError as error:
        return [Finding(kind, name, error.message)]
    if not isinstance(value, dict):
        return [Finding(kind, name, "not an object")]
    key = f"sha256:{os.path.basename(name).removesuffix('.json')}"
    if kind in ("verdict", "ledger") and value.get("key") != key:
        return [Finding(kind, name, f"it is that of {value.get('key')}")]
    return []


def _images(store: Store) -> list[Finding]:
    """Layouts that link to blobs that are gone, or hold a wrong blob of their own."""
    found = []
    for name, layout in inventory.layouts(store).items():
        lost = sorted(digest for digest in layout.digests if not store.has(digest))
        if lost:
            found.append(Finding("dangling", f"images/{name}", f"not there: {', '.join(lost)}"))
        directory = store.root / "images" / name / "blobs" / "sha256"
        for path in sorted(directory.iterdir()) if directory.is_dir() else []:
            with contextlib.suppress(FileNotFoundError):
                if not path.is_symlink() and hash_file(path) != f"sha256:{path.name}":
                    found.append(Finding("image", f"images/{name}", f"its blob sha256:{path.name} is damaged"))
                    break
    return found


# -- repairing ------------------------------------------------------------------------------------


def _repair(store: Store, findings: Iterable[Finding], blobs: Mapping[str, inventory.BlobFile]) -> list[Finding]:
    into = trash_directory(store)
    found = []
    for number, finding in enumerate(findings):
        path = f"{store.root}/{finding.name}"
        if finding.kind == "blob":
            value = finding.name.removeprefix("sha256:")
            path = f"{store.root}/blobs/sha256/{value[:2]}/{value}"
        if finding.kind == "dangling":
            found.append(finding)
            continue
        moved = False
        with contextlib.suppress(FileNotFoundError):
            # Somebody may have put the right content in its place meanwhile.
            if finding.kind != "blob" or os.lstat(path).st_ino == blobs[finding.name].inode:
                os.rename(path, f"{into}/{number}")
                moved = True
        found.append(Finding(finding.kind, finding.name, finding.problem, finding.needed_by, moved))
    empty_trash(store)
    return found


# -- sizes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """A part of the store: how many things, how many bytes."""

    count: int
    size: int


@dataclass(frozen=True)
class StoreInfo:
    """Sizes of a store.

    Attributes:
        blobs: by what names them: `layers` (outputs called `layer`), `outputs` (other outputs and logs),
            `inputs` (inputs that are no output: locked files, files of the repository), `other` (no record
            names them: a download whose stage is not built yet, the log of a failed build).
        parts: records, verdicts, derived, images (without the blobs that they link to), trees, ccache, partial, tmp.
        roots: root names.
        nondeterministic: action keys in the ledger.
    """

    blobs: Mapping[str, Share]
    parts: Mapping[str, Share]
    roots: tuple[str, ...]
    nondeterministic: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(share.size for share in (*self.blobs.values(), *self.parts.values()))


def info(store: Store) -> StoreInfo:
    """Count and measure what is in the store, reading only names, sizes and records."""
    with store._named_errors():
        blobs = inventory.blobs(store)
        layers: set[str] = set()
        named: set[str] = set()
        given: set[str] = set()
        records = inventory.records(store)
        for file in records:
            data = durable.contents(f"{store.root}/records/{file.name}")
            if data is not None and not file.damaged:
                record = Record.from_bytes(data, file.key, file.name)
                layers |= {blob.digest for name, blob in record.outputs.items() if name == "layer"}
                named |= file.outputs
                given |= file.inputs
        kinds: dict[str, list[int]] = {"layers": [], "outputs": [], "inputs": [], "other": []}
        for digest, blob in blobs.items():
            kind = ("layers" if digest in layers else "outputs" if digest in named
                    else "inputs" if digest in given else "other")
            kinds[kind].append(blob.size)
        parts = {
            "records": [file.size for file in records],
            "verdicts": [there.st_size for _, there, _ in inventory.verdicts(store)],
            "derived": [there.st_size for _, there in inventory.derived(store)],
            "images": [layout.size for layout in inventory.layouts(store).values()],
            "trees": [size for _, _, _, size in inventory.trees(store)],
            "ccache": [size for _, _, size in inventory.ccache(store)],
            "partial": [there.st_size for _, there in inventory.files(store, "partial")],
            "tmp": [there.st_size for _, there in inventory.files(store, "tmp")],
        }
        return StoreInfo(
            {name: Share(len(sizes), sum(sizes)) for name, sizes in kinds.items()},
            {name: Share(len(sizes), sum(sizes)) for name, sizes in parts.items()},
            tuple(store.roots()), tuple(entry["key"] for entry in store.ledger()),
        )
