"""report_plots.py owns how a report looks: blocks of text, tables and plots as Markdown, PNGs and one HTML page.

A report is a list of blocks; text may hold `code` and **bold**:

    ("h1", text) ("h2", text) ("p", text) ("verdict", text, verdict) ("ul", [text])
    ("table", header, rows, {columns of text}) ("img", file name, caption, PNG bytes)

publish() prints it and writes report.md, report.json, report.html and the PNGs. The page refers to nothing outside
itself. Plots can be read in grey: line styles, markers and fillings differ, not colours alone (those are Okabe and
Ito's). Called by compare_runs.py.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
import statistics
from pathlib import Path

import numpy as np

from lab import disk

# ----------------------------------------------------------------------------------------------------------------------
# plots: each returns PNG bytes, or None when there is nothing to draw

STYLES = (("#0072B2", "-", "o"), ("#D55E00", "--", "s"), ("#009E73", "-.", "^"), ("#CC79A7", ":", "D"),
          ("#56B4E9", (0, (5, 1)), "v"), ("#E69F00", (0, (3, 1, 1, 1)), "P"), ("#000000", (0, (1, 1)), "X"))


def canvas(width: float, height: float, panels: list[int] = (1,)):
    """(axes, save), sizes in inches, one axis per panel, of these relative heights; save() -> PNG bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(panels), figsize=(width, height), layout="constrained", height_ratios=panels,
                                squeeze=False)
    for axis in axes[:, 0]:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)

    def save() -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
        plt.close(figure)
        return buffer.getvalue()

    return axes[:, 0], save


def plot_curves(curves: dict[str, list[list[tuple[float, float]]]], x_label: str, y_label: str) -> bytes | None:
    """Mean curve of each arm, with a band from its lowest to its highest seed. curves: arm -> seed -> [(x, y)]; the
    seeds of an arm have as many points each, and the mean is drawn at the mean x."""
    drawn = {arm: np.array(seeds) for arm, seeds in curves.items() if seeds and len(seeds[0])}  # (seeds, points, 2)
    if not drawn:
        return None
    (axis,), save = canvas(5.6, 3.6)
    draw_curves(axis, drawn)
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.legend(frameon=False)
    return save()


def draw_curves(axis, drawn: dict[str, np.ndarray]) -> None:
    """Mean and band of each arm on one axis; drawn: arm -> (seeds, points, 2)."""
    for i, (arm, points) in enumerate(drawn.items()):
        (colour, line, marker), x, y = STYLES[i % len(STYLES)], points[..., 0].mean(0), points[..., 1]
        axis.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.18, linewidth=0)
        axis.plot(x, y.mean(0), color=colour, linestyle=line, marker=marker, markersize=4, linewidth=1.6,
                  markevery=max(1, len(x) // 12), label=f"{arm} ({len(y)} seed{'s' * (len(y) > 1)})")
    # the drop of the first quarter would flatten the rest
    late = np.concatenate([p[:, max(p.shape[1] // 4, p.shape[1] > 2):, 1].ravel() for p in drawn.values()])
    margin = 0.08 * (late.max() - late.min() or 1)
    axis.set(ylim=(late.min() - margin, late.max() + margin))


def plot_pairs(pairs: dict, mean: tuple | None, x_label: str, mean_label: str) -> bytes | None:
    """A point per pair of equal seed, below them the mean with its interval. mean: (delta, low, high) or None."""
    if not pairs:
        return None
    (axis,), save = canvas(5.6, 1.4 + 0.26 * min(len(pairs), 20))
    axis.axvline(0, color="black", linewidth=1)
    heights, labels = list(range(len(pairs), 0, -1)), [f"seed {seed}" for seed in pairs]
    axis.plot(list(pairs.values()), heights, "o", color="#0072B2", markersize=6)
    if mean is not None:
        axis.plot(mean[1:], [0, 0], color="black", linewidth=2)
        axis.plot(mean[0], 0, "D", color="black", markersize=7)
        heights, labels = [*heights, 0], [*labels, mean_label]
    axis.set_yticks(heights, labels)
    axis.set(ylim=(min(heights) - 0.7, len(pairs) + 0.7), xlabel=x_label)
    return save()


def plot_forest(groups: dict[str, list[dict]]) -> bytes | None:
    """Changes in percent with their intervals, a panel with its own scale per group (val losses move by 1 %, benchmarks
    by 10 %). groups: title -> rows of {"label", "delta", "low", "high" (percent), "better": -1, 0, +1, "said": what the
    adjusted p says (better, worse, changed, or nothing clear), which the unadjusted interval does not know}."""
    groups = {title: rows for title, rows in groups.items() if rows}
    if not groups:
        return None
    panels = [len(rows) + 2 for rows in groups.values()]
    axes, save = canvas(6.0, 0.6 + 0.24 * sum(panels), panels)
    for axis, (title, rows) in zip(axes, groups.items(), strict=True):
        axis.axvline(0, color="black", linewidth=1)
        for y, r in enumerate(reversed(rows)):
            clear, good = r["said"] in ("better", "worse", "changed"), r["said"] == "better"
            colour = "black" if clear else "#888888"
            axis.plot([r["low"], r["high"]], [y, y], "-" if clear else ":", color=colour, linewidth=1.6)
            axis.plot(r["delta"], y, "s" if clear and not good else "o", markersize=5, markeredgecolor=colour,
                      markerfacecolor="#0072B2" if good else "white" if clear else "#bbbbbb")
        limit = max(1.2 * max(abs(r["delta"]) for r in rows), 0.1)  # a wide interval does not squeeze the others
        axis.set_xlim(max(axis.get_xlim()[0], -2 * limit), min(axis.get_xlim()[1], 2 * limit))
        axis.set_yticks(range(len(rows)), [f"{r['label']} {' ↑↓'[r['better']]}" for r in reversed(rows)], fontsize=8)
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
        axis.plot(values, [y] * len(values), "o", markerfacecolor="none", color="#0072B2", markersize=6)
        axis.plot(statistics.fmean(values), y, "|", color="black", markersize=18, markeredgewidth=2)
    axis.set_yticks(range(len(drawn)), list(reversed(drawn)), fontsize=9)
    axis.set(ylim=(-0.6, len(drawn) - 0.4), xlabel=f"{x_label}\ncircle: a seed, bar: mean")
    return save()


# ----------------------------------------------------------------------------------------------------------------------
# Markdown, HTML, files

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: #1b1b1b; background: #fff; max-width: 70rem; margin: 0 auto; padding: 1rem 1rem 4rem;
  overflow-wrap: break-word; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: .6rem 0 .8rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; padding-top: .6rem; border-top: 1px solid #ddd; }
.verdict { border-left: 6px solid #666; background: #f5f5f5; padding: .7rem 1rem; margin: 0 0 1rem; }
.better, .inside { border-color: #0072b2; background: #eaf4fb; }
.worse, .outside, .not { border-color: #d55e00; background: #fdf1ea; }
.scroll { overflow-x: auto; margin: .6rem 0; -webkit-overflow-scrolling: touch; }
table { border-collapse: separate; border-spacing: 0; min-width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .6rem; border-bottom: 1px solid #e2e2e2; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
tr:nth-child(even) td { background: #fafafa; }
th:first-child, td:first-child, .text { text-align: left; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; white-space: normal; min-width: 7rem; }
tr:nth-child(even) td:first-child { background: #fafafa; }
td.text { white-space: normal; min-width: 8rem; max-width: 30rem; }
td.na { color: #666; white-space: normal; min-width: 6rem; }
code { font: .9em ui-monospace, Menlo, Consolas, monospace; background: #f2f2f2; padding: 0 .2em; }
img { max-width: min(100%, 46rem); height: auto; display: block; }
figure { margin: 1rem 0; break-inside: avoid; }
figcaption { color: #555; font-size: .875rem; }
ul { padding-left: 1.2rem; }
li { margin: .25rem 0; }
@media (max-width: 34rem) {
  body { font-size: 15px; padding: .7rem .8rem 3rem; }
  table { font-size: .8rem; }
  th, td { padding: .3rem .45rem; }
  th:first-child, td:first-child { max-width: 9rem; }
}
@media print {
  body { max-width: none; font-size: 10pt; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  th, td { white-space: normal; padding: .2rem .3rem; }
  tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""


def to_markdown(blocks: list[tuple]) -> str:
    lines: list[str] = []
    for kind, *content in blocks:
        if kind in ("h1", "h2"):
            lines += [f"{'#' * int(kind[1])} {content[0]}", ""]
        elif kind in ("p", "verdict"):
            lines += [content[0], ""]
        elif kind == "ul":
            lines += [*(f"- {item}" for item in content[0]), ""]
        elif kind == "table":
            header, rows, text_columns = content
            cell = lambda value: str(value).replace("|", "\\|")
            lines += ["| " + " | ".join(header) + " |",
                      "|" + "|".join("---" if i in text_columns else "---:" for i in range(len(header))) + "|"]
            lines += ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
            lines.append("")
        elif kind == "img":
            lines += [f"![{content[1]}]({content[0]})", ""]
    return "\n".join(lines)


def to_html(blocks: list[tuple], title: str) -> str:
    """One page without references to anything outside itself."""

    def inline(text: str) -> str:
        text = html.escape(str(text))
        return re.sub(r"`([^`]+)`", r"<code>\1</code>", re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text))

    out = []
    for kind, *content in blocks:
        if kind in ("h1", "h2", "p"):
            out.append(f"<{kind}>{inline(content[0])}</{kind}>")
        elif kind == "verdict":
            out.append(f'<p class="verdict {content[1].split()[0]}">{inline(content[0])}</p>')
        elif kind == "ul":
            out.append("<ul>" + "".join(f"<li>{inline(item)}</li>" for item in content[0]) + "</ul>")
        elif kind == "table":
            header, rows, text_columns = content
            attribute = lambda i, value, text=text_columns: (
                ' class="text"' if i in text and i else ' class="na"' if str(value).startswith("N/A") else "")
            head = "".join(f"<th{attribute(i, '')} scope=col>{inline(h)}</th>" for i, h in enumerate(header))
            body = "".join("<tr>" + "".join(f"<td{attribute(i, v)}>{inline(v)}</td>" for i, v in enumerate(row))
                           + "</tr>" for row in rows)
            out.append(f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
                       "</table></div>")
        elif kind == "img":
            data = base64.b64encode(content[2]).decode()
            out.append(f'<figure><img alt="{html.escape(content[1], quote=True)}" src="data:image/png;base64,{data}">'
                       f"<figcaption>{inline(content[1])}</figcaption></figure>")
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
            f"<style>{CSS}</style></head>\n<body>\n{chr(10).join(out)}\n</body></html>\n")


def plain(value):
    """For JSON: NaN and infinity become null, numpy becomes Python, keys become text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    if isinstance(value, (np.floating, np.integer, np.bool_)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def publish(blocks: list[tuple], record: dict, out: str | None) -> None:
    """Print the report; with --out also write report.md, report.json, PNGs and report.html."""
    text = to_markdown([b for b in blocks if b[0] != "img" or out])
    if out:
        folder = Path(out)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for kind, name, *content in blocks:
                if kind == "img":
                    disk.write_whole(folder / name, content[1])
            disk.write_whole(folder / "report.json", (json.dumps(plain(record), indent=2) + "\n").encode())
            disk.write_whole(folder / "report.html", to_html(blocks, blocks[0][1]).encode())
            disk.write_whole(folder / "report.md", text.encode())
        except OSError as error:
            raise ValueError(f"--out {folder} cannot be written ({error.strerror}): choose another folder.") from None
    print(text)


# ----------------------------------------------------------------------------------------------------------------------
# cells: every number of a comparison is a float, or the reason why there is none (str)


def table(columns: list[tuple], rows: list, alpha: float = 0.05) -> tuple:
    """A table as a block. columns: (header, "left" | "right", cell(row)); one more entry is one more column."""
    level = f"{100 * (1 - alpha):g} %"
    header = [title.replace("{level}", level) for title, _, _ in columns]
    body = [[cell(row) for _, _, cell in columns] for row in rows]
    left = {i for i, (_, side, _) in enumerate(columns) if side == "left"}
    return "table", header, body, left


def form(value, spec: str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:{spec}}"


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
