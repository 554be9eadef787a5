"""The main job: `build:thor` on real input, its digest, and the image in a Docker engine under an emulator.

Uses the store named by STAGECRAFT_TEST_STORE if it is set (CI has just built thor there), else one of its own.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support import sarif
from tests.support.docker_engine import registered_qemu, running_engine
from tests.support.front import HERE, committed_project, doit, manifest_of
from tests.support.qemu import qemu_aarch64


@pytest.fixture(scope="module")
def store(thor_store: Path) -> Path:
    return thor_store


@pytest.fixture(scope="module")
def thor(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in a directory of its own with the committed targets and locks, thor built."""
    root = committed_project(tmp_path_factory.mktemp("thor") / "project")
    doit(root, store, "build:thor")
    return root


def test_manifest_digest_is_the_committed_one(thor: Path) -> None:
    assert manifest_of(thor, "thor") == (HERE / "targets" / "thor.digest").read_text().strip()


def test_skopeo_reads_the_result_as_arm64(thor: Path) -> None:
    inspect = ["skopeo", "inspect", f"oci:{thor / 'result-thor'}"]
    found = json.loads(subprocess.run(inspect, capture_output=True, text=True, check=True).stdout)
    assert (found["Os"], found["Architecture"]) == ("linux", "arm64")
    assert found["Labels"]["io.stagecraft.arch-list"] == "11.0a"
    assert "not for open networks" in found["Labels"]["io.stagecraft.triton.notice"]
    assert "numpy==1.26.4" in found["Labels"]["io.stagecraft.waivers"]


def test_spark_after_thor_assembles_no_layer_and_differs_in_what_it_should(thor: Path, store: Path) -> None:
    done = doit(thor, store, "build:spark", "--json")
    assert set(json.loads(done.stdout)["built"]) <= {"image", "attest"}
    assert manifest_of(thor, "spark") == (HERE / "targets" / "spark.digest").read_text().strip()
    configs = []
    for target in ("thor", "spark"):
        blobs = thor / f"result-{target}" / "blobs/sha256"
        manifest = json.loads((blobs / manifest_of(thor, target)[7:]).read_text())
        configs.append(json.loads((blobs / manifest["config"]["digest"][7:]).read_text()))
    assert configs[0]["rootfs"] == configs[1]["rootfs"]
    changed = set(configs[0]["config"]["Env"]) ^ set(configs[1]["config"]["Env"])
    assert changed == {f"{name}_CUDA_ARCH_LIST={arch}" for name in ("TORCH", "FLASHINFER")
                       for arch in ("11.0a", "12.1a")}


@pytest.mark.parametrize(("target", "capability"), [("thor", "11.0"), ("spark", "12.1")])
def test_a_model_gets_the_attention_that_works_there(store: Path, tmp_path: Path, target: str, capability: str) -> None:
    """The published wheel has FlashAttention 2 as PTX only (vllm issue 38411)."""
    root = committed_project(tmp_path / "project")
    done = doit(root, store, f"model:{target}", "model=Qwen/Qwen3-8B", "--json")
    engine = json.loads((root / f"serve-{target}/models/Qwen3-8B/1/model.json").read_text())
    assert set(engine["attention_config"]["backend_per_kind"].values()) == {"TRITON_ATTN"}
    assert engine["mm_encoder_attn_backend"] == "TRITON_ATTN"
    assert engine["gpu_memory_utilization"] == 0.5
    why = {one["argument"]: one["why"] for one in json.loads(done.stdout)["settings"]}
    assert why["attention_config"].startswith("2224 of 2224 kernels of _vllm_fa2_C.abi3.so are PTX 9.0 for compute "
                                              f"capability {capability}")


@pytest.mark.parametrize("target", ["thor", "spark"])
def test_check_after_a_build_judges_nothing_again_and_no_waiver_is_in_vain(thor: Path, store: Path, tmp_path: Path,
                                                                           target: str) -> None:
    doit(thor, store, f"build:{target}")
    done = doit(thor, store, f"check:{target}", "--json", "--sarif", str(tmp_path / "sarif"))
    told = json.loads(done.stdout)
    assert told["passes"]
    for judged in told["checks"]:
        assert judged["cached"] or judged["state"] == "skipped"
        assert judged["unused_waivers"] == []
    assert sarif.problems(json.loads((tmp_path / "sarif").read_text())) == []


def test_docker_runs_torch_of_the_loaded_image(thor: Path, store: Path, tmp_path: Path) -> None:
    program = "import torch; print(torch.__version__, torch.version.cuda)"
    with running_engine(tmp_path / "engine", storage_driver="overlay2") as engine:
        done = doit(thor, store, "load:thor", "--json", DOCKER_HOST=engine.host)
        image = json.loads(done.stdout)["names"][0]
        with registered_qemu(qemu_aarch64(tmp_path / "qemu")):
            # oneDNN warns on standard error that the emulator shows no MIDR_EL1.
            assert engine.run(image, ["python3", "-c", program]).splitlines()[-1] == "2.13.0+cu130 13.0"
            assert engine.run(image, ["sh", "-c", "id -un; nvcc=$TRITON_PTXAS_PATH; test -x $nvcc && echo ptxas"]) == (
                "triton-server\nptxas\n")
