"""compare_runs.py owns the verdict: are two arms comparable, how much do they differ, and how sure is that?

    python compare_runs.py --a 'experiments/runs/base_s*' --b 'experiments/runs/bos_s*' --out report        # an A/B
    python compare_runs.py --a 'runs/none_s*' --b 'runs/gate_s*' --treatment attn_gate,gate_act             # declared
    python compare_runs.py --a 'runs/gelu_s*' --b 'runs/mine_s*' --treatment code            # you edited the code
    python compare_runs.py --runs 'runs/*' --group_by attn_gate,gate_act --baseline attn_gate=none          # many arms
    python compare_runs.py --results experiments/results.csv --group_by attn_gate,gate_act \\
        --where num_iterations=1500,learning_rate=0.0036 --baseline attn_gate=none                          # a stage
    python compare_runs.py --a 'runs/adamw_s*' --b 'runs/muon_s*' --treatment optimizer --target_loss 3.28  # how soon
    python compare_runs.py --aa 'runs/base_s*'                                  # noise floor of at least 4 seeds
    python compare_runs.py --check runs/mine_s0 --against 'runs/base_s*'        # is a newcomer's run in its band?
    python compare_runs.py --plan --effect 0.003 --noise 0.0013                 # how many seeds does that need?
    python compare_runs.py --a 'runs/none_s*' --b 'runs/gate_s*' --sequential 10     # looks
    python compare_runs.py --list 'experiments/runs/*'                # who trains, how far? (lab/run_list.py)

Reads run folders (layout: lab/runs.py) or a results.csv. Prints Markdown. --out FOLDER gets report.md, report.json,
PNG plots and a report.html that needs no network; then five lines are printed, and all with --print full. Exit status:
0 comparable (--check: in the band), 2 not comparable (--check: outside), 1 bad input.

The gate comes first: what differs must be the treatment, else the verdict is `not comparable`. An attention gate, a
memory, rows, tokens or a part of the network that differ alone are recognised; anything else must be declared with
--treatment, because a forgotten flag
looks just the same. --allow lets a named difference pass, and the report says so. Seeds are the unit of every verdict.
Their number is decided before the first look (--planned, --sequential): every report says so.
Here are the flags and the report on two arms; lab/ab_*.py hold the rest.
"""

from __future__ import annotations

import argparse
import math
import sys

from lab import (
    ab_alpha,
    ab_checklist,
    ab_composite,
    ab_curves,
    ab_gate,
    ab_headline,
    ab_items,
    ab_many,
    ab_noise,
    ab_numbers,
    ab_page,
    ab_report,
    ab_rows,
    ab_stats,
    ab_target,
    ab_target_page,
    ab_verdict,
    flags,
    processes,
    run_list,
)
from lab.ab_numbers import SHORT, UNIT, Metric
from lab.ab_report import form, form_interval, form_p

DEFINITIONS = (
    "Delta is B - A. Mean ± sd is over seeds. Interval and p: paired t-test on shared seeds. "
    "Falls back to Welch if fewer than half of the smaller arm's seeds match, or fewer than 3 match "
    "although both arms have 3 runs. With few runs Welch is made conservative. The corrected "
    "interval uses Holm's level for that test, so it excludes 0 exactly when corrected p < alpha. "
    "There the verdict names a winner, but not of too few seeds, beside a seed without a number, "
    "or at another number of seeds than was planned.",
    "Three families: the primary metric, whose p stands as it is; quality, every other thing that was measured, once, "
    "corrected together by Holm; cost and optimisation, described and not tested (–). A val loss and its own bits/byte "
    "are one test; of a benchmark's rules one is tested. Fewer than 3 pairs, or 3 runs in each arm, are too few for "
    "any verdict. Fixed: follows from the settings, so there is nothing to test.",
    "Final train loss: mean of the last 2 % of the steps. Arms that read other rows or tokens have other train text, "
    "so their train losses do not say which is better.",
    "Val loss: nats per token over the held-out documents as a stream; the bos view scores each document's beginning "
    "alone; bits/byte counts bytes of the original text, so that other tokens compare.",
    "Tokens/sec: median of what the run logged per step. Grad norm stability: sd / mean of the gradient norm before "
    "clipping, lower is steadier. Spike: a norm above 3 times the median of the 50 steps before it. These and the "
    "loss's smoothness leave out the warmup.",
)

AT_EQUAL_COST = (
    "At a budget the costlier run is read off its val curve, linearly between two evaluations; "
    "interval and p allow for what it may have been there instead, so that evaluations further "
    "apart (`--eval_every`) show less. Its learning rate is not down at its end there, which "
    "counts against it: a run of that length would be fairer.")
ENDS = "Every score is of the end of its own run, as the number of steps is the treatment."

# ----------------------------------------------------------------------------------------------------------------------
# tables of an A/B: (header, alignment, cell); one more column is one more line


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


def corrected_cell(row: dict, spec: str) -> str:
    return form_interval(row, spec, "_corrected") if row["tests"] else "–"


# cell(metric, row). row is ab_numbers.difference's; its stats may be None. ab_report.form(None) gives "N/A"
METRIC_COLUMNS = [
    ("Metric", "left", lambda metric, row: metric.label),
    ("A mean ± sd", "right", lambda metric, row: mean_cell("a", metric, row)),
    ("B mean ± sd", "right", lambda metric, row: mean_cell("b", metric, row)),
    ("Delta", "right", delta_cell),
    ("{level} interval, uncorrected", "right", lambda metric, row: form_interval(row, metric.form)),
    ("p", "right", lambda metric, row: form_p(row["p_raw"]) if row["tests"] else "–"),
    ("p, corrected", "right", lambda metric, row: form_p(row["p_corrected"]) if row["tests"] else "–"),
    ("{level} interval, corrected", "right", lambda metric, row: corrected_cell(row, metric.form)),
    ("Verdict", "left", lambda metric, row: row["verdict"]),
]
MATCHING_COLUMNS = [  # cell(match)
    ("Matching", "left", lambda match: match["name"]),
    ("Budget", "left", lambda match: match["budget"]),
    ("A", "right", lambda match: form(match["row"]["a"], ".4f")),
    ("B", "right", lambda match: form(match["row"]["b"], ".4f")),
    ("Delta", "right", lambda match: form(match["row"]["delta"], "+.4f")),
    ("{level} interval, uncorrected", "right", lambda match: form_interval(match["row"], ".4f")),
    ("p", "right", lambda match: form_p(match["row"]["p_raw"])),
    ("p, corrected", "right", lambda match: form_p(match["row"]["p_corrected"])),
    ("{level} interval, corrected", "right", lambda match: corrected_cell(match["row"], ".4f")),
    ("Verdict", "left", lambda match: match["verdict"]),
]
ITEM_COLUMNS = [  # cell(row)
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
    pairs = []
    for key, row in rows.items():
        examined = isinstance(row["a"], float) or isinstance(row["b"], float)
        if examined or metrics[key].benchmark != "gsm8k":
            pairs.append((metrics[key], row))
    columns = [(title, side, lambda pair, cell=cell: cell(*pair))
               for title, side, cell in METRIC_COLUMNS]
    return ab_report.table(columns, pairs, alpha)


# ----------------------------------------------------------------------------------------------------------------------
# two arms


def compare_two(args) -> int:
    """--a and --b: the gate, the table, the matchings, the verdict."""
    arms = {"A": ab_rows.read_runs(args.a, "--a"), "B": ab_rows.read_runs(args.b, "--b")}
    shared = set.intersection(*({run["folder"].resolve() for run in arm} for arm in arms.values()))
    if shared:
        names = ", ".join(sorted(path.name for path in shared))
        raise ValueError(f"{names} is in --a and in --b: give each its own runs.")
    treatment = None
    if args.treatment is not None:
        treatment = ab_rows.names_in(args.treatment)
    checked = ab_gate.gate(ab_gate.members_of(arms), treatment, ab_rows.names_in(args.allow))
    checked |= ab_verdict.decided(args)
    checked["unrecorded"] = ab_rows.unrecorded_of(sum(ab_gate.members_of(arms).values(), []))

    used = [ab_numbers.finished(arm) for arm in arms.values()]
    checked["unfinished"] = ab_numbers.unfinished_arms(arms)
    checked["code_files"] = ab_page.code_changes(arms)
    checked["missing"] += sum(map(ab_numbers.left_out, arms.values()), [])
    every = [run for arm in used for run in arm]
    pairs = [(a, b) for a in used[0] for b in used[1] if a["seed"] == b["seed"]]
    at_ends = are_of_different_length(checked)
    composite = ab_composite.add(every, at_ends)
    metrics = ab_numbers.metrics_of(every)
    primary = ab_verdict.primary_of(args.primary, checked, metrics)
    margin = ab_verdict.margin_of(args.delta, args.primary, primary, every)
    args.delta, better = margin.value, metrics[primary].better
    steps, values = ab_numbers.score_arms(used, metrics, at_ends)
    rows = ab_numbers.compare_metrics(*values, metrics, checked, args.alpha)
    ab_verdict.judge_metrics(rows, metrics, primary, margin, checked, args.alpha)
    checked["missing"] += ab_numbers.older_scores(every, metrics, at_ends)
    step = steps.get(metrics[primary].benchmark or "val")
    matched = ab_numbers.matchings(used, step, primary, checked, args.alpha)
    ab_verdict.judge_matchings(matched, rows[primary], better, margin, checked, args.alpha)
    by_arm = dict(zip("AB", used, strict=True))
    targets = ab_target.compare_arms(by_arm, "A", primary, checked, args)
    rows_of_items, reasons = [], ["Items: N/A: left out (--no_items)"]
    if not checked["ok"]:
        reasons = ["Items and documents: N/A: not comparable"]
    elif at_ends:
        reasons = ["Items and documents: N/A: the arms end at different steps"]
    elif args.items:
        rows_of_items, reasons = ab_items.items(pairs, steps, args.alpha)
    of_primary = [row for row in rows_of_items if row["key"] == primary]
    for row in (rows[primary], *(match["row"] for match in matched)):
        ab_verdict.doubt_equivalence(row, of_primary, margin.value)
    for match in matched:
        match["verdict"] = match["row"]["verdict"]
    verdict = rows[primary]["verdict"]
    extra = []
    if checked["ok"] and not at_ends:
        extra = ab_items.documents(pairs, steps["val"], args.alpha)
    if isinstance(extra, str):
        reasons, extra = [*reasons, f"Documents: N/A: {extra}"], []
    extra = extra + rows_of_items

    at = None if at_ends else step
    head = ab_headline.headline(rows[primary], at, margin, checked, used, args)
    how_sure = ["N/A: the arms are not comparable, so that no number here is evidence about a "
                "treatment."]
    if checked["ok"]:
        how_sure = strength(rows[primary], primary, args)
    answers = ab_checklist.checklist(rows, metrics, matched, primary, checked)
    allowed = ab_headline.allowed_in_words(checked)
    told = [ENDS] if at_ends else []
    names = ab_rows.names_of(arms)
    labelled = {f"{arm}: {names[arm]}": own for arm, own in zip("AB", used, strict=True)}
    facts = [("Arms", ", ".join(labelled)), *ab_page.facts_of(labelled, checked)]
    in_words = ab_page.treatment_in_words(labelled, checked)
    key_rows = ab_page.key_rows(rows, metrics, primary) + ab_target_page.key_rows(targets)
    in_advance = ab_verdict.decided_in_words(checked, rows[primary]["n"], rows[primary]["paired"])
    lines = ab_target_page.lines_of(targets, primary)
    blocks: list[tuple] = [
        ("h1", f"{names['B']} against {names['A']}: {verdict}"),
        ("verdict", head, verdict), ("facts", facts),
    ]
    if args.out:
        blocks += ab_curves.loss_curves(labelled, primary, checked["other_tokens"], lines)
    blocks += [
        ab_page.key_table(key_rows, names, args.alpha),
        ("ul", ab_headline.summary(in_words, primary, checked, allowed, margin, args) + told),
        ("p", in_advance), ("p", ab_verdict.tests_in_words(rows, matched, primary, targets)),
        ("h2", "Result"), metric_table(rows, metrics, args.alpha), *ab_composite.blocks(composite),
        ("h2", f"At equal cost: {ab_page.with_unit(primary)}"),
        ab_report.table(MATCHING_COLUMNS, matched, args.alpha),
        ("p", AT_EQUAL_COST),
        *ab_target_page.blocks_of(targets, args.alpha, two=True),
        ("h2", "How sure"), ("ul", how_sure),
        ("h2", "Items and documents"),
        ("p", "Seeds decide the verdict. These intervals show what depends on the items and "
              "documents asked."),
    ]
    if extra:
        blocks.append(ab_report.table(ITEM_COLUMNS, extra, args.alpha))
    if reasons:
        blocks.append(("ul", reasons))
    blocks += [("h2", "Interpretation checklist"), ("ul", answers)]
    if args.out:
        pictures = ab_curves.pictures(labelled, rows, metrics, primary, args.alpha, lines)
        blocks += [("h2", "Plots"), *pictures]
    blocks += [*ab_gate.gate_blocks(checked), ("h2", "How to read this"), ("ul", list(DEFINITIONS))]
    blocks += ab_page.last_screen(labelled, args.command, args.out)
    record = {
        "mode": "a/b", "verdict": verdict, "headline": head,
        "compared": dict(facts), "primary": primary,
        "margin": margin.value, "margin_in_words": margin.words, "alpha": args.alpha,
        "treatment": checked["treatment"], "allowed": allowed,
        "planned": args.planned, "sequential": args.sequential, "in_advance": in_advance,
        "arms": {arm: [str(run["folder"]) for run in own] for arm, own in arms.items()},
        "seeds_used": seeds_used(rows[primary], values, primary), "at_ends": at_ends,
        "steps": None if at_ends else steps, "composite": composite,
        "gate": checked, "metrics": rows, "matchings": matched, "targets": targets, "how_sure": how_sure,
        "items_and_documents": extra, "not_available": reasons, "checklist": answers,
    }
    brief = None
    if args.print == "short":
        first = f"{names['B']} against {names['A']}: {head}"
        brief = ab_page.brief_of(first, ab_page.brief_rows(key_rows))
    ab_report.publish(blocks, record, args.out, brief)
    return 0 if checked["ok"] else 2


def are_of_different_length(checked: dict) -> bool:
    """Whether arms are meant to be: then they are compared at their ends."""
    treated = {d["knob"] for d in checked["differences"] if d["state"] == "treatment"}
    return "max_train_steps" in treated


def seeds_used(row: dict, values: list[dict], primary: str) -> list[list]:
    """The seeds of each arm that the primary metric's difference is about."""
    if row["paired"]:
        return [list(row["pairs"])] * 2
    scores = [arm[primary].items() for arm in values]
    return [[seed for seed, score in arm if isinstance(score, float)] for arm in scores]


def strength(row: dict, primary: str, args) -> list[str]:
    """What the seeds could show, and how many would show more."""
    stats, unit, n, paired = row["stats"], UNIT[primary], row["n"], row["paired"]
    if stats is None:
        seeds = ab_numbers.design_of(row)
        return [f"{seeds} with a {SHORT[primary]}: no spread, so no interval, no test and no verdict. "
                "Use at least 3 seeds per arm."]
    if paired:
        each = "pairs"
        lines = [
            f"Exact sign-flip p {form_p(stats['p_sign_flip'])} (with {n} pairs it cannot be below "
            f"{2 / 2 ** n:.4g}); it assumes no normal distribution.",
            f"Correlation of the arms over seeds: {or_na(stats['correlation'], '.2f')} (N/A below 3 pairs); "
            f"sd of a pair's difference {stats['sd_diff']:.5f} {unit}.",
        ]
    else:
        each = "runs per arm"
        p = form_p(stats["p_permutation"])
        lines = ["Seeds do not match: Welch's test, whose p is held where an arm has few runs; "
                 f"permutation p {p}."]
    lines.insert(0, ab_verdict.t_in_words(stats))
    needed: object = "N/A"
    n_for = max(stats["n_for"], ab_stats.MIN_RUNS)  # nan stays, as it comes first
    if args.delta and not stats["degenerate"]:
        seeds = ab_noise.seeds_for(args.delta, stats["sd_diff"], paired, args)
        needed = form_needed(seeds, args.sequential)
    lines += [
        f"With {n} {each} the smallest difference found with {args.power:.0%} power is "
        f"{or_na(stats['mde'], '.5f')} {unit}.",
        "A true difference as large as the observed one needs "
        f"{form_needed(n_for, args.sequential)} {each}; "
        f"one of the margin {args.delta:g} needs {needed}.",
    ]
    if args.delta:
        a, b = row["values_a"], row["values_b"]
        test = ab_stats.equivalence(a, b, args.delta, args.alpha, paired, args.sequential)
        p = form_p(test["p"])
        lines.append(f"Equivalence within ± {args.delta:g} (two one-sided tests): p {p}.")
    if stats["degenerate"]:
        lines.append("All pairs differ by exactly the same amount: "
                     "no spread to estimate an interval from.")
    return lines


def form_needed(n: float, looks: int) -> str:
    """A number of seeds; with looks, inf is more than were decided."""
    if looks and n == math.inf:
        return f"more than {looks}"
    return or_na(n, ".0f")


def or_na(x: float, spec: str) -> str:
    return f"{x:{spec}}" if math.isfinite(x) else "N/A"


# ----------------------------------------------------------------------------------------------------------------------
# flags


def build_parser() -> argparse.ArgumentParser:
    parser = flags.Parser(
        prog="compare_runs.py",
        description="Compare two arms, many arms, or a run with a noise floor.",
        epilog="example: python compare_runs.py --a 'runs/base_s*' --b 'runs/bos_s*' --out report\n"
        "exit status: 0 comparable, or in the band; 2 not comparable, or outside; 1 bad input")
    add = parser.add_argument_group("two arms").add_argument
    add("--a", nargs="+", metavar="RUNS",
        help="the baseline's run folders, a quoted pattern, or logs of other projects (lab/logs.py)")
    add("--b", nargs="+", metavar="RUNS", help="the treatment's run folders")
    add = parser.add_argument_group("many arms").add_argument
    add("--runs", nargs="+", metavar="RUNS", help="run folders of all arms (with --group_by)")
    add("--results", nargs="+", metavar="CSV",
        help="one or more results.csv, or quoted patterns, instead of folders (with --group_by)")
    add("--group_by", metavar="COLUMNS", help="columns that make an arm: attn_gate,gate_act")
    add("--where", metavar="COLUMN=VALUE,...", help="keep only these rows: num_iterations=1500")
    add("--baseline", metavar="COLUMN=VALUE,...", help="the arm to compare others with (or none)")
    add = parser.add_argument_group("noise floor and planning").add_argument
    add("--aa", nargs="+", metavar="RUNS", help="at least 4 seeds of one run: their spread")
    add("--check", metavar="RUN", help="whether this run lies in the band of --against")
    add("--against", nargs="+", metavar="RUNS", help="at least 4 seeds of one run (with --check)")
    add("--plan", action="store_true", help="seeds that --effect needs (with --noise or --aa)")
    add("--effect", type=float, help="smallest difference worth finding (nats, bits)")
    add("--noise", type=float, help="sd between seeds, in the same unit")
    add("--correlation", type=float, help="of the arms over seeds, -1 to 1 (default: several)")
    add("--power", type=float, default=0.8, help="chance of finding the effect (default 0.8)")
    add = parser.add_argument_group("gate and verdict").add_argument
    add("--treatment", metavar="SETTINGS",
        help="what was changed on purpose: settings, as in attn_gate,gate_act, or one of "
        f"{', '.join(sorted(ab_gate.FAMILIES))} (default: recognise a gate, rows or tokens)")
    add("--allow", metavar="SETTINGS",
        help="differences to let pass: code,incomplete; init for chains of stages")
    add("--primary", metavar="METRIC",
        help="metric of the verdict: a val loss or any benchmark's score, as hellaswag_accuracy_norm, "
        "eval_official_sum, gsm8k_accuracy, mean_centered_accuracy (over several tasks) (default val_loss; "
        "val_bits_per_byte when tokens differ; grpo_accuracy of runs of grpo.py)")
    add("--target_loss", nargs="+", type=float, metavar="LOSS",
        help="also: how much sooner is this val loss reached, in steps, tokens, FLOPs, training seconds? "
        "In the unit of the verdict's loss; several are corrected together (default: not asked)")
    add("--delta", type=float,
        help="margin of equivalence in the metric's unit; nats/token are converted where the verdict is about "
        "bits/byte (default 0.002 nats/token, or 0.01 of a score; 0: no test of equivalence)")
    add("--alpha", type=float, default=0.05, help="level of tests and intervals (default 0.05)")
    add("--planned", type=int, default=0, metavar="N",
        help="pairs (runs of the smaller arm) that were decided before the first result: no verdict at "
        "another number (default 0: not said, and the report says so)")
    add("--sequential", type=int, default=0, metavar="N",
        help="the most pairs, decided before the first look: p, intervals and verdicts hold at every look "
        "from the third pair on; with --plan what each look can find (default 0: one look)")
    run_list.add_arguments(parser)
    add = parser.add_argument_group("output").add_argument
    add("--out", metavar="FOLDER",
        help="for the report and its plots: new, empty, or of an earlier report (default: only print)")
    add("--print", choices=("short", "full"),
        help="the verdict, the main numbers and the report's path, or all of it "
        "(default: short with --out, else full)")
    add("--no_items", dest="items", action="store_false", help="no bootstrap over benchmark items")
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Flags, checked. ValueError in one sentence, so that exit status 2 keeps its meaning."""
    parser = build_parser()

    def refuse(message: str):
        raise ValueError(parser.sentence(message))

    parser.error = refuse

    def check(condition, sentence: str) -> None:
        if not condition:
            raise ValueError(f"{sentence}; see --help.")

    args = parser.parse_args(argv)
    modes = {
        "--a with --b": args.a or args.b,
        "--group_by": args.group_by or args.runs or args.results,
        "--check with --against": args.check or args.against,
        "--aa": args.aa,
        "--plan": args.plan,
        "--list": run_list.is_asked(args),
    }
    chosen = [name for name, given in modes.items() if given]
    one_of = f"give one of {', '.join(modes)}"
    check(chosen, one_of)
    check(len(chosen) == 1 or chosen == ["--aa", "--plan"],
          f"{one_of}, not {' and '.join(chosen)} together")
    check(bool(args.a) == bool(args.b), "--a and --b need each other: name both")
    check(bool(args.check) == bool(args.against), "--check and --against need each other: name both")
    if chosen == ["--group_by"]:
        check(args.group_by and bool(args.runs) != bool(args.results),
              "--group_by needs either --runs or --results, and they need --group_by")
    if chosen == ["--list"]:
        run_list.check_flags(args, check)
    if args.plan:
        check(args.effect and 0 < args.effect < math.inf,
              "--plan needs an --effect above 0: the smallest difference worth finding")
        check(args.aa or (args.noise and 0 < args.noise < math.inf),
              "--plan needs a --noise above 0 (the sd between seeds), or --aa to measure it")
    for name, low, high in (("alpha", 0, 1), ("power", 0, 1), ("correlation", -1, 1)):
        value = getattr(args, name)
        if value is not None:
            check(low < value < high, f"--{name} {value:g}: give a number between {low} and {high}")
    check_decided(args, chosen, check)
    ab_target.check_flags(args, chosen, check)
    if args.delta is not None:
        check(0 <= args.delta < math.inf, f"--delta {args.delta:g}: give a number of at least 0")
    args.print = args.print or ("short" if args.out else "full")
    args.command = ["python", "compare_runs.py", *map(str, sys.argv[1:] if argv is None else argv)]
    return args


def check_decided(args, chosen: list[str], check) -> None:
    """--planned and --sequential: one of them, in the modes that they change."""
    few, many = ab_stats.MIN_RUNS, ab_alpha.MOST_LOOKS
    check(not args.planned or args.planned >= few, f"--planned {args.planned}: give {few} or more")
    check(not args.sequential or few <= args.sequential <= many,
          f"--sequential {args.sequential}: give {few} to {many} pairs")
    check(not (args.planned and args.sequential), "--planned and --sequential: give one of them")
    only_noise = chosen == ["--aa"] or "--check with --against" in chosen
    check(not (args.sequential and only_noise),
          "--sequential tests a difference: give --a and --b, or --group_by")
    check(not (args.planned and "--plan" in chosen), "--plan says how many: leave out --planned")


def main(argv=None) -> int:
    args = parse_args(argv)
    if run_list.is_asked(args):
        return run_list.main(args)
    ab_report.check_out(args.out)
    if args.a:
        return compare_two(args)
    if args.group_by:
        return ab_many.compare_many(args)
    if args.plan and not args.aa:
        return ab_noise.plan_seeds(args)
    return ab_noise.compare_noise(args)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "compare_runs.py")
