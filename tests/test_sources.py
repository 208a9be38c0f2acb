"""sources.py: which rows come out of a file, and that a damaged file is never taken for a shorter one."""

import gzip
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lab import sources

ROWS = [{"n": number, "text": f"row {number} é"} for number in range(3000)]
LINES = [json.dumps(row).encode() + b"\n" for row in ROWS]


def flipped(data: bytes, place: int) -> bytes:
    """The data with one byte changed."""
    changed = bytearray(data)
    changed[place] ^= 255
    return bytes(changed)


def test_records_of_every_format(tmp_path):
    """Rows out of each format: all 3,000, in order, numbered by their line or row; blank lines count as lines only."""
    half = len(LINES) // 2
    members = gzip.compress(b"".join(LINES[:half])) + gzip.compress(b"".join(LINES[half:]))
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b" \n\n".join(LINES))
    (tmp_path / "a.jsonl.gz").write_bytes(members)
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b"".join(LINES)))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=700)
    for name, step, unit in (("a.jsonl", 3, "line"), ("a.jsonl.gz", 1, "line"), ("a.jsonl.zst", 1, "line"),
                             ("a.parquet", 1, "row")):
        places, records = zip(*sources.read_records(tmp_path / name), strict=True)
        assert list(records) == ROWS, name
        assert [place.number for place in places[:3]] == [1, 1 + step, 1 + 2 * step]
        assert places[1] == f"{tmp_path / name} {unit} {1 + step}"
    columns = [record for _, record in sources.read_records(tmp_path / "a.parquet", ("n", "other"))]
    assert columns == [{"n": row["n"]} for row in ROWS]


def test_damage_is_an_error(tmp_path):
    """Rows of a file that was cut off, or of which one byte is wrong, checksums included: none pass for the whole."""
    packed = gzip.compress(b"".join(LINES))
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(b"".join(LINES))
    table = tmp_path / "whole.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    damaged = {
        "cut.jsonl.gz": packed[:-200], "no_end.jsonl.gz": packed[:-8], "crc.jsonl.gz": flipped(packed, -6),
        "size.jsonl.gz": flipped(packed, -2), "second.jsonl.gz": packed + packed[:-8], "not.jsonl.gz": LINES[0],
        "cut.jsonl.zst": frame[:-10], "sum.jsonl.zst": flipped(frame, -2), "cut.parquet": table.read_bytes()[:-100],
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} cannot be read .*damaged or cut off"):
            list(sources.read_records(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="no such file"):
        list(sources.read_records(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match=r"data.csv is none of \.jsonl"):
        (tmp_path / "data.csv").write_text("a")
        list(sources.read_records(tmp_path / "data.csv"))


def test_a_line_that_is_not_json_leaves_the_others(tmp_path):
    """Rows around a bad line: all of them, and the line's place for the one who decides what becomes of it."""
    deep = b"[" * 100_000
    (tmp_path / "a.jsonl").write_bytes(LINES[0] + b'{"n": \n' + b'{"n": "\xe9"}\n' + deep + b"\n" + LINES[1])
    records = [record for _, record in sources.read_records(tmp_path / "a.jsonl")]
    assert [records[0], records[4]] == ROWS[:2]
    for number, bad in enumerate(records[1:4], 2):
        assert isinstance(bad, sources.BadRecord) and bad.why.startswith("is not JSON")
        assert str(bad).startswith(f"{tmp_path / 'a.jsonl'} line {number} is not JSON")


def test_zip(tmp_path):
    """Rows of a zip's jsonl files, in order; other members and macOS's shadows are passed over."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("b.jsonl", "README.txt", "__MACOSX/b.jsonl", "c.JSONL"):
            archive.writestr(name, b"".join(LINES[:2]) + b"\n" + LINES[2])
    places, records = zip(*sources.read_zip(tmp_path / "a.zip", "NO_PASSWORD"), strict=True)
    assert list(records) == ROWS[:3] * 2 and [place.number for place in places] == [1, 2, 4] * 2
    assert places[0] == f"{tmp_path / 'a.zip'}/b.jsonl line 1"
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("README.txt", "")
    with pytest.raises(ValueError, match="has no .jsonl file"):
        list(sources.read_zip(tmp_path / "empty.zip", "NO_PASSWORD"))


def test_synthetic_size():
    """Items of synthetic:N: N, or the default; a wrong N is one sentence."""
    assert [sources.synthetic_size(name, 7) for name in ("synthetic", "synthetic:", "synthetic:12", "a.jsonl", "")] == [
        7, 7, 12, None, None]
    for wrong in ("synthetic:0", "synthetic:-1", "synthetic:x", "synthetic:1.5", "synthetic:²"):
        with pytest.raises(ValueError, match="at least 1"):
            sources.synthetic_size(wrong, 7)
