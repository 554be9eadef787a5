"""A thin client of the OCI distribution API: what is read is checked byte by byte against its digest.

Holds connection, authorization, retries, and reading: manifests, blobs, tags. Uploads are `oci.upload`, whole images
`oci.push` and `oci.pull`. Nothing is trusted because a registry says so: a manifest asked for by digest must have that
digest, a blob must have its digest and size. A registry that gives other bytes is an IntegrityError, at once, no retry.

A registry on this machine's loopback is spoken to over http; any other only if `$STAGECRAFT_INSECURE_REGISTRIES`
(hosts, comma-separated) names it. One object serves several threads.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import requests
import urllib3

from cache import canonical
from cache.errors import FetchError, IntegrityError, LockError
from cache.store import hex_of
from oci import media
from oci.auth import Authority, HeaderAuth, refused
from oci.contents import parse
from oci.credentials import find_credentials
from oci.reference import Reference, is_loopback

_CHUNK = 1 << 20
#: A manifest or configuration larger than this is not read (distribution's own limit is 4 MiB).
_MANIFEST_LIMIT = 8 << 20
_AGAIN = {408, 425, 429, 500, 502, 503, 504}

PULL = "repository:{}:pull"
PUSH = "repository:{}:pull,push"


@dataclass(frozen=True)
class Patience:
    """When a request is given up.

    Attributes:
        attempts: tries of one request.
        backoff: seconds before the second try; doubled for each further one.
        connect: seconds for connecting.
        stall: seconds without a byte after which a connection is dead.
    """

    attempts: int = 4
    backoff: float = 0.5
    connect: float = 15.0
    stall: float = 60.0


@dataclass(frozen=True)
class RemoteManifest:
    """A manifest as the registry holds it: `digest` is computed from `raw`, never taken from a header."""

    digest: str
    media_type: str
    raw: bytes

    @property
    def data(self) -> dict[str, Any]:
        return parse(self.raw, self.digest)


class Registry:
    """One registry. Open with `connect`."""

    def __init__(self, host: str, *, name: str = "", secure: bool = True, patience: Patience | None = None,
                 environ: Mapping[str, str] | None = None) -> None:
        self.host = host
        self.base = f"{'https' if secure else 'http'}://{host}/v2/"
        self.patience = patience or Patience()
        self._local = threading.local()
        self.authority = Authority(host, lambda: find_credentials(name or host, environ), self._send, secure=secure)

    @classmethod
    def connect(cls, reference: Reference, *, patience: Patience | None = None,
                environ: Mapping[str, str] | None = None) -> Registry:
        """The registry of a reference; no request is made yet."""
        env = os.environ if environ is None else environ
        plain = [host.strip() for host in env.get("STAGECRAFT_INSECURE_REGISTRIES", "").split(",")]
        secure = not is_loopback(reference.host) and reference.registry not in plain
        return cls(reference.host, name=reference.registry, secure=secure, patience=patience, environ=env)

    # -- reading ----------------------------------------------------------------------------------

    def manifest(self, repository: str, wanted: str) -> RemoteManifest:
        """The manifest or index of a tag or digest.

        Raises:
            FetchError: no such repository or manifest, not allowed, the registry is down.
            IntegrityError: other bytes than the digest promises.
        """
        where = f"{self.host}/{repository}"
        response = self.request("GET", f"{repository}/manifests/{wanted}", PULL.format(repository),
                                headers={"Accept": media.ACCEPT}, stream=True)
        with response:
            if response.status_code == 404:
                raise self._unknown(response, repository, wanted)
            self.expect(response, where, 200)
            raw = self._read(response, where)
        digest = canonical.sha256(raw)
        promised = wanted if wanted.startswith("sha256:") else response.headers.get("Docker-Content-Digest", "")
        if promised.startswith("sha256:") and promised != digest:
            raise IntegrityError("the registry gives another manifest than it names", where=where, expected=promised,
                                 found=digest)
        kind = str(parse(raw, where).get("mediaType") or response.headers.get("Content-Type", "").partition(";")[0])
        return RemoteManifest(digest, kind, raw)

    def manifest_for(self, reference: Reference, platform: Mapping[str, str]) -> RemoteManifest:
        """The image manifest of a reference for a platform; an index is followed by digest.

        Raises:
            LockError: the index has no image for the platform; names those that it has.
        """
        found = self.manifest(reference.repository, reference.wanted)
        if found.media_type in media.INDEXES:
            chosen = choose_platform(found.data, platform, str(reference))
            found = self.manifest(reference.repository, chosen)
        if found.media_type not in media.MANIFESTS:
            raise FetchError("not an image that can be used", where=str(reference),
                             expected=" or ".join(media.MANIFESTS), found=found.media_type or "no media type")
        return found

    def blob(self, repository: str, digest: str, size: int) -> Iterator[bytes]:
        """The bytes of a blob. The last chunk comes only after the whole was checked.

        Raises:
            FetchError: missing, not allowed, broken off.
            IntegrityError: another size or other bytes.
        """
        where = f"{self.host}/{repository}@{digest}"
        response = self.request("GET", f"{repository}/blobs/{digest}", PULL.format(repository),
                                headers={"Accept-Encoding": "identity"}, stream=True)
        with response:
            if response.status_code == 404:
                raise FetchError("the registry does not have a blob of the image", where=where, found="status 404")
            self.expect(response, where, 200)
            content, count, held = hashlib.sha256(), 0, b""
            try:
                while chunk := response.raw.read(_CHUNK, decode_content=False):
                    content.update(chunk)
                    count += len(chunk)
                    if count > size:
                        break
                    if held:
                        yield held
                    held = chunk
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise FetchError("the registry broke off", where=where, found=_reason(error)) from error
            if count < size:
                raise FetchError("the registry broke off", where=where, expected=f"{size} bytes",
                                 found=f"{count} bytes")
            found = f"sha256:{content.hexdigest()}" if count == size else "more bytes"
            if found != digest:
                raise IntegrityError("the registry gives wrong bytes", where=where, expected=f"{digest}, {size} bytes",
                                     found=found)
            if held:
                yield held

    def small_blob(self, repository: str, digest: str, size: int) -> bytes:
        """A configuration, whole."""
        if size > _MANIFEST_LIMIT:
            raise FetchError("a configuration larger than any image has", where=digest, found=f"{size} bytes")
        return b"".join(self.blob(repository, digest, size))

    # -- requests ---------------------------------------------------------------------------------

    def request(self, method: str, path: str, scope: str, *, attempts: int = 0, **options: Any) -> requests.Response:
        """Send a request below `/v2/` (or to an absolute address of the registry), authorized for `scope`.

        A 401 is answered once with new authorization; a refusal after that is an error, as is 403. Broken connections
        and 5xx are tried again. A body (`data`) must be bytes, or give all its bytes again each time it is iterated.

        Raises:
            FetchError: not allowed, or the registry does not answer.
        """
        url = urljoin(self.base, path)
        tries = attempts or self.patience.attempts
        for count in range(1, tries + 1):
            try:
                response = self._authorized(method, url, scope, options)
            except FetchError as error:
                if count == tries or not error.retryable:
                    raise
            else:
                if response.status_code not in _AGAIN or count == tries:
                    return response
                response.close()
            time.sleep(self.patience.backoff * 2 ** (count - 1))
        raise AssertionError("unreachable: the last try returns or raises")

    def _authorized(self, method: str, url: str, scope: str, options: Mapping[str, Any]) -> requests.Response:
        # A token must not go to another host that an upload's Location names.
        ours = url.startswith(self.base)
        response = self._send(method, url, auth=HeaderAuth(self.authority.header(scope) if ours else ""), **options)
        if response.status_code == 401 and ours:
            challenge = response.headers.get("WWW-Authenticate", "")
            response.close()
            header = self.authority.challenged(challenge, scope)
            if header:
                response = self._send(method, url, auth=HeaderAuth(header), **options)
        if response.status_code in (401, 403):
            response.close()
            error = refused(self.host, response.status_code, bool(self.authority.credentials),
                            scope.replace("repository:", "").replace(":", " to "))
            error.retryable = False
            raise error
        return response

    def _send(self, method: str, url: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", (self.patience.connect, self.patience.stall))
        options.setdefault("auth", HeaderAuth(""))
        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
        try:
            response: requests.Response = session.request(method, url, **options)
            return response
        except requests.exceptions.SSLError as error:
            raised = FetchError(
                "the registry's certificate is not trusted", where=self.host, found=_reason(error),
                cure="set REQUESTS_CA_BUNDLE to its certificate authority, or, if it speaks plain http, name it in "
                     "STAGECRAFT_INSECURE_REGISTRIES")
            raised.retryable = False
            raise raised from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise FetchError("the registry does not answer", where=self.host, found=_reason(error),
                             cure="is it running, and is a proxy needed (HTTPS_PROXY)?") from error

    def expect(self, response: requests.Response, where: str, *statuses: int) -> None:
        """Raises FetchError with the registry's own words unless the response has one of these statuses."""
        if response.status_code not in statuses:
            raise FetchError("the registry answers otherwise than it should", where=where,
                             expected="status " + " or ".join(map(str, statuses)),
                             found=f"status {response.status_code} {registry_words(response)}".rstrip())

    def _unknown(self, response: requests.Response, repository: str, wanted: str) -> FetchError:
        words = registry_words(response)
        what = "repository" if "NAME_UNKNOWN" in words else "image"
        error = FetchError(f"the registry has no such {what}", where=f"{self.host}/{repository}", expected=wanted,
                           found=f"status 404 {words}".rstrip())
        error.retryable = False
        return error

    def _read(self, response: requests.Response, where: str) -> bytes:
        try:
            raw: bytes = response.raw.read(_MANIFEST_LIMIT + 1, decode_content=True)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise FetchError("the registry broke off", where=where, found=_reason(error)) from error
        if len(raw) > _MANIFEST_LIMIT:
            raise FetchError("a manifest larger than any image has", where=where)
        return raw


def registry_words(response: requests.Response) -> str:
    """Codes and messages of an error response (`{"errors": [{"code", "message"}]}`), at most 300 characters."""
    try:
        errors = response.json()["errors"]
        text = "; ".join(f"{error.get('code', '')} {error.get('message', '')}".strip() for error in errors)
    except (ValueError, KeyError, TypeError, AttributeError, requests.RequestException):
        return ""
    return text[:300]


def choose_platform(index: Mapping[str, Any], platform: Mapping[str, str], where: str) -> str:
    """Digest of the manifest for a platform in an image index.

    Raises:
        LockError: none; names the platforms that there are.
        IntegrityError: a malformed index.
    """
    there = []
    try:
        for entry in index["manifests"]:
            found = entry.get("platform") or {}
            shown = "/".join(filter(None, (found.get("os"), found.get("architecture"), found.get("variant"))))
            if entry.get("mediaType") not in (None, *media.MANIFESTS) or shown.startswith("unknown"):
                continue  # an index in an index, or BuildKit's attestations
            there.append(shown)
            same = all(found.get(key) == platform[key] for key in ("os", "architecture"))
            if same and found.get("variant", "") in _variants(platform):
                hex_of(entry["digest"])
                return str(entry["digest"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise IntegrityError(f"malformed image index: {error!r}", where=where) from error
    raise LockError("the image is not there for this platform", where=where,
                    expected=f"{platform['os']}/{platform['architecture']}", found=", ".join(there) or "no image")


def _variants(platform: Mapping[str, str]) -> tuple[str, ...]:
    if platform.get("variant"):
        return (platform["variant"],)
    return ("", "v8") if platform["architecture"] == "arm64" else ("", "v1")


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: what requests says around it is mostly our own URL."""
    seen = error
    while True:
        inner = getattr(seen, "reason", None) or next(
            (item for item in seen.args if isinstance(item, BaseException)), None)
        if not isinstance(inner, BaseException) or inner is seen:
            break
        seen = inner
    lines = str(seen).splitlines()
    return lines[0].rpartition("object at 0x")[2].partition(": ")[2] or lines[0] if lines else type(seen).__name__
