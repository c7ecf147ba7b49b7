"""The metrics of GLUE and SuperGLUE: accuracy, F1, Matthews, Pearson and Spearman."""

from typing import Literal

import numpy as np

from minibeft.errors import needs

Metric = Literal["accuracy", "f1", "f1_macro", "matthews", "pearson", "spearman"]


def score(metric: Metric, predicted: np.ndarray, labels: np.ndarray) -> float:
    """One metric, by scikit-learn or scipy (the extra `train`), as a fraction of one; both (N,).

    A correlation with a constant, which is undefined, counts as 0: nothing was learned.
    """
    if metric == "accuracy":  # without scikit-learn, whose import takes a second
        return float(np.mean(predicted == labels))
    with needs("scikit-learn and scipy", "train", f"the metric {metric}"):
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import f1_score, matthews_corrcoef
    if metric in ("pearson", "spearman"):
        if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
            return 0.0
        correlate = pearsonr if metric == "pearson" else spearmanr
        return float(correlate(predicted, labels)[0])  # type: ignore[arg-type]
    if metric == "matthews":
        return float(matthews_corrcoef(labels, predicted))
    average = "macro" if metric == "f1_macro" else "binary"
    return float(f1_score(labels, predicted, average=average, zero_division=0))  # type: ignore[arg-type]
