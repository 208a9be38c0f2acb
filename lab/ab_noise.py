"""ab_noise.py owns what seeds alone do: the noise floor of one run, a newcomer's place in it, the seeds to plan.

    python compare_runs.py --aa 'runs/base_s*'
    python compare_runs.py --check runs/mine_s0 --against 'runs/base_s*'
    python compare_runs.py --plan --effect 0.003 --noise 0.0013
"""

from __future__ import annotations

import math

from lab import (
    ab_alpha,
    ab_composite,
    ab_gate,
    ab_numbers,
    ab_page,
    ab_power,
    ab_report,
    ab_stats,
    ab_verdict,
)
from lab.ab_numbers import SHORT, UNIT, Metric
from lab.ab_report import form
from lab.ab_rows import label_of, names_in, read_one, read_runs

NO_ARMS = {"other_tokens": False}  # one run repeated: nothing differs


def compare_noise(args) -> int:
    """--aa: what seeds alone do to every metric. --check RUN --against: does a newcomer's run lie in that band?"""
    patterns, flag, newcomer = args.aa, "--aa", []
    if args.check:
        patterns, flag, newcomer = args.against, "--against", [read_one(args.check)]
    itself = [run["folder"].resolve() for run in newcomer]
    every = [run for run in read_runs(patterns, flag) if run["folder"].resolve() not in itself]
    used = ab_numbers.finished([run for run in every if run["summary"]])
    if len(used) < 4:
        raise ValueError("a noise floor needs at least 4 finished runs of different seeds, "
                         f"and there are {len(used)}: train more seeds.")
    arms = {"noise floor": every}
    if newcomer:
        arms["newcomer"] = newcomer
    # a newcomer may have any seed, and nothing may differ, so there is no treatment
    checked = ab_gate.gate(ab_gate.members_of(arms), [], names_in(args.allow), same_seeds=False)
    checked |= ab_verdict.decided(args)
    composite = ab_composite.add(used + newcomer)
    metrics = ab_numbers.metrics_of(used + newcomer)
    steps, values = ab_numbers.score_arms([used, newcomer], metrics)
    rows = noise_rows(values, metrics, checked, args.alpha)
    primary = ab_verdict.primary_of(args.primary, checked | NO_ARMS, metrics)
    if primary not in rows:
        raise ValueError(f"not all runs have a {SHORT[primary]} of one step after training began: "
                         "train with the same --eval_every, or pass --primary.")

    trouble, row = "; ".join(ab_gate.trouble_of(checked)), rows[primary]
    seeds = ", ".join(str(run["seed"]) for run in used)
    step = steps[metrics[primary].benchmark or "val"]
    floor = f"{len(used)} seeds ({seeds}), step {step}"
    mode, title, word = "aa", f"Noise floor of {label_of(used)}", "comparable"
    if newcomer:
        word, text = judge_newcomer(rows, primary, trouble, floor, args.alpha)
        if args.planned not in (0, len(used)) and not trouble:
            word = "inconclusive"
            text += (f" {args.planned} seeds of the noise floor were planned: no verdict at "
                     "another number.")
        name = newcomer[0]["name"]
        mode, title = "check", f"{name} against the noise floor of {label_of(used)}: {word}"
    else:
        between = f"{row['sd_low']:.5f} to {row['sd_high']:.5f}"
        text = (f"{SHORT[primary]}: sd {row['sd']:.5f} {UNIT[primary]} "
                f"({100 * (1 - args.alpha):g} % interval {between}) over {floor}.")
        if checked["missing"]:
            text += f" Missing: {'; '.join(checked['missing'])}."
        if trouble:
            text += " Take seeds of one setting, or let pass what does no harm (`--allow`)."
    if trouble:
        word, text = "not comparable", f"{trouble}. {text}"
    head = f"**{word}** · {text}"
    arms["noise floor"] = used
    facts = ab_page.facts_of(arms, checked)
    in_advance = ""  # one look or several find no difference here, as there are no two arms
    if args.planned:
        in_advance = ab_verdict.decided_in_words(checked, len(used), what="seeds of the noise floor")
    if newcomer and trouble:
        withhold(rows)
    blocks = [
        ("h1", title), ("verdict", head, word), ("facts", facts),
        noise_table(rows, metrics, bool(newcomer), args.alpha), *ab_composite.blocks(composite),
        ("p", "The band is a prediction interval: "
              "one more run of another seed falls inside with this chance."),
        *([("p", in_advance)] if in_advance else []),
    ]
    record = {
        "mode": mode, "verdict": word, "headline": head, "compared": dict(facts), "primary": primary,
        "alpha": args.alpha, "metrics": rows, "gate": checked, "runs": [str(run["folder"]) for run in used],
        "in_advance": in_advance,
    }
    if args.plan:
        blocks += plan_blocks(row["sd"], primary, args, record, bound=row["sd_plan"], seeds=row["n"])
    blocks += ab_gate.gate_blocks(checked)
    brief = None
    if args.print == "short":
        first = {key: rows[key] for key in list(dict.fromkeys([primary, *rows]))[:3]}
        _, header, cells, _ = noise_table(first, metrics, bool(newcomer), args.alpha)
        named = [[row[0], *map(" ".join, zip(header[1:], row[1:], strict=True))] for row in cells]
        brief = ab_page.brief_of(f"{title.removesuffix(f': {word}')}: {head}", named)
    ab_report.publish(blocks, record, args.out, brief)
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


def withhold(rows: dict) -> None:
    """Takes away what lies in which band: beside a run that is not comparable it would read like a verdict."""
    for row in rows.values():
        if row["state"] in ("inside", "OUTSIDE"):
            row["state"] = ab_verdict.WITHHELD


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
    row, n = rows[primary], sum(not other["state"].startswith("N/A") for other in rows.values())
    word = "not comparable"
    if not trouble and row["state"] in ("inside", "OUTSIDE"):
        word = row["state"].lower()
    value, end = f"of this run N/A ({row['newcomer']})", ", and without it nothing can be said"
    if isinstance(row["newcomer"], float):
        value, end = f"{row['newcomer']:.4f} {UNIT[primary]}", ""
    if trouble:
        return word, (f"{SHORT[primary]} {value}; no band is of runs like it: compare it with seeds of "
                      "its own settings, or let pass what does no harm (`--allow`).")
    outside = sum(other["state"] == "OUTSIDE" for other in rows.values())
    band = f"[{row['band_low']:.4f}, {row['band_high']:.4f}]"
    return word, (
        f"{SHORT[primary]} {value}, band {band} from {floor}. "
        f"{outside} of {n} metrics lie outside their own band "
        f"(by chance about {alpha * n:.1f} would); "
        f"the primary metric decides{end}."
    )


def plan_seeds(args) -> int:
    """--plan with --noise: seeds that an effect needs."""
    record: dict = {"mode": "plan"}
    primary = ab_verdict.primary_of(args.primary, NO_ARMS, ab_numbers.metrics_of([]))
    blocks = plan_blocks(args.noise, primary, args, record)
    ab_report.publish([("h1", "How many seeds?"), *blocks], record, args.out)
    return 0


def plan_blocks(sd: float, primary: str, args, record: dict, bound: float | None = None, seeds: int = 0) -> list[tuple]:
    """Seeds that --effect needs, and the effect that a number of seeds can show, for several seed correlations.

    sd: between seeds, as given or measured on `seeds` runs; bound: what it is at most, by which the plan goes: half of
    all measured spreads are too small, and so would half of all plans be."""
    effect, alpha, power, unit = args.effect, args.alpha, args.power, UNIT[primary]
    noise = f"sd between seeds {sd:.5g} {unit}"
    if bound is not None:
        noise += (f" as measured on {seeds} seeds; the plan goes by its upper bound {bound:.5g} "
                  f"({100 * (1 - alpha):g} %, chi-square), so that it has its power also where the sd came out "
                  "small by luck: more seeds of the noise floor bring it down")
    as_measured, sd = sd, sd if bound is None else bound
    if power <= alpha:
        raise ValueError(f"--power {power:g} is not above --alpha {alpha:g}: ask for more power.")
    correlations = sorted({0.0, 0.5, 0.8, args.correlation} - {None})
    designs = {f"paired, seed correlation {r:g}": (r, True) for r in correlations}
    designs["unpaired"] = (0.0, False)
    if args.sequential:
        designs.pop("unpaired")  # looks spend alpha otherwise there
    needed, by_luck, smallest = {}, {}, [("n", "right", str)]
    for name, (correlation, paired) in designs.items():
        spread = ab_power.sd_of_difference(sd, correlation)
        measured = ab_power.sd_of_difference(as_measured, correlation)
        needed[name], by_luck[name] = (seeds_for(effect, own, paired, args) for own in (spread, measured))

        def detectable(n: int, spread=spread, paired=paired) -> str:
            return f"{ab_power.mde(n, spread, level_at(n, args), power, paired):.5f}"

        smallest.append((name, "right", detectable))
    record["plan"] = {
        "sd": as_measured, "sd_plan": sd, "effect": effect, "power": power, "alpha": alpha,
        "sequential": args.sequential,
        "seeds_needed": {name: n if n < math.inf else None for name, n in needed.items()},
    }

    def in_words(n: float) -> str:
        return f"{n}" if n < math.inf else f"more than {args.sequential}"

    design = [("Design", "left", str), ("seeds per arm", "right", lambda name: in_words(needed[name]))]
    if bound is not None:
        design.append(("if the sd were as measured", "right", lambda name: in_words(by_luck[name])))
    numbers = [3, 4, 5, 6, 8, 10, 15, 20]
    blocks = [
        ("h2", f"Seeds per arm that find {effect:g} {unit}"),
        ("p", f"{noise}. Two-sided alpha {alpha:g}, power {power:.0%}."),
    ]
    if args.sequential:
        numbers = list(range(ab_alpha.FIRST_LOOK, args.sequential + 1))
        counts = "p of the t test that counts"
        smallest.insert(1, (counts, "right", lambda n: f"{level_at(n, args):.4f}"))
        enough = [name for name, n in needed.items() if n <= args.sequential]
        listed = ", ".join(enough) or "none of the designs below"
        most = args.sequential
        blocks.append(("p", f"Looks at up to {most} pairs (`--sequential` {most}), decided before the first: "
                            f"enough for {listed}."))
    return [
        *blocks, ab_report.table(design, list(needed)),
        ("h2", f"Smallest difference that n seeds per arm find ({unit})"),
        ab_report.table(smallest, numbers),
    ]


def seeds_for(effect: float, spread: float, paired: bool, args, alpha: float | None = None) -> float:
    """Seeds per arm that an effect needs, at least the 3 of a verdict; inf where --sequential decided on fewer. alpha:
    of the test, by default --alpha."""
    if alpha is None:
        alpha = args.alpha
    if args.sequential and paired:
        return ab_power.n_needed_by_looks(effect, spread, args.sequential, alpha, args.power)
    return max(ab_stats.MIN_RUNS, ab_power.n_needed(effect, spread, alpha, args.power, paired))


def level_at(n: int, args) -> float:
    """The t test's p that counts as alpha at n pairs."""
    if not args.sequential:
        return args.alpha
    return ab_alpha.level_of(args.alpha, ab_alpha.Design(n, looks=args.sequential))
