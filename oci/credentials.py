"""Who we are to a registry: what `docker login`, `podman login` or a credential helper left. Reads, never writes.

Order: `$REGISTRY_AUTH_FILE`; `$DOCKER_CONFIG/config.json` or `~/.docker/config.json` (`credHelpers`, `auths`,
`credsStore`); podman's `$XDG_RUNTIME_DIR/containers/auth.json`. Secrets live in memory only: never in a key, a log, an
argument list, a message.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.errors import InputError, ToolError

#: docker.io's entry in the configuration bears the address of its first API.
_NAMES = {"docker.io": ("https://index.docker.io/v1/", "index.docker.io", "docker.io")}


@dataclass(frozen=True)
class Credentials:
    """User and password, or an identity token that is exchanged for access tokens. Empty: anonymous."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.user or self.identity_token)


def find_credentials(registry: str, environ: Mapping[str, str] | None = None) -> Credentials:
    """What this user has for a registry (as written in references); anonymous if nothing.

    Raises:
        InputError: a configuration file that cannot be read.
        ToolError: the configured helper program is missing or failed.
    """
    env = os.environ if environ is None else environ
    for path in _files(env):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise InputError("the registry credentials cannot be read", where=str(path), found=str(error)) from error
        if not isinstance(data, dict):
            raise InputError("the registry credentials cannot be read", where=str(path), expected="a JSON object")
        found = _from_config(data, registry, path, env)
        if found:
            return found
    return Credentials()


def _files(env: Mapping[str, str]) -> list[Path]:
    home = Path(env.get("HOME") or os.path.expanduser("~"))
    found = [Path(env["REGISTRY_AUTH_FILE"])] if env.get("REGISTRY_AUTH_FILE") else []
    found.append(Path(env.get("DOCKER_CONFIG") or home / ".docker") / "config.json")
    if env.get("XDG_RUNTIME_DIR"):
        found.append(Path(env["XDG_RUNTIME_DIR"]) / "containers" / "auth.json")
    return found


def _from_config(data: Mapping[str, Any], registry: str, path: Path, env: Mapping[str, str]) -> Credentials:
    names = _NAMES.get(registry, (registry, f"https://{registry}", f"http://{registry}", f"https://{registry}/v2/",
                                  f"https://{registry}/v1/"))
    helpers = data.get("credHelpers") or {}
    for name in names:
        if name in helpers:
            return _ask(str(helpers[name]), name, env)
    auths = data.get("auths") or {}
    for name in names:
        entry = auths.get(name)
        if isinstance(entry, dict) and (entry.get("auth") or entry.get("identitytoken") or entry.get("username")):
            return _decode(entry, f"{path}: auths.{name}")
    if data.get("credsStore"):
        for name in names:
            if name in auths:  # the store's program holds the secret, `auths` says that there is one
                return _ask(str(data["credsStore"]), name, env)
    return Credentials()


def _decode(entry: Mapping[str, Any], where: str) -> Credentials:
    user, password = str(entry.get("username", "")), str(entry.get("password", ""))
    if entry.get("auth"):
        try:
            user, _, password = base64.b64decode(str(entry["auth"]), validate=True).decode("utf-8").partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise InputError("a registry credential is malformed", where=where,
                             expected="base64 of user:password", cure="docker login again") from error
    return Credentials(user, password.rstrip("\0"), str(entry.get("identitytoken", "")))


def _ask(helper: str, name: str, env: Mapping[str, str]) -> Credentials:
    """Run `docker-credential-<helper> get`, as Docker does."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", helper):
        raise InputError("not the name of a credential helper", where="credHelpers", found=repr(helper))
    program = f"docker-credential-{helper}"
    try:
        answer = subprocess.run([program, "get"], input=name, capture_output=True, text=True, check=False, timeout=60,
                                env=dict(env))
    except FileNotFoundError as error:
        raise ToolError("the credential helper is not installed", where=f"registry {name}", expected=program,
                        cure=f"install {program}, or take it out of Docker's config.json") from error
    except subprocess.TimeoutExpired as error:
        raise ToolError("the credential helper does not answer", where=f"{program} get") from error
    if answer.returncode:
        text = (answer.stdout + answer.stderr).strip()
        if "credentials not found" in text:
            return Credentials()
        raise ToolError("the credential helper failed", where=f"{program} get", found=text[:300])
    try:
        data = json.loads(answer.stdout)
        user, secret = str(data["Username"]), str(data["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise ToolError("the credential helper gave no credentials", where=f"{program} get") from error
    return Credentials(identity_token=secret) if user == "<token>" else Credentials(user, secret)
