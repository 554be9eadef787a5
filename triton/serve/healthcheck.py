#!/usr/bin/env python3
"""Is this server worth sending requests to: every model that it was told to load answers a request for one token.

`/v2/health/ready` stays 200 when the process behind a model is dead; only an inference tells. Exit code 0 and a line on
standard output, or 1 and a line that names the model. `healthcheck NAME…` asks only these. Standard library only; it is
/opt/stagecraft/healthcheck of every image.
"""

import http.client
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

import repository  # noqa: E402

#: Seconds for one request; a first token of a busy server waits behind others.
PATIENCE: "str | float" = os.environ.get("STAGECRAFT_HEALTH_SECONDS", "25")
QUESTION = {"text_input": "Hello", "stream": False, "exclude_input_in_output": True,
            "sampling_parameters": json.dumps({"max_tokens": 1, "temperature": 0})}
#: Never by a proxy: it is this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class UnhealthyError(Exception):
    """Why."""


def _patience() -> float:
    try:
        seconds = float(PATIENCE)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise UnhealthyError(f"STAGECRAFT_HEALTH_SECONDS={PATIENCE} is no number of seconds, from more than 0 to 86400")
    return seconds


def ask(url: str, body: object = None) -> tuple[int, str]:
    """Status and text of an answer.

    Raises:
        UnhealthyError: there was none.
    """
    patience = _patience()
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})  # noqa: S310
    try:
        try:
            answer = _OPENER.open(request, timeout=patience)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UnhealthyError(f"no answer within {patience:g} s" if isinstance(reason, TimeoutError) else
                             f"no answer: {reason}" if isinstance(error, OSError) else
                             f"what answers there speaks no HTTP: {error!r}") from None


def examine(options: repository.Options, names: Sequence[str] = ()) -> list[str]:
    """Ask every model; what was found, a few words for each.

    Raises:
        UnhealthyError: the first thing that is wrong.
    """
    if not options.on("--allow-http", True):
        raise UnhealthyError("the server has no HTTP endpoint to ask")
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.address("http"), options.address("http"))  # noqa: S104
    host = f"[{address}]" if ":" in address else address
    base = f"http://{host}:{options.port('http')}/v2"
    status, _ = ask(f"{base}/health/live")
    if status != 200:
        raise UnhealthyError(f"the server is not live: {status}")
    names = list(names) or repository.models(options)
    if options.mode == "explicit" and not options.loads and not names:
        return ["no model is loaded when it starts"]
    if not names:
        raise UnhealthyError("the model repository holds no model")
    return [_model(f"{base}/models/{urllib.parse.quote(name)}", name) for name in names]


def _model(url: str, name: str) -> str:
    try:
        status, _ = ask(f"{url}/ready")
        if status != 200:
            raise UnhealthyError("is not ready: not loaded, or its engine is dead")
        said = repository.values(ask(f"{url}/config")[1])
        if isinstance(said, dict) and not {"text_input", "text_output"} <= _tensors(said):
            return f"{name} is ready"  # no model of language: how it is asked is not known
        status, text = ask(f"{url}/generate", QUESTION)
        answer = repository.values(text)
        if status != 200 or not isinstance(answer, dict) or "text_output" not in answer:
            told = answer.get("error", text) if isinstance(answer, dict) else text
            raise UnhealthyError(f"does not generate: {status} {str(told)[:200]}")
    except UnhealthyError as error:
        raise UnhealthyError(f"{name}: {error}") from None
    return f"{name} answers"


def _tensors(said: dict) -> set:
    return {one.get("name") for key in ("input", "output") for one in said.get(key, ())}


def main(arguments: Sequence[str]) -> int:
    try:
        found = examine(repository.running(), arguments)
    except (UnhealthyError, repository.FaultError) as error:
        print("unhealthy:", " ".join(str(error).split()))
        return 1
    print("healthy:", ", ".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
