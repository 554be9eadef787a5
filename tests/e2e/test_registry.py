"""Push to and pull from a real registry, with skopeo as the referee. All on loopback."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import trustme

from cache.canonical import sha256
from cache.errors import FetchError, InputError
from cache.store import Store
from lock.fetch import Wanted, fetch
from oci.contents import read_image
from oci.push import Pushed, push
from oci.reference import parse_reference
from oci.registry import Patience, Registry
from oci.source import OciSource
from oci.upload import upload
from tests.support.images import ARM64, make_image, make_layer, sample
from tests.support.registry import RunningRegistry, running_registry
from tests.support.skopeo import skopeo

ZSTD = {"name": "zstd", "level": 3}
GZIP = {"name": "gzip", "level": 6}
#: Of `user:password`; any bcrypt tool gives another one that is as good.
HTPASSWD = "user:$2y$05$abcdefghijklmnopqrstuuWG29KuyeAicPCJODk1zjyGvyQUU2awu\n"


def pulled(reference: str, directory: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Manifest, configuration and manifest digest of what skopeo pulls, digests preserved."""
    skopeo("copy", "--preserve-digests", "--src-tls-verify=false", f"docker://{reference}", f"dir:{directory}")
    raw = (directory / "manifest.json").read_bytes()
    manifest = json.loads(raw)
    config = json.loads((directory / manifest["config"]["digest"][7:]).read_bytes())
    return manifest, config, sha256(raw)


@pytest.mark.parametrize("compression", [ZSTD, GZIP], ids=["zstd", "gzip"])
def test_what_skopeo_pulls_is_what_was_pushed(registry: RunningRegistry, store: Store, tmp_path: Path,
                                              compression: dict[str, Any]) -> None:
    made = sample(store)
    local = read_image(store, made["manifest"].digest)
    reference = f"{registry.host}/pull/{compression['name']}:1"
    record = push(store, made["manifest"].digest, reference, compression=compression)
    manifest, config, digest = pulled(reference, tmp_path / "back")
    assert digest == record.manifest
    assert manifest["config"]["digest"] == record.config == made["config"].digest
    assert config["rootfs"]["diff_ids"] == [layer.diff_id for layer in local.layers]
    assert [layer["digest"] for layer in manifest["layers"]] == [layer.digest for layer in record.layers]
    # and unpacked by somebody else, the layers are the ones of the store
    skopeo("copy", "--src-tls-verify=false", "--dest-decompress", f"docker://{reference}", f"dir:{tmp_path / 'plain'}")
    for layer in local.layers:
        assert hashlib.sha256((tmp_path / "plain" / layer.diff_id[7:]).read_bytes()).hexdigest() == layer.diff_id[7:]


def test_the_record_names_the_compressor(registry: RunningRegistry, store: Store) -> None:
    made = sample(store)
    record = push(store, made["manifest"].digest, f"{registry.host}/record:1", compression=ZSTD)
    data = record.to_json()
    assert data["format"] == "stagecraft.push.v1"
    assert data["reference"] == f"{registry.host}/record:1"
    assert data["compressor"]["name"] == "zstd"
    assert data["compressor"]["library"] == "libzstd"
    assert data["compressor"]["version"].count(".") == 2
    assert [layer["diff_id"] for layer in data["layers"]] == [
        layer.diff_id for layer in read_image(store, made["manifest"].digest).layers]


def test_another_environment_sends_no_layer(registry: RunningRegistry, store: Store, tmp_path: Path) -> None:
    layers = [make_layer(store, {"a": b"first" * 9999}), make_layer(store, {"b": b"second" * 9999})]
    first = make_image(store, layers, environment={"A": "1"})
    second = make_image(store, layers, environment={"A": "2"})
    reference = f"{registry.host}/again:1"
    assert push(store, first["manifest"].digest, reference, compression=ZSTD).sent > 0
    assert len(registry_uploads(registry, "again")) == 3
    registry.requests.clear()
    record = push(store, second["manifest"].digest, reference, compression=ZSTD)
    assert [request.sent for request in registry_uploads(registry, "again")] == [second["config"].size]
    assert record.sent == 0
    assert sorted(record.how.values()) == ["sent", "there", "there"]
    assert pulled(reference, tmp_path / "back")[1]["config"]["Env"] == ["A=2"]
    registry.requests.clear()
    push(store, second["manifest"].digest, reference, compression=ZSTD)
    assert registry_uploads(registry, "again") == []


def registry_uploads(registry: RunningRegistry, repository: str) -> list[Any]:
    return [request for request in registry.uploads() if request.path.startswith(f"/v2/{repository}/")]


def test_layers_of_a_sibling_repository_are_mounted(registry: RunningRegistry, store: Store) -> None:
    made = make_image(store, [make_layer(store, {"a": b"shared" * 9999})])
    push(store, made["manifest"].digest, f"{registry.host}/one:1", compression=ZSTD)
    record = push(store, made["manifest"].digest, f"{registry.host}/two:1", compression=ZSTD, mount_from="one")
    assert set(record.how.values()) == {"mounted"}
    assert registry_uploads(registry, "two") == []


def test_a_large_blob_goes_in_pieces(registry: RunningRegistry, store: Store) -> None:
    blob = store.put(bytes(range(256)) * 20_000)
    seen: list[int] = []
    reference = parse_reference(f"{registry.host}/pieces")
    client = Registry.connect(reference)
    how = upload(client, "pieces", blob, store.path_of(blob.digest), report=seen.append, piece=1 << 20)
    assert how == "sent"
    assert [(r.method, r.sent) for r in registry_uploads(registry, "pieces")] == [
        *[("PATCH", 1 << 20)] * 4, ("PUT", blob.size - (4 << 20))]
    assert seen == sorted(seen)
    assert seen[-1] == blob.size
    assert b"".join(client.blob("pieces", blob.digest, blob.size)) == store.read(blob.digest)


def test_a_push_by_digest_is_refused(registry: RunningRegistry, store: Store) -> None:
    made = sample(store)
    with pytest.raises(InputError, match="to a tag"):
        push(store, made["manifest"].digest, f"{registry.host}/x@{made['manifest'].digest}", compression=ZSTD)


def test_a_missing_image_is_told(registry: RunningRegistry) -> None:
    reference = parse_reference(f"{registry.host}/nobody/nothing:1")
    with pytest.raises(FetchError, match="no such") as caught:
        Registry.connect(reference).manifest_for(reference, ARM64)
    assert "nobody/nothing" in str(caught.value.where)


def test_a_registry_with_a_password(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sample(store)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    (tmp_path / "docker").mkdir()
    with running_registry(tmp_path / "registry", htpasswd=HTPASSWD) as registry:
        def pushed() -> Pushed:
            return push(store, made["manifest"].digest, f"{registry.host}/private:1", compression=ZSTD)

        with pytest.raises(FetchError, match="refuses") as caught:
            pushed()
        assert caught.value.cure == f"docker login {registry.host}"
        for secret, works in (("wrong", False), ("password", True)):
            auth = base64.b64encode(f"user:{secret}".encode()).decode()
            (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
            if works:
                layer = pushed().layers[0]
                fresh = Store.open(tmp_path / "fresh")
                fetch(fresh, [Wanted("oci", "layer", "", layer.digest, layer.size, layer.digest[7:],
                                     f"{registry.host}/private")], {"oci": OciSource()})
                assert fresh.has(layer.digest, layer.size)
            else:
                with pytest.raises(FetchError, match="refuses") as caught:
                    pushed()
                assert secret not in caught.value.diagnostics()


def test_tls_is_checked(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key, trusted = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    for part in certificate.cert_chain_pems:
        chain.write_bytes(part.bytes())
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(trusted)
    with running_registry(tmp_path / "registry", certificate=(chain, key)) as running:
        def registry() -> Registry:
            return Registry(running.host, secure=True, patience=Patience(attempts=1), environ={"HOME": "/nonexistent"})

        blob = store.put(b"over TLS")
        with pytest.raises(FetchError, match="not trusted") as caught:
            upload(registry(), "a", blob, store.path_of(blob.digest))
        assert "REQUESTS_CA_BUNDLE" in str(caught.value.cure)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(trusted))
        assert upload(registry(), "a", blob, store.path_of(blob.digest)) == "sent"
