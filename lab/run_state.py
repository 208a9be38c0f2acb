"""run_state.py owns one run at a glance: who trains it, how far, how long still, how large. It reads ends of files.

The state comes from the run's records and its .lock (disk.hold), and is never a guess:

    running    a living process of this host holds it
    finished   it has a summary.json
    stopped    it is free, and the last line of its log says that it was asked to stop and saved
    diverged   it is free, and the last line of its log says that its loss was not finite
    crashed    it is free, or its process is dead, and none of these
    unknown    a process of another host holds it, or its records cannot be read
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import time
from pathlib import Path

from lab import disk, runs

STATES = ("running", "finished", "stopped", "diverged", "crashed", "unknown")
STOPPED, DIVERGED = "stopped at step ", "diverged at "  # how the last line of log.txt begins (lab/training.py)
ANEW = ("--resume auto would end there again: start another run with a lower --learning_rate or a longer "
        "--warmup_iters")
TAIL = 2**19  # bytes at the end of scalars.jsonl: about a thousand steps


def look(folder: Path) -> dict | None:
    """A run as far as its files say, {"folder", "name", "state", "why", "config", "step", "steps", "train_loss",
    "val_loss", "eta" (seconds), "bytes", "moved" (seconds since 1970)}, None where unknown. None for a folder that is
    no run."""
    lock, who = disk.holder(folder)  # before the summary, which a run writes before it gives its folder back
    if not (folder / "config.json").is_file() and lock == "free":
        return None
    config, faults = {}, []
    if (folder / "config.json").is_file():
        config = read_object(folder / "config.json", faults)
    summary = {}
    if (folder / "summary.json").exists():
        summary = read_object(folder / "summary.json", faults)
    records = read_tail(folder / "scalars.jsonl")
    trained = [r for r in records if r.get("type") == "train" and isinstance(r.get("step"), int)]
    state, why = state_of(folder, lock, who, summary, faults)
    row = {"folder": folder, "name": folder.resolve().name, "state": state, "why": why, "config": config}
    flags = config.get("flags")
    row |= {"step": None, "steps": None, "train_loss": None, "eta": None}
    if isinstance(flags, dict) and isinstance(flags.get("max_train_steps"), int):
        row["steps"] = flags["max_train_steps"]
        row["step"] = 0
    if trained:
        row["step"] = trained[-1]["step"]
        row["train_loss"] = finite(trained[-1].get("train_loss_opt_step_mean"))
    row["val_loss"] = last_val_loss(folder)
    if state == "running" and row["steps"]:
        row["eta"] = seconds_left(trained, row["steps"], who)
    row["bytes"] = size_of(folder)
    row["moved"] = last_move(folder, records, config)
    return row


def read_object(path: Path, faults: list[str]) -> dict:
    """A JSON file's object; {} for a damaged one, which is added to faults."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    faults.append(f"{path.name} is damaged")
    return {}


def read_tail(path: Path) -> list[dict]:
    """The last records of a JSONL file, as many as TAIL bytes hold."""
    records = []
    with contextlib.suppress(OSError), open(path, "rb") as f:
        f.seek(max(0, f.seek(0, os.SEEK_END) - TAIL))
        for line in f.read().split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):  # torn at either end
                record = json.loads(line)
                if isinstance(record, dict):
                    records.append(record)
    return records


def state_of(folder: Path, lock: str, who: dict, summary: dict, faults: list[str]) -> tuple[str, str]:
    """(one of STATES, how that is known). lock, who: of disk.holder."""
    holder = "its .lock is not readable"
    if who:
        holder = "process {pid} on {host} since {since}".format(**who)
    if summary:
        return "finished", ""
    if lock == "held":
        return "running", holder
    if faults:
        return "unknown", " and ".join(faults)
    if lock == "unknown":
        return "unknown", holder
    if lock == "dead":
        return "crashed", f"{holder} ended without a word"
    end = last_line(folder / "log.txt")
    if end.startswith(STOPPED):
        return "stopped", ""
    if end.startswith(DIVERGED):
        return "diverged", ANEW
    return "crashed", "ended without a summary, see its log.txt"


def has_diverged(folder: Path) -> bool:
    """Whether a run that nobody trains, or this process alone, has ended because its loss was not finite."""
    return not (folder / "summary.json").exists() and last_line(folder / "log.txt").startswith(DIVERGED)


def refuse_existing(folder: Path) -> None:
    """Raises the ValueError for a new run whose folder is one already, or holds something else: it says what can be
    done about that."""
    if (folder / "config.json").exists() and has_diverged(folder):
        raise ValueError(f"{folder} already exists and has diverged; {ANEW}, and another --out_dir.")
    runs.refuse_taken(folder)


def last_line(path: Path) -> str:
    """The last line of a text file that is not blank."""
    lines = []
    with contextlib.suppress(OSError), open(path, "rb") as f:
        f.seek(max(0, f.seek(0, os.SEEK_END) - 4096))
        lines = f.read().decode(errors="replace").rstrip().split("\n")
    return lines[-1] if lines else ""


def finite(value) -> float | None:
    value = runs.number(value)
    return value if math.isfinite(value) else None


def last_val_loss(folder: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        table = runs.read_step_metrics(folder)
        for step in sorted(table, key=int, reverse=True):
            if "val_loss" in table[step]:
                return finite(table[step]["val_loss"])
    return None


def seconds_left(trained: list[dict], steps: int, who: dict) -> float | None:
    """Steps left times the seconds per step, evaluations and saves among them, since the process took the run."""
    since = -math.inf
    with contextlib.suppress(TypeError, ValueError):
        since = time.mktime(time.strptime(who["since"], "%Y-%m-%d %H:%M:%S"))
    times = [(seconds_of(record.get("timestamp")), record["step"]) for record in trained]
    times = [(at, step) for at, step in times if at is not None and at >= since]
    if len(times) < 2 or times[-1][1] <= times[0][1]:
        return None
    per_step = (times[-1][0] - times[0][0]) / (times[-1][1] - times[0][1])
    return max(0.0, per_step * (steps - times[-1][1]))


def seconds_of(timestamp) -> float | None:
    """A record's timestamp in seconds since 1970."""
    with contextlib.suppress(TypeError, ValueError):
        return datetime.datetime.fromisoformat(timestamp).timestamp()
    return None


def last_move(folder: Path, records: list[dict], config: dict) -> float | None:
    """When the run last recorded something; of a run without records, when it began."""
    times = [seconds_of(record.get("timestamp")) for record in records[-1:]]
    times = [at for at in times if at is not None]
    if times:
        return times[0]
    if config:
        return seconds_of(config.get("started"))
    with contextlib.suppress(OSError):
        return (folder / ".lock").lstat().st_mtime
    return None


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder. Links are not followed."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # a checkpoint that the run has just deleted
                total += os.lstat(os.path.join(root, name)).st_size
    return total
