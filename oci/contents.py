"""What an image in the store consists of: its manifest read, its blobs named. Reads only the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cache.errors import IntegrityError
from cache.store import Blob, Store
from oci import media
from oci.image import ImageLayer


@dataclass(frozen=True)
class Image:
    """An image whose manifest and configuration are in the store.

    Attributes:
        manifest: its blob.
        config: its blob; its digest is the image id that Docker shows.
        layers: lowest first.
        annotations: of the manifest.
        platform: `os`, `architecture` and perhaps `variant`, from the configuration.
    """

    manifest: Blob
    config: Blob
    layers: tuple[ImageLayer, ...]
    annotations: Mapping[str, str]
    platform: Mapping[str, str]

    def blobs(self) -> tuple[Blob, ...]:
        """All its blobs, each once: manifest, configuration, layers from the lowest."""
        listed = [self.manifest, self.config, *(Blob(layer.digest, layer.size) for layer in self.layers)]
        return tuple({blob.digest: blob for blob in listed}.values())


def read_image(store: Store, manifest: str) -> Image:
    """The image of a manifest's digest, all its blobs there and kept until this process ends.

    Raises:
        IntegrityError: a blob is missing or altered, or has another size than the manifest says; no image manifest.
    """
    raw = store.read(manifest)
    data = parse(raw, manifest)
    if data.get("mediaType") not in media.MANIFESTS:
        raise IntegrityError("not an image manifest", where=manifest, found=str(data.get("mediaType")))
    try:
        config = Blob(data["config"]["digest"], data["config"]["size"])
        settings = parse(store.read(config.digest), config.digest)
        diff_ids = settings["rootfs"]["diff_ids"]
        history = [entry for entry in settings.get("history", ()) if not entry.get("empty_layer")]
        comments = [entry.get("created_by", "") for entry in history]
        if len(comments) != len(diff_ids):
            comments = [""] * len(diff_ids)
        listed = data["layers"]
        if len(listed) != len(diff_ids):
            raise IntegrityError("manifest and configuration list different layers", where=manifest)
        layers = tuple(
            ImageLayer(layer["digest"], layer["size"], layer["mediaType"], diff_id, comment)
            for layer, diff_id, comment in zip(listed, diff_ids, comments, strict=True))
        platform = {key: settings[key] for key in ("os", "architecture", "variant") if settings.get(key)}
        image = Image(Blob(manifest, len(raw)), config, layers, data.get("annotations", {}), platform)
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"malformed image: {error!r}", where=manifest) from error
    for blob in image.blobs():
        size = store.use(blob.digest).stat().st_size
        if size != blob.size:
            raise IntegrityError("a blob has another size than the manifest says", where=blob.digest,
                                 expected=f"{blob.size} bytes", found=f"{size} bytes",
                                 cure="./doit store:verify --repair")
    return image


def parse(raw: bytes, where: str) -> dict[str, Any]:
    """A JSON object of an image, perhaps another's: not necessarily canonical.

    Raises:
        IntegrityError: no JSON object.
    """
    try:
        data = json.loads(raw)
    except ValueError as error:
        raise IntegrityError("not JSON", where=where, found=str(error)) from error
    if not isinstance(data, dict):
        raise IntegrityError("not a JSON object", where=where, found=type(data).__name__)
    return data
