"""logs.py owns what other projects print: a log of theirs as a run that recorded no more than is in it.

    python compare_runs.py --a log/log.txt --b out/train.log --allow unrecorded
    python compare_runs.py --runs 'logs/*.txt' --group_by run_id --allow unrecorded
    python compare_runs.py --runs 'logs/*.txt' --group_by attn_gate --baseline attn_gate=none

    nanoGPT (stdout)          step 250: train loss 4.5, val loss 4.6
                              iter 250: loss 4.5, time 340.12ms, mfu 30.1%
    build-nanogpt (log.txt)   250 val 4.6 | 250 hella 0.26 | 250 train 4.5
    build-nanogpt (stdout)    step   250 | loss: 4.5 | lr 6e-04 | norm: 0.4 | dt: 340ms | tok/sec: 1e6
    modded-nanogpt            step:250/1750 val_loss:4.6 train_time:15000ms (or 15.0s) | ... train_loss:4.5
    llm.c                     s:250 tel:4.6 | s:250 trl:4.5 | s:250 eval:0.26

nanochat's have no val loss, but bits per byte, which count no <|bos|>; ours do.

A reader is a row of the table below. Seeds, settings, data and code are in no such line, so the gate
(lab/ab_gate.py) calls them not recorded, and a log is one run of an unknown seed: a curve and no
evidence. Steps are counted as the log counts them.

modded-nanogpt's lines hold more: the training time, by which runs compare at equal wall-clock, and the
steps that were planned, so that a run that did not reach them is unfinished. Document 003's logs are
of this kind and begin with seed, hyperparameters (as JSON) and nvidia-smi: such a log pairs by its
seed, and its settings pass the gate like a row of a results.csv.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import re
import zlib
from collections import Counter
from pathlib import Path

from lab import results, runs

LARGEST = 2**28  # bytes; 600,000 steps of nanoGPT print 40 MB
STEP, VALUE = r"(?P<step>\d{1,12})", r"[-+.a-zA-Z0-9]+"
RANK = r"(?:\[\w+\]: ?)?"  # which torchrun may put in front
TRAIN_LOSS = rf"(?P<train_loss_opt_step_mean>{VALUE})"
VAL_LOSS = rf"(?P<val_loss>{VALUE})"
TIME = r"(?:[^\n]* train_time:(?:(?P<train_ms>[\d.]+)ms|(?P<train_seconds>[\d.]+)s))?"
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
        "val": rf"step:{STEP}/(?P<planned>\d+) val_loss:{VAL_LOSS}{TIME}",
        "train": rf"step:{STEP}/(?P<planned>\d+) train_loss:{TRAIN_LOSS}",
        "timing": rf"step:{STEP}/(?P<planned>\d+) train_time:",
    },
    "nanochat": {
        "val": rf"Step {STEP} \| Validation bpb: (?P<val_bits_per_byte>{VALUE})",
        "train": rf"step {STEP}/(?P<planned>\d+) \([\d.]+%\) \| loss: {TRAIN_LOSS} "
                 rf"[^\n]*\| tok/sec: (?P<tokens_per_sec>[\d,]+)",
    },
    "llm.c": {
        "val": rf"s:{STEP} tel:{VAL_LOSS}",
        "hellaswag": rf"s:{STEP} eval:(?P<accuracy_norm>{VALUE})",
        "train": rf"s:{STEP} trl:{TRAIN_LOSS}",
    },
}
STARTED = {"modded-nanogpt": r"^Running [Pp]y[Tt]orch .* compiled for CUDA"}  # a log that may hold no step yet
UNRECORDED = "{}'s log: its seed, settings, data, code{} are not recorded"
HYPERPARAMETERS = re.compile(r"^hyperparameters:\s*(\{.*?^\})", re.MULTILINE | re.DOTALL)
GPU = re.compile(r"^\|\s+\d+\s+(\S.*?)\s+(?:On|Off)\s+\|", re.MULTILINE)  # a line of nvidia-smi's table
TORCH = re.compile(r"^Running [Pp]y[Tt]orch (\S+)", re.MULTILINE)


class UnknownSeed(int):
    """A number that differs between logs of different contents, so that no two of them count as a pair."""

    def __str__(self):
        return "not recorded"


def read_log(path) -> dict:
    """A log as runs.read_run gives a run, and "log": what is not recorded; "status": "" for a run that has ended, as
    far as is known. ValueError when it is none of READERS'."""
    path, notes = Path(path), []
    text, seed = read_text(path)
    lines = {project: records_in(text, patterns) for project, patterns in READERS.items()}
    project = max(lines, key=lambda name: len(lines[name]))
    if not lines[project]:
        begun = [name for name, pattern in STARTED.items() if re.search(pattern, text, re.MULTILINE)]
        if not begun:
            raise ValueError(f"{path} is no log of {', '.join(READERS)}: name one of those, or a run's "
                             "folder.")
        project = begun[0]
    streams = trimmed(lines[project], notes)
    planned = {record.pop("planned", None) for records in streams.values() for record in records.values()}
    streams.pop("timing", None)
    train, val = streams.pop("train", {}), streams.pop("val", {})
    last = max((step for records in (train, val, *streams.values()) for step in records), default=0)
    status, end = "", " and end"
    if project in STARTED:
        status, end = status_of(val, last, planned - {None}), ""
    flags, config = header_of(text)
    seed = flags.get("seed", seed)
    summary = {"steps": last, "results_row": row_of(val, config)}
    unrecorded = "; ".join([UNRECORDED.format(project, end), *notes])
    return {
        "folder": path, "name": f"{path.resolve().parent.name}/{path.name}",
        "log": unrecorded, "status": status, "notes": notes, "seed": seed, "flags": flags,
        "config": config, "summary": None if status else summary, "gsm8k": None,
        "train": arrays(train), "val": val, "benchmarks": streams,
    }


def status_of(val: dict, last: int, planned: set) -> str:
    """What is amiss with a run whose log names the steps that were planned: "" when its last one was scored."""
    goal = int(max(planned, default=0))
    if goal and goal in val:
        return ""
    if not goal:
        return "unfinished, before its first step"
    return f"unfinished, at step {last} of {goal}"


def row_of(val: dict, config: dict) -> dict:
    """The results of a log under the names of a results.csv."""
    row = {}
    if config["hardware"]:
        row = {"gpu_name": config["hardware"]["gpu"], "n_gpus": config["world_size"]}
    losses = [record["val_loss"] for record in val.values() if "val_loss" in record]  # nanochat has bits per byte alone
    if losses:
        row |= {"final_val_loss": losses[-1], "best_val_loss": min(losses)}
        *_, last = val.values()
        if "train_seconds" in last:
            row["train_time_ms"] = round(1000 * last["train_seconds"])
    return row


def header_of(text: str) -> tuple[dict, dict]:
    """(flags, config) that document 003's logs begin with: hyperparameters under our flags' names, and the hardware."""
    config: dict = {key: {} for key in ("data", "code", "model", "parameters", "hardware", "versions")}
    gpus, torch = Counter(GPU.findall(text)), TORCH.search(text)
    if len(gpus) == 1:
        (config["hardware"]["gpu"], config["world_size"]), = gpus.items()
        config["versions"]["torch"] = torch and torch[1]
    settings, found = None, HYPERPARAMETERS.search(text)
    with contextlib.suppress(ValueError, RecursionError):
        settings = json.loads(found[1]) if found else None
    if not isinstance(settings, dict) or not isinstance(settings.get("seed"), int):
        return {}, config
    flags = {results.FLAG_OF.get(name, name): value for name, value in settings.items()}
    for name in [name for name in flags if results.trainer_flags().fullmatch(name) is None]:
        flags.pop(name)  # where the data is, and what our trainer calls otherwise
    sequences, length = (runs.number(settings.get(name)) for name in ("batch_size", "sequence_length"))
    if sequences * length > 0:
        flags["total_batch_tokens"] = config["tokens_per_step"] = int(sequences * length)
    return flags, config


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
            record = {name: number(value) for name, value in match.groupdict().items() if value}
            if "train_ms" in record:
                record["train_seconds"] = record.pop("train_ms") / 1000
            lines.append((match.start(), stream, record | {"step": int(match["step"])}))
    return [line[1:] for line in sorted(lines, key=lambda line: line[0])]


def number(text: str) -> float:
    try:
        return float(text.replace(",", ""))
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
