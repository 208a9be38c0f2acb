"""golden.py hashes every number that a change of the code must not change, so that two checkouts can be compared.

    python experiments/golden.py --out new.json --jobs 2           # hash this checkout
    python experiments/golden.py --compare old.json new.json       # exit status 1 and a list if a number changed
    python experiments/golden.py --against <commit> --jobs 2       # hash that commit, too, here and now, and compare
    python experiments/golden.py --out old.json --checkout DIR     # hash another checkout with this script

Hashed are the files that the scripts write when they are called with tiny settings on a CPU with one thread: datasets
(data), training runs (train), fine-tuning (sft), records of the evals (evals), and the reports of compare_runs.py over
those runs and over the committed ones (report). Times, dates, commits and versions are left out. The scripts' command
lines (golden_tasks.py) are all that is known of the repo, and nothing of it is imported, so a change of its modules
does not concern this file. About 3 CPU-minutes a side.

Losses and weights depend on the processor and on torch to the last bit, so hashes of two machines must not be compared;
--against makes both sides here. It also lets the new code open what the old one wrote: checkpoints, runs, and the
committed records (keys that begin with `opens/`). A key that the new side lacks is a fault. A key that only the new
side has is named and is none: a file, a column or a record may be added.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue

import golden_tasks
import numpy as np
from golden_tasks import MEASURED, STAGES, Task
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
OPENED = ("sft", "evals", "report")  # what --against repeats with the new code on datasets and runs of the old one
TABLES = "report/tables"  # the committed tables, which no command of golden_tasks.py writes
LONGEST_TEXT = 200_000  # characters of a content that are kept beside its hash, to show where it differs

# ----------------------------------------------------------------------------------------------------------------------
# what is hashed

# beside what is measured; the columns of results_row are hashed one by one
LEFT_OUT = re.compile(
    MEASURED.pattern + r"|code|argv|versions|hardware|gpu_name|results_row|transformers_version"
)
SKIPPED = {".pt", ".png", ".html", ".diff", ".lock"}
UNREAD = {"manifest.json", "trainer.json"}  # hashes of files that hold times; a clock
DERIVED = "seq_len n_head n_inner muon_lr eval_batch_size warmup_iters max_train_steps".split()
CONFIG = "model parameters flops_per_token tokens_per_step data init benchmarks".split()


def without_measured(value):
    """A JSON value without what LEFT_OUT names; of warnings, which are sentences, their number stays."""
    if isinstance(value, list):
        return [without_measured(v) for v in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, v in value.items():
        if name == "warnings":
            kept[name] = len(v)
        elif not LEFT_OUT.fullmatch(name):
            kept[name] = without_measured(v)
    return kept


def as_text(value) -> str:
    return json.dumps(value, indent=0, sort_keys=True)


def leaves(value, path: str = ""):
    """(path, value) of every number, truth value and null in a JSON value."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield from leaves(value[key], f"{path}/{key}")
    elif isinstance(value, list):
        for i, v in enumerate(value):
            yield from leaves(v, f"{path}/{i}")
    elif not isinstance(value, str):
        yield path, value


def read_json(path: Path) -> dict[str, str]:
    return {"": as_text(without_measured(json.loads(path.read_text())))}


def read_jsonl(path: Path) -> dict[str, str]:
    records = [without_measured(json.loads(line)) for line in path.read_text().splitlines()]
    return {"": "\n".join(json.dumps(record, sort_keys=True) for record in records)}


def read_config(path: Path) -> dict[str, str]:
    """The parts of a run's config.json that hold numbers; of the flags, those that are derived."""
    config = json.loads(path.read_text())
    if "flags" not in config:
        return read_json(path)
    parts = {name: config[name] for name in CONFIG if name in config}
    parts["flags"] = {name: config["flags"][name] for name in DERIVED if name in config["flags"]}
    return {f"/{name}": as_text(without_measured(part)) for name, part in parts.items()}


def read_report(path: Path) -> dict[str, str]:
    """A report's record, and its numbers alone, which a change of words leaves as they are."""
    record = json.loads(path.read_text())
    numbers = "\n".join(f"{where} {value!r}" for where, value in leaves(record))
    return {"": as_text(record), "/numbers": numbers}


def read_npz(path: Path) -> dict[str, str]:
    lines = []
    with np.load(path) as arrays:
        for name in sorted(arrays):
            array = arrays[name]
            lines.append(f"{name} {array.dtype} {array.shape} {sha256(array.tobytes())}")
    return {"": "\n".join(lines)}


def read_safetensors(path: Path) -> dict[str, str]:
    """Names, types, shapes and hashes of the tensors; not the metadata."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    lines = []
    for name, entry in sorted(header.items()):
        if name != "__metadata__":
            begin, end = (start + offset for offset in entry["data_offsets"])
            lines.append(f"{name} {entry['dtype']} {entry['shape']} {sha256(content[begin:end])}")
    return {"": "\n".join(lines)}


def read_log(path: Path) -> dict[str, str]:
    """What the model wrote; everything else in a log is in the records, too."""
    samples = re.findall(r"\| sample (.*)", path.read_text())
    if not samples:
        return {}
    return {"/samples": "\n".join(samples)}


def read_text(path: Path) -> dict[str, str]:
    return {"": path.read_text()}


def read_bytes(path: Path) -> dict[str, bytes]:
    return {"": path.read_bytes()}


READERS = {
    "config.json": read_config,
    "report.json": read_report,
    "log.txt": read_log,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".md": read_text,
    ".npz": read_npz,
    ".safetensors": read_safetensors,
}


def contents(path: Path) -> dict[str, str | bytes]:
    """{name: what is hashed} of the files of a task's folder, or of the one file that a task has written."""
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
    table: dict[str, str | bytes] = {}
    for file in files:
        name = "output"
        if file != path:
            name = file.relative_to(path).as_posix()
        if file.suffix in SKIPPED or file.name in UNREAD or name.startswith("code/"):
            continue
        read = READERS.get(file.name) or READERS.get(file.suffix, read_bytes)
        for part, content in read(file).items():
            table[f"{name}{part}"] = content
    return table


def columns_of(path: Path) -> dict[str, str]:
    """{column: its cells, a line per run} of a results.csv."""
    rows = golden_tasks.read_csv(path)
    names = [name for name in rows[0] if not LEFT_OUT.fullmatch(name)]
    return {name: "\n".join(f"{row['run_id']} {row[name]}" for row in rows) for name in names}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry_of(content: str | bytes) -> dict:
    """{"sha256", "text" if there is one and it is not long}."""
    if isinstance(content, bytes):
        return {"sha256": sha256(content)}
    entry = {"sha256": sha256(content.encode())}
    if len(content) <= LONGEST_TEXT:
        entry["text"] = content
    return entry


# ----------------------------------------------------------------------------------------------------------------------
# running

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Worker:
    """A process that runs a checkout's scripts one after the other: torch is imported once, not a hundred times."""

    def __init__(self, checkout: Path, work: Path, number: int):
        self.log = work / f"worker{number}.log"
        environment = {**os.environ, **ENVIRONMENT}
        command = [sys.executable, Path(__file__).resolve(), "--worker", checkout]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=work,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def run(self, script: str, words: list[str]) -> str:
        """The exit status as text, or the sentence that the script ended with."""
        self.process.stdin.write(json.dumps([script, *words]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the process that ran {script}.py {shlex.join(words)} is gone:\n{tail}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def work_off(checkout: str) -> int:
    """The worker's side: a JSON line [script, flags...] in, a JSON line with the exit status out."""
    sys.path[0] = checkout
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what scripts print goes to the log
    for line in sys.stdin:
        script, *words = json.loads(line)
        path = f"{checkout}/{script}.py"
        sys.argv = [path, *words]
        status = 0
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException as error:
            traceback.print_exc()
            place = traceback.extract_tb(error.__traceback__)[-1]
            status = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        sys.stdout.flush()
        answers.write(json.dumps(str(status)) + "\n")
        answers.flush()
    return 0


def run_tasks(checkout: Path, work: Path, tasks: list[Task], before: dict, jobs: int, label: str) -> dict:
    """Run the tasks, each after those of `before`; {key: {name: content}} of what they wrote."""
    named = {word.split("/")[0] for task in tasks for word in task.words if word != task.folder}
    prepared = threading.Lock()
    workers: SimpleQueue = SimpleQueue()
    started = [Worker(checkout, work, i) for i in range(jobs)]
    for worker in started:
        workers.put(worker)

    def run(task: Task) -> dict:
        if task.prepare:
            with prepared:
                task.prepare(work, task)
        if not task.script:
            return {}
        worker = workers.get()
        try:
            table = {"status": worker.run(task.script, task.words)}
        finally:
            workers.put(worker)
        out = work / task.folder
        if out.exists():
            table |= contents(out)
        if task.folder not in named:
            shutil.rmtree(out / "ckpt", ignore_errors=True)  # 20 MB each
        return table

    results: dict[str, dict] = {}
    left = {task.key: task for task in tasks}
    running = {}
    bar = tqdm(total=len(tasks), desc=label, unit="task", dynamic_ncols=True, disable=None)
    with bar, ThreadPoolExecutor(jobs) as pool:
        try:
            while left or running:
                ready = [key for key in left if before[key] <= set(results)]
                for key in ready[: jobs - len(running)]:
                    running[pool.submit(run, left.pop(key))] = key
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    key = running.pop(future)
                    results[key] = future.result()
                    bar.set_postfix_str(key)
                    bar.update()
        finally:
            for worker in started:
                worker.close()
    return results


def golden(checkout: Path, work: Path, stages: list[str], jobs: int) -> dict:
    """{key: {"sha256", "text"}} of the stages of a checkout."""
    work.mkdir()
    golden_tasks.write_sources(work / "sources")
    golden_tasks.unpack_records(checkout, work / "records")
    tasks = golden_tasks.all_tasks()
    before = golden_tasks.dependencies(tasks)
    wanted = {task.key for task in tasks if task.stage in stages}
    needed = golden_tasks.closure(before, wanted)
    tasks = [task for task in tasks if task.key in needed]
    results = run_tasks(checkout, work, tasks, before, jobs, "golden")

    table = entries(results, wanted)
    if "train" in stages:
        for name, cells in columns_of(work / "results.csv").items():
            table[f"train/results.csv/{name}"] = entry_of(cells)
    if "report" in stages:
        for path in sorted((checkout / "experiments").glob("2*/*")):
            if path.name in ("table.md", "answers.json"):
                name = f"{path.parent.name}/{path.name}"
                table[f"{TABLES}/{name}"] = entry_of(path.read_text())
    return table


def opens(checkout: Path, work: Path, old: Path, stages: list[str], jobs: int) -> dict:
    """As golden(), of what the checkout makes of the datasets, runs and records in the work folder `old`."""
    written = [f"{stage}_*" for stage in OPENED]
    ignored = shutil.ignore_patterns(*written, "*.log")
    shutil.copytree(old, work, copy_function=os.link, ignore=ignored)
    every = golden_tasks.all_tasks()
    repeated = {task.key for task in every if task.stage in OPENED}
    wanted = {task.key for task in every if task.stage in stages} & repeated
    before = golden_tasks.dependencies(every)
    if not wanted:
        return {}
    needed = golden_tasks.closure(before, wanted) & repeated
    before = {key: before[key] & repeated for key in needed}
    tasks = [task for task in every if task.key in needed]
    return entries(run_tasks(checkout, work, tasks, before, jobs, "opens"), wanted)


def entries(results: dict, keys: set[str]) -> dict:
    table = {}
    for key in sorted(keys):
        for name, content in results[key].items():
            table[f"{key}/{name}"] = entry_of(content)
    return table


# ----------------------------------------------------------------------------------------------------------------------
# comparing


def compare(old: dict, new: dict) -> tuple[list[str], list[str]]:
    """(a paragraph per key that differs or is gone, keys that only `new` has)."""
    faults = []
    for key in sorted(old):
        if key not in new:
            faults.append(f"GONE     {key}")
        elif old[key]["sha256"] != new[key]["sha256"]:
            where = first_difference(old[key].get("text"), new[key].get("text"))
            faults.append(f"DIFFERS  {key}{where}")
    return faults, sorted(set(new) - set(old))


def first_difference(old: str | None, new: str | None) -> str:
    """Where two texts begin to differ, as lines to print; '' when one of them is not known."""
    if old is None or new is None:
        return ""
    pairs = itertools.zip_longest(old.split("\n"), new.split("\n"), fillvalue="(no line)")
    for number, (a, b) in enumerate(pairs, 1):
        if a != b:
            start = max(0, len(os.path.commonprefix([a, b])) - 60)
            window = slice(start, start + 130)
            return f"\n         line {number}: {a[window]}\n         now: {b[window]}"
    return ""


def show(old: dict, new: dict) -> int:
    """Print what differs; the exit status."""
    faults, added = compare(old, new)
    for line in [*(f"added    {key}" for key in added), *faults]:
        print(line)
    print(f"{len(old) - len(faults):,} of {len(old):,} contents are equal; {len(faults)} are not; {len(added)} are new")
    return int(bool(faults))


def warn_of_failures(table: dict) -> None:
    """A command that ends otherwise than with 0 or 2 (not comparable) has hashed less than it should have."""
    for key, entry in table.items():
        if key.endswith("/status") and entry["text"] not in ("0", "2"):
            print(f"WARNING: {key.removesuffix('/status')} failed: {entry['text']}")


def machine() -> dict:
    from importlib.metadata import version

    cpu = ""
    if Path("/proc/cpuinfo").exists():
        cpu = next((line.strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    packages = {name: version(name) for name in ("torch", "numpy")}
    return {"cpu": cpu, "python": sys.version.split()[0], **packages}


def read_golden(path: str) -> dict:
    try:
        table = json.loads(Path(path).read_text())
        entries = [(entry["sha256"], entry.get("text", "")) for entry in table["contents"].values()]
        is_whole = all(isinstance(word, str) for entry in entries for word in entry) and "machine" in table
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): name a file that --out has written.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path} was not written by golden.py, or is damaged: make one with --out.")
    return table


def check_out(path: Path) -> None:
    """ValueError, before minutes of work, where --out cannot be written or would replace something else."""
    if not path.parent.is_dir():
        raise ValueError(f"--out {path}: {path.parent} is no folder: make it, or choose another file.")
    if path.exists():
        try:
            read_golden(path)
        except ValueError:
            raise ValueError(f"--out {path} exists and was not written by golden.py: choose another file.") from None


def compare_files(old_path: str, new_path: str, stages: list[str]) -> int:
    old, new = read_golden(old_path), read_golden(new_path)
    if old["machine"] != new["machine"]:
        print(f"WARNING: {old['machine']} is not {new['machine']}: losses and weights differ by nature.")
    of_stages = []
    for table in (old, new):
        contents = table["contents"]
        of_stages.append({key: contents[key] for key in contents if key.split("/")[0] in stages})
    return show(*of_stages)


def unpack_commit(commit: str, folder: Path) -> None:
    """The files of a commit of this repo in a new folder; the work tree stays as it is."""
    folder.mkdir()
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit], capture_output=True)
    if archive.returncode:
        reason = archive.stderr.decode().strip()
        raise ValueError(f"--against {commit} cannot be read ({reason}): name a commit of this repo.")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)


# ----------------------------------------------------------------------------------------------------------------------
# command line


def build_parser():
    sys.path.insert(0, str(ROOT))
    from lab import flags  # not in a worker, which runs the code of another checkout

    parser = flags.Parser(
        prog="golden.py",
        description="Hash every number that a change of the code must not change, and compare two checkouts.",
        epilog="example: python experiments/golden.py --against HEAD~1 --jobs 2")
    add = parser.add_argument
    add("--out", metavar="FILE", help="write the hashes of --checkout to this JSON file")
    add("--checkout", type=Path, default=ROOT, help="what is hashed (default: the repo of this script)")
    add("--against", metavar="COMMIT", help="hash this commit, too, and compare")
    add("--compare", nargs=2, metavar=("OLD", "NEW"), help="compare two files that --out has written")
    add("--only", default=",".join(STAGES), help="stages, with commas between (default %(default)s)")
    add("--jobs", type=int, default=1, help="processes of one thread each (default 1)")
    return parser


def main(argv=None) -> int:
    if sys.argv[1:2] == ["--worker"]:
        return work_off(sys.argv[2])
    parser = build_parser()
    args = parser.parse_args(argv)
    stages = args.only.split(",")
    if unknown := sorted(set(stages) - set(STAGES)):
        parser.error(f"--only {','.join(unknown)}: name some of {', '.join(STAGES)}.")
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: give 1 or more.")
    if args.compare:
        return compare_files(*args.compare, stages)
    if not (args.out or args.against):
        parser.error("there is nothing to do: give --out, --against or --compare.")

    checkout = args.checkout.resolve()
    if not (checkout / "prepare_fineweb.py").is_file():
        parser.error(f"--checkout {args.checkout} has no prepare_fineweb.py: name the folder of a checkout of "
                     "this repo.")
    if args.out:
        check_out(Path(args.out))
    with tempfile.TemporaryDirectory(prefix="golden_") as folder:
        work = Path(folder)
        old = {}
        if args.against:
            unpack_commit(args.against, work / "checkout")
            old = golden(work / "checkout", work / "old", stages, args.jobs)
        new = golden(checkout, work / "new", stages, args.jobs)
        warn_of_failures(new)
        if args.out:
            table = {"machine": machine(), "contents": new}
            tmp = Path(f"{args.out}.tmp")
            tmp.write_text(json.dumps(table, indent=0) + "\n")
            os.replace(tmp, args.out)
            print(f"{len(new):,} contents are hashed in {args.out}")
        if not args.against:
            return 0
        opened = opens(checkout, work / "opens", work / "old", stages, args.jobs)
        new |= {f"opens/{key}": entry for key, entry in opened.items()}
        repeated = [key for key in old if key.startswith(OPENED) and not key.startswith(TABLES)]
        old |= {f"opens/{key}": old[key] for key in repeated}
        return show(old, new)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the work folder is removed
    try:
        sys.exit(main())
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"golden.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
