"""Apt archives: what is known of one, and where it is when nothing says so.

An archive is named in `targets/indexes.yaml` (no host in our files). Its address is the one configured
there (or `$STAGECRAFT_INDEX_<NAME>`, see `lock.indexes`), else that of the host's own apt sources where
the host is that distribution, else the default built into debootstrap or mmdebstrap if one is
installed. None of them is an error that says what to configure.

The security suites of a distribution are an archive of their own, `<name>-security`; its files are
locked under that index name.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.errors import InputError, ToolError

#: Where a distribution's archive keys are on a host, and the package that brings them.
KEYRINGS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "debian": ("debian-archive-keyring", ("/usr/share/keyrings/debian-archive-keyring.pgp",
                                          "/usr/share/keyrings/debian-archive-keyring.gpg")),
    "ubuntu": ("ubuntu-keyring", ("/usr/share/keyrings/ubuntu-archive-keyring.gpg",)),
}
_DEBOOTSTRAP_SCRIPTS = "usr/share/debootstrap/scripts"


@dataclass(frozen=True)
class Archive:
    """An entry of type `apt` in the list of indexes.

    Attributes:
        name: the index name that locked files carry, for instance `debian`.
        distribution: `debian`, `ubuntu`, …: decides keyring and defaults.
        url: address of the archive, the directory above `dists/` and `pool/`; None: find it.
        security: address of the archive with the security suites; None: find it.
        snapshot: address of a dated mirror with `{index}` and `{date}` in it
            (`{date}` becomes `20250520T000000Z`); None: there is none.
        keyring: file with the keys that sign it; None: the distribution's, where the host keeps it.
    """

    name: str
    distribution: str
    url: str | None = None
    security: str | None = None
    snapshot: str | None = None
    keyring: str | None = None

    @property
    def security_index(self) -> str:
        return f"{self.name}-security"

    def dated(self, index: str, date: str) -> str | None:
        """Address of `index` as it was at `date`, or None if no snapshot is configured.

        Raises:
            InputError: the configured address has no `{date}`.
        """
        if self.snapshot is None:
            return None
        if "{date}" not in self.snapshot:
            raise InputError("the snapshot address of an archive has no place for a date",
                             where=f"targets/indexes.yaml, {self.name}", found=self.snapshot,
                             expected="an address with {date} in it, and {index} if it holds several archives")
        return _directory(self.snapshot.replace("{index}", index).replace("{date}", date))


@dataclass(frozen=True)
class Source:
    """One suite of one of the host's own apt sources."""

    url: str
    suite: str
    origin: str = ""


def address(
    archive: Archive, suite: str, architecture: str, *, security: bool = False,
    root: Path = Path("/"), sources: Iterable[Source] | None = None,
) -> str:
    """Where the archive (or its security archive) is; ends with `/`.

    Args:
        suite: the suite that is wanted, for instance `bookworm`; never with `-security`; `""` if not known.
        architecture: Debian's name of it; some distributions keep theirs in two places.
        root: where the host's files are looked for.
        sources: the host's apt sources; default: asked from apt.

    Raises:
        InputError: nothing says where it is.
    """
    index = archive.security_index if security else archive.name
    variable = "STAGECRAFT_INDEX_" + index.upper().replace("-", "_")
    configured = archive.security if security else archive.url
    if configured:
        return _directory(configured)
    if _host_distribution(root) == archive.distribution:
        found = pick(archive.distribution, host_sources() if sources is None else sources, security=security)
        if found:
            return found
    found = bootstrap_default(archive.distribution, suite, architecture, security=security, root=root)
    if found:
        return found
    raise InputError(
        f"nothing says where the archive {index} is",
        where=f"targets/indexes.yaml, {archive.name}",
        expected=f"`{'security' if security else 'url'}` there, or the variable {variable}",
        found=f"this host is not {archive.distribution}, and neither debootstrap nor mmdebstrap knows {suite}",
        cure=f"set {variable} to the address above dists/, or install mmdebstrap")


def pick(distribution: str, sources: Iterable[Source], *, security: bool) -> str | None:
    """The distribution's own archive among a host's sources.

    Lists that apt has fetched tell their origin. Where there are none yet, the archive is the one with
    the most suites: others that serve a distribution (a vendor's repository) carry one.
    """
    matching = [source for source in sources if source.suite.endswith("-security") == security]
    known = [source for source in matching if source.origin.lower() == distribution]
    votes: dict[str, int] = {}
    for source in known or [source for source in matching if not source.origin and distribution in source.url]:
        votes[source.url] = votes.get(source.url, 0) + 1
    return _directory(max(votes, key=lambda url: votes[url])) if votes else None


def host_sources() -> list[Source]:
    """The host's apt sources in whatever format they are written, read by apt itself; empty without apt."""
    found = []
    for line in _apt("indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(ORIGIN)").splitlines():
        url, _, rest = line.partition("|")
        suite, _, origin = rest.partition("|")
        found.append(Source(url, suite, "" if origin.startswith("$(") else origin))
    if not found:  # no lists fetched yet, as in most container images
        for line in _apt("update", "--print-uris").splitlines():
            match = re.match(r"'(.*)/dists/(.*)/InRelease' ", line)
            if match:
                found.append(Source(_directory(match[1]), match[2]))
    return sorted(set(found), key=lambda source: (source.url, source.suite))


def _apt(*arguments: str) -> str:
    try:
        done = subprocess.run(["apt-get", *arguments], capture_output=True, text=True, check=False,
                              env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def bootstrap_default(distribution: str, suite: str, architecture: str, *, security: bool, root: Path) -> str | None:
    """What debootstrap's scripts or mmdebstrap have built in, read from the installed files."""
    ports = distribution == "ubuntu" and architecture not in ("amd64", "i386")
    ending = f"{distribution}-ports" if ports else f"{distribution}-security" if security and distribution == "debian" \
        else distribution
    texts = [root / _DEBOOTSTRAP_SCRIPTS / suite, root / "usr/sbin/debootstrap", root / "usr/bin/mmdebstrap"]
    for path in texts if suite else texts[1:]:
        try:
            text = path.read_text("utf-8", "replace")
        except OSError:
            continue
        for url in re.findall(r"https?://[^\s'\"<>]+", text):
            if url.rstrip("/").endswith("/" + ending) and ("security" in url) == (security and not ports):
                return _directory(url)
    return None


def keyring(archive: Archive, root: Path = Path("/")) -> Path:
    """The file with the keys that sign the archive.

    Raises:
        ToolError: it is not on this host.
        InputError: the distribution is not known and no keyring is configured.
    """
    if archive.keyring:
        path = Path(archive.keyring)
        if path.is_file():
            return path
        raise ToolError("the keyring of an archive is not there", where=f"targets/indexes.yaml, {archive.name}",
                        expected=str(path), cure="install the package that brings it, or correct `keyring`")
    if archive.distribution not in KEYRINGS:
        raise InputError("no keyring is known for this distribution", where=f"targets/indexes.yaml, {archive.name}",
                         found=archive.distribution, expected=", ".join(sorted(KEYRINGS)) + ", or `keyring`: a file")
    package, paths = KEYRINGS[archive.distribution]
    for name in paths:
        path = root / name.lstrip("/")
        if path.is_file():
            return path
    raise ToolError(f"the keys that sign the {archive.distribution} archive are not on this host",
                    expected=" or ".join(paths), cure=f"apt-get install {package}, or name a file as `keyring` in "
                                                       "targets/indexes.yaml")


def _host_distribution(root: Path) -> str:
    try:
        text = (root / "etc/os-release").read_text("utf-8", "replace")
    except OSError:
        return ""
    match = re.search(r'^ID="?([\w.-]+)"?$', text, re.MULTILINE)
    return match[1] if match else ""


def _directory(url: str) -> str:
    return url.rstrip("/") + "/"


def probe(archive: Archive) -> str:
    """Ask an archive whether it answers; empty if it does, else what is wrong, in a line.

    Raises:
        InputError: nothing says where it is.
    """
    import requests

    from lock.transfer import in_words

    url = address(archive, "", "amd64", security=False)
    if not url.startswith(("http://", "https://")):
        return ""
    try:
        with requests.head(url + "dists/", timeout=5, allow_redirects=True) as answer:
            return "" if answer.status_code < 500 else f"answers with {answer.status_code}"
    except requests.RequestException as error:
        return in_words(error)
