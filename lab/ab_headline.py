"""ab_headline.py owns the first words of an A/B: the verdict in a sentence, what is missing, and what to do next.

    text = headline(rows["val_loss"], step, margin, checked, used, args)
    lines = summary(treatment, "val_loss", checked, allowed, margin, args)

A verdict that names no winner ends with the next command. checked: what ab_gate.gate() returns, and beside it
"planned" and "looks" (ab_verdict.decided), "unrecorded", "unfinished" (arms without a finished run) and "code_files".
"""

from __future__ import annotations

import math
import re

from lab import ab_gate, ab_numbers, ab_page, ab_proofs, ab_rows, ab_stats, runs
from lab.ab_numbers import SHORT, UNIT
from lab.ab_report import form_change
from lab.ab_verdict import Margin
from lab.units import count

NO_SETTINGS = ("Settings, data and code are not recorded, so that this is no evidence "
               "about any one change.")

# to leave out the seed would hide that the arm can diverge
TRAIN_ANEW = ("What diverged would do so again under `--resume auto`: train both arms anew with a lower "
              "`--learning_rate` or a longer `--warmup_iters`.")

# ----------------------------------------------------------------------------------------------------------------------
# the verdict in a sentence


def headline(row: dict, step: int | None, margin: Margin, checked: dict, used: list,
             args) -> str:
    """Verdict, effect, and everything that is missing. row: the primary metric's; step: of its scores."""
    name, verdict = SHORT[row["key"]], row["verdict"]
    effect = effect_of(row, step)
    text = f"{effect}."
    if verdict.startswith(("better", "worse")):
        word, sign, reserve = verdict.partition(", ")
        text = f"B is {word} than A{sign}{reserve}: {effect}."
    elif verdict == "not comparable":
        declared = None
        if args.treatment is not None:
            declared = ab_rows.names_in(args.treatment)
        trouble = "; ".join(ab_gate.trouble_of(checked))
        text = f"{trouble}. What follows is no evidence about a treatment."
        text += f" {next_steps(checked, declared)}"
    else:
        text += why_no_winner(row, checked, args)
    if verdict == "equivalent" or verdict.endswith("margin"):
        text += f" Margin: {margin.words}."
    if checked["looks"]:
        text += f" A look at {row['n']} of at most {checked['looks']}, decided beforehand."
    text += unchanged(checked)
    missing = [*checked["missing"], *(f"seed {seed} has no {name}" for seed in row["lacking"])]
    planned = max(runs.number(run["flags"].get("max_train_steps")) for arm in used for run in arm)
    if step is not None and step < planned:
        missing.append(f"step {step} is the last that all runs scored, of {planned:.0f}")
    text += missing_in_words(missing, text)
    if is_unrecorded(checked) and checked["ok"]:
        text += f" {NO_SETTINGS}"
    if checked["unrecorded"]:
        text += f" Comparable only as far as recorded.{ab_rows.in_words(checked['unrecorded'])}"
    return f"**{verdict}** · {text}"


def missing_in_words(missing: list[str], text: str) -> str:
    """' Missing: ...' of what the text does not say already."""
    left = [words for words in missing if words not in text]
    if not left:
        return ""
    return f" Missing: {'; '.join(left)}."


def effect_of(row: dict, step: int | None) -> str:
    """'val loss (nats/token) at step 40, 3 pairs: B - A = -0.0123 [-0.0140, -0.0106], p 0.0010'."""
    if not isinstance(row["delta"], float):
        return f"{SHORT[row['key']]} {row['delta']}"
    what, design = ab_page.with_unit(row["key"]), ab_numbers.design_of(row)
    if step is not None:
        what += f" at step {step}"
    return f"{what}, {design}: B - A = {form_change(row, '.4f')}"


def why_no_winner(row: dict, checked: dict, args) -> str:
    """Why a comparable A/B names none, and what to do next; "" where it is equivalent."""
    if checked.get("unfinished"):
        return " " + no_run_of(checked["unfinished"], checked)
    if row["n"] and row["verdict"] == ab_stats.too_few(row["n"]):
        return too_few_in_words(row)
    if row["verdict"] != "inconclusive":
        return ""
    if checked["planned"] not in (0, row["n"]):
        return f" {checked['planned']} were planned: no verdict at another number."
    if isinstance(row["delta"], str):
        return " Nothing is known yet: score the runs that lack it, and compare again."
    if row["lacking"]:
        return " A seed without a number may be the very one that went wrong."
    if row.get("of_items"):
        return f" {row['of_items']}"
    return f" These seeds do not tell the arms apart.{how_to_find_more(row, checked, args)}"


def too_few_in_words(row: dict) -> str:
    """What one seed or two can say, and how many would say more."""
    advice = f"Use at least {ab_stats.MIN_RUNS} seeds per arm"
    if row["stats"] is None:  # one seed has no spread
        return f" {advice}: fewer are no evidence."
    each = "pairs"
    if not row["paired"]:
        each = "runs in an arm"
    return (f" An interval from {row['n']} {each} is right only if such differences are normally distributed, "
            f"which {row['n']} cannot show, so that there is no verdict. {advice}; `--plan` says how many an "
            "effect needs.")


def no_run_of(names: list[str], checked: dict) -> str:
    listed = " or ".join(names)
    return (f"No run of {listed} is finished, so that there is no verdict. "
            f"{how_to_finish(checked, 'Finish them with `--resume auto`.')}")


def how_to_finish(checked: dict, advice: str) -> str:
    """What to do about unfinished runs. advice: about those that can go on; a diverged one cannot."""
    why = next((d["why"] for d in checked["differences"] if d["knob"] == "incomplete"), "")
    ends = why.split("; ")
    diverged = [end for end in ends if re.search(r": (its status is )?diverged\b", end)]
    if not diverged:
        return advice
    if len(diverged) == len(ends):
        return TRAIN_ANEW
    return f"{advice} {TRAIN_ANEW}"


def how_to_find_more(row: dict, checked: dict, args) -> str:
    """What these seeds could have found, and the way to find less."""
    smallest, looks, n = (row["stats"] or {}).get("mde", math.nan), checked["looks"], row["n"]
    text = ""
    if math.isfinite(smallest):
        unit = UNIT[row["key"]].replace("score", "of the score")
        found = f"{smallest:.2g} {unit}"
        text = f" The smallest difference that they find with {args.power:.0%} power is {found}."
    if looks > n:
        return f"{text} Next look: pair {n + 1}."
    if looks:
        text += " This was the last look."
    return f"{text} For a smaller one decide on more seeds, anew (`--plan`)."


def unchanged(checked: dict) -> str:
    """A sentence where runs of both arms have the very same losses."""
    end = ab_proofs.UNCHANGED
    pairs = [note.removesuffix(end) for note in checked["notes"] if note.endswith(end)]
    if not pairs:
        return ""
    more = count(len(pairs) - 1, "more pair")
    if len(pairs) > 1:
        pairs[0] += f", and so have {more}"
    return f" {pairs[0]}{end}."


def is_unrecorded(checked: dict) -> bool:
    """Whether a log of another project that records no settings is among the runs."""
    return any(d["knob"] == "unrecorded" for d in checked["differences"])


# ----------------------------------------------------------------------------------------------------------------------
# what to do about arms that are not comparable

NEXT = {  # fault -> what to do about it
    "incomplete": "Finish what is unfinished with `--resume auto`, or leave its seed out of `--a` "
                  "and `--b`.",
    "invalid_run": "Train what is invalid again, or leave its seed out of `--a` and `--b`.",
    "unverified_data": "Train with `--verify_data full`; if the files are whole: "
                       "`--allow unverified_data`.",
    "copied_run": "Leave the copies out.",
    "batch_checksums": "Train both arms on the same batches; if other ones do no harm: "
                       "`--allow batch_checksums`.",
    "treatment": "Train B with it, or leave out `--treatment`.",
}


def next_steps(checked: dict, declared: list[str] | None) -> str:
    """What to do next, a sentence for each kind of fault. declared: the names that --treatment gave, None: none."""
    faults = {d["knob"]: d for d in checked["differences"] if d["state"] == "differs"}
    settings = {name: d for name, d in faults.items() if name not in ab_gate.FAULTS}
    changed = [name for name, d in settings.items() if d.get("may_be_treatment")]
    changed = [name.replace("code_sha256", "code") for name in changed]
    advice = dict(NEXT)
    if "incomplete" in faults:
        advice["incomplete"] = how_to_finish(checked, NEXT["incomplete"])
    sentences = [advice[name] for name in faults if name in advice]
    sentences += seeds_and_logs(faults)
    if "treatment" in faults:  # what was declared does not differ
        declared = None
    if changed:
        sentences.append(what_to_declare(changed, declared))
    if "code" in changed:
        sentences.append("An edit of the code that changes nothing: `--allow code`.")
    mixed = [name for name, d in settings.items() if d["mixed"] and name not in ab_gate.STARTS]
    if mixed:
        sentences.append(f"Make {', '.join(mixed)} equal within each arm, or leave out the runs "
                         "that differ.")
    if any(name in ab_gate.STARTS for name in settings):
        sentences.append("If each run goes on from its own of the stage before: `--allow init`.")
    measures = [name for name in settings if name not in mixed and ab_gate.is_yardstick(name)]
    if measures:
        sentences.append("Score all runs on the same held-out text and items by the same rule; "
                         f"if it does no harm: `--allow {','.join(measures)}`.")
    return " ".join(sentences)


def seeds_and_logs(faults: dict[str, dict]) -> list[str]:
    if "unrecorded" in faults:
        names = [name for name in ("unrecorded", "seed") if name in faults]
        return [f"To look at them all the same: `--allow {','.join(names)}`."]
    if "seed" not in faults:
        return []
    if "twice" in faults["seed"]["why"]:
        return ["Give each arm one run of each seed."]
    if len(faults) == 1:
        return ["To compare these runs all the same: `--allow seed`."]
    return ["Train the seeds that an arm lacks, or `--allow seed`."]


def what_to_declare(changed: list[str], declared: list[str] | None) -> str:
    """Which --treatment to write: never all that differs, unless the user means it."""
    if declared:
        names = ",".join([*declared, *changed])
        return (f"If it belongs to what you test, add it: `--treatment {names}`; else make it "
                "equal in both arms.")
    if len(changed) == 1:
        return f"If it is what you test: `--treatment {changed[0]}`."
    return (f"Which of {', '.join(changed)} is what you test? Name it, and what belongs to it, "
            "with `--treatment`, and make the others equal in both arms.")


# ----------------------------------------------------------------------------------------------------------------------
# the treatment and the metric


def allowed_in_words(checked: dict) -> list[str]:
    sentences = []
    for d in checked["differences"]:
        if d["state"] == "allowed":
            detail = d["why"] if d["knob"] in ab_gate.FAULTS else ab_gate.by_arm(d["values"])
            sentences.append(f"{d['knob']}: {detail}")
    return sentences


def summary(treatment: str, primary: str, checked: dict, allowed: list, margin: Margin,
            args) -> list[str]:
    """The treatment (in words) and the primary metric, a sentence each."""
    if checked["treatment"]:
        how = "declared" if args.treatment else "recognised"
        treatment = f"{treatment} ({how})"
    elif is_unrecorded(checked):
        treatment = "not recorded"
    elif not checked["ok"]:
        treatment = "none declared or recognised among what differs"
    elif allowed:
        treatment = "none: the arms differ in nothing that counts but what --allow lets pass"
    else:
        treatment = "none: the arms differ in nothing that counts (an A/A)"
    because = ", as the arms' tokens differ" if checked["other_tokens"] and not args.primary else ""
    sentences = [
        f"Treatment: {treatment}.",
        f"Primary metric: {SHORT[primary]}{because}. Equivalence margin {margin.words}. "
        f"alpha {args.alpha:g}.",
    ]
    if allowed:
        sentences.append(f"Allowed by --allow: {'; '.join(allowed)}.")
    return sentences
