"""branch.py makes runs of other lengths out of a long one: each goes on from one of its checkpoints.

    python train_gpt.py ... --schedule trapezoid --max_train_steps 4000 --warmdown_iters 800 --save_every 400 \\
        --keep_last 0 --out_dir experiments/runs/x_s0
    python experiments/branch.py 'experiments/runs/x_s*' --max_train_steps 1000 2000 > branches.txt
    python experiments/sweep.py branches.txt                                # trains x_1000_s0, x_2000_s0, ...
    python experiments/lengths.py --a 'experiments/runs/x_*' --b 'experiments/runs/y_*'      # the effect by length

Under a trapezoid the learning rate is constant until the warmdown. So runs of 1,000 and of 4,000 steps are the same
run up to the shorter one's warmdown, and the long one, the trunk, has trained that part already
(https://arxiv.org/abs/2405.18392). A branch begins as the trunk's folder up to its newest checkpoint from before the
branch's own warmdown, and has its own --max_train_steps and --warmdown_iters. Its steps, tokens, FLOPs and seconds
count from step 0. On the same machine, with the same code and processes, it ends byte-identical to a run of its
length, and of the trunk's warmup, that was trained alone. A finished run can be made longer in the same way, if its
data suffices. A cosine cannot be branched: each of its steps depends on the length.

Prints the commands that train the branches, for sweep.py or a shell; what it did goes to stderr. A branch that exists
already is left alone, so the same command goes on after an interruption. A trunk may still be training.
"""

import argparse
import re
import shlex
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab import flags  # noqa: E402

if __name__ == "__main__":
    flags.check_first(__file__)

from lab import disk, optim, processes, resume, runs, schema, snapshots, training  # noqa: E402

POSITIVE = "a whole number of at least 1", lambda value: type(value) is int and 1 <= value < 2**63
TRUNK = {  # config.json of a run that may be branched
    "tokens_per_step": POSITIVE, "data": {"sequences": POSITIVE},
    "flags": {"schedule": schema.TEXT, "max_train_steps": POSITIVE, "warmup_iters": schema.COUNT,
              "warmdown_iters": schema.COUNT, "seq_len": POSITIVE, "max_epochs": schema.AMOUNT}}
BRANCH = {"branched_from": {"run": schema.TEXT}, "flags": {}}
CHANGED = ("max_train_steps", "warmdown_iters")  # of a branch; all other flags are the trunk's

# ----------------------------------------------------------------------------------------------------------------------
# what a branch is


def flags_of_branch(trunk: dict, steps: int, warmdown_frac: float | None) -> dict:
    """The flags of a branch of `steps` steps. warmdown_frac: its share of warmdown; None: as long a share as the
    trunk's. ValueError when the trunk has none, or the schedule does not fit."""
    share = warmdown_frac
    if share is None:
        share = trunk["warmdown_iters"] / trunk["max_train_steps"]
        if share == 0:
            raise ValueError("it has no warmdown whose share could be kept: pass --warmdown_frac, as 0.2.")
    warmup, warmdown = trunk["warmup_iters"], round(share * steps)
    if warmup + warmdown > steps:
        raise ValueError(f"the trunk's warmup {warmup} + warmdown {warmdown} do not fit into it: ask for more steps, "
                         "or pass a smaller --warmdown_frac.")
    branch = trunk | {"max_train_steps": steps, "warmdown_iters": warmdown}
    optim.schedule_settings(argparse.Namespace(**branch))  # refuses what does not fit
    return branch


def common_steps(trunk: dict, branch: dict) -> int:
    """For how many steps from the first the two runs have the same learning rates, the branch's last one excepted: it
    is evaluated and saved as no step of the trunk is."""
    ours, theirs = (optim.schedule_settings(argparse.Namespace(**values)) for values in (trunk, branch))
    last = min(trunk["max_train_steps"], branch["max_train_steps"] - 1)
    for step in range(last):
        if optim.lr_multiplier(step, **ours) != optim.lr_multiplier(step, **theirs):
            return step
    return last


def name_of_branch(trunk: Path, steps: int | str) -> str:
    """x_s0 -> x_1000_s0, so that the seeds of a length are an arm; a size's is x_d4_s0 (ladder.py)."""
    seed = re.search(r"[_-]s(eed)?\d+$", trunk.name)
    stem, end = trunk.name, ""
    if seed:
        stem, end = trunk.name[: seed.start()], seed.group()
    return f"{stem}_{steps}{end}"


def place_of(folder: Path) -> str:
    """A folder's path from the repository, where it is in it, so that a copy of both finds it; else its whole path."""
    folder = folder.resolve()
    if folder.is_relative_to(runs.REPO):
        folder = folder.relative_to(runs.REPO)
    return folder.as_posix()


def read_trunk(folder: Path) -> dict:
    """config.json of a run of train_gpt.py with a schedule that can be branched. ValueError for another."""
    config = runs.read_config(folder)
    fault = schema.misfit(config, TRUNK)
    if fault:
        raise ValueError(f"{folder} is not a run of train_gpt.py, by its config.json ({fault}): name one.")
    if not (folder / "scalars.jsonl").is_file():
        raise ValueError(f"{folder} has no scalars.jsonl, with whose steps a branch begins: restore it, or name "
                         "another.")
    if config["flags"]["schedule"] == "cosine":
        raise ValueError(f"{folder} has --schedule cosine, whose every step depends on the run's length: train the "
                         "trunk with --schedule trapezoid.")
    others = snapshots.other_network(folder)
    if others:
        raise ValueError(f"{folder} was trained by another network than this, of {', '.join(others)}: branch it, and "
                         "train its branches, by the code that trained it.")
    return config


# ----------------------------------------------------------------------------------------------------------------------
# making one


def choose_checkpoint(trunk: Path, last: int, steps: int) -> Path:
    """The newest whole checkpoint of a trunk up to step `last`, where a branch of `steps` steps leaves it. ValueError
    when there is none."""
    fault = "it has no checkpoint"
    for checkpoint in reversed(runs.list_checkpoints(trunk)):
        if runs.step_of(checkpoint) > last:
            fault = f"its first is of step {runs.step_of(checkpoint)}"
            continue
        try:
            runs.check_checkpoint(checkpoint)
            return checkpoint
        except ValueError as error:
            fault = str(error)
    raise ValueError(
        f"{trunk} has no checkpoint up to step {last}, where a branch of {steps} steps leaves it ({fault}): "
        "train it with a smaller --save_every and --keep_last 0, or ask for more steps.")


def make_branch(trunk: Path, config: dict, values: dict, checkpoint: Path, folder: Path) -> None:
    """Writes a branch's folder, whole or not at all: the trunk's records and code up to a checkpoint, and a config.json
    with the branch's flags. ValueError when it cannot be written."""
    step, tmp = runs.step_of(checkpoint), folder.with_name(f".tmp_{folder.name}")
    shutil.rmtree(tmp, ignore_errors=True)  # of one that was killed
    try:
        copied = tmp / "ckpt" / checkpoint.name
        shutil.copytree(checkpoint, copied)
        runs.check_checkpoint(copied)
        for path in trunk.iterdir():
            is_record = path.suffix == ".jsonl" or path.name.startswith("val_documents_")
            if path.is_file() and (is_record or path.name == "step_metrics.json"):
                shutil.copyfile(path, tmp / path.name)
        for part in [*trunk.glob("exposures"), *trunk.glob("code"), *trunk.glob("code_[0-9]*")]:
            if "_" not in part.name or runs.step_of(part) < step:  # the code of later steps is not the branch's
                shutil.copytree(part, tmp / part.name)
        due = resume.read_trainer(copied / "trainer.json", training.State).due
        resume.trim_records(tmp, step, due)
        disk.write_json(tmp / "config.json", record_of_branch(config, values, trunk, step))
        # as training.leave says it, by which compare_runs.py --list knows a run that can go on
        log = f"stopped at step {step} of {values['max_train_steps']}, branched off {trunk}; continue with: "
        (tmp / "log.txt").write_text(f"{log}{command_of(folder)}\n", encoding="utf-8")
        tmp.rename(folder)
    except ValueError as error:  # the copy is gone by then: what has to be restored is the trunk's
        raise ValueError(str(error).replace(str(tmp), str(trunk))) from None
    except OSError as error:
        if not checkpoint.exists():
            raise ValueError(f"{checkpoint} was deleted while it was copied, as its run still trains: train the trunk "
                             "with --keep_last 0, or run this again for an older checkpoint.") from error
        why, remedy = disk.reason_of(error, named=True), disk.remedy_of(error)
        raise ValueError(f"{folder} cannot be made ({why}): {remedy}, or choose another --out_dir.") from error
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def command_of(branch: Path) -> str:
    return shlex.join(["python", "train_gpt.py", "--out_dir", place_of(branch), "--resume", "auto"])


def record_of_branch(config: dict, values: dict, trunk: Path, step: int) -> dict:
    """config.json of a branch: that of the trunk, but for what follows from its length."""
    sequences = values["max_train_steps"] * (config["tokens_per_step"] // values["seq_len"])
    data = config["data"] | {
        "epochs": sequences / config["data"]["sequences"],
        "unique_tokens": min(sequences, config["data"]["sequences"]) * values["seq_len"]}
    record = config | {
        "flags": values, "data": data, "started": runs.now(),
        "branched_from": {"run": place_of(trunk), "step": step}}
    record.pop("argv", None)  # the trunk's command would not repeat it; --config does
    return record


# ----------------------------------------------------------------------------------------------------------------------
# all of them


def plan(args) -> list[tuple]:
    """What make_branch takes, for each branch that is asked for. ValueError before anything is written."""
    planned, folders = [], set()
    for trunk in runs.expand(args.runs, "runs"):
        config = read_trunk(trunk)
        for steps in args.max_train_steps:
            try:
                values = flags_of_branch(config["flags"], steps, args.warmdown_frac)
            except ValueError as error:
                raise ValueError(f"{trunk} at {steps} steps: {error}") from None
            if all(values[name] == config["flags"][name] for name in CHANGED):
                raise ValueError(f"{trunk} has {steps} steps and this warmdown itself: leave {steps} out.")
            sequences = steps * (config["tokens_per_step"] // values["seq_len"])
            most = values["max_epochs"] * config["data"]["sequences"]
            if sequences > most:
                raise ValueError(f"{trunk} at {steps} steps: it would read {sequences:,} sequences, more than its data "
                                 f"and --max_epochs {values['max_epochs']:g} give: ask for at most "
                                 f"{int(most * steps / sequences)} steps.")
            parent = args.out_dir or trunk.parent
            folder = parent / name_of_branch(trunk, steps)
            if folder in folders:
                raise ValueError(f"two of the runs would become {folder}: give their branches another --out_dir each.")
            folders.add(folder)
            checkpoint = None
            if folder.exists():
                refuse_other_run(folder, trunk, values)
            else:
                checkpoint = choose_checkpoint(trunk, common_steps(config["flags"], values), steps)
            planned.append((trunk, config, values | {"out_dir": str(folder)}, checkpoint, folder))
    return planned


def refuse_other_run(folder: Path, trunk: Path, values: dict) -> None:
    """ValueError when a folder that exists is not the branch that is asked for."""
    config = {}
    if (folder / "config.json").exists():
        config = runs.read_config(folder)
    is_own = not schema.misfit(config, BRANCH) and config["branched_from"]["run"] == place_of(trunk)
    if not is_own or runs.conditions(config["flags"]) != runs.conditions(values):
        raise ValueError(f"{folder} exists and is not this branch of {trunk}: delete it, or choose another --out_dir.")


def main(argv=None) -> int:
    args = parse_args(argv)
    for trunk, config, values, checkpoint, folder in tqdm(plan(args), unit="branch", disable=None):
        if checkpoint is not None:
            make_branch(trunk, config, values, checkpoint, folder)
            steps = values["max_train_steps"] - runs.step_of(checkpoint)
            tqdm.write(f"{folder}: from {checkpoint}, {steps} of {values['max_train_steps']} steps are left to train",
                       file=sys.stderr)
        print(command_of(folder), flush=True)
    return 0


def parse_args(argv=None):
    parser = flags.Parser(prog="branch.py", description=__doc__)
    parser.add_argument("runs", nargs="+", help="the trunks: run folders, or quoted patterns")
    parser.add_argument("--max_train_steps", type=int, nargs="+", required=True, metavar="STEPS",
                        help="lengths of the branches")
    parser.add_argument("--warmdown_frac", type=float, metavar="SHARE",
                        help="share of a branch's steps that is warmdown (default: as in its trunk)")
    parser.add_argument("--out_dir", type=Path, help="where the branches go (default: beside their trunks)")
    args = parser.parse_args(argv)
    if min(args.max_train_steps) < 1:
        parser.error("--max_train_steps: give numbers of at least 1.")
    if args.warmdown_frac is not None and not 0 <= args.warmdown_frac <= 1:
        parser.error("--warmdown_frac: give a share between 0 and 1.")
    args.max_train_steps = sorted(set(args.max_train_steps))
    return args


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "branch.py")
