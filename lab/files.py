"""files.py owns which files a name stands for, and opens them: gzip, zstd, zip, byte-order marks, bounds.

    files.find(["corpus", "more/*.jsonl"], suffixes, "--dataset")  # every file of these kinds, once
    files.only("gsm8k/test.jsonl", suffixes)                       # the one file of a name

A path that exists is itself, whatever characters it holds; any other name is a glob. A folder
stands for every file of a known kind in it and below. What is left out, or read although its name
speaks against it, is named on stderr.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lab.terminal import note

# twice the longest document: JSON escapes some characters, and a line has other fields
MAX_LINE_BYTES = 2**26
MAX_CONTAINERS = 10**6  # lists and objects in a line: 60 MB of `[],` would take 1.4 GB
MAX_BLANK_LINES = 10**6  # in a row: no data looks so, but a few bytes of gzip can hold a billion
# what other files begin with, whose name says that they are text
OTHER_KINDS = {
    b"\x1f\x8b": ("a gzip file", "unpack it, or let its name end in .jsonl.gz"),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "unpack it, or let its name end in .jsonl.zst"),
    b"PAR1": ("a parquet file", "let its name end in .parquet"),
    b"PK\x03\x04": ("a zip", "unpack it"),
    b"%PDF-": ("a PDF", "convert it to text"),
}
# what the names of a split's files hold as a whole word
SPLITS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}


# --------------------------------------------------------------------------------------------------
# which files


def find(names: Iterable, suffixes: Iterable[str], flag: str = "--data",
         split: str | None = None) -> list[str]:
    """The files that names stand for, in the order of the names, each once: not again through a
    link, another spelling or a second name. split: in a folder whose files all name a split, and
    some of them this one, the others are left out. FileNotFoundError or ValueError in one sentence;
    `flag` is what the user wrote the names after."""
    suffixes = tuple(suffixes)
    known, chosen, again = set(), [], []
    paths = (path for name in names for path in _files_of(str(name), suffixes, flag, split))
    for path in paths:
        status = os.stat(path)
        key = os.path.realpath(path)
        if status.st_ino:  # also of a hard link, and in any spelling that the file system knows
            key = status.st_dev, status.st_ino
        if key in known:
            again.append(path)
            continue
        known.add(key)
        chosen.append(path)
    if again:
        names = listed(list(dict.fromkeys(again)))
        note(f"NOTE: {flag}: {names} came before under this or another name and is read once.")
    packed = [path for path in chosen if path.lower().endswith((".gz", ".zst"))]
    plain = set(chosen)
    twins = [path for path in packed if path.rsplit(".", 1)[0] in plain]
    if twins:
        note(f"NOTE: {flag}: {listed(twins)} and the same name unpacked are both read; if they are the "
             "same data, name one.")
    return chosen


def only(name, suffixes: Iterable[str], flag: str = "--data") -> str:
    """The one file that a name stands for. FileNotFoundError when there is none or more than one."""
    path = os.path.expanduser(str(name))
    if os.path.isfile(path):
        return path
    paths = find([name], suffixes, flag)
    if len(paths) > 1:
        raise FileNotFoundError(f"{flag} {name}: no such file, but {len(paths):,} ({listed(paths)}): "
                                "name one of them.")
    return paths[0]


def short_name(path: str) -> str:
    """'edu_web' of a file or pattern data/edu_web.parquet, and of data/edu_web/*.parquet."""
    extensions = r"(\.(parquet|jsonl?|txt|gz|zst|zip))+$"
    names = [re.sub(extensions, "", part) for part in Path(path).parts]
    return next((name for name in reversed(names) if name.strip("*./")), path)


def listed(paths: list) -> str:
    """A few of the paths, and how many there are."""
    names = ", ".join(map(str, paths[:4]))
    if len(paths) > 4:
        names += f" and {len(paths) - 4:,} more"
    return names


def reader_of(table: dict[str, Callable], path) -> Callable:
    """The entry of a {suffix: reader} table for a file. ValueError when there is none."""
    name = str(path).lower()
    for suffix, reader in table.items():
        if name.endswith(suffix):
            return reader
    raise ValueError(f"{path} is none of {', '.join(table)}: convert it to one of these.")


def _files_of(name: str, suffixes: tuple[str, ...], flag: str, split: str | None) -> list[str]:
    path = os.path.expanduser(name)
    paths = [path]
    if not os.path.lexists(path):
        root = path
        while root and not os.path.lexists(root):
            root = os.path.dirname(root)
        # folders that exist are themselves too
        paths = sorted(glob.glob(glob.escape(root) + path[len(root) :], recursive=True))
    if not paths:
        raise FileNotFoundError(f"{flag} {name}: no such file or glob; check the path.")
    chosen = {}  # in their order
    for path in paths:
        if os.path.isdir(path):
            inside = _in_folder(path, suffixes, flag, split)
            # `data/**` matches folders without files too
            if not inside and len(paths) == 1:
                kinds = ", ".join(suffixes)
                fault = f"{flag} {path} holds no data files ({kinds})"
                raise FileNotFoundError(f"{fault}: name another folder or files.")
            chosen |= dict.fromkeys(inside)
        elif path not in chosen:
            _check_kind(path, suffixes)
            chosen[path] = None
    return list(chosen)


def _check_kind(path: str, suffixes: tuple[str, ...]) -> None:
    if os.path.islink(path) and not os.path.exists(path):
        raise FileNotFoundError(f"{path} is a link to nothing: repair or remove it.")
    if not os.path.isfile(path):
        raise ValueError(f"{path} is neither a file nor a folder: write its content into one.")
    reader_of(dict.fromkeys(suffixes), path)  # or refuse it


def _in_folder(folder: str, suffixes: tuple[str, ...], flag: str, split: str | None) -> list[str]:
    """Every file of a known kind in a folder and below it, by name; no hidden ones."""
    known, others = [], []
    for path in _walk(folder):
        inside = Path(os.path.relpath(path, folder))
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in inside.parts)
        is_known = path.lower().endswith(suffixes)
        if is_known and not hidden:
            _check_kind(path, suffixes)
            known.append(path)
        elif is_known or not hidden:
            others.append(inside)
    kinds = ", ".join(suffixes)
    if others and not known:
        fault = f"{flag} {folder} holds no data files ({kinds}), only {listed(others)}"
        raise FileNotFoundError(f"{fault}: convert them, or name other files.")
    if others:
        note(f"NOTE: {flag} {folder}: leaves out {listed(others)}, hidden or none of {kinds}.")
    return _of_split(folder, known, flag, split)


def _walk(folder: str) -> list[str]:
    """Paths of the files in a folder and below, links to folders included, each folder once."""
    def refuse(error: OSError):
        fault = f"{error.filename} cannot be read ({error.strerror})"
        raise ValueError(f"{fault}: check its permissions.") from error

    paths, seen = [], set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(place)
        key = (status.st_dev, status.st_ino)
        if key in seen:
            folders.clear()
            continue
        seen.add(key)
        folders.sort()
        paths += [os.path.join(place, name) for name in names]
    return sorted(paths)


def _of_split(folder: str, paths: list[str], flag: str, split: str | None) -> list[str]:
    """The files of a split, where every file of a folder names one; else all of them."""
    splits = [split_of(Path(os.path.relpath(path, folder))) for path in paths]
    if split is None or not paths:
        return paths
    wanted = next((name for name, words in SPLITS.items() if split in words), split)
    if wanted in splits and None not in splits:
        kept = [path for path, name in zip(paths, splits, strict=True) if name == wanted]
        rest = sorted(set(paths) - set(kept))
        if rest:
            note(f"NOTE: {flag} {folder}: reads the {len(kept):,} files of its split {wanted} and leaves out "
                 f"{listed(rest)}.")
        return kept
    if wanted != "train":
        raise ValueError(f"{flag} {folder} is not divided into splits of which one is {split!r}: "
                         f"name files, or drop --split to read all {len(paths):,}.")
    others = {name: path for path, name in zip(paths, splits, strict=True)}
    strange = [path for name, path in others.items() if name not in (None, "train")]
    if strange:
        note(f"NOTE: {flag} {folder}: reads all of its {len(paths):,} files, also {listed(strange)}.")
    return paths


def words_of(name: str) -> set[str]:
    """The words of a name, in lower case: {"retrieval", "train"} of retrieval_train_000."""
    return {word.lower() for word in re.findall(r"[A-Z]*[a-z]+|[A-Z]+", name)}


def split_of(path: Path) -> str | None:
    """The split that a path names as a whole word: its file, else its innermost folder that does."""
    for part in reversed(path.parts):
        named = [split for split, words in SPLITS.items() if words & words_of(part)]
        if named:
            return named[0] if len(named) == 1 else None
    return None


# what nanoGPT's --init_from takes beside the names of GPT-2's sizes
NANOGPT = {"scratch": "leave it out, for fresh weights", "resume": "pass --out_dir RUN --resume auto in its place"}


def no_checkpoint(path: Path, flag: str) -> str:
    """What to do where a flag that takes a checkpoint's folder is given something else."""
    then = f", then pass {flag} OUT"
    if not flag.startswith("--"):
        then = ", then name OUT"
    if flag == "--init_from" and str(path) in NANOGPT:
        return NANOGPT[str(path)]
    if re.fullmatch(r"((openai-community|distilbert)/)?(distil)?gpt2(-medium|-large|-xl)?", str(path)):
        return f"fetch it with python model.py import {path} OUT{then}"
    if path.is_file() and (path.parent / "model.json").exists():
        return f"name the folder that holds it, {path.parent}"
    if path.is_file():
        return f"if it is another project's checkpoint, python model.py import {path} OUT{then}"
    return "name a run's, or one in its ckpt/; python model.py import NAME OUT takes other projects' files"


# --------------------------------------------------------------------------------------------------
# opening


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type, to be quoted in a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextlib.contextmanager
def damage_in(path):
    """Turns whatever a damaged file raises inside the block into one sentence."""
    import pyarrow

    try:
        yield
    except (OSError, EOFError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)}): check its permissions; if it "
                         "is damaged or cut off, download it again.") from error


def without_mark(start: bytes, path) -> bytes:
    """The first bytes of a text without UTF-8's byte-order mark. ValueError for another kind of file
    under a text's name, and for UTF-16 and UTF-32."""
    for magic, (kind, remedy) in OTHER_KINDS.items():
        if start.startswith(magic):
            raise ValueError(f"{path} is {kind} inside, not text: {remedy}.")
    zeros = start[:1000].count(0)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or zeros * 4 > len(start[:1000]):
        raise ValueError(f"{path} is UTF-16 or UTF-32, not UTF-8: convert it, as with "
                         "iconv -f UTF-16 -t UTF-8.")
    return start.removeprefix(b"\xef\xbb\xbf")


def lines_of(f, path, most: int = sys.maxsize) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of a binary file's lines that are not blank, unpacked by the suffix of
    `path`. Arrow checks all of a gzip or zstd file, checksums included (the zstandard package
    accepts a cut-off one). ValueError beyond `most` bytes; no more than a line is ever held."""
    import pyarrow

    kind = {".gz": "gzip", ".zst": "zstd"}.get(Path(path).suffix.lower())
    if kind is not None:
        f = io.BufferedReader(pyarrow.CompressedInputStream(f, kind), 2**20)
    blank, size, begun = 0, 0, False
    for number, line in enumerate(iter(lambda: f.readline(MAX_LINE_BYTES), b""), 1):
        size += len(line)
        if len(line) == MAX_LINE_BYTES:
            fault = f"line {number:,} of {path} has {MAX_LINE_BYTES:,} bytes or more"
            raise ValueError(f"{fault}: split it up.")
        check_size(path, size, most)
        if not begun:
            line = without_mark(line, path)
        if line and not line.isspace():
            blank, begun = 0, True
            yield number, line
            continue
        blank += 1
        if blank > MAX_BLANK_LINES:
            raise ValueError(f"{path} has {blank:,} blank lines in a row: remove them.")


def json_of(line: bytes):
    """A line's value. ValueError when it is not JSON or would take far more memory than it has bytes."""
    if len(line) > 2**22 and line.count(b"[") + line.count(b"{") > MAX_CONTAINERS:
        raise ValueError(f"more than {MAX_CONTAINERS:,} lists and objects")
    return json.loads(line)


def check_size(path, size: int, most: int) -> None:
    """ValueError for a file that unpacks to more than `most` bytes."""
    if size > most:
        raise ValueError(f"{path} unpacks to {size:,} bytes or more, and at most {most:,} are read: "
                         "give the file as it was published.")


def check_declared(path, members: list[zipfile.ZipInfo], most: int) -> None:
    """The same of a zip, by what it says of its members, before anything is unpacked."""
    check_size(path, sum(member.file_size for member in members), most)
    kinds = {member.compress_type for member in members}
    if kinds & {zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}:
        # zipfile unpacks what it reads of these at once, whatever size that has
        raise ValueError(f"{path} is packed with bzip2 or LZMA: pack it with zip -e.")


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, password: bytes) -> bytes:
    """A member's bytes, at most as many as it declares. In one read, zipfile would unpack all there
    is before it cuts."""
    with archive.open(member, pwd=password) as f:
        return b"".join(iter(lambda: f.read(2**20), b""))


def stamps_of(paths) -> tuple:
    """(bytes, time of the last change) of each file."""
    stats = [os.stat(path) for path in paths]
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)


def refuse_changed(paths, stamps: tuple) -> None:
    """ValueError when a file has been changed since its stamp was taken, so that what was read may be other text than
    its checksum says. stamps: of the paths, () for files on the hub."""
    for path, before in zip(paths, stamps, strict=False):
        if not os.path.exists(path) or stamps_of([path]) != (before,):
            raise ValueError(f"{path} was changed while it was read: wait until it is final, and prepare anew.")
