"""packing_report.py packs corpora with the three --overflow policies and reports what each throws away, and when.

    python experiments/2026-11-21_bos_rows/packing_report.py ../shared/data/edu_web.parquet ../shared/data/books.parquet

Runs prepare_bos_rows.py as documents 000 and 001 have it (buffer 1000) into a temporary folder. Writes beside itself
packing_report.json (a record per corpus, T and policy, with the report by decile of rows of its meta.json) and
packing_report.png (crop fraction against position), and prints the table. Takes about a minute.
"""

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
from lab import flags, shards  # noqa: E402
from lab.tokenizer import BOS_ID  # noqa: E402

HERE = Path(__file__).resolve().parent
OVERFLOWS = ("crop", "split", "requeue")
OF_META = ("seq_len", "overflow", "buffer_docs", "rows_written_total", "tokens_cropped_total",
           "crop_fraction", "bos_added_total", "tokens_dropped_tail", "packing_report")
HEAD = ("corpus", "T", "--overflow", "rows", "source tokens kept", "epochs", "beyond a row", "cropped",
        "1st tenth", "2nd", "5th", "9th", "10th", "documents/row", "BOS added")


def quietly(main, argv: list[str], out_dir: str) -> dict:
    """Runs a prepare script into out_dir and returns its meta.json."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main([*argv, "--out_dir", out_dir])
    return shards.read_meta(out_dir)


def measure(path: Path, seq_lens: list[int], buffer_docs: int) -> list[dict]:
    records = []
    with tempfile.TemporaryDirectory() as folder:
        common = ["--dataset", str(path), "--num_proc", "2"]
        quietly(prepare_fineweb.main, common, f"{folder}/stream")
        files, _ = shards.open_dataset(f"{folder}/stream")
        stream = files.slice(0, files.n_tokens)
        lengths = np.diff(np.flatnonzero(stream == BOS_ID), append=files.n_tokens)
        for seq_len in seq_lens:
            beyond = int(np.maximum(lengths - seq_len - 1, 0).sum())
            for overflow in OVERFLOWS:
                flags = ["--seq_len", str(seq_len), "--buffer_docs", str(buffer_docs), "--overflow", overflow]
                meta = quietly(prepare_bos_rows.main, common + flags, f"{folder}/{overflow}{seq_len}")
                record = {
                    "corpus": path.stem,
                    "documents": len(lengths),
                    "stream_tokens": files.n_tokens,
                    "tokens_beyond_a_row": beyond,
                }
                records.append(record | {name: meta[name] for name in OF_META})
    return records


def table(records: list[dict]) -> str:
    """Markdown. Beyond a row: the share of all tokens that lies more than a row behind its document's beginning, which
    any packer loses that crops documents to one row. Epochs: in the steps of one epoch of the stream."""
    lines = [f"| {' | '.join(HEAD)} |", "|---|---:|---" + "|---:" * (len(HEAD) - 3) + "|"]
    for r in records:
        parts, rows = r["packing_report"], r["rows_written_total"]
        kept = (rows * (r["seq_len"] + 1) - r["bos_added_total"]) / r["stream_tokens"]
        epochs = (r["stream_tokens"] - 1) // r["seq_len"] / rows
        beyond = r["tokens_beyond_a_row"] / r["stream_tokens"]
        documents = sum(part["documents_per_row"] * part["rows"] for part in parts) / rows
        added = r["bos_added_total"] / r["stream_tokens"]
        cells = [r["corpus"], str(r["seq_len"]), r["overflow"], f"{rows:,}"]
        cells += [f"{kept:.1%}", f"{epochs:.2f}", f"{beyond:.1%}", f"{r['crop_fraction']:.1%}"]
        cells += [f"{parts[tenth - 1]['crop_fraction']:.1%}" for tenth in (1, 2, 5, 9, 10)]
        cells += [f"{documents:.2f}", f"{added:.2%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_panel(axis, records: list[dict]) -> None:
    """Crop fraction of each tenth of the rows against its place in the pass, of one corpus and T."""
    for r in records:
        total, parts = r["rows_written_total"], r["packing_report"]
        middles = [(part["first_row"] + part["rows"] / 2) / total for part in parts]
        values = [100 * part["crop_fraction"] for part in parts]
        colour = f"C{OVERFLOWS.index(r['overflow'])}"
        label = f"{r['overflow']}, {r['crop_fraction']:.1%} in all"
        axis.plot(middles, values, marker="o", markersize=3, color=colour, label=label)
    one = records[0]
    beyond = 100 * one["tokens_beyond_a_row"] / one["stream_tokens"]
    axis.axhline(beyond, color="0.6", linestyle=":", label=f"beyond a row, {beyond:.1f}%")
    axis.set(title=f"{one['corpus']}, T = {one['seq_len']}", xlabel="position in the pass")
    axis.set(xlim=(0, 1), ylim=(-2, 100))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=7, loc="center right", bbox_to_anchor=(1, 0.27))


def draw(records: list[dict], path: Path) -> None:
    """A panel per corpus and T."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict = {}
    for r in records:
        panels.setdefault((r["corpus"], r["seq_len"]), []).append(r)
    size = (3.2 * len(panels), 3.2)
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for members, axis in zip(panels.values(), axes[0], strict=True):
        draw_panel(axis, members)
    axes[0][0].set_ylabel("cropped (% of written + cropped)")
    figure.savefig(path, dpi=130)


def main():
    p = flags.Parser(description=__doc__)
    p.add_argument("corpora", nargs="+", type=Path, help="files that prepare_bos_rows.py reads")
    p.add_argument("--seq_len", nargs="+", type=int, default=[256, 1024], help="tokens per row (default: 256 1024)")
    p.add_argument("--buffer_docs", type=int, default=1000, help="documents to choose from (default: 1000)")
    args = p.parse_args()
    records = []
    for path in args.corpora:
        records += measure(path, args.seq_len, args.buffer_docs)
    rounded = json.loads(json.dumps(records), parse_float=lambda x: round(float(x), 9))
    lines = ",\n".join(json.dumps(record) for record in rounded)
    (HERE / "packing_report.json").write_text(f"[\n{lines}\n]\n")
    draw(records, HERE / "packing_report.png")
    print(table(records))


if __name__ == "__main__":
    main()
