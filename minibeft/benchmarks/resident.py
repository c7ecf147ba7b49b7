"""How much memory training takes above the weights: the peak of a process of its own, less what it held before.

Run as `python -m minibeft.benchmarks.resident NAME` with the settings as JSON on standard input; prints bytes.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from minibeft.benchmarks.peers import OURS, SAME_ORDER, batches, make
from minibeft.errors import BadInput
from minibeft.training.caches import CAPS
from minibeft.training.settings import Settings

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held(field: str) -> int:
    """Bytes by the kernel's count: VmRSS now, VmHWM at the highest."""
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found
    return int(found[1]) * 1024


def peak(name: str, settings: Settings) -> int:
    """Bytes above the loaded model at the highest point of one pass; here, in this process.

    One update on a single example comes before and is not counted: it loads libraries, compiles kernels and makes the
    optimiser's state, and none of these are activations.
    """
    side = make(name, settings)
    side.set_dropout(settings.dropout)
    order = batches(side, 0)
    side.step(order[0][:1])
    before = held("VmRSS")
    RESET.write_text("5")  # the highest point is counted from here
    for indices in order:
        side.step(indices)
    return held("VmHWM") - before


def peak_in_process(name: str, settings: Settings) -> int:
    """The same in a fresh process, with oneDNN's caches as minibeft's command line sets them, or as a peer has them."""
    if not RESET.exists():
        raise BadInput("peak memory is read from /proc, which this system has not; run the benchmark on Linux")
    command = [sys.executable, "-P", "-m", "minibeft.benchmarks.resident", name, str(torch.get_num_threads())]
    plain = {key: value for key, value in os.environ.items() if key not in CAPS}
    environment = plain | CAPS if name in (OURS, SAME_ORDER) else plain
    given = json.dumps(settings.as_json())
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise BadInput(f"{name}: training in a process of its own failed: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    print(peak(sys.argv[1], Settings(**json.load(sys.stdin))))
