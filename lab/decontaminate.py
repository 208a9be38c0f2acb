"""decontaminate.py owns the contamination guard: which documents share text with a benchmark's items.

    python prepare_fineweb.py --decontaminate gsm8k=test.jsonl hellaswag=hellaswag_val.jsonl ewok=ewok_core_1.0.zip
    python prepare_fineweb.py --decontaminate benchmarks/      # with gsm8k/test.jsonl, hellaswag_val.jsonl, ewok*.zip
    guard = decontaminate.Guard.build({"gsm8k": "gsm8k/test.jsonl"})
    guard.hits("John arm wrestles 20 people. He beats 80%. How many people did he lose to?")
    # ["gsm8k/00306-7f7b2720"]

Reads the benchmarks' own files, keeps 64-bit hashes and never text, and writes only the items' ids.
A word is a run of ASCII letters and digits, in lower case; all else separates words. An item contaminates a document
when 13 successive words of the two agree (GPT-3, appendix C), or when the document holds the whole of an item's text of
6 to 12 words; items whose texts are all shorter are only counted. The texts of an item are
    gsm8k      the question
    hellaswag  the context with each of the four endings, with and without WikiHow's marks such as [title]
    ewok       each context with each target
each in three spellings: as it is, without apostrophes, without any punctuation (`don't`, `dont`; `1,000`, `1000`), as a
document may have lost its punctuation. Passages that more than 10 items of a benchmark share are boilerplate and left
out (GPT-3: of more than 10 documents), unless an item has no other.
Fine-tuning never reads GSM8K's test split, with or without a guard: `test_questions_in` finds its questions in texts.
"""

from __future__ import annotations

import functools
import hashlib
import html
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lab import disk, files, sources, terminal

NGRAM = 13  # words, as in GPT-3
MIN_WORDS = 6  # the shortest text that is looked for as a whole
MAX_SHARING = 10  # items of a benchmark that may share a passage before it counts as boilerplate
RULE = f"{NGRAM} words, whole texts from {MIN_WORDS} words, passages of at most {MAX_SHARING} items"
LISTED = 100  # item ids per benchmark in meta.json; the log has all
LOG = "decontamination.jsonl"
WHOLE = np.dtype([("opening", "<u8"), ("hash", "<u8"), ("words", "<i4"), ("item", "<i4")])


# ----------------------------------------------------------------------------------------------------------------------
# the guard


class Guard:
    """Made by `Guard.build`; then `hits` and `hits_batch`, from any number of threads. ids: the items' names
    "benchmark/id"; settings: all that decides the answers, {"rule", name: sha256 of the file}; benchmarks: {name:
    {"file", "sha256", "items", "items_too_short"}}."""

    @classmethod
    def build(cls, paths: dict[str, str | Path]) -> Guard:
        """A guard for {"gsm8k": path, "hellaswag": path, "ewok": path}, or some of them. Takes seconds.
        ValueError / FileNotFoundError in one sentence."""
        guard, passages, wholes = cls(), [], []
        guard.ids, guard.benchmarks, guard.settings = [], {}, {"rule": RULE}
        for name, path in paths.items():
            flag = f"--decontaminate {name}={path}"
            if name not in READERS:
                raise ValueError(f"{flag}: no such benchmark; name one of {', '.join(READERS)}.")
            if not Path(path).is_file():
                raise FileNotFoundError(f"{flag}: no such file; check the path.")
            items = dict(READERS[name](Path(path)))
            if not items:
                raise ValueError(f"{flag} holds no items: give the benchmark's own file.")
            hashes, owners, short = _hash_items(list(items.values()), len(guard.ids))
            passages.append(_without_boilerplate(hashes, owners))
            wholes.append(short)
            n_guarded = len(np.union1d(owners, short["item"]))
            digest = guard.settings[name] = disk.sha256_file(path)
            guard.benchmarks[name] = {"file": Path(path).name, "sha256": digest, "items": len(items),
                                      "items_too_short": len(items) - n_guarded}
            guard.ids += [f"{name}/{item}" for item in items]
        guard._passages = _HashTable(*map(np.concatenate, zip(*passages, strict=True)))
        guard._wholes = np.concatenate(wholes)
        guard._openings = _HashTable(guard._wholes["opening"], np.arange(len(guard._wholes)))
        return guard

    def hits(self, text: str | bytes) -> list[str]:
        """Ids of the items that contaminate a text, in the order of `ids`; [] for a clean one."""
        utf8 = text.encode(errors="replace") if isinstance(text, str) else text
        return self.hits_batch([utf8]).get(0, [])

    def hits_batch(self, documents: list[bytes]) -> dict[int, list[str]]:
        """{number in the list: what `hits` returns} of the contaminated ones among UTF-8 documents. Far faster."""
        items_of: dict[int, set[int]] = {}
        ends = np.cumsum([len(utf8) + 1 for utf8 in documents])
        for words, last in _passages(b"\n".join(documents)):
            for word, n, item in self._matches(words, last):
                document = int(np.searchsorted(ends, words.positions[word], "right"))
                if words.positions[word + n - 1] < ends[document]:  # else it runs on into the next
                    items_of.setdefault(document, set()).add(item)
        return {
            document: [self.ids[item] for item in sorted(items_of[document])] for document in sorted(items_of)}

    def _matches(self, words: _Words, last: bool) -> Iterator[tuple[int, int, int]]:
        """(first word, number of words, item) of each passage and each whole text of an item."""
        for word, item in self._passages.pairs(words.hashes(NGRAM)):
            yield word, NGRAM, item
        if not len(self._wholes):
            return
        # unless they are the last, the words at the end come again with those after them
        openings = words.hashes(MIN_WORDS)[: None if last else MIN_WORDS - NGRAM]
        for word, number in self._openings.pairs(openings):
            _, whole, n, item = self._wholes[number].tolist()
            if words.hash(word, n) == whole:
                yield word, n, item


class _HashTable:
    """Hashes -> values: sorted pairs behind a Bloom filter of two bits per hash, made of its highest and its lowest
    digits, which answers "no" to nearly every other hash at once."""

    def __init__(self, hashes: np.ndarray, values: np.ndarray):
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.values = hashes[order], values[order]
        log_bits = max(16, (16 * len(hashes)).bit_length())  # 16 to 32 bits of memory per hash
        self.shift, self.mask = np.uint64(64 - log_bits), np.uint64(2**log_bits - 1)
        self.filter = np.zeros(2 ** (log_bits - 3), np.uint8)
        for bits in (self.hashes >> self.shift, self.hashes & self.mask):
            places = np.uint8(1) << (bits & np.uint64(7)).astype(np.uint8)
            np.bitwise_or.at(self.filter, bits >> np.uint64(3), places)

    def _is_set(self, bits: np.ndarray) -> np.ndarray:
        bytes_ = self.filter[(bits >> np.uint64(3)).view(np.int64)]
        return (bytes_ >> (bits & np.uint64(7)).astype(np.uint8) & 1).view(bool)

    def pairs(self, hashes: np.ndarray) -> Iterator[tuple[int, int]]:
        """(number in `hashes`, value) of those that are in the table."""
        maybe = np.flatnonzero(self._is_set(hashes >> self.shift))
        maybe = maybe[self._is_set(hashes[maybe] & self.mask)]
        begins = np.searchsorted(self.hashes, hashes[maybe], "left")
        ends = np.searchsorted(self.hashes, hashes[maybe], "right")
        for number, begin, end in zip(maybe.tolist(), begins.tolist(), ends.tolist(), strict=True):
            for value in self.values[begin:end].tolist():
                yield number, value


# ----------------------------------------------------------------------------------------------------------------------
# hashes. Two polynomials modulo 2**64: of a word over its letters, of a passage over its words. Prefix sums turn each
# into a difference and a product, which numpy does for a whole chunk at a time.

CHUNK = 2**17  # bytes hashed at once: 2**15 costs 1.3 times as much, 2**18 gains nothing (measured)


def _fixed_number(name: bytes) -> int:
    """64 random bits that are the same on every machine; odd."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") | 1


def _powers(name: bytes) -> np.ndarray:
    return np.cumprod(np.array([1] + [_fixed_number(name)] * (CHUNK + NGRAM), np.uint64))


LETTERS = np.zeros(256, np.uint64)  # a random number per letter (in both cases) and digit
for letter in "abcdefghijklmnopqrstuvwxyz0123456789":
    LETTERS[[ord(letter), ord(letter.upper())]] = _fixed_number(letter.encode())
LETTER_POWERS, WORD_POWERS = _powers(b"letters"), _powers(b"words")
TOP = CHUNK + NGRAM  # the exponent of every sum: a hash must not depend on the position
MIX = np.uint64(_fixed_number(b"mix"))


class _Words:
    """Successive words. positions: of their first bytes; sums: prefix sums of their hashes."""

    def __init__(self, words: np.ndarray, positions: np.ndarray):
        self.words, self.positions = words, positions
        self.sums = np.zeros(len(words) + 1, np.uint64)
        np.cumsum(words * WORD_POWERS[: len(words)], out=self.sums[1:])

    def hashes(self, n: int) -> np.ndarray:
        """uint64: of the passages of n words, by their first word."""
        count = max(0, len(self.words) - n + 1)
        sums = self.sums[n : n + count] - self.sums[:count]
        return _finish(sums, WORD_POWERS[TOP : TOP - count : -1])

    def hash(self, word: int, n: int) -> int | None:
        """The same for one passage; None where the words end before it."""
        if word + n >= len(self.sums):
            return None
        sums = self.sums[word + n : word + n + 1] - self.sums[word]
        return int(_finish(sums, WORD_POWERS[TOP - word])[0])


def _finish(sums: np.ndarray, powers: np.ndarray) -> np.ndarray:
    hashes = sums * powers
    hashes ^= hashes >> np.uint64(32)  # the low bits of a polynomial are its weakest
    hashes *= MIX
    return hashes ^ (hashes >> np.uint64(29))


def _hash_words(chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, positions of the first bytes) of the words in uint8 (n,), n <= CHUNK."""
    values = LETTERS[chunk]
    inside = np.zeros(len(chunk) + 2, np.bool_)
    inside[1:-1] = values != 0
    starts, ends = np.flatnonzero(inside[1:] != inside[:-1]).reshape(-1, 2).T
    sums = np.zeros(len(chunk) + 1, np.uint64)
    values *= LETTER_POWERS[: len(chunk)]
    np.cumsum(values, out=sums[1:])
    return _finish(sums[ends] - sums[starts], LETTER_POWERS[TOP - starts]), starts


def _passages(data: bytes) -> Iterator[tuple[_Words, bool]]:
    """(words, whether they are the last) per chunk. Each begins with the NGRAM - 1 words before it, so every passage
    lies in exactly one."""
    view, start, last = np.frombuffer(data, np.uint8), 0, False
    kept_words, kept_positions = np.empty(0, np.uint64), np.empty(0, np.int64)
    while not last:
        end = start + CHUNK
        last = end >= len(view)
        if not last:
            # cut at a word boundary; a "word" of 256 letters is cut anywhere (no benchmark holds one)
            separators = np.flatnonzero(LETTERS[view[end - 256 : end]] == 0)
            if len(separators):
                end -= 255 - int(separators[-1])
        hashes, positions = _hash_words(view[start:end])
        words = _Words(np.append(kept_words, hashes), np.append(kept_positions, positions + start))
        yield words, last
        kept_words, kept_positions = words.words[1 - NGRAM :], words.positions[1 - NGRAM :]
        start = end


# ----------------------------------------------------------------------------------------------------------------------
# benchmarks


def _hash_items(items: list[list[str]], first: int) -> tuple[np.ndarray, ...]:
    """Hashes and items (from `first` on) of the passages of the items' texts, sorted by hash, each pair once; and the
    WHOLEs."""
    hashes, owners, wholes = [], [], []
    for texts, items_of_texts in _spelled_batches(items, first):
        [(words, _)] = _passages(b"\n".join(texts))
        ends = np.cumsum([len(utf8) + 1 for utf8 in texts])
        text = np.searchsorted(ends, words.positions, "right")  # which one a word is in
        counts = np.bincount(text, minlength=len(texts))
        begins = np.cumsum(counts) - counts
        passages = words.hashes(NGRAM)
        inside = np.flatnonzero(text[: len(passages)] == text[NGRAM - 1 :])
        new_hashes, new_owners = _unique_pairs(passages[inside], np.array(items_of_texts)[text[inside]])
        hashes.append(new_hashes)
        owners.append(new_owners)
        for i in np.flatnonzero((counts >= MIN_WORDS) & (counts < NGRAM)).tolist():
            word, n = int(begins[i]), int(counts[i])
            wholes.append((words.hash(word, MIN_WORDS), words.hash(word, n), n, items_of_texts[i]))
    hashes, owners = _unique_pairs(np.concatenate(hashes), np.concatenate(owners))
    return hashes, owners, np.array(list(dict.fromkeys(wholes)), WHOLE)


def _unique_pairs(hashes: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted by hash, each pair once."""
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return hashes[new], owners[new]


def _spelled_batches(items: list[list[str]], first: int) -> Iterator[tuple[list[bytes], list[int]]]:
    """(different spellings of the items' texts, the item of each), at most CHUNK bytes at a time."""
    batch, owners, size = [], [], 0
    for item, texts in enumerate(items, first):
        spellings = [spelling for text in texts for spelling in _spellings(text)]
        for spelling in dict.fromkeys(spellings):
            utf8 = spelling.encode(errors="replace")
            if len(utf8) >= CHUNK:
                raise ValueError(f"--decontaminate: item {item - first:,} has {len(utf8):,} bytes, more than any "
                                 "benchmark's: give the benchmark's own file.")
            if size + len(utf8) >= CHUNK:
                yield batch, owners
                batch, owners, size = [], [], 0
            batch.append(utf8)
            owners.append(item)
            size += len(utf8) + 1
    yield batch, owners


def _spellings(text: str) -> tuple[str, str, str]:
    return text, re.sub("['’ʼ`]", "", text), re.sub(r"[^\sA-Za-z0-9]", "", text)


def _without_boilerplate(hashes: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out what more than MAX_SHARING items share, unless an item would have nothing left."""
    _, sharing = np.unique(hashes, return_counts=True)
    rare = np.repeat(sharing <= MAX_SHARING, sharing)
    kept = rare | ~np.isin(owners, owners[rare])
    return hashes[kept], owners[kept]


# Each reader yields (id, texts) of the items of a file; the ids are those of the evaluation of that benchmark.


def _checked(records, benchmark: str, *fields: str) -> Iterator[tuple]:
    """The (place, record) pairs of a benchmark's file. ValueError names the first that lacks one of these fields."""
    for place, record in records:
        if isinstance(record, sources.BadRecord):
            raise ValueError(f"--decontaminate: {record}: give the file as it was published.") from record
        if not isinstance(record, dict) or any(field not in record for field in fields):
            names = ", ".join(fields)
            raise ValueError(f"--decontaminate: {place} has no fields {names}: that is not {benchmark}.")
        yield place, record


def _gsm8k(path: Path) -> Iterator[tuple[str, list[str]]]:
    for place, record in _checked(sources.read_benchmark(path), "GSM8K", "question", "answer"):
        question = str(record["question"])
        digest = hashlib.sha256(question.strip().encode(errors="replace")).hexdigest()
        yield f"{place.number:05d}-{digest[:8]}", [question]


def _hellaswag(path: Path) -> Iterator[tuple[str, list[str]]]:
    for place, record in _checked(sources.read_benchmark(path), "HellaSwag", "ctx", "endings"):
        if not isinstance(record["endings"], list):
            raise ValueError(f"--decontaminate: {place} has endings that are no list: "
                             "that is not HellaSwag.")
        texts = [f"{record['ctx']} {ending}" for ending in record["endings"]]
        names = [str(record[key]) for key in ("source_id", "ind") if record.get(key) is not None]
        name = "#".join(names) or str(place.number)
        yield name, texts + [re.sub(r"\[[a-z]+\]", " ", text) for text in texts]


def _ewok(path: Path) -> Iterator[tuple[str, list[str]]]:
    fields = "Domain", "Context1", "Context2", "Target1", "Target2"
    for _, record in _checked(sources.read_zip(path, "EWOK_PASSWORD"), "EWoK", *fields):
        columns = {key: "" if value is None else str(value) for key, value in record.items()}
        content = sorted((key.lower(), value) for key, value in columns.items())
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        texts = [f"{record[context]} {record[target]}" for context in fields[1:3] for target in fields[3:]]
        yield f"{record['Domain']}-{digest[:12]}", texts


READERS = {"gsm8k": _gsm8k, "hellaswag": _hellaswag, "ewok": _ewok}
FILES = {"gsm8k": ("gsm8k/test.jsonl", "gsm8k_test.jsonl"), "hellaswag": ("hellaswag_val.jsonl",),
         "ewok": ("ewok*.zip",)}  # what each is called in a folder

# ----------------------------------------------------------------------------------------------------------------------
# GSM8K's test questions, for fine-tuning. Of each of the 1,319 questions of test.jsonl of openai/grade-school-math the
# repo holds no text but 32-bit hashes of its blocks: BLOCK letters and digits in a row, the last block at its end. A
# text holds a question when it holds more than SHARE of the question's different blocks, wherever they stand, in any
# case, punctuation, spacing, mark-up and company. Of GSM8K's 7,473 train conversations none holds more than 60 % of a
# question (measured). Rewordings are left to the guard.

BLOCK, SHARE = 24, 0.65
TEST_QUESTIONS = Path(__file__).with_name("gsm8k_test_hashes.txt")  # a line per question: 8 hex digits per block
# of the published test.jsonl
TEST_FILE_SHA256 = "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"
NOT_ALNUM = bytes(byte for byte in range(256) if not (chr(byte).isalnum() and byte < 128))
TAG = re.compile(r"</?[A-Za-z][^<>]{0,80}>")
ESCAPE = re.compile(r"\\[nrt](?![a-z])")


def letters_of(text: str) -> bytes:
    """A text's ASCII letters and digits, in lower case; without HTML's tags, entities, and accents."""
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = TAG.sub(" ", text)
    if "\\" in text:
        text = ESCAPE.sub(" ", text)
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
    return text.encode("ascii", "ignore").lower().translate(None, NOT_ALNUM)


def _block_hashes(letters: bytes) -> np.ndarray:
    """uint64 (n - BLOCK + 1,): of each BLOCK successive letters of at most CHUNK; the lower 32 bits are 0."""
    values = LETTERS[np.frombuffer(letters, np.uint8)] * LETTER_POWERS[: len(letters)]
    sums = np.zeros(len(letters) + 1, np.uint64)
    np.cumsum(values, out=sums[1:])
    count = max(0, len(letters) - BLOCK + 1)
    hashes = _finish(sums[BLOCK : BLOCK + count] - sums[:count], LETTER_POWERS[TOP : TOP - count : -1])
    return hashes >> np.uint64(32) << np.uint64(32)


def question_blocks(text: str) -> list[str]:
    """8 hex digits of each block of a question: a line of TEST_QUESTIONS. [] for one of fewer letters than a block."""
    letters = letters_of(text)
    hashes = _block_hashes(letters).tolist()
    starts = {*range(0, len(hashes), BLOCK), len(hashes) - 1} - {-1}
    return sorted({f"{hashes[start] >> 32:08x}" for start in starts})


@functools.cache
def gsm8k_test_blocks() -> tuple[_HashTable, np.ndarray]:
    """(blocks -> number of the question; how many of its blocks a text must hold) of the test questions."""
    lines = [line.split() for line in TEST_QUESTIONS.read_text().splitlines()]
    return block_table(lines)


def block_table(questions: list[list[str]]) -> tuple[_HashTable, np.ndarray]:
    """gsm8k_test_blocks of the `question_blocks` of any questions."""
    hashes = [int(block, 16) << 32 for blocks in questions for block in blocks]
    owners = np.repeat(np.arange(len(questions)), [len(blocks) for blocks in questions])
    needed = [int(SHARE * len(blocks)) + 1 for blocks in questions]
    return _HashTable(np.array(hashes, np.uint64), owners), np.array(needed)


def test_questions_in(texts: list[str]) -> set[int]:
    """Which of the texts (their numbers) hold a question of GSM8K's test split."""
    table, needed = gsm8k_test_blocks()
    pieces = [letters_of(text) for text in texts]
    ends = np.cumsum([len(piece) + 1 for piece in pieces])
    letters = b" ".join(pieces)  # the space has no number: a block over two texts is none
    blocks = {}  # (text, question) -> its blocks in the text
    for start in range(0, len(letters), CHUNK - BLOCK + 1):
        hashes = _block_hashes(letters[start : start + CHUNK])
        for place, question in table.pairs(hashes):
            text = int(np.searchsorted(ends, start + place, "right"))
            blocks.setdefault((text, question), set()).add(int(hashes[place]))
    return {text for (text, question), held in blocks.items() if len(held) >= needed[question]}


# ----------------------------------------------------------------------------------------------------------------------
# for the scripts


def add_argument(group) -> None:
    """--decontaminate, for an argparse parser or group; its value goes to `from_argument`."""
    group.add_argument("--decontaminate", nargs="+", action="extend", default=[], metavar="NAME=FILE|FOLDER",
                       help="drop documents that share 13 words with an item of gsm8k=FILE, hellaswag=FILE or "
                            "ewok=ZIP, or of the benchmarks found in a folder; repeatable (default: off)")


def from_argument(values: list[str]) -> Guard | None:
    """The guard that --decontaminate asks for; None for []. ValueError / FileNotFoundError in one sentence."""
    return Guard.build(find_files(values)) if values else None


def find_files(values: list[str]) -> dict[str, Path]:
    """{benchmark: file} that --decontaminate names. ValueError in one sentence."""
    chosen: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        named = {name: Path(os.path.expanduser(path))}
        if not equals or Path(value).exists():
            named = _files_in(value)
        for name, path in named.items():
            if os.path.realpath(chosen.setdefault(name, path)) != os.path.realpath(path):
                raise ValueError(f"--decontaminate names {name} twice ({chosen[name]} and {path}): keep one.")
    return chosen


def _files_in(name: str) -> dict[str, Path]:
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        raise ValueError(f"--decontaminate {name} is no folder: name the benchmark, as in gsm8k={name}.")
    named = {benchmark: [path for pattern in patterns for path in sorted(folder.glob(pattern))]
             for benchmark, patterns in FILES.items()}
    for benchmark, paths in named.items():
        if len(paths) > 1:
            listed = files.listed(paths)
            raise ValueError(f"--decontaminate {name} holds {listed}: name one, as in {benchmark}=FILE.")
    chosen = {benchmark: paths[0] for benchmark, paths in named.items() if paths}
    missing = [f"{benchmark} ({', '.join(FILES[benchmark])})" for benchmark in FILES if benchmark not in chosen]
    if not chosen:
        raise ValueError(f"--decontaminate {name} holds none of {', '.join(missing)}: name a file, as in gsm8k=FILE.")
    if missing:
        terminal.note(f"NOTE: --decontaminate {name} has no {', '.join(missing)}: not guarded.")
    return chosen


def log_lines(document: int | str, tokens: int, hits: list[str]) -> bytes:
    """Lines of decontamination.jsonl for one dropped document, one per benchmark. document: its number or name; tokens:
    its plain GPT-2 tokens, the same in every condition; hits: as from `Guard.hits`."""
    items_of: dict[str, list[str]] = {}
    for hit in hits:
        name, item = hit.split("/", 1)
        items_of.setdefault(name, []).append(item)
    records = [{"document": document, "tokens": tokens, "benchmark": name, "items": items}
               for name, items in items_of.items()]
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def summary(guard: Guard, log: bytes) -> dict:
    """What meta.json says as `decontamination`: `guard.benchmarks` with the counts of a whole decontamination.jsonl:
    {"rule", "documents_dropped", "plain_tokens_dropped", "benchmarks": {name: {"file", "sha256", "items",
    "items_too_short", "documents_dropped", "items_hit_total", "items_hit": the first LISTED ids}}}"""
    tokens_of, documents = {}, Counter()
    items = {name: set() for name in guard.benchmarks}
    for line in log.splitlines():
        record = json.loads(line)
        tokens_of[record["document"]] = record["tokens"]
        documents[record["benchmark"]] += 1
        items[record["benchmark"]].update(record["items"])
    benchmarks = {}
    for name, about in guard.benchmarks.items():
        hit = sorted(items[name])
        benchmarks[name] = about | {"documents_dropped": documents[name], "items_hit_total": len(hit),
                                    "items_hit": hit[:LISTED]}
    return {"rule": RULE, "documents_dropped": len(tokens_of), "plain_tokens_dropped": sum(tokens_of.values()),
            "benchmarks": benchmarks}
