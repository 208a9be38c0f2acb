"""ab_many.py compares many arms: the stage tables of document 003, from run folders or from a results.csv.

    python compare_runs.py --runs 'runs/*' --group_by attn_gate,gate_act --baseline attn_gate=none
    python compare_runs.py --results experiments/results.csv --group_by attn_gate --where num_iterations=1500

Rows (lab/ab_rows.py) with equal cells in the --group_by columns are an arm. Every arm is compared with the baseline at
the last step and, from folders, at equal FLOPs and wall-clock: all of that is one family of tests.
"""

from __future__ import annotations

import math
import statistics

from lab import (
    ab_composite,
    ab_curves,
    ab_gate,
    ab_headline,
    ab_items,
    ab_noise,
    ab_numbers,
    ab_page,
    ab_plots,
    ab_report,
    ab_rows,
    ab_target,
    ab_target_page,
    ab_verdict,
    results,
    units,
)
from lab.ab_numbers import PRIMARY, SHORT, UNIT
from lab.ab_report import form, form_change, form_interval, form_p, minutes
from lab.ab_rows import cell_number, cell_text, cells_in, names_in

UNKNOWN_HARDWARE = " (hardware not recorded)"
PAIRING = (
    "Runs of equal seed are pairs. All runs of two arms are compared, unpaired, where fewer than half of the "
    "smaller arm's runs have a partner, or fewer than 3 do though each arm has 3 runs."
)


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
    aliases = results.FLAG_OF | results.COLUMN_OF

    def known(names: list[str]) -> list[str]:  # a flag or document 003's column, whichever these rows have
        return [name if name in settings else aliases.get(name, name) for name in names]

    treatment = [name for name in known(columns) if name in {*settings, *ab_gate.FAMILIES}]
    if {"data_format", "crop_fraction"} & set(columns):
        treatment.append("rows")
    treatment += known(names_in(args.treatment))
    if len(arms) == 1:
        treatment = []
    checked = ab_gate.gate(members, treatment, known(names_in(args.allow)), same_seeds=False)
    checked |= ab_verdict.decided(args)
    rows = [row for arm in arms for row in arm["rows"]]
    checked["unrecorded"] = ab_rows.unrecorded_of([row["member"] for row in rows])
    folders = {arm["name"]: [row["run"] for row in arm["rows"] if row["run"]] for arm in arms}
    checked["code_files"] = ab_page.code_changes(folders)
    if args.results:
        checked["notes"] += ab_rows.notes_on(rows, {*settings, *columns}, checked["unrecorded"])
    return checked


def read_scores(arm: dict, primary: str, steps: dict, missing: list[str]) -> None:
    """Add "by_seed" (seed -> final score or reason), "losses" (the scores) and "times" of its finished runs to an arm.
    steps: {benchmark: the step that all runs scored}."""
    name = arm["name"]
    column = f"final_{primary}" if primary in PRIMARY else primary
    arm["rows"] = [row for row in arm["rows"] if not ab_gate.incomplete(row["member"])]
    arm |= {"by_seed": {}, "times": []}
    if all(row["run"] for row in arm["rows"]):
        own = [row["run"] for row in arm["rows"]]
        used = ab_numbers.finished(own)
        missing += ab_numbers.left_out(own)
        arm["rows"] = [row for row in arm["rows"] if any(row["run"] is run for run in used)]
    seeds = [cell_text(row.get("seed")) for row in arm["rows"]]
    if "" in seeds or len(set(seeds)) < len(seeds):  # unknown or double seeds: nothing to pair by
        seeds = [f"{name} row {i}" for i in range(len(seeds))]
    for seed, row in zip(seeds, arm["rows"], strict=True):
        score, time = cell_number(row.get(column)), cell_number(row.get("train_time_ms"))
        if row["run"] and primary not in PRIMARY:
            score = cell_number(benchmark_score(row["run"], primary, steps))
        if not math.isfinite(score):
            arm["by_seed"][seed] = f"no {column}"
            missing.append(f"{row.get('run_id') or 'a row'} ({name}) has no {column}")
            continue
        arm["by_seed"][seed] = score
        if math.isfinite(time):
            arm["times"].append(time)
    arm["losses"] = [score for score in arm["by_seed"].values() if isinstance(score, float)]


def benchmark_score(run: dict, key: str, steps: dict):
    for name, benchmark in ab_numbers.benchmarks_of([run]).items():
        if any(key == metric for metric, *_ in benchmark["metrics"]):
            return ab_numbers.benchmark_score(run, key, name, steps.get(name))
    return None


# ----------------------------------------------------------------------------------------------------------------------
# stage tables


def is_in_stage(row: dict, where: dict[str, str], columns: list[str]) -> bool:
    """Whether a row has these cells. A run that went wrong never recorded some of them: where its arm is known, it is
    told nevertheless."""
    cells = {column: cell_text(row.get(column)) for column in where}
    has_arm = all(cell_text(row.get(column)) for column in columns)
    if has_arm and ab_gate.incomplete(row["member"]):
        cells = {column: cell for column, cell in cells.items() if cell}
    return all(cell == where[column] for column, cell in cells.items())


def compare_many(args) -> int:
    """--group_by over run folders (--runs) or over a results.csv (--results)."""
    columns, where = names_in(args.group_by), cells_in(args.where, "--where")
    if not columns:
        raise ValueError("--group_by is empty: name columns, for example --group_by attn_gate.")
    numbers, lost = [], []
    if args.results:
        rows, numbers, lost = ab_rows.rows_of_tables(args.results)
    else:
        rows = [ab_rows.row_of_run(run) for run in ab_rows.read_runs(args.runs, "--runs")]
    known = {column for row in rows for column in row} - {"run", "member"}
    ab_gate.check_names("--group_by", columns, known)
    ab_gate.check_names("--where", list(where), known)
    rows, lost = ([row for row in own if is_in_stage(row, where, columns)] for own in (rows, lost))
    if not rows:
        raise ValueError(f"--where {args.where} leaves no run: give values that occur.")

    arms = group_rows(rows, columns)
    checked = check_arms(arms, columns, args)
    every = [row["run"] for row in rows if row["run"] and row["run"]["summary"]]
    composite = ab_composite.add(every)
    metrics = ab_numbers.metrics_of(every or ab_rows.titles_of(rows))
    primary = ab_verdict.primary_of(args.primary, checked, metrics)
    rate = ab_rows.bits_per_nat(rows, primary)
    margin = ab_verdict.margin_of(args.delta, args.primary, primary, every, rate)
    args.delta, steps = margin.value, ab_numbers.common_steps(every)
    missing = [*checked["missing"], *ab_rows.without_row(numbers, lost)]
    for arm in arms:
        read_scores(arm, primary, steps, missing)
    unfinished = [name for name, arm in labels_of(arms, columns).items() if not arm["rows"]]
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
        compared = compare_with(baseline, others, metrics[primary], primary, checked, args)
        if args.runs:
            doubt_equivalence(compared, baseline, others, primary, steps, args)
            missing += ab_numbers.older_scores(every, {primary: metrics[primary]})

    word = word_of(checked, arms)
    unit, labelled = unit_in_words(primary), labels_of(arms, columns)
    best = best_rows(labelled, compared, metrics[primary].better)
    told = verdicts_of(labelled, baseline, compared) + best_in_words(best, primary)
    head = headline(word, checked, told, missing, margin, unfinished)
    title = f"{len(arms)} arms by {', '.join(columns)}"
    if where:
        title += f" ({args.where})"
    members = {name: [row["run"] for row in arm["rows"]] for name, arm in labelled.items()}
    name_of_baseline = next((name for name, arm in labelled.items() if arm is baseline), None)
    targets = ab_target.compare_arms(members, name_of_baseline, primary, checked, args)
    lines = ab_target_page.lines_of(targets, primary)
    facts = ab_page.facts_of_rows({name: arm["rows"] for name, arm in labelled.items()}, checked)
    if args.runs:
        facts = ab_page.facts_of(members, checked)
    blocks: list[tuple] = [("h1", title), ("verdict", head, word), ("facts", facts)]
    if args.out and args.runs:
        blocks += ab_curves.loss_curves(members, primary, checked["other_tokens"], lines)
    elif args.out:  # a results.csv has no curves
        blocks += arms_plot(labelled, primary)
    if best:
        blocks.append(best_table(best, primary, len(labelled), compared, args))
    blocks += [
        ("h2", "Every arm"), stage_table(arms, columns, primary),
        ("p", f"final_loss: {unit} at the last step, mean over seeds."),
        *ab_composite.blocks(composite if primary == ab_composite.KEY else ""),
    ]
    in_advance = ab_verdict.decided_in_words(checked, 0)
    if compared:
        row = min((entry["row"] for entry in compared), key=lambda row: row["n"])
        in_advance = ab_verdict.decided_in_words(checked, row["n"], row["paired"])
        blocks += difference_blocks(compared, baseline["name"], unit, margin, args)
    blocks += [("p", in_advance), *ab_target_page.blocks_of(targets, args.alpha, two=False)]
    if args.out and args.runs:
        blocks += [*arms_plot(labelled, primary), *ab_curves.wall_clock(members, primary, lines)]
    blocks += ab_gate.gate_blocks(checked)
    if args.runs:
        blocks += ab_page.last_screen(members, args.command, args.out)
    record = {
        "mode": "group_by", "verdict": word, "headline": head, "compared": dict(facts),
        "group_by": columns, "where": where,
        "primary": primary, "margin": margin.value, "margin_in_words": margin.words, "alpha": args.alpha,
        "planned": args.planned, "sequential": args.sequential, "in_advance": in_advance,
        "missing": missing, "gate": checked,
        "arms": [{k: arm[k] for k in ("name", "by_seed", "losses", "times")} for arm in arms],
        "baseline": baseline and baseline["name"], "differences": compared, "targets": targets,
    }
    brief = None
    if args.print == "short":
        rows_of_best = [list(row.values()) for row in best] + ab_target_page.brief_rows(targets, best)
        brief = ab_page.brief_of(f"{title}: {head}", rows_of_best)
    ab_report.publish(blocks, record, args.out, brief)
    return 0 if word.startswith("comparable") else 2


def word_of(checked: dict, arms: list[dict]) -> str:
    """comparable | comparable as far as recorded | no comparison (one arm alone) | not comparable"""
    if not checked["ok"]:
        return "not comparable"
    if len(arms) < 2:
        return "no comparison"
    return "comparable as far as recorded" if checked["unrecorded"] else "comparable"


def compare_with(baseline: dict, others: list[dict], metric: ab_numbers.Metric, primary: str, checked: dict,
                 args) -> list[dict]:
    """Every other arm against the baseline: {"name", "row" (difference of the final score), "flops", "wall" (the same
    at equal FLOPs and wall-clock, or None), "time" (percent, or why not), "verdict"} each. All differences are one
    family of tests."""
    compared, rows = [], []
    for arm in others:
        row = ab_numbers.difference(baseline["by_seed"], arm["by_seed"], args.alpha, args.sequential)
        entry = {"name": arm["name"], "row": row, "time": time_of(arm, baseline, checked)}
        own = [row]
        for name, match in at_equal_cost(baseline, arm, primary, checked, args).items():
            twin = next((one for one in own if match and ab_verdict.is_same(match, one)), None)
            if match and twin is None:
                own.append(match)
            entry[name] = twin or match  # a test that is made twice counts once
        compared.append(entry)
        rows += own
    ab_verdict.judge(rows, args.alpha, metric.better, args.delta, checked)
    for entry in compared:
        entry["verdict"] = entry["row"]["verdict"]
    return compared


def doubt_equivalence(compared: list, baseline: dict, others: list, primary: str, steps: dict, args) -> None:
    """As in an A/B: too few items make no arms equivalent."""
    for entry, arm in zip(compared, others, strict=True):
        a, b = ([row["run"] for row in side["rows"]] for side in (baseline, arm))
        pairs = [(one, other) for one in a for other in b if one["seed"] == other["seed"]]
        of_items = []
        if entry["verdict"] == "equivalent" and primary not in PRIMARY:
            of_items = [row for row in ab_items.items(pairs, steps, args.alpha)[0] if row["key"] == primary]
        ab_verdict.doubt_equivalence(entry["row"], of_items, args.delta)
        entry["verdict"] = entry["row"]["verdict"]


def time_of(arm: dict, baseline: dict, checked: dict) -> str:
    if checked["other_machine"]:
        return "N/A: other hardware or software"
    if not arm["times"] or not baseline["times"]:
        return "N/A: not recorded"
    ratio = statistics.fmean(arm["times"]) / statistics.fmean(baseline["times"])
    change = f"{100 * (ratio - 1):+.1f} %"
    if not (is_hardware_known(arm) and is_hardware_known(baseline)):
        change += UNKNOWN_HARDWARE
    return change


def is_hardware_known(arm: dict) -> bool:
    """A table's number of GPUs does not say which they are."""
    machines = [row["member"]["machine"] for row in arm["rows"]]
    return all(set(machine) - {"n_gpus"} for machine in machines)


def at_equal_cost(baseline: dict, arm: dict, primary: str, checked: dict, args) -> dict[str, dict | None]:
    """{"flops", "wall": the difference there}. A results.csv has no curves to read it off."""
    if args.results or not arm["rows"] or not baseline["rows"]:
        return {"flops": None, "wall": None}
    both = [ab_numbers.finished([row["run"] for row in side["rows"]])
            for side in (baseline, arm)]
    step = ab_numbers.common_step([run["val"] for side in both for run in side])
    _, flops, wall, *_ = ab_numbers.matchings(both, step, primary, checked, args.alpha)
    return {"flops": flops["row"], "wall": wall["row"]}


def unit_in_words(primary: str) -> str:
    return f"{SHORT[primary]} ({UNIT[primary]})"


def verdicts_of(labelled: dict[str, dict], baseline: dict | None, compared: list[dict]) -> str:
    """'against none: headwise better; elementwise inconclusive.', by short names."""
    if not compared:
        return "name the --baseline for differences and verdicts."
    short = {arm["name"]: name for name, arm in labelled.items()}
    verdicts = "; ".join(f"{short[entry['name']]} {entry['verdict']}" for entry in compared)
    return f"against {short[baseline['name']]}: {verdicts}."


def best_in_words(best: list[dict], primary: str) -> str:
    """' Best: 0.04 (val loss 4.0590 nats/token).'"""
    if not best:
        return ""
    number = f"{SHORT[primary]} {best[0]['loss']}"
    if UNIT[primary] not in (*SHORT[primary].split(), "score"):
        number += f" {UNIT[primary]}"
    return f" Best: {best[0]['what']} ({number})."


def headline(word: str, checked: dict, told: str, missing: list, margin: ab_verdict.Margin,
             unfinished: list[str]) -> str:
    """told: the verdicts and the best arm, in words."""
    def in_words(values: dict) -> str:
        texts = ab_gate.as_texts(values).values()
        return ", ".join(dict.fromkeys(text for own in texts for text in own))

    trouble = ab_gate.trouble_of(checked, in_words)
    allowed = [d["knob"] for d in checked["differences"] if d["state"] == "allowed"]
    if trouble:
        text = f"{'; '.join(trouble)}: choose a stage with --where column=value, or --allow it."
        if any(part.startswith("incomplete") for part in trouble):
            text += " " + ab_headline.how_to_finish(checked, "Finish what is unfinished with `--resume auto`.")
    elif word == "no comparison":
        text = "these runs are one arm, and there is nothing to compare it with."
    else:
        text = told
        if "equivalent" in told or "margin" in told:
            text += f" Margin: {margin.words}."
    if unfinished and not trouble:
        text += f" {ab_headline.no_run_of(unfinished, checked)}"
    text += ab_headline.unchanged(checked)
    text += ab_headline.missing_in_words(missing, text)
    if ab_headline.is_unrecorded(checked) and not trouble:
        text += f" {ab_headline.NO_SETTINGS}"
    text += ab_rows.in_words(checked["unrecorded"])
    if allowed:
        text += f" Allowed by --allow: {', '.join(allowed)}."
    return f"**{word}** · {text}"


def stage_table(arms: list[dict], columns: list[str], primary: str) -> tuple:
    """Document 003's table."""

    def mean(values: list[float], spell, reason: str) -> str:
        return spell(statistics.fmean(values)) if values else f"N/A: {reason}"

    def time(arm: dict) -> str:
        known = not arm["times"] or is_hardware_known(arm)
        return mean(arm["times"], minutes, "not recorded") + ("" if known else UNKNOWN_HARDWARE)

    return ab_report.table([
        *((name, "left", lambda arm, name=name: arm["cells"][name]) for name in columns),
        ("seeds", "right", lambda arm: len(arm["losses"])),
        ("final_loss", "right", lambda arm: mean(arm["losses"], "{:.4f}".format, f"no final_{primary}")),
        ("train_time", "right", time),
    ], arms)


BETWEEN = (" At equal cost, intervals and p allow for what a curve may have been between two evaluations, so that "
           "evaluations further apart (`--eval_every`) show less.")


def difference_blocks(compared: list[dict], baseline: str, unit: str, margin: ab_verdict.Margin, args) -> list[tuple]:
    """The table of differences, how many tests it holds, and how sure each is."""
    tests = max(entry["row"]["tests"] for entry in compared)
    places = "at the last step"
    if args.runs:
        places = "at the last step, at equal FLOPs and at equal wall-clock"
    counted = units.count(tests, "test")
    if not tests:  # not comparable, or no spread: nothing was tested
        return [("h2", f"Differences to {baseline}: {unit}"), difference_table(compared, args)]
    return [
        ("h2", f"Differences to {baseline}: {unit}"), difference_table(compared, args),
        ("p", f"This report holds {counted} ({places}; the same numbers count once), corrected together by "
              "Holm: verdicts, p (Holm) and corrected intervals, which leave out 0 just where p (Holm) is below "
              "alpha; tests of equivalence among themselves. "
              f"Equivalence margin {margin.words}." + (BETWEEN if args.runs else "")),
        *pairing_blocks(compared),
        ("h2", "How sure"), sure_table(compared, args),
        ("p", "p (t) and the smallest difference are of one test alone; seeds for the observed one are at its level "
              "by Holm. Sign flips (pairs) and permutations (runs) assume no normal distribution."),
    ]


def pairing_blocks(compared: list[dict]) -> list[tuple]:
    """By which rule runs were paired, where some have no partner."""
    rows = [entry["row"] for entry in compared]
    if any(not row["paired"] or row["left_out"] for row in rows):
        return [("p", PAIRING)]
    return []


def sure_table(compared: list[dict], args) -> tuple:
    """What the seeds of each arm could show: t, spread, a p without a normal distribution, the smallest difference."""

    def of(spell):
        def cell(entry: dict) -> str:
            stats = entry["row"]["stats"]
            return "N/A: too few seeds" if stats is None else spell(stats)

        return cell

    def number(x: float, spec: str) -> str:
        if args.sequential and x == math.inf:
            return f"more than {args.sequential}"
        return f"{x:{spec}}" if math.isfinite(x) else "N/A"

    def observed(entry: dict) -> str:
        if entry["row"]["stats"] is None:
            return "N/A: too few seeds"
        return number(seeds_for_observed(entry["row"], args), ".0f")

    def exact(stats: dict) -> str:
        name = "p_permutation" if "p_permutation" in stats else "p_sign_flip"
        return form_p(stats[name])

    return ab_report.table([
        ("arm", "left", lambda entry: entry["name"]),
        ("t (degrees of freedom)", "right", of(lambda s: f"{ab_verdict.t_of(s)} ({s['df']:.3g})")),
        ("sd of a difference", "right", of(lambda s: f"{s['sd_diff']:.5f}")),
        ("p (t)", "right", of(lambda s: form_p(s["p_t"]))),
        ("p (sign flips or permutations)", "right", of(exact)),
        (f"smallest difference found with {args.power:.0%} power", "right", of(lambda s: number(s["mde"], ".5f"))),
        ("seeds for the observed one", "right", observed),
    ], compared)


def seeds_for_observed(row: dict, args) -> float:
    """Seeds that find a true difference as large as the observed one at the level at which Holm tests it here."""
    stats, delta = row["stats"], abs(row["delta"])
    if not math.isfinite(stats["n_for"]) or not delta:
        return stats["n_for"]
    level = row.get("level_corrected", args.alpha)
    return ab_noise.seeds_for(delta, stats["sd_diff"], row["paired"], args, level)


def difference_table(compared: list[dict], args) -> tuple:
    def at(cost: str):
        def cell(entry: dict) -> str:
            if entry[cost] is None:
                return "N/A: no run to compare"
            change = form_change(entry[cost], ".4f").split(", p")[0]
            if isinstance(entry[cost]["delta"], str):
                return change
            return f"{change}: {entry[cost]['verdict']}"

        return cell

    columns = [
        ("arm", "left", lambda entry: entry["name"]),
        ("n", "right", lambda entry: ab_numbers.design_of(entry["row"])),
        ("delta", "right", lambda entry: form(entry["row"]["delta"], "+.4f")),
        ("{level} interval, uncorrected", "right", lambda entry: form_interval(entry["row"], ".4f")),
        ("p", "right", lambda entry: form_p(entry["row"]["p_raw"])),
        ("p (Holm)", "right", lambda entry: form_p(entry["row"]["p_corrected"])),
        ("{level} interval, corrected", "right", lambda entry: form_interval(entry["row"], ".4f", "_corrected")),
        ("verdict", "left", lambda entry: entry["verdict"]),
        ("train_time", "right", lambda entry: entry["time"]),
    ]
    if args.runs:
        columns += [("delta at equal FLOPs", "right", at("flops")), ("delta at equal wall-clock", "right", at("wall"))]
    return ab_report.table(columns, compared, args.alpha)


def labels_of(arms: list[dict], columns: list[str]) -> dict[str, dict]:
    """Arms by a short name, which holds the columns in which they differ."""
    vary = [name for name in columns if len({arm["cells"][name] for arm in arms}) > 1]
    names = []
    for arm in arms:
        cells = [ab_rows.cell_in_words(name, arm["cells"][name]) for name in vary or columns[:1]]
        names.append(", ".join(filter(None, cells)) or "as the architecture has it")
    if len(set(names)) < len(names):  # hashes that begin alike
        names = [arm["name"] for arm in arms]
    return dict(zip(names, arms, strict=True))


def arms_plot(labelled: dict[str, dict], primary: str) -> list[tuple]:
    """Each arm's losses, as blocks."""
    losses = {name: arm["losses"] for name, arm in labelled.items()}
    drawn = ab_plots.plot_arms(losses, f"final {SHORT[primary]} ({UNIT[primary]})")
    if not drawn:
        return []
    caption = "Final loss of each arm: a circle per seed, a bar at the mean"
    return [("img", "arms.png", caption, drawn)]


def best_rows(labelled: dict[str, dict], compared: list[dict], better: int) -> list[dict]:
    """The three best arms: {"what", "loss", "seeds", "change", "reading"} each, as text. better: -1 or 1, the way the
    primary metric improves."""
    by_name = {entry["name"]: entry for entry in compared}
    ranked = [(name, arm) for name, arm in labelled.items() if arm["losses"]]
    ranked.sort(key=lambda pair: -better * statistics.fmean(pair[1]["losses"]))
    rows = []
    for name, arm in ranked[:3]:
        entry, change, reading = by_name.get(arm["name"]), "-", "-"
        if entry:
            change, reading = form_change(entry["row"], ".4f").split(", p")[0], entry["verdict"]
        elif compared:
            reading = "the baseline"
        rows.append({
            "what": name, "loss": f"{statistics.fmean(arm['losses']):.4f}",
            "seeds": units.count(len(arm["losses"]), unit_of(arm)),
            "change": change, "reading": reading,
        })
    return rows


def unit_of(arm: dict) -> str:
    """What its losses are of: seeds; runs where some are unknown; rows where a seed has several."""
    seeds = [row["member"]["seed"] for row in arm["rows"]]
    if None in seeds:
        return "run"
    if len(set(seeds)) < len(seeds):
        return "row"
    return "seed"


def best_table(rows: list[dict], primary: str, n_arms: int, compared: list[dict], args) -> tuple:
    columns = [
        (f"Best {len(rows)} of {units.count(n_arms, 'arm')}", "left", lambda row: row["what"]),
        (unit_in_words(primary), "right", lambda row: row["loss"]),
        ("Seeds", "left", lambda row: row["seeds"]),
    ]
    if args.baseline:
        title = "against the baseline, {level} interval"
        if any(entry["row"]["tests"] > 1 for entry in compared):
            title += ", corrected"
        columns.append((title, "right", lambda row: row["change"]))
        columns.append(("Verdict", "left", lambda row: row["reading"]))
    return ("key", *ab_report.table(columns, rows, args.alpha)[1:])
