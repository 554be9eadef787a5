"""Golden: a fixed layer has a fixed digest, on every Python and every machine.

If one of these changes, every layer of every user changes: raise the version of every builder that writes layers
(stages/builders.py), then put the new digests here.
"""

from __future__ import annotations

from pathlib import Path

from cache.archive import LayerWriter
from cache.store import Blob, Store


def test_layer(tmp_path: Path) -> None:
    with LayerWriter(Store.open(tmp_path / "store")) as writer:
        writer.directory("etc")
        writer.file("etc/hosts", 9, [b"127.0.0.1"])
        writer.symlink("etc/long", "x" * 101)
        writer.file("etc/ssl/Főtanúsítvány.crt", 0, [], 0o444)
        writer.directory("tmp", 0o1777)
        writer.directory("usr", uid=1000, gid=2 ** 24)
        writer.file("usr/" + "p" * 97, 512, [bytes(512)], 0o4755)
        writer.hardlink("usr/" + "p" * 97 + "q", "usr/" + "p" * 97)
        layer = writer.finish()
    assert layer.layer == Blob("sha256:be2b053788aa0e4b25cb15207684c997dcb6e909671bf0d078d2ef335570535e", 11264)
    assert layer.index == Blob("sha256:f823166c5842af4542455d2f168bc140a3061f19af8c92734bf179f651f78a4d", 1262)
