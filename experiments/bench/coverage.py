"""coverage.py shows by simulation that the statistics of ab_stats.py hold: intervals cover, false findings stay rare.

    python experiments/bench/coverage.py --check                 # about five minutes on one thread
    python experiments/bench/coverage.py --out coverage.json     # every row with its numbers
    python experiments/bench/coverage.py --quick --check         # fewer simulations, seconds; bounds widen accordingly

Every A/B is simulated through the functions that users call. Losses are normal with sd 0.0013 around 3.3 (the spread of
seeds in FACTS); the two runs of a seed correlate by r. Each row names its target and the Monte-Carlo standard error (MC
se) of its rate; a rate passes when it lies inside the target widened by 3 MC se.

1. Paired t: coverage, false positives (better or worse), power at the stated minimum detectable effect.
2. Sign flips: P(p <= level) must equal every level that can occur. Welch: coverage and false positives.
3. Losses that are not normal (reported; only the sign-flip test, which needs symmetry alone, has a target).
4. Planning: minimum detectable effect and number of pairs against simulated power, within 10 %; the figures of FACTS.
5. Holm: family-wise errors over ten correlated metrics. Equivalence, the band of a noise floor, McNemar.
6. hierarchical_bootstrap on right-or-wrong items with difficulties, clusters, seeds, seed x arm and arm x item effects,
   beside a plain bootstrap of seeds and clusters (on a quarter of them). Truth: the mean over all seeds and items.
7. The same at variances that benchmarks hardly have; target 93 to 98 %.
8. Small and unequal: two pairs, arms of other sizes and spreads (beside Welch's own p), any false "equivalent" among
   many arms, looks after every pair, plans by a measured noise.
9. hierarchical_bootstrap on few clusters of items, of equal and unequal sizes.
10. The interval over documents of unequal size. Equal wall-clock between evaluations that are up to a run apart, beside
    a straight line between them.

Reads nothing; prints Markdown; --out writes one JSON. --check: exit status 1 when a row misses its target.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import scipy
import scipy.stats
from scipy import optimize, special
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import ab_alpha, ab_items, ab_numbers, ab_power, ab_stats, ab_verdict, flags  # noqa: E402

SIGMA, LOSS, ALPHA = 0.0013, 3.3, 0.05
NS, CORRELATIONS = (3, 5, 8), (0.0, 0.5, 0.8)


class Table:
    """Rows of one section: prints them as Markdown, keeps them for --out, remembers what missed its target."""

    def __init__(self):
        self.rows: list[dict] = []

    def start(self, title: str) -> None:
        print(f"\n## {title}\n\n| setting | quantity | value | MC se | target | |")
        print("|---|---|---:|---:|---|---|", flush=True)
        self.section = title

    def add(self, setting: str, quantity: str, value: float, low: float | None = None, high: float | None = None,
            se: float = 0.0, unit: str = "%") -> None:
        """low, high: the target, None: no bound. se: Monte-Carlo standard error; the target widens by 3 of it."""
        ok = (low is None or value >= low - 3 * se - 1e-12) and (high is None or value <= high + 3 * se + 1e-12)
        bound = low is not None or high is not None
        show = lambda x: f"{100 * x:.2f} %" if unit == "%" else f"{x:.5g}{unit}"
        target = (f"{show(low)} to {show(high)}" if low is not None and high is not None else
                  f">= {show(low)}" if low is not None else f"<= {show(high)}" if high is not None else "")
        print(f"| {setting} | {quantity} | {show(value)} | {show(se) if se else ''} | {target} | "
              f"{'' if not bound else 'ok' if ok else 'MISSED'} |", flush=True)
        self.rows.append({"section": self.section, "setting": setting, "quantity": quantity, "value": value,
                          "mc_se": se, "low": low, "high": high, "ok": ok if bound else None})

    def rate(self, setting: str, quantity: str, hits, low: float | None = None, high: float | None = None) -> None:
        """A share of simulations; its se is taken at the nearest bound, so that a rate of 0 or 1 has one too."""
        hits = np.asarray(hits)
        p = float(hits.mean())
        at = min((x for x in (low, high) if x is not None), key=lambda x: abs(x - p), default=p)
        self.add(setting, quantity, p, low, high, math.sqrt(max(at * (1 - at), 1e-12) / hits.size))


def pairs(rng, sims: int, n: int, r: float, effect: float = 0.0, sigma: float = SIGMA) -> tuple[np.ndarray, np.ndarray]:
    """(a, b), each (sims, n): losses of n seeds in two arms whose seeds correlate by r."""
    z, y = rng.standard_normal((2, sims, n))
    return LOSS + sigma * z, LOSS + effect + sigma * (r * z + math.sqrt(1 - r * r) * y)


def inside(stats: dict, truth: float) -> np.ndarray:
    return (stats["ci_low"] <= truth) & (truth <= stats["ci_high"])


def paired_t(table: Table, rng, sims: int) -> None:
    table.start("1. Paired t over seeds")
    for n in NS:
        for r in CORRELATIONS:
            sd = ab_power.sd_of_difference(SIGMA, r)
            for effect in (0.0, -ab_power.mde(n, sd)):
                stats = ab_stats.paired(*pairs(rng, sims, n, r, effect))
                verdict = ab_stats.verdict(stats, "lower", alpha=ALPHA)
                name = f"n = {n}, r = {r:g}, effect {effect:.4f}"
                table.rate(name, "95 % interval covers", inside(stats, effect), 0.94, 0.96)
                if effect == 0:
                    table.rate(name, "false better or worse", (verdict == "better") | (verdict == "worse"), None, 0.05)
                else:
                    table.rate(name, "better, at the mde for 80 %", verdict == "better", 0.78, 0.82)
                    table.rate(name, "worse, the wrong way", verdict == "worse", None, 0.025)


def sign_flips_and_welch(table: Table, rng, sims: int) -> None:
    table.start("2. Sign flips, Welch, permutations")
    for n in NS:
        a, b = pairs(rng, sims, n, 0.5)
        p = ab_stats.paired(a, b)["p_sign_flip"]
        levels = np.arange(1, 2 ** (n - 1) + 1) / 2 ** (n - 1)  # all that can occur
        attained = np.array([(p <= level + 1e-9).mean() for level in levels])
        z = np.abs(attained - levels) / np.sqrt(np.maximum(levels * (1 - levels), 1e-12) / sims)
        limit = -special.ndtri(0.001 / len(levels))  # all levels together miss it in 2 of 1,000 repeats
        table.add(f"n = {n}", f"largest distance of P(p <= level) from level, {len(levels)} levels",
                  float(z[:-1].max()), None, float(limit), unit=" se")
        table.add(f"n = {n}", "smallest p seen (2 / 2^n)", float(p.min()), 2 / 2**n, 2 / 2**n, unit="")
    for n_a, n_b in ((3, 3), (3, 5), (5, 5), (8, 8), (3, 8)):
        for ratio in (1.0, 2.0):
            a = LOSS + SIGMA * rng.standard_normal((sims, n_a))
            b = LOSS + ratio * SIGMA * rng.standard_normal((sims, n_b))
            stats = ab_stats.unpaired(a, b)
            verdict = ab_stats.verdict(stats)
            name = f"{n_a} and {n_b} runs, sd ratio {ratio:g}"
            table.rate(name, "Welch's held 95 % interval covers", inside(stats, 0.0), 0.95, 0.98)
            table.rate(name, "false better or worse", verdict != "inconclusive", None, 0.05)
            if ratio == 1:
                table.rate(name, "permutation p <= 0.05", stats["p_permutation"] <= 0.05, None, 0.05)


def not_normal(table: Table, rng, sims: int) -> None:
    table.start("3. Losses that are not normal (no target but the sign flips')")
    for n in NS:
        draws = {"t with 3 degrees of freedom": lambda n=n: rng.standard_t(3, (sims, n)) / math.sqrt(3),
                 "one run in ten has 5 x the spread": lambda n=n: rng.standard_normal((sims, n)) * np.where(
                     rng.random((sims, n)) < 0.1, 5, 1),
                 "skewed (exponential)": lambda n=n: rng.exponential(1, (sims, n)) - 1}
        for kind, draw in draws.items():
            a, b = LOSS + SIGMA * draw(), LOSS + SIGMA * draw()
            stats = ab_stats.paired(a, b)
            table.rate(f"n = {n}, {kind}", "95 % interval covers", inside(stats, 0.0))
            table.rate(f"n = {n}, {kind}", "sign flips p <= 0.25", stats["p_sign_flip"] <= 0.25, None, 0.25)
    for n in (2, *NS):
        a, b = pairs(rng, sims, n, 0.8)
        for decimals in (4, 3):
            verdict = ab_stats.verdict(ab_stats.paired(a.round(decimals), b.round(decimals)))
            table.rate(f"n = {n}, r = 0.8, losses rounded to {decimals} decimals", "false better or worse",
                       np.isin(verdict, ("better", "worse")), None, 0.0 if n == 2 else None)


def planning(table: Table, rng, sims: int) -> None:
    table.start("4. Planning against simulated power")
    grid = np.linspace(0.85, 1.15, 7)
    for n in NS:
        for paired in (True, False):
            stated = ab_power.mde(n, ab_power.sd_of_difference(SIGMA), paired=paired)
            a, b = pairs(rng, sims, n, 0.0)
            test = ab_stats.paired if paired else ab_stats.unpaired
            powers = [simulated_power(test, a, b + stated * g) for g in grid]
            table.add(f"n = {n}{'' if paired else ' per arm, unpaired'}",
                      f"simulated / stated mde ({stated:.5f})", float(np.interp(0.8, powers, grid * stated)) / stated,
                      0.9, 1.1, unit="")
    for n in (3, 4, 5, 8, 12):
        for paired in (True, False):
            effect = math.sqrt(ab_power.mde(n, 1.0, paired=paired) * ab_power.mde(n - 1, 1.0, paired=paired))
            stated, powers = ab_power.n_needed(effect, 1.0, paired=paired), {}
            for k in (stated - 1, stated, stated + 1):
                a, b = pairs(rng, sims, k, 0.0, effect, sigma=math.sqrt(0.5))
                powers[k] = simulated_power(ab_stats.paired if paired else ab_stats.unpaired, a, b)
            simulated = next((k for k, power in powers.items() if power >= 0.8), math.inf)
            table.add(f"effect {effect:.3f} sd of a difference, {'paired' if paired else 'unpaired'}",
                      f"simulated / stated number of {'pairs' if paired else 'runs per arm'} ({stated})",
                      simulated / stated, 0.9, 1.1, unit="")
    table.add("FACTS: three pairs", "smallest two-sided sign-flip p", ab_stats.sign_flip([1.0, 2.0, 3.0]), 0.25, 0.25,
              unit="")


def simulated_power(test, a, b) -> float:
    """Simulated power of `test` to find a difference at ALPHA."""
    return float(np.mean(test(a, b)["p"] < ALPHA))


def families_and_bands(table: Table, rng, sims: int) -> None:
    table.start("5. Holm, equivalence, noise floor, McNemar")
    for r, real in ((0.0, 0), (0.5, 0), (0.9, 0), (0.5, 3)):  # ten metrics whose differences correlate by r
        n, m = 5, 10
        shared = rng.standard_normal((sims, 1, n))
        d = math.sqrt(r) * shared + math.sqrt(1 - r) * rng.standard_normal((sims, m, n))
        d[:, :real] += 2.5
        p = ab_stats.paired(np.zeros_like(d), d)["p"]
        errors = [min(ab_stats.holm(row)[real:]) < ALPHA for row in p]
        name = f"10 metrics, correlation {r:g}, {real} real effects"
        table.rate(name, "any false finding after Holm", errors, None, 0.05)
        if not real and r == 0:
            table.rate(name, "any false finding without", (p < ALPHA).any(1))
    for n in NS:
        margin = 0.003
        a, b = pairs(rng, sims, n, 0.5, margin)
        table.rate(f"n = {n}, true difference = margin", "false equivalent",
                   ab_stats.equivalence(a, b, margin)["verdict"] == "equivalent", None, 0.05)
    for n in (4, 8):
        x, hits, spread = LOSS + SIGMA * rng.standard_normal((min(sims, 4_000), n + 1)), [], []
        for row in x:
            noise = ab_power.noise_floor(row[:-1].tolist(), n_pairs=())
            hits.append(ab_power.in_band(row[-1], noise))
            spread.append(noise["sd_low"] <= SIGMA <= noise["sd_high"])
        table.rate(f"noise floor of {n} runs", "a new run lies in the band", hits, 0.94, 0.96)
        table.rate(f"noise floor of {n} runs", "the sd's interval covers", spread, 0.94, 0.96)
    right = rng.random((min(sims, 4_000), 2, 500)) < 0.3
    table.rate("500 items, equal checkpoints", "McNemar p < 0.05",
               [ab_stats.mcnemar(a, b)["p"] < ALPHA for a, b in right.astype(float)], None, 0.05)


# ----------------------------------------------------------------------------------------------------------------------
# items. latent = level + difficulty + cluster + seed + arm * (effect + arm x cluster + arm x item) + seed x arm + rest,
# right when above 0; all parts are normal, so the expected accuracy of an arm is known exactly

PARTS = {"difficulty": 1.0, "cluster": 0.4, "seed": 0.03, "arm x cluster": 0.1, "arm x item": 0.15, "seed x item": 0.6,
         "rest": 0.5}


def layout(kind: str, rng) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """(cluster of each item, category of each item or None, level of each item)."""
    if kind == "HellaSwag-like":  # 1,000 items, 400 clusters: every cluster one item, the rest at random; 30 % right
        return np.concatenate([np.arange(400), rng.integers(0, 400, 600)]), None, np.full(1000, -0.72)
    clusters, categories, levels = [], [], []  # 11 categories of 3 to 9 templates of 5 to 30 items; 45 to 65 % right
    for category, templates in enumerate((9, 5, 4, 3, 8, 9, 3, 4, 5, 9, 7)):
        for _ in range(templates):
            size = int(rng.integers(5, 31))
            clusters += [len(set(clusters))] * size
            categories += [category] * size
            levels += [-0.2 + 0.08 * category] * size
    return np.array(clusters), np.array(categories), np.array(levels)


def macro(x: np.ndarray, categories: np.ndarray | None) -> float:
    """Mean over categories of the means within."""
    return float(x.mean()) if categories is None else float(np.mean([x[categories == c].mean()
                                                                     for c in np.unique(categories)]))


def expected(levels, categories, seed_arm: float, effect: float) -> tuple[float, float]:
    """Accuracies of both arms over all seeds and items."""
    base = variance(seed_arm)
    extra = PARTS["arm x cluster"] ** 2 + PARTS["arm x item"] ** 2
    return (macro(special.ndtr(levels / math.sqrt(base)), categories),
            macro(special.ndtr((levels + effect) / math.sqrt(base + extra)), categories))


def variance(seed_arm: float) -> float:
    """Of the latent value in the first arm."""
    return sum(PARTS[k] ** 2 for k in ("difficulty", "cluster", "seed", "seed x item", "rest")) + seed_arm**2


def points(levels, seed_arm: float) -> float:
    """sd over seeds of the difference of accuracies that seed x arm makes, in percentage points."""
    sd = math.sqrt(variance(seed_arm))
    density = float(np.mean(np.exp(-((levels / sd) ** 2) / 2))) / math.sqrt(2 * math.pi)
    return 100 * math.sqrt(2) * seed_arm / sd * density


def simulate(rng, n: int, clusters, levels, seed_arm: float, effect: float) -> tuple[np.ndarray, np.ndarray]:
    """(credit_a, credit_b), each (n seeds, items)."""
    p, items, draw = PARTS, len(clusters), rng.standard_normal
    c = int(clusters.max()) + 1
    item = levels + p["difficulty"] * draw(items) + (p["cluster"] * draw(c))[clusters]
    arm = effect + (p["arm x cluster"] * draw(c))[clusters] + p["arm x item"] * draw(items)
    both = item + p["seed"] * draw((n, 1)) + p["seed x item"] * draw((n, items))
    noise = seed_arm * draw((2, n, 1)) + p["rest"] * draw((2, n, items))
    return (both + noise[0] > 0).astype(float), (both + arm + noise[1] > 0).astype(float)


def plain_bootstrap(rng, difference, clusters, categories, n_boot: int) -> tuple[float, float]:
    """Percentile interval when seeds and clusters are simply drawn with replacement, for comparison."""
    n, c = len(difference), int(clusters.max()) + 1
    kinds = np.zeros(c, int)
    kinds[clusters] = 0 if categories is None else categories
    draws = np.zeros(n_boot)
    sums = np.stack([np.bincount(clusters, row, c) for row in difference])
    sizes = np.bincount(clusters, minlength=c)
    seeds = rng.multinomial(n, np.full(n, 1 / n), n_boot) / n  # (B, n)
    for kind in np.unique(kinds):
        member = kinds == kind
        picked = rng.multinomial(member.sum(), np.full(member.sum(), 1 / member.sum()), n_boot)  # (B, clusters)
        draws += ((picked @ sums[:, member].T) * seeds).sum(1) / (picked @ sizes[member])
    low, high = np.quantile(draws / len(np.unique(kinds)), [0.025, 0.975])
    return float(low), float(high)


def items(table: Table, rng, sims: int, n_boot: int) -> None:
    table.start(f"6. Benchmark items: hierarchical_bootstrap (n_boot {n_boot})")
    settings = [(kind, n, seed_arm, effect) for kind in ("HellaSwag-like", "EWoK-like") for n in NS
                for seed_arm, effect in ((0.0, 0.0), (0.02, 0.0), (0.04, 0.1))
                if kind == "HellaSwag-like" or seed_arm]
    with tqdm(total=len(settings) * sims, disable=None, unit="A/B", leave=False) as bar:
        for kind, n, seed_arm, effect in settings:
            clusters, categories, levels = layout(kind, np.random.default_rng(7))
            if effect == 0:  # arm x item effects pull accuracy towards 1/2: find the shift that makes the truth 0
                effect = optimize.brentq(lambda x, args=(levels, categories, seed_arm): np.diff(expected(*args, x))[0],
                                         -0.5, 0.5, xtol=1e-12)
            before, after = expected(levels, categories, seed_arm, effect)
            truth, ours, plain, deltas = after - before, [], [], []
            for i in range(sims):
                a, b = simulate(rng, n, clusters, levels, seed_arm, effect)
                boot = ab_stats.hierarchical_bootstrap(a, b, clusters, categories, n_boot=n_boot, seed=i)
                ours.append((boot["ci_low"], boot["ci_high"]))
                if i % 4 == 0:  # costs more than all the rest, and is here for comparison only
                    plain.append(plain_bootstrap(rng, b - a, clusters, categories, n_boot))
                deltas.append(boot["delta"])
                bar.update()
            name = (f"{kind}, n = {n}, seed x arm {points(levels, seed_arm):.1f} points, "
                    f"effect {abs(round(100 * truth, 1)):.1f}")
            for who, intervals, bounds in (("", ours, (0.93, 0.97)), ("plain bootstrap: ", plain, (None, None))):
                low, high = np.array(intervals).T
                table.rate(name, f"{who}95 % interval covers", (low <= truth) & (truth <= high), *bounds)
                table.add(name, f"{who}mean half width, points", 50 * float((high - low).mean()), unit="")
            off = abs(float(np.mean(deltas)) - truth) / (float(np.std(deltas)) / math.sqrt(sims))
            table.add(name, "distance of the mean delta from the known truth", off, None, 4.0, unit=" se")


def stress(table: Table, rng, sims: int, n_boot: int) -> None:
    """Normal D = seed + item + rest on 60 clusters of one item, at shares of the variance of its mean that benchmarks
    hardly have, among them the worst found for three seeds: where both parts weigh and seeds are few."""
    table.start(f"7. hierarchical_bootstrap at the edges (n_boot {n_boot})")
    shares = ((0, 1, 0), (0, 1, 1), (4, 1, 0.2), (0.3, 0.1, 1), (10, 0.1, 1))  # seeds, rest, items
    settings = [(n, *share) for n in (3, 8) for share in shares]
    with tqdm(total=len(settings) * sims, disable=None, unit="A/B", leave=False) as bar:
        for n, seed, rest, item in settings:
            covers, plain, clusters, c = [], [], np.arange(60), 60
            for i in range(sims):
                d = (math.sqrt(seed * n) * rng.standard_normal((n, 1)) + math.sqrt(item * c) * rng.standard_normal(c)
                     + math.sqrt(rest * n * c) * rng.standard_normal((n, c)))
                boot = ab_stats.hierarchical_bootstrap(np.zeros_like(d), d, clusters, n_boot=n_boot, seed=i)
                covers.append(boot["ci_low"] <= 0 <= boot["ci_high"])
                if i % 4 == 0:
                    low, high = plain_bootstrap(rng, d, clusters, None, n_boot)
                    plain.append(low <= 0 <= high)
                bar.update()
            name = f"n = {n}, variance from seeds {seed:g}, rest {rest:g}, items {item:g}"
            table.rate(name, "95 % interval covers", covers, 0.93, 0.98)
            table.rate(name, "plain bootstrap: 95 % interval covers", plain)


# ----------------------------------------------------------------------------------------------------------------------
# few and unequal


def small_and_unequal(table: Table, rng, sims: int) -> None:
    table.start("8. Small and unequal arms, many arms, looks, plans")
    a, b = pairs(rng, sims, 2, 0.5)
    stats = ab_stats.paired(a, b)
    table.rate("2 pairs", "95 % interval covers", inside(stats, 0.0), 0.94, 0.96)
    verdict = ab_stats.verdict(stats, equivalence_margin=0.003)
    table.rate("2 pairs", "any verdict but too few", verdict != ab_stats.too_few(2), None, 0.0)
    for n_a, n_b in ((2, 2), (2, 3), (2, 10), (3, 10), (3, 20), (4, 12), (4, 20), (5, 20), (10, 10)):
        for ratio in (0.25, 0.5, 1.0, 2.0, 4.0):
            a, b = rng.standard_normal((sims, n_a)), ratio * rng.standard_normal((sims, n_b))
            welch = scipy.stats.ttest_ind(a, b, axis=1, equal_var=False).pvalue
            held = ab_alpha.held(welch, ab_alpha.Design(n_a, n_b))
            name = f"{n_a} and {n_b} runs, sd ratio {ratio:g}"
            table.rate(name, "Welch's own p < 0.05", welch < ALPHA)
            table.rate(name, "held p < 0.05", held < ALPHA, None, 0.05)
    for arms in (1, 4, 14):
        table.rate(f"{arms} arms of 5 seeds whose true difference is the margin", "any false equivalent",
                   [any_equivalent(rng, arms) for _ in range(sims // 20)], None, 0.05)
    looks(table, rng, sims)
    for seeds in (4, 8):
        powers_of_plans(table, rng, seeds, sims // 10)


def any_equivalent(rng, arms: int, n: int = 5, margin: float = 0.002) -> bool:
    """Whether a report on so many arms calls one equivalent, within the margin or better by less than it, though each
    differs from the baseline by the margin."""
    base = rng.normal(LOSS, 0.001, n).tolist()
    rows = []
    for _ in range(arms):
        values = rng.normal(LOSS + margin, 0.001, n).tolist()
        row = {"delta": 0.0, "n": n, "lacking": [], "paired": True, "values_a": base, "values_b": values}
        row["stats"] = stats = ab_stats.paired(base, values)
        rows.append(row | {"delta": stats["delta"], "low": stats["ci_low"], "high": stats["ci_high"], "p": stats["p"]})
    ab_verdict.judge(rows, ALPHA, -1, margin)
    return any(row["verdict"] == "equivalent" or row["verdict"].endswith(ab_stats.SMALL) for row in rows)


def looks(table: Table, rng, sims: int) -> None:
    """A look after every pair from the third on, by the p of one look and by the held one."""
    for most in (5, 10, 20):
        for effect in (0.0, ab_power.mde(most, ab_power.sd_of_difference(SIGMA))):
            a, b = pairs(rng, sims, most, 0.0, effect)
            d = b - a
            hits = {"p of one look": np.zeros(sims, bool), "held p": np.zeros(sims, bool)}
            for n in range(ab_alpha.FIRST_LOOK, most + 1):
                p = scipy.stats.ttest_1samp(d[:, :n], 0, axis=1).pvalue
                hits["p of one look"] |= p < ALPHA
                hits["held p"] |= ab_alpha.held(p, ab_alpha.Design(n, looks=most)) < ALPHA
            name = f"looks at 3 to {most} pairs, effect {effect:.4f}"
            if effect:
                table.rate(name, "found at some look, held p (one look at the end: 80 %)", hits["held p"], 0.65, None)
                continue
            table.rate(name, "any false finding, p of one look", hits["p of one look"])
            table.rate(name, "any false finding, held p", hits["held p"], None, 0.05)


def powers_of_plans(table: Table, rng, seeds: int, plans: int, effect: float = 2.0) -> None:
    """True power of plans for 80 %, by the measured sd of so many runs (true sd 1) and by its upper bound."""
    for key, words in (("sd", "the measured sd"), ("sd_plan", "its upper bound")):
        power = np.empty(plans)
        for i in range(plans):
            sd = ab_power.noise_floor(rng.standard_normal(seeds), n_pairs=())[key]
            n = max(ab_stats.MIN_RUNS, ab_power.n_needed(effect, ab_power.sd_of_difference(sd)))
            power[i] = scipy.stats.nct.sf(special.stdtrit(n - 1, 1 - ALPHA / 2), n - 1, effect / math.sqrt(2 / n))
        name = f"plans for 80 % by {words} of {seeds} runs"
        highest = None if key == "sd" else 0.05
        table.rate(name, "power below 80 %", power < 0.795, None, highest)
        table.rate(name, "power below 50 %", power < 0.5, None, highest)


def few_clusters(table: Table, rng, sims: int, n_boot: int) -> None:
    """Normal D = seed + cluster + item + rest of five seeds on few clusters, of equal and of log-normal sizes."""
    table.start(f"9. hierarchical_bootstrap on few clusters (n_boot {n_boot})")
    draw = np.random.default_rng(1)
    for c in (3, 5, 8, 11, 20):
        for kind, sizes in (("equal", np.full(c, 10)), ("unequal", np.maximum(1, draw.lognormal(2, 1, c)).astype(int))):
            clusters = np.repeat(np.arange(c), sizes)
            for seed, cluster, item, rest in ((0, 1, 0.1, 0.1), (1, 1, 0.1, 0.1)):
                covers = []
                for i in range(sims // 2):
                    shape = 5, len(clusters)
                    d = (math.sqrt(seed) * rng.standard_normal((5, 1)) + math.sqrt(rest) * rng.standard_normal(shape)
                         + math.sqrt(cluster) * rng.standard_normal(c)[clusters]
                         + math.sqrt(item) * rng.standard_normal(len(clusters)))
                    boot = ab_stats.hierarchical_bootstrap(np.zeros(shape), d, clusters, n_boot=n_boot, seed=i)
                    covers.append(boot["ci_low"] <= 0 <= boot["ci_high"])
                name = f"{c} {kind} clusters, seed variance {seed:g}"
                table.rate(name, "95 % interval covers", covers, 0.93, None)


def documents(table: Table, rng, sims: int) -> None:
    """Two checkpoints that differ on no document but by chance, on documents of log-normal sizes."""
    table.start("10. Documents, and equal cost")
    for n, spread in ((4, 1.0), (12, 1.2), (45, 1.2), (200, 1.2)):
        for power, words in ((0.0, "equal sd per byte"), (-0.5, "sd per byte falls as 1 / root of the size")):
            covers = []
            for _ in range(sims):
                size = 1000 * np.exp(spread * rng.standard_normal(n))
                sd = 0.05 * (size / 1000) ** power
                sides = [{"stream_nats": size * (0.7 + sd * rng.standard_normal(n)), "stream_bytes": size}
                         for _ in "ab"]
                (row,) = ab_items.document_row("stream", [sides], ALPHA)
                covers.append(row["low"] <= 0 <= row["high"])
            table.rate(f"{n} documents, {words}", "95 % interval covers", covers, 0.92, None)


CURVES = {  # loss at a share of the run
    "exponential": lambda x: 3 + 2 * np.exp(-6 * x),
    "power law": lambda x: 3 + 2 * (1 + 100 * x) ** -0.4,
    "power law, learning rate down over the last 30 %":
        lambda x: 3 + 2 * (1 + 100 * x) ** -0.4 - 0.3 * np.clip((x - 0.7) / 0.3, 0, 1) ** 1.5,
}


def equal_cost(table: Table, rng, sims: int, steps: int = 300) -> None:
    """Arms of one curve, whose B is slower: the difference at equal wall-clock, read off evaluations."""
    for name, curve in CURVES.items():
        for slower in (1.02, 1.3):
            true = float(curve(1 / slower) - curve(1.0))
            for every in (steps, steps // 3, steps // 10, steps // 50):
                at = np.arange(0, steps + 1, every)
                covers = {"between evaluations": [], "on a straight line": []}
                for _ in range(sims):
                    arms = []
                    for cost in (1.0, slower):
                        noise = 0.003 * rng.standard_normal(3)
                        runs = [{"name": "run", "val": {int(k): {"val_loss": float(loss), "train_seconds": cost * k}
                                                        for k, loss in zip(at, curve(at / steps) + e, strict=True)}}
                                for e in noise]
                        arms.append({seed: ab_numbers.at_budget(run, "val_loss", "train_seconds", float(steps))
                                     for seed, run in enumerate(runs)})
                    row = ab_numbers.between_evaluations(*arms, ALPHA)
                    line = row["stats"]
                    covers["between evaluations"].append(row["low"] <= true <= row["high"])
                    covers["on a straight line"].append(line["ci_low"] <= true <= line["ci_high"])
                setting = f"{name}, B {100 * slower - 100:.0f} % slower, {steps // every} evaluations"
                table.rate(setting, "95 % interval covers", covers["between evaluations"], 0.945, None)
                table.rate(setting, "on a straight line", covers["on a straight line"])


def main() -> None:
    p = flags.Parser(description=__doc__, epilog="example: python experiments/bench/coverage.py --check")
    size = p.add_argument_group("size")
    size.add_argument("--sims", type=int, default=20_000, help="A/Bs per setting, sections 1-5, 8 (default 20_000)")
    size.add_argument("--item_sims", type=int, default=2_000, help="A/Bs per setting, sections 6, 7, 9 (default 2_000)")
    size.add_argument("--n_boot", type=int, default=400, help="resamples, sections 6, 7, 9 (default 400; users: 2_000)")
    size.add_argument("--seed", type=int, default=0, help="of the simulations (default 0)")
    size.add_argument("--quick", action="store_true", help="2_000 and 150 simulations, whatever the flags above say")
    result = p.add_argument_group("result")
    result.add_argument("--out", type=Path, help="write every row to this JSON file (default: no file)")
    result.add_argument("--check", action="store_true", help="exit status 1 when a row misses its target")
    args = p.parse_args()
    if args.quick:
        args.sims, args.item_sims = 2_000, 150
    if min(args.sims, args.item_sims, args.n_boot) < 100:
        raise ValueError("--sims, --item_sims and --n_boot must be at least 100: less shows nothing; raise them.")
    start = time.process_time()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"# Coverage of ab_stats.py\n\n{machine}, numpy {np.__version__}, scipy {scipy.__version__}; "
          f"{args.sims:,} A/Bs per setting ({args.item_sims:,} with items), seed {args.seed}")
    table = Table()
    for part, sims in ((paired_t, args.sims), (sign_flips_and_welch, args.sims), (not_normal, args.sims),
                       (planning, args.sims), (families_and_bands, args.sims)):
        part(table, np.random.default_rng(args.seed), sims)
    items(table, np.random.default_rng(args.seed), args.item_sims, args.n_boot)
    stress(table, np.random.default_rng(args.seed), args.item_sims, args.n_boot)
    small_and_unequal(table, np.random.default_rng(args.seed), args.sims)
    few_clusters(table, np.random.default_rng(args.seed), args.item_sims, args.n_boot)
    documents(table, np.random.default_rng(args.seed), args.item_sims)
    equal_cost(table, np.random.default_rng(args.seed), args.item_sims)
    missed = [f"{row['section']}: {row['setting']}: {row['quantity']}" for row in table.rows if row["ok"] is False]
    checked = sum(row["ok"] is not None for row in table.rows)
    seconds = time.process_time() - start
    print(f"\n{checked - len(missed)} of {checked} targets met, {seconds:.0f} CPU-seconds.")
    print("".join(f"\n* MISSED: {line}" for line in missed))
    if args.out:
        record = {"sims": args.sims, "item_sims": args.item_sims, "n_boot": args.n_boot, "seed": args.seed,
                  "machine": machine, "numpy": np.__version__, "scipy": scipy.__version__, "cpu_seconds": seconds,
                  "rows": table.rows}
        temporary = args.out.with_name(args.out.name + ".tmp")
        with open(temporary, "w", encoding="utf-8") as f:
            json.dump(record, f, indent=1)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, args.out)
    if args.check and missed:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(f"coverage.py: {error}")
