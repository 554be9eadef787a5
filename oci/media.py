"""Media types of images, and what each means here.

OCI image specification v1.1 and Docker's image manifest version 2, schema 2.
"""

from __future__ import annotations

from cache.errors import IntegrityError

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER + "+gzip"
LAYER_ZSTD = LAYER + "+zstd"

DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

INDEXES = (INDEX, DOCKER_LIST)
MANIFESTS = (MANIFEST, DOCKER_MANIFEST)
#: What a registry is asked for.
ACCEPT = ", ".join((*MANIFESTS, *INDEXES))

#: Layer media type to its OCI name: the bytes are the same, only the word differs.
_LAYERS = {
    LAYER: LAYER,
    LAYER_GZIP: LAYER_GZIP,
    LAYER_ZSTD: LAYER_ZSTD,
    "application/vnd.docker.image.rootfs.diff.tar": LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": LAYER_ZSTD,
}


def oci_layer(media_type: str) -> str:
    """The OCI media type of a layer that came under this one.

    Raises:
        IntegrityError: not a layer that a registry holds (foreign layers are fetched from elsewhere).
    """
    try:
        return _LAYERS[media_type]
    except KeyError:
        raise IntegrityError("unknown kind of layer", expected="a tar, plain or with gzip or zstd",
                             found=media_type or "no media type") from None


def compression(media_type: str) -> str:
    """`none`, `gzip` or `zstd`.

    Raises:
        IntegrityError: not a layer.
    """
    return {LAYER: "none", LAYER_GZIP: "gzip", LAYER_ZSTD: "zstd"}[oci_layer(media_type)]
