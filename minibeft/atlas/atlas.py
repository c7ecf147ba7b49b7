"""Audit every model type of transformers, one process per type, with limits on time and memory; it can be resumed.

Each type's result is one file in the folder; a type that has one is not run again. The processes are forked from one
that has already imported transformers, because the imports take longer than an audit.
"""

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from minibeft.atlas.rows import Row, compared, row
from minibeft.errors import BadInput, needs
from minibeft.show.files import write_json

Begin = Callable[[str, int, int], None]


def model_types(names: str | None) -> list[str]:
    """All model types of transformers, or those that are named, separated by commas."""
    with needs("transformers", "audit", "atlas"):
        from transformers import CONFIG_MAPPING
    known = list(CONFIG_MAPPING)
    if names is None:
        return sorted(known)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise BadInput(f"--types {name}: is no model type of this version of transformers")
    return wanted


def atlas(folder: Path, types: list[str], seed: int, seconds: int, gigabytes: float, begin: Begin) -> list[Row]:
    """The row of each type, read from the folder if the type was run before."""
    import transformers.modeling_utils  # noqa: F401

    torch.set_num_threads(1)  # a forked process must not wait for threads that it does not have
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, kind in enumerate(types):
        begin(kind, number, len(types))
        file = folder / f"{kind}.json"
        if not file.exists():
            code = forked(file, kind, seed, seconds, gigabytes)
            if not file.exists():
                write_json(file, {"type": kind, "unaudited": ended(code, seconds)})
        rows.append(compared(json.loads(file.read_text(encoding="utf-8"))))
    return rows


def forked(file: Path, kind: str, seed: int, seconds: int, gigabytes: float) -> int:
    """Run one type in a process of its own; its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE * seconds)  # for one that waits for ever
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if LINUX else 0
        room = used + int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(null, stream)
        write_json(file, row(kind, seed))
        status = 0
    finally:
        os._exit(status)


# Why there is nothing to audit, and the words that say so.
REASONS = {
    "no_softmax": "computes no softmax|no softmax in it",
    "no_model": "transformers has no model for it",
    "not_installed": "requires the .* librar|No module named",
}
PATIENCE = 10
LINUX = sys.platform == "linux"


def ended(code: int, seconds: int) -> str:
    """Why a process left no result."""
    if code in (-signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL):
        return f"it took more than {seconds} seconds of the processor"
    return f"its process ended with signal {-code}" if code < 0 else "its process failed, for memory or another reason"


def summary(rows: list[Row]) -> dict[str, Any]:
    """The headline numbers."""
    audited = [r for r in rows if "unaudited" not in r]
    null = [r["largest_null"] for r in audited if r["largest_null"]]
    active = [r["smallest_active"] for r in audited if r["smallest_active"]]
    return {
        "types": len(rows),
        "audited": len(audited),
        **{
            kind: sum(bool(re.search(words, r["unaudited"])) for r in rows if "unaudited" in r)
            for kind, words in REASONS.items()
        },
        "null": sum(r["k"] == "null" for r in audited),
        "partly_null": sum(r["k"] == "partly null" for r in audited),
        "active": sum(r["k"] == "active" for r in audited),
        "shipped_dead": sum(r["k"] in ("null", "partly null") and r["dead"] > 0 for r in audited),
        "foldable": sum(r["v"] == "foldable" for r in audited),
        "compared": sum(r["agrees"] is not None for r in audited),
        "disagreements": sorted(r["type"] for r in audited if r["agrees"] is False),
        "largest_null": max(null, default=None),
        "smallest_active": min(active, default=None),
    }
