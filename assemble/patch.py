"""Unified diffs, applied strictly: every hunk fits in exactly one place, or it is an error. Pure.

A patch that applies nowhere has been overtaken (facts of peers: a silent no-op); one that would fit twice may hit the
wrong place. There is no fuzz and no line number is trusted: a hunk's own lines must be found, once, in the file.
Files are made (`--- /dev/null`) and removed (`+++ /dev/null`) too; renames, modes and binary patches are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cache.errors import InputError

_HUNK = re.compile(rb"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_REFUSED = (b"GIT binary patch", b"rename from ", b"copy from ", b"Binary files ", b"old mode ",
            b"new file mode 100755", b"new file mode 120000")


@dataclass
class Hunk:
    """`old` and `new` lines with their ends; `line` of the patch where it begins."""

    line: int
    old: list[bytes] = field(default_factory=list)
    new: list[bytes] = field(default_factory=list)


@dataclass
class FilePatch:
    """The hunks of one file: `before` and `after` are its path, empty for one that is made or removed."""

    before: str
    after: str
    hunks: list[Hunk] = field(default_factory=list)

    @property
    def path(self) -> str:
        return self.after or self.before


def parse(data: bytes, name: str) -> list[FilePatch]:
    """The patches of a unified diff (`diff -u`, `git diff`), with paths as `patch -p1` takes them.

    Raises:
        InputError: it is none, or does what is refused; names the line.
    """
    lines = data.splitlines(keepends=True)
    found: list[FilePatch] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith(_REFUSED):
            raise _wrong(name, at, "a rename, a copy, a link, another mode or a binary patch",
                         "write it as removed and added text; modes stay as they are")
        if not line.startswith(b"--- "):
            if line.startswith(b"@@ "):
                raise _wrong(name, at, "a hunk of no file", "take the whole diff")
            at += 1
            continue
        if at + 1 >= len(lines) or not lines[at + 1].startswith(b"+++ "):
            raise _wrong(name, at, "a file name without its second line", "take the whole diff")
        patch = FilePatch(_path(line, name, at), _path(lines[at + 1], name, at + 1))
        if patch.before and patch.after and patch.before != patch.after:
            raise _wrong(name, at, f"one file made of another: {patch.before} and {patch.after}",
                         "take a diff of one name on both sides")
        at += 2
        while at < len(lines) and lines[at].startswith(b"@@ "):
            hunk, at = _hunk(lines, at, name)
            patch.hunks.append(hunk)
        if not patch.hunks or not patch.path:
            raise _wrong(name, at, "a file without a hunk", "take the whole diff")
        found.append(patch)
    if not found:
        raise _wrong(name, 0, "no patch in it", "a unified diff begins with --- and +++")
    return found


def _hunk(lines: list[bytes], at: int, name: str) -> tuple[Hunk, int]:
    head = _HUNK.match(lines[at])
    if not head:
        raise _wrong(name, at, "a head of a hunk that cannot be read", "take the diff as the tool wrote it")
    hunk = Hunk(at + 1)
    left, right = (int(count) if count is not None else 1 for count in head.groups())
    at += 1
    while left > 0 or right > 0:
        line = lines[at] if at < len(lines) else b""
        sign = line[:1] if line not in (b"\n", b"\r\n") else b" "
        text = line[1:] if sign != b" " or line[:1] == b" " else line
        if sign not in (b" ", b"-", b"+") or not line:
            raise _wrong(name, at, "a hunk that is cut off", "take the whole diff")
        if at + 1 < len(lines) and lines[at + 1].startswith(b"\\ "):
            text = text.rstrip(b"\n")
        if sign != b"+":
            hunk.old.append(text)
            left -= 1
        if sign != b"-":
            hunk.new.append(text)
            right -= 1
        at += 1
        while at < len(lines) and lines[at].startswith(b"\\ "):
            at += 1
    if left or right:
        raise _wrong(name, at, "a hunk whose head counts other lines", "take the diff as the tool wrote it")
    return hunk, at


def _path(line: bytes, name: str, at: int) -> str:
    raw = line[4:].split(b"\t")[0].strip()
    try:
        path = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _wrong(name, at, f"the path {raw!a}", "names of files are UTF-8") from error
    if path == "/dev/null":
        return ""
    first, _, rest = path.partition("/")
    if not rest or first.startswith('"') or ".." in rest.split("/") or rest.startswith("/"):
        raise _wrong(name, at, f"the path {path!r}", "paths are those of `diff -u a/x b/x`, one directory to strip")
    return rest


def _wrong(name: str, at: int, found: str, cure: str) -> InputError:
    return InputError("a patch cannot be read", where=f"{name}:{at + 1}", found=found, cure=cure)


def apply(files: Mapping[str, bytes], patches: list[FilePatch], name: str) -> dict[str, bytes | None]:
    """What becomes of the files that a patch touches: path to new content, None for one that is removed.

    Raises:
        InputError: a hunk fits nowhere, or in more than one place; a file is missing, or in the way.
    """
    changed: dict[str, bytes | None] = {}
    for patch in patches:
        content = changed[patch.before] if patch.before in changed else files.get(patch.before)
        if patch.before and content is None:
            raise InputError("a patch does not apply: its file is not there", where=f"{name}: {patch.before}",
                             cure="the source has moved: write the patch anew for this version")
        if not patch.before and (files.get(patch.path) is not None or changed.get(patch.path) is not None):
            raise InputError("a patch does not apply: the file that it makes is there", where=f"{name}: {patch.path}",
                             cure="it may have been taken over by this version: leave it out")
        lines = (content or b"").splitlines(keepends=True)
        for hunk in patch.hunks:
            lines = _replace(lines, hunk, f"{name}:{hunk.line}: {patch.path}")
        if not patch.after and lines:
            raise InputError("a patch removes a file, and lines of it would stay", where=f"{name}: {patch.before}",
                             found=f"{len(lines)} lines", cure="write the patch anew for this version")
        changed[patch.path] = b"".join(lines) if patch.after else None
    return changed


def _replace(lines: list[bytes], hunk: Hunk, where: str) -> list[bytes]:
    places = _places(lines, hunk.old)
    if len(places) == 1:
        at = places[0]
        return [*lines[:at], *hunk.new, *lines[at + len(hunk.old):]]
    if places:
        raise InputError(f"a patch applies in {len(places)} places", where=where,
                         found="lines " + ", ".join(str(at + 1) for at in places[:8]),
                         cure="give the hunk more lines of context, so that it fits in one place only")
    there = bool(hunk.new) and len(_places(lines, hunk.new)) > 0
    raise InputError("a patch does not apply" + (": what it makes is there already" if there else ""), where=where,
                     found="none of the file's lines are those of the hunk",
                     cure="leave it out: this version has it" if there
                     else "the source has moved: write the patch anew for this version")


def _places(lines: list[bytes], block: list[bytes]) -> list[int]:
    """Where a block of lines occurs. An empty block fits an empty file only."""
    if not block:
        return [0] if not lines else []
    first = block[0]
    return [at for at in range(len(lines) - len(block) + 1)
            if lines[at] == first and lines[at:at + len(block)] == block]
