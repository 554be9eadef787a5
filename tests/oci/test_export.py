import io
import json
import tarfile
from pathlib import Path

import pytest

from cache.canonical import sha256
from cache.errors import InputError, IntegrityError, StoreError
from cache.store import Store
from oci.contents import read_image
from oci.export import docker_name, export_chunks, export_size, export_tar
from tests.support.images import sample

GOLDEN = "sha256:025c05b67d970ca1a2f25fa927edb68774cf3d04cf4c0ce1d17b7aad27d675c5"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def test_golden_bytes(store: Store) -> None:
    made = sample(store)
    data = b"".join(export_chunks(store, made["manifest"].digest, ["team/sample:1"]))
    assert sha256(data) == GOLDEN
    assert len(data) == export_size(store, made["manifest"].digest, ["team/sample:1"])


def test_both_descriptions_point_to_blobs_that_are_there_once(store: Store) -> None:
    made = sample(store)
    image = read_image(store, made["manifest"].digest)
    data = b"".join(export_chunks(store, made["manifest"].digest, ["sample", "registry.example/a:2"]))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        content = {info.name: tar.extractfile(info).read() for info in tar if info.isfile()}  # type: ignore[union-attr]
        assert {(info.uid, info.gid, info.mtime) for info in tar} == {(0, 0, 315532800)}
        assert len(tar.getnames()) == len(set(tar.getnames()))
    for name, blob in content.items():
        if name.startswith("blobs/"):
            assert sha256(blob) == "sha256:" + name.rpartition("/")[2]
    (entry,) = json.loads(content["manifest.json"])
    assert entry["RepoTags"] == ["sample:latest", "registry.example/a:2"]
    assert sha256(content[entry["Config"]]) == image.config.digest
    assert [sha256(content[path]) for path in entry["Layers"]] == [layer.diff_id for layer in image.layers]
    index = json.loads(content["index.json"])["manifests"][0]
    assert index["digest"] == image.manifest.digest
    assert index["annotations"] == {"io.containerd.image.name": "docker.io/library/sample:latest",
                                    "org.opencontainers.image.ref.name": "latest"}
    assert set(content) == {"oci-layout", "index.json", "manifest.json"} | {
        f"blobs/sha256/{blob.digest[7:]}" for blob in image.blobs()}


def test_a_file_appears_whole_and_replaces_the_old_one(store: Store, tmp_path: Path) -> None:
    made = sample(store)
    path = tmp_path / "out" / "image.tar"
    path.parent.mkdir()
    path.write_text("old")
    seen: list[tuple[int, int]] = []
    size = export_tar(store, made["manifest"].digest, path, ["a:1"], lambda done, total: seen.append((done, total)))
    assert path.stat().st_size == size == seen[-1][0] == seen[-1][1]
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["image.tar"]


def test_a_failed_export_leaves_the_old_file(store: Store, tmp_path: Path) -> None:
    made = sample(store)
    path = tmp_path / "out" / "image.tar"
    path.parent.mkdir()
    path.write_text("old")

    layer = store.path_of(read_image(store, made["manifest"].digest).layers[0].digest)

    def cut(done: int, total: int) -> None:
        layer.write_bytes(layer.read_bytes()[:1000])

    with pytest.raises(IntegrityError, match="altered"):
        export_tar(store, made["manifest"].digest, path, ["a:1"], cut)
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["image.tar"]


def test_a_place_that_cannot_be_written_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be written"):
        export_tar(store, sample(store)["manifest"].digest, tmp_path / "file" / "image.tar")


@pytest.mark.parametrize(("name", "expected"), [
    ("a", "a:latest"), ("team/a:1", "team/a:1"), ("r.example:5000/a", "r.example:5000/a:latest"), ("a_b/c:x",) * 2,
])
def test_names_get_a_tag(name: str, expected: str) -> None:
    assert docker_name(name) == expected


@pytest.mark.parametrize("name", ["A", "a:b:c", "", "a b", f"a@sha256:{'0' * 64}", "../a"])
def test_what_docker_would_not_take_as_a_name_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        docker_name(name)
