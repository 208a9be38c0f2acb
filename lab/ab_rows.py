"""ab_rows.py owns the rows of many arms: run folders and lines of a results.csv as the same cells.

    rows = [row_of_run(run) for run in read_runs(["runs/*"], "--runs")]

A row is a dict of cells by column: what a results.csv records of a run, or what its folder does under
the same names; "run" (None for a results.csv) and "member" (for ab_gate) are among them.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from lab import ab_gate, ab_numbers, logs, results, runs, units

# settings that are no flags
DATA_COLUMNS = (
    "condition data_fingerprint val_fingerprint code_sha256 data_format mul_token_rate "
    "val_fingerprint_tokens init_sha256"
).split()
# what a results.csv must hold for "comparable": where a column is missing, nobody knows that it is equal
KNOBS = (
    "weight_decay warmup_iters schedule warmdown_iters learning_rate_decay_frac learning_rate "
    "optimizer beta1 beta2 grad_clip dtype arch n_layer n_head n_embd n_inner "
    "seq_len total_batch_tokens max_train_steps data_order init_from val_tokens "
    "condition data_fingerprint val_fingerprint code_sha256"
).split()
HARDWARE_COLUMNS = ("gpu_name", "n_gpus")


def read_runs(patterns: list[str], flag: str) -> list[dict]:
    return [read_one(path) for path in runs.expand(patterns, flag)]


def read_one(path) -> dict:
    """A run's folder, or another project's log."""
    return logs.read_log(path) if Path(path).is_file() else runs.read_run(path)


def label_of(arm: list[dict]) -> str:
    """What an arm's folders are called: base_s0, base_s1 -> base."""
    stem = os.path.commonprefix([re.sub(r"[_-]s(eed)?\d+$", "", run["name"]) for run in arm])
    return stem.rstrip("_-") or "runs"


def names_of(arms: dict[str, list[dict]]) -> dict[str, str]:
    """Arms by what their folders are called; with the folder above where that is the same."""
    names = {arm: label_of(own) for arm, own in arms.items()}
    if len(set(names.values())) < len(names):
        for arm, own in arms.items():
            names[arm] = f"{own[0]['folder'].resolve().parent.name}/{names[arm]}"
    return names


def cell_in_words(column: str, cell: str) -> str:
    """A cell in the name of an arm; "" of a part of the network that is the architecture's own."""
    if column not in ab_gate.PARTS:
        return ab_gate.short(cell) or "(empty)"
    return "" if cell in ("", "arch") else f"{column} {cell}"


def rows_of_tables(patterns: list[str]) -> tuple[list[dict], list[int], list[dict]]:
    """(the rows of one or more results.csv, numbers of started runs whose row is missing, rows of folders
    of runs that belong to the tables and have none in them)."""
    tables = results.read_tables(patterns)
    every = results.each_run_once(list(tables.values()))
    lost = {folder: None for path in tables for folder in results.lost_folders(path, every)}
    folders = [row_of_run(runs.read_run(folder)) for folder in lost]
    numbers = results.missing_numbers(list(tables.values()))
    return [row_of_cells(cells) for cells in every], numbers, folders


def titles_of(rows: list[dict]) -> list[dict]:
    """What rows of a results.csv tell of their benchmarks' titles, as the configs of runs."""
    titles = {}
    for row in rows:
        for column, cell in row.items():
            name = column.removesuffix("_title")
            if cell and name != column:
                titles[name] = {"title": cell}
    return [{"config": {"benchmarks": titles}, "flags": {}}]


def without_row(numbers: list[int], lost: list[dict]) -> list[str]:
    """What --results lacks, in words: a run that went wrong may be among it."""
    missing = []
    if numbers:
        listed = ", ".join(map(str, numbers[:8]))
        counted = units.count(len(numbers), "started run")
        missing.append(f"no row has the number {listed}: of {counted} the row was deleted, or stands "
                       "in another table")
    for row in lost:
        folder, end = row["run"]["folder"].parent, ""
        if row["run"]["summary"] is None:
            end = ", an unfinished one"
        missing.append(f"{row['run_id']} has a folder ({folder}){end} and no row")
    return missing


def row_of_cells(cells: dict[str, str]) -> dict:
    """A line of a results.csv. Its settings are the columns with a flag that can change a result; an empty
    cell is not recorded, but for init_from, where it means fresh weights."""
    settings = {}
    for column, text in cells.items():
        if column in DATA_COLUMNS and text:
            settings[column] = text
        elif results.is_condition(column) and column != "seed" and (text or column == "init_from"):
            settings[column] = cell_text(text)
    unused = cells.get("unused_flags") or ""
    member = {
        "name": cells.get("run_id") or "a row", "run": None,
        "seed": cell_text(cells.get("seed")) or None, "settings": settings,
        "unused": ab_gate.unused_flags(settings, unused.split() or None),
        "machine": {column: cells[column] for column in HARDWARE_COLUMNS if cells.get(column)},
        "micro_batch_size": cells.get("device_batch_size") or None,
        "tokens": cells.get("condition") or None,
        "unverified": cells.get("verify_data", "") not in ("", "full"),
        "content": {split: cells.get(f"{split}_content_sha256") for split in ("data", "val")},
        "status": cells.get("status", ""),
        "losses": (cells.get("final_val_loss"), cells.get("train_time_ms")),
    }
    return {**cells, "run": None, "member": member}


def row_of_run(run: dict) -> dict:
    """A run's folder: its flags, its data and document 003's columns."""
    flags, data = run["flags"], run["config"]["data"]
    row = dict(flags)
    row |= {key: data.get(key) for key in ("condition", "crop_fraction", "mul_token_rate")}
    row |= {f"data_{key}": data.get(key) for key in ("format", "fingerprint")}
    row |= {column: flags.get(flag) for column, flag in results.FLAG_OF.items()}
    tokens, length = (runs.number(flags.get(key)) for key in ("total_batch_tokens", "seq_len"))
    known = tokens > 0 and length > 0
    row["batch_size"] = int(tokens / length) if known else None  # in sequences, as in results.csv
    row |= (run["summary"] or {}).get("results_row") or {}
    return row | {"run_id": run["name"], "run": run, "member": ab_gate.of_run(run)}


def cell_number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def bits_per_nat(rows: list[dict], primary: str) -> float:
    """Bits/byte for one nat/token, by the first row that holds its last loss in both units; 0 where none does."""
    view = "_bos" if primary.endswith("_bos") else ""
    for row in rows:
        nats = cell_number(row.get(f"final_val_loss{view}"))
        bits = cell_number(row.get(f"final_val_bits_per_byte{view}"))
        if nats > 0 and 0 < bits < math.inf:
            return bits / nats
    return 0.0


def cell_text(value) -> str:
    """One spelling per value: 3.6e-3, '0.00360' and 0.0036 are '0.0036'."""
    x = cell_number(value)
    if math.isfinite(x):
        return f"{x:.12g}"
    return "" if value is None else str(value)


def names_in(text: str | None) -> list[str]:
    """'a, b' -> ["a", "b"]."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def cells_in(text: str | None, flag: str) -> dict[str, str]:
    """'a=1,b=x' -> {"a": "1", "b": "x"}."""
    wanted = {}
    for part in names_in(text):
        name, sign, value = map(str.strip, part.partition("="))
        if not sign or not name:
            raise ValueError(f"{flag} {part!r}: write column=value, with commas between.")
        if name in wanted:
            raise ValueError(f"{flag} gives {name} twice: a row has one value per column.")
        wanted[name] = cell_text(value)
    return wanted


def not_recorded(members: list[dict]) -> dict[int, list[str]]:
    """{in how many members of arms: the knobs that they do not record}."""
    lacking: dict[int, list[str]] = {}
    compared = {name for member in members for name in member["settings"]}
    knobs = [name if name in compared else results.COLUMN_OF.get(name, name) for name in KNOBS]
    for name in dict.fromkeys([*knobs, *sorted(compared)]):
        n = sum(name not in member["settings"] for member in members)
        lacking.setdefault(n, []).append(name)
    lacking.pop(0, None)
    return lacking


def unrecorded_of(members: list[dict]) -> list[str]:
    """Knobs that rows of a results.csv or logs with settings do not record; [] where all are folders."""
    partly = [member for member in members if not member["run"] and not member.get("log")]
    if not partly:
        return []
    lacking = not_recorded(partly)
    return [name for n in sorted(lacking, reverse=True) for name in lacking[n]]


def in_words(unrecorded: list[str]) -> str:
    """'Not recorded: weight_decay, warmup_iters and 9 more.', or ""."""
    if not unrecorded:
        return ""
    listed, more = ", ".join(unrecorded[:6]), len(unrecorded) - 6
    if more > 0:
        listed += f" and {more} more"
    return f" Not recorded: {listed}."


def notes_on(rows: list[dict], compared: set[str], unrecorded: list[str]) -> list[str]:
    """What a results.csv does not record of some rows, and which of its columns are not compared, whose
    names go into unrecorded, too."""
    notes = []
    for n, names in not_recorded([row["member"] for row in rows]).items():
        notes.append(f"not recorded in {n} of {len(rows)} rows: {', '.join(names)}")
    commits = ab_gate.distinct(row["git_commit"] for row in rows if row.get("git_commit"))
    if len(commits) > 1:
        notes.append(f"git_commit differs ({', '.join(map(ab_gate.short, commits))})")
    ours = {*compared, *results.COLUMNS, *DATA_COLUMNS, *ab_numbers.metrics_of([])}
    ours |= {"unused_flags", "verify_data", "run", "member"}
    others = dict.fromkeys(column for row in rows for column in row if column not in ours)
    scores = tuple(column.removesuffix("title") for column in others if column.endswith("_title"))
    strange = [column for column in others if not results.trainer_flags().fullmatch(column)
               and not (scores and column.startswith(scores))]
    if strange:
        names = ", ".join(strange)
        notes.append(f"columns that are no flags of train_gpt.py, not compared: {names}")
        unrecorded += [f"{column} (unknown)" for column in strange]
    return notes
