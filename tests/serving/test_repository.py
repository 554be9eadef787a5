"""What the entrypoint looks at before it starts the server: one line, an exit code."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest

from tests.support.serve import HERE, module

repository = module("repository")

CONFIG = 'backend: "vllm"\ninstance_group [ { count: 1 kind: KIND_MODEL } ]\n'
#: No port is tried where it is not the subject.
CLOSED = ["--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"]


def model(models: Path, name: str = "m", config: str | None = CONFIG, engine: str | None = '{"model": "a/b"}',
          version: str = "1") -> Path:
    place = models / name
    (place / version).mkdir(parents=True)
    if config is not None:
        (place / "config.pbtxt").write_text(config)
    if engine is not None:
        (place / version / "model.json").write_text(engine)
    return place


@pytest.fixture
def backends(tmp_path: Path) -> Path:
    for name in ("python", "vllm"):
        (tmp_path / "backends" / name).mkdir(parents=True)
    return tmp_path / "backends"


def fault(models: Path | str, backends: Path, *more: str) -> tuple[str, int]:
    with pytest.raises(repository.FaultError) as caught:
        repository.check([f"--model-repository={models}", *CLOSED, *more], backends)
    assert "\n" not in str(caught.value)
    return str(caught.value), caught.value.code


def test_sound_repository_passes(tmp_path: Path, backends: Path) -> None:
    model(tmp_path / "models")
    model(tmp_path / "models", "pair", 'platform: "ensemble"', None)
    model(tmp_path / "models", "script", None, None)
    (tmp_path / "models/script/1/model.py").write_text("")
    (tmp_path / "models/.hidden").mkdir()
    (tmp_path / "models/README").write_text("")
    assert repository.check([f"--model-repository={tmp_path / 'models'}", *CLOSED], backends) == []
    assert repository.check(["--model-repository", str(tmp_path / "models"), *CLOSED], backends) == []
    assert repository.check(["--model-repository=s3://bucket/models", *CLOSED], backends) == []


def test_no_repository(tmp_path: Path, backends: Path) -> None:
    assert fault(tmp_path / "no", backends) == (
        f"no model repository: {tmp_path}/no does not exist here; mount one: -v DIR:{tmp_path}/no:ro", 66)
    (tmp_path / "file").write_text("")
    assert fault(tmp_path / "file", backends) == (f"no model repository: {tmp_path}/file is no directory", 66)
    (tmp_path / "empty").mkdir()
    said, code = fault(tmp_path / "empty", backends)
    assert (said.startswith(f"the model repository {tmp_path}/empty holds no model"), code) == (True, 66)
    with pytest.raises(repository.FaultError, match="no --model-repository was given"):
        repository.check([], backends)


@pytest.mark.parametrize(("config", "engine", "version", "said"), [
    (None, None, "1", "config.pbtxt does not exist"),
    ("max_batch_size: 0\n", None, "1", 'names no backend, as in backend: "vllm"'),
    ('# backend: "vllm"\n', None, "1", "names no backend"),
    ('input [ { backend: "vllm" } ]', None, "1", "names no backend"),
    ('backend: "vlm"', None, "1", "asks for the backend 'vlm', which this image does not have (has: python, vllm)"),
    ('name: "other" backend: "vllm"', "{}", "1", "says name: 'other', but the directory is 'm'"),
    (CONFIG, None, "1", "1/model.json does not exist: the vllm backend reads the engine's arguments there"),
    (CONFIG, '{"model": "a/b"', "1", "1/model.json is no JSON, cut short perhaps: Expecting ',' delimiter"),
    (CONFIG, "[" * 400_000, "1", "1/model.json is no JSON, cut short perhaps: maximum recursion depth"),
    (CONFIG, "[]", "1", "1/model.json holds no JSON object"),
    (CONFIG, '{"model": "/not/there"}', "1", "names the model /not/there, which is not here; mount it there"),
    (CONFIG, "{}", "one", "has no version: a directory named 1"),
])
def test_a_faulty_model_is_named_with_its_file(tmp_path: Path, backends: Path, config: str | None, engine: str | None,
                                               version: str, said: str) -> None:
    model(tmp_path / "models", config=config, engine=engine, version=version)
    message, code = fault(tmp_path / "models", backends)
    assert said in message
    assert message.startswith("model m: ")
    assert code == 78


def test_a_model_may_be_one_file(tmp_path: Path, backends: Path) -> None:
    (tmp_path / "x.gguf").write_text("")
    model(tmp_path / "models", engine=json.dumps({"model": str(tmp_path / "x.gguf")}))
    assert repository.check([f"--model-repository={tmp_path / 'models'}", *CLOSED], backends) == []


def test_faults_are_warnings_where_the_server_goes_on(tmp_path: Path, backends: Path) -> None:
    model(tmp_path / "models")
    model(tmp_path / "models", "bad", "")
    model(tmp_path / "models", "worse", None)
    assert fault(tmp_path / "models", backends)[0].endswith("(and 1 more of that kind)")
    found = repository.check([f"--model-repository={tmp_path / 'models'}", *CLOSED, "--exit-on-error=false"], backends)
    assert [line.split(":")[0] for line in found] == ["model bad", "model worse"]


def test_only_what_is_loaded_is_looked_at(tmp_path: Path, backends: Path) -> None:
    model(tmp_path / "models")
    model(tmp_path / "models", "bad", "")
    given = [f"--model-repository={tmp_path / 'models'}", *CLOSED, "--model-control-mode=explicit"]
    assert repository.check([*given, "--load-model=m"], backends) == []
    assert repository.check(given, backends) == []
    assert fault(tmp_path / "models", backends, "--model-control-mode=explicit", "--load-model=*")[1] == 78
    assert fault(tmp_path / "models", backends, "--model-control-mode=explicit", "--load-model=typo") == (
        f"--load-model=typo: there is no such model in {tmp_path}/models (has: bad, m)", 66)
    (tmp_path / "empty").mkdir()
    empty = [f"--model-repository={tmp_path / 'empty'}", *CLOSED, "--model-control-mode=explicit"]
    assert repository.check(empty, backends) == []
    assert fault(tmp_path / "empty", backends, "--model-control-mode=explicit", "--load-model=*")[1] == 66


def test_port_in_use(tmp_path: Path, backends: Path) -> None:
    model(tmp_path / "models")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        asked = [f"--model-repository={tmp_path / 'models'}", "--http-address=127.0.0.1", f"--http-port={port}",
                 "--allow-grpc=false", "--allow-metrics=false"]
        with pytest.raises(repository.FaultError) as caught:
            repository.check(asked, backends)
        assert str(caught.value) == (f"127.0.0.1 port {port} is in use: stop who has it, or take another one "
                                     "(--http-port, --http-address)")
        assert caught.value.code == 69
    assert repository.check(asked, backends) == []
    two = [*asked[:3], "--grpc-address=127.0.0.1", f"--grpc-port={port}", "--allow-metrics=false"]
    with pytest.raises(repository.FaultError, match=r"is in use.*--grpc-port"):
        repository.check(two, backends)
    with pytest.raises(repository.FaultError, match=r"192\.0\.2\.1 port \d+ is no address of this machine"):
        repository.check([*asked, "--http-address=192.0.2.1"], backends)
    with pytest.raises(repository.FaultError, match="--http-port=x is no port"):
        repository.check([*asked, "--http-port=x"], backends)


def test_exit_code_and_line_of_the_program(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-I", str(HERE / "repository.py"), f"--model-repository={tmp_path / 'no'}"],
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (66, "")
    assert done.stderr == (f"entrypoint: no model repository: {tmp_path}/no does not exist here; mount one: "
                           f"-v DIR:{tmp_path}/no:ro\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="root reads everything, and can be somebody else")
def test_unreadable(tmp_path: Path, backends: Path) -> None:
    """As the user of an image meets it: files that belong to somebody else."""
    for place in (tmp_path, *tmp_path.parents):
        if not place.stat().st_mode & 1:
            place.chmod(place.stat().st_mode | 0o11)
    models = tmp_path / "models"
    place = model(models)
    (place / "config.pbtxt").chmod(0o600)
    os.seteuid(65534)
    try:
        assert fault(models, backends) == (
            f"model m: {place}/config.pbtxt cannot be read by uid 65534: Permission denied", 78)
        os.seteuid(0)
        (place / "config.pbtxt").chmod(0o644)
        (place / "1" / "model.json").chmod(0o600)
        os.seteuid(65534)
        assert fault(models, backends) == (
            f"model m: {place}/1/model.json cannot be read by uid 65534: Permission denied", 78)
        os.seteuid(0)
        models.chmod(0o700)
        os.seteuid(65534)
        assert fault(models, backends) == (
            f"the model repository {models} cannot be read by uid 65534: Permission denied", 66)
    finally:
        os.seteuid(0)


def test_text_format_is_read_as_far_as_it_matters() -> None:
    assert repository.top_level('''
        name: "a # b"  # backend: "x"
        parameters: { key: "backend" value: { string_value: "y" } } parameters { key: 'k' }
        backend: 'vllm', max_batch_size: -1
        input [ { name: "inner" }, { name: "other" } ]
    ''') == {"name": "a # b", "backend": "vllm", "max_batch_size": "-1"}


def test_the_running_server_is_told_from_what_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `docker run --init` process 1 has the same words, without the addresses that the entrypoint adds."""
    asked = ["tritonserver", "--model-repository=/elsewhere"]
    processes = [["/sbin/docker-init", "--", "/opt/stagecraft/entrypoint", *asked],
                 ["/bin/sh", "/opt/stagecraft/entrypoint", *asked]]
    monkeypatch.setattr(repository, "_of_processes", lambda: iter(processes))
    assert repository.running().repositories == ("/models",)
    processes.append(["/usr/bin/qemu-aarch64", "/opt/tritonserver/bin/tritonserver", "--http-address=192.0.2.1",
                      *asked[1:]])
    assert repository.running().repositories == ("/elsewhere",)
    assert repository.running().address("http") == "192.0.2.1"


def test_help_needs_no_repository(tmp_path: Path) -> None:
    """The entrypoint itself, with a program in the server's place that says what it is given."""
    text = (HERE.parents[1] / "templates/entrypoint.sh.j2").read_text()
    script = tmp_path / "entrypoint"
    script.write_text(jinja2.Template(text).render(python=sys.executable, server="echo", bind="127.0.0.1")
                      .replace("/opt/stagecraft", str(HERE)))

    def entrypoint(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(["sh", str(script), *words], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    for word in ("--help", "-h"):
        code, said, _ = entrypoint("tritonserver", word)
        assert (code, said.split()[-1]) == (0, word)
    code, said, complaint = entrypoint("tritonserver", "--helpful")
    assert (code, said) == (66, "")
    assert complaint.startswith("entrypoint: no --model-repository was given")
