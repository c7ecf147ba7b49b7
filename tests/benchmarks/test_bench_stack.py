"""bench stack measures two ways of the same training: their losses agree, or it would compare nothing."""

import torch
from small_run import small_settings

from minibeft.benchmarks import stack
from minibeft.models.packed.packing import Packings
from minibeft.models.packed.sets import Rows


def test_both_ways_train_alike(tmp_path, monkeypatch):
    """Negative twin: with one stream of random numbers for all runs the losses part by a thousand times more."""
    monkeypatch.setattr(stack, "SHAPES", ((2, 8),))
    monkeypatch.setattr(stack, "peak_in_process", lambda settings, runs: runs * 2**20)
    settings = small_settings(tmp_path, examples=16)
    record = stack.bench(settings, 1, lambda text: None)
    (row,) = record["rows"]
    assert (row["runs"], row["batch"]) == (2, 8)
    assert record["peak_bytes_above_weights"]["stack_is_times_one_run"] == 2
    assert "2 MiB for 2 runs, 1 MiB for one, 2.0 ×" in stack.render(record)[0].note  # type: ignore[union-attr]
    owners = torch.arange(2)
    shared = property(lambda self: Rows(owners, self.tokens, self.sequences, [self.parts[0].stream] * 2))
    monkeypatch.setattr(Packings, "rows", shared)
    (wrong,) = stack.bench(settings, 1, lambda text: None)["rows"]
    assert wrong["largest_loss_difference"] > 1000 * row["largest_loss_difference"]
