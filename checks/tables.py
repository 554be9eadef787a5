"""Data tables of the repository, parsed: each once for its content, and what came out lies beside the bytecode.

Where Python keeps bytecode elsewhere (`sys.pycache_prefix`, as ./doit sets it) there is `tables/<sha256>.json`, by the
content of the YAML file. Parsing YAML is most of what a build with nothing to do would spend on its gates. A copy that
is missing, damaged or cannot be written costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """The data of a YAML file.

    Raises:
        OSError: it cannot be read.
        yaml.YAMLError: it is no YAML.
    """
    content = path.read_bytes()
    prefix = sys.pycache_prefix
    kept = Path(prefix, "tables", hashlib.sha256(content).hexdigest() + ".json") if prefix else None
    if kept is not None:
        with contextlib.suppress(OSError, ValueError):
            copy: dict[str, Any] = json.loads(kept.read_bytes())
            return copy
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, Any] = yaml.load(content, loader)  # noqa: S506 - a safe loader
    if kept is not None:
        _keep(kept, found)
    return found


def _keep(path: Path, found: dict[str, Any]) -> None:
    with contextlib.suppress(OSError, TypeError, ValueError):
        text = json.dumps(found)
        if json.loads(text) != found:
            return  # JSON has no numbers as keys
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
