"""trees.py owns trees of token sequences, in which a shared beginning stands once, and attention within them.

lab/inference.py so scores the endings of one context, and of contexts that begin alike, in one forward pass.
"""

import os.path
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lab.processes import to_device

QUERY_ROWS = 64  # nodes whose attention is computed at a time on a CPU (measured)
PAD_TREES = {"cpu": 0, "cuda": 64}  # multiple to which trees are padded to attend together; 0: one after the other
TREE_TOKENS = 4096  # at most in a tree, whose mask has the square of that as entries


class Trees(NamedTuple):
    """Nodes are numbered depth first. A node sees itself and its ancestors: node i sees j when j <= i < ends[j]."""

    tokens: list[int]  # of each node
    depths: list[int]  # of each node: its position in its sequence
    ends: list[int]  # of each node: one more than its last descendant
    spans: list[tuple[int, int]]  # of each tree: its first node and one more than its last
    nodes_of: list[list[int]]  # of each sequence


def grow(sequences: list[list[int]], n_embd: int) -> Trees:
    """In sorted order, a sequence joins the tree of the one before it if this saves FLOPs: per layer 24 C^2 for each
    shared token, against 8 C for each new pair of nodes in the tree's mask."""
    tokens, depths, ends, starts = [], [], [], []
    nodes_of: list[list[int]] = [[]] * len(sequences)
    path, previous = [], []  # the nodes and the tokens of the sequence before
    for s in sorted(range(len(sequences)), key=sequences.__getitem__):
        sequence = sequences[s]
        shared = len(os.path.commonprefix([previous, sequence]))  # which takes lists as well as paths
        new = len(sequence) - shared
        size = len(tokens) - starts[-1] if starts else 0
        costly = 3 * n_embd * shared <= size * new or size + new > TREE_TOKENS
        if not starts or (new and costly):
            starts.append(len(tokens))
            shared, new = 0, len(sequence)
        for node in path[shared:]:
            ends[node] = len(tokens)
        path = path[:shared] + list(range(len(tokens), len(tokens) + new))
        tokens += sequence[shared:]
        depths += range(shared, len(sequence))
        ends += [0] * new
        nodes_of[s], previous = path, sequence
    for node in path:
        ends[node] = len(tokens)
    return Trees(tokens, depths, ends, list(pairwise([*starts, len(tokens)])), nodes_of)


def visible(queries, keys, ends):
    """bool (..., i, j): whether node queries[..., i] sees node keys[..., j]."""
    queries, before = queries.unsqueeze(-1), keys.unsqueeze(-2)
    return (before <= queries) & (queries < ends[keys].unsqueeze(-2))


class Groups(NamedTuple):
    """Trees of about the same size attend together, padded to one width; on the CPU."""

    widths: list[tuple[int, int]]  # of each group: keys, queries
    ranges: list[torch.Tensor]  # of each group: (first key, keys, first query, queries) of each tree, (4, trees)
    real: list[torch.Tensor]  # of each group: places of its queries in its padded ones
    order: torch.Tensor  # (R,): where each query is among those of all groups, one group after the other


class Pass(NamedTuple):
    """What a forward pass over sequences and their endings needs, made by the host; tensors on the CPU."""

    spans: list[tuple[int, int]]
    tokens: torch.Tensor  # (N,), as depths and ends: see Trees
    depths: torch.Tensor
    ends: torch.Tensor
    queries: torch.Tensor  # (R,) nodes that predict a token of an ending, ascending
    row_of: torch.Tensor  # (E,) the row of queries that predicts each token of the endings
    targets: torch.Tensor  # (E,) these tokens
    lengths: list[int]  # of each ending
    everywhere: Groups | None  # for the attention of all nodes and of `queries`, where trees are padded
    predicting: Groups | None


def plan(pairs: list[tuple], n_embd: int, device: str) -> Pass:
    """The forward pass that scores all pairs (tokens the model sees, of which the last are the ending's, ending)."""
    grown = grow([seen[:-1] for seen, _ in pairs], n_embd)
    predictors, targets, lengths = [], [], []
    for nodes, (_, ending) in zip(grown.nodes_of, pairs, strict=True):
        predictors += nodes[-len(ending) :]
        targets += ending
        lengths.append(len(ending))
    queries, row_of = torch.tensor(predictors).unique(return_inverse=True)
    everywhere = predicting = None
    if pad := PAD_TREES.get(device, PAD_TREES["cuda"]):
        everywhere = _group(grown.spans, torch.arange(len(grown.ends)), pad)
        predicting = _group(grown.spans, queries, pad)
    tokens, depths, ends = map(torch.tensor, (grown.tokens, grown.depths, grown.ends))
    return Pass(
        grown.spans, tokens, depths, ends, queries, row_of, torch.tensor(targets), lengths, everywhere, predicting)


def attention(spans, ends, rows, groups: Groups | None):
    """The `attend` of a Context for trees in one row: q (1, H, R, dh) of the nodes `rows` (R,), ascending; k and v
    (1, H, N, dh) of all nodes. ends (N,) and rows on q's device."""
    if groups is not None:
        return _attend_padded(ends, rows, groups)
    pieces = []  # (which of q, which of k and v, mask)
    for first, last in spans:
        start, stop = torch.searchsorted(rows, torch.tensor([first, last])).tolist()
        for at in range(start, stop, QUERY_ROWS):
            queries = slice(at, min(at + QUERY_ROWS, stop))
            keys = slice(first, int(rows[queries][-1]) + 1)  # depth first: no node sees a later one
            mask = visible(rows[queries], torch.arange(keys.start, keys.stop), ends)
            pieces.append((queries, keys, mask[None, None]))

    def attend(q, k, v):
        outputs = []
        for queries, keys, mask in pieces:
            y = F.scaled_dot_product_attention(q[:, :, queries], k[:, :, keys], v[:, :, keys], mask)
            outputs.append(y.transpose(1, 2))
        return torch.cat(outputs, 1).transpose(1, 2)

    return attend


def _group(spans, rows, pad: int) -> Groups:
    """Groups of the trees `spans` in the attention of rows (R,), ascending, for widths that are multiples of pad."""
    bounds = torch.tensor([first for first, _ in spans] + [spans[-1][1]])
    starts = torch.searchsorted(rows, bounds).tolist()
    groups = {}
    for (first, last), (start, stop) in zip(spans, pairwise(starts), strict=True):
        n_keys, n_queries = last - first, stop - start
        widths = -(-n_keys // pad) * pad, -(-n_queries // pad) * pad
        groups.setdefault(widths, []).append((first, n_keys, start, n_queries))
    ranges, all_real, places = [], [], []
    for (_, width), group in groups.items():
        ranges.append(torch.tensor(group).T.contiguous())
        queries, real = _stack_ranges(*ranges[-1][2:], width)
        all_real.append(real.flatten().nonzero()[:, 0])
        places.append(queries[real])
    return Groups(list(groups), ranges, all_real, torch.cat(places).argsort())


def _attend_padded(ends, rows, groups: Groups):
    """In few launches, none of which waits for the device."""
    pieces, order = [], to_device(groups.order, rows.device)
    for widths, ranges, real in zip(groups.widths, groups.ranges, groups.real, strict=True):
        first, n_keys, start, n_queries = to_device(ranges, rows.device)
        keys, real_keys = _stack_ranges(first, n_keys, widths[0])
        queries, _ = _stack_ranges(start, n_queries, widths[1])
        mask = visible(rows[queries], keys, ends) & real_keys[:, None]
        pieces.append((queries, keys, mask[:, None], to_device(real, rows.device)))

    def attend(q, k, v):
        q, k, v = (z[0].transpose(0, 1) for z in (q, k, v))  # (N, H, dh)
        outputs = []
        for queries, keys, mask, real in pieces:
            q_piece, k_piece, v_piece = (z.transpose(1, 2) for z in (q[queries], k[keys], v[keys]))
            y = F.scaled_dot_product_attention(q_piece, k_piece, v_piece, mask)
            outputs.append(y.transpose(1, 2).flatten(0, 1)[real])
        return torch.cat(outputs)[order].transpose(0, 1)[None]

    return attend


def _stack_ranges(firsts, sizes, width):
    """A matrix (ranges, width) of first .. first + size - 1, padded with the last; and the mask of real entries."""
    column, size = torch.arange(width, device=firsts.device), sizes[:, None]
    return firsts[:, None] + torch.minimum(column, size - 1), column < size
