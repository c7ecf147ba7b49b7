"""Many runs in one: each ends as it does alone, whatever happens to the others, and can be resumed.

In float64, so that what another run, another random number or another rate changes stands far above rounding.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_decoder import decoder_settings
from small_run import outcome, small_settings
from stacked import alone, in_double, quiet, together
from tolerance import assert_agrees, samples
from torch import Tensor
from typer.testing import CliRunner

from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.models.packed.packing import Packings
from minibeft.models.packed.sets import Pick, Rows
from minibeft.training import stack as stacking
from minibeft.training.loading import head_like, load, load_like
from minibeft.training.runs import finetune
from minibeft.training.settings import Settings
from minibeft.training.stack import finetune_stack, hindrance, stacks
from minibeft.training.train import Run, Step

# Terms, seed and rate of each; the last but one grows beyond all numbers in its first epoch.
TERMS = {"v": (0, 1e-2), "q": (1, 3e-3), "k": (2, 1e-2), "q,v": (3, 1e300), "all": (4, 1e-2)}


def runs_of(base: Settings) -> list[Settings]:
    return [replace(base, terms=terms, seed=seed, learning_rate=rate) for terms, (seed, rate) in TERMS.items()]


def compare(base: Settings, work: list[Settings], checked: int = 0) -> None:
    """Those from this number on, each with itself alone."""
    first = in_double(base)
    found = together(first, work)
    for number, settings in enumerate(work):
        if settings.learning_rate == 1e300:
            assert isinstance(found[number], BadInput)
            assert "not finite in epoch 0" in str(found[number])
        elif number >= checked:
            each = load_like(first, settings)
            assert isinstance(found[number], Tensor), f"training {settings.terms}: {found[number]}"
            off = samples(lambda model, each=each: alone(each, model), first.model, torch.float64)
            assert_agrees(found[number], off, alone(each, first.model), what=f"training {settings.terms}")


def test_each_run_of_a_stack_is_the_run_alone(tmp_path):
    """Other terms, seeds and rates beside it, and one that fails."""
    base = small_settings(tmp_path, epochs=1, examples=32)
    compare(base, runs_of(base))


def test_K3_a_run_of_b_k_is_the_run_of_the_head_alone(tmp_path):
    """In one stack, dropout on: one seed draws the same numbers. Negative twin: the run of b_q says other logits."""
    base = small_settings(tmp_path, epochs=1, examples=32)
    k, none, q = (replace(base, terms=terms) for terms in ("k", "none", "q"))
    first = in_double(base)
    of_k, of_none, of_q = together(first, [k, none, q])
    off = samples(lambda model: alone(load_like(first, none), model), first.model, torch.float64)
    assert_agrees(of_k, off, of_none, what="training k")
    logits = 2 * len(next(iter(first.valid.values())))
    with pytest.raises(AssertionError, match="training q: error"):
        assert_agrees(of_q[-logits:], [one[-logits:] for one in off], of_none[-logits:], what="training q")


def test_a_stack_on_kernels_is_each_run_alone(tmp_path, monkeypatch):
    """The second of two; rounding is sampled off the kernels, at no cost. Negative twin: biases exchanged."""
    pytest.importorskip("triton")
    base = small_settings(tmp_path, epochs=1, examples=8, batch=4, evaluated=4)
    first, kernels = in_double(base), in_double(replace(base, backend="triton"))
    work = [replace(base, terms="v", backend="triton"), replace(base, terms="q,v", seed=1, backend="triton")]
    assert hindrance(work[0]) is None
    each, off = load_like(kernels, work[1]), load_like(first, replace(work[1], backend="fused"))
    gold = alone(each, kernels.model)
    drawn = samples(lambda model: alone(off, model), first.model, torch.float64)
    assert_agrees(together(kernels, work)[1], drawn, gold, what="training q,v")
    of_sets = Rows.of_sets
    monkeypatch.setattr(Rows, "of_sets", lambda *a: (o := of_sets(*a))._replace(each=1 - o.each))
    with pytest.raises(AssertionError, match="training q,v: error"):
        assert_agrees(together(kernels, work)[1], drawn, gold, what="training q,v")


PICK, BACKWARD = Rows.pick, Pick.backward


def from_the_next(rows: Rows, count: int) -> Tensor:
    return (PICK(rows, count) + 1) % len(rows.owners)


def of_all(ctx: Any, *grad: Tensor) -> tuple[Tensor, None, None]:
    sums, *_ = BACKWARD(ctx, *grad)
    return sums.sum(0).expand(len(sums), -1), None, None


BUGS: dict[str, tuple[Any, str, Any]] = {
    "a row adds the next run's bias": (Rows, "pick", from_the_next),
    "a bias gets the gradient of all runs": (Pick, "backward", staticmethod(of_all)),
    "all draw from one stream": (
        Packings,
        "rows",
        property(
            lambda self: Rows(torch.arange(len(self.parts)), self.tokens, self.sequences, [self.parts[0].stream] * 2)
        ),
    ),
    "the gradients are clipped together": (
        stacking,
        "update",
        lambda runs, batches, logits: UPDATE([replace(run, trained=joint(runs)) for run in runs], batches, logits),
    ),
}
UPDATE = stacking.update


def joint(runs: list[Run]) -> dict[str, Any]:
    return {f"{i} {name}": value for i, run in enumerate(runs) for name, value in run.trained.items()}


@pytest.mark.parametrize("bug", BUGS)
def test_the_comparison_sees(bug: str, tmp_path, monkeypatch):
    owner, name, wrong = BUGS[bug]
    monkeypatch.setattr(owner, name, wrong)
    base = small_settings(tmp_path, epochs=1, examples=32)
    with pytest.raises(AssertionError, match="training q: error"):
        compare(base, runs_of(base)[:2], checked=1)


def test_a_stack_that_was_stopped_ends_with_the_same_bits(tmp_path):
    """And a run of it may go on alone, to the same results."""
    base = small_settings(tmp_path, epochs=3)

    def work(name: str) -> list[tuple[Settings, Path]]:
        return [(replace(base, seed=seed), tmp_path / name / str(seed)) for seed in (0, 1)]

    def stop(number: int, step: Step) -> None:
        if number == 1 and step.epoch == 1:
            raise KeyboardInterrupt

    whole = finetune_stack(work("whole"), notify=quiet, announce=quiet)
    for name in ("stopped", "apart"):
        with pytest.raises(KeyboardInterrupt):
            finetune_stack(work(name), notify=stop, announce=quiet)
    resumed = finetune_stack(work("stopped"), notify=quiet, announce=quiet)
    assert [outcome(record) for record in resumed] == [outcome(record) for record in whole]
    one, other = (load_file(tmp_path / name / "1" / "trained.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    whole_adapter, adapter = (
        tmp_path / n / "1" / "adapter" / "adapter_model.safetensors" for n in ("whole", "stopped")
    )
    assert whole_adapter.read_bytes() == adapter.read_bytes()
    settings, folder = work("apart")[1]
    assert (
        finetune(settings, folder, progress=quiet)["epochs"][-1]["validation"] == whole[1]["epochs"][-1]["validation"]
    )
    again = finetune_stack(work("whole"), notify=lambda *_: pytest.fail("it trained again"), announce=quiet)
    assert again == whole


def test_a_run_that_fails_is_named_when_the_others_are_done(tmp_path):
    base = small_settings(tmp_path)
    work = [
        (replace(base, seed=seed, learning_rate=rate), tmp_path / f"seed-{seed}")
        for seed, rate in ((0, 1e30), (1, 1e-2))
    ]
    with pytest.raises(BadInput, match=r"seed-0: the loss is not finite in epoch 0; lower --learning-rate 1e\+30"):
        finetune_stack(work, notify=quiet, announce=quiet)
    assert not (tmp_path / "seed-0" / "adapter").exists()
    assert (tmp_path / "seed-1" / "adapter").exists()


def test_a_head_that_the_checkpoint_lacks_comes_from_each_runs_seed(tmp_path):
    settings = small_settings(tmp_path)
    file = Path(settings.model) / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "pooler" not in name}, file)
    first, other = load(settings), replace(settings, seed=5)
    head = load(other).model.head
    assert head is not None
    found = head_like(first, other).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in head.state_dict().items() if "dense" in name)
    assert first.model.head is not None
    assert not torch.equal(first.model.head.state_dict()["dense.weight"], found["dense.weight"])


def test_which_runs_go_together(tmp_path):
    base = small_settings(tmp_path)
    v, q, none, full, lora = (replace(base, terms=terms) for terms in ("v", "q", "none", "full", "v"))
    lora, later = replace(lora, form="lora"), replace(v, seed=1, learning_rate=1e-3)
    assert stacks([v, none, full, q, lora, later, full, none]) == [[0, 3, 5], [1, 7], [2], [4], [6]]
    assert [len(group) for group in stacks([replace(v, seed=seed) for seed in range(11)])] == [8, 3]
    assert stacks([replace(v, epochs=2), replace(v, epochs=3)]) == [[0], [1]]
    assert hindrance(v) is None
    assert "which is a decoder" in str(hindrance(decoder_settings(tmp_path / "opt", "opt")))


def test_the_command_trains_seeds_and_rates_as_one(tmp_path):
    settings = small_settings(tmp_path)
    words = f"finetune {settings.model} --data {settings.data} --epochs 1 --batch 8 --examples 48 --device cpu --stack"
    asked = [*words.split(), "--seeds", "0-1", "--rates", "1e-2,3e-3", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert done.output.count("mean ± std") == 2
    for rate in ("0.01", "0.003"):
        assert (tmp_path / "out" / f"rate-{rate}" / "seeds.json").is_file()
        assert (tmp_path / "out" / f"rate-{rate}" / "seed-1" / "adapter").is_dir()
    for more, message in (
        (["--terms", "full"], "--stack: does not go with --terms full"),
        (["--form", "lora"], "--stack: does not go with --form lora"),
        (["--backend", "plain"], "--stack: does not go with --backend plain"),
        (["--jobs", "2"], "--stack: does not go with --jobs 2"),
        (["--learning-rate", "1e-2", "--rates", "1e-2"], "goes with no --learning-rate"),
    ):
        refused = CliRunner().invoke(app, [*words.split(), *more, "--out", str(tmp_path / "other")])
        assert isinstance(refused.exception, BadInput), refused.output
        assert message in str(refused.exception)
    assert not (tmp_path / "other").exists()
