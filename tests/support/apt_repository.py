"""A small signed apt archive on disk, served on loopback: what `lock.debs` resolves against in tests.

Needs gpg (tests/apt.txt). The key is made anew for each archive and is in `keyring`.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from types import TracebackType

from tests.support.deb_factory import control_text, make_deb


class AptRepository:
    """An archive in a directory. Add packages, then `publish`; both may be repeated."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root.parent / (root.name + "-gnupg")
        self.home.mkdir(mode=0o700, parents=True)
        self.keyring = root.parent / (root.name + "-key.gpg")
        root.mkdir(exist_ok=True)
        self._packages: dict[str, dict[str, str]] = {}
        self._gpg("--quick-generate-key", "--passphrase", "", "Archive for a test <a@example.org>", "ed25519", "sign",
                  "never")
        self.keyring.write_bytes(self._gpg("--export"))

    def add(self, name: str, version: str = "1", architecture: str = "arm64", *, suite: str = "stable",
            pool: str = "pool/main", **fields: str) -> bytes:
        """Put a package into the pool and a suite; returns its bytes."""
        data = make_deb(name, version=version, architecture=architecture, **fields)
        path = f"{pool}/{name}_{version.rpartition(':')[2]}_{architecture}.deb"
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(data)
        stanza = control_text(name, version, architecture, **fields)
        stanza += f"Filename: {path}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
        self._packages.setdefault(suite, {})[f"{name} {version}"] = stanza
        return data

    def remove(self, name: str, version: str, *, suite: str = "stable") -> None:
        """Take a package out of the suite and out of the pool, as an archive does with what is superseded."""
        stanza = self._packages[suite].pop(f"{name} {version}")
        path = next(line for line in stanza.splitlines() if line.startswith("Filename: ")).partition(" ")[2]
        (self.root / path).unlink()

    def publish(self, suite: str = "stable", *, architecture: str = "arm64", date: float = 1_700_000_000.0,
                spoil: bool = False) -> None:
        """Write Packages and a signed InRelease; `spoil` alters it after signing."""
        directory = self.root / "dists" / suite
        plain = "\n".join(self._packages.get(suite, {}).values()).encode()
        listed = {f"main/binary-{architecture}/Packages": plain,  # apt wants it listed; it need not be there
                  f"main/binary-{architecture}/Packages.gz": gzip.compress(plain, mtime=0)}
        index = directory / f"main/binary-{architecture}/Packages.gz"
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_bytes(listed[f"main/binary-{architecture}/Packages.gz"])
        release = (f"Origin: Test\nLabel: Test\nSuite: {suite}\nCodename: {suite}\n"
                   f"Date: {formatdate(date, usegmt=True)}\nArchitectures: {architecture}\nComponents: main\nSHA256:\n")
        release += "".join(f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}\n" for name, data in listed.items())
        signed = self._gpg("--clearsign", "--digest-algo", "SHA256", stdin=release.encode())
        (directory / "InRelease").write_bytes(signed.replace(b"Label: Test", b"Label: Evil") if spoil else signed)

    def _gpg(self, *arguments: str, stdin: bytes = b"") -> bytes:
        return subprocess.run(["gpg", "--homedir", str(self.home), "--batch", "--yes", "--pinentry-mode", "loopback",
                               *arguments], input=stdin, capture_output=True, check=True).stdout

    def close(self) -> None:
        """Stop the key agent that gpg started for this archive."""
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False, capture_output=True)

    def __enter__(self) -> AptRepository:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """Serve a directory on loopback; gives its address, with `/` at the end."""
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
