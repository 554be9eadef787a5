"""Layers as other tools make them: plain tars with whiteouts, links and owners, for base images in tests."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence

import zstandard

from cache.canonical import sha256

#: (path, content): bytes make a file, text a symlink to it, None a directory, (path,) a hard link.
Member = tuple[str, bytes | str | tuple[str] | None]


def make_tar(members: Sequence[Member], *, executable: bool = False) -> bytes:
    """A tar of these members, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in members:
            info = tarfile.TarInfo(path)
            info.mode = 0o755 if executable or content is None else 0o644
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            elif isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.type, info.linkname = tarfile.LNKTYPE, content[0]
                tar.addfile(info)
    return out.getvalue()


def packed(tar: bytes, how: str) -> tuple[bytes, str, str]:
    """Bytes, media type (Docker's word for gzip, OCI's for the rest) and diff id of a layer."""
    kind = {"none": "application/vnd.oci.image.layer.v1.tar", "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
            "gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip"}[how]
    data = {"none": lambda: tar, "gzip": lambda: gzip.compress(tar, mtime=0),
            "zstd": lambda: zstandard.ZstdCompressor().compress(tar)}[how]()
    return data, kind, sha256(tar)


LIBC_STATUS = (b"Package: libc6\nStatus: install ok installed\nArchitecture: arm64\nMulti-Arch: same\n"
               b"Version: 2.39-0ubuntu8.6\n\nPackage: bash\nStatus: install ok installed\nArchitecture: arm64\n"
               b"Version: 5.2.21-2ubuntu4\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n")

#: What a small Ubuntu with Python 3.12 looks like, in two layers.
UBUNTU: tuple[list[Member], list[Member]] = (
    [("bin", "usr/bin"), ("etc", None), ("etc/os-release", "../usr/lib/os-release"),
     ("etc/passwd", b"root:x:0:0:root:/root:/bin/bash\n"), ("etc/group", b"root:x:0:\n"), ("lib", "usr/lib"),
     ("usr", None), ("usr/bin", None), ("usr/bin/bash", b"old bash"), ("usr/lib", None),
     ("usr/lib/os-release", b'ID=ubuntu\nVERSION_CODENAME=noble\nPRETTY_NAME="Ubuntu 24.04"\n'),
     ("var", None), ("var/lib", None), ("var/lib/dpkg", None), ("var/lib/dpkg/status", LIBC_STATUS),
     ("var/cache", None), ("var/cache/junk", b"x")],
    [("bin/bash", b"new bash"), ("usr/bin/python3", "python3.12"), ("usr/bin/python3.12", b"\x7fELF"),
     ("usr/lib/python3.12", None), ("usr/lib/python3.12/os.py", b"#"), ("var/cache/.wh.junk", b"")],
)
