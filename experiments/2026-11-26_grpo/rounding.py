"""How far bfloat16 rounds a log-prob: python experiments/2026-11-26_grpo/rounding.py RUN ...

Draws 256 completions of 32 problems as grpo.py does, in bfloat16, and takes log p of each token twice more from the
same weights: as in an update, and as in an update in float32. If sampling and updating differ by rounding alone, they
differ by about as much as an update does from float32, and not to one side.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import flags  # noqa: E402

if __name__ == "__main__":
    flags.check_first(__file__)

import torch  # noqa: E402

import grpo  # noqa: E402
from lab import benchmarks, processes, rollouts  # noqa: E402

PROBLEMS, GROUP, NEW, MICRO = 32, 8, 40, 64


def log_probs_of(model, drawn: list, autocast) -> torch.Tensor:
    """log p of every token of the completions, in their order, fp64. With gradients, as an update forms them: without
    there are other kernels."""
    parts = {}
    for rows in rollouts.micro_batches(drawn, MICRO):
        batch = rollouts.make_batch([drawn[i] for i in rows])
        with autocast():
            values = rollouts.log_probs(model, batch, 1.0).detach().double()
        for place, row in enumerate(rows):
            parts[row] = values[batch["owner"] == place]
    return torch.cat([parts[row] for row in range(len(drawn))])


def main() -> None:
    parser = flags.Parser(prog="rounding.py", description=__doc__)
    parser.add_argument("runs", nargs="+", help="run folders")
    folders = parser.parse_args().runs
    processes.tune_allocator()
    args = grpo.parse_args(["--init", "-", "--data", f"synthetic:{PROBLEMS}", "--max_new_tokens", str(NEW),
                            "--exam_data", "synthetic:1"])
    one = SimpleNamespace(rank=0, world_size=1, is_main=True, device=torch.device("cpu"))
    print("| run | tokens | sampling - update: mean (se), sd, largest | update - float32: sd, largest | beyond "
          f"{grpo.ROUNDING['bfloat16']:g} |\n|---|---:|---|---|---:|")
    for name in folders:
        model, *_ = benchmarks.load_checkpoint(name, "cpu")
        problems = rollouts.load(args, model.config.block_size)["problems"]
        with processes.autocast_for(one.device, "bfloat16")():
            drawn = rollouts.sample(model.eval(), 1, list(enumerate(problems)), group_size=GROUP, max_new_tokens=NEW,
                                    temperature=1.0, seed=0, batch_size=256)
        sampled = torch.tensor([value for completion in drawn for value in completion.log_probs], dtype=torch.float64)
        updates = {dtype: log_probs_of(model, drawn, processes.autocast_for(one.device, dtype))
                   for dtype in ("bfloat16", "float32")}
        between, rounded = sampled - updates["bfloat16"], updates["bfloat16"] - updates["float32"]
        error = between.std() / len(between) ** 0.5
        beyond = (between.expm1().abs() > grpo.ROUNDING["bfloat16"]).double().mean()
        print(f"| {Path(name).name} | {len(between):,} | {between.mean():+.5f} ({error:.5f}), {between.std():.4f}, "
              f"{between.abs().max():.3f} | {rounded.std():.4f}, {rounded.abs().max():.3f} | {beyond:.4%} |")


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "rounding.py")
