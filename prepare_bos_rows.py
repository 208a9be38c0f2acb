"""prepare_bos_rows.py owns the packer: documents -> rows of seq_len + 1 tokens that each start with BOS (000, 001).

    python prepare_bos_rows.py --dataset HuggingFaceFW/fineweb-edu --config sample-10BT --split train \\
        --text_field text --tokenizer gpt2 --out_dir fineweb_edu_10B_bosrow --seq_len 1024 --num_proc 16
    python prepare_bos_rows.py --dataset 'corpus/*.parquet' --overflow requeue --out_dir data/rows --num_proc 4
    python prepare_bos_rows.py --dataset synthetic --target_tokens 2_000_000 --seq_len 128 --out_dir data/toy_rows

Reads what prepare_fineweb.py reads and writes the same folder with the same val files; only the train shards are rows.
The algorithm of document 001: a buffer holds `--buffer_docs` tokenised documents. Take the longest that fits into the
row (the earliest of equals), again and again; when none fits, take the shortest (the earliest of equals), copy what
fits and drop the rest. Whenever a document leaves the buffer, the next one of the source takes its place before
anything else is chosen; when the source has ended, the buffer runs empty and an unfinished last row is dropped.

A document longer than a row never fits and is the shortest only when all others are longer still. So such documents
pile up in the buffer and crowd out those that would fit: cropping climbs during the pass, and what is cropped is never
seen. The report by decile of rows shows it. `--overflow` has two cures:
    crop      the algorithm as published (default)
    split     a document longer than a row is first cut into pieces of a row, each with a BOS of its own; each piece
              then counts as a document
    requeue   split, and what is left of a document cut at the end of a row, with a BOS of its own, goes back as the
              buffer's latest arrival, into the slot the document had; nothing is cropped

Kill it at any moment and run it again with --resume: the result is byte-identical to an uninterrupted run. The buffer
waits for that in packer_buffer_*.tmp, which grows by the documents that are new to it at a commit and is written afresh
when most of it has been used. Memory and that file hold at most about two buffers, each of
2 * buffer_docs * (seq_len + 1) bytes: 2 MB as documents 000 and 001 have it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import heapq
import itertools
import mmap
import os
import sys
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

import prepare_fineweb
from lab import disk, shards

BOS = np.array([shards.BOS_ID], "<u2").tobytes()
REPORT_BINS = 2000  # the report's resolution: a decile's edge is off by at most 0.1 % of the rows; even
BLOCK_TOKENS = 2**20  # rows handed to the writer at once; bounds temporary arrays
SPILL_SLACK = 2**24  # bytes of used-up documents that the buffer's file may hold besides as much as the buffer


class BestFit:
    """Decides which documents share a row. Documents are opaque; row for row, ties included, what a scan of the whole
    buffer would decide, from a queue per length, one integer whose bit n says that a document of n tokens waits, and a
    heap of the lengths beyond a row: O(1) operations per document, or O(log buffer) for one longer than a row.

    cut(document, room) -> (what the row gets, what goes back into the buffer or None to drop it); what goes back has
    one token more than was left over: its BOS.
    Attributes: open, the pieces of the unfinished row; room, the tokens it lacks; waiting, documents in the buffer.
    """

    def __init__(self, row_tokens: int, buffer_docs: int, cut: Callable):
        self.row_tokens, self.buffer_docs, self.cut = row_tokens, buffer_docs, cut
        self.queues = defaultdict(deque)  # length -> documents in order of arrival
        self.mask = 0  # lengths that wait, up to row_tokens
        self.beyond = []  # and those longer than a row, each once: a heap
        self.waiting, self.too_long = 0, 0  # documents; of them longer than a row
        self.open, self.room = [], row_tokens

    def add(self, documents: Iterable[tuple[int, object]], last: bool = False) -> tuple[list, list[tuple]]:
        """Pass documents (length >= 1, document) through the buffer; `last` empties it. Returns the finished rows:
        (pieces of all of them in a row, per row (its pieces, tokens cropped, and when its last document was chosen:
        documents longer than a row, documents in the buffer))."""
        row_tokens, buffer_docs, queues, beyond = self.row_tokens, self.buffer_docs, self.queues, self.beyond
        pieces, room, mask, waiting, too_long = self.open, self.room, self.mask, self.waiting, self.too_long
        rows, begun = [], 0  # begun: where the open row starts in pieces
        for n, document in itertools.chain(documents, [(0, None)] if last else []):
            if n:
                queue = queues[n]
                if n > row_tokens:
                    too_long += 1
                    if not queue:
                        heapq.heappush(beyond, n)
                elif not queue:
                    mask |= 1 << n
                queue.append(document)
                waiting += 1
            else:
                buffer_docs = 1
            while waiting >= buffer_docs:
                waiting -= 1
                if fits := mask if room == row_tokens else mask & ((2 << room) - 1):
                    n = fits.bit_length() - 1  # the longest
                    queue = queues[n]
                    pieces.append(queue.popleft())
                    if not queue:
                        mask ^= 1 << n
                    room -= n
                    if room:
                        continue
                    rows.append((len(pieces) - begun, 0, too_long, waiting + 1))
                else:
                    n = (mask & -mask).bit_length() - 1 if mask else beyond[0]  # the shortest
                    queue = queues[n]
                    piece, rest = self.cut(queue.popleft(), room)
                    pieces.append(piece)
                    rows.append((len(pieces) - begun, 0 if rest else n - room, too_long, waiting + 1))
                    if mask:
                        mask ^= 0 if queue else 1 << n
                    else:
                        too_long -= 1
                        if not queue:
                            del queues[heapq.heappop(beyond)]
                    if rest:
                        n = n - room + 1
                        queues[n].append(rest)
                        mask |= 1 << n
                        waiting += 1
                begun, room = len(pieces), row_tokens
        self.open, self.room, self.mask, self.waiting, self.too_long = pieces[begun:], room, mask, waiting, too_long
        return pieces[:begun], rows

    def buffered(self) -> Iterator[tuple[int, object]]:
        """(length, document) of the buffer; equal lengths in order of arrival, which is all that later choices need."""
        for n, queue in self.queues.items():
            yield from ((n, document) for document in queue)

    def restore(self, buffered: Iterable[tuple[int, object]], pieces: list, room: int) -> None:
        """Continue from what `buffered`, `open` and `room` were."""
        buffer_docs, self.buffer_docs = self.buffer_docs, sys.maxsize
        self.add(buffered)
        self.buffer_docs, self.open, self.room = buffer_docs, pieces, room


class RowTrain:
    """The train side of prepare_fineweb.prepare: documents of uint16 bytes through BestFit into the writer."""

    def __init__(self, args: argparse.Namespace):
        for name, low in (("seq_len", 1), ("batch_docs", 1), ("buffer_docs", 1), ("shard_rows", 0)):
            if getattr(args, name) < low:
                raise ValueError(f"--{name} must be {low} or more, not {getattr(args, name)}.")
        self.row_tokens = args.seq_len + 1
        self.shard_rows = args.shard_rows or args.shard_tokens // self.row_tokens
        if not self.shard_rows:
            raise ValueError(f"--shard_tokens {args.shard_tokens} is less than one row of {self.row_tokens} tokens: "
                             "raise it, or pass --shard_rows.")
        self.args, self.folder = args, Path(args.out_dir)
        self.packer = BestFit(self.row_tokens, args.buffer_docs, self._cut)
        self.token_bytes = shards.get_tokenizer(args.tokenizer_backend).token_byte_lengths()
        self.bos_added, self.rows = 0, 0
        self.bins, self.bin_rows = np.zeros((REPORT_BINS, 4), np.int64), 1  # sums of BestFit's figures per row
        self.products = np.zeros(shards.VOCAB_SIZE - shards.FIRST_MUL_ID, np.int64)
        # the buffer's file: its number and bytes, and which documents are in it, {id: (document, offset)}; holding the
        # documents keeps their ids from being used again
        self.spill, self.spill_bytes, self.spilled = 0, 0, {}

    def settings(self) -> dict:
        """What decides the bytes, and the format's fields of meta.json."""
        return {"format": "bos_row_packed_bestfit", "seq_len": self.args.seq_len, "row_tokens": self.row_tokens,
                "packing_algo": f"bestfit_{self.args.overflow}", "overflow": self.args.overflow,
                "buffer_docs": self.args.buffer_docs, "shard_rows": self.shard_rows}

    def add(self, writer: shards.DatasetWriter, ids: np.ndarray, lengths: np.ndarray, utf8_bytes: np.ndarray) -> None:
        """Documents as they come: ids (N,), tokens and original bytes per document."""
        data, lengths = ids.astype("<u2", copy=False).tobytes(), lengths.tolist()
        at = 0
        for first in range(0, len(lengths), self.args.batch_docs):
            batch = lengths[first : first + self.args.batch_docs]
            self._write(writer, *self.packer.add(self._documents(data, at, batch)))
            at += 2 * sum(batch)

    def _documents(self, data: bytes, at: int, lengths: list[int]) -> Iterator[tuple[int, bytes]]:
        """(length, tokens) as they enter the buffer; of one to be cropped, no more than a row may ever use."""
        row_tokens, crop = self.row_tokens, self.args.overflow == "crop"
        for n in lengths:
            if n <= row_tokens or crop:
                yield n, data[at : at + 2 * min(n, row_tokens)]
            else:
                yield row_tokens, data[at : at + 2 * row_tokens]
                for start in range(at + 2 * row_tokens, at + 2 * n, 2 * self.args.seq_len):
                    piece = BOS + data[start : min(start + 2 * self.args.seq_len, at + 2 * n)]
                    self.bos_added += 1
                    yield len(piece) // 2, piece
            at += 2 * n

    def _cut(self, document: bytes, room: int) -> tuple[bytes, bytes | None]:
        if self.args.overflow != "requeue":
            return document[: 2 * room], None
        self.bos_added += 1
        return document[: 2 * room], BOS + document[2 * room :]

    def _write(self, writer: shards.DatasetWriter, pieces: list[bytes], rows: list[tuple]) -> None:
        if not rows:
            return
        data = np.frombuffer(b"".join(pieces), "<u2")
        step = max(1, BLOCK_TOKENS // self.row_tokens) * self.row_tokens
        val_tokens, writer.shard_tokens = writer.shard_tokens, self.shard_rows * self.row_tokens
        for at in range(0, len(data), step):
            ids = data[at : at + step]
            starts = np.flatnonzero(ids == shards.BOS_ID)
            sizes = np.add.reduceat(self.token_bytes[ids], starts, dtype=np.int64)
            writer.write("train", ids, np.diff(starts, append=len(ids)), sizes)
            if self.args.inject:
                found = ids[ids >= shards.FIRST_MUL_ID] - shards.FIRST_MUL_ID
                self.products += np.bincount(found, minlength=len(self.products))
        writer.shard_tokens = val_tokens  # val shards keep the size they have in a stream dataset

        while (self.rows + len(rows) - 1) // self.bin_rows >= REPORT_BINS:
            self.bins = np.concatenate([self.bins.reshape(-1, 2, 4).sum(1), np.zeros((REPORT_BINS // 2, 4), np.int64)])
            self.bin_rows *= 2
        np.add.at(self.bins, (self.rows + np.arange(len(rows))) // self.bin_rows, np.array(rows))
        self.rows += len(rows)

    # -------------------------------------------------------------------------------------------------------- kills

    def _spill_path(self, number: int) -> Path:
        return self.folder / f"packer_buffer_{number:06d}.tmp"

    def state(self) -> dict:
        """What `restore` needs after a kill, JSON-able. The buffer's tokens go to its file, durably; what an earlier
        state refers to stays in there until the next call, so a kill between here and the commit does no harm."""
        buffered = list(self.packer.buffered())
        for path in self.folder.glob("packer_buffer_*.tmp"):
            if path != self._spill_path(self.spill):
                path.unlink()
        if self.spill_bytes > SPILL_SLACK + 2 * sum(len(document) for _, document in buffered):
            self.spill, self.spill_bytes, self.spilled = self.spill + 1, 0, {}
        spilled, offsets, new = {}, [], []
        for _, document in buffered:
            if (known := self.spilled.get(id(document))) is None:
                known = document, self.spill_bytes
                new.append(document)
                self.spill_bytes += len(document)
            spilled[id(document)] = known
            offsets.append(known[1])
        self.spilled = spilled
        with open(self._spill_path(self.spill), "ab") as f:
            f.write(b"".join(new))
            f.flush()
            os.fsync(f.fileno())
        disk.fsync_path(self.folder)
        return {
            "spill": self.spill, "spill_bytes": self.spill_bytes,
            "buffer": _to_text(np.array([[n for n, _ in buffered], offsets], np.int64)),
            "open": _to_text(np.frombuffer(b"".join(self.packer.open), "<u2")),
            "bos_added": self.bos_added, "rows": self.rows,
            "bins": _to_text(self.bins), "bin_rows": self.bin_rows, "products": self.products.tolist(),
        }  # fmt: skip

    def restore(self, state: dict) -> None:
        """Continue from `state`; {} begins."""
        for path in self.folder.glob("packer_buffer_*.tmp"):
            if not state or path != self._spill_path(state["spill"]):
                path.unlink()
        if not state:
            return
        for name in ("bos_added", "rows", "bin_rows", "spill", "spill_bytes"):
            setattr(self, name, state[name])
        self.bins = _from_text(state["bins"], np.int64).reshape(-1, 4)
        self.products = np.array(state["products"])
        path, buffered = self._spill_path(self.spill), []
        if not path.exists() or path.stat().st_size < self.spill_bytes:
            raise ValueError(f"{path} is missing or shorter than recorded: delete {self.folder} and prepare again.")
        os.truncate(path, self.spill_bytes)
        if self.spill_bytes:
            with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as tokens:
                for n, at in _from_text(state["buffer"], np.int64).reshape(2, -1).T.tolist():
                    buffered.append((n, tokens[at : at + 2 * min(n, self.row_tokens)]))
                    self.spilled[id(buffered[-1][1])] = buffered[-1][1], at
        row = _from_text(state["open"], "<u2")
        pieces = [piece.tobytes() for piece in np.split(row, np.flatnonzero(row == shards.BOS_ID)[1:]) if len(piece)]
        self.packer.restore(buffered, pieces, self.row_tokens - len(row))

    # ------------------------------------------------------------------------------------------------------ the end

    def finish(self, writer: shards.DatasetWriter) -> dict:
        """After the last document: write what is left, return fields for meta.json."""
        self._write(writer, *self.packer.add((), last=True))
        written, cropped = self.rows * self.row_tokens, int(self.bins[:, 1].sum())
        tail = sum(len(piece) // 2 for piece in self.packer.open)
        if not self.rows:
            raise ValueError(f"{tail:,} train tokens are less than one row of {self.row_tokens}: delete {self.folder} "
                             "and prepare again with more documents or a lower --seq_len.")
        read = writer.state  # as committed just before: what prepare() has counted, and closes its account with
        account = {"tokens_read": read["tokens_read"], "train_written": written, "held_out": writer.tokens("val"),
                   "cropped": cropped, "dropped": read["tokens_dropped"], "dropped_tail": tail,
                   "bos_added": -self.bos_added}  # fmt: skip
        read["tokens_dropped"] += tail - self.bos_added
        names = shards.MulFactTokens.tokens
        return {
            "batch_docs": self.args.batch_docs,
            "rows_written_total": self.rows,
            "tokens_cropped_total": cropped,
            "crop_fraction": cropped / (cropped + written),
            "tokens_dropped_tail": tail,
            "bos_added_total": self.bos_added,
            "token_account": account,  # tokens_read is the sum of the others; added BOS were written but not read
            "mul_tokens_in_train": int(self.products.sum()),  # in the rows, after cropping
            "mul_token_rate": int(self.products.sum()) / written,
            "mul_token_counts": {names[i]: int(self.products[i]) for i in np.flatnonzero(self.products)},
            "packing_report": packing_report(self.bins, self.bin_rows, self.rows, self.row_tokens),
        }

    def clean_up(self) -> None:
        """Remove the buffer's file of a finished dataset."""
        for path in self.folder.glob("packer_buffer_*.tmp"):
            path.unlink()


def _to_text(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 1)).decode()


def _from_text(text: str, dtype) -> np.ndarray:
    return np.frombuffer(bytearray(zlib.decompress(base64.b64decode(text))), dtype)


def packing_report(bins: np.ndarray, bin_rows: int, rows: int, row_tokens: int) -> list[dict]:
    """One record per tenth of the rows, in order. bins: BestFit's figures summed over `bin_rows` rows each."""
    report, n_bins = [], -(-rows // bin_rows)
    edges = [n_bins * tenth // 10 for tenth in range(11)]
    for first, end in zip(edges, edges[1:], strict=False):
        if first == end:
            continue
        n = min(end * bin_rows, rows) - first * bin_rows
        documents, cropped, too_long, buffered = bins[first:end].sum(0).tolist()
        report.append({
            "first_row": first * bin_rows,
            "rows": n,
            "documents_per_row": documents / n,
            "crop_fraction": cropped / (cropped + n * row_tokens),
            "buffer_share_longer_than_row": too_long / buffered,
            "mean_document_tokens": (cropped + n * row_tokens) / documents,  # of those placed, as they left the buffer
        })
    return report


def report_table(meta: dict) -> str:
    """The packing report of a meta.json for people."""
    names = ("rows", 23), ("documents/row", 13), ("cropped", 8), ("buffer longer than a row", 24), ("mean document", 13)
    lines = ["  ".join(f"{name:>{width}}" for name, width in names)]
    for part in meta["packing_report"]:
        rows = f"{part['first_row']:,}..{part['first_row'] + part['rows'] - 1:,}"
        lines.append(f"{rows:>23}  {part['documents_per_row']:13.2f}  {part['crop_fraction']:8.2%}  "
                     f"{part['buffer_share_longer_than_row']:24.1%}  {part['mean_document_tokens']:13.1f}")
    lines.append(f"{meta['rows_written_total']:,} rows of {meta['row_tokens']:,} tokens, {meta['overflow']}: "
                 f"{meta['tokens_cropped_total']:,} tokens cropped = {meta['crop_fraction']:.2%} of written + cropped, "
                 f"{meta['bos_added_total']:,} BOS added")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Documents -> rows of seq_len + 1 GPT-2 tokens that start with BOS, and the same held-out set as "
                    "prepare_fineweb.py.",
        epilog="example: python prepare_bos_rows.py --dataset 'corpus/*.parquet' --seq_len 1024 --out_dir data/rows")
    prepare_fineweb.add_source_arguments(parser)
    group = parser.add_argument_group("rows")
    group.add_argument("--seq_len", type=int, default=1024,
                       help="tokens that a row predicts; a row has one more (default: 1024)")
    group.add_argument("--overflow", choices=["crop", "split", "requeue"], default="crop",
                       help="documents that do not fit: as published; long ones cut up first; cut up and nothing "
                            "dropped (default: crop)")
    group.add_argument("--buffer_docs", type=int, default=1000, help="documents to choose from (default: 1000)")
    group.add_argument("--batch_docs", type=int, default=256,
                       help="documents handed to the packer at once; never changes a row (default: 256)")
    group.add_argument("--shard_rows", type=int, default=0,
                       help="rows per train shard (default: 0 = what fits into --shard_tokens)")
    args = parser.parse_args(argv)
    try:
        train = RowTrain(args)
    except ValueError as error:
        sys.exit(str(error))
    prepare_fineweb.run(args, train)
    with contextlib.suppress(OSError):
        train.clean_up()
    print(report_table(shards.read_meta(args.out_dir)))


if __name__ == "__main__":
    main()
