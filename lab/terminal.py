"""terminal.py owns text on its way to a terminal: whole characters, columns, nothing that a terminal would obey."""

from __future__ import annotations

import codecs
import re
import shutil
import sys
import textwrap
import unicodedata

from lab.byte_pairs import Tokenizer
from lab.tokenizer import get_tokenizer

# what a terminal or a page would obey or cannot show: control characters, those that turn the direction of writing,
# and the bytes of a name that is no UTF-8
CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
UNSAFE, UNSAFE_IN_A_LINE = re.compile(f"[{CONTROL}]"), re.compile(rf"[{CONTROL}\t\n]")
COLUMN = 24  # characters: checkpoints that would get a narrower column are shown one below the other


def note(text: str) -> None:
    """Prints a line to stderr."""
    print(text, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Prints text at once."""
    print(visible(text), end="", flush=True)


def visible(text: str) -> str:
    """The text with escapes for what a terminal would obey; tabs and line breaks stay."""
    return UNSAFE.sub(escape, text)


def one_line(text) -> str:
    """The same with tabs and line breaks as escapes, too."""
    return UNSAFE_IN_A_LINE.sub(escape, str(text))


def escape(match: re.Match) -> str:
    return ascii(match[0])[1:-1]


# ----------------------------------------------------------------------------------------------------------------------
# as it comes


class Stream:
    """Shows the text of tokens as they come, stream(row, token) each: whole characters, up to a stop string."""

    def __init__(self, stop: str = "", tokenizer: Tokenizer | None = None):
        self.tokenizer = tokenizer or get_tokenizer()
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.stop, self.held, self.is_over = stop, "", False

    def __call__(self, row: int, token: int) -> None:
        self._show(self.decoder.decode(self.tokenizer.decode_bytes([token])))

    def end(self) -> None:
        """Shows what was held back: half a character as U+FFFD, the beginning of a stop string."""
        self._show(self.decoder.decode(b"", final=True))
        if not self.is_over:
            show(self.held)

    def _show(self, text: str) -> None:
        if self.is_over:
            return
        text, end = self.held + text, len(self.held) + len(text)
        if self.stop and self.stop in text:
            end = text.index(self.stop)
            self.is_over = True
        else:  # its last characters may begin the stop string
            sizes = [n for n in range(1, len(self.stop)) if text.endswith(self.stop[:n])]
            end -= max(sizes, default=0)
        self.held = text[end:]
        show(text[:end])


# ----------------------------------------------------------------------------------------------------------------------
# columns


def side_by_side(names: list[str], texts: list[str]) -> str:
    """Texts under their names in columns of the terminal's width; one below the other where it is too narrow."""
    if len(names) == 1:
        return texts[0]
    texts = [visible(text).expandtabs(4) for text in texts]
    width = (shutil.get_terminal_size().columns - 3 * (len(names) - 1)) // len(names)
    if width < COLUMN:
        return "\n".join(f"[{name}]\n{text}" for name, text in zip(names, texts, strict=True))
    columns = []
    for name, text in zip(names, texts, strict=True):
        lines = [*wrap(name, width), "-" * width]
        for line in text.split("\n"):
            lines += wrap(line, width)
        columns.append(lines)
    height = max(map(len, columns))
    rows = []
    for y in range(height):
        cells = [lines[y] if y < len(lines) else "" for lines in columns]
        padded = [cell + " " * (width - cells_of(cell)) for cell in cells]
        rows.append(" | ".join(padded).rstrip())
    return "\n".join(rows)


def wrap(line: str, width: int) -> list[str]:
    """A line in pieces of at most `width` terminal cells; broken between words where they are narrow characters."""
    if cells_of(line) == len(line):
        return textwrap.wrap(line, width, drop_whitespace=True) or [""]
    pieces = [""]
    for char in line:
        if cells_of(pieces[-1] + char) > width:
            pieces.append("")
        pieces[-1] += char
    return pieces


def cells_of(text: str) -> int:
    """Cells of a terminal that a text takes: 2 for a wide character, 0 for an accent."""
    cells = 0
    for char in text:
        if not unicodedata.combining(char):
            cells += 2 if unicodedata.east_asian_width(char) in "WF" else 1
    return cells


def aligned(header: list[str], rows: list[list[str]], left: set[int]) -> str:
    """A table for a terminal: columns as wide as their widest cell, two blanks apart; those in `left` begin left."""
    lines = [[visible(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(map(cells_of, column)) for column in zip(*lines, strict=True)]
    rows = []
    for cells in lines:
        padded = []
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            blanks = " " * (width - cells_of(cell))
            padded.append(cell + blanks if i in left else blanks + cell)
        rows.append("  ".join(padded).rstrip())
    return "\n".join(rows)
