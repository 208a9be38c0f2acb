"""ab_page.py owns what a report shows a colleague first and last: what was compared, the main numbers, the way back.

    facts = facts_of({"A: base": runs_a, "B: test": runs_b}, checked)      # [("Data", "edu_web, 11.7M tokens"), ...]
    table = key_table(key_rows(rows, metrics, primary), names, alpha)
    blocks = last_screen(arms, command, out)                               # samples, commands, files

Words come from what the runs recorded, and what they did not record is left out. Nothing here is a test.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
from pathlib import Path

from lab import ab_composite, ab_gate, ab_report, ab_verdict, runs, shards, snapshots
from lab.ab_numbers import SHORT, UNIT, Metric
from lab.ab_report import form, form_interval, signed
from lab.terminal import one_line
from lab.units import count

LAST = "Samples, commands and files"  # heading of what belongs to one machine: committed tables leave it out

# ----------------------------------------------------------------------------------------------------------------------
# what was compared


def facts_of(arms: dict[str, list[dict]], checked: dict) -> list[tuple[str, str]]:
    """(name, words) of what differs and of what all runs share; arms: name -> runs."""
    every = [run for own in arms.values() for run in own]
    data = {arm: list(map(data_of, own)) for arm, own in arms.items()}
    facts = {
        "Changed": changed(arms, data, checked),
        "Data": data_fact(data),
        "Model": once(arms, model_in_words),
        "Training": ", ".join(filter(None, (once(arms, words) for words in TRAINING))),
        "Seeds": seeds_in_words(arms),
        "Date": dates_in_words(str(run["config"].get("started") or "")[:10] for run in every),
        "Hardware": once(arms, hardware_in_words),
    }
    return [(name, words) for name, words in facts.items() if words]


def facts_of_rows(arms: dict[str, list[dict]], checked: dict) -> list[tuple[str, str]]:
    """The same of rows of a results.csv (name of an arm -> rows), which record less."""
    every = [row for own in arms.values() for row in own]
    seeds = {arm: [str(row.get("seed", "")) for row in own] for arm, own in arms.items()}

    def cells(*names: str) -> str:
        parts = []
        for name in names:
            values = list(dict.fromkeys(str(row[name]) for row in every if row.get(name)))
            if values:
                parts.append(f"{name.replace('_', ' ')} {', '.join(values)}")
        return "; ".join(parts)

    facts = {
        "Changed": changed({}, {}, checked),
        "Data": cells("condition"),
        "Model": cells("parameters", "n_layer", "n_embd"),
        "Training": cells("num_iterations", "batch_size", "sequence_length"),
        "Seeds": seeds_of(seeds),
        "Date": dates_in_words(str(row.get("date") or "")[:10] for row in every),
        "Hardware": cells("n_gpus", "gpu_name"),
    }
    return [(name, words) for name, words in facts.items() if words]


def data_of(run: dict) -> dict:
    """What is known of a run's data: its own record and, where the folder still holds that data, its meta.json."""
    flags, data = run["flags"], dict(run["config"]["data"])
    if "dataset" not in data and flags.get("data_dir"):  # older runs
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            meta = json.loads((Path(flags["data_dir"]) / "meta.json").read_text(encoding="utf-8"))
            if meta["fingerprint"] == data["fingerprint"]:
                data |= {"dataset": shards.dataset_name(meta), "overflow": meta.get("overflow")}
    parts = Path(str(flags.get("data_dir") or "")).parts
    return data | {"folder": "/".join(parts[-2:] if parts[-1:] == ("data",) else parts[-1:])}


def once(arms: dict[str, list], words) -> str:
    """words(member) of every member, once where all agree: 'x', else 'x / y' by arm."""
    by_arm = {arm: list(dict.fromkeys(filter(None, map(words, own)))) for arm, own in arms.items()}
    return " / ".join(dict.fromkeys(" and ".join(own) for own in by_arm.values() if own))


def data_fact(data: dict[str, list[dict]]) -> str:
    """'edu_web, 11.7M / 11.6M tokens, 45 held-out documents'."""
    name, tokens = once(data, data_in_words), once(data, lambda own: amount(runs.number(own.get("tokens"))))
    parts = [name, tokens and f"{tokens} tokens"]
    for key, noun in (("conversations", "conversations"), ("val_documents", "held-out documents")):
        n = once(data, lambda own, key=key: amount(runs.number(own.get(key))))
        parts.append(n and f"{n} {noun}")
    return ", ".join(filter(None, parts))


def data_in_words(data: dict) -> str:
    return str(data.get("dataset") or data["folder"])


def model_in_words(run: dict) -> str:
    model, total = run["config"]["model"], runs.number(run["config"]["parameters"].get("total"))
    parts = [str(model["arch"])] if model.get("arch") else []
    parts += [f"{name} {model[name]}" for name in ab_gate.PARTS if model.get(name, "arch") != "arch"]
    if math.isfinite(total):
        parts.append(f"{amount(total)} parameters")
    if model.get("n_layer") and model.get("n_embd"):
        parts.append(f"{count(model['n_layer'], 'layer')} of width {model['n_embd']}")
    return ", ".join(parts)


def tokens_of_run(run: dict) -> str:
    steps, per_step = run["flags"].get("max_train_steps"), run["config"].get("tokens_per_step")
    tokens = amount(runs.number(steps) * runs.number(per_step))
    return tokens and f"{tokens} tokens"


def epochs_of_run(run: dict) -> str:
    epochs = runs.number(run["config"]["data"].get("epochs"))
    return f"{epochs:.3g} epochs" if math.isfinite(epochs) else ""


def flag_in_words(flag: str, words: str):
    """run -> `words` with a flag's value in it, or '' where the run has none."""

    def spell(run: dict) -> str:
        value = run["flags"].get(flag)
        return "" if value is None else words.format(value)

    return spell


TRAINING = (
    flag_in_words("max_train_steps", "{} steps"), tokens_of_run, epochs_of_run,
    flag_in_words("optimizer", "{}"), flag_in_words("learning_rate", "learning rate {}"),
)


def hardware_in_words(run: dict) -> str:
    hardware, n = run["config"]["hardware"], run["config"].get("world_size") or 1
    if hardware.get("gpu"):
        return f"{n} x {hardware['gpu']}"
    if not hardware.get("cpu"):
        return ""
    threads = hardware.get("torch_threads")
    each = count(threads, "thread") if isinstance(threads, int) else "threads not recorded"
    processes = f"{n} processes, " if n > 1 else ""
    return f"CPU {hardware['cpu']}, {processes}{each}"


def seeds_in_words(arms: dict[str, list[dict]]) -> str:
    return seeds_of({arm: list(map(seed_of, own)) for arm, own in arms.items()})


def seed_of(run: dict) -> str:
    if "log" in run and not run["flags"]:  # its seed is a number of ours
        return ""
    return str(run["seed"])


def seeds_of(seeds: dict[str, list[str]]) -> str:
    """'3 seeds per arm (0, 1, 2)', or each arm's where they differ. seeds: arm -> one per run, '' where unknown."""
    listed = {}
    for arm, own in seeds.items():
        known = sorted(set(own) - {""}, key=lambda seed: (len(seed), seed))
        names, unknown = [", ".join(known)], own.count("")
        if unknown:
            names.append(f"{count(unknown, 'run')} of unknown seed")
        listed[arm] = " and ".join(filter(None, names))
    if len(set(listed.values())) > 1:
        return "; ".join(f"{arm}: {own}" for arm, own in listed.items())
    own, words = next(iter(seeds.values())), next(iter(listed.values()))
    if not own:
        return "none is finished"
    if "" in own:
        return f"{words} per arm"
    return f"{count(len(set(own)), 'seed')} per arm ({words})"


def dates_in_words(dates) -> str:
    known = sorted(set(filter(None, dates)))
    return " to ".join(dict.fromkeys([*known[:1], *known[-1:]]))


def amount(x: float) -> str:
    """11,700,000 -> '11.7M'; '' for no number."""
    if not math.isfinite(x):
        return ""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if x >= size:
            return f"{x / size:.3g}{letter}"
    return f"{x:g}"


# what differs, in words: setting -> (what it is called, the words for a run's data; None: its value)
HASHES = ("data_fingerprint", "val_fingerprint_tokens", "val_fingerprint_documents", "init_sha256", "code_sha256")
CONDITIONS = {"baseline": "GPT-2's", "mul_tokens": "products as single tokens"}


CHANGED = {True: ("treatment", "allowed"), False: ("treatment", "allowed", "differs")}  # by whether arms compare


def rows_in_words(data: dict) -> str:
    form = str(data.get("format"))
    if form.startswith("bos_row"):
        overflow = data.get("overflow")
        return f"BOS rows, {overflow}" if overflow else "BOS rows"
    return form


def tokens_in_words(data: dict) -> str:
    condition = str(data.get("condition"))
    words = CONDITIONS.get(condition, condition)
    if data.get("tokenizer", "gpt2") != "gpt2":
        words = f"tokenizer {condition}"
    rate = runs.number(data.get("mul_token_rate"))
    return f"{words} ({rate:.2%} of the tokens)" if rate > 0 else words


OF_DATA = {  # settings that follow from the data are told together: setting -> (name, words)
    "data_format": ("rows", rows_in_words),
    "crop_fraction": ("rows", rows_in_words),
    "condition": ("tokens", tokens_in_words),
    "mul_token_rate": ("tokens", tokens_in_words),
}


def treatment_in_words(arms: dict[str, list[dict]], checked: dict) -> str:
    """What is the treatment, and not what --allow lets pass."""
    return changed(arms, {arm: list(map(data_of, own)) for arm, own in arms.items()}, checked, ("treatment",))


def changed(arms: dict, data: dict[str, list[dict]], checked: dict, states: tuple[str, ...] = ()) -> str:
    """'rows: stream → BOS rows, requeue; learning_rate: 0.001 → 0.002': the differences in one of these states; by
    default the treatment, and what else counts."""
    states = states or CHANGED[checked["ok"]]
    has_order = all(list(d["values"]) == ["A", "B"] for d in checked["differences"])
    between = {True: " → ", False: ", "}[has_order]
    words: dict[str, str] = {}
    hashes = []
    for d in checked["differences"]:
        name = d["knob"]
        if d["state"] not in states or name in ab_gate.FAULTS or name.endswith("_scorer"):
            continue
        if name in HASHES:
            hashes.append(name)
        elif name in OF_DATA and any(data.values()):
            name, spell = OF_DATA[name]
            words[name] = by_arm(data, spell, between)
        else:
            words[name] = joined(ab_gate.in_words(d["values"]).values(), between)
    if "data_fingerprint" in hashes and not {"rows", "tokens"} & words.keys():
        words["data"] = by_arm(data, data_in_words, between) or "other text"
    if "init_sha256" in hashes:
        words["start"] = by_arm(arms, start_in_words, between) or "other weights"
    if "code_sha256" in hashes:
        words["code"] = code_changes(arms) or "other versions"
    if not words and any(d["knob"] == "unrecorded" for d in checked["differences"]):
        return "not recorded"
    return "; ".join(f"{name}: {text}" for name, text in words.items()) or "nothing that counts"


def code_changes(arms: dict[str, list[dict]]) -> str:
    """The files that differ between the first two versions of the code among the runs, by the copies that they hold."""
    copies: dict[str, Path] = {}
    for run in [run for own in arms.values() for run in own]:
        code = (run["config"].get("code") or {}).get("code_sha256")
        copies.setdefault(code, run["folder"] / "code")
    firsts = list(copies.values())[:2]
    if len(firsts) < 2 or not all(folder.is_dir() for folder in firsts):
        return ""
    changes = snapshots.changed_files(*firsts)
    shown = ", ".join(changes[:6])
    return shown + (f" and {len(changes) - 6} more" if len(changes) > 6 else "")


def by_arm(arms: dict[str, list], words, between: str) -> str:
    return joined((once({arm: own}, words) for arm, own in arms.items()), between)


def joined(sides, between: str) -> str:
    return between.join(dict.fromkeys(side or "not recorded" for side in sides))


def start_in_words(run: dict) -> str:
    """The checkpoint that a run began from: 'base_s0/step_000500'."""
    init = run["config"].get("init")
    if not isinstance(init, dict):
        return "fresh weights"
    parts = Path(str(init.get("checkpoint") or init.get("folder") or "")).parts
    return "/".join(part for part in parts if part != "ckpt")[-60:].lstrip("/") or "a checkpoint"


def with_unit(metric: str) -> str:
    """'val loss (nats/token)', 'val bits/byte'."""
    name, unit = SHORT[metric], UNIT[metric]
    return name if unit in name or unit == "score" else f"{name} ({unit})"


# ----------------------------------------------------------------------------------------------------------------------
# the main numbers


def key_metrics(rows: dict, metrics: dict[str, Metric], primary: str) -> list[str]:
    """The primary metric, one more that is tested (a benchmark where one was run, all of them in one number where
    several were), and the speed."""
    tested = [key for key, row in rows.items() if row["family"] == "quality" and isinstance(row["delta"], float)]
    tested.sort(key=lambda key: (metrics[key].kind != "benchmark", key != ab_composite.KEY))
    return [primary, *tested[:1], "tokens_per_sec"]


def key_rows(rows: dict, metrics: dict[str, Metric], primary: str) -> list[dict]:
    """{"what", "a", "b", "delta", "interval", "reading"} of each, as text. rows: with their verdicts."""
    out = []
    for key in key_metrics(rows, metrics, primary):
        row, metric = rows[key], metrics[key]
        out.append({
            "what": metric.label.split(" @")[0],
            "a": form(row["a"], metric.form), "b": form(row["b"], metric.form),
            "delta": signed(row["delta"], metric.form),
            "interval": form_interval(row, metric.form, "_corrected", signed),
            "reading": row["verdict"].replace("described", ab_verdict.NOT_TESTED),
        })
        if row["tests"] > 1:
            out[-1]["interval"] += ", corrected"
    return out


def change_in_words(row: dict) -> str:
    if row["interval"].startswith("N/A"):
        return row["delta"]
    return f"{row['delta']} {row['interval']}"


def key_table(rows: list[dict], names: dict[str, str], alpha: float) -> tuple:
    fits = max(map(len, names.values())) <= 20  # in both heads or in none
    short = {arm: f"{arm}: {name}" if fits else arm for arm, name in names.items()}
    columns = [
        ("Main numbers", "left", lambda row: row["what"]),
        (short["A"], "right", lambda row: row["a"]),
        (short["B"], "right", lambda row: row["b"]),
        ("B - A, {level} interval", "right", change_in_words),
        ("Verdict", "left", lambda row: row["reading"]),
    ]
    return ("key", *ab_report.table(columns, rows, alpha)[1:])


def brief_of(first: str, rows: list[list[str]]) -> list[str]:
    """The few lines for a terminal: the verdict, and a line per row with its cells below each other."""
    first = one_line(first.replace("**", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  " + "  ".join(map(one_line, cells)).rstrip())
    return [first, *lines]


def brief_rows(rows: list[dict]) -> list[list[str]]:
    return [[row["what"], f"{row['a']} → {row['b']}", change_in_words(row), row["reading"]] for row in rows]


# ----------------------------------------------------------------------------------------------------------------------
# the way back: samples, commands, files


def last_screen(arms: dict[str, list[dict]], command: list[str], out: str | None) -> list[tuple]:
    """Samples that the runs recorded, the commands that repeat all this, and where the runs lie, as blocks."""
    blocks: list[tuple] = [("h2", LAST)]
    quotes = samples_of(arms)
    if quotes:
        blocks += [("p", "From the same prompts and seed:"), ("quotes", quotes)]
    else:
        blocks.append(("p", "Samples: the runs recorded none, as they do with --sample_every."))
    lines = ["# this report", shell(command)]
    every = [run["config"].get("code") or {} for own in arms.values() for run in own]
    codes = {code.get("code_sha256") for code in every}
    for arm, own in list(arms.items())[:8]:
        if own and not own[0].get("log"):  # what another project's log came from is not recorded
            lines += ["", f"# {one_line(arm)}, seed {own[0]['seed']}"]
            if len(codes) > 1:
                lines.append(f"# by its own code, which is in {one_line(own[0]['folder'] / 'code')}")
            lines.append(shell(training_command(own[0])))
    saved = [str(own[0]["folder"]) for own in arms.values() if own and runs.list_checkpoints(own[0]["folder"])]
    if len(saved) > 1:
        lines += ["", "# what the arms write, side by side"]
        lines.append(shell(["python", "sample.py", saved[0], "--compare", *saved[1:4], "--prompt", "The"]))
    blocks += [("p", "To repeat it:"), ("code", "\n".join(lines))]
    if out:
        blocks += [("p", "The runs' folders, and the numbers of this report:"), ("links", links_of(arms, out))]
    return blocks


SCRIPTS = {"conversations": "sft.py", "problems": "grpo.py"}  # by the format of their data


def training_command(run: dict) -> list[str]:
    argv = run["config"].get("argv")
    if isinstance(argv, list) and len(argv) > 1:
        return ["python", Path(str(argv[0])).name, *map(str, argv[1:])]
    script = SCRIPTS.get(run["config"]["data"].get("format"), "train_gpt.py")
    return ["python", script, "--config", str(run["folder"] / "config.json")]


def shell(command: list[str], width: int = 96) -> str:
    """A command for a shell, over several lines; a flag stays with its value."""
    lines, words = [], [one_line(shlex.quote(word)) for word in command]
    line = " ".join(words[:2])
    for group in re.split(r" (?=--)", " ".join(words[2:])):
        if len(line) + len(group) > width:
            lines.append(f"{line} \\")
            line = f"    {group}"
        else:
            line = f"{line} {group}".rstrip()
    return "\n".join([*lines, line])


def links_of(arms: dict[str, list[dict]], out: str) -> list[tuple]:
    links = []
    for arm, own in arms.items():
        links.append((arm, [os.path.relpath(run["folder"], out) for run in own]))
    return [*links, ("Numbers", ["report.json"]), ("This report as text", ["report.md"])]


def samples_of(arms: dict[str, list[dict]]) -> list[tuple[str, list[str]]]:
    """(arm and step, its last samples) of each arm's first run that recorded any, of a seed that all arms have."""
    seeds = [{run["seed"] for run in own} for own in arms.values() if own]
    common, quotes = set(), []
    if seeds:  # else no run is finished
        common = set.intersection(*seeds)
    for arm, own in list(arms.items())[:8]:
        for run in [run for run in own if run["seed"] in common] or own:
            samples = last_samples(run)
            if samples:
                step = samples[0]["step"]
                heading = f"{arm}, seed {run['seed']}, step {step}"
                quotes.append((heading, [sample_in_words(sample) for sample in samples[:3]]))
                break
    return quotes


def last_samples(run: dict) -> list[dict]:
    records = runs.read_jsonl(run["folder"] / "samples.jsonl", notes=[])
    samples = [r for r in records if isinstance(r.get("step"), int) and isinstance(r.get("text"), str)]
    last = max((sample["step"] for sample in samples), default=None)
    return [sample for sample in samples if sample["step"] == last]


def sample_in_words(sample: dict) -> str:
    text = f"{sample.get('prompt') or ''} … {sample['text']}"
    text = re.sub(r"\s*\n\s*", " ⏎ ", text).strip().removeprefix("… ")
    return text if len(text) <= 400 else f"{text[:400]} …"
