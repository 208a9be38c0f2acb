"""memory.py owns fast weights: MLPs that each sequence writes for itself while it is read (document 004).

A level is a residual MLP of width h. Of its weights, a sequence b has its own sum of writes, 0 at its beginning:

    u = norm(x)                                  (B, C, D)   C tokens of a chunk, D channels
    z = u (W1 + Fast1[b]) + b1,  a = phi(z)      (B, C, h)   phi: the architecture's activation
    y = x + a (W2 + Fast2[b]) + b2               (B, C, D)

A chunk is scored with the weights in force and then written, so no token is scored after it was written. With delta
(B, C, D), the gradient of a loss at y, the gradients of that loss in the fast weights have a closed form:

    g2 = a' delta,   dz = (delta (W2 + Fast2)') phi'(z),   g1 = u' dz

They are summed over the P tokens of a level's period, divided by P, and written at its end:

    Fast <- (1 - decay) Fast - inner_lr clip(optimizer(g))

CMS levels (continuum memory system, Behrouz et al. 2025) take delta from the model's own loss, the teach signal. The
Titans memory (arXiv:2501.00663) takes it from its own loss |M(k) - v|^2; HOPE's has its values v made by a second level
that is written, too. lab/chunks.py reads sequences chunk by chunk.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from lab.memory_settings import WITH_CMS, WITH_TITAN, complete_rates, complete_shape, writes
from lab.schema import check

# At the start of training the Titans memory forgets sigmoid(-4) = 1.8 % per write.
ALPHA_OFFSET = -4.0
# Its matrices that start at 1 / sqrt(n_embd) in every architecture: keys, values and features of the size of what it
# compares. From an architecture's smaller ones hardly anything is written, so that nothing learns to be (measured:
# experiments/2026-11-26_memory/planted.py).
SCALED = ("query.weight", "key.weight", "value.weight", "c_fc.weight")
# Parameters of a block that a gradient does not pass from its output to its input: they make what the Titans memory is
# written with, or are a gate's table.
OFF_THE_PATH = ("memory.titan.key.", "memory.titan.value.", "memory.titan.modifier.", "attn.gate_table")
MOMENTUM = 0.9
TINY = 1e-12  # keeps the gradient of a norm finite at 0

# ----------------------------------------------------------------------------------------------------------------------
# a level, and what a sequence writes into it


@dataclass
class Fast:
    """What the sequences of a batch have written into one level. None: nothing yet."""

    pair: tuple | None = None  # Fast1 (B, D, h), Fast2 (B, h, D), fp32
    sums: tuple | None = None  # of the gradients / P, of the same shapes
    momentum: tuple | None = None
    inputs: tuple | None = None  # sums of u (B, D) and a (B, h), for rank1
    alpha: torch.Tensor | None = None  # sum of what the Titans memory forgets, (B,)
    tokens: int = 0  # in the sums
    probe: torch.Tensor | None = None  # zeros (B, C, D) added to y, in which its gradient is taken
    counts: dict = field(default_factory=dict)  # {counter: (B,)}, see record

    def add(self, name: str, value) -> None:
        self.counts[name] = self.counts.get(name, 0) + value.detach()


class Seen(NamedTuple):
    """What a level computed of a chunk, from which its gradients follow."""

    level: "Level"
    fast: Fast
    u: torch.Tensor
    z: torch.Tensor
    a: torch.Tensor
    y: torch.Tensor | None = None  # the output, residual included


class Level(nn.Module):
    """The residual MLP of the module's docstring. period 0: never written. clip: largest norm of a write, 0 = any."""

    def __init__(self, config, arch, linear, width: int, period: int = 0, clip: float = 0.0, learned: bool = False):
        super().__init__()
        self.mlp, self.period, self.clip = arch.mlp, period, clip
        self.ln_1 = arch.norm(config.n_embd)
        self.c_fc = linear(config.n_embd, width, bias=arch.bias)
        self.c_proj = linear(width, config.n_embd, bias=arch.bias)
        self.log_lr = nn.Parameter(torch.empty(())) if learned else None

    def forward(self, x, fast: Fast | None = None) -> Seen:
        """x (B, C, D). fast None: without writes."""
        u = self.ln_1(x)
        z = self.c_fc(u)
        has_writes = fast is not None and fast.pair is not None
        if has_writes:
            z = z + u @ fast.pair[0].to(u.dtype)
        a = self.mlp.activation(z)
        out = self.c_proj(a)
        if has_writes:
            out = out + a @ fast.pair[1].to(a.dtype)
        y = x + out
        if fast is not None and fast.probe is not None:
            y = y + fast.probe
        return Seen(self, fast, u, z, a, y)

    def n_weights(self) -> int:
        return self.c_fc.weight.numel() + self.c_proj.weight.numel()

    def factor(self):
        """On inner_lr."""
        if self.log_lr is None:
            return 1.0
        return self.log_lr.exp()


def gradients(seen: Seen, delta) -> tuple[torch.Tensor, torch.Tensor]:
    """g1 (B, D, h) and g2 (B, h, D) of the sum over tokens of <delta, y>, for a fixed delta (B, C, D)."""
    level, fast, u, z, a, _ = seen
    delta = delta.to(a.dtype)
    back = F.linear(delta, level.c_proj.weight.mT)
    if fast.pair is not None:
        back = back + delta @ fast.pair[1].mT.to(delta.dtype)
    dz = level.mlp.activation_grad(back.to(z.dtype), z)
    g1 = u.mT @ dz.to(u.dtype)
    g2 = a.mT @ delta
    dtype = torch.promote_types(g1.dtype, torch.float32)  # sums of bfloat16 would lose small gradients
    return g1.to(dtype), g2.to(dtype)


def accumulate(seen: Seen, delta, config, alpha=None, alter=None, flush=False) -> None:
    """Adds a chunk's gradients to its level's sums, and writes them when a period has been seen, or now (flush).

    alpha (B, C): what the Titans memory forgets per write, besides inner_decay: the mean over the tokens of a period.
    alter: see write."""
    level, fast = seen.level, seen.fast
    added = [g / level.period for g in gradients(seen, delta)]
    if config.inner_optimizer == "rank1":
        means = seen.u.float().sum(1), seen.a.float().sum(1)
        fast.inputs = means if fast.inputs is None else tuple(map(torch.add, fast.inputs, means))
    fast.sums = tuple(added) if fast.sums is None else tuple(map(torch.add, fast.sums, added))
    if alpha is not None:
        total = alpha.sum(1)
        fast.alpha = total if fast.alpha is None else fast.alpha + total
    fast.tokens += delta.size(1)
    if flush or fast.tokens == level.period:
        write(level, fast, config, alter)


def write(level: Level, fast: Fast, config, alter=None) -> None:
    """Fast <- (1 - decay) Fast - inner_lr clip(optimizer(sums)), and empty sums.

    alter: a control, (step1, step2) -> what is written in their place (see random_steps, other_steps)."""
    steps = fast.sums
    if config.inner_optimizer == "momentum":
        before = fast.momentum or tuple(map(torch.zeros_like, steps))
        steps = tuple(MOMENTUM * m + g for m, g in zip(before, steps, strict=True))
        fast.momentum = steps
    elif config.inner_optimizer == "rank1":
        directions = [F.normalize(total, dim=-1).unsqueeze(1) for total in fast.inputs]  # (B, 1, inputs)
        steps = tuple(g - d.mT @ (d @ g) for d, g in zip(directions, steps, strict=True))
    norm = joint_norm(steps)  # (B, 1, 1)
    if level.clip > 0:
        factor = (level.clip / norm.clamp(min=TINY)).clamp(max=1.0)
        steps = tuple(factor * g for g in steps)
        norm = factor * norm
    rate = config.inner_lr * level.factor()
    steps = tuple(rate * g for g in steps)
    if alter is not None:
        steps = alter(*steps)
    keep = 1.0 - config.inner_decay
    if fast.alpha is not None:
        keep = keep * (1.0 - (fast.alpha / fast.tokens)[:, None, None])
    if fast.pair is None:
        fast.pair = tuple(-g for g in steps)
    else:
        fast.pair = tuple(keep * w - g for w, g in zip(fast.pair, steps, strict=True))
    length = (rate * norm).flatten()
    fast.add("updates", length > 0)
    fast.add("update_norm", length)
    fast.sums, fast.inputs, fast.alpha, fast.tokens = None, None, None, 0


def joint_norm(pair) -> torch.Tensor:
    """(B, 1, 1): the L2 norm of both tensors of each sequence together."""
    squares = sum(g.square().sum((1, 2), keepdim=True) for g in pair)
    return squares.clamp(min=TINY**2).sqrt() * (squares > 0)


def random_steps(generator):
    """A control: in place of each step, a random one of the same norm per sequence and tensor."""

    def alter(*steps):
        noise = [torch.randn(g.shape, generator=generator).to(g) for g in steps]
        return tuple(n * (joint_norm([g]) / joint_norm([n])) for n, g in zip(noise, steps, strict=True))

    return alter


def other_steps(*steps):
    """A control: each sequence gets the steps of the one before it in the batch."""
    check(steps[0].size(0) > 1, "another text's writes need a batch of at least two; read more texts at once")
    return tuple(g.roll(1, 0) for g in steps)


# ----------------------------------------------------------------------------------------------------------------------
# the Titans memory


class Titan(nn.Module):
    """Reads o = out(norm(M(q)) - q) and is written so that M(k) comes closer to v. M is a level.

    self_modifier: HOPE's; v is made from v0 by a level S that is written with -delta, the gradient of M's loss in v."""

    def __init__(self, config, arch, linear):
        super().__init__()
        self.config = config
        C = config.n_embd
        shape = config.titan_width, config.titan_period, config.titan_clip, config.inner_lr_learned
        self.ln_1 = arch.norm(C)
        self.query, self.key, self.value, self.out = (linear(C, C, bias=False) for _ in range(4))
        self.level = Level(config, arch, linear, *shape)
        # what decides per token how much is written (eta) and forgotten (alpha)
        self.eta, self.alpha = nn.Parameter(torch.empty(C)), nn.Parameter(torch.empty(C))
        self.modifier = None
        if config.self_modifier != "off":
            self.modifier = Level(config, arch, linear, *shape)
            self.modifier.requires_grad_(config.self_modifier == "on")

    def forward(self, x, memory: "LayerMemory | None" = None):
        """x (B, C, D) -> x + o."""
        C = x.size(-1)
        u = self.ln_1(x)
        q = F.rms_norm(self.query(u), (C,))
        fast = None if memory is None else memory.fast("titan")
        read = F.rms_norm(self.level(q, fast).y, (C,)) - q
        if memory is not None:
            memory.titan_input = u
        return x + self.out(read)

    def written_levels(self) -> list[Level]:
        return [level for level in (self.level, self.modifier) if level is not None]

    def write(self, u, memory: "LayerMemory", alter=None, flush=False) -> None:
        """Writes a chunk. u (B, C, D): the normalised input that forward had of it."""
        C = u.size(-1)
        k, v = F.rms_norm(self.key(u), (C,)), self.value(u)
        seen = self.level(k, memory.fast("titan"))
        if self.modifier is not None:
            made = self.modifier(v, memory.fast("modifier"))
            v = made.y
        eta, alpha = torch.sigmoid(u @ self.eta), torch.sigmoid(u @ self.alpha + ALPHA_OFFSET)  # (B, C)
        delta = eta.unsqueeze(-1) * (seen.y - v) / math.sqrt(C)
        accumulate(seen, delta, self.config, alpha, alter, flush)
        if self.modifier is not None:
            accumulate(made, -delta, self.config, alpha, alter, flush)


# ----------------------------------------------------------------------------------------------------------------------
# the memory of a block


class Memory(nn.Module):
    """What a block with memory has in place of its MLP: the Titans memory, if there is one, and the CMS levels."""

    def __init__(self, config, arch, linear):
        super().__init__()
        self.config = config
        self.titan = Titan(config, arch, linear) if config.memory in WITH_TITAN else None
        shapes = zip(config.cms_widths, config.cms_periods, strict=True)
        self.levels = nn.ModuleList(
            Level(config, arch, linear, width, period, config.inner_clip, config.inner_lr_learned and period > 0)
            for width, period in shapes)

    def written_in_turn(self) -> list[int]:
        """Indices of the written levels, in the order in which they are read."""
        return [i for i, level in enumerate(self.levels) if level.period]

    def read_keys(self) -> list:
        """What of LayerMemory.by_level is read."""
        keys = self.written_in_turn()
        if self.titan is not None:
            keys.append("titan")
        return keys

    def forward(self, x, memory: "LayerMemory | None" = None):
        """x (B, C, D) -> the same shape. memory None: without writes, and nothing is remembered."""
        if self.titan is not None:
            x = self.titan(x, memory)
        for i, level in enumerate(self.levels):
            fast = None
            if memory is not None and level.period:
                fast = memory.fast(i)
            seen = level(x, fast)
            if fast is not None:
                memory.seen.append(seen)
            x = seen.y
        return x


@dataclass
class LayerMemory:
    """What the sequences of a batch have written into one block, and what their last chunk left to be written."""

    by_level: dict = field(default_factory=dict)  # {index of a level, "titan" or "modifier": Fast}
    seen: list = field(default_factory=list)  # the written CMS levels' Seen of the chunk
    titan_input: torch.Tensor | None = None  # of the chunk, (B, C, D)

    def fast(self, key) -> Fast:
        return self.by_level.setdefault(key, Fast())

    @classmethod
    def holding(cls, pairs: dict, probes: dict) -> "LayerMemory":
        """With these fast weights and probes, {key: either}, and nothing else."""
        return cls({key: Fast(pair, probe=probes.get(key)) for key, pair in pairs.items()})

    def take(self, module: Memory, seen: list[tuple], probes: dict, titan_input) -> None:
        """Takes over what module read of a chunk: u, z, a of each written CMS level, and the Titans memory's input."""
        self.titan_input = titan_input
        for i, tensors in zip(module.written_in_turn(), seen, strict=True):
            fast = self.fast(i)
            fast.probe = probes.get(i)
            self.seen.append(Seen(module.levels[i], fast, *tensors))


def teach(seen: Seen, signal, scale, config):
    """delta (B, C, D): the teach signal, scaled, clipped per token, and 0 where the surprise is too small."""
    norm = signal.norm(dim=-1, keepdim=True)  # (B, C, 1)
    fast = seen.fast
    fast.add("teach_norm", norm.mean((1, 2)))
    fast.add("chunks", torch.ones(len(norm), device=norm.device))
    if config.surprise_threshold > 0:
        gated = norm < config.surprise_threshold
        fast.add("gated", gated.float().mean((1, 2)))
        signal = signal.masked_fill(gated, 0.0)
    if config.teach_clip > 0:
        fast.add("clipped", (norm > config.teach_clip).float().mean((1, 2)))
        signal = signal * (config.teach_clip / norm.clamp(min=TINY)).clamp(max=1.0)
    return scale * signal


def level_of(module: Memory, key) -> Level:
    """The level that LayerMemory.by_level has under key."""
    if key == "titan":
        return module.titan.level
    return module.titan.modifier if key == "modifier" else module.levels[key]


def records(layers: dict[int, LayerMemory], blocks) -> list[dict]:
    """What the writes of a batch came to, per block and level, as means over sequences. updates: writes of a norm above
    0 per sequence; update_norm: their summed norms; delta_over_theta: |Fast| / |W| behind the last one."""
    rows = []
    for index, layer in layers.items():
        for key, fast in layer.by_level.items():
            module = blocks[index].memory
            level = level_of(module, key)
            mean = {name: count.float().mean().item() for name, count in fast.counts.items()}
            chunks = mean.get("chunks", 1.0)
            size = joint_norm([w[None] for w in (level.c_fc.weight, level.c_proj.weight)]).item()
            length = 0.0
            if fast.pair is not None:
                length = joint_norm(fast.pair).mean().item()
            rows.append({
                "layer": index, "level": str(key), "period": level.period,
                "updates": mean.get("updates", 0.0), "update_norm": mean.get("update_norm", 0.0),
                "delta_over_theta": length / max(size, TINY),
                "teach_norm_mean": mean.get("teach_norm", 0.0) / chunks,
                "teach_clipped_share": mean.get("clipped", 0.0) / chunks,
                "surprise_gated_share": mean.get("gated", 0.0) / chunks,
                "inner_lr": module.config.inner_lr * float(level.factor())})
    return rows


# ----------------------------------------------------------------------------------------------------------------------
# sizes


def complete(c, arch, linear) -> None:
    """Fills in what a GPTConfig's 0 and () leave open, in place; ValueError for what no model can have.

    arch, linear: lab/architecture.py's Arch and model.Linear, which modules here are made of."""
    complete_shape(c)
    if c.memory == "none":
        return
    check(not arch.mlp.gated, f"memory {c.memory} is written into an MLP of two matrices, and mlp {c.mlp} has three; "
                              "use another mlp or no memory")
    if not c.cms_widths:
        c.cms_widths = matched_widths(c, arch, linear)
    complete_rates(c)


def n_parameters(make) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def matched_widths(c, arch, linear) -> tuple[int, ...]:
    """Widths with which a block with memory has as many parameters as a plain one. What the Titans memory leaves of the
    MLP goes half to the written levels together, half to the one that is never written."""
    unwritten = [i for i, period in enumerate(c.cms_periods) if period == 0]
    check(len(unwritten) == 1, f"cms_periods {c.cms_periods} have {len(unwritten)} levels of period 0, and parameters "
                               "are matched by the width of one; change them or give cms_widths")

    def size(width: int) -> int:
        return n_parameters(lambda: Level(c, arch, linear, width))

    n_written = len(c.cms_periods) - 1
    per_channel = size(2) - size(1)
    per_level = size(1) - per_channel
    budget = size(c.n_inner) - (n_written + 1) * per_level
    if c.memory in WITH_TITAN:
        budget -= n_parameters(lambda: Titan(c, arch, linear))
    total = round(budget / per_channel)
    widths = [total // (2 * max(n_written, 1))] * len(c.cms_periods)
    widths[unwritten[0]] = total - n_written * widths[0]
    check(min(widths) >= 1, f"memory {c.memory} needs more parameters than the MLP of {c.n_inner} channels that it "
                            "replaces; lower titan_width, or give cms_widths")
    return tuple(widths)


def state_bytes(blocks) -> int:
    """What a sequence's fast weights take, and their sums as much again while a period lasts."""
    weights = 0
    for block in blocks:
        if block.memory is None:
            continue
        levels = [level for level in block.memory.levels if level.period]
        if block.memory.titan is not None:
            levels += block.memory.titan.written_levels()
        weights += sum(level.n_weights() for level in levels)
    return 2 * 4 * weights


def write_flops(c, blocks, seq_len: int) -> int:
    """Training FLOPs per token of what is written, beside those of the trained weights (GPT.flops_per_token): of a
    chunk in the middle of a long sequence. The first period, which reads no writes, and the last chunk, which makes
    none, count like the others, as attention counts as if it were not causal: 1 to 3 % too much for rows of 8
    chunks (counted, two small shapes)."""
    if not writes(c):
        return 0
    # Per weight of a level, in which W1 and W2 are alike in size; a product costs 2 per weight that it touches:
    # read: u Fast1 and a Fast2 together 2, back to u and a 2, and back to Fast, if that has a gradient, 2.
    # write, see gradients(): g1, g2, delta W2' and delta Fast2' touch one matrix each, 1 each. Back through them: g1 to
    # u and dz 2, g2 to a 1, the others to W2 and Fast2 2. In the Titans memory delta has a gradient, too: from g2 and
    # from the others 3. Not counted: rank1's projection, 4 per write and not per token.
    read, write = 2 + 2, 4
    read_through, write_through = read + 2, write + 2 + 1 + 2
    titan_write = write_through + 3
    total = 0
    memories = [block.memory for block in blocks if block.memory is not None]
    for titan in (module.titan for module in memories if module.titan is not None):
        # read at the queries and again at the keys, which takes its trained weights again
        total += (2 * read_through + 6 + titan_write) * titan.level.n_weights()
        if titan.modifier is not None:
            per_weight = read_through + titan_write
            if c.self_modifier == "frozen":
                per_weight -= 2 + 1  # W1 and W2 have no gradient where it is read, nor W2 in its writes
            total += per_weight * titan.modifier.n_weights()
    if c.memory in WITH_CMS and c.write != "off":
        per_weight = {"stop": read + write, "through": read_through + write_through}[c.write]
        levels = [level for module in memories for level in module.levels if level.period]
        total += per_weight * sum(level.n_weights() for level in levels)
        attention = 8 * (len(memories) - 1) * c.n_embd * seq_len
        total += 2 * taught_weights(blocks) + attention
    return total


def taught_weights(blocks) -> int:
    """Weights, trained and written, through which the teach signal goes from the head to the lowest written level."""
    lowest, *above = (block for block in blocks if block.memory is not None)
    first = lowest.memory.written_in_turn()[0]
    levels = list(lowest.memory.levels[first + 1 :])
    total = sum(level.n_weights() for level in levels)
    for block in above:
        total += sum(p.numel() for name, p in block.named_parameters()
                     if p.dim() == 2 and not name.startswith(OFF_THE_PATH))
        levels += block.memory.levels
        if block.memory.titan is not None:
            levels.append(block.memory.titan.level)
    written = sum(level.n_weights() for level in levels if level.period)
    return total + written
