"""Check bytecode: real bytecode over its sources passes; each thing that must not be there is found."""

from __future__ import annotations

import _imp
import py_compile
import sys
from pathlib import Path

import pytest

from cache.archive import LayerWriter
from cache.store import Store
from tests.support.gates import SITE, Gates

SOURCE = b"def f(x):\n    return x in {1, None, 'a'}\n"
MODULE = f"{SITE}/pack/one.py"
TAG = "cpython-311"
PYC = f"{SITE}/pack/__pycache__/one.{TAG}.pyc"
MAGIC = (3495).to_bytes(2, "little") + b"\r\n"


def pyc(source: bytes = SOURCE, magic: bytes = MAGIC, flags: int = 1) -> bytes:
    """A file as Python 3.11 would write it: its header is what is judged."""
    return (magic + flags.to_bytes(4, "little") + _imp.source_hash(int.from_bytes(magic, "little"), source)
            + b"the code")


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    gates = Gates(Store.open(tmp_path / "store"))
    gates.files("deps", {MODULE: SOURCE, f"{SITE}/pack/link.py": "one.py"})
    return gates


def errors(gates: Gates) -> dict[str, str]:
    return gates.errors("bytecode")


def test_bytecode_of_the_source_passes(gates: Gates) -> None:
    gates.files("bytecode", {PYC: pyc()})
    assert gates.judge("bytecode").findings == ()


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="what this Python writes is of another number")
def test_what_python_itself_writes_passes(gates: Gates, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_bytes(SOURCE)
    made = py_compile.compile(str(tmp_path / "one.py"), str(tmp_path / "one.pyc"), doraise=True,
                              invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert made is not None
    gates.files("bytecode", {PYC: Path(made).read_bytes()})
    assert gates.judge("bytecode").findings == ()


@pytest.mark.parametrize(("content", "subject"), [
    (pyc(SOURCE + b"# later\n"), "stale"),
    (pyc(magic=(3531).to_bytes(2, "little") + b"\r\n"), "python"),
    (pyc(flags=3), "flags"),  # checked: Python would read the source each time
    (pyc(flags=0), "flags"),  # by time of change
    (pyc()[:12], "stale"),
    (b"", "python"),
])
def test_bytecode_of_something_else(gates: Gates, content: bytes, subject: str) -> None:
    gates.files("bytecode", {PYC: content})
    assert list(errors(gates)) == [subject]
    assert f"/{PYC}" in errors(gates)[subject]


@pytest.mark.parametrize("path", [
    f"{SITE}/pack/__pycache__/gone.{TAG}.pyc",
    f"{SITE}/pack/__pycache__/link.{TAG}.pyc",  # which Python would take, but its source is another file's
])
def test_bytecode_without_a_source(gates: Gates, path: str) -> None:
    gates.files("bytecode", {path: pyc(), PYC: pyc()})
    assert list(errors(gates)) == ["source"]


@pytest.mark.parametrize("path", [
    f"{SITE}/pack/__pycache__/one.cpython-312.pyc", f"{SITE}/pack/__pycache__/one.{TAG}.opt-1.pyc",
    f"{SITE}/pack/__pycache__/two.py",
])
def test_what_is_no_bytecode_of_this_python(gates: Gates, path: str) -> None:
    gates.files("bytecode", {path: pyc(), PYC: pyc()})
    assert list(errors(gates)) == ["stray"]


def test_a_module_of_the_layer_itself(gates: Gates) -> None:
    """It would be the source of its own bytecode."""
    gates.files("bytecode", {PYC: pyc(), f"{SITE}/pack/two.py": SOURCE,
                             f"{SITE}/pack/__pycache__/two.{TAG}.pyc": pyc()})
    assert set(errors(gates)) == {"stray", "source"}


def test_bytecode_where_python_does_not_look(gates: Gates) -> None:
    gates.files("deps", {f"{SITE}/one.py": SOURCE, MODULE: SOURCE})
    gates.files("bytecode", {f"{SITE}/pack/one.{TAG}.pyc": pyc(), PYC: pyc()})
    assert list(errors(gates)) == ["stray"]


def test_a_link_in_the_place_of_bytecode(gates: Gates) -> None:
    gates.files("bytecode", {PYC: "/tmp/another"})
    assert list(errors(gates)) == ["stray"]


def test_what_a_layer_below_has(gates: Gates) -> None:
    gates.files("vllm", {PYC: b"its own"})
    gates.files("bytecode", {PYC: pyc()})
    assert list(errors(gates)) == ["hides"]


def test_a_source_that_a_layer_above_changes(gates: Gates) -> None:
    gates.files("bytecode", {PYC: pyc()})
    gates.files("serve", {MODULE: b"other = 1\n"})
    assert errors(gates) == {"above": f"/{MODULE}: the source of bytecode, changed by a layer above it"}


def test_the_source_is_the_one_that_is_seen(gates: Gates) -> None:
    """Of two layers below, the upper one's."""
    gates.files("vllm", {MODULE: b"other = 1\n"})
    gates.files("bytecode", {PYC: pyc()})
    assert list(errors(gates)) == ["stale"]


@pytest.mark.parametrize(("directory", "mode"), [(f"{SITE}/pack", 0o700), (f"{SITE}/other", 0o755)])
def test_directories_stay_as_they_are(gates: Gates, directory: str, mode: int) -> None:
    with LayerWriter(gates.store) as writer:
        above = SITE.split("/")
        for count in range(1, len(above) + 1):
            writer.directory("/".join(above[:count]))
        writer.directory(directory, mode)
        layer = writer.finish()
    gates.outputs |= {"bytecode/layer": layer.layer.digest, "bytecode/index": layer.index.digest}
    found = errors(gates)
    del found["few"]  # it has nothing else in it
    assert found == {
        "directory": f"/{directory}: a directory that no layer below has, or that is otherwise there"}


def test_many_are_one_finding(gates: Gates) -> None:
    gates.files("deps", {f"{SITE}/m{number}.py": SOURCE for number in range(5)})
    gates.files("bytecode", {f"{SITE}/__pycache__/m{number}.{TAG}.pyc": pyc(b"other") for number in range(5)})
    found = gates.judge("bytecode").findings
    assert [(finding.subject, finding.message) for finding in found] == [
        ("stale", f"/{SITE}/__pycache__/m0.{TAG}.pyc, and 4 more: of another source than the one beside it, "
                  "which Python would not notice")]


def test_a_python_that_nobody_has_looked_at(gates: Gates) -> None:
    gates.lock["python"]["version"] = "3.99"
    gates.files("bytecode", {PYC: pyc()})
    found = gates.judge("bytecode").findings
    assert [finding.subject for finding in found] == ["python"]
    assert "checks/data/bytecode.yaml" in found[0].cure


def test_a_host_that_hashes_otherwise_judges_nothing(gates: Gates, monkeypatch: pytest.MonkeyPatch) -> None:
    gates.files("bytecode", {PYC: pyc(b"other")})
    monkeypatch.setattr("checks.bytecode._KNOWN", bytes(8))
    verdict = gates.judge("bytecode")
    assert verdict.skipped
    assert not verdict.errors


def test_a_layer_with_nothing_in_it(gates: Gates) -> None:
    gates.files("bytecode", {})
    assert list(errors(gates)) == ["few"]
    assert f"/{SITE}: most modules there have no bytecode" in errors(gates)["few"]


@pytest.mark.parametrize(("compiled", "found"), [(1, ["few"]), (2, [])])
def test_at_least_half_of_the_modules(gates: Gates, compiled: int, found: list[str]) -> None:
    """Of six: one has some below, and what cannot be imported by its name counts as none."""
    gates.files("vllm", {f"{SITE}/m{number}.py": SOURCE for number in range(5)} | {
        f"{SITE}/not-a-name.py": SOURCE, f"{SITE}/x.dist-info/y.py": SOURCE, f"{SITE}/__pycache__/m0.{TAG}.pyc": b""})
    gates.files("bytecode", {f"{SITE}/__pycache__/m{number}.{TAG}.pyc": pyc() for number in range(1, 1 + compiled)})
    assert list(errors(gates)) == found


def test_bytecode_of_other_directories_is_not_enough(gates: Gates) -> None:
    gates.files("vllm", {"usr/lib/python3.11/os.py": SOURCE})
    gates.files("bytecode", {f"usr/lib/python3.11/__pycache__/os.{TAG}.pyc": pyc()})
    assert list(errors(gates)) == ["few"]
