"""Lays the server tree out of the wheel of nvidia-pytriton: server.py server.json WHEEL DIRECTORY.

server.json is what Stagecraft's own builder reads (triton/pytriton-layout.yaml), with version and Python of the lock.
"""

import json
import os
import sys
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path


def taken(names, rule, words):
    """Member and path below the directory, for the members that a rule takes."""
    start, to = rule["from"].format(**words), rule["to"].format(**words)
    for member in names:
        rest = member.removeprefix(start)
        name = member.rpartition("/")[2]
        if member.endswith("/") or (member != start and (rest == member or not start.endswith("/"))):
            continue
        if not fnmatchcase(name, rule.get("except", "")) and fnmatchcase(name, rule.get("only", "*").format(**words)):
            yield member, to + rest


def main(described, wheel, directory):
    layout = json.loads(Path(described).read_text(encoding="utf-8"))
    words, root = layout["words"], Path(directory)
    without = tuple(layout.get("without", ()))
    with zipfile.ZipFile(wheel) as archive:
        for rule in layout["files"]:
            if without and rule["to"].startswith(without):
                continue
            found = list(taken(archive.namelist(), rule, words))
            if not found and not rule.get("optional"):
                raise SystemExit(f"{wheel} lacks {rule['from']}")
            for member, to in found:
                if without and to.startswith(without):
                    continue
                place = root / to
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(archive.read(member))
                place.chmod(0o755 if any(fnmatchcase(to, one) for one in layout["executables"]) else 0o644)
    for path in layout["required"]:
        if not (root / path).exists():
            raise SystemExit(f"{wheel} lacks {path}")
    for path, target in layout["links"].items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if "*" in target:
            (target,) = (name for name in os.listdir(place.parent) if fnmatchcase(name, target))
        place.symlink_to(target)
    (root / "TRITON_VERSION").write_text(layout["releases"][0]["triton"] + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
