"""Layers over each other, against what an engine would show."""

import io
import json

import pytest

from cache.errors import IntegrityError
from oci.merge import Merged
from tests.support.tarballs import Member, make_tar, packed


def merged(*layers: list[Member], how: str = "none") -> Merged:
    image = Merged(lambda path: True)
    for number, members in enumerate(layers):
        data, _, diff_id = packed(make_tar(members), how)
        image.add_layer(io.BytesIO(data), diff_id, f"layer {number}")
    return image


@pytest.mark.parametrize("how", ["none", "gzip", "zstd"])
def test_upper_files_win(how: str) -> None:
    image = merged([("a", b"1"), ("b", b"1")], [("b", b"2")], how=how)
    assert image.content == {"a": b"1", "b": b"2"}


def test_a_whiteout_removes_a_file_and_a_tree() -> None:
    image = merged([("d", None), ("d/x", b"1"), ("d/e", None), ("d/e/y", b"1"), ("f", b"1")],
                   [("d/.wh.e", b""), (".wh.f", b"")])
    assert sorted(image.items) == ["d", "d/x"]
    assert image.content == {"d/x": b"1"}


def test_an_opaque_directory_hides_only_what_is_below() -> None:
    for order in ([("d", None), ("d/.wh..wh..opq", b""), ("d/new", b"2")],
                  [("d", None), ("d/new", b"2"), ("d/.wh..wh..opq", b"")]):
        image = merged([("d", None), ("d/x", b"1"), ("d/s", None), ("d/s/y", b"1"), ("k", b"1")], order)
        assert sorted(image.items) == ["d", "d/new", "k"]


def test_an_opaque_directory_keeps_what_its_own_layer_wrote_over() -> None:
    image = merged([("d", None), ("d/x", b"1"), ("d/y", b"1")],
                   [("d", None), ("d/x", b"2"), ("d/.wh..wh..opq", b"")])
    assert image.content == {"d/x": b"2"}


def test_a_file_in_place_of_a_directory_takes_its_tree_away() -> None:
    image = merged([("d", None), ("d/x", b"1")], [("d", b"now a file")])
    assert sorted(image.items) == ["d"]
    assert image.items["d"].type == "file"


def test_members_below_a_symlink_go_where_it_points() -> None:
    image = merged([("usr", None), ("usr/lib", None), ("lib", "usr/lib"), ("abs", "/usr/lib")],
                   [("lib/a", b"1"), ("abs/b", b"2")])
    assert image.content == {"usr/lib/a": b"1", "usr/lib/b": b"2"}
    assert image.read("lib/b") == b"2"
    assert image.exists("abs/a")
    assert not image.exists("lib")


def test_hard_links_are_followed() -> None:
    image = merged([("a", b"content"), ("b", ("a",))])
    assert image.read("b") == b"content"
    assert image.exists("b")


def test_links_in_a_circle_are_refused_and_dangling_ones_harmless() -> None:
    image = merged([("a", "b"), ("b", "a"), ("c", "nowhere/at/all"), ("up", "../../etc")])
    assert not image.exists("c")
    assert image.real("up/x") == "etc/x"
    with pytest.raises(IntegrityError, match="circle"):
        image.real("a/x")


def test_the_index_lists_paths_in_order() -> None:
    image = merged([("b", b"12"), ("a", "b"), ("c", None)])
    lines = [json.loads(line) for line in image.index()]
    assert lines == [
        {"format": "stagecraft.layer-index.v1", "merged": True},
        {"path": "a", "type": "symlink", "target": "b"},
        {"path": "b", "type": "file", "mode": 0o644, "size": 2},
        {"path": "c", "type": "directory", "mode": 0o755},
    ]


def test_a_layer_that_is_not_the_promised_one_is_refused() -> None:
    data, _, _ = packed(make_tar([("a", b"1")]), "gzip")
    with pytest.raises(IntegrityError, match="not hold what its configuration says"):
        Merged(lambda path: False).add_layer(io.BytesIO(data), "sha256:" + "0" * 64, "layer 0")


@pytest.mark.parametrize("spoil", [
    lambda data: data[:-20], lambda data: data[:200] + b"\xff" * 20 + data[220:], lambda data: b"not a tar" * 100,
])
def test_damaged_layers_are_refused(spoil: object) -> None:
    data, _, diff_id = packed(make_tar([("a", bytes(range(256)) * 20)]), "gzip")
    with pytest.raises(IntegrityError):
        Merged(lambda path: False).add_layer(io.BytesIO(spoil(data)), diff_id, "layer 0")  # type: ignore[operator]


def test_members_that_leave_the_tree_are_refused() -> None:
    for path in ("../evil", "/etc/evil", "a/../../evil"):
        with pytest.raises(IntegrityError):
            merged([(path, b"x")])
