"""log_probs.py owns log-probabilities of given tokens under the tied head, and weights packed for products of few rows.

    scores = head_log_probs(x, model, rows, targets)  # log p (E,), without ever holding all logits
    with packed_weights(model): ...                   # on a CPU
"""

import platform
from contextlib import contextmanager

import torch

from lab.loss import CHUNK_ROWS, mask_logits, workspace, write_logits
from lab.precision import product_dtype
from lab.processes import to_device
from model import Linear, packed_linear

# CPU: measured (evals.py in experiments/bench); CUDA: (assumption).
HEAD_COLUMNS = {"cpu": 2048}  # of logits at a time; elsewhere all
# Tokens from which on packing a weight for one product pays (measured: 0.7 of the time at 160).
PACK_ROWS = 128


def can_pack(weight) -> bool:
    """x86 CPUs, fp32, no autocast, a torch built with oneDNN."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    ops = "_reorder_linear_weight", "_linear_pointwise"
    built = torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, op) for op in ops)
    return built and platform.machine() in ("x86_64", "AMD64")


def pack(weight):
    # 64 rows: the layout for 1 row is several times slower for more, this one no slower for 1 (measured)
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 64)


@contextmanager
def packed_weights(module):
    """While open, the matrix products of module (a GPT or a block) use packed copies of its weights, where can_pack.
    For use without gradients; the copies double the weights' memory. Without them a product of few rows rearranges the
    weight in every call: 16 rows of the 124M shape take 81 ms without and 32 ms with them (measured)."""
    modules = [m for m in module.modules() if isinstance(m, Linear)]
    if hasattr(module, "transformer"):
        modules.append(module.transformer["wte"])
    try:
        for m in modules:
            if can_pack(m.weight):
                m.packed = pack(m.weight)
        yield
    finally:
        for m in modules:
            # to set it to None would make torch.compile trace the module again
            vars(m).pop("packed", None)


def head_log_probs(x, model, rows, targets) -> torch.Tensor:
    """log p (E,) fp32 of targets (E,) after the hidden states x (N, C) numbered rows (E,); rows and targets on the CPU,
    the result on x's device, which is not waited for.

    At most CHUNK_ROWS x HEAD_COLUMNS logits are alive. Products in x's dtype or the autocast's, softmax in fp32."""
    device, dtype = x.device.type, product_dtype(x)
    scores = torch.empty(len(rows), device=x.device)
    with torch.autocast(device, enabled=False):
        weight = model.transformer["wte"].weight.to(dtype)
        chunk = CHUNK_ROWS.get(device, CHUNK_ROWS["cuda"])
        for start in range(0, len(x), chunk):
            inside = ((start <= rows) & (rows < start + chunk)).nonzero()[:, 0]
            tensors = rows[inside] - start, targets[inside], inside
            at, wanted, inside = (to_device(tensor, x.device) for tensor in tensors)
            x_rows = x[start : start + chunk].to(dtype)
            masked = model.config.masked_ranges
            scores[inside] = _chunk_log_probs(x_rows, weight, at, wanted, masked)
    return scores


def _chunk_log_probs(x, weight, rows, targets, masked_ranges):
    """log p (E,) for all of x (R, C), by a running log-sum-exp over HEAD_COLUMNS columns of logits at a time."""
    V = len(weight)
    width = min(V, HEAD_COLUMNS.get(x.device.type, V))
    buffer = workspace(len(x), width, x.device).flatten()
    chosen = torch.empty(len(targets), device=x.device)
    largest = torch.full((len(x), 1), torch.finfo(torch.float32).min, device=x.device)
    total = torch.zeros(len(x), 1, device=x.device)
    for left in range(0, V, width):
        columns = weight[left : left + width]
        padding = [(max(a - left, 0), max(b - left, 0)) for a, b in masked_ranges]
        if len(x) >= PACK_ROWS and can_pack(columns):
            logits = mask_logits(packed_linear(x, pack(columns), None), padding)
        else:
            logits = buffer[: len(x) * len(columns)].view(len(x), -1)
            write_logits(logits, x, columns, padding)
        inside = (left <= targets) & (targets < left + width)
        column = (targets - left).clamp(0, len(columns) - 1)
        chosen = torch.where(inside, logits[rows, column], chosen)
        new = torch.maximum(largest, logits.amax(1, keepdim=True))
        total = total * (largest - new).exp_() + logits.sub_(new).exp_().sum(1, keepdim=True)
        largest = new
    return chosen - (largest + total.log_())[rows, 0]
