"""shards.py owns tokens on disk: the tokenizer, the dataset folder's writer, and its reader.

A dataset folder holds
    train_000000.bin ...   headerless little-endian uint16, `shard_tokens` each; every document is [50256] + bpe(text)
    val_000000.bin ...     the held-out documents, same encoding, the same bytes in every dataset of one source
    val_documents.npz      one entry per held-out document: tokens, original UTF-8 bytes, hash (see `DatasetWriter`)
    meta.json              written last: settings, counts, a sha256 per file, fingerprints; no meta.json = not finished
    decontamination.jsonl  with --decontaminate: the documents that were dropped, and why (decontaminate.py)
    progress.json          only while a prepare is under way or was killed: where `--resume` continues

The reader also opens what the neighbours publish, recognised by content: llm.c / modded-nanogpt `.bin` (256 x int32
header, magic 20240520, version 1), nanoGPT `train.bin`/`val.bin` (headerless), build-nanogpt `.npy` shards.

Vocabulary (design of document 002): GPT-2's 50,257 ids, 50257..50303 unused, 45 multiplication facts at 50304..50348.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import io
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lab import disk
from lab.tokenizer import (  # noqa: F401  (document 002's public names stay importable from here)
    BOS_ID,
    FIRST_MUL_ID,
    N_GPT2_TOKENS,
    PADDED_VOCAB_SIZE,
    UNUSED_IDS,
    VOCAB_FILES,
    VOCAB_SIZE,
    GPT2TokenizerWithMulFacts,
    MulFactTokens,
    get_tokenizer,
    tokenizer_hash,
    write_hf_tokenizer,
)

FORMAT_VERSION = 1

# ------------------------------------------------------------------------------------------------------------
# small file tools


# ------------------------------------------------------------------------------------------------------------
# writer

# one record per held-out document; `baseline_tokens` counts plain GPT-2 BPE with BOS, so that every arm scores the
# same documents for the same --val_tokens whatever its own tokenisation
VAL_RECORD = np.dtype(
    [("hash", "V16"), ("tokens", "<i8"), ("baseline_tokens", "<i8"), ("utf8_bytes", "<i8"), ("mul_tokens", "<i8")]
)
VAL_PARTIALS = ("val_documents.partial", "val_mul_bytes.partial")  # become val_documents.npz


def document_hash(utf8: bytes) -> bytes:
    """16 bytes that name a document by its raw text (blake2b, 0.9 GB/s)."""
    return hashlib.blake2b(utf8, digest_size=16).digest()


def is_held_out(digests: list[bytes], val_fraction: float) -> np.ndarray:
    """bool (len(digests),): which documents belong to the held-out share, from `document_hash` alone: the same for
    every arm, worker and restart."""
    return np.frombuffer(b"".join(digests), "<u8")[::2] < np.uint64(math.ceil(val_fraction * 2.0**64))


class DatasetWriter:
    """Writes a dataset folder so that a kill at any moment loses at most the work since the last `commit`.

    Tokens are appended to `<name>.bin.partial`; `commit(state)` flushes them to disk and then records their lengths
    together with the caller's `state` (a JSON-able dict, e.g. documents read) in progress.json. `resume=True` cuts the
    partial files back to those lengths and hands `state` back. A full shard is flushed and renamed. `finish(meta)`
    writes val_documents.npz and, last, meta.json.

    settings: everything that decides the bytes; resuming with other settings is refused.
    Attributes: complete (nothing left to do), state (of the last commit, {} at first).
    """

    def __init__(self, out_dir, settings: dict, shard_tokens: int, val_shards: int, resume: bool = False):
        self.dir, self.shard_tokens, self.val_shards = Path(out_dir), shard_tokens, val_shards
        self.settings = json.loads(json.dumps(settings))  # as a later --resume will read them
        self.complete, self.state, self.fresh = False, {}, True
        self.files: list[dict] = []  # a record per data file, in order of creation; complete ones have a sha256
        self._open: dict[str, tuple] = {}  # split -> (handle, running sha256, record)
        self._lengths = dict.fromkeys(VAL_PARTIALS, 0)
        self._rows = {name: [] for name in VAL_PARTIALS}  # bytes since the last commit
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            disk.write_whole(self.dir / ".writable", b"")
            (self.dir / ".writable").unlink()
        except OSError as error:
            raise ValueError(
                f"--out_dir {self.dir} is not writable ({error.strerror}): choose another --out_dir."
            ) from error
        if (self.dir / "meta.json").exists():
            if not resume:
                raise ValueError(
                    f"{self.dir} already holds a finished dataset: choose another --out_dir, or delete it."
                )
            self._refuse_other_settings(read_meta(self.dir).get("settings"))
            self._remove_progress()  # a kill between meta.json and its removal
            self.complete = True
        elif (self.dir / "progress.json").exists():
            if not resume:
                raise ValueError(
                    f"{self.dir} holds an unfinished prepare: pass --resume to continue it, or delete the folder."
                )
            self._load(json.loads((self.dir / "progress.json").read_text()))
        elif found := sorted(p.name for p in self.dir.iterdir() if p.name.endswith((".bin", ".npy", ".bin.partial"))):
            raise ValueError(f"{self.dir} holds {found[0]} of something else: choose an empty --out_dir.")
        else:
            self._remove_progress()  # a kill before the first commit
            self.commit({})

    def _refuse_other_settings(self, there: dict | None) -> None:
        there = there or {}
        changed = sorted(k for k in {*there, *self.settings} if there.get(k) != self.settings.get(k))
        if changed:
            listed = ", ".join(f"{k} was {there.get(k)!r}, now {self.settings.get(k)!r}" for k in changed)
            raise ValueError(
                f"{self.dir} was begun with other settings ({listed}): repeat those, or choose another --out_dir."
            )

    def _load(self, progress: dict) -> None:
        """Put the folder back to what the last commit recorded."""
        self._refuse_other_settings(progress["settings"])
        self.state, self.files, self._lengths = progress["state"], progress["files"], progress["val_lengths"]
        self.fresh = not self.state
        self._closed_at_commit = sum(record["complete"] for record in self.files)
        kept = set()
        for record in self.files:
            final, partial = self.dir / record["name"], self.dir / (record["name"] + ".partial")
            kept |= {final, partial}
            if not record["complete"] and final.exists():  # killed between the rename and the next commit
                os.replace(final, partial)
            path = final if record["complete"] else partial
            if not path.exists() or path.stat().st_size < 2 * record["tokens"]:
                raise ValueError(f"{path} is missing or shorter than recorded: delete {self.dir} and prepare again.")
            if not record["complete"]:
                os.truncate(partial, 2 * record["tokens"])
                handle = open(partial, "ab", buffering=0)
                self._open[record["split"]] = (handle, disk.sha256_file(partial, hashlib.sha256()), record)
        kept |= {self.dir / name for name in self._lengths}
        for path in [file for pattern in ("train_*.bin*", "val_*.bin*", "*.jsonl.partial")
                     for file in self.dir.glob(pattern)]:
            if path not in kept:  # begun after the last commit
                path.unlink()
        for name, length in self._lengths.items():
            path = self.dir / name
            if length and (not path.exists() or path.stat().st_size < length):
                raise ValueError(f"{path} is shorter than recorded: delete {self.dir} and prepare again.")
            if path.exists():
                os.truncate(path, length)

    def held_out_hashes(self) -> set[bytes]:
        """Hashes of the documents held out up to the last commit, to keep their duplicates out of train."""
        path = self.dir / "val_documents.partial"
        return {record["hash"].tobytes() for record in np.fromfile(path, VAL_RECORD)} if path.exists() else set()

    def _append(self, split: str, ids: np.ndarray) -> dict:
        if split not in self._open:
            index = sum(record["split"] == split for record in self.files)
            record = {"name": f"{split}_{index:06d}.bin", "split": split, "complete": False}
            record |= dict.fromkeys(("tokens", "documents", "utf8_bytes"), 0)
            self.files.append(record)
            handle = open(self.dir / (record["name"] + ".partial"), "wb", buffering=0)
            self._open[split] = (handle, hashlib.sha256(), record)
        handle, digest, record = self._open[split]
        data = memoryview(np.ascontiguousarray(ids, dtype="<u2")).cast("B")
        digest.update(data)
        _write_all(handle, data)
        record["tokens"] += len(ids)
        return record

    def _close(self, split: str) -> None:
        handle, digest, record = self._open.pop(split)
        os.fsync(handle.fileno())
        handle.close()
        os.replace(self.dir / (record["name"] + ".partial"), self.dir / record["name"])
        record.update(complete=True, sha256=digest.hexdigest())

    def write(self, split: str, ids: np.ndarray, lengths: np.ndarray, utf8_bytes: np.ndarray) -> None:
        """Append documents (or pieces that begin with BOS): ids (N,), tokens per document, original bytes per document.

        A document may straddle shards; it is counted where it begins. The last of `val_shards` val files takes whatever
        the document that crosses the cap brings.
        """
        starts = np.cumsum(lengths) - lengths
        done = 0
        while done < len(ids):
            at = self._open[split][2]["tokens"] if split in self._open else 0
            n_closed = sum(record["split"] == split and record["complete"] for record in self.files)
            last_val = split == "val" and n_closed + 1 >= self.val_shards
            take = len(ids) - done if last_val else min(self.shard_tokens - at, len(ids) - done)
            record = self._append(split, ids[done : done + take])
            first, last = np.searchsorted(starts, (done, done + take)).tolist()  # documents that begin here
            record["documents"] += last - first
            record["utf8_bytes"] += int(utf8_bytes[first:last].sum())
            done += take
            if record["tokens"] >= self.shard_tokens and not last_val:
                self._close(split)

    def write_val_document(
        self, ids: np.ndarray, digest: bytes, baseline_tokens: int, utf8_bytes: int, mul_bytes=()
    ) -> None:
        """Hold out one document. mul_bytes: original UTF-8 length of what each mul token in it replaced, in order."""
        self.write("val", ids, np.array([len(ids)]), np.array([utf8_bytes]))
        record = np.array([(digest, len(ids), baseline_tokens, utf8_bytes, len(mul_bytes))], VAL_RECORD)
        self._rows["val_documents.partial"].append(record.tobytes())
        self._rows["val_mul_bytes.partial"].append(bytes(mul_bytes))

    def append(self, name: str, lines: bytes) -> None:
        """Append lines to `name`, a jsonl file beside the shards, which a kill keeps in step with them."""
        self._rows.setdefault(f"{name}.partial", []).append(lines)

    def appended(self, name: str) -> bytes:
        """What `name` holds as of the last commit."""
        return (self.dir / f"{name}.partial").read_bytes()

    def _logs(self) -> list[str]:
        return [name.removesuffix(".partial") for name in self._lengths if name not in VAL_PARTIALS]

    def tokens(self, split: str) -> int:
        """Tokens written to a split so far."""
        return sum(record["tokens"] for record in self.files if record["split"] == split)

    def closed_since_commit(self) -> bool:
        return sum(record["complete"] for record in self.files) > self._closed_at_commit

    def commit(self, state: dict) -> None:
        """Everything written so far, and `state`, survive a kill from here on."""
        for handle, _, _ in self._open.values():
            os.fsync(handle.fileno())
        for name, rows in self._rows.items():
            with open(self.dir / name, "ab", buffering=0) as f:
                _write_all(f, memoryview(b"".join(rows)))
                os.fsync(f.fileno())
                self._lengths[name] = f.tell()
            rows.clear()
        progress = {"settings": self.settings, "state": state, "files": self.files, "val_lengths": self._lengths}
        disk.write_whole(self.dir / "progress.json", json.dumps(progress, indent=1).encode())
        self.state, self._closed_at_commit = state, sum(record["complete"] for record in self.files)

    def finish(self, meta: dict) -> dict:
        """Close the last shards and write val_documents.npz and meta.json. meta: the caller's fields; returns them all.

        Adds data_files, fingerprint, val_fingerprint_documents (which raw documents), val_fingerprint_tokens (their
        tokens), num_shards_total, tokens_written_total. Call `commit` before it.
        """
        for split in list(self._open):
            self._close(split)
        records = np.fromfile(self.dir / "val_documents.partial", VAL_RECORD)
        columns = {name: np.ascontiguousarray(records[name]) for name in VAL_RECORD.names}
        columns["hash"] = columns["hash"].view(np.uint8).reshape(-1, 16)
        columns["mul_bytes"] = np.fromfile(self.dir / "val_mul_bytes.partial", np.uint8)
        packed = io.BytesIO()
        np.savez(packed, **columns)
        disk.write_whole(self.dir / "val_documents.npz", packed.getvalue())
        for name in self._logs():
            disk.write_whole(self.dir / name, self.appended(name))
        for record in self.files:
            if (size := (self.dir / record["name"]).stat().st_size) != 2 * record["tokens"]:
                raise ValueError(f"{self.dir / record['name']} has {size:,} bytes, not the {2 * record['tokens']:,} "
                                 f"written to it: something else changed it; delete {self.dir} and prepare again.")
        keys = ("name", "split", "tokens", "documents", "utf8_bytes", "sha256")
        data_files = [{k: record[k] for k in keys} for record in sorted(self.files, key=lambda r: r["name"])]
        meta = {
            **meta,
            "format_version": FORMAT_VERSION,
            "num_shards_total": len(data_files),
            "tokens_written_total": sum(record["tokens"] for record in data_files),
            "data_files": data_files,
            "val_documents_sha256": disk.sha256_file(self.dir / "val_documents.npz"),
            "fingerprint": _fingerprint([(r["name"], r["tokens"], r["sha256"]) for r in data_files]),
            "val_fingerprint_documents": hashlib.sha256(columns["hash"].tobytes()).hexdigest(),
            "val_fingerprint_tokens": _fingerprint(
                [(r["tokens"], r["sha256"]) for r in data_files if r["split"] == "val"]
            ),
            "settings": self.settings,
        }
        disk.write_whole(self.dir / "meta.json", (json.dumps(meta, indent=2) + "\n").encode())
        self._remove_progress()
        self.complete = True
        return meta

    def abandon(self) -> None:
        """After a failure: take back what this process began, unless an earlier run or a commit had put data there."""
        for handle, _, _ in self._open.values():
            handle.close()
        if self.fresh and not self.state:
            for record in self.files:
                (self.dir / record["name"]).unlink(missing_ok=True)
                (self.dir / (record["name"] + ".partial")).unlink(missing_ok=True)
            self._remove_progress()
            with contextlib.suppress(OSError):  # not empty: the user's own folder
                self.dir.rmdir()

    def _remove_progress(self) -> None:
        for path in [*map(self.dir.joinpath, ("progress.json", *VAL_PARTIALS)), *self.dir.glob("*.jsonl.partial")]:
            path.unlink(missing_ok=True)


def _write_all(handle, data: memoryview) -> None:
    """Write to an unbuffered file: a full disk raises here, not later in a flush."""
    while len(data):
        data = data[handle.write(data) :]


def _fingerprint(parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------
# reader

LLMC_MAGIC, LLMC_VERSION, LLMC_HEADER_BYTES = 20240520, 1, 1024


class TokenFiles:
    """One split of a dataset as one long row of tokens: memmapped files, addressed across file borders.

    Attributes: paths, n_tokens, row_tokens (None for a stream; seq_len + 1 for rows), fingerprint, source (format).
    """

    def __init__(
        self, files: list[tuple[Path, int, int]], source: str, row_tokens: int | None = None, fingerprint: str = ""
    ):
        self.paths, self.source, self.row_tokens, self.fingerprint = (
            [f[0] for f in files],
            source,
            row_tokens,
            fingerprint,
        )
        self.maps = [  # as plain arrays: slicing np.memmap's subclass costs ten times as much
            np.asarray(np.memmap(path, dtype="<u2", mode="r", offset=offset, shape=(tokens,)).view(np.ndarray))
            for path, offset, tokens in files
        ]
        self.starts = np.concatenate([[0], np.cumsum([len(m) for m in self.maps])]).astype(np.int64)
        self._bounds = self.starts.tolist()
        self.n_tokens = self._bounds[-1]

    def n_sequences(self, seq_len: int) -> int:
        """Training sequences of seq_len + 1 tokens: rows, or stream windows with stride seq_len (targets never repeat).

        Raises ValueError when rows were packed for another seq_len, or the data is shorter than one sequence.
        """
        if self.row_tokens is not None:
            if self.row_tokens != seq_len + 1:
                raise ValueError(
                    f"these rows were packed for --seq_len {self.row_tokens - 1}, not {seq_len}: pass --seq_len "
                    f"{self.row_tokens - 1}, or run prepare_bos_rows.py --seq_len {seq_len}."
                )
            return self.n_tokens // self.row_tokens
        n = (self.n_tokens - 1) // seq_len
        if n < 1:
            raise ValueError(
                f"{self.n_tokens:,} tokens are less than one sequence of seq_len {seq_len} + 1: lower --seq_len "
                "or prepare more data."
            )
        return n

    def read(self, indices, seq_len: int, out: np.ndarray | None = None) -> np.ndarray:
        """Sequences by number -> int64 (N, seq_len + 1). `out` is filled and returned when given."""
        stride, width = (self.row_tokens, self.row_tokens) if self.row_tokens else (seq_len, seq_len + 1)
        starts = (np.asarray(indices, np.int64) * stride).tolist()
        if out is None:
            out = np.empty((len(starts), width), np.int64)
        maps, bounds = self.maps, self._bounds  # a plain loop: per row, bisect and one cast beat numpy's fixed costs
        for i, start in enumerate(starts):
            f = bisect.bisect_right(bounds, start) - 1
            if start + width <= bounds[f + 1]:
                out[i] = maps[f][start - bounds[f] : start - bounds[f] + width]
            else:  # a window over a file border (or several, when files are tiny)
                out[i] = self.slice(start, width)
        return out

    def slice(self, start: int, n: int) -> np.ndarray:
        """uint16 (min(n, tokens left),): tokens from a global position on, across file borders."""
        pieces = []
        while n > 0 and start < self.n_tokens:
            f = int(np.searchsorted(self.starts, start, side="right") - 1)
            piece = self.maps[f][start - self.starts[f] : start - self.starts[f] + n]
            pieces.append(piece)
            start, n = start + len(piece), n - len(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, np.uint16)


def _recognise(path: Path) -> tuple[int, int, str]:
    """(byte offset of the tokens, tokens, format) of one token file, by its content. ValueError in one sentence."""
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty: prepare the data again.")
    if path.suffix == ".npy":
        try:
            array = np.load(path, mmap_mode="r")
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path} is not a readable .npy file ({error}): write or download it again.") from error
        if array.dtype != np.uint16 or array.ndim != 1:
            raise ValueError(
                f"{path} holds {array.dtype} of shape {array.shape}, not a row of uint16: convert it with "
                "numpy's astype('uint16') and save it again."
            )
        return int(array.offset), len(array), "build-nanogpt"
    if size % 2:
        raise ValueError(
            f"{path} has an odd number of bytes ({size:,}), so it is not a row of uint16 or was cut off: "
            "write or download it again."
        )
    with open(path, "rb") as f:
        head = f.read(LLMC_HEADER_BYTES)
    header = np.frombuffer(head, "<i4") if len(head) == LLMC_HEADER_BYTES else np.empty(0, "<i4")
    if len(header) and header[0] == LLMC_MAGIC:
        if header[1] != LLMC_VERSION:
            raise ValueError(
                f"{path} is an llm.c file of version {header[1]}, not {LLMC_VERSION} (uint16): write it again "
                "with the GPT-2 tokenizer."
            )
        tokens = int(header[2])
        if size != LLMC_HEADER_BYTES + 2 * tokens:
            raise ValueError(
                f"{path} should hold {tokens:,} tokens but has {(size - LLMC_HEADER_BYTES) // 2:,}: it was cut "
                "off; download it again."
            )
        return LLMC_HEADER_BYTES, tokens, "llm.c"
    if len(header) and not header[3:].any():  # 506 times the same token: no text looks like this
        raise ValueError(
            f"{path} starts with a header whose magic is {header[0]}, not {LLMC_MAGIC}: write it again with the "
            "GPT-2 (uint16) tokenizer, or remove the header."
        )
    return 0, size // 2, "nanoGPT"


def _check_files(files: list[tuple[Path, int, int]], expected: list[str | None], vocab_size: int) -> list[str]:
    """sha256 of each file, checked where one is expected, else every token is checked against the vocabulary."""

    def check(item):
        (path, offset, tokens), digest = item
        if digest is not None:
            if (actual := disk.sha256_file(path)) != digest:
                raise ValueError(
                    f"{path} does not match its checksum in meta.json (edited or damaged): prepare the data again."
                )
            return actual
        data = np.memmap(path, dtype="<u2", mode="r", offset=offset, shape=(tokens,))
        for start in range(0, tokens, 1 << 24):
            block = data[start : start + (1 << 24)]
            if (top := int(block.max())) >= vocab_size:
                where = start + int(np.argmax(block >= vocab_size))
                raise ValueError(
                    f"{path} has token {top if block[where - start] == top else int(block[where - start])} at "
                    f"position {where:,}, not below the vocabulary's {vocab_size:,}: these are not GPT-2 tokens; "
                    "prepare the data again or raise --vocab_size."
                )
        return disk.sha256_file(path)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(check, zip(files, expected, strict=True)))


def open_dataset(
    data_dir, split: str = "train", verify: bool = True, vocab_size: int = VOCAB_SIZE
) -> tuple[TokenFiles, dict | None]:
    """Open one split of a dataset folder. Returns (TokenFiles, meta or None for a neighbour's data).

    verify: read every file once and compare its sha256 (about 1.5 GB/s a core), or, without meta.json, check every
    token; `False` checks names and sizes only. Raises ValueError / FileNotFoundError in one sentence.
    """
    folder = Path(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--data_dir {folder} does not exist: make it with python prepare_fineweb.py --out_dir {folder}"
        )
    if (folder / "progress.json").exists() and not (folder / "meta.json").exists():
        raise ValueError(f"{folder} holds an unfinished dataset: run the same prepare command again with --resume.")
    if (folder / "meta.json").exists():
        return _open_own(folder, split, verify, vocab_size)
    paths = sorted(p for p in folder.iterdir() if p.suffix in (".bin", ".npy") and split in p.name and p.is_file())
    if not paths:
        other = (
            ""
            if any(p.suffix in (".bin", ".npy") for p in folder.iterdir())
            else " (the folder has no token files at all)"
        )
        hint = "add one, or pass --val_data_dir" if split == "val" else "make it with python prepare_fineweb.py"
        raise FileNotFoundError(f"{folder} has no {split} files *{split}*.bin or *{split}*.npy{other}: {hint}.")
    found = [_recognise(path) for path in paths]
    if len({source for _, _, source in found}) > 1:
        raise ValueError(
            f"{folder} mixes formats ({', '.join(sorted({f[2] for f in found}))}) in its {split} files: keep one kind."
        )
    files = [(path, offset, tokens) for path, (offset, tokens, _) in zip(paths, found, strict=True)]
    if verify:
        digests = _check_files(files, [None] * len(files), vocab_size)
    else:
        digests = [f"unverified {path.name} {path.stat().st_size}" for path in paths]
    fingerprint = _fingerprint([(tokens, digest) for (_, _, tokens), digest in zip(files, digests, strict=True)])
    return TokenFiles(files, found[0][2], None, fingerprint), None


def read_meta(data_dir) -> dict:
    """meta.json of a finished dataset. ValueError when it is broken or was written by something else."""
    path = Path(data_dir) / "meta.json"
    try:
        meta = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): prepare the data again.") from error
    needed = ("data_files", "fingerprint", "format", "format_version", "vocab_size")
    if not isinstance(meta, dict) or any(key not in meta for key in needed):
        raise ValueError(
            f"{path} was not written by this repo's prepare scripts: prepare the data again, or move meta.json "
            "away to read the token files as plain GPT-2 tokens."
        )
    if meta["format_version"] != FORMAT_VERSION or meta["format"] not in ("stream", "bos_row_packed_bestfit"):
        raise ValueError(
            f"{path} describes format {meta['format']!r} version {meta['format_version']}, which this version "
            "cannot read: prepare the data again."
        )
    return meta


def _open_own(folder: Path, split: str, verify: bool, vocab_size: int) -> tuple[TokenFiles, dict]:
    meta = read_meta(folder)
    needed = VOCAB_SIZE if meta.get("condition") == "mul_tokens" else N_GPT2_TOKENS  # baseline data has no mul ids
    if needed > vocab_size:
        raise ValueError(
            f"{folder} holds ids up to {needed - 1:,}, not below --vocab_size {vocab_size:,}: "
            f"pass --vocab_size {VOCAB_SIZE}."
        )
    records = [record for record in meta["data_files"] if record["split"] == split]
    if not records:
        hint = "prepare with --val_shards 1, or pass --val_data_dir" if split == "val" else "prepare it again"
        raise FileNotFoundError(f"{folder} has no {split} shards: {hint}.")
    row_tokens = meta["row_tokens"] if meta["format"] != "stream" and split == "train" else None
    for record in records:
        path = folder / record["name"]
        if not path.exists():
            raise FileNotFoundError(f"{path} is listed in meta.json but missing: prepare the data again.")
        if (size := path.stat().st_size) % 2:
            raise ValueError(
                f"{path} has an odd number of bytes ({size:,}), so it was cut off: prepare the data again."
            )
        if size != 2 * record["tokens"]:
            raise ValueError(
                f"{path} holds {size // 2:,} tokens, not the {record['tokens']:,} of meta.json (truncated or "
                "edited): prepare the data again."
            )
        if row_tokens and record["tokens"] % row_tokens:
            raise ValueError(
                f"{path} holds {record['tokens']:,} tokens, not a multiple of row_tokens {row_tokens}: prepare "
                "the rows again."
            )
    files = [(folder / record["name"], 0, record["tokens"]) for record in records]
    if verify:
        _check_files(files, [record["sha256"] for record in records], vocab_size)
    tokens = TokenFiles(files, meta["format"], row_tokens, meta["fingerprint"])
    if row_tokens:
        for m, path in zip(tokens.maps, tokens.paths, strict=True):
            if (bad := np.flatnonzero(m[::row_tokens] != BOS_ID)).size:
                raise ValueError(
                    f"row {bad[0]:,} of {path} does not start with BOS ({BOS_ID}): prepare the rows again."
                )
    return tokens, meta


def open_val(data_dir, val_tokens: int, verify: bool = True, vocab_size: int = VOCAB_SIZE) -> dict:
    """The first whole held-out documents worth `val_tokens` plain GPT-2 tokens (at least one document).

    Counted in plain GPT-2 tokens in every condition, so all arms score the same documents. Returns
    {"tokens": uint16 (N,), "token_bytes": uint8/uint16 (N,) original UTF-8 bytes each token stands for (BOS 0),
     "doc_starts": int64 (D,), "doc_hash": (D, 16) uint8 or None, "fingerprint_documents", "fingerprint_tokens"}.
    For a neighbour's data documents start at each 50256 (tokens before the first one count as a document of their own).
    """
    files, meta = open_dataset(data_dir, "val", verify, vocab_size)
    lengths_of = get_tokenizer().token_byte_lengths()
    if meta is None:
        tokens = np.concatenate(files.maps)
        starts = np.flatnonzero(tokens == BOS_ID)
        if len(starts) == 0 or starts[0] != 0:
            starts = np.concatenate([[0], starts])
        ends = np.append(starts[1:], len(tokens))
        n_docs = max(1, int(np.searchsorted(ends, val_tokens, side="right")))
        tokens = tokens[: ends[n_docs - 1]]
        table = np.zeros(max(vocab_size, len(lengths_of)), np.uint16)
        table[: len(lengths_of)] = lengths_of
        return {
            "tokens": tokens,
            "token_bytes": table[tokens],
            "doc_starts": starts[:n_docs],
            "doc_hash": None,
            "fingerprint_documents": None,
            "fingerprint_tokens": files.fingerprint,
        }
    path = Path(data_dir) / "val_documents.npz"
    if not path.exists() or (verify and disk.sha256_file(path) != meta["val_documents_sha256"]):
        raise ValueError(f"{path} is missing or does not match its checksum in meta.json: prepare the data again.")
    with np.load(path) as index:
        documents = {name: index[name] for name in index.files}
    n_docs = max(1, int(np.searchsorted(np.cumsum(documents["baseline_tokens"]), val_tokens, side="right")))
    ends = np.cumsum(documents["tokens"][:n_docs])
    tokens = files.slice(0, int(ends[-1]))
    token_bytes = lengths_of[tokens]
    is_mul = tokens >= FIRST_MUL_ID
    token_bytes[is_mul] = documents["mul_bytes"][: int(is_mul.sum())]
    starts = np.concatenate([[0], ends[:-1]])
    if not np.array_equal(np.add.reduceat(token_bytes.astype(np.int64), starts), documents["utf8_bytes"][:n_docs]):
        raise ValueError(f"{path} does not agree with the val tokens on the documents' bytes: prepare the data again.")
    return {
        "tokens": tokens,
        "token_bytes": token_bytes,
        "doc_starts": starts,
        "doc_hash": documents["hash"][:n_docs],
        "fingerprint_documents": meta["val_fingerprint_documents"],
        "fingerprint_tokens": meta["val_fingerprint_tokens"],
    }
