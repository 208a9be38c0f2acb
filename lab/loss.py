"""loss.py owns the cross-entropy of a tied head: logits, softmax and their gradients, a chunk of rows at a time.

The (N, V) logits of a batch would be the largest tensor of a training step; here at most CHUNK_ROWS rows exist at once.
"""

import math
import threading

import torch

from lab.precision import product_dtype

IGNORE = -100  # a target that is not scored, as in F.cross_entropy
# Rows of logits alive at once. CPU: 1.41, 1.31, 1.29, 1.27 CPU-s for 128, 256, 512, 1024 of them (measured, 1 thread,
# 1,024 rows, V 50304, C 384; torch 2.13's F.linear_cross_entropy: 8.3). CUDA: (assumption).
CHUNK_ROWS = {"cpu": 1024, "cuda": 4096}
# Of them, rows in fp32 at once where the products are bfloat16 and no gradient is wanted, for each thread of a CPU: so
# many stay in its cache, and softmax and casts take 0.78 of the time of all at once (measured as above).
SOFTMAX_ROWS = 16
# Ids of the vocabulary at once in a CPU's bfloat16 products of the head. The logits: with AMX in 0.64 to 0.83 of the
# time of all at once; oneDNN kept from AMX, in 1.0 to 1.03. Their gradients: the second product finds them in the
# cache, where the first has left them; 0.9 of the time without AMX, about the same with it (timed in
# experiments/bench/kernels.py).
IDS_AT_ONCE = 2048
_local = threading.local()


def workspace(rows: int, cols: int, device: torch.device) -> torch.Tensor:
    """(rows, cols) fp32, uninitialised. A CPU thread keeps its buffer, because a fresh one of 100 MB page-faults at
    every step; a GPU has a caching allocator. Nothing saved for backward may point into it."""
    if device.type != "cpu":
        return torch.empty(rows, cols, device=device)
    if getattr(_local, "buffer", None) is None or _local.buffer.numel() < rows * cols:
        with torch.inference_mode(False):  # a buffer born in inference mode could not be written in training
            _local.buffer = torch.empty(rows * cols, device=device)
    return _local.buffer[: rows * cols].view(rows, cols)


def in_blocks(x) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


def form_logits(x, weight) -> torch.Tensor:
    """x (R, C) @ weight (V, C).T, in their dtype. Not differentiable."""
    if not in_blocks(x):
        return x @ weight.t()
    logits = torch.empty(len(x), len(weight), dtype=x.dtype)
    for first in range(0, len(weight), IDS_AT_ONCE):
        ids = slice(first, first + IDS_AT_ONCE)
        torch.mm(x, weight[ids].t(), out=logits[:, ids])
    return logits


def write_logits(out, x, weight, masked_ranges):
    """out (R, V) fp32 = x (R, C) @ weight.T, formed in their dtype; -inf at the padding ids."""
    if x.dtype == torch.float32:
        torch.mm(x, weight.t(), out=out)
    else:
        out.copy_(form_logits(x, weight))
    return mask_logits(out, masked_ranges)


def mask_logits(logits, masked_ranges):
    """-inf at the padding ids of logits (..., V), in place: a copy costs as much as sampling from them."""
    for first, last in masked_ranges:
        logits[..., first:last] = -math.inf
    return logits


def _nll_of(p, x, weight, targets, masked_ranges):
    """-log p (R,) of the softmax's p (R,) at the targets (R, 1)."""
    nll = p.log().neg_()
    underflow = p < 1e-30
    if underflow.any():  # rare: the softmax has overwritten these logits, so form them again
        z = write_logits(torch.empty(int(underflow.sum()), len(weight)), x[underflow], weight, masked_ranges)
        nll[underflow] = z.logsumexp(1) - z.gather(1, targets[underflow]).squeeze(1)
    return nll


def _softmax_nll(logits, targets, x, weight, masked_ranges):
    """Softmax of logits (R, V) = x (R, C) @ weight.T, in their place, and the NLL (R,) of targets (R, 1)."""
    if logits.device.type == "cpu":
        probs = torch.softmax(logits, dim=1, out=logits)
        return probs, _nll_of(probs.gather(1, targets).squeeze(1), x, weight, targets, masked_ranges)
    # A GPU need not be waited for, at the price of two maxima: -log p = gap - log(largest p).
    gap = logits.amax(1, keepdim=True) - logits.gather(1, targets)
    probs = torch.softmax(logits, dim=1, out=logits)
    return probs, (gap - probs.amax(1, keepdim=True).log_()).squeeze(1)


def _softmax_rows(x, weight, targets, masked_ranges, with_grad):
    """The NLL (R,) fp32 of targets (R, 1) under the logits x (R, C) @ weight.T; with_grad, also the gradient (R, V) of
    its sum in them, in x's dtype and in their place."""
    is_fp32 = x.dtype == torch.float32
    if in_blocks(x):
        form = _bfloat16_gradients if with_grad else _bfloat16_nll
        return form(mask_logits(form_logits(x, weight), masked_ranges), x, weight, targets, masked_ranges)
    logits = workspace(len(x), len(weight), x.device)
    if is_fp32:
        write_logits(logits, x, weight, masked_ranges)
    else:
        products = x @ weight.t()
        mask_logits(logits.copy_(products), masked_ranges)
    probs, nll = _softmax_nll(logits, targets, x, weight, masked_ranges)
    if with_grad:
        probs.scatter_add_(1, targets, torch.full_like(targets, -1.0, dtype=torch.float32))
        if not is_fp32:
            probs = products.copy_(probs)
    return nll, probs


def _bfloat16_nll(logits, x, weight, targets, masked_ranges):
    """The NLL (R,) fp32 from bfloat16 logits (R, V) of a CPU, of which SOFTMAX_ROWS for each thread are in fp32 at
    once; and None."""
    p, at_once = torch.empty(len(x), 1), SOFTMAX_ROWS * torch.get_num_threads()
    buffer = workspace(min(len(x), at_once), len(weight), x.device)
    for some, its_targets, its_p in zip(*(z.split(at_once) for z in (logits, targets, p)), strict=True):
        probs = buffer[: len(some)].copy_(some)
        its_p.copy_(torch.softmax(probs, dim=1, out=probs).gather(1, its_targets))
    return _nll_of(p.squeeze(1), x, weight, targets, masked_ranges), None


def _bfloat16_gradients(logits, x, weight, targets, masked_ranges):
    """The NLL (R,) fp32, each to 0.004, and the gradient of its sum in the bfloat16 logits (R, V) of a CPU, in their
    place.

    torch's softmax reads bfloat16, works in fp32 and rounds at the end. Of a p close to 1 that leaves no digit of
    1 - p, the gradient at the target: it is the sum of the other probabilities."""
    at_targets = torch.arange(len(x)), targets.squeeze(1)
    probs = torch.softmax(logits, dim=1, out=logits)
    p = probs[at_targets].float()
    probs[at_targets] = 0.0
    others = probs.sum(1)
    probs[at_targets] = -others
    p = torch.where(p < 0.5, p, 1.0 - others.float())
    return _nll_of(p, x, weight, targets, masked_ranges), probs


def traced_nll(logits, targets, masked_ranges):
    """The NLL (R,) fp32 of targets (R, 1) under logits (R, V). Written for torch.compile, which leaves out the gradient
    that is not used."""
    return traced_grad(logits, targets, masked_ranges)[0]


def traced_grad(logits, targets, masked_ranges):
    """The same, and the gradient of its sum in the logits, in their dtype."""
    ids, z = torch.arange(logits.size(1), device=logits.device), logits.float()
    for first, last in masked_ranges:
        z = torch.where((first <= ids) & (ids < last), -math.inf, z)
    log_sum, is_target = z.logsumexp(1, keepdim=True), ids == targets
    nll = log_sum.squeeze(1) - torch.where(is_target, z, 0.0).sum(1)
    return nll, ((z - log_sum).exp() - is_target.float()).to(logits.dtype)


compiled_softmax = {}  # device -> {function: it, compiled}, after compile_softmax


def compile_softmax(device="cuda") -> None:
    """From now on traced_grad and traced_nll, a compiled graph each, read the logits on such a device: 3.1 GB are
    read and written for the gradients of 10,240 rows of 50,432 bfloat16 logits, where kernel by kernel it is 16 GB
    (counted). A CPU is slower with them."""

    def compile_one(function):
        graph = torch.compile(function)

        def run(logits, targets, masked_ranges):
            for tensor in (logits, targets):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)  # one graph for any number of rows
            return graph(logits, targets, masked_ranges)

        return run

    compiled_softmax[device] = {function: compile_one(function) for function in (traced_grad, traced_nll)}


def head_backward(
    grad_logits: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, grad_w: torch.Tensor | None, is_first: bool
) -> torch.Tensor:
    """The gradient (R, C) of a head's input, from that of its logits: grad_logits (R, V) @ weight (V, C).

    grad_w (V, C), unless None, receives grad_logits.T @ x: written where is_first, whatever it held, else added.
    x (R, C): the input, its rows weighted if need be."""
    at_once = IDS_AT_ONCE if in_blocks(x) else len(weight)
    grad_x = None
    for first in range(0, len(weight), at_once):
        ids = slice(first, first + at_once)
        product = grad_logits[:, ids] @ weight[ids]
        grad_x = product if grad_x is None else grad_x.float().add_(product)
        if grad_w is not None:
            _add_product(grad_w[ids], grad_logits[:, ids].t(), x, is_first)
    return grad_x


def _add_product(total, a, b, is_first):
    """total += a @ b; is_first: total holds nothing yet."""
    if a.dtype == total.dtype:
        total.addmm_(a, b, beta=0 if is_first else 1)
    elif is_first:
        total.copy_(a @ b)
    else:
        total.add_(a @ b)


def _head_chunks(x, weight, targets, masked_ranges, row_weight, dtype, with_weight=True):
    """nll (N,) fp32, 0 where ignored, and the gradients (N, C) and, with_weight, (V, C) of sum(row_weight * nll).

    x (N, C), weight (V, C), targets (N,) with IGNORE allowed, row_weight (N,) fp32; None: no gradients are formed.
    Products in `dtype`, softmax in fp32."""
    N, w = len(x), weight.to(dtype)
    nll = torch.empty(N, device=x.device)
    if not N:
        return nll, torch.zeros_like(x), torch.zeros_like(weight)
    if row_weight is not None:  # an ignored row has no gradient, whatever comes in
        row_weight = row_weight.masked_fill(targets == IGNORE, 0.0)
    chunk = min(N, CHUNK_ROWS.get(x.device.type, CHUNK_ROWS["cuda"]))
    fused = compiled_softmax.get(x.device.type)
    grad_x = torch.empty_like(x) if row_weight is not None else None
    grad_w = torch.empty_like(weight) if with_weight and row_weight is not None else None
    for start in range(0, N, chunk):
        rows = slice(start, start + chunk)
        x_rows = x[rows].to(dtype)
        target = targets[rows].clamp(min=0).unsqueeze(1)
        if fused and row_weight is None:
            nll[rows] = fused[traced_nll](x_rows @ w.t(), target, masked_ranges)
        elif fused:
            nll[rows], dlogits = fused[traced_grad](x_rows @ w.t(), target, masked_ranges)
        else:
            nll[rows], dlogits = _softmax_rows(x_rows, w, target, masked_ranges, row_weight is not None)
        if row_weight is None:
            continue
        # the rows' weights go to the two narrow factors
        r = row_weight[rows].unsqueeze(1)
        weighted = (x[rows] * r).to(dtype)
        grad_x[rows] = head_backward(dlogits, weighted, w, grad_w, start == 0) * r
    return nll.masked_fill_(targets == IGNORE, 0.0), grad_x, grad_w


class _HeadLoss(torch.autograd.Function):
    """sum(nll) / denominator. Forward forms both gradients, so that no logits outlive their chunk."""

    @staticmethod
    def forward(ctx, x, weight, targets, masked_ranges, denominator, dtype):
        row_weight = (targets != IGNORE).float() / denominator
        nll, *ctx.grads = _head_chunks(x, weight, targets, masked_ranges, row_weight, dtype)
        return nll.sum() / denominator

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss):
        if ctx.grads is None:
            raise RuntimeError("this loss has had its backward pass; compute the loss again")
        (grad_x, grad_w), ctx.grads = ctx.grads, None
        if grad_loss.device.type != "cpu" or grad_loss != 1:  # on a GPU the comparison would wait for the device
            grad_x.mul_(grad_loss)
            grad_w.mul_(grad_loss)
        return grad_x, grad_w, None, None, None, None


@torch.compiler.disable  # on a CPU these kernels are faster than compiled ones; for CUDA see compile_softmax
def chunked_cross_entropy(x, weight, targets, masked_ranges=(), denominator=None, reduce=True) -> torch.Tensor:
    """Cross-entropy of the logits x @ weight.T, without ever holding (N, V) of them.

    x (N, C), weight (V, C), targets (N,) int64, IGNORE = not scored; on a CPU such rows skip the head, so the prompt
    tokens of a conversation are free. reduce: scalar sum(nll) / denominator (default: the number of scored targets),
    differentiable in x and weight; otherwise nll (N,) fp32 without gradient."""
    device, dtype = x.device.type, product_dtype(x)
    with torch.autocast(device, enabled=False):
        scored = targets != IGNORE
        N, kept = len(targets), None
        if denominator is None:
            denominator = scored.sum().clamp(min=1)
        if device == "cpu" and not scored.all():  # a GPU would wait for the count
            kept = scored.nonzero().squeeze(1)
            x, targets = x[kept], targets[kept]
        if reduce and torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return _HeadLoss.apply(x, weight, targets, masked_ranges, denominator, dtype)
        nll, _, _ = _head_chunks(x.detach(), weight.detach(), targets, masked_ranges, None, dtype)
        if reduce:
            return nll.sum() / denominator
        return nll if kept is None else nll.new_zeros(N).index_copy_(0, kept, nll)


class _TokenNll(torch.autograd.Function):
    """nll (N,). The softmax is formed again in backward, so that no logits outlive their chunk."""

    @staticmethod
    def forward(ctx, x, weight, targets, masked_ranges, dtype):
        ctx.save_for_backward(x, weight, targets)
        ctx.settings = masked_ranges, dtype
        nll, _, _ = _head_chunks(x, weight, targets, masked_ranges, None, dtype)
        return nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_nll):
        x, weight, targets = ctx.saved_tensors
        masked_ranges, dtype = ctx.settings
        _, grad_x, grad_w = _head_chunks(x, weight, targets, masked_ranges, grad_nll, dtype)
        return grad_x, grad_w, None, None, None


@torch.compiler.disable
def token_nll(x, weight, targets, masked_ranges=()) -> torch.Tensor:
    """-log p (N,) fp32 of targets (N,) int64 after x (N, C), differentiable in x and weight (V, C), for objectives that
    are no sum of it; 0 and without gradient where the target is IGNORE. Costs one head product more than
    chunked_cross_entropy."""
    dtype = product_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        return _TokenNll.apply(x, weight, targets, masked_ranges, dtype)


@torch.no_grad()
def head_gradients(x, weight, targets, masked_ranges, with_weight=True) -> tuple:
    """nll (N,) fp32, 0 where the target is IGNORE, and the gradients of its sum in x (N, C) and weight (V, C)."""
    dtype = product_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        row_weight = (targets != IGNORE).float()
        return _head_chunks(x, weight, targets, masked_ranges, row_weight, dtype, with_weight)


class KnownLoss(torch.autograd.Function):
    """A loss (scalar) whose gradients in x and weight are known already."""

    @staticmethod
    def forward(ctx, x, weight, loss, grad_x, grad_weight):
        ctx.grads = grad_x, grad_weight
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss):
        grad_x, grad_weight = ctx.grads
        return grad_x * grad_loss, grad_weight * grad_loss, None, None, None


class _Tie(torch.autograd.Function):
    """Backward adds the embedding's few sparse rows to the head's dense gradient in place; autograd's own sum would
    make one or two more matrices of that size."""

    @staticmethod
    def forward(ctx, weight):
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_embedding, grad_head):
        return grad_head.add_(grad_embedding)


def tie(weight) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of the tied matrix: for the embedding, whose gradient must be sparse, and for the head."""
    return _Tie.apply(weight)
