"""ab_stats.py owns the statistics of an A/B: intervals, tests, power, verdicts. It reads and writes nothing.

    python -c "import ab_stats; print(ab_stats.paired([3.301, 3.299, 3.302], [3.291, 3.292, 3.294]))"
    python experiments/bench/coverage.py --check       # shows by simulation that what is claimed here holds

A value is one number of one run (a val loss, an accuracy). Runs of equal seed share initial weights and the order of
data, so arms are compared by their differences within pairs of seeds. The seed is the unit: ten thousand items scored
by one checkpoint say much about that checkpoint and nothing about the next seed, so one seed never gives a verdict.

Delta is always b - a. Differences are taken to be about normal; the sign-flip test beside each t test is not. Where an
argument is an array of values, leading axes are allowed and give arrays of results, one per A/B (coverage.py simulates
thousands through the functions that users call). Bad input is a ValueError of one sentence.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy import optimize, special

EXACT_PAIRS = 20  # up to here all 2^n sign flips are counted, above DRAWS random ones
EXACT_SPLITS = 20_000  # up to so many ways to split the runs in two arms are all counted (8 + 8 runs: 12,870)
DRAWS = 100_000
DRAW_SEED = 0
LARGE_N = 200  # from so many pairs on n_needed takes the normal limit plus z^2 / 2 (Guenther 1981), at most 1 off
SEED_FLOOR = 0.05  # hierarchical_bootstrap: least seed variance, as a share of what item noise alone would give

# ----------------------------------------------------------------------------------------------------------------------
# arms over seeds


def paired(a, b, alpha: float = 0.05, power: float = 0.8, effect: float | None = None) -> dict:
    """Two arms whose runs pair up by seed: paired t test, sign flips, and what this many pairs can see.

    a, b: (..., n) values, position i of both from seed i. effect: a difference one would want to detect (same unit).
    Returns, in the unit of the values where not said otherwise:
      n                 pairs
      mean_a, sd_a, mean_b, sd_b, delta (b - a), sd_diff (sd of the n differences), se (sd_diff / sqrt n), df (n - 1)
      ci_low, ci_high   1 - alpha interval of delta (t)
      p                 two-sided (t)
      p_sign_flip       two-sided; exact for n <= 20. It cannot be below 2 / 2^n: 0.25 for three pairs
      correlation       Pearson r of the pairs; nan below three pairs (two points always lie on a line)
      mde               the delta that this n would find with `power` at two-sided alpha, given sd_diff
      n_for             pairs that would find a true difference as large as the observed one (inf when delta is 0).
                        It is as unsure as delta is: plan with `effect`, what matters, not with what came out
      n_for_effect      pairs that would find `effect`; None when no effect is given
      degenerate        the differences have no spread, though n >= 2 (see below)
      alpha, power      as given
    n = 1: spread, interval and p are nan. No spread, but a difference: nothing to estimate an interval from (losses
    rounded to 4 decimals do that with two seeds), so interval, mde and n_for are nan and p is p_sign_flip, which needs
    no spread. Arms that are equal in every pair have the interval [0, 0] and p = 1.
    """
    a, b = _values(a, "a"), _values(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape}, b {b.shape}: pairs need the same seeds in both; use unpaired() else.")
    _check_share(alpha, "alpha")
    n = a.shape[-1]
    d = b - a
    delta, sd = d.mean(-1), _sd(d)
    rounding = np.maximum(_rounding(a), _rounding(b))
    flat = np.asarray(sd <= rounding) & (n > 1)  # equal but for rounding of b - a
    equal = np.asarray(np.abs(d).max(-1) <= rounding)
    sd, delta = np.where(flat, 0.0, sd), np.where(equal, 0.0, delta)
    se = sd / math.sqrt(n)
    flips = sign_flip(np.where(flat[..., None], delta[..., None], d))
    low, high, p = _t_interval(delta, se, n - 1, alpha, flat, equal, flips)
    detectable = np.where(flat, np.nan, sd) * (_ncp(n - 1, False, alpha, power) / math.sqrt(n) if n > 1 else math.nan)
    stats = {"n": n, "mean_a": a.mean(-1), "sd_a": _sd(a), "mean_b": b.mean(-1), "sd_b": _sd(b), "delta": delta,
             "ci_low": low, "ci_high": high, "p": p, "p_sign_flip": flips, "correlation": _correlation(a, b),
             "sd_diff": sd, "se": se, "df": n - 1, "mde": detectable,
             "n_for": _each(lambda x, s, f: math.nan if f else n_needed(x, s, alpha, power) if x else math.inf,
                            np.abs(delta), sd, flat | (n < 2)),
             "n_for_effect": None, "degenerate": flat, "alpha": alpha, "power": power}
    if effect is not None:
        stats["n_for_effect"] = _each(lambda s, f: math.nan if f else n_needed(effect, s, alpha, power), sd,
                                      flat | (n < 2))
    return _plain(stats)


def unpaired(a, b, alpha: float = 0.05, power: float = 0.8, effect: float | None = None) -> dict:
    """Two arms whose seeds do not match: Welch's test, which lets the arms differ in spread and in number of runs.

    a: (..., n_a), b: (..., n_b). Keys as in paired(), with n_a, n_b, n = the smaller, df = Welch-Satterthwaite's,
    sd_diff = sqrt(sd_a^2 + sd_b^2) (the spread of a pair of unrelated runs), p_permutation (two-sided, over all ways to
    split the runs into arms of these sizes, by the difference of means; random splits when there are over 20,000),
    p_sign_flip and correlation = nan. n_for and n_for_effect are runs in each arm. An arm of one run has no spread, so
    interval and p are nan then. No spread in either arm, but a difference: interval nan and p = p_permutation.
    """
    a, b = _values(a, "a"), _values(b, "b")
    if a.shape[:-1] != b.shape[:-1]:
        raise ValueError(f"a has shape {a.shape}, b {b.shape}: all axes but the last must agree.")
    _check_share(alpha, "alpha")
    n_a, n_b = a.shape[-1], b.shape[-1]
    delta = b.mean(-1) - a.mean(-1)
    sd_a, sd_b = _sd(a), _sd(b)
    rounding = np.maximum(_rounding(a), _rounding(b))
    flat = np.asarray((sd_a <= rounding) & (sd_b <= rounding))
    equal = flat & (np.abs(delta) <= rounding)
    delta = np.where(equal, 0.0, delta)
    var_a, var_b = np.where(flat, 0.0, sd_a**2) / n_a, np.where(flat, 0.0, sd_b**2) / n_b
    se = np.sqrt(var_a + var_b)
    with np.errstate(invalid="ignore", divide="ignore"):
        df = se**4 / (var_a**2 / (n_a - 1) + var_b**2 / (n_b - 1)) if min(n_a, n_b) > 1 else np.full_like(se, np.nan)
    permuted = _permutation(a, b)
    low, high, p = _t_interval(delta, se, df, alpha, flat, equal, permuted)
    sd = np.where(flat, 0.0, np.sqrt(sd_a**2 + sd_b**2))
    unknown = flat | (min(n_a, n_b) < 2)
    stats = {"n": min(n_a, n_b), "n_a": n_a, "n_b": n_b, "mean_a": a.mean(-1), "sd_a": sd_a, "mean_b": b.mean(-1),
             "sd_b": sd_b, "delta": delta, "ci_low": low, "ci_high": high, "p": p,
             "p_sign_flip": np.full_like(delta, np.nan), "p_permutation": permuted,
             "correlation": np.full_like(delta, np.nan), "sd_diff": sd, "se": se, "df": df,
             "mde": _each(lambda s, f, u: math.nan if u else s * _ncp(round(f, 2), False, alpha, power), se, df,
                          unknown),
             "n_for": _each(lambda x, s, u: math.nan if u else n_needed(x, s, alpha, power, False) if x else math.inf,
                            np.abs(delta), sd, unknown),
             "n_for_effect": None, "degenerate": flat, "alpha": alpha, "power": power}
    if effect is not None:
        stats["n_for_effect"] = _each(lambda s, u: math.nan if u else n_needed(effect, s, alpha, power, False), sd,
                                      unknown)
    return _plain(stats)


def sign_flip(differences) -> float | np.ndarray:
    """Two-sided p of "differences are as often positive as negative": the share of all 2^n ways to flip their signs
    whose sum is at least as far from 0 as the observed one, ties included. (..., n) -> (...).

    Exact for n <= 20 and any symmetric distribution (Fisher, The Design of Experiments, 1935, section 21). Above,
    100,000 random flips with a fixed seed, the observed one counted among them, so that p is never 0.
    """
    d = _values(differences, "differences")
    n = d.shape[-1]
    flat = d.reshape(-1, n)
    # sums that are equal on paper differ by rounding, and count as ties. 1e-9 of the largest possible sum is far above
    # rounding, the one of b - a included, and far below what a run's noise could hit by chance
    slack = 1e-9 * np.abs(flat).sum(1)
    observed = np.abs(flat.sum(1)) - slack
    if n > EXACT_PAIRS:
        rng = np.random.default_rng(DRAW_SEED)
        count = np.ones(len(flat))
        for start in range(0, DRAWS, 5_000):
            signs = rng.integers(0, 2, (min(5_000, DRAWS - start), n)) * 2.0 - 1
            count += (np.abs(flat @ signs.T) >= observed[:, None]).sum(1)
        p = count / (DRAWS + 1)
    else:
        p = np.empty(len(flat))
        rows = max(1, 2**22 >> n)
        for start in range(0, len(flat), rows):
            part = flat[start : start + rows]
            sums = part[:, :1]  # the first sign stays: flipping all of them changes no distance from 0
            for i in range(1, n):
                sums = np.concatenate([sums + part[:, i : i + 1], sums - part[:, i : i + 1]], axis=1)
            p[start : start + rows] = (np.abs(sums) >= observed[start : start + rows, None]).mean(1)
    return _plain({"p": p.reshape(d.shape[:-1])})["p"]


def _permutation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two-sided p of the difference of means over splits of the runs into arms of these sizes."""
    n_a, n = a.shape[-1], a.shape[-1] + b.shape[-1]
    both = np.concatenate([a, b], axis=-1).reshape(-1, n)
    both = both - both.mean(1, keepdims=True)  # then the sum of arm a says it all
    exact = math.comb(n, n_a) <= EXACT_SPLITS
    if exact:
        chosen = np.array(list(combinations(range(n), n_a)))
    else:
        rng = np.random.default_rng(DRAW_SEED)
        chosen = rng.permuted(np.tile(np.arange(n), (EXACT_SPLITS, 1)), axis=1)[:, :n_a]
    member = np.zeros((len(chosen), n))
    np.put_along_axis(member, chosen, 1.0, axis=1)
    slack = 1e-9 * np.abs(both).sum(1) + 1e-15 * np.abs(a).max(-1).reshape(-1) * n
    observed = np.abs(both[:, :n_a].sum(1)) - slack
    p = np.empty(len(both))
    rows = max(1, 2**22 // len(member))
    for start in range(0, len(both), rows):
        far = np.abs(both[start : start + rows] @ member.T) >= observed[start : start + rows, None]
        p[start : start + rows] = far.mean(1) if exact else (far.sum(1) + 1) / (EXACT_SPLITS + 1)
    return p.reshape(a.shape[:-1])


def equivalence(a, b, delta: float, alpha: float = 0.05, paired_seeds: bool = True) -> dict:
    """Two one-sided t tests (Schuirmann 1987): is the difference shown to lie within ± delta?

    Returns p (the larger of the two), ci_low, ci_high (the 1 - 2 alpha interval: 90 % for alpha 0.05), margin, n, and
    verdict: "equivalent" when p < alpha, which is when that interval lies inside ± delta, else "inconclusive". Choose
    delta before looking: it is the smallest difference that would matter. paired_seeds=False: Welch instead of pairs.
    """
    stats = paired(a, b, 2 * alpha) if paired_seeds else unpaired(a, b, 2 * alpha)
    p = _tost(stats, delta)
    names = np.where(p < alpha, "equivalent", "inconclusive")
    return _plain({"p": p, "ci_low": stats["ci_low"], "ci_high": stats["ci_high"], "margin": delta, "n": stats["n"],
                   "verdict": names})


def _tost(stats: dict, margin: float) -> np.ndarray:
    """p of equivalence within ± margin, from delta, se and df of paired() or unpaired(); nan where there is no spread,
    unless the arms are equal (0)."""
    if not (isinstance(margin, (int, float)) and math.isfinite(margin) and margin > 0):
        raise ValueError(f"the equivalence margin is {margin!r}: give a positive number in the unit of the metric.")
    if "se" not in stats or "df" not in stats:
        raise ValueError("equivalence needs se and df: give what paired() or unpaired() returned.")
    delta, se, df = (np.asarray(stats[k], dtype=float) for k in ("delta", "se", "df"))
    with np.errstate(invalid="ignore", divide="ignore"):
        # both tails as lower tails, which keep their digits
        p = np.maximum(special.stdtr(df, -(delta + margin) / se), special.stdtr(df, (delta - margin) / se))
    return np.where(se > 0, p, np.where((se == 0) & (delta == 0), 0.0, np.nan))


def verdict(stats: dict, better: str = "lower", equivalence_margin: float | None = None,
            alpha: float | None = None) -> str | np.ndarray:
    """"better" | "worse" | "equivalent" | "inconclusive": what may be said of b against a.

    stats: from paired() or unpaired(). better: which way this metric improves. alpha: default the one in stats.
    The first rule that applies:
    1. one pair, one run in an arm, or no p: inconclusive, however large the difference;
    2. with a margin, the 1 - 2 alpha interval within ± margin: equivalent. That holds also for a difference that is
       significant: it is real, and smaller than what was said to matter;
    3. p < alpha (the 1 - alpha interval leaves out 0): better or worse by the sign of delta;
    4. else inconclusive, which is not "no difference": look at mde for what could have been seen.
    Where there is no difference, "better" or "worse" comes with probability alpha at most, both together. A metric
    tested among others takes its Holm-adjusted p: verdict(stats | {"p": adjusted}). p_sign_flip decides nothing, but
    for differences without spread, where it is p: with 5 pairs it cannot be below 0.0625.
    """
    if better not in ("lower", "higher"):
        raise ValueError(f'better is {better!r}: give "lower" (a loss) or "higher" (an accuracy).')
    alpha = stats.get("alpha", 0.05) if alpha is None else alpha
    _check_share(alpha, "alpha")
    delta, p = np.asarray(stats["delta"], dtype=float), np.asarray(stats["p"], dtype=float)
    usable = (stats["n"] >= 2) & np.isfinite(p)
    found = np.asarray(np.where((delta < 0) == (better == "lower"), "better", "worse"))
    out = np.where(usable & (p < alpha) & (delta != 0), found, "inconclusive")
    if equivalence_margin is not None:
        out = np.where(usable & (_tost(stats, equivalence_margin) < alpha), "equivalent", out)
    return str(out) if out.ndim == 0 else out


def holm(pvalues):
    """p adjusted for the number of tests so that P(any false finding) <= alpha, whatever their dependence (Holm 1979).

    A dict gives a dict, a list (or array) a list, in the same order. nan and None are tests that were not made: they
    stay nan and do not count.
    """
    if isinstance(pvalues, dict):
        return dict(zip(pvalues, holm(list(pvalues.values())), strict=True))
    p = np.array([math.nan if x is None else x for x in pvalues], dtype=float)
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"{p[(p < 0) | (p > 1)][0]} is no p-value: give numbers from 0 to 1, or nan for no test.")
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    p[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(order) else steps
    return p.tolist()


# ----------------------------------------------------------------------------------------------------------------------
# planning: how many seeds, how small an effect


def sd_of_difference(sd: float, correlation: float = 0.0) -> float:
    """sd of b - a within a pair of runs, each with spread sd, whose seeds correlate: sd * sqrt(2 (1 - r))."""
    if not -1 <= correlation <= 1:
        raise ValueError(f"correlation {correlation} is not between -1 and 1: give the r of seed pairs, 0 if unknown.")
    return sd * math.sqrt(2 * (1 - correlation))


def mde(n: int, sd_diff: float, alpha: float = 0.05, power: float = 0.8, paired: bool = True, sides: int = 2,
        equal_var: bool = False) -> float:
    """Minimum detectable effect: the true difference that n pairs find significant with probability `power`.

    sd_diff: sd of b - a within one pair of runs: sd_of_difference(sd, r). paired=False: n runs in each arm, unmatched,
    sd_diff = sd_of_difference(sd, 0), for Welch's test as unpaired() does it (equal_var=True: for Student's, which
    finds 12 % smaller effects with three runs per arm, if the arms spread alike). sides=1: the direction was declared
    before. From the noncentral t: the normal approximation is 2.0 times too small for three pairs. nan for n = 1.
    """
    _check_n(n)
    _check_spread(sd_diff)
    return math.nan if n < 2 else sd_diff * _ncp(*_design(n, paired, equal_var), alpha, power, sides) / math.sqrt(n)


def n_needed(effect: float, sd_diff: float, alpha: float = 0.05, power: float = 0.8, paired: bool = True,
             sides: int = 2, equal_var: bool = False) -> int:
    """The fewest pairs (paired=False: runs in each arm) that find a true difference `effect` with probability `power`.

    Arguments as in mde(), of which this is the inverse. At least 2, as one pair shows nothing.
    """
    if not (math.isfinite(effect) and effect != 0):
        raise ValueError(f"effect {effect}: no number of seeds detects it; give the smallest difference that matters.")
    _check_spread(sd_diff)
    effect = abs(effect)
    ratio = sd_diff * _ncp(math.inf, False, alpha, power, sides) / effect
    if ratio > 1e100:
        raise ValueError(f"effect {effect:g} is too small beside a spread of {sd_diff:g}: no number of seeds detects "
                         "it; give the smallest difference that matters.")
    limit = ratio**2  # a little too low, always
    if limit >= LARGE_N:
        return math.ceil(limit + float(special.ndtri(1 - alpha / sides)) ** 2 / (2 if paired else 4))
    n = max(2, math.ceil(limit))
    while sd_diff * _ncp(*_design(n, paired, equal_var), alpha, power, sides) > effect * math.sqrt(n):
        n += 1
    return n


def power_of(effect: float, n: int, sd_diff: float, alpha: float = 0.05, paired: bool = True, sides: int = 2,
             equal_var: bool = False) -> float:
    """Probability that n pairs find a true difference `effect` significant; arguments as in mde(). nan for n = 1."""
    _check_n(n)
    _check_spread(sd_diff)
    if n < 2:
        return math.nan
    ncp = abs(effect) * math.sqrt(n) / sd_diff if sd_diff else math.inf if effect else 0.0
    return _power(ncp, *_design(n, paired, equal_var), alpha, sides)


def _design(n: int, paired: bool, equal_var: bool) -> tuple[int, bool]:
    """(degrees of freedom, is it Welch's test)."""
    return (n - 1, False) if paired else (2 * n - 2, not equal_var)


def _power(ncp: float, df: float, welch: bool, alpha: float, sides: int) -> float:
    """P(|T| > critical) for T noncentral t, by its definition (z + ncp) / s, s^2 = chi^2_df / df: an integral over the
    quantiles of s. (scipy's noncentral t gives nan for df = 1 and a large ncp.)"""
    limit, weight = _limits(df, welch, alpha, sides)
    tail = special.ndtr(ncp - limit) + (special.ndtr(-ncp - limit) if sides == 2 else 0.0)
    return float(weight @ tail)


@lru_cache(maxsize=1024)
def _limits(df: float, welch: bool, alpha: float, sides: int) -> tuple[np.ndarray, np.ndarray]:
    """(critical value * s, weight) at the nodes of the integral over s.

    Welch, equal arms of df / 2: the critical value depends on the share u of the one arm in s_a^2 + s_b^2, which is
    Beta(df / 4, df / 4) when the arms spread alike, and does not depend on s (the sum)."""
    if df == math.inf:
        return -special.ndtri(np.array([alpha / sides])), np.ones(1)
    x, weight = _legendre(200)
    s = np.sqrt(2 * special.gammaincinv(df / 2, x) / df)
    if not welch:
        return -special.stdtrit(df, alpha / sides) * s, weight
    x, weight_u = _legendre(40)
    u = special.betaincinv(df / 4, df / 4, x)
    critical = -special.stdtrit(df / 2 / (u**2 + (1 - u) ** 2), alpha / sides)
    return np.outer(critical, s).ravel(), np.outer(weight_u, weight).ravel()


@lru_cache(maxsize=2)
def _legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on 0..1."""
    x, weight = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, weight / 2


@lru_cache(maxsize=65536)
def _ncp(df: float, welch: bool, alpha: float, power: float, sides: int = 2) -> float:
    """The noncentrality (effect / standard error) at which a t test has this power."""
    _check_share(alpha, "alpha")
    _check_share(power, "power")
    if power <= alpha:
        raise ValueError(f"power {power} is not above alpha {alpha}: a test without effect has that; ask for more.")
    if sides not in (1, 2):
        raise ValueError(f"sides is {sides}: give 1 or 2.")
    high = 4.0
    while _power(high, df, welch, alpha, sides) < power:
        high *= 2
    return optimize.brentq(lambda x: _power(x, df, welch, alpha, sides) - power, 0.0, high, xtol=1e-10)


# ----------------------------------------------------------------------------------------------------------------------
# benchmark items


def hierarchical_bootstrap(credit_a, credit_b, clusters, categories=None, n_boot: int = 2000, seed: int = 0,
                           alpha: float = 0.05) -> dict:
    """Delta of a benchmark's score, with an interval for new seeds AND new items of the same kind.

    credit_a, credit_b: (n_seeds, n_items), credit of an item in 0..1 (ties may give a fraction), row s of both from
    the same seed, column i the same item. clusters: n_items labels; items of one cluster share a text (HellaSwag
    source_id) or a template (EWoK) and count as one draw. categories: n_items labels; then the score is the mean over
    categories of the means within (EWoK's official macro-average); categories are fixed, clusters nested in them.
    Returns delta, ci_low, ci_high, p (two-sided), n (seeds), n_items, n_clusters, ci_items_low, ci_items_high (these
    very checkpoints, new items only), se_seeds, se_items (the two parts of the standard error), alpha.
    One seed, or seeds that agree on every item (copies of a run): ci_low, ci_high, p are nan.

    How. D = credit_b - credit_a is a crossed layout: D_si = delta + seed_s + item_i + rest_si. Its mean varies by
    var(seed)/S + var(item) part + var(rest) part. Three to eight seeds cannot be resampled: with S = 3 one resample in
    nine repeats one run three times, the spread comes out (S-1)/S too small and its own uncertainty is ignored (Davison
    & Hinkley 1997, Bootstrap Methods and their Application, 2.3 and 3.8; a plain pigeonhole bootstrap, Owen 2007,
    arXiv:0712.1111, counts rest_si three times besides). So the seeds get what is exact for them, items are resampled:
      seeds   V_seed = var over seeds of their mean D / S; estimates (seed + rest) part, with S - 1 degrees of freedom:
              sqrt(V_seed) * t_{S-1}. Without item effects this alone is the paired t test.
      items   clusters are resampled within categories, seeds and arms together (Miller 2024, arXiv:2411.00640, on
              clustered items). These draws spread by V_item, the (item + rest) part; each is scaled by
              sqrt(C / (C-1)) (Rao & Wu 1988) and by a draw of sqrt(df / chi^2_df), as few clusters are also few. The
              rest part, V_rest, is in V_seed already: draws shrink by sqrt(1 - V_rest / V_item).
    The distribution of delta is the sum of both, n_boot draws of the one with the whole t curve of the other: ci is its
    alpha/2 and 1 - alpha/2 quantiles, p twice its tail beyond 0. Adding a t and a nearly normal part this way
    (Behrens-Fisher) covers a little more than 1 - alpha, at worst about 98 % for 95 % with three seeds
    (experiments/bench/coverage.py measures it; a plain bootstrap covers 81 to 100 % there). V_seed is
    kept at V_rest / 20 or more, as only luck makes it smaller.
    A category with one cluster says nothing about its own variance and gets the average of the others.
    """
    a, b = (np.asarray(x, dtype=float) for x in (credit_a, credit_b))
    if a.ndim != 2 or a.shape != b.shape or 0 in a.shape:
        raise ValueError(f"credits have shapes {a.shape} and {b.shape}: give (n_seeds, n_items) for the same items.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("credits hold nan or infinite values: leave out items that were not scored, in both arms.")
    _check_share(alpha, "alpha")
    if n_boot < 100:
        raise ValueError(f"n_boot is {n_boot}: give at least 100 resamples, 2000 for a report.")
    n_seeds, n_items = a.shape
    groups = np.zeros(n_items, int) if categories is None else _labels(categories, n_items, "categories")
    n_groups = int(groups.max()) + 1
    texts = _labels(clusters, n_items, "clusters")
    texts = np.unique(groups * (int(texts.max()) + 1) + texts, return_inverse=True)[1].reshape(-1)
    difference = b - a
    n_clusters = int(texts.max()) + 1
    totals = np.stack([np.bincount(texts, row, n_clusters) for row in difference])  # (S, C) sums of D
    sizes = np.bincount(texts, minlength=n_clusters)
    group_of = np.zeros(n_clusters, int)
    group_of[texts] = groups

    rng = np.random.default_rng(seed)
    per_seed, v_item, v_rest, v_item_squared = np.zeros(n_seeds), 0.0, 0.0, 0.0
    draws, lonely = np.zeros(n_boot), 0
    for g in range(n_groups):
        member = group_of == g
        t, n, c = totals[:, member], sizes[member], int(member.sum())
        weight = 1 / (n.sum() * n_groups)  # of one item in the score
        means = t.sum(1) / n.sum()
        per_seed += means / n_groups
        if c == 1:
            lonely += 1
            continue
        residual = (t - means[:, None] * n) * weight  # (S, c), sums to 0 over the clusters of each seed
        common = residual.mean(0)
        v = c / (c - 1) * float(common @ common)
        v_item, v_item_squared = v_item + v, v_item_squared + v * v / (c - 1)
        if n_seeds > 1:
            v_rest += c / (c - 1) * float(((residual - common) ** 2).sum()) / ((n_seeds - 1) * n_seeds)
        draws += math.sqrt(c / (c - 1)) * _resample(common, n_boot, rng)
    if lonely == n_groups:
        raise ValueError("every category has one cluster only: nothing to resample; give finer clusters.")
    share = n_groups / (n_groups - lonely)
    v_item, v_rest, draws = v_item * share, v_rest * share, draws * math.sqrt(share)
    if v_item > 0:
        df = (v_item / share) ** 2 / v_item_squared
        draws *= np.sqrt(df / rng.chisquare(df, n_boot))

    delta = float(per_seed.mean())
    v_seed = float(per_seed.var(ddof=1)) / n_seeds if n_seeds > 1 else math.nan
    v_pure = max(0.0, v_item - v_rest)
    tiny = (8 * np.finfo(float).eps) ** 2
    out = {"delta": delta, "ci_low": math.nan, "ci_high": math.nan, "p": math.nan, "n": n_seeds, "n_items": n_items,
           "n_clusters": n_clusters, "ci_items_low": delta + float(np.quantile(draws, alpha / 2)),
           "ci_items_high": delta + float(np.quantile(draws, 1 - alpha / 2)), "se_seeds": math.sqrt(v_seed),
           "se_items": math.sqrt(v_pure), "alpha": alpha}
    if n_seeds > 1 and not difference.any():
        return out | {"ci_low": 0.0, "ci_high": 0.0, "p": 1.0}
    if n_seeds == 1 or (v_seed <= tiny and v_rest <= tiny):
        return out
    scale = math.sqrt(max(v_seed, SEED_FLOOR * v_rest))
    shifts = draws * math.sqrt(v_pure / v_item) if v_item > 0 else draws
    below = lambda x: float(special.stdtr(n_seeds - 1, (x - shifts) / scale).mean())  # P(delta* - delta < x)
    reach = (-special.stdtrit(n_seeds - 1, alpha / 4) + 1) * scale + float(np.abs(shifts).max())
    low, high = (optimize.brentq(lambda x, q=q: below(x) - q, -reach, reach, xtol=1e-7 * scale)
                 for q in (alpha / 2, 1 - alpha / 2))
    tail = min(below(-delta), float(special.stdtr(n_seeds - 1, (delta + shifts) / scale).mean()))
    return out | {"ci_low": delta + low, "ci_high": delta + high, "p": min(1.0, 2 * tail)}


def _resample(residual: np.ndarray, n_boot: int, rng: np.random.Generator) -> np.ndarray:
    """(n_boot,) sums of as many clusters drawn with replacement as there are, 32 MB of indices at a time."""
    c, rows = len(residual), max(1, 2**22 // len(residual))
    parts = [residual[rng.integers(0, c, (min(rows, n_boot - i), c))].sum(1) for i in range(0, n_boot, rows)]
    return np.concatenate(parts)


def mcnemar(correct_a, correct_b) -> dict:
    """Two single checkpoints on the same items: exact McNemar test, two-sided.

    correct_a, correct_b: (n_items,) credit, 0 or 1, or a fraction for ties (1/k for k endings that tie). b counts items
    that only a gets, c items that only b gets; with fractions, items with more credit in the one or the other (the sign
    test). Items of equal credit say nothing. p: the binomial chance of so uneven a split of b + c at 1/2.
    It speaks of these two checkpoints and new items, never of the treatment: that takes seeds.
    Returns p, b, c, n, delta (mean credit of b - a).
    """
    a, b = _values(correct_a, "correct_a"), _values(correct_b, "correct_b")
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"credits have shapes {a.shape} and {b.shape}: give one number per item, same items in both.")
    only_a, only_b = int((a > b + 1e-12).sum()), int((b > a + 1e-12).sum())
    fewer, total = min(only_a, only_b), only_a + only_b
    p = min(1.0, 2 * float(special.bdtr(fewer, total, 0.5))) if total else 1.0
    return {"p": p, "b": only_a, "c": only_b, "n": len(a), "delta": float((b - a).mean())}


# ----------------------------------------------------------------------------------------------------------------------
# A/A: how much a seed alone changes


def noise_floor(values, alpha: float = 0.05, correlation: float | None = None, power: float = 0.8,
                n_pairs=(3, 5, 8)) -> dict:
    """The spread of equal runs that differ by seed alone, and what an A/B can see above it.

    values: (n,) one metric of n >= 2 runs of the same arm. correlation: of seed pairs, where an A/B has measured it.
    Returns n, mean, sd, sd_low, sd_high (chi-square interval of the sd: with 4 runs 0.57 to 3.7 times it), band_low,
    band_high (prediction interval: ONE new run of the same arm lies inside with probability 1 - alpha),
    mde {pairs: smallest detectable difference} for unrelated pairs, mde_paired (the same at `correlation`, else None),
    correlation, alpha, power.
    """
    x = _values(values, "values")
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"a noise floor needs at least two runs, got shape {x.shape}: train more seeds (4 or more).")
    _check_share(alpha, "alpha")
    n, mean, sd = len(x), float(x.mean()), float(_sd(x))
    sd = 0.0 if sd <= _rounding(x) else sd
    half = float(special.stdtrit(n - 1, 1 - alpha / 2)) * sd * math.sqrt(1 + 1 / n)
    # chi-square quantiles are 2 * gammaincinv(df / 2, q)
    low, high = (sd * math.sqrt((n - 1) / 2 / special.gammaincinv((n - 1) / 2, q)) for q in (1 - alpha / 2, alpha / 2))
    table = lambda r: {k: mde(k, sd_of_difference(sd, r), alpha, power) for k in n_pairs}
    return {"n": n, "mean": mean, "sd": sd, "sd_low": float(low), "sd_high": float(high), "band_low": mean - half,
            "band_high": mean + half, "mde": table(0.0),
            "mde_paired": None if correlation is None else table(correlation), "correlation": correlation,
            "alpha": alpha, "power": power}


def in_band(value: float, noise: dict) -> bool:
    """Does one new run lie in the band of noise_floor()?"""
    value = float(_values([value], "value")[0])
    slack = _rounding(np.array([noise["mean"]]))  # runs without spread give a band of one point
    return bool(noise["band_low"] - slack <= value <= noise["band_high"] + slack)


def prediction_p(value: float, noise: dict) -> float:
    """Two-sided p of one new run against noise_floor(): how often an equal run would be at least as far off."""
    value = float(_values([value], "value")[0])
    n, distance = noise["n"], abs(value - noise["mean"])
    if noise["sd"] == 0:
        return 1.0 if in_band(value, noise) else 0.0
    return 2 * float(special.stdtr(n - 1, -distance / (noise["sd"] * math.sqrt(1 + 1 / n))))


# ----------------------------------------------------------------------------------------------------------------------
# small parts


def _values(values, name: str) -> np.ndarray:
    """(..., n) floats, n >= 1, all finite."""
    try:
        x = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} holds something that is no number: give one number per run.") from None
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} is {'one number' if x.ndim == 0 else 'empty'}: give a list of one number per run.")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} holds nan or infinite values: leave those runs out and say so.")
    return x


def _labels(labels, n: int, name: str) -> np.ndarray:
    """(n,) labels of any kind -> 0, 1, 2, ..."""
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"{name} has shape {labels.shape}, the credits have {n} items: give one label per item.")
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def _check_share(x: float, name: str) -> None:
    if not 0 < x < 1:
        raise ValueError(f"{name} is {x}: give a number between 0 and 1.")


def _check_n(n: int) -> None:
    if n < 1 or n != int(n):
        raise ValueError(f"n is {n}: give a whole number of pairs, at least 1.")


def _check_spread(sd: float) -> None:
    if not (math.isfinite(sd) and sd >= 0):
        raise ValueError(f"the sd of a difference is {sd}: give a number of at least 0.")


def _sd(x: np.ndarray) -> np.ndarray:
    return x.std(-1, ddof=1) if x.shape[-1] > 1 else np.full(x.shape[:-1], np.nan)


def _rounding(x: np.ndarray) -> np.ndarray:
    """What rounding alone can put between values that are equal on paper."""
    return 4 * np.finfo(float).eps * np.abs(x).max(-1)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.shape[-1] < 3:
        return np.full(a.shape[:-1], np.nan)
    x, y = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip((x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1)), -1, 1)


def _t_interval(delta, se, df, alpha: float, flat, equal, p_flat):
    """(low, high, two-sided p); for arms without spread nan, nan, p_flat, for equal ones 0, 0, 1."""
    with np.errstate(invalid="ignore", divide="ignore"):
        half = special.stdtrit(df, 1 - alpha / 2) * se if np.all(np.asarray(df) > 0) or np.ndim(df) else se * np.nan
        p = np.minimum(1.0, 2 * special.stdtr(df, -np.abs(delta) / se))
    half = np.where(flat, np.where(equal, 0.0, np.nan), half)
    return delta - half, delta + half, np.where(flat, np.where(equal, 1.0, p_flat), p)


def _each(f, *arrays) -> np.ndarray:
    """f on every element; arrays broadcast."""
    parts = np.broadcast_arrays(*arrays)
    return np.array([f(*x) for x in zip(*(p.ravel().tolist() for p in parts), strict=True)]).reshape(parts[0].shape)


def _plain(stats: dict) -> dict:
    """0-d arrays and numpy scalars as Python's own, which json knows."""
    return {k: v.item() if isinstance(v, (np.ndarray, np.generic)) and np.ndim(v) == 0 else v for k, v in stats.items()}
