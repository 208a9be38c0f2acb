"""data_order.py owns the order of data: which sequences step s reads, on any number of ranks, and what is scored.

Position is a pure function of (dataset fingerprint, seed, step). Sequences are numbered over all shards; epoch e visits
them in a permutation of its own. Step s takes entries [s*S, (s+1)*S) of the epochs laid end to end, where S =
total_batch_tokens / seq_len; ranks and micro-batches cut that list by arithmetic. So the tokens of step s are the same
for any world size and micro-batch size and after any resume, every sequence is read once per epoch, and no loader state
is saved. Callers: train_gpt.py, sft.py, experiments/bench/loader.py.

A *sequence* is seq_len + 1 tokens of the data, by number; an *entry* is a place in the epochs laid end to end.
"""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

IGNORE = -100  # target that is not scored
ORDERS = ("shuffled", "sequential")


def epoch_order(fingerprint: str, seed: int, epoch: int, n: int, data_order="shuffled") -> np.ndarray:
    """Order in which an epoch visits its n sequences: uint32 (n,), a permutation of 0..n-1.

    Sorting raw Philox words, whose stream numpy guarantees, keeps the order the same for every numpy version
    (`Generator.permutation` may change, NEP 19)."""
    if data_order == "sequential":
        return np.arange(n, dtype=np.uint32)
    key = hashlib.sha256(f"{fingerprint}|{seed}|{epoch}".encode()).digest()
    words = np.random.Philox(key=np.frombuffer(key[:16], np.uint64)).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.uint32)


@functools.cache
def _checksum_weights(width: int) -> np.ndarray:
    return np.random.Philox(key=20240520).random_raw(width).view(np.int64) | 1


def token_checksum(sequences: np.ndarray, first_position: int) -> int:
    """64-bit checksum of sequences int64 (N, width) that stand at positions first_position.. of a step's list.

    A multilinear hash per sequence (random odd weights, modulo 2**64), mixed with its position by splitmix64's
    finaliser, summed: the sums of all ranks add up, modulo 2**64, to the checksum of the whole step. 4 to 7 times the
    speed of blake2b or crc32 (measured), so that the proof costs less than reading."""
    z = np.einsum("ij,j->i", sequences, _checksum_weights(sequences.shape[1])).view(np.uint64)
    positions = np.arange(first_position + 1, first_position + 1 + len(z), dtype=np.uint64)
    z = z + positions * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return int((z ^ (z >> np.uint64(31))).sum(dtype=np.uint64))


class StepLoader:
    """Reads this rank's share of each step, `num_workers` threads ahead (0: in the calling thread).

    files: shards.TokenFiles. Iterate with `next_step()` from `start_step` on; it returns a dict with
    "tokens" int64 tensor (S / world_size, seq_len + 1) on the CPU (pinned when asked), "sequences" their numbers,
    "epochs" of each, "checksum" of this rank's share."""

    def __init__(self, files, *, seq_len: int, sequences_per_step: int, seed: int, data_order="shuffled",
                 rank=0, world_size=1, start_step=0, stop_step: int | None = None, num_workers=1,
                 pin_memory=False):
        self.files, self.seq_len, self.per_step = files, seq_len, sequences_per_step
        self.seed, self.data_order = seed, data_order
        self.n = files.n_sequences(seq_len)
        self.share = sequences_per_step // world_size
        self.offset = rank * self.share
        self.pin_memory = pin_memory
        self.step = start_step
        self._orders, self._lock = {}, threading.Lock()
        self._pool = None
        if num_workers:
            self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="loader")
        self._ahead: deque = deque()
        self._depth = num_workers + 1
        self._next_submitted = start_step
        self._stop_step = math.inf if stop_step is None else stop_step

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._orders:
                recent = {e: order for e, order in self._orders.items() if e >= epoch - 1}  # two at most
                recent[epoch] = epoch_order(self.files.fingerprint, self.seed, epoch, self.n, self.data_order)
                self._orders = recent
            return self._orders[epoch]

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, sequence numbers) that this rank reads in a step, int64 (share,) each."""
        first = step * self.per_step + self.offset
        epochs, places = np.divmod(first + np.arange(self.share, dtype=np.int64), self.n)
        sequences = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():  # one, or more where a step straddles epochs
            here = epochs == epoch
            sequences[here] = self._order(epoch)[places[here]]
        return epochs, sequences

    def read_step(self, step: int) -> dict:
        """The batch of any step (see the class)."""
        epochs, sequences = self.positions(step)
        shape = self.share, self.seq_len + 1
        tokens = torch.empty(shape, dtype=torch.int64, pin_memory=self.pin_memory)
        array = self.files.read(sequences, self.seq_len, out=tokens.numpy())
        checksum = token_checksum(array, self.offset)
        return {"step": step, "tokens": tokens, "sequences": sequences, "epochs": epochs, "checksum": checksum}

    def start(self) -> None:
        """Waits for the first batch, so that no step's time holds the making of the epoch's order, which takes 3 s for
        10 million sequences (measured). Without threads, for the order alone."""
        if self.step >= self._stop_step:
            return
        if self._pool is None:
            self.positions(self.step)
            return
        self._read_ahead()
        self._ahead[0].result()

    def _read_ahead(self) -> None:
        while len(self._ahead) < self._depth and self._next_submitted < self._stop_step:
            self._ahead.append(self._pool.submit(self.read_step, self._next_submitted))
            self._next_submitted += 1

    def next_step(self) -> dict:
        """The next step's batch; reading goes on in the background."""
        step, self.step = self.step, self.step + 1
        if self._pool is None:
            return self.read_step(step)
        self._read_ahead()
        return self._ahead.popleft().result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


# ----------------------------------------------------------------------------------------------------------------------
# validation rows


def val_rows(val: dict, seq_len: int, view: str, bos_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that a view scores: (starts, lengths) int64 into val["tokens"], lengths 2..seq_len + 1, as a row's first
    token is never scored.

    "stream": windows of seq_len + 1 with stride seq_len, so every token but the first is scored once.
    "bos": the first seq_len + 1 tokens of each document that starts with BOS, alone in its row."""
    n = len(val["tokens"])
    if view == "stream":
        starts = np.arange(0, max(n - 1, 0), seq_len, dtype=np.int64)
        return starts, np.minimum(seq_len + 1, n - starts)
    starts = np.asarray(val["doc_starts"], np.int64)
    lengths = np.minimum(np.diff(np.append(starts, n)), seq_len + 1)
    keep = (val["tokens"][starts] == bos_id) & (lengths >= 2)
    return starts[keep], lengths[keep]


def val_batches(val: dict, starts: np.ndarray, lengths: np.ndarray, batch_size: int, multiple=1):
    """Yield (x, y, where) over rows, longest first so that little is padding: x, y int64 (B, T'), y = -100 where there
    is nothing to score; `where` int64 (B, T') is each target's position in val["tokens"]. T' is a multiple of
    `multiple`, or that of the longest row."""
    order = np.argsort(-lengths, kind="stable")
    for i in range(0, len(order), batch_size):
        rows = order[i : i + batch_size]
        width = -(-(lengths[rows].max() - 1) // multiple) * multiple + 1
        where = starts[rows, None] + np.arange(min(width, lengths.max()))
        inside = np.arange(where.shape[1]) < lengths[rows, None]
        tokens = val["tokens"][np.minimum(where, len(val["tokens"]) - 1)].astype(np.int64)
        tokens[~inside] = 0
        x = np.ascontiguousarray(tokens[:, :-1])
        y = np.ascontiguousarray(np.where(inside, tokens, IGNORE)[:, 1:])
        yield torch.from_numpy(x), torch.from_numpy(y), where[:, 1:]
