"""Architectures by their parts: each part is what its formula says, has one name, and reaches every script."""

import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import exact, losses, make_run, tiny_documents, weights, write_dataset

import compare_runs
import train_gpt
from lab import ab_gate, architecture, hf, inference, optim, runs
from lab.architecture import ARCHS, OWN, PARTS, Parts, parts_of
from model import GPT, GPTConfig

SHAPE = dict(vocab_size=90, block_size=24, n_layer=2, n_head=2, n_embd=16, unused_ids=())
EVERY = [(name, part) for name, choices in PARTS.items() for part in choices]
TINY = ("--seq_len 16 --n_layer 1 --n_head 2 --n_embd 16 --micro_batch_size 4 --total_batch_tokens 64 --dtype float32 "
        "--max_train_steps 4 --save_every 2 --keep_last 0 --warmup_iters 1 --eval_every 2 --log_every 0 "
        "--val_tokens 100 --results_csv").split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, tiny_documents(60, 20, 60))
    return folder


def lively(seed=0, **parts):
    """A network whose weights, gains and biases have all moved."""
    net, generator = GPT(GPTConfig(**SHAPE, **parts)), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.3)
    return net


# ----------------------------------------------------------------------------------------------------------------------
# the network, from its formulas


def norm_of(kind, x, state, name):
    gain = state.get(f"{name}.weight", 1.0)
    if kind == "layernorm":
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain + state.get(f"{name}.bias", 0.0)
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * gain


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0.0)


def rotate(x):
    """x (H, T, dh): the pair (i, i + dh/2) of position t turned by t * 10000^(-2i/dh), clockwise."""
    T, half = x.shape[1], x.shape[2] // 2
    pair = torch.complex(x[..., :half], x[..., half:])
    angles = torch.arange(T)[:, None].double() * 10000.0 ** (-torch.arange(half).double() / half)
    turned = pair * torch.polar(torch.ones_like(angles), -angles)
    return torch.cat([turned.real, turned.imag], -1)


def mlp_of(kind, x, state, name):
    z = linear(x, state, f"{name}.c_fc")
    if kind == "gelu":
        a = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    elif kind == "gelu_exact":
        a = 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
    elif kind == "relu2":
        a = z.clamp(min=0) ** 2
    else:
        a = z / (1 + torch.exp(-z)) * linear(x, state, f"{name}.c_up")
    return linear(a, state, f"{name}.c_proj")


def logits_by_formulas(parts: Parts, state, ids, n_head=2, n_layer=2):
    """(T, V) of ids (T,), in float64."""
    state = {name.removeprefix("transformer."): value.double() for name, value in state.items()}
    x, T = state["wte.weight"][ids], len(ids)
    if parts.positions == "learned":
        x = x + state["wpe.weight"][:T]
    for i in range(n_layer):
        z = linear(norm_of(parts.norm, x, state, f"h.{i}.ln_1"), state, f"h.{i}.attn.c_attn")
        q, k, v = (part.reshape(T, n_head, -1).transpose(0, 1) for part in z.chunk(3, -1))
        if parts.positions == "rope":
            q, k = rotate(q), rotate(k)
        if parts.qk_norm == "on":
            q, k = (norm_of("rmsnorm", part, {}, "") for part in (q, k))
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        y = (scores.softmax(-1) @ v).transpose(0, 1).reshape(T, -1)
        x = x + linear(y, state, f"h.{i}.attn.c_proj")
        x = x + mlp_of(parts.mlp, norm_of(parts.norm, x, state, f"h.{i}.ln_2"), state, f"h.{i}.mlp")
    return norm_of(parts.norm, x, state, "ln_f") @ state["wte.weight"].T


@pytest.mark.parametrize("name, part", EVERY)
@pytest.mark.parametrize("base", ["gpt2", "speedrun"])
def test_logits_are_the_formulas(base, name, part):
    """Each part in each architecture, within 1e-5; and every weight of the network has a gradient."""
    net = lively(arch=base, **{name: part})
    parts = ARCHS[base]._replace(**{name: part})
    assert parts_of(net.config) == parts
    ids = torch.randint(90, (11,), generator=torch.Generator().manual_seed(1))
    want = logits_by_formulas(parts, net.state_dict(), ids)
    with torch.no_grad():
        got = net(ids[None])[0]
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    net(ids[None, :-1], ids[None, 1:]).backward()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize("parts", [
    dict(positions="none"), dict(positions="rope", norm="rmsnorm"), dict(arch="speedrun", positions="learned"),
    dict(arch="speedrun", mlp="swiglu", qk_norm="off", norm="layernorm"), dict(bias="off", qk_norm="on"),
], ids=str)
def test_decoding_and_scoring_are_full_forwards(parts):
    """The cache of keys and values, and prompts of several lengths in one batch: the greedy tokens and the scores that
    a forward pass of the whole text gives."""
    net = lively(seed=3, **parts)
    prompts = [[1, 2, 3], [4] * 9, [5, 6]]
    with torch.no_grad():
        for prompt, answer in zip(prompts, inference.generate(net, prompts, 12, temperature=0), strict=True):
            ids = list(prompt)
            for _ in range(12):
                ids.append(net(torch.tensor([ids]))[0, -1].argmax().item())
            assert answer.ids == ids[len(prompt):]
        idx = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
        log_p = net(idx).log_softmax(-1)[:, :-1].gather(2, idx[:, 1:, None])[..., 0]
        assert (net.per_token_loss(idx[:, :-1], idx[:, 1:]) + log_p).abs().max() < 1e-4


# ----------------------------------------------------------------------------------------------------------------------
# names, sizes, starts


def test_a_network_has_one_description(tmp_path):
    """A part that is the architecture's own is called so, whatever was given; an older file lacks all of them."""
    plain = GPTConfig(**SHAPE)
    assert GPTConfig(**SHAPE, norm="layernorm", positions="learned", bias="on", mlp="gelu") == plain
    assert all(getattr(plain, name) == OWN for name in PARTS)
    assert GPTConfig(**SHAPE, arch="speedrun", norm="layernorm").norm == "layernorm"
    older = {name: value for name, value in plain.to_dict().items() if name not in PARTS}
    assert GPTConfig.from_dict(older) == plain
    net = lively(arch="speedrun", mlp="swiglu", positions="none")
    net.save(tmp_path / "net")
    again = GPT.load(tmp_path / "net")
    assert again.config == net.config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("name", [*PARTS, "arch"])
def test_an_unknown_part_is_refused(name):
    with pytest.raises(ValueError, match=rf"^unknown {name} 'gelu2'; use one of \w+, "):
        GPTConfig(**SHAPE, **{name: "gelu2"})


def test_what_arms_share_begins_equal():
    """Other parts shift no bit of a weight that both have and draw by the same rule."""
    base = GPT(GPTConfig(**SHAPE), seed=4).state_dict()
    for name, part in EVERY:
        other = GPT(GPTConfig(**SHAPE, **{name: part}), seed=4).state_dict()
        same = [key for key in base if key in other and base[key].shape == other[key].shape]
        differ = [key for key in same if not torch.equal(base[key], other[key])]
        assert bool(differ) == (part == "speedrun"), (name, differ)
    drawn = GPT(GPTConfig(**SHAPE, weight_init="speedrun")).state_dict()
    assert drawn["transformer.h.0.attn.c_proj.weight"].abs().max() == 0
    assert 0.2 < drawn["transformer.h.1.attn.c_attn.weight"].abs().max() <= 0.25


@pytest.mark.parametrize("width", [16, 96, 100, 768])
def test_swiglu_has_as_many_parameters(width):
    """Within 8 channels of three matrices; a width that is given counts."""
    def matrices(**more):
        with torch.device("meta"):
            block = GPT(GPTConfig(**SHAPE | dict(n_embd=width), bias="off", **more)).transformer["h"][0]
        return sum(p.numel() for p in block.mlp.parameters())

    assert 0 <= matrices(mlp="swiglu") - matrices() <= 8 * 3 * width
    assert matrices(mlp="swiglu", n_inner=64) == 3 * 64 * width


def test_muon_moves_each_matrix_of_a_gated_mlp():
    net = GPT(GPTConfig(**SHAPE, mlp="swiglu", bias="off"))
    muon, _ = optim.build_optimizers(net, optimizer="muon", learning_rate=0.01)
    taken = [tuple(p.shape) for group in muon.param_groups for p in group["params"]]
    assert taken.count((48, 16)) == 3 * 2 and taken.count((16, 48)) == 2  # c_attn, c_fc and c_up; c_proj


def test_a_memory_takes_any_part_but_a_gated_mlp():
    memory = dict(memory="hope", cms_periods=(8, 0), titan_period=8)
    for name, part in EVERY:
        if part == "swiglu":
            with pytest.raises(ValueError, match="mlp swiglu has three; use another mlp or no memory"):
                GPTConfig(**SHAPE, **memory, mlp=part)
            continue
        net = lively(**memory, **{name: part})
        ids = torch.randint(90, (2, 17), generator=torch.Generator().manual_seed(1))
        loss = net(ids[:, :-1], ids[:, 1:])
        loss.backward()
        scored = net.per_token_loss(ids[:, :-1], ids[:, 1:]).mean().item()
        assert math.isfinite(scored) and abs(loss.item() - scored) < 1e-4


def test_the_export_is_gpt_2_s(tmp_path):
    """Without biases it is GPT-2 whose biases are zero; transformers' logits are compared. Other parts have no form."""
    pytest.importorskip("transformers")
    net = lively(bias="off", weight_init="speedrun")
    hf.export_hf(net, tmp_path / "out")
    back = hf.import_hf(str(tmp_path / "out"))
    ids = torch.randint(90, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (back(ids)[..., :90] - net(ids)).abs().max() < 1e-4
    for name, part in (("positions", "rope"), ("positions", "none"), ("norm", "rmsnorm"), ("mlp", "swiglu"),
                       ("mlp", "relu2"), ("qk_norm", "on")):
        with pytest.raises(ValueError, match="use GPT.save"):
            hf.export_hf(lively(**{name: part}), tmp_path / name)
        assert not (tmp_path / name).exists()


# ----------------------------------------------------------------------------------------------------------------------
# the scripts


def train(data, out, *flags):
    train_gpt.main(["--data_dir", str(data), "--out_dir", str(out), *TINY, "", *flags])


def test_flags_train_resume_and_are_named(data, tmp_path, capsys):
    """The network is the flags', config.json has them, a resumed run ends with the weights of one never stopped, and a
    run's own name tells its parts."""
    flags = ["--positions", "rope", "--mlp", "swiglu", "--qk_norm", "on", "--norm", "layernorm"]
    train(data, tmp_path / "run", *flags)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["flags"]["positions"] == config["model"]["positions"] == "rope"
    assert config["flags"]["norm"] == config["model"]["norm"] == OWN and config["flags"]["n_inner"] == 48
    net = GPT.load(runs.list_checkpoints(tmp_path / "run")[-1])
    assert parts_of(net.config) == architecture.GPT2._replace(positions="rope", mlp="swiglu", qk_norm="on")
    before = weights(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    runs.list_checkpoints(tmp_path / "run")[1].rename(tmp_path / "gone")
    train_gpt.main(["--out_dir", str(tmp_path / "run"), "--resume", "auto"])
    assert weights(tmp_path / "run") == before
    repeated = train_gpt.parse_args(["--config", str(tmp_path / "run"), "--mlp", "gelu"])
    assert repeated.n_inner == 64 and repeated.positions == "rope"
    older = {flag: value for flag, value in config["flags"].items() if flag not in PARTS} | {"n_inner": 64}
    (tmp_path / "old.json").write_text(json.dumps({**config, "flags": older, "derived": []}))
    repeated = train_gpt.parse_args(["--config", str(tmp_path / "old.json"), "--mlp", "swiglu", "--n_embd", "32"])
    assert repeated.n_inner == 88
    name = train_gpt.parse_args(["--data_dir", str(data), *flags]).name
    assert name == f"{data.name}_rope_qk_norm_on_swiglu_adamw"
    for own, words in (("--arch speedrun", "speedrun"), ("--weight_init speedrun", "weight_init_speedrun"),
                       ("--positions none --mlp gelu", "positions_none")):
        named = train_gpt.parse_args(["--data_dir", str(data), *own.split()]).name
        assert named == f"{data.name}_{words}_adamw"
    with pytest.raises(SystemExit):
        train_gpt.parse_args(["--data_dir", str(data), "--mlp", "gelu2"])
    assert re.search(r"--mlp gelu2: choose one of arch, gelu, .*swiglu", capsys.readouterr().err)


def test_the_architecture_s_own_part_changes_nothing(data, tmp_path):
    train(data, tmp_path / "plain")
    train(data, tmp_path / "named", "--positions", "learned", "--norm", "layernorm", "--bias", "on")
    assert exact(tmp_path / "plain") == exact(tmp_path / "named")


def test_all_parts_of_the_speedrun_are_the_speedrun(data, tmp_path):
    """GPT-2 with each part of the speedrun's network learns, to the last bit, what the speedrun's network does."""
    parts = ARCHS["speedrun"]._asdict()
    flags = [word for name, part in parts.items() for word in (f"--{name}", part)]
    train(data, tmp_path / "named", "--arch", "speedrun", "--n_head", "2")
    train(data, tmp_path / "parts", *flags)
    assert np.array_equal(losses(tmp_path / "named"), losses(tmp_path / "parts"))
    assert weights(tmp_path / "named") == weights(tmp_path / "parts")


def test_the_gate_knows_every_part():
    assert list(PARTS) == ab_gate.PARTS and set(PARTS) <= set(ab_gate.RECOGNISED) and OWN in ab_gate.OFF


@pytest.mark.parametrize("name, part", [("positions", "rope"), ("mlp", "swiglu"), ("bias", "off")])
def test_a_part_is_a_treatment(tmp_path, capsys, name, part):
    """compare_runs.py knows such arms by themselves, also beside a baseline that is older than the flags; the narrower
    MLP of a gated one is a part of it. Two parts are two things."""
    inner = {"n_inner": 48} if part == "swiglu" else {}
    for seed in range(3):
        make_run(tmp_path / f"old_s{seed}", seed, loss=0.01 * seed)
        for arm, changes in (("one", {name: part}), ("two", {name: part, "norm": "rmsnorm"})):
            own = {**dict.fromkeys(PARTS, OWN), **changes, **inner}
            make_run(tmp_path / f"{arm}_s{seed}", seed, loss=0.01 * seed + 0.002 * (seed + 1), flags=own,
                     config={f"model.{key}": value for key, value in own.items()})
    compare = ["--a", str(tmp_path / "old_s*"), "--out", str(tmp_path / "report")]
    assert compare_runs.main([*compare, "--b", str(tmp_path / "one_s*")]) == 0
    assert capsys.readouterr().out.startswith("one against old: inconclusive")
    assert f"gpt2, {name} {part}, 809k parameters" in (tmp_path / "report" / "report.md").read_text()
    compare_runs.main([*compare, "--b", str(tmp_path / "two_s*")])
    assert capsys.readouterr().out.startswith("two against old: not comparable")
