"""chunks.py owns reading a sequence chunk by chunk, which is what a model with fast weights (lab/memory.py) does.

A chunk attends to the keys and values of the ones before it, which were computed with the weights then in force. It is
scored, and then written. Nothing outlives a sequence, so results depend on neither batch nor rank, and a checkpoint
holds the trained weights alone.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lab import memory, memory_settings
from lab.attention import causal_attention
from lab.loss import IGNORE, KnownLoss, head_gradients, tie
from lab.schema import check


class Context(NamedTuple):
    """What a block gets besides its input x (B, T, C). A block that is not attention may ignore it."""

    rope: tuple | None = None  # cos, sin of the positions of x
    attend: Callable = causal_attention  # q (B, H, R, dh), k and v (B, H, T, dh) -> (B, H, R, dh)
    only: torch.Tensor | None = None  # (R,) int64: the positions whose output is wanted; None: all
    fast: memory.LayerMemory | None = None  # what this block's memory holds; None: nothing, nothing is written

    def wanted(self, x, dim=1):
        return x if self.only is None else x.index_select(dim, self.only)

    def attention(self, *qkv):
        """attend, with heads behind positions: (B, T, H, dh)."""
        return self.attend(*[z.transpose(1, 2) for z in qkv]).transpose(1, 2)


def run_block(block, x, rope, past=None, fast=None, probes=None) -> tuple:
    """Runs a block on a chunk x (B, C, D), with tensors alone going in and out, which torch.compile can trace.

    past: keys and values of the window so far, (B, H, S, dh) each; None at its beginning. fast, probes: {level: its
    fast weights or None} and {level: zeros like x} of the block's memory; None without memory.
    Returns (x, keys and values with the chunk's, [(u, z, a) of each written CMS level], the Titans memory's input)."""
    kept = []

    def attend(q, k, v):
        if past is None:
            kept.append((k.contiguous(), v.contiguous()))  # laid out as what is joined below, for one graph of both
            return causal_attention(q, k, v)
        k, v = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
        kept.append((k, v))
        C, S = q.size(2), k.size(2)
        visible = torch.ones(C, S, dtype=torch.bool, device=q.device).tril(S - C)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)

    layer = None
    if fast is not None:
        layer = memory.LayerMemory.holding(fast, probes)
    x = block(x, Context(rope, attend, fast=layer))
    if layer is None:
        return x, kept[0], [], None
    seen = [(one.u, one.z, one.a) for one in layer.seen]
    return x, kept[0], seen, layer.titan_input


def compile_blocks(model) -> None:
    """Makes training read chunks with compiled blocks. The loop over chunks and the gradients that are written stay
    outside. The length of the past is a variable of a graph: there is one for the window's beginning and one behind it,
    for blocks without memory and for those with, and more only where levels are written for the first time later."""
    from torch import _dynamo
    from torch._functorch import config

    _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, 64)
    config.donated_buffer = False  # a chunk's graph is walked twice: for its writes, and for the outer gradient
    compiled = torch.compile(run_block, fullgraph=True)

    def run(block, x, rope, past, *more):
        for keys_or_values in past or ():
            _dynamo.maybe_mark_dynamic(keys_or_values, 2)
        return compiled(block, x, rope, past, *more)

    model.chunk_block = run


class Reading:
    """A batch of sequences while it is read by a model (a GPT; one without memory writes nothing).

    train: the loss's gradient will flow through what was read. alter: a control in place of the writes, see
    memory.write. dynamic: a model that was trained without writes (write off) is written, too."""

    def __init__(self, model, train=False, alter=None, dynamic=False):
        self.model, self.train, self.alter, self.dynamic = model, train, alter, dynamic
        self.run = run_block
        if train:
            self.run = model.chunk_block
        self.position = 0  # tokens read, within the window
        self.past = {}  # {block: (keys, values)}, each (B, H, position, dh)
        self.layers = {}  # {block: LayerMemory}
        for i, block in enumerate(model.transformer["h"]):
            if block.memory is not None:
                self.layers[i] = memory.LayerMemory()

    def block(self, i, x, rope, for_write):
        """Runs block i on a chunk x (B, C, D); what its memory needs for a write is kept where there may be one."""
        module, layer = self.model.transformer["h"][i], self.layers.get(i)
        fast, probes = None, None
        if layer is not None:
            fast = {key: layer.fast(key).pair for key in module.memory.read_keys()}
            probes = {}
            if for_write:
                probes = {i: torch.zeros_like(x, requires_grad=True) for i in module.memory.written_in_turn()}
        x, past, seen, titan_input = self.run(module, x, rope, self.past.get(i), fast, probes)
        if not self.train:
            past = tuple(z.detach() for z in past)
        self.past[i] = past
        if layer is not None:
            layer.take(module.memory, seen, probes, titan_input)
        return x

    def read(self, idx, wte=None, for_write=True):
        """Normalised hidden states (B, C, D) of the next tokens idx (B, C). for_write: write may follow."""
        model, end = self.model, self.position + idx.size(1)
        limit = model.config.block_size
        check(
            end <= limit, f"the sequence has {end} tokens but the model's block_size is {limit}; shorten it")
        lowest = min(self.layers, default=model.config.n_layer)
        with torch.set_grad_enabled(self.train):
            x, rope = model.embed(idx, wte, slice(self.position, end))
            for i in range(lowest):
                x = self.block(i, x, rope, for_write=False)
        with torch.set_grad_enabled(self.train or for_write):
            if for_write and not self.train:
                x = x.detach().requires_grad_()
            for i in range(lowest, model.config.n_layer):
                x = self.block(i, x, rope, for_write)
            x = model.transformer["ln_f"](x)
        self.position = end
        return x

    def write(self, hidden, signal, flush=False) -> None:
        """Writes the chunk that was read last. signal (B, C, D): the gradient of its summed loss in hidden. flush: what
        a period has so far is written."""
        config = self.model.config
        seen = [one for layer in self.layers.values() for one in layer.seen]
        if seen and (self.dynamic or config.write != "off"):
            probes = [one.fast.probe for one in seen]
            signals = torch.autograd.grad(hidden, probes, signal.to(hidden.dtype), retain_graph=self.train)
            scales = config.teach_scale * len(self.layers)  # one per written level of a block
            with torch.set_grad_enabled(self.train and config.write == "through"):
                for one, delta, scale in zip(seen, signals, scales, strict=True):
                    delta = memory.teach(one, delta, scale * self.model.teach_factor, config)
                    memory.accumulate(one, delta, config, alter=self.alter, flush=flush)
        for i, layer in self.layers.items():
            if layer.titan_input is not None:
                module = self.model.transformer["h"][i].memory.titan
                with torch.set_grad_enabled(self.train):
                    module.write(layer.titan_input, layer, self.alter, flush)
        self.forget_chunk()

    def read_only(self, ids: list[int]):
        """Hidden states (1, len(ids), D) of the next tokens of one sequence, which are never written."""
        device = self.model.transformer["wte"].weight.device
        states = self.read(torch.tensor([ids], device=device), for_write=False)
        self.forget_chunk()
        return states

    def fork(self) -> "Reading":
        """A copy that reads on from here, for read_only."""
        other = copy.copy(self)
        other.past = dict(self.past)
        return other

    def forget_chunk(self) -> None:
        for layer in self.layers.values():
            layer.seen, layer.titan_input = [], None

    def restart_window(self) -> None:
        """The next token is at position 0 and sees none of the earlier ones; what was written stays."""
        self.position, self.past = 0, {}


def score(reading: Reading, idx, targets, wte=None, weight=None, with_weight=False):
    """Reads idx (B, T), writes all chunks but the last, and yields for each its hidden states (B, C, D), nll (B C,),
    and the gradients of its sum in the hidden states and, with_weight, in weight."""
    model = reading.model
    if weight is None:
        weight = model.transformer["wte"].weight
    size = memory_settings.chunk_size(model.config)
    for start in range(0, idx.size(1), size):
        part = slice(start, start + size)
        hidden = reading.read(idx[:, part], wte)
        nll, signal, grad_weight = head_gradients(
            hidden.flatten(0, 1), weight, targets[:, part].flatten(), model.config.masked_ranges, with_weight)
        signal = signal.view(hidden.shape)
        if part.stop < idx.size(1):
            reading.write(hidden, signal)
        yield hidden, nll, signal, grad_weight


def loss(model, idx, targets, denominator=None):
    """The loss of GPT.forward(idx, targets), differentiable: of every chunk with the weights then in force."""
    wte_in, wte_out = None, model.transformer["wte"].weight
    if idx.is_cpu and torch.is_grad_enabled():
        wte_in, wte_out = tie(wte_out)
    if denominator is None:
        denominator = (targets != IGNORE).sum().clamp(min=1)
    reading = Reading(model, train=torch.is_grad_enabled())
    hiddens, nlls, signals, grad_weight = [], [], [], 0
    for hidden, nll, signal, grad in score(reading, idx, targets, wte_in, wte_out, with_weight=True):
        hiddens.append(hidden)
        nlls.append(nll)
        signals.append(signal)
        grad_weight += grad  # not kept for each chunk: it is as large as the embedding
    total = torch.cat(nlls).sum() / denominator
    grad_hidden = torch.cat(signals, 1) / denominator
    return KnownLoss.apply(torch.cat(hiddens, 1), wte_out, total, grad_hidden, grad_weight / denominator)


def per_token_loss(model, idx, targets, alter=None):
    """-log p(target) (B, T) in nats, of every chunk before it is written; 0 where the target is IGNORE."""
    parts = score(Reading(model, alter=alter), idx, targets)
    B = len(idx)
    return torch.cat([nll.view(B, -1) for _, nll, _, _ in parts], 1)


def next_tokens(idx):
    """Targets (B, T) of idx (B, T): the next token, IGNORE at the end."""
    end = idx.new_full((len(idx), 1), IGNORE)
    return torch.cat([idx[:, 1:], end], 1)


def hidden(model, idx):
    """Normalised hidden states (B, T, D) of idx (B, T), of every chunk before it is written with the next tokens as its
    targets. Differentiable where gradients are enabled."""
    train = torch.is_grad_enabled()
    parts = [states for states, _, _, _ in score(Reading(model, train), idx, next_tokens(idx))]
    states = torch.cat(parts, 1)
    if train:
        return states
    return states.detach()


def read_prompt(model, ids: list[int]) -> tuple[Reading, int]:
    """Reads and writes a prompt's whole chunks, those whose targets are in it, each once: (the Reading, how many tokens
    they are). What is longer than block_size is read in windows, and the last one has room for the rest."""
    c, weight = model.config, model.transformer["wte"].weight
    size = memory_settings.chunk_size(c)
    reading, idx = Reading(model), torch.tensor([ids], device=weight.device)
    targets = next_tokens(idx)
    n_written = (len(ids) - 1) // size * size
    last_window = -(-max(0, len(ids) - c.block_size) // size) * size
    window = c.block_size // size * size
    for first in [*range(0, last_window, window), last_window]:
        reading.restart_window()
        end = n_written
        if first < last_window:
            end = min(first + window, last_window)
        for start in range(first, end, size):
            part = slice(start, start + size)
            states = reading.read(idx[:, part])
            _, signal, _ = head_gradients(
                states.flatten(0, 1), weight, targets[:, part].flatten(), c.masked_ranges, with_weight=False)
            reading.write(states, signal.view(states.shape))
    return reading, n_written


def write_prompt(model, ids: list[int], alter=None) -> Reading:
    """A Reading that has been written with all of a prompt, the last write with what its period has so far, and that
    reads on in a new window. A write off model is written, too. alter: see memory.write. Nothing is read where there is
    no token to predict."""
    c, weight = model.config, model.transformer["wte"].weight
    size = memory_settings.chunk_size(c)
    window = c.block_size // size * size
    reading, idx = Reading(model, alter=alter, dynamic=True), torch.tensor([ids], device=weight.device)
    targets = next_tokens(idx)
    for start in range(0, len(ids) - 1, size):
        if start % window == 0:
            reading.restart_window()
        part = slice(start, start + size)
        states = reading.read(idx[:, part])
        _, signal, _ = head_gradients(
            states.flatten(0, 1), weight, targets[:, part].flatten(), c.masked_ranges, with_weight=False)
        reading.write(states, signal.view(states.shape), flush=start + size >= len(ids) - 1)
    reading.restart_window()
    return reading
