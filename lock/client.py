"""What the user's own pip and uv are configured to do: indexes, certificates, proxy.

Reads pip's configuration files and `PIP_*`, uv's `uv.toml` and `UV_*`, each by its own rules of precedence; where
both set something, uv's counts, because uv resolves. Nothing is written, neither program is started, except once to ask
uv for its built-in default index when none is configured. Documented for users in docs/indexes.md.

Not read: keyring programs, `[tool.uv]` of some project, pip's per-command sections other than `[install]`.
"""

from __future__ import annotations

import configparser
import functools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from cache.errors import InputError, ToolError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

_ASKING = threading.Lock()
_YES = {"1", "true", "yes", "y", "on", "t"}


@dataclass(frozen=True)
class Client:
    """The settings that count.

    Attributes:
        index_url: simple index; empty: the client's built-in default.
        extra_index_urls: further ones, in order.
        find_links: directories or pages with wheels.
        no_index: True: only `find_links`.
        strategy: uv's `index-strategy`. pip compares all its indexes (`unsafe-best-match`); uv takes a package from the
            first index that has it.
        ca: bundle of certificate authorities (file or directory); empty: the built-in one.
        client_cert: PEM file with client certificate and key; empty: none.
        proxy: for http and https; empty: what the environment says.
        timeout: seconds for one connection or read.
        insecure_hosts: hosts (`name` or `name:port`) whose certificate is not looked at.
    """

    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    strategy: str = "first-index"
    ca: str = ""
    client_cert: str = ""
    proxy: str = ""
    timeout: float = 15.0
    insecure_hosts: tuple[str, ...] = ()

    def pages(self) -> tuple[str, ...]:
        """The simple indexes in order of preference: extra ones first, as uv reads them.

        Raises:
            ToolError: none is configured and uv does not tell its default.
        """
        if self.no_index:
            return ()
        return (*self.extra_index_urls, self.index_url or built_in_index())

    def verify(self, url: str) -> bool | str:
        """What `requests` takes as `verify` for an address."""
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        if host in self.insecure_hosts or parts.hostname in self.insecure_hosts:
            return False
        return self.ca or True

    def proxies(self) -> dict[str, str]:
        return {"http": self.proxy, "https": self.proxy} if self.proxy else {}


def credentials_in(url: str) -> tuple[str, str] | None:
    """User and password that stand in an address, decoded."""
    parts = urlsplit(url)
    if parts.username is None:
        return None
    return unquote(parts.username), unquote(parts.password or "")


def read_client(environ: Mapping[str, str] | None = None) -> Client:
    """The client's configuration as it applies to a run with this environment.

    Raises:
        InputError: a configuration file of pip or uv cannot be read, or a value in it is of the wrong kind.
    """
    env = os.environ if environ is None else environ
    pip, uv = _pip_settings(env), _uv_settings(env)
    indexes_of_uv = any(key in uv for key in ("index-url", "extra-index-url", "find-links", "no-index"))

    def chosen(key: str) -> Any:
        return uv.get(key) or pip.get(key)

    def words(key: str) -> tuple[str, ...]:
        value = chosen(key) or ()
        return tuple(value.split()) if isinstance(value, str) else tuple(value)

    strategy = uv.get("index-strategy") or ("first-index" if indexes_of_uv else "unsafe-best-match")
    timeout = env.get("UV_HTTP_TIMEOUT") or pip.get("timeout") or pip.get("default-timeout") or "15"
    try:
        seconds = float(timeout)
    except ValueError as error:
        raise InputError("the timeout in pip's or uv's configuration is no number", found=str(timeout)) from error
    return Client(
        index_url=str(chosen("index-url") or ""),
        extra_index_urls=words("extra-index-url"),
        find_links=words("find-links"),
        no_index=str(chosen("no-index") or "").lower() in _YES,
        strategy=str(strategy),
        ca=env.get("PIP_CERT") or env.get("SSL_CERT_FILE") or env.get("REQUESTS_CA_BUNDLE")
        or env.get("CURL_CA_BUNDLE") or str(pip.get("cert") or ""),
        client_cert=env.get("SSL_CLIENT_CERT") or str(pip.get("client-cert") or ""),
        proxy=str(pip.get("proxy") or ""),
        timeout=seconds,
        insecure_hosts=(*words("trusted-host"), *uv.get("allow-insecure-host", ())),
    )


# -- pip ------------------------------------------------------------------------------------------


def pip_files(env: Mapping[str, str]) -> list[Path]:
    """pip's configuration files, the one that counts most last."""
    named = env.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:
        return []
    home = Path(env.get("HOME") or os.path.expanduser("~"))
    system = (env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    files = [*(Path(part) / "pip" / "pip.conf" for part in reversed(system)), Path("/etc/pip.conf")]
    if not (named and os.path.exists(named)):  # a named file stands in for the user's
        config = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
        files += [home / ".pip" / "pip.conf", config / "pip" / "pip.conf"]
    files.append(Path(sys.prefix) / "pip.conf")
    return [*files, Path(named)] if named else files


def _pip_settings(env: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for section in ("global", "install"):  # the section of the command wins, whatever file it is in
        for path in pip_files(env):
            parser = configparser.RawConfigParser()
            try:
                parser.read(path, encoding="utf-8")
            except (configparser.Error, UnicodeDecodeError) as error:
                raise InputError("pip's configuration cannot be read", where=str(path),
                                 found=str(error).splitlines()[0]) from error
            if parser.has_section(section):
                found.update({key.replace("_", "-"): value for key, value in parser.items(section)})
    for key, value in env.items():
        if key.startswith("PIP_"):
            found[key[4:].lower().replace("_", "-")] = value
    return found


# -- uv -------------------------------------------------------------------------------------------


def uv_files(env: Mapping[str, str]) -> list[Path]:
    """uv's configuration files, the one that counts most last."""
    if env.get("UV_NO_CONFIG", "").lower() in _YES:
        return []
    if env.get("UV_CONFIG_FILE"):
        return [Path(env["UV_CONFIG_FILE"])]
    home = Path(env.get("HOME") or os.path.expanduser("~"))
    system = [Path(part) / "uv" / "uv.toml" for part in (env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")]
    system.append(Path("/etc/uv/uv.toml"))
    first = next((path for path in system if path.exists()), None)
    user = Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "uv" / "uv.toml"
    return [path for path in (first, user) if path is not None and path.exists()]


def _uv_settings(env: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in uv_files(env):
        try:
            with path.open("rb") as file:
                data = tomllib.load(file)
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise InputError("uv's configuration cannot be read", where=str(path), found=str(error)) from error
        for table in (data, data.get("pip", {})):
            found.update(_uv_table(table, env))
    named = [_named(word) for word in env.get("UV_INDEX", "").split()]
    extra = [_with_password(url, name, env) for name, url in named] + env.get("UV_EXTRA_INDEX_URL", "").split()
    default = env.get("UV_DEFAULT_INDEX") or env.get("UV_INDEX_URL")
    if default:
        name, url = _named(default)
        found["index-url"] = _with_password(url, name, env)
    if extra:
        found["extra-index-url"] = extra
    if env.get("UV_FIND_LINKS"):
        found["find-links"] = env["UV_FIND_LINKS"].replace(",", " ").split()
    if env.get("UV_INDEX_STRATEGY"):
        found["index-strategy"] = env["UV_INDEX_STRATEGY"]
    if env.get("UV_NO_INDEX"):
        found["no-index"] = env["UV_NO_INDEX"]
    if env.get("UV_INSECURE_HOST"):
        found["allow-insecure-host"] = env["UV_INSECURE_HOST"].split()
    return found


def _uv_table(table: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    keys = ("index-url", "extra-index-url", "find-links", "no-index", "index-strategy", "allow-insecure-host")
    found = {key: table[key] for key in keys if table.get(key)}
    if "trusted-host" in table:
        found["allow-insecure-host"] = table["trusted-host"]
    extra: list[str] = []
    links: list[str] = []
    for index in table.get("index", ()):
        url = _with_password(str(index.get("url", "")), str(index.get("name", "")), env)
        if index.get("explicit"):
            continue
        if index.get("default"):
            found["index-url"] = url
        elif index.get("format") == "flat":
            links.append(url)
        else:
            extra.append(url)
    if extra:
        found["extra-index-url"] = [*extra, *found.get("extra-index-url", ())]
    if links:
        found["find-links"] = [*links, *found.get("find-links", ())]
    return found


def _named(text: str) -> tuple[str, str]:
    """`name=url` or `url`."""
    match = re.fullmatch(r"([A-Za-z0-9._-]+)=(.+)", text)
    return (match[1], match[2]) if match else ("", text)


def _with_password(url: str, name: str, env: Mapping[str, str]) -> str:
    """Put `UV_INDEX_<NAME>_USERNAME` and `_PASSWORD` into the address of a named index."""
    user, password = index_credentials(name, env)
    scheme, mark, rest = url.partition("://")
    if not user or not mark or "@" in rest.partition("/")[0]:
        return url
    return f"{scheme}://{user}:{password}@{rest}"


def index_credentials(name: str, env: Mapping[str, str]) -> tuple[str, str]:
    """User and password, percent-encoded, that the environment has for an index; both empty if none."""
    stem = "UV_INDEX_" + re.sub(r"[^A-Za-z0-9]", "_", name).upper()
    return quote(env.get(stem + "_USERNAME", ""), safe=""), quote(env.get(stem + "_PASSWORD", ""), safe="")


def with_credentials(url: str, name: str, env: Mapping[str, str]) -> str:
    """`url` with the credentials that the environment has for the index `name` (uv's variables)."""
    return _with_password(url, name, env)


def parse_toml(text: str) -> dict[str, Any]:
    """Raises ValueError."""
    return tomllib.loads(text)  # type: ignore[no-any-return,unused-ignore]


# -- the built-in default -------------------------------------------------------------------------


def uv_program() -> str:
    """Path of the uv that came with this environment.

    Raises:
        ToolError: there is none.
    """
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError) as error:
        raise ToolError("uv is not in this environment", cure="./doit, which sets the environment up") from error


def built_in_index() -> str:
    """The index that uv uses when none is configured. It is asked: our files name no registry's host.

    Raises:
        ToolError: it does not say.
    """
    with _ASKING:  # finding uv reads `sysconfig`, whose first use is not safe in several threads
        return _built_in_index()


@functools.cache
def _built_in_index() -> str:
    answer = run_quietly([uv_program(), "pip", "compile", "--help", "--color", "never"])
    found = re.search(r"by default: <(https?://[^>\s]+)>", answer)
    if not found:
        raise ToolError("uv does not tell its default index", cure="set index-url in pip's or uv's configuration")
    return found[1]


def run_quietly(command: Sequence[str]) -> str:
    """Standard output of a program that needs no configuration and no network."""
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.defpath}).stdout
