"""train_tokenizer.py owns tokenizers of one's own: byte-level BPE, learned from documents that are not held out.

    python train_tokenizer.py --dataset 'corpus/*.parquet' --vocab_size 16384 --out_dir tokenizers/corpus_16k
    python prepare_fineweb.py --dataset 'corpus/*.parquet' --tokenizer tokenizers/corpus_16k --out_dir data/corpus_16k
    python prepare_fineweb.py --dataset 'corpus/*.parquet' --out_dir data/corpus                 # GPT-2's, beside it

Merges are learned by the package `tokenizers` as in Sennrich et al. 2016 (arXiv:1508.07909), on bytes
as in GPT-2 (Radford et al. 2019), within the pieces that --pattern cuts a text into. Writes
tokenizer.json, which Hugging Face's libraries read as it is, and training.json: what it was learned
from, and how many bytes of held-out text a token stands for. What the prepare scripts hold out with the
same --val_fraction and --holdout_by is not learned from. The same documents and flags give the same file.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from importlib import metadata
from pathlib import Path

import prepare_fineweb
from lab import disk, flags, processes, shards, snapshots, sources
from lab.byte_pairs import Tokenizer
from lab.token_files import require
from lab.tokenizer import LEAST_IDS, gpt2_tokenizer
from lab.tokenizer_json import TokenizerOfFile

END_OF_TEXT = "<|endoftext|>"
MOST_IDS = 2**16  # what a uint16 holds; LEAST_IDS are the bytes and END_OF_TEXT
MEASURED_BYTES = 2**22  # of held-out text, to count bytes per token on
# what a text is cut into first, as no token spans two pieces; None: GPT-2's, built in
GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")  # of tiktoken's cl100k_base
PATTERNS = {"gpt2": None, "gpt4": GPT4, "digits": GPT4.replace("{1,3}", "")}  # the last is Qwen2's


class Reader:
    """The documents of a source. learned_from() gives those to learn from; the first MEASURED_BYTES of
    held-out ones are kept in `held_out`. Attributes: documents and bytes that were learned from, skipped
    (unusable documents)."""

    def __init__(self, source: sources.Source, args, stop: processes.StopRequest):
        self.source, self.args, self.stop = source, args, stop
        self.held_out: list[bytes] = []
        self.documents = self.bytes = self.skipped = 0

    def learned_from(self) -> Iterator[list[str]]:
        """Batches of texts, up to --max_bytes. ValueError for an unusable document; KeyboardInterrupt after
        ctrl-C."""
        from tqdm import tqdm

        interval = 0.5 if sys.stderr.isatty() else 10  # seconds between two lines
        bar = tqdm(total=self.source.documents, unit="doc", unit_scale=True, mininterval=interval)
        with bar, contextlib.closing(sources.read_batches(self.source)) as batches:
            for first, documents in batches:
                if self.stop.asked:
                    raise KeyboardInterrupt
                texts = self._to_learn(first, documents)
                bar.update(len(documents))
                yield texts
                if self.bytes >= self.args.max_bytes:
                    return

    def _to_learn(self, first: int, documents: list[bytes | str]) -> list[str]:
        texts = []
        for number, document in enumerate(documents, first):
            if isinstance(document, str):  # why it is unusable
                if self.args.bad_documents == "error":
                    raise ValueError(sources.bad_document(number, document))
                self.skipped += 1
            elif self._is_held_out(document):
                if sum(map(len, self.held_out)) < MEASURED_BYTES:
                    self.held_out.append(document)
            elif self.bytes < self.args.max_bytes:
                texts.append(document.decode())
                self.documents += 1
                self.bytes += len(document)
        return texts

    def _is_held_out(self, document: bytes) -> bool:
        digest = shards.document_hash(getattr(document, "group", document))
        return bool(shards.is_held_out([digest], self.args.val_fraction)[0])


def learn(reader: Reader, vocab_size: int, pattern: str):
    """A tokenizers.Tokenizer of at most `vocab_size` ids; END_OF_TEXT is the last."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    cut = PATTERNS[pattern]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut is None)
    tokenizer.pre_tokenizer = to_bytes
    if cut is not None:
        pieces = pre_tokenizers.Split(Regex(cut), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[], show_progress=sys.stderr.isatty())
    tokenizer.train_from_iterator(reader.learned_from(), trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def in_a_thread(work: Callable, stop: processes.StopRequest):
    """What work() returns. The main thread stays free to hear ctrl-C, as the library would not let it
    through for minutes. KeyboardInterrupt once a stop is asked for; the thread ends with the process."""
    future = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not wait([future], timeout=0.1).done:
        if stop.asked:
            raise KeyboardInterrupt
    return future.result()


def measure(tokenizer: Tokenizer, texts: list[bytes]) -> dict:
    """{"vocab_size", "tokens", "bytes_per_token"} of texts, without BOS."""
    tokens, rate = int(tokenizer.encode_batch(texts)[1].sum()), None
    if tokens:
        rate = sum(map(len, texts)) / tokens
    return {"vocab_size": tokenizer.vocab_size, "tokens": tokens, "bytes_per_token": rate}


def train(args: argparse.Namespace) -> dict:
    """Learn a tokenizer and write its folder. Returns training.json. ValueError / OSError in a sentence, and
    KeyboardInterrupt after ctrl-C, before anything is written."""
    require(LEAST_IDS <= args.vocab_size <= MOST_IDS,
            f"--vocab_size {args.vocab_size} is not between {LEAST_IDS}, the bytes and <|endoftext|>, and "
            f"{MOST_IDS}, what a uint16 holds", "8192, 16384 and 32768 are usual; give one")
    prepare_fineweb.check_at_least(args, max_bytes=1, max_docs=0, synthetic_seed=0)
    prepare_fineweb.check_val_fraction(args)
    folder = Path(args.out_dir)
    require(folder.name != "gpt2", "--out_dir gpt2 would be GPT-2's in --tokenizer gpt2", "name another")
    fault = f"{folder} already holds a tokenizer"
    require(not (folder / "tokenizer.json").exists(), fault, "choose another --out_dir")
    require(args.max_docs or args.dataset != ["synthetic"], "--dataset synthetic has no end",
            "pass --max_docs")
    source = sources.open_source(args)
    disk.make_folder(folder, "--out_dir")
    stop = processes.StopRequest("nothing is written")
    try:
        reader = Reader(source, args, stop)
        learned = in_a_thread(lambda: learn(reader, args.vocab_size, args.pattern), stop)
        require(reader.documents, "no document was left to learn from",
                "lower --val_fraction, or give more documents")
    except BaseException:
        with contextlib.suppress(OSError):  # it may hold something else
            folder.rmdir()
        raise
    finally:
        stop.restore()
    made = learned.get_vocab_size()
    if made < args.vocab_size:
        print(f"NOTE: {reader.bytes:,} bytes of text have pairs for {made:,} ids, not for --vocab_size "
              f"{args.vocab_size:,}: give more text for more.")
    record = {
        "vocab_size": made, "pattern": args.pattern, "max_bytes": args.max_bytes,
        "source": source.record, "val_fraction": args.val_fraction, "holdout_by": args.holdout_by,
        "documents": reader.documents, "bytes": reader.bytes, "documents_skipped": reader.skipped,
        "versions": {name: metadata.version(name) for name in ("tokenizers", "numpy")},
        "git_commit": snapshots.code_state()["git_commit"],
    }
    path, data = folder / "tokenizer.json", learned.to_str(pretty=True).encode()
    own = TokenizerOfFile(data, folder.name, str(path))
    record["held_out_bytes"] = sum(map(len, reader.held_out))
    record["held_out"] = {"this": measure(own, reader.held_out)}
    record["held_out"]["gpt2"] = measure(gpt2_tokenizer(), reader.held_out)
    disk.write_json(folder / "training.json", record)
    disk.write_whole(path, data)  # last: where it is, all is
    return record


def print_summary(args: argparse.Namespace, record: dict) -> None:
    print(f"{args.out_dir}: {record['vocab_size']:,} ids, learned from {record['documents']:,} documents "
          f"of {record['bytes']:,} bytes, pattern {args.pattern}")
    rows = {"this tokenizer": record["held_out"]["this"], "GPT-2's": record["held_out"]["gpt2"]}
    if not record["held_out_bytes"]:
        print("No document was held out, so bytes per token were not counted.")
        return
    print(f"on {record['held_out_bytes']:,} bytes of held-out documents:")
    for name, row in rows.items():
        ids = row["vocab_size"] if name == "this tokenizer" else 50257
        print(f"    {name:15} {ids:6,} ids   {row['tokens']:9,} tokens   "
              f"{row['bytes_per_token']:.3f} bytes/token")


def main(argv: list[str] | None = None) -> None:
    parser = flags.Parser(
        description="Documents -> a tokenizer: byte-level BPE of --vocab_size ids.",
        epilog="example: python train_tokenizer.py --dataset 'corpus/*.parquet' --vocab_size 16384 "
               "--out_dir tokenizers/corpus_16k")
    prepare_fineweb.add_source_arguments(parser.add_argument_group("documents"))
    add = parser.add_argument_group("tokenizer").add_argument
    add("--vocab_size", type=int, default=32768,
        help="ids, <|endoftext|> included (default: %(default)s)")
    add("--pattern", choices=PATTERNS, default="gpt2",
        help="what a text is cut into first: as by GPT-2's tokenizer; as by GPT-4's, with at most three "
             "digits in a piece; the same with each digit alone (default: gpt2)")
    add("--max_bytes", type=int, default=1_000_000_000,
        help="text to learn from (default: 1_000_000_000)")
    add("--out_dir", required=True,
        help="folder to make, such as tokenizers/mine_16k; its name will name the tokens of a dataset")
    args = parser.parse_args(argv)
    args.target_tokens, args.num_proc = 0, 1  # of the prepare scripts, which share the reader
    try:
        print_summary(args, train(args))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; nothing was written.") from None


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "train_tokenizer.py")
