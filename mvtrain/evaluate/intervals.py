"""How sure a figure is: bootstrap intervals over problems, Wilson intervals, and paired comparison.

Samples of one problem are not independent, so what is resampled is always the problem with all its samples.
Legend of shapes: P problems, C columns (figures of a problem), R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
Statistic = Callable[[np.ndarray], np.ndarray]
"""Means over problems (..., C) -> figure (...)."""

_CHUNK = 2_000_000
_LARGEST_DENOMINATOR = 1000
_MOST_SUMS = 500_000_000
"""Additions of an exact p-value; beyond them signs are drawn."""
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval, from a bootstrap over problems."""

    value: float
    low: float | None = None
    """None where there is one problem only."""
    high: float | None = None
    wilson: tuple[float, float] | None = None
    """Of a rate for which every problem scores 0 or 1, as with one sample each: Wilson's interval, problems as trials.
    Where all problems score the same, the bootstrap gives an interval without width, and this is the one to quote."""


@dataclass(frozen=True)
class PairedDifference:
    """Mean of b - a over the problems that both have."""

    num_problems: int
    mean_a: float
    mean_b: float
    difference: float
    low: float | None
    high: float | None
    p_value: float
    """Two-sided, of the hypothesis that a and b are exchangeable on every problem (sign flips)."""
    exact: bool
    """Whether all sign flips were counted, else `RESAMPLES` of them were drawn."""


def resampled_means(columns_PC: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means of each column over resamples of the problems, drawn with replacement. Shape (R, C)."""
    num_problems = len(columns_PC)
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK // num_problems)
    means = []
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = rng.integers(0, num_problems, (rows, num_problems)) + num_problems * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * num_problems).reshape(rows, num_problems)
        means.append(counts @ columns_PC / num_problems)
    return np.concatenate(means)


def bca_interval(
    columns_PC: np.ndarray, means_RC: np.ndarray, statistic: Statistic, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Bias-corrected and accelerated interval (Efron 1987) of a statistic of means; None for a single problem."""
    num_problems = len(columns_PC)
    if num_problems < 2:
        return None
    drawn = np.sort(statistic(means_RC))
    value = statistic(columns_PC.mean(axis=0))
    left_out = statistic((columns_PC.sum(axis=0) - columns_PC) / (num_problems - 1))
    deviations = left_out.mean() - left_out
    spread = float((deviations**2).sum())
    if drawn[0] == drawn[-1] or spread == 0.0:
        return float(value), float(value)
    below = np.searchsorted(drawn, value - 1e-12 * abs(value), "left")
    upto = np.searchsorted(drawn, value + 1e-12 * abs(value), "right")
    share = min(max((below + upto) / 2 / len(drawn), 1 / len(drawn)), 1 - 1 / len(drawn))
    bias, acceleration = _NORMAL.inv_cdf(share), float((deviations**3).sum()) / (6 * spread**1.5)
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    low, high = np.quantile(drawn, [_shifted(tail, bias, acceleration) for tail in tails])
    return float(low), float(high)


def _shifted(tail: float, bias: float, acceleration: float) -> float:
    """The quantile of the resamples that stands for `tail`."""
    z = bias + _NORMAL.inv_cdf(tail)
    return _NORMAL.cdf(bias + z / (1 - acceleration * z))


def wilson_interval(num_right: float, num: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval (1927) of a rate of `num` independent trials."""
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    rate, scale = num_right / num, 1 + z * z / num
    centre = (rate + z * z / (2 * num)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / num + (z / (2 * num)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def estimate_rate(scores: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of one score between 0 and 1 a problem."""
    column = np.asarray(scores, dtype=float)[:, None]
    return rate_from(column, resampled_means(column, resamples, seed))


def rate_from(column_P1: np.ndarray, means_R1: np.ndarray) -> Estimate:
    """As `estimate_rate`, from resamples that are there already."""
    interval = bca_interval(column_P1, means_R1, mean_of_first) or (None, None)
    certain = bool(np.isin(column_P1, (0.0, 1.0)).all())
    wilson = wilson_interval(float(column_P1.sum()), len(column_P1)) if certain else None
    return Estimate(float(column_P1.mean()), *interval, wilson)


def mean_of_first(means: np.ndarray) -> np.ndarray:
    return means[..., 0]


def ratio_of_first_two(means: np.ndarray) -> np.ndarray:
    """1.0 where both are nothing."""
    below = means[..., 1]
    return np.where(below > 0, means[..., 0] / np.where(below > 0, below, 1.0), 1.0)


def paired_difference(
    a: Mapping[str, float], b: Mapping[str, float], resamples: int = RESAMPLES, seed: int = 0
) -> PairedDifference:
    """Compare two scores of the same problems. Problems that only one has are left out.

    Args:
        a, b: problem id -> score.

    Raises ValueError where no problem is common.
    """
    common = [id for id in a if id in b]
    if not common:
        raise ValueError("no problem is common to the two; a comparison needs the same ids on both sides")
    scores = np.array([[a[id], b[id]] for id in common], dtype=float)
    differences = scores[:, 1] - scores[:, 0]
    column = differences[:, None]
    interval = bca_interval(column, resampled_means(column, resamples, seed), mean_of_first) or (None, None)
    p_value, exact = sign_flip_p_value(differences, resamples, seed)
    mean_a, mean_b = scores.mean(axis=0)
    return PairedDifference(
        len(common), float(mean_a), float(mean_b), float(differences.mean()), *interval, p_value, exact
    )


def sign_flip_p_value(differences: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, bool]:
    """How often a sum of differences with random signs is at least as far from 0, and whether that is exact.

    It is exact where the differences are fractions with small denominators, as scores of a few samples are: the
    distribution of the sum is then built up difference by difference. Else signs are drawn, and (1 + hits) / (1 + R) is
    given, which is never 0.
    """
    values = np.abs([difference for difference in differences if difference])
    observed = abs(math.fsum(differences))
    if not len(values):
        return 1.0, True
    whole = _as_whole_numbers(values)
    if whole is not None:
        steps, scale = whole
        return _exact_p_value(steps, round(observed * scale)), True
    rng = np.random.default_rng(seed)
    size, hits = max(1, _CHUNK // len(values)), 0
    for start in range(0, resamples, size):
        signs = 2 * rng.integers(0, 2, (min(size, resamples - start), len(values))) - 1
        hits += int((np.abs(signs @ values) >= observed * (1 - 1e-12)).sum())
    return (1 + hits) / (1 + resamples), False


def _as_whole_numbers(values: np.ndarray) -> tuple[list[int], int] | None:
    """The values times the smallest number that makes all of them whole, if an exact count is feasible."""
    fractions = [Fraction(float(value)).limit_denominator(_LARGEST_DENOMINATOR) for value in values]
    if any(abs(float(f) - value) > 1e-12 * max(1.0, value) for f, value in zip(fractions, values, strict=True)):
        return None
    scale = math.lcm(*(f.denominator for f in fractions))
    steps = [int(f * scale) for f in fractions]
    return (steps, scale) if 2 * sum(steps) * len(steps) <= _MOST_SUMS else None


def _exact_p_value(steps: Sequence[int], observed: int) -> float:
    """Probability of |sum of steps with fair signs| >= observed."""
    total = sum(steps)
    chances = np.zeros(2 * total + 1)
    chances[total] = 1.0
    for step in steps:
        spread = np.zeros_like(chances)
        spread[step:] += chances[: len(chances) - step]
        spread[: len(chances) - step] += chances[step:]
        chances = spread / 2
    sums = np.abs(np.arange(-total, total + 1))
    return min(1.0, float(chances[sums >= observed].sum()))
