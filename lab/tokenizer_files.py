"""tokenizer_files.py owns one question: is the tokenizer that lies beside somebody's weights GPT-2's?

    warnings = check_tokenizer(find, vocab_size)        # ValueError when it is another one

Ids are only numbers: a model can be trained and scored by another tokenizer's without an error, and
every number is wrong. So its files are compared, id by id, with GPT-2's vocabulary. A model whose own
tokenizer can be used here takes it along (hf.own_tokenizer).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from lab import files
from lab.byte_pairs import PROBE_TEXT
from lab.schema import ANY_NAME, ANYTHING, COUNT, TEXT, misfit
from lab.tokenizer import (
    BOS_ID,
    N_GPT2_TOKENS,
    VOCAB_SIZE,
    MulFactTokens,
    get_tokenizer,
    gpt2_vocabulary,
)

ADVICE = ("its texts would become GPT-2's ids, so every number would be wrong; import a model of GPT-2's "
          "tokenizer, or one whose tokenizer.json is a byte-level BPE that changes no text")
LARGEST = 2**26  # bytes of a file; GPT-2's tokenizer.json has 3.5 MB
CLASSES = ("", "GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
PADDED = {N_GPT2_TOKENS, 50304, VOCAB_SIZE}  # GPT-2's, nanoGPT's, ours
PLACEHOLDER = "<|unused_"  # of our own export
OBJECT = {ANY_NAME: ANYTHING}
VOCAB = {ANY_NAME: COUNT}
ADDED = [{"id": COUNT, "content": TEXT, ANY_NAME: ANYTHING}]
BPE = {"vocab": VOCAB, "merges": [ANYTHING], ANY_NAME: ANYTHING}
TOKENIZER = {"model": BPE, "added_tokens?": ADDED, ANY_NAME: ANYTHING}


def parsed(text: str, schema) -> dict:
    value = json.loads(text)
    fault = misfit(value, schema)
    if fault:
        raise ValueError(fault)
    return value


def of_vocab(text: str) -> tuple[str, dict]:
    return difference(parsed(text, VOCAB))


def difference(vocab: dict) -> tuple[str, dict]:
    """("" or how many ids stand for another text than GPT-2's, the tokens behind GPT-2's)."""
    own = gpt2_vocabulary()
    added = {token: i for token, i in vocab.items() if i >= N_GPT2_TOKENS}
    same = sum(vocab.get(token) == i for token, i in own.items())
    if same == len(own):
        return "", added
    return f"{len(own) - same:,} of GPT-2's {len(own):,} tokens have another id, or none", added


def of_merges(text: str) -> tuple[str, dict]:
    """GPT-2's merge number i makes token 256 + i."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#version")]
    return merge_difference(lines), {}


def merge_difference(merges: list) -> str:
    tokens = list(gpt2_vocabulary())[256:-1]
    made = ["".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    if made == tokens:
        return ""
    return f"its {len(made):,} merges are not GPT-2's {len(tokens):,}"


def of_tokenizer(text: str) -> tuple[str, dict]:
    """tokenizer.json: its tables, then how it cuts a text into words."""
    record = parsed(text, TOKENIZER)
    added = {token["content"]: token["id"] for token in record.get("added_tokens", [])}
    fault, others = difference(record["model"]["vocab"] | added)
    fault = fault or merge_difference(record["model"]["merges"])
    return fault or other_ids(text), others


def other_ids(text: str) -> str:
    try:
        import tokenizers  # which transformers brings along
    except ImportError:
        return ""  # its tables are GPT-2's
    probe = PROBE_TEXT.replace("<|endoftext|>", "").replace("<MUL_6_9_54>", "")
    ids = tokenizers.Tokenizer.from_str(text).encode(probe, add_special_tokens=False).ids
    return "" if ids == get_tokenizer().encode(probe) else "it cuts a text into other tokens than GPT-2's does"


def of_config(text: str) -> tuple[str, dict]:
    name = parsed(text, OBJECT).get("tokenizer_class") or ""
    return "" if name in CLASSES else f"it is a {name}", {}


OTHER_KINDS = "vocab.txt spiece.model spm.model tokenizer.model sentencepiece.bpe.model".split()


def other_kind(text: str) -> tuple[str, dict]:
    return "GPT-2 has no such file", {}


def other_end(path: Path | None) -> int | None:
    """The id that ends a text by config.json, when it is an ordinary token of GPT-2's."""
    end = None
    if path is not None:
        with contextlib.suppress(OSError, ValueError, RecursionError):  # some other program's config.json
            end = parsed(Path(path).read_text(encoding="utf-8"), OBJECT).get("eos_token_id")
    return end if type(end) is int and end < BOS_ID else None


READERS: dict[str, Callable] = {  # file -> (why it is not GPT-2's, its tokens behind GPT-2's)
    "tokenizer.json": of_tokenizer,
    "vocab.json": of_vocab,
    "encoder.json": of_vocab,
    "merges.txt": of_merges,
    "vocab.bpe": of_merges,
    "tokenizer_config.json": of_config,
    "added_tokens.json": lambda text: ("", parsed(text, VOCAB)),
    **dict.fromkeys(OTHER_KINDS, other_kind),
}
TABLES = (of_tokenizer, of_vocab, of_merges)  # which show that a tokenizer is GPT-2's


def check_tokenizer(find: Callable[[str], Path | None], vocab_size: int) -> list[str]:
    """Warnings of a tokenizer that has more than GPT-2's ids, or that is missing. ValueError when
    it is not GPT-2's. find(name) -> the file of that name beside the weights, or None."""
    added, seen = {}, False
    for name, read in READERS.items():
        path = find(name)
        if path is None:
            continue
        try:
            if Path(path).stat().st_size > LARGEST:
                raise ValueError(f"it has more than {LARGEST >> 20} MiB")
            text = Path(path).read_text(encoding="utf-8", errors="replace")
            fault, others = read(text)
        except Exception as error:  # of json, or of tokenizers, which raises its own
            fault, others = f"it cannot be read: {files.first_line(error)}", {}
        if fault:
            raise ValueError(f"its own tokenizer is not GPT-2's ({name}: {fault}), and {ADVICE}, or "
                             "take the file away if it is not this model's")
        added |= others
        seen = seen or read in TABLES
    size = f"its vocabulary of {vocab_size:,} ids is not GPT-2's {N_GPT2_TOKENS:,}"
    if vocab_size < N_GPT2_TOKENS:
        raise ValueError(f"{size}, and {ADVICE}")
    warnings = []
    ours = MulFactTokens.token_to_id
    others = [token for token, i in added.items() if ours.get(token) != i]
    own = [token for token in others if not token.startswith(PLACEHOLDER)]
    if own:
        names = ", ".join(own[:3])
        warnings.append(f"its tokenizer has {len(own)} more tokens than GPT-2's ({names}), which no "
                        "text here becomes")
    end = other_end(find("config.json"))
    if end is not None and not seen:
        warnings.append(f"its config.json ends a text with id {end}, which is not GPT-2's "
                        "<|endoftext|>: if it has its own tokenizer, every number here will be wrong")
    if not seen and vocab_size not in PADDED:
        warnings.append(f"{size}, and no tokenizer lies beside the weights: if it has its own, every "
                        "number here will be wrong")
    return warnings
