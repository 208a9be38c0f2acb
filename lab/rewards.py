"""rewards.py owns what a completion is worth: rewards see the answer, never the arm.

    exact    1 when the exam's strict rule (lab/answers.py) finds the right number and no `####` names another one
    shaped   exact, but a right answer whose completion does not end well is worth RIGHT_OPEN, and a wrong one gets a
             little for its form and a little for being close: at most 0.2, less than half of any right answer
    random   1 or 0 by a coin (a control: learns nothing about answers)
    zero     0 (a control: the KL term alone)

A completion is read as the exam reads it: up to <|endoftext|> or a new `User:`, with every `<MUL_6_9_54>`, one token or
literal text, expanded to `6*9=54`. So whether an arm writes products as tokens changes no reward.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from inject_mul import MulExpressionInjector
from lab.answers import USER, extract_answer, gold_answer, marked_answers
from lab.tokenizer import bos_id, get_tokenizer

RIGHT_OPEN = 0.9  # a right answer that goes on after it was given
FORM, CLOSENESS = 0.1, 0.1  # at most, of a wrong answer


class Attempt(NamedTuple):
    """A completion as a reward sees it."""

    text: str  # up to its end, multiplication tokens expanded
    has_ended: bool  # <|endoftext|> came, and no new `User:` before it
    gold: Fraction
    name: str = ""  # of (seed, step, problem, sample)


def read(ids: Sequence[int], gold: Fraction, name: str = "") -> Attempt:
    """The attempt that a completion's ids are; what follows the first <|endoftext|> is not read."""
    ids = list(ids)
    has_end = bos_id() in ids
    if has_end:
        ids = ids[: ids.index(bos_id())]
    text, user, _ = get_tokenizer().decode_generated(ids).partition(USER)
    return Attempt(MulExpressionInjector().expand(text), has_end and not user, gold, name)


def is_right(attempt: Attempt) -> bool:
    """Whether the exam finds the right answer, and no `####` contradicts it."""
    answers = set(marked_answers(attempt.text))
    return extract_answer(attempt.text) == attempt.gold and answers == {attempt.gold}


def exact(attempt: Attempt) -> float:
    return float(is_right(attempt))


def shaped(attempt: Attempt) -> float:
    ends_well = attempt.has_ended and gold_answer(attempt.text) is not None
    if is_right(attempt):
        return 1.0 if ends_well else RIGHT_OPEN
    return FORM * ends_well + CLOSENESS * closeness(attempt)


def closeness(attempt: Attempt) -> float:
    """1 at the right number, falling with the distance in units of it to 0; 0 for no answer or a contradicted one."""
    answers = set(marked_answers(attempt.text))
    if len(answers) != 1 or None in answers:
        return 0.0
    distance = abs(answers.pop() - attempt.gold) / max(1, abs(attempt.gold))
    return float(max(0, 1 - distance))


def coin(attempt: Attempt) -> float:
    return float(hashlib.sha256(f"coin/{attempt.name}".encode()).digest()[0] % 2)


def zero(attempt: Attempt) -> float:
    return 0.0


REWARDS: dict[str, Callable[[Attempt], float]] = {"exact": exact, "shaped": shaped, "random": coin, "zero": zero}


def reward_of(kind: str, attempt: Attempt) -> float:
    """The reward of an attempt. ValueError when it is not a finite number."""
    value = float(REWARDS[kind](attempt))
    if not math.isfinite(value):
        raise ValueError(f"--reward {kind} gave {value} for {attempt.name or 'a completion'} "
                         f"({attempt.text[-60:]!r}): repair the reward; no weight was changed.")
    return value
