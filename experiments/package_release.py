"""package_release.py puts finished runs into one folder to hand on: weights, flags, logs, scores, plots, checksums.

    python experiments/package_release.py experiments/runs/hope experiments/runs/titan --out artifacts/pilot_release
    python experiments/package_release.py --verify artifacts/pilot_release

artifacts/pilot_release/
    MANIFEST.txt       sha256 of every other file, as `sha256sum -c MANIFEST.txt` reads it
    metadata.json      of each run: checkpoint, step, flags, parameters, scores; sha256 and bytes of each file
    <run>/ckpt/step_N/ its newest whole checkpoint, or that of --step
    <run>/             config.json, log.txt, scalars.jsonl, scores and their items, eval/, plots/ (loss.png is drawn
                       where there is none): every script reads it as a run

An eval file belongs to one checkpoint, by the sha256 of its weights ("checkpoint_sha256") or, without that, by
"checkpoint" or "step". One that names another, or none, is refused: no scores stand beside weights of another step.
Only a benchmark's files of earlier steps of training, eval/zeroshot_step000500.json, are left out: what they say stands
with its step in zeroshot_metrics.jsonl.
The folder appears whole or not at all; what a killed process left, .tmp_<name> beside it, goes at the next call.
"""

import contextlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab import disk, flags, processes, runs, schema  # noqa: E402
from lab.schema import check  # noqa: E402

FORMAT = {"format": "moonshotgpt-release", "version": 1}
MANIFEST, METADATA = "MANIFEST.txt", "metadata.json"
NEEDED = ("config.json", "log.txt", "scalars.jsonl")
RECORDS = ("summary.json", "step_metrics.json", "samples.jsonl", "*_metrics.jsonl", "*_items.jsonl")
# each belongs to one checkpoint; lines beside them, such as those per document, are named in them
EVALS = ("eval/*.json", "gsm8k_results.json")
BESIDE_EVALS = ("eval/*.jsonl", "eval/*.png", "eval/*.csv", "gsm8k_*.jsonl", "probes.jsonl")
PLOTS = ("plots/*.png", "*.png")
LOSS_PLOT = "plots/loss.png"  # drawn where a run has none
FROM_CONFIG = "started flags unused_flags parameters model flops_per_token data versions".split()
FROM_CODE = ("git_commit", "git_dirty", "code_sha256")
NAMES_CHECKPOINT = ("checkpoint", "checkpoint_sha256")
MARGIN = 2**20  # bytes for the manifest and the plot

# ----------------------------------------------------------------------------------------------------------------------
# what goes in


class Packed(NamedTuple):
    """A run to pack."""

    name: str
    files: dict[str, Path]  # {path in the bundle: what is copied there}
    about: dict  # its part of metadata.json


def matching(folder: Path, patterns) -> list[Path]:
    return [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]


def newest_whole(folder: Path, step: int | None) -> tuple[Path, str]:
    """(a run's newest whole checkpoint, or the one of this step; the sha256 of its weights). ValueError without one."""
    fault = "none is there"
    for path in reversed(runs.list_checkpoints(folder)):
        if step not in (None, runs.step_of(path)):
            continue
        try:
            runs.check_checkpoint(path)
            files = schema.read_json(path / "manifest.json")["files"]
            return path, files["model.safetensors"]["sha256"]
        except ValueError as error:
            fault = str(error)
            note(fault)
    of_step = "" if step is None else f" of step {step}"
    raise ValueError(f"{folder} has no whole checkpoint{of_step} ({fault}): "
                     "let the run save one, or name another.")


def choose(folder: Path, step: int | None) -> Packed:
    """What is packed of a run. ValueError when it has no whole checkpoint, lacks a record, or mixes checkpoints."""
    config = runs.read_config(folder)
    fault = schema.misfit(config, {"code?": {}})
    check(not fault, f"{folder / 'config.json'} is damaged ({fault}): restore it, or name another run.")
    name = folder.resolve().name
    for needed in NEEDED:
        check((folder / needed).is_file(), f"{folder} has no {needed}: restore it, or name another run.")
    checkpoint, sha256 = newest_whole(folder, step)
    step = runs.step_of(checkpoint)
    place = f"{name}/ckpt/{checkpoint.name}"
    own = {"checkpoint": place, "step": step, "checkpoint_sha256": sha256}
    evals = [path for path in matching(folder, EVALS) if not is_history(path, folder, step)]
    for path in evals:
        fault = other_checkpoint(schema.read_json(path), own)
        check(not fault, f"{path} {fault}, but the checkpoint to pack is {place}: "
                         "score that one, pass --step, or move the file out of the run.")
    copied = evals + matching(folder, (*NEEDED, *RECORDS, *BESIDE_EVALS))
    files = {f"{name}/{path.relative_to(folder).as_posix()}": path for path in copied}
    for path in matching(folder, PLOTS):
        place_of_plot = f"{name}/plots/{path.name}"
        if place_of_plot in files:  # plots/ has one of this name
            place_of_plot = f"{name}/{path.name}"
        files[place_of_plot] = path
    files |= {f"{place}/{path.name}": path for path in matching(checkpoint, ["*"])}
    code = config.get("code") or {}
    about = {
        **own, "finished": (folder / "summary.json").exists(),
        "scores": runs.read_step_metrics(folder).get(str(step), {}),
        "evals": [path.relative_to(folder).as_posix() for path in evals],
        **{key: config.get(key) for key in FROM_CONFIG},
        "code": {key: code.get(key) for key in FROM_CODE}}
    return Packed(name, files, about)


def is_history(path: Path, folder: Path, step: int) -> bool:
    """Whether an eval file is a benchmark's, of another step of training, whose record keeps every step."""
    match = re.fullmatch(r"(\w+)_step(\d+)", path.stem)
    return bool(match) and int(match[2]) != step and (folder / f"{match[1]}_metrics.jsonl").is_file()


def other_checkpoint(record, own: dict) -> str:
    """What speaks against an eval's record being of this checkpoint, as the end of a sentence; "" when nothing does."""
    named = [part for part in objects_in(record) if any(part.get(key) for key in NAMES_CHECKPOINT)]
    if not named and isinstance(record, dict) and record.get("step") is not None:
        named = [record]
    if not named:
        return "names no checkpoint"
    for part in named:
        step, sha256 = part.get("step"), part.get("checkpoint_sha256")
        path = str(part.get("checkpoint") or own["checkpoint"])
        if sha256 not in (None, own["checkpoint_sha256"]):
            return f"is of other weights ({path}, step {step})"
        if step not in (None, own["step"]):
            return f"is of step {step}"
        numbered = re.search(r"step_?(\d+)", Path(path).name)
        if numbered and int(numbered[1]) != own["step"]:
            return f"is of {path}"
        # with the weights' sum, a run that was moved or renamed since stays itself
        is_of_run = tuple(Path(path).absolute().parts[-3:]) == Path(own["checkpoint"]).parts
        if sha256 is None and not is_of_run:
            return f"is of {path}"
    return ""


def objects_in(value):
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from objects_in(part)


def note(text: str) -> None:
    print(f"package_release.py: {text}", file=sys.stderr)


# ----------------------------------------------------------------------------------------------------------------------
# packing


def draw_losses(folder: Path) -> bytes | None:
    """A PNG of a run's train and val loss over steps; None where nothing was recorded."""
    from lab import ab_plots

    records, curves = runs.read_jsonl(folder / "scalars.jsonl", notes=[]), {}
    for kind, field in (("train", "train_loss_opt_step_mean"), ("val", "val_loss")):
        points = [(record.get("step"), record.get(field)) for record in records if record.get("type") == kind]
        points = [point for point in points if None not in point]
        if points:
            curves[f"{kind} loss"] = {folder.resolve().name: [points]}
    drawn = ab_plots.plot_losses(curves, "optimizer steps", unmarked=("train loss",))
    return drawn and drawn["png"]


def fill(bundle: Path, packed: list[Packed], folders: list[Path]) -> None:
    """Copies and draws everything into the new folder `bundle`, checksums last."""
    copies = {name: path for one in packed for name, path in one.files.items()}
    for name, path in tqdm(copies.items(), unit="file", disable=None):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, bundle / name)
    for one, folder in zip(packed, folders, strict=True):
        runs.check_checkpoint(bundle / one.about["checkpoint"])
        plot, picture = bundle / one.name / LOSS_PLOT, None
        if not plot.exists():
            picture = draw_losses(folder)
        if picture:
            plot.parent.mkdir(exist_ok=True)
            plot.write_bytes(picture)
    files = {}
    for name in files_in(bundle):
        path = bundle / name
        disk.fsync_path(path)
        files[name] = {"sha256": disk.sha256_file(path), "bytes": path.stat().st_size}
    about = {one.name: one.about for one in packed}
    disk.write_json(bundle / METADATA, {**FORMAT, "packed": runs.now(), "runs": about, "files": files})
    sums = {name: entry["sha256"] for name, entry in files.items()}
    sums[METADATA] = disk.sha256_file(bundle / METADATA)
    lines = [f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items())]
    disk.write_whole(bundle / MANIFEST, "".join(lines).encode())


def files_in(folder: Path) -> list[str]:
    """The paths of all files below a folder, as a manifest names them."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def bytes_of(paths) -> int:
    return sum(path.stat().st_size for path in paths)


def pack(folders: list[Path], out: Path, step: int | None) -> None:
    """Makes `out`, whole or not at all. ValueError in one sentence."""
    refuse_existing(out)
    packed = [choose(folder, step) for folder in folders]
    names = [one.name for one in packed]
    for name in names:
        check(names.count(name) == 1, f"two runs are named {name}: rename one of their folders.")
    copied = [path for one in packed for path in one.files.values()]
    # .lock in it says who packs; the bundle itself is renamed out of it
    workshop = out.with_name(f".tmp_{out.name}")
    bundle = workshop / "bundle"
    new_parents = [folder for folder in out.absolute().parents if not folder.exists()]
    try:
        with disk.hold(workshop):
            try:
                shutil.rmtree(bundle, ignore_errors=True)  # a killed process's
                bundle.mkdir()
                needed = MARGIN + bytes_of(copied)
                free = shutil.disk_usage(workshop).free
                check(free >= needed, f"{out.parent} has {free / 1e9:.2f} GB free, and the bundle "
                                      f"needs {needed / 1e9:.2f} GB: free space, or choose "
                                      "another --out.")
                fill(bundle, packed, folders)
                refuse_existing(out)
                os.rename(bundle, out)
                disk.fsync_path(out.parent)
            finally:
                shutil.rmtree(bundle, ignore_errors=True)
    except ValueError as error:  # hold's names the trainers' flag
        raise ValueError(str(error).replace("--out_dir", "--out")) from None
    except OSError as error:
        why, remedy = disk.reason_of(error, named=True), disk.remedy_of(error)
        raise ValueError(f"{out} cannot be made ({why}): {remedy}, or choose another --out.") from error
    finally:
        for folder in (workshop, *new_parents):
            with contextlib.suppress(OSError):  # it holds the bundle, or somebody's files
                folder.rmdir()
    for one in packed:
        print(f"{one.name}: step {one.about['step']}, {len(one.about['evals'])} eval files")
    names = files_in(out)
    size = bytes_of(out / name for name in names)
    print(f"{len(names)} files, {size / 1e6:.1f} MB in {out}")


def refuse_existing(out: Path) -> None:
    check(not os.path.lexists(out), f"--out {out} exists already: choose another, or remove it.")


# ----------------------------------------------------------------------------------------------------------------------
# verifying

LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def verify(folder: Path) -> None:
    """ValueError unless a bundle holds exactly the files of its manifest, and its evals are of its checkpoints."""
    advice = "fetch the bundle again"
    path = folder / MANIFEST
    check(path.is_file(), f"--verify {folder} is no bundle (no {MANIFEST}): name what package_release.py made.")
    sums = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        match = LINE.fullmatch(line)
        check(match, f"{path} has a broken line, {number}: {advice}.")
        sums[match[2]] = match[1]
    present = set(files_in(folder)) - {MANIFEST}
    for name in sorted(present ^ set(sums)):
        what = "is not in the manifest" if name in present else "is missing"
        raise ValueError(f"{folder / name} {what}: {advice}.")
    for name, sha256 in tqdm(sums.items(), unit="file", disable=None):
        same = disk.sha256_file(folder / name) == sha256
        check(same, f"{folder / name} does not match its checksum: {advice}.")
    shape = {"runs": {schema.ANY_NAME: {"checkpoint": schema.TEXT, "step": schema.COUNT, "evals": [schema.TEXT]}}}
    metadata = schema.read_json(folder / METADATA, shape, advice)
    for name, about in metadata["runs"].items():
        runs.check_checkpoint(folder / about["checkpoint"])
        for evaluated in about["evals"]:
            fault = other_checkpoint(schema.read_json(folder / name / evaluated), about)
            check(not fault, f"{folder / name / evaluated} {fault}: {advice}.")
    print(f"{len(sums)} files are as packed: {', '.join(metadata['runs'])}")


def main(argv=None) -> None:
    parser = flags.Parser(prog="package_release.py", description=__doc__)
    add = parser.add_argument
    add("runs", nargs="*", type=Path, help="run folders, each packed under its name")
    add("--out", type=Path, help="folder to make; it must not exist yet")
    add("--step", type=int, help="checkpoint to pack of every run (default: each run's newest whole one)")
    add("--verify", type=Path, metavar="FOLDER", help="check a bundle's files instead of making one")
    args = parser.parse_args(argv)
    if args.verify and (args.runs or args.out or args.step is not None):
        parser.error("--verify checks a bundle and packs nothing: give it alone.")
    if not args.verify and not (args.runs and args.out):
        parser.error("name at least one run and --out, or --verify a bundle.")
    if args.step is not None and args.step < 0:
        parser.error(f"--step {args.step}: give a step of 0 or more.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up, as ctrl-C does
    if args.verify:
        return verify(args.verify)
    return pack(args.runs, args.out, args.step)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "package_release.py", "stopped, nothing was written.")
