"""activations.py: what replaces torch's GELU in bfloat16 training on a CPU is the same function."""

import pytest
import torch
import torch.nn.functional as F

from lab import activations
from lab.activations import BLOCK, gelu
from model import GPT, GPTConfig


def torchs(x):
    return F.gelu(x, approximate="tanh")


def results(function, x, grad):
    """Output and gradient, in float64."""
    x = x.clone().requires_grad_()
    y = function(x)
    y.backward(grad.to(x.dtype))
    return y.detach().double(), x.grad.double()


@pytest.mark.parametrize("scale", [0.01, 1, 8])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (BLOCK,), (2, BLOCK // 2 + 3), (3, 5, 64)])
def test_as_near_to_the_truth_as_torchs_kernel(shape, scale):
    """Distances from float64: of the output torch's own, which is the rounding to bfloat16; of the gradient at most
    twice that, because the derivative is rounded, too."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=generator).to(torch.bfloat16) for _ in range(2))
    x = x * scale
    exact_y, exact_grad = results(torchs, x.double(), grad)
    y, x_grad = results(gelu, x, grad)
    assert y.shape == x_grad.shape == x.shape
    usual, _ = results(torchs, x, grad)
    assert (y - exact_y).norm() <= 1.001 * (usual - exact_y).norm() + 1e-12
    assert (x_grad - exact_grad).norm() <= 2 * 2**-8 * exact_grad.norm()


def test_any_strides():
    """A transposed tensor, whose memory is in another order: the same numbers."""
    x = torch.linspace(-3, 3, 60).to(torch.bfloat16).view(6, 10)
    of_rows, of_columns = (results(gelu, z, torch.ones_like(z)) for z in (x, x.t()))
    for a, b in zip(of_rows, of_columns, strict=True):
        assert torch.equal(a, b.t())


def test_ends_of_the_range():
    """Values at which one factor under- or overflows: 0, x and its derivative 0 or 1."""
    x = torch.tensor([-1e30, -300.0, -1e-30, 0.0, 1e-30, 300.0, 1e4]).to(torch.bfloat16).requires_grad_()
    y = gelu(x)
    y.sum().backward()
    assert y.tolist() == [0, 0, (x[2] / 2).item(), 0, (x[4] / 2).item(), x[5].item(), x[6].item()]
    assert x.grad[1:].tolist() == [0, 0.5, 0.5, 0.5, 1, 1]


def test_only_bfloat16_training_on_a_cpu(monkeypatch):
    """float32 and every evaluation keep torch's kernel, and so their numbers; the other architectures never had it."""
    used = []
    apply = activations.LogisticGELU.apply
    monkeypatch.setattr(activations.LogisticGELU, "apply", lambda x: used.append(x.dtype) or apply(x))
    for arch in ("gpt2", "nanogpt", "speedrun"):
        config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=64, unused_ids=(), arch=arch)
        model, idx = GPT(config), torch.arange(32)[None]
        model(idx, idx)
        with torch.autocast("cpu", torch.bfloat16):
            model.per_token_loss(idx, idx)
            assert used == []
            model(idx, idx).backward()
        assert used == [torch.bfloat16] * (arch == "gpt2")
        used.clear()
