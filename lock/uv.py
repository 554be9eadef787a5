"""Running uv's resolver: our request and the client's configuration in, candidates out.

All settings are handed to uv in files of a private temporary directory (0700: addresses may hold credentials, which
must not be seen in an argument list). uv's own configuration was already read into `Client`, so uv
reads none. uv keeps its cache of metadata where it always does. Nothing else is written.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cache.errors import ToolError
from lock.client import Client, parse_toml, run_quietly, uv_program
from lock.indexes import Indexes, without_credentials
from lock.tags import numbers

#: Settings of uv that say how it works, not what it resolves.
_KEPT = re.compile(r"UV_(CACHE_DIR|NO_CACHE|KEYRING_PROVIDER|SYSTEM_CERTS|NATIVE_TLS|OFFLINE|CONCURRENT_\w+"
                   r"|HTTP_RETRIES|INDEX_\w+_(USERNAME|PASSWORD))")


@dataclass(frozen=True)
class Question:
    """What uv is asked.

    Attributes:
        requirements, overrides, constraints: PEP 508; overrides count instead of what packages ask for.
        python, machine, glibc: `3.11`, `aarch64`, `2.36`.
        index_of: normalised package name to the index it alone comes from.
        pins: normalised name to the version to stay with if it still satisfies.
        dependencies: False: only the requirements themselves.
        exclude_newer: RFC 3339 time; empty: no bound.
    """

    requirements: tuple[str, ...]
    overrides: tuple[str, ...]
    constraints: tuple[str, ...]
    python: str
    machine: str
    glibc: str
    index_of: Mapping[str, str]
    pins: Mapping[str, str]
    dependencies: bool = True
    exclude_newer: str = ""


@dataclass(frozen=True)
class Offer:
    """One wheel of a version that uv chose; empty or 0: the index did not say."""

    file: str
    url: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Chosen:
    """A version that uv chose, and the wheels that there are of it."""

    name: str
    version: str
    offers: tuple[Offer, ...]


class UvError(Exception):
    """uv found no answer. Its text, without credentials, is the message."""


def resolve(question: Question, indexes: Indexes) -> list[Chosen]:
    """Ask uv.

    Raises:
        UvError: there is no answer; the caller says why.
        ToolError: uv is not there.
        InputError: the client's configuration is wrong.
    """
    client = indexes.client
    with tempfile.TemporaryDirectory(prefix="stagecraft-lock-") as name:
        directory = Path(name)
        _write(directory / "uv.toml", uv_settings(question, indexes))
        _write(directory / "pyproject.toml", project(question, indexes))
        _write(directory / "overrides.txt", "".join(f"{line}\n" for line in question.overrides))
        _write(directory / "constraints.txt", "".join(f"{line}\n" for line in question.constraints))
        output = directory / "pylock.toml"  # uv stays with the versions in an output that is there
        _write(output, preferences(question.pins))
        command = [uv_program(), "--config-file", "uv.toml", "pip", "compile", "pyproject.toml",
                   "--overrides", "overrides.txt", "--constraints", "constraints.txt",
                   "--python", sys.executable, "--python-version", question.python,
                   "--python-platform", platform(question.machine, question.glibc),
                   "--only-binary", ":all:", "--format", "pylock.toml", "--output-file", output.name,
                   "--no-header", "--no-python-downloads", "--no-progress", "--quiet", "--color", "never"]
        if not question.dependencies:
            command.append("--no-deps")
        if question.exclude_newer:
            command += ["--exclude-newer", question.exclude_newer]
        done = subprocess.run(command, cwd=directory, env=environment(indexes.environ, client), check=False,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise UvError(redacted(done.stderr))
        return read_answer(output.read_text("utf-8"), directory)


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")


def _quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # a JSON string or list of strings is one of TOML too


def uv_settings(question: Question, indexes: Indexes) -> str:
    """The text of a `uv.toml` that says what the client's configuration says."""
    client, entry = indexes.client, indexes.wheels("default")
    lines = [f"index-strategy = {_quoted(client.strategy)}", f"find-links = {_quoted(list(entry.links))}"]
    if client.insecure_hosts:
        lines.append(f"allow-insecure-host = {_quoted(list(client.insecure_hosts))}")
    if not entry.pages:
        lines.append("no-index = true")
    for page in entry.pages[:-1]:
        lines += ["[[index]]", f"url = {_quoted(page)}"]
    for page in entry.pages[-1:]:
        lines += ["[[index]]", f"url = {_quoted(page)}", "default = true"]
    return "\n".join(lines) + "\n"


def project(question: Question, indexes: Indexes) -> str:
    """The text of a `pyproject.toml` with the requirements, and which of them come from another index."""
    named = {canonicalize_name(Requirement(item).name) for item in question.requirements}
    # uv binds to an index only what is asked for itself, so what only others need is asked for too.
    needs = [*question.requirements, *sorted(set(question.index_of) - named)]
    lines = ["[project]", 'name = "stagecraft-request"', 'version = "0"',
             f'requires-python = ">={question.python}"', f"dependencies = {_quoted(needs)}"]
    if question.index_of:
        lines.append("[tool.uv.sources]")
        lines += [f"{_quoted(name)} = {{ index = {_quoted(index)} }}" for name, index in question.index_of.items()]
    for index in dict.fromkeys(question.index_of.values()):
        entry = indexes.wheels(index)
        for url, flat in [*((page, False) for page in entry.pages), *((link, True) for link in entry.links)][:1]:
            lines += ["[[tool.uv.index]]", f"name = {_quoted(index)}", f"url = {_quoted(url)}", "explicit = true"]
            lines += ['format = "flat"'] if flat else []
    return "\n".join(lines) + "\n"


def preferences(pins: Mapping[str, str]) -> str:
    """The text of a `pylock.toml` that has these versions; uv prefers them to newer ones."""
    lines = ['lock-version = "1.0"', 'created-by = "stagecraft"', *([] if pins else ["packages = []"])]
    for name, version in sorted(pins.items()):
        lines += ["[[packages]]", f"name = {_quoted(name)}", f"version = {_quoted(version)}"]
    return "\n".join(lines) + "\n"


def environment(environ: Mapping[str, str], client: Client) -> dict[str, str]:
    """The environment for uv: this one, less uv's settings that would change the answer, plus the client's."""
    env = {key: value for key, value in environ.items() if not key.startswith("UV_") or _KEPT.fullmatch(key)}
    env["UV_HTTP_TIMEOUT"] = str(max(1, round(client.timeout)))
    if client.ca:
        env.pop("SSL_CERT_DIR", None)
        env["SSL_CERT_DIR" if os.path.isdir(client.ca) else "SSL_CERT_FILE"] = client.ca
    if client.client_cert:
        env["SSL_CLIENT_CERT"] = client.client_cert
    if client.proxy:
        env.update(HTTP_PROXY=client.proxy, HTTPS_PROXY=client.proxy, ALL_PROXY=client.proxy)
    return env


def platform(machine: str, glibc: str) -> str:
    """uv's name of the platform: of the glibc versions that it knows the newest that is not newer.

    Raises:
        ToolError: this uv knows none.
    """
    major, minor = numbers(glibc, "glibc")
    known = re.findall(rf"\b{machine}-manylinux_{major}_(\d+)\b", run_quietly([uv_program(), "help", "pip", "compile"]))
    fitting = [int(number) for number in known if int(number) <= minor]
    if not fitting:
        raise ToolError("this uv resolves for no such platform", expected=f"{machine} with glibc {glibc}",
                        cure="a newer uv in requirements/run.in")
    return f"{machine}-manylinux_{major}_{max(fitting)}"


def redacted(text: str) -> str:
    """uv's text without user and password in addresses."""
    return re.sub(r"://[^/\s@]+@", "://", text).strip()


def read_answer(text: str, directory: Path) -> list[Chosen]:
    """Parse a `pylock.toml` (PEP 751) that uv wrote into `directory`."""
    return [Chosen(canonicalize_name(item["name"]), str(item.get("version", "")), tuple(_offers(item, directory)))
            for item in parse_toml(text).get("packages", ())]


def _offers(item: Mapping[str, Any], directory: Path) -> list[Offer]:
    entries: Sequence[Mapping[str, Any]] = [*item.get("wheels", ()), *([item["archive"]] if "archive" in item else ())]
    found = []
    for entry in entries:
        url = entry["url"] if "url" in entry else (directory / entry["path"]).resolve().as_uri()
        file = entry.get("name") or unquote(urlsplit(url).path.rpartition("/")[2])
        found.append(Offer(file, without_credentials(url), str(entry.get("hashes", {}).get("sha256", "")),
                           int(entry.get("size", 0))))
    return found
