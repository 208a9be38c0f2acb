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
import hashlib
import json
import math
import threading
from dataclasses import asdict, dataclass, fields
from pathlib import Path

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


def workspace(rows: int, cols: int, device: torch.device) -> torch.Tensor:
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
    buffer = workspace(chunk, V, x.device)
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


def packed_linear(x, packed, bias):
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


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

    def hidden(self, idx, wte=None, positions=None, attend=causal_attention):
        """Final normalised hidden states (B, T, C): the input of the head. wte: its view from _Tie, if there is one."""
        x, rope = self.embed(idx, wte, positions)
        for block in self.transformer["h"]:
            x = block(x, rope, attend)
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
        from lab import hf, runs, shards  # only here: model.py itself needs none of them

        folder, step, _ = runs.resolve_checkpoint(args["checkpoint"], flag="export")
        model = GPT.load(folder)
        whole = (model.config.vocab_size >= shards.VOCAB_SIZE  # and not another's tokens at those ids
                 and any(b == shards.FIRST_MUL_ID for _, b in model.config.unused_ids))
        for warning in hf.export_hf(model, out_dir, lambda to: shards.write_hf_tokenizer(to, mul_tokens=whole)):
            print(f"WARNING: {warning}")
        print(f"wrote {out_dir}: {folder}{'' if step is None else f' (step {step})'}, {model.num_params()['total']:,} "
              "parameters; transformers reloads it with equal logits")
        return
    if command == "import":
        from lab import hf

        hf.check_new_folder(out_dir)
        model = hf.import_hf(args["source"], args["new_vocab_size"] or None)
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
