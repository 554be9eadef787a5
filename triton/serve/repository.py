"""What a Triton server is about to be started with: its options, its model repositories, its ports.

Run with the options of the server it looks at all of that, before the server is started, and says in one line what is
wrong. Exit codes: 66 the model repository, 69 an address or a port, 78 a file of a model. Standard library only: it is
/opt/stagecraft/repository.py of every image, and `healthcheck` beside it reads the options of a running server with it.
"""

import errno
import json
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

NO_REPOSITORY, NO_PORT, BAD_MODEL = 66, 69, 78
BACKENDS = Path("/opt/tritonserver/backends")

#: Service: its default port. Options are `--http-port`, `--http-address`, `--allow-http`, `--reuse-http-port`, ….
SERVICES = {"http": 8000, "grpc": 8001, "metrics": 8002}
_PART = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|#[^\n]*|[\w.+-]+|[^\s\w]')


class FaultError(Exception):
    """What is wrong, in one line; and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(" ".join(message.split()))
        self.code = code


class Options(NamedTuple):
    """The options of a server that matter here, the last of each where it takes one.

    Attributes:
        loads: names of `--load-model`, `*` for all.
        mode: of `--model-control-mode`.
        said: every option to its last value.
    """

    repositories: tuple[str, ...]
    loads: tuple[str, ...]
    mode: str
    said: Mapping[str, str]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> "Options":
        """`--name=value` and `--name value`, as the server reads them."""
        repositories, loads, said = [], [], {}
        rest = list(arguments)
        while rest:
            name, equals, value = rest.pop(0).partition("=")
            if not name.startswith("--"):
                continue
            if not equals and rest and not rest[0].startswith("-"):
                value = rest.pop(0)
            said[name] = value
            if name in ("--model-repository", "--model-store"):
                repositories.append(value)
            elif name == "--load-model":
                loads.append(value)
        return cls(tuple(repositories), tuple(loads), said.get("--model-control-mode", "none"), said)

    def on(self, name: str, default: bool) -> bool:
        return self.said.get(name, str(default)).lower() in ("true", "1", "")

    def port(self, service: str) -> int:
        try:
            return int(self.said.get(f"--{service}-port", SERVICES[service]))
        except ValueError:
            raise FaultError(f"--{service}-port={self.said[f'--{service}-port']} is no port", NO_PORT) from None

    def address(self, service: str) -> str:
        default = self.said.get("--http-address", "0.0.0.0") if service == "metrics" else "0.0.0.0"  # noqa: S104
        return self.said.get(f"--{service}-address", default)


def models(options: Options) -> list[str]:
    """Names of the models that the server loads when it starts, sorted.

    Raises:
        FaultError: a repository that cannot be read; a model that is in none of them.
    """
    found: set[str] = set()
    for repository in options.repositories:
        if "://" not in repository:
            found |= set(_directories(repository))
    if options.mode == "explicit" and options.loads != ("*",):
        for name in options.loads:
            if name not in found and all("://" not in repository for repository in options.repositories):
                raise FaultError(f"--load-model={name}: there is no such model in {' '.join(options.repositories)}"
                                 f" (has: {', '.join(sorted(found)) or 'nothing'})", NO_REPOSITORY)
        return sorted(options.loads)
    return sorted(found)


def _directories(repository: str) -> list[str]:
    try:
        with os.scandir(repository) as entries:
            return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except FileNotFoundError:
        raise FaultError(f"no model repository: {repository} does not exist here; mount one: -v DIR:{repository}:ro",
                         NO_REPOSITORY) from None
    except NotADirectoryError:
        raise FaultError(f"no model repository: {repository} is no directory", NO_REPOSITORY) from None
    except OSError as error:
        raise FaultError(f"the model repository {repository} cannot be read by uid {os.geteuid()}: {error.strerror}",
                         NO_REPOSITORY) from None


def check(arguments: Sequence[str], backends: Path = BACKENDS) -> list[str]:
    """Look at all that a server with these options needs. Warnings are given back.

    Raises:
        FaultError: the server would not start, or would serve nothing.
    """
    options = Options.of(arguments)
    if not options.repositories:
        raise FaultError("no --model-repository was given: the server has nothing to serve", NO_REPOSITORY)
    wanted = models(options)
    remote = any("://" in repository for repository in options.repositories)
    if not wanted and not remote and (options.mode == "none" or options.loads):
        raise FaultError(f"the model repository {' '.join(options.repositories)} holds no model: a model is a directory"
                         " with config.pbtxt and a version (./doit model:<target> makes one)", NO_REPOSITORY)
    faults = [f"model {name}: {fault}" for repository in options.repositories if "://" not in repository
              for name in wanted if os.path.isdir(os.path.join(repository, name))
              for fault in _faults(Path(repository, name), backends)]
    if faults and options.on("--exit-on-error", True):
        more = f" (and {len(faults) - 1} more of that kind)" if len(faults) > 1 else ""
        raise FaultError(faults[0] + more, BAD_MODEL)
    _ports(options)
    return [" ".join(fault.split()) for fault in faults]


def _faults(model: Path, backends: Path) -> Iterator[str]:
    """What is wrong with a model, the first thing only."""
    try:
        versions = sorted(entry.name for entry in model.iterdir() if entry.name.isdecimal() and entry.is_dir())
        if not versions:
            yield f"{model} has no version: a directory named 1"
            return
        scripts = any((model / version / "model.py").exists() for version in versions)
        file = model / "config.pbtxt"
        if not file.exists():
            if not scripts:
                yield f"{file} does not exist"
            return
        said = top_level(file.read_text(encoding="utf-8"))
        backend = said.get("backend", "")
        if said.get("name", model.name) != model.name:
            yield f"{file} says name: {said['name']!r}, but the directory is {model.name!r}"
        elif not backend and not said.get("platform") and not scripts:
            yield f'{file} names no backend, as in backend: "vllm"'
        elif backend and backends.is_dir() and not (backends / backend).exists():
            yield (f"{file} asks for the backend {backend!r}, which this image does not have "
                   f"(has: {', '.join(sorted(entry.name for entry in backends.iterdir()))})")
        elif backend == "vllm":
            for version in versions:
                yield from _engine(model / version / "model.json")
                return
    except UnicodeDecodeError:
        yield f"{model / 'config.pbtxt'} is no text"
    except OSError as error:
        yield f"{error.filename} cannot be read by uid {os.geteuid()}: {error.strerror}"


def _engine(file: Path) -> Iterator[str]:
    """The arguments of vLLM's engine."""
    if not file.exists():
        yield f"{file} does not exist: the vllm backend reads the engine's arguments there"
        return
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        yield f"{file} is no JSON, cut short perhaps: {error}"
        return
    if not isinstance(said, dict):
        yield f"{file} holds no JSON object"
    elif str(said.get("model", "")).startswith("/") and not os.path.exists(said["model"]):
        yield f"{file} names the model {said['model']}, which is not here; mount it there"


def top_level(text: str) -> dict[str, str]:
    """The fields with a plain value of a text-format message, without those of messages in it."""
    parts = [part for part in _PART.findall(text) if not part.startswith("#")]
    depth, found = 0, {}
    for number, part in enumerate(parts):
        depth += (part in ("{", "[", "<")) - (part in ("}", "]", ">"))
        if depth == 0 and part == ":" and 0 < number < len(parts) - 1:
            value = parts[number + 1]
            if value[0] not in "{[<":
                found[parts[number - 1]] = value[1:-1] if value[0] in "\"'" else value
    return found


def _ports(options: Options) -> None:
    """Every address that the server will listen on, for a moment."""
    held: list[socket.socket] = []
    try:
        for service in SERVICES:
            if not options.on(f"--allow-{service}", True) or options.on(f"--reuse-{service}-port", False):
                continue
            address, port = options.address(service), options.port(service)
            one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            held.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((address, port))
                one.listen()
            except (OSError, OverflowError) as error:
                number = getattr(error, "errno", None)
                why = {errno.EADDRINUSE: "is in use: stop who has it, or take another one",
                       errno.EACCES: f"may not be taken by uid {os.geteuid()}",
                       errno.EADDRNOTAVAIL: "is no address of this machine"}.get(number or 0, str(error))
                raise FaultError(f"{address} port {port} {why} (--{service}-port, --{service}-address)",
                                 NO_PORT) from None
    finally:
        for one in held:
            one.close()


def main(arguments: Sequence[str]) -> int:
    try:
        for warning in check(arguments):
            print(f"entrypoint: warning: {warning}", file=sys.stderr)
    except FaultError as fault:
        print(f"entrypoint: {fault}", file=sys.stderr)
        return fault.code
    return 0


def _of_processes() -> Iterator[list[str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                yield (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            except OSError:
                continue


def running() -> Options:
    """The options of the server that runs here; of none, the defaults of the image.

    The server is known by its absolute path, as the entrypoint starts it: an init process (`docker run --init`) has the
    words of the command `tritonserver …` too, without the options that the entrypoint adds.
    """
    for words in _of_processes():
        for number, word in enumerate(words[:4]):  # an emulator stands before it
            if word.startswith("/") and word.endswith("/tritonserver") and number + 1 < len(words):
                return Options.of(words[number + 1:])
    return Options.of(["--model-repository=/models", "--http-address=127.0.0.1"])


def values(text: str) -> Any:
    """JSON, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
