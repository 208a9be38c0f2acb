"""sources.py owns rows out of files and the hub: parquet, jsonl[.gz, .zst], txt, `synthetic:N`."""

from __future__ import annotations

import argparse
import codecs
import glob
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lab import disk, synthetic

BATCH_BYTES = 2**20  # text tokenised in one go; larger gains nothing (measured), smaller costs calls
MAX_DOCUMENT_BYTES = 2**25  # 32 MiB: with tiktoken, whose ids come as a list, one of 59 MB took 1.4 GB (measured)
RETRY_WAITS = (1, 2, 4, 8, 16, 32)  # seconds before each new attempt after a network error
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")
EMPTY, NOT_TEXT, TOO_LONG = "empty", "not text or not valid UTF-8", f"longer than {MAX_DOCUMENT_BYTES:,} bytes"


class Source(NamedTuple):
    """kind "hub", "local" or "synthetic"; record: what meta.json says about it; documents: how many, None = unknown."""

    kind: str
    files: list[str]
    field: str
    record: dict
    seed: int
    documents: int | None  # in the source, or --max_docs if that is less
    stop: int | None  # --max_docs
    counts: dict[str, int]  # documents of the files read so far: a restart need not open them again


def iter_documents(args: argparse.Namespace, start: int = 0) -> Iterator[tuple[int, str]]:
    """(number, text) of every document of `--dataset` from number `start` on. ValueError / OSError in one sentence."""
    for first, documents in read_batches(open_source(args), start):
        for number, document in enumerate(documents, first):
            if isinstance(document, bytes):
                yield number, document.decode()
            elif args.bad_documents == "error":
                raise ValueError(bad_document(number, document))


def bad_document(number: int, why: str) -> str:
    return f"document {number:,} (counted from 0) is {why}: repair it, or pass --bad_documents skip."


def open_source(args: argparse.Namespace) -> Source:
    """Find the files, check that the first document can be read, and pin what will be read."""
    stop = args.max_docs or None
    if args.dataset == ["synthetic"]:
        if not (args.max_docs or args.target_tokens):
            raise ValueError("--dataset synthetic has no end: pass --max_docs or --target_tokens.")
        record = {"kind": "synthetic", "seed": args.synthetic_seed}
        return Source("synthetic", [], args.text_field, record, args.synthetic_seed, stop, stop, {})
    if len(args.dataset) == 1 and not _is_local(args.dataset[0]):
        source = _open_hub(args, args.dataset[0])
    elif len(args.dataset) == 1 and Path(args.dataset[0]).is_dir():
        try:
            files, _ = _resolve_with_datasets(args.dataset[0], None, args.split, None)
        except OSError as error:
            raise ValueError(f"--dataset {args.dataset[0]} holds no data files: name them with a glob.") from error
        source = _open_local(args, files)
    else:
        files = []
        for pattern in args.dataset:
            found = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
            files += [path for path in found if Path(path).is_file()]
            if not found:
                raise FileNotFoundError(f"--dataset {pattern}: no such file or glob; check the path.")
        source = _open_local(args, files)
    if stop:
        source = source._replace(stop=stop, documents=min(stop, source.documents or stop))
    if next(read_batches(source), None) is None:
        raise ValueError(f"--dataset {' '.join(args.dataset)} holds no documents: give files that do.")
    return source


def _is_local(name: str) -> bool:
    return Path(name).exists() or name.endswith(SUFFIXES) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)


def _open_local(args: argparse.Namespace, files: list[str]) -> Source:
    if unknown := [path for path in files if not path.endswith(SUFFIXES)]:
        raise ValueError(f"{unknown[0]} is none of {', '.join(SUFFIXES)}: convert it to one of these.")
    with ThreadPoolExecutor(max_workers=min(8, args.num_proc)) as pool:
        digests = list(pool.map(_local_digest, files))
    record = {"kind": "local", "files": [
        {"name": Path(path).name, "bytes": os.path.getsize(path), "sha256": digest}
        for path, digest in zip(files, digests, strict=True)]}
    documents = 0
    for path in files:
        if path.endswith(".parquet"):
            with _readable(path):
                documents += _parquet_file(open(path, "rb"), path, args.text_field).metadata.num_rows
    if not all(path.endswith(".parquet") for path in files):
        documents = None
    return Source("local", files, args.text_field, record, 0, documents, None, {})


def _local_digest(path: str) -> str:
    try:
        return disk.sha256_file(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error


def _open_hub(args: argparse.Namespace, name: str) -> Source:
    """The files of one revision of a hub dataset; `datasets` knows which belong to a configuration and split."""
    import huggingface_hub

    def resolve(_):
        revision = huggingface_hub.HfApi().dataset_info(name, revision=args.revision, timeout=20).sha
        yield revision, *_resolve_with_datasets(name, args.config, args.split, revision)

    revision, files, documents = next(with_retries(resolve, 0, lambda _: 0, RETRY_WAITS[:3]))
    if unknown := [path for path in files if not path.endswith(SUFFIXES)]:
        raise ValueError(f"--dataset {name} is stored as {unknown[0]}, not {', '.join(SUFFIXES)}: give local files.")
    record = {"kind": "hub", "revision": revision, "files": [path.split("/", 3)[-1] for path in files]}
    return Source("hub", files, args.text_field, record, 0, documents, None, {})


def _resolve_with_datasets(name: str, config: str | None, split: str, revision: str | None):
    """(paths, documents or None) of a split of a hub dataset or of a local folder. ValueError when there is no such."""
    import datasets

    builder = datasets.load_dataset_builder(name, config, revision=revision)
    files = {str(key): list(paths) for key, paths in (builder.config.data_files or {}).items()}
    if split not in files:
        raise ValueError(f"--dataset {name} has no split {split!r}: pass --split with one of {', '.join(files)}.")
    info = (builder.info.splits or {}).get(split)
    return files[split], getattr(info, "num_examples", None) or None


def read_batches(source: Source, start: int = 0) -> Iterator[tuple[int, list[bytes | str]]]:
    """Lists of about BATCH_BYTES of documents from number `start` on, as (number of the first, list).

    A usable document is its UTF-8 bytes; any other is a str that says why not. Up to `source.stop` documents.
    """
    if source.kind == "synthetic":
        batches = _read_synthetic(source.seed, start)
    elif source.kind == "hub":
        batches = with_retries(lambda first: _read_files(source, first), start, lambda item: item[0] + len(item[1]))
    else:
        batches = _read_files(source, start)
    for first, documents in batches:
        if source.stop is not None and first + len(documents) >= source.stop:
            if first < source.stop:
                yield first, documents[: source.stop - first]
            return
        yield first, documents


def _read_synthetic(seed: int, start: int):
    for first in range(start, sys.maxsize, 256):
        yield first, [text.encode() for text in synthetic.documents(seed, first, first + 256)]


def _read_files(source: Source, start: int):
    first = 0  # number of the file's first document
    for path in source.files:
        known = source.counts.get(path)
        if known is None or first + known > start:
            position = first
            read = _read_parquet if path.endswith(".parquet") else _read_txt if path.endswith(".txt") else _read_jsonl
            with _readable(path, remote=source.kind == "hub"), _open_file(source, path) as f:
                for count, documents in read(f, path, source.field, max(0, start - first)):
                    if documents is not None:
                        yield position, documents
                    position += count
            source.counts[path] = position - first
        first += source.counts[path]


def _open_file(source: Source, path: str):
    if source.kind == "hub":
        import fsspec

        return fsspec.open(path, "rb").open()
    return open(path, "rb")


class _readable:
    """Turns what a damaged local file raises into one sentence; a remote file's errors go to `with_retries`."""

    def __init__(self, path: str, remote: bool = False):
        self.path, self.remote = path, remote

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        import pyarrow

        if not self.remote and isinstance(error, (OSError, EOFError, pyarrow.ArrowException)):
            raise ValueError(
                f"{self.path} cannot be read ({first_line(error)}): it is damaged or cut off; download it again."
            ) from error


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


# each reader yields (number of documents, their list, or None for documents before `skip`)


def _parquet_file(f, path: str, field: str):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(f, buffer_size=2**20, pre_buffer=False)  # page by page: a row group may exceed the memory
    schema = file.schema_arrow
    if field not in schema.names:
        raise ValueError(f"{path} has no column {field!r}: pass --text_field with one of {', '.join(schema.names)}.")
    kind = schema.field(field).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
                                       pa.types.is_binary, pa.types.is_large_binary, pa.types.is_null)):
        raise ValueError(f"column {field!r} of {path} holds {kind}, not text: pass another --text_field.")
    return file


def _read_parquet(f, path: str, field: str, skip: int):
    file = _parquet_file(f, path, field)
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        if skip >= group.num_rows:
            skip -= group.num_rows
            yield group.num_rows, None
            continue
        columns = [group.column(i) for i in range(group.num_columns)]
        size = next(column.total_uncompressed_size for column in columns if column.path_in_schema == field)
        rows = min(4096, max(1, BATCH_BYTES * group.num_rows // max(1, size)))
        for batch in file.iter_batches(rows, row_groups=[number], columns=[field], use_threads=False):
            column = batch.column(0)
            if skip:
                cut = min(skip, len(column))
                yield cut, None
                column, skip = column.slice(cut), skip - cut
            if len(column):
                yield len(column), _utf8_list(column)


def _utf8_list(column) -> list[bytes | str]:
    """An Arrow array of text as UTF-8 bytes; the check runs in C++ at 10 GB/s unless it finds something."""
    import pyarrow as pa

    large = column.type in (pa.large_string(), pa.large_binary())
    text, plain = (pa.large_string(), pa.large_binary()) if large else (pa.string(), pa.binary())
    if column.type not in (text, plain):  # dictionary, string view, null
        column = column.cast(plain)
    values = column.view(plain).to_pylist()
    try:
        column.view(text).validate(full=True)
        valid = True
    except pa.ArrowInvalid:
        valid = False
    if valid and all(values) and column.nbytes < MAX_DOCUMENT_BYTES:
        return values
    return [_checked(value) for value in values]


def _checked(value) -> bytes | str:
    """A document's UTF-8 bytes, or why it is unusable."""
    if not value and isinstance(value, (str, bytes)):
        return EMPTY
    try:
        utf8 = value.encode() if isinstance(value, str) else value
        utf8.decode()
    except (UnicodeError, AttributeError):  # a lone surrogate, or no text at all
        return NOT_TEXT
    return utf8 if len(utf8) <= MAX_DOCUMENT_BYTES else TOO_LONG


def _read_txt(f, path: str, field: str, skip: int):
    data = f.read(MAX_DOCUMENT_BYTES + 1)
    yield 1, None if skip else [_checked(data)]


def _decompressed(f, name: str):
    """A binary file's lines, unpacked by its suffix."""
    import pyarrow

    kind = {".gz": "gzip", ".zst": "zstd"}.get(Path(name).suffix)
    if kind is None:
        return f
    # unlike the zstandard package, Arrow notices a file that was cut off
    return io.BufferedReader(pyarrow.CompressedInputStream(f, kind), 2**20)


def _read_jsonl(f, path: str, field: str, skip: int):
    f = _decompressed(f, path)
    documents, size, seen = [], 0, False
    limit = 2 * MAX_DOCUMENT_BYTES  # JSON escapes, and other fields
    for number, line in enumerate(iter(lambda: f.readline(limit), b""), 1):
        if len(line) == limit:
            raise ValueError(f"line {number:,} of {path} is longer than {limit:,} bytes: split it up.")
        if line.isspace():
            continue
        if skip:
            skip -= 1
            yield 1, None
            continue
        try:
            record = json.loads(line)
        except UnicodeDecodeError:
            documents.append(NOT_TEXT)
            continue
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"line {number:,} of {path} is not JSON ({first_line(error)}): repair or remove it."
            ) from error
        if not isinstance(record, dict) or (field not in record and not seen):
            has = f"it has {', '.join(record)}" if isinstance(record, dict) else "it is not an object"
            raise ValueError(f"line {number:,} of {path} has no field {field!r} ({has}): pass another --text_field.")
        seen = True
        documents.append(_checked(record.get(field)))
        size += len(line)
        if size >= BATCH_BYTES or len(documents) >= 4096:
            yield len(documents), documents
            documents, size = [], 0
    if documents:
        yield len(documents), documents


def with_retries(attempt: Callable[[int], Iterator], position: int, after: Callable, waits=None) -> Iterator:
    """Yield from attempt(position); after a network error wait, and go on from where the last item ended.

    after(item): the position behind an item. Whatever else goes wrong, and the last failed attempt, is a ValueError:
    a stream that ends early must never look like the end of the data.
    """
    waits, failures = RETRY_WAITS if waits is None else waits, 0
    while True:
        try:
            for item in attempt(position):
                yield item
                position, failures = after(item), 0
            return
        except Exception as error:
            if type(error) is ValueError:  # our own sentence
                raise
            what = f"{type(error).__name__}: {first_line(error)}"
            if failures == len(waits) or not may_pass(error):
                raise ValueError(
                    f"reading from the hub failed {failures + 1} times in a row ({what}): check the name, --config, "
                    "--revision and the network and run again (with --resume if it had begun), or give local files."
                ) from error
            print(f"network error ({what}), trying again in {waits[failures]} s", file=sys.stderr)
            time.sleep(waits[failures])
            failures += 1


def may_pass(error: BaseException | None) -> bool:
    """Whether trying again may help: connections, time-outs, cut-off bodies, HTTP 408, 429 and 5xx."""
    import pyarrow

    libraries = "urllib3 requests httpx httpx2 httpcore httpcore2 aiohttp http".split()  # of datasets' several versions
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return status in (408, 429) or status >= 500
        if isinstance(error, (FileNotFoundError, PermissionError)) or "Offline" in type(error).__name__:
            return False
        if isinstance(error, (OSError, EOFError, pyarrow.ArrowException)):
            return True
        if type(error).__module__.split(".")[0] in libraries:
            return True
        error = error.__cause__ or error.__context__
    return False


# ----------------------------------------------------------------------------------------------------------------------
# records: rows with several fields, for benchmarks, conversations and programs


class BadRecord(ValueError):
    """A line that is not JSON. `place` says where; the message says why, in words that follow the place."""

    def __init__(self, place: str, why: str):
        super().__init__(f"{place} {why}")
        self.place, self.why = place, why


def read_records(path, columns: tuple[str, ...] | None = None) -> Iterator[tuple[str, object]]:
    """Yield (place, record) of a *.jsonl[.gz|.zst] or *.parquet file; `place` names the line or row in a sentence.

    A line that is not JSON yields a BadRecord as its record: the caller raises it, or counts it and goes on. Blank
    lines are passed over. columns: those to read of a parquet file, as far as it has them. FileNotFoundError when
    there is no such file; ValueError when it is damaged or of another kind."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: check the path.")
    reader = next((read for suffix, read in RECORD_READERS.items() if path.name.endswith(suffix)), None)
    if reader is None:
        raise ValueError(f"{path} is none of {', '.join(RECORD_READERS)}: convert it to one of these.")
    yield from reader(path, columns)


def _jsonl_records(path: Path, columns) -> Iterator[tuple[str, object]]:
    import pyarrow

    number = 0
    try:
        with open(path, "rb") as f:
            for number, line in enumerate(_decompressed(f, path.name), 1):
                if line.isspace():
                    continue
                place = f"{path}, line {number:,}"
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                try:
                    yield place, json.loads(line)
                except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
                    yield place, BadRecord(place, f"is not JSON ({first_line(error)})")
    except (OSError, EOFError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read after line {number:,} ({first_line(error)}): it is damaged or cut "
                         "off; get it again.") from error


def _parquet_records(path: Path, columns) -> Iterator[tuple[str, object]]:
    import pyarrow
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if columns is not None:
                names = [name for name in columns if name in names]
            for batch in file.iter_batches(1024, columns=names):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number:,}", record
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read after row {number:,} ({first_line(error)}): it is damaged; "
                         "get it again.") from error


RECORD_READERS = {
    ".jsonl": _jsonl_records,
    ".jsonl.gz": _jsonl_records,
    ".jsonl.zst": _jsonl_records,
    ".parquet": _parquet_records,
}


def hub_records(name: str, config: str | None, split: str, revision: str | None = None) -> Iterator[dict]:
    """The rows of a dataset on the hub, streamed, or of the copy that `datasets` keeps. ValueError without either."""
    try:
        import datasets

        yield from datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)
    except Exception as error:  # whatever the network and three libraries come up with
        raise ValueError(f"{name} cannot be read from the hub ({first_line(error)}): check the name and the network, "
                         "or give local files.") from error


def synthetic_size(source: str, default: int) -> int | None:
    """N of "synthetic:N", the default for "synthetic", None for any other source. ValueError unless N >= 1."""
    kind, _, size = source.partition(":")
    if kind != "synthetic":
        return None
    size = size or str(default)
    if not (size.isascii() and size.isdigit()) or int(size) == 0:
        raise ValueError(f"{source}: give a whole number of at least 1, as in synthetic:{default}.")
    return int(size)


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half a character, which no tokenizer reads (JSON's \\ud800 alone)."""
    return re.search("[\ud800-\udfff]", text) is not None
