"""--target_loss: how much sooner a loss is reached, against hand-computed values and simulations of its claims."""

import argparse
import json
import math
import re

import numpy as np
import pytest
from conftest import base_loss, make_run
from scipy import stats
from test_compare_runs import GATE, NOISE_A, compare, csv_of, make_arms, many
from test_logs import STAGE_3, log_003, written

import compare_runs
from lab import ab_plots, ab_target, ab_target_page

OK = {"ok": True, "other_machine": False, "other_tokens": False, "planned": 0, "looks": 0}


def curve(seed, losses, every=100, name="run", seconds=0.5, flops=6.0):
    """A run that scored these losses at step 0, every, 2 * every, ...; 100 tokens a step."""
    val = {}
    for i, loss in enumerate(losses):
        step = i * every
        val[step] = {"val_loss": loss, "tokens_seen_global": 100 * step, "flops_total": 100 * flops * step,
                     "train_seconds": seconds * step}
    return {"name": f"{name}_s{seed}", "seed": seed, "config": {"tokens_per_step": 100}, "val": val}


def arms_of(a, b, **of_b):
    """Two arms by their seeds' losses."""
    return {"A": [curve(seed, losses, name="a") for seed, losses in enumerate(a)],
            "B": [curve(seed, losses, name="b", **of_b) for seed, losses in enumerate(b)]}


def asked(*targets, alpha=0.05):
    return argparse.Namespace(target_loss=list(targets), alpha=alpha)


def found_in(arms, *targets, checked=OK, alpha=0.05):
    return ab_target.compare_arms(arms, "A", "val_loss", dict(checked), asked(*targets, alpha=alpha))


def ratio_in(found, axis="step", target=None):
    return next(one for one in found["ratios"] if one["axis"] == axis and target in (None, one["target"]))


def straight(steps, last=40, start=10):
    """Losses that fall evenly from `start` at step 0 to 2 at `steps` and on, evaluated every 100 steps: every bend is
    0, so that nothing is allowed for between evaluations."""
    return [start - (start - 2) * (i * 100) / steps for i in range(last)]


# ----------------------------------------------------------------------------------------------------------------------
# one run


def test_crossing_by_hand():
    """The step, tokens, FLOPs and seconds at which a curve crosses 3.5: half of the way from 200 to 300."""
    run = curve(0, [10, 5, 4, 3])
    reach = ab_target.reach_of(run, "val_loss", 3.5, {})
    assert reach.step == 300 and reach.end.loss == 3
    line, least, most = reach.costs["step"]
    assert (line, least, most) == (250, 200 + 0.5 / 4 * 100, 300 - 0.5 / 4 * 100)
    assert [reach.costs[axis][0] for axis in ab_target.AXES] == [250, 25_000, 150_000, 125]
    # exactly on an evaluation
    assert ab_target.reach_of(run, "val_loss", 4.0, {}).costs["step"][0] == 200
    # evaluations far apart: at its first one a loss may fall after / before = 10 times as fast as the line
    assert ab_target.crossing(100, 1000, 0.5)[1] == 100 + 0.5 / 10 * 900
    # a bend narrows both sides
    assert ab_target.crossing(200, 300, 0.5, 0.1) == (250, pytest.approx(240), pytest.approx(260))
    assert ab_target.crossing(200, 300, 0.5, 0.0) == (250, 250, 250)


def test_not_reached_is_all_that_was_spent():
    """A run that ends at 3 has not reached 2.5 at its last step."""
    reach = ab_target.reach_of(curve(0, [10, 5, 4, 3]), "val_loss", 2.5, {})
    assert reach.step is None and reach.costs["step"] == (300, 300, 300)
    assert reach.costs["train_seconds"] == (150, 150, 150)


def test_first_crossing_counts_and_a_rise_is_told():
    """The first time at or below the target, as in the field, though the run lies above it again at its end."""
    found = found_in(arms_of([[10, 5, 3, 4, 3.5]] * 3, [[10, 5, 3, 4, 2.9]] * 3), 3.2)
    assert [one["above"] for one in found["reached"]] == [["a_s0", "a_s1", "a_s2"], []]
    assert found["reached"][0]["spent"]["step"]["a_s0"] == pytest.approx(100 + 1.8 / 2 * 100)
    assert any("above it again at the end" in note and "a_s0, a_s1, a_s2" in note
               for note in ab_target_page.notes_on(found))


def test_bends_by_hand():
    """Half of the larger change of slope, over the slope; the whole where one neighbour is; none without a fall."""
    bends = ab_target.bends_of([curve(0, [10, 5, 4, 3.5, 3.6])], "val_loss")
    # slopes: -5, -1, -0.5, +0.1 per evaluation
    assert bends[0, 100] == pytest.approx(4 / 5)
    assert bends[100, 200] == pytest.approx(4 / 1 / 2)
    assert bends[200, 300] == pytest.approx(0.6 / 0.5 / 2)
    assert (300, 400) not in bends
    twice = ab_target.bends_of([curve(0, [10, 5, 4.1]), curve(1, [10, 5, 3.9])], "val_loss")
    assert twice[100, 200] == pytest.approx(4.0)  # of the mean curve
    assert ab_target.bends_of([], "val_loss") == {}


def test_log_without_costs():
    """A log that records no tokens but their number per step, and no FLOPs."""
    run = curve(0, [10, 5, 3])
    for record in run["val"].values():
        del record["tokens_seen_global"], record["flops_total"]
    costs = ab_target.reach_of(run, "val_loss", 4, {}).costs
    assert costs["tokens_seen_global"][0] == 15_000 and costs["flops_total"] == "not recorded"
    assert ab_target.reach_of(run, "val_bits_per_byte", 4, {}) == "not run"


# ----------------------------------------------------------------------------------------------------------------------
# two arms

STEPS_A, STEPS_B = (1000.0, 1100.0, 1050.0), (800.0, 850.0, 860.0)  # at which straight lines reach 2


def test_ratio_interval_and_p_by_hand():
    """Straight curves: the ratio is exp of the mean of three log ratios, with t's 4.302653 (2 degrees of freedom)."""
    found = found_in(arms_of(map(straight, STEPS_A), map(straight, STEPS_B)), 2.0)
    logs = np.log(STEPS_B) - np.log(STEPS_A)
    mean, half = logs.mean(), 4.302652729911275 * logs.std(ddof=1) / math.sqrt(3)
    one = ratio_in(found)
    assert one["ratio"] == pytest.approx(math.exp(mean), rel=1e-9)
    assert [one["low"], one["high"]] == pytest.approx([math.exp(mean - half), math.exp(mean + half)], rel=1e-6)
    assert one["p"] == pytest.approx(stats.ttest_1samp(logs, 0).pvalue, rel=1e-5)
    assert one["verdict"] == "faster" and one["paired"] and one["n"] == 3
    swapped = ratio_in(found_in(arms_of(map(straight, STEPS_B), map(straight, STEPS_A)), 2.0))
    assert swapped["verdict"] == "slower" and swapped["ratio"] == pytest.approx(1 / one["ratio"])


def test_tokens_are_the_steps_test():
    """Steps and tokens are one test; FLOPs and seconds, whose price per step differs between the arms by a constant
    factor, have other ratios and are tests of their own. Two targets are corrected together."""
    found = found_in(arms_of(map(straight, STEPS_A), map(straight, STEPS_B)), 2.0)
    assert found["tests"] == 1 and {one["same_as"] for one in found["ratios"]} == {"", "step"}
    b = [straight(x, start=9) for x in STEPS_B]  # so that the targets' ratios differ
    found = found_in(arms_of(map(straight, STEPS_A), b, flops=12.0), 2.0, 2.5)
    assert found["tests"] == 4
    steps, flops = ratio_in(found, "step", 2.0), ratio_in(found, "flops_total", 2.0)
    assert flops["ratio"] == pytest.approx(2 * steps["ratio"]) and flops["verdict"] == "slower"
    raw = sorted(one["p"] for one in found["ratios"] if not one["same_as"])
    smallest = min((one for one in found["ratios"] if not one["same_as"]), key=lambda one: one["p"])
    assert smallest["p_corrected"] == pytest.approx(4 * raw[0])
    twin = ratio_in(found, "tokens_seen_global", 2.0)
    assert twin["p_corrected"] == steps["p_corrected"] and twin["low_corrected"] == steps["low_corrected"]


def test_seeds_that_do_not_match_are_welchs():
    """Other seeds in B: all runs, unpaired, as the primary metric does it."""
    arms = arms_of(map(straight, STEPS_A), map(straight, STEPS_B))
    for run in arms["B"]:
        run["seed"] += 10
    one = ratio_in(found_in(arms, 2.0))
    assert not one["paired"]
    welch = stats.ttest_ind(np.log(STEPS_B), np.log(STEPS_A), equal_var=False).pvalue
    assert one["p"] > welch and one["row"]["stats"]["p_t"] == pytest.approx(welch, rel=1e-5)


def test_two_pairs_have_no_verdict():
    """Three pairs at least, another number than planned, and looks: the discipline of the primary metric."""
    arms = arms_of([straight(x) for x in STEPS_A[:2]], [straight(x) for x in STEPS_B[:2]])
    assert ratio_in(found_in(arms, 2.0))["verdict"] == "n = 2: too few"
    arms = arms_of(map(straight, STEPS_A), map(straight, STEPS_B))
    assert ratio_in(found_in(arms, 2.0, checked=OK | {"planned": 5}))["verdict"] == "inconclusive"
    one, look = (ratio_in(found_in(arms, 2.0, checked=OK | {"looks": looks})) for looks in (0, 8))
    assert look["p"] > one["p"] and look["high"] > one["high"]


def test_arms_that_are_not_comparable():
    """Neither p, interval nor verdict; other machines have no ratio of their seconds."""
    arms = arms_of(map(straight, STEPS_A), map(straight, STEPS_B))
    one = ratio_in(found_in(arms, 2.0, checked=OK | {"ok": False}))
    assert one["verdict"] == "not comparable" and one["line"] is None
    assert {one[key] for key in ("p", "low", "high", "low_corrected")} == {"N/A: not comparable"}
    twin = ratio_in(found_in(arms, 2.0, checked=OK | {"ok": False}), "tokens_seen_global")
    assert twin["high"] == "N/A: not comparable" and twin["tests"] == 0
    records = found_in(arms, 2.0, checked=OK | {"ok": False})["records"]
    assert {record["why"] for record in records} == {"N/A: not comparable"}
    seconds = ratio_in(found_in(arms, 2.0, checked=OK | {"other_machine": True}), "train_seconds")
    assert seconds["ratio"] == "N/A: other hardware or software" and seconds["verdict"] == "inconclusive"
    assert ratio_in(found_in(arms, 2.0, checked=OK | {"other_machine": True}))["verdict"] == "faster"


def test_evaluations_too_far_apart_to_tell():
    """Arms that cross the target between the same two evaluations: at straight lines B is faster, and nobody knows."""
    a, b = [10.0, 6.0, 3.0, 1.9], [10.0, 6.0, 3.0, 1.0]
    found = found_in(arms_of([a, [x + 0.01 for x in a], a], [b, [x + 0.01 for x in b], b]), 2.0)
    one = ratio_in(found)
    assert one["line"][1] < 1 < one["high"] and one["verdict"] == "inconclusive"
    (note,) = ab_target_page.notes_on(found)
    assert note.startswith("Inconclusive only as nobody knows the curves") and "2, steps [0." in note
    assert "--eval_every" in note and "tokens" not in note


# ----------------------------------------------------------------------------------------------------------------------
# runs that do not reach it


def test_bound_by_hand():
    """No run of A reaches 2 in its 1,000 steps, B does at 800, 850 and 860: the ratio is at most the geometric mean of
    those over 1,000, and only the upper end of its interval is known."""
    arms = arms_of([straight(2000.0, last=11)] * 3, map(straight, STEPS_B))
    found = found_in(arms, 2.0)
    logs = np.log(STEPS_B) - math.log(1000)
    one = ratio_in(found)
    assert one["side"] == "at most" and one["ratio"] == pytest.approx(math.exp(logs.mean()))
    half = stats.t.ppf(0.975, 2) * logs.std(ddof=1) / math.sqrt(3)
    assert one["low"] == 0 and one["high"] == pytest.approx(math.exp(logs.mean() + half), rel=1e-6)
    assert one["verdict"] == "faster"
    assert found["reached"][0]["spent"]["step"] == dict.fromkeys(("a_s0", "a_s1", "a_s2"))
    assert found["reached"][1]["spent"]["train_seconds"]["b_s1"] == pytest.approx(425)
    assert found["reached"][0]["n_reached"] == 0 and found["reached"][0]["costs"]["step"] == "more than 1,000"
    notes = ab_target_page.notes_on(found)
    assert notes[0] == "2: none of the 3 runs of A reaches it (more than 1,000 steps)."
    assert notes[1] == "2: A needs at least 1.20 times the steps of B (geometric mean of these runs)."
    assert ab_target_page.interval_cell(one) == f"below {one['high']:.3f}"
    assert ab_target_page.ratio_cell(one) == f"at most {one['ratio']:.3f}"
    # the other way round
    one = ratio_in(found_in({"A": arms["B"], "B": arms["A"]}, 2.0))
    assert one["side"] == "at least" and one["verdict"] == "slower" and one["high"] == math.inf
    assert one["low"] > 1 and ab_target_page.interval_cell(one) == f"above {one['low']:.3f}"


def test_part_of_an_arm():
    """One of A's three runs is censored: it counts at its last evaluation, and the counts are told."""
    a = [straight(1000.0), straight(1100.0), straight(2000.0, last=13)]
    found = found_in(arms_of(a, map(straight, STEPS_B)), 2.0)
    one = ratio_in(found)
    logs = np.log(STEPS_B) - np.log([1000, 1100, 1200])
    assert one["ratio"] == pytest.approx(math.exp(logs.mean())) and one["side"] == "at most"
    assert found["reached"][0]["costs"]["step"] == "2 of 3 by 1,100"
    assert ab_target_page.notes_on(found)[0] == "2: 2 of 3 runs of A reach it, by step 1100."


def test_costs_in_words():
    """An arm's cost is a geometric mean: 100 and 400 are 200."""
    def met(*costs, reached=2):
        steps = [1] * reached + [None] * len(costs)
        return {i: ab_target.Reach(steps[i], None, {"step": (cost,) * 3}) for i, cost in enumerate(costs)}

    assert ab_target.cost_in_words(met(100, 400), "step") == "200"
    assert ab_target.cost_in_words(met(100, 400, reached=1), "step") == "1 of 2 by 100"
    assert ab_target.cost_in_words(met(300, 400, reached=0), "step") == "more than 300"
    assert ab_target.cost_in_words(met(100) | {5: "not run"}, "step") == "N/A: not run"


def test_a_bound_on_the_wrong_side_is_no_evidence():
    """A was stopped at step 500, before B got there: that B took longer than A was trained says nothing."""
    found = found_in(arms_of([straight(2000.0, last=6)] * 3, map(straight, STEPS_B)), 2.0)
    one = ratio_in(found)
    assert one["ratio"] > 1 and one["p"] == 1.0 and one["verdict"] == "inconclusive"
    assert not any("needs at least" in note for note in ab_target_page.notes_on(found))


def test_both_arms_with_runs_that_do_not_reach_it():
    """No ratio at all; the counts stay."""
    a = [straight(1000.0), straight(2000.0, last=13), straight(1000.0)]
    found = found_in(arms_of(a, a), 2.0)
    one = ratio_in(found)
    assert one["ratio"] == "N/A: runs of both arms do not reach it" and one["verdict"] == "inconclusive"
    assert one["side"] == "" and [title for title, *_ in ab_target_page.many_columns(found)].count("steps") == 1
    assert "training tokens" not in [title for title, *_ in ab_target_page.many_columns(found)]
    assert found["tests"] == 0 and [one["n_reached"] for one in found["reached"]] == [2, 2]


def test_a_run_without_evaluations_stops_the_verdict():
    """A seed without a curve may be the one that went wrong."""
    arms = arms_of([straight(x) for x in (*STEPS_A, 1020.0)], [straight(x) for x in (*STEPS_B, 830.0)])
    arms["B"][3]["val"] = {}
    one = ratio_in(found_in(arms, 2.0))
    assert one["n"] == 3 and one["verdict"] == "inconclusive" and one["p"] < 0.05


@pytest.mark.parametrize("target, said", [
    (1.0, r"--target_loss 1: no run reaches it; the lowest is 3.0000 nats/token, of a_s0 at step 300: choose a higher"),
    (6.0, r"--target_loss 6: b_s0 is at 5.0000 nats/token by its first evaluation \(step 100\), .* below 5.00"),
    (11.0, r"--target_loss 11: b_s0 is at 5.0000 nats/token by its first"),
    (5.0, r"choose a target below 5.0000, or train with a smaller --eval_every\.$")])
def test_targets_that_say_nothing(target, said):
    """Below every loss, and above a first evaluation: the sentence names a target that would do."""
    arms = arms_of([[10, 7, 5.5, 3]] * 3, [[10, 5, 4, 3]] * 3)
    with pytest.raises(ValueError, match=said):
        found_in(arms, target)
    for run in arms["A"] + arms["B"]:
        run["val"] = {}
    with pytest.raises(ValueError, match=r"no run has a val loss \(nats/token\): train with --eval_every"):
        found_in(arms, 3.5)


def test_a_run_that_begins_below_the_target():
    """Fine-tuned from a checkpoint that is below the target at step 0: nothing to be reached."""
    arms = arms_of([[2.0, 5, 4, 3]] * 3, [[10, 5, 4, 3]] * 3)
    with pytest.raises(ValueError, match=r"a_s0 is at 2.0000 nats/token by its first evaluation \(step 0\)"):
        found_in(arms, 3.5)


# ----------------------------------------------------------------------------------------------------------------------
# simulations

SHAPES = {  # loss at a share of the run; the last two have a learning rate that goes down from 70 % on
    "exponential": lambda x: 3 + 2 * np.exp(-6 * x),
    "power law": lambda x: 3 + 2 * (1 + 100 * x) ** -0.4,
    "warmdown": lambda x: 3 + 2 * (1 + 100 * x) ** -0.4 - 0.3 * np.clip((x - 0.7) / 0.3, 0, 1) ** 1.5,
    "kink": lambda x: 3 + 2 * (1 + 100 * x) ** -0.4 - 0.25 * np.clip((x - 0.75) / 0.25, 0, 1),
}


def simulated(rng, shape, every, true, n=3, noise=0.03, at=0.72, steps=300):
    """The row of a simulated A/B: B has A's curve at `true` times the steps, and each run its own pace."""
    sides = []
    for pace in (1.0, true):
        arm = []
        for seed, u in enumerate(noise * rng.standard_normal(n)):
            x = np.arange(0, steps + 1, every) / steps / math.exp(u) / pace
            arm.append(curve(seed, SHAPES[shape](np.minimum(x, 1.2)).tolist(), every))
        bends = ab_target.bends_of(arm, "val_loss")
        target = float(SHAPES[shape](at))
        sides.append({run["seed"]: ab_target.reach_of(run, "val_loss", target, bends) for run in arm})
    return ab_target.ratio_of(target, "step", "B", *sides, OK, 0.05)


def coverage(shape, every, true, sims, n=3):
    """(share of intervals that hold the true ratio, the same of those on straight lines)."""
    rng, hits = np.random.default_rng(0), []
    for _ in range(sims):
        row = simulated(rng, shape, every, true, n)["row"]
        line = row["stats"]
        hits.append([row["low"] <= math.log(true) <= row["high"],
                     line["ci_low"] <= math.log(true) <= line["ci_high"]])
    return np.array(hits).mean(0)


@pytest.mark.parametrize("n", [3, 5])
def test_coverage_with_dense_evaluations(n):
    """Evaluations every 5 of 300 steps: 95 % of the intervals hold the true ratio, as paired t intervals do, and not
    many more."""
    covered, line = coverage("power law", 5, 0.8, 300, n)
    assert 0.92 <= line <= 0.975 and line <= covered <= 0.985


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("every", [30, 60, 100])
def test_coverage_with_few_evaluations(shape, every):
    """Evaluations every 30, 60 or 100 of 300 steps: 95 % or more."""
    covered, _ = coverage(shape, every, 0.8, 60)
    assert covered >= 0.93


def test_straight_lines_would_not_cover():
    """What the allowance is for: where a learning rate goes down between two evaluations, intervals on straight lines
    hold the true ratio in less than half of all cases."""
    covered, line = coverage("kink", 100, 0.8, 60)
    assert line < 0.5 and covered >= 0.95


@pytest.mark.parametrize("n, cut", [(3, 1.5), (5, 1.0)])
def test_false_claims_of_bounds(n, cut):
    """Arms that do not differ, whose runs end `cut` sd above their mean cost: claims of "faster", measured and bounded
    together, are 2.5 % at most. cut: where a pair's runs are censored most often to a false claim."""
    rng, wrong, sims = np.random.default_rng(1), 0, 1000
    for _ in range(sims):
        sides = []
        for costs in rng.standard_normal((2, n)):
            arm = {}
            for seed, cost in enumerate(costs):
                spent = math.exp(0.1 * min(cost, cut))
                step = None if cost > cut else 1
                arm[seed] = ab_target.Reach(step, None, {"step": (spent, spent, spent)})
            sides.append(arm)
        one = ab_target.ratio_of(2.0, "step", "B", *sides, OK, 0.05)
        ab_target.judge([one], OK, 0.05)
        wrong += one["verdict"] == "faster"
    assert wrong / sims < 0.025 + 3 * math.sqrt(0.025 * 0.975 / sims)


# ----------------------------------------------------------------------------------------------------------------------
# the rule of a record


@pytest.mark.filterwarnings("ignore:Precision loss")
def test_record_by_hand():
    """scipy's one-sided t test at every step; the earliest of those that pass from the last one backwards without a
    gap, though an earlier one passes, too."""
    table = np.array([[9, 9, 9], [2.8, 2.81, 2.82], [3.4, 3.0, 3.1], [3.1, 3.105, 3.11], [2.9, 2.91, 2.93]])
    arm = [curve(seed, losses.tolist()) for seed, losses in enumerate(table.T)]
    found = ab_target.shown_from(arm, "val_loss", 3.2)
    p = [stats.ttest_1samp(losses, 3.2, alternative="less").pvalue for losses in table]
    assert p[1] < 0.01 < p[2] and p[3] < 0.01
    assert found["step"] == 300 and found["mean"] == pytest.approx(table[3].mean())
    assert found["p"] == pytest.approx(p[3]) and found["last_p"] == pytest.approx(p[4]) and found["last_step"] == 400
    found = ab_target.shown_from(arm, "val_loss", 2.92)
    assert found["step"] is None and found["last_p"] == pytest.approx(
        stats.ttest_1samp(table[4], 2.92, alternative="less").pvalue)


def test_record_is_never_of_step_0_or_of_nan():
    """All steps pass: step 100, not the untrained network. A run that diverged at the end has shown nothing."""
    arm = [curve(seed, [1 + seed / 100] * 4) for seed in range(3)]
    assert ab_target.shown_from(arm, "val_loss", 3.2)["step"] == 100
    arm[1]["val"][300]["val_loss"] = None
    assert ab_target.shown_from(arm, "val_loss", 3.2)["step"] is None
    assert math.isnan(ab_target.p_at_most([3.0, 3.0, 3.0], 3.2))


def test_record_of_looks_and_few_runs():
    """Looks hold p; two runs, another number than planned, and more than the looks have no result."""
    losses = [3.1, 3.105, 3.11]
    held = ab_target.p_at_most(losses, 3.2, looks=8)
    assert held > 2 * ab_target.p_at_most(losses, 3.2)
    arm = [curve(seed, [9, loss]) for seed, loss in enumerate(losses)]
    why = lambda own, **changes: ab_target.record_of(3.2, "A", own, "val_loss", OK | changes)["why"]
    assert why(arm) == "" and why(arm[:2]) == "n = 2: too few" and why(arm, planned=5) == "5 were planned"
    assert why(arm * 2, looks=5) == "more than the 5 of --sequential"


def test_record_keeps_its_level():
    """Ten steps whose true mean lies at the target: a claim of any of them in 1 % of all cases. Choosing the earliest
    that passes would make more."""
    rng, sims, ours, chosen = np.random.default_rng(2), 4000, 0, 0
    for _ in range(sims):
        losses = 3.2 + 0.01 * rng.standard_normal((3, 10))
        arm = [curve(seed, [9, *own]) for seed, own in enumerate(losses.tolist())]
        ours += ab_target.shown_from(arm, "val_loss", 3.2)["step"] is not None
        t = (losses.mean(0) - 3.2) / losses.std(0, ddof=1) * math.sqrt(3)
        chosen += (stats.t.cdf(t, 2) < 0.01).any()
    assert ours / sims < 0.01 + 3 * math.sqrt(0.01 * 0.99 / sims) and chosen / sims > 0.05


# ----------------------------------------------------------------------------------------------------------------------
# reports


OFTEN = {"eval_every": 2}


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """Three pairs, evaluated every 2 of 40 steps, whose B is about 0.2 nats lower."""
    folder = tmp_path_factory.mktemp("arms")
    make_arms(folder, 3, effect=-0.2, a={"flags": OFTEN}, b={"flags": OFTEN | GATE["flags"]})
    for name, noise in (("base", 0.02), ("test", -0.03)):  # so that the pairs differ
        rewrite_losses(folder, name, noise)
    csv_of(folder)
    return folder


def rewrite_losses(folder, name, noise):
    for seed in range(3):
        path = folder / f"{name}_s{seed}" / "scalars.jsonl"
        lines = []
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record["type"] == "val":
                record["val_loss"] += noise * seed
            lines.append(json.dumps(record))
        path.write_text("\n".join(lines) + "\n")


TARGET = 3.5


def test_report_of_two_arms(arms, tmp_path, capsys):
    """The table, the terminal's lines, the page and the JSON record have the same numbers, and B is faster by hand."""
    code, report = compare(arms, "--no_items", "--target_loss", TARGET, out=tmp_path / "out")
    printed = capsys.readouterr().out
    text, page = ((tmp_path / "out" / name).read_text() for name in ("report.md", "report.html"))
    record = json.loads((tmp_path / "out" / "report.json").read_text())["targets"]
    one = ratio_in(record)

    def crosses(shift):  # base_loss(step, 40) + shift is at the target
        return -20 * math.log((TARGET - 3 - shift) / 2)

    a = [crosses(NOISE_A[seed] + 0.02 * seed) for seed in range(3)]
    b = [crosses(noise - 0.2 - 0.03 * seed) for seed, noise in enumerate((0.0016, -0.0008, -0.0003))]
    ratio = math.exp(np.mean(np.log(b) - np.log(a)))
    assert code == 0 and one["ratio"] == pytest.approx(ratio, rel=0.003) and one["verdict"] == "faster"
    assert one["low"] < ratio < one["high"] < 1
    assert record["losses"] == [TARGET] and record["metric"] == "val_loss"
    assert "## How soon a loss is reached: val loss (nats/token)" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| 3.5 | steps |")]
    assert f"| {one['ratio']:.3f} | [{one['low']:.3f}, {one['high']:.3f}] |" in row and row.endswith("| faster |")
    mean = np.exp(np.mean(np.log(a)))
    assert f"| steps | {mean:,.0f} |" in row
    assert [line.split(" |")[1] for line in text.splitlines() if line.startswith("| 3.5 | ")][:4] == [
        " steps", " training tokens", " training FLOPs", " training seconds"]
    (line,) = [line for line in printed.splitlines() if "Loss 3.5 reached, steps" in line]
    assert f"× {one['ratio']:.3f} [" in line and line.endswith("faster")
    assert "Loss 3.5 reached, training seconds" in printed and "Loss 3.5 reached, steps" in page
    assert "How soon a loss is reached" in page and "apart from this report" in page
    total = int(re.search(r"This report holds (\d+) tests", text)[1])
    without = int(re.search(r"This report holds (\d+) test", report_without(arms, capsys))[1])
    assert record["tests"] == 1 and total == without + 1 and "1 of how soon a loss is reached" in text
    # record rule
    (row,) = [line for line in text.splitlines() if line.startswith("| 3.5 | B |")]
    shown = next(one for one in record["records"] if one["arm"] == "B")
    assert f"| step {shown['step']} |" in row and shown["n"] == 3 and shown["p"] < 0.01


def report_without(arms, capsys):
    assert compare(arms, "--no_items")[0] == 0
    text = capsys.readouterr().out
    assert "How soon" not in text and "reached" not in text.split("## How to read")[0]
    return text


def test_other_reports_hold_no_target(arms):
    """A report that was not asked is as it was."""
    assert compare(arms, "--no_items")[1]["targets"] is None


def test_a_gate_that_fails(arms, tmp_path, capsys):
    """Not comparable: status 2, costs are shown and nothing is claimed."""
    make_arms(tmp_path, 3, effect=-0.2, a={"flags": OFTEN}, b={"flags": OFTEN | {"learning_rate": 7e-4}})
    code, report = compare(tmp_path, "--no_items", "--target_loss", TARGET)
    assert code == 2 and {one["verdict"] for one in report["targets"]["ratios"]} == {"not comparable"}
    text = capsys.readouterr().out.split("How soon a loss is reached")[1].split("## How sure")[0]
    assert "faster" not in text and "N/A: not comparable" in text


def test_other_tokens_are_reached_in_bits(tmp_path):
    """Where tokens differ the target counts bits per byte, as the verdict does."""
    tokens = {"data": {"fingerprint": "e" * 64, "condition": "mul_tokens", "mul_token_rate": 1e-3,
                       "val_fingerprint_tokens": "a" * 64}}
    make_arms(tmp_path, 3, effect=-0.2, b=tokens, flags=OFTEN)
    bits = 3.5 * 0.25 / math.log(2)
    _, report = compare(tmp_path, "--no_items", "--target_loss", f"{bits:.6f}")
    found = report["targets"]
    assert found["metric"] == "val_bits_per_byte"
    step = -20 * math.log((0.5 - NOISE_A[0]) / 2)
    assert found["reached"][0]["spent"]["step"]["base_s0"] == pytest.approx(step, rel=0.01)
    with pytest.raises(ValueError, match=r"--target_loss 3.5: test_s1 is at 1\.66"):
        compare(tmp_path, "--no_items", "--target_loss", "3.5")


GROUP = ("--group_by", "attn_gate", "--target_loss")


def test_many_arms(arms, tmp_path, capsys):
    """Every arm's cost, and its ratio to the baseline; without a baseline the costs alone."""
    runs = ("--runs", arms / "*_s?")
    assert many(*runs, *GROUP, TARGET, "--baseline", "attn_gate=none", "--out", tmp_path / "out") == 0
    printed, text = capsys.readouterr().out, (tmp_path / "out" / "report.md").read_text()
    record = json.loads((tmp_path / "out" / "report.json").read_text())["targets"]
    _, report = compare(arms, "--no_items", "--target_loss", TARGET)
    one, other = ratio_in(record), ratio_in(report["targets"])
    assert one["arm"] == "headwise" and record["baseline"] == "none"
    assert all(one[key] == pytest.approx(other[key]) for key in ("ratio", "low", "high", "p"))
    (row,) = [line for line in text.splitlines() if line.startswith("| 3.5 | headwise | 3 of 3 |")]
    assert f"{one['ratio']:.3f} [{one['low_corrected']:.3f}, {one['high_corrected']:.3f}], p " in row
    assert "headwise: loss 3.5" in printed and f"× {one['ratio']:.3f}" in printed
    capsys.readouterr()
    assert many(*runs, *GROUP, TARGET) == 0
    text = capsys.readouterr().out
    assert "| 3.5 | headwise | 3 of 3 |" in text and "over the baseline's, 95 %" not in text


def test_arms_of_one_run(tmp_path, capsys):
    """Costs and a ratio, no interval and no verdict; steps and tokens stay one column."""
    for name, flags in (("base", OFTEN), ("test", OFTEN | GATE["flags"])):
        make_run(tmp_path / f"{name}_s0", 0, flags=flags, loss=-0.2 * (name == "test"))
    code, report = compare(tmp_path, "--no_items", "--target_loss", TARGET)
    one = ratio_in(report["targets"])
    assert code == 0 and one["verdict"] == "n = 1: too few" and one["low"] == "N/A: one seed" and one["ratio"] < 1
    assert {record["why"] for record in report["targets"]["records"]} == {"n = 1: too few"}
    capsys.readouterr()
    many("--runs", tmp_path / "*_s0", *GROUP, TARGET, "--baseline", "attn_gate=none")
    text = capsys.readouterr().out
    assert f"{one['ratio']:.3f} (no interval: one seed): n = 1: too few" in text and "| training tokens |" not in text


def test_line_in_the_plot(arms):
    """The target is a line across the held-out loss, within its limits; another target draws none."""
    axes, _ = ab_plots.canvas(4, 3)
    axes[0].plot([0, 10], [5.0, 3.0])
    axes[0].set(ylim=(3, 5))
    ab_plots.mark_values(axes[0], (3.5, 9.0))
    assert [line.get_ydata()[0] for line in axes[0].lines[1:]] == [3.5]
    assert [text.get_text() for text in axes[0].texts] == ["target 3.5"]
    panels = {"val loss": {"a": [[[0, 5.0], [10, 4.0], [20, 3.0]]]}}
    plain, marked = (ab_plots.plot_losses(panels, "steps", lines=lines) for lines in ((), (3.5,)))
    assert plain["png"] != marked["png"] and plain["wide"] != marked["wide"]
    found = {"metric": "val_loss", "losses": [3.5]}
    assert ab_target_page.lines_of(found, "val_loss") == (3.5,)
    assert ab_target_page.lines_of(found, "hellaswag_accuracy") == ab_target_page.lines_of(None, "val_loss") == ()


def test_page_marks_the_target(arms, tmp_path, monkeypatch):
    """Both curves of the page, over steps and over seconds, get the line; of two arms and of many."""
    drawn, plot = [], ab_plots.plot_losses

    def watched(panels, x_label, unmarked=(), apart=(), lines=()):
        drawn.append((x_label, lines))
        return plot(panels, x_label, unmarked, apart, lines)

    monkeypatch.setattr(ab_plots, "plot_losses", watched)
    compare(arms, "--no_items", "--target_loss", TARGET, out=tmp_path / "a")
    both = [("optimizer steps", (TARGET,)), ("training time (seconds)", (TARGET,))]
    assert drawn == both
    drawn.clear()
    many("--runs", arms / "*_s?", *GROUP, TARGET, "--out", tmp_path / "b")
    assert drawn == both


def test_logs_of_modded_nanogpt(tmp_path, capsys):
    """Document 003's logs: 3.30 is reached between steps 4,875 and 5,000 without a gate and 4,625 and 4,750 with one.
    Steps, tokens and seconds are known by the log, FLOPs are not."""
    for arm, own in STAGE_3.items():
        for seed, (losses, times) in own.items():
            written(tmp_path / f"{arm}_{seed}.txt", log_003(arm, seed, losses, times))
    flags = ("--a", tmp_path / "none_*.txt", "--b", tmp_path / "elementwise_*.txt", "--target_loss", 3.30)
    assert many(*flags, "--out", tmp_path / "out") == 0
    record = json.loads((tmp_path / "out" / "report.json").read_text())["targets"]
    steps = [4875 + 125 * (3.3036 - 3.3) / (3.3036 - 3.2955), 4625 + 125 * (3.3033 - 3.3) / (3.3033 - 3.2928)]
    found = {name.split("/")[-1]: step for one in record["reached"] for name, step in one["spent"]["step"].items()}
    assert [found[f"{arm}_1337.txt"] for arm in STAGE_3] == pytest.approx(steps)
    assert ratio_in(record, "flops_total")["ratio"] == "N/A: not recorded"
    one, seconds = ratio_in(record), ratio_in(record, "train_seconds")
    assert one["n"] == 3 and 0.94 < one["ratio"] < 0.95
    assert seconds["ratio"] == pytest.approx(one["ratio"] * 1424.011 / 1339.019, rel=2e-3)
    assert record["reached"][0]["costs"]["tokens_seen_global"].startswith("2,592,0")  # 4,944 steps of 2**19
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| 3.3 | training FLOPs | N/A: not recorded | N/A: not recorded |" in text
    # 3.28 is reached by none of the runs without a gate, and by all with one
    assert many(*flags[:-1], 3.28, "--out", tmp_path / "out") == 0
    record = json.loads((tmp_path / "out" / "report.json").read_text())["targets"]
    one = ratio_in(record)
    assert one["side"] == "at most" and one["verdict"] == "faster" and one["high"] < 1
    assert [one["n_reached"] for one in record["reached"]] == [0, 3]
    records = {one["arm"]: one for one in record["records"]}
    losses = [losses[-1] for losses, _ in STAGE_3["elementwise"].values()]
    assert records["B"]["last_p"] == pytest.approx(stats.ttest_1samp(losses, 3.28, alternative="less").pvalue)
    losses = [losses[-2] for losses, _ in STAGE_3["elementwise"].values()]
    assert 0.01 < stats.ttest_1samp(losses, 3.28, alternative="less").pvalue < 0.012  # step 5,000 just fails
    assert records["B"]["step"] == 5100 and records["A"]["step"] is None


@pytest.mark.parametrize("flags, said", [
    (("--target_loss", "0"), "--target_loss 0: give a loss above 0, as in --target_loss 3.28"),
    (("--target_loss", "0.0"), "--target_loss 0: give a loss above 0"),
    (("--target_loss", "-3"), "--target_loss -3: give a loss above 0"),
    (("--target_loss", "nan"), "--target_loss nan: give a loss above 0"),
    (("--target_loss", "inf"), "--target_loss inf: give a loss above 0"),
    (("--target_loss", "low"), "--target_loss 'low': give a number"),
    (("--target_loss",), "--target_loss needs a value"),
    (("--target_loss", "3.5", "3.50"), "names a loss twice: give each once"),
    (("--target_loss", "1"), "--target_loss 1: no run reaches it; the lowest is 3"),
    (("--target_loss", "9"), "--target_loss 9: test_s2 is at 4.5")])
def test_bad_input_is_one_sentence(arms, tmp_path, flags, said):
    """Nonsense, and targets that say nothing: a sentence, and no report is begun."""
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=re.escape(said)) as fault:
        many("--a", arms / "base_s*", "--b", arms / "test_s*", "--out", out, *flags)
    assert len(str(fault.value).splitlines()) == 1 and str(fault.value).endswith(".") and not out.exists()
    if "no run" in said or "is at" in said:
        with pytest.raises(ValueError, match=re.escape(said)):
            many("--runs", arms / "*_s?", "--group_by", "attn_gate", "--out", out, *flags)
        assert not out.exists()


@pytest.mark.parametrize("flags, said", [
    (("--aa", "{}/base_s*"), "compares arms: give it with --a and --b, or with --runs and --group_by"),
    (("--aa", "{}/base_s*", "--plan", "--effect", "1"), "compares arms"),
    (("--check", "{}/base_s0", "--against", "{}/base_s*"), "compares arms"),
    (("--plan", "--effect", "1", "--noise", "1"), "compares arms"),
    (("--list", "{}/base_s*"), "compares arms"),
    (("--results", "{}/results.csv", "--group_by", "attn_gate"), "which a results.csv does not hold: give --runs")])
def test_modes_in_which_it_means_nothing(arms, flags, said):
    """A flag that would be ignored in silence."""
    with pytest.raises(ValueError, match=said):
        many(*(flag.format(arms) for flag in flags), "--target_loss", 3.5)


def test_the_metric_of_a_benchmarks_verdict():
    """Where a benchmark is primary, the loss is the usual one."""
    assert ab_target.metric_of("hellaswag_accuracy", {"other_tokens": False}) == "val_loss"
    assert ab_target.metric_of("hellaswag_accuracy", {"other_tokens": True}) == "val_bits_per_byte"
    assert ab_target.metric_of("val_loss_bos", {"other_tokens": True}) == "val_loss_bos"
    assert compare_runs.build_parser().get_default("target_loss") is None and base_loss(0, 40) == 5
