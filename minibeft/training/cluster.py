"""Runs on the workers of a Dask cluster, one run per task, in folders that the workers share with this machine.

If a worker dies, only the epoch in progress is lost: Dask gives its run to another worker, which resumes it from its
folder. If the command is interrupted, runs under way finish on their workers; the same command then finds them.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

from minibeft.errors import BadInput, needs
from minibeft.training.parallel import Notify
from minibeft.training.runs import finetune
from minibeft.training.settings import Settings
from minibeft.training.train import Step

SECONDS_TO_ANSWER = 10
# How often a run is tried again when its shared folder fails for a moment; a worker that dies does not count.
RETRIES = 2
# One run at a time: it needs the process's random numbers and current folder for itself.
alone = Lock()


def finetune_on_cluster(
    runs: list[tuple[Settings, Path]], *, address: str, notify: Notify
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, record) of each run as it ends; a run that fails leaves the others, and BadInput names it at the end.

    address  of the scheduler, such as tcp://host:8786
    """
    with needs("distributed", "cluster", "--cluster"):
        from distributed import Client, KilledWorker, as_completed
    try:
        client = Client(address, timeout=SECONDS_TO_ANSWER)
    except (OSError, ValueError) as error:
        raise BadInput(f"--cluster {address}: no scheduler answers there; start it with: dask scheduler") from error
    topic, failed = f"minibeft-{uuid4().hex}", list[str]()
    with client:
        require_one_thread(client.scheduler_info()["workers"])
        client.subscribe_topic(topic, lambda event: notify(event[1][0], Step(*event[1][1:])))
        futures = {
            client.submit(work, number, *run, os.getcwd(), topic, key=f"{topic}-{number}", retries=RETRIES): number
            for number, run in enumerate(runs)
        }
        try:
            for future in as_completed(futures):
                number = futures[future]
                try:
                    found = future.result()
                except KilledWorker as error:
                    found = f"its workers died, the last of them {error.last_worker.address}; their logs say why"
                if isinstance(found, str):
                    failed.append(f"{runs[number][1].name}: {found}")
                else:
                    yield number, found
        finally:
            client.cancel(list(futures))
    if failed:
        raise BadInput("; ".join(failed))


def require_one_thread(workers: dict[str, Any]) -> None:
    """BadInput for a worker with several threads: it would begin several runs, but only one of them could go on."""
    for address, worker in workers.items():
        if worker["nthreads"] != 1:
            raise BadInput(f"--cluster: {address} has {worker['nthreads']} threads; start workers with --nthreads 1")


def work(number: int, settings: Settings, folder: Path, place: str, topic: str) -> dict[str, Any] | str:
    """One run on a worker, in the folder where the command was given; its record, or the text of the error."""
    from distributed import get_worker

    worker = get_worker()
    try:
        with alone, contextlib.chdir(place):
            return finetune(settings, folder, progress=lambda step: worker.log_event(topic, [number, *step]))
    except FileNotFoundError as error:
        return f"{worker.address} does not see {error.filename}; start the command in a folder that all workers share"
    except BadInput as error:
        return str(error)
