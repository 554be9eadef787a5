"""Git repositories made in a test, and a real git server over them on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_ENVIRONMENT = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
                "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
                "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z"}


class Repository:
    """A repository with a work tree, at `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", "-c", "protocol.file.allow=always", *arguments], cwd=self.directory,
                              env=_ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self, files: Mapping[str, bytes | str], *, executable: tuple[str, ...] = ()) -> str:
        """Write files (text is the target of a symlink), commit all, return the revision."""
        for name, content in files.items():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.unlink(missing_ok=True)
                path.symlink_to(content)
            else:
                path.write_bytes(content)
                path.chmod(0o755 if name in executable else 0o644)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "change")
        return self.git("rev-parse", "HEAD")

    def submodule(self, path: str, address: str, revision: str) -> str:
        """Add a submodule by hand, whatever its address answers, and commit."""
        modules = self.directory / ".gitmodules"
        known = modules.read_text() if modules.exists() else ""
        modules.write_text(known + f'[submodule "{path}"]\n\tpath = {path}\n\turl = {address}\n')
        self.git("update-index", "--add", "--cacheinfo", f"160000,{revision},{path}")
        self.git("add", ".gitmodules")
        self.git("commit", "--quiet", "--message", "submodule")
        return self.git("rev-parse", "HEAD")


@contextlib.contextmanager
def git_server(root: Path) -> Iterator[str]:
    """A git daemon over the repositories below `root`; gives its address, with a slash at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(["git", "daemon", "--reuseaddr", f"--base-path={root}", "--export-all",
                                "--listen=127.0.0.1", f"--port={port}", str(root)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"git://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()
