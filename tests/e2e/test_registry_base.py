"""Base images from a real registry: locked, fetched, read, and built upon."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache import canonical
from cache.build import BuildContext
from cache.errors import FetchError, LockError
from cache.store import Blob, Store
from lock.fetch import Wanted, fetch
from oci import image, media
from oci.base import LockedBase, OciSource, build, lock_base
from oci.contents import read_image
from oci.push import push
from oci.reference import parse_reference
from oci.registry import PUSH, Registry
from oci.upload import upload
from tests.support.images import AMD64, ARM64, make_layer
from tests.support.registry import RunningRegistry
from tests.support.tarballs import LIBC_STATUS, UBUNTU, Member, make_tar, packed


def put_base(registry: RunningRegistry, scratch: Path, name: str, layers: list[list[Member]], *,
             architecture: str = "arm64", docker: bool = True) -> tuple[str, dict[str, Any]]:
    """Put an image as another tool makes it into the registry; its digest and manifest."""
    store = Store.open(scratch)
    client = Registry.connect(parse_reference(f"{registry.host}/{name}"))
    listed, diff_ids = [], []
    for number, members in enumerate(layers):
        data, kind, diff_id = packed(make_tar(members), "gzip" if number % 2 == 0 or docker else "zstd")
        blob = store.put(data)
        upload(client, name, blob, store.path_of(blob.digest))
        listed.append({"mediaType": kind, "size": blob.size, "digest": blob.digest})
        diff_ids.append(diff_id)
    config = store.put(json.dumps({
        "architecture": architecture, "os": "linux", "created": "2024-05-05T05:05:05.5Z", "author": None,
        "config": {"Env": ["PATH=/usr/bin:/bin", "BASE=1"], "Cmd": ["/bin/bash"], "Labels": {"from": "base"},
                   "Entrypoint": None},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": [{"created": "2024-05-05T05:05:05.5Z"}],
    }, indent=2).encode())
    upload(client, name, config, store.path_of(config.digest))
    kinds = (media.DOCKER_MANIFEST, media.DOCKER_CONFIG) if docker else (media.MANIFEST, media.CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": kinds[0], "layers": listed,
                "config": {"mediaType": kinds[1], "size": config.size, "digest": config.digest}}
    return put_manifest(client, name, "1", manifest), manifest


def put_manifest(client: Registry, name: str, tag: str, manifest: dict[str, Any]) -> str:
    raw = json.dumps(manifest, indent=3).encode()
    response = client.request("PUT", f"{name}/manifests/{tag}", PUSH.format(name), data=raw,
                              headers={"Content-Type": manifest["mediaType"]})
    assert response.status_code == 201, response.text
    return canonical.sha256(raw)


@pytest.mark.parametrize("docker", [True, False], ids=["docker", "oci"])
def test_a_tag_is_locked_to_digests_and_facts(registry: RunningRegistry, store: Store, tmp_path: Path,
                                              docker: bool) -> None:
    name = f"base/{'docker' if docker else 'oci'}"
    digest, manifest = put_base(registry, tmp_path / "scratch", name, list(UBUNTU), docker=docker)
    locked = lock_base(f"{registry.host}/{name}:1", ARM64, store=store)
    assert locked.digest == digest
    assert locked.reference == f"{registry.host}/{name}:1@{digest}"
    assert locked.repository == f"{registry.host}/{name}"
    assert [layer["digest"] for layer in locked.layers] == [layer["digest"] for layer in manifest["layers"]]
    assert dict(locked.python) == {
        "version": "3.12", "executable": "/usr/bin/python3.12", "site": "usr/local/lib/python3.12/dist-packages",
        "scripts": "usr/local/bin", "data": "usr/local", "glibc": "2.39"}
    assert locked.status == LIBC_STATUS
    assert locked.os_release["VERSION_CODENAME"] == "noble"
    assert locked.config == {
        "digest": manifest["config"]["digest"], "environment": {"PATH": "/usr/bin:/bin", "BASE": "1"},
        "cmd": ["/bin/bash"], "labels": {"from": "base"}}
    canonical.dumps(locked.to_json())
    assert lock_base(f"{registry.host}/{name}@{digest}", ARM64, store=store).layers == locked.layers


def test_a_fresh_machine_fetches_and_computes_the_same(registry: RunningRegistry, store: Store, tmp_path: Path) -> None:
    put_base(registry, tmp_path / "scratch", "base/fresh", list(UBUNTU))
    locked = lock_base(f"{registry.host}/base/fresh:1", ARM64, store=store)
    fresh = Store.open(tmp_path / "fresh")
    fetch(fresh, wanted_of(locked), {"oci": OciSource()})
    assert facts_of(fresh, locked) == facts_of(store, locked)
    assert fresh.read(facts_of(fresh, locked)["status"]) == locked.status


def wanted_of(locked: LockedBase) -> list[Wanted]:
    """As the lock's reader makes them (stages.base)."""
    return [Wanted("oci", f"layer {number}", "", layer["digest"], layer["size"], layer["digest"][7:], locked.repository)
            for number, layer in enumerate(locked.layers)]


def facts_of(store: Store, locked: LockedBase) -> dict[str, str]:
    layers = [{key: layer[key] for key in ("media_type", "diff_id")} for layer in locked.layers]
    inputs = {f"base/{number:02}": layer["digest"] for number, layer in enumerate(locked.layers)}
    return {name: blob.digest for name, blob in build(BuildContext(store, {"layers": layers}, inputs, ARM64)).items()}


def test_our_layers_lie_on_a_base_that_stays_as_it_is(registry: RunningRegistry, store: Store, tmp_path: Path) -> None:
    _, manifest = put_base(registry, tmp_path / "scratch", "base/below", list(UBUNTU))
    locked = lock_base(f"{registry.host}/base/below:1", ARM64, store=store)
    made = on_base(store, locked)
    local = read_image(store, made["manifest"].digest)
    assert [layer.digest for layer in local.layers[:2]] == [layer["digest"] for layer in manifest["layers"]]
    reference = f"{registry.host}/base/above:1"
    registry.requests.clear()
    record = push(store, made["manifest"].digest, reference, compression={"name": "zstd", "level": 3},
                  mount_from="base/below")
    assert sorted(record.how.values()) == ["mounted", "mounted", "sent", "sent"]
    back = tmp_path / "back"
    done = subprocess.run(["skopeo", "copy", "--preserve-digests", "--src-tls-verify=false", f"docker://{reference}",
                           f"oci:{back}:x"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = json.loads(subprocess.run(["skopeo", "inspect", "--config", f"oci:{back}:x"], capture_output=True,
                                       check=True).stdout)
    assert config["rootfs"]["diff_ids"] == [layer.diff_id for layer in local.layers]
    assert config["config"]["Env"] == ["BASE=1", "OURS=1", "PATH=/usr/bin:/bin"]


def on_base(store: Store, locked: LockedBase) -> dict[str, Blob]:
    section = locked.to_json()
    params = {"base": {key: section[key] for key in ("layers", "config", "reference")}, "environment": {"OURS": "1"}}
    inputs = {f"base/{number:02}": layer["digest"] for number, layer in enumerate(locked.layers)}
    inputs["layers/00-own"] = make_layer(store, {"opt/own": b"ours" * 1000})
    return image.build(BuildContext(store, params, inputs, ARM64))


def test_an_index_is_resolved_for_the_platform(registry: RunningRegistry, store: Store, tmp_path: Path) -> None:
    client = Registry.connect(parse_reference(f"{registry.host}/base/many"))
    entries = []
    digests = {}
    for architecture, members in (("amd64", [("x", b"amd64")]), ("arm64", [("x", b"arm64")])):
        layers: list[list[Member]] = [*UBUNTU, members]  # type: ignore[list-item]
        digests[architecture], manifest = put_base(registry, tmp_path / "scratch", "base/many", layers,
                                                   architecture=architecture)
        entries.append({"mediaType": manifest["mediaType"], "digest": digests[architecture],
                        "size": len(json.dumps(manifest, indent=3)),
                        "platform": {"os": "linux", "architecture": architecture}})
    index = {"schemaVersion": 2, "mediaType": media.DOCKER_LIST, "manifests": entries}
    listed = put_manifest(client, "base/many", "all", index)
    reference = f"{registry.host}/base/many@{listed}"
    for platform in (ARM64, AMD64):
        locked = lock_base(reference, platform, store=store)
        assert locked.digest == digests[platform["architecture"]]
        assert locked.reference == reference
    with pytest.raises(LockError, match="not there for this platform"):
        lock_base(reference, {"os": "linux", "architecture": "riscv64"}, store=store)
    with pytest.raises(LockError, match="for another platform"):
        lock_base(f"{registry.host}/base/many@{digests['amd64']}", ARM64, store=store)


def test_a_base_without_python_names_the_cure(registry: RunningRegistry, store: Store, tmp_path: Path) -> None:
    put_base(registry, tmp_path / "scratch", "base/bare", [UBUNTU[0]])
    with pytest.raises(LockError, match="no Python") as caught:
        lock_base(f"{registry.host}/base/bare:1", ARM64, store=store)
    assert "python3" in str(caught.value.cure)
    locked = lock_base(f"{registry.host}/base/bare:1", ARM64, store=store, added=["python3"], python="3.12")
    assert locked.python["version"] == "3.12"


def test_layers_in_the_store_are_not_fetched_again(registry: RunningRegistry, store: Store, tmp_path: Path) -> None:
    put_base(registry, tmp_path / "scratch", "base/again", list(UBUNTU))
    locked = lock_base(f"{registry.host}/base/again:1", ARM64, store=store)
    registry.requests.clear()
    assert lock_base(f"{registry.host}/base/again:1", ARM64, store=store) == locked
    asked = [request.path for request in registry.requests]
    assert not any(layer["digest"] in path for layer in locked.layers for path in asked)
    fetch(store, wanted_of(locked), {"oci": OciSource()})
    assert len(registry.requests) == len(asked)


def test_a_layer_that_is_gone_is_named(registry: RunningRegistry, store: Store, tmp_path: Path) -> None:
    put_base(registry, tmp_path / "scratch", "base/gone", list(UBUNTU))
    locked = lock_base(f"{registry.host}/base/gone:1", ARM64, store=store)
    wanted = replace(wanted_of(locked)[0], sha256="1" * 64, file="sha256:" + "1" * 64)
    with pytest.raises(FetchError, match="any more") as caught:
        fetch(store, [wanted], {"oci": OciSource()})
    assert caught.value.where == f"{registry.host}/base/gone"
