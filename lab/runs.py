"""runs.py owns a run's folder, written and read: its records, its checkpoints, and which flags can change its result.

experiments/runs/<name>/
    config.json       every flag, resolved; code, versions, hardware, data fingerprints, parameter and FLOP counts
    code/             the repo's modules as they were, and uncommitted.diff; code_000500/: those that it was resumed by
    log.txt           what was printed; samples.jsonl: what the model wrote, {"step", "prompt", "text"}
    scalars.jsonl     one line per optimizer step, and one per evaluation ("type": "train" | "val" | ...)
    step_metrics.json every evaluated step's scores: {"500": {"val_loss": ...}}
    exposures/        per rank: which sequences each step read, and a checksum of its tokens
    <benchmark>_metrics.jsonl, _items.jsonl: its scores and records per item, of every scored step; _partial_*: exams.py
    ckpt/step_000500/ model.safetensors, model.json, optimizer.pt, rng.pt, trainer.json; manifest.json (sha256) last
    summary.json      written last: no summary.json = the run is not finished
    .lock             while it trains, the process that does: pid, host, since when

Nothing here needs torch, so that runs can be compared without it.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import glob
import json
import math
import os
import re
import shutil
from pathlib import Path

from lab import disk, snapshots
from lab.schema import ANY_NAME, ANYTHING, COUNT, NUMBER, RUN, SHA256, misfit, read_json
from lab.snapshots import REPO

# ----------------------------------------------------------------------------------------------------------------------
# flags

# Flags that cannot change a result beyond rounding, or that name data, which is compared by its checksum.
# Every other flag, a new one too, counts for --resume, for the gate of compare_runs.py and in results.csv.
NO_EFFECT = frozenset((
    # names, notes and output
    "out_dir name notes config preset dry_run resume results_csv save_every keep_last log_every wandb_project "
    "tensorboard sample_every sample_tokens "
    # how the same numbers are computed
    "micro_batch_size eval_batch_size rollout_batch_size num_workers device compile deterministic peak_flops "
    # where the data is, and checks of it
    "data data_dir val_data_dir decontaminate verify_data max_epochs"
).split())


def has_effect(flag: str) -> bool:
    """Whether a flag can change a result. Flags like <benchmark>_data name data, which is compared by checksum."""
    return flag not in NO_EFFECT and not flag.endswith("_data")


def conditions(flags: dict) -> dict:
    """The flags that can change a result, the seed among them."""
    return {flag: value for flag, value in flags.items() if has_effect(flag)}


# ----------------------------------------------------------------------------------------------------------------------
# what ran


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


# ----------------------------------------------------------------------------------------------------------------------
# writing a run


def refuse_taken(folder: Path) -> dict:
    """ValueError when a folder holds anything but what a start that was killed early has left. Returns what may lie in
    it, as disk.holds_only takes it."""
    own = {f"code/{path.relative_to(REPO).as_posix()}": path.read_bytes() for path in snapshots.code_files()}
    own |= dict.fromkeys((".lock", "config.json.tmp", "code/uncommitted.diff"))  # .lock is this process's
    if disk.holds_only(folder, own):
        return own
    fault, advice = f"{folder} already exists", "pass --resume auto to continue it, or "
    if not (folder / "config.json").exists():
        fault += " and is no run (no config.json), so that nothing can be resumed"
        advice = "restore its config.json, or " if list_checkpoints(folder) else ""
    raise ValueError(f"{fault}: {advice}choose another --out_dir.")


def create_run(folder: Path, config: dict) -> None:
    """Make a run's folder with config.json and the code snapshot. ValueError when it exists or cannot be made."""
    own, code = refuse_taken(folder), folder / "code"
    try:
        for path in (folder / "exposures", folder / "ckpt", code):
            path.mkdir(parents=True, exist_ok=True)
        snapshots.copy_code(code)
        (code / "uncommitted.diff").write_text(config["code"]["git_diff"], encoding="utf-8")
        disk.write_json(folder / "config.json", config)
    except OSError as error:
        # nothing half-made stays: all of it is ours, as holds_only has seen; .lock is still held
        for name in own.keys() - {".lock"}:
            (folder / name).unlink(missing_ok=True)
        folders = sorted((path for path in code.rglob("*") if path.is_dir()), reverse=True)  # deepest first
        for path in (*folders, code, folder / "exposures", folder / "ckpt"):
            with contextlib.suppress(OSError):
                path.rmdir()
        why, remedy = disk.reason_of(error), disk.remedy_of(error)
        raise ValueError(f"{folder} cannot be written ({why}): {remedy}, or pass another --out_dir.") from error


@contextlib.contextmanager
def recording(path):
    """Turn an OSError of the block, which writes `path` into a run's folder, into a ValueError: one sentence that names
    the file and the last good checkpoint."""
    try:
        yield
    except OSError as error:
        fault, remedy = f"{path} cannot be written ({disk.reason_of(error)})", disk.remedy_of(error)
        for folder in Path(path).absolute().parents[:2]:  # exposures are a folder deeper
            for checkpoint in list_checkpoints(folder)[-1:]:
                fault += f"; the last good checkpoint is {checkpoint}"
        raise ValueError(f"{fault}: {remedy}, then run the same command with --resume auto, or score "
                         "again.") from error


class LineWriter:
    """Appends lines to a file of a run, each at once, so that a kill tears at most the last line. Nothing is buffered:
    after a full disk nothing is left to be written at exit."""

    def __init__(self, path):
        self.path = Path(path)
        with recording(path):
            self.file = open(path, "ab", buffering=0)

    def write_line(self, line: str) -> None:
        rest = (line + "\n").encode(errors="backslashreplace")
        with recording(self.path):
            while rest:
                rest = rest[self.file.write(rest) :]

    def close(self) -> None:
        self.file.close()


class JsonlWriter(LineWriter):
    """Appends records to a JSONL file and hands them to its mirrors (lab/mirrors.py)."""

    def __init__(self, path, mirrors=()):
        super().__init__(path)
        self.mirrors = mirrors

    def write(self, **record) -> None:
        for key, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                record[key] = None  # NaN is not JSON; every reader takes null as "no number"
        self.write_line(json.dumps(record))
        for mirror, _ in self.mirrors:
            mirror(record)

    def close(self) -> None:
        super().close()
        for _, close in self.mirrors:
            close()


def rewrite_jsonl(path, drop, records=()) -> None:
    """Rewrite a JSONL file without the records for whose step drop(step) is true, then append `records`.

    The file changes whole or not at all. A torn last line (a killed writer) is left out; another broken line is a
    ValueError. Searching is far cheaper than parsing, so only lines that contain such a step anywhere are parsed.
    """
    steps = re.compile(rb'"step": *(-?\d+)')
    with recording(path), disk.locked(path), open(path, "ab+") as old, disk.replacing(path) as new:
        old.seek(0)
        for count, line in enumerate(old, 1):
            if not line.endswith(b"\n"):
                break
            if not (line.startswith(b"{") and line.rstrip().endswith(b"}")):
                raise ValueError(broken_line(path, count))
            suspect = any(len(step) > 18 or drop(int(step)) for step in steps.findall(line))
            if not suspect or not drop(_step_of_line(line, path, count)):
                new.write(line)
        for record in records:
            new.write(json.dumps(record, allow_nan=False).encode() + b"\n")


def broken_line(path, count: int, fault: str = "") -> str:
    fault = fault and f" ({fault})"
    return f"{path} has a broken line, {count}{fault}: restore the file or delete that line, then run again."


def _step_of_line(line: bytes, path, count: int) -> int:
    record = None
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(line)
    fault = misfit(record, {"step": NUMBER})
    if fault:
        raise ValueError(broken_line(path, count, fault))
    return record["step"]


def replace_step(path, step: int, records: list[dict]) -> None:
    """Append the records of one step to a JSONL file, in place of those of that step that it has."""
    rewrite_jsonl(path, lambda other: other == step, records)


def update_step_metrics(folder: Path, step: int, **scores) -> None:
    """Add an evaluated step's scores to step_metrics.json."""
    path = folder / "step_metrics.json"
    with recording(path), disk.locked(path):  # two benchmarks may be scored at once
        table = read_step_metrics(folder)
        table.setdefault(str(step), {}).update(scores)
        disk.write_json(path, table)


# ----------------------------------------------------------------------------------------------------------------------
# reading a run

TRAIN_FIELDS = "step train_loss_opt_step_mean grad_norm_l2_preclip tokens_per_sec step_seconds peak_mem_bytes".split()
# what else every trainer logs at a step; any other number there is of GRPO, of fine-tuning or your own (ab_fields.py)
OTHER_FIELDS = "type timestamp lr param_norm_l2 tokens_seen_global mfu flops_total epoch".split()


def read_jsonl(path, notes: list[str] | None = None, step: int | None = None) -> list[dict]:
    """Records of a JSONL file, [] when there is none. A torn last line (a killed writer) is left out.

    Another broken line is a ValueError or, when `notes` is given, left out and described there.
    step: parse only the lines that contain this step, much faster in a file of all items at all steps.
    """
    path = Path(path)
    if not path.exists():
        return []
    if not path.is_file():
        raise ValueError(f"{path} is not a file: restore it or remove it.")
    wanted = step is not None and re.compile(rf'"step": *{step}\b')
    records, broken, line, count = [], [], "\n", 0
    with open(path, encoding="utf-8", errors="replace") as f:
        for count, line in enumerate(f, 1):
            if wanted and not wanted.search(line):
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                records.append(record)
            else:
                broken.append(count)
    torn = broken[-1:] == [count] and not line.endswith("\n")
    if torn:
        broken.pop()
    if notes is None and broken:
        raise ValueError(broken_line(path, broken[0]))
    if notes is not None and torn:
        notes.append(f"{path.name}: the last line ({count}) is torn and left out")
    if notes is not None and broken:
        notes.append(f"{path.name}: {len(broken)} broken lines, the first is {broken[0]}, are left out")
    return records


STEP_METRICS = {re.compile(r"\d+"): {ANY_NAME: ANYTHING}}


def read_step_metrics(folder) -> dict:
    """step_metrics.json, {"500": {"val_loss": ...}}; {} when there is none. ValueError when it is damaged."""
    path = Path(folder) / "step_metrics.json"
    if not path.exists():
        return {}
    return read_json(path, STEP_METRICS, "restore it, or delete it to go on without the scores in it")


def number(value) -> float:
    """A finite number as a float, NaN for everything else."""
    if isinstance(value, float):  # numpy's, too; nearly every value is one, and a report reads millions
        return float(value) if math.isfinite(value) else math.nan
    return float(value) if NUMBER[1](value) else math.nan


def _by_step(records: list[dict], name: str, notes: list[str]) -> dict[int, dict]:
    """{step: record}, ascending; of records with equal steps the last counts."""
    table = {}
    for record in records:
        step = record.get("step")
        if isinstance(step, int) and 0 <= step < 2**53:
            table[step] = record
    lost = len(records) - len(table)
    if lost:
        notes.append(f"{name}: {lost} records repeat a step or have none; the last counts")
    return dict(sorted(table.items()))


def read_config(folder) -> dict:
    """config.json of a run. ValueError when the folder is not a run."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run (no config.json): name what train_gpt.py wrote.")
    return read_json(path)


def read_run(folder) -> dict:
    """Read a run, finished or not, as far as its files are whole.

    Returns {"folder", "name", "config", "flags", "seed", "summary" (None: unfinished), "train" (field -> float array),
    "val" (step -> record), "benchmarks" (name -> step -> record), "gsm8k" (record or None), "notes" (faults of its
    files)}. ValueError when the folder is not a run or its config.json is not a run's.
    """
    folder, notes = Path(folder), []
    config = read_config(folder)
    fault = misfit(config, RUN)
    if fault:
        raise ValueError(f"{folder / 'config.json'} is not a run's record ({fault}): "
                         "name what train_gpt.py wrote.")
    for key in ("model", "parameters", "hardware", "versions"):
        if not isinstance(config.setdefault(key, {}), dict):
            value = json.dumps(config[key])[:40]
            notes.append(f"config.json: {key} is {value} and counts as not recorded")
            config[key] = {}
    run = {"folder": folder, "name": folder.resolve().name, "config": config, "flags": config["flags"]}
    run |= {"seed": config["flags"]["seed"], "notes": notes}
    run["summary"] = _read_object(folder / "summary.json", "the run counts as unfinished", notes,
                                  results_row=dict, warnings=list)
    run |= _read_scalars(folder, notes)
    if of_token := config["data"].get("bytes_per_token"):  # older runs do not record it
        for record in run["val"].values():
            record["text_mb"] = number(record.get("tokens_seen_global")) * number(of_token) / 1e6
    last = max(run["train"]["step"], default=0)
    steps = number((run["summary"] or {}).get("steps"))
    if last < steps:
        notes.append(f"scalars.jsonl ends at step {last:.0f} of {steps:.0f}")
    run["benchmarks"] = {}
    for path in sorted(folder.glob("*_metrics.jsonl")):
        benchmark = path.name.removesuffix("_metrics.jsonl")
        run["benchmarks"][benchmark] = _by_step(read_jsonl(path, notes), path.name, notes)
    run["gsm8k"] = _read_object(folder / "gsm8k_results.json", "GSM8K counts as not run", notes)
    return run


def _read_object(path: Path, consequence: str, notes: list[str], **types) -> dict | None:
    """A JSON file's object; None when there is no file, or when it is broken, which is noted with its consequence.

    types: what the values of these keys must be, where they are set."""
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except ValueError:
        record = None
    whole = isinstance(record, dict)
    if whole and all(isinstance(record.get(key) or kind(), kind) for key, kind in types.items()):
        return record
    notes.append(f"{path.name} is broken, so {consequence}")
    return None


def _read_scalars(folder: Path, notes: list[str]) -> dict:
    """{"train": field -> float array over the steps, "val": step -> record}. Fields: TRAIN_FIELDS, and all numbers that
    are not of OTHER_FIELDS."""
    import numpy as np

    records = read_jsonl(folder / "scalars.jsonl", notes)
    train = _by_step([r for r in records if r.get("type") == "train"], "scalars.jsonl, train", notes)
    val = _by_step([r for r in records if r.get("type") == "val"], "scalars.jsonl, val", notes)
    more = {field for record in train.values() for field in record if math.isfinite(number(record[field]))}
    arrays = {}
    for field in [*TRAIN_FIELDS, *sorted(more.difference(TRAIN_FIELDS, OTHER_FIELDS))]:
        arrays[field] = np.array([number(record.get(field)) for record in train.values()])
        is_due = [field in record or field in TRAIN_FIELDS for record in train.values()]
        bad = arrays["step"][~np.isfinite(arrays[field]) & np.array(is_due, bool)]
        if len(bad):
            where = f"{len(bad)} steps, first at step {int(bad[0])}"
            notes.append(f"scalars.jsonl: {field} is no finite number at {where}")
    for step, record in val.items():
        if not math.isfinite(number(record.get("val_loss"))):
            notes.append(f"scalars.jsonl: val_loss is no finite number at step {step}")
    return {"train": arrays, "val": val}


LOGS = (".txt", ".log")  # other projects' (lab/logs.py)


def expand(patterns: list[str], flag: str) -> list[Path]:
    """Folders that paths or globs name, each once, 2 before 10. A glob without any folder names other projects' logs.

    ValueError, naming `flag`, for a glob without a folder."""
    folders: dict[str, Path] = {}
    for pattern in patterns:
        matches = [Path(pattern)]
        if glob.has_magic(pattern) and not matches[0].exists():
            paths = list(map(Path, glob.glob(pattern)))
            matches = [path for path in paths if path.is_dir()] or [path for path in paths if path.suffix in LOGS]
        if not matches:
            raise ValueError(f"{flag} {pattern!r} matches no folder: check the path.")
        folders |= {os.path.realpath(path): path for path in matches}

    def natural(path: Path) -> list:
        pieces = re.split(r"(\d+)", str(path))
        return [int(piece) if piece.isdecimal() else piece for piece in pieces]

    return sorted(folders.values(), key=natural)


# ----------------------------------------------------------------------------------------------------------------------
# checkpoints


def checkpoint_path(folder, step: int) -> Path:
    """Where a run keeps its checkpoint of a step."""
    return Path(folder) / "ckpt" / f"step_{step:06d}"


def step_of(path) -> int:
    """The step in the name of a checkpoint folder, step_000500, or of a file, val_documents_000500.npz."""
    return int(Path(path).stem.rpartition("_")[2])


def list_checkpoints(folder) -> list[Path]:
    """Checkpoint folders of a run, oldest first. Other names, such as step_000500.bak, are somebody's own."""
    folders = Path(folder).glob("ckpt/step_*")
    return sorted((path for path in folders if re.fullmatch(r"step_\d+", path.name)), key=step_of)


def save_checkpoint(folder: Path, step: int, write, bytes_needed: int, keep_last: int) -> Path:
    """Write ckpt/step_<step> completely or not at all, then delete all but the newest `keep_last` (0 = keep all).

    write(tmp_folder) puts the files there. A sha256 of each goes into manifest.json, written last; everything is synced
    to disk before the rename that makes it visible. Those that a resume had set aside go when their steps are passed.
    ValueError when it cannot be written, as on a full disk; older checkpoints stay.
    """
    final = checkpoint_path(folder, step)
    ckpt, tmp = final.parent, final.with_name(f".tmp_{final.name}")
    for killed in ckpt.glob(".tmp_step_*"):
        shutil.rmtree(killed, ignore_errors=True)
    try:
        free = shutil.disk_usage(ckpt).free
        if free < bytes_needed:
            raise OSError(errno.ENOSPC, f"{free / 1e9:.2f} GB free, {bytes_needed / 1e9:.2f} GB needed")
        tmp.mkdir()
        write(tmp)
        files = {}
        for path in sorted(tmp.iterdir()):
            files[path.name] = {"sha256": disk.sha256_file(path), "bytes": path.stat().st_size}
        disk.write_json(tmp / "manifest.json", {"step": step, "files": files})
        for path in [*tmp.iterdir(), tmp]:
            disk.fsync_path(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(tmp, final)
        disk.fsync_path(ckpt)
    except Exception as error:  # torch and safetensors have errors of their own for a full disk
        shutil.rmtree(tmp, ignore_errors=True)
        why, remedy = disk.reason_of(error), disk.remedy_of(error)
        raise ValueError(f"{final} cannot be saved ({why}): {remedy}, then --resume auto.") from error
    # resume.trim_records sets some aside, until their steps are passed
    asides = (path for path in ckpt.glob("step_*") if re.fullmatch(r"step_\d+\.aside", path.name))
    passed = [path for path in asides if step_of(path) <= step]
    if keep_last > 0:
        passed += list_checkpoints(folder)[:-keep_last]
    for old in passed:
        shutil.rmtree(old, ignore_errors=True)
    return final


# what a trainer or GPT.save writes into a checkpoint
PARTS = "model.json model.safetensors optimizer.pt rng.pt trainer.json".split()
MANIFEST = {"step": COUNT, "files": {re.compile(r"[\w-]+\.\w+"): {"sha256": SHA256}}}


def check_checkpoint(path: Path) -> None:
    """Compare every file with the manifest. ValueError names what is wrong."""
    try:
        manifest = read_json(path / "manifest.json", MANIFEST)
        files = manifest["files"]
        for name in ["model.safetensors", *PARTS]:
            if name not in files and (name == "model.safetensors" or (path / name).exists()):
                raise ValueError(f"manifest.json does not name {name}")
        if re.fullmatch(r"step_\d+", path.name) and manifest["step"] != step_of(path):
            raise ValueError(f"manifest.json is of step {manifest['step']}")
        for name, record in files.items():
            if disk.sha256_file(path / name) != record["sha256"]:
                raise ValueError(f"{name} does not match its checksum in manifest.json")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not whole ({str(error).rstrip('.')})") from error


def find_checkpoint(folder, which: str, warn=print, check=check_checkpoint) -> Path | None:
    """The checkpoint to resume from. which: a step number, or "auto", the newest whole one (None when there is none).
    check(path) raises a ValueError for one that is not whole.

    Broken ones are passed over with a warning. ValueError for a named step that is missing or broken, and when
    checkpoints exist but none is whole.
    """
    checkpoints = list_checkpoints(folder)
    if which != "auto":
        path = checkpoint_path(folder, int(which))
        if path not in checkpoints:
            steps = ", ".join(str(step_of(checkpoint)) for checkpoint in checkpoints) or "none"
            raise ValueError(f"{folder} has no checkpoint of step {which} (there: {steps}): pass --resume auto.")
        check(path)
        return path
    fault = ""
    for path in reversed(checkpoints):
        try:
            check(path)
            return path
        except ValueError as error:
            fault = str(error).rstrip(".")
            warn(f"WARNING: {fault}; falling back to the checkpoint before it.")
    if checkpoints:
        raise ValueError(f"{folder} has no whole checkpoint ({fault}): start again with another --out_dir.")
    return None


def resolve_checkpoint(path, warn=print, flag="--checkpoint"):
    """What a --checkpoint argument means: (folder with the model's files, step or None, run's folder or None).

    path: a run's folder (its newest whole checkpoint is taken), one of its ckpt/step_* folders, or a folder that
    GPT.save wrote by itself (no step, no run). FileNotFoundError or ValueError, naming `flag`, for anything else. warn:
    told of damaged checkpoints, and of a network that is other code than the run's.
    """
    path = Path(path)
    if not path.is_dir():
        from lab import files

        advice = files.no_checkpoint(path, flag)
        raise FileNotFoundError(f"{flag} {path} is not a folder: {advice}.")
    folder = path.resolve()  # so that "." has a name and parents too
    in_a_run = folder.parent.name == "ckpt" and folder.name.startswith("step_")
    if in_a_run or (folder / "manifest.json").exists():
        try:
            check_checkpoint(folder)
        except ValueError as error:
            raise ValueError(f"{flag} {error}: name another checkpoint.") from None
        step = read_json(folder / "manifest.json")["step"]
        if not in_a_run:
            return path, step, None
        warn_of_other_network(folder.parent.parent, step, warn)
        return path, step, folder.parent.parent
    if (folder / "model.json").exists():
        return path, None, None
    if (folder / "ckpt").is_dir():
        newest = find_checkpoint(path, "auto", warn)
        if newest is None:
            raise ValueError(f"{flag} {path} has no checkpoint yet: let the run save one.")
        warn_of_other_network(path, step_of(newest), warn)
        return newest, step_of(newest), path
    config = folder / "config.json"
    if config.exists() and "model_type" in config.read_text(errors="replace"):
        command = f"python model.py import {path} OUT"
        raise ValueError(f"{flag} {path} is a Hugging Face model: name the OUT of {command}.")
    raise ValueError(f"{flag} {path} is neither a run (no ckpt/) nor a model (no model.json): name one.")


TOLD = set()


def warn_of_other_network(run: Path, step: int, warn) -> None:
    """Once for each run that a process opens."""
    warning = snapshots.warning_of(run, step)
    if warning and warning not in TOLD:
        TOLD.add(warning)
        warn(warning)
