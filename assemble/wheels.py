"""The builder `wheels-layer`: wheels of one layer to a deterministic tar, as an installer would lay them out.

Nothing is unpacked: `assemble.wheel_file` plans where each file goes, then all files of all wheels are streamed in
byte order of their paths from the archives into the tar, each held to the hash that its wheel's RECORD promises.
No code of a wheel runs. Memory: the plan (about 500 bytes a file) and a few MiB of content.

Two wheels with one path: the same content belongs to the first wheel by name; different content is an error
unless `params.collisions` names the winner (fact F33). The loser's RECORD keeps its row, as after any installer.

Params::

    python       "3.11"                   interpreter   "/usr/bin/python3.11", for #! lines
    glibc        "2.36" (optional)        purelib, platlib, scripts, data, headers: paths relative to the image's root
    collisions   [{"path": glob, "winner": wheel name}]: `path` is matched with the path in the image
                 and with the path below purelib; `*` crosses slashes; the first rule that matches counts
    records      [{"wheel": name, "path": glob of members}]: members whose row in the wheel's RECORD
                 is known to be wrong: NVIDIA's pynvvideocodec 2.0.4 altered two libraries after it was written

Inputs: `wheels/<file name>`. Outputs: `layer`, `index` (`cache.archive`), `packages` (`stagecraft.packages.v1`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any

from packaging.utils import canonicalize_name

from assemble.wheel_file import PlannedFile, Wheel, places_of, read_wheel
from assemble.wheel_tags import Image
from cache import canonical
from cache.archive import Layer, LayerWriter
from cache.build import BuildContext
from cache.errors import IntegrityError
from cache.store import Blob
from cache.zip_reader import ZipReader

_PREFIX = "wheels/"
#: Bytes between two progress reports.
_REPORT = 16 << 20


def build(context: BuildContext) -> Mapping[str, Blob]:
    """Build the layer; see the module text.

    Raises:
        IntegrityError: a malformed or evil wheel, content that is not what RECORD promises, two wheels with one path.
        StageError: a wheel for another Python or platform.
    """
    params = context.params
    image = Image(params["python"], context.platform["architecture"], params.get("glibc", ""))
    places = places_of(params)
    with ExitStack() as stack:
        wheels = []
        for name in sorted(context.inputs):
            file, digest = name.removeprefix(_PREFIX), context.inputs[name]
            reader = stack.enter_context(ZipReader(context.store.use(digest), file))
            wheel = read_wheel(reader, file, digest, image, places, params.get("records", ()), params.get("tags", ()))
            context.log(f"{file}: {len(wheel.files)} files"
                        + (f", {wheel.left_out} left out" if wheel.left_out else "")
                        + (f", {wheel.waived} not as RECORD says (waived)" if wheel.waived else ""))
            wheels.append(wheel)
        wheels.sort(key=lambda wheel: (wheel.name, wheel.file))
        owned = merge(wheels, params.get("collisions", ()), places.purelib, context.log)
        layer = _write(lay_out(owned), context)
    packages = {"format": "stagecraft.packages.v1", "packages": [wheel.package for wheel in wheels]}
    return {"layer": layer.layer, "index": layer.index, "packages": context.store.put(canonical.dumps(packages))}


def merge(wheels: Iterable[Wheel], rules: Iterable[Mapping[str, Any]], site: str,
          log: Callable[[str], None]) -> dict[str, PlannedFile]:
    """All files of all wheels by path, one owner each. `wheels` are in order of name.

    Raises:
        IntegrityError: two files for one path that nothing decides.
    """
    owned: dict[str, PlannedFile] = {}
    for wheel in wheels:
        for file in wheel.files:
            other = owned.setdefault(file.path, file)
            if other is file or other.promise == file.promise:
                continue
            if other.wheel is wheel:
                raise IntegrityError("a wheel has two files for one path", where=f"{wheel.file}: {file.path}")
            rule = next((rule for rule in rules if _matches(rule["path"], file.path, site)
                         and canonicalize_name(rule["winner"]) in (other.wheel.name, wheel.name)), None)
            if rule is None:
                raise _collision(other, file, site)
            if canonicalize_name(rule["winner"]) == wheel.name:
                owned[file.path] = file
            log(f"{file.path}: of {other.wheel.name} and {wheel.name}, {rule['winner']} wins")
    return owned


def lay_out(owned: Mapping[str, PlannedFile]) -> list[tuple[str, PlannedFile | None]]:
    """Paths with their files, and the directories above them with None, in byte order.

    Raises:
        IntegrityError: a file where another needs a directory.
    """
    entries: dict[str, PlannedFile | None] = dict(owned)
    for path, file in owned.items():
        above = path.rpartition("/")[0]
        while above and (above not in entries or above in owned):
            if above in owned:
                raise IntegrityError("one wheel has a file where another needs a directory", where=f"/{above}",
                                     found=f"{owned[above].wheel.file} and {file.wheel.file}")
            entries[above] = None
            above = above.rpartition("/")[0]
    return sorted(entries.items(), key=lambda entry: entry[0].encode())


def _matches(pattern: str, path: str, site: str) -> bool:
    return fnmatchcase(path, pattern.lstrip("/")) or fnmatchcase(path.removeprefix(f"{site}/"), pattern)


def _collision(one: PlannedFile, two: PlannedFile, site: str) -> IntegrityError:
    return IntegrityError(
        "two wheels own one path with different content", where=f"/{one.path}", expected="one owner",
        found=f"{one.wheel.file} ({one.size} bytes) and {two.wheel.file} ({two.size} bytes)",
        cure=f"drop one of the wheels, or decide in the target: wheels.collisions: [{{path: "
             f"\"{one.path.removeprefix(site + '/')}\", winner: {one.wheel.name}, reason: …}}]")


def _write(entries: list[tuple[str, PlannedFile | None]], context: BuildContext) -> Layer:
    total = sum(file.size for _, file in entries if file is not None)
    done = reported = 0
    with LayerWriter(context.store) as tar:
        for path, file in entries:
            if file is None:
                tar.directory(path)
                continue
            write_file(tar, file)
            done += file.size
            if done - reported >= _REPORT:
                reported = done
                context.progress(done, total)
        context.progress(total, total)
        return tar.finish()


def write_file(tar: LayerWriter, file: PlannedFile) -> None:
    """Write one planned file, held to its promise.

    Raises:
        IntegrityError: names the wheel and the member.
    """
    source = file.source
    chunks: Iterable[bytes] = (source,) if isinstance(source, bytes) else file.wheel.reader.chunks(source)
    algorithm, _, promised = file.promise.partition(":")
    other = None if algorithm == "sha256" else hashlib.new(algorithm)
    try:
        if other is None:
            tar.file(file.path, file.size, chunks, file.mode, expect=file.promise)
        else:
            tar.file(file.path, file.size, _hashed(chunks, other), file.mode)
            if other.hexdigest() != promised:
                raise IntegrityError("wrong hash", expected=file.promise, found=f"{algorithm}:{other.hexdigest()}")
    except IntegrityError as error:
        if (error.where or "").startswith(file.wheel.file):
            raise  # the archive's reader has named the member
        member = file.path if isinstance(source, bytes) else source.name
        told = "a file of a wheel is not what its RECORD promises" if error.message == "wrong hash" else error.message
        raise IntegrityError(told, where=f"{file.wheel.file}: {member}", expected=error.expected, found=error.found,
                             cure="do not use this wheel; fetch it again or take another version") from error


def _hashed(chunks: Iterable[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
