"""inference.py owns what a trained model is asked: log-probs of endings, and sampling."""

import functools
import math
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from operator import index
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model import CHUNK_ROWS, GPTConfig, Linear, causal_attention, packed_linear, seeded_generator, workspace


def can_pack(weight) -> bool:
    """x86 CPUs, fp32, no autocast, a torch built with oneDNN."""
    return (weight.device.type == "cpu" and weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
            and all(hasattr(torch.ops.mkldnn, op) for op in ("_reorder_linear_weight", "_linear_pointwise")))


def pack(weight):
    # 64 rows: the layout for 1 row is several times slower for more, this one no slower for 1 (measured)
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 64)


@contextmanager
def packed_weights(module):
    """While open, the matrix products of module (a GPT or one of its blocks) take packed copies of its weights, where
    can_pack. Elsewhere nothing happens. For use without gradients.

    A product of few rows otherwise spends its time on rearranging the weight, at every call: 16 rows of the 124M shape
    take 81 ms without and 32 ms with it (measured). The copy takes as much memory as the weights."""
    modules = [m for m in module.modules() if isinstance(m, Linear)]
    modules += [module.transformer["wte"]] if hasattr(module, "transformer") else []
    try:
        for m in modules:
            if can_pack(m.weight):
                m.packed = pack(m.weight)
        yield
    finally:
        for m in modules:
            m.packed = None


# ----------------------------------------------------------------------------------------------------------------------
# likelihoods: many endings of shared contexts as trees of tokens

# Tokens of one forward pass, columns of logits at a time (elsewhere all), and nodes that ask at a time. CPU: measured
# (evals.py in experiments/bench); CUDA: (assumption).
SCORE_TOKENS = {"cpu": 2048, "cuda": 16_384}
HEAD_COLUMNS = {"cpu": 2048}
QUERY_ROWS = 64
PAD_TREES = {"cpu": 0, "cuda": 64}  # multiple to which trees are padded to attend together; 0: one after the other
PACK_ROWS = 128  # tokens from which on packing a weight for one product saves more than it costs (measured: 0.7 at 160)
TREE_TOKENS = 4096  # a tree is not grown beyond this: its mask has the square of its tokens as entries


def n_truncated(items, block_size: int) -> int:
    """How many (item, ending) pairs are longer than block_size + 1 tokens, so that the model does not see all of their
    context. items as in GPT.score_endings."""
    return sum(len(context) + len(ending) > block_size + 1 for context, endings in items for ending in endings)


def _check_items(items, config: GPTConfig) -> None:
    for i, (context, endings) in enumerate(items):
        if len(context) == 0:
            raise ValueError(f"item {i} has an empty context, so nothing predicts its endings' first tokens; start the "
                             "context with BOS")
        for ending in endings:
            if len(ending) == 0:
                raise ValueError(f"item {i} has an empty ending; give every ending at least one token")
            if len(ending) > config.block_size:
                raise ValueError(f"item {i} has an ending of {len(ending)} tokens but the model's block_size is "
                                 f"{config.block_size}; leave the item out or use a model with a larger block_size")
        for ids in (context, *endings):
            if min(ids) < 0 or max(ids) >= config.padded_vocab_size:
                wrong = min(ids) if min(ids) < 0 else max(ids)
                raise ValueError(f"item {i} has token id {wrong}, outside this model's {config.padded_vocab_size} ids; "
                                 "encode it with the tokenizer of the model's training data")


def _grow_trees(sequences: list[list[int]], n_embd: int):
    """Lays token sequences out as trees, in which a shared beginning stands once.

    A node sees itself and its ancestors. Nodes are numbered depth first, so node j is an ancestor of i, or i itself,
    when j <= i < ends[j]. A sequence joins the tree of the one before it in sorted order if the 24 C^2 FLOPs per layer
    and shared token that it saves are more than the 8 C of each new pair of nodes in one tree's mask.
    Returns tokens, depths, ends, one entry per node; (first, last + 1) nodes of each tree; each sequence's nodes."""
    tokens, depths, ends, starts = [], [], [], []
    nodes_of: list[list[int]] = [[]] * len(sequences)
    path, before = [], []
    for s in sorted(range(len(sequences)), key=sequences.__getitem__):
        sequence = sequences[s]
        shared = next((i for i, (a, b) in enumerate(zip(before, sequence, strict=False)) if a != b),
                      min(len(before), len(sequence)))
        size, new = len(tokens) - starts[-1] if starts else 0, len(sequence) - shared
        if not starts or new and (3 * n_embd * shared <= size * new or size + new > TREE_TOKENS):
            starts.append(len(tokens))
            shared = 0
        for node in path[shared:]:
            ends[node] = len(tokens)
        path = path[:shared] + list(range(len(tokens), len(tokens) + len(sequence) - shared))
        tokens += sequence[shared:]
        depths += range(shared, len(sequence))
        ends += [0] * (len(sequence) - shared)
        nodes_of[s], before = path, sequence
    for node in path:
        ends[node] = len(tokens)
    return tokens, depths, ends, list(zip(starts, [*starts[1:], len(tokens)], strict=True)), nodes_of


def _sees(asking, keys, ends):
    """Whether node asking[..., i] sees node keys[..., j], as bool (..., i, j)."""
    asking, before = asking.unsqueeze(-1), keys.unsqueeze(-2)
    return (before <= asking) & (asking < ends[keys].unsqueeze(-2))


def _attend_in_turn(trees, ends, rows):
    """An `attend` for trees that stand in one row: q (1, H, R, dh) of the nodes `rows` (R,), ascending; k and v
    (1, H, N, dh) of all nodes."""
    pieces = []
    for first, last in trees:
        start, stop = torch.searchsorted(rows, torch.tensor([first, last])).tolist()
        for at in range(start, stop, QUERY_ROWS):
            asking = rows[at : min(at + QUERY_ROWS, stop)]
            keys = torch.arange(first, int(asking[-1]) + 1)  # depth first: nobody sees a later node
            pieces.append((slice(at, at + len(asking)), slice(first, first + len(keys)),
                           _sees(asking, keys, ends)[None, None]))

    def attend(q, k, v):
        return torch.cat([F.scaled_dot_product_attention(q[:, :, asking], k[:, :, keys], v[:, :, keys], mask)
                          .transpose(1, 2) for asking, keys, mask in pieces], 1).transpose(1, 2)

    return attend


def _attend_padded(trees, ends, rows, pad):
    """The same in few launches: trees of about the same size, padded to a multiple of `pad`, attend together."""
    def spread(firsts, sizes):
        """Runs of numbers as rows of one matrix, filled up with their last number; and which entries are no filling."""
        first, size = (torch.tensor(v, device=rows.device)[:, None] for v in (firsts, sizes))
        at = torch.arange(-(-max(sizes) // pad) * pad, device=rows.device)
        return first + torch.minimum(at, size - 1), at < size

    firsts = [first for first, _ in trees]
    edges = torch.searchsorted(rows, torch.tensor([*firsts, trees[-1][1]], device=rows.device)).tolist()
    alike = {}
    for (first, last), start, stop in zip(trees, edges, edges[1:], strict=False):
        sizes = last - first, stop - start
        alike.setdefault(tuple(-(-size // pad) for size in sizes), []).append((first, start, *sizes))
    pieces, places = [], []
    for group in alike.values():
        first, start, n_keys, n_asking = zip(*group, strict=True)
        keys, real = spread(first, n_keys)
        asking, wanted = spread(start, n_asking)
        pieces.append((asking, keys, (_sees(rows[asking], keys, ends) & real[:, None])[:, None], wanted))
        places.append(asking[wanted])
    back = torch.cat(places).argsort()
    pieces = [(asking, keys, mask, wanted.flatten().nonzero()[:, 0]) for asking, keys, mask, wanted in pieces]

    def attend(q, k, v):
        q, k, v = (z[0].transpose(0, 1) for z in (q, k, v))  # (N, H, dh)
        out = []
        for asking, keys, mask, wanted in pieces:
            y = F.scaled_dot_product_attention(*(z.transpose(1, 2) for z in (q[asking], k[keys], v[keys])), mask)
            out.append(y.transpose(1, 2).flatten(0, 1)[wanted])
        return torch.cat(out)[back].transpose(0, 1)[None]

    return attend


def _head_log_probs(x, weight, rows, targets, masked_ranges) -> torch.Tensor:
    """log p (E,) fp32 of targets (E,) after the hidden states x (N, C) numbered rows (E,), ascending; both on the CPU.

    At most CHUNK_ROWS x HEAD_COLUMNS logits are alive. Products in x's dtype or the autocast's, softmax in fp32."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        N, V = x.size(0), weight.size(0)
        chunk, width = min(N, CHUNK_ROWS.get(device, 4096)), min(V, HEAD_COLUMNS.get(device, V))
        buffer, w, out = workspace(chunk, width, x.device).flatten(), weight.to(dtype), []
        edges = torch.searchsorted(rows, torch.arange(0, N + chunk, chunk)).tolist()
        for start, a, b in zip(range(0, N, chunk), edges, edges[1:], strict=False):
            x_rows = x[start : start + chunk].to(dtype)
            wanted, order = targets[a:b].sort(stable=True)
            at = (rows[a:b][order] - start).to(x.device)
            cuts = torch.searchsorted(wanted, torch.arange(0, V + width, width)).tolist()
            wanted = wanted.to(x.device)
            chosen = torch.empty(b - a, device=x.device)
            largest = torch.full((len(x_rows), 1), torch.finfo(torch.float32).min, device=x.device)
            total = torch.zeros(len(x_rows), 1, device=x.device)
            for left, c, d in zip(range(0, V, width), cuts, cuts[1:], strict=False):
                right = min(left + width, V)
                logits = buffer[: len(x_rows) * (right - left)].view(len(x_rows), -1)
                if dtype == torch.float32 and len(x_rows) >= PACK_ROWS and can_pack(w):
                    logits = packed_linear(x_rows, pack(w[left:right]), None)
                elif dtype == torch.float32:
                    torch.mm(x_rows, w[left:right].t(), out=logits)
                else:
                    logits.copy_(x_rows @ w[left:right].t())
                for first, last in masked_ranges:
                    logits[:, max(first - left, 0) : max(last - left, 0)] = -math.inf
                chosen[c:d] = logits[at[c:d], wanted[c:d] - left]
                new = torch.maximum(largest, logits.amax(1, keepdim=True))
                total = total * (largest - new).exp_() + (logits.sub_(new)).exp_().sum(1, keepdim=True)
                largest = new
            log_sum = (largest + total.log_())[:, 0]
            out.append((chosen - log_sum[at])[order.argsort().to(x.device)])
        return torch.cat(out)


# ----------------------------------------------------------------------------------------------------------------------
# generation

PREFILL_TOKENS = {"cpu": 2048, "cuda": 16384}  # prompt tokens in one forward (assumption)
# Packing costs 5 to 10 decoding steps and saves a fifth of one at one row, half of one from 4 rows on (measured).
PACK_FROM = 96  # new tokens times rows, of which at most 4 count


class Completion(NamedTuple):
    """ids: the new tokens, without a stop id. stopped: why they end, "stop_id", "stop_string" or "length"."""

    ids: list[int]
    stopped: str


def choose_tokens(logits, u, temperature, top_k, top_p) -> torch.Tensor:
    """logits (N, V), u (N,) fp64 in [0, 1), unused when temperature is 0 -> ids (N,) int64; see GPT.generate."""
    best, ids = logits.max(1, keepdim=True)
    if best.isnan().any():
        raise ValueError("the model's logits are not numbers; use a checkpoint from before its loss diverged")
    if temperature == 0:
        return ids.squeeze(1)
    if logits.device.type not in ("cpu", "cuda"):  # no fp64 elsewhere
        logits, best = logits.cpu(), best.cpu()
    ids = None
    if top_k is not None and top_k < logits.size(1):
        kth = logits.topk(top_k).values[:, -1:]
        ids = logits.topk(int((logits >= kth).sum(1).max())).indices.sort(1).values  # more than top_k where some tie
        logits = logits.gather(1, ids)
        logits = logits.masked_fill(logits < kth, -math.inf)
    weights = ((logits.float() - best.float()) / max(temperature, 1e-30)).exp()  # the best one's is 1
    if top_p is not None and top_p < 1:
        weights = smallest_set(weights, top_p)
    total = weights.cumsum(1, dtype=torch.float64)
    end = total[:, -1:].contiguous()
    at = torch.searchsorted(total, u.to(total.device)[:, None] * end, right=True)
    at = torch.minimum(at, torch.searchsorted(total, end))  # a product that rounds up to end is beyond every id
    return (at if ids is None else ids.gather(1, at)).squeeze(1)


def smallest_set(weights, share) -> torch.Tensor:
    """weights (N, V) >= 0, with zeros outside the fewest entries of each row whose sum reaches share of its sum; of
    equal weights the first ones stay."""
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
    """How many of the last ids to drop when their text has a stop string; None when it has none."""
    text = decode(ids)
    found = [at for at in map(text.find, stop_strings) if at >= 0]
    if not found:
        return None
    before = text[: min(found)]
    return next((n for n in range(1, len(ids) + 1) if decode(ids[: len(ids) - n]) == before), 0)


def compact(live, keep, cache) -> list:
    """The rows of live to keep, moved in the cache (..., rows, n_head, width, head_dim) to its first places: rows from
    the end take the places of those that leave, so that each of these costs one copy of a row."""
    live, n = list(live), sum(keep)
    free = [i for i in range(n) if not keep[i]]
    for i, j in zip(free, [j for j in range(n, len(live)) if keep[j]], strict=True):
        live[i] = live[j]
        cache[:, :, i] = cache[:, :, j]
    return live[:n]


def score_endings(model, items, batch_size=None, batch_tokens=None) -> list[list[torch.Tensor]]:
    """log p of every token of every ending, given its context and the ending's earlier tokens.

    items: (context ids, [ending ids, ...]) pairs of plain lists. Returns, for every item and ending, a 1-D fp32 CPU
    tensor with one natural-log probability per token: softmax in fp32 over the logical ids; a padding id has -inf.
    The rule for what does not fit is lm-evaluation-harness's: the model sees the last block_size + 1 tokens of
    context + ending, each ending by its own length (n_truncated counts those that lose some of their context).

    batch_size: items per forward pass; batch_tokens: tokens per forward pass, as if nothing were shared, though
    always at least one item; None: no limit on items, SCORE_TOKENS. Scores do not depend on either (to 1e-4), nor
    on the items' order; identical endings of an item get identical bits. Everything is fp32, with fp32 weights,
    unless the caller opens an autocast. Takes no random numbers and changes nothing in the model; compiled wrappers
    forward it to the module itself. ValueError: empty context (start it with BOS) or ending, ending longer than
    block_size, id outside the vocabulary."""
    items = list(items)
    scores = [[]] * len(items)
    for i, item_scores in iter_scores(model, items, batch_size, batch_tokens):
        scores[i] = item_scores
    return scores


def iter_scores(model, items: Sequence, batch_size=None, batch_tokens=None) -> Iterator[tuple[int, list]]:
    """score_endings as a generator of (index of the item, its list of tensors), for a caller that shows progress or
    stops in between: a forward pass's items come together, right after it, in the sorted order of their contexts
    (items whose contexts begin alike share that beginning), each index once. Errors are raised here, before the
    first pass."""
    for name, value in (("batch_size", batch_size), ("batch_tokens", batch_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; give at least 1, or None")
    _check_items(items, model.config)
    device = model.transformer["wte"].weight.device.type
    budget = batch_tokens or SCORE_TOKENS.get(device, SCORE_TOKENS["cuda"])
    batches, room = [], 0
    for i in sorted(range(len(items)), key=lambda i: list(items[i][0])):
        size = len(items[i][0]) + sum(map(len, items[i][1]))
        if not batches or size > room or len(batches[-1]) == batch_size:
            batches.append([])
            room = budget
        batches[-1].append(i)
        room -= size
    return _score_batches(model, items, batches)


@torch.no_grad()
def _score_batches(model, items, batches):
    for batch in batches:
        pairs = [([*items[i][0], *ending][-model.config.block_size - 1 :], ending) for i in batch
                 for ending in items[i][1]]
        scores = iter(_score_pairs(model, pairs) if pairs else [])
        for i in batch:
            yield i, [next(scores) for _ in items[i][1]]


def _score_pairs(model, pairs):
    """pairs: (what the model sees of context + ending, ending). One forward pass; a list of fp32 CPU tensors."""
    weight = model.transformer["wte"].weight
    tokens, depths, ends, trees, nodes_of = _grow_trees([seen[:-1] for seen, _ in pairs], model.config.n_embd)
    predictors = torch.tensor([n for nodes, (_, e) in zip(nodes_of, pairs, strict=True) for n in nodes[-len(e) :]])
    rows, row_of = predictors.unique(return_inverse=True)
    row_of, order = row_of.sort(stable=True)
    targets = torch.tensor([t for _, ending in pairs for t in ending])[order]

    tokens, depths, ends, asking = (torch.as_tensor(v, device=weight.device) for v in (tokens, depths, ends, rows))
    pad = PAD_TREES.get(weight.device.type, PAD_TREES["cuda"])
    attend = functools.partial(_attend_padded, pad=pad) if pad else _attend_in_turn
    x, rope = model.embed(tokens[None], positions=depths[None])
    everyone = attend(trees, ends, torch.arange(len(tokens), device=weight.device))
    *blocks, last = model.transformer["h"]
    for block in blocks:
        with packed_weights(block) if len(tokens) >= PACK_ROWS else nullcontext():
            x = block(x, rope, everyone)
    # Of the last block only the outputs that predict an ending's token are needed.
    with packed_weights(last) if len(tokens) >= PACK_ROWS else nullcontext():
        x = last(x, rope, attend(trees, ends, asking), asking)
    x = model.transformer["ln_f"](x)[0]
    flat = _head_log_probs(x, weight, row_of, targets, model.config.masked_ranges).cpu()
    return list(flat[order.argsort()].split([len(ending) for _, ending in pairs]))


@torch.no_grad()
def generate(model, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=0, stop_ids=(),
             stop_strings=(), decode=None, row_ids=None) -> list[Completion]:
    """Continues each prompt by up to max_new_tokens; one Completion per prompt, in their order.

    prompts: lists of ids, of any lengths, or a (B, T) tensor. temperature 0: greedy. Otherwise softmax(logits /
    temperature), then the top_k likeliest ids (those that tie with the k-th stay), then the smallest set of ids
    whose share of what is left reaches top_p (of ties, lower ids first); None: all. Padding ids are never drawn.
    Each row draws one uniform number per token, on the CPU, from a generator of its own seeded by (seed, row_ids[i]
    or i), and takes the id at which the sum of probabilities, in the order of ids and in fp64, passes it. So a
    row's tokens do not depend on the batch, its order or its padding; only where the number falls within the
    rounding of the logits (about 1e-6 in fp32) of a border between two ids could a draw differ.
    A row ends at one of stop_ids, or when its new text contains one of stop_strings; decode gives the text of a
    list of ids, and joined lists must give joined bytes, at least one per id. If the string begins where a token
    does, ids ends before it; otherwise ids goes on to the token that completes it. Either way the text is
    decode(ids) up to the first stop string in it, and that cut is the caller's.
    The model sees the last block_size tokens. A row longer than that costs a forward of block_size per token.
    Memory: 2 * n_layer * n_embd numbers per row and position, for all prompts at once; on a CPU also a copy of the
    weights while it runs. ValueError for bad input, or where the logits are not numbers."""
    prompts = _check_generate(model, prompts, max_new_tokens, temperature, top_k, top_p, stop_ids, stop_strings,
                                   decode)
    row_ids = range(len(prompts)) if row_ids is None else list(row_ids)
    if len(row_ids) != len(prompts):
        raise ValueError(f"there are {len(prompts)} prompts but {len(row_ids)} row_ids; give one for each")
    generators = [seeded_generator(f"{seed}/{row}") for row in row_ids]
    stop_ids, stop_strings = set(map(int, stop_ids)), list(stop_strings)
    tail = max((len(s.encode()) for s in stop_strings), default=0) + 3  # ids whose text can hold a new stop string
    new, why = [[] for _ in prompts], ["length"] * len(prompts)

    def extend(rows, logits) -> list[bool]:
        """Gives each of rows a token; which of them go on."""
        u = torch.tensor([torch.rand((), generator=generators[r], dtype=torch.float64, device="cpu") for r in rows]
                         if temperature > 0 else 0.0, dtype=torch.float64, device="cpu")
        tokens = choose_tokens(logits, u, temperature, top_k, top_p).tolist()
        for r, token in zip(rows, tokens, strict=True):
            if token in stop_ids:
                why[r] = "stop_id"
                continue
            new[r].append(token)
            if stop_strings and (cut := stop_string_cut(new[r][-tail:], stop_strings, decode)) is not None:
                why[r] = "stop_string"
                del new[r][len(new[r]) - cut:]
        return [why[r] == "length" and len(new[r]) < max_new_tokens for r in rows]

    limit, device = model.config.block_size, model.padding_mask.device
    todo = sorted(range(len(prompts)) if max_new_tokens else [], key=lambda r: len(prompts[r]))
    live = [r for r in todo if len(prompts[r]) <= limit]  # place i of the cache holds row live[i]
    longer = [r for r in todo if len(prompts[r]) > limit]
    with packed_weights(model) if max_new_tokens * min(len(todo), 4) >= PACK_FROM else nullcontext():
        if live:
            cache = _new_cache(model, len(live), min(len(prompts[live[-1]]) + max_new_tokens - 1, limit))
            logits = _prefill(model, [prompts[r] for r in live], cache)
        while live:
            going = extend(live, logits)
            fits = [len(prompts[r]) + len(new[r]) <= limit for r in live]
            longer += [r for r, go, fit in zip(live, going, fits, strict=True) if go and not fit]
            live = compact(live, [go and fit for go, fit in zip(going, fits, strict=True)], cache)
            if live:
                ends = [len(prompts[r]) + len(new[r]) - 1 for r in live]
                logits = _decode_step(model, [new[r][-1] for r in live], ends, cache)

        # Once a row is longer than block_size, each token moves all positions: nothing in a cache stays valid.
        at_once = max(1, PREFILL_TOKENS.get(device.type, 2048) // limit)
        for start in range(0, len(longer), at_once):
            rows = longer[start:start + at_once]
            while rows:
                windows = torch.tensor([(prompts[r] + new[r])[-limit:] for r in rows], device=device)
                going = extend(rows, model.head(model.hidden(windows)[:, -1]))
                rows = [r for r, go in zip(rows, going, strict=True) if go]
    return [Completion(*c) for c in zip(new, why, strict=True)]


def _check_generate(model, prompts, max_new_tokens, temperature, top_k, top_p, stop_ids, stop_strings,
                    decode) -> list:
    """The prompts as lists of int; ValueError, in one sentence, for bad input."""
    prompts = prompts.tolist() if isinstance(prompts, torch.Tensor) else prompts
    try:
        prompts = [list(map(index, p)) for p in prompts]
    except TypeError as e:
        raise ValueError("prompts must be lists of whole numbers, one list per prompt, or a (B, T) int64 tensor; "
                         "put a single prompt into a list") from e
    for i, p in enumerate(prompts):
        if not p:
            raise ValueError(f"prompt {i} is empty, there is no token to continue; start from at least one, such "
                             "as <|endoftext|>")
        if not 0 <= min(p) <= max(p) < model.config.vocab_size:
            raise ValueError(f"prompt {i} has ids from {min(p)} to {max(p)}; use ids of at least 0 and below "
                             f"vocab_size {model.config.vocab_size}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; use 0 or more")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; use 0 for greedy or a finite number above it")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; use at least 1, or None for all ids")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; use a number above 0 and up to 1, or None for all ids")
    if isinstance(stop_ids, int):
        raise ValueError(f"stop_ids is {stop_ids}; put it into a list")
    if isinstance(stop_strings, str) or "" in stop_strings:
        raise ValueError(f"stop_strings is {stop_strings!r}; use a list of strings that are not empty")
    if stop_strings and decode is None:
        raise ValueError("stop_strings need the text of the ids; pass decode, a function from ids to text")
    return prompts


def _new_cache(model, rows, width):
    """Keys and values (n_layer, 2, rows, n_head, width, head_dim); column = position in the row. Zeros, because a
    masked column counts with weight 0, and 0 times what memory holds may be nan."""
    c, weight = model.config, model.transformer["wte"].weight
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return weight.new_zeros(c.n_layer, 2, rows, c.n_head, width, c.head_dim, dtype=dtype)


def _prefill(model, prompts, cache):
    """Fills the cache; logits (B, padded_vocab) after each prompt. Prompts, sorted by length, are padded at their
    end, where causal attention does not look; what that leaves in the cache is overwritten before it is seen."""
    device = model.padding_mask.device
    limit = PREFILL_TOKENS.get(device.type, 2048)
    last, start = [], 0
    while start < len(prompts):
        end = start + 1
        while end < len(prompts) and len(prompts[end]) * (end + 1 - start) <= limit:
            end += 1
        rows = prompts[start:end]
        T = len(rows[-1])
        x, rope = model.embed(torch.tensor([p + [p[-1]] * (T - len(p)) for p in rows], device=device))
        for block, (keys, values) in zip(model.transformer["h"], cache[:, :, start:end, :, :T], strict=True):

            def attend(q, k, v, keys=keys, values=values):
                keys.copy_(k)
                values.copy_(v)
                return causal_attention(q, k, v)

            x = block(x, rope, attend)
        ends = torch.tensor([len(p) - 1 for p in rows], device=device)
        last.append(x[torch.arange(len(rows), device=device), ends])
        start = end
    return model.head(model.transformer["ln_f"](torch.cat(last)))


def _decode_step(model, tokens, at, cache):
    """Logits (n, padded_vocab) after n tokens, of positions `at`, in the first n rows of the cache."""
    device = model.padding_mask.device
    n, width = len(tokens), max(at) + 1
    places = torch.tensor(at, device=device)
    seen = None  # (n, 1, 1, width); rows of one length need no mask
    if min(at) < max(at):
        seen = (torch.arange(width, device=device) <= places[:, None])[:, None, None]
        rows = torch.arange(n, device=device)
    x, rope = model.embed(torch.tensor(tokens, device=device)[:, None], positions=places[:, None])
    for block, (keys, values) in zip(model.transformer["h"], cache[:, :, :n, :, :width], strict=True):

        def attend(q, k, v, keys=keys, values=values):
            for old, one in ((keys, k[:, :, 0]), (values, v[:, :, 0])):
                if seen is None:
                    old[:, :, width - 1] = one
                else:
                    old[rows, :, places] = one.to(old.dtype)
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)

        x = block(x, rope, attend)
    return model.head(model.transformer["ln_f"](x[:, 0]))
