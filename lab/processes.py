"""processes.py owns ranks and what they run on: collectives, stop requests, the machine, its peak FLOP/s."""

from __future__ import annotations

import math
import os
import platform
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

# ----------------------------------------------------------------------------------------------------------
# processes


def tune_allocator() -> bool:
    """Let glibc keep big buffers instead of returning them to the kernel after every step. True when it took effect.

    Fresh 100-400 MB buffers page-fault on every step; keeping them is worth 1.17-1.32x on CPU (measured, 6 layers,
    n_embd 384). Linux with glibc only; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    import ctypes

    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_threshold = -1, -3
    limit = 2**31 - 1 - 4096
    return bool(libc.mallopt(m_mmap_threshold, limit)) and bool(libc.mallopt(m_trim_threshold, limit))


class SharedError(ValueError):
    """Raised on every rank alike: rank 0 says it for all."""


@dataclass
class Processes:
    """This process among its peers, and the few collectives the scripts need. With one process none communicates."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks, in place; returns it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, value):
        """Rank 0's Python value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value) -> list:
        """Every rank's Python value, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        box = [None] * self.world_size
        dist.all_gather_object(box, value)
        return box

    def on_main(self, function):
        """Run function() on rank 0 and give its result to all; an error there is raised everywhere, so nobody waits."""
        result, error = None, None
        if self.is_main:
            try:
                result = function()
            except (Exception, SystemExit) as e:
                error = e
        result, message = self.broadcast((result, None if error is None else str(error)))
        if message is not None:
            raise SharedError(message) from error
        return result

    def close(self) -> None:
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def spread(procs, items: list, work) -> list | None:
    """Results of an evaluation in the order of `items`, on every rank, each item done by one rank.

    work(this rank's items) returns one picklable result per item, or None when it was asked to stop; None on any rank
    is None on all. A ValueError on one rank is raised on every rank, so that nobody waits for it. procs: Processes.
    """
    share, message = None, None
    try:
        share = work(items[procs.rank :: procs.world_size])
    except ValueError as error:
        message = str(error)
    shares = procs.gather((share, message))
    if messages := [message for _, message in shares if message is not None]:
        raise SharedError(messages[0])
    if any(share is None for share, _ in shares):
        return None
    results = [None] * len(items)
    for rank, (share, _) in enumerate(shares):
        results[rank :: procs.world_size] = share
    return results


def start_processes(device: str = "auto") -> Processes:
    """Join torchrun's process group (NCCL on CUDA, gloo on CPU), or be the only process.

    device: auto (CUDA when there is one, else CPU), cpu, cuda, mps. Raises ValueError when it is not available.
    """
    rank, local_rank, world = (
        int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("--device cuda: this torch sees no CUDA device; use --device cpu or install a CUDA build.")
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"local rank {local_rank} has no GPU ({torch.cuda.device_count()} found): lower --nproc_per_node."
            )
        torch.cuda.set_device(local_rank)
        where = torch.device("cuda", local_rank)
    elif device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: this machine has no Metal device; use --device cpu.")
    else:
        where = torch.device(device)
    if world > 1:
        backend = "nccl" if where.type == "cuda" else "gloo"
        dist.init_process_group(backend, device_id=where if where.type == "cuda" else None)
    return Processes(rank, local_rank, world, where)


class StopRequest:
    """SIGTERM and the first ctrl-C ask the run to finish its step, save and leave; a second ctrl-C leaves at once."""

    def __init__(self):
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number, frame):
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


# ----------------------------------------------------------------------------------------------------------
# the machine


def machine_state(device: torch.device) -> dict:
    """{"versions": ..., "hardware": ...} as far as this machine tells."""
    import numpy

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__,
                     "cuda": torch.version.cuda},
        "hardware": {"host": platform.node(), "system": platform.platform(), "cpu": cpu, "cpu_count": os.cpu_count(),
                     "torch_threads": torch.get_num_threads(), "gpu": gpu},
    }  # fmt: skip


# dense bf16 tensor-core peaks from the vendors' data sheets, FLOP/s
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "3090": 71e12,
}


def peak_flops(device: torch.device) -> float:
    """FLOP/s that MFU is measured against: the data sheet's dense bf16 peak on a known GPU, a measured fp32 matrix
    product on CPU, NaN elsewhere (then MFU is null; pass --peak_flops)."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((flops for key, flops in PEAK_FLOPS.items() if key in name), math.nan)
    if device.type != "cpu":
        return math.nan
    n, best = 1024, math.inf
    a, b, c = torch.ones(n, n), torch.ones(n, n), torch.empty(n, n)
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b, out=c)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def peak_rss_bytes() -> int:
    """The most memory this process has held so far, bytes."""
    import resource

    # in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
