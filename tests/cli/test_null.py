"""For every command that reads config.json, null means the same as an absent key; or all commands refuse it alike."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_adapter, write_checkpoint
from typer.testing import CliRunner

from minibeft.cli.main import app
from minibeft.errors import BadInput

# Keys that each of the commands depends on, one of each kind: a flag, a probability, a count, a text, an object.
KEYS: dict[str, tuple[str, ...]] = {
    "llama": ("attention_bias", "mlp_bias", "attention_dropout", "rope_scaling", "head_dim", "hidden_act", "id2label"),
    "bert": ("attention_probs_dropout_prob", "position_embedding_type", "is_decoder", "pruned_heads", "id2label"),
}
COMMANDS = {
    "certify": "certify MODEL --json JSON",
    "inspect": "inspect MODEL --json JSON",
    "verify": "verify MODEL --json JSON",
    "simplify": "simplify MODEL OUT",
    "merge": "merge ADAPTER MODEL OUT --fold",
    "quantkeys": "quantkeys MODEL --json JSON",
    "show": "show hello --model MODEL --png PNG",
    "explore": "explore MODEL --html HTML",
    "predict": "predict MODEL TABLE --text-column words --csv CSV",
}
RUN = {"llama": [name for name in COMMANDS if name != "predict"], "bert": ["certify", "inspect", "predict"]}


def outcome(name: str) -> Any:
    """What a command says and writes, or refuses, in the current folder."""
    place = Path(name)
    names = {"MODEL": "../model", "ADAPTER": "../adapter", "TABLE": "../table.csv", "OUT": str(place)}
    names |= {kind.upper(): f"{place}.{kind}" for kind in ("json", "png", "html", "csv")}
    done = CliRunner().invoke(app, [names.get(word, word) for word in COMMANDS[name].split()])
    if done.exit_code and not isinstance(done.exception, BadInput):
        raise AssertionError(done.output) from done.exception
    said = done.output if done.exit_code == 0 else str(done.exception)
    files = [Path(f"{place}.json"), Path(f"{place}.csv"), place / "model.safetensors"]
    return done.exit_code, said, [file.read_bytes() for file in files if file.is_file()]


@pytest.mark.parametrize("family", KEYS)
def test_null_is_absent_to_every_command(family, tmp_path, monkeypatch):
    biases: dict[str, Any] = {"attention_bias": True} if family == "llama" else {}
    model = write_checkpoint(tmp_path / "model", family, shard="1GB", **biases)
    write_adapter(tmp_path / "adapter", model)
    (tmp_path / "table.csv").write_text("words\nthe cat\n")
    file = model / "config.json"
    raw = json.loads(file.read_text())
    absent, found = {name: value for name, value in raw.items() if name not in KEYS[family]}, {}
    for which, config in (("null", absent | dict.fromkeys(KEYS[family])), ("absent", absent)):
        (tmp_path / which).mkdir()
        monkeypatch.chdir(tmp_path / which)
        file.write_text(json.dumps(config))
        found[which] = {name: outcome(name) for name in RUN[family]}
    for name in RUN[family]:
        assert found["null"][name] == found["absent"][name], name
    assert any(code == 0 for code, _, _ in found["null"].values())
