"""Fixtures for all tests: an empty store, a store with thor in it, and a real registry for a module."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.store import Store
from tests.support.registry import RunningRegistry, running_registry


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """Empty, on a loopback port, behind a proxy that counts requests; ended with the module."""
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


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
