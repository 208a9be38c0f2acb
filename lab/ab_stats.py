"""ab_stats.py owns the statistics of an A/B: intervals, tests, power, verdicts. It reads and writes nothing.

    python -c "from lab import ab_stats; print(ab_stats.paired([3.301, 3.299, 3.302], [3.291, 3.292, 3.294]))"
    python experiments/bench/coverage.py --check       # shows by simulation that what is claimed here holds

A value is one number of one run (a val loss, an accuracy). Runs of equal seed share initial weights and the order of
data, so arms are compared by their differences within pairs of seeds. The seed is the unit: ten thousand items scored
by one checkpoint say nothing about the next seed, and fewer than three seeds never give a verdict. Delta is b - a.

Where an argument is an array of values, leading axes are allowed and give arrays of results, one per A/B (coverage.py
simulates thousands through the functions that users call). Bad input is a ValueError of one sentence.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from scipy import optimize, special

from lab import ab_alpha
from lab.ab_power import check_share, n_needed, n_needed_by_looks, noncentrality, rounding_of, sd_of, values_of

EXACT_PAIRS = 20  # up to here all 2^n sign flips are counted, above DRAWS random ones
EXACT_SPLITS = 20_000  # up to so many splits of the runs in two arms are all counted (8 + 8: 12,870)
DRAWS = 100_000
DRAW_SEED = 0
MIN_RUNS = 3  # pairs, or runs in each arm, below which nothing is called better, worse or equivalent
SMALL = ", by less than the margin"
SEED_FLOOR = 0.05  # least seed variance of hierarchical_bootstrap, as a share of the rest's

# ----------------------------------------------------------------------------------------------------------------------
# arms over seeds


def paired(a, b, alpha: float = 0.05, power: float = 0.8, effect: float | None = None,
           looks: int = 0) -> dict:
    """Two arms whose runs pair up by seed: paired t test, sign flips, and what this many pairs can see.

    a, b: (..., n) values, position i of both from seed i. effect: a difference one would want to detect (same unit).
    looks: the most pairs that were decided before the first look (ab_alpha); 0: this is the only one.
    Returns n (pairs), mean_a, sd_a, mean_b, sd_b, delta (b - a), sd_diff (of the n differences), se (sd_diff / sqrt n),
    df (n - 1), alpha, power, and
      ci_low, ci_high, p  1 - alpha interval of delta, and two-sided p, held over all looks
      p_t, level          the t test's own p, and the one at which p is alpha
      p_sign_flip         two-sided; exact for n <= 20. It cannot be below 2 / 2^n: 0.25 for three pairs
      correlation         Pearson r of the pairs; nan below three (two points always lie on a line)
      mde                 the delta that this n would find with `power` at two-sided alpha, given sd_diff
      n_for, n_for_effect pairs that would find a true difference as large as delta (inf when it is 0), and `effect`
                          (else None). n_for is as unsure as delta: plan with `effect`, not with what came out
      degenerate          the differences have no spread, though n >= 2
    n = 1: spread, interval and p are nan. No spread, but a difference (losses rounded to 4 decimals do that with two
    seeds): interval, mde and n_for are nan and p is p_sign_flip, which needs no spread. Arms that are equal in every
    pair have the interval [0, 0] and p = 1.
    """
    a, b = values_of(a, "a"), values_of(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape}, b {b.shape}: pairs need equal seeds; use unpaired() else.")
    check_share(alpha, "alpha")
    n = a.shape[-1]
    differences = b - a
    delta, sd = differences.mean(-1), sd_of(differences)
    rounding = np.maximum(rounding_of(a), rounding_of(b))
    flat = np.asarray(sd <= rounding) & (n > 1)  # no spread but the rounding of b - a
    equal = np.asarray(np.abs(differences).max(-1) <= rounding)
    sd, delta = np.where(flat, 0.0, sd), np.where(equal, 0.0, delta)
    flips = sign_flip(np.where(flat[..., None], delta[..., None], differences))
    result = {
        "n": n, "mean_a": a.mean(-1), "sd_a": sd_of(a), "mean_b": b.mean(-1), "sd_b": sd_of(b),
        "delta": delta, "p_sign_flip": flips, "correlation": _correlation(a, b),
        "sd_diff": sd, "se": sd / math.sqrt(n), "df": n - 1, "degenerate": flat,
        "alpha": alpha, "power": power, "looks": looks}
    result |= _inference(result, equal, flips)
    result |= _plan(result, flat | (n < 2), True, effect)
    return _plain(result)


def unpaired(a, b, alpha: float = 0.05, power: float = 0.8, effect: float | None = None,
             looks: int = 0) -> dict:
    """Two arms whose seeds do not match: Welch's test, which lets the arms differ in spread and in number of runs.

    p and the interval hold alpha whatever the spreads, where Welch's own p (p_t) is too small (ab_alpha):
    with 2 runs against 10 it finds 12 %.
    a: (..., n_a), b: (..., n_b). Keys as in paired(), with n_a, n_b, n = the smaller, df = Welch-Satterthwaite's,
    sd_diff = sqrt(sd_a^2 + sd_b^2), p_permutation (two-sided, by the difference of means over all splits of the runs
    into such arms, or 20,000 random ones), p_sign_flip and correlation = nan; n_for and n_for_effect are runs per arm.
    An arm of one run: interval and p are nan. No spread in either, but a difference: interval nan, p = p_permutation.
    """
    a, b = values_of(a, "a"), values_of(b, "b")
    if a.shape[:-1] != b.shape[:-1]:
        raise ValueError(f"a has shape {a.shape}, b {b.shape}: all axes but the last must agree.")
    check_share(alpha, "alpha")
    n_a, n_b = a.shape[-1], b.shape[-1]
    smaller = min(n_a, n_b)
    delta, sd_a, sd_b = b.mean(-1) - a.mean(-1), sd_of(a), sd_of(b)
    rounding = np.maximum(rounding_of(a), rounding_of(b))
    flat = np.asarray((sd_a <= rounding) & (sd_b <= rounding))
    equal = flat & (np.abs(delta) <= rounding)
    delta = np.where(equal, 0.0, delta)
    var_a, var_b = np.where(flat, 0.0, sd_a**2) / n_a, np.where(flat, 0.0, sd_b**2) / n_b
    se, df = np.sqrt(var_a + var_b), np.full(flat.shape, np.nan)
    if smaller > 1:
        with np.errstate(invalid="ignore", divide="ignore"):
            df = se**4 / (var_a**2 / (n_a - 1) + var_b**2 / (n_b - 1))
    permuted, unknown = _permutation(a, b), np.full_like(delta, np.nan)
    sd_diff = np.where(flat, 0.0, np.sqrt(sd_a**2 + sd_b**2))
    result = {
        "n": smaller, "n_a": n_a, "n_b": n_b, "mean_a": a.mean(-1), "sd_a": sd_a, "mean_b": b.mean(-1), "sd_b": sd_b,
        "delta": delta, "p_sign_flip": unknown, "p_permutation": permuted, "correlation": unknown,
        "sd_diff": sd_diff, "se": se, "df": df, "degenerate": flat,
        "alpha": alpha, "power": power, "looks": looks}
    result |= _inference(result, equal, permuted)
    result |= _plan(result, flat | (smaller < 2), False, effect)
    return _plain(result)


def _inference(result: dict, equal, p_flat) -> dict:
    """ci_low, ci_high, two-sided p, p_t, level; for arms without spread nan, nan, p_flat, for equal ones
    0, 0, 1."""
    delta, se, df, flat = (result[key] for key in ("delta", "se", "df", "degenerate"))
    design = design_of(result)
    level = ab_alpha.level_of(result["alpha"], design)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = special.stdtrit(df, 1 - level / 2) * se
        p_t = np.minimum(1.0, 2 * special.stdtr(df, -np.abs(delta) / se))
    half = np.where(flat, np.where(equal, 0.0, np.nan), half)
    p = ab_alpha.held(p_t, design)
    p_t, p = (np.where(flat, np.where(equal, 1.0, p_flat), x) for x in (p_t, p))
    return {"ci_low": delta - half, "ci_high": delta + half, "p": p, "p_t": p_t, "level": level}


def design_of(stats: dict) -> ab_alpha.Design:
    """The runs and looks of what paired() or unpaired() returned."""
    n_a = stats.get("n_a", stats["n"])
    return ab_alpha.Design(n_a, stats.get("n_b", 0), stats.get("looks", 0))


def interval(stats: dict, alpha: float) -> tuple[float, float]:
    """The 1 - alpha interval at another alpha than paired() or unpaired() was asked for; one A/B."""
    level = ab_alpha.level_of(alpha, design_of(stats))
    half = 0.0
    if stats["ci_high"] != stats["ci_low"]:  # nan: no spread
        half = float(special.stdtrit(stats["df"], 1 - level / 2)) * stats["se"]
    if math.isnan(stats["ci_low"]):
        half = math.nan
    return stats["delta"] - half, stats["delta"] + half


def _plan(result: dict, unknown, pairs: bool, effect: float | None) -> dict:
    """mde, n_for and n_for_effect; nan where the spread is unknown."""
    alpha, power, sd, looks = (result[key] for key in ("alpha", "power", "sd_diff", "looks"))
    spread, root, level = result["se"], 1.0, ab_alpha.level_of(alpha, design_of(result))
    if pairs:
        spread, root = sd, math.sqrt(result["n"])

    def smallest(spread, df, unknown):
        return math.nan if unknown else spread * (noncentrality(round(df, 2), False, level, power) / root)

    def runs_for(effect, sd, unknown):
        if unknown:
            return math.nan
        if looks and pairs:
            return n_needed_by_looks(effect, sd, looks, alpha, power)
        return n_needed(effect, sd, alpha, power, pairs)

    def runs_for_delta(delta, sd, unknown):
        if delta == 0 and not unknown:
            return math.inf
        return runs_for(delta, sd, unknown)

    n_for = _each(runs_for_delta, np.abs(result["delta"]), sd, unknown)
    plan = {"mde": _each(smallest, spread, result["df"], unknown), "n_for": n_for, "n_for_effect": None}
    if effect is not None:
        plan["n_for_effect"] = _each(runs_for, effect, sd, unknown)
    return plan


def sign_flip(differences) -> float | np.ndarray:
    """Two-sided p of "differences are as often positive as negative": the share of all 2^n ways to flip their signs
    whose sum is at least as far from 0 as the observed one, ties included. (..., n) -> (...).

    Exact for n <= 20 and any symmetric distribution (Fisher, The Design of Experiments, 1935, section 21); above,
    100,000 random flips with a fixed seed and the observed one, so that p is never 0. sign_flip([1, 2, 3]) is 0.25.
    scipy.stats.permutation_test takes 500 times as long at 20 pairs (measured) and misjudges sums that tie, which those
    of losses rounded to 4 decimals do.
    """
    d = values_of(differences, "differences")
    n = d.shape[-1]
    flat = d.reshape(-1, n)
    # sums that are equal on paper count as ties: 1e-9 of the largest possible sum is far above rounding, and far below
    # what a run's noise could hit by chance
    observed = np.abs(flat.sum(1)) - 1e-9 * np.abs(flat).sum(1)
    if n > EXACT_PAIRS:
        rng, count = np.random.default_rng(DRAW_SEED), np.ones(len(flat))
        for start in range(0, DRAWS, 5_000):
            signs = rng.integers(0, 2, (min(5_000, DRAWS - start), n)) * 2.0 - 1
            count += (np.abs(flat @ signs.T) >= observed[:, None]).sum(1)
        p = count / (DRAWS + 1)
    else:
        p, step = np.empty(len(flat)), max(1, 2**22 >> n)
        for start in range(0, len(flat), step):  # some A/Bs at a time
            rows = slice(start, start + step)
            sums = flat[rows, :1]  # the first sign stays: flipping all of them changes no distance from 0
            for i in range(1, n):
                column = flat[rows, i : i + 1]
                sums = np.concatenate([sums + column, sums - column], axis=1)
            p[rows] = (np.abs(sums) >= observed[rows, None]).mean(1)
    return _plain({"p": p.reshape(d.shape[:-1])})["p"]


def _permutation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two-sided p of the difference of means over splits of the runs into arms of these sizes. (scipy's doubles the
    smaller tail; here both tails are counted, which differs where the arms are of unequal size.)"""
    n_a, n = a.shape[-1], a.shape[-1] + b.shape[-1]
    both = np.concatenate([a, b], axis=-1).reshape(-1, n)
    both = both - both.mean(1, keepdims=True)  # so the mean difference is proportional to arm a's sum
    exact = math.comb(n, n_a) <= EXACT_SPLITS
    if exact:
        splits = np.array(list(combinations(range(n), n_a)))
    else:
        rng = np.random.default_rng(DRAW_SEED)
        splits = rng.permuted(np.tile(np.arange(n), (EXACT_SPLITS, 1)), axis=1)[:, :n_a]
    member = np.zeros((len(splits), n))
    np.put_along_axis(member, splits, 1.0, axis=1)
    slack = 1e-9 * np.abs(both).sum(1) + 1e-15 * np.abs(a).max(-1).reshape(-1) * n
    observed = np.abs(both[:, :n_a].sum(1)) - slack
    count, step = np.empty(len(both)), max(1, 2**22 // len(member))
    for start in range(0, len(both), step):
        rows = slice(start, start + step)
        count[rows] = (np.abs(both[rows] @ member.T) >= observed[rows, None]).sum(1)
    p = count / len(splits)
    if not exact:
        p = (count + 1) / (len(splits) + 1)  # the observed split counts as one of them
    return p.reshape(a.shape[:-1])


def equivalence(a, b, delta: float, alpha: float = 0.05, paired_seeds: bool = True,
                looks: int = 0) -> dict:
    """Two one-sided t tests (Schuirmann 1987): is the difference shown to lie within ± delta?

    Returns p (the larger of the two), ci_low, ci_high (the 1 - 2 alpha interval: 90 % for alpha 0.05), margin, n, and
    verdict: "equivalent" when p < alpha, which is when that interval lies inside ± delta, else "inconclusive". delta
    is the smallest difference that would matter, chosen before looking. paired_seeds=False: Welch instead of pairs.
    looks: as in paired().
    """
    test = paired if paired_seeds else unpaired
    stats = test(a, b, 2 * alpha, looks=looks)
    p = _tost(stats, delta)
    word = np.where(p < alpha, "equivalent", "inconclusive")
    ends = {key: stats[key] for key in ("ci_low", "ci_high", "n")}
    return _plain({"p": p, **ends, "margin": delta, "verdict": word})


def _tost(stats: dict, margin: float) -> np.ndarray:
    """p of equivalence within ± margin, from what paired() or unpaired() returned; without spread 0 for equal arms,
    nan for others."""
    if not (isinstance(margin, (int, float)) and math.isfinite(margin) and margin > 0):
        raise ValueError(f"the equivalence margin is {margin!r}: "
                         "give a positive number in the metric's unit.")
    if "se" not in stats or "df" not in stats:
        raise ValueError("equivalence needs se and df: give what paired() or unpaired() returned.")
    delta, se, df = (np.asarray(stats[k], dtype=float) for k in ("delta", "se", "df"))
    with np.errstate(invalid="ignore", divide="ignore"):
        # both tails as lower tails, which keep their digits
        p = np.maximum(special.stdtr(df, -(delta + margin) / se), special.stdtr(df, (delta - margin) / se))
    if "n" in stats:  # a one-sided p is half of a two-sided one
        p = np.where(p < 0.5, ab_alpha.held(np.minimum(1.0, 2 * p), design_of(stats)) / 2, p)
    return np.where(se > 0, p, np.where((se == 0) & (delta == 0), 0.0, np.nan))


def too_few(n: int) -> str:
    """The verdict of fewer than MIN_RUNS pairs, or runs in an arm."""
    return f"n = {n}: too few"


def verdict(stats: dict, better: str = "lower", equivalence_margin: float | None = None,
            alpha: float | None = None, p_equivalent=None) -> str | np.ndarray:
    """What may be said of b against a: "better" | "worse", each perhaps with ", by less than the margin", |
    "equivalent" | "inconclusive" | "n = 2: too few".

    stats: from paired() or unpaired(). better: which way this metric improves. alpha: default the one in stats.
    p_equivalent: of equivalence(), where it was corrected over several tests. The first rule that applies:
    1. fewer than 3 pairs, or 3 runs in an arm: too few, however large the difference. With two, everything rests on
       the normal distribution;
    2. p < alpha (the 1 - alpha interval leaves out 0): better or worse by the sign of delta. With a margin, and the
       1 - 2 alpha interval within it: better or worse, by less than the margin (real, but too small to matter);
    3. with a margin, the 1 - 2 alpha interval within it and 0 within the 1 - alpha interval: equivalent;
    4. else inconclusive, which is not "no difference": look at mde for what could have been seen.
    Where there is no difference, "better" or "worse" comes with probability alpha at most, both together. A metric
    tested among others takes its Holm-adjusted p: verdict(stats | {"p": adjusted}).
    """
    if better not in ("lower", "higher"):
        raise ValueError(f'better is {better!r}: give "lower" (a loss) or "higher" (an accuracy).')
    if alpha is None:
        alpha = stats.get("alpha", 0.05)
    check_share(alpha, "alpha")
    delta, p = np.asarray(stats["delta"], dtype=float), np.asarray(stats["p"], dtype=float)
    within = np.zeros(delta.shape, bool)
    if equivalence_margin is not None:
        tost = _tost(stats, equivalence_margin) if p_equivalent is None else p_equivalent
        within = np.asarray(tost, dtype=float) < alpha
    improved = (delta < 0) == (better == "lower")
    large = np.where(improved, "better", "worse")
    small = np.where(improved, f"better{SMALL}", f"worse{SMALL}")
    ends = (stats.get(key, math.nan) for key in ("ci_low", "ci_high"))
    low, high = (np.asarray(end, dtype=float) for end in ends)
    leaves_out_0 = (low > 0) | (high < 0)
    words = np.where(within & ~leaves_out_0, "equivalent", "inconclusive")
    words = np.where((p < alpha) & (delta != 0), np.where(within, small, large), words)
    if stats["n"] < MIN_RUNS:
        words = np.full(delta.shape, too_few(stats["n"]))
    if words.ndim == 0:
        return str(words)
    return words


def holm(pvalues):
    """p adjusted so that P(any false finding) <= alpha, whatever the tests' dependence (Holm 1979), in the same order.

    A dict gives a dict, a list a list. nan and None are tests that were not made: they stay nan and do not count.
    """
    if isinstance(pvalues, dict):
        return dict(zip(pvalues, holm(list(pvalues.values())), strict=True))
    p = np.array([math.nan if x is None else x for x in pvalues], dtype=float)
    wrong = p[(p < 0) | (p > 1)]
    if len(wrong):
        raise ValueError(f"{wrong[0]} is no p-value: give numbers from 0 to 1, or nan for no test.")
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    p[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return p.tolist()


# ----------------------------------------------------------------------------------------------------------------------
# benchmark items


def hierarchical_bootstrap(credit_a, credit_b, clusters, categories=None, n_boot: int = 2000, seed: int = 0,
                           alpha: float = 0.05) -> dict:
    """Delta of a benchmark's score, with an interval for new seeds AND new items of the same kind.

    credit_a, credit_b: (n_seeds, n_items), credit of an item in 0..1 (ties may give a fraction), row s of both from
    the same seed, column i the same item. clusters: n_items labels; items of one cluster share a text (HellaSwag
    source_id) or a template (EWoK) and count as one draw. categories: n_items labels; then the score is the mean over
    categories of the means within (EWoK's official macro-average), clusters nested in them.
    Returns delta, ci_low, ci_high, p (two-sided), n (seeds), n_items, n_clusters, ci_items_low, ci_items_high (these
    very checkpoints, new items only), se_seeds, se_items (the two parts of the standard error), alpha.
    One seed, or seeds that agree on every item (copies of a run): ci_low, ci_high, p are nan.

    How. D_si = credit_b - credit_a = delta + seed_s + item_i + rest_si. Resampling three to eight seeds makes the
    spread too small (Davison & Hinkley 1997, Bootstrap Methods and their Application, 2.3 and 3.8), and a pigeonhole
    bootstrap (Owen 2007, arXiv:0712.1111) counts rest_si thrice. So only items are resampled:
      seeds   V_seed, the variance of the seeds' means / S, is the (seed + rest) part: sqrt(V_seed) * t_{S-1}. Without
              item effects this alone is the paired t test. At least V_rest / 20, as only luck makes it smaller.
      items   clusters are resampled within categories, seeds and arms together (Miller 2024, arXiv:2411.00640). These
              draws spread by V_item, the (item + rest) part: a cluster's residual is divided by sqrt(1 -
              its share of the items), sqrt((C-1) / C) for equal ones (Rao & Wu 1988; Bell & McCaffrey
              2002), and the draws by sqrt(chi^2_df / df), as few clusters are also few: unequal sizes lower
              the df (cluster_df). They shrink by sqrt(1 - V_rest / V_item), as V_rest is in V_seed
              already. A category with one cluster gets the average variance of the others.
    delta is distributed as their sum: n_boot draws with the whole t curve of the seeds. ci is its alpha/2 and
    1 - alpha/2 quantiles, p twice its tail beyond 0. At worst it covers about 98 % for 95 % with three seeds, where a
    plain bootstrap covers 81 to 100 % (experiments/bench/coverage.py).
    """
    a, b = (np.asarray(x, dtype=float) for x in (credit_a, credit_b))
    if a.ndim != 2 or a.shape != b.shape or 0 in a.shape:
        raise ValueError(f"credits have shapes {a.shape}, {b.shape}: give (n_seeds, n_items) of the same items.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("credits hold nan or infinite values: leave out unscored items in both arms.")
    check_share(alpha, "alpha")
    if n_boot < 100:
        raise ValueError(f"n_boot is {n_boot}: give at least 100 resamples, 2000 for a report.")
    n_seeds, n_items = a.shape
    groups = np.zeros(n_items, int)
    if categories is not None:
        groups = _labels(categories, n_items, "categories")
    n_groups = int(groups.max()) + 1
    texts = _labels(clusters, n_items, "clusters")
    texts = np.unique(groups * (int(texts.max()) + 1) + texts, return_inverse=True)[1].reshape(-1)
    difference, n_clusters = b - a, int(texts.max()) + 1
    totals = np.stack([np.bincount(texts, row, n_clusters) for row in difference])  # (S, C) sums of D
    sizes = np.bincount(texts, minlength=n_clusters)
    group_of = np.zeros(n_clusters, int)
    group_of[texts] = groups

    # the items' part, category by category
    rng = np.random.default_rng(seed)
    per_seed, draws = np.zeros(n_seeds), np.zeros(n_boot)
    v_item, v_rest, v_item_squared, n_single = 0.0, 0.0, 0.0, 0
    for group in range(n_groups):
        member = group_of == group
        t, n, c = totals[:, member], sizes[member], int(member.sum())
        weight = 1 / (n.sum() * n_groups)  # of one item in the score
        means = t.sum(1) / n.sum()
        per_seed += means / n_groups
        if c == 1:
            n_single += 1
            continue
        share_of_cluster = n / n.sum()  # a large one pulls the mean towards itself
        residual = (t - means[:, None] * n) * weight / np.sqrt(1 - share_of_cluster)  # (S, c)
        common = residual.mean(0)
        v = float(common @ common)
        v_item, v_item_squared = v_item + v, v_item_squared + v * v / cluster_df(share_of_cluster)
        if n_seeds > 1:
            squares = float(((residual - common) ** 2).sum())
            v_rest += squares / ((n_seeds - 1) * n_seeds)
        centred = common - common.mean()
        spread = float(centred @ centred)
        if spread > 0:
            draws += math.sqrt(v / spread) * _resample(centred, n_boot, rng)
    if n_single == n_groups:
        raise ValueError("every category has one cluster: nothing to resample; give finer clusters.")
    share = n_groups / (n_groups - n_single)
    v_item, v_rest, draws = v_item * share, v_rest * share, draws * math.sqrt(share)
    if v_item > 0:
        df = (v_item / share) ** 2 / v_item_squared
        draws *= np.sqrt(df / rng.chisquare(df, n_boot))

    # the seeds' part
    delta, v_seed = float(per_seed.mean()), math.nan
    if n_seeds > 1:
        v_seed = float(per_seed.var(ddof=1)) / n_seeds
    v_pure = max(0.0, v_item - v_rest)
    items_low, items_high = np.quantile(draws, [alpha / 2, 1 - alpha / 2]).tolist()
    result = {
        "delta": delta, "ci_low": math.nan, "ci_high": math.nan, "p": math.nan,
        "n": n_seeds, "n_items": n_items, "n_clusters": n_clusters,
        "ci_items_low": delta + items_low, "ci_items_high": delta + items_high,
        "se_seeds": math.sqrt(v_seed), "se_items": math.sqrt(v_pure), "alpha": alpha}
    if n_seeds == 1:
        return result
    if not difference.any():
        return result | {"ci_low": 0.0, "ci_high": 0.0, "p": 1.0}
    tiny = (8 * np.finfo(float).eps) ** 2
    if v_seed <= tiny and v_rest <= tiny:
        return result

    # the sum of both: quantiles and tails
    if v_item > 0:
        draws = draws * math.sqrt(v_pure / v_item)
    scale = math.sqrt(max(v_seed, SEED_FLOOR * v_rest))
    df = n_seeds - 1
    reach = (-special.stdtrit(df, alpha / 4) + 1) * scale + float(np.abs(draws).max())
    low = _quantile_of_sum(draws, scale, df, alpha / 2, reach)
    high = _quantile_of_sum(draws, scale, df, 1 - alpha / 2, reach)
    tail = min(_below(-delta, draws, scale, df), _below(delta, -draws, scale, df))
    return result | {"ci_low": delta + low, "ci_high": delta + high, "p": min(1.0, 2 * tail)}


def cluster_df(share: np.ndarray) -> float:
    """Degrees of freedom of the variance between clusters with these shares of the items: one less than the
    effective number of clusters, (sum of squares)^2 / sum of fourth powers (Carter, Schnepel & Steigerwald
    2017); C - 1 for equal ones."""
    return max(1.0, float((share**2).sum() ** 2 / (share**4).sum()) - 1)


def _below(x: float, draws: np.ndarray, scale: float, df: int) -> float:
    """P(draw + scale * t_df < x), the draws equally likely."""
    return float(special.stdtr(df, (x - draws) / scale).mean())


def _quantile_of_sum(draws: np.ndarray, scale: float, df: int, q: float, reach: float) -> float:
    """The x within +- reach at which _below is q."""
    return optimize.brentq(lambda x: _below(x, draws, scale, df) - q, -reach, reach, xtol=1e-7 * scale)


def _resample(residual: np.ndarray, n_boot: int, rng: np.random.Generator) -> np.ndarray:
    """(n_boot,) sums of as many clusters drawn with replacement as there are, 32 MB of indices at a time."""
    n, parts = len(residual), []
    step = max(1, 2**22 // n)
    for start in range(0, n_boot, step):
        drawn = rng.integers(0, n, (min(step, n_boot - start), n))
        parts.append(residual[drawn].sum(1))
    return np.concatenate(parts)


def mcnemar(correct_a, correct_b) -> dict:
    """Two single checkpoints on the same items: exact McNemar test, two-sided.

    correct_a, correct_b: (n_items,) credit, 0 or 1, or a fraction for ties (1/k for k endings that tie). Returns b and
    c, the items with more credit in a and in b, p (the binomial chance of so uneven a split of b + c at 1/2), n, delta
    (mean credit of b - a). It speaks of these two checkpoints and new items, never of the treatment: that takes seeds.
    """
    a, b = values_of(correct_a, "correct_a"), values_of(correct_b, "correct_b")
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"credits have shapes {a.shape} and {b.shape}: give one number per item in both.")
    only_a, only_b = int((a > b + 1e-12).sum()), int((b > a + 1e-12).sum())
    p, uneven = 1.0, only_a + only_b
    if uneven:
        p = min(1.0, 2 * float(special.bdtr(min(only_a, only_b), uneven, 0.5)))
    return {"p": p, "b": only_a, "c": only_b, "n": len(a), "delta": float((b - a).mean())}


# ----------------------------------------------------------------------------------------------------------------------
# small parts


def _labels(labels, n: int, name: str) -> np.ndarray:
    """(n,) labels of any kind -> 0, 1, 2, ..."""
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"{name} has shape {labels.shape} for {n} items: give one label per item.")
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.shape[-1] < 3:
        return np.full(a.shape[:-1], np.nan)
    x, y = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip((x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1)), -1, 1)


def _each(function, *arrays) -> np.ndarray:
    """function on every element; arrays broadcast."""
    arrays = np.broadcast_arrays(*arrays)
    rows = zip(*(array.ravel().tolist() for array in arrays), strict=True)
    return np.array([function(*row) for row in rows]).reshape(arrays[0].shape)


def _plain(result: dict) -> dict:
    """0-d arrays and numpy scalars as Python's own, which json knows."""
    scalar = (np.ndarray, np.generic)
    return {k: v.item() if isinstance(v, scalar) and np.ndim(v) == 0 else v for k, v in result.items()}
