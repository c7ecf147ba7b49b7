"""Two rows over the same seeds, compared pair by pair: a paired t test, and an exact test that assumes no distribution.

The exact test (Fisher's randomisation test) asks how often the mean difference would be this far from 0 if the sign of
each seed's difference were tossed. n seeds have 2ⁿ tosses, so its two-sided p is never below 2/2ⁿ: 0.0625 for five
seeds, however clear the difference. To go below 0.05 it needs six seeds, below 0.01 eight. How small a difference a
table can show is said too: the one that the t test at 0.05 finds in four of five such tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean, stdev

from minibeft.errors import BadInput, needs


@dataclass(frozen=True)
class Paired:
    """first − second over n seeds: mean, standard deviation, seeds in which first is above, and both two-sided p."""

    n: int
    mean: float
    std: float
    above: int
    p_t: float
    p_exact: float


def paired(first: Sequence[float], second: Sequence[float]) -> Paired | None:
    """Compare two rows whose entries belong to the same seeds; None for fewer than two seeds, which show nothing."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if len(differences) < 2:
        return None
    return Paired(
        n=len(differences),
        mean=mean(differences),
        std=stdev(differences),
        above=sum(d > 0 for d in differences),
        p_t=t_test(differences),
        p_exact=randomisation_test(differences),
    )


def t_test(differences: Sequence[float]) -> float:
    """Student's two-sided p; if all differences are equal, their variance is 0, and p is 1 if they are 0, else 0."""
    if len(set(differences)) == 1:
        return float(differences[0] == 0)
    with needs("scipy", "train", "the paired test"):
        from scipy.stats import ttest_1samp
    return float(ttest_1samp(differences, 0.0).pvalue)  # type: ignore[union-attr]


def half_interval(std: float, n: int) -> float:
    """Student's 95 % interval of the mean difference is the mean ± this."""
    with needs("scipy", "train", "the paired test"):
        from scipy.stats import t
    return float(t.ppf(0.975, n - 1)) * std / n**0.5


def detectable(std: float, n: int) -> float:
    """The smallest true mean difference, of differences that scatter by std, that the two-sided t test at 0.05 finds
    with probability 0.8: n seeds shift Student's t by √n δ/std."""
    with needs("scipy", "train", "the paired test"):
        from scipy.optimize import brentq
        from scipy.stats import nct, t
    limit = float(t.ppf(0.975, n - 1))
    power = lambda shift: float(nct.sf(limit, n - 1, shift) + nct.sf(limit, n - 1, -shift))  # noqa: E731
    return float(brentq(lambda shift: power(shift) - 0.8, 0.0, 2 * limit + 2)) * std / n**0.5  # type: ignore[arg-type]


def randomisation_test(differences: Sequence[float]) -> float:
    """The share of the 2ⁿ sign tosses whose sum is at least as far from 0 as the one that was seen."""
    seen = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in tosses(len(differences))]
    rounding = 1e-12 * sum(map(abs, differences))  # the same sum in another order
    return sum(each >= seen - rounding for each in sums) / len(sums)


def correlations(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> list[float]:
    """Spearman's rank correlation of two quantities over the same items, seed by seed: rows are items, columns seeds.

    It is 0 where all values of one quantity are equal and so have no order.
    """
    with needs("scipy", "train", "comparing orders"):
        from scipy.stats import spearmanr
    pairs = zip(zip(*first, strict=True), zip(*second, strict=True), strict=True)
    return [float(spearmanr(a, b)[0]) if len({*a}) > 1 < len({*b}) else 0.0 for a, b in pairs]  # type: ignore[arg-type]


def tosses(n: int) -> list[tuple[int, ...]]:
    """All ways to give n differences a sign; BadInput beyond the number that can be listed."""
    if n > 20:
        raise BadInput(f"the exact paired test lists 2^{n} cases; give at most 20 seeds")
    return list(product((1, -1), repeat=n))


def least_p(n: int) -> float:
    """The smallest p that the exact test can give with n seeds."""
    return 2 / 2**n
