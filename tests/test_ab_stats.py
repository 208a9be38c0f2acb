"""ab_stats.py against scipy, enumeration by hand and its own promises; coverage.py in its quick form."""

import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from lab import ab_alpha, ab_power, ab_stats

REPO = Path(__file__).resolve().parents[1]
A, B = [3.301, 3.299, 3.302, 3.2985, 3.3005], [3.297, 3.2975, 3.2962, 3.2991, 3.2981]
losses = st.lists(st.tuples(st.integers(-5000, 5000), st.integers(-5000, 5000)), min_size=3, max_size=8).map(
    lambda pairs: tuple(3.3 + np.array(x) * 1e-5 for x in zip(*pairs, strict=True)))


# ----------------------------------------------------------------------------------------------------------------------
# arms over seeds


@pytest.mark.parametrize("n", [2, 3, 5, 8, 30])
def test_paired_equals_scipy(n):
    """p, interval, correlation and spread of the paired t: else every verdict is wrong."""
    rng = np.random.default_rng(n)
    a, b = rng.normal(3.3, 0.002, (2, n))
    ours, reference = ab_stats.paired(a, b, alpha=0.1), stats.ttest_rel(b, a)
    interval = reference.confidence_interval(0.9)
    assert ours["p"] == pytest.approx(reference.pvalue, rel=1e-9)
    assert (ours["ci_low"], ours["ci_high"]) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert ours["delta"] == pytest.approx(b.mean() - a.mean(), rel=1e-9)
    assert (ours["sd_a"], ours["sd_b"]) == pytest.approx((np.std(a, ddof=1), np.std(b, ddof=1)))
    assert ours["sd_diff"] == pytest.approx(np.std(b - a, ddof=1)) and ours["df"] == n - 1 and ours["n"] == n
    assert math.isnan(ours["correlation"]) if n < 3 else ours["correlation"] == pytest.approx(stats.pearsonr(a, b)[0])


@pytest.mark.parametrize("n_a, n_b", [(2, 2), (3, 3), (3, 8), (6, 4)])
def test_unpaired_equals_scipy(n_a, n_b):
    """Welch's own p, its degrees of freedom, and the interval at the level that holds alpha."""
    rng = np.random.default_rng(n_a)
    a, b = rng.normal(0, 1, n_a), rng.normal(0.3, 3, n_b)
    ours, reference = ab_stats.unpaired(a, b), stats.ttest_ind(b, a, equal_var=False)
    interval = reference.confidence_interval(1 - ours["level"])
    assert (ours["p_t"], ours["df"]) == pytest.approx((reference.pvalue, reference.df), rel=1e-9)
    assert ours["p"] > ours["p_t"] and ours["level"] < 0.05
    assert (ours["ci_low"], ours["ci_high"]) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert (ours["n"], ours["n_a"], ours["n_b"]) == (min(n_a, n_b), n_a, n_b)
    assert ours["sd_diff"] == pytest.approx(math.hypot(np.std(a, ddof=1), np.std(b, ddof=1)))


# ----------------------------------------------------------------------------------------------------------------------
# alpha is held


def simulated(n_a, n_b, ratio, sims, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (sims, n_a)), rng.normal(shift, ratio, (sims, n_b))


@pytest.mark.parametrize("n_a, n_b, ratio, welch", [
    (2, 10, 0.5, 0.118), (2, 10, 1.0, 0.100), (10, 2, 1.0, 0.100), (3, 10, 0.6, 0.072), (3, 3, 8.0, 0.059),
    (4, 20, 0.7, 0.062), (8, 8, 1.0, 0.047)])
def test_welch_holds_alpha(n_a, n_b, ratio, welch):
    """2 runs against 10 were better or worse in 12 % of comparisons without a difference, by the p and the interval."""
    a, b = simulated(n_a, n_b, ratio, 40_000)
    welch_p = stats.ttest_ind(a, b, axis=1, equal_var=False).pvalue
    p = ab_alpha.held(welch_p, ab_alpha.Design(n_a, n_b))
    error = 3 * math.sqrt(0.05 * 0.95 / 40_000)
    assert (welch_p < 0.05).mean() == pytest.approx(welch, abs=2 * error)
    assert (p < 0.05).mean() < 0.05 + error
    if min(n_a, n_b) >= 8:
        assert (p < 0.05).mean() > 0.04  # and not by refusing everything
    found = ab_stats.unpaired(a[:50], b[:50])
    assert found["p"] == pytest.approx(p[:50]) and found["p_t"] == pytest.approx(welch_p[:50])
    leaves_out = (found["ci_low"] > 0) | (found["ci_high"] < 0)
    assert np.array_equal(leaves_out, found["p"] < 0.05)


def test_equivalence_holds_alpha_in_unequal_arms():
    """Arms of 3 and 10 runs that differ by the margin were equivalent more often than 5 %."""
    a, b = simulated(3, 10, 0.6, 20_000, shift=3.0)
    welch_p = stats.ttest_ind(b - 3.0, a, axis=1, equal_var=False, alternative="less").pvalue
    p = ab_alpha.held(2 * welch_p.clip(max=0.5), ab_alpha.Design(3, 10)) / 2
    assert (welch_p < 0.05).mean() > 0.055
    assert (p < 0.05).mean() < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 20_000)
    found = ab_stats.equivalence(a[:20], b[:20], 3.0, paired_seeds=False)["p"]
    assert np.array_equal(found < 0.05, p[:20] < 0.05)


def peeks(sims, most, seed=0, **how):
    """bool (sims,): whether any look at 3 to `most` pairs without a difference finds one."""
    a, b = np.random.default_rng(seed).normal(3.3, 0.0013, (2, sims, most))
    hits = np.zeros(sims, bool)
    for n in range(3, most + 1):
        hits |= ab_stats.paired(a[:, :n], b[:, :n], **how)["p"] < 0.05
    return hits.mean()


def test_looks_hold_alpha():
    """A look after each of 3 to 10 pairs found a difference where there is none in 17 % of all cases."""
    error = 3 * math.sqrt(0.05 * 0.95 / 8_000)
    assert peeks(8_000, 10) == pytest.approx(0.17, abs=0.02)
    assert 0.04 < peeks(8_000, 10, seed=1, looks=10) < 0.05 + error
    found = ab_stats.paired([0.0] * 10, np.linspace(-1, 3, 10), looks=10)
    assert found["p"] > found["p_t"] and 0.02 < found["level"] < 0.03  # most of alpha is left for the end
    early = ab_stats.paired([0.0] * 3, [1.0, 2.0, 3.0], looks=10)
    assert early["level"] < 0.003
    # the same interval, p and equivalence: the repeated interval leaves out 0 where p < alpha
    assert (found["ci_low"] > 0) == (found["p"] < 0.05)
    with pytest.raises(ValueError, match="--sequential 5 allows looks at up to 5 pairs .*, and there are 6"):
        ab_stats.paired([0.0] * 6, [1.0, 2, 3, 4, 5, 6], looks=5)
    with pytest.raises(ValueError, match="--sequential 2: give the most pairs to be trained, 3 to 200"):
        ab_stats.paired([0.0] * 2, [1.0, 2], looks=2)


def test_looks_at_unpaired_arms():
    """Two arms without common seeds, looked at from 3 to 8 runs each."""
    a, b = simulated(8, 8, 1.0, 20_000)
    hits = np.zeros(20_000, bool)
    for n in range(3, 9):
        welch_p = stats.ttest_ind(a[:, :n], b[:, :n], axis=1, equal_var=False).pvalue
        hits |= ab_alpha.held(welch_p, ab_alpha.Design(n, n, 8)) < 0.05
    assert 0.01 < hits.mean() < 0.05
    found = ab_stats.unpaired(a[0], b[0], looks=8)
    assert found["p"] == ab_alpha.held(found["p_t"], ab_alpha.Design(8, 8, 8)) > found["p_t"]


def test_interval_at_another_alpha():
    """The corrected interval beside a corrected verdict: what paired() gives when it is asked for that alpha."""
    for test in (ab_stats.paired, ab_stats.unpaired):
        found, other = test(A, B), test(A, B, alpha=0.0125)
        assert ab_stats.interval(found, 0.0125) == pytest.approx((other["ci_low"], other["ci_high"]), rel=1e-12)
    assert ab_stats.interval(ab_stats.paired(A, A), 0.01) == (0.0, 0.0)
    flat = ab_stats.paired([3.3, 3.4], [3.2, 3.3])
    assert all(map(math.isnan, ab_stats.interval(flat, 0.01)))


def flips_by_hand(d):
    flips = itertools.product((1, -1), repeat=len(d))
    sums = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in flips]
    return sum(x >= sums[0] for x in sums) / len(sums)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_sign_flip_counts_every_flip(d):
    """The exact p, ties included: integers, so that equality on paper is equality in floats."""
    assert ab_stats.sign_flip(d) == pytest.approx(flips_by_hand(d), abs=1e-15)


def test_sign_flip_on_paper():
    """Three pairs cannot go below 0.25, five not below 0.0625, whatever the effect."""
    assert ab_stats.sign_flip([1, 2, 3]) == 0.25
    assert ab_stats.sign_flip([-5, -5.1, -5.2, -4.9, -5.05]) == 2 / 2**5
    assert ab_stats.sign_flip([0.0, 0.0]) == 1.0 and ab_stats.sign_flip([7.0]) == 1.0
    # +-1 +-2 +-1 (x 0.01): sums 4, 2, 0, 2 (first sign fixed), observed 2; as differences of losses, all inexact
    assert ab_stats.paired([3.3, 3.3, 3.3], [3.31, 3.32, 3.29])["p_sign_flip"] == 0.75


def test_sign_flip_above_twenty_pairs(monkeypatch):
    """The random flips estimate what enumeration counts; p is never 0; the same call gives the same p."""
    d = np.random.default_rng(0).normal(0.4, 1, 20)
    exact = ab_stats.sign_flip(d)
    monkeypatch.setattr(ab_stats, "EXACT_PAIRS", 5)
    random = ab_stats.sign_flip(d)
    assert abs(random - exact) < 4 * math.sqrt(exact * (1 - exact) / ab_stats.DRAWS) and random == ab_stats.sign_flip(d)
    assert ab_stats.sign_flip(np.ones(25)) > 0


@pytest.mark.parametrize("n_a, n_b", [(2, 3), (4, 4), (5, 2)])
def test_permutation_counts_every_split(n_a, n_b):
    """p over splits of the runs into arms; integers give ties."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        a, b = rng.integers(0, 4, n_a).astype(float), rng.integers(0, 4, n_b).astype(float)
        both, seen = np.concatenate([a, b]), []
        for chosen in itertools.combinations(range(n_a + n_b), n_a):
            rest = np.delete(both, chosen)
            seen.append(abs(rest.mean() - both[list(chosen)].mean()) >= abs(b.mean() - a.mean()) - 1e-9)
        assert ab_stats.unpaired(a, b)["p_permutation"] == pytest.approx(np.mean(seen))


def test_permutation_of_many_runs_is_drawn():
    """12 + 12 runs have 2.7 million splits: 20,000 are drawn, p stays near the t test's."""
    rng = np.random.default_rng(0)
    found = ab_stats.unpaired(rng.normal(0, 1, 12), rng.normal(0.8, 1, 12))
    assert abs(found["p_permutation"] - found["p"]) < 0.02 and found["p_permutation"] > 0


@settings(max_examples=60, deadline=None)
@given(losses, st.floats(-5, 5), st.floats(0.1, 50))
def test_paired_moves_with_its_unit(arms, shift, scale):
    """A metric in other units, or both arms shifted: same p, scaled interval. Arms swapped: the sign turns."""
    a, b = arms
    assume(np.std(b - a) > 1e-6)
    base, other = ab_stats.paired(a, b), ab_stats.paired(a * scale + shift, b * scale + shift)
    swapped = ab_stats.paired(b, a)
    for key in ("p", "p_sign_flip"):
        assert other[key] == pytest.approx(base[key], rel=1e-6) and swapped[key] == pytest.approx(base[key], rel=1e-9)
    for key in ("delta", "ci_low", "ci_high", "sd_diff", "mde"):
        assert other[key] == pytest.approx(base[key] * scale, rel=1e-6, abs=1e-10)
    assert (swapped["ci_low"], swapped["ci_high"]) == pytest.approx((-base["ci_high"], -base["ci_low"]))
    assert ab_stats.unpaired(b, a)["delta"] == pytest.approx(-ab_stats.unpaired(a, b)["delta"], abs=1e-15)


def test_leading_axes_are_single_calls():
    """coverage.py simulates with arrays of A/Bs: each row must be what one A/B gets."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(3.3, 0.002, (2, 3, 4, 5))
    b[1, 2] = a[1, 2]
    b[2, 0] = a[2, 0] - 0.01
    for test in (ab_stats.paired, ab_stats.unpaired):
        many = test(a, b, effect=0.003)
        for i in np.ndindex(3, 4):
            one = test(a[i], b[i], effect=0.003)
            for key, value in one.items():
                got = many[key][i] if np.ndim(many[key]) else many[key]
                assert got == pytest.approx(value, rel=1e-9, nan_ok=True), key
            for margin in (None, 0.004):
                assert ab_stats.verdict(many, "lower", margin)[i] == ab_stats.verdict(one, "lower", margin)


def test_one_pair_says_nothing():
    """n = 1: no interval, no p, no verdict, however large the difference; two pairs already have an interval."""
    for stats_ in (ab_stats.paired([3.3], [2.0]), ab_stats.unpaired([3.3], [2.0]),
                   ab_stats.unpaired([3.3], [2.0, 2.0001, 2.0002])):
        assert math.isnan(stats_["ci_low"]) and math.isnan(stats_["p"]) and math.isnan(stats_["mde"])
        assert stats_["delta"] < -1.2 and stats_["n"] == 1
        for margin in (None, 10.0):
            assert ab_stats.verdict(stats_, "lower", margin) == "n = 1: too few"
    items = {"n": 1, "delta": -1.0, "p": 1e-9}  # a p over items is none over seeds
    assert ab_stats.verdict(items) == "n = 1: too few"
    assert math.isfinite(ab_stats.paired([3.3, 3.31], [3.2, 3.22])["ci_low"])


def test_no_spread():
    """Differences that are all equal (losses rounded, copies of a run) must not give p = 0: the t test would."""
    for a, b in (([3.3, 3.31, 3.32], [3.29, 3.30, 3.31]), ([1, 2, 3], [2, 3, 4]), ([3.3] * 3, [3.2] * 3)):
        found = ab_stats.paired(a, b)
        assert found["degenerate"] and found["p"] == found["p_sign_flip"] == 0.25 and found["sd_diff"] == 0
        assert math.isnan(found["ci_low"]) and math.isnan(found["mde"]) and math.isnan(found["n_for"])
        assert ab_stats.verdict(found) == "inconclusive"
    assert ab_stats.verdict(ab_stats.paired(np.arange(8), np.arange(8) + 1.0), "higher") == "better"  # p = 2 / 2^8
    apart = ab_stats.unpaired([3.3] * 4, [3.2] * 4)
    assert apart["p"] == apart["p_permutation"] == 2 / math.comb(8, 4) and math.isnan(apart["ci_low"])


def test_equal_arms():
    """The same runs twice: delta 0, interval [0, 0], p 1, equivalent within any margin, never better or worse."""
    for test in (ab_stats.paired, ab_stats.unpaired):
        found = test([3.3] * 4, [3.3] * 4)
        assert (found["delta"], found["ci_low"], found["ci_high"], found["p"]) == (0, 0, 0, 1)
        assert ab_stats.verdict(found) == "inconclusive" and ab_stats.verdict(found, "lower", 1e-6) == "equivalent"
    found = ab_stats.paired(A, A)
    assert (found["delta"], found["p"], found["p_sign_flip"]) == (0, 1, 1) and math.isnan(found["n_for"])
    rounding = ab_stats.paired([0.1 + 0.2, 1.1 + 2.2], [0.3, 3.3])  # equal on paper
    assert (rounding["delta"], rounding["p"]) == (0, 1)


def test_results_are_plain():
    """report.json: every result is a Python number that json can write and read."""
    for found in (ab_stats.paired(A, B, effect=0.003), ab_stats.unpaired(A, B[:4]), ab_stats.equivalence(A, B, 0.01),
                  ab_power.noise_floor(A), ab_stats.mcnemar([1, 0, 1], [0, 0, 1]),
                  ab_stats.hierarchical_bootstrap(np.eye(3, 6), np.ones((3, 6)), list("aabbcd"))):
        again = json.loads(json.dumps(found))
        assert all(again[k] == found[k] or found[k] != found[k] for k in found if not isinstance(found[k], dict))


@pytest.mark.parametrize("call", [
    lambda: ab_stats.paired([], []), lambda: ab_stats.paired([1, 2], [1, 2, 3]), lambda: ab_stats.paired(1.0, 2.0),
    lambda: ab_stats.paired([1, math.nan], [1, 2]), lambda: ab_stats.paired([1, math.inf], [1, 2]),
    lambda: ab_stats.paired(["x", 1], [1, 2]), lambda: ab_stats.paired([1, None], [1, 2]),
    lambda: ab_stats.paired([1, 2], [2, 4], alpha=0), lambda: ab_stats.paired([1, 2], [2, 4], alpha=1.5),
    lambda: ab_stats.paired([1, 2], [2, 4], power=0.01), lambda: ab_stats.paired([1, 2], [2, 4], effect=0),
    lambda: ab_stats.unpaired([], [1]), lambda: ab_stats.unpaired([[1, 2]], [1, 2]), lambda: ab_stats.sign_flip([]),
    lambda: ab_stats.unpaired([1, 2], [1, math.nan]), lambda: ab_stats.sign_flip([math.nan, 1]),
    lambda: ab_stats.equivalence(A, B, 0), lambda: ab_stats.equivalence(A, B, -1),
    lambda: ab_stats.equivalence(A, B, None), lambda: ab_stats.equivalence(A, B, 0.1, alpha=0.6),
    lambda: ab_stats.verdict(ab_stats.paired(A, B), "smaller"),
    lambda: ab_stats.verdict(ab_stats.paired(A, B), alpha=2),
    lambda: ab_stats.verdict({"n": 3, "delta": 1.0, "p": 0.5}, equivalence_margin=1.0),
    lambda: ab_stats.verdict(ab_stats.paired(A, B), equivalence_margin=math.nan),
    lambda: ab_stats.holm([0.1, 1.5]), lambda: ab_stats.holm({"a": -0.1}),
    lambda: ab_power.mde(0, 1), lambda: ab_power.mde(2.5, 1), lambda: ab_power.mde(3, -1),
    lambda: ab_power.mde(3, math.nan), lambda: ab_power.n_needed(0, 1),
    lambda: ab_power.n_needed(math.nan, 1), lambda: ab_power.n_needed(1, math.inf),
    lambda: ab_power.sd_of_difference(1, 1.1),
    lambda: ab_power.noise_floor([1.0]), lambda: ab_power.noise_floor([]), lambda: ab_power.noise_floor([1, math.nan]),
    lambda: ab_power.noise_floor([[1, 2]]), lambda: ab_power.noise_floor(A, correlation=2),
    lambda: ab_power.in_band(math.nan, ab_power.noise_floor(A)),
    lambda: ab_stats.mcnemar([1, 0], [1]), lambda: ab_stats.mcnemar([], []),
    lambda: ab_stats.mcnemar([1, math.nan], [1, 0]),
    lambda: ab_stats.hierarchical_bootstrap([1, 0], [1, 0], [0, 1]),
    lambda: ab_stats.hierarchical_bootstrap(np.ones((2, 3)), np.ones((2, 4)), [0, 1, 2]),
    lambda: ab_stats.hierarchical_bootstrap(np.ones((2, 3)), np.ones((2, 3)), [0, 1]),
    lambda: ab_stats.hierarchical_bootstrap(np.ones((2, 3)), np.ones((2, 3)), [0, 1, 2], [0, 1]),
    lambda: ab_stats.hierarchical_bootstrap(np.ones((2, 3)), np.ones((2, 3)), [0, 0, 0]),
    lambda: ab_stats.hierarchical_bootstrap(np.full((2, 3), np.nan), np.ones((2, 3)), [0, 1, 2]),
    lambda: ab_stats.hierarchical_bootstrap(np.ones((0, 3)), np.ones((0, 3)), [0, 1, 2]),
    lambda: ab_stats.hierarchical_bootstrap(np.ones((2, 3)), np.ones((2, 3)), [0, 1, 2], n_boot=0),
])
def test_bad_input_is_one_sentence(call):
    """No number at all rather than a wrong one, and the message says what to do."""
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).endswith(".") and "\n" not in str(error.value) and len(str(error.value)) < 200


# ----------------------------------------------------------------------------------------------------------------------
# verdicts


def test_verdicts():
    """The rule in the docstring, case by case."""
    better = ab_stats.paired(A, np.array(A) - [0.010, 0.011, 0.0095, 0.0105, 0.010])
    assert [ab_stats.verdict(better, way) for way in ("lower", "higher")] == ["better", "worse"]
    assert ab_stats.verdict(better | {"p": 0.06}) == "inconclusive"  # Holm-adjusted
    assert ab_stats.verdict(better, alpha=better["p"] / 2) == "inconclusive"
    small = "better, by less than the margin"  # real, and smaller than what matters
    assert ab_stats.verdict(better, equivalence_margin=0.02) == small
    adjusted = better | {"p": 0.06}  # the interval leaves out 0 all the same
    assert ab_stats.verdict(adjusted, equivalence_margin=0.02) == "inconclusive"
    two = {key: value[:2] for key, value in {"a": A, "b": np.array(A) - 0.01}.items()}
    for test in (ab_stats.paired, ab_stats.unpaired):
        stats = test(np.array(two["a"]), two["b"] + [0, 1e-7])
        assert stats["p"] < 0.05 and ab_stats.verdict(stats, equivalence_margin=0.1) == "n = 2: too few"
    assert ab_stats.verdict(better, equivalence_margin=0.009) == "better"
    none = ab_stats.paired(A, np.array(A) + [0.001, -0.0012, 0.0003, -0.0002, 0.0004])
    assert ab_stats.verdict(none) == "inconclusive" and ab_stats.verdict(none, equivalence_margin=0.005) == "equivalent"
    assert ab_stats.verdict(none, equivalence_margin=1e-4) == "inconclusive"
    assert ab_stats.verdict(ab_stats.paired(A, B, alpha=0.5)) == "better"  # p = 0.06: alpha is the one of the stats


@settings(max_examples=60, deadline=None)
@given(losses, st.floats(1e-5, 0.1), st.sampled_from([0.05, 0.1, 0.01]))
def test_verdict_follows_the_interval(arms, margin, alpha):
    """better or worse exactly when the 1 - alpha interval leaves out 0, and by less than the margin when the
    1 - 2 alpha interval is inside; equivalent when that is inside and 0 is in the first."""
    a, b = arms
    assume(np.std(b - a) > 1e-6)
    found, wide = ab_stats.paired(a, b, alpha), ab_stats.paired(a, b, 2 * alpha)
    said = ab_stats.verdict(found, "lower", margin)
    inside = -margin < wide["ci_low"] and wide["ci_high"] < margin
    apart = "better" if found["ci_high"] < 0 else "worse" if found["ci_low"] > 0 else ""
    expected = {(True, True): f"{apart}, by less than the margin", (True, False): apart,
                (False, True): "equivalent", (False, False): "inconclusive"}[bool(apart), inside]
    assert said == (expected if len(a) > 2 else "n = 2: too few")
    tost = ab_stats.equivalence(a, b, margin, alpha)
    assert (tost["verdict"] == "equivalent") == inside
    assert (tost["ci_low"], tost["ci_high"]) == (wide["ci_low"], wide["ci_high"])


@pytest.mark.parametrize("paired", [True, False])
def test_equivalence_equals_two_tests(paired):
    """p is the larger of two one-sided t tests against the two margins."""
    a, b, margin = np.array(A), np.array(B), 0.006
    if paired:
        up = stats.ttest_1samp(b - a, -margin, alternative="greater").pvalue
        down = stats.ttest_1samp(b - a, margin, alternative="less").pvalue
    else:
        up = stats.ttest_ind(b + margin, a, equal_var=False, alternative="greater").pvalue
        down = stats.ttest_ind(b - margin, a, equal_var=False, alternative="less").pvalue
        up, down = (ab_alpha.held(2 * p, ab_alpha.Design(5, 5)) / 2 for p in (up, down))
    assert ab_stats.equivalence(A, B, margin, paired_seeds=paired)["p"] == pytest.approx(max(up, down), rel=1e-9)


def test_holm_by_hand():
    """p * (tests left), never falling, never above 1, in the order given."""
    assert ab_stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert ab_stats.holm({"loss": 0.02, "acc": math.nan, "x": 0.01, "y": None})["loss"] == pytest.approx(0.02)
    assert ab_stats.holm([0.5, 0.9]) == [1.0, 1.0] and ab_stats.holm([]) == [] and ab_stats.holm({}) == {}
    assert math.isnan(ab_stats.holm([None])[0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=12), st.randoms())
def test_holm_properties(p, random):
    """Adjusting keeps the order of tests, never helps, does not depend on how they are listed; nan does not count."""
    adjusted = ab_stats.holm(p)
    made = [(x, y) for x, y in zip(p, adjusted, strict=True) if not math.isnan(x)]
    assert all(math.isnan(y) for x, y in zip(p, adjusted, strict=True) if math.isnan(x))
    assert all(x <= y <= min(1, x * len(made)) + 1e-12 for x, y in made)
    assert [y for _, y in sorted(made)] == sorted(y for _, y in made)
    assert ab_stats.holm([x for x, _ in made]) == pytest.approx([y for _, y in made])
    order = list(range(len(p)))
    random.shuffle(order)
    assert ab_stats.holm([p[i] for i in order]) == pytest.approx([adjusted[i] for i in order], nan_ok=True)


# ----------------------------------------------------------------------------------------------------------------------
# planning


@pytest.mark.parametrize("df", [2, 3, 7, 14, 60, 400])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.01])
def test_power_is_the_noncentral_t(df, alpha):
    """Power at the mde by scipy's noncentral t (which is nan for df = 1)."""
    n = df + 1
    effect = ab_power.mde(n, 1.0, alpha, 0.8)
    critical, ncp = stats.t.isf(alpha / 2, df), effect * math.sqrt(n)
    lower = stats.nct.cdf(-critical, df, ncp)
    assert stats.nct.sf(critical, df, ncp) + np.nan_to_num(lower) == pytest.approx(0.8, abs=2e-4)


@pytest.mark.parametrize("n, paired", [(2, True), (3, True), (2, False), (3, False), (6, False)])
def test_power_by_simulation(n, paired):
    """80 % of 100,000 simulated A/Bs find the stated mde, by scipy's own tests."""
    rng, spread = np.random.default_rng(n), 0.002
    effect = ab_power.mde(n, spread, paired=paired)
    a, b = rng.normal(0, spread / math.sqrt(2), (2, 100_000, n))
    p = (stats.ttest_rel(a, b + effect, axis=1) if paired
         else stats.ttest_ind(a, b + effect, axis=1, equal_var=False)).pvalue
    level = 0.05 if paired else ab_alpha.level_of(0.05, ab_alpha.Design(n, n))
    assert (p < level).mean() == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 100_000) + 0.001)


@pytest.mark.parametrize("paired", [True, False])
def test_n_needed_is_the_smallest(paired):
    """That many pairs reach 80 %, one fewer do not (above 200 pairs: at most one off)."""
    kind = {"paired": paired}
    for effect in (30.0, 3.0, -1.7, 1.0, 0.6, 0.35, 0.21, 0.199, 0.12, 0.04):
        n = ab_power.n_needed(effect, 1.0, **kind)
        slack = 0 if n < 200 else 1
        assert ab_power.mde(n + slack, 1.0, **kind) <= abs(effect)
        assert n == 2 or ab_power.mde(n - 1 - slack, 1.0, **kind) > abs(effect)
    assert ab_power.n_needed(1.0, 0.0) == 2 and ab_power.n_needed(1e-6, 1.0) > 10**12


def test_plan_inside_paired():
    """mde, n_for and n_for_effect of an A/B are those of the planning functions at its own spread."""
    found = ab_stats.paired(A, B, effect=0.001)
    assert found["mde"] == pytest.approx(ab_power.mde(5, found["sd_diff"]), rel=1e-12)
    assert found["n_for"] == ab_power.n_needed(found["delta"], found["sd_diff"])
    assert found["n_for_effect"] == ab_power.n_needed(0.001, found["sd_diff"]) > found["n_for"]
    apart = ab_stats.unpaired(A, B, effect=0.001)
    assert apart["n_for"] == ab_power.n_needed(apart["delta"], apart["sd_diff"], paired=False)
    assert apart["n_for_effect"] == ab_power.n_needed(0.001, apart["sd_diff"], paired=False)
    assert apart["mde"] == pytest.approx(ab_power.mde(5, apart["sd_diff"], paired=False), rel=0.1)


# ----------------------------------------------------------------------------------------------------------------------
# items


def arms(n_seeds=4, n_items=60, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 2, (2, n_seeds, n_items)).astype(float)
    return a, b, rng.integers(0, 20, n_items)


def test_bootstrap_delta_and_parts_by_loops():
    """delta (mean of category means) and both standard errors, against plain loops over seeds and clusters."""
    a, b, clusters = arms()
    clusters[:] = np.arange(60) % 10
    b[:, clusters < 4], a[:, clusters == 9] = 1.0, 1.0  # item effects that seeds share
    categories = np.array([0] * 30 + [1] * 20 + [2] * 10)
    found = ab_stats.hierarchical_bootstrap(a, b, clusters, categories)
    d, n = b - a, 4
    names = [(g, c) for g in range(3) for c in sorted(set(clusters[categories == g]))]
    scores = np.array([np.mean([d[s, categories == g].mean() for g in range(3)]) for s in range(n)])
    v_item = v_rest = 0.0
    for g in range(3):
        inside = [c for h, c in names if h == g]
        size = (categories == g).sum() * 3
        parts = np.array([[sum(d[s, i] - d[s, categories == g].mean() for i in range(60)
                               if (categories[i], clusters[i]) == (g, c)) / size for c in inside] for s in range(n)])
        k = len(inside) / (len(inside) - 1)
        v_item += k * (parts.mean(0) ** 2).sum()
        v_rest += k * ((parts - parts.mean(0)) ** 2).sum() / (n - 1) / n
    assert found["delta"] == pytest.approx(scores.mean()) and found["n_clusters"] == len(names) and found["n"] == n
    assert found["se_seeds"] == pytest.approx(scores.std(ddof=1) / 2)
    assert v_item > 1.5 * v_rest and found["se_items"] == pytest.approx(math.sqrt(v_item - v_rest))
    half = (found["ci_items_high"] - found["ci_items_low"]) / 2
    assert half == pytest.approx(1.98 * math.sqrt(v_item), rel=0.12)


def test_bootstrap_without_item_effects_is_the_paired_t():
    """Seeds that shift every item alike: interval and p are those of the seeds' paired t test, not narrower."""
    shift = np.array([0.01, 0.04, -0.02, 0.03])[:, None]
    a = np.full((4, 50), 0.5)
    found = ab_stats.hierarchical_bootstrap(a, a + shift, np.arange(50) // 2)
    expected = ab_stats.paired(a[:, 0], a[:, 0] + shift[:, 0])
    for key in ("delta", "ci_low", "ci_high", "p"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5)


def test_bootstrap_of_equal_seeds_but_rest_is_the_items():
    """Many seeds, an effect that differs between clusters: the interval is the clusters', 1.96 se of cluster means."""
    rng = np.random.default_rng(3)
    effect = rng.normal(0.1, 0.2, 200)
    a = np.zeros((40, 400))
    b = np.repeat(effect, 2) + rng.normal(0, 0.02, (40, 400))
    found = ab_stats.hierarchical_bootstrap(a, b, np.repeat(np.arange(200), 2))
    se = effect.std(ddof=1) / math.sqrt(200)
    assert (found["ci_high"] - found["ci_low"]) / 2 == pytest.approx(1.97 * se, rel=0.08)


def test_bootstrap_adds_the_parts_once():
    """Forty seeds, item and rest effects alike: 1.98 x the root of both parts' variances; the rest counts once."""
    rng = np.random.default_rng(4)
    d = rng.normal(0, 0.1, 300) + rng.normal(0, 0.6, (40, 300))
    found = ab_stats.hierarchical_bootstrap(np.zeros_like(d), d, np.arange(300), n_boot=20_000)
    se = math.hypot(found["se_seeds"], found["se_items"])
    assert 0.5 < found["se_items"] / found["se_seeds"] < 2
    assert (found["ci_high"] - found["ci_low"]) / 2 == pytest.approx(1.99 * se, rel=0.03)


def test_bootstrap_counts_clusters_not_items():
    """The same items five times over, in the same clusters, are no new information: the interval must not shrink."""
    a, b, clusters = arms(3, 80)
    once, five = (ab_stats.hierarchical_bootstrap(np.tile(a, (1, k)), np.tile(b, (1, k)), np.tile(clusters, k))
                  for k in (1, 5))
    for key in ("delta", "ci_low", "ci_high", "p", "se_items", "ci_items_low"):
        assert five[key] == pytest.approx(once[key], rel=1e-6)


def test_bootstrap_knows_that_few_clusters_are_few():
    """Four clusters estimate their own spread badly: about t with 3 degrees of freedom (3.18 se), not 1.96 se."""
    effect = np.array([0.0, 0.1, 0.25, 0.4])
    found = ab_stats.hierarchical_bootstrap(np.zeros((1, 40)), np.repeat(effect, 10)[None], np.arange(40) // 10)
    half = (found["ci_items_high"] - found["ci_items_low"]) / 2
    assert half / (effect.std(ddof=1) / 2) == pytest.approx(3.18, rel=0.15)


def test_bootstrap_symmetries():
    """Arms swapped: sign turned. Items in another order, clusters renamed, the same call again: nothing changes."""
    a, b, clusters = arms(3, 90, 5)
    b[:, clusters < 2] = 1.0  # a skewed spread of effects over clusters
    base = ab_stats.hierarchical_bootstrap(a, b, clusters)
    assert base == ab_stats.hierarchical_bootstrap(a, b, clusters)
    swapped = ab_stats.hierarchical_bootstrap(b, a, clusters)
    assert (swapped["delta"], swapped["p"]) == pytest.approx((-base["delta"], base["p"]))
    assert (swapped["ci_low"], swapped["ci_high"]) == pytest.approx((-base["ci_high"], -base["ci_low"]))
    order = np.random.default_rng(0).permutation(90)
    names = np.array([f"text~{c:02d}" for c in clusters])
    again = ab_stats.hierarchical_bootstrap(a[:, order], b[:, order], names[order])
    assert (again["ci_low"], again["p"]) == pytest.approx((base["ci_low"], base["p"]))
    assert base["p"] == pytest.approx(ab_stats.hierarchical_bootstrap(a, b, clusters, seed=1)["p"], abs=0.02)
    inside = base["ci_low"] <= 0 <= base["ci_high"]
    assert inside == (base["p"] > 0.05)


def test_bootstrap_interval_and_p_agree():
    """p < alpha exactly when the interval leaves out 0, at several alpha."""
    a, b, clusters = arms(5, 100, 7)
    b[:, :30] = 1.0
    p = ab_stats.hierarchical_bootstrap(a, b, clusters)["p"]
    assert 1e-4 < p < 0.5
    for alpha in (p * 0.98, p * 1.02):
        found = ab_stats.hierarchical_bootstrap(a, b, clusters, alpha=alpha)
        assert (found["ci_low"] > 0) == (p < alpha)


def test_bootstrap_degenerate():
    """One seed or copies of one run say nothing of new seeds; equal arms differ by 0; a lonely cluster is no zero."""
    a, b, clusters = arms(3, 60)
    for x, y in ((a[:1], b[:1]), (np.tile(a[:1], (3, 1)), np.tile(b[:1], (3, 1)))):
        found = ab_stats.hierarchical_bootstrap(x, y, clusters)
        assert math.isnan(found["p"]) and math.isnan(found["ci_low"]) and math.isfinite(found["ci_items_low"])
        assert found["delta"] == pytest.approx((y - x).mean())
    equal = ab_stats.hierarchical_bootstrap(a, a, clusters)
    assert (equal["delta"], equal["ci_low"], equal["ci_high"], equal["p"]) == (0, 0, 0, 1)
    categories = np.arange(60) // 20
    alone = np.where(categories == 2, 99, clusters)
    two = ab_stats.hierarchical_bootstrap(a[:, :40], b[:, :40], clusters[:40], categories[:40])
    three = ab_stats.hierarchical_bootstrap(a, b, alone, categories)  # variances (v + w + (v + w) / 2) / 9, (v + w) / 4
    width = lambda r: r["ci_items_high"] - r["ci_items_low"]
    assert width(three) / width(two) == pytest.approx(math.sqrt(2 / 3), rel=1e-9)
    # three seeds that gain the same 4 of 60 items in number, never the same ones: no spread of means, by luck alone
    lucky = ab_stats.hierarchical_bootstrap(np.zeros((3, 60)), np.eye(15)[:3].repeat(4, axis=1), np.arange(60))
    v_rest = 60 / 59 * (12 * 2 / 3) / (2 * 3) / 60**2
    assert lucky["se_seeds"] == lucky["se_items"] == 0
    assert lucky["ci_high"] - lucky["ci_low"] == pytest.approx(2 * 4.3027 * math.sqrt(v_rest / 20), rel=1e-4)
    with pytest.raises(ValueError, match="one cluster"):
        ab_stats.hierarchical_bootstrap(a, b, categories, categories)


@pytest.mark.parametrize("n", [3, 8])
def test_bootstrap_covers(n):
    """95 % intervals hold the truth in 93 to 97 % (3 se of 400 simulations wider), with seed, item, rest effects."""
    rng, hits = np.random.default_rng(n), []
    clusters = np.arange(300) // 3
    for i in range(400):
        d = (rng.normal(0, 0.02, (n, 1)) + np.repeat(rng.normal(0, 0.1, 100), 3) + rng.normal(0, 0.4, (n, 300)))
        found = ab_stats.hierarchical_bootstrap(np.zeros_like(d), d, clusters, n_boot=200, seed=i)
        hits.append(found["ci_low"] <= 0 <= found["ci_high"])
    assert 0.93 - 0.038 < np.mean(hits) < 0.97 + 0.026


def test_bootstrap_is_fast():
    """All of HellaSwag (10,042 items, 8,407 texts), 8 seeds, 2,000 resamples: under 2 s of CPU time."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 8, 10_042)).astype(float)
    clusters = np.concatenate([np.arange(8_407), rng.integers(0, 8_407, 10_042 - 8_407)]).astype(str)
    start = time.process_time()
    ab_stats.hierarchical_bootstrap(a, b, clusters)
    assert time.process_time() - start < 2


def test_mcnemar_equals_the_binomial_test():
    """p for two checkpoints from the items that only one of them gets; ties with fractions go by who has more."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    found = ab_stats.mcnemar(a, b)
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    assert (found["b"], found["c"], found["n"]) == (only_a, only_b, 200)
    assert found["p"] == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)
    assert found["delta"] == pytest.approx(b.mean() - a.mean())
    assert ab_stats.mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])["p"] == 2 / 2**5
    assert ab_stats.mcnemar([1, 0], [1, 0])["p"] == 1 and ab_stats.mcnemar([1, 0], [0, 1])["p"] == 1
    part = ab_stats.mcnemar([0.5, 0.25, 1 / 3, 1], [1, 0.25, 1 / 3 + 1e-16, 0.5])
    assert (part["b"], part["c"]) == (1, 1)


# ----------------------------------------------------------------------------------------------------------------------
# A/A


def test_noise_floor_by_hand():
    """Band, the sd's interval and the mdes, from scipy's quantiles."""
    x = [3.301, 3.299, 3.3025, 3.2985]
    found, sd = ab_power.noise_floor(x, correlation=0.5), np.std(x, ddof=1)
    half = stats.t.ppf(0.975, 3) * sd * math.sqrt(1.25)
    assert (found["mean"], found["sd"], found["n"]) == pytest.approx((np.mean(x), sd, 4))
    assert (found["band_low"], found["band_high"]) == pytest.approx((np.mean(x) - half, np.mean(x) + half))
    low, high = (math.sqrt(3 * sd**2 / stats.chi2.ppf(q, 3)) for q in (0.975, 0.025))
    assert (found["sd_low"], found["sd_high"]) == pytest.approx((low, high))
    assert found["mde"] == {n: ab_power.mde(n, sd * math.sqrt(2)) for n in (3, 5, 8)}
    assert found["mde_paired"] == pytest.approx({n: ab_power.mde(n, sd) for n in (3, 5, 8)})
    assert ab_power.noise_floor(x)["mde_paired"] is None
    tighter = ab_power.noise_floor(x, 0.5)  # alpha comes second, as everywhere here
    assert tighter["alpha"] == 0.5 and tighter["band_high"] < found["band_high"]


def test_in_band():
    """The band's edge belongs to it; runs without spread have a band of one point."""
    noise = ab_power.noise_floor(A)
    edge = noise["band_high"]
    assert ab_power.in_band(edge, noise) is True and ab_power.in_band(edge + 1e-6, noise) is False
    assert ab_power.in_band(noise["band_low"] - 1e-6, noise) is False and ab_power.in_band(noise["mean"], noise)
    same = ab_power.noise_floor([3.3, 3.3, 3.3])
    assert ab_power.in_band(3.3, same) and not ab_power.in_band(3.3001, same)


# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_coverage_quick(tmp_path):
    """coverage.py in its quick form: every rate it states lies within its target."""
    out = tmp_path / "coverage.json"
    command = [sys.executable, str(REPO / "experiments/bench/coverage.py"), "--quick", "--check", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) > 150 and all(row["ok"] is not False for row in rows)
    assert "| ok |" in done.stdout and not list(tmp_path.glob("*.tmp"))


def test_coverage_refuses_nonsense():
    """A handful of simulations would show any number: refused in one sentence."""
    done = subprocess.run([sys.executable, str(REPO / "experiments" / "bench" / "coverage.py"), "--sims", "5"],
                          capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("coverage.py: ") and done.stdout == ""
