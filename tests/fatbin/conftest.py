"""The compiled samples, made once for all tests of this directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cuda import Toolkit, toolkit
from tests.support.device_code import compile_all


@pytest.fixture(scope="session")
def cuda() -> Toolkit:
    return toolkit()


@pytest.fixture(scope="session")
def samples(cuda: Toolkit, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return compile_all(cuda, tmp_path_factory.mktemp("device-code"))
