"""architecture.py owns what a network is made of: architectures by name, and parts that replace one of theirs.

    python train_gpt.py --arch gpt2 --positions rope        # GPT-2 but for its positions
    python train_gpt.py --arch speedrun --mlp gelu          # the speedrun's network but for its MLP
    >>> arch = build(GPTConfig(arch="gpt2", mlp="swiglu"))  # as modules use it

A part of a configuration is "arch" where it is the architecture's own, so that each has one name there."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from lab.activations import gelu
from lab.schema import check

OWN = "arch"  # a part as the architecture has it


class Mlp(NamedTuple):
    activation: Callable  # of what c_fc gives
    # (gradient at its output, its input) -> that at its input; memories are written with it
    activation_grad: Callable | None = None
    gated: bool = False  # what a third matrix, c_up, gives multiplies the activation


def init_gpt2(weight, name, config, generator):
    """Normal 0.02; what writes into the residual stream: 0.02 / sqrt(2 n_layer).

    GPT-2 paper, section 2.3."""
    std = 0.02 / math.sqrt(2 * config.n_layer) if "c_proj" in name else 0.02
    weight.normal_(0.0, std, generator=generator)


def init_speedrun(weight, name, config, generator):
    """Uniform +-1/sqrt(n_embd), as in torch's Linear; what writes into the residual stream: zero."""
    bound = 1 / math.sqrt(config.n_embd)
    if "c_proj" not in name:
        weight.uniform_(-bound, bound, generator=generator)


# The tables of parts, which GPTConfig and the flags of the scripts take their choices from.
# an embedding (wpe); rotary (arXiv:2104.09864); only what the causal mask tells (arXiv:2305.19466)
POSITIONS = ("learned", "rope", "none")
NORMS = {  # (width, whether the network has biases) -> module
    "layernorm": lambda width, bias: nn.LayerNorm(width, bias=bias),
    "rmsnorm": lambda width, bias: nn.RMSNorm(width),  # arXiv:1910.07467
    "rmsnorm_no_gain": lambda width, bias: nn.RMSNorm(width, elementwise_affine=False),
}
MLPS = {
    "gelu": Mlp(gelu, functools.partial(torch.ops.aten.gelu_backward, approximate="tanh")),
    "gelu_exact": Mlp(F.gelu, torch.ops.aten.gelu_backward),
    "relu2": Mlp(lambda x: F.relu(x).square(), lambda g, x: 2 * g * F.relu(x)),  # arXiv:2109.08668
    "swiglu": Mlp(F.silu, gated=True),  # arXiv:2002.05202
}
# (weight, its name, GPTConfig, generator): draws a matrix
INITS = {"gpt2": init_gpt2, "speedrun": init_speedrun}
SWITCH = ("on", "off")
FLAGS = {  # what --help says of each, and its choices
    "--positions": ("how tokens know their places; none = by causal attention alone", POSITIONS),
    "--norm": ("normalisation; rmsnorm has a gain, unlike the speedrun's", NORMS),
    "--qk_norm": ("RMSNorm of queries and keys", SWITCH),
    "--mlp": ("gelu = tanh's; swiglu has 8/3 n_embd channels by default, for as many parameters",
              MLPS),
    "--bias": ("biases of linear layers and of LayerNorm", SWITCH),
    "--weight_init": ("normal 0.02, or uniform with output projections of zero", INITS),
}
PARTS = {flag.removeprefix("--"): choices for flag, (_, choices) in FLAGS.items()}


class Parts(NamedTuple):
    """A name for each of PARTS."""

    positions: str
    norm: str
    qk_norm: str
    mlp: str
    bias: str
    weight_init: str


GPT2 = Parts(positions="learned", norm="layernorm", qk_norm="off", mlp="gelu", bias="on",
             weight_init="gpt2")
ARCHS = {
    "gpt2": GPT2,
    "speedrun": Parts(positions="rope", norm="rmsnorm_no_gain", qk_norm="on", mlp="relu2",
                      bias="off", weight_init="speedrun"),
    "nanogpt": GPT2._replace(mlp="gelu_exact"),  # exact, as in nanoGPT since May 2023
}


class Arch(NamedTuple):
    """The parts of one network, as its modules use them."""

    norm: Callable  # width -> module
    bias: bool  # in the linear layers
    mlp: Mlp
    positions: str
    qk_norm: bool
    init: Callable  # (weight, its name, GPTConfig, generator): draws a matrix that is no gate's


def parts_of(config) -> Parts:
    """The parts of a configuration (a GPTConfig, or flags), by name."""
    given = {name: getattr(config, name) for name in PARTS}
    return ARCHS[config.arch]._replace(**{name: part for name, part in given.items() if part != OWN})


def build(config) -> Arch:
    parts = parts_of(config)
    bias = parts.bias == "on"
    return Arch(
        norm=lambda width: NORMS[parts.norm](width, bias), bias=bias, mlp=MLPS[parts.mlp],
        positions=parts.positions, qk_norm=parts.qk_norm == "on", init=INITS[parts.weight_init])


def normalise(config):
    """A part that is the architecture's own gets the name OWN, in place; returns the configuration.
    ValueError for what no network can have."""
    check(config.arch in list(ARCHS), f"unknown arch {config.arch!r}; use one of {', '.join(ARCHS)}")
    for name, choices in PARTS.items():
        value = getattr(config, name)
        check(value in (OWN, *choices), f"unknown {name} {value!r}; use one of {', '.join((OWN, *choices))}")
        if value == getattr(ARCHS[config.arch], name):
            setattr(config, name, OWN)
    return config


def name_of(args) -> str:
    """The parts of a run's network that are not its architecture's, for its name: _rope_qk_norm_on."""
    words = ""
    for name in PARTS:
        part = getattr(args, name)
        if part in (*SWITCH, *ARCHS, "none"):  # which say nothing by themselves
            words += f"_{name}_{part}"
        elif part != OWN:
            words += f"_{part}"
    return words


def default_inner(config) -> int:
    """Channels of an MLP: 4 n_embd. A gated one has three matrices where others have two, and so
    8/3 n_embd, the next multiple of 8, for as many parameters."""
    if MLPS[parts_of(config).mlp].gated:
        return 8 * math.ceil(config.n_embd / 3)
    return 4 * config.n_embd


def derived_flags(args) -> list[str]:
    """Of a run's flags, those that follow from others: who repeats it with another n_embd wants
    the new one's."""
    return ["n_inner"] if args.n_inner == default_inner(args) else []


def add_arguments(group) -> None:
    """Adds --arch and a flag for each of PARTS to a parser's group."""
    group.add_argument("--arch", choices=ARCHS, default="gpt2",
                       help="GPT-2, or the October-2024 speedrun's (default %(default)s)")
    for flag, (text, choices) in FLAGS.items():
        group.add_argument(flag, choices=(OWN, *choices), default=OWN,
                           help=f"{text} (default: as --arch has it)")
