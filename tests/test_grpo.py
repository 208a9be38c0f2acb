"""grpo.py and rollouts.py on a model of one layer: sampling, records, resume, ranks, exams and refusals."""

import json
import math
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, exact, exposures, losses, records, run_two_ranks, weights, write_jsonl

import compare_runs
import eval_gsm8k
import grpo
import sft
from lab import inference, policy, rewards, rollouts, runs, training
from lab.tokenizer import BOS_ID, get_tokenizer
from model import GPT, GPTConfig

SHARED = REPO.parent / "shared" / "data"


def items(n, start=0):
    """Problems whose answer, 3 or 4, a model of one layer can only guess."""
    words = "apples eggs coins cards pens cakes stamps beans".split()
    answers = "#### 3", "It is 4.\n#### 4"
    return [{"question": f"{i} {words[i % 8]}?", "answer": answers[i % 2]} for i in range(start, start + n)]


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    """A tiny model, fine-tuned until it guesses and stops."""
    folder = tmp_path_factory.mktemp("init")
    GPT(GPTConfig(block_size=48, n_layer=1, n_head=2, n_embd=16, padded_vocab_size=50432), seed=0).save(folder / "base")
    data = write_jsonl(folder / "train.jsonl", items(32))
    flags = (f"--stage gsm8k --init {folder / 'base'} --data {data} --out_dir {folder / 'sft'} --eval_every 0 "
             "--max_train_steps 32 --total_batch_conversations 16 --micro_batch_size 16 --optimizer muon "
             "--learning_rate 0.05 --save_every 0 --log_every 0")
    assert sft.main(flags.split()) == 0
    return folder / "sft"


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("pool") / "pool.jsonl", items(40, start=100))


def flags_of(init, pool, out, *flags):
    usual = ("--val_fraction 0.2 --eval_every 3 --problems_per_step 4 --group_size 4 --max_new_tokens 10 "
             "--max_train_steps 6 --optimizer muon --learning_rate 3e-3 --micro_batch_size 4 --exam_samples 2 "
             "--log_every 0 --peak_flops 1e11")
    return ["--init", str(init), "--data", str(pool), "--out_dir", str(out), *usual.split(), *map(str, flags)]


@pytest.fixture(autouse=True)
def handlers():
    """A run takes over SIGTERM and ctrl-C; give them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def run(init, pool, tmp_path_factory):
    """The uninterrupted run that others are compared with."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert grpo.main(flags_of(init, pool, out, "--save_every", 3, "--keep_last", 0, "--inner_steps", 2,
                              "--sample_every", 3)) == 0
    return out


MEASURED = "sampling_tokens_per_sec update_tokens_per_sec sampling_seconds".split()


def same(run):
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in exact(run)]


# ----------------------------------------------------------------------------------------------------------------------
# sampling


def drawn(init, **changes):
    model = GPT.load(runs.list_checkpoints(init)[-1]).eval()
    problems = [rollouts.make_problem(item["question"], item["answer"], True) for item in items(6)]
    settings = {"group_size": 3, "max_new_tokens": 10, "temperature": 1.0, "seed": 0, "batch_size": 64} | changes
    step = settings.pop("step", 1)
    numbered = settings.pop("numbered", range(6))
    return rollouts.sample(model, step, [(i, problems[i]) for i in numbered], **settings)


def test_completions_depend_on_nothing_but_their_names(init):
    """Completions that change with the batch, the rank's share or what else is drawn: none. Another step, seed, place
    or number draws others."""
    ids_of = lambda **changes: [one.ids for one in drawn(init, **changes)]
    whole = ids_of()
    assert ids_of(batch_size=1) == whole == ids_of(batch_size=5)
    assert ids_of(numbered=[1, 3, 5]) == whole[3:6] + whole[9:12] + whole[15:18]
    assert ids_of(group_size=2) == [ids for i, ids in enumerate(whole) if i % 3 < 2]
    for change in ({"step": 2}, {"seed": 1}):
        assert sum(a != b for a, b in zip(ids_of(**change), whole, strict=True)) > 6
    assert len(set(map(tuple, whole))) > 3


def test_log_probs_of_sampling_are_those_of_the_update(init):
    """|log p at sampling - log p of the update| of every token, at three temperatures: below 5e-4; the end is one.

    The draw's is right to 4e-7. torch's softmax in fp32 over 50,432 ids, of which one has nearly all of the
    probability, is off by up to 2.4e-4 on a CPU that has AVX2 and no AVX-512 (measured): the vector's lane that holds
    it loses the small ones."""
    model = GPT.load(runs.list_checkpoints(init)[-1]).eval()
    for temperature in (0.7, 1.0, 1.5):
        batch_of = drawn(init, temperature=temperature)
        assert any(one.has_ended for one in batch_of) and all(len(one.ids) == len(one.log_probs) for one in batch_of)
        for one in batch_of:
            assert BOS_ID not in one.ids[:-1]
        batch = rollouts.make_batch(batch_of)
        log_p = rollouts.log_probs(model, batch, temperature)
        assert (log_p.double() - batch["sampled"]).abs().max() < 5e-4
        assert batch["targets"].tolist() == sum((one.ids for one in batch_of), [])


def test_log_probs_by_hand(init):
    """log p of one completion's tokens against a softmax of plain logits, one token at a time: to 1e-4."""
    model = GPT.load(runs.list_checkpoints(init)[-1]).eval()
    one = drawn(init)[0]
    tokens = one.prompt.copy()
    for token, log_p in zip(one.ids, one.log_probs, strict=True):
        logits = model(torch.tensor([tokens]))[0, -1].double()
        assert abs(logits.log_softmax(0)[token].item() - log_p) < 1e-4
        tokens.append(token)


def test_generate_returns_log_probs_only_when_asked():
    """Fields of a Completion that nobody asked for: None; of a greedy one 0, of a filtered one under the filter."""
    net = GPT(GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=16, vocab_size=50), seed=3).eval()
    assert inference.generate(net, [[1, 2]], 3)[0].log_probs is None
    assert inference.generate(net, [[1, 2]], 3, temperature=0, log_probs=True)[0].log_probs == [0, 0, 0]
    assert inference.generate(net, [[1, 2]], 3, top_k=1, log_probs=True)[0].log_probs == [0, 0, 0]
    assert inference.generate(net, [[1, 2]], 0, log_probs=True)[0].log_probs == []
    [ended] = inference.generate(net, [[1, 2]], 9, stop_ids=range(1, 50), log_probs=True)
    assert len(ended.log_probs) == len(ended.ids) + 1


def test_masked_completions_weigh_nothing(init):
    """Weights of completions without an end under --truncated mask: 0; in dapo those of the others sum to 1."""
    batch_of = drawn(init, max_new_tokens=5)
    ended = torch.tensor([one.has_ended for one in batch_of])
    assert 0 < ended.sum() < len(ended)
    lengths = torch.tensor([len(one.ids) for one in batch_of])
    for name in policy.NORMALIZATIONS:
        kept, masked = (rollouts.weigh(batch_of, name, how, 5) for how in ("keep", "mask"))
        assert (kept > 0).all() and ((masked > 0) == ended).all()
    assert math.isclose((rollouts.weigh(batch_of, "dapo", "mask", 5) * lengths).sum().item(), 1)
    assert math.isclose((rollouts.weigh(batch_of, "grpo", "keep", 5) * lengths).sum().item(), 1)


# ----------------------------------------------------------------------------------------------------------------------
# runs


def test_a_run_records_every_step(run, init):
    """Fields of every step, recomputed from its completions; samples, exams and the rows of a report are there."""
    config, summary = (json.loads((run / name).read_text()) for name in ("config.json", "summary.json"))
    steps = records(run)
    assert [record["step"] for record in steps] == list(range(1, 7))
    assert all(record["ratio_off_share"] == 0 and record["ratio_off_max"] < 1e-3 for record in steps)
    assert steps[0]["kl"] == 0 and steps[-1]["kl"] > 0 and all(record["entropy"] > 0 for record in steps)
    # the first step once more, from the weights it was drawn from
    args = grpo.parse_args(["--config", str(run / "config.json"), "--out_dir", "x"])
    args.max_new_tokens = 10
    data = grpo.load_problems(args, 48)
    plan = rollouts.plan_order(data["fingerprint"], len(data["problems"]), 4, 0)
    model = GPT.load(runs.list_checkpoints(init)[-1]).eval()
    numbered = [(place, data["problems"][number]) for place, number in enumerate(plan)]
    again = rollouts.sample(model, 1, numbered, group_size=4, max_new_tokens=10, temperature=1.0, seed=0, batch_size=64)
    right = [rewards.is_right(rewards.read(one.ids, numbered[one.place][1]["gold"])) for one in again]
    assert steps[0]["exact_share"] == steps[0]["reward_mean"] == np.mean(right) and 0 < sum(right) < 16
    assert steps[0]["reward_sd"] == pytest.approx(np.std(right, ddof=1))
    assert steps[0]["length_mean"] == np.mean([len(one.ids) for one in again])
    assert steps[0]["truncated_share"] == np.mean([not one.has_ended for one in again])
    flat = [len(set(right[i : i + 4])) == 1 for i in range(0, 16, 4)]
    assert steps[0]["flat_groups"] == np.mean(flat)

    samples = runs.read_jsonl(run / "samples.jsonl")
    assert {sample["step"] for sample in samples} == {3, 6} and "[reward " in samples[0]["text"]
    exams = runs.read_jsonl(run / "grpo_metrics.jsonl")
    assert [exam["step"] for exam in exams] == [0, 3, 6]
    for key in "accuracy pass_at_1 pass_at_2 majority_at_2 stopped_by_itself".split():
        low, high = exams[-1][f"{key}_interval"]
        assert low <= exams[-1][key] <= high
    asked = {item["question"] for item in runs.read_jsonl(run / "grpo_items.jsonl")}
    rewarded = {problem["question"] for problem in data["problems"]}
    assert asked and not asked & rewarded and len(asked) + len(rewarded) == 40
    keys = [key for key, *_ in config["benchmarks"]["grpo"]["metrics"]]
    assert set(keys) <= set(json.loads((run / "step_metrics.json").read_text())["6"])
    assert summary["completions"] == 96 and summary["final_accuracy_exam"] == exams[-1]["accuracy"]
    assert GPT.load(runs.resolve_checkpoint(run)[0]).config.block_size == 48


def test_resume_equals_uninterrupted(init, pool, run, tmp_path):
    """Every record but times, and the weights, of a run resumed from step 3 and after a SIGTERM: bit for bit."""
    out = tmp_path / "killed"
    shutil.copytree(run, out)
    (out / "summary.json").unlink()
    shutil.rmtree(runs.list_checkpoints(out)[-1])
    assert grpo.main(["--out_dir", str(out), "--resume", "auto"]) == 0
    assert same(out) == same(run) and weights(out) == weights(run) and exposures(out) == exposures(run)

    out = tmp_path / "stopped"
    resume = flags_of(init, pool, out, "--resume", "auto", "--save_every", 0, "--inner_steps", 2)

    def stop():
        while not (out / "scalars.jsonl").exists() or len(records(out)) < 2:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert grpo.main(resume) == 0
    thread.join()
    assert not (out / "summary.json").exists() and 2 <= len(records(out)) < 6
    assert grpo.main(resume) == 0
    assert same(out) == same(run) and weights(out) == weights(run)
    with pytest.raises(ValueError, match="is finished.*kl_coef"):
        grpo.main([*resume, "--kl_coef", "0.5"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_while_saving(init, pool, tmp_path, monkeypatch):
    """A save that fails half way: a sentence without torch's own words, nothing half written, the one before stays."""
    real = torch.save

    def full(value, path):
        if "step_000003" in str(path):
            path.symlink_to("/dev/full")
        real(value, path)

    monkeypatch.setattr(torch, "save", full)
    flags = flags_of(init, pool, tmp_path / "full", "--save_every", 1, "--eval_every", 0, "--max_train_steps", 3)
    with pytest.raises(ValueError, match=r"step_000003 cannot be saved \(the disk did not take all of it\): free "
                                         "space, then --resume auto.$"):
        grpo.main(flags)
    names = [path.name for path in (tmp_path / "full" / "ckpt").iterdir()]
    assert "step_000002" in names and not any("step_000003" in name for name in names)
    monkeypatch.undo()
    assert grpo.main([*flags, "--resume", "auto"]) == 0


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("")])
def test_lost_scalars_do_not_keep_a_run_from_its_end(run, tmp_path, damage):
    """Numbers of the last step in the summary of a run whose scalars.jsonl was lost before its end: null, and a warning
    says so; the exam's are there."""
    out = tmp_path / "lost"
    shutil.copytree(run, out)
    (out / "summary.json").unlink()
    damage(out / "scalars.jsonl")
    assert grpo.main(["--out_dir", str(out), "--resume", "auto"]) == 0
    summary, whole = (json.loads((folder / "summary.json").read_text()) for folder in (out, run))
    assert set(summary) == set(whole) and summary["final_kl"] is None and whole["final_kl"] > 0
    assert any("scalars.jsonl lacks 6 of 6 steps" in warning for warning in summary["warnings"])
    assert summary["final_accuracy_exam"] == whole["final_accuracy_exam"]


OTHER_INIT = """
import os, sys
import torch
import grpo
from model import GPT

if os.environ["RANK"] == "1":
    load = GPT.load

    def load_others(*args):
        model = load(*args)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.01)
        return model

    GPT.load = load_others
sys.exit(grpo.main(sys.argv[1:]))
"""


def test_two_ranks_learn_the_same(init, pool, tmp_path):
    """Completions, rewards, losses and exams of 3 problems a step on 2 ranks, against 1: the same to 1e-5, though rank
    1 sees other weights in --init, for the model and its reference."""
    flags = ("--save_every", 0, "--problems_per_step", 3, "--max_train_steps", 3, "--micro_batch_size", 5)
    assert grpo.main(flags_of(init, pool, tmp_path / "one", *flags)) == 0
    ends = run_two_ranks(OTHER_INIT, *flags_of(init, pool, tmp_path / "two", *flags))
    assert [status for status, _, _ in ends] == [0, 0], ends
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        for key in ("reward_mean", "exact_share", "flat_groups", "length_mean", "truncated_share", "flops_total"):
            assert a[key] == b[key], key
        for key in ("kl", "entropy", "grad_norm_l2_preclip", "train_loss_opt_step_mean"):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-6), key
    accuracy = [[exam["accuracy"] for exam in runs.read_jsonl(tmp_path / name / "grpo_metrics.jsonl")]
                for name in ("one", "two")]
    assert accuracy[0] == accuracy[1]
    checksums = [[record["checksum"] for record in exposures(tmp_path / name)] for name in ("one", "two")]
    assert checksums[0] == checksums[1]


def test_micro_batches_change_nothing(init, pool, run, tmp_path):
    """Losses of micro-batches of 1 and of all, completions sampled 3 at a time: to 1e-5 at the first step."""
    variants = {"one": ("--micro_batch_size", 1), "all": ("--micro_batch_size", 64, "--rollout_batch_size", 3)}
    for name, flags in variants.items():
        assert grpo.main(flags_of(init, pool, tmp_path / name, "--save_every", 0, "--max_train_steps", 1,
                                  "--inner_steps", 2, "--eval_every", 0, "--val_fraction", 0, *flags)) == 0
    one, other = (records(tmp_path / name)[0] for name in ("one", "all"))
    for key in ("train_loss_opt_step_mean", "grad_norm_l2_preclip", "entropy", "kl", "reward_mean"):
        assert one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-7), key


def test_loss_and_norm_are_means_over_the_updates(init, pool, tmp_path, monkeypatch):
    """The gradient norm was that of the last of 3 updates alone, beside the mean of their losses."""
    outcomes, read_step = [], training.read_step

    def read(*args):
        outcomes.append(read_step(*args))
        return outcomes[-1]

    monkeypatch.setattr(training, "read_step", read)
    assert grpo.main(flags_of(init, pool, tmp_path / "run", "--save_every", 0, "--max_train_steps", 1,
                              "--inner_steps", 3, "--eval_every", 0, "--val_fraction", 0)) == 0
    (record,) = records(tmp_path / "run")
    assert len({one.grad_norm for one in outcomes}) == 3
    assert record["grad_norm_l2_preclip"] == pytest.approx(np.mean([one.grad_norm for one in outcomes]))
    assert record["train_loss_opt_step_mean"] == pytest.approx(np.mean([one.loss for one in outcomes]), abs=1e-12)


@pytest.mark.parametrize("name", ["dr_grpo", "rloo"])
def test_it_learns_what_is_rewarded(init, pool, tmp_path, monkeypatch, name):
    """Share of completions that say 3 when 3 is rewarded, whatever was asked: at most 0.65, then above 0.8."""
    monkeypatch.setitem(rewards.REWARDS, "exact", lambda attempt: float("#### 3" in attempt.text))
    flags = ("--save_every 0 --eval_every 0 --max_train_steps 8 --problems_per_step 8 --micro_batch_size 32 "
             f"--kl_coef 0 --inner_steps 2 --truncated mask --learning_rate 1e-2 --normalization {name}")
    assert grpo.main(flags_of(init, pool, tmp_path / "run", *flags.split())) == 0
    means = [record["reward_mean"] for record in records(tmp_path / "run")]
    assert means[0] < 0.65 and np.mean(means[-2:]) > 0.8, means


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zero_reward_changes_no_weight(init, pool, tmp_path, dtype):
    """Weights that a reward of 0 and a KL term change: none, since the policy is its own reference."""
    flags = ("--reward", "zero", "--max_train_steps", 2, "--eval_every", 0, "--kl_coef", 0.5, "--dtype", dtype)
    assert grpo.main(flags_of(init, pool, tmp_path / "run", *flags)) == 0
    assert weights(tmp_path / "run") == weights(init)
    assert [record["flat_groups"] for record in records(tmp_path / "run")] == [1, 1]
    assert np.abs(losses(tmp_path / "run")).max() == 0


def test_arms_compare(init, pool, run, tmp_path, capsys):
    """compare_runs.py takes the exam's rows from config.json, judges by its accuracy and knows the family grpo; one
    pair is too few."""
    assert grpo.main(flags_of(init, pool, tmp_path / "other_s0", "--save_every", 0, "--normalization", "rloo",
                              "--inner_steps", 2)) == 0
    shutil.copytree(run, tmp_path / "one_s0", ignore=shutil.ignore_patterns("ckpt"))
    arms = ["--a", str(tmp_path / "one_s0"), "--b", str(tmp_path / "other_s0"), "--allow",
            "code_sha256"]  # what else this process has imported since
    assert compare_runs.main([*arms, "--treatment", "grpo"]) == 0
    report = capsys.readouterr().out
    assert "score the runs that lack it" not in report
    assert "inconclusive" in report and "normalization: dr_grpo → rloo" in report
    for label in ("greedy accuracy", "pass@2", "majority at 2", "Entropy", "Reward, mean", "KL to the start"):
        assert label in report, label
    assert compare_runs.main([*arms, "--treatment", "optimizer"]) == 2


def test_the_noise_of_runs_without_a_val_loss(run, tmp_path, capsys):
    """--aa and --plan ended with "not all runs have a val loss": they go by the exam's accuracy, as --a and --b do."""
    for seed in range(4):
        folder = tmp_path / f"x_s{seed}"
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("ckpt"))
        config = json.loads((folder / "config.json").read_text())
        config["flags"]["seed"] = seed
        (folder / "config.json").write_text(json.dumps(config))
        records = runs.read_jsonl(folder / "grpo_metrics.jsonl")
        lines = [json.dumps(record | {"grpo_accuracy": 0.2 + 0.1 * seed}) + "\n" for record in records]
        (folder / "grpo_metrics.jsonl").write_text("".join(lines))
    compare_runs.main(["--aa", str(tmp_path / "x_s*"), "--plan", "--effect", "0.1", "--out", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["primary"] == "grpo_accuracy" and "over 4 seeds (0, 1, 2, 3), step 6" in report["headline"]
    assert report["plan"]["sd"] == pytest.approx(0.129, abs=1e-3) and report["plan"]["seeds_needed"]["unpaired"] > 3


def test_no_exam_changes_no_problem(init, pool, tmp_path):
    """Problems rewarded with and without exams: the same; all of them only with --val_fraction 0."""
    load = lambda *flags: rollouts.load(grpo.parse_args(flags_of(init, pool, tmp_path / "x", *flags)), 48)
    scored, unscored, everything = load(), load("--eval_every", 0), load("--eval_every", 0, "--val_fraction", 0)
    assert unscored["fingerprint"] == scored["fingerprint"] and len(everything["problems"]) == 40
    assert len(scored["problems"]) < 40


def test_no_exam_on_what_init_was_trained_on(init, tmp_path):
    """Problems of the exam whose solutions --init has read: none; the default chain of one file says so."""
    refused(init, init.parent / "train.jsonl", tmp_path, "so that its held-out share is no exam")


def test_exam_on_other_problems(init, pool, tmp_path):
    """The exam of --exam_data is eval_gsm8k's of the same weights; a problem in both files is refused."""
    exam = write_jsonl(tmp_path / "exam.jsonl", items(12, start=500))
    assert grpo.main(flags_of(init, pool, tmp_path / "run", "--exam_data", exam, "--max_train_steps", 1)) == 0
    flags = f"--checkpoint {tmp_path / 'run'} --data {exam} --probes off --samples 2 --max_new_tokens 10 --batch_size 4"
    assert eval_gsm8k.main(flags.split()) == 0
    own = runs.read_jsonl(tmp_path / "run" / "grpo_metrics.jsonl")[-1]
    result = json.loads((tmp_path / "run" / "gsm8k_results.json").read_text())
    assert own["accuracy"] == result["accuracy"] and own["n"] == 12
    for key in ("pass_at_1", "pass_at_2", "majority_at_2", "entropy"):
        assert own[key] == result["samples"][key], key
    samples = runs.read_jsonl(tmp_path / "run" / "gsm8k_samples.jsonl")
    assert len(samples) == 24 and len({sample["id"] for sample in samples}) == 24
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    for name, says in ((empty, "has no items: name another --exam_data"), ("gone*.jsonl", "--exam_data gone")):
        with pytest.raises(ValueError, match=says):
            grpo.main(flags_of(init, pool, tmp_path / "no", "--exam_data", name))
    mixed = write_jsonl(tmp_path / "mixed.jsonl", [*items(3, start=500), *items(1, start=120)])
    with pytest.raises(ValueError, match="share 1 questions.*name other problems"):
        grpo.main(flags_of(init, pool, tmp_path / "no", "--exam_data", mixed))
    assert not (tmp_path / "no").exists()


# ----------------------------------------------------------------------------------------------------------------------
# bad input: one sentence, and nothing is left


def refused(init, pool, tmp_path, says, *flags):
    with pytest.raises(ValueError, match=says):
        grpo.main(flags_of(init, pool, tmp_path / "no", *flags))
    assert not (tmp_path / "no").exists()


def test_model_that_does_not_stop_is_refused(pool, tmp_path):
    """A model that never learned <|endoftext|>: a sentence that names SFT, before a folder is made."""
    config = GPTConfig(block_size=48, n_layer=1, n_head=2, n_embd=16, padded_vocab_size=50432)
    GPT(config, seed=0).save(tmp_path / "raw")
    refused(tmp_path / "raw", pool, tmp_path, r"ends 0 of \d+ answers within 10 tokens.*fine-tune it first \(sft.py\)")


def test_what_tells_sources_apart():
    """A name on the hub as well as a file's bytes; never the made-up problems, of which any number are one source."""
    hub = {"name": "openai/gsm8k", "config": "main", "split": "train", "revision": "abc"}
    file = {"name": "train.jsonl", "bytes": 3, "sha256": "f" * 64}
    made_up = {"name": "synthetic", "split": "train", "items": 9}
    assert grpo.identities({"gsm8k": [hub, file], "tulu": [made_up]}) == {"openai/gsm8k", "f" * 64}


def test_other_vocabulary_is_refused(pool, tmp_path):
    GPT(GPTConfig(block_size=48, n_layer=1, n_head=2, n_embd=16, vocab_size=300), seed=0).save(tmp_path / "small")
    refused(tmp_path / "small", pool, tmp_path, "has 300 tokens and GPT-2's tokenizer needs 50,257")
    GPT(GPTConfig(block_size=48, n_layer=1, n_head=2, n_embd=16, vocab_size=60_000), seed=0).save(tmp_path / "large")
    refused(tmp_path / "large", pool, tmp_path, "vocabulary has 60000 ids")


def test_problems_without_a_number_are_refused(init, tmp_path):
    """Of problems whose answers are words none is left; among others they are counted and left out."""
    words = [{"question": f"Who {i}?", "answer": "#### nobody"} for i in range(5)]
    none = write_jsonl(tmp_path / "words.jsonl", words)
    refused(init, none, tmp_path, "no problem whose answer is a number.*5 without_a_number")
    some = write_jsonl(tmp_path / "some.jsonl", [*words, *items(20)])
    assert grpo.main(flags_of(init, some, tmp_path / "run", "--max_train_steps", 1, "--eval_every", 0)) == 0
    counts = json.loads((tmp_path / "run" / "config.json").read_text())["data"]["counts"]["gsm8k"]
    assert counts["read"] == 25 and counts["without_a_number"] == 5


def test_nan_reward_is_refused(init, pool, tmp_path, monkeypatch):
    """Weights that a reward of NaN changes: none; the run ends with a sentence that names the completion."""
    monkeypatch.setitem(rewards.REWARDS, "exact", lambda attempt: math.nan)
    with pytest.raises(ValueError, match="--reward exact gave nan for 0/1/0/.*repair the reward; no weight was"):
        grpo.main(flags_of(init, pool, tmp_path / "run", "--eval_every", 0))
    assert not runs.list_checkpoints(tmp_path / "run")


@pytest.mark.parametrize("flags, says", [
    (("--group_size", "1"), "give at least 2"), (("--temperature", "0"), "give a number above 0"),
    (("--clip", "0"), "give a number above 0"), (("--kl_coef", "-1"), "give 0 or more"),
    (("--reward", "best"), "choose one of exact, shaped, random, zero"),
    (("--val_fraction", "2"), "a share from 0 to 1"), (("--lr", "1"), "did you mean --learning_rate"),
    (("--problems_per_step", "0"), "at least 1"),
    (("--val_fraction", "0"), "holds out no problem for the exam")])
def test_wrong_flags_are_one_sentence(init, pool, tmp_path, capsys, flags, says):
    with pytest.raises(SystemExit) as end:
        grpo.main(flags_of(init, pool, tmp_path / "no", *flags))
    assert end.value.code == 2 and says in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_no_room_and_memory_are_refused(init, pool, tmp_path):
    """Prompts that leave no room for a completion, and a model that writes while it reads: refused in a sentence."""
    refused(init, pool, tmp_path, "40 too_long.*lower --max_new_tokens", "--max_new_tokens", 47)
    refused(init, pool, tmp_path, "holds out 40 of 40 problems", "--val_fraction", 1)


def test_a_missing_init_says_what_to_give(init, pool, run, tmp_path):
    """--init that does not exist: of a new run it is mistyped, --resume auto or not; of a resumed one it is gone, or
    another than the one that the run began from."""
    for flags in ((), ("--resume", "auto")):
        with pytest.raises(ValueError, match="--init .*nowhere is not a folder: name a run's"):
            grpo.main(flags_of(tmp_path / "nowhere", pool, tmp_path / "no", *flags))
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (out / "summary.json").unlink()
    resume = ["--out_dir", str(out), "--resume", "auto"]
    with pytest.raises(ValueError, match=f"nowhere does not exist, and this run began from {init}: leave --init out"):
        grpo.main([*resume, "--init", str(tmp_path / "nowhere")])
    config = out / "config.json"
    config.write_text(config.read_text().replace(json.dumps(str(init)), json.dumps(str(tmp_path / "moved"))))
    with pytest.raises(ValueError, match="moved, the reference of this run, is gone: restore it"):
        grpo.main(resume)


def test_no_compiler_is_a_sentence(init, pool, tmp_path, monkeypatch):
    """--compile on, on a CPU without a C++ compiler: refused as by the other trainers, before a folder is made."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    refused(init, pool, tmp_path, "--compile on needs a compiler", "--compile", "on")


@pytest.mark.skipif(not (SHARED / "gsm8k").is_dir(), reason="no ../shared/data/gsm8k here")
def test_gsm8k_test_split_is_refused(init, tmp_path):
    """Test questions of GSM8K that are rewarded: 0, by name, by bytes and by single questions, as in sft.py."""
    test = SHARED / "gsm8k" / "test.jsonl"
    shutil.copy(test, tmp_path / "innocent.jsonl")
    row = json.loads(test.read_text().splitlines()[5])
    mixed = write_jsonl(tmp_path / "mixed.jsonl", [*items(5), row])
    refused(init, test, tmp_path, "named as a test split")
    refused(init, tmp_path / "innocent.jsonl", tmp_path, "is GSM8K's test file")
    refused(init, mixed, tmp_path, "line 6 holds a question of GSM8K's test split")


def test_prompts_are_those_of_the_exam():
    """Tokens of a problem's prompt that differ from eval_gsm8k's: none."""
    problem = rollouts.make_problem("How many?", "It is 6*9=<<6*9=54>>54.\n#### 54 apples", True)
    assert get_tokenizer().decode_generated(problem["prompt"]) == "<|endoftext|>User: How many?\nAssistant:"
    assert problem["gold"] == 54
