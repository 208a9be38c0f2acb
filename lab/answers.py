"""answers.py owns the prompt template and the number that a text gives as its answer."""

import re
from fractions import Fraction

USER, ASSISTANT = "User:", "Assistant:"
MARK = "####"
MAX_DIGITS = 1000  # of a number, and of an exponent's value: what is beyond is no answer, and costs no time


def render_prompt(question: str) -> str:
    """The prompt of one question; what the assistant says follows with a space before it."""
    return f"{USER} {question}\n{ASSISTANT}"


# ----------------------------------------------------------------------------------------------------------------------
# answers out of text

BLANK = r"[^\S\n]*"
CURRENCY = r"(?:\\?[$€£¥₹][^\S\n]?)"
NUMBER = r"(?:[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
OPERATOR = r"(?:\*\*|[-*×·x+÷^/])"
# A sign is one only where nothing that could be subtracted from stands before it; 1.2.3 and 2½ hold no number.
AMOUNT = (rf"(?P<sign>(?<![\w)\]%])[-+])?{CURRENCY}?(?P<sign2>(?<![\w)\]%])[-+])?(?<![0-9])(?<![0-9][.,])"
          rf"(?:(?P<whole>[0-9]+)[ ](?=[0-9]+/[0-9]))?(?P<top>{NUMBER})(?: ?/ ?(?P<bottom>{NUMBER}))?"
          r"(?!(?:[.,]|[eE][-+]?)?[0-9]|[²³¼-¾⅐-⅞])")
ANY_AMOUNT = re.compile(AMOUNT)
# an amount that is not the head of an expression
STRICT = re.compile(rf"{BLANK}(?P<loose>[-+](?=\s))?{BLANK}{AMOUNT}(?!{BLANK}%?{BLANK}{OPERATOR}{BLANK}[$(]?[0-9])")
OPERAND = rf"\(?{CURRENCY}?[-+]?{NUMBER}%?\)?"
EXPRESSION = rf"(?:<<)?{OPERAND}(?:{BLANK}{OPERATOR}{BLANK}{OPERAND})+"
RESTATED = re.compile(rf"{BLANK}{EXPRESSION}{BLANK}={BLANK}")
SPOKEN = re.compile(rf"(?<![\w.,])(?:<<)?{OPERAND}(?:{BLANK}(?:{OPERATOR}|times|multiplied by|plus){BLANK}{OPERAND})+"
                    rf"(?:{BLANK}(?:=|equals\b|is\b))?")
LITERAL_MUL = re.compile(r"<MUL_[0-9_]*>?")
SAME_SIGN = str.maketrans("−–‐‑﹣－", "------")


def extract_answer(text: str, rule: str = "strict") -> Fraction | None:
    """The number that a text gives as its answer, or None. rule: "strict" or "flexible", see the head of this file.

    Digits of a literal `<MUL_6_9_54>` are never read: expand the token first (MulExpressionInjector.expand)."""
    text = LITERAL_MUL.sub("\0", text).translate(SAME_SIGN)
    if rule == "flexible":
        found = list(ANY_AMOUNT.finditer(text))
        return amount(found[-1]) if found else None
    if rule != "strict":
        raise ValueError(f"rule is {rule!r}: use strict or flexible.")
    for mark in re.finditer("#{4,}", text):
        at = mark.end()
        while restated := RESTATED.match(text, at):
            at = restated.end()
        if found := STRICT.match(text, at):
            return amount(found)
    return None


def first_number(text: str) -> Fraction | None:
    """A probe's answer: the first number before a newline that is not an operand of an expression, or None."""
    line = LITERAL_MUL.sub("\0", text).partition("\n")[0].translate(SAME_SIGN)
    found = ANY_AMOUNT.search(SPOKEN.sub(" ", line))
    return amount(found) if found else None


def amount(match: re.Match) -> Fraction | None:
    """The value of a match of AMOUNT; None when it divides by zero or is larger than anybody means."""
    top, bottom = number(match["top"]), number(match["bottom"] or "1")
    if top is None or not bottom:
        return None
    value = top / bottom + int(match["whole"] or 0)
    minuses = [match["sign"], match["sign2"], match.groupdict().get("loose")].count("-")
    return -value if minuses % 2 else value


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
    digits = f"{abs(millionths.numerator):07d}"
    return f"{'-' if value < 0 else ''}{digits[:-6]}.{digits[-6:].rstrip('0')}"
