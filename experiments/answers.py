"""answers.py owns the table of answers on README's first screen: question, n, effect with interval, verdict, link.

    python experiments/answers.py            # print it
    python experiments/answers.py --write    # put it into README.md, between the two markers

Reads experiments/<date>_<name>/answers.json, which each folder's table.py writes from its committed results, so that no
number stands there by hand. The functions are for those table.py.
"""

import argparse
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
from lab import disk  # noqa: E402

MARKERS = "<!-- answers: python experiments/answers.py --write -->", "<!-- end of answers -->"


def report(arguments: list[str], images: dict[str, Path] | None = None, level: int = 1) -> dict:
    """Runs compare_runs.py, prints its report one heading level deeper, and returns its record.

    images: {name of a plot in the report: file that keeps it}; the other plots are dropped. Raises ValueError when the
    runs are not comparable: a table of those would be no result.
    """
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            status = compare_runs.main([*arguments, "--out", folder])
        record, text = (Path(folder, f"report.{kind}").read_text() for kind in ("json", "md"))
        record = json.loads(record)
        if status:
            raise ValueError(f"compare_runs.py {' '.join(arguments)}: {record['headline']}")
        for name, path in (images or {}).items():
            disk.write_whole(path, Path(folder, name).read_bytes())
    text = re.sub(r"!\[[^]]*\]\([^)]*\)\n+", "", text)
    print(re.sub(r"^#", "#" * (level + 1), text, flags=re.MULTILINE))
    return record


def answer(question: str, row: dict, verdict: str, unit: str, spec: str = "+.4f", wall: dict | None = None) -> dict:
    """A line of the table from a row of compare_runs.py's record ("delta", "low", "high", "n"). wall: the row at equal
    wall-clock, shown beside it with a verdict of its own."""
    effect = f"{row['delta']:{spec}} [{row['low']:{spec}}, {row['high']:{spec}}] {unit}".strip()
    if wall:
        word = "better" if wall["high"] < 0 else "worse" if wall["low"] > 0 else "inconclusive"
        effect += f"; at equal wall-clock {wall['delta']:{spec}} [{wall['low']:{spec}}, {wall['high']:{spec}}]"
        verdict += "" if word == verdict else f"; {word} at equal wall-clock"
    return {"question": question, "n": f"{row['n']} {'pairs' if row.get('paired', True) else 'unpaired'}",
            "effect": effect, "verdict": verdict}


def write(here: Path, answers: list[dict]) -> None:
    disk.write_whole(here / "answers.json", (json.dumps(answers, indent=1) + "\n").encode())


def table() -> str:
    lines = ["| question | n | effect, 95 % interval | verdict |", "|---|---|---|---|"]
    for path in sorted(ROOT.glob("experiments/2*/answers.json")):
        for a in json.loads(path.read_text()):
            link = f"[{a['question']}](experiments/{path.parent.name}/README.md)"
            lines.append(f"| {link} | {a['n']} | {a['effect']} | **{a['verdict']}** |")
    return "\n".join(lines)


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                allow_abbrev=False)
    p.add_argument("--write", action="store_true", help="write the table into README.md (default: print it)")
    args = p.parse_args(argv)
    if not args.write:
        print(table())
        return
    readme = ROOT / "README.md"
    text = readme.read_text()
    if any(text.count(marker) != 1 for marker in MARKERS):
        sys.exit(f"answers.py: README.md must hold each of {' and '.join(MARKERS)} once: put them back.")
    before, rest = text.split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    disk.write_whole(readme, f"{before}{MARKERS[0]}\n{table()}\n{MARKERS[1]}{after}".encode())


if __name__ == "__main__":
    main()
