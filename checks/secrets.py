"""Secrets in an image: by the names of variables, by the shapes of tokens, by the paths of files. Pure.

The rules are data: `checks/data/secrets.yaml`. A finding names where a secret stands and never repeats it. What is no
variable and has no known shape is not found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import translate
from typing import Any

from checks.verdict import Finding

#: Directories in which a value that is a path names a file, not a secret.
_PATH = re.compile(r"/(bin|etc|home|lib|mnt|opt|proc|root|run|srv|tmp|usr|var|workspace)(/[\w.+@~-]*)*")
_PLAIN = re.compile(r"(?i)|0|1|true|false|yes|no|none|null|on|off|\$\w+|\$\{\w+:?[-+?]?\}|\{\w+\}|<[\w -]+>|x{3,}|\*+|"
                    r"(?:\$\(|`)\s*(?:cat\b|<).*")  # the last: out of a file, as it should be
#: `NAME=value`, or an option with its value behind it.
_GIVEN = re.compile(r"""(?:(?<![\w-])(?P<name>[A-Za-z_][\w.]*)=|--(?P<option>[A-Za-z][\w-]*)[=\s])"""
                    r"""(?P<value>"[^"]*"|'[^']*'|(?!-)[^\s;&|"']+)""")
_CURE = "take it out, and change it: whoever has the image has the secret; give it to a run by a mounted file"

Rules = Mapping[str, Sequence[Mapping[str, str]]]


def configuration(config: Mapping[str, Any], rules: Rules) -> list[Finding]:
    """Secrets in an image configuration (OCI image specification v1.1), as data.

    Subjects: `secret: <variable>`, `secret: label <name>`, `secret: entrypoint`, `secret: command`,
    `secret: history <number>`.
    """
    run = config.get("config", {})
    found = []
    for text in run.get("Env") or ():
        name, _, value = text.partition("=")
        found += _named(f"secret: {name}", name, value, rules, f"the variable {name}")
    for name, value in (run.get("Labels") or {}).items():
        found += _named(f"secret: label {name}", name, value, rules, f"the label {name}")
    for key, subject in (("Entrypoint", "entrypoint"), ("Cmd", "command")):
        found += _words(f"secret: {subject}", " ".join(run.get(key) or ()), rules, f"the {subject}")
    for number, entry in enumerate(config.get("history") or ()):
        text = f"{entry.get('created_by', '')} {entry.get('comment', '')}"
        found += _words(f"secret: history {number}", text, rules, f"entry {number} of the history")
    return found


def files(paths: Iterable[str], rules: Rules) -> list[Finding]:
    """Files that hold secrets by what they are called. Subject: `secret: /<path>`."""
    matches = any_of(row["match"] for row in rules["files"])
    return [Finding("error", f"secret: /{path}", "a file that holds credentials", f"/{path}", _CURE)
            for path in sorted(paths) if matches(path)]


def any_of(globs: Iterable[str]) -> Callable[[str], object]:
    """What tells whether a path is one of these globs, for very many paths."""
    return re.compile("|".join(map(translate, globs))).match


def content(path: str, text: str, rules: Rules) -> list[Finding]:
    """Tokens in a file of settings. Subject: `secret: /<path>`."""
    return [Finding("error", f"secret: /{path}", f"holds {what}", f"/{path}", _CURE) for what in shapes(text, rules)]


def shapes(text: str, rules: Rules) -> list[str]:
    """What kinds of tokens are in a text."""
    return [row["what"] for row in rules["shapes"] if re.search(row["match"], text)]


def _named(subject: str, name: str, value: str, rules: Rules, where: str) -> list[Finding]:
    kinds = shapes(value, rules)
    if kinds:
        return [Finding("error", subject, f"holds {', '.join(kinds)}", where, _CURE)]
    if any(re.search(row["match"], name) for row in rules["names"]) and not harmless(value):
        return [Finding("error", subject, "has a value, and its name says that it is a secret", where, _CURE)]
    return []


def harmless(value: str) -> bool:
    """True for a value that is no secret whatever its variable is called."""
    return _PLAIN.fullmatch(value) is not None or _PATH.fullmatch(value) is not None


def _words(subject: str, text: str, rules: Rules, where: str) -> list[Finding]:
    """Judge a command line: tokens, and `NAME=value`, `--name=value` and `--name value` in it."""
    kinds = shapes(text, rules)
    if kinds:
        return [Finding("error", subject, f"holds {', '.join(kinds)}", where, _CURE)]
    for match in _GIVEN.finditer(text):
        name = match["name"] or match["option"]
        if any(re.search(row["match"], name) for row in rules["names"]) and not harmless(match["value"].strip("\"'")):
            return [Finding("error", subject, f"gives {name} a value, and its name says that it is a secret", where,
                            _CURE)]
    return []
