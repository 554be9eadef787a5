"""The doit tasks of a checkout. doit names, selects, orders and runs in parallel; the store decides what is up to date.

No task has `file_dep` or `targets`; `uptodate` looks the action key up; doit's database is `NoDatabase`, so a crash, a
lock or a full disk of doit's own cannot exist. Only the targets that the command line names are read, so that a no-op
stays quick in a checkout with many.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.errors import StagecraftError, StoreError
from cache.store import Record
from stages import report as reporting
from stages.engine import CancelledError, Engine
from stages.graph import Graph, Stage, plan_keys
from stages.plan import state_of
from stages.project import Project
from stages.target import names

VERBS = {
    "plan": "what would be built and why; no network",
    "why": "what changed since the last build",
    "log": "the stored log of the last build of a stage",
    "check": "judge all gates of a target; --json, --junit FILE, --sarif FILE, --strict",
    "coverage": "the device code of a target's libraries: kernels by architecture, and how they load; --json, PATH…",
    "rebuild": "build again beside what is stored and compare, byte for byte",
    "smoke": "start the image's server and ask it: what works; --json, --junit FILE, --stand-in, --on-device",
    "shell": "a shell in the layers of a stage and those below",
    "lock": "resolve every input to an exact file and write the lock",
    "preflight": "judge the lock's wheels by their index, before they are downloaded",
    "load": "put the image into a Docker engine",
    "export": "write the image as a tar for docker load and OCI tools",
    "push": "push the image to a registry",
    "model": "a model repository for a model: model=ID or DIRECTORY, key=value… (docs/howto-serve.md)",
    "compose": "compose.yaml for the device",
    "dockerfile": "the image's parts, each by its sha256, for plain docker build",
}

#: Verbs that only tell something. For several targets each tells, even if one of them cannot.
REPORTS = ("plan", "why", "log", "check", "coverage", "preflight")

#: Names that stages may have; `./doit list` shows them even for a checkout in which no target has them all.
STAGES = ("base-facts", "base", "cuda", "torch", "vllm-source", "vllm-compiler", "vllm-toolkit", "vllm-requires",
          "vllm-expected", "vllm-extensions", "vllm-wheel", "deps", "vllm", "links", "triton", "python-backend",
          "backend", "bytecode", "serve", "image", "attest")
#: What the stages of any package from source are called behind its name.
PARTS = ("source", "compiler", "development", "toolkit", "requires", "expected", "extensions", "wheel")


class NoDatabase:
    """A doit backend that remembers nothing: the store is the only memory."""

    def __init__(self, name: str, codec: Any, *, module_name: str | None = None) -> None:
        """Open nothing; doit asks for the name."""
        self.name = name

    def get(self, task_id: str, dependency: str) -> None:
        return None

    def in_(self, task_id: str) -> bool:
        return False

    def set(self, task_id: str, dependency: str, value: Any) -> None:
        """Forget it."""

    def remove(self, task_id: str) -> None:
        """There is nothing."""

    remove_all = dump = lambda self: None


class Session:
    """One run of the front door: the project, what was realised, what went wrong."""

    def __init__(self, root: Path) -> None:
        self.project = Project(root)
        self.report = reporting.Report(events=os.environ.get("STAGECRAFT_EVENTS"))
        self.errors: list[StagecraftError] = []
        self.bugs: list[str] = []
        self.records: dict[tuple[str, str], Record] = {}
        self.busy = False
        self.keep_failed = False
        self.skipped: dict[str, dict[str, str]] = {}
        self.selected: set[str] = set()
        self.cancelled = threading.Event()
        self._engines: dict[str, Engine] = {}
        self._measured: set[str] = set()
        self._running = 0
        self._lock = threading.RLock()
        self._ended = threading.Condition(self._lock)

    def engine(self, target: str) -> Engine:
        """The engine that builds for a target; what it tells carries the target's name."""
        with self._lock:
            if target not in self._engines:
                from stages.fetching import fetcher
                from stages.host import facts

                project = self.project
                self.report.fit(stage.name for stage in project.graph(target).stages)
                self._engines[target] = Engine(
                    project.store, project.root, fetcher(project.root, project.suites, project.trees,
                                                         project.mirrors),
                    reporting.OfTarget(self.report, target), facts(), target, self.cancelled)
            return self._engines[target]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around an action, so that `cancel` can wait for it to clean up."""
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._ended.notify_all()

    def cancel(self, patience: float = 10.0) -> None:
        """Tell all actions to stop, and wait until they have cleaned up, at most `patience` seconds."""
        self.cancelled.set()
        with self._lock:
            self._ended.wait_for(lambda: self._running == 0, patience)

    def check_cancelled(self) -> None:
        """For long work outside the engine. Raises CancelledError once the user has stopped the run."""
        if self.cancelled.is_set():
            raise CancelledError("stopped", cure="run the same command again")

    def failed(self, error: StagecraftError) -> None:
        """Note an error that ends a task; the same one from several threads counts once."""
        with self._lock:
            known = {(seen.message, seen.where) for seen in self.errors}
            if (error.message, error.where) not in known and not (isinstance(error, CancelledError) and self.errors):
                self.errors.append(error)

    def known(self, target: str, stage: Stage) -> dict[str, Record]:
        """Records of a stage's dependencies, from this run or from the store."""
        direct = stage.dependencies()
        if all((target, name) in self.records for name in direct):
            return {name: self.records[target, name] for name in direct}
        for needed in self.project.graph(target).closure(stage.name)[:-1]:
            if (target, needed.name) not in self.records:
                found = state_of(needed, {n: self.records.get((target, n)) for n in needed.dependencies()},
                                 self.project.store)[1]
                if found is not None:
                    self.records[target, needed.name] = found
        return {name: self.records[target, name] for name in direct if (target, name) in self.records}

    def uptodate(self, target: str, stage: Stage) -> bool:
        """True if the stage is in the store; its record is then known to the run."""
        found = state_of(stage, dict(self.known(target, stage)), self.project.store)[1]
        if found is None:
            return False
        self.records[target, stage.name] = found
        return True

    def realise(self, target: str, stage: Stage) -> None:
        self._fits(target)
        self.busy = True
        self.records[target, stage.name] = self.engine(target).realise(stage, self.known(target, stage))

    def _fits(self, target: str) -> None:
        """Before the first thing of a target is built: is there room for all of it?"""
        with self._lock:
            if target not in self._measured:
                from stages.disk import ensure

                ensure(self.project.graph(target), self.project.store)
                self._measured.add(target)


def guarded(session: Session, name: str, action: Callable[..., Any], *, goes_on: bool = False) -> Callable[..., Any]:
    """An action whose StagecraftErrors become a failed task, not a traceback.

    Args:
        goes_on: the run goes on after an error: one target that cannot be read must not hide the report of another. The
            error is told, and decides the exit code, at the end.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        from doit.exceptions import TaskFailed

        try:
            with session.running():
                action(*args, **kwargs)
        except StagecraftError as error:
            session.failed(error)
            return None if goes_on else TaskFailed(error.message, report=False)
        except OSError as error:
            problem = _problem(session, error, name)
            session.failed(problem)
            return None if goes_on else TaskFailed(problem.message, report=False)
        return None

    run.__name__ = name.replace(":", "_")
    return run


def _problem(session: Session, error: OSError, name: str) -> StoreError:
    """What the operating system says; about a file of the store, with what can be done about it."""
    from cache.durable import named_errors

    root = session.project.store.root
    if str(error.filename or "").startswith(f"{root}/"):
        try:
            with named_errors(root):
                raise error
        except StoreError as problem:
            return problem
    return StoreError(error.strerror or str(error), where=str(error.filename or name))


class Reporter:
    """doit's reporter: passes hits on, prints failures once, and the one line of a no-op."""

    desc = "one line per stage that did something"

    def __init__(self, session: Session) -> None:
        self.session = session
        self._quiet: list[str] = []

    def initialize(self, tasks: Any, selected: Any) -> None:
        """Note which of the wanted tasks have no last word of their own."""
        self.session.selected = set(selected)
        self._quiet = [name for name in selected if tasks[name].meta and tasks[name].meta.get("stage")]

    get_status = execute_task = add_success = skip_ignore = teardown_task = lambda self, task: None

    def skip_uptodate(self, task: Any) -> None:
        stage = task.meta and task.meta.get("stage")
        if stage:
            self.session.report.event("hit", stage, target=task.meta["target"])

    def add_failure(self, task: Any, fail: Any) -> None:
        # With --continue doit also reports what could not run because of an earlier failure.
        if fail.report and type(fail).__name__ != "UnmetDependency":
            self.session.bugs.append(f"{task.name}: {fail.get_msg()}")

    def cleanup_error(self, exception: Any) -> None:
        self.session.bugs.append(exception.get_msg())

    def runtime_error(self, msg: str) -> None:
        self.session.bugs.append(msg)

    def complete_run(self) -> None:
        self.session.report.close()
        if self._quiet and not (self.session.busy or self.session.errors or self.session.bugs):
            named = ", ".join(self._quiet) if len(self._quiet) <= 3 else f"{len(self._quiet)} stages"
            from stages.commands import output

            output(f"{named}: nothing to do\n")
        with contextlib.suppress(OSError):
            for error in self.session.errors:
                sys.stderr.write(f"error: {error.diagnostics()}\n")
            for bug in self.session.bugs:
                sys.stderr.write(f"internal error: {bug}\n")


def front(root: Path) -> tuple[dict[str, Any], Callable[[], Iterator[dict[str, Any]]]]:
    """`(DOIT_CONFIG, task creator)` for a dodo.py in `root`."""
    session = Session(root)
    config = {
        "backend": "none", "reporter": Reporter(session), "par_type": "thread", "num_process": os.cpu_count() or 2,
        "verbosity": 2, "default_tasks": ["targets"], "action_string_formatting": "old",
    }

    def task_stagecraft() -> Iterator[dict[str, Any]]:
        return tasks(session, sys.argv[1:])

    return config, task_stagecraft


def mentioned(arguments: list[str], known: list[str]) -> list[str]:
    """The targets that a command line names; all if it names none."""
    words = [part for argument in arguments for part in argument.split(":")[1:]]
    named = [name for name in known if name in words]
    return named or known


def tasks(session: Session, arguments: list[str]) -> Iterator[dict[str, Any]]:
    """All tasks, as dicts for doit."""
    session.keep_failed = "--keep-failed" in arguments
    known = names(session.project.root)
    groups: dict[str, str] = {"build": "build a target's image: everything up to result-<target>", **VERBS}
    groups |= {name: f"the {name} stage of a target" for name in STAGES}
    groups["gate"] = "judge a target's stages before its image is made"
    for name, doc in groups.items():
        yield {"basename": name, "name": None, "doc": doc}
    twins: dict[str, str] = {}
    for target in mentioned(arguments, known):
        yield from _target_tasks(session, target, twins)
    yield from _machine_tasks(session)


def _task(session: Session, basename: str, name: str, doc: str, action: Callable[..., Any],
          **more: Any) -> dict[str, Any]:
    return {
        "basename": basename, "name": name, "doc": doc, "io": {"capture": False},
        "actions": [(guarded(session, f"{basename}_{name}", action, goes_on=basename in REPORTS),
                     more.pop("args", []))], **more,
    }


JSON = {"name": "as_json", "long": "json", "type": bool, "default": False, "help": "print JSON on standard output"}


def _target_tasks(session: Session, target: str, twins: dict[str, str]) -> Iterator[dict[str, Any]]:
    from stages import commands, serving

    try:
        graph = session.project.graph(target)
        problem = None
    except StagecraftError as error:
        graph, problem = None, error
    if graph is not None:
        yield from _graph_tasks(session, target, graph, twins)
    else:
        def fail(as_json: bool = False) -> None:
            raise problem  # type: ignore[misc]

        for name in ("build", *STAGES):
            yield _task(session, name, target, f"{name} of {target}", fail, params=[JSON])
    for verb, doc in VERBS.items():
        action = commands.action(session, verb, target)
        needs = [f"build:{target}"] if verb in (*commands.DELIVERIES, "smoke") else []
        if verb == "check" and graph is not None:
            needs = commands.read_by_checks(graph)
        if verb == "coverage" and graph is not None:
            needs = commands.read_by_coverage(session.project, graph)
        if verb in serving.KEYS and graph is not None:
            needs = serving.needs(verb, session.project, graph)
        if verb == "shell" and graph is not None:
            needs = _below_shell(graph)
        yield _task(session, verb, target, doc, action, task_dep=needs, **commands.options(verb))
    logged = commands.logged(session.project, target)
    for name in logged if graph is not None else dict.fromkeys([*logged, *STAGES]):
        yield _task(session, "log", f"{target}:{name}", f"the log of {name}", commands.log_of(session, target, name),
                    **commands.options("log"))
    for name in _shells(graph) if graph else STAGES:
        yield _task(session, "shell", f"{target}:{name}", f"a shell in the root of {name}",
                    commands.shell_in(session, target, name), task_dep=_below_shell(graph, name))
    for name in [stage.name for stage in graph.stages] if graph else STAGES:
        yield _task(session, "rebuild", f"{target}:{name}", f"build {name} again and compare",
                    commands.rebuild_of(session, target, name), params=[JSON])


def _shells(graph: Graph) -> list[str]:
    from stages.shell import roots

    return roots(graph)


def _below_shell(graph: Graph | None, name: str = "") -> list[str]:
    from stages.shell import needs

    return [f"{stage}:{graph.target}" for stage in needs(graph, name)] if graph is not None else []


def _graph_tasks(session: Session, target: str, graph: Graph, twins: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Stages, gates and `build` of a target."""
    from stages import commands, gates

    checks = gates.checks_for(graph)
    gated = {stage.name: [f"gate:{target}:{check.id}" for check in checks if check.id in stage.gates]
             for stage in graph.stages}
    yield from stage_tasks(session, target, graph, twins, gated)
    for check in checks:
        yield _task(session, "gate", f"{target}:{check.id}", check.title, gates.run, args=[session, target, check],
                    uptodate=[_up_to_date(gates.passed, session, target, check)], params=[commands.KEEP_FAILED],
                    task_dep=[f"{name}:{target}" for name in gates.stages_of(check, graph)])
    yield _task(session, "build", target, f"build {target}: {session.project.target(target).data['description']}",
                commands.finish(session, target), params=[JSON, commands.KEEP_FAILED],
                task_dep=[f"{graph.stages[-1].name}:{target}"])


def stage_tasks(session: Session, target: str, graph: Graph, twins: dict[str, str],
                gated: Mapping[str, Sequence[str]] | None = None) -> Iterator[dict[str, Any]]:
    """A task for every stage of a graph.

    Args:
        twins: plan key to task, over all targets of a run: what another target makes too is waited for as a task, not
            with a worker that stands at the store's lock.
        gated: stage to the tasks of its gates.
    """
    keys = plan_keys(graph)
    for stage in graph.stages:
        own = f"{stage.name}:{target}"
        needs = [f"{name}:{target}" for name in stage.dependencies()]
        needs += gated.get(stage.name, ()) if gated else ()
        twin = twins.setdefault(keys[stage.name], own)
        needs += [twin] if twin != own else []
        yield _task(session, stage.name, target, stage.title, session.realise, args=[target, stage],
                    uptodate=[_up_to_date(session.uptodate, target, stage)], task_dep=needs,
                    meta={"stage": stage.name, "target": target})


def _up_to_date(function: Callable[..., bool], *arguments: Any) -> Callable[[Any, Any], bool]:
    def check(task: Any, values: Any) -> bool:
        try:
            return function(*arguments)
        except (StagecraftError, OSError):
            return False  # the action meets the same trouble, and tells

    return check


def _machine_tasks(session: Session) -> Iterator[dict[str, Any]]:
    from stages import commands

    yield {"basename": "store", "name": None, "doc": "the store: verify, gc, info"}
    for name, (doc, action, params) in commands.store_actions(session).items():
        yield _task(session, "store", name, doc, action, params=[*params, JSON])
    for name, doc, action, more in commands.machine_actions(session):
        yield {"basename": name, "doc": doc, "io": {"capture": False},
               "actions": [(guarded(session, name, action),)], **more}
