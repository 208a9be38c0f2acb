"""exams.py owns unfinished evaluations of a checkpoint: what is done is kept, so that the same command goes on there;
and which record of a step says more than another.

The folder gsm8k_partial or hellaswag_partial_000500 in an exam's output has a file per rank, rank0000.jsonl, of a line
per finished piece of work: {"check", "id", ...}. Lines are only ever appended. check: of the record and of all that
decides it, so that nothing else is taken over: no work of other weights, items or settings, no torn or altered line.
While somebody is at work, the folder's .lock says who.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lab import disk, processes, runs


class Work(NamedTuple):
    """done: {id: record} of earlier tries, the same on every rank. save(records): keeps what this rank has finished.
    stop.asked: whether to end after the batch."""

    done: dict[str, dict] = {}
    save: Callable[[list[dict]], None] = lambda records: None
    stop: processes.StopRequest | None = None


def check_of(key: str, record: dict) -> str:
    return hashlib.sha256((key + json.dumps(record)).encode()).hexdigest()[:16]


def read_done(folder: Path, key: str) -> dict[str, dict]:
    """{id: record} of what was saved under this key, on however many ranks."""
    done = {}
    for path in sorted(folder.glob("rank*.jsonl")):
        for record in runs.read_jsonl(path, notes=[]):  # leaves out torn lines
            if record.pop("check", None) == check_of(key, record):
                done[record["id"]] = record
    return done


@contextlib.contextmanager
def unfinished(procs: processes.Processes, out, name: str, decisive, resume: bool = True,
               dry_run: bool = False) -> Iterator[Work]:
    """Work that is kept in out/name until this is left without an error: leave it when the results are written. A
    caller that stops because of stop.asked raises KeyboardInterrupt. out None: nothing is kept.

    decisive: JSON of all that decides a record. resume: take over what is done. dry_run: the script ends here, where
    its work would begin. ValueError on every rank when `out` cannot be written, or another process has the same exam in
    it."""
    if dry_run:
        procs.print("checkpoint, settings and data are in order; nothing was scored.")
        sys.exit(0)
    if out is None:
        with stoppable("nothing is kept", "nothing was written") as stop:
            yield Work(stop=stop)
        return
    key = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
    folder, files, writers = Path(out) / name, contextlib.ExitStack(), []

    def open_folder() -> dict[str, dict]:
        disk.make_folder(out, "--out")
        try:
            files.enter_context(disk.hold(folder))
        except ValueError as error:
            advice = "pass another --out, or --no_store"
            raise ValueError(str(error).replace("choose another --out_dir", advice)) from None
        if not resume:
            drop(folder)
        return read_done(folder, key)

    def save(records: list[dict]) -> None:
        if not writers:
            writers.append(runs.LineWriter(folder / f"rank{procs.rank:04d}.jsonl"))
            files.callback(writers[0].close)
            writers[0].write_line("")  # ends a line that a kill has torn
        lines = [json.dumps({"check": check_of(key, record), **record}) for record in records]
        writers[0].write_line("\n".join(lines))

    try:
        with stoppable("what is done is kept", "run the same command again to go on") as stop:
            done = procs.on_main(open_folder)
            if done and procs.is_main:
                print(f"continuing an interrupted exam: {len(done):,} questions are done", file=sys.stderr)
            yield Work(done, save, stop)
            if procs.is_main:
                drop(folder)
    finally:
        files.close()
        with contextlib.suppress(OSError):  # it holds work, or another process has just taken it
            folder.rmdir()


@contextlib.contextmanager
def stoppable(promise: str, then: str) -> Iterator[processes.StopRequest]:
    """A request to stop, and KeyboardInterrupts that say what to do then."""
    stop = processes.StopRequest(f"the batch is finished, {promise}")
    try:
        yield stop
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {then}.") from None
    finally:
        stop.restore()


def drop(folder: Path) -> None:
    for path in folder.glob("rank*.jsonl"):
        path.unlink()


def better_record(benchmark, folder: Path, step: int, metrics: dict) -> str | None:
    """What the record that a folder has of a step is of, if it says more than these metrics: official items beside
    synthetic ones, more items, more scores."""

    def worth(record):
        official = "(synthetic," not in str(record.get("title"))
        scores = [record.get(key.removeprefix(f"{benchmark.NAME}_")) for key, *_ in benchmark.METRICS]
        return official, runs.number(record.get("n")), sum(score is not None for score in scores)

    for record in runs.read_jsonl(folder / f"{benchmark.NAME}_metrics.jsonl", notes=[]):
        if record.get("step") == step and worth(record) > worth(metrics):
            return record.get("title") or f"{record.get('n')} items"
    return None
