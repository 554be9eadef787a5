"""Targets: what is wanted for one device. `targets/<name>.yaml`, format `stagecraft.target.v1`.

Holds the schema (documented in docs/formats/target.md), reading with `extends`, and the facts that follow from a
target alone. It reads nothing but the target files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import InputError
from checks.facts import SERVER_PARTS
from stages.schema import Boolean, Document, Fields, Integer, ListOf, MapOf, Text, merge, nearest, read

if TYPE_CHECKING:
    from stages.recipe import Recipe

FORMAT = "stagecraft.target.v1"

_VERSION = Text(r"\d[\w.+!-]*", "a version like 2.13.0")
_MINOR = Text(r"\d+\.\d+", "two numbers like 3.11")
_NAME = Text(r"[a-z0-9][a-z0-9.+-]*", "a lower-case name")
_REASON = Text(r"\S.{9,}", "a reason of at least ten characters")
_DAY = Text(r"\d{4}-\d{2}-\d{2}", "a day like 2027-01-31")
_REQUIREMENT = Text(r"[A-Za-z0-9][\w.-]*(\[[\w,.-]+\])?\s*((==|>=|<=|<|>|~=|!=).+)?",
                    "a requirement like numpy==1.26.4")

_DEBIAN = Fields(
    {
        "distribution": _NAME, "suite": _NAME, "components": ListOf(_NAME), "archive": _NAME,
        "security": Boolean(), "updates": Boolean(),
        "snapshot": Text(r"\d{8}T\d{6}Z", "a snapshot date like 20261120T000000Z"),
    },
    required=("suite",),
    defaults={"distribution": "debian", "components": ["main"], "archive": "debian", "security": False,
              "updates": False},
)

_PLATFORM = Text(choices=("linux/arm64", "linux/amd64"))
#: Without a password: it would be in the lock, and in what an image says of where it comes from.
_REPOSITORY = Text(r"(https?|git|ssh|file)://(?![^/\s]*:[^/\s]*@)\S+|[\w.-]+@[\w.-]+:\S+",
                   "the address of a Git repository, without a password")
_TAG = Text(r"(?!-)[\w./+-]+", "a tag, a branch or a revision of 40 digits")
_FILE = Text(r"(?!/)(?!(.*/)?\.\.?(/|$))[\w./+-]+", "a path below the project")
_SOURCES = Fields(
    {
        "execution": _PLATFORM,
        "mirrors": MapOf(ListOf(Text(r"((https?|git|ssh|file)://|/|[\w.-]+@[\w.-]+:)\S*",
                                     "the beginning of an address, or of an absolute path")), r"\S+"),
        "packages": MapOf(Fields({
            "version": _VERSION, "recipe": _FILE, "index": _NAME,
            "git": Fields({"repository": _REPOSITORY, "tag": _TAG, "submodules": ListOf(Text())},
                          required=("repository", "tag"), defaults={"submodules": []}),
            "stubs": MapOf(_REASON, r"[\w.-]+"),
            "pins": MapOf(Fields({"repository": _REPOSITORY, "tag": _TAG, "reason": _REASON},
                                 required=("tag", "reason")), r"[\w.-]+"),
            "patches": ListOf(_FILE),
        }, defaults={"stubs": {}, "pins": {}, "patches": []}), r"[a-z0-9]+(-[a-z0-9]+)*"),
    },
    defaults={"execution": "linux/amd64", "mirrors": {}, "packages": {}},
)

#: What a target may promise of its CPU; what each means is in checks/data/cpu.yaml.
CPU_LEVELS = {
    "linux/amd64": ("x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4"),
    "linux/arm64": ("armv8-a", "armv8.1-a", "armv8.2-a", "armv8.4-a", "armv8.6-a", "armv9-a", "armv9.2-a"),
}
CPU_FEATURES = ("amx", "avx", "avx2", "avx512", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni", "bf16", "bmi1",
                "bmi2", "cx16", "dotprod", "f16c", "fma", "fp16", "i8mm", "lse", "movbe", "popcnt", "sse3", "sse4.1",
                "sse4.2", "ssse3", "sve")

SCHEMA = Fields(
    {
        "format": Text(choices=(FORMAT,)),
        "extends": _NAME,
        "description": Text(),
        "platform": _PLATFORM,
        "device": Fields(
            {
                "name": Text(),
                "compute_capability": Text(r"\d+\.\d|none", "a compute capability like 11.0, or none"),
                "arch_list": Text(r"\d+\.\d[af]?( \d+\.\d[af]?)*|none", "an architecture list like 11.0a, or none"),
                "cuda": Text(r"\d+\.\d+|none", "a CUDA version like 13.0, or none"),
                "driver_floor": Text(r"\d+(\.\d+)*|none", "a driver version like 580, or none"),
                "memory": Text(choices=("unified", "discrete", "none")),
                "host": Fields({"os": Text(), "glibc": _MINOR}, required=("os", "glibc")),
                "driver_libraries": ListOf(Text(r"lib[\w.*?+-]+\.so[\w.*?]*", "a soname or a pattern of sonames")),
            },
            required=("name", "compute_capability", "arch_list", "cuda", "driver_floor", "memory"),
        ),
        "cpu": Fields({"baseline": Text(choices=CPU_LEVELS["linux/amd64"] + CPU_LEVELS["linux/arm64"]),
                       "features": ListOf(Text(choices=CPU_FEATURES))}, required=("baseline",)),
        "base": Fields(
            {"debian": _DEBIAN, "image": Text(r"[\w.:/-]+(@sha256:[0-9a-f]{64})?", "an image reference")},
            one_of=("debian", "image"),
        ),
        "python": Fields({"version": _MINOR, "glibc": _MINOR}, required=("version", "glibc")),
        "packages": MapOf(_REASON, r"[a-z0-9][a-z0-9.+-]+"),
        "bytecode": Boolean(),
        "alternatives": MapOf(Text(r"/.+", "an absolute path"), r"[\w+.-]+"),
        "torch": Fields({"version": _VERSION, "index": _NAME}, required=("version",), defaults={"index": "default"}),
        "vllm": Fields({"version": _VERSION, "from": Text(choices=("wheel", "source", "auto")), "index": _NAME,
                        "package": _NAME},  # no default: locks that are there stay good
                       required=("version",), defaults={"from": "wheel", "index": "default"}),
        "sources": _SOURCES,
        "triton": Fields({"version": _VERSION, "from": Text(choices=("pytriton", "source", "release", "image")),
                          "index": _NAME,
                          "url": Text(r"https?://(?![^/\s]*@)[^\s?#]+/[\w.{}+-]+",
                                      "the address of a file, without user, password or query: it stands in the lock"),
                          "sha256": Text(r"[0-9a-f]{64}", "64 hexadecimal digits"),
                          "image": Text(r"[\w.:/-]+(@sha256:[0-9a-f]{64})?", "an image reference"),
                          "bind": Text(r"[0-9a-fA-F:.]+", "an IP address"),
                          "python_backend": Text(choices=("prebuilt", "source")),
                          "backend": Text(choices=("stagecraft", "upstream", "none")),
                          "backend_version": Text(r"r?\d\d\.\d\d|[0-9a-f]{40}", "a container like 26.01, or a "
                                                  "revision")},
                         required=("version",), defaults={"from": "pytriton", "index": "default", "bind": "127.0.0.1",
                                                         "python_backend": "prebuilt"}),
        "device_code": Fields({"policy": Text(choices=("loadable", "native"))}, required=("policy",)),
        "wheels": Fields({
            "requirements": ListOf(_REQUIREMENT),
            "overrides": ListOf(Fields({"requirement": _REQUIREMENT, "reason": _REASON},
                                       required=("requirement", "reason"))),
            "tags": ListOf(Fields({"wheel": _NAME, "reason": _REASON}, required=("wheel", "reason"))),
            "excluded": ListOf(Fields({"wheel": _NAME, "reason": _REASON}, required=("wheel", "reason"))),
            "collisions": ListOf(Fields({"path": Text(), "winner": _NAME, "reason": _REASON},
                                        required=("path", "winner", "reason"))),
            "indexes": MapOf(_NAME, r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"),  # no default: locks that are there stay good
            "records": ListOf(Fields({"wheel": _NAME, "path": Text(), "reason": _REASON},
                                     required=("wheel", "path", "reason"))),
        }, defaults={"requirements": [], "overrides": [], "collisions": [], "records": []}),
        "layers": MapOf(ListOf(Text(r"[a-z0-9*?\[\]-]+", "a wheel name or pattern")), r"cuda|torch|deps|vllm"),
        "image": Fields({
            "user": Fields({"name": _NAME, "uid": Integer(1, 65533), "gid": Integer(1, 65533)},
                           required=("name", "uid", "gid")),
            "environment": MapOf(Text(), r"[A-Za-z_]\w*"),
            "command": ListOf(Text()),
            "ports": ListOf(Integer(1, 65535)),
            "labels": MapOf(Text(), r"[a-z0-9][a-z0-9./_-]*"),
            "compression": Fields({"name": Text(choices=("zstd", "gzip")), "level": Integer(1, 19)},
                                  required=("name", "level")),
        }, defaults={"environment": {}, "command": [], "ports": [], "labels": {},
                     "compression": {"name": "zstd", "level": 3}}),
        "waivers": ListOf(Fields({"check": _NAME, "subject": Text(), "reason": _REASON, "expires": _DAY},
                                 required=("check", "subject", "reason"))),
    },
    required=("format", "description", "platform", "device", "base", "python"),
    defaults={
        "packages": {}, "alternatives": {}, "waivers": [],
        "wheels": {"requirements": [], "overrides": [], "collisions": [], "records": []},
        "image": {"environment": {}, "command": [], "ports": [], "labels": {},
                  "compression": {"name": "zstd", "level": 3}},
    },
)

#: Target fields that each part of a lock answers. A change in one of them makes that part out of date.
REQUEST_FIELDS = {
    "base": ("platform", "base", "python", "packages"),
    "wheels": ("platform", "python", "torch", "vllm", "triton", "wheels"),
}
#: What of the section triton is resolved; the Python backend is resolved as what it is compiled from.
_SERVER = ("version", "from", "index", "url", "sha256", "image")
#: The recipe of a package that names none.
RECIPES = {"vllm": "vllm/recipe.yaml", "python-backend": "triton/python-backend.yaml",
           "vllm-backend": "triton/vllm-backend.yaml", "triton-server": "triton/server.yaml"}
#: What of the section triton takes a piece of the server tree from source.
_TAKES = {"triton-server": ("from", "source"), "python-backend": ("python_backend", "source"),
          "vllm-backend": ("backend", "upstream")}

#: Sections whose wheel has a layer of its own, in which its check reads it.
OWN_LAYERS = ("torch", "vllm")
#: Layers of wheels that every compile reads.
READ = ("cuda", "torch")
#: What image.environment may hold in braces; a brace that is text is written twice.
PLACEHOLDER = re.compile(r"\{\{|\}\}|\{site\}|\{arch_list\}|[{}]")


@dataclass(frozen=True)
class Target:
    """One target with everything it extends resolved and all defaults filled in.

    Attributes:
        name: the file's stem.
        data: plain JSON values, keys as in docs/formats/target.md.
        files: the YAML files it was read from, relative to the project, the target's own first.
        recipes: of the packages that come, or may come, from source.
    """

    name: str
    data: Mapping[str, Any]
    files: tuple[str, ...]
    recipes: Mapping[str, Recipe] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """OCI name: arm64 or amd64."""
        return str(self.data["platform"]).partition("/")[2]

    @property
    def machine(self) -> str:
        """Kernel and wheel name: aarch64 or x86_64."""
        return {"arm64": "aarch64", "amd64": "x86_64"}[self.architecture]

    def request(self) -> dict[str, dict[str, Any]]:
        """What `lock` resolves, by part ("base", "wheels", and "sources" where something is or may be compiled).

        Reasons and layer names are no part of it.
        """
        wheels = self.data["wheels"]
        asked = {**self.data, "packages": sorted(self.data["packages"]),
                 "triton": {k: v for k, v in self.data.get("triton", {}).items() if k in _SERVER},
                 "wheels": {"requirements": wheels["requirements"],
                            "overrides": [entry["requirement"] for entry in wheels["overrides"]],
                            **({"excluded": sorted(entry["wheel"] for entry in wheels["excluded"])}
                               if "excluded" in wheels else {})}}
        found = {part: {key: asked[key] for key in fields if key in asked} for part, fields in REQUEST_FIELDS.items()}
        if self.recipes:
            device = self.data["device"]
            compiled = sorted(self.recipes.keys() - set(SERVER_PARTS))
            if compiled:
                found["wheels"]["from source"] = compiled
            found["sources"] = {
                "platform": self.data["platform"], "execution": self.data["sources"]["execution"],
                "python": self.data["python"], "cuda": device["cuda"], "arch_list": device["arch_list"],
                "suite": self.data["base"].get("debian", {}), "torch": self.data.get("torch", {}),
                "packages": {name: self._source(name) for name in self.recipes}}
        return found

    def _source(self, name: str) -> dict[str, Any]:
        """What `lock` reads of a package from source."""
        described = self.data["sources"]["packages"][name]
        recipe = self.recipes[name]
        pins = {pin: {key: value for key, value in moved.items() if key != "reason"}
                for pin, moved in described["pins"].items()}
        decided = {"from": self.data[name]["from"]} if name == "vllm" else {}
        return {**{key: described[key] for key in ("version", "index", "git") if key in described}, **decided,
                "pins": pins,
                "stubs": sorted({*described["stubs"], *recipe.stubs(described["version"],
                                                                    self.data["device"]["arch_list"])}),
                "recipe": recipe.asks(described["version"])}


def json_schema() -> dict[str, Any]:
    """docs/formats/target.schema.json. Maps require nothing there: what one lacks a target that it extends may have."""
    def partial(schema: dict[str, Any]) -> dict[str, Any]:
        if "properties" in schema:
            schema.pop("required", None)
            schema.pop("oneOf", None)
            for below in schema["properties"].values():
                partial(below)
        return schema

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": FORMAT, **partial(SCHEMA.json_schema())}


def names(root: Path) -> list[str]:
    """All targets declared below `root`/targets, sorted."""
    import os

    try:
        return sorted(name[:-5] for name in os.listdir(root / "targets")
                      if name.endswith(".yaml") and name != "indexes.yaml")
    except FileNotFoundError:
        return []


def load(root: Path, name: str) -> Target:
    """Read `targets/<name>.yaml`.

    Raises:
        InputError: no such target (with the nearest name), or anything wrong in it, with file and line.
    """
    known = names(root)
    if name not in known:
        guess = nearest(name, known)
        raise InputError(f"no target {name!r}", where="targets/", expected="one of " + (", ".join(known) or "(none)"),
                         cure=f"did you mean {guess!r}?" if guess else f"write targets/{name}.yaml")
    chain: list[Document] = []
    files: list[str] = []
    following: str | None = name
    while following is not None:
        shown = f"targets/{following}.yaml"
        if shown in files:
            raise InputError("targets extend each other in a circle", where=" -> ".join([*files, shown]))
        document = read(root / shown, shown)
        files.append(shown)
        chain.append(document)
        parent = document.data.get("extends") if isinstance(document.data, dict) else None
        if parent is not None and (not isinstance(parent, str) or parent not in known):
            guess = nearest(str(parent), known)
            raise InputError(f"extends an unknown target {parent!r}", where=document.place(("extends",)),
                             cure=f"did you mean {guess!r}?" if guess else None)
        following = parent
    merged = chain[-1]
    for document in reversed(chain[:-1]):
        merged = merge(merged, document)
    data = SCHEMA.check(merged.data, merged, ())
    data.pop("extends", None)
    data.setdefault("layers", {**{name: [distribution(data, name)] for name in OWN_LAYERS if name in data},
                               "deps": ["*"]})
    _consistent(data, merged)
    _layers(data, merged)
    _image(data["image"], merged)
    _waivers(data["waivers"], merged)
    if data.get("bytecode"):
        from stages.bytecode import refuse

        refuse(data, merged)
    if "triton" in data:
        from stages.server import complete

        complete(data["triton"], merged)
    return Target(name, data, tuple(files), _recipes(data, merged, root))


def _consistent(data: Mapping[str, Any], document: Document) -> None:
    """Pairs that cannot be: named with the line that says so."""
    device = data["device"]
    capability = device["compute_capability"]
    if capability != "none":
        archs = [arch.rstrip("af") for arch in device["arch_list"].split()]
        if capability not in archs:
            raise InputError("the architecture list does not serve the device",
                             where=document.place(("device", "arch_list")),
                             expected=f"{capability} or {capability}a in it", found=device["arch_list"])
        if "none" in (device["cuda"], device["driver_floor"]):
            raise InputError("a device with a compute capability needs cuda and driver_floor",
                             where=document.place(("device",)))
    _platform(device, document)
    baseline = data.get("cpu", {}).get("baseline")
    if baseline is not None and baseline not in CPU_LEVELS[data["platform"]]:
        raise InputError(f"{baseline} is no CPU of {data['platform']}", where=document.place(("cpu", "baseline")),
                         expected=" or ".join(CPU_LEVELS[data["platform"]]))
    if "vllm" in data and "torch" not in data:
        raise InputError("vllm needs torch", where=document.place(("vllm",)), cure="add a torch section")


def _platform(device: Mapping[str, Any], document: Document) -> None:
    """L4T brings one driver, and that driver one CUDA. Raises InputError for a target that says otherwise."""
    from checks.facts import platform_of, release

    system = device.get("host", {}).get("os", "")
    row = platform_of(system) if system.startswith("L4T") else {}
    cure = "correct device.host.os, or what the target says of its driver (checks/data/platforms.yaml)"
    if row and device["cuda"] != "none" and release(device["cuda"]) != release(row["cuda"]):
        raise InputError(f"the driver of {system} brings CUDA {row['cuda']}", where=document.place(("device", "cuda")),
                         expected=row["cuda"], found=device["cuda"], cure=cure)
    floor = device["driver_floor"]
    if floor != "none" and release(floor) != release(row.get("driver", floor))[:len(floor.split("."))]:
        raise InputError(f"the driver of {system} is {row['driver']}: there is no other for that device",
                         where=document.place(("device", "driver_floor")), expected=row["driver"], found=floor,
                         cure=cure)


def _recipes(data: dict[str, Any], document: Document, root: Path) -> dict[str, Recipe]:
    """Fill in what a package from source leaves out, and read its recipe. Without any, the target has no `sources`."""
    described: dict[str, Any] = data.get("sources", {"packages": {}})
    packages: dict[str, Any] = dict(described["packages"])
    if "vllm" in data:
        at = ("sources", "packages", "vllm")
        if data["vllm"]["from"] != "wheel" and "package" in data["vllm"]:
            raise InputError("vllm comes from source, and its section names a wheel",
                             where=document.place(("vllm", "package")), cure="leave package out, or set from: wheel")
        if data["vllm"]["from"] == "wheel" and "vllm" in packages:
            raise InputError("vllm is taken as a wheel", where=document.place(at),
                             cure="set vllm.from to source or auto, or leave this out")
        if packages.get("vllm", {}).get("version", data["vllm"]["version"]) != data["vllm"]["version"]:
            raise InputError("two versions of vllm", where=document.place((*at, "version")),
                             expected=data["vllm"]["version"], cure="leave the version out here")
        if data["vllm"]["from"] != "wheel":
            packages["vllm"] = {"stubs": {}, "pins": {}, "patches": [], "index": data["vllm"]["index"],
                                **packages.get("vllm", {}), "version": data["vllm"]["version"]}
    if data.get("triton", {}).get("from") == "source":
        data["triton"]["python_backend"] = "source"  # no other is there for it
    for part, (key, wanted) in _TAKES.items():
        if data.get("triton", {}).get(key) == wanted:
            packages[part] = {"stubs": {}, "pins": {}, "patches": [], **packages.get(part, {})}
        elif part in packages:
            raise InputError(f"{part} is not taken from source", where=document.place(("sources", "packages", part)),
                             cure=f"set triton.{key} to {wanted}, or leave this out")
    if "triton-server" in packages:
        _of_the_server(packages, data, document)
    if "vllm-backend" in packages:
        _backend_version(packages["vllm-backend"], data, document)
    if not packages:
        data.pop("sources", None)
        return {}
    from stages.recipe import load as load_recipe

    if packages.keys() - set(SERVER_PARTS):
        _nvcc(data["device"], document)
    found = {}
    for name, package in sorted(packages.items()):
        at = ("sources", "packages", name)
        if "git" in package and "index" in described["packages"].get(name, {}):
            raise InputError(f"{name} has an index and a Git repository", where=document.place((*at, "index")),
                             cure="leave one of them out")
        if name in SERVER_PARTS:
            found[name] = _server_part(name, package, document, root)
        for key, default in (("version", None), ("recipe", RECIPES.get(name)), ("index", "default")):
            if key not in package and default is None:
                raise InputError(f"the package {name} from source needs a {key}", where=document.place(at),
                                 cure=f"add {key}: … there")
            package.setdefault(key, default)
        if name not in SERVER_PARTS:
            _compiled(name, package, data, document)
            found[name] = load_recipe(root, package["recipe"])
            if "into" in found[name].data:
                raise InputError(f"the recipe of {name} makes no wheel", where=document.place((*at, "recipe")),
                                 found=f"{package['recipe']}: into",
                                 cure="take another recipe, or leave into out there")
        if "copy" in found[name].data:
            described.setdefault("execution", "linux/amd64")
            continue
        found[name].compilers(described.setdefault("execution", "linux/amd64"), data["platform"])
    data["sources"] = {"execution": described["execution"], "mirrors": described.get("mirrors", {}),
                       "packages": packages}
    return found


def _of_the_server(packages: dict[str, Any], data: Mapping[str, Any], document: Document) -> None:
    """The server's release is that of the section triton; its Python backend is of the same unless it is said."""
    from checks.triton_releases import row_of

    if "version" in packages["triton-server"]:
        raise InputError("the release of the server is said in triton",
                         where=document.place(("sources", "packages", "triton-server", "version")),
                         cure="name it as triton.version, and leave it out here")
    asked = data["triton"]["version"]
    container = (row_of(asked) or {}).get("container", asked)
    packages["triton-server"]["version"] = container
    packages["python-backend"].setdefault("version", container)


def _backend_version(package: dict[str, Any], data: Mapping[str, Any], document: Document) -> None:
    """Which release NVIDIA's vLLM backend is of: the one that is said, else the server's."""
    from checks.triton_releases import row_of, table

    if "version" in package:
        raise InputError("the release of the vLLM backend is said in triton",
                         where=document.place(("sources", "packages", "vllm-backend", "version")),
                         cure="name it as triton.backend_version, and leave it out here")
    if "vllm" not in data:
        raise InputError("a vLLM backend without vllm", where=document.place(("triton", "backend")),
                         cure="add a section vllm, or set triton.backend to none")
    described = data["triton"]
    asked = described.get("backend_version", "")
    if not asked and described["from"] == "pytriton":
        asked = next((row["container"] for row in table()["prebuilt"] if row["version"] == described["version"]), "")
    row = row_of(asked or described["version"]) or {}
    package["version"] = row.get("container", asked or described["version"])


def _server_part(name: str, package: dict[str, Any], document: Document, root: Path) -> Recipe:
    """Read the recipe of a piece of the server tree, and fill in version and repository by its table of releases."""
    from stages.recipe import load as load_recipe

    at = ("sources", "packages", name)
    recipe = load_recipe(root, package.setdefault("recipe", RECIPES[name]))
    if "into" not in recipe.data:
        raise InputError(f"the recipe of {name} does not say where in the image its files belong",
                         where=recipe.path, expected="into: a directory", cure="add into there")
    row = recipe.release(package.get("version", ""))
    if not row and "git" not in package:
        known = ", ".join(one["version"] for one in recipe.releases)
        raise InputError(f"the revisions of {name} {package.get('version', '')} are not known",
                         where=document.place((*at, "version")), expected=known or "a release in the recipe's table",
                         found=package.get("version", ""), cure="take one of these, complete its row in "
                              f"{recipe.data.get('releases', {}).get('table', recipe.path)}, or name git: and pins: "
                              f"under sources.packages.{name}")
    package.setdefault("version", row.get("version", "0"))
    if "index" in package:
        raise InputError(f"{name} is in no index", where=document.place((*at, "index")), cure="leave it out")
    package.setdefault("git", {"repository": recipe.data.get("repository", ""), "tag": row.get("revision", ""),
                               "submodules": []})
    return recipe


def _nvcc(device: Mapping[str, Any], document: Document) -> None:
    """What compiles for the device knows it, and is not newer than its oldest driver. Raises InputError."""
    from checks.facts import compiled_by, driver_of, release

    cuda, floor = device["cuda"], device["driver_floor"]
    known = compiled_by(cuda)
    for arch in device["arch_list"].split():
        if known and arch.rstrip("af") not in known:
            raise InputError(f"nvcc of CUDA {cuda} compiles nothing for {arch}",
                             where=document.place(("device", "arch_list")), expected=", ".join(known), found=arch)
    needed = driver_of(cuda)
    older = release(floor) < release(needed)[:len(floor.split("."))] if needed and floor != "none" else False
    if older and not device.get("host", {}).get("os", "").startswith("L4T"):
        raise InputError(f"nvcc of CUDA {cuda} writes PTX that driver {floor} does not compile",
                         where=document.place(("device", "cuda")), expected=f"driver_floor {needed} or newer",
                         found=floor,
                         cure="set device.cuda to the CUDA of the oldest driver, or raise device.driver_floor")


def _compiled(name: str, package: Mapping[str, Any], data: Mapping[str, Any], document: Document) -> None:
    """A package from source that has no place in the image, or no version by which its recipe's rows are chosen."""
    from packaging.version import InvalidVersion, Version

    at = ("sources", "packages", name)
    try:
        Version(package["version"])
    except InvalidVersion as error:
        raise InputError(f"this is no version of {name}", where=document.place((*at, "version")),
                         expected="a version like 1.0 or 1.0+cu130", found=package["version"]) from error
    both = sorted(package["stubs"].keys() & package["pins"].keys())
    if both:
        raise InputError(f"{both[0]} is a stub and has a pin", where=document.place((*at, "pins", both[0])),
                         cure="name it under stubs or under pins")
    layer = layer_of(name, layer_rules(data["layers"]))
    if layer is None:
        raise InputError(f"no layer takes {name}", where=document.place(("layers",)), cure=f"name {name} in a layer")
    if layer in READ:
        raise InputError(f"{name} is compiled with what the layer {layer} holds, and would lie in it",
                         where=document.place(at), expected="a package of the layer deps or vllm",
                         cure="take it as a wheel" if name in READ else f"name {name} in another layer")
    wheels = data["wheels"]
    listed = [("overrides", str(number), row["requirement"]) for number, row in enumerate(wheels["overrides"])]
    listed += [("indexes", key, key) for key in wheels.get("indexes", {})]
    for part, key, text in listed:
        if re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", text)[0]).lower() == name:
            raise InputError(f"{name} is compiled, and wheels.{part} says which wheel of it to take",
                             where=document.place(("wheels", part, key)), cure=f"leave {name} out there")
    if name in OWN_LAYERS and name not in data:
        raise InputError(f"{name} is compiled, and the target has no section {name}", where=document.place(at),
                         cure=f"add a section {name} with its version, and from: source")


def distribution(data: Mapping[str, Any], section: str) -> str:
    """The wheel of a section torch or vllm: it has the section's name unless that says otherwise."""
    return str(data.get(section, {}).get("package", section))


def layer_rules(patterns: Mapping[str, list[str]]) -> list[tuple[str, str]]:
    """`(pattern, layer)`, first come first served: exact names before patterns, longer patterns before shorter."""
    return sorted(((pattern, layer) for layer, listed in patterns.items() for pattern in listed),
                  key=lambda rule: (any(c in rule[0] for c in "*?["), -len(rule[0]), rule[0]))


def layer_of(wheel: str, rules: Iterable[tuple[str, str]]) -> str | None:
    """The layer that takes a wheel."""
    return next((layer for pattern, layer in rules if fnmatchcase(wheel, pattern)), None)


def _layers(data: Mapping[str, Any], document: Document) -> None:
    rules = layer_rules(data["layers"])
    for name in OWN_LAYERS:
        if name in data["layers"] and name not in data:
            raise InputError(f"layer {name!r} without a section {name!r}", where=document.place(("layers", name)))
        wheel = distribution(data, name)
        taken = layer_of(wheel, rules)
        if name in data and taken != name:
            raise InputError(f"the wheel {wheel} is not in the layer {name}, where its check reads it",
                             where=document.place(("layers",)), expected=f"{name}: [{wheel}] in layers",
                             found=f"layer {taken} takes it" if taken else "no layer takes it",
                             cure=f"add {name}: [{wheel}], or leave out layers altogether")


def _image(described: Mapping[str, Any], document: Document) -> None:
    for name, text in described["environment"].items():
        if any(found in ("{", "}") for found in PLACEHOLDER.findall(text)):
            raise InputError(f"unknown placeholder in image.environment.{name}",
                             where=document.place(("image", "environment", name)),
                             expected="{site} or {arch_list}; {{ and }} for braces that are text", found=text)
    for name in described["labels"]:
        if name.startswith("io.stagecraft."):
            raise InputError(f"the label {name} is derived from the lock, never written",
                             where=document.place(("image", "labels", name)), cure="take a name of your own domain")


def _waivers(waivers: list[Mapping[str, str]], document: Document) -> None:
    if not waivers:
        return
    from checks.registry import CHECKS

    known = [check.id for check in CHECKS]
    for number, waiver in enumerate(waivers):
        if "expires" in waiver:
            _day(waiver["expires"], document.place(("waivers", str(number), "expires")))
        if waiver["check"] not in known:
            guess = nearest(waiver["check"], known)
            raise InputError(f"a waiver of an unknown check {waiver['check']!r}",
                             where=document.place(("waivers", str(number), "check")),
                             expected="one of " + ", ".join(known),
                             cure=f"did you mean {guess!r}?" if guess else "docs/checks.md lists all checks")


def _day(text: str, where: str) -> None:
    import datetime

    try:
        datetime.date.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"there is no day {text}", where=where, expected="a day like 2027-01-31",
                         found=str(error)) from error
