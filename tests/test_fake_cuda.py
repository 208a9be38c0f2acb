"""What a GPU would refuse or wait for, seen on a simulated one: tensors on the wrong device, host waits per step."""

import collections
import contextlib
import functools
import json
import math
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import fake_cuda
import numpy as np
import pytest
import torch
from conftest import (
    exposures,
    light_files,
    losses,
    rank_jobs,
    records,
    run_forked,
    tiny_documents,
    weights,
    write_dataset,
    write_jsonl,
)
from test_grpo import flags_of, items

import grpo
import sft
import train_gpt
from lab import (
    compiling,
    data_order,
    disk,
    estimate,
    inference,
    kernels,
    loss,
    processes,
    runs,
    shards,
    training,
    trees,
    val_loss,
)
from lab.tokenizer import BOS_ID
from model import GPT, GPTConfig

ON_CUDA = ["--device", "cuda"]  # compiled functions run as they are written
TINY = ("--n_layer 2 --n_head 2 --n_embd 16 --seq_len 16 --micro_batch_size 4 --total_batch_tokens 128 "
        "--learning_rate 1e-2 --dtype float32 --max_train_steps 2 --eval_every 0 --log_every 0 --results_csv=").split()


@pytest.fixture(autouse=True)
def leave_no_trace(monkeypatch):
    """A run takes over SIGTERM, SIGHUP and ctrl-C, and sets modes; give them back. And a busy machine shall
    time as many micro-steps as an idle one."""
    monkeypatch.setattr(estimate, "QUICK", math.inf)
    monkeypatch.setattr(loss, "compiled_softmax", {})
    mode = torch.get_deterministic_debug_mode()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    torch.set_deterministic_debug_mode(mode)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tiny"
    write_dataset(folder, tiny_documents(40, 3, 60))
    return folder


def on_cuda(main, *flags) -> fake_cuda.Seen:
    """What a script's run has done to the device."""
    with light_files(), fake_cuda.device() as seen:
        assert main([*map(str, flags), *ON_CUDA]) == 0
        return fake_cuda.Seen(seen.waits.copy(), seen.launches.copy())


def flags_for(data, out, *flags):
    return ["--data_dir", data, "--out_dir", out, *TINY, *flags]


# ----------------------------------------------------------------------------------------------------------------------
# the simulator


def test_it_refuses_what_a_card_refuses():
    """Operations on tensors of two devices that pass unseen: none; and a number, or an index from the CPU, is taken."""
    with fake_cuda.device():
        x, y = torch.ones(3, device="cuda"), torch.ones(3)
        refused = [
            lambda: x + y, lambda: y.add_(x), lambda: torch.cat([x, y]), lambda: y[x.long()], lambda: x.numpy(),
            lambda: torch.distributed.all_reduce(y), lambda: torch.where(x > 0, x, y)]
        for use in refused:
            with pytest.raises((RuntimeError, TypeError)):
                use()
        assert (x + torch.tensor(2.0)).cpu().tolist() == [3, 3, 3]
        assert x[torch.tensor([0])].device.type == "cuda"
        assert x.to("cpu").device.type == "cpu" and not x.is_cpu
    assert not torch.cuda.is_available()


def test_it_counts_waits():
    """Waits of the host that are not counted, or counted where there is none."""
    with fake_cuda.device() as seen:
        x = torch.zeros(4, device="cuda", requires_grad=True)
        pinned = torch.ones(4).pin_memory()
        y = pinned[1:].to("cuda", non_blocking=True)  # a view of pinned memory
        (x[1:] * y).sum().backward()
        assert not seen.waits and seen.launches["mul"] == 2  # forward and backward
        reads = [
            x.sum().item, x.tolist, x.cpu, lambda: x[x > 0], lambda: x.nonzero(), lambda: bool(x.any()),
            lambda: torch.tensor([1.0], device="cuda"), lambda: torch.ones(4).to("cuda", non_blocking=True),
            torch.cuda.synchronize, lambda: x.data.copy_(torch.ones(4))]
        for count, read in enumerate(reads, 1):
            read()
            assert seen.waits.total() == count, list(seen.waits)


def test_gradients_are_the_cpus():
    """Gradients on the simulated device and on the CPU: equal to 1e-7."""
    config = GPTConfig(vocab_size=200, block_size=8, n_layer=1, n_head=2, n_embd=8, arch="speedrun", unused_ids=())
    idx, of_cpu, of_cuda = torch.arange(16).view(2, 8), GPT(config), GPT(config)
    of_cpu(idx, idx).backward()
    with fake_cuda.device():
        of_cuda.to("cuda")
        of_cuda(idx.to("cuda"), idx.to("cuda")).backward()
    for ours, theirs in zip(of_cuda.parameters(), of_cpu.parameters(), strict=True):
        assert (ours.grad.inner - theirs.grad).abs().max() < 1e-7


def test_strict_mode_refuses_sums_in_any_order():
    """Operations without a deterministic kernel that pass strict mode unseen; sampling's are allowed."""
    with fake_cuda.device():
        logits, u = torch.zeros(2, 5, device="cuda"), torch.full((2,), 0.5, dtype=torch.float64)
        kernels.make_deterministic(logits.device)
        with pytest.raises(RuntimeError, match="deterministic"):
            logits.cumsum(1)
        assert inference.choose_tokens(logits, u, 1.0, None, 0.9).tolist() == [2, 2]
        with pytest.raises(RuntimeError, match="deterministic"):
            logits.cumsum(1)


@pytest.mark.parametrize("masks", [False, True])
def test_no_cudnn_attention_with_masks(masks):
    """Its backward pass can give NaN where a mask is passed; elsewhere it stays."""
    args = SimpleNamespace(deterministic=False)
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        training.prepare_machine(args, torch.device("cpu"), masks)
        assert torch.backends.cuda.cudnn_sdp_enabled() is not masks
        with kernels.for_many_shapes():
            assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.cudnn_sdp_enabled() is not masks
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def test_no_compiler_on_a_gpu(data, tmp_path, monkeypatch, capsys):
    """--compile auto trains kernel by kernel, and says so; --compile on is refused in a sentence."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    on_cuda(train_gpt.main, *flags_for(data, tmp_path / "auto", "--compile", "auto"))
    assert "WARNING: nothing is compiled" in (tmp_path / "auto" / "log.txt").read_text()
    with pytest.raises(ValueError, match="--compile on needs a compiler, .*: install gcc, or leave it out"):
        on_cuda(train_gpt.main, *flags_for(data, tmp_path / "on", "--compile", "on"))
    assert not (tmp_path / "on").exists()


@pytest.mark.parametrize(("name", "tera"), [
    ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835), ("NVIDIA H200", 989),
    ("NVIDIA H200 NVL", 835), ("NVIDIA GH200 144G HBM3e", 989), ("NVIDIA H20-3e", 148), ("NVIDIA GB200", 2500),
    ("NVIDIA B200", 2250), ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA L4", 121),
    ("NVIDIA L40S", 362), ("NVIDIA L40", 181), ("NVIDIA A10", 125), ("NVIDIA A10G", 70), ("NVIDIA A40", 149.7),
    ("NVIDIA GeForce RTX 3090", 71), ("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA GeForce RTX 5090", 209.5),
    ("NVIDIA RTX A6000", 154.8), ("NVIDIA RTX 6000 Ada Generation", 364.2), ("AMD Instinct MI300X", 1307.4),
    # others, and parts of one
    ("NVIDIA RTX A1000", None), ("NVIDIA RTX A4000", None), ("Quadro RTX 6000", None), ("Tesla T4", None),
    ("Tesla V100-SXM2-16GB", None), ("NVIDIA A16", None), ("NVIDIA A100X", None), ("NVIDIA H100 96GB HBM2", None),
    ("NVIDIA GeForce RTX 3090 Ti", None), ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA GeForce RTX 5090 D v2", None),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA A40-8Q", None), ("AMD Instinct MI250X", None)])
def test_peaks_are_of_this_card(name, tera):
    """TFLOP/s that MFU is measured against; another card's would make it wrong by the ratio of both."""
    peak = processes.data_sheet_flops(name)
    assert peak == 1e12 * tera if tera else math.isnan(peak)


# ----------------------------------------------------------------------------------------------------------------------
# pretraining

ARMS = {
    "adamw": "",
    "not_compiled": "--compile off --eval_every 2",
    "muon_evaluated": "--arch speedrun --attn_gate elementwise --optimizer muon --eval_every 1 --sample_every 2 "
                      "--sample_tokens 4 --hellaswag_every 2 --hellaswag_data synthetic:8 --ewok_every 2 "
                      "--ewok_data synthetic:8 --zeroshot_every 2 --zeroshot_data synthetic:4",
    "muon_all_deterministic": "--arch speedrun --attn_gate const --gate_pos value --optimizer muon_all "
                              "--deterministic --sample_every 1 --sample_tokens 4",
    "hope": "--memory hope_attention --write through --attn_gate headwise --eval_every 2 --sample_every 2 "
            "--sample_tokens 4 --arch speedrun",
    "titan": "--memory titan --eval_every 2",
}


@pytest.mark.parametrize("arm", ARMS)
def test_training_is_all_on_the_device(arm, data, tmp_path):
    """Misplaced tensors in training, evaluations, samples and saves: none; losses are the CPU's to 1e-3 (Muon's
    Newton-Schulz runs in bf16 there)."""
    flags = ARMS[arm].split()
    on_cuda(train_gpt.main, *flags_for(data, tmp_path / "cuda", *flags))
    with light_files():
        train_gpt.main([*map(str, flags_for(data, tmp_path / "cpu", "--device", "cpu", *flags))])
    assert np.abs(losses(tmp_path / "cuda") - losses(tmp_path / "cpu")).max() < 1e-3
    for ours, theirs in zip(records(tmp_path / "cuda", "val"), records(tmp_path / "cpu", "val"), strict=True):
        assert abs(ours["val_loss"] - theirs["val_loss"]) < 1e-3


def test_resume_is_exact(data, tmp_path):
    """A run stopped after step 1 and continued ends with the same bytes of weights."""
    flags = ["--optimizer", "muon", "--save_every", 1, "--keep_last", 0]
    on_cuda(train_gpt.main, *flags_for(data, tmp_path / "a", *flags))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "summary.json").unlink()
    shutil.rmtree(runs.checkpoint_path(tmp_path / "b", 2))
    on_cuda(train_gpt.main, *flags_for(data, tmp_path / "b", *flags, "--resume", "auto"))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_two_ranks(data, tmp_path):
    """Every tensor of a collective is on the device, as NCCL needs; two ranks learn what one does."""
    flags = flags_for(data, tmp_path / "two", "--optimizer", "muon", "--eval_every", 2, *ON_CUDA)
    ends = run_forked("import runpy\nrunpy.run_path('tests/fake_cuda.py', run_name='__main__')",
                      rank_jobs(2, ["train_gpt.py", *flags]))
    assert [status for status, _ in ends] == [0, 0], ends
    on_cuda(train_gpt.main, *flags_for(data, tmp_path / "one", "--optimizer", "muon", "--eval_every", 2))
    assert np.abs(losses(tmp_path / "two") - losses(tmp_path / "one")).max() < 1e-4
    checksums = [[record["checksum"] for record in exposures(tmp_path / name)] for name in ("one", "two")]
    assert checksums[0] == checksums[1]


# ----------------------------------------------------------------------------------------------------------------------
# saving

SAVES = ["--max_train_steps", 3, "--save_every", 1, "--keep_last", 0, "--optimizer", "muon"]


def files_of(run, step):
    """Contents of a checkpoint, without the clock's."""
    folder = runs.checkpoint_path(run, step)
    return [(folder / name).read_bytes() for name in ("model.safetensors", "optimizer.pt", "rng.pt")]


def test_training_goes_on_while_a_checkpoint_is_written(data, tmp_path, monkeypatch):
    """A checkpoint that is written when the next step has changed the weights: the same bytes as without delay."""
    on_cuda(train_gpt.main, *flags_for(data, tmp_path / "plain", *SAVES))
    next_step, save_checkpoint, read_step = threading.Event(), runs.save_checkpoint, training.read_step

    def save_late(folder, step, *args):
        assert step == 3 or next_step.wait(60)
        next_step.clear()
        return save_checkpoint(folder, step, *args)

    def read(*args):
        next_step.set()
        return read_step(*args)

    monkeypatch.setattr(runs, "save_checkpoint", save_late)
    monkeypatch.setattr(training, "read_step", read)
    on_cuda(train_gpt.main, *flags_for(data, tmp_path / "late", *SAVES))
    for step in (1, 2, 3):
        assert files_of(tmp_path / "late", step) == files_of(tmp_path / "plain", step)
    log = (tmp_path / "late" / "log.txt").read_text()
    assert log.count("| saved ") == 3


@pytest.mark.parametrize("every", [1, 2])
def test_a_save_that_fails_ends_the_run_in_a_sentence(data, tmp_path, monkeypatch, every):
    """A full disk is noticed at the end of the next step, not at the next save, and what was saved before stays."""
    save_checkpoint, read_step = runs.save_checkpoint, training.read_step

    def save(folder, step, write, bytes_needed, keep_last):
        if step == 2 * every:
            bytes_needed = 2**60
        return save_checkpoint(folder, step, write, bytes_needed, keep_last)

    def read(run, *args):
        while run.state.step == 2 * every and not run.saver.is_done():
            time.sleep(0.01)
        return read_step(run, *args)

    monkeypatch.setattr(runs, "save_checkpoint", save)
    monkeypatch.setattr(training, "read_step", read)
    flags = flags_for(data, tmp_path / "run", *SAVES, "--max_train_steps", 6, "--save_every", every)
    with pytest.raises(ValueError, match=f"step_00000{2 * every} cannot be saved .*: free space, then --resume auto.$"):
        on_cuda(train_gpt.main, *flags)
    assert len(losses(tmp_path / "run")) == 2 * every
    assert [runs.step_of(path) for path in runs.list_checkpoints(tmp_path / "run")] == [every]
    assert disk.holder(tmp_path / "run")[0] != "held"


# ----------------------------------------------------------------------------------------------------------------------
# waits

MOST_WAITS = 3  # per optimizer step


def more(of_many: collections.Counter, of_few: collections.Counter) -> dict:
    """What a longer run counted beyond a shorter one."""
    return dict(of_many - of_few)


@pytest.mark.parametrize("flags", ["", "--arch speedrun --attn_gate elementwise --optimizer muon",
                                   "--memory hope_attention --write through"])
def test_waits_of_pretraining(flags, data, tmp_path):
    """Waits per micro-step: 0; per optimizer step: at most MOST_WAITS."""
    run = lambda name, *extra: on_cuda(
        train_gpt.main, *flags_for(data, tmp_path / name, *flags.split(), *extra)).waits
    few = run("few")
    many = run("many", "--max_train_steps", 4)
    assert sum(more(many, few).values()) <= 2 * MOST_WAITS, more(many, few)
    assert more(run("micro", "--micro_batch_size", 2), few) == {}


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_waits_of_a_val_loss(rows, data, monkeypatch):
    """One wait for each view, however many batches it has; and the same bits where each batch is waited for, the CPU's
    losses to 1e-6."""
    config = GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=16, padded_vocab_size=50432)
    val, args = shards.open_val(data, 10**9), SimpleNamespace(seq_len=16, eval_batch_size=rows)

    def evaluate(device):
        model, procs = GPT(config).to(device), processes.Processes(device=device)
        fake_cuda.seen.waits.clear()
        return val_loss.evaluate(model, val, args, procs, contextlib.nullcontext, SimpleNamespace(asked=False))

    want, documents = evaluate(torch.device("cpu"))
    with fake_cuda.device() as seen:
        got, by_document = evaluate(fake_cuda.CUDA)
        assert seen.waits.total() == 2, seen.waits
        monkeypatch.setitem(val_loss.HELD, "cuda", 0)
        again, by_document_again = evaluate(fake_cuda.CUDA)
        n_rows = sum(len(data_order.val_rows(val, 16, view, BOS_ID)[0]) for view in val_loss.VIEWS)
        assert seen.waits.total() >= n_rows / rows
    assert got == again and all(np.array_equal(by_document[key], by_document_again[key]) for key in by_document)
    assert got == pytest.approx(want, abs=1e-6)
    assert np.abs(by_document["bos_nats"] - documents["bos_nats"]).max() < 1e-4


def questions(n):
    return [([5 + i, *range(20, 26)], [[30 + j, *range(j)] for j in range(1, 4)]) for i in range(n)]


def test_the_next_batch_is_prepared_while_the_device_computes(monkeypatch):
    """Scoring: batch n + 1 is prepared before the one wait for batch n; the same bits as one batch after the other, and
    with what an evaluation before has kept, for which nothing is prepared."""
    config = GPTConfig(vocab_size=60, block_size=32, n_layer=2, n_head=2, n_embd=16, unused_ids=(), arch="speedrun")
    happened, plan, wait = [], trees.plan, fake_cuda.wait
    monkeypatch.setattr(trees, "plan", lambda *args: happened.append("prepare") or plan(*args))
    monkeypatch.setattr(fake_cuda, "wait", lambda why: happened.append(f"wait: {why}") or wait(why))
    with fake_cuda.device():
        model, items, kept = GPT(config).to("cuda"), questions(5), {}
        one_by_one = [inference.score_endings(model, [item])[0] for item in items]
        happened.clear()
        for expected in (["prepare", *["prepare", "wait: cpu"] * 4, "wait: cpu"], ["wait: cpu"] * 5):
            scores = dict(inference.iter_scores(model, items, batch_size=1, kept=kept))
            assert happened == expected
            for i, endings in scores.items():
                assert all(map(torch.equal, endings, one_by_one[i]))
            happened.clear()


def test_evaluations_in_training_prepare_once(data, tmp_path, monkeypatch):
    """Passes prepared by two evaluations of HellaSwag on a GPU: as many as by one; on a CPU, which keeps nothing, twice
    as many. And what --eval_batch_size 0 was."""
    calls, plan = [], trees.plan
    monkeypatch.setattr(trees, "plan", lambda *args: calls.append(args) or plan(*args))

    def count(name, steps, device):
        calls.clear()
        flags = flags_for(data, tmp_path / name, "--hellaswag_every", 1, "--hellaswag_data", "synthetic:8",
                          "--max_train_steps", steps)
        if device == "cuda":
            on_cuda(train_gpt.main, *flags)
        else:
            with light_files():
                train_gpt.main([*map(str, flags), "--device", "cpu"])
        rows = json.loads((tmp_path / name / "config.json").read_text())["flags"]["eval_batch_size"]
        return len(calls), rows

    once, rows = count("once", 1, "cuda")
    assert rows == 16 and once >= 1
    assert count("twice", 2, "cuda") == (once, 16)
    on_cpu, rows = count("cpu", 2, "cpu")
    assert rows == 4 and on_cpu >= 2 and on_cpu % 2 == 0


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    GPT(GPTConfig(block_size=48, n_layer=1, n_head=2, n_embd=16, padded_vocab_size=50432), seed=0).save(folder)
    return folder


def fine_tuning(base, folder, *flags):
    """Flags of sft.py, of problems that a model can only guess; test_grpo.items."""
    problems = write_jsonl(folder.with_suffix(".jsonl"), items(32))
    usual = ("--total_batch_conversations 16 --micro_batch_size 16 --optimizer muon --learning_rate 0.05 "
             "--save_every 0 --log_every 0 --dtype float32 --eval_every 0")
    return list(map(str, ["--stage", "gsm8k", "--init", base, "--data", problems, "--out_dir", folder, *usual.split(),
                          *flags]))


def fine_tune(*settings):
    return on_cuda(sft.main, *fine_tuning(*settings))


@pytest.mark.parametrize("packing", ["on", "off"])
def test_waits_of_fine_tuning(base, tmp_path, packing):
    """As of pretraining."""
    run = lambda name, *extra: fine_tune(base, tmp_path / name, "--packing", packing, *extra).waits
    few = run("few", "--max_train_steps", 1)
    many = run("many", "--max_train_steps", 3)
    assert sum(more(many, few).values()) <= 2 * MOST_WAITS, more(many, few)
    assert more(run("micro", "--max_train_steps", 1, "--micro_batch_size", 1), few) == {}


def test_fine_tuning_and_rewards(base, tmp_path):
    """Misplaced tensors in sft.py with evaluations and samples, and in grpo.py with sampling, updates, an exam and
    its generation: none."""
    with light_files():  # on the CPU: a model that ends what it samples
        sft.main([*fine_tuning(base, tmp_path / "sft", "--max_train_steps", 32), "--device", "cpu"])
    fine_tune(base, tmp_path / "more", "--max_train_steps", 1, "--eval_every", 1, "--val_fraction", 0.2,
              "--sample_every", 1)
    pool = write_jsonl(tmp_path / "pool.jsonl", items(20, start=100))
    flags = flags_of(tmp_path / "sft", pool, tmp_path / "grpo", "--dtype", "float32", "--max_train_steps", 1)
    on_cuda(grpo.main, *flags, "--eval_every", 1, "--sample_every", 1, "--deterministic")
    assert records(tmp_path / "grpo")[-1]["ratio_off_share"] == 0


# ----------------------------------------------------------------------------------------------------------------------
# graphs



@pytest.fixture
def graphs(monkeypatch):
    """The number of compiled graphs after each optimizer step, of which dynamo makes as many as for a card; they run
    as they are traced."""
    counts, read_step = [], training.read_step

    def read(*args):
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return read_step(*args)

    monkeypatch.setattr(training, "read_step", read)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(loss, "compiled_softmax", {})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    loss.compile_softmax("cpu")
    yield counts
    torch._dynamo.reset()


compiles = pytest.mark.skipif(bool(compiling.missing_compiler(torch.device("cpu"))),
                              reason="--compile on needs a C++ compiler")


@compiles
@pytest.mark.parametrize("flags", [
    "", "--arch speedrun --attn_gate elementwise --sample_every 2 --hellaswag_every 2 --hellaswag_data synthetic:8"])
def test_one_graph_of_pretraining(flags, data, tmp_path, graphs):
    """Graphs: of the network and of the loss, in training and in evaluations, one each, made before the first step;
    rows of other lengths and numbers, benchmarks and samples add none."""
    train_gpt.main([*map(str, flags_for(data, tmp_path / "run", *flags.split(), "--device", "cpu", "--compile", "on",
                                        "--max_train_steps", 4, "--eval_every", 2))])
    assert graphs == [4] * 4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4  # after the last evaluation, too
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["compile_seconds"] > 0


def test_compiled_softmax_is_the_same(graphs):
    """Losses and gradients by the two graphs that a GPU uses, and as a CPU forms them: to 1e-6 of the largest, for
    ignored targets, padding ids and any number of rows."""
    torch.manual_seed(0)
    weight, results = torch.randn(300, 16), {}
    for compiled in (True, False):
        if not compiled:
            loss.compiled_softmax.clear()
        for rows in (37, 50):
            x = torch.linspace(-2, 2, 16 * rows).sin().view(rows, 16)
            targets = torch.arange(rows).where(torch.arange(rows) != 3, loss.IGNORE)
            leaves = [x.requires_grad_(), weight.clone().requires_grad_()]
            total = loss.chunked_cross_entropy(*leaves, targets, [(100, 110), (260, 300)])
            per_token = loss.token_nll(*leaves, targets, [(100, 110), (260, 300)])
            (total + per_token.sigmoid().mean()).backward()
            results.setdefault(rows, []).append([total.detach(), per_token.detach(), *(leaf.grad for leaf in leaves)])
            assert leaves[1].grad[260:].abs().max() == 0
    for ours, theirs in results.values():
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).abs().max() < 1e-6 * b.abs().max()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_compiled_evaluation_is_the_same(graphs):
    """Losses per token with the network's and the loss's one graph of evaluations, for any shape of rows, a single one,
    too: to 1e-6."""
    model = GPT(GPTConfig(vocab_size=60, block_size=16, n_layer=2, n_head=2, n_embd=16, unused_ids=()))
    idx = torch.arange(64).view(4, 16) % 60
    shapes = [(4, 16), (4, 7), (1, 9), (3, 16), (1, 16), (2, 2)]
    batches = [idx[:B, :T].contiguous() for B, T in shapes]
    want = [model.per_token_loss(batch, batch) for batch in batches]
    val_loss.compile_forward(model)
    for batch, losses_before in zip(batches, want, strict=True):
        assert (model.per_token_loss(batch, batch) - losses_before).abs().max() < 1e-6
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@compiles
@pytest.mark.parametrize("packing", ["on", "off"])
def test_one_graph_of_fine_tuning(packing, base, tmp_path, graphs):
    """As of pretraining, but for evaluations, whose network is not compiled; though a step's last micro-batch has fewer
    rows and each another number of trained tokens."""
    problems = write_jsonl(tmp_path / "problems.jsonl", items(32))
    usual = (f"--stage gsm8k --init {base} --data {problems} --out_dir {tmp_path / 'run'} --eval_every 2 "
             "--total_batch_conversations 10 --micro_batch_size 4 --max_train_steps 3 --val_fraction 0.2 --seq_len 24 "
             f"--packing {packing} --device cpu --compile on")
    sft.main(usual.split())
    assert graphs == [3] * 3
