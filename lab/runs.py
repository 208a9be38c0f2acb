"""runs.py owns a run's folder: processes, config.json, JSONL records, checkpoints' manifests, and reading a run back.

experiments/runs/<name>/
    config.json       every flag, resolved; code, versions, hardware, data fingerprints, parameter and FLOP counts
    code/             all top-level *.py of the repo as they were, and uncommitted.diff
    log.txt           what was printed
    scalars.jsonl     one line per optimizer step, and one per evaluation ("type": "train" | "val" | ...)
    step_metrics.json every evaluated step's scores: {"500": {"val_loss": ...}}
    ckpt/step_000500/ model.safetensors, model.json, optimizer.pt, rng.pt, trainer.json; manifest.json (sha256) last
    summary.json      written last: no summary.json = the run is not finished
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lab import disk

REPO = Path(__file__).resolve().parents[1]

# ----------------------------------------------------------------------------------------------------------
# what ran, where


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(REPO), *arguments], capture_output=True, text=True, timeout=30, errors="replace"
        )
        return done.stdout if done.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        return ""


def code_files() -> list[Path]:
    """The repo's own modules: top-level scripts and lab/."""
    return sorted([*REPO.glob("*.py"), *REPO.glob("lab/*.py")])


def code_state() -> dict:
    """{"git_commit", "git_dirty", "git_diff", "code_sha256"}: which code runs.

    The hash covers the top-level *.py that this process has imported: a change to compare_runs.py between two runs of
    train_gpt.py does not make them differ."""
    digest = hashlib.sha256()
    imported = {Path(m.__file__).resolve() for m in list(sys.modules.values()) if getattr(m, "__file__", None)}
    for path in sorted(imported.intersection(code_files())):
        digest.update(path.relative_to(REPO).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    diff = _git("diff", "HEAD", "--", "*.py")
    return {
        "git_commit": _git("rev-parse", "HEAD").strip() or None,
        "git_dirty": bool(_git("status", "--porcelain", "--", "*.py").strip()),
        "git_diff": diff,
        "code_sha256": digest.hexdigest(),
    }


# ----------------------------------------------------------------------------------------------------------
# the folder and its records


def make_folder(path, flag: str) -> None:
    """Makes a folder for results, before the work that fills it. ValueError when a file is in the way or the disk says
    no."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{flag} {path} cannot be made ({error.strerror}): name another folder.") from None


def create_run(folder: Path, config: dict) -> None:
    """Make a run's folder with config.json and the code snapshot. ValueError when it exists or cannot be made."""
    # a start that was killed before config.json was written leaves only these
    if folder.exists() and {path.name for path in folder.iterdir()} - {"exposures", "ckpt", "code", "config.json.tmp"}:
        raise ValueError(f"{folder} already exists: pass --resume auto to continue it, or choose another --out_dir.")
    try:
        (folder / "exposures").mkdir(parents=True, exist_ok=True)
        (folder / "ckpt").mkdir(exist_ok=True)
        (folder / "code").mkdir(exist_ok=True)
        (folder / "code" / "lab").mkdir(exist_ok=True)
        for path in code_files():
            shutil.copy2(path, folder / "code" / path.relative_to(REPO))
        (folder / "code" / "uncommitted.diff").write_text(config["code"]["git_diff"])
        disk.write_json(folder / "config.json", config)
    except OSError as error:
        raise ValueError(
            f"--out_dir {folder} cannot be written ({error.strerror}): choose another --out_dir."
        ) from error


def read_jsonl(path) -> list[dict]:
    """Records of a JSONL file; a torn last line (a killed writer) is left out."""
    records = []
    if Path(path).exists():
        with open(path, encoding="utf-8") as f:
            for line in f:
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError:
                    if line.endswith("\n"):
                        raise ValueError(
                            f"{path} has a broken line: {line[:80]!r}; restore the file or start the run again."
                        ) from None
    return records


def trim_jsonl(path: Path, last_step: int) -> None:
    """Drop the records after `last_step` (and a torn last line), so that a resumed run writes them again."""
    if not path.exists():
        return
    kept = [json.dumps(record) + "\n" for record in read_jsonl(path) if record["step"] <= last_step]
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_text("".join(kept), encoding="utf-8")
    os.replace(tmp, path)


def update_step_metrics(folder: Path, step: int, **scores) -> None:
    """Add an evaluated step's scores to step_metrics.json."""
    path = folder / "step_metrics.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    table.setdefault(str(step), {}).update(scores)
    disk.write_json(path, table)


def replace_step(path, step: int, records: list[dict]) -> None:
    """Put records of one step at the end of a JSONL file, in place of those of that step that it has.

    The file changes whole or not at all (temporary name, fsync, rename); a torn last line is dropped."""
    path = Path(path)
    tmp, mark = path.with_name(path.name + ".tmp"), f'"step": {step}'.encode()
    try:
        with open(tmp, "wb") as out:
            if path.exists():
                with open(path, "rb") as f:
                    # reading JSON costs far more than searching it: only lines that may be of this step are parsed
                    out.writelines(line for line in f if line.endswith(b"\n")
                                   and not (mark in line and json.loads(line).get("step") == step))  # fmt: skip
            out.writelines(json.dumps(record, allow_nan=False).encode() + b"\n" for record in records)
            out.flush()
            os.fsync(out.fileno())
        os.replace(tmp, path)
        disk.fsync_path(path.parent)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def trim_records(folder: Path, last_step: int) -> None:
    """Take back everything a run recorded after `last_step` (-1: everything), so that a resumed run writes it again."""
    for path in [*folder.glob("*.jsonl"), *folder.glob("exposures/*.jsonl")]:
        trim_jsonl(path, last_step)
    for path in folder.glob("val_documents_*.npz"):
        if int(path.stem.split("_")[-1]) > last_step:
            path.unlink()
    if (path := folder / "step_metrics.json").exists():
        disk.write_json(path, {s: scores for s, scores in json.loads(path.read_text()).items() if int(s) <= last_step})


class JsonlWriter:
    """Appends records to a JSONL file, each flushed at once, so that a kill tears at most the last line."""

    def __init__(self, path, mirrors=()):
        self.file, self.mirrors = open(path, "a", encoding="utf-8", buffering=1), mirrors

    def write(self, **record) -> None:
        # NaN is not JSON: null says "no number" in every reader
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self.file.write(json.dumps(clean) + "\n")
        for mirror, _ in self.mirrors:
            mirror(clean)

    def close(self) -> None:
        self.file.close()
        for _, close in self.mirrors:
            close()


def open_mirrors(folder: Path, config: dict, first_step: int, wandb_project="", tensorboard=False) -> list[tuple]:
    """[(write(record), close())] for each tracker asked for; the JSONL stays the truth, these show it elsewhere.

    Numbers of a record of type "val" appear as val/<name> over its step. A resumed run continues its wandb run, and its
    TensorBoard curves are cut after first_step, the checkpoint's; without a checkpoint they begin anew. Raises
    ValueError when a package is not installed or wandb is not logged in.
    """
    mirrors = []

    def numbers(record: dict) -> dict:
        kind = record.get("type", "train")
        return {f"{kind}/{k}": v for k, v in record.items() if k != "step" and isinstance(v, (int, float))}

    if tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("--tensorboard needs a package: pip install tensorboard, or drop the flag.") from error
        # the first step to take back: all of the checkpoint's own was recorded before it was saved
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + bool(list_checkpoints(folder)))

        def write(record):
            for name, value in numbers(record).items():
                writer.add_scalar(name, value, record["step"])

        mirrors.append((write, writer.close))
    if wandb_project:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("--wandb_project needs a package: pip install wandb, or drop the flag.") from error
        identity = hashlib.sha256(f"{folder.name} {config['started']}".encode()).hexdigest()[:16]
        try:
            tracked = wandb.init(project=wandb_project, name=folder.name, id=identity, resume="allow", dir=str(folder),
                                 config={**config["flags"], **config["data"], **config["parameters"]})
        except wandb.errors.Error as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise ValueError(f"--wandb_project {wandb_project}: wandb does not start ({reason}): run wandb login, set "
                             "WANDB_MODE=offline, or drop the flag.") from error
        tracked.define_metric("*", step_metric="step")
        mirrors.append((lambda record: tracked.log({**numbers(record), "step": record["step"]}), tracked.finish))
    return mirrors


RESULTS_COLUMNS = (  # document 003's columns, then ours
    "run_id date git_commit seed attn_gate gate_pos gate_act learning_rate batch_size device_batch_size "
    "sequence_length "
    "num_iterations warmdown_iters final_val_loss best_val_loss train_time_ms ms_per_step gpu_name n_gpus notes "
    "arch optimizer condition n_layer n_embd parameters final_train_loss final_val_bits_per_byte final_val_loss_bos "
    "final_val_bits_per_byte_bos tokens_seen unique_tokens epochs flops_total data_fingerprint val_fingerprint "
    "muon_lr hellaswag_accuracy hellaswag_accuracy_norm hellaswag_accuracy_norm_bytes eval_official_sum "
    "eval_official_mean"
).split()


def append_result(path, row: dict) -> None:
    """Add one finished run to results.csv; columns an older file lacks are added to it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        if os.name == "posix":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)  # two runs may finish at once
        rows = []
        if path.exists():
            with open(path, newline="") as f:
                rows = list(csv.DictReader(f))
        columns = list(dict.fromkeys([*RESULTS_COLUMNS, *(key for old in rows for key in old if key)]))
        tmp = path.with_name(path.name + ".tmp")
        with open(tmp, "w", newline="") as f:
            writer = csv.DictWriter(f, columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows([*rows, row])
        os.replace(tmp, path)
    Path(path.with_name(path.name + ".lock")).unlink(missing_ok=True)


def read_run(folder) -> dict:
    """A run read back: {"config", "summary" (None while unfinished), "scalars"}. ValueError when it is not a run."""
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} is not a run (no config.json): name a folder that train_gpt.py wrote.")
    summary = folder / "summary.json"
    return {
        "config": json.loads((folder / "config.json").read_text()),
        "summary": json.loads(summary.read_text()) if summary.exists() else None,
        "scalars": read_jsonl(folder / "scalars.jsonl"),
    }


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


# ----------------------------------------------------------------------------------------------------------
# checkpoints


def save_checkpoint(folder: Path, step: int, write, bytes_needed: int, keep_last: int) -> Path:
    """Write ckpt/step_<step> completely or not at all, then delete all but the newest `keep_last` (0 = keep all).

    write(tmp_folder) puts the files there. A sha256 of each goes into manifest.json, written last; everything is synced
    to disk before the rename that makes it visible. Raises ValueError when the disk is full; older checkpoints stay.
    """
    ckpt = folder / "ckpt"
    final, tmp = ckpt / f"step_{step:06d}", ckpt / f".tmp_step_{step:06d}"
    for left in ckpt.glob(".tmp_step_*"):  # of a killed save
        shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(ckpt).free
    if free < bytes_needed:
        raise ValueError(f"{ckpt} has {free / 1e9:.2f} GB free but a checkpoint needs {bytes_needed / 1e9:.2f} GB: "
                         "free space, then continue with --resume auto.")  # fmt: skip
    try:
        tmp.mkdir()
        write(tmp)
        files = {path.name: {"sha256": disk.sha256_file(path), "bytes": path.stat().st_size}
                 for path in sorted(tmp.iterdir())}
        disk.write_json(tmp / "manifest.json", {"step": step, "files": files})
        for path in tmp.iterdir():
            disk.fsync_path(path)
        disk.fsync_path(tmp)
        if final.exists():
            shutil.rmtree(final)
        os.replace(tmp, final)
        disk.fsync_path(ckpt)
    except Exception as error:  # torch and safetensors wrap a full disk's OSError in errors of their own
        shutil.rmtree(tmp, ignore_errors=True)
        raise ValueError(f"saving {final} failed ({error}): free space, then continue with --resume auto.") from error
    if keep_last > 0:
        for old in list_checkpoints(folder)[:-keep_last]:
            shutil.rmtree(old, ignore_errors=True)
    return final


def list_checkpoints(folder) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    return sorted(Path(folder).glob("ckpt/step_*"), key=lambda path: int(path.name.split("_")[1]))


def check_checkpoint(path: Path) -> None:
    """Compare every file with the manifest. ValueError names what is wrong."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name, record in manifest["files"].items():
            if disk.sha256_file(path / name) != record["sha256"]:
                raise ValueError(f"{path / name} does not match its checksum in manifest.json")
    except (OSError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is incomplete ({error})") from error


def find_checkpoint(folder, which: str, warn=print) -> Path | None:
    """The checkpoint to resume from. which: "auto" (newest that is whole; None when there is none) or a step number.

    A broken newest checkpoint is passed over with a warning. Raises ValueError for a named step that is missing or
    broken, and when checkpoints exist but none is whole.
    """
    found = list_checkpoints(folder)
    if which != "auto":
        path = Path(folder) / "ckpt" / f"step_{int(which):06d}"
        if path not in found:
            steps = ", ".join(str(int(p.name.split("_")[1])) for p in found) or "none"
            raise ValueError(
                f"{folder} has no checkpoint of step {which} (there: {steps}): pass one of these or --resume auto."
            )
        check_checkpoint(path)
        return path
    for path in reversed(found):
        try:
            check_checkpoint(path)
            return path
        except ValueError as error:
            warn(f"WARNING: {error}; falling back to the checkpoint before it.")
    if found:
        raise ValueError(
            f"{folder}: none of its {len(found)} checkpoints is whole; start again with another --out_dir."
        )
    return None


def resolve_checkpoint(path, warn=print, flag: str = "--checkpoint") -> tuple[Path, int | None, Path | None]:
    """What a --checkpoint argument means: (folder with the model's files, step or None, run's folder or None).

    path: a run's folder (its newest whole checkpoint is taken), one of its ckpt/step_* folders, or a folder that
    GPT.save wrote by itself (no step, no run). FileNotFoundError or ValueError in one sentence for anything else, which
    calls the argument `flag`.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{flag} {path} is not a folder: name a run's, or one in its ckpt/.")
    folder = path.resolve()  # so that "." has a name and parents, too
    in_a_run = folder.parent.name == "ckpt" and folder.name.startswith("step_")
    if in_a_run or (folder / "manifest.json").exists():
        try:
            check_checkpoint(folder)
        except ValueError as error:
            raise ValueError(f"{flag} {error}: name another checkpoint.") from None
        step = json.loads((folder / "manifest.json").read_text())["step"]
        return path, step, folder.parent.parent if in_a_run else None
    if (folder / "model.json").exists():
        return path, None, None
    if (folder / "ckpt").is_dir():
        found = find_checkpoint(path, "auto", warn)
        if found is None:
            raise ValueError(f"{flag} {path} has no checkpoint yet: let the run save one (--save_every), "
                             "or name another run.")  # fmt: skip
        return found, int(found.name.split("_")[1]), path
    if (folder / "config.json").exists() and "model_type" in (folder / "config.json").read_text(errors="replace"):
        raise ValueError(f"{flag} {path} is a Hugging Face model: make a checkpoint of it with python model.py import "
                         f"{path} OUT, and name that.")
    raise ValueError(f"{flag} {path} is neither a run (no ckpt/) nor a model (no model.json): name a run, or a "
                     "checkpoint folder in its ckpt/.")  # fmt: skip
