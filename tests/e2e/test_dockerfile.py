"""`dockerfile:<target>` with a real `docker build`: the same files as our own image has, and a server that answers."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache.store import Store
from stages.made_files import Made
from tests.support.docker_engine import running_engine
from tests.support.front import HERE, MINI, doit, make_project
from tests.support.sandbox import extract

BOOKWORM = MINI.replace("trixie", "bookworm").replace("3.13", "3.11").replace("2.41", "2.36")
SERVER = BOOKWORM.replace("click==8.1.8", "numpy==1.26.4").replace("GREETING: hello", "GREETING: 'a $HOME \"b\" \\c'")
#: Docker Hub's two images stand in: a Debian with apt, and a Python with pip.
TOOLS = """\
format: stagecraft.target.v1
description: what a Dockerfile starts from
platform: linux/amd64
device: {name: no GPU, compute_capability: none, arch_list: none, cuda: none, driver_floor: none, memory: none}
base: {debian: {suite: bookworm}}
python: {version: "3.11", glibc: "2.36"}
packages: {apt: installs packages, python3-minimal: an interpreter, python3: all of its library}
wheels: {requirements: [pip]}
"""
#: What is below these directories, by content; links by their targets.
LISTED = r"""
import hashlib, json, os, sys
found = {}
for top in sys.argv[1:]:
    for place, _, names in os.walk(top):
        for name in names:
            path = os.path.join(place, name)
            found[path.lstrip("/")] = os.readlink(path) if os.path.islink(path) else \
                hashlib.sha256(open(path, "rb").read()).hexdigest() + f" {os.stat(path).st_mode & 0o777:o}"
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = make_project(tmp_path_factory.mktemp("dockerfile") / "project", mini=SERVER, tools=TOOLS)
    (found / "requirements").mkdir()
    (found / "requirements/run.txt").write_bytes((HERE / "requirements/run.txt").read_bytes())
    for target in ("mini", "tools"):
        doit(found, found / "store", f"lock:{target}")
        doit(found, found / "store", f"build:{target}")
    return found


@contextmanager
def files_of(root: Path, directory: Path) -> Iterator[str]:
    """A server that has the locked packages below /debian, the wheels and uv below /wheels: its address."""
    store, lock = Store.open(root / "store"), json.loads((root / "targets/mini.lock.json").read_text())
    for part, entries in (("debian", lock["debs"]), ("wheels", [*lock["wheels"], *lock["files"]])):
        for entry in entries:
            place = directory / part / (entry["file"] if part == "debian" else entry["file"].rpartition("/")[2])
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(store.path_of("sha256:" + entry["sha256"]), place)
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
                    "--only-binary", ":all:", "--dest", str(directory / "wheels"), "-r",
                    str(root / "serve-mini/image/tools.txt")], check=True, capture_output=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing."""

    handler = functools.partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_files_of_an_earlier_run_are_not_copied_into_the_image(root: Path) -> None:
    out = root / "serve-mini"
    doit(root, root / "store", "dockerfile:mini")
    Made(out).write({"image/rootfs/opt/old/file": b"", "models/m/config.pbtxt": b""})
    doit(root, root / "store", "dockerfile:mini")
    assert not (out / "image/rootfs/opt/old").exists()
    assert (out / "image/rootfs/opt/stagecraft/entrypoint").exists()
    assert (out / "models/m/config.pbtxt").exists()


def test_docker_build_gives_the_same_files_and_a_server_that_answers(root: Path, tmp_path: Path) -> None:
    doit(root, root / "store", "dockerfile:mini")
    made = root / "serve-mini/image"
    models = tmp_path / "models"
    (models / "echo/1").mkdir(parents=True)
    (models / "echo/config.pbtxt").write_text("""
        backend: "python"
        input [ { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] } ]
        output [ { name: "text_output" data_type: TYPE_STRING dims: [ 1 ] } ]
        instance_group [ { kind: KIND_CPU } ]
    """)
    (models / "echo/1/model.py").write_text(
        "import triton_python_backend_utils as u\n"
        "class TritonPythonModel:\n"
        "    def execute(self, requests):\n"
        "        return [u.InferenceResponse([u.Tensor('text_output', u.get_input_tensor_by_name(r, 'text_input')"
        ".as_numpy())]) for r in requests]\n")
    with (running_engine(tmp_path / "engine", storage_driver="overlay2") as engine,
          files_of(root, tmp_path / "files") as address):
        doit(root, root / "store", "load:tools", DOCKER_HOST=engine.host)
        arguments = {"BASE": "stagecraft/tools", "PIP": "stagecraft/tools", "PIP_NO_INDEX": "1",
                     "PIP_FIND_LINKS": f"{address}/wheels/", "ARCHIVE_DEBIAN": f"{address}/debian"}
        built = subprocess.run(
            ["/usr/bin/docker", "build", "--network", "host", "--progress", "plain", "--tag", "made",
             *(word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")), str(made)],
            env={**engine.environ, "DOCKER_BUILDKIT": "1"}, capture_output=True, text=True, check=False, timeout=600)
        assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
        image = engine.client.images.get("made")
        ours = json.loads(subprocess.run(
            ["skopeo", "inspect", "--config", f"oci:{root / 'result-mini'}"], capture_output=True, check=True).stdout)
        for key in ("Env", "Entrypoint", "Cmd", "User", "ExposedPorts"):
            left, right = image.attrs["Config"][key], ours["config"][key]
            assert (left if isinstance(left, str) else sorted(left)) == (
                right if isinstance(right, str) else sorted(right)), key
        assert ours["config"]["Labels"].items() <= image.labels.items()
        container = engine.client.containers.run("made", detach=True, network_mode="none",
                                                 volumes={str(models): {"bind": "/models", "mode": "ro"}})
        try:
            for _ in range(100):
                health = container.exec_run(["/opt/stagecraft/healthcheck"])
                if health.exit_code == 0:
                    break
            assert health.output == b"healthy: echo answers\n", container.logs().decode()
            site = "/usr/local/lib/python3.11/dist-packages/numpy"
            theirs = json.loads(container.exec_run(["python3", "-c", LISTED, "/opt", site], user="root").output)
            versions = dict(line.split() for line in container.exec_run(
                ["dpkg-query", "-W", "-f", "${Package} ${Version}\\n"]).output.decode().splitlines())
        finally:
            container.kill()
    tree = tmp_path / "tree"
    tree.mkdir()
    extract(root / "result-mini", tree)
    own = json.loads(subprocess.run([sys.executable, "-c", LISTED, "opt", site[1:]], cwd=tree, check=True,
                                    capture_output=True).stdout)
    assert {path: text for path, text in theirs.items() if "__pycache__" not in path} == own
    assert len(own) > 300
    lock = json.loads((root / "targets/mini.lock.json").read_text())
    assert {deb["name"]: deb["version"] for deb in lock["debs"]}.items() <= versions.items()


def test_every_pin_is_there_and_no_address(root: Path) -> None:
    doit(root, root / "store", "dockerfile:mini", "out=elsewhere")
    made = root / "elsewhere/image"
    lock = json.loads((root / "targets/mini.lock.json").read_text())
    assert {line.split()[2] for line in (made / "debs.txt").read_text().splitlines()} == {
        deb["sha256"] for deb in lock["debs"]}
    assert (made / "wheels.txt").read_text() == "".join(
        f"{wheel['name']}=={wheel['version']} --hash=sha256:{wheel['sha256']}\n" for wheel in lock["wheels"])
    assert lock["files"][0]["sha256"] in (made / "server.txt").read_text()
    assert "uv==" in (made / "tools.txt").read_text()
    for file in made.iterdir():
        assert file.is_dir() or b"://" not in file.read_bytes(), file
    entrypoint = made / "rootfs/opt/stagecraft/entrypoint"
    assert entrypoint.stat().st_mode & 0o777 == 0o755
    assert hashlib.sha256(entrypoint.read_bytes()).hexdigest() in json.dumps(_listed(root))


def _listed(root: Path) -> list[str]:
    """Digests of the files in our own image's entrypoint layer."""
    found: list[str] = []
    for layer in (root / "result-mini/blobs/sha256").iterdir():
        names = subprocess.run(["tar", "-tf", str(layer)], capture_output=True, text=True, check=False).stdout
        if "opt/stagecraft/entrypoint" in names.splitlines():
            content = subprocess.run(["tar", "-xOf", str(layer), "opt/stagecraft/entrypoint"], capture_output=True,
                                     check=True).stdout
            found.append(hashlib.sha256(content).hexdigest())
    return found
