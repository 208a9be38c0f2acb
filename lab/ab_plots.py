"""ab_plots.py draws a report's plots: a wide one for screens, print and report.md, and a narrow one for phones.

    picture = plot_losses({"val loss": {"base": points, "test": points}}, "optimizer steps")

A picture is {"png", "wide", "narrow"}: PNG bytes, and two SVGs that stand in the page itself. Their colours are
variables of ab_report.css, so that they follow a dark screen and paper. None: there is nothing to draw. Plots can be
read in grey: line styles, markers and fillings differ, not colours alone (those are Okabe and Ito's). A curve that
leaves its panel says so.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import statistics
import warnings

import numpy as np

from lab.terminal import one_line
from lab.units import count

STYLES = (  # colour, line, marker of each arm
    ("#0072B2", "-", "o"), ("#D55E00", "--", "s"), ("#009E73", "-.", "^"), ("#CC79A7", ":", "D"),
    ("#56B4E9", (0, (5, 1)), "v"), ("#E69F00", (0, (3, 1, 1, 1)), "P"),
    ("#000000", (0, (1, 1)), "X"),
)
BLUE, GREY, INK = "#0072B2", "#888888", "#1b1b1b"
MARKS = {"better": ("o", BLUE), "worse": ("s", "white"), "changed": ("s", "white")}  # verdict -> marker, filling
ARROWS = {-1: "↓", 0: " ", 1: "↑"}  # which way a metric improves
PLOT_STYLE = {
    "text.usetex": False, "text.parse_math": False, "axes.unicode_minus": True, "svg.fonttype": "path",
    "svg.hashsalt": "moonshotGPT", "font.size": 10, "axes.titlesize": 10, "axes.edgecolor": INK,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
}
# of an SVG in the page: colour -> variable of ab_report.css
THEME = {
    "#1b1b1b": "--ink", "#000000": "--ink", "#ffffff": "--paper", "#888888": "--grey", "#b0b0b0": "--rule",
    "#56b4e9": "--sky", "#0072b2": "--blue", "#d55e00": "--red", "#009e73": "--green",
}


def style_of(i: int) -> tuple:
    """(colour, line, marker) of the i-th arm; the first 49 differ."""
    n = len(STYLES)
    line = (i + i // n) % n
    return STYLES[i % n][0], STYLES[line][1], STYLES[line][2]


NO_METADATA = {"png": {"Software": None}, "svg": {"Date": None}}
WIDTH = {True: 10.0, False: 4.6}  # of a wide and of a narrow drawing, in inches
LONGEST = {True: 60, False: 32}  # characters of a name on its axis or in its legend

# ----------------------------------------------------------------------------------------------------------------------
# figures


def import_matplotlib():
    """matplotlib, whatever backend a notebook has put into MPLBACKEND: its import refuses one that is not installed."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib


def canvas(width: float, height: float, panels: list[int] = (1,), across: bool = False):
    """(axes, save), sizes in inches, one axis per panel, of these relative heights, below each other or `across`;
    save("png" | "svg") -> bytes.

    Dollars in a name begin no formula. The figure is drawn by Agg without pyplot, so that a notebook's own
    plots keep their backend and are not touched.
    """
    matplotlib = import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    n = len(panels)
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        if across:
            axes = figure.subplots(1, n, squeeze=False, width_ratios=panels)[0]
        else:
            axes = figure.subplots(n, squeeze=False, height_ratios=panels)[:, 0]
    FigureCanvasAgg(figure)
    for axis in axes:
        axis.grid(alpha=0.4, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)

    def save(kind: str = "png") -> bytes:
        buffer = io.BytesIO()
        for text in figure.findobj(Text):
            text.set(parse_math=False, usetex=False)
            if text.get_color() == "black":
                text.set_color(INK)
        with matplotlib.rc_context(PLOT_STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # in a name: a box is drawn
            figure.savefig(buffer, format=kind, dpi=150, metadata=NO_METADATA[kind])
        figure.set_layout_engine("none")  # what is placed stays there, for another format
        return buffer.getvalue()

    return axes, save


def picture(draw) -> dict:
    """draw(wide) -> save of a canvas; as {"png", "wide", "narrow"}."""
    wide, narrow = draw(True), draw(False)
    return {"png": wide("png"), "wide": inline_svg(wide("svg")), "narrow": inline_svg(narrow("svg"))}


def inline_svg(data: bytes) -> str:
    """matplotlib's SVG as an element of a page: no head, no background, no names of its own, colours by variables."""
    text = data.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg)[^>]*?(viewBox="[^"]*")[^>]*>', r"\1 \2>", text, count=1)
    text = re.sub(r'<g id="patch_1">.*?</g>', "", text, count=1, flags=re.DOTALL)
    for colour, variable in THEME.items():
        text = text.replace(colour, f"var({variable})")
    reference = re.compile(r'(href="#|url\(#)([\w-]+)')
    used = {name for _, name in reference.findall(text)}
    salt = hashlib.sha256(text.encode()).hexdigest()[:6]

    def rename(match) -> str:
        return f' id="{salt}{match[1]}"' if match[1] in used else ""

    text = re.sub(r' id="([^"]*)"', rename, text)
    text = reference.sub(rf"\g<1>{salt}\2", text)
    shorter = re.compile(r"(\.\d\d)\d+")
    text = re.sub(r' d="[^"]*"', lambda match: shorter.sub(r"\1", match[0]), text)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def plot_name(text: str, longest: int = 60) -> str:
    """A name for a plot: one line, of which no more than 60 characters leave room for the axes."""
    text = one_line(text)
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[1 - longest // 2 :]}"
    return text


def add_legend(axis, names: list[str]) -> None:
    """A legend of the first lines on an axis. matplotlib would leave out a name that begins with an underscore."""
    lines = axis.lines[: len(names)]
    legend = axis.legend(lines, [" "] * len(lines), frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(plot_name(name))


def legend_columns(names: list[str], wide: bool) -> int:
    room = {True: 110, False: 46}[wide]
    return min(len(names), max(1, room // (max(map(len, names)) + 8)))


# ----------------------------------------------------------------------------------------------------------------------
# curves


def plot_losses(panels: dict[str, dict[str, list]], x_label: str, unmarked: tuple[str, ...] = (),
                apart: tuple[str, ...] = (), lines: tuple[float, ...] = ()) -> dict | None:
    """Curves of each arm, a panel per title: the mean over seeds, and a band from the lowest to the highest.

    panels: title -> arm -> seed -> [(x, y)]; the seeds of an arm have as many points each, and the mean is drawn at
    the mean x. unmarked: titles of panels whose points get no markers. apart: arms that may leave a panel, which is
    cut to the others (one that diverged would flatten them). lines: values that are marked in the first panel."""
    panels = {title: {arm: as_points(seeds) for arm, seeds in curves.items()} for title, curves in panels.items()}
    panels = {title: curves for title, curves in panels.items() if any(p is not None for p in curves.values())}
    if not panels:
        return None

    def draw(wide: bool):
        n = len(panels)
        names = legend_of(panels)
        n_columns = legend_columns(list(names.values()), wide)
        legend_height = 0.2 * math.ceil(len(names) / n_columns)
        height = {True: 3.1, False: 2.6 * n}[wide] + legend_height
        axes, save = canvas(WIDTH[wide], height, [1] * n, across=wide)
        handles = {}
        for axis, (title, curves) in zip(axes, panels.items(), strict=True):
            draw_curves(axis, curves, title not in unmarked, apart)
            note_cut(axis)
            drawn = [arm for arm, points in curves.items() if points is not None]
            handles = dict(zip(drawn, axis.lines, strict=False)) | handles
            axis.set_title(title, loc="left")
        mark_values(axes[0], lines)
        for axis in axes:
            if wide or axis is axes[-1]:
                axis.set_xlabel(x_label)
        legend = axes[0].figure.legend(
            list(handles.values()), [" "] * len(handles), loc="outside upper left", ncols=n_columns, frameon=False)
        for text, arm in zip(legend.get_texts(), handles, strict=True):
            text.set_text(plot_name(names[arm], LONGEST[wide] + 12))
        return save

    return picture(draw)


def as_points(seeds: list) -> np.ndarray | None:
    """(seeds, points, 2), or None where there is no point."""
    points = np.array(seeds, dtype=float)
    return points if points.size else None


def legend_of(panels: dict[str, dict]) -> dict[str, str]:
    """{arm: its name and its number of seeds}"""
    names = {}
    for curves in panels.values():
        for arm, points in curves.items():
            if points is not None:
                names.setdefault(arm, named(arm, len(points)))
    return names


def named(arm: str, n_seeds: int) -> str:
    return f"{arm} ({count(n_seeds, 'seed')})"


def draw_curves(axis, drawn: dict[str, np.ndarray | None], marked: bool = True,
                apart: tuple[str, ...] = ()) -> list[str]:
    """Mean and band of each arm on one axis; drawn: arm -> (seeds, points, 2), or None for an arm without points, which
    keeps its colour for other panels. apart: as in plot_losses. Returns the names for a legend."""
    curves, names = {}, []
    for i, (arm, points) in enumerate(drawn.items()):
        if points is None:
            continue
        colour, line, marker = style_of(i)
        n_seeds, n_points, _ = points.shape
        x, y = points[..., 0].mean(0), points[..., 1]
        axis.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.18, linewidth=0)
        (curve,) = axis.plot(x, y.mean(0), linestyle=line, color=colour, linewidth=1.6)
        if marked:
            curve.set(marker=marker, markersize=4, markevery=marker_stride(n_points))
        names.append(named(arm, n_seeds))
        curves[arm] = (x, y)
    others = [curve for arm, curve in curves.items() if arm not in apart]
    set_view(axis, others or list(curves.values()))
    return names


def marker_stride(n_points: int) -> int:
    """Every so many points have a marker: all of 80, or every second one of 160."""
    return max(1, n_points // 40)


def set_view(axis, curves: list[tuple]) -> None:
    """Limits of y: the drop of the first quarter is cut off, where it would flatten the rest (note_cut).
    curves: (x (points,), y (seeds, points)) each."""
    every = np.concatenate([y.ravel() for _, y in curves])
    late = np.concatenate([y[:, max(y.shape[1] // 4, y.shape[1] > 2):].ravel() for _, y in curves])
    shown = late if np.ptp(every) > 2.5 * np.ptp(late) > 0 else every
    margin = 0.08 * (np.ptp(shown) or 1)
    axis.set(ylim=(shown.min() - margin, shown.max() + margin))


def note_cut(axis) -> None:
    """Write into a panel, whose limits are final, where its curves leave it."""
    low, high = axis.get_ylim()
    cut = {}
    for line in axis.lines:
        for x, y in line.get_xydata():
            if not low <= y <= high:
                cut[x] = max(cut.get(x, y), y)
    if cut:
        first, last = min(cut), max(cut)
        words = f"outside: {cut[first]:.4g} at {first:.4g}"
        if last > first:
            words += f" … {cut[last]:.4g} at {last:.4g}"
        axis.text(0.985, 0.97, words, transform=axis.transAxes, ha="right", va="top", fontsize=8.5)


def mark_values(axis, values: tuple[float, ...]) -> None:
    """A thin line across a panel, whose limits are final, at each of these values that lies within them."""
    low, high = axis.get_ylim()
    for value in values:
        if low <= value <= high:
            axis.axhline(value, color="black", linewidth=0.9, linestyle=(0, (6, 3)), zorder=1)
            beside = axis.get_yaxis_transform()
            axis.text(0.012, value, f"target {value:g}", transform=beside, va="bottom", fontsize=8.5)


# ----------------------------------------------------------------------------------------------------------------------
# differences and arms


def plot_pairs(pairs: dict, mean: tuple | None, x_label: str, mean_label: str) -> dict | None:
    """A point per pair of equal seed, below them the mean with its interval. mean: (delta, low, high) or None."""
    if not pairs:
        return None

    def draw(wide: bool):
        (axis,), save = canvas(WIDTH[wide], 1.4 + 0.26 * min(len(pairs), 20))
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
        return save

    return picture(draw)


def plot_forest(groups: dict[str, list[dict]]) -> dict | None:
    """Changes in percent with their intervals, a panel with its own scale per group (val losses move by 1 %, benchmarks
    by 10 %). groups: title -> rows of {"label", "delta", "low", "high" (percent), "better": -1, 0, +1, "verdict"
    (better, worse, changed or another word, by the adjusted p, which the interval does not know)}."""
    groups = {title: rows for title, rows in groups.items() if rows}
    if not groups:
        return None

    def draw(wide: bool):
        panels = [len(rows) + 2 for rows in groups.values()]
        axes, save = canvas(WIDTH[wide], 0.6 + 0.24 * sum(panels), panels)
        for axis, (title, rows) in zip(axes, groups.items(), strict=True):
            axis.axvline(0, color="black", linewidth=1)
            for y, row in enumerate(reversed(rows)):
                marker, filling = MARKS.get(row["verdict"], ("o", "#bbbbbb"))
                line, colour = ("-", "black") if row["verdict"] in MARKS else (":", GREY)
                axis.plot([row["low"], row["high"]], [y, y], line, color=colour, linewidth=1.6)
                axis.plot(row["delta"], y, marker, markersize=5, markeredgecolor=colour, markerfacecolor=filling)
            limit = forest_limit(rows)
            left, right = axis.get_xlim()
            axis.set_xlim(max(left, -limit), min(right, limit))
            for y, row in enumerate(reversed(rows)):
                mark_cut(axis, y, row, limit)
            labels = [f"{plot_name(row['label'], LONGEST[wide])} {ARROWS[row['better']]}" for row in reversed(rows)]
            axis.set_yticks(range(len(rows)), labels)
            axis.set_title(title, loc="left")
        axes[-1].set_xlabel("change from A to B, %")
        return save

    return picture(draw)


def forest_limit(rows: list[dict]) -> float:
    """Percent on either side that a panel shows: a wide interval must not squeeze the others."""
    return 2 * max(1.2 * max(abs(row["delta"]) for row in rows), 0.1)


def is_cut(row: dict, rows: list[dict]) -> bool:
    """Whether a row's interval goes on beyond its panel."""
    limit = forest_limit(rows)
    return row["low"] < -limit or row["high"] > limit


def mark_cut(axis, y: int, row: dict, limit: float) -> None:
    """An arrowhead at the edge behind which an interval goes on."""
    for end, edge, marker in ((-row["low"], -limit, "<"), (row["high"], limit, ">")):
        if end > limit:
            axis.plot(edge, y, marker, color="black", markersize=6, clip_on=False)


def plot_arms(losses: dict[str, list[float]], x_label: str) -> dict | None:
    """Each arm's seeds as circles, their mean as a bar."""
    drawn = {arm: values for arm, values in losses.items() if values}
    if not drawn:
        return None

    def draw(wide: bool):
        (axis,), save = canvas(WIDTH[wide], 1.1 + 0.34 * len(drawn))
        for y, values in enumerate(reversed(drawn.values())):
            axis.plot(values, [y] * len(values), "o", markerfacecolor="none", color=BLUE, markersize=6)
            axis.plot(statistics.fmean(values), y, "|", color="black", markersize=18, markeredgewidth=2)
        axis.set_yticks(range(len(drawn)), [plot_name(arm, LONGEST[wide]) for arm in reversed(drawn)])
        axis.set(ylim=(-0.6, len(drawn) - 0.4), xlabel=f"{x_label}\ncircle: a seed, bar: mean")
        return save

    return picture(draw)
