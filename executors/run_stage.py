"""Builder `run-script`: a script in a root of layers, without network; what it leaves in a directory is a layer.

Inputs: `root/<nn>-<name>` (tars, lowest first), `tree/<name>` (tars, unpacked, read-only at `/inputs/<name>`),
`file/<name>` (read-only at `/inputs/files/<name>`), `emulator/<file>` (the locked packages of emulators).
Params: `machine` of the root, `environment`, `command`, `collect` (directory below `/build` that is the result), `into`
(directory of the layer that it becomes, or ""), `emulators` (`name`, `version`, `architecture`, `sha256` of each).
Outputs: `layer`, `index`. Files keep whether they are executable and nothing else.

Beside its environment the script gets `STAGECRAFT_JOBS`: how many processes this machine has room for. It must not
change what comes out, and is no part of the key; nor are the limits.
"""

from __future__ import annotations

import collections
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cache.archive import LayerWriter
from cache.build import BuildContext
from cache.errors import InputError, StageError
from cache.store import Blob
from executors import trees
from executors.choose import executor
from executors.process import Limits, Outcome, Process, size_text

#: Bytes that one compiler of device code may need (docs/vllm-from-source.md has figures up to 10 GiB).
JOB_MEMORY = 4 << 30
#: Of what is free, the rest is the machine's.
_SHARE = 0.9
_LAST_LINES = 25


def build(context: BuildContext) -> Mapping[str, Blob]:
    """See the module text.

    Raises:
        StageError: the script failed, or left no result; with its last lines and what ended it.
        ToolError: this machine cannot run it; with what is missing.
    """
    params, store = context.params, context.store
    chosen = executor(store, params["machine"], params["emulators"], engines=False)
    memory, jobs = _room()
    last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=store.directory("tmp")))

    def log(line: str) -> None:
        last.append(line)
        context.log(line)

    def check() -> None:
        context.progress(0, 0)

    try:
        files = scratch / "files"
        files.mkdir()
        files.chmod(0o755)  # whatever the umask: in the sandbox root is somebody else
        given = {"files": files}
        for name, digest in context.inputs.items():
            kind, _, rest = name.partition("/")
            if kind == "file":
                shutil.copyfile(store.use(digest), files / rest)
                (files / rest).chmod(0o644)
            elif kind == "tree":
                given[rest] = trees.layer(store, digest, context.log, check).root
        process = Process(
            tuple(context.inputs[name] for name in sorted(context.inputs) if name.startswith("root/")),
            tuple(params["command"]), params["machine"],
            {**params["environment"], "STAGECRAFT_JOBS": str(jobs)}, given, Limits(memory=memory, pids=4096))
        outcome = chosen.run(process, _empty(scratch / "process"), log=log, check=check)
        for line in outcome.how:
            context.log(f"# {line}")
        if not outcome.ok:
            raise _failed(outcome, last, memory, jobs)
        return _packed(context, scratch / "process" / "build")
    finally:
        trees.discard(scratch)


def _empty(path: Path) -> Path:
    path.mkdir()
    return path


def _room() -> tuple[int, int]:
    """Bytes that the script may use, and how many compilers fit; both may be set (STAGECRAFT_JOBS, _JOB_MEMORY)."""
    available = next((int(line.split()[1]) << 10 for line in Path("/proc/meminfo").read_text().splitlines()
                      if line.startswith("MemAvailable:")), JOB_MEMORY)
    memory = max(1 << 30, int(available * _SHARE))
    each = _setting("STAGECRAFT_JOB_MEMORY", JOB_MEMORY >> 30) << 30
    fit = max(1, min(len(os.sched_getaffinity(0)), memory // each))
    return memory, _setting("STAGECRAFT_JOBS", fit)


def _setting(name: str, default: int) -> int:
    """A number of this machine's user."""
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdigit() or not int(text):
        raise InputError(f"{name} is no number", found=text, expected="how many processes" if name.endswith("JOBS")
                         else "GiB that one process needs", cure=f"set it to a number from 1, or unset {name}")
    return int(text)


def _failed(outcome: Outcome, last: collections.deque[str], memory: int, jobs: int) -> StageError:
    """The end of a script in words, with its last lines."""
    lines = "\n".join(last)
    if outcome.reason.startswith(("out of memory", "killed by SIGKILL")) or "Killed" in lines:
        cure = (f"{jobs} processes ran in {size_text(memory >> 30 << 30)}: set STAGECRAFT_JOBS={max(1, jobs // 2)}, or "
                "run it on a machine with more memory")
    else:
        cure = "read its log: ./doit log:<target>:<stage>"
    return StageError(f"its script ended: {outcome.reason}", found=lines or "(it wrote nothing)", cure=cure)


def _packed(context: BuildContext, work: Path) -> dict[str, Blob]:
    """The result as a layer. What the script left is not trusted: links are taken as links, devices refused."""
    into: str = context.params["into"]
    found: dict[str, tuple[Path, os.stat_result]] = {}
    result = work
    trees.ours(result, 0o700)
    for part in context.params["collect"].split("/"):
        result = result / part
        if not os.path.lexists(result) or not stat.S_ISDIR(result.lstat().st_mode):  # a link would lead out of it
            raise StageError("its script left no result", expected=f"a directory /build/{context.params['collect']}")
        trees.ours(result, 0o700)
    for directory, names, files in os.walk(result, onerror=_give_up):
        for name in (*names, *files):
            path = Path(directory, name)
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
        raise StageError("its script left no file", where=f"/build/{context.params['collect']}")
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
