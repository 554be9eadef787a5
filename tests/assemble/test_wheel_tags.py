"""Which wheel tags fit an image."""

import pytest
from packaging.tags import parse_tag

from assemble.wheel_tags import Image


@pytest.mark.parametrize("tag", [
    "py3-none-any", "py2.py3-none-any", "cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64",
    "cp38-abi3-linux_aarch64", "cp311-abi3-manylinux_2_36_aarch64", "py311-none-any", "py37-none-any", "cp311-none-any",
    "py3-none-manylinux2014_sbsa", "cp311-none-linux_aarch64",
    "cp310.cp311-cp310.cp311-manylinux_2_99_aarch64.manylinux_2_5_aarch64",
])
def test_fits(tag: str) -> None:
    assert Image("3.11", "arm64", "2.36").takes_any(parse_tag(tag))


@pytest.mark.parametrize("tag", [
    "cp312-cp312-manylinux_2_17_aarch64", "cp310-cp310-linux_aarch64", "cp312-abi3-linux_aarch64", "py2-none-any",
    "cp311-cp311-manylinux_2_17_x86_64", "cp311-cp311-win_arm64", "cp311-cp311-macosx_11_0_arm64",
    "cp311-cp311t-linux_aarch64", "cp311-cp311-manylinux_2_37_aarch64", "cp311-cp311-musllinux_1_2_aarch64",
    "pp311-pypy311_pp73-manylinux_2_17_aarch64",
    "py312-none-any",
])
def test_does_not_fit(tag: str) -> None:
    assert not Image("3.11", "arm64", "2.36").takes_any(parse_tag(tag))


def test_the_host_does_not_count() -> None:
    """An x86-64 image takes x86-64 wheels and an arm64 one does not, whatever machine this runs on."""
    tag = parse_tag("cp313-cp313-manylinux_2_41_x86_64")
    assert Image("3.13", "amd64", "2.41").takes_any(tag)
    assert not Image("3.13", "amd64", "2.40").takes_any(tag)
    assert Image("3.13", "amd64").takes_any(tag)
    assert not Image("3.13", "arm64").takes_any(tag)
