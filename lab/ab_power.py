"""ab_power.py owns planning: how many seeds, how small an effect, and how much a seed alone changes.

    python -c "from lab import ab_power; print(ab_power.n_needed(0.003, ab_power.sd_of_difference(0.0013)))"

A value is one number of one run. Effects, spreads and values are in the unit of the metric; tests are two-sided t tests
of ab_stats.py. Bad input is a ValueError of one sentence.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from lab import ab_alpha

LARGE_N = 200  # from here on n_needed takes the normal limit plus z^2 / 2 (Guenther 1981): at most 1 off
FIX = "give the smallest difference that matters"

def sd_of_difference(sd: float, correlation: float = 0.0) -> float:
    """sd of b - a within a pair of runs, each with spread sd, whose seeds correlate: sd * sqrt(2 (1 - r))."""
    if not -1 <= correlation <= 1:
        raise ValueError(f"correlation {correlation} is not between -1 and 1: give the r of seed pairs, or 0.")
    return sd * math.sqrt(2 * (1 - correlation))


def mde(n: int, sd_diff: float, alpha=0.05, power=0.8, paired: bool = True) -> float:
    """Minimum detectable effect: the true difference that n pairs find significant with this power, two-sided.

    sd_diff: sd of b - a within one pair of runs: sd_of_difference(sd, r). paired=False: n unmatched runs per arm and
    Welch's test, with sd_of_difference(sd, 0). From the noncentral t: the normal approximation is 2.0 times too small
    for three pairs. nan for n = 1. mde(3, 0.001) is 0.00326.
    """
    if n < 1 or n != int(n):
        raise ValueError(f"n is {n}: give a whole number of pairs, at least 1.")
    _check_spread(sd_diff)
    if n < 2:
        return math.nan
    return sd_diff * noncentrality(*_design(n, paired, alpha), power) / math.sqrt(n)


def n_needed(effect: float, sd_diff: float, alpha=0.05, power=0.8, paired: bool = True) -> int:
    """The fewest pairs (paired=False: runs in each arm) that find a true difference `effect` with probability `power`:
    the inverse of mde(), of the same arguments. At least 2, as one pair shows nothing."""
    if not (math.isfinite(effect) and effect != 0):
        raise ValueError(f"effect {effect}: no number of seeds detects it; {FIX}.")
    _check_spread(sd_diff)
    effect = abs(effect)
    ratio = sd_diff * noncentrality(math.inf, False, alpha, power) / effect
    if ratio > 1e100:
        raise ValueError(f"effect {effect:g} is too small beside a spread of {sd_diff:g}: {FIX}.")
    limit = ratio**2  # a little too low, always
    if limit >= LARGE_N:
        halves = 2 if paired else 4
        return math.ceil(limit + float(special.ndtri(1 - alpha / 2)) ** 2 / halves)
    n = max(2, math.ceil(limit))
    while sd_diff * noncentrality(*_design(n, paired, alpha), power) > effect * math.sqrt(n):
        n += 1
    return n


def n_needed_by_looks(effect: float, sd_diff: float, looks: int, alpha=0.05, power=0.8) -> float:
    """The fewest pairs at whose look, of at most `looks` (lab/ab_alpha.py), a true difference `effect` is found with
    probability `power`, whatever the earlier looks add to it; inf where that takes more than were decided. An early
    look has little of alpha."""
    for n in range(ab_alpha.FIRST_LOOK, looks + 1):
        level = ab_alpha.level_of(alpha, ab_alpha.Design(n, looks=looks))
        if mde(n, sd_diff, level, power) <= abs(effect):
            return n
    return math.inf


def _design(n: int, paired: bool, alpha: float) -> tuple[int, bool, float]:
    """(degrees of freedom, is it Welch's test, the t test's p that counts as alpha)."""
    if paired:
        return n - 1, False, alpha
    return 2 * n - 2, True, ab_alpha.level_of(alpha, ab_alpha.Design(n, n))


def _power(ncp: float, df: float, welch: bool, alpha: float) -> float:
    """P(|T| > critical) for T noncentral t, (z + ncp) / s with s^2 = chi^2_df / df: an integral over quantiles of s.
    (scipy's noncentral t gives nan for df = 1 and a large ncp, and has no Welch.)"""
    limit, weight = _limits(df, welch, alpha)
    return float(weight @ (special.ndtr(ncp - limit) + special.ndtr(-ncp - limit)))


@lru_cache(maxsize=1024)
def _limits(df: float, welch: bool, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """(critical value * s, weight) at the nodes of the integral over s.

    Welch, equal arms of df / 2: the critical value depends on the share u of the one arm in s_a^2 + s_b^2, which is
    Beta(df / 4, df / 4) when the arms spread alike, whatever s."""
    if df == math.inf:
        return -special.ndtri(np.array([alpha / 2])), np.ones(1)
    x, weight = _legendre(200)
    s = np.sqrt(2 * special.gammaincinv(df / 2, x) / df)
    if not welch:
        return -special.stdtrit(df, alpha / 2) * s, weight
    x, weight_u = _legendre(40)
    u = special.betaincinv(df / 4, df / 4, x)
    critical = -special.stdtrit(df / 2 / (u**2 + (1 - u) ** 2), alpha / 2)
    return np.outer(critical, s).ravel(), np.outer(weight_u, weight).ravel()


@lru_cache(maxsize=2)
def _legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on 0..1."""
    x, weight = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, weight / 2


@lru_cache(maxsize=65536)
def noncentrality(df: float, welch: bool, alpha: float, power: float) -> float:
    """The noncentrality (effect / standard error) at which a two-sided t test has this power."""
    check_share(alpha, "alpha")
    check_share(power, "power")
    if power <= alpha:
        raise ValueError(f"power {power} is not above alpha {alpha}, which no effect gives: ask for more.")
    high = 4.0
    while _power(high, df, welch, alpha) < power:
        high *= 2
    return optimize.brentq(lambda ncp: _power(ncp, df, welch, alpha) - power, 0.0, high, xtol=1e-10)


# ----------------------------------------------------------------------------------------------------------------------
# A/A: how much a seed alone changes


def noise_floor(values, alpha: float = 0.05, correlation: float | None = None, power: float = 0.8,
                n_pairs=(3, 5, 8)) -> dict:
    """The spread of equal runs that differ by seed alone, and what an A/B can see above it.

    values: (n,) one metric of n >= 2 runs of the same arm. correlation: of seed pairs, where an A/B has measured it.
    Returns n, mean, sd, sd_low, sd_high (chi-square interval of the sd: with 4 runs 0.57 to 3.7 times it), sd_plan (its
    one-sided upper bound: the true sd is below it with probability 1 - alpha, so that plans by it have their power;
    with 4 runs 2.9 times the sd), band_low, band_high (prediction interval: ONE new run of the same arm lies inside
    with probability 1 - alpha), alpha, power, mde {pairs: smallest detectable difference} for unrelated pairs,
    mde_paired (at `correlation`, else None).
    """
    x = values_of(values, "values")
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"a noise floor needs two runs or more, got shape {x.shape}: train 4 seeds or more.")
    check_share(alpha, "alpha")
    n, mean, sd = len(x), float(x.mean()), float(sd_of(x))
    if sd <= rounding_of(x):
        sd = 0.0
    half = float(special.stdtrit(n - 1, 1 - alpha / 2)) * sd * math.sqrt(1 + 1 / n)
    # chi-square quantiles are 2 * gammaincinv(df / 2, q)
    low, high, bound = (sd * math.sqrt((n - 1) / 2 / special.gammaincinv((n - 1) / 2, q))
                        for q in (1 - alpha / 2, alpha / 2, alpha))

    def table(r: float) -> dict:
        return {pairs: mde(pairs, sd_of_difference(sd, r), alpha, power) for pairs in n_pairs}

    return {
        "n": n, "mean": mean, "sd": sd, "sd_low": float(low), "sd_high": float(high), "sd_plan": float(bound),
        "band_low": mean - half, "band_high": mean + half, "mde": table(0.0),
        "mde_paired": None if correlation is None else table(correlation),
        "correlation": correlation, "alpha": alpha, "power": power}


def in_band(value: float, noise: dict) -> bool:
    """Does one new run lie in the band of noise_floor()?"""
    value = float(values_of([value], "value")[0])
    slack = rounding_of(np.array([noise["mean"]]))  # runs without spread give a band of one point
    return bool(noise["band_low"] - slack <= value <= noise["band_high"] + slack)


# ----------------------------------------------------------------------------------------------------------------------
# values and their checks


def values_of(values, name: str) -> np.ndarray:
    """(..., n) floats, n >= 1, all finite."""
    try:
        x = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} holds something that is no number: give one number per run.") from None
    if x.ndim == 0:
        raise ValueError(f"{name} is one number: give a list of one number per run.")
    if x.shape[-1] == 0:
        raise ValueError(f"{name} is empty: give a list of one number per run.")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} holds nan or infinite values: leave those runs out and say so.")
    return x


def check_share(x: float, name: str) -> None:
    if not 0 < x < 1:
        raise ValueError(f"{name} is {x}: give a number between 0 and 1.")


def _check_spread(sd: float) -> None:
    if not (math.isfinite(sd) and sd >= 0):
        raise ValueError(f"the sd of a difference is {sd}: give a number of at least 0.")


def sd_of(x: np.ndarray) -> np.ndarray:
    if x.shape[-1] == 1:
        return np.full(x.shape[:-1], np.nan)
    return x.std(-1, ddof=1)


def rounding_of(x: np.ndarray) -> np.ndarray:
    """What rounding alone can put between values that are equal on paper."""
    return 4 * np.finfo(float).eps * np.abs(x).max(-1)
