"""sweep.py runs a list of training commands, one or several at a time, and skips those that are finished.

    python experiments/sweep.py commands.txt
    OMP_NUM_THREADS=1 python experiments/sweep.py commands.txt --jobs 2     # two at a time, a core each
    python experiments/sweep.py commands.txt --launcher 'torchrun --standalone --nproc_per_node=8'
    for s in 0 1 2; do echo "train_gpt.py --data_dir D --out_dir experiments/runs/x_s$s --seed $s"; done |
        python experiments/sweep.py -

One command per line: a script of this repo (`python` in front of it is allowed) with its flags, among them --out_dir;
`#` begins a comment; relative paths start at the repo. A run is finished when its folder holds summary.json. `--resume
auto` is added where --resume is not given, so what was interrupted (ctrl-C, SIGTERM, a crash, no power) continues at
its last checkpoint when the sweep is started again. Each run's output goes to <out_dir>.out, whose first line is the
command. After a failure nothing new is started, unless --keep_going is given; the runs beside it go on to their end.
A run whose loss was not finite has diverged, which is a result: the sweep goes on, and never starts it again.
The last lines are a table: what each run came to.
"""

import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from lab import disk, flags, processes, run_state, schema, snapshots  # noqa: E402

POLL_SECONDS = 0.05
LAST_WORDS = 5  # lines of a failed run's output that are printed


# ----------------------------------------------------------------------------------------------------------------------
# the list


def out_dirs(words: list[str]) -> list[str]:
    folders = [word.removeprefix("--out_dir=") for word in words if word.startswith("--out_dir=")]
    for flag, value in zip(words, words[1:], strict=False):
        if flag == "--out_dir":
            folders.append(value)
    return folders


def read_list(name: str) -> dict[Path, list[str]]:
    """read_commands of a file, or of standard input where it is called -. ValueError when it cannot be read."""
    try:
        if name == "-":
            return read_commands(sys.stdin.read(), "standard input")
        return read_commands(Path(name).read_text(encoding="utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} cannot be read ({error}): name a file with a command per line.") from None


def read_commands(text: str, source: str) -> dict[Path, list[str]]:
    """{run folder: arguments} of a list, in its order. ValueError names the line that cannot be used."""
    commands: dict[Path, list[str]] = {}
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
        folders = out_dirs(words)
        if len(folders) != 1 or not folders[0]:
            raise ValueError(f"{where} has {len(folders)} --out_dir: give each run one folder of its own.")
        folder = ROOT / folders[0]
        if folder in commands:
            raise ValueError(f"{where} uses {folders[0]} a second time: give each run a folder of its own.")
        commands[folder] = words
    if not commands:
        raise ValueError(f"{source} holds no command: write one per line.")
    return commands


def log_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".out")


def read_log(folder: Path) -> list[str]:
    return log_of(folder).read_text(encoding="utf-8", errors="replace").split("\n")


def first_line(words: list[str]) -> str:
    return f"$ {shlex.join(words)}"


def is_finished(folder: Path) -> bool:
    return (folder / "summary.json").exists()


def has_ended(folder: Path) -> bool:
    """Whether a run is not to be started: finished, or diverged, as it would do again."""
    return is_finished(folder) or run_state.has_diverged(folder)


def refuse_other_commands(commands: dict[Path, list[str]]) -> None:
    """ValueError when a folder was begun by another command, as its result would not be this one's, or when a run that
    an earlier sweep has left behind still writes into it."""
    for folder, words in commands.items():
        if not folder.exists():
            continue
        state, process = disk.holder(folder)
        if state == "held":
            raise ValueError(f"process {process['pid']} still writes into {folder}: wait for it or stop it, then start "
                             "the sweep again.")
        before = ""
        if log_of(folder).exists():
            before = read_log(folder)[0]
            is_other = before != first_line(words)
        else:  # not begun by a sweep
            argv = schema.read_json(folder / "config.json").get("argv", []) if is_finished(folder) else []
            before = f"$ {shlex.join(argv)}"
            is_other = argv != [] and without_folder(argv) != without_folder(words)
        if is_other:
            raise ValueError(f"{folder} was begun by another command ({before[2:]}): delete it to run it anew, "
                             "or choose another --out_dir.")


def without_folder(words: list[str]) -> list[list[str]]:
    """A command's flags in any order, without its script, --out_dir and --resume, by which a run is found."""
    given = []  # each flag with its values
    for word in words[1:]:
        pieces = word.split("=", 1) if word.startswith("--") else [word]
        if word.startswith("--") or not given:
            given.append([])
        given[-1] += pieces
    return sorted(flag for flag in given if flag[0] not in ("--out_dir", "--resume"))


# ----------------------------------------------------------------------------------------------------------------------
# the runs


def start(folder: Path, words: list[str], launcher: list[str]) -> subprocess.Popen:
    resumes = any(word.split("=")[0] == "--resume" for word in words)
    arguments = list(words)
    if not resumes:
        arguments += ["--resume", "auto"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(log_of(folder), "w", encoding="utf-8") as log:
        log.write(first_line(words) + "\n")
        log.flush()
        # a session of its own: the terminal's ctrl-C reaches the sweep alone, which passes it on once
        return subprocess.Popen([*launcher, *arguments], cwd=ROOT, stdout=log, stderr=log,
                                stdin=subprocess.DEVNULL, start_new_session=True)


def stop(children) -> None:
    """Asks every run to save itself and leave, and waits until all have."""
    children = list(children)
    for child in children:
        child.send_signal(signal.SIGTERM)
    for child in children:
        child.wait()


def closing_table(commands: dict, seconds: dict[Path, float], failed: dict[Path, tuple]) -> str:
    """A line per run: its name, what it came to, its seconds in this sweep, its last loss or why it failed."""
    rows = [("run", "state", "time", "result")]
    for folder in commands:
        state, words = "not started", ""
        if folder in failed:
            state, words = "failed", "status {}: {}".format(*failed[folder])
        elif is_finished(folder):
            state, words = "finished", final_loss(folder)
        elif run_state.has_diverged(folder):
            state, words = "diverged", run_state.last_line(folder / "log.txt").removeprefix(run_state.DIVERGED)[:100]
        elif folder in seconds:
            state = "interrupted"
        time_taken = ""
        if folder in seconds:
            time_taken = f"{seconds[folder]:.0f} s"
        rows.append((folder.name, state, time_taken, words))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows)


def final_loss(folder: Path) -> str:
    summary = schema.read_json(folder / "summary.json")
    numbers = [(name, summary.get(name)) for name in ("final_val_loss", "final_train_loss")]
    known = [f"{name} {number:.4f}" for name, number in numbers if isinstance(number, float)]
    return ", ".join(known)


def sweep(commands: dict[Path, list[str]], jobs: int, keep_going: bool = False, launcher=(sys.executable,)) -> int:
    """Runs what has not ended, `jobs` at a time, each as `launcher script.py flags`. Exit status: 0 all finished or
    diverged, 130 interrupted (start it again).

    Raises ValueError that names the runs which failed, the first of which ends the sweep unless keep_going."""
    interrupted = False

    def ask(number, frame):
        nonlocal interrupted
        interrupted = True

    numbers = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # of a closed terminal; under nohup it asks nothing
    if hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN:
        numbers.append(hang_up)
    handlers = {s: signal.signal(s, ask) for s in numbers}
    waiting = [folder for folder in commands if not has_ended(folder)]
    older = [folder.name for folder in commands if is_finished(folder) and snapshots.other_network(folder)]
    if older:
        print(f"NOTE: finished by the code of another network, and not trained anew: {', '.join(older)}. Name other "
              "folders for what you have changed.", file=sys.stderr)
    bar = tqdm(total=len(commands), initial=len(commands) - len(waiting), unit="run", disable=None)
    running: dict[Path, subprocess.Popen] = {}
    started: dict[Path, float] = {}
    seconds: dict[Path, float] = {}
    failed: dict[Path, tuple[int, str]] = {}  # status, last line of the output
    try:
        while running or waiting:
            if interrupted:
                stop(running.values())
            elif failed and not keep_going:
                waiting.clear()
            elif waiting and len(running) < jobs:
                folder = waiting.pop(0)
                running[folder] = start(folder, commands[folder], launcher)
                started[folder] = time.perf_counter()
                bar.set_postfix_str(", ".join(f.name for f in running))
                continue

            for folder in [f for f, child in running.items() if child.poll() is not None]:
                status = running.pop(folder).returncode
                output = [line for line in read_log(folder) if line.strip()]
                seconds[folder] = time.perf_counter() - started[folder]
                if is_finished(folder) and status == 0:
                    bar.update()
                    tqdm.write(f"{folder.name}  {seconds[folder]:.0f} s  {output[-1]}")
                elif interrupted:
                    tqdm.write(f"{folder.name}: interrupted")
                elif run_state.has_diverged(folder):
                    bar.update()
                    tqdm.write(f"{folder.name}  {seconds[folder]:.0f} s  {output[-1]}")
                else:
                    tqdm.write("\n".join(output[-LAST_WORDS:]))
                    failed[folder] = status, output[-1][:100]
            if interrupted:
                break
            time.sleep(POLL_SECONDS)
        bar.close()
        print(closing_table(commands, seconds, failed))
        diverged = [folder.name for folder in commands if run_state.has_diverged(folder)]
        if diverged:
            print(f"NOTE: diverged, and not trained again: {', '.join(diverged)}; {run_state.ANEW}, in another folder.",
                  file=sys.stderr)
        if interrupted:
            print("interrupted: start the sweep again to go on.")
            return 130
        if failed:
            faults = []
            for folder, (status, _) in failed.items():
                faults.append(f"{folder.name} ended with status {status}, unfinished (its output is in "
                              f"{log_of(folder)})")
            raise ValueError(f"{'; '.join(faults)}: repair it and start the sweep again.")
        return 0
    finally:
        stop(running.values())
        bar.close()
        for s, handler in handlers.items():
            signal.signal(s, handler)


def main(argv=None) -> int:
    p = flags.Parser(description=__doc__)
    p.add_argument("list", help="file with a command per line (- = standard input)")
    p.add_argument("--jobs", type=int, default=1, help="commands at a time (default 1)")
    p.add_argument("--launcher", default="", help="what starts each script (default: this Python)")
    p.add_argument("--keep_going", action="store_true", help="go on when one has failed")
    p.add_argument("--dry_run", action="store_true", help="print what is left to run, and run nothing")
    args = p.parse_args(argv)
    if args.jobs < 1:
        sys.exit(f"sweep.py: --jobs {args.jobs} runs nothing: give 1 or more.")
    try:
        launcher = shlex.split(args.launcher) or [sys.executable]
    except ValueError as error:
        p.error(f"--launcher {args.launcher}: {error}: close the quotes.")
    if not (shutil.which(launcher[0]) or (ROOT / launcher[0]).exists()):
        p.error(f"--launcher {args.launcher}: there is no program {launcher[0]}: install it, or write its whole path.")
    try:
        commands = read_list(args.list)
        if args.dry_run:
            left = [shlex.join(words) for folder, words in commands.items() if not has_ended(folder)]
            print("\n".join(left or ["all finished"]))
            return 0
        refuse_other_commands(commands)
        return sweep(commands, args.jobs, args.keep_going, launcher)
    except (OSError, ValueError) as error:
        sys.exit(f"sweep.py: {error}")


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "sweep.py", "stopped before a run began.")
