"""Small images for tests, made with the project's own writers and builders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cache.archive import LayerWriter
from cache.build import BuildContext
from cache.store import Blob, Store
from oci import image

ARM64 = {"os": "linux", "architecture": "arm64"}
AMD64 = {"os": "linux", "architecture": "amd64"}


def make_layer(store: Store, files: Mapping[str, bytes], modes: Mapping[str, int] | None = None) -> str:
    """A layer with these files and the directories above them; returns its digest."""
    directories = {"/".join(path.split("/")[:count]) for path in files for count in range(1, path.count("/") + 1)}
    with LayerWriter(store) as writer:
        for path in sorted({*files, *directories}, key=lambda path: path.encode()):
            if path in files:
                writer.file(path, len(files[path]), [files[path]], (modes or {}).get(path, 0o644))
            else:
                writer.directory(path)
        return writer.finish().layer.digest


def make_image(store: Store, layers: Sequence[str], platform: Mapping[str, str] = ARM64,
               **params: Any) -> dict[str, Blob]:
    """An image of our own layers, by the builder `image`."""
    inputs = {f"layers/{number:02}-part{number}": digest for number, digest in enumerate(layers)}
    return image.build(BuildContext(store, params, inputs, platform))


def sample(store: Store, **params: Any) -> dict[str, Blob]:
    """An arm64 image with two layers, 400 KiB in all."""
    first = make_layer(store, {"etc/hostname": b"sample\n", "usr/share/numbers": bytes(range(256)) * 1000})
    second = make_layer(store, {"opt/text": b"all work and no play\n" * 7000})
    return make_image(store, [first, second], **{"environment": {"LANG": "C.UTF-8"}, **params})
