"""keep_results.py owns runs.tar.xz: what compare_runs.py reads of finished runs, in one file small enough for git.

    python experiments/keep_results.py 'experiments/runs/optimizers/best/*_s[123]' --out runs.tar.xz
    tar -xf runs.tar.xz        # by hand: a folder runs/, which compare_runs.py reads as it reads whole runs

A table.py opens the file with `unpacked`. Kept of each run: config.json, summary.json, scalars.jsonl (of the training
records only the fields that are compared), the last scores per document, benchmark scores, GSM8K results, and the
checksum of every step's tokens: about 10 kB per run, compressed. Weights, code, records per item and logs are left out,
and so are the folders of absolute paths and the host's name. The same runs give the same bytes.
"""

import contextlib
import io
import json
import lzma
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab import ab_items, disk, flags, processes, runs, units  # noqa: E402
from lab.schema import ANY_NAME, ANYTHING, RUN, read_json  # noqa: E402

TOP = "runs"  # the folder inside the archive
TABLES = ("config.json", "summary.json", "gsm8k_results.json", "*_metrics.jsonl")
OBJECTS = {"config.json": RUN, "summary.json": {ANY_NAME: ANYTHING}, "gsm8k_results.json": {ANY_NAME: ANYTHING}}
ONE_MACHINE = ("host", "git_diff")
XZ = b"\xfd7zXZ\x00"  # what an archive begins with


# ----------------------------------------------------------------------------------------------------------------------
# the archive


def pack(folder: Path, archive: Path) -> None:
    """Writes the files of `folder` as runs/... into `archive`, whole or not at all.

    The bytes depend on the files alone: names are sorted, and times and owners are zero.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=9) as tar:
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            entry = tarfile.TarInfo(f"{TOP}/{path.relative_to(folder).as_posix()}")
            entry.size = path.stat().st_size
            with path.open("rb") as f:
                tar.addfile(entry, f)
    archive.parent.mkdir(parents=True, exist_ok=True)
    disk.write_whole(archive, packed.getvalue())


@contextlib.contextmanager
def unpacked(archive: Path):
    """with unpacked(here / "runs.tar.xz") as kept: the folder of the kept runs, removed at the end of the block.

    Raises ValueError when the archive is missing or broken.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            packed = io.BytesIO(lzma.decompress(archive.read_bytes()))  # all of it, so that a torn file is noticed
            with tarfile.open(fileobj=packed) as tar:
                tar.extractall(folder, filter="data")
        except (OSError, tarfile.TarError, lzma.LZMAError) as error:
            raise ValueError(f"{archive} cannot be unpacked ({error}): restore it from git.") from None
        yield Path(folder, TOP)


# ----------------------------------------------------------------------------------------------------------------------
# what is kept of a run


def portable(value):
    """JSON without what belongs to one machine: an absolute path keeps its last part, also as a flag's value."""
    if isinstance(value, dict):
        return {k: portable(v) for k, v in value.items() if k not in ONE_MACHINE}
    if isinstance(value, list):
        return [portable(v) for v in value]
    if isinstance(value, str) and "=/" in value:
        name, _, path = value.partition("=")
        return f"{name}={Path(path).name}"
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return value


def write_jsonl(path: Path, records: list[dict]) -> None:
    lines = [json.dumps(record, separators=(",", ":")) + "\n" for record in records]
    path.write_text("".join(lines))


def subset(record: dict, fields) -> dict:
    return {k: record[k] for k in fields if k in record}


def keep_file(path: Path, kept: Path) -> None:
    if path.suffix == ".jsonl":
        write_jsonl(kept, portable(runs.read_jsonl(path)))
    elif path.suffix == ".json":
        schema = OBJECTS.get(path.name, ANYTHING)
        record = read_json(path, schema, "restore it, or leave its run out")
        kept.write_text(json.dumps(portable(record), indent=1) + "\n")
    else:
        shutil.copy(path, kept)


def keep(run: Path, kept: Path, also: list[str]) -> None:
    """Writes what is kept of `run` into the new folder `kept`. ValueError when the run is not finished.

    also: patterns of more files to keep, whole, by their names without folders.
    """
    if not (run / "summary.json").exists():
        raise ValueError(f"{run} is not finished (no summary.json): continue it, then keep its results.")
    if not (run / "scalars.jsonl").exists():
        raise ValueError(f"{run} has no scalars.jsonl: restore it, or leave the run out.")
    for fault in runs.read_run(run)["notes"]:
        tqdm.write(f"NOTE: {run}: {fault}", file=sys.stderr)
    kept.mkdir(parents=True)
    for pattern in TABLES:
        for path in sorted(run.glob(pattern)):
            keep_file(path, kept / path.name)

    scalars = []
    for record in runs.read_jsonl(run / "scalars.jsonl"):
        if record.get("type") == "train":
            record = {k: v for k, v in record.items() if k == "type" or k not in runs.OTHER_FIELDS}
        scalars.append(record)
    write_jsonl(kept / "scalars.jsonl", scalars)

    for path in sorted(run.glob("val_documents_*.npz"))[-1:]:
        try:
            ab_items.read_documents(path)
        except ValueError as error:
            raise ValueError(f"{error}: restore it, or leave its run out.") from None
        shutil.copy(path, kept)
    (kept / "exposures").mkdir()
    for path in sorted((run / "exposures").glob("*.jsonl")):
        steps = [subset(record, ("step", "checksum")) for record in runs.read_jsonl(path)]
        write_jsonl(kept / "exposures" / path.name, steps)
    for pattern in also:
        for path in sorted(run.glob(pattern)):
            keep_file(path, kept / path.name)


def check_out(archive: Path) -> None:
    """ValueError where --out cannot be written, or would replace something else than an archive."""
    disk.make_folder(archive.parent, "--out, whose folder")
    if archive.is_dir():
        raise ValueError(f"--out {archive} is a folder: name a file in it, as {archive / 'runs.tar.xz'}.")
    if archive.exists():
        with archive.open("rb") as f:
            if f.read(len(XZ)) != XZ:
                raise ValueError(f"--out {archive} exists and is no archive of keep_results.py: choose another file.")


def check_also(folders: list[Path], patterns: list[str]) -> None:
    """ValueError for a pattern of --also that is of no file of these runs."""
    for pattern in patterns:
        if not pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise ValueError(f"--also {pattern!r} is no file of a run: name files by their paths in its folder.")
        found = [path for folder in folders for path in folder.glob(pattern)]
        if not found:
            raise ValueError(f"no run holds {pattern}: make these files first, or leave them out of --also.")
        for path in found:
            if not path.is_file():
                raise ValueError(f"--also {pattern}: {path} is a folder: name the files in it, as {pattern}/*.")


def main(argv=None):
    p = flags.Parser(prog="keep_results.py", description=__doc__)
    p.add_argument("runs", nargs="+", help="run folders, or quoted patterns")
    p.add_argument("--out", type=Path, required=True, help="archive to write, <experiment>/runs.tar.xz")
    p.add_argument("--also", nargs="+", default=[], metavar="FILE",
                   help="more files of each run to keep, or quoted patterns (default: none)")
    args = p.parse_args(argv)
    folders = runs.expand(args.runs, "runs")
    folders = [f.resolve() for f in folders if (f / "config.json").exists()]
    if not folders:
        raise ValueError("no folder among these is a run (config.json): name run folders.")
    check_also(folders, args.also)
    check_out(args.out)
    # runs are named by their path below the folder that all of them share: stage and run, or the run alone
    shared = os.path.commonpath([folder.parent for folder in folders])
    with tempfile.TemporaryDirectory() as scratch:
        for folder in tqdm(folders, unit="run", disable=None):
            keep(folder, Path(scratch, folder.relative_to(shared)), args.also)
        try:
            pack(Path(scratch), args.out)
        except OSError as error:
            why, remedy = disk.reason_of(error), disk.remedy_of(error)
            fault = f"--out {args.out} cannot be written ({why})"
            raise ValueError(f"{fault}: {remedy}, or choose another file.") from error
    print(f"{units.count(len(folders), 'run')}, {args.out.stat().st_size / 1e6:.2f} MB in {args.out}")


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "keep_results.py", "stopped, nothing was written.")
