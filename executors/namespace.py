"""The first program of a sandbox, run by itself (`python -I -S namespace.py FD`), never imported by the others.

In a user and mount namespace of its own it joins the layers by an overlay, mounts and fills a binfmt_misc, and then
becomes bubblewrap. Its work is a JSON object read from the descriptor FD:

    {"parent": pid, "mounts": [{"what", "at", "type", "options", "in"}…], "binfmt": {"at", "line"} or null,
     "cgroup": path or null, "cpus": n or null, "pids": n or null, "terminal": bool, "command": […]}

`terminal`: it becomes the foreground of the terminal at standard input, so that Ctrl-C is its own.

`in` is the directory from which an overlay's relative `lowerdir`s are seen. What fails is written to FD as
`{"step", "errno", "text"}`, and the exit code is 125. With an empty `command` it ends after the mounts, with 0.

The user is 0 in the namespace and stays who they are outside. All mounts go with the last process of the namespace.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 1, 2, 4, 0x4000, 0x40000
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


class Step(Exception):
    """What was being done when it failed."""

    def __init__(self, step: str, error: OSError) -> None:
        super().__init__(step)
        self.step, self.error = step, error


def _call(step: str, name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise Step(step, OSError(number, os.strerror(number)))


def _write(step: str, path: str, data: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
    except OSError as error:
        raise Step(step, error) from error


def _text(value: "str | None") -> "bytes | None":
    return value.encode() if value is not None else None


def enter(work: "dict[str, Any]") -> None:
    """Become bubblewrap, or return after the mounts if there is no command."""
    # Before anything else: if Stagecraft dies, so do we, and with us the whole tree.
    _call("prctl", "prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if work["parent"] != os.getppid():
        os._exit(125)
    if work["cgroup"]:
        _write("cgroup", work["cgroup"] + "/cgroup.procs", b"0")
    if work["cpus"]:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: work["cpus"]])
    uid, gid = os.geteuid(), os.getegid()
    _call("userns", "unshare", CLONE_NEWUSER | CLONE_NEWNS)
    _write("userns", "/proc/self/setgroups", b"deny")
    _write("userns", "/proc/self/uid_map", b"0 %d 1" % uid)
    _write("userns", "/proc/self/gid_map", b"0 %d 1" % gid)
    _call("mount", "mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    for mount in work["mounts"]:
        if mount["in"]:
            os.chdir(mount["in"])
        flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if mount["type"] == "overlay" else 0)
        _call(mount["type"], "mount", _text(mount["what"]), _text(mount["at"]), _text(mount["type"]), flags,
              _text(mount["options"]))
    if work["binfmt"]:
        _write("binfmt_misc", work["binfmt"]["at"] + "/register", work["binfmt"]["line"].encode())
    os.chdir("/")
    if work["pids"]:
        # The last resort: who counts names the limit, and is asked four times a second. The kernel counts in this
        # namespace only, since Linux 5.14; root of the host is not bound by it.
        resource.setrlimit(resource.RLIMIT_NPROC, (work["pids"] + 64, work["pids"] + 64))
    if work["terminal"]:
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        os.tcsetpgrp(0, os.getpgrp())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTTOU])
    if work["command"]:
        try:
            os.execv(work["command"][0], work["command"])  # noqa: S606 - there is no shell to want
        except OSError as error:
            raise Step("bubblewrap", error) from error


def main() -> None:
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)
    data = b""
    while not data.endswith(b"\n"):
        piece = os.read(fd, 1 << 16)
        if not piece:
            os._exit(125)
        data += piece
    try:
        enter(json.loads(data))
    except Step as failed:
        _tell(fd, failed.step, failed.error)
    except OSError as error:
        _tell(fd, error.filename or "namespace", error)


def _tell(fd: int, step: str, error: OSError) -> None:
    os.write(fd, json.dumps({"step": step, "errno": error.errno or 0, "text": error.strerror or str(error)}).encode())
    os._exit(125)


if __name__ == "__main__":
    main()
