"""A Docker engine of our own for a test: own data, socket and containerd; no bridge, no iptables. Needs root.

And qemu for foreign containers: a binary registered with the kernel's binfmt_misc under a name of our own.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.errors

from tests.support.registry import stop

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_MACHINES = {"aarch64": 183, "x86_64": 62}


@dataclass(frozen=True)
class Engine:
    """A running engine: `host` is what DOCKER_HOST would be; `environ` holds it and no other configuration."""

    host: str
    environ: dict[str, str]
    client: docker.DockerClient
    version: str

    def run(self, image: str, command: list[str], **options: object) -> str:
        """Run a container without network; its standard output."""
        output: bytes = self.client.containers.run(image, command, network_mode="none", remove=True, stdout=True,
                                                   stderr=True, **options)
        return output.decode()


@contextmanager
def running_engine(directory: Path, *, storage_driver: str = "vfs", program: str = "/usr/sbin/dockerd",
                   ) -> Iterator[Engine]:
    """A dockerd (Debian's docker.io) with all its files below `directory` and a short-named temporary directory.

    Args:
        storage_driver: `vfs` works on any file system; for large images `overlay2` needs one that is no overlay itself.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _mount_cgroups()
    with tempfile.TemporaryDirectory(prefix="dck-") as short:  # a socket's path has at most 107 bytes
        state = Path(short)
        socket, config = state / "s", state / "daemon.json"
        config.write_text("{}")  # not the machine's own /etc/docker/daemon.json
        command = [program, "--config-file", str(config), "--host", f"unix://{socket}", "--data-root",
                   str(directory / "data"), "--exec-root", str(state / "exec"), "--pidfile", str(state / "pid"),
                   "--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
                   "--storage-driver", storage_driver, "--log-level", "warn"]
        environ = dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin:/sbin:/usr/bin")
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        try:
            client = _connected(f"unix://{socket}", process, directory / "log")
            try:
                yield Engine(f"unix://{socket}", {"DOCKER_HOST": f"unix://{socket}", "HOME": short, "PATH":
                                                  os.environ["PATH"]}, client, client.version()["Version"])
            finally:
                client.close()
        finally:
            stop(process)
            _unmount_below(directory, state)
            shutil.rmtree(directory / "data", ignore_errors=True)


def _connected(host: str, process: subprocess.Popen[bytes], log: Path) -> docker.DockerClient:
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        try:
            client = docker.DockerClient(base_url=host, timeout=600)
            client.ping()
            return client
        except (docker.errors.DockerException, OSError):
            time.sleep(0.2)
    raise AssertionError("dockerd did not start:\n" + log.read_text(errors="replace")[-4000:])


def _mount_cgroups() -> None:
    """runc needs a cgroup file system; a container without one is given one (version 2)."""
    root = Path("/sys/fs/cgroup")
    if not any(root.iterdir()):
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", str(root)], check=True)


def _unmount_below(*directories: Path) -> None:
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        place = line.split()[1].encode().decode("unicode_escape")
        if any(place.startswith(f"{directory}/") for directory in directories):
            subprocess.run(["umount", "-l", place], check=False)


@contextmanager
def registered_qemu(binary: Path, machine: str = "aarch64") -> Iterator[None]:
    """Let the kernel run programs of a foreign machine by a static qemu (`qemu-user` of Debian trixie, unpacked).

    Flags `PFO`: the interpreter is opened now (so it works inside any root), is told argv[0] and gets the program open.
    An entry for that machine that is there already is put out of force meanwhile.
    """
    if not (_BINFMT / "register").exists():
        if shutil.which("modprobe"):
            subprocess.run(["modprobe", "binfmt_misc"], check=False, capture_output=True)
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)], check=True)
    name = f"stagecraft-{machine}-{os.getpid()}"
    others = [path for path in _BINFMT.iterdir() if machine in path.name and "enabled" in path.read_text()]
    for path in others:
        path.write_text("0")
    (_BINFMT / "register").write_bytes(binfmt_line(name, binary, machine))
    try:
        yield
    finally:
        (_BINFMT / name).write_text("-1")
        for path in others:
            path.write_text("1")


def binfmt_line(name: str, binary: Path, machine: str) -> bytes:
    """The line for /proc/sys/fs/binfmt_misc/register: ELF, 64 bit, little endian, programs and shared objects."""
    magic = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, _MACHINES[machine])
    mask = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + b"\xfe\xff\xff\xff"
    escaped = ["".join(f"\\x{byte:02x}" for byte in part) for part in (magic, mask)]
    return f":{name}:M::{escaped[0]}:{escaped[1]}:{binary}:PFO".encode()
