"""run_list.py owns runs at a glance: the list of compare_runs.py, its live page, and what may be deleted.

    python compare_runs.py --list 'experiments/runs/*'
    python compare_runs.py --list 'experiments/runs/*' --watch 10 --out live    # live/index.html, until ctrl-C
    python compare_runs.py --list 'experiments/runs/*' --prune                  # names what --yes would delete

What a run's state means: lab/run_state.py.

--prune deletes checkpoints of finished runs, in their ckpt/, and nothing else: not the last whole one, and none
that a listed run, or one beside it, started from. A run that is held, or that is a link, is left alone, and no link
is followed.
"""

from __future__ import annotations

import contextlib
import html
import math
import re
import shutil
import time
from pathlib import Path

import numpy as np

from lab import ab_plots, ab_report, disk, processes, runs, units
from lab.run_state import STATES, look, read_object, size_of
from lab.terminal import aligned, cells_of, one_line, show

PAGE = "index.html"
MADE_BY = '<meta name="generator" content="moonshotGPT compare_runs.py --watch">'
POINTS = 400  # of a curve on the page; neighbours are averaged
TMP = ".tmp_"  # before the name of a checkpoint that is being written or deleted
PRUNED = re.compile(rf"({re.escape(TMP)})?step_\d+(\.aside)?")  # other names are somebody's own

# ----------------------------------------------------------------------------------------------------------------------
# the table


def ago(at: float | None, now: float) -> str:
    if at is None:
        return "N/A"
    return f"{units.duration(max(0.0, now - at))} ago"


def steps_in_words(row: dict) -> str:
    known = [f"{row[key]:,}" for key in ("step", "steps") if row[key] is not None]
    return " / ".join(known) or "N/A"


def loss_in_words(value: float | None) -> str:
    return "N/A" if value is None else f"{value:.4f}"


COLUMNS = [  # cell(row, now)
    ("Run", "left", lambda row, now: one_line(row["name"])),
    ("State", "left", lambda row, now: row["state"]),
    ("Step", "right", lambda row, now: steps_in_words(row)),
    ("Train loss", "right", lambda row, now: loss_in_words(row["train_loss"])),
    ("Val loss", "right", lambda row, now: loss_in_words(row["val_loss"])),
    ("ETA", "right", lambda row, now: units.duration(row["eta"]) if row["state"] == "running" else ""),
    ("On disk", "right", lambda row, now: units.size(row["bytes"])),
    ("Last moved", "right", lambda row, now: ago(row["moved"], now)),
]


def table(rows: list[dict], now: float) -> tuple:
    columns = [(title, side, lambda row, cell=cell: cell(row, now))
               for title, side, cell in COLUMNS]
    return ab_report.table(columns, rows)


def look_at(patterns: list[str]) -> list[dict]:
    """The runs among the folders that are named. ValueError when there are none."""
    rows = [look(folder) for folder in runs.expand(patterns, "--list")]
    rows = [row for row in rows if row is not None]
    names = [row["name"] for row in rows]
    for row in rows:
        if names.count(row["name"]) > 1:
            row["name"] = str(row["folder"])
    if not rows:
        raise ValueError(f"--list {' '.join(patterns)}: no folder there is a run (none has a config.json): "
                         "name what train_gpt.py or sft.py wrote.")
    return rows


def summary_of(rows: list[dict]) -> str:
    """'5 runs: 1 running, 4 finished; 1.2 GB'."""
    counts = [(sum(row["state"] == state for row in rows), state) for state in STATES]
    listed = ", ".join(f"{n} {state}" for n, state in counts if n)
    size = units.size(sum(row["bytes"] for row in rows))
    return f"{units.count(len(rows), 'run')}: {listed}; {size}"


def reasons(rows: list[dict]) -> list[str]:
    """How the state of a run is known, where it may surprise."""
    return [f"{row['name']}: {row['state']}: {row['why']}" for row in rows
            if row["why"] and row["state"] != "running"]


SHORTEST = 12  # characters of a run's name, however narrow the terminal


def fit_names(header: list[str], cells: list[list[str]], columns: int) -> None:
    """Shortens the runs' names in their middle, so that the rows fit a terminal of so many columns."""
    others = list(zip(header, *cells, strict=True))[1:]
    taken = sum(2 + max(cells_of(str(cell)) for cell in column) for column in others)
    room = max(SHORTEST, columns - taken)
    for row in cells:
        if len(row[0]) > room:
            row[0] = f"{row[0][: room // 2]}…{row[0][room // 2 + 1 - room :]}"


def print_list(patterns: list[str]) -> int:
    rows = look_at(patterns)
    _, header, cells, left = table(rows, time.time())
    columns = shutil.get_terminal_size(fallback=(0, 0)).columns
    if columns:
        fit_names(header, cells, columns)
    lines = [aligned(header, cells, left), "", *reasons(rows), summary_of(rows)]
    show("\n".join(lines) + "\n")
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# the live page

PICTURES = {  # caption: panels, (title, whether its axis begins at 0, the points of a run)
    "Losses by step": (
        ("train loss, nats per token", False, lambda run: of_steps(run, "train_loss_opt_step_mean")),
        ("val loss, nats per token", False, lambda run: of_evaluations(run)),
    ),
    "Speed and memory by step": (
        ("tokens/s", True, lambda run: of_steps(run, "tokens_per_sec")),
        ("peak memory, GB", True, lambda run: of_steps(run, "peak_mem_bytes", 1e-9)),
    ),
}


def of_steps(run: dict, field: str, scale: float = 1.0) -> np.ndarray:
    """Points (n, 2) of a field of the training records, at most POINTS: means of neighbours."""
    points = np.column_stack([run["train"]["step"], scale * run["train"][field]])
    points = points[np.isfinite(points).all(1)]
    if len(points) <= POINTS:
        return points
    return np.array([piece.mean(0) for piece in np.array_split(points, POINTS)])


def of_evaluations(run: dict) -> np.ndarray:
    points = [(step, runs.number(record.get("val_loss"))) for step, record in run["val"].items()]
    points = np.array(points, float).reshape(-1, 2)
    return points[np.isfinite(points).all(1)]


def plot_panels(panels: tuple, drawn: dict[str, dict]) -> dict | None:
    """A picture with a line per run in each panel; None when nothing is recorded yet."""
    points = [{name: of_run(run) for name, run in drawn.items()} for _, _, of_run in panels]
    if not any(len(line) for lines in points for line in lines.values()):
        return None

    def draw(wide: bool) -> str:
        height = {True: 3.1, False: 2.6 * len(panels)}[wide]
        axes, save = ab_plots.canvas(ab_plots.WIDTH[wide], height, [1] * len(panels), across=wide)
        for axis, (title, from_zero, _), lines in zip(axes, panels, points, strict=True):
            axis.set_title(title, loc="left")
            names, curves = [], []
            for i, (name, line) in enumerate(lines.items()):
                if len(line):
                    colour, style, marker = ab_plots.style_of(i)
                    axis.plot(*line.T, linestyle=style, color=colour, linewidth=1.4, marker=marker,
                              markersize=3, markevery=ab_plots.marker_stride(len(line)))
                    names.append(name)
                    curves.append((line[:, 0], line[None, :, 1]))
            if not names:
                continue
            ab_plots.set_view(axis, curves)
            if from_zero:
                axis.set_ylim(0, 1.08 * max(y.max() for _, y in curves) or 1)
            ab_plots.note_cut(axis)
            ab_plots.add_legend(axis, names)
        return ab_plots.inline_svg(save("svg"))

    return {"wide": draw(True), "narrow": draw(False)}


def page_of(rows: list[dict], shown: set[Path], seconds: float | None) -> bytes:
    """The page: the table of all runs, curves of those in `shown`. seconds: to the next page, None for the last."""
    now = time.time()
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    blocks: list[tuple] = [
        ("h1", "Runs"), ("p", f"{summary_of(rows)}. As of {clock}."), table(rows, now)]
    if reasons(rows):
        blocks.append(("ul", reasons(rows)))
    drawn, faults = {}, []
    for row in rows:
        if row["folder"] not in shown:
            continue
        try:
            drawn[row["name"]] = runs.read_run(row["folder"])
        except (OSError, ValueError) as error:
            faults.append(str(error))
    pictures = []
    for caption, panels in PICTURES.items():
        picture = plot_panels(panels, drawn)
        if picture:
            pictures.append(("img", "", caption, picture))
    blocks += pictures or [("p", "No run has been running while this page was kept.")]
    if faults:
        blocks.append(("ul", faults))
    body = "\n".join(ab_report.HTML[kind](*content) for kind, *content in blocks)
    head = MADE_BY
    if seconds is None:
        body += "<p>This page is no longer kept fresh.</p>"
    else:
        head += f'<meta http-equiv="refresh" content="{math.ceil(seconds)}">'
        body += LATE.format(at=1000 * now, limit=1000 * (3 * seconds + 60))
    css = Path(ab_report.__file__).with_suffix(".css").read_text(encoding="utf-8")
    title = html.escape(f"{sum(row['state'] == 'running' for row in rows)} running")
    page = ab_report.PAGE.format(title=title, css=css, body=body)
    return page.replace("<title>", f"{head}<title>", 1).encode()


LATE = """<p id="late" hidden>This page is old: compare_runs.py --watch has ended without a word.</p>
<script>
if (Date.now() - {at:.0f} > {limit:.0f}) document.getElementById("late").hidden = false;
</script>"""


def check_page(folder: Path) -> None:
    """ValueError unless the page may go into the folder: a new or empty one, or that of an earlier page."""

    def is_page(names: set) -> bool:
        return names == {PAGE} and MADE_BY.encode() in (folder / PAGE).read_bytes()

    ab_report.check_folder(folder, (f"{PAGE}.tmp",), is_page, "is not empty and holds no page of --watch")


def watch(patterns: list[str], seconds: float, out: str) -> int:
    """Keeps the page fresh until ctrl-C or SIGTERM. It is always whole."""
    folder, shown = Path(out), set()
    check_page(folder)
    rows, stop = look_at(patterns), processes.StopRequest()
    disk.make_folder(folder, "--out")
    page = folder / PAGE
    print(f"{page} is kept fresh, every {seconds:g} s: open it in a browser; ctrl-C ends it.", flush=True)
    try:
        while not stop.asked:
            shown |= {row["folder"] for row in rows if row["state"] == "running"}
            write_page(page, page_of(rows, shown, seconds))
            until = time.monotonic() + seconds
            while not stop.asked and time.monotonic() < until:
                time.sleep(min(0.2, seconds))
            rows = look_at(patterns)
        write_page(page, page_of(rows, shown, None))
    finally:
        stop.restore()
    print(f"{page} is no longer kept fresh; it shows the last state.")
    return 0


def write_page(page: Path, content: bytes) -> None:
    try:
        disk.write_whole(page, content)
    except OSError as error:
        why, remedy = disk.reason_of(error), disk.remedy_of(error)
        raise ValueError(f"--out {page.parent} cannot be written ({why}): {remedy}, or choose another "
                         "folder.") from error


# ----------------------------------------------------------------------------------------------------------------------
# deleting checkpoints


def starts_of(rows: list[dict]) -> dict[Path, str]:
    """{checkpoint's folder: name of a run that started from it}, of the listed runs and of those beside them."""
    starts = {}
    for parent in {row["folder"].resolve().parent for row in rows}:
        for path in parent.glob("*/config.json"):
            init = read_object(path, []).get("init")
            if not isinstance(init, dict):
                continue
            for key in ("folder", "checkpoint"):
                if isinstance(init.get(key), str):
                    starts[Path(init[key]).resolve()] = path.parent.name
                    starts[(runs.REPO / init[key]).resolve()] = path.parent.name
    return starts


def refusal(row: dict) -> str:
    """Why nothing of a run may be deleted, "" when it may."""
    folder = row["folder"]
    if row["state"] != "finished":
        return f"it is {row['state']}"
    if disk.holder(folder)[0] in ("held", "unknown"):
        return "a process holds it"
    links = [path for path in (folder, folder / "ckpt") if path.is_symlink()]
    return f"{links[0]} is a link" if links else ""


def plan(folder: Path, starts: dict[Path, str]) -> tuple[list[Path], str]:
    """(folders in a finished run's ckpt/ to delete, what stays there and why)."""
    try:
        last = runs.find_checkpoint(folder, "auto", warn=lambda _: None)
    except ValueError:
        return [], "none of its checkpoints is whole"
    if last is None:
        return [], "it has no checkpoints"
    delete, stays = [], [f"{last.name} (the last whole one)"]
    for path in sorted((folder / "ckpt").iterdir()):
        if path == last or not PRUNED.fullmatch(path.name):
            continue
        if path.is_symlink() or not path.is_dir():
            stays.append(f"{path.name} (no folder)")
        elif path.resolve() in starts:
            stays.append(f"{path.name} ({starts[path.resolve()]} started from it)")
        else:
            delete.append(path)
    return delete, ", ".join(stays)


def delete_folder(path: Path) -> None:
    """Deletes a checkpoint under a name that no reader takes for one: a kill leaves none that is half there."""
    doomed = path
    if not path.name.startswith(TMP):
        doomed = path.with_name(TMP + path.name)
        if doomed.is_dir():
            shutil.rmtree(doomed)
        path.rename(doomed)
    shutil.rmtree(doomed)


def prune(patterns: list[str], yes: bool) -> int:
    """Names what of the listed runs may be deleted, and deletes it with `yes`. ValueError, in the end, for what
    could not be deleted."""
    rows, total, n, faults = look_at(patterns), 0, 0, []
    starts = starts_of(rows)
    for row in rows:
        folder, freed, delete, stays = row["folder"], 0, [], refusal(row)
        try:
            # held while it is deleted: nobody else can change what was looked at
            with disk.hold(folder) if yes and not stays else contextlib.nullcontext():
                if not stays:
                    delete, stays = plan(folder, starts)
                for path in delete:
                    size = size_of(path)
                    if yes:
                        delete_folder(path)
                    freed += size
        except (OSError, ValueError) as error:
            faults.append(f"{row['name']}: {error}")
        total, n = total + freed, n + len(delete)
        line = f"{row['name']}: stays: {stays}"
        if delete:
            verb = "deletes" if yes else "would delete"
            names = ", ".join(path.name for path in delete)
            line = f"{row['name']}: {verb} {names} ({units.size(freed)}); stays: {stays}"
        show(line + "\n")
    if yes:
        show(f"freed {units.size(total)}\n")
    elif n:
        show(f"would free {units.size(total)} in {units.count(n, 'checkpoint')}; "
             "the same command with --yes deletes them\n")
    else:
        show("nothing to delete\n")
    if faults:
        listed = "; ".join(fault.rstrip(".") for fault in faults)
        raise ValueError(f"not all was deleted ({listed}): repair that, then run it again.")
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# flags


def add_arguments(parser) -> None:
    add = parser.add_argument_group("runs at a glance").add_argument
    add("--list", nargs="*", metavar="RUNS",
        help="state, step, losses, time left and size of these runs (default: all in experiments/runs)")
    add("--watch", type=float, metavar="SECONDS",
        help="keep a page of --list fresh in --out, until ctrl-C")
    add("--prune", action="store_true",
        help="name the checkpoints of finished runs in --list that are not needed; with --yes delete them")
    add("--yes", action="store_true", help="with --prune: delete")


def is_asked(args) -> bool:
    return args.list is not None or args.watch is not None or args.prune or args.yes


def check_flags(args, check) -> None:
    """check(condition, sentence) of the flags above."""
    check(args.prune or not args.yes, "--yes deletes what --prune names: add --prune, or drop --yes")
    check(args.list or not args.yes, "--yes deletes: name the runs, as in --list 'experiments/runs/*' --prune --yes")
    check(args.watch is None or not args.prune, "--watch and --prune exclude each other: give one of them")
    check(args.watch is None or 1 <= args.watch < math.inf, "--watch needs at least 1 second: give --watch 10")
    check(args.watch is None or args.out, "--watch needs a folder for its page: add --out live")
    check(args.watch is not None or not args.out, "--list only prints: drop --out, or add --watch 10")


def main(args) -> int:
    patterns = args.list or [str(runs.REPO / "experiments" / "runs" / "*")]
    if args.watch is not None:
        return watch(patterns, args.watch, args.out)
    if args.prune:
        return prune(patterns, args.yes)
    return print_list(patterns)
