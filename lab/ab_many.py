"""ab_many.py compares many arms: the stage tables of document 003, from run folders or from a results.csv.

    python compare_runs.py --runs 'runs/*' --group_by attn_gate,gate_act --baseline attn_gate=none
    python compare_runs.py --results experiments/results.csv --group_by attn_gate --where num_iterations=1500

A row is a dict of cells by column, {"run", "member"} among them: what a results.csv says of a run, or what its folder
says under the same names. Rows with equal cells in the --group_by columns are an arm. Both kinds pass through ab_gate.
"""

from __future__ import annotations

import math
import statistics

from lab import ab_gate, ab_numbers, ab_report, ab_stats, results, runs
from lab.ab_numbers import SHORT, UNIT
from lab.ab_report import form, form_change, form_interval, form_p

DATA_COLUMNS = ("condition", "data_fingerprint", "val_fingerprint")  # of a results.csv: settings that are no flags
HARDWARE_COLUMNS = ("gpu_name", "n_gpus")

# ----------------------------------------------------------------------------------------------------------------------
# rows


def member_of(cells: dict[str, str]) -> dict:
    """A line of a results.csv as a member of an arm (ab_gate.of_run). Its settings are the columns that hold a flag
    which can change a result; an empty cell is not recorded, but for init_from, where it means fresh weights."""
    settings = {}
    for column, text in cells.items():
        if column in DATA_COLUMNS and text:
            settings[column] = text
        elif results.is_condition(column) and column != "seed" and (text or column == "init_from"):
            settings[column] = value_of(text)
    unused = cells.get("unused_flags")
    return {
        "name": cells.get("run_id") or "a row",
        "seed": value_of(cells.get("seed")),
        "settings": settings,
        "unused": ab_gate.unused_flags(settings, unused and unused.split()),
        "machine": {column: cells[column] for column in HARDWARE_COLUMNS if cells.get(column)},
        "micro_batch_size": value_of(cells.get("device_batch_size")),
        "tokens": cells.get("condition") or None,
        "run": None,
    }


def row_of(run: dict) -> dict:
    """A run's folder as a row: its flags, its data, document 003's columns, and the run itself."""
    flags, data = run["flags"], run["config"]["data"]
    row = dict(flags)
    row |= {key: data.get(key) for key in ("condition", "crop_fraction", "mul_token_rate")}
    row |= {"data_format": data.get("format"), "data_fingerprint": data.get("fingerprint")}
    row |= {column: flags.get(flag) for column, flag in results.FLAG_OF.items()}
    tokens, length = runs.number(flags.get("total_batch_tokens")), runs.number(flags.get("seq_len"))
    row["batch_size"] = None
    if tokens > 0 and length > 0:
        row["batch_size"] = int(tokens / length)  # in sequences, as in results.csv
    row |= (run["summary"] or {}).get("results_row") or {}
    return row | {"run_id": run["name"], "run": run, "member": ab_gate.of_run(run)}


def cell_number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def cell_text(value) -> str:
    """One spelling per value: 3.6e-3, '0.00360' and 0.0036 are '0.0036'."""
    x = cell_number(value)
    if math.isfinite(x):
        return f"{x:.12g}"
    return "" if value is None else str(value)


def value_of(text: str | None):
    """A cell as a number where it is one, as text else, None where it is empty."""
    x = cell_number(text)
    if math.isfinite(x):
        return int(x) if x.is_integer() else x
    return text or None


def names_in(text: str | None) -> list[str]:
    """'a, b' -> ["a", "b"]."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def cells_in(text: str | None, flag: str) -> dict[str, str]:
    """'a=1,b=x' -> {"a": "1", "b": "x"}."""
    wanted = {}
    for part in names_in(text):
        name, sign, value = part.partition("=")
        name = name.strip()
        if not sign or not name:
            raise ValueError(f"{flag} {part!r}: write column=value, with commas between.")
        if name in wanted:
            raise ValueError(f"{flag} gives {name} twice: a row has one value per column.")
        wanted[name] = cell_text(value.strip())
    return wanted


# ----------------------------------------------------------------------------------------------------------------------
# arms


def arms_of(rows: list[dict], columns: list[str], primary: str, missing: list[str]) -> list[dict]:
    """{"name", "rows" (finished), "by_seed" (seed -> final loss or reason), "losses", "times", "group"} per arm; what
    has no loss is added to `missing`."""
    arms = []
    for (name, group), members in grouped(rows, columns).items():
        done = [row for row in members if row["run"] is None or row["run"]["summary"] is not None]
        seeds = [cell_text(row.get("seed")) for row in done]
        if "" in seeds or len(set(seeds)) < len(seeds):
            seeds = [f"{name} row {i}" for i in range(len(done))]  # unknown or double seeds: nothing to pair by
        arm: dict = {"name": name, "rows": done, "by_seed": {}, "losses": [], "times": [], "group": group}
        for seed, row in zip(seeds, done, strict=True):
            loss, time = cell_number(row.get(f"final_{primary}")), cell_number(row.get("train_time_ms"))
            if math.isfinite(loss):
                arm["by_seed"][seed] = loss
                arm["losses"].append(loss)
            else:
                arm["by_seed"][seed] = f"no final_{primary}"
                missing.append(f"{row.get('run_id') or 'a row'} ({name}) has no final_{primary}")
            if math.isfinite(loss) and math.isfinite(time):
                arm["times"].append(time)
        arms.append(arm)
    return arms


def grouped(rows: list[dict], columns: list[str]) -> dict[tuple, list[dict]]:
    """{(name of the arm, its cells): rows}, numbers in their order, then texts."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        group = tuple(cell_text(row.get(column)) for column in columns)
        name = ", ".join(f"{column}={cell or '(empty)'}" for column, cell in zip(columns, group, strict=True))
        groups.setdefault((name, group), []).append(row)
    return dict(sorted(groups.items(), key=lambda item: [order_of(cell) for cell in item[0][1]]))


def order_of(cell: str) -> tuple:
    x = cell_number(cell)
    if math.isfinite(x):
        return False, x, cell
    return True, 0, cell


def check_arms(rows: list[dict], columns: list[str], args) -> dict:
    """The gate, with the columns that make the arms as the treatment."""
    arms = {name: [row["member"] for row in members] for (name, _), members in grouped(rows, columns).items()}
    settings = {name for row in rows for name in row["member"]["settings"]}
    aliases = results.FLAG_OF | {flag: column for column, flag in results.FLAG_OF.items()}

    def named(names: list[str]) -> list[str]:  # a flag or document 003's column: whichever these rows have
        return [name if name in settings else aliases.get(name, name) for name in names]

    treatment = [name for name in named(columns) if name in settings or name in ab_gate.FAMILIES]
    if {"data_format", "crop_fraction"} & set(columns):
        treatment.append("rows")
    treatment += named(names_in(args.treatment))
    if len(arms) == 1:
        treatment = []
    checked = ab_gate.gate(arms, treatment, named(names_in(args.allow)), same_seeds=False)
    if args.results:
        checked["notes"] += notes_on(rows, columns)
    return checked


def notes_on(rows: list[dict], columns: list[str]) -> list[str]:
    """What a results.csv does not record, and which of its columns the gate does not look at."""
    notes = []
    lacking: dict[int, list[str]] = {}
    settings = dict.fromkeys(name for row in rows for name in row["member"]["settings"])
    for name in settings:
        count = sum(name not in row["member"]["settings"] for row in rows)
        lacking.setdefault(count, []).append(name)
    for count, names in lacking.items():
        verb = "is" if len(names) == 1 else "are"
        if count:
            notes.append(f"{', '.join(names)} {verb} not recorded in {count} of {len(rows)} rows")
    commits = ab_gate.distinct(row["git_commit"] for row in rows if row.get("git_commit"))
    if len(commits) > 1:
        notes.append(f"git_commit differs ({', '.join(map(ab_gate.short, commits))})")
    known = {*results.COLUMNS, *settings, *columns, "unused_flags", "run", "member"}
    strange = dict.fromkeys(column for row in rows for column in row if column not in known)
    strange = [column for column in strange if not results.trainer_flags().fullmatch(column)]
    if strange:
        notes.append(f"no flag of train_gpt.py, so not compared: {', '.join(strange)}")
    return notes


# ----------------------------------------------------------------------------------------------------------------------
# the report


def compare_many(args) -> int:
    """--group_by over run folders (--runs) or over a results.csv (--results)."""
    columns, where = names_in(args.group_by), cells_in(args.where, "--where")
    if not columns:
        raise ValueError("--group_by is empty: name columns, for example --group_by attn_gate,gate_act.")
    if args.results:
        lines = results.read_results(args.results)
        rows = [{**cells, "run": None, "member": member_of(cells)} for cells in lines]
    else:
        rows = [row_of(run) for run in runs.read_runs(args.runs, "--runs")]
    known = {column for row in rows for column in row} - {"run", "member"}
    ab_gate.check_names("--group_by", columns, known)
    ab_gate.check_names("--where", list(where), known)
    rows = [row for row in rows if all(cell_text(row.get(column)) == cell for column, cell in where.items())]
    if not rows:
        raise ValueError(f"--where {args.where} leaves no run: give values that occur.")

    checked = check_arms(rows, columns, args)
    primary = ab_numbers.primary_of(args.primary, checked)
    missing = list(checked["missing"])
    arms = arms_of(rows, columns, primary, missing)
    baseline, compared = None, []
    if args.baseline:
        baseline = find_baseline(arms, columns, args.baseline)
        compared = compare_with(baseline, arms, primary, checked, args)

    word = "comparable" if checked["ok"] else "not comparable"
    head = headline(word, checked, baseline, compared, missing)
    title = f"{len(arms)} arms by {', '.join(columns)}"
    if where:
        title += f" ({args.where})"
    unit = f"{SHORT[primary]} ({UNIT[primary]})"
    blocks: list[tuple] = [
        ("h1", title),
        ("verdict", head, word),
        stage_table(arms, columns, primary),
        ("p", f"final_loss: {unit} at the last step, mean over seeds."),
    ]
    if compared:
        blocks.append(("h2", f"Differences to {baseline['name']}: {unit}"))
        blocks.append(difference_table(compared, args))
    if args.out:
        blocks += plots(arms, primary, args)
    blocks += ab_gate.gate_blocks(checked)
    record = {
        "mode": "group_by", "verdict": word, "headline": head, "group_by": columns, "where": where,
        "primary": primary, "margin": args.delta, "alpha": args.alpha, "missing": missing, "gate": checked,
        "arms": [{key: arm[key] for key in ("name", "by_seed", "losses", "times")} for arm in arms],
        "baseline": baseline and baseline["name"], "differences": compared,
    }
    ab_report.publish(blocks, record, args.out)
    return 0 if checked["ok"] else 2


def find_baseline(arms: list[dict], columns: list[str], text: str) -> dict:
    wanted = cells_in(text, "--baseline")
    ab_gate.check_names("--baseline", list(wanted), set(columns))
    fits = []
    for arm in arms:
        cells = dict(zip(columns, arm["group"], strict=True))
        if all(cells[column] == cell for column, cell in wanted.items()):
            fits.append(arm)
    if len(fits) != 1:
        names = "; ".join(arm["name"] for arm in arms)
        raise ValueError(f"--baseline {text} fits {len(fits)} arms: choose one of {names}.")
    return fits[0]


def compare_with(baseline: dict, arms: list[dict], primary: str, checked: dict, args) -> list[dict]:
    """Every other arm against the baseline, verdicts by p values that Holm adjusted together: {"name", "row"
    (difference of the final loss), "wall" (the same at equal wall-clock), "time" (percent, or why not), "verdict"}."""
    compared = []
    for arm in arms:
        if arm is not baseline:
            row = ab_numbers.difference(baseline["by_seed"], arm["by_seed"], args.alpha)
            wall = at_equal_time(baseline, arm, primary, checked, args)
            compared.append({"name": arm["name"], "row": row, "wall": wall, "time": time_of(arm, baseline, checked)})
    tested = [entry["row"] for entry in compared if ab_numbers.is_tested(entry["row"])]
    for row, p in zip(tested, ab_stats.holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = float(p)
    for entry in compared:
        entry["verdict"] = "not comparable"
        if checked["ok"]:
            entry["verdict"] = ab_numbers.verdict_of(entry["row"], args.delta, entry["row"].get("p_holm"))
    return compared


def time_of(arm: dict, baseline: dict, checked: dict) -> str:
    if checked["other_machine"]:
        return "N/A: other hardware or software"
    if not arm["times"] or not baseline["times"]:
        return "N/A: not recorded"
    ratio = statistics.fmean(arm["times"]) / statistics.fmean(baseline["times"])
    return f"{100 * (ratio - 1):+.1f} %"


def at_equal_time(baseline: dict, arm: dict, primary: str, checked: dict, args) -> dict | None:
    """The difference at equal wall-clock; a results.csv has no curves to read it off."""
    if args.results or not arm["rows"] or not baseline["rows"]:
        return None
    both = [ab_numbers.finished([row["run"] for row in side["rows"]]) for side in (baseline, arm)]
    step = ab_numbers.common_step([run["val"] for side in both for run in side])
    matched = ab_numbers.matchings(both, step, primary, checked, args.delta, args.alpha)
    return matched[2]["row"]


def headline(word: str, checked: dict, baseline: dict | None, compared: list[dict], missing: list[str]) -> str:
    trouble = ab_gate.trouble_of(checked, lambda values: ", ".join(map(ab_gate.short, ab_gate.flat(values))))
    allowed = [d["knob"] for d in checked["differences"] if d["state"] == "allowed"]
    if trouble:
        text = f"{'; '.join(trouble)}: choose a stage with --where column=value, or --allow it."
    elif compared:
        verdicts = "; ".join(f"{entry['name']} {entry['verdict']}" for entry in compared)
        text = f"against {baseline['name']}: {verdicts}."
    else:
        text = "name the --baseline for differences and verdicts."
    if missing:
        text += f" Missing: {'; '.join(missing)}."
    if allowed:
        text += f" Allowed by --allow: {', '.join(allowed)}."
    return f"**{word}** · {text}"


def minutes(ms: float) -> str:
    """609,100 ms -> '10m 9.1s', as document 003 writes it."""
    tenths = round(ms / 100)
    return f"{tenths // 600}m {tenths % 600 / 10:.1f}s"


def mean_or(values: list[float], spell, reason: str) -> str:
    if not values:
        return f"N/A: {reason}"
    return spell(statistics.fmean(values))


def stage_table(arms: list[dict], columns: list[str], primary: str) -> tuple:
    """Document 003's table: the arm, seeds, final_loss, train_time."""
    cells = [(column, "left", lambda arm, i=i: arm["group"][i]) for i, column in enumerate(columns)]
    return ab_report.table([
        *cells,
        ("seeds", "right", lambda arm: len(arm["losses"])),
        ("final_loss", "right", lambda arm: mean_or(arm["losses"], "{:.4f}".format, f"no final_{primary}")),
        ("train_time", "right", lambda arm: mean_or(arm["times"], minutes, "not recorded")),
    ], arms)


def difference_table(compared: list[dict], args) -> tuple:
    def count(entry: dict) -> str:
        return f"{entry['row']['n']} {'pairs' if entry['row']['paired'] else 'unpaired'}"

    def wall(entry: dict) -> str:
        if entry["wall"] is None:
            return "N/A: no run to compare"
        return form_change(entry["wall"], ".4f").split(", p")[0]

    columns = [
        ("arm", "left", lambda entry: entry["name"]),
        ("n", "right", count),
        ("delta", "right", lambda entry: form(entry["row"]["delta"], "+.4f")),
        ("{level} interval", "right", lambda entry: form_interval(entry["row"], ".4f")),
        ("p", "right", lambda entry: form_p(entry["row"]["p"])),
        ("p (Holm)", "right", lambda entry: form_p(entry["row"].get("p_holm", entry["row"]["p"]))),
        ("verdict", "left", lambda entry: entry["verdict"]),
        ("train_time", "right", lambda entry: entry["time"]),
    ]
    if args.runs:
        columns.append(("delta at equal wall-clock", "right", wall))
    return ab_report.table(columns, compared, args.alpha)


def plots(arms: list[dict], primary: str, args) -> list[tuple]:
    """Each arm's losses; from folders the curves, too. Labels hold the columns in which the arms differ."""
    cells = list(zip(*(arm["group"] for arm in arms), strict=True))
    vary = [i for i, column in enumerate(cells) if len(set(column)) > 1] or [0]
    labels = [", ".join(arm["group"][i] or "(empty)" for i in vary) for arm in arms]
    losses = {label: arm["losses"] for label, arm in zip(labels, arms, strict=True)}
    blocks: list[tuple] = []
    png = ab_report.plot_arms(losses, f"final {SHORT[primary]} ({UNIT[primary]})")
    if png:
        blocks.append(("img", "arms.png", "Final loss of each arm: a circle per seed, a bar at the mean", png))
    if args.runs:
        members = {label: [row["run"] for row in arm["rows"]] for label, arm in zip(labels, arms, strict=True)}
        blocks += curves(members, primary)
    return blocks


def curves(arms: dict[str, list[dict]], metric: str) -> list[tuple]:
    """Held-out loss of each arm (name -> runs) over steps, and over training time, as blocks."""
    blocks = []
    for axis, name, x_label, caption in (
        ("step", "val_curves.png", "optimizer steps", "optimizer steps"),
        ("train_seconds", "val_wall_clock.png", "training time (seconds)", "training time"),
    ):
        points = {arm: ab_numbers.curve_points(members, metric, axis) for arm, members in arms.items()}
        png = ab_report.plot_curves(points, x_label, f"{SHORT[metric]} ({UNIT[metric]})")
        if png:
            blocks.append(("img", name, f"Held-out loss against {caption}: mean, and band from the lowest to the "
                                        "highest seed", png))
    return blocks
