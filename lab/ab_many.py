"""ab_many.py compares many runs: the stage tables of document 003, the noise floor of seeds, a newcomer's run.

    python compare_runs.py --runs 'runs/*' --group_by attn_gate,gate_act --baseline attn_gate=none
    python compare_runs.py --results experiments/results.csv --group_by attn_gate --where num_iterations=1500
    python compare_runs.py --aa 'runs/base_s*'

A row of a stage is a dict of cells by column: what a results.csv records of a run, or what its folder does under the
same names; "run" (None for a results.csv) and "member" (for ab_gate) are among them. Rows with equal cells in the
--group_by columns are an arm.
"""

from __future__ import annotations

import math
import os
import re
import statistics
from pathlib import Path

from lab import ab_gate, ab_numbers, ab_power, ab_report, logs, results, runs
from lab.ab_numbers import SHORT, UNIT, Metric
from lab.ab_report import form, form_change, form_interval, form_p, minutes

DATA_COLUMNS = ("condition", "data_fingerprint", "val_fingerprint")  # settings that are no flags
HARDWARE_COLUMNS = ("gpu_name", "n_gpus")


def read_runs(patterns: list[str], flag: str) -> list[dict]:
    return [read_one(path) for path in runs.expand(patterns, flag)]


def read_one(path) -> dict:
    """A run's folder, or another project's log."""
    return logs.read_log(path) if Path(path).is_file() else runs.read_run(path)


def label_of(arm: list[dict]) -> str:
    """What an arm's folders are called: base_s0, base_s1 -> base."""
    stem = os.path.commonprefix([re.sub(r"[_-]s(eed)?\d+$", "", run["name"]) for run in arm])
    return stem.rstrip("_-") or "runs"


# ----------------------------------------------------------------------------------------------------------------------
# rows


def row_of_cells(cells: dict[str, str]) -> dict:
    """A line of a results.csv. Its settings are the columns with a flag that can change a result; an empty cell is not
    recorded, but for init_from, where it means fresh weights."""
    settings = {}
    for column, text in cells.items():
        if column in DATA_COLUMNS and text:
            settings[column] = text
        elif results.is_condition(column) and column != "seed" and (text or column == "init_from"):
            settings[column] = cell_text(text)
    unused = cells.get("unused_flags")
    member = {
        "name": cells.get("run_id") or "a row", "seed": cell_text(cells.get("seed")) or None, "settings": settings,
        "unused": ab_gate.unused_flags(settings, unused and unused.split()),
        "machine": {column: cells[column] for column in HARDWARE_COLUMNS if cells.get(column)},
        "micro_batch_size": cells.get("device_batch_size") or None,
        "tokens": cells.get("condition") or None, "run": None,
        "unverified": cells.get("verify_data", "") not in ("", "full"),
    }
    return {**cells, "run": None, "member": member}


def row_of_run(run: dict) -> dict:
    """A run's folder: its flags, its data and document 003's columns."""
    flags, data = run["flags"], run["config"]["data"]
    row = dict(flags)
    row |= {key: data.get(key) for key in ("condition", "crop_fraction", "mul_token_rate")}
    row |= {f"data_{key}": data.get(key) for key in ("format", "fingerprint")}
    row |= {column: flags.get(flag) for column, flag in results.FLAG_OF.items()}
    tokens, length = (runs.number(flags.get(key)) for key in ("total_batch_tokens", "seq_len"))
    known = tokens > 0 and length > 0
    row["batch_size"] = int(tokens / length) if known else None  # in sequences, as in results.csv
    row |= (run["summary"] or {}).get("results_row") or {}
    return row | {"run_id": run["name"], "run": run, "member": ab_gate.of_run(run)}


def cell_number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def cell_text(value) -> str:
    """One spelling per value: 3.6e-3, '0.00360' and 0.0036 are '0.0036'."""
    x = cell_number(value)
    if math.isfinite(x):
        return f"{x:.12g}"
    return "" if value is None else str(value)


def names_in(text: str | None) -> list[str]:
    """'a, b' -> ["a", "b"]."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def cells_in(text: str | None, flag: str) -> dict[str, str]:
    """'a=1,b=x' -> {"a": "1", "b": "x"}."""
    wanted = {}
    for part in names_in(text):
        name, sign, value = map(str.strip, part.partition("="))
        if not sign or not name:
            raise ValueError(f"{flag} {part!r}: write column=value, with commas between.")
        if name in wanted:
            raise ValueError(f"{flag} gives {name} twice: a row has one value per column.")
        wanted[name] = cell_text(value)
    return wanted


# ----------------------------------------------------------------------------------------------------------------------
# arms


def group_rows(rows: list[dict], columns: list[str]) -> list[dict]:
    """Arms as {"name", "cells" (column -> text), "rows"}, ordered by their cells: numbers first."""
    arms: dict[tuple, dict] = {}
    for row in rows:
        cells = {column: cell_text(row.get(column)) for column in columns}
        name = ", ".join(f"{column}={cell or '(empty)'}" for column, cell in cells.items())
        new = {"name": name, "cells": cells, "rows": []}
        arms.setdefault(tuple(cells.values()), new)["rows"].append(row)

    def order(cell: str) -> tuple:
        x = cell_number(cell)
        return (False, x, cell) if math.isfinite(x) else (True, 0, cell)

    return [arms[cells] for cells in sorted(arms, key=lambda cells: list(map(order, cells)))]


def check_arms(arms: list[dict], columns: list[str], args) -> dict:
    """The gate, with the columns that make the arms as the treatment."""
    members = {arm["name"]: [row["member"] for row in arm["rows"]] for arm in arms}
    settings = {name for arm in members.values() for member in arm for name in member["settings"]}
    aliases = results.FLAG_OF | {flag: column for column, flag in results.FLAG_OF.items()}

    def known(names: list[str]) -> list[str]:  # a flag or document 003's column, whichever these rows have
        return [name if name in settings else aliases.get(name, name) for name in names]

    treatment = [name for name in known(columns) if name in {*settings, *ab_gate.FAMILIES}]
    if {"data_format", "crop_fraction"} & set(columns):
        treatment.append("rows")
    treatment += known(names_in(args.treatment))
    if len(arms) == 1:
        treatment = []
    checked = ab_gate.gate(members, treatment, known(names_in(args.allow)), same_seeds=False)
    if args.results:
        rows = [row for arm in arms for row in arm["rows"]]
        checked["notes"] += notes_on(rows, {*settings, *columns})
    return checked


def notes_on(rows: list[dict], compared: set[str]) -> list[str]:
    """What a results.csv does not record of some rows, and which of its columns are not compared."""
    notes, lacking = [], {}
    for name in dict.fromkeys(name for row in rows for name in row["member"]["settings"]):
        n = sum(name not in row["member"]["settings"] for row in rows)
        lacking.setdefault(n, []).append(name)
    lacking.pop(0, None)
    for n, names in lacking.items():
        notes.append(f"not recorded in {n} of {len(rows)} rows: {', '.join(names)}")
    commits = ab_gate.distinct(row["git_commit"] for row in rows if row.get("git_commit"))
    if len(commits) > 1:
        notes.append(f"git_commit differs ({', '.join(map(ab_gate.short, commits))})")
    ours = {*compared, *results.COLUMNS, "unused_flags", "run", "member"}
    others = dict.fromkeys(column for row in rows for column in row if column not in ours)
    strange = [column for column in others if not results.trainer_flags().fullmatch(column)]
    if strange:
        notes.append(f"columns that are no flags of train_gpt.py, not compared: {', '.join(strange)}")
    return notes


def read_losses(arm: dict, primary: str, missing: list[str]) -> None:
    """Add "by_seed" (seed -> final loss or reason), "losses" and "times" of its finished runs to an arm."""
    name = arm["name"]
    arm["rows"] = [row for row in arm["rows"] if not row["run"] or row["run"]["summary"] is not None]
    arm |= {"by_seed": {}, "times": []}
    seeds = [cell_text(row.get("seed")) for row in arm["rows"]]
    if "" in seeds or len(set(seeds)) < len(seeds):  # unknown or double seeds: nothing to pair by
        seeds = [f"{name} row {i}" for i in range(len(seeds))]
    for seed, row in zip(seeds, arm["rows"], strict=True):
        loss, time = (cell_number(row.get(key)) for key in (f"final_{primary}", "train_time_ms"))
        if not math.isfinite(loss):
            arm["by_seed"][seed] = f"no final_{primary}"
            missing.append(f"{row.get('run_id') or 'a row'} ({name}) has no final_{primary}")
            continue
        arm["by_seed"][seed] = loss
        if math.isfinite(time):
            arm["times"].append(time)
    arm["losses"] = [loss for loss in arm["by_seed"].values() if isinstance(loss, float)]


# ----------------------------------------------------------------------------------------------------------------------
# stage tables


def compare_many(args) -> int:
    """--group_by over run folders (--runs) or over a results.csv (--results)."""
    columns, where = names_in(args.group_by), cells_in(args.where, "--where")
    if not columns:
        raise ValueError("--group_by is empty: name columns, for example --group_by attn_gate.")
    if args.results:
        rows = [row_of_cells(cells) for cells in results.read_results(args.results)]
    else:
        rows = [row_of_run(run) for run in read_runs(args.runs, "--runs")]
    known = {column for row in rows for column in row} - {"run", "member"}
    ab_gate.check_names("--group_by", columns, known)
    ab_gate.check_names("--where", list(where), known)
    rows = [row for row in rows if all(cell_text(row.get(k)) == cell for k, cell in where.items())]
    if not rows:
        raise ValueError(f"--where {args.where} leaves no run: give values that occur.")

    arms = group_rows(rows, columns)
    checked = check_arms(arms, columns, args)
    primary = ab_numbers.primary_of(args.primary, checked)
    missing = list(checked["missing"])
    for arm in arms:
        read_losses(arm, primary, missing)
    baseline, compared = None, []
    if args.baseline:
        wanted = cells_in(args.baseline, "--baseline").items()
        ab_gate.check_names("--baseline", [column for column, _ in wanted], set(columns))
        fits = [arm for arm in arms if wanted <= arm["cells"].items()]
        if len(fits) != 1:
            names = "; ".join(arm["name"] for arm in arms)
            raise ValueError(f"--baseline {args.baseline} fits {len(fits)} arms: choose one of {names}.")
        baseline = fits[0]
        others = [arm for arm in arms if arm is not baseline]
        compared = compare_with(baseline, others, primary, checked, args)

    word = "comparable" if checked["ok"] else "not comparable"
    head = headline(word, checked, baseline, compared, missing)
    title = f"{len(arms)} arms by {', '.join(columns)}"
    if where:
        title += f" ({args.where})"
    unit = f"{SHORT[primary]} ({UNIT[primary]})"
    blocks: list[tuple] = [
        ("h1", title), ("verdict", head, word), stage_table(arms, columns, primary),
        ("p", f"final_loss: {unit} at the last step, mean over seeds."),
    ]
    if compared:
        blocks.append(("h2", f"Differences to {baseline['name']}: {unit}"))
        blocks.append(difference_table(compared, args))
    if args.out:
        blocks += plots(arms, columns, primary, args)
    blocks += ab_gate.gate_blocks(checked)
    record = {
        "mode": "group_by", "verdict": word, "headline": head, "group_by": columns, "where": where,
        "primary": primary, "margin": args.delta, "alpha": args.alpha, "missing": missing, "gate": checked,
        "arms": [{k: arm[k] for k in ("name", "by_seed", "losses", "times")} for arm in arms],
        "baseline": baseline and baseline["name"], "differences": compared,
    }
    ab_report.publish(blocks, record, args.out)
    return 0 if checked["ok"] else 2


def compare_with(baseline: dict, others: list[dict], primary: str, checked: dict, args) -> list[dict]:
    """Every other arm against the baseline, with verdicts by Holm's p: {"name", "row" (difference of the final loss),
    "wall" (the same at equal wall-clock), "time" (percent, or why not), "verdict"} each."""
    compared = [{
        "name": arm["name"],
        "row": ab_numbers.difference(baseline["by_seed"], arm["by_seed"], args.alpha),
        "wall": at_equal_time(baseline, arm, primary, checked, args),
        "time": time_of(arm, baseline, checked),
    } for arm in others]
    for row, p in ab_numbers.holm([entry["row"] for entry in compared]):
        row["p_holm"] = p
    for entry in compared:
        entry["verdict"] = "not comparable"
        if checked["ok"]:
            entry["verdict"] = ab_numbers.verdict_of(entry["row"], args.delta, entry["row"].get("p_holm"))
    return compared


def time_of(arm: dict, baseline: dict, checked: dict) -> str:
    if checked["other_machine"]:
        return "N/A: other hardware or software"
    if not arm["times"] or not baseline["times"]:
        return "N/A: not recorded"
    ratio = statistics.fmean(arm["times"]) / statistics.fmean(baseline["times"])
    return f"{100 * (ratio - 1):+.1f} %"


def at_equal_time(baseline: dict, arm: dict, primary: str, checked: dict, args) -> dict | None:
    """The difference at equal wall-clock. A results.csv has no curves to read it off."""
    if args.results or not arm["rows"] or not baseline["rows"]:
        return None
    both = [ab_numbers.finished([row["run"] for row in side["rows"]]) for side in (baseline, arm)]
    step = ab_numbers.common_step([run["val"] for side in both for run in side])
    return ab_numbers.matchings(both, step, primary, checked, args.delta, args.alpha)[2]["row"]


def headline(word: str, checked: dict, baseline: dict | None, compared: list, missing: list) -> str:
    def in_words(values: dict) -> str:
        return ", ".join(map(ab_gate.short, ab_gate.flat(values)))

    trouble = ab_gate.trouble_of(checked, in_words)
    allowed = [d["knob"] for d in checked["differences"] if d["state"] == "allowed"]
    if trouble:
        text = f"{'; '.join(trouble)}: choose a stage with --where column=value, or --allow it."
    elif compared:
        verdicts = "; ".join(f"{entry['name']} {entry['verdict']}" for entry in compared)
        text = f"against {baseline['name']}: {verdicts}."
    else:
        text = "name the --baseline for differences and verdicts."
    if missing:
        text += f" Missing: {'; '.join(missing)}."
    if allowed:
        text += f" Allowed by --allow: {', '.join(allowed)}."
    return f"**{word}** · {text}"


def stage_table(arms: list[dict], columns: list[str], primary: str) -> tuple:
    """Document 003's table."""

    def mean(values: list[float], spell, reason: str) -> str:
        return spell(statistics.fmean(values)) if values else f"N/A: {reason}"

    return ab_report.table([
        *((name, "left", lambda arm, name=name: arm["cells"][name]) for name in columns),
        ("seeds", "right", lambda arm: len(arm["losses"])),
        ("final_loss", "right", lambda arm: mean(arm["losses"], "{:.4f}".format, f"no final_{primary}")),
        ("train_time", "right", lambda arm: mean(arm["times"], minutes, "not recorded")),
    ], arms)


def difference_table(compared: list[dict], args) -> tuple:
    units = {True: "pairs", False: "unpaired"}

    def wall(entry: dict) -> str:
        if entry["wall"] is None:
            return "N/A: no run to compare"
        return form_change(entry["wall"], ".4f").split(", p")[0]

    columns = [
        ("arm", "left", lambda entry: entry["name"]),
        ("n", "right", lambda entry: f"{entry['row']['n']} {units[entry['row']['paired']]}"),
        ("delta", "right", lambda entry: form(entry["row"]["delta"], "+.4f")),
        ("{level} interval", "right", lambda entry: form_interval(entry["row"], ".4f")),
        ("p", "right", lambda entry: form_p(entry["row"]["p"])),
        ("p (Holm)", "right", lambda entry: form_p(entry["row"].get("p_holm", entry["row"]["p"]))),
        ("verdict", "left", lambda entry: entry["verdict"]),
        ("train_time", "right", lambda entry: entry["time"]),
    ]
    if args.runs:
        columns.append(("delta at equal wall-clock", "right", wall))
    return ab_report.table(columns, compared, args.alpha)


def plots(arms: list[dict], columns: list[str], primary: str, args) -> list[tuple]:
    """Each arm's losses; from folders the curves, too. Labels hold the columns in which the arms differ."""
    vary = [name for name in columns if len({arm["cells"][name] for arm in arms}) > 1]
    losses, members = {}, {}
    for arm in arms:
        label = ", ".join(arm["cells"][name] or "(empty)" for name in vary or columns[:1])
        losses[label] = arm["losses"]
        members[label] = [row["run"] for row in arm["rows"]]
    blocks: list[tuple] = []
    png = ab_report.plot_arms(losses, f"final {SHORT[primary]} ({UNIT[primary]})")
    if png:
        caption = "Final loss of each arm: a circle per seed, a bar at the mean"
        blocks.append(("img", "arms.png", caption, png))
    if args.runs:
        blocks += curves(members, primary)
    return blocks


def curves(arms: dict[str, list[dict]], metric: str) -> list[tuple]:
    """Held-out loss of each arm (name -> runs) over steps, and over training time, as blocks."""
    blocks = []
    for axis, name, x_label, over in (
        ("step", "val_curves.png", "optimizer steps", "optimizer steps"),
        ("train_seconds", "val_wall_clock.png", "training time (seconds)", "training time"),
    ):
        points = {arm: ab_numbers.curve_points(members, metric, axis) for arm, members in arms.items()}
        png = ab_report.plot_curves(points, x_label, f"{SHORT[metric]} ({UNIT[metric]})")
        if png:
            caption = f"Held-out loss against {over}: mean, and band from the lowest to the highest seed"
            blocks.append(("img", name, caption, png))
    return blocks


# ----------------------------------------------------------------------------------------------------------------------
# the noise floor, a newcomer's run, and the seeds that an effect needs


def compare_noise(args) -> int:
    """--aa: what seeds alone do to every metric. --check RUN --against: does a newcomer's run lie in that band?"""
    patterns, flag, newcomer = args.aa, "--aa", []
    if args.check:
        patterns, flag, newcomer = args.against, "--against", [read_one(args.check)]
    itself = [run["folder"].resolve() for run in newcomer]
    every = [run for run in read_runs(patterns, flag) if run["folder"].resolve() not in itself]
    used = ab_numbers.finished([run for run in every if run["summary"]])
    if len(used) < 4:
        raise ValueError("a noise floor needs at least 4 finished runs of different seeds, and there are "
                         f"{len(used)}: train more seeds.")
    arms = {"noise floor": every}
    if newcomer:
        arms["newcomer"] = newcomer
    # a newcomer may have any seed, and nothing may differ, so there is no treatment
    checked = ab_gate.gate(ab_gate.members_of(arms), [], names_in(args.allow), same_seeds=False)
    metrics = ab_numbers.metrics_of(used + newcomer)
    steps, values = ab_numbers.score_arms([used, newcomer], metrics)
    rows = noise_rows(values, metrics, checked, args.alpha)
    primary = args.primary or "val_loss"
    if primary not in rows:
        raise ValueError(f"not all runs have a {SHORT[primary]}: train with --eval_every, or pass --primary.")

    trouble, row = "; ".join(ab_gate.trouble_of(checked)), rows[primary]
    seeds = ", ".join(str(run["seed"]) for run in used)
    floor = f"{len(used)} seeds ({seeds}), step {steps['val']}"
    mode, title, word = "aa", f"Noise floor of {label_of(used)}", "comparable"
    if newcomer:
        word, text = judge_newcomer(rows, primary, trouble, floor, args.alpha)
        mode, title = "check", f"{newcomer[0]['name']} against the noise floor of {label_of(used)}: {word}"
    else:
        text = (f"{SHORT[primary]}: sd {row['sd']:.5f} {UNIT[primary]} (95 % interval "
                f"{row['sd_low']:.5f} to {row['sd_high']:.5f}) over {floor}.")
        if checked["missing"]:
            text += f" Missing: {'; '.join(checked['missing'])}."
    if trouble:
        word, text = "not comparable", f"{trouble}. {text}"
    head = f"**{word}** · {text}"
    blocks = [
        ("h1", title), ("verdict", head, word), noise_table(rows, metrics, bool(newcomer), args.alpha),
        ("p", "The band is a prediction interval: one more run of another seed falls inside with this chance."),
    ]
    record = {
        "mode": mode, "verdict": word, "headline": head, "primary": primary, "alpha": args.alpha,
        "metrics": rows, "gate": checked, "runs": [str(run["folder"]) for run in used],
    }
    if args.plan:
        blocks += plan_blocks(row["sd"], primary, args, record)
    ab_report.publish([*blocks, *ab_gate.gate_blocks(checked)], record, args.out)
    return 0 if word in ("inside", "comparable") else 2


def noise_rows(values: list[dict], metrics: dict[str, Metric], checked: dict, alpha: float) -> dict:
    """{metric: ab_power.noise_floor(...)} of what all runs have; of a newcomer also "newcomer" and "state"."""
    rows = {}
    for key, metric in metrics.items():
        known = list(values[0][key].values())
        if metric.kind == "fixed" or not all(isinstance(value, float) for value in known):
            continue
        row = rows[key] = dict(ab_power.noise_floor(known, alpha))
        for value in values[1][key].values():
            row |= {"newcomer": value, "state": "OUTSIDE"}
            if isinstance(value, str):
                row["state"] = f"N/A: {value}"
            elif metric.kind == "speed" and checked["other_machine"]:
                row["state"] = "N/A: other hardware or software"
            elif ab_power.in_band(value, row):
                row["state"] = "inside"
    return rows


def noise_table(rows: dict, metrics: dict[str, Metric], with_newcomer: bool, alpha: float) -> tuple:
    def band(key: str) -> str:
        row, spec = rows[key], metrics[key].form
        return f"[{row['band_low']:{spec}}, {row['band_high']:{spec}}]"

    def this_run(key: str) -> str:
        value = rows[key]["newcomer"]
        return f"N/A: {value}" if isinstance(value, str) else form(value, metrics[key].form)

    columns = [
        ("Metric", "left", lambda key: metrics[key].label),
        ("mean", "right", lambda key: form(rows[key]["mean"], metrics[key].form)),
        ("sd", "right", lambda key: f"{rows[key]['sd']:.3g}"),
        ("band for one more run, {level}", "right", band),
    ]
    if with_newcomer:
        columns.append(("this run", "right", this_run))
        columns.append(("verdict", "left", lambda key: rows[key]["state"]))
    return ab_report.table(columns, list(rows), alpha)


def judge_newcomer(rows: dict, primary: str, trouble: str, floor: str, alpha: float) -> tuple[str, str]:
    """(inside | outside | not comparable, the headline's text). The primary metric decides."""
    row, n = rows[primary], len(rows)
    word = "not comparable"
    if not trouble and row["state"] in ("inside", "OUTSIDE"):
        word = row["state"].lower()
    value, end = f"of this run N/A ({row['newcomer']})", ", and without it nothing can be said"
    if isinstance(row["newcomer"], float):
        value, end = f"{row['newcomer']:.4f} {UNIT[primary]}", ""
    outside = sum(other["state"] == "OUTSIDE" for other in rows.values())
    return word, (
        f"{SHORT[primary]} {value}, band [{row['band_low']:.4f}, {row['band_high']:.4f}] from {floor}. "
        f"{outside} of {n} metrics lie outside their own band (by chance about {alpha * n:.1f} would); "
        f"the primary metric decides{end}."
    )


def plan_seeds(args) -> int:
    """--plan with --noise: seeds that an effect needs."""
    record: dict = {"mode": "plan"}
    blocks = plan_blocks(args.noise, args.primary or "val_loss", args, record)
    ab_report.publish([("h1", "How many seeds?"), *blocks], record, args.out)
    return 0


def plan_blocks(sd: float, primary: str, args, record: dict) -> list[tuple]:
    """Seeds that --effect needs, and the effect that a number of seeds can show, for several seed correlations."""
    effect, alpha, power, unit = args.effect, args.alpha, args.power, UNIT[primary]
    if power <= alpha:
        raise ValueError(f"--power {power:g} is not above --alpha {alpha:g}: ask for more power.")
    correlations = sorted({0.0, 0.5, 0.8, args.correlation} - {None})
    designs = {f"paired, seed correlation {r:g}": (r, True) for r in correlations}
    designs["unpaired"] = (0.0, False)
    needed, smallest = {}, [("n", "right", str)]
    for name, (correlation, paired) in designs.items():
        spread = ab_power.sd_of_difference(sd, correlation)
        needed[name] = ab_power.n_needed(effect, spread, alpha, power, paired)

        def detectable(n: int, spread=spread, paired=paired) -> str:
            return f"{ab_power.mde(n, spread, alpha, power, paired):.5f}"

        smallest.append((name, "right", detectable))
    record["plan"] = {"sd": sd, "effect": effect, "power": power, "alpha": alpha, "seeds_needed": needed}
    design = [("Design", "left", str), ("seeds per arm", "right", needed.get)]
    return [
        ("h2", f"Seeds per arm that find {effect:g} {unit}"),
        ("p", f"sd between seeds {sd:.5g} {unit}, two-sided alpha {alpha:g}, power {power:.0%}."),
        ab_report.table(design, list(needed)),
        ("h2", f"Smallest difference that n seeds per arm find ({unit})"),
        ab_report.table(smallest, [2, 3, 4, 5, 6, 8, 10, 15, 20]),
    ]
