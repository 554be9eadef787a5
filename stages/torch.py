"""The `torch` stage: torch, torchvision, torchaudio and Triton-lang as one layer."""

from __future__ import annotations

from stages.graph import Stage
from stages.layers import wheels_stage
from stages.lockfile import Lock
from stages.target import Target


def stage(target: Target, lock: Lock) -> Stage | None:
    return wheels_stage("torch", "torch and what is built with it", target, lock)
