"""`compose:<target>`: read by docker-compose itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cache.store import Store
from stages.project import Project
from tests.support.compose import compose, configured
from tests.support.front import MINI, doit, make_project
from tests.support.models import model_directory

GPU = (MINI.replace("linux/amd64", "linux/arm64").replace("cuda: none", 'cuda: "13.0"')
       .replace("driver_floor: none", 'driver_floor: "580"').replace("memory: none", "memory: unified")
       .replace("command: [tritonserver, --model-repository=/models]\n  ports: [8000]",
                "command: [tritonserver, --model-repository=/models, '--load-model=$x']\n  ports: [8000, 8001, 8002]"))
THOR = GPU.replace("compute_capability: none", 'compute_capability: "11.0"').replace("arch_list: none",
                                                                                    "arch_list: 11.0a")
SPARK = GPU.replace("compute_capability: none", 'compute_capability: "12.1"').replace("arch_list: none",
                                                                                     "arch_list: 12.1a")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    bare = MINI.replace('triton:\n  version: "0.7.0"\n', "")
    return make_project(tmp_path / "project", cpu=MINI, thor=THOR, spark=SPARK, bare=bare)


def make(root: Path, target: str, *said: str) -> Path:
    doit(root, root / "store", f"compose:{target}", *said)
    return root / f"serve-{target}" / "compose.yaml"


def test_without_a_gpu(root: Path) -> None:
    file = make(root, "cpu")
    found = configured(file, HTTPS_PROXY="http://proxy:3128")
    service = found["services"]["triton"]
    assert service["image"] == "stagecraft/cpu:latest"
    assert service["command"] == ["tritonserver", "--model-repository=/models", "--http-address=0.0.0.0",
                                  "--grpc-address=0.0.0.0", "--metrics-address=0.0.0.0"]
    assert not {"runtime", "devices", "group_add", "network_mode"} & set(service)
    assert service["ports"] == ["127.0.0.1:8000:8000/tcp"]
    assert "ulimits" not in service
    assert service["healthcheck"]["test"] == ["CMD", "/opt/stagecraft/healthcheck"]
    assert service["environment"]["HTTPS_PROXY"] == "http://proxy:3128"
    assert service["environment"]["HF_TOKEN_PATH"] == "/run/secrets/hf_token"
    assert "HF_TOKEN" not in service["environment"]
    assert found["secrets"] == {"hf_token": {"file": str(file.parent / "hf_token")}}
    volumes = {volume["target"]: volume for volume in service["volumes"]}
    assert volumes["/models"] == {"type": "bind", "source": str(file.parent / "models"), "target": "/models",
                                  "read_only": True}
    assert (volumes["/var/cache/stagecraft"]["type"], list(found["volumes"])) == ("volume", ["cache"])
    assert (file.parent / "hf_token").read_bytes() == b""


def test_jetson_and_spark(root: Path) -> None:
    file = make(root, "thor")
    done = compose(file, "config")
    assert done.returncode != 0
    assert "getent group render | cut -d: -f3" in done.stderr
    thor = configured(file, RENDER_GID="992")["services"]["triton"]
    assert (thor["runtime"], thor["group_add"]) == ("nvidia", ["44", "992"])
    assert "devices" not in thor
    assert thor["ulimits"] == {"memlock": -1, "stack": 67108864}
    assert thor["command"][2] in ("--load-model=$x", "--load-model=$$x")  # `config` writes it as it would be read
    spark = configured(make(root, "spark"))["services"]["triton"]
    assert spark["devices"] == ["nvidia.com/gpu=all"]
    assert not {"runtime", "group_add"} & set(spark)
    assert spark["ports"] == [f"127.0.0.1:{port}:{port}/tcp" for port in (8000, 8001, 8002)]


def test_other_ways_of_gpu_and_network(root: Path) -> None:
    spark = configured(make(root, "spark", "gpu=runtime", "network=host"))["services"]["triton"]
    assert (spark["runtime"], spark["network_mode"]) == ("nvidia", "host")
    assert "ports" not in spark
    assert spark["command"][-1].startswith("--load-model")  # and listens where its target says
    opened = configured(make(root, "cpu", "publish=0.0.0.0", "image=registry.example/a/b:1"))["services"]["triton"]
    assert (opened["ports"], opened["image"]) == (["0.0.0.0:8000:8000/tcp"], "registry.example/a/b:1")
    assert configured(make(root, "cpu", "publish=::1"))["services"]["triton"]["ports"] == ["::1:8000:8000/tcp"]


def test_directories_of_models_are_mounted(root: Path) -> None:
    text = (root / "targets/cpu.yaml").read_text()
    (root / "targets/cpu.yaml").write_text(text.replace(
        "triton:\n", 'torch: {version: "2.13.0"}\nvllm: {version: "0.32.0"}\ntriton:\n'))
    path = model_directory(root / "a $model: x")
    done = doit(root, root / "store", "model:cpu", f"model={path}", "name=m")
    assert "./doit compose:cpu" in done.stdout
    service = configured(make(root, "cpu"))["services"]["triton"]
    assert {"type": "bind", "source": str(path).replace("$", "$$"), "target": "/weights/m", "read_only": True} \
        in service["volumes"]
    data = json.loads(doit(root, root / "store", "compose:cpu", "--json").stdout)
    assert data["models"] == ["m"]
    assert [file["state"] for file in data["files"]] == ["as before", "as before"]
    assert data["address"] == "http://127.0.0.1:8000"


def test_a_mount_that_is_gone_or_that_nobody_names(root: Path) -> None:
    text = (root / "targets/cpu.yaml").read_text()
    (root / "targets/cpu.yaml").write_text(text.replace(
        "triton:\n", 'torch: {version: "2.13.0"}\nvllm: {version: "0.32.0"}\ntriton:\n'))
    path = model_directory(root / "weights")
    doit(root, root / "store", "model:cpu", f"model={path}", "name=m")
    path.rename(root / "moved")
    done = doit(root, root / "store", "compose:cpu", rc=110)
    assert "a directory of a model is gone" in done.stderr
    assert str(path) in done.stderr
    assert not (root / "serve-cpu/compose.yaml").exists()
    shutil.rmtree(root / "serve-cpu/models/m")
    assert "/weights/m" not in make(root, "cpu").read_text()
    assert json.loads((root / "serve-cpu/stagecraft.json").read_text())["mounts"] == {}


def test_both_in_one_line(root: Path) -> None:
    text = (root / "targets/cpu.yaml").read_text()
    (root / "targets/cpu.yaml").write_text(text.replace(
        "triton:\n", 'torch: {version: "2.13.0"}\nvllm: {version: "0.32.0"}\ntriton:\n'))
    doit(root, root / "store", "model:cpu", "compose:cpu", "model=a/b", "publish=0.0.0.0")
    assert (root / "serve-cpu/models/b/config.pbtxt").exists()
    assert "0.0.0.0:8000" in (root / "serve-cpu/compose.yaml").read_text()


def test_a_pushed_image_is_named_by_its_digest(root: Path) -> None:
    store, name = Store.open(root / "store"), Project(root).root_name("cpu")
    common = {"format": "stagecraft.root.v1", "target": "cpu", "link": "x", "points_to": "layout", "keys": [],
              "blobs": []}
    store.set_root(name, {**common, "manifest": "sha256:" + "1" * 64, "stages": {}})
    store.set_root("push-1", {**common, "push": {"reference": "registry.example:5000/team/cpu:1",
                                                 "manifest": "sha256:" + "2" * 64}})
    store.set_root("push-2", {**common, "points_to": "older", "push": {"reference": "registry.example/old:1",
                                                                       "manifest": "sha256:" + "3" * 64}})
    file = make(root, "cpu")
    assert configured(file)["services"]["triton"]["image"] == "registry.example:5000/team/cpu@sha256:" + "2" * 64
    assert "built here as sha256:" + "1" * 64 in file.read_text()


@pytest.mark.parametrize(("target", "said", "message"), [
    ("bare", "", "bare has no Triton server"), ("cpu", "gpu=cdi", "the target has no GPU"),
    ("thor", "gpu=all", "gpu= is one of runtime, cdi"), ("cpu", "network=none", "network= is one of bridge, host"),
    ("cpu", "publish=everywhere", "publish= is an address of the machine"),
    ("cpu", "publish=0.0.0.0 network=host", "publish= is for network=bridge"),
    ("cpu", "image=A/B", ""), ("cpu", "image=a@sha256:1", "no digest of an image"),
    ("cpu", "imgae=a", "did you mean image=?"), ("cpu", "model=a/b", "compose:cpu takes no model=")])
def test_what_cannot_be_is_refused(root: Path, target: str, said: str, message: str) -> None:
    done = doit(root, root / "store", f"compose:{target}", *said.split(), rc=110)
    assert message in done.stderr
    assert not (root / f"serve-{target}").exists()
