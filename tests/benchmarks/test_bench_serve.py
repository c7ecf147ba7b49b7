"""bench serve measures several ways to give the same answers, or it would compare nothing."""

import pytest
from small_run import small_settings

from minibeft.benchmarks import serve
from minibeft.errors import BadInput
from minibeft.models.packed.sets import Rows


def test_all_ways_answer_alike(tmp_path, monkeypatch):
    """Planted: each row is answered by its neighbour's adapter."""
    monkeypatch.setattr(serve, "COUNTS", (3,))
    settings, said = small_settings(tmp_path, examples=16, evaluated=24), []
    record = serve.bench(settings, 1, said.append)
    (found,) = record["by_count"]
    assert (found["adapters"], found["requests"], len(said)) == (3, 24, serve.steps_of())
    assert [row["side"] for row in found["rows"]] == [serve.BARE, *serve.WAYS]
    # b_v of two layers as W_o b_v, the pooler's bias, a classifier of two classes; PEFT holds b_v itself.
    each = {row["side"]: row["bytes_per_adapter"] for row in found["rows"]}
    assert each[serve.MIXED] == each[serve.SWITCH] == 4 * (2 * 16 + 16 + 2 * 16 + 2)
    assert "| 3 | minibeft |" in serve.render(record)[0].markdown()
    pick = Rows.pick
    monkeypatch.setattr(Rows, "pick", lambda rows, count: (pick(rows, count) + 1) % 3)
    with pytest.raises(BadInput, match=r"minibeft: its logits are .* from the merged models'"):
        serve.bench(settings, 1, said.append)
