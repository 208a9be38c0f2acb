"""precision.py owns what a run forms its matrix products in: float32, or bfloat16 where the machine is faster with it.

    autocast = precision.choose(args, procs, model, tokens, resumed)     # sets args.dtype
    with autocast():
        loss = model(x, y)
    run.log(str(autocast))                                               # one line: the dtype, and why

Weights, their gradients, the loss's softmax and sums over rows are float32 in both. In bfloat16, attention's scores and
probabilities are rounded to it on a CPU, and Muon's Newton-Schulz is on a GPU.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch

from lab import processes

# Parameters. Below, a step gains little: 0.75 to 2.1 times as fast, 2.3 to 2.8 above (measured, one AVX512-BF16 core)
SMALLEST = 4_000_000
CLEAR = 1.5  # lowest speed-up of the products for which bfloat16 is taken; where it pays, it is 2.7 to 8 (measured)
ROUNDS = 4  # of the measurement, of which the best counts
ROWS = 256  # at most, of the measured products
FLOPS = 1e9  # about, at most, of one product; all rounds together take up to 0.4 s (measured)


@dataclass
class Precision:
    """Called, it makes the context of a forward pass."""

    device: str
    dtype: str
    why: str
    speedup: float | None = None  # of bfloat16 products over float32 ones; None: not measured

    def __call__(self):
        return processes.autocast_for(torch.device(self.device), self.dtype)()

    def __str__(self) -> str:
        return f"products in {self.dtype}: {self.why}"

    def record(self) -> dict:
        return {name: value for name, value in asdict(self).items() if name != "device"}


def choose(args, procs, model, tokens: int, resumed: dict | None) -> Precision:
    """What --dtype stands for, the same on all ranks; args.dtype becomes its name.

    tokens: of a micro-step. resumed: config.json of the run that is resumed, which keeps what it began with."""
    kind, dtype, why, speedup = procs.device.type, args.dtype, "as --dtype or --config says", None
    if resumed is not None and dtype in ("auto", resumed["flags"]["dtype"]):
        dtype, why = resumed["flags"]["dtype"], "as the run began"
    if dtype == "auto":
        dtype, why, speedup = procs.on_main(lambda: fastest(procs.device, model, tokens))
    args.dtype = dtype
    return Precision(kind, dtype, why, speedup)


def fastest(device: torch.device, model, tokens: int) -> tuple[str, str, float | None]:
    """(dtype, why, measured speed-up of bfloat16 products or None)."""
    if not multiplies_bfloat16(device):
        return "float32", f"this {device.type} does not multiply bfloat16 natively", None
    if device.type != "cpu":
        return "bfloat16", f"this {device.type} multiplies it natively", None
    if sum(p.numel() for p in model.parameters()) < SMALLEST:
        return "float32", f"with fewer than {SMALLEST:,} parameters a CPU gains little by bfloat16", None
    speedup = round(measure(model.config.n_embd, model.config.n_inner, tokens), 2)
    words = f"bfloat16 products are {speedup:g} times as fast as float32 ones here"
    if speedup < CLEAR:
        return "float32", f"{words}, less than {CLEAR:g} times", speedup
    return "bfloat16", words, speedup


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware does, rather than emulate it. On ARM torch has no probe that tells both apart."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """That of matrix products with x: the autocast's where one is open, otherwise x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def trains_on_cpu(x: torch.Tensor) -> bool:
    """Whether a gradient of x is wanted, on a CPU and kernel by kernel."""
    return x.is_cpu and x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def measure(n_embd: int, n_inner: int, tokens: int) -> float:
    """Time of an MLP layer's three products of a training step (forward, both gradients) in float32 over that in
    bfloat16, its casts included: of one thread's own CPU time, the best of several rounds in turn, so that neither
    other work on the machine nor threads that wait for each other can turn the result. With two threads, whose waiting
    counts as CPU time, it was 1.4 to 5.2 where it is 2.0 (measured)."""
    rows = min(tokens, ROWS)
    cols = min(n_inner, int(FLOPS / (2 * rows * n_embd)) + 1)
    x, weight = torch.ones(rows, n_embd), torch.ones(cols, n_embd)
    grad = torch.ones(rows, cols)
    best, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(ROUNDS):
            for dtype in (torch.float32, torch.bfloat16):
                begun = time.thread_time()
                x_in, weight_in, grad_in = (tensor.to(dtype) for tensor in (x, weight, grad))
                x_in @ weight_in.t()
                grad_in @ weight_in
                (grad_in.t() @ x_in).float()
                seconds = time.thread_time() - begun
                best[dtype] = min(best.get(dtype, seconds), seconds)
    finally:
        torch.set_num_threads(threads)
    return best[torch.float32] / best[torch.bfloat16]
