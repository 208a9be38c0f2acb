"""damage.py owns the ways in which mutations.py spoils a file.

Each function takes (bytes, random.Random) and gives other bytes. A kind of file has a tuple of them, in which a
function may stand more than once."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import sys
import zipfile

import numpy as np
import torch


def flip(data: bytes, rng) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 8, 64))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def splice(data: bytes, rng) -> bytes:
    """A part cut out, doubled, zeroed, or replaced by random bytes."""
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 2, 16, 512)))
    part = data[start:end]
    new = rng.choice((b"", part * 2, bytes(len(part)), rng.randbytes(len(part) + rng.randrange(3))))
    return data[:start] + new + data[end:]


def cut(data: bytes, rng) -> bytes:
    return data[: rng.choice((0, 1, len(data) // 2, max(0, len(data) - 1), rng.randrange(len(data) + 1)))]


def swap_halves(data: bytes, rng) -> bytes:
    middle = rng.randrange(len(data) + 1)
    return data[middle:] + data[:middle]


def encode_again(data: bytes, rng) -> bytes:
    text = data.decode("latin-1")
    kinds = "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-8"
    return text.encode(rng.choice(kinds))


def pack(data: bytes, rng) -> bytes:
    return rng.choice((gzip.compress, lambda part: part + b"\0" * 99, lambda part: b"\n\n" + part))(data)


def replace_all(data: bytes, rng) -> bytes:
    return rng.choice((b"", b"\n", b"null", b"[]", b"{}", b"[" * 200_000, b'{"a":' * 50_000, b"-", b"\xff\xfe",
                       b"9" * 5000, b"1e999", b"NaN", b'"\\ud800"', b"<html>Not found</html>", b"PK\x03\x04"))


BYTES = (flip, flip, splice, cut, swap_halves, encode_again, pack, replace_all)

ODD = [None, True, [], {}, "", "x", "NaN", "../x", "a\nb", "\ud800", "0" * 64, "x" * 100_000, -1, 0, 1, 1.5, -0.0,
       math.nan, math.inf, 1e308, 2**31, 2**63, 2**64, 10**400, [[]], [None], {"a": None}, "1", "1e5", "日本", [0] * 9]


def places(value, path=()) -> list[tuple]:
    """Paths to everything inside a value of JSON or torch.save, of long lists to the first 40."""
    paths, items = [path], ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value[:40])
    for key, inner in items:
        paths += places(inner, (*path, key))
    return paths


def change_value(value, rng):
    """A JSON-like value with one place changed. It changes `value` itself."""
    path = rng.choice(places(value))
    if not path:
        return rng.choice(ODD)
    outer = value
    for key in path[:-1]:
        outer = outer[key]
    key, inner = path[-1], outer[path[-1]]
    kind = rng.randrange(6)
    if kind == 0:
        del outer[key]
    elif kind == 1 and isinstance(outer, dict):
        outer[rng.choice((str(key).upper(), f"{key} ", "", "../x", "x" * 300))] = outer.pop(key)
    elif kind == 2 and isinstance(outer, dict):
        other = rng.choice(list(outer))
        outer[key], outer[other] = outer[other], outer[key]
    elif kind == 3 and isinstance(inner, (int, float)):
        outer[key] = rng.choice((str(inner), -inner, inner + 1, inner * 1000, float(inner)))
    elif kind == 4 and isinstance(inner, str) and inner:
        at = rng.randrange(len(inner))
        outer[key] = inner[:at] + chr(rng.randrange(32, 127)) + inner[at + 1 :]
    else:
        outer[key] = rng.choice(ODD)
    return value


def dump(value, rng) -> str:
    """JSON, now and then with a number or nesting that Python's own reader refuses, or with a key twice."""
    sys.set_int_max_str_digits(0)
    text = json.dumps(value)
    sys.set_int_max_str_digits(4300)
    hard = rng.randrange(12)
    if hard == 0:
        text = text.replace("1", "1" * 5000, 1)
    elif hard == 1:
        text = text.replace("null", "[" * 100_000 + "]" * 100_000, 1)
    elif hard == 2:
        text = text.replace("{", '{"step": 1, "step": [], ', 1)
    return text


def json_file(data: bytes, rng) -> bytes:
    return dump(change_value(json.loads(data), rng), rng).encode()


def json_line(data: bytes, rng) -> bytes:
    lines = data.splitlines() or [b"{}"]
    i = rng.randrange(len(lines))
    kind = rng.randrange(8)
    if kind == 0:
        lines.insert(i, lines[i])
    elif kind == 1:
        lines.insert(i, rng.choice((b"", b"[1]", b"{", b"null", b"{}", b"9" * 5000, b"[" * 100_000, b"\xff\xfe")))
    elif kind == 2:
        j = rng.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]
    else:
        lines[i] = dump(change_value(json.loads(lines[i]), rng), rng).encode()
    return b"\n".join(lines) + b"\n"


def zip_lines(data: bytes, rng) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        contents = {name: json_line(archive.read(name), rng) for name in archive.namelist()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        if rng.randrange(9) == 0:
            archive.writestr("bomb.jsonl", bytes(400_000_000))
    return packed.getvalue()


def gzip_lines(data: bytes, rng) -> bytes:
    lines = json_line(gzip.decompress(data), rng)
    if rng.randrange(9) == 0:
        lines += rng.choice((b"\n", b" ", b"{}\n")) * 60_000_000
    return gzip.compress(lines, 1)


def parquet_rows(data: bytes, rng) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    packed = io.BytesIO()
    if rng.randrange(9) == 0:
        rows = [rows[0] | dict.fromkeys(rows[0].keys() & {"text"}, "x" * 1_000_000)] * 600
    else:
        rows = change_value(rows, rng)
    try:
        pq.write_table(pa.Table.from_pylist(rows), packed)
    except (pa.ArrowException, AttributeError, TypeError, ValueError, OverflowError):
        return data  # parquet cannot hold it
    return packed.getvalue()


def table(data: bytes, rng) -> bytes:
    lines = data.decode().splitlines()
    i = rng.randrange(len(lines))
    cells = lines[i].split(",")
    at = rng.randrange(len(cells))
    kind = rng.randrange(7)
    if kind == 0:
        return data.replace(b",", rng.choice((b";", b"\t", b"|")))
    if kind == 1:
        return data.replace(b".", b",")
    if kind == 2:
        del cells[at]
    elif kind == 3:
        cells.insert(at, rng.choice(("", "x", "3,5", '"', '"3,5"')))
    elif kind == 4:
        cells[at] = rng.choice(("", "NaN", "inf", "1e999", "=1+1", "3,5", "-", "x" * 200_000, '"', "\0", "0x10"))
    elif kind == 5:
        lines.insert(i, lines[0])
    else:
        cells[at], cells[0] = cells[0], cells[at]
    lines[i] = ",".join(cells)
    return "\n".join(lines).encode("utf-8", "replace") + b"\n"


def arrays(data: bytes, rng) -> bytes:
    with np.load(io.BytesIO(data)) as file:
        content = dict(file)
    name = rng.choice(list(content))
    value = content[name]
    odd = (value[:-1], value.astype(np.float32), value[None], np.array(3), np.array(["x"]), value[::-1],
           np.full(value.shape, 2**62), -value.view(np.int8), np.zeros(0))
    kind = rng.randrange(4)
    if kind == 0:
        content[f"{name}_"] = content.pop(name)
    elif kind == 1:
        content[name] = np.array([None, {}], object)
    else:
        content[name] = odd[rng.randrange(len(odd))]
    packed = io.BytesIO()
    np.savez(packed, **content)
    return packed.getvalue()


def tensors(data: bytes, rng) -> bytes:
    """Another shape of what torch.save wrote."""

    def change(value, path):
        if path:
            key, rest = path[0], path[1:]
            if isinstance(value, dict):
                return {other: change(inner, rest) if other == key else inner for other, inner in value.items()}
            items = [change(inner, rest) if i == key else inner for i, inner in enumerate(value)]
            return type(value)(items)
        if torch.is_tensor(value):
            odd = value.double(), value[..., :-1] if value.dim() else value[None], value.flatten(), None, value.int()
            return rng.choice(odd)
        return rng.choice([*ODD, torch.zeros(3), torch.tensor(math.nan), {3: 4}, (1, 2)])

    value = torch.load(io.BytesIO(data), weights_only=True)
    packed = io.BytesIO()
    with contextlib.suppress(TypeError):  # a tuple that would hold too little
        value = change(value, rng.choice(places(value)))
    torch.save(value, packed)
    return packed.getvalue()


JSON = (*BYTES, *[json_file] * 12)
LINES = (*BYTES, *[json_line] * 10)
GZIP = (*BYTES, *[gzip_lines] * 4)
ZIP = (*BYTES, *[zip_lines] * 8)
ROWS = (*BYTES, *[parquet_rows] * 8)
TABLE = (*BYTES, *[table] * 10)
ARRAYS = (*BYTES, *[arrays] * 8)
TENSORS = (*BYTES, *[tensors] * 12)
