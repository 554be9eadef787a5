"""Running the front door as a user does: a project directory of its own, a process of its own, a store of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.project import without_gpu

HERE = Path(__file__).resolve().parents[2]

#: Debian trixie with Python 3.13 and a Triton server: small, and not the distribution of thor.
MINI = without_gpu("a small target for tests", suite="trixie", python="3.13", glibc="2.41") + """\
packages:
  python3: the interpreter that the tests start
  libpython3.13: the Triton stub links it
  libstdc++6: the Triton server links it
  libnuma1: the Triton server links it
triton:
  version: "0.7.0"
wheels:
  requirements: [click==8.1.8]
image:
  user: {name: tester, uid: 1000, gid: 1000}
  environment:
    PATH: /usr/local/bin:/usr/bin:/bin
    GREETING: hello
  command: [tritonserver, --model-repository=/models]
  ports: [8000]
waivers:
  - check: advisories
    subject: "triton-inference-server 2.51.0: *"
    reason: a test, which serves nobody
"""


def make_project(root: Path, **targets: str) -> Path:
    """A checkout's data without its code: targets, the list of indexes, templates and tables."""
    (root / "targets").mkdir(parents=True)
    shutil.copy(HERE / "targets" / "indexes.yaml", root / "targets")
    for part in ("templates", "triton", "vllm"):
        shutil.copytree(HERE / part, root / part)
    for name, text in targets.items():
        (root / "targets" / f"{name}.yaml").write_text(text)
    return root


def committed_project(root: Path) -> Path:
    """A project in a directory of its own with the committed targets and locks."""
    make_project(root)
    for file in (HERE / "targets").iterdir():
        shutil.copy(file, root / "targets")
    return root


RUN = """
import sys
from pathlib import Path
from stages.main import main
sys.exit(main(sys.argv[2:], Path(sys.argv[1])))
"""


def command(root: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-c", RUN, str(root), *arguments]


def environment(store: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("STAGECRAFT_")}
    return {**kept, "STAGECRAFT_STORE": str(store), "PYTHONPATH": str(HERE), **more}


def doit(root: Path, store: Path, *arguments: str, rc: int | None = 0,
         **more: str) -> subprocess.CompletedProcess[str]:
    """Run one command line of the front door on the project `root`; `rc` None takes any exit code."""
    done = subprocess.run(command(root, *arguments), cwd=root, env=environment(store, **more), capture_output=True,
                          text=True, check=False)
    if rc is not None:
        assert done.returncode == rc, f"{arguments} gave {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def manifest_of(root: Path, target: str) -> str:
    """The digest that the result link of a target names."""
    import json

    index = json.loads((root / f"result-{target}" / "index.json").read_text())
    return str(index["manifests"][0]["digest"])
