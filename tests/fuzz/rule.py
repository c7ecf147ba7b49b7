"""The one rule: exit 0, or exit 2 with one line that names what is wrong; inputs untouched; nothing outside OUT."""

import hashlib
import io
import logging
import os
import resource
import signal
import stat
import sys
import time
from pathlib import Path

from cases import Case

from minibeft.cli import console
from minibeft.cli.main import app
from minibeft.errors import LONGEST_LINE

SECONDS, BYTES = 10.0, 1 << 30  # of CPU time; of wall time twice as many seconds


class TooLong(BaseException):
    """The case has had its time."""


def ended(words: list[str]) -> tuple[int, str, str]:
    """A command line in this process: its status, and what it wrote to both streams."""
    before = sys.argv, sys.stdout, sys.stderr, signal.getsignal(signal.SIGINT)
    out, err = io.StringIO(), io.StringIO()
    sys.argv, sys.stdout, sys.stderr = ["minibeft", *words], out, err
    log = logging.getLogger("minibeft")
    handler = logging.StreamHandler(err)
    handler.setFormatter(console.OneLine())
    log.addHandler(handler)
    log.propagate = False
    try:
        console.run(lambda: console.execute(app))
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        log.removeHandler(handler)
        log.propagate = True
        sys.argv, sys.stdout, sys.stderr = before[:3]
        signal.signal(signal.SIGINT, before[3])
    return status, out.getvalue(), err.getvalue()


def snapshot(root: Path, out: Path) -> dict[str, str]:
    """Every file under the root but those of OUT: its kind and contents; of a large one the size."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path == out or out in path.parents:
            continue
        mode = path.lstat().st_mode
        text = "" if not stat.S_ISREG(mode) else str(path.stat().st_size)
        if text and path.stat().st_size < 1 << 26:
            text = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(root))] = f"{stat.S_IFMT(mode)} {text}"
    return found


def violations(case: Case) -> list[str]:
    """What the case breaks of the rule; nothing, if all is well."""
    before, had_out = snapshot(case.root, case.out), case.out.exists()
    here = set(os.listdir("."))

    def too_long(*_: object) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, 2 * SECONDS)
    begun, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        status, _, said = ended(case.words)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.process_time() - begun
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    after = snapshot(case.root, case.out)
    wrong = []
    lines = [line for line in said.split("\n") if line]
    if status not in (0, 2):
        wrong.append(f"status {status}: {said.strip()[-200:]}")
    if status == 2 and not (lines and lines[-1].startswith("minibeft: ")):
        wrong.append(f"no line: {said[-200:]!r}")
    if status == 2 and sum(not line.startswith("minibeft: ") for line in lines):
        wrong.append(f"more than one line: {said[:200]!r}")
    wrong += [f"a long line, {len(line)}" for line in lines if len(line) > LONGEST_LINE + len("minibeft: ")]
    wrong += [f"obeyed: {line[:80]!r}" for line in lines if not line.isprintable()]
    allowed = {"x.json"} if "--json" in case.words else set()
    wrong += [f"touched {name}" for name in before if after.get(name) != before[name]]
    wrong += [f"left {name}" for name in after.keys() - before.keys() - allowed]
    wrong += [f"wrote here: {name}" for name in set(os.listdir(".")) - here]
    if status == 2 and case.out.exists() and not had_out and case.words[0] != "finetune":
        wrong.append("left OUT")
    if seconds > SECONDS:
        wrong.append(f"took {seconds:.1f} s")
    if grown > BYTES:
        wrong.append(f"took {grown / 2**20:.0f} MiB")
    return wrong
