"""Packages to a layer: one tree, dpkg's database, what is refused, and the same bytes every time."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from assemble.debs import build
from cache.archive import read_file, read_index
from cache.build import BuildContext
from cache.canonical import sha256
from cache.errors import InputError, IntegrityError
from cache.store import Blob, Store
from tests.support.deb_factory import Member, directory, file, hardlink, make_deb, symlink


class Built:
    """A finished layer, by path."""

    def __init__(self, store: Store, out: Any) -> None:
        self.store, self.out = store, out
        self.entries = {entry["path"]: entry for entry in read_index(store, out["index"].digest)}
        self.packages = {p["name"]: p for p in json.loads(store.read(out["packages"].digest))["packages"]}

    def text(self, path: str) -> str:
        return read_file(self.store, self.out["layer"].digest, self.entries[path]).decode()

    def __contains__(self, path: str) -> bool:
        return path in self.entries


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def assemble(store: Store, *debs: bytes, base: dict[str, bytes] | None = None, log: list[str] | None = None,
             **params: Any) -> Built:
    inputs = {f"debs/{number}.deb": store.put(deb).digest for number, deb in enumerate(debs)}
    inputs |= {f"base/{name}": store.put(data).digest for name, data in (base or {}).items()}
    return Built(store, build(BuildContext(store, {"architecture": "arm64", **params}, inputs,
                                           log=(log if log is not None else []).append)))


BASE = make_deb("base-files", [directory("./"), directory("./bin"), directory("./tmp", 0o1777),
                               directory("./usr"), directory("./usr/share"), directory("./usr/share/base-files"),
                               *(file(f"./usr/share/base-files/{name}", name) for name in (
                                   "dot.profile", "dot.bashrc", "profile", "motd", "info.dir"))])
TOOL = make_deb("tool", [directory("./"), directory("./bin"), file("./bin/tool", "#!", 0o755),
                         file("./lib/aarch64-linux-gnu/libt.so.1", "\x7fELF"), file("./etc/tool.conf", "a=1\n"),
                         symlink("./bin/t", "tool"), hardlink("./bin/a", "./bin/tool")],
                scripts={"conffiles": "/etc/tool.conf\n", "md5sums": "x\n", "postinst": "#!/bin/sh\n",
                         "triggers": "interest-noawait /usr/share/x\ninterest ldconfig\n"},
                Multi_Arch="same", Section="misc")


def test_usr_is_merged_and_links_are_kept(store: Store) -> None:
    built = assemble(store, TOOL, BASE)
    assert built.entries["bin"] == {"path": "bin", "type": "symlink", "target": "usr/bin"}
    assert built.entries["lib"]["target"] == "usr/lib"
    assert "lib64" not in built
    assert built.entries["usr/bin/t"]["target"] == "tool"
    # Of hardlinked paths the first in byte order is the file.
    assert built.entries["usr/bin/a"]["type"] == "file"
    assert built.entries["usr/bin/tool"] == {"path": "usr/bin/tool", "type": "hardlink", "target": "usr/bin/a"}
    assert built.entries["usr/bin/a"]["mode"] == 0o755
    assert built.entries["tmp"]["mode"] == 0o1777
    with tarfile.open(fileobj=io.BytesIO(store.read(built.out["layer"].digest))) as archive:
        assert archive.getnames() == sorted(archive.getnames(), key=str.encode)
        member = archive.extractfile("usr/bin/tool")
        assert member is not None
        assert member.read() == b"#!"


def test_database(store: Store) -> None:
    built = assemble(store, TOOL, BASE)
    status = built.text("var/lib/dpkg/status")
    assert status.startswith("Package: base-files\nStatus: install ok installed\n")
    assert "\nPackage: tool\nStatus: install ok installed\nSection: misc\nMaintainer: A <a@example.org>\n" in status
    assert "\nConffiles:\n /etc/tool.conf d5e29449b9e66d5b4bb0d6ce48fbbcb1\n" in status
    assert built.text("var/lib/dpkg/info/tool:arm64.list").splitlines() == [
        "/.", "/bin", "/bin/tool", "/lib/aarch64-linux-gnu/libt.so.1", "/etc/tool.conf", "/bin/t", "/bin/a"]
    assert built.entries["var/lib/dpkg/info/tool:arm64.postinst"]["mode"] == 0o755
    assert built.text("var/lib/dpkg/info/tool:arm64.md5sums") == "x\n"
    assert built.text("var/lib/dpkg/triggers/File") == "/usr/share/x tool:arm64/noawait\n"
    assert built.text("var/lib/dpkg/triggers/ldconfig") == "tool:arm64\n"


def test_packages_output(store: Store) -> None:
    copyright_text = ("Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\n"
                      "License: MIT\n text\n\nFiles: x\nLicense: GPL-2+ or Apache-2.0\n\n"
                      "License: BSD-3-clause\n text\n")
    deb = make_deb("tool", [file("./usr/share/doc/tool/copyright", copyright_text)], version="2:1.0-3",
                   Source="src (1.0-2)")
    assert assemble(store, deb).packages["tool"]["purl"].startswith("pkg:deb/debian/")
    built = assemble(store, deb, one("os", file("./etc/os-release", "NAME=x\nID=ubuntu\n")))
    assert built.packages["tool"] | {"status": ""} == {
        "type": "deb", "name": "tool", "version": "2:1.0-3", "architecture": "arm64", "file": "0.deb",
        "digest": sha256(deb), "licence": "(GPL-2+ or Apache-2.0) and MIT",
        "purl": "pkg:deb/ubuntu/tool@2%3A1.0-3?arch=arm64", "source": "src (1.0-2)", "status": ""}
    assert built.packages["tool"]["status"].startswith("Package: tool\nStatus: install ok installed\n")


def test_same_bytes_whatever_the_order_and_the_names_of_threads(store: Store, tmp_path: Path) -> None:
    debs = [BASE, TOOL, *(make_deb(f"p{n}", [directory("./"), file(f"./usr/share/p{n}/{n}", str(n) * n * 1000)])
                          for n in range(20))]
    first = assemble(store, *debs)
    other = Store.open(tmp_path / "other")
    inputs = {f"debs/{n}.deb": other.put(deb).digest for n, deb in enumerate(debs)}
    again = build(BuildContext(other, {"architecture": "arm64"}, dict(reversed(inputs.items()))))
    assert {name: blob.digest for name, blob in first.out.items()} == {n: b.digest for n, b in again.items()}


def test_golden_layer(store: Store) -> None:
    """If this digest changes, raise the version of `debs-layer` in stages/builders.py."""
    built = assemble(store, BASE, TOOL, users=[{"name": "u", "uid": 1000, "gid": 1000}],
                     alternatives={"tool": "/usr/bin/tool"})
    assert built.out["layer"] == GOLDEN


GOLDEN = Blob("sha256:a8e031a063c6493b7b0cace1cfc76a886ad7e9c59460082c2d62f6f88060c350", 57344)


def test_nothing_is_left_in_the_store_but_blobs(store: Store) -> None:
    assemble(store, TOOL)
    assert list((store.root / "tmp").iterdir()) == []
    with pytest.raises(IntegrityError):
        assemble(store, TOOL, make_deb("bad", [file("./x", "1"), file("./x", "2")]))
    assert list((store.root / "tmp").iterdir()) == []


def test_progress_reaches_the_end(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    inputs = {"debs/a": store.put(BASE).digest, "debs/b": store.put(TOOL).digest}
    build(BuildContext(store, {"architecture": "arm64"}, inputs,
                       progress=lambda done, total: seen.append((done, total))))
    assert max(seen) == (len(BASE) + len(TOOL), len(BASE) + len(TOOL))


# -- packages against each other ----------------------------------------------------------------------


def one(name: str, *members: Member, **fields: str) -> bytes:
    return make_deb(name, [directory("./"), *members], **fields)


@pytest.mark.parametrize(("debs", "path"), [
    ((one("a", file("./etc/x", "1")), one("b", file("./etc/x", "1"))), "/etc/x"),
    ((one("a", file("./bin/x", "1")), one("b", file("./usr/bin/x", "1"))), "/usr/bin/x"),
    ((one("a", directory("./etc/x")), one("b", symlink("./etc/x", "y"))), "/etc/x"),
])
def test_two_owners_of_a_path(store: Store, debs: tuple[bytes, bytes], path: str) -> None:
    with pytest.raises(IntegrityError, match="two packages have the same path") as caught:
        assemble(store, *debs)
    assert caught.value.where == path
    assert "0.deb" in str(caught.value.found)
    assert "1.deb" in str(caught.value.found)


@pytest.mark.parametrize(("version", "bound", "taken"), [("1.0-2", "<< 1.0-3", True), ("1.0-3", "<< 1.0-3", False),
                                                         ("1.0~rc1", "<< 1.0", True), ("1:0.5", "<< 1.0", False)])
def test_replaces(store: Store, version: str, bound: str, taken: bool) -> None:
    old = one("z-old", file("./etc/x", "old"), version=version)
    new = one("new", file("./etc/x", "new"), Replaces=f"other, z-old ({bound})")
    if not taken:
        with pytest.raises(IntegrityError, match="same path"):
            assemble(store, old, new)
        return
    built = assemble(store, old, new)
    assert built.text("etc/x") == "new"
    assert "/etc/x" not in built.text("var/lib/dpkg/info/z-old.list").splitlines()
    assert "/etc/x" in built.text("var/lib/dpkg/info/new.list").splitlines()


@pytest.mark.parametrize(("debs", "text"), [
    ((one("a", symlink("./etc/d", "/outside"), file("./etc/d/x", "1")),), "below a symlink"),
    ((one("a", symlink("./etc/d", "../..")), one("b", file("./etc/d/x", "1"))), "below a symlink"),
    ((one("a", symlink("./usr", "/evil")), one("b", file("./bin/x", "1"))), "below a symlink"),
    ((one("a", file("./etc/d", "1")), one("b", file("./etc/d/x", "1"))), "below a file"),
    ((one("a", file("./x", "1"), file("./x", "2")),), "twice"),
    ((one("a", file("./bin/x", "1"), file("./usr/bin/x", "2")),), "twice"),
    ((one("a", hardlink("./x", "./y")),), "leads to no file"),
    ((one("a", hardlink("./x", "./y"), hardlink("./y", "./x")),), "leads to no file"),
    ((one("a", hardlink("./etc/y", "./etc/shadow")), one("b", file("./etc/shadow", "s"))), "leads to no file"),
    ((one("a"), one("a")), "there twice"),
    ((one("a", architecture="amd64"),), "another architecture"),
    ((make_deb("a", control="Package: a\n"),), "no usable Version"),
    ((make_deb("a", control="Package: ../a\nVersion: 1\nArchitecture: all\n"),), "no usable Package"),
    ((make_deb("a", control="nonsense\n"),), "malformed control"),
    ((make_deb("a", control="Package: a\n\nPackage: b\n"),), "one stanza"),
])
def test_refused(store: Store, debs: tuple[bytes, ...], text: str) -> None:
    with pytest.raises(IntegrityError, match=text) as caught:
        assemble(store, *debs)
    assert caught.value.where


# -- users, alternatives, base images -----------------------------------------------------------------


def test_user_on_packages(store: Store) -> None:
    passwd = one("base-passwd", file("./usr/share/base-passwd/passwd.master", "root:*:0:0:root:/root:/bin/bash\n"),
                 file("./usr/share/base-passwd/group.master", "root:*:0:\n"))
    built = assemble(store, passwd, users=[{"name": "triton-server", "uid": 1000, "gid": 1000}])
    assert built.text("etc/passwd").splitlines()[-1] == "triton-server:*:1000:1000::/home/triton-server:/bin/bash"
    assert built.text("etc/group").splitlines()[-1] == "triton-server:*:1000:"
    assert (built.entries["home/triton-server"]["uid"], built.entries["home/triton-server"]["gid"]) == (1000, 1000)


@pytest.mark.parametrize("user", [{"name": "root", "uid": 5}, {"name": "x", "uid": 0}, {"name": "a:b", "uid": 7},
                                  {"name": "x", "uid": 7, "home": "/home/../etc"}])
def test_impossible_users(store: Store, user: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        assemble(store, TOOL, users=[user], base={
            "status": b"", "passwd": b"root:x:0:0:root:/root:/bin/sh\n", "group": b"root:x:0:\n"})


def test_alternatives_of_scripts_and_of_the_target(store: Store) -> None:
    script = ("#!/bin/sh\nupdate-alternatives --install /usr/bin/cc cc /usr/bin/gcc 20 \\\n"
              "  --slave /usr/share/man/cc.1 cc.1 /usr/share/man/gcc.1 \\\n  --slave /usr/x x /usr/none || true\n"
              "update-alternatives --install /usr/bin/$X x /usr/bin/gcc 1\n"
              "update-alternatives --install /usr/bin/ed ed /usr/bin/not-there 1\n")
    gcc = one("gcc", file("./usr/bin/gcc", "g"), file("./usr/share/man/gcc.1", "m"), file("./usr/bin/clang", "c"),
              scripts={"postinst": script})
    built = assemble(store, gcc)
    assert built.entries["usr/bin/cc"]["target"] == "/etc/alternatives/cc"
    assert built.entries["etc/alternatives/cc"]["target"] == "/usr/bin/gcc"
    assert built.entries["usr/share/man/cc.1"]["target"] == "/etc/alternatives/cc.1"
    assert "usr/x" not in built
    assert "etc/alternatives/ed" not in built
    assert built.text("var/lib/dpkg/alternatives/cc") == (
        "auto\n/usr/bin/cc\ncc.1\n/usr/share/man/cc.1\nx\n/usr/x\n\n"
        "/usr/bin/gcc\n20\n/usr/share/man/gcc.1\n/usr/none\n\n")
    chosen = assemble(store, gcc, alternatives={"cc": "/usr/bin/clang", "new": "/usr/bin/gcc"})
    assert chosen.entries["etc/alternatives/cc"]["target"] == "/usr/bin/clang"
    assert chosen.text("var/lib/dpkg/alternatives/cc").startswith("manual\n")
    assert chosen.entries["usr/bin/new"]["target"] == "/etc/alternatives/new"
    with pytest.raises(InputError, match="no package has"):
        assemble(store, gcc, alternatives={"cc": "/usr/bin/icc"})


def index_of(*entries: dict[str, Any]) -> bytes:
    header = {"format": "stagecraft.layer-index.v1", "layer": "sha256:" + "0" * 64, "size": 0}
    return b"".join(json.dumps(line).encode() + b"\n" for line in (header, *entries))


def test_on_a_base_image(store: Store) -> None:
    libc = "Package: libc6\nStatus: install ok installed\nArchitecture: arm64\nVersion: 1\nConffiles:\n /etc/l 0\n"
    base = {
        "status": f"{libc}\nPackage: tool\nStatus: install ok installed\nArchitecture: arm64\nVersion: 0\n".encode(),
        "passwd": b"root:x:0:0:root:/root:/bin/bash\n", "group": b"root:x:0:\n",
        "index": index_of({"path": "bin", "type": "symlink", "target": "usr/bin"},
                          {"path": "lib", "type": "symlink", "target": "/usr/lib"},
                          {"path": "var/run", "type": "symlink", "target": "../run"},
                          {"path": "home", "type": "directory", "mode": 0o700}),
    }
    log: list[str] = []
    built = assemble(store, TOOL, one("late", file("./var/run/late", "1")), base=base, log=log,
                     users=[{"name": "u", "uid": 7}])
    assert "bin" not in built
    assert built.entries["usr/bin/a"]["type"] == "file"
    assert "usr/lib/aarch64-linux-gnu/libt.so.1" in built
    assert "run/late" in built
    assert "var/run" not in built
    assert "home" not in built  # dpkg leaves directories that are there as they are
    status = built.text("var/lib/dpkg/status")
    assert libc in status
    assert status.count("Package: tool\n") == 1
    assert "Version: 0\n" not in status
    assert built.text("etc/passwd") == "root:x:0:0:root:/root:/bin/bash\nu:*:7:7::/home/u:/bin/bash\n"
    assert "etc/ld.so.cache" not in built
    assert "var/lib/dpkg/info/format" not in built
    assert any("ld.so.cache" in line for line in log)
