"""policy.py owns GRPO's formulas: advantages, the clipped objective, its four normalizations, the KL term.

A *group* is the completions of one problem. S completions have T tokens, the ends of text among them. With
ratio = p / p_old of a token and A the advantage of its completion, a token's loss is

    -min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A) + kl_coef k3,    k3 = q - log q - 1,  q = p_reference / p

and the loss their weighted sum. k3 >= 0 estimates KL(p, p_reference) without bias (joschu.net/blog/kl-approx.html).

    dr_grpo   A = r - mean                    weight 1 / (S max_new_tokens): no length, no spread (arXiv:2503.20783)
    grpo      A = (r - mean) / (sd + 1e-4)    1 / (S length of the completion)                    (arXiv:2402.03300)
    dapo      A as grpo                       1 / all tokens of the step                          (arXiv:2503.14476)
    rloo      A = r - mean of the others      1 / S; ratio of whole completions, and the KL summed over their tokens
                                                                                                  (arXiv:2402.14740)

sd is the sample's (n - 1). Equal rewards in a group give advantages of exactly 0. TRL's losses are the same on the same
tensors (tests/test_grpo.py), but that its RLOO puts the KL into the reward.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

# ----------------------------------------------------------------------------------------------------------------------
# advantages: rewards (P, G) fp64, a row per group -> (P, G)


def centred(rewards: torch.Tensor) -> torch.Tensor:
    return rewards - rewards.mean(1, keepdim=True)


def standardised(rewards: torch.Tensor) -> torch.Tensor:
    return centred(rewards) / (rewards.std(1, keepdim=True) + 1e-4)


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    n = rewards.size(1)
    return centred(rewards) * n / (n - 1)


# ----------------------------------------------------------------------------------------------------------------------
# weights of a completion's tokens


class Sizes(NamedTuple):
    """What a step's weights depend on, summed over all ranks."""

    completions: int
    tokens: int  # of all completions that count
    max_new_tokens: int


def constant_length(lengths: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    return torch.full_like(lengths, 1 / (sizes.completions * sizes.max_new_tokens))


def own_length(lengths: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    return 1 / (sizes.completions * lengths)


def all_tokens(lengths: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    return torch.full_like(lengths, 1 / max(1, sizes.tokens))


def whole_completion(lengths: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    return torch.full_like(lengths, 1 / sizes.completions)


class Normalization(NamedTuple):
    advantages: Callable  # rewards (P, G) -> (P, G)
    weights: Callable  # lengths (S,) fp64, Sizes -> weight of each token of a completion (S,)
    per_completion: bool = False  # one ratio, of the whole completion


NORMALIZATIONS = {
    "dr_grpo": Normalization(centred, constant_length),
    "grpo": Normalization(standardised, own_length),
    "dapo": Normalization(standardised, all_tokens),
    "rloo": Normalization(leave_one_out, whole_completion, per_completion=True),
}


def is_flat(rewards: torch.Tensor) -> torch.Tensor:
    """Which groups of rewards (P, G) have no variance, (P,) bool: they teach nothing."""
    return (rewards == rewards[:, :1]).all(1)


def advantages_of(rewards: torch.Tensor, normalization: str) -> torch.Tensor:
    """Advantages (P, G) fp64 of rewards (P, G) fp64."""
    advantages = NORMALIZATIONS[normalization].advantages(rewards)
    return advantages.masked_fill(is_flat(rewards)[:, None], 0.0)


# ----------------------------------------------------------------------------------------------------------------------
# the objective


def clipped(log_ratio: torch.Tensor, advantages: torch.Tensor, clip: float) -> torch.Tensor:
    """-min(ratio A, clamp(ratio) A); see above."""
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantages, bounded * advantages)


def is_clipped(log_ratio: torch.Tensor, advantages: torch.Tensor, clip: float) -> torch.Tensor:
    """Where the clip holds the gradient back, bool."""
    ratio = log_ratio.exp()
    too_low, too_high = ratio < 1 - clip, ratio > 1 + clip
    return (too_low & (advantages < 0)) | (too_high & (advantages > 0))


def k3(log_p: torch.Tensor, log_p_reference: torch.Tensor) -> torch.Tensor:
    log_q = log_p_reference - log_p
    return log_q.exp() - log_q - 1


def objective(log_p, old, reference, owner, advantages, weights, *, clip: float, kl_coef: float,
              per_completion: bool = False) -> tuple[torch.Tensor, dict]:
    """(loss, {"kl" and "clipped" summed over tokens, without gradient}) of a batch of tokens.

    log_p (T,): differentiable; old, reference (T,): log p at sampling and of the reference (None: no KL term). owner
    (T,) int64: the completion of each token; advantages, weights (S,): of the completions, a weight of 0 leaves one
    out. per_completion: clipped by the ratio of whole completions, which must be in one batch."""
    of_token, weight = advantages[owner], weights[owner]
    log_ratio = log_p - old
    if per_completion:
        log_ratios = log_p.new_zeros(len(advantages)).index_add(0, owner, log_ratio)
        loss = (clipped(log_ratios, advantages, clip) * weights).sum()
        log_ratio = log_ratios.detach()[owner]
    else:
        loss = (clipped(log_ratio, of_token, clip) * weight).sum()
    counts = weight > 0
    held = is_clipped(log_ratio.detach(), of_token, clip) & counts
    figures = {"clipped": held.sum().item(), "kl": math.nan}
    if reference is not None:
        kl = k3(log_p, reference)
        figures["kl"] = kl.detach()[counts].cpu().double().sum().item()  # MPS has no float64
        if kl_coef:
            loss = loss + kl_coef * (kl * weight).sum()
    return loss, figures
