"""Runs in processes of their own, which end with their parent however it ends."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from minibeft.training.runs import finetune
from minibeft.training.settings import Settings
from minibeft.training.train import Step

Notify = Callable[[int, Step], None]

# A child's way to its parent: a queue can be handed to a process when it starts, not with each run.
report: Any = None


def finetune_in_processes(
    runs: list[tuple[Settings, Path]], *, jobs: int, notify: Notify
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, record) of each run as it ends; `jobs` at a time, begun in order, the threads shared out evenly.

    The first error cancels what has not begun and is raised when the runs under way have come to their end; Ctrl-C ends
    those at once.
    """
    os.environ["PYTHONSAFEPATH"] = "1"  # a child would otherwise import what lies in the current folder before torch
    context = multiprocessing.get_context("spawn")
    queue, (ends, alive) = context.Queue(), context.Pipe(duplex=False)
    listener = Thread(target=lambda: [notify(*item) for item in iter(queue.get, None)], daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(jobs, context, begin_child, (torch.get_num_threads() // jobs, queue, ends))
    try:
        numbers = {pool.submit(work, number, *run): number for number, run in enumerate(runs)}
        for future in as_completed(numbers):
            yield numbers[future], future.result()
    except BaseException as error:
        if not isinstance(error, Exception):
            alive.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        if not alive.closed:  # else a child may have died with the queue's lock
            queue.put(None)
            listener.join()


def begin_child(threads: int, queue: Any, ends: Any) -> None:
    """What a child process does first. A terminal sends Ctrl-C to all: the parent is the one to answer."""
    global report
    report = queue
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(max(1, threads))
    Thread(target=end_with_parent, args=(ends,), daemon=True).start()


def end_with_parent(ends: Any) -> None:
    """End this process with its parent: nobody would read its results, and the command, started again, would write to
    the same folder. `ends` becomes ready when the parent closes the other side or ends."""
    wait([ends])
    os._exit(1)


def work(number: int, settings: Settings, folder: Path) -> dict[str, Any]:
    """One run in a child process, which reports through the queue."""
    return finetune(settings, folder, progress=lambda step: report.put((number, step)))
