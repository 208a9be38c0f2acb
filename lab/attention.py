"""attention.py owns causal attention: torch's kernel, and what is faster than it in bfloat16 training on a CPU.

    y = causal_attention(q, k, v)  # (B, H, T, dh) each; every position sees itself and what is before it
"""

import math

import torch
import torch.nn.functional as F

from lab.loss import product_dtype

# Queries at a time. Forward and backward together take 0.55 (T 256) and 0.73 (T 1,024) of the time of torch's kernel,
# with 256 or 512 of them up to 1.3 at T 1,024 (measured, one AVX512-BF16 core, heads of 64, torch 2.13).
BLOCK = 128


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    if q.is_cpu and q.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        dtype = product_dtype(q)
        if dtype == torch.bfloat16:
            return BlockAttention.apply(q.to(dtype), k.to(dtype), v.to(dtype))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def blocks(q) -> list[tuple[int, int]]:
    T = q.size(2)
    return [(start, min(start + BLOCK, T)) for start in range(0, T, BLOCK)]


def probabilities(q, k, start: int, end: int) -> torch.Tensor:
    """(B, H, end - start, end): how queries start .. end - 1 weigh the positions up to the last of them."""
    scores = q[:, :, start:end] @ k[:, :, :end].mT
    future = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
    scores[..., start:].masked_fill_(future, -math.inf)
    return torch.softmax(scores.mul_(scale_of(q)), -1)


def scale_of(q) -> float:
    return q.size(-1) ** -0.5


class BlockAttention(torch.autograd.Function):
    """A block of queries at a time, as matrix products. Backward forms the probabilities again, so that no T x T of
    them outlive their block. Gradients of keys and values are summed in float32."""

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        with torch.autocast("cpu", enabled=False):
            pieces = [probabilities(q, k, start, end) @ v[:, :, :end] for start, end in blocks(q)]
        return torch.cat(pieces, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q, k, v = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros(k.shape), torch.zeros(v.shape)
        with torch.autocast("cpu", enabled=False):
            for start, end in blocks(q):
                p, g = probabilities(q, k, start, end), grad[:, :, start:end]
                grad_v[:, :, :end] += p.mT @ g
                grad_p = g @ v[:, :, :end].mT
                grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(scale_of(q))
                grad_q[:, :, start:end] = grad_scores @ k[:, :, :end]
                grad_k[:, :, :end] += grad_scores.mT @ q[:, :, start:end]
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)
