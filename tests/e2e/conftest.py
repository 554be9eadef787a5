"""Fixtures of the tests on real input."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def thor_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The store that STAGECRAFT_TEST_STORE names (CI has just built thor there), else one of the test run."""
    given = os.environ.get("STAGECRAFT_TEST_STORE")
    if given:
        yield Path(given)
        return
    made = tmp_path_factory.mktemp("thor-store") / "store"
    yield made
    shutil.rmtree(made, ignore_errors=True)
