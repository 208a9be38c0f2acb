"""Other projects' logs: every number of theirs, and never more than they hold."""

import json
import math
import zlib

import pytest
from conftest import make_run

import compare_runs
from lab import logs

NANOGPT = """\
number of parameters: 2.47M
step 0: train loss 10.9, val loss 10.8
iter 0: loss 10.85, time 12.34ms, mfu -100.00%
iter 10: loss 8.5, time 12.34ms, mfu 30.02%
step 20: train loss 6.25, val loss 6.5
saving checkpoint to out
iter 20: loss 6.0, time 12.34ms, mfu 30.02%
"""
BUILD = "0 val 10.8\n0 hella 0.2463\n0 train 10.9\n1 train 9.0\n20 val 6.0\n20 hella 0.2512\n20 train 5.5\n"
LOGS = {  # name: (text, val losses, train losses, HellaSwag)
    "nanoGPT": (NANOGPT, {0: 10.8, 20: 6.5}, {0: 10.85, 10: 8.5, 20: 6.0}, {}),
    "build-nanogpt": (BUILD, {0: 10.8, 20: 6.0}, {0: 10.9, 1: 9.0, 20: 5.5}, {0: 0.2463, 20: 0.2512}),
    "build-nanogpt's terminal": (
        "validation loss: 6.0\nstep    20 | loss: 5.5 | lr 6.0000e-04 | norm: 0.25 | dt: 340.00ms | tok/sec: 1540000.00"
        "\n", {}, {20: 5.5}, {}),
    "modded-nanogpt": (
        'print0(f"step:{step}/{n} val_loss:{val_loss:.4f}")\nstep:0/20 val_loss:10.8 train_time:0ms step_avg:nanms\n'
        "step:1/20 train_loss:9.5 train_time:24389ms step_avg:nanms\nstep:2/20 train_time:30ms step_avg:nanms\n"
        "step:20/20 val_loss:3.2799 train_time:135004ms step_avg:60.68ms\n", {0: 10.8, 20: 3.2799}, {1: 9.5}, {}),
    "llm.c": ("s:0 tel:11.0092\ns:0 trl:11.0091 lr:0.000001 norm:15.37\ns:0 eval:0.2512\ns:20 tel:3.2722\n",
              {0: 11.0092, 20: 3.2722}, {0: 11.0091}, {0: 0.2512}),
}

NANOCHAT = """\
step 00000/00020 (0.00%) | loss: 10.396400 | lrm: 0.03 | dt: 3401.12ms | tok/sec: 154,153 | bf16_mfu: 20.00 | epoch: 1
Step 00000 | Validation bpb: 3.200000
step 00001/00020 (5.00%) | loss: 9.500000 | lrm: 0.05 | dt: 340.12ms | tok/sec: 1,541,530 | bf16_mfu: 40.00 | epoch: 1
Step 00020 | Validation bpb: 0.950000
Minimum validation bpb: 0.950000
"""


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("project", LOGS)
def test_logs(tmp_path, project, encoding):
    """Every number of a project's log at its step, from Windows, too, and none that the log lacks."""
    text, val, train, hella = LOGS[project]
    run = logs.read_log(written(tmp_path / "log.txt", text.replace("\n", "\r\n"), encoding))
    assert {step: record["val_loss"] for step, record in run["val"].items()} == val
    assert dict(zip(run["train"]["step"], run["train"]["train_loss_opt_step_mean"], strict=True)) == train
    scores = run["benchmarks"].get("hellaswag", {})
    assert {step: record["accuracy_norm"] for step, record in scores.items()} == hella
    assert project in run["log"] and run["summary"]["steps"] == max([*val, *train])
    if val:
        assert run["summary"]["results_row"]["final_val_loss"] == list(val.values())[-1]
    if project == "build-nanogpt's terminal":
        assert run["train"]["tokens_per_sec"] == [1540000.0] and run["train"]["grad_norm_l2_preclip"] == [0.25]


def test_log_of_nanochat(tmp_path, capsys):
    """Bits per byte, train losses and speeds of nanochat, which prints no val loss."""
    path = written(tmp_path / "a.log", NANOCHAT)
    run = logs.read_log(path)
    assert {step: record["val_bits_per_byte"] for step, record in run["val"].items()} == {0: 3.2, 20: 0.95}
    assert run["train"]["train_loss_opt_step_mean"].tolist() == [10.3964, 9.5]
    assert run["train"]["tokens_per_sec"].tolist() == [154153.0, 1541530.0]
    assert run["summary"] == {"steps": 20, "results_row": {}}
    better = written(tmp_path / "b.log", NANOCHAT.replace("0.950000", "0.940000"))
    code, record = compared(tmp_path, "--a", path, "--b", better, "--allow", "unrecorded,seed")
    assert record["primary"] == "val_bits_per_byte"
    assert code == 0 and "| 0.9500 | 0.9400 | -0.0100 |" in capsys.readouterr().out


def test_log_of_torchrun(tmp_path):
    """Lines with their rank in front count like others."""
    text = "".join(f"[rank0]: {line}\n" for line in NANOGPT.splitlines())
    run = logs.read_log(written(tmp_path / "log.txt", text))
    assert list(run["val"]) == [0, 20] and run["train"]["step"].tolist() == [0, 10, 20]


def test_log_that_starts_again(tmp_path):
    """A resume from step 10 replaces what came behind it; a new run in the same file replaces all. Both are said."""
    resumed = NANOGPT + "step 10: train loss 9, val loss 9.5\niter 10: loss 8.25, time 1ms, mfu 1%\n"
    run = logs.read_log(written(tmp_path / "a.log", resumed))
    assert list(run["val"]) == [0, 10] and run["train"]["train_loss_opt_step_mean"].tolist() == [10.85, 8.25]
    assert "starts again 1 times (at step 10)" in run["log"]
    run = logs.read_log(written(tmp_path / "b.log", NANOGPT + "step 0: train loss 3, val loss 3.5\n"))
    assert list(run["val"]) == [0] and run["summary"]["results_row"] == {"final_val_loss": 3.5, "best_val_loss": 3.5}


def test_log_that_diverged(tmp_path):
    """A loss of nan is no number, not a smaller one."""
    run = logs.read_log(written(tmp_path / "a.log", NANOGPT + "step 40: train loss nan, val loss nan\n"))
    assert math.isnan(run["val"][40]["val_loss"]) and run["summary"]["steps"] == 40


def test_long_logs_are_quick(tmp_path):
    """50,000 lines, of the 600,000 that nanoGPT prints for GPT-2: a second or two, not the square of it."""
    text = "".join(f"iter {i}: loss 3.1, time 12.34ms, mfu 30.02%\n" for i in range(50_000))
    assert len(logs.read_log(written(tmp_path / "a.log", text))["train"]["step"]) == 50_000


def compared(tmp_path, *flags):
    code = compare_runs.main([*map(str, flags), "--out", str(tmp_path / "report"), "--print", "full"])
    return code, json.loads((tmp_path / "report" / "report.json").read_text())


def test_logs_are_not_comparable(tmp_path, capsys):
    """Two logs: curves and final losses, but settings are not recorded, which is never equal, and one seed no claim."""
    flags = ("--a", written(tmp_path / "a.txt", NANOGPT), "--b", written(tmp_path / "b.txt", BUILD))
    code, record = compared(tmp_path, *flags)
    text = capsys.readouterr().out
    assert code == 2 and record["verdict"] == "not comparable" and "not recorded" in record["headline"]
    assert "| 6.5000 | 6.0000 | -0.5000 |" in text and "seeds unknown" in text and "Equal in every run" not in text
    assert (tmp_path / "report" / "loss_curves.png").exists()
    code, record = compared(tmp_path, *flags, "--allow", "unrecorded,seed")
    assert code == 0 and record["verdict"] == "n = 1: too few"


def test_a_log_beside_runs(tmp_path, capsys):
    """A log as a newcomer in our arm's company: its loss stands there, and nothing of it counts as equal."""
    for seed in range(2):
        make_run(tmp_path / f"ours_s{seed}", seed)
    path = written(tmp_path / "b.txt", BUILD)
    code, record = compared(tmp_path, "--a", tmp_path / "ours_s*", "--b", path, "--no_items")
    assert code == 2 and "unrecorded" in record["headline"] and record["gate"]["equal"] == {}
    assert "micro_batch_size differs (4 / not recorded)" in capsys.readouterr().out


def test_speeds_in_logs(tmp_path, capsys):
    """Tokens per second of machines that nobody recorded are not compared."""
    text = LOGS["build-nanogpt's terminal"][0]
    paths = [written(tmp_path / f"{i}.txt", text.replace("1540000", f"{i}540000")) for i in (1, 2)]
    compare_runs.main(["--a", str(paths[0]), "--b", str(paths[1])])
    assert "| 1,540,000 | 2,540,000 | +1,000,000 | N/A: other hardware" in capsys.readouterr().out


def test_a_log_in_the_band_of_runs(tmp_path, capsys):
    """--check takes a log; its loss is far outside, and that it is comparable nobody knows."""
    for seed in range(4):
        make_run(tmp_path / f"ours_s{seed}", seed)
    path = written(tmp_path / "b.txt", BUILD.replace("20 ", "40 "))
    code, record = compared(tmp_path, "--check", path, "--against", tmp_path / "ours_s*")
    assert code == 2 and "unrecorded (" in record["headline"]
    path = written(tmp_path / "c.txt", BUILD.replace("20 ", "50 "))  # only the untrained networks have a step in common
    with pytest.raises(ValueError, match="not all runs have a val loss of one step after training began"):
        compared(tmp_path, "--check", path, "--against", tmp_path / "ours_s*")


def test_many_logs(tmp_path, capsys):
    """A glob of logs gives an arm each, with its final loss; the same file copied is one run, not two seeds."""
    written(tmp_path / "a.txt", NANOGPT)
    written(tmp_path / "b.txt", BUILD)
    arms = ("--runs", tmp_path / "*.txt", "--group_by", "run_id")
    code, record = compared(tmp_path, *arms, "--allow", "unrecorded,seed")
    assert code == 0 and [arm["losses"] for arm in record["arms"]] == [[6.5], [6.0]]
    copies = [written(tmp_path / f"copy{i}.log", NANOGPT) for i in range(2)]
    code, record = compared(tmp_path, "--a", *copies, "--b", tmp_path / "b.txt", "--allow", "unrecorded,seed")
    assert record["seeds_used"][0] == [-1 - zlib.crc32(NANOGPT.encode())]


# ----------------------------------------------------------------------------------------------------------------------
# logs with a header: document 003's

# the last five evaluations of its six full runs: {arm: {seed: ([val loss], [ms])}}, at these steps of 5,100
STEPS_003 = (4625, 4750, 4875, 5000, 5100)
STAGE_3 = {
    "none": {
        1337: ((3.3239, 3.3136, 3.3036, 3.2955, 3.2920), (1339019, 1375316, 1411577, 1447865, 1476861)),
        2337: ((3.3267, 3.3162, 3.3060, 3.2974, 3.2939), (1338497, 1374765, 1410977, 1447278, 1476246)),
        3337: ((3.3253, 3.3146, 3.3046, 3.2956, 3.2922), (1339652, 1375963, 1412223, 1448531, 1477536)),
    },
    "elementwise": {
        1337: ((3.3033, 3.2928, 3.2827, 3.2746, 3.2711), (1424011, 1462604, 1501166, 1539763, 1570615)),
        2337: ((3.3049, 3.2943, 3.2844, 3.2758, 3.2724), (1424242, 1462838, 1501400, 1540000, 1570852)),
        3337: ((3.3052, 3.2951, 3.2850, 3.2768, 3.2733), (1424670, 1463278, 1501846, 1540452, 1571310)),
    },
}
SMI = """Running pytorch 2.8.0+cu128 compiled for CUDA 12.8
nvidia-smi:
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
|   0  NVIDIA A100 80GB PCIe          On  |   00000000:00:07.0 Off |                    0 |
|   1  NVIDIA A100 80GB PCIe          On  |   00000000:00:08.0 Off |                    0 |
"""


def log_003(arm, seed, losses=(), times=(), **changed):
    """What document 003's trainer writes: its code, a header, evaluations."""
    settings = {
        "input_bin": "data/train_*.bin", "batch_size": 512, "device_batch_size": 64, "sequence_length": 1024,
        "num_iterations": 5100, "learning_rate": 0.00468, "warmup_iters": 0, "warmdown_iters": 1450, "weight_decay": 0,
        "seed": seed, "attn_gate": arm, "gate_pos": "sdpa", "gate_act": "sigmoid", "val_loss_every": 125,
        "val_tokens": 10485760, "save_every": 0, **changed}
    lines = ["=" * 100, 'print(f"step:{step}/{n} val_loss:{loss:.4f}")', "=" * 100, "git_commit: 0837",
             f"seed: {seed}", "hyperparameters:", json.dumps(settings, indent=2), SMI, "=" * 100]
    for step, loss, time in zip(STEPS_003, losses, times, strict=False):
        lines.append(f"step:{step}/5100 train_loss:{loss - 0.03:.4f} train_time:{time - 9}ms step_avg:290.03ms")
        lines.append(f"step:{step}/5100 val_loss:{loss} train_time:{time}ms step_avg:290.03ms")
    return "\n".join(lines) + "\n"


@pytest.fixture
def stage_3(tmp_path):
    for arm, runs_of_arm in STAGE_3.items():
        for seed, (losses, times) in runs_of_arm.items():
            written(tmp_path / f"{arm}_{seed}.txt", log_003(arm, seed, losses, times))
    return tmp_path


GROUP_003 = ("--group_by", "attn_gate", "--baseline", "attn_gate=none")


def test_stage_3_at_equal_wall_clock(stage_3, capsys):
    """Document 003's stage 3: -0.0204 at equal steps is -0.002 at equal wall-clock, which three seeds do not show."""
    code, record = compared(stage_3, "--a", stage_3 / "none_*.txt", "--b", stage_3 / "elementwise_*.txt")
    text = capsys.readouterr().out
    assert code == 0 and record["verdict"] == "better" and record["gate"]["family"] == "gate"
    assert "step 5100, 3 pairs: B - A = -0.0204 [-0.0238, -0.0171]" in record["headline"]
    wall = record["matchings"][2]
    assert wall["row"]["delta"] == pytest.approx(-0.0022, abs=5e-5) and wall["verdict"] == "inconclusive"
    assert wall["row"]["low"] < 0 < wall["row"]["high"] and wall["budget"] == "1,476.2 s"
    assert "Comparable only as far as recorded. Not recorded: schedule," in record["headline"]
    assert "2 x NVIDIA A100 80GB PCIe" in text and "weight_decay" not in record["headline"]
    code, record = compared(stage_3, "--runs", stage_3 / "*.txt", *GROUP_003, "--where", "num_iterations=5100")
    (entry,) = record["differences"]
    assert code == 0 and record["verdict"] == "comparable as far as recorded" and entry["row"]["n"] == 3
    assert entry["wall"]["delta"] == pytest.approx(-0.0022, abs=5e-5) and entry["wall"]["verdict"] == "inconclusive"
    assert entry["row"]["tests"] == 2 and entry["time"] == "+6.4 %"
    assert "| elementwise | 3 | 3.2723 | 26m 10.9s |" in capsys.readouterr().out


def test_settings_in_logs_go_through_the_gate(stage_3, capsys):
    """Another warmup, a log of other hardware, and a seed twice."""
    losses, times = STAGE_3["elementwise"][1337]
    path = stage_3 / "elementwise_1337.txt"
    written(path, log_003("elementwise", 1337, losses, times, warmup_iters=100))
    code, record = compared(stage_3, "--runs", stage_3 / "*.txt", *GROUP_003)
    assert code == 2 and "warmup_iters (100, 0)" in record["headline"]
    written(path, log_003("elementwise", 1337, losses, times).replace("A100 80GB PCIe", "H100"))
    code, record = compared(stage_3, "--runs", stage_3 / "*.txt", *GROUP_003)
    assert code == 0 and record["differences"][0]["time"] == "N/A: other hardware or software"
    written(path, log_003("elementwise", 2337, losses, times))
    code, record = compared(stage_3, "--a", stage_3 / "none_*.txt", "--b", stage_3 / "elementwise_*.txt")
    assert code == 2 and "B has seed 2337 twice" in record["headline"]


def test_unfinished_logs_are_told(stage_3, capsys):
    """Of document 003's logs a quarter ends early: before its first step, or far from its last; none is a result."""
    ended = log_003("none", 4337, (3.7,), (25_000,))
    written(stage_3 / "none_4337.txt", ended)
    written(stage_3 / "none_5337.txt", log_003("none", 5337))
    written(stage_3 / "none_no_header.txt", f"code\n{SMI}")
    code, record = compared(stage_3, "--runs", stage_3 / "*.txt", *GROUP_003, "--where", "num_iterations=5100")
    assert code == 2 and "none_4337.txt: unfinished, at step 4625 of 5100" in record["headline"]
    assert "none_5337.txt: unfinished, before its first step" in record["headline"]
    assert [len(arm["losses"]) for arm in record["arms"]] == [3, 3]
    assert logs.read_log(stage_3 / "none_no_header.txt")["status"] == "unfinished, before its first step"
    code, record = compared(stage_3, "--a", stage_3 / "none_?337.txt", "--b", stage_3 / "elementwise_*.txt",
                            "--allow", "incomplete,seed")
    assert code == 0 and record["metrics"]["val_loss"]["n"] == 3


def test_times_in_seconds(tmp_path):
    """modded-nanogpt's third track counts seconds, and adds scores between loss and time."""
    text = ("step:0/50 val_loss:10.82584 train_time:0.000s step_avg:0.37ms\nstep:1/50 train_time:5.418s step_avg:9ms\n"
            "step:25/50 val_loss:4.6 val_ema_loss:4.5 train_time:22.151s step_avg:177ms\n")
    run = logs.read_log(written(tmp_path / "a.txt", text))
    assert [record.get("train_seconds") for record in run["val"].values()] == [0.0, 22.151]
    assert run["status"] == "unfinished, at step 25 of 50" and run["summary"] is None
    whole = text + "step:50/50 val_loss:4.0 train_time:44s step_avg:177ms\n"
    run = logs.read_log(written(tmp_path / "b.txt", whole))
    assert run["status"] == "" and run["summary"]["results_row"]["train_time_ms"] == 44_000
    assert "seed, settings, data, code are not recorded" in run["log"]


@pytest.mark.parametrize("header", ["hyperparameters:\n{broken\n}", "hyperparameters:\n[1]\n",
                                    'hyperparameters:\n{\n"learning_rate": 1\n}'])
def test_broken_headers(tmp_path, header):
    """A header that is no JSON object with a seed counts as none, and the losses stay."""
    run = logs.read_log(written(tmp_path / "a.txt", f"{header}\n{LOGS['modded-nanogpt'][0]}"))
    assert run["flags"] == {} and run["val"][20]["val_loss"] == 3.2799


@pytest.mark.parametrize("content, said", [(b"hello", "is no log of nanoGPT, build-nanogpt"), (b"", "is no log of")])
def test_other_files_are_no_logs(tmp_path, content, said):
    """A file that no reader knows is one sentence."""
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        compare_runs.main(["--a", str(tmp_path / "x.txt"), "--b", str(tmp_path / "x.txt")])
