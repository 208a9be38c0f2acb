"""lengths.py tells how the effect of a treatment changes with the length of the training.

    python experiments/lengths.py --a 'experiments/runs/stream_*' --b 'experiments/runs/rows_*' --out report

Each arm is given with its runs of all lengths (--max_train_steps), as experiments/branch.py makes them. At every length
that both arms have they are compared as by compare_runs.py: the gate, then the difference of the primary metric at the
runs' ends, with interval and p. One more test asks whether the effect changes as the training gets longer: a line over
log2(steps) is fitted to each seed's differences, and the seeds' slopes, a change per doubling, are tested against 0.
It takes pairs of equal seed at all lengths. All these tests are corrected together, by Holm.

Runs of a seed that branch off one trunk share their first steps, so the lengths are no independent evidence. Holm's
correction allows for that, and a slope counts once per seed. The line is a description: do not read it beyond the
longest run. What was tuned, such as a learning rate, was tuned at some length, and an effect may change with the length
because it is no longer the best.

Exit status as of compare_runs.py: 0 comparable at all lengths, 2 not comparable at some, 1 bad input.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab import flags  # noqa: E402

if __name__ == "__main__":
    flags.check_first(__file__)

import compare_runs  # noqa: E402
from lab import (  # noqa: E402
    ab_gate,
    ab_numbers,
    ab_page,
    ab_plots,
    ab_proofs,
    ab_report,
    ab_rows,
    ab_verdict,
    processes,
    runs,
    units,
)
from lab.ab_report import form, form_interval, form_p  # noqa: E402

LENGTH = {"max_train_steps", "warmdown_iters"}  # what may differ between the lengths of an arm
SCRIPTS = {"gsm8k": "eval_gsm8k.py"}  # of benchmarks that are not called as their script
COLUMNS = [  # cell(length)
    ("Steps", "right", lambda one: f"{one['steps']:,}"),
    ("Tokens", "right", lambda one: f"{one['tokens'] / 1e6:,.4g} M"),
    ("n", "right", lambda one: str(one["row"]["n"])),
    ("A", "right", lambda one: form(one["row"]["a"], ".4f")),
    ("B", "right", lambda one: form(one["row"]["b"], ".4f")),
    ("B - A", "right", lambda one: form(one["row"]["delta"], "+.4f")),
    ("{level} interval, uncorrected", "right", lambda one: form_interval(one["row"], ".4f")),
    ("p", "right", lambda one: form_p(one["row"]["p_raw"])),
    ("p, corrected", "right", lambda one: form_p(one["row"]["p_corrected"])),
    ("Verdict", "left", lambda one: one["row"]["verdict"]),
]

# ----------------------------------------------------------------------------------------------------------------------
# the lengths


def by_length(arm: list[dict]) -> dict[int, list[dict]]:
    """{--max_train_steps: runs}"""
    lengths: dict[int, list[dict]] = {}
    for run in arm:
        steps = run["flags"].get("max_train_steps")
        if not isinstance(steps, int):
            raise ValueError(f"{run['name']} does not record its --max_train_steps: name runs of train_gpt.py.")
        lengths.setdefault(steps, []).append(run)
    return lengths


def read_lengths(arms: dict[str, list[dict]], args) -> list[dict]:
    """The lengths that both arms have, ascending: {"steps", "tokens", "checked" (of the gate), "members" (of its arms),
    "every" (the runs used), "metrics", "values" (per arm: metric -> seed -> number)} each."""
    own = {arm: by_length(members) for arm, members in arms.items()}
    both = sorted(set(own["A"]) & set(own["B"]))
    if not both:
        have = "; ".join(f"{arm} has {in_order(lengths)}" for arm, lengths in own.items())
        raise ValueError(f"no length is in --a and in --b ({have}): train or branch the same lengths.")
    treatment = None
    if args.treatment is not None:
        treatment = ab_rows.names_in(args.treatment)
    lengths = []
    for steps in both:
        of_length = {arm: runs_of[steps] for arm, runs_of in own.items()}
        members = ab_gate.members_of(of_length)
        checked = ab_gate.gate(members, treatment, ab_rows.names_in(args.allow))
        checked |= ab_verdict.decided(args) | {"unfinished": ab_numbers.unfinished_arms(of_length)}
        used = [ab_numbers.finished(members) for members in of_length.values()]
        checked["missing"] += sum(map(ab_numbers.left_out, of_length.values()), [])
        every = [run for members in used for run in members]
        metrics = ab_numbers.metrics_of(every)
        _, values = ab_numbers.score_arms(used, metrics)
        tokens = steps * runs.number(every[0]["config"].get("tokens_per_step"))
        lengths.append({"steps": steps, "tokens": tokens, "checked": checked, "members": members, "every": every,
                        "metrics": metrics, "values": values})
    return lengths


def in_order(steps) -> str:
    return ", ".join(f"{one:,}" for one in sorted(steps))


def compare(lengths: list[dict], primary: str, margin: float, args) -> dict | None:
    """Gives every length its "row", the difference of the primary metric, judged together with the change per doubling,
    which is returned (see change_with_length). A length that is not comparable, or at which no run of an arm is
    finished, has no verdict."""
    metric = lengths[-1]["metrics"][primary]
    for one in lengths:
        if primary not in one["metrics"]:
            raise ValueError(f"{primary} is not scored at {one['steps']:,} steps: score it there, or choose another "
                             "--primary.")
    refuse_unscored(lengths, primary)
    for one in lengths:
        rows = ab_numbers.compare_metrics(*one["values"], {primary: metric}, one["checked"], args.alpha)
        one["row"] = rows[primary]
    slope = change_with_length(lengths, args.alpha)
    tested = [one["row"] for one in lengths if is_tested(one)]
    if slope:
        tested.append(slope)
    ab_verdict.judge(tested, args.alpha, metric.better, margin, {"ok": True, "planned": args.planned})
    for one in lengths:
        if not is_tested(one):
            ab_verdict.judge([one["row"]], args.alpha, metric.better, margin, one["checked"])
    return slope


def refuse_unscored(lengths: list[dict], primary: str) -> None:
    """ValueError where no run at any length has a number of the primary metric, with the way to get one."""
    values = [value for one in lengths for arm in one["values"] for value in arm[primary].values()]
    if any(isinstance(value, float) for value in values):
        return
    name = lengths[0]["metrics"][primary].benchmark
    script = SCRIPTS.get(name, f"{name}.py")
    advice = f"train them with --{name or 'eval'}_every"
    if (runs.REPO / script).exists():
        advice = f"score each with python {script} --checkpoint {lengths[0]['every'][0]['folder']}"
    raise ValueError(f"no run has a {primary} that is a number: {advice}, or choose another --primary.")


def is_tested(one: dict) -> bool:
    return one["checked"]["ok"] and not one["checked"]["unfinished"]


def other_settings(lengths: list[dict]) -> list[str]:
    """In words, what differs between an arm's lengths besides the length: then a trend may be that setting's."""
    notes = []
    for arm in ("A", "B"):
        members = [member for one in lengths for member in one["members"][arm]]
        cadences = ab_gate.cadences_of(members)
        for name in dict.fromkeys(name for member in members for name in member["settings"]):
            users = [member for member in members if name not in member["unused"]]
            values = ab_proofs.distinct(member["settings"].get(name) for member in users)
            if len(values) > 1 and name not in LENGTH and name not in cadences:
                notes.append(f"{arm} is not the same at all lengths: {name} {', '.join(map(ab_gate.short, values))}")
    return notes


def change_with_length(lengths: list[dict], alpha: float) -> dict | None:
    """The seeds' changes of B - A per doubling of the steps against 0, as ab_numbers.difference. None where there is
    nothing to fit: fewer than two lengths, one without a verdict, arms that differ between lengths in something else,
    no seed with a pair at all lengths."""
    if len(lengths) < 2 or not all(map(is_tested, lengths)) or other_settings(lengths):
        return None
    pairs = [one["row"]["pairs"] for one in lengths]
    seeds = sorted(set.intersection(*map(set, pairs)))
    if not seeds:
        return None
    doublings = np.log2([one["steps"] for one in lengths])
    slopes = {seed: float(np.polyfit(doublings, [own[seed] for own in pairs], 1)[0]) for seed in seeds}
    row = ab_numbers.difference(dict.fromkeys(seeds, 0.0), slopes, alpha, lengths[0]["checked"]["looks"])
    # a seed without a number at some length may be the very one that went wrong: no verdict beside it
    row["lacking"] = sorted({seed for one in lengths for seed in one["row"]["lacking"]}, key=str)
    return row


# ----------------------------------------------------------------------------------------------------------------------
# the report

UNTESTED = ("Whether the effect changes with the length is not tested: that takes two or more lengths, comparable and "
            "finished, arms that are the same at all of them, and pairs of equal seed at all of them.")
ANSWERS = {  # verdict of the slope: what it says of the effect, in short and in a sentence
    "better": ("moves towards B", "The longer the training, the more the effect is in B's favour"),
    "worse": ("moves towards A", "The longer the training, the more the effect is in A's favour"),
    "equivalent": ("no trend", "The effect has no trend over the lengths that exceeds the margin per doubling"),
}
NOT_SHOWN = "change not shown", "Whether the effect changes with the length is not shown"


def answer_of(slope: dict | None, unit: str) -> tuple[str, str]:
    """(what the slope says of the effect, in short, in a sentence)"""
    if slope is None:
        return "not tested", UNTESTED
    word, sign, reserve = slope["verdict"].partition(", ")
    short, sentence = ANSWERS.get(word, NOT_SHOWN)
    if reserve:  # of "better" and "worse"
        sentence += f"{sign}{reserve} per doubling"
    change = ab_report.form_change(slope, ".4f")
    return short, f"{sentence}: {change}, in {unit} per doubling of the steps; n = {slope['n']}."


def margin_in_words(margin: ab_verdict.Margin) -> str:
    if not margin.value:
        return margin.words
    return f"{margin.words}; at each length it bounds the difference, for the trend its change per doubling"


def picture(lengths: list[dict], unit: str, alpha: float) -> list[tuple]:
    """Mean differences with their intervals, and each pair, over the steps."""
    drawn = [one for one in lengths if isinstance(one["row"]["delta"], float)]
    if not drawn:
        return []

    def draw(wide: bool):
        (axis,), save = ab_plots.canvas(ab_plots.WIDTH[wide], 2.8)
        axis.axhline(0, color="black", linewidth=1)
        for one in drawn:
            row, x = one["row"], one["steps"]
            pairs = list(row["pairs"].values())
            axis.plot([x] * len(pairs), pairs, "o", markerfacecolor="none", color=ab_plots.BLUE, markersize=5)
            if isinstance(row["low"], float) and np.isfinite(row["low"]):
                axis.plot([x, x], [row["low"], row["high"]], color="black", linewidth=1.6)
            axis.plot(x, row["delta"], "D", color="black", markersize=5)
        axis.set_xscale("log", base=2)
        axis.minorticks_off()
        axis.set_xticks([one["steps"] for one in drawn], [f"{one['steps']:,}" for one in drawn])
        axis.set(xlabel="optimizer steps of the run (log scale)", ylabel=f"B - A\n{unit}")
        return save

    level = f"{100 * (1 - alpha):g} %"
    caption = f"B - A at the end of each length. Diamond, bar: mean, {level} interval, uncorrected; circle: a pair."
    return [("img", "lengths.png", caption, ab_plots.picture(draw))]


def remarks(arms: dict[str, list[dict]], lengths: list[dict]) -> list[str]:
    """What stands in the way of a comparison, or was left out of it."""
    notes, both = [], {one["steps"] for one in lengths}
    for members in arms.values():
        alone = set(by_length(members)) - both
        if alone:
            notes.append(f"{ab_rows.label_of(members)} alone has runs of {in_order(alone)} steps: left out")
    notes += other_settings(lengths)
    for one in lengths:
        notes += [f"{one['steps']:,} steps: seed {seed} has no number" for seed in one["row"]["lacking"]]
        trouble = ab_gate.trouble_of(one["checked"]) + one["checked"]["missing"]
        notes += [f"{one['steps']:,} steps: {words}" for words in trouble]
    return notes


def report(args) -> int:
    ab_report.check_out(args.out)
    arms = {"A": ab_rows.read_runs(args.a, "--a"), "B": ab_rows.read_runs(args.b, "--b")}
    twice = set.intersection(*({run["folder"].resolve() for run in members} for members in arms.values()))
    if twice:
        raise ValueError(f"{min(twice).name} is in --a and in --b: give each its own runs.")
    lengths = read_lengths(arms, args)
    longest = lengths[-1]
    other_tokens = any(one["checked"]["other_tokens"] for one in lengths)
    primary = ab_verdict.primary_of(args.primary, {"other_tokens": other_tokens}, longest["metrics"])
    margin = ab_verdict.margin_of(args.delta, args.primary, primary, longest["every"])
    if ab_numbers.UNIT[primary] == "score":  # whether its items are enough to call arms equivalent is not asked here
        margin = ab_verdict.Margin(0.0, "none for a benchmark's score")
    slope = compare(lengths, primary, margin.value, args)

    names = {arm: ab_rows.label_of(members) for arm, members in arms.items()}
    unit = ab_page.with_unit(primary)
    short, sentence = answer_of(slope, unit)
    verdicts = "; ".join(f"{one['steps']:,} steps {one['row']['verdict']}" for one in lengths)
    is_comparable = all(one["checked"]["ok"] for one in lengths)
    tests = max(one["row"]["tests"] for one in lengths)
    of_longest = {arm: by_length(members)[longest["steps"]] for arm, members in arms.items()}
    treatment = ab_page.treatment_in_words(of_longest, longest["checked"])
    blocks: list[tuple] = [
        ("h1", f"{names['B']} against {names['A']} by length: {short}"),
        ("verdict", f"**{short}** · {sentence} By length: {verdicts}.", short),
        ("p", f"{unit} at the end of each run. What was changed: {treatment}. {units.count(tests, 'test')}, "
              f"corrected together (Holm). Margin of equivalence: {margin_in_words(margin)}."),
        ab_report.table(COLUMNS, lengths, args.alpha),
    ]
    if args.out:
        blocks += picture(lengths, unit, args.alpha)
    notes = remarks(arms, lengths)
    if notes:
        blocks.append(("ul", notes))
    row = longest["row"]
    blocks += [("p", ab_verdict.decided_in_words(longest["checked"], row["n"], row["paired"])),
               ("h2", "How to read this"), ("p", " ".join(__doc__.split("\n\n")[3].split()))]
    record = {
        "mode": "lengths", "verdict": short, "headline": sentence, "primary": primary, "margin": margin.value,
        "margin_in_words": margin.words, "alpha": args.alpha, "treatment": longest["checked"]["treatment"],
        "arms": {arm: [str(run["folder"]) for run in members] for arm, members in arms.items()},
        "lengths": [{"steps": one["steps"], "tokens": one["tokens"], "difference": one["row"], "gate": one["checked"]}
                    for one in lengths],
        "change_per_doubling": slope, "notes": notes}
    ab_report.publish(blocks, record, args.out)
    return 0 if is_comparable else 2


def main(argv=None) -> int:
    parser = flags.Parser(prog="lengths.py", description=__doc__)
    add = parser.add_argument
    add("--a", nargs="+", required=True, metavar="RUNS", help="the baseline's run folders, of all lengths, or patterns")
    add("--b", nargs="+", required=True, metavar="RUNS", help="the treatment's")
    add("--treatment", metavar="SETTINGS", help="what was changed on purpose, as for compare_runs.py")
    add("--allow", metavar="SETTINGS", help="differences to let pass, as for compare_runs.py")
    add("--primary", metavar="METRIC",
        help="metric of the verdicts (default val_loss; val_bits_per_byte when tokens differ)")
    add("--delta", type=float,
        help="margin of equivalence, and of the change per doubling (default as for compare_runs.py)")
    add("--alpha", type=float, default=0.05, help="level of tests and intervals (default 0.05)")
    add("--planned", type=int, default=0, metavar="N",
        help="pairs that were decided before the first result (default 0: not said)")
    add("--sequential", type=int, default=0, metavar="N",
        help="the most pairs, decided before the first look (default 0: one look)")
    add("--out", metavar="FOLDER", help="for the report and its plot (default: only print)")
    args = parser.parse_args(argv)
    if not 0 < args.alpha < 1:
        parser.error("--alpha: give a number between 0 and 1.")
    compare_runs.check_decided(args, ["--a with --b"], lambda right, sentence: right or parser.error(f"{sentence}."))
    return report(args)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "lengths.py")
