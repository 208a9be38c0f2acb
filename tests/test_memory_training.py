"""Training with fast weights, through the trainers: batches, ranks, resume, records, refusals, the gate."""

import json
import signal

import pytest
from conftest import TRAIN, exact, light_files, losses, rank_jobs, records, run_forked, weights

import compare_runs
import prepare_fineweb
import sft
import train_gpt
import train_tokenizer
from lab import runs
from model import GPT

TINY = ("--n_layer 2 --n_head 2 --n_embd 16 --seq_len 32 --micro_batch_size 2 --total_batch_tokens 256 --device cpu "
        "--learning_rate 1e-2 --max_train_steps 8 --eval_every 4 --save_every 4 --num_workers 0 "
        "--val_tokens 300").split()
ARMS = {
    "titan": "--memory titan --titan_period 8",
    "hope_attention": "--memory hope_attention --cms_periods 8,0 --inner_lr 20",
    "hope": "--memory hope --cms_periods 8,16,0 --self_modifier on --write through --optimizer muon --arch speedrun",
}


SCHEDULE = "--teach_warmup_iters 6"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """About 9,000 train tokens of a vocabulary of 1,024 ids: with GPT-2's, the head would take most of the time."""
    folder = tmp_path_factory.mktemp("data")
    source = ["--dataset", "synthetic", "--max_docs", "60"]
    train_tokenizer.main([*source, "--vocab_size", "1024", "--out_dir", str(folder / "words")])
    prepare_fineweb.main([*source, "--tokenizer", str(folder / "words"), "--val_fraction", "0.1",
                          "--out_dir", str(folder / "tiny")])
    return folder / "tiny"


def command(data, out, flags):
    return ["--data_dir", str(data), "--out_dir", str(out), "--results_csv", "", *TINY, *flags.split()]


def train(data, out, flags):
    with light_files():
        train_gpt.main(command(data, out, flags))
    return out


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """{arm: its run}, in which the teach signal is raised over 6 of the 8 steps."""
    folder = tmp_path_factory.mktemp("runs")
    return {arm: train(data, folder / arm, f"{flags} {SCHEDULE}") for arm, flags in ARMS.items()}


TWELVE = "--total_batch_tokens 384 --max_train_steps 12 --eval_every 0 --save_every 0"
ON_RANKS = ["hope_attention", "hope"]  # hope has the Titans memory, too


@pytest.fixture(scope="module")
def on_two_ranks(data, tmp_path_factory):
    """{arm: its run on two ranks}"""
    out = {arm: tmp_path_factory.mktemp("ranks") / arm for arm in ON_RANKS}
    jobs = []
    for arm in ON_RANKS:
        jobs += rank_jobs(2, command(data, out[arm], f"{ARMS[arm]} {TWELVE} --micro_batch_size 2"))
    assert [status for status, _ in run_forked(TRAIN, jobs)] == [0] * 4
    return out


@pytest.mark.slow
@pytest.mark.parametrize("arm", ON_RANKS)
def test_micro_batches_and_ranks_give_the_same_losses(arm, data, on_two_ranks, tmp_path):
    """12 sequences a step, 1, 3 or 12 at a time, and on two ranks: 1e-6 apart at step 1, 1e-4 after 12 steps."""
    flags = f"{ARMS[arm]} {TWELVE}"
    runs_of = [train(data, tmp_path / str(size), f"{flags} --micro_batch_size {size}") for size in (1, 3, 12)]
    wanted = losses(runs_of[0])
    assert len(wanted) == 12 and wanted[-1] < wanted[0]
    for run in (*runs_of[1:], on_two_ranks[arm]):
        assert losses(run)[0] == pytest.approx(wanted[0], rel=1e-6)  # one fp32 step at 6.9 is 5e-7
        assert losses(run) == pytest.approx(wanted, abs=1e-4)


KILLED = """
import os, signal, sys
import train_gpt
from lab import training
def record_step(run, *args, **fields):
    original(run, *args, **fields)
    if run.state.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
original, training.record_step = training.record_step, record_step
train_gpt.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory):
    """{arm: its run, killed behind step 6}"""
    out = {arm: tmp_path_factory.mktemp("killed") / arm for arm in ARMS}
    ends = run_forked(KILLED, [({}, command(data, out[arm], f"{ARMS[arm]} {SCHEDULE}")) for arm in ARMS])
    assert [status for status, _ in ends] == [-signal.SIGKILL] * len(ARMS), ends
    return out


@pytest.mark.parametrize("arm", ARMS)
def test_kill_9_and_resume_is_exact(arm, base, killed, data, tmp_path):
    """Killed behind step 6, when that of step 4 is saved, in the middle of a teach schedule: the records and weights of
    an undisturbed run, to the bit."""
    again = killed[arm]
    assert records(again)[-1]["step"] == 6 and not (again / "summary.json").exists()
    with light_files():
        train_gpt.main(["--out_dir", str(again), "--resume", "auto"])
    assert exact(again) == exact(base[arm])
    assert weights(again) == weights(base[arm])
    unscheduled = train(data, tmp_path / "one", f"{ARMS[arm]} --max_train_steps 1 --eval_every 0 --save_every 0")
    assert losses(unscheduled)[0] != losses(base[arm])[0] or arm == "titan"  # the teach signal is not Titans'


@pytest.mark.parametrize("arm", ARMS)
def test_evaluations_leave_training_alone(arm, base, data, tmp_path):
    """Val losses after every step, likelihoods and samples."""
    more = ("--eval_every 1 --hellaswag_every 4 --hellaswag_data synthetic:4 --skip_long "
            "--sample_every 4 --sample_tokens 4")
    often = train(data, tmp_path / "run", f"{ARMS[arm]} {SCHEDULE} {more}")
    assert (losses(often) == losses(base[arm])).all()
    assert weights(often) == weights(base[arm])


@pytest.mark.parametrize("arm", ARMS)
def test_what_is_written_is_recorded(arm, base):
    """Every level's writes in a row of 32 tokens, and the loss without them."""
    levels = records(base[arm], "memory")[-1]["levels"]
    expected = {"titan": {"titan": 3}, "hope_attention": {"0": 3}, "hope": {"titan": 3, "modifier": 3, "0": 3, "1": 1}}
    assert {level["level"]: level["updates"] for level in levels} == expected[arm]
    assert all(level["update_norm"] > 0 and level["delta_over_theta"] > 0 for level in levels)
    val = records(base[arm], "val")[-1]
    assert val["val_loss"] != val["val_loss_no_write"]
    assert val["val_tokens_no_write"] == val["val_tokens"]
    flags = runs.read_config(base[arm])["flags"]
    assert flags["cms_periods"] in ARMS[arm] or arm == "titan"
    assert flags["cms_widths"] and flags["memory_layers"] == 1


@pytest.mark.parametrize(("arm", "flags", "word"), [
    ("hope_attention", "--surprise_threshold 1e9", "not written once"),
    ("hope_attention", "--inner_lr 0", "not written once"), ("titan", "--inner_lr 0", "not written once"),
    ("hope_attention", "--teach_scale 0", "not written once"),
    ("hope_attention", "--cms_periods 32,0", "never read"), ("titan", "--titan_period 32", "never read"),
    ("hope_attention", "--cms_periods 12,0", "no multiple of the smallest period, 12"),
    ("hope_attention", "--cms_periods 8,12,0", "no multiple"),
    ("hope_attention", "--cms_periods 8,x", "comma-separated"), ("hope_attention", "--teach_scale 1,2", "one each"),
    ("hope_attention", "--write through --inner_optimizer rank1", "use write stop")])
def test_a_memory_that_cannot_write_is_refused(arm, flags, word, data, tmp_path):
    with pytest.raises((ValueError, RuntimeError), match=word):
        train(data, tmp_path / "run", f"{ARMS[arm]} {flags}")


def test_shorter_rows_than_a_period_are_refused(base, data, tmp_path):
    """Of a memory that was trained on longer ones: it would not be written there."""
    with pytest.raises(ValueError, match="never read in rows of 8"):
        train(data, tmp_path / "run", f"--init_from {base['hope_attention']} --seq_len 8")


def test_a_teach_schedule_that_ends_early_is_a_warning(data, tmp_path):
    """The last 3 of 8 steps are behind its end: said in the log before step 1."""
    run = train(data, tmp_path / "run", f"{ARMS['hope_attention']} --teach_decay_start 3 --teach_decay_iters 2")
    log = (run / "log.txt").read_text()
    assert "the last 3 steps train a static model" in log.partition("step      4")[0]
    assert records(run, "memory")[-1]["levels"][0]["updates"] == 0


@pytest.mark.parametrize("arm", ["hope_attention", "titan"])
def test_a_memory_without_effect_is_invalid(arm, data, tmp_path, capsys):
    """Writes that change the val loss by less than 1e-4: a warning of the run, and no comparison."""
    run = train(data, tmp_path / "idle", f"{ARMS[arm]} --inner_lr 1e-6")
    warnings = json.loads((run / "summary.json").read_text())["warnings"]
    assert any("the memory is not active" in warning for warning in warnings)
    plain = train(data, tmp_path / "plain", "")
    capsys.readouterr()
    status = compare_runs.main(["--a", str(plain), "--b", str(run)])
    printed = capsys.readouterr().out
    assert status == 2 and "not comparable" in printed and "the memory is not active" in printed


def test_the_original_preset_writes_nothing_in_training(data, tmp_path):
    """--memory original stands for the flags of document 004, with static training."""
    run = train(data, tmp_path / "run", "--memory original --cms_periods 8,0")
    flags = runs.read_config(run)["flags"]
    assert (flags["memory"], flags["write"], flags["inner_lr"]) == ("hope_attention", "off", 3.75e-6)
    assert not records(run, "memory") and "val_loss_no_write" not in records(run, "val")[-1]


def test_another_run_starts_from_a_memory(base, data, tmp_path):
    run = train(data, tmp_path / "run", f"--init_from {base['hope']} --arch speedrun")
    assert runs.read_config(run)["model"] == runs.read_config(base["hope"])["model"]
    assert losses(run)[0] < losses(base["hope"])[0]


def test_fine_tuning_a_memory(data, tmp_path):
    """Through sft.py, one conversation per row: packed ones would share a memory. The written level learns."""
    start = train(data, tmp_path / "start", "--memory hope_attention --cms_periods 16,0 --seq_len 128 "
                                            "--total_batch_tokens 256 --max_train_steps 2")
    flags = ["--stage", "gsm8k", "--init", str(start), "--data", "synthetic:40", "--device", "cpu",
             *"--max_train_steps 2 --micro_batch_size 2 --total_batch_conversations 4".split(),
             *"--eval_every 2 --val_fraction 0.2".split()]
    sft.main([*flags, "--packing", "off", "--out_dir", str(tmp_path / "tuned")])
    before, after = (GPT.load(runs.resolve_checkpoint(str(folder), flag="--init")[0])
                     for folder in (start, tmp_path / "tuned"))
    weights = [model.transformer["h"][1].memory.levels[0].c_fc.weight for model in (before, after)]
    assert after.writes and not weights[0].equal(weights[1])
    with pytest.raises(ValueError, match="--packing off"):
        sft.main([*flags, "--out_dir", str(tmp_path / "packed")])


def test_the_gate_knows_a_memory_as_one_treatment(base, data, tmp_path, capsys):
    plain = [train(data, tmp_path / f"plain_s{seed}", f"--seed {seed}") for seed in (0, 1)]
    memory = [train(data, tmp_path / f"memory_s{seed}", f"{ARMS['hope_attention']} --seed {seed}") for seed in (0, 1)]
    assert plain and memory
    compare_runs.main(["--a", str(tmp_path / "plain_s*"), "--b", str(tmp_path / "memory_s*")])
    printed = capsys.readouterr().out
    assert "not comparable" not in printed
    assert "memory" in printed
