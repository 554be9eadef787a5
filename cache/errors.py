"""The error tree, by what the reader can do about it.

Every error that a user may see derives from `StagecraftError` and says where,
what was expected, what was found and how to cure it. Anything else that escapes
is our bug and is shown with its traceback.
"""

from __future__ import annotations


class StagecraftError(Exception):
    """Base of all errors that are not bugs of ours.

    Args:
        message: one line: what went wrong.
        where: file, line, URL or stage it concerns.
        expected: what was expected there.
        found: what was found instead.
        cure: what to do next, ideally a command.
    """

    #: Exit status of the process when this error ends it (docs/exit-codes.md).
    exit_code = 100
    #: One word for machine-readable reports.
    code = "error"
    #: True if the same call may succeed later with nothing changed.
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        cure: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.expected = expected
        self.found = found
        self.cure = cure

    def diagnostics(self) -> str:
        """The text for people: the message, then one indented line for each known detail."""
        lines = [self.message]
        for label in ("where", "expected", "found", "cure"):
            value = getattr(self, label)
            if value:
                first, *rest = str(value).splitlines()
                lines.append(f"  {label + ':':<10}{first}")
                lines.extend(" " * 12 + line for line in rest)
        return "\n".join(lines)

    def as_json(self) -> dict[str, str]:
        """The same as data; absent details are left out."""
        found = {"code": self.code, "message": self.message}
        for label in ("where", "expected", "found", "cure"):
            value = getattr(self, label)
            if value:
                found[label] = str(value)
        return found


class StageError(StagecraftError):
    """A stage's builder failed."""

    exit_code, code = 100, "stage"


class IntegrityError(StagecraftError):
    """Bytes are not the ones that were promised (wrong hash, wrong size, malformed archive)."""

    exit_code, code = 102, "integrity"


class InputError(StagecraftError):
    """Something that a person wrote is wrong: a target, a configuration file, an argument."""

    exit_code, code = 110, "input"


class LockError(StagecraftError):
    """The lock is missing, does not fit its target, or cannot be resolved."""

    exit_code, code = 111, "lock"


class FetchError(StagecraftError):
    """A remote end did not give what was asked: down, missing, refused, too slow."""

    exit_code, code, retryable = 112, "fetch", True


class StoreError(StagecraftError):
    """The store cannot be used: full, read-only, damaged."""

    exit_code, code = 113, "store"


class GateError(StagecraftError):
    """A gate judged the outputs and did not let them pass."""

    exit_code, code = 114, "gate"


class NondeterminismError(StagecraftError):
    """The same inputs gave other outputs than before."""

    exit_code, code = 116, "nondeterminism"


class ToolError(StagecraftError):
    """This machine lacks something: a program, an engine, an emulator, a permission."""

    exit_code, code = 115, "tool"
