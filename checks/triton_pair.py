"""Gate `triton-pair`: this Triton server goes with the image's Python, the device's CUDA, and its backend with vLLM.

Data: `triton/releases.yaml`. Preflight judges the same by the lock alone, and proposes what would fit (`nearest`). What
of a server can be read off its files (the stub's libpython, numpy, its libraries) is judged by `triton-stub` and
`closure`; this gate tells before the download what would fail, and what cannot be read there: names that a backend
imports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from checks.facts import SERVER, release
from checks.packages import packages
from checks.triton_releases import TABLE
from checks.verdict import CheckInputs, Finding

Data = Mapping[str, Any]


def run(inputs: CheckInputs) -> list[Finding]:
    """Findings with subjects `server`, `server: python` (or `cuda`, `igpu`, `glibc`), `backend: vllm`."""
    found = list(judge(inputs.facts))
    wanted = inputs.facts["server"]["triton"]
    for package in packages(inputs, "generic"):
        if package["name"] == SERVER and wanted and package["version"] != wanted:
            found.append(Finding("error", "server", f"the layer holds Triton {package['version']}, its release is "
                                 f"{wanted}", TABLE, "correct that table, or the layer's source"))
    return found


def judge(facts: Data) -> Iterator[Finding]:
    """Judge what `triton_releases.pair` gives. Pure."""
    server = facts["server"]
    if not server["known"]:
        yield Finding("error", "server", f"Triton {server['asked']} ({server['from']}) is not known: whether it goes "
                      "with this Python, CUDA and vLLM cannot be told", TABLE,
                      "add a row with its source to that table, or take a release that is there")
        return
    name = _named(server)
    if server["pythons"] and facts["python"] not in server["pythons"]:
        yield Finding("error", "server: python", f"the stub of {name} runs Python {', '.join(server['pythons'])}, the "
                      f"image and its wheels have {facts['python']}: no Python model would start", TABLE,
                      "take a server for this Python, or triton.python_backend: source")
    yield from _cuda(server, facts, name)
    if server["glibc"] and facts["glibc"] and release(server["glibc"]) > release(facts["glibc"]):
        yield Finding("error", "server: glibc", f"{name} asks for GLIBC_{server['glibc']}, the base has "
                      f"{facts['glibc']}: \"version `GLIBC_{server['glibc']}' not found\"", TABLE,
                      "take a server that was built for this base, or a newer base")
    yield from _backend(facts["backend"])


def _cuda(server: Data, facts: Data, name: str) -> Iterator[Finding]:
    if not (server["cuda"] and facts["cuda"]):
        return
    theirs, ours = _two(server["cuda"]), _two(facts["cuda"])
    if theirs[: len(server["cuda"].split("."))] > ours[: len(server["cuda"].split("."))]:
        needs = f" and wants driver {server['driver']}" if server["driver"] else ""
        yield Finding("error", "server: cuda", f"{name} was made for CUDA {server['cuda']}{needs}; the device's driver "
                      f"({facts['floor']}) runs CUDA {facts['cuda']}", TABLE,
                      f"take a server for CUDA {facts['cuda']} or older")
    elif server["igpu"] and theirs[0] != ours[0]:
        yield Finding("error", "server: igpu", f"{name} for Jetson is made for JetPack 6 and CUDA {server['cuda']}; a "
                      f"device with CUDA {facts['cuda']} does not run it (server issue 8412)", TABLE,
                      "take the ordinary server for arm64 (SBSA), 25.08 or newer")


def _backend(backend: Data) -> Iterator[Finding]:
    verdict = backend["verdict"]
    if verdict in ("", "fits"):
        return
    name, vllm = f"vllm_backend r{backend['container'] or backend['asked']}", f"vLLM {backend['vllm']}"
    if verdict == "breaks":
        also = f"; it needs {_list(backend['lacking'])}" if backend["lacking"] else ""
        yield Finding("error", "backend: vllm", f"{name} does not go with {vllm}: it imports {backend['what']}, which "
                      f"is not there{also}", TABLE, "take another backend (triton.backend: stagecraft) or another vLLM")
    elif verdict == "patched":
        yield Finding("info", "backend: vllm", f"{name} goes with {vllm} by {_list(backend['patches'])}", TABLE)
    else:
        yield Finding("warning", "backend: vllm", f"nobody has looked whether {name} goes with {vllm}", TABLE,
                      "look which names it imports, and add a row with its source to that table")


def nearest(facts: Data, releases: Iterable[Data]) -> str:
    """The container whose server goes with this Python and CUDA and is nearest to the one asked for; of two the newer.

    Releases for Jetson are not proposed; empty if there is none.
    """
    server = facts["server"]
    at = _months(server["container"]) if server["container"] else 0
    fitting = [row["container"] for row in releases if _fits(facts, row) and row["container"] != server["container"]]
    return min(fitting, key=lambda one: (abs(_months(one) - at), -_months(one)), default="")


def _fits(facts: Data, row: Data) -> bool:
    if "python" not in row or "cuda" not in row:
        return False
    python = ".".join(row["python"].split(".")[:2])
    stub = not facts["server"]["pythons"] or python == facts["python"]  # a backend from source is for any
    return stub and runs(row["cuda"], facts)


def runs(cuda: str, facts: Data) -> bool:
    """True if the device's driver runs programs of that CUDA, or there is no device."""
    return not facts["cuda"] or _two(cuda) <= _two(facts["cuda"])


def _two(version: str) -> tuple[int, int]:
    """Major and minor: `13` and `13.0.2` are (13, 0)."""
    found = [*map(int, version.split(".")[:2]), 0]
    return found[0], found[1]


def _months(container: str) -> int:
    year, month = container.split(".")
    return int(year) * 12 + int(month)


def _named(server: Data) -> str:
    if server["from"] == "pytriton":
        return f"nvidia-pytriton {server['asked']} (Triton {server['container']})"
    return f"Triton {server['container']}{'-igpu' if server['igpu'] else ''}"


def _list(names: Iterable[str]) -> str:
    listed = list(names)
    return f"the patch{'es' if len(listed) > 1 else ''} {', '.join(listed)}"
