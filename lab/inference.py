"""inference.py owns what a trained model is asked: log-probabilities of endings, and samples.

>>> scores = score_endings(model, [(context_ids, [ending_ids, other_ending_ids])])  # log p of each ending's tokens
>>> texts = generate(model, [prompt_ids, other_ids], 100, temperature=0.8, stop_ids=[50256])  # Completions

Where positions meet in attention alone (`model.attention_only`), beginnings that endings share are computed once, in
trees of tokens, and sampling caches keys and values. Any other model reads each row by itself and from its first token.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import compress
from operator import index
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lab import chunks, kernels, memory, memory_settings, trees
from lab.attention import causal_attention
from lab.log_probs import PACK_ROWS, head_log_probs, packed_weights
from lab.precision import product_dtype
from lab.processes import to_device
from lab.schema import check
from model import Context, seeded_generator

# ----------------------------------------------------------------------------------------------------------------------
# likelihoods

# CPU: measured (evals.py in experiments/bench); CUDA: (assumption).
SCORE_TOKENS = {"cpu": 2048, "cuda": 16_384}  # of one forward pass


def n_truncated(items, block_size: int) -> int:
    """How many (item, ending) pairs exceed block_size + 1 tokens and lose some context. items: as in score_endings."""
    return sum(len(context) + len(ending) > block_size + 1 for context, endings in items for ending in endings)


def score_endings(model, items, batch_size=None, batch_tokens=None) -> list[list[torch.Tensor]]:
    """log p of every token of every ending, given its context and the ending's earlier tokens.

    items: (context ids, [ending ids, ...]) pairs of plain lists. Returns, for every item and ending, a 1-D fp32 CPU
    tensor with a natural-log probability per token: softmax in fp32 over the logical ids; a padding id has -inf. As in
    lm-evaluation-harness, the model sees the last block_size + 1 tokens of each context + ending (see n_truncated).

    batch_size: items per forward pass (None: no limit); batch_tokens: tokens per forward pass, as if none were shared
    (None: SCORE_TOKENS), though at least one item. Neither these nor the items' order change scores by more than 1e-4;
    equal endings of an item get equal bits. fp32 unless the caller opens an autocast. ValueError: an empty context or
    ending, an ending longer than block_size, an id outside the vocabulary."""
    items = list(items)
    scores = dict(iter_scores(model, items, batch_size, batch_tokens))
    return [scores[i] for i in range(len(items))]


def iter_scores(model, items: Sequence, batch_size=None, batch_tokens=None, known=(), stop=None,
                write=True, kept=None) -> Iterator[tuple[int, list]]:
    """score_endings as a generator of (index of the item, its list of tensors), for a caller that shows progress or
    stops in between. Items come after their forward pass, sorted by their contexts, each once. Errors come at once.

    known: indices whose scores the caller has. A forward pass of known items alone is left out; the others are as they
    would be without any known, to the bit. It ends before the next pass once stop.asked is true.
    write False: a model with fast weights reads without writing. kept: a dict of these items and settings alone, which
    saves the next call what the host prepares (about 60 bytes per token)."""
    for name, value in (("batch_size", batch_size), ("batch_tokens", batch_tokens)):
        check(value is None or value >= 1, f"{name} is {value}; give at least 1, or None")
    _check_items(items, model.config.block_size, model.config.padded_vocab_size)
    device = model.transformer["wte"].weight.device.type
    budget = batch_tokens or SCORE_TOKENS.get(device, SCORE_TOKENS["cuda"])
    batches, room = [], 0
    for i in sorted(range(len(items)), key=lambda i: list(items[i][0])):
        context, endings = items[i]
        size = len(context) + sum(map(len, endings))
        if not batches or size > room or len(batches[-1]) == batch_size:
            batches.append([])
            room = budget
        batches[-1].append(i)
        room -= size
    known = set(known)
    batches = [batch for batch in batches if not known.issuperset(batch)]
    return _score_batches(model, items, batches, stop, write, kept)


def _check_items(items, limit: int, n_ids: int) -> None:
    for i, (context, endings) in enumerate(items):
        check(len(context), f"item {i} has an empty context; start it with BOS")
        for ending in endings:
            n = len(ending)
            check(n, f"item {i} has an empty ending; give every ending at least one token")
            check(n <= limit, f"item {i} has an ending of {n} tokens but the model's block_size is "
                              f"{limit}; leave it out")
        for ids in (context, *endings):
            for token in (min(ids), max(ids)):
                check(0 <= token < n_ids,
                      f"item {i} has token id {token}, outside this model's {n_ids} ids; use its tokenizer")


@torch.no_grad()
def _score_batches(model, items, batches, stop, write, kept):
    """While the device computes a batch, the host prepares the next; only then it waits for the scores."""
    limit, device = model.config.block_size + 1, model.transformer["wte"].weight.device.type
    in_trees = model.attention_only or (model.writes and not write)

    def pairs_of(batch):  # what the model sees of context + ending, ending
        pairs = []
        for context, endings in (items[i] for i in batch):
            pairs += [([*context, *ending][-limit:], ending) for ending in endings]
        return pairs

    def prepare(batch):
        if kept is not None and tuple(batch) in kept:
            return kept[tuple(batch)]
        made = pairs_of(batch)
        if made and in_trees:
            made = trees.plan(made, model.config.n_embd, device)
            if kept is not None:
                kept[tuple(batch)] = made
        return made

    forward = _forward_trees
    if not in_trees:
        forward = _score_written if model.writes else _score_rows
    prepared = map(prepare, batches)
    coming = next(prepared, None)
    for batch in batches:
        if stop is not None and stop.asked:
            return
        scores = []
        if coming:
            with kernels.for_many_shapes():
                scores = forward(model, coming)
        present, coming = coming, next(prepared, None)
        if isinstance(present, trees.Pass):
            scores = _read_scores(present, scores)
        scores = iter(scores)
        for i in batch:
            yield i, [next(scores) for _ in items[i][1]]


def _score_written(model, pairs):
    """Scores of a model that writes its fast weights: whole chunks of a context are written, endings never. Contexts
    shorter than a chunk are scored together, as by a model without memory."""
    size, scores = memory_settings.chunk_size(model.config), [None] * len(pairs)
    short, before = [], None
    for i, (visible, ending) in enumerate(pairs):
        context = visible[: len(visible) - len(ending)]
        if len(context) <= size:
            short.append(i)
            continue
        if context != before:  # endings of one item come one after another
            (reading, n_written), before = chunks.read_prompt(model, context), context
        x = reading.fork().read_only(visible[n_written:-1])[0, -len(ending) :]
        scores[i] = head_log_probs(x, model, torch.arange(len(ending)), torch.tensor(ending)).cpu()
    for i, score in zip(short, _score_trees(model, [pairs[i] for i in short]), strict=True):
        scores[i] = score
    return scores


@torch.no_grad()
@kernels.for_many_shapes()
def score_after_writing(model, prompt, questions, alter=None) -> tuple[list[list[torch.Tensor]], list[dict]]:
    """(scores as of score_endings for the questions, memory.records of the writes) of a model that has written all of
    a prompt (see chunks.write_prompt), and then reads each context and ending in a new window without writing.

    prompt: ids. questions: [(context ids, [ending ids, ...]), ...]. alter: see memory.write."""
    reading, limit = chunks.write_prompt(model, prompt, alter), model.config.block_size + 1
    states, targets, lengths = [], [], []
    for context, endings in questions:
        whole = len(context) + max(map(len, endings)) <= limit
        beginning = reading.fork()
        if whole:
            states_of_context = beginning.read_only(context)[0]
        for ending in endings:
            if not whole:
                visible = [*context, *ending][-limit:]
                states.append(reading.fork().read_only(visible[:-1])[0, -len(ending) :])
            else:
                states.append(states_of_context[-1:])
                if len(ending) > 1:
                    states.append(beginning.fork().read_only(ending[:-1])[0])
            targets += ending
            lengths.append(len(ending))
    log_probs = head_log_probs(torch.cat(states), model, torch.arange(len(targets)), torch.tensor(targets))
    scores = iter(log_probs.cpu().split(lengths))
    by_question = [[next(scores) for _ in endings] for _, endings in questions]
    return by_question, memory.records(reading.layers, model.transformer["h"])


def _score_rows(model, pairs):
    """Scores by the definition: a forward pass for each pair (visible tokens, ending)."""
    device, scores = model.transformer["wte"].weight.device, []
    for visible, ending in pairs:
        tokens = torch.tensor([visible[:-1]], device=device)
        x = model.hidden(tokens)[0, -len(ending) :]
        scores.append(head_log_probs(x, model, torch.arange(len(ending)), torch.tensor(ending)).cpu())
    return scores


def _score_trees(model, pairs):
    """Scores of all pairs (visible tokens, ending) by one forward pass, in which a shared beginning stands once."""
    if not pairs:
        return []
    plan = trees.plan(pairs, model.config.n_embd, model.transformer["wte"].weight.device.type)
    return _read_scores(plan, _forward_trees(model, plan))


def _read_scores(plan, log_probs) -> list[torch.Tensor]:
    """Each ending's. Here the host waits for the device."""
    return list(log_probs.cpu().split(plan.lengths))


def _forward_trees(model, plan: trees.Pass) -> torch.Tensor:
    """log p (E,) of plan.targets, on the device, which is not waited for."""
    device = model.transformer["wte"].weight.device
    tensors = plan.tokens, plan.depths, plan.ends, plan.queries
    tokens, depths, ends, queries = (to_device(tensor, device) for tensor in tensors)
    all_nodes = torch.arange(len(tokens), device=device)

    x, rope = model.embed(tokens[None], positions=depths[None])
    everywhere = Context(rope, trees.attention(plan.spans, ends, all_nodes, plan.everywhere))
    # Of the last block only the outputs that predict an ending's token are needed.
    predicting = Context(rope, trees.attention(plan.spans, ends, queries, plan.predicting), queries)
    contexts = [everywhere] * (model.config.n_layer - 1) + [predicting]
    packing = packed_weights if len(tokens) >= PACK_ROWS else nullcontext
    for block, context in zip(model.transformer["h"], contexts, strict=True):
        with packing(block):
            x = block(x, context)
    return head_log_probs(model.transformer["ln_f"](x)[0], model, plan.row_of, plan.targets)


# ----------------------------------------------------------------------------------------------------------------------
# generation

PREFILL_TOKENS = {"cpu": 2048, "cuda": 16384}  # prompt tokens in one forward (assumption)
# Packing costs 5 to 10 decoding steps and saves a fifth of one at one row, half of one from 4 rows on (measured).
PACK_FROM = 96  # new tokens times rows, of which at most 4 count


class Completion(NamedTuple):
    """ids: the new tokens, without a stop id. stopped: why they end, "stop_id", "stop_string" or "length". log_probs,
    when asked for: log p of every token that was drawn, a stop id among them, under what it was drawn from."""

    ids: list[int]
    stopped: str
    log_probs: list[float] | None = None


@torch.no_grad()
@kernels.for_many_shapes()
def generate(model, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=0, stop_ids=(),
             stop_strings=(), decode=None, row_ids=None, watch=None, log_probs=False) -> list[Completion]:
    """Continues each prompt by up to max_new_tokens; one Completion per prompt, in their order.

    prompts: lists of ids, of any lengths, or a (B, T) tensor. temperature 0: greedy. Otherwise softmax(logits /
    temperature), then the top_k likeliest ids (and those that tie with the k-th), then the smallest set of ids whose
    share of these reaches top_p (of ties, lower ids first); None: all. Padding ids are never drawn.
    Each row draws one uniform number per token, on the CPU, from its own generator, seeded by (seed, row_ids[i] or i),
    and takes the id at which the cumulative probability, in fp64 and the order of ids, passes it. So its tokens do not
    depend on the batch, unless the number falls within the logits' rounding (about 1e-6 in fp32) of a border.
    A row ends at one of stop_ids, or when its new text contains one of stop_strings. decode gives the text of a list of
    ids, at least a byte per id, and of joined lists the joined bytes. ids ends before a stop string that begins with a
    token, and otherwise with the token that completes it: the caller cuts decode(ids) at the first stop string.
    watch(i, id): called with each new token of row i but a stop id, as it comes; what it raises ends the generation.
    log_probs: whether each Completion gets them (0 where greedy).
    The model sees the last block_size tokens. A row longer than that costs a forward of block_size per token, and every
    row of a model that is not attention_only one of its own length.
    Memory: 2 * n_layer * n_embd numbers per row and position, for all prompts at once; on a CPU also a copy of the
    weights. ValueError for bad input, or where the logits are not numbers."""
    prompts = _check_generate(
        model, prompts, max_new_tokens, temperature, top_k, top_p, stop_ids, stop_strings, decode)
    row_ids = range(len(prompts)) if row_ids is None else list(row_ids)
    check(len(row_ids) == len(prompts),
          f"there are {len(prompts)} prompts but {len(row_ids)} row_ids; give one each")
    if max_new_tokens == 0:
        return [Completion([], "length", [] if log_probs else None) for _ in prompts]
    generators = [seeded_generator(f"{seed}/{row}") for row in row_ids]
    stop_ids, stop_strings = set(map(int, stop_ids)), list(stop_strings)
    # The text of so many last ids can hold a new stop string.
    tail = 3 + max((len(s.encode()) for s in stop_strings), default=0)
    new, stopped = [[] for _ in prompts], ["length"] * len(prompts)
    drawn = [[] if log_probs else None for _ in prompts]

    def extend(rows, logits) -> list[bool]:
        """Gives each of rows a token, from logits (len(rows), V). Returns which go on."""
        u = torch.zeros(len(rows), dtype=torch.float64)
        if temperature > 0:
            for i, r in enumerate(rows):
                u[i] = torch.rand((), generator=generators[r], dtype=torch.float64, device="cpu")
        tokens, log_p = draw_tokens(logits, u, temperature, top_k, top_p)
        if log_probs:
            for r, value in zip(rows, log_p.tolist(), strict=True):
                drawn[r].append(value)
        for r, token in zip(rows, tokens.tolist(), strict=True):
            if token in stop_ids:
                stopped[r] = "stop_id"
                continue
            new[r].append(token)
            if watch:
                watch(r, token)
            if stop_strings and (cut := stop_string_cut(new[r][-tail:], stop_strings, decode)) is not None:
                stopped[r] = "stop_string"
                del new[r][len(new[r]) - cut :]
        return [stopped[r] == "length" and len(new[r]) < max_new_tokens for r in rows]

    limit, device = model.config.block_size, model.transformer["wte"].weight.device
    by_length = sorted(range(len(prompts)), key=lambda r: len(prompts[r]))
    cached, at_once, packing = [], 1, False  # place i of the cache holds row cached[i]
    if model.attention_only:
        cached = [r for r in by_length if len(prompts[r]) <= limit]
        at_once = max(1, PREFILL_TOKENS.get(device.type, 2048) // limit)
        packing = max_new_tokens * min(len(prompts), 4) >= PACK_FROM
    recomputed = by_length[len(cached) :]
    with packed_weights(model) if packing else nullcontext():
        if cached:
            width = min(len(prompts[cached[-1]]) + max_new_tokens - 1, limit)
            cache = _new_cache(model, len(cached), width)
            logits = _prefill(model, [prompts[r] for r in cached], cache)
        while cached:
            keep = extend(cached, logits)
            for i, r in enumerate(cached):
                if keep[i] and len(prompts[r]) + len(new[r]) > limit:
                    recomputed.append(r)
                    keep[i] = False
            cached = compact(cached, keep, cache)
            if cached:
                ends = [len(prompts[r]) + len(new[r]) - 1 for r in cached]
                logits = _decode_step(model, [new[r][-1] for r in cached], ends, cache)

        if model.writes:
            for r in recomputed:
                reading, n_written = chunks.read_prompt(model, prompts[r])
                states = reading.read_only(prompts[r][n_written:])
                while extend([r], model.head(states[:, -1]))[0]:
                    tokens = new[r][-1:]
                    if reading.position == limit:
                        reading.restart_window()
                        tokens = (prompts[r] + new[r])[-max(1, limit // 2) :]
                    states = reading.read_only(tokens)
            recomputed = []

        # Once a row is longer than block_size, each token moves all positions: nothing in a cache stays valid.
        for start in range(0, len(recomputed), at_once):
            rows = recomputed[start : start + at_once]
            while rows:
                windows = torch.tensor([(prompts[r] + new[r])[-limit:] for r in rows], device=device)
                keep = extend(rows, model.head(model.hidden(windows)[:, -1]))
                rows = list(compress(rows, keep))
    return [Completion(*c) for c in zip(new, stopped, drawn, strict=True)]


def _check_generate(model, prompts, max_new_tokens, temperature, top_k, top_p, stop_ids, stop_strings, decode):
    """The prompts as lists of int; ValueError, in one sentence, for bad input."""
    if isinstance(prompts, torch.Tensor):
        prompts = prompts.tolist()
    try:
        prompts = [list(map(index, p)) for p in prompts]
    except TypeError as e:
        raise ValueError("prompts must be lists of whole numbers, or a (B, T) int64 tensor; "
                         "put a single prompt into a list") from e
    V = model.config.vocab_size
    for i, p in enumerate(prompts):
        check(p, f"prompt {i} is empty; start from at least one token, such as <|endoftext|>")
        check(0 <= min(p) <= max(p) < V,
              f"prompt {i} has ids from {min(p)} to {max(p)}; use ids from 0, below vocab_size {V}")
    check(max_new_tokens >= 0, f"max_new_tokens is {max_new_tokens}; use 0 or more")
    check(0 <= temperature < math.inf, f"temperature is {temperature}; use 0 for greedy, or more")
    check(top_k is None or top_k >= 1, f"top_k is {top_k}; use at least 1, or None for all ids")
    check(top_p is None or 0 < top_p <= 1, f"top_p is {top_p}; use a number above 0 and up to 1, or None")
    check(not isinstance(stop_ids, int), f"stop_ids is {stop_ids}; put it into a list")
    check(not isinstance(stop_strings, str) and "" not in stop_strings,
          f"stop_strings is {stop_strings!r}; use a list of strings that are not empty")
    check(decode or not stop_strings, "stop_strings need text; pass decode, from ids to text")
    return prompts


def choose_tokens(logits, u, temperature, top_k, top_p) -> torch.Tensor:
    """The ids of draw_tokens."""
    return draw_tokens(logits, u, temperature, top_k, top_p)[0]


@kernels.allow_nondeterministic()
def draw_tokens(logits, u, temperature, top_k, top_p) -> tuple[torch.Tensor, torch.Tensor]:
    """logits (N, V), u (N,) fp64 in [0, 1), unused when temperature is 0 -> ids (N,) int64 and log p of each (N,) under
    the distribution it was drawn from, 0 when temperature is 0; see generate."""
    best = logits.amax(1, keepdim=True)
    check(not best.isnan().any(),
          "the model's logits are not numbers; use a checkpoint from before its loss diverged")
    if temperature == 0:
        return logits.argmax(1), best.new_zeros(len(best))
    if logits.device.type not in ("cpu", "cuda"):  # no fp64 elsewhere
        logits, best = logits.cpu(), best.cpu()
    ids = None
    if top_k is not None and top_k < logits.size(1):
        kth = logits.topk(top_k).values[:, -1:]
        n_kept = int((logits >= kth).sum(1).max())  # more than top_k where some tie
        ids = logits.topk(n_kept).indices.sort(1).values
        logits = logits.gather(1, ids)
        logits = logits.masked_fill(logits < kth, -math.inf)
    weights = logits.float() - best.float()
    weights = weights.div_(max(temperature, 1e-30)).exp_()  # the best one's is 1
    if top_p is not None and top_p < 1:
        weights = smallest_set(weights, top_p)
    total = weights.cumsum(1, dtype=torch.float64)
    end = total[:, -1:].contiguous()
    at = torch.searchsorted(total, u.to(total.device)[:, None] * end, right=True)
    at = torch.minimum(at, torch.searchsorted(total, end))  # where the product rounds up to end
    log_p = (weights.gather(1, at) / end).log().squeeze(1)
    chosen = at if ids is None else ids.gather(1, at)
    return chosen.squeeze(1), log_p


def smallest_set(weights, share) -> torch.Tensor:
    """weights (N, V) >= 0, with zeros outside each row's fewest entries whose sum reaches share of its sum; of equal
    weights the first stay."""
    V = weights.size(1)
    goal = share * weights.sum(1, keepdim=True, dtype=torch.float64)
    n = min(64, V)  # sorting whole rows would take longer than the model
    while True:
        top = weights.topk(n).values
        reached = top.cumsum(1, dtype=torch.float64)
        if n == V or (reached[:, -1:] >= goal).all():
            break
        n = min(16 * n, V)
    size = (reached < goal).sum(1, keepdim=True).clamp(max=n - 1) + 1
    least = top.gather(1, size - 1)
    equal, left = weights == least, size - (weights > least).sum(1, keepdim=True)
    out = weights < least
    if (equal.sum(1, keepdim=True) > left).any():
        out |= equal & (equal.cumsum(1) > left)
    return weights.masked_fill(out, 0.0)


def stop_string_cut(ids, stop_strings, decode) -> int | None:
    """How many of the last ids to drop because of a stop string in their text; None without one."""
    text = decode(ids)
    places = [text.find(string) for string in stop_strings if string in text]
    if not places:
        return None
    before = text[: min(places)]
    return next((n for n in range(1, len(ids) + 1) if decode(ids[: len(ids) - n]) == before), 0)


# ----------------------------------------------------------------------------------------------------------------------
# the cache: keys and values (n_layer, 2, rows, n_head, width, head_dim); column = position in the row


def _new_cache(model, rows, width):
    """Zeros, because a masked column counts with weight 0, and 0 times what memory holds may be nan."""
    c, weight = model.config, model.transformer["wte"].weight
    return weight.new_zeros(c.n_layer, 2, rows, c.n_head, width, c.head_dim, dtype=product_dtype(weight))


def compact(live, keep, cache) -> list:
    """The rows of live to keep, in the first places of the cache: rows from the end move to the places of those that
    leave, one copy each."""
    live, n = list(live), sum(keep)
    free = [i for i in range(n) if not keep[i]]
    movers = [j for j in range(n, len(live)) if keep[j]]
    for i, j in zip(free, movers, strict=True):
        live[i], cache[:, :, i] = live[j], cache[:, :, j]
    return live[:n]


def _prefill(model, prompts, cache):
    """Fills the cache; logits (B, padded_vocab) after each prompt. Prompts, sorted by length, are padded at their
    end, where causal attention does not look; what that leaves in the cache is overwritten before it is seen."""

    def fill_and_attend(layer, q, k, v):
        for old, new in zip(layer, (k, v), strict=True):
            old.copy_(new)
        return causal_attention(q, k, v)

    device, states, start = cache.device, [], 0
    limit = PREFILL_TOKENS.get(device.type, 2048)
    while start < len(prompts):
        end = start + 1
        while end < len(prompts) and len(prompts[end]) * (end + 1 - start) <= limit:
            end += 1
        rows = prompts[start:end]
        T = len(rows[-1])
        padded = [p + [p[-1]] * (T - len(p)) for p in rows]
        x, rope = model.embed(torch.tensor(padded, device=device))
        for block, layer in zip(model.transformer["h"], cache[:, :, start:end, :, :T], strict=True):
            x = block(x, Context(rope, functools.partial(fill_and_attend, layer)))
        last = torch.tensor([len(p) - 1 for p in rows], device=device)
        states.append(x[torch.arange(len(rows), device=device), last])
        start = end
    return model.head(model.transformer["ln_f"](torch.cat(states)))


def _decode_step(model, tokens, at, cache):
    """Logits (n, padded_vocab) after n tokens, of positions `at`, in the first n rows of the cache."""
    n, width, device = len(tokens), max(at) + 1, cache.device
    rows, places = torch.arange(n, device=device), torch.tensor(at, device=device)
    visible = None  # (n, 1, 1, width); rows of one length need no mask
    if min(at) < max(at):
        visible = (torch.arange(width, device=device) <= places[:, None])[:, None, None]

    def attend(layer, q, k, v):
        for old, new in zip(layer, (k[:, :, 0], v[:, :, 0]), strict=True):
            if visible is None:
                old[:, :, width - 1] = new
            else:
                old[rows, :, places] = new.to(old.dtype)
        return F.scaled_dot_product_attention(q, *layer, attn_mask=visible)

    x, rope = model.embed(torch.tensor(tokens, device=device)[:, None], positions=places[:, None])
    for block, layer in zip(model.transformer["h"], cache[:, :, :n, :, :width], strict=True):
        x = block(x, Context(rope, functools.partial(attend, layer)))
    return model.head(model.transformer["ln_f"](x[:, 0]))
