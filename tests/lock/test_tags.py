"""Which wheel fits, and which fits best."""

from __future__ import annotations

import pytest

from cache.errors import InputError
from lock.tags import machines, platforms, pythons, rank, supported
from lock.uv import Offer
from lock.wheels import best

THOR = supported("3.11", "aarch64", "2.36")


@pytest.mark.parametrize("tag", [
    "cp311-cp311-manylinux_2_36_aarch64", "cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64",
    "cp311-cp311-manylinux2014_aarch64", "cp311-cp311-linux_aarch64", "cp38-abi3-manylinux_2_28_aarch64",
    "cp311-none-manylinux_2_28_aarch64", "py3-none-manylinux_2_35_aarch64", "py2.py3-none-any", "py311-none-any",
    "cp310.cp311-cp310.cp311-manylinux_2_28_aarch64"])
def test_fits_thor(tag: str) -> None:
    assert rank(f"x-1-{tag}.whl", THOR) is not None


@pytest.mark.parametrize("tag", [
    "cp312-cp312-manylinux_2_28_aarch64", "cp310-cp310-linux_aarch64", "cp311-cp311-manylinux_2_37_aarch64",
    "cp311-cp311-manylinux_2_28_x86_64", "cp311-cp311-musllinux_1_2_aarch64", "cp312-abi3-manylinux_2_28_aarch64",
    "cp311-cp311t-linux_aarch64", "py2-none-any", "py312-none-any", "cp311-cp311-macosx_11_0_arm64",
    "cp311-cp311-manylinux_2_12_aarch64", "cp311-cp311d-linux_aarch64"])
def test_does_not_fit_thor(tag: str) -> None:
    assert rank(f"x-1-{tag}.whl", THOR) is None


def test_a_name_that_is_no_wheels() -> None:
    assert rank("x-1.tar.gz", THOR) is None
    assert rank("nonsense.whl", THOR) is None


def test_x86_has_the_old_names() -> None:
    assert {"manylinux1_x86_64", "manylinux2010_x86_64", "manylinux_2_5_x86_64", "linux_x86_64"} < set(
        platforms("x86_64", "2.41"))
    assert platforms("aarch64", "2.18") == [
        "manylinux_2_18_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64", "linux_aarch64"]


def test_this_hosts_interpreter_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """packaging would otherwise ask sysconfig whether *this* Python is a debug or a free-threaded one."""
    before = supported("3.11", "aarch64", "2.36")
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: 1)
    monkeypatch.setattr("packaging.tags._get_config_var", lambda name, warn=False: 1)
    assert supported("3.11", "aarch64", "2.36") == before


@pytest.mark.parametrize(("python", "machine", "glibc"), [
    ("3", "aarch64", "2.36"), ("3.11.2", "aarch64", "2.36"), ("3.x", "aarch64", "2.36"), ("3.11", "arm64", "2.36"),
    ("3.11", "aarch64", "2")])
def test_mistakes(python: str, machine: str, glibc: str) -> None:
    with pytest.raises(InputError):
        supported(python, machine, glibc)


def offer(tag: str, build: str = "") -> Offer:
    return Offer(f"x-1-{build + '-' if build else ''}{tag}.whl", f"https://i/{tag}{build}", "", 0)


def chosen(*offers: Offer) -> str:
    found = best(offers, THOR)
    assert found is not None
    return found.file.removeprefix("x-1-").removesuffix(".whl")


def test_the_best_of_several() -> None:
    own, abi3 = offer("cp311-cp311-manylinux_2_28_aarch64"), offer("cp39-abi3-manylinux_2_34_aarch64")
    pure, mirror = offer("py3-none-any"), offer("cp311-cp311-linux_aarch64")
    foreign = offer("cp312-cp312-manylinux_2_28_aarch64")
    assert chosen(pure, abi3, own, foreign) == "cp311-cp311-manylinux_2_28_aarch64"
    assert chosen(pure, abi3, mirror) == "cp311-cp311-linux_aarch64"
    assert chosen(pure, abi3, foreign) == "cp39-abi3-manylinux_2_34_aarch64"
    assert chosen(foreign, pure) == "py3-none-any"
    assert chosen(own, offer("cp311-cp311-manylinux_2_34_aarch64")) == "cp311-cp311-manylinux_2_34_aarch64"
    assert best([foreign], THOR) is None


def test_of_equal_ones_the_highest_build() -> None:
    assert chosen(offer("py3-none-any"), offer("py3-none-any", "10"), offer("py3-none-any", "9")) == "10-py3-none-any"


def test_the_order_of_offers_does_not_matter() -> None:
    offers = [offer("py3-none-any"), offer("cp39-abi3-manylinux_2_34_aarch64"), offer("py3-none-any", "2")]
    assert {chosen(*offers), chosen(*offers[::-1]), chosen(*offers[1:], offers[0])} == {
        "cp39-abi3-manylinux_2_34_aarch64"}


def test_words_for_what_wheels_are_for() -> None:
    files = ["x-1-cp312-cp312-linux_aarch64.whl", "x-1-cp39-cp39-linux_aarch64.whl", "x-1-cp38-abi3-linux_x86_64.whl",
             "x-1-cp313-cp313t-linux_aarch64.whl", "x-1-py3-none-any.whl"]
    assert pythons(files) == ["cp38-abi3", "cp39", "cp312", "cp313t", "py3"]
    assert machines(files) == ["any", "linux_aarch64", "linux_x86_64"]
