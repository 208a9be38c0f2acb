"""tokenizing.py owns the map of the prepare scripts: documents -> batches of tokens, each on its own.

    for batch in tokenized_batches(args, source, start=0):     # in document order, whatever --num_proc
        batch.ids, batch.lengths, batch.selected               # see Tokenized

Everything here follows from a document alone. What depends on the documents before it (the cap of the held-out set,
duplicates of it, --target_tokens, packing) is decided afterwards, one batch after the other, in prepare_fineweb.py.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

import inject_mul
from lab import decontaminate, shards, sources
from lab.byte_pairs import Tokenizer
from lab.tokenizer import (
    BOS_ID,
    MulFactTokens,
    get_tokenizer,
    gpt2_tokenizer,
    special_texts,
)

IN_FLIGHT_BYTES = 2**25  # text that workers hold at once, however many they are
MAX_WORKERS = 16  # that one reader can feed; each holds 27 MB of gigatoken's tables and as much cache (measured)
# a text without any of these holds no product
SIGNS = [re.compile(sign.pattern.encode()) for sign in inject_mul.SIGNS]


class Tokenized(NamedTuple):
    """A batch of n documents as tokens; the unusable ones are in `bad` only."""

    ids: np.ndarray  # uint16 (N,): BOS and tokens of each document
    numbers: np.ndarray  # int64 (n,): which documents
    lengths: np.ndarray  # int64 (n,): tokens with BOS
    baseline_tokens: np.ndarray  # int64 (n,): the same in plain GPT-2 BPE
    utf8_bytes: np.ndarray  # int64 (n,)
    digests: list[bytes]
    selected: np.ndarray  # bool (n,): belongs to the held-out share by its hash, or by its group's
    mul_bytes: dict[int, list[int]]  # document -> original UTF-8 bytes behind each mul token
    hits: dict[int, list[str]]  # document -> benchmark items that contaminate it
    special: dict[str, list[int]]  # special token that stands in a text -> documents
    bad: list[tuple[int, str]]  # (number, why)
    end: int  # number of the document after the batch


def cut_at_products(texts: list[bytes], mode: str) -> tuple[list[bytes], list[int], dict]:
    """Cut documents at their products, which the injector finds in a mode, weak or strict.

    Returns the pieces of text, the special id before each (BOS or a product's), and {document: original UTF-8 bytes of
    each of its products}."""
    injector = inject_mul.MulExpressionInjector(mode)
    pieces, specials, mul_bytes = [], [], {}
    for i, utf8 in enumerate(texts):
        specials.append(BOS_ID)
        if any(sign.search(utf8) for sign in SIGNS):
            text, last = utf8.decode(), 0
            for start, end, a, b in injector.spans(text):
                pieces.append(text[last:start].encode())
                specials.append(MulFactTokens.id_of(a, b))
                mul_bytes.setdefault(i, []).append(len(text[start:end].encode()))
                last = end
            utf8 = text[last:].encode()
        pieces.append(utf8)
    return pieces, specials, mul_bytes


def tokenize(first: int, documents: list[bytes | str], backend: str, inject: str | None,
             val_fraction: float, guard: decontaminate.Guard | None = None) -> Tokenized:
    """One item of `read_batches` -> Tokenized. A pure function, so that any number of workers gives the same bytes."""
    tokenizer = get_tokenizer(backend)
    numbered = list(enumerate(documents, first))
    bad = [(number, why) for number, why in numbered if isinstance(why, str)]
    numbers = [number for number, document in numbered if isinstance(document, bytes)]
    texts = [document for document in documents if isinstance(document, bytes)]
    hits = guard.hits_batch(texts) if guard else {}

    # every piece of text is tokenised on its own and follows a special id
    pieces, specials, mul_bytes = texts, [tokenizer.bos_id] * len(texts), {}
    if inject:
        pieces, specials, mul_bytes = cut_at_products(texts, inject)
    tokens, piece_lengths = tokenizer.encode_batch(pieces)
    special_at = np.cumsum(piece_lengths) - piece_lengths + np.arange(len(pieces))
    ids = np.empty(len(tokens) + len(pieces), np.uint16)
    is_text = np.ones(len(ids), bool)
    is_text[special_at] = False
    ids[is_text] = tokens
    ids[special_at] = specials

    starts = np.flatnonzero(ids == tokenizer.bos_id)  # a text never becomes BOS
    lengths = np.diff(starts, append=len(ids))
    baseline_tokens = lengths.copy()
    utf8_bytes = np.array([len(text) for text in texts], np.int64)
    if texts and not tokenizer.is_gpt2:
        refuse_changed_text(tokenizer, tokens, piece_lengths, texts, numbers)
        _, plain_lengths = gpt2_tokenizer(backend).encode_batch(texts)
        baseline_tokens = plain_lengths + 1
    if mul_bytes:
        _, plain_lengths = tokenizer.encode_batch([texts[i] for i in mul_bytes])
        baseline_tokens[list(mul_bytes)] = plain_lengths + 1
    digests = [shards.document_hash(text) for text in texts]
    decide = [shards.document_hash(getattr(text, "group", text)) for text in texts]
    selected = shards.is_held_out(decide, val_fraction)
    return Tokenized(ids, np.array(numbers, np.int64), lengths, baseline_tokens, utf8_bytes, digests,
                     selected, mul_bytes, hits, special_texts(texts), bad,
                     end=first + len(documents))


def refuse_changed_text(tokenizer: Tokenizer, tokens: np.ndarray, lengths: np.ndarray,
                        texts: list[bytes], numbers: list[int]) -> None:
    """ValueError for the first document that is not what its tokens say. lengths: tokens of each."""
    if tokenizer.decode_bytes(tokens) == b"".join(texts):
        return
    for number, text, own in zip(numbers, texts, np.split(tokens, np.cumsum(lengths)[:-1]), strict=True):
        if tokenizer.decode_bytes(own) != text:
            raise ValueError(f"document {number:,} is not what its tokens say, so the tokenizer changes a "
                             "text: name another --tokenizer.")


def tokenized_batches(args, source: sources.Source, start: int, guard=None) -> Iterator[Tokenized]:
    """Batches in document order; at most 2 x num_proc, or IN_FLIGHT_BYTES of text, or one, in memory."""
    settings = (args.tokenizer_backend, args.inject, args.val_fraction, guard)
    if args.num_proc == 1:
        for first, documents in sources.read_batches(source, start):
            yield tokenize(first, documents, *settings)
        return
    workers = min(args.num_proc, MAX_WORKERS)
    pool, pending, in_flight = ThreadPoolExecutor(max_workers=workers), deque(), 0
    try:
        for first, documents in sources.read_batches(source, start):
            size = sum(map(len, documents))
            while pending and (len(pending) == 2 * workers or in_flight + size > IN_FLIGHT_BYTES):
                finished, future = pending.popleft()
                in_flight -= finished
                yield future.result()
            pending.append((size, pool.submit(tokenize, first, documents, *settings)))
            in_flight += size
        while pending:
            yield pending.popleft()[1].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def joined(batches: Iterator[Tokenized], tokens: int) -> Iterator[Tokenized]:
    """The same documents in batches of at least `tokens` tokens, but for the last."""
    waiting, n = [], 0
    for batch in batches:
        waiting.append(batch)
        n += len(batch.ids)
        if n >= tokens:
            yield join(waiting)
            waiting, n = [], 0
    if waiting:
        yield join(waiting)


def join(batches: list[Tokenized]) -> Tokenized:
    """Batches that follow each other as one."""
    columns = {name: np.concatenate([getattr(batch, name) for batch in batches])
               for name in ("ids", "numbers", "lengths", "baseline_tokens", "utf8_bytes", "selected")}
    digests, mul_bytes, hits, special, bad = [], {}, {}, {}, []
    for batch in batches:
        before = len(digests)  # documents of the batches before
        digests += batch.digests
        mul_bytes |= {i + before: items for i, items in batch.mul_bytes.items()}
        hits |= {i + before: items for i, items in batch.hits.items()}
        for literal, documents in batch.special.items():
            special.setdefault(literal, []).extend(i + before for i in documents)
        bad += batch.bad
    return Tokenized(**columns, digests=digests, mul_bytes=mul_bytes, hits=hits, special=special, bad=bad,
                     end=batches[-1].end)


def between(batch: Tokenized, start: int, stop: int) -> Tokenized:
    """The documents of a batch whose numbers lie in [start, stop)."""
    first, last = np.searchsorted(batch.numbers, (start, stop)).tolist()
    kept = slice(first, last)
    bounds = np.cumsum([0, *batch.lengths])
    of_kept = lambda table: {i - first: value for i, value in table.items() if first <= i < last}
    special = {literal: [i - first for i in documents if first <= i < last]
               for literal, documents in batch.special.items()}
    return Tokenized(
        batch.ids[bounds[first] : bounds[last]], batch.numbers[kept], batch.lengths[kept], batch.baseline_tokens[kept],
        batch.utf8_bytes[kept], batch.digests[kept], batch.selected[kept], of_kept(batch.mul_bytes),
        of_kept(batch.hits), special, [(number, why) for number, why in batch.bad if start <= number < stop],
        end=min(batch.end, stop))
