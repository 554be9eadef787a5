"""What each check reads of a target, its lock and the data tables. Pure but for reading the tables of the repository.

On the path of a build that has nothing to do: imports nothing heavy.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache import canonical
from checks import tables

_ROOT = Path(__file__).resolve().parent.parent

Data = Mapping[str, Any]

LIBRARIES = "checks/data/libraries.yaml"
EXTENSIONS = "vllm/extensions.yaml"

#: What the layer of the Triton server calls it among its packages.
SERVER = "triton-inference-server"
#: What may come from source and is no Python package but a piece of the server tree, and the layer that it is.
SERVER_PARTS = {"triton-server": "triton", "python-backend": "python-backend", "vllm-backend": "backend"}

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{site\}|\{arch_list\}")


def torch_cuda(target: Data, lock: Data) -> dict[str, Any]:
    cuda = str(target["device"].get("cuda", "none"))
    return {"cuda": "" if cuda == "none" else cuda, "site": lock["python"]["site"], "machine": machine(target),
            "python": lock["python"]["version"]}


def wheel_set(target: Data, lock: Data) -> dict[str, Any]:
    wanted, table = target.get("wheels", {}).get("requirements", []), _table("checks/data/wheel-sets.yaml")
    return {
        "machine": machine(target), "python": lock["python"]["version"], "site": lock["python"]["site"],
        "requirements": sorted(item if isinstance(item, str) else item["requirement"] for item in wanted),
        "cuda": str(target["device"].get("cuda", "none")).partition(".")[0].replace("none", ""),
        **({"excluded": sorted(entry["wheel"] for entry in left_out)}
           if (left_out := target.get("wheels", {}).get("excluded", ())) else {}),
        "pairs": [_without_source(row) for row in table["pairs"]],
        "same_version": [_without_source(row) for row in table["same_version"]], "leaks": table["leaks"],
    }


def python(target: Data, lock: Data) -> dict[str, Any]:
    found = lock["python"]
    return {"python": found["version"], "executable": found["executable"], "site": found["site"],
            "scripts": found["scripts"], "machine": machine(target)}


def extensions(target: Data, lock: Data) -> dict[str, Any]:
    """Only the rows for this version and device: a row added for another one leaves the verdict alone."""
    capability = str(target["device"].get("compute_capability", ""))
    package, version = distribution(target), _vllm(target, lock)
    rows = _releases(EXTENSIONS, version, package)
    return {
        "machine": machine(target), "site": lock["python"]["site"], "python": lock["python"]["version"],
        "package": package, "version": version, "known": rows is not None,
        "rows": [{"file": row["file"], "why": row["why"], "operator": row.get("operator", "")}
                 for row in (rows or {}).get("extensions", ())
                 if capability in row.get("capabilities", [capability])],
    }


def device_code(target: Data, lock: Data) -> dict[str, Any]:
    """`rows`: extensions that must have code for the device; `others`: those that need not, with why."""
    found, version = device(target), _vllm(target, lock)
    capability, release_ = found["capability"], _releases(EXTENSIONS, version, distribution(target))
    rows, others = [], list((release_ or {}).get("others", ()))
    for row in (release_ or {}).get("extensions", ()):
        if capability in row.get("unserved", ()):
            others.append({"file": row["file"], "why": row["unserved_why"]})
        elif capability not in row.get("capabilities", [capability]):
            others.append({"file": row["file"], "why": f"{row['why']}: not for this device"})
        else:
            rows.append({"file": row["file"], "host": row.get("host", False), "native": row.get("native", False)})
    baseline = baseline_of(version)
    return {
        **found, "site": lock["python"]["site"], "version": version, "known": release_ is not None, "rows": rows,
        "others": [{"file": row["file"], "why": row["why"]} for row in others],
        "policy": target.get("device_code", {}).get("policy", "loadable"),
        "without_code": _digest(baseline) if baseline.exists() else "",
    }


def contents(target: Data, lock: Data) -> dict[str, Any]:
    return {"site": lock["python"]["site"], "arch_list": str(target["device"].get("arch_list", ""))}


def baseline_of(version: str) -> Path:
    """The table of kernels that a vLLM has no code of for a device (checks/baseline.py), if there is one."""
    return _ROOT / "vllm" / "kernels-without-code" / f"{version.partition('+')[0]}.yaml"


def ptx_floor(target: Data, lock: Data) -> dict[str, Any]:
    table = _table("checks/data/ptx-isa.yaml")["versions"]
    return {
        **device(target), "cuda": str(target["device"].get("cuda", "none")),
        "floor": str(target["device"].get("driver_floor", "none")), "site": lock["python"]["site"],
        "rows": [row["file"] for row in device_code(target, lock)["rows"]],
        "drivers": [{"isa": row["isa"], "cuda": row["cuda"], "driver": row.get("driver", "")} for row in table],
    }


def ptxas(target: Data, lock: Data) -> dict[str, Any]:
    """`arch` as Triton names the device's, empty without a GPU; `tools`: what each Triton of the lock does there."""
    capability = str(target["device"].get("compute_capability", "none"))
    number = 0 if capability == "none" else int(capability.replace(".", ""))
    tools, base = [], lock["base"]
    for row in _table("checks/data/ptxas.yaml")["packages"]:
        version = next((str(one["version"]) for one in (*lock["wheels"], *lock.get("sources", ()))
                        if one["name"] == row["package"]), "")
        found = next((one for one in row["releases"] if release(one["since"]) <= release(version)
                      < release(one["before"])), None)
        if version:
            picks = found["picks"] if found else []
            pick: Data = next((one for one in picks if one["from"] <= number), {})
            tools.append({"package": row["package"], "version": version, "directory": row["directory"],
                          "binary": pick.get("binary", ""), "variable": pick.get("variable", ""),
                          "ignored": [one["variable"] for one in picks if one is not pick]})
    names = {name for tool in tools for name in (tool["variable"], *tool["ignored"])}
    return {
        "arch": f"sm_{number}{'a' if number >= 90 else ''}" if number else "", "tools": tools,
        "cuda": str(target["device"].get("cuda", "none")), "site": lock["python"]["site"], "machine": machine(target),
        "environment": {name: value for name, value in environment(target, lock).items() if name in names},
        "base": [layer["digest"] for layer in base["layers"]] if base["kind"] == "image" else [],
    }


def flashinfer(target: Data, lock: Data) -> dict[str, Any]:
    """`packages`: flashinfer's parts by name; `headers`, `directories`, `libraries`: what this release needs."""
    packages = {str(one["name"]): str(one["version"]) for one in (*lock["wheels"], *lock.get("sources", ()))
                if str(one["name"]).startswith("flashinfer-")}
    table, version = _table("checks/data/flashinfer.yaml"), packages.get("flashinfer-python", "")
    row: Data = next((one for one in table["releases"] if release(one["since"]) <= release(version)
                      < release(one["before"])), {})
    names = {"CUDA_HOME", "CUDA_PATH", "PATH", "CC", "CXX", "LIBRARY_PATH", "FLASHINFER_NVCC", "FLASHINFER_DISABLE_JIT",
             "FLASHINFER_CUDA_ARCH_LIST"}
    base = lock["base"]
    return device(target) | {
        "packages": packages, "known": bool(row), "compiler": table["compiler"],
        **{key: row.get(key, []) for key in ("headers", "directories", "libraries")},
        "cuda": str(target["device"].get("cuda", "none")), "arch_list": str(target["device"].get("arch_list", "")),
        "site": lock["python"]["site"], "machine": machine(target),
        "environment": {name: value for name, value in environment(target, lock).items() if name in names},
        "base": [layer["digest"] for layer in base["layers"]] if base["kind"] == "image" else [],
    }


def bytecode(target: Data, lock: Data) -> dict[str, Any]:
    """`magic`: what files of this Python's bytecode begin with, 0 if nobody has looked at that Python."""
    version, base = lock["python"]["version"], lock["base"]
    return {"python": version, "magic": bytecode_pythons().get(version, 0), "site": lock["python"]["site"],
            "base": [layer["digest"] for layer in base["layers"]] if base["kind"] == "image" else []}


def bytecode_pythons() -> dict[str, int]:
    """What files of bytecode begin with, by the Python (`3.11`): of those that somebody has looked at."""
    return {row["python"]: row["magic"] for row in _table("checks/data/bytecode.yaml")["pythons"]}


def triton_stub(target: Data, lock: Data) -> dict[str, Any]:
    """`server`: the release that the stub is of; its table says which numpy it was made for."""
    part = next((one for one in lock.get("sources", ()) if one["name"] == "python-backend"), None)
    found = {"machine": machine(target), "python": lock["python"]["version"]}
    if part:
        rows = _table("triton/releases.yaml")["releases"]
        pybind = next((row.get("pybind11", "") for row in rows if row["container"] == part["version"]), "")
        # 2.12 is the first pybind11 that knows numpy 2.
        return {**found, "part": part["name"], "server": part["version"], "known": bool(pybind),
                "numpy": "" if release(pybind) >= (2, 12) else "<2"}
    described = target.get("triton", {})
    if described.get("from", "pytriton") != "pytriton":
        from checks.triton_releases import row_of

        known = row_of(str(described["version"])) or row_of(str(described.get("image", ""))) or {}
        pybind = known.get("pybind11", "")
        return {**found, "part": "tritonserver", "server": str(described["version"]), "known": bool(pybind),
                "numpy": "" if release(pybind) >= (2, 12) else "<2"}
    version = next((file["version"] for file in lock["files"] if file["name"] == "nvidia-pytriton"), "")
    row = _releases("triton/pytriton-layout.yaml", version)
    return {**found, "server": version, "known": row is not None, "numpy": (row or {}).get("numpy", "")}


def closure(target: Data, lock: Data) -> dict[str, Any]:
    table, device = _table(LIBRARIES), target["device"]
    return _libraries(target, lock) | {
        "dlopen": [{key: row[key] for key in ("name", "package", "error", "cure")} for row in table["dlopen"]],
        "glibc": str(lock["python"].get("glibc", "")), "host_glibc": str(device.get("host", {}).get("glibc", "")),
    }


def abi(target: Data, lock: Data) -> dict[str, Any]:
    torch = next((wheel["version"] for wheel in lock["wheels"] if wheel["name"] == "torch"), "")
    table = _ROOT / f"checks/data/torch-exports.{machine(target)}.xz"
    return _libraries(target, lock) | {"torch": torch, "known": _digest(table) if table.exists() else ""}


def cuda_set(target: Data, lock: Data) -> dict[str, Any]:
    table = _table(LIBRARIES)
    cuda = str(target["device"].get("cuda", "none"))
    return _libraries(target, lock) | {
        "cudnn": {key: table["cudnn"][key] for key in ("error", "parts")}, "toolkit": table["toolkit"],
        "cuda": "" if cuda == "none" else cuda,
    }


def load(target: Data, lock: Data) -> dict[str, Any]:
    python, base = lock["python"], lock["base"]
    return {
        "machine": machine(target), "site": python["site"], "executable": python["executable"],
        "environment": environment(target, lock),
        "base": [layer["digest"] for layer in base["layers"]] if base["kind"] == "image" else [],
        "rows": [{"module": row["file"].partition(".")[0].replace("/", "."), "file": row["file"],
                  **({"operator": row["operator"]} if row["operator"] else {})}
                 for row in extensions(target, lock)["rows"]],
        "wheels": [*sorted(_distributions(lock) & {"torch", "torchvision"}),
                   *(["vllm"] if _vllm(target, lock) else [])],
        "stubs": [{"name": row["name"], "symbols": row["symbols"], "value": row["value"]}
                  for row in _table(LIBRARIES)["driver"] if "value" in row],
        "emulator": [{key: deb[key] for key in ("name", "version", "architecture", "sha256")}
                     for deb in lock.get("emulator", {}).get("debs", ())],
    }


def backend_imports(target: Data, lock: Data) -> dict[str, Any]:
    return {"site": lock["python"]["site"], "version": _vllm(target, lock)}


def advisories(target: Data, lock: Data) -> dict[str, Any]:
    """The rows for packages of the lock, for the server that its wheel carries, and for the device's memory."""
    table = _table("checks/data/advisories.yaml")
    there = _distributions(lock)
    rows = [row for row in table["advisories"] if row["part"] in there]
    rows += [row for row in table["faults"] if row["part"] in there and row["memory"] == target["device"].get("memory")]
    if "triton" in target:
        rows += [row for row in table["advisories"] if row["part"] == SERVER]
        version = next((file["version"] for file in lock["files"] if file["name"] == "nvidia-pytriton"), "")
        prebuilt = _releases("triton/pytriton-layout.yaml", version) or {}
        if prebuilt.get("advisories"):
            rows.append({"part": SERVER, "by": "container", "id": f"before {prebuilt['fixed']}", "severity": "critical",
                         "what": "remote holes", "aliases": prebuilt["advisories"], "fixed": prebuilt["fixed"]})
    return {"rows": [_without_source(row) for row in rows]}


def image(target: Data, lock: Data) -> dict[str, Any]:
    """What the finished image is held against; of the target's data also its collisions."""
    device, python = target["device"], lock["python"]
    cuda, floor = (str(device.get(key, "none")) for key in ("cuda", "driver_floor"))
    secrets = _table("checks/data/secrets.yaml")
    # Not the target's name: a lock may have been copied from a target that asks for the same.
    labels = {"io.stagecraft.lock": canonical.digest_of("pins", pins(lock)),
              "io.stagecraft.device": device.get("name", "none"), "io.stagecraft.cuda": cuda,
              "io.stagecraft.arch-list": str(device.get("arch_list", "none")), "io.stagecraft.driver-floor": floor,
              "io.stagecraft.python": python["version"]}
    return {
        "site": python["site"], "python": python["version"], "executable": python["executable"],
        "vllm": distribution(target),
        "cuda": "" if cuda == "none" else cuda, "driver": "" if floor == "none" else floor,
        "arch_list": str(device.get("arch_list", "")),
        "labels": {name: text for name, text in labels.items() if text != "none"},
        # What is compiled here has no hash before: its inputs have.
        "wheels": {wheel["file"].rpartition("/")[2]: wheel["sha256"] for wheel in lock["wheels"]}
        | {wheel_file(package["name"], package["version"], python["version"], machine(target)): ""
           for package in compiled(lock)},
        "collisions": [entry["path"] for entry in target["wheels"].get("collisions", ())],
        "secrets": {"names": [_without_source(row) for row in secrets["names"]], "read": secrets["read"],
                    "shapes": [_without_source(row) for row in secrets["shapes"]],
                    "files": [_without_source(row) for row in secrets["files"]]},
        "variables": [_without_source(row) for row in _table("checks/data/environment.yaml")["variables"]],
    }


def cpu_isa(target: Data, lock: Data) -> dict[str, Any]:
    """What the target's CPU has, and which files run without asking it; of both what concerns its machine."""
    table, wanted = _table("checks/data/cpu.yaml"), machine(target)
    described = target.get("cpu", {})
    levels: dict[str, list[str]] = {}
    for row in table["levels"]:
        levels[row["name"]] = sorted({*levels.get(row.get("above", ""), ()), *row["features"]})
    implies: dict[str, list[str]] = {}
    for row in table["extensions"]:
        implies[row["name"]] = sorted({row["name"]}.union(
            *(levels.get(name) or implies.get(name, [name]) for name in row["implies"])))
    baseline = described.get("baseline", table["default"].get(wanted, ""))
    features = set(levels.get(baseline, ())).union(
        *(implies.get(name, [name]) for name in described.get("features", ())))
    of_machine = {row["name"] for row in table["levels"] if row["machine"] == wanted}
    return {
        "machine": wanted, "site": lock["python"]["site"], "features": sorted(features),
        "baseline": " with ".join([baseline, *described.get("features", ())]),
        "levels": {name: found for name, found in levels.items() if name in of_machine}, "implies": implies,
        "modules": [_without_source(row) for row in table["modules"]], "tested": table["tested"],
    }


def pins(lock: Data) -> dict[str, Any]:
    """What of a lock is in an image: not when, from which suites and through which indexes it was resolved."""
    base = {key: value for key, value in lock["base"].items() if key in ("kind", "digest")}
    return {"base": base, "python": lock["python"]} | {
        section: [_without_index(entry) for entry in lock[section]] for section in ("debs", "wheels", "files")} | (
        {"server": _server_pins(lock["server"])} if lock.get("server") else {}) | (
        {"sources": [_source_pins(package) for package in lock["sources"]]} if lock.get("sources") else {})


def _without_index(entry: Data) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "index"}


def _server_pins(server: Data) -> dict[str, Any]:
    """A server out of an archive or an image: what it is, not where it was found."""
    return {key: server[key] for key in (("kind", "digest") if server["kind"] == "image" else
                                         ("kind", "name", "version", "file", "size", "sha256"))}


def _source_pins(package: Data) -> dict[str, Any]:
    """What was compiled, and with what; whose server gave it is no part of that."""
    kept = ("kind", "revision", "tree") if package["source"]["kind"] == "git" else ("kind", "file", "size", "sha256")
    source = {key: package["source"][key] for key in kept}
    return {"name": package["name"], "version": package["version"], "source": source,
            "trees": [{key: tree[key] for key in ("name", "revision", "tree")} for tree in package["trees"]],
            "stubs": sorted(package["stubs"]),
            **({"archives": [_without_index(file) for file in package["archives"]]} if "archives" in package else {}),
            "tools": {key: [_without_index(file) for file in package["tools"][key]]
                      for key in ("debs", "toolkit", "requires", "development") if key in package["tools"]}}


def _libraries(target: Data, lock: Data) -> dict[str, Any]:
    """What all checks of shared libraries read (checks/libraries.py)."""
    table, python = _table(LIBRARIES), lock["python"]
    site = python["site"]
    optional = [{key: str(row.get(key, "")).replace("{site}", site) for key in ("files", "any", "feature", "why")}
                for row in table["optional"]]
    driver = [{"name": row["name"], "symbols": row["symbols"]} for row in table["driver"]]
    driver += [{"name": name, "symbols": ""} for name in target["device"].get("driver_libraries", ())]
    base = lock["base"]
    return {
        "machine": machine(target), "site": site, "executable": python["executable"],
        "library_path": environment(target, lock).get("LD_LIBRARY_PATH", ""),
        "base": [layer["digest"] for layer in base["layers"]] if base["kind"] == "image" else [],
        "required": [row["file"] for row in extensions(target, lock)["rows"]], "driver": driver, "optional": optional,
    }


def environment(target: Data, lock: Data) -> dict[str, str]:
    """The environment of the image: its base's, then the target's, placeholders filled in as the stage `image` does."""
    values = {"{site}": "/" + lock["python"]["site"], "{arch_list}": str(target["device"].get("arch_list", "")),
              "{{": "{", "}}": "}"}
    below = lock["base"]["config"]["environment"] if lock["base"]["kind"] == "image" else {}
    return {**below, **{name: _PLACEHOLDER.sub(lambda found: values[found[0]], text)
                        for name, text in target["image"]["environment"].items()}}


def distribution(target: Data) -> str:
    """The distribution that holds the package vllm of a target: `vllm`, or another that the target names."""
    return str(target.get("vllm", {}).get("package", "vllm"))


def _vllm(target: Data, lock: Data) -> str:
    """The version of the locked vLLM; empty without one."""
    name = distribution(target)
    return next((str(one["version"]) for one in (*lock["wheels"], *lock.get("sources", ()))
                 if one["name"] == name), "")


def _distributions(lock: Data) -> set[str]:
    """Names of what the image's Python has, wheels of an index and what is compiled."""
    return {str(one["name"]) for one in (*lock["wheels"], *compiled(lock))}


def compiled(lock: Data) -> list[Data]:
    """The Python packages of a lock that are compiled."""
    return [one for one in lock.get("sources", ()) if one["name"] not in SERVER_PARTS]


def wheel_tag(python: str, machine: str) -> str:
    """The tag of a wheel that was compiled for one image: its Python ("3.11"), its machine, its C library."""
    tag = "cp" + python.replace(".", "")
    return f"{tag}-{tag}-linux_{machine}"


def wheel_file(name: str, version: str, python: str, machine: str) -> str:
    """The file name of such a wheel (PEP 427)."""
    escaped = re.sub(r"[-_.]+", "_", name).lower()
    return f"{escaped}-{version.replace('-', '_')}-{wheel_tag(python, machine)}.whl"


def _without_source(row: Data) -> dict[str, Any]:
    """A row as far as it is judged by: where a fact is from changes no verdict."""
    return {key: value for key, value in row.items() if key != "source"}


def ptx_isa(cuda: str) -> str:
    """The newest PTX ISA ("9.0") that the driver of a CUDA ("13.0") compiles; empty if that is not known."""
    return next((str(row["isa"]) for row in _table("checks/data/ptx-isa.yaml")["versions"] if row["cuda"] == cuda), "")


def driver_of(cuda: str) -> str:
    """The first driver ("580.65.06") that knows a CUDA; empty if that is not known. L4T numbers its own otherwise."""
    return next((str(row.get("driver", "")) for row in _table("checks/data/ptx-isa.yaml")["versions"]
                 if row["cuda"] == cuda), "")


def platform_of(system: str) -> dict[str, Any]:
    """What an L4T brings, by its number in a text ("L4T r38.2 (Ubuntu)", "38.2.1"); empty if that is not known."""
    number = re.match(r"(?:L4T )?[rR]?(\d+(?:\.\d+)*)", system)
    parts = number[1].split(".") if number else []
    known = {row["l4t"]: row for row in _table("checks/data/platforms.yaml")["platforms"]}
    return next((dict(known[".".join(parts[:count])]) for count in range(len(parts), 0, -1)
                 if ".".join(parts[:count]) in known), {})


def compiled_by(cuda: str) -> list[str]:
    """The architectures ("11.0") that nvcc of a CUDA compiles for; nothing if that is not known."""
    return next((list(row["archs"]) for row in _table("checks/data/arch.yaml")["compilers"] if row["cuda"] == cuda), [])


def device(target: Data) -> dict[str, Any]:
    """What `checks.loadability.Device` is made of; `capability` is empty without a GPU, `isa` if it is not known."""
    described, table = target["device"], _table("checks/data/arch.yaml")
    capability, cuda = (str(described.get(key, "none")) for key in ("compute_capability", "cuda"))
    return {
        "capability": "" if capability == "none" else capability, "isa": ptx_isa(cuda),
        "tegra": [row["capability"] for row in table["tegra"]],
        "families": [row["members"] for row in table["families"]],
    }


def machine(target: Data) -> str:
    """The machine of an OCI platform as `uname -m` says it."""
    architecture = target["platform"].partition("/")[2]
    return str({"arm64": "aarch64", "amd64": "x86_64"}.get(architecture, architecture))


@functools.cache
def _digest(path: Path) -> str:
    return canonical.sha256(path.read_bytes())


def _releases(table: str, version: str, package: str = "") -> dict[str, Any] | None:
    """The entry of a table's `releases` that `version` falls into: `since` <= version < `before`.

    Args:
        package: where a table has rows of several; a row that names none is of `vllm`.
    """
    for row in _table(table)["releases"]:
        if package and row.get("package", "vllm") != package:
            continue
        if version and release(row["since"]) <= release(version) < release(row["before"]):
            return dict(row)
    return None


def release(version: str) -> tuple[int, ...]:
    """The numbers at the start of a version, without trailing zeros: `0.32.0+cu130` is (0, 32).

    A pre-release counts as its release: it has the same files.
    """
    numbers = re.match(r"v?(\d+(?:\.\d+)*)", version)
    found = [int(part) for part in numbers[1].split(".")] if numbers else []
    while found and not found[-1]:
        found.pop()
    return tuple(found)


@functools.cache
def _table(name: str) -> dict[str, Any]:
    return tables.read(_ROOT / name)
