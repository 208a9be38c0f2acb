"""ab_verdict.py decides what may be said: which numbers are tested, corrected together with which, in which words.

    margin = margin_of(args.delta, args.primary, primary, runs)
    judge_metrics(rows, metrics, primary, margin, checked, alpha)     # the rows of ab_numbers.compare_metrics
    judge(rows, alpha, better=-1, margin=margin.value)                # differences that are one family of tests

Three families. The primary metric is alone: its p stands as it is. Quality: every other thing that was measured, once
(a view of the held-out text, a benchmark), corrected by Holm among themselves. Cost and optimisation are described, not
tested. What is measured once has one verdict: a val loss and its own bits/byte share theirs, and of a benchmark's rules
one is tested. The corrected interval uses Holm's level for that test, so it excludes 0 exactly when corrected
p < alpha; then the word is better or worse, unless it is withheld (word_of). The other interval is named uncorrected.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from lab import ab_composite, ab_report, ab_stats, runs, units
from lab.ab_numbers import UNIT, Metric

NOT_TESTED = "not tested"
FAMILY_OF_KIND = {"fixed": "fixed"}  # of what is not tested; else "described"
# in place of intervals and p of arms that differ in more than the treatment
WITHHELD = "N/A: not comparable"
# what judge() adds, as two rows of one test share it
TEST = ("p_raw", "p_corrected", "tests", "verdict",
        "low_corrected", "high_corrected", "level_corrected")

# ----------------------------------------------------------------------------------------------------------------------
# the primary metric and its margin


def primary_of(asked: str | None, checked: dict, metrics: dict[str, Metric]) -> str:
    """The metric of the verdict: --primary, any metric of quality. ValueError for another one, or for one that means
    nothing between the arms' tokens."""
    quality = [key for key, metric in metrics.items() if metric.thing]
    if asked and asked not in quality:
        why = ""
        if asked in metrics:
            why = " is described in the report on --a and --b, and never tested"
        elif asked == ab_composite.KEY:
            why = " needs folders of runs that were all scored on the same two tasks or more"
        raise ValueError(f"--primary {asked}{why}: use one of {', '.join(quality)}.")
    if asked and metrics[asked].kind == "nats" and checked["other_tokens"]:
        other = asked.replace("val_loss", "val_bits_per_byte")
        raise ValueError(f"--primary {asked} counts nats per token, but the arms' tokens differ "
                         f"or are not all recorded: use --primary {other}.")
    if asked:
        return asked
    if checked.get("problems") and "grpo_accuracy" in quality:
        return "grpo_accuracy"  # these runs have no val loss
    return "val_bits_per_byte" if checked["other_tokens"] else "val_loss"


class Margin(NamedTuple):
    """The smallest difference that would matter: within ± value arms are equivalent."""
    value: float  # in the primary metric's unit; 0: none
    words: str


DEFAULT_MARGIN = {"nats/token": 0.002, "score": 0.01}  # (assumption)


def margin_of(given: float | None, asked: str | None, primary: str, every: list[dict],
              rate_of_rows: float = 0.0) -> Margin:
    """The margin of equivalence. A given one counts in the unit of the metric that was asked for, which is nats per
    token by default; where the primary metric counts bits per byte instead, it is converted by the first run's tokens
    per byte of held-out text, and so is the default. rate_of_rows: of a results.csv (ab_rows.bits_per_nat)."""
    unit = UNIT[primary]
    asked_unit = unit.replace("bits/byte", "nats/token")
    value, source = given, "by --delta"
    if given is None:
        value = DEFAULT_MARGIN[asked_unit]
        source = "the default; choose yours before looking, with `--delta`"
    elif asked:
        asked_unit = UNIT[asked]
    if not value:
        return Margin(0.0, "none (--delta 0)")
    rate = bits_per_nat(every, primary) or rate_of_rows
    if unit == "score" or (unit == asked_unit and not rate):
        return Margin(value, f"{value:g} {unit} ({source})")
    if unit == "nats/token":
        return Margin(value, f"{value:g} nats/token, {value * rate:.2g} bits/byte ({source})")
    if asked_unit == "bits/byte":
        return Margin(value, f"{value:g} bits/byte, {value / rate:.2g} nats/token ({source})")
    if not rate:
        return Margin(0.0, f"none: {value:g} nats/token cannot be converted to bits/byte, as tokens "
                           "per byte are not recorded; give --primary and --delta in bits/byte")
    value, nats = value * rate, value
    return Margin(value, f"{value:.2g} bits/byte, from {nats:g} nats/token ({source})")


def bits_per_nat(every: list[dict], primary: str) -> float:
    """Bits/byte for one nat/token of held-out text, by the last evaluation of the first run that
    recorded both counts; 0 where none did."""
    view = ""
    if primary.endswith("_bos"):
        view = "_bos"
    for run in every:
        *_, record = {}, *run["val"].values()
        tokens, size = (
            runs.number(record.get(f"val_{what}{view}")) for what in ("tokens", "bytes"))
        if tokens > 0 and size > 0:
            return tokens / size / math.log(2)
    return 0.0


# ----------------------------------------------------------------------------------------------------------------------
# what was decided before looking

NOT_SAID = (
    "Whether n was planned is not recorded: p and intervals hold if the number of seeds was decided before "
    "the first result, and this is the only look. Who looks after each of 3 to 10 pairs and stops at the "
    "first clear one finds a difference where there is none in 17 % of all cases: decide beforehand on "
    "`--planned` N or, to look early, `--sequential` N."
)


def decided(args) -> dict:
    """What --planned and --sequential decided, beside the gate's findings: {"planned", "looks"}, 0: not."""
    return {"planned": args.planned, "looks": args.sequential}


def decided_in_words(checked: dict, n: int, paired: bool = True, what: str = "") -> str:
    """The sentence of every report on whether n was planned. what: n counts, else pairs or runs."""
    of_what, remedy = what, "train as many, or leave out the others"
    if not what:
        of_what = "pairs" if paired else "runs in the smaller arm"
        remedy = "train as many, or decide on `--sequential`"
    planned, looks = checked["planned"], checked["looks"]
    if looks:
        return (f"n was planned: {looks} {of_what} at most, with looks from the third on, which p, intervals "
                f"and verdicts allow for (`--sequential` {looks}); there are {n}.")
    if not planned:
        return NOT_SAID
    if planned == n:
        return f"n was planned: {n} {of_what}, decided before the first result (`--planned` {n})."
    return (f"{planned} {of_what} were planned (`--planned` {planned}), and there are {n}: no verdict, as a look "
            f"before the end or after it finds differences where there are none; {remedy}.")


def t_in_words(stats: dict) -> str:
    """'t -5.21 with 4 degrees of freedom' and, where its p is held, its own one and the level."""
    words = f"t {t_of(stats)} with {stats['df']:.4g} degrees of freedom"
    if stats["p"] != stats["p_t"]:
        words += (f", whose own p is {ab_report.form_p(stats['p_t'])}: held, so that alpha {stats['alpha']:g} is what "
                  f"{stats['level']:.2g} would be for it, {ab_report.form_p(stats['p'])}")
    return f"{words}."


def t_of(stats: dict) -> str:
    if not stats["se"] > 0:
        return "N/A: no spread"
    return f"{stats['delta'] / stats['se']:+.2f}"


# ----------------------------------------------------------------------------------------------------------------------
# one family of tests


def holm(pvalues: list) -> list:
    """p adjusted together, where there is one: a reason or NaN is no test and stays."""
    tested = [i for i, p in enumerate(pvalues) if isinstance(p, float) and math.isfinite(p)]
    adjusted = list(pvalues)
    for i, p in zip(tested, ab_stats.holm([pvalues[i] for i in tested]), strict=True):
        adjusted[i] = float(p)
    return adjusted


def judge(rows: list[dict], alpha: float, better: int | list[int], margin: float = 0.0,
          checked: dict | None = None) -> None:
    """Correct differences (ab_numbers.difference) that are tested together by Holm, for "better" and "worse" and, with
    a margin, for "equivalent"; and give each its word. better: which way the metrics improve, -1 or 1.
    checked: of the gate, "planned", the number of pairs that was decided (0: not said), and "unfinished", the arms
    without a finished run.

    Adds "p_raw", "p_corrected", "tests" (how many were corrected together), "low_corrected",
    "high_corrected" (interval at "level_corrected"), "p_equivalent" (corrected) and "verdict".
    """
    checked = checked or {"ok": True}
    if isinstance(better, int):
        better = [better] * len(rows)
    raw = [row["p"] for row in rows]
    corrected, levels = holm(raw), holm_levels(raw, alpha)
    tests = sum(map(is_test, corrected))
    tost = holm([equivalence_p(row, margin) for row in rows])
    for i, row in enumerate(rows):
        row |= {"p_raw": raw[i], "p_corrected": corrected[i], "tests": tests, "p_equivalent": tost[i]}
        correct_interval(row, levels[i])
        row["verdict"] = word_of(row, alpha, better[i], margin, checked.get("planned", 0))
        if checked.get("unfinished"):
            row["verdict"] = "inconclusive"
        if not checked["ok"]:
            row["verdict"] = "not comparable"
            withhold(row)


def withhold(row: dict) -> None:
    """Takes away interval and p: between arms that are not comparable they would read like evidence."""
    intervals = ("low", "high", "low_corrected", "high_corrected")
    for name in (*intervals, "p", "p_raw", "p_corrected", "p_equivalent"):
        if isinstance(row.get(name), float):
            row[name] = WITHHELD
    row["tests"] = 0


def is_test(p) -> bool:
    return isinstance(p, float) and math.isfinite(p)


def holm_levels(pvalues: list, alpha: float) -> list[float]:
    """The level at which Holm tests each p: alpha / m for the smallest, alpha / (m - 1) for the next and so
    on, up to the first that is not below its level, which all larger ones share."""
    order = sorted((i for i, p in enumerate(pvalues) if is_test(p)), key=lambda i: pvalues[i])
    levels, level, rejected = [alpha] * len(pvalues), alpha, True
    for rank, i in enumerate(order):
        if rejected:
            level = alpha / (len(order) - rank)
            rejected = pvalues[i] < level
        levels[i] = level
    return levels


def correct_interval(row: dict, level: float) -> None:
    """Add the interval at another level; where there is none, the reason."""
    low, high = row["low"], row["high"]
    if not isinstance(low, str):
        ends = row.get("ends", [row])  # of a matching: see ab_numbers.between_evaluations
        lows, highs = zip(*(ab_stats.interval(end["stats"], level) for end in ends), strict=True)
        low, high = min(lows), max(highs)
    row |= {"low_corrected": low, "high_corrected": high, "level_corrected": level}


def equivalence_p(row: dict, margin: float) -> float:
    stats = row["stats"]
    if not margin or stats is None:
        return math.nan
    tests = [ab_stats.equivalence(end["values_a"], end["values_b"], margin,
                                  paired_seeds=row["paired"], looks=stats["looks"]) for end in row.get("ends", [row])]
    return max(float(test["p"]) for test in tests)


def word_of(row: dict, alpha: float, better: int, margin: float, planned: int = 0) -> str:
    """ab_stats.verdict of a row by its corrected p. A seed without a number may be the very one that went
    wrong, so there is no verdict beside one; nor at another number of pairs (runs in the smaller arm) than
    was planned."""
    if isinstance(row["delta"], str):
        return "inconclusive"
    if row["n"] < ab_stats.MIN_RUNS:
        return ab_stats.too_few(row["n"])
    if row["lacking"] or isinstance(row["p_corrected"], str) or planned not in (0, row["n"]):
        return "inconclusive"
    stats = row["stats"] | {"p": row["p_corrected"], "ci_low": row["low"], "ci_high": row["high"]}
    way = {-1: "lower", 1: "higher"}[better]
    return ab_stats.verdict(stats, way, margin or None, alpha, row["p_equivalent"])


# ----------------------------------------------------------------------------------------------------------------------
# the metrics of an A/B


def judge_metrics(rows: dict[str, dict], metrics: dict[str, Metric], primary: str, margin: Margin,
                  checked: dict, alpha: float) -> None:
    """Give every row "key", "label", "family" (primary | quality | described | fixed), "same_as" (the row whose test
    this is, "" for its own), "interval" (which one low and high are), and what judge() adds."""
    chosen = representatives(rows, metrics, primary)
    quality = [key for key in chosen.values() if key != primary]
    judge([rows[primary]], alpha, metrics[primary].better, margin.value, checked)
    ways = [metrics[key].better for key in quality]
    judge([rows[key] for key in quality], alpha, ways, checked=checked)
    for key in quality:
        if UNIT[key] == UNIT[primary]:
            note_small(rows[key], margin.value)
    level = f"{100 * (1 - alpha):g} %, uncorrected"
    families = dict.fromkeys(quality, "quality") | {primary: "primary"}
    for key, row in rows.items():
        metric = metrics[key]
        row |= {"key": key, "label": metric.label, "interval": level, "same_as": ""}
        row["family"] = families.get(key, FAMILY_OF_KIND.get(metric.kind, "described"))
        if key in families:
            continue
        row |= {"p_raw": row["p"], "p_corrected": NOT_TESTED, "tests": 0, "verdict": row["family"]}
        correct_interval(row, alpha)
        if metric.thing:
            tested = chosen[metric.thing]
            share_test(row, rows[tested] | {"family": families[tested]}, metrics[tested], metric)
    for key, row in rows.items():
        if not checked["ok"]:
            withhold(row)
        if isinstance(row["delta"], str) and key != primary:
            row["verdict"] = row["delta"]


def note_small(row: dict, margin: float) -> None:
    """Says of a difference that is real whether it is too small to matter, by the primary metric's margin."""
    if row["verdict"] in ("better", "worse") and -margin < row["low"] <= row["high"] < margin:
        row["verdict"] += ab_stats.SMALL


def doubt_equivalence(row: dict, of_items: list[dict], margin: float) -> None:
    """Takes back that arms are equivalent by a benchmark's score, unless its items allow it: the interval over seeds
    and items lies within the margin, and there are at least 3 / margin clusters of items. Rule of three (Hanley and
    Lippman-Hand 1983): if no cluster out of n is answered differently, up to 3 / n of all others may be (95 %).
    of_items: the metric's row of ab_items.items, none where its items are not recorded."""
    if row["verdict"] != "equivalent" or not of_items:
        return
    (one,) = of_items
    if one.get("clusters", 0) * margin < 3:
        doubt = (f"these items are too few to call the arms equivalent within {margin:g}: score "
                 f"{math.ceil(3 / margin):,} independent ones or more")
    elif not -margin <= one["low"] <= one["high"] <= margin:
        doubt = f"over seeds and items the interval is {one['low']:+.4f} to {one['high']:+.4f}: score more items"
    else:
        return
    row |= {"verdict": "inconclusive", "of_items": f"The seeds agree, but {doubt}."}


def share_test(row: dict, tested: dict, tested_metric: Metric, metric: Metric) -> None:
    """A row whose thing has its test in another row: the same number in another unit shares that test; another rule of
    the same items is only described."""
    row["same_as"] = tested_metric.label
    # without the benchmark's name, which stands beside
    rule = re.sub(r"^\S+ (\([^)]*\) )?", "", tested_metric.label)
    row["verdict"] = f"see {rule}"
    if metric.kind != "benchmark" and not isinstance(row["delta"], str):
        shared = ("family", "p_corrected", "tests", "verdict")
        row |= {name: tested[name] for name in shared}
        correct_interval(row, tested["level_corrected"])


def representatives(rows: dict[str, dict], metrics: dict[str, Metric],
                    primary: str) -> dict[str, str]:
    """{thing: the metric that is tested for it}: the primary, else the first that has a p, the thing's own name first
    (a benchmark's tested score is called as its thing)."""
    by_thing: dict[str, list[str]] = {}
    for key, metric in metrics.items():
        if metric.thing:
            by_thing.setdefault(metric.thing, []).append(key)

    def rank(thing: str, key: str) -> tuple:
        return key != primary, isinstance(rows[key]["p"], str), key != thing

    return {thing: sorted(keys, key=lambda key, thing=thing: rank(thing, key))[0]
            for thing, keys in by_thing.items()}


# ----------------------------------------------------------------------------------------------------------------------
# at equal cost


def judge_matchings(matched: list[dict], primary_row: dict, better: int, margin: Margin,
                    checked: dict, alpha: float) -> None:
    """Give the matchings (ab_numbers.matchings) their "verdict". A matching with the same data as the primary row
    reuses its test; the rest are Holm-corrected together."""
    others = []
    for match in matched:
        if is_same(match["row"], primary_row):
            match["row"] |= {key: primary_row[key] for key in TEST}
        elif not any(is_same(match["row"], row) for row in others):
            others.append(match["row"])
    judge(others, alpha, better, margin.value, checked)
    for match in matched:
        twin = next((row for row in others if is_same(match["row"], row)), None)
        if twin:
            match["row"] |= {key: twin[key] for key in TEST}
        if not checked["ok"]:
            withhold(match["row"])
        match["verdict"] = match["row"]["verdict"]


def tests_in_words(rows: dict[str, dict], matched: list[dict], primary: str, targets: dict | None = None) -> str:
    """How many tests an A/B holds, and which were corrected together. targets: of ab_target.compare_arms."""
    quality = max((row["tests"] for row in rows.values() if row["family"] == "quality"), default=0)
    others = [match["row"] for match in matched if not is_same(match["row"], rows[primary])]
    cost, budgets = max((row["tests"] for row in others), default=0), "FLOPs and wall-clock"
    if any(match["name"] == "equal text" for match in matched):
        budgets = "FLOPs, wall-clock and text"
    total = rows[primary]["tests"] + quality + cost
    parts = f"{quality} of quality, corrected together, and {cost} at equal {budgets}, corrected together"
    if targets:
        total += targets["tests"]
        parts = (f"{quality} of quality, {cost} at equal {budgets}, and {targets['tests']} of how soon "
                 "a loss is reached, each of these three corrected together")
    return (f"This report holds {units.count(total, 'test')}: the primary metric, which stands alone, {parts} "
            "(Holm; the same numbers count once).")


def is_same(a: dict, b: dict) -> bool:
    """Whether two differences are of the same numbers."""
    if isinstance(a["delta"], str) or isinstance(b["delta"], str):
        return a["delta"] == b["delta"]
    values = [[sorted(row.get(f"values_{arm}", ())) for arm in "ab"] for row in (a, b)]
    return values[0] == values[1] and math.isclose(a["delta"], b["delta"], abs_tol=1e-12)
