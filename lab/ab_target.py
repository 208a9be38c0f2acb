"""ab_target.py owns the speedrun's question: how much sooner does a treatment reach a loss?

    python compare_runs.py --a 'runs/adamw_s*' --b 'runs/muon_s*' --treatment optimizer --target_loss 3.28
    found = compare_arms({"A": runs_a, "B": runs_b}, "A", "val_loss", checked, args)      # None without --target_loss

Reached. A run reaches a target where its validation curve first is at or below it, as modded-nanogpt counts; a run that
lies above it again at its end is named. Its cost there, in each of AXES, is read on the line between two evaluations.
Where between them a curve really got there is not known, so the least and the most that it may have spent go along
(crossing, bends_of), and an interval holds for both extremes, as at equal cost (ab_numbers.between_evaluations).

How much sooner. B / A is a geometric mean over pairs of seeds, or of all runs: the interval and t test of
ab_numbers.difference, of the costs' logarithms. All targets, arms and axes are one family of tests, corrected by Holm,
beside the primary metric and as strict: three pairs at least, a gate that was passed, --planned and --sequential.

Not reached. Such a run took more than all it spent, so it has no ratio. If all runs of the other arm reached the
target, it counts as if it had done so at its last evaluation: it took longer, so the ratio is at most (or at least)
what comes out, and only that end of the interval, and that verdict, are claimed. Where nothing differs, false claims of
"faster" by this and by measured ratios together are 2.6 % at most, for 2.5 % (tests/test_ab_target.py). A sign test
over pairs would add nothing: it shows nothing below six. If both arms have such runs, the counts are all there is.
A run below the target by its first evaluation may have got there at any time before, and is refused.

A record. shown_from() is modded-nanogpt's rule for one arm: a mean loss of at most the target at p < 0.01.
Tables and words: lab/ab_target_page.py.
"""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from scipy import special

from lab import ab_alpha, ab_numbers, ab_stats, ab_verdict, runs
from lab.ab_numbers import PRIMARY, SHORT, STEEPEST, UNIT

AXES = {  # field of a val record -> what was spent there, and how a number of it is written
    "step": ("steps", ",.0f"),
    "tokens_seen_global": ("training tokens", ",.0f"),
    "flops_total": ("training FLOPs", ".4g"),
    "train_seconds": ("training seconds", ",.1f"),
}
RECORD_LEVEL = 0.01  # of modded-nanogpt's rule
WORDS = {"better": "faster", "worse": "slower"}  # a lower cost is better
OTHER_MACHINE = "N/A: other hardware or software"


# ----------------------------------------------------------------------------------------------------------------------
# the flag


def check_flags(args, chosen: list[str], check) -> None:
    """check(condition, sentence) of --target_loss. chosen: the modes of compare_runs.py that were asked for."""
    targets = args.target_loss or []
    for target in targets:
        example = "give a loss above 0, as in --target_loss 3.28"
        check(0 < target < math.inf, f"--target_loss {target:g}: {example}")
    check(len(set(targets)) == len(targets), "--target_loss names a loss twice: give each once")
    if targets:
        check(chosen in (["--a with --b"], ["--group_by"]),
              "--target_loss compares arms: give it with --a and --b, or with --runs and --group_by")
        check(not args.results, "--target_loss reads curves, which a results.csv does not hold: "
              "give --runs instead of --results")


def metric_of(primary: str, checked: dict) -> str:
    """The loss that is to be reached: the verdict's, or where that is a benchmark's the usual one."""
    if primary in PRIMARY:
        return primary
    return "val_bits_per_byte" if checked["other_tokens"] else "val_loss"


# ----------------------------------------------------------------------------------------------------------------------
# one run


class Point(NamedTuple):
    """An evaluation of a run."""
    step: int
    loss: float
    costs: dict[str, float]  # axis -> spent so far; NaN: not recorded


class Reach(NamedTuple):
    """How a run met a target."""
    step: int | None  # of the first evaluation at or below it; None: none is
    end: Point
    costs: dict[str, tuple[float, float, float] | str]  # axis -> (on the line, least, most), or why there is none


def points_of(run: dict, metric: str) -> list[Point]:
    """A run's evaluations with a finite loss, by step."""
    per_step = runs.number(run["config"].get("tokens_per_step"))
    points = []
    for step, record in sorted(run["val"].items()):
        costs = {axis: runs.number(record.get(axis)) for axis in AXES} | {"step": float(step)}
        if not math.isfinite(costs["tokens_seen_global"]):  # a log with settings
            costs["tokens_seen_global"] = step * per_step
        point = Point(step, runs.number(record.get(metric)), costs)
        if math.isfinite(point.loss):
            points.append(point)
    return points


def reach_of(run: dict, metric: str, target: float, bends: dict) -> Reach | str:
    """How a run met a target; a reason (str) where it scored nothing. Not reached: each cost is all that it spent. Of a
    run that check_targets has let pass. bends: of its arm (bends_of)."""
    points = points_of(run, metric)
    if not points:
        return "not run"
    i = next((i for i, point in enumerate(points) if point.loss <= target), None)
    if i is None:
        spent = {axis: crossing(cost, cost, 1.0) for axis, cost in points[-1].costs.items()}
        return Reach(None, points[-1], spent)
    before, after = points[i - 1], points[i]
    drop = (before.loss - target) / (before.loss - after.loss)
    bend = bends.get((before.step, after.step), math.inf)
    costs = {axis: crossing(before.costs[axis], after.costs[axis], drop, bend) for axis in AXES}
    return Reach(after.step, points[-1], costs)


def crossing(before: float, after: float, drop: float, bend: float = math.inf) -> tuple[float, float, float] | str:
    """(on the line, the least, the most) that was spent where the curve had made the share `drop` (0 to 1) of its way
    from the loss of one evaluation to that of the next, which came at these costs.

    From the line it may be off by `bend` (bends_of). Nor does it fall more than STEEPEST times as fast as the line,
    before that point or behind it (behind it: ab_numbers.at_budget). A loss that falls as a power of the cost, with
    an exponent of at most 1, begins at most after / before times as fast, which is more only where evaluations are far
    apart."""
    if not 0 < before <= after:
        return "not recorded"
    width, steepest = after - before, max(STEEPEST, after / before)
    least, most = max(drop / steepest, drop - bend), min(1 - (1 - drop) / STEEPEST, drop + bend)
    return before + drop * width, before + least * width, before + most * width


def bends_of(arm: list[dict], metric: str) -> dict[tuple[int, int], float]:
    """{(a step, the next evaluated one): by which share of the way between them the line may be off}, of the steps that
    all of an arm's runs scored.

    A curve that bends between two evaluations has another mean slope there than beside them. By half of that change,
    over its slope, it is off the line at most if it bends once, wherever that is; if it bends evenly, by a quarter of
    that. The larger change of the two ends counts, and all of it where there is one end. The slopes are those of the
    mean over the runs, as what is a run's own is in the spread of the runs already. Missing: it does not fall, or no
    evaluation lies beside it. An interval of this covers 95 % or more on curves like those of trainings, where one on
    straight lines may cover nothing (tests/test_ab_target.py); 85 % was the worst that was found, where a learning
    rate begins to fall right at the target, in the middle between two evaluations, and the loss then five times as
    fast.
    """
    curves = [{point.step: point.loss for point in points_of(run, metric)} for run in arm]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    mean = [statistics.fmean(curve[step] for curve in curves) for step in steps]
    pairs = list(zip(steps, steps[1:], strict=False))
    slopes = [(mean[i + 1] - mean[i]) / (b - a) for i, (a, b) in enumerate(pairs)]
    bends = {}
    for i, pair in enumerate(pairs):
        beside = [slopes[k] for k in (i - 1, i + 1) if 0 <= k < len(slopes)]
        if slopes[i] < 0 and beside:
            change = max(abs(slope - slopes[i]) for slope in beside)
            bends[pair] = change / -slopes[i] / len(beside)
    return bends


def check_targets(every: list[dict], metric: str, targets: list[float]) -> None:
    """ValueError for a target that no run reaches, or that one is below by its first evaluation after step 0."""
    curves = {run["name"]: points_of(run, metric) for run in every}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        raise ValueError(f"--target_loss: no run has a {SHORT[metric]} ({UNIT[metric]}): train with "
                         "--eval_every, or leave it out.")
    first, lowest = {}, {}
    for name, points in curves.items():
        trained = next((i for i, point in enumerate(points) if point.step > 0), 0)
        first[name] = lowest_of(points[: trained + 1])
        lowest[name] = lowest_of(points)
    early = min(first, key=lambda name: first[name].loss)
    best = min(lowest, key=lambda name: lowest[name].loss)
    for target in targets:
        step, loss, _ = first[early]
        if loss <= target:
            raise ValueError(
                f"--target_loss {target:g}: {early} is at {loss:.4f} {UNIT[metric]} by its first evaluation "
                f"(step {step}), so that nobody knows when it got there: choose a target below {loss:.4f}, "
                "or train with a smaller --eval_every.")
        step, loss, _ = lowest[best]
        if loss > target:
            raise ValueError(f"--target_loss {target:g}: no run reaches it; the lowest is {loss:.4f} "
                             f"{UNIT[metric]}, of {best} at step {step}: choose a higher target, or train longer.")


def lowest_of(points: list[Point]) -> Point:
    return min(points, key=lambda point: point.loss)


# ----------------------------------------------------------------------------------------------------------------------
# arms


def compare_arms(arms: dict[str, list[dict]], baseline: str | None, primary: str, checked: dict, args) -> dict | None:
    """How soon each arm (name -> runs) reaches the targets of --target_loss, and the others against the baseline; None
    without the flag. {"metric", "losses", "reached" and "records" (target and arm each), "ratios" (target, arm and axis
    each), "baseline", "tests"}. ValueError for a target that says nothing about these runs."""
    if not args.target_loss:
        return None
    metric = metric_of(primary, checked)
    check_targets([run for own in arms.values() for run in own], metric, args.target_loss)
    reached, ratios, records = [], [], []
    bends = {name: bends_of(own, metric) for name, own in arms.items()}
    for target in args.target_loss:
        met = {name: {run["seed"]: reach_of(run, metric, target, bends[name]) for run in own}
               for name, own in arms.items()}
        reached += [summary_of(target, name, met[name], arms[name]) for name in arms if arms[name]]
        records += [record_of(target, name, own, metric, checked) for name, own in arms.items() if own]
        if baseline:
            others = [name for name in arms if name != baseline]
            ratios += [ratio_of(target, axis, name, met[baseline], met[name], checked, args.alpha)
                       for name in others for axis in AXES]
    judge(ratios, checked, args.alpha)
    tests = max((ratio["tests"] for ratio in ratios), default=0)
    return {
        "metric": metric, "losses": args.target_loss, "baseline": baseline, "reached": reached,
        "ratios": ratios, "records": records, "tests": tests,
    }


def summary_of(target: float, name: str, met: dict, arm: list[dict]) -> dict:
    """{"target", "arm", "n", "n_reached", "by_step" (the last of their first evaluations at or below it), "spent" (axis
    -> run -> on the line; None: not reached; a reason: not recorded), "costs" (axis -> the arm's, as text), "above"
    (runs above it again at their ends)}."""
    runs_of = {run["name"]: met[run["seed"]] for run in arm}
    there = {run: one for run, one in runs_of.items() if isinstance(one, Reach) and one.step is not None}
    spent = {axis: dict.fromkeys(runs_of) for axis in AXES}
    for run, one in there.items():
        for axis, cost in one.costs.items():
            spent[axis][run] = cost if isinstance(cost, str) else cost[0]
    return {
        "target": target, "arm": name, "n": len(met), "n_reached": len(there),
        "by_step": max((one.step for one in there.values()), default=None), "spent": spent,
        "costs": {axis: cost_in_words(met, axis) for axis in AXES},
        "above": [run for run, one in there.items() if one.end.loss > target],
    }


def cost_in_words(met: dict, axis: str) -> str:
    """'271' (geometric mean), '3 of 5 by 290', 'more than 300'; why there is none."""
    reasons = [one for one in met.values() if isinstance(one, str)]
    known = [one for one in met.values() if isinstance(one, Reach)]
    reasons += [one.costs[axis] for one in known if isinstance(one.costs[axis], str)]
    if reasons:
        return f"N/A: {reasons[0]}"
    spec, n = AXES[axis][1], len(known)
    there = [one.costs[axis][0] for one in known if one.step is not None]
    if len(there) == n:
        return f"{statistics.geometric_mean(there):{spec}}"
    if there:
        return f"{len(there)} of {n} by {max(there):{spec}}"
    return f"more than {min(one.costs[axis][0] for one in known):{spec}}"


def ratio_of(target: float, axis: str, name: str, a: dict, b: dict, checked: dict, alpha: float) -> dict:
    """The cost of an arm over the baseline's, before it is judged: {"target", "axis", "arm", "side", "row"}. a, b: seed
    -> Reach or reason. side: "" | "at most" | "at least", where the runs of one arm did not all reach the target. row:
    ab_numbers.difference of the logarithms."""
    missed = [sum(one.step is None for one in arm.values() if isinstance(one, Reach)) for arm in (a, b)]
    side = ""
    if missed[0]:
        side = "at most"
    elif missed[1]:
        side = "at least"
    sides = [{seed: logarithms(one, axis) for seed, one in arm.items()} for arm in (a, b)]
    if all(missed):
        side, sides = "", [dict.fromkeys(arm, "runs of both arms do not reach it") for arm in sides]
    row = ab_numbers.between_evaluations(*sides, alpha, checked.get("looks", 0))
    if axis == "train_seconds" and checked["other_machine"] and isinstance(row["delta"], float):
        row = ab_numbers.without_interval(row | {"delta": OTHER_MACHINE}, OTHER_MACHINE) | {"stats": None}
    if side and isinstance(row["p"], float) and (row["delta"] >= 0) == (side == "at most"):
        row["p"] = 1.0  # "at most 1.2" is no evidence of anything
    return {"target": target, "axis": axis, "arm": name, "side": side, "row": row}


def logarithms(one: Reach | str, axis: str) -> tuple[float, ...] | str:
    if isinstance(one, str) or isinstance(one.costs[axis], str):
        return one if isinstance(one, str) else one.costs[axis]
    return tuple(map(math.log, one.costs[axis]))


def judge(ratios: list[dict], checked: dict, alpha: float) -> None:
    """Corrects the ratios' tests together, the same numbers once (tokens are steps times a number), and adds "same_as"
    (the axis whose test it shares, "" for its own), "ratio", "low", "high", "low_corrected", "high_corrected" (numbers
    or reasons), "line" (the corrected interval on straight lines), "p", "p_corrected", "tests", "n", "paired",
    "verdict"."""
    tested: list[dict] = []
    for ratio in ratios:
        twin = next((one for one in tested if is_same(one["row"], ratio["row"])), None)
        ratio["same_as"] = ""
        if twin is None:
            tested.append(ratio)
        else:
            ratio |= {"same_as": twin["axis"], "twin": twin["row"]}
    ab_verdict.judge([ratio["row"] for ratio in tested], alpha, -1, checked=checked)
    for ratio in ratios:
        row = ratio["row"]
        if ratio["same_as"]:
            row |= {key: ratio["twin"][key] for key in ab_verdict.TEST}
            del ratio["twin"]
        if not checked["ok"]:
            ab_verdict.withhold(row)
        describe(ratio, checked)


def describe(ratio: dict, checked: dict) -> None:
    """Adds what judge() promises of a ratio whose row has its test."""
    row, stats = ratio["row"], ratio["row"]["stats"]
    ratio |= {key: row[key] for key in ("n", "paired", "p_corrected", "tests")}
    verdict = WORDS.get(row["verdict"], row["verdict"])
    ratio |= {"p": row["p_raw"], "ratio": power(row["delta"]), "verdict": verdict, "line": None}
    if stats and checked["ok"]:
        ratio["line"] = [power(end) for end in ab_stats.interval(stats, row["level_corrected"])]
    for kind in ("", "_corrected"):
        low, high = power(row[f"low{kind}"]), power(row[f"high{kind}"])
        if ratio["side"] == "at most" and isinstance(low, float):
            low = 0.0
        if ratio["side"] == "at least" and isinstance(high, float):
            high = math.inf
        ratio |= {f"low{kind}": low, f"high{kind}": high}


def power(x: float | str) -> float | str:
    """A ratio by its logarithm; a reason stays."""
    if isinstance(x, str):
        return x
    return math.exp(min(x, 700.0))


def is_same(a: dict, b: dict) -> bool:
    """Whether two rows of logarithms are the same test: the same differences, whatever the unit; or have none for the
    same reason."""
    if a["n"] != b["n"] or a["pairs"].keys() != b["pairs"].keys():
        return False
    return all(is_equal(a[key], b[key]) for key in ("delta", "low", "high", "p"))


def is_equal(x: float | str, y: float | str) -> bool:
    """Of a report's numbers: equal but for rounding, both NaN, or the same reason."""
    if isinstance(x, str) or isinstance(y, str):
        return x == y
    return math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(x) and math.isnan(y))


# ----------------------------------------------------------------------------------------------------------------------
# the rule of a record


def record_of(target: float, name: str, arm: list[dict], metric: str, checked: dict) -> dict:
    """shown_from() of an arm, or "why" it says nothing."""
    found = {"target": target, "arm": name, "n": len(arm), "why": ""}
    looks, planned = checked.get("looks", 0), checked.get("planned", 0)
    if not checked["ok"]:
        return found | {"why": ab_verdict.WITHHELD}
    if len(arm) < ab_stats.MIN_RUNS:
        return found | {"why": ab_stats.too_few(len(arm))}
    if planned not in (0, len(arm)):
        return found | {"why": f"{planned} were planned"}
    if looks and len(arm) > looks:
        return found | {"why": f"more than the {looks} of --sequential"}
    return found | shown_from(arm, metric, target, looks)


def shown_from(arm: list[dict], metric: str, target: float, looks: int = 0) -> dict:
    """The earliest evaluation from which on to the last one the arm's mean loss is shown to be at most the target:
    {"step" (None: not even at the last), "mean", "p" (there), "last_step", "last_mean", "last_p"}; of steps that all
    runs scored, but step 0.

    One-sided one-sample t tests at RECORD_LEVEL in a fixed order, from the last step backwards, up to the first that
    fails. Each hypothesis is tested only when all before it were rejected, so that the first true one ends the sequence
    with a chance of at least 1 - RECORD_LEVEL, and nothing has to be corrected (Maurer, Hothorn & Lehmacher 1995).
    """
    scored = []
    for run in arm:
        records = {step: record for step, record in run["val"].items() if metric in record}
        scored.append({step: runs.number(record[metric]) for step, record in records.items()})
    steps = sorted(set.intersection(*map(set, scored)) - {0}, reverse=True)
    found = dict.fromkeys(("step", "mean", "p", "last_step", "last_mean", "last_p"))
    for step in steps:
        losses = [own[step] for own in scored]
        mean, p = statistics.fmean(losses), p_at_most(losses, target, looks)
        if step == steps[0]:
            found |= {"last_step": step, "last_mean": mean, "last_p": p}
        if not p < RECORD_LEVEL:
            break
        found |= {"step": step, "mean": mean, "p": p}
    return found


def p_at_most(losses: list[float], target: float, looks: int = 0) -> float:
    """One-sided p of "the mean loss is above the target", held over all looks; NaN where a loss is no number or all are
    equal."""
    n = len(losses)
    if not all(map(math.isfinite, losses)) or not statistics.stdev(losses) > 0:
        return math.nan
    t = (statistics.fmean(losses) - target) / statistics.stdev(losses) * math.sqrt(n)
    p = float(special.stdtr(n - 1, t))
    if looks and p < 0.5:
        p = float(ab_alpha.held(2 * p, ab_alpha.Design(n, looks=looks))) / 2
    return p
