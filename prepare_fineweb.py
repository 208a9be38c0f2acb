"""prepare_fineweb.py owns the way from documents to stream shards, and the token account that closes it.

    python prepare_fineweb.py --out_dir data/fineweb --target_tokens 10_000_000_000 --num_proc 16      # from the hub
    python prepare_fineweb.py --dataset 'corpus/*.parquet' more.jsonl.zst --out_dir data/mine --num_proc 4
    python prepare_fineweb.py --dataset synthetic --target_tokens 2_000_000 --out_dir data/toy      # no network
    python prepare_fineweb.py --dataset synthetic --target_tokens 2_000_000 --out_dir data/mul --condition mul_tokens

    python prepare_fineweb.py --dataset kjj0/fineweb10B-gpt2 --max_shards 9 --out_dir data/fineweb10B   # tokens already

Reads documents (lab/sources.py); writes a dataset folder (lab/shards.py). Every document is [50256] + bpe(text) of
GPT-2's tokenizer or, with --tokenizer, [BOS] + bpe(text) of another (train_tokenizer.py makes one). About 1 % of the
documents, chosen by a hash of their text, are held out in val_*.bin: the same in every condition. Before it,
--decontaminate drops the documents that hold items of a benchmark (lab/decontaminate.py). --resume after a kill gives
the same bytes as an uninterrupted run, as do every --num_proc and --tokenizer_backend. So do `--part i/n`, which makes
the tokens of the source files i, i + n, ... on one of many machines, and `--merge` afterwards (lab/parts.py).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np

from lab import (
    decontaminate,
    disk,
    files,
    flags,
    parts,
    pretokenized,
    processes,
    shards,
    snapshots,
    sources,
    tokenizer_json,
    tokenizing,
    units,
)
from lab.byte_pairs import BACKENDS
from lab.schema import ANY_NAME, COUNT, NUMBER, TEXT, misfit
from lab.token_files import require
from lab.tokenizer import MulFactTokens, get_tokenizer, tokenizer_hash, use

COMMIT_SECONDS = 1.0  # work a kill may cost; one commit is a few fsyncs
# flags that decide the bytes
SETTINGS = """text_field condition inject shard_tokens val_shards val_fraction
              max_docs target_tokens""".split()
# of all documents so far, committed with the tokens; "plain" counts GPT-2 tokens, the same in every condition
COUNTS = """documents held_out dropped docs_with_products bytes_read
            tokens_read tokens_dropped plain_train plain_held_out""".split()
# what `print_summary` reads in the meta.json of a dataset that was finished before
SUMMARY = {
    "docs_processed": COUNT, "docs_held_out": COUNT, "docs_dropped": COUNT, "condition": TEXT,
    "mul_tokens_in_train": COUNT, "docs_with_mul_tokens": COUNT, "mul_token_rate": NUMBER,
    "docs_with_special_texts?": {ANY_NAME: COUNT},
    "tokenizer_backend": TEXT, "elapsed_seconds": NUMBER, "throughput_tokens_per_sec": COUNT,
    "token_account": {"tokens_read": COUNT, ANY_NAME: NUMBER},
    "decontamination?": {"benchmarks": {
        ANY_NAME: {"documents_dropped": COUNT, "items_hit_total": COUNT, "items": COUNT},
    }},
}


def add_source_arguments(group) -> None:
    """The flags that say which documents are read, and which of them are held out."""
    add = group.add_argument
    add("--dataset", nargs="+", default=["HuggingFaceFW/fineweb-edu"], metavar="NAME|PATH|GLOB",
        help="a Hugging Face dataset (streamed), a folder, files or globs *.parquet *.jsonl[.gz|.zst] *.txt "
             "(a document, or several with <|endoftext|> between them), or 'synthetic'; a folder is all "
             "such files in it (default: HuggingFaceFW/fineweb-edu)")
    add("--config", default="sample-10BT", help="configuration on the hub (default: %(default)s)")
    add("--split", default="train",
        help="split on the hub, or of a folder whose files all name one (default: %(default)s)")
    add("--revision", help="commit or branch on the hub (default: main, resolved and recorded)")
    add("--text_field", default="text", help="column or JSON field with the text (default: text)")
    add("--synthetic_seed", type=int, default=0, help="world of --dataset synthetic (default: 0)")
    add("--max_docs", type=int, default=0, help="documents to read (default: 0 = all)")
    add("--bad_documents", choices=["error", "skip"], default="error",
        help="empty, not UTF-8 or over 32 MiB: stop, or leave out and count (default: error)")
    add("--val_fraction", type=float, default=0.01,
        help="share of documents held out (default: 0.01)")
    add("--holdout_by", metavar="COLUMN",
        help="hold out by this column or JSON field, such as the book of a chapter: all documents "
             "of a value or none; --val_fraction is then a share of values; a text that several values "
             "share, such as a foreword, may be in train and val (default: off)")


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that both prepare scripts share."""
    group = parser.add_argument_group("documents")
    add_source_arguments(group)
    add = group.add_argument
    add("--target_tokens", type=int, default=0,
        help="train tokens (plain GPT-2's in every condition): stop after the document that reaches it, "
             "fail if the source has fewer (default: 0 = off)")
    add("--max_shards", type=int,
        help="the dataset, on the hub or a folder, is llm.c's shards of GPT-2 tokens: take the first N "
             "of train and all of val, which is held out; 0 = all (default: off, it holds documents)")
    decontaminate.add_argument(group)

    add = parser.add_argument_group("tokens").add_argument
    add("--tokenizer", default="gpt2", metavar="gpt2|PATH",
        help="GPT-2's, or a byte-level BPE: a tokenizer.json, or the folder that holds it, as "
             "python train_tokenizer.py makes it (default: gpt2)")
    add("--tokenizer_backend", choices=BACKENDS, default="auto",
        help="auto: gigatoken if installed and equal to tiktoken (or tokenizers) on a probe; never "
             "changes a byte")
    add("--condition", choices=["baseline", "mul_tokens"], default="baseline",
        help="mul_tokens: whole products such as 6*9=54 become one token (default: baseline)")
    add("--inject", choices=["weak", "strict"],
        help="with mul_tokens: weak also takes products without their result (default: weak)")

    add = parser.add_argument_group("output").add_argument
    add("--out_dir", required=True, help="folder of the dataset, created; must not hold another")
    add("--shard_tokens", type=int, default=100_000_000, help="per shard (default: 100_000_000)")
    add("--val_shards", type=int, default=1, help="hold out at most so many (default: 1; 0 = none)")
    add("--num_proc", type=int, default=1, help="tokenising threads, at most 16 (default: 1)")
    add("--resume", action="store_true", help="continue a killed run of the same command; --target_tokens may "
        "change until it is reached")
    parts.add_arguments(parser)


def check_at_least(args: argparse.Namespace, **least: int) -> None:
    """ValueError for a flag below its least value."""
    for name, low in least.items():
        value = getattr(args, name)
        require(value >= low, f"--{name} must be {low} or more, not {value}", "pass another")


def check_val_fraction(args: argparse.Namespace) -> None:
    """ValueError for a share that would hold out nothing, or all."""
    require(0 < args.val_fraction < 1,
            f"--val_fraction must lie between 0 and 1, not {args.val_fraction}",
            "pass a share such as 0.01; in a prepare script, --val_shards 0 holds out nothing")


# ------------------------------------------------------------------------------------------------------------
# prepare


class StreamTrain:
    """Where documents go that are not held out: a plain stream. prepare_bos_rows.RowTrain packs rows instead."""

    SUMMARY = {}  # the shape of what a summary reads of this in meta.json

    def __init__(self, args: argparse.Namespace):
        self.shard_tokens = args.shard_tokens  # of train shards
        self.settings = {"format": "stream"}  # what decides the bytes; also fields of meta.json

    def add(self, writer, ids: np.ndarray, lengths: np.ndarray, utf8_bytes: np.ndarray) -> None:
        """Documents as they come: ids (N,), tokens and original bytes per document."""
        writer.write("train", ids, lengths, utf8_bytes)

    def state(self) -> dict:
        """What `restore` needs after a kill, JSON-able."""
        return {}

    def restore(self, state: dict) -> None:
        """Continue from `state`; {} begins."""

    def finish(self, writer) -> tuple[dict, dict]:
        """Write what is left. Returns (entries of the token account, fields of meta.json)."""
        return {"cropped": 0}, {"tokens_cropped_total": 0}

    def clean(self) -> None:
        """Delete what only `restore` would need."""


def prepare(args: argparse.Namespace, train) -> dict | None:
    """Documents -> dataset folder, in the tokens of this process: the story of both prepare scripts. Returns meta.json,
    or None where --part asks for parts only. Raises KeyboardInterrupt after ctrl-C.

    train: see StreamTrain. Raises ValueError / FileNotFoundError / OSError in one sentence."""
    check_at_least(args, num_proc=1, shard_tokens=2, val_shards=0)
    check_at_least(args, max_docs=0, target_tokens=0, synthetic_seed=0)
    check_val_fraction(args)
    require(not args.holdout_by or args.val_shards,
            "--holdout_by says what is held out together, and --val_shards 0 holds out nothing", "drop one of them")
    if args.condition == "mul_tokens":
        args.inject = args.inject or "weak"
    elif args.inject:
        raise ValueError("--inject needs --condition mul_tokens: add it, or drop --inject.")
    parts.check_arguments(args)
    require(args.tokenizer == "gpt2" or args.max_shards is None,
            "--max_shards takes shards of GPT-2's tokens", "leave --tokenizer out")
    guard = decontaminate.from_argument(args.decontaminate)
    own = get_tokenizer(args.tokenizer_backend)
    require(own.is_gpt2 or args.condition == "baseline",
            "--condition mul_tokens has its 45 tokens behind GPT-2's",
            "leave --tokenizer out, or --condition")
    if args.resume and not own.is_gpt2:  # the same file may lie elsewhere by now
        own.name = tokenizer_json.name_begun(args.out_dir, own.sha256) or own.name
    if args.part is not None:
        parts.make(args, guard)
        return None
    source, batches_from = open_batches(args, guard)
    settings = {name: getattr(args, name) for name in SETTINGS}
    settings |= {"source": source.record, "tokenizer_sha256": tokenizer_hash(), **train.settings}
    settings["condition"] = condition_of(args)
    if guard:
        settings["decontaminate"] = guard.settings
    if args.holdout_by:
        settings["holdout_by"] = args.holdout_by
    with disk.hold(args.out_dir):
        return write_dataset(args, train, source, guard, settings, batches_from)


def condition_of(args) -> str:
    """--condition or, with a tokenizer of one's own, its name."""
    if args.condition != "baseline":
        return args.condition
    return get_tokenizer(args.tokenizer_backend).condition


def open_batches(args, guard) -> tuple[sources.Source, Callable]:
    """Where the tokens come from: (source, function that gives their batches from a document's number on)."""
    if args.max_shards is not None:
        args.val_fraction = args.text_field = None  # its val shards are held out; it has no column
        source = pretokenized.open_source(args)
        return source, lambda start: pretokenized.batches(source, args.tokenizer_backend, start)
    if args.merge:
        source = sources.open_source(args, look=False)
        abouts = parts.check_parts(args, source, guard)
        source = source._replace(documents=parts.documents(abouts, source))
        require(source.documents != 0, f"--dataset {' '.join(args.dataset)} holds no documents", "give files that do")
        return source, lambda start: parts.batches(args, source, abouts, start)
    source = sources.open_source(args)
    return source, lambda start: tokenizing.tokenized_batches(args, source, start, guard)


def write_dataset(args, train, source: sources.Source, guard, settings: dict,
                  batches_from: Callable) -> dict:
    """The part of `prepare` that writes, into a folder that no other process may write into."""
    from tqdm import tqdm

    writer = shards.DatasetWriter(args.out_dir, settings, args.shard_tokens, args.val_shards,
                                  args.resume, train.shard_tokens)
    if writer.complete:
        train.clean()
        print(f"{args.out_dir} is already finished.")
        meta = shards.read_meta(args.out_dir)
        fault = misfit(meta, SUMMARY | train.SUMMARY)
        require(not fault, f"{args.out_dir}/meta.json is damaged or edited ({fault})",
                f"{shards.to_clear(args.out_dir)} and prepare again")
        return meta

    state = dict.fromkeys(COUNTS, 0) | {"seconds": 0.0, "train": {}, "special": {}} | writer.state
    train.restore(state["train"])
    held_out = writer.held_out_hashes()
    if guard:
        writer.append(decontaminate.LOG, b"")  # without a line: no document was contaminated
    started = time.monotonic() - state["seconds"]  # as if a killed run had ended just now

    def elapsed() -> float:
        """Seconds so far; never 0, as a coarse clock may say."""
        return max(time.monotonic() - started, 1e-3)

    def commit() -> float:
        """Returns the seconds it took."""
        began = time.monotonic()
        state["train"], state["seconds"] = train.state(), began - started
        writer.commit(state)
        return time.monotonic() - began

    target, counted, total, unit = math.inf, "documents", source.documents, "doc"
    if args.target_tokens:
        target = args.target_tokens
        counted, total, unit = "plain_train", target, "tok"
    interval = 0.5 if sys.stderr.isatty() else 10  # seconds between two lines
    bar = tqdm(total=total, initial=state[counted], unit=unit, unit_scale=True,
               mininterval=interval)
    batches = batches_from(state["documents"])
    stop, pause = processes.StopRequest(), COMMIT_SECONDS
    try:
        with bar, contextlib.closing(batches):
            while not stop.asked and state["plain_train"] < target:
                batch = next(batches, None)
                if batch is None:
                    break
                add_batch(args, batch, writer, train, state, held_out)
                for number, why in batch.bad:
                    if args.bad_documents == "error" and number < state["documents"]:
                        clear = shards.to_clear(args.out_dir) if writer.state else ""
                        raise ValueError(sources.bad_document(number, why, clear))
                bar.update(state[counted] - bar.n)
                rate = state["tokens_read"] / elapsed() / 1e6
                bar.set_postfix_str(f"{state['tokens_read']:,} tokens read, {rate:.2f} M/s", refresh=False)
                if writer.commit_is_due(pause):
                    pause = max(COMMIT_SECONDS, 20 * commit())  # commits take 5 % of the time at most
            commit()
            if stop.asked:
                raise KeyboardInterrupt
            tokens = state["plain_train"]
            require(target == math.inf or tokens >= target,
                    f"the source gives {tokens:,} train tokens, not --target_tokens {target:,}",
                    "pass --resume --target_tokens 0 to take them all, or "
                    f"{shards.to_clear(args.out_dir)} and run again with more documents")
            more = "raise --val_fraction"
            if state["documents"] == 1:  # which is in train or held out, whatever the fraction
                more = "cut the text into documents"
            require(state["held_out"] or not args.val_shards,
                    f"none of {units.count(state['documents'], 'document')} was held out at --val_fraction "
                    f"{args.val_fraction}{why_so_few(state, source)}",
                    f"{shards.to_clear(args.out_dir)} and {more}, or pass --val_shards 0 and score "
                    "another dataset (train_gpt.py --val_data_dir)")
            files.refuse_changed(source.files, source.stamps)
            entries, fields = train.finish(writer)
            if guard:
                log = writer.appended(decontaminate.LOG)
                fields["decontamination"] = decontaminate.summary(guard, log)
            meta = meta_fields(args, source, writer, state, entries, elapsed())
            get_tokenizer(args.tokenizer_backend).save(args.out_dir)
            meta = writer.finish(meta | train.settings | fields)
            train.clean()
            return meta
    except (ValueError, OSError):
        writer.abandon()
        if not writer.state:
            train.clean()
        raise
    finally:
        stop.restore()


TRAIN, VAL, DROPPED = range(3)  # where a document goes


def assign(args, batch: tokenizing.Tokenized, state: dict, held_out: set[bytes]) -> np.ndarray:
    """Where the documents of a batch go, up to the one that reaches --target_tokens: int8 (up to n,)."""
    place = np.full(len(batch.lengths), TRAIN, np.int8)
    place[list(batch.hits)] = DROPPED
    cap, plain = args.val_shards * args.shard_tokens, state["plain_held_out"]
    # what is selected never goes into train, even when the val shards are full
    never_in_train = args.holdout_by or args.max_shards is not None
    # --holdout_by also drops what shares a group with a held-out document
    considered = batch.selected | bool(args.holdout_by)
    for i in np.flatnonzero(considered & (place == TRAIN)).tolist():
        if batch.selected[i] and plain < cap:
            place[i] = VAL
            plain += int(batch.baseline_tokens[i])
            held_out.add(batch.digests[i])
        elif batch.digests[i] in held_out or (never_in_train and batch.selected[i]):
            place[i] = DROPPED  # its text, or others of its group, are in val: training on it would leak
    if args.target_tokens:
        plain_train = state["plain_train"] + np.cumsum(batch.baseline_tokens * (place == TRAIN))
        place = place[: np.searchsorted(plain_train, args.target_tokens) + 1]
    return place


def add_batch(args, batch: tokenizing.Tokenized, writer, train, state: dict,
              held_out: set[bytes]) -> None:
    """Write, pass on or drop each document, up to the one that reaches --target_tokens, and count."""
    place = assign(args, batch, state, held_out)
    n = len(place)
    lengths, utf8_bytes = batch.lengths[:n], batch.utf8_bytes[:n]
    baseline_tokens = batch.baseline_tokens[:n]
    to_train, to_val, dropped = place == TRAIN, place == VAL, place == DROPPED

    ends = np.cumsum(lengths)
    for i in np.flatnonzero(to_val).tolist():
        ids = batch.ids[ends[i] - lengths[i] : ends[i]]
        writer.write_val_document(ids, batch.digests[i], int(baseline_tokens[i]), int(utf8_bytes[i]),
                                  batch.mul_bytes.get(i, ()))
    for i, items in batch.hits.items():
        if i < n:
            line = decontaminate.log_lines(int(batch.numbers[i]), int(baseline_tokens[i]), items)
            writer.append(decontaminate.LOG, line)
    # the stretches of documents between those that are held out or dropped
    edges = np.flatnonzero(np.diff(to_train, prepend=False, append=False))
    stretches = np.append(0, ends)[edges].reshape(-1, 2).tolist()
    kept = [batch.ids[start:end] for start, end in stretches]
    if kept:
        train.add(writer, np.concatenate(kept), lengths[to_train], utf8_bytes[to_train])

    state["docs_with_products"] += sum(i < n and bool(to_train[i]) for i in batch.mul_bytes)
    for literal, documents in batch.special.items():
        if holders := sum(i < n for i in documents):
            state["special"][literal] = state["special"].get(literal, 0) + holders
    state["held_out"] += int(to_val.sum())
    state["tokens_read"] += int(lengths.sum())
    state["tokens_dropped"] += int(lengths[dropped].sum())
    state["bytes_read"] += int(utf8_bytes.sum())
    state["plain_train"] += int(baseline_tokens[to_train].sum())
    state["plain_held_out"] += int(baseline_tokens[to_val].sum())
    state["documents"] = batch.end
    if 0 < args.target_tokens <= state["plain_train"]:
        state["documents"] = int(batch.numbers[n - 1]) + 1
    unusable = sum(number < state["documents"] for number, _ in batch.bad)
    state["dropped"] += int(dropped.sum()) + unusable


def why_so_few(state: dict, source: sources.Source) -> str:
    """What may explain, in brackets, that no document was held out, or all were."""
    words = []
    if state["dropped"]:
        words.append(f"{state['dropped']:,} of them dropped as unusable")
    has_txt = any(path.lower().endswith(".txt") for path in source.files)
    if has_txt and state["documents"] < 100:
        words.append("a .txt file is one document, unless <|endoftext|> stands between its texts")
    if not words:
        return ""
    return f" ({'; '.join(words)})"


def meta_fields(args, source: sources.Source, writer, state: dict, entries: dict,
                seconds: float) -> dict:
    """The fields of meta.json that are not the writer's or the train side's; ValueError unless the account closes.

    entries: what the train side adds to the account, which says where every token that was read has gone."""
    written = writer.tokens("train")
    account = {"tokens_read": state["tokens_read"], "train_written": written,
               "held_out": writer.tokens("val"), "cropped": 0, "dropped": state["tokens_dropped"]}
    account |= entries
    read, *parts = account.values()
    rest = read - sum(parts)
    require(rest == 0, f"the token account does not close: {account} (read minus all others is {rest})",
            f"{shards.to_clear(args.out_dir)}, prepare again, and report this if it happens twice")
    documents = units.count(state["documents"], "document")
    require(written, f"of {documents} none is left to train on, as all were held out or dropped"
                     f"{why_so_few(state, source)}",
            f"{shards.to_clear(args.out_dir)} and lower --val_fraction, or pass --val_shards 0")
    own = get_tokenizer(args.tokenizer_backend)
    packages, config, split = ["numpy", "pyarrow", own.reference], None, None
    if own.backend != own.reference:
        packages.append(own.backend)
    if source.kind == "hub":
        packages += ["datasets", "huggingface_hub"]
        config, split = args.config, args.split
    elif source.record["kind"] == "hub":
        packages.append("huggingface_hub")
    counts = dict(zip(MulFactTokens.tokens, writer.mul_counts.tolist(), strict=True))
    counts = {name: count for name, count in counts.items() if count}
    products = sum(counts.values())
    code = snapshots.code_state()
    return {
        "dataset": " ".join(args.dataset),
        "dataset_name": " + ".join(map(files.short_name, args.dataset)),
        "config": config, "split": split,
        "text_field": args.text_field, "source": source.record,
        "tokenizer": own.name, "tokenizer_backend": own.backend, "tokenizer_sha256": own.sha256,
        "vocab_size": own.vocab_size, "bos_token_id": own.bos_id,
        "dtype": "uint16", "doc_format": "[bos] + tokens",
        "shard_tokens": args.shard_tokens, "val_shards": args.val_shards, "val_fraction": args.val_fraction,
        "holdout_by": args.holdout_by,
        "condition": condition_of(args), "inject": args.inject,
        "mul_tokens_in_train": products, "mul_token_rate": products / written,
        "mul_token_counts": counts,
        "docs_with_mul_tokens": state["docs_with_products"], "docs_processed": state["documents"],
        "docs_held_out": state["held_out"], "docs_dropped": state["dropped"],
        "docs_with_special_texts": state["special"],
        "utf8_bytes_processed": state["bytes_read"], "plain_tokens_in_train": state["plain_train"],
        "token_account": account,
        "elapsed_seconds": round(seconds, 3), "throughput_tokens_per_sec": round(read / seconds),
        "versions": {name: metadata.version(name) for name in packages},
        "git_commit": code["git_commit"], "git_dirty": code["git_dirty"],
    }


# ------------------------------------------------------------------------------------------------------------
# command line


def print_summary(args: argparse.Namespace, meta: dict) -> None:
    """What was written, and one decoded sample: with a product in it where there is one."""
    for split in ("train", "val"):
        written = [record for record in meta["data_files"] if record["split"] == split]
        if written:
            names = ("documents", "tokens", "utf8_bytes")
            documents, tokens, size = (sum(record[name] for record in written) for name in names)
            print(f"{split:5}  {len(written):4} files  {documents:11,} documents  "
                  f"{tokens:15,} tokens  {size / tokens:.3f} bytes/token")
    (_, read), *parts = meta["token_account"].items()
    print(f"read {read:,} tokens = " + " + ".join(f"{n:,} {name}" for name, n in parts))
    rate = meta["throughput_tokens_per_sec"] / 1e6
    print(f"documents: {meta['docs_processed']:,} read, {meta['docs_held_out']:,} held out, "
          f"{meta['docs_dropped']:,} dropped; {meta['elapsed_seconds']:.1f} s, "
          f"{rate:.2f} M tokens/s ({meta['tokenizer_backend']})")
    if report := meta.get("decontamination"):
        for name, record in report["benchmarks"].items():
            print(f"contaminated and dropped: {record['documents_dropped']:,} documents for "
                  f"{record['items_hit_total']:,} of {record['items']:,} items of {name}")
    if meta["condition"] == "mul_tokens":
        products, documents = meta["mul_tokens_in_train"], meta["docs_with_mul_tokens"]
        print(f"products: {products:,} in {documents:,} train documents, "
              f"{meta['mul_token_rate']:.2e} of all train tokens")
        if not products:
            print("WARNING: without products this dataset equals the baseline: the intervention is absent.")
    special = {name: n for name, n in meta.get("docs_with_special_texts", {}).items() if n}
    if special:
        names = ", ".join(f"{name} ({n:,} documents)" for name, n in special.items())
        print(f"WARNING: {names} stands in the text and was read as ordinary characters, not as a token or "
              "a border of documents: if it is one, cut the documents there, or take it out.")
    first = np.memmap(Path(args.out_dir) / "train_000000.bin", dtype="<u2", mode="r")[: 2**22]
    own = get_tokenizer(args.tokenizer_backend)
    start = max(0, int(np.argmax(first >= own.first_mul_id)) - 32)
    sample = own.decode(first[start : start + 96])
    print(f"sample: {sample!r}")


def run(args: argparse.Namespace, train_side) -> dict | None:
    """`prepare` for a command line, with a summary: a failed write, and ctrl-C, say what to do next.

    train_side: the class, StreamTrain or another. Returns what `prepare` does."""
    try:
        use(args.tokenizer, args.tokenizer_backend)  # a missing one is noticed before a folder is made
        meta = prepare(args, train_side(args))
        if meta:
            print_summary(args, meta)
        return meta
    except KeyboardInterrupt:
        sentence = f"stopped before anything was written; to begin {args.out_dir}, run it again."
        if args.part is not None:
            sentence = "stopped; the finished parts stay, and the same command makes the others."
        elif is_unfinished(args.out_dir):
            sentence = f"stopped; to continue {args.out_dir}, run it again with --resume."
        raise KeyboardInterrupt(sentence) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        folder, again = args.out_dir, ""
        if args.part is not None:
            folder = parts.folder_of(args)
        elif is_unfinished(folder):
            again = " with --resume"
        fault = f"writing {folder} failed"
        if error.filename and not Path(os.fsdecode(error.filename)).is_relative_to(folder):  # what is read, or a cache
            fault = f"{os.fsdecode(error.filename)} cannot be used"
        why, remedy = disk.reason_of(error), disk.remedy_of(error)
        raise OSError(f"{fault} ({why}): {remedy}, then run the same command again{again}.") from error


def is_unfinished(folder) -> bool:
    """Whether a failed or stopped prepare has left what only --resume, or deleting it, may follow."""
    return (Path(folder) / "progress.json").exists()


def main(argv: list[str] | None = None) -> None:
    parser = flags.Parser(
        description="Documents -> stream shards of tokens, with a held-out set chosen by hash.",
        epilog="example: python prepare_fineweb.py --dataset 'corpus/*.parquet' --out_dir data/mine --num_proc 4"
               + parts.EXAMPLES)
    add_shared_arguments(parser)
    args = parser.parse_args(argv)
    run(args, StreamTrain)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "prepare_fineweb.py")
