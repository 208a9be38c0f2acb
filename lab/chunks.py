"""chunks.py owns reading a sequence chunk by chunk, which is what a model with fast weights (lab/memory.py) does.

A chunk attends to the keys and values of the ones before it, which were computed with the weights then in force. It is
scored, and then written. Nothing outlives a sequence, so results depend on neither batch nor rank, and a checkpoint
holds the trained weights alone.
"""

import copy
import functools

import torch
import torch.nn.functional as F

from lab import memory, memory_settings
from lab.loss import IGNORE, KnownLoss, head_gradients, tie
from lab.schema import check


class Reading:
    """A batch of sequences while it is read by a model (a GPT; one without memory writes nothing).

    train: the loss's gradient will flow through what was read. alter: a control in place of the writes, see
    memory.write."""

    def __init__(self, model, train=False, alter=None):
        self.model, self.train, self.alter = model, train, alter
        self.position = 0  # tokens read, within the window
        self.past = {}  # {block: (keys, values)}, each (B, H, position, dh)
        self.layers = {}  # {block: LayerMemory}
        for i, block in enumerate(model.transformer["h"]):
            if block.memory is not None:
                self.layers[i] = memory.LayerMemory()

    def attend(self, i, q, k, v):
        """Causal attention of a chunk's queries (B, H, C, dh) to all keys so far, in block i."""
        if i in self.past:
            k, v = (torch.cat(pair, 2) for pair in zip(self.past[i], (k, v), strict=True))
        self.past[i] = k, v
        if not self.train:
            self.past[i] = k.detach(), v.detach()
        C, S = q.size(2), k.size(2)
        if C == S:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        visible = torch.ones(C, S, dtype=torch.bool, device=q.device).tril(S - C)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)

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
                x = model.block(i, x, rope, functools.partial(self.attend, i))
        with torch.set_grad_enabled(self.train or for_write):
            if for_write and not self.train:
                x = x.detach().requires_grad_()
            for i in range(lowest, model.config.n_layer):
                attend = functools.partial(self.attend, i)
                x = model.block(i, x, rope, attend, self.layers.get(i))
            x = model.transformer["ln_f"](x)
        self.position = end
        return x

    def write(self, hidden, signal) -> None:
        """Writes the chunk that was read last. signal (B, C, D): the gradient of its summed loss in hidden."""
        config = self.model.config
        seen = [one for layer in self.layers.values() for one in layer.seen]
        if seen and config.write != "off":
            outputs = [one.y for one in seen]
            signals = torch.autograd.grad(hidden, outputs, signal.to(hidden.dtype), retain_graph=self.train)
            scales = config.teach_scale * len(self.layers)  # one per written level of a block
            with torch.set_grad_enabled(self.train and config.write == "through"):
                for one, delta, scale in zip(seen, signals, scales, strict=True):
                    delta = memory.teach(one, delta, scale * self.model.teach_factor, config)
                    memory.accumulate(one, delta, config, alter=self.alter)
        for layer in self.layers.values():
            if layer.titan is not None:
                module, u = layer.titan
                with torch.set_grad_enabled(self.train):
                    module.write(u, layer, self.alter)
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
            layer.seen, layer.titan = [], None

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
    parts = list(score(reading, idx, targets, wte_in, wte_out, with_weight=True))
    hidden, nll, signal, grad_weight = zip(*parts, strict=True)
    total = torch.cat(nll).sum() / denominator
    grad_hidden = torch.cat(signal, 1) / denominator
    return KnownLoss.apply(torch.cat(hidden, 1), wte_out, total, grad_hidden, sum(grad_weight) / denominator)


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
