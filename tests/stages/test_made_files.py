"""Files that are made for somebody: written whole, never over what somebody changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema
import pytest

from cache.errors import InputError, StoreError
from stages.made_files import Made
from tests.support.front import HERE


def test_new_as_before_changed(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert Made(out).write({"x/one": b"1", "two": b"2"}, executable=("two",)) == {"x/one": "new", "two": "new"}
    assert (out / "two").stat().st_mode & 0o777 == 0o755
    assert (out / "x/one").stat().st_mode & 0o777 == 0o644
    assert Made(out).write({"x/one": b"1", "two": b"22"}) == {"x/one": "as before", "two": "changed"}
    assert (out / "two").read_bytes() == b"22"
    assert sorted(path.name for path in out.iterdir()) == ["stagecraft.json", "two", "x"]
    schema = json.loads((HERE / "docs/formats/made.schema.json").read_text())
    jsonschema.validate(json.loads((out / "stagecraft.json").read_text()), schema, jsonschema.Draft202012Validator)


def test_what_somebody_changed_stays(tmp_path: Path) -> None:
    Made(tmp_path).write({"one": b"1", "two": b"2"})
    (tmp_path / "two").write_bytes(b"mine")
    with pytest.raises(InputError) as caught:
        Made(tmp_path).write({"one": b"11", "two": b"22"})
    assert caught.value.found == "two"
    assert ((tmp_path / "one").read_bytes(), (tmp_path / "two").read_bytes()) == (b"1", b"mine")
    assert Made(tmp_path).write({"one": b"1"}) == {"one": "as before"}
    assert Made(tmp_path).write({"one": b"11", "two": b"22"}, force=True) == {"one": "changed", "two": "changed"}


def test_what_somebody_else_made_stays(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"theirs")
    with pytest.raises(InputError, match="was not made by this command"):
        Made(tmp_path).write({"one": b"1"})
    (tmp_path / "one").unlink()
    (tmp_path / "one").mkdir()
    with pytest.raises(InputError, match="something is there that is no file"):
        Made(tmp_path).write({"one": b"1"})


def test_what_is_not_made_any_more_goes_unless_it_was_changed(tmp_path: Path) -> None:
    Made(tmp_path).write({"one": b"1", "two": b"2", "three": b"3"})
    (tmp_path / "three").write_bytes(b"mine")
    Made(tmp_path).write({"one": b"1"}, gone=("two", "three", "four"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "stagecraft.json", "three"]
    Made(tmp_path).write({"one": b"1", "a/b/c": b"", "a/d": b""})
    Made(tmp_path).write({"one": b"1", "a/d": b""}, gone=("a/b/c",))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["d"]
    Made(tmp_path).write({"one": b"1"}, gone=("a/d",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "stagecraft.json", "three"]


def test_a_secret_is_never_replaced_nor_recorded(tmp_path: Path) -> None:
    assert Made(tmp_path).write({"token": b""}, private=("token",)) == {"token": "new"}
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    (tmp_path / "token").write_bytes(b"secret")
    assert Made(tmp_path).write({"token": b""}, private=("token",), force=True) == {"token": "as before"}
    assert (tmp_path / "token").read_bytes() == b"secret"
    assert "token" not in (tmp_path / "stagecraft.json").read_text()


def test_a_record_that_is_none(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"format": "other"}', '{"format": "stagecraft.made.v1", "files": 1, "mounts": {}}'):
        (tmp_path / "stagecraft.json").write_text(text)
        with pytest.raises(InputError, match="the record of made files is malformed"):
            Made(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no directory to write to"):
        Made(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="root writes everywhere, and can be somebody else")
def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    made = Made(tmp_path / "out")
    for place in tmp_path.parents:
        if not place.stat().st_mode & 1:
            place.chmod(place.stat().st_mode | 0o11)
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(StoreError, match="a file cannot be written"):
            made.write({"one": b"1"})
    finally:
        os.seteuid(0)
