"""The command: a table, or JSON, of the device code of files.

JSON: a list with one object a file: `file`, `machine`, `wrappers`, `consistent`, `containers`: a list of `section`,
`offset`, `size`, `entries`: a list of `kind` ("ptx", "cubin", "ir", "other"), `kind_number`, `target`, `arch`,
`suffix`, `version` ([major, minor]), `isa`, `compression`, `offset`, `payload_offset`, `size`, `full_size`, `64bit`,
`debug`, `scrambled`, `flags`, `identifier`, `options`, and with --kernels `kernels`: names, or null where the kind
hides them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import fatbin


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status: 0, 1 if a file cannot be read, 2 for wrong usage, 3 if one is inconsistent."""
    parser = argparse.ArgumentParser(prog="python -m fatbin", description="Shows the GPU code in ELF files.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="library, program, object file or .fatbin")
    parser.add_argument("--kernels", action="store_true", help="also the names of the kernels")
    parser.add_argument("--json", action="store_true", help="as data")
    options = parser.parse_args(arguments)
    status = 0
    reports = []
    for path in options.files:
        try:
            with open(path, "rb") as file:
                report = _report(path, fatbin.read(file), kernels=options.kernels)
        except (fatbin.FatbinError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            sys.stderr.write(f"fatbin: {path}: {reason}\n")
            status = status or 1
            continue
        reports.append(report)
        if not report["consistent"]:
            sys.stderr.write(f"fatbin: {path}: {len(report['containers'])} containers, but {report['wrappers']} "
                             "wrappers: device code was lost or added\n")
            status = status or 3
    try:
        if options.json:
            json.dump(reports, sys.stdout, indent=1)
            sys.stdout.write("\n")
        else:
            sys.stdout.write("\n".join(_table(report) for report in reports))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader left, as `head` does. Python flushes once more at its end; that must go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _report(path: str, found: fatbin.Fatbin, *, kernels: bool) -> dict[str, Any]:
    containers = [{"section": container.section, "offset": container.offset, "size": container.size,
                   "entries": [_entry(entry, kernels=kernels) for entry in container.entries]}
                  for container in found.containers]
    return {"file": path, "machine": found.machine, "wrappers": found.wrappers, "consistent": found.consistent,
            "containers": containers}


def _entry(entry: fatbin.Entry, *, kernels: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "kind": entry.kind.name.lower(), "kind_number": entry.kind_number, "target": entry.target, "arch": entry.arch,
        "suffix": entry.suffix, "version": list(entry.version), "isa": entry.isa,
        "compression": entry.compression.value, "offset": entry.offset, "payload_offset": entry.payload_offset,
        "size": entry.size, "full_size": entry.full_size, "64bit": entry.is_64bit, "debug": entry.has_debug,
        "scrambled": entry.is_scrambled, "flags": entry.flags, "identifier": entry.identifier, "options": entry.options}
    if kernels:
        row["kernels"] = fatbin.kernels(entry)
    return row


_HEADINGS = ("#", "kind", "target", "ISA", "compression", "size", "full size", "kernels", "notes")


def _table(report: dict[str, Any]) -> str:
    wrappers = "" if report["wrappers"] is None else f", {report['wrappers']} wrappers"
    lines = [f"{_printable(report['file'])}: {report['machine'] or 'fatbin'}, "
             f"{len(report['containers'])} containers{wrappers}"]
    rows: list[tuple[str, ...]] = [_HEADINGS]
    names: list[list[str]] = [[]]
    for number, container in enumerate(report["containers"], 1):
        for entry in container["entries"]:
            rows.append(_row(number, container["section"], entry))
            names.append([f"      {_printable(name)}" for name in entry.get("kernels") or ()])
    if len(rows) > 1:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row, below in zip(rows, names, strict=True):
            cells = [cell.rjust(width) if index in (0, 5, 6, 7) else cell.ljust(width)
                     for index, (cell, width) in enumerate(zip(row, widths, strict=True)) if width > 0]
            lines += ["  ".join(cells).rstrip(), *below]
    return "\n".join(lines) + "\n"


def _row(number: int, section: str, entry: dict[str, Any]) -> tuple[str, ...]:
    notes = [name for name, said in (("relocatable", section == "__nv_relfatbin"), ("debug", entry["debug"]),
                                     ("32-bit", not entry["64bit"]), ("scrambled", entry["scrambled"])) if said]
    notes += [_printable(entry["identifier"])] if entry["identifier"] else []
    kind = entry["kind"] if entry["kind"] != "other" else f"kind {entry['kind_number']}"
    kernels = "-" if "kernels" not in entry or entry["kernels"] is None else str(len(entry["kernels"]))
    return (str(number), kind, entry["target"], entry["isa"], entry["compression"], str(entry["size"]),
            str(entry["full_size"]), kernels, " ".join(notes))


def _printable(text: str) -> str:
    """Names come out of untrusted files and must not steer a terminal, nor be what it cannot show."""
    return "".join(letter if letter.isascii() and letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
