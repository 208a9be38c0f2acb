"""packing_report.py packs corpora with the three --overflow policies and reports what each throws away, and when.

    python experiments/2026-11-21_bos_rows/packing_report.py ../shared/data/edu_web.parquet ../shared/data/books.parquet

Runs prepare_bos_rows.py as documents 000 and 001 have it (buffer 1000) into a temporary folder. Writes beside itself
packing_report.json (a record per corpus, T and policy, with the report by decile of rows of its meta.json) and
packing_report.png (crop fraction against position), and prints the table. Takes about a minute.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import prepare_bos_rows  # noqa: E402
import prepare_fineweb  # noqa: E402
from lab import shards  # noqa: E402

HERE = Path(__file__).resolve().parent
OVERFLOWS = ("crop", "split", "requeue")


def quietly(main, argv: list[str]) -> dict:
    """Run a prepare script, return its meta.json."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(argv)
    return shards.read_meta(argv[argv.index("--out_dir") + 1])


def measure(path: Path, seq_lens: list[int], buffer_docs: int) -> list[dict]:
    records = []
    with tempfile.TemporaryDirectory() as folder:
        common = ["--dataset", str(path), "--num_proc", "2", "--out_dir"]
        quietly(prepare_fineweb.main, [*common, f"{folder}/stream"])
        files, _ = shards.open_dataset(f"{folder}/stream")
        lengths = np.diff(np.flatnonzero(files.slice(0, files.n_tokens) == shards.BOS_ID), append=files.n_tokens)
        for seq_len in seq_lens:
            beyond = int(np.maximum(lengths - seq_len - 1, 0).sum())
            for overflow in OVERFLOWS:
                meta = quietly(prepare_bos_rows.main, [
                    *common, f"{folder}/{overflow}{seq_len}", "--seq_len", str(seq_len), "--overflow", overflow,
                    "--buffer_docs", str(buffer_docs)])
                names = ("seq_len", "overflow", "buffer_docs", "rows_written_total", "tokens_cropped_total",
                         "crop_fraction", "bos_added_total", "tokens_dropped_tail", "packing_report")
                records.append({"corpus": path.stem, "documents": len(lengths), "stream_tokens": files.n_tokens,
                                "tokens_beyond_a_row": beyond} | {name: meta[name] for name in names})
    return records


def table(records: list[dict]) -> str:
    """Markdown. Beyond a row: the share of all tokens that lies more than a row behind its document's beginning, which
    any packer loses that crops documents to one row. Epochs: in the steps of one epoch of the stream."""
    lines = ["| corpus | T | --overflow | rows | source tokens kept | epochs | beyond a row | cropped | 1st tenth "
             "| 2nd | 5th | 9th | 10th | documents/row | BOS added |", "|---|---:|---" + "|---:" * 12 + "|"]
    for r in records:
        parts, rows, row_tokens = r["packing_report"], r["rows_written_total"], r["seq_len"] + 1
        kept = (rows * row_tokens - r["bos_added_total"]) / r["stream_tokens"]
        epochs = (r["stream_tokens"] - 1) // r["seq_len"] / rows
        beyond = r["tokens_beyond_a_row"] / r["stream_tokens"]
        tenths = " | ".join(f"{parts[i]['crop_fraction']:.1%}" for i in (0, 1, 4, 8, 9))
        documents = sum(part["documents_per_row"] * part["rows"] for part in parts) / rows
        lines.append(f"| {r['corpus']} | {r['seq_len']} | {r['overflow']} | {rows:,} | {kept:.1%} | {epochs:.2f} | "
                     f"{beyond:.1%} | {r['crop_fraction']:.1%} | {tenths} | {documents:.2f} | "
                     f"{r['bos_added_total'] / r['stream_tokens']:.2%} |")
    return "\n".join(lines)


def draw(records: list[dict], path: Path) -> None:
    """Crop fraction of each tenth of the rows against its place in the pass; a panel per corpus and T."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((r["corpus"], r["seq_len"]) for r in records))
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.2), sharey=True, layout="constrained",
                                squeeze=False)  # fmt: skip
    for (corpus, seq_len), axis in zip(panels, axes[0], strict=True):
        for r in records:
            if (r["corpus"], r["seq_len"]) == (corpus, seq_len):
                middles = [(p["first_row"] + p["rows"] / 2) / r["rows_written_total"] for p in r["packing_report"]]
                values = [100 * p["crop_fraction"] for p in r["packing_report"]]
                axis.plot(middles, values, marker="o", markersize=3, color=f"C{OVERFLOWS.index(r['overflow'])}",
                          label=f"{r['overflow']}, {r['crop_fraction']:.1%} in all")
                beyond = 100 * r["tokens_beyond_a_row"] / r["stream_tokens"]
        axis.axhline(beyond, color="0.6", linestyle=":", label=f"beyond a row, {beyond:.1f}%")
        axis.set(title=f"{corpus}, T = {seq_len}", xlabel="position in the pass", xlim=(0, 1), ylim=(-2, 100))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7, loc="center right", bbox_to_anchor=(1, 0.27))
    axes[0][0].set_ylabel("cropped (% of written + cropped)")
    figure.savefig(path, dpi=130)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("corpora", nargs="+", type=Path, help="files that prepare_bos_rows.py reads")
    p.add_argument("--seq_len", nargs="+", type=int, default=[256, 1024], help="tokens per row (default: 256 1024)")
    p.add_argument("--buffer_docs", type=int, default=1000, help="documents to choose from (default: 1000)")
    args = p.parse_args()
    records = []
    for path in args.corpora:
        records += measure(path, args.seq_len, args.buffer_docs)
    rounded = json.loads(json.dumps(records), parse_float=lambda x: round(float(x), 9))
    (HERE / "packing_report.json").write_text("[\n" + ",\n".join(map(json.dumps, rounded)) + "\n]\n")
    draw(records, HERE / "packing_report.png")
    print(table(records))


if __name__ == "__main__":
    main()
