r"""answers.py owns the prompt template and the number that a text gives as its answer.

    strict    the number after the first `####` that has one on its line, as GSM8K's own `#### (\-?[0-9\.\,]+)`. Also
              read: `$29.00`, `3/4`, `1 1/2`, `1e3`, `25%` (as 25), `-$3`, text after the number, and `6*9=54` as 54.
              An expression without a result (`#### 6*9`) is no answer
    flexible  the last number of the text

Digits of a literal `<MUL_6_9_54>` are never read: expand the token first (MulExpressionInjector.expand).
"""

import re
from fractions import Fraction

SCORER = "gsm8k-1"  # a change that changes a score must change this name
USER, ASSISTANT = "User:", "Assistant:"
MARK = "####"
MAX_DIGITS = 1000  # of a number, and the largest exponent; beyond it there is no answer, and no time is spent


def render_prompt(question: str) -> str:
    """The prompt, which the answer follows after a space."""
    return f"{USER} {question}\n{ASSISTANT}"


BLANK = r"[^\S\n]*"
CURRENCY = r"(?:\\?[$€£¥₹][^\S\n]?)"
NUMBER = r"(?:[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
OPERATOR = r"(?:\*\*|[-*×·x+÷^/])"
# `-` is a sign only if no operand precedes it: in `5-3` it is a subtraction
SIGN = r"(?<![\w)\]%])[-+]"
# 1.2.3 and 2½ hold no number
AMOUNT = (rf"(?P<sign>{SIGN})?{CURRENCY}?(?P<sign2>{SIGN})?(?<![0-9])(?<![0-9][.,])"
          rf"(?:(?P<whole>[0-9]+)[ ](?=[0-9]+/[0-9]))?"
          rf"(?P<top>{NUMBER})(?: ?/ ?(?P<bottom>{NUMBER}))?"
          r"(?!(?:[.,]|[eE][-+]?)?[0-9]|[²³¼-¾⅐-⅞])")
ANY_AMOUNT = re.compile(AMOUNT)
# an amount that is not the head of an expression
STRICT = re.compile(rf"{BLANK}(?P<loose>[-+](?=\s))?{BLANK}{AMOUNT}"
                    rf"(?!{BLANK}%?{BLANK}{OPERATOR}{BLANK}[$(]?[0-9])")
OPERAND = rf"\(?{CURRENCY}?[-+]?{NUMBER}%?\)?"
EXPRESSION = rf"(?:<<)?{OPERAND}(?:{BLANK}{OPERATOR}{BLANK}{OPERAND})+"
RESTATED = re.compile(rf"{BLANK}{EXPRESSION}{BLANK}={BLANK}")
SPOKEN_OPERATOR = rf"(?:{OPERATOR}|times|multiplied by|plus)"
SPOKEN = re.compile(rf"(?<![\w.,])(?:<<)?{OPERAND}(?:{BLANK}{SPOKEN_OPERATOR}{BLANK}{OPERAND})+"
                    rf"(?:{BLANK}(?:=|equals\b|is\b))?")
LITERAL_MUL = re.compile(r"<MUL_[0-9_]*>?")
SAME_SIGN = str.maketrans("−–‐‑﹣－", "------")


def extract_answer(text: str, rule: str = "strict") -> Fraction | None:
    """The number that a text gives as its answer, or None. rule: "strict" or "flexible"."""
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}: use {' or '.join(RULES)}.")
    return value_of(RULES[rule](normalise(text)))


def normalise(text: str) -> str:
    """The text without multiplication tokens, and with one kind of minus."""
    return LITERAL_MUL.sub("\0", text).translate(SAME_SIGN)


def after_mark(text: str) -> re.Match | None:
    for mark in re.finditer("#{4,}", text):
        at = mark.end()
        while restated := RESTATED.match(text, at):
            at = restated.end()
        if match := STRICT.match(text, at):
            return match
    return None


def last_amount(text: str) -> re.Match | None:
    matches = [None, *ANY_AMOUNT.finditer(text)]
    return matches[-1]


RULES = {"strict": after_mark, "flexible": last_amount}


def first_number(text: str) -> Fraction | None:
    """A probe's answer: the first number before a newline that is not an operand of an expression, or None."""
    line = normalise(text).partition("\n")[0]
    return value_of(ANY_AMOUNT.search(SPOKEN.sub(" ", line)))


def value_of(match: re.Match | None) -> Fraction | None:
    """The value of a match of AMOUNT; None without one, or if it divides by zero or has too many digits."""
    if match is None:
        return None
    top, bottom = number(match["top"]), number(match["bottom"] or "1")
    if top is None or not bottom:
        return None
    value = top / bottom + int(match["whole"] or 0)
    minuses = [match["sign"], match["sign2"], match.groupdict().get("loose")].count("-")
    return value * (-1) ** minuses


def number(text: str) -> Fraction | None:
    """The exact value of a match of NUMBER; None beyond MAX_DIGITS."""
    mantissa, _, exponent = text.replace(",", "").lower().partition("e")
    if len(mantissa) > MAX_DIGITS or len(exponent) > 9 or abs(int(exponent or 0)) > MAX_DIGITS:
        return None
    return Fraction(mantissa) * Fraction(10) ** int(exponent or 0)


def answer_text(value: Fraction | None) -> str | None:
    """A number as the records write it: 1234.5 where six decimals are enough, else 1/3."""
    if value is None:
        return None
    millionths = value * 10**6
    if millionths.denominator != 1 or value.denominator == 1:
        return str(value)
    digits = f"{millionths.numerator:0=+8d}"  # a sign and at least seven digits
    return f"{digits[:-6]}.{digits[-6:]}".rstrip("0").removeprefix("+")
