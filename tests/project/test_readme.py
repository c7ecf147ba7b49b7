"""README.md says what the records say, and names only what is there."""

import re

import pytest
import typer.core
import typer.main
from evidence import BLOCK, ROOT, TABLES, filled

from minibeft.cli.main import app
from minibeft.theory.theorems import THEOREMS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_records():
    assert filled(README) == README, "run: make readme"
    assert {block[2] for block in BLOCK.finditer(README)} == set(TABLES)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "kernels/README.md", "proofs/TRUST.md"])
def test_every_link_into_the_repository_leads_somewhere(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert targets
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


def test_every_command_exists():
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    commands = set(group.commands)
    used = set(re.findall(r"^minibeft (\w+)", README, re.MULTILINE))
    assert used
    assert used <= commands


def test_each_theorem_is_named_by_the_tests_that_the_table_links():
    for name, theorem in THEOREMS.items():
        text = (ROOT / "tests" / f"{theorem.evidence.test}.py").read_text(encoding="utf-8")
        assert re.search(rf"(\b|_){name}(\b|_)", text, re.IGNORECASE), f"{theorem.evidence.test} does not name {name}"
