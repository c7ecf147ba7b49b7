"""What each of several processes runs: a few updates; the first one writes the losses. For test_sharded."""

import json
import sys
from pathlib import Path

import torch
from tolerance import nudge
from torch.distributed.tensor import DTensor

from minibeft.checkpoints.load import load_model
from minibeft.training import sharded
from minibeft.training.loading import load
from minibeft.training.settings import Settings
from minibeft.training.train import predict, start, train_step


def main(settings: Settings, dtype: torch.dtype, file: Path, nudged: int = 0) -> None:
    torch.set_num_threads(1)
    sharded.join()
    loaded = load(settings)
    model = load_model(settings.model, dtype=dtype)
    run = start(loaded.settings, loaded.task, nudge(model, nudged, dtype) if nudged else model)
    matrices = [value for value in run.model.parameters() if value.ndim > 1]
    held = sum((value.to_local() if isinstance(value, DTensor) else value).numel() for value in matrices)
    run.model.train()
    batches = torch.arange(14).split(5)  # the last has four, and five do not divide by two
    losses = [train_step(run, loaded.train.gather(i, None, torch.device("cpu")))[0].item() for i in batches]
    logits = predict(run, loaded.valid["validation"])
    if not sharded.rank():
        result = {"losses": losses, "logits": logits.tolist(), "processes": sharded.processes(), "held": held}
        file.write_text(json.dumps(result))


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])), getattr(torch, sys.argv[2]), Path(sys.argv[3]))
