"""ab_report.py owns how a report looks: blocks of text, tables and plots as Markdown, PNGs and one HTML page.

A report is a list of blocks; text may hold `code` and **bold**:

    ("h1", text) ("h2", text) ("p", text) ("verdict", text, verdict) ("ul", [text]) ("facts", [(name, text)])
    ("table", header, rows, {columns of text}) ("key", the same: a table that fits a phone) ("code", text)
    ("img", file name, caption, picture of ab_plots) ("quotes", [(heading, [text])]) ("links", [(name, [path])])

publish() prints it and writes report.md, report.json, report.html and the PNGs. The page loads nothing (style:
ab_report.css) and links to the runs' folders. Only `code` and the **bold** word or question at a text's start are
markup; everything else is shown as it is, whatever a folder or a setting is called.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import sys
import urllib.parse
from pathlib import Path

import numpy as np

from lab import disk, processes
from lab.terminal import one_line

# ----------------------------------------------------------------------------------------------------------------------
# Markdown and HTML


# a text's own markup: the verdict's word or a question at its start, and words in backticks
BOLD = re.compile(r"\*\*([^*]+)\*\*(?= · )|\*\*([^*]+\?)\*\*(?= )")
CODE = re.compile(r"(?<![^\s(])`([^`\s]+(?: [^`\s]+)*)`(?![^\s,.;:)?])")
# what Markdown would take for markup; "< 0.0001", [intervals] and names_like_this are none
MARKDOWN_MARKUP = re.compile(
    r"[\\`*$]|~(?=~)|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[(\[])|(?<![A-Za-z0-9_])_+|_+(?![A-Za-z0-9_])"
    r"|^[#>]|^[+-](?= )")


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


def markdown_code(text: str) -> str:
    fence = "`" * (3 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}bash\n{text}\n{fence}"


def markdown_quotes(quotes) -> str:
    parts = []
    for heading, texts in quotes:
        parts += [markdown(heading), "\n>\n".join(f"> {markdown(text)}" for text in texts)]
    return "\n\n".join(parts)


def markdown_links(links) -> str:
    def link(path) -> str:
        name = escape_markdown(one_line(Path(path).name)).replace("[", "\\[").replace("]", "\\]")
        return f"[{name}]({href_of(path)})"

    return "\n".join(f"- {markdown(name)}: {', '.join(map(link, paths))}" for name, paths in links)


def href_of(path) -> str:
    """A path relative to the report as a reference, whatever signs a folder's name has."""
    return urllib.parse.quote(os.fsencode(path))


MARKDOWN = {  # kind of block -> its text
    "h1": lambda text: f"# {markdown(text)}",
    "h2": lambda text: f"## {markdown(text)}",
    "p": markdown,
    "verdict": lambda text, verdict: markdown(text),
    "ul": lambda items: "\n".join(f"- {markdown(item)}" for item in items),
    "facts": lambda facts: "\n".join(f"- {markdown(f'**{name}** · {text}')}" for name, text in facts),
    "table": markdown_table,
    "key": markdown_table,
    "img": lambda name, caption, picture: f"![{markdown(caption)}]({name})",
    "code": markdown_code,
    "quotes": markdown_quotes,
    "links": markdown_links,
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


def html_key(header, rows, text_columns) -> str:
    """A small table, of which a phone shows a block per row: each cell then has its heading beside it."""
    kinds = [{True: "text", False: "number"}[i in text_columns] for i in range(len(header))]
    labels = [html.escape(one_line(name), quote=True) for name in header]
    head = "".join(f'<th class="{kind}" scope=col>{inline(name)}</th>'
                   for kind, name in zip(kinds, header, strict=True))
    body = ""
    for row in rows:
        cells = "".join(f'<td class="{kind}" data-label="{label}">{inline(value)}</td>'
                        for kind, label, value in zip(kinds, labels, row, strict=True))
        body += f"<tr>{cells}</tr>"
    return f'<table class="key"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def html_image(name, caption, picture) -> str:
    """Both drawings, of which the style sheet shows one. A caption is text for those who do not see the plot, too."""
    title = html.escape(one_line(caption), quote=True)
    drawings = ""
    for kind in ("wide", "narrow"):
        svg = picture[kind].replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
        drawings += f'<div class="{kind}">{svg}</div>'
    return f"<figure>{drawings}<figcaption>{inline(caption)}</figcaption></figure>"


def html_facts(facts) -> str:
    pairs = (f"<div><dt>{inline(name)}</dt> <dd>{inline(text)}</dd></div>" for name, text in facts)
    return f"<dl>{''.join(pairs)}</dl>"


def html_quotes(quotes) -> str:
    parts = ""
    for heading, texts in quotes:
        said = "".join(f"<blockquote>{inline(text)}</blockquote>" for text in texts)
        parts += f"<div><h3>{inline(heading)}</h3>{said}</div>"
    return f'<div class="quotes">{parts}</div>'


def html_links(links) -> str:
    def link(path) -> str:
        return f'<a href="{href_of(path)}">{html.escape(one_line(Path(path).name))}</a>'

    items = (f"<li>{inline(name)}: {', '.join(map(link, paths))}</li>" for name, paths in links)
    return f"<ul>{''.join(items)}</ul>"


def first_word(verdict: str) -> str:
    return re.match(r"\w+", verdict)[0]


HTML = {
    "h1": lambda text: f"<h1>{inline(text)}</h1>",
    "h2": lambda text: f"<h2>{inline(text)}</h2>",
    "p": lambda text: f"<p>{inline(text)}</p>",
    "verdict": lambda text, verdict: f'<p class="verdict {first_word(verdict)}">{inline(text)}</p>',
    "ul": lambda items: "<ul>" + "".join(f"<li>{inline(item)}</li>" for item in items) + "</ul>",
    "facts": html_facts,
    "table": html_table,
    "key": html_key,
    "img": html_image,
    "code": lambda text: f'<pre tabindex="0"><code>{html.escape(text)}</code></pre>',
    "quotes": html_quotes,
    "links": html_links,
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


MODES = "a/b group_by aa check plan lengths sizes".split()  # of a report.json, by which a folder is known as ours


def check_out(out: str | None) -> None:
    """ValueError unless a report may go to --out: a folder that is new, empty, or holds an earlier report."""
    if out:
        folder = Path(out)
        check_folder(folder, ("report.json.tmp", "report.json.lock"), lambda names: is_report(folder / "report.json"),
                     "is not empty and holds no report.json of compare_runs.py")


def check_folder(folder: Path, unfinished: tuple, is_ours, fault: str) -> None:
    """ValueError, with `fault`, unless --out is new, empty but for the files `unfinished`, which a kill or a process
    that is just writing has left, or is_ours(names)."""
    try:
        names = {path.name for path in folder.iterdir()} - set(unfinished) - disk.FILE_MANAGERS
        if not names or is_ours(names):
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


def publish(blocks: list[tuple], record: dict, out: str | None, brief: list[str] | None = None) -> None:
    """Print the report, or `brief`, its few lines; with --out first write report.json, PNGs, report.html and report.md.

    ValueError, after the whole report is printed, when --out cannot be written: the numbers of a long comparison are
    not lost."""
    report = to_markdown([block for block in blocks if block[0] != "img" or out])
    if not out:
        show("\n".join(brief) if brief else report)
        return
    folder = Path(out)
    files = {"report.json": (json.dumps(plain(record), indent=2) + "\n").encode()}  # first: it marks the folder
    files |= {content[0]: content[2]["png"] for kind, *content in blocks if kind == "img"}
    css = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    body = "\n".join(HTML[kind](*content) for kind, *content in blocks)
    title = html.escape(one_line(blocks[0][1]))
    files["report.html"] = PAGE.format(title=title, css=css, body=body).encode()
    files["report.md"] = report.encode()
    check_out(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with disk.locked(folder / "report.json"):  # two comparisons into one folder leave one whole report
            for name, data in files.items():
                disk.write_whole(folder / name, data)
    except OSError as error:
        show(report)
        raise ValueError(f"--out {folder} cannot be written ({error.strerror}): choose another folder.") from error
    show("\n".join([*brief, f"report: {one_line(folder / 'report.html')}"]) if brief else report)


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
    """A number, a reason as it is, and N/A for None."""
    if value is None:
        return "N/A"
    return value if isinstance(value, str) else f"{value:{spec}}"


def signed(x, spec: str) -> str:
    """'+0.0123', or two digits of what would be rounded to +0.0000; a reason stays."""
    if isinstance(x, str):
        return x
    text = f"{x:+{spec}}"
    if x and not re.search("[1-9]", text):
        text = f"{x:+.2g}"
    return text


def form_interval(row: dict, spec: str, kind: str = "", spell=lambda x, spec: f"{x:+{spec}}") -> str:
    """kind: "" or "_corrected" (ab_verdict.judge). spell: of its ends, as signed()."""
    low, high = row[f"low{kind}"], row[f"high{kind}"]
    if isinstance(low, str):
        return low
    if not math.isfinite(low):
        return "N/A: no spread"
    return f"[{spell(low, spec)}, {spell(high, spec)}]"


def form_p(p) -> str:
    if isinstance(p, str):
        return p
    if not math.isfinite(p):
        return "N/A: no spread"
    return f"{p:.4f}" if p >= 1e-4 else "< 0.0001"


def form_change(row: dict, spec: str) -> str:
    """'+0.0123 [+0.0100, +0.0146], p 0.0010', or why there is none; both are corrected, and say so, where several tests
    were corrected together."""
    if isinstance(row["delta"], str):
        return row["delta"]
    if isinstance(row["low"], str):
        return f"{signed(row['delta'], spec)} (no interval: {row['low'].removeprefix('N/A: ')})"
    kind, p, tests = "", row["p"], row.get("tests", 1)
    if tests > 1:
        kind, p = "_corrected", row["p_corrected"]
    words = f", p {form_p(p)}"
    if kind:
        words += f", corrected over {tests} tests"
    return f"{signed(row['delta'], spec)} {form_interval(row, spec, kind, signed)}{words}"


def minutes(ms: float) -> str:
    """609,100 ms -> '10m 9.1s', as document 003 writes it."""
    tenths = round(ms / 100)
    return f"{tenths // 600}m {tenths % 600 / 10:.1f}s"
