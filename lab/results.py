"""results.py owns results.csv: a row per started run, with document 003's columns, ours, and every flag that counts.

train_gpt.py writes it: a row with the next number when a run starts (status "started", which a killed run keeps),
rewritten in place when it has "finished", was "stopped", has "diverged" or "crashed". So a run that went wrong stays in
the table, and a row that somebody deletes is missed. compare_runs.py --results reads it, or a table of such columns
made by hand.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import errno
import functools
import glob
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

from lab import disk, processes, runs

# document 003's columns, then ours. condition_columns() follow them
COLUMNS = (
    "run_id date git_commit seed attn_gate gate_pos gate_act learning_rate batch_size device_batch_size "
    "sequence_length num_iterations warmdown_iters final_val_loss best_val_loss train_time_ms ms_per_step "
    "gpu_name n_gpus notes "
    "arch optimizer condition n_layer n_embd parameters final_train_loss final_val_bits_per_byte "
    "final_val_loss_bos final_val_bits_per_byte_bos tokens_seen unique_tokens epochs flops_total "
    "data_fingerprint val_fingerprint muon_lr hellaswag_accuracy hellaswag_accuracy_norm "
    "hellaswag_accuracy_norm_bytes eval_official_sum eval_official_mean "
    "status started number folder data_content_sha256 val_content_sha256"
).split()

# document 003's columns that hold a flag under another name. batch_size counts sequences, its flag tokens
FLAG_OF = {
    "num_iterations": "max_train_steps",
    "sequence_length": "seq_len",
    "batch_size": "total_batch_tokens",
    "device_batch_size": "micro_batch_size",
}
COLUMN_OF = {flag: column for column, flag in FLAG_OF.items()}


def condition_columns(flags: dict, unused_flags=()) -> dict:
    """Columns for every flag that can change a result, except those that 003 has under another name.

    `unused_flags` names the flags without effect in this arm, such as gate_act without a gate."""
    renamed = FLAG_OF.values()
    columns = {flag: value for flag, value in runs.conditions(flags).items() if flag not in renamed}
    columns["unused_flags"] = " ".join(unused_flags)
    if flags.get("verify_data", "full") != "full":  # the fingerprints were not computed from what was read
        columns["verify_data"] = flags["verify_data"]
    return columns


@functools.cache
def trainer_flags() -> re.Pattern:
    """Matches the names of train_gpt.py's flags.

    As importing the trainer needs torch, they are read from its source and that of the rooms it imports, where they
    stand as add("--seq_len", ...) or, in a table, as "--beta1": ... A hole of an f-string, as in f"--{name}_every",
    stands for any word; a name that is all hole is left out.
    """
    trainer = (runs.REPO / "train_gpt.py").read_text(encoding="utf-8")
    sources = [trainer]
    for node in ast.walk(ast.parse(trainer)):
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            paths = [runs.REPO / f"{name.replace('.', '/')}.py" for name in names if name.startswith("lab.")]
            sources += [path.read_text(encoding="utf-8") for path in paths if path.exists()]
    names = re.findall(r'(?:\badd(?:_argument)?\(\s*f?|(?="--\w+":))"--([^"\s]+)"', "\n".join(sources))
    patterns = {re.sub(r"\{.*?\}", r"\\w+", name) for name in names}
    return re.compile("|".join(sorted(patterns - {r"\w+"})))


def is_condition(column: str) -> bool:
    """Whether a column of any table is a flag that can change a result. Others are results, or somebody's own."""
    flag = FLAG_OF.get(column, column)
    return runs.has_effect(flag) and trainer_flags().fullmatch(flag) is not None


# what tells a run's row from another's, as the same run_id may have been trained again: when it started or, where that
# is not recorded, what came out
IDENTITY = "run_id date seed num_iterations final_train_loss train_time_ms".split()


def is_same_run(row: dict, other: dict) -> bool:
    names = IDENTITY
    if row.get("started") and other.get("started"):
        names = ("run_id", "started")
    return all(whole(row.get(name, "")) == whole(other.get(name, "")) for name in names)


def read_own_table(path: Path, flag: str) -> Table:
    """read_table of a table that a row can be added to; one without columns when there is none yet."""
    if not path.exists():
        return Table([], [], ",", "utf-8-sig", False)
    table = read_table(path, flag)
    columns = table.columns
    faults = {
        "is not UTF-8, perhaps since a spreadsheet saved it": table.encoding != "utf-8-sig",
        "has no column run_id between commas": "run_id" not in columns or table.separator != ",",
        "has several columns without a name": columns.count("") > 1,
        "has numbers with decimal commas": table.has_decimal_commas,
    }
    for fault, is_so in faults.items():
        if columns and is_so:
            raise ValueError(f"{flag} {path} {fault}: "
                             "save it as comma-separated UTF-8, or name another table.")
    return table


def check_table(path, flag: str = "--results_csv") -> None:
    """ValueError, naming `flag`, unless a row can be added to a table. A run looks at it before it computes anything;
    nothing is written."""
    path = Path(os.path.realpath(path))
    try:
        if path.exists() and not path.is_file():  # not /dev/null either, whose place a table would take
            raise OSError(errno.EINVAL, "it is not a file")
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        read_own_table(path, flag)
        if path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, f"{folder} is not a folder to write into")
    except OSError as error:
        raise ValueError(f"{flag} {path} cannot be written ({error.strerror}): "
                         "name another table.") from None


def append_result(path, row: dict, flag: str = "--results_csv") -> None:
    """Add a run's row, or rewrite the one that it has: it has started before, or was killed as it wrote its last row.

    Its "number" is the next one. A table that has all columns is appended to, byte for byte. To another the columns are
    added; it loses no cell. ValueError, naming `flag`, when it could lose some. A link stays one."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.locked(path):  # two runs may finish at once
        columns, rows, *_ = read_own_table(path, flag)
        row = {name: "" if value is None else str(write_cell(value)) for name, value in row.items()}
        own = next((other for other in rows if is_same_run(row, other)), None)
        if own is not None and row.items() <= own.items():
            return
        if "started" in row:
            row["number"] = (own or {}).get("number") or str(next_number(rows))
        wanted = dict.fromkeys([*COLUMNS, *row])
        text = io.StringIO(newline="")
        if own is not None:
            own |= row
        if own is None and wanted.keys() <= set(columns):
            csv.DictWriter(text, columns, restval="").writerow(row)
            disk.append_line(path, text.getvalue().encode())
        else:
            table = csv.DictWriter(text, wanted | dict.fromkeys(columns), restval="")
            table.writeheader()
            table.writerows(rows if own is not None else [*rows, row])
            disk.write_whole(path, text.getvalue().encode())


def first_row(run) -> dict:
    """What the row of a training.Run of train_gpt.py holds when it starts."""
    args, config, data = run.args, run.record, run.record["data"]
    return {
        **condition_columns(config["flags"], config["unused_flags"]),
        "run_id": run.folder.name, "date": config["started"][:10], "notes": args.notes,
        "git_commit": config["code"]["git_commit"], "num_iterations": args.max_train_steps,
        "batch_size": args.total_batch_tokens // args.seq_len, "sequence_length": args.seq_len,
        "device_batch_size": args.micro_batch_size, "n_gpus": config["world_size"],
        "gpu_name": config["hardware"]["gpu"] or "cpu", "condition": data["condition"],
        "parameters": config["parameters"]["total"], "data_fingerprint": data["fingerprint"],
        "val_fingerprint": data["val_fingerprint_documents"],
        "val_fingerprint_tokens": data["val_fingerprint_tokens"], "data_format": data["format"],
        "mul_token_rate": data["mul_token_rate"], "code_sha256": config["code"]["code_sha256"],
        "init_sha256": (config["init"] or {}).get("sha256"),
    }


def place_of(folder, path, started: str) -> dict:
    """The columns of a row that find its run again: its folder, seen from the table, and when it started."""
    seen = ""
    if path:
        with contextlib.suppress(ValueError):  # another drive
            seen = Path(os.path.relpath(folder, Path(path).parent)).as_posix()
    return {"started": started, "folder": seen}


def next_number(rows: list[dict]) -> int:
    """Rows of before numbers were written count, too."""
    return 1 + max([len(rows), *numbers_of(rows)])


def numbers_of(rows: list[dict]) -> set[int]:
    cells = (whole(str(row.get("number") or "")) for row in rows)
    return {int(cell) for cell in cells if cell.isdecimal()}


@contextlib.contextmanager
def following(path, row: dict, is_main: bool, log=print):
    """Inside the block a run has its row in the table, which says when an exception has ended it.

    Yields the row: whoever ends the run in another way sets its "status" (finished: with its last row, written by
    append_result). A table that cannot be written costs no run: a warning."""
    row = {**row, "status": "started"}

    def write() -> None:
        try:
            if path and is_main:
                append_result(path, row)
        except (OSError, ValueError) as error:
            log(f"WARNING: {path} does not say that this run has {row['status']}: {error}")

    write()
    try:
        yield row
    except BaseException as error:
        row["status"] = ending_of(error)
        raise
    finally:
        if row["status"] in ("stopped", "diverged", "crashed"):
            with contextlib.suppress(OSError, ValueError):  # the log's disk may be full, too
                write()


def ending_of(error: BaseException) -> str:
    """The status of a run that an exception ends."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if isinstance(error, processes.DivergedError):
        return "diverged"
    return "crashed"


# ----------------------------------------------------------------------------------------------------------------------
# rows that are not there


def missing_numbers(tables: list[list[dict]]) -> list[int]:
    """Numbers of started runs without a row. tables: of several files; the parts of one, split up, fill each other."""
    numbers = [numbers_of(rows) for rows in tables]
    missing = set()
    for own, rows in zip(numbers, tables, strict=True):
        unnumbered = sum(not row.get("number") for row in rows)  # of before numbers were written
        gaps = set(range(1, max(own, default=0) + 1)) - own
        for other in numbers:
            if not own & other:
                gaps -= other
        missing.update(sorted(gaps)[unnumbered:])
    return sorted(missing)


def lost_folders(path, rows: list[dict]) -> list[Path]:
    """Folders of runs that belong to a table, by the name in their --results_csv, and have no row in it. Looked for in
    runs/ beside the table, and wherever the runs of its rows lie."""
    path = Path(path)
    homes = {path.parent / "runs"}
    homes |= {(path.parent / row["folder"]).parent for row in rows if row.get("folder")}
    known, lost = {row.get("run_id") for row in rows}, {}
    for config in sorted(file for home in homes for file in home.glob("*/config.json")):
        folder = config.parent
        if write_cell(folder.name) in known or folder.name in known:
            continue
        with contextlib.suppress(OSError, ValueError):
            table = runs.read_config(folder).get("flags", {}).get("results_csv")
            if isinstance(table, str) and table and Path(table).name == path.name:
                lost[folder.resolve()] = folder
    return list(lost.values())


# ----------------------------------------------------------------------------------------------------------------------
# cells, and tables that a spreadsheet has saved

# a list such as 128,0 is no number with a decimal comma
TEXT_COLUMNS = frozenset(
    "run_id date git_commit gpu_name notes cms_periods cms_widths teach_scale status started folder".split())
DECIMAL_POINT = re.compile(r"[+-]?\d+\.\d+([eE][+-]?\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
FORMULA = re.compile(r"'*\s*[=+\-@]")  # how a cell begins that a spreadsheet would compute


def write_cell(value):
    """A value as a cell. Text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "backslashreplace").decode()  # a folder's name may be no UTF-8
    if FORMULA.match(text) and not NUMBER.fullmatch(text):
        text = f"'{text}"
    return text


def read_cell(text: str) -> str:
    """The text that write_cell was given, without blanks around it."""
    text = text.strip()
    if text.startswith("'") and FORMULA.match(text):
        return text[1:]
    return text


def whole(cell: str) -> str:
    """A cell as it was written, where a spreadsheet or pandas has made 12.0 of 12."""
    number, point, zeros = cell.partition(".")
    if point and number.lstrip("-").isdecimal() and not zeros.strip("0"):
        return number
    return cell


class Table(NamedTuple):
    """A table as it stands in its file."""

    columns: list[str]  # none: there is no table yet
    rows: list[dict]
    separator: str
    encoding: str
    has_decimal_commas: bool


def read_table(path, flag: str) -> Table:
    """A table, also after a spreadsheet has saved it: with a BOM, with semicolons or tabs, with decimal commas.
    ValueError, naming `flag`, when it is none or its cells cannot be told apart."""

    def check(condition, fault: str, remedy: str) -> None:
        if not condition:
            raise ValueError(f"{flag} {path} {fault}: {remedy}.")

    lines, data = [], b""
    try:
        data = Path(path).read_bytes()
        encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
        text = data.decode(encoding)
        if "\0" in text:
            raise UnicodeDecodeError(encoding, data, 0, 1, "a zero byte")
        separator, reader = open_table(text)
        lines = [(reader.line_num, cells) for cells in reader]
    except UnicodeDecodeError:
        check(False, "is not UTF-8, perhaps since a spreadsheet saved it", "save it as CSV UTF-8")
    except (OSError, csv.Error) as error:
        check(False, f"is not a table and cannot be read ({error})", "name a results.csv")

    header = []
    if data.strip() and lines:
        header = [column.strip() for column in lines[0][1]]
    while header and not header[-1]:  # a spreadsheet pads with commas
        header.pop()
    twice = {column for column in header if column and header.count(column) > 1}
    check(not twice, f"has two columns {', '.join(sorted(twice))}", "keep one of each")
    rows = []
    for number, cells in lines[1:]:
        whole = not any(cell.strip() for cell in cells[len(header):])
        fault = f"has more cells in line {number} than columns"
        check(whole, fault, "put cells with a comma into quotes, or name another table")
        is_header = [cell.strip() for cell in cells] == header
        check(not (header and is_header), f"repeats its header in line {number}", "remove that line")
        if any(cell.strip() for cell in cells):
            rows.append(dict(zip(header, cells, strict=False)))
    numbers = []
    for column in filter(is_number_column, header):
        numbers += [row.get(column, "").strip() for row in rows]
    has_commas = any(map(DECIMAL_COMMA.fullmatch, numbers))
    mixed = has_commas and any(map(DECIMAL_POINT.fullmatch, numbers))
    remedy = "write all of its numbers with points"
    check(not mixed, "has decimal commas and decimal points", remedy)
    return Table(header, rows, separator, encoding, has_commas)


def open_table(text: str):
    """(separator, csv.reader) of a table. Its first line tells the separator: the most frequent one, or Excel's
    `sep=;`."""
    first, _, rest = text.partition("\n")
    declared = re.fullmatch(r'"?sep=(.)"?', first.strip())
    separator = declared[1] if declared else max(",;\t", key=first.count)
    if declared:
        text = rest
    return separator, csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)


def read_results(path, flag: str = "--results") -> list[dict]:
    """Rows of a results.csv as text, with decimal points; errors as in read_table."""
    table = read_table(path, flag)
    if "final_val_loss" not in table.columns or not table.rows:
        raise ValueError(f"{flag} {path} has no rows with a column final_val_loss: "
                         "name a results.csv that train_gpt.py wrote.")
    rows = []
    for row in table.rows:
        cells = {column: read_cell(cell) for column, cell in row.items() if column}
        for column, cell in cells.items():
            is_number = column not in TEXT_COLUMNS and DECIMAL_COMMA.fullmatch(cell)
            if table.has_decimal_commas and is_number:
                cells[column] = cell.replace(",", ".")
            if is_number_column(column):
                cells[column] = whole(cells[column])
        rows.append(cells)
    return rows


def read_tables(patterns: list[str], flag: str = "--results") -> dict[Path, list[dict]]:
    """{path: rows} of several results.csv, by their paths or globs, each once. Errors as in read_table."""
    paths: dict[str, Path] = {}
    for pattern in map(str, patterns):
        matches = [Path(pattern)]
        if glob.has_magic(pattern) and not matches[0].exists():
            matches = sorted(Path(path) for path in glob.glob(pattern) if os.path.isfile(path))
        if not matches:
            raise ValueError(f"{flag} {pattern!r} matches no file: check the path.")
        paths |= {os.path.realpath(path): path for path in matches}
    return {path: read_results(path, flag) for path in paths.values()}


def each_run_once(tables: list[list[dict]]) -> list[dict]:
    """The rows of all tables. Of a run that stands in several, with the same cells, the first row."""
    kept: list[dict] = []
    for rows in tables:
        before = list(kept)  # within a table every row is a run
        kept += [row for row in rows if not any(agree(row, other) for other in before)]
    return kept


def agree(row: dict, other: dict) -> bool:
    """Whether two rows of different tables are of one run: a run_id, and no column in which they differ."""
    return bool(row.get("run_id")) and all(row[name] == other[name] for name in row.keys() & other.keys())


def is_number_column(column: str) -> bool:
    return column not in TEXT_COLUMNS and (column in COLUMNS or is_condition(column))
