"""Which executor runs a process on this machine: the sandbox where it works, else a Docker engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from cache.errors import ToolError
from cache.store import Store
from executors import emulator
from executors.process import Executor
from executors.sandbox import Sandbox


def executor(store: Store, machine: str, debs: Sequence[Mapping[str, Any]], *, engines: bool = True) -> Executor:
    """The executor for layers of a machine.

    Args:
        machine: as `uname -m` says it.
        debs: the locked packages of emulators; those for this host are in the store, if it is another machine.
        engines: False where a directory of the run is wanted: an engine brings single files only.

    Raises:
        ToolError: neither works; what the sandbox misses, with the cure.
    """
    host = os.uname().machine
    chosen = None if machine == host else emulator.locked(store, machine, host, debs)
    sandbox = Sandbox(store, chosen)
    try:
        sandbox.abilities()
    except ToolError as missing:
        if not engines:
            raise
        from executors.docker import Docker

        try:
            return Docker.connected(store, chosen)
        except ToolError:
            raise missing from None
    return sandbox
