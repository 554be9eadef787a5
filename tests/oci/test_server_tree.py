"""A server tree out of archives of others: what is taken, what layers hide, what is refused, the same bytes."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import Any

import pytest

from cache.build import BuildContext
from cache.canonical import sha256
from cache.errors import IntegrityError
from cache.layer import LayerReader
from cache.store import Blob, Store
from oci.server_tree import build
from tests.support.images import ARM64
from tests.support.tarballs import Member, make_tar

SERVER: list[Member] = [
    ("opt", None), ("opt/tritonserver", None), ("opt/tritonserver/bin", None),
    ("opt/tritonserver/bin/tritonserver", b"server"), ("opt/tritonserver/lib/libtritonserver.so", b"core"),
    ("opt/tritonserver/lib/stubs/libtritonserver.so", b"a stub"), ("opt/tritonserver/include/x.h", b"header"),
    ("opt/tritonserver/TRITON_VERSION", b"2.66.0\n"), ("usr/bin/python3", b"python")]


def params(**more: Any) -> dict[str, Any]:
    return {"diff_ids": [], "at": "", "anchor": "bin/tritonserver", "root": "opt/tritonserver",
            "keep": ["bin/*", "lib/*.so*", "TRITON_VERSION"], "drop": ["lib/stubs/*"],
            "required": ["bin/tritonserver"], "packages": [{"name": "triton", "version": ""}], **more}


def made(store: Store, layers: Sequence[Sequence[Member] | bytes], **more: Any) -> dict[str, Blob]:
    tars = [one if isinstance(one, bytes) else make_tar(list(one)) for one in layers]
    inputs = {f"archive/{number:02}": store.put(tar).digest for number, tar in enumerate(tars)}
    return dict(build(BuildContext(store, params(**more), inputs, ARM64)))


def files(store: Store, outputs: dict[str, Blob]) -> dict[str, str]:
    """Paths with their content, or "-> target"."""
    with LayerReader(store, outputs["index"].digest) as layer:
        return {path: f"-> {entry['target']}" if entry["type"] == "symlink" else layer.read(path).decode()
                for path, entry in layer.entries.items() if entry["type"] != "directory"}


def test_what_is_kept_and_what_is_dropped(store: Store) -> None:
    outputs = made(store, [SERVER])
    assert files(store, outputs) == {
        "opt/tritonserver/bin/tritonserver": "server", "opt/tritonserver/lib/libtritonserver.so": "core",
        "opt/tritonserver/TRITON_VERSION": "2.66.0\n"}
    assert b'"version":"2.66.0"' in store.read(outputs["packages"].digest)


@pytest.mark.parametrize(("said", "listed"), [(b"2.60.0\n", "2.60.0"), (b"", "2.66.0"), (None, "2.66.0")])
def test_version_is_the_trees_own_and_only_without_one_the_release(store: Store, said: bytes | None,
                                                                   listed: str) -> None:
    members: list[Member] = [*SERVER[:-2], *([(SERVER[-2][0], said)] if said is not None else []), SERVER[-1]]
    packages = store.read(made(store, [members], release="2.66.0")["packages"].digest)
    assert f'"version":"{listed}"'.encode() in packages


@pytest.mark.parametrize("top", ["", "tritonserver/", "a/b/"])
def test_archive_is_found_by_its_server_wherever_it_lies(store: Store, top: str) -> None:
    members = [(top + path.removeprefix("opt/tritonserver/"), content) for path, content in SERVER[3:8]]
    assert files(store, made(store, [members])) == files(store, made(store, [SERVER]))


def test_same_bytes_whatever_order_owner_and_compression(store: Store) -> None:
    one = made(store, [SERVER])
    other = made(store, [gzip.compress(make_tar(list(reversed(SERVER[3:]))), mtime=5)])
    assert one["layer"] == other["layer"]


def test_upper_layers_replace_hide_and_empty(store: Store) -> None:
    upper: list[Member] = [("opt/tritonserver/lib/libtritonserver.so", b"newer"),
                           ("opt/tritonserver/bin/.wh.tritonserver", b"")]
    top: list[Member] = [("opt/tritonserver/bin/other", b"other")]
    found = files(store, made(store, [SERVER, upper, top], at="opt/tritonserver", required=[]))
    assert found["opt/tritonserver/lib/libtritonserver.so"] == "newer"
    assert "opt/tritonserver/bin/tritonserver" not in found
    assert found["opt/tritonserver/bin/other"] == "other"
    emptied = files(store, made(store, [SERVER, [("opt/tritonserver/lib/.wh..wh..opq", b"")]], at="opt/tritonserver"))
    assert not [path for path in emptied if "/lib/" in path]


def test_links_are_followed_as_an_engine_does(store: Store) -> None:
    members: list[Member] = [
        ("srv/triton/bin/tritonserver", b"server"), ("opt/tritonserver", "/srv/triton"),
        ("srv/triton/lib/libtritonserver.so.2", b"core"), ("srv/triton/lib/libtritonserver.so", "libtritonserver.so.2"),
        ("srv/triton/bin/again", ("srv/triton/bin/tritonserver",))]
    assert files(store, made(store, [members], at="opt/tritonserver")) == {
        "opt/tritonserver/bin/tritonserver": "server", "opt/tritonserver/bin/again": "server",
        "opt/tritonserver/lib/libtritonserver.so.2": "core",
        "opt/tritonserver/lib/libtritonserver.so": "-> libtritonserver.so.2"}


@pytest.mark.parametrize(("layers", "more", "says"), [
    ([[("clients/bin/x", b"")]], {}, "has not exactly one server"),
    ([[*SERVER, ("other/bin/tritonserver", b"")]], {}, "has not exactly one server"),
    ([SERVER], {"required": ["backends/python/libtriton_python.so"]}, "lacks a part of the server"),
    ([SERVER], {"diff_ids": ["sha256:" + "0" * 64]}, "does not hold what its configuration says"),
    ([[("usr/bin/x", b"x"), ("opt/tritonserver/bin/tritonserver", ("usr/bin/x",))]], {"at": "opt/tritonserver"},
     "a link to one outside of it"),
    ([b"no tar"], {}, "the server's archive"),
])
def test_what_is_wrong_is_named(store: Store, layers: Any, more: dict[str, Any], says: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        made(store, layers, **more)
    assert says in f"{caught.value.message} {caught.value.where}"


def test_layers_are_held_to_the_image(store: Store) -> None:
    tar = make_tar(list(SERVER))
    assert made(store, [gzip.compress(tar)], diff_ids=[sha256(tar)], at="opt/tritonserver")
