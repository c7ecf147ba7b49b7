"""A kill and a full disk at every write of every command that writes: inputs untouched, no half of a file or folder
under its final name, nothing left behind by what could still clean up, and the same command then works."""

import hashlib
import json
import shlex
import shutil
from collections.abc import Set
from pathlib import Path

import pytest
from checkpoints import as_pickle, write_adapter, write_checkpoint
from faults import at_every_write, limited, run
from safetensors.torch import load_file
from small_run import make_data, make_model

from minibeft.surgery.merge import merge


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, as pickles too, an adapter, a merged model, and a task's data."""
    root = tmp_path_factory.mktemp("given")
    bert = write_checkpoint(root / "bert", "bert")
    merge(write_adapter(root / "adapter", bert), bert, root / "merged")
    make_model(root / "small")
    shutil.copytree(root / "small", root / "pickles")
    as_pickle(root / "pickles", load_file(root / "small" / "model.safetensors"))
    (root / "pickles" / "model.safetensors").unlink()
    make_data(root / "data", train=30, dev=8)
    return root


def begun(name: str, words: list[str], out: Path) -> dict[str, str]:
    """Make the folder in which a command begins: empty, or a reproduction without its table; return its files."""
    out.mkdir()
    if name == "reproduce":
        assert run(words).status == 0
        for file in out.glob("ranking.*"):
            file.unlink()
    return contents(out)


TRAINING = "--data IN/data --examples 8 --batch 8 --device cpu --max-length 16"
COLUMNS = "--text-column sentence --label-column label"
COMMANDS = {
    "certify": "certify IN/bert --json OUT/a.json",
    "inspect": "inspect IN/bert --json OUT/a.json",
    "prove": "prove I2 --json OUT/a.json --latex OUT/a.tex",
    "verify": "verify IN/bert --json OUT/a.json",
    "quantkeys": "quantkeys IN/bert --json OUT/a.json --export OUT/a.safetensors",
    "audit": "audit IN/bert --json OUT/a.json",
    "gradients": "gradients IN/small --data IN/data --examples 8 --seeds 0 --json OUT/a.json",
    "show": "show the --model IN/bert --png OUT/a.png",
    "explore": 'explore IN/bert --text "the the" --html OUT/a.html',
    "predict": "predict IN/small IN/data/sst2/dev.tsv --text-column sentence --csv OUT/a.csv",
    "evaluate": f"evaluate IN/small IN/data/sst2/dev.tsv {COLUMNS} --csv OUT/a.csv --json OUT/a.json",
    "atlas": "atlas OUT/o --types gpt2",
    "bench": "bench memory IN/small --batch 1 --length 8 --json OUT/a.json",
    "convert": "convert IN/pickles OUT/o",
    "simplify": "simplify IN/bert OUT/o --json OUT/a.json",
    "merge": "merge IN/adapter IN/bert OUT/o",
    "unmerge": "unmerge IN/merged OUT/o",
    "finetune": f"finetune IN/small {TRAINING} --epochs 2 --out OUT/o",
    "reproduce": f"reproduce ranking --model IN/small {TRAINING} --epochs 1 --seeds 0 --out OUT",
}
RESUMED = {"atlas", "finetune", "reproduce"}  # what is whole stays, for the next run to go on from
STREAMS = {"quantkeys", "simplify", "merge", "finetune"}  # written by others than files.write
SIZES = ((100, True), (100, False))
VOLATILE = {"seconds", "date", "state.pt"}


def contents(folder: Path, *, hidden: bool = True) -> dict[str, str]:
    """Every file and its contents, without times; an incomplete JSON file fails here.

    hidden  include temporary files beside the final names, which no reader looks at
    """
    names = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    return {name: content(path) for name, path in names.items() if hidden or "/." not in f"/{name}"}


def content(file: Path) -> str:
    """Of one file."""
    if file.suffix == ".json":
        return json.dumps(steady(json.loads(file.read_text())), sort_keys=True)
    return "" if file.name in VOLATILE else hashlib.sha256(file.read_bytes()).hexdigest()


def steady(value: object) -> object:
    """A record without times."""
    if isinstance(value, dict):
        return {key: steady(part) for key, part in value.items() if key not in VOLATILE}
    return [steady(part) for part in value] if isinstance(value, list) else value


def tops(names: Set[str]) -> set[str]:
    """The files and folders that a command names."""
    return {name.partition("/")[0] for name in names}


def hidden(folder: Path) -> bool:
    """Whether a temporary file or folder is left beside a final name."""
    return any(path.name.startswith(".") for path in folder.rglob("*"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_fault_at_any_write_loses_nothing(name: str, given: Path, tmp_path: Path):
    out, states, before = tmp_path / "out", tmp_path / "states", contents(given)
    words = shlex.split(COMMANDS[name].replace("IN", str(given)).replace("OUT", str(out)))
    start = begun(name, words, out)
    states.mkdir()
    ending = at_every_write(words, out, states)
    assert ending.status == 0, ending.said
    whole = contents(out)
    for size, kill in SIZES if name in STREAMS else ():
        afresh(out)
        ending = limited(words, size, kill=kill)
        shutil.copytree(out, states / f"{size}-{'kill' if kill else 'full'}-inside")
        if not kill:
            (states / f"{size}-full-inside.json").write_text(json.dumps(ending))
        assert (ending.status is None) == kill
    found = sorted(path for path in states.iterdir() if path.is_dir())
    assert sum("kill" in path.name for path in found) >= 2
    known = {json.dumps([sorted(start), False])}  # from where the first run began
    for state in found:
        there = contents(state, hidden=False)
        if name not in RESUMED:
            assert there.items() <= whole.items(), state
            assert not tops(there.keys()) & tops(whole.keys() - there.keys()), state
        if "full" in state.name:
            status, said = json.loads(Path(f"{state}.json").read_text())
            assert (status, said.count("cannot be written") + said.count("check that place")) == (2, 1), said
            assert not hidden(state), state
        key = json.dumps([sorted(there), hidden(state) and name not in RESUMED])
        if key not in known:
            known.add(key)
            afresh(out, state)
            ending = run(words)
            done = "exists and is not empty" in ending.said and any("/" in n for n in there)
            assert ending.status == 0 or done, (state, ending)
            assert done or contents(out) == whole, state
    assert contents(given) == before


def afresh(out: Path, state: Path | None = None) -> None:
    """Replace the folder by an empty one, or by a copy of this state."""
    shutil.rmtree(out)
    shutil.copytree(state, out) if state else out.mkdir()
