"""The held-out books as documents to be read: python split.py books.parquet FRACTION OUT

Of every book that prepare_fineweb.py --holdout_by origin --val_fraction FRACTION holds out, all chapters go into
OUT/dev.parquet (every third book: rates of writing are chosen on it) or OUT/test.parquet (the others).
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import shards  # noqa: E402


def main():
    books, fraction, out = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    table = pq.read_table(books, columns=["id", "origin", "text"])
    origins = table["origin"].to_pylist()
    names = sorted(set(origins))
    held_out = shards.is_held_out([shards.document_hash(name.encode()) for name in names], fraction)
    held_out = [name for name, is_held_out in zip(names, held_out, strict=True) if is_held_out]
    parts = {"dev": held_out[::3], "test": [name for i, name in enumerate(held_out) if i % 3]}
    for part, chosen in parts.items():
        rows = pa.array([origin in set(chosen) for origin in origins])
        pq.write_table(table.filter(rows), out / f"{part}.parquet")
        print(f"{part}: {len(chosen)} books of {len(names)}")


if __name__ == "__main__":
    main()
