"""A base image from a registry: locked to digests, its facts read from its own layers, its layers left as they are.

`lock_base` is the only place where a tag is resolved. Builder `base-facts` computes the same facts from the locked
blobs, so that a fresh machine needs nothing but the lock. Inputs: `base/<nn>` (layers as the registry holds them,
lowest first). Params: `{"layers": [{"media_type", "diff_id"}]}`. Outputs: `status` (dpkg's database), `passwd`,
`group`, `os-release` (each empty if the image has none), `index` (what the layers hold together).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cache.build import BuildContext
from cache.errors import FetchError, IntegrityError, LockError
from cache.store import Blob, Store, hex_of
from oci import facts, media
from oci.contents import parse
from oci.merge import Merged
from oci.reference import Reference, parse_reference
from oci.registry import Patience, Registry, RemoteManifest
from oci.source import OciSource

__all__ = ["LockedBase", "OciSource", "build", "lock_base"]


@dataclass(frozen=True)
class LockedBase:
    """A base image, exact.

    Attributes:
        reference: what was asked for, with the digest that it means.
        repository: `REGISTRY/REPOSITORY`: where its blobs are fetched from.
        digest: of the image manifest for the platform.
        config: what its configuration says that an image on top inherits, see `inherited`.
        layers: `digest`, `size`, `media_type`, `diff_id` of each, lowest first.
        python: as in a lock: `version`, `executable`, `glibc`, `site`, `scripts`, `data`.
        status: dpkg's status database, byte for byte.
        os_release: of the distribution: `ID`, `VERSION_CODENAME`, …
    """

    reference: str
    repository: str
    digest: str
    config: Mapping[str, Any]
    layers: tuple[Mapping[str, Any], ...]
    python: Mapping[str, str]
    status: bytes
    os_release: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The `base` section of a lock."""
        return {"kind": "image", "reference": self.reference, "repository": self.repository, "digest": self.digest,
                "config": dict(self.config), "layers": [dict(layer) for layer in self.layers]}


def build(context: BuildContext) -> dict[str, Blob]:
    """Builder `base-facts`; see the module text.

    Raises:
        IntegrityError: a layer is malformed, or not the one that the configuration lists.
    """
    digests = [context.inputs[name] for name in sorted(context.inputs) if name.startswith("base/")]
    listed = context.params["layers"]
    if len(digests) != len(listed):
        raise IntegrityError("the layers of the base image are not those of its manifest",
                             expected=f"{len(listed)} layers", found=f"{len(digests)} layers")
    layers = [{**layer, "digest": digest} for layer, digest in zip(listed, digests, strict=True)]
    image = merge_layers(context.store, layers, context)
    context.log(f"{len(layers)} layers, {len(image.items)} paths")
    put = context.store.put
    return {
        "status": put(facts.status_of(image)), "passwd": put(image.read("etc/passwd") or b""),
        "group": put(image.read("etc/group") or b""), "os-release": put(facts.os_release_of(image)),
        "index": put(image.index()),
    }


def merge_layers(store: Store, layers: Iterable[Mapping[str, Any]], context: BuildContext | None = None) -> Merged:
    """The file system of layers that are in the store (`digest`, `media_type`, `diff_id` of each, lowest first)."""
    image = Merged(facts.kept)
    listed = list(layers)
    for number, layer in enumerate(listed):
        media.oci_layer(layer["media_type"])
        with store.open_blob(layer["digest"]) as file:
            image.add_layer(file, layer["diff_id"], f"layer {number} of the base image")
        if context is not None:
            context.progress(number + 1, len(listed))
    return image


def lock_base(reference: str, platform: Mapping[str, str], *, store: Store | None = None,
              added: Collection[str] = (), python: str = "", environ: Mapping[str, str] | None = None,
              patience: Patience | None = None) -> LockedBase:
    """Resolve a reference to digests and read the facts. Its layers are brought into the store: a build needs them.

    Args:
        platform: `os` and `architecture`; of an index that image is taken.
        store: default: the usual one.
        added: names of the packages that will be laid on it.
        python: the Python version wanted, two numbers; counts if one of `added` brings it.

    Raises:
        InputError: not a reference.
        FetchError: the registry is down, refuses, or does not have it.
        LockError: not for this platform; no Python or no glibc in it.
        IntegrityError: the registry gives other bytes than it names.
    """
    name = parse_reference(reference)
    store = store or Store.open()
    registry = Registry.connect(name, patience=patience, environ=environ)
    manifest = registry.manifest_for(name, platform)
    config, layers = _describe(registry, name, manifest, platform)
    _pull(store, registry, name, layers)
    image = merge_layers(store, layers)
    found = facts.python_of(image, config["environment"], reference, added=added, version=python)
    return LockedBase(
        str(Reference(name.registry, name.repository, name.tag, name.digest or manifest.digest)), name.name,
        manifest.digest, config, tuple(layers), {**found, "glibc": facts.glibc_of(image, reference)},
        facts.status_of(image), facts.os_release(facts.os_release_of(image)))


def lock_layers(reference: str, platform: Mapping[str, str], *, environ: Mapping[str, str] | None = None,
                patience: Patience | None = None) -> dict[str, Any]:
    """Resolve a reference to the digests of an image and its layers; nothing of these is fetched.

    Returns:
        `reference`, `repository`, `digest`, `layers` as `LockedBase` has them.

    Raises:
        InputError, FetchError, LockError, IntegrityError: as `lock_base`.
    """
    name = parse_reference(reference)
    registry = Registry.connect(name, patience=patience, environ=environ)
    manifest = registry.manifest_for(name, platform)
    _, layers = _describe(registry, name, manifest, platform)
    exact = Reference(name.registry, name.repository, name.tag, name.digest or manifest.digest)
    return {"reference": str(exact), "repository": name.name, "digest": manifest.digest, "layers": layers}


def _describe(registry: Registry, name: Reference, manifest: RemoteManifest,
              platform: Mapping[str, str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the configuration says, and the layers."""
    data = manifest.data
    try:
        digest, size = data["config"]["digest"], data["config"]["size"]
        hex_of(digest)
        settings = parse(registry.small_blob(name.repository, digest, size), digest)
        there = f"{settings.get('os')}/{settings.get('architecture')}"
        if there != f"{platform['os']}/{platform['architecture']}":
            raise LockError("the base image is for another platform", where=str(name), found=there,
                            expected=f"{platform['os']}/{platform['architecture']}")
        layers = []
        for layer, diff_id in zip(data["layers"], settings["rootfs"]["diff_ids"], strict=True):
            media.oci_layer(layer["mediaType"])
            hex_of(layer["digest"]), hex_of(diff_id)
            layers.append({"digest": layer["digest"], "size": int(layer["size"]), "media_type": layer["mediaType"],
                           "diff_id": diff_id})
        return inherited(settings, digest), layers
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"malformed image: {error!r}", where=str(name), found=manifest.digest) from error


def inherited(settings: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """What an image on top takes over from a configuration: only what is there, canonical JSON values.

    Keys: `digest` (of the configuration), `environment`, `entrypoint`, `cmd`, `user`, `workdir`, `ports`, `volumes`,
    `labels`, `stop_signal`.
    """
    run = settings.get("config") or {}
    found = {
        "entrypoint": list(run.get("Entrypoint") or ()),
        "cmd": list(run.get("Cmd") or ()),
        "user": run.get("User") or "",
        "workdir": run.get("WorkingDir") or "",
        "ports": sorted(run.get("ExposedPorts") or ()),
        "volumes": sorted(run.get("Volumes") or ()),
        "labels": {str(key): str(value) for key, value in (run.get("Labels") or {}).items()},
        "stop_signal": run.get("StopSignal") or "",
    }
    environment = dict(line.partition("=")[::2] for line in run.get("Env") or ())
    return {"digest": digest, "environment": environment} | {key: value for key, value in found.items() if value}


def _pull(store: Store, registry: Registry, name: Reference, layers: Iterable[Mapping[str, Any]]) -> None:
    """Bring layers into the store, several at once; what is there is not asked for."""
    def one(layer: Mapping[str, Any]) -> None:
        for attempt in range(3):
            try:
                with store.writer() as writer:
                    for chunk in registry.blob(name.repository, layer["digest"], layer["size"]):
                        writer.write(chunk)
                    writer.commit(layer["digest"])
                return
            except FetchError as error:
                if attempt == 2 or not error.retryable:
                    raise

    missing = [layer for layer in layers if not store.has(layer["digest"], layer["size"])]
    with ThreadPoolExecutor(3, "pull") as pool:
        tasks = [pool.submit(one, layer) for layer in missing]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
