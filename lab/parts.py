"""parts.py owns the parts of a dataset: the tokens of single source files, made apart on many machines, then merged.

    python prepare_fineweb.py --dataset 'corpus/*.parquet' --out_dir D --part 0/64     # source files 0, 64, 128, ...
    python prepare_fineweb.py --dataset 'corpus/*.parquet' --out_dir D --merge         # when the parts of all are there
    python prepare_bos_rows.py --dataset 'corpus/*.parquet' --out_dir R --parts_dir D/parts --merge

D/parts/000003.npz is the part of source file 3, counted from 0 in the order in which one process reads them. It is
renamed into place when it is whole, so the same command again makes what is missing. It holds
    000000/ids.npy, 000000/documents.npy, 000000/rest.json
                   the first batch as tokenizing.Tokenized (DOCUMENT), numbered from the file's first document; so on
    about.json     which file (a local one's sha256, a hub's revision) and which flags, tokenizer and benchmarks (ABOUT)

A part depends on its file alone. All that depends on other documents is decided in --merge, in the order of one
process, which reads batches from here instead of making them: so it writes the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import re
import shlex
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab import disk, processes, sources, terminal, tokenizing
from lab.files import first_line, listed, refuse_changed, stamps_of
from lab.schema import ANY_NAME, ANYTHING, COUNT, TEXT, differences, misfit
from lab.token_files import require
from lab.tokenizer import tokenizer_hash
from lab.tokenizing import Tokenized

FORMAT_VERSION = 1
DOCUMENT = np.dtype([  # the columns of Tokenized
    ("number", "<i8"), ("tokens", "<i8"), ("baseline_tokens", "<i8"), ("utf8_bytes", "<i8"),
    ("hash", "V16"), ("selected", "?"),
])
IDS = np.dtype("<u2")
BATCH_TOKENS = 2**20  # tokens in a batch of a part: --merge does some work for each batch
NPY_MAGIC = np.lib.format.magic(1, 0)
NPY_TYPES = {dtype: repr(np.lib.format.dtype_to_descr(dtype)).encode() for dtype in (DOCUMENT, IDS)}
PART_NAMES = re.compile(r"(\d{6,})\.npz")
ABOUT = {
    "format_version": COUNT, "settings": {ANY_NAME: ANYTHING},
    "file": {"name": TEXT, ANY_NAME: ANYTHING},
    "documents": COUNT, "tokens": COUNT, "unusable": COUNT,
    "cut_at": COUNT,  # --max_docs, where the file may have more documents than that; else 0
    "ends": [COUNT],  # of each batch: the number of the document after it
}
# flags that decide what is in a part, and the others of the command that makes it
SETTINGS = "text_field condition inject val_fraction holdout_by".split()
OF_COMMAND = "config revision split max_docs decontaminate tokenizer out_dir parts_dir".split()
EXAMPLES = """

a big corpus on many machines gives the same bytes; with all other flags in the first line:
  P="python prepare_fineweb.py --dataset 'corpus/*.parquet' --out_dir D"
  sbatch --array=0-63 --wrap "$P --part \\$SLURM_ARRAY_TASK_ID/64"    on the nodes of a cluster, or
  seq 0 63 | xargs -P 8 -I{} sh -c "$P --part {}/64"                  eight at once here; again after a failure
  sh -c "$P --merge"                                                  when all parts are there
experiments/cluster.py does the same through datatrove (Slurm, Ray, or one machine)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a preparation on many machines."""
    add = parser.add_argument_group("many machines").add_argument
    add("--part", metavar="i/n",
        help="only tokenise the source files i, i + n, i + 2 n, ..., each into a part; finished ones are "
             "skipped; what is decided over all documents (--val_shards, --target_tokens, rows) is left "
             "to --merge")
    add("--merge", action="store_true",
        help="make the dataset of its parts, as one process would have made it")
    add("--parts_dir", help="folder of the parts (default: OUT_DIR/parts)")


def check_arguments(args: argparse.Namespace) -> None:
    """ValueError, in one sentence, unless the flags of add_arguments go together and with the others."""
    if args.part is None and not args.merge:
        require(not args.parts_dir, "--parts_dir needs --part or --merge", "add one, or leave it out")
        return
    flag = "--merge"
    if args.part is not None:
        require(not args.merge, "--part and --merge are two steps", "pass one")
        flag, _ = "--part", share_of(args.part)
    is_made_up = args.dataset == ["synthetic"]
    require(not is_made_up, f"--dataset synthetic has no files for {flag}", "leave it out")
    fault = f"--max_shards takes shards of tokens, which need no {flag}"
    require(args.max_shards is None, fault, "leave it out")


def share_of(part: str) -> tuple[int, int]:
    """(i, n) of --part i/n. ValueError unless 0 <= i < n."""
    numbers = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part)
    share = (0, 0)
    if numbers:
        share = int(numbers[1]), int(numbers[2])
    remedy = "write i/n with i from 0 to n - 1, such as --part 0/8"
    require(share[0] < share[1], f"--part {part or repr(part)} is no share", remedy)
    return share


# ----------------------------------------------------------------------------------------------------------------------
# what a part is of


class Part(NamedTuple):
    """Where the part of a source file is, or should be."""

    path: Path
    file: dict  # {"name", "bytes", "sha256"} of a local one, {"name", "dataset", "revision"} on the hub
    args: argparse.Namespace
    share: str  # of which it is the only part

    @property
    def again(self) -> str:
        """The command that makes it; only written out when it is needed, as it may name thousands of files."""
        return command(self.args, self.share)


def part_of(args: argparse.Namespace, source: sources.Source, index: int) -> Part:
    """The part of source file `index`; without `open_source`, a local file is read whole for its checksum."""
    path = folder_of(args) / f"{index:06d}.npz"
    if source.kind == "hub":
        name = source.record["files"][index]
        file = {"name": name, "dataset": args.dataset[0], "revision": source.record["revision"]}
    elif "files" in source.record:
        file = source.record["files"][index]
    else:
        file = sources.describe(source.files[index])
    return Part(path, file, args, f"{index}/{len(source.files)}")


def folder_of(args: argparse.Namespace) -> Path:
    """Where the parts are."""
    return Path(args.parts_dir or Path(args.out_dir) / "parts")


def settings_of(args: argparse.Namespace, guard) -> dict:
    """What decides the content of a part beside its file."""
    benchmarks = guard.settings if guard else None
    flags = {name: getattr(args, name) for name in SETTINGS}
    return {"tokenizer_sha256": tokenizer_hash(), **flags, "decontaminate": benchmarks}


def command(args: argparse.Namespace, share: str) -> str:
    """The command that makes a share of the parts, to be pasted into a shell."""
    words = ["python", "prepare_fineweb.py", "--dataset", *args.dataset]
    is_hub = len(args.dataset) == 1 and sources.is_hub_name(args.dataset[0])
    for name in SETTINGS + OF_COMMAND:
        value = getattr(args, name)
        if not value or value == "gpt2" or (name in ("config", "revision") and not is_hub):
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *map(str, values)]
    return shlex.join([*words, "--part", share])


def refuse_foreign(part: Part, about: dict, settings: dict, max_docs: int) -> None:
    """ValueError, in one sentence, unless a part is of its file and of these settings and has all documents needed."""
    version, recorded, cut_at = about["format_version"], about["settings"], about["cut_at"]
    changed = differences(recorded, settings)
    words = lambda file: ", ".join(f"{key} {value}" for key, value in file.items())
    fault, remedy = "", ""
    if version != FORMAT_VERSION:
        fault = f"is of format {version}, not {FORMAT_VERSION}"
    elif changed:
        fault = f"was made with other settings ({listed(changed)})"
        remedy = "repeat those, choose another --parts_dir, or "
    elif about["file"] != part.file:
        fault = f"is of another file ({words(about['file'])}; --dataset names {words(part.file)})"
        remedy = "name the files it was made of, or "
    elif cut_at and not 0 < max_docs <= cut_at:
        fault = f"was made with --max_docs {cut_at} and may lack documents"
        remedy = "repeat that, or "
    if fault:
        raise ValueError(f"{part.path} {fault}: {remedy}delete it and run {part.again}.")


# ----------------------------------------------------------------------------------------------------------------------
# --part


def make(args: argparse.Namespace, guard) -> None:
    """Tokenise the source files of --part i/n that have no part yet. ValueError / OSError in one sentence, and
    KeyboardInterrupt after ctrl-C; the parts finished until then stay."""
    from tqdm import tqdm

    first, n = share_of(args.part)
    source = sources.find_source(args)
    folder, settings = folder_of(args), settings_of(args, guard)
    disk.make_folder(folder, "--parts_dir")
    chosen = range(first, len(source.files), n)
    started, tokens, n_old = time.monotonic(), 0, 0
    stop = processes.StopRequest("the file at work is left out")
    interval = 0.5 if sys.stderr.isatty() else 10  # seconds between two lines

    def count(batch: Tokenized) -> None:
        nonlocal tokens
        if stop.asked:
            raise KeyboardInterrupt
        tokens += len(batch.ids)
        rate = tokens / max(time.monotonic() - started, 1e-3) / 1e6
        bar.set_postfix_str(f"{tokens:,} tokens, {rate:.2f} M/s", refresh=False)
        bar.update(0)

    try:
        with tqdm(total=len(chosen), unit="file", mininterval=interval, miniters=0) as bar:
            for index in chosen:
                stamps = source.stamps and stamps_of([source.files[index]])
                part = part_of(args, source, index)
                if part.path.exists():
                    n_old += 1
                else:
                    remove_unfinished(part, if_dead=True)
                    alone = source._replace(files=[source.files[index]], counts={}, stamps=stamps)
                    batches = tokenizing.joined(whole_file(args, alone, guard, count), BATCH_TOKENS)
                    write_part(part, settings, batches, args.max_docs)
                about = read_about(part)
                refuse_foreign(part, about, settings, args.max_docs)
                remove_unfinished(part)
                unusable, name = about["unusable"], part.file["name"]
                if unusable and args.bad_documents == "error":
                    terminal.note(f"NOTE: {name} has {unusable:,} unusable documents: --merge stops at them "
                                  "without --bad_documents skip.")
                bar.update()
    finally:
        stop.restore()
    print(f"part {args.part}: {len(chosen):,} of {len(source.files):,} files are in {folder}, {n_old:,} of them "
          f"from before; {tokens:,} new tokens.\nWhen the parts of all are there, run the same with --merge.")


def whole_file(args: argparse.Namespace, source: sources.Source, guard, count: Callable) -> Iterator[Tokenized]:
    """The batches of a source of one file; count(batch) is called before each. ValueError at its end when the file was
    changed meanwhile."""
    for batch in tokenizing.tokenized_batches(args, source, 0, guard):
        count(batch)
        yield batch
    refuse_changed(source.files, source.stamps)


def remove_unfinished(part: Part, if_dead: bool = False) -> None:
    """Deletes what killed processes, or one that came too late, have left of a part. if_dead: only of processes of this
    machine that are no more, as others may be at work."""
    own = re.escape(f"{part.path.name}.{platform.node()}-")
    for unfinished in part.path.parent.glob(f"{part.path.name}.*.tmp"):
        process = re.fullmatch(own + r"(\d+)\.tmp", unfinished.name)
        if not if_dead or (process and not disk.is_alive(int(process[1]))):
            unfinished.unlink(missing_ok=True)


def write_part(part: Part, settings: dict, batches: Iterator[Tokenized], max_docs: int) -> None:
    """Write the batches of one file, whole or not at all.

    Two processes at the same part do no harm: when the first has finished, `make` removes what the other has begun."""
    path, ends, tokens, unusable = part.path, [], 0, 0
    unfinished = path.with_name(f"{path.name}.{platform.node()}-{os.getpid()}.tmp")
    try:
        with (contextlib.closing(batches), disk.replacing(path, unfinished) as f,
              zipfile.ZipFile(f, "w") as archive):
            for batch in batches:
                write_batch(archive, len(ends), batch)
                ends.append(batch.end)
                tokens += len(batch.ids)
                unusable += len(batch.bad)
            documents = max(ends, default=0)
            cut_at = max_docs if documents == max_docs else 0
            about = {"format_version": FORMAT_VERSION, "settings": settings, "file": part.file,
                     "documents": documents, "tokens": tokens, "unusable": unusable, "cut_at": cut_at,
                     "ends": ends}
            archive.writestr("about.json", json.dumps(about))
    except FileNotFoundError:  # another process has removed it
        if not path.exists():
            raise


def write_batch(archive: zipfile.ZipFile, number: int, batch: Tokenized) -> None:
    """A batch as three files of a part."""
    documents = np.zeros(len(batch.numbers), DOCUMENT)
    documents["number"], documents["tokens"] = batch.numbers, batch.lengths
    documents["baseline_tokens"], documents["utf8_bytes"] = batch.baseline_tokens, batch.utf8_bytes
    documents["selected"] = batch.selected
    documents["hash"] = np.array(batch.digests, "V16")
    for name, array in {"ids": batch.ids.astype(IDS, copy=False), "documents": documents}.items():
        with archive.open(f"{number:06d}/{name}.npy", "w", force_zip64=True) as f:
            np.lib.format.write_array(f, array, allow_pickle=False)
    rest = [batch.special, batch.bad, list(batch.mul_bytes.items()), list(batch.hits.items())]
    archive.writestr(f"{number:06d}/rest.json", json.dumps(rest))


# ----------------------------------------------------------------------------------------------------------------------
# --merge


@contextlib.contextmanager
def reading(part: Part) -> Iterator[zipfile.ZipFile]:
    """A part as an open zip. What a damaged one raises in the block, in one of three libraries, becomes a sentence."""
    try:
        if not part.path.is_file():
            raise ValueError("it is no file")
        with zipfile.ZipFile(part.path) as archive:
            disk.refuse_bomb(archive)
            yield archive
    except Exception as error:
        fault = f"{part.path} is damaged ({first_line(error)})"
        raise ValueError(f"{fault}: delete it and run {part.again}.") from error


def read_about(part: Part) -> dict:
    """about.json of a part."""
    with reading(part) as archive:
        about = json.loads(archive.read("about.json"))
        fault = misfit(about, ABOUT)
        if fault:
            raise ValueError(fault)
        return about


def read_array(archive: zipfile.ZipFile, name: str, dtype: np.dtype) -> np.ndarray:
    """A one-dimensional array of a part, read-only: a view of the bytes read. numpy's own reader copies them twice and
    compiles each header as Python code, which took 4 % of a merge."""
    data = archive.read(name)
    first = 10 + int.from_bytes(data[8:10], "little")  # behind the magic bytes, the version and the header
    if not data.startswith(NPY_MAGIC) or NPY_TYPES[dtype] not in data[:first]:
        raise ValueError(f"{name} is of another format")
    return np.frombuffer(data, dtype, offset=first)


def read_batch(archive: zipfile.ZipFile, number: int, first: int, end: int) -> Tokenized:
    """What write_batch wrote, the file's documents numbered from `first`. The CRC of all that is read is checked."""
    ids = read_array(archive, f"{number:06d}/ids.npy", IDS)
    documents = read_array(archive, f"{number:06d}/documents.npy", DOCUMENT)
    lengths = documents["tokens"].copy()
    if lengths.sum() != len(ids):
        raise ValueError("the documents do not fit the tokens")
    special, bad, mul_bytes, hits = json.loads(archive.read(f"{number:06d}/rest.json"))
    hashes = documents["hash"].tobytes()
    digests = [hashes[at : at + 16] for at in range(0, len(hashes), 16)]
    bad = [(number + first, why) for number, why in bad]
    return Tokenized(ids, documents["number"] + first, lengths, documents["baseline_tokens"],
                     documents["utf8_bytes"], digests, documents["selected"], dict(mul_bytes),
                     dict(hits), special, bad, first + end)


def check_parts(args: argparse.Namespace, source: sources.Source, guard) -> list[dict | None]:
    """about.json of the part of each source file, None where it is missing. ValueError, in one sentence, for a foreign
    one; also for a missing one, unless --target_tokens or --max_docs may do without it."""
    settings, abouts, folder = settings_of(args, guard), [], folder_of(args)
    is_file = folder.exists() and not folder.is_dir()
    require(not is_file, f"--parts_dir {folder} is a file", "name the folder of the parts")
    for index in range(len(source.files)):
        part, about = part_of(args, source, index), None
        if part.path.exists():
            about = read_about(part)
            refuse_foreign(part, about, settings, args.max_docs)
        abouts.append(about)
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            name = PART_NAMES.fullmatch(path.name)
            require(not name or int(name[1]) < len(abouts),
                    f"{path} is of no file: --dataset names {len(abouts):,}, counted from 0",
                    "name the files the parts were made of, or delete it")
    if None in abouts and not (args.target_tokens or args.max_docs):
        refuse_missing(args, source, abouts)
    return abouts


def refuse_missing(args: argparse.Namespace, source: sources.Source,
                   abouts: list[dict | None]) -> None:
    """Raises ValueError: which parts are missing, and the command that makes them."""
    missing, n = [index for index, about in enumerate(abouts) if about is None], len(abouts)
    named = listed([Path(source.files[index]).name for index in missing])
    shares = [f"{index}/{n}" for index in missing]
    if len(missing) == n:
        shares = ["0/1"]
    others, again = "", ""
    if shares[1:]:
        others = f", and the same with {listed(shares[1:])}"
    if args.target_tokens or args.max_docs:
        again = ", then --merge with --resume"
    fault = f"{folder_of(args)} lacks {len(missing):,} of {n:,} parts, those of {named}"
    raise ValueError(f"{fault}: run {command(args, shares[0])}{others}{again}.")


def documents(abouts: list[dict | None], source: sources.Source) -> int | None:
    """How many documents --merge will read; None where that is not known."""
    if None in abouts:
        return source.stop
    total = sum(about["documents"] for about in abouts)
    return min(total, source.stop or total)


def batches(args: argparse.Namespace, source: sources.Source, abouts: list[dict | None],
            start: int) -> Iterator[Tokenized]:
    """What tokenizing.tokenized_batches gives of the source files, from their parts."""
    stop = source.stop or sys.maxsize
    first = 0  # number of the file's first document
    for index, about in enumerate(abouts):
        if first >= stop:
            return
        if about is None:
            refuse_missing(args, source, abouts)
        if first + about["documents"] > start:
            with reading(part_of(args, source, index)) as archive:
                for number, (begin, end) in enumerate(itertools.pairwise([0, *about["ends"]])):
                    if first + end <= start or first + begin >= stop:
                        continue
                    batch = read_batch(archive, number, first, end)
                    if first + begin < start or first + end > stop:
                        batch = tokenizing.between(batch, start, stop)
                    yield batch
        first += about["documents"]
