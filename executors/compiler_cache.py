"""Results of compilers, kept between builds of one stage by ccache: `ccache/<user>-<name>/` in the store.

For builds of hours that are interrupted and repeated while somebody works on them. It is no input and in no key, so it
is off unless `STAGECRAFT_CCACHE=on` asks for it; a record says that it was used, and `rebuild`, which compares, never
uses it. ccache is the root's own (`/cross/bin/ccache`), the results are seen as `/tmp/ccache`. Builds that use a ccache
unasked where they find one, as vLLM's setup.py does, are told to run compilers alone (`OFF`).

What makes a hit as good as a compile:

- `name` of a directory is the digest of everything a compiler may notice except the content of the trees (`name_of`):
  layers, environment, scripts, and which files there are, since a compiler may ask whether a file exists. ccache 4.7
  hashes neither NVCC_APPEND_FLAGS nor, where all files have one time, the compiler.
- ccache cannot preprocess for nvcc: `nvcc -E` shows one of the passes of a compile, and a change that only another pass
  sees was taken for none (found here; https://github.com/mozilla/sccache/issues/2299). nvcc's list of files, `-MD`, has
  those of all passes, so ccache goes by it (`CCACHE_DEPEND`), and nvcc without `-MD` runs without ccache (`LAUNCHER`).

Durability: ccache writes a result under another name and renames it, with a checksum: whatever is killed when, what is
there is whole. Concurrency: any number of builds; who uses a directory holds a shared flock of it, and `cache.gc` takes
only one that nobody holds and nobody used for a week. Each user has directories of their own.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cache import canonical, durable
from cache.errors import InputError
from cache.store import Store, hex_of
from executors.process import NOBODY

#: In a root, and where the results and the counts of one run lie in it.
PROGRAM, PLACE, COUNTS = "cross/bin/ccache", "ccache", "ccache-counts"
#: GiB of one directory, unless STAGECRAFT_CCACHE_SIZE says otherwise.
SIZE = 5
LAUNCHER = f"""\
#!/bin/sh
# Only by the list of files of all its passes can ccache tell what changed for nvcc.
case " $* " in
*" -MD "* | *" -MMD "* | *" --generate-dependencies-with-compile "*) exec /{PROGRAM} "$@" ;;
esac
case "${{1##*/}}" in
nvcc*) exec "$@" ;;
esac
exec /{PROGRAM} "$@"
"""
#: The environment of a script that must not use a cache.
OFF = {"CCACHE_DISABLE": "1"}
_COUNTS_LIMIT = 64 << 20


def wanted(environ: Mapping[str, str]) -> int:
    """GiB that results may have; 0 if the user of this machine does not ask for a cache.

    Raises:
        InputError: a setting that cannot be read.
    """
    asked, size = environ.get("STAGECRAFT_CCACHE", ""), environ.get("STAGECRAFT_CCACHE_SIZE", "")
    if asked not in ("", "on", "off"):
        raise InputError("STAGECRAFT_CCACHE is neither on nor off", found=asked, cure="set it to on, or unset it")
    if size and (not size.isdigit() or not int(size)):
        raise InputError("STAGECRAFT_CCACHE_SIZE is no number", found=size, expected="GiB",
                         cure="set it to a number from 1, or unset it")
    return (int(size) if size else SIZE) if asked == "on" else 0


def name_of(params: Mapping[str, object], inputs: Mapping[str, str], trees: Sequence[Path]) -> str:
    """The name of the directory for a stage; see the module text.

    Args:
        params: that a compiler may notice. Others, such as the lines that end a build, shall not cost hours.
        inputs: of the stage, without its trees.
        trees: directories of its trees, in a fixed order.
    """
    below = [sorted(os.path.relpath(os.path.join(directory, name), tree) for directory, names, files in os.walk(tree)
                    for name in (*names, *files)) for tree in trees]
    found = canonical.digest_of("compiler-cache", {"params": dict(params), "inputs": dict(inputs), "files": [
        [os.fsencode(name).hex() if not name.isprintable() else name for name in names] for names in below]})
    return hex_of(found)[:32]


def variables(name: str, size: int, group: bool) -> dict[str, str]:
    """The environment of a script that may use the cache.

    Args:
        size: GiB that it may have.
        group: what it writes is for the group too, as the store is.
    """
    return {"CCACHE_DIR": f"/tmp/{PLACE}", "CCACHE_COMPILERCHECK": f"string:{name}", "CCACHE_DEPEND": "1",  # noqa: S108
            "CCACHE_NOINODECACHE": "1", "CCACHE_MAXSIZE": f"{size}Gi", "CCACHE_STATSLOG": f"/tmp/{COUNTS}",  # noqa: S108
            "CCACHE_CONFIGPATH": "/nonexistent", **({"CCACHE_UMASK": "002"} if group else {})}


@contextlib.contextmanager
def opened(store: Store, name: str) -> Iterator[Path]:
    """The directory of results, kept from collection while the block runs.

    Raises:
        StoreError: it cannot be made.
    """
    below = f"ccache/{os.geteuid()}-{name}"
    while True:
        directory = store.directory(below)
        with durable.named_errors(store.root):
            try:
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue  # collected this moment
            fcntl.flock(fd, fcntl.LOCK_SH)
            if durable.same_file(fd, str(directory)):
                break
            os.close(fd)
    try:
        with durable.named_errors(store.root):
            os.utime(fd)
            if os.geteuid() == 0:
                os.chown(fd, NOBODY, -1)  # whom root becomes in the sandbox
        yield directory
    finally:
        with contextlib.suppress(OSError):
            os.utime(fd)
        os.close(fd)


@dataclass(frozen=True)
class Counts:
    """What ccache did in one run: results taken, results compiled and kept, and calls that it passed on, by reason."""

    taken: int = 0
    compiled: int = 0
    passed_on: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        others = "".join(f", {count} {reason.replace('_', ' ')}" for reason, count in sorted(self.passed_on.items()))
        return f"{self.taken} results taken, {self.compiled} compiled{others}"


def counts(path: Path) -> Counts:
    """Read CCACHE_STATSLOG: `# <source>` for each call, then a counter a line. The script may have written there what
    it likes: what is no plain file, or too large, counts as nothing."""
    taken = compiled = 0
    passed_on: collections.Counter[str] = collections.Counter()
    for call in _text(path).split("# ")[1:]:
        said = set(call.split("\n")[1:]) - {""}
        if said & {"direct_cache_hit", "preprocessed_cache_hit"}:
            taken += 1
        elif "cache_miss" in said:
            compiled += 1
        else:
            passed_on[min(said, default="unknown")] += 1
    return Counts(taken, compiled, passed_on)


def _text(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        there = os.fstat(fd)
        if not stat.S_ISREG(there.st_mode) or there.st_size > _COUNTS_LIMIT:
            return ""
        return file.read().decode("utf-8", "replace")
