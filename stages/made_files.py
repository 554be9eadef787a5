"""Files that are made for somebody to use and to change: written whole, and never over what somebody changed.

What was made here stands in `stagecraft.json` of the directory, with digests (docs/formats/made.schema.json). A file is
replaced if it is as it was made, or if that was asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache import canonical
from cache.errors import InputError, StoreError

RECORD = "stagecraft.json"
FORMAT = "stagecraft.made.v1"


class Made:
    """A directory of made files.

    Attributes:
        directory: where it is.
        files: path below it to digest, as last made.
        mounts: directory in the container to the directory of this machine that belongs there.
    """

    def __init__(self, directory: Path) -> None:
        """Raises InputError if the directory is a file, or its record is not ours."""
        self.directory = directory
        self.files: dict[str, str] = {}
        self.mounts: dict[str, str] = {}
        path = directory / RECORD
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            if said["format"] != FORMAT:
                raise ValueError(f"format {said['format']!r}")
            self.files, self.mounts = dict(said["files"]), dict(said["mounts"])
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise InputError("no directory to write to", where=str(directory), found="a file") from error
        except OSError as error:
            raise InputError("a file cannot be read", where=str(path), found=error.strerror) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError("the record of made files is malformed", where=str(path), found=str(error),
                             cure="remove it; files that are there are then only replaced with --force") from error

    def write(self, files: Mapping[str, bytes], *, force: bool = False, gone: tuple[str, ...] = (),
              executable: tuple[str, ...] = (), private: tuple[str, ...] = ()) -> dict[str, str]:
        """Write files; path to what was done: "new", "changed" or "as before".

        Args:
            gone: files that an earlier run may have made and this one does not; removed if they are as they were made,
                with the directories that are empty then.
            executable, private: files of mode 0755, and 0600; the rest has 0644. A private file that is there stays.

        Raises:
            InputError: somebody changed one of them, or it was made by somebody else. Nothing is written then.
            StoreError: it cannot be written.
        """
        states = {}
        theirs = []
        for path, content in files.items():
            found = self._digest(path)
            ours = found is not None and found == self.files.get(path)
            states[path] = "new" if found is None else "as before" if found == canonical.sha256(content) else "changed"
            if found is not None and path in private:
                states[path] = "as before"  # a secret is theirs
            elif states[path] == "changed" and not ours:
                theirs.append(path)
        if theirs and not force:
            raise InputError("a file is there that was changed, or was not made by this command",
                             where=str(self.directory), found="\n".join(theirs),
                             cure="move it away, or --force to replace it")
        try:
            for path, content in files.items():
                if states[path] != "as before":
                    self._put(path, content, 0o755 if path in executable else 0o600 if path in private else 0o644)
            for path in gone:
                if path in self.files and self._digest(path) == self.files.pop(path):
                    (self.directory / path).unlink()
                    self._prune(path)
            self.files |= {path: canonical.sha256(content) for path, content in files.items() if path not in private}
            record = {"format": FORMAT, "files": dict(sorted(self.files.items())),
                      "mounts": dict(sorted(self.mounts.items()))}
            self._put(RECORD, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode(), 0o644)
        except OSError as error:
            raise StoreError("a file cannot be written", where=str(error.filename or self.directory),
                             found=error.strerror, cure="another directory: out=DIR") from error
        return states

    def _digest(self, path: str) -> str | None:
        try:
            return canonical.sha256((self.directory / path).read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError("something is there that is no file, or cannot be read",
                             where=str(self.directory / path), found=error.strerror) from error

    def _prune(self, path: str) -> None:
        for place in (self.directory / path).parents:
            if place == self.directory or any(place.iterdir()):
                return
            place.rmdir()

    def _put(self, path: str, content: bytes, mode: int) -> None:
        place = self.directory / path
        place.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=place.parent, prefix=".stagecraft-")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode)
            os.replace(temporary, place)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def listing(directory: str, states: Mapping[str, str]) -> list[str]:
    """For people: where the files are, and what became of each."""
    return [f"  {state:<10}{directory}/{path}" for path, state in states.items()]


def rendered(root: Path, template: str, values: Mapping[str, Any]) -> bytes:
    """A template of the repository, with what it uses.

    Raises:
        InputError: it cannot be read, does not parse, or uses a name that it is not given.
    """
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True,
        autoescape=False)  # noqa: S701 - no HTML
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    try:
        return environment.from_string((root / template).read_text(encoding="utf-8")).render(values).encode()
    except OSError as error:
        raise InputError("a file of the repository cannot be read", where=template, found=error.strerror,
                         cure="restore it from version control") from error
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None)
        raise InputError(f"the template cannot be rendered: {error.message}",
                         where=template + (f":{line}" if line else "")) from error
