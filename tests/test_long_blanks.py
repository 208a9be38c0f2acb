"""answers.py on long runs of blanks and of joined digits: linear, and the same answers as of the patterns before, which
stand here and took the square of the length."""

import random
import re
import time
from unittest import mock

import pytest

from lab import answers
from lab.answers import AMOUNT, BLANK, CURRENCY, HALF, OPERAND, OPERATOR, SPACE, SPOKEN_OPERATOR, WORD

OLD_WORDS = rf"(?:{BLANK}{WORD}(?:{SPACE}+{WORD}){{0,2}})?"
OLD_STRICT = re.compile(rf"{BLANK}(?P<loose>[-+](?=\s))?{BLANK}{AMOUNT}"
                        rf"(?!{BLANK}%?{BLANK}{OPERATOR}{BLANK}[$(]?[0-9])")
OLD_SECOND = re.compile(rf"{BLANK}%?{OLD_WORDS}(?:{BLANK}[,;&/]|{SPACE}){BLANK}{CURRENCY}?\.?[0-9]|"
                        rf"{BLANK}(?:{WORD}{SPACE})?{HALF}")
OLD_UNIT = (r"(?![^\S\n]*-?(?:and|or|to|plus|minus|times|by)\b)(?![^\n]* and (?:an?|one|two|three|half)\b)"
            r"[^\S\n]*-?(?:[%°$€£¥₹]|\\[%$])?(?:[ /-]?[^\W\d_]+(?:['’.][^\W\d_]+)*[²³]?){0,6}")
OLD_GOLD = re.compile(rf"{OLD_STRICT.pattern}(?={OLD_UNIT}[.]?\s*\Z)")
OLD_SPOKEN = re.compile(rf"(?<![\w.,])(?:<<)?{OPERAND}(?:{BLANK}{SPOKEN_OPERATOR}{BLANK}{OPERAND})+"
                        rf"(?:{BLANK}(?:=|equals\b|is\b))?(?P<kept>(?!))?")
OLD = {"STRICT": OLD_STRICT, "SECOND": OLD_SECOND, "GOLD": OLD_GOLD}

PIECES = (
    "5", "12", "3/4", "1 1/2", ".5", "1,000", "1e3", " ", " ", "  ", "\t", "\u00a0", "\n", "%", "+", "-", "=", "*", "x",
    "/", ",", ";", "&", ".", "$", "\\$", "€ ", "\\%", "#", "####", "(", ")", "apples", "km", "m²", "and", "a half",
    "for", "feet", "Feet", "o'clock", "million", "k", "to", "…", "...", "<<", ">>", "\x00", "½", "is")


def answers_of(text: str) -> list:
    read = [answers.extract_answer(text, rule) for rule in answers.RULES]
    return [*read, answers.marked_answers(text), answers.whole_number(text), answers.gold_answer(text)]


def test_the_same_answers_as_before():
    """Texts of 20,000 that are read otherwise than before they were read in linear time: none, and hundreds have an
    answer of each kind, and hundreds none."""
    draw, found = random.Random(0), [0, 0]
    for number in range(20_000):
        pieces = draw.choices(PIECES, k=draw.randint(1, 9))
        text = draw.choice(("####", "#### ", "#### 5", "#### 5 ", "7", "")) + "".join(pieces)
        now = answers_of(text)
        with mock.patch.multiple(answers, **OLD):
            assert answers_of(text) == now, (number, text)
        found[0] += now[0] is not None
        found[1] += now[3] is not None
    assert all(300 < count < 19_000 for count in found), found


@pytest.mark.parametrize("before", ["#### ", "#### -", "#### 5", "#### 5 %", "#### 5 apples", "#### 5 red apples",
                                    "#### 5 +", "#### 5,", "#### 5 $", "#### 1+1", "5", "5 apples", "$"])
def test_blanks_take_linear_time(before):
    """Seconds for 20,000 blanks, in the exam, in a reward and in a gold answer: a model may write nothing else."""
    start = time.process_time()
    for after in ("", "x", "?", " 3", "\n#### 3", "."):
        text = before + " " * 20_000 + after
        answers_of(text)
        answers.whole_number(text.removeprefix("#### "))
        answers.first_number(text)
    assert time.process_time() - start < 3


JOINED = (
    *("1", "23", ":", "*", "+") * 4, ".5", "'", "’", ",", ".", "{,}", "\\,", "\\ ", "\u00a0", "_", "(", ")", "%", "$",
    "-", " x ", "e", "e5", " ", "<<", "=", " is ", " times ", "/", "a")


def test_the_same_first_numbers_as_before():
    """Answers of the probes of 20,000 texts that are others than before joined digits were passed over: none, and
    thousands have one, or hold an expression."""
    draw, n_answers, n_expressions = random.Random(1), 0, 0
    for number in range(20_000):
        text = "".join(draw.choices(JOINED, k=draw.randint(1, 14)))
        now = answers.first_number(text)
        with mock.patch.object(answers, "SPOKEN", OLD_SPOKEN):
            assert answers.first_number(text) == now, (number, text)
        n_answers += now is not None
        n_expressions += OLD_SPOKEN.search(text) is not None
    assert n_answers > 1000 and n_expressions > 1000, (n_answers, n_expressions)


@pytest.mark.parametrize("joint", [":", "'", "{,}", ".5:"])
def test_joined_digits_take_linear_time(joint):
    """An exam's hours: 400,000 characters of `1:1:1:...` took one and a half, and take a fraction of a second."""
    assert answers.first_number(f"1{joint}" * (400_000 // (1 + len(joint)))) is None
