"""An image as one tar that both sides read: `docker load` (manifest.json) and OCI tools (oci-layout, index.json).

Deterministic: the same image and names give the same bytes. Streaming: nothing is held in memory but the list of blobs.
Each blob is there once; both descriptions point to it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cache import canonical, tar
from cache.archive import SOURCE_DATE_EPOCH
from cache.errors import InputError, IntegrityError, StoreError
from cache.store import Store, hex_of
from oci.contents import Image, read_image
from oci.layout import LAYOUT, index_of
from oci.reference import parse_reference

_READ = 1 << 20
_END = bytes(2 * tar.BLOCK)


def export_chunks(store: Store, manifest: str, names: Sequence[str] = ()) -> Iterator[bytes]:
    """The tar of an image, piece by piece.

    Args:
        manifest: digest of the image's manifest.
        names: what `docker load` shall call it: `NAME:TAG`, with or without a registry. The first is also its name for
            OCI tools.

    Raises:
        IntegrityError: a blob is missing or altered.
        InputError: a name that no image can have.
    """
    image = read_image(store, manifest)
    full = [docker_name(name) for name in names]
    yield from _small(image, full)
    for blob in sorted(image.blobs(), key=lambda blob: blob.digest):
        yield _header(_blob_path(blob.digest), blob.size)
        left = blob.size
        with store.open_blob(blob.digest) as file:
            while left and (chunk := file.read(min(_READ, left))):
                left -= len(chunk)
                yield chunk
        if left:
            raise IntegrityError("a blob was altered", where=blob.digest, cure="./doit store:verify --repair")
        yield tar.padding(blob.size)
    yield _END


def export_size(store: Store, manifest: str, names: Sequence[str] = ()) -> int:
    """Bytes of the tar that `export_chunks` gives, without reading the blobs."""
    image = read_image(store, manifest)
    size = sum(map(len, _small(image, [docker_name(name) for name in names]))) + len(_END)
    for blob in image.blobs():
        size += len(_header(_blob_path(blob.digest), blob.size)) + blob.size + len(tar.padding(blob.size))
    return size


def export_tar(store: Store, manifest: str, path: Path, names: Sequence[str] = (),
               progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Write the tar to a file; returns its size in bytes.

    Durability: the file appears whole, after fsync, or not at all; a file that was there is replaced.

    Raises:
        StoreError: the file cannot be written.
    """
    total, done = export_size(store, manifest, names), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise StoreError("the export cannot be written", where=str(path), found=error.strerror) from error
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o644)
            for chunk in export_chunks(store, manifest, names):
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError("the export cannot be written", where=str(path), found=error.strerror,
                         expected=f"room for {total} bytes") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return done


def docker_name(name: str) -> str:
    """`NAME:TAG` as Docker keeps it: a tag always, lower case checked.

    Raises:
        InputError: not a name.
    """
    try:
        local = parse_reference(name if _has_registry(name) else f"local.invalid/{name}")
    except InputError as error:
        raise InputError("not a name for an image", where=repr(name), expected="NAME:TAG in lower case") from error
    if local.digest:
        raise InputError("an image is named by tag", where=repr(name), expected="NAME:TAG")
    return str(local).removeprefix("local.invalid/") + ("" if local.tag else ":latest")


def _has_registry(name: str) -> bool:
    first, slash, _ = name.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")


def _small(image: Image, names: Sequence[str]) -> Iterator[bytes]:
    """Everything before the blobs."""
    annotations = {}
    if names:
        # containerd names what it imports by the first annotation, OCI tools select by the second.
        canonical_name = names[0] if _has_registry(names[0]) else "docker.io/" + (
            names[0] if "/" in names[0] else f"library/{names[0]}")
        annotations = {"io.containerd.image.name": canonical_name,
                       "org.opencontainers.image.ref.name": names[0].rpartition(":")[2]}
    docker = [{
        "Config": _blob_path(image.config.digest),
        "RepoTags": list(names),
        "Layers": [_blob_path(layer.digest) for layer in image.layers],
    }]
    for path, content in (("oci-layout", LAYOUT), ("index.json", index_of(image, annotations)),
                          ("manifest.json", docker)):
        data = canonical.dumps(content)
        yield _header(path, len(data)) + data + tar.padding(len(data))
    for directory in ("blobs", "blobs/sha256"):
        yield tar.header(directory.encode(), tar.DIRECTORY, 0o755, mtime=SOURCE_DATE_EPOCH)


def _blob_path(digest: str) -> str:
    return f"blobs/sha256/{hex_of(digest)}"


def _header(path: str, size: int) -> bytes:
    return tar.header(path.encode(), tar.FILE, 0o644, size=size, mtime=SOURCE_DATE_EPOCH)
