"""vLLM's own recipe as it is committed: it loads, what it names is there, its rows fit the releases they are for."""

from __future__ import annotations

import pytest

from assemble.patch import parse
from cache.errors import StageError
from executors.said import Refusal, Said
from stages.recipe import Recipe, load
from tests.support.front import HERE


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(HERE, "vllm/recipe.yaml")


def test_what_it_names_is_there(recipe: Recipe) -> None:
    rows = [row["file"] for row in recipe.data["patches"]]
    for file in (recipe.data["script"], *recipe.data["files"], *rows):
        assert (HERE / file).is_file(), file
    assert sorted(rows) == sorted(path.relative_to(HERE).as_posix() for path in (HERE / "vllm/patches").iterdir())


def test_each_patch_says_why_and_where_from(recipe: Recipe) -> None:
    for row in recipe.data["patches"]:
        data = (HERE / row["file"]).read_bytes()
        assert parse(data, row["file"])
        head = data.partition(b"\n--- ")[0]
        assert len(head) > 200
        assert b"\nSource: " in head


@pytest.mark.parametrize(("version", "arch", "stubs"), [
    ("0.20.0", "11.0a", "deepgemm flashmla qutlass"),
    ("0.20.0", "12.1a", "deepgemm flashmla"),
    ("0.32.0", "11.0a", "deepgemm deepselect flashkda flashmla fmha_sm100 qutlass"),
    ("0.32.0", "12.1a", "deepgemm deepselect flashmla fmha_sm100 tml_fa4"),
    ("0.32.0", "9.0a", ""),
])
def test_stubs(recipe: Recipe, version: str, arch: str, stubs: str) -> None:
    assert sorted(recipe.stubs(version, arch)) == stubs.split()


#: Lines of the configuration of 0.32.0, as CMake wrote them; the device that each is right for.
LINES = [
    ("-- Not building Machete kernels as no compatible archs found in CUDA target architectures", {"11.0a", "12.1a"}),
    ("-- Not building grouped_mm_c3x as no compatible archs found in CUDA target architectures.", {"11.0a", "12.1a"}),
    ("-- Not building scaled_mm_c3x_120 as no compatible archs found in CUDA target architectures", {"11.0a"}),
    ("-- Not building scaled_mm_c3x_100 as no compatible archs found in CUDA target architectures", {"12.1a"}),
    ("-- Not building SM12x NVFP4 as no compatible archs were found.", {"11.0a"}),
    ("-- Not building SM10x/11x NVFP4/MXFP4 as no compatible archs were found.", {"12.1a"}),
    ("-- Not building CUTLASS MLA as no compatible archs were found.", {"12.1a"}),
    ("-- Not building Marlin MOE kernels as no compatible archs found in CUDA target architectures", set()),
    ("-- [QUTLASS] Skipping build: no supported arch (12.0f / 10.0f) found in CUDA_ARCHS='11.0a'.", {"11.0a"}),
    ("-- FlashMLA will not compile: unsupported CUDA architecture 12.1a", {"11.0a", "12.1a"}),
    ("-- FlashKDA will not compile: CUDA >=12.0 and a supported architecture (SM90, SM10x, or SM12x) are required",
     {"11.0a"}),
    ("-- FlashAttention 2: 76 files for 11.0a", {"11.0a"}),
    ("-- FlashAttention 2: 76 files for 12.0", set()),
    ("-- CUDA target architectures: 12.1a", {"12.1a"}),
    ("Pytorch version 2.4.0 expected for CUDA build, saw 2.13.0 instead.", {"11.0a", "12.1a"}),
    ("Pytorch version 2.13.0 expected for CUDA build, saw 2.14.0 instead.", set()),
    ("-- Building Marlin kernels for archs: 8.0+PTX", {"11.0a", "12.1a"}),
]


@pytest.mark.parametrize("arch", ["11.0a", "12.1a"])
@pytest.mark.parametrize(("line", "right"), LINES)
def test_lines_that_end_a_build(recipe: Recipe, arch: str, line: str, right: set[str]) -> None:
    said = Said(lambda line: None, map(Refusal.of, recipe.refuse(arch)))
    if arch in right:
        said.line(line)
    else:
        with pytest.raises(StageError, match="ends the build"):
            said.line(line)
