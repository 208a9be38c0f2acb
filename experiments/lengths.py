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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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

SCRIPTS = {"gsm8k": "eval_gsm8k.py"}  # of benchmarks that are not called as their script
COLUMNS = [  # behind those of the axis; cell(length)
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
# what the effect is followed over


class Axis(NamedTuple):
    """The lengths of a training; sizes.py has the sizes of a network. Below, "a length" is a point of whichever."""
    one: str  # in words, of one of them
    many: str
    more: str  # how a trend is told: "the longer the training"
    unit: str  # of which a doubling is meant
    changes: frozenset  # settings that may differ between an arm's lengths
    key: Callable  # (run) -> what it is that runs of a length have in common, in ascending order; ValueError
    label: Callable  # (key) -> words
    about: Callable  # (runs of A) -> {"x": where it lies, and the figures}
    figures: tuple  # names of those that the record has
    columns: tuple  # of the table
    advice: str  # what to do where the arms have none in common
    xlabel: str  # of the picture
    tick: Callable  # (x) -> words


def steps_of(run: dict) -> int:
    steps = run["flags"].get("max_train_steps")
    if type(steps) is not int or steps < 1:
        raise ValueError(f"{run['name']} does not record its --max_train_steps: name runs of train_gpt.py.")
    return steps


def tokens_of(run: dict) -> float:
    return steps_of(run) * runs.number(run["config"].get("tokens_per_step"))


def about_length(members: list[dict]) -> dict:
    steps = steps_of(members[0])
    return {"x": steps, "steps": steps, "tokens": tokens_of(members[0])}


STEPS = "Steps", "right", lambda one: f"{one['steps']:,}"
TOKENS = "Tokens", "right", lambda one: f"{one['tokens'] / 1e6:,.4g} M"
LENGTH = Axis(
    one="length", many="lengths", more="The longer the training", unit="the steps",
    changes=frozenset({"max_train_steps", "warmdown_iters"}), key=steps_of, label=lambda steps: f"{steps:,} steps",
    about=about_length, figures=("steps", "tokens"), columns=(STEPS, TOKENS), advice="train or branch the same lengths",
    xlabel="optimizer steps of the run (log scale)", tick=lambda steps: f"{steps:,}")

# ----------------------------------------------------------------------------------------------------------------------
# the lengths


def by_length(arm: list[dict], axis: Axis) -> dict:
    """{what axis.key gives: runs}"""
    lengths: dict = {}
    for run in arm:
        lengths.setdefault(axis.key(run), []).append(run)
    return lengths


def read_lengths(arms: dict[str, list[dict]], axis: Axis, args) -> list[dict]:
    """The lengths that both arms have, ascending: {"key", "label", what axis.about gives, "checked" (of the gate),
    "members" (of its arms), "every" (the runs used), "metrics", "values" (per arm: metric -> seed -> number)} each."""
    own = {arm: by_length(members, axis) for arm, members in arms.items()}
    both = sorted(set(own["A"]) & set(own["B"]))
    if not both:
        have = "; ".join(f"{arm} has {in_order(lengths, axis)}" for arm, lengths in own.items())
        raise ValueError(f"no {axis.one} is in --a and in --b ({have}): {axis.advice}.")
    treatment = None
    if args.treatment is not None:
        treatment = ab_rows.names_in(args.treatment)
    lengths = []
    for key in both:
        of_length = {arm: runs_of[key] for arm, runs_of in own.items()}
        members = ab_gate.members_of(of_length)
        checked = ab_gate.gate(members, treatment, ab_rows.names_in(args.allow))
        checked |= ab_verdict.decided(args) | {"unfinished": ab_numbers.unfinished_arms(of_length)}
        used = [ab_numbers.finished(members) for members in of_length.values()]
        checked["missing"] += sum(map(ab_numbers.left_out, of_length.values()), [])
        every = [run for members in used for run in members]
        metrics = ab_numbers.metrics_of(every)
        _, values = ab_numbers.score_arms(used, metrics)
        lengths.append(axis.about(of_length["A"]) | {
            "key": key, "label": axis.label(key), "checked": checked, "members": members, "every": every,
            "metrics": metrics, "values": values})
    return sorted(lengths, key=lambda one: one["x"])  # a deeper network may be the smaller one


def in_order(keys, axis: Axis) -> str:
    return ", ".join(axis.label(key) for key in sorted(keys))


def compare(lengths: list[dict], axis: Axis, primary: str, margin: float, args) -> dict | None:
    """Gives every length its "row", the difference of the primary metric, judged together with the change per doubling,
    which is returned (see change_with_length). A length that is not comparable, or at which no run of an arm is
    finished, has no verdict."""
    metric = lengths[-1]["metrics"][primary]
    for one in lengths:
        if primary not in one["metrics"]:
            raise ValueError(f"{primary} is not scored at {one['label']}: score it there, or choose another "
                             "--primary.")
    refuse_unscored(lengths, primary)
    for one in lengths:
        rows = ab_numbers.compare_metrics(*one["values"], {primary: metric}, one["checked"], args.alpha)
        one["row"] = rows[primary]
    slope = change_with_length(lengths, axis, args.alpha)
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


def other_settings(lengths: list[dict], axis: Axis) -> list[str]:
    """In words, what differs between an arm's lengths besides the length: then a trend may be that setting's."""
    notes = []
    for arm in ("A", "B"):
        members = [member for one in lengths for member in one["members"][arm]]
        cadences = ab_gate.cadences_of(members)
        for name in dict.fromkeys(name for member in members for name in member["settings"]):
            users = [member for member in members if name not in member["unused"]]
            values = ab_proofs.distinct(member["settings"].get(name) for member in users)
            if len(values) > 1 and name not in axis.changes and name not in cadences:
                notes.append(f"{arm} is not the same at all {axis.many}: {name} "
                             f"{', '.join(map(ab_gate.short, values))}")
    return notes


def unequal_changes(lengths: list[dict], axis: Axis) -> list[str]:
    """In words, which of the numbers that follow the length do so otherwise in B than in A, as learning rates that were
    tuned at each length: the trend is that of both."""
    notes = []
    for name in sorted(axis.changes):
        values = []
        for one in lengths:
            pair = [member for arm in one["members"].values() for member in arm[:1]]
            is_unused = any(name in member["unused"] for member in pair)
            if not is_unused and not all(is_derived(member, name) for member in pair):
                values.append([runs.number(member["settings"].get(name)) for member in pair])
        ratios = [b / a for a, b in values if a and b]
        if ratios and max(ratios) > 1.01 * min(ratios):
            words = ", ".join(f"{a:g} and {b:g}" for a, b in values)
            notes.append(f"{name} follows the {axis.one} otherwise in B than in A ({words}): a trend may be its own")
    return notes


def is_derived(member: dict, name: str) -> bool:
    """Whether a setting is what it is by default, as an MLP's width, which swiglu rounds."""
    if name not in ab_gate.FOLLOWS:
        return False
    factor, base, _ = ab_gate.FOLLOWS[name]
    return ab_gate.is_multiple(member, name, factor, base)


def change_with_length(lengths: list[dict], axis: Axis, alpha: float) -> dict | None:
    """The seeds' changes of B - A per doubling of axis.unit against 0, as ab_numbers.difference. None where there is
    nothing to fit: fewer than two values of x, a length without a verdict, arms that differ between lengths in
    something else, no seed with a pair at all lengths."""
    if len({one["x"] for one in lengths}) < 2 or not all(map(is_tested, lengths)) or other_settings(lengths, axis):
        return None
    pairs = [one["row"]["pairs"] for one in lengths]
    seeds = sorted(set.intersection(*map(set, pairs)))
    if not seeds:
        return None
    doublings = np.log2([one["x"] for one in lengths])
    slopes = {seed: float(np.polyfit(doublings, [own[seed] for own in pairs], 1)[0]) for seed in seeds}
    row = ab_numbers.difference(dict.fromkeys(seeds, 0.0), slopes, alpha, lengths[0]["checked"]["looks"])
    # a seed without a number at some length may be the very one that went wrong: no verdict beside it
    row["lacking"] = sorted({seed for one in lengths for seed in one["row"]["lacking"]}, key=str)
    return row


# ----------------------------------------------------------------------------------------------------------------------
# the report

UNTESTED = ("Whether the effect changes with the {one} is not tested: that takes two or more {many}, comparable and "
            "finished, arms that are the same at all of them, and pairs of equal seed at all of them.")
ANSWERS = {  # verdict of the slope: what it says of the effect, in short and in a sentence
    "better": ("moves towards B", "{more}, the more the effect is in B's favour"),
    "worse": ("moves towards A", "{more}, the more the effect is in A's favour"),
    "equivalent": ("no trend", "The effect has no trend over the {many} that exceeds the margin per doubling"),
}
NOT_SHOWN = "change not shown", "Whether the effect changes with the {one} is not shown"


def answer_of(slope: dict | None, axis: Axis, unit: str) -> tuple[str, str]:
    """(what the slope says of the effect, in short, in a sentence)"""
    words = axis._asdict()
    if slope is None:
        return "not tested", UNTESTED.format(**words)
    word, sign, reserve = slope["verdict"].partition(", ")
    short, sentence = ANSWERS.get(word, NOT_SHOWN)
    sentence = sentence.format(**words)
    if reserve:  # of "better" and "worse"
        sentence += f"{sign}{reserve} per doubling"
    change = ab_report.form_change(slope, ".4f")
    return short, f"{sentence}: {change}, in {unit} per doubling of {axis.unit}; n = {slope['n']}."


def margin_in_words(margin: ab_verdict.Margin, axis: Axis) -> str:
    if not margin.value:
        return margin.words
    return f"{margin.words}; at each {axis.one} it bounds the difference, for the trend its change per doubling"


def picture(lengths: list[dict], axis: Axis, unit: str, alpha: float) -> list[tuple]:
    """Mean differences with their intervals, and each pair, over the axis."""
    drawn = [one for one in lengths if isinstance(one["row"]["delta"], float)]
    if not drawn:
        return []

    def draw(wide: bool):
        (plot,), save = ab_plots.canvas(ab_plots.WIDTH[wide], 2.8)
        plot.axhline(0, color="black", linewidth=1)
        for one in drawn:
            row, x = one["row"], one["x"]
            pairs = list(row["pairs"].values())
            plot.plot([x] * len(pairs), pairs, "o", markerfacecolor="none", color=ab_plots.BLUE, markersize=5)
            if isinstance(row["low"], float) and np.isfinite(row["low"]):
                plot.plot([x, x], [row["low"], row["high"]], color="black", linewidth=1.6)
            plot.plot(x, row["delta"], "D", color="black", markersize=5)
        plot.set_xscale("log", base=2)
        plot.minorticks_off()
        plot.set_xticks([one["x"] for one in drawn], [axis.tick(one["x"]) for one in drawn])
        plot.set(xlabel=axis.xlabel, ylabel=f"B - A\n{unit}")
        return save

    level = f"{100 * (1 - alpha):g} %"
    caption = (f"B - A at the end of each run, by {axis.one}. Diamond, bar: mean, {level} interval, uncorrected; "
               "circle: a pair.")
    return [("img", f"{axis.many}.png", caption, ab_plots.picture(draw))]


def remarks(arms: dict[str, list[dict]], lengths: list[dict], axis: Axis) -> list[str]:
    """What stands in the way of a comparison, or was left out of it."""
    notes, both = [], {one["key"] for one in lengths}
    for members in arms.values():
        alone = set(by_length(members, axis)) - both
        if alone:
            notes.append(f"{ab_rows.label_of(members)} alone has runs of {in_order(alone, axis)}: left out")
    notes += other_settings(lengths, axis) + unequal_changes(lengths, axis)
    for one in lengths:
        notes += [f"{one['label']}: seed {seed} has no number" for seed in one["row"]["lacking"]]
        trouble = ab_gate.trouble_of(one["checked"]) + one["checked"]["missing"]
        notes += [f"{one['label']}: {words}" for words in trouble]
    return notes


def report(args, axis: Axis, how_to_read: str) -> int:
    ab_report.check_out(args.out)
    arms = {"A": ab_rows.read_runs(args.a, "--a"), "B": ab_rows.read_runs(args.b, "--b")}
    twice = set.intersection(*({run["folder"].resolve() for run in members} for members in arms.values()))
    if twice:
        raise ValueError(f"{min(twice).name} is in --a and in --b: give each its own runs.")
    lengths = read_lengths(arms, axis, args)
    longest = lengths[-1]
    other_tokens = any(one["checked"]["other_tokens"] for one in lengths)
    primary = ab_verdict.primary_of(args.primary, {"other_tokens": other_tokens}, longest["metrics"])
    margin = ab_verdict.margin_of(args.delta, args.primary, primary, longest["every"])
    if ab_numbers.UNIT[primary] == "score":  # whether its items are enough to call arms equivalent is not asked here
        margin = ab_verdict.Margin(0.0, "none for a benchmark's score")
    slope = compare(lengths, axis, primary, margin.value, args)

    names = {arm: ab_rows.label_of(members) for arm, members in arms.items()}
    unit = ab_page.with_unit(primary)
    short, sentence = answer_of(slope, axis, unit)
    verdicts = "; ".join(f"{one['label']} {one['row']['verdict']}" for one in lengths)
    is_comparable = all(one["checked"]["ok"] for one in lengths)
    tests = max(one["row"]["tests"] for one in lengths)
    of_longest = {arm: by_length(members, axis)[longest["key"]] for arm, members in arms.items()}
    treatment = ab_page.treatment_in_words(of_longest, longest["checked"])
    blocks: list[tuple] = [
        ("h1", f"{names['B']} against {names['A']} by {axis.one}: {short}"),
        ("verdict", f"**{short}** · {sentence} By {axis.one}: {verdicts}.", short),
        ("p", f"{unit} at the end of each run. What was changed: {treatment}. {units.count(tests, 'test')}, "
              f"corrected together (Holm). Margin of equivalence: {margin_in_words(margin, axis)}."),
        ab_report.table([*axis.columns, *COLUMNS], lengths, args.alpha),
    ]
    if args.out:
        blocks += picture(lengths, axis, unit, args.alpha)
    notes = remarks(arms, lengths, axis)
    if notes:
        blocks.append(("ul", notes))
    row = longest["row"]
    blocks += [("p", ab_verdict.decided_in_words(longest["checked"], row["n"], row["paired"])),
               ("h2", "How to read this"), ("p", " ".join(how_to_read.split()))]
    record = {
        "mode": axis.many, "verdict": short, "headline": sentence, "primary": primary, "margin": margin.value,
        "margin_in_words": margin.words, "alpha": args.alpha, "treatment": longest["checked"]["treatment"],
        "arms": {arm: [str(run["folder"]) for run in members] for arm, members in arms.items()},
        axis.many: [{name: one[name] for name in axis.figures} | {"difference": one["row"], "gate": one["checked"]}
                    for one in lengths],
        "change_per_doubling": slope, "notes": notes}
    ab_report.publish(blocks, record, args.out)
    return 0 if is_comparable else 2


def main(argv=None, axis: Axis = LENGTH, prog: str = "lengths.py", description: str = __doc__) -> int:
    """What is compared over `axis`; the fourth paragraph of a description says how to read the report."""
    parser = flags.Parser(prog=prog, description=description)
    add = parser.add_argument
    add("--a", nargs="+", required=True, metavar="RUNS",
        help=f"the baseline's run folders, of all {axis.many}, or patterns")
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
    return report(args, axis, description.split("\n\n")[3])


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "lengths.py")
