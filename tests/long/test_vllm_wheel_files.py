"""A vLLM wheel from source beside the published one: the same files of the source, the same requirements.

The sdists and, where the index serves no ranges, the wheels are downloaded (up to 0.5 GB each).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import tarfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from assemble.requires_dist import differences
from cache.store import Store
from lock.fetch import fetch
from lock.indexes import load_indexes
from lock.remote_wheel import RemoteWheel
from lock.requirements_file import requirements
from lock.simple import Pages, WheelSource
from lock.sources import Wanted
from stages.recipe import load
from tests.support.front import HERE

#: What a build makes, or copies from the trees that its CMake pins.
MADE = ("*.so", "vllm/_version.py", "vllm-*.dist-info/*", "vllm/vllm-rs", "vllm/third_party/deep_gemm/*",
        "vllm/third_party/flashmla/*", "vllm/third_party/fmha_sm100/*", "vllm/third_party/tml_fa4/*",
        "vllm/third_party/triton_kernels/*", "vllm/vllm_flash_attn/cute/*", "vllm/vllm_flash_attn/layers/*",
        "vllm/vllm_flash_attn/ops/*")


@dataclass
class Release:
    """One release: files of the sdist and of the published wheel with the hashes of RECORD, and what they require."""

    source: dict[str, str]
    texts: dict[str, str]
    wheel: dict[str, str]
    metadata: str


@pytest.fixture(scope="module", params=["0.20.0", "0.32.0", "0.33.0"])
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Release:
    version: str = request.param
    store = Store.open(tmp_path_factory.mktemp("store"))
    indexes = load_indexes(HERE / "targets" / "indexes.yaml")
    pages = Pages(indexes)
    index = WheelSource(indexes, pages)
    offered = pages.files("default", "vllm")
    sdist = next(file for file in offered if file.file == f"vllm-{version}.tar.gz")
    wheel = next(file for file in offered if file.file.startswith(f"vllm-{version}-cp38-abi3-")
                 and file.file.endswith("aarch64.whl"))
    assert sdist.sha256
    assert wheel.sha256
    wanted = Wanted("sdist", "vllm", version, sdist.file, sdist.size, sdist.sha256, "default")
    fetch(store, [wanted], {"sdist": index})
    source, texts = _sdist(store.path_of(wanted.digest))
    with RemoteWheel(store, Wanted("wheel", "vllm", version, wheel.file, wheel.size, wheel.sha256, "default"), index,
                     pages.session()) as remote:
        record = remote.read(f"vllm-{version}.dist-info/RECORD")
        assert record is not None
        rows = {path: told for path, told, _ in csv.reader(io.StringIO(record.decode()))}
        assert rows.keys() == remote.members().keys()
        return Release(source, texts, rows, remote.metadata().decode())


def _sdist(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    hashes, texts = {}, {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            assert not member.issym()
            stream = archive.extractfile(member)
            if stream is None:
                continue
            data = stream.read()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            hashes[name] = f"sha256={digest}"
            if name.startswith("requirements/") and name.endswith(".txt"):
                texts[name] = data.decode()
    return hashes, texts


def test_files_of_the_source_are_those_of_the_published_wheel(release: Release) -> None:
    recipe = load(HERE, "vllm/recipe.yaml").data
    ours = {path: told for path, told in release.source.items()
            if any(fnmatchcase(path, glob) for glob in recipe["python"])
            and not any(fnmatchcase(path, glob) for glob in recipe["without"])}
    theirs = {path: told for path, told in release.wheel.items()
              if path in ours or not any(fnmatchcase(path, glob) for glob in MADE)}
    assert len(theirs) > 2000
    assert ours == theirs


def test_requirement_files_are_what_the_published_wheel_requires(release: Release) -> None:
    recipe = load(HERE, "vllm/recipe.yaml").data
    asked = [text for path in recipe["requirements"] for text in requirements(release.texts, path)]
    assert len(asked) > 50
    assert differences(release.metadata, asked, {}) == []
