"""Builder `run-script`: a script in a root of layers, without network; what it leaves in a directory is a layer.

Inputs: `root/<nn>-<name>` (tars, lowest first), `tree/<name>` (tars, unpacked, read-only at `/inputs/<name>`),
`file/<name>` (read-only at `/inputs/files/<name>`), `emulator/<file>` (the locked packages of emulators).
Params: `machine` of the root, `environment`, `command`, `collect` (directory below `/build` that is the result), `into`
(directory of the layer that it becomes, or ""), `emulators` (`name`, `version`, `architecture`, `sha256` of each);
optional: `execution`, the machine that must run it; `refuse`, lines of its output that end it (`executors.said`);
`report`, another directory below `/build`.
Outputs: `layer`, `index`; with `report` also `report`, `report-index`, the same of that directory. Files keep whether
they are executable and nothing else. Builder `run-part`: the same for a layer of the image that is no Python package;
param `packages` is what the output `packages` lists (ARCHITECTURE.md, Builders).

Beside its environment the script gets `STAGECRAFT_JOBS`: how many processes this machine has room for, and if results
of compilers are kept (`executors.compiler_cache`) `STAGECRAFT_CCACHE`: the program to put before a compiler. Neither
may change what comes out, and neither is part of the key; nor are the limits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cache import canonical
from cache.archive import LayerWriter
from cache.build import BuildContext
from cache.errors import InputError, StagecraftError, StageError, StoreError, ToolError
from cache.store import Blob, Store
from executors import compiler_cache, trees
from executors.choose import executor
from executors.process import Limits, Outcome, Process, size_text
from executors.said import Refusal, Said

#: Bytes that one compiler of device code may need (docs/vllm-from-source.md has figures up to 10 GiB).
JOB_MEMORY = 4 << 30
#: Of what is free, the rest is the machine's.
_SHARE = 0.9
#: Where the launcher of a compiler cache lies in the root.
_LAUNCHER = "compiler-cache"


def build(context: BuildContext) -> Mapping[str, Blob]:
    """See the module text.

    Raises:
        StageError: the script failed, said what ends it, or left no result; with its last lines and what ended it.
        StoreError: the disk is full.
        ToolError: this machine cannot run it; with what is missing.
    """
    params, store = context.params, context.store
    _same_machine(params.get("execution", ""))
    chosen = executor(store, params["machine"], params["emulators"], engines=False)
    said = Said(context.log, map(Refusal.of, params.get("refuse", ())))
    room = _room()
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=store.directory("tmp")))

    def check() -> None:
        context.progress(0, 0)

    try:
        with _full_disk_named(store), contextlib.ExitStack() as stack:
            process = process_of(context, scratch, stack, room)
            outcome = chosen.run(process, _empty(scratch / "process"), log=said.line, check=check)
            for line in outcome.how:
                context.log(f"# {line}")
            if process.kept:
                counts = compiler_cache.counts(scratch / "process/tmp" / compiler_cache.COUNTS)
                context.log(f"# ccache: {counts}")
                context.note(f"results of compilers were kept between builds (ccache: {counts})")
            if not outcome.ok:
                raise _failed(store, outcome, said, room)
            return _results(context, scratch / "process" / "build")
    finally:
        trees.discard(scratch)


def part(context: BuildContext) -> Mapping[str, Blob]:
    """Builder `run-part`; raises as `build`."""
    listed = {"format": "stagecraft.packages.v1", "packages": context.params["packages"]}
    return {**build(context), "packages": context.store.put(canonical.dumps(listed))}


def process_of(context: BuildContext, scratch: Path, stack: contextlib.ExitStack, room: Room | None = None) -> Process:
    """What the script is run as; `scratch` gets what it is given, `stack` what must be let go of afterwards."""
    params, room = context.params, room or _room()
    given, kept, more = _given(context, scratch, stack)
    return Process(
        tuple(context.inputs[name] for name in sorted(context.inputs) if name.startswith("root/")),
        tuple(params["command"]), params["machine"],
        {**params["environment"], "STAGECRAFT_JOBS": str(room.jobs), **more}, given,
        Limits(memory=room.memory, pids=4096), kept=kept)


def _given(context: BuildContext, scratch: Path,
           stack: contextlib.ExitStack) -> tuple[dict[str, Path], dict[str, Path], dict[str, str]]:
    """What the script finds below `/inputs`, what it may write beside `/build`, and variables for that."""
    store = context.store
    files = _empty(scratch / "files")
    given = {"files": files}
    for name, digest in context.inputs.items():
        kind, _, rest = name.partition("/")
        if kind == "file":
            _place(files / rest, store.use(digest))
        elif kind == "tree":
            given[rest] = trees.layer(store, digest, context.log, lambda: context.progress(0, 0)).root
    size = 0 if context.fresh else compiler_cache.wanted(os.environ)
    if not size:
        return given, {}, dict(compiler_cache.OFF)
    roots = [trees.layer(store, digest, context.log).root
             for name, digest in context.inputs.items() if name.startswith("root/")]
    if not any(os.path.lexists(root / compiler_cache.PROGRAM) for root in roots):
        context.log(f"# STAGECRAFT_CCACHE=on, but its root has no /{compiler_cache.PROGRAM}: nothing is kept")
        return given, {}, dict(compiler_cache.OFF)
    name = compiler_cache.name_of(
        {name: context.params[name] for name in ("machine", "environment", "command")},
        {name: digest for name, digest in context.inputs.items() if not name.startswith("tree/")},
        [given[name] for name in sorted(given) if name != "files"])
    directory = stack.enter_context(compiler_cache.opened(store, name))
    place = _empty(scratch / "launcher")
    (place / "ccache").write_text(compiler_cache.LAUNCHER)
    (place / "ccache").chmod(0o755)
    return ({**given, _LAUNCHER: place}, {compiler_cache.PLACE: directory},
            {"STAGECRAFT_CCACHE": f"/inputs/{_LAUNCHER}/ccache",
             **compiler_cache.variables(name, size, bool(directory.stat().st_mode & stat.S_IWGRP))})


def _place(path: Path, source: Path) -> None:
    shutil.copyfile(source, path)
    path.chmod(0o644)


def _empty(path: Path) -> Path:
    path.mkdir()
    path.chmod(0o755)  # whatever the umask: in the sandbox root is somebody else
    return path


@contextlib.contextmanager
def _full_disk_named(store: Store) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(store, os.strerror(error.errno)) from error
        raise


def _full(store: Store, found: str) -> StoreError:
    return StoreError("the store's disk is full", where=str(store.root), found=found,
                      cure="free space there, or ./doit store:gc; what a script builds lies there too while it runs")


@dataclass(frozen=True)
class Room:
    """Bytes that the script may use, and how many compilers fit."""

    memory: int
    jobs: int


def _same_machine(execution: str) -> None:
    """What compiles is an input, so another machine must not take its place. Raises ToolError."""
    if execution and execution != os.uname().machine:
        raise ToolError("this stage runs on another machine than this one", expected=execution,
                        found=os.uname().machine,
                        cure="build on such a machine, or set sources.execution of the target and lock again")


def _room() -> Room:
    """What this machine has free; the user may say otherwise (STAGECRAFT_JOBS, STAGECRAFT_JOB_MEMORY)."""
    available = next((int(line.split()[1]) << 10 for line in Path("/proc/meminfo").read_text().splitlines()
                      if line.startswith("MemAvailable:")), JOB_MEMORY)
    memory = max(1 << 30, int(available * _SHARE))
    each = _setting("STAGECRAFT_JOB_MEMORY", JOB_MEMORY >> 30) << 30
    fit = max(1, min(len(os.sched_getaffinity(0)), memory // each))
    return Room(memory, _setting("STAGECRAFT_JOBS", fit))


def _setting(name: str, default: int) -> int:
    """A number of this machine's user."""
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdigit() or not int(text):
        raise InputError(f"{name} is no number", found=text, expected="how many processes" if name.endswith("JOBS")
                         else "GiB that one process needs", cure=f"set it to a number from 1, or unset {name}")
    return int(text)


def _failed(store: Store, outcome: Outcome, said: Said, room: Room) -> StagecraftError:
    """The end of a script in words, with its last lines."""
    message, told = f"its script ended: {outcome.reason}", said.told
    if "disk" in told:
        return _full(store, said.text(told["disk"]))
    if outcome.reason.startswith(("out of memory", "killed by SIGKILL")) or "killed" in told:
        return _out_of_memory(message, outcome, said, room)
    if "network" in told:
        return StageError(f"{message}; it wanted the network, which a build does not have",
                          found=said.text(told["network"]),
                          cure="lock what it would download as a source and say where that lies "
                               "(docs/vllm-from-source.md), or keep its script from asking")
    return StageError(message, found=said.text(), cure="./doit log:<target>:<stage> has all that it said, "
                                                       "./doit shell:<target>:<stage> is where it ran")


def _out_of_memory(message: str, outcome: Outcome, said: Said, room: Room) -> StageError:
    """Who ran when it happened, and what to set so that it does not happen again."""
    if outcome.kernel_kills:
        message += f"; the kernel killed {outcome.kernel_kills} processes of this machine for want of memory"
    running = "".join(f"{job}\n" for job in outcome.killed)
    largest = max((job.memory for job in outcome.killed), default=0)
    each = -(-largest // (1 << 30))  # GiB, rounded up
    settings = [f"STAGECRAFT_JOBS={max(1, room.jobs // 2)}"] if room.jobs > 1 else []
    settings += [f"STAGECRAFT_JOB_MEMORY={each}"] if each > 1 and room.jobs > 1 else []
    return StageError(
        message, found=(f"these ran then:\n{running}" if running else "") + said.text(*said.told.values()),
        cure=f"{room.jobs} processes at a time had {size_text(room.memory >> 30 << 30)}: "
             + (f"set {' or '.join(settings)}, or " if settings else "") + "run it on a machine with more memory")


def _results(context: BuildContext, work: Path) -> dict[str, Blob]:
    """The layers of what the script left."""
    found = _packed(context, work, context.params["collect"], context.params["into"])
    if "report" in context.params:
        layer = _packed(context, work, context.params["report"], "")
        found |= {"report": layer["layer"], "report-index": layer["index"]}
    return found


def _packed(context: BuildContext, work: Path, directory: str, into: str) -> dict[str, Blob]:
    """A directory below `/build` as a layer. What is in it is not trusted: links stay links, devices are refused."""
    found: dict[str, tuple[Path, os.stat_result]] = {}
    result = work
    trees.ours(result, 0o700)
    for part in directory.split("/"):
        result = result / part
        if not os.path.lexists(result) or not stat.S_ISDIR(result.lstat().st_mode):  # a link would lead out of it
            raise StageError("its script left no result", expected=f"a directory /build/{directory}")
        trees.ours(result, 0o700)
    for place, names, files in os.walk(result, onerror=_give_up):
        for name in (*names, *files):
            path = Path(place, name)
            there = path.lstat()
            if not (stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode) or stat.S_ISLNK(there.st_mode)):
                raise StageError("a result that is no file, directory or link", where=str(path.relative_to(result)),
                                 found=stat.filemode(there.st_mode))
            below = path.relative_to(result).as_posix()
            if not below.isascii() and _undecoded(below):
                raise StageError("a result whose name is not UTF-8", where=ascii(below),
                                 cure="the script must give it another name")
            if not stat.S_ISLNK(there.st_mode):
                trees.ours(path, 0o700 if stat.S_ISDIR(there.st_mode) else 0o400)
            found[f"{into}/{below}" if into else below] = (path, there)
    if not any(stat.S_ISREG(there.st_mode) for _, there in found.values()):
        raise StageError("its script left no file", where=f"/build/{directory}")
    return _layer(context, found)


def _give_up(error: OSError) -> None:
    """What cannot be listed must not be left out."""
    raise error


def _undecoded(name: str) -> bool:
    return any("\udc80" <= sign <= "\udcff" for sign in name)


def _layer(context: BuildContext, found: Mapping[str, tuple[Path, os.stat_result]]) -> dict[str, Blob]:
    above = {path[:at] for path in found for at, sign in enumerate(path) if sign == "/"}
    with LayerWriter(context.store) as writer:
        for name in sorted(above | found.keys(), key=str.encode):
            entry = found.get(name)
            if entry is None or stat.S_ISDIR(entry[1].st_mode):
                writer.directory(name)
            elif stat.S_ISLNK(entry[1].st_mode):
                writer.symlink(name, os.readlink(entry[0]))
            else:
                _file(writer, name, *entry)
        layer = writer.finish()
    return {"layer": layer.layer, "index": layer.index}


def _file(writer: LayerWriter, name: str, path: Path, there: os.stat_result) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        writer.file(name, there.st_size, iter(lambda: file.read(1 << 20), b""),
                    0o755 if there.st_mode & 0o111 else 0o644)
