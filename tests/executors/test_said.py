"""Lines that end a build, and lines that tell why one ended."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from cache.errors import InputError, StageError
from executors.said import Refusal, Said

#: What a build of vLLM must not pass over (docs/vllm-from-source.md).
ARCHS = {"pattern": "Not building (.*) as no compatible archs", "allow": ["Machete", "*MLA*"],
         "reason": "a kernel would be missing"}
TORCH = {"pattern": r"WARNING: The detected CUDA version \(\S+\) .* mismatches the version that was used to compile"}


def said(*refusals: Mapping[str, object]) -> Said:
    return Said(lambda line: None, map(Refusal.of, refusals))


def test_line_that_is_not_allowed_ends_it_with_its_reason_and_the_cure() -> None:
    with pytest.raises(StageError) as caught:
        said(ARCHS).line("-- Not building Marlin as no compatible archs found in CUDA target architectures")
    assert caught.value.message == "a line of its output ends the build: a kernel would be missing"
    text = caught.value.diagnostics()
    assert "-- Not building Marlin as no compatible archs" in text
    assert "Machete, *MLA*" in text
    assert "add 'Marlin' to `allow`" in text


@pytest.mark.parametrize("line", [
    "-- Not building Machete as no compatible archs found", "-- Not building CUTLASS MLA as no compatible archs found",
    "\x1b[32m-- Not building \x1b[1mMachete\x1b[0m as no compatible archs found\x1b[0m", "-- Building Marlin", ""])
def test_line_that_is_allowed_passes(line: str) -> None:
    said(ARCHS, TORCH).line(line)


def test_colours_hide_nothing() -> None:
    with pytest.raises(StageError, match="ends the build"):
        said(ARCHS).line("\x1b[32m-- Not building \x1b[1mMarlin\x1b[0m as no compatible archs\x1b]8;;x\x07 found")


def test_without_a_group_the_line_is_what_may_be_allowed() -> None:
    line = "  WARNING: The detected CUDA version (13.1) has a minor version that mismatches the version that was " \
           "used to compile PyTorch (13.0)"
    with pytest.raises(StageError, match=r"ends the build$"):
        said(TORCH).line(line)
    said({**TORCH, "allow": ["WARNING: *(13.1)*"]}).line(line)
    with pytest.raises(StageError, match=r"ends the build$"):
        said({"pattern": "a(b)?"}).line("a")


def test_pattern_that_is_none_is_named() -> None:
    with pytest.raises(InputError) as caught:
        said({"pattern": "a("})
    assert caught.value.where == "a("


def test_first_line_that_tells_is_kept_when_much_follows() -> None:
    it = said()
    it.line("  \x1b[31mcurl: (6) Could not resolve host: example.org\x1b[0m")
    for number in range(100):
        it.line(f"line {number}")
    it.line("curl: (6) Could not resolve host: other.example.org")
    assert it.told == {"network": "curl: (6) Could not resolve host: example.org"}
    first, *rest = it.text(it.told["network"]).splitlines()
    assert first == it.told["network"]
    assert len(rest) == 25
    assert it.text("line 99").splitlines()[0] == "line 76"
