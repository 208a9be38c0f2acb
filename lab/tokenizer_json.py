"""tokenizer_json.py owns tokenizers that are not GPT-2's: byte-level BPE in a Hugging Face tokenizer.json.

    own = load("tokenizers/edu_8k")           # a folder that holds tokenizer.json, or the file
    own.encode("Hello world")                 # as every byte_pairs.Tokenizer

The ids come from the package `tokenizers`; gigatoken reads the same file and is used where it gives
the same ids. A document has to be what its ids say, byte for byte, or bits per byte would be of another
text. So a tokenizer that changes a text (lowercases or normalises it, or adds a space) is refused, as is
one of more ids than a uint16 has.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path

import numpy as np

from lab import disk
from lab.byte_pairs import PROBE_TEXT, Tokenizer, unprintable_bytes
from lab.schema import ANY_NAME, ANYTHING, COUNT, TEXT, misfit, require

LARGEST = 2**26  # bytes of a tokenizer.json; GPT-2's has 3.5 MB
MOST_IDS = 2**16  # of a uint16
# what may begin a document, the first that is there: of GPT-2, Qwen and ours; nanochat; Llama 3; others
BOS_NAMES = ("<|endoftext|>", "<|bos|>", "<|begin_of_text|>", "<|end_of_text|>", "<bos>", "<s>",
             "</s>")
FLAG = ("true or false", lambda value: isinstance(value, bool))
ADDED = {"id": COUNT, "content": TEXT, "special": FLAG, ANY_NAME: ANYTHING}
SCHEMA = {
    "model": {"type": TEXT, "vocab": ANYTHING, ANY_NAME: ANYTHING},
    "added_tokens?": [ADDED], ANY_NAME: ANYTHING,
}
REMEDY = "name a byte-level BPE, such as python train_tokenizer.py makes"


def load(name, backend: str = "auto", flag: str = "--tokenizer ") -> TokenizerOfFile:
    """The tokenizer of a tokenizer.json, or of the folder that holds it. ValueError / FileNotFoundError in
    a sentence."""
    path = Path(name)
    if path.is_dir():
        path /= "tokenizer.json"
    folder = path.resolve().parent
    missing = f"{flag}{name}: there is no {path}"
    require(path.is_file(), missing, f"{REMEDY}, or gpt2", FileNotFoundError)
    size = path.stat().st_size >> 20
    require(size <= LARGEST >> 20, f"{flag}{path} has {size} MiB, over {LARGEST >> 20}", REMEDY)
    stem = path.stem
    if stem == "tokenizer":
        stem = name_beside(folder) or folder.name
    return TokenizerOfFile(path.read_bytes(), stem, f"{flag}{path}", backend)


def name_beside(folder: Path) -> str:
    """What a dataset's meta.json, or the config.json of a checkpoint's run, calls the tokenizer that lies in a
    folder; "" where neither does."""
    for path, keys in ((folder / "meta.json", ()), (folder.parent.parent / "config.json", ("data",))):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            record = json.loads(path.read_bytes())
            for key in (*keys, "tokenizer"):
                record = record[key]
            return str(record)
    return ""


def name_begun(folder, sha256: str) -> str:
    """What a dataset in a folder, finished or not, calls the tokenizer of this hash; "" where it has none of it."""
    for name in ("meta.json", "progress.json"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            settings = json.loads((Path(folder) / name).read_bytes())["settings"]
            if settings["tokenizer_sha256"] == sha256:
                return settings["condition"].removesuffix(f"-{sha256[:8]}")
    return ""


class TokenizerOfFile(Tokenizer):
    """A tokenizer.json. Its special tokens (`"special": true`) begin documents and are otherwise never made:
    in a text they are text.

    data: the file's bytes. stem: what datasets of these tokens are called. where: the file, for messages.
    """

    reference = "tokenizers"

    def __init__(self, data: bytes, stem: str, where: str, backend: str = "auto"):
        super().__init__(backend)
        self.data, self.sha256 = data, hashlib.sha256(data).hexdigest()
        self.name = re.sub(r"[^\w.]+", "_", stem).strip("_.") or "own"
        if self.name == "gpt2":
            self.name = "gpt2_json"
        fault = where
        try:
            record = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{fault} is not JSON ({error}): {REMEDY}.") from None
        wrong = misfit(record, SCHEMA)
        require(not wrong, f"{fault} is not a tokenizer.json ({wrong})", REMEDY)
        kind = record["model"]["type"]
        require(kind == "BPE", f"{fault} is of kind {kind}", REMEDY)
        added = record.get("added_tokens", [])
        special = {token["content"]: token["id"] for token in added if token["special"]}
        self._text_json = without_special(record, self.sha256)
        self._bytes = bytes_of_ids(record, special, fault)
        self.vocab_size = len(self._bytes)
        own = [name for name in BOS_NAMES if name in special]
        names = ", ".join(BOS_NAMES)
        require(own, f"{fault} has no special token that may begin a document ({names})",
                "add <|endoftext|> with the tokenizers package's add_special_tokens")
        self.bos_id = special[own[0]]
        self._special_ids = list(special.values())
        self.probe = PROBE_TEXT + " ".join(token["content"] for token in added)
        self._tokenizers = self._load_tokenizers(fault)
        same = all(self._tokenizers.token_to_id(token["content"]) == token["id"]
                   for token in json.loads(self._text_json)["added_tokens"])
        require(same, f"{fault}: the tokenizers package gives its added tokens other ids than the file",
                "save it again with that package")
        for probe in (self.probe, "a", " a"):
            same = self.decode_bytes(self.encode_plain(probe)) == probe.encode()
            require(same, f"{fault} changes a text, or loses some of it", REMEDY)
        self._choose(backend)

    def _load_tokenizers(self, fault: str):
        import tokenizers

        try:
            return tokenizers.Tokenizer.from_str(self._text_json)
        except Exception as error:  # of its own
            raise ValueError(f"{fault} cannot be read by tokenizers {tokenizers.__version__} ({error}): "
                             f"pip install a newer one, or {REMEDY}.") from error

    def _load_gigatoken(self):
        import gigatoken

        return gigatoken.Tokenizer.from_json(self._text_json.encode())

    @property
    def condition(self) -> str:
        """'edu_8k-3f2a91c4': its name, and which file it was."""
        return f"{self.name}-{self.sha256[:8]}"

    def encode_plain(self, text: str) -> list[int]:
        return self._tokenizers.encode(text, add_special_tokens=False).ids

    def encode_many(self, texts: list[str]) -> list:
        # fast: without offsets
        encoded = self._tokenizers.encode_batch_fast(texts, add_special_tokens=False)
        return [row.ids for row in encoded]

    def token_byte_lengths(self) -> np.ndarray:
        lengths = super().token_byte_lengths()
        lengths[self._special_ids] = 0
        return lengths

    def save(self, folder) -> None:
        """Write the file, byte for byte, as tokenizer.json into a folder."""
        (Path(folder) / "tokenizer.json").write_bytes(self.data)

    def write_hf(self, folder) -> None:
        """Write the tokenizer as transformers loads it: the file itself, and what begins a text."""
        self.save(folder)
        bos = self._bytes[self.bos_id].decode()
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": bos}
        disk.write_json(Path(folder) / "tokenizer_config.json", config)


def without_special(record: dict, sha256: str) -> str:
    """A tokenizer.json that turns no text into a special token, adds none to a text, and neither cuts nor
    pads one. Special tokens stay, as ids are counted with them, under names that no text has."""
    added, names = [], {}
    for token in record.get("added_tokens", []):
        if token["special"]:
            names[token["content"]] = f"<{sha256}:{token['id']}>"
        added.append(token | {"content": names.get(token["content"], token["content"])})
    model = {**record["model"], "dropout": None}  # which would give other ids every time
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): i for token, i in model["vocab"].items()}
    plain = {**record, "model": model, "added_tokens": added}
    return json.dumps(plain | dict.fromkeys(("post_processor", "truncation", "padding")))


def bytes_of_ids(record: dict, special: dict[str, int], fault: str) -> list[bytes]:
    """What each id stands for; b"" for an id that has no token. ValueError unless it is a byte-level BPE of
    at most MOST_IDS ids."""
    vocab = record["model"]["vocab"]
    is_table = isinstance(vocab, dict) and all(type(i) is int and i >= 0 for i in vocab.values())
    require(is_table, f"{fault} has no table of tokens and ids", REMEDY)
    require(len(set(vocab.values())) == len(vocab), f"{fault} has two tokens of one id", REMEDY)
    added = {token["content"]: token["id"] for token in record.get("added_tokens", [])}
    size = max([*vocab.values(), *added.values()], default=-1) + 1
    require(size <= MOST_IDS, f"{fault} has {size:,} ids, and shards of uint16 hold {MOST_IDS:,}",
            "name one with a smaller vocabulary")
    unprintable = unprintable_bytes()
    table = {character: chr(byte) for byte, character in unprintable.items()}
    characters = {chr(unprintable.get(byte, byte)) for byte in range(256)}
    missing = characters - vocab.keys()
    require(not missing, f"{fault} has no token for {len(missing)} of the 256 bytes", REMEDY)
    tokens = [b""] * size
    for token, i in vocab.items():
        if token in added:
            continue
        other = set(token) - characters
        require(not other, f"{fault} has the token {token!r:.40}, not spelled in bytes", REMEDY)
        tokens[i] = token.translate(table).encode("latin-1")
    for token, i in added.items():
        tokens[i] = token.encode()
    return tokens
