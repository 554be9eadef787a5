"""Executor `docker`: the same through a Docker engine's API: a container of an image made of the layers.

The image is loaded by the digest of its configuration and removed afterwards; nothing is pulled, and the container has
no network. The engine may be on another machine: inputs and outputs travel through its API. `/`, owned by root, is
read-only; `/inputs` belongs to root too; `/build` and `/tmp` are volumes that go with the container.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache import canonical, tar
from cache.decompress import decompressed
from cache.errors import StageError, ToolError
from cache.store import Store
from cache.untar import entries
from executors import emulator as emulation
from executors.emulator import Emulator
from executors.limits import memory_reason
from executors.process import HOSTNAME, PLACES, USER, Outcome, Process, collect, reason_of

_TICK = 0.2
_TIMEOUT = 1800  # seconds without a word from the engine while it unpacks
_LINE = 64 << 10
#: Docker's names of machines.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Docker:
    """Runs processes in an engine; `client` is one of the Docker SDK; `gpu`: with all GPUs of the engine's machine."""

    store: Store
    client: Any
    emulator: Emulator | None = None
    gpu: bool = False

    @classmethod
    def connected(cls, store: Store, emulator: Emulator | None = None) -> Docker:
        """With the engine of `$DOCKER_HOST`, else the default socket.

        Raises:
            ToolError: none can be reached.
        """
        import docker
        import requests
        from docker.errors import DockerException

        try:
            client = docker.from_env(timeout=_TIMEOUT)
            client.ping()
        except (DockerException, requests.RequestException, OSError) as error:
            raise ToolError("no Docker engine can be reached", found=str(error).partition("\n")[0],
                            cure="start Docker, or set DOCKER_HOST") from error
        return cls(store, client, emulator)

    def run(self, process: Process, scratch: Path, *, log: Callable[[str], None] = lambda line: None,
            check: Callable[[], None] = lambda: None) -> Outcome:
        """See `executors.process.Executor`."""
        import requests
        from docker.errors import DockerException

        if process.kept:
            raise ToolError("an engine cannot write directories of this machine", found=", ".join(process.kept),
                            cure="use the sandbox: ./doit doctor says what it lacks here")
        (scratch / "build").mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.ExitStack() as stack:
                how = self._emulated(process, stack)
                image = self._load(process, log, check)
                stack.callback(self._forget, image)
                container = self._create(process, image)
                stack.callback(_quietly, lambda: container.remove(force=True, v=True))
                _put(container, "/inputs", process.inputs)
                _put(container, "/build", {path.name: path for path in (scratch / "build").iterdir()})
                return self._watch(process, container, scratch, (*how, "memory and processes limited by Docker"), log,
                                   check)
        except (DockerException, requests.RequestException) as error:
            raise ToolError("the Docker engine broke off", found=str(error).partition("\n")[0],
                            cure="look at its log") from error

    def _emulated(self, process: Process, stack: contextlib.ExitStack) -> tuple[str, ...]:
        info = self.client.info()
        if info["Architecture"] in (process.machine, _ARCHITECTURES.get(process.machine)):
            return ()
        if self.emulator is None or info.get("KernelVersion") != os.uname().release or not emulation.host_registers():
            raise ToolError(f"the Docker engine's machine cannot run {process.machine} programs",
                            found=str(info["Architecture"]),
                            cure="use an engine on this machine, as root, or the sandbox")
        stack.enter_context(emulation.registered(self.emulator))
        return (f"emulator {self.emulator.version} registered with the host for the time of the run",)

    # -- the image --------------------------------------------------------------------------------

    def _load(self, process: Process, log: Callable[[str], None], check: Callable[[], None]) -> str:
        """The image's id in the engine."""
        places = _places()
        layers = [(self.store.path_of(digest).stat().st_size, digest) for digest in process.layers]
        diff_ids = [*(_diff_id(self.store, digest) for digest in process.layers), canonical.sha256(places)]
        config = canonical.dumps({
            "architecture": _ARCHITECTURES.get(process.machine, process.machine), "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        name = hashlib.sha256(config).hexdigest()
        files = [f"{digest[7:]}.tar" for digest in process.layers] + ["places.tar"]
        manifest = canonical.dumps([{"Config": f"{name}.json", "RepoTags": [f"stagecraft-run:{name[:24]}"],
                                     "Layers": files}])

        def chunks() -> Iterator[bytes]:
            for path, data in ((f"{name}.json", config), ("manifest.json", manifest), ("places.tar", places)):
                yield tar.header(path.encode(), tar.FILE, 0o644, size=len(data)) + data + tar.padding(len(data))
            for (size, digest), path in zip(layers, files, strict=False):
                yield tar.header(path.encode(), tar.FILE, 0o644, size=size)
                with self.store.open_blob(digest) as file:
                    while data := file.read(1 << 20):
                        check()
                        yield data
                yield tar.padding(size)
            yield bytes(2 * tar.BLOCK)

        log(f"loading {len(layers)} layers into the Docker engine")
        for message in self.client.api.load_image(chunks()):
            problem = message.get("error") or (message.get("errorDetail") or {}).get("message")
            if problem:
                raise StageError("the Docker engine refuses the root", found=str(problem))
        return str(self.client.images.get(f"stagecraft-run:{name[:24]}").id)

    def _forget(self, image: str) -> None:
        _quietly(lambda: self.client.images.remove(image, force=True))

    # -- the container ----------------------------------------------------------------------------

    def _create(self, process: Process, image: str) -> Any:
        limits = process.limits
        options: dict[str, Any] = {}
        if limits.memory:
            options |= {"mem_limit": limits.memory, "memswap_limit": limits.memory}
        if limits.cpus:
            options["nano_cpus"] = limits.cpus * 10**9
        if limits.pids:
            options["pids_limit"] = limits.pids
        if self.gpu:
            options |= gpu_options(self.client.info())
        return self.client.containers.create(
            image, list(process.command[1:]), entrypoint=[process.command[0]], user=f"{USER}:{USER}",
            working_dir="/build", environment=process.variables(), network_mode="none", hostname=HOSTNAME,
            read_only=True, volumes=["/build", "/tmp", "/inputs"], cap_drop=["ALL"],  # noqa: S108
            security_opt=["no-new-privileges"], stdin_open=False, **options)

    def _watch(self, process: Process, container: Any, scratch: Path, how: tuple[str, ...],
               log: Callable[[str], None], check: Callable[[], None]) -> Outcome:
        from docker.errors import APIError

        lines: queue.Queue[str] = queue.Queue()
        started = time.monotonic()
        stream = container.attach(stream=True, logs=True)
        reader = threading.Thread(target=_read, args=(stream, lines), daemon=True)
        reader.start()
        try:
            container.start()
        except APIError as error:
            said = str(error.explanation or error)
            return Outcome(127, f"cannot start: {said}", time.monotonic() - started, how)
        stopped, last = "", ""
        while True:
            last = _pass_on(lines, log) or last
            container.reload()
            if container.status in ("exited", "dead"):
                break
            try:
                check()
            except BaseException:
                _quietly(container.kill)
                raise
            if process.limits.seconds and time.monotonic() - started > process.limits.seconds:
                stopped = f"time limit ({process.limits.seconds:g} s)"
                _quietly(container.kill)
                break
            time.sleep(_TICK)
        status = int(container.wait()["StatusCode"])
        reader.join(5)
        last = _pass_on(lines, log) or last
        container.reload()
        if not stopped and container.attrs["State"].get("OOMKilled"):
            stopped = memory_reason(process.limits).reason
        for name in process.outputs:
            _get(container, name, scratch / "build")
        return Outcome(None if stopped else status, stopped or reason_of(status), time.monotonic() - started, how,
                       collect(process, scratch / "build"), last)


def gpu_options(info: Mapping[str, Any]) -> dict[str, Any]:
    """What gives a container all GPUs: by CDI where the engine knows NVIDIA's devices, else NVIDIA's runtime.

    Also shared memory as vLLM's processes want it, and the groups that a Jetson's device nodes belong to.

    Raises:
        ToolError: the engine has neither.
    """
    from docker.types import DeviceRequest

    options: dict[str, Any] = {"shm_size": 1 << 30, "group_add": _device_groups()}
    known = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or ()]
    if any(name.startswith("nvidia.com/gpu=") for name in known):
        return options | {"device_requests": [DeviceRequest(driver="cdi", device_ids=["nvidia.com/gpu=all"])]}
    if "nvidia" in (info.get("Runtimes") or {}):
        return options | {"runtime": "nvidia", "device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])]}
    raise ToolError("the Docker engine knows no NVIDIA GPU", where="docker info",
                    expected="the runtime nvidia, or CDI devices nvidia.com/gpu",
                    cure="sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker")


def _device_groups() -> list[str]:
    """Numbers of the groups that the GPU's device nodes of this machine belong to, root's left out."""
    nodes = [path for pattern in ("nvidia*", "nvhost*", "nvmap", "dri/*") for path in Path("/dev").glob(pattern)]
    return sorted({str(path.stat().st_gid) for path in nodes if not path.is_dir()} - {"0"})


def _read(stream: Iterator[bytes], lines: queue.Queue[str]) -> None:
    rest = b""
    with contextlib.suppress(Exception):  # the engine ends the stream as it likes; the container's state tells the end
        for piece in stream:
            *whole, rest = (rest + piece).split(b"\n")
            if len(rest) > _LINE:
                whole, rest = [*whole, rest], b""
            for line in whole:
                lines.put(line.decode("utf-8", "replace").rstrip("\r"))
    if rest:
        lines.put(rest.decode("utf-8", "replace"))


def _pass_on(lines: queue.Queue[str], log: Callable[[str], None]) -> str:
    last = ""
    while True:
        try:
            last = lines.get_nowait()
        except queue.Empty:
            return last
        log(last)


def _quietly(action: Callable[[], Any]) -> None:
    import requests
    from docker.errors import DockerException

    with contextlib.suppress(DockerException, requests.RequestException):
        action()


def _places() -> bytes:
    """The top layer: where volumes are mounted, with the owners that they take over."""
    out = b""
    for name in PLACES:
        own = name in ("build", "tmp")
        mode = 0o1777 if name == "tmp" else 0o755
        out += tar.header(name.encode(), tar.DIRECTORY, mode, uid=USER * own, gid=USER * own)
    out += tar.header(b"tmp/home", tar.DIRECTORY, 0o755, uid=USER, gid=USER)
    return out + bytes(2 * tar.BLOCK)


def _diff_id(store: Store, digest: str) -> str:
    """The digest of a layer without its compression."""
    with store.open_blob(digest) as file:
        if file.read(262)[257:] == b"ustar":
            return digest
        file.seek(0)
        plain, content = decompressed(file, digest), hashlib.sha256()
        while data := plain.read(1 << 20):
            content.update(data)
        return "sha256:" + content.hexdigest()


def _put(container: Any, place: str, files: Any) -> None:
    """Copy files and directories of this machine into a directory of the container, owned by root."""
    import tarfile

    def readable(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = USER if place == "/build" else 0
        member.uname = member.gname = ""
        member.mode = member.mode & 0o755 | (0o555 if member.isdir() or member.mode & 0o100 else 0o444)
        return member

    if files:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, path in sorted(files.items()):
                archive.add(path, name, filter=readable)
        container.put_archive(place, buffer.getvalue())


def _get(container: Any, name: str, work: Path) -> None:
    """Bring one output back, if it is there; what is no plain file is left for `collect` to miss."""
    from docker.errors import NotFound

    try:
        stream, _ = container.get_archive(f"/build/{name}")
    except NotFound:
        return
    for entry in entries(io.BufferedReader(_Stream(stream)), where=f"/build/{name}"):
        if entry.type != "file":
            raise StageError("an output is no plain file", where=f"/build/{name}", found=entry.type)
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for chunk in entry.chunks():
                file.write(chunk)


class _Stream(io.RawIOBase):
    """An iterator of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = iter(pieces), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        data, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)
