"""ab_composite.py owns one number for all benchmarks of a run: how far its answers are above guessing.

    words = add(runs)      # every run gains the benchmark KEY; words: which tasks it is of, "" where there are not two

mean_centered_accuracy is the mean over tasks of (accuracy - chance) / (1 - chance), in lab/tasks.py. A small model is
near chance in every task, where a test of one task rarely decides anything; what tasks have in common shows in their
mean. To the rest of the report it is a benchmark like any other: compared by seeds (ab_numbers), tested among the
metrics of quality (ab_verdict), and shown item by item (ab_items).

The tasks are those of every benchmark that says what guessing scores, each by the score that is tested for it. A task
counts where all runs were scored on it at one step, on the same items by the same rule; runs that were scored on
nothing have no number. HellaSwag counts once, as the zero-shot suite has it if it does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lab import ab_numbers, runs, tasks

KEY = "mean_centered_accuracy"
TITLE = "Mean centered accuracy"
FEWEST = 2  # the mean of one task is that task

# a task of the suite by the key of its score
SUITE = {f"zeroshot_{tasks.key_of(name, tasks.scores_of(name)[0])}": name for name in tasks.TASKS}


class Task(NamedTuple):
    benchmark: str
    key: str  # of its score
    thing: str  # what it measures: two scores of one thing are one task
    label: str  # beside the benchmark's title
    name: str  # in by_task of a record and as the category of an item; "" where it is all of the benchmark


class Score(NamedTuple):
    """A task in a run's record of one step. items, own_items: hashes of all items of the benchmark, and of the task's
    own; None where older records lack them. synthetic: whether its items are made up."""

    accuracy: float
    chance: float
    rule: str
    n: int
    items: str | None
    own_items: str | None
    synthetic: bool


# ----------------------------------------------------------------------------------------------------------------------
# the tasks of runs


def add(every: list[dict], at_ends: bool = False) -> str:
    """Give each run the records of a benchmark KEY, by step, and its description, if two tasks or more are common to
    all; says in words which they are. at_ends: runs are compared at their own ends, not at a common step.

    After the gate, whose members are what the runs recorded, and before ab_numbers.metrics_of."""
    described = ab_numbers.benchmarks_of(every)
    known = [task for name, benchmark in described.items() for task in tasks_of(name, benchmark)]
    tables = [scores_by_step(run, known, described) for run in every]
    chosen, rows = choose([table for table in tables if table], known, at_ends)
    if len(chosen) < FEWEST:
        things = [{task.thing for task in known if task.key in row} for table in tables for row in table.values()]
        if max(map(len, things), default=0) < FEWEST:
            return ""
        return f"{TITLE}: N/A: fewer than {FEWEST} tasks were scored alike in every run."
    first = rows[0]
    parts = [{"benchmark": task.benchmark, "key": task.key, "name": task.name, "chance": first[task.key].chance}
             for task in chosen]
    label = f"{TITLE} ({counted(len(chosen), sum(first[task.key].synthetic for task in chosen))})"
    about = {"title": TITLE, "metrics": [[KEY, label, 1, ".4f"]], "parts": parts}
    for run, table in zip(every, tables, strict=True):
        records = {}
        for step, row in table.items():
            if all(is_alike(task, [first, row]) for task in chosen):
                scores = [(row[task.key].accuracy, row[task.key].chance) for task in chosen]
                records[step] = {KEY: tasks.mean_centered_accuracy(scores)}
        run["benchmarks"][KEY] = records
        run["config"]["benchmarks"] = {**(run["config"].get("benchmarks") or {}), KEY: about}
    left_out = reasons_of(chosen, known, tables, rows)
    return in_words(chosen, described) + left_out_in_words(left_out, described)


def tasks_of(name: str, benchmark: dict) -> list[Task]:
    """The scores of a benchmark that are tested and where more is better."""
    better = {key: (label, better) for key, label, better, _ in benchmark["metrics"]}
    tests = benchmark.get("tests")
    if tests is None:
        tested = [key for key in benchmark.get("tested", ()) if key in better] or list(better)[:1]
        tests = {key: key for key in tested}
    of_benchmark = []
    for key, (label, way) in better.items():
        if way == 1 and (key in SUITE or tests.get(key) == key):
            short = label.removeprefix(benchmark["title"]).strip()
            of_benchmark.append(Task(name, key, tests.get(key, key), short, SUITE.get(key, "")))
    return of_benchmark


def scores_by_step(run: dict, known: list[Task], described: dict) -> dict[int, dict[str, Score]]:
    """{step: {key of a task: its Score}} of all that a run was scored on."""
    table: dict[int, dict[str, Score]] = {}
    for task in known:
        for step, record in ab_numbers.benchmark_records(run, task.benchmark).items():
            accuracy = ab_numbers.benchmark_score(run, task.key, task.benchmark, step)
            own = record
            if task.name:
                by_task = record.get("by_task")
                own = by_task.get(task.name) if isinstance(by_task, dict) else None
            if not isinstance(own, dict) or isinstance(accuracy, str):
                continue
            chance = runs.number(own.get("chance", described[task.benchmark].get("chance")))
            if not 0 <= chance < 1:  # also NaN: what guessing scores is not known
                continue
            own_items = own.get("items_sha256") if task.name else None
            exam = str(record.get("scorer")), own.get("n"), record.get("items_sha256"), own_items
            synthetic = "(synthetic" in str(record.get("title", described[task.benchmark]["title"]))
            table.setdefault(step, {})[task.key] = Score(accuracy, chance, *exam, synthetic)
    return table


def choose(tables: list[dict], known: list[Task], at_ends: bool) -> tuple[list[Task], list[dict]]:
    """(the tasks that all runs share, each thing once, the runs' scores there): at the step with the most of them, the
    last of these; at_ends: at each run's own last one. Not the untrained network, where there is a later step."""
    if not tables:
        return [], []
    steps = sorted(set.intersection(*map(set, tables)))
    if any(max(table) > 0 for table in tables):
        steps = [step for step in steps if step > 0]
    places = [[table[step] for table in tables] for step in steps]
    if at_ends:
        places = [[table[max(table)] for table in tables]]
    best: tuple[list[Task], list[dict]] = [], []
    for rows in places:
        shared = [task for task in known if is_alike(task, rows)]
        # of two scores of one thing the later stays: the suite's HellaSwag, by the rule of the suite's other tasks
        of_thing = {task.thing: task for task in shared}
        shared = [task for task in shared if task is of_thing[task.thing]]
        if len(shared) >= len(best[0]):
            best = shared, rows
    return best


def is_alike(task: Task, rows: list[dict[str, Score]]) -> bool:
    """Whether all have a score of the task, of the same items by the same rule."""
    if not all(task.key in row for row in rows):
        return False
    first, *others = (row[task.key] for row in rows)
    return all(is_same_exam(first, other) for other in others)


def is_same_exam(a: Score, b: Score) -> bool:
    same_items = a.items == b.items or (a.own_items is not None and a.own_items == b.own_items)
    return same_items and (a.rule, a.n) == (b.rule, b.n) and math.isclose(a.chance, b.chance)


# ----------------------------------------------------------------------------------------------------------------------
# in words


def counted(n: int, synthetic: int) -> str:
    """'9 tasks', 'synthetic, 9 tasks', '9 tasks, 1 synthetic'."""
    if synthetic == n:
        return f"synthetic, {n} tasks"
    return f"{n} tasks, {synthetic} synthetic" if synthetic else f"{n} tasks"


def listed(some: list[Task], described: dict) -> str:
    """'HellaSwag: accuracy_norm; Zero-shot: PIQA acc_norm, BoolQ acc'."""
    by_benchmark: dict[str, list[str]] = {}
    for task in some:
        by_benchmark.setdefault(described[task.benchmark]["title"], []).append(task.label)
    return "; ".join(f"{title}: {', '.join(labels)}" for title, labels in by_benchmark.items())


def blocks(words: str) -> list[tuple]:
    """What add() says, as a paragraph of a report."""
    return [("p", words)] if words else []


def in_words(chosen: list[Task], described: dict) -> str:
    return (f"{TITLE} is the mean over {len(chosen)} tasks of (accuracy - chance) / (1 - chance), 0 for guessing and 1 "
            f"for all right, of {listed(chosen, described)}.")


def reasons_of(chosen: list[Task], known: list[Task], tables: list[dict], rows: list[dict]) -> dict[str, list[Task]]:
    """{why: the tasks that some run was scored on and that are left out}."""
    things, reasons = {task.thing for task in chosen}, {}
    for task in known:
        if task in chosen or not any(task.key in row for table in tables for row in table.values()):
            continue
        why = "not scored in every run at that step"
        if task.thing in things:
            why = "counted already"
        elif all(task.key in row for row in rows):
            why = "other items or another rule in some runs"
        reasons.setdefault(why, []).append(task)
    return reasons


def left_out_in_words(reasons: dict[str, list[Task]], described: dict) -> str:
    if not reasons:
        return ""
    return " Left out: " + "; ".join(f"{listed(some, described)} ({why})" for why, some in reasons.items()) + "."
