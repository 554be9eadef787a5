"""The rules by which `preflight` judges a candidate lock. Pure: what is known of the wheels in, findings out.

Each finding belongs to the check that would find the same in the built layers, with the same subject: one waiver covers
both, and what passes here is judged again there, by content. What cannot be told before the download is said so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from checks import (
    advisories,
    facts,
    torch_abi,
    torch_cuda,
    triton_pair,
    triton_releases,
    triton_stub,
    vllm_wheels,
    wheel_set,
)
from checks.cuda_set import stem_of, toolkit
from checks.loadability import ANY_ISA, Device, Way, best
from checks.verdict import Finding
from checks.wheel_family import pairs, prereleases, same_version
from lock.tags import rank, supported
from stages.candidate import Candidate, CandidateWheel

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Move:
    """A pin that should be another: `name` from version `old` to `new` (a version, or a specifier), and why.

    `follows`: it is the consequence of which torch there is; where torch moves, it moves by itself.
    """

    name: str
    old: str
    new: str
    why: str
    follows: bool = False

    def text(self) -> str:
        return f"{self.name} {self.old} -> {self.new}: {self.why}"


@dataclass(frozen=True)
class Foreseen:
    """A finding of check `check`, and the pins to move; any one of `moves` cures it."""

    check: str
    finding: Finding
    moves: tuple[Move, ...] = ()


def judge(candidate: Candidate, target: Data, lock: Data) -> list[Foreseen]:
    """Everything that is wrong with the candidate, or cannot be told.

    Args:
        target, lock: plain data, as checks get them; the lock is the candidate.
    """
    situation = _Situation(candidate, target, lock)
    found: list[Foreseen] = []
    for rule in _RULES:
        found += rule(situation)
    return found


class _Situation:
    """What the rules look at."""

    def __init__(self, candidate: Candidate, target: Data, lock: Data) -> None:
        self.target, self.lock, self.machine = target, lock, candidate.machine
        self.wheels, self.strange = candidate.wheels, candidate.strange
        self.torch, self.vllm = candidate.wheels.get("torch"), candidate.wheels.get(facts.distribution(target))
        cuda = str(target["device"].get("cuda", "none"))
        self.cuda = "" if cuda == "none" else cuda
        self.table = torch_abi.known(candidate.machine)

    def version(self, name: str) -> str:
        return self.wheels[name].locked.version if name in self.wheels else ""

    def device_code(self, vllm: str) -> Mapping[str, Any]:
        """What the check `device-code` goes by, for a vLLM."""
        wheel = {"name": facts.distribution(self.target), "version": vllm}
        return facts.device_code(self.target, {**self.lock, "wheels": [wheel]})

    def is_cpu(self) -> bool:
        """True if this torch is a CPU build."""
        return self.torch is not None and (
            "+cpu" in str(self.torch.package["version"]) or not self.torch.members.get(torch_cuda.LIBRARY))

    def better_torch(self) -> tuple[Move, ...]:
        """The torch that this vLLM was built for: by its own requirement, else by what it leaves undefined."""
        if self.torch is None or self.vllm is None:
            return ()
        old, vllm = self.version("torch"), f"vllm {self.version('vllm')}"
        wanted = _pinned(self.vllm.package, "torch")
        build = self.table.build(wanted)
        cpu = bool(self.cuda) and build is not None and not build.cuda  # 2.10.0 for aarch64: no way out
        if wanted and Version(wanted) != Version(torch_abi.public(old)) and not cpu:
            return (Move("torch", old, wanted, f"{vllm} requires torch=={wanted}"),)
        names = {name for item in self.vllm.libraries.values() for name in item.undefined or ()}
        return tuple(Move("torch", old, version, f"its libraries have all that {vllm} asks for")
                     for version in self.table.satisfying(names) if names and version != torch_abi.public(old))

    def better_vllm(self, why: str, fits: Callable[[vllm_wheels.KnownWheel], bool]) -> tuple[Move, ...]:
        """Known vLLM wheels that are known to fit, the newest first."""
        known = [wheel.version for wheel in vllm_wheels.known(self.machine).values()
                 if wheel.version != self.version("vllm") and fits(wheel)]
        return tuple(Move("vllm", self.version("vllm"), version, why)
                     for version in sorted(known, key=Version, reverse=True))


# -- the set --------------------------------------------------------------------------------------


def _set(it: _Situation) -> Iterator[Foreseen]:
    """Requirements, pairs, wheels of one release, pre-releases: as the check `wheel-set` judges them."""
    given = facts.wheel_set(it.target, it.lock)
    packages = {name: wheel.package for name, wheel in it.wheels.items()}
    listed, wanted = list(packages.values()), given["requirements"]
    errors = {(row["package"], row["needs"]): row["error"] for row in given["pairs"]}
    environment = wheel_set.environment(given["machine"], given["python"])
    # What is compiled is there for those that require it; what it requires itself the built wheel says.
    compiled = [{"name": one["name"], "version": one["version"]} for one in facts.compiled(it.lock)]
    for finding in wheel_set.requirements([*listed, *compiled], wanted, environment, errors, given.get("excluded", ())):
        yield Foreseen("wheel-set", finding, _move_for(it, finding.subject))
    for finding in (*pairs(packages, given["pairs"]), *prereleases(listed, wanted)):
        yield Foreseen("wheel-set", finding)
    for row in given["same_version"]:
        for finding in same_version(packages, [row]):
            first = next(name for name in row["packages"] if name in packages)
            name = finding.subject.partition(":")[0]
            yield Foreseen("wheel-set", finding, (
                Move(name, it.version(name), torch_abi.public(it.version(first)), f"{first} is {it.version(first)}"),))


def _move_for(it: _Situation, subject: str) -> tuple[Move, ...]:
    """What cures `name: other<specifier>`."""
    name, _, text = subject.partition(": ")
    try:
        need = Requirement(text)
    except InvalidRequirement:
        return ()
    old = it.version(need.name)
    if not old or not need.specifier:
        return ()
    if need.name == "torch" and name not in ("vllm", "target"):
        # vLLM says which torch; everything else that is compiled against torch follows.
        return (Move(name, it.version(name), f"the one for torch {old}", f"it was built for torch{need.specifier}",
                     follows=True),)
    who = f"{name} {it.version(name)}".rstrip()
    return (Move(need.name, old, _exact(need.specifier) or str(need.specifier), f"{who} requires {need}"),)


def _files(it: _Situation) -> Iterator[Foreseen]:
    """Wheels for the target's interpreter and machine, and nothing but wheels."""
    python = it.lock["python"]
    glibc = min(python["glibc"], it.target["python"].get("glibc") or python["glibc"], key=facts.release)
    ranks = supported(python["version"], it.machine, glibc)
    for file in it.strange:
        yield Foreseen("wheel-set", Finding(
            "error", f"{file.name}: sdist", f"{file.file} is no wheel: it would be compiled", file.file,
            f"take a {file.name} that has a wheel for {it.machine}"))
    for wheel in it.wheels.values():
        if rank(wheel.locked.file, ranks) is None:
            yield Foreseen("python", Finding(
                "error", wheel.locked.file, f"is not for CPython {python['version']}, {it.machine}, glibc {glibc}",
                wheel.locked.file, "lock again; if the lock was edited by hand, restore it"))


def _numpy(it: _Situation) -> Iterator[Foreseen]:
    """numpy against the Triton stub."""
    given = facts.triton_stub(it.target, it.lock)
    if not given["server"] or not given["known"]:
        return
    for finding in triton_stub.numpy({name: it.version(name) for name in it.wheels}, given["numpy"]):
        moves = (Move("numpy", it.version("numpy"), given["numpy"], "the Triton stub was made for it"),) \
            if finding.severity == "error" else ()
        yield Foreseen("triton-stub", finding, moves)


def _triton_pair(it: _Situation) -> Iterator[Foreseen]:
    """Triton's server and its backend against this Python, CUDA and vLLM; and the nearest pair that is known."""
    if "triton" not in it.target:
        return
    given = triton_releases.pair(it.target, it.lock)
    for finding in triton_pair.judge(given):
        cures: tuple[Move, ...] = ()
        if finding.severity == "error" and finding.subject == "backend: vllm":
            cures = _other_backends(it, given)
        elif finding.severity == "error" and finding.subject.startswith("server: "):
            cures = _other_servers(given, finding.subject)
        yield Foreseen("triton-pair", finding, cures)


def _other_servers(given: Data, subject: str) -> tuple[Move, ...]:
    """The nearest release that goes with this Python and CUDA, a prebuilt server that does, a stub from source."""
    known, server = triton_releases.table(), given["server"]
    fits = f"for Python {given['python']} and CUDA {given['cuda'] or 'none'}"
    found = []
    near = triton_pair.nearest(given, known["releases"])
    if near and server["from"] != "pytriton":
        found.append(Move("triton.version", server["container"], near, fits))
    for row in known["prebuilt"]:
        if server["from"] != "pytriton" and given["python"] in row["pythons"] and triton_pair.runs(row["cuda"], given):
            found.append(Move("triton.from", server["from"], f"pytriton {row['version']}",
                              f"stubs for Python {row['pythons'][0]} to {row['pythons'][-1]}"))
    if subject == "server: python":
        found.append(Move("triton.python_backend", "prebuilt", "source", f"compiled for Python {given['python']}"))
    return tuple(found)


def _other_backends(it: _Situation, given: Data) -> tuple[Move, ...]:
    """A backend that fits this vLLM: ours, or the newest branch that is known to; or a vLLM that this branch fits."""
    backend, known = given["backend"], triton_releases.table()
    found = [Move("triton.backend", "upstream", "stagecraft", "it is written for the vLLM of the image")]
    newest = next((row["container"] for row in known["releases"] if row["container"] != backend["container"]
                   and triton_releases.judged(row, backend["vllm"])["verdict"] in ("fits", "patched")), "")
    if newest:
        found.append(Move("triton.backend_version", backend["container"], newest, f"it goes with {backend['vllm']}"))
    row = triton_releases.row_of(backend["container"])
    if row is not None and "vllm_public" in row:
        found.append(Move("vllm", backend["vllm"], row["vllm_public"], f"r{backend['container']} was made for it"))
    return tuple(found)


# -- torch ----------------------------------------------------------------------------------------


def _torch_cuda(it: _Situation) -> Iterator[Foreseen]:
    """torch is a CUDA build, of a CUDA that the driver runs."""
    given = facts.torch_cuda(it.target, it.lock)
    if not given["cuda"] or it.torch is None:
        return
    torch = it.torch
    moves = it.better_torch()
    if it.is_cpu() and not moves:
        moves = tuple(Move("torch", it.version("torch"), build.version, f"a CUDA build for {it.machine}")
                      for build in it.table.builds if build.cuda and build.version != it.version("torch"))
    for finding in torch_cuda.judge(torch.package, bool(torch.members.get(torch_cuda.LIBRARY)), torch.read_version,
                                    given, f"{torch.locked.file}: "):
        cures = moves if finding.severity == "error" else ()
        if finding.subject.startswith("torch: CUDA "):
            cures = (Move("torch", it.version("torch"), f"a build for CUDA {it.cuda}", "the driver runs no newer one"),)
        if it.is_cpu() and finding.subject == "torch: libtorch_cuda.so":
            message = f"torch {it.version('torch')} for {it.machine} is a CPU build: it has no libtorch_cuda.so"
            finding = replace(finding, message=message)
        yield Foreseen("torch-cuda", finding, cures)


def _toolkit(it: _Situation) -> Iterator[Foreseen]:
    """The CUDA compilers are of the runtime's minor, and of none that is newer than the driver's (facts 2.4)."""
    if not it.cuda:
        return
    names = facts.cuda_set(it.target, it.lock)["toolkit"]
    there = {name: it.version(name) for name in it.wheels if stem_of(name)[0] in names}
    for finding in toolkit(there, it.cuda):
        name = finding.subject.split()[0]
        core = f"nvidia-cuda-runtime{stem_of(name)[1]}"
        runtime = there.get(core, it.cuda)
        move = Move(name, there[name], f"{_minor(runtime)}.*", f"the CUDA runtime is {runtime}")
        yield Foreseen("cuda-set", finding, (move,) if name != core else ())


# -- vLLM -----------------------------------------------------------------------------------------


def _extensions(it: _Situation) -> Iterator[Foreseen]:
    """The compiled parts that this vLLM must have are in its wheel, for the machine."""
    if it.vllm is None or not it.cuda:
        return
    given, file = facts.extensions(it.target, it.lock), it.vllm.locked.file
    bare = "" if any(name.endswith(".so") for name in it.vllm.members) else "holds no compiled extension"
    if bare or "cpu" in (Version(it.version("vllm")).local or ""):
        yield Foreseen("extensions", Finding(
            "error", "vllm", f"{file} {bare or 'is a build for CPUs'}: \"ModuleNotFoundError: No module named "
            "'vllm._C'\", or no kernel that this device runs", file, "take a vLLM that was built for CUDA and this "
            "device; one that is compiled needs VLLM_TARGET_DEVICE=cuda and a CUDA torch"))
        return
    if not given["known"]:
        yield Foreseen("extensions", Finding(
            "error", "vllm", f"which extensions vLLM {given['version']} must have is not known",
            "vllm/extensions.yaml", "look into its wheel and add an entry, with its source, to that table"))
    for row in given["rows"]:
        name = row["file"]
        if not it.vllm.members.get(name):
            yield Foreseen("extensions", Finding("error", name, f"missing: {row['why']}", f"{file}: {name}",
                                                 "take a vLLM that was built for CUDA and this device"))
    for name, library in it.vllm.libraries.items():
        if library.machine != it.machine:
            yield Foreseen("extensions", Finding(
                "error", name, f"compiled for {library.machine}, the target is {it.machine}" if library.machine else
                "not an ELF file", f"{file}: {name}", "take the wheel for this machine"))


def _device_code(it: _Situation) -> Iterator[Foreseen]:
    """The extensions that the device needs have code for it, as far as their wheel is known by its sha256."""
    if it.vllm is None or not it.cuda:
        return
    wheel, given = vllm_wheels.known(it.machine).get(it.vllm.locked.sha256), it.device_code(it.version("vllm"))
    device, anyone = Device.of(given), Device.of(given, ANY_ISA)
    if not device.capability:
        return
    if wheel is None or not device.isa:
        unknown = f"vllm {it.version('vllm')}" if wheel is None else f"the PTX that a driver of CUDA {it.cuda} takes"
        yield Foreseen("device-code", Finding(
            "info", "vllm", f"{unknown} is not known here: device code is judged after the download",
            it.vllm.locked.file))
        return
    moves = it.better_vllm(f"it has code for {device.capability}", lambda known: _serves(it, known))
    for row in given["rows"]:
        path, kernels = row["file"], wheel.extensions[row["file"]].kernels if row["file"] in wheel.extensions else {}
        if row["host"] or not kernels:
            continue
        where, said = f"{it.vllm.locked.file}: {path}", f"({', '.join(sorted(kernels))})"
        how = best(kernels, anyone)
        if how is Way.NONE:
            yield Foreseen("device-code", Finding(
                "error", path, f"has no code for compute capability {device.capability}: \"CUDA error: no kernel image "
                f"is available for execution on the device\" {said}", where, _FOR_DEVICE), moves)
        elif how is Way.UNKNOWN:
            yield Foreseen("device-code", Finding(
                "warning", path, f"it is not known whether its code loads on compute capability {device.capability} "
                f"{said}", where))
        elif how is Way.PTX and best(kernels, device) is Way.NEWER_PTX:
            yield Foreseen("ptx-floor", Finding(
                "error", path, f"has only PTX for this device, newer than ISA {device.isa} of its driver: \"the "
                f"provided PTX was compiled with an unsupported toolchain\" {said}", where, _FOR_DEVICE), moves)
        elif how is Way.PTX and best(kernels, device) is Way.UNKNOWN:
            yield Foreseen("device-code", Finding(
                "warning", path, f"its PTX is newer than ISA {device.isa} of the device's driver, and it is not known "
                f"whether its machine code loads on compute capability {device.capability} {said}", where))
        elif how is Way.PTX and row["native"] and given["policy"] == "native":
            yield Foreseen("device-code", Finding(
                "error", path, f"has PTX only: the target's policy is native, machine code for {device.capability} "
                f"{said}", where, "build it for the device, or take device_code.policy out of the target"))
        elif how is Way.PTX:
            yield Foreseen("device-code", Finding(
                "info", path, f"has PTX only for this device: its driver compiles it at the first use {said}", where))


_FOR_DEVICE = "take a vLLM that was built for this device"


def _serves(it: _Situation, wheel: vllm_wheels.KnownWheel) -> bool:
    """True if all of a wheel that the device needs loads on it."""
    given = it.device_code(wheel.version)
    asked = [wheel.extensions[row["file"]].kernels for row in given["rows"] if row["file"] in wheel.extensions]
    return bool(asked) and all(best(kernels, Device.of(given)) >= Way.UNKNOWN for kernels in asked if kernels)


def _advisories(it: _Situation) -> Iterator[Foreseen]:
    """No wheel has a known hole."""
    packages = [wheel.package for wheel in it.wheels.values()]
    for finding in advisories.judge(packages, facts.advisories(it.target, it.lock)["rows"]):
        yield Foreseen("advisories", finding)


def _abi(it: _Situation) -> Iterator[Foreseen]:
    """What is compiled against torch finds in this torch what it asks for."""
    torch = it.torch
    if torch is None or (it.cuda and it.is_cpu()):
        return  # a CPU torch lacks symbols because it is one, which is said already
    exports = it.table.of(torch.locked.version)
    unread = 0
    for wheel in it.wheels.values():
        for path, library in wheel.libraries.items():
            if library.undefined is None:
                unread += 1
                continue
            lacking, certain = _lacking(it, torch, exports, library.undefined)
            if lacking:
                more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
                other = "" if certain else "; judged by another build of that version, so it may be wrong"
                yield Foreseen("abi", Finding(
                    "error" if certain else "warning", path, f"undefined symbol: {lacking[0]}{more}: compiled against "
                    f"another torch than {torch.locked.version}{other}", f"{wheel.locked.file}: {path}",
                    "take a build for this torch, or the torch that it was built for"), _abi_moves(it, wheel))
    if exports is None and it.vllm is not None:
        yield Foreseen("abi", Finding(
            "info", "torch", f"torch {torch.locked.version} is not known here: only what {', '.join(torch_abi.HOMES)} "
            "export was judged; the rest is, after the download", torch.locked.file))
    if unread:
        yield Foreseen("abi", Finding("info", "libraries", f"{unread} libraries do not tell by their beginning what "
                                      "they ask for; they are judged after the download"))


def _lacking(it: _Situation, torch: CandidateWheel, exports: frozenset[str] | None,
             undefined: tuple[str, ...]) -> tuple[list[str], bool]:
    """What this torch lacks, and whether that is sure."""
    homes = torch.homes
    by_home = [name for name in it.table.at_home(undefined, "cg") if homes is not None and name not in homes]
    if exports is None:
        return by_home, True
    lacking = torch_abi.missing(undefined, exports)
    if homes is None:
        return lacking, True
    return (by_home, True) if by_home else (lacking, False)


def _abi_moves(it: _Situation, wheel: CandidateWheel) -> tuple[Move, ...]:
    if wheel is not it.vllm:
        return (Move(wheel.locked.name, wheel.locked.version, f"the one for torch {it.version('torch')}",
                     "it was compiled against another torch", follows=True),)
    moves = it.better_torch()
    exports = it.table.of(it.version("torch"))
    if exports is not None:
        moves += it.better_vllm(f"it fits torch {it.version('torch')}", lambda known: not any(
            torch_abi.missing(item.undefined, exports) for item in known.extensions.values()))
    return moves


_RULES: tuple[Callable[[_Situation], Iterator[Foreseen]], ...] = (
    _set, _files, _numpy, _triton_pair, _torch_cuda, _toolkit, _extensions, _device_code, _abi,
    _advisories)


# -- small things ---------------------------------------------------------------------------------


def _minor(version: str) -> str:
    return ".".join(f"{version}.0".split(".")[:2])


def _pinned(package: Mapping[str, Any], name: str) -> str:
    """The version that a package requires exactly of another; empty if it leaves a choice."""
    for text in package["requires_dist"]:
        try:
            need = Requirement(text)
        except InvalidRequirement:
            continue
        if canonicalize_name(need.name) == name and "extra ==" not in str(need.marker or ""):
            return _exact(need.specifier)
    return ""


def _exact(specifier: SpecifierSet) -> str:
    only = [item.version for item in specifier if item.operator in ("==", "===") and "*" not in item.version]
    return only[0] if len(only) == 1 and len(list(specifier)) == 1 else ""
