"""byte_pairs.py owns what every tokenizer here can do: byte-level BPE, by its reference library or by gigatoken.

A tokenizer is a subclass that gives the ids: GPT-2's (lab/tokenizer.py), or that of a tokenizer.json
(lab/tokenizer_json.py). gigatoken gives the same ids faster and is used where it proves that on a probe text.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from pathlib import Path

import numpy as np

BACKENDS = ("auto", "tiktoken", "gigatoken")
# gigatoken remembers every piece of text it has split: 1.1 GB after 160 MB of random letters (measured)
CACHE_CEILING = 700 * 2**20  # bytes of resident memory above which its cache is thrown away
CACHE_CHECK_EVERY = 2**26  # bytes of text between two looks at the memory


# every class of the GPT-2 split pattern, several scripts, and text that looks invalid or special
PROBE_TEXT = (
    "The quick brown fox's 3.14 isn't we'll I'VE they're\tand\n\n  two   spaces \u00a0nbsp\u200bzero\r\nCRLF   \n"
    "<|endoftext|> <MUL_6_9_54> 6*9=54 x_1 ==> ((a+b)*c)/d; https://a.b/c?d=e&f=%20 #$%^&* "
    "''''s ‘’ “q” — … ½ ² ³ ٣ ६ ①\n"
    "Привет, мир! Ελληνικά 日本語のテキスト 한국어 العربية हिन्दी ไทย "
    "naïve café Zoë ß ﬁ İı ǅ é e\u0301 🙂👩‍👩‍👧‍👦🏳️‍🌈 \U00010348\n"
    "\x00\x01\x7f\ufeff aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa "
    "1234567890123456789012345678901234567890     \u3000 end "
)


class Tokenizer:
    """What every tokenizer here can do. A subclass gives the ids and says what they stand for.

    Text never turns into a special id by accident. `backend` and `backend_note` say what makes the ids, and why
    gigatoken does not."""

    name: str  # "gpt2", or after the file
    is_gpt2 = False
    sha256: str  # of what decides the ids: `tokenizer_sha256` of meta.json
    bos_id: int  # begins every document
    vocab_size: int  # ids are below it
    first_mul_id = 2**16  # ids from here on are multiplication facts; here there are none
    unused_ids: tuple = ()  # half-open ranges of ids that no text and no document ever has
    reference: str  # the library that `encode` uses; gigatoken has to give its ids
    probe = PROBE_TEXT  # on this text

    def __init__(self, backend: str):
        if backend not in BACKENDS:
            raise ValueError(f"tokenizer backend {backend!r} is unknown: use {', '.join(BACKENDS)}.")
        self._bytes: list[bytes] = []  # what each id stands for; b"" if for nothing
        # an instance per thread, as calls on the same one wait for each other
        self._gigatoken = threading.local()
        self.backend, self.backend_note = self.reference, "not asked for"

    def _choose(self, backend: str) -> None:
        """The end of a subclass' __init__: take gigatoken if it is asked for, installed, and gives the same
        ids on the probe text in this process."""
        if backend in ("auto", "gigatoken"):
            self.backend_note = self._gigatoken_fault()
            if not self.backend_note:
                self.backend = "gigatoken"
            elif backend == "gigatoken":
                fault = f"--tokenizer_backend gigatoken: {self.backend_note}"
                raise ValueError(f"{fault}; pip install gigatoken, or use auto.")

    @property
    def condition(self) -> str:
        """`condition` of a dataset that has these tokens, if it is no other one."""
        return "baseline"

    def save(self, folder) -> None:
        """Put a copy into a dataset's or a checkpoint's folder, where `use_of` finds it; of GPT-2's, nothing.
        """

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text, by the reference library."""
        raise NotImplementedError

    def encode_many(self, texts: list[str]) -> list:
        """encode_plain of many texts."""
        return list(map(self.encode_plain, texts))

    def _load_gigatoken(self):
        """A gigatoken.Tokenizer of these ids."""
        raise NotImplementedError

    def encode(self, text: str, mul_tokens: bool = False) -> list[int]:
        """Ids of a text. mul_tokens: of GPT-2's tokenizer, which has some."""
        refuse_half_characters([text])
        return self.encode_plain(text)

    def encode_batch(self, texts: list[str] | list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Many texts (str, or their UTF-8): (ids uint16 (N,), lengths int64 (len(texts),)), without BOS or mul ids.

        Worker threads tokenise side by side: none of them holds the interpreter lock."""
        if not texts:
            return np.empty(0, np.uint16), np.empty(0, np.int64)
        refuse_half_characters(texts)
        if self.backend == "gigatoken":
            return self._encode_gigatoken(texts)
        texts = [text.decode() if isinstance(text, bytes) else text for text in texts]
        rows = [np.array(row, np.uint16) for row in self.encode_many(texts)]
        return np.concatenate(rows), np.array([len(row) for row in rows], np.int64)

    def decode_bytes(self, ids) -> bytes:
        """The exact bytes that ids stand for. ValueError on an id that stands for none."""
        ids = np.asarray(ids, dtype=np.int64)
        bad = (ids < 0) | (ids >= len(self._bytes))
        for first, end in self.unused_ids:
            bad |= (ids >= first) & (ids < end)
        if bad.any():
            ranges = [0, *(bound for pair in self.unused_ids for bound in pair), len(self._bytes)]
            words = " and ".join(f"{a}..{b - 1}" for a, b in zip(ranges[::2], ranges[1::2], strict=True))
            raise ValueError(f"id {ids[bad][0]} stands for no text: use ids {words}.")
        return b"".join(map(self._bytes.__getitem__, ids.tolist()))

    def decode(self, ids) -> str:
        """Ids as text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_generated(self, ids) -> str:
        """As decode, of what a model wrote: an id that stands for nothing, for which a network may have rows,
        becomes U+FFFD, too."""
        known = self._bytes
        pieces = [(known[i] if i < len(known) else b"") or b"\xff" for i in ids]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def token_byte_lengths(self) -> np.ndarray:
        """uint16 (vocab_size,): bytes of UTF-8 text that each id stands for; BOS 0."""
        lengths = np.fromiter(map(len, self._bytes), np.uint16)
        lengths[self.bos_id] = 0
        return lengths

    def _gigatoken_fault(self) -> str:
        """Why gigatoken cannot stand in for the reference here; "" when it can."""
        if importlib.util.find_spec("gigatoken") is None:
            return "gigatoken is not installed"
        probes = [self.probe, PROBE_TEXT[::-1], "", " ", *PROBE_TEXT.split("\n")]
        expected = [list(self.encode_plain(probe)) for probe in probes]
        try:
            for texts in (probes, [probe.encode() for probe in probes]):
                ids, lengths = self._encode_gigatoken(texts)
                same_lengths = lengths.tolist() == [len(row) for row in expected]
                if not same_lengths or ids.tolist() != sum(expected, []):
                    return f"gigatoken's ids differ from those of {self.reference} on the probe text"
        except Exception as error:  # a fast path that cannot start must never stop the reference path
            return f"gigatoken failed its self-check ({type(error).__name__}: {error})"
        return ""

    def _encode_gigatoken(self, texts) -> tuple[np.ndarray, np.ndarray]:
        local = self._gigatoken
        fast = getattr(local, "fast", None)
        if fast is None or (local.fed > CACHE_CHECK_EVERY and resident_bytes() > CACHE_CEILING):
            fast = local.fast = None  # first free the old cache
            fast = self._load_gigatoken()
            local.fast, local.fed = fast, 0
        local.fed += sum(map(len, texts))
        if threading.current_thread() is threading.main_thread():
            # `encode` keeps the interpreter lock, which nobody waits for here; `encode_batch` lets it
            # go, but wraps its result in an awkward array (1.2 x slower, 0.17 s to import)
            rows = [fast.encode(text) for text in texts]
            lengths = np.array([len(row) for row in rows], np.int64)
            return np.concatenate(rows).astype(np.uint16), lengths
        layout = fast.encode_batch(texts, parallel=False).layout
        offsets = np.asarray(layout.offsets.data)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return ids.astype(np.uint16), np.diff(offsets)


def unprintable_bytes() -> dict[int, int]:
    """GPT-2's bytes_to_unicode: bytes that do not print, and the characters from 256 on that stand for them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: 256 + i for i, byte in enumerate(others)}


def refuse_half_characters(texts: list) -> None:
    """ValueError for a str with a lone surrogate (JSON's \\ud800 alone), which tiktoken would take for U+FFFD."""
    for text in texts:
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"a text has half a character (a lone surrogate) at position {error.start:,}: repair "
                                 "or remove it.") from None


def resident_bytes() -> int:
    """Memory this process holds now; where /proc is missing (macOS), the most it ever held."""
    if not Path("/proc/self/statm").exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
