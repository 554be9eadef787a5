"""Pieces of the server tree from source: what a target may say, what a lock has, the stages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from assemble.patch import apply
from assemble.patch import parse as parse_patch
from cache.errors import InputError, LockError
from checks import facts
from stages import lockfile, recipe, target
from stages.graph import DataInput, FileInput, Graph, SourceInput, plan_keys
from stages.locked_source import SourcePackage, Tools, parse
from stages.lockfile import Lock, LockedFile
from stages.project import graph
from stages.target import Target
from tests.support.front import HERE, make_project
from tests.support.project import TARGET
from tests.support.sourced import DEVICE, file, lock_of, tree

SERVED = 'triton: {version: "0.7.0", python_backend: source}\n'
PARTS = "sources:\n  packages:\n    python-backend: "


def load(root: Path, text: str) -> Target:
    if not (root / "targets").exists():
        make_project(root)
    (root / "targets/small.yaml").write_text(text)
    return target.load(root, "small")


def archive(**more: Any) -> LockedFile:
    return replace(LockedFile("boost", "1.80.0", "boost_1_80_0.tar.gz", 100, "e" * 64,
                              "https://example.org/boost_1_80_0.tar.gz"), **more)


def package() -> SourcePackage:
    source = {"kind": "git", "repository": "https://github.com/triton-inference-server/python_backend.git",
              "pinned": "f" * 40, "revision": "f" * 40, "tree": "sha256:" + "1" * 64, "size": 10, "submodules": {}}
    tools = Tools((), (file("g++-12", suffix="deb", architecture="amd64"),), (), (file("cmake"),),
                  (file("zlib1g-dev", suffix="deb", architecture="amd64"),
                   file("bash", suffix="deb", architecture="amd64")))
    trees = (tree("repo-core"), tree("dlpack"))
    return SourcePackage("python-backend", "26.02", source, trees, {}, (), tools, (archive(),))


def lock(asked: Target) -> Lock:
    return replace(lock_of(asked, package()), files=(LockedFile(
        "nvidia-pytriton", "0.7.0", "nvidia_pytriton-0.7.0-py3-none-any.whl", 10, "a" * 64, "default"),))


def graph_of(root: Path, text: str = TARGET + SERVED) -> Graph:
    asked = load(root, text)
    return graph(asked, lock(asked), root)


# -- targets ------------------------------------------------------------------------------------------


def test_it_takes_the_newest_release_whose_revisions_are_all_known(tmp_path: Path) -> None:
    found = load(tmp_path, TARGET + SERVED).data["sources"]["packages"]["python-backend"]
    assert found["version"] == "26.02"  # of 26.07 nobody knows the revision of core
    assert found["git"]["tag"] == "bfc93fa1d83af968ae4f871ba061cc4a3f90fd8f"
    assert found["git"]["repository"] == "https://github.com/triton-inference-server/python_backend.git"


def test_release_that_is_named_has_its_own_revisions_and_boost(tmp_path: Path) -> None:
    asked = load(tmp_path, TARGET + SERVED + PARTS + '{version: "25.07"}\n')
    wanted = asked.request()["sources"]["packages"]["python-backend"]
    assert wanted["git"]["tag"].startswith("78877a72")
    assert wanted["recipe"]["variables"]["TRITON_CORE_REPO_TAG"].startswith("b354d4dc")
    assert [one["url"].rpartition("/")[2] for one in wanted["recipe"]["archives"]] == ["boost_1_79_0.tar.gz"]


def test_wheels_are_resolved_as_before(tmp_path: Path) -> None:
    without = load(tmp_path, TARGET + 'triton: {version: "0.7.0"}\n')
    assert "sources" not in without.data
    assert load(tmp_path, TARGET + SERVED).request()["wheels"] == without.request()["wheels"]


@pytest.mark.parametrize(("text", "says"), [
    ('triton: {version: "0.7.0"}\n' + PARTS + "{}\n", "python-backend is not taken from source"),
    (SERVED + PARTS + '{version: "26.07"}\n', "the revisions of python-backend 26.07 are not known"),
    (SERVED + PARTS + "{index: default}\n", "python-backend is in no index"),
    (SERVED + PARTS + "{recipe: vllm/recipe.yaml}\n", "does not say where in the image its files belong"),
    (SERVED + 'sources: {packages: {pkg: {version: "1", recipe: triton/python-backend.yaml}}}\n',
     "the recipe of pkg makes no wheel"),
    ('triton: {version: "0.7.0", python_backend: src}\n', "python_backend"),
])
def test_target_that_is_wrong_is_named_by_its_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, TARGET + text)
    assert says in caught.value.message
    assert "small.yaml" in str(caught.value.where) or "recipe.yaml" in str(caught.value.where)


def test_repository_of_ones_own_needs_no_row(tmp_path: Path) -> None:
    own = '{version: "99.1", git: {repository: "https://example.org/pb.git", tag: main}}\n'
    found = load(tmp_path, TARGET + SERVED + PARTS + own)
    assert found.data["sources"]["packages"]["python-backend"]["git"]["tag"] == "main"
    assert found.recipes["python-backend"].variables("99.1") == {
        "TRITON_REPO_ORGANIZATION": "https://github.com/triton-inference-server"}


def test_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    make_project(tmp_path)
    (tmp_path / "triton/releases.yaml").write_text("releases: [\n")
    with pytest.raises(InputError) as caught:
        recipe.load(tmp_path, "triton/python-backend.yaml")
    assert caught.value.message == "the table of releases cannot be read"
    assert caught.value.where == "triton/releases.yaml"


# -- lock ---------------------------------------------------------------------------------------------


def test_lock_with_archives_and_development_packages_reads_back(tmp_path: Path) -> None:
    made = lock(load(tmp_path, TARGET + SERVED))
    text = made.dumps()
    again = lockfile.parse(text, "x")
    assert again.sources == made.sources
    assert again.dumps() == text
    jsonschema.validate(json.loads(text), json.loads((HERE / "docs/formats/lock.schema.json").read_text()))
    assert parse([package().to_json()])[0].archives == (archive(),)
    changed = replace(made, sources=(replace(package(), archives=(archive(sha256="9" * 64),)),))
    assert [change.name for change in lockfile.compare(made, changed)] == ["python-backend: boost"]


def test_pins_name_the_archive_and_no_address() -> None:
    found = facts.pins({"base": {"kind": "debian"}, "python": {}, "debs": [], "wheels": [], "files": [],
                        "sources": [package().to_json()]})["sources"][0]
    assert found["archives"][0]["sha256"] == "e" * 64
    assert "index" not in found["archives"][0]
    assert [deb["name"] for deb in found["tools"]["development"]] == ["zlib1g-dev", "bash"]


# -- stages -------------------------------------------------------------------------------------------


def test_its_layer_is_an_image_layer_above_the_server(tmp_path: Path) -> None:
    found = graph_of(tmp_path)
    image = found.stage("image")
    names = [name.partition("-")[2] for name in image.inputs if name.startswith("layers/")]
    assert names[names.index("triton"):] == ["triton", "python-backend", "serve"]
    assert "packages/python-backend" in found.stage("attest").inputs
    assert "triton-stub" in image.gates
    assert image.params["labels"]["io.stagecraft.python-backend.from"] == "git " + "f" * 40


def test_its_modules_are_below_the_bytecode(tmp_path: Path) -> None:
    found = graph_of(tmp_path, TARGET + SERVED + "bytecode: true\n")
    names = [name.partition("-")[2] for name in found.stage("image").inputs if name.startswith("layers/")]
    assert names[names.index("triton"):] == ["triton", "python-backend", "bytecode", "serve"]
    assert found.stage("bytecode").dependencies()[-2:] == ("triton", "python-backend")


def test_its_script_reads_the_base_and_no_torch(tmp_path: Path) -> None:
    stage = graph_of(tmp_path).stage("python-backend")
    assert stage.kind == "run"
    assert [name.partition("-")[2] for name in stage.inputs if name.startswith("root/")] == [
        "base", "python-backend-compiler", "python-backend-development", "python-backend-requires"]
    boost = stage.inputs["file/boost_1_80_0.tar.gz"]
    assert isinstance(boost, FileInput)
    assert boost.kind == "url"
    assert isinstance(stage.inputs["file/cmake.sh"], SourceInput)
    assert stage.params["into"] == "opt/tritonserver/backends/python"
    assert not {"SITE", "TORCH_CUDA_ARCH_LIST", "TORCH_VERSION", "CUDA_VERSION"} & stage.params["environment"].keys()
    told = stage.params["environment"]["CMAKE_ARGS"]
    assert "-DFETCHCONTENT_SOURCE_DIR_REPO-CORE=/inputs/csrc/sources/repo-core" in told
    assert stage.params["packages"][0]["purl"].startswith("pkg:github/triton-inference-server/python_backend@ffff")


def test_what_the_image_has_is_not_laid_over_it(tmp_path: Path) -> None:
    stage = graph_of(tmp_path).stage("python-backend-development")
    assert list(stage.inputs) == ["debs/zlib1g-dev-1.deb"]  # bash is the image's own


def test_devices_share_it(tmp_path: Path) -> None:
    one = graph_of(tmp_path, DEVICE.replace("linux/arm64", "linux/amd64") + SERVED)
    other = graph_of(tmp_path, DEVICE.replace("linux/arm64", "linux/amd64").replace("11.0", "12.1") + SERVED)
    assert plan_keys(one)["python-backend"] == plan_keys(other)["python-backend"]


def test_server_leaves_its_own_out_and_only_then(tmp_path: Path) -> None:
    def layout(text: str) -> bytes:
        found = graph_of(tmp_path, text).stage("triton").inputs["layout"]
        assert isinstance(found, DataInput)
        return found.content

    assert b'"without":["pytriton/tritonserver/backends/python/"]' in layout(TARGET + SERVED)
    assert b'"backends/python":' not in layout(TARGET + SERVED)
    asked = load(tmp_path, TARGET + 'triton: {version: "0.7.0"}\n')
    before = graph(asked, replace(lock(asked), sources=()), tmp_path).stage("triton").inputs["layout"]
    assert isinstance(before, DataInput)
    assert b"without" not in before.content
    assert b'"backends/python":' in before.content


def test_no_wheel_is_made_of_it(tmp_path: Path) -> None:
    found = graph_of(tmp_path)
    assert "python-backend-wheel" not in {stage.name for stage in found.stages}
    data = lock(load(tmp_path, TARGET + SERVED)).to_json()
    assert not [name for name in facts.image(load(tmp_path, TARGET + SERVED).data, data)["wheels"] if "backend" in name]


@pytest.mark.parametrize(("version", "known", "numpy"), [
    ("26.02", True, ""), ("24.11", True, ""), ("24.10", True, "<2"), ("26.08", False, "<2"), ("99.1", False, "<2")])
def test_numpy_goes_by_its_pybind11(version: str, known: bool, numpy: str) -> None:
    data = {"python": {"version": "3.11"}, "files": [], "sources": [{"name": "python-backend", "version": version}]}
    found = facts.triton_stub({"platform": "linux/amd64"}, data)
    assert (found["server"], found["known"], found["numpy"]) == (version, known, numpy)


# -- servers that others built ------------------------------------------------------------------------

RELEASE = 'triton: {version: "2.58.0", from: release}\n'
IMAGE = 'triton: {version: "26.02", from: image, image: "nvcr.io/nvidia/tritonserver:26.02-py3"}\n'


def test_archive_that_the_table_knows_needs_no_hash(tmp_path: Path) -> None:
    found = load(tmp_path, TARGET + RELEASE).data["triton"]
    assert found["url"].endswith("/releases/download/v2.58.0/tritonserver2.58.0-igpu.tar")
    assert found["sha256"].startswith("78b4572e")
    by_container = load(tmp_path, TARGET + RELEASE.replace("2.58.0", "25.05")).data["triton"]
    assert by_container["url"] == found["url"]


@pytest.mark.parametrize(("text", "says"), [
    ('triton: {version: "2.66.0", from: release}\n', "the sha256 of tritonserver2.66.0-igpu.tar is not known"),
    ('triton: {version: "0.7.0", sha256: "%s"}\n' % ("a" * 64), "triton.sha256 is for from: release"),
    (RELEASE.replace("release}", 'release, image: "a/b:1"}'), "triton.image is for from: image"),
    ('triton: {version: "26.02", from: image}\n', "which image the server is in is not said"),
    (IMAGE.replace('version: "26.02"', 'version: "26.07"'), "triton.version and triton.image are of two releases"),
    (IMAGE.replace('version: "26.02"', 'version: "26.99"'), "triton.version and triton.image are of two releases"),
    (RELEASE.replace("release}", 'release, url: "https://example.org/tritonserver2.60.0-igpu.tar", sha256: "%s"}'
                     % ("a" * 64)), "triton.version and triton.url are of two releases"),
])
def test_server_that_is_said_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, TARGET + text)
    assert says in caught.value.message


@pytest.mark.parametrize("text", [
    IMAGE.replace("26.02-py3", "latest"), IMAGE.replace('"26.02"', '"2.66.0"'),
    IMAGE.replace("26.02-py3", "26.02-py3-igpu").replace("nvcr.io/nvidia", "example.org/ours"),
    RELEASE.replace("release}", 'release, url: "https://example.org/server.tar", sha256: "%s"}' % ("a" * 64)),
])
def test_server_of_the_release_that_is_named_or_of_none_that_is_known(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, TARGET + text).data["triton"]["from"] in ("image", "release")


PASSWORD = "https://me:hunter2@example.org"


@pytest.mark.parametrize("url", [f"{PASSWORD}/server.tar", "https://hunter2@example.org/server.tar",
                                 "https://example.org/server?token=hunter2/a.tar"])
def test_address_with_a_password_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match=r"wrong value for triton\.url") as caught:
        load(tmp_path, TARGET + RELEASE.replace("release}", f'release, url: "{url}", sha256: "{"a" * 64}"}}'))
    assert "without user, password or query" in str(caught.value.expected)
    assert "hunter2" not in caught.value.diagnostics()


@pytest.mark.parametrize(("before", "after", "key"), [
    ("    url: https://archives.boost.io", f"    url: {PASSWORD}", "archives.0.url"),
    ("repository: https://github.com", f"repository: {PASSWORD}", "repository"),
])
def test_recipe_with_a_password_is_refused_and_not_repeated(tmp_path: Path, before: str, after: str, key: str) -> None:
    path = make_project(tmp_path) / "triton/python-backend.yaml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(InputError, match=f"wrong value for .*{key}") as caught:
        recipe.load(tmp_path, "triton/python-backend.yaml")
    assert "hunter2" not in caught.value.diagnostics()
    assert "password" in str(caught.value.expected)


def served(asked: Target, server: dict[str, Any]) -> Lock:
    return replace(lock_of(asked), sources=(), server=server)


def image_of(**more: Any) -> dict[str, Any]:
    layer = {"digest": "sha256:" + "2" * 64, "size": 5, "diff_id": "sha256:" + "3" * 64,
             "media_type": "application/vnd.oci.image.layer.v1.tar+gzip"}
    return {"kind": "image", "reference": "nvcr.io/nvidia/tritonserver:26.02-py3@sha256:" + "1" * 64,
            "repository": "nvcr.io/nvidia/tritonserver", "digest": "sha256:" + "1" * 64, "layers": [layer], **more}


def archive_of(**more: Any) -> dict[str, Any]:
    return {"kind": "archive", "name": "tritonserver", "version": "2.58.0", "file": "tritonserver2.58.0-igpu.tar",
            "size": 7, "sha256": "4" * 64, "index": "https://example.org/tritonserver2.58.0-igpu.tar", **more}


@pytest.mark.parametrize(("text", "server"), [(RELEASE, archive_of()), (IMAGE, image_of())])
def test_locked_server_reads_back_and_is_an_input(tmp_path: Path, text: str, server: dict[str, Any]) -> None:
    asked = load(tmp_path, TARGET + text)
    made = served(asked, server)
    assert lockfile.parse(made.dumps(), "x").server == server
    jsonschema.validate(json.loads(made.dumps()), json.loads((HERE / "docs/formats/lock.schema.json").read_text()))
    stage = graph(asked, made, tmp_path).stage("triton")
    taken = stage.inputs["archive/00"]
    assert isinstance(taken, FileInput)
    assert taken.kind == ("oci" if server["kind"] == "image" else "url")
    assert stage.params["diff_ids"] == [layer["diff_id"] for layer in server.get("layers", ())]
    assert "backends/python/triton_python_backend_stub" in stage.params["required"]
    assert stage.params["packages"][0]["version"] == ""  # read out of the tree: otherwise triton-pair compares nothing
    assert stage.params["release"] == ("2.66.0" if server["kind"] == "image" else "2.58.0")
    assert stage.params["packages"][0]["container"] == ("26.02" if server["kind"] == "image" else "25.05")
    assert [change.section for change in lockfile.compare(served(asked, {}), made)] == ["server"]
    found = facts.pins(made.to_json())["server"]
    assert "index" not in found
    assert "repository" not in found


@pytest.mark.parametrize(("server", "says"), [
    (archive_of(kind="tar"), "kind is neither archive nor image"),
    (archive_of(sha256="4"), "sha256"),
    (image_of(layers=[{"digest": "x"}]), "is missing"),
    (image_of(digest="sha256:1"), "server.digest"),
])
def test_malformed_server_is_named(tmp_path: Path, server: dict[str, Any], says: str) -> None:
    made = served(load(tmp_path, TARGET + IMAGE), image_of()).to_json() | {"server": server}
    with pytest.raises(LockError) as caught:
        lockfile.parse(json.dumps(made), "x")
    assert says in f"{caught.value.message} {caught.value.where}"


def test_lock_without_the_server_is_refused(tmp_path: Path) -> None:
    asked = load(tmp_path, TARGET + IMAGE)
    with pytest.raises(LockError):
        graph(asked, served(asked, archive_of()), tmp_path)


def test_python_backend_from_source_beside_a_release(tmp_path: Path) -> None:
    asked = load(tmp_path, TARGET + RELEASE.replace("release}", "release, python_backend: source}"))
    stage = graph(asked, replace(lock(asked), files=(), server=archive_of()), tmp_path).stage("triton")
    assert "backends/python/*" in stage.params["drop"]
    assert not [path for path in stage.params["required"] if "python" in path]


def test_numpy_of_a_release_goes_by_its_pybind11() -> None:
    data = {"python": {"version": "3.11"}, "files": []}
    for version, numpy in (("24.10", "<2"), ("2.66.0", "")):
        target_ = {"platform": "linux/amd64", "triton": {"from": "release", "version": version}}
        assert facts.triton_stub(target_, data)["numpy"] == numpy


# -- NVIDIA's vLLM backend ----------------------------------------------------------------------------

UPSTREAM = ('torch: {version: "2.13.0"}\nvllm: {version: "%s"}\n'
            'triton: {version: "26.01", from: image, image: "a/b:1", backend: upstream}\n')


def upstream(asked: Target) -> Lock:
    source = {"kind": "git", "repository": "https://github.com/triton-inference-server/vllm_backend.git",
              "pinned": "c" * 40, "revision": "c" * 40, "tree": "sha256:" + "5" * 64, "size": 10, "submodules": {}}
    return replace(lock_of(asked, SourcePackage("vllm-backend", "26.01", source)), server=image_of())


@pytest.mark.parametrize(("vllm", "patches"), [
    ("0.17.1", []), ("0.20.0", ["tokens-prompt"]), ("0.32.0", ["tokens-prompt", "buckets"])])
def test_patches_go_by_the_images_vllm(tmp_path: Path, vllm: str, patches: list[str]) -> None:
    asked = load(tmp_path, TARGET + UPSTREAM % vllm)
    found = graph(asked, upstream(asked), tmp_path)
    inputs = found.stage("vllm-backend-source").inputs
    taken = [name.partition("-")[2] for name in inputs if name.startswith("patch/")]
    assert taken == [f"{one}.patch" for one in patches]
    backend = found.stage("backend")
    assert backend.params["root"] == "opt/tritonserver/backends/vllm"
    names = [name.partition("-")[2] for name in found.stage("image").inputs if name.startswith("layers/")]
    assert names.index("triton") < names.index("backend") < names.index("serve")
    assert "backend-imports" in found.stage("image").gates
    assert "vllm-backend-compiler" not in {stage.name for stage in found.stages}


def test_release_of_the_backend_is_the_servers_or_its_own(tmp_path: Path) -> None:
    def release(text: str) -> tuple[str, str]:
        package_ = load(tmp_path, TARGET + text).data["sources"]["packages"]["vllm-backend"]
        return package_["version"], package_["git"]["tag"][:8]

    text = UPSTREAM % "0.32.0"
    assert release(text) == ("26.01", "c70d6547")
    assert release(text.replace("upstream", 'upstream, backend_version: "25.11"')) == ("25.11", "364674af")
    by_revision = "upstream, backend_version: c70d65474833bac171cc33470c5e723c604558d6"
    assert release(text.replace("upstream", by_revision)) == ("26.01", "c70d6547")
    of_wheel = text.replace('"26.01", from: image, image: "a/b:1"', '"0.7.0"')
    assert release(of_wheel) == ("24.10", "b71088af")


@pytest.mark.parametrize(("text", "says"), [
    ((UPSTREAM % "0.32.0") + "sources: {packages: {vllm-backend: {version: '26.01'}}}\n", "is said in triton"),
    ('triton: {version: "0.7.0", backend: upstream}\n', "a vLLM backend without vllm"),
    ((UPSTREAM % "0.32.0").replace("26.01", "26.07"), "the revisions of vllm-backend 26.07 are not known"),
])
def test_backend_that_is_said_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, TARGET + text)
    assert says in caught.value.message


def test_its_patches_change_the_lines_that_they_name() -> None:
    known = {"src/utils/request.py": b"import x\nfrom vllm.inputs.data import TokensPrompt\n",
             "src/utils/metrics.py": b"from vllm.v1.metrics.loggers import StatLoggerBase, build_1_2_5_buckets\n"}
    changed: dict[str, bytes | None] = {}
    for name in ("tokens-prompt", "buckets"):
        data = (HERE / f"triton/patches/vllm_backend/{name}.patch").read_bytes()
        changed |= apply(known, parse_patch(data, name), name)
    assert changed["src/utils/request.py"] == b"import x\nfrom vllm.inputs import TokensPrompt\n"
    assert changed["src/utils/metrics.py"] == (b"from vllm.v1.metrics.buckets import build_1_2_5_buckets\n"
                                               b"from vllm.v1.metrics.loggers import StatLoggerBase\n")


# -- the server from source ---------------------------------------------------------------------------

WHOLE = 'triton: {version: "25.07", from: source}\n'


def test_server_from_source_brings_its_python_backend(tmp_path: Path) -> None:
    asked = load(tmp_path, TARGET + WHOLE)
    packages = asked.data["sources"]["packages"]
    assert {name: one["version"] for name, one in packages.items()} == {
        "triton-server": "25.07", "python-backend": "25.07"}
    assert packages["triton-server"]["git"]["tag"].startswith("c31f6e5c")
    trees = {row["name"]: row["tag"] for row in asked.recipes["triton-server"].trees("25.07")}
    assert trees["repo-common"].startswith("8a7a9167")
    assert trees["grpc-repo"] == "v1.54.3"
    assert load(tmp_path, TARGET + WHOLE.replace("25.07", "2.59.1")).request()["sources"] == asked.request()["sources"]


def test_its_layer_is_the_stage_triton(tmp_path: Path) -> None:
    asked = load(tmp_path, TARGET + WHOLE)
    source = {**package().source, "repository": "https://github.com/triton-inference-server/server.git"}
    made = replace(package(), name="triton-server", version="25.07", source=source)
    found = graph(asked, lock_of(asked, replace(package(), version="25.07"), made), tmp_path)
    names = [name.partition("-")[2] for name in found.stage("image").inputs if name.startswith("layers/")]
    assert names[-3:] == ["triton", "python-backend", "serve"]
    stage = found.stage("triton")
    assert stage.params["packages"][0] | {"digest": ""} == {
        "type": "generic", "name": "triton-inference-server", "version": "2.59.1", "container": "25.07",
        "architecture": "amd64", "file": f"triton-server-{'f' * 40}.tar", "digest": "", "licence": "BSD-3-Clause",
        "purl": f"pkg:github/triton-inference-server/server@{'f' * 40}"}
    assert stage.params["environment"]["TRITON_VERSION"] == "2.59.1"
    assert "libevent https://github.com/libevent/libevent.git release-2.1.12-stable" in \
        stage.params["environment"]["CLONES"].splitlines()
    assert "CLONES" not in found.stage("python-backend").params["environment"]


@pytest.mark.parametrize(("text", "says"), [
    (WHOLE.replace("25.07", "26.02"), "the revisions of triton-server 26.02 are not known"),
    (WHOLE + "sources: {packages: {triton-server: {version: '25.07'}}}\n", "is said in triton"),
])
def test_server_from_source_that_is_said_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, TARGET + text)
    assert says in caught.value.message


@pytest.mark.parametrize("name", ["server", "python-backend", "vllm-backend"])
def test_shipped_recipes_are_sound_and_their_files_are_there(name: str) -> None:
    found = recipe.load(HERE, f"triton/{name}.yaml")
    for path in filter(None, (found.data["script"], *found.data["files"])):
        assert (HERE / path).is_file(), path
    assert found.releases
    assert not any("${" in tree["tag"] for tree in found.trees(found.releases[0]["version"]))
