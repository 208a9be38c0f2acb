"""ab_gate.py decides whether arms are comparable: everything that differs between them must be the treatment.

    checked = gate(members_of({"A": runs_a, "B": runs_b}), treatment=["attn_gate"], allow=[])

Run folders and rows of a results.csv pass through the same gate. It compares the settings of an arm's members: every
flag that can change a result (runs.conditions), the model, the data, the code and the scorers. Double seeds, crashed
runs, unverified data and unequal batches are faults: never a treatment, but --allow lets each of them pass by its name.
"""

from __future__ import annotations

import math
import re

from lab import ab_numbers, ab_report, runs, units
from lab.ab_proofs import (
    check_batches,
    check_copies,
    distinct,
    end_of,
    fault,
    mark_containers,
    recorded,
)

DERIVED = {"block_size", "padded_vocab_size", "unused_ids"}  # of the model, from seq_len and vocab_size
SCORER = ("scorer n total bos dtype items_sha256 data_sha256 max_new_tokens temperature "
          "other_network").split()
OFF = (None, 0, "", "none", False, "arch")  # an older run that lacks a flag equals one that has it off
PARTS = "positions norm qk_norm mlp bias weight_init".split()  # of the network: lab/architecture.py
WRITES = ("write", "inner_lr", "inner_lr_learned", "inner_optimizer", "inner_clip", "inner_decay",
          "teach_scale", "teach_clip", "surprise_threshold",
          "teach_warmup_iters", "teach_decay_start", "teach_decay_iters")
RECOGNISED = {  # treatments that need no declaration; a difference in the first setting is their sign
    "gate": ("attn_gate", "gate_pos", "gate_act"),
    "memory": ("memory", "memory_layers", "cms_periods", "cms_widths", "titan_width", "titan_period",
               "titan_clip", "self_modifier", *WRITES),
    "rows": ("data_format", "crop_fraction", "data_fingerprint"),
    "tokens": ("condition", "mul_token_rate", "vocab_size", "data_fingerprint",
               "val_fingerprint_tokens"),
    **{part: (part,) for part in PARTS},
}
STARTS = ("init", "init_from", "init_sha256")  # settings that say which run of an earlier stage a run goes on from
FAMILIES = {  # names for several settings in --treatment and --allow
    **RECOGNISED,
    **dict.fromkeys(("data", "data_dir"), (*RECOGNISED["rows"], *RECOGNISED["tokens"])),
    "condition": RECOGNISED["tokens"],
    "code": ("code_sha256",), "init": STARTS,
    "size": ("n_layer", "n_head", "n_embd", "n_inner"),
    "grpo": ("reward", "normalization", "kl_coef", "clip", "inner_steps", "temperature", "truncated", "group_size",
             "problems_per_step"),
}
FAULTS = (  # no settings
    "treatment", "seed", "incomplete", "invalid_run", "unverified_data", "copied_run",
    "unrecorded", "batch_checksums",
)
YARDSTICKS = {  # what measures, or what is broken: never a treatment. Every <benchmark>_scorer belongs here, too
    *FAULTS, "scorer", "val_fingerprint", "val_fingerprint_documents", "val_documents", "val_tokens",
}
# For older runs and strangers' CSVs: flag -> (the flag that switches it off, its values that do, what its users have)
UNUSED = {
    "gate_pos": ("attn_gate", OFF, "a gate"),
    "gate_act": ("attn_gate", OFF, "a gate"),
    "muon_lr": ("optimizer", ("adamw",), "Muon"),
    "muon_scale": ("optimizer", ("adamw",), "Muon"),
}
IDENTITIES = {  # settings that are hashes: what is the same where they are equal
    "data_fingerprint": "training data", "val_fingerprint": "held-out documents",
    "val_fingerprint_documents": "held-out documents", "val_fingerprint_tokens": "held-out tokens",
    "code_sha256": "code", "init_sha256": "initial weights",
}
HASH = re.compile(r"(?<![\w.])[0-9a-f]{16,64}\b")  # and not the digits behind a decimal point
ADVICE = {  # against a difference
    "dtype": "--dtype auto takes it by the machine: train all runs with --dtype float32",
    "val_fingerprint_documents":
        "losses on other texts do not compare: train all runs with the same held-out texts (of "
        "sft.py one --val_data, and a --seq_len that cuts none of them)",
}
FOLLOWS = {"muon_lr": (0.1, "learning_rate", "is 0.1 x learning_rate"),  # by default
           "n_inner": (4, "n_embd", "is its mlp's default")}

# ----------------------------------------------------------------------------------------------------------------------
# members of an arm


def members_of(arms: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Arms of runs (runs.read_run) as arms of members."""
    return {arm: [of_run(run) for run in own] for arm, own in arms.items()}


def of_run(run: dict) -> dict:
    """A run's folder as a member of an arm: {"name", "seed", "settings" (equal unless they are the treatment: flags,
    model, data, code, scorers), "unused" (flags without effect in this run), "machine" (spoils comparisons of speed,
    not of losses), "micro_batch_size", "tokens" (the tokenisation), "unverified" (whether its data's fingerprints were
    taken from meta.json alone), "run" (None for a row of a results.csv)}."""
    if "log" in run:
        return of_log(run)
    config, data, flags = run["config"], run["config"]["data"], runs.conditions(run["flags"])
    settings = {flag: value for flag, value in flags.items() if flag not in ("seed", "condition")}
    for key, built in config["model"].items():
        if isinstance(built, list) and key not in DERIVED:
            built = ",".join(map(str, built))  # as the flag is
        asked = settings.get(key, built)
        if key not in DERIVED:
            settings[key] = built if asked == built else f"{asked} (model: {built})"
    settings |= {f"data_{key}": data.get(key) for key in ("fingerprint", "format")}
    val = ("val_fingerprint_documents", "val_fingerprint_tokens", "val_documents")
    settings |= {key: data.get(key) for key in ("crop_fraction", "mul_token_rate", *val)}
    settings["condition"] = data.get("condition") or run["flags"].get("condition")
    settings["code_sha256"] = config["code"]["code_sha256"]
    start = config["init"] if isinstance(config.get("init"), dict) else {}
    settings["init_sha256"] = start.get("sha256") or start.get("model_sha256")
    scored = {name: records[max(records)] for name, records in run["benchmarks"].items() if records}
    if run["gsm8k"]:
        scored["gsm8k"] = run["gsm8k"]
    for name, record in scored.items():  # the rule and the items behind a score
        settings[f"{name}_scorer"] = ", ".join(f"{key} {record[key]}" for key in SCORER if key in record)

    machine = {key: config["hardware"].get(key) for key in ("gpu", "cpu", "torch_threads")}
    machine |= {"world_size": config.get("world_size"), "torch": config["versions"].get("torch")}
    machine |= {key: run["flags"].get(key) for key in ("compile", "deterministic")}
    return {
        "name": run["name"], "seed": run["seed"], "settings": settings,
        "unused": unused_flags(settings, config.get("unused_flags")),
        "machine": machine, "micro_batch_size": run["flags"].get("micro_batch_size"),
        "tokens": settings["val_fingerprint_tokens"], "run": run,
        "unverified": is_unverified(run), "content": config.get("content_sha256") or {},
    }


def of_log(run: dict) -> dict:
    """Another project's log (lab/logs.py) as a member: one that holds its settings is like a row of a
    results.csv, of another it is a fault that nothing is recorded ("log")."""
    flags, config, row = run["flags"], run["config"], (run["summary"] or {}).get("results_row", {})
    settings = {flag: value for flag, value in runs.conditions(flags).items() if flag != "seed"}
    machine = {}
    if config["hardware"]:
        machine = {**config["hardware"], "world_size": config["world_size"]}
        machine["torch"] = config["versions"]["torch"]
    member = {
        "name": run["name"], "seed": None, "run": None, "tokens": None,
        "settings": settings, "unused": unused_flags(settings, None),
        "machine": machine, "micro_batch_size": flags.get("micro_batch_size", "not recorded"),
        "unverified": False, "log": run["log"], "status": run["status"], "notes": run["notes"],
        "losses": (row.get("final_val_loss"), row.get("train_time_ms")),
        "bits_alone": bool(run["val"]) and not any("val_loss" in record for record in run["val"].values()),
    }
    if flags:
        member |= {"seed": run["seed"], "log": ""}
    return member


def is_unverified(run: dict) -> bool:
    """Whether a run, at its start or at its end after a resume, took its data's fingerprints from meta.json alone."""
    flags = run["flags"], (run["summary"] or {}).get("results_row") or {}
    return any(own.get("verify_data", "full") != "full" for own in flags)


def unused_flags(settings: dict, recorded: list[str] | None) -> set[str]:
    """Flags that a run does not use: as recorded, else by the table UNUSED."""
    if recorded is not None:
        return set(recorded)
    return {flag for flag, (switch, off, _) in UNUSED.items() if settings.get(switch) in off}


# ----------------------------------------------------------------------------------------------------------------------
# the gate


def gate(arms: dict[str, list[dict]], treatment: list[str] | None, allow: list[str], same_seeds: bool = True) -> dict:
    """What differs between and within arms (name -> members), and whether it is the treatment.

    treatment: settings or families that may differ; None: recognise one family. same_seeds: other seeds are a fault,
    not a note. Returns {"ok", "family", "treatment" (in words), "differences": [{"knob", "state" (treatment | differs |
    allowed | note), "values": {arm: [...]}, "mixed" (arms whose own members differ), "why"}], "equal": {setting:
    value}, "notes", "missing", "other_machine", "other_tokens", "problems" (all are grpo.py's)}.
    ValueError for a name that is no setting.
    """
    members = [member for arm in arms.values() for member in arm]
    names = list(dict.fromkeys(name for member in members for name in member["settings"]))
    scorers = {name for name in names if name.endswith("_scorer")}
    cadences = cadences_of(members) & set(names)
    yardsticks, families = YARDSTICKS | scorers | cadences, FAMILIES | {"scorer": tuple(scorers)}
    check_names("--treatment", treatment or [], {*names, *families} - yardsticks)
    check_names("--allow", allow, {*names, *families, *yardsticks})
    declared = {name for given in treatment or [] for name in families.get(given, (given,))}
    allowed = {name for given in allow for name in families.get(given, (given,))}

    differences, equal, notes, missing = [], {}, [], []
    fill_defaults(members, names, notes)
    for name in names:
        compare_setting(name, arms, differences, equal)
    if any(member.get("log") for member in members):
        equal.clear()  # what a log does not record is not equal
    mark_consequences(differences, members, cadences)
    mark_starts(differences, members)
    same_val = mark_containers(differences, members)
    bits_alone = any(member.get("bits_alone") for member in members)  # logs without a val loss
    counting = [d for d in differences if d["state"] == "differs" and not d["mixed"]]
    changed = {d["knob"] for d in counting} - allowed
    family = recognise(changed)
    if treatment is None:
        declared = set(RECOGNISED.get(family, ()))
    for d in differences:
        if d["state"] == "differs":
            judge(d, declared, allowed, treatment is not None, yardsticks)
        if d["knob"] == "code_sha256" and d["state"] == "treatment":
            refuse_mixtures(d, arms)
    if treatment and not changed & declared:
        why = f"the declared treatment ({', '.join(treatment)}) does not differ"
        differences.append(fault("treatment", {arm: ["equal"] for arm in arms}, why))

    differences += check_seeds(arms, same_seeds, missing)
    differences += check_members(arms, notes, missing)
    differences += check_copies(arms, notes)
    differences += check_batches(arms, notes)
    for d in differences:
        if d["knob"] in allowed and d["knob"] in FAULTS:
            d["state"] = "allowed"
    other_machine = compare_machines(arms, notes)
    words = [f"{d['knob']} {by_arm(d['values'])}" for d in differences if d["state"] == "treatment"]
    return {
        "ok": not any(d["state"] == "differs" for d in differences), "family": family,
        "treatment": "; ".join(words), "differences": differences, "equal": equal, "notes": notes,
        "missing": missing, "other_machine": other_machine,
        "other_tokens": bits_alone or not same_val and has_other_tokens(members),
        "problems": all(member["settings"].get("data_format") == "problems" for member in members),
    }


def has_other_tokens(members: list[dict]) -> bool:
    """Whether nats per token do not compare. Where no run records its held-out tokens, as older
    ones of sft.py, those of two conditions are other tokens."""
    tokens = distinct(member["tokens"] for member in members)
    if tokens == [None]:
        folders = [member for member in members if member["run"]]
        return len(distinct(member["settings"]["condition"] for member in folders)) > 1
    return len(tokens) > 1


def is_yardstick(name: str) -> bool:
    return name in YARDSTICKS or name.endswith("_scorer")


def check_names(flag: str, given: list[str], known: set[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{flag} {', '.join(unknown)}: use {', '.join(sorted(known))}.")


def fill_defaults(members: list[dict], names: list[str], notes: list[str]) -> None:
    """A run that is older than a flag does not record it, and trained as its default does: where all others have that
    default, by their own config's "defaults", it gets it, with a note."""
    folders = [member for member in members if member["run"]]
    for name in names:
        older = [member for member in folders if name not in member["settings"]]
        newer = [member for member in folders if name in member["settings"]]
        if not older or not newer or not all(is_default(member, name) for member in newer):
            continue
        default = newer[0]["settings"][name]
        for member in older:
            member["settings"][name] = default
        who = ", ".join(member["name"] for member in older)
        notes.append(f"{name} is newer than {who}: counts there as its default, {short(default)}")


def is_default(member: dict, name: str) -> bool:
    defaults = member["run"]["config"].get("defaults")
    return isinstance(defaults, dict) and name in defaults and defaults[name] == member["settings"][name]


def compare_setting(name: str, arms: dict[str, list[dict]], differences: list[dict], equal: dict) -> None:
    """Put one setting among the differences or the equal ones."""
    values = {arm: recorded(members, "settings", name) for arm, members in arms.items()}
    every = flat(values)
    if name.endswith("_scorer"):  # a benchmark that was not run has N/A rows, and that is no fault
        every = [value for value in every if value is not None]
    if len(every) == 1 or (None in every and all(value in OFF for value in every)):
        equal[name] = every[0]
        return
    mixed = [arm for arm, own in values.items() if len(own) > 1]
    why = f"differs within {' and '.join(mixed)}" if mixed else ""
    if mixed and name.endswith("_scorer"):
        why += f": some runs were scored on other items or by another rule; score all alike, or --allow {name}"
    if mixed and name in STARTS:
        why += "; --allow init if each run goes on from its own seed's run of the stage before"
    differences.append({"knob": name, "state": "differs", "values": values, "mixed": mixed, "why": why})


def cadences_of(members: list[dict]) -> set[str]:
    """The settings that say at which steps a run is scored: a measurement, and never a treatment."""
    names = {"eval", "val_loss", *ab_numbers.BENCHMARKS, "zeroshot"}
    for member in members:
        names |= set((member["run"] or {}).get("config", {}).get("benchmarks") or ())
    return {f"{name}_every" for name in names}


def mark_consequences(differences: list[dict], members: list[dict], cadences: set[str]) -> None:
    """Downgrade to notes: how often a run is scored, flags unused in some arm, and values derived from another flag
    (n_inner = 4 n_embd, or 8/3 in a gated MLP)."""
    for d in differences:
        name = d["knob"]
        users = [member for member in members if name not in member["unused"]]
        if name in cadences:
            why = "how often it is scored: scores are compared at common steps"
            d.update(state="note", mixed=[], why=why)
        elif len(users) < len(members) and len(recorded(users, "settings", name)) < 2:
            *_, feature = UNUSED.get(name, ("a use for it",))
            d.update(state="note", why=f"only the arms with {feature} use it")
        elif name in FOLLOWS:
            factor, base, why = FOLLOWS[name]
            if all(is_multiple(member, name, factor, base) for member in members):
                d.update(state="note", why=why)


def mark_starts(differences: list[dict], members: list[dict]) -> None:
    """The paths of starting weights are a note where every run records their hash and it is one: they were copied."""
    hashes = distinct(member["settings"].get("init_sha256") for member in members)
    for d in differences:
        if d["knob"] in STARTS and len(hashes) == 1 and hashes != [None]:
            d.update(state="note", mixed=[], why="other paths of the same weights")


def is_multiple(member: dict, name: str, factor: float, base: str) -> bool:
    try:  # a results.csv has text
        value, unit = (float(member["settings"].get(key)) for key in (name, base))
    except (TypeError, ValueError):
        return False
    if name == "n_inner" and member["settings"].get("mlp") == "swiglu":  # architecture.default_inner
        factor = 8 * math.ceil(unit / 3) / unit
    return math.isclose(value, factor * unit)


def recognise(changed: set[str]) -> str | None:
    """The family that explains all of these differences, if there is one."""
    for name, family in RECOGNISED.items():
        signs = set(family[:1])
        if name == "rows":  # packing may keep the format and crop more
            signs.add("crop_fraction")
        if changed & signs and changed <= set(family):
            return name
    return None


def judge(d: dict, declared: set[str], allowed: set[str], is_declared: bool, yardsticks: set[str]) -> None:
    """Decide whether a difference is the treatment, is allowed, or stays one that counts; and why."""
    name = d["knob"]
    d["may_be_treatment"] = not d["why"] and name not in STARTS and name not in yardsticks
    if name in allowed:
        d.update(state="allowed", why=d["why"] or "by --allow")
    elif name in declared and not d["mixed"]:
        d.update(state="treatment", why="declared" if is_declared else "recognised")
    elif is_declared:
        d["why"] = d["why"] or "not the declared treatment"
    else:
        advice = f"if it is what you test: --treatment {name}"
        if name in STARTS:
            advice = "--allow init if each arm goes on from its own run of the stage before"
        if name in yardsticks:
            advice = "--allow it if it does no harm"
        if name == "code_sha256":
            advice = "if you test it: --treatment code; if it does no harm: --allow code"
        d["why"] = d["why"] or f"not part of a recognised treatment; {advice}"


def refuse_mixtures(d: dict, arms: dict[str, list[dict]]) -> None:
    """Code as the treatment is no treatment of a run that was resumed by other code than it began with."""
    mixtures = {}
    for arm, members in arms.items():
        runs_of = [member for member in members if member["run"]]
        names = [member["name"] for member in runs_of if member["run"]["config"]["code"].get("versions")]
        if names:
            mixtures[arm] = ", ".join(names)
    if mixtures:
        why = f"several versions of the code in one run: {', '.join(mixtures.values())}"
        d.update(state="differs", may_be_treatment=False, mixed=list(mixtures), why=why)


# ----------------------------------------------------------------------------------------------------------------------
# faults


def check_seeds(arms: dict[str, list[dict]], same_seeds: bool, missing: list[str]) -> list[dict]:
    """A seed that an arm has twice is a fault; one that it lacks is missing, and with same_seeds a fault, too."""
    seeds, unknown = {}, []
    for arm, members in arms.items():
        seeds[arm] = sorted(member["seed"] for member in members if member["seed"] is not None)
        if len(seeds[arm]) < len(members):
            unknown.append(arm)
    every = sorted(set().union(*seeds.values()))
    twice, lacking = [], [f"seeds unknown in {arm}" for arm in unknown]
    for arm, own in seeds.items():
        double = [str(seed) for seed in every if own.count(seed) > 1]
        if double:
            twice.append(f"{arm} has {units.noun_of(len(double), 'seed')} {', '.join(double)} twice")
        left = [str(seed) for seed in every if seed not in own]
        if left and arm not in unknown:
            lacking.append(f"{arm} lacks seed {', '.join(left)}")
    missing += lacking
    why = twice
    if same_seeds:
        why = twice + lacking
    values = {arm: [", ".join(map(str, own))] for arm, own in seeds.items()}
    return [fault("seed", values, "; ".join(why))] if why else []


UNVERIFIED = "--verify_data sizes compared no checksum, so its fingerprints do not prove which text it read"


def incomplete(member: dict) -> str:
    if member["run"] and member["run"]["summary"] is None:
        return end_of(member["run"])
    status = member.get("status") or "finished"
    if status.startswith("unfinished"):
        return status
    if status != "finished":
        return f"its status is {status}"
    return ""


PROBLEMS = {  # fault -> what is wrong with a member of an arm ("": nothing)
    "incomplete": incomplete,
    "invalid_run": lambda member: in_a_sentence(summary_of(member).get("warnings") or []),
    "unverified_data": lambda member: UNVERIFIED if member["unverified"] else "",
    "unrecorded": lambda member: member.get("log", ""),
}


def summary_of(member: dict) -> dict:
    return (member["run"] or {}).get("summary") or {}


def in_a_sentence(warnings: list) -> str:
    return " ".join(map(str, warnings)).removesuffix(".")


def check_members(arms: dict[str, list[dict]], notes: list[str], missing: list[str]) -> list[dict]:
    """Damaged files are notes. An unfinished run is a fault, and so is one that calls itself invalid or read data that
    nobody verified."""
    for members in arms.values():
        for member in members:
            own = (member["run"] or member).get("notes", ())
            notes += [f"{member['name']}: {note}" for note in own]
            if any("other_network" in str(value) for value in member["settings"].values()):
                missing.append(f"{member['name']} was scored by another network than its code's")
    faults = []
    for name, problem in PROBLEMS.items():
        why, values = [], {}
        for arm, members in arms.items():
            bad = [member for member in members if problem(member)]
            by_problem: dict[str, list[str]] = {}
            for member in bad:
                by_problem.setdefault(problem(member), []).append(member["name"])
            why += [f"{', '.join(names)}: {words}" for words, names in by_problem.items()]
            values[arm] = [", ".join(member["name"] for member in bad) or "none"]
        if name != "unrecorded":
            missing += why
        if why:
            faults.append(fault(name, values, "; ".join(why)))
    return faults


def compare_machines(arms: dict[str, list[dict]], notes: list[str]) -> bool:
    """Whether hardware, software or micro-batches differ: no fault, but a note, because it spoils speeds."""
    whole = {arm: [m for m in members if not incomplete(m)] for arm, members in arms.items()}
    arms = {arm: whole[arm] or members for arm, members in arms.items()}
    every = [member for members in arms.values() for member in members]
    names = dict.fromkeys(name for member in every for name in member["machine"])
    differing = []
    for name in names:
        values = {arm: recorded(members, "machine", name) for arm, members in arms.items()}
        if len(flat(values)) > 1:
            differing.append(f"{name} ({by_arm(values)})")
    if differing:
        notes.append(f"hardware or software differs: {'; '.join(differing)}: speed, time and memory do not compare")
    micro = {arm: distinct(m["micro_batch_size"] for m in members) for arm, members in arms.items()}
    if len(flat(micro)) > 1:
        notes.append(f"micro_batch_size differs ({by_arm(micro)}), as it may: the tokens of a step do not depend on "
                     "it; speed and memory do, so they do not compare")
    unknown = any("log" in member and not member["machine"] for member in every)
    return bool(differing) or len(flat(micro)) > 1 or unknown


# ----------------------------------------------------------------------------------------------------------------------
# in words


def flat(values: dict[str, list]) -> list:
    return distinct(value for own in values.values() for value in own)


def short(value, cut: bool = True) -> str:
    """A setting's value as text; hashes are cut."""
    if value is None:
        return "none"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[:8] + "…" if cut and re.fullmatch(r"[0-9a-f]{32,}", text) else text


def by_arm(values: dict[str, list]) -> str:
    """{"A": [1], "B": [2]} as '1 / 2', and once where the arms agree."""
    return " / ".join(distinct(in_words(values).values()))


def in_words(values: dict[str, list]) -> dict[str, str]:
    """{"A": [1, 2], "B": [None]} as {"A": "1 and 2", "B": "none"}."""
    return {arm: " and ".join(texts) for arm, texts in as_texts(values).items()}


def as_texts(values: dict[str, list]) -> dict[str, list[str]]:
    """{"A": [1, "0f…", None]} as {"A": ["1", "no. 1", "none"]}: hashes, which nobody reads, are numbered."""
    numbers: dict[str, int] = {}

    def number(match) -> str:
        return f"no. {numbers.setdefault(match[0], len(numbers) + 1)}"

    return {arm: [HASH.sub(number, short(value, cut=False)) for value in own] for arm, own in values.items()}


def trouble_of(checked: dict, spell=by_arm) -> list[str]:
    """Every difference that counts: 'name (its values, or what is wrong)'."""
    sentences = []
    for d in checked["differences"]:
        detail = spell(d["values"])
        if d["knob"] in FAULTS or (d["mixed"] and spell is by_arm):
            detail = d["why"]
        elif d["knob"] == "code_sha256":
            detail = checked.get("code_files") or detail
        if d["knob"] in ADVICE:
            detail += f"; {ADVICE[d['knob']]}"
        if d["state"] == "differs":
            sentences.append(f"{d['knob']} ({detail})")
    return sentences


def gate_blocks(checked: dict) -> list[tuple]:
    """What differs, what is equal, and notes, as blocks of a report."""
    differences, equal = checked["differences"], checked["equal"]
    blocks: list[tuple] = [("h2", "Is it a fair comparison?")]
    if differences:
        columns = [("Knob", "left", lambda d: d["knob"])]
        for arm in differences[0]["values"]:
            columns.append((arm, "left", lambda d, arm=arm: in_words(d["values"])[arm] or "not recorded"))
        columns.append(("State", "left", lambda d: d["state"]))
        columns.append(("Why", "left", lambda d: d["why"] or d["state"]))
        blocks += [("p", "What differs:"), ab_report.table(columns, differences)]
    else:
        blocks.append(("p", "Nothing differs."))
    same, settings = [], []
    for name, value in sorted(equal.items()):
        if value is not None and (name in IDENTITIES or name.endswith("_scorer")):
            same.append(IDENTITIES.get(name, f"{name.removesuffix('_scorer')} items and scorer"))
        elif value not in OFF:
            settings.append(f"{name} {short(value)}")
    if same or settings:
        settings = [*dict.fromkeys(same), *settings]
        blocks.append(("p", f"Equal in every run: {', '.join(settings)}."))
    if checked["notes"]:
        blocks.append(("ul", checked["notes"]))
    return blocks
