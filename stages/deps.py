"""The `deps` stage: every wheel that no other layer takes."""

from __future__ import annotations

from stages.graph import Stage
from stages.layers import wheels_stage
from stages.lockfile import Lock
from stages.target import Target


def stage(target: Target, lock: Lock) -> Stage | None:
    return wheels_stage("deps", "all other wheels", target, lock)
