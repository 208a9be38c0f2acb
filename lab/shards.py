"""shards.py owns dataset folders of tokens: the writer that a kill cannot hurt, and the reader.

A dataset folder holds
    train_000000.bin ...   headerless little-endian uint16, `shard_tokens` each; every document is [BOS] + bpe(text)
    val_000000.bin ...     the held-out documents, same encoding, the same bytes in every dataset of one source
    val_documents.npz      one entry per held-out document: tokens, original UTF-8 bytes, hash (see VAL_RECORD)
    meta.json              written last: settings, counts, a sha256 per file, fingerprints; no meta.json = not finished
    tokenizer.json         with --tokenizer: a copy of it
    decontamination.jsonl  with --decontaminate: the documents that were dropped, and why (decontaminate.py)
    progress.json, .lock   only while a prepare is under way or was killed: where `--resume` continues, which process
    parts/                 with --part: the tokens of single source files (parts.py); may go after --merge

The reader also opens folders without meta.json in the neighbours' formats (token_files.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lab import disk, token_files, tokenizer
from lab.files import listed, short_name
from lab.schema import ANY_NAME, ANYTHING, COUNT, NUMBER, SHA256, TEXT, differences, misfit, read_json
from lab.token_files import AGAIN, TokenFile, TokenFiles, require
from lab.tokenizer import FIRST_MUL_ID, N_GPT2_TOKENS, VOCAB_SIZE, bos_id, get_tokenizer

GPT2TokenizerWithMulFacts = tokenizer.GPT2TokenizerWithMulFacts  # document 002's names
MulFactTokens = tokenizer.MulFactTokens

FORMAT_VERSION = 1
FORMATS = ("stream", "bos_row_packed_bestfit")  # of prepare_fineweb.py, of prepare_bos_rows.py
SPLIT = "train or val", lambda value: value in ("train", "val")
SHARD_NAME = "the name of a shard", lambda value: isinstance(value, str) and SHARD_NAMES.fullmatch(value)
SHARD_NAMES = re.compile(r"(train|val)_[0-9]{6,}\.bin")
SHARD = {"name": SHARD_NAME, "split": SPLIT, "tokens": COUNT, "documents": COUNT, "utf8_bytes": COUNT}
ANY_OBJECT = {ANY_NAME: ANYTHING}
CONDITION = ("baseline or mul_tokens, or a tokenizer's name and hash",
             lambda value: re.fullmatch(r"baseline|mul_tokens|[\w.]+-[0-9a-f]{8}", str(value)))
# a key without "?" is in every meta.json
META = {
    "format": TEXT, "format_version": COUNT, "vocab_size": COUNT, "fingerprint": SHA256,
    "data_files": [SHARD | {"sha256": SHA256}],
    "num_shards_total?": COUNT, "tokens_written_total?": COUNT, "settings?": ANY_OBJECT,
    "val_documents_sha256?": SHA256, "val_fingerprint_documents?": SHA256, "val_fingerprint_tokens?": SHA256,
    "condition?": CONDITION,
    "tokenizer?": TEXT, "tokenizer_sha256?": SHA256,
    "mul_token_rate?": NUMBER, "dataset?": TEXT, "dataset_name?": TEXT, "row_tokens?": COUNT, "seq_len?": COUNT,
    "crop_fraction?": NUMBER,
}


def _fingerprint(parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------
# held-out documents

# one record per held-out document; `baseline_tokens` counts plain GPT-2 BPE with BOS, so that every arm scores the
# same documents for the same --val_tokens whatever its own tokenisation
VAL_RECORD = np.dtype([("hash", "V16"), ("tokens", "<i8"), ("baseline_tokens", "<i8"),
                       ("utf8_bytes", "<i8"), ("mul_tokens", "<i8")])
VAL_DOCUMENTS, VAL_MUL_BYTES = "val_documents", "val_mul_bytes"  # side files that become val_documents.npz
# files that a writer may delete, in a folder that progress.json marks as its own
OWN_NAMES = re.compile(r"(train|val)_\d{6,}\.bin(\.partial)?|"
                       r"(val_documents|val_mul_bytes|decontamination\.jsonl)\.partial")


def document_hash(utf8: bytes) -> bytes:
    """16 bytes that name a document by its raw text (blake2b, 0.9 GB/s)."""
    return hashlib.blake2b(utf8, digest_size=16).digest()


def is_held_out(digests: list[bytes], val_fraction: float) -> np.ndarray:
    """bool (len(digests),): which documents belong to the held-out share, by `document_hash` alone."""
    first_halves = np.frombuffer(b"".join(digests), "<u8")[::2]
    limit = min(math.ceil(val_fraction * 2.0**64), 2**64 - 1)  # 1.0 holds out everything
    return first_halves < np.uint64(limit)


# ------------------------------------------------------------------------------------------------------------
# writer


def to_clear(folder) -> str:
    """What to do to begin a dataset anew. Parts in its folder (lab/parts.py), the work of many machines, can be merged
    again."""
    folder = Path(folder)
    return f"delete everything in {folder} but parts" if (folder / "parts").is_dir() else f"delete {folder}"


class DatasetWriter:
    """Writes a dataset folder so that a kill at any moment loses at most the work since the last `commit`.

    Tokens are appended to `<name>.bin.partial`; `commit(state)` flushes them to disk and records their lengths and the
    caller's `state` (a JSON-able dict) in progress.json. `resume=True` cuts the files back to those lengths and hands
    `state` back. A full shard is flushed and renamed. `finish(meta)` writes val_documents.npz and, last, meta.json.

    settings: what decides the bytes; resuming with others is refused. train_shard_tokens: if not shard_tokens (rows).
    Attributes: complete (nothing left to do), state (of the last commit, {} at first), mul_counts (of the train tokens,
    in order of their ids)."""

    def __init__(self, out_dir, settings: dict, shard_tokens: int, val_shards: int,
                 resume: bool = False, train_shard_tokens: int | None = None):
        self.dir, self.val_shards = Path(out_dir), val_shards
        self.shard_tokens = {"train": train_shard_tokens or shard_tokens, "val": shard_tokens}
        self.settings = json.loads(json.dumps(settings))  # as --resume will read them
        self.complete, self.state = False, {}
        self.mul_counts = np.zeros(VOCAB_SIZE - FIRST_MUL_ID, np.int64)
        self.files = []  # a record per shard, in order of creation; complete ones have a sha256
        self._open = {}  # split -> (handle, running sha256, record) of its unfinished shard
        self._side = {}  # name -> handle of other files that grow in step with the shards
        self.dir.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in self.dir.iterdir())
        if "meta.json" in names:
            require(resume, f"{self.dir} already holds a finished dataset", f"choose another, or {to_clear(self.dir)}")
            self._refuse_other_settings(read_meta(self.dir).get("settings", {}))
            self._remove_progress()  # left by a kill after meta.json was written
            self.complete = True
        elif "progress.json" in names:
            require(resume, f"{self.dir} holds an unfinished prepare", f"pass --resume, or {to_clear(self.dir)}")
            self._load(read_json(self.dir / "progress.json", advice=f"{to_clear(self.dir)} and prepare again"))
        else:
            # a kill before the first commit leaves progress.json.tmp; parts/ waits to be merged
            own = ("progress.json.tmp", "parts")
            foreign = [name for name in names if not name.startswith(".") and name not in own]
            listed = ", ".join(foreign[:3])
            if foreign[3:]:
                listed += ", ..."
            require(not foreign, f"{self.dir} holds {listed} of something else", "choose another")
            self.commit({})  # progress.json marks the folder as ours before anything else is in it
        for name in (VAL_DOCUMENTS, VAL_MUL_BYTES):
            if not self.complete:
                self.append(name, b"")

    def _refuse_other_settings(self, recorded: dict) -> None:
        changed = differences(recorded, self.settings)
        fault = f"{self.dir} was begun with other settings ({listed(changed)})"
        remedy = f"repeat those, choose another --out_dir, or {to_clear(self.dir)}"
        require(not changed, fault, remedy)

    def _load(self, progress: dict) -> None:
        """Put the folder back to what the last commit recorded, and go on from there."""
        whole = isinstance(progress, dict) and progress.pop("sha256", "") == _fingerprint(progress)
        require(whole, f"{self.dir / 'progress.json'} is damaged or another version's",
                f"{to_clear(self.dir)} and prepare again")
        self.state, self.files, begun = progress["state"], progress["files"], progress["settings"]
        target = self.settings.get("target_tokens", math.nan)
        # where to end is open until it is passed: what was written until then is the same
        if not target or self.state.get("plain_train", 0) < target:
            begun["target_tokens"] = target
        self._refuse_other_settings(begun)
        self.mul_counts += progress["mul_counts"]
        lengths = dict(progress["val_lengths"])  # bytes of each file that stays
        for record in self.files:
            path, partial = self.dir / record["name"], self._partial(record["name"])
            if not record["complete"]:
                if path.exists():  # killed between the rename and the next commit
                    os.replace(path, partial)
                path = partial
            lengths[path.name] = 2 * record["tokens"]
        for name, length in lengths.items():
            path = self.dir / name
            whole = path.exists() and path.stat().st_size >= length
            require(whole, f"{path} is missing or shorter than recorded", f"{to_clear(self.dir)} and prepare again")
            if path.suffix == ".partial":
                os.truncate(path, length)
        for path in self._made_here():
            if path.name not in lengths:  # begun after the last commit
                path.unlink()
        for record in self.files:
            if not record["complete"]:
                path = self._partial(record["name"])
                digest = disk.hash_file(path)
                self._open[record["split"]] = open(path, "ab", buffering=0), digest, record
        for name in progress["val_lengths"]:
            self.append(name.removesuffix(".partial"), b"")
        self._shard_closed, self._committed = False, time.monotonic()

    def _partial(self, name: str) -> Path:
        return self.dir / f"{name}.partial"

    def _made_here(self) -> list[Path]:
        """The files in the folder that bear a name of a shard or of a side file."""
        return [path for path in self.dir.iterdir() if OWN_NAMES.fullmatch(path.name)]

    def held_out_hashes(self) -> set[bytes]:
        """Those of all documents held out so far, to keep their duplicates out of train."""
        records = np.frombuffer(self.appended(VAL_DOCUMENTS), VAL_RECORD)
        return {record["hash"].tobytes() for record in records}

    def write(self, split: str, ids: np.ndarray, lengths: np.ndarray, utf8_bytes: np.ndarray) -> None:
        """Append documents (or pieces that begin with BOS): ids (N,), and per document its tokens and original bytes.

        A document may straddle shards; it is counted where it begins. The last of `val_shards` val files takes all of
        the document that crosses the cap."""
        if split == "train":
            first = get_tokenizer().first_mul_id
            if ids.max(initial=0) >= first:
                ranks = ids[ids >= first].astype(np.int64) - first
                self.mul_counts += np.bincount(ranks, minlength=len(self.mul_counts))
        starts = np.cumsum(lengths) - lengths
        done = 0
        while done < len(ids):
            n_shards = sum(record["split"] == split for record in self.files)
            if split not in self._open:
                record = {"name": f"{split}_{n_shards:06d}.bin", "split": split, "complete": False}
                record |= {"tokens": 0, "documents": 0, "utf8_bytes": 0}
                handle = open(self._partial(record["name"]), "xb", buffering=0)
                self._open[split] = handle, hashlib.sha256(), record
                self.files.append(record)
                n_shards += 1
            handle, digest, record = self._open[split]
            is_last = split == "val" and n_shards >= self.val_shards
            take = len(ids) - done
            if not is_last:
                take = min(take, self.shard_tokens[split] - record["tokens"])
            data = memoryview(np.ascontiguousarray(ids[done : done + take], dtype="<u2")).cast("B")
            digest.update(data)
            _write_all(handle, data)
            first, last = np.searchsorted(starts, (done, done + take)).tolist()  # documents that begin here
            record["tokens"] += take
            record["documents"] += last - first
            record["utf8_bytes"] += int(utf8_bytes[first:last].sum())
            done += take
            if record["tokens"] >= self.shard_tokens[split] and not is_last:
                self._close_shard(split)

    def count_text(self, split: str, utf8_bytes: int) -> None:
        """Add to the open shard the original bytes of pieces that `write` was given without theirs."""
        _, _, record = self._open[split]
        record["utf8_bytes"] += utf8_bytes

    def _close_shard(self, split: str) -> None:
        handle, digest, record = self._open.pop(split)
        os.fsync(handle.fileno())
        handle.close()
        os.replace(self._partial(record["name"]), self.dir / record["name"])
        record.update(complete=True, sha256=digest.hexdigest())
        self._shard_closed = True

    def write_val_document(self, ids: np.ndarray, digest: bytes, baseline_tokens: int, utf8_bytes: int, mul_bytes=()):
        """Hold out one document. mul_bytes: original UTF-8 length of what each mul token in it replaced, in order."""
        self.write("val", ids, np.array([len(ids)]), np.array([utf8_bytes]))
        record = np.array([(digest, len(ids), baseline_tokens, utf8_bytes, len(mul_bytes))], VAL_RECORD)
        self.append(VAL_DOCUMENTS, record.tobytes())
        self.append(VAL_MUL_BYTES, bytes(mul_bytes))

    def append(self, name: str, data: bytes) -> None:
        """Append to the side file `name`, which a kill keeps in step with the shards."""
        if name not in self._side:
            self._side[name] = open(self._partial(name), "ab", buffering=0)
        _write_all(self._side[name], memoryview(data))

    def appended(self, name: str) -> bytes:
        """What the side file `name` holds so far."""
        return self._partial(name).read_bytes()

    def tokens(self, split: str) -> int:
        return sum(record["tokens"] for record in self.files if record["split"] == split)

    def commit_is_due(self, seconds: float) -> bool:
        """Whether a shard was closed, or more than `seconds` have passed, since the last commit."""
        return self._shard_closed or time.monotonic() - self._committed > seconds

    def commit(self, state: dict) -> None:
        """Everything written so far, and `state`, survive a kill from here on."""
        for handle in self._handles():
            os.fsync(handle.fileno())
        lengths = {self._partial(name).name: handle.tell() for name, handle in self._side.items()}
        progress = {"settings": self.settings, "state": state, "files": self.files,
                    "val_lengths": lengths, "mul_counts": self.mul_counts.tolist()}
        progress["sha256"] = _fingerprint(progress)
        disk.write_whole(self.dir / "progress.json", json.dumps(progress, indent=1).encode())
        self.state = state
        self._shard_closed, self._committed = False, time.monotonic()

    def _handles(self) -> list:
        return [handle for handle, _, _ in self._open.values()] + list(self._side.values())

    def finish(self, meta: dict) -> dict:
        """Close the last shards and write val_documents.npz and meta.json; returns its content. Call `commit` before.

        To the caller's fields it adds data_files, fingerprint, val_fingerprint_documents (which raw documents),
        val_fingerprint_tokens (their tokens), num_shards_total, tokens_written_total and others."""
        for split in list(self._open):
            self._close_shard(split)
        for record in self.files:
            path, written = self.dir / record["name"], 2 * record["tokens"]
            size = path.stat().st_size
            require(size == written, f"something else changed {path} ({size:,} bytes, not {written:,})",
                    f"{to_clear(self.dir)} and prepare again")
        for name, handle in self._side.items():
            handle.close()
            if name not in (VAL_DOCUMENTS, VAL_MUL_BYTES):
                disk.write_whole(self.dir / name, self.appended(name))
        records = np.frombuffer(self.appended(VAL_DOCUMENTS), VAL_RECORD)
        columns = {name: np.ascontiguousarray(records[name]) for name in VAL_RECORD.names}
        columns["hash"] = columns["hash"].view(np.uint8).reshape(-1, 16)
        columns["mul_bytes"] = np.frombuffer(self.appended(VAL_MUL_BYTES), np.uint8)
        packed = io.BytesIO()
        np.savez(packed, **columns)
        disk.write_whole(self.dir / "val_documents.npz", packed.getvalue())

        keys = ("name", "split", "tokens", "documents", "utf8_bytes", "sha256")
        files = [{key: record[key] for key in keys} for record in self.files]
        files.sort(key=lambda record: record["name"])
        meta = meta | _sums(files) | {
            "format_version": FORMAT_VERSION,
            "data_files": files,
            "val_documents_sha256": disk.sha256_file(self.dir / "val_documents.npz"),
            "val_fingerprint_documents": hashlib.sha256(columns["hash"].tobytes()).hexdigest(),
            "settings": self.settings,
        }
        disk.write_json(self.dir / "meta.json", meta)
        self._remove_progress()
        self.complete = True
        return meta

    def abandon(self) -> None:
        """After a failure: take back what this process began, unless a commit had put data there."""
        for handle in self._handles():
            handle.close()
        if not self.state:
            for record in self.files:
                (self.dir / record["name"]).unlink(missing_ok=True)
                self._partial(record["name"]).unlink(missing_ok=True)
            self._remove_progress()

    def _remove_progress(self) -> None:
        for path in self._made_here():
            if path.suffix == ".partial":
                path.unlink()
        (self.dir / "progress.json").unlink(missing_ok=True)  # last: until then the folder is marked as ours


def _write_all(handle, data: memoryview) -> None:
    """Write to an unbuffered file: a full disk raises here, not later in a flush."""
    while len(data):
        data = data[handle.write(data) :]


# ------------------------------------------------------------------------------------------------------------
# reader


def read_meta(data_dir) -> dict:
    """meta.json of a finished dataset. ValueError when it is broken or was written by something else."""
    path = Path(data_dir) / "meta.json"
    meta = read_json(path, advice=AGAIN)
    needed = [key for key in META if not key.endswith("?")]
    require(isinstance(meta, dict) and all(key in meta for key in needed),
            f"{path} was not written by this repo's prepare scripts",
            f"{AGAIN}, or move meta.json away to read the token files as plain GPT-2 tokens")
    name, version = meta["format"], meta["format_version"]
    require(name in FORMATS and version == FORMAT_VERSION,
            f"{path} describes format {name!r} version {version}, which this version cannot read", AGAIN)
    fault = misfit(meta, META)
    if not fault:
        fault = _contradiction(meta)
    require(not fault, f"{path} is damaged or edited ({fault})", AGAIN)
    return meta


def dataset_name(meta: dict) -> str | None:
    """A dataset's name as people say it: 'edu_web + books' for two paths, 'HuggingFaceFW/fineweb-edu' as it is."""
    name, source = str(meta.get("dataset") or ""), meta.get("source")
    if isinstance(source, dict) and source.get("kind") == "local":
        name = meta.get("dataset_name") or short_name(name)  # older datasets have none
    return name or None


def _contradiction(meta: dict) -> str:
    """Which two fields of a meta.json cannot both be right, or ""."""
    names = [record["name"] for record in meta["data_files"]]
    if len(set(names)) < len(names):
        return "data_files names a shard twice"
    for record in meta["data_files"]:
        name, split = record["name"], record["split"]
        if not name.startswith(f"{split}_"):
            return f"data_files has {name} as a shard of {split}"
    seq_len = meta.get("seq_len", 0)
    if meta["format"] != "stream" and (seq_len < 1 or meta.get("row_tokens") != seq_len + 1):
        return "row_tokens is not seq_len + 1"
    for name, value in meta.get("settings", {}).items():
        if meta.get(name, value) != value:
            stated, begun = (json.dumps(part)[:60] for part in (meta[name], value))
            return f"{name} is {stated}, but {begun} in settings"
    return ""


def _sums(files: list[dict]) -> dict:
    """What meta.json says about all shards together, from its records of each."""
    val = [record for record in files if record["split"] == "val"]
    return {
        "num_shards_total": len(files),
        "tokens_written_total": sum(record["tokens"] for record in files),
        "fingerprint": _fingerprint([(r["name"], r["tokens"], r["sha256"]) for r in files]),
        "val_fingerprint_tokens": _fingerprint([(r["tokens"], r["sha256"]) for r in val]),
    }


def _check_sums(path: Path, meta: dict) -> None:
    """ValueError unless what meta.json says about all shards together follows from what it says about each."""
    files = meta["data_files"]
    expected = _sums(files)
    val = [record for record in files if record["split"] == "val"]
    lost = not val and meta.get("val_fingerprint_tokens") not in (None, expected["val_fingerprint_tokens"])
    require(not lost, f"{path} is damaged or edited (it has no val shards, but had some)", AGAIN)
    for name, value in expected.items():
        stated = meta.get(name, value)
        fault = f"{path} is damaged or edited ({name} is {stated}, but data_files give {value})"
        require(stated == value, fault, AGAIN)


def _own_files(folder: Path, split: str, meta: dict, row_tokens: int | None) -> list[TokenFile]:
    """The files that meta.json lists for a split, with the lengths that it states."""
    files = []
    for record in meta["data_files"]:
        if record["split"] == split:
            path, expected = folder / record["name"], record["tokens"]
            fault = f"{path} is listed in meta.json but missing"
            require(path.exists(), fault, AGAIN, FileNotFoundError)
            offset, tokens = token_files.headerless_layout(path)
            holds = f"{path} holds {tokens:,} tokens, not"
            require(tokens == expected, f"{holds} the {expected:,} of meta.json (truncated or edited)", AGAIN)
            require(not row_tokens or tokens % row_tokens == 0,
                    f"{holds} a multiple of row_tokens {row_tokens}", "prepare the rows again")
            files.append(TokenFile(path, offset, tokens, sha256=record["sha256"]))
    remedy = AGAIN
    if split == "val":
        remedy = "prepare with --val_shards 1, or score another dataset (train_gpt.py --val_data_dir)"
    require(files, f"{folder} has no {split} shards", remedy, FileNotFoundError)
    _check_sums(folder / "meta.json", meta)
    return files


def open_dataset(data_dir, split: str = "train", verify: bool = True,
                 vocab_size: int | None = None) -> tuple[TokenFiles, dict | None]:
    """Open one split of a dataset folder of this process's tokenizer (tokenizer.use_of). Returns (TokenFiles, meta or
    None for a neighbour's data, whose ids are taken for GPT-2's). vocab_size: ids are below it; None: the tokenizer's.

    verify: read every file once and compare its sha256 (about 1.5 GB/s a core), or, without meta.json, check every
    token; `False` checks names and sizes, and samples of a neighbour's files. Raises ValueError / FileNotFoundError in
    one sentence."""
    vocab_size = vocab_size or get_tokenizer().vocab_size
    folder, meta, row_tokens, end = token_files.folder_of(data_dir), None, None, vocab_size
    if (folder / "meta.json").exists():
        meta = read_meta(folder)
        tokenizer.refuse_other_data(folder, meta)
        needed = meta["vocab_size"]
        if get_tokenizer().is_gpt2 and meta.get("condition") != "mul_tokens":
            needed = N_GPT2_TOKENS
        require(needed <= vocab_size,
                f"{folder} holds ids up to {needed - 1:,}, not below --vocab_size {vocab_size:,}",
                f"pass --vocab_size {meta['vocab_size']}")
        source = meta["format"]
        if source != "stream" and split == "train":
            row_tokens = meta["row_tokens"]
        files = _own_files(folder, split, meta, row_tokens)
    else:
        finished = not (folder / "progress.json").exists()
        require(finished, f"{folder} holds an unfinished dataset", "run its prepare again with --resume")
        files, source = token_files.neighbours_files(folder, split, vocab_size)
        end = token_files.ids_end(vocab_size)
    digests = [f"unverified {file.path.name} {file.path.stat().st_size}" for file in files]
    if verify:
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            digests = list(pool.map(lambda file: file.verify(vocab_size), files))
    counts = [file.tokens for file in files]
    fingerprint = _fingerprint(list(zip(counts, digests, strict=True)))
    if meta:
        fingerprint = meta["fingerprint"]
    tokens = TokenFiles(files, source, row_tokens, fingerprint, end)
    if row_tokens:
        for path, ids in zip(tokens.paths, tokens.maps, strict=True):
            good = ids[::row_tokens] == bos_id()
            fault = f"row {np.argmin(good):,} of {path} does not start with BOS ({bos_id()})"
            require(good.all(), fault, "prepare the rows again")
    return tokens, meta


def _is_val_index(documents: dict[str, np.ndarray], n_tokens: int) -> bool:
    """Whether the columns of val_documents.npz have the types and lengths of VAL_RECORD, for n_tokens in all."""
    n = documents["tokens"].size
    for name in ("tokens", "baseline_tokens", "utf8_bytes", "mul_tokens"):
        column = documents[name]
        if column.dtype.kind != "i" or column.shape != (n,) or column.min(initial=0) < 0:
            return False
    hashes, mul_bytes = documents["hash"], documents["mul_bytes"]
    are_bytes = hashes.dtype == mul_bytes.dtype == np.uint8
    fits = hashes.shape == (n, 16) and mul_bytes.shape == (documents["mul_tokens"].sum(),)
    lengths = documents["tokens"]
    return are_bytes and fits and lengths.min(initial=1) > 0 and lengths.sum() == n_tokens


def open_val(data_dir, val_tokens: int, verify: bool = True, vocab_size: int | None = None) -> dict:
    """The first whole held-out documents worth `val_tokens` (at least one document).

    Counted in plain GPT-2 tokens whatever the tokens are, so all arms score the same documents. Returns
    {"condition" of the dataset, None of a neighbour's; "plain_tokens" that are scored, and the plain tokens of the
     "next_document", 0 where all are scored;
     "tokens": uint16 (N,), "token_bytes": uint16 (N,) original UTF-8 bytes each token stands for (BOS 0),
     "content_sha256": of both and of the documents' beginnings,
     "doc_starts": int64 (D,), "doc_hash": (D, 16) uint8 or None, "fingerprint_documents", "fingerprint_tokens"}.
    A neighbour's documents have no hashes and no fingerprint; they begin at each BOS, and tokens before the first BOS
    are a document of their own."""
    files, meta = open_dataset(data_dir, "val", verify, vocab_size)
    path = Path(data_dir) / "val_documents.npz"
    if meta:
        whole = path.is_file() and disk.sha256_file(path) == meta.get("val_documents_sha256")
        require(whole, f"{path} is missing or does not match its checksum in meta.json", AGAIN)
        documents = disk.read_npz(path, (*VAL_RECORD.names, "mul_bytes"), AGAIN)
        require(_is_val_index(documents, files.n_tokens), f"{path} does not fit the val shards", AGAIN)
        digest = hashlib.sha256(documents["hash"].tobytes()).hexdigest()
        require(digest == meta.get("val_fingerprint_documents"),
                f"{path} does not match val_fingerprint_documents in meta.json", AGAIN)
    else:
        starts = np.flatnonzero(files.slice(0, files.n_tokens) == bos_id())
        lengths = np.diff(np.union1d(0, starts), append=files.n_tokens)
        documents = {"tokens": lengths, "baseline_tokens": lengths}
        meta = {"val_fingerprint_documents": None, "val_fingerprint_tokens": files.fingerprint}

    fitting = np.searchsorted(np.cumsum(documents["baseline_tokens"]), val_tokens, side="right")
    n_docs = max(1, int(fitting))
    lengths = documents["tokens"][:n_docs]
    starts = np.cumsum(lengths) - lengths
    tokens = files.slice(0, int(lengths.sum()))
    of_tokenizer = get_tokenizer().token_byte_lengths()
    bytes_of_id = np.zeros(2**16, np.uint16)  # an id beyond the tokenizer's stands for no text
    if "hash" in documents or files.vocab_size == N_GPT2_TOKENS:  # else nobody knows a neighbour's texts
        bytes_of_id[: len(of_tokenizer)] = of_tokenizer
    token_bytes = bytes_of_id[tokens]
    if "hash" in documents:  # ours, so the original length of every product is known
        is_mul = tokens >= get_tokenizer().first_mul_id
        token_bytes[is_mul] = documents["mul_bytes"][: int(is_mul.sum())]
        sums = np.add.reduceat(token_bytes.astype(np.int64), starts)
        require(np.array_equal(sums, documents["utf8_bytes"][:n_docs]),
                f"{path} does not agree with the val tokens on the documents' bytes", AGAIN)
        documents["hash"] = documents["hash"][:n_docs]
    content = hashlib.sha256()  # what is scored, in whichever container
    for array in (starts.astype("<i8"), tokens, token_bytes):
        content.update(array.tobytes())
    plain = [int(count) for count in documents["baseline_tokens"][: n_docs + 1]]
    return {"condition": meta.get("condition"), "plain_tokens": sum(plain[:n_docs]),
            "next_document": sum(plain[n_docs:]),
            "tokens": tokens, "token_bytes": token_bytes, "content_sha256": content.hexdigest(),
            "doc_starts": starts, "doc_hash": documents.get("hash"),
            "fingerprint_documents": meta["val_fingerprint_documents"],
            "fingerprint_tokens": meta.get("val_fingerprint_tokens")}
