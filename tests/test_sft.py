"""sft.py and conversations.py on tiny models: format and mask, packing, order, resume, records and refusals."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import ENV, REPO, exact, exposures, losses, records, weights

import compare_runs
import inject_mul
import sft
from lab import ab_gate, conversations, decontaminate, disk, inference, runs, synthetic
from lab.tokenizer import BOS_ID, FIRST_MUL_ID, get_tokenizer
from model import GPT, GPTConfig

SHARED = REPO.parent / "shared" / "data"
EOS = "<|endoftext|>"
needs_gsm8k = pytest.mark.skipif(not (SHARED / "gsm8k").is_dir(), reason="no ../shared/data/gsm8k here")


def args_of(*flags, **values):
    args = sft.parse_args(["--stage", "tulu", "--init", "x", *map(str, flags)])
    for name, value in {"seq_len": 64, **values}.items():
        setattr(args, name, value)
    return args


def chat(*turns, **extra):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)], **extra}


def write_jsonl(path, records):
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def tokenized(turns, seq_len=10**6, bos=True, injector=None, strip_notes=False):
    """(tokens, trained, bytes, counts) of one conversation."""
    counts = Counter()
    [row] = conversations.tokenize([turns], seq_len=seq_len, bos=bos, injector=injector, strip_notes=strip_notes,
                                   counts=counts)
    return *row, counts


def as_data(rows):
    """What load returns, as far as batches need it, from rows of `tokenize`."""
    lengths = np.array([len(tokens) for tokens, *_ in rows])
    return {"tokens": np.concatenate([r[0] for r in rows]), "trained": np.concatenate([r[1] for r in rows]),
            "lengths": lengths, "offsets": np.concatenate([[0], np.cumsum(lengths)])}


def shown(row):
    return conversations.show(conversations.make_batch(as_data([row]), [[0]]))


# ----------------------------------------------------------------------------------------------------------
# format and mask

encode = lambda text: get_tokenizer().encode(text)


def test_single_turn_is_exactly_what_evaluation_prompts_with():
    """Tokens before the answer: BOS + encode(render_prompt), or the model is examined on a border it never saw."""
    from lab.answers import render_prompt

    tokens, trained, size, _ = tokenized([("How many?", "They have 54.\n#### 54")])
    prompt, answer = [BOS_ID, *encode(render_prompt("How many?"))], encode(" They have 54.\n#### 54")
    assert tokens.tolist() == [*prompt, *answer, BOS_ID]
    assert trained.tolist() == [False] * len(prompt) + [True] * (len(answer) + 1)
    assert size == len(" They have 54.\n#### 54")
    without = tokenized([("How many?", "They have 54.\n#### 54")], bos=False)
    assert without[0].tolist() == tokens.tolist()[1:] and not without[1][0]


def test_mask_golden_multi_turn():
    """Share of trained tokens that are an answer's or its EOS: must be 1, in every turn; and none is missing."""
    row = tokenized([("Be brief.\n\nHi", "Hello."), ("6 * 9?", "54")])
    assert shown(row) == (f"{EOS}User: Be brief.\n\nHi\nAssistant:[[ Hello.{EOS}]]"
                          f"User: 6 * 9?\nAssistant:[[ 54{EOS}]]")
    turns = conversations.exchanges("tulu", {"messages": [{"role": "system", "content": " Be brief.\n"},
                                                          *chat("Hi ", "\nHello. ", "6 * 9?", "54")["messages"]]})
    assert turns == [("Be brief.\n\nHi", "Hello."), ("6 * 9?", "54")]


def test_eos_in_a_text_is_text():
    """Ids 50256 in a conversation whose texts spell <|endoftext|>: only ours, else the mask would start in a prompt."""
    tokens, trained, *_ = tokenized([(f"Say {EOS} now", f"{EOS} User: x")])
    assert (tokens == BOS_ID).sum() == 2 and tokens[0] == tokens[-1] == BOS_ID


def test_truncation_at_every_length():
    """Tokens and mask for every seq_len against a plain cut: kept iff a trained token stays as a target."""
    turns = [("One two three?", "Four five."), ("Six?", "Seven eight nine.")]
    whole, mask, _, _ = tokenized(turns)
    answer_bytes = get_tokenizer().token_byte_lengths()[whole].astype(int) * mask
    for seq_len in range(1, len(whole) + 1):
        tokens, trained, size, counts = tokenized(turns, seq_len=seq_len)
        keep = seq_len + 1 if mask[: seq_len + 1].any() else 0
        assert tokens.tolist() == whole[:keep].tolist() and trained.tolist() == mask[:keep].tolist()
        assert size == answer_bytes[:keep].sum()
        cut = len(whole) > seq_len + 1
        assert counts["truncated"] == (cut and keep > 0) and counts["dropped_too_long"] == (cut and keep == 0)
        assert counts["tokens_cut"] == max(0, len(whole) - keep) and counts["trained_tokens"] == mask[:keep].sum()
        if keep:
            batch = conversations.make_batch(as_data([(tokens, trained, 0)]), [[0]])
            assert len(batch["where"]) >= 1


def test_empty_answer_trains_its_eos_alone():
    """Trained tokens of an answer without text: 1, the EOS."""
    tokens, trained, size, counts = tokenized([("Hi", ""), ("Hm?", "So.")])
    assert shown((tokens, trained, size)) == f"{EOS}User: Hi\nAssistant:[[{EOS}]]User: Hm?\nAssistant:[[ So.{EOS}]]"
    assert counts["empty_answers"] == 1


GSM = "He has 6 * 9 = <<6*9=54>>54 and 12/4 = $<<12/4=3>>3.\nSo 5 bags * 7 = <<5*7=35>>35, 3*4, 6*9=55.\n#### 54"


def test_mul_tokens_touch_products_of_the_answer_only():
    """What differs between the conditions: the products, one token each; questions and everything else are equal."""
    weak = inject_mul.MulExpressionInjector("weak")
    plain = tokenized([("What is 6*9?", GSM)], strip_notes=True)
    mul = tokenized([("What is 6*9?", GSM)], strip_notes=True, injector=weak)
    assert shown(plain) == (f"{EOS}User: What is 6*9?\nAssistant:[[ He has 6 * 9 = 54 and 12/4 = $3.\n"
                            f"So 5 bags * 7 = 35, 3*4, 6*9=55.\n#### 54{EOS}]]")
    assert shown(mul) == (f"{EOS}User: What is 6*9?\nAssistant:[[ He has <MUL_6_9_54> and 12/4 = $3.\n"
                          f"So 5 bags * 7 = <MUL_5_7_35>, <MUL_3_4_12>, 6*9=55.\n#### 54{EOS}]]")
    assert mul[3]["mul_tokens"] == 3 and (mul[0] >= FIRST_MUL_ID).sum() == 3 and plain[3]["mul_tokens"] == 0
    assert plain[2] == mul[2] == len(conversations.ANNOTATION.sub("", " " + GSM))  # bytes that bits/byte divides by
    literal = tokenized([("q", "say <MUL_6_9_54>")], injector=weak)
    assert literal[3]["mul_tokens"] == 0 and (literal[0] < FIRST_MUL_ID).all()
    chat_text = tokenized([("q", "a <<b>> c")])  # a note is a note only in GSM8K's own answers
    assert "a <<b>> c" in shown(chat_text)


# ----------------------------------------------------------------------------------------------------------
# packing


def random_rows(rng, n, longest):
    rows = []
    for _ in range(n):
        tokens = rng.integers(0, 50256, rng.integers(2, longest + 1)).astype(np.uint16)
        trained = rng.random(len(tokens)) < 0.4
        trained[0], trained[rng.integers(1, len(tokens))] = False, True
        rows.append((tokens, trained, 0))
    return rows


def test_rows_hold_every_conversation_once_and_nothing_else():
    """Conversations read back from packed rows, against what went in, 200 random steps: equal, with their targets."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        width = int(rng.integers(1, 40))
        rows = random_rows(rng, int(rng.integers(1, 12)), width + 1)
        data = as_data(rows)
        for packing in (True, False):
            packed = conversations.pack(data["lengths"].tolist(), width, packing)
            assert sorted(i for row in packed for i in row) == list(range(len(rows)))
            batch = conversations.make_batch(data, packed, width if packing else 0)
            assert batch["x"].shape[1] <= width
            found = {}
            for r, row in enumerate(packed):
                assert not packing or sum(len(rows[i][0]) - 1 for i in row) <= width
                assert len(row) == 1 or packing
                for s, i in enumerate(row):
                    at = batch["segments"][r] == s
                    tokens, trained, _ = rows[i]
                    assert batch["x"][r][at].tolist() == tokens[:-1].tolist()
                    target = np.where(trained, tokens.astype(int), -100)[1:]
                    assert batch["y"][r][at].tolist() == target.tolist()
                    assert batch["positions"][r][at].tolist() == list(range(len(tokens) - 1))
                    found[i] = int((target != -100).sum())
                assert (batch["y"][r][batch["segments"][r] == -1] == -100).all()  # nothing of the padding is trained
                assert (batch["y"][r] != -100).any()
            assert batch["where"].tolist() == torch.nonzero(batch["y"].flatten() != -100).flatten().tolist()
            assert Counter(batch["owner"].tolist()) == {i: n for i, n in found.items() if n}


def test_first_fit_leaves_few_holes():
    """Positions that are padding when 500 conversations share rows of 256: below 3 %."""
    lengths = np.random.default_rng(1).integers(20, 200, 500).tolist()
    rows = conversations.pack(lengths, 256, True)
    assert sum(n - 1 for n in lengths) / (256 * len(rows)) > 0.97


@pytest.mark.parametrize("shape", [{"arch": "gpt2"}, {"arch": "speedrun", "attn_gate": "headwise"},
                                   {"arch": "gpt2", "attn_gate": "elementwise", "gate_pos": "value"}])
def test_no_position_sees_another_conversation(shape):
    """Hidden states of a conversation when its neighbours in the row are changed: bit for bit the same; and the same to
    1e-5 as when it is alone in its row, without a mask."""
    model = GPT(GPTConfig(block_size=48, n_layer=2, n_head=2, n_embd=16, **shape), seed=1)
    with torch.no_grad():
        for p in model.parameters():  # zero-initialised projections would hide a leak
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    rng = np.random.default_rng(3)
    rows = [(rng.integers(0, 90, n), np.ones(n, bool), 0) for n in (13, 17, 9, 8)]
    data = as_data(rows)
    batch = conversations.make_batch(data, [[0, 1, 2], [3]], 40)
    states = lambda b: sft.hidden_states(model, b["x"], b["positions"], b["segments"])
    with torch.no_grad():
        before = states(batch)
        for i in range(3):
            changed = {k: v.clone() for k, v in batch.items()}
            mine = batch["segments"][0] == i
            changed["x"][0][mine] = (changed["x"][0][mine] + 31) % 90
            after = states(changed)
            assert torch.equal(after[0][~mine], before[0][~mine]) and torch.equal(after[1], before[1])
            assert not torch.isclose(after[0][mine], before[0][mine]).all(-1).any()
            alone = conversations.make_batch(data, [[i]])
            solo = sft.hidden_states(model, alone["x"], alone["positions"], None)[0]
            assert (solo - before[0][mine]).abs().max() < 1e-5


# ----------------------------------------------------------------------------------------------------------
# runs


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A random model with positions for 64 tokens, as GPT.save leaves it."""
    folder = tmp_path_factory.mktemp("base") / "model"
    GPT(GPTConfig(block_size=64, n_layer=2, n_head=2, n_embd=16, padded_vocab_size=50432), seed=0).save(folder)
    return folder


@pytest.fixture(scope="session")
def talk(tmp_path_factory):
    """60 conversations of 1 to 3 exchanges; three are cut at 64 tokens and one is dropped."""
    rng, folder = np.random.default_rng(5), tmp_path_factory.mktemp("talk")
    words = "apple pear six nine 6*9=54 box red blue".split()
    text = lambda n: " ".join(rng.choice(words, n))
    records = [chat(*(text(rng.integers(1, 8)) for _ in range(2 * rng.integers(1, 3)))) for _ in range(56)]
    records += [chat("go", text(90)), chat(text(5), text(70)), chat("a", "b", text(80), "c"), chat(text(120), "no")]
    return write_jsonl(folder / "talk.jsonl.gz", records)


def flags_of(base, talk, out, *flags):
    return ["--stage", "tulu", "--init", str(base), "--data", str(talk), "--out_dir", str(out), "--val_fraction", "0.2",
            "--total_batch_conversations", "12", "--learning_rate", "1e-2", "--max_train_steps", "8",
            "--eval_every", "4", "--micro_batch_size", "2", *map(str, flags)]


@pytest.fixture(autouse=True)
def handlers():
    """A run takes over SIGTERM and ctrl-C; give them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def run(base, talk, tmp_path_factory):
    """The uninterrupted run that others are compared with: 8 steps, 2.1 epochs."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert sft.main(flags_of(base, talk, out, "--save_every", 3, "--keep_last", 0)) == 0
    return out


def test_loss_is_the_mean_over_all_trained_tokens_of_the_step(base, talk, run):
    """Loss of step 1 and the val loss at step 0 from full logits, one conversation at a time: to 1e-5."""
    data = conversations.load(args_of("--data", talk, "--eval_every", 4, "--val_fraction", 0.2))
    model = GPT.load(base)

    def nll(numbers):
        total, count = 0.0, 0
        for i in numbers:
            tokens = torch.from_numpy(data["tokens"][data["offsets"][i] : data["offsets"][i + 1]].astype(np.int64))
            trained = torch.from_numpy(data["trained"][data["offsets"][i] : data["offsets"][i + 1]])[1:]
            losses = torch.nn.functional.cross_entropy(model(tokens[None, :-1])[0], tokens[1:], reduction="none")
            total, count = total + losses[trained].sum().item(), count + int(trained.sum())
        return total / count

    with torch.no_grad():
        plan = conversations.plan_order(data, 96, 0, (0, 1))
        assert abs(nll(plan[:12]) - losses(run)[0]) < 1e-5
        held_out = np.flatnonzero(data["held_out"] & (data["lengths"] > 0))
        assert abs(nll(held_out) - records(run, "val")[0]["val_loss"]) < 1e-5
    assert records(run, "val")[0]["val_tokens"] == data["n_trained"][held_out].sum()
    stored = np.load(run / "val_documents_000008.npz")
    assert abs(stored["stream_nats"].sum() / stored["stream_tokens"].sum() - records(run, "val")[-1]["val_loss"]) < 1e-9


def test_loss_is_independent_of_packing_and_micro_batch(base, talk, run, tmp_path):
    """Losses of 8 steps, gradient norms and val losses, without packing and in micro-batches of 1 and 5: to 1e-5 at the
    first step and 1e-4 after 7 updates; checksums of every step equal."""
    variants = {"single": ("--packing", "off"), "one": ("--micro_batch_size", 1, "--eval_batch_size", 7),
                "five": ("--micro_batch_size", 5, "--packing", "off")}
    for name, flags in variants.items():
        assert sft.main(flags_of(base, talk, tmp_path / name, "--save_every", 0, *flags)) == 0
    for name in variants:
        check_same(tmp_path / name, run)


def test_eval_every_does_not_change_what_is_trained_on(talk):
    held = [conversations.load(args_of("--data", talk, "--eval_every", n, "--val_fraction", 0.2))["held_out"]
            for n in (0, 4)]
    assert held[0].any() and (held[0] == held[1]).all()


def test_two_ranks_learn_the_same(base, talk, tmp_path):
    """Losses, gradient norms, val losses of 8 steps on 2 ranks, against 1: as above. Steps of 2 conversations, so that
    some fill one row only and leave a rank without any."""
    flags = ("--save_every", 0, "--total_batch_conversations", 2, "--eval_batch_size", 3)
    assert sft.main(flags_of(base, talk, tmp_path / "one", *flags)) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(REPO / "sft.py")]
    done = subprocess.run([*launch, *flags_of(base, talk, tmp_path / "two", *flags)], capture_output=True, text=True,
                          env=ENV, timeout=300, cwd=REPO)
    assert done.returncode == 0, done.stdout + done.stderr
    check_same(tmp_path / "two", tmp_path / "one")
    shares = [exposures(tmp_path / "two", rank) for rank in (0, 1)]
    assert {len(r["conversations"]) for r in shares[1]} == {0, 1}
    for a, b, both in zip(*shares, exposures(tmp_path / "one"), strict=True):
        assert sorted(a["conversations"] + b["conversations"]) == both["conversations"]


def check_same(out, run):
    difference = np.abs(losses(out) - losses(run))
    assert difference[0] < 1e-5 and difference.max() < 1e-4
    for key in ("grad_norm_l2_preclip", "trained_tokens", "tokens_seen_global", "flops_total"):
        assert abs(records(out)[0][key] - records(run)[0][key]) < 1e-5 * records(run)[0][key]
    for i in (0, -1):
        assert abs(records(out, "val")[i]["val_loss"] - records(run, "val")[i]["val_loss"]) < (1e-5, 1e-4)[-i]
    assert [r["checksum"] for r in exposures(out)] == [r["checksum"] for r in exposures(run)]


def test_resume_equals_uninterrupted(base, talk, run, tmp_path):
    """Every record but times, and the final weights, of a run resumed from step 3 and from a SIGTERM: bit for bit."""
    out = tmp_path / "killed"
    shutil.copytree(run, out)
    (out / "summary.json").unlink()
    for path in runs.list_checkpoints(out)[1:]:
        shutil.rmtree(path)
    assert sft.main(["--out_dir", str(out), "--resume", "auto"]) == 0
    assert exact(out) == exact(run) and weights(out) == weights(run)
    assert [{**r, "rows": 0} for r in exposures(out)] == [{**r, "rows": 0} for r in exposures(run)]

    out = tmp_path / "stopped"
    resume = flags_of(base, talk, out, "--resume", "auto", "--save_every", 0)

    def stop():
        while not (out / "scalars.jsonl").exists() or len(records(out)) < 3:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert sft.main(resume) == 0
    thread.join()
    assert not (out / "summary.json").exists() and 3 <= len(records(out)) < 8
    moved = tmp_path / "moved"  # a run with a checkpoint of its own needs --init no more
    shutil.copytree(base, moved)
    assert sft.main(resume) == 0
    assert exact(out) == exact(run) and weights(out) == weights(run)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_while_saving(base, talk, tmp_path, monkeypatch):
    """A save that fails half way: a sentence without torch's own words, nothing half written, the one before stays."""
    real = torch.save

    def full(value, path):
        if "step_000004" in str(path):
            path.symlink_to("/dev/full")
        real(value, path)

    monkeypatch.setattr(torch, "save", full)
    flags = flags_of(base, talk, tmp_path / "full", "--save_every", 2)
    with pytest.raises(ValueError, match=r"step_000004 cannot be saved \(the disk did not take all of it\): free "
                                         "space, then --resume auto.$"):
        sft.main(flags)
    assert [path.name for path in (tmp_path / "full" / "ckpt").iterdir()] == ["step_000002"]
    monkeypatch.undo()
    assert sft.main([*flags, "--resume", "auto"]) == 0


def test_resume_needs_no_init_and_refuses_changes(base, talk, run, tmp_path):
    """A resumed run whose --init is gone goes on; other data, another seed and other weights are refused."""
    out, init = tmp_path / "run", tmp_path / "init"
    shutil.copytree(base, init)
    stop_early = flags_of(init, talk, out, "--save_every", 4)
    assert sft.main(stop_early) == 0
    (out / "summary.json").unlink()
    shutil.rmtree(runs.list_checkpoints(out)[-1])
    shutil.rmtree(init)
    with pytest.raises(ValueError, match="would change the run .*seed"):
        sft.main(["--out_dir", str(out), "--resume", "auto", "--seed", "3"])
    other = write_jsonl(tmp_path / "other.jsonl", [chat("a", f"b {i}") for i in range(40)])
    with pytest.raises(ValueError, match="fingerprint of the data"):
        sft.main(["--out_dir", str(out), "--resume", "auto", "--data", str(other)])
    assert sft.main(["--out_dir", str(out), "--resume", "auto"]) == 0
    assert exact(out) == exact(run) and weights(out) == weights(run)
    for path in runs.list_checkpoints(out):
        shutil.rmtree(path)
    (out / "summary.json").unlink()
    GPT(GPTConfig(block_size=64, n_layer=2, n_head=2, n_embd=16, padded_vocab_size=50432), seed=1).save(init)
    with pytest.raises(ValueError, match="weights of --init"):
        sft.main(["--out_dir", str(out), "--resume", "auto"])


def test_a_run_folder_tells_everything(base, talk, run, tmp_path, capsys):
    """Files and fields of a finished run; a checkpoint that evaluations take; --config repeats it."""
    for name in ("config.json", "code/sft.py", "log.txt", "scalars.jsonl", "summary.json", "step_metrics.json",
                 "val_documents_000008.npz", "exposures/exposures_rank0000.jsonl"):
        assert (run / name).exists(), name
    config, summary = (json.loads((run / name).read_text()) for name in ("config.json", "summary.json"))
    assert config["init"]["model_sha256"] == disk.sha256_file(base / "model.safetensors")
    assert config["flags"]["max_train_steps"] == 8 and config["flags"]["seq_len"] == 64
    counts = config["data"]["counts"]["tulu"]
    assert (counts["read"], counts["truncated"], counts["dropped_too_long"]) == (60, 3, 1)
    assert counts["trained_tokens"] > 0 and config["data"]["sources"]["tulu"][0]["sha256"]
    wanted = ("step timestamp lr train_loss_opt_step_mean grad_norm_l2_preclip param_norm_l2 tokens_seen_global "
              "tokens_per_sec mfu peak_mem_bytes step_seconds flops_total epoch trained_tokens").split()
    assert [r["step"] for r in records(run)] == list(range(1, 9)) and set(wanted) <= set(records(run)[0])
    assert [r["step"] for r in records(run, "val")] == [0, 4, 8]
    assert summary["final_val_loss"] < records(run, "val")[0]["val_loss"] and summary["steps"] == 8
    folder, step, _ = runs.resolve_checkpoint(run)
    assert step == 8 and GPT.load(folder).config.block_size == 64
    printed = (run / "log.txt").read_text()
    data = conversations.load(args_of("--data", talk, "--eval_every", 4, "--val_fraction", 0.2))
    first = int(conversations.plan_order(data, 1, 0, (0, 1))[0])
    span = slice(data["offsets"][first], data["offsets"][first + 1])
    text = get_tokenizer().decode(data["tokens"][span])
    assert text in printed.replace("[[", "").replace("]]", "") and f"{EOS}]]" in printed
    assert sft.main(["--config", str(run / "config.json"), "--out_dir", str(tmp_path / "again")]) == 0
    assert exact(tmp_path / "again") == exact(run) and weights(tmp_path / "again") == weights(run)
    capsys.readouterr()
    assert sft.main(["--out_dir", str(run), "--resume", "auto"]) == 0
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is finished.*epochs: 3.0 -> 9.0.*--init .*, another --out_dir and "):
        sft.main(["--out_dir", str(run), "--resume", "auto", "--epochs", "9"])
    assert sft.main(flags_of(base, talk, tmp_path / "dry", "--dry_run")) == 0
    measured, memory = capsys.readouterr().out.splitlines()[-2:]
    assert measured.startswith("measured: about ") and memory.startswith("memory about ")
    assert not (tmp_path / "dry").exists()
    with pytest.raises(ValueError, match="already exists"):
        sft.main(flags_of(base, talk, run))


def test_samples_show_held_out_answers_and_change_nothing(base, talk, run, tmp_path):
    """Losses and weights with printed samples: bit for bit the same; the prompts end where an answer begins."""
    assert sft.main(flags_of(base, talk, tmp_path / "s", "--save_every", 0, "--sample_every", 4,
                             "--sample_tokens", 3)) == 0
    assert exact(tmp_path / "s") == exact(run) and weights(tmp_path / "s") == weights(run)
    samples = [line for line in (tmp_path / "s" / "log.txt").read_text().splitlines() if "| sample" in line]
    assert len(samples) == 4 and all("Assistant:' -> " in line for line in samples)


def test_epochs_give_the_steps(base, talk, tmp_path):
    """Steps for 2 epochs of n conversations in steps of 12: ceil(2 n / 12); --config takes them from --epochs again."""
    out = tmp_path / "run"
    flags = [*flags_of(base, talk, out, "--eval_every", 0, "--val_fraction", 0, "--epochs", 2)]
    flags[flags.index("--max_train_steps") + 1] = "0"
    assert sft.main(flags) == 0
    assert len(records(out)) == -(-2 * 59 // 12)  # 60 less the dropped one
    again = tmp_path / "again"
    assert sft.main(["--config", str(out / "config.json"), "--out_dir", str(again), "--epochs", "0.5"]) == 0
    assert len(records(again)) == -(-59 // 24)
    assert exposures(again)[0]["checksum"] == exposures(out)[0]["checksum"]


# ----------------------------------------------------------------------------------------------------------
# what is read, in which order


def gsm8k_file(tmp_path, n=300):
    return write_jsonl(tmp_path / "train.jsonl", synthetic.gsm8k_items(n))


def test_order_visits_everything_once_per_epoch_and_is_the_same_in_both_conditions(tmp_path):
    """Times a conversation is read in three epochs: 3 each, and in the same order whatever the tokens."""
    path = gsm8k_file(tmp_path)
    arms = [conversations.load(args_of("--stage", "gsm8k", "--data", path, "--condition", condition, "--seq_len", 60))
            for condition in ("baseline", "mul_tokens")]
    usable = np.flatnonzero((arms[0]["lengths"] > 0) & ~arms[0]["held_out"])
    plans = [conversations.plan_order(arm, 3 * len(usable), 0, (0, 1)) for arm in arms]
    assert np.array_equal(*plans)
    for epoch in range(3):
        part = plans[0][epoch * len(usable) : (epoch + 1) * len(usable)]
        assert np.array_equal(np.sort(part), usable)
    assert arms[0]["record"]["counts"]["gsm8k"]["mul_tokens"] == 0
    assert arms[1]["record"]["counts"]["gsm8k"]["mul_tokens"] > 100
    assert arms[0]["fingerprint"] != arms[1]["fingerprint"]
    assert arms[0]["fingerprint_texts"] == arms[1]["fingerprint_texts"]
    assert not np.array_equal(conversations.plan_order(arms[0], 50, 1, (0, 1)), plans[0][:50])
    assert np.array_equal(conversations.plan_order(arms[0], 50, 0, (0, 1)), plans[0][:50])


def test_a_dropped_conversation_leaves_the_order_of_the_others(tmp_path):
    """Order under a seq_len that drops some, against the full order without those: equal."""
    path = gsm8k_file(tmp_path)
    load = lambda seq_len: conversations.load(args_of("--stage", "gsm8k", "--data", path, seq_len=seq_len))
    full, short = load(64), load(26)
    left = short["lengths"] > 0
    assert 10 < (~left).sum() < 250
    order = conversations.plan_order(full, int((~full["held_out"]).sum()), 0, (0, 1))
    order = order[left[order]]
    assert np.array_equal(conversations.plan_order(short, len(order), 0, (0, 1)), order)


def test_held_out_conversations_stay_held_out(tmp_path):
    """Held-out hashes under another order, condition, file format and with more data: the same."""
    items = synthetic.gsm8k_items(300)
    held = lambda data: {h.tobytes() for h in data["hash"][data["held_out"]]}
    load = lambda path, *flags: conversations.load(
        args_of("--stage", "gsm8k", "--data", path, "--val_fraction", "0.1", *flags))
    first = held(load(write_jsonl(tmp_path / "a.jsonl", items)))
    assert 15 <= len(first) <= 45
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(items[::-1]), tmp_path / "b.parquet")
    assert held(load(tmp_path / "b.parquet", "--condition", "mul_tokens")) == first
    more = write_jsonl(tmp_path / "c.jsonl.gz", synthetic.gsm8k_items(400))
    assert held(load(more)) >= first
    assert held(load(tmp_path / "a.jsonl", "--val_fraction", "0.2")) > first
    assert held(load(tmp_path / "a.jsonl", "--eval_every", "0")) == first  # how often a run is scored changes no data
    assert not held(load(tmp_path / "a.jsonl", "--eval_every", "0", "--val_fraction", "0"))


def test_max_examples_is_a_sample_that_ignores_order_and_the_val_split(tmp_path):
    """Chosen texts when the file is reversed: the same, in the file's order; their held-out share stays near 10 %."""
    items = synthetic.gsm8k_items(400)
    load = lambda rows, *flags: conversations.load(args_of(
        "--stage", "gsm8k", "--data", write_jsonl(tmp_path / "x.jsonl", rows), "--val_fraction", "0.1", *flags))
    one, two = load(items, "--max_examples", 100), load(items[::-1], "--max_examples", 100)
    assert one["hash"].tolist() == two["hash"].tolist()[::-1] and len(one["hash"]) == 100
    assert 2 <= one["held_out"].sum() <= 22
    assert len(load(items, "--max_read", 50)["hash"]) == 50
    assert load(items, "--max_read", 50)["hash"].tolist() == load(items)["hash"].tolist()[:50]


@pytest.mark.parametrize("known, kept", [(0, 0), (0.0, 0), ("0", 0), (6, 1), ("#### 6", 1), ("", 1), (None, 1)])
def test_known_answer_of_a_program(known, kept):
    """Programs of the answer 6 that are kept beside a known answer: a known 0 is one, too."""
    record = {"question": "q", "code": "def f():\n    return 2 * 3\n", "answer": known}
    assert len(conversations._worked(conversations.exchanges("tinygsm", record), Counter())) == kept


def test_transition_moves_from_one_source_to_the_other(tmp_path):
    """Share of tinygsm by decile of the run, mix 0.1 -> 0.9: on the line to 0.06; the same for the same seed."""
    talk = write_jsonl(tmp_path / "talk.jsonl", [chat(f"say {i}", f"{i}") for i in range(300)])
    code = "def simple_math_problem():\n    apples = {}\n    result = apples * 2\n    return result\n"
    tiny = write_jsonl(tmp_path / "tiny.jsonl",
                       [{"question": f"Twice {i}?", "code": code.format(i)} for i in range(50)])
    args = args_of("--stage", "transition", "--data", talk, "--tinygsm_data", tiny, seq_len=200)
    data = conversations.load(args)
    assert data["stages"] == ["tulu", "tinygsm"] and (data["source"] == 1).sum() == 50
    plan = conversations.plan_order(data, 5000, 0, (0.1, 0.9))
    share = (data["source"][plan] == 1).reshape(10, -1).mean(1)
    assert np.abs(share - np.linspace(0.14, 0.86, 10)).max() < 0.06
    assert np.array_equal(plan, conversations.plan_order(data, 5000, 0, (0.1, 0.9)))
    assert not np.array_equal(plan, conversations.plan_order(data, 5000, 1, (0.1, 0.9)))
    for source in (0, 1):  # each source in epochs of its own
        part, n = plan[data["source"][plan] == source], int(((data["source"] == source) & ~data["held_out"]).sum())
        assert len(set(part[:n].tolist())) == n and not data["held_out"][part].any()
    assert (data["source"][conversations.plan_order(data, 100, 0, (0, 0))] == 0).all()
    assert (data["source"][conversations.plan_order(data, 100, 0, (1, 1))] == 1).all()


# ----------------------------------------------------------------------------------------------------------
# GSM8K's test split


def test_known_gsm8k_test_hashes():
    """Number of test questions that training recognises: 1,319, none of them a synthetic problem."""
    assert len(decontaminate.gsm8k_test_blocks()[1]) == 1319
    questions = [item["question"] for item in synthetic.gsm8k_items(500)]
    assert not decontaminate.test_questions_in(questions)


DISGUISES = {
    "none": lambda q: q, "Question:": lambda q: f"Question: {q}", "Q:": lambda q: f"Q: {q}\nA:",
    "Problem:": lambda q: f"Problem: {q}", "Solve:": lambda q: f"Solve: {q}",
    "capitals": lambda q: q.upper(), "no spaces": lambda q: q.replace(" ", ""),
    "spaces": lambda q: q.replace(" ", " \n\u00a0"),
    "no commas": lambda q: q.replace(",", ""), "quotes": lambda q: q.replace("'", "’").replace('"', "“"),
    "bold": lambda q: f"**Question**\n\n{q.replace(' how ', ' **how** ')}",
    "html": lambda q: f"<p>{q.replace('. ', '.<br>')}</p>",
    "entities": lambda q: q.replace("'", "&#39;").replace('"', "&quot;"), "escaped": lambda q: q.replace(". ", ".\\n"),
    "wide": lambda q: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in q),
    "instruction": lambda q: f"You are a tutor.\n### Instruction:\nThink first. {q} Give one number.\n### Response:",
    "one letter wrong": lambda q: q[:30] + "~x" + q[31:],
}


@needs_gsm8k
def test_the_published_split_is_told_apart():
    """Of 1,319 test questions all are recognised in each of 16 disguises (of those with one wrong letter, the longer
    ones); of 7,473 train conversations none."""
    read = lambda name: [json.loads(line) for line in open(SHARED / "gsm8k" / f"{name}.jsonl")]
    questions = [record["question"] for record in read("test")]
    for name, disguise in DISGUISES.items():
        held = decontaminate.test_questions_in([disguise(question) for question in questions])
        assert len(held) >= (1300 if name == "one letter wrong" else 1319), name
    train = [f"{record['question']}\n{record['answer']}" for record in read("train")]
    assert not decontaminate.test_questions_in(train)


@needs_gsm8k
def test_no_place_in_a_conversation_hides_a_test_question(tmp_path):
    """Of test questions in the system message, the second turn, an answer, a program, or over two turns: all refused,
    from every kind of file."""
    question = json.loads(open(SHARED / "gsm8k" / "test.jsonl").readline())["question"]
    half = len(question) // 2
    system = {"messages": [{"role": "system", "content": f"Example: {question}"}, *chat("Hi", "Hello")["messages"]]}
    chats = [chat("Hi", "Hello", f"Question: {question}", "18"), chat("Hi", f"You asked: {question}"), system,
             chat(question[:half], "Go on.", question[half:], "18")]
    cases = [("tulu", record) for record in chats]
    cases += [("gsm8k", {"question": f"Q: {question}", "answer": "#### 18"}),
              ("gsm8k", {"question": "Why?", "answer": f"{question} #### 18"}),
              ("tinygsm", {"question": "Why?", "code": f'def f():\n    """{question}"""\n    return 18'}),
              ("tinygsm", {"question": f"Q: {question}", "answer": "#### 18"})]
    for number, (stage, record) in enumerate(cases):
        lines = write_jsonl(tmp_path / f"{number}.jsonl.gz", [record])
        table = tmp_path / f"{number}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), table)
        for path in (lines, table):
            with pytest.raises(ValueError, match="1 holds a question of GSM8K's test split"):
                conversations.load(args_of("--stage", stage, "--data", path, "--eval_every", 0))


@needs_gsm8k
def test_no_disguise_of_the_test_file_is_read(base, tmp_path):
    """Test questions that reach training from the file itself, a renamed copy, a parquet of it, one line among others,
    or a folder that holds both splits: 0, each refused in a sentence."""
    test = SHARED / "gsm8k" / "test.jsonl"
    rows = [json.loads(line) for line in open(test)]
    shutil.copy(test, tmp_path / "innocent.jsonl")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "innocent.parquet")
    write_jsonl(tmp_path / "mixed.jsonl.gz", [*synthetic.gsm8k_items(30), rows[700]])
    write_jsonl(tmp_path / "chat.jsonl", [chat("Hi", "Hello"), chat(rows[9]["question"], "42")])
    cases = {("gsm8k", test): "named as a test split", ("gsm8k", SHARED / "gsm8k"): "named as a test split",
             ("tulu", test): "is GSM8K's test file", ("gsm8k", tmp_path / "innocent.jsonl"): "is GSM8K's test file",
             ("gsm8k", tmp_path / "innocent.parquet"): "row 1 holds a question of GSM8K's test split",
             ("gsm8k", tmp_path / "mixed.jsonl.gz"): "line 31 holds a question of GSM8K's test split",
             ("tulu", tmp_path / "chat.jsonl"): "line 2 holds a question of GSM8K's test split"}
    for (stage, path), says in cases.items():
        with pytest.raises(ValueError, match=says):
            sft.main(["--stage", stage, "--init", str(base), "--data", str(path), "--out_dir", str(tmp_path / "run")])
        assert not (tmp_path / "run").exists()


def test_a_question_of_the_test_split_is_refused_or_dropped(tmp_path, monkeypatch):
    """The same with a stand-in for a test question: an error at its line; dropped and named under --decontaminate."""
    secret = "How many of the seven purple lanterns were lit when the twelve boats came home last night?"
    table = decontaminate.block_table([decontaminate.question_blocks(secret)])
    monkeypatch.setattr(decontaminate, "gsm8k_test_blocks", lambda: table)
    rows = [chat("Hi", f"Hello {i}") for i in range(20)]
    talk = write_jsonl(tmp_path / "talk.jsonl", [*rows, chat(secret, "5"), chat("Well: " + secret, "So 5.")])
    with pytest.raises(ValueError, match="line 21 holds a question of GSM8K's test split"):
        conversations.load(args_of("--data", talk, "--eval_every", 0))
    hidden = {"messages": [{"role": "system", "content": "Think."}, *chat(f" {secret.upper()}\n", "5")["messages"]]}
    for stage, record in (("tulu", hidden), ("gsm8k", {"question": secret, "answer": "#### 5"}),
                          ("tinygsm", {"question": secret, "code": "x"})):
        path = write_jsonl(tmp_path / f"{stage}.jsonl", [record])
        with pytest.raises(ValueError, match="line 1 holds a question of GSM8K's test split"):
            conversations.load(args_of("--stage", stage, "--data", path, "--eval_every", 0))
    bench = write_jsonl(tmp_path / "items.jsonl", [{"question": secret, "answer": "#### 5"}])
    data = conversations.load(args_of("--data", talk, "--eval_every", 0, "--decontaminate", f"gsm8k={bench}"))
    assert len(data["hash"]) == 20 and data["record"]["counts"]["tulu"]["contaminated"] == 2
    assert [hit["place"].split("line ")[1] for hit in data["record"]["contaminated"]["tulu"]] == ["21", "22"]


# ----------------------------------------------------------------------------------------------------------
# it learns, and what it refuses


def test_learns_the_format_and_to_stop(tmp_path):
    """Greedy completions of synthetic questions that end by themselves and hold `####`, after a minute of a tiny model:
    at least 80 %; near 0 when the EOS is not trained."""
    from lab.answers import render_prompt

    base = tmp_path / "base"
    GPT(GPTConfig(block_size=112, n_layer=2, n_head=2, n_embd=32, padded_vocab_size=50432), seed=0).save(base)
    assert sft.main(["--stage", "gsm8k", "--init", str(base), "--data", "synthetic:400", "--out_dir",
                     str(tmp_path / "run"), "--max_train_steps", "100", "--total_batch_conversations", "16",
                     "--learning_rate", "2e-2", "--micro_batch_size", "16", "--eval_every", "0", "--condition",
                     "mul_tokens", "--optimizer", "muon"]) == 0
    model = GPT.load(runs.list_checkpoints(tmp_path / "run")[-1])
    prompts = [[BOS_ID, *encode(render_prompt(item["question"]))]
               for item in synthetic.gsm8k_items(20, split="test")]
    done = inference.generate(model, prompts, 60, temperature=0.0, stop_ids=(BOS_ID,))
    texts = [get_tokenizer().decode(c.ids) for c in done]
    assert sum(c.stopped == "stop_id" for c in done) >= 16, texts
    assert sum("\n#### " in text for text in texts) >= 16, texts
    assert not json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"]


def compared(tmp_path, arms, flags, capsys, *more):
    """(whether compare_runs.py finds the arms comparable, its report): arms {name: flags of its two runs}."""
    for name, own in arms.items():
        for seed in (0, 1):
            out = tmp_path / f"{name}_s{seed}"
            assert sft.main([*flags, "--out_dir", str(out), "--seed", str(seed), *map(str, own)]) == 0
    capsys.readouterr()
    names = list(arms)
    folders = [[str(tmp_path / f"{name}_s{seed}") for seed in (0, 1)] for name in names]
    status = compare_runs.main(["--a", *folders[0], "--b", *folders[1], "--allow", "code_sha256", *map(str, more)])
    return status == 0, capsys.readouterr().out


def short_flags(base, data, stage="gsm8k"):
    return ["--stage", stage, "--init", str(base), "--data", str(data), "--val_fraction", "0.2", "--save_every", "0",
            "--total_batch_conversations", "12", "--learning_rate", "1e-2", "--max_train_steps", "2",
            "--eval_every", "2", "--log_every", "0"]


def facts(start=0):
    return [{"question": f"{i} boxes?", "answer": f"{i} eggs, {a} * {b} = <<{a}*{b}={a * b}>>{a * b}.\n#### {a * b}"}
            for i in range(start, start + 60) for a, b in [(2 + i % 8, 2 + i % 7)]]


def test_arms_of_other_tokens_are_judged_in_bits_per_byte(base, tmp_path, capsys):
    """Fingerprint of held-out text in both conditions: one; of tokens: two, and the verdict is in bits per byte."""
    flags = short_flags(base, write_jsonl(tmp_path / "d.jsonl", facts()))
    arms = {"plain": (), "mul": ("--condition", "mul_tokens")}
    fair, report = compared(tmp_path, arms, flags, capsys)
    assert fair and "bits" in report.splitlines()[0] + report[:1500], report[:1500]
    recorded = [json.loads((tmp_path / f"{name}_s0/config.json").read_text())["data"] for name in arms]
    assert recorded[0]["val_fingerprint_documents"] == recorded[1]["val_fingerprint_documents"]
    assert recorded[0]["val_fingerprint_tokens"] != recorded[1]["val_fingerprint_tokens"]
    for name, seed in [(name, seed) for name in arms for seed in (0, 1)]:  # as runs from before they were recorded
        path = tmp_path / f"{name}_s{seed}/config.json"
        config = json.loads(path.read_text())
        config["data"] = {k: v for k, v in config["data"].items() if not k.startswith("val_fingerprint")}
        path.write_text(json.dumps(config))
    runs_of = {name: [runs.read_run(tmp_path / f"{name}_s{seed}") for seed in (0, 1)] for name in arms}
    assert ab_gate.gate(ab_gate.members_of(runs_of), None, ["code_sha256"])["other_tokens"]


def test_arms_scored_on_other_texts_do_not_compare(base, tmp_path, capsys):
    """Arms with two data files, or cut at two lengths: no verdict; with one --val_data that both read whole: one."""
    one, other = (write_jsonl(tmp_path / f"{start}.jsonl", facts(start)) for start in (0, 500))
    flags = short_flags(base, one)
    cases = {"file": ({"f1": (), "f2": ("--data", other)}, "data"),
             "cut": ({"c1": ("--seq_len", 16), "c2": ("--seq_len", 64)}, "seq_len")}
    for arms, treatment in cases.values():
        fair, report = compared(tmp_path, arms, flags, capsys, "--treatment", treatment)
        assert not fair and "val_fingerprint_documents" in report and "one --val_data" in report
    val = write_jsonl(tmp_path / "val.jsonl", facts(900) + facts()[:3])
    arms = {"v1": ("--val_data", val), "v2": ("--data", other, "--val_data", val)}
    fair, report = compared(tmp_path, arms, flags, capsys, "--treatment", "data")
    assert fair, report
    recorded = [json.loads((tmp_path / f"{name}_s0/config.json").read_text())["data"] for name in arms]
    assert [data["conversations"] for data in recorded] == [57, 60]  # what is in val is not trained on
    assert records(tmp_path / "v1_s0", "val")[0]["val_conversations"] == 63


def test_warnings_of_an_absent_treatment(base, tmp_path):
    """A mul_tokens run whose data holds no product says so in its summary."""
    path = write_jsonl(tmp_path / "plain.jsonl", [chat("Hi", f"Hello {i}") for i in range(10)])
    assert sft.main(["--stage", "tulu", "--init", str(base), "--data", str(path), "--out_dir", str(tmp_path / "run"),
                     "--max_train_steps", "1", "--eval_every", "0", "--condition", "mul_tokens"]) == 0
    [warning] = json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"]
    assert "no multiplication token" in warning
    counts = Counter(read=10, empty_answers=3)
    [warning] = sft.find_warnings(sft.parse_args(["--stage", "tulu", "--init", "x"]), {"condition": None}, counts)
    assert warning.startswith("3 of 10 conversations have an answer without text")


def lines(*texts):
    return "\n".join(t if isinstance(t, str) else json.dumps(t) for t in texts) + "\n"


GOOD = chat("Hi", "Hello")
BAD_FILES = {  # content of a jsonl file, flags, what the sentence says
    "broken json": (lines(GOOD, '{"messages": ['), (), "line 2 is not JSON"),
    "not an object": (lines(GOOD, "[1]"), (), "line 2 is not an object"),
    "no messages": (lines({"text": "x"}), (), "line 1 has no field 'messages'"),
    "messages a string": (lines({"messages": "x"}), (), "line 1 has a field 'messages' that is str, not"),
    "two users": (lines(GOOD, {"messages": [GOOD["messages"][0]] * 2}), (),
                  "line 2 has its roles out of order: turn 2 is user"),
    "assistant first": (lines({"messages": GOOD["messages"][::-1]}), (), "turn 1 is assistant"),
    "late system": (lines({"messages": [*GOOD["messages"], {"role": "system", "content": "x"}]}), (),
                    "turn 3 is system"),
    "unknown role": (lines({"messages": [{"role": "tool", "content": "x"}]}), (), "has role 'tool' in message 0"),
    "no role": (lines({"messages": [{"content": "x"}]}), (), "has role None in message 0"),
    "content a list": (lines({"messages": [{"role": "user", "content": ["x"]}]}), (), "content that is list"),
    "no assistant": (lines({"messages": GOOD["messages"][:1]}), (), "line 1 has no assistant turn"),
    "no messages at all": (lines({"messages": []}), (), "line 1 has no assistant turn"),
    "unanswered": (lines({"messages": [*GOOD["messages"], GOOD["messages"][0]]}), (), "no assistant answers the last"),
    "empty": ("", (), "no conversation is left of 0 records"),
    "gsm8k without answer": (lines({"question": "x"}), ("--stage", "gsm8k"), "line 1 has no field 'answer'"),
    "gsm8k number": (lines({"question": "x", "answer": 5}), ("--stage", "gsm8k"), "'answer' that is int, not"),
    "lone surrogate": (lines(GOOD, chat("Hi", "Hello \ud800")), (), "line 2 has half a character"),
    "lone surrogate in an answer": (lines({"question": "x", "answer": "5 \udfff#### 5"}), ("--stage", "gsm8k"),
                                    "line 1 has half a character"),
    "lone surrogate in a program": (lines({"question": "x", "code": "\udc00"}), ("--stage", "tinygsm"),
                                    "line 1 has half a character"),
    "all too long": (lines(*[chat("word " * 100, "x")] * 4), (), "4 are too long for --seq_len 64"),
    "nothing held out": (lines(GOOD), ("--val_fraction", "0"), "holds out none of 1 conversations"),
    "seq_len": (lines(GOOD), ("--seq_len", "65"), "block_size 64"),
    "warmup": (lines(GOOD), ("--max_train_steps", "3", "--warmup_iters", "4", "--eval_every", "0"), "do not fit"),
    "out_dir": (lines(GOOD), ("--out_dir", "/proc/nothing/here", "--eval_every", "0"), "another --out_dir"),
    "resume nothing": (lines(GOOD), ("--resume", "5"), "not a run"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_data_is_refused_in_a_sentence(name, base, tmp_path):
    """Files a refused run leaves behind: 0; its one sentence names the line."""
    content, flags, says = BAD_FILES[name]
    (tmp_path / "x.jsonl").write_text(content)
    argv = ["--stage", "tulu", "--init", base, "--data", tmp_path / "x.jsonl", "--out_dir", tmp_path / "run", *flags]
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        sft.main(list(map(str, argv)))
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_bad_files_and_models(base, tmp_path, monkeypatch):
    """Missing, damaged, foreign and truncated inputs, each one sentence."""
    good = write_jsonl(tmp_path / "good.jsonl", [chat("Hi", "Hello 6*9")] * 3)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(good.read_bytes() * 2000)[:-300])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "x"}]), tmp_path / "other.parquet")
    (tmp_path / "x.csv").write_text("a")
    (tmp_path / "latin.jsonl").write_bytes(b'{"messages": "\xe9"}\n')
    (tmp_path / "empty").mkdir()
    GPT(GPTConfig(vocab_size=50257, block_size=16, n_layer=1, n_head=1, n_embd=8), seed=0).save(tmp_path / "plain")
    GPT(GPTConfig(vocab_size=300, block_size=16, n_layer=1, n_head=1, n_embd=8), seed=0).save(tmp_path / "small")
    cases = [(("--data", tmp_path / "none.jsonl"), "no such file"), (("--data", tmp_path / "empty"), "holds no data"),
             (("--data", tmp_path / "x.csv"), "is none of .jsonl"), (("--data", tmp_path / "cut.jsonl.gz"), "cut off"),
             (("--data", tmp_path / "bad.parquet"), "is damaged"),
             (("--data", "synthetic"), "belongs to --stage gsm8k"),
             (("--data", tmp_path / "other.parquet"), "row 1 has no field 'messages'"),
             (("--data", tmp_path / "latin.jsonl"), "line 1 is not JSON"),
             (("--stage", "gsm8k", "--data", "synthetic:0"), "at least 1"),
             (("--init", tmp_path / "empty"), "is neither a run"), (("--init", tmp_path / "none"), "is not a folder"),
             (("--init", tmp_path / "plain", "--condition", "mul_tokens"), "--condition mul_tokens needs 50,349"),
             (("--init", tmp_path / "small"), "needs 50,257")]
    for flags, says in cases:
        argv = ["--stage", "tulu", "--init", base, "--data", good, "--out_dir", tmp_path / "run", *flags]
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            sft.main(list(map(str, argv)))
        assert says in str(caught.value) and "\n" not in str(caught.value), (flags, str(caught.value))
        assert not (tmp_path / "run").exists()
    plain = ["--stage", "tulu", "--init", tmp_path / "plain", "--data", good, "--out_dir", tmp_path / "run",
             "--eval_every", "0", "--max_train_steps", "1"]
    assert sft.main(list(map(str, plain))) == 0  # plain GPT-2's vocabulary does for the baseline
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("We couldn't connect\nto the hub.")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    with pytest.raises(ValueError, match="allenai/tulu-3-sft-mixture cannot be read from the hub .*local files.$"):
        sft.main(["--stage", "tulu", "--init", str(base), "--out_dir", str(tmp_path / "hub")])


def test_malformed_conversations_can_be_skipped(base, tmp_path):
    """Of 12 lines with 2 malformed ones, --bad_conversations skip trains on 10, counts 2 and says so."""
    path = write_jsonl(tmp_path / "x.jsonl", [chat("Hi", f"Hello {i}") for i in range(10)])
    path.write_text(path.read_text() + lines("{", {"messages": []}))
    flags = ["--stage", "tulu", "--init", base, "--data", path, "--out_dir", tmp_path / "run", "--max_train_steps", 1,
             "--eval_every", 0, "--val_fraction", 0, "--bad_conversations", "skip"]
    assert sft.main(list(map(str, flags))) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"]["counts"]["tulu"]["malformed"] == 2 and config["data"]["conversations"] == 10
    assert "2 of 12 conversations were malformed" in config["warnings"][0]


@pytest.mark.parametrize("flags", [
    ["--stage", "poetry"], ["--stage", "tulu"], ["--init", "x"], ["--no_such_flag"],
    ["--stage", "tulu", "--init", "x", "--micro_batch_size", "0"], ["--stage", "tulu", "--init", "x", "--epochs", "0"],
    ["--stage", "tulu", "--init", "x", "--mix_end", "0.5"], ["--stage", "tulu", "--init", "x", "--tinygsm_data", "y"],
    ["--stage", "transition", "--init", "x", "--mix_start", "2"], ["--resume", "auto"],
    ["--stage", "tulu", "--init", "x", "--resume", "soon", "--out_dir", "y"],
])
def test_wrong_flags_end_with_status_2(flags, capsys):
    """Exit status and lines on stderr of a wrong flag: 2, and one sentence."""
    with pytest.raises(SystemExit) as caught:
        sft.main(flags)
    assert caught.value.code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_script_itself_exits_cleanly(tmp_path):
    """Exit status and stderr of a missing checkpoint, from the command line: 1 and one line."""
    done = subprocess.run([sys.executable, str(REPO / "sft.py"), "--stage", "gsm8k", "--data", "synthetic:10", "--init",
                           str(tmp_path / "none")], capture_output=True, text=True, env=ENV, cwd=REPO)
    assert done.returncode == 1 and done.stderr.startswith("sft.py: ") and done.stderr.count("\n") == 1
