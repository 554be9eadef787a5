"""What stands in the way of a sandbox is named, with its cure: by settings as files, and where it is forbidden."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from executors import probe
from tests.support.front import HERE


@pytest.mark.parametrize(("files", "missing", "cure"), [
    ({"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n", "proc/sys/user/max_user_namespaces": "5\n"},
     "AppArmor restricts", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ({"proc/sys/user/max_user_namespaces": "0\n"}, "user.max_user_namespaces = 0", "max_user_namespaces=10000"),
    ({"proc/sys/kernel/unprivileged_userns_clone": "0\n"}, "unprivileged_userns_clone = 0", "userns_clone=1"),
    ({".dockerenv": ""}, "not allowed here (userns: Operation not permitted)", "seccomp=unconfined"),
    ({}, "not allowed here (userns: Operation not permitted)", "allow them"),
])
def test_settings_that_forbid_namespaces_are_named(tmp_path: Path, files: dict[str, str], missing: str,
                                                   cure: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = probe.namespaces("userns: Operation not permitted", tmp_path)
    assert missing in found[0]
    assert cure in found[1]


SHOW = "from executors import probe; found = probe.abilities('/tmp'); print(found.missing, '|', found.cure)"


def test_namespaces_that_are_switched_off_are_found(tmp_path: Path) -> None:
    """A user namespace has this setting for those below it: what happens in one happens on a machine without any."""
    command = f"echo 0 > /proc/sys/user/max_user_namespaces && exec {sys.executable} -c \"{SHOW}\""
    done = subprocess.run(["unshare", "--user", "--map-root-user", "sh", "-c", command], cwd=HERE, text=True,
                          capture_output=True, check=True)
    assert done.stdout == ("user namespaces are switched off (user.max_user_namespaces = 0) | "
                           "sudo sysctl -w user.max_user_namespaces=10000\n")


def test_bubblewrap_that_is_not_installed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    probe.abilities.cache_clear()
    found = probe.abilities(str(tmp_path))
    probe.abilities.cache_clear()
    assert (found.missing, found.cure) == ("bubblewrap is not installed", "sudo apt-get install bubblewrap")


def test_this_machine_can(tmp_path: Path) -> None:
    found = probe.abilities(str(tmp_path))
    assert (found.missing, bool(found.bubblewrap)) == ("", True)
