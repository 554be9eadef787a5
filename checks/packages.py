"""The `packages` outputs of stages (format `stagecraft.packages.v1`), read."""

from __future__ import annotations

import json
from typing import Any

from checks.verdict import CheckInputs


def packages(inputs: CheckInputs, kind: str = "pypi") -> list[dict[str, Any]]:
    """Every package of that type in the outputs that the check reads, each with its `stage`."""
    found = []
    for name, digest in inputs.outputs.items():
        stage, _, output = name.partition("/")
        if output == "packages":
            listed = json.loads(inputs.store.read(digest))["packages"]
            found += [{**package, "stage": stage} for package in listed if package["type"] == kind]
    return found
