"""The table of Triton's releases: of its schema, whole, and of one mind with the other tables."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import jsonschema
import pytest
import yaml

from checks import triton_releases
from checks.facts import release
from tests.support.front import HERE

TABLE = triton_releases.table()
SCHEMA = json.loads((HERE / "docs/formats/triton-releases.schema.json").read_text(encoding="utf-8"))


def row(container: str) -> dict[str, Any]:
    found = triton_releases.row_of(container)
    assert found is not None
    return found


def test_it_is_what_its_schema_says() -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(TABLE)
    damaged = json.loads(json.dumps(TABLE))
    del damaged["releases"][3]["source"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(damaged)


def test_every_release_once_the_newest_first() -> None:
    containers = [one["container"] for one in TABLE["releases"]]
    assert containers == sorted(set(containers), reverse=True)
    assert (containers[0], containers[-1], len(containers)) == ("26.10", "23.10", 37)
    versions = [release(one["triton"]) for one in TABLE["releases"] if "triton" in one]
    assert versions == sorted(set(versions), reverse=True)


def test_no_two_releases_share_a_revision_of_the_server() -> None:
    """common, third_party and others stay the same for months; a server's branch is a release."""
    servers = [one["revisions"]["server"] for one in TABLE["releases"] if "revisions" in one]
    assert len(servers) == len(set(servers)) > 30


@pytest.mark.parametrize("name", [
    "25.08", "r25.08", "2.60.0", "v2.60.0", "nvcr.io/nvidia/tritonserver:25.08-vllm-python-py3",
    "localhost:5000/tritonserver:25.08-py3-igpu@sha256:" + "0" * 64, "15f492ed986c4a875364ac95a1433526a0f92cbe",
    "ed9ff012f5dc07da52f1c909a0536de14baad537", "tritonserver2.60.0-agx.tar",
    "https://github.com/triton-inference-server/server/releases/download/v2.60.0/tritonserver2.60.0-igpu.tar"])
def test_the_names_that_a_release_has(name: str) -> None:
    assert row(name)["container"] == "25.08"


@pytest.mark.parametrize("name", ["", "25.13", "25.80", "2.60", "12.25.08", "latest", "26.11", "v25.8", "a" * 40])
def test_names_that_none_has(name: str) -> None:
    assert triton_releases.row_of(name) is None


def test_prebuilt_servers_are_those_of_the_layout() -> None:
    layout = yaml.safe_load((HERE / "triton/pytriton-layout.yaml").read_text(encoding="utf-8"))
    for known in layout["releases"]:
        [found] = [one for one in TABLE["prebuilt"] if one["version"] == known["since"]]
        assert found["wheel"] == layout["wheel"]
        assert found["container"] == known["container"]
        assert row(found["container"])["triton"] == known["triton"]


def test_numpy_of_the_stubs_follows_from_their_pybind11() -> None:
    """pybind11 of 2.12 or newer is for both numpys: what triton-stub asks of pytriton's must be the same."""
    layout = yaml.safe_load((HERE / "triton/pytriton-layout.yaml").read_text(encoding="utf-8"))
    for known in layout["releases"]:
        assert (release(row(known["container"])["pybind11"]) < (2, 12)) == (known["numpy"] == "<2")


def test_patches_that_ranges_name_are_described() -> None:
    named = {name for branch in TABLE["backends"] for fit in branch["fits"] for name in fit["patches"]}
    assert named == set(TABLE["patches"])


def test_ranges_of_a_branch_do_not_overlap() -> None:
    for branch in TABLE["backends"]:
        edges = [(release(fit["since"]), release(fit["before"])) for fit in branch["fits"]]
        assert all(since < before for since, before in edges)
        assert all(below[1] <= above[0] for below, above in itertools.pairwise(edges))


def test_the_key_rows_are_those_of_nvidias_matrix() -> None:
    """Spot checks by hand: server r26.08, docs/introduction/compatibility.md."""
    said = {name: (row(name).get("python"), row(name).get("cuda"), row(name).get("driver")) for name in
            ("26.08", "25.08", "25.04", "24.10")}
    assert said == {"26.08": ("3.12.3", "13.4.1.012", "615.61"), "25.08": ("3.12.3", "13.0.1.012", "580.82.07"),
                    "25.04": ("3.12.3", "12.9.0.036", "575.51.02"), "24.10": ("3.10.12", "12.6.2.004", "560.35.03")}
    assert row("25.04")["torch"] == "2.7.0a0+79aa17489c.nv25.4"
    assert row("25.05")["igpu"]["archives"][0]["sha256"].startswith("78b4572ef39fcbb3")


def test_the_last_release_for_jetson() -> None:
    """Release notes v2.66.0: 26.02 is the last."""
    assert max(one["container"] for one in TABLE["releases"] if "igpu" in one) == "26.02"


def test_the_page_names_every_part() -> None:
    page = (HERE / "docs/formats/triton-releases.md").read_text(encoding="utf-8")
    keys = {key for one in TABLE["releases"] for key in (*one, *one.get("igpu", {}))}
    assert sorted(key for key in keys - {"source", "note", "igpu"} if f"`{key}`" not in page) == []
    assert set(re.findall(r"^\| `(\w+)", page, re.MULTILINE)) >= set(TABLE) - {"format"}
