"""Optimizers and schedules: Muon, the parameter groups of a GPT, learning rates as a pure function of the step.

    optimizers = build_optimizers(model, optimizer="muon", learning_rate=3.6e-3, rank=rank, world_size=world_size)
    set_learning_rates(optimizers, lr_multiplier(step, schedule="trapezoid", max_steps=5100, warmup=0, warmdown=1450))

Muon (https://kellerjordan.github.io/posts/muon/) is SGD with Nesterov momentum whose update is replaced by the
nearest (semi-)orthogonal matrix, found by a quintic Newton-Schulz iteration. What scales that, by adjust_lr_fn:

    original         sqrt(max(1, rows / cols))     torch.optim.Muon, Keller Jordan's repository
    match_rms_adamw  0.2 sqrt(max(rows, cols))     torch.optim.Muon, https://arxiv.org/abs/2502.16982: AdamW's rate
    sqrt_max         sqrt(max(rows, cols))         the October-2024 speedrun that seeds 003 builds on: 0.1 x AdamW's

An orthogonal (rows, cols) matrix has entries of root mean square 1 / sqrt(max(rows, cols)), so the last two make that
0.2 and 1 in every matrix. `original` does not: it wants a learning rate about sqrt(n_embd) times that of `sqrt_max`.
"""

import math
import re

import torch
import torch.distributed as dist

SCALES = {
    "original": lambda rows, cols: math.sqrt(max(1, rows / cols)),
    "match_rms_adamw": lambda rows, cols: 0.2 * math.sqrt(max(rows, cols)),
    "sqrt_max": lambda rows, cols: math.sqrt(max(rows, cols)),
}


def newton_schulz(x, steps=5, coefficients=(3.4445, -4.7750, 2.0315), eps=1e-7):
    """Orthogonalises every matrix of x (batch, rows ≤ cols) in x's dtype; returns another tensor and overwrites x.

    The singular values end in about [0.7, 1.2], not at 1: the coefficients maximise the slope at 0 (Jordan 2024)."""
    a, b, c = coefficients
    x.div_(x.norm(dim=(1, 2), keepdim=True).clamp_(min=eps))  # spectral norm ≤ Frobenius norm = 1
    spare, gram = torch.empty_like(x), x.new_empty(x.size(0), x.size(1), x.size(1))
    poly = torch.empty_like(gram)  # fresh memory in every iteration doubles a product's time (measured)
    for _ in range(steps):  # x <- a x + (b A + c A²) x with A = x xᵀ
        torch.bmm(x, x.mT, out=gram)
        torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=poly)
        torch.baddbmm(x, poly, x, beta=a, out=spare)
        x, spare = spare, x
    return x


def newton_schulz_dtype(device: torch.device) -> torch.dtype:
    """bf16 on a GPU that has it in hardware; fp32 elsewhere (emulated bf16 is 4 times slower on a CPU, measured)."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon's arithmetic with same-shaped matrices in one batch and the batches spread over ranks.

    Takes 2-D parameters. A group with `qkv=True` holds (3 d, d) parameters that are three matrices each. Gradients must
    be the same on every rank (fully reduced); every rank keeps all momentum, so rank 0's state_dict is the whole state
    for any world size, and applies the same bits. ns_dtype=None picks newton_schulz_dtype of the parameter's device."""

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True,
                 ns_coefficients=(3.4445, -4.7750, 2.0315), eps=1e-7, ns_steps=5, adjust_lr_fn="original",
                 ns_dtype=None, rank=0, world_size=1):
        if adjust_lr_fn not in SCALES:
            raise ValueError(f"adjust_lr_fn {adjust_lr_fn!r} is unknown: choose one of {', '.join(SCALES)}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in a world of {world_size}: pass 0 <= rank < world_size.")
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov,
                                      ns_coefficients=ns_coefficients, eps=eps, ns_steps=ns_steps,
                                      adjust_lr_fn=adjust_lr_fn, qkv=False))
        self.ns_dtype, self.rank, self.world_size = ns_dtype, rank, world_size  # not in the groups: not in state_dict
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2 or (group["qkv"] and p.size(0) != 3 * p.size(1)):
                    need = "(3 d, d) for qkv" if group["qkv"] else "2-D"
                    raise ValueError(f"Muon got shape {tuple(p.shape)} but needs {need}: give the parameter to AdamW.")

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        batches = {}  # what can be orthogonalised together -> its matrices (weight, gradient, momentum, group)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum_buffer"] for p in params]
            if params:
                torch._foreach_lerp_(momenta, [p.grad for p in params], 1 - group["momentum"])
            for p, momentum in zip(params, momenta, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                settings = group["ns_steps"], tuple(group["ns_coefficients"]), group["eps"]
                parts = 3 if group["qkv"] else 1
                for matrix in zip(p.chunk(parts), p.grad.chunk(parts), momentum.chunk(parts), strict=True):
                    key = tuple(sorted(matrix[0].shape)), p.device, *settings  # tall ones go in transposed
                    batches.setdefault(key, []).append((*matrix, group))

        load, pending = [0] * self.world_size, []
        for key, matrices in sorted(batches.items(), key=lambda item: -math.prod(item[0][0]) * item[0][0][0]):
            (rows, cols), device, steps, coefficients, eps = key
            counts = [0] * self.world_size  # matrices per rank: the least loaded takes the next, the largest go first
            for _ in matrices:
                owner = load.index(min(load))
                counts[owner] += 1
                load[owner] += rows * rows * cols
            dtype = self.ns_dtype or newton_schulz_dtype(device)
            updates = torch.empty(len(matrices), rows, cols, device=device, dtype=dtype)
            first = sum(counts[: self.rank])
            mine = slice(first, first + counts[self.rank])
            for update, (_, grad, momentum, group) in zip(updates[mine], matrices[mine], strict=True):
                direction = grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                update.copy_(direction.mT if grad.size(0) > grad.size(1) else direction)
            if counts[self.rank]:
                updates[mine] = newton_schulz(updates[mine], steps, coefficients, eps)
            works, start = [], 0
            for owner, count in enumerate(counts if self.world_size > 1 else []):
                if count:
                    works.append(dist.broadcast(updates[start : start + count], src=owner, async_op=True))
                start += count
            pending.append((works, updates, matrices))  # applied at the end: sending hides behind the next batch

        for works, updates, matrices in pending:
            for work in works:
                work.wait()
            for update, (weight, _, _, group) in zip(updates, matrices, strict=True):
                scale = SCALES[group["adjust_lr_fn"]](*weight.shape)
                weight.add_(update.mT if weight.size(0) > weight.size(1) else update, alpha=-group["lr"] * scale)
        return loss


# ----------------------------------------------------------------------------------------------------------------------
# parameter groups


def build_optimizers(model, *, optimizer="adamw", learning_rate, muon_lr=None, weight_decay=0.1, beta1=0.9,
                     beta2=0.95, eps=1e-8, muon_momentum=0.95, muon_weight_decay=0.0, muon_scale="sqrt_max",
                     rank=0, world_size=1):
    """list[torch.optim.Optimizer] that holds every trainable parameter of model once, Muon first.

    adamw: all of them; weight_decay on ≥ 2-D, none on the rest. muon: Muon on every 2-D parameter of the blocks
    (`h.<i>.`), gates and the const gate's table included as in 003; AdamW on embeddings, norms and biases. muon_all:
    Muon on every 2-D parameter, embeddings, positions and the tied head too. `c_attn.weight` is three matrices.
    muon_lr=None is 0.1 learning_rate, meant for muon_scale="sqrt_max". Every group has `name` and `initial_lr`."""
    if optimizer not in ("adamw", "muon", "muon_all"):
        raise ValueError(f"optimizer {optimizer!r} is unknown: choose adamw, muon or muon_all.")
    groups = {"muon_matrices": [], "muon_qkv": [], "adamw_decay": [], "adamw_no_decay": []}
    for name, p in model.named_parameters():  # a tied weight comes once
        if not p.requires_grad:
            continue
        in_block = re.search(r"(^|\.)h\.\d+\.", name) is not None
        if p.ndim == 2 and (optimizer == "muon_all" or (optimizer == "muon" and in_block)):
            is_qkv = name.endswith("c_attn.weight") and p.size(0) == 3 * p.size(1)
            groups["muon_qkv" if is_qkv else "muon_matrices"].append(p)
        else:
            groups["adamw_decay" if p.ndim >= 2 else "adamw_no_decay"].append(p)
    if optimizer != "adamw" and not groups["muon_matrices"] + groups["muon_qkv"]:
        raise ValueError(f"optimizer {optimizer} found no matrix for Muon in this model: use adamw.")

    muon_lr = 0.1 * learning_rate if muon_lr is None else muon_lr
    optimizers = []
    muon = [{"name": name, "params": groups[name], "qkv": name == "muon_qkv", "initial_lr": muon_lr}
            for name in ("muon_matrices", "muon_qkv") if groups[name]]
    if muon:
        optimizers.append(Muon(muon, lr=muon_lr, weight_decay=muon_weight_decay, momentum=muon_momentum,
                               adjust_lr_fn=muon_scale, rank=rank, world_size=world_size))
    adamw = [{"name": name, "params": groups[name], "weight_decay": decay, "initial_lr": learning_rate}
             for name, decay in (("adamw_decay", weight_decay), ("adamw_no_decay", 0.0)) if groups[name]]
    if adamw:
        optimizers.append(torch.optim.AdamW(adamw, lr=learning_rate, betas=(beta1, beta2), eps=eps, fused=True))
    held = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    if sorted(held) != sorted({id(p) for p in model.parameters() if p.requires_grad}):
        raise ValueError("some parameter is in no group or in two: a module registers it under more than one name.")
    return optimizers


# ----------------------------------------------------------------------------------------------------------------------
# schedules


def lr_multiplier(step, *, schedule="cosine", max_steps, warmup=0, warmdown=0, decay_frac=0.0) -> float:
    """The factor on every initial_lr at optimizer step `step`, counted from 0; constant from max_steps on.

    warmup (both):  (step + 1) / warmup while step < warmup, so the first step already moves (build-nanogpt).
    cosine:         f + (1 - f) (1 + cos(π r)) / 2 with r = (step - warmup) / (max_steps - warmup) (nanoGPT), and
                    f = decay_frac; has no warmdown: pass 0.
    trapezoid:      1, then f + (1 - f) (max_steps - step) / warmdown from step max_steps - warmdown on
                    (https://arxiv.org/abs/2405.18392; the October-2024 speedrun's with f = 0).
    ValueError if warmup + warmdown > max_steps (steps), or decay_frac is not in [0, 1]."""
    if schedule not in ("cosine", "trapezoid"):
        raise ValueError(f"schedule {schedule!r} is unknown: choose cosine or trapezoid.")
    if warmup < 0 or warmdown < 0 or warmup + warmdown > max_steps:
        raise ValueError(f"warmup {warmup} + warmdown {warmdown} do not fit into {max_steps} steps: "
                         "lower --warmup_iters or --warmdown_iters, or raise --max_train_steps.")
    if not 0 <= decay_frac <= 1:
        raise ValueError(f"the learning rate cannot decay to {decay_frac} of itself: "
                         "give --learning_rate_decay_frac between 0 and 1.")
    if step < warmup:
        return (step + 1) / warmup
    step = min(step, max_steps)
    if schedule == "cosine":
        ratio = (step - warmup) / max(max_steps - warmup, 1)
        return 1 - (1 - decay_frac) * (1 - math.cos(math.pi * ratio)) / 2
    if step < max_steps - warmdown or warmdown == 0:
        return 1.0
    return 1 - (1 - decay_frac) * (1 - (max_steps - step) / warmdown)


def set_learning_rates(optimizers, multiplier: float) -> None:
    """lr = initial_lr x multiplier in every group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
