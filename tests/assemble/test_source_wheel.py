"""Builder `source-wheel`: source and build to one wheel, the same bytes always, held to what was locked."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from assemble.source_wheel import build
from assemble.wheels import build as build_layer
from cache.archive import LayerWriter
from cache.build import BuildContext
from cache.errors import InputError
from cache.layer import LayerReader
from cache.store import Store
from tests.assemble.test_wheels import ARM, SITE
from tests.assemble.test_wheels import PARAMS as PLACES
from tests.support.images import make_layer

METADATA = b"""\
Metadata-Version: 2.4
Name: small-package
Version: 1.2
Provides-Extra: audio
Requires-Dist: numpy
Requires-Dist: torch==2.11.0; platform_machine != "s390x"
Requires-Dist: ray[cgraph]<3,>=2
Requires-Dist: librosa; extra == "audio"

Requires-Dist: is a word of the description
"""
INFO = "small_package-1.2.dist-info"
PYTHON = {"src/small_package/__init__.py": b"import torch\n", "src/small_package/data/a b,c.json": b"{}",
          "src/small_package/run.sh": b"#!/bin/sh\n", "src/small_package/README.md": b"text",
          "src/small_package/_version.py": b"unknown\n", "src/tests/test.py": b"", "src/setup.cfg": b""}
CSRC = {"src/small_package/envs.py": b"A = 1\n", "src/csrc/a.cu": b"kernel", "src/setup.py": b"",
        "sources/cutlass/small_package/x.py": b""}
BUILT = {f"{INFO}/METADATA": METADATA, f"{INFO}/RECORD": b"wrong,,\n", f"{INFO}/WHEEL": b"Tag: py3-none-any\n",
         f"{INFO}/licenses/LICENSE": b"free\n", f"{INFO}/INSTALLER": b"pip\n", f"{INFO}/direct_url.json": b"{}",
         f"{INFO}/entry_points.txt": b"[console_scripts]\nsmall = small_package.cli:main\n",
         "small_package/_C.abi3.so": b"\x7fELF" + bytes(3_000_000), "small_package/envs.py": b"A = 1\n",
         "small_package/_version.py": b"1.2\n", "small_package/__pycache__/envs.pyc": b"code"}
MODES = {"src/small_package/run.sh": 0o755, "small_package/_C.abi3.so": 0o755}
PARAMS: dict[str, Any] = {
    "name": "small-package", "version": "1.2", "tag": "cp38-abi3-linux_aarch64", "python": ["small_package/*"],
    "without": ["*.md"], "replaces": ["small_package/_version.py"], "pins": {"torch": "2.11.0+cu130"}, "requires": None}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def built(store: Store, files: Mapping[str, bytes] = BUILT, python: Mapping[str, bytes] = PYTHON,
          csrc: Mapping[str, bytes] = CSRC, **params: Any) -> dict[str, str]:
    inputs = {"python": make_layer(store, python, MODES), "csrc": make_layer(store, csrc),
              "built": make_layer(store, files, MODES)}
    outputs = build(BuildContext(store, {**PARAMS, **params}, inputs, ARM))
    return {name: blob.digest for name, blob in outputs.items()}


def archive(store: Store, outputs: Mapping[str, str]) -> zipfile.ZipFile:
    return zipfile.ZipFile(store.path_of(outputs["wheel"]))


def facts(store: Store, outputs: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.read(outputs["facts"]))
    return found


def metadata(store: Store, outputs: Mapping[str, str]) -> str:
    return archive(store, outputs).read(f"{INFO}/METADATA").decode()


def with_metadata(text: bytes) -> dict[str, bytes]:
    return {**BUILT, f"{INFO}/METADATA": text}


def test_members(store: Store) -> None:
    outputs = built(store)
    with archive(store, outputs) as wheel:
        assert wheel.testzip() is None
        assert {info.filename: (wheel.read(info), info.external_attr >> 16) for info in wheel.infolist()
                if not info.filename.startswith(INFO)} == {
            "small_package/_C.abi3.so": (BUILT["small_package/_C.abi3.so"], 0o100755),
            "small_package/__init__.py": (b"import torch\n", 0o100644),
            "small_package/_version.py": (b"1.2\n", 0o100644),
            "small_package/data/a b,c.json": (b"{}", 0o100644), "small_package/envs.py": (b"A = 1\n", 0o100644),
            "small_package/run.sh": (b"#!/bin/sh\n", 0o100755)}
        assert {name.partition("/")[2] for name in wheel.namelist() if name.startswith(INFO)} == {
            "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
        assert wheel.namelist() == sorted(wheel.namelist(), key=str.encode)
        assert {(info.compress_type, info.date_time) for info in wheel.infolist()} == {
            (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0))}
        assert wheel.read(f"{INFO}/WHEEL") == (b"Wheel-Version: 1.0\nGenerator: stagecraft\nRoot-Is-Purelib: false\n"
                                              b"Tag: cp38-abi3-linux_aarch64\n")
        rows = list(csv.reader(io.StringIO(wheel.read(f"{INFO}/RECORD").decode())))
        assert {row[0] for row in rows} == set(wheel.namelist())
        for path, told, size in rows:
            if path == f"{INFO}/RECORD":
                assert (told, size) == ("", "")
                continue
            digest = base64.urlsafe_b64encode(hashlib.sha256(wheel.read(path)).digest()).rstrip(b"=").decode()
            assert (told, size) == (f"sha256={digest}", str(len(wheel.read(path))))
    assert facts(store, outputs) == {
        "format": "stagecraft.source-wheel.v1", "name": "small-package", "version": "1.2", "files": 11, "built": 5,
        "file": "small_package-1.2-cp38-abi3-linux_aarch64.whl", "replaced": ["small_package/_version.py"],
        "requires_dist": ["numpy", 'torch==2.11.0+cu130; platform_machine != "s390x"', "ray[cgraph]<3,>=2",
                          'librosa; extra == "audio"']}


def test_layer_of_the_wheel(store: Store) -> None:
    outputs = built(store)
    file = facts(store, outputs)["file"]
    layer = build_layer(BuildContext(store, PLACES, {f"wheels/{file}": outputs["wheel"]}, ARM))
    with LayerReader(store, layer["index"].digest) as reader:
        assert reader.read(f"{SITE}/small_package/_C.abi3.so") == BUILT["small_package/_C.abi3.so"]
        assert reader.entries[f"{SITE}/small_package/run.sh"]["mode"] == 0o755
        assert reader.get("usr/local/bin/small") is not None
        assert reader.get(f"{SITE}/small_package/README.md") is None
    package, = json.loads(store.read(layer["packages"].digest))["packages"]
    assert package["requires_dist"] == facts(store, outputs)["requires_dist"]
    assert package["tags"] == ["cp38-abi3-linux_aarch64"]


def test_same_bytes_whatever_the_build_s_own_record_says(store: Store) -> None:
    other = {**BUILT, f"{INFO}/RECORD": b"", f"{INFO}/WHEEL": b"", "small_package/__pycache__/more.pyc": b"x"}
    assert built(store)["wheel"] == built(store, other)["wheel"]


def test_tags_are_expanded(store: Store) -> None:
    outputs = built(store, tag="cp311-cp311-linux_aarch64.manylinux_2_31_aarch64")
    assert b"Tag: cp311-cp311-linux_aarch64\nTag: cp311-cp311-manylinux_2_31_aarch64\n" in archive(
        store, outputs).read(f"{INFO}/WHEEL")


def test_tag_that_is_none(store: Store) -> None:
    with pytest.raises(InputError, match="no name of a wheel"):
        built(store, tag="linux_aarch64")


# -- what the wheel requires ---------------------------------------------------------------------------


def test_description_is_kept(store: Store) -> None:
    assert metadata(store, built(store)).endswith("\n\nRequires-Dist: is a word of the description\n")


@pytest.mark.parametrize("line", [b"", b'Requires-Dist: torch>=2; extra == "gpu"\n'])
def test_pin_that_metadata_lacks_is_added(store: Store, line: bytes) -> None:
    """vLLM's use_existing_torch.py drops the line."""
    text = METADATA.replace(b'Requires-Dist: torch==2.11.0; platform_machine != "s390x"\n', line)
    told = facts(store, built(store, with_metadata(text)))["requires_dist"]
    assert "torch==2.11.0+cu130" in told
    assert ('torch==2.11.0+cu130; extra == "gpu"' in told) == bool(line)


def test_pin_where_nothing_is_required(store: Store) -> None:
    text = b"Metadata-Version: 2.1\nName: small-package\nVersion: 1.2\n"
    outputs = built(store, with_metadata(text))
    assert metadata(store, outputs) == text.decode() + "Requires-Dist: torch==2.11.0+cu130\n"


def test_pinned_address_becomes_a_version(store: Store) -> None:
    text = METADATA.replace(b'torch==2.11.0; platform', b'Torch[opt] @ https://example.org/torch.whl ; platform')
    told = facts(store, built(store, with_metadata(text)))["requires_dist"]
    assert 'Torch[opt]==2.11.0+cu130; platform_machine != "s390x"' in told


LOCKED = ["Numpy", "ray[cgraph] >=2, <3", 'torch==2.12.0; platform_machine!="s390x"']


@pytest.mark.parametrize("requires", [LOCKED, list(reversed(LOCKED))])
def test_requires_what_was_locked(store: Store, requires: list[str]) -> None:
    built(store, requires=requires)


def test_requires_something_else_than_was_locked(store: Store) -> None:
    with pytest.raises(InputError) as caught:
        built(store, requires=["numpy<2", *LOCKED[1:], "pillow"])
    assert caught.value.found == "- numpy<2\n- pillow\n+ numpy"
    assert caught.value.where == f"{INFO}/METADATA"


def test_marker_of_a_pin_counts(store: Store) -> None:
    with pytest.raises(InputError) as caught:
        built(store, requires=[*LOCKED[:2], "torch==2.11.0"])
    assert caught.value.found == ('- torch==2.11.0+cu130\n+ torch==2.11.0+cu130; platform_machine != "s390x"')


def test_requirement_that_cannot_be_read(store: Store) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        built(store, requires=["-r common.txt"])


# -- what a build may not leave ------------------------------------------------------------------------


def test_no_dist_info(store: Store) -> None:
    with pytest.raises(InputError, match=r"left no \.dist-info") as caught:
        built(store, {"small_package/_C.abi3.so": b"", "small_package.egg-info/PKG-INFO": b""})
    assert "bdist_wheel" in str(caught.value.cure)


@pytest.mark.parametrize("info", ["small_package-1.2+cu131.dist-info", "other-1.2.dist-info"])
def test_another_distribution(store: Store, info: str) -> None:
    with pytest.raises(InputError, match="another distribution") as caught:
        built(store, {f"{info}/METADATA": METADATA})
    assert caught.value.found == info


def test_two_distributions(store: Store) -> None:
    with pytest.raises(InputError, match="another distribution"):
        built(store, {**BUILT, "zlib-1.dist-info/METADATA": b""})


@pytest.mark.parametrize("origin", ["python", "csrc"])
def test_clash_with_the_source(store: Store, origin: str) -> None:
    source = {"python": PYTHON, "csrc": CSRC}
    source[origin] = {**source[origin], "src/small_package/ops.py": b"source"}
    with pytest.raises(InputError, match="different files of one name") as caught:
        built(store, {**BUILT, "small_package/ops.py": b"build"}, source["python"], source["csrc"])
    assert caught.value.where == "small_package/ops.py"
    assert "replaces" in str(caught.value.cure)
    outputs = built(store, {**BUILT, "small_package/ops.py": b"build"}, source["python"], source["csrc"],
                    replaces=["small_package/*"])
    assert archive(store, outputs).read("small_package/ops.py") == b"build"


@pytest.mark.parametrize("origin", ["python", "built"])
def test_symlink(store: Store, origin: str) -> None:
    """VLLM_FLASH_ATTN_SRC_DIR makes one out of the image."""
    inputs = {name: make_layer(store, files) for name, files in
              (("python", PYTHON), ("csrc", CSRC), ("built", BUILT))}
    with LayerWriter(store) as writer:
        for path in ("src", "src/small_package") if origin == "python" else ("small_package",):
            writer.directory(path)
        writer.symlink(f"{path}/cute", "/inputs/sources/cute")
        inputs[origin] = writer.finish().layer.digest
    with pytest.raises(InputError, match="a symlink cannot be in a wheel") as caught:
        build(BuildContext(store, PARAMS, inputs, ARM))
    assert caught.value.where == "small_package/cute"


def test_no_file_of_the_source(store: Store) -> None:
    with pytest.raises(InputError, match="no file of the source"):
        built(store, python={"src/x": b""}, csrc={})


def test_all_that_the_wheel_has_may_come_from_the_build(store: Store) -> None:
    """A package whose Python lies below src/, or that has none: its script installs it whole."""
    inputs = {"python": make_layer(store, {}), "csrc": make_layer(store, CSRC),
              "built": make_layer(store, BUILT, MODES)}
    outputs = build(BuildContext(store, {**PARAMS, "python": []}, inputs, ARM))
    with archive(store, {name: blob.digest for name, blob in outputs.items()}) as wheel:
        names = {name for name in wheel.namelist() if not name.startswith(INFO)}
    assert names == {"small_package/_C.abi3.so", "small_package/envs.py", "small_package/_version.py"}
