"""attention.py owns causal attention: torch's kernel, and what is faster than it in bfloat16 training on a CPU.

    y = causal_attention(q, k, v)  # (B, H, T, dh) each; every position sees itself and what is before it
"""

import math

import torch
import torch.nn.functional as F

from lab.loss import product_dtype, trains_on_cpu

# Queries at a time. Forward and backward together take 0.40 (T 256) and 0.48 (T 1,024) of the time of torch's kernel,
# with 64 of them 0.43 and 0.54, with 256 0.47 and 0.48 (measured as experiments/bench/kernels.py does).
BLOCK = 128


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    dtype = product_dtype(q)
    if dtype == torch.bfloat16 and trains_on_cpu(q):
        return BlockAttention.apply(q.to(dtype), k.to(dtype), v.to(dtype))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def blocks(T: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, T)) for start in range(0, T, BLOCK)]


def by_head(x) -> torch.Tensor:
    """x (B, H, T, dh) as (B H, T, dh), contiguous: what torch copies of it for each product then is whole rows."""
    return x.reshape(-1, *x.shape[-2:]).contiguous()


def probabilities(q, k_t, future, start: int, end: int) -> torch.Tensor:
    """(B H, end - start, end): how queries start .. end - 1 weigh the positions up to the last of them.

    q (B H, T, dh), scaled; k_t (B H, dh, T); future (BLOCK, BLOCK): -inf where a key comes after the query, else 0. To
    add it takes a fourth of the time of masked_fill_."""
    rows = end - start
    scores = torch.bmm(q[:, start:end], k_t[:, :, :end])
    scores[:, :, start:] += future[:rows, :rows]
    return torch.softmax(scores, -1)


def future_keys(dtype) -> torch.Tensor:
    return torch.full((BLOCK, BLOCK), -math.inf, dtype=dtype).triu_(1)


class BlockAttention(torch.autograd.Function):
    """A block of queries at a time, as matrix products. Backward forms the probabilities again, so that no T x T of
    them outlive their block. Gradients of keys and values are summed in float32.

    Keys and values are transposed once: a product with a transposed second factor takes 1.3 to 1.5 times as long."""

    @staticmethod
    def forward(ctx, q, k, v):
        shape, ctx.scale = q.shape, q.size(-1) ** -0.5
        q, k, v = by_head(q * ctx.scale), by_head(k), by_head(v)
        ctx.save_for_backward(q, k, v)
        y, k_t, future = torch.empty_like(v), k.mT.contiguous(), future_keys(q.dtype)
        with torch.autocast("cpu", enabled=False):
            for start, end in blocks(q.size(1)):
                p = probabilities(q, k_t, future, start, end)
                torch.bmm(p, v[:, :end], out=y[:, start:end])
        return y.view(shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        shape, grad = grad.shape, by_head(grad)
        q, k, v = ctx.saved_tensors
        k_t, v_t, future = k.mT.contiguous(), v.mT.contiguous(), future_keys(q.dtype)
        grad_q, grad_k, grad_v = torch.empty_like(q), None, None
        with torch.autocast("cpu", enabled=False):
            for start, end in reversed(blocks(q.size(1))):  # the last sees every key: its sums begin the others'
                p, g = probabilities(q, k_t, future, start, end), grad[:, start:end]
                to_v = torch.bmm(p.mT, g).float()
                grad_p = torch.bmm(g, v_t[:, :, :end])
                grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
                torch.bmm(grad_scores, k[:, :end], out=grad_q[:, start:end])
                to_k = torch.bmm(grad_scores.mT, q[:, start:end]).float()
                if grad_k is None:
                    grad_k, grad_v = to_k, to_v
                else:
                    grad_k[:, :end] += to_k
                    grad_v[:, :end] += to_v
        grads = grad_q.mul_(ctx.scale), grad_k.to(k.dtype), grad_v.to(v.dtype)
        return tuple(grad.view(shape) for grad in grads)
