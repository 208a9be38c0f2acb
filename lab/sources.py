"""sources.py owns rows that come from somewhere else: files, zips, datasets on the hub, and `synthetic:N`.

    for first, texts in read_batches(open_source(args)):        # documents to pretrain on; args: --dataset and others
    for place, record in read_records("test.jsonl.gz"):         # dicts: benchmarks, conversations, programs
    for place, record in read_zip("ewok.zip", "EWOK_PASSWORD"):
    for record in hub_records("openai/gsm8k", "main", "train"):

Two tables say what a suffix means, DOCUMENT_READERS and RECORD_READERS; files.py says which files a name stands for. A
file that is damaged or cut off, or a stream that breaks, is an error: it must never look like the end of the data.
"""

import argparse
import contextlib
import getpass
import itertools
import os
import re
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lab import disk, files, retries, synthetic, terminal
from lab.files import damage_in, first_line, json_of, lines_of, reader_of

BATCH_BYTES = 2**20  # text tokenised in one go; more gains nothing (measured), less costs calls
MAX_DOCUMENT_BYTES = 2**25  # tiktoken gives ids as a list: 59 MB of text took 1.4 GB (measured)
# a benchmark's file, unpacked: HellaSwag's has 12 MB and 10,042 rows, EWoK's 2 MB; a zip of 3 MB can hold 3 GB
MAX_BENCHMARK_BYTES, MAX_BENCHMARK_ROWS = 2**26, 200_000
PARQUET_ROWS = 32  # decoded at once; more gains nothing but for texts of a few words (measured)
SEPARATOR, BOM = b"<|endoftext|>", b"\xef\xbb\xbf"  # between the documents of a .txt
EMPTY, NOT_TEXT, TOO_LONG = "empty", "not text or not valid UTF-8", f"longer than {MAX_DOCUMENT_BYTES:,} bytes"
NO_GROUP = "without a value of --holdout_by"
COLUMN_FLAGS = "--text_field", "--holdout_by"


# ----------------------------------------------------------------------------------------------------------------------
# documents: which files
class Source(NamedTuple):
    """What --dataset names, opened by `open_source`."""
    kind: str  # "hub", "local" or "synthetic"
    files: list[str]
    columns: tuple[str, ...]  # --text_field, and --holdout_by where it is given
    record: dict  # what meta.json says about the source
    seed: int  # of synthetic documents
    documents: int | None  # in the source, or --max_docs if that is less; None = unknown
    stop: int | None  # --max_docs
    counts: dict[str, int]  # documents of the files read so far: a restart need not open them again
    stamps: tuple = ()  # of the local files, before their checksums were taken: see files.refuse_changed


def open_source(args: argparse.Namespace, look: bool = True) -> Source:
    """Find the files that the prepare scripts' flags name, check that a document can be read (look), and pin what will
    be read. ValueError / OSError in one sentence."""
    source = find_source(args)
    if source.kind == "synthetic":
        return source
    if source.kind == "local":
        source = _pin_local(source, args.num_proc)
    if source.stop:
        source = source._replace(documents=min(source.stop, source.documents or source.stop))
    if look and next(read_batches(source), None) is None:
        raise ValueError(f"--dataset {' '.join(args.dataset)} holds no documents: give files that do.")
    return source


def find_source(args: argparse.Namespace) -> Source:
    """The same without reading a file, so without the sizes and checksums of local ones in `record`."""
    names, stop = args.dataset, args.max_docs or None
    columns = (args.text_field,)
    if getattr(args, "holdout_by", None):
        columns += (args.holdout_by,)
    if names == ["synthetic"]:
        if not (args.max_docs or args.target_tokens):
            raise ValueError("--dataset synthetic has no end: pass --max_docs or --target_tokens.")
        if len(columns) > 1:
            raise ValueError("--dataset synthetic has no columns: leave --holdout_by out.")
        record = {"kind": "synthetic", "seed": args.synthetic_seed}
        return Source("synthetic", [], columns, record, args.synthetic_seed, stop, stop, {})
    if len(names) == 1 and is_hub_name(names[0]):
        return _open_hub(args, names[0], columns)._replace(stop=stop)
    paths = files.find(names, DOCUMENT_READERS, "--dataset", args.split)
    return Source("local", paths, columns, {"kind": "local"}, 0, None, stop, {}, files.stamps_of(paths))


def is_hub_name(name: str) -> bool:
    """Whether a name stands for a dataset on the hub rather than for a file."""
    is_file = Path(name).exists() or name.lower().endswith((*DOCUMENT_READERS, *RECORD_READERS))
    return not is_file and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None


def describe(path: str) -> dict:
    """What meta.json says about a local file: {"name", "bytes", "sha256"}."""
    with damage_in(path):
        size, digest = os.path.getsize(path), disk.sha256_file(path)
    return {"name": Path(path).name, "bytes": size, "sha256": digest}


def _pin_local(source: Source, num_proc: int) -> Source:
    paths = source.files
    readers = [reader_of(DOCUMENT_READERS, path) for path in paths]
    with ThreadPoolExecutor(max_workers=min(8, num_proc)) as pool:
        record = source.record | {"files": list(pool.map(describe, paths))}
    digests = [about["sha256"] for about in record["files"]]
    count = Counter(digests)
    copies = [path for path, digest in zip(paths, digests, strict=True) if count[digest] > 1]
    if copies:
        terminal.note(f"NOTE: --dataset: {files.listed(copies)} are copies of each other, and all are read.")
    documents = None  # only parquet says how many rows it has
    if all(reader is _read_parquet for reader in readers):
        documents = 0
        for path in paths:
            with damage_in(path), open(path, "rb") as f:
                documents += _parquet_file(f, path, source.columns).metadata.num_rows
    return source._replace(record=record, documents=documents)


def _open_hub(args: argparse.Namespace, name: str, columns: tuple[str, ...]) -> Source:
    """The files of one revision of a hub dataset; `datasets` knows which belong to a configuration and split."""
    def resolve(_):
        revision = hub_revision(name, args.revision)
        yield revision, *_resolve_with_datasets(name, args.config, args.split, revision)

    revision, paths, documents = next(retries.with_retries(resolve, 0, lambda _: 0, retries.RETRY_WAITS[:3]))
    for path in paths:
        reader_of(DOCUMENT_READERS, path)  # or refuse it now
    names = [path.split("/", 3)[-1] for path in paths]
    record = {"kind": "hub", "revision": revision, "files": names}
    return Source("hub", paths, columns, record, 0, documents, None, {})


def hub_revision(name: str, revision: str | None = None) -> str:
    """The commit that a revision of a hub dataset (None: its main branch) stands for now."""
    import huggingface_hub

    return huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=20).sha


def _resolve_with_datasets(name: str, config: str | None, split: str, revision: str | None):
    """(paths, documents or None) of a split of a hub dataset. ValueError without such a split."""
    import datasets

    builder = datasets.load_dataset_builder(name, config, revision=revision)
    splits = {str(key): list(paths) for key, paths in (builder.config.data_files or {}).items()}
    if split not in splits:
        raise ValueError(f"--dataset {name} has no split {split!r}: pass --split with one of {', '.join(splits)}.")
    info = (builder.info.splits or {}).get(split)
    return splits[split], getattr(info, "num_examples", None) or None


# ----------------------------------------------------------------------------------------------------------------------
# documents: their texts


def bad_document(number: int, why: str, clear="") -> str:
    """Why a document cannot be used. clear: how to begin anew, where some before it are written already."""
    cure, skip = "repair it", "--bad_documents skip"
    if TOO_LONG in why:
        cure = f"split it (in a .txt file, put {SEPARATOR.decode()} between the parts)"
    if clear:
        cure, skip = f"{cure} and {clear}", f"{skip} --resume"
    return f"document {number:,} (counted from 0) is {why}: {cure}, or pass {skip}."


def read_batches(source: Source, start: int = 0) -> Iterator[tuple[int, list[bytes | str]]]:
    """Lists of about BATCH_BYTES of documents, from number `start` on and before `source.stop`, as (number of the
    first, list). A usable document is its UTF-8 bytes; any other is a str that says why not."""
    if source.kind == "synthetic":
        make = lambda i: [text.encode() for text in synthetic.documents(source.seed, i, i + 256)]
        batches = ((first, make(first)) for first in range(start, sys.maxsize, 256))
    elif source.kind == "hub":
        after = lambda batch: batch[0] + len(batch[1])
        batches = retries.with_retries(lambda first: _read_files(source, first), start, after)
    else:
        batches = _read_files(source, start)
    for first, documents in batches:
        if source.stop is not None and first + len(documents) >= source.stop:
            if first < source.stop:
                yield first, documents[: source.stop - first]
            return
        yield first, documents


def _read_files(source: Source, start: int):
    first = 0  # number of the file's first document
    for path in source.files:
        count = source.counts.get(path)
        if count is None or first + count > start:
            position, reader = first, reader_of(DOCUMENT_READERS, path)
            # errors of the network are for retries.with_retries
            guard = contextlib.nullcontext() if source.kind == "hub" else damage_in(path)
            with guard, _open_file(source, path) as f:
                for n, documents in reader(f, path, source.columns, max(0, start - first)):
                    if documents is not None:
                        yield position, [_with_place(document, path) for document in documents]
                    position += n
            source.counts[path] = position - first
        first += source.counts[path]


class Grouped(bytes):
    """A document's UTF-8 text; `group` is its value of the second column, as UTF-8."""


def _grouped(document: bytes | str, group) -> bytes | str:
    if isinstance(document, str):
        return document
    if group is None or group == "":
        return NO_GROUP
    document = Grouped(document)
    document.group = str(group).encode()
    return document


def _with_place(document: bytes | str, path: str) -> bytes | str:
    if isinstance(document, str):  # why it is unusable
        document += f", in {path}"
    return document


def _open_file(source: Source, path: str):
    if source.kind == "hub":
        import fsspec

        return fsspec.open(path, "rb").open()
    return open(path, "rb")


# Each reader takes (open file, path, columns, skip) and yields (number of documents, their list); the list is None for
# documents among the first `skip`.

def _parquet_file(f, path: str, columns: tuple[str, ...]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(f, buffer_size=2**20, pre_buffer=False)  # a row group may be huge
    schema = file.schema_arrow
    for column, flag in zip(columns, COLUMN_FLAGS, strict=False):
        if column not in schema.names:
            names = ", ".join(schema.names)
            raise ValueError(f"{path} has no column {column!r}: pass {flag} with one of {names}.")
    field = columns[0]
    kind = schema.field(field).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text_kinds = pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()
    if kind not in (*text_kinds, pa.null()):
        raise ValueError(f"column {field!r} of {path} holds {kind}, not text: pass another --text_field.")
    return file


def _read_parquet(f, path: str, columns: tuple[str, ...], skip: int):
    yield from _in_batches(_parquet_texts(_parquet_file(f, path, columns), columns, skip), 0)


def _parquet_texts(file, columns: tuple[str, ...], skip: int) -> Iterator[bytes | str | None]:
    """The documents of a parquet file; None for each of the first `skip`."""
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        if skip >= group.num_rows:
            skip -= group.num_rows
            yield from itertools.repeat(None, group.num_rows)
            continue
        # few rows at once: a thousand may be one text of a megabyte that the file holds once
        for batch in file.iter_batches(PARQUET_ROWS, row_groups=[number], columns=list(columns), use_threads=False):
            cut = min(skip, len(batch))
            yield from itertools.repeat(None, cut)
            skip -= cut
            batch = batch.slice(cut)
            documents = _utf8_list(batch.column(columns[0]))
            if len(columns) > 1:
                documents = map(_grouped, documents, batch.column(columns[1]).to_pylist())
            yield from documents


def _utf8_list(column) -> list[bytes | str]:
    """An Arrow array of text as UTF-8 bytes. Its check runs in C++ at 10 GB/s; only a bad batch is checked again by
    document."""
    import pyarrow as pa

    text, plain = pa.string(), pa.binary()
    if column.type in (pa.large_string(), pa.large_binary()):
        text, plain = pa.large_string(), pa.large_binary()
    if column.type not in (text, plain):  # dictionary, string view, null
        column = column.cast(plain)
    values = column.view(plain).to_pylist()
    with contextlib.suppress(pa.ArrowInvalid):
        column.view(text).validate(full=True)
        if all(values) and column.nbytes < MAX_DOCUMENT_BYTES and not any(b"\0" in value for value in values):
            return values
    return [_checked(value) for value in values]


def _checked(value) -> bytes | str:
    """A document's UTF-8 bytes, or why it is unusable."""
    if value in ("", b""):
        return EMPTY
    try:
        utf8 = value.encode() if isinstance(value, str) else value
        utf8.decode()
    except (UnicodeError, AttributeError):  # a lone surrogate, or no text at all
        return NOT_TEXT
    halves = utf8[:1000:2], utf8[1:1000:2]  # UTF-16 of English is UTF-8, too: all zeros in one of them
    if len(utf8) >= 16 and max(half.count(0) / len(half) for half in halves) > 0.8:
        return NOT_TEXT
    return utf8 if len(utf8) <= MAX_DOCUMENT_BYTES else TOO_LONG


def _in_batches(items: Iterator, skip: int, document_of: Callable = lambda item: item):
    """What a reader yields, of the documents that items become after the first `skip` and after those that are None."""
    for _ in itertools.islice(items, skip):
        yield 1, None
    documents, size = [], 0
    for item in items:
        document = document_of(item)
        if document is None:
            yield 1, None
            continue
        documents.append(document)
        size += len(document)
        if size >= BATCH_BYTES or len(documents) >= 4096:
            yield len(documents), documents
            documents, size = [], 0
    if documents:
        yield len(documents), documents


def _read_txt(f, path: str, columns: tuple[str, ...], skip: int):
    if len(columns) > 1:
        raise ValueError(f"{path} is plain text without columns: leave --holdout_by out, or give parquet or jsonl.")
    yield from _in_batches(_pieces(f, path), skip)


def _pieces(f, path: str) -> Iterator[bytes | str]:
    """The documents of a text file: all of it, byte for byte; or what stands between its SEPARATORs, as in TinyStories,
    without the line breaks around it."""
    data, too_long, n = files.without_mark(f.read(2**20), path), False, 0
    while True:
        block = f.read(2**20)
        *whole, data = data.split(SEPARATOR)
        for piece in whole:
            n += 1
            if too_long or piece.strip():
                yield TOO_LONG if too_long else _checked(piece.removeprefix(BOM).strip(b"\r\n"))
            too_long = False
        if len(data) > MAX_DOCUMENT_BYTES:
            too_long, data = True, data[-len(SEPARATOR) :]  # which may end within a separator
        if not block:
            break
        data += block
    if too_long:
        yield TOO_LONG
    elif not n:
        yield _checked(data)
    elif data.strip():
        yield _checked(data.removeprefix(BOM).strip(b"\r\n"))


def _read_jsonl(f, path: str, columns: tuple[str, ...], skip: int):
    missing = dict(zip(columns, COLUMN_FLAGS, strict=False))  # of all records so far

    def document_of(numbered: tuple[int, bytes]) -> bytes | str:
        number, line = numbered
        where = f"line {number:,} of {path}"
        try:
            record = json_of(line)
        except UnicodeDecodeError:
            return NOT_TEXT
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({first_line(error)}): repair or remove it.") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where} is not an object with fields: repair or remove it.")
        for column in list(missing):
            if column not in record:
                fields = ", ".join(record)
                raise ValueError(f"{where} has no field {column!r} (it has {fields}): pass another {missing[column]}.")
            del missing[column]
        field, *group = columns
        document = _checked(record.get(field))
        if group:
            document = _grouped(document, record.get(group[0]))
        return document

    yield from _in_batches(lines_of(f, path), skip, document_of)


DOCUMENT_READERS = {
    ".parquet": _read_parquet, ".txt": _read_txt,
    ".jsonl": _read_jsonl, ".jsonl.gz": _read_jsonl, ".jsonl.zst": _read_jsonl,
}


# ----------------------------------------------------------------------------------------------------------------------
# records: rows with several fields, for benchmarks, conversations and programs


class Place(str):
    """Where a record stands, as in "test.jsonl line 5", to begin a sentence with; `number` is the line or row."""

    def __new__(cls, path, unit: str, number: int):
        place = super().__new__(cls, f"{path} {unit} {number:,}")
        place.number = number
        return place


class BadRecord(ValueError):
    """A line that is not JSON. `place` says where; `why` follows the place in a sentence."""

    def __init__(self, place: str, why: str):
        super().__init__(f"{place} {why}")
        self.place, self.why = place, why


def read_records(path, columns: tuple[str, ...] | None = None, most: int = sys.maxsize):
    """Yield (place, record) of a *.jsonl[.gz|.zst] or *.parquet file without its blank lines. The record of a line that
    is not JSON is a BadRecord, to be raised or counted. columns: those to read of a parquet file, if it has them; most:
    bytes that it may unpack to. FileNotFoundError when there is no such file; ValueError when it is damaged, too large
    or of another kind."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path.")
    reader = reader_of(RECORD_READERS, path)
    with damage_in(path):
        yield from reader(path, columns, most)


def read_benchmark(name) -> Iterator[tuple[Place, object]]:
    """The same of the one file that a name stands for (a path, a glob, or a folder with one file), which may not have
    more bytes or rows than a benchmark has."""
    path = files.only(name, RECORD_READERS)
    for n, item in enumerate(read_records(path, most=MAX_BENCHMARK_BYTES), 1):
        if n > MAX_BENCHMARK_ROWS:
            raise ValueError(f"{path} has more than {MAX_BENCHMARK_ROWS:,} rows, which is none of our benchmarks: give "
                             "the file as it was published.")
        yield item


def _jsonl_records(path: Path, columns, most: int) -> Iterator[tuple[Place, object]]:
    with open(path, "rb") as f:
        yield from _parsed(path, lines_of(f, path, most))


def _parsed(path, lines) -> Iterator[tuple[Place, object]]:
    for number, line in lines:
        if not line.strip():
            continue
        place = Place(path, "line", number)
        try:
            record = json_of(line)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            record = BadRecord(place, f"is not JSON ({first_line(error)})")
        yield place, record


def _parquet_records(path: Path, columns, most: int) -> Iterator[tuple[Place, object]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if columns is not None:
            names = [name for name in columns if name in names]
        number, size = 0, 0
        for batch in file.iter_batches(64, columns=names):  # a row may have megabytes
            size += batch.nbytes
            files.check_size(path, size, most)
            for row in _rows(batch):
                number += 1
                place = Place(path, "row", number)
                if row is None:
                    row = BadRecord(place, "is not valid UTF-8")
                yield place, row


def _rows(batch) -> list[dict | None]:
    """The rows of an Arrow batch; None for one that holds text which is not UTF-8."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if len(batch) == 1:
            return [None]
        return [row for i in range(len(batch)) for row in _rows(batch.slice(i, 1))]


RECORD_READERS = {
    ".jsonl": _jsonl_records, ".jsonl.gz": _jsonl_records, ".jsonl.zst": _jsonl_records,
    ".parquet": _parquet_records,
}


def read_zip(path, password_variable: str) -> Iterator[tuple[Place, object]]:
    """Yield (place, record) as read_records, of a zip's jsonl files. An encrypted zip is opened in memory; its password
    is in that environment variable or is typed on a terminal. No error may hold the text, as a decoding error does and
    what is raised in its `except` block; so the blocks only note what went wrong."""
    if os.path.isdir(path):
        with contextlib.suppress(FileNotFoundError):
            path = files.only(path, [".zip"])
    wrong_password = f"does not open with this password: correct {password_variable}"
    fault, contents, is_rows = None, {}, re.compile(r"(?!__MACOSX).*\.jsonl", re.IGNORECASE)
    encrypted = False
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if is_rows.fullmatch(member.filename)]
            files.check_declared(path, members, MAX_BENCHMARK_BYTES)
            password = os.environ.get(password_variable, "")
            encrypted = any(member.flag_bits & 1 for member in members)
            if encrypted and not password and sys.stdin is not None and sys.stdin.isatty():
                password = getpass.getpass(f"password of {path}: ")
            if encrypted and not password:
                raise ValueError(f"{path} is encrypted and no password was given: set {password_variable}.")
            for member in members:
                utf8 = files.read_member(archive, member, password.encode())
                contents[f"{path}/{member.filename}"] = utf8.decode("utf-8-sig")
    except zipfile.BadZipFile as error:
        fault = "is not a whole zip file: get it again"
        if encrypted and "CRC" in str(error):
            fault = wrong_password
    except UnicodeDecodeError:
        fault = "holds a file that is not UTF-8 text: get it again"
    except NotImplementedError:
        fault = "has an encryption or compression that Python cannot read: pack it with zip -e"
    except (RuntimeError, EOFError, zlib.error):  # zlib: it passed the check of the first byte
        fault = wrong_password if encrypted else "is damaged: get it again"
    except OSError as error:
        fault = f"cannot be read ({error.strerror}): name one zip"
    if fault is None and not contents:
        fault = "has no .jsonl file: give the zip as it was published"
    if fault is not None:
        raise ValueError(f"{path} {fault}.")
    for name, text in contents.items():
        yield from _parsed(name, enumerate(text.split("\n"), 1))


def hub_records(name: str, config: str | None, split: str, revision=None) -> Iterator[dict]:
    """The rows of a dataset on the hub, streamed, or of the copy that `datasets` keeps. ValueError without either."""
    with retries.hub_errors(name):
        import datasets

        yield from datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)


def synthetic_size(source: str, default: int) -> int | None:
    """N of "synthetic:N", the default for "synthetic", None for any other source. ValueError unless N >= 1."""
    kind, _, size = source.partition(":")
    if kind != "synthetic":
        return None
    size = size or str(default)
    if not re.fullmatch("0*[1-9][0-9]*", size):
        raise ValueError(f"{source}: give a whole number of at least 1, as in synthetic:{default}.")
    return int(size)


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half a character, which no tokenizer reads (JSON's \\ud800 alone)."""
    return not text.isascii() and re.search("[\ud800-\udfff]", text) is not None
