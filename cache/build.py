"""What a builder is given: the contract between the engine and the builders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cache.store import Store


def _silent_log(line: str) -> None:
    """Drop a log line."""


def _silent_note(text: str) -> None:
    """Drop a note."""


def _silent_progress(done: int, total: int) -> None:
    """Drop a progress report."""


@dataclass(frozen=True)
class BuildContext:
    """Everything that a builder may see.

    Attributes:
        store: where inputs lie and outputs go.
        params: the derivation's `params`; canonical JSON values.
        inputs: input name to the digest of a blob that is in the store.
        platform: `{"os": "linux", "architecture": "arm64"}`, OCI names.
        log: takes one line of text without newline; kept as the stage's log.
        progress: takes (bytes done, bytes in all); may be called often and from any thread.
        note: takes one line that stays with the record: what was used beside the inputs.
        fresh: nothing may be reused but the inputs: this build is to be compared with another.
    """

    store: Store
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    platform: Mapping[str, str] = field(default_factory=dict)
    log: Callable[[str], None] = _silent_log
    progress: Callable[[int, int], None] = _silent_progress
    note: Callable[[str], None] = _silent_note
    fresh: bool = False
