"""Runs in processes of their own, which end with their parent however it ends."""

import multiprocessing
import os
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

    The first error cancels what has not begun and is raised when the runs under way have come to their end.
    """
    os.environ["PYTHONSAFEPATH"] = "1"  # a child would otherwise import what lies in the current folder before torch
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    listener = Thread(target=lambda: [notify(*item) for item in iter(queue.get, None)])
    listener.start()
    pool = ProcessPoolExecutor(jobs, context, begin_child, (torch.get_num_threads() // jobs, queue))
    try:
        numbers = {pool.submit(work, number, *run): number for number, run in enumerate(runs)}
        for future in as_completed(numbers):
            yield numbers[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        queue.put(None)
        listener.join()


def begin_child(threads: int, queue: Any) -> None:
    """What a child process does first."""
    global report
    report = queue
    torch.set_num_threads(max(1, threads))
    Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Nobody reads the results of an orphan, and its parent's next start would write to the same folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def work(number: int, settings: Settings, folder: Path) -> dict[str, Any]:
    """One run in a child process, which reports through the queue."""
    return finetune(settings, folder, progress=lambda step: report.put((number, step)))
