"""Rule of `wheel-set` for Python code that `protoc` generated: it asks the protobuf that runs it for its version.

Generated modules call `ValidateProtobufRuntimeVersion` with the version of their generator, and it raises when the
runtime is older (google/protobuf/runtime_version.py of protobuf 7.36.2). Modules without that call say nothing. A
runtime that is much newer is outside protobuf's guarantee and refused by none of its code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from checks.verdict import Finding

#: Name that the compiler gives to its modules.
SUFFIX = "_pb2.py"

_CALL = re.compile(rb"ValidateProtobufRuntimeVersion\(\s*[\w.]+,\s*(\d+),\s*(\d+),\s*(\d+)\s*,")

Release = tuple[int, int, int]


def generator(source: bytes) -> Release | None:
    """The version of the generator that a module names, or None."""
    found = _CALL.search(source)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def generated(modules: Mapping[str, Release], runtime: str, site: str) -> list[Finding]:
    """Modules (path to generator) that the protobuf of the set refuses. Pure. Subject: `<module>: protobuf`.

    Args:
        runtime: version of the package `protobuf`.
    """
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", runtime)
    if numbers is None:
        return []
    has = (int(numbers[1]), int(numbers[2]), int(numbers[3] or 0))
    found = []
    for path, made in sorted(modules.items()):
        if made <= has:
            continue
        least = ".".join(map(str, made))
        versions = f"gencode {least} runtime {'.'.join(map(str, has))}"
        found.append(Finding(
            "error", f"{path.removeprefix(f'{site}/')}: protobuf", "cannot be imported; on the device: "
            f"google.protobuf.runtime_version.VersionError: Detected incompatible Protobuf Gencode/Runtime versions "
            f"({versions})", f"/{path}", f"take protobuf {least} or newer"))
    return found
