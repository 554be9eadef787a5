"""Packages from source: what a target and a recipe may say, the lock's section, the stages and their keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cache.errors import InputError, LockError
from checks import facts
from stages import lockfile, recipe, target
from stages.graph import DataInput, FileInput, Stage, StageInput, plan_keys
from stages.project import graph
from tests.support.front import HERE
from tests.support.sourced import (
    DEVICE,
    RECIPE,
    SOURCES,
    file,
    graph_of,
    lock_of,
    package,
    tree,
    write,
)

VLLM = 'torch: {version: "2.0"}\nvllm: {version: "1.0", from: source}\n'

# -- recipes ------------------------------------------------------------------------------------------


def test_schema_in_the_docs_is_the_one_that_is_checked() -> None:
    assert json.loads((HERE / "docs/formats/recipe.schema.json").read_text()) == recipe.json_schema()


def test_recipe_of_vllm_is_sound_and_its_files_are_there() -> None:
    found = recipe.load(HERE, "vllm/recipe.yaml")
    for path in (found.data["script"], *found.data["files"], *(row["file"] for row in found.data["patches"])):
        assert (HERE / path).is_file(), path
    assert found.data["csrc"]
    assert found.compilers("linux/amd64", "linux/arm64")


def test_rows_are_chosen_by_version_and_architecture(tmp_path: Path) -> None:
    found = recipe.load(write(tmp_path), "recipe/recipe.yaml")
    assert set(found.stubs("1.0", "11.0a")) == {"hopper"}
    assert set(found.stubs("0.9", "11.0a")) == {"hopper", "old"}
    assert set(found.stubs("0.9", "12.1a")) == {"hopper"}
    assert set(found.stubs("0.9", "11.0a 9.0a")) == set()
    assert found.patches("1.5") == ["recipe/one.patch"]
    assert found.patches("2.0rc1") == ["recipe/two.patch"]
    assert found.refuse("11.0a") == [{"pattern": "no (.*) here", "reason": "it would be missing",
                                      "allow": ["all", "both", "one"]}]
    assert found.refuse("11.0a 12.1a")[0]["allow"] == ["all", "both"]
    assert found.refuse("9.0a")[0]["allow"] == ["all"]


@pytest.mark.parametrize(("before", "after", "says"), [
    ("csrc: [CMakeLists.txt, csrc/*]\n", "", "lacks 'csrc'"),
    ("script: recipe/build.sh", "script: ../build.sh", "wrong value for script"),
    ("script: recipe/build.sh", "scripts: recipe/build.sh", "unknown key 'scripts'"),
    ('"no (.*) here"', '"no (.* here"', "not a regular expression"),
    ("reason: the first one of them", "reason: short", "wrong value for patches.0.reason"),
    ('archs: ["11.0a"]', 'archs: [sm_110a]', "wrong value for stubs.1.archs.0"),
    ('versions: "==2.*"', 'versions: "==two"', "these are no versions"),
    ('versions: "<1"', 'versions: "<1,>"', "these are no versions"),
    ("pins:", "files: [other/build.sh]\npins:", "two files build.sh, and the script finds them by that name"),
])
def test_recipe_that_is_wrong_is_named_by_its_line(tmp_path: Path, before: str, after: str, says: str) -> None:
    write(tmp_path, recipe=RECIPE.replace(before, after))
    with pytest.raises(InputError) as caught:
        target.load(tmp_path, "small")
    assert says in caught.value.message
    assert str(caught.value.where).startswith("recipe/recipe.yaml:")


# -- targets ------------------------------------------------------------------------------------------


def test_vllm_from_source_has_its_own_recipe_and_the_targets_version(tmp_path: Path) -> None:
    text = VLLM + "sources: {packages: {vllm: {recipe: recipe/recipe.yaml}}}\n"
    found = target.load(write(tmp_path, DEVICE + text), "small")
    assert found.data["sources"]["packages"]["vllm"] == {
        "version": "1.0", "recipe": "recipe/recipe.yaml", "index": "default", "stubs": {}, "pins": {}, "patches": []}
    assert found.data["sources"]["execution"] == "linux/amd64"
    assert list(found.recipes) == ["vllm"]
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/recipe.yaml").write_text(RECIPE)
    (tmp_path / "targets/small.yaml").write_text(DEVICE + VLLM)
    assert target.load(tmp_path, "small").recipes["vllm"].path == "vllm/recipe.yaml"


@pytest.mark.parametrize(("text", "says"), [
    (VLLM.replace("source", "wheel") + "sources: {packages: {vllm: {recipe: recipe/recipe.yaml}}}\n",
     "vllm is taken as a wheel"),
    (VLLM + 'sources: {packages: {vllm: {version: "2.0"}}}\n', "two versions of vllm"),
    (VLLM.replace("source", "sauce"), "wrong value for vllm.from"),
    ("sources: {packages: {pkg: {recipe: recipe/recipe.yaml}}}\n", "the package pkg from source needs a version"),
    ('sources: {packages: {pkg: {version: "1.0"}}}\n', "the package pkg from source needs a recipe"),
    ('sources: {packages: {pkg: {version: "1.0", recipe: recipe/none.yaml}}}\n', "no such file"),
    (SOURCES.replace("sources:\n", "sources:\n  execution: linux/riscv\n"), "wrong value for sources.execution"),
    (SOURCES + "layers: {deps: [click]}\n", "no layer takes pkg"),
    (SOURCES + 'torch: {version: "2.0"}\nlayers: {torch: [torch, pkg], deps: ["*"]}\n',
     "pkg is compiled with what the layer torch holds, and would lie in it"),
    (SOURCES.replace("pkg:", "torch:") + 'torch: {version: "1.0"}\n', "torch is compiled with what"),
    (SOURCES.replace("pkg:", "vllm:"), "vllm is compiled, and the target has no section vllm"),
    (SOURCES.replace("pkg:", "p--kg:"), "wrong key in sources.packages"),
    (SOURCES.replace('"1.0"', '"1.0-x!y"'), "this is no version of pkg"),
    (SOURCES + "      stubs: {deep: it is not needed}\n      pins: {deep: {tag: v2, reason: the newest one}}\n",
     "deep is a stub and has a pin"),
    (SOURCES + "      index: default\n      git: {repository: 'https://example.org/x', tag: v1}\n",
     "pkg has an index and a Git repository"),
    (SOURCES + "      git: {repository: 'https://me:secret@example.org/x', tag: v1}\n",
     "wrong value for sources.packages.pkg.git.repository"),
    (SOURCES.replace("https://github.com/", "a b"), "wrong key in sources.mirrors"),
    (SOURCES.replace("file:///srv/git/", "../git/"), "wrong value for sources.mirrors"),  # from where, nobody knows
    (SOURCES + "wheels: {overrides: [{requirement: 'Pkg>=1', reason: the newest of them}]}\n",
     "pkg is compiled, and wheels.overrides says which wheel of it to take"),
    (SOURCES + "wheels: {indexes: {pkg: default}}\n", "pkg is compiled, and wheels.indexes"),
])
def test_target_that_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    write(tmp_path, DEVICE + text)
    with pytest.raises(InputError) as caught:
        target.load(tmp_path, "small")
    assert says in caught.value.message


def test_nothing_compiles_for_a_platform_without_compilers(tmp_path: Path) -> None:
    write(tmp_path, (DEVICE + SOURCES).replace("sources:\n", "sources:\n  execution: linux/arm64\n"),
          RECIPE.replace("    linux/arm64: {linux/arm64: [g++-12]}\n", ""))
    with pytest.raises(InputError, match="nothing compiles for linux/arm64 on linux/arm64"):
        target.load(tmp_path, "small")


@pytest.mark.parametrize("arch_list", ['"\'11.0a\'"', "sm_110a", "11.0a,12.1a", "11"])
def test_architecture_list_with_quotes_or_of_another_spelling(tmp_path: Path, arch_list: str) -> None:
    write(tmp_path, (DEVICE + SOURCES).replace('arch_list: "11.0a"', f"arch_list: {arch_list}"))
    with pytest.raises(InputError, match="arch_list"):
        target.load(tmp_path, "small")


def test_architecture_that_the_compiler_does_not_know(tmp_path: Path) -> None:
    text = (DEVICE + SOURCES).replace('"11.0', '"13.7')
    with pytest.raises(InputError, match=r"nvcc of CUDA 13.0 compiles nothing for 13.7a") as caught:
        target.load(write(tmp_path, text), "small")
    assert "11.0" in str(caught.value.expected)
    target.load(write(tmp_path, text.replace('cuda: "13.0"', 'cuda: "13.9"')), "small")  # not known: not judged
    target.load(write(tmp_path, text.replace(SOURCES, "")), "small")  # nothing is compiled


def test_compiler_that_is_newer_than_the_oldest_driver(tmp_path: Path) -> None:
    newer = (DEVICE + SOURCES).replace('cuda: "13.0"', 'cuda: "13.1"')
    with pytest.raises(InputError, match=r"nvcc of CUDA 13.1 writes PTX that driver 580 does not compile") as caught:
        target.load(write(tmp_path, newer), "small")
    assert "590.44.01" in str(caught.value.expected)
    target.load(write(tmp_path, newer.replace('"580"', '"590"')), "small")
    target.load(write(tmp_path, newer.replace('"580"', '"590.44"')), "small")
    jetson = newer.replace("base:\n", '  host: {os: L4T r40, glibc: "2.39"}\nbase:\n')
    target.load(write(tmp_path, jetson), "small")  # its drivers have numbers of their own, and these nobody knows


def test_request_has_what_lock_reads_and_nothing_else(tmp_path: Path) -> None:
    def asked(text: str = DEVICE + SOURCES, recipe: str = RECIPE) -> dict[str, Any]:
        return target.load(write(tmp_path, text, recipe), "small").request()

    before = asked()
    assert set(before) == {"base", "wheels", "sources"}
    same = [(DEVICE + SOURCES.replace("/srv/git/", "/srv/other/"), RECIPE),
            (DEVICE + SOURCES, RECIPE.replace("it has no code", "there is no code")),
            (DEVICE + SOURCES, RECIPE.replace("csrc/*", "csrc/**")),
            (DEVICE + SOURCES, RECIPE.replace('SETTING: "1"', 'SETTING: "2"'))]
    assert all(asked(*one) == before for one in same)
    other = [(DEVICE + SOURCES.replace('"1.0"', '"1.1"'), RECIPE),
             (DEVICE + SOURCES + "      stubs: {deep: it is not needed here}\n", RECIPE),
             (DEVICE + SOURCES + "      pins: {deep: {tag: v2, reason: the newest of them}}\n", RECIPE),
             (DEVICE + SOURCES, RECIPE.replace("requires: [cmake]", "requires: [ninja]"))]
    for one in other:
        found = asked(*one)
        assert found["sources"] != before["sources"]
        assert (found["base"], found["wheels"]) == (before["base"], before["wheels"])
    assert "sources" not in asked(DEVICE)
    archive = asked((DEVICE + SOURCES).replace("suite: bookworm", "suite: bookworm\n    snapshot: 20261120T000000Z"))
    assert archive["sources"] != before["sources"]  # compilers come from where the base comes from


def test_request_says_whether_it_is_for_lock_to_decide(tmp_path: Path) -> None:
    """A lock whose decision was the wheel must not answer a target that wants vLLM compiled."""
    text = DEVICE + VLLM + "sources: {packages: {vllm: {recipe: recipe/recipe.yaml}}}\n"
    found = [target.load(write(tmp_path, text.replace("source}", f"{taken}}}")), "small").request()["sources"]
             for taken in ("source", "auto")]
    assert found[0] != found[1]


# -- locks --------------------------------------------------------------------------------------------


def test_section_reads_back_and_is_as_the_docs_say(tmp_path: Path) -> None:
    made = lock_of(target.load(write(tmp_path), "small"), package(), package(
        name="other", source={"kind": "git", "repository": "https://github.com/x/other", "pinned": "v1",
                              "revision": "e" * 40, "tree": "sha256:" + "f" * 64, "size": 9, "submodules": {}}))
    text = made.dumps()
    assert lockfile.parse(text, "x") == made
    jsonschema.validate(json.loads(text), json.loads((HERE / "docs/formats/lock.schema.json").read_text()))
    for name in ("deep", "kept", "cmake", "g++-12-aarch64-linux-gnu"):
        assert sum(f'"name": "{name}"' in line for line in text.splitlines()) == 2, name  # one of each package
    assert not any(line.count('"name"') > 1 for line in text.splitlines())


def _set(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value
    return change


@pytest.mark.parametrize(("change", "at"), [
    (_set("sources", value={}), "sources"),
    (_set("sources", 0, "version", value=1), "sources: pkg.version"),
    (_set("sources", 0, "source", "kind", value="svn"), "sources: pkg.source"),
    (_set("sources", 0, "source", "sha256", value="x"), "sources: pkg.source"),
    (_set("sources", 0, "trees", 0, "revision", value="main"), "sources: pkg.trees[0].revision"),
    (_set("sources", 0, "trees", 0, "tree", value="sha256:1"), "sources: pkg.trees[0].tree"),
    (_set("sources", 0, "trees", 0, "more", value=1), "sources: pkg.trees[0]"),
    (_set("sources", 0, "trees", 0, "submodules", value={"a": ["b"]}), "sources: pkg.trees[0].submodules"),
    (_set("sources", 0, "tools", "debs", 0, "size", value=-1), "sources: pkg.tools.debs"),
    (_set("sources", 0, "stubs", value=["hopper"]), "sources: pkg.stubs"),
    (_set("decisions", value={"vllm": {"from": "luck", "why": []}}), "decisions: vllm"),
    (_set("request", "sources", value="x"), "request.sources"),
])
def test_malformed_section_is_named_by_its_place(tmp_path: Path, change: Callable[[Any], None], at: str) -> None:
    data = lock_of(target.load(write(tmp_path), "small")).to_json()
    change(data)
    with pytest.raises(LockError) as caught:
        lockfile.parse(json.dumps(data), "small.lock.json")
    assert str(caught.value.where).startswith(f"small.lock.json: {at}")


def test_stale_sources_are_named_with_the_command(tmp_path: Path) -> None:
    asked = target.load(write(tmp_path), "small")
    lockfile.path_of(tmp_path, "small").write_text(lock_of(asked).dumps())
    assert lockfile.load(tmp_path, asked).sources[0].name == "pkg"
    write(tmp_path, DEVICE + SOURCES + "      stubs: {deep: it is not needed here}\n")
    with pytest.raises(LockError) as caught:
        lockfile.load(tmp_path, target.load(tmp_path, "small"))
    assert "./doit lock:small --only sources" in caught.value.diagnostics()
    write(tmp_path, DEVICE)  # nothing from source any more
    with pytest.raises(LockError, match="does not fit"):
        lockfile.load(tmp_path, target.load(tmp_path, "small"))


def test_comparison_names_what_moved(tmp_path: Path) -> None:
    asked = target.load(write(tmp_path), "small")
    moved = replace(tree("deep", "DEEP_SRC_DIR"), revision="9" * 40)
    new = lock_of(asked, package(trees=(moved, tree("kept", "KEPT_SRC_DIR"))))
    assert [(c.section, c.name, c.old, c.new) for c in lockfile.compare(lock_of(asked), new)] == [
        ("sources", "pkg: deep", "v1 " + "a" * 12, "v1 " + "9" * 12)]
    assert {c.name for c in lockfile.compare(None, new)} >= {"pkg", "pkg: deep", "pkg: cmake"}
    asks = lock_of(asked, package(requirements=("click>=9",), stubs={"hopper": "", "old": ""}))
    assert [(c.name, c.old, c.new) for c in lockfile.compare(lock_of(asked), asks)] == [
        ("pkg: requirements", "click>=8", "click>=9"), ("pkg: stubs", "hopper", "hopper, old")]
    decided = replace(new, decisions={"vllm": {"from": "source", "why": ["abi: it does not load"]}})
    assert [(c.section, c.name, c.old, c.new) for c in lockfile.compare(new, decided)] == [
        ("decision", "vllm", "", "source: abi: it does not load")]


# -- the graph ----------------------------------------------------------------------------------------


def stage_of(root: Path, name: str, *packages: Any) -> Stage:
    return graph_of(root, *packages).stage(name)


def test_stages_and_what_they_read(tmp_path: Path) -> None:
    graph = graph_of(write(tmp_path))
    assert [stage.name for stage in graph.stages] == [
        "base", "pkg-source", "pkg-compiler", "pkg-toolkit", "pkg-requires", "pkg-extensions", "pkg-wheel", "deps",
        "image", "attest"]
    extensions = graph.stage("pkg-extensions")
    assert extensions.kind == "run"
    assert set(extensions.dependencies()) == {"base", "pkg-compiler", "pkg-toolkit", "pkg-requires", "pkg-source"}
    assert extensions.inputs["tree/csrc"] == StageInput("pkg-source", "csrc")
    # Python files, and what is said about the source, are read by the wheel alone.
    assert not any(item == StageInput("pkg-source", output) for item in extensions.inputs.values()
                   for output in ("python", "facts"))
    assert graph.stage("deps").inputs == {
        "wheels/pkg-1.0-cp311-cp311-linux_aarch64.whl": StageInput("pkg-wheel", "wheel")}
    layers = [name for name in graph.stage("image").inputs if name.startswith("layers/")]
    assert [name.partition("-")[2] for name in layers] == ["base", "deps"]


def test_script_is_told_where_everything_is(tmp_path: Path) -> None:
    told = stage_of(write(tmp_path), "pkg-extensions").params["environment"]
    assert told["TORCH_CUDA_ARCH_LIST"] == "11.0a"
    assert told["CMAKE_ARGS"].split() == [
        "-DFETCHCONTENT_FULLY_DISCONNECTED=ON", "-DFETCHCONTENT_SOURCE_DIR_DEEP=/inputs/csrc/sources/deep",
        "-DFETCHCONTENT_SOURCE_DIR_HOPPER=/inputs/csrc/sources/hopper",
        "-DFETCHCONTENT_SOURCE_DIR_KEPT=/inputs/csrc/sources/kept"]
    assert told["DEEP_SRC_DIR"] == "/inputs/csrc/sources/deep/python/deep"
    assert told["HOPPER_SRC_DIR"] == "/inputs/csrc/sources/hopper"  # a stub is a directory too
    assert "KEPT_SRC_DIR" not in told
    assert (told["SETTING"], told["NAME"], told["VERSION"]) == ("1", "pkg", "1.0")


def test_who_compiles_is_in_the_key_and_never_probed(tmp_path: Path) -> None:
    foreign = stage_of(write(tmp_path), "pkg-extensions")
    assert foreign.params["execution"] == "x86_64"
    assert [one["name"] for one in foreign.params["emulators"]] == ["qemu-user"]
    native = stage_of(write(tmp_path, (DEVICE + SOURCES).replace("sources:\n", "sources:\n  execution: linux/arm64\n")),
                      "pkg-extensions")
    assert native.params["execution"] == native.params["machine"] == "aarch64"
    assert not native.params["emulators"]
    assert not any(name.startswith("emulator/") for name in native.inputs)


def test_compilers_are_found_by_the_names_that_builds_and_compilers_use(tmp_path: Path) -> None:
    links = stage_of(write(tmp_path), "pkg-compiler").params["links"]
    assert links["cross/bin/g++"] == "../usr/bin/aarch64-linux-gnu-g++-12"
    assert links["cross/bin/ld"] == links["cross/bin/aarch64-linux-gnu-ld"] == "../usr/bin/aarch64-linux-gnu-ld"
    assert links["cross/bin/ccache"] == "../usr/bin/ccache"


def test_native_compilers_lie_where_they_always_do(tmp_path: Path) -> None:
    """Those of the target's own packages are there already; /cross/bin leads to both."""
    native = (DEVICE + SOURCES).replace("sources:\n", "sources:\n  execution: linux/arm64\n")
    asked = target.load(write(tmp_path, native), "small")
    lock = lock_of(asked)
    compiler = file("g++-12", suffix="deb", architecture="arm64")
    more = file("patch", suffix="deb", architecture="arm64")
    tools = replace(lock.sources[0].tools, debs=(compiler, more))
    lock = replace(lock, debs=(*lock.debs, compiler), sources=(replace(lock.sources[0], tools=tools),))
    stage = graph(asked, lock, tmp_path).stage("pkg-compiler")
    assert list(stage.inputs) == ["debs/patch-1.deb"]
    assert stage.params["in_place"] == ["*"]
    assert stage.params["links"]["cross/bin/g++"] == "../../usr/bin/aarch64-linux-gnu-g++-12"
    foreign = stage_of(write(tmp_path), "pkg-compiler").params
    assert "usr/include/*" not in foreign["in_place"]  # the root of another machine has its own


def test_patches_are_those_of_the_version_and_the_targets_own_behind_them(tmp_path: Path) -> None:
    write(tmp_path, DEVICE + SOURCES + "      patches: [recipe/ours.patch]\n")
    (tmp_path / "recipe/ours.patch").write_text("ours\n")
    inputs = stage_of(tmp_path, "pkg-source").inputs
    assert [name for name in inputs if name.startswith("patch/")] == ["patch/00-one.patch", "patch/01-ours.patch"]
    (tmp_path / "recipe/ours.patch").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        graph_of(tmp_path)


def test_trees_are_fetched_by_digest_whoever_serves_them(tmp_path: Path) -> None:
    inputs = stage_of(write(tmp_path), "pkg-source").inputs
    found = inputs["tree/deep"]
    assert isinstance(found, FileInput)
    assert (found.kind, found.locked.digest, found.locked.index) == ("git", "sha256:" + "b" * 64,
                                                                    "https://github.com/x/deep")
    keys = plan_keys(graph_of(tmp_path))
    elsewhere = replace(tree("deep", "DEEP_SRC_DIR"), repository="https://example.org/deep")
    moved = plan_keys(graph_of(tmp_path, package(trees=(elsewhere, tree("kept", "KEPT_SRC_DIR")))))
    assert moved["pkg-source"] == keys["pkg-source"]
    assert moved["image"] == keys["image"]


def test_pins_of_an_image_are_content_and_not_where_it_came_from(tmp_path: Path) -> None:
    asked = target.load(write(tmp_path), "small")
    source = {"kind": "git", "repository": "https://example.org/x", "pinned": "v1", "revision": "e" * 40,
              "tree": "sha256:" + "f" * 64, "size": 9, "submodules": {"a": ["https://example.org/a", "c" * 40]}}
    moved = {**source, "repository": "https://example.com/x", "submodules": {"a": ["https://example.com/a", "c" * 40]},
             "pinned": "1.0"}
    one, other = (facts.pins(lock_of(asked, package(source=made)).to_json()) for made in (source, moved))
    assert one == other
    assert one != facts.pins(lock_of(asked, package(source={**source, "revision": "d" * 40})).to_json())


def test_check_reads_the_version_of_what_is_compiled_too(tmp_path: Path) -> None:
    asked = target.load(write(tmp_path), "small")
    lock = lock_of(asked, package(name="triton", version="3.6.0")).to_json()
    assert [tool["version"] for tool in facts.ptxas(asked.data, lock)["tools"]] == ["3.6.0"]


def test_provenance_names_patches_and_scripts(tmp_path: Path) -> None:
    """They change what is compiled as much as a source does."""
    told = stage_of(write(tmp_path), "attest").inputs["lock"]
    assert isinstance(told, DataInput)
    package_, = json.loads(told.content)["sources"]
    assert set(package_["files"]) == {"recipe/build.sh", "recipe/one.patch"}
    assert package_["stubs"] == ["hopper"]


def test_change_moves_the_stages_that_read_it_and_no_others(tmp_path: Path) -> None:
    before = plan_keys(graph_of(write(tmp_path)))

    def moved(*packages: Any, **files: str) -> set[str]:
        write(tmp_path)
        for name, text in files.items():
            (tmp_path / name.replace("__", "/").replace("_sh", ".sh")).write_text(text)
        after = plan_keys(graph_of(tmp_path, *packages))
        return {name for name in before if after[name] != before[name]} - {"deps", "image", "attest", "pkg-wheel"}

    tools = package().tools
    assert moved(recipe__build_sh="exit 2\n") == {"pkg-extensions"}
    assert moved(package(tools=replace(tools, requires=(file("cmake", "2"),)))) == {"pkg-requires", "pkg-extensions"}
    assert moved(package(tools=replace(tools, toolkit=(file("nvidia-cuda-nvcc", "2"),)))) == {
        "pkg-toolkit", "pkg-extensions"}
    assert moved(package(requirements=("click>=9",))) == set()
