"""The tables of README.md, EVIDENCE.md and kernels/README.md, made from the committed records; `make readme` runs this
and rewrites them.

A block between <!-- evidence: NAME --> and <!-- end --> is the table that the function NAME below makes.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import stdev
from typing import Any

import evidence_speed

from minibeft.atlas import page as atlas_page
from minibeft.benchmarks.curves import render as costs
from minibeft.benchmarks.serve import render as serving
from minibeft.reproduce import paper
from minibeft.reproduce.gradients import render as gradient_grids
from minibeft.reproduce.ranking import ranking_grids
from minibeft.reproduce.report import by_regime, difference, orders, predictions, results, search, seeds, spread
from minibeft.reproduce.statistics import half_interval, least_p, paired
from minibeft.show import record as show_record
from minibeft.show.grid import Grid
from minibeft.theory.theorems import THEOREMS

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "EVIDENCE.md", ROOT / "kernels" / "README.md")


def record(name: str) -> dict[str, Any]:
    """A committed record."""
    return json.loads((ROOT / "records" / f"{name}.json").read_text(encoding="utf-8"))


def made_by(found: dict[str, Any], file: str) -> str:
    """The line under a table: command, versions, machine, file."""
    return f"{show_record.made_by(found, '`')}: [records/{file}.json](records/{file}.json)"


def ratio(measurement: dict[str, float]) -> float:
    return measurement["value"] / measurement["allowed"] if measurement["allowed"] else float(measurement["value"] > 0)


def measured(found: dict[str, Any], theorem: str) -> str:
    """The measurement of a theorem that comes closest to its allowance, or exceeds it most."""
    checks = [check for check in found["checks"] if check["theorem"] == theorem]
    if not checks:
        return ""
    check = max(checks, key=lambda c: max(map(ratio, c["measurements"])))
    worst = max(check["measurements"], key=ratio)
    verdict = {"holds": "", "fails, as it must": "fails: "}[check["verdict"]]
    return f"{verdict}{worst['value']:.1e} {'≤' if not verdict else '>'} {worst['allowed']:.1e}"


def same_epochs() -> str:
    """K6: at how many epochs of the protocol's runs {b_k, head} and {head} have the same validation accuracy."""
    pairs = [pair for pair in record("reproduce-biases")["same"] if not pair["held_out"]]
    same, epochs = (sum(pair[key] for pair in pairs) for key in ("same_epochs", "epochs"))
    return f"[same accuracy](records/reproduce-biases.json) at {same} of {epochs} epochs"


def theorems() -> str:
    """A row for each statement: what proves it, what tests it, what was measured on two real models."""
    proofs = {row["name"]: row for row in record("prove")["statements"]}
    bert, llama = record("verify-minilm"), record("verify-stories260k")
    header = ("", "says", "proof: steps, counterexamples", "theorems in Coq", "tests", "BERT", "LLaMA (rotary)")
    rows = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, theorem in THEOREMS.items():
        proof = proofs[name]
        counts = f"{len(proof['steps'])}, {len(proof['counterexamples'])}"
        status = counts if proof["status"] == "proved" else f"{proof['status']} ({counts})"
        tests = Path("tests", f"{theorem.evidence.test}.py")
        test = f"[{tests.stem}]({tests})"
        on_bert = same_epochs() if name == "K6" else measured(bert, name)
        formal = f"{len(theorem.evidence.theorems(name)) or ''}"
        cells = (name, theorem.title, status, formal, test, on_bert, measured(llama, name))
        rows.append(f"| {' | '.join(cells)} |")
    lines = ["", "Measured ≤ allowed by theorem and rounding, the worst layer; from", ""]
    lines += [f"- {made_by(record(file), file)}" for file in ("prove", "verify-minilm", "verify-stories260k")]
    return "\n".join(rows + lines)


def summary() -> str:
    """What README's first table says of each bias."""
    found = record("reproduce-biases")
    cells = {(cell["row"], cell["rate"]): spread(cell["scores"]) for cell in found["cells"]}
    published = paper.columns("biases", "sst2")
    ((_, figures),) = published.items()
    bert = record("verify-minilm")
    says = {
        "v": ("b_v", "V1: a shift, the same for every token", measured(bert, "V1")),
        "q": ("b_q", "Q3: a limited effect; it adds the same to the logits of every query (Q4)", measured(bert, "Q3")),
        "k": ("b_k", "K1, K2: no effect, no gradient", measured(bert, "K1")),
        "none": ("no bias, the head alone", "K3: the same as b_k, at every step", same_epochs()),
        "all": ("every bias of the model", "", ""),
    }
    rows = ["| bias | theorem | measured on a real BERT | accuracy here | in the paper |", "|---" * 5 + "|"]
    for row, (bias, theorem, on_bert) in says.items():
        here = f"{cells[row, 'protocol']}; own rate {cells[row, 'own']}"
        rows.append(f"| {bias} | {theorem} | {on_bert} | {here} | {figures.get(row, '')} |")
    note = (
        "Accuracy in percent on SST-2 with 1,000 training sentences, here of a small BERT (all-MiniLM-L6-v2) over "
        f"{seeds(found)}, in the paper of BERT-base-cased; ≤ is what theorem and rounding allow."
    )
    return "\n".join([*rows, "", note])


SHOWN = ("K1", "K2", "Q2", "Q3", "Q4", "V1", "V2", "V3")


def verify_lines() -> str:
    """A check of each of these statements, as verify found it on the real BERT."""
    checks = {check["theorem"]: check for check in record("verify-minilm")["checks"]}
    lines = []
    for name in SHOWN:
        worst, what = max(checks[name]["measurements"], key=ratio), checks[name]["what"].removesuffix(", but for")
        lines.append(f"{name}  {what:<66}{worst['value']:.1e} ≤ {worst['allowed']:.1e}  {checks[name]['verdict']}")
    return "\n".join(["```", *lines, "```"])


def norms() -> str:
    """‖b_q‖, ‖b_k‖ and ‖b_v‖ of the real BERT, layer by layer (K7)."""
    found = record("verify-minilm")
    rows = ["| layer | ‖b_q‖ | ‖b_k‖ | ‖b_v‖ |", "|---|---|---|---|"]
    rows += [f"| {i} | {row['q']:.2f} | {row['k']:.3f} | {row['v']:.2f} |" for i, row in enumerate(found["norms"])]
    return "\n".join(rows)


def simplified() -> str:
    """A real classifier before and after simplify, both run in transformers on the SST-2 dev set."""
    found = record("simplify")
    steps = ", ".join(f"b_{step['bias']}: {step['action']} ({step['theorem']})" for step in found["simplify"]["steps"])
    rows = [
        "| | before | after |",
        "|---|---|---|",
        f"| accuracy (of {found['sentences']}) | {found['accuracy_before']:.4f} | {found['accuracy_after']:.4f} |",
        f"| same predictions | | {found['same_predictions']} of {found['sentences']} |",
        f"| largest difference of a logit | | {found['largest_logit_difference']:.1e} |",
        "",
        f"{steps}; {made_by(found, 'simplify')}",
    ]
    return "\n".join(rows)


def key_cache() -> str:
    """What a shift of the cached keys does on a LLaMA-style model and on a BERT."""
    parts = ["quantkeys-stories260k", "quantkeys-minilm"]
    return "\n\n".join(f"{record(file)['model']}:\n\n{one_key_cache(file)}" for file in parts)


def one_key_cache(file: str) -> str:
    """By how much subtracting the mean key lowers the attention's relative error, by quantiser and width."""
    found = record(file)
    error = {(row["quantiser"], row["bits"], row["shift"]): row["output"] for row in found["rows"]}
    quantisers, widths = ({row[key]: None for row in found["rows"]} for key in ("quantiser", "bits"))
    rows = [f"| quantiser | {' | '.join(f'{bits} bits' for bits in widths)} |", "|---" * (len(widths) + 1) + "|"]
    for quantiser in quantisers:
        pairs = [(error[quantiser, bits, "zero"], error[quantiser, bits, "mean"]) for bits in widths]
        cells = [f"{zero:.4f} → {mean:.4f} ({mean / zero - 1:+.1%})" for zero, mean in pairs]
        rows.append(f"| {quantiser} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", made_by(found, file)])


def compared(file: str, claim: str) -> str:
    """A table of terms: scores, orders, importance where it was measured, and K3 on its pairs of runs."""
    found = record(file)
    same = found["same"]
    furthest = max(same, key=lambda pair: pair["difference"])
    epochs = sum(pair["same_epochs"] for pair in same), sum(pair["epochs"] for pair in same)
    k3 = (
        f"K3, {claim}: in {sum(pair['ok'] for pair in same)} of {len(same)} pairs of runs, with the same metrics at "
        f"{epochs[0]} of {epochs[1]} epochs; the heads differ by at most {furthest['difference']:.1e} "
        f"(rounding allows {furthest['allowed']:.1e})."
    )
    tables = [grid.markdown() for grid in (results(found), orders(found), predictions(found)) if grid.rows]
    return "\n\n".join((*tables, k3, made_by(found, file)))


def biases() -> str:
    """The biases one by one, at the protocol's rate and at each row's own."""
    return compared("reproduce-biases", "b_k = none")


def reparam() -> str:
    """The biases one by one in every form."""
    return compared("reproduce-reparam", "b_k the same in every reparametrised form")


def regimes() -> str:
    """The biases in three regimes, and whether importance predicts their scores there."""
    return compared("reproduce-regimes", "b_k = none")


# Record → the family, and what the checkpoint is.
DECODERS = {
    "small-opt": "OPT, trained here",
    "small-llama": "LLaMA, trained here",
    "small-gptj": "GPT-J, trained here",
    "stories260k": "LLaMA, stories260k",
}


def bias_free() -> str:
    """Small decoders: accuracy as they are and with one bias trained, and what the trained b_k does to logits."""
    rows = [
        "| | zero-shot | b_v | b_q | b_k | b_k must equal zero-shot | b_k moves by | logits by |",
        "|---" * 8 + "|",
    ]
    differences = ["| points | b_v − b_q | b_q − b_k | b_v − b_k |", "|---" * 4 + "|"]
    lines = []
    records = {name: record(f"reproduce-bias-free-{name}") for name in DECODERS}
    for name, found in records.items():
        what = DECODERS[name]
        scores = {cell["row"]: spread(cell["scores"]) for cell in found["cells"]}
        null = found["key_bias"]["status"] == "null"
        kept = f"{sum(pair['ok'] for pair in found['same'])} of {len(found['same'])} seeds"
        must = f"yes (K1): in {kept}" if null else f"no ({found['key_bias']['theorem']}): rotary positions"
        drift = found["drift"].values()
        largest = [f"{max(row[key] for row in drift):.1e}" for key in ("moved", "effect")]
        rows.append(f"| {' | '.join((what, *(scores[row] for row in ('none', 'v', 'q', 'k')), must, *largest))} |")
        cells = [f"{difference(verdict)} (p = {verdict['p_exact']:.2g})" for verdict in found["verdicts"]]
        differences.append(f"| {' | '.join((what, *cells))} |")
        made = found.get("pretraining")
        origin = f", a model of `{made['command']}`, {made['parameters']:,} parameters" if made else ""
        lines.append(f"- {made_by(found, f'reproduce-bias-free-{name}')}{origin}")
    (number,) = {len(found["seeds"]) for found in records.values()}
    note = (
        f"Accuracy in percent on SST-2's 872 sentences, mean ± standard deviation over {number} seeds (the order of "
        "the examples); differences with their 95 % interval (t) and the exact test's p, which cannot be below "
        f"{least_p(number):.2g}."
    )
    return "\n".join([*rows, "", *differences, "", note, "", *lines])


def rate_question() -> str:
    """The gradients before the first update, the search over rates, and b_q with neither Adam's eps nor clipping."""
    found, free = record("gradients"), record("finetune-q-free")
    sentence, grid = gradient_grids(found)
    assert isinstance(grid, Grid)
    scores, settings = [row["validation"]["accuracy"] for row in free["last"]], free["settings"]
    as_it_is = protocol_scores("q", [row["seed"] for row in free["last"]])
    test = paired(scores, as_it_is)
    assert test, "two seeds or more"
    without = (
        f"b_q at the protocol's rate with eps {settings['eps']:g} and a clip of {settings['clip']:g}, that is with "
        f"neither: {spread(scores)} %; with both as the protocol has them: {spread(as_it_is)} %. Over "
        f"{test.n} seeds the means differ by {100 * test.mean:+.1f} ± {100 * half_interval(test.std, test.n):.1f} "
        "(95 % interval)."
    )
    tables = grid.markdown(), *searches("reproduce-biases"), *searches("reproduce-rates")
    made = made_by(found, "gradients"), made_by(record("reproduce-rates"), "reproduce-rates")
    return "\n\n".join([str(sentence), *tables, without, *made, made_by(free, "finetune-q-free")])


def searches(file: str) -> list[str]:
    """What each learning rate gives: one table per regime."""
    found = record(file)
    return [search(found, regime).markdown() for regime in by_regime(found)]


def ranking() -> str:
    """How the three measures rank the terms, beside the paper, and what b_k's place is worth."""
    found = record("reproduce-ranking")
    return "\n\n".join([*(grid.markdown() for grid in ranking_grids(found)), made_by(found, "reproduce-ranking")])


def protocol_scores(row: str, of: list[int] | None = None) -> list[float]:
    """A row's accuracy at the protocol's rate, of these seeds, or of all."""
    found = record("reproduce-biases")
    (cell,) = (cell for cell in found["cells"] if (cell["row"], cell["rate"]) == (row, "protocol"))
    by_seed = dict(zip(found["seeds"], cell["scores"], strict=True))
    return [by_seed[seed] for seed in of or found["seeds"]]


def both_paths() -> tuple[list[float], list[float]]:
    """b_v's accuracy by seed as minibeft trains it, and with padding and plain attention."""
    plain = {row["seed"]: row["validation"]["accuracy"] for row in record("finetune-plain")["last"]}
    return protocol_scores("v", [*plain]), [*plain.values()]


def same_accuracy() -> str:
    """The fast and the plain path over the same seeds."""
    fast, plain = both_paths()
    test = paired(fast, plain)
    assert test, "both paths need two seeds or more"
    return (
        f"Accuracy over {test.n} seeds, mean ± standard deviation: fast {spread(fast)} %, plain {spread(plain)} %. The "
        f"means differ by {100 * abs(test.mean):.2f} (p = {test.p_t:.2f}, paired), one standard error is "
        f"{100 * stdev(fast) / test.n**0.5:.2f} and {100 * stdev(plain) / test.n**0.5:.2f}: "
        f"{made_by(record('finetune-plain'), 'finetune-plain')}"
    )


def speed() -> str:
    """minibeft beside its peers on one machine."""
    found = record("bench-train")
    return "\n".join([*evidence_speed.speed(found), "", made_by(found, "bench-train")])


def recipe() -> str:
    """The shortest run that shows b_v working."""
    found, bare = record("finetune-recipe"), record("finetune-recipe-none")
    given = found["settings"]
    with_it, without = (100 * each["last"][0]["validation"]["accuracy"] for each in (found, bare))
    return (
        f"See b_v work, in under a minute on two cores that are free: "
        f"`minibeft finetune minilm --data DIR --learning-rate {given['learning_rate']:g} --epochs {given['epochs']} "
        f"--baseline --out runs/short` reads {given['examples']:,} sentences of SST-2 "
        f"and then gets {with_it:.1f} % of the dev sentences right, against {without:.1f} % with the head alone "
        "(a rate tuned for short runs, ten times the paper's; "
        "[one seed](records/finetune-recipe.json))."
    )


def stack() -> str:
    """Many runs as one packed batch, against one after the other."""
    found = record("bench-stack")
    rows = ["| runs | batch | one after the other | as one | as one is |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        times = row["stack_is_times_as_fast"]
        alone, together = (f"{rate['median']:.0f}" for rate in row["rates"].values())
        span = f"{times['median']:.2f} × ({times['min']:.2f}–{times['max']:.2f})"
        rows.append(f"| {row['runs']} | {row['batch']} | {alone} | {together} | {span} |")
    memory = found["peak_bytes_above_weights"]
    note = (
        f"Examples per second; the losses are the same. Memory above the weights: {memory['stack'] / 2**20:.0f} MiB "
        f"for {memory['runs']} runs, {memory['stack_is_times_one_run']:.1f} × that of one."
    )
    return "\n".join([*rows, "", note, "", made_by(found, "bench-stack")])


def serve() -> str:
    """Many adapters in one stream of requests, against other ways to serve them."""
    found = record("bench-serve")
    (grid,) = serving(found)
    return "\n\n".join((grid.markdown(), made_by(found, "bench-serve")))


def curves() -> str:
    """What one more run, adapter, layer, … costs, beside the matrix products alone."""
    found = record("bench-curves")
    return "\n\n".join((costs(found).markdown(), made_by(found, "bench-curves")))


def kept() -> str:
    """What autograd keeps, for several ways to fine-tune."""
    found = record("bench-memory")
    return "\n".join([*evidence_speed.kept(found), "", made_by(found, "bench-memory")])


def binaries() -> str:
    """What the compiler makes of the kernels."""
    found = record("kernel-binaries")
    name = "records/kernel-binaries.json"
    made = f"`make binaries`, Triton {found['versions']['triton']}, {found['date']}: [{name}](../{name})"
    return "\n".join([*evidence_speed.binaries(found), "", made])


def atlas() -> str:
    """The headline numbers of the atlas."""
    return f"{atlas_page.finding(record('atlas'))} [The table of all](records/atlas.html)."


TABLES: dict[str, Callable[[], str]] = {
    "atlas": atlas,
    "summary": summary,
    "verify_lines": verify_lines,
    "theorems": theorems,
    "norms": norms,
    "simplified": simplified,
    "key_cache": key_cache,
    "speed": speed,
    "same_accuracy": same_accuracy,
    "serve": serve,
    "curves": curves,
    "kept": kept,
    "binaries": binaries,
    "recipe": recipe,
    "stack": stack,
    "biases": biases,
    "reparam": reparam,
    "regimes": regimes,
    "bias_free": bias_free,
    "ranking": ranking,
    "rate_question": rate_question,
}
BLOCK = re.compile(r"(<!-- evidence: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The text with every block made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}{TABLES[block[2]]()}\n{block[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
