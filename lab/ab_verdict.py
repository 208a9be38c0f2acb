"""ab_verdict.py decides what may be said: which numbers are tested, corrected together with which, in which words.

    margin = margin_of(args.delta, args.primary, primary, runs)
    judge_metrics(rows, metrics, primary, margin, checked, alpha)     # the rows of ab_numbers.compare_metrics
    judge(rows, alpha, better=-1, margin=margin.value)                # differences that are one family of tests

Three families. The primary metric is alone: its p stands as it is. Quality: every other thing that was measured, once
(a view of the held-out text, a benchmark), corrected by Holm among themselves. Cost and optimisation are described, not
tested. What is measured once has one verdict: a val loss and its own bits/byte share theirs, and of a benchmark's rules
one is tested. Intervals are never corrected, and say so.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from lab import ab_stats, runs
from lab.ab_numbers import UNIT, Metric

NOT_TESTED = "not tested"
FAMILY_OF_KIND = {"fixed": "fixed"}  # of what is not tested; else "described"
WITHHELD = "N/A: not comparable"  # in place of intervals and p of arms that differ in more than the treatment
TEST = ("p_raw", "p_corrected", "tests", "verdict")  # what judge() adds, as two rows of one test share it

# ----------------------------------------------------------------------------------------------------------------------
# the primary metric and its margin


def primary_of(asked: str | None, checked: dict, metrics: dict[str, Metric]) -> str:
    """The metric of the verdict: --primary, any metric of quality. ValueError for another one, or for one that means
    nothing between the arms' tokens."""
    quality = [key for key, metric in metrics.items() if metric.thing]
    if asked and asked not in quality:
        raise ValueError(f"--primary {asked}: use one of {', '.join(quality)}.")
    if asked and metrics[asked].kind == "nats" and checked["other_tokens"]:
        other = asked.replace("val_loss", "val_bits_per_byte")
        raise ValueError(f"--primary {asked} counts nats per token, but the arms' tokens differ "
                         f"or are not all recorded: use --primary {other}.")
    if asked:
        return asked
    return "val_bits_per_byte" if checked["other_tokens"] else "val_loss"


class Margin(NamedTuple):
    """The smallest difference that would matter: within ± value arms are equivalent."""
    value: float  # in the primary metric's unit; 0: none
    words: str


DEFAULT_MARGIN = {"nats/token": 0.002, "score": 0.01}  # (assumption)


def margin_of(given: float | None, asked: str | None, primary: str, every: list[dict]) -> Margin:
    """The margin of equivalence. A given one counts in the unit of the metric that was asked for, which is nats per
    token by default; where the primary metric counts bits per byte instead, it is converted by the first run's tokens
    per byte of held-out text, and so is the default."""
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
    rate = bits_per_nat(every, primary)
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
        tokens, size = (runs.number(record.get(f"val_{what}{view}")) for what in ("tokens", "bytes"))
        if tokens > 0 and size > 0:
            return tokens / size / math.log(2)
    return 0.0


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
          ok: bool = True) -> None:
    """Correct differences (ab_numbers.difference) that are tested together by Holm, for "better" and "worse" and, with
    a margin, for "equivalent"; and give each its word. better: which way the metrics improve, -1 or 1.

    Adds "p_raw", "p_corrected", "tests" (how many were corrected together), "p_equivalent" (corrected) and "verdict".
    """
    if isinstance(better, int):
        better = [better] * len(rows)
    corrected = holm([row["p"] for row in rows])
    tests = sum(isinstance(p, float) and math.isfinite(p) for p in corrected)
    tost = [equivalence_p(row, margin) for row in rows]
    for row, p, p_tost, way in zip(rows, corrected, holm(tost), better, strict=True):
        row |= {"p_raw": row["p"], "p_corrected": p, "tests": tests, "p_equivalent": p_tost}
        row["verdict"] = word_of(row, alpha, way, margin)
        if not ok:
            row["verdict"] = "not comparable"
            withhold(row)


def withhold(row: dict) -> None:
    """Takes away interval and p: between arms that are not comparable they would read like evidence."""
    for name in ("low", "high", "p", "p_raw", "p_corrected", "p_equivalent"):
        if isinstance(row.get(name), float):
            row[name] = WITHHELD
    row["tests"] = 0


def equivalence_p(row: dict, margin: float) -> float:
    if not margin or row["stats"] is None:
        return math.nan
    values = row["values_a"], row["values_b"]
    return float(ab_stats.equivalence(*values, margin, paired_seeds=row["paired"])["p"])


def word_of(row: dict, alpha: float, better: int, margin: float) -> str:
    """ab_stats.verdict of a row by its corrected p. A seed without a number may be the very one that went wrong, so
    there is no verdict beside one."""
    if isinstance(row["delta"], str):
        return "inconclusive"
    if row["n"] < ab_stats.MIN_RUNS:
        return ab_stats.too_few(row["n"])
    if row["lacking"] or isinstance(row["p_corrected"], str):
        return "inconclusive"
    stats = row["stats"] | {"p": row["p_corrected"]}
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
    judge([rows[primary]], alpha, metrics[primary].better, margin.value, checked["ok"])
    ways = [metrics[key].better for key in quality]
    judge([rows[key] for key in quality], alpha, ways, ok=checked["ok"])
    level = f"{100 * (1 - alpha):g} %, uncorrected"
    families = dict.fromkeys(quality, "quality") | {primary: "primary"}
    for key, row in rows.items():
        metric = metrics[key]
        row |= {"key": key, "label": metric.label, "interval": level, "same_as": ""}
        row["family"] = families.get(key, FAMILY_OF_KIND.get(metric.kind, "described"))
        if key in families:
            continue
        row |= {"p_raw": row["p"], "p_corrected": NOT_TESTED, "tests": 0, "verdict": row["family"]}
        if metric.thing:
            tested = chosen[metric.thing]
            share_test(row, rows[tested] | {"family": families[tested]}, metrics[tested], metric)
    for key, row in rows.items():
        if not checked["ok"]:
            withhold(row)
        if isinstance(row["delta"], str) and key != primary:
            row["verdict"] = row["delta"]


def share_test(row: dict, tested: dict, tested_metric: Metric, metric: Metric) -> None:
    """A row whose thing has its test in another row: the same number in another unit shares that test; another rule of
    the same items is only described."""
    row["same_as"] = tested_metric.label
    rule = re.sub(r"^\S+ (\([^)]*\) )?", "", tested_metric.label)  # without the benchmark's name, which stands beside
    row["verdict"] = f"see {rule}"
    if metric.kind != "benchmark":
        shared = ("family", "p_corrected", "tests", "verdict")
        row |= {name: tested[name] for name in shared}


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
    """Give the matchings (ab_numbers.matchings) their "verdict". One that has the very numbers of the primary's row is
    that test; the others are a family of their own."""
    others = []
    for match in matched:
        if is_same(match["row"], primary_row):
            match["row"] |= {key: primary_row[key] for key in TEST}
        elif not any(is_same(match["row"], row) for row in others):
            others.append(match["row"])
    judge(others, alpha, better, margin.value, checked["ok"])
    for match in matched:
        twin = next((row for row in others if is_same(match["row"], row)), None)
        if twin:
            match["row"] |= {key: twin[key] for key in TEST}
        if not checked["ok"]:
            withhold(match["row"])
        match["verdict"] = match["row"]["verdict"]


def is_same(a: dict, b: dict) -> bool:
    """Whether two differences are of the same numbers."""
    if isinstance(a["delta"], str) or isinstance(b["delta"], str):
        return a["delta"] == b["delta"]
    values = [[sorted(row.get(f"values_{arm}", ())) for arm in "ab"] for row in (a, b)]
    return values[0] == values[1] and math.isclose(a["delta"], b["delta"], abs_tol=1e-12)
