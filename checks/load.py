"""Check `load`: the image's own Python imports torch, each compiled extension by its own name, and vLLM.

The only check that runs an image's code: in an executor, without network, as an ordinary user, under the locked
emulator where the image is for another machine. What the driver brings is a generated stub (`checks.stub_library`)
whose functions all say that there is no device. So it proves that everything loads, not that anything computes.

Where it cannot run, or ends for a reason that may be this machine's (time, memory), it is *skipped*.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.errors import ToolError
from cache.layer import layer_of
from checks.elf import DamagedElfError
from checks.registry import LAYER_STAGES
from checks.stub_library import make
from checks.tree import BASE, ImageTree, indexes
from checks.verdict import CheckInputs, Finding, SkippedError
from executors import trees
from executors.process import Limits, Outcome, Process

_PROGRAM = Path(__file__).with_name("load_program.py")
#: No part of the verdict: who runs into one of these is told that nothing was judged.
LIMITS = Limits(memory=12 << 30, seconds=1800, pids=1024)
#: Bytes of results that are read.
_MOST = 16 << 20
#: Beside the image's own environment.
_ENVIRONMENT = {
    "HOME": "/tmp/home", "TMPDIR": "/tmp", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0",  # noqa: S108
    "PYTHONFAULTHANDLER": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
}


def run(inputs: CheckInputs) -> list[Finding]:
    """Findings with the module's name as subject, `torchvision::nms`, or `python`.

    Raises:
        SkippedError: this machine cannot run it; says what is missing.
    """
    from executors.choose import executor

    facts = inputs.facts
    try:
        chosen = executor(inputs.store, facts["machine"], facts["emulator"])
    except ToolError as error:
        raise _skipped(error) from error
    steps = planned(facts)
    scratch = Path(tempfile.mkdtemp(prefix="load-", dir=inputs.store.directory("tmp")))
    try:
        process = process_of(inputs, scratch, steps)

        def start() -> Outcome:
            try:
                outcome = chosen.run(process, scratch, log=inputs.log, check=inputs.poll)
            except ToolError as error:
                raise _skipped(error) from error
            inputs.log(f"{outcome.reason} after {outcome.seconds:.1f} s; {'; '.join(outcome.how)}")
            return outcome

        found = _judge(steps, lambda rest: _attempt(start, scratch, rest))
        if found and inputs.keep is not None:
            trees.discard(inputs.keep)
            inputs.keep.parent.mkdir(exist_ok=True)
            scratch.rename(inputs.keep)
        return found
    finally:
        with contextlib.suppress(OSError):
            trees.discard(scratch)


def _skipped(error: ToolError) -> SkippedError:
    details = ", ".join(filter(None, (error.where, error.found)))
    return SkippedError(f"{error.message}: {details}" if details else error.message, error.cure or "")


def planned(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps, in order. `needed`: without it nothing after it means anything."""
    site = f"/{facts['site']}"
    steps: list[dict[str, Any]] = [{"name": "torch", "kind": "import", "needed": True}]
    steps += [{"name": row["module"], "kind": "extension", "file": f"{site}/{row['file']}"} for row in facts["rows"]
              if "operator" not in row]
    if "torchvision" in facts["wheels"]:
        steps.append({"name": "torchvision::nms", "kind": "operator", "module": "torchvision",
                      "namespace": "torchvision", "operator": "nms", "libraries": ["_C.so"]})
    if "vllm" in facts["wheels"]:
        steps += [{"name": "vllm", "kind": "import"}, {"name": "vllm._custom_ops", "kind": "import"}]
        # Of several builds of one extension vLLM loads the one for the CPU; all say the same operators.
        steps += [{"name": f"_C::{operator}", "kind": "operator", "module": "vllm._custom_ops", "namespace": "_C",
                   "operator": operator, "libraries": []}
                  for operator in sorted({row["operator"] for row in facts["rows"] if "operator" in row})]
    return steps


def process_of(inputs: CheckInputs, scratch: Path, steps: Sequence[Mapping[str, Any]]) -> Process:
    """The process that the check runs, with its inputs, and the steps that it takes, written below `scratch`."""
    facts = inputs.facts
    given = scratch / "given"
    given.mkdir(exist_ok=True)
    stubs = {row["name"]: make(facts["machine"], row["name"], names, row["value"])
             for row, names in stub_names(inputs)}
    (given / "driver").mkdir(exist_ok=True)
    for name, data in stubs.items():
        (given / "driver" / name).write_bytes(data)
    shutil.copyfile(_PROGRAM, given / "load_program.py")
    for path in (given, *given.rglob("*")):  # whatever the umask: in the sandbox root is somebody else
        path.chmod(0o755 if path.is_dir() else 0o644)
    (scratch / "build").mkdir(exist_ok=True)
    _write_steps(scratch, steps)
    environment = {**facts["environment"], **_ENVIRONMENT}
    below = facts["environment"].get("LD_LIBRARY_PATH", "")
    environment["LD_LIBRARY_PATH"] = "/inputs/given/driver" + (f":{below}" if below else "")
    stages = indexes(inputs.outputs, LAYER_STAGES)
    layers = (*facts["base"], *(layer_of(inputs.store, digest) for stage, digest in stages.items() if stage != BASE))
    return Process(
        layers, (facts["executable"], "/inputs/given/load_program.py", "/build/steps.json", "/build/results.jsonl"),
        facts["machine"], environment, {"given": given}, LIMITS, ("results.jsonl",))


def _write_steps(scratch: Path, steps: Sequence[Mapping[str, Any]]) -> None:
    path = scratch / "build" / "steps.json"
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(list(steps)))
    path.chmod(0o644)


def stub_names(inputs: CheckInputs) -> Iterator[tuple[Mapping[str, Any], set[str]]]:
    """For each library of the driver that some file NEEDs: the names that it must export.

    Of a file that NEEDs it: the names of its kind that the file leaves undefined, without those that its other NEEDED
    define. Of any other file: such names that no file of the image defines. A stub must not stand before a real
    definition; but some wheels carry a driver library of their own under a private name, which answers nobody else.
    """
    facts = inputs.facts
    kinds = {row["name"]: re.compile(row["symbols"]) for row in facts["stubs"]}
    every = re.compile("|".join(f"(?:{row['symbols']})" for row in facts["stubs"]))
    defined: dict[str, set[str]] = {}
    asking: list[tuple[tuple[str, ...], set[str]]] = []
    with ImageTree(inputs.store, indexes(inputs.outputs, (BASE, *LAYER_STAGES)), facts["base"]) as tree:
        for path in tree.elf_files():
            try:
                library = tree.library(path)
            except DamagedElfError:
                continue  # the check closure names it
            name = library.elf.soname or path.rpartition("/")[2]
            if name not in kinds:
                defined.setdefault(name, set()).update(name for name in library.exports if every.fullmatch(name))
            asking.append((library.elf.needed, {r.name for r in library.undefined if every.fullmatch(r.name)}))
    anywhere: set[str] = set().union(*defined.values())
    for row in facts["stubs"]:
        names: set[str] = set()
        for needed, undefined in asking:
            wanted = {name for name in undefined if kinds[row["name"]].fullmatch(name)}
            if row["name"] in needed:
                names |= wanted.difference(*(defined.get(other, set()) for other in needed))
            else:
                names |= wanted - anywhere
        if any(row["name"] in needed for needed, _ in asking):
            yield row, names


# -- judging --------------------------------------------------------------------------------------


#: Steps to the end of the interpreter that ran them, and step to (state, message).
Attempt = Callable[[Sequence[Mapping[str, Any]]], tuple[Outcome, dict[str, tuple[str, str]]]]


def _judge(steps: Sequence[Mapping[str, Any]], attempt: Attempt) -> list[Finding]:
    """Run the steps; when the interpreter dies in one, go on behind it in a new one, after what all need."""
    found: list[Finding] = []
    rest = list(steps)
    while rest:
        outcome, results = attempt(rest)
        died = next((step for step in rest if results.get(step["name"], ("",))[0] == "begun"), None)
        failed = [step for step in rest if results.get(step["name"], ("",))[0] == "failed"]
        _this_machine(outcome, died is not None or bool(failed) or not results)
        if not results:
            line = f": {outcome.last}" if outcome.last else ""
            return [Finding("error", "python", f"the image's Python does not start: {outcome.reason}{line}",
                            "", "see what it lacks: ./doit shell:<target>:load")]
        found += [_finding(step, results[step["name"]][1]) for step in failed]
        if died is None:
            if not any(step.get("needed") for step in failed):
                _all_tried(rest, results, outcome)
            return found
        found.append(_death(died, outcome))
        if died.get("needed"):
            return found
        behind = rest[rest.index(died) + 1:]
        rest = [step for step in rest if step.get("needed")] + behind if behind else []
    return found


def _all_tried(steps: Sequence[Mapping[str, Any]], results: Mapping[str, object], outcome: Outcome) -> None:
    """An end between two steps (a full disk, for one) must not pass for the end of all."""
    left = [step["name"] for step in steps if step["name"] not in results]
    if left:
        last = f": {outcome.last}" if outcome.last else ""
        raise SkippedError(f"it ended before {left[0]} was tried: {outcome.reason}{last}",
                           "look for what stopped it (is the store's disk full?), and run it again")


def _this_machine(outcome: Outcome, judged: bool) -> None:
    """Ends that say something about this machine rather than about the image."""
    if outcome.exit is None:
        raise SkippedError(f"it was ended by a limit: {outcome.reason}", "run it on a larger or faster machine")
    if outcome.reason.startswith("killed by SIGKILL"):
        raise SkippedError(outcome.reason, "run it on a machine with more memory")
    if judged and not outcome.whole:
        raise SkippedError("child processes cannot run here, and something failed that may be due to that",
                           "a kernel of 6.7 or newer, or root")


def _finding(step: Mapping[str, Any], message: str) -> Finding:
    where = step.get("file", "")
    if "undefined symbol" in message:
        cure = "it was not built for the libraries of this image: take builds that belong together (torch and vLLM)"
    elif "cannot open shared object file" in message:
        cure = "add the package that has the library to the image"
    elif "not found (required by" in message:
        cure = "take a base with a newer C library, or a build for this one"
    elif "No module named" in message:
        cure = "add the wheel that has the module"
    else:
        cure = "try it: ./doit shell:<target>:load"
    return Finding("error", step["name"], message, where, cure)


def _death(step: Mapping[str, Any], outcome: Outcome) -> Finding:
    return Finding("error", step["name"], f"the interpreter died while loading it: {outcome.reason}",
                   step.get("file", ""), "try it: ./doit shell:<target>:load")


def _attempt(start: Callable[[], Outcome], scratch: Path,
             steps: Sequence[Mapping[str, Any]]) -> tuple[Outcome, dict[str, tuple[str, str]]]:
    """One interpreter, in directories without anything that the one before left."""
    work = scratch / "build"
    for left in (work, scratch / "tmp"):
        trees.discard(left)
    work.mkdir()
    _write_steps(scratch, steps)
    outcome = start()
    results: dict[str, tuple[str, str]] = {}
    path = outcome.outputs.get("results.jsonl")
    for line in _beginning(path).splitlines() if path else ():
        try:
            entry = json.loads(line)
            results[str(entry["name"])] = (str(entry["state"]), str(entry["message"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # cut off by the end, or not written by us
    return outcome, results


def _beginning(path: Path) -> str:
    """What the image's code may have written too, so with an end."""
    with path.open("rb") as file:
        return file.read(_MOST).decode("utf-8", "replace")
