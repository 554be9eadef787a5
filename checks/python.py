"""Gate `python`: what wheels brought for an interpreter is for the image's interpreter.

Scripts name it in their first line; extension modules carry its tag in their names (PEP 3149:
`x.cpython-311-aarch64-linux-gnu.so`). A module with another tag is never imported, without any message: vLLM 0.20.0 had
deep_gemm/_C for 3.12 only in a wheel for any Python (facts F35). One for the image's Python beside
it makes it harmless.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cache.layer import LayerReader
from checks.registry import WHEEL_STAGES
from checks.verdict import CheckInputs, Finding

_TAGGED = re.compile(r"(?P<stem>.+)\.cpython-(?P<version>\d+)(?P<flags>[a-z]*)(?:-(?P<platform>[\w-]+))?\.so")
_LINE = 256  # bytes of a first line that Linux looks at


def run(inputs: CheckInputs) -> list[Finding]:
    """Findings with the path of the script or module in the image as subject (modules: below the site directory)."""
    facts = inputs.facts
    found = []
    paths: set[str] = set()
    for stage in WHEEL_STAGES:
        if f"{stage}/index" not in inputs.outputs:
            continue
        with LayerReader(inputs.store, inputs.outputs[f"{stage}/index"]) as layer:
            files = [path for path, entry in layer.entries.items() if entry["type"] == "file"]
            paths.update(files)
            for path in files:
                if path.startswith(f"{facts['scripts']}/"):
                    with layer.open(path) as stream:
                        found += script(path, stream.read(_LINE), facts["executable"], facts["python"])
    return found + modules(paths, facts["python"], facts["machine"], facts["site"])


def script(path: str, head: bytes, executable: str, python: str) -> list[Finding]:
    """Judge a script by its first bytes. Pure. What is not Python's business (ELF, sh) is no finding."""
    if not head.startswith(b"#!"):
        return []
    words = head[2:].split(b"\n", 1)[0].decode("utf-8", "replace").split()
    if not words:
        return []
    name = words[0].rpartition("/")[2]
    if name == "env" and len(words) > 1:
        name = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), "").rpartition("/")[2]
        if not name.startswith("python") or name in ("python3", f"python{python}"):
            return []
    elif not name.startswith(("python", "pypy")) or words[0] == executable:
        return []
    return [Finding("error", f"/{path}", f"starts {' '.join(words)}, the image's Python is {executable}", f"/{path}",
                    "a script must come through `scripts` or entry points of its wheel to be rewritten")]


def modules(paths: Iterable[str], python: str, machine: str, site: str) -> list[Finding]:
    """Judge extension modules by their names. Pure."""
    wanted = python.replace(".", "")
    there = set(paths)
    fitting = {match["stem"] for match in map(_TAGGED.fullmatch, there) if match and _fits(match, wanted, machine)}
    found = []
    for path in sorted(there):
        match = _TAGGED.fullmatch(path)
        if match is None or match["stem"] in fitting or _fits(match, wanted, machine):
            continue
        if f"{match['stem']}.abi3.so" in there or f"{match['stem']}.so" in there:
            continue
        found.append(Finding(
            "error", path.removeprefix(f"{site}/"), f"is never imported by CPython {python} on {machine}", f"/{path}",
            "take a wheel for this Python, or waive it if nothing needs the module"))
    return found


def _fits(match: re.Match[str], wanted: str, machine: str) -> bool:
    platform = match["platform"]
    return match["version"] == wanted and not match["flags"] and (
        platform is None or platform == f"{machine}-linux-gnu")
