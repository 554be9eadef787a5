"""How a registry lets one in: reads its challenge, gets tokens, keeps them while they live.

Docker Registry v2 token authentication (distribution's `spec/auth/token.md`, `oauth.md`) and HTTP basic.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests

from cache.errors import FetchError
from oci.credentials import Credentials

#: A parameter (key, quoted or plain value) or else a scheme.
_CHALLENGE = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))|([A-Za-z]+)')


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """Scheme (lower case) and parameters of a `WWW-Authenticate` header; of several, Bearer before Basic; else none."""
    found: list[tuple[str, dict[str, str]]] = []
    for match in _CHALLENGE.finditer(header):
        key, quoted, plain, scheme = match.groups()
        if scheme:
            found.append((scheme.lower(), {}))
        elif found:
            found[-1][1][key.lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    known = [pair for pair in found if pair[0] in ("bearer", "basic")]
    return next((pair for pair in known if pair[0] == "bearer"), known[0] if known else ("", {}))


class HeaderAuth(requests.auth.AuthBase):
    """Sets one Authorization header. As an auth object, so that requests does not put netrc's in its place."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.value:
            request.headers["Authorization"] = self.value
        return request


class Authority:
    """Authorization headers for one registry. Usable from several threads.

    Args:
        host: host and port of the registry.
        credentials: asked once, and only if the registry wants any.
        send: sends a request: (method, url, keyword arguments) to response; raises FetchError when it cannot.
        secure: the registry is spoken to over TLS; then so must be whoever hands out its tokens.
    """

    def __init__(self, host: str, credentials: Callable[[], Credentials],
                 send: Callable[..., requests.Response], *, secure: bool) -> None:
        self._host, self._ask, self._send, self._secure = host, credentials, send, secure
        self._lock = threading.Lock()
        self._scheme, self._values = "", dict[str, str]()
        self._tokens: dict[str, tuple[str, float]] = {}
        self._known: Credentials | None = None

    @property
    def credentials(self) -> Credentials:
        if self._known is None:
            self._known = self._ask()
        return self._known

    def header(self, scope: str) -> str:
        """The header for a scope (`repository:team/image:pull`; several with spaces), as far as known; or empty."""
        with self._lock:
            if self._scheme == "basic":
                return _basic(self.credentials)
            if self._scheme == "bearer":
                token, until = self._tokens.get(scope, ("", 0.0))
                if not token or time.monotonic() > until:
                    token = self._token(scope)
                return f"Bearer {token}"
            return ""

    def challenged(self, header: str, scope: str) -> str:
        """The header after a 401 with this `WWW-Authenticate`; empty if there is nothing (else) to offer."""
        scheme, values = parse_challenge(header)
        with self._lock:
            before = (self._scheme, self._tokens.pop(scope, None))
            self._scheme, self._values = scheme, values
            if scheme == "basic":
                return "" if before[0] == "basic" or not self.credentials else _basic(self.credentials)
            if scheme == "bearer" and values.get("realm"):
                return f"Bearer {self._token(scope)}"
        return ""

    def _token(self, scope: str) -> str:
        """A new token of the realm, remembered for half of its life."""
        realm, service = self._values["realm"], self._values.get("service", "")
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or (self._secure and parts.scheme != "https"):
            raise FetchError("the registry names an unsafe place to get tokens from", where=self._host, found=realm,
                             expected="an https address")
        mine = self.credentials
        if mine.identity_token:
            response = self._send("POST", realm, data={
                "grant_type": "refresh_token", "service": service, "scope": scope, "client_id": "stagecraft",
                "refresh_token": mine.identity_token})
        else:
            query = [("service", service)] if service else []
            query += [("scope", part) for part in scope.split()]
            response = self._send("GET", realm, params=query, auth=HeaderAuth(_basic(mine)))
        if response.status_code != 200:
            raise refused(self._host, response.status_code, bool(mine), f"a token for {scope}")
        try:
            data: dict[str, Any] = response.json()
            token = str(data.get("token") or data["access_token"])
            life = float(data.get("expires_in") or 60)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FetchError("the registry's token service gave no token", where=realm) from error
        self._tokens[scope] = (token, time.monotonic() + life / 2)
        return token


def refused(host: str, status: int, known: bool, what: str) -> FetchError:
    """The error for a registry that does not let us in."""
    return FetchError(
        f"the registry refuses {what}", where=host, found=f"status {status}, asked " + (
            "with the credentials of your configuration" if known else "without credentials: none are configured"),
        expected="an account that may do this", cure=f"docker login {host}")


def _basic(credentials: Credentials) -> str:
    if not credentials.user:
        return ""
    import base64

    text = f"{credentials.user}:{credentials.password}".encode()
    return "Basic " + base64.b64encode(text).decode("ascii")
