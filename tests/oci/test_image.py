"""The image builder, with golden digests: a change of bytes needs a new builder version."""

import json
from pathlib import Path
from typing import Any

import pytest

from cache.build import BuildContext
from cache.errors import InputError, IntegrityError
from cache.store import Store
from oci import image, media
from oci.contents import read_image
from tests.support.images import AMD64, ARM64, make_image, make_layer, sample


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def config_of(store: Store, **params: Any) -> dict[str, Any]:
    layer = make_layer(store, {"a": b"1"})
    found: dict[str, Any] = json.loads(store.read(make_image(store, [layer], **params)["config"].digest))
    return found


def test_golden_digests(store: Store) -> None:
    made = sample(store, labels={"org.opencontainers.image.title": "sample"}, ports=[8000, "53/udp"],
                  entrypoint=["/opt/text"], cmd=["--help"], user="1000:1000", workdir="/models", volumes=["/models"],
                  stop_signal="SIGINT", comments={"part0": "the first"})
    assert made["config"].digest == "sha256:bd5832ac244fe872385240fa897b9d9e6ff2608d34b4091e46684818f0b1607f"
    assert made["manifest"].digest == "sha256:391007da8d42cfa962f560dfa3124b3a5c95b9ed4bc07d8b3d9b6277ba32ad5f"


def test_the_configuration_says_what_the_target_says(store: Store) -> None:
    found = config_of(store, environment={"B": "2", "A": "1"}, entrypoint=["/x"], cmd=["y"], user="1:2", workdir="/w",
                      ports=[80], labels={"k": "v"}, volumes=["/v"], stop_signal="SIGQUIT", comments={"part0": "text"})
    assert found["config"] == {
        "Env": ["A=1", "B=2"], "Entrypoint": ["/x"], "Cmd": ["y"], "User": "1:2", "WorkingDir": "/w",
        "ExposedPorts": {"80/tcp": {}}, "Labels": {"k": "v"}, "Volumes": {"/v": {}}, "StopSignal": "SIGQUIT"}
    assert (found["architecture"], found["variant"], found["os"]) == ("arm64", "v8", "linux")
    assert found["created"] == "1980-01-01T00:00:00Z"
    assert found["history"] == [{"created": "1980-01-01T00:00:00Z", "created_by": "stagecraft part0: text"}]


def test_amd64_has_no_variant(store: Store) -> None:
    layer = make_layer(store, {"a": b"1"})
    found = json.loads(store.read(make_image(store, [layer], AMD64)["config"].digest))
    assert found["architecture"] == "amd64"
    assert "variant" not in found


def test_layers_come_in_the_order_of_their_numbers(store: Store) -> None:
    layers = [make_layer(store, {f"file{number}": b"x"}) for number in range(12)]
    inputs = {f"layers/{number:02}-s{number}": layers[number] for number in reversed(range(12))}
    made = image.build(BuildContext(store, {}, inputs, ARM64))
    found = read_image(store, made["manifest"].digest)
    assert [layer.diff_id for layer in found.layers] == layers
    assert [layer.comment for layer in found.layers] == [f"stagecraft s{number}" for number in range(12)]
    assert {layer.media_type for layer in found.layers} == {media.LAYER}


BASE_CONFIG = {
    "digest": "sha256:" + "0" * 64, "environment": {"PATH": "/base", "KEPT": "1"}, "entrypoint": ["/base-entry"],
    "cmd": ["base-cmd"], "user": "base", "workdir": "/base", "ports": ["53/udp"], "labels": {"k": "b", "l": "b"},
    "volumes": ["/data"], "stop_signal": "SIGHUP"}


def on_base(store: Store, **params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    blob = store.put(b"a compressed layer, which nobody opens here")
    base = {"layers": [{"digest": blob.digest, "size": blob.size, "diff_id": "sha256:" + "d" * 64,
                        "media_type": "application/vnd.docker.image.rootfs.diff.tar.gzip"}],
            "config": BASE_CONFIG, "reference": "registry.example/base:1@sha256:" + "e" * 64}
    inputs = {"base/00": blob.digest, "layers/00-own": make_layer(store, {"a": b"1"})}
    made = image.build(BuildContext(store, {"base": base, **params}, inputs, ARM64))
    return (json.loads(store.read(made["config"].digest)), json.loads(store.read(made["manifest"].digest)))


def test_a_base_image_stays_below_untouched(store: Store) -> None:
    config, manifest = on_base(store, environment={"PATH": "/mine"}, labels={"k": "mine"}, ports=[80])
    assert manifest["layers"][0]["mediaType"] == media.LAYER_GZIP
    assert store.has(manifest["layers"][0]["digest"], manifest["layers"][0]["size"])
    assert config["rootfs"]["diff_ids"][0] == "sha256:" + "d" * 64
    assert config["config"] == {
        "Env": ["KEPT=1", "PATH=/mine"], "Entrypoint": ["/base-entry"], "Cmd": ["base-cmd"], "User": "base",
        "WorkingDir": "/base", "ExposedPorts": {"53/udp": {}, "80/tcp": {}}, "Labels": {"k": "mine", "l": "b"},
        "Volumes": {"/data": {}}, "StopSignal": "SIGHUP"}
    assert manifest["annotations"] == {"org.opencontainers.image.base.name": "registry.example/base:1",
                                       "org.opencontainers.image.base.digest": "sha256:" + "e" * 64}


def test_an_entrypoint_of_ours_drops_the_command_of_the_base(store: Store) -> None:
    config, _ = on_base(store, entrypoint=["/mine"])
    assert config["config"]["Entrypoint"] == ["/mine"]
    assert "Cmd" not in config["config"]


def test_other_base_layers_than_the_manifest_lists_are_refused(store: Store) -> None:
    base = {"layers": [{"digest": "sha256:" + "1" * 64, "size": 1, "diff_id": "sha256:" + "1" * 64,
                        "media_type": media.LAYER}], "config": {}, "reference": "r.example/x"}
    with pytest.raises(IntegrityError, match="not those of its manifest"):
        image.build(BuildContext(store, {"base": base}, {"base/00": store.put(b"x").digest}, ARM64))


def test_a_foreign_layer_is_refused(store: Store) -> None:
    blob = store.put(b"x")
    base = {"layers": [{"digest": blob.digest, "size": 1, "diff_id": blob.digest,
                        "media_type": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}], "config": {}}
    with pytest.raises(IntegrityError, match="unknown kind of layer"):
        image.build(BuildContext(store, {"base": base}, {"base/00": blob.digest}, ARM64))


@pytest.mark.parametrize(("params", "where"), [
    ({"environment": {"A=B": "x"}}, "environment"), ({"environment": {"": "x"}}, "environment"),
    ({"environment": {"A": "x\0y"}}, "environment"), ({"ports": ["80/icmp"]}, "ports"), ({"ports": [-1]}, "ports"),
])
def test_what_no_configuration_can_hold_is_refused(store: Store, params: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError) as caught:
        config_of(store, **params)
    assert where in str(caught.value.where)


def test_reading_an_image_finds_what_is_missing_or_cut(store: Store) -> None:
    made = sample(store)
    layer = read_image(store, made["manifest"].digest).layers[1]
    path = store.path_of(layer.digest)
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        read_image(store, made["manifest"].digest)
    path.write_bytes(content[:-1])
    with pytest.raises(IntegrityError, match="another size"):
        read_image(store, made["manifest"].digest)


def test_a_manifest_with_other_layers_than_its_configuration_is_refused(store: Store) -> None:
    made = sample(store)
    data = json.loads(store.read(made["manifest"].digest))
    del data["layers"][0]
    with pytest.raises(IntegrityError, match="different layers"):
        read_image(store, store.put(json.dumps(data).encode()).digest)


@pytest.mark.parametrize("raw", [
    b"no json", b"[]", b'{"mediaType":"x"}', b'{"mediaType":"application/vnd.oci.image.manifest.v1+json"}',
    b'{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":1,"size":2},"layers":[]}',
])
def test_what_is_no_manifest_is_refused(store: Store, raw: bytes) -> None:
    with pytest.raises((IntegrityError, ValueError)):
        read_image(store, store.put(raw).digest)
