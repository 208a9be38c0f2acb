"""pretokenized.py owns datasets that others have tokenised: llm.c's shards of GPT-2 tokens, on the hub or in a folder.

    python prepare_fineweb.py --dataset kjj0/fineweb10B-gpt2 --max_shards 9 --out_dir data/fineweb10B       # 003's 9
    python prepare_bos_rows.py --dataset kjj0/fineweb10B-gpt2 --max_shards 9 --out_dir data/fineweb10B_rows

A shard has 256 int32 (magic 20240520, version 1, number of tokens, zeros), then uint16 ids; a document begins with its
50256 and may go on in the next shard (token_files.py reads the layout). Shards whose names hold `val` are held out,
the first N of those with `train` are trained on. huggingface_hub fetches one after the other into its cache, where a
download that broke off is continued. What comes before the first 50256 of a split is the end of a document that began
in a shard of the other split, or in none that is here: it is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lab import retries, shards, sources, terminal, token_files
from lab.token_files import TokenFile, require
from lab.tokenizer import BOS_ID, VOCAB_SIZE, get_tokenizer
from lab.tokenizing import Tokenized, between

BLOCK_TOKENS = 2**20  # handed on at once


def check_arguments(args: argparse.Namespace) -> None:
    """ValueError for flags that need the text."""
    n = args.max_shards
    require(n >= 0, f"--max_shards must be 0 or more, not {n}", "pass 0 for all")
    is_one = len(args.dataset) == 1
    require(is_one, "--max_shards takes one --dataset", "name a folder or a dataset on the hub")
    refused = {
        "--condition mul_tokens": args.condition == "mul_tokens",
        "--decontaminate": args.decontaminate,
        "--holdout_by": args.holdout_by,
    }
    for flag, given in refused.items():
        require(not given, f"{flag} needs text, and --max_shards takes tokens as they are",
                "leave one out, or prepare the documents, as of HuggingFaceFW/fineweb")


def open_source(args: argparse.Namespace) -> sources.Source:
    """Which shards --dataset and --max_shards mean: val first, then train. ValueError / FileNotFoundError in one
    sentence."""
    check_arguments(args)
    name = args.dataset[0]
    if sources.is_hub_name(name):
        revision, paths = _with_retries(lambda: _list_hub(name, args.revision))
        record = {"kind": "hub", "format": "llm.c", "revision": revision}
    else:
        remedy = "check its name, or drop --max_shards"
        require(Path(name).is_dir(), f"--dataset {name} is no folder of shards", remedy, FileNotFoundError)
        paths = sorted(str(path) for path in Path(name).iterdir() if path.suffix == ".bin")
        record = {"kind": "local", "format": "llm.c"}
    val, train = ([path for path in paths if token_files.splits_of(Path(path)) == {split}]
                  for split in ("val", "train"))
    has = f"--dataset {name} has"
    require(train, f"{has} no shards *train*.bin", "drop --max_shards to read its documents")
    require(val or not args.val_shards, f"{has} no shard *val*.bin", "pass --val_shards 0")
    n = args.max_shards or len(train)
    require(n <= len(train), f"{has} {len(train):,} train shards, not --max_shards {n:,}", "lower it")
    chosen = [*val, *train[:n]]
    if record["kind"] == "local":
        record["files"] = [sources.describe(path) for path in chosen]
    else:
        record["files"] = chosen
    stop = args.max_docs or None
    return sources.Source("tokens", chosen, (name,), record, 0, stop, stop, {})


def _with_retries(request):
    """What a request to the hub returns, tried again after a network error."""
    return next(retries.with_retries(lambda _: iter([request()]), 0, lambda _: 0))


def _list_hub(name: str, revision: str | None) -> tuple[str, list[str]]:
    """(commit, names of the .bin files) of a dataset on the hub."""
    import huggingface_hub

    revision = sources.hub_revision(name, revision)
    names = huggingface_hub.HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
    return revision, sorted(path for path in names if path.endswith(".bin"))


def open_shard(source: sources.Source, path: str) -> TokenFile:
    """A shard on this machine, fetched if need be. ValueError unless its header, length and ids are right."""
    local = Path(path)
    if source.record["kind"] == "hub":
        import huggingface_hub

        name, revision = source.columns[0], source.record["revision"]
        download = huggingface_hub.hf_hub_download
        local = Path(_with_retries(lambda: download(name, path, repo_type="dataset", revision=revision)))
    layout = token_files.FILE_FORMATS["llm.c"](local)
    remedy = "get it again, or drop --max_shards to read documents"
    require(layout, f"{local} does not begin with llm.c's header", remedy)
    file = TokenFile(local, *layout)
    file.inspect(VOCAB_SIZE)
    file.verify(VOCAB_SIZE)
    return file


def batches(source: sources.Source, backend: str, start: int) -> Iterator[Tokenized]:
    """Batches of whole documents, from number `start` on and before `source.stop`; those of val are `selected`."""
    number, stop = 0, source.stop or 2**62
    for ids, is_val in _blocks(source):
        starts = np.flatnonzero(ids == BOS_ID)
        end = number + len(starts)
        if end > start and number < stop:
            yield between(_tokenized(ids, starts, number, is_val, backend), start, stop)
        number = end


def _blocks(source: sources.Source) -> Iterator[tuple[np.ndarray, bool]]:
    """(ids that begin with a document and end with one, whether they are held out), about BLOCK_TOKENS at a time."""
    rest, was_val = np.empty(0, np.uint16), None
    for path in source.files:
        is_val = token_files.splits_of(Path(path)) == {"val"}
        if is_val != was_val and len(rest):
            yield rest, was_val
        file = open_shard(source, path)
        ids, begun = file.memmap(), is_val == was_val
        if not begun:
            first = int(np.argmax(ids == BOS_ID))
            fault = f"{file.path} holds no {BOS_ID}, which begins each document"
            require(ids[first] == BOS_ID, fault, "get it again")
            if first:
                terminal.note(f"NOTE: {file.path.name} begins with {first:,} tokens of a document "
                              "whose beginning is not in this split: they are left out.")
            rest, ids = rest[:0], ids[first:]
        was_val = is_val
        for at in range(0, len(ids), BLOCK_TOKENS):
            rest = np.concatenate([rest, ids[at : at + BLOCK_TOKENS]])
            # where the unfinished document begins
            last = len(rest) - 1 - int(np.argmax(rest[::-1] == BOS_ID))
            if last:
                yield rest[:last], is_val
            rest = rest[last:]
    if len(rest):
        yield rest, was_val


def _tokenized(ids: np.ndarray, starts: np.ndarray, number: int, is_val: bool,
               backend: str) -> Tokenized:
    tokenizer, n = get_tokenizer(backend), len(starts)
    lengths = np.diff(starts, append=len(ids))
    utf8_bytes = np.add.reduceat(tokenizer.token_byte_lengths()[ids], starts, dtype=np.int64)
    digests = [b""] * n
    if is_val:  # the hash of the text, by which a document has one name in every dataset
        documents = np.split(ids, starts[1:])
        texts = [tokenizer.decode_bytes(document[1:]) for document in documents]
        digests = [shards.document_hash(text) for text in texts]
    numbers, selected = np.arange(number, number + n), np.full(n, is_val)
    return Tokenized(ids, numbers, lengths, lengths, utf8_bytes, digests, selected,
                     mul_bytes={}, hits={}, special={}, bad=[], end=number + n)
