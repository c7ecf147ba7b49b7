"""Loading needs the memory of the weights, not of two copies: each load measured in a process of its own, forked from
one that has imported all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import as_old_pickle, as_pickle
from tiny import typical

from minibeft.checkpoints.load import build_model
from minibeft.checkpoints.save import save_model, their_state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")

# The peak of this process alone: ru_maxrss would begin with that of the process that started it.
MEASURE = """
import json, os, sys
from pathlib import Path
import torch
from minibeft.checkpoints import load as checkpoint

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def measure(folder, dtype, plant):
    if plant:
        original = checkpoint.open_tensors
        copied = lambda *a, **k: {n: t.clone for n, t in ((n, f()) for n, f in original(*a, **k).items())}
        checkpoint.open_tensors = copied
    torch.nn.functional.linear(torch.ones(8, 8), torch.ones(8, 8))  # whatever the first product starts up
    before = peak()
    model = checkpoint.load_model(folder, dtype=getattr(torch, dtype) if dtype else None)
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    on_disk = sum(file.stat().st_size for file in Path(folder).iterdir())
    print((peak() - before) / max(weights, on_disk), flush=True)

torch.set_num_threads(1)  # a forked process has no other
for case in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        try:
            measure(*case)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
"""
CASES = [
    ("file", ""),
    ("shards", ""),
    ("bin", ""),
    ("old bin", ""),
    ("file", "bfloat16"),
    ("half", "float32"),
    ("bin", "bfloat16"),
    ("half bin", "float32"),
]
SIZES = {"vocab_size": 8000, "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8}  # 55 M weights


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 220 MB in each format, and 110 MB in bfloat16."""
    root = tmp_path_factory.mktemp("large")
    model = build_model(typical("llama", "lm", **SIZES, num_hidden_layers=3, num_key_value_heads=8))
    made = {name: root / name for name in ("file", "shards", "bin", "old bin", "half", "half bin")}
    save_model(model, made["file"])
    state = {name: value.detach() for name, value in their_state(model).items()}
    for name, write in (("bin", as_pickle), ("old bin", as_old_pickle)):
        made[name].mkdir()
        write(made[name], state)
    write_shards(made["shards"], state)
    save_model(model.bfloat16(), made["half"])
    made["half bin"].mkdir()
    as_pickle(made["half bin"], {name: value.detach() for name, value in their_state(model).items()})
    for folder in made.values():
        (folder / "config.json").write_bytes((made["file"] / "config.json").read_bytes())
    return made


def write_shards(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Two shards and their index."""
    from safetensors.torch import save_file

    folder.mkdir()
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(state))}
    for shard in set(where.values()):
        save_file({name: state[name] for name in state if where[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.fixture(scope="module")
def peaks(folders: dict[str, Path]) -> list[float]:
    """Peak memory of loading divided by the larger of file and model; in the last case one more copy is planted."""
    cases = [(str(folders[name]), dtype, False) for name, dtype in CASES] + [(str(folders["file"]), "", True)]
    command = [sys.executable, "-P", "-c", MEASURE, json.dumps(cases)]
    return [float(line) for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(case) for case in CASES])
def test_peak_memory(number: int, peaks: list[float]):
    assert peaks[number] <= 1.2


def test_a_second_copy_shows(peaks: list[float]):
    """The planted bug: every tensor copied once more while it is read."""
    assert len(peaks) == len(CASES) + 1
    assert peaks[-1] > 1.2
