"""rollouts.py owns what GRPO samples: problems, the completions of a step, and the rows that an update reads.

A step takes problems_per_step entries of the plan, each problem in its turn, epoch after epoch (data_order.py), and
draws group_size completions of each. Completion j of the problem at place i of step s has a generator of its own,
seeded by (seed, s, i, the question, j): nothing depends on ranks, batches or what was sampled before. Problems are
read as sft.py reads conversations (conversations.py), and GSM8K's test split is refused as there.
"""

import hashlib
import itertools
import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from lab import conversations, data_order, decontaminate, inference, policy, processes, rewards, shards
from lab.answers import gold_answer, render_prompt
from lab.benchmarks import encode_prompt
from lab.loss import token_nll
from lab.tokenizer import bos_id, get_tokenizer

# ----------------------------------------------------------------------------------------------------------------------
# problems


def load(args, block_size: int, val_fraction: float | None = None) -> dict:
    """{"problems" that are rewarded, "held_out" (lists of {"name", "question", "gold", "prompt"}), "fingerprint",
    "record" (for config.json)} of --data. ValueError / FileNotFoundError in one sentence.

    A problem without a number as its answer, or without room for --max_new_tokens after it, is left out and counted.
    Whether one is held out depends on its question alone. val_fraction: in place of that flag's."""
    guard = decontaminate.from_argument(args.decontaminate)
    counts, about, dropped, problems = Counter(), [], [], []
    stream = conversations.read_conversations(
        args.stage, args.data, args, guard, counts, about, dropped)
    if args.max_examples:
        stream = iter(conversations.sample(stream, args.max_examples))
    bar = tqdm(desc="problems", unit=" problems", dynamic_ncols=True, disable=None)
    while chunk := list(itertools.islice(stream, conversations.CHUNK)):
        bar.update(len(chunk))
        for _, turns in conversations.usable(chunk, guard, counts, dropped):
            problem = make_problem(*turns[0], args.bos == "on")
            if problem["gold"] is None:
                counts["without_a_number"] += 1
            elif len(problem["prompt"]) + args.max_new_tokens > block_size:
                counts["too_long"] += 1
            else:
                problems.append(problem)
    bar.close()
    counts["contaminated"] = len(dropped)
    if not problems:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in counts.items() if n and kind != "read")
        raise ValueError(
            "--data holds no problem whose answer is a number, with room for --max_new_tokens "
            f"{args.max_new_tokens} in a block_size of {block_size}, among {counts['read']:,} "
            f"records ({kinds or 'no data'}): give others, or lower --max_new_tokens.")
    if val_fraction is None:
        val_fraction = args.val_fraction
    if args.exam_data:
        val_fraction = 0.0
    hashes = [bytes.fromhex(problem["name"]) for problem in problems]
    rewarded, held_out = [], []
    for problem, out in zip(problems, shards.is_held_out(hashes, val_fraction), strict=True):
        (held_out if out else rewarded).append(problem)
    if not rewarded or (val_fraction and args.eval_every and not held_out):
        raise ValueError(f"--val_fraction {val_fraction} holds out {len(held_out):,} of "
                         f"{len(problems):,} problems: change it, give more --data, or name "
                         "other problems with --exam_data.")
    content = "".join(f"{problem['name']}{problem['gold']}\n" for problem in rewarded)
    record = {"sources": {args.stage: about}, "counts": {args.stage: dict(counts)}}
    record["contaminated"] = dropped
    return {"problems": rewarded, "held_out": held_out, "record": record,
            "fingerprint": hashlib.sha256(content.encode()).hexdigest()}


def make_problem(question: str, answer: str, bos: bool) -> dict:
    """name: 32 hex digits of the question; gold: the answer as a Fraction, None when it is not one number."""
    name = shards.document_hash(question.encode()).hex()
    prompt = encode_prompt(render_prompt(question), bos)
    return {"name": name, "question": question, "gold": gold_answer(answer), "prompt": prompt}


def plan_order(fingerprint: str, n_problems: int, n: int, seed: int) -> np.ndarray:
    """The problem at each of the run's n places, int64 (n,): epochs laid end to end."""
    epochs = range(-(-n // n_problems))
    orders = [data_order.epoch_order(fingerprint, seed, epoch, n_problems) for epoch in epochs]
    return np.concatenate(orders).astype(np.int64)[:n]


# ----------------------------------------------------------------------------------------------------------------------
# sampling


class Rollout(NamedTuple):
    """One completion. ids: with <|endoftext|> where it has ended; log_probs: at sampling, one per id."""

    place: int  # of its problem in the step
    number: int  # in its group
    prompt: list[int]
    ids: list[int]
    log_probs: list[float]

    @property
    def has_ended(self) -> bool:
        return self.ids[-1:] == [bos_id()]

    @property
    def mul_tokens(self) -> int:
        return sum(token >= get_tokenizer().first_mul_id for token in self.ids)


def name_of(step: int, place: int, problem: dict, number: int) -> str:
    """What a completion's generator is seeded by, beside the run's seed."""
    return f"{step}/{place}/{problem['name']}/{number}"


def sample(model, step: int, problems: list[tuple[int, dict]], *, group_size: int, max_new_tokens: int,
           temperature: float, seed: int, batch_size: int) -> list[Rollout]:
    """group_size completions of each of (place in the step, problem), in their order. batch_size: completions at once;
    no effect on results but rounding."""
    wanted = [(place, problem, number) for place, problem in problems for number in range(group_size)]
    rollouts = []
    for start in range(0, len(wanted), batch_size):
        batch = wanted[start : start + batch_size]
        completions = inference.generate(
            model, [problem["prompt"] for _, problem, _ in batch], max_new_tokens,
            temperature=temperature, seed=seed, stop_ids=(bos_id(),),
            row_ids=[name_of(step, *one) for one in batch], log_probs=True)
        for (place, problem, number), completion in zip(batch, completions, strict=True):
            end = [bos_id()] if completion.stopped == "stop_id" else []
            ids = completion.ids + end
            rollouts.append(Rollout(place, number, problem["prompt"], ids, completion.log_probs))
    return rollouts


class Group(NamedTuple):
    """The completions of one problem."""

    rollouts: list[Rollout]
    rewards: list[float]
    right: list[bool]  # whether the exact reward is 1, whatever was rewarded


def draw_groups(model, step: int, numbered: list[tuple[int, dict]], args, procs, autocast) -> list[Group]:
    """The group of each (place in the step, problem), on every rank; each is drawn by one. args: grpo.py's flags."""

    def work(share):
        with autocast():
            drawn = sample(
                model, step, share, group_size=args.group_size, max_new_tokens=args.max_new_tokens,
                temperature=args.temperature, seed=args.seed, batch_size=args.rollout_batch_size)
        groups = []
        for i, (place, problem) in enumerate(share):
            own = drawn[i * args.group_size : (i + 1) * args.group_size]
            attempts = []
            for one in own:
                name = f"{args.seed}/{name_of(step, place, problem, one.number)}"
                attempts.append(rewards.read(one.ids, problem["gold"], name))
            values = [rewards.reward_of(args.reward, attempt) for attempt in attempts]
            groups.append(Group(own, values, [rewards.is_right(attempt) for attempt in attempts]))
        return groups

    model.eval()
    return processes.spread(procs, numbered, work)


def describe_step(groups: list[Group]) -> dict:
    """What a step's sampling says, for scalars.jsonl."""
    drawn = [one for group in groups for one in group.rollouts]
    values = torch.tensor([group.rewards for group in groups], dtype=torch.float64)
    lengths, n = [len(one.ids) for one in drawn], len(drawn)
    nats = -math.fsum(value for one in drawn for value in one.log_probs)
    return {
        "reward_mean": values.mean().item(),
        "reward_sd": values.std().item(),
        "exact_share": sum(sum(group.right) for group in groups) / n,
        "flat_groups": policy.is_flat(values).double().mean().item(),
        "entropy": nats / sum(lengths),
        "length_mean": sum(lengths) / n,
        "length_max": max(lengths),
        "truncated_share": sum(not one.has_ended for one in drawn) / n,
        "mul_tokens": sum(one.mul_tokens for one in drawn) / n,
    }


# ----------------------------------------------------------------------------------------------------------------------
# rows of an update


def micro_batches(rollouts: list[Rollout], rows: int) -> list[list[int]]:
    """Numbers of the rollouts in batches of `rows`, the longest first, so that little is padding."""
    lengths = [len(one.prompt) + len(one.ids) for one in rollouts]
    order = sorted(range(len(rollouts)), key=lambda i: -lengths[i])
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def weigh(drawn: list[Rollout], normalization: str, truncated: str, max_new_tokens: int) -> torch.Tensor:
    """The weight of each token of each completion, fp64 (S,). truncated "mask": 0 for those without an end."""
    lengths = torch.tensor([len(one.ids) for one in drawn], dtype=torch.float64)
    counts = torch.tensor([one.has_ended or truncated == "keep" for one in drawn])
    sizes = policy.Sizes(len(drawn), int(lengths[counts].sum()), max_new_tokens)
    weights = policy.NORMALIZATIONS[normalization].weights(lengths, sizes)
    return weights.masked_fill(~counts, 0.0)


def make_batch(rollouts: list[Rollout], width=0, height=0) -> dict[str, torch.Tensor]:
    """Rows of one completion each, padded at their end, where nothing looks: x (B, T) int64, T the longest or `width`,
    B their number or `height`;
    where (M,): the flat positions that predict a completion's tokens; targets (M,): these tokens; owner (M,): the row
    of each; sampled (M,) fp64: log p at sampling."""
    width = max(width, *(len(one.prompt) + len(one.ids) - 1 for one in rollouts))
    x = np.full((max(height, len(rollouts)), width), bos_id(), np.int64)
    where, targets, owner, sampled = [], [], [], []
    for row, one in enumerate(rollouts):
        tokens = one.prompt + one.ids
        x[row, : len(tokens) - 1] = tokens[:-1]
        first = row * width + len(one.prompt) - 1
        where += range(first, first + len(one.ids))
        targets += one.ids
        owner += [row] * len(one.ids)
        sampled += one.log_probs
    batch = {name: torch.tensor(values, dtype=torch.int64)
             for name, values in (("where", where), ("targets", targets), ("owner", owner))}
    return batch | {"x": torch.from_numpy(x), "sampled": torch.tensor(sampled, dtype=torch.float64)}


def hidden_states(model, x):
    """The head's inputs (B, T, C) of tokens x (B, T): rows of one completion each, where padding comes last."""
    return model.hidden(x)


def log_probs(model, batch: dict, temperature: float, hidden=hidden_states) -> torch.Tensor:
    """log p (M,) fp32 of a batch's completions, at the temperature of sampling. hidden: as hidden_states."""
    weight = model.transformer["wte"].weight
    x, where, targets = (processes.to_device(batch[name], weight.device) for name in ("x", "where", "targets"))
    states = hidden(model, x).flatten(0, 1).index_select(0, where)
    return -token_nll(states / temperature, weight, targets, model.config.masked_ranges)


def sum_figures(procs, figures: list[dict], n_first: int) -> dict:
    """A step's figures over all ranks: "kl" and "off" (tokens beyond rounding) of the first inner step's n_first
    micro-batches, "clipped" of all."""
    first = figures[:n_first]
    own = {"kl": math.fsum(one["kl"] for one in first), "off": sum(one["off"] for one in first),
           "clipped": sum(one["clipped"] for one in figures)}
    off_max = max((one["off_max"] for one in first), default=0.0)
    gathered = procs.gather((own, off_max))
    total = {key: math.fsum(rank[key] for rank, _ in gathered) for key in own}
    return total | {"off_max": max(largest for _, largest in gathered)}
