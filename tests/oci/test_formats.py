"""The schema of our own format here, and the example in its page."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from oci import media
from oci.image import ImageLayer
from oci.push import Pushed

DOCS = Path(__file__).parents[2] / "docs" / "formats"


def record() -> dict[str, Any]:
    layer = ImageLayer("sha256:" + "a" * 64, 12, media.LAYER_ZSTD, "sha256:" + "b" * 64, "x")
    compressor = {"name": "zstd", "level": 3, "library": "libzstd", "version": "1.5.7"}
    return Pushed("registry.example:5000/team/thor:1.0", "sha256:" + "c" * 64, "sha256:" + "d" * 64, compressor,
                  (layer,), {layer.digest: "sent"}).to_json()


def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "push.schema.json").read_text())
    return found


def test_a_record_of_a_push_fits_its_schema() -> None:
    jsonschema.Draft202012Validator(schema()).validate(record())


@pytest.mark.parametrize("change", [{"format": "x"}, {"manifest": "sha256:1"}, {"extra": 1}, {"compressor": {}},
                                    {"reference": "thor"}])
def test_the_schema_refuses_what_is_wrong(change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema()).validate({**record(), **change})


def test_the_page_shows_all_fields_of_a_record() -> None:
    example = re.search(r"^    \{\"format\".*?\}\]\}$", (DOCS / "push.md").read_text(), re.M | re.S)
    assert example is not None
    text = re.sub(r"#.*", "", example[0]).replace("sha256:…", "sha256:" + "0" * 64)
    jsonschema.Draft202012Validator(schema()).validate(json.loads(text))
