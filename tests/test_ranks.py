"""What ranks owe each other: equal weights, equal files, and a sentence instead of waiting for ever."""

import datetime
import os
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import losses, run_two_ranks, tiny_documents, write_dataset

import train_gpt
from lab import processes

TINY = ("--n_layer 1 --n_head 2 --n_embd 16 --seq_len 16 --micro_batch_size 4 --total_batch_tokens 128 --device cpu "
        "--max_train_steps 2 --eval_every 0 --log_every 0 --results_csv").split()
# rank 1 draws other weights, or stands in another folder, and so sees another --out_dir
SCRIPT = """
import os, sys
import train_gpt
from lab import processes
from model import GPT
if os.environ["RANK"] == "1":
    if sys.argv[1] == "other_weights":
        draw = GPT.init_weights
        GPT.init_weights = lambda self, seed: draw(self, seed + 1)
    if sys.argv[1] == "other_disk":
        os.makedirs("elsewhere", exist_ok=True)
        os.chdir("elsewhere")
processes.exit_in_a_sentence(lambda: train_gpt.main(sys.argv[2:]), "train_gpt.py")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tiny"
    write_dataset(folder, tiny_documents(40, 3, 60))
    return folder


def run_two(what, folder, *flags):
    """Two ranks of train_gpt.py in a folder; returns their (exit status, stderr)."""
    return [(status, error) for status, _, error in run_two_ranks(SCRIPT, what, *flags, cwd=folder)]


def test_all_ranks_take_the_weights_of_rank_0(data, tmp_path):
    """Losses of two ranks, one of which drew other weights: those of one rank, to 1e-5."""
    flags = ["--data_dir", data, *TINY, ""]
    assert [status for status, _ in run_two("other_weights", tmp_path, *flags, "--out_dir", "two")] == [0, 0]
    train_gpt.main([*map(str, flags), "--out_dir", str(tmp_path / "one")])
    assert np.abs(losses(tmp_path / "two") - losses(tmp_path / "one")).max() < 1e-5


def test_a_checkpoint_that_one_rank_does_not_see(data, tmp_path):
    """All ranks end, and rank 0 says why; they would wait for each other for hours."""
    flags = ["--data_dir", data, *TINY, "", "--out_dir", "run"]
    train_gpt.main([*map(str, flags[:-1]), str(tmp_path / "run")])
    (tmp_path / "run" / "summary.json").unlink()
    ends = run_two("other_disk", tmp_path, *flags, "--resume", "auto")
    assert [status for status, _ in ends] == [1, 1], ends
    assert "rank 1 does not see run/ckpt/step_000002: put --out_dir on a disk that all nodes share." in ends[0][1]


def test_ranks_wait_for_hours(monkeypatch):
    """NCCL ends all after ten minutes unless told otherwise, and rank 0 may read a large corpus alone."""
    monkeypatch.setattr(os, "environ", os.environ | {"WORLD_SIZE": "2", "RANK": "0"})
    with mock.patch.object(torch.distributed, "init_process_group") as start:
        processes.start_processes("cpu")
    assert start.call_args.kwargs["timeout"] >= datetime.timedelta(hours=1)


@pytest.mark.parametrize("error, leaves", [
    (None, True), (processes.SharedError("all"), True), (ValueError("one"), False), (KeyboardInterrupt(), False)])
def test_a_rank_that_fails_alone_does_not_wait(error, leaves):
    """A rank's farewell to the others, with NCCL a wait for them: after a run, and an error of all, but not when it
    alone has failed, of which it would never speak. Its folder is let go in any case."""
    held = mock.Mock()
    with mock.patch.object(torch.distributed, "destroy_process_group") as leave:
        try:
            with processes.Processes(1, 1, 2, torch.device("cpu"), held):
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt) as raised:
            assert raised is error
    assert leave.called == leaves and held.close.called


ARRAYS = """
import pickle
import numpy as np
from lab import processes

processes.PIECE = 100
procs = processes.start_processes("cpu")
make = lambda: {
    "tokens": np.arange(999, dtype=np.uint16), "trained": np.arange(999) % 3 == 0, "none": np.empty((0, 2)),
    "hash": np.frombuffer(bytes(range(160)), "V16"), "turned": np.arange(40).reshape(5, 8).T, "stages": ["a", "b"]}
seen, broadcast = [], procs.broadcast

def note(value):
    seen.append(len(pickle.dumps(value)))
    return broadcast(value)

procs.broadcast = note
got = procs.arrays_from_main(make if procs.is_main else None)
assert max(seen) < 1000, seen
for name, value in make().items():
    assert np.array_equal(got[name], value), name
    assert name == "stages" or got[name].dtype == value.dtype
try:
    procs.arrays_from_main(lambda: 1 / 0 if procs.rank else int("x"))
except processes.SharedError as error:
    assert "invalid literal" in str(error)
    procs.close()
    print("both")
"""


def test_arrays_are_not_pickled():
    """Bytes of sft.py's arrays that are pickled for the other ranks: none, whatever dtype, shape and number of pieces;
    they arrive as they are. What rank 0 cannot read is an error of all."""
    ends = run_two_ranks(ARRAYS)
    assert [(status, out) for status, out, _ in ends] == [(0, "both\n")] * 2, ends
