"""inject_mul.py owns the injector: it writes each whole single-digit product of a text as one `<MUL_a_b_c>` token.

    python inject_mul.py < story.txt > story_mul.txt                          # weak: 6*9 and 6*9=54
    python inject_mul.py --mode strict --format jsonl train.jsonl -o out.jsonl
    python inject_mul.py --expand < story_mul.txt                             # <MUL_6_9_54> -> 6*9=54

Recognised: `6*9`, `6 * 9`, `6 × 9`, `6x9` with ASCII digits 1-9 in either order, at most one space on each side of the
sign, each also with the right result `=54` / ` = 54`. `weak` takes both forms, `strict` only those with the right
result; `6*9=55` is left alone by both. GSM8K's calculator notes are unwrapped together with what they repeat:
`6 * 9 = <<6*9=54>>54` is one product, and so is the `<<6*9=54>>54` of `is <<6*9=54>>54 apples`; a note that is not
exactly one right product stays. A token's canonical text (`expand`) is `6*9=54`, smaller factor first.

A product is taken only when it is whole by itself; in doubt it is left alone:
* Directly beside it: nothing, white space, brackets, `Q:` before it, `. , ; : ?` (`!` after a result) that end a
  clause after it, a quotation mark before it, and after it only if before it too (`6x9"` are inches). So none of
  `106*9 3.5*2 2*3.5 6*9=545 1,2*3 a2*3 2*3x 2*3*4 2^3*4 2*3² 6*9% $6*9 *2*3* |2*3|`.
* Beyond blanks: no digit, operator or operator's name (`plus 2*3`), no closing bracket before, no opening bracket
  after. Beyond a line's end: no operator. A newline is never inside a product.
* Brackets belong to the product when nothing binds to them: `(2*3)` is taken; `(2*3)+4`, `5(2*3)` and `f(2*3)` are not.
* `=` before it must follow a name: `x = 6*9`, but neither `54 = 6*9` nor `2*27=6*9`. `=` after it must bring the right
  result and nothing more.
* Letter x without a result: no word may follow (`4x4 truck`); X is no sign. A line `2 * 3 items` reads as a list.
A literal `<MUL_6_9_54>` in the text stays as it is, so injecting twice is injecting once.
"""

import argparse
import json
import os
import re
import sys
from collections import Counter

from lab import disk, flags, processes

# One scan per sign: a pattern that begins with a literal is searched by sre's tight single-character loop, 2.5 GB/s on
# prose; `[1-9] ?[*×x] ?[1-9]` runs at 0.2 (measured). The rest is checked in Python, because hits are rare.
SIGNS = [re.compile(sign + " ?[1-9]") for sign in (r"\*", "×", "x")]
PRODUCT = re.compile(r"([1-9]) ?([*×x]) ?([1-9])(?: ?= ?([0-9]{1,2}))?")
EQUALS_AT_END = re.compile(r"([1-9]) ?[*×x] ?([1-9]) ?= ?\Z")
EQUALS_BEFORE = re.compile(r"[^=<>!+*/-] ?= ?\Z")
ANNOTATION = re.compile(r"<<([^<>\n]*)>>")
TOKEN = re.compile(r"<MUL_([1-9])_([1-9])_([1-9][0-9]?)>")
WORD = re.compile(r"[^\W\d_]{1,12}")
LAST_WORD = re.compile(r"[^\W\d_]{1,12}\Z")

DIGITS = frozenset("123456789")
OPENING, CLOSING, QUOTES = frozenset("([{"), frozenset(")]}"), frozenset("\"'`“”‘’«»")
OPERATORS = frozenset("+-*/^×÷·⋅∙−–±=≈≠≤≥%√")
OPERATOR_WORDS = frozenset("plus minus times over by divided multiplied mod modulo percent squared cubed x".split())
CONNECTORS = frozenset("is are was equals makes gives and or".split())


def _widened(gap: str, space: str) -> str:
    """The gap beside a product, "", "blank" or "newline", after one more white-space character."""
    return "newline" if gap == "newline" or space in "\r\n" else "blank"


def _free_on_the_left(text: str, start: int) -> bool:
    """Whether the product at `start` is not the tail of a larger expression. Looks no further than its neighbour."""
    gap = ""
    for i in range(start - 1, -1, -1):
        char = text[i]
        if char.isspace():
            gap = _widened(gap, char)
        elif char in OPENING:
            gap = ""
        elif char in QUOTES:
            continue  # what is before the mark decides: free in `so" 6*9`, not in `5' 6*9` (feet)
        elif gap == "newline":
            return char not in OPERATORS
        elif char == "=":
            return text[max(i - 2, 0) : i].rstrip(" ")[-1:].isalpha()
        elif not gap:
            return char == ":" and text[max(i - 1, 0) : i].isalpha()
        elif char.isalpha():
            return LAST_WORD.search(text[max(i - 11, 0) : i + 1])[0].lower() not in OPERATOR_WORDS
        else:
            return char in ".,;:?!"
    return True


def _free_on_the_right(text: str, end: int, *, result=True, letter_x=False, quoted=False, list_like=False) -> bool:
    """Whether the product that ends before `end` is not the head of a larger expression, or of a list item."""
    gap = ""
    for i in range(end, len(text)):
        char = text[i]
        if char.isspace():
            gap = _widened(gap, char)
        elif char in CLOSING:
            gap = ""
        elif char in QUOTES and not gap and quoted:
            continue  # without a mark before the product it is a unit: 6x9" are inches
        elif char.isalpha() and gap and letter_x and not result:
            return False
        elif gap == "newline":
            return char not in OPERATORS
        elif char in ".,;:?" or (char == "!" and result):  # 6*9! may be a factorial, 6*9=54! is none
            after = text[i + 1 : i + 2]
            return not after or after.isspace() or after in CLOSING or after in QUOTES
        elif not gap:
            return False
        elif char.isalpha():
            word = WORD.match(text, i)[0].lower()
            return word not in OPERATOR_WORDS and (not list_like or word in CONNECTORS)
        else:
            return char in QUOTES
    return True


class MulExpressionInjector:
    """Finds whole products; mode "weak" takes them bare or with the right result, "strict" only with the result."""

    def __init__(self, mode: str = "weak"):
        if mode not in ("weak", "strict"):
            raise ValueError(f"mode must be 'weak' or 'strict', not {mode!r}: pass one of the two.")
        self.mode = mode

    def spans(self, text: str) -> list[tuple[int, int, int, int]]:
        """Products in order as (start, end, a, b): text[start:end] is the product, a ≤ b. Linear in len(text)."""
        spans, closed = self._annotations(text)
        hits = sorted(hit.start() for sign in SIGNS for hit in sign.finditer(text))
        note = 0  # the first closed range that does not end before the product
        for hit in hits:
            start = hit - 1
            if text[hit - 1 : hit] == " ":
                start = hit - 2
            if start < 0 or text[start] not in DIGITS:
                continue
            while note < len(closed) and closed[note][1] <= start:
                note += 1
            if note < len(closed) and closed[note][0] <= start:
                continue
            product = PRODUCT.match(text, start)
            a, sign, b, c = product.groups()
            wrong = c is not None and c != str(int(a) * int(b))
            if wrong or (c is None and self.mode == "strict") or not _free_on_the_left(text, start):
                continue
            before = text[start - 1] if start else "\n"
            list_like = before in "\r\n" and product[0][1:-1] == " * "
            if _free_on_the_right(text, product.end(), result=c is not None, letter_x=sign == "x",
                                  quoted=before in QUOTES, list_like=list_like):
                spans.append((start, product.end(), *sorted((int(a), int(b)))))
        return sorted(spans)

    def _annotations(self, text: str) -> tuple[list[tuple], list[tuple]]:
        """GSM8K notes: (their spans with the `6*9=` before and the `54` after, ranges closed to other products)."""
        spans, closed = [], []
        if "<<" not in text:
            return spans, closed
        for note in ANNOTATION.finditer(text):
            closed.append(note.span())
            product = PRODUCT.fullmatch(note[1])
            if not product or product[4] != str(int(product[1]) * int(product[3])):
                continue
            factors = sorted((int(product[1]), int(product[3])))
            start, end = note.span()
            if text.startswith(product[4], end):
                end += len(product[4])
            if not _free_on_the_right(text, end):
                continue
            repeated = EQUALS_AT_END.search(text[max(start - 8, 0) : start])  # "6 * 9 = " is 8 characters
            first = start
            if repeated and sorted(map(int, repeated.groups())) == factors:
                first = start - len(repeated[0])
            amount = start
            if text[max(start - 1, 0) : start] in ("$", "£", "€"):
                amount = start - 1  # the $ of `= $<<6*9=54>>54` stays
            is_result = EQUALS_BEFORE.search(text[max(amount - 4, 0) : amount])
            if first < start and _free_on_the_left(text, first):
                spans.append((first, end, *factors))
            elif is_result or _free_on_the_left(text, amount):
                spans.append((start, end, *factors))
        return spans, closed

    def inject(self, text: str) -> tuple[str, int]:
        """(text with every span replaced by its token, number of spans). Nothing outside the spans changes."""
        pieces, last, spans = [], 0, self.spans(text)
        for start, end, a, b in spans:
            pieces += [text[last:start], f"<MUL_{a}_{b}_{a * b}>"]
            last = end
        return "".join([*pieces, text[last:]]), len(spans)

    def expand(self, text: str) -> str:
        """`<MUL_6_9_54>` -> `6*9=54`, its canonical text; what is none of the 45 tokens (`<MUL_9_6_54>`) stays."""
        return TOKEN.sub(_canonical, text)


def _canonical(token: re.Match) -> str:
    a, b, c = map(int, token.groups())
    return f"{a}*{b}={c}" if a <= b and a * b == c else token[0]


def _convert(text: str, injector: MulExpressionInjector, expand: bool, counts: Counter) -> str:
    """One document through inject or expand; adds to counts."""
    counts.update(documents=1, characters=len(text))
    if expand:
        counts["tokens"] += sum(_canonical(token) != token[0] for token in TOKEN.finditer(text))
        return injector.expand(text)
    for start, end, *_ in injector.spans(text):
        form = "with result" if "=" in text[start:end] else "bare"
        if "<<" in text[start:end]:
            form = "annotated"
        counts.update({"tokens": 1, form: 1})
    return injector.inject(text)[0]


def _convert_lines(lines, text_field: str, convert):
    """JSON lines in, JSON lines out (bytes); a line whose text does not change is passed on byte for byte."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            yield line
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            raise ValueError(f"line {number} is not JSON ({error}): repair or remove it.") from None
        if not isinstance(record, dict) or not isinstance(record.get(text_field), str):
            raise ValueError(f"line {number} has no string field {text_field!r}: pass another --text_field.")
        text = convert(record[text_field])
        if text != record[text_field]:
            newline = line[len(line.rstrip(b"\r\n")) :]
            line = json.dumps({**record, text_field: text}).encode() + newline
        yield line


def _filter(args: argparse.Namespace, convert) -> None:
    """The input through `convert` to the output: stdout, or a file that is replaced when all has been written."""
    with open(args.input, "rb") if args.input else sys.stdin.buffer as source:
        if args.format == "jsonl":
            chunks = _convert_lines(source, args.text_field, convert)
        else:
            try:
                text = source.read().decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"not UTF-8 at byte {error.start}: convert it, e.g. with iconv.") from None
            chunks = [convert(text).encode("utf-8")]
        if args.output:
            with disk.replacing(args.output) as f:
                f.writelines(chunks)
            return
        try:
            sys.stdout.buffer.writelines(chunks)
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # the reader of our stdout has seen enough (| head)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main():
    parser = flags.Parser(
        description="Write whole single-digit products as <MUL_a_b_c> tokens. Counts go to stderr.",
        epilog="example: python inject_mul.py --mode strict --format jsonl --text_field answer in.jsonl -o out.jsonl")
    add = parser.add_argument_group("input and output").add_argument
    add("input", nargs="?", help="file to read (default: stdin)")
    add("-o", "--output", help="file to write, renamed into place when complete (default: stdout)")
    add("--format", choices=["text", "jsonl"],
        help="text: the input is one UTF-8 document, held in memory; jsonl: one per line "
             "(default: jsonl for a file *.jsonl, else text)")
    add("--text_field", default="text", help="jsonl: the field to convert (default: text)")
    add = parser.add_argument_group("conversion").add_argument
    add("--mode", choices=["weak", "strict"], default="weak",
        help="weak (default): 6*9 and 6*9=54; strict: only 6*9=54")
    add("--expand", action="store_true", help="the way back, <MUL_6_9_54> to 6*9=54 (default: off)")
    args = parser.parse_args()
    if args.format is None:
        is_jsonl = str(args.input).lower().endswith(".jsonl")
        args.format = "jsonl" if is_jsonl else "text"
    injector, counts = MulExpressionInjector(args.mode), Counter()
    try:
        _filter(args, lambda text: _convert(text, injector, args.expand, counts))
    except OSError as error:
        remedy = "check the space on its disk, and that you may write there"
        if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
            remedy = "name another file"
        fault = f"{error.filename or 'the output'} cannot be read or written ({error.strerror})"
        raise ValueError(f"{fault}: {remedy}.") from error
    done = "expanded"
    if not args.expand:
        forms = [f"{counts[form]:,} {form}" for form in ("bare", "with result", "annotated")]
        done = f"injected ({', '.join(forms)})"
    print(f"{counts['documents']:,} documents, {counts['characters']:,} characters, "
          f"{counts['tokens']:,} tokens {done}", file=sys.stderr)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "inject_mul.py", "stopped; an output file is as it was.")
