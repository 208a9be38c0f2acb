"""ab_alpha.py owns how a test of an A/B holds its alpha where its t test alone would not. It reads and writes nothing.

    p = held(0.04, Design(2, 10))              # Welch's p of 2 runs against 10: 0.11
    p = held(0.04, Design(5, looks=10))        # five pairs, looked at after the third, the fourth, ... of ten at most
    level = level_of(0.05, Design(5, looks=10))         # the t test's p at which the held one is 0.05

Small arms. Welch's p is a little too small where an arm has few runs: with 2 against 10, 12 % of all comparisons have a
p below 0.05 though nothing differs. Held, it is the largest chance of so small a Welch p over all ratios of the arms'
spreads, which is exact for normal values.

Looks. Who tests after every pair, and stops at p < 0.05, finds a difference where there is none in 17 % of all cases
(3 to 10 pairs). With at most N pairs decided before the first look, the held p after n pairs is the chance that at
some look, from the third pair to the N-th, a p times (N / n)^2 is as small: so its interval and its verdict hold at
every look. Early looks get little of alpha, the last one most of it (alpha spending by a power family, Kim & DeMets
1987); each interval is a repeated one (Jennison & Turnbull 1989). For unpaired arms the sum over the looks bounds it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import special

FIRST_LOOK = 3  # runs: with fewer nothing is called better or worse
MOST_LOOKS = 200  # pairs at most that --sequential takes
LARGE = 20  # from so many runs in the smaller arm on Welch's own p finds 5.03 % at most
BATCH, DRAW_SEED = 10_000, 0  # of simulated sequences of pairs; both tails of each count
P = np.unique([*np.geomspace(1e-12, 1e-4, 17), *np.geomspace(1e-4, 1, 49)])  # where held p's are computed


class Design(NamedTuple):
    """How many runs a difference is of, and how many its looks may reach."""

    n_a: int  # pairs, or runs of arm a
    n_b: int = 0  # runs of arm b; 0: pairs
    looks: int = 0  # the most pairs (runs of the smaller arm) that were decided; 0: one look

    @property
    def n(self) -> int:
        return min(self.n_a, self.n_b or self.n_a)

    @property
    def is_exact(self) -> bool:
        """Whether the t test's p holds alpha as it is: one look, pairs or enough runs in both arms."""
        return not self.looks and (not self.n_b or self.n >= LARGE)


def held(p, design: Design):
    """Two-sided p of a t test -> the p that holds alpha. Of a one-sided p it is held(2 p) / 2."""
    if design.is_exact or design.n < 2:
        return p
    raw, table = tables(design)
    p = np.asarray(p, dtype=float)
    with np.errstate(divide="ignore"):
        inside = np.exp(np.interp(np.log(p), raw, table))
    below = p * np.exp(table[0] - raw[0])
    return np.minimum(1.0, np.where(p < P[0], below, inside))


def level_of(alpha: float, design: Design) -> float:
    """The t test's two-sided p at which the held p is alpha: what the critical value and the interval go by."""
    if design.is_exact or design.n < 2:
        return alpha
    raw, table = tables(design)
    return float(np.exp(np.interp(np.log(alpha), table, raw)))


@lru_cache(maxsize=256)
def tables(design: Design) -> tuple[np.ndarray, np.ndarray]:
    """(logarithms of a t test's two-sided p, ascending; those of the held p)."""
    check_looks(design)
    table = P
    if design.n_b and design.n < LARGE:
        table = welch_size(P, design.n_a, design.n_b)
    if design.looks and design.n_b:
        table = table * looks_before(design)
    elif design.looks:
        table = size_of_looks(P, design)
    table = np.minimum.accumulate(np.minimum(table, 1.0)[::-1])[::-1]  # a smaller p is no more likely
    rising = np.log(table) + 1e-12 * np.arange(len(table))  # level_of needs an inverse
    return np.log(P), rising


def check_looks(design: Design) -> None:
    looks = design.looks
    if looks and not FIRST_LOOK <= looks <= MOST_LOOKS:
        raise ValueError(f"--sequential {looks}: give the most pairs to be trained, {FIRST_LOOK} to {MOST_LOOKS}.")
    if looks and design.n > looks:
        raise ValueError(f"--sequential {looks} allows looks at up to {looks} pairs (or runs in the smaller arm), "
                         f"and there are {design.n}: compare as many as were decided.")


# ----------------------------------------------------------------------------------------------------------------------
# small arms


def welch_size(p: np.ndarray, n_a: int, n_b: int) -> np.ndarray:
    """(len(p),) the largest chance, over all ratios of the arms' spreads, that Welch's two-sided p is below p.

    With s2 = a's share of the true variance of the difference and u = the share of a's chi-square in both (a beta
    variable), Welch's T is a t variable with n_a + n_b - 2 degrees of freedom over sqrt(q): a one-dimensional integral.
    """
    df_a, df_b = n_a - 1, n_b - 1
    df = df_a + df_b
    x, weight = np.polynomial.legendre.leggauss(40)
    u = special.betaincinv(df_a / 2, df_b / 2, (x + 1) / 2)
    share = special.expit(np.linspace(-6, 6, 33))[:, None]
    part_a, part_b = share * u / df_a, (1 - share) * (1 - u) / df_b
    q = df * (part_a + part_b)  # estimated over true variance of the difference, for an average chi-square
    seen = part_a / (part_a + part_b)
    welch_df = 1 / (seen**2 / df_a + (1 - seen) ** 2 / df_b)
    sizes = np.empty(len(p))
    for i, level in enumerate(p):
        critical = -special.stdtrit(welch_df, level / 2)
        chance = 2 * special.stdtr(df, -critical * np.sqrt(q))
        sizes[i] = (chance @ weight).max() / 2
    return np.maximum(sizes, p)


# ----------------------------------------------------------------------------------------------------------------------
# looks


def size_of_looks(p: np.ndarray, design: Design) -> np.ndarray:
    """(len(p),) the chance that some look at up to design.looks pairs is as extreme as this two-sided p at this one.

    One tail is simulated and doubled, which counts a sequence that crosses both ways twice. Where fewer than 400 draws
    are as extreme, their count is taken three standard errors higher; the sum over the looks bounds it, too."""
    smallest = smallest_over_looks(design.looks)
    weighted = p / 2 * (design.looks / design.n) ** 2
    count = np.searchsorted(smallest, weighted, side="right")
    count = np.where(count < 400, count + 3 * np.sqrt(count) + 3, count)
    return np.minimum(2 * count / len(smallest), p * looks_before(design))


def looks_before(design: Design) -> float:
    """What all looks' levels together are, over this look's."""
    looks = np.arange(FIRST_LOOK, design.looks + 1)
    return float(((looks / design.n) ** 2).sum())


@lru_cache(maxsize=8)
def smallest_over_looks(most: int) -> np.ndarray:
    """(2 x draws,) sorted: the smallest one-sided p times (most / n)^2 over the looks n = 3..most at pairs without a
    difference, upward and downward. 150,000 draws, and 40,000 from 50 looks on: 0.05 is met within 0.001."""
    rng = np.random.default_rng(DRAW_SEED)
    parts = []
    for _ in range(int(np.clip(200 // most, 4, 15))):
        x = rng.standard_normal((most, BATCH))
        sums, squares = x.cumsum(0), (x**2).cumsum(0)
        lowest = np.full((2, BATCH), np.inf)
        for n in range(FIRST_LOOK, most + 1):
            total = sums[n - 1]
            variance = (squares[n - 1] - total**2 / n) / (n - 1)
            below = special.stdtr(n - 1, total / np.sqrt(n * variance))
            tails = np.stack([below, 1 - below]) * (most / n) ** 2
            lowest = np.minimum(lowest, tails)
        parts.append(lowest.ravel())
    return np.sort(np.concatenate(parts))
