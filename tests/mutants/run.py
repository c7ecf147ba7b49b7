"""Plant faults of mutate.py and see whether a test notices: python tests/mutants/run.py N RECORD, N drawn from all.

Each of two processes imports the large packages and collects the tests, once. Each mutant then runs in a fork of it:
the code of one function is replaced, and the tests that execute the edited statement are run, the quickest first, until
one fails. Results are kept in build/mutants, so that the next start continues there; it tries surviving mutants again.
"""

import ast
import builtins
import gc
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from types import FunctionType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before peft and transformers import triton

import hypothesis  # noqa: E402
import peft  # noqa: E402, F401
import pytest  # noqa: E402
import transformers  # noqa: E402, F401
from mutate import Mutant, functions, mutants, traced  # noqa: E402

SUBJECTS = (
    "minibeft/theory/attention.py minibeft/theory/statements.py minibeft/models minibeft/certificate "
    "minibeft/surgery/simplify.py minibeft/surgery/source.py minibeft/surgery/equivalence.py "
    "minibeft/checkpoints/rewrite.py kernels/qkv_bias/reference.py kernels/bias_grad/reference.py"
).split()
TESTS = (
    "theory certificate families models surgery verification/test_verify.py checkpoints/test_rewrite.py "
    "checkpoints/test_config_reading.py checkpoints/test_serve.py kernels/test_qkv_bias.py "
    "kernels/test_qkv_operator.py kernels/test_triton_backend.py audit/test_certify_agrees.py training/test_train.py "
    "training/test_trajectory.py training/test_stack.py"
).split()
KEEP = ROOT / "build" / "mutants"  # what is known so far
REASONS = HERE / "survivors.json"  # of each mutant that lives: why
FEW, LONG = 60, 8.0  # at most so many tests per mutant, and so many seconds of CPU time without the mutant
SEED, CORES = 0, 2
MISSING = "its function is nowhere in memory"
REWRITE = "ignore::pytest.PytestAssertRewriteWarning"  # plugins are imported already


class Plugin:
    """pytest collects; `work` then has the items."""

    def __init__(self, work: Callable[[list[pytest.Item]], None]):
        self.work, self.failed = work, False

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.work(session.items)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    def fails(self, items: list[pytest.Item], seen: Callable[[pytest.Item, float, bool], None] | None = None) -> str:
        """Run the items until one fails; its name."""
        for item, after in zip(items, [*items[1:], None], strict=False):  # the last one has none after it
            self.failed, begun = False, time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if seen:
                seen(item, time.process_time() - begun, self.failed)
            elif self.failed:
                return item.nodeid
        return ""


def collected(tests: Iterable[str], work: Callable[[Plugin, list[pytest.Item]], None]) -> None:
    """Collect the tests and give them to `work`."""
    plugin = Plugin(lambda items: work(plugin, items))
    words = [
        "-q",
        "-n0",
        "-x",
        "--tb=native",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "-W",
        REWRITE,
        "--rootdir",
        str(ROOT),
        *tests,
    ]
    pytest.main(words, plugins=[plugin])


def forked(work: Callable[[], str], limit: float) -> str:
    """What `work` returns in a fork of this process; "time" when it takes more than `limit` of the processor."""
    reader, writer = os.pipe()
    folder = tempfile.mkdtemp()
    child = os.fork()
    if not child:
        os.setsid()
        os.close(reader)
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        os.environ["PYTEST_DEBUG_TEMPROOT"] = os.environ["TMPDIR"] = folder
        tempfile.tempdir = None
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 2))
        try:
            said = work()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode()[:4000])
        os._exit(0)
    os.close(writer)
    ended = patient(child, 60 * limit)
    said = os.read(reader, 4000).decode() if ended == 0 else "time" if ended else "clock"
    os.close(reader)
    os.system(f"rm -rf {folder}")
    return said


def patient(child: int, seconds: float) -> int | None:
    """The child's status; None when it had to be killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


Loaded = dict[str, dict[str, list[FunctionType]]]  # file → qualified name → the functions in memory


def loaded(files: list[str]) -> Loaded:
    """The functions of these modules, wherever they are held, imported if no test has; kernels/ is a link in the
    package."""
    for file in files:
        import_module("minibeft." + file.removeprefix("minibeft/").removesuffix(".py").replace("/", "."))
    found: Loaded = {file: defaultdict(list) for file in files}
    paths = {str(ROOT / file): file for file in files}
    named = {name: paths.get(os.path.realpath(name)) for name in {f.__code__.co_filename for f in every_function()}}
    for f in every_function():
        if file := named[f.__code__.co_filename]:
            found[file][f.__code__.co_qualname].append(f)
    return found


def every_function() -> list[FunctionType]:
    """All functions of this process."""
    return [f for f in gc.get_objects() if type(f) is FunctionType]


def replace_code(old: dict[str, list[FunctionType]], tree: ast.Module, only: str = "") -> int:
    """Give the functions of a module the code of this tree; how many there were."""
    found = 0
    for code in functions(compile(tree, "mutant", "exec", dont_inherit=True)):
        for f in old[code.co_qualname] if only in ("", code.co_qualname) else ():
            if f.__code__.co_freevars == code.co_freevars:
                f.__code__ = code
                found += 1
    return found


Covered = dict[str, dict[str, Any]]  # test → its seconds, and the statements that it runs


def cover(files: list[str], part: int) -> None:
    """Which statements each test executes, and how long it takes; tests that fail without a mutant are left out.

    part  the number of one of CORES parts of the test files, which are covered at the same time
    Results of an earlier start are kept, except for tests that execute a module that has changed since."""
    texts = {file: digest([file]) for file in files}
    found: Covered = {}
    for before in (json.loads(keep.read_text()) for keep in KEEP.glob("covered-*.json")):
        same = {file for file in files if before["texts"].get(file) == texts[file]}
        found |= {n: test for n, test in before["tests"].items() if {hit[0] for hit in test["hits"]} <= same}

    def work(plugin: Plugin, items: list[pytest.Item]) -> None:
        hits: set[tuple[str, int, int]] = set()
        builtins._hit = hits.add  # type: ignore[attr-defined]

        def save() -> None:
            (KEEP / f"covered-{part}.json").write_text(json.dumps({"texts": texts, "tests": found}))

        def seen(item: pytest.Item, seconds: float, failed: bool) -> None:
            if failed:
                print("fails without a mutant:", item.nodeid, flush=True)
            else:
                found[item.nodeid] = {"seconds": round(seconds, 3), "hits": sorted(hits)}
            hits.clear()
            if len(found) % 10 == 0:
                save()

        for file, old in loaded(files).items():
            replace_code(old, traced((ROOT / file).read_text(), file))
        modules = list(dict.fromkeys(item.path for item in items))[part::CORES]
        plugin.fails([item for item in items if item.path in modules and item.nodeid not in found], seen)
        save()

    collected((f"tests/{t}" for t in TESTS), work)


Running = dict[tuple[Any, ...], list[str]]  # statement → the tests that run it, the quickest first
Ground = dict[tuple[str, str], frozenset[int]]  # test and module → the lines that it runs


def running(covered: Covered) -> tuple[Running, Ground]:
    """Which tests run a statement, and which part of each module a test runs."""
    tests: Running = defaultdict(list)
    lines: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in sorted(covered, key=lambda n: covered[n]["seconds"]):
        for file, line, column in covered[name]["hits"]:
            tests[file, line, column].append(name)
            lines[name, file].add(line)
    return tests, {key: frozenset(found) for key, found in lines.items()}


def choose(mutant: Mutant, covered: Covered, tests: Running, ground: Ground, *, lived: bool) -> list[str]:
    """The tests for a mutant: a few of those that execute its statement; if it has survived before, as many quick ones
    as fit into four times the time.

    They alternate: one that executes a line of the module that no earlier one does, then one by its name, the quickest
    case of each test first, then the second of each, because cases of one test notice much the same."""
    names = tests[(mutant.file, *mutant.statement)]
    cases, order, wide, seen = defaultdict[str, int](int), dict[str, int](), list[str](), set[int]()
    for name in names:
        order[name] = cases[name.partition("[")[0]]
        cases[name.partition("[")[0]] += 1
        wide += [] if ground[name, mutant.file] <= seen else [name]
        seen |= ground[name, mutant.file]
    by_turns = zip_longest(wide, names if lived else sorted(names, key=order.__getitem__))
    most, long = (len(names), 4 * LONG) if lived else (FEW, LONG)
    spent, chosen = 0.0, list[str]()
    for name in dict.fromkeys(n for pair in by_turns for n in pair if n):
        seconds = covered[name]["seconds"]
        if not chosen or (spent + seconds <= long and len(chosen) < most):
            spent += seconds
            chosen.append(name)
    return chosen


def judge(todo: list[Mutant], covered: Covered, tell: Callable[[Mutant, str], None]) -> None:
    """Run the tests of each mutant, with it; more of them where none of the first fails."""

    def work(plugin: Plugin, items: list[pytest.Item]) -> None:
        by_name, old = {item.nodeid: item for item in items}, loaded(sorted({m.file for m in todo}))
        tests, ground = running(covered)
        gc.freeze()

        def with_it(mutant: Mutant, tree: ast.Module, *, lived: bool) -> str:
            names = [name for name in choose(mutant, covered, tests, ground, lived=lived) if name in by_name]

            def plant() -> str:
                found = replace_code(old[mutant.file], tree, mutant.function)
                return plugin.fails([by_name[name] for name in names]) if found else MISSING

            return forked(plant, 5 + 3 * sum(covered[name]["seconds"] for name in names)) if names else ""

        for mutant in todo[:1]:
            tree = ast.parse((ROOT / mutant.file).read_text())
            assert not with_it(mutant, tree, lived=False), "fails without a mutant"
        for mutant in todo:
            tell(mutant, with_it(mutant, mutant.tree, lived=False) or with_it(mutant, mutant.tree, lived=True))

    collected((f"tests/{t}" for t in TESTS), work)


def in_forks(*works: Callable[[], None]) -> None:
    """Do these at once, each in a fork, so that this process has imported nothing of minibeft afterwards."""
    children = []
    for work in works:
        if not (child := os.fork()):
            try:
                work()
            finally:
                sys.stdout.flush()
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def subjects() -> list[str]:
    """The modules to mutate."""
    found = [p for s in SUBJECTS for p in ([ROOT / s] if s.endswith(".py") else sorted((ROOT / s).rglob("*.py")))]
    return [str(p.relative_to(ROOT)) for p in found if p.name != "__init__.py"]


def main(count: int, record: Path) -> None:
    """Cover, judge what is not judged yet of the first `count` in a drawn order, write the record."""
    os.chdir(ROOT)
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile(
        "mutants", max_examples=12, deadline=None, derandomize=True, database=None, phases=phases,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )  # fmt: skip
    torch.set_num_threads(1)
    files = subjects()
    KEEP.mkdir(parents=True, exist_ok=True)
    in_forks(*(partial(cover, files, part) for part in range(CORES)))
    parts = [json.loads((KEEP / f"covered-{part}.json").read_text())["tests"] for part in range(CORES)]
    covered = {name: test for part in parts for name, test in part.items()}
    everything = [m for f in files for m in mutants(ROOT, f)]
    everything.sort(key=lambda m: sha256(f"{SEED} {m.key}".encode()).digest())  # the same ones after an edit elsewhere
    everything, total = everything[:count], len(everything)
    results, texts = KEEP / "results.jsonl", {f: digest([f]) for f in files}
    known = results_of(results, texts)
    todo = sorted((m for m in everything if not known.get(m.key)), key=lambda m: m.key in known)  # new ones first
    print(f"{len(everything)} of {total} mutants, {len(todo)} to judge, {len(covered)} tests", flush=True)

    def tell(mutant: Mutant, by: str) -> None:
        with results.open("a") as stream:
            stream.write(json.dumps([mutant.key, texts[mutant.file], by], ensure_ascii=False) + "\n")
        print(f"{mutant.key}\n    {by or 'LIVES'}", flush=True)

    in_forks(*(partial(judge, todo[i::CORES], covered, tell) for i in range(min(CORES, len(todo)))))
    write_record(record, total, everything, results_of(results, texts))


def digest(files: list[str]) -> str:
    """Of the modules' texts."""
    return sha256("".join((ROOT / file).read_text() for file in files).encode()).hexdigest()[:12]


def results_of(file: Path, texts: dict[str, str]) -> dict[str, str]:
    """Mutant → the test that noticed it, "" for none, as far as its module still has the same text."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {key: by for key, text, by in lines if texts.get(key.partition(":")[0]) == text}


def write_record(record: Path, all_of_them: int, everything: list[Mutant], known: dict[str, str]) -> None:
    """Per module the number of mutants and of killed ones; for each surviving mutant the reason."""
    from minibeft.show.files import write_json
    from minibeft.show.record import provenance

    reasons = json.loads(REASONS.read_text())
    modules: dict[str, dict[str, int]] = defaultdict(lambda: {"mutants": 0, "killed": 0})
    survivors = {}
    planted = [mutant for mutant in everything if known.get(mutant.key) not in (None, MISSING)]
    for mutant in sorted(planted, key=lambda m: m.key):
        modules[mutant.file]["mutants"] += 1
        modules[mutant.file]["killed"] += bool(known[mutant.key])
        if not known[mutant.key]:
            survivors[mutant.key] = reasons.get(mutant.key, "no reason yet")
    total = {part: sum(m[part] for m in modules.values()) for part in ("mutants", "killed")}
    found = {
        "drawn from": all_of_them,
        **total,
        "score": total["killed"] / total["mutants"],
        "seed": SEED,
        "modules": modules,
    }
    write_json(record, provenance() | found | {"survivors": survivors})
    print(f"{total['killed']} of {total['mutants']} killed")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]).absolute())
