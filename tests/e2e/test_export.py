"""The export and the layout, read by skopeo."""

import json
from pathlib import Path

import pytest

from cache.store import Store
from oci.contents import read_image
from oci.export import export_tar
from oci.layout import link_result, write_layout
from tests.support.images import sample
from tests.support.skopeo import skopeo


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("suffix", ["", ":team/sample:1"])
def test_one_file_is_read_by_both_transports(store: Store, tmp_path: Path, transport: str, suffix: str) -> None:
    made = sample(store, labels={"a": "b"})
    local = read_image(store, made["manifest"].digest)
    path = tmp_path / "image.tar"
    export_tar(store, made["manifest"].digest, path, ["team/sample:1"])
    name = suffix if transport == "docker-archive" else suffix.replace("team/sample:1", "1")
    found = json.loads(skopeo("inspect", f"{transport}:{path}{name}"))
    assert (found["Architecture"], found["Labels"]) == ("arm64", {"a": "b"})
    assert found["Layers"] == [layer.diff_id for layer in local.layers]
    skopeo("copy", f"{transport}:{path}{name}", f"dir:{tmp_path / 'copy'}")
    for layer in local.layers:
        assert (tmp_path / "copy" / layer.diff_id[7:]).read_bytes() == store.read(layer.digest)
    assert (tmp_path / "copy" / made["config"].digest[7:]).read_bytes() == store.read(made["config"].digest)


def test_the_result_link_is_an_image_for_others(store: Store, tmp_path: Path) -> None:
    made = sample(store)
    link = tmp_path / "result-sample"
    layout = write_layout(store, made["manifest"].digest, name="sample-1",
                          extra={"sbom.spdx.json": store.put(b"{}").digest})
    link_result(store, layout, link, root="sample", content={"keys": [], "blobs": [made["manifest"].digest]})
    for reference in (f"oci:{link}", f"oci:{link}:latest"):
        found = json.loads(skopeo("inspect", reference))
        assert found["Digest"] == made["manifest"].digest
        assert found["Architecture"] == "arm64"
    skopeo("copy", "--preserve-digests", f"oci:{link}", f"dir:{tmp_path / 'copy'}")
    assert (tmp_path / "copy" / "manifest.json").read_bytes() == store.read(made["manifest"].digest)
