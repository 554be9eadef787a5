import base64
import json
from pathlib import Path

import pytest

from cache.errors import InputError, ToolError
from oci.credentials import Credentials, find_credentials


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def configured(tmp_path: Path, config: object) -> dict[str, str]:
    directory = tmp_path / ".docker"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:/usr/bin:/bin"}


def helper(tmp_path: Path, name: str, script: str) -> None:
    program = tmp_path / "bin" / f"docker-credential-{name}"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_nothing_configured_is_anonymous(tmp_path: Path) -> None:
    assert not find_credentials("r.example", {"HOME": str(tmp_path)})


@pytest.mark.parametrize("key", ["r.example:5000", "https://r.example:5000", "http://r.example:5000",
                                 "https://r.example:5000/v2/"])
def test_auths_by_any_spelling_of_the_registry(tmp_path: Path, key: str) -> None:
    env = configured(tmp_path, {"auths": {key: {"auth": encoded("user:pa:ss")}}})
    assert find_credentials("r.example:5000", env) == Credentials("user", "pa:ss")
    assert not find_credentials("r.example", env)


def test_docker_hub_has_its_own_key(tmp_path: Path) -> None:
    env = configured(tmp_path, {"auths": {"https://index.docker.io/v1/": {"auth": encoded("u:p")}}})
    assert find_credentials("docker.io", env) == Credentials("u", "p")


def test_an_identity_token_is_kept_apart(tmp_path: Path) -> None:
    env = configured(tmp_path, {"auths": {"r.example": {"auth": encoded("00000:"), "identitytoken": "tok"}}})
    assert find_credentials("r.example", env).identity_token == "tok"


def test_a_helper_is_asked_for_its_registry(tmp_path: Path) -> None:
    helper(tmp_path, "mine", f'[ "$1" = get ] || exit 9; cat > {tmp_path}/asked; '
                             """echo '{"ServerURL":"x","Username":"u","Secret":"s"}'""")
    env = configured(tmp_path, {"credHelpers": {"r.example": "mine"}, "auths": {"r.example": {"auth": encoded("a:b")}}})
    assert find_credentials("r.example", env) == Credentials("u", "s")
    assert (tmp_path / "asked").read_text() == "r.example"


def test_a_store_is_asked_only_for_what_it_holds(tmp_path: Path) -> None:
    helper(tmp_path, "desk", """echo '{"Username":"<token>","Secret":"refresh"}'""")
    env = configured(tmp_path, {"credsStore": "desk", "auths": {"r.example": {}}})
    assert find_credentials("r.example", env) == Credentials(identity_token="refresh")
    assert not find_credentials("other.example", env)


def test_a_helper_without_an_entry_means_anonymous(tmp_path: Path) -> None:
    helper(tmp_path, "mine", "echo 'credentials not found in native keychain'; exit 1")
    assert not find_credentials("r.example", configured(tmp_path, {"credHelpers": {"r.example": "mine"}}))


@pytest.mark.parametrize(("script", "message"), [
    (None, "not installed"), ("echo broken; exit 1", "failed"), ("echo nonsense", "gave no credentials"),
])
def test_a_helper_that_does_not_work_is_named(tmp_path: Path, script: str | None, message: str) -> None:
    if script:
        helper(tmp_path, "mine", script)
    with pytest.raises(ToolError, match=message) as caught:
        find_credentials("r.example", configured(tmp_path, {"credHelpers": {"r.example": "mine"}}))
    assert "docker-credential-mine" in caught.value.diagnostics()


def test_a_helpers_name_cannot_be_a_path(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        find_credentials("r.example", configured(tmp_path, {"credHelpers": {"r.example": "../../bin/sh"}}))


@pytest.mark.parametrize("config", ["{", "[]", {"auths": {"r.example": {"auth": "!!"}}}])
def test_a_broken_configuration_is_named(tmp_path: Path, config: object) -> None:
    with pytest.raises(InputError) as caught:
        find_credentials("r.example", configured(tmp_path, config))
    assert "config.json" in str(caught.value.where)


def test_podmans_file_is_read_after_dockers_and_the_named_one_before(tmp_path: Path) -> None:
    env = configured(tmp_path, {"auths": {"a.example": {"auth": encoded("docker:1")}}})
    run = tmp_path / "run" / "containers"
    run.mkdir(parents=True)
    (run / "auth.json").write_text(json.dumps({"auths": {name: {"auth": encoded("podman:2")}
                                                         for name in ("a.example", "b.example")}}))
    (tmp_path / "named.json").write_text(json.dumps({"auths": {"c.example": {"auth": encoded("named:3")}}}))
    env |= {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "REGISTRY_AUTH_FILE": str(tmp_path / "named.json")}
    assert [find_credentials(f"{name}.example", env).user for name in "abc"] == ["docker", "podman", "named"]


def test_secrets_are_not_in_the_representation() -> None:
    assert "hidden" not in repr(Credentials("u", "hidden", "hidden too"))
