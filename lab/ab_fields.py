"""ab_fields.py owns the numbers that not every trainer logs in its train records: GRPO's, fine-tuning's, your own.

    training.record_step(run, outcome, ..., my_field=0.5)       # in a trainer's loop: a field of the step's record
    fields_of(every)                                            # ["my_field"], of all these runs
    metrics_of(every)                                           # rows of an A/B, for ab_numbers
    score(run, "my_field", last)                                # a run's number, or why there is none

Nobody knows here which way such a number is better, so that it is described and never tested.
"""

from __future__ import annotations

import numpy as np

from lab import runs


def fields_of(every: list[dict]) -> list[str]:
    """The fields that some of the runs has, in the order of the first run that has them."""
    fields = dict.fromkeys(field for run in every for field in run.get("train", ()))
    return [field for field in fields if field not in runs.TRAIN_FIELDS]


def metrics_of(every: list[dict]) -> list[tuple]:
    """(key, the fields of ab_numbers.Metric) of each."""
    label = "{} (mean of the last tenth)"
    return [(field, label.format(field), 0, ".5g", "logged") for field in fields_of(every)]


def score(run: dict, field: str, last: int) -> float | str:
    """The mean over the last tenth of the steps up to `last` that have a number: one step's is mostly noise."""
    if field not in run["train"]:
        return "not recorded"
    values = run["train"][field][run["train"]["step"] <= last]
    values = values[np.isfinite(values)]
    if not len(values):
        return "not a finite number"
    return float(values[-max(1, len(values) // 10):].mean())
