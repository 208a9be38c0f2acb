"""memory.py owns fast weights: MLPs that each sequence writes for itself while it is read (document 004).

A level is a residual MLP of width h. Of its weights, a sequence b has its own sum of writes, 0 at its beginning:

    u = norm(x)                                  (B, C, D)   C tokens of a chunk, D channels
    z = u (W1 + Fast1[b]) + b1,  a = phi(z)      (B, C, h)   phi: the architecture's activation
    y = x + a (W2 + Fast2[b]) + b2               (B, C, D)

A chunk is scored with the weights in force and then written, so no token is scored after it was written. With delta
(B, C, D), the gradient of a loss at y, the gradients of that loss in the fast weights have a closed form:

    g2 = a' delta,   dz = (delta (W2 + Fast2)') phi'(z),   g1 = u' dz

They are summed over the P tokens of a level's period, divided by P, and written at its end:

    Fast <- (1 - decay) Fast - inner_lr clip(optimizer(g), inner_clip)

CMS levels (continuum memory system, Behrouz et al. 2025) take delta from the model's own loss, the teach signal. The
Titans memory (arXiv:2501.00663) takes it from its own loss |M(k) - v|^2; HOPE's has its values v made by a second level
that is written, too. lab/chunks.py reads sequences chunk by chunk.
"""

import argparse
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

MEMORIES = ("none", "titan", "hope_attention", "hope")
WITH_TITAN, WITH_CMS = ("titan", "hope"), ("hope_attention", "hope")
# At the start of training the Titans memory forgets sigmoid(-4) = 1.8 % per write.
ALPHA_OFFSET = -4.0
MOMENTUM = 0.9
TINY = 1e-12  # keeps the gradient of a norm finite at 0


def check(condition, sentence: str) -> None:
    """ValueError with the sentence, unless the condition holds."""
    if not condition:
        raise ValueError(sentence)


# ----------------------------------------------------------------------------------------------------------------------
# configuration: fields of GPTConfig and flags of the trainer, of the same names


def list_of(kind):
    """A parser of comma-separated numbers, for argparse."""

    def parse(text: str) -> tuple:
        return tuple(kind(part) for part in text.split(",") if part.strip())

    parse.__name__ = f"comma-separated {kind.__name__}"  # argparse shows it in its errors
    return parse


@dataclass
class Settings:
    """Fields of model.GPTConfig; a configuration from before there was a memory lacks them. See HELP."""

    memory: str = "none"
    memory_layers: int = 0
    write: str = "stop"
    cms_periods: tuple[int, ...] = ()
    cms_widths: tuple[int, ...] = ()
    titan_width: int = 0
    titan_period: int = 0
    self_modifier: str = "off"
    inner_lr: float = 1.0
    inner_lr_learned: bool = False
    inner_optimizer: str = "sgd"
    inner_clip: float = 0.3
    inner_decay: float = 0.0
    teach_scale: tuple[float, ...] = (1.0,)
    teach_clip: float = 0.0
    surprise_threshold: float = 0.0


CHOICES = dict(
    memory=MEMORIES,
    write=("off", "stop", "through"),
    self_modifier=("off", "frozen", "on"),
    inner_optimizer=("sgd", "momentum", "rank1"))
HELP = dict(
    memory="fast weights in the last blocks",
    memory_layers="blocks that have them (0 = the last quarter)",
    write="CMS levels in training: not written; written; written, with gradients through the writes",
    cms_periods="tokens between the writes of each level, 0 = never (default 128,0; shorter where sequences are)",
    cms_widths="of the levels (default: such that the model is as large as one without memory, half for the written "
               "levels, half for the one that is never written)",
    titan_width="of the Titans memory (0 = n_embd / 2)",
    titan_period="tokens between its writes (0 = the smallest of --cms_periods)",
    self_modifier="HOPE: the Titans memory's values come through a level that is written",
    inner_lr="learning rate of the writes",
    inner_lr_learned="train a factor on inner_lr for each level (CMS: with --write through)",
    inner_optimizer="of the writes; rank1 leaves out the direction of the mean input",
    inner_clip="largest L2 norm of a write before inner_lr (0 = off)",
    inner_decay="share that a write forgets of the earlier ones",
    teach_scale="factor on the teach signal, or one per written level (default 1)",
    teach_clip="largest L2 norm of a token's teach signal (0 = off)",
    surprise_threshold="tokens whose teach signal has a smaller norm are not written")
# Document 004 as it was run, with its sign repaired: its writes are too small to show.
ORIGINAL = dict(memory="hope_attention", write="off", inner_lr=3.75e-6, cms_periods=(128, 0))


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the flags of HELP to a parser's group."""
    for name, text in HELP.items():
        default = getattr(Settings, name)
        keywords = dict(default=default)
        if isinstance(default, tuple):
            keywords["type"] = list_of(float if default else int)
        elif isinstance(default, bool):
            keywords["action"] = "store_true"
        else:
            keywords["type"] = type(default)
            text += " (default %(default)s)"
        if name in CHOICES:
            keywords["choices"] = CHOICES[name]
        group.add_argument(f"--{name}", help=text, **keywords)


def complete(c, arch, linear) -> None:
    """Fills in what a GPTConfig's 0 and () leave open, in place; ValueError for what no model can have.

    arch, linear: model.ARCHS's entry and model.Linear, which modules here are made of."""
    for name in ("cms_periods", "cms_widths", "teach_scale"):
        setattr(c, name, tuple(getattr(c, name)))
    for name, known in CHOICES.items():
        value = getattr(c, name)
        check(value in known, f"unknown {name} {value!r}; use one of {', '.join(known)}")
    if c.memory == "none":
        return
    c.memory_layers = c.memory_layers or max(1, c.n_layer // 4)
    check(1 <= c.memory_layers <= c.n_layer,
          f"memory_layers {c.memory_layers} but {c.n_layer} blocks; give a number from 1 to that")
    _complete_periods(c)
    if not c.cms_widths:
        c.cms_widths = matched_widths(c, arch, linear)
    check(len(c.cms_widths) == len(c.cms_periods) and min(c.cms_widths) >= 1,
          f"cms_widths {c.cms_widths} do not fit cms_periods {c.cms_periods}; give one of at least 1 per level")
    n_written = sum(map(bool, c.cms_periods))
    if len(c.teach_scale) == 1:
        c.teach_scale *= max(n_written, 1)
    check(len(c.teach_scale) == max(n_written, 1),
          f"{len(c.teach_scale)} values of teach_scale for {n_written} written levels; give one, or one each")
    for name in "inner_lr inner_clip teach_clip surprise_threshold titan_width".split():
        check(0 <= getattr(c, name) < math.inf, f"{name} {getattr(c, name)}; give 0 or more")
    check(all(0 <= scale < math.inf for scale in c.teach_scale), f"teach_scale {c.teach_scale}; give 0 or more")
    check(0 <= c.inner_decay < 1, f"inner_decay {c.inner_decay}; give a share from 0 to below 1")
    check(c.write == "through" or not (c.inner_lr_learned and c.memory in WITH_CMS),
          f"inner_lr_learned needs gradients through the writes, which write {c.write} has not; use write through")
    check(c.write != "through" or c.inner_optimizer != "rank1",
          "inner_optimizer rank1 has no gradient through its writes; use write stop")
    check(c.self_modifier == "off" or c.memory == "hope",
          f"self_modifier {c.self_modifier} is a part of memory hope; leave it out with memory {c.memory}")


def _complete_periods(c) -> None:
    if c.memory in WITH_CMS:
        c.cms_periods = c.cms_periods or (default_period(c), 0)
        check(any(c.cms_periods), f"cms_periods {c.cms_periods} write no level; give one above 0, such as 128,0")
    else:
        c.cms_periods = c.cms_periods or (0,)
        check(not any(c.cms_periods), "memory titan writes no CMS level; leave cms_periods out or use memory hope")
    check(min(c.cms_periods) >= 0, f"cms_periods {c.cms_periods}; give 0 or more per level")
    if c.memory in WITH_TITAN:
        c.titan_width = c.titan_width or max(1, c.n_embd // 2)
        c.titan_period = c.titan_period or min(filter(None, c.cms_periods), default=default_period(c))
    for period in written_periods(c):
        check(period % chunk_size(c) == 0,
              f"a period of {period} tokens is no multiple of the smallest one, {chunk_size(c)}; change cms_periods "
              "or titan_period")
        check(period < c.block_size,
              f"what is written every {period} tokens is never read in sequences of {c.block_size}; lower "
              "cms_periods or titan_period, or read longer sequences")


def default_period(c) -> int:
    """128 tokens, or the largest power of two that still leaves something to read it."""
    return next((period for period in (128, 64, 32, 16, 8, 4, 2) if period < c.block_size), 1)


def written_periods(c) -> list[int]:
    """Of everything that is written, in tokens; empty without memory."""
    periods = [period for period in c.cms_periods if period]
    if c.memory in WITH_TITAN:
        periods.append(c.titan_period)
    return periods


def chunk_size(c) -> int:
    """Tokens that are read at a time: the smallest period."""
    return min(written_periods(c))


def writes(c) -> bool:
    """Whether reading a sequence writes. The Titans memory is a recurrent layer, which always does."""
    return c.memory in WITH_TITAN or (c.memory in WITH_CMS and c.write != "off")


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


# ----------------------------------------------------------------------------------------------------------------------
# a level, and what a sequence writes into it


@dataclass
class Fast:
    """What the sequences of a batch have written into one level. None: nothing yet."""

    pair: tuple | None = None  # Fast1 (B, D, h), Fast2 (B, h, D), fp32
    sums: tuple | None = None  # of the gradients / P, of the same shapes
    momentum: tuple | None = None
    inputs: tuple | None = None  # sums of u (B, D) and a (B, h), for rank1
    tokens: int = 0  # in the sums
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
    y: torch.Tensor  # the output, residual included


class Level(nn.Module):
    """The residual MLP of the module's docstring. period 0: never written."""

    def __init__(self, config, arch, linear, width: int, period: int = 0, learned: bool = False):
        super().__init__()
        self.arch, self.period = arch, period
        self.ln_1 = arch.norm(config.n_embd)
        self.c_fc = linear(config.n_embd, width, bias=arch.bias)
        self.c_proj = linear(width, config.n_embd, bias=arch.bias)
        self.log_lr = nn.Parameter(torch.empty(())) if learned else None

    def forward(self, x, fast: Fast | None = None) -> Seen:
        """x (B, C, D). fast None: without writes."""
        u = self.ln_1(x)
        z = self.c_fc(u)
        pair = None if fast is None else fast.pair
        if pair is not None:
            z = z + u @ pair[0].to(u.dtype)
        a = self.arch.activation(z)
        out = self.c_proj(a)
        if pair is not None:
            out = out + a @ pair[1].to(a.dtype)
        return Seen(self, fast, u, z, a, x + out)

    def factor(self):
        """On inner_lr."""
        return 1.0 if self.log_lr is None else self.log_lr.exp()


def gradients(seen: Seen, delta) -> tuple[torch.Tensor, torch.Tensor]:
    """g1 (B, D, h) and g2 (B, h, D) of the sum over tokens of <delta, y>, for a fixed delta (B, C, D)."""
    level, fast, u, z, a, _ = seen
    delta = delta.to(a.dtype)
    back = F.linear(delta, level.c_proj.weight.mT)
    if fast.pair is not None:
        back = back + delta @ fast.pair[1].mT.to(delta.dtype)
    dz = level.arch.activation_grad(back.to(z.dtype), z)
    g1 = u.mT @ dz.to(u.dtype)
    g2 = a.mT @ delta
    return g1.float() if g1.dtype.itemsize < 4 else g1, g2.float() if g2.dtype.itemsize < 4 else g2


def accumulate(seen: Seen, delta, config, alpha=None, alter=None) -> None:
    """Adds a chunk's gradients to its level's sums, and writes them when a period has been seen.

    alpha (B, C): what the Titans memory forgets per write, besides inner_decay. alter: see write."""
    level, fast = seen.level, seen.fast
    added = [g / level.period for g in gradients(seen, delta)]
    if config.inner_optimizer == "rank1":
        means = seen.u.float().sum(1), seen.a.float().sum(1)
        fast.inputs = means if fast.inputs is None else tuple(map(torch.add, fast.inputs, means))
    fast.sums = tuple(added) if fast.sums is None else tuple(map(torch.add, fast.sums, added))
    fast.tokens += delta.size(1)
    if fast.tokens == level.period:
        write(level, fast, config, alpha, alter)


def write(level: Level, fast: Fast, config, alpha=None, alter=None) -> None:
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
    if config.inner_clip > 0:
        factor = (config.inner_clip / norm.clamp(min=TINY)).clamp(max=1.0)
        steps = tuple(factor * g for g in steps)
        norm = factor * norm
    rate = config.inner_lr * level.factor()
    steps = tuple(rate * g for g in steps)
    if alter is not None:
        steps = alter(*steps)
    keep = 1.0 - config.inner_decay
    if alpha is not None:
        keep = keep * (1.0 - alpha.mean(1)[:, None, None])
    if fast.pair is None:
        fast.pair = tuple(-g for g in steps)
    else:
        fast.pair = tuple(keep * w - g for w, g in zip(fast.pair, steps, strict=True))
    length = (rate * norm).flatten()
    fast.add("updates", length > 0)
    fast.add("update_norm", length)
    fast.sums, fast.inputs, fast.tokens = None, None, 0


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
        C, width, learned = config.n_embd, config.titan_width, config.inner_lr_learned
        self.ln_1 = arch.norm(C)
        self.query, self.key, self.value, self.out = (linear(C, C, bias=False) for _ in range(4))
        self.level = Level(config, arch, linear, width, config.titan_period, learned)
        # what decides per token how much is written (eta) and forgotten (alpha)
        self.eta, self.alpha = nn.Parameter(torch.empty(C)), nn.Parameter(torch.empty(C))
        self.modifier = None
        if config.self_modifier != "off":
            self.modifier = Level(config, arch, linear, width, config.titan_period, learned)
            self.modifier.requires_grad_(config.self_modifier == "on")

    def forward(self, x, memory: "LayerMemory | None" = None):
        """x (B, C, D) -> x + o."""
        C = x.size(-1)
        u = self.ln_1(x)
        q = F.rms_norm(self.query(u), (C,))
        fast = None if memory is None else memory.fast("titan")
        read = F.rms_norm(self.level(q, fast).y, (C,)) - q
        if memory is not None:
            memory.titan = (self, u)
        return x + self.out(read)

    def write(self, u, memory: "LayerMemory", alter=None) -> None:
        """Writes a chunk. u (B, C, D): the normalised input that forward had of it."""
        C = u.size(-1)
        k, v = F.rms_norm(self.key(u), (C,)), self.value(u)
        seen = self.level(k, memory.fast("titan"))
        if self.modifier is not None:
            made = self.modifier(v, memory.fast("modifier"))
            v = made.y
        eta, alpha = torch.sigmoid(u @ self.eta), torch.sigmoid(u @ self.alpha + ALPHA_OFFSET)  # (B, C)
        delta = eta.unsqueeze(-1) * (seen.y - v) / math.sqrt(C)
        accumulate(seen, delta, self.config, alpha, alter)
        if self.modifier is not None:
            accumulate(made, -delta, self.config, alpha, alter)


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
            Level(config, arch, linear, width, period, config.inner_lr_learned and period > 0)
            for width, period in shapes)

    def forward(self, x, memory: "LayerMemory | None" = None):
        """x (B, C, D) -> the same shape. memory None: without writes, and nothing is remembered."""
        if self.titan is not None:
            x = self.titan(x, memory)
        for i, level in enumerate(self.levels):
            seen = level(x, memory.fast(i) if memory is not None and level.period else None)
            if seen.fast is not None:
                memory.seen.append(seen)
            x = seen.y
        return x


@dataclass
class LayerMemory:
    """What the sequences of a batch have written into one block, and what their last chunk left to be written."""

    by_level: dict = field(default_factory=dict)  # {index of a level, "titan" or "modifier": Fast}
    seen: list = field(default_factory=list)  # the written CMS levels' Seen of the chunk
    titan: tuple | None = None  # the Titans memory and its input of the chunk

    def fast(self, key) -> Fast:
        return self.by_level.setdefault(key, Fast())


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
