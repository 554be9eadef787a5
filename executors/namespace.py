"""The first program of a sandbox, run by itself (`python -I -S namespace.py FD`), never imported by the others.

In a user and mount namespace of its own it gathers what the sandbox shall have in one small tmpfs, `/tmp` for what
comes after it, mounts and fills a binfmt_misc, and then becomes bubblewrap. Its work is a JSON object read from FD:

    {"parent": pid, "place": directory, "binds": {name: path}, "overlay": {"in", "lower"} or null,
     "binfmt": {"path", "line"} or null, "cgroup": path or null, "cpus": n or null, "pids": n or null,
     "terminal": bool, "command": […]}

`place`: an empty directory, on which the tmpfs is mounted first. `binds`: what is seen as `/tmp/<name>`. `overlay`:
what is seen as `/tmp/root`; `lower` is relative to the directory `in`. `terminal`: it becomes the foreground of the
terminal at standard input, so that Ctrl-C is its own. What fails is written to FD as `{"step", "errno", "text"}`, with
exit code 125. With an empty `command` it ends after the mounts, with 0.

Root makes its mounts as root and then becomes an ordinary user, before it enters the user namespace: there root of the
host would still own the files below /proc/sys. All mounts go with the last process of the namespace.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
NOBODY = 65534

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


def _mount(step: str, what: str, at: str, kind: str, flags: int, options: str) -> None:
    _call(step, "mount", what.encode(), at.encode(), kind.encode(), flags, options.encode() or None)


def _namespaces() -> None:
    """A user and a mount namespace in which we are 0, and outside who we are."""
    uid, gid = os.geteuid(), os.getegid()
    _call("userns", "unshare", CLONE_NEWUSER | CLONE_NEWNS)
    _write("userns", "/proc/self/setgroups", b"deny")
    _write("userns", "/proc/self/uid_map", b"0 %d 1" % uid)
    _write("userns", "/proc/self/gid_map", b"0 %d 1" % gid)


def _die_with_parent() -> None:
    _call("prctl", "prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _gather(work: "dict[str, Any]") -> None:
    """The tmpfs with all that the sandbox shall have, at its own place and then at /tmp."""
    place = work["place"]
    _mount("mount", "none", "/", "none", MS_REC | MS_PRIVATE, "")
    _mount("tmpfs", "tmpfs", place, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for name in ("root", "binfmt"):
        os.mkdir(f"{place}/{name}")
    for name, path in work["binds"].items():
        at = f"{place}/{name}"
        os.makedirs(os.path.dirname(at), exist_ok=True)
        if os.path.isdir(path):
            os.makedirs(at, exist_ok=True)
        else:
            os.close(os.open(at, os.O_CREAT | os.O_WRONLY))
        _mount(f"bind {name}", path, at, "none", MS_BIND | MS_REC, "")
    if work["overlay"]:
        os.chdir(work["overlay"]["in"])
        options = "lowerdir=" + work["overlay"]["lower"]
        _mount("overlay", "overlay", f"{place}/root", "overlay", MS_NOSUID | MS_NODEV | MS_RDONLY, options)
    os.chdir("/")
    _mount("mount", place, "/tmp", "none", MS_BIND | MS_REC, "")  # noqa: S108


def _renounce() -> None:
    """From root to nobody."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # Both are lost with the user: may we write our own maps, and do we die with our parent.
    _call("prctl", "prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)
    _die_with_parent()


def enter(work: "dict[str, Any]") -> None:
    """Become bubblewrap, or return after the mounts if there is no command."""
    # Before anything else: if Stagecraft dies, so do we, and with us the whole tree.
    _die_with_parent()
    if work["parent"] != os.getppid():
        os._exit(125)
    os.umask(0o022)  # of the command too; and root's mount points are for the user that it becomes
    if work["cgroup"]:
        _write("cgroup", work["cgroup"] + "/cgroup.procs", b"0")
    if work["cpus"]:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: work["cpus"]])
    if os.geteuid() == 0:
        _call("mount namespace", "unshare", CLONE_NEWNS)
        _gather(work)
        _renounce()
        _namespaces()
    else:
        _namespaces()
        _gather(work)
    if work["binfmt"]:
        _mount("binfmt_misc", "binfmt_misc", "/tmp/binfmt", "binfmt_misc", MS_NOSUID | MS_NODEV, "")  # noqa: S108
        if work["binfmt"]["line"]:
            _write("binfmt_misc", "/tmp/binfmt/register", work["binfmt"]["line"].encode())  # noqa: S108
    if work["pids"]:
        # The last resort: who counts names the limit, and is asked four times a second. The kernel counts in this
        # namespace only, since Linux 5.14.
        resource.setrlimit(resource.RLIMIT_NPROC, (work["pids"] + 64, work["pids"] + 64))
    if work["terminal"]:
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        os.tcsetpgrp(0, os.getpgrp())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTTOU])
    if work["command"]:
        try:
            # Without our variables: the first process of the sandbox is bubblewrap's, and what it was started with can
            # be read there (/proc/1/environ), whatever it clears for the command.
            os.execve(work["command"][0], work["command"], {})  # noqa: S606 - there is no shell to want
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
