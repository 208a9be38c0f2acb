"""split.py writes the held-out books as documents to be read.

    python experiments/2026-11-26_memory/split.py books.parquet FRACTION OUT

Of every book that prepare_fineweb.py --holdout_by origin --val_fraction FRACTION holds out, all chapters go into
OUT/dev.parquet (every third book: rates of writing are chosen on it) or OUT/test.parquet (the others).
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import disk, files, flags, processes, shards  # noqa: E402

COLUMNS = ["id", "origin", "text"]


def main():
    parser = flags.Parser(prog="split.py", description=__doc__)
    parser.add_argument("books", help="parquet with the columns id, origin and text")
    parser.add_argument("fraction", type=float, help="share of the books that is held out")
    parser.add_argument("out", type=Path, help="folder of dev.parquet and test.parquet")
    args = parser.parse_args()
    if not 0 < args.fraction < 1:
        parser.error(f"fraction {args.fraction}: give a share between 0 and 1.")
    path = files.only(args.books, [".parquet"], "BOOKS")
    with files.damage_in(path):
        table = pq.read_table(path)
    if not set(COLUMNS) <= set(table.column_names):
        parser.error(f"{path} has the columns {', '.join(table.column_names)}: name a parquet with "
                     f"{', '.join(COLUMNS)}.")
    table = table.select(COLUMNS)
    disk.make_folder(args.out, "OUT")
    origins = table["origin"].to_pylist()
    names = sorted(set(origins))
    held_out = shards.is_held_out([shards.document_hash(name.encode()) for name in names], args.fraction)
    held_out = [name for name, is_held_out in zip(names, held_out, strict=True) if is_held_out]
    parts = {"dev": held_out[::3], "test": [name for i, name in enumerate(held_out) if i % 3]}
    for part, chosen in parts.items():
        rows = pa.array([origin in set(chosen) for origin in origins])
        with disk.replacing(args.out / f"{part}.parquet") as file:
            pq.write_table(table.filter(rows), file)
        print(f"{part}: {len(chosen)} books of {len(names)}")


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "split.py")
