"""Real packages of two Debian releases, locked, fetched, assembled: the result runs, and is what dpkg would have made.

amd64 layers run natively under bubblewrap; the arm64 one under qemu-user of trixie, itself locked and fetched by us.
The referee is mmdebstrap with the same packages of the same archive: all maintainer scripts run for real, and what
differs from our layer must be in `KNOWN`, with its reason.
"""

import hashlib
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from assemble.debs import build
from cache.archive import read_index
from cache.build import BuildContext
from cache.store import Store
from lock.apt_archive import Archive, address
from lock.debs import DebLock, DebRequest, DebSource, lock_debs
from lock.fetch import Wanted, fetch

ARCHIVES = {"debian": Archive("debian", "debian")}
#: What a serving image needs beyond Debian's Essential packages; `{python}` is the suite's version.
PACKAGES = ("python3", "libpython{python}", "python3-dev", "gcc", "g++", "libc6-dev", "ca-certificates", "libnuma1",
            "libgomp1")
PYTHON = {"bookworm": "3.11", "trixie": "3.13"}
PARAMS = {"users": [{"name": "server", "uid": 1000, "gid": 1000}],
          "alternatives": {"cc": "/usr/bin/gcc", "c++": "/usr/bin/g++"}}

#: Paths that may differ from the referee's: (pattern, reason).
KNOWN: tuple[tuple[str, str], ...] = (
    (r"(dev|home/server)", "we keep /dev of base-files, which the referee was told to skip; the user is ours"),
    (r"etc/(passwd|group)", "the user is ours"),
    (r"etc/(fstab|hostname|resolv\.conf)", "written by mmdebstrap for the machine that it makes"),
    (r"(etc|var/lib|var/cache|var/log)/apt(/.*)?", "the referee installs by apt; our image has none"),
    (r"var/lib/dpkg/arch", "written by mmdebstrap"),
    (r"var/lib/dpkg/arch-native", "cache of dpkg 1.22, made by its postinst; dpkg works without"),
    (r"var/lib/dpkg/(available|lock.*|.*-old|triggers/Lock)", "locks and copies that dpkg makes as it runs"),
    (r"var/lib/dpkg/diversions", "protective diversions of upgrades to a merged /usr, and dash's of /bin/sh to itself: "
                                 "what was diverted depends on the order of unpacking; a later upgrade claims anew"),
    (r"var/cache/debconf/.*", "answers to questions; nobody asks in an image"),
    (r"var/lib/(pam/.*|python(/.*)?)", "memory of pam-auth-update and of Python's byte-compiler"),
    (r"etc/python3(/.*)?", "settings of Python's byte-compiler"),
    (r".*/__pycache__(/.*)?", "byte code is made at run time or by a layer of its own"),
    (r"etc/(systemd/system/.*|rc.\.d/.*)", "units and scripts of an init system, which an image does not run"),
    (r"var/lib/systemd/deb-systemd-helper-enabled(/.*)?", "the same"),
    (r"etc/ca-certificates\.conf", "same certificates, other comment"),
    (r"etc/ld\.so\.cache", "same entries (compared apart), other name of the program that wrote it"),
    (r"etc/gprofng\.rc\.dpkg-old", "left over by dpkg from a configuration file that changed its owner"),
    (r"var/log/faillog", "made by login, read by nothing in Debian 12"),
    (r"usr/local/libexec", "made by trixie's base-files, empty"),
)


def resolve(suite: str, architecture: str, *packages: str, essential: bool = True) -> DebLock:
    return lock_debs(DebRequest("debian", suite, ("main",), architecture, packages, essential=essential), ARCHIVES)


def obtain(store: Store, lock: DebLock) -> dict[str, str]:
    """Fetch what is locked; returns the inputs of the builder."""
    fetch(store, [Wanted("deb", deb.name, deb.version, deb.file, deb.size, deb.sha256, deb.index) for deb in lock.debs],
          {"deb": DebSource(ARCHIVES, lock.suites)})
    return {f"debs/{deb.file.rpartition('/')[2]}": "sha256:" + deb.sha256 for deb in lock.debs}


@dataclass(frozen=True)
class Laid:
    """A layer, extracted."""

    suite: str
    lock: DebLock
    store: Store
    layer: str
    index: str
    root: Path

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return inside(self.root, *command, **options)


def lay(store: Store, suite: str, architecture: str, root: Path) -> Laid:
    lock = resolve(suite, architecture, *(name.format(python=PYTHON[suite]) for name in PACKAGES))
    inputs = obtain(store, lock)
    out = build(BuildContext(store, {"architecture": architecture, **PARAMS}, inputs))
    root.mkdir()
    subprocess.run(["tar", "--numeric-owner", "-xpf", str(store.path_of(out["layer"].digest)), "-C", str(root)],
                   check=True)
    return Laid(suite, lock, store, out["layer"].digest, out["index"].digest, root)


def inside(root: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command with `root` as its root file system; the network is the host's, for servers on loopback."""
    return subprocess.run(
        ["bwrap", "--bind", str(root), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--unshare-all",
         "--share-net", "--die-with-parent", "--clearenv", "--setenv", "PATH", "/usr/sbin:/usr/bin:/sbin:/bin",
         "--setenv", "HOME", "/root", "--setenv", "LANG", "C.UTF-8", "--chdir", "/tmp", "--", *command],
        capture_output=True, text=True, check=check)


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def laid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laid]:
    directory = tmp_path_factory.mktemp(f"base-{request.param}")
    yield lay(Store.open(directory / "store"), request.param, "amd64", directory / "root")
    shutil.rmtree(directory)


def test_what_is_locked_is_a_closed_small_set(laid: Laid) -> None:
    names = {deb.name for deb in laid.lock.debs}
    assert {"libc6", "bash", "usr-is-merged", "libstdc++6", "mawk", f"libpython{PYTHON[laid.suite]}"} <= names
    assert not names & {"usrmerge", "apt", "perl", "systemd", "udev"}
    assert len(names) < 150


def test_compiler_shell_and_python_run(laid: Laid) -> None:
    script = """set -e
cat > a.c <<'END'
#include <stdio.h>
int main(void) { printf("%s", "compiled"); return 7; }
END
cc a.c -o a && ./a || echo " $?"
printf '#include <iostream>\\nint main() { std::cout << "c++\\\\n"; }' > b.cc && c++ b.cc -o b && ./b
printf '#include <Python.h>\\nint main() { return Py_IsInitialized(); }' > p.c
gcc p.c -o p $(python3-config --includes --ldflags --embed) && ./p && echo embedded
echo 'x y' | awk '{ print $2 }'
"""
    done = laid.run("bash", "-c", script)
    assert done.stdout == "compiled 7\nc++\nembedded\ny\n"
    assert laid.run("python3", "-c", "import sys, ctypes, sqlite3, lzma; print(sys.version_info[:2])").stdout == (
        f"({PYTHON[laid.suite].replace('.', ', ')})\n")


def test_names_resolve(laid: Laid) -> None:
    assert laid.run("getent", "passwd", "root", "server").stdout.splitlines() == [
        "root:*:0:0:root:/root:/bin/bash", "server:*:1000:1000::/home/server:/bin/bash"]
    assert laid.run("getent", "group", "server", "shadow").stdout.splitlines() == ["server:*:1000:", "shadow:*:42:"]
    assert laid.run("stat", "-c", "%a", "/home/server", "/var/tmp", "/root", "/usr/bin/su").stdout.split() == [
        "755", "1777", "700", "4755"]
    assert laid.run("readlink", "-f", "/usr/bin/awk", "/usr/bin/cc").stdout.startswith("/usr/bin/mawk\n")
    assert "files dns" in laid.run("grep", "^hosts:", "/etc/nsswitch.conf").stdout


def test_dpkg_is_content(laid: Laid) -> None:
    listed = laid.run("dpkg-query", "-f", "${db:Status-Abbrev}${Package} ${Version} ${Architecture}\n", "-W").stdout
    assert sorted(listed.splitlines()) == sorted(f"ii {deb.name} {deb.version} {deb.architecture}"
                                                 for deb in laid.lock.debs)
    assert laid.run("dpkg", "--audit").stdout == ""
    assert laid.run("dpkg", "--verify").stdout == ""
    assert laid.run("dpkg", "-S", "/bin/bash", check=False).stdout + laid.run(
        "dpkg", "-S", "/usr/bin/bash", check=False).stdout == f"bash: /{'usr/' * (laid.suite == 'trixie')}bin/bash\n"
    assert laid.run("dpkg", "--configure", "-a").stdout == ""


def test_alternatives_are_known(laid: Laid) -> None:
    shown = laid.run("update-alternatives", "--get-selections").stdout
    assert re.search(r"^cc +auto +/usr/bin/gcc$", shown, re.MULTILINE)
    assert re.search(r"^awk +auto +/usr/bin/mawk$", shown, re.MULTILINE)
    assert laid.run("update-alternatives", "--verbose", "--auto", "cc").returncode == 0


def test_loader_cache_is_what_ldconfig_makes(laid: Laid) -> None:
    ours = laid.run("ldconfig", "-p").stdout.splitlines()
    theirs = laid.run("bash", "-c", "ldconfig -C /tmp/cache 2>/dev/null; ldconfig -C /tmp/cache -p").stdout.splitlines()
    assert len(ours) > 90
    assert ours[-1] == "Cache generated by: stagecraft"
    assert ours[1:-1] == theirs[1:-1]


def test_certificates_are_trusted(laid: Laid) -> None:
    count = "import ssl; print(ssl.create_default_context().cert_store_stats()['x509_ca'])"
    assert int(laid.run("python3", "-c", count).stdout) > 100
    # Each link by hash leads to the certificate that OpenSSL itself hashes to that name.
    script = ('cd /etc/ssl/certs && for link in *.[0-9]; do h=$(openssl x509 -hash -noout -in $link); '
              'test "$h" = "${link%.*}" || echo "wrong $link"; done; ls *.0 | wc -l')
    assert re.fullmatch(r"1\d\d\n", laid.run("bash", "-c", script).stdout)


def test_tls_with_a_new_authority(laid: Laid) -> None:
    """The image's own update-ca-certificates adds an authority, and clients that trust by default see it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    client = ("import socket, ssl, sys\n"
              "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
              "print(ssl.create_default_context().wrap_socket(s, server_hostname='localhost').recv(9))\n")
    (laid.root / "usr/local/share/ca-certificates/new.crt").write_bytes(authority.cert_pem.bytes())
    with tls_server(context) as port:
        refused = laid.run("python3", "-c", client, str(port), check=False)
        assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
        laid.run("update-ca-certificates")
        assert laid.run("python3", "-c", client, str(port)).stdout == "b'hello'\n"


class tls_server:
    """Says hello to whoever shakes hands."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> int:
        self._thread.start()
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._socket.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(raw, server_side=True) as stream:
                    stream.sendall(b"hello")
            except OSError:
                raw.close()


def test_same_bytes_again(laid: Laid) -> None:
    inputs = {f"debs/{deb.file.rpartition('/')[2]}": "sha256:" + deb.sha256 for deb in reversed(laid.lock.debs)}
    again = build(BuildContext(laid.store, {"architecture": "amd64", **PARAMS}, inputs))
    assert (again["layer"].digest, again["index"].digest) == (laid.layer, laid.index)


# -- the referee --------------------------------------------------------------------------------------


def test_against_mmdebstrap(laid: Laid, tmp_path: Path) -> None:
    tree = tmp_path / "referee.tar"
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    source = f"deb [signed-by={keyring}] {address(ARCHIVES['debian'], laid.suite, 'amd64')} {laid.suite} main"
    hooks = ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"] if laid.suite == "bookworm" else []
    # The maintainer scripts run Python programs, whose bytecode must not go where this environment's does.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    subprocess.run(
        ["mmdebstrap", "--variant=custom", "--architectures=amd64", "--skip=output/dev", *hooks,
         "--include=" + ",".join(f"{deb.name}={deb.version}" for deb in laid.lock.debs),
         '--aptopt=APT::Install-Recommends "false"', laid.suite, str(tree), source], check=True, capture_output=True,
        env=environment)
    theirs = described(tree)
    ours = {entry["path"]: entry for entry in read_index(laid.store, laid.index)}
    ours = {path: flat(ours, entry) for path, entry in ours.items()}
    different = {path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)}
    patterns = [re.compile(pattern) for pattern, _ in KNOWN]
    surprising = sorted(path for path in different if not any(pattern.fullmatch(path) for pattern in patterns))
    assert {path: (ours.get(path), theirs.get(path)) for path in surprising} == {}
    assert "var/lib/dpkg/status" in ours.keys() - different
    tree.unlink()


def described(path: Path) -> dict[str, tuple[Any, ...]]:
    """What is in a tar, by path."""
    found: dict[str, tuple[Any, ...]] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if member.isdir() and name not in ("", "."):
                found[name] = ("directory", member.mode, member.uid, member.gid)
            elif member.issym():
                found[name] = ("symlink", member.linkname)
            elif member.islnk():
                found[name] = found[member.linkname.removeprefix("./")]
            elif member.isfile():
                stream = archive.extractfile(member)
                assert stream is not None
                digest = hashlib.sha256(stream.read()).hexdigest()
                found[name] = ("file", member.mode, member.uid, member.gid, "sha256:" + digest)
    return found


def flat(entries: dict[str, Any], entry: dict[str, Any]) -> tuple[Any, ...]:
    """An entry of our index in the same words."""
    if entry["type"] == "hardlink":
        entry = entries[entry["target"]]
    if entry["type"] == "symlink":
        return ("symlink", entry["target"])
    owner = (entry["mode"], entry.get("uid", 0), entry.get("gid", 0))
    return (entry["type"], *owner, *([entry["digest"]] if entry["type"] == "file" else []))


# -- another machine ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laid]:
    """bookworm for arm64, with trixie's emulator in /emulator."""
    directory = tmp_path_factory.mktemp("base-arm64")
    store = Store.open(directory / "store")
    found = lay(store, "bookworm", "arm64", directory / "root")
    emulator = resolve("trixie", "amd64", "qemu-user", essential=False)
    digest = next("sha256:" + deb.sha256 for deb in emulator.debs if deb.name == "qemu-user")
    obtain(store, emulator)
    subprocess.run(["dpkg-deb", "-x", str(store.path_of(digest)), str(directory / "qemu")], check=True)
    (found.root / "emulator").mkdir()
    shutil.copy(directory / "qemu/usr/bin/qemu-aarch64", found.root / "emulator/qemu")
    yield found
    shutil.rmtree(directory)


def test_arm64_python(foreign: Laid) -> None:
    code = ("import platform, ssl, pwd; "
            "print(platform.machine(), ssl.create_default_context().cert_store_stats()['x509_ca'] > 100, "
            "pwd.getpwuid(1000).pw_name)")
    assert foreign.run("/emulator/qemu", "/usr/bin/python3", "-c", code).stdout == "aarch64 True server\n"


def test_arm64_loader_cache(foreign: Laid) -> None:
    shown = foreign.run("/emulator/qemu", "/usr/sbin/ldconfig", "-p").stdout
    assert "\tlibnuma.so.1 (libc6,AArch64) => /lib/aarch64-linux-gnu/libnuma.so.1\n" in shown
    made = foreign.run("/emulator/qemu", "/usr/bin/bash", "-c", "echo").stdout
    assert made == "\n"


def test_arm64_compiler(foreign: Laid) -> None:
    """gcc starts its passes as programs, which needs binfmt; so each pass that it names is started here."""
    (foreign.root / "root/hello.c").write_text('#include <stdio.h>\nint main() { printf("%zu", sizeof(void *)); }\n')
    plan = foreign.run("/emulator/qemu", "/usr/bin/gcc", "-###", "/root/hello.c", "-o", "/root/hello").stderr
    steps = [shlex.split(line) for line in plan.splitlines() if line.startswith(" ")]
    objects = [word for step in steps for word in step if re.fullmatch(r"/tmp/\w+\.[so]", word)]
    names = {word: f"/root/{n}{word[-2:]}" for n, word in enumerate(dict.fromkeys(objects))}
    assert [step[0].rpartition("/")[2] for step in steps] == ["cc1", "as", "collect2"]
    for step in steps:
        words = [names.get(word, word) for word in step if "plugin" not in word]
        program = words.pop(0).replace("collect2", "../../../../bin/ld")
        foreign.run("/emulator/qemu", program if program.startswith("/") else f"/usr/bin/{program}", *words)
    assert foreign.run("/emulator/qemu", "/root/hello").stdout == "8"
