"""The image's entrypoint with the real server: bound as the target says, with the dangerous APIs closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.front import MINI, doit, make_project
from tests.support.sandbox import run_in_image

CLIENT = r"""
import json, os, signal, subprocess, time, urllib.error, urllib.request

os.makedirs("/tmp/models")
server = subprocess.Popen(["/opt/stagecraft/entrypoint", "tritonserver", "--model-repository=/tmp/models"],
                          stdout=open("/tmp/log", "w"), stderr=subprocess.STDOUT)

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

for _ in range(300):
    if status("/v2/health/ready") == 200 or server.poll() is not None:
        break
    time.sleep(0.1)
listening = [line.split()[1:4:2] for table in ("tcp", "tcp6") for line in open("/proc/net/" + table).readlines()[1:]]
# gRPC listens on the IPv6 form of an IPv4 address.
ports = {address.split(":")[1]: address.split(":")[0].replace("0000000000000000FFFF0000", "")
         for address, state in listening if state == "0A"}
found = {
    "ready": status("/v2/health/ready"),
    "metadata": status("/v2"),
    "shared memory": status("/v2/systemsharedmemory/region/x/register", "POST"),
    "load": status("/v2/repository/models/x/load", "POST"),
    "bound": sorted({ports.get(f"{port:04X}", "") for port in (8000, 8001, 8002)}),
    "key told": "closed=" in open("/tmp/log").read(),
}
server.send_signal(signal.SIGTERM)
found["stopped"] = server.wait(60)
print(json.dumps(found, sort_keys=True))
if found["ready"] != 200:
    print(open("/tmp/log").read())
"""


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("entrypoint")
    text = MINI.replace("trixie", "bookworm").replace("3.13", "3.11").replace("2.41", "2.36")
    root = make_project(base / "project", mini=text)
    doit(root, base / "store", "lock:mini")
    doit(root, base / "store", "build:mini")
    return root / "result-mini"


def test_server_is_ready_and_its_dangerous_apis_are_closed(layout: Path) -> None:
    assert run_in_image(layout, "python3", "-c", CLIENT) == (
        '{"bound": ["0100007F"], "key told": false, "load": 403, "metadata": 200, "ready": 200, '
        '"shared memory": 403, "stopped": 0}\n')


def test_other_commands_run_as_they_are(layout: Path) -> None:
    assert run_in_image(layout, "/opt/stagecraft/entrypoint", "echo", "-n", "as it is") == "as it is"
