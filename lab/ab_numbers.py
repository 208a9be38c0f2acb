"""ab_numbers.py owns a comparison's numbers: the metrics of a run, their differences between arms, and at equal cost.

    metrics = metrics_of(runs)                       # {key: Metric}: losses, benchmarks, stability, cost
    steps, (a, b) = score_arms([runs_a, runs_b], metrics)
    row = difference(a["val_loss"], b["val_loss"], alpha=0.05)

A number that cannot be had is the reason why (str), everywhere; a report prints it as "N/A: reason". Benchmarks are
data: their rows, directions and fields come from config.json, so a new one needs no line here.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from lab import ab_fields, ab_stats, runs, tasks, units


class Metric(NamedTuple):
    label: str
    better: int  # -1 lower, +1 higher, 0 neither
    form: str  # format of its numbers
    kind: str  # nats | bits (of val text) | stability | speed | fixed (follows from the settings) | benchmark | logged
    benchmark: str = ""
    thing: str = ""  # what it measures, if that is quality: all metrics of one thing are one test


LOSSES = (
    ("final_train_loss", "Final train loss (opt-step mean)", -1, ".4f", "nats"),
    ("val_loss", "Val loss @ matched step", -1, ".4f", "nats", "", "val"),
    ("val_bits_per_byte", "Val bits/byte", -1, ".4f", "bits", "", "val"),
    ("val_loss_bos", "Val loss, bos view", -1, ".4f", "nats", "", "val_bos"),
    ("val_bits_per_byte_bos", "Val bits/byte, bos view", -1, ".4f", "bits", "", "val_bos"),
)
STABILITY_AND_COST = (
    ("tokens_per_sec", "Tokens/sec (reported)", 1, ",.0f", "speed"),
    ("grad_norm_stability", "Grad norm stability", -1, ".4f", "stability"),
    ("crop_fraction", "Crop fraction (BOS only)", 0, ".4f", "fixed"),
    ("grad_norm_mean", "Grad norm, mean", 0, ".4f", "stability"),
    ("grad_norm_max", "Grad norm, max", -1, ".4f", "stability"),
    ("grad_norm_spikes", "Grad norm, spikes", -1, ".1f", "stability"),
    ("loss_roughness", "Loss smoothness (sd of step-to-step change)", -1, ".4f", "stability"),
    ("train_seconds", "Train seconds", -1, ",.1f", "speed"),
    ("eval_seconds", "Eval seconds", 0, ",.1f", "speed"),
    ("wall_seconds", "Wall-clock seconds (train + eval)", -1, ",.1f", "speed"),
    ("peak_mem_gb", "Peak memory (GB)", -1, ",.3f", "speed"),
    ("parameters", "Parameters", 0, ",.0f", "fixed"),
    ("flops_total", "Training FLOPs", 0, ".4g", "fixed"),
    ("tokens_seen", "Tokens seen", 0, ",.0f", "fixed"),
    ("text_mb", "Text read (MB)", 0, ",.2f", "fixed"),
    ("unique_tokens", "Unique tokens", 0, ",.0f", "fixed"),
    ("epochs", "Epochs", 0, ".4f", "fixed"),
)
RULES = ("official", "full", "paper")  # EWoK's, each with a sum and a mean over the target's tokens
# For runs older than config.json's "benchmarks"[name]["metrics"]; "tested": the scores
# that stand for the benchmark in a verdict, each a thing of its own; by default the first
BENCHMARKS = {
    "hellaswag": {
        "title": "HellaSwag", "tested": ("hellaswag_accuracy_norm",),
        "metrics": [(f"hellaswag_{rule}", f"HellaSwag {rule}", 1, ".4f") for rule in
                    ("accuracy", "accuracy_norm", "accuracy_norm_bytes", "accuracy_plain")],
        "item_metrics": ("accuracy", "accuracy_norm", "accuracy_norm_bytes"),
        "cluster": "cluster", "category": None, "chance": 0.25,
    },
    "ewok": {
        "title": "EWoK", "tested": ("eval_official_sum",),
        "metrics": [(f"eval_{rule}_{per}", f"EWoK {rule} {per} metric", 1, ".4f")
                    for rule in RULES for per in ("sum", "mean")],
        "item_metrics": ("official_sum", "official_mean", "paper_sum", "paper_mean"),
        "cluster": "cluster", "category": "category", "chance": 0.5,
    },
    "gsm8k": {
        "title": "GSM8K", "tested": ("gsm8k_accuracy",), "item_metrics": (),
        "metrics": [("gsm8k_accuracy", "GSM8K accuracy (strict)", 1, ".4f"),
                    ("gsm8k_accuracy_flexible", "GSM8K accuracy (flexible)", 1, ".4f")],
    },
}
ROWS_000 = (  # the rows that document 000 asks for, in its order: they come first, also where nothing was run
    "final_train_loss val_loss hellaswag_accuracy hellaswag_accuracy_norm eval_official_sum eval_official_mean "
    "tokens_per_sec grad_norm_stability crop_fraction"
).split()
PRIMARY = ("val_loss", "val_bits_per_byte", "val_loss_bos", "val_bits_per_byte_bos")
# of every metric that a verdict may be about, also of those of benchmarks, which metrics_of adds
UNIT = defaultdict(lambda: "score")
UNIT |= {key: "bits/byte" if "bits" in key else "nats/token" for key in PRIMARY}
SHORT = {key: label.split(" @")[0].replace("Val", "val") for key, label, *_ in LOSSES if key in PRIMARY}


def benchmarks_of(every: list[dict]) -> dict[str, dict]:
    """{name: {"title", "metrics", "tested" or "tests", "item_metrics", "cluster", "category", "chance"}} of all
    benchmarks that some run describes. A title may say more than the name, as "HellaSwag (synthetic, 400 items)";
    labels then begin with it. tests: {metric: the one that is tested for it}; a metric that it lacks is described."""
    known = {name: dict(benchmark) for name, benchmark in BENCHMARKS.items()}
    if any("zeroshot" in run.get("benchmarks", {}) for run in every):  # many rows, which nobody misses otherwise
        known["zeroshot"] = dict(tasks.DESCRIPTION)
    titles: dict[str, list[str]] = {}  # of the scores that the runs recorded last
    for run in every:
        for name, benchmark in (run["config"].get("benchmarks") or {}).items():
            defaults = {"title": name, "item_metrics": (), "cluster": None, "category": None}
            described = known.get(name, defaults) | benchmark
            stand_in = str(run.get("flags", {}).get(f"{name}_data")).startswith("synthetic")
            if stand_in and "(" not in described["title"] and "items" in benchmark:  # an older run
                described["title"] += f" (synthetic, {benchmark['items']} items)"
            if "metrics" in described:
                known[name] = described
        for name, title in recorded_titles(run).items():
            if name in known:
                titles.setdefault(name, []).append(title)
                known[name]["title"] = title
    for name, own in titles.items():
        if len(set(own)) > 1:  # their mean is of no one set of items
            known[name]["title"] = f"{own[0].partition(' (')[0]} (other items in some runs)"
    for benchmark in known.values():
        rows = benchmark["metrics"]
        benchmark["metrics"] = [(key, entitle(label, benchmark["title"]), *rest) for key, label, *rest in rows]
    return known


def recorded_titles(run: dict) -> dict[str, str]:
    """{benchmark: title of its last scores}: it may have been scored after training, on other items."""
    last = {name: records[max(records)] for name, records in run.get("benchmarks", {}).items() if records}
    last["gsm8k"] = run.get("gsm8k") or {}
    return {name: record["title"] for name, record in last.items() if isinstance(record.get("title"), str)}


def entitle(label: str, title: str) -> str:
    """'HellaSwag accuracy' under the title 'HellaSwag (synthetic, 400 items)'."""
    plain, sign, _ = str(title).partition(" (")
    if not sign or not label.startswith(plain) or label.startswith(f"{plain} ("):
        return label
    return f"{title}{label.removeprefix(plain)}"


def metrics_of(every: list[dict]) -> dict[str, Metric]:
    """All metrics of these runs, in the order of the table."""
    table = {key: Metric(*rest) for key, *rest in LOSSES}
    for name, benchmark in benchmarks_of(every).items():
        keys = [key for key, *_ in benchmark["metrics"]]
        tested = [key for key in benchmark.get("tested", ()) if key in keys] or keys[:1]
        tests = benchmark.get("tests")
        for key, label, better, form in benchmark["metrics"]:
            thing = key if key in tested else tested[0]
            if tests is not None:
                thing = tests.get(key, "")
            table[key] = Metric(label, better, form, "benchmark", name, thing)
            SHORT[key] = label
    table |= {key: Metric(*rest) for key, *rest in STABILITY_AND_COST}
    for key, *rest in ab_fields.metrics_of(every):
        table.setdefault(key, Metric(*rest))
    return {key: table[key] for key in dict.fromkeys([*ROWS_000, *table]) if key in table}


# ----------------------------------------------------------------------------------------------------------------------
# the numbers of a run


def score_arms(arms: list[list[dict]], metrics: dict[str, Metric], at_ends: bool = False) -> tuple[dict, list[dict]]:
    """(the step compared, by kind of record; per arm: metric -> seed -> number or reason). at_ends: of each run its own
    last step, which is what arms of different length are to be compared by."""
    steps = common_steps([run for arm in arms for run in arm])
    by_arm = []
    for arm in arms:
        table = {run["seed"]: scores(run, common_steps([run]) if at_ends else steps, metrics) for run in arm}
        by_arm.append({key: {seed: row[key] for seed, row in table.items()} for key in metrics})
    return steps, by_arm


def common_steps(every: list[dict]) -> dict[str, int | None]:
    """{kind of record ("val", a benchmark, "train"): the last step that all these runs have}."""
    steps = {"val": common_step([run["val"] for run in every])}
    for name in benchmarks_of(every):
        steps[name] = common_step([benchmark_records(run, name) for run in every])
    steps["train"] = min((int(max(run["train"]["step"], default=0)) for run in every), default=0)
    return steps


def benchmark_records(run: dict, name: str) -> dict[int, dict]:
    """{step: record} of a benchmark. GSM8K keeps its last one alone; an old one names no step, and is of the end."""
    if name != "gsm8k":
        return run["benchmarks"].get(name, {})
    record = run["gsm8k"]
    if not record:
        return {}
    step = runs.number(record.get("step"))
    if not math.isfinite(step):
        step = max(run["train"]["step"], default=0)
    return {int(step): record}


def older_scores(every: list[dict], metrics: dict[str, Metric], at_ends: bool = False) -> list[str]:
    """In words, the benchmarks whose compared scores are of an earlier step than the val losses beside them."""
    told = {}
    groups = [every]
    if at_ends:
        groups = [[run] for run in every]
    for group in groups:
        steps = common_steps(group)
        for metric in metrics.values():
            step, val = steps.get(metric.benchmark), steps["val"]
            if step is not None and val is not None and step < val:
                name = metric.benchmark
                if at_ends:
                    name = f"{group[0]['name']}'s {name}"
                told[name] = f"{name} of step {val}: the scores compared are of step {step}"
    return list(told.values())


def common_step(records: list[dict]) -> int | None:
    """The last step scored by all (step -> record each), but for those that scored nothing of the kind at all. Not
    step 0, the untrained network, where any has a later one."""
    scored = [set(steps) for steps in records if steps]
    if not scored:
        return None
    if any(max(steps) > 0 for steps in scored):
        scored = [steps - {0} for steps in scored]
    return max(set.intersection(*scored), default=None)


def number_or(value, reason: str):
    """value as a finite float, or why there is none (str): `reason` where there is no value at all."""
    x = runs.number(value)
    if math.isfinite(x):
        return x
    if value is None:
        return reason
    return "not a finite number"


def scores(run: dict, steps: dict, metrics: dict[str, Metric]) -> dict:
    """Every metric of a run at these steps (kind of record -> step or None): a number or a reason."""
    last = steps["val"]
    if last is None:
        last = steps["train"]
    val = run["val"].get(steps["val"], {})
    out = {}
    for key in PRIMARY:
        reason = missing_reason(run["val"], val)
        if key in val:  # the trainer writes NaN as null
            reason = "not a finite number"
        out[key] = number_or(val.get(key), reason)
    for key, metric in metrics.items():
        if metric.kind == "benchmark":
            out[key] = benchmark_score(run, key, metric.benchmark, steps.get(metric.benchmark))
    out |= {key: ab_fields.score(run, key, last) for key, metric in metrics.items() if metric.kind == "logged"}
    out |= logged_scores(run, last, val)
    out["eval_seconds"] = evaluation_seconds(run, last)
    out["wall_seconds"] = out["train_seconds"]
    if isinstance(out["train_seconds"], float):
        out["wall_seconds"] += out["eval_seconds"]
    if "log" in run:  # lab/logs.py
        losses = {key for key, *_ in LOSSES}
        lacking = [key for key, value in out.items() if value == "not a finite number" and key not in losses]
        out |= dict.fromkeys([*lacking, "eval_seconds", "wall_seconds"], "not recorded")
    return out | facts(run, last)


def missing_reason(records: dict, record: dict) -> str:
    if records and not record:
        return "no step that all runs scored"
    return "not run"


def benchmark_score(run: dict, key: str, name: str, step: int | None):
    """A benchmark's score. Its records name the key with or without the benchmark's own name before it."""
    records = benchmark_records(run, name)
    record = records.get(step, {})
    value = record.get(key, record.get(key.removeprefix(f"{name}_")))
    return number_or(value, missing_reason(records, record))


def logged_scores(run: dict, last: int, val: dict) -> dict:
    """What the training steps up to `last` logged; norms and the loss's smoothness without the warmup."""
    train = run["train"]
    inside = train["step"] <= last
    steady = inside & (train["step"] > runs.number(run["flags"].get("warmup_iters")))

    def kept(key: str, where: np.ndarray) -> np.ndarray:
        return train[key][where & np.isfinite(train[key])]

    def of(values: np.ndarray, statistic, at_least: int = 1) -> float:
        return statistic(values) if len(values) >= at_least else math.nan

    loss = train["train_loss_opt_step_mean"][inside]
    norm = kept("grad_norm_l2_preclip", steady)
    changes = np.diff(kept("train_loss_opt_step_mean", steady))
    seconds = train["step_seconds"][inside].sum()
    out = {
        # the last 2 %: one step's loss is mostly its batch's noise
        "final_train_loss": of(loss[-max(1, len(loss) // 50):], np.mean),
        "tokens_per_sec": of(kept("tokens_per_sec", inside), np.median),
        "grad_norm_stability": of(norm, lambda x: x.std(ddof=1) / x.mean(), at_least=2),
        "grad_norm_mean": of(norm, np.mean),
        "grad_norm_max": of(norm, np.max),
        "grad_norm_spikes": of(norm, spikes),
        "loss_roughness": of(changes, lambda x: x.std(ddof=1), at_least=2),
        "peak_mem_gb": of(kept("peak_mem_bytes", inside), np.max) / 1e9,
        "train_seconds": runs.number(val.get("train_seconds", seconds)),
    }
    if not inside.any():
        return dict.fromkeys(out, "no train records")
    return {key: number_or(value, "") for key, value in out.items()}


def spikes(norm: np.ndarray, window: int = 50, factor: float = 3.0) -> int:
    """Steps whose value exceeds `factor` times the median of the `window` values before (at least 5)."""
    count = sum(int(norm[i] > factor * np.median(norm[:i])) for i in range(5, min(window, len(norm))))
    if len(norm) > window:
        medians = np.median(np.lib.stride_tricks.sliding_window_view(norm[:-1], window), axis=1)
        count += int((norm[window:] > factor * medians).sum())
    return count


def evaluation_seconds(run: dict, last: int) -> float:
    total = 0.0
    benchmarks = dict.fromkeys(BENCHMARKS, {}) | run["benchmarks"]  # in a fixed order: sums of floats depend on it
    for records in (run["val"], *benchmarks.values()):
        for step, record in records.items():
            seconds = runs.number(record.get("eval_seconds", record.get("seconds")))
            if step <= last and math.isfinite(seconds):
                total += seconds
    return total


def facts(run: dict, last: int) -> dict:
    """What follows from the settings and the data."""
    config, data = run["config"], run["config"]["data"]
    tokens = last * runs.number(config.get("tokens_per_step"))
    values = {
        "parameters": config["parameters"].get("total"),
        "tokens_seen": tokens,
        "text_mb": tokens * runs.number(data.get("bytes_per_token")) / 1e6,
        "flops_total": tokens * runs.number(config.get("flops_per_token")),
        **{key: data.get(key) for key in ("unique_tokens", "epochs", "crop_fraction")},
    }
    out = dict.fromkeys(values, "not recorded") | {"crop_fraction": "not packed rows"}
    numbers = {key: runs.number(value) for key, value in values.items()}
    return out | {key: x for key, x in numbers.items() if math.isfinite(x)}


# ----------------------------------------------------------------------------------------------------------------------
# differences


def finished(arm: list[dict]) -> list[dict]:
    """The runs that a statistic uses: the finished ones (all, when none is), the first of each seed."""
    first: dict = {}
    for run in [run for run in arm if run["summary"] is not None] or arm:
        first.setdefault(run["seed"], run)
    return list(first.values())


def unfinished_arms(arms: dict[str, list[dict]]) -> list[str]:
    """Names of arms (name -> runs) without a finished run: their numbers are shown and have no verdict."""
    return [name for name, arm in arms.items() if all(run["summary"] is None for run in arm)]


def left_out(arm: list[dict]) -> list[str]:
    """In words, the finished runs whose seed another run of the arm has, too: they are not used."""
    used = {run["name"] for run in finished(arm)}
    others = [run["name"] for run in arm if run["summary"] is not None and run["name"] not in used]
    return [f"{name} is not used, as its seed is there twice" for name in others]


def partners(a: set, b: set) -> list:
    """The seeds to pair arms by, or [] where all runs are to be compared unpaired: where fewer than half of the smaller
    arm's runs have a partner of equal seed, or fewer than 3 do though each arm has 3 runs."""
    common, smaller = sorted(a & b), min(len(a), len(b))
    enough = len(common) >= ab_stats.MIN_RUNS or smaller < ab_stats.MIN_RUNS
    return common if enough and 2 * len(common) >= smaller else []


def difference(a: dict, b: dict, alpha: float, looks: int = 0) -> dict:
    """B - A of one metric; a, b: seed -> number or reason. Pairs of equal seed, or all runs: see partners(). looks: the
    most pairs that were decided before the first look (lab/ab_alpha.py), 0: one look.

    {"paired", "pairs" (seed -> delta), "n", "n_a", "n_b", "used" (pairs, or runs of both arms), "left_out" (runs
    without a partner), "stats" (of ab_stats, or None), "lacking" (seeds without a number, in either arm), "a", "sd_a",
    "b", "sd_b", "delta", "low", "high", "p"}; a number that cannot be had is "N/A: reason".
    """
    known = [{seed: value for seed, value in arm.items() if isinstance(value, float)} for arm in (a, b)]
    common, runs_known = partners(*map(set, known)), sum(map(len, known))
    if common:
        known = [{seed: arm[seed] for seed in common} for arm in known]
    xs, ys = (list(arm.values()) for arm in known)
    lacking = {seed for arm in (a, b) for seed, value in arm.items() if isinstance(value, str)}
    row = {
        "paired": bool(common), "pairs": {seed: known[1][seed] - known[0][seed] for seed in common},
        "n": min(len(xs), len(ys)), "n_a": len(xs), "n_b": len(ys), "used": len(common) or len(xs) + len(ys),
        "left_out": runs_known - len(xs) - len(ys), "stats": None, "lacking": sorted(lacking, key=str),
    }
    for side, arm, values in (("a", a, xs), ("b", b, ys)):
        reason = next((value for value in arm.values() if isinstance(value, str)), "not run")
        row[side] = statistics.fmean(values) if values else f"N/A: {reason}"
        row[f"sd_{side}"] = statistics.stdev(values) if len(values) > 1 else None
    if not xs or not ys:
        reason = row["b"] if xs else row["a"]
        return without_interval(row | {"delta": reason}, reason)
    row["delta"] = row["b"] - row["a"]
    if row["n"] < 2:
        return without_interval(row, "N/A: one seed")
    stats = (ab_stats.paired if common else ab_stats.unpaired)(xs, ys, alpha, looks=looks)
    row |= {"values_a": xs, "values_b": ys, "stats": stats}
    return row | {"low": stats["ci_low"], "high": stats["ci_high"], "p": stats["p"]}


def design_of(row: dict) -> str:
    """'4 pairs', '4 against 8 runs, unpaired'."""
    if row["paired"]:
        left = f" ({units.count(row['left_out'], 'run')} without a partner left out)"
        return units.count(row["n"], "pair") + (left if row["left_out"] else "")
    return f"{row['n_a']} against {row['n_b']} runs, unpaired"


def without_interval(row: dict, reason: str) -> dict:
    return row | dict.fromkeys(("low", "high", "p"), reason)


def compare_metrics(a: dict, b: dict, metrics: dict[str, Metric], checked: dict, alpha: float) -> dict:
    """{metric: difference(...)} without what the gate forbids. a, b: metric -> seed -> number or reason."""
    rows = {}
    for key, metric in metrics.items():
        row = difference(a[key], b[key], alpha, checked.get("looks", 0))
        is_number = isinstance(row["delta"], float)
        if metric.kind == "fixed":
            row = without_interval(row, "N/A: fixed")
        elif metric.kind == "nats" and checked["other_tokens"] and is_number:
            row = without_interval(row, "N/A: other tokens, see bits/byte")
            row["delta"] = row["p"]
        elif metric.kind == "speed" and checked["other_machine"] and is_number:
            row = without_interval(row, "N/A: other hardware or software")
        rows[key] = row
    return rows


# ----------------------------------------------------------------------------------------------------------------------
# at equal cost

MATCHINGS = (  # name, axis of the val records, the budget in words
    ("equal steps (tokens)", "step", "step {:.0f}"), ("equal FLOPs", "flops_total", "{:.3g} FLOPs"),
    ("equal wall-clock (training)", "train_seconds", "{:,.1f} s"),
    ("equal text", "text_mb", "{:,.3g} MB of text"),  # where the tokens differ, and so what a step reads
)
# So much steeper than the line between two evaluations a curve may fall to the later one (assumption: where the
# learning rate has begun to decay between them it is about twice as steep)
STEEPEST = 4


def matchings(arms: list[list[dict]], step: int | None, metric: str, checked: dict, alpha: float) -> list[dict]:
    """The primary metric of arms [A, B] by MATCHINGS: {"name", "row", "budget"} each. The budget is what the cheapest
    run spent; costlier runs are read off their curve at it, see between_evaluations."""
    matched = []
    for name, axis, words in MATCHINGS[: None if checked["other_tokens"] else -1]:
        budget = runs.number(step)
        if axis != "step":
            budget = cheapest([spent(run, axis) for arm in arms for run in arm])
        if axis == "text_mb" and not math.isfinite(budget):  # older runs do not record it
            continue
        a, b = ({run["seed"]: at_budget(run, metric, axis, budget) for run in arm} for arm in arms)
        row = between_evaluations(a, b, alpha, checked.get("looks", 0))
        if axis == "train_seconds" and checked["other_machine"] and isinstance(row["delta"], float):
            row = without_interval(row, "N/A: other hardware or software") | {"stats": None}
        in_words = words.format(budget) if math.isfinite(budget) else "N/A: not run"
        matched.append({"name": name, "row": row, "budget": in_words})
    return matched


def between_evaluations(a: dict, b: dict, alpha: float, looks: int = 0) -> dict:
    """difference() of a and b: seed -> what at_budget gives.

    A curve is not known between two evaluations: read as a line it is too high while a loss falls ever more slowly, and
    the more so for the costlier arm. Its shape is taken for the arm's, common to its seeds. So the interval is from the
    lower end of the one at one extreme, where the one arm is at the top of its range and the other at the bottom, to
    the upper end of the one at the other extreme, and p is the larger one, or 1 where no difference lies between them
    (coverage: experiments/bench/coverage.py). "ends": both differences, where the ranges leave more than one."""

    def of(arm: dict, part: int) -> dict:
        known = {seed: value[part] for seed, value in arm.items() if isinstance(value, tuple)}
        return {seed: known.get(seed, value) for seed, value in arm.items()}

    row = difference(of(a, 0), of(b, 0), alpha, looks)
    ends = [difference(of(a, 2), of(b, 1), alpha, looks), difference(of(a, 1), of(b, 2), alpha, looks)]
    if isinstance(row["p"], str) or all(end["delta"] == row["delta"] for end in ends):
        return row
    p = max(row["p"], *(end["p"] for end in ends))
    if ends[0]["delta"] * ends[1]["delta"] <= 0:  # no difference at all is among them
        p = 1.0
    low, high = min(end["low"] for end in ends), max(end["high"] for end in ends)
    return row | {"ends": ends, "p": p, "low": low, "high": high}


def curve_of(run: dict, metric: str) -> dict[int, dict]:
    """{step: record} of a metric's evaluations, with what they had cost (None where no val loss was scored)."""
    if metric in PRIMARY:
        return run["val"]
    curve = {}
    for name, benchmark in benchmarks_of([run]).items():
        if any(key == metric for key, *_ in benchmark["metrics"]):
            for step in benchmark_records(run, name):
                score = benchmark_score(run, metric, name, step)
                curve[step] = dict(run["val"].get(step, {})) | {"step": step, metric: score}
    return curve


def spent(run: dict, axis: str) -> float:
    """What a run had spent of `axis` at its last evaluation."""
    return max((runs.number(record.get(axis)) for record in run["val"].values()), default=math.nan)


def cheapest(costs: list[float]) -> float:
    """What the cheapest run spent; NaN where it trained no step and another did: nothing is compared at step 0."""
    least, most = min(costs, default=math.nan), max(costs, default=math.nan)
    return math.nan if least <= 0 < most else least


def at_budget(run: dict, metric: str, axis: str, budget: float) -> tuple[float, float, float] | str:
    """(a run's metric at a budget of `axis` (step, flops_total, train_seconds), the least it may be, the most). Linear
    between two evaluations; it may be all that lies between the later one and the earlier one, as far as STEEPEST lets
    it still fall to the later one. How fast it may have fallen behind the earlier one is not bounded: at its beginning
    a loss falls much faster than the line. Outside the scored range a reason (str): nothing is extrapolated."""
    if axis == "step" or not math.isfinite(budget):
        value = number_or(curve_of(run, metric).get(budget, {}).get(metric), "not run")
        if isinstance(value, float):
            return value, value, value
        return value
    points = [(runs.number(r.get(axis)), runs.number(r.get(metric))) for r in curve_of(run, metric).values()]
    points = sorted(point for point in points if all(map(math.isfinite, point)))
    if not points:
        return "not run"
    first, last = points[0][0], points[-1][0]
    if first > budget * (1 + 1e-12) or budget > last * (1 + 1e-12):
        return f"{run['name']} is scored from {first:.4g} to {last:.4g}"
    before, after = points[0], points[-1]
    for point in points:
        if point[0] <= budget * (1 + 1e-12):
            before = point
        if point[0] >= budget * (1 - 1e-12):
            after = point
            break
    if before[0] >= after[0]:
        return after[1], after[1], after[1]
    left = (after[0] - budget) / (after[0] - before[0])
    rise = before[1] - after[1]
    ends = sorted((after[1], after[1] + min(1.0, STEEPEST * left) * rise))
    return after[1] + left * rise, *ends


def curve_points(arm: list[dict], metric: str, axis: str) -> list[list[list[float]]]:
    """Per run [[x, y], ...] at the steps that all of the arm's runs scored."""
    if not arm:
        return []
    scored = [curve_of(run, metric) for run in arm]
    steps = sorted(set.intersection(*map(set, scored)))
    records = [[curve[step] for step in steps] for curve in scored]
    table = np.array([[[runs.number(r.get(key)) for key in (axis, metric)] for r in own] for own in records])
    table = table.reshape(len(arm), len(steps), 2)
    return table[:, np.isfinite(table).all(axis=(0, 2))].tolist()
