"""Trees of Git repositories as fixed-output fetches: a revision of 40 digits, and the digest of its files.

What is kept is a layer (`cache.archive`: sorted, no owner, one time) of the files that the revision has, submodules put
in their places; so its digest says what was compiled, whatever server gave it. The repository's objects are checked by
Git on the way (`fetch.fsckObjects`) and are not kept. Nothing of the repository is run: no hook, filter or checkout.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urljoin

from cache.archive import LayerWriter
from cache.errors import FetchError, IntegrityError, LockError, ToolError
from cache.store import Store

REVISION = re.compile(r"[0-9a-f]{40}")
_CURE = "is the address right and reachable? a copy of it may be named under sources.mirrors of the target"
_OPTIONS = ("core.hooksPath=/dev/null", "safe.bareRepository=all", "fetch.fsckObjects=true",
            "fetch.recurseSubmodules=false", "gc.auto=0", "advice.detachedHead=false")
#: A submodule's address may name any transport: of a program `git-remote-<name>`, and `ext` of a whole command line.
_SETTINGS = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", "GIT_LFS_SKIP_SMUDGE": "1", "GIT_OPTIONAL_LOCKS": "0",
             "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh", "GIT_DEFAULT_HASH": "sha1"}
#: Of the repository that we are called in, perhaps by one of its hooks (git rev-parse --local-env-vars).
_ELSEWHERE = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES",
              "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX", "GIT_CONFIG", "GIT_GRAFT_FILE", "GIT_SHALLOW_FILE",
              "GIT_REPLACE_REF_BASE", "GIT_IMPLICIT_WORK_TREE"}


@dataclass(frozen=True)
class Tree:
    """One fetched revision.

    Attributes:
        digest, index, size: of the layer and of its index.
        submodules: path to (repository as resolved, revision), nested ones too.
    """

    repository: str
    revision: str
    digest: str
    index: str
    size: int
    submodules: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def addresses(repository: str, mirrors: Mapping[str, Sequence[str]]) -> list[str]:
    """Where to try, in order: mirrors of the longest prefix first, the repository's own address last.

    Args:
        mirrors: prefix of an address to what takes its place: `{"https://github.com/": ["file:///srv/git/"]}`.
    """
    found = [place + repository[len(prefix):] for prefix in sorted(mirrors, key=len, reverse=True)
             if repository.startswith(prefix) for place in mirrors[prefix]]
    return list(dict.fromkeys([*found, repository]))


def resolve(repository: str, tag: str, mirrors: Mapping[str, Sequence[str]] | None = None) -> str:
    """The revision that a tag or branch names now; 40 digits name themselves. An annotated tag gives its commit.

    Raises:
        LockError: no address that answers has such a tag.
        FetchError: no address answers.
    """
    if REVISION.fullmatch(tag):
        return tag
    answered = False

    def ask(address: str) -> str:
        nonlocal answered
        said = _git("ls-remote", "--", address, tag, f"{tag}^{{}}")
        answered = True
        found = _named(said, tag)
        if not found:  # a mirror may be older than the tag: the next address is asked too
            raise _GitError(f"it has no tag or branch {tag}")
        return found

    try:
        return _first(repository, mirrors or {}, ask)
    except FetchError as error:
        if not answered:
            raise
        raise LockError(f"there is no tag or branch {tag}", where=error.where, found=error.found,
                        cure="correct the pin, or name a revision of 40 digits; is a mirror older than it?") from error


def _named(said: str, tag: str) -> str:
    """The revision of a tag, else of a branch, in what `git ls-remote` said; "" for neither."""
    names = {name: revision for revision, _, name in (line.partition("\t") for line in said.splitlines())}
    return next((names[name] for name in (f"refs/tags/{tag}^{{}}", f"refs/tags/{tag}", f"refs/heads/{tag}")
                 if name in names), "")


def fetch_tree(store: Store, repository: str, revision: str, *, mirrors: Mapping[str, Sequence[str]] | None = None,
               submodules: Collection[str] | None = (), expect: str = "",
               log: Callable[[str], None] = lambda line: None) -> Tree:
    """Bring the files of a revision into the store.

    Args:
        revision: 40 hexadecimal digits.
        submodules: paths of those to bring too, with theirs; None for all, empty for none.
        expect: digest that was locked.

    Raises:
        FetchError: no address has it; each is named with what it said.
        IntegrityError: the files are not those that were locked.
        LockError: a submodule that is wanted is not in the revision.
        ToolError: there is no git.
    """
    if not REVISION.fullmatch(revision):
        raise LockError("a source is locked by a revision of 40 hexadecimal digits", where=_public(repository),
                        found=revision)
    with tempfile.TemporaryDirectory(prefix="git-", dir=store.directory("tmp")) as directory:
        trees = _Trees(directory, mirrors or {}, log)
        entries = sorted(trees.walk(repository, revision, submodules), key=lambda entry: entry.path.encode())
        with LayerWriter(store) as writer:
            _write(writer, entries, trees)
            layer = writer.finish()
        found = Tree(repository, revision, layer.layer.digest, layer.index.digest, layer.layer.size, trees.submodules)
    if expect and found.digest != expect:
        raise IntegrityError("a source holds other files than were locked", expected=expect,
                             where=f"{_public(repository)} at {revision}", found=found.digest,
                             cure="a revision cannot change: was the lock edited, or a submodule left out?")
    return found


@dataclass(frozen=True)
class _Entry:
    path: str
    mode: str
    object: str
    repository: str


class _Trees:
    """Bare repositories below one directory, a revision deep."""

    def __init__(self, directory: str, mirrors: Mapping[str, Sequence[str]], log: Callable[[str], None]) -> None:
        self._directory, self._mirrors, self._log = directory, mirrors, log
        self.submodules: dict[str, tuple[str, str]] = {}

    def walk(self, repository: str, revision: str, submodules: Collection[str] | None,
             below: str = "") -> Iterator[_Entry]:
        """All files of a revision and of the submodules that are wanted."""
        place = os.path.join(self._directory, str(len(os.listdir(self._directory))))
        os.mkdir(place)
        self._fetch(place, repository, revision)
        listed = _git("ls-tree", "-r", "-z", "--full-tree", revision, cwd=place)
        links: dict[str, str] = {}
        for line in listed.split("\0"):
            if not line:
                continue
            head, _, path = line.partition("\t")
            mode, _, digest = head.split(" ")
            if not _is_text(path):
                raise IntegrityError("a source has a file whose name is not UTF-8", found=ascii(path),
                                     where=f"{_public(repository)} at {revision}", cure="take another revision")
            if mode == "160000":
                links[path] = digest
            else:
                yield _Entry(below + path, mode, digest, place)
        missing = sorted(set(submodules or ()) - links.keys())
        if missing:
            raise LockError(f"there is no submodule {missing[0]}", where=f"{_public(repository)} at {revision}",
                            found=", ".join(sorted(links)) or "no submodules at all", cure="correct its path")
        wanted = links.keys() if submodules is None else submodules
        known = _modules(place, revision) if wanted else {}
        for path in sorted(wanted):
            if path not in known:
                raise LockError(f"submodule {path} has no address",
                                where=f"{_public(repository)} at {revision}: .gitmodules",
                                cure="take another revision, or leave the submodule out")
            url = _beside(repository, known[path])
            if _of_this_machine(url) and not _of_this_machine(repository):
                raise LockError(f"submodule {path} has an address of this machine", found=url,
                                where=f"{_public(repository)} at {revision}: .gitmodules",
                                cure="leave the submodule out, or name a copy of the whole repository on this machine")
            self.submodules[below + path] = (url, links[path])
            yield from self.walk(url, links[path], None, f"{below}{path}/")

    def _fetch(self, place: str, repository: str, revision: str) -> None:
        _git("init", "--quiet", "--bare", place)

        def get(address: str) -> str:
            self._log(f"{_public(address)} {revision[:12]}")
            try:
                _git("fetch", "--quiet", "--depth=1", "--no-tags", "--", address, revision, cwd=place)
            except _GitError as error:
                if "not our ref" not in str(error) and "unadvertised" not in str(error):
                    raise
                # A server that gives no revision that no branch names: all of it, then.
                _git("fetch", "--quiet", "--tags", "--", address, "+refs/*:refs/remotes/all/*", cwd=place)
            _git("cat-file", "-e", f"{revision}^{{commit}}", cwd=place)
            return address

        _first(repository, self._mirrors, get)


def _write(writer: LayerWriter, entries: Sequence[_Entry], trees: _Trees) -> None:
    """The files and the directories above them, in ascending order of paths."""
    with contextlib.ExitStack() as stack:
        readers: dict[str, _Objects] = {}
        above = {entry.path[:at] for entry in entries for at, sign in enumerate(entry.path) if sign == "/"}
        files = {entry.path: entry for entry in entries}
        for path in sorted(above | files.keys(), key=str.encode):
            entry = files.get(path)
            if entry is None:
                writer.directory(path)
                continue
            if entry.repository not in readers:
                readers[entry.repository] = stack.enter_context(_Objects(entry.repository))
            data = readers[entry.repository].read(entry.object)
            if entry.mode == "120000":
                writer.symlink(path, data.decode("utf-8", "surrogateescape"))
            else:
                writer.file(path, len(data), [data], 0o755 if entry.mode == "100755" else 0o644)


class _Objects:
    """Contents of a repository's objects, by one long-lived `git cat-file`."""

    def __init__(self, place: str) -> None:
        self._process = subprocess.Popen(_command("cat-file", "--batch"), cwd=place, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, env=_environment())

    def __enter__(self) -> _Objects:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None  # noqa: S101 - made with a pipe
        assert self._process.stdout is not None  # noqa: S101 - likewise
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def read(self, digest: str) -> bytes:
        assert self._process.stdin is not None  # noqa: S101 - made with a pipe
        assert self._process.stdout is not None  # noqa: S101 - likewise
        self._process.stdin.write(digest.encode() + b"\n")
        self._process.stdin.flush()
        head = self._process.stdout.readline().split()
        if len(head) != 3:
            raise IntegrityError("an object of the repository is missing", where=digest, found=b" ".join(head).decode())
        data = self._process.stdout.read(int(head[2]))
        self._process.stdout.read(1)
        return data


def _modules(place: str, revision: str) -> dict[str, str]:
    """Path to address of .gitmodules."""
    try:
        listed = _git("config", "-z", "--blob", f"{revision}:.gitmodules", "--get-regexp",
                      r"^submodule\..*\.(path|url)$", cwd=place)
    except _GitError:
        return {}
    found: dict[str, dict[str, str]] = {}
    for item in listed.split("\0"):
        key, _, value = item.partition("\n")
        if key:
            name, _, what = key.rpartition(".")
            found.setdefault(name, {})[what] = value
    return {entry["path"]: entry["url"] for entry in found.values() if entry.keys() >= {"path", "url"}}


def _beside(repository: str, address: str) -> str:
    """The address of a submodule: `../x.git` counts from the repository's own."""
    if not address.startswith(("./", "../")):
        return address
    if "://" in repository:
        scheme, _, rest = repository.partition("://")
        return f"{scheme}://" + posixpath.normpath(posixpath.join(rest.rstrip("/"), address))
    return urljoin(repository.rstrip("/") + "/", address)


def _of_this_machine(address: str) -> bool:
    """True of a path and of file://; `host:path` is another machine's."""
    return address.startswith(("file://", "/", ".")) or ":" not in address


def _is_text(name: str) -> bool:
    return not any("\udc80" <= sign <= "\udcff" for sign in name)


class _GitError(Exception):
    """What git said as it failed."""


def _command(*arguments: str) -> list[str]:
    return ["git", *(part for option in _OPTIONS for part in ("-c", option)), *arguments]


def _environment() -> dict[str, str]:
    return {**{key: value for key, value in os.environ.items() if key not in _ELSEWHERE}, **_SETTINGS}


def _git(*arguments: str, cwd: str | None = None) -> str:
    try:
        done = subprocess.run(_command(*arguments), cwd=cwd, env=_environment(), stdin=subprocess.DEVNULL,
                              capture_output=True, check=False)
    except FileNotFoundError as error:
        raise ToolError("there is no git, which reads the sources", cure="apt-get install git") from error
    if done.returncode:
        raise _GitError(done.stderr.decode("utf-8", "replace").strip() or f"git ended with {done.returncode}")
    return done.stdout.decode("utf-8", "surrogateescape")


def _first(repository: str, mirrors: Mapping[str, Sequence[str]], get: Callable[[str], str]) -> str:
    """What the first address that works gives. Raises FetchError that names all."""
    said = []
    for address in addresses(repository, mirrors):
        try:
            return get(address)
        except _GitError as error:
            said.append(f"{_public(address)}: {_short(str(error))}")
    raise FetchError("a source cannot be had", where=_public(repository), found="\n".join(said), cure=_CURE)


def _public(address: str) -> str:
    """An address without a password."""
    return re.sub(r"(://)[^/\s]*@", r"\1", address)


def _short(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return _public(next((line for line in lines if line.startswith("fatal:")), lines[-1] if lines else "")[:300])
