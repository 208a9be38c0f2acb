"""compare_runs.py owns the verdict: are two arms comparable, how much do they differ, and how sure is that?

    python compare_runs.py --a 'experiments/runs/base_s*' --b 'experiments/runs/bos_s*' --out report        # an A/B
    python compare_runs.py --a 'runs/none_s*' --b 'runs/gate_s*' --treatment attn_gate,gate_act             # declared
    python compare_runs.py --runs 'runs/*' --group_by attn_gate,gate_act --baseline attn_gate=none          # many arms
    python compare_runs.py --results experiments/results.csv --group_by attn_gate,gate_act \\
        --where num_iterations=1500,learning_rate=0.0036 --baseline attn_gate=none                          # a stage
    python compare_runs.py --aa 'runs/base_s*'                                  # noise floor of at least 4 seeds
    python compare_runs.py --check runs/mine_s0 --against 'runs/base_s*'        # is a newcomer's run in its band?
    python compare_runs.py --plan --effect 0.003 --noise 0.0013                 # how many seeds does that need?

Reads run folders (layout: lab/runs.py) or a results.csv. Prints Markdown; --out FOLDER also gets report.md, report.json,
PNG plots and a report.html that needs no network. Exit status: 0 comparable (--check: in the band), 2 not comparable
(--check: outside), 1 bad input.

The gate comes first: what differs must be the treatment, else the verdict is `not comparable`. An attention gate, rows
or tokens that differ alone are recognised as the treatment. Anything else (an optimizer, a learning rate, a size) must
be declared with --treatment, because a forgotten flag looks just the same. --allow lets a named difference pass, and
the report says so. Seeds are the unit of every verdict; items and documents only add to it.

This file has the flags and the report on two arms and on the noise floor; lab/ab_gate.py decides what is comparable,
lab/ab_numbers.py has the metrics, lab/ab_many.py the stage tables, lab/ab_stats.py the formulas.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys

from lab import ab_gate, ab_many, ab_numbers, ab_report, ab_stats, runs
from lab.ab_numbers import SHORT, UNIT, Metric, direction
from lab.ab_report import count, form, form_change, form_interval, form_p

DEFINITIONS = (
    "Delta is B - A. Mean ± sd is over seeds. Where both arms have a seed, interval and p are of the differences "
    "within pairs of equal seed (paired t), else Welch's. The primary metric's p stands as it is; all others are "
    "adjusted together by Holm. Fixed: follows from the settings, so there is nothing to test.",
    "Final train loss: mean of the last 2 % of the steps. Arms that read other rows or tokens have other train text, "
    "so their train losses do not say which is better.",
    "Val loss: nats per token over the held-out documents as a stream; the bos view scores each document's beginning "
    "alone; bits/byte counts bytes of the original text, so that other tokens compare.",
    "Tokens/sec: median of what the run logged per step. Grad norm stability: sd / mean of the gradient norm before "
    "clipping, lower is steadier. Spike: a norm above 3 times the median of the 50 steps before it. These and the "
    "loss's smoothness leave out the warmup.",
)

# ----------------------------------------------------------------------------------------------------------------------
# tables of an A/B: (header, alignment, cell(metric, row)); one more column is one more line


def mean_cell(side: str, metric: Metric, row: dict) -> str:
    cell, sd = form(row[side], metric.form), row[f"sd_{side}"]
    if sd is not None and metric.kind != "fixed":
        cell += f" ± {sd:{metric.form}}"
    return cell


def delta_cell(metric: Metric, row: dict) -> str:
    cell = form(row["delta"], f"+{metric.form}")
    if row["lacking"] and isinstance(row["delta"], float):
        unit = "seeds" if row["paired"] else "runs"
        cell += f" ({row['used']} of {row['used'] + len(row['lacking'])} {unit})"
    return cell


METRIC_COLUMNS = [
    ("Metric", "left", lambda metric, row: metric.label),
    ("A mean ± sd", "right", lambda metric, row: mean_cell("a", metric, row)),
    ("B mean ± sd", "right", lambda metric, row: mean_cell("b", metric, row)),
    ("Delta", "right", delta_cell),
    ("{level} interval", "right", lambda metric, row: form_interval(row, metric.form)),
    ("p", "right", lambda metric, row: form_p(row["p"])),
]
MATCHING_COLUMNS = [
    ("Matching", "left", lambda match: match["name"]),
    ("Budget", "left", lambda match: match["budget"]),
    ("A", "right", lambda match: form(match["row"]["a"], ".4f")),
    ("B", "right", lambda match: form(match["row"]["b"], ".4f")),
    ("Delta", "right", lambda match: form(match["row"]["delta"], "+.4f")),
    ("{level} interval", "right", lambda match: form_interval(match["row"], ".4f")),
    ("Verdict", "left", lambda match: match["verdict"]),
]
ITEM_COLUMNS = [
    ("What", "left", lambda row: row["what"]),
    ("A", "right", lambda row: form(row["a"], ".4f")),
    ("B", "right", lambda row: form(row["b"], ".4f")),
    ("Delta", "right", lambda row: form(row["delta"], "+.4f")),
    ("{level} interval", "right", lambda row: form_interval(row, ".4f")),
    ("n x pairs", "right", lambda row: row["n"]),
    ("Interval over", "left", lambda row: row["how"]),
]


def metric_table(rows: dict[str, dict], metrics: dict[str, Metric], alpha: float) -> tuple:
    """Document 000's rows, then ours; GSM8K's only where some run was examined."""
    shown = []
    for key, row in rows.items():
        examined = isinstance(row["a"], float) or isinstance(row["b"], float)
        if examined or metrics[key].benchmark != "gsm8k":
            shown.append((metrics[key], row))
    columns = [(header, side, lambda pair, cell=cell: cell(*pair)) for header, side, cell in METRIC_COLUMNS]
    return ab_report.table(columns, shown, alpha)


# ----------------------------------------------------------------------------------------------------------------------
# two arms


def compare_two(args) -> int:
    """--a and --b: the gate, the table, the matchings, the verdict."""
    arms = {"A": runs.read_runs(args.a, "--a"), "B": runs.read_runs(args.b, "--b")}
    shared = set.intersection(*({run["folder"].resolve() for run in arm} for arm in arms.values()))
    if shared:
        names = ", ".join(sorted(path.name for path in shared))
        raise ValueError(f"{names} is in --a and in --b: give each its own runs.")
    treatment = None
    if args.treatment is not None:
        treatment = ab_many.names_in(args.treatment)
    members = {arm: [ab_gate.of_run(run) for run in own] for arm, own in arms.items()}
    checked = ab_gate.gate(members, treatment, ab_many.names_in(args.allow))

    primary = ab_numbers.primary_of(args.primary, checked)
    used = [ab_numbers.finished(own) for own in arms.values()]
    common = {run["seed"] for run in used[0]} & {run["seed"] for run in used[1]}
    if common:
        used = [[run for run in arm if run["seed"] in common] for arm in used]
    pairs = [(a, b) for a in used[0] for b in used[1] if a["seed"] == b["seed"]]
    metrics = ab_numbers.metrics_of([run for arm in used for run in arm])
    steps, values = ab_numbers.score_arms(used, metrics)
    rows = ab_numbers.compare_metrics(*values, metrics, primary, checked, args.alpha)
    verdict = "not comparable"
    if checked["ok"]:
        verdict = ab_numbers.verdict_of(rows[primary], args.delta)
    matched = ab_numbers.matchings(used, steps["val"], primary, checked, args.delta, args.alpha)
    extra, reasons = items_and_documents(pairs, steps, args)

    head = headline(verdict, rows[primary], primary, checked, steps, used)
    sure = strength(rows[primary], primary, args)
    answers = checklist(rows, metrics, matched, primary, checked, args.alpha)
    allowed = []
    for d in checked["differences"]:
        if d["state"] == "allowed":
            detail = d["why"] if d["knob"] in ab_gate.FAULTS else ab_gate.by_arm(d["values"])
            allowed.append(f"{d['knob']}: {detail}")
    names = {arm: label_of(own) for arm, own in arms.items()}
    unit = f"{SHORT[primary]} ({UNIT[primary]})"
    blocks: list[tuple] = [
        ("h1", f"{names['B']} against {names['A']}: {verdict}"),
        ("verdict", head, verdict),
        ("ul", summary(arms, names, primary, checked, allowed, args)),
        ("h2", "Result"),
        metric_table(rows, metrics, args.alpha),
        ("h2", f"At equal cost: {unit}"),
        ab_report.table(MATCHING_COLUMNS, matched, args.alpha),
        ("p", "At a budget the costlier run is read off its val curve, linearly between two evaluations. Its learning "
              "rate is not down at its end there, which counts against it: a run of that length would be fairer."),
        ("h2", "How sure"),
        ("ul", sure),
        ("h2", "Items and documents"),
        ("p", "Seeds decide the verdict. These intervals show what depends on the items and documents asked."),
    ]
    if extra:
        blocks.append(ab_report.table(ITEM_COLUMNS, extra, args.alpha))
    if reasons:
        blocks.append(("ul", reasons))
    blocks += [("h2", "Interpretation checklist"), ("ul", answers)]
    if args.out:
        labelled = {f"{arm}: {names[arm]}": own for arm, own in zip("AB", used, strict=True)}
        blocks += [("h2", "Plots"), *pictures(labelled, rows, metrics, primary, args.alpha)]
    blocks += [*ab_gate.gate_blocks(checked), ("h2", "How to read this"), ("ul", list(DEFINITIONS))]
    record = {
        "mode": "a/b", "verdict": verdict, "headline": head, "primary": primary, "margin": args.delta,
        "alpha": args.alpha, "treatment": checked["treatment"], "allowed": allowed,
        "arms": {arm: [str(run["folder"]) for run in own] for arm, own in arms.items()},
        "seeds_used": [[run["seed"] for run in arm] for arm in used], "steps": steps, "gate": checked,
        "metrics": rows, "matchings": matched, "how_sure": sure, "items_and_documents": extra,
        "not_available": reasons, "checklist": answers,
    }
    ab_report.publish(blocks, record, args.out)
    return 0 if checked["ok"] else 2


def items_and_documents(pairs: list[tuple], steps: dict, args) -> tuple[list[dict], list[str]]:
    """(rows with intervals over documents and over items, reasons for what is missing)."""
    rows, reasons = [], ["Items: N/A: left out (--no_items)"]
    if args.items:
        rows, reasons = ab_numbers.items(pairs, steps, args.alpha)
    documents = ab_numbers.documents(pairs, steps["val"], args.alpha)
    if isinstance(documents, str):
        return rows, [*reasons, f"Documents: N/A: {documents}"]
    return documents + rows, reasons


def summary(arms: dict, names: dict, primary: str, checked: dict, allowed: list[str], args) -> list[str]:
    """The arms, the treatment and the primary metric, a sentence each."""
    seeds = {}
    for arm, own in arms.items():
        numbers = sorted(run["seed"] for run in own)
        seeds[arm] = f"{'seed' if len(numbers) == 1 else 'seeds'} {', '.join(map(str, numbers))}"
    if checked["treatment"]:
        how = "declared" if args.treatment else "recognised"
        treatment = f"{checked['treatment']} ({how})"
    elif not checked["ok"]:
        treatment = "none declared or recognised among what differs"
    elif allowed:
        treatment = "none: the arms differ in nothing that counts but what --allow lets pass"
    else:
        treatment = "none: the arms differ in nothing that counts (an A/A)"
    because = ", as the arms' tokens differ" if checked["other_tokens"] else ""
    sentences = [
        f"A: `{names['A']}`, {seeds['A']}. B: `{names['B']}`, {seeds['B']}.",
        f"Treatment: {treatment}.",
        f"Primary metric: {SHORT[primary]}{because}. Equivalence margin {args.delta:g} {UNIT[primary]}. "
        f"alpha {args.alpha:g}.",
    ]
    if allowed:
        sentences.append(f"Allowed by --allow: {'; '.join(allowed)}.")
    return sentences


def label_of(arm: list[dict]) -> str:
    """What an arm's folders are called: base_s0, base_s1 -> base."""
    stem = os.path.commonprefix([re.sub(r"[_-]s(eed)?\d+$", "", run["name"]) for run in arm])
    return stem.rstrip("_-") or "runs"


def headline(verdict: str, row: dict, primary: str, checked: dict, steps: dict, used: list[list[dict]]) -> str:
    """Verdict, effect, and everything that is missing."""
    effect = f"{SHORT[primary]} {row['delta']}"
    if isinstance(row["delta"], float):
        change = form_change(row, ".4f")
        pairs = count(row["n"], "pair" if row["paired"] else "unpaired seed")
        effect = f"B - A = {change} in {SHORT[primary]} ({UNIT[primary]}) at step {steps['val']}, {pairs}"
    if verdict in ("better", "worse"):
        text = f"B is {verdict} than A: {effect}."
    elif verdict == "not comparable":
        text = f"{'; '.join(ab_gate.trouble_of(checked))}. What follows is no evidence about a treatment."
    else:
        text = f"{effect}."
    if verdict == "inconclusive" and isinstance(row["delta"], float):
        text += " " + why_inconclusive(row)
    missing = [*checked["missing"], *(f"seed {seed} has no {SHORT[primary]}" for seed in row["lacking"])]
    planned = max(runs.number(run["flags"].get("max_train_steps")) for arm in used for run in arm)
    if steps["val"] is not None and steps["val"] < planned:
        missing.append(f"step {steps['val']} is the last that all runs scored, of {planned:.0f}")
    if missing:
        text += f" Missing: {'; '.join(missing)}."
    return f"**{verdict}** · {text}"


def why_inconclusive(row: dict) -> str:
    if row["n"] < 2:
        return "One seed is no evidence: run more."
    if row["lacking"]:
        return "A seed without a number may be the very one that went wrong."
    return "These seeds do not tell the arms apart."


def strength(row: dict, primary: str, args) -> list[str]:
    """What the seeds could show, and how many would show more."""
    stats, unit, n = row["stats"], UNIT[primary], row["n"]
    if stats is None:
        return [f"{count(n, 'pair' if row['paired'] else 'run')} with a {SHORT[primary]}: no spread, so no interval, "
                "no test and no verdict. Use at least 3 seeds per arm."]
    each = "runs per arm"
    lines = [f"Seeds do not match: Welch's test; permutation p {form_p(stats.get('p_permutation', math.nan))}."]
    if row["paired"]:
        each = "pairs"
        lines = [
            f"Exact sign-flip p {form_p(stats['p_sign_flip'])} (with {n} pairs it cannot be below {2 / 2 ** n:.4g}); "
            "it assumes no normal distribution.",
            f"Correlation of the arms over seeds: {or_na(stats['correlation'], '.2f')} (N/A below 3 pairs); sd of a "
            f"pair's difference {stats['sd_diff']:.5f} {unit}.",
        ]
    needed: object = "N/A"
    if args.delta and not stats["degenerate"]:
        needed = ab_stats.n_needed(args.delta, stats["sd_diff"], args.alpha, args.power, row["paired"])
    lines += [
        f"With {n} {each} the smallest difference found with {args.power:.0%} power is {or_na(stats['mde'], '.5f')} "
        f"{unit}.",
        f"A true difference as large as the observed one needs {or_na(stats['n_for'], '.0f')} {each}; one of the "
        f"margin {args.delta:g} needs {needed}.",
    ]
    if args.delta:
        same = ab_stats.equivalence(row["values_a"], row["values_b"], args.delta, args.alpha, row["paired"])
        lines.append(f"Equivalence within ± {args.delta:g} (two one-sided tests): p {form_p(same['p'])}.")
    if stats["degenerate"]:
        lines.append("All pairs differ by exactly the same amount: no spread to estimate an interval from.")
    return lines


def or_na(x: float, spec: str) -> str:
    return f"{x:{spec}}" if math.isfinite(x) else "N/A"


# ----------------------------------------------------------------------------------------------------------------------
# document 000's interpretation checklist

SUBJECTS = {"rows": "BOS alignment", "tokens": "the other tokens", "gate": "the attention gate"}
STEADINESS = {
    "loss_roughness": "sd of the loss's step-to-step change",
    "grad_norm_stability": "grad norm sd / mean",
    "grad_norm_spikes": "grad norm spikes",
}


def checklist(rows: dict, metrics: dict, matched: list[dict], primary: str, checked: dict, alpha: float) -> list[str]:
    """Document 000's four questions, answered from the numbers."""

    def change(key: str, name: str) -> str:
        row, metric = rows[key], metrics[key]
        return f"{name} {form_change(row, metric.form)} ({direction(row, metric.better, alpha)})"

    subject = SUBJECTS.get(checked["family"], "the treatment")
    benchmarks = "hellaswag_accuracy hellaswag_accuracy_norm eval_official_sum eval_official_mean".split()
    scored = [change(key, metrics[key].label) for key in benchmarks if isinstance(rows[key]["delta"], float)]
    quality = "; ".join(scored) or "HellaSwag and EWoK N/A: not run, so the val loss alone speaks"
    flops = matched[1]
    effect = f"{form_change(flops['row'], '.4f')} {UNIT[primary]}: {flops['verdict']}"
    speed = change("tokens_per_sec", "tokens/s") + relative_speed(rows["tokens_per_sec"])
    steadiness = "; ".join(change(key, name) for key, name in STEADINESS.items())
    answers = {
        f"Did {subject} improve benchmark quality at matched compute?":
            f"{quality}. At equal FLOPs ({flops['budget']}) {SHORT[primary]} changes by {effect}.",
        f"Did {subject} change optimization stability (loss smoothness, grad norms)?": f"{steadiness}.",
        "Was runtime throughput materially worse/better?": f"{speed}.",
        "Is any observed gain plausibly explained by data discard (`crop_fraction`)?":
            f"{discard(rows, primary, alpha)}. {data_read(rows)}.",
    }
    return [f"**{question}** {answer[0].upper() + answer[1:]}" for question, answer in answers.items()]


def relative_speed(row: dict) -> str:
    """', -5.7 % [-5.8 %, -5.6 %]: materially worse ...': materially means by over 1 %."""
    if isinstance(row["delta"], str):
        return ""
    if isinstance(row["low"], str):
        return f", {100 * row['delta'] / row['a']:+.1f} %"
    change, low, high = (100 * row[key] / row["a"] for key in ("delta", "low", "high"))
    words = "the interval does not exclude 1 %"
    if high < -1:
        words = "materially worse (by over 1 %)"
    elif low > 1:
        words = "materially better (by over 1 %)"
    elif low > -1 and high < 1:
        words = "not materially (under 1 % either way)"
    return f", {change:+.1f} % [{low:+.1f} %, {high:+.1f} %]: {words}"


def discard(rows: dict, primary: str, alpha: float) -> str:
    crop = {side: rows["crop_fraction"][side] for side in "ab"}
    a, b = (value if isinstance(value, float) else 0.0 for value in crop.values())
    if not max(a, b):
        return "No: no text was discarded in either arm"
    if direction(rows[primary], -1, alpha) != "better":
        return (f"There is no clear gain to explain ({SHORT[primary]} {form_change(rows[primary], '.4f')}), though "
                f"crop fraction is {a:.4f} in A and {b:.4f} in B")
    if b > a:
        return (f"It may be: {b:.1%} of B's text was discarded, {a:.1%} of A's, so B reads other text. An arm that "
                "discards nothing (prepare_bos_rows.py --overflow requeue) tells the two apart")
    return f"Hardly: A discards {a:.1%}, B {b:.1%}"


def data_read(rows: dict) -> str:
    sides = []
    for side in "ab":
        crop, unique, epochs = (rows[key][side] for key in ("crop_fraction", "unique_tokens", "epochs"))
        sides.append(f"{side.upper()} crop fraction {form(crop, '.4f')}, unique tokens {form(unique, ',.0f')}, "
                     f"epochs {form(epochs, '.3f')}")
    return "; ".join(sides)


# ----------------------------------------------------------------------------------------------------------------------
# plots of an A/B

PANELS = {"nats": "losses", "bits": "losses", "benchmark": "benchmarks"}


def pictures(arms: dict[str, list[dict]], rows: dict, metrics: dict, primary: str, alpha: float) -> list[tuple]:
    """Curves, pairs and the change of every metric, as blocks."""
    blocks, row = ab_many.curves(arms, primary), rows[primary]
    mean = None
    if isinstance(row["low"], float):
        mean = (row["delta"], row["low"], row["high"])
    x_label = f"B - A in {SHORT[primary]} ({UNIT[primary]}); below 0, B is better"
    png = ab_report.plot_pairs(row["pairs"], mean, x_label, f"mean, {100 * (1 - alpha):g} %")
    if png:
        blocks.append(("img", "paired_differences.png", "Difference within each pair of equal seed", png))
    forest: dict[str, list] = {"losses": [], "benchmarks": [], "stability and cost": []}
    for key, row in rows.items():
        if isinstance(row["low"], float) and math.isfinite(row["low"]) and row["a"]:
            metric = metrics[key]
            panel = PANELS.get(metric.kind, "stability and cost")
            percent = {field: 100 * row[field] / abs(row["a"]) for field in ("delta", "low", "high")}
            label = metric.label.split(" (")[0].split(" @")[0]
            said = direction(row, metric.better, alpha)
            forest[panel].append({"label": label, "better": metric.better, "said": said, **percent})
    png = ab_report.plot_forest(forest)
    if png:
        blocks.append(("img", "forest.png", "Every measured metric: change in percent of A, with its interval. Better, "
                       "worse and changed go by the table's p, which Holm's correction may have raised", png))
    return blocks or [("p", "N/A: nothing to draw.")]


# ----------------------------------------------------------------------------------------------------------------------
# the noise floor, a newcomer's run, and the seeds that an effect needs


def compare_noise(args) -> int:
    """--aa: what seeds alone do to every metric. --check RUN --against: does a newcomer's run lie in that band?"""
    newcomer, own = None, args.aa
    if args.check:
        newcomer = runs.read_run(args.check)
        every = runs.read_runs(args.against, "--against")
        every = [run for run in every if run["folder"].resolve() != newcomer["folder"].resolve()]
    else:
        every = runs.read_runs(args.aa, "--aa")
    used = []
    if any(run["summary"] for run in every):
        used = ab_numbers.finished(every)
    if len(used) < 4:
        raise ValueError(f"a noise floor needs at least 4 finished runs of different seeds, and there are {len(used)}: "
                         "train more seeds.")
    arms, sides = {"noise floor": every}, [used]
    if newcomer:
        arms["newcomer"] = [newcomer]
        sides.append([newcomer])
    # a newcomer may have any seed, so only equal seeds can show other batches; nothing may differ, so no treatment
    members = {arm: [ab_gate.of_run(run) for run in own] for arm, own in arms.items()}
    checked = ab_gate.gate(members, [], ab_many.names_in(args.allow), same_seeds=False)
    metrics = ab_numbers.metrics_of([run for side in sides for run in side])
    steps, values = ab_numbers.score_arms(sides, metrics)
    primary = args.primary or "val_loss"
    rows = noise_rows(values, metrics, checked, args.alpha)
    if primary not in rows:
        raise ValueError(f"not all of these runs have a {SHORT[primary]}: train with --eval_every, or pass --primary.")

    trouble = ab_gate.trouble_of(checked)
    seeds = f"{len(used)} seeds ({', '.join(str(run['seed']) for run in used)})"
    columns = [
        ("Metric", "left", lambda key: metrics[key].label),
        ("mean", "right", lambda key: form(rows[key]["mean"], metrics[key].form)),
        ("sd", "right", lambda key: f"{rows[key]['sd']:.3g}"),
        ("band for one more run, {level}", "right", lambda key: band(rows[key], metrics[key])),
    ]
    floor = rows[primary]
    if newcomer:
        columns += [
            ("this run", "right", lambda key: newcomer_cell(rows[key], metrics[key])),
            ("verdict", "left", lambda key: rows[key]["state"]),
        ]
        word, text = judge_newcomer(rows, primary, trouble, f"{seeds}, step {steps['val']}", args.alpha)
        title = f"{newcomer['name']} against the noise floor of {label_of(used)}: {word}"
    else:
        word = "not comparable" if trouble else "comparable"
        text = (f"{SHORT[primary]}: sd {floor['sd']:.5f} {UNIT[primary]} (95 % interval {floor['sd_low']:.5f} to "
                f"{floor['sd_high']:.5f}) over {seeds}, step {steps['val']}.")
        if checked["missing"]:
            text += f" Missing: {'; '.join(checked['missing'])}."
        title = f"Noise floor of {label_of(used)}"
    if trouble:
        text = f"{'; '.join(trouble)}. {text}"
    head = f"**{word}** · {text}"
    blocks = [
        ("h1", title),
        ("verdict", head, word),
        ab_report.table(columns, list(rows), args.alpha),
        ("p", "The band is a prediction interval: one more run of another seed falls inside with this chance."),
    ]
    record = {
        "mode": "check" if newcomer else "aa", "verdict": word, "headline": head, "primary": primary,
        "alpha": args.alpha, "metrics": rows, "gate": checked, "runs": [str(run["folder"]) for run in used],
    }
    if args.plan:
        blocks += plan_blocks(floor["sd"], primary, args, record)
    ab_report.publish([*blocks, *ab_gate.gate_blocks(checked)], record, args.out)
    return 0 if word in ("inside", "comparable") else 2


def noise_rows(values: list[dict], metrics: dict, checked: dict, alpha: float) -> dict[str, dict]:
    """{metric: ab_stats.noise_floor(...)} of every metric that all runs have; of a newcomer "newcomer" and "state"."""
    rows = {}
    for key, metric in metrics.items():
        known = list(values[0][key].values())
        if metric.kind == "fixed" or not all(isinstance(value, float) for value in known):
            continue
        rows[key] = dict(ab_stats.noise_floor(known, alpha))
        if len(values) == 1:
            continue
        value = next(iter(values[1][key].values()))
        if isinstance(value, str):
            state = f"N/A: {value}"
        elif metric.kind == "speed" and checked["other_machine"]:
            state = "N/A: other hardware or software"
        else:
            state = "inside" if ab_stats.in_band(value, rows[key]) else "OUTSIDE"
        rows[key] |= {"newcomer": value, "state": state}
    return rows


def judge_newcomer(rows: dict, primary: str, trouble: list[str], floor_of: str, alpha: float) -> tuple[str, str]:
    """(inside | outside | not comparable, the headline's text). The primary metric decides."""
    row = rows[primary]
    word = "not comparable"
    if not trouble and row["state"] in ("inside", "OUTSIDE"):
        word = row["state"].lower()
    value, end = f"of this run N/A ({row['newcomer']})", ", and without it nothing can be said"
    if isinstance(row["newcomer"], float):
        value, end = f"{row['newcomer']:.4f} {UNIT[primary]}", ""
    outside = sum(other["state"] == "OUTSIDE" for other in rows.values())
    return word, (
        f"{SHORT[primary]} {value}, band [{row['band_low']:.4f}, {row['band_high']:.4f}] from {floor_of}. {outside} "
        f"of {len(rows)} metrics lie outside their own band (by chance about {alpha * len(rows):.1f} would); the "
        f"primary metric decides{end}."
    )


def band(row: dict, metric: Metric) -> str:
    return f"[{row['band_low']:{metric.form}}, {row['band_high']:{metric.form}}]"


def newcomer_cell(row: dict, metric: Metric) -> str:
    if isinstance(row["newcomer"], str):
        return f"N/A: {row['newcomer']}"
    return form(row["newcomer"], metric.form)


def plan_blocks(sd: float, primary: str, args, record: dict) -> list[tuple]:
    """Seeds that --effect needs, and the effect that a number of seeds can show, for several seed correlations."""
    if args.power <= args.alpha:
        raise ValueError(f"--power {args.power:g} is not above --alpha {args.alpha:g}: ask for more power.")
    correlations = {0.0, 0.5, 0.8}
    if args.correlation is not None:
        correlations.add(args.correlation)
    designs = {}
    for r in sorted(correlations):
        designs[f"paired, seed correlation {r:g}"] = ab_stats.sd_of_difference(sd, r), True
    designs["unpaired"] = ab_stats.sd_of_difference(sd, 0.0), False
    needed = {}
    for name, (spread, paired) in designs.items():
        needed[name] = ab_stats.n_needed(args.effect, spread, args.alpha, args.power, paired)
    smallest = [("n", "right", str)]
    for name, (spread, paired) in designs.items():
        smallest.append((name, "right", lambda n, spread=spread, paired=paired:
                         f"{ab_stats.mde(n, spread, args.alpha, args.power, paired):.5f}"))
    record["plan"] = {"sd": sd, "effect": args.effect, "power": args.power, "alpha": args.alpha, "seeds_needed": needed}
    unit = UNIT[primary]
    return [
        ("h2", f"Seeds per arm that find {args.effect:g} {unit}"),
        ("p", f"sd between seeds {sd:.5g} {unit}, two-sided alpha {args.alpha:g}, power {args.power:.0%}."),
        ab_report.table([("Design", "left", lambda name: name), ("seeds per arm", "right", needed.get)], list(needed)),
        ("h2", f"Smallest difference that n seeds per arm find ({unit})"),
        ab_report.table(smallest, [2, 3, 4, 5, 6, 8, 10, 15, 20]),
    ]


def compare_plan(args) -> int:
    """--plan with --noise: seeds that an effect needs."""
    record: dict = {"mode": "plan"}
    blocks = plan_blocks(args.noise, args.primary or "val_loss", args, record)
    ab_report.publish([("h1", "How many seeds?"), *blocks], record, args.out)
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# flags

def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compare_runs.py", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        description="Compare two arms, many arms, or a run with a noise floor; say no more than the data holds.",
        epilog="example: python compare_runs.py --a 'experiments/runs/base_s*' --b 'experiments/runs/bos_s*' --out r\n"
        "exit status: 0 comparable (--check: in the band), 2 not comparable (--check: outside), 1 bad input")
    add = parser.add_argument_group("two arms").add_argument
    add("--a", nargs="+", metavar="RUNS", help="the baseline's run folders: a quoted pattern, or several paths")
    add("--b", nargs="+", metavar="RUNS", help="the treatment's run folders")
    add = parser.add_argument_group("many arms").add_argument
    add("--runs", nargs="+", metavar="RUNS", help="run folders of all arms (with --group_by)")
    add("--results", metavar="CSV", help="a results.csv instead of run folders (with --group_by)")
    add("--group_by", metavar="COLUMNS", help="columns that make an arm, for example attn_gate,gate_act")
    add("--where", metavar="COLUMN=VALUE,...", help="keep these rows alone, for example num_iterations=1500")
    add("--baseline", metavar="COLUMN=VALUE,...", help="the arm that the others are compared with (default: none)")
    add = parser.add_argument_group("noise floor and planning").add_argument
    add("--aa", nargs="+", metavar="RUNS", help="at least 4 seeds of one run: sd and band of every metric")
    add("--check", metavar="RUN", help="whether this run lies in the band of --against")
    add("--against", nargs="+", metavar="RUNS", help="at least 4 seeds of one run (with --check)")
    add("--plan", action="store_true", help="seeds that --effect needs, with the sd from --noise or --aa")
    add("--effect", type=float, help="smallest difference worth finding, in the primary metric's unit (with --plan)")
    add("--noise", type=float, help="sd between seeds, in the primary metric's unit (with --plan; or --aa)")
    add("--correlation", type=float, help="of the arms over equal seeds, -1 to 1 (default: 0, 0.5 and 0.8 are shown)")
    add("--power", type=float, default=0.8, help="chance of finding the effect (default 0.8)")
    add = parser.add_argument_group("gate and verdict").add_argument
    add("--treatment", metavar="KNOBS", help="what was changed on purpose: knobs, as in attn_gate,gate_act, or one of "
        f"{', '.join(sorted(ab_gate.FAMILIES))} (default: recognise a gate, rows or tokens)")
    add("--allow", metavar="KNOBS",
        help="differences to let pass; the report tells them, for example code_sha256,incomplete")
    add("--primary", choices=ab_numbers.PRIMARY,
        help="metric of the verdict (default val_loss; val_bits_per_byte when the arms' tokens differ)")
    add("--delta", type=float, default=0.002, help="equivalence margin in the primary metric's unit (default 0.002)")
    add("--alpha", type=float, default=0.05, help="level of the tests; intervals hold 1 - alpha (default 0.05)")
    add = parser.add_argument_group("output").add_argument
    add("--out", metavar="FOLDER", help="for report.md, report.json, report.html and plots (default: print alone)")
    add("--no_items", dest="items", action="store_false", help="leave out the bootstrap over benchmark items")
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Flags, checked. ValueError in one sentence, so that exit status 2 keeps its meaning."""
    parser = build_parser()

    def check(condition, sentence: str) -> None:
        if not condition:
            raise ValueError(f"{sentence}; see --help.")

    parser.error = lambda message: check(False, message)
    args = parser.parse_args(argv)
    modes = {
        "--a with --b": args.a or args.b,
        "--group_by": args.group_by or args.runs or args.results,
        "--check with --against": args.check or args.against,
        "--aa": args.aa,
        "--plan": args.plan,
    }
    chosen = [name for name, given in modes.items() if given]
    one_of = f"give one of {', '.join(modes)}"
    check(chosen, one_of)
    check(len(chosen) == 1 or chosen == ["--aa", "--plan"], f"{one_of}, not {' and '.join(chosen)} together")
    check(bool(args.a) == bool(args.b), "--a and --b need each other: name both")
    check(bool(args.check) == bool(args.against), "--check and --against need each other: name both")
    if chosen == ["--group_by"]:
        check(args.group_by and bool(args.runs) != bool(args.results),
              "--group_by needs either --runs or --results, and they need --group_by")
    if args.plan:
        check(args.effect and 0 < args.effect < math.inf,
              "--plan needs an --effect above 0: the smallest difference worth finding")
        check(args.aa or (args.noise and 0 < args.noise < math.inf),
              "--plan needs a --noise above 0 (the sd between seeds), or --aa with 4 runs to measure it")
    for name, low, high in (("alpha", 0, 1), ("power", 0, 1), ("correlation", -1, 1)):
        value = getattr(args, name)
        check(value is None or low < value < high, f"--{name} {value}: give a number between {low} and {high}")
    check(0 <= args.delta < math.inf, f"--delta {args.delta:g}: give a number of at least 0")
    return args


def main(argv=None) -> int:
    args = parse_args(argv)
    if args.a:
        return compare_two(args)
    if args.group_by:
        return ab_many.compare_many(args)
    return compare_noise(args) if args.aa or args.check else compare_plan(args)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"compare_runs.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
