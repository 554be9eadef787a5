"""What maintainer scripts would have done, replayed: one table, each row with its reason.

Packages' scripts are never run. `EFFECTS` lists what of them a running image needs; a row applies
when its package is among those laid down. What is left out, and why, is in docs/debian.md; a test
compares the result with what mmdebstrap makes of the same packages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from assemble import accounts, alternatives, ld_cache, pam
from assemble.certificates import subject_hash
from assemble.dpkg import Package, database
from assemble.tree import Tree


@dataclass(frozen=True)
class Image:
    """What effects work on.

    Attributes:
        tree: all paths; effects add to it.
        packages: by name.
        architecture: Debian's name of it.
        base: files of the image below by name (`status`, `passwd`, `group`, `os-release`); empty without one.
    """

    tree: Tree
    packages: Mapping[str, Package]
    architecture: str
    base: Mapping[str, bytes]


@dataclass(frozen=True)
class Effect:
    """One row: whose script does it, why the image needs it, and how it is replayed."""

    package: str
    reason: str
    apply: Callable[[Image], None]


def replay(image: Image, params: Mapping[str, Any], log: Callable[[str], None]) -> None:
    """Apply all effects to the tree, then the target's users, alternatives, and dpkg's database.

    Raises:
        IntegrityError: a package lacks a file that its script needs.
        InputError: `users` or `alternatives` ask for what cannot be.
    """
    for effect in EFFECTS:
        if effect.package in image.packages:
            effect.apply(image)
    found = [choice for name in sorted(image.packages) for choice in alternatives.choices(
        image.packages[name].scripts.get("postinst", (0, b""))[1].decode("utf-8", "replace"))]
    alternatives.install(image.tree, found, params.get("alternatives", {}))
    _users(image, [accounts.User.from_params(user) for user in params.get("users", ())])
    machine = ld_cache.MACHINES.get(image.architecture)
    if image.base:
        log("etc/ld.so.cache of the base image stays; libraries of these packages are found in the default directories")
    elif machine is None:
        log(f"no etc/ld.so.cache: its format for {image.architecture} is not known here")
    elif "libc-bin" in image.packages:
        image.tree.put("etc/ld.so.cache", ld_cache.encode(ld_cache.libraries(image.tree, machine), machine))
    status = image.base.get("status", b"").decode("utf-8", "replace")
    for path, (mode, content) in database(image.packages.values(), base=status).items():
        image.tree.put(path, content, mode)


def _users(image: Image, users: list[accounts.User]) -> None:
    if not users:
        return
    texts = {}
    for name in ("passwd", "group"):
        known = image.tree.find(f"etc/{name}")
        texts[name] = (image.tree.read(f"etc/{name}") if known else image.base.get(name, b"")).decode()
    for user in users:
        texts["passwd"], texts["group"] = accounts.with_user(texts["passwd"], texts["group"], user)
        home = image.tree.place(user.home.lstrip("/"))
        if home not in image.tree.nodes:
            image.tree.directory(home, 0o755, uid=user.uid, gid=user.gid)
    for name, text in texts.items():
        image.tree.put(f"etc/{name}", text.encode())


def distribution(image: Image) -> str:
    """The `ID` of os-release, in these packages or below them; `debian` if nothing says."""
    text = image.base.get("os-release", b"")
    if image.tree.find("etc/os-release") is not None:
        text = image.tree.read("etc/os-release")
    match = re.search(rb'^ID="?([a-z0-9._-]+)"?$', text, re.MULTILINE)
    return match[1].decode() if match else "debian"


# -- one function per script --------------------------------------------------------------------------


def _copy(image: Image, source: str, target: str) -> None:
    if image.tree.find(target) is None and target.rpartition("/")[2] not in image.base:
        image.tree.put(target, image.tree.read(source))


def _skeleton(image: Image) -> None:
    tree = image.tree
    for source, target in (("dot.profile", "root/.profile"), ("dot.bashrc", "root/.bashrc"),
                           ("profile", "etc/profile"), ("motd", "etc/motd"), ("info.dir", "usr/share/info/dir")):
        _copy(image, f"usr/share/base-files/{source}", target)
    for path in ("mnt", "srv", "opt", "etc/opt", "var/opt", "media", "usr/local", *(
            f"usr/local/{name}" for name in ("bin", "etc", "games", "include", "lib", "sbin", "share", "src",
                                             "share/man"))):
        if path not in tree.nodes:
            tree.directory(path)
    tree.link("usr/local/man", "share/man")
    vendors = [name for name in ("ubuntu", "debian") if f"etc/dpkg/origins/{name}" in tree.nodes]
    tree.link("etc/dpkg/origins/default", vendors[0] if vendors else "debian")


def _variable(image: Image) -> None:
    tree = image.tree
    tree.directory("var/mail", 0o2775, gid=8)
    tree.link("var/spool/mail", "../mail")
    tree.directory("run/lock", 0o1777)
    for path, target in (("var/run", "/run"), ("var/lock", "/run/lock")):
        if not tree.children(path):
            tree.link(path, target)
    for name, mode in (("wtmp", 0o664), ("btmp", 0o660), ("lastlog", 0o664)):
        tree.put(f"var/log/{name}", b"", mode, gid=43)


def _accounts(image: Image) -> None:
    for name in ("passwd", "group"):
        _copy(image, f"usr/share/base-passwd/{name}.master", f"etc/{name}")


def _name_services(image: Image) -> None:
    _copy(image, "usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf")


def _shells(image: Image) -> None:
    tree = image.tree
    template = tree.read("usr/share/debianutils/shells").decode()
    listed: dict[str, None] = {}
    for path in ["usr/share/debianutils/shells", *(
            f"usr/share/debianutils/shells.d/{name}" for name in tree.children("usr/share/debianutils/shells.d"))]:
        for line in tree.read(path).decode().splitlines():
            shell = line.partition("#")[0].strip()
            if shell:
                directory, _, name = shell.lstrip("/").rpartition("/")
                listed |= {shell: None, f"/{tree.find(directory) or directory}/{name}": None}
    given = {line.partition("#")[0].strip() for line in template.splitlines()}
    tree.put("etc/shells", (template + "".join(f"{shell}\n" for shell in listed if shell not in given)).encode())
    tree.put("var/lib/shells.state", "".join(f"{shell}\n" for shell in listed).encode())


def _certificates(image: Image) -> None:
    tree = image.tree
    names = sorted((path.removeprefix("usr/share/ca-certificates/") for path in tree.nodes
                    if path.startswith("usr/share/ca-certificates/") and path.endswith(".crt")), key=str.encode)
    header = ("# Certificates of /usr/share/ca-certificates that update-ca-certificates(8) puts into /etc/ssl/certs.\n"
              "# A line that begins with ! names one to leave out.\n")
    tree.put("etc/ca-certificates.conf", (header + "".join(f"{name}\n" for name in names)).encode())
    tree.directory("usr/local/share/ca-certificates")
    bundle, hashes = bytearray(), dict[str, str]()
    for name in names:
        data = tree.read(f"usr/share/ca-certificates/{name}")
        bundle += data if data.endswith(b"\n") else data + b"\n"
        pem = name.rpartition("/")[2].removesuffix(".crt").translate(
            str.maketrans(" (),", "_==_")) + ".pem"
        tree.link(f"etc/ssl/certs/{pem}", f"/usr/share/ca-certificates/{name}")
        hashes[pem] = subject_hash(data, name)
    taken: dict[str, int] = {}
    for pem, value in sorted(hashes.items(), key=lambda item: item[0].encode()):
        tree.link(f"etc/ssl/certs/{value}.{taken.setdefault(value, 0)}", pem)
        taken[value] += 1
    tree.put("etc/ssl/certs/ca-certificates.crt", bytes(bundle))


def _pam(image: Image) -> None:
    tree = image.tree
    profiles = [pam.parse_profile(tree.read(f"usr/share/pam-configs/{name}").decode("utf-8", "replace"))
                for name in tree.children("usr/share/pam-configs")]
    for name in ("auth", "account", "password", "session", "session-noninteractive"):
        template = tree.read(f"usr/share/pam/common-{name}").decode("utf-8", "replace")
        text = pam.render(template, name.partition("-")[0], profiles, interactive="-" not in name)
        tree.put(f"etc/pam.d/common-{name}", text.encode())


def _pam_files(image: Image) -> None:
    image.tree.put("etc/security/opasswd", b"", 0o600)
    if image.tree.find("etc/environment") is None:
        image.tree.put("etc/environment", b"")


def _subordinate_ids(image: Image) -> None:
    for name in ("subuid", "subgid"):
        if image.tree.find(f"etc/{name}") is None:
            image.tree.put(f"etc/{name}", b"")


def _readline(image: Image) -> None:
    _copy(image, "usr/share/readline/inputrc", "etc/inputrc")


def _local_python(image: Image) -> None:
    for path in image.tree.children("usr/lib"):
        if path.startswith("python3."):
            image.tree.directory(f"usr/local/lib/{path}/dist-packages")


def _time_zone(image: Image) -> None:
    if image.tree.find("etc/localtime") is None:
        image.tree.link("etc/localtime", "/usr/share/zoneinfo/Etc/UTC")


def _hosts(image: Image) -> None:
    image.tree.put("etc/hosts", b"127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n"
                   b"ff02::1\t\tip6-allnodes\nff02::2\t\tip6-allrouters\n\n")
    image.tree.put("etc/networks", b"default\t\t0.0.0.0\nloopback\t127.0.0.0\nlink-local\t169.254.0.0\n\n")


EFFECTS: tuple[Effect, ...] = (
    Effect("base-files", "homes, mount points, /usr/local and shell profiles that programs expect", _skeleton),
    Effect("base-files", "/var/run and /var/lock are in /run; log-in records and the mail directory exist", _variable),
    Effect("base-passwd", "accounts: without /etc/passwd and /etc/group no name resolves, not even root's", _accounts),
    Effect("libc-bin", "name services: without nsswitch.conf, host names are not asked from DNS after files",
           _name_services),
    Effect("debianutils", "chsh and su accept only shells that are listed", _shells),
    Effect("ca-certificates", "TLS: the bundle, and a link per certificate by the hash of its subject", _certificates),
    Effect("libpam-runtime", "su, runuser and login include the common-* files and refuse without them", _pam),
    Effect("libpam-modules", "pam_env reads /etc/environment, pam_unix writes old passwords", _pam_files),
    Effect("base-passwd", "newuidmap and useradd need the tables of subordinate ids (bookworm: made by login)",
           _subordinate_ids),
    Effect("readline-common", "keys in interactive shells and Python", _readline),
    Effect("python3-minimal", "the directory that Debian's Python searches for local packages", _local_python),
    Effect("tzdata", "the time zone is UTC", _time_zone),
    Effect("netbase", "names of this host and of networks", _hosts),
)
