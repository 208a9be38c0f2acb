"""learning_curves.py draws val loss, HellaSwag and EWoK over a run's checkpoints, and prints the last scores by arm.

    python experiments/learning_curves.py 'experiments/runs/quickstart/*_s*' --treatment data --out curves.png
    python hellaswag.py --checkpoint experiments/runs/<run>/ckpt/step_000500    # adds a point to a run's curve

Reads what train_gpt.py recorded as it trained (--eval_every, --hellaswag_every, --ewok_every) and what hellaswag.py
and ewok.py added for single checkpoints. Folders whose names differ in `_s<seed>` alone are one arm: its mean is drawn,
with a band from the lowest to the highest seed, over the steps that all its seeds have. A dotted line is chance.

The gate of compare_runs.py comes first: what differs between the arms must be the treatment. Unfinished runs are left
out where an arm has finished ones. The table has the last step that all runs have scored. Exit status as there: 0
comparable, 2 not comparable, 1 bad input.

Bars go from the lowest to the highest seed; where an arm has one seed they are 95 % intervals over its benchmark items
or held-out documents. An axis spans at least 2 % of a loss or 0.1 of a score, and four bars, so that noise looks small.
"""

import math
import statistics
import sys
import textwrap
from pathlib import Path

import numpy as np
from scipy import special

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab import ab_gate, ab_items, ab_numbers, ab_plots, ab_report, ab_rows, disk, flags, processes, runs  # noqa: E402

CURVES = (  # records, field, label, chance
    ("val", "val_loss", "val loss, nats/token", None),
    ("val", "val_bits_per_byte", "val bits/byte", None),
    ("val", "val_bits_per_byte_bos", "val bits/byte, bos view", None),
    ("hellaswag", "accuracy_norm", "HellaSwag accuracy_norm", 0.25),
    ("ewok", "eval_official_sum", "EWoK official sum", 0.5),
)
LEAST_LOSS, LEAST_SCORE = 0.02, 0.1  # an axis spans so much of a loss, or of a score, whatever the noise
FIELDS = [field for _, field, _, _ in CURVES]
DEFAULT = ["val_bits_per_byte", "accuracy_norm", "eval_official_sum"]


def million_tokens(config: dict, step: int) -> float:
    return step * runs.number(config.get("tokens_per_step")) / 1e6


def petaflops(config: dict, step: int) -> float:
    return million_tokens(config, step) * runs.number(config.get("flops_per_token")) / 1e9


def steps(config: dict, step: int) -> float:
    return step


AXES = {
    "tokens": ("million tokens seen", million_tokens),
    "steps": ("optimizer steps", steps),
    "flops": ("training PFLOPs", petaflops),
}


def read_arms(patterns: list[str], notes: list[str]) -> dict[str, list[dict]]:
    """{name of an arm: its runs, one per seed}"""
    folders = runs.expand(patterns, "runs")
    others, arms = [], {}
    for folder in folders:
        if not (folder / "config.json").exists():
            others.append(folder.name)
            continue
        run = runs.read_run(folder)
        arms.setdefault(ab_rows.label_of([run]), []).append(run)
        notes += [f"{run['name']}: {fault}" for fault in run["notes"]]
    if not arms:
        raise ValueError("no folder among these is a run (config.json): name run folders.")
    if others:
        notes.append(f"left out, as they have no config.json: {', '.join(others)}")
    return arms


def read_scores(members: list[dict], kind: str, field: str) -> list[dict[int, float]]:
    """Per run {step: score}; NaN where a step was scored without a finite number."""
    scored = []
    for run in members:
        records = run["val"]
        if kind != "val":
            records = run["benchmarks"].get(kind, {})
        scored.append({step: runs.number(record[field]) for step, record in records.items() if field in record})
    return scored


def read_curves(arms: dict, wanted: list[str]) -> dict[str, tuple]:
    """{label: (line of CURVES, {arm: read_scores(...)})} of the wanted scores that any run has. The label of a
    benchmark begins with its title, which says what a stand-in is."""
    drawn = {}
    benchmarks = ab_numbers.benchmarks_of([run for members in arms.values() for run in members])
    for curve in CURVES:
        kind, field, label, _ = curve
        curves = {arm: read_scores(members, kind, field) for arm, members in arms.items()}
        if field in wanted and any(own for scored in curves.values() for own in scored):
            if kind in benchmarks:
                label = ab_numbers.entitle(label, benchmarks[kind]["title"])
            drawn[label] = curve, curves
    return drawn


def points(members: list[dict], scored: list[dict], x_of) -> np.ndarray | None:
    """(seeds, steps, 2) over the steps at which every seed has a finite score, or None."""
    common = finite_steps(scored)
    if not common:
        return None
    rows = [[(x_of(run["config"], step), own[step]) for step in common]
            for run, own in zip(members, scored, strict=True)]
    return np.array(rows)


def finite_steps(scored: list[dict]) -> list[int]:
    finite = [{step for step, score in own.items() if math.isfinite(score)} for own in scored]
    return sorted(set.intersection(*finite))


def table(arms: dict, drawn: dict) -> str:
    """Every arm's scores at the last step that all runs have scored."""
    header, columns = ["arm", "seeds"], []
    for label, (_, curves) in drawn.items():
        every = [own for scored in curves.values() for own in scored if own]
        step, last = ab_numbers.common_step(every), max(map(max, every))
        place = f"step {step} of {last}"
        if step == last:
            place = "last"
        elif step is None:
            place = "no step that all scored"
        header.append(f"{label} ({place})")
        columns.append({arm: cell(arms[arm], scored, step) for arm, scored in curves.items()})
    rows = [[arm, len(members), *(column[arm] for column in columns)] for arm, members in arms.items()]
    return ab_report.markdown_table(header, rows, {0})


def cell(members: list[dict], scored: list[dict], step: int | None) -> str:
    """Mean and sd over seeds, or why there is none."""
    if not any(scored):
        return "N/A: not run"
    values = {run["seed"]: own.get(step, math.nan) for run, own in zip(members, scored, strict=True)}
    missing = [str(seed) for seed, value in values.items() if not math.isfinite(value)]
    if missing:
        return f"N/A: no number of seed {', '.join(missing)}"
    text = f"{statistics.fmean(values.values()):.4f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values.values()):.4f}"
    return text


def verdict(checked: dict, notes: list[str]) -> list[tuple]:
    """What the gate of compare_runs.py says of these arms, as blocks of a report."""
    word, text = "comparable", "the arms differ in nothing that counts"
    if checked["treatment"]:
        text = f"what differs is the treatment, {checked['treatment']}"
    if not checked["ok"]:
        word, text = "not comparable", "; ".join(ab_gate.trouble_of(checked))
    if checked["missing"]:
        text += f". Missing: {'; '.join(checked['missing'])}"
    blocks: list[tuple] = [("verdict", f"**{word}** · {text}.", word)]
    if notes:
        blocks.append(("ul", notes))
    if not checked["ok"]:
        blocks += ab_gate.gate_blocks(checked)
    return blocks


def draw(arms: dict, drawn: dict, axis: str, word: str) -> bytes:
    x_label, x_of = AXES[axis]
    axes, save = ab_plots.canvas(6.0, 2.6 * len(drawn) + 0.3, [1] * len(drawn))
    legends, every_x = [], []
    for panel, (label, (curve, curves)) in zip(axes, drawn.items(), strict=True):
        kind, field, _, chance = curve
        lines = {arm: points(arms[arm], scored, x_of) for arm, scored in curves.items()}
        known = [curve for curve in lines.values() if curve is not None]
        panel.set(ylabel="\n".join(textwrap.wrap(label, 32)))
        if not known:
            continue
        every_x += [x for curve in known for x in curve[..., 0].ravel()]
        legends.append((panel, ab_plots.draw_curves(panel, lines)))
        ends = draw_bars(panel, arms, (kind, field), curves, lines)
        widen(panel, ends, LEAST_SCORE if chance is not None else LEAST_LOSS * float(np.mean(ends)))
        if chance is not None:
            panel.axhline(chance, color="black", linestyle=":", linewidth=1)
            low, high = panel.get_ylim()
            panel.set_ylim(min(low, chance - 0.01), max(high, chance + 0.01))
        ab_plots.note_cut(panel)
    if not every_x or not all(map(math.isfinite, every_x)):
        raise ValueError(f"some run has no finite score, or does not record its {x_label}: use --x steps.")
    left, right = min(every_x), max(every_x)
    margin = 0.04 * (right - left or 1)
    for panel in axes:
        panel.set_xlim(left - margin, right + margin)
    ab_plots.add_legend(*max(legends, key=lambda legend: len(legend[1])))
    if word != "comparable":
        axes[0].set_title(f"{word}: learning_curves.py prints why", fontsize=9, loc="left")
    axes[-1].set_xlabel(f"{x_label}\nbars: lowest to highest seed;\n"
                        "of a single seed, 95 % over its items or documents")
    return save()


def draw_bars(panel, arms: dict, of: tuple[str, str], curves: dict, lines: dict) -> np.ndarray:
    """A bar at every marker; returns the ends (2, bars) of those after the curves' first quarter."""
    kept = []
    for i, (arm, points_of_arm) in enumerate(lines.items()):
        if points_of_arm is None:
            continue
        n_seeds, n, _ = points_of_arm.shape
        at = np.arange(0, n, ab_plots.marker_stride(n))
        x, y = points_of_arm[:, at, 0].mean(0), points_of_arm[:, at, 1]
        low, high = y.min(0), y.max(0)
        if n_seeds == 1:
            steps = np.array(finite_steps(curves[arm]))[at]
            run, scored = arms[arm][0], dict(zip(steps.tolist(), y[0], strict=True))
            half = [half_width(run, *of, step, score) for step, score in scored.items()]
            low, high = low - half, high + half
        colour, _, _ = ab_plots.style_of(i)
        panel.errorbar(x, y.mean(0), [y.mean(0) - low, high - y.mean(0)], fmt="none", ecolor=colour,
                       elinewidth=1, capsize=3)
        kept.append(np.stack([low, high])[:, at >= n // 4])
    return np.concatenate(kept, axis=1)


def half_width(run: dict, kind: str, field: str, step: int, score: float) -> float:
    """Half of the 95 % interval of one run's score over its items, or over its documents; 0 where none are recorded."""
    z = float(special.ndtri(0.975))
    if kind != "val":
        n = runs.number(run["benchmarks"].get(kind, {}).get(step, {}).get("n"))
        return z * math.sqrt(max(score * (1 - score), 0) / n) if n > 0 else 0.0
    view = "bos" if field.endswith("_bos") else "stream"
    try:
        documents = ab_items.read_documents(run["folder"] / f"val_documents_{step:06d}.npz")
        nats, size = documents[f"{view}_nats"], documents[f"{view}_bytes"]
    except (OSError, ValueError, KeyError):
        return 0.0
    n = int((size > 0).sum())
    share = nats / nats.sum() - size / size.sum()  # the residuals of nats per byte
    return z * score * math.sqrt(n / (n - 1) * float((share**2).sum())) if n > 1 else 0.0


def widen(panel, ends: np.ndarray, least: float) -> None:
    """Let an axis show all of these bars, and span `least` and four of them at least."""
    low, high = panel.get_ylim()
    low, high = min(low, ends[0].min()), max(high, ends[1].max())
    span = max(least, 4 * float(np.max(ends[1] - ends[0])))
    spare = max(0.04 * (high - low), (span - (high - low)) / 2)
    panel.set_ylim(low - spare, high + spare)


def check_out(path: Path | None) -> None:
    """ValueError where --out would replace something else than a picture."""
    if path is None or not path.exists():
        return
    begin = b""
    if path.is_file():
        with open(path, "rb") as f:
            begin = f.read(4)
    if begin != b"\x89PNG":
        raise ValueError(f"--out {path} exists and is no PNG: choose another file.")


def report(args) -> int:
    check_out(args.out)
    notes: list[str] = []
    arms = read_arms(args.runs, notes)
    treatment = None
    if args.treatment is not None:
        treatment = ab_rows.names_in(args.treatment)
    members = ab_gate.members_of(arms)
    checked = ab_gate.gate(members, treatment, ab_rows.names_in(args.allow), same_seeds=False)
    arms = {arm: ab_numbers.finished(own) for arm, own in arms.items()}
    drawn = read_curves(arms, args.curves)
    if not drawn:
        raise ValueError("none of these runs has scored anything: train with --eval_every or --hellaswag_every.")
    blocks, fault = verdict(checked, notes), None
    if args.out:
        word = blocks[0][2]
        try:
            disk.write_whole(args.out, draw(arms, drawn, args.x, word))
            blocks.append(("p", f"{args.out}: {', '.join(drawn)}"))
        except OSError as error:
            fault = f"--out {args.out} cannot be written ({error.strerror}): choose another file."
    ab_report.show(f"{table(arms, drawn)}\n\n{ab_report.to_markdown(blocks)}")
    if fault:
        raise ValueError(fault)
    return 0 if checked["ok"] else 2


def main(argv=None):
    p = flags.Parser(description=__doc__)
    p.add_argument("runs", nargs="+", help="run folders, or quoted patterns")
    p.add_argument("--out", type=Path, help="PNG to write (default: print the table alone)")
    p.add_argument("--x", choices=list(AXES), default="tokens", help="horizontal axis (default tokens)")
    p.add_argument("--curves", nargs="+", choices=FIELDS, metavar="SCORE", default=DEFAULT,
                   help=f"what to draw, of {', '.join(FIELDS)} (default: {' '.join(DEFAULT)})")
    p.add_argument("--treatment", help="what was changed on purpose, as for compare_runs.py: n_layer, or rows,tokens "
                   "(default: recognise a gate, rows or tokens)")
    p.add_argument("--allow", help="differences to let pass, as for compare_runs.py: code_sha256,incomplete")
    args = p.parse_args(argv)
    try:
        return report(args)
    except (ValueError, OSError) as error:
        sys.exit(f"learning_curves.py: {error}")


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "learning_curves.py", "stopped, no picture was written.")
