"""Run cases of cases.py against the rule, from where the record stands: python tests/fuzz/fuzz.py N RECORD."""

import contextlib
import json
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]

import torch  # noqa: E402
from cases import Builder  # noqa: E402
from rule import TooLong, violations  # noqa: E402

from minibeft.show.files import write_json  # noqa: E402
from minibeft.show.record import provenance  # noqa: E402

EVERY = 100


def judge(builder: Builder, number: int, root: Path) -> tuple[str, list[str], list[str]]:
    """(what, command, violations) of one case, whose files go again."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    case = builder.case(number, root)
    try:
        wrong = violations(case)
    except TooLong:
        wrong = ["did not end in time"]
    return case.what, case.words, wrong


def run(first: int, last: int, record: Path | None = None, found: dict[str, Any] | None = None) -> dict[str, Any]:
    """Cases first to last, last left out; the record is written now and then, so that the next start goes on."""
    found = found or {"cases": first, "kinds": {}, "violations": []}
    kinds: Counter[str] = Counter(found["kinds"])
    with tempfile.TemporaryDirectory() as home, warnings.catch_warnings(action="ignore"), contextlib.chdir(home):
        builder = Builder(Path(home) / "sound")
        for number in range(found["cases"], last):
            what, words, wrong = judge(builder, number, Path(home) / "case")
            kinds[what.partition(":")[0]] += 1
            if wrong:
                short = [word.replace(home, "HOME")[:80] for word in words]
                told = [text.replace(home, "HOME") for text in wrong]
                found["violations"].append({"case": number, "what": what, "command": short, "wrong": told})
            found |= {"cases": number + 1, "kinds": dict(sorted(kinds.items()))}
            if record and ((number + 1) % EVERY == 0 or number + 1 == last):
                write_json(record, found | provenance())
                print(f"{number + 1} of {last}, {len(found['violations'])} violations", flush=True)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    file = Path(sys.argv[2]).absolute()
    before = json.loads(file.read_text()) if file.is_file() else None
    done = run(0, int(sys.argv[1]), file, before)
    sys.exit(bool(done["violations"]))
