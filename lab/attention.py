"""attention.py owns causal attention: torch's kernel, and what is faster than it in bfloat16 training on a CPU.

    y = causal_attention(q, k, v)  # (B, H, T, dh) each; every position sees itself and what is before it
"""

import math

import torch
import torch.nn.functional as F

from lab.precision import product_dtype, trains_on_cpu

# Queries at a time. Of 64, 128 and 256, the best at 256 tokens; at 1,024 tokens 256 are as fast (measured as
# experiments/bench/kernels.py does).
BLOCK = 128
# A sequence of at most so many tokens keeps its probabilities for backward, which saves a seventh of the time of both
# passes (measured as above). They grow with the square of the length: at 1,024 tokens GPT-2's 12 heads keep 14 MB a
# layer and sequence. A longer sequence forms them again.
KEPT = 1024


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    dtype = product_dtype(q)
    if dtype == torch.bfloat16 and trains_on_cpu(q):
        return BlockAttention.apply(q.to(dtype), k.to(dtype), v.to(dtype))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def blocks(T: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, T)) for start in range(0, T, BLOCK)]


def by_head(x) -> torch.Tensor:
    """x (B, H, T, dh) as (B H, T, dh), contiguous, so that the copy torch makes for each product is of whole rows."""
    return x.reshape(-1, *x.shape[-2:]).contiguous()


def probabilities(q, k, future) -> torch.Tensor:
    """(B H, R, S): how the last R of S positions weigh all of them.

    q (B H, R, dh), scaled; k (B H, S, dh); future (BLOCK, BLOCK): -inf where a key comes after the query, else 0, to be
    added: masked_fill_ takes several times as long."""
    rows = q.size(1)
    scores = torch.bmm(q, k.mT)
    scores[:, :, -rows:] += future[:rows, :rows]
    return torch.softmax(scores, -1)


def future_keys(dtype) -> torch.Tensor:
    return torch.full((BLOCK, BLOCK), -math.inf, dtype=dtype).triu_(1)


class BlockAttention(torch.autograd.Function):
    """A block of queries at a time, as matrix products. Gradients of keys and values are summed in float32.

    A part of the keys or values is copied before a product with its transpose, which otherwise takes 1.3 to 1.9 times
    as long (measured, 24 x 256 x 64 and 12 x 1,024 x 128)."""

    @staticmethod
    def forward(ctx, q, k, v):
        shape, ctx.scale = q.shape, q.size(-1) ** -0.5
        q, k, v = by_head(q) * ctx.scale, by_head(k), by_head(v)
        y, future, kept = torch.empty_like(v), future_keys(q.dtype), []
        with torch.autocast("cpu", enabled=False):
            for start, end in blocks(q.size(1)):
                p = probabilities(q[:, start:end], k[:, :end].contiguous(), future)
                torch.bmm(p, v[:, :end], out=y[:, start:end])
                if q.size(1) <= KEPT:
                    kept.append(p)
        ctx.save_for_backward(q, k, v, *kept)
        return y.view(shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q, k, v, *kept = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), None, None
        future = future_keys(q.dtype)
        with torch.autocast("cpu", enabled=False):
            for start, end in reversed(blocks(q.size(1))):  # the last sees every key: its sums begin the others'
                queries, g = q[:, start:end], by_head(grad[:, :, start:end])
                keys, values = k[:, :end].contiguous(), v[:, :end].contiguous()
                p = kept.pop() if kept else probabilities(queries, keys, future)
                to_v = torch.bmm(p.mT, g).float()
                grad_scores = torch._softmax_backward_data(torch.bmm(g, values.mT), p, -1, p.dtype)
                torch.bmm(grad_scores, keys, out=grad_q[:, start:end])
                to_k = torch.bmm(grad_scores.mT, queries).float()
                if grad_k is None:
                    grad_k, grad_v = to_k, to_v
                else:
                    grad_k[:, :end] += to_k
                    grad_v[:, :end] += to_v
        grads = grad_q.mul_(ctx.scale), grad_k.to(k.dtype), grad_v.to(v.dtype)
        return tuple(z.view(grad.shape) for z in grads)
