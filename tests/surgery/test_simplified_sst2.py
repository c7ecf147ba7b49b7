"""A model that was simplified classifies SST-2 in transformers as before. Needs MINIBEFT_DATA.

The record of the whole dev set is records/simplify.json; here it is half of it."""

import os

import pytest
from sst2_simplified import measure

DATA = os.environ.get("MINIBEFT_DATA", "")


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="set MINIBEFT_DATA to the folder that holds sst2/train.tsv and dev.tsv")
def test_identical_predictions_on_the_dev_set(tmp_path):
    found = measure(DATA, tmp_path, most=200, seed=0, examples=160, epochs=2, learning_rate=4e-3)
    assert found["same_predictions"] == found["sentences"] == 200
    assert found["accuracy_after"] == found["accuracy_before"]
    # Equal predictions say something only when they are not all the same label: 95 of the 200 are positive.
    assert found["accuracy_before"] not in (95 / 200, 105 / 200)
    assert found["simplify"]["zeroed"] == 2 * 6 * 384
