"""ab_target_page.py owns what a report says of how soon a loss is reached: tables, notes, the lines of a terminal.

    blocks = blocks_of(found, alpha=0.05, two=True)       # found: of ab_target.compare_arms, None without --target_loss

Nothing here is a test.
"""

from __future__ import annotations

import math

from lab import ab_numbers, ab_report
from lab.ab_page import change_in_words, with_unit
from lab.ab_report import form_p
from lab.ab_target import AXES, RECORD_LEVEL, WORDS
from lab.units import count

HOW = (
    "What a run had spent where its held-out loss was first at or below the target, on the line "
    "between two evaluations; evaluations themselves cost nothing here. The ratio, B / A or an arm's over "
    "the baseline's, is a geometric mean over pairs, or of all runs where seeds do not pair; below 1 the "
    "target is reached sooner. Interval and p (t tests of logarithms) allow for where between its two "
    "evaluations a run may have reached it, so that evaluations further apart (`--eval_every`) show less. "
    "They hold for a target that was chosen before the first look at these curves. Where a run goes on "
    "behind its target, its learning rate was not yet down there: a run of that length might have "
    "reached it sooner.")
RECORD = (
    "Shown from: the earliest evaluation at which an arm's mean loss is shown to be at or below the "
    f"target, by a one-sided t test over its runs at p < {RECORD_LEVEL:g}, as modded-nanogpt counts a "
    "record. The earliest that passes among many would pass by luck too often, so the evaluations are "
    "tested from the last one backwards, up to the first that fails: in this order, which no loss "
    f"decides, all of them together name a wrong one with a chance of {RECORD_LEVEL:g} at most. Each "
    "line has this level for itself.")
COUNTED = (
    "A run that does not reach a target is counted as if it had at its last evaluation. It takes "
    "longer, so that only the end of the interval that this can be said of is given.")
SHOWN = 6  # names of runs in a note


# ----------------------------------------------------------------------------------------------------------------------
# notes and cells


def notes_on(found: dict) -> list[str]:
    """What the tables do not say: runs that do not reach a target or leave it again; what straight lines would give."""
    notes = [missed_in_words(one) for one in found["reached"] if one["n_reached"] < one["n"]]
    numbers = [ratio for ratio in found["ratios"] if isinstance(ratio["ratio"], float)]
    bounds = [ratio for ratio in numbers if ratio["side"]]
    for ratio in bounds:
        if ratio["axis"] == "step" and is_told(ratio, found):
            notes.append(f"{ratio['target']:g}: {bound_in_words(ratio, found['baseline'])}")
    if bounds:
        notes.append(COUNTED)
    notes += [again_in_words(one) for one in found["reached"] if one["above"]]
    unsure = [ratio for ratio in found["ratios"] if is_for_lack_of_evaluations(ratio)]
    if unsure:
        others = {ratio["arm"] for ratio in found["ratios"]}
        listed = "; ".join(line_in_words(ratio, len(others) > 1) for ratio in unsure)
        notes.append("Inconclusive only as nobody knows the curves between two evaluations. On "
                     f"straight lines the corrected intervals would be: {listed}. More evaluations "
                     "(`--eval_every`) could show it.")
    return notes


def missed_in_words(one: dict) -> str:
    """'3.28: 3 of 5 runs of B reach it, by step 290.', '3.28: none of the 5 runs of A reaches it (...).'"""
    runs = f"{count(one['n'], 'run')} of {one['arm']}"
    if one["by_step"] is None:
        return f"{one['target']:g}: none of the {runs} reaches it ({one['costs']['step']} steps)."
    return f"{one['target']:g}: {one['n_reached']} of {runs} reach it, by step {one['by_step']}."


def is_told(ratio: dict, found: dict) -> bool:
    """Whether a bound is worth a sentence: it is shown, or no run of the longer arm got there before it ended."""
    longer = found["baseline"] if ratio["side"] == "at most" else ratio["arm"]
    never = any(one["n_reached"] == 0 for one in found["reached"]
                if (one["target"], one["arm"]) == (ratio["target"], longer))
    is_bound = (ratio["ratio"] < 1) == (ratio["side"] == "at most")
    return ratio["verdict"] in WORDS.values() or (never and is_bound)


def line_in_words(ratio: dict, of_many: bool) -> str:
    arm = f" of {ratio['arm']}" if of_many else ""
    words = f"{ratio['target']:g}, {AXES[ratio['axis']][0]}{arm}"
    return f"{words} {interval_in_words(*ratio['line'])}"


def again_in_words(one: dict) -> str:
    names, more = ", ".join(one["above"][:SHOWN]), len(one["above"]) - SHOWN
    if more > 0:
        names += f" and {more} more"
    return (f"{one['target']:g}: above it again at the end, so that the first time at or below it may be "
            f"luck: {names}.")


def is_for_lack_of_evaluations(ratio: dict) -> bool:
    """Whether a ratio is inconclusive only for what a curve may be between two evaluations."""
    row, line = ratio["row"], ratio["line"]
    if ratio["side"] or ratio["same_as"] or not line:
        return False
    if "ends" not in row or ratio["verdict"] != "inconclusive":
        return False
    return isinstance(ratio["low"], float) and not line[0] <= 1 <= line[1]


def bound_in_words(ratio: dict, baseline: str) -> str:
    """'A needs at least 1.43 times the steps of B (geometric mean of these runs).'"""
    longer, other, times = baseline, ratio["arm"], 1 / ratio["ratio"]
    if ratio["side"] == "at least":
        longer, other, times = ratio["arm"], baseline, ratio["ratio"]
    return (f"{longer} needs at least {times:.2f} times the steps of {other} "
            "(geometric mean of these runs).")


def number_in_words(x: float) -> str:
    return f"{x:.3f}" if x < 100 else f"{x:.3g}"


def interval_in_words(low: float | str, high: float | str) -> str:
    if isinstance(low, str):
        return low
    if isinstance(high, str):
        return high
    if math.isnan(low) or math.isnan(high):
        return "N/A: no spread"
    if low == 0 and high < math.inf:
        return f"below {number_in_words(high)}"
    if high == math.inf:
        return f"above {number_in_words(low)}"
    return f"[{number_in_words(low)}, {number_in_words(high)}]"


def interval_cell(ratio: dict, kind: str = "") -> str:
    return interval_in_words(ratio[f"low{kind}"], ratio[f"high{kind}"])


def ratio_cell(ratio: dict) -> str:
    """'0.812', 'at most 0.812', or why there is none."""
    if isinstance(ratio["ratio"], str):
        return ratio["ratio"]
    return f"{ratio['side']} {number_in_words(ratio['ratio'])}".strip()


def change_cell(ratio: dict) -> str:
    """'0.812 [0.750, 0.860], p 0.0012: faster', corrected."""
    if isinstance(ratio["ratio"], str):
        return ratio["ratio"]
    if isinstance(ratio["low"], str):
        why = ratio["low"].removeprefix("N/A: ")
        return f"{ratio_cell(ratio)} (no interval: {why}): {ratio['verdict']}"
    interval, p = interval_cell(ratio, "_corrected"), form_p(ratio["p_corrected"])
    if ratio["side"]:
        interval = f"(interval: {interval})"
    return f"{ratio_cell(ratio)} {interval}, p {p}: {ratio['verdict']}"


def record_cell(record: dict, key: str, spec: str) -> str:
    if record["why"] or record[key] is None:
        return "–"
    if key in ("p", "last_p"):
        return form_p(record[key])
    return f"{record[key]:{spec}}"


def shown_in_words(record: dict) -> str:
    if record["why"]:
        return record["why"]
    return "not shown" if record["step"] is None else f"step {record['step']}"


# ----------------------------------------------------------------------------------------------------------------------
# in a report

RECORD_COLUMNS = [  # cell(record)
    ("Target", "right", lambda record: f"{record['target']:g}"),
    ("Arm", "left", lambda record: record["arm"]),
    ("Runs", "right", lambda record: record["n"]),
    ("Last evaluation", "right", lambda record: record_cell(record, "last_step", "d")),
    ("Mean loss", "right", lambda record: record_cell(record, "last_mean", ".4f")),
    ("p, one-sided", "right", lambda record: record_cell(record, "last_p", "")),
    ("Shown from", "right", shown_in_words),
    ("Mean loss there", "right", lambda record: record_cell(record, "mean", ".4f")),
    ("p there", "right", lambda record: record_cell(record, "p", "")),
]


def two_columns(found: dict) -> list[tuple]:
    """Of an A/B: cell(ratio)."""
    costs = {(one["target"], one["arm"]): one["costs"] for one in found["reached"]}
    return [
        ("Target", "right", lambda ratio: f"{ratio['target']:g}"),
        ("Spent", "left", lambda ratio: AXES[ratio["axis"]][0]),
        ("A", "right", lambda ratio: costs[ratio["target"], "A"][ratio["axis"]]),
        ("B", "right", lambda ratio: costs[ratio["target"], "B"][ratio["axis"]]),
        ("n", "right", lambda ratio: ab_numbers.design_of(ratio["row"]) if ratio["n"] else "–"),
        ("B / A", "right", ratio_cell),
        ("{level} interval, uncorrected", "right", interval_cell),
        ("p", "right", lambda ratio: form_p(ratio["p"])),
        ("p, corrected", "right", lambda ratio: form_p(ratio["p_corrected"])),
        ("{level} interval, corrected", "right", lambda ratio: interval_cell(ratio, "_corrected")),
        ("Verdict", "left", lambda ratio: ratio["verdict"]),
    ]


def many_columns(found: dict) -> list[tuple]:
    """Of many arms: cell(reached). An axis whose tests are all those of the steps is left out."""
    cells = {(one["target"], one["arm"], one["axis"]): change_cell(one) for one in found["ratios"]}

    def is_own(axis: str) -> bool:
        recorded = any(not one["costs"][axis].startswith("N/A") for one in found["reached"])
        twins = [one["same_as"] == "step" for one in found["ratios"] if one["axis"] == axis]
        return axis == "step" or (recorded and not (twins and all(twins)))

    def change(one: dict, axis: str) -> str:
        return cells.get((one["target"], one["arm"], axis), "–")

    columns = [
        ("target", "right", lambda one: f"{one['target']:g}"),
        ("arm", "left", lambda one: one["arm"]),
        ("reached", "right", lambda one: f"{one['n_reached']} of {one['n']}"),
    ]
    over = "over the baseline's, {level} interval, corrected"
    for axis in filter(is_own, AXES):
        title = AXES[axis][0]
        columns.append((title, "right", lambda one, axis=axis: one["costs"][axis]))
        if found["baseline"]:
            columns.append((over, "right", lambda one, axis=axis: change(one, axis)))
    return columns


def blocks_of(found: dict | None, alpha: float, two: bool) -> list[tuple]:
    """The section of a report on two arms, A and B, or on many, as blocks; none without --target_loss."""
    if found is None:
        return []
    table = ab_report.table(many_columns(found), found["reached"], alpha)
    if two:
        table = ab_report.table(two_columns(found), found["ratios"], alpha)
    title = f"How soon a loss is reached: {with_unit(found['metric'])}"
    blocks: list[tuple] = [("h2", title), table]
    notes, how = notes_on(found), HOW
    if notes:
        blocks.append(("ul", notes))
    if found["tests"]:
        how += f" {count(found['tests'], 'test')} in this table, apart from this report's others"
        how += ", corrected together by Holm." if found["tests"] > 1 else "."
    records = ab_report.table(RECORD_COLUMNS, found["records"], alpha)
    return [*blocks, ("p", how), records, ("p", RECORD)]


def key_rows(found: dict | None) -> list[dict]:
    """Of an A/B, rows for ab_page's key table: each target in steps and, where they compare, in training seconds."""
    if found is None:
        return []
    costs = {(one["target"], one["arm"]): one["costs"] for one in found["reached"]}
    rows = []
    for ratio in found["ratios"]:
        axis, target = ratio["axis"], ratio["target"]
        timed = axis == "train_seconds" and isinstance(ratio["ratio"], float)
        if axis == "step" or timed:
            rows.append({
                "what": f"Loss {target:g} reached, {AXES[axis][0]}",
                "a": costs[target, "A"][axis], "b": costs[target, "B"][axis], "delta": times(ratio),
                "interval": short_interval(ratio), "reading": ratio["verdict"],
            })
    return rows


def lines_of(found: dict | None, metric: str) -> tuple[float, ...]:
    """The targets that belong into a plot of this metric."""
    if found is None or found["metric"] != metric:
        return ()
    return tuple(found["losses"])


def times(ratio: dict) -> str:
    cell = ratio_cell(ratio)
    return cell if cell.startswith("N/A") else f"× {cell}"


def short_interval(ratio: dict) -> str:
    interval = interval_cell(ratio, "_corrected")
    if interval.startswith("N/A"):
        return interval
    if ratio["tests"] > 1:
        interval += ", corrected"
    return f"({interval})" if ratio["side"] else interval


def brief_rows(found: dict | None, best: list[dict]) -> list[list[str]]:
    """Of many arms, lines for a terminal below those of the best arms (ab_many.best_rows): when they reach a target."""
    if found is None:
        return []
    ratios = {(one["target"], one["arm"]): one for one in found["ratios"] if one["axis"] == "step"}
    shown, rows = [row["what"] for row in best], []
    for one in found["reached"]:
        if one["arm"] in shown and not one["costs"]["step"].startswith("N/A"):
            change, reading = "-", "-"
            ratio = ratios.get((one["target"], one["arm"]))
            if ratio:
                row = {"delta": times(ratio), "interval": short_interval(ratio)}
                change, reading = change_in_words(row), ratio["verdict"]
            what, n = f"{one['arm']}: loss {one['target']:g}", f"{one['n_reached']} of {one['n']}"
            rows.append([what, f"{one['costs']['step']} steps", n, change, reading])
    return rows
