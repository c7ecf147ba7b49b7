"""The code that the site's pages tell the reader to type does what the pages say."""

import re

import pytest
import torch
from evidence import ROOT
from small_run import make_adapters, make_model


def test_the_vectors_of_many_adapters_in_transformers(tmp_path):
    """In float64, where 1e-9 is 1e7 roundings. Negative twin: without the hooks, as with another's vectors, more than
    1e-3 is missing."""
    pytest.importorskip("transformers")
    base = make_model(tmp_path / "model")
    (first,), (_, second) = make_adapters(base, tmp_path / "1", ("v",)), make_adapters(base, tmp_path / "2", ("q", "v"))
    code = "\n".join(
        re.findall(r"```python\n(.*?)```", (ROOT / "docs/serve.md").read_text(encoding="utf-8"), re.DOTALL)
    )
    for words, instead in {
        '"minilm"': repr(str(base)),
        '"first", "second"': f"{str(first)!r}, {str(second)!r}",
        'task="classification"': 'task="classification", dtype=torch.float64',
        ".eval()": ".eval().double()",
        "It was dull.": "w1 w2 w3",
        "It was a marvel.": "w5 w6",
    }.items():
        assert words in code
        code = code.replace(words, instead)
    said: dict = {}
    with torch.no_grad():
        exec(code, said)
        assert (said["same"] - said["logits"]).abs().max() < 1e-9
        said["owners"][:] = torch.tensor([0, 1])
        states = said["theirs"](**said["batch"]).last_hidden_state[:, 0]
    assert (states - said["states"]).abs().max() > 1e-3


def test_the_cost_of_the_papers_models_is_what_the_formula_says():
    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| [\w-]+.* \| \d", line)]
    assert len(rows) == 8
    for _, layers, width, mlp, tokens, epochs, *told in rows:
        maps, inner = map(int, mlp.split(" × "))
        train, dev = map(int, tokens.split(", "))
        numbers = int(layers) * (4 * int(width) ** 2 + maps * int(width) * inner)
        operations = int(epochs) * numbers * (4 * 1000 * train + 2 * 872 * dev)
        assert told == [f"{numbers:.2e}", f"{operations:.1e}", f"{operations / (0.3 * 312e12) / 3600:.1g}"]
