"""ab_proofs.py owns what runs prove by what they did: equal batches, no copies, the same tokens in other containers.

    faults = check_copies(arms, notes) + check_batches(arms, notes)     # for lab/ab_gate.py, which has the settings

Settings say what a run was meant to do. Its losses, the checksums of its batches and the hash of its tokens say what it
did. arms: name -> members (ab_gate.of_run).
"""

from __future__ import annotations

import json

from lab import disk, run_state, runs, units

LONG = 6  # digits behind the point of a loss that no two runs share by chance
UNCHANGED = ": the treatment changed nothing, or one is a copy of the other"
BATCHES = ("data_fingerprint", "seq_len", "total_batch_tokens", "data_order")  # decide a step's tokens


def fault(name: str, values: dict, why: str) -> dict:
    """A difference that is no setting: something is amiss."""
    return {"knob": name, "state": "differs", "values": values, "mixed": [], "why": why}


def recorded(members: list[dict], field: str, name: str) -> list:
    """Distinct values of a setting. A folder that lacks it has None; a row of a results.csv does not record it."""
    return distinct(m[field].get(name) for m in members if name in m[field] or m["run"])


def distinct(values) -> list:
    return list({json.dumps(v, sort_keys=True, default=str): v for v in values}.values())


def end_of(run: dict) -> str:
    """How a run without a summary ended, as far as its folder tells: 'ended at step 6 of 60 without a summary'."""
    place = f"step {max(run['train']['step'], default=0):.0f} of {run['flags'].get('max_train_steps', 'N/A')}"
    if disk.holder(run["folder"])[0] == "held":
        return f"is still running, at {place}"
    end = run_state.last_line(run["folder"] / "log.txt")
    if end.startswith(run_state.STOPPED):
        return f"was stopped at {place}"
    if end.startswith(run_state.DIVERGED):
        return f"diverged after {place}"
    return f"ended at {place} without a summary"


# ----------------------------------------------------------------------------------------------------------------------
# copies and batches


def check_copies(arms: dict[str, list[dict]], notes: list[str]) -> list[dict]:
    """Runs with the same loss at every step are one run: a fault, but a note where both arms have the seed, as a
    treatment without effect looks so, too. Of a results.csv: the same final loss after the same time or, where that
    is not recorded, a loss of many digits; in two arms these may be rounded numbers that meet."""
    first, why = {}, []
    for arm, members in arms.items():
        for member in members:
            losses = losses_of(member)
            if not losses:
                continue
            arm_of_twin, twin = first.setdefault(losses, (arm, member))
            if twin is member:
                continue
            what = f"{twin['name']} and {member['name']} have the same losses"
            by_chance = twin["seed"] == member["seed"] or not member["run"]
            if arm_of_twin != arm and by_chance:
                notes.append(f"{what}{UNCHANGED}")
            else:
                why.append(what)
    if not why:
        return []
    return [fault("copied_run", {arm: ["copies"] for arm in arms}, "; ".join(why))]


def losses_of(member: dict):
    """What tells a run's losses from another's, or something false where too little is recorded."""
    if not member["run"]:
        loss, seconds = member.get("losses", ("", ""))
        long = len(str(loss).partition(".")[2]) >= LONG
        return loss and (seconds or long) and (loss, seconds)
    losses = member["run"]["train"]["train_loss_opt_step_mean"]
    return len(losses) > 1 and losses.tobytes()


def check_batches(arms: dict[str, list[dict]], notes: list[str]) -> list[dict]:
    """Runs of one seed, data and batch size must have read the same tokens at every step, by their checksums."""
    first, *others = arms.values()
    unequal, unproved, proved = [], [], 0
    for member in [member for arm in others for member in arm if member["run"]]:
        counterpart = next((m for m in first if m["seed"] == member["seed"]), None)
        if counterpart is None or any(
                len(recorded([counterpart, member], "settings", key)) > 1 for key in BATCHES):
            continue  # other batches by design, or by a difference that has a name already
        pair = f"{counterpart['name']} and {member['name']}"
        step = first_other_batch(counterpart["run"], member["run"])
        if step is None:
            unproved.append(pair)
        elif step > 0:
            unequal.append(f"{pair} from step {step} on")
        else:
            proved += 1
    if proved:
        pairs = units.count(proved, "pair")
        notes.append(f"{pairs} of runs read the same tokens at every step (checksums equal)")
    why = []
    if unequal:
        why.append(f"other tokens in {', '.join(unequal)}")
    if unproved:
        why.append(f"exposures/ of {', '.join(unproved)} miss some or all steps, "
                   "so equal batches cannot be proved")
    word = "unequal" if unequal else "unknown"
    return [fault("batch_checksums", {arm: [word] for arm in arms}, "; ".join(why))] if why else []


def first_other_batch(a: dict, b: dict) -> int | None:
    """The first step at which two runs read other tokens; 0: none in the shorter one; None: not recorded throughout."""
    tables = [read_checksums(run) for run in (a, b)]
    common = tables[0].keys() & tables[1].keys()
    other = [step for step in common if tables[0][step] != tables[1][step]]
    if other:
        return min(other)
    ends = []  # an unfinished run has made what it recorded
    for run, table in zip((a, b), tables, strict=True):
        ends.append(runs.number((run["summary"] or {}).get("steps", max(table, default=0))))
    steps = sum(step <= min(ends) for step in common)
    return 0 if all(end > 0 for end in ends) and steps >= min(ends) else None


def read_checksums(run: dict) -> dict[int, str]:
    """{step: checksum of the step's tokens}."""
    records = runs.read_jsonl(run["folder"] / "exposures" / "exposures_rank0000.jsonl", notes=[])
    table = {}
    for step, checksum in [(record.get("step"), record.get("checksum")) for record in records]:
        if isinstance(step, int) and step > 0 and checksum:
            table[step] = checksum
    return table


# ----------------------------------------------------------------------------------------------------------------------
# containers

OTHER_ORDER = ("; the fingerprint also draws the order in which they are read, so that runs of equal seed have their "
               "initial weights in common and not their order")
CONTAINERS = {  # what is hashed -> the settings that tell its files apart
    "data": ("data_fingerprint", "data_format", "condition"),
    "val": ("val_fingerprint", "val_fingerprint_documents", "val_fingerprint_tokens"),
}


def mark_containers(differences: list[dict], members: list[dict]) -> bool:
    """Turn differences between files of the same tokens into notes (llm.c's, build-nanogpt's, ours). Returns whether
    all were scored on the same held-out tokens."""
    same = {}
    for split, names in CONTAINERS.items():
        contents = distinct(member.get("content", {}).get(split) for member in members)
        same[split] = len(contents) == 1 and bool(contents[0])
        for d in differences:
            if same[split] and d["knob"] in names:
                d.update(state="note", why="the same tokens in another container")
                if d["knob"] == "data_fingerprint":
                    d["why"] += OTHER_ORDER
    return same["val"]
