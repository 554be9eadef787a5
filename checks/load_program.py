"""What the check `load` runs in the image, by the image's own Python (3.8 or newer); never imported by Stagecraft.

    python load_program.py STEPS RESULTS

STEPS is a JSON file, a list of `{"name", "kind", …}` in order; RESULTS gets one JSON line at the begin and one at the
end of each step, so that a step in which the interpreter dies is known. Kinds: `import` (a module by its name),
`extension` (`file`, loaded under its own module name without its package's `__init__`), `operator` (`namespace.name`
of torch after `import module`).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
import traceback
from typing import Any


def extension(step: dict[str, Any]) -> None:
    spec = importlib.util.spec_from_file_location(step["name"], step["file"])
    if spec is None or spec.loader is None or not os.path.exists(step["file"]):
        raise ImportError(step["file"] + ": no such file")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def operator(step: dict[str, Any]) -> None:
    torch: Any = importlib.import_module("torch")

    importlib.import_module(step["module"])
    try:
        getattr(getattr(torch.ops, step["namespace"]), step["operator"])
    except (AttributeError, RuntimeError):
        # Its package swallowed why; the loader says it again.
        for directory in importlib.import_module(step["module"]).__path__:
            for name in step["libraries"]:
                if os.path.exists(os.path.join(directory, name)):
                    torch.ops.load_library(os.path.join(directory, name))
        raise


def run(step: dict[str, Any]) -> None:
    if step["kind"] == "import":
        importlib.import_module(step["name"])
    elif step["kind"] == "extension":
        extension(step)
    else:
        operator(step)


def last_words(error: BaseException) -> str:
    """The innermost cause, as the interpreter would print it, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = traceback.format_exception_only(type(error), error)
    return " ".join(" ".join(lines).split())


def main() -> None:
    with open(sys.argv[1]) as file:
        steps = json.load(file)
    with open(sys.argv[2], "w") as results:
        def tell(step: dict[str, Any], state: str, message: str = "") -> None:
            results.write(json.dumps({"name": step["name"], "state": state, "message": message}) + "\n")
            results.flush()

        for step in steps:
            tell(step, "begun")
            started = time.monotonic()
            try:
                run(step)
            except BaseException as error:
                traceback.print_exc()
                tell(step, "failed", last_words(error))
                if step.get("needed"):
                    break
            else:
                tell(step, "passed")
            print(f"{step['name']}: {time.monotonic() - started:.1f} s", flush=True)
    # Destructors of half-loaded libraries are nobody's business.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
