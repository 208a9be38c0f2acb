"""attention.py: what replaces torch's kernel in bfloat16 training on a CPU computes the same."""

import pytest
import torch
import torch.nn.functional as F

from lab import attention
from lab.attention import BLOCK, causal_attention
from model import GPT, GPTConfig


def make(T, dtype, width=16):
    """q, k, v (2, 3, T, width), as a block has them: views of one projection."""
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(2, T, 3, 3, width, generator=generator).to(torch.bfloat16).to(dtype).requires_grad_()
    return projected, [z.transpose(1, 2) for z in projected.unbind(2)]


def results(attend, T, dtype, width):
    """Output, and the gradient of a fixed sum of it."""
    projected, qkv = make(T, dtype, width)
    y = attend(*qkv)
    (y.float() * torch.linspace(-1, 1, width).cos()).pow(2).sum().backward()
    return y.detach().double(), projected.grad.double()


def torchs(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("width", [16, 24])  # 24 ** -0.5, which scales the queries, is no power of two
@pytest.mark.parametrize("T", [1, 7, BLOCK, BLOCK + 1, 2 * BLOCK + 44])
def test_as_near_to_the_truth_as_torchs_kernel(T, width):
    """Distances of outputs and gradients from those in float64: at most twice torch's own in bfloat16, which are its
    rounding, so at most 1 % of their size."""
    truth = results(torchs, T, torch.float64, width)
    for mine, torchs_own, exact in zip(results(attention.BlockAttention.apply, T, torch.bfloat16, width),
                                       results(torchs, T, torch.bfloat16, width), truth, strict=True):
        distance, usual = (mine - exact).norm(), (torchs_own - exact).norm()
        assert distance <= max(2 * usual, 1e-6) and distance <= 0.01 * exact.norm() + 1e-6


def test_only_bfloat16_training_on_a_cpu(monkeypatch):
    """float32 and every evaluation keep torch's kernel, and so their numbers."""
    used = []
    apply = attention.BlockAttention.apply
    monkeypatch.setattr(attention.BlockAttention, "apply", lambda *qkv: used.append(qkv[0].dtype) or apply(*qkv))
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=64, unused_ids=(), arch="speedrun"))
    idx = torch.arange(32)[None]
    model(idx, idx)
    with torch.autocast("cpu", torch.bfloat16):
        model.per_token_loss(idx, idx)
        with torch.no_grad():
            model(idx, idx)
    assert used == []
    with torch.autocast("cpu", torch.bfloat16):
        model(idx, idx).backward()
    assert used == [torch.bfloat16] and model.transformer["h"][0].attn.c_attn.weight.grad.dtype == torch.float32


def test_only_short_sequences_keep_probabilities(monkeypatch):
    """What is kept for the backward pass of a sequence of KEPT tokens: q, k, v and the probabilities of every block; of
    a longer one q, k and v, where the probabilities would be T x T a head. The gradients are the same to the bit."""
    monkeypatch.setattr(attention, "KEPT", 3 * BLOCK)
    _, qkv = make(3 * BLOCK, torch.bfloat16)
    y = attention.BlockAttention.apply(*qkv)
    assert [p.shape[1:] for p in y.grad_fn.saved_tensors[3:]] == [(BLOCK, n * BLOCK) for n in (1, 2, 3)]
    kept_grads = results(attention.BlockAttention.apply, 3 * BLOCK, torch.bfloat16, 16)[1]
    monkeypatch.setattr(attention, "KEPT", 3 * BLOCK - 1)
    y = attention.BlockAttention.apply(*qkv)
    assert sum(t.numel() for t in y.grad_fn.saved_tensors) == sum(t.numel() for t in qkv)
    assert torch.equal(results(attention.BlockAttention.apply, 3 * BLOCK, torch.bfloat16, 16)[1], kept_grads)


def test_every_position_sees_itself_and_what_is_before_it():
    """The output's change at positions before one whose key, value and query change: 0, across blocks, too."""
    _, qkv = make(BLOCK + 40, torch.bfloat16)
    for at in (5, BLOCK - 1, BLOCK, BLOCK + 7):
        other = [z.detach().clone() for z in qkv]
        for z in other:
            z[:, :, at] += 1
        with torch.autocast("cpu", torch.bfloat16):
            before, after = causal_attention(*qkv), causal_attention(*[z.requires_grad_() for z in other])
        same = (before == after).all(-1).all(1).all(0)
        assert same[:at].all() and not same[at]
