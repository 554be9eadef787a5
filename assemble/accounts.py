"""Accounts: lines of `/etc/passwd` and `/etc/group`. Pure functions over text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cache.errors import InputError


@dataclass(frozen=True)
class User:
    """An account that the target asks for; `home` and `shell` are absolute paths."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str

    @classmethod
    def from_params(cls, data: Mapping[str, Any]) -> User:
        """Raises InputError if a value cannot be in passwd."""
        name = str(data["name"])
        found = cls(name, int(data["uid"]), int(data.get("gid", data["uid"])),
                    str(data.get("home", f"/home/{name}")), str(data.get("shell", "/bin/bash")))
        for key, value, pattern in (("name", name, r"[a-z_][a-z0-9_-]{0,31}"), ("home", found.home, r"(/[^:/\s]+)+"),
                                    ("shell", found.shell, r"(/[^:/\s]+)+")):
            if not re.fullmatch(pattern, value) or "/../" in value + "/":
                raise InputError(f"a user cannot have this {key}", where=f"user {name}", found=value)
        return found


def with_user(passwd: str, group: str, user: User) -> tuple[str, str]:
    """Both files with the user and its group in them; unchanged where they are already.

    The password field is `*`: no password opens the account.

    Raises:
        InputError: the name or the uid is another account's.
    """
    accounts = [line.split(":") for line in passwd.splitlines() if line.count(":") == 6]
    same = [fields for fields in accounts if fields[0] == user.name or fields[2] == str(user.uid)]
    if not same:
        passwd = _ended(passwd) + f"{user.name}:*:{user.uid}:{user.gid}::{user.home}:{user.shell}\n"
    elif any(fields[0] != user.name or fields[2:4] != [str(user.uid), str(user.gid)] for fields in same):
        raise InputError("the packages or the base image have another account of that name or number",
                         where=f"user {user.name}", expected=f"uid {user.uid}, gid {user.gid}",
                         found="; ".join(f"{f[0]}: uid {f[2]}, gid {f[3]}" for f in same),
                         cure="choose another name and uid in the target")
    groups = [line.split(":") for line in group.splitlines() if line.count(":") == 3]
    if any(fields[2] == str(user.gid) for fields in groups):
        return passwd, group
    if any(fields[0] == user.name for fields in groups):
        raise InputError("there is a group of the user's name with another gid", where=f"user {user.name}",
                         cure="choose another name or gid in the target")
    return passwd, _ended(group) + f"{user.name}:*:{user.gid}:\n"


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"
