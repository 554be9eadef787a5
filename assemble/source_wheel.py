"""Builder `source-wheel`: what a package's source has, and what its build made, as one wheel.

The same bytes for the same inputs: members in byte order, stored, one time, RECORD and WHEEL written anew. Everything
is streamed twice, once for the hashes that RECORD needs, once into the archive; memory is the list of files.

Inputs, all layers (tars in byte order): `python` and `csrc` of `source-tree` (`src/…`; what a compile reads of a
package's Python files, such as vllm/envs.py, belongs into the wheel too), and `built` of `run-script`: relative to the
site directory, with the `<name>-<version>.dist-info` that the package's own build wrote.

Params::

    name, version     of the wheel; the build must have made the same
    tag               "cp38-abi3-linux_aarch64"; compressed sets are expanded in WHEEL
    python, without   globs of paths below `src/` that go in, and of those that do not; `*` crosses slashes
    replaces          globs of paths that the build may make otherwise than the source has them
    pins              {project: version}: what Requires-Dist is rewritten to
    requires          the requirements that the lock was resolved for, or null: METADATA must ask for the same

Of `built`, bytecode (`__pycache__`) and what an installer notes about its own run stay out. Outputs: `wheel`, and
`facts` (JSON)::

    {"format": "stagecraft.source-wheel.v1", "name", "version", "file": its name, "files": members, "built": how many of
     them the build made, "replaced": [paths of the source that it made otherwise], "requires_dist": [...]}
"""

from __future__ import annotations

import base64
import csv
import hashlib
import heapq
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from isal import isal_zlib
from packaging.tags import parse_tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from assemble import requires_dist
from cache import canonical, untar
from cache.build import BuildContext
from cache.errors import InputError, IntegrityError
from cache.store import Blob
from cache.zip_writer import ZipWriter

FORMAT = "stagecraft.source-wheel.v1"

_SOURCES = ("csrc", "python")
_PREFIX = "src/"
_LIMITS = untar.Limits(entries=500_000, total=64 << 30, climbing=True)
_METADATA_LIMIT = 4 << 20
#: Of a .dist-info: written anew, or an installer's notes about its own run (PEP 376, PEP 610), or a signature.
_NOT_OURS = ("RECORD", "WHEEL", "INSTALLER", "REQUESTED", "direct_url.json", "RECORD.jws", "RECORD.p7s")
_REPORT = 16 << 20


@dataclass(frozen=True)
class _File:
    """A file of one input: its hashes, and its content if it is METADATA."""

    origin: str
    size: int
    mode: int
    crc: int
    sha256: bytes
    content: bytes = b""


@dataclass
class _Plan:
    """Which file of which input is which member."""

    files: dict[str, _File] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)


def build(context: BuildContext) -> Mapping[str, Blob]:
    """See the module text.

    Raises:
        InputError: the build left no .dist-info, or one of another name or version; METADATA requires something else
            than the lock was resolved for; a symlink; a file that source and build have with different content; no
            file of the source fits; a tag that is none.
        IntegrityError: a layer is malformed.
    """
    params = context.params
    file_name = _file_name(params)
    built = _scan(context, "built", "", lambda path: not _left_out(path))
    info, metadata = _info(built, params)
    source: dict[str, _File] = {}
    for origin in _SOURCES:
        source |= _scan(context, origin, _PREFIX, lambda path: _wanted(path, params))
    if params["python"] and not source:
        raise InputError("no file of the source goes into the wheel", expected=", ".join(params["python"]),
                         cure="correct `python` and `without` of the recipe")
    plan = _merged(source, built, params["replaces"])
    made = {f"{info}/METADATA": metadata, f"{info}/WHEEL": _wheel_file(params["tag"])}
    made[f"{info}/RECORD"] = _record(plan.files, made, f"{info}/RECORD")
    plan.files = {path: found for path, found in plan.files.items() if path not in made}
    wheel = _write(context, plan.files, made)
    facts = {"format": FORMAT, "name": params["name"], "version": params["version"], "file": file_name,
             "files": len(plan.files) + len(made), "built": sum(one.origin == "built" for one in plan.files.values()),
             "replaced": sorted(plan.replaced), "requires_dist": requires_dist.of_metadata(metadata.decode())}
    context.log(f"{file_name}: {facts['files']} files, {facts['built']} of them made by its build; {wheel.size} bytes")
    for path in sorted(plan.replaced):
        context.log(f"{path}: its build made it otherwise than its source has it")
    return {"wheel": wheel, "facts": context.store.put(canonical.dumps(facts))}


def _file_name(params: Mapping[str, Any]) -> str:
    name = f"{canonicalize_name(params['name']).replace('-', '_')}-{params['version']}-{params['tag']}.whl"
    try:
        parse_wheel_filename(name)
    except (InvalidWheelFilename, InvalidVersion, ValueError) as error:
        raise InputError("this is no name of a wheel", where=name, expected="a tag such as cp311-cp311-linux_aarch64",
                         found=str(error)) from error
    return name


def _wanted(path: str, params: Mapping[str, Any]) -> bool:
    return any(fnmatchcase(path, glob) for glob in params["python"]) and \
        not any(fnmatchcase(path, glob) for glob in params["without"])


def _left_out(path: str) -> bool:
    top, _, rest = path.partition("/")
    return "/__pycache__/" in f"/{path}" or (top.endswith(".dist-info") and rest in _NOT_OURS)


# -- first reading: what there is ----------------------------------------------------------------------


def _entries(context: BuildContext, origin: str, prefix: str,
             wanted: Callable[[str], bool]) -> Iterator[tuple[str, untar.Entry]]:
    """Paths below `prefix` with their entries, in the order of the layer; directories left out."""
    with context.store.open_blob(context.inputs[origin]) as stream:
        for entry in untar.entries(stream, where=origin, limits=_LIMITS):
            path = entry.path.removeprefix(prefix)
            if entry.type == "directory" or not entry.path.startswith(prefix) or not wanted(path):
                continue
            if entry.type != "file":
                raise InputError(f"a {entry.type} cannot be in a wheel", where=path, found=f"to {entry.target}",
                                 cure="let the package's build copy the file" if origin == "built"
                                 else "name it under `without` of the recipe")
            yield path, entry


def _scan(context: BuildContext, origin: str, prefix: str, wanted: Callable[[str], bool]) -> dict[str, _File]:
    found = {}
    for path, entry in _entries(context, origin, prefix, wanted):
        content = entry.read(_METADATA_LIMIT) if path.endswith(".dist-info/METADATA") else b""
        digest, crc = hashlib.sha256(content), isal_zlib.crc32(content)
        for chunk in entry.chunks():
            digest.update(chunk)
            crc = isal_zlib.crc32(chunk, crc)
        mode = 0o755 if entry.mode & 0o111 else 0o644
        found[path] = _File(origin, entry.size, mode, crc, digest.digest(), content)
    return found


def _info(built: Mapping[str, _File], params: Mapping[str, Any]) -> tuple[str, bytes]:
    """The name of the .dist-info that the build wrote, and METADATA as the wheel will have it."""
    name, version = params["name"], params["version"]
    tops = sorted({path.partition("/")[0] for path in built if path.partition("/")[0].endswith(".dist-info")})
    wanted = f"{name}-{version}.dist-info"
    if not tops or f"{tops[0]}/METADATA" not in built:
        raise InputError("the package's build left no .dist-info", expected=f"{wanted}/METADATA",
                         found=f"{len(built)} files, {', '.join(tops) or 'no .dist-info'}",
                         cure="let the recipe's script unpack a wheel of `setup.py bdist_wheel` into /build/out, or "
                              "install the package there with pip (--no-deps --target)")
    if len(tops) > 1 or not _is_info(tops[0], name, version):
        raise InputError("the package's build made another distribution", expected=wanted, found=", ".join(tops),
                         cure="the recipe's script must build exactly this version: set the variable that its setup.py "
                              "takes the version from, such as VLLM_VERSION_OVERRIDE")
    where = f"{tops[0]}/METADATA"
    try:
        text = built[where].content.decode()
    except UnicodeDecodeError as error:
        raise InputError("METADATA is not UTF-8", where=where, found=str(error)) from error
    if params["requires"] is not None:
        differ = requires_dist.differences(text, params["requires"], params["pins"])
        if differ:
            raise InputError("the package that was built requires something else than what was locked", where=where,
                             expected="what the lock was resolved for (-)", found="\n".join(differ),
                             cure="correct `requirements` of the recipe, or the script that changes them; lock again")
    return tops[0], requires_dist.with_pins(text, params["pins"]).encode()


def _is_info(top: str, name: str, version: str) -> bool:
    found, _, other = top.removesuffix(".dist-info").partition("-")
    try:
        return canonicalize_name(found) == canonicalize_name(name) and Version(other) == Version(version)
    except InvalidVersion:
        return False


def _merged(source: Mapping[str, _File], built: Mapping[str, _File], replaces: Sequence[str]) -> _Plan:
    """One file a path: the build's where both have it, if they are equal or the recipe says that it may differ."""
    plan = _Plan({**source, **built})
    differ = sorted(path for path in source.keys() & built.keys() if source[path].sha256 != built[path].sha256)
    plan.replaced = [path for path in differ if any(fnmatchcase(path, glob) for glob in replaces)]
    wrong = [path for path in differ if path not in plan.replaced]
    if wrong:
        raise InputError("source and build have different files of one name", where=wrong[0],
                         expected="the same content, or one of them",
                         found=f"{source[wrong[0]].size} bytes in the source, {built[wrong[0]].size} bytes built"
                               + (f"; {len(wrong) - 1} more: {', '.join(wrong[1:6])}" if len(wrong) > 1 else ""),
                         cure="name it under `replaces` of the recipe if the build is to make it, "
                              "or under `without` if the source's is not to be in the wheel")
    return plan


# -- what is made -------------------------------------------------------------------------------------


def _wheel_file(tag: str) -> bytes:
    lines = ["Wheel-Version: 1.0", "Generator: stagecraft", "Root-Is-Purelib: false"]
    lines += [f"Tag: {one}" for one in sorted(map(str, parse_tag(tag)))]
    return ("\n".join(lines) + "\n").encode()


def _record(files: Mapping[str, _File], made: Mapping[str, bytes], own: str) -> bytes:
    rows = {path: (_hash(found.sha256), str(found.size)) for path, found in files.items()}
    rows |= {path: (_hash(hashlib.sha256(data).digest()), str(len(data))) for path, data in made.items()}
    rows[own] = ("", "")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        (path, *rows[path]) for path in sorted(rows, key=str.encode))
    return text.getvalue().encode()


def _hash(digest: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


# -- second reading: into the archive -----------------------------------------------------------------


def _write(context: BuildContext, files: Mapping[str, _File], made: Mapping[str, bytes]) -> Blob:
    total = sum(found.size for found in files.values())
    done = reported = 0
    streams: list[Iterable[tuple[bytes, str, untar.Entry | None]]] = [
        [(path.encode(), path, None) for path in sorted(made, key=str.encode)]]
    streams += [_again(context, files, origin) for origin in ("built", *_SOURCES)]
    count = 0
    with context.store.writer() as blob:
        archive = ZipWriter(blob)
        for _, path, entry in heapq.merge(*streams, key=lambda item: item[0]):
            if entry is None:
                archive.member(path, len(made[path]), isal_zlib.crc32(made[path]), [made[path]])
                continue
            found = files[path]
            archive.member(path, found.size, found.crc, entry.chunks(), found.mode)
            count += 1
            done += found.size
            if done - reported >= _REPORT:
                reported = done
                context.progress(done, total)
        if count != len(files):
            raise IntegrityError("a layer is not what it was when it was read before", expected=f"{len(files)} files",
                                 found=f"{count} files", cure="./doit store:verify --repair")
        archive.finish()
        context.progress(total, total)
        return blob.commit()


def _again(context: BuildContext, files: Mapping[str, _File],
           origin: str) -> Iterator[tuple[bytes, str, untar.Entry | None]]:
    def ours(path: str) -> bool:
        return path in files and files[path].origin == origin

    for path, entry in _entries(context, origin, "" if origin == "built" else _PREFIX, ours):
        yield path.encode(), path, entry
