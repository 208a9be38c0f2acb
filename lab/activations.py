"""activations.py owns GPT-2's GELU: torch's kernel, and what is faster than it in bfloat16 training on a CPU.

    y = gelu(x)  # any shape
"""

import math

import torch
import torch.nn.functional as F

from lab.precision import trains_on_cpu

# 1/2 (1 + tanh(w / 2)) is the logistic function of w, so that the GELU with a tanh (Hendrycks and Gimpel 2016,
# arXiv:1606.08415, section 2) is x logistic(w) with w = SLOPE (x + CUBIC x^3).
SLOPE, CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715
BLOCK = 2**17  # elements per thread in float32 at once: three buffers of 512 KiB, which stay in its cache


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU in its form with a tanh, of x of any shape, in x's dtype."""
    if x.dtype == torch.bfloat16 and trains_on_cpu(x):
        return LogisticGELU.apply(x)
    return F.gelu(x, approximate="tanh")


class LogisticGELU(torch.autograd.Function):
    """Forward and backward take 0.6 of the time of torch's (experiments/bench/kernels.py), whose tanh costs ten times
    its logistic function. Forward forms the derivative, too, and keeps it in bfloat16 instead of x."""

    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        y, derivative = torch.empty_like(x), torch.empty_like(x)
        size = max(1, min(BLOCK * torch.get_num_threads(), x.numel()))
        slope, buffers = torch.tensor(SLOPE), torch.empty(3, size)
        blocks = (z.view(-1).split(size) for z in (x, y, derivative))
        for x_block, y_block, derivative_block in zip(*blocks, strict=True):
            a, s, t = buffers[:, : len(x_block)]
            a.copy_(x_block)
            torch.addcmul(slope, a, a, value=SLOPE * CUBIC, out=s).mul_(a)  # w
            torch.sub(s, a, alpha=2 / 3 * SLOPE, out=t)  # a third of x w'
            torch.ops.aten.sigmoid_backward.grad_input(t, s.sigmoid_(), grad_input=t)
            y_block.copy_(a.mul_(s))
            derivative_block.copy_(s.add_(t, alpha=3))
        ctx.save_for_backward(derivative)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (derivative,) = ctx.saved_tensors
        return grad * derivative
