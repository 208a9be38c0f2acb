"""saving.py owns when a checkpoint gets to disk: at once or, on CUDA, beside the steps that follow.

    saver = Saver(procs)
    saver.begin(folder, step, keep_last, model, optimizers, rng_states, state)      # on all ranks
    path = saver.finish()                                                           # "" when there is nothing new

What makes it whole, manifest and rename last: runs.save_checkpoint.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils._pytree import tree_map

from lab import disk, estimate, processes, runs
from lab.tokenizer import get_tokenizer
from model import GPT


def on_host(model: GPT, states: list[dict]) -> tuple[GPT, list[dict]]:
    """Copies in host memory of a model and of its optimizers' states, whose tensors are on a device."""
    copy = GPT(model.config, seed=None)
    copy.load_state_dict(model.state_dict())
    return copy, tree_map(lambda value: value.cpu() if torch.is_tensor(value) else value, states)


def rng_state(device) -> dict:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


class Saver:
    """Writes checkpoints, one after the other, on rank 0. Where training goes on meanwhile, the time of a save is that
    of a copy, 1.5 GB for 124M parameters, in place of seconds for disk and checksums."""

    def __init__(self, procs: processes.Processes):
        self.procs, self.pool = procs, None
        self.pending: Future | None = None  # on ranks that write nothing, too

    def begin(self, folder: Path, step: int, keep_last: int, model, optimizers, rng_states, state: dict) -> None:
        """Begins a save; the one before must have been finished. On CUDA what fails is raised by finish(), elsewhere
        here."""
        size = estimate.checkpoint_bytes(model, optimizers)
        is_cuda = self.procs.device.type == "cuda"
        states = [optimizer.state_dict() for optimizer in optimizers]
        if is_cuda and self.procs.is_main:
            model, states = on_host(model, states)

        def write(tmp: Path) -> None:
            model.save(tmp)
            get_tokenizer().save(tmp)
            torch.save(states, tmp / "optimizer.pt")
            torch.save(rng_states, tmp / "rng.pt")
            disk.write_json(tmp / "trainer.json", state)

        def save() -> str:
            return str(runs.save_checkpoint(folder, step, write, size, keep_last))

        self.pending = Future()
        if not is_cuda:
            self.pending.set_result(self.procs.on_main(save))
        elif self.procs.is_main:
            if self.pool is None:
                self.pool = ThreadPoolExecutor(1, thread_name_prefix="save")
                self.procs.held.callback(self.pool.shutdown)  # before the run's folder is let go
            self.pending = self.pool.submit(save)

    def is_done(self) -> bool:
        """Whether the save that was begun has been written, or has failed; on a rank that writes nothing, never."""
        return self.pending is not None and self.pending.done()

    def finish(self) -> str:
        """The path of the checkpoint that was begun, once it is whole; "" when there is none. ValueError when it could
        not be written."""
        if self.pending is None:
            return ""
        pending, self.pending = self.pending, None
        if self.procs.device.type != "cuda":
            return pending.result()
        return self.procs.on_main(pending.result)
