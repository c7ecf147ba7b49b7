"""A table's record as tables: the paper's figures beside the measured, the verdicts, K3, the search."""

from collections.abc import Sequence
from itertools import groupby
from statistics import mean, median, stdev
from typing import Any

from minibeft.reproduce import paper
from minibeft.reproduce.statistics import correlations, detectable, half_interval, randomisation_test
from minibeft.show.grid import Grid

Record = dict[str, Any]
TITLES = {"mag_angle": "Mag+Angle", "magnitude": "Magnitude", "fisher": "Fisher"}


def grids(record: Record) -> list[Grid]:
    """All tables of a record, in the order of reading."""
    found = [results(record)] if record["cells"] else []
    found += [orders(record), predictions(record), sameness(record), drift_grid(record)]
    found += [search(record, regime) for regime in by_regime(record)]
    return [grid for grid in found if grid.rows]


def results(record: Record) -> Grid:
    """The paper's figures beside the measured ones; for several regimes only the measured ones, regime by regime."""
    note = f"{record['metric']} in percent on {record['task']}, {record['model']}, mean ± standard deviation over "
    note += seeds(record) + origin(record)
    return of_several_regimes(record, note) if several(record) else of_one_regime(record, note)


def of_one_regime(record: Record, note: str) -> Grid:
    """Each row's trainable parameters and scores, at the protocol's rate and at its own."""
    figures = paper.columns(record["table"], record["task"])
    own = {cell["row"]: cell for cell in record["cells"] if cell["rate"] == "own"}
    protocol = [cell for cell in record["cells"] if cell["rate"] == "protocol"]
    header = ["trained", "parameters", *(f"paper: {model}" for model in figures)]
    header += [f"here, at {protocol[0]['learning_rate']:g}", *["own rate", "here, at own rate"] * bool(own)]
    rows = []
    for cell in protocol:
        row = [cell["row"], f"{cell['numbers']:,}"]
        for of_model in figures.values():
            known = of_model.get(cell["row"]) if cell["regime"] == paper.REGIME else None
            row.append("" if known is None else f"{known:.1f}")
        row.append(spread(cell["scores"]))
        if tuned := own.get(cell["row"]):
            row += [f"{tuned['learning_rate']:g}", spread(tuned["scores"])]
        row += [""] * (len(header) - len(row))
        rows.append(tuple(row))
    return Grid(f"{record['table']}: the paper and here", tuple(header), rows, note)


def of_several_regimes(record: Record, note: str) -> Grid:
    """A row's scores in every regime at the protocol's rate, and then at its own rate, which is printed below them."""
    cells = {(cell["row"], cell["rate"], cell["regime"]): cell for cell in record["cells"]}
    columns = list(dict.fromkeys((rate, regime) for _, rate, regime in cells))
    rows = []
    for row in dict.fromkeys(row for row, _, _ in cells):
        found = [cells.get((row, *column)) for column in columns]
        texts = [
            "" if cell is None else spread(cell["scores"]) + f"\nat {cell['learning_rate']:g}" * (cell["rate"] == "own")
            for cell in found
        ]
        rows.append((row, *texts))
    (protocol,) = {cell["learning_rate"] for cell in cells.values() if cell["rate"] == "protocol"}
    header = [f"{regime}, {'own rate' if rate == 'own' else f'at {protocol:g}'}" for rate, regime in columns]
    epochs = {record["runs"][cell["runs"][0]]["epochs"] for cell in cells.values()}
    note += "; training examples: " + ", ".join(f"{regime} {size:,}" for regime, size in sizes(record).items())
    note += "; epochs: " + ", ".join(map(str, sorted(epochs)))
    return Grid(f"{record['table']}: the score by regime", ("trained", *header), rows, note)


def sizes(record: Record) -> dict[str, int]:
    """Regime → how many training examples it has."""
    return {cell["regime"]: record["runs"][cell["runs"][0]]["examples"] for cell in record["cells"]}


def seeds(record: Record) -> str:
    """5 seeds."""
    number = len(record["seeds"])
    return f"{number} seed{'s' * (number != 1)}"


def origin(record: Record) -> str:
    """How the model was trained, if it is one of ours (training/pretrain.py) and not one of the paper's."""
    made = record.get("pretraining")
    if made is None:
        return ""
    return (
        f". {record['model']}: {made['parameters']:,} parameters trained from scratch for {made['steps']} updates on "
        f"SST-2's training sentences by {made['command']}"
    )


def several(record: Record) -> bool:
    """Whether the table has more than one regime."""
    return len({cell["regime"] for cell in record["cells"]} | by_regime(record).keys()) > 1


def spread(scores: Sequence[float], sign: str = "") -> str:
    """72.3 ± 0.4, in percent; one score alone has no deviation. sign: "+" shows it always."""
    middle = f"{100 * mean(scores):{sign}.1f}"
    return f"{middle} ± {100 * stdev(scores):.1f}" if len(scores) > 1 else middle


def spread_of(values: Sequence[float]) -> str:
    """0.0123 ± 0.0004, whatever the size."""
    return f"{mean(values):.3g} ± {stdev(values):.1g}" if len(values) > 1 else f"{mean(values):.3g}"


def difference(verdict: Record) -> str:
    """The mean difference of two rows' scores, in points, with its 95 % interval."""
    return f"{100 * verdict['mean']:+.1f} ± {100 * half_interval(verdict['std'], verdict['n']):.1f}"


def orders(record: Record) -> Grid:
    """Which order holds, with the paired tests."""
    rows, scores = [], {(c["row"], c["rate"], c["regime"]): c["scores"] for c in record["cells"]}
    for v in record["verdicts"]:
        pairs = zip(*(scores[v[row], v["rate"], v["regime"]] for row in ("first", "second")), strict=True)
        differences = [first - second for first, second in pairs]
        where = f"{v['rate']} rate" + f", {v['regime']}" * several(record)
        tests = p(v["p_t"]), p(v["p_exact"]), f"{100 * detectable(v['std'], v['n']):.1f}"
        order, above = f"{v['first']} > {v['second']}", f"{v['above']} of {v['n']}"
        by = f"{difference(v)} ({100 * median(differences):+.1f})"
        rows.append((order, where, verdict(differences, v["p_t"]), by, above, *tests))
    note = (
        f"With {seeds(record)} the exact test (signs tossed) cannot give less than {record['least_p']:.3g}; to get "
        "below 0.05 it needs six. Difference: its mean with the 95 % interval (t), and its median. Seen from: the true "
        "difference that the t test finds in four of five such tables."
    )
    tests = "p, paired t", "p, exact", "seen from"
    header = ("order", "where", "holds", "difference (median)", "seeds in which", *tests)
    return Grid("which order holds", header, rows, note)


def predictions(record: Record) -> Grid:
    """Whether a measure of importance, from training all biases together, orders them as training each alone does."""
    rows = []
    for regime, measures in record.get("importance", {}).items():
        at = {c["row"]: c["scores"] for c in record["cells"] if (c["regime"], c["rate"]) == (regime, "protocol")}
        for measure, scores in measures.items():
            alone = {term: at[term] for term in scores}
            found = correlations([*scores.values()], [*alone.values()])
            half = f" ± {half_interval(stdev(found), len(found)):.2f}" if len(found) > 1 else ""
            rho = f"{mean(found):.2f}{half}", p(randomisation_test(found))
            rows.append((regime, TITLES[measure], descending(scores), descending(alone), *rho))
    note = (
        "scores: each term trained alone at the protocol's rate; ρ: Spearman's correlation of measure and score, mean "
        f"over {seeds(record)} with its 95 % interval (t); p, exact: signs tossed"
    )
    header = ("regime", "measure", "its order", "the scores' order", "ρ", "p, exact")
    return Grid("does importance predict the score?", header, rows, note)


def descending(values: dict[str, list[float]]) -> str:
    """The terms from the largest mean to the smallest, v > q = k."""
    by_mean = {term: mean(values[term]) for term in sorted(values, key=lambda term: -mean(values[term]))}
    return " > ".join(" = ".join(same) for _, same in groupby(by_mean, by_mean.__getitem__))


def verdict(differences: Sequence[float], p_t: float) -> str:
    """Whether the first row is above the second: in every seed, on average, or the other way round."""
    middle = mean(differences)
    if middle == 0:
        return "no, equal"
    if all(difference * middle > 0 for difference in differences):
        return "yes, in every seed" if middle > 0 else "no, the reverse in every seed"
    sure = "" if p_t < 0.05 else ", not significant"
    return f"on average{sure}" if middle > 0 else f"no, the reverse on average{sure}"


def p(value: float) -> str:
    """A p value, two digits."""
    return f"{value:.2g}"


def sameness(record: Record) -> Grid:
    """K3: pairs of runs that must be the same; or why they need not be."""
    if record["key_bias"]["status"] != "null":
        return free(record)
    rows = [
        (
            f"{s['second']} = {s['first']}",
            f"{s['learning_rate']:g}, seed {s['seed']}"
            + f", {s['regime']}" * several(record)
            + ", held out" * (s["held_out"] > 0),
            "yes" if s["ok"] else "NO",
            f"{s['difference']:.1e}",
            f"{s['allowed']:.1e}",
            f"{s['same_epochs']} of {s['epochs']}",
        )
        for s in record["same"]
    ]
    header = ("same run (K3)", "where", "holds", "largest difference", "rounding allows", "epochs of same metrics")
    return Grid(
        "training b_k is training without it",
        header,
        rows,
        "of any number that trained, b_k itself left out",
        {"NO": "bold red"},
    )


def free(record: Record) -> Grid:
    """Where b_k is not null: why, and how much training it changes the scores."""
    found = {c["row"]: c["scores"] for c in record["cells"] if c["rate"] == "protocol"}
    if not {"k", "none"} <= found.keys():
        return Grid("", (), [])
    differences = [k - none for k, none in zip(found["k"], found["none"], strict=True)]
    other = sum(difference != 0 for difference in differences)
    why = record["key_bias"]
    rows = [(why["status"], why["theorem"], spread(differences, "+"), f"{other} of {len(differences)}", why["reason"])]
    header = ("b_k", "theorem", "k − none", "seeds in which they differ", "because")
    return Grid("training b_k need not be training without it here", header, rows)


def drift_grid(record: Record) -> Grid:
    """How far b_k moves, on which its rank is based, and what effect that has."""
    rows = [
        (name, f"{row['moved']:.2e}", f"{row['effect']:.1e}", str(row["predictions_changed"]))
        for name, row in record.get("drift", {}).items()
    ]
    null = record["key_bias"]["status"] == "null"
    title = "b_k moves by rounding noise (K5), to no effect (K1)" if null else "b_k moves, and has an effect (K4)"
    header = ("b_k trained alone", "moved by", "effect on logits", "predictions changed")
    note = (
        "moved by: the mean over layers of ‖b' − b‖; effect: the largest change of a class's logit when b_k is put back"
    )
    return Grid(title, header, rows, note)


def by_regime(record: Record) -> dict[str, list[Record]]:
    """Regime → the searches in it."""
    found: dict[str, list[Record]] = {}
    for one in record["searches"]:
        found.setdefault(one["regime"], []).append(one)
    return found


def searching(record: Record, regime: str) -> list[Record]:
    """The runs of a regime's search: those that held-out examples judge."""
    return [run for run in record["runs"].values() if run["held_out"] and run["regime"] == regime]


def judged(record: Record, row: str, regime: str) -> dict[float, list[list[float]]]:
    """Learning rate → the held-out metric by epoch, one list per seed: what a row's search was judged on."""
    term, _, form = row.partition(" ")
    found: dict[float, list[list[float]]] = {}
    for run in searching(record, regime):
        if (run["terms"], run["form"]) == (term, form or "plain"):
            found.setdefault(run["learning_rate"], []).append(run["held_out"][record["metric"]])
    return dict(sorted(found.items()))


def search(record: Record, regime: str) -> Grid:
    """The search for each row's own rate."""
    searches = by_regime(record)[regime]
    rates = [f"{rate:g}" for rate, _ in searches[0]["scores"]]
    rows = []
    for s in searches:
        edge = " (edge)" if s["best"] in (s["scores"][0][0], s["scores"][-1][0]) else ""
        rows.append((s["row"], *(f"{100 * score:.1f}" for _, score in s["scores"]), f"{s['best']:g}{edge}"))
    runs = searching(record, regime)
    epochs = ", ".join(map(str, sorted({run["epochs"] for run in runs})))
    note = f"{record['metric']} in percent on held-out training examples, after {epochs} epochs of "
    note += f"{runs[0]['examples']:,} others; "
    note += "the first seed" if len({run["seed"] for run in runs}) < len(record["seeds"]) else seeds(record)
    note += "; edge: the best rate may lie beyond the grid"
    title = "the search for each row's own learning rate" + f", {regime}" * several(record)
    return Grid(title, ("trained", *rates, "best"), rows, note)
