"""The registry is data, whole and cheap to import."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from checks.registry import CHECKS, check

ROOT = Path(__file__).resolve().parents[2]


def test_every_check_can_be_run_and_has_its_own_id() -> None:
    assert len({one.id for one in CHECKS}) == len(CHECKS) > 4
    for one in CHECKS:
        module, _, function = one.entry.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), one.id
        assert one.after
        assert set(one.after) <= {stage for stage, _ in one.outputs}
        assert one.version >= 1
        assert check(one.id) is one
    with pytest.raises(KeyError):
        check("no-such-check")


def test_importing_it_and_asking_for_a_stored_verdict_imports_nothing_heavy() -> None:
    """A build that has nothing to do asks for verdicts; it must not pay for what checks need."""
    code = "import sys, checks.registry, checks.verdict; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                                check=True).stdout.split())
    assert not loaded & {"elftools", "packaging", "yaml", "csv", "email", "installer", "isal", "checks.elf",
                         *(one.entry.partition(":")[0] for one in CHECKS)}


def test_every_check_is_documented() -> None:
    text = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    for one in CHECKS:
        assert f"`{one.id}`" in text
