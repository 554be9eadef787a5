"""Load into a real Docker engine (Debian's dockerd, 20.10 in bookworm), and run what was loaded without network."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.errors import StageError, ToolError
from cache.store import Blob, Store
from oci.contents import read_image
from oci.docker import connect, load
from oci.export import export_tar
from oci.push import push
from tests.support.docker_engine import Engine, registered_qemu, running_engine
from tests.support.images import AMD64, make_image, make_layer, sample
from tests.support.qemu import qemu_aarch64, trixie_package
from tests.support.registry import running_registry


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running_engine(tmp_path_factory.mktemp("engine")) as running:
        yield running


def busybox(store: Store, **params: object) -> dict[str, Blob]:
    """An amd64 image that runs: Debian's static busybox, and a text in a layer above."""
    program = Path("/bin/busybox").read_bytes()
    layers = [make_layer(store, {"bin/busybox": program}, {"bin/busybox": 0o755}),
              make_layer(store, {"etc/greeting": b"hello from above\n"})]
    return make_image(store, layers, AMD64, **params)


def test_a_loaded_image_is_the_one_of_the_store_and_runs(engine: Engine, store: Store) -> None:
    made = busybox(store, entrypoint=["/bin/busybox"], cmd=["cat", "/etc/greeting"], environment={"OURS": "1"},
                   workdir="/etc", user="1000:1000", ports=[8000], labels={"a": "b"})
    seen: list[tuple[int, int]] = []
    client = connect(engine.environ)
    found = load(store, made["manifest"].digest, ["team/busy:1", "busy"], client=client,
                 progress=lambda done, total: seen.append((done, total)))
    assert found.image == made["config"].digest
    assert found.engine == engine.version
    assert seen[-1][0] == seen[-1][1] > 0
    shown = engine.client.images.get("team/busy:1")
    assert sorted(shown.tags) == ["busy:latest", "team/busy:1"]
    assert shown.labels == {"a": "b"}
    assert shown.attrs["RootFS"]["Layers"] == [x.diff_id for x in read_image(store, made["manifest"].digest).layers]
    assert shown.attrs["Architecture"] == "amd64"
    assert engine.run("team/busy:1", []) == "hello from above\n"
    assert engine.run("busy", ["id", "-u"]) == "1000\n"
    assert engine.run("busy", ["pwd"]) == "/etc\n"
    assert "OURS=1" in engine.run("busy", ["env"])


def test_a_foreign_image_is_loaded_as_such(engine: Engine, store: Store) -> None:
    made = sample(store)
    assert load(store, made["manifest"].digest, ["foreign"], client=engine.client).image == made["config"].digest
    attributes = engine.client.images.get("foreign").attrs
    assert (attributes["Architecture"], attributes["Variant"], attributes["Os"]) == ("arm64", "v8", "linux")


def test_the_exported_file_is_what_docker_load_takes(engine: Engine, store: Store, tmp_path: Path) -> None:
    made = busybox(store, cmd=["/bin/busybox", "echo", "from a file"])
    export_tar(store, made["manifest"].digest, tmp_path / "image.tar", ["from-file:1"])
    done = subprocess.run(["docker", "load", "-i", str(tmp_path / "image.tar")], env=engine.environ,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "from-file:1" in done.stdout
    assert engine.client.images.get("from-file:1").id == made["config"].digest
    assert engine.run("from-file:1", []) == "from a file\n"


def test_an_image_on_compressed_layers_is_loaded(engine: Engine, store: Store) -> None:
    """Layers of a base image come compressed, as their registry has them."""
    from cache.build import BuildContext
    from oci import image
    from tests.support.tarballs import make_tar, packed

    data, kind, diff_id = packed(make_tar([("bin", None), ("bin/busybox", Path("/bin/busybox").read_bytes())],
                                          executable=True), "gzip")
    blob = store.put(data)
    base = {"layers": [{"digest": blob.digest, "size": blob.size, "media_type": kind, "diff_id": diff_id}],
            "config": {"environment": {}}, "reference": "registry.example/base:1"}
    own = make_layer(store, {"etc/greeting": b"on top\n"})
    made = image.build(BuildContext(store, {"base": base, "cmd": ["/bin/busybox", "cat", "/etc/greeting"]},
                                    {"base/00": blob.digest, "layers/00-own": own}, AMD64))
    assert load(store, made["manifest"].digest, ["onbase"], client=engine.client).image == made["config"].digest
    assert engine.run("onbase", []) == "on top\n"


def test_a_layer_that_is_not_what_the_configuration_says_is_refused(engine: Engine, store: Store) -> None:
    # Of its own content: an engine does not look at a layer that it has.
    digest = make_layer(store, {"etc/hostname": b"only here\n"})
    made = make_image(store, [digest])
    layer = store.path_of(digest)
    content = bytearray(layer.read_bytes())
    content[600] ^= 1
    layer.unlink()
    layer.write_bytes(content)
    with pytest.raises((StageError, ToolError)) as caught:
        load(store, made["manifest"].digest, ["damaged"], client=engine.client)
    assert caught.value.found


def test_an_engine_pulls_what_was_pushed(engine: Engine, store: Store, tmp_path: Path) -> None:
    """gzip: Docker 20.10 cannot unpack zstd layers."""
    made = busybox(store, cmd=["/bin/busybox", "echo", "pulled"])
    with running_registry(tmp_path / "registry") as registry:
        record = push(store, made["manifest"].digest, f"{registry.host}/busy:1",
                      compression={"name": "gzip", "level": 6})
        pulled = engine.client.images.pull(f"{registry.host}/busy", tag="1")
    assert pulled.id == made["config"].digest
    assert pulled.attrs["RepoDigests"] == [f"{registry.host}/busy@{record.manifest}"]
    assert engine.run(pulled.id, []) == "pulled\n"


def arm64_busybox(directory: Path) -> bytes:
    """Debian's static busybox for arm64, locked and fetched by our own code."""
    root = trixie_package("busybox-static", "arm64", directory)
    return next(root.glob("**/bin/busybox")).read_bytes()


def test_an_arm64_image_runs_under_qemu(engine: Engine, store: Store, tmp_path: Path) -> None:
    layer = make_layer(store, {"bin/busybox": arm64_busybox(tmp_path / "busybox")}, {"bin/busybox": 0o755})
    made = make_image(store, [layer], entrypoint=["/bin/busybox"], cmd=["uname", "-m"])
    load(store, made["manifest"].digest, ["arm:1"], client=engine.client)
    with registered_qemu(qemu_aarch64(tmp_path / "qemu")):
        assert "aarch64\n" in engine.run("arm:1", [])
    assert not Path(f"/proc/sys/fs/binfmt_misc/stagecraft-aarch64-{os.getpid()}").exists()
