"""long_documents.py owns documents longer than a model's block_size: where they come from, and how they are scored.

A document's ids are 1 + n tokens: <|endoftext|> or its first token, then n tokens that are scored, each once. A model
reads them in windows. The first is as long as block_size allows; each further one restarts attention, reads again what
precedes it (block_size - stride tokens) and scores the next stride = block_size / 2. With fast weights (lab/memory.py),
what was written stays when a window restarts, and a chunk is written once, after its score: no token is scored after
anything that contains it was written. CONTROLS names what may stand in place of the writes.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import special

from lab import benchmarks, chunks, files, memory, memory_settings, sources, synthetic
from lab.loss import chunked_cross_entropy, head_gradients
from lab.schema import check
from lab.tokenizer import bos_id, get_tokenizer
from model import seeded_generator

HUB = "emozilla/pg19-test"  # the 100 books of PG-19's test split (arXiv:1911.05507) as parquet
FIRST_EDGE = 64  # tokens: positions are grouped at 64, 128, 256, ...

# ----------------------------------------------------------------------------------------------------------------------
# documents


class Document(NamedTuple):
    id: str
    ids: list[int]  # 1 + n
    sha256: str  # of ids


def sha256_of(ids) -> str:
    return hashlib.sha256(np.asarray(ids, "<u2").tobytes()).hexdigest()


def rows(source: str, columns: tuple[str, ...], length: int, flag: str) -> Iterator[tuple[str, dict]]:
    """(place, row) of parquet and jsonl files, of "synthetic[:n]", texts of at least `length` tokens made on the spot,
    or ("") of PG-19's test books on the hub. flag: what the source was given after."""
    n = sources.synthetic_size(source, 64)
    if n:
        for number in range(n):
            yield f"{source} {number}", {"id": f"synthetic-{number}", "text": long_text(number, length)}
    elif source:
        for path in files.find([source], sources.RECORD_READERS, flag):
            yield from sources.read_records(path, columns)
    else:
        with benchmarks.quiet_hub():
            for number, row in enumerate(sources.hub_records(HUB, None, "test")):
                yield f"{HUB} {number}", row


def long_text(number: int, length: int) -> str:
    """Synthetic documents one after another, at least `length` tokens."""
    parts, left = [], 8 * length  # no synthetic text has more than 8 characters per token
    for text in synthetic.documents(seed=1000 + number):
        parts.append(text)
        left -= len(text)
        if left < 0:
            break
    return "\n".join(parts)


def texts(source: str, column: str, length: int, one_per: str = "",
          flag: str = "--data") -> Iterator[tuple[str, str, dict]]:
    """(id, text, row) of every document. The id is the row's, or its place. ValueError for a row that cannot be read or
    lacks a column; it names the flags --text_column, --one_per and `flag`, the source's."""
    needed = {column: "--text_column"}
    if one_per:
        needed.setdefault(one_per, "--one_per")
    for place, row in rows(source, ("id", *needed), length, flag):
        check(not isinstance(row, sources.BadRecord), f"{row}: repair or remove it.")
        check(isinstance(row, dict), f"{place} is not an object with fields: repair or remove it.")
        for name, own_flag in needed.items():
            check(name in row, f"{place} has no column {name!r}: pass {own_flag} with a name that it has, "
                               f"or another {flag}.")
        text = row[column]
        if not text:
            continue
        check(isinstance(text, str), f"{place} has no text in column {column!r}: pass another --text_column.")
        check(not sources.has_lone_surrogate(text), f"{place} has half a character (a lone surrogate): repair it.")
        yield str(row.get("id") or place.rpartition("/")[2]), text, row


def load(source: str, n: int, length: int, column: str = "text", one_per: str = "", bos: bool = True,
         flag: str = "--data", of_length: str = "--tokens_per_document") -> tuple[list[Document], int]:
    """(the first n documents of at least 1 + length tokens, each cut to them; how many shorter ones came before). What
    begins as an earlier document does is left out.

    one_per: at most one document per value of this column, such as the book of a chapter. flag, of_length: the flags
    that give source and length. ValueError when no document is long enough."""
    start = [bos_id()] if bos else []
    needed = 1 + length - len(start)
    chosen, short, longest, encode = {}, 0, "", get_tokenizer().encode
    groups = set()
    for name, text, row in texts(source, column, 1 + length, one_per, flag):
        if one_per and str(row[one_per]) in groups:
            continue
        ids = []
        if len(text.encode()) >= needed:
            ids = encode(text)
        if len(ids) < needed:
            short, longest = short + 1, max(longest, text, key=len)
            continue
        if one_per:
            groups.add(str(row[one_per]))
        ids = start + ids[:needed]
        sha256 = sha256_of(ids)
        chosen.setdefault(sha256, Document(name, ids, sha256))
        if len(chosen) == n:
            break
    check(chosen, f"{source or HUB} has no document of {needed:,} tokens (the longest has {len(encode(longest)):,}): "
                  f"lower {of_length}, or name another {flag}.")
    return list(chosen.values()), short


def tensors(documents: list[Document], device) -> tuple[torch.Tensor, torch.Tensor]:
    """idx, targets (B, n)."""
    ids = torch.tensor([document.ids for document in documents], device=device)
    return ids[:, :-1], ids[:, 1:]


# ----------------------------------------------------------------------------------------------------------------------
# reading


class Window(NamedTuple):
    """Tokens start to end - 1 are read; those from `first` on are scored."""

    start: int
    first: int
    end: int


def sizes(config) -> tuple[int, int]:
    """(stride, chunk) in tokens: of the windows, and what is written at a time (1 without a memory)."""
    size = 1
    if config.memory != "none":
        size = memory_settings.chunk_size(config)
    return max(size, config.block_size // 2 // size * size), size


def windows(n: int, config) -> Iterator[Window]:
    """The windows of n tokens. All but the last end with a whole chunk."""
    stride, size = sizes(config)
    end = min(n, config.block_size // size * size)
    yield Window(0, 0, end)
    while end < n:
        first, end = end, min(n, end + stride)
        yield Window(first - (config.block_size - stride), first, end)


@contextlib.contextmanager
def test_time(model, multiplier: float = 1.0, write: str = "trained"):
    """Inside, the model's inner_lr is multiplied, and its CMS levels are written as `write` says."""
    config = model.config
    before = config.inner_lr, config.write
    config.inner_lr = multiplier * config.inner_lr
    if write != "trained":
        config.write = write
    try:
        yield
    finally:
        config.inner_lr, config.write = before


def read_and_write(reading: chunks.Reading, idx, targets, write_last: bool = False) -> torch.Tensor:
    """-log p(targets) (B, n) in nats of idx (B, n), with every whole chunk written after its score; the last chunk of
    idx only with write_last, as nothing here reads it. Attention starts anew; what was written before stays."""
    model = reading.model
    c, weight, (_, size) = model.config, model.transformer["wte"].weight, sizes(model.config)
    n, parts = idx.size(1), []
    for start, first, end in windows(n, c):
        reading.restart_window()
        if start < first:
            read_only(reading, idx[:, start:first])
        for left in range(first, end, size):
            part = slice(left, min(left + size, end))
            hidden = reading.read(idx[:, part])
            nll, signal, _ = head_gradients(
                hidden.flatten(0, 1), weight, targets[:, part].flatten(), c.masked_ranges, with_weight=False)
            parts.append(nll.view(len(idx), -1))
            whole = part.stop - left == size
            if whole and (part.stop < n or write_last):
                reading.write(hidden, signal.view(hidden.shape))
            else:
                reading.forget_chunk()
    return torch.cat(parts, 1)


def read_only(reading: chunks.Reading, idx, restart: bool = False):
    """Hidden states (B, n, D) of idx (B, n), which is not written. restart: of attention, before."""
    if restart:
        reading.restart_window()
    hidden = reading.read(idx, for_write=False)
    reading.forget_chunk()
    return hidden


def probe(reading: chunks.Reading, idx, targets) -> torch.Tensor:
    """-log p(targets) (B, n) by what `reading` has written so far (nothing: by the trained weights alone). Nothing is
    written, and reading stays as it is."""
    model, parts = reading.model, []
    c, weight = model.config, model.transformer["wte"].weight
    for start, first, end in windows(idx.size(1), c):
        hidden = read_only(reading.fork(), idx[:, start:end], restart=True)[:, first - start :]
        nll = chunked_cross_entropy(
            hidden.flatten(0, 1), weight, targets[:, first:end].flatten(), c.masked_ranges, reduce=False)
        parts.append(nll.view(len(idx), -1))
    return torch.cat(parts, 1)


def random_steps(keys: list[str]):
    """memory.random_steps with a generator per sequence, so that a batch changes nothing. keys: what they are seeded
    by."""
    alone = [memory.random_steps(seeded_generator(f"random/{key}")) for key in keys]

    def alter(*steps):
        rows = [one(*(g[i : i + 1] for g in steps)) for i, one in enumerate(alone)]
        return tuple(torch.cat(tensors) for tensors in zip(*rows, strict=True))

    return alter


# What is written in place of a step, given the keys of the batch's sequences; static: nothing is.
CONTROLS = {
    "static": None,
    "adapt": lambda keys: None,
    "random": random_steps,
    "other": lambda keys: memory.other_steps,
}


def written_sums(reading: chunks.Reading, n: int) -> dict[str, list[float]]:
    """Of each of n sequences, over all levels: updates (writes of a norm above 0) and update_norm (their norms)."""
    totals = {"updates": torch.zeros(n), "update_norm": torch.zeros(n)}
    for layer in reading.layers.values():
        for fast in layer.by_level.values():
            for name, total in totals.items():
                total += fast.counts.get(name, torch.zeros(n)).cpu()
    return {name: total.tolist() for name, total in totals.items()}


def losses(model, control: str, documents: list[Document]) -> tuple[torch.Tensor, dict]:
    """(nats (B, n) on the CPU, written_sums) of documents of equal length under one of CONTROLS."""
    idx, targets = tensors(documents, model.transformer["wte"].weight.device)
    alter = None
    if control != "static":
        alter = CONTROLS[control]([document.sha256 for document in documents])
    reading = chunks.Reading(model, alter=alter)
    read = probe if control == "static" else read_and_write
    nll = read(reading, idx, targets)
    return nll.cpu(), written_sums(reading, len(documents))


# ----------------------------------------------------------------------------------------------------------------------
# numbers


def edges(n: int) -> list[int]:
    """Borders between groups of positions: 0, 64, 128, 256, ... n."""
    borders, edge = [0], FIRST_EDGE
    while edge < n:
        borders.append(edge)
        edge *= 2
    return [*borders, n]


def sums_by_position(nll) -> list[list[float]]:
    """Of nll (B, n), per sequence: nats summed in fp64 within each of edges(n)."""
    borders = edges(nll.size(1))
    parts = [nll[:, a:b].double().sum(1) for a, b in zip(borders, borders[1:], strict=False)]
    return torch.stack(parts, 1).tolist()


def effect(differences) -> dict:
    """Mean of paired differences, its standard error and 95 % interval (t; None for fewer than two), how many are below
    0, and the largest."""
    d = np.asarray(differences, float)
    n, mean = len(d), float(d.mean())
    result = {"n": n, "mean": mean, "se": None, "interval": None}
    if n > 1:
        se = float(d.std(ddof=1) / np.sqrt(n))
        half = float(special.stdtrit(n - 1, 0.975)) * se
        result |= {"se": se, "interval": [mean - half, mean + half]}
    return result | {"n_below_0": int((d < 0).sum()), "largest": float(d.max())}
