"""The paper's figures, as data. Source: BEFT, arXiv 2509.15974 (ACL 2026): Fig. 2 and the tables on SST-2.

Accuracies in percent on SST-2's validation split after training on 1,000 sentences, the last epoch's, which in the
official run is also the best. The encoder figures are of BERT-base-cased.
"""

TASK, REGIME = "sst2", "low"

# What trains → accuracy with v, q and k; a row's name is the term and the form (plan.py).
FORMS = {
    "": (85.8, 80.0, 77.2),
    " plain": (85.8, 80.0, 77.2),
    " lora": (85.0, 82.6, 76.9),
    " vera": (82.2, 81.8, 81.7),
    " dora": (86.0, 83.5, 76.9),
}
ENCODER = {f"{term}{form}": score for form, scores in FORMS.items() for term, score in zip("vqk", scores, strict=True)}

# Decoders without biases: model → term that was added → accuracy.
BIAS_FREE = {
    "LLaMA2-7B": {"v": 94.9, "q": 90.0, "k": 68.0},
    "DeepSeek-Coder-Base-1.3B": {"v": 76.9, "q": 67.4, "k": 60.3},
    "GPT-J-6B": {"v": 92.8, "q": 88.3, "k": 63.8},
}

# Mean over the 12 layers, all biases trained together. Of Fisher the protocol records the order alone.
RANKING = {
    "mag_angle": {"v": 0.350, "m1": 0.137, "m2": 0.121, "ln2": 0.103, "m3": 0.087, "q": 0.073, "ln1": 0.033, "k": 0.0},
    "magnitude": {"m2": 0.022, "q": 0.021, "ln1": 0.016, "m1": 0.015, "m3": 0.015, "v": 0.015, "ln2": 0.015, "k": 0.0},
}
FISHER_ORDER = ("ln2", "m1", "ln1", "v", "m3", "m2", "q", "k")

# Validation accuracy by epoch, as fractions: the official run, seed 0.
_V = ".60789 .65711 .76491 .82339 .82339 .84748 .85206 .83372 .84977 .84748 .85436 .85206 .84748 .85092 .84977 .85784"
_Q = ".55734 .52638 .64564 .71564 .58832 .66628 .75459 .71445 .77638 .75803 .77064 .74427 .78326 .79358 .78211 .80046"
_K = ".54243 .51261 .62516 .70872 .54472 .61927 .74312 .68234 .75229 .68693 .71904 .63876 .72706 .76261 .73289 .77179"
CURVES = {term: [float(x) for x in text.split()] for term, text in (("v", _V), ("q", _Q), ("k", _K))}


def columns(table: str, task: str) -> dict[str, dict[str, float]]:
    """The paper's figures to set beside a table: model → row → accuracy in the low regime; none for other tasks."""
    if task != TASK:
        return {}
    return BIAS_FREE if table == "bias-free" else {"BERT-base-cased": ENCODER}
