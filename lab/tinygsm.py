"""tinygsm.py owns TinyGSM: question + Python program -> question + worked steps that end in `#### answer`.

    python -m lab.tinygsm --data tinygsm.jsonl.gz --out tinygsm_steps.jsonl                 # jsonl[.gz, .zst], parquet
    python -m lab.tinygsm --data TinyGSM/TinyGSM --max_examples 1_000_000 --out tinygsm_steps.jsonl      # from the hub

Reads rows {"question", "code"[, "answer"]}; writes {"question", "answer"} lines as GSM8K has them, in order, and prints
how many rows were dropped and why. For the program

    def simple_math_problem() -> int:            the steps are      trays: 6
        trays = 6                                                   tray cost: 9
        tray_cost = 9                                               tray total: 6 * 9 = 54
        tray_total = trays * tray_cost                              result: 54 + 16 - 2 = 68
        result = tray_total + 16 - 2                                #### 68
        return result

programs.py owns these lines and what a program may consist of. Nothing is ever executed by Python.
"""

import json
import math
import signal
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from lab import decontaminate, disk, files, flags, processes, sources
from lab.answers import ASSISTANT, MARK, USER, extract_answer, whole_number
from lab.programs import Evaluator, Refused, check, parse, show

MAX_SOURCE = 8_000  # characters of a program or a question; it bounds the parser's time and memory


class Conversion(NamedTuple):
    """What became of a program: text (with `####`) and answer, or None and why not. reason: "" or a few fixed words."""

    text: str | None
    answer: int | float | None
    reason: str


def convert(question: str, code: str, gold: str | int | float | None = None) -> Conversion:
    """Worked steps of any program, within 1 s and 200 MB. gold: the known answer, if there is one; a program that
    disagrees is refused."""
    try:
        check(isinstance(question, str) and isinstance(code, str), "no question or no code")
        check(max(len(question), len(code)) <= MAX_SOURCE, "too long")
        check(question.strip() and code.strip(), "no question or no code")
        text = f"{question}\n{code}"
        check(not sources.has_lone_surrogate(text), "half a character (a lone surrogate)")
        is_test = decontaminate.test_questions_in([text])
        check(not is_test, "holds a question of GSM8K's test split")
        evaluator = Evaluator()
        answer = evaluator.run(parse(code))
        check(type(answer) in (int, float), "result is not a number")
        check(gold is None or _agrees(answer, gold), "disagrees with the given answer")
        text = "\n".join([*evaluator.lines, f"#### {show(answer)}"])
        # nothing may end the assistant's turn, and the exam must read this answer in the text
        check(USER not in text and ASSISTANT not in text, "a line holds User: or Assistant:")
        check(extract_answer(text) == Fraction(show(answer)), "another answer is read in the steps")
        return Conversion(text, answer, "")
    except Refused as refusal:
        return Conversion(None, None, str(refusal))


def _agrees(answer: int | float, gold: str | int | float) -> bool:
    value = whole_number(str(gold).rpartition(MARK)[2].strip())
    try:
        return value is not None and math.isclose(answer, value, rel_tol=1e-6, abs_tol=1e-9)
    except OverflowError:
        return False


# ----------------------------------------------------------------------------------------------------------------------
# files


def read_rows(data: list[str]) -> Iterator[dict]:
    """Rows of the files that sources.py reads, or of one dataset on the hub (streamed)."""
    if len(data) == 1 and "/" in data[0] and sources.is_hub_name(data[0]):
        [name] = data
        rows = ((f"a row of {name}", row) for row in sources.hub_records(name, None, "train"))
    else:
        columns = "question", "code", "answer"
        paths = files.find(data, sources.RECORD_READERS)
        rows = (item for path in paths for item in sources.read_records(path, columns))
    for place, row in rows:
        if isinstance(row, sources.BadRecord):
            raise ValueError(f"{row}: repair or remove it and run again.") from row
        if not isinstance(row, dict) or "question" not in row or "code" not in row:
            raise ValueError(f"{place} has no fields question and code: give TinyGSM's files.")
        yield row


def convert_files(data: list[str], out: str, max_examples: int = 0) -> Counter:
    """Convert `data` into the file `out`, which appears when it is whole; count the rows by reason ("" = converted).
    max_examples 0: all. After a ValueError / FileNotFoundError / OSError or ctrl-C, `out` is as it was."""
    from tqdm import tqdm

    if max_examples < 0:
        raise ValueError("--max_examples must be 0 or more: pass another number.")
    if not Path(out).parent.is_dir():
        fault = f"--out {out}: its folder does not exist"
        raise FileNotFoundError(f"{fault}; create it or choose another.")
    counts = Counter()
    rows = islice(read_rows(data), max_examples or None)
    with disk.replacing(out) as f:
        bar = tqdm(rows, total=max_examples or None, unit="row", unit_scale=True, disable=None)
        for row in bar:
            text, _, reason = convert(row["question"], row["code"], row.get("answer"))
            counts[reason] += 1
            if text is not None:
                line = {"question": row["question"], "answer": text}
                f.write(json.dumps(line).encode() + b"\n")
        if not counts[""]:
            reasons = [reason for reason, _ in counts.most_common(1)] or ["there are none"]
            raise ValueError(f"none of {counts.total():,} rows of {' '.join(data)} could be converted ({reasons[0]}): "
                             "give TinyGSM's files.")
    return counts


def main(argv: list[str] | None = None) -> None:
    parser = flags.Parser(
        prog="python -m lab.tinygsm",
        description="TinyGSM's programs -> worked steps that end in '#### answer'. Rows that fail are "
        "dropped.",
        epilog="example: python -m lab.tinygsm --data tinygsm.jsonl.gz --out tinygsm_steps.jsonl")
    add = parser.add_argument_group("input and output").add_argument
    add("--data", nargs="+", required=True, metavar="FILE|NAME",
        help="files *.jsonl[.gz, .zst] or *.parquet with question and code (and answer, which is then checked), or "
             "folders or globs of them, or a dataset on the hub such as TinyGSM/TinyGSM (streamed)")
    add("--out", required=True, help="jsonl file of question and answer, replaced when complete")
    add("--max_examples", type=int, default=0, help="rows to read (default: 0 = all)")
    args = parser.parse_args(argv)
    counts = convert_files(args.data, args.out, args.max_examples)
    print(f"{counts.total():,} rows, {counts['']:,} converted into {args.out}")
    for reason, count in counts.most_common():
        if reason:
            print(f"{count:12,}  dropped: {reason}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like ctrl-C: no half file is left behind
    processes.exit_in_a_sentence(main, "tinygsm.py", "stopped; nothing was written.")
