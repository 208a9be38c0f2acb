"""What a run says before and while it runs: cost, time left, memory; presets and files of flags; how it stops."""

import json
import os
import random
import re
import signal
import tarfile
import time
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import REPO, exact, losses, records, tiny_documents, weights, write_dataset

import train_gpt
from lab import estimate, flags, gradients, optim, presets, processes, runs, training
from model import GPT, GPTConfig

TINY = "--n_layer 1 --n_head 2 --n_embd 16 --seq_len 16 --micro_batch_size 8 --total_batch_tokens 256 --device cpu " \
       "--max_train_steps 4 --eval_every 2 --val_tokens 200 --eval_batch_size 4 --results_csv="


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tiny"
    write_dataset(folder, tiny_documents(60, 5, 60))
    return folder


def run(data, out, *more):
    return train_gpt.main(["--data_dir", str(data), "--out_dir", str(out), *TINY.split(), *map(str, more)])


# ----------------------------------------------------------------------------------------------------------------------
# time left


@pytest.mark.parametrize("archive, run, steps", [
    ("gating", "long/none_lr0.005_s1", 200), ("gating", "long/elementwise_lr0.01_s3", 200),
    ("mul_tokens", "baseline_s1", 160), ("gsm8k", "sft2_baseline", 1372),
])
def test_time_left_of_a_recorded_run(archive, run, steps):
    """After 10 % of the steps of a run that was made, its own durations replayed: within 20 % of what was then left."""
    with tarfile.open(REPO / "experiments" / f"2026-11-21_{archive}" / "runs.tar.xz") as tar:
        lines = tar.extractfile(f"runs/{run}/scalars.jsonl").read().splitlines()
        every = json.load(tar.extractfile(f"runs/{run}/config.json"))["flags"]["eval_every"]
    clock = SimpleNamespace(now=0.0)
    pace = estimate.Pace(steps, {"val": every, "save": 0}, ["val"], ["val"], clock=lambda: clock.now)
    for record in map(json.loads, lines):
        if record["type"] in ("train", "val"):
            kind = {"train": "step", "val": "val"}[record["type"]]
            clock.now += record[{"step": "step_seconds", "val": "eval_seconds"}[kind]]
            pace.mark(kind)
            if kind == "step" and record["step"] == steps // 10:
                then, left = clock.now, pace.seconds_left(record["step"])
    assert left == pytest.approx(clock.now - then, rel=0.2)
    assert pace.seconds_left(steps) == pytest.approx(pace.seconds("val"))  # the last one, due when the last step ends


def test_time_left_counts_evaluations_saves_and_what_was_not_seen():
    """20 steps of 2 s, val every 8 and at both ends (3 s), a benchmark every 10 (guess 7 s), saves every 5 (1 s)."""
    clock = SimpleNamespace(now=100.0)
    every = {"val": 8, "ewok": 10, "hellaswag": 0, "sample": 6, "save": 5}
    pace = estimate.Pace(20, every, ["val", "ewok", "save"], ["val"], {"step": 9.0, "ewok": 7.0}, lambda: clock.now)
    assert pace.seconds_left(0) == 20 * 9 + 2 * 7
    clock.now = 500.0
    pace.start()
    for kind, seconds in [("val", 3), ("step", 50), *[("step", 2)] * 4, ("save", 1), ("step", 2)]:
        clock.now += seconds
        pace.mark(kind)
    kinds = "step val ewok hellaswag sample save".split()
    assert [pace.count(kind, 6) for kind in kinds] == [14, 3, 2, 0, 3, 3]
    assert pace.seconds_left(6) == 14 * 2 + 3 * 3 + 2 * 7 + 3 * 1
    assert pace.count("val", 16) == 2 and pace.count("val", 17) == 1 and pace.count("save", 20) == 1


# ----------------------------------------------------------------------------------------------------------------------
# the measured micro-step


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_measuring_leaves_no_trace(name, monkeypatch):
    """Bits of weights and generators, rates, gradients and optimizer states that differ after measuring: none."""
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16), seed=0).eval()
    optimizers = optim.build_optimizers(model, optimizer=name, learning_rate=0.1)
    args = train_gpt.parse_args(["--data_dir", "x", *TINY.split()])
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    rng, sizes = torch.get_rng_state(), []
    reducer = gradients.Reducer(processes.Processes(device=torch.device("cpu")), model)

    def micro_step(rows):
        sizes.append(rows)
        torch.rand(3)
        tokens = torch.arange(17).repeat(rows, 1)
        model(tokens[:, :-1], tokens[:, 1:]).backward()

    for slow in (1e9, 0.0):
        monkeypatch.setattr(estimate, "SLOW", slow)
        pace, lines = training.look_ahead(
            args, reducer, model, optimizers, micro_step, micro_steps=2, tokens=128,
            every={"val": 2}, scored={"val": 400}, advice="")
        assert pace.seconds("step") > 0 and pace.seconds("val") > 0 and len(lines) == 2
    assert sizes[:3] == [1, 1, 8] and sizes[-1] == 1  # a slow machine is measured with one row
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor.view(torch.int32), before[key].view(torch.int32)), key
    assert torch.equal(torch.get_rng_state(), rng) and not model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(optimizer.state for optimizer in optimizers)
    assert all(group["lr"] == group["initial_lr"] for optimizer in optimizers for group in optimizer.param_groups)


def test_compiling_is_not_measured(monkeypatch):
    """Seconds of a compiled micro-step on a CPU whose first call compiles for longer than SLOW: those of a later."""
    monkeypatch.setattr(estimate, "SLOW", 0.1)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16), seed=0)
    calls = []

    def micro_step(rows):
        calls.append(rows)
        time.sleep(0.4 if len(calls) == 1 else 0.01)

    cost = estimate.measure(micro_step, lambda: None, model, [], 8, torch.device("cpu"), compiled=True)
    assert 0.01 <= cost.micro_step < 0.1 and set(calls) == {8}  # other sizes would be compiled by themselves


def test_a_run_does_not_change_by_it(data, tmp_path, monkeypatch):
    """Records and weights of a run whose micro-step was not measured: the same to the last bit."""
    run(data, tmp_path / "measured", "--optimizer", "muon")
    pace = lambda: estimate.Pace(4, {"val": 2, "sample": 0, "save": 0}, ["val", "save"])
    monkeypatch.setattr(training, "look_ahead", lambda *_, **__: (pace(), []))
    run(data, tmp_path / "plain", "--optimizer", "muon")
    assert exact(tmp_path / "measured") == exact(tmp_path / "plain")
    assert weights(tmp_path / "measured") == weights(tmp_path / "plain")
    log = (tmp_path / "measured" / "log.txt").read_text()
    assert "per step" in log and "for 1 checkpoint of" in log and "left" not in log
    assert "% of the time: a higher --eval_every lowers it" in log


def test_dry_run_stops_there(data, tmp_path, capsys, monkeypatch):
    """Files of a dry run: none. On a machine that would take years it names what a laptop can do."""
    before = sorted(tmp_path.rglob("*"))
    assert run(data, tmp_path / "out", "--dry_run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0].startswith("products in float32: ")
    assert lines[1].startswith("measured: about ") and "memory about" in lines[2]
    assert lines[3].startswith("WARNING: the val loss is of ")  # which is better known before
    monkeypatch.setattr(estimate, "measure", lambda *_: estimate.Cost(90.0, 30.0, 1e15, 10**15))
    assert run(data, tmp_path / "out", "--dry_run", "--max_train_steps", 500, "--max_epochs", 99) == 0
    lines = capsys.readouterr().out.splitlines()
    words = r"WARNING: about 3\.5 min per step here, [\d.]+ days in all; for a laptop: .*--preset laptop"
    assert re.match(words, lines[2])
    assert "WARNING: memory will hardly suffice: pass --micro_batch_size 1 (estimated)" in lines[4]
    assert lines[5].startswith("WARNING: the disk will be full before the end: free ")
    assert sorted(tmp_path.rglob("*")) == before


def test_laptop_advice_at_the_default(data, tmp_path, capsys, monkeypatch):
    """The 124M default on a CPU where a micro-step takes 270 s: 60 of them are 4.5 h a step."""
    slow = estimate.Cost(270.0, 5.0, 11.4e9, 1_600_000_000)
    monkeypatch.setattr(estimate, "measure", lambda *_: slow)
    flags = ["--data_dir", str(data), "--out_dir", str(tmp_path / "out"), "--device", "cpu", "--dry_run",
             "--micro_batch_size", "8", "--max_epochs", str(10**9)]
    assert train_gpt.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("WARNING: about 4.5 h per step here, 3,") and lines[2].endswith("(--preset laptop)")


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory: you tried to allocate"),
])
def test_out_of_memory_names_the_micro_batch_that_fits(data, tmp_path, monkeypatch, error):
    """8 rows do not fit, nor 4, but 2 do; of an evaluation, half is named. Nothing is left behind."""
    monkeypatch.setattr(estimate, "SLOW", 1e9)
    forward = GPT.forward

    def tight(self, idx, *args, **kwargs):
        if len(idx) > 2:
            raise error
        return forward(self, idx, *args, **kwargs)

    def broken(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(GPT, "forward", tight)
        with pytest.raises(ValueError, match="batch_size 8 does not fit into memory: pass --micro_batch_size 2, which"):
            run(data, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        patch.setattr(GPT, "forward", lambda *_, **__: broken())
        with pytest.raises(ValueError, match="nor does any smaller one: lower --seq_len"):
            run(data, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(GPT, "per_token_loss", broken)
        with pytest.raises(ValueError, match=r"--eval_batch_size 4 .* pass --eval_batch_size 2 \(estimated"):
            run(data, tmp_path / "out")
    monkeypatch.setattr(gradients, "clip_and_step", broken)
    monkeypatch.setattr(training, "look_ahead", lambda *_, **__: (estimate.Pace(4, {"val": 2, "sample": 0}), []))
    with pytest.raises(ValueError, match=r"--micro_batch_size 8 .* pass --micro_batch_size 4 .*--resume auto"):
        run(data, tmp_path / "later")


def test_micro_batch_0_takes_what_fits(data, tmp_path, monkeypatch):
    """All 16 rows of a step are tried, then 8, and 4, which fit: the run takes these, and reads and learns as with any
    other number; its config.json names it."""
    forward, tried = GPT.forward, []

    def tight(self, idx, *args, **kwargs):
        tried.append(len(idx))
        if len(idx) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, idx, *args, **kwargs)

    run(data, tmp_path / "plain")
    monkeypatch.setattr(GPT, "forward", tight)
    run(data, tmp_path / "fitted", "--micro_batch_size", 0, "--eval_batch_size", 0)
    assert tried[:3] == [16, 8, 4]
    flags = runs.read_config(tmp_path / "fitted")["flags"]
    assert flags["micro_batch_size"] == 4 and flags["eval_batch_size"] == 4
    assert np.abs(losses(tmp_path / "fitted") - losses(tmp_path / "plain")).max() < 1e-5


def test_rows_that_should_fit():
    """Of 480 rows of 1,024 tokens, 124M shape: as many as are worth it on 80 GB, as many as fit on 24 and 8 GB."""
    args = train_gpt.parse_args(["--data_dir", "x", "--n_layer", "12", "--vocab_size", "50349"])
    sizes = train_gpt.micro_batch_sizes(args, 1)
    for memory, rows in ((80e9, 60), (24e9, 32), (8e9, 5)):
        with mock.patch.object(estimate, "total_memory", lambda device, memory=memory: memory):
            assert estimate.guess_rows(args, torch.device("cuda"), sizes) == rows
    assert estimate.guess_rows(args, torch.device("cpu"), sizes) == 8


# ----------------------------------------------------------------------------------------------------------------------
# presets and files of flags


def test_presets_are_plain_flags_that_any_flag_beats(tmp_path, capsys):
    """The command line beats the preset, the preset beats --config; --help says what each sets."""
    parse = lambda *words: train_gpt.parse_args(["--data_dir", "x", *map(str, words)])
    args = parse("--preset", "laptop")
    assert (args.n_layer, args.n_embd, args.seq_len, args.learning_rate) == (6, 192, 256, 2e-3)
    assert parse("--preset", "laptop", "--n_layer", 3).n_layer == 3
    assert parse("--preset", "gpt2").n_head == 12 and parse("--preset", "speedrun").n_head == 6
    assert parse("--preset", "gpt2-medium").n_embd == 1024
    (tmp_path / "c.json").write_text('{"n_layer": 5, "beta1": 0.8}')
    args = parse("--preset", "laptop", "--config", tmp_path / "c.json")
    assert (args.n_layer, args.beta1) == (6, 0.8)
    plain, preset = vars(parse("--name", "a", *presets.PRESETS["laptop"][1].split())), vars(args)
    assert {k for k in plain if plain[k] != preset[k]} == {"preset", "config", "beta1", "name", "out_dir"}
    with pytest.raises(SystemExit):
        train_gpt.parse_args(["--help"])
    printed = capsys.readouterr().out
    assert all(f"  {name}: {title}" in printed and words in printed for name, (title, words) in presets.PRESETS.items())


def test_every_preset_divides_over_eight_ranks():
    """Presets whose batch a GPU, or eight, cannot share evenly: none."""
    for name in presets.PRESETS:
        args = train_gpt.parse_args(["--data_dir", "x", "--preset", name])
        for ranks in (1, 2, 4, 8):
            if name != "laptop" or ranks < 8:
                assert train_gpt.count_sequences(args, ranks) * args.seq_len == args.total_batch_tokens


def test_a_run_that_never_ends_has_a_time_left(data, tmp_path, monkeypatch):
    """--max_train_steps 10**20, as who means to stop it by hand: a traceback of datetime's at the first step."""
    monkeypatch.setattr(estimate.Pace, "seconds_left", lambda pace, step: 1e300)
    assert run(data, tmp_path / "r", "--log_every", 1) == 0
    assert "115740 days, 17:46:40 left" in (tmp_path / "r" / "log.txt").read_text()


def pasted(args, sentence: str) -> list[SimpleNamespace]:
    """The flags with what a sentence tells to pass: one for each of its alternatives, which commas divide."""
    better = []
    for part in re.split("[:;]", sentence)[-1].split(", "):
        flags_of_part = re.findall(r"--(\w+) (?:to )?(\d+)", part)
        values = [int(value) for value in re.findall(r"\d+", part)]
        if len(flags_of_part) > 1:  # together
            better.append(SimpleNamespace(**vars(args) | {name: int(value) for name, value in flags_of_part}))
        elif flags_of_part:
            better += [SimpleNamespace(**vars(args) | {flags_of_part[0][0]: value}) for value in values]
    assert better, sentence
    return better


def test_an_advised_batch_is_accepted():
    """Of 2,000 batches that ranks and micro-batches do not share evenly, the advised numbers that are refused again."""
    draw, refused = random.Random(0), 0
    for _ in range(4000):
        ranks = draw.choice((1, 2, 3, 8))
        args = SimpleNamespace(micro_batch_size=draw.randint(1, 20), seq_len=draw.choice((1, 7, 96, 256, 1000, 1024)),
                               total_batch_tokens=draw.choice((1, 100, 4096, 5000, 30_720, 491_520, 524_288)))
        try:
            train_gpt.count_sequences(args, ranks)
        except ValueError as error:
            refused += 1
            for better in pasted(args, str(error)):
                train_gpt.count_sequences(better, ranks)
    assert refused > 2000


def test_an_advised_length_is_accepted():
    """Warmups that do not fit, and data that is too short: with the numbers that the sentence names, they fit. The
    laptop's warmup of 40 steps did not fit into 30, and no number was named."""
    args = train_gpt.parse_args("--data_dir x --preset laptop --max_train_steps 30".split())
    with pytest.raises(ValueError, match="pass --warmup_iters 3, or --max_train_steps 40.$"):
        optim.schedule_settings(args)
    draw = random.Random(1)
    for _ in range(2000):
        args.max_train_steps = draw.choice((1, 3, 30, 100, 5100))
        args.warmup_iters, args.warmdown_iters = draw.choice((0, 1, 40, 715)), draw.choice((0, 2, 60, 1450))
        try:
            optim.schedule_settings(args)
        except ValueError as error:
            for better in pasted(args, str(error)):
                optim.schedule_settings(better)
        limits = SimpleNamespace(data_dir="x", seq_len=1024, max_epochs=draw.choice((0.1, 1.0, 2.5)),
                                 max_train_steps=args.max_train_steps)
        of_step, n_sequences = draw.choice((1, 3, 480)), draw.choice((1, 7, 1000))
        try:
            train_gpt.count_epochs(limits, of_step, n_sequences)
        except ValueError as error:
            for better in pasted(limits, str(error)):
                assert better.max_train_steps > 0
                train_gpt.count_epochs(better, of_step, n_sequences)


@pytest.mark.parametrize("name, text", [
    ("f.json", '{"learning-rate": 1e-3, "n_layer": 3, "tensorboard": true, "condition": "baseline", "seed": "7"}'),
    ("f.yaml", "learning_rate: 1e-3\nn_layer: 3\ntensorboard: yes\ncondition: baseline\nseed: 7\n"),
])
def test_plain_files_of_flags(tmp_path, name, text):
    """JSON and YAML give what the command line would have given, in its types; the command line beats both."""
    (tmp_path / name).write_text(text)
    args = train_gpt.parse_args(["--data_dir", "x", "--config", str(tmp_path / name), "--n_layer", "4"])
    assert (args.learning_rate, args.n_layer, args.tensorboard, args.condition) == (1e-3, 4, True, "baseline")
    assert args.seed == 7 and type(args.learning_rate) is float


def test_yaml_reads_on_and_off_as_words(tmp_path):
    """eval_bos: off and compile: on are no booleans here; a list of one path may be a string."""
    (tmp_path / "f.yml").write_text("eval_bos: off\ncompile: on\n")
    args = train_gpt.parse_args(["--data_dir", "x", "--config", str(tmp_path / "f.yml")])
    assert (args.eval_bos, args.compile) == ("off", "on")
    import sft

    (tmp_path / "s.yml").write_text("stage: gsm8k\ninit: y\npacking: off\ndata: a.jsonl\ndecontaminate: [a, b]\n")
    args = sft.parse_args(["--config", str(tmp_path / "s.yml")])
    assert (args.stage, args.packing, args.data, args.decontaminate) == ("gsm8k", "off", ["a.jsonl"], ["a", "b"])


@pytest.mark.parametrize("name, text, fault", [
    ("f.json", '{"lr": 1}', "has lr, which is no flag of train_gpt.py: did you mean learning_rate?"),
    ("f.json", '{"n_layer": 1.5}', "has n_layer 1.5: give a whole number."),
    ("f.json", '{"n_layer": true}', "has n_layer True: give a whole number."),
    ("f.json", '{"optimizer": "sgd"}', "has optimizer 'sgd': give one of adamw, muon, muon_all."),
    ("f.json", '{"tensorboard": "yes"}', "has tensorboard 'yes': give true or false."),
    ("f.json", '{"seed": null}', "has seed None: give a whole number."), ("f.json", '{"name": [1]}', "give text."),
    ("f.json", '{"resume": "auto"}', "has resume: give --resume by hand."), ("f.json", "[1]", "damaged"),
    ("f.json", "{", "cannot be read"), ("f.yaml", "a: b: c", "cannot be read"), ("f.yaml", "just text", "not a run's"),
])
def test_bad_files_of_flags(tmp_path, name, text, fault, capsys):
    """A sentence that names the file, the key and what to give; status 2."""
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as end:
        train_gpt.parse_args(["--data_dir", "x", "--config", str(tmp_path / name)])
    printed = capsys.readouterr().err
    assert end.value.code == 2 and fault in printed and str(tmp_path / name) in printed and printed.count("\n") == 1


# ----------------------------------------------------------------------------------------------------------------------
# how a run ends


def test_a_finished_run_is_not_changed(data, tmp_path, capsys):
    """More steps, or another rate, with --resume auto on a finished run: refused with the way on; the same: fine."""
    run(data, tmp_path / "out")
    again = ("--resume", "auto")
    assert run(data, tmp_path / "out", *again, "--micro_batch_size", 4) == 0
    for flag, value, was in (("max_train_steps", 8, "4 -> 8"), ("learning_rate", 1e-3, "0.0006 -> 0.001")):
        with pytest.raises(ValueError, match=f"is finished.*{flag}: {was}.*--init_from .*out, another --out_dir and "):
            run(data, tmp_path / "out", *again, f"--{flag}", value)
    assert len(records(tmp_path / "out")) == 4


def test_ctrl_c_says_what_happens(monkeypatch, capfd):
    """The first says what is done and what a second one does, at once and on rank 0 alone."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for rank, elastic, wanted in (("0", "", "ctrl-C: it is saved first; ctrl-C again stops at once.\n"), ("1", "", ""),
                                  ("0", "x", "ctrl-C: it is saved first; torchrun kills what takes longer than 30 ")):
        monkeypatch.setenv("RANK", rank)
        if elastic:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", elastic)
        stop = processes.StopRequest("it is saved first")
        try:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.asked and capfd.readouterr().err.lstrip("\n").startswith(wanted)
            os.kill(os.getpid(), signal.SIGTERM)
            assert capfd.readouterr().err == ""
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        finally:
            stop.restore()


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o027, 0o640)])
def test_checkpoints_follow_the_umask(data, tmp_path, mask, mode):
    """Permissions of every file of a run and its checkpoint: those of any new file."""
    before = os.umask(mask)
    try:
        run(data, tmp_path / "out", "--max_train_steps", 1, "--eval_every", 0)
    finally:
        os.umask(before)
    [checkpoint] = runs.list_checkpoints(tmp_path / "out")
    modes = {path.name: path.stat().st_mode & 0o777 for path in checkpoint.iterdir()}
    assert len(modes) == 6 and set(modes.values()) == {mode}, modes
    assert (tmp_path / "out" / "summary.json").stat().st_mode & 0o777 == mode


def test_a_flag_has_one_name():
    """Flags that limit how many items are read and are not called --max_examples: none."""
    import sft

    for parser in (train_gpt.build_parser(), sft.build_parser()):
        names = [action.dest for action in parser._actions]
        assert not [name for name in names if "limit" in name or name in ("n", "num_samples", "max_items")]
        assert flags.suggest("--limit", names) in (["max_examples"], [])
