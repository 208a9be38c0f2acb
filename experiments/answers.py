"""answers.py owns the table of answers on README's first screen: question, n, effect with interval, p, verdict, link.

    python experiments/answers.py            # print it
    python experiments/answers.py --write    # put it into experiments/README.md, and its short form into README.md

Reads experiments/<date>_<name>/answers.json, which each folder's table.py writes from its committed results, so that
no number in README is typed by hand. `report`, `answer`, `write` and what prints a grid of learning rates are for those
table.py. Who reads many answers at once would meet chance findings among them, so the table's verdicts are by Holm over
all of its tests; a report's own correction is for its own tests.
"""

import contextlib
import io
import json
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import compare_runs  # noqa: E402
from lab import ab_page, ab_report, ab_verdict, disk, flags, processes  # noqa: E402
from lab.schema import NUMBER, TEXT, read_json  # noqa: E402

ALPHA = 0.05
ANSWERS = [{"question": TEXT, "n": TEXT, "effect": TEXT, "tests": [{"p": NUMBER, "verdict": TEXT}]}]
START, END = "<!-- answers: python experiments/answers.py --write -->", "<!-- end of answers -->"


def report(arguments: list[str], images: dict[str, Path], level: int = 1, script=compare_runs) -> dict:
    """Runs compare_runs.py, or lengths.py as `script`, prints its report with every heading `level` levels deeper, but
    without what belongs to one machine (paths, commands), and returns its record.

    images: {name of a plot in the report: file that keeps it}; the other plots are dropped. Raises ValueError when the
    runs are not comparable: a table of those would be no result.
    """
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            status = script.main([*arguments, "--out", folder])
        record = json.loads(Path(folder, "report.json").read_text())
        text = Path(folder, "report.md").read_text(encoding="utf-8")
        if status:
            raise ValueError(f"{script.__name__}.py {' '.join(arguments)}: {record['headline']}")
        for name, path in images.items():
            disk.write_whole(path, Path(folder, name).read_bytes())
    text = re.sub(r"!\[[^]]*\]\([^)]*\)\n+", "", text.partition(f"## {ab_page.LAST}")[0])
    print(re.sub(r"^#", "#" * (level + 1), text, flags=re.MULTILINE))
    return record


def interval(row: dict, spec: str) -> str:
    delta, low, high = (format(row[k], spec) for k in ("delta", "low", "high"))
    return f"{delta} [{low}, {high}]"


def answer(question: str, row: dict, unit: str, spec: str = "+.4f", wall: dict | None = None) -> dict:
    """A line of the table from a row of compare_runs.py's record ("delta", "low", "high", "n", "p_raw", "verdict").

    wall: the row at equal wall-clock, printed beside it, a test of its own.
    """
    effect = f"{interval(row, spec)} {unit}".strip()
    rows = [row]
    if wall:
        effect += f"; at equal wall-clock {interval(wall, spec)}"
        rows.append(wall)
    # twelve digits: the last ones depend on numpy, and would make another file
    tests = [{"p": float(f"{row['p_raw']:.12g}"), "verdict": row["verdict"]} for row in rows]
    n = f"{row['n']} pairs"
    if not row.get("paired", True):
        n = f"{row['n_a']} against {row['n_b']} runs"
    return {"question": question, "n": n, "effect": effect, "tests": tests}


def best_rate(by_rate: dict[float, float]) -> float:
    """The learning rate of the lowest loss, of {learning rate: loss}."""
    return min(by_rate, key=by_rate.get)


def print_best(grid: dict[str, dict[float, float]]) -> None:
    """Each row of a grid and its best learning rate, a line each, for the run.sh that trains them next."""
    for row, by_rate in grid.items():
        print(row, f"{best_rate(by_rate):g}")


def print_grid(grid: dict[str, dict[float, float]], head: str) -> None:
    """A table of {"gpt2 adamw": {learning rate: loss}, ...}, each row's best in bold. head: "arch optimizer"."""
    rates = sorted({rate for by_rate in grid.values() for rate in by_rate})
    heads = [*head.split(), *(f"{rate:g}" for rate in rates)]
    print(f"| {' | '.join(heads)} |\n" + "|---" * len(head.split()) + "|---:" * len(rates) + "|")
    for row, by_rate in grid.items():
        cells = dict.fromkeys(rates, "") | {rate: f"{loss:.4f}" for rate, loss in by_rate.items()}
        best, note = best_rate(by_rate), ""
        cells[best] = f"**{cells[best]}**"
        if best in (min(by_rate), max(by_rate)):
            note = " (the grid's edge)"
        print(f"| {row.replace(' ', ' | ')}{note} | {' | '.join(cells.values())} |")


def write(here: Path, answers: list[dict]) -> None:
    disk.write_whole(here / "answers.json", (json.dumps(answers, indent=1) + "\n").encode())


def word(test: dict) -> str:
    """A test's verdict by the table's correction, and its own report's where that is another one."""
    own = test["verdict"]
    clear = own.startswith(("better", "worse", "equivalent"))
    if clear and not test["p_table"] < ALPHA:
        return f"**inconclusive** (its own report: {own})"
    return f"**{own}**"


def read_answers() -> list[dict]:
    """All answers, each with its folder's README as "link" and, in its tests, the p by Holm over all as "p_table"."""
    answers = []
    for path in sorted(ROOT.glob("experiments/2*/answers.json")):
        for answer in read_json(path, ANSWERS, f"make it again with python experiments/{path.parent.name}/table.py"):
            answers.append({**answer, "link": f"{path.parent.name}/README.md"})
    tests = [test for answer in answers for test in answer["tests"]]
    for test, p in zip(tests, ab_verdict.holm([test["p"] for test in tests]), strict=True):
        test["p_table"] = p
    return answers


def table() -> str:
    """Every answer with its p, for the log."""
    answers = read_answers()
    n_tests = sum(len(answer["tests"]) for answer in answers)
    head = f"p, and by Holm over the table's {n_tests} tests"
    lines = [f"| question | n | effect, 95 % interval (uncorrected) | {head} | verdict |", "|---|---|---|---|---|"]
    for a in answers:
        first, *wall = a["tests"]
        both = [map(ab_report.form_p, (test["p"], test["p_table"])) for test in a["tests"]]
        p = "; ".join(map(", ".join, both))
        verdict = word(first)
        if wall and word(wall[0]) != verdict:
            verdict += f"; at equal wall-clock {word(wall[0])}"
        lines.append(f"| [{a['question']}]({a['link']}) | {a['n']} | {a['effect']} | {p} | {verdict} |")
    return "\n".join(lines)


def short_table() -> str:
    """Each answer's own effect and verdicts, for README: its own report's, and by Holm over all tests of the log, which
    are more than these, as an answer with "log_only" stands in the log alone."""
    lines = ["| question | effect, 95 % interval | its report | over all tests |", "|---|---|---|---|"]
    for a in read_answers():
        if a.get("log_only"):
            continue
        test, effect = a["tests"][0], a["effect"].partition("; at equal")[0]
        overall = "inconclusive"
        if test["p_table"] < ALPHA:
            overall = test["verdict"]
        link = f"[{a['question']}](experiments/{a['link']})"
        lines.append(f"| {link} | {effect} | {test['verdict']} | {overall} |")
    return "\n".join(lines)


TABLES = {"README.md": short_table, "experiments/README.md": table}


def main(argv=None):
    p = flags.Parser(description=__doc__)
    p.add_argument("--write", action="store_true", help="write both tables into their files (default: print one)")
    args = p.parse_args(argv)
    if not args.write:
        ab_report.show(table())
        return
    for name, make in TABLES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        if text.count(START) != 1 or text.count(END) != 1:
            sys.exit(f"answers.py: {name} must hold each of {START} and {END} once: put them back.")
        before, rest = text.split(START)
        _, after = rest.split(END)
        try:
            disk.write_whole(ROOT / name, f"{before}{START}\n{make()}\n{END}{after}".encode())
        except OSError as error:
            why, remedy = disk.reason_of(error), disk.remedy_of(error)
            sys.exit(f"answers.py: {name} cannot be written ({why}): {remedy}, or take the file back.")


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "answers.py", "stopped.")
