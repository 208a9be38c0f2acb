"""model.py owns the network: GPTConfig, GPT (three architectures, gated attention), initialisation, its files.

    python model.py --attn_gate headwise                   # parameters and FLOPs of the 124M shape
    python model.py export experiments/runs/<run> gpt2_hf  # checkpoint -> folder for transformers
    python model.py import openai-community/gpt2 gpt2      # Hugging Face GPT-2 -> checkpoint
    python model.py import out/ckpt.pt mine                # nanoGPT's or build-nanogpt's file -> checkpoint

`gpt2` is GPT-2 exactly (learned positions, LayerNorm, tanh-GELU, tied head): weights copy to and from Hugging Face.
`nanogpt` is the same with nanoGPT's exact GELU.
`speedrun` is the October-2024 NanoGPT speedrun shape: RoPE, RMSNorm without gain, QK-norm, ReLU^2, no biases,
zero-initialised output projections; use it with --n_head 6 at --n_embd 768 (heads of 128). lab/architecture.py has
the parts of all three, each of which may be replaced.

>>> model = GPT(GPTConfig(attn_gate="headwise"), seed=0)
>>> loss = model(idx, targets)                # idx, targets (B, T) int64; targets of -100 are not scored
>>> nll = model.per_token_loss(idx, targets)  # (B, T) fp32, for evaluation; lab/inference.py scores and samples
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from lab import flags

if __name__ == "__main__":
    flags.check_first(__file__)

import torch
import torch.nn.functional as F
from torch import nn

from lab import architecture, chunks, disk, memory, memory_settings, processes
from lab.attention import causal_attention
from lab.chunks import Context
from lab.loss import chunked_cross_entropy, mask_logits, tie
from lab.schema import check, is_pairs

FORMAT = {"format": "moonshotgpt-model", "version": 1}
ADVICE = "pass a folder that this version's GPT.save wrote"


class Linear(nn.Linear):
    packed = None  # the weight in oneDNN's own layout, while log_probs.packed_weights is open

    def reset_parameters(self):
        """Nothing: GPT draws every weight by name and leaves the global generator alone."""

    def forward(self, x):
        return super().forward(x) if self.packed is None else packed_linear(x, self.packed, self.bias)


def packed_linear(x, packed, bias):
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


class Embedding(nn.Embedding):
    packed = None  # as in Linear, for the head
    reset_parameters = Linear.reset_parameters


class Gate(NamedTuple):
    """A gate g = activation(z) on attention (Qiu et al., arXiv:2505.06708); z broadcasts to (B, T, H, dh)."""

    name: str  # of its parameter or module, in Attention and in checkpoints
    make: Callable  # GPTConfig -> that parameter or module
    read: Callable  # (that, the block's normalised input x (B, T, C), GPTConfig) -> z


def project(gate, x, config):
    """(B, T, H, 1 or dh)"""
    return gate(x).unflatten(-1, (config.n_head, -1))


GATES = {
    "none": None,
    "headwise": Gate("gate", lambda c: Linear(c.n_embd, c.n_head, bias=False), project),
    "elementwise": Gate("gate", lambda c: Linear(c.n_embd, c.n_embd, bias=False), project),
    "const": Gate("gate_table", lambda c: nn.Parameter(torch.empty(c.n_head, c.head_dim)), lambda table, *_: table),
}
GATE_ACTIVATIONS = {
    "sigmoid": torch.sigmoid,  # (0, 1)
    "ns_sigmoid": lambda z: 0.5 + 0.5 * torch.sigmoid(z),  # "non-sparse", (0.5, 1): never closes
}


def gate_output(attention, x, context, q, k, v):
    y = context.attention(q, k, v)
    return y * attention.gate_values(context.wanted(x)).to(y.dtype)


def gate_value(attention, x, context, q, k, v):
    return context.attention(q, k, v * attention.gate_values(x).to(v.dtype))


GATE_POSITIONS = {"sdpa": gate_output, "value": gate_value}


# GPTConfig and the flags of the scripts take their choices from these tables and from lab/architecture.py's.
CHOICES = dict(attn_gate=GATES, gate_pos=GATE_POSITIONS, gate_act=GATE_ACTIVATIONS)


@dataclass
class GPTConfig(memory_settings.Settings):
    """Shape of a model, its memory's included. The half-open ranges in `unused_ids`, clipped to the vocabulary, and the
    ids from `vocab_size` to `padded_vocab_size` are padding: their logit is -inf in every loss, score and sample."""

    vocab_size: int = 50349  # GPT-2's 50257, 47 unused, 45 multiplication tokens
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_inner: int | None = None  # None: architecture.default_inner
    arch: str = "gpt2"
    positions: str = architecture.OWN  # this and the next five: parts of the architecture, see lab/architecture.py
    norm: str = architecture.OWN
    qk_norm: str = architecture.OWN
    mlp: str = architecture.OWN
    bias: str = architecture.OWN
    weight_init: str = architecture.OWN
    attn_gate: str = "none"
    gate_pos: str = "sdpa"
    gate_act: str = "sigmoid"
    padded_vocab_size: int | None = None  # rows of the tied matrix; None: vocab_size
    unused_ids: tuple = ((50257, 50304),)

    def __post_init__(self):
        architecture.normalise(self)
        if self.n_inner is None and isinstance(self.n_embd, int):
            self.n_inner = architecture.default_inner(self)
        if self.padded_vocab_size is None:
            self.padded_vocab_size = self.vocab_size
        for name in "vocab_size block_size n_layer n_head n_embd n_inner padded_vocab_size".split():
            value = getattr(self, name)
            check(type(value) is int and 1 <= value < 2**24,
                  f"{name} is {value!r}; give a whole number of at least 1 and below 2**24")
        for name, table in CHOICES.items():
            value = getattr(self, name)
            check(value in list(table), f"unknown {name} {value!r}; use one of {', '.join(table)}")
        arch = architecture.build(self)
        unit, size = (2, "equal, even size") if arch.positions == "rope" else (1, "equal size")
        possible = [n for n in range(1, min(self.n_embd, 1024) + 1) if self.n_embd % (unit * n) == 0]
        advice = ", ".join(map(str, possible)) or "1 and an even n_embd"
        check(self.n_head in possible,
              f"n_embd {self.n_embd} does not split into {self.n_head} heads of {size}; use n_head {advice}")
        check(self.padded_vocab_size >= self.vocab_size,
              f"padded_vocab_size {self.padded_vocab_size} is below vocab_size {self.vocab_size}; leave it out")
        check(is_pairs(self.unused_ids), f"unused_ids is {self.unused_ids!r:.60}; give pairs of whole numbers")
        self.unused_ids = tuple((a, b) for a, b in self.unused_ids)
        memory.complete(self, arch, Linear)

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def masked_ranges(self) -> list[tuple[int, int]]:
        """Half-open ranges of padding ids within the padded vocabulary."""
        ranges = [(max(a, 0), min(b, self.vocab_size)) for a, b in self.unused_ids]
        ranges.append((self.vocab_size, self.padded_vocab_size))
        return [(a, b) for a, b in ranges if a < b]

    def to_dict(self) -> dict:
        return {**asdict(self), "unused_ids": [list(ids) for ids in self.unused_ids]}

    @classmethod
    def from_dict(cls, values: dict) -> "GPTConfig":
        known = {f.name for f in fields(cls)}
        unknown, missing = sorted(set(values) - known)[:9], sorted(REQUIRED - set(values))
        check(not unknown, f"the configuration has unknown entries ({', '.join(unknown)}); {ADVICE}")
        check(not missing, f"the configuration lacks entries ({', '.join(missing)}); {ADVICE}")
        return cls(**values)


# Every file has these. A field that is added later is not in older files: its default has to be what
# the network was before.
REQUIRED = set("vocab_size block_size n_layer n_head n_embd n_inner arch attn_gate gate_pos "
               "gate_act padded_vocab_size unused_ids".split())


def rope_tables(block_size: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos, sin (block_size, head_dim / 2) fp32, base 10000 (Su et al. 2021, arXiv:2104.09864)."""
    inv_freq = 10000.0 ** (-torch.arange(0, head_dim, 2, device="cpu").float() / head_dim)
    angles = torch.outer(torch.arange(block_size, device="cpu").float(), inv_freq)
    return angles.cos(), angles.sin()


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns the pairs (i, i + dh/2) of x (B, T, H, dh), the speedrun's layout. cos, sin (T, dh/2) or (B, T, dh/2)."""
    x1, x2 = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1).type_as(x)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        C, arch = config.n_embd, architecture.build(config)
        bias, self.qk_norm = arch.bias, arch.qk_norm
        self.c_attn = Linear(C, 3 * C, bias=bias)
        self.c_proj = Linear(C, C, bias=bias)
        if config.attn_gate != "none":
            gate = GATES[config.attn_gate]
            setattr(self, gate.name, gate.make(config))

    def gate_values(self, x):
        """g, broadcastable to (B, T, H, dh), from the block's normalised input x (B, T, C); None without a gate."""
        if self.config.attn_gate == "none":
            return None
        gate = GATES[self.config.attn_gate]
        z = gate.read(getattr(self, gate.name), x, self.config)
        return GATE_ACTIVATIONS[self.config.gate_act](z)

    def qkv(self, x, context):
        """q (B, R, H, dh), k and v (B, T, H, dh), before any gate."""
        B, T, C = x.shape
        heads = self.config.n_head, self.config.head_dim
        if context.only is None:
            q, k, v = self.c_attn(x).view(B, T, 3, *heads).unbind(2)
        else:
            weight_q, weight_kv = self.c_attn.weight.split([C, 2 * C])
            bias_q, bias_kv = (None, None) if self.c_attn.bias is None else self.c_attn.bias.split([C, 2 * C])
            q = F.linear(context.wanted(x), weight_q, bias_q).view(B, -1, *heads)
            k, v = F.linear(x, weight_kv, bias_kv).view(B, T, 2, *heads).unbind(2)
        if context.rope is not None:
            rope_q = [context.wanted(table, -2) for table in context.rope]
            q, k = apply_rope(q, *rope_q), apply_rope(k, *context.rope)
        if self.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        return q, k, v

    def forward(self, x, context):
        """x (B, T, C) -> (B, R, C)."""
        qkv = self.qkv(x, context)
        if self.config.attn_gate == "none":
            y = context.attention(*qkv)
        else:
            y = GATE_POSITIONS[self.config.gate_pos](self, x, context, *qkv)
        return self.c_proj(y.flatten(2))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        arch = architecture.build(config)
        self.activation = arch.mlp.activation
        self.c_fc = Linear(config.n_embd, config.n_inner, bias=arch.bias)
        self.c_up = Linear(config.n_embd, config.n_inner, bias=arch.bias) if arch.mlp.gated else None
        self.c_proj = Linear(config.n_inner, config.n_embd, bias=arch.bias)

    def forward(self, x):
        a = self.activation(self.c_fc(x))
        return self.c_proj(a if self.c_up is None else a * self.c_up(x))


class Block(nn.Module):
    """Attention and MLP. A block maps x (B, T, C) and a Context to x of the same shape, causally.

    `attention_only`: tokens see each other through context.attend alone, so that inference may cache keys
    and values and share beginnings. Set it to False for a block with a state of its own: it is then given
    whole sequences, each from a fresh state."""

    attention_only = True

    def __init__(self, config: GPTConfig, has_memory: bool = False):
        super().__init__()
        arch = architecture.build(config)
        self.ln_1 = arch.norm(config.n_embd)
        self.attn = Attention(config)
        self.memory = None
        if has_memory:
            self.memory = memory.Memory(config, arch, Linear)
        else:
            self.ln_2 = arch.norm(config.n_embd)
            self.mlp = MLP(config)

    def forward(self, x, context):
        x = context.wanted(x) + self.attn(self.ln_1(x), context)
        if self.memory is not None:
            return self.memory(x, context.fast)
        return x + self.mlp(self.ln_2(x))


def seeded_generator(text: str) -> torch.Generator:
    """A CPU generator whose seed is a hash of text: streams of different texts have nothing in common."""
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def run_blocks(blocks, x, rope, attend=causal_attention):
    """x (B, T, C) behind all blocks. rope, attend: see Context."""
    context = Context(rope, attend)
    for block in blocks:
        x = block(x, context)
    return x


class GPT(nn.Module):
    """Every weight is drawn on the CPU in fp32 from its own generator, seeded by (seed, name): a gate, a padded
    vocabulary, the device and the number of threads leave all shared weights bit-identical. seed=None: the weights stay
    unset, for a caller that fills them."""

    def __init__(self, config: GPTConfig, seed: int | None = 0):
        super().__init__()
        self.config = config
        arch = architecture.build(config)
        self.transformer = nn.ModuleDict()  # names as in Hugging Face GPT-2
        self.transformer["wte"] = Embedding(config.padded_vocab_size, config.n_embd)
        device = self.transformer["wte"].weight.device
        if arch.positions == "rope":
            cos, sin = rope_tables(config.block_size, config.head_dim)
            self.register_buffer("cos", cos.to(device), persistent=False)
            self.register_buffer("sin", sin.to(device), persistent=False)
        elif arch.positions == "learned":
            self.transformer["wpe"] = Embedding(config.block_size, config.n_embd)
        plain = config.n_layer - config.memory_layers
        # what --compile replaces: a block on a chunk (chunks.compile_blocks), all blocks in training
        # (gradients.compile_parts), hidden in evaluations (val_loss.compile_forward)
        self.chunk_block, self.train_blocks = chunks.run_block, run_blocks
        self.eval_hidden = GPT.hidden
        self.transformer["h"] = nn.ModuleList(Block(config, i >= plain) for i in range(config.n_layer))
        if config.memory != "none":  # on teach_scale, as trainers set it
            self.register_buffer("teach_factor", torch.ones((), device=device))
        self.transformer["ln_f"] = arch.norm(config.n_embd)
        if seed is not None and device.type != "meta":
            self.init_weights(seed)

    @property
    def attention_only(self) -> bool:
        """Whether every block promises it (see Block) and nothing is written between chunks."""
        promised = all(getattr(block, "attention_only", False) for block in self.transformer["h"])
        return promised and not self.writes

    @property
    def writes(self) -> bool:
        """Whether reading a sequence writes into its fast weights (lab/memory.py)."""
        return memory_settings.writes(self.config)

    @torch.no_grad()
    def init_weights(self, seed: int):
        """Matrices by the architecture's rule, rows from vocab_size on zero; biases 0, gains 1. Gates: normal 0.02;
        const: z = 0, where the other gates start on average. The Titans memory: see memory.SCALED."""
        init = architecture.build(self.config).init
        for name, p in self.named_parameters():
            generator = seeded_generator(f"{seed}/{name}")
            value = torch.zeros(p.shape, device="cpu")
            drawn = value[: self.config.vocab_size] if "wte" in name else value
            if ".ln_" in name and name.endswith(".weight"):
                value.fill_(1.0)
            elif ".gate." in name:
                drawn.normal_(0.0, 0.02, generator=generator)
            elif ".titan." in name and name.endswith(memory.SCALED):
                drawn.normal_(0.0, self.config.n_embd**-0.5, generator=generator)
            elif p.dim() and not name.endswith((".bias", "gate_table")):
                init(drawn, name, self.config, generator)
            p.copy_(value)

    def embed(self, idx, wte=None, positions=None):
        """idx (B, T) -> x (B, T, C), and the RoPE tables of its positions or None. positions (T,) or (B, T) int64 below
        block_size; None: 0 .. T-1. wte: the matrix's view from loss.tie, if there is one."""
        if positions is None:
            T, limit = idx.size(1), self.config.block_size
            check(T <= limit, f"the sequence has {T} tokens but the model's block_size is {limit}; "
                              "shorten it")
            positions = slice(T)
        x = self.transformer["wte"](idx) if wte is None else F.embedding(idx, wte, sparse=True)
        if "wpe" in self.transformer:
            return x + self.transformer["wpe"].weight[positions], None
        return x, (self.cos[positions], self.sin[positions]) if hasattr(self, "cos") else None

    def hidden(self, idx, wte=None, positions=None, attend=causal_attention, write=True):
        """Normalised hidden states (B, T, C), which the head reads. wte, positions: see embed. attend: for rows of
        several sequences, which only attention can keep apart."""
        check(attend is causal_attention or self.attention_only,
              "a block of this model has inner state, which packed sequences would share; "
              "put one sequence into each row (sft.py --packing off)")
        if write and self.writes:  # chunk by chunk from position 0, by the plain matrix
            return chunks.hidden(self, idx)
        x, rope = self.embed(idx, wte, positions)
        run = self.train_blocks if torch.is_grad_enabled() else run_blocks
        return self.transformer["ln_f"](run(self.transformer["h"], x, rope, attend))

    def head(self, x):
        """Logits (..., padded_vocab) of hidden states (..., C); padding ids are -inf."""
        wte = self.transformer["wte"]
        logits = F.linear(x, wte.weight) if wte.packed is None else packed_linear(x, wte.packed, None)
        return mask_logits(logits, self.config.masked_ranges)

    def forward(self, idx, targets=None, loss_denominator=None):
        """Logits (B, T, padded_vocab) of idx (B, T) int64. With targets (B, T) int64: the sum of -log p(target) over
        targets != -100, divided by loss_denominator (default: their number); infinite if a target is a padding id."""
        if targets is None:
            return self.head(self.hidden(idx))
        if self.writes:
            return chunks.loss(self, idx, targets, loss_denominator)
        wte_in, wte_out = None, self.transformer["wte"].weight
        # torch.compile cannot trace sparse gradients, and their sum on a GPU is not deterministic.
        if idx.is_cpu and not torch.compiler.is_compiling() and torch.is_grad_enabled():
            wte_in, wte_out = tie(wte_out)
        x = self.hidden(idx, wte_in).flatten(0, 1)
        return chunked_cross_entropy(x, wte_out, targets.flatten(), self.config.masked_ranges, loss_denominator)

    @torch.no_grad()
    def per_token_loss(self, idx, targets, write=True):
        """-log p(target) in nats, (B, T) fp32, 0 where the target is -100: the loss of every validation. write=False:
        a memory stays as it was trained."""
        if write and self.writes:
            return chunks.per_token_loss(self, idx, targets)
        x, wte = self.eval_hidden(self, idx, write=False).flatten(0, 1), self.transformer["wte"].weight
        nll = chunked_cross_entropy(x, wte, targets.flatten(), self.config.masked_ranges, reduce=False)
        return nll.view(targets.shape)

    def num_params(self) -> dict[str, int]:
        """total: the tied matrix once, without the rows that pad the vocabulary (124,439,808 for GPT-2); non_embedding:
        total without token and position embeddings; gate; padding: what total leaves out."""
        counts, c = {name: p.numel() for name, p in self.named_parameters()}, self.config
        padding = (c.padded_vocab_size - c.vocab_size) * c.n_embd
        body = sum(n for name, n in counts.items() if ".wte." not in name and ".wpe." not in name)
        gate = sum(n for name, n in counts.items() if ".gate" in name)
        total = sum(counts.values()) - padding
        return dict(total=total, non_embedding=body, gate=gate, padding=padding)

    def flops_per_token(self, seq_len: int) -> int:
        """Training FLOPs (forward + backward) per token, as PaLM (arXiv:2204.02311, appendix B) counts them: 6 per
        weight of every matrix product (the head's over the logical vocabulary), 12 * n_embd * seq_len per attention, as
        if it were not causal; memory.write_flops for what is written. Embedding look-ups, norms, biases and activations
        count nothing."""
        c, blocks = self.config, self.transformer["h"]
        matrices = sum(p.numel() for name, p in blocks.named_parameters()
                       if p.dim() == 2 and not name.endswith("gate_table"))
        attentions = sum(isinstance(module, Attention) for module in blocks.modules())
        products = 6 * (matrices + c.vocab_size * c.n_embd) + 12 * attentions * c.n_embd * seq_len
        return products + memory.write_flops(c, blocks, seq_len)

    def save(self, folder):
        """Writes model.safetensors and model.json into folder, and makes it if needed."""
        from safetensors.torch import save_file

        folder, meta = Path(folder), {**FORMAT, "config": self.config.to_dict()}
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in self.state_dict().items()}, folder / "model.safetensors")
        disk.share(folder / "model.safetensors")
        (folder / "model.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load_config(folder) -> GPTConfig:
        """The configuration that save(folder) wrote; errors as in load."""
        path = Path(folder) / "model.json"
        for name in ("model.json", "model.safetensors"):
            if not path.with_name(name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}; {ADVICE}")
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{path} is not readable as JSON ({e}); {ADVICE}") from e
        label = {key: meta.get(key) for key in FORMAT} if isinstance(meta, dict) else meta
        check(label == FORMAT and isinstance(meta.get("config"), dict),
              f"{path} is no {FORMAT['format']} of version {FORMAT['version']} (found {label!r}); {ADVICE}")
        try:
            return GPTConfig.from_dict(meta["config"])
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from e

    @classmethod
    def load(cls, folder, device="cpu") -> "GPT":
        """The model that save(folder) wrote. FileNotFoundError or ValueError, in one sentence, for anything else."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        config, path = cls.load_config(folder), Path(folder) / "model.safetensors"
        try:
            state = load_file(path)
        except SafetensorError as e:
            raise ValueError(f"{path} is damaged or of another format ({e}); {ADVICE}") from e
        last = f"transformer.h.{config.n_layer - 1}"
        check(any(name.startswith(f"{last}.") for name in state),
              f"{path} has no {last}, the configuration says n_layer {config.n_layer}; {ADVICE}")
        with torch.device("meta"):  # takes no memory, however wrong the configuration is
            check_shapes(cls(config, seed=None), state, path)
        return load_exactly(cls(config, seed=None), state, path).to(device)


def check_shapes(model: GPT, state: dict, source) -> None:
    """ValueError unless the names and shapes of state are exactly those of the model's weights."""
    expected, given = ({name: tuple(t.shape) for name, t in d.items()} for d in (model.state_dict(), state))
    for name in sorted(expected | given):
        shape, own = given.get(name), expected.get(name)  # None: absent
        check(shape == own, f"{source}: {name} has shape {shape}, the configuration says {own}; "
                            "use the one it was saved with")


def load_exactly(model: GPT, state: dict, source) -> GPT:
    """The model, with state copied into its weights; ValueError unless they fit exactly and all are finite numbers."""
    check_shapes(model, state, source)
    for name, tensor in state.items():
        finite = all(map(math.isfinite, tensor.aminmax()))  # 10 x as fast as isfinite
        check(finite, f"{source}: {name} holds NaN or infinity; use a checkpoint from before that")
    model.load_state_dict(state)
    return model


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    command = "".join(argv[:1])
    if command in ("export", "import"):
        from lab import hf  # only here: the network itself needs none of it
        return hf.main(argv)
    check(command[:1] in ("", "-"), f"{command} is no command of model.py: export, import, or flags alone (--help).")
    parser = flags.Parser(prog="model.py", description=__doc__,
                          usage="model.py [flags] | export CHECKPOINT OUT_DIR | import SOURCE OUT_DIR")
    add = parser.add_argument
    units = dict(vocab_size="tokens", block_size="tokens", n_layer="blocks", n_head="heads", n_embd="channels")
    for name, unit in units.items():
        add(f"--{name}", type=int, default=getattr(GPTConfig, name), help=f"{unit} (default %(default)s)")
    architecture.add_arguments(parser)
    choices = CHOICES | memory_settings.CHOICES
    for name, what in dict(attn_gate="attention gate", memory="fast weights").items():
        default = getattr(GPTConfig, name)
        add(f"--{name}", choices=choices[name], default=default, help=f"{what} (default %(default)s)")
    add("--seq_len", type=int, help="tokens, for the FLOPs (default: block_size)")
    shape = vars(parser.parse_args(argv))
    seq_len = shape.pop("seq_len") or shape["block_size"]
    with torch.device("meta"):
        model = GPT(GPTConfig(**shape))
    for name, count in model.num_params().items():
        print(f"{name + ' parameters':<28} {count:>15,}")
    flops = model.flops_per_token(seq_len)
    print(f"{'training FLOPs per token':<28} {flops:>15,}   at {seq_len} tokens per sequence")
    print(f"{'bytes written per sequence':<28} {memory.state_bytes(model.transformer['h']):>15,}")


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "model.py")
