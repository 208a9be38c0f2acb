"""sweep.py runs a list of training commands, one after the other, and skips those that are finished.

    python experiments/sweep.py commands.txt
    for s in 0 1 2; do echo "train_gpt.py --data_dir D --out_dir experiments/runs/x_s$s --seed $s"; done |
        python experiments/sweep.py -

One command per line: a script of this repo (a leading `python` may stand) with its flags, among them --out_dir; `#`
begins a comment; relative paths start at the repo. A run is finished when its folder holds summary.json. `--resume
auto` is added where --resume is not given, so what was interrupted (ctrl-C, SIGTERM, a crash, no power) continues at
its last checkpoint when the sweep is started again. Output goes to <out_dir>.out, whose first line is the command. To
use two cores, start two sweeps on two lists.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent


def read_commands(text: str, source: str) -> list[tuple[Path, list[str]]]:
    """[(run folder, arguments)] of a list. ValueError names the line that cannot be used."""
    found: dict[Path, list[str]] = {}
    for i, line in enumerate(text.splitlines(), 1):
        where = f"{source}, line {i}"
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ValueError(f"{where}: {error}: close the quotes.") from None
        if not words:
            continue
        if words[0] in ("python", "python3"):
            words = words[1:]
        if not words or not words[0].endswith(".py"):
            raise ValueError(f"{where} starts with no script: write train_gpt.py or sft.py and its flags.")
        given = [a.split("=", 1)[1] for a in words if a.startswith("--out_dir=")]
        given += [b for a, b in zip(words, words[1:], strict=False) if a == "--out_dir"]
        if len(given) != 1 or not given[0]:
            raise ValueError(f"{where} has {len(given)} --out_dir: give each run one folder of its own.")
        folder = Path(given[0])
        if folder in found:
            raise ValueError(f"{where} uses {folder} a second time: give each run a folder of its own.")
        found[folder] = words
    if not found:
        raise ValueError(f"{source} holds no command: write one per line.")
    return list(found.items())


def first_line(log: Path) -> str:
    return log.read_text(errors="replace").split("\n", 1)[0]


def sweep(commands: list[tuple[Path, list[str]]]) -> int:
    """Runs what is not finished. Exit status: 0 all finished, 1 a run failed, 130 interrupted (start it again)."""
    stop = {"asked": False, "child": None}

    def ask(number, frame):
        stop["asked"] = True
        if stop["child"] is not None:
            stop["child"].send_signal(signal.SIGTERM)  # the run saves itself and ends

    handlers = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    bar = tqdm(commands, unit="run", disable=None)
    try:
        for folder, words in bar:
            bar.set_postfix_str(folder.name)
            log, line = folder.with_name(folder.name + ".out"), "$ " + shlex.join(words)
            if folder.exists() and log.exists() and (before := first_line(log)) != line:
                raise ValueError(f"{folder} was begun by another command ({before[2:]}): delete it to run it anew, "
                                 "or choose another --out_dir.")
            if (folder / "summary.json").exists():
                continue
            if "--resume" not in words and not any(w.startswith("--resume=") for w in words):
                words = [*words, "--resume", "auto"]
            folder.parent.mkdir(parents=True, exist_ok=True)
            begun = time.perf_counter()
            with open(log, "w") as out:
                out.write(line + "\n")
                out.flush()
                # a session of its own: the terminal's ctrl-C reaches this process alone, which passes it on once
                stop["child"] = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=out, stderr=out,
                                                 stdin=subprocess.DEVNULL, start_new_session=True)
                if stop["asked"]:
                    stop["child"].send_signal(signal.SIGTERM)
                status = stop["child"].wait()
                stop["child"] = None
            said = [s for s in log.read_text(errors="replace").splitlines() if s.strip()]
            done = (folder / "summary.json").exists()
            if stop["asked"]:
                tqdm.write(f"{folder.name}: {'finished' if done else 'saved'}; start the sweep again to go on.")
                return 130
            if status or not done:
                tqdm.write("\n".join(said[-5:]))
                raise ValueError(f"{folder.name} ended with status {status}, unfinished (all it said is in {log}): "
                                 "repair it and start the sweep again.")
            tqdm.write(f"{folder.name}  {time.perf_counter() - begun:.0f} s  {said[-1]}")
        return 0
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                allow_abbrev=False)
    p.add_argument("list", help="file with a command per line (- = standard input)")
    p.add_argument("--dry_run", action="store_true", help="print what is left to run, and run nothing")
    args = p.parse_args(argv)
    try:
        source = "standard input" if args.list == "-" else args.list
        text = sys.stdin.read() if args.list == "-" else Path(args.list).read_text()
        commands = read_commands(text, source)
        if args.dry_run:
            left = [words for folder, words in commands if not (ROOT / folder / "summary.json").exists()]
            print("\n".join(map(shlex.join, left) if left else ["all finished"]))
            return 0
        return sweep([(ROOT / folder, words) for folder, words in commands])
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"sweep.py: {args.list} cannot be read ({error}): name a file with a command per line.")
    except ValueError as error:
        sys.exit(f"sweep.py: {error}")


if __name__ == "__main__":
    sys.exit(main())
