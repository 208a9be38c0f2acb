"""token_files.py owns files of token ids: where the tokens are in each format, and many files read as one long row.

    llm.c, modded-nanogpt   *.bin   256 int32 (magic 20240520, version 1, tokens, zeros), then uint16
    build-nanogpt           *.npy   a numpy array (tokens,) of uint16
    nanoGPT, shards.py      *.bin   nothing but uint16

All are little-endian. A file is recognised by its content; a new format is one entry of FILE_FORMATS.
"""

from __future__ import annotations

import bisect
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab import disk

AGAIN = "prepare the data again"
LLMC_MAGIC, LLMC_VERSION, LLMC_HEADER_BYTES = 20240520, 1, 1024


def check(condition, fault: str, remedy: str, kind: type[Exception] = ValueError) -> None:
    """Unless the condition holds, raise `kind` in one sentence: what is wrong, and what to do."""
    if not condition:
        raise kind(f"{fault}: {remedy}.")


# ------------------------------------------------------------------------------------------------------------
# formats: each function gives (byte offset of the tokens, number of tokens), or None for a file of another
# format, and raises ValueError for a damaged one


def _npy_layout(path: Path) -> tuple[int, int] | None:
    if path.suffix != ".npy":
        return None
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable .npy ({error}): download it again.") from error
    check(array.dtype == np.uint16 and array.ndim == 1,
          f"{path} holds {array.dtype} of shape {array.shape}, not a row of uint16",
          "convert it with numpy's astype('uint16') and save it again")
    return int(array.offset), len(array)


def _llmc_layout(path: Path) -> tuple[int, int] | None:
    with open(path, "rb") as f:
        head = f.read(LLMC_HEADER_BYTES)
    if len(head) < LLMC_HEADER_BYTES:
        return None
    magic, version, tokens, *rest = np.frombuffer(head, "<i4").tolist()
    if any(rest) and magic != LLMC_MAGIC:  # in a text, the 253 zeros would be the same token 506 times
        return None
    again = "write it again with GPT-2's uint16 tokenizer, or remove the header"
    check(magic == LLMC_MAGIC, f"{path} has a header whose magic is {magic}, not {LLMC_MAGIC}", again)
    check(version == LLMC_VERSION, f"{path} has llm.c version {version}, not {LLMC_VERSION}", again)
    stored = (path.stat().st_size - LLMC_HEADER_BYTES) // 2
    check(stored == tokens,
          f"{path} was cut off: it should hold {tokens:,} tokens but has {stored:,}", "get it again")
    return LLMC_HEADER_BYTES, tokens


def headerless_layout(path: Path) -> tuple[int, int]:
    size = path.stat().st_size
    check(size % 2 == 0, f"{path} has an odd number of bytes ({size:,}), which uint16 never has",
          "write or download it again")
    return 0, size // 2


FILE_FORMATS = {  # tried in this order; the last takes what the others do not know
    "build-nanogpt": _npy_layout,
    "llm.c": _llmc_layout,
    "nanoGPT": headerless_layout,
}


class TokenFile(NamedTuple):
    """Where the tokens of one file are, and the sha256 it must have (None: a neighbour's)."""

    path: Path
    offset: int  # bytes
    tokens: int
    sha256: str | None = None

    def memmap(self) -> np.ndarray:
        """uint16 (tokens,), as a plain array: slicing np.memmap's subclass costs ten times as much."""
        data = np.memmap(self.path, dtype="<u2", mode="r", offset=self.offset, shape=(self.tokens,))
        return np.asarray(data.view(np.ndarray))

    def verify(self, vocab_size: int) -> str:
        """The file's sha256. ValueError unless it is the one expected or, where none is, all tokens fit."""
        actual = disk.sha256_file(self.path)
        if self.sha256 is not None:
            check(actual == self.sha256, f"{self.path} does not match its checksum in meta.json", AGAIN)
            return actual
        data = self.memmap()
        for start in range(0, self.tokens, 2**24):
            block = data[start : start + 2**24]
            first = int(np.argmax(block >= vocab_size))  # 0 also when there is none
            where = f"{self.path} has token {block[first]} at position {start + first:,}"
            check(block[first] < vocab_size, f"{where}, not below {vocab_size:,}",
                  "prepare the data again with GPT-2's tokenizer, or raise --vocab_size")
        return actual


def neighbours_files(folder: Path, split: str) -> tuple[list[TokenFile], str]:
    """The token files of a folder whose names hold the split, and their format.

    FileNotFoundError when there is none; ValueError when one is empty or damaged, or formats are mixed."""
    paths = [*folder.glob(f"*{split}*.bin"), *folder.glob(f"*{split}*.npy")]
    remedy = "make them with python prepare_fineweb.py"
    if split == "val":
        remedy = "add one, or pass --val_data_dir"
    fault = f"{folder} has no {split} files *{split}*.bin or *{split}*.npy"
    check(paths, fault, remedy, FileNotFoundError)
    files, formats = [], set()
    for path in sorted(paths):
        check(path.stat().st_size, f"{path} is empty", AGAIN)
        for name, layout_of in FILE_FORMATS.items():
            if layout := layout_of(path):
                files.append(TokenFile(path, *layout))
                formats.add(name)
                break
    listed = ", ".join(sorted(formats))
    check(len(formats) == 1, f"{folder} mixes formats ({listed}) in its {split} files", "keep one kind")
    return files, formats.pop()


# ------------------------------------------------------------------------------------------------------------
# many files as one


class TokenFiles:
    """One split of a dataset as one long row of tokens: memmapped files, addressed across file borders.

    Attributes: paths, n_tokens, row_tokens (None for a stream; seq_len + 1 for rows), fingerprint, source (format)."""

    def __init__(self, files: list[TokenFile], source: str, row_tokens: int | None, fingerprint: str):
        self.paths = [file.path for file in files]
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
            check(seq_len == packed, fault,
                  f"pass --seq_len {packed}, or run prepare_bos_rows.py --seq_len {seq_len}")
            return self.n_tokens // self.row_tokens
        n = (self.n_tokens - 1) // seq_len
        fault = f"{self.n_tokens:,} tokens are less than one sequence of seq_len {seq_len} + 1"
        check(n >= 1, fault, "lower --seq_len or prepare more data")
        return n

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
        return out

    def slice(self, start: int, n: int) -> np.ndarray:
        """uint16 (min(n, tokens left),): tokens from a global position on, across file borders."""
        pieces = [np.empty(0, np.uint16)]
        while n > 0 and start < self.n_tokens:
            f = bisect.bisect_right(self._bounds, start) - 1
            piece = self.maps[f][start - self._bounds[f] :][:n]
            pieces.append(piece)
            start += len(piece)
            n -= len(piece)
        return np.concatenate(pieces)
