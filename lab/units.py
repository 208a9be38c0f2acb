"""units.py owns how spans of time, numbers of bytes and counts are written: 45 s, 5.2 h, 310.4 MB, 2 pairs."""

from __future__ import annotations

# below so many seconds, in this unit
TIMES = ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h"))
SIZES = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def duration(seconds: float | None) -> str:
    """0.31 s, 45 s, 3.3 min, 5.2 h, 3.1 days; N/A for None."""
    if seconds is None:
        return "N/A"
    for limit, unit, name in TIMES:
        if seconds < limit:
            return f"{seconds / unit:.2g} {name}"
    return f"{seconds / 86_400:,.1f} days"


def size(n_bytes: float) -> str:
    for unit, name in SIZES:
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{n_bytes:.0f} B"


def count(n: int, noun: str) -> str:
    """'1 pair', '2 pairs', '1,200 tokens'."""
    return f"{n:,} {noun_of(n, noun)}"


def noun_of(n: int, noun: str) -> str:
    if n == 1:
        return noun
    return f"{noun}s"
