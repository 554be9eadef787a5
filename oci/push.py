"""A whole image into a registry: compressed layers, the same configuration, a manifest that lists both.

Only what the registry lacks travels. What was pushed is returned as data (format `stagecraft.push.v1`,
docs/formats/push.md), so that the digest in a registry can be traced to the image and to the compressor that made it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cache import canonical
from cache.build import BuildContext
from cache.errors import FetchError, InputError
from cache.store import Blob, Store
from oci import compress, media
from oci.contents import Image, read_image
from oci.image import ImageLayer, manifest
from oci.reference import parse_reference
from oci.registry import PUSH, Registry
from oci.upload import upload

#: Takes (params, digest of the layer) of the builder `compressed-layer` and gives its output. The caller's chance to
#: keep it under an action key, so that a layer is compressed once in its life.
Compress = Callable[[Mapping[str, Any], str], Blob]
#: Takes what is being done, bytes done, bytes in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pushed:
    """The record of a push.

    Attributes:
        reference: `REGISTRY/REPOSITORY:TAG`.
        manifest: digest of the manifest in the registry.
        config: digest of the configuration: the image id, the same as of the local image.
        compressor: name, level, library and its version.
        layers: per layer: `diff_id`, `digest`, `size`, `media_type`.
        how: digest to how the blob came there: "there", "mounted" or "sent". Depends on the registry, not on the image.
    """

    reference: str
    manifest: str
    config: str
    compressor: Mapping[str, Any]
    layers: tuple[ImageLayer, ...]
    how: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "stagecraft.push.v1", "reference": self.reference, "manifest": self.manifest,
            "config": self.config, "compressor": dict(self.compressor),
            "layers": [{"diff_id": layer.diff_id, "digest": layer.digest, "size": layer.size,
                        "media_type": layer.media_type} for layer in self.layers],
        }

    @property
    def sent(self) -> int:
        """Bytes of layers that travelled."""
        return sum({layer.digest: layer.size for layer in self.layers if self.how.get(layer.digest) == "sent"}.values())


def compressed_image(image: Image, name: str, level: int, make: Compress) -> tuple[bytes, list[ImageLayer]]:
    """The manifest to push and its layers. Layers that are compressed already (of a base image) stay as they are."""
    params = {"compressor": compress.compressor(name, level)}
    layers = []
    for layer in image.layers:
        if media.compression(layer.media_type) == "none":
            blob = make(params, layer.digest)
            layer = ImageLayer(blob.digest, blob.size, compress.MEDIA_TYPES[name], layer.diff_id, layer.comment)
        layers.append(layer)
    return canonical.dumps(manifest(image.config, layers, image.annotations)), layers


def make_here(store: Store, progress: Progress | None = None) -> Compress:
    """Compress in this process, keeping no record: for use without the engine."""
    def make(params: Mapping[str, Any], layer: str) -> Blob:
        def report(done: int, total: int) -> None:
            if progress is not None:
                progress(f"compress {layer[7:19]}", done, total)

        return compress.build(BuildContext(store, params, {"layer": layer}, progress=report))["layer"]

    return make


def push(store: Store, image: str, reference: str, *, compression: Mapping[str, Any], make: Compress | None = None,
         progress: Progress | None = None, registry: Registry | None = None, mount_from: str = "",
         jobs: int = 3) -> Pushed:
    """Push an image of the store.

    Args:
        image: digest of the local manifest.
        reference: `REGISTRY/REPOSITORY:TAG`.
        compression: `{"name": "zstd" or "gzip", "level"}`.
        make: makes compressed layers; default: in this process, each time.
        mount_from: a repository of the same registry that may have the layers.
        jobs: blobs at once.

    Raises:
        InputError: a reference by digest, an unknown compressor.
        FetchError: the registry refuses or does not answer. What arrived stays there and is not sent again.
        IntegrityError: a blob is missing or altered.
    """
    place = parse_reference(reference)
    if place.digest:
        raise InputError("an image is pushed to a tag", where=reference, cure="leave out @sha256:…")
    registry = registry or Registry.connect(place)
    local = read_image(store, image)
    # Asked before anything is compressed: that may take minutes, and the answer may be no.
    registry.request("HEAD", f"{place.repository}/blobs/{local.config.digest}", PUSH.format(place.repository)).close()
    raw, layers = compressed_image(local, compression["name"], compression["level"],
                                   make or make_here(store, progress))
    blobs = {layer.digest: Blob(layer.digest, layer.size) for layer in layers}
    # The configuration last of the blobs: a registry that has it was given all the layers once.
    how = _upload_all(store, registry, place.repository, [*blobs.values(), local.config], mount_from, progress, jobs)
    digest = canonical.sha256(raw)
    response = registry.request("PUT", f"{place.repository}/manifests/{place.tag or 'latest'}",
                                PUSH.format(place.repository), data=raw, headers={"Content-Type": media.MANIFEST})
    with response:
        registry.expect(response, f"{registry.host}/{place.repository}", 201)
        told = response.headers.get("Docker-Content-Digest", digest)
    if told != digest:
        raise FetchError("the registry stored another manifest than it was sent", where=str(place), expected=digest,
                         found=told)
    return Pushed(f"{place.name}:{place.tag or 'latest'}", digest, local.config.digest,
                  compress.compressor(compression["name"], compression["level"]), tuple(layers), how)


def _upload_all(store: Store, registry: Registry, repository: str, blobs: list[Blob], mount_from: str,
                progress: Progress | None, jobs: int) -> dict[str, str]:
    total = sum(blob.size for blob in blobs)
    done: dict[str, int] = {}
    lock = threading.Lock()
    how: dict[str, str] = {}

    def one(blob: Blob) -> None:
        def report(count: int) -> None:
            with lock:
                done[blob.digest] = count
                if progress is not None:
                    progress("push", sum(done.values()), total)

        how[blob.digest] = upload(registry, repository, blob, store.use(blob.digest), mount_from=mount_from,
                                  report=report)
        report(blob.size)

    with ThreadPoolExecutor(max(1, jobs), "push") as pool:
        tasks = [pool.submit(one, blob) for blob in blobs[:-1]]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    one(blobs[-1])
    return how
