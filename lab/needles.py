"""needles.py owns prompts of an exact length that hold one number to be found: needles in haystacks, and passkeys.

    <|endoftext|> ... filler ... The secret number of the harbour is 48213. ... filler ...
    What is the secret number of the harbour? The secret number of the harbour is

All of it together is exactly `length` tokens of GPT-2, and stays so when its text is encoded again. The filler is a
piece of a text that ends with a sentence; the needle stands at the sentence's end that is nearest to a depth (0: behind
<|endoftext|>, 1: before the question). The model is asked for the log-probability of 10 numbers, the right one among
them, each of 5 digits and 2 tokens; no other of them is in the prompt, so chance is 0.1. With the needle left out the
filler is longer instead, and nothing but chance is left.
"""

import functools
import itertools
import math
import random
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from lab import chunks, long_documents
from lab.benchmarks import mean, shares
from lab.long_documents import CONTROLS
from lab.schema import check
from lab.tokenizer import bos_id, get_tokenizer, tokenizer_hash

N_CANDIDATES = 10
NUMBER_TOKENS = 2  # of " 48213": 59,139 of the 90,000 numbers with 5 digits
CHANCE = 1 / N_CANDIDATES
PLACES = "harbour lighthouse library windmill orchard bakery museum castle bridge station".split()
NEEDLES = {  # kind: (needle, question)
    "niah": (" The secret number of the {place} is {number}.",
             " What is the secret number of the {place}? The secret number of the {place} is"),
    "passkey": (" The pass key is {number}. Remember it. {number} is the pass key.",
                " What is the pass key? The pass key is"),
}
ABBREVIATIONS = set("Mr Mrs Ms Dr St Prof Rev Gen Col Capt Lieut vol No pp cf i.e e.g etc".split())
POOL_TOKENS = 2**18  # of filler, at least; the longest prompt four times if that is more

# ----------------------------------------------------------------------------------------------------------------------
# filler


class Filler(NamedTuple):
    ids: np.ndarray  # uint16 (N,)
    ends: np.ndarray  # positions before which a sentence ends, ascending
    is_start: np.ndarray  # bool (N,): the token begins a word


SENTENCES = (  # of several lengths and in a random order, so that pieces of any length begin with a word
    " This is filler sentence {}.",
    " Sentence {} says nothing of interest.",
    " Nothing happens in sentence {}, which is as long as it has to be.",
    " Number {} is filler, too.",
)


def sentences(n: int) -> str:
    """At least n tokens of numbered sentences, as the original's."""
    rng = random.Random("sentences")
    return "".join(rng.choice(SENTENCES).format(i) for i in range(n // 6 + 1))


def make_filler(texts, length: int) -> Filler:
    """Of enough texts for prompts of `length` tokens. ValueError when they are too short."""
    wanted, parts, n = max(POOL_TOKENS, 4 * length), [], 0
    for text in texts:
        parts.append(get_tokenizer().encode(" " + " ".join(text.split())))
        n += len(parts[-1])
        if n >= wanted:
            break
    check(n >= 2 * length, f"the filler has {n:,} tokens, too few for prompts of {length:,}: name a --data with at "
                           f"least {2 * length:,}, shorten the prompts, or use --filler sentences.")
    return filler_of(np.fromiter(itertools.chain.from_iterable(parts), np.uint16, n))


def filler_of(ids: np.ndarray) -> Filler:
    kinds, kind_of = np.unique(ids, return_inverse=True)
    tokens = [get_tokenizer().decode_bytes([i]).decode("utf-8", "replace") for i in kinds]

    def where(test) -> np.ndarray:
        return np.array([test(token) for token in tokens])[kind_of]

    begins = where(lambda token: len(token) > 1 and token[0] == " " and token[1].isalnum())
    capital = where(lambda token: token[1:2].isupper())
    stops = where(lambda token: token.rstrip("\"'\u201d\u2019)").endswith((".", "!", "?")))
    word = where(lambda token: len(token.strip()) > 1 and token.strip() not in ABBREVIATIONS)
    inside = word[:-2] & stops[1:-1] & (begins & capital)[2:]
    return Filler(ids, inside.nonzero()[0] + 2, begins)


# ----------------------------------------------------------------------------------------------------------------------
# prompts


class Prompt(NamedTuple):
    ids: list[int]
    candidates: list[list[int]]  # N_CANDIDATES lists of number_tokens() ids
    answer: int  # which candidate is right
    depth: float  # where the needle is, of the filler's tokens
    needle_end: int  # the prompt's position behind the needle; 0 without a needle


def number_pool() -> list[int]:
    """The numbers of 5 digits that are as many tokens after a space: NUMBER_TOKENS of GPT-2's, else as most are."""
    return _pool_of(tokenizer_hash())


def number_tokens() -> int:
    """Tokens of each number of the pool, after a space."""
    return len(get_tokenizer().encode(f" {number_pool()[0]}"))


@functools.cache
def _pool_of(tokenizer: str) -> list[int]:
    candidates = range(10_000, 100_000)
    _, lengths = get_tokenizer().encode_batch([f" {number}" for number in candidates])
    usual = NUMBER_TOKENS if get_tokenizer().is_gpt2 else int(np.bincount(lengths).argmax())
    return [number for number, n in zip(candidates, lengths, strict=True) if n == usual]


def shortest(kind: str) -> int:
    """Tokens of the shortest prompt: about twice what is not filler."""
    texts = [text.format(place=PLACES[0], number=number_pool()[0]) for text in NEEDLES[kind]]
    return 2 * (4 + len(get_tokenizer().encode("".join(texts))))


def make_prompt(kind: str, filler: Filler, length: int, depth: float, seed: int, index: int,
                with_needle: bool = True) -> Prompt:
    """Prompt `index` of a seed: exactly `length` tokens. Without its needle it has the same numbers, question, end of
    the filler and right answer."""
    encode, rng = get_tokenizer().encode, random.Random(f"{kind}/{seed}/{length}/{index}")
    place, (needle, question) = rng.choice(PLACES), NEEDLES[kind]
    question_ids = encode(question.format(place=place))
    needle_length = len(encode(needle.format(place=place, number=number_pool()[0])))
    longer = length - 1 - len(question_ids)
    n = longer - needle_length
    end = piece_end(filler, n, longer, rng)
    text = get_tokenizer().decode(filler.ids[end - longer : end])
    numbers = []
    while len(numbers) < N_CANDIDATES:
        number = rng.choice(number_pool())
        if number not in numbers and str(number) not in text:
            numbers.append(number)
    answer = rng.randrange(N_CANDIDATES)
    candidates = [encode(f" {number}") for number in numbers]
    if not with_needle:
        ids = [bos_id(), *filler.ids[end - longer : end].tolist(), *question_ids]
        return Prompt(ids, candidates, answer, depth, 0)
    needle_ids = encode(needle.format(place=place, number=numbers[answer]))
    first = end - n
    inside = filler.ends[(first < filler.ends) & (filler.ends < end)]
    at = min([first, *inside.tolist(), end], key=lambda position: abs(position - first - depth * n))
    before, after = filler.ids[first:at].tolist(), filler.ids[at:end].tolist()
    ids = [bos_id(), *before, *needle_ids, *after, *question_ids]
    return Prompt(ids, candidates, answer, (at - first) / n, 1 + len(before) + len(needle_ids))


def piece_end(filler: Filler, n: int, longer: int, rng) -> int:
    """Where a piece of filler ends: with a sentence, so that pieces of n and of `longer` tokens begin with a word."""
    ends = filler.ends[filler.ends >= longer]
    for _ in range(1000):
        check(len(ends), f"the filler has no sentence that ends behind {longer:,} tokens: name another --data, or use "
                         "--filler sentences.")
        end = int(rng.choice(ends))
        if filler.is_start[end - n] and filler.is_start[end - longer]:
            return end
    # of a small vocabulary few tokens begin a word, and among few sentences perhaps none does here
    if not get_tokenizer().is_gpt2:
        return end
    raise ValueError("the filler has hardly a word that begins with a space, so none of its pieces has the right "
                     "length: name another --data, or use --filler sentences.")


# ----------------------------------------------------------------------------------------------------------------------
# scores


def read_prompts(model, control: str, ids, keys: list[str]) -> chunks.Reading:
    """A Reading behind prompts ids (B, L), of which each whole chunk was written once, as `control` says."""
    alter = None
    if control != "static":
        alter = CONTROLS[control](keys)
    reading, (_, size) = chunks.Reading(model, alter=alter), long_documents.sizes(model.config)
    n = (ids.size(1) - 1) // size * size
    if control != "static" and n:
        long_documents.read_and_write(reading, ids[:, :n], ids[:, 1 : n + 1], write_last=True)
    return reading


@torch.no_grad()
def score(model, control: str, prompts: list[Prompt]) -> list[dict]:
    """Of prompts of one length: "scores", log p of each candidate in nats; "greedy": whether the likeliest tokens are
    the right number; and what they wrote."""
    device = model.transformer["wte"].weight.device
    ids = torch.tensor([prompt.ids for prompt in prompts], device=device)
    reading = read_prompts(model, control, ids, [long_documents.sha256_of(prompt.ids) for prompt in prompts])
    last = long_documents.read_only(reading, ids[:, -window_of(model.config) :], restart=True)[:, -1:]
    scores = torch.zeros(len(prompts), N_CANDIDATES)
    greedy = torch.zeros(len(prompts), N_CANDIDATES, dtype=torch.bool)
    for i in range(N_CANDIDATES):
        number = torch.tensor([prompt.candidates[i] for prompt in prompts], device=device)
        states = torch.cat([last, long_documents.read_only(reading.fork(), number[:, :-1])], 1)
        log_probs = model.head(states).float().log_softmax(-1)
        scores[:, i] = log_probs.gather(2, number[:, :, None]).sum((1, 2)).cpu()
        greedy[:, i] = (log_probs.argmax(-1) == number).all(1).cpu()
    written = long_documents.written_sums(reading, len(prompts))
    records = []
    for i, prompt in enumerate(prompts):
        record = {"scores": scores[i].tolist(), "greedy": bool(greedy[i, prompt.answer])}
        records.append(record | {key: values[i] for key, values in written.items()})
    return records


def window_of(config) -> int:
    """Tokens of a prompt that attention reaches when it is asked for a number."""
    return config.block_size - number_tokens() + 1


def mark(prompt: Prompt, record: dict, window: int) -> dict:
    """The record with its credit (1 for the right number; the k likeliest share it), the margin over the likeliest
    wrong one in nats, and whether the needle's number, or one of them, is whole within the last `window` tokens."""
    scores = record["scores"]
    right = scores[prompt.answer]
    wrong = max(score for i, score in enumerate(scores) if i != prompt.answer)
    credit = 0.0
    if right >= wrong:
        credit = 1 / scores.count(right)
    number, first = prompt.candidates[prompt.answer], max(len(prompt.ids) - window, 0)
    ends = range(first + len(number), prompt.needle_end + 1)
    visible = any(list(prompt.ids[end - len(number) : end]) == number for end in ends)
    return record | {"answer": prompt.answer, "credit": credit, "margin": right - wrong,
                     "depth": round(prompt.depth, 4), "visible": visible}


# ----------------------------------------------------------------------------------------------------------------------
# numbers


def summary(records: list[dict]) -> dict:
    """n, accuracy with Wilson's interval, mean margin, share of greedy matches, share with the needle in the window."""
    result = {"n": len(records), **shares(accuracy=[record["credit"] for record in records])}
    for name in ("margin", "greedy", "visible"):
        result[name] = mean([float(record[name]) for record in records])
    return result


def resolution(n: int) -> dict:
    """What n prompts can tell: the nearest two accuracies around 1/2 that two models' shares tell apart (two-sided 5 %
    with power 80 %, normal approximation), and the least number of right answers that is above chance (one-sided 5 %,
    binomial; None when even n is not)."""
    z = stats.norm.isf(0.025) + stats.norm.isf(0.2)
    gap = math.sqrt(z * z / 2 / (n + z * z / 2))  # gap^2 = 2 z^2 (1/4 - gap^2 / 4) / n
    least = next((k for k in range(n + 1) if stats.binom.sf(k - 1, n, CHANCE) <= 0.05), None)
    return {"n": n, "told_apart": [0.5 - gap / 2, 0.5 + gap / 2], "least_above_chance": least}


def at_chance(accuracy: float, n: int) -> bool:
    """Whether the share of n prompts may come from guessing (binomial, two-sided 5 %)."""
    return stats.binomtest(round(accuracy * n), n, CHANCE).pvalue > 0.05


def resolution_sentence(n: int) -> str:
    found = resolution(n)
    low, high = found["told_apart"]
    least = f"none of the {n} counts is above chance"
    if found["least_above_chance"] is not None:
        least = f"above chance ({CHANCE}) from {found['least_above_chance']} right answers on"
    return (f"{n} prompts cannot tell two models apart whose accuracies are nearer than {low:.2f} and {high:.2f} "
            f"(5 %, power 80 %); {least}.")
