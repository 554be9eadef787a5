"""The front door, which `./doit` runs: what is refused before doit sees it, `--events`, exit codes, Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys


def _exit_now(*_: object) -> None:
    os._exit(130)


if __name__ == "__main__":  # from the first moment: Ctrl-C while modules load is no traceback either
    signal.signal(signal.SIGINT, _exit_now)

import contextlib  # noqa: E402
import io  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from cache.errors import InputError, StagecraftError, ToolError  # noqa: E402

if TYPE_CHECKING:
    from stages.project import Project

USAGE = """usage: ./doit [--events FILE] [doit's options] TASK[:TARGET] [options]

  ./doit                      the targets
  ./doit build:TARGET         build an image; result-TARGET links to it
  ./doit plan:TARGET          what would be built, and why
  ./doit check:TARGET         judge all gates, and say what they found
  ./doit doctor               this machine, and what it lacks
  ./doit list                 all tasks; list --all: with their targets
  ./doit help TASK:TARGET     the options of a task
  ./doit help run             doit's own options: -n, --continue, …
  --events FILE               what happens, as JSON lines (docs/formats/events.md)

Exit codes: 0 done, 100 a stage failed, 102 wrong bytes, 110 bad input, 111 lock, 112 network, 113 store, 114 gate,
115 something is missing on this machine, 116 rebuild got other bytes, 130 stopped, 3 usage, 70 a bug of ours
(docs/exit-codes.md).
"""
BUG = 70
STOPPED = 130


def main(arguments: list[str], root: Path) -> int:
    """Run one command line; returns the exit status. Errors are printed here, nowhere else."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII only is no reason for a traceback
    try:
        try:
            from stages.commands import output

            status = _command(list(arguments), root)
            output("")  # what doit itself wrote
        except StagecraftError as error:
            with contextlib.suppress(OSError):
                sys.stderr.write(f"error: {error.diagnostics()}\n")
            status = error.exit_code
    except KeyboardInterrupt:
        return STOPPED  # the next Ctrl-C, while threads end, is final
    return status


def _interruptible() -> Any:
    """The first Ctrl-C raises KeyboardInterrupt, the second ends the process.

    Returns:
        The handler before; None if it stays.
    """
    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, _exit_now)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before not in (signal.default_int_handler, _exit_now):
        return None  # ignored, as in a background job, or somebody else's
    try:
        signal.signal(signal.SIGINT, first)
    except ValueError:  # not the main thread
        return None
    return before


def _command(arguments: list[str], root: Path) -> int:
    from stages.commands import output

    arguments = _events(arguments)
    if arguments in (["-h"], ["--help"], ["help"]):
        output(USAGE)
        return 0
    sys.argv = ["doit", *arguments]
    return _doit(arguments, root)


def _events(arguments: list[str]) -> list[str]:
    """Take `--events FILE` off the command line; FILE is relative to where the user stands.

    Raises:
        InputError: the file cannot be written.
    """
    rest: list[str] = []
    while arguments:
        argument = arguments.pop(0)
        if argument == "--events" or argument.startswith("--events="):
            value = argument.partition("=")[2] or (arguments.pop(0) if arguments else "")
            if not value:
                raise InputError("--events needs a file", cure="./doit --events build.jsonl build:thor")
            os.environ["STAGECRAFT_EVENTS"] = os.path.join(os.environ.get("STAGECRAFT_CWD", ""), value)
        else:
            rest.append(argument)
    path = os.environ.get("STAGECRAFT_EVENTS")
    if path:
        # Not opened to try: a reader at the other end of a FIFO would take it for the end.
        directory = os.path.dirname(path) or "."
        problem = "a directory" if os.path.isdir(path) else "no such directory" if not os.path.isdir(directory) else \
            "" if os.access(path if os.path.exists(path) else directory, os.W_OK) else "it may not be written"
        if problem:
            raise InputError("--events cannot write its file", where=path, found=problem)
    return rest


def _doit(arguments: list[str], root: Path) -> int:
    try:
        from doit.cmd_base import ModuleTaskLoader
        from doit.doit_cmd import DoitMain
    except ModuleNotFoundError as error:
        raise ToolError("the Python environment is damaged, or of another Python", where=sys.prefix,
                        found=f"no module {error.name} for Python {sys.version.split()[0]}",
                        cure=f"rm -r {sys.prefix}; ./doit makes it again") from error
    from stages.commands import output
    from stages.tasks import Reporter, front

    config, creator = front(root)
    reporter: Reporter = config["reporter"]
    session = reporter.session
    known(arguments, root, session.project)
    loader = ModuleTaskLoader({"DOIT_CONFIG": config, "task_stagecraft": creator})
    front_door = DoitMain(loader, config_filenames=[], extra_config={"BACKEND": {"none": "stages.tasks:NoDatabase"}})
    DoitMain.BIN_NAME = "./doit"
    before = None
    try:
        # Until here nothing was begun, and Ctrl-C ends the process at once.
        before = _interruptible()
        if arguments and arguments[0] in DOIT_COMMANDS and arguments[0] != "run":
            # doit shows a traceback when it cannot write, so it does not write.
            with contextlib.redirect_stdout(io.StringIO()) as shown:
                status = int(front_door.run(arguments) or 0)
            output(shown.getvalue())
        else:
            status = int(front_door.run(arguments) or 0)
        if before is not None:
            signal.signal(signal.SIGINT, before)
    except KeyboardInterrupt:
        session.cancel()
        session.report.close()
        with contextlib.suppress(OSError):
            sys.stderr.write("stopped; what was finished is kept, run the same command to go on\n")
        raise
    if session.errors:
        return session.errors[0].exit_code
    return BUG if session.bugs else status


#: Tasks that concern no target.
MACHINE = ("store", "doctor", "test", "test-long", "lint", "targets")
#: doit's commands that mean something here.
DOIT_COMMANDS = ("help", "run", "list", "info", "tabcompletion")
#: doit's commands about its database, or about what tasks write beside it.
MEMORY_COMMANDS = ("clean", "forget", "ignore", "dumpdb", "strace", "reset-dep")
#: Tasks that take words `key=value`.
SERVE = ("model", "compose", "dockerfile")
#: Tasks that take every word that follows.
TAKE_NAMES = ("lock", "coverage", "load", "export", "push", "test", "test-long")

#: doit's options before the tasks, as getopt writes them: `:` and `=` take a value.
SHORT = "acv:r:o:n:P:s"
LONG = ("always-execute", "continue", "no-continue", "verbosity=", "reporter=", "output-file=", "process=",
        "parallel-type=", "pdb", "single", "auto-delayed-regex", "failure-verbosity=", "db-file=", "backend=",
        "check_file_uptodate=")
_SINGLE = ("a stage is built from the stages that it needs: without them it has no inputs",
           "./doit STAGE:TARGET builds these and no more")
_DATABASE = ("doit's database is not used: the store is the only memory", "leave it out")
_REPORTER = ("errors, exit codes and progress come from Stagecraft's own reporter",
             "--json gives a result as JSON, --events FILE a stream")
REFUSED = {"-s": _SINGLE, "--single": _SINGLE, "--db-file": _DATABASE, "--backend": _DATABASE,
           "-r": _REPORTER, "--reporter": _REPORTER, "-o": _REPORTER, "--output-file": _REPORTER}


def known(arguments: list[str], root: Path, project: Project | None = None) -> None:
    """Refuse a task, target or option that does not exist or cannot work here, with the nearest one that does.

    Raises:
        InputError: with "did you mean", or the reason.
    """
    if "" in arguments:
        raise InputError("an empty argument", found=" ".join(repr(argument) for argument in arguments))
    words = [word for word in arguments if word.startswith("-") or "=" not in word]  # doit takes name=value away
    if words and words[0] in MEMORY_COMMANDS:
        raise InputError(f"{words[0]} is for doit's database, which is not used: the store is the only memory",
                         cure="./doit store:gc frees what no result needs; "
                              "./doit store:verify --repair drops what is damaged")
    if words[:1] == ["help"]:
        for word in words[1:]:
            if word not in (*DOIT_COMMANDS, "task"):  # doit would show how it is used itself, and call that success
                _known_task(word, root, project)
        return
    if not words or words[0] == "--version" or (words[0] in DOIT_COMMANDS and words[0] != "run"):
        return
    words = _after_options(words[1:] if words[0] == "run" else words)
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            raise InputError(f"option {word} where a task should be", cure="./doit [doit's options] TASK [its options]")
        _known_task(word, root, project)
        verb, colon, behind = word.partition(":")
        if colon and verb in SERVE:
            from stages.serving import refuse

            refuse(verb, behind, arguments)
        if verb in ("test", "test-long") or (verb in TAKE_NAMES and colon):
            if verb in ("load", "export", "push"):
                from stages.deliver import check

                check(verb, word.partition(":")[2], words)
            return
        words = words if "*" in word else _after_task_options(word, words)


def _after_options(words: list[str]) -> list[str]:
    """What follows doit's own options."""
    import getopt

    try:
        found, rest = getopt.getopt(words, SHORT, list(LONG))
    except getopt.GetoptError as error:
        raise InputError(str(error), cure="./doit help run lists the options") from error
    for option, value in found:
        if option in ("-P", "--parallel-type") and value == "process":
            raise InputError(f"{option} process cannot work",
                             expected="thread: the stages of a run share what they know in one process",
                             cure="leave it out; -n sets how many run at a time")
        if option in REFUSED:
            reason, cure = REFUSED[option]
            raise InputError(f"{option} does not work here: {reason}", cure=cure)
    return rest


def _after_task_options(word: str, words: list[str]) -> list[str]:
    """What follows the options of a task."""
    import getopt

    from stages.commands import CHECK_OPTIONS, FORCE, JSON, KEEP_FAILED, SMOKE_OPTIONS, STORE_OPTIONS

    verb, _, rest = word.partition(":")
    takes: list[dict[str, Any]] = []
    if verb == "store":
        takes = [*STORE_OPTIONS[rest], JSON]
    elif rest and verb in ("build", "gate"):
        takes = [KEEP_FAILED, *([JSON] if verb == "build" else [])]
    elif verb in ("doctor", "targets") or (rest and verb in ("plan", "why", "log", "preflight", "rebuild")):
        takes = [JSON]
    elif rest and verb in SERVE:
        takes = [JSON, FORCE]
    elif rest and verb == "check":
        takes = [*CHECK_OPTIONS, JSON]
    elif rest and verb == "smoke":
        takes = [*SMOKE_OPTIONS, JSON]
    names = [option["long"] + ("" if option["type"] is bool else "=") for option in takes]
    try:
        given, behind = getopt.getopt(words, "", names)
    except getopt.GetoptError as error:
        stray = ("--" if len(error.opt) > 1 else "-") + error.opt
        of_doit = error.opt + ":" in SHORT or error.opt in SHORT if len(error.opt) == 1 else \
            error.opt.partition("=")[0] in [name.rstrip("=") for name in LONG]
        raise InputError(
            f"{word}: {error}", expected="one of " + ", ".join(f"--{name}" for name in names) if names else None,
            cure=f"doit's own options stand before the tasks: ./doit {stray} … {word}" if of_doit
            else f"options belong to one target: ./doit {verb}:<target> {stray}" if not rest and verb not in MACHINE
            else f"./doit help {word} lists the options") from error
    if verb in ("check", "smoke"):
        from stages.checking import refuse_files

        refuse_files(*(value for option, value in given if option in ("--junit", "--sarif")))
    return behind


def _known_task(word: str, root: Path, project: Project | None) -> None:
    from stages.commands import STORE_OPTIONS
    from stages.target import names
    from stages.tasks import PARTS, STAGES
    from stages.tasks import VERBS as MORE

    targets = names(root)
    of_targets = ("build", "gate", *MORE, *STAGES)
    verb, colon, rest = word.partition(":")
    target, more, part = rest.partition(":")
    if target in targets and "-" in verb and verb.rpartition("-")[2] in PARTS:
        of_targets += (verb,)  # of a package from source
    if "*" in word:
        import fnmatch

        every = [*MACHINE, *(f"store:{name}" for name in STORE_OPTIONS),
                 *(f"{verb}:{target}" for verb in of_targets for target in targets)]
        if not more and not fnmatch.filter([*of_targets, *every], word):
            raise InputError(f"no task matches {word!r}", cure="./doit list shows all tasks")
        return
    if verb == "store":
        if rest not in STORE_OPTIONS:
            raise _unknown(f"no task {word!r}", "store:", rest, list(STORE_OPTIONS))
    elif verb in MACHINE:
        if colon:
            raise InputError(f"no task {word!r}", cure=f"./doit {verb}")
    elif verb not in of_targets:
        if word in targets:
            raise InputError(f"no task {word!r}", cure=f"did you mean ./doit build:{word}?")
        if word in DOIT_COMMANDS + MEMORY_COMMANDS:
            raise InputError(f"{word} is a command of doit, not a task", cure="it stands first, without tasks before")
        from stages.schema import nearest

        guess = nearest(verb, [*of_targets, *MACHINE, *DOIT_COMMANDS])
        raise InputError(f"no task {word!r}", cure=f"did you mean {guess + colon + rest!r}?" if guess
                         else "./doit list shows all tasks")
    elif colon and target not in targets:
        raise _unknown(f"no target {target!r}", f"{verb}:", target, targets, shown="", behind=more + part)
    elif more and verb == "check":
        raise InputError(f"no task {word!r}", expected=f"./doit check:{target}, which judges all gates",
                         cure=f"./doit gate:{target}:{part} judges one")
    elif more and verb not in ("log", "gate", "rebuild", "shell"):
        raise InputError(f"no task {word!r}", cure=f"did you mean ./doit {verb}:{target}?")
    elif more or (colon and verb not in ("build", *MORE)):
        _known_part(verb, target, part, project, root)


def _known_part(verb: str, target: str, part: str, project: Project | None, root: Path) -> None:
    """A stage or gate of a target. A target that cannot be read says so itself, when its tasks run."""
    from stages import gates
    from stages.commands import logged
    from stages.project import Project
    from stages.tasks import STAGES

    project = project or Project(root)
    try:
        graph = project.graph(target)
    except StagecraftError:
        if verb not in ("gate", "log", "rebuild", "shell", *STAGES):
            raise
        if verb == "log" and part not in STAGES and part not in (built := logged(project, target)):
            raise _unknown(f"no log of {part} of {target}, whose target or lock is not sound", f"log:{target}:", part,
                           built) from None
        return
    stages = [stage.name for stage in graph.stages]
    if verb == "gate":
        checks = [check.id for check in gates.checks_for(graph)]
        if part not in checks:
            raise _unknown(f"no gate {part!r} of {target}" if part else f"gate:{target} needs the name of a gate",
                           f"gate:{target}:", part, checks)
    elif verb == "shell":
        from stages.shell import roots

        if part not in roots(graph):
            raise _unknown(f"{target} has no root {part!r}", f"shell:{target}:", part, roots(graph))
    elif verb in ("log", "rebuild"):
        if part not in stages:
            raise _unknown(f"{target} has no stage {part!r}", f"{verb}:{target}:", part, stages)
    elif verb not in stages:
        raise InputError(f"{target} has no stage {verb!r}", expected="one of " + ", ".join(stages))


def _unknown(message: str, before: str, word: str, choices: list[str], *, shown: str | None = None,
             behind: str = "") -> InputError:
    from stages.schema import nearest

    guess = nearest(word, choices)
    expected = ", ".join((before if shown is None else shown) + choice for choice in choices)
    return InputError(message, expected=f"one of {expected or '(none)'}",
                      cure=f"did you mean ./doit {before}{guess}{behind}?" if guess else None)


def run() -> Any:
    """Entry point of `python -m stages.main`."""
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent.parent))


if __name__ == "__main__":
    run()
