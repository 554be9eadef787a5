"""`compose:<target>`: compose.yaml that serves what `model:<target>` made, on the target's device."""

from __future__ import annotations

import ipaddress
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import InputError
from checks import facts
from stages.made_files import Made, listing, rendered
from stages.serve_model import named
from stages.triton import CACHE

if TYPE_CHECKING:
    from stages.project import Project
    from stages.tasks import Session

TEMPLATE = "templates/compose.yaml.j2"
FILE, TOKEN = "compose.yaml", "hf_token"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
RENDER = "RENDER_GID=$(getent group render | cut -d: -f3)"
GPUS = {"runtime": "the runtime nvidia", "cdi": "CDI, nvidia.com/gpu=all", "": "no GPU"}


def run(session: Session, target: str, said: Mapping[str, str], out: Path, force: bool) -> tuple[Any, str]:
    """Write it; what it says, as data and as text.

    Raises:
        InputError: no server in the target, or a value that cannot be.
    """
    project = session.project
    data = project.target(target).data
    if "triton" not in data:
        raise InputError(f"{target} has no Triton server", where=f"targets/{target}.yaml")
    made = Made(out)
    made.mounts = _mounts(made, target)
    network = _one_of("network", said, ("bridge", "host"))
    host = network == "host"
    publish = _address(said.get("publish", "127.0.0.1"))
    if host and "publish" in said:
        raise InputError("publish= is for network=bridge", found=f"publish={publish} network=host",
                         cure="triton.bind of the target is where the server itself listens")
    gpu = _gpu(data, said)
    jetson = bool(gpu) and facts.device(data)["capability"] in facts.device(data)["tegra"]
    image, manifest = _image(project, target, said.get("image", ""))
    command = [*data["image"]["command"]] or ["tritonserver", "--model-repository=/models"]
    if not host:
        command += [f"--{service}-address=0.0.0.0" for service in ("http", "grpc", "metrics")]
    ports = data["image"]["ports"] or [8000, 8001, 8002]
    bind = data["triton"]["bind"]
    reach = f"http://{bind if host else publish}:{ports[0]}"
    how = [*([f"Start it with {RENDER} docker compose up -d"] if jetson else []), *_reach(host, bind, publish),
           f"It is well when `docker compose ps` says healthy; then ask {reach}/v2."]
    content = rendered(project.root, TEMPLATE, _escaped({
        "target": target, "description": data["description"], "image": image, "manifest": manifest,
        "command": command, "gpu": gpu, "groups": jetson, "host": host, "bind": bind, "ports": ports,
        "publish": f"[{publish}]" if ":" in publish else publish, "mounts": made.mounts, "cache": CACHE,
        "proxies": PROXIES, "how": [line for text in how for line in textwrap.wrap(text, 116)]}))
    states = made.write({FILE: content, TOKEN: b""}, force=force, private=(TOKEN,))
    user = data["image"].get("user", {}).get("uid", 0)
    models = sorted(path.parent.name for path in (out / "models").glob("*/config.pbtxt"))
    notes = [f"{TOKEN} must be readable for uid {user}, which the image runs as: chown {user} {TOKEN}, then put a "
             "token into it if a model needs one"]
    if not models:
        notes.append(f"there is no model yet: ./doit model:{target} model=ID out={out}")
    if image == default(target):
        notes.append(f"{image} is the name that ./doit load:{target} gives it in the Docker of the device; another: "
                     "image=REFERENCE")
    if jetson:
        notes.append(f"{RENDER} must stand before docker compose on the device")
    document = {"target": target, "image": image, "manifest": manifest, "gpu": gpu, "network": network,
                "address": reach, "models": models, "mounts": made.mounts,
                "files": [{"path": str(out / path), "state": state} for path, state in states.items()], "notes": notes}
    lines = [f"{target}: {image}, {GPUS[gpu]}", *listing(str(out), states), f"  answers at {reach}"]
    for text in (*_reach(host, bind, publish), *notes):
        lines += textwrap.wrap(f"note: {text}", 79, initial_indent="  ", subsequent_indent="    ",
                               break_long_words=False, break_on_hyphens=False)
    return document, "\n".join([*lines, "", f"  docker compose -f {out / FILE} up -d"])


def _mounts(made: Made, target: str) -> dict[str, str]:
    """Those that a model names; all of their directories are there."""
    used = named(made.directory)
    found = {there: here for there, here in made.mounts.items() if there in used}
    for there, here in found.items():
        if not Path(here).is_dir():
            raise InputError("a directory of a model is gone", where=here, expected=f"what is mounted at {there}",
                             cure=f"put it back, or ./doit model:{target} again with its new place")
    return found


def default(target: str) -> str:
    """The name that `load` gives the image."""
    return f"stagecraft/{target}:latest"


def _reach(host: bool, bind: str, publish: str) -> list[str]:
    """Who can reach the server, which by itself listens on an address of its own container only."""
    if host:
        return [f"The server is in the host's network and listens on {bind}, as the target says (triton.bind)."]
    others = "This machine alone reaches it." if ipaddress.ip_address(publish).is_loopback else \
        f"Whoever reaches {publish} reaches it: it asks for no password."
    return [f"The server listens on all addresses of its container, and Docker publishes its ports on {publish}. "
            f"{others} By itself it would listen on {bind} of the container, where nobody outside is."]


def _one_of(key: str, said: Mapping[str, str], choices: tuple[str, ...]) -> str:
    found = said.get(key, choices[0])
    if found not in choices:
        raise InputError(f"{key}= is one of " + ", ".join(choices), found=found)
    return found


def _address(word: str) -> str:
    try:
        return str(ipaddress.ip_address(word))
    except ValueError:
        raise InputError("publish= is an address of the machine", found=word, expected="127.0.0.1, or 0.0.0.0 "
                                                                                       "for all") from None


def _gpu(data: Mapping[str, Any], said: Mapping[str, str]) -> str:
    """How the GPU comes into the container: Jetson's own runtime knows its driver; elsewhere CDI, which needs none."""
    device = facts.device(data)
    if not device["capability"]:
        if "gpu" in said:
            raise InputError("the target has no GPU", found=f"gpu={said['gpu']}")
        return ""
    tegra = device["capability"] in device["tegra"]
    return _one_of("gpu", said, ("runtime", "cdi") if tegra else ("cdi", "runtime"))


def _image(project: Project, target: str, said: str) -> tuple[str, str]:
    """The image's reference, and the manifest that was built last: as asked for, as pushed, or as loaded."""
    last = project.last(target)
    manifest = str(last.get("manifest", ""))
    if said:
        from oci.export import docker_name

        name, at, digest = said.partition("@")
        docker_name(name)
        if at and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise InputError("no digest of an image", found=said, expected="NAME@sha256:…")
        return said, manifest
    for content in project.store.roots().values():
        push = content.get("push")
        if push and content.get("target") == target and content.get("points_to") == last.get("points_to"):
            name = str(push["reference"])
            before, slash, behind = name.rpartition("/")
            return f"{before}{slash}{behind.partition('@')[0].partition(':')[0]}@{push['manifest']}", manifest
    return default(target), manifest


def _escaped(values: dict[str, Any]) -> dict[str, Any]:
    """Text for compose, to which `$` is a variable."""
    def escape(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("$", "$$")
        if isinstance(value, list):
            return [escape(one) for one in value]
        return {key: escape(one) for key, one in value.items()} if isinstance(value, dict) else value

    return {key: escape(value) if key in ("image", "command", "mounts") else value for key, value in values.items()}
