"""prepare_bos_rows.py owns the packer: documents -> rows of seq_len + 1 tokens that each start with BOS (000, 001).

    python prepare_bos_rows.py --dataset HuggingFaceFW/fineweb-edu --config sample-10BT --split train \\
        --text_field text --tokenizer gpt2 --out_dir fineweb_edu_10B_bosrow --seq_len 1024 --num_proc 16
    python prepare_bos_rows.py --dataset 'corpus/*.parquet' --overflow requeue --out_dir data/rows --num_proc 4
    python prepare_bos_rows.py --dataset synthetic --target_tokens 2_000_000 --seq_len 128 --out_dir data/toy_rows

Reads and writes what prepare_fineweb.py does, with the same val files; only the train shards are rows. The same parts
of a corpus (--part i/n) make both kinds, of any --seq_len and --overflow, with --merge. Document 001: a
buffer holds `--buffer_docs` tokenised documents. Take the longest that fits into the row, again and again; when none
fits, take the shortest, copy what fits and drop the rest; of equals the earliest. Before each choice the buffer is
refilled. When the source has ended the buffer runs empty, and an unfinished last row is dropped.

nanochat's loader is the same algorithm with another refill: where fewer than 1,000 documents wait, it
adds 128 of them at once. --refill 128 gives its rows, on the same documents in the same order.

A document longer than a row is the shortest only when all others are longer still, so such documents pile up in the
buffer and crowd out those that would fit: cropping climbs during the pass (see the report by decile). `--overflow`:
    crop      the algorithm as published (default)
    split     first cut documents into pieces of a row, each with a BOS of its own; a piece counts as a document
    requeue   split, and what is left over at the end of a row goes back, with a BOS of its own; nothing is cropped
--resume after a kill gives the same bytes as an uninterrupted run.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import re
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

import prepare_fineweb
from lab import disk, flags, processes, shards
from lab.schema import COUNT, NUMBER, TEXT
from lab.token_files import require
from lab.tokenizer import bos_id, get_tokenizer

REPORT_BINS = 2000  # the report's resolution: a decile's edge is off by at most 0.1 % of the rows; even
BUFFER_NAMES = re.compile(r"packer_buffer_\d{6,}\.tmp(\.tmp)?")  # twice .tmp: killed in writing
# beyond is a warning: share of tokens cropped; largest over smallest mean length of documents by decile
MAX_CROP, MAX_DRIFT = 0.2, 2.0
BLOCK_TOKENS = 2**20  # rows handed to the writer at once; bounds temporary arrays


class BestFit:
    """Decides which documents share a row: row for row, ties included, what a scan of the whole buffer would decide.

    Documents are opaque. They wait in a queue per length; one integer has bit n set when a document of n tokens waits,
    and lengths beyond a row are in a heap. So a document costs O(1) operations, or O(log buffer) if longer than a row.

    cut(document, room) -> (what the row gets, what goes back into the buffer or None to drop it); what goes back has
    one token more than was left over: its BOS.
    Attributes: open, the pieces of the unfinished row; room, the tokens it lacks; waiting, documents in the buffer.
    """

    def __init__(self, row_tokens: int, buffer_docs: int, cut: Callable, refill: int = 1):
        self.row_tokens, self.buffer_docs, self.cut = row_tokens, buffer_docs, cut
        self.refill, self.added = refill, 0  # documents added at once; so far, of the present batch
        self.queues = defaultdict(deque)  # length -> documents in order of arrival
        self.mask = 0  # bit n: a document of n tokens waits, n up to row_tokens
        self.beyond = []  # lengths of waiting documents longer than a row, each once: a heap
        self.waiting, self.too_long = 0, 0  # documents in the buffer; of them longer than a row
        self.open, self.room = [], row_tokens

    def add(self, documents: Iterable[tuple[int, object]], last: bool = False) -> tuple[list, list[tuple]]:
        """Pass documents (length >= 1, document) through the buffer; `last` empties it.

        Returns the finished rows: (the pieces of all of them, one after the other; per row (its pieces, tokens cropped,
        documents longer than a row, documents in the buffer), the last two as its last document was chosen).
        """
        # local names, because this loop runs once per document
        row_tokens, buffer_docs, queues, beyond = self.row_tokens, self.buffer_docs, self.queues, self.beyond
        pieces, room, mask, waiting, too_long = self.open, self.room, self.mask, self.waiting, self.too_long
        refill, added = self.refill, self.added
        rows, begun = [], 0  # begun: where the open row starts in pieces
        if last:
            documents = itertools.chain(documents, [(0, None)])
        for n, document in documents:
            if n == room == row_tokens and waiting + 1 == buffer_docs and refill == 1:
                # it would be chosen at once: the longest that fits, after the earlier ones of its length
                queue = queues[n]
                if queue:
                    queue.append(document)
                    document = queue.popleft()
                pieces.append(document)
                rows.append((1, 0, too_long, buffer_docs))
                begun += 1
                continue
            if n == 0:  # the end: from here on the buffer runs empty
                buffer_docs = 1
            else:
                queue = queues[n]
                if n > row_tokens:
                    too_long += 1
                    if not queue:
                        heapq.heappush(beyond, n)
                elif not queue:
                    mask |= 1 << n
                queue.append(document)
                waiting += 1
                added += 1
                if added < refill:  # the batch is not whole yet
                    continue
                added = 0
            while waiting >= buffer_docs:
                waiting -= 1
                fitting = mask
                if room != row_tokens:
                    fitting = mask & ((2 << room) - 1)
                if fitting:
                    n = fitting.bit_length() - 1  # the longest
                    queue = queues[n]
                    pieces.append(queue.popleft())
                    if not queue:
                        mask ^= 1 << n
                    room -= n
                    if room:
                        continue
                    rows.append((len(pieces) - begun, 0, too_long, waiting + 1))
                else:
                    if mask:
                        n = (mask & -mask).bit_length() - 1  # the shortest
                    else:
                        n = beyond[0]
                    queue = queues[n]
                    piece, rest = self.cut(queue.popleft(), room)
                    pieces.append(piece)
                    cropped = n - room
                    if rest:
                        cropped = 0
                    rows.append((len(pieces) - begun, cropped, too_long, waiting + 1))
                    if n > row_tokens:
                        too_long -= 1
                        if not queue:
                            del queues[heapq.heappop(beyond)]
                    elif not queue:
                        mask ^= 1 << n
                    if rest:
                        n = n - room + 1
                        queues[n].append(rest)
                        mask |= 1 << n
                        waiting += 1
                begun, room = len(pieces), row_tokens
        self.open, self.room, self.mask = pieces[begun:], room, mask
        self.waiting, self.too_long, self.added = waiting, too_long, added
        return pieces[:begun], rows

    def buffered(self) -> list[tuple[int, object]]:
        """(length, document) of the buffer; equal lengths in order of arrival, which is all that later choices need."""
        return [(n, document) for n, queue in self.queues.items() for document in queue]

    def restore(self, buffered: Iterable[tuple[int, object]], pieces: list, room: int,
                added: int = 0) -> None:
        """Continue from what `buffered`, `open`, `room` and `added` were."""
        buffer_docs, self.buffer_docs = self.buffer_docs, sys.maxsize
        self.add(buffered)
        self.buffer_docs, self.open, self.room, self.added = buffer_docs, pieces, room, added


class RowTrain:
    """The train side of prepare_fineweb.prepare: documents of uint16 bytes through BestFit into the writer."""

    SUMMARY = {
        "overflow": TEXT, "row_tokens": COUNT, "rows_written_total": COUNT,
        "tokens_cropped_total": COUNT, "crop_fraction": NUMBER, "bos_added_total": COUNT,
        "packing_report": [{
            "first_row": COUNT, "rows": COUNT, "documents_per_row": NUMBER, "crop_fraction": NUMBER,
            "buffer_share_longer_than_row": NUMBER, "mean_document_tokens": NUMBER,
        }],
    }

    def __init__(self, args: argparse.Namespace):
        prepare_fineweb.check_at_least(
            args, seq_len=1, batch_docs=1, buffer_docs=1, shard_rows=0, refill=1)
        self.row_tokens = args.seq_len + 1
        shard_rows = args.shard_rows or args.shard_tokens // self.row_tokens
        require(shard_rows,
                f"--shard_tokens {args.shard_tokens} is less than one row of {self.row_tokens} tokens",
                "raise it, or pass --shard_rows")
        self.shard_tokens = shard_rows * self.row_tokens  # of train shards
        self.settings = {  # what decides the bytes; also fields of meta.json
            "format": "bos_row_packed_bestfit", "seq_len": args.seq_len, "row_tokens": self.row_tokens,
            "packing_algo": f"bestfit_{args.overflow}", "overflow": args.overflow,
            "buffer_docs": args.buffer_docs, "shard_rows": shard_rows,
        }
        if args.refill > 1:  # datasets of before have no such setting
            self.settings["refill"] = args.refill
        self.args, self.shard_rows = args, shard_rows
        self.packer = BestFit(self.row_tokens, args.buffer_docs, self._cut, args.refill)
        self.token_bytes = get_tokenizer(args.tokenizer_backend).token_byte_lengths()
        self.bos = np.array([bos_id()], "<u2").tobytes()
        self.bos_added, self.rows, self.commits = 0, 0, 0
        self.cropped = []  # what _cut dropped and text_bytes still counts
        # UTF-8 bytes of all documents so far, less those cropped or counted in a shard
        self.text_bytes = 0
        self.bins, self.bin_rows = np.zeros((REPORT_BINS, 4), np.int64), 1  # for packing_report

    def add(self, writer, ids: np.ndarray, lengths: np.ndarray, utf8_bytes: np.ndarray) -> None:
        """Documents as they come: ids (N,), tokens and original bytes per document."""
        data, n_tokens = ids.astype("<u2", copy=False).tobytes(), lengths.tolist()
        text_bytes = self._text_bytes(ids, lengths, utf8_bytes).tolist()
        at = 0
        for first in range(0, len(n_tokens), self.args.batch_docs):
            batch = slice(first, first + self.args.batch_docs)
            finished = self.packer.add(self._documents(data, at, n_tokens[batch]))
            self.text_bytes += sum(text_bytes[batch])
            self._write(writer, *finished)
            at += 2 * sum(n_tokens[batch])

    def _text_bytes(self, ids: np.ndarray, lengths: np.ndarray, utf8_bytes: np.ndarray) -> np.ndarray:
        """UTF-8 bytes of what may be written of each document, as its tokens say.

        Those are its own bytes, but where it holds a product, which a text can write in more than
        one way, or is to be cropped. Only there each token is looked up: for all documents that
        took a fifth of the time."""
        starts = np.cumsum(lengths) - lengths
        if ids.max(initial=0) >= get_tokenizer().first_mul_id:
            utf8_bytes = np.add.reduceat(self.token_bytes.take(ids), starts, dtype=np.uint32)
        if self.args.overflow == "crop":
            beyond = np.flatnonzero(lengths > self.row_tokens)
            if len(beyond):
                begins = starts[beyond].tolist()
                kept = np.stack([ids[start : start + self.row_tokens] for start in begins])
                utf8_bytes = utf8_bytes.copy()
                utf8_bytes[beyond] = self.token_bytes.take(kept).sum(1)
        return utf8_bytes

    def _look_up(self, pieces: list) -> int:
        """UTF-8 bytes of pieces, as their tokens say."""
        return int(self.token_bytes.take(np.frombuffer(b"".join(pieces), "<u2")).sum())

    def _documents(self, data: bytes, at: int, lengths: list[int]) -> Iterator[tuple[int, bytes]]:
        """(length, tokens) as they enter the buffer; of one to be cropped, no more than a row may ever use."""
        row_tokens, crop = self.row_tokens, self.args.overflow == "crop"
        row, step = 2 * row_tokens, 2 * self.args.seq_len  # bytes of a row; of a further piece, without its BOS
        for n in lengths:
            end = at + 2 * n
            if n <= row_tokens:
                yield n, data[at:end]
            elif crop:
                yield n, data[at : at + row]
            else:
                yield row_tokens, data[at : at + row]
                whole, rest = divmod(end - at - row, step)  # further pieces of a row; bytes behind them
                behind = end - rest
                for start in range(at + row, behind, step):
                    yield row_tokens, self.bos + data[start : start + step]
                self.bos_added += whole
                if rest:
                    self.bos_added += 1
                    yield rest // 2 + 1, self.bos + data[behind:end]
            at = end

    def _cut(self, document: bytes, room: int) -> tuple[bytes, bytes | None]:
        if self.args.overflow != "requeue":
            self.cropped.append(document[2 * room :])
            return document[: 2 * room], None
        self.bos_added += 1
        return document[: 2 * room], self.bos + document[2 * room :]

    def _write(self, writer, pieces: list[bytes], rows: list[tuple], last: bool = False) -> None:
        """Finished rows, as BestFit.add returns them, into the writer and into the report.

        A shard's bytes of text are those of all documents so far, less what is cropped, waits, or
        was counted before. So only as a shard ends is each token of what waits looked up, and of
        these rows."""
        self.text_bytes -= self._look_up(self.cropped)
        self.cropped.clear()
        shard_ends = last or self.rows % self.shard_rows + len(rows) >= self.shard_rows
        if shard_ends:
            waiting = [document for _, document in self.packer.buffered()]
            before = self.text_bytes - self._look_up(waiting + self.packer.open + pieces)
            if before:
                writer.count_text("train", before)
                self.text_bytes -= before
        if not rows:
            return
        figures = np.fromiter(itertools.chain.from_iterable(rows), np.int64).reshape(-1, 4)
        ends = np.cumsum(figures[:, 0])  # of the rows, in pieces
        at, step = 0, max(1, BLOCK_TOKENS // self.row_tokens)
        for end in [*ends[step - 1 : -1 : step].tolist(), len(pieces)]:
            block = pieces[at:end]
            ids = np.frombuffer(b"".join(block), "<u2")
            lengths = np.fromiter(map(len, block), np.int64) // 2
            utf8_bytes = np.zeros(len(block), np.uint32)
            if shard_ends:
                starts = np.cumsum(lengths) - lengths
                # uint32, in which numpy adds twice as fast as in int64
                utf8_bytes = np.add.reduceat(self.token_bytes.take(ids), starts, dtype=np.uint32)
                self.text_bytes -= int(utf8_bytes.sum())
            writer.write("train", ids, lengths, utf8_bytes)
            at = end

        # the report: when the bins are full, each takes in its neighbour
        while (self.rows + len(rows) - 1) // self.bin_rows >= REPORT_BINS:
            merged = self.bins.reshape(-1, 2, 4).sum(1)
            self.bins = np.concatenate([merged, np.zeros_like(merged)])
            self.bin_rows *= 2
        bin_of = (self.rows + np.arange(len(rows))) // self.bin_rows
        bins = np.arange(bin_of[0], bin_of[-1] + 1)
        self.bins[bins] += np.add.reduceat(figures, np.searchsorted(bin_of, bins))
        self.rows += len(rows)

    def state(self) -> dict:
        """What `restore` needs after a kill, JSON-able; the buffer goes to packer_buffer_<commits>.tmp.

        The file before stays until the next call: a kill before progress.json names the new one does no harm."""
        self.clean(keep=self._buffer_path())
        self.commits += 1
        buffered = self.packer.buffered()
        tokens = b"".join(document for _, document in buffered)
        row = b"".join(self.packer.open)
        with disk.replacing(self._buffer_path()) as f:
            np.savez(f, lengths=np.array([n for n, _ in buffered], np.int64), bins=self.bins,
                     tokens=np.frombuffer(tokens, "<u2"), row=np.frombuffer(row, "<u2"))
        return {"commits": self.commits, "bos_added": self.bos_added,
                "rows": self.rows, "bin_rows": self.bin_rows, "added": self.packer.added,
                "text_bytes": self.text_bytes}

    def restore(self, state: dict) -> None:
        """Continue from `state`; {} begins. ValueError when the buffer's file is damaged."""
        if not state:
            self.clean()
            return
        self.commits, self.bos_added = state["commits"], state["bos_added"]
        self.rows, self.bin_rows = state["rows"], state["bin_rows"]
        path = self._buffer_path()
        self.clean(keep=path)
        remedy = f"{shards.to_clear(self.args.out_dir)} and prepare again"
        arrays = disk.read_npz(path, ("lengths", "bins", "tokens", "row"), remedy)
        lengths, self.bins, tokens, row = arrays.values()
        kept = int(np.minimum(lengths, self.row_tokens).sum())
        whole = self.bins.shape == (REPORT_BINS, 4) and len(tokens) == kept and len(row) < self.row_tokens
        require(whole, f"{path} does not fit progress.json", remedy)
        ends = np.cumsum(np.minimum(lengths, self.row_tokens))
        documents = [part.tobytes() for part in np.split(tokens, ends)[:-1]]
        pieces = [part.tobytes() for part in np.split(row, np.flatnonzero(row == bos_id()))[1:]]
        buffered = zip(lengths.tolist(), documents, strict=True)
        self.packer.restore(buffered, pieces, self.row_tokens - len(row), state.get("added", 0))
        # progress.json of an older version has none: there, a piece was counted as it was written
        self.text_bytes = state.get("text_bytes", self._look_up(documents + pieces))

    def _buffer_path(self) -> Path:
        return Path(self.args.out_dir) / f"packer_buffer_{self.commits:06d}.tmp"

    def clean(self, keep: Path | None = None) -> None:
        """Delete what only `restore` would need, but `keep`."""
        for path in Path(self.args.out_dir).iterdir():
            if path != keep and BUFFER_NAMES.fullmatch(path.name):
                path.unlink()

    def finish(self, writer) -> tuple[dict, dict]:
        """Write what is left. Returns (entries of the token account, fields of meta.json)."""
        self._write(writer, *self.packer.add((), last=True), last=True)
        written, cropped = self.rows * self.row_tokens, int(self.bins[:, 1].sum())
        tail = sum(len(piece) // 2 for piece in self.packer.open)
        require(self.rows, f"{tail:,} train tokens are less than one row of {self.row_tokens}",
                f"{shards.to_clear(self.args.out_dir)} and prepare again with more documents or a lower --seq_len")
        # a BOS that was added is written (or cropped, or in the tail), but was not read
        entries = {"cropped": cropped, "dropped_tail": tail, "bos_added": -self.bos_added}
        return entries, {
            "batch_docs": self.args.batch_docs, "rows_written_total": self.rows,
            "tokens_cropped_total": cropped, "crop_fraction": cropped / (cropped + written),
            "tokens_dropped_tail": tail, "bos_added_total": self.bos_added,
            "packing_report": packing_report(self.bins, self.bin_rows, self.rows, self.row_tokens),
        }


# ------------------------------------------------------------------------------------------------------------
# the report


def packing_report(bins: np.ndarray, bin_rows: int, rows: int, row_tokens: int) -> list[dict]:
    """One record per tenth of the rows, in order. bins: BestFit's figures summed over `bin_rows` rows each."""
    report, n_bins = [], -(-rows // bin_rows)
    edges = [n_bins * tenth // 10 for tenth in range(11)]
    for first, end in itertools.pairwise(edges):
        if first == end:
            continue
        n = min(end * bin_rows, rows) - first * bin_rows
        documents, cropped, too_long, buffered = bins[first:end].sum(0).tolist()
        placed = cropped + n * row_tokens  # tokens of the documents placed, as they left the buffer
        report.append({
            "first_row": first * bin_rows, "rows": n,
            "documents_per_row": documents / n, "crop_fraction": cropped / placed,
            "buffer_share_longer_than_row": too_long / buffered, "mean_document_tokens": placed / documents,
        })
    return report


def print_report(meta: dict) -> None:
    """The packing report of a meta.json for people."""
    print(f"{'rows':>23}  documents/row   cropped  buffer longer than a row  mean document")
    for part in meta["packing_report"]:
        first, n = part["first_row"], part["rows"]
        rows = f"{first:,}..{first + n - 1:,}"
        print(f"{rows:>23}  {part['documents_per_row']:13.2f}  {part['crop_fraction']:8.2%}  "
              f"{part['buffer_share_longer_than_row']:24.1%}  {part['mean_document_tokens']:13.1f}")
    print(f"{meta['rows_written_total']:,} rows of {meta['row_tokens']:,} tokens, {meta['overflow']}: "
          f"{meta['tokens_cropped_total']:,} tokens cropped = {meta['crop_fraction']:.2%} of written + "
          f"cropped, {meta['bos_added_total']:,} BOS added")
    for warning in warnings_of(meta):
        print(f"WARNING: {warning}")


def warnings_of(meta: dict) -> list[str]:
    """What in a meta.json says that --overflow distorts the data: each a sentence."""
    advice = {
        "crop": "pass --overflow requeue (nothing is cropped) or --overflow split",
        "split": "pass --overflow requeue",
        "requeue": "pass --overflow split, or leave training's --data_order shuffled",
    }
    remedy, warnings = advice[meta["overflow"]], []
    cropped = meta["crop_fraction"]
    if cropped > MAX_CROP:
        warnings.append(f"{cropped:.1%} of the tokens were cropped and are lost: {remedy}.")
    means = [part["mean_document_tokens"] for part in meta["packing_report"]]
    low, high = min(means, default=0), max(means, default=0)
    if high > MAX_DRIFT * low:
        warnings.append(f"documents have {low:,.0f} tokens on average in one tenth of the rows and "
                        f"{high:,.0f} in another, so rows read in order hold long and short ones at "
                        f"different times: {remedy}.")
    return warnings


def main(argv: list[str] | None = None) -> None:
    parser = flags.Parser(
        description="Documents -> rows of seq_len + 1 tokens that start with BOS.",
        epilog="example: python prepare_bos_rows.py --dataset 'corpus/*.parquet' --out_dir data/rows")
    prepare_fineweb.add_shared_arguments(parser)
    add = parser.add_argument_group("rows").add_argument
    add("--seq_len", type=int, default=1024, help="tokens that a row predicts (default: 1024)")
    add("--overflow", choices=["crop", "split", "requeue"], default="crop",
        help="documents that do not fit: cropped as published; cut up first; cut up, none cropped (default: crop)")
    add("--buffer_docs", type=int, default=1000, help="documents to choose from (default: 1000)")
    add("--refill", type=int, default=1,
        help="documents added at once where fewer than --buffer_docs wait; nanochat adds 128 (default: 1)")
    add("--batch_docs", type=int, default=256, help="handed over at once; never changes a row (default: 256)")
    add("--shard_rows", type=int, default=0, help="rows per train shard (default: 0 = as --shard_tokens)")
    args = parser.parse_args(argv)
    meta = prepare_fineweb.run(args, RowTrain)
    if meta:
        print_report(meta)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "prepare_bos_rows.py")
