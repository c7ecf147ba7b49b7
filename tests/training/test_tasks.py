"""Tasks: the official subset, the paper's sizes, both file formats, and each way a file can be wrong."""

import numpy as np
import pytest

from minibeft.errors import BadInput
from minibeft.training.metrics import score
from minibeft.training.tasks import TASKS, Split, draw, find_data, find_task, read_split

SST2, RTE, STSB = (find_task(name) for name in ("sst2", "rte", "stsb"))


def write(folder, name: str, text: str | bytes):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_the_protocols_table():
    """Learning rates, epochs and regimes as protocol and official code state them."""
    assert {n: t.learning_rate for n, t in TASKS.items()} == {
        **dict.fromkeys(("sst2", "qqp"), 4e-4),
        **dict.fromkeys(("mrpc", "cola"), 7e-4),
        **dict.fromkeys(("mnli", "qnli", "stsb"), 1e-4),
        **dict.fromkeys(("rte", "cb", "wic"), 1e-3),
        **dict.fromkeys(("boolq", "wnli")),  # a task for decoders, and one that the paper leaves out
    }
    assert {n: t.epochs for n, t in TASKS.items()} == {
        **dict.fromkeys(("sst2", "cola", "wic"), 16),
        **dict.fromkeys(("rte", "mnli", "qnli", "qqp"), 30),
        **dict.fromkeys(("mrpc", "stsb", "cb"), 60),
        **dict.fromkeys(("boolq", "wnli")),
    }
    assert TASKS["mrpc"].sizes == (367, 1191, 1835)
    assert [TASKS[n].outputs for n in ("sst2", "mnli", "stsb", "cb")] == [2, 3, 1, 3]


def test_a_tsv_is_read_as_glue_means_it(tmp_path):
    """Quotes are text, a line separator inside a sentence ends no row, labels are names or numbers."""
    text = 'sentence1\tsentence2\tlabel\r\n"a b\u2028c\tit\'s "d"\tnot_entailment\r\ne\tf\t0\r\n'
    split = read_split(RTE, write(tmp_path, "train.tsv", text), "train")
    assert split.texts == [('"a b\u2028c', 'it\'s "d"'), ("e", "f")]
    assert split.labels == [1, 0]


def test_parquet_reads_the_same_as_tsv(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"sentence": ["good", "bad"], "label": [1, 0], "idx": [7, 8]})
    parquet.write_table(table, tmp_path / "validation-00000-of-00001.parquet")
    write(tmp_path, "train.tsv", "sentence\tlabel\ngood\t1\nbad\t0\n")
    assert read_split(SST2, tmp_path, "validation") == read_split(SST2, tmp_path, "train")
    with pytest.raises(BadInput, match=r"validation-.*lacks the column sentence1, sentence2; it has sentence, label"):
        read_split(RTE, tmp_path, "validation")
    write(tmp_path, "train.parquet", b"PAR1 not really").joinpath("train.tsv").unlink()
    with pytest.raises(BadInput, match=r"train\.parquet: is not a readable Parquet file"):
        read_split(SST2, tmp_path, "train")


def test_a_parquet_file_that_unpacks_to_more_than_a_table_may_have_is_refused(tmp_path):
    """A dictionary's one long text in many rows, and a run of nothing: 50 KB and less that would be gigabytes."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = arrow.array(np.zeros(2000, np.int32))
    text = arrow.DictionaryArray.from_arrays(rows, arrow.array(["x" * (1 << 20)]))
    numbers = arrow.nulls(70_000_000, arrow.int8())
    tables = ({"sentence": text, "label": rows}, {"sentence": numbers, "label": numbers})
    for table in tables:
        parquet.write_table(arrow.table(table), tmp_path / "train.parquet")
        with pytest.raises(BadInput, match=r"train\.parquet: unpacks to [\d,]+ bytes, more than the 1,073,741,824"):
            read_split(SST2, tmp_path, "train")
    lists = {"sentence": arrow.array([["a"]]), "label": arrow.array([0])}
    parquet.write_table(arrow.table(lists), tmp_path / "train.parquet")
    with pytest.raises(BadInput, match=r"the column sentence holds a list<.*must hold texts or numbers"):
        read_split(SST2, tmp_path, "train")


def test_parquet_that_is_not_utf8_is_refused(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    offsets, letters = np.array([0, 2], np.int32), b"\xff\xfe"
    text = arrow.Array.from_buffers(arrow.string(), 1, [None, arrow.py_buffer(offsets), arrow.py_buffer(letters)])
    parquet.write_table(arrow.table({"sentence": text, "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(BadInput, match=r"train\.parquet: is not a readable Parquet file .*utf-8"):
        read_split(SST2, tmp_path, "train")


def test_dev_is_validation_and_the_tasks_folder_is_found_in_the_data_folder(tmp_path):
    (tmp_path / "sst2").mkdir()
    write(tmp_path / "sst2", "dev.tsv", "sentence\tlabel\nx\t1\n")
    assert find_data(SST2, tmp_path) == tmp_path / "sst2"
    assert find_data(RTE, tmp_path) == tmp_path
    assert len(read_split(SST2, tmp_path / "sst2", "validation")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text\tlabel\nx\t1\n", r"train\.tsv: lacks the column sentence; it has text, label"),
        ("sentence\tlabel\nx\t2\n", r"train\.tsv:2: label = '2'; sst2 has 0 \(negative\), 1 \(positive\)"),
        ("sentence\tlabel\nx\t\n", r"train\.tsv:2: label = ''"),
        ("sentence\tlabel\nx\tnan\n", r"label = 'nan'"),
        ("sentence\tlabel\nx\t0.5\n", r"label = '0\.5'"),
        ("sentence\tlabel\n", "holds no examples"),
        ("", "lacks the column"),
        ("sentence\tlabel\nx\ty\t1\n", r"train\.tsv:2: has 3 fields, the header 2"),
        (b"sentence\tlabel\nok\t1\n\xff\xfe\t0\n", r"train\.tsv:3: is not UTF-8"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(BadInput, match=message) as caught:
        read_split(SST2, write(tmp_path, "train.tsv", text), "train")
    assert "\n" not in str(caught.value)


def test_a_missing_split_folder_and_task_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"has no train\.tsv, \.csv, \.jsonl or \.parquet"):
        read_split(SST2, tmp_path, "train")
    with pytest.raises(BadInput, match="no such folder"):
        find_data(SST2, tmp_path / "nowhere")
    with pytest.raises(BadInput, match="choose among sst2"):
        find_task("sst-2")


def test_a_regression_takes_any_finite_score(tmp_path):
    write(tmp_path, "train.tsv", "sentence1\tsentence2\tlabel\na\tb\t3.8\n")
    assert read_split(STSB, tmp_path, "train").labels == [3.8]
    write(tmp_path, "train.tsv", "sentence1\tsentence2\tlabel\na\tb\tinf\n")
    with pytest.raises(BadInput, match="a finite number"):
        read_split(STSB, tmp_path, "train")


def test_the_subset_is_the_official_one():
    """np.random.seed(0); np.random.permutation(67349)[:n], which is what the official code runs."""
    train = Split([(str(i),) for i in range(67349)], [float(i) for i in range(67349)])
    drawn, held = draw(train, 1000, 100, 0)
    np.random.seed(0)  # noqa: NPY002
    official = np.random.permutation(67349)  # noqa: NPY002
    assert drawn.labels == official[:1000].tolist()
    assert held is not None
    assert held.labels == official[1000:1100].tolist()
    assert draw(train, 10, 0, 1)[0].labels != drawn.labels[:10]


def test_more_examples_than_there_are_is_refused():
    train = Split([("a",)] * 5, [0.0] * 5)
    assert len(draw(train, 5, 0, 0)[0]) == 5
    with pytest.raises(BadInput, match="has 5 examples, fewer than the 4 examples and 2 held out asked for"):
        draw(train, 4, 2, 0)


def test_metrics_by_hand():
    predicted, labels = np.array([1, 1, 0, 0, 1, 0]), np.array([1, 0, 0, 1, 1, 0])  # TP 2, FP 1, FN 1, TN 2
    assert score("accuracy", predicted, labels) == 4 / 6
    assert score("f1", predicted, labels) == 4 / 6
    assert score("f1_macro", predicted, labels) == 4 / 6
    assert score("matthews", predicted, labels) == pytest.approx((2 * 2 - 1 * 1) / 9, abs=4 * 2**-52)
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
    assert score("spearman", x, y) == pytest.approx(0.8, abs=4 * 2**-52)
    assert score("pearson", x, y**2) == pytest.approx(np.corrcoef(x, y**2)[0, 1], abs=8 * 2**-52)
    assert score("pearson", x, np.ones(4)) == 0
