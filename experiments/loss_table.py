"""loss_table.py prints the losses of finished runs by arm, as a Markdown table, and draws their curves as a PNG.

    python experiments/loss_table.py experiments/runs/quickstart_* --plot losses.png

Runs that differ in nothing but the seed are one arm. Bits per byte count the bytes of the original text, so arms with
different tokens compare.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # else `runs` is the folder beside this script
import runs  # noqa: E402

IGNORED = set("seed out_dir name config resume notes results_csv save_every keep_last log_every num_workers "
              "eval_batch_size device compile peak_flops verify_data sample_every sample_tokens "
              "micro_batch_size muon_lr n_inner condition".split())  # fmt: skip


def spread(values: list) -> str:
    if any(v is None for v in values):
        return "N/A"
    return f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="+", type=Path, help="run folders")
    p.add_argument("--plot", type=Path, help="PNG to write ('' = none)")
    args = p.parse_args()
    read = []
    for folder in args.runs:
        try:
            read.append((folder, runs.read_run(folder)))
        except ValueError as error:
            sys.exit(f"loss_table.py: {error}")
    unfinished = [str(folder) for folder, run in read if run["summary"] is None]
    if unfinished:
        sys.exit(
            f"loss_table.py: not finished: {', '.join(unfinished)}: run train_gpt.py --out_dir RUN --resume auto."
        )
    flags = [run["config"]["flags"] for _, run in read]
    differs = [k for k in flags[0] if k not in IGNORED and len({str(f.get(k)) for f in flags}) > 1]
    arms: dict[str, list] = {}
    for (_, run), f in zip(read, flags, strict=True):
        label = ", ".join(Path(str(f[k])).name if k == "data_dir" else f"{k} {f[k]}" for k in differs)
        label = label or args.runs[0].name
        arms.setdefault(label, []).append(run)
    print("| arm | seeds | final train loss | val loss | val bits/byte | bos view bits/byte | tokens/s |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for label, members in arms.items():
        s = [m["summary"] for m in members]
        seeds = ",".join(str(m["config"]["flags"]["seed"]) for m in members)
        columns = [
            spread([x[k] for x in s])
            for k in ("final_train_loss", "final_val_loss", "final_val_bits_per_byte", "final_val_bits_per_byte_bos")
        ]
        speed = statistics.median(r["tokens_per_sec"] for m in members for r in m["scalars"] if r["type"] == "train")
        print(f"| {label} | {seeds} | {' | '.join(columns)} | {speed:,.0f} |")
    if args.plot:
        draw(arms, args.plot)
        print(f"\ncurves: {args.plot}")


def draw(arms: dict, path: Path) -> None:
    """Train loss (nats per token, running mean) and val bits per byte against tokens seen; a colour per arm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for i, (label, members) in enumerate(arms.items()):
        for j, run in enumerate(members):
            style = dict(
                color=f"C{i}", linestyle=("-", "--", "-.", ":")[i % 4], alpha=0.8, label=label if j == 0 else None
            )
            train = [r for r in run["scalars"] if r["type"] == "train"]
            width = max(1, len(train) // 50)
            loss = [r["train_loss_opt_step_mean"] for r in train]
            smooth = [statistics.mean(loss[max(0, k - width + 1) : k + 1]) for k in range(len(loss))]
            left.plot([r["tokens_seen_global"] / 1e6 for r in train], smooth, **style)
            val = [r for r in run["scalars"] if r["type"] == "val" and r["val_bits_per_byte"] is not None]
            right.plot(
                [r["tokens_seen_global"] / 1e6 for r in val],
                [r["val_bits_per_byte"] for r in val],
                marker="o",
                markersize=3,
                **style,
            )
    for axis, name in ((left, "train loss (nats/token)"), (right, "val loss (bits/byte)")):
        axis.set(xlabel="million tokens seen", ylabel=name)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
