"""What the tasks do, beside realising stages. Each imports what it needs when it runs: a no-op imports nothing."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import InputError, StagecraftError, StoreError

if TYPE_CHECKING:
    from stages.graph import Graph
    from stages.project import Project
    from stages.tasks import Session

#: Bytes of a log's end that are shown unless all of it is asked for.
TERMINAL = 1 << 20

#: Verbs that take what `build` made somewhere else.
DELIVERIES = ("load", "export", "push")

JSON = {"name": "as_json", "long": "json", "type": bool, "default": False, "help": "print JSON on standard output"}


def show(data: Any, text: str, as_json: bool) -> None:
    """The result of a reporting task: text for people, or one JSON document, on standard output."""
    output(json.dumps(data, indent=2, ensure_ascii=False) + "\n" if as_json else text.rstrip("\n") + "\n")


def output(text: str) -> None:
    """Write to standard output, to the end. A reader that has gone away has seen enough: no error.

    Raises:
        StoreError: it cannot be written: a full disk.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered must not fail again when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            raise StoreError("standard output cannot be written", found=error.strerror or str(error),
                             cure="free space where it goes, and run the same command again") from error


def option(name: str, help_: str, *, short: str = "", default: Any = "", kind: type = str) -> dict[str, Any]:
    return {"name": name.replace("-", "_"), "long": name, "short": short, "type": kind, "default": default,
            "help": help_}


KEEP_FAILED = option("keep-failed", "if a check fails that ran something, keep what it ran in for shell:<target>:load",
                     default=False, kind=bool)

FORCE = option("force", "replace files that somebody changed, too", default=False, kind=bool)

WHOLE = option("whole", "all of the log, however long it is", default=False, kind=bool)

CHECK_OPTIONS = [
    option("junit", "write the report as JUnit XML into this file"),
    option("sarif", "write the report as SARIF 2.1.0 into this file"),
    option("strict", "a check that was skipped counts as failed", default=False, kind=bool),
]

SMOKE_OPTIONS = [
    option("junit", "write the report as JUnit XML into this file"),
    option("executor", "sandbox or docker; by default the first that works"),
    option("on-device", "real vLLM with this device's GPU, in Docker", default=False, kind=bool),
    option("stand-in", "a stand-in for vLLM, even where that could run", default=False, kind=bool),
    option("seconds", "limit of the whole run", default=0, kind=int),
    option("memory", "limit of the whole run in GiB", default=0, kind=int),
    option("keep-failed", "if a case fails, keep what it ran in", default=False, kind=bool),
]


def options(verb: str) -> dict[str, Any]:
    """doit `params` (and `pos_arg`) of a verb."""
    from stages import serving

    if verb in serving.KEYS:
        return serving.options()
    found: dict[str, Any] = {"params": [JSON]}
    if verb == "lock":
        found["params"] += [
            option("upgrade", "move pins: all, or only the names that follow", default=False, kind=bool),
            option("only", "resolve only this part: wheels, debs or emulator"),
            option("exclude-newer", "ignore what was uploaded after this date (2026-11-20)"),
            option("no-preflight", "write the lock without judging it", default=False, kind=bool),
        ]
        found["pos_arg"] = "names"
    if verb == "check":
        found["params"] += CHECK_OPTIONS
    if verb == "smoke":
        found["params"] += SMOKE_OPTIONS
    if verb == "log":
        found["params"] += [WHOLE]
    if verb in (*DELIVERIES, "coverage"):
        found["pos_arg"] = "names"
    return found


def trailing(names: list[str], as_json: bool) -> tuple[list[str], bool]:
    """Names without options that stand behind them: doit's parser stops at the first name.

    Raises:
        InputError: an option other than --json there.
    """
    rest = [name for name in names if name != "--json"]
    stray = [name for name in rest if name.startswith("-")]
    if stray:
        raise InputError(f"unknown option {stray[0]}, or it must stand before the names", found=" ".join(names))
    return rest, as_json or len(rest) < len(names)


def action(session: Session, verb: str, target: str) -> Callable[..., Any]:
    """The callable of `<verb>:<target>`."""
    from stages import serving

    def run(as_json: bool = False, **more: Any) -> None:
        ACTIONS[verb](session, target, as_json, **more)

    if verb == "check":
        def check(as_json: bool, junit: str, sarif: str, strict: bool) -> None:
            from stages import checking

            checking.run(session, target, as_json, junit, sarif, strict)

        return check
    if verb == "smoke":
        def smoke(as_json: bool, junit: str, keep_failed: bool, **choices: Any) -> None:
            from stages import smoke as smoking

            session.keep_failed = keep_failed
            smoking.run(session, target, as_json, junit, choices)

        return smoke
    if verb == "rebuild":
        return rebuild_of(session, target, "")
    if verb == "shell":
        return shell_in(session, target)
    if verb in serving.KEYS:
        return serving.action(session, verb, target)
    if verb == "coverage":
        def coverage(as_json: bool, names: list[str]) -> None:
            from stages import coverage as covering

            names, as_json = trailing(names or [], as_json)
            covering.run(session, target, names, as_json)

        return coverage
    if verb == "preflight":
        def preflight(as_json: bool) -> None:
            from stages import preflight as judging

            judging.run(session, target, as_json)

        return preflight
    if verb == "lock":
        def lock(as_json: bool, upgrade: bool, only: str, exclude_newer: str, no_preflight: bool,
                 names: list[str]) -> None:
            from stages import resolve
            from stages.lockfile import ONLY

            names, as_json = trailing(names or [], as_json)
            if names and not upgrade:
                cure = f"./doit lock:{target} --upgrade {' '.join(names)}"
                raise InputError(f"lock takes no {names[0]!r}", cure=cure)
            if only and only not in ONLY:
                raise InputError("--only takes wheels, debs or emulator", found=only)
            change = resolve.lock(session.project, target, session.report.line, upgrade=names or upgrade, only=only,
                                  exclude_newer=exclude_newer, judged=not no_preflight)
            show(change.to_json(), change.text(), as_json)

        return lock
    if verb in DELIVERIES:
        def deliver(as_json: bool, names: list[str]) -> None:
            from stages import deliver as delivering

            names, as_json = trailing(names or [], as_json)
            data, text = getattr(delivering, verb)(session, target, names)
            show(data, text, as_json)

        return deliver
    return run


def plan(session: Session, target: str, as_json: bool) -> None:
    """`plan:<target>`."""
    from stages.gates import plan_lines
    from stages.plan import arrow
    from stages.plan import plan as make_plan
    from stages.report import size_text, time_text

    project = session.project
    graph = project.graph(target)
    states = make_plan(graph, project.store, project.last(target).get("stages", {}))
    verdicts = plan_lines(project, target, {s.stage.name: s.record for s in states})
    lines = []
    wide = max(11, *(len(state.stage.name) for state in states))
    for state in states:
        data = state.to_json()
        size = size_text(data["size"]) if data["size"] else ""
        expected = time_text(data["expected_ms"]) if data["expected_ms"] else ""
        lines.append(f"{state.stage.name:<{wide}} {data['state']:<7} {size:>7} {expected:>12}  {state.reason()}")
        lines += [f"{'':<{wide + 1}}{change.what}: {arrow(change)}" for change in state.changes[1:]]
        if state.missing[0]:
            lines.append(f"{'':<{wide + 1}}{state.missing[0]} files to fetch, {size_text(state.missing[1])}")
    lines += [f"gate {v['check']:<17} {v['state']}"
              + (f" (skipped by the last build: {v['skipped']})" if "skipped" in v else "") for v in verdicts]
    todo = [s for s in states if not s.cached]
    fetch = sum(s.missing[1] for s in states)
    lines.append(f"{target}: {len(states) - len(todo)} of {len(states)} stages cached"
                 + (f"; {len(todo)} to build" if todo else "")
                 + (f", {size_text(fetch)} to fetch" if fetch else ""))
    show({"target": target, "stages": [s.to_json() for s in states], "gates": verdicts}, "\n".join(lines), as_json)


def why(session: Session, target: str, as_json: bool) -> None:
    """`why:<target>`: the root causes first, then what follows from them."""
    from stages.plan import Change, shortened
    from stages.plan import plan as make_plan

    project = session.project
    last = project.last(target)
    states = make_plan(project.graph(target), project.store, last.get("stages", {}))
    gone = sorted(set(last.get("stages", {})) - {s.stage.name for s in states})
    data: dict[str, Any] = {
        "target": target, "built_before": bool(last),
        "roots": [{"stage": s.stage.name,
                   "changes": [vars(c) for c in s.changes] or [{"what": s.reason(), "old": "", "new": ""}]}
                  for s in states if not s.cached and (s.changes or not s.follows)],
        "follows": {s.stage.name: list(s.follows) for s in states if not s.cached and s.follows},
        "removed": gone,
    }
    lines = []
    if not last:
        lines.append(f"{target} was not built here before")
    for root in data["roots"]:
        lines.append(f"{root['stage']} would be built:")
        for change in root["changes"]:
            lines.append(f"  {change['what']}")
            if change["old"] or change["new"]:
                old, new = shortened(Change(**change))
                lines += [f"    was {old or '(none)'}", f"    now {new or '(none)'}"]
    lines += [f"{name} follows from {', '.join(of)}" for name, of in data["follows"].items()]
    lines += [f"{name} is no longer part of {target}" for name in gone]
    show(data, "\n".join(lines) or f"nothing changed: {target} is as it was built", as_json)


def read_by_checks(graph: Graph) -> list[str]:
    """The tasks of the stages that the checks of a graph need; those behind gates are realised by `check` itself."""
    from stages.gates import checks_for, stages_of

    return list(dict.fromkeys(f"{stage.name}:{graph.target}" for check in checks_for(graph)
                              for read in stages_of(check, graph) for stage in graph.closure(read) if not stage.gates))


def read_by_coverage(project: Project, graph: Graph) -> list[str]:
    """The tasks of the stages whose libraries `coverage` looks into; none for a target that has no GPU to cover."""
    from checks.registry import WHEEL_STAGES

    if project.target(graph.target).data["device"]["compute_capability"] == "none":
        return []
    return [f"{stage.name}:{graph.target}" for stage in graph.stages if stage.name in WHEEL_STAGES]


def logged(project: Project, target: str) -> list[str]:
    """Stages that a log may be asked of: those of the target; while it has no graph, those of its last build."""
    try:
        return [stage.name for stage in project.graph(target).stages]
    except StagecraftError:
        try:
            return list(project.last(target).get("stages", {}))
        except StagecraftError:
            return []


def log_of(session: Session, target: str, stage: str) -> Callable[..., None]:
    """`log:<target>:<stage>`."""
    def run(as_json: bool = False, whole: bool = False) -> None:
        _say_whose(session, target)
        found = _log(session, target, stage)
        if as_json:
            show(found.as_json(whole), "", as_json)
        else:
            found.print(whole)

    return run


def rebuild_of(session: Session, target: str, stage: str) -> Callable[..., None]:
    """`rebuild:<target>[:stage]`."""
    def run(as_json: bool = False) -> None:
        from stages import rebuild

        rebuild.run(session, target, stage, as_json)

    return run


def shell_in(session: Session, target: str, name: str = "") -> Callable[..., None]:
    """`shell:<target>[:<stage>]`."""
    def run(as_json: bool = False) -> None:
        from stages import shell

        shell.run(session, target, name)

    return run


def log(session: Session, target: str, as_json: bool, whole: bool = False) -> None:
    """`log:<target>`: the logs of all stages."""
    found = []
    _say_whose(session, target)
    for stage in logged(session.project, target):
        try:
            found.append(_log(session, target, stage))
        except InputError:
            continue
    if as_json or not found:
        show([entry.as_json(whole) for entry in found], f"{target} was not built here before", as_json)
        return
    for entry in found:
        output(f"== {entry.stage} ({entry.state})\n")
        entry.print(whole)


def _say_whose(session: Session, target: str) -> None:
    try:
        session.project.graph(target)
    except StagecraftError as error:
        session.report.line(f"  warning: {error.message}; what follows is of the last build ({error.where})")


@dataclass(frozen=True)
class _Log:
    """A stored log: `state` of its build (built, failed), action key, where its file is, the record's notes."""

    stage: str
    state: str
    key: str
    path: Path
    notes: tuple[str, ...] = ()

    def print(self, whole: bool) -> None:
        """On standard output: its last MiB, or all of it piece by piece."""
        from cache.log import text_of

        if not whole:
            text, before = self._end(TERMINAL)
            output((f"(the last lines; {before} more before them: --whole)\n" if before else "")
                   + (text or "(an empty log)\n"))
            return
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with self.path.open("rb") as file:
            for piece in text_of(file, str(self.path)):
                output(decoder.decode(piece))

    def as_json(self, whole: bool) -> dict[str, Any]:
        text, before = self._end(sys.maxsize if whole else TERMINAL)
        return {"stage": self.stage, "state": self.state, "key": self.key, "log": text,
                **({"lines_before": before} if before else {}), **({"notes": list(self.notes)} if self.notes else {})}

    def _end(self, limit: int) -> tuple[str, int]:
        from cache.log import end_of

        with self.path.open("rb") as file:
            return end_of(file, str(self.path), limit)


def _log(session: Session, target: str, stage: str) -> _Log:
    """Of a stage as it is now, built or failed; else of the last build, which is all there is without a sound lock."""
    from stages.plan import evaluate, previous

    project = session.project
    try:
        key, record = evaluate(project.graph(target), project.store)[stage]
    except StagecraftError:
        key, record = "", None
    if key and record is None and project.store.log_path(key).exists():
        return _Log(stage, "failed", key, project.store.log_path(key))
    if record is None:
        record = previous(project.store, project.last(target).get("stages", {}).get(stage, ""))
    if record is None or not project.store.has(str(record.facts.get("log", "sha256:" + "0" * 64))):
        raise InputError(f"no log of {stage}", where=target, cure=f"./doit {stage}:{target}")
    return _Log(stage, "built", record.key, project.store.use(str(record.facts["log"])),
                tuple(record.facts.get("notes", ())))


ACTIONS: Mapping[str, Callable[..., None]] = {"plan": plan, "why": why, "log": log}


def finish(session: Session, target: str) -> Callable[..., None]:
    """`build:<target>`: the layout, the result link, the root; then one line."""
    def run(as_json: bool = False, keep_failed: bool = False) -> None:
        project = session.project
        graph = project.graph(target)
        skipped = session.skipped.get(target, {})
        records = {stage.name: session.records[target, stage.name] for stage in graph.stages}
        manifest = records["image"].outputs["manifest"].digest
        link = project.result(target)
        keys = {name: record.key for name, record in records.items()}
        last = project.last(target)
        # The link is compared with what the root says it pointed to: a layout that gc took makes it dangle.
        current = last.get("stages") == keys and last.get("skipped", {}) == skipped \
            and last.get("points_to") and os.path.islink(link) \
            and os.path.exists(link / "index.json") and os.readlink(link) == last["points_to"]
        if not current:
            _publish(session, target, records, keys, manifest, link, skipped)
        built = [name for name in keys if (target, name) in session.report.built]
        layers = [records[name] for name in graph.stage("image").dependencies() if "layer" in records[name].outputs]
        size = sum(r.outputs["layer"].size for r in layers)
        data = {"target": target, "result": str(link), "manifest": manifest, "built": built,
                "cached": [name for name in keys if name not in built], "layers": len(layers), "size": size,
                "skipped": skipped}
        from stages.report import size_text

        if not session.busy and current:
            text = f"{target}: nothing to do; result-{target} is {manifest}"
        else:
            text = (f"{target}: result-{target} is {manifest}\n"
                    f"  {len(layers)} layers, {size_text(size)}; {len(built)} stages built, "
                    f"{len(keys) - len(built)} from the store"
                    + (f"\n  skipped, which is not passed: {', '.join(skipped)}" if skipped else ""))
        if session.selected & {"build", f"build:{target}"}:
            session.report.line_break()
            show(data, text, as_json)
        elif session.busy or not current:
            session.report.line(text)  # on the way to something else, whose result has standard output to itself

    return run


def _publish(session: Session, target: str, records: Mapping[str, Any], keys: Mapping[str, str], manifest: str,
             link: Path, skipped: Mapping[str, str]) -> None:
    from oci.layout import link_result, write_layout

    project = session.project
    attest = records.get("attest")
    extra = {name: attest.outputs[output].digest for name, output in
             (("sbom.spdx.json", "sbom"), ("provenance.json", "provenance"))} if attest else {}
    layout = write_layout(project.store, manifest, name=f"{target}-{manifest[7:23]}", extra=extra)
    link_result(project.store, layout, link, root=project.root_name(target), content={
        "format": "stagecraft.root.v1", "target": target, "manifest": manifest, "stages": dict(keys),
        "keys": sorted(keys.values()), "blobs": [manifest], **({"skipped": dict(skipped)} if skipped else {}),
    })


def targets(session: Session) -> Callable[..., None]:
    """`targets`: what can be built; what a bare `./doit` shows."""
    def run(as_json: bool = False) -> None:
        from stages.target import names

        found = []
        for name in names(session.project.root):
            try:
                found.append({"target": name, "description": session.project.target(name).data["description"]})
            except StagecraftError as error:
                found.append({"target": name, "description": f"cannot be read: {error.message}"})
        width = max((len(entry["target"]) for entry in found), default=0)
        lines = [f"  ./doit build:{entry['target']:<{width}}  {entry['description']}" for entry in found]
        show(found, "\n".join(["Targets:", *lines, "", "./doit list shows all tasks, ./doit doctor this machine"]),
             as_json)

    return run


#: Options of the store's tasks, beside --json.
STORE_OPTIONS: Mapping[str, list[dict[str, Any]]] = {
    "verify": [option("repair", "drop what is damaged, so that it is made again", default=False, kind=bool)],
    "gc": [option("dry-run", "only say what would go", default=False, kind=bool),
           option("keep-days", "keep also what is younger than this", default=-1, kind=int),
           option("max-size", "keep also the newest of the rest, up to so many GB in all", default=-1, kind=int),
           option("drop-inputs", "drop packages and wheels too; they are fetched again when needed",
                  default=False, kind=bool)],
    "info": [],
}


def store_actions(session: Session) -> dict[str, tuple[str, Callable[..., Any], list[dict[str, Any]]]]:
    """`store:verify`, `store:gc`, `store:info`."""
    from stages import storekeeping

    actions = {"verify": ("re-hash everything in the store", storekeeping.verify(session)),
               "gc": ("collect what no result needs", storekeeping.collect(session)),
               "info": ("sizes, roots, nondeterminism", storekeeping.info(session))}
    return {name: (doc, action, STORE_OPTIONS[name]) for name, (doc, action) in actions.items()}


def machine_actions(session: Session) -> list[tuple[str, str, Callable[..., Any], dict[str, Any]]]:
    """Tasks that concern no target."""
    def doctor(as_json: bool = False) -> None:
        from stages import doctor as doctoring

        data, text = doctoring.examine(session.project)
        show(data, text, as_json)

    def test(names: list[str]) -> None:
        from stages.testing import run

        run(session.project.root, names)

    def test_long(names: list[str]) -> None:
        from stages.testing import run

        run(session.project.root, names, "tests/long")

    def lint() -> None:
        from stages.testing import lint as run_lint

        run_lint(session.project.root)

    return [
        ("targets", "the targets of this checkout", targets(session), {"params": [JSON]}),
        ("doctor", "what this machine is, what it can do, what is missing", doctor, {"params": [JSON]}),
        ("test", "set up what the tests need, then run them", test, {"pos_arg": "names"}),
        ("test-long", "tests that need the network, large wheels or ten minutes", test_long, {"pos_arg": "names"}),
        ("lint", "style and types of the code", lint, {}),
    ]
