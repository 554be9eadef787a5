"""`smoke:<target>`: the built image's server, started and asked in an executor: a table of what works.

`triton/smoke/driver.py` runs inside, as the image's user would start it, without network; the model is made on the spot
(`tiny_model.py`). Where vLLM's device code cannot run, `standin.py` plays the engine, and the report says so.
Format `stagecraft.smoke-report.v1`: docs/formats/smoke-report.md.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cache.errors import GateError, InputError, StagecraftError, ToolError
from cache.layer import layer_of
from checks.facts import environment, machine
from executors import trees
from executors.process import Executor, Limits, Outcome, Process

if TYPE_CHECKING:
    from stages.project import Project
    from stages.tasks import Session

FORMAT = "stagecraft.smoke-report.v1"
#: What a case may come to. Skipped is not passed.
STATES = ("passed", "skipped", "failed")
#: The backend's directory in the image, and the files that the image's Python gets.
BACKEND = "opt/tritonserver/backends/vllm"
FILES = ("driver.py", "asking.py", "cases.py", "processes.py")
MODEL = "tiny"
#: Seconds and GiB of the whole run, unless the user says otherwise; the stand-in needs less.
SECONDS, MEMORY = 900, 12
STAND_IN = "stand-in"

#: Beside the image's environment. No network, no use of the one GiB of a KV cache that vLLM takes for little.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
                # /sys is not there: which CPUs belong together is not known.
                "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
#: A layer of bytecode is as good; without one each of vLLM's processes would compile all that it imports.
_COMPILED = {"PYTHONPYCACHEPREFIX": "/tmp/pycache"}  # noqa: S108
_CPUS = "sys/devices/system/cpu"
_LAST_LINES = 20
#: The driver's own words, Triton's information and its tables.
_NOT_TELLING = re.compile(r"smoke: |I\d{4} |[+|]|\s*$")
_LOG_BYTES = 64 << 20
_RESULT_BYTES = 1 << 20


@dataclass(frozen=True)
class Options:
    """What the user chose.

    Attributes:
        executor: `sandbox` or `docker`; empty: the first that works.
        on_device: with the device's GPU, in Docker.
        stand_in: without vLLM even where it could run.
        seconds, memory: limits of the whole run, the second in GiB; 0: as this module thinks.
    """

    executor: str = ""
    on_device: bool = False
    stand_in: bool = False
    seconds: int = 0
    memory: int = 0

    def __post_init__(self) -> None:
        if self.executor not in ("", "sandbox", "docker"):
            raise InputError("no such executor", where="--executor", expected="sandbox or docker", found=self.executor)
        if self.on_device and (self.stand_in or self.executor == "sandbox"):
            raise InputError("--on-device runs vLLM with the GPU, in Docker", where="--on-device",
                             found="--stand-in" if self.stand_in else "--executor sandbox",
                             cure="leave out one of the two")
        for name in ("seconds", "memory"):
            if getattr(self, name) < 0:
                raise InputError("a limit is a positive number", where=f"--{name}", found=str(getattr(self, name)))


@dataclass(frozen=True)
class Case:
    """What one case came to; `message` says what was seen, `seconds` what it took."""

    case: str
    state: str
    message: str
    seconds: float


@dataclass(frozen=True)
class SmokeReport:
    """All cases of a run.

    Attributes:
        engine: `vLLM 0.32.0`, or `stand-in`.
        server: `Triton 0.7.0` as the target names it.
        how: the executor, and in words what it did.
        limit: the limit that ended the run; empty if none did.
        log: file with all that the server said.
        last: its last lines.
    """

    target: str
    engine: str
    server: str
    how: tuple[str, ...]
    cases: tuple[Case, ...]
    seconds: float
    limit: str = ""
    log: str = ""
    last: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.state == "failed")

    @property
    def ready_seconds(self) -> float | None:
        """From the server's start until its model was ready."""
        return next((case.seconds for case in self.cases if (case.case, case.state) == ("start", "passed")), None)

    def counts(self) -> dict[str, int]:
        found = collections.Counter(case.state for case in self.cases)
        return {state: found[state] for state in STATES}

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "target": self.target, "passes": not (self.failed or self.limit),
                "engine": self.engine, "server": self.server, "how": list(self.how), "limit": self.limit,
                "ready_seconds": self.ready_seconds, "seconds": round(self.seconds, 3), "counts": self.counts(),
                "cases": [vars(case) for case in self.cases], "log": self.log}

    def error(self) -> StagecraftError | None:
        """What ends the command: a case that failed, or a limit that ended the run before the end."""
        if self.failed and not self.limit:
            return GateError(f"{len(self.failed)} of {len(self.cases)} cases failed for {self.target}",
                             where=self.log, found="\n".join(f"{one.case}: {one.message}" for one in self.failed),
                             cure=f"the server's own words: {self.log}")
        if self.limit:
            return ToolError(f"the smoke test of {self.target} was ended by a limit", where=self.log, found=self.limit,
                             cure=f"./doit smoke:{self.target} --memory GIB --seconds N, or a larger machine")
        return None


# -- what runs --------------------------------------------------------------------------------------------------------


def load_tool(project: Project, name: str) -> ModuleType:
    """A module of `triton/smoke/`, by its path: that directory is no package."""
    path = project.root / "triton" / "smoke" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"stagecraft_smoke_{name}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise InputError("a file of the repository is missing", where=str(path), cure="restore it from version control")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def needs_stand_in(project: Project, target: str, options: Options) -> bool:
    """Whether vLLM cannot run here: it is built for another machine, or for a GPU that the sandbox does not have."""
    if options.on_device:
        return False
    data = project.target(target).data
    return options.stand_in or machine(data) != os.uname().machine or data["device"]["compute_capability"] != "none"


def given(project: Project, directory: Path, stand_in: bool) -> dict[str, Any]:
    """Write what the run gets below `directory`: programs, model, model repository. Returns the driver's plan."""
    tiny = load_tool(project, "tiny_model")
    shape = tiny.Shape()
    directory.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(project.root / "triton" / "smoke" / name, directory / name)
    inside = "/inputs/smoke"
    tiny.write_model(directory / "model", shape)
    more: dict[str, Any] = {"standin": {"delay": 0.01}} if stand_in else {}
    tiny.write_repository(directory / "repository", MODEL, tiny.engine_arguments(f"{inside}/model", shape, **more),
                          **({"ENGINE": "standin"} if stand_in else {}))
    for path in (directory, *directory.rglob("*")):  # whatever the umask: in the sandbox root is somebody else
        path.chmod(0o755 if path.is_dir() else 0o644)
    return {"command": ["/opt/stagecraft/entrypoint", "tritonserver", f"--model-repository={inside}/repository",
                        "--model-control-mode=explicit", "--load-model=*"],
            "model": MODEL, "stand_in": stand_in,
            "tokens": {text: tiny.token_id(shape, text) for text, _ in tiny.ADDED}}


def process_of(session: Session, target: str, directory: Path, options: Options, stand_in: bool) -> Process:
    """The driver in all layers of the image; its files below `directory`."""
    from stages.shell import layer_stages

    project = session.project
    data, lock, graph = project.target(target).data, project.lock_data(target), project.graph(target)
    seconds = options.seconds or (SECONDS // 2 if stand_in else SECONDS)
    plan = given(project, directory / "given", stand_in)
    plan |= {"chat": data["triton"].get("backend") != "upstream",
             "seconds": {"ready": 0.6 * seconds, "request": 0.15 * seconds, "stop": 0.1 * seconds}}
    (directory / "build").mkdir()
    (directory / "build" / "plan.json").write_text(json.dumps(plan))
    (directory / "build" / "plan.json").chmod(0o644)
    base = [layer["digest"] for layer in lock["base"]["layers"]] if lock["base"]["kind"] == "image" else []
    own = [layer_of(project.store, session.records[target, stage].outputs["index"].digest)
           for stage in layer_stages(graph)]
    variables = {key: value for key, value in environment(data, lock).items() if key not in ("HOME", "TMPDIR")}
    variables |= {} if any(stage.name == "bytecode" for stage in graph.stages) else _COMPILED
    return Process(
        (*base, *own, extra_layer(project, stand_in)),
        (lock["python"]["executable"], "/inputs/smoke/driver.py", "/build/plan.json", "/build/results.jsonl"),
        machine(data), {**variables, **_ENVIRONMENT}, {"smoke": directory / "given"},
        Limits(memory=(options.memory or (MEMORY // 2 if stand_in else MEMORY)) << 30, seconds=seconds, pids=4096),
        ("results.jsonl",))


def extra_layer(project: Project, stand_in: bool) -> str:
    """What the image lacks here; the layer's digest.

    The stand-in, beside the backend's files. Without it the numbers of this machine's CPUs where Linux tells them, for
    vLLM asks `lscpu`, and the sandbox has no /sys.
    """
    from cache.archive import LayerWriter

    if stand_in:
        files = {f"{BACKEND}/standin.py": (project.root / "triton" / "smoke" / "standin.py").read_bytes()}
    else:
        every = f"0-{(os.cpu_count() or 1) - 1}\n".encode()
        files = {f"{_CPUS}/{name}": path.read_bytes() if (path := Path("/", _CPUS, name)).exists() else every
                 for name in ("online", "possible")}
    parts = next(iter(files)).split("/")[:-1]
    with LayerWriter(project.store) as writer:
        for count in range(1, len(parts) + 1):
            writer.directory("/".join(parts[:count]))
        for path_in, data in files.items():
            writer.file(path_in, len(data), [data], 0o644)
        return writer.finish().layer.digest


def executor(session: Session, target: str, options: Options) -> Executor:
    """What runs it.

    Raises:
        ToolError: nothing here can; says what is missing.
    """
    from executors.choose import executor as choose
    from stages import gates

    project = session.project
    wanted = machine(project.target(target).data)
    gates.fetch_emulator(session, target, "smoke", wanted)
    debs = project.lock_data(target).get("emulator", {}).get("debs", [])
    if options.executor != "docker" and not options.on_device:
        return choose(project.store, wanted, debs, engines=not options.executor)
    from executors import emulator
    from executors.docker import Docker

    chosen = None if wanted == os.uname().machine else emulator.locked(project.store, wanted, os.uname().machine, debs)
    return replace(Docker.connected(project.store, chosen), gpu=options.on_device)


# -- the run ----------------------------------------------------------------------------------------------------------


def smoke(session: Session, target: str, options: Options) -> SmokeReport:
    """Run all cases. The target is built.

    Raises:
        InputError: the image has no vLLM backend.
        ToolError: this machine cannot run it.
    """
    project = session.project
    data = project.target(target).data
    if not any(stage.name == "backend" for stage in project.graph(target).stages):
        raise InputError(f"{target} has no vLLM backend to ask", where=f"targets/{target}.yaml",
                         cure="triton.backend: stagecraft")
    stand_in = needs_stand_in(project, target, options)
    if stand_in and data["triton"].get("backend") == "upstream":
        raise InputError("NVIDIA's backend takes no stand-in for vLLM", where=f"targets/{target}.yaml",
                         found="triton.backend: upstream", cure=f"./doit smoke:{target} --on-device, on the device")
    chosen = executor(session, target, options)
    session.busy = True
    scratch = Path(tempfile.mkdtemp(prefix="smoke-", dir=project.store.directory("tmp")))
    try:
        process = process_of(session, target, scratch, options, stand_in)
        with log_of(project, target) as log:
            def said(line: str) -> None:
                log.line(line)
                session.report.event("log", "smoke", target=target, line=line)

            def poll() -> None:
                session.check_cancelled()
                session.report.progress("smoke", "asks", 0, 0, target)

            outcome = chosen.run(process, scratch, log=said, check=poll)
        if not outcome.whole:
            raise ToolError("child processes cannot run here, so no server can", found="; ".join(outcome.how),
                            cure="a kernel of 6.7 or newer, or root")
        engine = STAND_IN if stand_in else f"vLLM {data['vllm']['version']}"
        how = (type(chosen).__name__.lower(), *outcome.how)
        found = SmokeReport(target, engine, f"Triton {data['triton']['version']}", how,
                            cases_of(outcome), outcome.seconds, outcome.reason if outcome.exit is None else "",
                            str(log.path), tuple(log.last))
        if found.error() and session.keep_failed:
            keep = project.store.root / "failed" / f"{project.root_name(target)}-smoke"
            trees.discard(keep)
            keep.parent.mkdir(exist_ok=True)
            scratch.rename(keep)
            session.report.line(f"  kept    smoke       {keep}")
        return found
    finally:
        with contextlib.suppress(OSError):
            trees.discard(scratch)


class Log:
    """What the server said: in a file up to a size, and its last lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        path.parent.mkdir(exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        self._left = _LOG_BYTES

    def line(self, text: str) -> None:
        if not _NOT_TELLING.match(text):
            self.last.append(text)
        if self._left > 0:
            self._left -= len(text) + 1
            self._file.write(text + "\n" if self._left > 0 else "# too long: the rest is left out\n")

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def log_of(project: Project, target: str) -> Iterator[Log]:
    """The log of a run; that of the run before is replaced. `store:gc` takes it after some days."""
    log = Log(project.store.root / "failed" / f"{project.root_name(target)}-smoke.log")
    try:
        yield log
    finally:
        log.close()


def cases_of(outcome: Outcome) -> tuple[Case, ...]:
    """The cases as the driver told them; the end of the driver itself is told by the case in which it ended."""
    found: dict[str, Case] = {}
    path = outcome.outputs.get("results.jsonl")
    for line in _beginning(path).splitlines() if path else ():
        try:
            entry = json.loads(line)
            found[str(entry["case"])] = Case(str(entry["case"]), str(entry["state"]), str(entry["message"]),
                                             float(entry["seconds"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # cut off by the end
    ended = f"it ended in this: {outcome.reason}" if outcome.exit is None else f"the driver ended: {outcome.reason}"
    if not found:
        last = f": {outcome.last}" if outcome.last else ""
        return (Case("start", "failed", f"the image's Python does not run the driver: {outcome.reason}{last}", 0.0),)
    cases = []
    for case in found.values():
        if case.state == "begun":
            cases.append(replace(case, state="failed", message=ended))
        elif case.state == "planned" and outcome.exit == 0:
            cases.append(replace(case, state="failed", message="the driver ended well without it"))
        elif case.state == "planned":
            cases.append(replace(case, state="skipped", message=f"not reached: {outcome.reason}"))
        elif case.state in STATES:
            cases.append(case)
    if outcome.exit and not any(case.state == "failed" for case in cases):
        cases.append(Case("driver", "failed", ended, 0.0))
    return tuple(cases)


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_RESULT_BYTES).decode("utf-8", "replace")


# -- the command ------------------------------------------------------------------------------------------------------


def run(session: Session, target: str, as_json: bool = False, junit: str = "",
        choices: Mapping[str, Any] | None = None) -> None:
    """`smoke:<target>`.

    Raises:
        GateError: a case failed. The reports are written before.
        ToolError: this machine cannot run it, or a limit ended it.
    """
    from stages.checking import place, refuse_files, write
    from stages.commands import show
    from stages.smoke_text import junit_xml, text

    options = Options(**(choices or {}))
    refuse_files(junit)
    started = time.monotonic()
    report = smoke(session, target, options)
    session.report.event("gate", "smoke", target=target,
                         text=f"{report.counts()['passed']} of {len(report.cases)} cases passed "
                              f"in {time.monotonic() - started:.0f} s")
    if junit:
        write(place(junit), junit_xml(report))
    session.report.line_break()
    show(report.to_json(), text(report), as_json)
    error = report.error()
    if error is not None:
        raise error
