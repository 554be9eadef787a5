from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache import tar
from cache.archive import SOURCE_DATE_EPOCH, Layer, LayerReader, LayerWriter, read_file, read_index
from cache.canonical import sha256
from cache.errors import IntegrityError
from cache.store import Store

LONG = "d" * 120 + "/" + "é" * 60 + "/" + "f" * 200


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def write(store: Store, *entries: tuple[Any, ...]) -> Layer:
    with LayerWriter(store) as writer:
        for kind, path, *rest in entries:
            if kind == "file":
                data = rest[0]
                writer.file(path, len(data), [data], *rest[1:])
            else:
                getattr(writer, kind)(path, *rest)
        return writer.finish()


@pytest.fixture
def layer(store: Store) -> Layer:
    return write(
        store,
        ("directory", "bin", 0o755), ("symlink", "bin/abs", "/bin/zsh"),
        ("file", "bin/sh", b"#!shell", 0o4755), ("hardlink", "bin/shh", "bin/sh"),
        ("symlink", "bin/zsh", "sh"), ("symlink", "circle", "./circle"), ("file", "empty", b""),
        ("symlink", "escape", "../../../bin/../bin/zsh"), ("symlink", "lib", "/usr//lib"),
        ("symlink", "nowhere", "usr/none"), ("directory", "tmp", 0o1777, 1000, 1001),
        ("directory", "usr"), ("directory", "usr/lib"), ("file", "usr/lib/a.so", bytes(1000)),
    )


# -- writing --------------------------------------------------------------------------------------


def members(store: Store, layer: Layer) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(store.read(layer.layer.digest)), mode="r:") as file:
        return file.getmembers()


def test_pythons_tarfile_reads_what_was_written(store: Store, layer: Layer) -> None:
    found = {member.name: member for member in members(store, layer)}
    assert list(found) == sorted(found)
    assert found["bin/sh"].mode == 0o4755
    assert (found["bin/shh"].type, found["bin/shh"].linkname) == (tarfile.LNKTYPE, "bin/sh")
    assert (found["lib"].type, found["lib"].linkname) == (tarfile.SYMTYPE, "/usr//lib")
    assert (found["tmp"].uid, found["tmp"].gid, found["tmp"].mode) == (1000, 1001, 0o1777)
    assert {member.mtime for member in found.values()} == {SOURCE_DATE_EPOCH}
    assert {member.uname + member.gname for member in found.values()} == {""}


def test_gnu_tar_reads_what_was_written(store: Store, tmp_path: Path) -> None:
    layer = write(store, ("directory", "d"), ("file", LONG, b"content", 0o640), ("hardlink", LONG + "h", LONG),
                  ("symlink", "z" * 150, LONG * 3))
    output = tmp_path / "out"
    output.mkdir()
    subprocess.run(["tar", "-xf", store.path_of(layer.layer.digest), "-C", output], check=True)
    assert (output / LONG).read_bytes() == b"content"
    assert (output / LONG).stat().st_mode & 0o7777 == 0o640
    assert (output / LONG).stat().st_ino == (output / (LONG + "h")).stat().st_ino
    assert (output / ("z" * 150)).readlink() == Path(LONG * 3)


def test_a_file_larger_than_8_gib_is_told_in_full() -> None:
    """ustar has eleven octal digits for a size."""
    for size in (8 ** 11 - 1, 8 ** 11, 10 << 30, 1 << 45):
        header = tar.header(b"big", tar.FILE, 0o644, size=size, mtime=1)
        with tarfile.open(fileobj=io.BytesIO(header), mode="r:") as file:
            info = file.next()
        assert info is not None
        assert info.size == size
        listed = subprocess.run(["tar", "-tv"], input=header, capture_output=True)  # it misses the content, and says so
        assert f" {size} ".encode() in listed.stdout
        assert (len(header) > 512) == (size >= 8 ** 11)


@pytest.mark.parametrize("number", [0, 65534, 8 ** 7 - 1, 8 ** 7, 2 ** 32 - 2])
def test_owners_of_any_number(store: Store, number: int) -> None:
    member, = members(store, write(store, ("directory", "d", 0o755, number, number)))
    assert (member.uid, member.gid) == (number, number)


@given(st.binary(min_size=1, max_size=40), st.integers(90, 10_100))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_pax_record_counts_itself(key: bytes, size: int) -> None:
    record = tar._record(key, b"x" * size)
    assert int(record.split(b" ")[0]) == len(record)


def test_the_same_entries_give_the_same_bytes(store: Store, layer: Layer, tmp_path: Path) -> None:
    other = Store.open(tmp_path / "other")
    with LayerReader(store, layer.index.digest) as reader, LayerWriter(other) as writer:
        for path, entry in reader.entries.items():
            if entry["type"] == "file":
                data = read_file(store, layer.layer.digest, entry)
                pieces = (data[at:at + 3] for at in range(0, len(data), 3))
                writer.file(path, len(data), pieces, entry["mode"], expect=entry["digest"])
            elif entry["type"] == "directory":
                writer.directory(path, entry["mode"], entry.get("uid", 0), entry.get("gid", 0))
            else:
                getattr(writer, entry["type"])(path, entry["target"])
        assert writer.finish() == layer


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "./a", "a/./b", "../a", "a/../b", ".", "a\0b", "\ud800",
                                  "x" * 256, "é" * 128, "a/" * 2048 + "a"])
def test_paths_that_no_extractor_could_place(store: Store, path: str) -> None:
    with pytest.raises(IntegrityError):
        write(store, ("file", path, b""))


@pytest.mark.parametrize("entries", [
    [("file", "a", b""), ("file", "a/b", b"")],
    [("symlink", "a", "/etc"), ("file", "a/passwd", b"")],
    [("symlink", "a", "b"), ("file", "a-b", b""), ("directory", "a/b/c")],
    [("file", "a", b""), ("hardlink", "b", "a"), ("file", "b/c", b"")],
    [("hardlink", "a", "b")],
    [("directory", "a"), ("hardlink", "b", "a")],
    [("symlink", "a", "x"), ("hardlink", "b", "a")],
    [("symlink", "a", "")],
    [("symlink", "a", "x\0y")],
    [("symlink", "a", "\udcff")],
    [("directory", "a", 0o200755)],
    [("directory", "a", 0o755, -1)],
])
def test_entries_that_contradict_each_other(store: Store, entries: list[tuple[Any, ...]]) -> None:
    with pytest.raises(IntegrityError) as caught:
        write(store, *entries)
    assert caught.value.where
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("second", ["a", "0"])
def test_entries_out_of_order_are_a_bug(store: Store, second: str) -> None:
    with pytest.raises(ValueError, match="order"):
        write(store, ("file", "a", b""), ("file", second, b""))


@pytest.mark.parametrize(("size", "found"), [(4, "more"), (6, "5 bytes")])
def test_a_file_of_another_size_than_said(store: Store, size: int, found: str) -> None:
    with LayerWriter(store) as writer, pytest.raises(IntegrityError, match="size") as caught:
        writer.file("a", size, [b"con", b"te"])
    assert caught.value.found == found
    with LayerWriter(store) as writer, pytest.raises(IntegrityError, match="hash"):
        writer.file("a", 5, [b"conte"], expect=sha256(b"other"))
    assert not (store.root / "blobs").exists()


# -- reading --------------------------------------------------------------------------------------


def test_the_index_tells_where_everything_is(store: Store, layer: Layer) -> None:
    lines = store.read(layer.index.digest).splitlines()
    assert json.loads(lines[0]) == {"format": "stagecraft.layer-index.v1", "layer": layer.layer.digest,
                                    "size": layer.layer.size}
    entries = list(read_index(store, layer.index.digest))
    assert [entry["path"] for entry in entries] == [member.name for member in members(store, layer)]
    content = store.read(layer.layer.digest)
    for entry in entries:
        if entry["type"] == "file":
            data = content[entry["offset"]:entry["offset"] + entry["size"]]
            assert sha256(data) == entry["digest"]
            assert read_file(store, layer.layer.digest, entry) == data


@pytest.mark.parametrize("data", [b"", b"{}\n", b"[]\n", b"no json", b'{"format":"other"}\n',
                                  b'{"format":"stagecraft.layer-index.v1"}\n{'])
def test_what_is_no_index(store: Store, data: bytes) -> None:
    with pytest.raises(IntegrityError, match="index"):
        list(read_index(store, store.put(data).digest))


@pytest.mark.parametrize(("path", "target"), [
    ("bin/sh", "bin/sh"), ("bin/shh", "bin/sh"), ("bin/zsh", "bin/sh"), ("/bin/zsh", "bin/sh"), ("bin/abs", "bin/sh"),
    ("escape", "bin/sh"),
    ("lib", "usr/lib"), ("lib/a.so", "usr/lib/a.so"), ("lib/../lib/a.so", "usr/lib/a.so"), ("circle", None),
    ("nowhere", None), ("none", None), ("../../bin/./sh", "bin/sh"),
])
def test_links_are_followed_as_in_an_image(store: Store, layer: Layer, path: str, target: str | None) -> None:
    with LayerReader(store, layer.index.digest) as reader:
        found = reader.resolve(path)
        assert (found and found["path"]) == target
        if found is not None and found["type"] == "file":
            assert reader.read(path) == store.read(layer.layer.digest)[found["offset"]:][:found["size"]]
            assert reader.open(path).read() == reader.read(path)
        else:
            with pytest.raises(FileNotFoundError):
                reader.open(path)


def test_a_stream_is_limited_to_its_file(store: Store, layer: Layer) -> None:
    with LayerReader(store, layer.index.digest) as reader:
        stream = reader.open("bin/sh")
        assert stream.read() == b"#!shell"
        assert stream.seek(-5, io.SEEK_END) == 2
        assert stream.read(100) == b"shell"
        assert stream.seek(0) == 0
        assert stream.seek(2, io.SEEK_CUR) == 2
        assert stream.seek(100) == 100
        assert stream.read() == b""
        with pytest.raises((ValueError, OSError)):
            stream.seek(-1)
        assert reader.open("empty").read() == b""
        assert reader.get("bin/zsh") == {"path": "bin/zsh", "target": "sh", "type": "symlink"}
        assert reader.get("/bin/zsh") is None
    assert stream.seek(0) == 0
    assert stream.read() == b"#!shell"


def test_threads_share_a_reader(store: Store) -> None:
    layer = write(store, *(("file", f"{number:03}", bytes([number]) * 100_000) for number in range(40)))
    wrong = []
    with LayerReader(store, layer.index.digest) as reader:
        def work() -> None:
            for number in range(40):
                stream = reader.open(f"{number:03}")
                data = b"".join(iter(lambda stream=stream: stream.read(777), b""))
                if data != bytes([number]) * 100_000 or reader.read(f"{number:03}") != data:
                    wrong.append(number)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_an_altered_layer_is_not_believed(store: Store, layer: Layer) -> None:
    path = store.path_of(layer.layer.digest)
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content.replace(b"#!shell", b"#!sh311"))
    with LayerReader(store, layer.index.digest) as reader, pytest.raises(IntegrityError, match="altered"):
        reader.read("bin/sh")
    path.write_bytes(content[:-1])
    with pytest.raises(IntegrityError, match="cut"):
        LayerReader(store, layer.index.digest)


def test_a_large_layer_streams(store: Store) -> None:
    """Neither the tar nor a file of it is ever in memory, nor is a writer's buffer kept."""
    import tracemalloc

    buffer = bytearray(1 << 20)
    expected = hashlib.sha256()

    def chunks() -> Any:
        for number in range(64):
            buffer[:] = bytes([number]) * len(buffer)
            expected.update(buffer)
            yield memoryview(buffer)

    tracemalloc.start()
    with LayerWriter(store) as writer:
        digest = writer.file("large", 64 << 20, chunks())
        layer = writer.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert digest == f"sha256:{expected.hexdigest()}"
    assert peak < 24 << 20
    assert sha256(store.path_of(layer.layer.digest).read_bytes()) == layer.layer.digest
