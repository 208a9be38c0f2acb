"""compare_runs.py owns the verdict: are two arms comparable, how much do they differ, and how sure is that?

    python compare_runs.py --a 'experiments/runs/base_s*' --b 'experiments/runs/bos_s*' --out report        # an A/B
    python compare_runs.py --a 'runs/none_s*' --b 'runs/gate_s*' --treatment attn_gate,gate_act             # declared
    python compare_runs.py --runs 'runs/*' --group_by attn_gate,gate_act --baseline attn_gate=none          # many arms
    python compare_runs.py --results experiments/results.csv --group_by attn_gate,gate_act \\
        --where num_iterations=1500,learning_rate=0.0036 --baseline attn_gate=none                          # a stage
    python compare_runs.py --aa 'runs/base_s*'                                  # noise floor of at least 4 seeds
    python compare_runs.py --check runs/mine_s0 --against 'runs/base_s*'        # is a newcomer's run in its band?
    python compare_runs.py --plan --effect 0.003 --noise 0.0013                 # how many seeds does that need?

Reads run folders (layout: runs.py) or a results.csv. Prints Markdown; --out FOLDER also gets report.md, report.json,
PNG plots and a report.html that needs no network. Exit status: 0 comparable (--check: in the band), 2 not comparable
(--check: outside), 1 bad input.

The gate comes first: what differs must be the treatment, else the verdict is `not comparable`. An attention gate, rows
or tokens that differ alone are recognised as the treatment. Anything else (an optimizer, a learning rate, a size) must
be declared with --treatment, because a forgotten flag looks just the same. --allow lets a named difference pass, and
the report says so. Seeds are the unit of every verdict (statistics: ab_stats.py); items and documents only add to it.
"""

from __future__ import annotations

import argparse
import csv
import glob
import json
import math
import os
import re
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy import special

from lab import ab_report, ab_stats

# ----------------------------------------------------------------------------------------------------------------------
# reading runs. runs.py, which writes these files, needs torch; a comparison does not, and must not stop at a torn line

TRAIN_FIELDS = ("step train_loss_opt_step_mean grad_norm_l2_preclip tokens_per_sec step_seconds "
                "peak_mem_bytes").split()
BIG = 2**25  # bytes of scalars.jsonl from which on two processes read faster than one (a second costs about 1 s)


def read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}): restore the file, or leave this run out.") from None


def read_jsonl(path: Path, notes: list[str], step: int | None = None) -> list[dict]:
    """Records of a JSONL file, [] when there is none. Lines that are no record are left out and told in `notes`.

    step: parse only lines that hold it (files with a line per item are read for one step alone).
    """
    wanted = step is not None and re.compile(rf'"step": *{step}\b')
    records, broken, line, count = [], [], "\n", 0
    if not path.exists():
        return records
    decode = json.JSONDecoder().raw_decode  # json.loads looks for encodings and spaces first, which doubles the time
    with open(path, encoding="utf-8", errors="replace") as f:
        for count, line in enumerate(f, 1):
            if wanted and not wanted.search(line):
                continue
            try:
                record, end = decode(line)
            except (ValueError, RecursionError):
                record, end = None, 0
            if isinstance(record, dict) and not line[end:].strip():
                records.append(record)
            else:
                broken.append(count)
    if broken and broken[-1] == count and not line.endswith("\n"):
        notes.append(f"{path.name}: the last line ({broken.pop()}) is torn and left out")
    if broken:
        notes.append(f"{path.name}: {len(broken)} broken lines are left out, the first is line {broken[0]}")
    return records


def number(value) -> float:
    """A JSON number as a float, NaN for everything else."""
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def numbers(values: list) -> np.ndarray:
    """number() of each."""
    try:
        array = np.array(values, dtype=float)  # None becomes NaN
    except (TypeError, ValueError, OverflowError):
        array = None
    return array if array is not None and array.ndim == 1 else np.array([number(value) for value in values])


def by_step(records: list[dict], name: str, notes: list[str]) -> dict[int, dict]:
    """{step: record}, ascending; a step told twice counts once, as last told."""
    table = {r["step"]: r for r in records if isinstance(r.get("step"), int) and 0 <= r["step"] < 2**53}
    if len(table) < len(records):
        notes.append(f"{name}: {len(records) - len(table)} records repeat a step or have none; the last told counts")
    return dict(sorted(table.items()))


def read_run(folder) -> dict:
    """One run: {"folder", "name", "config", "flags", "seed", "summary" (None: unfinished), "train" (field -> float
    array), "val", "hellaswag", "ewok" (step -> record), "gsm8k" (record or None), "notes" (faults of its files)}."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a run (no config.json): name folders that train_gpt.py wrote.")
    config = read_json(folder / "config.json")
    try:
        flags, seed = config["flags"], int(config["flags"]["seed"])
        config["data"]["fingerprint"], config["code"]["code_sha256"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{folder / 'config.json'} is not a run's record ({type(error).__name__}: {error}): name "
                         "folders that train_gpt.py wrote.") from None
    notes: list[str] = []
    for key in ("model", "parameters", "hardware", "versions"):
        if not isinstance(config.setdefault(key, {}), dict):
            notes.append(f"config.json: {key} is {json.dumps(config[key])[:40]} and counts as not recorded")
            config[key] = {}
    summary = None
    if (folder / "summary.json").exists():
        try:
            found = read_json(folder / "summary.json")
        except ValueError:
            found = None
        if isinstance(found, dict) and isinstance(found.get("results_row") or {}, dict) and isinstance(
                found.get("warnings") or [], list):
            summary = found
        else:
            notes.append("summary.json is broken, so the run counts as unfinished")
    kinds: dict = {}
    for record in read_jsonl(folder / "scalars.jsonl", notes):
        kinds.setdefault(record.get("type"), []).append(record)
    train = by_step(kinds.get("train", []), "scalars.jsonl, train", notes)
    val = by_step(kinds.get("val", []), "scalars.jsonl, val", notes)
    arrays = {key: numbers([r.get(key) for r in train.values()]) for key in TRAIN_FIELDS}
    for key, values in arrays.items():
        if len(bad := arrays["step"][~np.isfinite(values)]):
            notes.append(f"scalars.jsonl: {key} is no finite number at {len(bad)} steps, first at step {int(bad[0])}")
    notes += [f"scalars.jsonl: val_loss is no finite number at step {step}" for step, record in val.items()
              if not math.isfinite(number(record.get("val_loss")))]
    if (last := max(train, default=0)) < number((summary or {}).get("steps")):
        notes.append(f"scalars.jsonl ends at step {last} of {summary['steps']}")
    run = {"folder": folder, "name": folder.resolve().name, "config": config, "flags": flags, "seed": seed,
           "summary": summary, "train": arrays, "val": val, "notes": notes, "gsm8k": None}
    for kind in ("hellaswag", "ewok"):
        run[kind] = by_step(read_jsonl(folder / f"{kind}_metrics.jsonl", notes), f"{kind}_metrics.jsonl", notes)
    if (folder / "gsm8k_results.json").exists():
        if isinstance(found := read_json(folder / "gsm8k_results.json"), dict):
            run["gsm8k"] = found
        else:
            notes.append("gsm8k_results.json is broken, so GSM8K counts as not run")
    return run


def expand(patterns: list[str], flag: str) -> list[Path]:
    """Folders behind globs or paths, each once, 2 before 10. Files that a glob catches are passed over."""
    found: dict[Path, Path] = {}
    for pattern in patterns:
        if glob.has_magic(pattern) and not Path(pattern).exists():
            matches = [path for path in map(Path, glob.glob(pattern)) if path.is_dir()]
        else:
            matches = [Path(pattern)]
        if not matches:
            raise ValueError(f"{flag} {pattern!r} matches no folder: check the path (quote a pattern).")
        found |= {path.resolve(): path for path in matches}
    natural = lambda path: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", str(path))]
    return sorted(found.values(), key=natural)


def read_runs(folders: list[Path]) -> list[dict]:
    """Read runs, on two processes when their logs are big."""
    size = sum(log.stat().st_size for folder in folders if (log := folder / "scalars.jsonl").exists())
    if size < BIG or (os.cpu_count() or 1) < 2:
        return [read_run(folder) for folder in folders]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return list(pool.map(read_run, folders))


# ----------------------------------------------------------------------------------------------------------------------
# the gate

# decides no weight and no score, or is compared by what it leads to (fingerprints, scorers), not by its name
FREE = set("out_dir resume config name notes results_csv save_every keep_last log_every num_workers max_epochs "
           "condition data_dir val_data_dir hellaswag_data ewok_data verify_data sample_every sample_tokens "
           "eval_batch_size peak_flops device compile deterministic seed micro_batch_size wandb_project "
           "tensorboard".split())
DERIVED = {"block_size", "padded_vocab_size", "unused_ids"}  # of the model, from seq_len and vocab_size
OFF = (None, 0, "", "none", False)  # an older run that lacks a flag equals one that has it switched off
SCORERS = ("hellaswag_scorer", "ewok_scorer", "gsm8k_scorer")  # None: not run, which makes rows N/A, but nothing wrong
RECOGNISED = {  # treatments that need no declaration; a difference in the first knob says that this is what changed
    "gate": ("attn_gate", "gate_pos", "gate_act"),
    "rows": ("data_format", "crop_fraction", "data_fingerprint"),
    "tokens": ("condition", "mul_token_rate", "data_fingerprint", "val_fingerprint_tokens"),
}
FAMILIES = {  # names for several knobs in --treatment and --allow
    **RECOGNISED,
    "data": (*RECOGNISED["rows"], *RECOGNISED["tokens"]),
    "data_dir": (*RECOGNISED["rows"], *RECOGNISED["tokens"]),
    "condition": RECOGNISED["tokens"],
    "size": ("n_layer", "n_head", "n_embd", "n_inner"),
    "scorer": SCORERS,
}
FAULTS = ("treatment", "seed", "incomplete", "invalid_run", "batch_checksums")  # no settings: something is amiss
YARDSTICKS = {*FAULTS, "scorer", *SCORERS, "code_sha256", "val_fingerprint_documents", "val_documents",
              "val_tokens"}  # what measures, or what is broken: never a treatment


def knobs(run: dict) -> dict:
    """Everything that must be equal unless it is the treatment: flags, model, data, code, scorers."""
    config, data = run["config"], run["config"]["data"]
    found = {k: v for k, v in run["flags"].items() if k not in FREE}
    for key, value in config["model"].items():  # what was built, beside what was asked for
        if key not in DERIVED:
            found[key] = value if found.get(key, value) == value else f"{found[key]} (model: {value})"
    found |= {f"data_{k}": data.get(k) for k in ("fingerprint", "format")}
    found |= {k: data.get(k) for k in ("crop_fraction", "mul_token_rate", "val_fingerprint_documents",
                                       "val_fingerprint_tokens", "val_documents")}
    found["condition"] = data.get("condition") or run["flags"].get("condition")
    found["code_sha256"] = config["code"]["code_sha256"]
    found["init_sha256"] = config["init"].get("sha256") if isinstance(config.get("init"), dict) else None
    told = ("scorer", "n", "total", "bos", "dtype", "items_sha256", "data_sha256", "max_new_tokens", "temperature")
    last = {kind: next(reversed(run[kind].values()), None) for kind in ("hellaswag", "ewok")} | {"gsm8k": run["gsm8k"]}
    return found | {f"{kind}_scorer": ", ".join(f"{k} {r[k]}" for k in told if k in r) for kind, r in last.items() if r}


def machine(run: dict) -> dict:
    """What may differ without spoiling a loss, but spoils speeds."""
    config, found = run["config"], run["config"]["hardware"]
    return {**{k: found.get(k) for k in ("gpu", "cpu", "torch_threads")}, "world_size": config.get("world_size"),
            "torch": config["versions"].get("torch"),
            **{k: run["flags"].get(k) for k in ("compile", "deterministic")}}


def distinct(values) -> list:
    return list({json.dumps(v, sort_keys=True, default=str): v for v in values}.values())


def flat(values: dict[str, list]) -> list:
    return distinct(v for vs in values.values() for v in vs)


def shown(value) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[:8] + "…" if re.fullmatch(r"[0-9a-f]{32,}", text) else text


def says(values: dict[str, list]) -> str:
    """{"A": [1], "B": [2]} as '1 / 2', once where arms agree."""
    return " / ".join(distinct(" and ".join(map(shown, vs)) for vs in values.values()))


def gate(arms: dict[str, list[dict]], treatment: list[str] | None, allow: list[str], same_seeds: bool = True) -> dict:
    """What differs between and within arms, and whether it is the treatment.

    treatment: knobs or families that may differ; None: recognise one family. same_seeds: other seeds are a fault, not
    a note. Returns {"ok", "treatment" (in words), "family", "differences": [{"knob", "state" (treatment | differs |
    allowed | note), "values": {arm: [...]}, "why"}], "equal": {knob: value}, "notes", "missing", "other_machine",
    "other_tokens"}. ValueError for a name that is no knob.
    """
    members = [(arm, knobs(run)) for arm, runs_ in arms.items() for run in runs_]
    names = list(dict.fromkeys(name for _, k in members for name in k))
    check_names("--treatment", treatment or [], {*names, *FAMILIES} - YARDSTICKS)
    check_names("--allow", allow, {*names, *FAMILIES, *YARDSTICKS})
    members_of = lambda given: {k for name in given for k in FAMILIES.get(name, (name,))}
    declared, allowed = members_of(treatment or []), members_of(allow)

    differences, equal = [], {}
    for name in names:
        values = {arm: distinct(k.get(name) for a, k in members if a == arm) for arm in arms}
        found = [v for v in flat(values) if v is not None or name not in SCORERS]
        if len(found) == 1 or (None in found and all(v in OFF for v in found)):
            equal[name] = found[0]
        else:
            mixed = [arm for arm, vs in values.items() if len(vs) > 1]
            differences.append({"knob": name, "state": "differs", "values": values, "mixed": mixed,
                                "why": f"differs within {' and '.join(mixed)}" if mixed else ""})
    mark_consequences(differences, [k for _, k in members])
    changed = {d["knob"] for d in differences if d["state"] == "differs" and not d["mixed"]} - allowed
    family = next((name for name, family in RECOGNISED.items() if changed and changed <= set(family)
                   and (family[0] in changed or name == "rows" and "crop_fraction" in changed)), None)
    if treatment is None:
        declared = set(RECOGNISED.get(family, ()))
    for d in differences:
        if d["state"] != "differs":
            continue
        if d["knob"] in allowed:
            d.update(state="allowed", why=d["why"] or "by --allow")
        elif d["knob"] in declared and not d["mixed"]:
            d.update(state="treatment", why="recognised" if treatment is None else "declared")
        elif not d["why"]:
            d["why"] = ("not the declared treatment" if treatment is not None else
                        "not part of a recognised treatment; --allow it if it does no harm" if d["knob"] in YARDSTICKS
                        else f"not part of a recognised treatment; if it is what you test: --treatment {d['knob']}")
    if treatment and not changed & declared:
        differences.append(fault("treatment", allowed, {arm: ["equal"] for arm in arms},
                                 f"the declared treatment ({', '.join(treatment)}) does not differ"))
    found, notes, missing = check_runs(arms, allowed, same_seeds)
    differences += found

    machines = {name: {arm: distinct(machine(run)[name] for run in rs) for arm, rs in arms.items()}
                for name in machine(next(iter(arms.values()))[0])}
    others = [f"{name} ({says(values)})" for name, values in machines.items() if len(flat(values)) > 1]
    if others:
        notes.append(f"hardware or software differs: {'; '.join(others)}: speed, time and memory do not compare")
    micro = {arm: distinct(run["flags"].get("micro_batch_size") for run in rs) for arm, rs in arms.items()}
    if len(flat(micro)) > 1:
        notes.append(f"micro_batch_size differs ({says(micro)}), as it may: the tokens of a step do not depend on it; "
                     "speed and memory do, so they do not compare")
    words = "; ".join(f"{d['knob']} {says(d['values'])}" for d in differences if d["state"] == "treatment")
    return {"ok": not any(d["state"] == "differs" for d in differences), "family": family, "treatment": words,
            "differences": differences, "equal": equal, "notes": notes, "missing": missing,
            "other_machine": bool(others) or len(flat(micro)) > 1,
            "other_tokens": any(d["knob"] == "val_fingerprint_tokens" for d in differences)}


def check_names(flag: str, given: list[str], known: set[str]) -> None:
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"{flag} {', '.join(unknown)}: use {', '.join(sorted(known))}.")


def fault(knob: str, allowed: set, values: dict, why: str) -> dict:
    state = "allowed" if knob in allowed else "differs"
    return {"knob": knob, "state": state, "values": values, "mixed": [], "why": why}


def mark_consequences(differences: list[dict], every: list[dict]) -> None:
    """Turn differences that have no effect, or only follow from another one, into notes."""
    gated = [k for k in every if k.get("attn_gate") not in OFF]
    muon = [k for k in every if str(k.get("optimizer")).startswith("muon")]
    changed = {d["knob"] for d in differences}
    for d in differences:
        name = d["knob"]
        users = {"gate_pos": gated, "gate_act": gated, "muon_lr": muon, "muon_scale": muon}.get(name)
        if users is not None and len(distinct(k.get(name) for k in users)) < 2:
            d.update(state="note", why=f"only the arms with {'a gate' if users is gated else 'Muon'} use it")
        elif name == "muon_lr" and "learning_rate" in changed and all(
                math.isclose(number(k.get(name)), 0.1 * number(k.get("learning_rate"))) for k in every):
            d.update(state="note", why="is 0.1 x learning_rate")
        elif name == "n_inner" and "n_embd" in changed and all(
                k.get(name) == 4 * number(k.get("n_embd")) for k in every):
            d.update(state="note", why="is 4 x n_embd")


def check_runs(arms: dict[str, list[dict]], allowed: set, same_seeds: bool) -> tuple[list[dict], list[str], list[str]]:
    """Seeds, unfinished and invalid runs, equal batches: (faults, notes, what is missing, for the headline)."""
    faults, missing = [], []
    notes = [f"{run['name']}: {note}" for runs_ in arms.values() for run in runs_ for note in run["notes"]]
    seeds = {arm: [run["seed"] for run in runs_] for arm, runs_ in arms.items()}
    every = sorted(set().union(*seeds.values()))
    twice = [f"{arm} has seed {s} twice" for arm, ss in seeds.items() for s in every if ss.count(s) > 1]
    lacking = [f"{arm} lacks seed {', '.join(map(str, left))}" for arm, ss in seeds.items()
               if (left := [s for s in every if s not in ss])]
    missing += lacking
    if twice or lacking and same_seeds:
        faults.append(fault("seed", allowed, {arm: [", ".join(map(str, sorted(ss)))] for arm, ss in seeds.items()},
                            "; ".join(twice + lacking * same_seeds)))
    problems = {"incomplete": lambda run: "no summary.json, so it is unfinished or crashed" * (run["summary"] is None),
                "invalid_run": lambda run: " ".join(map(str, (run["summary"] or {}).get("warnings") or []))}
    for knob, problem in problems.items():
        bad = {arm: [run for run in runs_ if problem(run)] for arm, runs_ in arms.items()}
        if told := [f"{run['name']}: {problem(run)}" for runs_ in bad.values() for run in runs_]:
            missing += told
            which = {arm: [", ".join(run["name"] for run in runs_) or "none"] for arm, runs_ in bad.items()}
            faults.append(fault(knob, allowed, which, "; ".join(told)))
    first, *others = arms.values()
    wrong, unknown, proved = [], [], 0
    for run in (run for runs_ in others for run in runs_):
        twin = next((r for r in first if r["seed"] == run["seed"]), None)
        same = ("data_fingerprint", "seq_len", "total_batch_tokens", "data_order")
        if twin is None or any(knobs(twin).get(k) != knobs(run).get(k) for k in same):
            continue  # other batches by design, or by a difference that is named already
        step = first_other_batch(twin, run)
        wrong += [f"{twin['name']} and {run['name']} from step {step} on"] * bool(step)
        unknown += [f"{twin['name']} and {run['name']}"] * (step is None)
        proved += step == 0
    if wrong or unknown:
        why = [f"other tokens in {', '.join(wrong)}"] * bool(wrong)
        why += [f"exposures/ of {', '.join(unknown)} miss some or all steps, so equal batches cannot be proved"] * bool(
            unknown)
        faults.append(fault("batch_checksums", allowed, {arm: ["unequal" if wrong else "unknown"] for arm in arms},
                            "; ".join(why)))
    if proved:
        notes.append(f"{proved} pair{'s' * (proved > 1)} of runs read the same tokens at every step (checksums equal)")
    return faults, notes, missing


def first_other_batch(a: dict, b: dict) -> int | None:
    """The first step at which two runs read other tokens; 0: none up to the end of the shorter one; None: not recorded
    for every step of it."""
    paths = [run["folder"] / "exposures" / "exposures_rank0000.jsonl" for run in (a, b)]
    if not all(path.exists() for path in paths):
        return None
    read = lambda path: {step: r["checksum"] for r in read_jsonl(path, []) if isinstance(step := r.get("step"), int)
                         and step > 0 and r.get("checksum")}
    first = read(paths[0])
    tables = [first, first if paths[0].read_bytes() == paths[1].read_bytes() else read(paths[1])]
    common = set(tables[0]) & set(tables[1])
    if other := [step for step in common if tables[0][step] != tables[1][step]]:
        return min(other)
    # an unfinished run has made what it recorded
    made = np.min([number((run["summary"] or {}).get("steps", max(table, default=0)))
                   for run, table in zip((a, b), tables, strict=True)])
    return 0 if 0 < made <= sum(step <= made for step in common) else None


# ----------------------------------------------------------------------------------------------------------------------
# the numbers of a run

METRICS = (  # key, label (document 000's words and order first), better: -1 lower, +1 higher, 0 neither; format
    ("final_train_loss", "Final train loss (opt-step mean)", -1, ".4f"),
    ("val_loss", "Val loss @ matched step", -1, ".4f"),
    ("hellaswag_accuracy", "HellaSwag accuracy", 1, ".4f"),
    ("hellaswag_accuracy_norm", "HellaSwag accuracy_norm", 1, ".4f"),
    ("eval_official_sum", "EWoK official sum metric", 1, ".4f"),
    ("eval_official_mean", "EWoK official mean metric", 1, ".4f"),
    ("tokens_per_sec", "Tokens/sec (reported)", 1, ",.0f"),
    ("grad_norm_stability", "Grad norm stability", -1, ".4f"),
    ("crop_fraction", "Crop fraction (BOS only)", 0, ".4f"),
    ("val_bits_per_byte", "Val bits/byte", -1, ".4f"),
    ("val_loss_bos", "Val loss, bos view", -1, ".4f"),
    ("val_bits_per_byte_bos", "Val bits/byte, bos view", -1, ".4f"),
    ("hellaswag_accuracy_norm_bytes", "HellaSwag accuracy_norm_bytes", 1, ".4f"),
    ("hellaswag_accuracy_plain", "HellaSwag accuracy_plain", 1, ".4f"),
    ("eval_full_sum", "EWoK full sum metric", 1, ".4f"),
    ("eval_full_mean", "EWoK full mean metric", 1, ".4f"),
    ("eval_paper_sum", "EWoK paper sum metric", 1, ".4f"),
    ("eval_paper_mean", "EWoK paper mean metric", 1, ".4f"),
    ("gsm8k_accuracy", "GSM8K accuracy (strict)", 1, ".4f"),
    ("gsm8k_accuracy_flexible", "GSM8K accuracy (flexible)", 1, ".4f"),
    ("grad_norm_mean", "Grad norm, mean", 0, ".4f"),
    ("grad_norm_max", "Grad norm, max", -1, ".4f"),
    ("grad_norm_spikes", "Grad norm, spikes", -1, ".1f"),
    ("loss_roughness", "Loss smoothness (sd of step-to-step change)", -1, ".4f"),
    ("train_seconds", "Train seconds", -1, ",.1f"),
    ("eval_seconds", "Eval seconds", 0, ",.1f"),
    ("wall_seconds", "Wall-clock seconds (train + eval)", -1, ",.1f"),
    ("peak_mem_gb", "Peak memory (GB)", -1, ",.3f"),
    ("parameters", "Parameters", 0, ",.0f"),
    ("flops_total", "Training FLOPs", 0, ".4g"),
    ("tokens_seen", "Tokens seen", 0, ",.0f"),
    ("unique_tokens", "Unique tokens", 0, ",.0f"),
    ("epochs", "Epochs", 0, ".4f"),
)
LABEL, BETTER, FORMAT = ({m[0]: m[i] for m in METRICS} for i in (1, 2, 3))
FIXED = set("crop_fraction parameters flops_total tokens_seen unique_tokens epochs".split())  # set, not measured
PER_TOKEN = {"final_train_loss", "val_loss", "val_loss_bos"}  # means nothing between tokenisations
SPEED = {"tokens_per_sec", "train_seconds", "eval_seconds", "wall_seconds", "peak_mem_gb"}
OPTIONAL = {"gsm8k_accuracy", "gsm8k_accuracy_flexible"}  # a row only where some run has it
PRIMARY = ("val_loss", "val_bits_per_byte", "val_loss_bos", "val_bits_per_byte_bos")
UNIT = {key: "bits/byte" if "bits" in key else "nats/token" for key in PRIMARY}
SHORT = {key: LABEL[key].split(" @")[0].replace("Val", "val") for key in PRIMARY}
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


def common_step(runs_: list[dict], kind: str) -> int | None:
    """The last step scored by every one of these runs, but for those that scored nothing of the kind at all."""
    scored = [set(run[kind]) for run in runs_ if run[kind]]
    return max(set.intersection(*scored), default=None) if scored else None


def value_of(record: dict, key: str, reason: str):
    """A finite float, or why there is none (str)."""
    value = number(record.get(key))
    return value if math.isfinite(value) else "not a finite number" if record.get(key) is not None else reason


def scores(run: dict, steps: dict) -> dict:
    """Every metric of a run: a number, or the reason why there is none (str). steps: {"val": step or None, ...}."""
    config, data, train = run["config"], run["config"]["data"], run["train"]
    val = run["val"].get(steps["val"], {})
    late = "no step that all runs scored"
    out = {key: value_of(val, key, late if run["val"] and not val else "not a finite number" if key in val else
                         "not run") for key in PRIMARY}  # the trainer writes NaN as null
    for kind, prefixes in (("hellaswag", "hellaswag_"), ("ewok", ("eval_official", "eval_full", "eval_paper"))):
        record = run[kind].get(steps[kind], {})
        for key in (m[0] for m in METRICS if m[0].startswith(prefixes)):
            out[key] = value_of(record, key.removeprefix("hellaswag_"), late if run[kind] and not record else "not run")
    for key in OPTIONAL:
        out[key] = value_of(run["gsm8k"] or {}, key.removeprefix("gsm8k_"), "not run")

    last = steps["train"] if steps["val"] is None else steps["val"]
    inside = train["step"] <= last
    steady = inside & (train["step"] > number(run["flags"].get("warmup_iters")))
    keep = lambda key, where: train[key][where & np.isfinite(train[key])]
    loss, norm = train["train_loss_opt_step_mean"][inside], keep("grad_norm_l2_preclip", steady)
    speed, memory, changes = (keep("tokens_per_sec", inside), keep("peak_mem_bytes", inside),
                              np.diff(keep("train_loss_opt_step_mean", steady)))
    logged = {"final_train_loss": loss[-max(1, len(loss) // 50):].mean() if len(loss) else math.nan,
              "tokens_per_sec": np.median(speed) if len(speed) else math.nan,
              "grad_norm_stability": norm.std(ddof=1) / norm.mean() if len(norm) > 1 else math.nan,
              "grad_norm_mean": norm.mean() if len(norm) else math.nan,
              "grad_norm_max": norm.max() if len(norm) else math.nan,
              "grad_norm_spikes": spikes(norm) if len(norm) else math.nan,
              "loss_roughness": changes.std(ddof=1) if len(changes) > 1 else math.nan,
              "peak_mem_gb": memory.max() / 1e9 if len(memory) else math.nan,
              "train_seconds": number(val.get("train_seconds", train["step_seconds"][inside].sum()))}
    out |= {key: value_of(logged, key, "") if inside.any() else "no train records" for key in logged}
    evaluated = [r for kind in ("val", "hellaswag", "ewok") for step, r in run[kind].items() if step <= last]
    out["eval_seconds"] = float(sum(v for r in evaluated
                                    if math.isfinite(v := number(r.get("eval_seconds", r.get("seconds"))))))
    out["wall_seconds"] = (out["train_seconds"] if isinstance(out["train_seconds"], str) else
                           out["train_seconds"] + out["eval_seconds"])
    seen = last * number(config.get("tokens_per_step"))
    facts = {"parameters": config["parameters"].get("total"), "tokens_seen": seen,
             "flops_total": seen * number(config.get("flops_per_token")), "unique_tokens": data.get("unique_tokens"),
             "epochs": data.get("epochs")}
    out |= {key: v if math.isfinite(v := number(value)) else "not recorded" for key, value in facts.items()}
    crop = number(data.get("crop_fraction"))
    return out | {"crop_fraction": crop if math.isfinite(crop) else "not packed rows"}


def spikes(norm: np.ndarray, window: int = 50, factor: float = 3.0) -> int:
    """Steps whose value exceeds `factor` times the median of the `window` values before (at least 5)."""
    count = sum(int(norm[i] > factor * np.median(norm[:i])) for i in range(5, min(window, len(norm))))
    if len(norm) > window:
        medians = np.median(np.lib.stride_tricks.sliding_window_view(norm[:-1], window), axis=1)
        count += int((norm[window:] > factor * medians).sum())
    return count


def at_budget(run: dict, metric: str, axis: str, budget: float):
    """A run's val curve at a budget of `axis` (flops_total, train_seconds), linear between two evaluations; outside the
    scored range a reason (str), as nothing is extrapolated."""
    points = [(number(r.get(axis)), number(r.get(metric))) for r in run["val"].values()]
    points = sorted(p for p in points if all(map(math.isfinite, p)))
    if not points:
        return "not run"
    if not points[0][0] <= budget * (1 + 1e-12) or not budget <= points[-1][0] * (1 + 1e-12):
        return f"{run['name']} is scored from {points[0][0]:.4g} to {points[-1][0]:.4g}"
    return float(np.interp(budget, *zip(*points, strict=True)))


# ----------------------------------------------------------------------------------------------------------------------
# differences


def difference(a: dict, b: dict, alpha: float) -> dict:
    """B - A of one metric. a, b: seed -> number, or the reason why there is none (str).

    {"a", "sd_a", "b", "sd_b", "delta", "low", "high", "p", "n", "paired", "pairs" (seed -> delta), "used" (pairs, or
    runs of both arms), "lacking" (seeds whose number is missing), "stats" (what ab_stats said, or None)}; where a
    number cannot be had stands "N/A: reason".
    Pairs where seeds are common, else unpaired.
    """
    values = [{seed: v for seed, v in arm.items() if isinstance(v, float)} for arm in (a, b)]
    common = sorted(set(values[0]) & set(values[1]))
    if common:
        values = [{seed: arm[seed] for seed in common} for arm in values]
    xs, ys = (list(arm.values()) for arm in values)
    row = {"paired": bool(common), "pairs": {seed: values[1][seed] - values[0][seed] for seed in common},
           "n": min(len(xs), len(ys)), "used": len(common) or len(xs) + len(ys), "stats": None,
           "lacking": sorted(seed for seed in set(a) & set(b) or set(a) | set(b)
                             if isinstance(a.get(seed), str) or isinstance(b.get(seed), str))}
    for side, arm, known in (("a", a, xs), ("b", b, ys)):
        reason = next((v for v in arm.values() if isinstance(v, str)), "not run")
        row |= {side: statistics.fmean(known) if known else f"N/A: {reason}",
                f"sd_{side}": statistics.stdev(known) if len(known) > 1 else None}
    if not xs or not ys:
        return row | dict.fromkeys(("delta", "low", "high", "p"), row["b"] if xs else row["a"])
    row["delta"] = row["b"] - row["a"]
    if row["n"] < 2:
        return row | dict.fromkeys(("low", "high", "p"), "N/A: one seed")
    row |= {"values_a": xs, "values_b": ys}
    row["stats"] = found = (ab_stats.paired if common else ab_stats.unpaired)(xs, ys, alpha)
    return row | {"low": found["ci_low"], "high": found["ci_high"], "p": found["p"]}


def verdict_of(row: dict, args, p: float | None = None) -> str:
    """better | worse | equivalent | inconclusive, for a loss. p: adjusted, where it was."""
    if row["stats"] is None or row["lacking"]:  # seeds that have no number may be the very ones that went wrong
        return "inconclusive"
    return ab_stats.verdict(row["stats"] | ({} if p is None else {"p": p}), "lower", args.delta or None)


def compare_metrics(a: dict, b: dict, primary: str, checked: dict, alpha: float) -> dict[str, dict]:
    """{metric: difference(...)}, without what the gate forbids, all p but the primary's adjusted by Holm.
    a, b: metric -> seed -> number or reason."""
    rows = {key: difference(a[key], b[key], alpha) for key in LABEL}
    for key, row in rows.items():
        if key in FIXED:
            row |= dict.fromkeys(("low", "high", "p"), "N/A: fixed")
        elif key in PER_TOKEN and checked["other_tokens"] and isinstance(row["delta"], float):
            row |= dict.fromkeys(("delta", "low", "high", "p"), "N/A: other tokens, see bits/byte")
        elif key in SPEED and checked["other_machine"] and isinstance(row["delta"], float):
            row |= dict.fromkeys(("low", "high", "p"), "N/A: other hardware or software")
    tested = [k for k, row in rows.items() if k != primary and isinstance(row["p"], float) and math.isfinite(row["p"])]
    for key, p in zip(tested, ab_stats.holm([rows[k]["p"] for k in tested]), strict=True):
        rows[key] |= {"p_raw": rows[key]["p"], "p": float(p)}
    return rows


def form(value, spec: str) -> str:
    return value if isinstance(value, str) else f"{value:{spec}}"


def form_interval(row: dict, spec: str) -> str:
    if isinstance(row["low"], str):
        return row["low"]
    return f"[{row['low']:+{spec}}, {row['high']:+{spec}}]" if math.isfinite(row["low"]) else "N/A: no spread"


def form_p(p) -> str:
    if isinstance(p, str):
        return p
    return "N/A: no spread" if not math.isfinite(p) else f"{p:.4f}" if p >= 1e-4 else "< 0.0001"


def form_change(row: dict, spec: str) -> str:
    """'+0.0123 [+0.0100, +0.0146], p 0.0010', or why there is none."""
    if isinstance(row["delta"], str):
        return row["delta"]
    if isinstance(row["low"], str):
        return f"{row['delta']:+{spec}} (no interval: {row['low'].removeprefix('N/A: ')})"
    return f"{row['delta']:+{spec}} {form_interval(row, spec)}, p {form_p(row['p'])}"


def metric_table(rows: dict[str, dict], alpha: float) -> tuple:
    """Document 000's table, then ours."""
    body = []
    for key, row in rows.items():
        if key in OPTIONAL and isinstance(row["a"], str) and isinstance(row["b"], str):
            continue
        spec = FORMAT[key]
        sd = {s: "" if row[f"sd_{s}"] is None or key in FIXED else f" ± {row[f'sd_{s}']:{spec}}" for s in "ab"}
        gap = f" ({row['used']} of {row['used'] + len(row['lacking'])} {'seeds' if row['paired'] else 'runs'})"
        body.append([LABEL[key], *(form(row[s], spec) + sd[s] for s in "ab"), form(row["delta"], f"+{spec}")
                     + gap * bool(row["lacking"] and isinstance(row["delta"], float)),
                     form_interval(row, spec), form_p(row["p"])])
    header = ["Metric", "A mean ± sd", "B mean ± sd", "Delta", f"{100 * (1 - alpha):g} % interval", "p"]
    return "table", header, body, {0}


def matchings(arms: list[list[dict]], step: int | None, metric: str, checked: dict, args) -> list[dict]:
    """The primary metric of arms [A, B] at equal steps, FLOPs and training seconds: {"name", "budget", "row",
    "verdict"} each. The budget is what the cheapest run spent; costlier runs are read off their val curve at it."""
    found = []
    for name, axis, text in (("equal steps (tokens)", "step", "step {:.0f}"),
                             ("equal FLOPs", "flops_total", "{:.6g} FLOPs"),
                             ("equal wall-clock (training)", "train_seconds", "{:,.1f} s")):
        spent = [max((number(r.get(axis)) for r in run["val"].values()), default=math.nan)
                 for arm in arms for run in arm]
        budget = number(step) if axis == "step" else min(spent, default=math.nan)
        if math.isfinite(budget):
            read = lambda run, axis=axis, budget=budget: (
                value_of(run["val"].get(step, {}), metric, "not run") if axis == "step" else
                at_budget(run, metric, axis, budget))
        else:
            read = lambda run: "not run"
        row = difference(*({run["seed"]: read(run) for run in arm} for arm in arms), args.alpha)
        if axis == "train_seconds" and checked["other_machine"] and isinstance(row["delta"], float):
            row |= dict.fromkeys(("low", "high", "p"), "N/A: other hardware or software") | {"stats": None}
        found.append({"name": name, "row": row, "verdict": verdict_of(row, args) if checked["ok"] else "not comparable",
                      "budget": text.format(budget) if math.isfinite(budget) else "N/A: not run"})
    return found


def matching_table(matched: list[dict], alpha: float) -> tuple:
    body = [[m["name"], m["budget"], form(m["row"]["a"], ".4f"), form(m["row"]["b"], ".4f"),
             form(m["row"]["delta"], "+.4f"), form_interval(m["row"], ".4f"), m["verdict"]] for m in matched]
    header = ["Matching", "Budget", "A", "B", "Delta", f"{100 * (1 - alpha):g} % interval", "Verdict"]
    return "table", header, body, {0, 1, 6}


# ----------------------------------------------------------------------------------------------------------------------
# items and documents

ITEM_METRICS = {"hellaswag": ("accuracy", "accuracy_norm", "accuracy_norm_bytes"),
                "ewok": ("official_sum", "official_mean", "paper_sum", "paper_mean")}


def documents(pairs: list[tuple[dict, dict]], step: int | None, alpha: float) -> list[dict] | str:
    """Bits/byte of these checkpoints with an interval over documents: would they differ as much on others of the kind?

    A row per view, or why there is none (str). Ratio of sums, mean over pairs; its standard error from the linearised
    residual of each document (a document is a cluster of tokens).
    """
    if step is None or not pairs:
        return "not run" if step is None else "no pair of equal seed"
    try:
        data = [[read_documents(run["folder"] / f"val_documents_{step:06d}.npz") for run in pair] for pair in pairs]
    except FileNotFoundError:
        return f"no val_documents file of step {step}"
    except ValueError as error:
        return str(error)
    if len({(d["doc_hash"], len(d["stream_nats"])) for pair in data for d in pair}) > 1:
        return "the runs scored other documents"
    rows = []
    for view in ("stream", "bos"):
        if not all(f"{view}_nats" in side for pair in data for side in pair):
            continue
        ratios, parts = [], []
        for side in (0, 1):
            nats, size = (np.mean([pair[side][f"{view}_{k}"] for pair in data], axis=0) for k in ("nats", "bytes"))
            bits = nats / math.log(2)
            ratios.append(float(bits.sum() / size.sum()) if size.sum() > 0 else math.nan)
            parts.append((bits - ratios[-1] * size) / max(size.sum(), 1))
        n = int((size > 0).sum())
        if n < 2 or not all(map(math.isfinite, ratios)):
            continue
        delta = ratios[1] - ratios[0]
        error = math.sqrt(n / (n - 1) * ((parts[1] - parts[0]) ** 2).sum())
        half = float(special.stdtrit(n - 1, 1 - alpha / 2)) * error
        rows.append({"what": f"Val bits/byte, {view} view", "a": ratios[0], "b": ratios[1], "delta": delta,
                     "low": delta - half, "high": delta + half, "n": f"{n} documents x {len(pairs)}",
                     "how": "documents, for these checkpoints"})
    return rows or "no finite number"


def read_documents(path: Path) -> dict:
    """{"stream_nats": (documents,), ..., "doc_hash": bytes}; fine-tuning has no "bos_...". ValueError: damaged."""
    try:
        with np.load(path) as f:
            names = [f"{view}_{k}" for view in ("stream", "bos")[: 1 + ("bos_nats" in f)] for k in ("nats", "bytes")]
            table = np.stack([f[name].astype(float) for name in names]).reshape(len(names), -1)
            hashes = f["doc_hash"].tobytes() if "doc_hash" in f else b""
        return {**dict(zip(names, table, strict=True)), "doc_hash": hashes}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged file
        raise ValueError(f"{path.parent.name}/{path.name} is broken ({type(error).__name__}: {error})") from None


def items(pairs: list[tuple[dict, dict]], steps: dict, alpha: float) -> tuple[list[dict], list[str]]:
    """Benchmarks item by item: (rows as documents() gives them, reasons for what is missing)."""
    rows, reasons = [], []
    for kind, title in (("hellaswag", "HellaSwag"), ("ewok", "EWoK")):
        step = steps[kind]
        if step is None or not pairs:
            reasons.append(f"{title} items: N/A: {'not run' if step is None else 'no pair of equal seed'}")
            continue
        read = [[read_items(run, kind, step) for run in pair] for pair in pairs]
        ids = sorted(set.intersection(*(set(table) for pair in read for table in pair)))
        most = max(len(table) for pair in read for table in pair)
        if len(ids) < most or not ids:
            reasons.append(f"{title} items: {len(ids)} of {most} at step {step} are in every run's file"
                           + ("; N/A: not recorded" if not ids else "; the others are left out"))
        if not ids:
            continue
        clusters = [str(read[0][0][i].get("cluster", i)) for i in ids]
        categories = [str(read[0][0][i].get("category")) for i in ids] if kind == "ewok" else None
        for metric in ITEM_METRICS[kind]:
            a, b = (np.array([[credit_of(pair[side][i], metric) for i in ids] for pair in read]) for side in (0, 1))
            if bad := int((~np.isfinite([a, b])).sum()):
                reasons.append(f"{title} items, {metric}: N/A: {bad} of {a.size + b.size} credits are no finite number")
                continue
            rows.append({"what": f"{title} {metric}", "n": f"{len(ids)} items x {len(pairs)}",
                         **item_row(a, b, clusters, categories, alpha)})
    return rows, reasons


def item_row(a: np.ndarray, b: np.ndarray, clusters: list, categories: list | None, alpha: float) -> dict:
    """Credit (pairs, items) of both arms as a row; with one pair its items alone, and McNemar's test."""
    mean = lambda x: float(x.mean() if categories is None else statistics.fmean(
        x[:, [c == name for c in categories]].mean() for name in set(categories)))
    try:
        boot = ab_stats.hierarchical_bootstrap(a, b, clusters, categories, alpha=alpha)
    except ValueError as error:  # a single cluster
        return {"a": mean(a), "b": mean(b), "delta": mean(b) - mean(a), "low": f"N/A: {error}", "high": "N/A",
                "how": "N/A"}
    row = {"a": mean(a), "b": mean(b), "delta": boot["delta"], "clusters": boot["n_clusters"], "stats": boot}
    if len(a) > 1:
        return row | {"low": boot["ci_low"], "high": boot["ci_high"], "p": boot["p"],
                      "how": f"seeds and {boot['n_clusters']} clusters of items"}
    test = ab_stats.mcnemar(a[0], b[0])
    return row | {"low": boot["ci_items_low"], "high": boot["ci_items_high"], "p": test["p"], "mcnemar": test,
                  "how": f"{boot['n_clusters']} clusters of items, for these two checkpoints; McNemar {test['b']} "
                         f"against {test['c']} items, p {form_p(test['p'])}"}


def read_items(run: dict, kind: str, step: int) -> dict[str, dict]:
    """{item id: record} of one evaluation; a run repeats every item at every evaluation, so other lines are skipped."""
    records = read_jsonl(run["folder"] / f"{kind}_items.jsonl", [], step)
    return {str(r["id"]): r for r in records
            if r.get("step") == step and "id" in r and isinstance(r.get("credit"), dict)}


def credit_of(record: dict, metric: str) -> float:
    return number(record["credit"].get(metric, record["credit"].get(f"eval_{metric}")))


# ----------------------------------------------------------------------------------------------------------------------
# two arms


def finished(runs_: list[dict]) -> list[dict]:
    """The runs that a statistic uses: the finished ones (all, when none is), the first of each seed."""
    chosen = [run for run in runs_ if run["summary"] is not None] or runs_
    return list({run["seed"]: run for run in reversed(chosen)}.values())[::-1]


def score_arms(arms: list[list[dict]]) -> tuple[dict, list[dict]]:
    """(the step compared for each kind of record, per arm: metric -> seed -> number or reason)."""
    every = [run for arm in arms for run in arm]
    steps: dict = {kind: common_step(every, kind) for kind in ("val", "hellaswag", "ewok")}
    steps["train"] = min((int(max(run["train"]["step"], default=0)) for run in every), default=0)
    tables = [{run["seed"]: scores(run, steps) for run in arm} for arm in arms]
    return steps, [{key: {seed: row[key] for seed, row in table.items()} for key in LABEL} for table in tables]


def primary_of(args, checked: dict) -> str:
    """The metric of the verdict. ValueError for one that means nothing between the arms' tokens."""
    primary = args.primary or ("val_bits_per_byte" if checked["other_tokens"] else "val_loss")
    if primary in PER_TOKEN and checked["other_tokens"]:
        raise ValueError(f"--primary {primary} counts nats per token, but the arms' tokens differ or are not all "
                         f"recorded: use --primary {primary.replace('val_loss', 'val_bits_per_byte')}.")
    return primary


def compare_two(args) -> int:
    """--a and --b: the gate, the table, the matchings, the verdict."""
    arms = {"A": read_runs(expand(args.a, "--a")), "B": read_runs(expand(args.b, "--b"))}
    if shared := set.intersection(*({run["folder"].resolve() for run in runs_} for runs_ in arms.values())):
        raise ValueError(f"{', '.join(sorted(p.name for p in shared))} is in --a and in --b: give each its own runs.")
    checked = gate(arms, names_in(args.treatment), names_in(args.allow) or [])
    primary = primary_of(args, checked)
    used = [finished(runs_) for runs_ in arms.values()]
    common = {run["seed"] for run in used[0]} & {run["seed"] for run in used[1]}
    if common:
        used = [[run for run in arm if run["seed"] in common] for arm in used]
    pairs = [(a, b) for a in used[0] for b in used[1] if a["seed"] == b["seed"]]
    steps, values = score_arms(used)
    rows = compare_metrics(*values, primary, checked, args.alpha)
    row = rows[primary]
    verdict = verdict_of(row, args) if checked["ok"] else "not comparable"
    matched = matchings(used, steps["val"], primary, checked, args)
    extra, reasons = items(pairs, steps, args.alpha) if args.items else ([], ["Items: N/A: left out (--no_items)"])
    by_document = documents(pairs, steps["val"], args.alpha)
    if isinstance(by_document, str):
        reasons.append(f"Documents: N/A: {by_document}")
    else:
        extra = by_document + extra
    sure, answers = strength(row, primary, args), checklist(rows, matched, primary, checked, args.alpha)
    names = {arm: label_of(runs_) for arm, runs_ in arms.items()}
    allowed = [f"{d['knob']}: {d['why'] if d['knob'] in FAULTS else says(d['values'])}" for d in checked["differences"]
               if d["state"] == "allowed"]
    head = headline(verdict, row, primary, checked, steps, used)

    treatment = checked["treatment"] or (
        "none declared or recognised among what differs" if not checked["ok"] else
        "none: the arms differ in nothing that counts" + (" but what --allow lets pass" if allowed else " (an A/A)"))
    blocks: list[tuple] = [
        ("h1", f"{names['B']} against {names['A']}: {verdict}"), ("verdict", head, verdict),
        ("ul", [f"A: `{names['A']}`, {seeds_of(arms['A'])}. B: `{names['B']}`, {seeds_of(arms['B'])}.",
                f"Treatment: {treatment}" + (" (declared)" if args.treatment else " (recognised)") * bool(
                    checked["treatment"]) + ".",
                f"Primary metric: {SHORT[primary]}" + (", as the arms' tokens differ" * checked["other_tokens"])
                + f". Equivalence margin {args.delta:g} {UNIT[primary]}. alpha {args.alpha:g}.",
                *[f"Allowed by --allow: {'; '.join(allowed)}."] * bool(allowed)]),
        ("h2", "Result"), metric_table(rows, args.alpha),
        ("h2", f"At equal cost: {SHORT[primary]} ({UNIT[primary]})"), matching_table(matched, args.alpha),
        ("p", "At a budget the costlier run is read off its val curve, linearly between two evaluations. Its learning "
              "rate is not down at its end there, which counts against it: a run of that length would be fairer."),
        ("h2", "How sure"), ("ul", sure), ("h2", "Items and documents"),
        ("p", "Seeds decide the verdict. These intervals show what depends on the items and documents asked.")]
    if extra:
        body = [[r["what"], form(r["a"], ".4f"), form(r["b"], ".4f"), form(r["delta"], "+.4f"),
                 form_interval(r, ".4f"), r["n"], r["how"]] for r in extra]
        blocks.append(("table", ["What", "A", "B", "Delta", f"{100 * (1 - args.alpha):g} % interval", "n x pairs",
                                 "Interval over"], body, {0, 6}))
    blocks += [("ul", reasons)] * bool(reasons) + [("h2", "Interpretation checklist"), ("ul", answers)]
    if args.out:
        blocks += [("h2", "Plots"), *pictures({f"{arm}: {names[arm]}": u for arm, u in zip("AB", used, strict=True)},
                                              rows, primary, args.alpha)]
    blocks += [*gate_blocks(checked), ("h2", "How to read this"), ("ul", list(DEFINITIONS))]
    record = {"mode": "a/b", "verdict": verdict, "headline": head, "primary": primary, "margin": args.delta,
              "alpha": args.alpha, "treatment": checked["treatment"], "allowed": allowed,
              "arms": {arm: [str(run["folder"]) for run in runs_] for arm, runs_ in arms.items()},
              "seeds_used": [[run["seed"] for run in arm] for arm in used], "steps": steps, "gate": checked,
              "metrics": rows, "matchings": matched, "how_sure": sure, "items_and_documents": extra,
              "not_available": reasons, "checklist": answers}
    ab_report.publish(blocks, record, args.out)
    return 0 if checked["ok"] else 2


def strength(row: dict, primary: str, args) -> list[str]:
    """What the pairs of seeds could see, and what they would need."""
    found, unit = row["stats"], UNIT[primary]
    if found is None:
        return [f"{row['n']} {'pair' if row['paired'] else 'run'}{'s' * (row['n'] != 1)} with a {SHORT[primary]}: no "
                "spread, so no interval, no test and no verdict. Use at least 3 seeds per arm."]
    number_of = lambda x, spec: f"{x:{spec}}" if math.isfinite(x) else "N/A"
    each = "pairs" if row["paired"] else "runs per arm"
    needed = "N/A" if found["degenerate"] else ab_stats.n_needed(args.delta, found["sd_diff"], args.alpha, args.power,
                                                                 row["paired"]) if args.delta else "N/A"
    lines = [f"Exact sign-flip p {form_p(found['p_sign_flip'])} (with {row['n']} pairs it cannot be below "
             f"{2 / 2 ** row['n']:.4g}); it assumes no normal distribution." if row["paired"] else
             f"Seeds do not match: Welch's test; permutation p {form_p(found['p_permutation'])}.",
             *[f"Correlation of the arms over seeds: {number_of(found['correlation'], '.2f')} (N/A below 3 pairs); sd "
               f"of a pair's difference {found['sd_diff']:.5f} {unit}."] * row["paired"],
             f"With {row['n']} {each} the smallest difference found with {args.power:.0%} power is "
             f"{number_of(found['mde'], '.5f')} {unit}.",
             f"A true difference as large as the observed one needs {number_of(found['n_for'], '.0f')} {each}; one of "
             f"the margin {args.delta:g} needs {needed}."]
    if args.delta:
        same = ab_stats.equivalence(row["values_a"], row["values_b"], args.delta, args.alpha, row["paired"])
        lines.append(f"Equivalence within ± {args.delta:g} (two one-sided tests): p {form_p(same['p'])}.")
    if found["degenerate"]:
        lines.append("All pairs differ by exactly the same amount: no spread to estimate an interval from.")
    return lines


def headline(verdict: str, row: dict, primary: str, checked: dict, steps: dict, used: list[list[dict]]) -> str:
    """Verdict, effect, and everything that is missing."""
    trouble = [f"{d['knob']} ({d['why'] if d['knob'] in FAULTS or d['mixed'] else says(d['values'])})"
               for d in checked["differences"] if d["state"] == "differs"]
    if isinstance(row["delta"], float):
        count = f"{row['n']} {'pair' if row['paired'] else 'unpaired seed'}{'s' * (row['n'] != 1)}"
        effect = (f"B - A = {form_change(row, FORMAT[primary])} in {SHORT[primary]} ({UNIT[primary]}) at step "
                  f"{steps['val']}, {count}")
    else:
        effect = f"{SHORT[primary]} {row['delta']}"
    words = {"better": f"B is better than A: {effect}.", "worse": f"B is worse than A: {effect}.",
             "not comparable": f"{'; '.join(trouble)}. What follows is no evidence about a treatment."}.get(
                 verdict, f"{effect}.")
    if verdict == "inconclusive" and isinstance(row["delta"], float):
        words += (" One seed is no evidence: run more." if row["n"] < 2 else " A seed without a number may be the very "
                  "one that went wrong." if row["lacking"] else " These seeds do not tell the arms apart.")
    missing = [*checked["missing"], *(f"seed {s} has no {SHORT[primary]}" for s in row["lacking"])]
    planned = max(number(run["flags"].get("max_train_steps")) for arm in used for run in arm)
    if steps["val"] is not None and steps["val"] < planned:
        missing.append(f"step {steps['val']} is the last that all runs scored, of {planned:.0f}")
    return f"**{verdict}** · {words}" + (f" Missing: {'; '.join(missing)}." if missing else "")


def says_direction(row: dict, key: str, alpha: float) -> str:
    """What may be said of B by the p that stands in the table, which Holm's correction may have raised."""
    if isinstance(row["p"], str) or row["lacking"]:
        return "cannot be said"
    if not row["p"] < alpha:
        return "no clear change"
    return "changed" if not BETTER[key] else "better" if BETTER[key] * row["delta"] > 0 else "worse"


def checklist(rows: dict, matched: list[dict], primary: str, checked: dict, alpha: float) -> list[str]:
    """Document 000's four questions, answered from the numbers."""
    subject = {"rows": "BOS alignment", "tokens": "the other tokens", "gate": "the attention gate"}.get(
        checked["family"], "the treatment")
    told = lambda key, name: f"{name} {form_change(rows[key], FORMAT[key])} ({says_direction(rows[key], key, alpha)})"
    flops = matched[1]
    benchmarks = "hellaswag_accuracy hellaswag_accuracy_norm eval_official_sum eval_official_mean".split()
    quality = "; ".join(told(k, LABEL[k]) for k in benchmarks if isinstance(rows[k]["delta"], float))
    quality = quality or "HellaSwag and EWoK N/A: not run, so the val loss alone speaks"
    answers = [(f"Did {subject} improve benchmark quality at matched compute?",
                f"{quality}. At equal FLOPs ({flops['budget']}) {SHORT[primary]} changes by "
                f"{form_change(flops['row'], '.4f')} {UNIT[primary]}: {flops['verdict']}.")]
    stability = (("loss_roughness", "sd of the loss's step-to-step change"),
                 ("grad_norm_stability", "grad norm sd / mean"), ("grad_norm_spikes", "grad norm spikes"))
    answers.append((f"Did {subject} change optimization stability (loss smoothness, grad norms)?",
                    "; ".join(told(*entry) for entry in stability) + "."))
    speed = rows["tokens_per_sec"]
    words = told("tokens_per_sec", "tokens/s")
    if isinstance(speed["delta"], float) and isinstance(speed["low"], float):
        change, low, high = (100 * speed[k] / speed["a"] for k in ("delta", "low", "high"))
        words += f", {change:+.1f} % [{low:+.1f} %, {high:+.1f} %]: " + (
            "materially worse (by over 1 %)" if high < -1 else "materially better (by over 1 %)" if low > 1 else
            "not materially (under 1 % either way)" if low > -1 and high < 1 else "the interval does not exclude 1 %")
    elif isinstance(speed["delta"], float):
        words += f", {100 * speed['delta'] / speed['a']:+.1f} %"
    answers.append(("Was runtime throughput materially worse/better?", words + "."))
    crop = {side: v if isinstance(v := rows["crop_fraction"][side], float) else 0.0 for side in "ab"}
    read = "; ".join(f"{side.upper()} crop fraction {form(rows['crop_fraction'][side], '.4f')}, unique tokens "
                     f"{form(rows['unique_tokens'][side], ',.0f')}, epochs {form(rows['epochs'][side], '.3f')}"
                     for side in "ab")
    if not max(crop.values()):
        words = "No: no text was discarded in either arm"
    elif says_direction(rows[primary], primary, alpha) != "better":
        words = (f"There is no clear gain to explain ({SHORT[primary]} {form_change(rows[primary], FORMAT[primary])}), "
                 f"though crop fraction is {crop['a']:.4f} in A and {crop['b']:.4f} in B")
    elif crop["b"] > crop["a"]:
        words = (f"It may be: {crop['b']:.1%} of B's text was discarded, {crop['a']:.1%} of A's, so B reads other "
                 "text. An arm that discards nothing (prepare_bos_rows.py --overflow requeue) tells the two apart")
    else:
        words = f"Hardly: A discards {crop['a']:.1%}, B {crop['b']:.1%}"
    answers.append(("Is any observed gain plausibly explained by data discard (`crop_fraction`)?", f"{words}. {read}."))
    return [f"**{question}** {answer[0].upper() + answer[1:]}" for question, answer in answers]


def gate_blocks(checked: dict) -> list[tuple]:
    arms = list(checked["differences"][0]["values"]) if checked["differences"] else []
    body = [[d["knob"], *(" and ".join(map(shown, d["values"][arm])) or "not used" for arm in arms), d["state"],
             d["why"] or d["state"]] for d in checked["differences"]]
    blocks: list[tuple] = [("h2", "Is it a fair comparison?"), ("p", "What differs:" if body else "Nothing differs.")]
    if body:
        blocks.append(("table", ["Knob", *arms, "State", "Why"], body, set(range(len(arms) + 3))))
    equal = ", ".join(f"{name} {shown(value)}" for name, value in sorted(checked["equal"].items()) if value not in OFF)
    return [*blocks, *[("p", f"Equal in every run: {equal}.")] * bool(equal),
            *[("ul", checked["notes"])] * bool(checked["notes"])]


def curve_points(runs_: list[dict], metric: str, axis: str) -> list[list[tuple[float, float]]]:
    """Per run [(x, y)] at the steps, but for 0, that all of the arm's runs scored."""
    points = lambda run, step: (number(run["val"][step].get(axis)), number(run["val"][step].get(metric)))
    steps = [step for step in sorted(set.intersection(*(set(run["val"]) for run in runs_))) if step > 0 and all(
        math.isfinite(v) for run in runs_ for v in points(run, step))] if runs_ else []
    return [[points(run, step) for step in steps] for run in runs_]


def curves(arms: dict[str, list[dict]], metric: str) -> list[tuple]:
    blocks = []
    for axis, name, x_label, caption in (
            ("step", "val_curves.png", "optimizer steps", "optimizer steps"),
            ("train_seconds", "val_wall_clock.png", "training time (seconds)", "training time")):
        points = {arm: curve_points(runs_, metric, axis) for arm, runs_ in arms.items()}
        if png := ab_report.plot_curves(points, x_label, f"{SHORT[metric]} ({UNIT[metric]})"):
            blocks.append(("img", name, f"Held-out loss against {caption}: mean, and band from the lowest to the "
                                        "highest seed", png))
    return blocks


def pictures(arms: dict[str, list[dict]], rows: dict, primary: str, alpha: float) -> list[tuple]:
    """The plots of an A/B as blocks."""
    blocks, row = curves(arms, primary), rows[primary]
    mean = (row["delta"], row["low"], row["high"]) if isinstance(row["low"], float) else None
    if png := ab_report.plot_pairs(row["pairs"], mean, f"B - A in {SHORT[primary]} ({UNIT[primary]}); below 0, B is "
                                      "better", f"mean, {100 * (1 - alpha):g} %"):
        blocks.append(("img", "paired_differences.png", "Difference within each pair of equal seed", png))
    kind_of = lambda key: ("losses" if key in {*PRIMARY, *PER_TOKEN} else "benchmarks"
                           if key.startswith(("hellaswag", "eval_", "gsm8k")) and key != "eval_seconds"
                           else "stability and cost")
    forest: dict[str, list] = {"losses": [], "benchmarks": [], "stability and cost": []}
    for key, r in rows.items():
        if isinstance(r["low"], float) and math.isfinite(r["low"]) and r["a"]:
            forest[kind_of(key)].append({"label": LABEL[key].split(" (")[0].split(" @")[0], "better": BETTER[key],
                                         "said": says_direction(r, key, alpha),
                                         **{k: 100 * r[k] / abs(r["a"]) for k in ("delta", "low", "high")}})
    if png := ab_report.plot_forest(forest):
        blocks.append(("img", "forest.png", "Every measured metric: change in percent of A, with its interval. Better, "
                       "worse and changed go by the table's p, which Holm's correction may have raised", png))
    return blocks or [("p", "N/A: nothing to draw.")]


def names_in(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def label_of(runs_: list[dict]) -> str:
    """What an arm's folders are called: base_s0, base_s1 -> base."""
    stem = os.path.commonprefix([re.sub(r"[_-]s(eed)?\d+$", "", run["name"]) for run in runs_])
    return stem.rstrip("_-") or "runs"


def seeds_of(runs_: list[dict]) -> str:
    seeds = sorted(run["seed"] for run in runs_)
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


# ----------------------------------------------------------------------------------------------------------------------
# many arms: the stage tables of document 003

FLAG_OF = {"num_iterations": "max_train_steps", "sequence_length": "seq_len", "batch_size": "total_batch_tokens",
           "device_batch_size": "micro_batch_size"}  # results.csv's names of train_gpt.py's flags
CONDITIONS = ("attn_gate gate_pos gate_act learning_rate muon_lr batch_size sequence_length num_iterations "
              "warmdown_iters arch optimizer condition n_layer n_embd data_fingerprint val_fingerprint").split()


def read_results(path: str) -> list[dict]:
    """Rows of a results.csv. ValueError when it is none."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            rows = [{k.strip(): v.strip() for k, v in row.items() if k and isinstance(v, str)}
                    for row in csv.DictReader(f)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--results {path} cannot be read ({error}): name a results.csv.") from None
    if not any("final_val_loss" in row for row in rows):
        raise ValueError(f"--results {path} has no rows with a column final_val_loss: name a results.csv that "
                         "train_gpt.py wrote.")
    return rows


def row_of(run: dict) -> dict:
    """A run's folder as a row: its flags, its data, document 003's columns, and the run itself."""
    data = run["config"]["data"]
    return {**run["flags"], **{k: data.get(k) for k in ("condition", "crop_fraction", "mul_token_rate")},
            **{f"data_{k}": data.get(k) for k in ("format", "fingerprint")},
            **{column: run["flags"].get(flag) for column, flag in FLAG_OF.items()},
            "batch_size": int(tokens / length) if (tokens := number(run["flags"].get("total_batch_tokens"))) > 0 and (
                length := number(run["flags"].get("seq_len"))) > 0 else None,  # in sequences, as in results.csv
            **((run["summary"] or {}).get("results_row") or {}), "run_id": run["name"], "run": run}


def cell_number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def cell_text(value) -> str:
    """One spelling per value: 3.6e-3, '0.00360' and 0.0036 are '0.0036'."""
    x = cell_number(value)
    return f"{x:.12g}" if math.isfinite(x) else "" if value is None else str(value)


def conditions_in(text: str | None, flag: str) -> dict[str, str]:
    """'a=1,b=x' -> {"a": "1", "b": "x"}."""
    wanted = {}
    for part in names_in(text) or []:
        name, sign, value = part.partition("=")
        if not sign or not name.strip():
            raise ValueError(f"{flag} {part!r}: write column=value, with commas between.")
        if name.strip() in wanted:
            raise ValueError(f"{flag} gives {name.strip()} twice: a row has one value per column.")
        wanted[name.strip()] = cell_text(value.strip())
    return wanted


def minutes(ms: float) -> str:
    """609,100 ms -> '10m 9.1s', as document 003 writes it."""
    tenths = round(ms / 100)
    return f"{tenths // 600}m {tenths % 600 / 10:.1f}s"


def compare_many(args) -> int:
    """--group_by over run folders (--runs) or over results.csv (--results)."""
    columns, where = names_in(args.group_by), conditions_in(args.where, "--where")
    if not columns:
        raise ValueError("--group_by is empty: name columns, for example --group_by attn_gate,gate_act.")
    rows = read_results(args.results) if args.results else [row_of(r) for r in read_runs(expand(args.runs, "--runs"))]
    known = {key for row in rows for key in row} - {"run"}
    check_names("--group_by", columns, known)
    check_names("--where", list(where), known)
    rows = [row for row in rows if all(cell_text(row.get(k)) == v for k, v in where.items())]
    if not rows:
        raise ValueError(f"--where {args.where} leaves no run: give values that occur.")
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(cell_text(row.get(k)) for k in columns), []).append(row)
    order = lambda group: [(not math.isfinite(x := cell_number(v)), x if math.isfinite(x) else 0, v) for v in group]
    groups = {group: groups[group] for group in sorted(groups, key=order)}
    named = {", ".join(f"{k}={v or '(empty)'}" for k, v in zip(columns, group, strict=True)): members
             for group, members in groups.items()}

    if args.runs:
        checked = gate_of_folders(named, columns, args)
    else:
        checked = gate_of_rows(named, columns, args)
    primary = primary_of(args, checked)
    arms, missing = [], list(checked["missing"])
    for arm, members in named.items():
        done = [row for row in members if not args.runs or row["run"]["summary"] is not None]
        values = [x if math.isfinite(x := cell_number(row.get(f"final_{primary}"))) else f"no final_{primary}"
                  for row in done]
        missing += [f"{row.get('run_id') or 'a row'} ({arm}) has {v}" for row, v in zip(done, values, strict=True)
                    if isinstance(v, str)]
        seeds = [cell_text(row.get("seed")) for row in done]
        if "" in seeds or len(set(seeds)) < len(seeds):
            seeds = [f"{arm} row {i}" for i in range(len(done))]  # unknown or double seeds: nothing to pair by
        arms.append({"name": arm, "rows": done, "by_seed": dict(zip(seeds, values, strict=True)),
                     "losses": [v for v in values if isinstance(v, float)],
                     "times": [t for row, v in zip(done, values, strict=True) if isinstance(v, float)
                               and math.isfinite(t := cell_number(row.get("train_time_ms")))]})
    body = [[*group, len(arm["losses"]),
             f"{statistics.fmean(arm['losses']):.4f}" if arm["losses"] else f"N/A: no final_{primary}",
             minutes(statistics.fmean(arm["times"])) if arm["times"] else "N/A: not recorded"]
            for group, arm in zip(groups, arms, strict=True)]
    stage = ("table", [*columns, "seeds", "final_loss", "train_time"], body, set(range(len(columns))))

    baseline, compared = None, []
    if args.baseline:
        wanted = conditions_in(args.baseline, "--baseline")
        check_names("--baseline", list(wanted), set(columns))
        fits = [arm for group, arm in zip(groups, arms, strict=True)
                if all(group[columns.index(k)] == v for k, v in wanted.items())]
        if len(fits) != 1:
            raise ValueError(f"--baseline {args.baseline} fits {len(fits)} arms: choose one of {'; '.join(named)}.")
        baseline = fits[0]
        compared = [compare_arm(baseline, arm, primary, checked, args) for arm in arms if arm is not baseline]
        tested = [e["row"] for e in compared if isinstance(e["row"]["p"], float) and math.isfinite(e["row"]["p"])]
        for row, p in zip(tested, ab_stats.holm([row["p"] for row in tested]), strict=True):
            row["p_holm"] = float(p)
        for e in compared:
            e["verdict"] = verdict_of(e["row"], args, e["row"].get("p_holm")) if checked["ok"] else "not comparable"

    trouble = [f"{d['knob']} ({d['why'] if d['knob'] in FAULTS else ', '.join(map(shown, flat(d['values'])))})"
               for d in checked["differences"] if d["state"] == "differs"]
    allowed = [d["knob"] for d in checked["differences"] if d["state"] == "allowed"]
    word = "comparable" if checked["ok"] else "not comparable"
    if trouble:
        told = f"{'; '.join(trouble)}: choose a stage with --where column=value, or --allow it."
    elif compared:
        told = f"against {baseline['name']}: " + "; ".join(f"{e['name']} {e['verdict']}" for e in compared) + "."
    else:
        told = "name the --baseline for differences and verdicts."
    head = (f"**{word}** · {told}" + f" Missing: {'; '.join(missing)}." * bool(missing)
            + f" Allowed by --allow: {', '.join(allowed)}." * bool(allowed))
    blocks: list[tuple] = [("h1", f"{len(named)} arms by {', '.join(columns)}" + f" ({args.where})" * bool(where)),
                           ("verdict", head, word), stage,
                           ("p", f"final_loss: {SHORT[primary]} ({UNIT[primary]}) at the last step, mean over seeds.")]
    if compared:
        blocks += [("h2", f"Differences to {baseline['name']}: {SHORT[primary]} ({UNIT[primary]})"),
                   difference_table(compared, args)]
    if args.out:
        vary = [i for i in range(len(columns)) if len({group[i] for group in groups}) > 1] or [0]
        label = {arm["name"]: ", ".join(group[i] or "(empty)" for i in vary)
                 for group, arm in zip(groups, arms, strict=True)}
        losses = {label[arm["name"]]: arm["losses"] for arm in arms}
        if png := ab_report.plot_arms(losses, f"final {SHORT[primary]} ({UNIT[primary]})"):
            blocks.append(("img", "arms.png", "Final loss of each arm: a circle per seed, a bar at the mean", png))
        if args.runs:
            blocks += curves({label[arm["name"]]: [row["run"] for row in arm["rows"]] for arm in arms}, primary)
    blocks += gate_blocks(checked)
    record = {"mode": "group_by", "verdict": word, "headline": head, "group_by": columns, "where": where,
              "primary": primary, "margin": args.delta, "alpha": args.alpha, "missing": missing, "gate": checked,
              "arms": [{k: v for k, v in arm.items() if k != "rows"} for arm in arms],
              "baseline": baseline and baseline["name"], "differences": compared}
    ab_report.publish(blocks, record, args.out)
    return 0 if checked["ok"] else 2


def compare_arm(baseline: dict, arm: dict, primary: str, checked: dict, args) -> dict:
    """{"name", "row" (difference of the final loss), "time" (percent, or reason), "wall" (at equal wall-clock)}."""
    entry = {"name": arm["name"], "row": difference(baseline["by_seed"], arm["by_seed"], args.alpha), "wall": None,
             "time": "N/A: not recorded"}
    if checked["other_machine"]:
        entry["time"] = "N/A: other hardware or software"
    elif arm["times"] and baseline["times"]:
        entry["time"] = f"{100 * (statistics.fmean(arm['times']) / statistics.fmean(baseline['times']) - 1):+.1f} %"
    if args.runs and arm["rows"] and baseline["rows"]:
        both = [finished([row["run"] for row in side["rows"]]) for side in (baseline, arm)]
        step = common_step([run for side in both for run in side], "val")
        entry["wall"] = matchings(both, step, primary, checked, args)[2]["row"]
    return entry


def difference_table(compared: list[dict], args) -> tuple:
    header = ["arm", "n", "delta", f"{100 * (1 - args.alpha):g} % interval", "p", "p (Holm)", "verdict", "train_time"]
    body = [[e["name"], f"{e['row']['n']} {'pairs' if e['row']['paired'] else 'unpaired'}",
             form(e["row"]["delta"], "+.4f"), form_interval(e["row"], ".4f"), form_p(e["row"]["p"]),
             form_p(e["row"].get("p_holm", e["row"]["p"])), e["verdict"], e["time"]] for e in compared]
    if args.runs:
        header.append("delta at equal wall-clock")
        body = [[*cells, form_change(e["wall"], ".4f").split(", p")[0] if e["wall"] else "N/A: no run to compare"]
                for cells, e in zip(body, compared, strict=True)]
    return "table", header, body, {0, 6}


def gate_of_folders(named: dict[str, list[dict]], columns: list[str], args) -> dict:
    """gate() with the columns that make the arms as the treatment."""
    treatment = [FLAG_OF.get(column, column) for column in [*columns, *(names_in(args.treatment) or [])]]
    treatment += ["rows"] * bool({"data_format", "crop_fraction"} & set(treatment))
    arms = {arm: [row["run"] for row in members] for arm, members in named.items()}
    run_knobs = set().union(*(knobs(run) for runs_ in arms.values() for run in runs_))
    return gate(arms, [name for name in treatment if name in run_knobs or name in FAMILIES] if len(arms) > 1 else [],
                names_in(args.allow) or [], same_seeds=False)


def gate_of_rows(named: dict[str, list[dict]], columns: list[str], args) -> dict:
    """As gate(), over rows of a results.csv: conditions must agree where they are recorded."""
    allow = names_in(args.allow) or []
    check_names("--allow", allow, {*CONDITIONS, "seed"})
    declared = {*columns, *(names_in(args.treatment) or [])}
    declared |= {"muon_lr"} if "learning_rate" in declared else set()
    declared |= {"data_fingerprint"} if "condition" in declared else set()
    every = [(arm, row) for arm, members in named.items() for row in members]
    differences, notes, equal, missing = [], [], {}, []
    for name in CONDITIONS:
        told = [(arm, row) for arm, row in every if row.get(name)]
        inert = name in ("gate_pos", "gate_act")  # without a gate they say nothing
        used = [(arm, row) for arm, row in told if not (inert and row.get("attn_gate") == "none")]
        values = {arm: distinct(cell_text(row[name]) for a, row in used if a == arm) for arm in named}
        if len(found := flat(values)) > 1:
            state = "treatment" if name in declared else "allowed" if name in allow else "differs"
            differences.append({"knob": name, "state": state, "mixed": [], "values": values,
                                "why": "makes the arms" if state == "treatment" else "differs inside the table"})
        elif found:
            equal[name] = found[0]
        if told and len(told) < len(every):
            notes.append(f"{name} is not recorded in {len(every) - len(told)} of {len(every)} rows")
    seeds = {arm: [cell_text(row.get("seed")) for row in members] for arm, members in named.items()}
    known = sorted(set().union(*seeds.values()) - {""})
    if twice := [f"{arm} has seed {s} twice" for arm, ss in seeds.items() for s in known if ss.count(s) > 1]:
        values = {arm: [", ".join(ss)] for arm, ss in seeds.items()}
        differences.append(fault("seed", set(allow), values, "; ".join(twice)))
    missing += [f"{arm} lacks seed {', '.join(left)}" for arm, ss in seeds.items()
                if (left := [s for s in known if s not in ss])]
    scored = [row for _, row in every if math.isfinite(cell_number(row.get("final_val_loss")))]
    recorded, other_machine = sum(bool(row.get("condition")) for row in scored), False
    for name in ("git_commit", "gpu_name", "n_gpus", "device_batch_size"):
        if len(found := distinct(row[name] for _, row in every if row.get(name))) > 1:
            other_machine |= name != "git_commit"
            notes.append(f"{name} differs ({', '.join(map(shown, found))})"
                         + ": times do not compare" * (name != "git_commit"))
    return {"ok": not any(d["state"] == "differs" for d in differences), "family": None, "differences": differences,
            "treatment": ", ".join(columns), "equal": equal, "notes": notes, "missing": missing,
            "other_machine": other_machine, "other_tokens": 0 < recorded < len(scored) or any(
                d["knob"] == "condition" for d in differences)}


# ----------------------------------------------------------------------------------------------------------------------
# the noise floor, a newcomer's run, and the seeds that an effect needs


def compare_noise(args) -> int:
    """--aa: what seeds alone do to every metric. --check RUN --against: does a newcomer's run lie in that band?"""
    newcomer = read_run(args.check) if args.check else None
    runs_ = read_runs(expand(args.against, "--against") if newcomer else expand(args.aa, "--aa"))
    if newcomer:
        runs_ = [run for run in runs_ if run["folder"].resolve() != newcomer["folder"].resolve()]
    used = finished(runs_) if any(run["summary"] for run in runs_) else []
    if len(used) < 4:
        raise ValueError(f"a noise floor needs at least 4 finished runs of different seeds, and there are {len(used)}: "
                         "train more seeds.")
    # a newcomer may have any seed, so only equal seeds can show other batches; nothing may differ, so no treatment
    arms = {"noise floor": runs_, **({"newcomer": [newcomer]} if newcomer else {})}
    checked = gate(arms, [], names_in(args.allow) or [], same_seeds=False)
    steps, values = score_arms([used, [newcomer]] if newcomer else [used])
    primary = args.primary or "val_loss"
    floors = {}
    for key in LABEL:
        known = [v for v in values[0][key].values() if isinstance(v, float)]
        if key not in FIXED and len(known) == len(used):
            floors[key] = ab_stats.noise_floor(known, args.alpha)
    if primary not in floors:
        raise ValueError(f"not all of these runs have a {SHORT[primary]}: train with --eval_every, or pass --primary.")

    body, record_rows, outside = [], {}, []
    for key, floor in floors.items():
        low, high = floor["band_low"], floor["band_high"]
        spec = FORMAT[key]
        cells = [LABEL[key], f"{floor['mean']:{spec}}", f"{floor['sd']:.3g}", f"[{low:{spec}}, {high:{spec}}]"]
        record_rows[key] = dict(floor)
        if newcomer:
            value = next(iter(values[1][key].values()))
            state = (f"N/A: {value}" if isinstance(value, str) else "N/A: other hardware or software"
                     if key in SPEED and checked["other_machine"] else
                     "inside" if ab_stats.in_band(value, floor) else "OUTSIDE")
            outside += [key] * (state == "OUTSIDE")
            cells += [f"N/A: {value}" if isinstance(value, str) else f"{value:{spec}}", state]
            record_rows[key] |= {"newcomer": value, "state": state}
        body.append(cells)
    trouble = [f"{d['knob']} ({d['why'] if d['knob'] in FAULTS or d['mixed'] else says(d['values'])})"
               for d in checked["differences"] if d["state"] == "differs"]
    header = ["Metric", "mean", "sd", f"band for one more run, {100 * (1 - args.alpha):g} %"]
    seeds, floor = f"{len(used)} seeds ({', '.join(str(run['seed']) for run in used)})", floors[primary]
    if newcomer:
        value, header = next(iter(values[1][primary].values())), [*header, "this run", "verdict"]
        state = record_rows[primary]["state"]
        word = "not comparable" if trouble or state not in ("inside", "OUTSIDE") else state.lower()
        known = f"{value:.4f} {UNIT[primary]}" if isinstance(value, float) else f"of this run N/A ({value})"
        told = (f"{SHORT[primary]} {known}, band [{floor['band_low']:.4f}, "
                f"{floor['band_high']:.4f}] from {seeds}, step {steps['val']}. {len(outside)} of {len(body)} metrics "
                f"lie outside their own band (by chance about {args.alpha * len(body):.1f} would); the primary metric "
                "decides" + ", and without it nothing can be said" * isinstance(value, str) + ".")
        title = f"{newcomer['name']} against the noise floor of {label_of(used)}: {word}"
    else:
        word = "not comparable" if trouble else "comparable"
        told = (f"{SHORT[primary]}: sd {floor['sd']:.5f} {UNIT[primary]} (95 % interval {floor['sd_low']:.5f} to "
                f"{floor['sd_high']:.5f}) over {seeds}, step {steps['val']}.")
        title = f"Noise floor of {label_of(used)}"
    problems = "; ".join(trouble)
    head = f"**{word}** · " + f"{problems}. " * bool(trouble) + told + (
        f" Missing: {'; '.join(checked['missing'])}." if checked["missing"] and not newcomer else "")
    blocks = [("h1", title), ("verdict", head, word), ("table", header, body, {0, 5}),
              ("p", "The band is a prediction interval: one more run of another seed falls inside with this chance.")]
    record = {"mode": "check" if newcomer else "aa", "verdict": word, "headline": head, "primary": primary,
              "alpha": args.alpha, "metrics": record_rows, "gate": checked, "runs": [str(r["folder"]) for r in used]}
    if args.plan:
        blocks += plan_blocks(floor["sd"], primary, args, record)
    ab_report.publish([*blocks, *gate_blocks(checked)], record, args.out)
    return 0 if word in ("inside", "comparable") else 2


def plan_blocks(sd: float, primary: str, args, record: dict) -> list[tuple]:
    """Seeds that --effect needs, and the effect that a number of seeds can show, for several seed correlations."""
    if args.power <= args.alpha:
        raise ValueError(f"--power {args.power:g} is not above --alpha {args.alpha:g}: ask for more power.")
    designs = {f"paired, seed correlation {r:g}": (ab_stats.sd_of_difference(sd, r), True) for r in sorted(
        {0.0, 0.5, 0.8} | ({args.correlation} if args.correlation is not None else set()))}
    designs["unpaired"] = (ab_stats.sd_of_difference(sd, 0.0), False)
    needed = {name: ab_stats.n_needed(args.effect, spread, args.alpha, args.power, paired)
              for name, (spread, paired) in designs.items()}
    smallest = [[str(n), *(f"{ab_stats.mde(n, spread, args.alpha, args.power, paired):.5f}"
                           for spread, paired in designs.values())] for n in (2, 3, 4, 5, 6, 8, 10, 15, 20)]
    record["plan"] = {"sd": sd, "effect": args.effect, "power": args.power, "alpha": args.alpha, "seeds_needed": needed}
    unit = UNIT[primary]
    return [("h2", f"Seeds per arm that find {args.effect:g} {unit}"),
            ("p", f"sd between seeds {sd:.5g} {unit}, two-sided alpha {args.alpha:g}, power {args.power:.0%}."),
            ("table", ["Design", "seeds per arm"], list(needed.items()), {0}),
            ("h2", f"Smallest difference that n seeds per arm find ({unit})"),
            ("table", ["n", *designs], smallest, set())]


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
        f"{', '.join(sorted(FAMILIES))} (default: recognise a gate, rows or tokens)")
    add("--allow", metavar="KNOBS",
        help="differences to let pass; the report tells them, for example code_sha256,incomplete")
    add("--primary", choices=PRIMARY,
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

    def refuse(message: str):
        raise ValueError(f"{message}; see --help.")

    parser.error = refuse
    args = parser.parse_args(argv)
    modes = {"--a with --b": args.a or args.b, "--group_by": args.group_by or args.runs or args.results,
             "--check with --against": args.check or args.against, "--aa": args.aa, "--plan": args.plan}
    chosen = [name for name, on in modes.items() if on]
    if len(chosen) != 1 and chosen != ["--aa", "--plan"]:
        refuse(f"give one of {', '.join(modes)}" + f", not {' and '.join(chosen)} together" * bool(chosen))
    for x, y in (("a", "b"), ("check", "against")):
        if bool(getattr(args, x)) != bool(getattr(args, y)):
            refuse(f"--{x} and --{y} need each other: name both")
    if chosen == ["--group_by"] and (not args.group_by or bool(args.runs) == bool(args.results)):
        refuse("--group_by needs either --runs or --results, and they need --group_by")
    positive = lambda value: value is not None and 0 < value < math.inf
    if args.plan and not positive(args.effect):
        refuse("--plan needs an --effect above 0: the smallest difference worth finding")
    if args.plan and not args.aa and not positive(args.noise):
        refuse("--plan needs a --noise above 0 (the sd between seeds), or --aa with 4 runs to measure it")
    for name, low, high in (("alpha", 0, 1), ("power", 0, 1), ("correlation", -1, 1)):
        if (value := getattr(args, name)) is not None and not low < value < high:
            refuse(f"--{name} {value:g}: give a number between {low} and {high}")
    if not 0 <= args.delta < math.inf:
        refuse(f"--delta {args.delta:g}: give a number of at least 0")
    return args


def main(argv=None) -> int:
    args = parse_args(argv)
    if args.a:
        return compare_two(args)
    if args.group_by:
        return compare_many(args)
    return compare_noise(args) if args.aa or args.check else compare_plan(args)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"compare_runs.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
