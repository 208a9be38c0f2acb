"""results.py owns results.csv: one row per finished run, with document 003's columns, ours, and every flag that counts.

train_gpt.py writes it. compare_runs.py --results reads it, or a table of such columns made by hand.
"""

from __future__ import annotations

import ast
import csv
import functools
import io
import os
import re
from pathlib import Path

from lab import disk, runs

# document 003's columns, then ours. condition_columns() follow them
COLUMNS = (
    "run_id date git_commit seed attn_gate gate_pos gate_act learning_rate batch_size device_batch_size "
    "sequence_length num_iterations warmdown_iters final_val_loss best_val_loss train_time_ms ms_per_step "
    "gpu_name n_gpus notes "
    "arch optimizer condition n_layer n_embd parameters final_train_loss final_val_bits_per_byte "
    "final_val_loss_bos final_val_bits_per_byte_bos tokens_seen unique_tokens epochs flops_total "
    "data_fingerprint val_fingerprint muon_lr hellaswag_accuracy hellaswag_accuracy_norm "
    "hellaswag_accuracy_norm_bytes eval_official_sum eval_official_mean"
).split()

# document 003's columns that hold a flag under another name. batch_size counts sequences, its flag tokens
FLAG_OF = {
    "num_iterations": "max_train_steps",
    "sequence_length": "seq_len",
    "batch_size": "total_batch_tokens",
    "device_batch_size": "micro_batch_size",
}


def condition_columns(flags: dict, unused_flags=()) -> dict:
    """Columns for every flag that can change a result, except those that 003 has under another name.

    `unused_flags` names the flags without effect in this arm, such as gate_act without a gate."""
    renamed = FLAG_OF.values()
    columns = {flag: value for flag, value in runs.conditions(flags).items() if flag not in renamed}
    return {**columns, "unused_flags": " ".join(unused_flags)}


@functools.cache
def trainer_flags() -> re.Pattern:
    """Matches the names of train_gpt.py's flags.

    As importing the trainer needs torch, they are read from its source and that of the rooms it imports, where they
    stand as add("--seq_len", ...) or, in a table, as "--beta1": ... A hole of an f-string, as in f"--{name}_every",
    stands for any word; a name that is all hole is left out.
    """
    trainer = (runs.REPO / "train_gpt.py").read_text(encoding="utf-8")
    sources = [trainer]
    for node in ast.walk(ast.parse(trainer)):
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            paths = [runs.REPO / f"{name.replace('.', '/')}.py" for name in names if name.startswith("lab.")]
            sources += [path.read_text(encoding="utf-8") for path in paths if path.exists()]
    names = re.findall(r'(?:\badd(?:_argument)?\(\s*f?|(?="--\w+":))"--([^"\s]+)"', "\n".join(sources))
    patterns = {re.sub(r"\{.*?\}", r"\\w+", name) for name in names}
    return re.compile("|".join(sorted(patterns - {r"\w+"})))


def is_condition(column: str) -> bool:
    """Whether a column of any table is a flag that can change a result. Others are results, or somebody's own."""
    flag = FLAG_OF.get(column, column)
    return runs.has_effect(flag) and trainer_flags().fullmatch(flag) is not None


def append_result(path, row: dict) -> None:
    """Add one finished run. Columns that an older file lacks are added to it; it loses no cell."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock")
    with open(lock, "w") as locked:
        if os.name == "posix":
            import fcntl

            fcntl.flock(locked, fcntl.LOCK_EX)  # two runs may finish at once
        rows, columns = [], dict.fromkeys([*COLUMNS, *row])
        if path.exists():
            with open(path, newline="", encoding="utf-8-sig") as f:
                reader = csv.DictReader(f)
                rows = list(reader)
                columns |= dict.fromkeys(reader.fieldnames or ())
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*rows, row])
        disk.write_whole(path, text.getvalue().encode())
    lock.unlink(missing_ok=True)


def read_results(path, flag: str = "--results") -> list[dict]:
    """Rows of a results.csv, without blanks around names and cells. ValueError, naming `flag`, when it is none."""
    rows = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            for row in csv.DictReader(f):
                cells = ((k, v) for k, v in row.items() if k and isinstance(v, str))
                rows.append({column.strip(): cell.strip() for column, cell in cells})
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{flag} {path} cannot be read ({error}): name a results.csv.") from None
    if not any("final_val_loss" in row for row in rows):
        raise ValueError(f"{flag} {path} has no rows with a column final_val_loss: "
                         "name a results.csv that train_gpt.py wrote.")
    return rows
