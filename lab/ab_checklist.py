"""ab_checklist.py answers document 000's interpretation checklist from the numbers of an A/B.

    answers = checklist(rows, metrics, matched, primary, checked)     # rows: of ab_verdict.judge_metrics

Four questions, a sentence or two each: benchmark quality, stability, speed, discarded text. Nothing here is a test.
"""

from __future__ import annotations

from lab import ab_numbers, ab_page, ab_stats
from lab.ab_numbers import SHORT
from lab.ab_report import form, form_change

SUBJECTS = {"rows": "BOS alignment", "tokens": "the other tokens", "gate": "the attention gate"}
STEADINESS = {
    "loss_roughness": "sd of the loss's step-to-step change",
    "grad_norm_stability": "grad norm sd / mean",
    "grad_norm_spikes": "grad norm spikes",
}


def checklist(rows: dict, metrics: dict, matched: list, primary: str, checked: dict) -> list[str]:
    """Document 000's four questions, answered from the numbers."""

    def change(key: str, name: str) -> str:
        row, metric = rows[key], metrics[key]
        effect = form_change(row, metric.form)
        if not row["tests"]:  # as the table: no p beside what is only described
            effect = effect.split(", p ")[0]
        return f"{name} {effect} ({row['verdict']})"

    subject = SUBJECTS.get(checked["family"], "the treatment")
    scored = []
    for key in ab_numbers.ROWS_000:
        if key in metrics and metrics[key].benchmark and isinstance(rows[key]["delta"], float):
            scored.append(change(key, metrics[key].label))
    if not scored:
        why = {rows[key]["delta"] for key in ab_numbers.ROWS_000 if key in metrics and metrics[key].benchmark}
        reason = "; ".join(sorted(why - {"N/A: not run"})) or "N/A: not run"
        scored = [f"HellaSwag and EWoK {reason}, so the val loss alone speaks"]
    quality = "; ".join(scored)
    flops = matched[1]
    effect = f"{form_change(flops['row'], '.4f')}: {flops['verdict']}"
    steadiness = "; ".join(change(key, name) for key, name in STEADINESS.items())
    speed = change("tokens_per_sec", "tokens/s") + relative_speed(rows["tokens_per_sec"])
    answers = {
        f"Did {subject} improve benchmark quality at matched compute?":
            f"{quality}. At equal FLOPs ({flops['budget']}) {ab_page.with_unit(primary)} changes by "
            f"{effect}.",
        f"Did {subject} change optimization stability (loss smoothness, grad norms)?":
            f"{steadiness}.",
        "Was runtime throughput materially worse/better?": f"{speed}.",
        "Is any observed gain plausibly explained by data discard (`crop_fraction`)?":
            f"{discard(rows, primary)}. {data_read(rows)}.",
    }
    return [f"**{question}** {text[0].upper() + text[1:]}" for question, text in answers.items()]


def relative_speed(row: dict) -> str:
    """', -5.7 % [-5.8 %, -5.6 %]: materially worse ...': materially means by over 1 %."""
    if isinstance(row["delta"], str):
        return ""
    if isinstance(row["low"], str):
        return f", {100 * row['delta'] / row['a']:+.1f} %"
    change, low, high = (100 * row[key] / row["a"] for key in ("delta", "low", "high"))
    if row["n"] < ab_stats.MIN_RUNS:
        return f", {change:+.1f} % [{low:+.1f} %, {high:+.1f} %]: {ab_stats.too_few(row['n'])}"
    words = "the interval does not exclude 1 %"
    if high < -1:
        words = "materially worse (by over 1 %)"
    elif low > 1:
        words = "materially better (by over 1 %)"
    elif low > -1 and high < 1:
        words = "not materially (under 1 % either way)"
    return f", {change:+.1f} % [{low:+.1f} %, {high:+.1f} %]: {words}"


def discard(rows: dict, primary: str) -> str:
    """Whether a gain may come from text that an arm did not read."""
    crop = rows["crop_fraction"]
    a, b = (crop[side] if isinstance(crop[side], float) else 0.0 for side in "ab")
    if not max(a, b):
        return "No: no text was discarded in either arm"
    if not rows[primary]["verdict"].startswith("better"):
        change = f"{SHORT[primary]} {form_change(rows[primary], '.4f')}"
        return (f"There is no clear gain to explain ({change}), "
                f"though crop fraction is {a:.4f} in A and {b:.4f} in B")
    if b > a:
        return (f"It may be: {b:.1%} of B's text was discarded, {a:.1%} of A's, so B reads other "
                "text. An arm that discards nothing (prepare_bos_rows.py --overflow requeue) tells "
                "the two apart")
    return f"Hardly: A discards {a:.1%}, B {b:.1%}"


def data_read(rows: dict) -> str:
    sides = []
    for side in "ab":
        crop = form(rows["crop_fraction"][side], ".4f")
        unique = form(rows["unique_tokens"][side], ",.0f")
        epochs = form(rows["epochs"][side], ".3f")
        text = f"crop fraction {crop}, unique tokens {unique}, epochs {epochs}"
        sides.append(f"{side.upper()} {text}")
    return "; ".join(sides)
