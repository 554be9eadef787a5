"""`/etc/pam.d/common-*`: what `pam-auth-update` makes of its templates and profiles.

Without them every program that asks PAM (`su`, `runuser`, `login`) refuses. Only profiles that are
on by default are used, as on a new installation. Format: pam-auth-update(8) and its specification.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """A file of `/usr/share/pam-configs`: fields by lower-case name."""

    fields: dict[str, str]

    @property
    def priority(self) -> int:
        text = self.fields.get("priority", "0")
        return int(text) if text.isdigit() else 0


def parse_profile(text: str) -> Profile:
    fields: dict[str, str] = {}
    last = ""
    for line in text.split("\n"):
        if line[:1] in (" ", "\t") and last:
            fields[last] = (fields[last] + "\n" + line.lstrip()).lstrip("\n")
        elif ":" in line and not line.startswith("#"):
            last, _, value = line.partition(":")
            last = last.strip().lower()
            fields[last] = value.strip()
    return Profile(fields)


def render(template: str, kind: str, profiles: Iterable[Profile], *, interactive: bool = True) -> str:
    """A `common-*` file: `kind` is `auth`, `account`, `password` or `session`."""
    used = sorted((profile for profile in profiles if profile.fields.get("default") == "yes"),
                  key=lambda profile: (-profile.priority, profile.fields.get("name", "")))
    if not interactive:
        used = [profile for profile in used if profile.fields.get("session-interactive-only") != "yes"]
    stem = kind if interactive else f"{kind}_nonint"
    for block in ("primary", "additional"):
        texts: list[str] = []
        for profile in used:
            if profile.fields.get(f"{kind}-type", "").lower() == block:
                initial = profile.fields.get(f"{kind}-initial") if not texts else None
                texts.append(initial or profile.fields.get(kind, ""))
        # The tool joins a module and its options with a space, even where there are none.
        lines = [line + " " * line.endswith(".so") for text in texts for line in text.split("\n") if line]
        if block == "primary" and not lines:
            lines = ["[default=1]\t\t\tpam_permit.so"]  # an empty stack fails; the null module lets it pass
        rendered = "".join(f"{kind}\t" + re.sub(r"(?<==)end\b", str(len(lines) - number), line) + "\n"
                           for number, line in enumerate(lines))
        template = template.replace(f"${stem}_{block}\n", rendered)
    return template
