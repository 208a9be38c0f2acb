"""optim.py owns how weights move: AdamW, Muon, learning-rate schedules, and the flags of all three.

    optim.add_arguments(group, learning_rate=6e-4)                              # one line of help per flag
    optimizers = optim.build_optimizers(model, **optim.settings(args), rank=rank, world_size=world_size)
    optim.set_learning_rates(optimizers, optim.lr_multiplier(step, **optim.schedule_settings(args)))

A new optimizer is one entry of OPTIMIZERS: the function that builds it, and its flags. A schedule: one of SCHEDULES.

Muon (https://kellerjordan.github.io/posts/muon/) is SGD with Nesterov momentum whose update is replaced by the nearest
(semi-)orthogonal matrix, computed by a quintic Newton-Schulz iteration. SCALES then sets the update's size:

    original         sqrt(max(1, rows / cols))     torch.optim.Muon, Keller Jordan's repository
    match_rms_adamw  0.2 sqrt(max(rows, cols))     torch.optim.Muon, https://arxiv.org/abs/2502.16982: AdamW's rate
    sqrt_max         sqrt(max(rows, cols))         the October-2024 speedrun under document 003: 0.1 x AdamW's rate

An orthogonal (rows, cols) matrix has entries of root mean square 1 / sqrt(max(rows, cols)), so the last two make that
0.2 and 1 in every matrix. `original` does not: it wants a learning rate about sqrt(n_embd) times that of `sqrt_max`.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from lab import precision


def check_known(what: str, name: str, table: dict) -> None:
    if name not in table:
        raise ValueError(f"{what} {name!r} is unknown: choose one of {', '.join(table)}.")


# ----------------------------------------------------------------------------------------------------------------------
# Muon

SCALES = {
    "original": lambda rows, cols: math.sqrt(max(1, rows / cols)),
    "match_rms_adamw": lambda rows, cols: 0.2 * math.sqrt(max(rows, cols)),
    "sqrt_max": lambda rows, cols: math.sqrt(max(rows, cols)),
}


def newton_schulz(x, steps=5, coefficients=(3.4445, -4.7750, 2.0315), eps=1e-7):
    """Orthogonalises every matrix of x (batch, rows ≤ cols) in x's dtype. Overwrites x; returns it, or another.

    The singular values end in about [0.7, 1.2], not at 1: the coefficients maximise the slope at 0 (Jordan 2024)."""
    a, b, c = coefficients
    x.div_(x.norm(dim=(1, 2), keepdim=True).clamp_(min=eps))  # spectral norm ≤ Frobenius norm = 1
    spare = torch.empty_like(x)
    gram = x.new_empty(x.size(0), x.size(1), x.size(1))
    poly = torch.empty_like(gram)  # fresh memory each time doubles a product's time (measured)
    for _ in range(steps):  # x <- a x + (b A + c A²) x with A = x xᵀ
        torch.bmm(x, x.mT, out=gram)
        torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=poly)
        torch.baddbmm(x, poly, x, beta=a, out=spare)
        x, spare = spare, x
    return x


def newton_schulz_dtype(device: torch.device) -> torch.dtype:
    """bf16 on a GPU that has it in hardware, fp32 elsewhere: emulated on a CPU it is 4 times slower (measured), and a
    CPU's own is untried."""
    if device.type == "cuda" and precision.multiplies_bfloat16(device):
        return torch.bfloat16
    return torch.float32


def is_tall(matrix) -> bool:
    """Such a matrix is orthogonalised transposed: Newton-Schulz then forms the smaller of its two Gram matrices."""
    return matrix.size(0) > matrix.size(1)


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon's arithmetic with same-shaped matrices in one batch and the batches spread over ranks.

    Takes 2-D parameters. A group with `qkv=True` holds (3 d, d) parameters that are three matrices each. Gradients must
    be the same on every rank (fully reduced); every rank keeps all momentum, so rank 0's state_dict is the whole state
    for any world size, and applies the same bits. ns_dtype=None picks newton_schulz_dtype of the parameter's device."""

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True,
                 adjust_lr_fn="original", ns_dtype=None, rank=0, world_size=1):
        check_known("adjust_lr_fn", adjust_lr_fn, SCALES)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in a world of {world_size}: pass 0 <= rank < world_size.")
        defaults = dict(lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov,
                        adjust_lr_fn=adjust_lr_fn, qkv=False)
        super().__init__(params, defaults)
        # not in the groups, so that no state_dict holds them
        self.ns_dtype, self.rank, self.world_size = ns_dtype, rank, world_size
        for group in self.param_groups:
            for p in group["params"]:
                shape = tuple(p.shape)
                if p.ndim != 2 or (group["qkv"] and shape[0] != 3 * shape[1]):
                    raise ValueError(f"Muon got shape {shape}, but needs 2-D, and (3 d, d) for qkv: "
                                     "give the parameter to AdamW.")

    @torch.no_grad()
    def step(self):
        """One update of every parameter that has a gradient. Each rank orthogonalises its share and sends it around."""
        batches = self._update_momentum()
        load = [0] * self.world_size
        pending = []
        largest_first = sorted(batches.items(), key=lambda item: -item[0][0] ** 2 * item[0][1])
        for (rows, cols, device), matrices in largest_first:
            counts = share_out(len(matrices), rows * rows * cols, load)  # per rank
            dtype = self.ns_dtype or newton_schulz_dtype(device)
            updates = torch.empty(len(matrices), rows, cols, device=device, dtype=dtype)
            first = sum(counts[: self.rank])
            mine = slice(first, first + counts[self.rank])
            for update, (_, grad, momentum, group) in zip(updates[mine], matrices[mine], strict=True):
                direction = grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                direction = direction.mT if is_tall(direction) else direction
                update.copy_(direction)
            if counts[self.rank]:
                updates[mine] = newton_schulz(updates[mine])
            transfers, start = [], 0
            for owner, count in enumerate(counts):  # every rank sends its share
                if count and self.world_size > 1:
                    share = updates[start : start + count]
                    transfers.append(dist.broadcast(share, src=owner, async_op=True))
                start += count
            pending.append((transfers, updates, matrices))

        # applied last, so that sending a batch hides behind the products of the next
        for transfers, updates, matrices in pending:
            for transfer in transfers:
                transfer.wait()
            for update, (weight, _, _, group) in zip(updates, matrices, strict=True):
                scale = SCALES[group["adjust_lr_fn"]](*weight.shape)
                update = update.mT if is_tall(weight) else update
                weight.add_(update, alpha=-group["lr"] * scale)

    def _update_momentum(self) -> dict:
        """Updates every momentum, decays every weight. Returns what can be orthogonalised together:
        {(rows ≤ cols, device): [(weight, gradient, momentum, group), ...]}, a fused qkv as its three matrices."""
        batches = {}
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_lerp_(momenta, [p.grad for p in params], 1 - group["momentum"])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            parts = 3 if group["qkv"] else 1
            for p, momentum in zip(params, momenta, strict=True):
                pieces = (p.chunk(parts), p.grad.chunk(parts), momentum.chunk(parts))
                for matrix in zip(*pieces, strict=True):
                    key = (*sorted(matrix[0].shape), p.device)
                    batches.setdefault(key, []).append((*matrix, group))
        return batches


def share_out(n: int, cost: int, load: list[int]) -> list[int]:
    """How many of n matrices each rank takes: the next always goes to the least loaded. Adds their cost to `load`."""
    counts = [0] * len(load)
    for _ in range(n):
        owner = load.index(min(load))
        counts[owner] += 1
        load[owner] += cost
    return counts


# ----------------------------------------------------------------------------------------------------------------------
# which optimizer moves which parameter


def adamw(params: dict, rank, world_size, *, learning_rate, weight_decay=0.1, beta1=0.9,
          beta2=0.95, eps=1e-8) -> list:
    """AdamW on all params {name: parameter}; weight_decay on 2-D and larger, none on the rest."""
    decay = [p for p in params.values() if p.ndim >= 2]
    no_decay = [p for p in params.values() if p.ndim < 2]
    groups = [dict(name="adamw_decay", params=decay, weight_decay=weight_decay),
              dict(name="adamw_no_decay", params=no_decay, weight_decay=0.0)]
    groups = [group | {"initial_lr": learning_rate} for group in groups if group["params"]]
    if not groups:
        return []
    return [torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), eps=eps, fused=True)]


def is_matrix(name: str, p) -> bool:
    """2-D, embeddings, positions and the tied head included."""
    return p.ndim == 2


def is_block_matrix(name: str, p) -> bool:
    """2-D and in a block (`h.<i>.`), gates and the const gate's table among them, as in 003."""
    return p.ndim == 2 and re.search(r"(^|\.)h\.\d+\.", name) is not None


def muon_and_adamw(params: dict, rank, world_size, *, takes, learning_rate, muon_lr=None,
                   muon_scale="sqrt_max", muon_momentum=0.95, muon_weight_decay=0.0, **adamw_settings) -> list:
    """Muon on the parameters that takes(name, parameter) picks, AdamW on the rest. muon_lr=None: MUON_SHARE of
    learning_rate."""
    if muon_lr is None:
        muon_lr = MUON_SHARE * learning_rate
    matrices, qkv, rest = [], [], {}
    for name, p in params.items():
        if not takes(name, p):
            rest[name] = p
        elif name.endswith("c_attn.weight") and p.size(0) == 3 * p.size(1):
            qkv.append(p)
        else:
            matrices.append(p)
    groups = [dict(name="muon_matrices", params=matrices, qkv=False),
              dict(name="muon_qkv", params=qkv, qkv=True)]
    groups = [group | {"initial_lr": muon_lr} for group in groups if group["params"]]
    if not groups:
        raise ValueError("Muon has no matrix to move in this model: use --optimizer adamw.")
    muon = Muon(groups, lr=muon_lr, weight_decay=muon_weight_decay, momentum=muon_momentum,
                adjust_lr_fn=muon_scale, rank=rank, world_size=world_size)
    return [muon, *adamw(rest, rank, world_size, learning_rate=learning_rate, **adamw_settings)]


@dataclass(frozen=True)
class Choice:
    """An entry of OPTIMIZERS or SCHEDULES: its function, and the flags that not all entries use, as
    {flag: keywords of add_argument}."""

    function: Callable
    flags: dict[str, dict]


ADAMW_FLAGS = {
    "--learning_rate": dict(type=float, help="peak for AdamW's parameters (default %(default)s)"),
    "--weight_decay": dict(type=float, default=0.1, help="AdamW's, if 2-D or larger (default %(default)s)"),
    "--beta1": dict(type=float, default=0.9, help="AdamW (default %(default)s)"),
    "--beta2": dict(type=float, default=0.95, help="AdamW (default %(default)s)"),
}
MUON_SHARE = 0.1  # of AdamW's learning rate; meant for --muon_scale sqrt_max
MUON_FLAGS = ADAMW_FLAGS | {
    "--muon_lr": dict(type=float, default=0.0, help=f"Muon's peak (0 = {MUON_SHARE} x --learning_rate)"),
    "--muon_scale": dict(choices=SCALES, default="sqrt_max",
                       help="update scale by the matrix's shape (default %(default)s, as document 003)"),
}
# function(params {name: parameter}, rank, world_size, **values of its flags) -> torch.optim.Optimizers, in
# whose groups every parameter is once; the lr of a group is its peak, which the schedule multiplies
OPTIMIZERS = {
    "adamw": Choice(adamw, ADAMW_FLAGS),
    "muon": Choice(functools.partial(muon_and_adamw, takes=is_block_matrix), MUON_FLAGS),
    "muon_all": Choice(functools.partial(muon_and_adamw, takes=is_matrix), MUON_FLAGS),
}


def build_optimizers(model, *, optimizer="adamw", rank=0, world_size=1, **settings) -> list:
    """list[torch.optim.Optimizer] that holds every trainable parameter of model once.

    settings: the values of the entry's flags. Every group has `initial_lr`, its peak."""
    check_known("optimizer", optimizer, OPTIMIZERS)
    # a tied weight comes once
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizers = OPTIMIZERS[optimizer].function(params, rank, world_size, **settings)
    moved = []
    for one in optimizers:
        for group in one.param_groups:
            group.setdefault("initial_lr", group["lr"])
            moved += [id(p) for p in group["params"]]
    if sorted(moved) != sorted({id(p) for p in model.parameters() if p.requires_grad}):
        raise ValueError("some parameter is in no group or in two: register each under one name.")
    return optimizers


# ----------------------------------------------------------------------------------------------------------------------
# schedules: multipliers of every initial_lr after warmup, for warmup ≤ step ≤ max_steps:
# function(step, max_steps, warmup, warmdown, decay_frac, **values of its own flags)


def cosine(step, max_steps, warmup, warmdown, decay_frac) -> float:
    """f + (1 - f) (1 + cos(π r)) / 2 with r = (step - warmup) / (max_steps - warmup), f = decay_frac (nanoGPT)."""
    ratio = (step - warmup) / max(max_steps - warmup, 1)
    return 1 - (1 - decay_frac) * (1 - math.cos(math.pi * ratio)) / 2


def trapezoid(step, max_steps, warmup, warmdown, decay_frac) -> float:
    """1, then f + (1 - f) (max_steps - step) / warmdown over the last `warmdown` steps, f = decay_frac
    (https://arxiv.org/abs/2405.18392; the October-2024 speedrun's with f = 0)."""
    if warmdown == 0 or step < max_steps - warmdown:
        return 1.0
    return 1 - (1 - decay_frac) * (1 - (max_steps - step) / warmdown)


SCHEDULES = {
    "cosine": Choice(cosine, {}),
    "trapezoid": Choice(trapezoid, {
        "--warmdown_iters": dict(type=int, default=0, help="steps of linear warmdown (0 = off)"),
    }),
}


def check_schedule(schedule, max_steps, warmup, warmdown, decay_frac) -> None:
    """ValueError if warmup + warmdown > max_steps (steps), or decay_frac is not in [0, 1]."""
    check_known("schedule", schedule, SCHEDULES)
    if warmup < 0 or warmdown < 0 or warmup + warmdown > max_steps:
        # numbers that fit: at most a tenth of the steps, and half of them
        flags, fault = "", f"warmup {warmup} + warmdown {warmdown} do not fit into {max_steps} steps"
        if not 0 <= warmup <= max_steps // 10:
            flags += f" --warmup_iters {max_steps // 10}"
        if not 0 <= warmdown <= max_steps // 2:
            flags += f" --warmdown_iters {max_steps // 2}"
        raise ValueError(f"{fault}: pass{flags}, or --max_train_steps {warmup + warmdown}.")
    if not 0 <= decay_frac <= 1:
        raise ValueError(f"the learning rate cannot decay to {decay_frac} of itself: "
                         "give --learning_rate_decay_frac between 0 and 1.")


def lr_multiplier(step, *, schedule="cosine", max_steps, warmup=0, warmdown=0, decay_frac=0.0, **own) -> float:
    """The factor on every initial_lr at optimizer step `step`, counted from 0; constant from max_steps on.

    In warmup it is (step + 1) / warmup, so the first step already moves (build-nanogpt); then
    SCHEDULES[schedule], to which `own`, the values of its own flags, go too. ValueError: see check_schedule."""
    check_schedule(schedule, max_steps, warmup, warmdown, decay_frac)
    if step < warmup:
        return (step + 1) / warmup
    step = min(step, max_steps)
    return SCHEDULES[schedule].function(step, max_steps, warmup, warmdown, decay_frac, **own)


def set_learning_rates(optimizers, multiplier: float) -> None:
    """lr = initial_lr x multiplier in every group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier


# ----------------------------------------------------------------------------------------------------------------------
# flags


def all_flags(table: dict[str, Choice]) -> dict[str, dict]:
    """The flags of every entry of OPTIMIZERS or SCHEDULES, once each. ValueError where two entries define
    one flag differently: the other's default would change with it."""
    flags = {}
    for choice in table.values():
        for flag, keywords in choice.flags.items():
            if flags.setdefault(flag, keywords) != keywords:
                raise ValueError(f"{flag} is defined twice, {flags[flag]} and {keywords}: give the new entry "
                                 "a flag of its own, such as --lion_beta2.")
    return flags


def number_flags() -> str:
    """Names of the optimizers' flags that are numbers; none may be negative."""
    flags = all_flags(OPTIMIZERS).items()
    return " ".join(flag.removeprefix("--") for flag, keywords in flags if "type" in keywords)


def add_arguments(group, *, longest_warmup: int, **defaults) -> None:
    """Adds the flags of all optimizers and schedules to a parser's group. longest_warmup: see fill_in. defaults: the
    trainer's own, learning_rate among them."""
    add = group.add_argument
    add("--optimizer", choices=OPTIMIZERS, default="adamw",
        help="muon = Muon on the blocks' matrices, muon_all = on every matrix (default %(default)s)")
    for flag, keywords in all_flags(OPTIMIZERS).items():
        add(flag, **keywords)
    add("--schedule", choices=SCHEDULES, default="cosine", help="after warmup (default %(default)s)")
    add("--warmup_iters", type=int, default=-1,
        help=f"steps of linear warmup (0 = off; -1 = 4%% of the steps, at most {longest_warmup})")
    for flag, keywords in all_flags(SCHEDULES).items():
        add(flag, **keywords)
    add("--learning_rate_decay_frac", type=float, default=0.1,
        help="last learning rate / peak (default %(default)s)")
    add("--grad_clip", type=float, default=1.0,
        help="largest global L2 norm of the gradient (default %(default)s; 0 = off)")
    group.set_defaults(**defaults)


def fill_in(args, longest_warmup: int) -> None:
    """Values of flags that derive from others: config.json records what the run used."""
    args.muon_lr = args.muon_lr or MUON_SHARE * args.learning_rate
    if args.warmup_iters < 0:
        args.warmup_iters = min(longest_warmup, args.max_train_steps // 25)


def settings(args) -> dict:
    """What build_optimizers takes from the flags."""
    names = [flag.removeprefix("--") for flag in OPTIMIZERS[args.optimizer].flags]
    return {"optimizer": args.optimizer} | {name: getattr(args, name) for name in names}


def schedule_settings(args) -> dict:
    """What lr_multiplier takes from the flags, an entry's own among them. ValueError: see check_schedule."""
    settings = {"schedule": args.schedule, "max_steps": args.max_train_steps, "warmup": args.warmup_iters,
                "warmdown": args.warmdown_iters, "decay_frac": args.learning_rate_decay_frac}
    check_schedule(**settings)
    own = [flag.removeprefix("--") for flag in SCHEDULES[args.schedule].flags]
    settings |= {name: getattr(args, name) for name in own if name != "warmdown_iters"}
    lr_multiplier(args.max_train_steps, **settings)  # one that takes other arguments ends here, at the start
    return settings


def unused_flags(args) -> list[str]:
    """Flags of optimizers and schedules that this run's do not use: they change nothing."""
    unused = []
    for table, chosen in ((OPTIMIZERS, args.optimizer), (SCHEDULES, args.schedule)):
        for flag in all_flags(table):
            if flag not in table[chosen].flags:
                unused.append(flag.removeprefix("--"))
    return unused
