r"""answers.py owns the prompt template, and what is a number in a text: one grammar, complete or no answer.

    number   [sign] [currency] amount           -3, +3, −3 (and other dashes), $12.50, -$3, $-3
    amount   plain, plain / plain, or whole whole / whole                          18, 3/4, 1 1/2
    plain    integer [. digits] [e exponent], or . digits                          1234.5, 18.00, .5, 1e3
    integer  digits, or groups of three after one kind of separator                1,234,567 or 9{,}500 or 9\,500

A number that goes on in another way is none, not its first digits: `0,5`, `1,234,56`, `1.234,5`, `12:30`, `1.2.3`,
`2½`, `3 million`, `5k`. `25%` is 25, and a unit is passed over. Three readers share this grammar:

    strict      the number after the first `####` that has one on its line, as GSM8K's own `#### (\-?[0-9\.\,]+)`. Text
                may follow it, but no second number of the same answer (`12 and 13`, `5 feet 3 inches`, `2 and a half`),
                and no rest of an expression: `#### 6*9` is no answer, `#### 6*9=54` is 54
    flexible    the last number of the text; if that is not a complete one, there is no answer
    gold        the only `####`, then on its line one number, its unit (`12 apples`), and at most a full stop

Digits of a literal `<MUL_6_9_54>` are never read: expand the token first (MulExpressionInjector.expand).
"""

import re
from collections.abc import Iterator
from fractions import Fraction

SCORER = "gsm8k-2"  # a change that changes a score must change this name
USER, ASSISTANT = "User:", "Assistant:"
MARK = "####"
MAX_DIGITS = 1000  # of a number, and the largest exponent; beyond it there is no answer, and no time is spent


def render_prompt(question: str) -> str:
    """The prompt, which the answer follows after a space."""
    return f"{USER} {question}\n{ASSISTANT}"


SPACE = r"[^\S\n]"
BLANK = rf"{SPACE}*"  # two side by side would take the square of their length to fail
CURRENCY = r"(?:\\?[$€£¥₹][^\S\n]?)"
OPERATOR = r"(?:\*\*|[-*×·x+÷^/])"
# `-` is a sign only if no operand precedes it: in `5-3` it is a subtraction
SIGN = r"(?<![\w)\]%])[-+]"

# digits and all that joins them: more than PLAIN, which says which of these are numbers
JOINT = r"(?:[.,:'’_\u00a0\u2009\u202f]|\{,\}|\\[,;:! ])"
DIGITS = rf"(?:[0-9]+|\.[0-9]+)(?:{JOINT}[0-9]+)*(?:[eE][-+]?[0-9]+)?"
BEGIN = r"(?<![0-9])(?<![0-9][.,:'’_\u00a0\u2009\u202f])(?<![0-9]\{,\})(?<![0-9]\\[,;:! ])"
END = rf"(?!(?:{JOINT}|[eE][-+]?)?[0-9])"
GROUPS = "|".join(rf"[1-9][0-9]{{0,2}}(?:{comma}[0-9]{{3}})+" for comma in (",", r"\{,\}", r"\\,"))
PLAIN = re.compile(rf"(?P<integer>{GROUPS}|[0-9]*)(?P<decimals>\.[0-9]+)?(?:[eE](?P<exponent>[-+]?[0-9]+))?")
AMOUNT = (rf"(?P<sign>{SIGN})?{CURRENCY}?(?P<sign2>{SIGN})?{BEGIN}"
          rf"(?:(?P<whole>[0-9]+)[ ](?=[0-9]+/[0-9]))?"
          rf"(?P<top>{DIGITS})(?: ?/ ?(?P<bottom>{DIGITS}))?{END}")
ANY_AMOUNT = re.compile(AMOUNT)
# what makes the number before it a part of another
SCALES = r"(?i:hundred|thousand|million|billion|trillion|lakh|crore)s?\b"
GOES_ON = re.compile(rf"[²³¹⁰-⁹¼-¾⅐-⅞]|(?:[kKMB]|mn|bn|tn)\b|{BLANK}-?{SCALES}|(?:\.\.+|…){BLANK}[0-9]")

# after `####`: an amount that is not the head of an expression
STRICT = re.compile(rf"{BLANK}(?:(?P<loose>[-+](?=\s)){BLANK})?{AMOUNT}"
                    rf"(?!{BLANK}(?:%{BLANK})?{OPERATOR}{BLANK}[$(]?[0-9])")
# words after which a number belongs to something else, as in `18 apples for 3 people`
OTHER = ("for per of in on at from after before with without within because since as so is are was were if when that "
         "which than under over about between among during until every each").replace(" ", "|")
WORD = rf"(?!(?:{OTHER})\b)[^\W\d_A-Z]{{1,30}}"
WORDS = rf"{WORD}(?:{SPACE}+{WORD}){{0,2}}"
HALF = r"(?:and|&) (?:an? |one |two |three )?(?:half|quarters?|thirds?|fifths?)\b"
COMMA = rf"[,;&/]{BLANK}"
BETWEEN = rf"(?:(?<={SPACE})|{COMMA}|{WORDS}(?:{SPACE}+|{BLANK}{COMMA}))"
SECOND = re.compile(rf"{BLANK}(?:%{BLANK})?{BETWEEN}{CURRENCY}?\.?[0-9]|"
                    rf"{BLANK}(?:{WORD}{SPACE})?{HALF}")
LETTERS = r"[^\W\d_]+(?![^\W\d_])"
UNIT = (rf"(?!{BLANK}-?(?:and|or|to|plus|minus|times|by)\b)(?![^\n]* and (?:an?|one|two|three|half)\b)"
        rf"{BLANK}(?!{SPACE})-?(?:[%°$€£¥₹]|\\[%$])?(?:[ /-]?{LETTERS}(?:['’.]{LETTERS})*[²³]?){{0,6}}")
GOLD = re.compile(rf"{STRICT.pattern}(?={UNIT}[.]?\s*\Z)")

OPERAND = rf"\(?{CURRENCY}?[-+]?{DIGITS}%?\)?"
EXPRESSION = rf"(?:<<)?{OPERAND}(?:{BLANK}{OPERATOR}{BLANK}{OPERAND})+"
RESTATED = re.compile(rf"{BLANK}{EXPRESSION}{BLANK}={BLANK}")
SPOKEN_OPERATOR = rf"(?:{OPERATOR}|times|multiplied by|plus)"
SPOKEN = re.compile(rf"(?<![\w.,])(?:<<)?{OPERAND}(?:{BLANK}{SPOKEN_OPERATOR}{BLANK}{OPERAND})+"
                    rf"(?:{BLANK}(?:=|equals\b|is\b))?"
                    # joined digits that begin no expression are passed over as a whole: the later ones begin none
                    # either, and to try each up to the last takes the square of their length
                    rf"|(?P<kept>(?<![\w.,])(?:[0-9]+|\.[0-9]+)(?:{JOINT}[0-9]+)+)")
LITERAL_MUL = re.compile(r"<MUL_[0-9_]*>?")
SAME_SIGN = str.maketrans("−–‐‑﹣－", "------")


def extract_answer(text: str, rule: str = "strict") -> Fraction | None:
    """The number that a text gives as its answer, or None. rule: "strict" or "flexible"."""
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}: use {' or '.join(RULES)}.")
    return value_of(RULES[rule](normalise(text)))


def gold_answer(text: str) -> Fraction | None:
    """The number of a right answer, `... #### 12 apples`; None unless it is one number and its unit."""
    parts = re.split("#{4,}", text)
    if len(parts) != 2:
        return None
    return whole_number(parts[1].strip().partition("\n")[0])


def whole_number(text: str) -> Fraction | None:
    """The number that a text is, with its unit and no other text; else None."""
    return value_of(GOLD.match(normalise(text)))


def normalise(text: str) -> str:
    """The text without multiplication tokens, and with one kind of minus."""
    return LITERAL_MUL.sub("\0", text).translate(SAME_SIGN)


def after_marks(text: str) -> Iterator[re.Match | None]:
    """Of every `####` that a number follows on its line: the number, None where it is not the only one."""
    for mark in re.finditer("#{4,}", text):
        at = mark.end()
        while restated := RESTATED.match(text, at):
            at = restated.end()
        match = STRICT.match(text, at)
        if match:
            yield None if SECOND.match(text, match.end()) else match


def after_mark(text: str) -> re.Match | None:
    return next(after_marks(text), None)


def marked_answers(text: str) -> list[Fraction | None]:
    """The answer of every `####` that a number follows, in the order of the text; strict takes the first."""
    return [value_of(match) for match in after_marks(normalise(text))]


def last_amount(text: str) -> re.Match | None:
    matches = [None, *ANY_AMOUNT.finditer(text)]
    return matches[-1]


RULES = {"strict": after_mark, "flexible": last_amount}


def first_number(text: str) -> Fraction | None:
    """A probe's answer: the first number before a newline that is not an operand of an expression, or None."""
    line = normalise(text).partition("\n")[0]
    return value_of(ANY_AMOUNT.search(SPOKEN.sub(lambda match: match["kept"] or " ", line)))


def value_of(match: re.Match | None) -> Fraction | None:
    """The value of a match of AMOUNT; None without one, and if it is not complete, divides by zero or has too many
    digits."""
    if match is None or GOES_ON.match(match.string, match.end()):
        return None
    whole, top, bottom = (number(match[name] or default) for name, default in PARTS.items())
    if whole is None or top is None or not bottom:
        return None
    minuses = [match["sign"], match["sign2"], match.groupdict().get("loose")].count("-")
    return (whole + top / bottom) * (-1) ** minuses


PARTS = {"whole": "0", "top": "", "bottom": "1"}


def number(text: str) -> Fraction | None:
    """The exact value of a plain number, None for other text and beyond MAX_DIGITS."""
    match = PLAIN.fullmatch(text)
    if match is None:
        return None
    integer, exponent = re.sub(r"[^0-9]", "", match["integer"]), match["exponent"] or "0"
    mantissa = integer + (match["decimals"] or "")
    if len(mantissa) > MAX_DIGITS or len(exponent) > 9 or abs(int(exponent)) > MAX_DIGITS:
        return None
    return Fraction(mantissa) * Fraction(10) ** int(exponent)


def answer_text(value: Fraction | None) -> str | None:
    """A number as the records write it: 1234.5 where six decimals are enough, else 1/3."""
    if value is None:
        return None
    millionths = value * 10**6
    if millionths.denominator != 1 or value.denominator == 1:
        return str(value)
    digits = f"{millionths.numerator:0=+8d}"  # a sign and at least seven digits
    return f"{digits[:-6]}.{digits[-6:]}".rstrip("0").removeprefix("+")
