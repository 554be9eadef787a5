"""What `smoke:<target>` runs in the image, by the image's own Python (3.10 or newer); never imported by Stagecraft.

    python driver.py PLAN RESULTS

Starts the image's server, waits until its model is ready, asks it, and ends it. PLAN is a JSON object:

    {"command": […], "model": "tiny", "stand_in": false, "chat": true, "tokens": {"<think>": 259},
     "seconds": {"ready": 900, "request": 120, "stop": 90}}

`tokens` are ids of the model's added tokens; those of bytes are the bytes. RESULTS gets a JSON line for each case when
it is planned, begins and ends, so that one in which this program dies is known: `{"case", "state", "message",
"seconds"}`, state one of planned, begun, passed, failed, skipped. The server writes to our output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

from asking import Failed, NotJudged, Server, said
from cases import CASES

#: The case before all others.
START = "start"


class Results:
    """Writes RESULTS."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - as long as the program

    def tell(self, case: str, state: str, message: str = "", seconds: float = 0.0) -> None:
        self._file.write(json.dumps({"case": case, "state": state, "message": message,
                                     "seconds": round(seconds, 3)}) + "\n")
        self._file.flush()
        if state != "planned":
            print(f"smoke: {case} {state}" + (f": {message}" if message else ""), flush=True)

    def run(self, case: str, action: Callable[[], str]) -> bool:
        """Whether it passed."""
        self.tell(case, "begun")
        started, state = time.monotonic(), "failed"
        try:
            message, state = action(), "passed"
        except Failed as failed:
            message = str(failed)
        except NotJudged as reason:
            message, state = str(reason), "skipped"
        except Exception as error:
            message = f"{said(error)}: not what this program expects"
        self.tell(case, state, message, time.monotonic() - started)
        return state == "passed"


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        plan = json.load(file)
    results = Results(sys.argv[2])
    for name in (START, *(name for name, _ in CASES)):
        results.tell(name, "planned")
    servers: list[Server] = []

    def start() -> str:
        servers.append(Server(plan))
        return f"ready after {servers[0].await_ready():.1f} s"

    started = results.run(START, start)
    for name, case in CASES:
        if not started:
            results.tell(name, "skipped", "the server did not start")
        elif servers[0].process.poll() is not None:
            results.tell(name, "failed" if name == "clean-stop" else "skipped", servers[0].gone())
        else:
            results.run(name, lambda case=case: case(servers[0]))  # type: ignore[misc]
    # What is left of the server ends with this container.
    os._exit(0)


if __name__ == "__main__":
    main()
