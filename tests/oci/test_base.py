"""Builder `base-facts`, and what is taken over from a base image. Locking from a registry: tests/e2e."""

from pathlib import Path
from typing import Any

import pytest

from cache.archive import read_index
from cache.build import BuildContext
from cache.errors import IntegrityError
from cache.store import Store
from oci.base import build, inherited
from tests.support.images import ARM64
from tests.support.tarballs import LIBC_STATUS, UBUNTU, make_tar, packed


def facts_of(store: Store, **changes: Any) -> dict[str, Any]:
    layers, inputs = [], {}
    for number, (members, how) in enumerate(zip(UBUNTU, ("gzip", "zstd"), strict=True)):
        data, kind, diff_id = packed(make_tar(members), how)
        inputs[f"base/{number:02}"] = store.put(data).digest
        layers.append({"media_type": kind, "diff_id": diff_id})
    return build(BuildContext(store, {"layers": layers, **changes}, inputs, ARM64))


def test_the_outputs_are_the_files_of_the_image(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    found = {name: blob.digest for name, blob in facts_of(store).items()}
    assert store.read(found["status"]) == LIBC_STATUS
    assert store.read(found["passwd"]).startswith(b"root:x:0:0")
    assert store.read(found["group"]) == b"root:x:0:\n"
    assert b"VERSION_CODENAME=noble" in store.read(found["os-release"])
    paths = {entry["path"]: entry for entry in read_index(store, found["index"])}
    assert paths["bin"] == {"path": "bin", "type": "symlink", "target": "usr/bin"}
    assert paths["usr/bin/bash"]["size"] == len("new bash")
    assert "var/cache/junk" not in paths
    assert list(paths) == sorted(paths)


def test_golden_index(tmp_path: Path) -> None:
    index = facts_of(Store.open(tmp_path / "store"))["index"].digest
    assert index == "sha256:695abe20d119fe41fa895a77cf48bb607769488a1d5b54baa87400cefa68e0d2"


def test_another_number_of_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError):
        facts_of(Store.open(tmp_path / "store"), layers=[])


def test_what_is_inherited_has_no_nulls() -> None:
    settings = {"config": {"Env": ["PATH=/bin", "EMPTY=", "ODD"], "Entrypoint": None, "Cmd": ["x"], "Labels": None,
                           "ExposedPorts": {"80/tcp": {}, "22/tcp": {}}, "Volumes": {}, "User": "", "StopSignal": None}}
    assert inherited(settings, "sha256:d") == {
        "digest": "sha256:d", "environment": {"PATH": "/bin", "EMPTY": "", "ODD": ""}, "cmd": ["x"],
        "ports": ["22/tcp", "80/tcp"]}
    assert inherited({"config": None}, "sha256:d") == {"digest": "sha256:d", "environment": {}}
