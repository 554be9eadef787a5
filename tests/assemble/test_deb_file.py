"""Reading packages: every compression and tar dialect that dpkg reads, and nothing that leads astray."""

import io
import tempfile
from pathlib import Path

import pytest

from assemble.deb_file import DebReader
from assemble.deb_file import Member as Found
from cache.errors import IntegrityError
from tests.support.deb_factory import (
    Member,
    ar,
    compressed,
    control_text,
    directory,
    file,
    hardlink,
    make_deb,
    symlink,
    tar,
)


def read(data: bytes) -> tuple[dict[str, Found], dict[str, bytes]]:
    """Members and contents of a package, by path."""
    with tempfile.TemporaryFile(buffering=0) as spool:
        spool.write(b"before")  # other packages lie in the same spool
        reader = DebReader(io.BytesIO(data), "x.deb")
        assert reader.control().control.startswith("Package: ")
        members = reader.spool(spool)
        contents = {}
        for member in members:
            spool.seek(member.offset)
            contents[member.path] = spool.read(member.size)
        return {member.path: member for member in members}, contents


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_all_compressions(suffix: str) -> None:
    body = bytes(range(256)) * 20_000  # more than one chunk
    members, contents = read(make_deb("a", [directory("./"), directory("./usr"), file("./usr/x", body, 0o4755)],
                                      suffix=suffix))
    assert contents["usr/x"] == body
    assert members["usr/x"].mode == 0o4755
    assert members["usr"].kind == "directory"
    assert members[""].kind == "directory"


def test_long_names_links_and_owners() -> None:
    name, target = "usr/" + "n" * 150, "../" + "t" * 150
    members, contents = read(make_deb("a", [file("./" + name, "1", gid=42), symlink("./usr/s", target),
                                            hardlink("./usr/h", "./" + name)]))
    assert contents[name] == b"1"
    assert members[name].gid == 42
    assert members["usr/s"].target == target
    assert members["usr/h"].target == name


def test_two_xz_streams_are_one_file() -> None:
    data = tar([file("./a", b"x" * 5000)])
    deb = ar([("debian-binary", b"2.0\n"), ("control.tar", tar([file("./control", control_text("a"))])),
              ("data.tar.xz", compressed(data[:700], ".xz") + compressed(data[700:], ".xz"))])
    assert read(deb)[1]["a"] == b"x" * 5000


def test_control_files_are_kept_with_their_modes() -> None:
    reader = DebReader(io.BytesIO(make_deb("a", scripts={"postinst": "#!/bin/sh\n", "conffiles": "/etc/a\n"})), "x.deb")
    assert reader.control().scripts == {"postinst": (0o755, b"#!/bin/sh\n"), "conffiles": (0o644, b"/etc/a\n")}


@pytest.mark.parametrize(("member", "text"), [
    (file("./../etc/passwd", "x"), "out of the package"),
    (file("./usr/../../x", "x"), "out of the package"),
    (file("/etc/passwd", "x"), "absolute"),
    (hardlink("./h", "/etc/passwd"), "absolute"),
    (hardlink("./h", "../../x"), "out of the package"),
    (Member("./dev/null", b"3"), "character device"),
    (Member("./dev/sda", b"4"), "block device"),
    (Member("./run/f", b"6"), "FIFO"),
    (Member("./x", b"S"), "unknown kind"),
    (Member("./x", b"x"), "unknown kind"),
    (Member(b"./\xff\xfe", b"0"), "not UTF-8"),
    (file("./a\nb", "x"), "out of the package"),
    (Member("./x", b"0", size=1 << 30), "truncated"),
    (Member("./x", b"0", size=3, spoil=True), "checksum"),
    (symlink("./x", ""), "no target"),
])
def test_bad_members_are_refused(member: Member, text: str) -> None:
    with pytest.raises(IntegrityError, match=text) as caught:
        read(make_deb("a", [directory("./"), member]))
    assert str(caught.value.where).startswith("x.deb")


def test_a_tar_without_end_is_refused() -> None:
    deb = ar([("debian-binary", b"2.0\n"), ("control.tar", tar([file("./control", control_text("a"))])),
              ("data.tar", tar([file("./a", "1")], ended=False))])
    with pytest.raises(IntegrityError, match="end mark"):
        read(deb)


@pytest.mark.parametrize(("suffix", "damage"), [  # zstd without a checksum cannot tell: the lock's sha256 does
    (".gz", "cut"), (".xz", "cut"), (".zst", "cut"), (".gz", "flip"), (".xz", "flip")])
def test_damaged_data_is_refused(suffix: str, damage: str) -> None:
    data = bytearray(compressed(tar([file("./a", bytes(range(256)) * 400)]), suffix))
    if damage == "cut":
        del data[len(data) // 2:]
    else:
        data[len(data) // 2] ^= 0xFF
    deb = ar([("debian-binary", b"2.0\n"), ("control.tar", tar([file("./control", control_text("a"))])),
              (f"data.tar{suffix}", bytes(data))])
    with pytest.raises(IntegrityError, match="damaged"):
        read(deb)


@pytest.mark.parametrize(("data", "text"), [
    (b"", "no ar archive"),
    (b"!<arch>\n", "no control part"),
    (ar([("control.tar", b"")]), "format 2"),
    (ar([("debian-binary", b"3.0\n")]), "format 2"),
    (ar([("debian-binary", b"2.0\n"), ("control.tar.br", b""), ("data.tar", b"")]), "compressed in a way"),
    (ar([("debian-binary", b"2.0\n"), ("control.tar", tar([]))]), "no data part"),
    (ar([("debian-binary", b"2.0\n"), ("control.tar", tar([])), ("data.tar", tar([]))]), "no control file"),
    (ar([("debian-binary", b"2.0\n"), ("data.tar", b""), ("data.tar", b"")]), "twice"),
    (make_deb("a")[:-20], "truncated"),
])
def test_malformed_packages_are_refused(data: bytes, text: str) -> None:
    with pytest.raises(IntegrityError, match=text):
        read(data)


def test_a_control_part_that_explodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assemble.deb_file._CONTROL_LIMIT", 1 << 20)
    with pytest.raises(IntegrityError, match="larger than"):
        DebReader(io.BytesIO(make_deb("a", scripts={"templates": "x" * (2 << 20)})), "x.deb").control()


def test_memory_does_not_grow_with_a_member(tmp_path: Path) -> None:
    import tracemalloc

    deb = make_deb("a", [file("./big", bytes(64 << 20))])
    with (tmp_path / "spool").open("w+b", buffering=0) as spool:
        tracemalloc.start()
        DebReader(io.BytesIO(deb), "x.deb").spool(spool)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 << 20
