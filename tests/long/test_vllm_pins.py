"""The pins in vLLM's own CMake files, out of its real sdists. Expected: read by hand in the same files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from cache.canonical import sha256
from lock.cmake_pins import pins
from lock.indexes import load_indexes
from lock.simple import Pages
from tests.support.front import HERE

SDISTS = {
    "0.20.0": "sha256:a6d50152936ee292455af3ffbe359f7a284ac43bf3b68caccf29f368e196cc72",
    "0.33.0": "sha256:f4c33c2503d52bb411146afa9618a4f48bed68912f617e6803ac8d76e4c74112",
}
EXPECTED = {
    "0.20.0": {
        "cutlass": ("nvidia/cutlass.git", "v4.4.2", "VLLM_CUTLASS_SRC_DIR"),
        "triton_kernels": ("triton-lang/triton.git", "v3.6.0", "TRITON_KERNELS_SRC_DIR"),
        "deepgemm": ("deepseek-ai/DeepGEMM.git", "891d57b4db1071624b5c8fa0d1e51cb317fa709f", "DEEPGEMM_SRC_DIR"),
        "flashmla": ("vllm-project/FlashMLA", "a6ec2ba7bd0a7dff98b3f4d3e6b52b159c48d78b", "FLASH_MLA_SRC_DIR"),
        "qutlass": ("IST-DASLab/qutlass.git", "830d2c4537c7396e14a02a46fbddd18b5d107c65", "QUTLASS_SRC_DIR"),
        "vllm-flash-attn": ("vllm-project/flash-attention.git", "f5bc33cfc02c744d24a2e9d50e6db656de40611c",
                            "VLLM_FLASH_ATTN_SRC_DIR"),
    },
    "0.33.0": {
        "cutlass": ("nvidia/cutlass.git", "v4.7.1", "VLLM_CUTLASS_SRC_DIR"),
        "triton_kernels": ("triton-lang/triton.git", "v3.5.1", "TRITON_KERNELS_SRC_DIR"),
        "deepgemm": ("vllm-project/DeepGEMM.git", "0820030756945b2daec208e8e8255268360f337d", "DEEPGEMM_SRC_DIR"),
        "deepselect": ("vllm-project/DeepSelect.git", "d96d33afe1fab0d6066da49cdc91e64c2bee65ea", "DEEPSELECT_SRC_DIR"),
        "fmha_sm100": ("vllm-project/MSA.git", "968061ab16cb14991a5c7d4c0e8eabf531be0dcf", "FMHA_SM100_SRC_DIR"),
        "flashmla": ("vllm-project/FlashMLA", "e2afa5fd8c220fbd05fe03fc24c9d5e64c24641b", "FLASH_MLA_SRC_DIR"),
        "flashkda": ("vllm-project/FlashKDA.git", "17a037d98da546deb4591e967cf961a43c034d8b", "FLASH_KDA_SRC_DIR"),
        "qutlass": ("IST-DASLab/qutlass.git", "e74319e3405ce6d71965732880f5dc1f52371f64", "QUTLASS_SRC_DIR"),
        "tml_fa4": ("vllm-project/tml-fa4.git", "75765e76a9c2c012c1f6ecd64577eb646eb4d303", "TML_FA4_SRC_DIR"),
        "vllm-flash-attn": ("vllm-project/flash-attention.git", "b273a02621d3c94bc747df67204f591b67f38fae",
                            "VLLM_FLASH_ATTN_SRC_DIR"),
    },
}


@pytest.mark.parametrize("version", SDISTS)
def test_pins_of_a_real_sdist(version: str, tmp_path: Path) -> None:
    pages = Pages(load_indexes(HERE / "targets" / "indexes.yaml"))
    file = next(file for file in pages.files("default", "vllm") if file.file == f"vllm-{version}.tar.gz")
    data = pages.session().get(file.url, timeout=300).content
    assert sha256(data) == SDISTS[version]
    texts: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            path = member.name.partition("/")[2]
            if path == "CMakeLists.txt" or path.startswith("cmake/"):
                stream = archive.extractfile(member)
                if stream is not None:
                    texts[path] = stream.read().decode()
    found = pins(texts.get, {"VLLM_TARGET_DEVICE": "cuda", "VLLM_GPU_LANG": "CUDA"})
    assert {pin.name: (pin.repository.removeprefix("https://github.com/"), pin.tag, pin.override)
            for pin in found} == EXPECTED[version]
