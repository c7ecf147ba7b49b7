"""GLUE and SuperGLUE as their archives hold them: folder names, headers, columns and quirks of each, few rows."""

import json
import logging

import pytest

from minibeft.errors import BadInput
from minibeft.training.tasks import find_data, find_task, read_split

# Folder → file → its lines, as the archives of gluebenchmark.com and super.gluebenchmark.com have them.
PARSES = "genre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
MNLI = f"index\tpromptID\tpairID\t{PARSES}\tsentence1\tsentence2\tlabel1"
FIVE = "\tlabel2\tlabel3\tlabel4\tlabel5"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
MRPC = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
ARCHIVES: dict[str, dict[str, list[str]]] = {
    "CoLA": {
        "train.tsv": ["gj04\t1\t\tOur friends won't buy it.", 'gj04\t0\t*\tThey "drank the pub.'],
        "dev.tsv": ["gj04\t1\t\tThe sailors rode the breeze."],
        "test.tsv": ["index\tsentence", "0\tBill whistled past the house."],
    },
    "SST-2": {
        "train.tsv": ["sentence\tlabel", "hide new secretions \t0"],
        "dev.tsv": ["sentence\tlabel", "a charm \t1"],
    },
    "MRPC": {
        "train.tsv": [MRPC, '1\t702876\t702977\tAmrozi said " so .\tHe said so .', "0\t1\t2\tYucaipa .\tIt bought ."],
        "dev.tsv": [MRPC, "1\t3\t4\tHe said .\tSaid he ."],
    },
    "STS-B": {
        "train.tsv": [STSB, '0\tmain-captions\tMSRvid\t2012test\t1\tnone\tnone\tA plane.\tAn "air plane.\t5.000'],
        "dev.tsv": [STSB, "0\tmain-captions\tMSRvid\t2012test\t0\tnone\tnone\tA man.\tA dog.\t0.600"],
    },
    "QQP": {
        "train.tsv": [QQP, "1\t2\t3\tHow?\tWhy?\t0", '2\t4\t5\tWhat is a "broken row?', "3\t6\t7\tWho?\tWho?\t1"],
        "dev.tsv": [QQP, "4\t8\t9\tWhere?\tWhere to?\t0"],
    },
    "MNLI": {
        "train.tsv": [f"{MNLI}\tgold_label", "0\t1\t1n\tgov\t(\t(\t(\t(\tIt is.\tIt may be.\tneutral\tneutral"],
        "dev_matched.tsv": [
            f"{MNLI}{FIVE}\tgold_label",
            "\t".join(["0", "1", "1e", "slate", *"((((", "A.", "B."] + ["entailment"] * 6),
        ],
        "dev_mismatched.tsv": [
            f"{MNLI}{FIVE}\tgold_label",
            "\t".join(["0", "1", "1e", "oup", *"((((", "C.", "D."] + ["contradiction"] * 6),
        ],
    },
    "QNLI": {
        "train.tsv": ["index\tquestion\tsentence\tlabel", "0\tWhen?\tIn 1903.\tentailment"],
        "dev.tsv": ["index\tquestion\tsentence\tlabel", "0\tWhat?\tRain.\tnot_entailment"],
    },
    "RTE": {
        "train.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tNo arms.\tArms.\tnot_entailment"],
        "dev.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tDana said.\tDana.\tentailment"],
    },
    "WNLI": {
        "train.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tI stuck a pin.\tThe pin had a hole.\t1"],
        "dev.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tThe drain is clogged.\tIt must be cleaned.\t0"],
    },
    "CB": {
        "train.jsonl": [
            json.dumps({"premise": "Polly had to.", "hypothesis": "She had.", "label": "entailment", "idx": 0})
        ],
        "val.jsonl": [json.dumps({"premise": "Valence?", "hypothesis": "It\u2028is.", "label": "neutral", "idx": 0})],
    },
    "WiC": {
        "train.jsonl": [
            json.dumps(
                {
                    "word": "place",
                    "sentence1": "A place.",
                    "sentence2": "To place.",
                    "idx": 0,
                    "label": False,
                    "start1": 2,
                }
            )
        ],
        "val.jsonl": [
            json.dumps({"word": "board", "sentence1": "Board.", "sentence2": "Boards.", "idx": 0, "label": True})
        ],
    },
    "BoolQ": {
        "train.jsonl": [json.dumps({"question": "is it", "passage": "It is.", "idx": 0, "label": True})],
        "val.jsonl": [json.dumps({"question": "was it", "passage": "It was not.", "idx": 0, "label": False})],
    },
}
# Folder → training and validation splits: the texts and the labels of the first row.
FIRST = {
    "CoLA": ((("Our friends won't buy it.",), 1), (("The sailors rode the breeze.",), 1)),
    "SST-2": ((("hide new secretions ",), 0), (("a charm ",), 1)),
    "MRPC": ((('Amrozi said " so .', "He said so ."), 1), (("He said .", "Said he ."), 1)),
    "STS-B": ((("A plane.", 'An "air plane.'), 5.0), (("A man.", "A dog."), 0.6)),
    "QQP": ((("How?", "Why?"), 0), (("Where?", "Where to?"), 0)),
    "MNLI": ((("It is.", "It may be."), 1), (("A.", "B."), 0)),
    "QNLI": ((("When?", "In 1903."), 0), (("What?", "Rain."), 1)),
    "RTE": ((("No arms.", "Arms."), 1), (("Dana said.", "Dana."), 0)),
    "WNLI": ((("I stuck a pin.", "The pin had a hole."), 1), (("The drain is clogged.", "It must be cleaned."), 0)),
    "CB": ((("Polly had to.", "She had."), 0), (("Valence?", "It\u2028is."), 2)),
    "WiC": ((("A place.", "To place."), 0), (("Board.", "Boards."), 1)),
    "BoolQ": ((("is it", "It is."), 1), (("was it", "It was not."), 0)),
}


def unpack(root, name: str) -> None:
    """One archive's folder."""
    (root / name).mkdir()
    for file, lines in ARCHIVES[name].items():
        (root / name / file).write_bytes(("\n".join(lines) + "\n").encode())


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_read_as_shipped(tmp_path, name):
    for each in ARCHIVES:  # side by side, as they are downloaded
        unpack(tmp_path, each)
    task = find_task(name.lower().replace("-", ""))
    folder = find_data(task, tmp_path)
    assert folder.name == name
    for split, (texts, label) in zip(("train", task.valid[0]), FIRST[name], strict=True):
        found = read_split(task, folder, split)
        assert (found.texts[0], found.labels[0]) == (texts, label)
        assert len(read_split(task, folder, task.valid[-1])) == 1


def test_broken_rows_of_qqp_are_left_out_and_counted_and_of_no_other(tmp_path, caplog):
    unpack(tmp_path, "QQP")
    with caplog.at_level(logging.WARNING, "minibeft"):
        assert read_split(find_task("qqp"), tmp_path / "QQP", "train").labels == [0, 1]
    assert "train.tsv: 1 rows lack fields" in caplog.text
    (tmp_path / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tA\n")
    with pytest.raises(BadInput, match=r"train\.tsv:2: has 2 fields, the header 4"):
        read_split(find_task("rte"), tmp_path, "train")


def test_mrpc_as_microsoft_ships_it_is_split_by_the_list_of_glue(tmp_path):
    rows = [MRPC, *(f"{i % 2}\t{i}\t{i + 10}\tfirst {i}\tsecond {i}" for i in range(5))]
    (tmp_path / "msr_paraphrase_train.txt").write_text("\r\n".join(rows), encoding="utf-8")
    with pytest.raises(BadInput, match=r"dev_ids\.tsv: is missing"):
        read_split(find_task("mrpc"), tmp_path, "train")
    (tmp_path / "dev_ids.tsv").write_text("1\t11\n3\t13\n")
    train, dev = (read_split(find_task("mrpc"), tmp_path, split) for split in ("train", "validation"))
    assert [texts[0] for texts in train.texts] == ["first 0", "first 2", "first 4"]
    assert (dev.texts[1], dev.labels) == (("first 3", "second 3"), [1, 1])


def test_superglues_rte_and_the_hubs_columns_are_read_alike(tmp_path):
    """One task under two names for its columns."""
    (tmp_path / "train.jsonl").write_text('{"premise": "a", "hypothesis": "b", "label": "entailment"}\n')
    (tmp_path / "val.jsonl").write_text('{"sentence1": "a", "sentence2": "b", "label": 0}\n')
    task = find_task("rte")
    assert read_split(task, tmp_path, "train") == read_split(task, tmp_path, "validation")


@pytest.mark.parametrize(
    ("line", "message"),
    [("[1]", "holds a list"), ("{", "is not JSON"), ('{"premise": "a", "label": 0}', "lacks the column hypothesis")],
)
def test_a_bad_line_of_json_is_named(tmp_path, line, message):
    (tmp_path / "train.jsonl").write_text(f'{{"premise": "a", "hypothesis": "b", "label": 0}}\n\n{line}\n')
    with pytest.raises(BadInput, match=rf"train\.jsonl:3: {message}"):
        read_split(find_task("cb"), tmp_path, "train")
