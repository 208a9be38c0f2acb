"""prepare_bos_rows.py owns the packer: documents -> rows of seq_len + 1 tokens that each start with BOS (000, 001).

    python prepare_bos_rows.py --dataset HuggingFaceFW/fineweb-edu --config sample-10BT --split train \\
        --text_field text --tokenizer gpt2 --out_dir fineweb_edu_10B_bosrow --seq_len 1024 --num_proc 16
    python prepare_bos_rows.py --dataset 'corpus/*.parquet' --overflow requeue --out_dir data/rows --num_proc 4
    python prepare_bos_rows.py --dataset synthetic --target_tokens 2_000_000 --seq_len 128 --out_dir data/toy_rows

Reads what prepare_fineweb.py reads and writes the same folder with the same val files; only the train shards are rows.
The algorithm of document 001: a buffer holds `--buffer_docs` tokenised documents. Take the longest that fits into the
row (the earliest of equals), again and again; when none fits, take the shortest (the earliest of equals), copy what
fits and drop the rest. Before each choice the buffer is refilled from the source. When the source has ended, the buffer
runs empty, and an unfinished last row is dropped.

A document longer than a row never fits and is the shortest only when all others are longer still. So such documents
pile up in the buffer and crowd out those that would fit: cropping climbs during the pass, and what is cropped is never
seen. The report by decile of rows shows it. `--overflow` has two cures:
    crop      the algorithm as published (default)
    split     a document longer than a row is first cut into pieces of a row, each with a BOS of its own; each piece
              then counts as a document
    requeue   split, and what is left of a document cut at the end of a row goes back, with a BOS of its own, as the
              buffer's latest arrival in the place the document had; nothing is cropped

Kill it at any moment and run it again with --resume: the result is byte-identical to an uninterrupted run. For that,
the buffer is kept in packer_buffer_*.tmp (BufferFile). Memory and that file hold at most about two buffers, each of
2 * buffer_docs * (seq_len + 1) bytes: 2 MB as documents 000 and 001 have it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import heapq
import itertools
import os
import sys
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

import prepare_fineweb
from lab import disk, shards
from lab.token_files import check
from lab.tokenizer import BOS_ID, FIRST_MUL_ID, VOCAB_SIZE, MulFactTokens, get_tokenizer

BOS = np.array([BOS_ID], "<u2").tobytes()
REPORT_BINS = 2000  # the report's resolution: a decile's edge is off by at most 0.1 % of the rows; even
BLOCK_TOKENS = 2**20  # rows handed to the writer at once; bounds temporary arrays
SPILL_SLACK = 2**24  # bytes of used-up documents that BufferFile allows, besides as much as the buffer


class BestFit:
    """Decides which documents share a row: row for row, ties included, what a scan of the whole buffer would decide.

    Documents are opaque. They wait in a queue per length; one integer has bit n set when a document of n tokens waits,
    and lengths beyond a row are in a heap. So a document costs O(1) operations, or O(log buffer) if longer than a row.

    cut(document, room) -> (what the row gets, what goes back into the buffer or None to drop it); what goes back has
    one token more than was left over: its BOS.
    Attributes: open, the pieces of the unfinished row; room, the tokens it lacks; waiting, documents in the buffer.
    """

    def __init__(self, row_tokens: int, buffer_docs: int, cut: Callable):
        self.row_tokens, self.buffer_docs, self.cut = row_tokens, buffer_docs, cut
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
        rows, begun = [], 0  # begun: where the open row starts in pieces
        if last:
            documents = itertools.chain(documents, [(0, None)])
        for n, document in documents:
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
        self.waiting, self.too_long = waiting, too_long
        return pieces[:begun], rows

    def buffered(self) -> list[tuple[int, object]]:
        """(length, document) of the buffer; equal lengths in order of arrival, which is all that later choices need."""
        return [(n, document) for n, queue in self.queues.items() for document in queue]

    def restore(self, buffered: Iterable[tuple[int, object]], pieces: list, room: int) -> None:
        """Continue from what `buffered`, `open` and `room` were."""
        buffer_docs, self.buffer_docs = self.buffer_docs, sys.maxsize
        self.add(buffered)
        self.buffer_docs, self.open, self.room = buffer_docs, pieces, room


class BufferFile:
    """The buffered documents on disk, for a restart.

    packer_buffer_<number>.tmp grows by the documents that are new at a commit; when most of it has been used up, a file
    with the next number is begun. What the last commit refers to stays until the next `save`, so a kill between `save`
    and the commit does no harm.
    """

    def __init__(self, folder: Path):
        self.folder, self.number, self.bytes = folder, 0, 0
        # {id: (document, offset)} of the documents in the file; holding them keeps an id from being used again
        self.stored = {}

    def path(self) -> Path:
        return self.folder / f"packer_buffer_{self.number:06d}.tmp"

    def remove(self, keep: Path | None = None) -> None:
        """Remove the files of all numbers but `keep`."""
        for path in self.folder.glob("packer_buffer_*.tmp"):
            if path != keep:
                path.unlink()

    def save(self, documents: list[bytes]) -> list[int]:
        """Make the documents durable; returns their offsets in the file."""
        self.remove(keep=self.path())
        if self.bytes > SPILL_SLACK + 2 * sum(map(len, documents)):
            self.number, self.bytes, self.stored = self.number + 1, 0, {}
        stored, new = {}, []
        for document in documents:
            entry = self.stored.get(id(document))
            if entry is None:
                entry = (document, self.bytes)
                new.append(document)
                self.bytes += len(document)
            stored[id(document)] = entry
        self.stored = stored
        with open(self.path(), "ab") as f:
            f.write(b"".join(new))
            f.flush()
            os.fsync(f.fileno())
        disk.fsync_path(self.folder)
        return [stored[id(document)][1] for document in documents]

    def load(self, offsets: list[int], lengths: list[int]) -> list[bytes]:
        """The documents as `save` left them, each of `lengths` bytes at `offsets`; number and bytes as they were."""
        path = self.path()
        self.remove(keep=path)
        whole = path.exists() and path.stat().st_size >= self.bytes
        check(whole, f"{path} is missing or shorter than recorded", f"delete {self.folder} and prepare again")
        os.truncate(path, self.bytes)
        documents = []
        with open(path, "rb") as f:
            for at, n in zip(offsets, lengths, strict=True):
                f.seek(at)
                document = f.read(n)
                documents.append(document)
                self.stored[id(document)] = (document, at)
        return documents


class RowTrain:
    """The train side of prepare_fineweb.prepare: documents of uint16 bytes through BestFit into the writer."""

    def __init__(self, args: argparse.Namespace):
        prepare_fineweb.check_at_least(args, seq_len=1, batch_docs=1, buffer_docs=1, shard_rows=0)
        self.row_tokens = args.seq_len + 1
        self.shard_rows = args.shard_rows or args.shard_tokens // self.row_tokens
        check(self.shard_rows,
              f"--shard_tokens {args.shard_tokens} is less than one row of {self.row_tokens} tokens",
              "raise it, or pass --shard_rows")
        self.shard_tokens = self.shard_rows * self.row_tokens  # of train shards
        self.args = args
        self.packer = BestFit(self.row_tokens, args.buffer_docs, self._cut)
        self.buffer_file = BufferFile(Path(args.out_dir))
        self.token_bytes = get_tokenizer(args.tokenizer_backend).token_byte_lengths()
        self.bos_added, self.rows = 0, 0
        self.bins, self.bin_rows = np.zeros((REPORT_BINS, 4), np.int64), 1  # for packing_report
        self.products = np.zeros(VOCAB_SIZE - FIRST_MUL_ID, np.int64)

    def settings(self) -> dict:
        """What decides the bytes, and the format's fields of meta.json."""
        overflow = self.args.overflow
        return {
            "format": "bos_row_packed_bestfit", "seq_len": self.args.seq_len, "row_tokens": self.row_tokens,
            "packing_algo": f"bestfit_{overflow}", "overflow": overflow,
            "buffer_docs": self.args.buffer_docs, "shard_rows": self.shard_rows,
        }

    def add(self, writer, ids: np.ndarray, lengths: np.ndarray, utf8_bytes: np.ndarray) -> None:
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
            end = at + 2 * n
            if n <= row_tokens or crop:
                yield n, data[at : at + 2 * min(n, row_tokens)]
            else:
                yield row_tokens, data[at : at + 2 * row_tokens]
                for start in range(at + 2 * row_tokens, end, 2 * self.args.seq_len):
                    piece = BOS + data[start : min(start + 2 * self.args.seq_len, end)]
                    self.bos_added += 1
                    yield len(piece) // 2, piece
            at = end

    def _cut(self, document: bytes, room: int) -> tuple[bytes, bytes | None]:
        if self.args.overflow != "requeue":
            return document[: 2 * room], None
        self.bos_added += 1
        return document[: 2 * room], BOS + document[2 * room :]

    def _write(self, writer: shards.DatasetWriter, pieces: list[bytes], rows: list[tuple]) -> None:
        """Finished rows, as BestFit.add returns them, into the writer and into the report."""
        if not rows:
            return
        data = np.frombuffer(b"".join(pieces), "<u2")
        step = max(1, BLOCK_TOKENS // self.row_tokens) * self.row_tokens
        for at in range(0, len(data), step):
            ids = data[at : at + step]
            starts = np.flatnonzero(ids == BOS_ID)
            utf8_bytes = np.add.reduceat(self.token_bytes[ids], starts, dtype=np.int64)
            writer.write("train", ids, np.diff(starts, append=len(ids)), utf8_bytes)
            if self.args.inject:
                ranks = ids[ids >= FIRST_MUL_ID] - FIRST_MUL_ID
                self.products += np.bincount(ranks, minlength=len(self.products))

        # the report: when the bins are full, each takes in its neighbour
        while (self.rows + len(rows) - 1) // self.bin_rows >= REPORT_BINS:
            merged = self.bins.reshape(-1, 2, 4).sum(1)
            self.bins = np.concatenate([merged, np.zeros_like(merged)])
            self.bin_rows *= 2
        np.add.at(self.bins, (self.rows + np.arange(len(rows))) // self.bin_rows, np.array(rows))
        self.rows += len(rows)

    def state(self) -> dict:
        """What `restore` needs after a kill, JSON-able; the buffer's tokens go to its file."""
        buffered = self.packer.buffered()
        offsets = self.buffer_file.save([document for _, document in buffered])
        lengths = [n for n, _ in buffered]
        return {
            "spill": self.buffer_file.number, "spill_bytes": self.buffer_file.bytes,
            "buffer": _to_text(np.array([lengths, offsets], np.int64)),
            "open": _to_text(np.frombuffer(b"".join(self.packer.open), "<u2")),
            "bos_added": self.bos_added, "products": self.products.tolist(),
            "rows": self.rows, "bins": _to_text(self.bins), "bin_rows": self.bin_rows,
        }

    def restore(self, state: dict) -> None:
        """Continue from `state`; {} begins."""
        if not state:
            self.buffer_file.remove()
            return
        self.bos_added, self.products = state["bos_added"], np.array(state["products"])
        self.rows, self.bin_rows = state["rows"], state["bin_rows"]
        self.bins = _from_text(state["bins"], np.int64).reshape(-1, 4)
        lengths, offsets = _from_text(state["buffer"], np.int64).reshape(2, -1)
        sizes = 2 * np.minimum(lengths, self.row_tokens)
        self.buffer_file.number, self.buffer_file.bytes = state["spill"], state["spill_bytes"]
        documents = self.buffer_file.load(offsets.tolist(), sizes.tolist())
        row = _from_text(state["open"], "<u2")
        pieces = np.split(row, np.flatnonzero(row == BOS_ID)[1:])
        pieces = [piece.tobytes() for piece in pieces if len(piece)]
        self.packer.restore(zip(lengths.tolist(), documents, strict=True), pieces, self.row_tokens - len(row))

    def finish(self, writer: shards.DatasetWriter) -> tuple[dict, dict]:
        """After the last document: write what is left. Returns (entries of the token account, fields of meta.json)."""
        self._write(writer, *self.packer.add((), last=True))
        written, cropped = self.rows * self.row_tokens, int(self.bins[:, 1].sum())
        tail = sum(len(piece) // 2 for piece in self.packer.open)
        check(self.rows,
              f"{tail:,} train tokens are less than one row of {self.row_tokens}",
              f"delete {self.args.out_dir} and prepare again with more documents or a lower --seq_len")
        # a BOS that was added is written (or cropped, or in the tail), but was not read
        entries = {"cropped": cropped, "dropped_tail": tail, "bos_added": -self.bos_added}
        products = int(self.products.sum())  # in the rows, after cropping
        counts = {MulFactTokens.tokens[i]: int(self.products[i]) for i in np.flatnonzero(self.products)}
        return entries, {
            "batch_docs": self.args.batch_docs,
            "rows_written_total": self.rows,
            "tokens_cropped_total": cropped,
            "crop_fraction": cropped / (cropped + written),
            "tokens_dropped_tail": tail,
            "bos_added_total": self.bos_added,
            "mul_tokens_in_train": products,
            "mul_token_rate": products / written,
            "mul_token_counts": counts,
            "packing_report": packing_report(self.bins, self.bin_rows, self.rows, self.row_tokens),
        }


def _to_text(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 1)).decode()


def _from_text(text: str, dtype) -> np.ndarray:
    return np.frombuffer(bytearray(zlib.decompress(base64.b64decode(text))), dtype)


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
            "first_row": first * bin_rows,
            "rows": n,
            "documents_per_row": documents / n,
            "crop_fraction": cropped / placed,
            "buffer_share_longer_than_row": too_long / buffered,
            "mean_document_tokens": placed / documents,
        })
    return report


def report_table(meta: dict) -> str:
    """The packing report of a meta.json for people."""
    lines = [f"{'rows':>23}  documents/row   cropped  buffer longer than a row  mean document"]
    for part in meta["packing_report"]:
        first, n = part["first_row"], part["rows"]
        rows = f"{first:,}..{first + n - 1:,}"
        lines.append(f"{rows:>23}  {part['documents_per_row']:13.2f}  {part['crop_fraction']:8.2%}  "
                     f"{part['buffer_share_longer_than_row']:24.1%}  {part['mean_document_tokens']:13.1f}")
    lines.append(
        f"{meta['rows_written_total']:,} rows of {meta['row_tokens']:,} tokens, {meta['overflow']}: "
        f"{meta['tokens_cropped_total']:,} tokens cropped = {meta['crop_fraction']:.2%} of written + "
        f"cropped, {meta['bos_added_total']:,} BOS added"
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Documents -> rows of seq_len + 1 GPT-2 tokens that start with BOS, and the same "
                    "held-out set as prepare_fineweb.py.",
        epilog="example: python prepare_bos_rows.py --dataset 'corpus/*.parquet' --out_dir data/rows",
    )
    prepare_fineweb.add_source_arguments(parser)
    add = parser.add_argument_group("rows").add_argument
    add("--seq_len", type=int, default=1024,
        help="tokens that a row predicts; a row has one more (default: 1024)")
    add("--overflow", choices=["crop", "split", "requeue"], default="crop",
        help="documents that do not fit: as published; long ones cut up first; cut up and nothing "
             "dropped (default: crop)")
    add("--buffer_docs", type=int, default=1000, help="documents to choose from (default: 1000)")
    add("--batch_docs", type=int, default=256,
        help="documents handed to the packer at once; never changes a row (default: 256)")
    add("--shard_rows", type=int, default=0,
        help="rows per train shard (default: 0 = what fits into --shard_tokens)")
    args = parser.parse_args(argv)
    try:
        train = RowTrain(args)
    except ValueError as error:
        sys.exit(str(error))
    prepare_fineweb.run(args, train)
    with contextlib.suppress(OSError):
        train.buffer_file.remove()
    print(report_table(shards.read_meta(args.out_dir)))


if __name__ == "__main__":
    main()
