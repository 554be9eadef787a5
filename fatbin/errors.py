"""The one error of this package."""

from __future__ import annotations


class FatbinError(Exception):
    """The bytes are not what they should be: cut off, damaged, hostile, or of a format that is not known.

    Attributes:
        message: what is wrong.
        offset: where, in bytes; in the file, or in `part`.
        part: what `offset` counts from when that is not the file: a decompressed payload has offsets of its own.
    """

    def __init__(self, message: str, *, offset: int, part: str = "") -> None:
        super().__init__(message, offset, part)
        self.message = message
        self.offset = offset
        self.part = part

    def __str__(self) -> str:
        return f"{self.message} (at offset {self.offset:#x}{' of ' + self.part if self.part else ''})"
