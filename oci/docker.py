"""`load`: an image of the store into a Docker engine, streamed through its API; nothing is written to disk on our side.

Which engine: `$DOCKER_HOST`, else `$DOCKER_CONTEXT` or the current context of Docker's configuration, else the default
socket: what the `docker` command would use. Docker 20.10 (API 1.41) and newer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import docker
import requests
from docker.context import ContextAPI
from docker.errors import DockerException, ImageNotFound

from cache.errors import InputError, StageError, ToolError
from cache.store import Store
from oci import media
from oci.contents import read_image
from oci.export import docker_name, export_chunks, export_size

#: Seconds without a word from the engine while it unpacks; a layer of gigabytes on a slow disk takes minutes.
_TIMEOUT = 1800


@dataclass(frozen=True)
class Loaded:
    """What the engine has now: `image` is the id it shows, `engine` its version, `names` what it is called."""

    image: str
    engine: str
    names: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"image": self.image, "engine": self.engine, "names": list(self.names)}


def connect(environ: Mapping[str, str] | None = None) -> docker.DockerClient:
    """The engine that the `docker` command would use.

    Raises:
        ToolError: none can be reached; says which was tried.
        InputError: a context that is not there.
    """
    env = dict(os.environ if environ is None else environ)
    where = env.get("DOCKER_HOST", "")
    try:
        if where:
            client = docker.DockerClient.from_env(environment=env, timeout=_TIMEOUT, use_ssh_client=True)
        else:
            options: dict[str, Any] = {}
            context = _context(env.get("DOCKER_CONTEXT", ""))
            if context is not None:
                where = str(context.Host)
                options = {"base_url": where, "tls": context.TLSConfig or False}
            client = docker.DockerClient(version="auto", timeout=_TIMEOUT, use_ssh_client=True, **options)
        client.ping()
    except (DockerException, requests.RequestException, OSError) as error:
        raise ToolError(
            "no Docker engine can be reached", where=where or "the default socket",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            cure="start Docker, or set DOCKER_HOST; without an engine, use ./doit export:<target>") from error
    return client


def _context(name: str) -> Any:
    """The context in use, or None for the default one."""
    if name == "default":
        return None
    context = ContextAPI.get_context(name) if name else ContextAPI.get_current_context()
    if context is None:
        raise InputError("no such Docker context", where="DOCKER_CONTEXT" if name else "Docker's configuration",
                         found=name or "the current one", cure="docker context ls")
    return None if context.Name == "default" else context


def load(store: Store, manifest: str, names: Sequence[str], *, progress: Callable[[int, int], None] | None = None,
         client: docker.DockerClient | None = None) -> Loaded:
    """Load an image into the engine and check that it has become the one that was sent.

    Args:
        manifest: digest of the image's manifest.
        names: `NAME:TAG`, at least one.

    Raises:
        ToolError: no engine, one that cannot unpack the image's layers, or it broke off.
        StageError: the engine refuses the image.
    """
    tags = tuple(docker_name(name) for name in names)
    if not tags:
        raise ValueError("an image is loaded under a name")
    image = read_image(store, manifest)
    engine = client or connect()
    try:
        version = str(engine.version()["Version"])
        _can_read(version, [layer.media_type for layer in image.layers])
        answer: Iterator[dict[str, Any]] = engine.api.load_image(  # type: ignore[no-untyped-call]
            _reported(store, manifest, tags, progress))
        for message in answer:
            problem = message.get("error") or (message.get("errorDetail") or {}).get("message")
            if problem:
                raise StageError("the Docker engine refuses the image", where=f"engine {version}", found=str(problem))
        found = str(engine.images.get(tags[0]).id)
    except ImageNotFound as error:
        raise StageError("the Docker engine took the image but does not know it", where=tags[0]) from error
    except (DockerException, requests.RequestException, OSError) as error:
        raise ToolError("the Docker engine broke off", found=str(error).splitlines()[0] if str(error) else "",
                        cure="look at its log; is its disk full?") from error
    finally:
        if client is None:
            engine.close()
    # The classic store shows the configuration's digest, containerd's store the manifest's.
    if found not in (image.config.digest, image.manifest.digest):
        raise StageError("the Docker engine made another image of it", where=f"engine {version}",
                         expected=image.config.digest, found=found)
    return Loaded(found, version, tags)


def _can_read(version: str, media_types: Sequence[str]) -> None:
    """Refuse before gigabytes travel: Docker below 23 says of a zstd layer only "invalid tar header"."""
    major = version.partition(".")[0]
    if major.isdigit() and int(major) < 23 and any(media.compression(kind) == "zstd" for kind in media_types):
        raise ToolError("this Docker engine cannot unpack zstd layers, which the base image has",
                        expected="Docker 23 or newer", found=f"Docker {version}",
                        cure="use a newer engine, or a base image with gzip layers")


def _reported(store: Store, manifest: str, names: Sequence[str],
              progress: Callable[[int, int], None] | None) -> Iterator[bytes]:
    total, done = export_size(store, manifest, names), 0
    for chunk in export_chunks(store, manifest, names):
        yield chunk
        done += len(chunk)
        if progress is not None:
            progress(done, total)
