"""A command line in a fork of this process that is killed, or finds the disk full, at its writes.

Writes are seen through Python's audit events: a file opened for writing, a folder made, a name changed or removed. A
kill at such a moment would leave the folder as it is then. A full disk is simulated by a fork at that moment, in which
this write and all later ones fail. A limit on file size does the same in the middle of a file, whichever library writes
it: the kernel ends the process there, or refuses the bytes.
"""

import errno
import json
import os
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rule import ended

CREATES = {"open", "os.mkdir", "os.rename"}  # what a full disk refuses
CHANGES = CREATES | {"os.remove", "os.rmdir", "os.chmod", "os.truncate"}


class Ending(NamedTuple):
    """How a command line ended; status None: it was killed."""

    status: int | None
    said: str


def run(words: list[str], arm: Callable[[], object] = lambda: None) -> Ending:
    """The command line in a fork, after `arm` there."""
    reader, writer = os.pipe()
    with warnings.catch_warnings(action="ignore"):  # of threads, none of which is at work
        child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            quiet = os.open(os.devnull, os.O_RDWR)
            for stream in (1, 2):
                os.dup2(quiet, stream)
            tell = arm()
            status, _, said = ended(words)
            said = said[-2000:]
            if callable(tell):
                tell(status, said)
            os.write(writer, json.dumps([status, said]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as stream:
        told = stream.read()
    assert bool(told) == (status == 0), "the fork ended otherwise than by its fault"
    return Ending(*json.loads(told)) if told else Ending(None, "")


def limited(words: list[str], size: int, *, kill: bool) -> Ending:
    """The command line where no file may grow beyond this size: killed there, or told so."""

    def arm() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return run(words, arm)


def at_every_write(words: list[str], out: Path, states: Path) -> Ending:
    """The command line without a fault; states/<pid>-<n>-kill is what `out` held at a process's n-th write, -full what
    it held after a disk that was full from there on, and -full.json how that ended."""
    return run(words, lambda: arm_forks(out, states))


def arm_forks(out: Path, states: Path) -> Callable[[int, str], None]:
    """What `at_every_write` does at each write; returns the function to call with the command's ending."""
    count, full, busy = 0, "", False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, full, busy
        if busy or event not in CHANGES or not is_write(event, arguments, out):
            return
        if not full:
            busy, now = True, f"{os.getpid()}-{count}"  # a command may have processes of its own
            shutil.copytree(out, states / f"{now}-kill")
            if event == "open":  # and so it stands when it is open and nothing is written yet
                shutil.copytree(out, states / f"{now}-opened-kill")
                (states / f"{now}-opened-kill" / Path(arguments[0]).relative_to(out)).write_bytes(b"")
            if event in CREATES:
                child = os.fork()
                if child:
                    os.waitpid(child, 0)
                    shutil.rmtree(out)
                    shutil.copytree(states / f"{now}-kill", out)
                else:
                    full = f"{now}-full"
            busy, count = False, count + 1
        if full and event in CREATES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    def tell(status: int, said: str) -> None:
        nonlocal busy
        busy = True
        if full:
            shutil.copytree(out, states / full)
            (states / f"{full}.json").write_text(json.dumps([status, said]))
            os._exit(0)

    sys.addaudithook(hook)
    return tell


def is_write(event: str, arguments: tuple[Any, ...], out: Path) -> bool:
    """Whether an event changes what is in the folder; a name without a folder is one that a folder's removal meets."""
    path = arguments[0]
    if not isinstance(path, str | os.PathLike):
        return False
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return False
    return str(path).startswith(str(out)) or (event != "open" and not os.path.isabs(path))
