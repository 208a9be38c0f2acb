"""logs.py owns what other projects print: a log of theirs as a run that recorded nothing but its losses.

    python compare_runs.py --a log/log.txt --b out/train.log --allow unrecorded
    python compare_runs.py --runs 'logs/*.txt' --group_by run_id --allow unrecorded

    nanoGPT (stdout)          step 250: train loss 4.5, val loss 4.6
                              iter 250: loss 4.5, time 340.12ms, mfu 30.1%
    build-nanogpt (log.txt)   250 val 4.6 | 250 hella 0.26 | 250 train 4.5
    build-nanogpt (stdout)    step   250 | loss: 4.5 | lr 6e-04 | norm: 0.4 | dt: 340ms | tok/sec: 1e6
    modded-nanogpt            step:250/1750 val_loss:4.6 train_time:15000ms | ... train_loss:4.5
    llm.c                     s:250 tel:4.6 | s:250 trl:4.5 | s:250 eval:0.26

A reader is a row of the table below. Seeds, settings, data, code and whether the run had ended are
in no such line, so the gate (lab/ab_gate.py) calls them not recorded, and a log is one run of an
unknown seed: a curve and no evidence. Steps are counted as the log counts them.
"""

from __future__ import annotations

import codecs
import math
import re
import zlib
from pathlib import Path

from lab import runs

LARGEST = 2**28  # bytes; 600,000 steps of nanoGPT print 40 MB
STEP, VALUE = r"(?P<step>\d{1,12})", r"[-+.a-zA-Z0-9]+"
RANK = r"(?:\[\w+\]: ?)?"  # which torchrun may put in front
TRAIN_LOSS = rf"(?P<train_loss_opt_step_mean>{VALUE})"
VAL_LOSS = rf"(?P<val_loss>{VALUE})"
READERS = {  # project: {stream: pattern of a line's beginning, with our records' names}
    "nanoGPT": {
        "val": rf"step {STEP}: train loss {VALUE}, val loss {VAL_LOSS}",
        "train": rf"iter {STEP}: loss {TRAIN_LOSS}, time ",
    },
    "build-nanogpt": {
        "val": rf"{STEP} val {VAL_LOSS}$",
        "hellaswag": rf"{STEP} hella (?P<accuracy_norm>{VALUE})$",
        "train": rf"{STEP} train {TRAIN_LOSS}$",
    },
    "build-nanogpt's terminal": {
        "train": rf"step +{STEP} \| loss: {TRAIN_LOSS} \| lr {VALUE} "
                 rf"\| norm: (?P<grad_norm_l2_preclip>{VALUE}) \| dt: {VALUE} "
                 rf"\| tok/sec: (?P<tokens_per_sec>{VALUE})",
    },
    "modded-nanogpt": {
        "val": rf"step:{STEP}/\d+ val_loss:{VAL_LOSS}",
        "train": rf"step:{STEP}/\d+ train_loss:{TRAIN_LOSS}",
    },
    "llm.c": {
        "val": rf"s:{STEP} tel:{VAL_LOSS}",
        "hellaswag": rf"s:{STEP} eval:(?P<accuracy_norm>{VALUE})",
        "train": rf"s:{STEP} trl:{TRAIN_LOSS}",
    },
}
UNRECORDED = "{}'s log: its seed, settings, data, code and end are not recorded"


class UnknownSeed(int):
    """A number that differs between logs of different contents, so that no two of them count as a pair."""

    def __str__(self):
        return "not recorded"


def read_log(path) -> dict:
    """A log as runs.read_run gives a run, and "log": what is not recorded. ValueError when it is
    none of READERS'."""
    path, notes = Path(path), []
    text, seed = read_text(path)
    lines = {project: records_in(text, patterns) for project, patterns in READERS.items()}
    project = max(lines, key=lambda name: len(lines[name]))
    if not lines[project]:
        raise ValueError(f"{path} is no log of {', '.join(READERS)}: name one of those, or a run's "
                         "folder.")
    streams = trimmed(lines[project], notes)
    train, val = streams.pop("train", {}), streams.pop("val", {})
    last = max(step for records in (train, val, *streams.values()) for step in records)
    losses = [record["val_loss"] for record in val.values()]
    row = {"final_val_loss": losses[-1], "best_val_loss": min(losses)} if losses else {}
    unrecorded = "; ".join([UNRECORDED.format(project), *notes])
    name = f"{path.resolve().parent.name}/{path.name}"
    config = {key: {} for key in ("data", "code", "model", "parameters", "hardware", "versions")}
    return {
        "folder": path, "name": name, "log": unrecorded, "notes": notes, "seed": seed, "flags": {},
        "config": config, "summary": {"steps": last, "results_row": row}, "gsm8k": None,
        "train": arrays(train), "val": val, "benchmarks": streams,
    }


def read_text(path: Path) -> tuple[str, UnknownSeed]:
    """A log's text, and the number that stands for its seed. PowerShell's > writes UTF-16."""
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path} has {size:,} bytes, more than a log: name another, or a run's folder.")
    data, encoding = path.read_bytes(), "utf-8-sig"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    text = data.decode(encoding, errors="replace").replace("\r\n", "\n")
    return text, UnknownSeed(-1 - zlib.crc32(data))


def records_in(text: str, patterns: dict[str, str]) -> list[tuple[str, dict]]:
    """(stream, record) of every line that fits, in the log's order."""
    lines = []
    for stream, pattern in patterns.items():
        for match in re.finditer(f"^{RANK}{pattern}", text, re.MULTILINE):
            record = {name: number(value) for name, value in match.groupdict().items()}
            lines.append((match.start(), stream, record | {"step": int(match["step"])}))
    return [line[1:] for line in sorted(lines, key=lambda line: line[0])]


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def trimmed(lines: list[tuple[str, dict]], notes: list[str]) -> dict[str, dict[int, dict]]:
    """{stream: {step: record}}. Of a run that started again, from its beginning or a checkpoint,
    what it had from there on does not count."""
    streams: dict[str, dict] = {}
    last, starts = {}, []
    for stream, record in lines:
        step = record["step"]
        if step <= last.get(stream, -1):
            starts.append(step)
            for name, own in streams.items():
                streams[name] = {s: r for s, r in own.items() if s < step}
            last = {name: max(own, default=-1) for name, own in streams.items()}
        streams.setdefault(stream, {})[step] = record
        last[stream] = step
    if starts:
        steps = ", ".join(map(str, starts[:5]))
        notes.append(f"it starts again {len(starts)} times (at step {steps}); what it had from there "
                     "on is left out")
    return {stream: records for stream, records in streams.items() if records}


def arrays(train: dict[int, dict]) -> dict:
    """Field -> float array over the steps; NaN is what the log lacks."""
    import numpy as np

    table = {}
    for field in runs.TRAIN_FIELDS:
        values = [record.get(field, math.nan) for record in train.values()]
        table[field] = np.array(values, float)
    return table
