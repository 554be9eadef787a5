"""Dead ends of the field report on Triton with vLLM on Jetson Orin: `lock` refuses each, with reason and cure.

The shipped target against two indexes of this machine: one as PyPI is, one as the mirror for JetPack 6. The wheels are
small, their names, tags and METADATA those of the real ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cache.errors import FetchError, GateError, InputError, LockError, StagecraftError
from checks import vllm_wheels
from stages import resolve
from stages.lockfile import request_digests
from stages.project import Project
from tests.stages.test_preflight_rules import errors, judged, torch, vllm, wheel
from tests.support.front import HERE, make_project
from tests.support.index_server import IndexServer
from tests.support.shared_objects import Compiler
from tests.support.wheel_factory import make_wheel

TARGET = (HERE / "targets" / "orin.yaml").read_text(encoding="utf-8")
MIRROR = "cp310-cp310-linux_aarch64"
NVIDIA = "2.7.0a0+79aa17489c.nv25.4"
CORE = ("vllm/_C.abi3.so", "vllm/_moe_C.abi3.so", "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",
        "vllm/cumem_allocator.abi3.so")


class Orin:
    """The project, its two indexes, and a lock of the base as it would be."""

    def __init__(self, root: Path, pypi: Path, mirror: Path) -> None:
        self.root, self.pypi, self.mirror = make_project(root / "project", orin=TARGET), pypi, mirror
        self.compiler = Compiler(root / "objects")
        self.log: list[str] = []

    def target(self, **changes: str) -> None:
        """Change the target: what stands there to what shall."""
        text = TARGET
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (self.root / "targets" / "orin.yaml").write_text(text)

    def library(self, name: str, undefined: Iterable[str] = (), exports: Iterable[str] = ("PyInit_x",)) -> bytes:
        source = "".join(f"extern int {one}(void); int use_{number}(void) {{ return {one}(); }}\n"
                         for number, one in enumerate(undefined))
        source += "".join(f"int {one}(void) {{ return 1; }}\n" for one in exports)
        data = bytearray(self.compiler.library(name, source))
        data[18:20] = (183).to_bytes(2, "little")
        return bytes(data)

    def torch(self, version: str = "2.8.0", tag: str = MIRROR, exports: Iterable[str] = ("c10_x",),
              cuda: str = "12.6") -> None:
        make_wheel(self.mirror, "torch", version, tag=tag, requires=["filelock", "sympy"], files={
            "torch/version.py": f"cuda = {cuda!r}\n".encode(), "torch/lib/libc10.so": self.library("c.so", (), exports),
            "torch/lib/libtorch_cuda.so": random.Random(1).randbytes(50_000)})

    def vllm(self, version: str = "0.10.2+cu126", tag: str = MIRROR, libraries: Iterable[str] = CORE,
             undefined: Iterable[str] = (), requires: Iterable[str] = ("torch==2.8.0", "torchaudio==2.8.0",
                                                                      "torchvision==0.23.0", "numpy")) -> None:
        files = {path: self.library("v.so", undefined) for path in libraries}
        make_wheel(self.mirror, "vllm", version, tag=tag, requires=requires, files={"vllm/__init__.py": b"", **files})

    def rest(self) -> None:
        make_wheel(self.mirror, "torchvision", "0.23.0", tag=MIRROR, requires=["numpy", "torch==2.8.0"])
        make_wheel(self.mirror, "torchaudio", "2.8.0", tag=MIRROR, requires=["torch==2.8.0"])
        make_wheel(self.mirror, "triton", "3.4.0", tag=MIRROR)
        for name in ("filelock", "sympy"):
            make_wheel(self.pypi, name, "1.0")
        make_wheel(self.pypi, "numpy", "1.26.4", tag="cp310-cp310-manylinux_2_17_aarch64.manylinux2014_aarch64")
        make_wheel(self.pypi, "nvidia-pytriton", "0.7.0", tag="py3-none-manylinux_2_35_aarch64")

    def good(self) -> None:
        self.torch()
        self.vllm()
        self.rest()

    def lock(self) -> dict[str, str]:
        """Lock the wheels; versions by name."""
        project = Project(self.root)
        old = Project(HERE).lock("thor")
        python = {key: text.replace("3.11", "3.10") for key, text in old.python.items()} | {"glibc": "2.35"}
        base = replace(old, target="orin", request=request_digests(project.target("orin")), python=python, wheels=(),
                       files=())
        (self.root / "targets" / "orin.lock.json").write_text(base.dumps())
        resolve.lock(project, "orin", self.log.append, only="wheels")
        return {wheel.name: wheel.version for wheel in project.lock("orin").wheels}

    def refused(self, kind: type[StagecraftError] = LockError) -> StagecraftError:
        before = self.root / "targets" / "orin.lock.json"
        with pytest.raises(kind) as caught:
            self.lock()
        assert '"wheels": []' in before.read_text()
        return caught.value


@pytest.fixture
def orin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Orin]:
    monkeypatch.setenv("STAGECRAFT_STORE", str(tmp_path / "store"))
    (tmp_path / "pypi").mkdir()
    (tmp_path / "mirror").mkdir()
    with IndexServer(tmp_path / "pypi") as pypi, IndexServer(tmp_path / "mirror") as mirror:
        for name, value in (("PIP_INDEX_URL", pypi.url), ("UV_INDEX_URL", pypi.url), ("PIP_CONFIG_FILE", "/dev/null"),
                            ("UV_NO_CONFIG", "1"), ("UV_HTTP_RETRIES", "0"),
                            ("STAGECRAFT_INDEX_JETSON_JP6", mirror.url)):
            monkeypatch.setenv(name, value)
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_INDEX"):
            monkeypatch.delenv(name, raising=False)
        yield Orin(tmp_path, tmp_path / "pypi", tmp_path / "mirror")


#: Known holes of the one pair that the mirror is known to have: told and refused, unless a person takes them on.
HOLES = """  - {check: advisories, subject: "vllm 0.10.2*", reason: "a test, which serves nobody"}
  - {check: advisories, subject: "torch 2.8.0: *", reason: "a test, which serves nobody"}
"""


def told(error: StagecraftError) -> str:
    """What a person reads, on one line."""
    return " ".join(error.diagnostics().split())


def test_the_pair_of_the_target_is_let_pass_and_only_its_holes_are_held_against_it(orin: Orin) -> None:
    orin.good()
    error = orin.refused(GateError)
    assert {line.split(":")[0] for line in str(error.found).splitlines()} == {"advisories"}
    assert "CVE-2026-22807" in str(error.found)
    (orin.root / "targets" / "orin.yaml").write_text(TARGET + HOLES)
    assert orin.lock() == {"torch": "2.8.0", "torchvision": "0.23.0", "torchaudio": "2.8.0", "triton": "3.4.0",
                           "vllm": "0.10.2+cu126", "numpy": "1.26.4", "filelock": "1.0", "sympy": "1.0"}
    assert "its CUDA must come from elsewhere" in "\n".join(orin.log)


# -- (a) another Python minor ---------------------------------------------------------------------


def test_wheels_for_another_python(orin: Orin) -> None:
    """The report's image has 3.12, the mirror's wheels are for 3.10: here the reverse, and the same words."""
    orin.torch(tag="cp312-cp312-linux_aarch64")
    orin.vllm()
    orin.rest()
    error = orin.refused()
    assert error.message == "index jetson-jp6 has torch only for cp312, this base is 3.10"
    assert "choose a base that it is made for" in str(error.cure)


def test_a_server_for_another_python_and_a_newer_cuda(orin: Orin) -> None:
    """`nvcr.io/nvidia/tritonserver:25.04-vllm-python-py3` on JetPack 6: Python 3.12, CUDA 12.9."""
    given = Project(orin.root).target("orin").data
    given = {**given, "triton": {**given["triton"], "from": "image", "version": "25.04"}}
    found = [one for one in judged(wheel("numpy", "1.26.4"), given=dict(given), python={
        "version": "3.10", "glibc": "2.35", "site": "usr/local", "executable": "/usr/bin/python3.10"})
        if one.check == "triton-pair"]
    assert {one.finding.subject for one in found} == {"server: python", "server: cuda"}
    assert "runs Python 3.12, the image and its wheels have 3.10" in found[0].finding.message
    assert "made for CUDA 12.9.0.036 and wants driver 575.51.02; the device's driver (540.4.0) runs CUDA 12.6" in (
        found[1].finding.message)
    assert {move.text().partition(":")[0] for one in found for move in one.moves} == {
        "triton.version 25.04 -> 24.10", "triton.from image -> pytriton 0.7.0",
        "triton.python_backend prebuilt -> source"}


# -- (b) torch and torchvision --------------------------------------------------------------------


def test_nvidias_torch_with_a_torchvision_of_a_release(orin: Orin) -> None:
    """torch 2.7.0a0+79aa17489c.nv25.4 of the 25.04 image, and the torchvision that was compiled against 2.7.0."""
    orin.torch(NVIDIA)
    orin.vllm(requires=["numpy", "torchvision"])
    orin.rest()
    for path in orin.mirror.glob("torch[va]*"):
        path.unlink()
    make_wheel(orin.mirror, "torchvision", "0.22.0", tag=MIRROR, requires=["numpy", "torch==2.7.0"])
    orin.target(**{'version: "2.8.0"': f'version: "{NVIDIA}"', "    torchaudio: jetson-jp6\n": ""})
    error = orin.refused()
    assert "torchvision" in error.message
    assert f"was compiled against torch 2.7.0, and torch {NVIDIA} is asked for" in error.message
    assert "RuntimeError: operator torchvision::nms does not exist" in error.message
    assert "take torch 2.7.0 and torchvision from one index, or compile torchvision for it" in told(error)


def test_nvidias_torch_with_a_torchvision_that_does_not_say_which(orin: Orin) -> None:
    """Some of the mirror's wheels pin no torch: then the resolver has nothing against the pair."""
    orin.torch(NVIDIA)
    orin.vllm(requires=["numpy", "torchvision"])
    orin.rest()
    for path in orin.mirror.glob("torch[va]*"):
        path.unlink()
    make_wheel(orin.mirror, "torchvision", "0.22.0", tag=MIRROR, requires=["numpy", "torch"])
    orin.target(**{'version: "2.8.0"': f'version: "{NVIDIA}"', "    torchaudio: jetson-jp6\n": ""})
    error = orin.refused(GateError)
    assert "wheel-set: torchvision: torch: torchvision 0.22.0 was compiled against a release" in str(error.found)
    assert "operator torchvision::nms does not exist" in str(error.found)
    assert "take torchvision and torch from one index" in str(error.cure)


def test_two_releases_of_torch(orin: Orin) -> None:
    orin.torch("2.7.0")
    orin.vllm()
    orin.rest()
    orin.target(**{'version: "2.8.0"': 'version: "2.7.0"'})
    error = orin.refused()
    assert "was compiled against torch 2.8.0, and torch 2.7.0 is asked for" in error.message
    assert "pin torch 2.8.0" in str(error.cure)


# -- (c) vLLM without _C --------------------------------------------------------------------------


def test_a_vllm_without_extensions(orin: Orin) -> None:
    """Built with VLLM_TARGET_DEVICE=empty, as the way of vllm-ascend issue 581 does it."""
    orin.torch()
    orin.rest()
    make_wheel(orin.mirror, "vllm", "0.8.1", tag="py3-none-any", requires=["numpy", "torch==2.8.0"],
               files={"vllm/__init__.py": b"", "vllm/_custom_ops.py": b""})
    orin.target(**{'"0.10.2+cu126"': '"0.8.1"'})
    error = orin.refused(GateError)
    assert ("extensions: vllm: vllm-0.8.1-py3-none-any.whl holds no compiled extension: \"ModuleNotFoundError: No "
            "module named 'vllm._C'\"") in str(error.found)
    assert "VLLM_TARGET_DEVICE=cuda" in str(error.cure)


def test_a_vllm_for_cpus(orin: Orin) -> None:
    orin.torch()
    orin.rest()
    orin.vllm("0.10.2+cpu", libraries=["vllm/_C.abi3.so"])
    orin.target(**{"0.10.2+cu126": "0.10.2+cpu"})
    error = orin.refused(GateError)
    assert "extensions: vllm: vllm-0.10.2+cpu-cp310-cp310-linux_aarch64.whl is a build for CPUs" in str(error.found)


def test_a_vllm_with_a_part_missing(orin: Orin) -> None:
    orin.torch()
    orin.rest()
    orin.vllm(libraries=CORE[:1])
    assert "extensions: vllm/_moe_C.abi3.so: missing" in str(orin.refused(GateError).found)


# -- (d) the unknown triton pin -------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False])
def test_a_pin_of_triton_that_is_not_there_for_this_machine(orin: Orin, there: bool) -> None:
    """"No matching distribution found for triton==3.2.0": PyPI has it for x86-64 only, and from 3.5.0 on for both."""
    orin.good()
    if there:
        make_wheel(orin.pypi, "triton", "3.2.0", tag="cp310-cp310-manylinux_2_17_x86_64.manylinux2014_x86_64")
    make_wheel(orin.pypi, "triton", "3.5.0", tag="cp310-cp310-manylinux_2_27_aarch64.manylinux_2_28_aarch64")
    orin.target(**{"    triton: jetson-jp6\n": "",
                   "requirements: [numpy==1.26.4]": "requirements: [numpy==1.26.4, triton==3.2.0]"})
    error = orin.refused()
    if there:
        assert error.message.startswith("index default has triton 3.2.0 only for manylinux2014_x86_64")
    else:
        assert error.message.startswith("index default has triton 3.5.0, not ==3.2.0")
    assert error.message.endswith("for aarch64 the default index has Triton-lang from 3.5.0 on")
    assert "Jetson's torch has its own beside it on its mirror" in told(error)


# -- (e) and the rest of the report ---------------------------------------------------------------


def test_a_vllm_without_kernels_for_the_device(orin: Orin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Question 1 of the report: "no kernel image is available". A wheel that is known, with code for others only."""
    real = next(item for item in vllm_wheels.known("aarch64").values() if item.version == "0.32.0")
    parts = {path: replace(item, kernels={"sm_90a": 1, "sm_100f": 1}) if item.kernels else item
             for path, item in real.extensions.items()}
    monkeypatch.setattr(vllm_wheels, "known", lambda machine: {real.sha256: replace(real, extensions=parts)})
    given = dict(Project(orin.root).target("orin").data)
    found = errors(judged(vllm("0.32.0"), torch(), given=given), "device-code")
    assert set(found) >= {"vllm/_C_stable_libtorch.abi3.so", "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"}
    assert all("has no code for compute capability 8.7" in text and "no kernel image is available" in text
               for text in found.values())


def test_a_newer_cuda_than_the_boards_driver_has(orin: Orin) -> None:
    """Guess 1 of the report: the driver of JetPack 6 is 540.4.0 with CUDA 12.6, and cannot be replaced."""
    for old, new, word in (('cuda: "12.6"', 'cuda: "12.9"', "brings CUDA 12.6"),
                           ('"540.4.0"', '"575"', "is 540.4.0: there is no other for that device")):
        orin.target(**{old: new})
        with pytest.raises(InputError, match=word):
            Project(orin.root).target("orin")


def test_a_torch_for_a_newer_cuda(orin: Orin) -> None:
    orin.torch(cuda="12.9")
    orin.vllm()
    orin.rest()
    assert "torch is built for CUDA 12.9, the target's driver brings 12.6" in str(orin.refused(GateError).found)


def test_a_torch_without_cuda(orin: Orin) -> None:
    """What `pip install torch==2.7.0` gives there."""
    orin.good()
    make_wheel(orin.mirror, "torch", "2.8.0", tag=MIRROR, files={"torch/version.py": b"cuda = None\n"})
    assert "torch 2.8.0 for aarch64 is a CPU build" in str(orin.refused(GateError).found)


def test_a_vllm_for_another_torch(orin: Orin) -> None:
    """Question 3, "undefined symbol": what torch's small libraries export tells it before the download."""
    orin.torch(exports=["_ZN3c1013MessageLoggerC1ENS_14SourceLocationEib"])
    orin.vllm(undefined=["_ZN3c1013MessageLoggerC1EPKciib"])
    orin.rest()
    found = str(orin.refused(GateError).found)
    assert "abi: vllm/_C.abi3.so: undefined symbol: _ZN3c1013MessageLoggerC1EPKciib" in found


def test_a_vllm_that_does_not_know_jetson(orin: Orin) -> None:
    """0.5.5 of the 24.10 image: vLLM takes a Jetson for a CUDA device from 0.6.5 on."""
    orin.torch()
    orin.rest()
    orin.vllm("0.5.5")
    orin.target(**{"0.10.2+cu126": "0.5.5"})
    found = str(orin.refused(GateError).found)
    assert "advisories: vllm 0.5.5: vllm-9735: high: vLLM does not know a Jetson as a CUDA device" in found


# -- what cannot be had ---------------------------------------------------------------------------


def test_every_input_that_cannot_be_had_is_named(orin: Orin, monkeypatch: pytest.MonkeyPatch) -> None:
    away = "http://127.0.0.1:9"
    for name in ("UBUNTU", "UBUNTU_SECURITY", "DEBIAN"):
        monkeypatch.setenv(f"STAGECRAFT_INDEX_{name}", f"{away}/{name.lower()}")
    monkeypatch.setenv("STAGECRAFT_INDEX_JETSON_JP6", f"{away}/+simple/")
    with pytest.raises(FetchError) as caught:
        resolve.lock(Project(orin.root), "orin", orin.log.append)
    error = caught.value
    assert "inputs of orin cannot be had; nothing was locked" in error.message
    lines = str(error.found).splitlines()
    for line in (f"Debian packages of the base, jammy, arm64 (index ubuntu): {away}/ubuntu/dists/jammy/InRelease: "
                 "connection refused",
                 f"Debian packages of the base, jammy, arm64 (index ubuntu-security): {away}/ubuntu_security/dists/"
                 "jammy-security/InRelease: connection refused",
                 f"wheels of torch, torchaudio, torchvision, triton, vllm (index jetson-jp6): {away}/+simple/: "
                 "connection refused"):
        assert line in lines
    assert any("the emulator for" in line and f"{away}/debian/" in line for line in lines)
    assert not any("default" in line for line in lines)  # that one answers
    for name in ("UBUNTU", "UBUNTU_SECURITY", "JETSON_JP6", "DEBIAN"):
        assert f"STAGECRAFT_INDEX_{name}=URL" in str(error.cure)
    assert error.exit_code == 112
    assert not (orin.root / "targets" / "orin.lock.json").exists()


def test_only_what_a_part_of_the_lock_reads_is_asked_for(orin: Orin, monkeypatch: pytest.MonkeyPatch) -> None:
    orin.good()
    monkeypatch.setenv("STAGECRAFT_INDEX_UBUNTU", "http://127.0.0.1:9/ubuntu")
    monkeypatch.setenv("STAGECRAFT_INDEX_JETSON_JP6", "http://127.0.0.1:9/+simple/")
    error = orin.refused(FetchError)
    assert error.message == "index jetson-jp6 cannot be read"  # one input, said as ever
