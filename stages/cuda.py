"""The `cuda` stage: NVIDIA's wheels as one layer, which moves rarely and is most of the image."""

from __future__ import annotations

from stages.graph import Stage
from stages.layers import wheels_stage
from stages.lockfile import Lock
from stages.target import Target


def stage(target: Target, lock: Lock) -> Stage | None:
    return wheels_stage("cuda", "CUDA libraries and tools (NVIDIA's wheels)", target, lock)
