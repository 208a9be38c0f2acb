"""This experiment's tables and plot, from the committed records: python experiments/2026-11-27_suite/table.py

--keep FOLDER takes the records of a finished run.sh into eval/ first.
"""

import json
import statistics
import sys
from pathlib import Path

from scipy import special

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import keep_results  # noqa: E402

from lab import ab_plots, ab_stats, disk, processes, tasks  # noqa: E402

ARMS = ("transformer", "titan", "hope")
SEEDS = (1, 2, 3)
EVALS = ("zeroshot", "niah", "passkey", "pg19", "continual")


# ----------------------------------------------------------------------------------------------------------------------
# records


def keep(folder: Path) -> None:
    for seed in SEEDS:
        for arm in ARMS:
            for name in EVALS:
                kept = here / "eval" / f"{name}_{arm}_s{seed}.json"
                kept.parent.mkdir(exist_ok=True)
                keep_results.keep_file(folder / f"s{seed}" / f"{name}_{arm}.json", kept)


def read(name: str) -> dict[str, list[dict]]:
    """{arm: its record of each seed}; the arms were asked the same."""
    records = {arm: [json.loads((here / "eval" / f"{name}_{arm}_s{seed}.json").read_text()) for seed in SEEDS]
               for arm in ARMS}
    for key in ("items_sha256", "filler_sha256", "documents_sha256"):
        asked = {one.get(key) for of_arm in records.values() for one in of_arm if isinstance(one, dict)}
        assert len(asked) <= 1, f"{name}: the arms were asked other things ({key})"
    return records


# ----------------------------------------------------------------------------------------------------------------------
# tables


def against_chance(shares: list[float], n_items: int, chance: float) -> dict:
    """A share of right answers, one per seed, of the same items: mean, its 95 % interval, p of "the mean is chance".

    The variance of the mean is that between seeds plus that of guessing as many items, which the seeds share; the t
    distribution's degrees of freedom are Satterthwaite's (1946)."""
    n, mean = len(shares), statistics.fmean(shares)
    of_seeds, of_items = statistics.variance(shares) / n, chance * (1 - chance) / n_items
    error = (of_seeds + of_items) ** 0.5
    df = error**4 / (of_seeds**2 / (n - 1) + of_items**2 / (n_items - 1))
    half = special.stdtrit(df, 0.975) * error
    p = 2 * special.stdtr(df, -abs(mean - chance) / error)
    return {"mean": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half), "p": float(p)}


def word(cell: dict, chance: float, p: float) -> str:
    if not p < 0.05:
        return "at chance"
    return "above chance" if cell["mean"] > chance else "below chance"


def cell_text(cell: dict, said: str) -> str:
    return f"{cell['mean']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}] {said}"


def key_of(task: str) -> tuple[str, str]:
    """(a task's name in the records, the harness' score for it)."""
    return f"{task}{tasks.TASKS[task].split}", "acc_norm" if tasks.TASKS[task].norm else "acc"


def score_tasks(exams: dict) -> dict[str, dict]:
    """{task: {"n", "chance", "majority", arm: against_chance() and "always", seeds that gave one answer always}}."""
    scores = {}
    for task in tasks.TASKS:
        name, score = key_of(task)
        first = exams["transformer"][0]
        n = first[f"{tasks.TASKS[task].original or task}_samples"]
        scores[task] = {"n": n, "chance": first[f"{name}_chance"], "majority": first[f"{name}_majority"]}
        for arm, records in exams.items():
            cell = against_chance([one[f"{name}_{score}"] for one in records], n, scores[task]["chance"])
            scores[task][arm] = cell | {"always": sum(one[f"{name}_{score}_answers"] == 1 for one in records)}
    return scores


def print_tasks(scores: dict, exams: dict) -> None:
    print(f"| task | n | chance | majority | {' | '.join(ARMS)} |\n|---|---:|---:|---:|" + "---|" * len(ARMS))
    corrected = ab_stats.holm({(task, arm): row[arm]["p"] for task, row in scores.items() for arm in ARMS})
    for task, row in scores.items():
        cells = []
        for arm in ARMS:
            said = word(row[arm], row["chance"], corrected[task, arm])
            if row[arm]["always"]:
                said += f"; the same answer always in {row[arm]['always']} of {len(SEEDS)} seeds"
            cells.append(cell_text(row[arm], said))
        print(f"| {tasks.TASKS[task].title} | {row['n']} | {row['chance']:.3f} | {row['majority']:.3f} | "
              f"{' | '.join(cells)} |")
    print("\nMean over the tasks of (accuracy - chance) / (1 - chance), and what BoolQ adds to it, mean over seeds:\n")
    print("| | all | of it BoolQ |\n|---|---:|---:|")
    for arm in ARMS:
        centered = {task: tasks.centered(row[arm]["mean"], row["chance"]) for task, row in scores.items()}
        print(f"| {arm} | {statistics.fmean(centered.values()):+.4f} | {centered['boolq'] / len(centered):+.4f} |")
    print("\nMean over the tasks, against the transformer's, by seed:\n")
    means = {arm: [statistics.fmean(one["{}_{}".format(*key_of(task))] for task in tasks.TASKS) for one in records]
             for arm, records in exams.items()}
    print_differences({f"{arm}, prompts written": (means["transformer"], means[arm]) for arm in ARMS[1:]})
    unwritten = {arm: [statistics.fmean(one["{}_baseline_{}".format(*key_of(task))] for task in tasks.TASKS)
                       for one in exams[arm]] for arm in ARMS[1:]}
    print("\nWhat writing the prompts changes, by seed:\n")
    print_differences({arm: (unwritten[arm], means[arm]) for arm in ARMS[1:]})


def print_differences(pairs: dict[str, tuple]) -> None:
    """A row for each (values of the one, of the other), paired by seed, by Holm over the rows."""
    stats = {name: ab_stats.paired(*pair) for name, pair in pairs.items()}
    corrected = ab_stats.holm({name: row["p"] for name, row in stats.items()})
    print("| | before | after | difference, 95 % interval | p by Holm |\n|---|---:|---:|---|---:|")
    for name, row in stats.items():
        print(f"| {name} | {row['mean_a']:.4f} | {row['mean_b']:.4f} | {row['delta']:+.4f} [{row['ci_low']:+.4f}, "
              f"{row['ci_high']:+.4f}] | {corrected[name]:.4f} |")


def find_needles(niah: dict, passkey: dict) -> dict[tuple, dict]:
    """{(exam, tokens, control): {arm: against_chance()}}."""
    found: dict = {}
    for name, exams in (("needle", niah), ("passkey", passkey)):
        for arm, records in exams.items():
            whole = [[cell for cell in one["cells"] if cell["depth"] is None] for one in records]
            for cells in zip(*whole, strict=True):
                row = (name, cells[0]["context_tokens"], cells[0]["control"])
                shares = [cell["accuracy"] for cell in cells]
                found.setdefault(row, {})[arm] = against_chance(shares, cells[0]["n"], records[0]["chance"])
    return dict(sorted(found.items()))


def print_needles(found: dict, chance: float, resolution: dict) -> None:
    corrected = ab_stats.holm({(row, arm): cell["p"] for row, cells in found.items() for arm, cell in cells.items()})
    print(f"| exam | tokens | read | {' | '.join(ARMS)} |\n|---|---:|---|" + "---|" * len(ARMS))
    for row, cells in found.items():
        texts = [cell_text(cells[arm], word(cells[arm], chance, corrected[row, arm])) if arm in cells else ""
                 for arm in ARMS]
        print(f"| {row[0]} | {row[1]:,} | {row[2]} | {' | '.join(texts)} |")
    low, high = resolution["told_apart"]
    print(f"\nChance is {chance:g}, and so is the majority's answer: the 10 candidates are equally often right. With "
          f"{resolution['n']} prompts two models cannot be told apart whose accuracies are nearer than {low:.2f} and "
          f"{high:.2f}.")


def print_losses(pg19: dict) -> None:
    print_differences({
        f"{arm}, {control}": ([one["loss"]["static"] for one in pg19["transformer"]],
                              [one["loss"][control] for one in pg19[arm]])
        for arm in ARMS[1:] for control in ("static", "adapt", "random", "other")})


def print_segments(continual: dict) -> None:
    names = list(continual["transformer"][0][0]["segment_losses"])
    pairs = {}
    for name in names:
        of = {arm: [one[0]["segment_baseline_losses"][name] for one in records] for arm, records in continual.items()}
        for arm in ARMS[1:]:
            written = [one[0]["segment_losses"][name] for one in continual[arm]]
            pairs[f"{name}: {arm}, written"] = (of["transformer"], written)
    print_differences(pairs)


# ----------------------------------------------------------------------------------------------------------------------
# the plot


def draw_groups(axis, groups: dict[str, tuple], title: str) -> None:
    """groups: {label: (cells by arm, chance, the majority's share)}."""
    for i, (cells, chance, majority) in enumerate(groups.values()):
        for k, arm in enumerate(arm for arm in ARMS if arm in cells):
            colour, _, marker = ab_plots.style_of(ARMS.index(arm))
            cell = cells[arm]
            error = [[cell["mean"] - cell["low"]], [cell["high"] - cell["mean"]]]
            axis.errorbar(i + 0.2 * (k - 1), cell["mean"], error, color=colour, marker=marker, linestyle="none",
                          label=arm if i == 0 else None)
        reach = i - 0.4, i + 0.4
        axis.hlines(chance, *reach, color="black", linestyle=":", label="chance" if i == 0 else None)
        axis.hlines(majority, *reach, color=ab_plots.GREY, linestyle="--", label="majority" if i == 0 else None)
    axis.set_xticks(range(len(groups)), list(groups), rotation=30, ha="right")
    axis.set(ylabel="share right", title=title)


def draw(scores: dict, found: dict, chance: float) -> None:
    """suite.png: zero-shot and needles, every task with the lines of chance and of the majority's answer."""
    (upper, lower), save = ab_plots.canvas(11, 8, [1, 1])
    of_tasks = {tasks.TASKS[name].title: (row, row["chance"], row["majority"]) for name, row in scores.items()}
    draw_groups(upper, of_tasks, "zero-shot, the harness' rule")
    needles = {}
    for (exam, tokens, control), cells in found.items():
        if control in ("static", "adapt", "removed"):
            needles[f"{exam} {tokens:,} {control}"] = (cells, chance, chance)
    draw_groups(lower, needles, "a number found again")
    upper.set_ylim(top=0.72)  # room for the legend
    upper.legend(ncols=5, loc="upper right")
    disk.write_whole(here / "suite.png", save())


def main():
    if sys.argv[1:2] == ["--keep"]:
        keep(Path(sys.argv[2]))
        return
    zeroshot, niah, passkey = read("zeroshot"), read("niah"), read("passkey")
    scores = score_tasks(zeroshot)
    print(f"## Nine tasks, zero-shot (the harness' rule, n = {len(SEEDS)} seeds)\n")
    print_tasks(scores, zeroshot)
    print("\nIntervals are over seeds and items; words are by Holm over all cells.\n\n## Needles and passkeys\n")
    first = niah["transformer"][0]
    found = find_needles(niah, passkey)
    print_needles(found, first["chance"], first["resolution"])
    print("\n## Loss on held-out books, nats per token, against the transformer's\n")
    print_losses(read("pg19"))
    print("\n## Loss on other text, nats per token, against the transformer's\n")
    print_segments(read("continual"))
    draw(scores, found, first["chance"])


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "table.py")
