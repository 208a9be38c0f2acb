"""
The network: GPTConfig, GPT (two architectures, gated attention), the chunked loss, sampling, and its files on disk.

    python model.py                                        # parameters and FLOPs of the 124M shape
    python model.py --n_layer 6 --n_head 6 --n_embd 384 --attn_gate headwise

`gpt2` is GPT-2 exactly (learned positions, LayerNorm, tanh-GELU, tied head): weights copy to and from Hugging Face.
`speedrun` is the October-2024 NanoGPT speedrun shape: RoPE, RMSNorm without gain, QK-norm, ReLU^2, no biases,
zero-initialised output projections; use it with --n_head 6 at --n_embd 768 (heads of 128).

`GPT.save(folder)` writes `model.safetensors` (the tied weight once) and `model.json` (format, version, config).

>>> model = GPT(GPTConfig(attn_gate="headwise"), seed=0)
>>> loss = model(idx, targets)          # idx, targets (B, T) int64; targets of -100 are not scored
>>> nll = model.per_token_loss(idx, targets)   # (B, T) fp32, for evaluation
>>> scores = model.score_endings([(context_ids, [ending_ids, other_ending_ids])])   # log p of each ending's tokens
>>> texts = model.generate([prompt_ids, other_prompt_ids], 100, temperature=0.8, stop_ids=[50256])   # Completions
"""

import argparse
import functools
import hashlib
import json
import math
import os
import platform
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from operator import index
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

FORMAT = {"format": "moonshotgpt-model", "version": 1}
ARCHS = ("gpt2", "speedrun")
GATES = ("none", "headwise", "elementwise", "const")
GATE_POSITIONS = ("sdpa", "value")
GATE_ACTIVATIONS = ("sigmoid", "ns_sigmoid")
GATE_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
IGNORE = -100  # a target that is not scored, as in F.cross_entropy

# Rows of logits alive at once. CPU: 1.41, 1.31, 1.29, 1.27 CPU-s for 128, 256, 512, 1024 of them (measured, 1 thread,
# 1,024 rows, V 50304, C 384; torch 2.13's F.linear_cross_entropy: 8.3). CUDA: (assumption).
CHUNK_ROWS = {"cpu": 1024, "cuda": 4096}


# ----------------------------------------------------------------------------------------------------------------------
# configuration


@dataclass
class GPTConfig:
    """Shape of a model. Ranges in `unused_ids` are half-open, clipped to the vocabulary; together with ids from
    `vocab_size` to `padded_vocab_size` they are padding: their logit is -inf in every loss, score and sample."""

    vocab_size: int = 50349  # GPT-2's 50257, 47 unused ids, 45 multiplication tokens: the same in every arm
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_inner: int | None = None  # None: 4 * n_embd
    arch: str = "gpt2"
    attn_gate: str = "none"
    gate_pos: str = "sdpa"
    gate_act: str = "sigmoid"
    padded_vocab_size: int | None = None  # rows of the tied matrix; None: vocab_size
    unused_ids: tuple = ((50257, 50304),)

    def __post_init__(self):
        if self.n_inner is None and isinstance(self.n_embd, int):
            self.n_inner = 4 * self.n_embd
        if self.padded_vocab_size is None:
            self.padded_vocab_size = self.vocab_size
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_inner", "padded_vocab_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; give a whole number of at least 1")
        for name, known in (("arch", ARCHS), ("attn_gate", GATES), ("gate_pos", GATE_POSITIONS),
                            ("gate_act", GATE_ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; use one of {', '.join(known)}")
        works = [h for h in range(1, self.n_embd + 1) if self.n_embd % h == 0]
        if self.arch == "speedrun":
            works = [h for h in works if self.n_embd // h % 2 == 0]
        if self.n_head not in works:
            why = "heads of equal size" if self.arch == "gpt2" else "heads of equal and even size (RoPE turns pairs)"
            raise ValueError(f"n_embd {self.n_embd} does not split into {self.n_head} {why}; "
                             + (f"use n_head {', '.join(map(str, works))}" if works else "use an even n_embd"))
        if self.padded_vocab_size < self.vocab_size:
            raise ValueError(f"padded_vocab_size {self.padded_vocab_size} is below vocab_size {self.vocab_size}; "
                             "give at least vocab_size, or leave it out")
        self.unused_ids = tuple((int(a), int(b)) for a, b in self.unused_ids)

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def masked_ranges(self) -> list[tuple[int, int]]:
        """Half-open ranges of padding ids within the padded vocabulary."""
        clipped = [(max(a, 0), min(b, self.vocab_size)) for a, b in self.unused_ids]
        return [(a, b) for a, b in [*clipped, (self.vocab_size, self.padded_vocab_size)] if a < b]

    def to_dict(self) -> dict:
        """JSON-ready; `from_dict` gives the same configuration back."""
        return {**asdict(self), "unused_ids": [list(r) for r in self.unused_ids]}

    @classmethod
    def from_dict(cls, values: dict) -> "GPTConfig":
        known = [f.name for f in fields(cls)]
        if wrong := sorted(set(values) ^ set(known)):
            raise ValueError(f"the model's configuration has missing or unknown entries ({', '.join(wrong)}); "
                             "use a file written by this version's GPT.save")
        return cls(**values)


# ----------------------------------------------------------------------------------------------------------------------
# the loss: head, softmax and their gradients, a chunk of rows at a time

_local = threading.local()


def _workspace(rows: int, cols: int, device: torch.device) -> torch.Tensor:
    """(rows, cols) fp32, uninitialised. On a CPU one buffer per thread is kept, because a fresh one of 100 MB
    page-faults at every step; a GPU has a caching allocator. Nothing saved for backward may point into it."""
    if device.type != "cpu":
        return torch.empty(rows, cols, device=device)
    if getattr(_local, "buffer", None) is None or _local.buffer.numel() < rows * cols:
        with torch.inference_mode(False):  # a buffer born in inference mode could not be written in training
            _local.buffer = torch.empty(rows * cols, device=device)
    return _local.buffer[: rows * cols].view(rows, cols)


def _head_chunks(x, weight, targets, masked_ranges, row_weight, dtype):
    """NLL of each row, and the gradients of sum(row_weight * nll), with at most CHUNK_ROWS rows of logits alive.

    x (N, C), weight (V, C), targets (N,) with IGNORE allowed, row_weight (N,) fp32 or None for no gradients.
    Products in `dtype`, softmax in fp32. Returns nll (N,) fp32, 0 where ignored, grad_x (N, C), grad_w (V, C)."""
    N, V = x.size(0), weight.size(0)
    chunk = max(1, min(N, CHUNK_ROWS.get(x.device.type, 4096)))
    buffer = _workspace(chunk, V, x.device)
    nll = torch.empty(N, device=x.device)
    want_grad = row_weight is not None
    grad_x = torch.empty_like(x) if want_grad else None
    grad_w = torch.empty_like(weight) if want_grad and N else (torch.zeros_like(weight) if want_grad else None)
    w = weight.to(dtype)
    safe_targets = targets.clamp(min=0).unsqueeze(1)
    for start in range(0, N, chunk):
        rows = slice(start, min(start + chunk, N))
        x_rows = x[rows].to(dtype)
        logits = buffer[: x_rows.size(0)]
        if dtype == torch.float32:
            torch.mm(x_rows, w.t(), out=logits)
        else:
            logits.copy_(x_rows @ w.t())
        for a, b in masked_ranges:
            logits[:, a:b] = -math.inf
        t = safe_targets[rows]
        if x.device.type == "cpu":
            probs = torch.softmax(logits, dim=1, out=logits)
            p = probs.gather(1, t).squeeze(1)
            nll[rows] = p.log().neg_()
            if (lost := p < 1e-30).any():  # underflow: rare, so these rows are formed again and scored exactly
                z = (x_rows[lost] @ w.t()).float()
                for a, b in masked_ranges:
                    z[:, a:b] = -math.inf
                nll[rows][lost] = z.logsumexp(1) - z.gather(1, t[lost]).squeeze(1)
        else:  # the same without waiting for the device: -log p = gap - log(largest p); costs two maxima over the rows
            gap = logits.amax(1, keepdim=True) - logits.gather(1, t)
            probs = torch.softmax(logits, dim=1, out=logits)
            nll[rows] = (gap - probs.amax(1, keepdim=True).log_()).squeeze(1)
        if not want_grad:
            continue
        # The gradient of the logits takes their place; the row's weight goes to the two narrow factors instead.
        dlogits = probs.scatter_add_(1, t, torch.full_like(t, -1.0, dtype=torch.float32)).to(dtype)
        r = row_weight[rows].unsqueeze(1)
        grad_x[rows] = (dlogits @ w) * r
        weighted = (x[rows] * r).to(dtype)
        if dtype != torch.float32:
            product = dlogits.t() @ weighted
            grad_w.copy_(product) if start == 0 else grad_w.add_(product)
        elif start == 0:
            torch.mm(dlogits.t(), weighted, out=grad_w)
        else:
            grad_w.addmm_(dlogits.t(), weighted)
    return nll.masked_fill_(targets == IGNORE, 0.0), grad_x, grad_w


class _HeadLoss(torch.autograd.Function):
    """sum(nll) / denominator; forward already forms both gradients, so the logits never outlive their chunk."""

    @staticmethod
    def forward(ctx, x, weight, targets, masked_ranges, denominator, dtype):
        row_weight = (targets != IGNORE).float() / denominator
        nll, ctx.grad_x, ctx.grad_w = _head_chunks(x, weight, targets, masked_ranges, row_weight, dtype)
        ctx.save_for_backward(x, weight, targets, row_weight)
        ctx.args = masked_ranges, dtype
        return nll.sum() / denominator

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss):
        x, weight, targets, row_weight = ctx.saved_tensors
        grad_x, grad_w, ctx.grad_x, ctx.grad_w = ctx.grad_x, ctx.grad_w, None, None
        if grad_w is None:  # a second backward under retain_graph
            _, grad_x, grad_w = _head_chunks(x, weight, targets, ctx.args[0], row_weight, ctx.args[1])
        if grad_loss.device.type != "cpu" or grad_loss != 1:  # on a GPU the comparison would wait for the device
            grad_x.mul_(grad_loss)
            grad_w.mul_(grad_loss)
        return grad_x, grad_w, None, None, None, None


class _Tie(torch.autograd.Function):
    """The tied matrix, once for the embedding and once for the head. Backward adds the embedding's few sparse rows to
    the head's dense gradient in place; autograd's own sum makes one or two more matrices of that size."""

    @staticmethod
    def forward(ctx, weight):
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_embedding, grad_head):
        return grad_head.add_(grad_embedding)


@torch.compiler.disable  # its own kernels are the fast ones; torch.compile breaks the graph here and compiles the rest
def chunked_cross_entropy(x, weight, targets, masked_ranges=(), denominator=None, reduce=True) -> torch.Tensor:
    """Cross-entropy of the logits x @ weight.T, without ever holding (N, V) of them.

    x (N, C), weight (V, C), targets (N,) int64, IGNORE = not scored (on a CPU it costs nothing either: a conversation's
    questions). reduce: scalar sum(nll) / denominator (default the number of scored targets), differentiable in x and
    weight; otherwise nll (N,) fp32 without gradient."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        scored, N = targets != IGNORE, len(targets)
        if denominator is None:
            denominator = scored.sum().clamp(min=1)
        if device == "cpu" and not scored.all():  # a GPU would wait for the count
            kept = scored.nonzero().squeeze(1)
            x, targets = x[kept], targets[kept]
        if not reduce:
            nll = _head_chunks(x.detach(), weight.detach(), targets, masked_ranges, None, dtype)[0]
            return nll if len(nll) == N else nll.new_zeros(N).index_copy_(0, kept, nll)
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return _HeadLoss.apply(x, weight, targets, masked_ranges, denominator, dtype)
        return _head_chunks(x, weight, targets, masked_ranges, None, dtype)[0].sum() / denominator


# ----------------------------------------------------------------------------------------------------------------------
# weights in oneDNN's layout: on an AMD EPYC its fp32 product takes 0.45 of the time of MKL's (measured)


def can_pack(weight) -> bool:
    """x86 CPUs, fp32, no autocast, a torch built with oneDNN."""
    return (weight.device.type == "cpu" and weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
            and all(hasattr(torch.ops.mkldnn, op) for op in ("_reorder_linear_weight", "_linear_pointwise")))


def pack(weight):
    # 64 rows: the layout for 1 row is several times slower for more, this one no slower for 1 (measured)
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 64)


def packed_linear(x, packed, bias):
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


@contextmanager
def packed_weights(module):
    """While open, the matrix products of module (a GPT or one of its blocks) take packed copies of its weights, where
    can_pack. Elsewhere nothing happens. For use without gradients.

    A product of few rows otherwise spends its time on rearranging the weight, at every call: 16 rows of the 124M shape
    take 81 ms without and 32 ms with it (measured). The copy takes as much memory as the weights."""
    modules = [m for m in module.modules() if isinstance(m, Linear)]
    modules += [module.transformer["wte"]] if hasattr(module, "transformer") else []
    try:
        for m in modules:
            if can_pack(m.weight):
                m.packed = pack(m.weight)
        yield
    finally:
        for m in modules:
            m.packed = None


# ----------------------------------------------------------------------------------------------------------------------
# blocks


class Linear(nn.Linear):
    packed = None  # the weight in oneDNN's own layout, while packed_weights is open

    def reset_parameters(self):
        """Nothing: GPT draws every weight by name, and the global generator is left alone."""

    def forward(self, x):
        return super().forward(x) if self.packed is None else packed_linear(x, self.packed, self.bias)


class Embedding(nn.Embedding):
    packed = None  # as in Linear, for the head

    def reset_parameters(self):
        """Nothing, as in Linear."""


class RMSNorm(nn.Module):
    """x / rms(x), no gain."""

    def forward(self, x):
        return F.rms_norm(x, (x.size(-1),))


def gate_activation(z: torch.Tensor, act: str) -> torch.Tensor:
    """sigmoid: (0, 1); ns_sigmoid ("non-sparse"): (0.5, 1)."""
    g = torch.sigmoid(z)
    return g if act == "sigmoid" else 0.5 + 0.5 * g


def rope_tables(block_size: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos, sin (block_size, head_dim / 2) fp32, base 10000 (Su et al. 2021, arXiv:2104.09864)."""
    inv_freq = 10000.0 ** (-torch.arange(0, head_dim, 2, device="cpu").float() / head_dim)
    angles = torch.outer(torch.arange(block_size, device="cpu").float(), inv_freq)
    return angles.cos(), angles.sin()


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (B, T, H, dh); turns the pairs (i, i + dh/2), the halves layout of the speedrun. cos, sin (T, dh/2) or, with
    positions of their own in every row, (B, T, dh/2)."""
    x1, x2 = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1).type_as(x)


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q, k, v (B, H, T, dh) -> (B, H, T, dh); every position sees itself and what is before it."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        C, bias = config.n_embd, config.arch == "gpt2"
        self.c_attn = Linear(C, 3 * C, bias=bias)
        self.c_proj = Linear(C, C, bias=bias)
        if config.attn_gate == "headwise":
            self.gate = Linear(C, config.n_head, bias=False)
        elif config.attn_gate == "elementwise":
            self.gate = Linear(C, C, bias=False)
        elif config.attn_gate == "const":
            self.gate_table = nn.Parameter(torch.empty(config.n_head, config.head_dim))

    def gate_values(self, x):
        """g, broadcastable to (B, T, H, dh), from the block's normalised input x (B, T, C); None without a gate."""
        B, T, _ = x.shape
        if self.config.attn_gate == "none":
            return None
        if self.config.attn_gate == "const":
            return gate_activation(self.gate_table, self.config.gate_act)
        return gate_activation(self.gate(x).view(B, T, self.config.n_head, -1), self.config.gate_act)

    def qkv(self, x, rope, rows=None):
        """q, k, v, each (B, T, H, dh), as they enter attention but for the gate. rows: see forward."""
        B, T, C = x.shape
        heads = self.config.n_head, self.config.head_dim
        if rows is None:
            q, k, v = self.c_attn(x).view(B, T, 3, *heads).unbind(2)
        else:
            w, b = self.c_attn.weight, self.c_attn.bias
            q = F.linear(x[:, rows], w[:C], None if b is None else b[:C]).view(B, len(rows), *heads)
            k, v = F.linear(x, w[C:], None if b is None else b[C:]).view(B, T, 2, *heads).unbind(2)
        if rope is not None:
            q_rope = rope if rows is None else [table[..., rows, :] for table in rope]
            q, k = (F.rms_norm(apply_rope(z, *at), (self.config.head_dim,)) for z, at in ((q, q_rope), (k, rope)))
        return q, k, v

    def forward(self, x, rope, attend=causal_attention, rows=None):
        """x (B, T, C) -> (B, T, C). rows (R,) int64: only these positions ask, the result is (B, R, C), and `attend`
        gets R queries and T keys."""
        q, k, v = self.qkv(x, rope, rows)
        asking = x if rows is None else x[:, rows]
        if self.config.attn_gate != "none" and self.config.gate_pos == "value":
            v = v * self.gate_values(x).to(v.dtype)
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)  # (B, R, H, dh)
        if self.config.attn_gate != "none" and self.config.gate_pos == "sdpa":
            y = y * self.gate_values(asking).to(y.dtype)
        return self.c_proj(y.reshape(asking.shape))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.arch = config.arch
        self.c_fc = Linear(config.n_embd, config.n_inner, bias=config.arch == "gpt2")
        self.c_proj = Linear(config.n_inner, config.n_embd, bias=config.arch == "gpt2")

    def forward(self, x):
        x = self.c_fc(x)
        return self.c_proj(F.gelu(x, approximate="tanh") if self.arch == "gpt2" else F.relu(x).square())


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        norm = (lambda: nn.LayerNorm(config.n_embd)) if config.arch == "gpt2" else RMSNorm
        self.ln_1 = norm()
        self.attn = Attention(config)
        self.ln_2 = norm()
        self.mlp = MLP(config)

    def forward(self, x, rope, attend=causal_attention, rows=None):
        y = self.attn(self.ln_1(x), rope, attend, rows=rows)
        x = (x if rows is None else x[:, rows]) + y
        return x + self.mlp(self.ln_2(x))


# ----------------------------------------------------------------------------------------------------------------------
# likelihoods: many endings of shared contexts as trees of tokens

# Tokens of one forward pass, columns of logits at a time (elsewhere all), and nodes that ask at a time. CPU: measured
# (evals.py in experiments/bench); CUDA: (assumption).
SCORE_TOKENS = {"cpu": 2048, "cuda": 16_384}
HEAD_COLUMNS = {"cpu": 2048}
QUERY_ROWS = 64
PAD_TREES = {"cpu": 0, "cuda": 64}  # multiple to which trees are padded to attend together; 0: one after the other
PACK_ROWS = 128  # tokens from which on packing a weight for one product saves more than it costs (measured: 0.7 at 160)
TREE_TOKENS = 4096  # a tree is not grown beyond this: its mask has the square of its tokens as entries


def n_truncated(items, block_size: int) -> int:
    """How many (item, ending) pairs are longer than block_size + 1 tokens, so that the model does not see all of their
    context. items as in GPT.score_endings."""
    return sum(len(context) + len(ending) > block_size + 1 for context, endings in items for ending in endings)


def _check_items(items, config: GPTConfig) -> None:
    for i, (context, endings) in enumerate(items):
        if len(context) == 0:
            raise ValueError(f"item {i} has an empty context, so nothing predicts its endings' first tokens; start the "
                             "context with BOS")
        for ending in endings:
            if len(ending) == 0:
                raise ValueError(f"item {i} has an empty ending; give every ending at least one token")
            if len(ending) > config.block_size:
                raise ValueError(f"item {i} has an ending of {len(ending)} tokens but the model's block_size is "
                                 f"{config.block_size}; leave the item out or use a model with a larger block_size")
        for ids in (context, *endings):
            if min(ids) < 0 or max(ids) >= config.padded_vocab_size:
                wrong = min(ids) if min(ids) < 0 else max(ids)
                raise ValueError(f"item {i} has token id {wrong}, outside this model's {config.padded_vocab_size} ids; "
                                 "encode it with the tokenizer of the model's training data")


def _grow_trees(sequences: list[list[int]], n_embd: int):
    """Lays token sequences out as trees, in which a shared beginning stands once.

    A node sees itself and its ancestors. Nodes are numbered depth first, so node j is an ancestor of i, or i itself,
    when j <= i < ends[j]. A sequence joins the tree of the one before it in sorted order if the 24 C^2 FLOPs per layer
    and shared token that it saves are more than the 8 C of each new pair of nodes in one tree's mask.
    Returns tokens, depths, ends, one entry per node; (first, last + 1) nodes of each tree; each sequence's nodes."""
    tokens, depths, ends, starts = [], [], [], []
    nodes_of: list[list[int]] = [[]] * len(sequences)
    path, before = [], []
    for s in sorted(range(len(sequences)), key=sequences.__getitem__):
        sequence = sequences[s]
        shared = next((i for i, (a, b) in enumerate(zip(before, sequence, strict=False)) if a != b),
                      min(len(before), len(sequence)))
        size, new = len(tokens) - starts[-1] if starts else 0, len(sequence) - shared
        if not starts or new and (3 * n_embd * shared <= size * new or size + new > TREE_TOKENS):
            starts.append(len(tokens))
            shared = 0
        for node in path[shared:]:
            ends[node] = len(tokens)
        path = path[:shared] + list(range(len(tokens), len(tokens) + len(sequence) - shared))
        tokens += sequence[shared:]
        depths += range(shared, len(sequence))
        ends += [0] * (len(sequence) - shared)
        nodes_of[s], before = path, sequence
    for node in path:
        ends[node] = len(tokens)
    return tokens, depths, ends, list(zip(starts, [*starts[1:], len(tokens)], strict=True)), nodes_of


def _sees(asking, keys, ends):
    """Whether node asking[..., i] sees node keys[..., j], as bool (..., i, j)."""
    asking, before = asking.unsqueeze(-1), keys.unsqueeze(-2)
    return (before <= asking) & (asking < ends[keys].unsqueeze(-2))


def _attend_in_turn(trees, ends, rows):
    """An `attend` for trees that stand in one row: q (1, H, R, dh) of the nodes `rows` (R,), ascending; k and v
    (1, H, N, dh) of all nodes."""
    pieces = []
    for first, last in trees:
        start, stop = torch.searchsorted(rows, torch.tensor([first, last])).tolist()
        for at in range(start, stop, QUERY_ROWS):
            asking = rows[at : min(at + QUERY_ROWS, stop)]
            keys = torch.arange(first, int(asking[-1]) + 1)  # depth first: nobody sees a later node
            pieces.append((slice(at, at + len(asking)), slice(first, first + len(keys)),
                           _sees(asking, keys, ends)[None, None]))

    def attend(q, k, v):
        return torch.cat([F.scaled_dot_product_attention(q[:, :, asking], k[:, :, keys], v[:, :, keys], mask)
                          .transpose(1, 2) for asking, keys, mask in pieces], 1).transpose(1, 2)

    return attend


def _attend_padded(trees, ends, rows, pad):
    """The same in few launches: trees of about the same size, padded to a multiple of `pad`, attend together."""
    def spread(firsts, sizes):
        """Runs of numbers as rows of one matrix, filled up with their last number; and which entries are no filling."""
        first, size = (torch.tensor(v, device=rows.device)[:, None] for v in (firsts, sizes))
        at = torch.arange(-(-max(sizes) // pad) * pad, device=rows.device)
        return first + torch.minimum(at, size - 1), at < size

    firsts = [first for first, _ in trees]
    edges = torch.searchsorted(rows, torch.tensor([*firsts, trees[-1][1]], device=rows.device)).tolist()
    alike = {}
    for (first, last), start, stop in zip(trees, edges, edges[1:], strict=False):
        sizes = last - first, stop - start
        alike.setdefault(tuple(-(-size // pad) for size in sizes), []).append((first, start, *sizes))
    pieces, places = [], []
    for group in alike.values():
        first, start, n_keys, n_asking = zip(*group, strict=True)
        keys, real = spread(first, n_keys)
        asking, wanted = spread(start, n_asking)
        pieces.append((asking, keys, (_sees(rows[asking], keys, ends) & real[:, None])[:, None], wanted))
        places.append(asking[wanted])
    back = torch.cat(places).argsort()
    pieces = [(asking, keys, mask, wanted.flatten().nonzero()[:, 0]) for asking, keys, mask, wanted in pieces]

    def attend(q, k, v):
        q, k, v = (z[0].transpose(0, 1) for z in (q, k, v))  # (N, H, dh)
        out = []
        for asking, keys, mask, wanted in pieces:
            y = F.scaled_dot_product_attention(*(z.transpose(1, 2) for z in (q[asking], k[keys], v[keys])), mask)
            out.append(y.transpose(1, 2).flatten(0, 1)[wanted])
        return torch.cat(out)[back].transpose(0, 1)[None]

    return attend


def _head_log_probs(x, weight, rows, targets, masked_ranges) -> torch.Tensor:
    """log p (E,) fp32 of targets (E,) after the hidden states x (N, C) numbered rows (E,), ascending; both on the CPU.

    At most CHUNK_ROWS x HEAD_COLUMNS logits are alive. Products in x's dtype or the autocast's, softmax in fp32."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        N, V = x.size(0), weight.size(0)
        chunk, width = min(N, CHUNK_ROWS.get(device, 4096)), min(V, HEAD_COLUMNS.get(device, V))
        buffer, w, out = _workspace(chunk, width, x.device).flatten(), weight.to(dtype), []
        edges = torch.searchsorted(rows, torch.arange(0, N + chunk, chunk)).tolist()
        for start, a, b in zip(range(0, N, chunk), edges, edges[1:], strict=False):
            x_rows = x[start : start + chunk].to(dtype)
            wanted, order = targets[a:b].sort(stable=True)
            at = (rows[a:b][order] - start).to(x.device)
            cuts = torch.searchsorted(wanted, torch.arange(0, V + width, width)).tolist()
            wanted = wanted.to(x.device)
            chosen = torch.empty(b - a, device=x.device)
            largest = torch.full((len(x_rows), 1), torch.finfo(torch.float32).min, device=x.device)
            total = torch.zeros(len(x_rows), 1, device=x.device)
            for left, c, d in zip(range(0, V, width), cuts, cuts[1:], strict=False):
                right = min(left + width, V)
                logits = buffer[: len(x_rows) * (right - left)].view(len(x_rows), -1)
                if dtype == torch.float32 and len(x_rows) >= PACK_ROWS and can_pack(w):
                    logits = packed_linear(x_rows, pack(w[left:right]), None)
                elif dtype == torch.float32:
                    torch.mm(x_rows, w[left:right].t(), out=logits)
                else:
                    logits.copy_(x_rows @ w[left:right].t())
                for first, last in masked_ranges:
                    logits[:, max(first - left, 0) : max(last - left, 0)] = -math.inf
                chosen[c:d] = logits[at[c:d], wanted[c:d] - left]
                new = torch.maximum(largest, logits.amax(1, keepdim=True))
                total = total * (largest - new).exp_() + (logits.sub_(new)).exp_().sum(1, keepdim=True)
                largest = new
            log_sum = (largest + total.log_())[:, 0]
            out.append((chosen - log_sum[at])[order.argsort().to(x.device)])
        return torch.cat(out)


# ----------------------------------------------------------------------------------------------------------------------
# generation

PREFILL_TOKENS = {"cpu": 2048, "cuda": 16384}  # prompt tokens in one forward (assumption)
# Packing costs 5 to 10 decoding steps and saves a fifth of one at one row, half of one from 4 rows on (measured).
PACK_FROM = 96  # new tokens times rows, of which at most 4 count


class Completion(NamedTuple):
    """ids: the new tokens, without a stop id. stopped: why they end, "stop_id", "stop_string" or "length"."""

    ids: list[int]
    stopped: str


def choose_tokens(logits, u, temperature, top_k, top_p) -> torch.Tensor:
    """logits (N, V), u (N,) fp64 in [0, 1), unused when temperature is 0 -> ids (N,) int64; see GPT.generate."""
    best, ids = logits.max(1, keepdim=True)
    if best.isnan().any():
        raise ValueError("the model's logits are not numbers; use a checkpoint from before its loss diverged")
    if temperature == 0:
        return ids.squeeze(1)
    if logits.device.type not in ("cpu", "cuda"):  # no fp64 elsewhere
        logits, best = logits.cpu(), best.cpu()
    ids = None
    if top_k is not None and top_k < logits.size(1):
        kth = logits.topk(top_k).values[:, -1:]
        ids = logits.topk(int((logits >= kth).sum(1).max())).indices.sort(1).values  # more than top_k where some tie
        logits = logits.gather(1, ids)
        logits = logits.masked_fill(logits < kth, -math.inf)
    weights = ((logits.float() - best.float()) / max(temperature, 1e-30)).exp()  # the best one's is 1
    if top_p is not None and top_p < 1:
        weights = smallest_set(weights, top_p)
    total = weights.cumsum(1, dtype=torch.float64)
    end = total[:, -1:].contiguous()
    at = torch.searchsorted(total, u.to(total.device)[:, None] * end, right=True)
    at = torch.minimum(at, torch.searchsorted(total, end))  # a product that rounds up to end is beyond every id
    return (at if ids is None else ids.gather(1, at)).squeeze(1)


def smallest_set(weights, share) -> torch.Tensor:
    """weights (N, V) >= 0, with zeros outside the fewest entries of each row whose sum reaches share of its sum; of
    equal weights the first ones stay."""
    V = weights.size(1)
    goal = share * weights.sum(1, keepdim=True, dtype=torch.float64)
    n = min(64, V)  # sorting whole rows would take longer than the model
    while True:
        top = weights.topk(n).values
        reached = top.cumsum(1, dtype=torch.float64)
        if n == V or (reached[:, -1:] >= goal).all():
            break
        n = min(16 * n, V)
    size = (reached < goal).sum(1, keepdim=True).clamp(max=n - 1) + 1
    least = top.gather(1, size - 1)
    equal, left = weights == least, size - (weights > least).sum(1, keepdim=True)
    out = weights < least
    if (equal.sum(1, keepdim=True) > left).any():
        out |= equal & (equal.cumsum(1) > left)
    return weights.masked_fill(out, 0.0)


def stop_string_cut(ids, stop_strings, decode) -> int | None:
    """How many of the last ids to drop when their text has a stop string; None when it has none."""
    text = decode(ids)
    found = [at for at in map(text.find, stop_strings) if at >= 0]
    if not found:
        return None
    before = text[: min(found)]
    return next((n for n in range(1, len(ids) + 1) if decode(ids[: len(ids) - n]) == before), 0)


def compact(live, keep, cache) -> list:
    """The rows of live to keep, moved in the cache (..., rows, n_head, width, head_dim) to its first places: rows from
    the end take the places of those that leave, so that each of these costs one copy of a row."""
    live, n = list(live), sum(keep)
    free = [i for i in range(n) if not keep[i]]
    for i, j in zip(free, [j for j in range(n, len(live)) if keep[j]], strict=True):
        live[i] = live[j]
        cache[:, :, i] = cache[:, :, j]
    return live[:n]


# ----------------------------------------------------------------------------------------------------------------------
# the model


def seeded_generator(text: str) -> torch.Generator:
    """A CPU generator whose seed is a hash of text: streams of different texts have nothing in common."""
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class GPT(nn.Module):
    """A GPT of either architecture. Every weight is drawn on the CPU in fp32 from its own generator, seeded by
    (seed, name): a gate, a padded vocabulary, the device, the number of threads leave all shared weights bit-identical.
    seed=None leaves the weights unset, for a caller that fills them."""

    def __init__(self, config: GPTConfig, seed: int | None = 0):
        super().__init__()
        self.config = config
        modules = {"wte": Embedding(config.padded_vocab_size, config.n_embd)}
        if config.arch == "gpt2":
            modules["wpe"] = Embedding(config.block_size, config.n_embd)
        modules["h"] = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        modules["ln_f"] = nn.LayerNorm(config.n_embd) if config.arch == "gpt2" else RMSNorm()
        self.transformer = nn.ModuleDict(modules)  # names as in Hugging Face GPT-2
        device = self.transformer["wte"].weight.device
        mask = torch.zeros(config.padded_vocab_size, dtype=torch.bool, device="cpu")
        for a, b in config.masked_ranges:
            mask[a:b] = True
        self.register_buffer("padding_mask", mask.to(device), persistent=False)
        if config.arch == "speedrun":
            cos, sin = rope_tables(config.block_size, config.head_dim)
            self.register_buffer("cos", cos.to(device), persistent=False)
            self.register_buffer("sin", sin.to(device), persistent=False)
        if seed is not None and device.type != "meta":
            self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed: int):
        """gpt2: normal 0.02, residual projections 0.02 / sqrt(2 n_layer) (GPT-2 paper, section 2.3), zero biases.
        speedrun: uniform +-1/sqrt(n_embd) as torch's Linear, zero output projections. Gates: normal 0.02; the const
        table zeros, i.e. act(0), where the other gates also start on average. Rows from vocab_size on are zero."""
        for name, p in self.named_parameters():
            generator = seeded_generator(f"{seed}/{name}")
            value = torch.zeros(p.shape, device="cpu")
            drawn = value[: self.config.vocab_size] if "wte" in name else value
            if name.endswith(".bias") or name.endswith("gate_table"):
                pass
            elif ".ln_" in name:
                value.fill_(1.0)
            elif ".gate." in name:
                drawn.normal_(0.0, 0.02, generator=generator)
            elif self.config.arch == "gpt2":
                std = 0.02 / math.sqrt(2 * self.config.n_layer) if "c_proj" in name else 0.02
                drawn.normal_(0.0, std, generator=generator)
            elif "c_proj" not in name:
                bound = 1 / math.sqrt(self.config.n_embd)
                drawn.uniform_(-bound, bound, generator=generator)
            p.copy_(value)

    def embed(self, idx, wte=None, positions=None):
        """idx (B, T) -> x (B, T, C) and the RoPE tables of its positions, or None. positions (T,) or (B, T) int64, each
        below block_size; None: 0 .. T-1."""
        T = idx.size(1)
        if positions is None and T > self.config.block_size:
            raise ValueError(f"the sequence has {T} tokens but the model's block_size is {self.config.block_size}; "
                             "shorten it or build the model with a larger block_size")
        at = slice(T) if positions is None else positions
        x = F.embedding(idx, self.transformer["wte"].weight) if wte is None else F.embedding(idx, wte, sparse=True)
        if self.config.arch == "gpt2":
            return x + self.transformer["wpe"].weight[at], None
        return x, (self.cos[at], self.sin[at])

    def hidden(self, idx, wte=None):
        """Final normalised hidden states (B, T, C): the input of the head. wte: its view from _Tie, if there is one."""
        x, rope = self.embed(idx, wte)
        for block in self.transformer["h"]:
            x = block(x, rope)
        return self.transformer["ln_f"](x)

    def head(self, x):
        """Logits (..., padded_vocab) of hidden states (..., C); padding ids are -inf."""
        wte = self.transformer["wte"]
        logits = F.linear(x, wte.weight) if wte.packed is None else packed_linear(x, wte.packed, None)
        for a, b in self.config.masked_ranges:  # in place: a copy of the logits costs as much as sampling from them
            logits[..., a:b] = -math.inf
        return logits

    def forward(self, idx, targets=None, loss_denominator=None):
        """idx (B, T) int64. Without targets: logits (B, T, padded_vocab). With targets (B, T) int64: the scalar
        sum of -log p(target) over targets != -100, divided by loss_denominator (default: their number). A target that
        is a padding id makes the loss infinite."""
        if targets is None:
            return self.head(self.hidden(idx))
        wte_in, wte_out = None, self.transformer["wte"].weight
        # Not under torch.compile, which cannot trace sparse gradients, nor on a GPU: their sum is not deterministic.
        if idx.device.type == "cpu" and not torch.compiler.is_compiling() and torch.is_grad_enabled():
            wte_in, wte_out = _Tie.apply(wte_out)
        return chunked_cross_entropy(self.hidden(idx, wte_in).flatten(0, 1), wte_out, targets.flatten(),
                                     self.config.masked_ranges, loss_denominator)

    @torch.no_grad()
    def per_token_loss(self, idx, targets):
        """-log p(target) in nats, (B, T) fp32, 0 where the target is -100: the loss of every validation."""
        x = self.hidden(idx)
        return chunked_cross_entropy(x.flatten(0, 1), self.transformer["wte"].weight, targets.flatten(),
                                     self.config.masked_ranges, reduce=False).view(targets.shape)

    def score_endings(self, items, batch_size=None, batch_tokens=None) -> list[list[torch.Tensor]]:
        """log p of every token of every ending, given its context and the ending's earlier tokens.

        items: (context ids, [ending ids, ...]) pairs of plain lists. Returns, for every item and ending, a 1-D fp32 CPU
        tensor with one natural-log probability per token: softmax in fp32 over the logical ids; a padding id has -inf.
        The rule for what does not fit is lm-evaluation-harness's: the model sees the last block_size + 1 tokens of
        context + ending, each ending by its own length (n_truncated counts those that lose some of their context).

        batch_size: items per forward pass; batch_tokens: tokens per forward pass, as if nothing were shared, though
        always at least one item; None: no limit on items, SCORE_TOKENS. Scores do not depend on either (to 1e-4), nor
        on the items' order; identical endings of an item get identical bits. Everything is fp32, with fp32 weights,
        unless the caller opens an autocast. Takes no random numbers and changes nothing in the model; compiled wrappers
        forward it to the module itself. ValueError: empty context (start it with BOS) or ending, ending longer than
        block_size, id outside the vocabulary."""
        items = list(items)
        scores = [[]] * len(items)
        for i, item_scores in self.iter_scores(items, batch_size, batch_tokens):
            scores[i] = item_scores
        return scores

    def iter_scores(self, items: Sequence, batch_size=None, batch_tokens=None) -> Iterator[tuple[int, list]]:
        """score_endings as a generator of (index of the item, its list of tensors), for a caller that shows progress or
        stops in between: a forward pass's items come together, right after it, in the sorted order of their contexts
        (items whose contexts begin alike share that beginning), each index once. Errors are raised here, before the
        first pass."""
        for name, value in (("batch_size", batch_size), ("batch_tokens", batch_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give at least 1, or None")
        _check_items(items, self.config)
        device = self.transformer["wte"].weight.device.type
        budget = batch_tokens or SCORE_TOKENS.get(device, SCORE_TOKENS["cuda"])
        batches, room = [], 0
        for i in sorted(range(len(items)), key=lambda i: list(items[i][0])):
            size = len(items[i][0]) + sum(map(len, items[i][1]))
            if not batches or size > room or len(batches[-1]) == batch_size:
                batches.append([])
                room = budget
            batches[-1].append(i)
            room -= size
        return self._score_batches(items, batches)

    @torch.no_grad()
    def _score_batches(self, items, batches):
        for batch in batches:
            pairs = [([*items[i][0], *ending][-self.config.block_size - 1 :], ending) for i in batch
                     for ending in items[i][1]]
            scores = iter(self._score_pairs(pairs) if pairs else [])
            for i in batch:
                yield i, [next(scores) for _ in items[i][1]]

    def _score_pairs(self, pairs):
        """pairs: (what the model sees of context + ending, ending). One forward pass; a list of fp32 CPU tensors."""
        weight = self.transformer["wte"].weight
        tokens, depths, ends, trees, nodes_of = _grow_trees([seen[:-1] for seen, _ in pairs], self.config.n_embd)
        predictors = torch.tensor([n for nodes, (_, e) in zip(nodes_of, pairs, strict=True) for n in nodes[-len(e) :]])
        rows, row_of = predictors.unique(return_inverse=True)
        row_of, order = row_of.sort(stable=True)
        targets = torch.tensor([t for _, ending in pairs for t in ending])[order]

        tokens, depths, ends, asking = (torch.as_tensor(v, device=weight.device) for v in (tokens, depths, ends, rows))
        pad = PAD_TREES.get(weight.device.type, PAD_TREES["cuda"])
        attend = functools.partial(_attend_padded, pad=pad) if pad else _attend_in_turn
        x, rope = self.embed(tokens[None], positions=depths[None])
        everyone = attend(trees, ends, torch.arange(len(tokens), device=weight.device))
        *blocks, last = self.transformer["h"]
        for block in blocks:
            with packed_weights(block) if len(tokens) >= PACK_ROWS else nullcontext():
                x = block(x, rope, everyone)
        # Of the last block only the outputs that predict an ending's token are needed.
        with packed_weights(last) if len(tokens) >= PACK_ROWS else nullcontext():
            x = last(x, rope, attend(trees, ends, asking), asking)
        x = self.transformer["ln_f"](x)[0]
        flat = _head_log_probs(x, weight, row_of, targets, self.config.masked_ranges).cpu()
        return list(flat[order.argsort()].split([len(ending) for _, ending in pairs]))

    @torch.no_grad()
    def generate(self, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=0, stop_ids=(),
                 stop_strings=(), decode=None, row_ids=None) -> list[Completion]:
        """Continues each prompt by up to max_new_tokens; one Completion per prompt, in their order.

        prompts: lists of ids, of any lengths, or a (B, T) tensor. temperature 0: greedy. Otherwise softmax(logits /
        temperature), then the top_k likeliest ids (those that tie with the k-th stay), then the smallest set of ids
        whose share of what is left reaches top_p (of ties, lower ids first); None: all. Padding ids are never drawn.
        Each row draws one uniform number per token, on the CPU, from a generator of its own seeded by (seed, row_ids[i]
        or i), and takes the id at which the sum of probabilities, in the order of ids and in fp64, passes it. So a
        row's tokens do not depend on the batch, its order or its padding; only where the number falls within the
        rounding of the logits (about 1e-6 in fp32) of a border between two ids could a draw differ.
        A row ends at one of stop_ids, or when its new text contains one of stop_strings; decode gives the text of a
        list of ids, and joined lists must give joined bytes, at least one per id. If the string begins where a token
        does, ids ends before it; otherwise ids goes on to the token that completes it. Either way the text is
        decode(ids) up to the first stop string in it, and that cut is the caller's.
        The model sees the last block_size tokens. A row longer than that costs a forward of block_size per token.
        Memory: 2 * n_layer * n_embd numbers per row and position, for all prompts at once; on a CPU also a copy of the
        weights while it runs. ValueError for bad input, or where the logits are not numbers."""
        prompts = self._check_generate(prompts, max_new_tokens, temperature, top_k, top_p, stop_ids, stop_strings,
                                       decode)
        row_ids = range(len(prompts)) if row_ids is None else list(row_ids)
        if len(row_ids) != len(prompts):
            raise ValueError(f"there are {len(prompts)} prompts but {len(row_ids)} row_ids; give one for each")
        generators = [seeded_generator(f"{seed}/{row}") for row in row_ids]
        stop_ids, stop_strings = set(map(int, stop_ids)), list(stop_strings)
        tail = max((len(s.encode()) for s in stop_strings), default=0) + 3  # ids whose text can hold a new stop string
        new, why = [[] for _ in prompts], ["length"] * len(prompts)

        def extend(rows, logits) -> list[bool]:
            """Gives each of rows a token; which of them go on."""
            u = torch.tensor([torch.rand((), generator=generators[r], dtype=torch.float64, device="cpu") for r in rows]
                             if temperature > 0 else 0.0, dtype=torch.float64, device="cpu")
            tokens = choose_tokens(logits, u, temperature, top_k, top_p).tolist()
            for r, token in zip(rows, tokens, strict=True):
                if token in stop_ids:
                    why[r] = "stop_id"
                    continue
                new[r].append(token)
                if stop_strings and (cut := stop_string_cut(new[r][-tail:], stop_strings, decode)) is not None:
                    why[r] = "stop_string"
                    del new[r][len(new[r]) - cut:]
            return [why[r] == "length" and len(new[r]) < max_new_tokens for r in rows]

        limit, device = self.config.block_size, self.padding_mask.device
        todo = sorted(range(len(prompts)) if max_new_tokens else [], key=lambda r: len(prompts[r]))
        live = [r for r in todo if len(prompts[r]) <= limit]  # place i of the cache holds row live[i]
        longer = [r for r in todo if len(prompts[r]) > limit]
        with packed_weights(self) if max_new_tokens * min(len(todo), 4) >= PACK_FROM else nullcontext():
            if live:
                cache = self._new_cache(len(live), min(len(prompts[live[-1]]) + max_new_tokens - 1, limit))
                logits = self._prefill([prompts[r] for r in live], cache)
            while live:
                going = extend(live, logits)
                fits = [len(prompts[r]) + len(new[r]) <= limit for r in live]
                longer += [r for r, go, fit in zip(live, going, fits, strict=True) if go and not fit]
                live = compact(live, [go and fit for go, fit in zip(going, fits, strict=True)], cache)
                if live:
                    ends = [len(prompts[r]) + len(new[r]) - 1 for r in live]
                    logits = self._decode_step([new[r][-1] for r in live], ends, cache)

            # Once a row is longer than block_size, each token moves all positions: nothing in a cache stays valid.
            at_once = max(1, PREFILL_TOKENS.get(device.type, 2048) // limit)
            for start in range(0, len(longer), at_once):
                rows = longer[start:start + at_once]
                while rows:
                    windows = torch.tensor([(prompts[r] + new[r])[-limit:] for r in rows], device=device)
                    going = extend(rows, self.head(self.hidden(windows)[:, -1]))
                    rows = [r for r, go in zip(rows, going, strict=True) if go]
        return [Completion(*c) for c in zip(new, why, strict=True)]

    def _check_generate(self, prompts, max_new_tokens, temperature, top_k, top_p, stop_ids, stop_strings,
                        decode) -> list:
        """The prompts as lists of int; ValueError, in one sentence, for bad input."""
        prompts = prompts.tolist() if isinstance(prompts, torch.Tensor) else prompts
        try:
            prompts = [list(map(index, p)) for p in prompts]
        except TypeError as e:
            raise ValueError("prompts must be lists of whole numbers, one list per prompt, or a (B, T) int64 tensor; "
                             "put a single prompt into a list") from e
        for i, p in enumerate(prompts):
            if not p:
                raise ValueError(f"prompt {i} is empty, there is no token to continue; start from at least one, such "
                                 "as <|endoftext|>")
            if not 0 <= min(p) <= max(p) < self.config.vocab_size:
                raise ValueError(f"prompt {i} has ids from {min(p)} to {max(p)}; use ids of at least 0 and below "
                                 f"vocab_size {self.config.vocab_size}")
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; use 0 or more")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; use 0 for greedy or a finite number above it")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}; use at least 1, or None for all ids")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p}; use a number above 0 and up to 1, or None for all ids")
        if isinstance(stop_ids, int):
            raise ValueError(f"stop_ids is {stop_ids}; put it into a list")
        if isinstance(stop_strings, str) or "" in stop_strings:
            raise ValueError(f"stop_strings is {stop_strings!r}; use a list of strings that are not empty")
        if stop_strings and decode is None:
            raise ValueError("stop_strings need the text of the ids; pass decode, a function from ids to text")
        return prompts

    def _new_cache(self, rows, width):
        """Keys and values (n_layer, 2, rows, n_head, width, head_dim); column = position in the row. Zeros, because a
        masked column counts with weight 0, and 0 times what memory holds may be nan."""
        c, weight = self.config, self.transformer["wte"].weight
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        return weight.new_zeros(c.n_layer, 2, rows, c.n_head, width, c.head_dim, dtype=dtype)

    def _prefill(self, prompts, cache):
        """Fills the cache; logits (B, padded_vocab) after each prompt. Prompts, sorted by length, are padded at their
        end, where causal attention does not look; what that leaves in the cache is overwritten before it is seen."""
        device = self.padding_mask.device
        limit = PREFILL_TOKENS.get(device.type, 2048)
        last, start = [], 0
        while start < len(prompts):
            end = start + 1
            while end < len(prompts) and len(prompts[end]) * (end + 1 - start) <= limit:
                end += 1
            rows = prompts[start:end]
            T = len(rows[-1])
            x, rope = self.embed(torch.tensor([p + [p[-1]] * (T - len(p)) for p in rows], device=device))
            for block, (keys, values) in zip(self.transformer["h"], cache[:, :, start:end, :, :T], strict=True):

                def attend(q, k, v, keys=keys, values=values):
                    keys.copy_(k)
                    values.copy_(v)
                    return causal_attention(q, k, v)

                x = block(x, rope, attend)
            ends = torch.tensor([len(p) - 1 for p in rows], device=device)
            last.append(x[torch.arange(len(rows), device=device), ends])
            start = end
        return self.head(self.transformer["ln_f"](torch.cat(last)))

    def _decode_step(self, tokens, at, cache):
        """Logits (n, padded_vocab) after n tokens, of positions `at`, in the first n rows of the cache."""
        device = self.padding_mask.device
        n, width = len(tokens), max(at) + 1
        places = torch.tensor(at, device=device)
        seen = None  # (n, 1, 1, width); rows of one length need no mask
        if min(at) < max(at):
            seen = (torch.arange(width, device=device) <= places[:, None])[:, None, None]
            rows = torch.arange(n, device=device)
        x, rope = self.embed(torch.tensor(tokens, device=device)[:, None], positions=places[:, None])
        for block, (keys, values) in zip(self.transformer["h"], cache[:, :, :n, :, :width], strict=True):

            def attend(q, k, v, keys=keys, values=values):
                for old, one in ((keys, k[:, :, 0]), (values, v[:, :, 0])):
                    if seen is None:
                        old[:, :, width - 1] = one
                    else:
                        old[rows, :, places] = one.to(old.dtype)
                return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)

            x = block(x, rope, attend)
        return self.head(self.transformer["ln_f"](x[:, 0]))

    @torch.no_grad()
    def gate_stats(self, idx) -> list[dict]:
        """Whether the intervention is active, per layer, on a small batch idx (B, T), T >= 2.

        gate_mean, gate_share_below_0.1 and gate_quantiles (of GATE_QUANTILES), all absent without a gate;
        first_token_attention: the attention probability on position 0, mean over rows, heads and the queries after it;
        largest_activation: the largest magnitude in the residual stream behind the layer. A sink on the first token
        and massive activations are what gating the SDPA output is said to remove (Qiu et al., arXiv:2505.06708).
        Scores are formed one row of the batch at a time."""
        if idx.size(1) < 2:
            raise ValueError("attention on the first token needs at least 2 tokens per row; pass a longer batch")
        x, rope = self.embed(idx)
        future = torch.ones(idx.size(1), idx.size(1), dtype=torch.bool, device=idx.device).triu(1)
        stats = []
        for block in self.transformer["h"]:
            normed = block.ln_1(x)
            q, k, _ = block.attn.qkv(normed, rope)
            share = 0.0
            for q_row, k_row in zip(q.float().transpose(1, 2), k.float().transpose(1, 2), strict=True):
                scores = (q_row @ k_row.mT / math.sqrt(self.config.head_dim)).masked_fill(future, -math.inf)
                share += scores.softmax(-1)[:, 1:, 0].mean().item() / idx.size(0)
            layer = {"first_token_attention": share}
            g = block.attn.gate_values(normed)
            if g is not None:
                layer["gate_mean"] = g.float().mean().item()
                layer["gate_share_below_0.1"] = (g < 0.1).float().mean().item()
                ordered = g.float().flatten().sort().values  # torch.quantile refuses more than 2**24 values
                at = [round(q * (len(ordered) - 1)) for q in GATE_QUANTILES]
                layer["gate_quantiles"] = ordered[at].tolist()
            x = block(x, rope)
            layer["largest_activation"] = x.abs().max().item()
            stats.append(layer)
        return stats

    def num_params(self) -> dict[str, int]:
        """total: logical weights, the tied matrix once, without the rows that pad the vocabulary (124,439,808 for
        GPT-2); non_embedding: total less token and position embeddings; gate; padding: what total leaves out."""
        counts = {name: p.numel() for name, p in self.named_parameters()}
        padding = (self.config.padded_vocab_size - self.config.vocab_size) * self.config.n_embd
        total = sum(counts.values()) - padding
        embedding = sum(n for name, n in counts.items() if ".wte." in name or ".wpe." in name) - padding
        gate = sum(n for name, n in counts.items() if ".gate" in name)
        return {"total": total, "non_embedding": total - embedding, "gate": gate, "padding": padding}

    def flops_per_token(self, seq_len: int) -> int:
        """Training FLOPs (forward + backward) per token: 6 per weight of every matrix product (blocks, gates, and the
        head over the logical vocabulary), plus 12 * n_layer * n_embd * seq_len for attention.
        PaLM (arXiv:2204.02311), appendix B; like there, attention is counted as if not causal. Embedding look-ups,
        norms, biases and activations count nothing."""
        matrices = sum(p.numel() for name, p in self.transformer["h"].named_parameters()
                       if p.dim() == 2 and not name.endswith("gate_table"))
        c = self.config
        return 6 * (matrices + c.vocab_size * c.n_embd) + 12 * c.n_layer * c.n_embd * seq_len

    def save(self, folder):
        """Writes model.safetensors and model.json into folder, which is made if needed."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in self.state_dict().items()}, folder / "model.safetensors")
        text = json.dumps({**FORMAT, "config": self.config.to_dict()}, indent=1)
        (folder / "model.json").write_text(text + "\n", encoding="utf-8")

    @staticmethod
    def load_config(folder) -> GPTConfig:
        """The configuration in folder, which save wrote; errors as load's."""
        folder, fix = Path(folder), "pass a folder written by this version's GPT.save"
        for name in ("model.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}; {fix}")
        try:
            meta = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        except ValueError as e:
            raise ValueError(f"{folder / 'model.json'} is not readable as JSON ({e}); {fix}") from e
        found = {k: meta.get(k) for k in FORMAT} if isinstance(meta, dict) else meta
        if found != FORMAT or not isinstance(meta.get("config"), dict):
            raise ValueError(f"{folder / 'model.json'} is not a {FORMAT['format']} file of version {FORMAT['version']} "
                             f"(found {found!r}); {fix}")
        return GPTConfig.from_dict(meta["config"])

    @classmethod
    def load(cls, folder, device="cpu") -> "GPT":
        """The model that save(folder) wrote. FileNotFoundError or ValueError, in one sentence, for anything else."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        model = cls(cls.load_config(folder), seed=None)
        try:
            state = load_file(folder / "model.safetensors")
        except SafetensorError as e:
            raise ValueError(f"{folder / 'model.safetensors'} is damaged or of another format ({e}); "
                             "pass a folder written by this version's GPT.save") from e
        load_exactly(model, state, folder / "model.safetensors")
        return model.to(device)


# ----------------------------------------------------------------------------------------------------------------------
# weights from and to Hugging Face


def load_exactly(model: GPT, state: dict, source) -> None:
    """Copies state into model's weights; ValueError unless names and shapes are exactly the model's."""
    own = model.state_dict()
    if wrong := sorted(set(own) ^ set(state)):
        raise ValueError(f"{source} does not hold this model's weights (missing or extra: {', '.join(wrong[:4])}"
                         f"{' ...' if len(wrong) > 4 else ''}); use the configuration it was saved with")
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise ValueError(f"{source}: {name} has shape {tuple(value.shape)}, the configuration says "
                             f"{tuple(own[name].shape)}; use the configuration it was saved with")
    model.load_state_dict(state)


# Hugging Face stores these as Conv1D, (in, out): always transposed, by name. By shape, square ones would be missed.
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def from_hf_state(model: GPT, hf_state: dict) -> GPT:
    """Fills a gpt2-arch model without a gate from a GPT2LMHeadModel (or GPT2Model) state dict, and returns it.

    A vocabulary of at most config.vocab_size rows is taken; rows beyond it become zero. A zero row's logit is 0, far
    above GPT-2's usual ones, so ids that are never trained afterwards belong in config.unused_ids. ValueError for a
    head that is not the token rows."""
    if model.config.arch != "gpt2" or model.config.attn_gate != "none":
        raise ValueError("Hugging Face weights fit arch gpt2 without a gate only; use arch='gpt2', attn_gate='none'")
    state, head = {}, hf_state.get("lm_head.weight")
    for name, value in hf_state.items():
        name = name.removeprefix("transformer.")
        if name == "lm_head.weight" or name.endswith((".attn.bias", ".attn.masked_bias")):  # tied copy; causal masks
            continue
        state["transformer." + name] = value.t() if name.endswith(CONV1D) else value
    wte = state.get("transformer.wte.weight")
    if wte is not None:
        if head is not None and not torch.equal(head, wte):
            raise ValueError("the weights have a head of their own (lm_head.weight is not wte.weight), and this model "
                             "shares one matrix between the two; use a GPT-2 with tie_word_embeddings=True")
        missing = model.config.vocab_size - wte.size(0)
        if missing < 0:
            raise ValueError(f"the weights have {wte.size(0)} token rows, more than vocab_size "
                             f"{model.config.vocab_size}; use vocab_size={wte.size(0)}")
        rows = missing + model.config.padded_vocab_size - model.config.vocab_size
        state["transformer.wte.weight"] = F.pad(wte, (0, 0, 0, rows))
    load_exactly(model, state, "the Hugging Face state")
    return model


def to_hf_state(model: GPT) -> dict[str, torch.Tensor]:
    """A GPT2LMHeadModel state dict (n_inner and vocab_size as in the config, padding rows dropped), as copies."""
    if model.config.arch != "gpt2" or model.config.attn_gate != "none":
        raise ValueError("only arch gpt2 without a gate has a Hugging Face form; save this model with GPT.save")
    state = {}
    for name, value in model.state_dict().items():
        value = value[: model.config.vocab_size] if name.endswith("wte.weight") else value
        state[name] = (value.t() if name.endswith(CONV1D) else value).clone().contiguous()
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


SILENT_LOGIT = -1000.0  # what an exported padding id scores; GPT-2's own logits stay above about -200


def silent_row(model: GPT) -> torch.Tensor | None:
    """A row w (C,) whose logit is SILENT_LOGIT whatever the input, or None when the last norm allows none.

    Hugging Face's GPT-2 has no mask over padding ids, and a zero row's logit of 0 would win every softmax. The head
    reads h = gain * z + bias with sum(z) = 0, so (1 / gain) . h = sum(bias / gain) is a constant, and w a multiple of
    1 / gain. It must be small enough to survive bf16's rounding; with untrained biases (all 0) there is none."""
    ln = model.transformer["ln_f"]
    gain, bias = ln.weight.detach().double(), ln.bias.detach().double()
    if gain.abs().min() == 0:
        return None
    constant = (bias / gain).sum()
    noise = 2.0**-9 * (1 + bias / gain).norm()  # of bf16 rows, relative to the multiple
    return (SILENT_LOGIT / constant / gain).float() if constant.abs() > 2 * noise else None


def check_new_folder(out_dir: Path) -> None:
    """ValueError unless out_dir can be made, or is an empty folder."""
    there = next(path for path in (out_dir.absolute(), *out_dir.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written to" if there.is_dir() else "is a file"
        raise ValueError(f"{out_dir} cannot be made, because {there} {why}; choose another folder")
    if out_dir.exists() and any(out_dir.iterdir()):
        raise ValueError(f"{out_dir} is not empty; choose another folder, or delete it")


def export_hf(model: GPT, out_dir, write_tokenizer=None) -> list[str]:
    """Writes out_dir as Hugging Face's GPT2LMHeadModel reads it: config.json, model.safetensors (tied head, vocabulary
    cropped to config.vocab_size), generation_config.json, and what write_tokenizer(folder) adds. Reloads the folder
    with transformers and compares logits on random ids before it takes its name. Returns warnings.

    ValueError for an architecture or gate that GPT-2 cannot represent, an out_dir that exists or cannot be made, a
    vocabulary that the tokenizer's ids exceed, or unequal logits."""
    import shutil

    from safetensors.torch import save_file
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    out_dir, c, warnings = Path(out_dir), model.config, []
    check_new_folder(out_dir)
    state, end = to_hf_state(model), 50256 if c.vocab_size > 50256 else None  # <|endoftext|>
    if end is None and write_tokenizer is not None:
        raise ValueError(f"the model's vocabulary of {c.vocab_size} lacks ids of GPT-2's tokenizer (0 to 50256), which "
                         "an exported folder holds; train it with vocab_size of at least 50257")
    del state["lm_head.weight"]
    unused = [i for a, b in c.masked_ranges for i in range(a, min(b, c.vocab_size))]
    if unused:
        row = silent_row(model)
        state["transformer.wte.weight"][unused] = 0.0 if row is None else row
        if row is None:
            warnings.append(f"the {len(unused)} padding ids score 0 in the exported model, because its last norm has "
                            "(nearly) no bias: mask them yourself before a softmax; generate() suppresses them")
    tmp = out_dir.with_name(out_dir.name + ".tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    try:
        config = GPT2Config(
            vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head,
            n_inner=c.n_inner, activation_function="gelu_new", layer_norm_epsilon=1e-5, tie_word_embeddings=True,
            bos_token_id=end, eos_token_id=end, architectures=["GPT2LMHeadModel"])
        config.save_pretrained(tmp)
        GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end,
                         suppress_tokens=unused or None).save_pretrained(tmp)
        save_file(state, tmp / "model.safetensors", metadata={"format": "pt"})
        if write_tokenizer is not None:
            write_tokenizer(tmp)
        reloaded = GPT2LMHeadModel.from_pretrained(tmp).eval()
        ids = torch.randint(c.vocab_size, (2, min(c.block_size, 64)), generator=torch.Generator().manual_seed(0))
        ids = torch.where(torch.isin(ids, torch.tensor(unused)), 0, ids) if unused else ids
        with torch.no_grad():
            ours, theirs = model.eval()(ids)[..., : c.vocab_size], reloaded(ids).logits
        scored = ours > -math.inf
        worst = (ours - theirs)[scored].abs().max().item()
        if not worst <= 1e-4 * max(1.0, ours[scored].abs().max().item()):
            raise ValueError(f"the exported model's logits differ by {worst:.1e} from this one's; nothing was written, "
                             "please report it with the checkpoint's model.json")
        tmp.replace(out_dir)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    return warnings


def import_hf(source: str, vocab_size: int | None = None) -> GPT:
    """The GPT of a Hugging Face GPT-2, from a local folder or the hub. ValueError for a model that is not GPT-2's, or
    whose weights are not exactly its configuration's.

    vocab_size above the source's (50349 to fine-tune with multiplication tokens): each new token's row is the mean of
    the old rows (Hewitt 2021, "Initializing new word embeddings for pretrained language models"). The source's own rows
    are never padding, unless it has our 50349."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its report on weights that do not fit is an error here, in a sentence
    try:
        hf = transformers.AutoConfig.from_pretrained(source)
        if hf.model_type != "gpt2":
            raise ValueError(f"it is a {hf.model_type} model")
        expected = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
                    "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
        if wrong := [f"{k} {getattr(hf, k)}" for k, v in expected.items() if getattr(hf, k) != v]:
            raise ValueError(f"this GPT-2 differs in {', '.join(wrong)}")
        net, report = transformers.GPT2LMHeadModel.from_pretrained(
            source, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True)
        for fault in ("missing", "mismatched", "unexpected"):
            names = sorted(key if isinstance(key, str) else key[0] for key in report[f"{fault}_keys"])
            # old files hold the causal masks
            if names := [name for name in names if not name.endswith((".attn.bias", ".attn.masked_bias"))]:
                raise ValueError(f"{fault} weights: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}")
    except Exception as error:  # whatever transformers, torch and safetensors come up with
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{source} cannot be imported ({reason}); name a folder that holds a Hugging Face GPT-2, or a "
                         "GPT-2 on the hub such as openai-community/gpt2") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    n_old = hf.vocab_size
    first_new = 0 if n_old == GPTConfig.vocab_size else n_old
    unused = tuple((max(a, first_new), b) for a, b in GPTConfig.unused_ids if first_new <= b)
    model = GPT(GPTConfig(vocab_size=vocab_size or n_old, block_size=hf.n_positions, n_layer=hf.n_layer,
                          n_head=hf.n_head, n_embd=hf.n_embd, n_inner=hf.n_inner or 4 * hf.n_embd,
                          unused_ids=unused), seed=None)
    from_hf_state(model, net.state_dict())
    with torch.no_grad():
        wte = model.transformer["wte"].weight
        wte[n_old : model.config.vocab_size] = wte[:n_old].mean(0)
    return model


def main(argv=None):
    parser = argparse.ArgumentParser(
        allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Print the parameters and training FLOPs of a shape; or export to, import from Hugging Face.",
        epilog="examples: python model.py --n_layer 12 --n_head 6 --arch speedrun --attn_gate elementwise\n"
        "          python model.py export experiments/runs/<run> gpt2_hf\n"
        "          python model.py import openai-community/gpt2 gpt2")
    shape = parser.add_argument_group("shape")
    defaults = GPTConfig()
    for name, unit in (("vocab_size", "tokens"), ("block_size", "tokens"), ("n_layer", "blocks"), ("n_head", "heads"),
                       ("n_embd", "channels")):
        shape.add_argument(f"--{name}", type=int, default=getattr(defaults, name), help=f"{unit} (default %(default)s)")
    arms = parser.add_argument_group("arms")
    arms.add_argument("--arch", choices=ARCHS, default="gpt2", help="architecture (default %(default)s)")
    arms.add_argument("--attn_gate", choices=GATES, default="none", help="attention gate; none = off (default)")
    arms.add_argument("--seq_len", type=int, default=None, help="tokens, for the FLOPs (default: block_size)")
    commands = parser.add_subparsers(dest="command", title="commands (none: print the shape)",
                                     metavar="export | import")
    export = commands.add_parser("export", allow_abbrev=False, help="checkpoint -> folder for transformers")
    export.add_argument("checkpoint", help="a run's folder (its newest whole checkpoint), or a checkpoint's folder")
    export.add_argument("out_dir", help="folder to make")
    take = commands.add_parser("import", allow_abbrev=False, help="Hugging Face GPT-2 -> checkpoint for --init_from, "
                               "sft.py and the evals")
    take.add_argument("source", help="folder, or name on the hub")
    take.add_argument("out_dir", help="folder to make")
    take.add_argument("--new_vocab_size", type=int, default=0,
                      help="tokens (0 = the source's; 50349 = room for the multiplication tokens)")
    args = vars(parser.parse_args(argv))
    command, out_dir = args.pop("command"), Path(args.pop("out_dir", ""))
    if command == "export":
        import runs  # a run's folder and the tokenizer's files have their own rooms; this command alone joins the three
        import shards

        folder, step, _ = runs.resolve_checkpoint(args["checkpoint"], flag="export")
        model = GPT.load(folder)
        whole = (model.config.vocab_size >= shards.VOCAB_SIZE  # and not another's tokens at those ids
                 and any(b == shards.FIRST_MUL_ID for _, b in model.config.unused_ids))
        for warning in export_hf(model, out_dir, lambda to: shards.write_hf_tokenizer(to, mul_tokens=whole)):
            print(f"WARNING: {warning}")
        print(f"wrote {out_dir}: {folder}{'' if step is None else f' (step {step})'}, {model.num_params()['total']:,} "
              "parameters; transformers reloads it with equal logits")
        return
    if command == "import":
        check_new_folder(out_dir)
        model = import_hf(args["source"], args["new_vocab_size"] or None)
        model.save(out_dir)
        print(f"wrote {out_dir}: {args['source']}, {model.num_params()['total']:,} parameters, vocabulary "
              f"{model.config.vocab_size}; "
              "use it with train_gpt.py --init_from, sft.py --init, or an eval's --checkpoint")
        return
    seq_len = args.pop("seq_len") or args["block_size"]
    with torch.device("meta"):
        model = GPT(GPTConfig(**args))
    for name, count in model.num_params().items():
        print(f"{name + ' parameters':<28} {count:>15,}")
    print(f"{'training FLOPs per token':<28} {model.flops_per_token(seq_len):>15,}   at {seq_len} tokens per sequence")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"model.py: {error}") from None
