"""precision.py: what --dtype auto takes, on which machine, and that a run keeps it."""

import itertools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import exact, losses, make_run, tiny_documents, weights, write_dataset

import compare_runs
import train_gpt
from lab import precision, processes, runs
from model import GPT, GPTConfig

TINY = ("--n_layer 2 --n_head 2 --n_embd 16 --seq_len 32 --micro_batch_size 1 --total_batch_tokens 64 --eval_every 0 "
        "--learning_rate 1e-2 --log_every 0 --val_tokens 200").split()  # emulated bfloat16 is slow
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tiny"
    write_dataset(folder, tiny_documents(82, 3, 120))
    return folder


def train(data, out, *flags):
    own = ["--data_dir", str(data), "--out_dir", str(out), "--results_csv", ""]
    assert train_gpt.main([*own, *TINY, *map(str, flags)]) == 0


def machine(monkeypatch, native=True, speedup=2.0, smallest=0):
    """Let this machine look like another one."""
    def measure(*shape):
        if speedup is None:
            raise AssertionError("measured, where the decision stands already")
        return speedup

    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: native)
    monkeypatch.setattr(precision, "measure", measure)
    monkeypatch.setattr(precision, "SMALLEST", smallest)


def tiny_model():
    return GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=64, unused_ids=()))


@pytest.mark.parametrize(("native", "speedup", "smallest", "dtype", "words"), [
    (False, None, 0, "float32", "does not multiply bfloat16 natively"),
    (True, None, 4_000_000, "float32", "fewer than 4,000,000 parameters"),
    (True, 1.49, 0, "float32", "1.49 times as fast as float32 ones here, less than 1.5"),
    (True, 2.04, 0, "bfloat16", "2.04 times as fast"),
])
def test_auto_on_a_cpu(monkeypatch, native, speedup, smallest, dtype, words):
    """A step on a CPU without native bfloat16 would be several times slower, one of a tiny model no faster."""
    machine(monkeypatch, native, speedup, smallest)
    assert precision.fastest(CPU, tiny_model(), 64)[::2] == (dtype, speedup)
    assert words in precision.fastest(CPU, tiny_model(), 64)[1]


@pytest.mark.parametrize(("native", "dtype"), [(False, "float32"), (True, "bfloat16")])
def test_auto_on_cuda(monkeypatch, native, dtype):
    """Cards older than Ampere emulate bfloat16, which torch counts as support unless asked: several times slower."""
    def is_bf16_supported(including_emulation=True):
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert precision.fastest(CUDA, tiny_model(), 64)[0] == dtype
    assert precision.fastest(torch.device("mps"), tiny_model(), 64)[0] == "float32"


def test_all_ranks_take_what_rank_0_measured(monkeypatch):
    """Ranks of other precisions would train another model than one rank does."""
    sent = []

    class Rank(processes.Processes):
        def broadcast(self, value):
            if self.is_main:
                sent.append(value)
            return sent[-1]

    machine(monkeypatch, speedup=2.0)
    for rank in (0, 1):
        args = SimpleNamespace(dtype="auto")
        chosen = precision.choose(args, Rank(rank, rank, 2, CPU), tiny_model(), 64, None)
        assert (args.dtype, chosen.dtype, chosen.speedup) == ("bfloat16", "bfloat16", 2.0)
        machine(monkeypatch, speedup=None)


def test_a_busy_machine_does_not_change_the_measurement(monkeypatch):
    """The ratio of the fastest rounds: 3 of 4 rounds are disturbed, and the ratio must stay 2."""
    seconds = [9.0, 0.1, 0.2, 8.0, 7.0, 5.0, 3.0, 2.0]  # float32 and bfloat16 in turn
    times = [0.0]
    for one in seconds:
        times += [times[-1], times[-1] + one]
    clock = iter(times[1:])
    monkeypatch.setattr(precision.time, "thread_time", lambda: next(clock))
    assert precision.measure(16, 64, 32) == pytest.approx(2.0)


def test_the_measurement_is_of_one_thread(monkeypatch):
    """Threads that wait for each other use CPU time, too. Afterwards there are as many as before."""
    used = []
    threads = torch.get_num_threads()
    clock = itertools.count()
    monkeypatch.setattr(precision.time, "thread_time", lambda: used.append(torch.get_num_threads()) or next(clock))
    torch.set_num_threads(2)
    try:
        assert precision.measure(16, 64, 32) == 1
        assert set(used) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(16, 64, 8), (1600, 6400, 65_536)])
def test_the_measurement_is_short(monkeypatch, shape):
    """FLOPs of one product: at most 1e9 and a row, whatever the model."""
    made = []
    monkeypatch.setattr(torch, "ones", lambda rows, cols: made.append((rows, cols)) or torch.zeros(rows, cols))
    monkeypatch.setattr(precision, "ROUNDS", 1)
    precision.measure(*shape)
    (rows, width), (cols, _), _ = made
    assert width == shape[0] and rows == min(256, shape[2]) and 2 * rows * width * cols <= 1.01e9


def test_a_run_keeps_its_dtype(data, tmp_path, monkeypatch, capsys):
    """config.json names dtype and ratio; neither --resume nor --config measures again, with --dtype auto or without."""
    out = tmp_path / "run"
    machine(monkeypatch, speedup=2.04)
    train(data, out, "--max_train_steps", 4, "--save_every", 2, "--keep_last", 0)
    config = runs.read_config(out)
    assert config["flags"]["dtype"] == "bfloat16"
    assert config["precision"] == {
        "dtype": "bfloat16", "why": "bfloat16 products are 2.04 times as fast as float32 ones here", "speedup": 2.04}
    assert capsys.readouterr().out.count("products in bfloat16: bfloat16 products are 2.04 times as fast") == 1

    machine(monkeypatch, native=False, speedup=None)  # another machine
    again = ["--out_dir", str(out), "--resume", "auto"]
    assert train_gpt.main(again) == 0 and train_gpt.main([*again, "--dtype", "auto"]) == 0
    assert capsys.readouterr().out.count("already finished") == 2
    for flags in ([], ["--dtype", "auto"]):
        (out / "summary.json").unlink()
        assert train_gpt.main([*again, *flags]) == 0
        assert "products in bfloat16: as the run began" in capsys.readouterr().out
    assert runs.read_config(out) == config
    repeat = ["--config", str(out / "config.json"), "--out_dir", str(tmp_path / "repeat"), "--seed", "1"]
    assert train_gpt.main(repeat) == 0
    assert runs.read_config(tmp_path / "repeat")["precision"]["dtype"] == "bfloat16"
    (out / "summary.json").unlink()
    with pytest.raises(ValueError, match="dtype: 'bfloat16' -> 'float32'"):
        train_gpt.main([*again, "--dtype", "float32"])


def test_resume_in_bfloat16_is_bit_exact(data, tmp_path):
    """All records but times, and the final weights, after a resume at step 2 of 6: equal to the last bit."""
    out, flags = tmp_path / "whole", ["--max_train_steps", 6, "--dtype", "bfloat16"]
    train(data, out, *flags, "--eval_every", 3, "--save_every", 2, "--keep_last", 0)
    cut = tmp_path / "cut"
    shutil.copytree(out, cut)
    (cut / "summary.json").unlink()
    for step in (4, 6):
        shutil.rmtree(runs.checkpoint_path(cut, step))
    assert train_gpt.main(["--out_dir", str(cut), "--resume", "auto"]) == 0
    assert exact(cut) == exact(out) and weights(cut) == weights(out)


@pytest.mark.skipif(not precision.multiplies_bfloat16(CPU), reason="this CPU does not multiply bfloat16 natively")
def test_losses_in_bfloat16_follow_float32(data, tmp_path):
    """The mean of the last 10 of 50 losses, down by more than 1: within 1e-2 of float32's; each loss within 5e-2."""
    curves = {}
    for dtype in ("float32", "bfloat16"):
        train(data, tmp_path / dtype, "--max_train_steps", 50, "--max_epochs", 2, "--save_every", 0, "--dtype", dtype,
              "--micro_batch_size", 4, "--total_batch_tokens", 128)
        curves[dtype] = losses(tmp_path / dtype)
    a, b = curves.values()
    assert a[0] - a[-10:].mean() > 1 and abs(a[-10:].mean() - b[-10:].mean()) < 1e-2 and np.abs(a - b).max() < 5e-2


def test_compare_runs_names_another_dtype(tmp_path):
    """Runs of one comparison on two machines: not comparable, and the first line names the flag that makes them so."""
    for seed in (0, 1, 2):
        make_run(tmp_path / f"a_s{seed}", seed)
        make_run(tmp_path / f"b_s{seed}", seed, flags={"attn_gate": "headwise", "dtype": "bfloat16"},
                 config={"model.attn_gate": "headwise"})
    arms = ["--a", str(tmp_path / "a_s*"), "--b", str(tmp_path / "b_s*")]
    assert compare_runs.main([*arms, "--no_items", "--out", str(tmp_path / "report")]) == 2
    headline = json.loads((tmp_path / "report" / "report.json").read_text())["headline"]
    sentence = "dtype (float32 / bfloat16; --dtype auto takes it by the machine: train all runs with --dtype float32)"
    assert headline.startswith("**not comparable**") and sentence in headline
