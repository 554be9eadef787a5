"""`model:`, `compose:` and `dockerfile:<target>`: files made for whoever serves a model, or reviews the image.

What the user wants is said as `key=value`, which doit keeps (`doit.get_var`). All of it goes below one directory:
`out=DIR`, by default `serve-<target>` where the user stands.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import InputError
from stages.schema import nearest

if TYPE_CHECKING:
    from stages.graph import Graph
    from stages.project import Project
    from stages.tasks import Session

#: Task to the keys that it takes.
KEYS: Mapping[str, tuple[str, ...]] = {
    "model": ("model", "out", "name", "context", "memory", "sequences", "at", "lora", "attention", "tool_parser",
              "reasoning_parser"),
    "compose": ("out", "image", "gpu", "network", "publish"),
    "dockerfile": ("out",),
}


def refuse(verb: str, target: str, words: Sequence[str]) -> None:
    """Refuse `key=value` words that no such task of the line takes, before anything is built for it.

    Raises:
        InputError: with the nearest key.
    """
    known = list(dict.fromkeys(key for word in words for key in KEYS.get(word.partition(":")[0], ())))
    for word in words:
        key, equals, _ = word.partition("=")
        if word.startswith("-") or not equals or key in known:
            continue
        guess = nearest(key, known)
        raise InputError(f"{verb}:{target} takes no {key}=", expected="one of " + ", ".join(f"{one}=" for one in known),
                         cure=f"did you mean {guess}=?" if guess else None)


def needs(verb: str, project: Project, graph: Graph) -> list[str]:
    """The tasks of the stages whose files are looked into."""
    if verb != "model" or project.target(graph.target).data["device"]["compute_capability"] == "none":
        return []
    return [f"{stage.name}:{graph.target}" for stage in graph.stages if stage.name == "vllm"]


def action(session: Session, verb: str, target: str) -> Callable[..., None]:
    """The callable of `<verb>:<target>`."""
    def run(as_json: bool = False, force: bool = False) -> None:
        import importlib

        from doit import get_var

        from stages.commands import show

        said = {key: str(value) for key in KEYS[verb] if (value := get_var(key)) is not None}
        module = importlib.import_module(f"stages.serve_{verb}")
        data, text = module.run(session, target, said, place(target, said), force)
        session.report.line_break()
        show(data, text, as_json)

    return run


def place(target: str, said: Mapping[str, str]) -> Path:
    """The directory of all that is made, as the user would name it."""
    return Path(os.environ.get("STAGECRAFT_CWD", ""), said.get("out") or f"serve-{target}")


def options() -> dict[str, Any]:
    """doit's `params`."""
    from stages.commands import FORCE, JSON

    return {"params": [JSON, FORCE]}
