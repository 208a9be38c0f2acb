"""ab_report.py owns how a report looks: blocks of text, tables and plots as Markdown, PNGs and one HTML page.

A report is a list of blocks; text may hold `code` and **bold**:

    ("h1", text) ("h2", text) ("p", text) ("verdict", text, verdict) ("ul", [text])
    ("table", header, rows, {columns of text}) ("img", file name, caption, PNG bytes)

publish() prints it and writes report.md, report.json, report.html and the PNGs. The page refers to nothing outside
itself (style: ab_report.css). Only `code` and the **bold** word or question at a text's start are markup; everything
else is shown as it is, whatever a folder or a setting is called. Plots can be read in grey: line styles, markers and
fillings differ, not colours alone (those are Okabe and Ito's).
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import re
import statistics
import sys
from pathlib import Path

import numpy as np

from lab import disk, processes

# ----------------------------------------------------------------------------------------------------------------------
# plots: each returns PNG bytes, or None when there is nothing to draw

STYLES = (  # colour, line, marker of each arm
    ("#0072B2", "-", "o"), ("#D55E00", "--", "s"), ("#009E73", "-.", "^"), ("#CC79A7", ":", "D"),
    ("#56B4E9", (0, (5, 1)), "v"), ("#E69F00", (0, (3, 1, 1, 1)), "P"), ("#000000", (0, (1, 1)), "X"),
)
BLUE, GREY = "#0072B2", "#888888"
MARKS = {"better": ("o", BLUE), "worse": ("s", "white"), "changed": ("s", "white")}  # verdict -> marker, filling
ARROWS = {-1: "↓", 0: " ", 1: "↑"}  # which way a metric improves


PLOT_STYLE = {"text.usetex": False, "text.parse_math": False, "axes.unicode_minus": True}


def import_matplotlib():
    """matplotlib, whatever backend a notebook has put into MPLBACKEND: its import refuses one that is not installed."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib


def canvas(width: float, height: float, panels: list[int] = (1,)):
    """(axes, save), sizes in inches, one axis per panel, of these relative heights; save() -> PNG bytes.

    A name with dollars in it is no mathematics. The figure is drawn by Agg without pyplot, so that a notebook's own
    plots keep their backend and are not touched.
    """
    matplotlib = import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=panels)[:, 0]
    FigureCanvasAgg(figure)
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)

    def save() -> bytes:
        buffer = io.BytesIO()
        for text in figure.findobj(Text):
            text.set(parse_math=False, usetex=False)
        with matplotlib.rc_context(PLOT_STYLE):
            figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
        return buffer.getvalue()

    return axes, save


def add_legend(axis, names: list[str]) -> None:
    """A legend of the first lines on an axis. matplotlib would leave out a name that begins with an underscore."""
    lines = axis.lines[: len(names)]
    legend = axis.legend(lines, [" "] * len(lines), frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(plot_name(name))


def plot_name(text: str) -> str:
    """A name for a plot: one line, of which no more than 60 characters leave room for the axes."""
    text = one_line(text)
    if len(text) > 60:
        text = f"{text[:30]}…{text[-29:]}"
    return text


def plot_curves(curves: dict[str, list[list[tuple[float, float]]]], x_label: str, y_label: str) -> bytes | None:
    """Mean curve of each arm, with a band from its lowest to its highest seed. curves: arm -> seed -> [(x, y)]; the
    seeds of an arm have as many points each, and the mean is drawn at the mean x."""
    drawn = {arm: np.array(seeds) for arm, seeds in curves.items() if seeds and seeds[0]}
    if not drawn:
        return None
    (axis,), save = canvas(5.6, 3.6)
    add_legend(axis, draw_curves(axis, drawn))
    axis.set(xlabel=x_label, ylabel=y_label)
    return save()


def draw_curves(axis, drawn: dict[str, np.ndarray | None]) -> list[str]:
    """Mean and band of each arm on one axis; drawn: arm -> (seeds, points, 2), or None for an arm without points, which
    keeps its colour for other panels. Returns the names for a legend."""
    late, names = [], []
    for i, (arm, points) in enumerate(drawn.items()):
        if points is None:
            continue
        colour, line, marker = STYLES[i % len(STYLES)]
        n_seeds, n_points, _ = points.shape
        x, y = points[..., 0].mean(0), points[..., 1]
        plural = "s" if n_seeds > 1 else ""
        axis.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.18, linewidth=0)
        axis.plot(x, y.mean(0), linestyle=line, color=colour, linewidth=1.6,
                  marker=marker, markersize=4, markevery=max(1, n_points // 12))
        names.append(f"{arm} ({n_seeds} seed{plural})")
        first = max(n_points // 4, n_points > 2)  # the drop of the first quarter would flatten the rest
        late.append(y[:, first:].ravel())
    late = np.concatenate(late)
    margin = 0.08 * (np.ptp(late) or 1)
    axis.set(ylim=(late.min() - margin, late.max() + margin))
    return names


def plot_pairs(pairs: dict, mean: tuple | None, x_label: str, mean_label: str) -> bytes | None:
    """A point per pair of equal seed, below them the mean with its interval. mean: (delta, low, high) or None."""
    if not pairs:
        return None
    (axis,), save = canvas(5.6, 1.4 + 0.26 * min(len(pairs), 20))
    axis.axvline(0, color="black", linewidth=1)
    heights = list(range(len(pairs), 0, -1))
    labels = [f"seed {seed}" for seed in pairs]
    axis.plot(list(pairs.values()), heights, "o", color=BLUE, markersize=6)
    if mean is not None:
        delta, low, high = mean
        axis.plot([low, high], [0, 0], color="black", linewidth=2)
        axis.plot(delta, 0, "D", color="black", markersize=7)
        heights.append(0)
        labels.append(mean_label)
    axis.set_yticks(heights, labels)
    axis.set(ylim=(min(heights) - 0.7, len(pairs) + 0.7), xlabel=x_label)
    return save()


def plot_forest(groups: dict[str, list[dict]]) -> bytes | None:
    """Changes in percent with their intervals, a panel with its own scale per group (val losses move by 1 %, benchmarks
    by 10 %). groups: title -> rows of {"label", "delta", "low", "high" (percent), "better": -1, 0, +1, "verdict"
    (better, worse, changed or another word, by the adjusted p, which the interval does not know)}."""
    groups = {title: rows for title, rows in groups.items() if rows}
    if not groups:
        return None
    panels = [len(rows) + 2 for rows in groups.values()]
    axes, save = canvas(6.0, 0.6 + 0.24 * sum(panels), panels)
    for axis, (title, rows) in zip(axes, groups.items(), strict=True):
        axis.axvline(0, color="black", linewidth=1)
        for y, row in enumerate(reversed(rows)):
            marker, filling = MARKS.get(row["verdict"], ("o", "#bbbbbb"))
            line, colour = ("-", "black") if row["verdict"] in MARKS else (":", GREY)
            axis.plot([row["low"], row["high"]], [y, y], line, color=colour, linewidth=1.6)
            axis.plot(row["delta"], y, marker, markersize=5, markeredgecolor=colour, markerfacecolor=filling)
        limit = max(1.2 * max(abs(row["delta"]) for row in rows), 0.1)  # a wide interval must not squeeze the others
        left, right = axis.get_xlim()
        axis.set_xlim(max(left, -2 * limit), min(right, 2 * limit))
        labels = [f"{plot_name(row['label'])} {ARROWS[row['better']]}" for row in reversed(rows)]
        axis.set_yticks(range(len(rows)), labels, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.set_title(title, fontsize=9, loc="left")
    axes[-1].set_xlabel("change from A to B, %.  ↓ lower is better, ↑ higher is better\n"
                        "filled: better; square: worse or changed; grey: not clear", fontsize=8)
    return save()


def plot_arms(losses: dict[str, list[float]], x_label: str) -> bytes | None:
    """Each arm's seeds as circles, their mean as a bar."""
    drawn = {arm: values for arm, values in losses.items() if values}
    if not drawn:
        return None
    (axis,), save = canvas(5.6, 1.1 + 0.34 * len(drawn))
    for y, values in enumerate(reversed(drawn.values())):
        axis.plot(values, [y] * len(values), "o", markerfacecolor="none", color=BLUE, markersize=6)
        axis.plot(statistics.fmean(values), y, "|", color="black", markersize=18, markeredgewidth=2)
    axis.set_yticks(range(len(drawn)), [plot_name(arm) for arm in reversed(drawn)], fontsize=9)
    axis.set(ylim=(-0.6, len(drawn) - 0.4), xlabel=f"{x_label}\ncircle: a seed, bar: mean")
    return save()


# ----------------------------------------------------------------------------------------------------------------------
# Markdown and HTML


# a text's own markup: the verdict's word or a question at its start, and words in backticks
BOLD = re.compile(r"\*\*([^*]+)\*\*(?= · )|\*\*([^*]+\?)\*\*(?= )")
CODE = re.compile(r"(?<![^\s(])`([^`\s]+)`(?![^\s,.;:)?])")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# what Markdown would take for markup; "< 0.0001", [intervals] and names_like_this are none
MARKDOWN_MARKUP = re.compile(
    r"[\\`*$]|~(?=~)|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[(\[])|(?<![A-Za-z0-9_])_+|_+(?![A-Za-z0-9_])"
    r"|^[#>]|^[+-](?= )")


def one_line(text) -> str:
    """Text with line breaks and other control characters, and the bytes of a name that is no UTF-8, as escapes."""
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], str(text))


def code(name: str) -> str:
    """A name as code, or as it is when backticks or blanks would tear the code apart."""
    return f"`{name}`" if CODE.fullmatch(f"`{name}`") else name


def spell(text, literal, bold, code) -> str:
    """Text in another markup: literal(words), bold(words) and code(words) make its pieces."""
    text, begin = one_line(text).strip(), ""
    lead = BOLD.match(text)
    if lead:
        begin = bold(spell(lead[1] or lead[2], literal, bold, code))
        text = text[lead.end():]
    pieces = CODE.split(text)  # every second one is code
    pieces[::2] = map(literal, pieces[::2])
    pieces[1::2] = map(code, pieces[1::2])
    return begin + "".join(pieces)


def escape_markdown(text: str) -> str:
    return MARKDOWN_MARKUP.sub(lambda match: "".join(f"\\{sign}" for sign in match[0]), text)


def markdown(text) -> str:
    return spell(text, escape_markdown, "**{}**".format, "`{}`".format)


def markdown_table(header, rows, text_columns) -> str:
    def line(values) -> str:
        cells = [markdown(value).replace("|", "\\|") for value in values]
        return "| " + " | ".join(cells) + " |"

    rules = ["---" if i in text_columns else "---:" for i in range(len(header))]
    return "\n".join([line(header), "|" + "|".join(rules) + "|", *map(line, rows)])


MARKDOWN = {  # kind of block -> its text
    "h1": lambda text: f"# {markdown(text)}",
    "h2": lambda text: f"## {markdown(text)}",
    "p": markdown,
    "verdict": lambda text, verdict: markdown(text),
    "ul": lambda items: "\n".join(f"- {markdown(item)}" for item in items),
    "table": markdown_table,
    "img": lambda name, caption, data: f"![{markdown(caption)}]({name})",
}


def to_markdown(blocks: list[tuple]) -> str:
    return "\n".join(MARKDOWN[kind](*content) + "\n" for kind, *content in blocks)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">\
<title>{title}</title><style>
{css}</style></head>
<body>
{body}
</body></html>
"""


def inline(text) -> str:
    return spell(text, html.escape, "<strong>{}</strong>".format, lambda words: f"<code>{html.escape(words)}</code>")


def html_table(header, rows, text_columns) -> str:
    def kind(column: int, value="") -> str:
        if column in text_columns and column:
            return ' class="text"'
        if str(value).startswith("N/A"):
            return ' class="na"'
        return ""

    head = [f"<th{kind(i)} scope=col>{inline(name)}</th>" for i, name in enumerate(header)]
    body = ""
    for row in rows:
        cells = [f"<td{kind(i, value)}>{inline(value)}</td>" for i, value in enumerate(row)]
        body += f"<tr>{''.join(cells)}</tr>"
    table = f"<table><thead><tr>{''.join(head)}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


def html_image(name, caption, data) -> str:
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<img alt="{html.escape(one_line(caption), quote=True)}" src="{source}">'
    return f"<figure>{image}<figcaption>{inline(caption)}</figcaption></figure>"


def first_word(verdict: str) -> str:
    return re.match(r"\w+", verdict)[0]


HTML = {
    "h1": lambda text: f"<h1>{inline(text)}</h1>",
    "h2": lambda text: f"<h2>{inline(text)}</h2>",
    "p": lambda text: f"<p>{inline(text)}</p>",
    "verdict": lambda text, verdict: f'<p class="verdict {first_word(verdict)}">{inline(text)}</p>',
    "ul": lambda items: "<ul>" + "".join(f"<li>{inline(item)}</li>" for item in items) + "</ul>",
    "table": html_table,
    "img": html_image,
}


def plain(value):
    """For JSON: NaN and infinity become null, numpy becomes Python, keys become text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


MODES = ("a/b", "group_by", "aa", "check", "plan")  # of a report.json, by which a folder is known as ours


def check_out(out: str | None) -> None:
    """ValueError unless a report may go to --out: a folder that is new, empty, or holds an earlier report."""
    if not out:
        return
    folder, fault = Path(out), "is not empty and holds no report.json of compare_runs.py"
    try:
        names = {path.name for path in folder.iterdir()} - {"report.json.tmp"}
        if not names or is_report(folder / "report.json"):
            return
    except FileNotFoundError:
        return
    except OSError as error:
        fault = f"cannot be written ({error.strerror})"
    raise ValueError(f"--out {folder} {fault}: choose another folder.")


def is_report(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["mode"] in MODES
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return False


def publish(blocks: list[tuple], record: dict, out: str | None) -> None:
    """Print the report; with --out also write report.json, PNGs, report.html and report.md, before it is printed.

    ValueError, after the printing, when --out cannot be written: the numbers of a long comparison are not lost."""
    if not out:
        show(to_markdown([block for block in blocks if block[0] != "img"]))
        return
    report, folder = to_markdown(blocks), Path(out)
    files = {"report.json": (json.dumps(plain(record), indent=2) + "\n").encode()}  # first: it marks the folder
    files |= {content[0]: content[2] for kind, *content in blocks if kind == "img"}
    css = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    body = "\n".join(HTML[kind](*content) for kind, *content in blocks)
    title = html.escape(one_line(blocks[0][1]))
    files["report.html"] = PAGE.format(title=title, css=css, body=body).encode()
    files["report.md"] = report.encode()
    check_out(out)
    fault = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            disk.write_whole(folder / name, data)
    except OSError as error:
        fault = f"--out {folder} cannot be written ({error.strerror}): choose another folder."
    show(report)
    if fault:
        raise ValueError(fault)


def show(text: str) -> None:
    """Print a report, to an encoding or a reader that may not take all of it (processes.Output)."""
    if sys.stdout is not None:
        print(text, file=processes.Output(sys.stdout), flush=True)


# ----------------------------------------------------------------------------------------------------------------------
# cells: every number of a comparison is a float, or the reason why there is none (str)


def table(columns: list[tuple], rows: list, alpha: float = 0.05) -> tuple:
    """A table as a block. columns: (header, "left" | "right", cell(row)); one more entry is one more column."""
    header = [title.replace("{level}", f"{100 * (1 - alpha):g} %") for title, _, _ in columns]
    left = {i for i, (_, side, _) in enumerate(columns) if side == "left"}
    return "table", header, [[cell(row) for _, _, cell in columns] for row in rows], left


def form(value, spec: str) -> str:
    return value if isinstance(value, str) else f"{value:{spec}}"


def form_interval(row: dict, spec: str) -> str:
    if isinstance(row["low"], str):
        return row["low"]
    if not math.isfinite(row["low"]):
        return "N/A: no spread"
    return f"[{row['low']:+{spec}}, {row['high']:+{spec}}]"


def form_p(p) -> str:
    if isinstance(p, str):
        return p
    if not math.isfinite(p):
        return "N/A: no spread"
    return f"{p:.4f}" if p >= 1e-4 else "< 0.0001"


def form_change(row: dict, spec: str) -> str:
    """'+0.0123 [+0.0100, +0.0146], p 0.0010', or why there is none."""
    if isinstance(row["delta"], str):
        return row["delta"]
    if isinstance(row["low"], str):
        return f"{row['delta']:+{spec}} (no interval: {row['low'].removeprefix('N/A: ')})"
    return f"{row['delta']:+{spec}} {form_interval(row, spec)}, p {form_p(row['p'])}"


def minutes(ms: float) -> str:
    """609,100 ms -> '10m 9.1s', as document 003 writes it."""
    tenths = round(ms / 100)
    return f"{tenths // 600}m {tenths % 600 / 10:.1f}s"


def count(n: int, noun: str) -> str:
    """'1 pair', '2 pairs'."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
