"""prepare_fineweb.py owns documents: where they come from (`iter_documents`) and how they become stream shards.

    python prepare_fineweb.py --out_dir data/fineweb --target_tokens 10_000_000_000 --num_proc 16      # from the hub
    python prepare_fineweb.py --dataset 'corpus/*.parquet' more.jsonl.zst --out_dir data/mine --num_proc 4
    python prepare_fineweb.py --dataset synthetic --target_tokens 2_000_000 --out_dir data/toy      # no network
    python prepare_fineweb.py --dataset synthetic --target_tokens 2_000_000 --out_dir data/mul --condition mul_tokens

Reads documents; writes a dataset folder (shards.py): train_*.bin, val_*.bin, val_documents.npz and, last, meta.json.
Every document is [50256] + bpe(text). About 1 % of the documents, chosen by a hash of their text, are held out in
val_*.bin: the same ones in every condition. Before that, --decontaminate drops the documents that hold items of a
benchmark (decontaminate.py) and lists them in decontamination.jsonl. Kill it at any moment and run it again with
--resume: the result is byte-identical to an uninterrupted run, as it is for every --num_proc and --tokenizer_backend.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

import inject_mul
from lab import decontaminate, shards, sources

IN_FLIGHT_BYTES = 2**25  # text that workers hold at once, however many they are
MAX_WORKERS = 16  # one reader cannot feed more, and each holds 27 MB of gigatoken's tables and as much cache (measured)
COMMIT_SECONDS = 1.0  # work a kill may cost; one commit is a few fsyncs
SIGNS = [re.compile(sign.pattern.encode()) for sign in inject_mul.SIGNS]  # a text without one holds no product


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that both prepare scripts share."""
    group = parser.add_argument_group("documents")
    group.add_argument("--dataset", nargs="+", default=["HuggingFaceFW/fineweb-edu"], metavar="NAME|PATH|GLOB",
                       help="a Hugging Face dataset (streamed), a folder, local files or globs *.parquet "
                            "*.jsonl[.gz|.zst] *.txt (a file is one document), or 'synthetic' "
                            "(default: HuggingFaceFW/fineweb-edu)")
    group.add_argument("--config", default="sample-10BT", help="configuration on the hub (default: sample-10BT)")
    group.add_argument("--split", default="train", help="split on the hub (default: train)")
    group.add_argument("--revision", help="commit, tag or branch on the hub (default: main, resolved and recorded)")
    group.add_argument("--text_field", default="text", help="column or JSON field with the text (default: text)")
    group.add_argument("--synthetic_seed", type=int, default=0, help="world of --dataset synthetic (default: 0)")
    group.add_argument("--max_docs", type=int, default=0, help="documents to read (default: 0 = all)")
    group.add_argument("--target_tokens", type=int, default=0,
                       help="train tokens: stop after the document that reaches it, fail if the source has fewer. "
                            "Plain GPT-2 tokens in every condition, so that all stop alike (default: 0 = off)")
    group.add_argument("--bad_documents", choices=["error", "skip"], default="error",
                       help="empty, not UTF-8 or over 32 MiB: stop, or leave out and count (default: error)")
    decontaminate.add_argument(group)

    group = parser.add_argument_group("tokens")
    group.add_argument("--tokenizer", choices=["gpt2"], default="gpt2", help="gpt2 is the only one")
    group.add_argument("--tokenizer_backend", choices=["auto", "tiktoken", "gigatoken"], default="auto",
                       help="auto: gigatoken if installed and equal to tiktoken on a probe; never changes a byte")
    group.add_argument("--condition", choices=["baseline", "mul_tokens"], default="baseline",
                       help="mul_tokens: whole products such as 6*9=54 become one token (default: baseline)")
    group.add_argument("--inject", choices=["weak", "strict"],
                       help="with mul_tokens: weak also takes products without their result (default: weak)")

    group = parser.add_argument_group("output")
    group.add_argument("--out_dir", required=True, help="folder of the dataset, created; must not hold another one")
    group.add_argument("--shard_tokens", type=int, default=100_000_000, help="tokens per shard (default: 100_000_000)")
    group.add_argument("--val_shards", type=int, default=1,
                       help="hold out about this many shards of plain GPT-2 tokens at most (default: 1; 0 = none)")
    group.add_argument("--val_fraction", type=float, default=0.01,
                       help="share of the documents held out, by hash, until the cap (default: 0.01)")
    group.add_argument("--num_proc", type=int, default=1,
                       help="tokenising workers, at most 16 (threads: tokenizers run outside the interpreter lock); "
                            "1 = the reader does it all (default: 1)")
    group.add_argument("--resume", action="store_true", help="continue a killed or interrupted run of the same command")


# ------------------------------------------------------------------------------------------------------------
# tokens


class Tokenized(NamedTuple):
    """A batch of n documents as tokens; the unusable ones are in `bad` only."""

    ids: np.ndarray  # uint16 (N,): [50256] + tokens of each document
    numbers: np.ndarray  # int64 (n,): which documents
    lengths: np.ndarray  # int64 (n,): tokens with BOS
    baseline_tokens: np.ndarray  # int64 (n,): the same in plain GPT-2 BPE
    utf8_bytes: np.ndarray  # int64 (n,)
    digests: list[bytes]
    selected: np.ndarray  # bool (n,): belongs to the held-out share by its hash
    mul_bytes: dict[int, list[int]]  # document -> original UTF-8 bytes of the text behind each of its mul tokens
    hits: dict[int, list[str]]  # document -> benchmark items that contaminate it
    bad: list[tuple[int, str]]  # (number, why)
    end: int  # number of the document after the batch


def tokenize(first: int, documents: list[bytes | str], backend: str, inject: str | None, val_fraction: float,
             guard: decontaminate.Guard | None = None):
    """One item of `read_batches` -> Tokenized. A pure function, so that any number of workers gives the same bytes."""
    tokenizer = shards.get_tokenizer(backend)
    injector = inject_mul.MulExpressionInjector(inject) if inject else None
    bad = [(first + i, document) for i, document in enumerate(documents) if isinstance(document, str)]
    numbers = np.arange(first, first + len(documents))
    if bad:
        numbers = np.setdiff1d(numbers, [number for number, _ in bad])
    texts = [document for document in documents if isinstance(document, bytes)]
    digests = [shards.document_hash(text) for text in texts]
    hits = guard.hits_batch(texts) if guard else {}

    # A document is cut at its products; every piece is tokenised on its own and follows a special id: BOS or a product.
    pieces, specials, document_at, mul_bytes = texts, shards.BOS_ID, np.arange(len(texts)), {}
    if injector:
        pieces, specials, document_at = [], [], []
        for i, utf8 in enumerate(texts):
            document_at.append(len(pieces))
            specials.append(shards.BOS_ID)
            last = 0
            if any(sign.search(utf8) for sign in SIGNS):
                text = utf8.decode()
                for start, end, a, b in injector.spans(text):
                    pieces.append(text[last:start].encode())
                    specials.append(shards.MulFactTokens.id_of(a, b))
                    mul_bytes.setdefault(i, []).append(len(text[start:end].encode()))
                    last = end
                if last:
                    utf8 = text[last:].encode()
            pieces.append(utf8)
    tokens, piece_lengths = tokenizer.encode_batch(pieces)
    at = np.cumsum(piece_lengths) - piece_lengths + np.arange(len(pieces))  # where the special ids go
    ids = np.empty(len(tokens) + len(pieces), np.uint16)
    is_text = np.ones(len(ids), bool)
    is_text[at] = False
    ids[is_text], ids[at] = tokens, specials
    lengths = np.add.reduceat(piece_lengths + 1, document_at) if texts else piece_lengths
    baseline_tokens = lengths.copy()
    if mul_bytes:
        baseline_tokens[list(mul_bytes)] = tokenizer.encode_batch([texts[i] for i in mul_bytes])[1] + 1
    utf8_bytes = np.array([len(text) for text in texts], np.int64)
    selected = shards.is_held_out(digests, val_fraction)
    return Tokenized(ids, numbers, lengths, baseline_tokens, utf8_bytes, digests, selected, mul_bytes, hits, bad,
                     first + len(documents))


def tokenized_batches(args: argparse.Namespace, source: sources.Source, start: int, guard=None) -> Iterator[Tokenized]:
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
                done, future = pending.popleft()
                in_flight -= done
                yield future.result()
            pending.append((size, pool.submit(tokenize, first, documents, *settings)))
            in_flight += size
        while pending:
            yield pending.popleft()[1].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# ------------------------------------------------------------------------------------------------------------
# prepare


class StreamTrain:
    """What becomes of the documents that are not held out: a plain stream. prepare_bos_rows.py packs rows instead."""

    def settings(self) -> dict:
        """What decides the bytes, and the format's fields of meta.json."""
        return {"format": "stream"}

    def add(self, writer: shards.DatasetWriter, ids: np.ndarray, lengths: np.ndarray, utf8_bytes: np.ndarray) -> None:
        """Documents as they come: ids (N,), tokens and original bytes per document."""
        writer.write("train", ids, lengths, utf8_bytes)

    def state(self) -> dict:
        """What `restore` needs after a kill, JSON-able."""
        return {}

    def restore(self, state: dict) -> None:
        pass

    def finish(self, writer: shards.DatasetWriter) -> dict:
        """After the last document: write what is left, return fields for meta.json with `tokens_cropped_total`."""
        return {"tokens_cropped_total": 0}


def check_arguments(args: argparse.Namespace) -> None:
    """ValueError in one sentence; fills in --inject."""
    for name, low in (("num_proc", 1), ("shard_tokens", 2), ("val_shards", 0), ("max_docs", 0), ("target_tokens", 0),
                      ("synthetic_seed", 0)):
        if getattr(args, name) < low:
            raise ValueError(f"--{name} must be {low} or more, not {getattr(args, name)}.")
    if not 0 < args.val_fraction < 1:
        raise ValueError(f"--val_fraction must lie between 0 and 1, not {args.val_fraction} (--val_shards 0: no val).")
    if args.condition == "baseline" and args.inject:
        raise ValueError("--inject does nothing in the baseline: add --condition mul_tokens or drop --inject.")
    if args.condition == "mul_tokens":
        args.inject = args.inject or "weak"


def prepare(args: argparse.Namespace, train) -> dict:
    """Documents -> dataset folder: the story of both prepare scripts. Returns meta.json, or raises KeyboardInterrupt.

    train: see StreamTrain. Raises ValueError / FileNotFoundError / OSError in one sentence.
    """
    from tqdm import tqdm

    check_arguments(args)
    guard = decontaminate.from_argument(args.decontaminate)
    source = sources.open_source(args)
    tokenizer = shards.get_tokenizer(args.tokenizer_backend)
    names = "text_field condition inject shard_tokens val_shards val_fraction max_docs target_tokens".split()
    settings = {name: getattr(args, name) for name in names}
    settings |= {"source": source.record, "tokenizer_sha256": shards.tokenizer_hash(), **train.settings()}
    if guard:
        settings["decontaminate"] = guard.settings
    writer = shards.DatasetWriter(args.out_dir, settings, args.shard_tokens, args.val_shards, args.resume)
    if writer.complete:
        print(f"{args.out_dir} is already finished.")
        return shards.read_meta(args.out_dir)

    # everything a kill may not forget, handed to writer.commit together with the tokens it describes
    state = {"documents": 0, "held_out": 0, "dropped": 0, "tokens_read": 0, "tokens_dropped": 0, "plain_train": 0,
             "plain_held_out": 0, "bytes_read": 0, "docs_with_products": 0, "products": {}, "seconds": 0.0,
             "train": {}} | writer.state
    train.restore(state["train"])
    held_out = writer.held_out_hashes()
    if guard:
        writer.append(decontaminate.LOG, b"")  # an empty one says that nothing was found
    cap = args.val_shards * args.shard_tokens
    started = committed = time.time()
    seconds_before = state["seconds"]
    signals = []
    total, unit = (args.target_tokens, "tok") if args.target_tokens else (source.documents, "doc")
    key = "plain_train" if args.target_tokens else "documents"
    every = 0.5 if sys.stderr.isatty() else 10  # seconds between two lines of the bar
    bar = tqdm(total=total, initial=state[key], unit=unit, unit_scale=True, mininterval=every)
    tokens_at_start = state["tokens_read"]

    def commit():
        nonlocal committed
        state["train"], state["seconds"] = train.state(), seconds_before + time.time() - started
        writer.commit(state)
        committed = time.time()

    def on_signal(number, _):
        signals.append(number)
        if len(signals) > 1:  # the user does not want to wait for the batch
            raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    previous = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)} if in_main else {}
    try:
        reached = args.target_tokens and state["plain_train"] >= args.target_tokens  # before a kill
        for batch in () if reached else tokenized_batches(args, source, state["documents"], guard):
            _add_batch(args, batch, writer, train, state, held_out, cap)
            if args.bad_documents == "error" and batch.bad and batch.bad[0][0] < state["documents"]:
                raise ValueError(sources.bad_document(*batch.bad[0]))
            reached = args.target_tokens and state["plain_train"] >= args.target_tokens
            bar.update(state[key] - bar.n)
            rate = (state["tokens_read"] - tokens_at_start) / (time.time() - started)
            bar.set_postfix_str(f"{state['tokens_read']:,} tokens read, {rate / 1e6:.2f} M/s", refresh=False)
            if signals or reached or writer.closed_since_commit() or time.time() - committed > COMMIT_SECONDS:
                commit()
            if signals or reached:
                break
        bar.close()
        if signals:
            raise KeyboardInterrupt
        commit()
        if args.target_tokens > state["plain_train"]:
            raise ValueError(
                f"the source gives {state['plain_train']:,} train tokens, not --target_tokens {args.target_tokens:,}: "
                f"delete {args.out_dir} and run again with more documents or a lower target."
            )
        if args.val_shards and not state["held_out"]:
            raise ValueError(
                f"none of {state['documents']:,} documents was held out at --val_fraction {args.val_fraction}: delete "
                f"{args.out_dir} and raise --val_fraction, or pass --val_shards 0."
            )
        fields = train.finish(writer)
        if guard:
            fields["decontamination"] = decontaminate.summary(guard, writer.appended(decontaminate.LOG))
        meta = _meta(args, source, tokenizer, writer, state, fields, seconds_before + time.time() - started)
        return writer.finish(meta | train.settings() | fields)
    except (ValueError, OSError):
        writer.abandon()
        raise
    finally:
        bar.close()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _add_batch(args, batch: Tokenized, writer, train, state: dict, held_out: set, cap: int) -> None:
    """Hold out, drop or pass on each document, and stop after the one that reaches --target_tokens."""
    n = len(batch.lengths)
    to_val, dropped = np.zeros(n, bool), np.zeros(n, bool)
    dropped[list(batch.hits)] = True
    plain = state["plain_held_out"]
    for i in np.flatnonzero(batch.selected & ~dropped).tolist() if cap else []:
        if plain < cap:
            to_val[i] = True
            plain += int(batch.baseline_tokens[i])
            held_out.add(batch.digests[i])
        else:
            dropped[i] = batch.digests[i] in held_out  # its text is in val: training on it would leak
    to_train = ~(to_val | dropped)
    end, bad = batch.end, len(batch.bad)
    if args.target_tokens:
        reached = state["plain_train"] + np.cumsum(batch.baseline_tokens * to_train) >= args.target_tokens
        if reached.any():
            n = int(np.argmax(reached)) + 1
            end = int(batch.numbers[n - 1]) + 1
            bad = sum(number < end for number, _ in batch.bad)
            for mask in (to_val, dropped, to_train):
                mask[n:] = False

    ends = np.cumsum(batch.lengths)
    for i in np.flatnonzero(to_val).tolist():
        ids = batch.ids[ends[i] - batch.lengths[i] : ends[i]]
        writer.write_val_document(ids, batch.digests[i], int(batch.baseline_tokens[i]), int(batch.utf8_bytes[i]),
                                  batch.mul_bytes.get(i, ()))
    for i, items in batch.hits.items():
        if i < n:
            line = decontaminate.log_lines(int(batch.numbers[i]), int(batch.baseline_tokens[i]), items)
            writer.append(decontaminate.LOG, line)
    whole = to_train.all()
    ids = batch.ids if whole else batch.ids[np.repeat(to_train, batch.lengths)]
    if len(ids):
        train.add(writer, ids, batch.lengths[to_train], batch.utf8_bytes[to_train])

    if args.inject:
        with_products = [i for i in batch.mul_bytes if to_train[i]]
        state["docs_with_products"] += len(with_products)
        for token, count in zip(*np.unique(ids[ids >= shards.FIRST_MUL_ID], return_counts=True), strict=True):
            name = shards.MulFactTokens.id_to_token[int(token)]
            state["products"][name] = state["products"].get(name, 0) + int(count)
    state["documents"] = end
    state["held_out"] += int(to_val.sum())
    state["dropped"] += int(dropped.sum()) + bad
    state["tokens_read"] += int(batch.lengths[:n].sum())
    state["tokens_dropped"] += int(batch.lengths[dropped].sum())
    state["bytes_read"] += int(batch.utf8_bytes[:n].sum())
    state["plain_train"] += int(batch.baseline_tokens[to_train].sum())
    state["plain_held_out"] += int(batch.baseline_tokens[to_val].sum())


def _meta(args, source: sources.Source, tokenizer, writer, state: dict, fields: dict, seconds: float) -> dict:
    """The fields of meta.json that are not the writer's or the train side's; ValueError unless the account closes."""
    account = {
        "tokens_read": state["tokens_read"],
        "train_written": writer.tokens("train"),
        "held_out": writer.tokens("val"),
        "cropped": fields["tokens_cropped_total"],
        "dropped": state["tokens_dropped"],
    }
    read, *parts = account.values()
    if read != sum(parts):
        raise ValueError(
            f"the token account does not close: {account} (read minus the rest is {read - sum(parts)}); nothing was "
            f"presented as finished. Delete {args.out_dir}, prepare again, and report this if it happens twice."
        )
    if not writer.tokens("train"):
        raise ValueError(
            f"all {state['documents']:,} documents were held out or dropped: delete {args.out_dir} and lower "
            "--val_fraction, or pass --val_shards 0."
        )
    from importlib.metadata import version  # 0.02 s

    products = sum(state["products"].values())
    return {
        "dataset": " ".join(args.dataset),
        "config": args.config if source.kind == "hub" else None,
        "split": args.split if source.kind == "hub" else None,
        "text_field": args.text_field,
        "source": source.record,
        "tokenizer": args.tokenizer,
        "tokenizer_backend": tokenizer.backend,
        "tokenizer_sha256": shards.tokenizer_hash(),
        "vocab_size": shards.VOCAB_SIZE,
        "dtype": "uint16",
        "bos_token_id": shards.BOS_ID,
        "doc_format": "[bos] + tokens",
        "shard_tokens": args.shard_tokens,
        "val_shards": args.val_shards,
        "val_fraction": args.val_fraction,
        "condition": args.condition,
        "inject": args.inject,
        "mul_tokens_in_train": products,
        "mul_token_rate": products / writer.tokens("train"),
        "mul_token_counts": dict(sorted(state["products"].items())),
        "docs_with_mul_tokens": state["docs_with_products"],
        "docs_processed": state["documents"],
        "docs_held_out": state["held_out"],
        "docs_dropped": state["dropped"],
        "utf8_bytes_processed": state["bytes_read"],
        "plain_tokens_in_train": state["plain_train"],
        "token_account": account,
        "elapsed_seconds": round(seconds, 3),
        "throughput_tokens_per_sec": round(read / seconds),
        "versions": {name: version(name) for name in _packages(source, tokenizer)},
        **git_commit(),
    }


def _packages(source: sources.Source, tokenizer) -> list[str]:
    return ["numpy", "tiktoken", "pyarrow"] + [tokenizer.backend] * (tokenizer.backend != "tiktoken") + (
        ["datasets", "huggingface_hub"] if source.kind == "hub" else [])


def git_commit() -> dict:
    """{"git_commit": hash or None, "git_dirty": whether tracked files differ from it or None}."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--untracked-files=no"]
        dirty = bool(subprocess.run(status, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit, "git_dirty": dirty}


def print_summary(args: argparse.Namespace, meta: dict) -> None:
    """What was written, and one decoded sample: with a product in it where there is one."""
    tokenizer, folder = shards.get_tokenizer(args.tokenizer_backend), Path(args.out_dir)
    for split in ("train", "val"):
        files = [record for record in meta["data_files"] if record["split"] == split]
        if files:
            tokens, size = (sum(record[name] for record in files) for name in ("tokens", "utf8_bytes"))
            print(f"{split:5}  {len(files):4} files  {sum(record['documents'] for record in files):11,} documents  "
                  f"{tokens:15,} tokens  {size / tokens:.3f} bytes/token")
    account = meta["token_account"]
    print(f"read {account['tokens_read']:,} tokens = " + " + ".join(f"{n:,} {k}" for k, n in account.items()
                                                                    if k != "tokens_read"))
    print(f"documents: {meta['docs_processed']:,} read, {meta['docs_held_out']:,} held out, "
          f"{meta['docs_dropped']:,} dropped; {meta['elapsed_seconds']:.1f} s, "
          f"{meta['throughput_tokens_per_sec'] / 1e6:.2f} M tokens/s ({meta['tokenizer_backend']})")
    if found := meta.get("decontamination"):
        counts = ", ".join(f"{name} {record['documents_dropped']:,} ({record['items_hit_total']:,} of "
                           f"{record['items']:,} items)" for name, record in found["benchmarks"].items())
        print(f"contaminated and dropped: {found['documents_dropped']:,} documents, "
              f"{found['plain_tokens_dropped']:,} tokens: {counts}")
    if meta["condition"] == "mul_tokens":
        print(f"products: {meta['mul_tokens_in_train']:,} in {meta['docs_with_mul_tokens']:,} train documents, "
              f"{meta['mul_token_rate']:.2e} of all train tokens")
        if not meta["mul_tokens_in_train"]:
            print("WARNING: no product was found, so this dataset equals the baseline: the intervention is absent.")
    first = np.memmap(folder / "train_000000.bin", dtype="<u2", mode="r")[: 2**22]
    at = max(0, int(np.argmax(first >= shards.FIRST_MUL_ID)) - 32)
    print(f"sample: {tokenizer.decode(first[at : at + 96])!r}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Documents -> stream shards of GPT-2 tokens, with a held-out set chosen by hash.",
        epilog="example: python prepare_fineweb.py --dataset 'corpus/*.parquet' --out_dir data/mine --num_proc 4",
    )
    add_source_arguments(parser)
    args = parser.parse_args(argv)
    run(args, StreamTrain())


def run(args: argparse.Namespace, train) -> None:
    """`prepare` for a command line: errors as one sentence with exit status 1, Ctrl-C with 130."""
    try:
        print_summary(args, prepare(args, train))
    except KeyboardInterrupt:
        print(f"stopped; run the same command again with --resume to continue {args.out_dir}.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"writing {args.out_dir} failed ({error.strerror or error}): free some space or check the disk, then "
                 "run the same command again with --resume.")


if __name__ == "__main__":
    main()
