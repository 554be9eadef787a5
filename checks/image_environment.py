"""The environment of an image, judged against its files: what hides faults, shadows modules, asks for a newer driver.

Pure. Variables by name are data (`checks/data/environment.yaml`); PYTHONPATH, LD_PRELOAD and NVIDIA_REQUIRE_* are
judged by what they name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from checks.verdict import Finding

#: A word of NVIDIA_REQUIRE_*: `cuda>=13.0`, `driver<581`, `brand=tesla`.
_CONSTRAINT = re.compile(r"(?P<what>\w+)\s*(?P<operator>>=|<=|!=|=|>|<)\s*(?P<value>[\w.-]+)")


def variables(environment: Mapping[str, str], rows: Iterable[Mapping[str, str]]) -> list[Finding]:
    """Variables that the table knows. Subject: `environment: <name>`."""
    return [Finding(row["severity"], f"environment: {name}", f"{name}={value}: {row['why']}", f"the variable {name}",
                    row["cure"])
            for name, value in environment.items() for row in rows
            if re.fullmatch(row["name"], name) and re.fullmatch(row["match"], value)]


def shadows(environment: Mapping[str, str], paths: Collection[str], site: str) -> list[Finding]:
    """Modules in a directory of PYTHONPATH that hide those of the site directory. Subject: `PYTHONPATH: <module>`.

    Args:
        paths: of all files of the image, without a leading `/`.
    """
    places = [place.strip("/") for place in environment.get("PYTHONPATH", "").split(":") if place.strip("/")]
    places = [place for place in places if place != site]
    if not places:
        return []
    installed = _modules(paths, site)
    found = []
    for place in places:
        for module in sorted(_modules(paths, place) & installed):
            found.append(Finding(
                "error", f"PYTHONPATH: {module}", f"{module} of /{place} hides the one of the wheels", f"/{place}",
                "take the directory out of PYTHONPATH, or the module out of the directory"))
    return found


def _modules(paths: Iterable[str], place: str) -> set[str]:
    """Names that `import` finds in a directory. What no import means (metadata, libraries) is none."""
    start = f"{place}/"
    found = set()
    for path in paths:
        if path.startswith(start):
            top, _, rest = path[len(start):].partition("/")
            if "." not in top if rest else top.endswith((".py", ".so", ".pyc")):
                found.add(top.partition(".")[0])
    return found - {"", "__pycache__"}


def preloads(environment: Mapping[str, str], paths: Collection[str]) -> list[Finding]:
    """Libraries of LD_PRELOAD that the image does not have. Subject: `LD_PRELOAD: <library>`.

    The loader says "object … from LD_PRELOAD cannot be preloaded: ignored" at the start of every program, and goes on.
    """
    names = {path.rpartition("/")[2] for path in paths}
    there = set(paths)
    return [Finding("error", f"LD_PRELOAD: {library}", f"ERROR: ld.so: object '{library}' from LD_PRELOAD cannot be "
                    "preloaded: ignored", "the variable LD_PRELOAD", "put the library in, or take the variable out")
            for library in re.split(r"[\s:]+", environment.get("LD_PRELOAD", ""))
            if library and (library.lstrip("/") not in there if "/" in library else library not in names)]


def requirements(environment: Mapping[str, str], cuda: str, driver: str) -> list[Finding]:
    """What NVIDIA_REQUIRE_CUDA and the like ask of the device. Subject: `<variable>`.

    Words that a comma joins hold together, words apart are alternatives (NVIDIA container toolkit). One about anything
    but CUDA and the driver (brand, arch) is taken as not met: those that NVIDIA writes are for data centre boards.

    Args:
        cuda, driver: of the device: "13.0", "580".
    """
    has = {"cuda": cuda, "driver": driver}
    found = []
    for name, text in sorted(environment.items()):
        if not name.startswith("NVIDIA_REQUIRE_") or not text.strip():
            continue
        alternatives = text.split()
        if any(all(_holds(word, has) for word in alternative.split(",")) for alternative in alternatives):
            continue
        found.append(Finding(
            "error", name, f"this image asks for a newer driver than the device has (CUDA {cuda}, driver {driver}); on "
            f"the device: nvidia-container-cli: requirement error: unsatisfied condition: {alternatives[0]}",
            f"the variable {name}", "take a base image of the device's CUDA"))
    return found


def architectures(environment: Mapping[str, str], wanted: str) -> list[Finding]:
    """Lists of architectures that leave out the device. Subject: `environment: <variable>`.

    What is compiled on the device is compiled for them: a list of 12.0 on a 12.1 loses NVFP4 without a word (facts
    2.3), flashinfer stops where its list has nothing for the device (facts F11).

    Args:
        wanted: `device.arch_list`, "11.0a".
    """
    needed = {arch.rstrip("af") for arch in wanted.split()}
    found = []
    for name in ("TORCH_CUDA_ARCH_LIST", "FLASHINFER_CUDA_ARCH_LIST"):
        words = re.split(r"[\s;,]+", environment.get(name, "").strip())
        lacking = sorted(needed - {word.removesuffix("+PTX").rstrip("af") for word in words})
        if words != [""] and lacking:
            found.append(Finding(
                "error", f"environment: {name}", f"{name}={environment[name]} leaves out {', '.join(lacking)}; on the "
                "device: No supported CUDA architectures found, or kernels for another device", f"the variable {name}",
                f'{name}: "{{arch_list}}" in the target'))
    return found


def _holds(word: str, has: Mapping[str, str]) -> bool:
    match = _CONSTRAINT.fullmatch(word)
    known = has.get(match["what"], "") if match else ""
    if match is None or not known:
        return False
    width = max(known.count("."), match["value"].count(".")) + 1
    try:
        left, right = ([*(int(part) for part in text.split(".")), *[0] * width][:width]
                       for text in (known, match["value"]))
    except ValueError:
        return False
    return {">=": left >= right, "<=": left <= right, "=": left == right, "!=": left != right, ">": left > right,
            "<": left < right}[match["operator"]]
