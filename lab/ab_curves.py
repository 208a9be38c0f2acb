"""ab_curves.py owns which numbers of an A/B its plots show: losses and other records, pairs, every metric's change.

    blocks = loss_curves({"A: base": runs_a, "B: test": runs_b}, "val_loss", other_tokens=False)
    blocks = pictures(arms, rows, metrics, "val_loss", alpha=0.05)

Of blocks: lab/ab_report.py; of drawing: lab/ab_plots.py. Nothing here is a test.
"""

from __future__ import annotations

import math
import re

import numpy as np

from lab import ab_composite, ab_fields, ab_numbers, ab_plots
from lab.ab_numbers import SHORT
from lab.ab_page import with_unit

ACROSS = 3  # panels beside each other that can be read
BINS = 200  # points of a train curve: more cannot be told apart on a page


def loss_curves(arms: dict[str, list[dict]], metric: str, other_tokens: bool,
                targets: tuple[float, ...] = ()) -> list[tuple]:
    """Held-out loss at every evaluation, with the losses to be reached, and train loss, as blocks."""
    names = {
        f"Held-out: {with_unit(metric)}":
            {arm: ab_numbers.curve_points(own, metric, "step") for arm, own in arms.items()},
        "Train loss (nats/token)": {arm: train_points(own) for arm, own in arms.items()},
    }
    apart = tuple(ab_numbers.unfinished_arms(arms))
    drawn = ab_plots.plot_losses(names, "optimizer steps", tuple(names)[1:], apart, targets)
    if not drawn:
        return []
    caption = ("Mean over seeds, band from the lowest to the highest seed; a marker is an "
               "evaluation.")
    span = max(map(steps_per_point, arms.values()))
    if span > 1:
        caption += f" Train loss: means over {span} steps."
    if other_tokens:
        caption += " The arms' tokens differ, so their train losses do not compare."
    ends = last_values(arms, metric)
    if ends:
        caption += f" At the end, {SHORT[metric]}: {ends}."
    return [("img", "loss_curves.png", caption, drawn)]


def last_values(arms: dict[str, list[dict]], metric: str) -> str:
    ends = []
    for arm, own in arms.items():
        points = ab_numbers.curve_points(own, metric, "step")
        if points and points[0]:
            ends.append(f"{arm} {np.mean([run[-1][1] for run in points]):.4f}")
    return "; ".join(ends[:8])


def last_common_step(arm: list[dict]) -> int:
    return min((int(max(run["train"]["step"], default=0)) for run in arm), default=0)


def steps_per_point(arm: list[dict]) -> int:
    """Of train_points(): 1 up to BINS steps; rounded."""
    return max(1, round(last_common_step(arm) / BINS))


def train_points(arm: list[dict], field="train_loss_opt_step_mean") -> list[list[list[float]]]:
    """Per run [[step, train loss or another field], ...], means over equal spans of steps, over the steps that all runs
    made; none where a run does not record the field."""
    last = last_common_step(arm)
    if last < 1 or not all(field in run["train"] for run in arm):
        return []
    n = min(BINS, last)
    table = np.full((len(arm), n, 2), math.nan)
    for row, run in zip(table, arm, strict=True):
        step, loss = run["train"]["step"], run["train"][field]
        used = np.isfinite(loss) & (step <= last) & (step >= 1)
        at = ((step[used] - 1) * n // last).astype(int)
        size = np.bincount(at, minlength=n)
        known = size > 0
        for column, values in enumerate((step[used], loss[used])):
            row[known, column] = np.bincount(at, weights=values, minlength=n)[known] / size[known]
    return table[:, np.isfinite(table).all(axis=(0, 2))].tolist()


def field_curves(arms: dict[str, list[dict]]) -> list[tuple]:
    """The fields of ab_fields over the steps, ACROSS of them in a picture, as blocks."""
    fields = ab_fields.fields_of([run for own in arms.values() for run in own])
    blocks = []
    for i in range(0, len(fields), ACROSS):
        panels = {}
        for field in fields[i : i + ACROSS]:
            points = {arm: train_points(own, field) for arm, own in arms.items()}
            panels[ab_plots.plot_name(field, 30)] = points
        drawn = ab_plots.plot_losses(panels, "optimizer steps", tuple(panels))
        if drawn:
            caption = f"Of the train records, as the train loss: {', '.join(panels)}"
            blocks.append(("img", f"fields_{1 + i // ACROSS}.png", caption, drawn))
    return blocks


def wall_clock(arms: dict[str, list[dict]], metric: str, targets: tuple[float, ...] = ()) -> list[tuple]:
    """Held-out loss over training time, with the losses to be reached, as blocks."""
    points = {arm: ab_numbers.curve_points(own, metric, "train_seconds") for arm, own in arms.items()}
    panels = {with_unit(metric): points}
    drawn = ab_plots.plot_losses(panels, "training time (seconds)", lines=targets)
    if not drawn:
        return []
    caption = ("Held-out loss against training time: mean, and band from the lowest to the "
               "highest seed")
    return [("img", "val_wall_clock.png", caption, drawn)]


# ----------------------------------------------------------------------------------------------------------------------
# plots of an A/B

# by a metric's kind
PANELS = {"nats": "losses", "bits": "losses", "benchmark": "benchmarks", "logged": "other train records"}


def pictures(arms: dict[str, list], rows: dict, metrics: dict, primary: str, alpha: float,
             targets: tuple[float, ...] = ()) -> list[tuple]:
    """Curves, pairs and the change of every metric, as blocks."""
    blocks, row = wall_clock(arms, primary, targets) + field_curves(arms), rows[primary]
    mean = None
    if isinstance(row["low"], float):
        mean = (row["delta"], row["low"], row["high"])
    side = "below" if metrics[primary].better < 0 else "above"
    x_label = f"B - A in {with_unit(primary)}; {side} 0, B is better"
    png = ab_plots.plot_pairs(row["pairs"], mean, x_label, f"mean, {100 * (1 - alpha):g} %")
    if png:
        caption = "Difference within each pair of equal seed"
        blocks.append(("img", "paired_differences.png", caption, png))
    forest: dict[str, list] = {"losses": [], "benchmarks": [], "stability and cost": [], "other train records": []}
    for key, row in rows.items():
        if key == ab_composite.KEY:  # guessing is its 0, of which no change is a share
            continue
        if isinstance(row["low"], float) and math.isfinite(row["low"]) and row["a"]:
            metric = metrics[key]
            line = {k: 100 * row[k] / abs(row["a"]) for k in ("delta", "low", "high")}
            line |= {"better": metric.better, "verdict": row["verdict"].split(",")[0]}
            line["label"] = re.sub(r" \([^()]*\)$| @.*", "", metric.label)
            forest[PANELS.get(metric.kind, "stability and cost")].append(line)
    png = ab_plots.plot_forest(forest)
    if png:
        arrows = ""
        if any(ab_plots.is_cut(line, lines) for lines in forest.values() for line in lines):
            arrows = ". An arrowhead: the interval goes on beyond the panel"
        every = "Every measured metric"
        if ab_composite.KEY in rows:
            every += " but the mean centered accuracy"
        caption = (f"{every}: change in percent of A, with its uncorrected interval. ↓ lower is better, "
                   "↑ higher is better. Filled: better; square: worse; grey: neither. These go by the table's "
                   "verdict, whose p is corrected; cost and optimisation have none" + arrows)
        blocks.append(("img", "forest.png", caption, png))
    return blocks or [("p", "N/A: nothing to draw.")]
