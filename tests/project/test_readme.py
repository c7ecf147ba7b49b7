"""README.md and EVIDENCE.md say what the records say, and name only what is there."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer.core
import typer.main
from checkpoints import as_pickle, write_adapter
from evidence import BLOCK, PAGES, ROOT, TABLES, filled
from safetensors.torch import load_file
from small_run import make_data, make_model
from typer.testing import CliRunner

from minibeft.cli.main import app
from minibeft.families import BODIES, FAMILIES
from minibeft.theory.theorems import THEOREMS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_records():
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    assert [filled(text) for text in texts] == texts, "run: make readme"
    assert {block[2] for text in texts for block in BLOCK.finditer(text)} == set(TABLES)


def test_the_readme_counts_families_as_the_table_does():
    assert f"the {len(BODIES)} model types that minibeft runs" in README
    assert f"certify knows {len(FAMILIES)}," in README


def test_the_readme_is_two_screens():
    assert len(README.splitlines()) <= 150


def test_the_example_shows_what_it_says(capsys: pytest.CaptureFixture[str]):
    """b_k moves P by rounding, b_q by more than a tenth, b_v shifts by what was added; 1e-9 is 1e7 roundings."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    key, query, value = capsys.readouterr().out.splitlines()
    assert float(key.split()[-1]) < 1e-9
    assert float(query.split()[-1]) > 0.1
    assert [float(number) for number in value.split()[-3::2]] == pytest.approx([1.0, 1.0], abs=1e-9)


@pytest.mark.parametrize(
    "page", ["README.md", "EVIDENCE.md", "CONTRIBUTING.md", "kernels/README.md", "proofs/TRUST.md"]
)
def test_every_link_into_the_repository_leads_somewhere(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert targets
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


def test_every_command_exists():
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    commands = set(group.commands)
    used = set(re.findall(r"`minibeft (\w+)", README))
    assert used
    assert used <= commands


# What makes the long ones of the README's commands short.
SHORT = {"finetune": "--examples 32 --epochs 1", "reproduce": "--seeds 0 --rates none --examples 16 --epochs 1"}
# Those that another test runs as they are printed.
ELSEWHERE = {"bench": "benchmarks/test_bench_train.py"}


def readme_commands() -> list[list[str]]:
    """The words of each command after `minibeft`; a command named without arguments is not meant to be typed."""
    return [shlex.split(found) for found in re.findall(r"`minibeft ([^`]+ [^`]+)`", README)]


def test_every_command_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a small model and small data for the README's capitals; each with status 0."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(make_model(Path("pickles")), Path("small"))
    as_pickle(Path("pickles"), load_file("pickles/model.safetensors"))
    Path("pickles/model.safetensors").unlink()
    make_data(Path("data"))
    write_adapter(Path("adapter"), Path("small"))
    table = "\n".join(
        ["words,label,adapter", *(f"w{i % 30} w{i % 7},{'odd' if i % 2 else 'even'},adapter" for i in range(60))]
    )
    Path("own.csv").write_text(table, encoding="utf-8")
    for words in readme_commands():
        if words[0] in ELSEWHERE:
            assert f'["{words[0]}", ' in (ROOT / "tests" / ELSEWHERE[words[0]]).read_text(encoding="utf-8")
            continue
        places = {
            "MODEL": "small",
            "minilm": "small",
            "ADAPTER": "adapter",
            "ADAPTERS": ".",
            "DIR": "data",
            "FILE": "own.csv",
            "PICKLES": "pickles",
        }
        places |= {"TEXT": "words", "RUN": "runs/own", "OUT": f"out-{words[0]}", "BACK": "back"}
        places |= {"OUT": "out-merge"} if words[0] == "unmerge" else {}
        words += ["--out", "runs/own"] if "FILE" in words and words[0] == "finetune" else []
        given = [places.get(word, word) for word in words] + SHORT.get(words[0], "").split()
        done = CliRunner().invoke(app, given)
        assert done.exit_code == 0, f"{' '.join(given)}: {done.output or done.exception}"


def test_each_theorem_is_named_by_the_tests_that_the_table_links():
    for name, theorem in THEOREMS.items():
        text = (ROOT / "tests" / f"{theorem.evidence.test}.py").read_text(encoding="utf-8")
        assert re.search(rf"(\b|_){name}(\b|_)", text, re.IGNORECASE), f"{theorem.evidence.test} does not name {name}"
