"""processes.py owns ranks and what they run on: collectives, how a script ends, the machine and its peak FLOP/s.

torch is imported where it is used, so that scripts without it end in the same way.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import math
import os
import platform
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lab import disk

if TYPE_CHECKING:
    import torch

# ----------------------------------------------------------------------------------------------------------------------
# ranks


# for another rank, such as rank 0 while it checks or reads all data; NCCL's own is ten minutes
LONGEST_WAIT = datetime.timedelta(hours=2)
PIECE = 2**26  # bytes of an array that are sent at once
SECONDS_FOR_MAIN = 3.0  # that another rank waits before it exits, for rank 0 to print what has gone wrong


class SharedError(ValueError):
    """An error that every rank raises; only rank 0 prints it."""


class DivergedError(SharedError):
    """A loss that is not finite: to resume would end in it again."""


@dataclass
class Processes:
    """This process among its peers, and the collectives that the scripts need. One process alone never communicates."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: torch.device | None = None
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # folders, until close()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks, in place; returns it."""
        if self.world_size > 1:
            import torch

            torch.distributed.all_reduce(tensor)
        return tensor

    def share(self, tensors) -> None:
        """Rank 0's tensors on every rank, in place."""
        if self.world_size > 1:
            import torch

            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def broadcast(self, value):
        """Rank 0's Python value on every rank."""
        box = [value]
        if self.world_size > 1:
            import torch

            torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value) -> list:
        """Every rank's Python value, in rank order, on every rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            import torch

            torch.distributed.all_gather_object(values, value)
        return values

    def on_main(self, function):
        """Rank 0's function() on every rank. An error there is raised on all, so that no rank waits for it: a user's
        mistake as a SharedError; a fault of ours, and a missing package, is raised on rank 0 as it is."""
        result, error, message = None, None, None
        if self.is_main:
            try:
                result = function()
            except (Exception, SystemExit) as caught:
                error, message = caught, str(caught)
        result, message = self.broadcast((result, message))
        if error is not None and not isinstance(error, (ValueError, OSError, SystemExit)):
            raise error
        if message is not None:
            raise SharedError(message) from error
        return result

    def arrays_from_main(self, function) -> dict:
        """As on_main, for a dict of which the NumPy arrays may be large: they are sent as they are, in pieces. Pickled,
        they would take several times their memory, on a GPU, too."""
        import numpy as np
        import torch

        data = {}

        def outline() -> tuple[dict, dict]:
            """(dtype and shape of each array, everything else)"""
            data.update(function())
            arrays = {name: (value.dtype, value.shape) for name, value in data.items() if isinstance(value, np.ndarray)}
            return arrays, {name: value for name, value in data.items() if name not in arrays}

        arrays, others = self.on_main(outline)
        if self.world_size == 1:
            return data
        data |= others
        for name, (dtype, shape) in arrays.items():
            if not self.is_main:
                data[name] = np.empty(shape, dtype)
            flat = np.ascontiguousarray(data[name]).reshape(-1).view(np.uint8)
            for piece in torch.from_numpy(flat).split(PIECE):
                sent = piece.to(self.device)
                self.share([sent])
                if not self.is_main:
                    piece.copy_(sent)
        return data

    def main_first(self, function):
        """function() on rank 0 and, once that is done, on the others; each keeps its own result.

        For work that the others can rely on, such as verified or downloaded files. An error on rank 0 is raised on all.
        """
        results = []

        def work():
            results.append(function())

        self.on_main(work)
        if not self.is_main:
            work()
        return results[0]

    def print(self, text: str) -> None:
        """Print on rank 0."""
        if self.is_main:
            print(text)

    def hold(self, folder) -> None:
        """Let no other process write into a folder until close(); see disk.hold. Its error is raised on all ranks."""
        self.on_main(lambda: self.held.enter_context(disk.hold(folder)))

    def close(self) -> None:
        self.held.close()
        if self.world_size > 1:
            import torch

            torch.distributed.destroy_process_group()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Closes. A rank that fails alone does not take its leave of the others: with NCCL it would wait for them, as
        they do for it, and never say why (pytorch's pull request 141510). torchrun ends them when it is gone."""
        if error is None or isinstance(error, SharedError):
            self.close()
        else:
            self.held.close()


def spread(procs: Processes, items: list, work) -> list | None:
    """Results of an evaluation in the order of `items`, on every rank; each item is done by one rank.

    work(this rank's items) returns one picklable result per item, or None when it was asked to stop; then all ranks
    return None. A ValueError on one rank is raised on every rank, so that no rank waits for it.
    """
    share, message = None, None
    try:
        share = work(items[procs.rank :: procs.world_size])
    except ValueError as error:
        message = str(error)
    shares, messages = zip(*procs.gather((share, message)), strict=True)
    for message in messages:
        if message is not None:
            raise SharedError(message)
    if any(share is None for share in shares):
        return None
    results = [None] * len(items)
    for rank, share in enumerate(shares):
        results[rank :: procs.world_size] = share
    return results


def show_progress(batches, total: int, name: str, procs):
    """The batches, with a bar on rank 0 when stderr is a terminal."""
    from tqdm import tqdm

    disable = None if procs.is_main else True
    return tqdm(batches, name, total, leave=False, dynamic_ncols=True, disable=disable)


def start_processes(device: str = "auto") -> Processes:
    """Join torchrun's process group (NCCL on CUDA, gloo on CPU), or be the only process.

    device: auto (CUDA when there is one, else CPU), cpu, cuda or mps. ValueError when this machine has none.
    """
    import torch

    rank = int(os.environ.get("RANK") or 0)
    local_rank = int(os.environ.get("LOCAL_RANK") or 0)
    world_size = int(os.environ.get("WORLD_SIZE") or 1)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if missing.get(device):
        raise ValueError(f"--device {device}: this torch sees no such device; use --device cpu.")
    where, backend, bound = torch.device(device), "gloo", None
    if device == "cuda":
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise ValueError(f"rank {local_rank} has no GPU ({count} found): lower --nproc_per_node.")
        where = torch.device("cuda", local_rank)
        backend, bound = "nccl", where
        torch.cuda.set_device(where)
    if world_size > 1:
        torch.distributed.init_process_group(backend, device_id=bound, timeout=LONGEST_WAIT)
    return Processes(rank, local_rank, world_size, where)


# ----------------------------------------------------------------------------------------------------------------------
# how a script ends


def leave_to_main() -> None:
    """Ends this process, with status 1, unless it is rank 0, which prints the sentence that all would.

    It waits first: torchrun ends all ranks when one has failed, and rank 0 must have printed by then."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(SECONDS_FOR_MAIN)
        sys.exit(1)


class StopRequest:
    """SIGTERM, a closed terminal (SIGHUP) and the first ctrl-C ask a script to finish its step, save and exit, which
    rank 0 says at once; a second ctrl-C exits at once. Under nohup a closed terminal asks nothing.

    promise: what is still done, as a sentence's second half."""

    def __init__(self, promise: str = "what is being computed is finished first"):
        self.asked, self.promise = False, promise
        self.previous = {}
        numbers = [signal.SIGTERM, signal.SIGINT]
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup and signal.getsignal(hangup) != signal.SIG_IGN:
            numbers.append(hangup)
        if threading.current_thread() is threading.main_thread():  # no other may handle signals
            for number in numbers:
                self.previous[number] = signal.signal(number, self._ask)

    def _ask(self, number, frame):
        if number == signal.SIGINT:
            CTRL_C.add(number)
            if self.asked:
                raise KeyboardInterrupt
        is_first, self.asked = not self.asked, True
        if is_first and os.environ.get("RANK", "0") == "0":
            self._say(number)

    def _say(self, number: int) -> None:
        """Past the buffers, which this may have interrupted in the middle of a write."""
        asked, warning = "ctrl-C", "ctrl-C again stops at once"
        if number != signal.SIGINT:
            asked = signal.Signals(number).name
        if "TORCHELASTIC_RUN_ID" in os.environ:
            warning = "torchrun kills what takes longer than 30 seconds and ends with status 1 in any case"
        with contextlib.suppress(OSError):
            os.write(2, f"\n{asked}: {self.promise}; {warning}.\n".encode())

    def restore(self) -> None:
        """Put the earlier signal handlers back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class Output:
    """stdout or stderr that may go away, as `| head` and a closed terminal do: what is printed after that is lost, and
    the script goes on. It goes on without a disk for `> file`, too, but keeps the error in `fault`, with which
    exit_in_a_sentence ends. What its encoding lacks is escaped."""

    def __init__(self, stream):
        self.stream, self.fault = stream, None

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        try:
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._discard(error)
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        """Send what is buffered and all that follows to /dev/null, as the interpreter flushes once more at its end."""
        with contextlib.suppress(OSError):
            is_file = stat.S_ISREG(os.fstat(self.stream.fileno()).st_mode)
            gone = {errno.EPIPE, errno.ECONNRESET}
            if not is_file:
                gone.add(errno.EIO)  # a closed terminal
            if error.errno not in gone:
                self.fault = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


def outlive_output() -> None:
    """Let a script go on when what it prints to goes away, or was closed from the beginning."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")
        if not isinstance(stream, Output):
            setattr(sys, name, Output(stream))


def lost_output(name: str) -> str | int:
    """The sentence for a script whose work is done, but whose print a file or disk did not take; 0 if it did."""
    sys.stdout.flush()
    fault = getattr(sys.stdout, "fault", None)
    if fault is None:
        return 0
    return (f"{name}: the work is done, but stdout could not be written ({fault.strerror or fault}): "
            "free space where it goes, then run the command again for what is missing there.")


CTRL_C: set[int] = set()  # not empty once ctrl-C has asked this process to stop


def pass_on_ctrl_c() -> None:
    """Ends the process by SIGINT itself, where it is a terminal's foreground job: a shell goes on with its loop or
    script after any exit status, but stops when ctrl-C has killed its job. Elsewhere (a sweep's run, a scheduler's, a
    rank of torchrun) nothing happens."""
    if "RANK" in os.environ:
        return
    with contextlib.suppress(OSError, AttributeError):  # no terminal; Windows
        if os.tcgetpgrp(0) == os.getpgrp():
            print(end="", flush=True)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)


def not_begun(number, frame) -> None:
    os.write(2, b"\nstopped before it began: nothing was written.\n")
    pass_on_ctrl_c()
    os._exit(130)


def expect_ctrl_c() -> None:
    """Until begin(), while modules are imported, ctrl-C ends the process in a sentence."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, not_begun)


def begin() -> None:
    """From now on ctrl-C is a KeyboardInterrupt again."""
    handler = signal.getsignal(signal.SIGINT)
    if getattr(handler, "__name__", "") == not_begun.__name__:  # of this module, or before it was imported anew
        signal.signal(signal.SIGINT, signal.default_int_handler)


def exit_in_a_sentence(main, name: str, interrupted: str = "") -> None:
    """Run a script's main() and exit with its status, or with 1 and one sentence on stderr after a user's mistake or
    without a package that it needs.

    ctrl-C exits with 130 and prints the KeyboardInterrupt's own sentence, or `interrupted`; at a terminal the process
    ends by the signal, also after a run that was asked to stop and has saved itself (pass_on_ctrl_c). An error that all
    ranks share is printed once, by rank 0. The script outlives the terminal or pipe that it prints to; when a file or
    disk did not take what was printed, it exits with 1 in the end.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    begin()
    outlive_output()
    try:
        try:
            status = main()
        except SystemExit as end:  # of argparse, too
            end.code = end.code or lost_output(name)
            raise
        status = status or lost_output(name)
        if CTRL_C and not status:
            pass_on_ctrl_c()
        sys.exit(status)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "lab"):  # a fault of ours
            raise
        sys.exit(f"{name}: the package {package} is missing: pip install {package}, then run the command again.")
    except (ValueError, OSError) as error:
        if isinstance(error, SharedError):
            leave_to_main()
        if not is_main:
            time.sleep(SECONDS_FOR_MAIN)  # where rank 0 has the same to say, torchrun ends this one meanwhile
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt as interrupt:
        sentence = str(interrupt) or interrupted
        if sentence and is_main:
            print(f"{name}: {sentence}", file=sys.stderr)
        pass_on_ctrl_c()
        sys.exit(130)


# ----------------------------------------------------------------------------------------------------------------------
# the machine


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on the device. CUDA gets it out of pinned memory, so that the host need not wait for the copy."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def tune_allocator() -> bool:
    """Let glibc keep big buffers instead of returning them to the kernel after every step. True when it took effect.

    Fresh 100-400 MB buffers page-fault on every step; keeping them makes CPU steps 1.17-1.32x as fast (measured,
    6 layers, n_embd 384). Systems without glibc are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    import ctypes

    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_threshold = -1, -3
    limit = 2**31 - 1 - 4096
    return bool(libc.mallopt(m_mmap_threshold, limit)) and bool(libc.mallopt(m_trim_threshold, limit))


def autocast_for(device: torch.device, dtype: str):
    """Context factory of the autocast to a dtype. What auto stands for: lab/precision.py."""
    import torch

    if dtype == "float32":
        return contextlib.nullcontext
    return functools.partial(torch.autocast, device.type, getattr(torch, dtype))


def machine_state(device: torch.device) -> dict:
    """{"versions": ..., "hardware": ...} of this machine, null where it does not say."""
    import numpy
    import torch

    names, cpuinfo = [], Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    elif sys.platform == "darwin":  # whose platform.processor() is "arm" on all of Apple's own
        ask = ["sysctl", "-n", "machdep.cpu.brand_string"]
        with contextlib.suppress(OSError):
            names = subprocess.run(ask, capture_output=True, text=True).stdout.splitlines()
    cpu = names[0].strip() if names else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__,
            "numpy": numpy.__version__, "cuda": torch.version.cuda,
        },
        "hardware": {
            "host": platform.node(), "system": platform.platform(), "cpu": cpu, "cpu_count": os.cpu_count(),
            "torch_threads": torch.get_num_threads(), "gpu": gpu,
        },
    }


# FLOP/s of bfloat16 products summed in float32, without sparsity (half of what is marked "with sparsity"), as makers
# state them; taken from resellers' tables, specification sites and other projects, since no data sheet could be opened.
# GeForce cards sum in float32 at half of the rate that is advertised. T4 and V100 do not multiply bfloat16, and run in
# float32 here.
PEAK_FLOPS = {
    "GB200": 2500e12, "B200": 2250e12, "GH200": 989e12, "H200 NVL": 835e12, "H200": 989e12, "H100 NVL": 835e12,
    "H100 PCIe": 756e12, "H100": 989e12, "H800 PCIe": 756e12, "H800": 989e12, "H20": 148e12, "A100": 312e12,
    "A800": 312e12, "A40": 149.7e12, "A30": 165e12, "A10": 125e12, "A10G": 70e12, "L40S": 362e12, "L40": 181e12,
    "L4": 121e12, "RTX 6000 Ada": 364.2e12, "RTX A6000": 154.8e12, "RTX 5090": 209.5e12, "RTX 4090": 165.2e12,
    "RTX 3090": 71e12, "MI300X": 1307.4e12, "MI325X": 1307.4e12,
}
# What else may stand in such a card's name. Any other word, such as Ti, D, Laptop, Max, MIG or 8Q, makes it another
# card or a part of one.
FORMS = re.compile(r"NVIDIA|GeForce|AMD|Instinct|OAM|Generation|SXM\d?|PCI[eE]|HBM3e?|3e|\d+GB?")


def data_sheet_flops(name: str) -> float:
    """FLOP/s of a GPU by torch's name of it, such as NVIDIA A100-SXM4-40GB; NaN when it is not listed."""
    words = re.split(r"[ -]", name)
    for card, flops in PEAK_FLOPS.items():
        own = card.split()
        others = [word for word in words if word not in own]
        if set(own) <= set(words) and all(map(FORMS.fullmatch, others)):
            return flops
    return math.nan


def peak_flops(device: torch.device) -> float:
    """FLOP/s that MFU is measured against: the data sheet's dense bf16 peak on a known GPU, a measured float32 matrix
    product on CPU, NaN elsewhere (then MFU is null, unless --peak_flops gives it)."""
    import torch

    if device.type == "cuda":
        return data_sheet_flops(torch.cuda.get_device_name(device))
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

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB
