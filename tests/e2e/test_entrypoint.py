"""The image's entrypoint with the real server: bound as the target says, with the dangerous APIs closed; a bad model
repository said in one line; and the healthcheck, which sees what the server's own health does not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.compose import compose
from tests.support.docker_engine import running_engine
from tests.support.front import MINI, doit, make_project
from tests.support.sandbox import run_in_image

CLIENT = r"""
import json, os, signal, subprocess, time, urllib.error, urllib.request

os.makedirs("/tmp/models/echo/1")
open("/tmp/models/echo/config.pbtxt", "w").write('''
    backend: "python"
    input [ { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] } ]
    output [ { name: "text_output" data_type: TYPE_STRING dims: [ 1 ] } ]
    instance_group [ { kind: KIND_CPU } ]
''')
open("/tmp/models/echo/1/model.py", "w").write('''
import triton_python_backend_utils as utils

class TritonPythonModel:
    def execute(self, requests):
        return [utils.InferenceResponse([utils.Tensor(
            "text_output", utils.get_input_tensor_by_name(request, "text_input").as_numpy())]) for request in requests]
''')

def start(*more):
    server = subprocess.Popen(["/opt/stagecraft/entrypoint", "tritonserver", "--model-repository=/tmp/models",
                               "--model-control-mode=explicit", "--load-model=*", *more],
                              stdout=open("/tmp/log", "w"), stderr=subprocess.STDOUT)
    for _ in range(300):
        if status("/v2/health/ready") == 200 or server.poll() is not None:
            break
        time.sleep(0.1)
    return server

def health():
    done = subprocess.run(["/opt/stagecraft/healthcheck"], capture_output=True, text=True)
    return [done.returncode, done.stdout.strip() + done.stderr]

def status(path, method="GET", **headers):
    request = urllib.request.Request("http://127.0.0.1:8000" + path, method=method, headers=headers,
                                     data=b"{}" if method == "POST" else None)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0

def bound():
    for _ in range(300):
        listening = [line.split()[1:4:2] for table in ("tcp", "tcp6")
                     for line in open("/proc/net/" + table).readlines()[1:]]
        # gRPC listens on the IPv6 form of an IPv4 address.
        ports = {address.split(":")[1]: address.split(":")[0].replace("0000000000000000FFFF0000", "")
                 for address, state in listening if state == "0A"}
        if f"{8002:04X}" in ports:  # the last to be opened, after the server is ready
            break
        time.sleep(0.1)
    return sorted({ports.get(f"{port:04X}", "") for port in (8000, 8001, 8002)})

server = start()
found = {
    "ready": status("/v2/health/ready"),
    "metadata": status("/v2"),
    "shared memory": status("/v2/systemsharedmemory/region/x/register", "POST"),
    "load": status("/v2/repository/models/x/load", "POST"),
    "bound": bound(),
    "health": health(),
    "port in use": subprocess.run(["/opt/stagecraft/entrypoint", "--model-repository=/tmp/models"],
                                  capture_output=True, text=True).stderr,
    "key told": "closed=" in open("/tmp/log").read(),
}
server.send_signal(signal.SIGTERM)
found["stopped"] = server.wait(60)
server = start(*(f"--{service}-address=0.0.0.0" for service in ("http", "grpc", "metrics")))
found["all addresses as compose says"] = all(set(address) == {"0"} for address in bound())
found["health as compose says"] = health()
for name in filter(str.isdigit, os.listdir("/proc")):
    if open(f"/proc/{name}/cmdline").read().split("\0")[0].endswith("triton_python_backend_stub"):
        os.kill(int(name), signal.SIGKILL)
found["ready without its stub"] = status("/v2/health/ready")
found["health without its stub"] = health()[0]
server.kill()  # it would wait for its stub
print(json.dumps(found, sort_keys=True))
if found["ready"] != 200:
    print(open("/tmp/log").read())
"""


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("entrypoint")
    text = MINI.replace("trixie", "bookworm").replace("3.13", "3.11").replace("2.41", "2.36")
    text = text.replace("click==8.1.8", "numpy==1.26.4")  # which the Python backend asks for
    text = text.replace("command: [tritonserver, --model-repository=/models]", f"command: {json.dumps(COMMAND)}")
    root = make_project(base / "project", mini=text)
    doit(root, base / "store", "lock:mini")
    doit(root, base / "store", "build:mini")
    return root / "result-mini"


def test_server_is_ready_and_its_dangerous_apis_are_closed(layout: Path) -> None:
    found, _, log = run_in_image(layout, "python3", "-c", CLIENT).partition("\n")
    assert json.loads(found) == {
        "bound": ["0100007F"], "all addresses as compose says": True,
        "health as compose says": [0, "healthy: echo answers"],
        "key told": False, "load": 403, "metadata": 200, "ready": 200, "shared memory": 403,
        "stopped": 0, "health": [0, "healthy: echo answers"],
        "port in use": "entrypoint: 127.0.0.1 port 8000 is in use: stop who has it, or take another one "
                       "(--http-port, --http-address)\n",
        "ready without its stub": 200, "health without its stub": 1}, log


KEY = r"""
import json, os, subprocess, sys, time, urllib.error, urllib.request

os.makedirs("/tmp/models")
command = ["/opt/stagecraft/entrypoint", "--model-repository=/tmp/models", "--model-control-mode=explicit"]

def status(path, **headers):
    request = urllib.request.Request("http://127.0.0.1:8000" + path, method="POST", headers=headers, data=b"{}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0

refused = [subprocess.run(command, env={**os.environ, "STAGECRAFT_CONTROL_KEY": key}, capture_output=True, text=True)
           for key in ("short", "$(touch /tmp/made)x", "white space in it")]
server = subprocess.Popen(command, env={**os.environ, "STAGECRAFT_CONTROL_KEY": "a.key-of_8"},
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
for _ in range(300):
    if status("/v2/repository/index") or server.poll() is not None:
        break
    time.sleep(0.1)
load = "/v2/repository/models/x/load"
print(json.dumps({
    "refused": sorted({(done.returncode, done.stderr) for done in refused}), "made": os.path.exists("/tmp/made"),
    "with": status(load, closed="a.key-of_8"), "with another": status(load, closed="a.key-of_9"),
    "without": status(load), "handed on": b"STAGECRAFT" in open(f"/proc/{server.pid}/environ", "rb").read()}))
server.kill()
"""


def test_who_gave_a_key_opens_the_closed_apis_with_it(layout: Path) -> None:
    assert json.loads(run_in_image(layout, "python3", "-c", KEY)) == {
        "refused": [[78, "entrypoint: STAGECRAFT_CONTROL_KEY is no key: 8 or more letters, digits, dots, hyphens, "
                         "underscores\n"]],
        "made": False, "with": 500, "with another": 403, "without": 403, "handed on": False}


BAD = r"""
mkdir -p /tmp/models/m/1
try() { /opt/stagecraft/entrypoint "$@" 2>&1; echo "= $?"; }
try tritonserver --model-repository=/models
echo '{}' > /tmp/models/m/1/model.json
echo 'backend: "onnx"' > /tmp/models/m/config.pbtxt
try tritonserver --model-repository=/tmp/models
echo 'max_batch_size: 1' > /tmp/models/m/config.pbtxt
try --model-repository=/tmp/models
try tritonserver
/opt/stagecraft/entrypoint tritonserver --help > /tmp/help 2>&1
echo "= $?" $(grep -c -e --http-restricted-api /tmp/help)
"""


def test_a_bad_repository_is_one_line_and_an_exit_code(layout: Path) -> None:
    lines = run_in_image(layout, "sh", "-c", BAD).splitlines()
    assert lines[0] == "entrypoint: no model repository: /models does not exist here; mount one: -v DIR:/models:ro"
    assert lines[1] == "= 66"
    assert lines[2].startswith("entrypoint: model m: /tmp/models/m/config.pbtxt asks for the backend 'onnx', which this"
                               " image does not have (has: ")
    assert "python" in lines[2]
    assert lines[3] == "= 78"
    assert lines[4:] == ['entrypoint: model m: /tmp/models/m/config.pbtxt names no backend, as in backend: "vllm"',
                         "= 78", "entrypoint: no --model-repository was given: the server has nothing to serve", "= 66",
                         "= 1 2"]


COMMAND = ["tritonserver", "--model-repository=/models", "--http-port=18750", "--grpc-port=18751",
           "--metrics-port=18752", "--model-control-mode=explicit", "--load-model=*"]
#: Answers with what it finds where compose puts things; and remembers it in the cache.
MODEL = r"""
import os
import numpy
import triton_python_backend_utils as utils

class TritonPythonModel:
    def initialize(self, arguments):
        with open(os.environ["HF_TOKEN_PATH"]) as file:
            self.token = file.read()
        with open(os.path.expanduser("~/seen"), "a") as file:
            file.write(self.token)

    def execute(self, requests):
        text = f"{self.token} {os.environ['https_proxy']} {os.getuid()}"
        return [utils.InferenceResponse([utils.Tensor("text_output", numpy.array([text.encode()], object))])
                for _ in requests]
"""
ASK = r"""
import urllib.request as u
url = "http://127.0.0.1:18750/v2/models/echo/generate"
print(u.build_opener(u.ProxyHandler({})).open(url, b'{"text_input": ""}').read().decode())
"""
KILL = r"""
import os, signal
for name in filter(str.isdigit, os.listdir("/proc")):
    if open(f"/proc/{name}/cmdline").read().split("\0")[0].endswith("triton_python_backend_stub"):
        os.kill(int(name), signal.SIGKILL)
"""


def test_compose_file_serves_and_knows_when_it_does_not(layout: Path, tmp_path: Path) -> None:
    """With docker-compose and a Docker engine: the secret is read, the cache written, the healthcheck right."""
    root, out = layout.parent, tmp_path / "out"
    store = root.parent / "store"
    doit(root, store, "compose:mini", "network=host", f"out={out}")
    (out / "hf_token").write_text("hush")
    (out / "hf_token").chmod(0o644)
    (out / "models/echo/1").mkdir(parents=True)
    (out / "models/echo/1/model.py").write_text(MODEL)
    (out / "models/echo/config.pbtxt").write_text(
        CLIENT.partition("write('''")[2].partition("'''")[0])
    over = tmp_path / "often.yaml"
    over.write_text(json.dumps({"services": {"triton": {"healthcheck": {"interval": "1s", "start_period": "20s"}}}}))
    with running_engine(tmp_path / "engine", storage_driver="overlay2") as engine:
        doit(root, store, "load:mini", DOCKER_HOST=engine.host)
        variables = {"DOCKER_HOST": engine.host, "https_proxy": "http://nobody:1"}
        up = compose(out / "compose.yaml", "up", "-d", over=over, **variables)
        assert up.returncode == 0, up.stderr
        container = engine.client.containers.list(all=True)[0]
        try:
            assert health(container, "healthy") == "healthy", container.logs().decode()
            asked = container.exec_run(["python3", "-c", ASK]).output.decode()
            assert json.loads(asked)["text_output"] == "hush http://nobody:1 1000"
            assert container.exec_run(["cat", "/var/cache/stagecraft/seen"]).output == b"hush"
            assert container.exec_run(["sh", "-c", ": > /models/echo/x"]).exit_code != 0
            container.exec_run(["python3", "-c", KILL])
            assert health(container, "unhealthy") == "unhealthy"
            last = container.attrs["State"]["Health"]["Log"][-1]["Output"]
            assert last.startswith("unhealthy: echo: ")
        finally:
            container.kill()
            compose(out / "compose.yaml", "down", "--volumes", over=over, **variables)


def health(container: Any, wanted: str) -> str:
    """What Docker's healthcheck says, at the latest after a minute and a half."""
    end = time.monotonic() + 90
    while True:
        container.reload()
        found = str(container.attrs["State"].get("Health", {}).get("Status", ""))
        if found == wanted or container.status == "exited" or time.monotonic() > end:
            return found
        time.sleep(0.3)


def test_other_commands_run_as_they_are(layout: Path) -> None:
    assert run_in_image(layout, "/opt/stagecraft/entrypoint", "echo", "-n", "as it is") == "as it is"
