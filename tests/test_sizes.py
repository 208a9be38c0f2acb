"""ladder.py and sizes.py: one training at several sizes, and what an effect is at each."""

import json
import math
import re
import shlex
import sys

import numpy as np
import pytest
from conftest import REPO, make_run, tiny_documents, write_dataset
from scipy import stats
from test_compare_runs import NOISE_A, NOISE_B

import train_gpt
from lab import ab_report, runs

sys.path.insert(0, str(REPO / "experiments"))
import ladder
import sizes

TINY = ("--seq_len 16 --micro_batch_size 4 --total_batch_tokens 64 --dtype float32 --val_tokens 200 --log_every 0 "
        "--max_train_steps 100 --warmup_iters 10 --learning_rate 0.002 --n_embd 16")
SIZES = "--depths 1 2 --width_per_layer 8 --head_dim 4"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """About 2,000 training tokens."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, tiny_documents(60, 20, 60))
    return folder


def commands_of(tmp_path, lines, *flags):
    """The commands of a ladder, each as words."""
    (tmp_path / "arms.txt").write_text("\n".join(lines))
    args = ladder.parse_args([str(tmp_path / "arms.txt"), *map(str, flags)])
    return [shlex.split(line) for line in ladder.plan(args)[0]]


def values_of(words):
    assert words[:2] == ["python", "train_gpt.py"]
    return train_gpt.parse_args(words[2:])


# ----------------------------------------------------------------------------------------------------------------------
# the commands


def test_what_a_size_is(tmp_path):
    """By hand: depth 4 is 256 wide, has 12 x 4 x 256^2 = 3,145,728 parameters and reads 20 times as many tokens, in
    768 steps of 81,920; the rate of a width of 64 is halved at 256."""
    line = ("train_gpt.py --data_dir missing --n_embd=64 --total_batch_tokens 81920 --max_train_steps 100 --seed 3 "
            "--warmup_iters 10 --schedule trapezoid --warmdown_iters 25 --learning_rate 0.004 --out_dir runs/x_s3")
    first, second = commands_of(tmp_path, [line], "--depths", 4, 1)
    values = values_of(second)
    assert (values.n_layer, values.n_embd, values.n_head, values.n_inner) == (4, 256, 4, 1024)
    assert values.max_train_steps == 768 == round(20 * 3_145_728 / 81_920)
    assert (values.warmup_iters, values.warmdown_iters) == (76, 192)  # a tenth and a quarter, rounded down
    assert values.learning_rate == 0.002 and values.seed == 3
    assert second[-2:] == ["--out_dir", "runs/x_d4_s3"] and first[-1] == "runs/x_d1_s3"
    for name in ("n_embd", "max_train_steps", "learning_rate", "warmup_iters", "warmdown_iters", "out_dir"):
        assert sum(word.split("=")[0] == f"--{name}" for word in second) == 1
    assert values_of(first).learning_rate == 0.004


def test_arms_read_the_same_tokens(tmp_path):
    """Steps by which arms of other networks and optimizers differ at a size: 0."""
    common = f"train_gpt.py --data_dir missing {TINY}"
    lines = [f"{common} --out_dir runs/a", f"{common} --mlp swiglu --optimizer muon --out_dir runs/b",
             f"{common} --optimizer muon --muon_lr 0.03 --out_dir runs/c"]
    commands = [values_of(words) for words in commands_of(tmp_path, lines, *SIZES.split())]
    by_depth = {depth: [values for values in commands if values.n_layer == depth] for depth in (1, 2)}
    for values in by_depth.values():
        assert len({(one.max_train_steps, one.learning_rate, one.warmup_iters) for one in values}) == 1
    same = commands_of(tmp_path, lines, *SIZES.split(), "--tokens_per_parameter", 0, "--rate_exponent", 0)
    assert {(values_of(words).max_train_steps, values_of(words).learning_rate) for words in same} == {(100, 0.002)}


@pytest.mark.parametrize("flags, rates", [
    ("--muon_scale original", [2e-4, 2e-4]),
    ("--muon_scale original --muon_lr 0.0301234567", [0.0301234567, 0.0301234567]),
    ("", [2.828e-4, 2e-4]),
    ("--muon_scale match_rms_adamw --muon_lr 0.03", [0.04243, 0.03]),
])
def test_the_rate_of_muon(tmp_path, flags, rates):
    """Muon's rates at widths of 8 and 16, by hand. An orthogonal update of `original` has a spectral norm that is of no
    width, those of the other scales have one of sqrt(width): their rate falls as it grows. A tenth of --learning_rate
    is the default, which must not make the first one fall."""
    line = f"train_gpt.py --data_dir missing {TINY} --optimizer muon {flags} --out_dir runs/x"
    commands = commands_of(tmp_path, [line], *SIZES.split())
    assert [values_of(words).muon_lr for words in commands] == rates


def test_shares_are_of_whole_numbers(tmp_path):
    """290 of 1,000 steps keep 29 of 100 steps of warmup, where 0.29 x 100 is 28.999; a cosine's warmdown, which has no
    effect, fits, too; and a teach schedule that began at step 1 does not become 0, which is never."""
    line = (f"train_gpt.py --data_dir missing {TINY} --max_train_steps 1000 --warmup_iters 100 --warmdown_iters 900 "
            "--memory hope_attention --teach_warmup_iters 200 --teach_decay_start 1 --out_dir runs/x")
    ratio = 290 * 64 / (12 * 8**2)
    (words,) = commands_of(tmp_path, [line], "--depths", 1, *SIZES.split()[3:], "--tokens_per_parameter", ratio)
    values = values_of(words)
    assert (values.max_train_steps, values.warmup_iters, values.warmdown_iters) == (290, 29, 261)
    assert (values.teach_warmup_iters, values.teach_decay_start, values.teach_decay_iters) == (58, 1, 0)


def test_values_of_other_flags_are_kept(tmp_path):
    """A preset's line, with a text of several words, a flag given twice and one with a sign of equality."""
    line = ("train_gpt.py --data_dir 'my data' --preset laptop --notes='--n_embd=5 is \"mine\"' --warmup_iters -1 "
            "--n_head 2 --n_head=3 --skip_long --grad_clip 2 --grad_clip 3 --out_dir runs/x")
    (words,) = commands_of(tmp_path, [line], "--depths", 2)
    values = values_of(words)
    assert (values.data_dir, values.notes, values.grad_clip) == ("my data", '--n_embd=5 is "mine"', 3.0)
    assert (values.n_layer, values.n_embd, values.n_head, values.seq_len) == (2, 128, 2, 256)
    assert values.skip_long and values.learning_rate == float(f"{2e-3 * (192 / 128) ** 0.5:.4g}")
    assert words.count("--n_head") == 1 and "--n_head=3" not in words


def test_the_commands_train(data, tmp_path, capsys):
    """Tokens that a size's run has seen, and its parameters beside the embeddings, against the table's words."""
    line = f"train_gpt.py --data_dir {data} {TINY} --eval_every 0 --results_csv '' --out_dir {tmp_path}/x_s0"
    (tmp_path / "arms.txt").write_text(line)
    assert ladder.main([str(tmp_path / "arms.txt"), *SIZES.split(), "--tokens_per_parameter", "0.2"]) == 0
    printed = capsys.readouterr()
    assert "depth 2: 16 wide, 4 heads, 0.00614 M parameters" in printed.err and "19 steps, 0.001216 M" in printed.err
    for command in printed.out.splitlines():
        train_gpt.main(shlex.split(command)[2:])
    for depth, width, steps in ((1, 8, 2), (2, 16, 19)):
        run = tmp_path / f"x_d{depth}_s0"
        config, summary = runs.read_config(run), json.loads((run / "summary.json").read_text())
        assert (config["model"]["n_layer"], config["model"]["n_embd"]) == (depth, width)
        assert summary["tokens_seen"] == 64 * steps
        matrices = 12 * depth * width**2
        assert matrices < config["parameters"]["non_embedding"] < 1.3 * matrices  # and the norms and biases


@pytest.mark.parametrize("line, flags, words", [
    ("sft.py --init x --out_dir y", "", "only a training from fresh weights has sizes"),
    ("train_gpt.py --data_dir D --init_from x --out_dir y", "", "--init_from starts from a network of one size"),
    ("train_gpt.py --data_dir D --n_layer 4 --out_dir y_d4_s0", "", "of a ladder already: give the list that"),
    ("train_gpt.py --data_dir D --n_inner 100 --out_dir y", "", "--n_inner is of one width: leave it out"),
    ("train_gpt.py --data_dir D --memory hope --cms_widths 9,9 --out_dir y", "", "--cms_widths is of one width"),
    ("train_gpt.py --data_dir D --memory hope --memory_layers 3 --out_dir y", "",
     "depth 2: memory_layers 3 but 2 blocks; .*that\\.$"),
    ("train_gpt.py --data_dir D --positions rope --out_dir y", "--head_dim 1", "depth 2: n_embd 128 does not split"),
    ("train_gpt.py --data_dir D --out_dir y", "--tokens_per_parameter 0.5",
     "would read 196,608 tokens, less than a step of 491,520: raise --tokens_per_parameter"),
    ("train_gpt.py --data_dir D --out_dir y", "--head_dim 48", "depth 2 is 128 wide, which is no multiple"),
    ("train_gpt.py --data_dir D --max_train_steps 9 --warmup_iters 10 --out_dir y", "", "do not fit into 9 steps"),
])
def test_what_has_no_sizes(tmp_path, line, flags, words):
    with pytest.raises(ValueError, match=words):
        commands_of(tmp_path, [line], "--depths", 2, *flags.split())


@pytest.mark.parametrize("line, words", [
    ("--n_layers 4", "train_gpt.py: --n_layers is no flag of train_gpt.py: did you mean --n_layer?"),
    ("--seed x", "train_gpt.py: --seed 'x': give a whole number."),
    ("--help", "it asks for --help: leave that out."),
    ("--init_from x", "--init_from starts from a network of one size: leave it out."),
    ("--n_layer 2 --memory hope --memory_layers 3", "depth 2: memory_layers 3 but 2 blocks; "),
])
def test_a_fault_names_its_line(tmp_path, capfd, line, words):
    """Of many commands, the one that has to be mended is named by its run, and its sentence is printed once."""
    lines = [f"train_gpt.py --data_dir D --out_dir runs/{name}" for name in ("x_s0", f"y_s0 {line}", "z_s0")]
    with pytest.raises(ValueError, match=re.escape(f"the command of runs/y_s0: {words}")):
        commands_of(tmp_path, lines, "--depths", 2)
    assert not capfd.readouterr().err


def test_the_table_has_the_steps_of_every_arm(tmp_path):
    """Where --total_batch_tokens differ, the steps of depth 1, by hand: 20 x 12 x 64^2 tokens in steps of 6,400 and of
    64,000."""
    line = "train_gpt.py --data_dir missing --seq_len 64 --warmup_iters 0 --total_batch_tokens {} --out_dir {}"
    (tmp_path / "arms.txt").write_text("\n".join([line.format(6400, "x"), line.format(64000, "y")]))
    args = ladder.parse_args([str(tmp_path / "arms.txt"), "--depths", "1"])
    assert "15 to 154 steps, 0.96 to 0.9856 M tokens, 1 x the compute" in ladder.plan(args)[1][0]


@pytest.mark.parametrize("epochs", [1, 1.37, 2.02, 3.3])
def test_more_than_the_data(data, tmp_path, epochs):
    """The ratio that the sentence names is accepted when it is pasted, and is not 5 % or 2 steps below the most."""
    line = f"train_gpt.py --data_dir {data} {TINY} --max_epochs {epochs} --out_dir runs/x_s0"
    words = f"depth 2 would read .* at --max_epochs {epochs}: pass --tokens_per_parameter"
    with pytest.raises(ValueError, match=words) as fault:
        commands_of(tmp_path, [line], *SIZES.split())
    ratio = str(fault.value).split("--tokens_per_parameter ")[1].split(",")[0]
    assert len(commands_of(tmp_path, [line], *SIZES.split(), "--tokens_per_parameter", ratio)) == 2
    more = float(ratio) * 1.05 + 2 * 64 / (12 * 2 * 16**2)
    with pytest.raises(ValueError, match=words):
        commands_of(tmp_path, [line], *SIZES.split(), "--tokens_per_parameter", more)


def test_steps_of_its_own_that_the_data_do_not_give(data, tmp_path):
    """--tokens_per_parameter is no advice to who has switched it off."""
    line = f"train_gpt.py --data_dir {data} {TINY} --out_dir runs/x_s0"
    with pytest.raises(ValueError, match=r"lower the command's --max_train_steps to \d+, or prepare more\.$"):
        commands_of(tmp_path, [line], *SIZES.split(), "--tokens_per_parameter", 0)


# ----------------------------------------------------------------------------------------------------------------------
# the effect by size


def make_sizes(folder, effects, rates=lambda n_layer: 0.001, **of_b):
    """{layers: effect}, three seeds; A has 1,000 layers^3 parameters, B another number, which decides nothing."""
    for n_layer, effect in effects.items():
        for seed in range(3):
            shape = {"n_layer": n_layer, "n_embd": 16 * n_layer}
            flags = {"max_train_steps": 5 * n_layer, "learning_rate": 0.001} | shape
            config = {"model.n_layer": n_layer, "model.n_embd": 16 * n_layer,
                      "parameters.non_embedding": 1000 * n_layer**3}
            make_run(folder / f"a_d{n_layer}_s{seed}", seed, loss=NOISE_A[seed] * n_layer, flags=flags,
                     config=config)
            make_run(folder / f"b_d{n_layer}_s{seed}", seed, loss=NOISE_B[seed] * n_layer + effect,
                     flags=flags | {"learning_rate": rates(n_layer)} | of_b,
                     config=config | {"parameters.non_embedding": 1500 * n_layer**2})


def compare(folder, *flags):
    status = sizes.main(["--a", str(folder / "a_*"), "--b", str(folder / "b_*"), "--out", str(folder / "report"),
                         *map(str, flags)])
    return status, json.loads((folder / "report" / "report.json").read_text())


@pytest.mark.parametrize("value", [0, -5, None])
def test_a_size_that_is_no_number_of_parameters(tmp_path, value):
    """Its logarithm would be fitted."""
    make_sizes(tmp_path, {1: 0.3, 2: 0.2})
    for path in tmp_path.glob("*_d1_*/config.json"):
        config = json.loads(path.read_text())
        config["parameters"]["non_embedding"] = value
        path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="a_d1_s0 does not record its parameters: name runs of train_gpt.py.$"):
        compare(tmp_path)


def test_change_per_doubling_of_the_parameters(tmp_path):
    """Against scipy: each seed's slope over log2 of A's parameters, which are 8 and 27 times the first's."""
    effects = {1: 0.3, 2: 0.2, 3: 0.11}
    make_sizes(tmp_path, effects, attn_gate="headwise")
    status, report = compare(tmp_path)
    assert status == 0 and report["mode"] == "sizes" and ab_report.is_report(tmp_path / "report" / "report.json")
    noise = np.array(NOISE_B[:3]) - NOISE_A[:3]
    x = np.log2([1000, 8000, 27000])
    slopes = [stats.linregress(x, [noise[seed] * n_layer + effect for n_layer, effect in effects.items()]).slope
              for seed in range(3)]
    assert list(report["change_per_doubling"]["pairs"].values()) == pytest.approx(slopes)
    figures = [(one["n_layer"], one["n_embd"], one["parameters"], one["steps"]) for one in report["sizes"]]
    assert figures == [(1, 16, 1000, 5), (2, 32, 8000, 10), (3, 48, 27000, 15)]
    assert report["verdict"] == "moves towards B"
    page = (tmp_path / "report" / "report.md").read_text()
    assert "The larger the network, the more the effect is in B's favour" in page and "3 x 48" in page
    assert "per doubling of the parameters" in page and (tmp_path / "report" / "sizes.png").exists()


def test_rates_that_follow_the_size_otherwise_are_told(tmp_path, capsys):
    """A rate that B alone was given per size may be what moves the effect."""
    make_sizes(tmp_path, {1: -0.2, 2: -0.2}, lambda n_layer: 0.002 * n_layer, attn_gate="headwise")
    compare(tmp_path, "--treatment", "attn_gate,learning_rate")
    words = "learning_rate follows the size otherwise in B than in A (0.001 and 0.002, 0.001 and 0.004)"
    assert words in capsys.readouterr().out


def test_defaults_that_follow_the_size_are_not_told(tmp_path, capsys):
    """A width of an MLP that swiglu rounds to a multiple of 8, 0.69 and 0.68 of GELU's, and a rate of Muon that
    AdamW's arm only records."""
    make_sizes(tmp_path, {2: -0.2, 5: -0.2}, mlp="swiglu", optimizer="muon", muon_lr=0.02)
    for run in sorted(tmp_path.glob("?_d?_s?")):
        config = runs.read_config(run)
        width = config["flags"]["n_embd"]
        inner, rate = 4 * width, 0.1 / width
        if run.name.startswith("b"):
            inner, rate = 8 * math.ceil(width / 3), 0.02
        config["flags"] |= {"n_inner": inner, "muon_lr": rate}
        config["model"]["n_inner"] = inner
        (run / "config.json").write_text(json.dumps(config))
    compare(tmp_path, "--treatment", "mlp,optimizer")
    assert "follows the size otherwise" not in capsys.readouterr().out


def test_sizes_are_in_the_order_of_their_parameters(tmp_path):
    """A network of one wide layer may be the larger one, and is then the last."""
    make_sizes(tmp_path, {1: -0.2, 2: -0.1}, attn_gate="headwise")
    for run in sorted(tmp_path.glob("?_d1_s?")):
        config = runs.read_config(run)
        config["parameters"]["non_embedding"] = 64_000
        (run / "config.json").write_text(json.dumps(config))
    _, report = compare(tmp_path)
    assert [one["parameters"] for one in report["sizes"]] == [8000, 64_000]


def test_defaults_of_a_memory_follow_the_size(tmp_path):
    """A trend of arms whose heads, MLP and memory follow the network's shape is tested."""
    make_sizes(tmp_path, {1: 0.3, 2: 0.1}, attn_gate="headwise")
    for run in sorted(tmp_path.glob("?_d?_s?")):
        config = runs.read_config(run)
        n_layer = config["model"]["n_layer"]
        config["flags"] |= {"n_head": n_layer, "n_inner": 64 * n_layer}
        config["model"] |= {"n_head": n_layer, "n_inner": 64 * n_layer, "memory": "hope",
                            "memory_layers": n_layer, "cms_widths": [32 * n_layer], "titan_width": 8 * n_layer}
        (run / "config.json").write_text(json.dumps(config))
    assert compare(tmp_path)[1]["change_per_doubling"]["n"] == 3


def test_networks_of_equally_many_parameters(tmp_path):
    """A slope over sizes that do not differ in x would be infinite."""
    make_sizes(tmp_path, {1: -0.2, 2: -0.2}, attn_gate="headwise")
    for run in sorted(tmp_path.glob("?_d?_s?")):
        config = runs.read_config(run)
        config["parameters"]["non_embedding"] = 1000
        (run / "config.json").write_text(json.dumps(config))
    assert compare(tmp_path)[1]["verdict"] == "not tested"


def test_another_setting_between_sizes_is_no_trend(tmp_path, capsys):
    """A batch that grew with the network would have made the effect a batch's."""
    make_sizes(tmp_path, {1: -0.2}, attn_gate="headwise")
    make_sizes(tmp_path, {2: -0.2}, attn_gate="headwise")
    for run in sorted(tmp_path.glob("?_d2_s?")):
        config = runs.read_config(run)
        config["flags"]["grad_clip"] = 9.0
        (run / "config.json").write_text(json.dumps(config))
    _, report = compare(tmp_path)
    assert report["verdict"] == "not tested" and "A is not the same at all sizes: grad_clip" in capsys.readouterr().out


def test_sizes_of_one_arm(tmp_path):
    """Without a common size there is a sentence that names what each arm has."""
    make_sizes(tmp_path, {1: 0.1, 2: 0.1}, attn_gate="headwise")
    with pytest.raises(ValueError, match=r"no size is in --a and in --b \(A has 1 layer x 16; B has 2 layers x 32\)"):
        sizes.main(["--a", str(tmp_path / "a_d1_*"), "--b", str(tmp_path / "b_d2_*")])
