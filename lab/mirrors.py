"""mirrors.py owns the trackers that show a run elsewhere as it trains: TensorBoard and Weights & Biases.

They get the records of scalars.jsonl, which stays the run's own record.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from lab import runs


def open_mirrors(folder: Path, config: dict, first_step: int, wandb_project="", tensorboard=False):
    """[(write(record), close())], one pair per tracker asked for. The numbers of a record appear as <its type>/<name>.

    A resumed run continues its wandb run. Its TensorBoard curves are cut after first_step, the checkpoint's step, or
    begin anew without a checkpoint. ValueError when a package is missing or wandb is not logged in.
    """
    mirrors = []
    if tensorboard:
        mirrors.append(_tensorboard(folder, first_step))
    if wandb_project:
        mirrors.append(_wandb(folder, config, wandb_project))
    return mirrors


def _numbers(record: dict) -> dict:
    kind = record.get("type", "train")
    numbers = {k: v for k, v in record.items() if k != "step" and isinstance(v, (int, float))}
    return {f"{kind}/{name}": value for name, value in numbers.items()}


def _tensorboard(folder: Path, first_step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard: pip install tensorboard first, or drop the flag.") from None
    if runs.list_checkpoints(folder):
        first_step += 1  # a checkpoint is saved after its own step was recorded
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def write(record):
        for name, value in _numbers(record).items():
            writer.add_scalar(name, value, record["step"])

    return write, writer.close


def _wandb(folder: Path, config: dict, project: str):
    try:
        import wandb
    except ImportError:
        raise ValueError("--wandb_project: pip install wandb first, or drop the flag.") from None
    identity = hashlib.sha256(f"{folder.name} {config['started']}".encode()).hexdigest()[:16]
    settings = {**config["flags"], **config["data"], **config["parameters"]}
    try:
        run = wandb.init(project=project, name=folder.name, dir=str(folder), id=identity,
                         resume="allow", config=settings)
    except wandb.errors.Error as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(f"--wandb_project: wandb does not start ({reason}): "
                         "run wandb login, set WANDB_MODE=offline, or drop the flag.") from error
    run.define_metric("*", step_metric="step")

    def write(record):
        run.log({**_numbers(record), "step": record["step"]})

    return write, run.finish
