"""What keeps a command on a person's terminal from typing on it: a seccomp filter in place of a session of its own.

With the ioctl TIOCSTI a process puts characters where the terminal's next reader takes them for typed, the caller's
shell for one; with TIOCLINUX it pastes on a console. Kernels from 6.2 may forbid the first, and often do not
(dev.tty.legacy_tiocsti). https://docs.kernel.org/userspace-api/seccomp_filter.html, linux/filter.h
"""

from __future__ import annotations

import errno
import os
import struct

#: `uname -m` to (AUDIT_ARCH_… of linux/audit.h, number of the system call ioctl).
_MACHINES = {"x86_64": (0xC000003E, 16), "aarch64": (0xC00000B7, 29)}
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_X32 = 0x40000000  # system calls of x86-64's other interface have this bit
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _SECOND = 0, 4, 24  # offsets in struct seccomp_data, the last of an argument's low half


def filter_for(machine: str) -> bytes:
    """The filter of that kernel; empty where its system calls are not known here."""
    if machine not in _MACHINES:
        return b""
    architecture, ioctl = _MACHINES[machine]
    rows = [
        (_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 0, 8, architecture),  # 32-bit programs have other numbers
        (_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 6, 0, _X32), (_EQUAL, 0, 3, ioctl),
        (_LOAD, 0, 0, _SECOND), (_EQUAL, 2, 0, _TIOCSTI), (_EQUAL, 1, 0, _TIOCLINUX),
        (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE | errno.EPERM), (_RETURN, 0, 0, _REFUSE | errno.ENOSYS),
    ]
    return b"".join(struct.pack("=HBBI", *row) for row in rows)


def filter_file(machine: str) -> int:
    """A descriptor to read the filter from; -1 where there is none."""
    data = filter_for(machine)
    if not data:
        return -1
    fd = os.memfd_create("filter")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
