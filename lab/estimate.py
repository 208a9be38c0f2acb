"""estimate.py owns what a run will cost: one measured micro-step, time and memory and disk, the time that is left.

    cost = estimate.measure(micro_step, update, model, optimizers, rows=8, device=device)   # leaves no trace
    pace = estimate.Pace(last_step, {"val": 250}, guesses=guesses)          # guesses: seconds of what was not seen yet
    pace.mark("step"); pace.mark("val")                                     # at the end of each
    pace.seconds_left(step)

Nothing here can change a result: generators and learning rates are put back, gradients and optimizer states dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lab import processes, units

SLOW = 5.0  # seconds; a micro-step that takes longer on CPU is extrapolated from one row
QUICK = 0.5  # seconds; a micro-step that takes less is timed once more: the first of its size takes memory
DAY = 86_400
FORWARD_SHARE = 1 / 3  # of a training step's work per token: the backward pass does twice as much
SAVE_SPEED = 200e6  # bytes per second of a checkpoint, with sync and checksum (assumption, until one was saved)
NO_MEMORY = re.compile(r"out of memory|not enough memory|can(no|')t allocate memory", re.IGNORECASE)

# ----------------------------------------------------------------------------------------------------------------------
# time that is left


class Pace:
    """How long each kind of a run's work takes, and so how long the rest of it will take.

    every: {kind: steps between two of its kind}, 0 for none; "step" is added. at_end: kinds that also follow the last
    step; at_start: those that come before the first. Between two marks all time counts for the
    second one's kind, so nothing is left out."""

    def __init__(self, last_step: int, every: dict, at_end=(), at_start=(), guesses=None,
                 clock=time.perf_counter):
        self.last_step, self.every = last_step, {"step": 1, **every}
        self.at_end, self.at_start = set(at_end), set(at_start)
        self.guesses, self.clock = guesses or {}, clock
        self.sums = {kind: [0.0] for kind in self.every}  # seconds of the first n of each kind
        self.compile_seconds = 0.0  # before the first step
        self.start()

    def start(self) -> None:
        """Leaves out the time until now."""
        self.since = self.clock()

    def mark(self, kind: str) -> None:
        """Something of this kind has just ended."""
        now = self.clock()
        sums = self.sums[kind]
        sums.append(sums[-1] + now - self.since)
        self.since = now

    def seconds(self, kind: str) -> float:
        """Expected seconds of one: the mean of the later half of those seen, without the first, which warms up."""
        sums = self.sums[kind]
        n = len(sums) - 1
        if n == 0 or (n == 1 and kind == "step" and kind in self.guesses):
            return self.guesses.get(kind, 0.0)
        first = max(n // 2, min(1, n - 1))
        return (sums[n] - sums[first]) / (n - first)

    def count(self, kind: str, step: int) -> int:
        """How often a kind is still due after `step` steps, when nothing of what follows the last of them is done."""
        if kind == "step":
            return self.last_step - step
        every, n = self.every[kind], 0
        if every > 0:
            n = self.last_step // every - max(step - 1, 0) // every
        if kind in self.at_end and (every <= 0 or self.last_step % every):
            n += 1
        if step == 0 and kind in self.at_start:
            n += 1
        return n

    def seconds_left(self, step: int) -> float:
        return sum(self.count(kind, step) * self.seconds(kind) for kind in self.every)


# ----------------------------------------------------------------------------------------------------------------------
# one micro-step


@dataclass
class Cost:
    micro_step: float  # seconds of forward and backward of `rows` rows
    update: float  # seconds of what follows the micro-steps of a step
    memory: float  # bytes at the peak; on CPU of the whole process
    checkpoint: int  # bytes
    compile: float = 0.0  # seconds of the first micro-step beyond those of another


def checkpoint_bytes(model, optimizers) -> int:
    """About how large a checkpoint is: weights, and what the optimizers keep."""
    tensors = list(model.parameters())
    for optimizer in optimizers:
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if torch.is_tensor(value)]
    return int(1.05 * sum(t.numel() * t.element_size() for t in tensors)) + 2**20


def measure(micro_step, update, model, optimizers, rows: int, device, sizes=(), compiled=False) -> Cost:
    """Times micro_step(rows), forward and backward of so many rows, and update(), a step at learning rate 0.

    One slow row on CPU stands for all of them, unless it would be compiled by itself. ValueError that names the largest
    of `sizes`, other numbers of rows, which fits when memory does not suffice."""

    def seconds_of(function, *values) -> float:
        started = time.perf_counter()
        function(*values)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def clear() -> None:
        model.zero_grad(set_to_none=True)
        for optimizer in optimizers:
            optimizer.state.clear()

    is_cuda, is_training = device.type == "cuda", model.training
    devices = []
    if is_cuda:
        devices = [device]
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    model.train()
    with torch.random.fork_rng(devices):
        try:
            before = processes.peak_rss_bytes()
            few = rows
            if device.type == "cpu" and not compiled:
                few = 1
            first = micro = seconds_of(micro_step, few) * rows / few
            one_row = processes.peak_rss_bytes() - before
            # again: the first one also starts torch's kernels, and compiles
            if compiled or (few < rows and micro < rows * SLOW):
                micro = seconds_of(micro_step, few) * rows / few
            of_update = seconds_of(update)  # the optimizers' memory is taken from here on
            checkpoint = checkpoint_bytes(model, optimizers)
            if micro < SLOW or is_cuda or compiled:
                micro = seconds_of(micro_step, rows)
                if micro < QUICK:
                    micro = seconds_of(micro_step, rows)
                one_row = 0
            memory = processes.peak_rss_bytes() + one_row * (rows - 1)
            if is_cuda:
                memory = torch.cuda.max_memory_allocated()
        except (RuntimeError, MemoryError) as error:
            if not is_no_memory(error):
                raise
            error.__traceback__ = None  # it holds the tensors of the pass
            raise ValueError(advise_size(micro_step, clear, rows, sizes)) from None
        finally:
            clear()
            model.train(is_training)
            for optimizer, of_groups in zip(optimizers, rates, strict=True):
                for group, rate in zip(optimizer.param_groups, of_groups, strict=True):
                    group["lr"] = rate
            if is_cuda:
                torch.cuda.reset_peak_memory_stats()
    return Cost(micro, of_update, memory, checkpoint, max(0.0, first - micro) if compiled else 0.0)


# ----------------------------------------------------------------------------------------------------------------------
# memory


# Tokens of a micro-step from which on what each one costs anew, casts of the weights and sums of gradients, no longer
# counts (assumption)
ENOUGH_TOKENS = {"cuda": 65_536, "cpu": 8192}
# bytes that the backward pass needs per token, layer and channel: of the widest arm, compiled, in bfloat16 (measured)
ACTIVATIONS = 54
SPARE = 2e9  # bytes for logits, casts and fragments (assumption)


def guess_rows(args, device, sizes) -> int:
    """The largest of sizes, numbers of rows, that is worth it and should fit into the device's memory."""
    most = ENOUGH_TOKENS.get(device.type, ENOUGH_TOKENS["cpu"])
    if device.type == "cuda":
        channels = args.n_layer * args.n_embd
        weights = 12 * channels * args.n_embd + args.vocab_size * args.n_embd
        room = 0.9 * total_memory(device) - 20 * weights - SPARE  # 20: with gradients, moments, and all to be summed
        most = min(most, room / (ACTIVATIONS * channels))
    return max((size for size in sizes if size * args.seq_len <= most), default=1)


def fit_rows(procs, micro_step, model, rows: int, sizes) -> tuple[int, float]:
    """rows, or the next of sizes of half as many, and so on, until micro_step(rows) fits into every rank's memory; and
    the seconds that the last one took, compiling included."""
    started = time.perf_counter()
    while rows > 1:
        started, fits = time.perf_counter(), True
        try:
            micro_step(rows)
        except (RuntimeError, MemoryError) as error:
            if not is_no_memory(error):
                raise
            error.__traceback__ = None  # it holds the tensors of the pass
            fits = False
        model.zero_grad(set_to_none=True)
        if all(procs.gather(fits)):
            break
        rows = max((size for size in sizes if size <= rows // 2), default=1)
        torch._dynamo.reset()  # or the next shape would make graphs for any
        if procs.device.type == "cuda":
            torch.cuda.empty_cache()
    return rows, time.perf_counter() - started


def is_no_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None


def advise_size(micro_step, clear, rows: int, sizes) -> str:
    """A sentence that names the largest of sizes that fits, found by trying."""
    smaller, size = sorted(size for size in sizes if size < rows), rows
    while smaller:
        half = [other for other in smaller if other <= size // 2]
        size = (half or smaller)[-1]
        smaller = [other for other in smaller if other < size]
        clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            micro_step(size)
        except (RuntimeError, MemoryError) as error:
            if not is_no_memory(error):
                raise
            error.__traceback__ = None
            continue
        return (f"--micro_batch_size {rows} does not fit into memory: pass --micro_batch_size {size}, "
                "which does; the results stay the same.")
    return (f"--micro_batch_size {rows} does not fit into memory, nor does any smaller one: lower "
            "--seq_len, --n_layer or --n_embd, or use a device with more memory.")


@contextlib.contextmanager
def naming(flag: str, args, sizes=()):
    """Turns out-of-memory errors of the block into a sentence that names a flag of args and what should fit: half as
    much, of `sizes` when only they can be chosen."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_no_memory(error):
            raise
        error.__traceback__ = None
        size = getattr(args, flag)
        half = max((other for other in sizes or range(1, size) if other <= size // 2), default=0)
        advice = f"pass --{flag} {half} (estimated: half as much), which changes no result"
        if not half:
            advice = "close other programs, or use a device with more memory"
        raise ValueError(f"--{flag} {size} does not fit into memory: {advice}; --resume auto goes on "
                         "from the last checkpoint, if there is one.") from None


def total_memory(device) -> int | None:
    """Bytes of the device's memory; None where it is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


# ----------------------------------------------------------------------------------------------------------------------
# what is printed before the first step


def tokens_of(items: list[dict]) -> float:
    """About how many tokens a benchmark's items have, four characters each."""
    return sum(len(json.dumps(item, default=str)) for item in items) / 4


def report(args, cost: Cost, pace: Pace, device, advice: str) -> list[str]:
    """Lines for the log: seconds per step, total time, memory, disk; warnings where something will not suffice.
    advice: what to do when it would take days without a GPU."""
    step = pace.seconds("step")
    total = pace.seconds_left(0)
    others = total - step * args.max_train_steps
    times = f"about {units.duration(step)} per step"
    lines = [f"measured: {times}, {units.duration(total)} in all, {units.duration(others)} of it evaluations and saves"]
    if cost.compile:
        lines.append(f"compiled in {units.duration(cost.compile)}, which count as no step's")
    if device.type != "cuda" and total > DAY:
        lines.append(f"WARNING: {times} here, {units.duration(total)} in all; {advice}")
    free = free_bytes(args.out_dir)
    kept = pace.count("save", 0)
    if args.keep_last:
        kept = min(kept, args.keep_last)
    disk = kept * cost.checkpoint
    memory = total_memory(device)
    of_memory = "" if memory is None else f" of {units.size(memory)}"
    lines.append(f"memory about {units.size(cost.memory)}{of_memory} | disk {units.size(disk)} for "
                 f"{units.count(kept, 'checkpoint')} of {units.size(cost.checkpoint)}, {units.size(free)} free")
    if memory is not None and cost.memory > 0.95 * memory:
        fits = max(1, int(args.micro_batch_size * 0.9 * memory / cost.memory))
        lines.append("WARNING: memory will hardly suffice: pass --micro_batch_size "
                     f"{fits} (estimated), which changes no result.")
    missing = disk + cost.checkpoint - free  # one more is there while the next is written
    if missing > 0:
        lines.append(f"WARNING: the disk will be full before the end: free {units.size(missing)}, "
                     "or keep fewer checkpoints with --keep_last or --save_every.")
    return lines


def free_bytes(folder) -> int:
    """Free bytes of the disk where a folder is, or will be made."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
