"""Kernels that are known to have no code for a device: what published builds of vLLM leave out on purpose.

A wheel holds kernels for many devices, and some of them for other devices only. Which, is noted by device and extension
in `vllm/kernels-without-code/<version>.yaml`, so that a kernel that *lost* its code stands out. It is noted by the
first 24 bits of the SHA-256 of its stable name, below its function's name, which is there for people.

    python -m checks.baseline WHEEL… [--capability 11.0 …]

reads wheels of vLLM and notes their version anew. Look at the difference before you commit it.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cache import canonical
from checks import facts
from checks.kernels import DamagedCodeError, read_code
from checks.loadability import ANY_ISA, Device, Way, numbers

FORMAT = "stagecraft.kernels-without-code.v1"
#: The devices that are noted if none are asked for.
CAPABILITIES = ("11.0", "12.1")

_ANONYMOUS = re.compile(r"(\d+)(_GLOBAL__N__)")
_PARTS = re.compile(r"_GLOBAL__N__[0-9a-f]{8}_\d+_(.+)_[0-9a-f]{8}(?:_\d+)?")
_LENGTH = re.compile(r"\d+")
_HEAD = f"""\
# Kernels of published vLLM builds that have no code for a device, and are not missed there. Read by `device-code`.
# Made by `python -m checks.baseline WHEEL` out of the wheel itself; by function: 24 bits of the SHA-256 of each
# instance's name.
format: {FORMAT}
"""


def stable_name(kernel: str) -> str:
    """A mangled name without what differs from build to build: nvcc names anonymous namespaces after the path of the
    source and its own process id, `59_GLOBAL__N__77034d04_26_fused_kda_decode_kernel_cu_652fd05d_21470`."""
    found, at = [], 0
    while (match := _ANONYMOUS.search(kernel, at)) is not None:
        digits, end, parts = match[1], match.end(), None
        while digits and parts is None:  # the name before may end in digits too
            parts = _PARTS.fullmatch(kernel, match.start(2), match.start(2) + int(digits))
            if parts is None:
                digits = digits[1:]
        if parts is not None:
            end = parts.end()
        found += [kernel[at : match.start(2) - len(digits)], f"<{parts[1]}>" if parts else kernel[match.start(2) : end]]
        at = end
    return "".join(found) + kernel[at:]


def note_of(kernel: str) -> str:
    """What stands for a kernel in the table: six hexadecimal digits."""
    return hashlib.sha256(stable_name(kernel).encode()).hexdigest()[:6]


def function_of(kernel: str) -> str:
    """The qualified name of a kernel's function, without arguments: `cutlass::device_kernel`."""
    if not kernel.startswith("_Z"):
        return kernel
    at, parts = 3 if kernel.startswith("_ZN") else 2, []
    while (length := _LENGTH.match(kernel, at)) is not None:
        at = length.end() + int(length[0])
        part = kernel[length.end() : at]
        parts.append("(anonymous)" if part.startswith("_GLOBAL__N__") else part)
        if not kernel.startswith("_ZN"):
            break
    return "::".join(parts) or kernel


def grouped(kernels: Iterable[str]) -> dict[str, list[str]]:
    """Function to its kernels."""
    found: dict[str, list[str]] = {}
    for kernel in sorted(kernels):
        found.setdefault(function_of(kernel), []).append(kernel)
    return found


def noted(version: str, capability: str) -> dict[str, frozenset[str]] | None:
    """Extension to what is noted of it; None if this version was not looked at for such a device."""
    extensions = _devices(version).get(capability)
    return None if extensions is None else {file: frozenset(note for notes in functions.values() for note in notes)
                                            for file, functions in extensions.items()}


def command(version: str, capability: str) -> str:
    """What notes a version for one more device: the table is written anew, so all its devices are named."""
    listed = sorted({*_devices(version), capability}, key=numbers)
    return " ".join(["python -m checks.baseline WHEEL", *(f"--capability {name}" for name in listed)])


def _devices(version: str) -> dict[str, dict[str, dict[str, list[str]]]]:
    import yaml

    path = facts.baseline_of(version)
    if not path.exists():
        return {}
    table = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe loader
    devices: dict[str, dict[str, dict[str, list[str]]]] = table["devices"]
    return devices


# -- making the table -----------------------------------------------------------------------------


class NotServedError(Exception):
    """A wheel has so little for a device that noting what it lacks would hide just what the check is for."""


def without_code(wheel: Path, capabilities: Sequence[str]) -> dict[str, Any]:
    """The table of a wheel.

    Raises:
        NotServedError: it does not serve one of the devices.
        DamagedCodeError, OSError, BadZipFile: it cannot be read.
    """
    version = wheel.name.split("-")[1]
    devices: dict[str, dict[str, dict[str, list[str]]]] = {}
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
        members = set(archive.namelist())
        for capability in capabilities:
            target = {"device": {"compute_capability": capability}, "platform": "linux/arm64"}
            lock = {"wheels": [{"name": "vllm", "version": version}], "python": {"site": ""}}
            given = facts.device_code(target, lock)
            if not given["known"]:
                raise SystemExit(f"{version} is not in {facts.EXTENSIONS}: add an entry there first")
            device = Device.of(given, ANY_ISA)
            devices[capability] = {}
            for row in given["rows"]:
                if row["host"] or row["file"] not in members:
                    continue
                path = Path(scratch, row["file"])
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(row["file"]) as packed, path.open("wb") as out:
                        shutil.copyfileobj(packed, out)
                with path.open("rb") as stream:
                    ways = read_code(stream).ways(device)
                lacking = [kernel for kernel, found in ways.items() if found is Way.NONE]
                if 2 * len(lacking) > len(ways):
                    raise NotServedError(f"not compiled for {capability}: {len(lacking)} of {len(ways)} kernels of "
                                         f"{row['file']} have no code; leave that device out (--capability)")
                if lacking:
                    devices[capability][row["file"]] = {function: sorted(set(map(note_of, kernels)))
                                                        for function, kernels in grouped(lacking).items()}
    return {"version": version, "source": f"{wheel.name}, {canonical.sha256(wheel.read_bytes())}", "devices": devices}


def text(release: Mapping[str, Any]) -> str:
    """The table of a version."""
    lines = [_HEAD + f'version: "{release["version"]}"', f'source: "{release["source"]}"', "devices:"]
    for capability, extensions in sorted(release["devices"].items()):
        lines.append(f'  "{capability}":' + ("" if extensions else " {}"))
        for file, functions in sorted(extensions.items()):
            lines.append(f"    {file}:")
            for function, notes in sorted(functions.items()):
                lines += [f'      "{function}":  # {len(notes)}', "        ["]
                lines += textwrap.wrap(", ".join(f'"{note}"' for note in notes), 110, initial_indent=" " * 9,
                                       subsequent_indent=" " * 9)
                lines[-1] += "]"
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="python -m checks.baseline", description="Note kernels without code.")
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    parser.add_argument("--capability", action="append", default=[], help="default: " + ", ".join(CAPABILITIES))
    options = parser.parse_args(arguments)
    for wheel in options.wheels:
        try:
            made = without_code(wheel, options.capability or CAPABILITIES)
        except (OSError, zipfile.BadZipFile, DamagedCodeError, NotServedError) as error:
            raise SystemExit(f"{wheel}: {error}") from error
        table = facts.baseline_of(made["version"])
        table.parent.mkdir(exist_ok=True)
        table.write_text(text(made), encoding="utf-8")
        for capability, extensions in made["devices"].items():
            numbers = {file: sum(map(len, functions.values())) for file, functions in extensions.items()}
            sys.stdout.write(f"{made['version']} on {capability}: {numbers}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
