"""OCI image layouts: a directory that skopeo, podman and others read, made of links into the store.

    images/<name>/oci-layout              {"imageLayoutVersion":"1.0.0"}
                  index.json              one manifest, named `latest`
                  blobs/sha256/<hex>      link to ../../../../blobs/sha256/ab/abcd…
                  sbom.spdx.json, …       links, beside what the specification knows

Durability and concurrency: one writer a layout (a lock of the store). A new layout appears whole, by rename. One that
is there is brought up to date file by file: blobs first, index.json last and by rename, so that a reader beside sees
the old image or the new one. The links are relative: a store may be moved with its layouts.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache import canonical
from cache.errors import InputError, StoreError
from cache.store import Store, hex_of
from oci import media
from oci.contents import Image, read_image

LAYOUT = {"imageLayoutVersion": "1.0.0"}


def index_of(image: Image, annotations: Mapping[str, str]) -> dict[str, Any]:
    """The index.json of a layout that holds one image."""
    return {
        "schemaVersion": 2,
        "mediaType": media.INDEX,
        "manifests": [{
            "mediaType": media.MANIFEST, "digest": image.manifest.digest, "size": image.manifest.size,
            "platform": dict(image.platform), "annotations": dict(annotations),
        }],
    }


def write_layout(store: Store, manifest: str, *, name: str, extra: Mapping[str, str] | None = None) -> Path:
    """Make or renew `<store>/images/<name>` for the image of a manifest in the store.

    Args:
        manifest: the manifest's digest.
        name: of the directory: letters, digits, `.`, `_`, `-`.
        extra: further files beside the layout: file name to digest.

    Returns:
        The layout's absolute path.

    Raises:
        IntegrityError: a blob of the image is missing.
        StoreError: the store cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ValueError(f"not a name for a layout: {name!r}")
    image = read_image(store, manifest)
    files = {
        "oci-layout": canonical.dumps(LAYOUT),
        "index.json": canonical.dumps(index_of(image, {"org.opencontainers.image.ref.name": "latest"})),
    }
    links = {f"blobs/sha256/{hex_of(blob.digest)}": blob.digest for blob in image.blobs()}
    links |= extra or {}
    for digest in links.values():
        store.use(digest)
    images = store.root.absolute() / "images"
    path = images / name
    with store.locked(f"layout-{name}"):
        try:
            if path.is_dir():
                _write(store, path, files, links)
                _remove_strays(path, {*files, *links})
            else:
                store.directory("images")
                temporary = images / f".{name}.new"
                if temporary.exists():  # of a process that was killed: the lock says that nobody uses it
                    shutil.rmtree(temporary)
                _write(store, temporary, files, links)
                temporary.rename(path)
        except OSError as error:
            raise StoreError("the image layout cannot be written", where=str(error.filename or path),
                             found=os.strerror(error.errno or 0),
                             cure="set STAGECRAFT_STORE to a directory that you may write") from error
    return path


def _write(store: Store, path: Path, files: Mapping[str, bytes], links: Mapping[str, str]) -> None:
    store.directory(os.path.relpath(path / "blobs" / "sha256", store.root.absolute()))
    for relative, digest in links.items():
        place = path / relative
        # The final place decides how far up the store is: a temporary directory lies at the same depth.
        _place_link(place, os.path.relpath(store.path_of(digest).absolute(), place.parent))
    for relative, content in files.items():  # index.json last: it makes the rest visible
        temporary = path / f".{relative}.new"
        temporary.write_bytes(content)
        temporary.replace(path / relative)


def _place_link(place: Path, target: str) -> None:
    with contextlib.suppress(OSError):
        if os.readlink(place) == target:
            return
    temporary = place.with_name(f".{place.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(target)
    temporary.replace(place)


def _remove_strays(path: Path, wanted: set[str]) -> None:
    for found in [*path.iterdir(), *(path / "blobs" / "sha256").iterdir()]:
        if found.name != "blobs" and str(found.relative_to(path)) not in wanted:
            found.unlink()


def link_result(store: Store, layout: Path, link: Path, *, root: str, content: Mapping[str, Any]) -> None:
    """Point the link `link` to a layout and keep what it holds, as garbage-collection root `root`.

    The root counts only while the link points to the layout. While the link moves, the root keeps both the old image
    and the new one: killed at any point, neither is lost.

    Args:
        content: further fields of the root: `keys`, `blobs` and what else is of use; see `Store.set_root`.

    Raises:
        InputError: something that is no link is in the way.
        StoreError: the link or the root cannot be written.
    """
    if link.exists() and not link.is_symlink():
        raise InputError("something else is in the way of the result link", where=str(link), cure="move it away")
    temporary = link.with_name(f".{link.name}-{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        temporary.symlink_to(layout)
        final = {**content, "link": str(link.absolute()), "points_to": str(layout)}
        try:
            moving = _both(store.root_named(root), link, final)
            store.set_root(root, moving)
            temporary.replace(link)
            if moving != final:
                store.set_root(root, final)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        raise StoreError("the result link cannot be written", where=str(link),
                         found=os.strerror(error.errno or 0)) from error


def _both(old: Mapping[str, Any] | None, link: Path, new: dict[str, Any]) -> dict[str, Any]:
    """The root while the link moves: what the old one keeps, if it counts, and what the new one will."""
    try:
        there = os.readlink(link)
    except OSError:
        return new
    if old is None or there == new["points_to"] or there not in (old.get("points_to"), old.get("was")):
        return new
    kept = {part: sorted({*old.get(part, ()), *new.get(part, ())}) for part in ("keys", "blobs")}
    return {**new, **kept, "was": there}
