"""rl_exam.py owns the exam of a GRPO run: its rows in a report, its records, and the means of the steps before it.

grpo.py holds it with eval_gsm8k.py, on problems that are never rewarded. A run's grpo_metrics.jsonl, grpo_items.jsonl
and step_metrics.json have it as they have a benchmark (layout: lab/runs.py), and config.json describes it.
"""

from lab import benchmarks, resume, training
from lab.answers import LITERAL_MUL

NAME, TITLE, CLUSTER = "grpo", "Held-out problems", "cluster"


def metrics_of(samples: int) -> list[tuple]:
    """(key, label, better, format) of the exam's rows in a report."""
    metrics = [("grpo_accuracy", f"{TITLE}, greedy accuracy", 1, ".4f")]
    if samples:
        metrics += [
            ("grpo_pass_at_1", f"{TITLE}, pass@1", 1, ".4f"),
            (f"grpo_pass_at_{samples}", f"{TITLE}, pass@{samples}", 1, ".4f"),
            (f"grpo_majority_at_{samples}", f"{TITLE}, majority at {samples}", 1, ".4f"),
            ("grpo_entropy", "Entropy of the samples (nats per token)", 0, ".4f")]
    metrics += [("grpo_mul_tokens", "Multiplication tokens per greedy answer", 0, ".3f"),
                ("grpo_stopped_by_itself", "Answers that end by themselves", 1, ".4f")]
    return metrics + [(f"grpo_{key}", label, 0, ".4f") for key, label in OF_TRAINING.items()]


OF_TRAINING = {  # fields of the steps since the exam before, whose means stand beside an exam
    "reward_mean": "Reward, mean of the last steps",
    "kl": "KL to the start, mean of the last steps",
    "length_mean": "Tokens per completion, mean of the last steps",
}


def since_last_exam(run: training.Run) -> dict:
    """{field of OF_TRAINING: its mean}, None before the first step."""
    every = resume.read_scalars(run.folder)
    before = max((record["step"] for record in every if record["type"] == "grpo"), default=0)
    steps = [r for r in every if r["type"] == "train" and r["step"] > before]
    means = dict.fromkeys(OF_TRAINING)
    for key in means:
        means[key] = benchmarks.mean([r[key] for r in steps if r[key] is not None])
    return means


def describe(items: list[dict], samples: int, sha256: str) -> dict:
    """The exam in config.json, from which compare_runs.py takes its rows. sha256: of the items."""
    compared = ["accuracy"]
    if samples:
        compared += dict.fromkeys(["pass_at_1", f"pass_at_{samples}", f"majority_at_{samples}"])
    return {
        "items": len(items),
        "sha256": sha256,
        "title": TITLE,
        "metrics": metrics_of(samples),
        "item_metrics": compared,
        "cluster": CLUSTER,
        "category": None,
    }


def record(run: training.Run, scores: dict, fields: dict) -> None:
    """Writes eval_gsm8k.evaluate_samples()'s scores of a step; fields: of training.evaluate."""
    if not run.procs.is_main:
        return
    metrics = dict(scores["metrics"])
    metrics |= metrics.pop("samples", {})
    found = [len(LITERAL_MUL.findall(item["completion"])) for item in scores["items"]]
    metrics |= {"mul_tokens": sum(found) / len(found), "n": len(found)}
    metrics |= since_last_exam(run)
    for key in ("train_seconds", "eval_seconds", "flops_total", "tokens_seen_global"):
        metrics[key] = fields[key]
    rows = metrics_of(run.args.exam_samples)
    shown = {key: metrics[key.removeprefix("grpo_")] for key, *_ in rows}
    logged = [key for key, value in shown.items() if value is not None]
    training.log_scores(run, "exam", shown, logged, fields)
    result = {"metrics": metrics, "items": scores["items"]}
    benchmarks.write_records(
        NAME, rows, run.folder, fields["step"], result, fields["timestamp"])
    run.scalars.write(type="grpo", **shown, **fields)
