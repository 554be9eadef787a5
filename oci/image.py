"""The image: configuration and manifest over layers that exist. Nothing is copied.

Builder `image`. Inputs: `base/<nn>` (layers of a base image as its registry holds them, lowest first), then
`layers/<nn>-<stage>` (our uncompressed layers, lowest first). Outputs: `config`, `manifest`. OCI image specification
v1.1, canonical JSON, all times `SOURCE_DATE_EPOCH`. The format with an example is docs/formats/image.md.

A pushed image has another manifest (its layers are compressed) but the same configuration, hence the same image id.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache import canonical
from cache.archive import SOURCE_DATE_EPOCH
from cache.build import BuildContext
from cache.errors import InputError, IntegrityError
from cache.store import Blob
from oci import media

CREATED = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(SOURCE_DATE_EPOCH))

#: Variants that the image specification's table gives an architecture; Docker's own images say the same.
_VARIANTS = {"arm64": "v8"}


@dataclass(frozen=True)
class ImageLayer:
    """A layer as the manifest lists it.

    Attributes:
        digest: of the blob as it is stored (compressed or not).
        size: of that blob, in bytes.
        media_type: OCI media type of that blob.
        diff_id: digest of the uncompressed tar.
        comment: what made it; for the history.
    """

    digest: str
    size: int
    media_type: str
    diff_id: str
    comment: str


def build(context: BuildContext) -> dict[str, Blob]:
    """Builder `image`; see the module text.

    Params: `environment` and `labels` (maps), `entrypoint` and `cmd` (lists), `user`, `workdir`, `stop_signal` (texts),
    `ports` (numbers or texts like `53/udp`), `volumes` (list of paths), `comments` (stage to text), `base`
    (`{"layers": [{"digest", "size", "media_type", "diff_id"}], "config": {…}, "reference"}`). All may be left out.

    Raises:
        IntegrityError: the base's layers are not the inputs.
        InputError: a parameter that no configuration can hold.
    """
    params = context.params
    layers = _base_layers(context) + _own_layers(context)
    config = canonical.dumps(configuration(params, context.platform, layers))
    stored = context.store.put(config)
    described = manifest(stored, layers, base_annotations(params.get("base", {})))
    context.log(f"{len(layers)} layers, {sum(layer.size for layer in layers)} bytes, config {stored.digest}")
    return {"config": stored, "manifest": context.store.put(canonical.dumps(described))}


def _base_layers(context: BuildContext) -> list[ImageLayer]:
    listed: Sequence[Mapping[str, Any]] = context.params.get("base", {}).get("layers", ())
    reference = context.params.get("base", {}).get("reference", "base image")
    given = [context.inputs[name] for name in sorted(context.inputs) if name.startswith("base/")]
    if given != [layer["digest"] for layer in listed]:
        raise IntegrityError("the layers of the base image are not those of its manifest", where=str(reference),
                             expected=", ".join(layer["digest"] for layer in listed), found=", ".join(given))
    return [ImageLayer(layer["digest"], _size(context, layer["digest"]), media.oci_layer(layer["media_type"]),
                       layer["diff_id"], f"layer {number} of {reference}") for number, layer in enumerate(listed)]


def _own_layers(context: BuildContext) -> list[ImageLayer]:
    comments: Mapping[str, str] = context.params.get("comments", {})
    found = []
    for name in sorted(context.inputs):
        if name.startswith("layers/"):
            digest = context.inputs[name]
            stage = re.sub(r"^\d+-", "", name.partition("/")[2])
            text = f"stagecraft {stage}: {comments[stage]}" if stage in comments else f"stagecraft {stage}"
            found.append(ImageLayer(digest, _size(context, digest), media.LAYER, digest, text))
    return found


def _size(context: BuildContext, digest: str) -> int:
    return context.store.use(digest).stat().st_size


def configuration(params: Mapping[str, Any], platform: Mapping[str, str],
                  layers: Sequence[ImageLayer]) -> dict[str, Any]:
    """The image configuration (`application/vnd.oci.image.config.v1+json`) as data.

    What the target says wins over what the base image says, variable by variable and label by label. An entrypoint of
    the target drops the base's command too, as `docker build` does.
    """
    base: Mapping[str, Any] = params.get("base", {}).get("config", {})
    environment = {**base.get("environment", {}), **params.get("environment", {})}
    for name, value in environment.items():
        if not name or "=" in name or "\0" in name + value:
            raise InputError("not an environment variable", where=f"environment.{name!r}")
    entrypoint = list(params.get("entrypoint", ()))
    cmd = list(params.get("cmd", ()))
    if not cmd and not entrypoint:
        cmd = list(base.get("cmd", ()))
    run: dict[str, Any] = {
        "Env": [f"{name}={environment[name]}" for name in sorted(environment)],
        "Entrypoint": entrypoint or list(base.get("entrypoint", ())),
        "Cmd": cmd,
        "User": params.get("user") or base.get("user", ""),
        "WorkingDir": params.get("workdir") or base.get("workdir", ""),
        "ExposedPorts": {_port(port): {} for port in (*base.get("ports", ()), *params.get("ports", ()))},
        "Volumes": {path: {} for path in (*base.get("volumes", ()), *params.get("volumes", ()))},
        "Labels": {**base.get("labels", {}), **params.get("labels", {})},
        "StopSignal": params.get("stop_signal") or base.get("stop_signal", ""),
    }
    architecture = platform["architecture"]
    found: dict[str, Any] = {
        "created": CREATED,
        "architecture": architecture,
        "os": platform["os"],
        "config": {key: value for key, value in run.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": CREATED, "created_by": layer.comment} for layer in layers],
    }
    variant = platform.get("variant") or _VARIANTS.get(architecture)
    return found | ({"variant": variant} if variant else {})


def _port(port: int | str) -> str:
    text = str(port)
    if not re.fullmatch(r"\d{1,5}(/(tcp|udp|sctp))?", text):
        raise InputError("not a port", where="ports", expected="a number, or one with its protocol like 53/udp",
                         found=text)
    return text if "/" in text else f"{text}/tcp"


def manifest(config: Blob, layers: Sequence[ImageLayer], annotations: Mapping[str, str]) -> dict[str, Any]:
    """The image manifest (`application/vnd.oci.image.manifest.v1+json`) as data."""
    found: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media.MANIFEST,
        "config": {"mediaType": media.CONFIG, "digest": config.digest, "size": config.size},
        "layers": [{"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size} for layer in layers],
    }
    return found | ({"annotations": dict(annotations)} if annotations else {})


def base_annotations(base: Mapping[str, Any]) -> dict[str, str]:
    """`org.opencontainers.image.base.*` of an image that stands on another."""
    name, _, digest = str(base.get("reference", "")).partition("@")
    found = {"org.opencontainers.image.base.name": name, "org.opencontainers.image.base.digest": digest}
    return {key: value for key, value in found.items() if value}
