"""token_files.py owns files of token ids: where the tokens are in each format, and many files read as one long row.

    llm.c, modded-nanogpt   *.bin   256 int32 (magic 20240520, version 1, tokens, zeros), then uint16
    build-nanogpt           *.npy   a numpy array (tokens,) of uint16, or of wider integers
    nanoGPT, shards.py      *.bin   nothing but uint16

All are little-endian. A file is recognised by its content; a new format is one entry of FILE_FORMATS. Nothing in a file
says that it holds GPT-2's ids, so a sample of each is looked at for what they never are (`TokenFile.inspect`).
"""

from __future__ import annotations

import bisect
import codecs
import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab import disk
from lab.files import words_of
from lab.schema import require
from lab.tokenizer import LEAST_IDS, N_GPT2_TOKENS, VOCAB_SIZE

AGAIN = "prepare the data again"
FROM_TEXT = "prepare its text with python prepare_fineweb.py"
LLMC_MAGIC, LLMC_VERSION, LLMC_HEADER_BYTES = 20240520, 1, 1024


# ------------------------------------------------------------------------------------------------------------
# formats: each function gives (byte offset of the tokens, number of tokens[, their dtype unless uint16]), or None for a
# file of another format, and raises ValueError for a damaged one


def _npy_layout(path: Path) -> tuple[int, int, str] | None:
    if path.suffix != ".npy":
        return None
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # np.load would also open a renamed .npz
    except Exception as error:  # numpy evaluates the header, which may be any text
        raise ValueError(f"{path} is not a readable .npy ({error}): download it again.") from error
    is_ids = array.dtype.kind in "iu" and array.dtype.itemsize > 1 and array.ndim == 1
    require(is_ids, f"{path} holds {array.dtype} of shape {array.shape}, not a row of token ids",
            "save the ids as one row of uint16")
    return int(array.offset), len(array), array.dtype.str


def _llmc_layout(path: Path) -> tuple[int, int] | None:
    with open(path, "rb") as f:
        head = f.read(LLMC_HEADER_BYTES)
    if len(head) < LLMC_HEADER_BYTES:
        return None
    magic, version, tokens, *rest = np.frombuffer(head, "<i4").tolist()
    if any(rest) and magic != LLMC_MAGIC:  # in a text, the 253 zeros would be the same token 506 times
        return None
    again = "write it again with GPT-2's uint16 tokenizer, or remove the header"
    require(magic == LLMC_MAGIC, f"{path} has a header whose magic is {magic}, not {LLMC_MAGIC}", again)
    require(version == LLMC_VERSION, f"{path} has llm.c version {version}, not {LLMC_VERSION}", again)
    stored = (path.stat().st_size - LLMC_HEADER_BYTES) // 2
    require(stored == tokens,
            f"{path} was cut off: it should hold {tokens:,} tokens but has {stored:,}", "get it again")
    return LLMC_HEADER_BYTES, tokens


def headerless_layout(path: Path) -> tuple[int, int]:
    size = path.stat().st_size
    require(size % 2 == 0, f"{path} has an odd number of bytes ({size:,}), which uint16 never has",
            "write or download it again")
    return 0, size // 2


FILE_FORMATS = {  # tried in this order; the last takes what the others do not know
    "build-nanogpt": _npy_layout,
    "llm.c": _llmc_layout,
    "nanoGPT": headerless_layout,
}


# ------------------------------------------------------------------------------------------------------------
# evidence

SAMPLE_TOKENS = 2**16  # looked at in the beginning, the middle and the end of a file
OTHER_TYPES = {"<i8": "int64", "<u4": "uint32", ">i8": "big-endian int64", ">u4": "big-endian uint32",
               "<f4": "float32", "<f8": "float64"}
NOT_IN_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")


def ids_end(vocab_size: int) -> int:
    """What a neighbour's ids must be below: GPT-2's, unless --vocab_size says that they are another tokenizer's."""
    if N_GPT2_TOKENS <= vocab_size <= VOCAB_SIZE:
        return N_GPT2_TOKENS  # the other rows of the embedding are padding and our products
    return min(vocab_size, 2**16)


def other_type(ids: np.ndarray) -> tuple[str, int] | None:
    """(name, largest id) of the type that these bytes are, if they make sense as token ids of a type but uint16.

    Two ids of GPT-2 side by side are hardly ever a whole number below 2**18; a row of them never is."""
    data = ids[: len(ids) // 4 * 4].tobytes()
    for dtype, name in OTHER_TYPES.items():
        values = np.frombuffer(data, dtype)
        if len(values) < 8 or not ids.any():
            continue
        are_ids = (values >= 0) & (values < 2**18)
        if dtype[1] == "f":
            with np.errstate(invalid="ignore"):
                are_ids &= values == np.floor(values)
        top = values.max()
        if are_ids.all() and (ids.max() >= 256 or top < 2**16):  # not a toy's few ids in pairs
            return name, int(top)
    swapped = ids.byteswap().max(initial=0)
    if len(ids) >= 64 and swapped < N_GPT2_TOKENS <= ids.max():
        return "big-endian uint16", int(swapped)
    return None


def is_text(data: bytes) -> bool:
    """Whether a file that begins with these bytes is UTF-8 without control characters. Most ids have a byte below 9."""
    if len(data) < 64 or NOT_IN_TEXT.search(data):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)  # which may end within a character
    except UnicodeDecodeError:
        return False
    return True


class TokenFile(NamedTuple):
    """Where the tokens of one file are, and the sha256 it must have (None: a neighbour's)."""

    path: Path
    offset: int  # bytes
    tokens: int
    dtype: str = "<u2"
    sha256: str | None = None

    def memmap(self) -> np.ndarray:
        """Ids (tokens,), as a plain array: slicing np.memmap's subclass costs ten times as much."""
        data = np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=(self.tokens,))
        return np.asarray(data.view(np.ndarray))

    def inspect(self, vocab_size: int) -> None:
        """ValueError when a sample of a neighbour's file shows that it does not hold GPT-2's ids in this type."""
        ids = self.memmap()
        last = max(0, self.tokens - SAMPLE_TOKENS) // 4 * 4
        for start in sorted({0, last // 8 * 4, last}):
            block = ids[start : start + SAMPLE_TOKENS]
            if self.dtype == "<u2":
                require(start or not is_text(block.tobytes()), f"{self.path} holds text, not tokens",
                        "rename it to .txt and prepare it with python prepare_fineweb.py")
                name, top = other_type(block) or ("uint16", 0)
                remedy = "write them as little-endian uint16"
                if top >= N_GPT2_TOKENS:
                    remedy = FROM_TEXT
                fault = f"{self.path} holds {name} (ids up to {top:,}), not GPT-2's ids in uint16"
                require(name == "uint16", fault, remedy)
            self._check_ids(block, start, vocab_size)

    def _check_ids(self, block: np.ndarray, start: int, vocab_size: int) -> None:
        end = ids_end(vocab_size)
        wrong = block >= end
        if block.dtype.kind == "i":
            wrong |= block < 0
        first = int(np.argmax(wrong))  # 0 also when there is none
        where = f"{self.path} has token {block[first]} at position {start + first:,}"
        require(not wrong[first], f"{where}, not below {end:,}",
                "prepare the data again with GPT-2's tokenizer, or raise --vocab_size")

    def verify(self, vocab_size: int) -> str:
        """The file's sha256. ValueError unless it is the one expected or, where none is, all tokens fit."""
        actual = disk.sha256_file(self.path)
        if self.sha256 is not None:
            require(actual == self.sha256,
                    f"{self.path} does not match its checksum in meta.json", AGAIN)
            return actual
        ids = self.memmap()
        for start in range(0, self.tokens, 2**24):
            self._check_ids(ids[start : start + 2**24], start, vocab_size)
        return actual


# ------------------------------------------------------------------------------------------------------------
# a neighbour's folder

SUFFIXES = (".bin", ".npy")
SPLITS = {"train": {"train", "training"}, "val": {"val", "valid", "validation"}}


def folder_of(data_dir) -> Path:
    """A dataset's folder. FileNotFoundError for a name that is none."""
    folder = Path(data_dir)
    remedy = "pass the folder that python prepare_fineweb.py --out_dir has made"
    if folder.suffix in SUFFIXES or folder.name == "meta.json":
        remedy = f"pass the folder that it is in, {folder.absolute().parent}"
    is_file = folder.exists() and not folder.is_dir()
    fault = f"{folder} is a file, and a dataset is a folder"
    require(not is_file, fault, remedy, FileNotFoundError)
    require(folder.is_dir(), f"the dataset {folder} does not exist",
            f"make it with python prepare_fineweb.py --out_dir {folder}", FileNotFoundError)
    return folder


def splits_of(path: Path) -> set[str]:
    """The splits that a file's name holds as whole words: {"train"} for retrieval_train_000000.bin."""
    return {split for split, names in SPLITS.items() if words_of(path.stem) & names}


def neighbours_files(folder: Path, split: str, vocab_size: int = VOCAB_SIZE) -> tuple[list[TokenFile], str]:
    """The token files of a folder whose names hold the split as a word, each once, and their format.

    FileNotFoundError when there is none; ValueError when one is empty, damaged or not GPT-2's, when its name holds both
    splits, or when formats are mixed."""
    every = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.is_dir())
    paths = {}
    for path in every:
        names = splits_of(path)
        require(len(names) < 2, f"{path} names both splits", "rename it, so that it names one")
        if split in names:
            paths.setdefault(os.path.realpath(path), path)  # a link to one of them is the same
    remedy = "make them with python prepare_fineweb.py"
    if split == "val":
        remedy = "add one, or score another dataset (train_gpt.py --val_data_dir)"
    others = ", ".join(path.name for path in every[:3]) or "no token files at all"
    fault = f"{folder} has no {split} files *{split}*.bin or *{split}*.npy, but {others}"
    require(paths, fault, remedy, FileNotFoundError)
    files, formats = [], set()
    for path in paths.values():
        require(path.is_file(), f"{path} is not a file, or a link to itself", AGAIN)
        require(path.stat().st_size, f"{path} is empty", AGAIN)
        for name, layout_of in FILE_FORMATS.items():
            if layout := layout_of(path):
                files.append(TokenFile(path, *layout))
                formats.add(name)
                break
        require(files[-1].tokens, f"{path} holds no token", AGAIN)
    listed = ", ".join(sorted(formats))
    require(len(formats) == 1, f"{folder} mixes formats ({listed}) in its {split} files", "keep one kind")
    is_gpt2 = ids_end(vocab_size) == N_GPT2_TOKENS
    require(not (is_gpt2 and (folder / "meta.pkl").exists()),
            f"{folder / 'meta.pkl'} is nanoGPT's vocabulary of characters, so the ids beside it are not GPT-2's",
            f"{FROM_TEXT} (for few ids with --tokenizer T, which python train_tokenizer.py "
            f"--dataset TEXTS --vocab_size {LEAST_IDS} --out_dir T makes), or pass the "
            "--vocab_size of those ids, to train a model that cannot be sampled")
    for file in files:
        file.inspect(vocab_size)
    return files, formats.pop()


# ------------------------------------------------------------------------------------------------------------
# many files as one


class TokenFiles:
    """One split of a dataset as one long row of tokens: memmapped files, addressed across file borders.

    Attributes: paths, n_tokens, row_tokens (None for a stream; seq_len + 1 for rows), fingerprint, source (format). An
    id of vocab_size or more is a ValueError when it is read, as not every file was read whole before."""

    def __init__(self, files: list[TokenFile], source: str, row_tokens: int | None,
                 fingerprint: str, vocab_size: int = VOCAB_SIZE):
        self.paths, self.vocab_size = [file.path for file in files], vocab_size
        self.source, self.row_tokens, self.fingerprint = source, row_tokens, fingerprint
        self.maps = [file.memmap() for file in files]
        self._bounds = np.cumsum([0, *map(len, self.maps)]).tolist()
        self.n_tokens = self._bounds[-1]

    def n_sequences(self, seq_len: int) -> int:
        """Sequences of seq_len + 1 tokens: rows, or stream windows with stride seq_len (targets never repeat).

        ValueError when rows were packed for another seq_len, or the data is shorter than one sequence."""
        if self.row_tokens is not None:
            packed = self.row_tokens - 1
            fault = f"these rows were packed for --seq_len {packed}, not {seq_len}"
            require(seq_len == packed, fault,
                    f"pass --seq_len {packed}, or run prepare_bos_rows.py --seq_len {seq_len}")
            return self.n_tokens // self.row_tokens
        n = (self.n_tokens - 1) // seq_len
        fault = f"{self.n_tokens:,} tokens are less than one sequence of seq_len {seq_len} + 1"
        require(n >= 1, fault, "lower --seq_len or prepare more data")
        return n

    def content_sha256(self) -> str:
        """What the tokens are, in whichever container and in however many files: a hash of the uint16 ids, a million at
        a time, and of the rows they are in. About 1 GB/s a core."""
        starts = range(0, self.n_tokens, 2**20)
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            blocks = list(pool.map(lambda start: hashlib.sha256(self.slice(start, 2**20)).hexdigest(), starts))
        whole = json.dumps([self.row_tokens, self.n_tokens, blocks])
        return hashlib.sha256(whole.encode()).hexdigest()

    def read(self, indices, seq_len: int, out: np.ndarray | None = None) -> np.ndarray:
        """Sequences by number -> int64 (N, seq_len + 1). `out` is filled and returned when given."""
        width = self.row_tokens or seq_len + 1
        stride = self.row_tokens or seq_len
        starts = (np.asarray(indices, np.int64) * stride).tolist()
        if out is None:
            out = np.empty((len(starts), width), np.int64)
        maps, bounds = self.maps, self._bounds
        # a plain loop: per sequence, bisect and one cast beat numpy's fixed costs
        for i, start in enumerate(starts):
            f = bisect.bisect_right(bounds, start) - 1
            if start + width <= bounds[f + 1]:
                out[i] = maps[f][start - bounds[f] : start - bounds[f] + width]
            else:  # a window over a file border (or several, when files are tiny)
                out[i] = self.slice(start, width)
        if out.size and out.view(np.uint64).max() >= self.vocab_size:  # a negative one is a huge one here
            for start in starts:
                self.slice(start, width)
        return out

    def slice(self, start: int, n: int) -> np.ndarray:
        """uint16 (min(n, tokens left),): tokens from a global position on, across file borders."""
        pieces = [np.empty(0, np.uint16)]
        while n > 0 and start < self.n_tokens:
            f = bisect.bisect_right(self._bounds, start) - 1
            position = start - self._bounds[f]
            piece = self.maps[f][position : position + n]
            if piece.min() < 0 or piece.max() >= self.vocab_size:
                first = int(np.argmax((piece < 0) | (piece >= self.vocab_size)))
                where = f"{self.paths[f]} has token {piece[first]} at position {position + first:,}"
                require(False, f"{where}, not below {self.vocab_size:,}",
                        "get or prepare the file again, or raise --vocab_size")
            pieces.append(piece)
            start += len(piece)
            n -= len(piece)
        return np.concatenate(pieces).astype(np.uint16, copy=False)
