"""The registry client against small servers that do one thing each; a real registry is in tests/e2e."""

import base64
import http.server
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from cache.canonical import sha256
from cache.errors import FetchError, IntegrityError, LockError
from oci import media
from oci.reference import Reference, parse_reference
from oci.registry import Patience, Registry, choose_platform
from tests.support.registry import free_port, serving

QUICK = Patience(attempts=2, backoff=0.01, connect=5, stall=5)
ARM64 = {"os": "linux", "architecture": "arm64"}


class Answers:
    """What a server answers: path (without query) to (status, headers, body); records requests."""

    def __init__(self) -> None:
        self.table: dict[str, Any] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []

    def handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        answers = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answers.seen.append((self.command, self.path, {**dict(self.headers.items()), "body": body.decode()}))
                found = answers.table.get(urlsplit(self.path).path, (404, {}, b""))
                status, headers, data = found(self) if callable(found) else found
                self.send_response(status)
                self.send_header("Content-Length", headers.pop("Content-Length", str(len(data))))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = answer

        return Handler


@contextmanager
def served() -> Iterator[tuple[Answers, Registry]]:
    answers = Answers()
    with serving(answers.handler()) as host:
        yield answers, Registry(host, secure=False, patience=QUICK, environ={"HOME": "/nonexistent"})


def manifest_answer(data: dict[str, Any], kind: str = media.MANIFEST) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": kind}, json.dumps(data).encode()


def test_a_manifest_by_digest_must_have_it() -> None:
    with served() as (answers, registry):
        raw = manifest_answer({"mediaType": media.MANIFEST})
        right, wrong = sha256(raw[2]), "sha256:" + "0" * 64
        answers.table = {f"/v2/a/manifests/{right}": raw, f"/v2/a/manifests/{wrong}": raw}
        assert registry.manifest("a", right).raw == raw[2]
        with pytest.raises(IntegrityError) as caught:
            registry.manifest("a", wrong)
        assert (caught.value.expected, caught.value.found) == (wrong, right)
        assert media.MANIFEST in answers.seen[0][2]["Accept"]


def test_a_manifest_by_tag_must_be_the_one_that_the_header_names() -> None:
    with served() as (answers, registry):
        headers = {"Docker-Content-Digest": "sha256:" + "1" * 64}
        answers.table = {"/v2/a/manifests/t": (200, headers, b"{}")}
        with pytest.raises(IntegrityError):
            registry.manifest("a", "t")


def blob_answer(content: bytes, served_as: bytes, **headers: str) -> dict[str, Any]:
    return {f"/v2/a/blobs/{sha256(content)}": (200, dict(headers), served_as)}


def test_a_blob_comes_whole() -> None:
    content = bytes(range(256)) * 20_000
    with served() as (answers, registry):
        answers.table = blob_answer(content, content)
        assert b"".join(registry.blob("a", sha256(content), len(content))) == content


@pytest.mark.parametrize(("spoil", "error"), [
    (lambda data: data[:-1] + b"x", IntegrityError), (lambda data: data + b"x", IntegrityError),
    (lambda data: data[:-1], FetchError), (lambda data: b"", FetchError),
])
def test_wrong_bytes_are_found_before_the_last_of_them_is_handed_out(spoil: Any, error: type[Exception]) -> None:
    content = bytes(range(256)) * 20_000
    with served() as (answers, registry):
        answers.table = blob_answer(content, spoil(content))
        handed: list[bytes] = []
        with pytest.raises(error):
            handed.extend(registry.blob("a", sha256(content), len(content)))
        assert sum(map(len, handed)) < len(content)


def test_a_connection_that_breaks_off_is_no_end() -> None:
    content = b"x" * 1000
    with served() as (answers, registry):
        answers.table = blob_answer(content, content[:500], **{"Content-Length": "1000"})

        def hang_up(handler: Any) -> Any:
            handler.close_connection = True
            return 200, {"Content-Length": "1000"}, content[:500]

        answers.table = {f"/v2/a/blobs/{sha256(content)}": hang_up}
        with pytest.raises(FetchError, match="broke off"):
            list(registry.blob("a", sha256(content), len(content)))


def token_server(answers: Answers, host: str, accept: str) -> None:
    """/v2/… wants a Bearer token that /token gives."""
    tokens = {"count": 0}

    def token(handler: Any) -> Any:
        tokens["count"] += 1
        return 200, {}, json.dumps({"token": f"{accept}-{tokens['count']}", "expires_in": 300}).encode()

    def manifest(handler: Any) -> Any:
        if handler.headers.get("Authorization", "").startswith(f"Bearer {accept}-"):
            return manifest_answer({"mediaType": media.MANIFEST})
        challenge = f'Bearer realm="http://{host}/token",service="reg",scope="repository:a:pull"'
        return 401, {"WWW-Authenticate": challenge}, b""

    answers.table = {"/token": token, "/v2/a/manifests/t": manifest, "/v2/a/manifests/u": manifest}


def test_a_token_is_fetched_once_and_used_again() -> None:
    with served() as (answers, registry):
        token_server(answers, registry.host, "good")
        registry.manifest("a", "t")
        registry.manifest("a", "u")
        paths = [urlsplit(path).path for _, path, _ in answers.seen]
        assert paths == ["/v2/a/manifests/t", "/token", "/v2/a/manifests/t", "/v2/a/manifests/u"]
        assert parse_qs(urlsplit(answers.seen[1][1]).query) == {"service": ["reg"], "scope": ["repository:a:pull"]}
        assert "Authorization" not in answers.seen[1][2]


def configured(tmp_path: Path, host: str, **entry: str) -> Registry:
    (tmp_path / "config.json").write_text(json.dumps({"auths": {host: entry}}))
    environ = {"DOCKER_CONFIG": str(tmp_path), "HOME": "/nonexistent"}
    return Registry(host, secure=False, patience=QUICK, environ=environ)


def test_credentials_go_to_the_token_service_only(tmp_path: Path) -> None:
    with served() as (answers, anonymous):
        token_server(answers, anonymous.host, "good")
        registry = configured(tmp_path, anonymous.host, auth=base64.b64encode(b"me:secret").decode())
        registry.manifest("a", "t")
        basic = "Basic " + base64.b64encode(b"me:secret").decode()
        assert [headers.get("Authorization") for _, _, headers in answers.seen] == [None, basic, "Bearer good-1"]


def test_an_identity_token_is_exchanged(tmp_path: Path) -> None:
    with served() as (answers, anonymous):
        token_server(answers, anonymous.host, "good")
        registry = configured(tmp_path, anonymous.host, auth=base64.b64encode(b"0:").decode(), identitytoken="refresh")
        registry.manifest("a", "t")
        method, _, headers = answers.seen[1]
        assert method == "POST"
        assert parse_qs(headers["body"])["refresh_token"] == ["refresh"]


def test_a_token_that_does_not_help_is_a_refusal_with_a_cure() -> None:
    with served() as (answers, registry):
        token_server(answers, registry.host, "good")
        answers.table["/token"] = (200, {}, b'{"token": "bad"}')
        with pytest.raises(FetchError, match="refuses") as caught:
            registry.manifest("a", "t")
        assert caught.value.cure == f"docker login {registry.host}"
        assert not caught.value.retryable


@pytest.mark.parametrize("answer", [(401, {}, b""), (200, {}, b"nonsense"), (200, {}, b"{}"), (500, {}, b"")])
def test_a_token_service_that_gives_none_is_an_error(answer: Any) -> None:
    with served() as (answers, registry):
        token_server(answers, registry.host, "good")
        answers.table["/token"] = lambda handler: (answer[0], dict(answer[1]), answer[2])
        with pytest.raises(FetchError):
            registry.manifest("a", "t")


def test_a_secure_registry_cannot_send_credentials_to_plain_http() -> None:
    with served() as (_, plain):
        registry = Registry(plain.host, secure=True, patience=QUICK, environ={"HOME": "/nonexistent"})
        with pytest.raises(FetchError, match="unsafe"):
            registry.authority.challenged('Bearer realm="http://evil.example/token"', "repository:a:pull")


def test_basic_is_answered_once(tmp_path: Path) -> None:
    with served() as (answers, anonymous):
        answers.table = {"/v2/a/manifests/t": lambda handler: (401, {"WWW-Authenticate": 'Basic realm="x"'}, b"")}
        registry = configured(tmp_path, anonymous.host, auth=base64.b64encode(b"me:secret").decode())
        with pytest.raises(FetchError, match="refuses") as caught:
            registry.manifest("a", "t")
        assert len(answers.seen) == 2
        with pytest.raises(FetchError, match="refuses"):
            registry.manifest("a", "t")
        assert len(answers.seen) == 3
        assert "secret" not in caught.value.diagnostics()


def test_a_registry_that_stumbles_is_asked_again() -> None:
    with served() as (answers, registry):
        count = {"n": 0}

        def stumble(handler: Any) -> Any:
            count["n"] += 1
            return (503, {}, b"") if count["n"] == 1 else manifest_answer({"mediaType": media.MANIFEST})

        answers.table = {"/v2/a/manifests/t": stumble}
        registry.manifest("a", "t")
        assert count["n"] == 2


def test_what_is_not_there_is_told_in_the_registrys_words() -> None:
    with served() as (answers, registry):
        body = b'{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}'
        answers.table = {"/v2/a/manifests/t": (404, {}, body)}
        with pytest.raises(FetchError, match="no such repository") as caught:
            registry.manifest("a", "t")
        assert "NAME_UNKNOWN" in str(caught.value.found)
        with pytest.raises(FetchError, match="no such image"):
            registry.manifest("b", "t")


def test_a_registry_that_is_down_is_named() -> None:
    host = f"127.0.0.1:{free_port()}"
    with pytest.raises(FetchError, match="does not answer") as caught:
        Registry(host, secure=False, patience=QUICK, environ={}).manifest("a", "t")
    assert caught.value.where == host
    assert "refused" in str(caught.value.found)
    assert "0x" not in str(caught.value.found)


def test_a_silent_registry_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        patience = Patience(attempts=1, stall=0.2)
        with pytest.raises(FetchError, match="does not answer"):
            Registry(host, secure=False, patience=patience, environ={}).manifest("a", "t")


def test_an_absurd_manifest_is_not_read() -> None:
    with served() as (answers, registry):
        answers.table = {"/v2/a/manifests/t": (200, {}, b" " * (9 << 20))}
        with pytest.raises(FetchError, match="larger than any image"):
            registry.manifest("a", "t")


def entry(architecture: str, digit: str, kind: str = media.MANIFEST, **more: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": "sha256:" + digit * 64, "size": 1,
            "platform": {"os": "linux", "architecture": architecture, **more}}


def test_the_platform_is_chosen_from_an_index() -> None:
    index = {"manifests": [entry("amd64", "1"), entry("arm", "2", variant="v7"), entry("unknown", "4"),
                           entry("arm64", "5", variant="v9"), entry("arm64", "3", variant="v8")]}
    assert choose_platform(index, ARM64, "r") == "sha256:" + "3" * 64
    assert choose_platform(index, {"os": "linux", "architecture": "amd64"}, "r") == "sha256:" + "1" * 64


def test_an_index_without_the_platform_names_what_it_has() -> None:
    index = {"manifests": [entry("amd64", "1"), entry("arm", "2", variant="v7"),
                           {**entry("unknown", "3"), "platform": {"os": "unknown", "architecture": "unknown"}}]}
    with pytest.raises(LockError) as caught:
        choose_platform(index, ARM64, "r.example/a:1")
    assert caught.value.found == "linux/amd64, linux/arm/v7"


@pytest.mark.parametrize("index", [{}, {"manifests": 1}, {"manifests": [1]},
                                   {"manifests": [{**entry("arm64", "1"), "digest": "sha256:zz"}]}])
def test_a_malformed_index_is_refused(index: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError):
        choose_platform(index, ARM64, "r")


def test_an_index_is_followed_by_digest() -> None:
    with served() as (answers, registry):
        inner = manifest_answer({"mediaType": media.DOCKER_MANIFEST}, media.DOCKER_MANIFEST)
        one = {**entry("arm64", "1", media.DOCKER_MANIFEST), "digest": sha256(inner[2])}
        answers.table = {"/v2/a/manifests/t": manifest_answer({"mediaType": media.DOCKER_LIST, "manifests": [one]}),
                         f"/v2/a/manifests/{one['digest']}": inner}
        found = registry.manifest_for(Reference(registry.host, "a", "t"), ARM64)
        assert (found.digest, found.media_type) == (one["digest"], media.DOCKER_MANIFEST)


def test_an_old_manifest_is_refused() -> None:
    with served() as (answers, registry):
        answers.table = {"/v2/a/manifests/t": manifest_answer({"schemaVersion": 1}, "application/vnd.docker.v1+json")}
        with pytest.raises(FetchError, match="not an image that can be used"):
            registry.manifest_for(Reference(registry.host, "a", "t"), ARM64)


@pytest.mark.parametrize(("reference", "environ", "base"), [
    ("127.0.0.1:5000/a", {}, "http://127.0.0.1:5000/v2/"),
    ("r.example/a", {}, "https://r.example/v2/"),
    ("r.example:5000/a", {"STAGECRAFT_INSECURE_REGISTRIES": "x, r.example:5000"}, "http://r.example:5000/v2/"),
    ("docker.io/library/a", {}, "https://registry-1.docker.io/v2/"),
])
def test_only_loopback_and_what_is_named_goes_without_tls(reference: str, environ: dict[str, str], base: str) -> None:
    assert Registry.connect(parse_reference(reference), environ=environ).base == base
