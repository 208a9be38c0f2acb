"""Optimizers and schedules. References: torch.optim.Muon with Newton-Schulz in fp32, and one process for many."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lab import optim
from lab.optim import Muon, build_optimizers, lr_multiplier, newton_schulz, set_learning_rates

SHAPES = [(24, 24), (24, 24), (72, 24), (96, 24), (24, 96), (6, 24), (24, 24)]
FEW = [(24, 24), (24, 8), (72, 24), (8, 8)]  # with 3 ranks most shapes leave some rank idle


def reference_orthogonalise(grad, coefficients=(3.4445, -4.7750, 2.0315), steps=5, eps=1e-7):
    """torch.optim.Muon's _zeropower_via_newtonschulz, written out with its bf16 cast left out."""
    a, b, c = coefficients
    x = grad.T.clone() if grad.size(0) > grad.size(1) else grad.clone()
    x /= x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if grad.size(0) > grad.size(1) else x


def make_params(shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.1) for shape in shapes]


def set_grads(params, step):
    """The same pseudo-random gradients for every optimizer under test; scales differ by 1e4 between parameters."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(params):
        p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** (i % 5 - 3) + p.detach() * 0.1


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_one_process_equals_torch_muon(monkeypatch, scale, nesterov):
    """Every weight after 10 steps (to 1e-5): torch.optim.Muon itself, run with fp32 in place of its bf16."""
    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz",
                        lambda grad, coefficients, steps, eps: reference_orthogonalise(grad, coefficients, steps, eps))
    settings = dict(lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=nesterov, adjust_lr_fn=scale)
    ours, theirs = make_params(), make_params()
    optimizer, reference = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for step in range(10):
        for params, o in ((ours, optimizer), (theirs, reference)):
            set_grads(params, step)
            o.step()
    for p, q, start in zip(ours, theirs, make_params(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)
        assert (p - start).norm() > 0.1 * start.norm()


def test_bf16_equals_torch_muon_unpatched():
    """Every weight after one step in bf16, beside torch.optim.Muon as shipped: to 2 % of the update (bf16 rounding)."""
    ours, theirs = make_params(), make_params()
    start = [p.detach().clone() for p in ours]
    settings = dict(lr=0.02, weight_decay=0.0)
    optimizer, reference = Muon(ours, ns_dtype=torch.bfloat16, **settings), torch.optim.Muon(theirs, **settings)
    for params, o in ((ours, optimizer), (theirs, reference)):
        set_grads(params, 0)
        o.step()
    for p, q, p0 in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.02 * (q - p0).norm()


def test_qkv_is_three_matrices():
    """The update of a fused (3 d, d) weight: that of its three (d, d) thirds as separate parameters, bit for bit."""
    whole = make_params([(72, 24)])
    thirds = [torch.nn.Parameter(third.clone()) for third in whole[0].detach().chunk(3)]
    fused = Muon([{"params": whole, "qkv": True}], lr=0.02, adjust_lr_fn="sqrt_max")
    separate = Muon(thirds, lr=0.02, adjust_lr_fn="sqrt_max")
    for step in range(3):
        set_grads(whole, step)
        for third, grad in zip(thirds, whole[0].grad.chunk(3), strict=True):
            third.grad = grad.clone()
        fused.step()
        separate.step()
    assert torch.equal(whole[0], torch.cat(thirds))
    unsplit = make_params([(72, 24)])
    set_grads(unsplit, 0)
    Muon(unsplit, lr=0.02, adjust_lr_fn="sqrt_max").step()
    again = make_params([(72, 24)])
    set_grads(again, 0)
    Muon([{"params": again, "qkv": True}], lr=0.02, adjust_lr_fn="sqrt_max").step()
    assert (unsplit[0] - again[0]).abs().max() > 1e-3


def test_sqrt_max_is_the_speedruns_update():
    """The update of 003's optimizer (October-2024 speedrun): summed momentum, scale sqrt(max(rows, cols)), RMS near 1.
    """
    ours, theirs = make_params(), make_params()
    buffers = [torch.zeros_like(p) for p in theirs]
    optimizer = Muon(ours, lr=0.01, weight_decay=0.0, adjust_lr_fn="sqrt_max")
    for step in range(3):
        set_grads(ours, step)
        set_grads(theirs, step)
        optimizer.step()
        for p, buffer in zip(theirs, buffers, strict=True):
            buffer.mul_(0.95).add_(p.grad)
            update = reference_orthogonalise(p.grad + 0.95 * buffer) * max(p.shape) ** 0.5
            assert 0.6 < update.square().mean().sqrt() < 1.3
            p.data.add_(update, alpha=-0.01)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


def test_newton_schulz_singular_values():
    """The singular values of the update: between 0.6 and 1.3 for matrices of condition up to 100; zero rows stay zero.
    """
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(3, 16, 40, generator=generator), full_matrices=False)
    x = u @ torch.diag_embed(torch.logspace(0, -2, 16).expand(3, -1)) @ v
    s = torch.linalg.svdvals(newton_schulz(x.clone()))
    assert 0.6 < s.min() and s.max() < 1.3
    x[:, 5] = 0
    assert newton_schulz(x.clone())[:, 5].abs().max() == 0
    assert newton_schulz(torch.zeros(1, 4, 6)).abs().max() == 0


def test_newton_schulz_dtype():
    """The precision of Newton-Schulz: fp32 on a CPU, where bf16 is 4 times slower; what the caller says elsewhere."""
    assert optim.newton_schulz_dtype(torch.device("cpu")) == torch.float32


def test_parameters_without_gradient_stay():
    """A frozen or unused weight: not moved, not even by weight decay, as in torch.optim.Muon."""
    params = make_params()
    set_grads(params, 0)
    params[1].grad = None
    before = params[1].detach().clone()
    Muon(params, lr=0.1, weight_decay=0.5).step()
    assert torch.equal(params[1], before)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "muon_all"])
def test_resume_is_bit_exact(tmp_path, optimizer):
    """Every weight after save (weights_only) and load at step 3 of 6: equal bits to the uninterrupted run's."""
    def build(seed):
        model = tiny_model(seed)
        return model, build_optimizers(model, optimizer=optimizer, learning_rate=0.01)

    def train(model, optimizers, steps):
        for step in steps:
            set_grads(list(model.parameters()), step)
            set_learning_rates(optimizers, lr_multiplier(step, max_steps=6, warmup=2))
            for o in optimizers:
                o.step()

    straight, optimizers = build(0)
    train(straight, optimizers, range(6))
    first, optimizers = build(0)
    train(first, optimizers, range(3))
    torch.save([first.state_dict(), [o.state_dict() for o in optimizers]], tmp_path / "state.pt")
    weights, states = torch.load(tmp_path / "state.pt", weights_only=True)
    second, optimizers = build(1)
    second.load_state_dict(weights)
    for o, state in zip(optimizers, states, strict=True):
        o.load_state_dict(state)
    train(second, optimizers, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(second.parameters(), straight.parameters(), strict=True))


# ----------------------------------------------------------------------------------------------------------------------
# ranks

WORKER = """
import os, sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_muon import FEW, SHAPES, five_steps
rank, world_size, folder = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
torch.save([five_steps(shapes, rank, world_size) for shapes in (SHAPES, FEW)], f"{folder}/rank{rank}.pt")
dist.barrier()
os._exit(0)  # once in many runs one of gloo's threads aborted a process that took its group down
"""


def five_steps(shapes, rank=0, world_size=1):
    """(weights, state_dict) after 5 steps from the same start; the third parameter is a fused qkv."""
    params = make_params(shapes)
    groups = [{"params": params[:2]}, {"params": params[2:3], "qkv": True}, {"params": params[3:]}]
    optimizer = Muon(groups, lr=0.02, adjust_lr_fn="sqrt_max", rank=rank, world_size=world_size)
    for step in range(5):
        set_grads(params, step)
        optimizer.step()
    return [p.detach() for p in params], optimizer.state_dict()


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_hold_equal_bits(tmp_path, world_size):
    """Every weight and momentum after 5 steps on 2 and 3 ranks (uneven shares, shapes with fewer matrices than ranks):
    equal bits on all ranks, equal to the one-process weights to 1e-6; any rank's state_dict is the one-process one."""
    command = [sys.executable, "-c", WORKER, str(Path(__file__).parent)]
    workers = [subprocess.Popen([*command, str(rank), str(world_size), str(tmp_path)], stderr=subprocess.PIPE,
                                text=True) for rank in range(world_size)]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(world_size)]
    for i, shapes in enumerate((SHAPES, FEW)):
        expected, expected_state = five_steps(shapes)
        for weights, state in (results[i] for results in ranks):
            for p, first, one in zip(weights, ranks[0][i][0], expected, strict=True):
                assert torch.equal(p, first)
                torch.testing.assert_close(p, one, rtol=0, atol=1e-6)
            for key, entry in state["state"].items():
                torch.testing.assert_close(entry["momentum_buffer"], expected_state["state"][key]["momentum_buffer"])
                assert torch.equal(entry["momentum_buffer"], ranks[0][i][1]["state"][key]["momentum_buffer"])
            assert state["param_groups"] == expected_state["param_groups"]


# ----------------------------------------------------------------------------------------------------------------------
# parameter groups


def tiny_model(seed=0, gate="elementwise"):
    """The names and shapes of model.GPT, with a tied head registered twice; 2 blocks, n_embd 8."""
    torch.manual_seed(seed)
    nn = torch.nn

    def block():
        attn = nn.ModuleDict({"c_attn": nn.Linear(8, 24), "c_proj": nn.Linear(8, 8)})
        if gate == "const":
            attn.gate_table = nn.Parameter(torch.zeros(2, 4))
        elif gate:
            attn["gate"] = nn.Linear(8, 8 if gate == "elementwise" else 2, bias=False)
        mlp = nn.ModuleDict({"c_fc": nn.Linear(8, 32), "c_proj": nn.Linear(32, 8)})
        return nn.ModuleDict({"ln_1": nn.LayerNorm(8), "attn": attn, "ln_2": nn.LayerNorm(8), "mlp": mlp})

    transformer = {"wte": nn.Embedding(50, 8), "wpe": nn.Embedding(16, 8), "h": nn.ModuleList([block(), block()])}
    model = nn.Module()
    model.transformer = nn.ModuleDict({**transformer, "ln_f": nn.LayerNorm(8)})
    model.lm_head = nn.Linear(8, 50, bias=False)
    model.lm_head.weight = model.transformer["wte"].weight
    return model


def group_names(model, optimizers):
    names = {id(p): name for name, p in model.named_parameters()}
    return {group["name"]: {names[id(p)] for p in group["params"]} for o in optimizers for group in o.param_groups}


@pytest.mark.parametrize("gate", ["", "headwise", "elementwise", "const"])
def test_groups(gate):
    """Which weights decay and which Muon moves: adamw by dimension, muon the blocks' 2-D ones, muon_all all 2-D."""
    model = tiny_model(gate=gate)
    params = dict(model.named_parameters())
    two_d = {name for name, p in params.items() if p.ndim == 2}
    qkv = {f"transformer.h.{i}.attn.c_attn.weight" for i in range(2)}
    in_blocks = {name for name in two_d if ".h." in name}
    embeddings = {"transformer.wte.weight", "transformer.wpe.weight"}
    assert two_d == in_blocks | embeddings and len(in_blocks) == (10 if gate else 8)
    rest = set(params) - two_d
    adamw, hybrid, everything = (group_names(model, build_optimizers(model, optimizer=kind, learning_rate=0.01))
                                 for kind in ("adamw", "muon", "muon_all"))
    assert adamw == {"adamw_decay": two_d, "adamw_no_decay": rest}
    assert hybrid == {"muon_matrices": in_blocks - qkv, "muon_qkv": qkv,
                      "adamw_decay": embeddings, "adamw_no_decay": rest}
    assert everything == {"muon_matrices": two_d - qkv, "muon_qkv": qkv, "adamw_no_decay": rest}


def test_group_settings():
    """Learning rates, decays and betas as given, muon_lr 0.1 x learning_rate, frozen weights in no group."""
    model = tiny_model()
    model.transformer["wpe"].weight.requires_grad_(False)
    muon_part, adamw_part = build_optimizers(model, optimizer="muon", learning_rate=0.02, weight_decay=0.3, beta1=0.8,
                                             beta2=0.9, eps=1e-6, muon_weight_decay=0.01, muon_momentum=0.9,
                                             muon_scale="original")
    decay, no_decay = adamw_part.param_groups
    assert [g["name"] for g in adamw_part.param_groups] == ["adamw_decay", "adamw_no_decay"]
    assert (decay["lr"], decay["initial_lr"], decay["weight_decay"], no_decay["weight_decay"]) == (0.02, 0.02, 0.3, 0.0)
    assert decay["betas"] == (0.8, 0.9) and decay["eps"] == 1e-6 and decay["fused"]
    assert [p.shape for p in decay["params"]] == [(50, 8)]
    for group in muon_part.param_groups:
        assert group["lr"] == group["initial_lr"] == pytest.approx(0.002)
        assert (group["weight_decay"], group["momentum"], group["adjust_lr_fn"]) == (0.01, 0.9, "original")
    set_learning_rates([muon_part, adamw_part], 0.5)
    assert decay["lr"] == 0.01 and muon_part.param_groups[1]["lr"] == pytest.approx(0.001)
    assert decay["initial_lr"] == 0.02
    given = build_optimizers(model, optimizer="muon", learning_rate=0.02, muon_lr=0.0)
    assert given[0].param_groups[0]["lr"] == 0.0


def test_groups_of_the_real_model():
    """Every parameter of model.GPT, gpt2 and speedrun with each gate, is in one group; no c_attn escapes the split."""
    model_module = pytest.importorskip("model")
    for arch in ("gpt2", "speedrun"):
        for gate in ("none", "headwise", "elementwise", "const"):
            config = model_module.GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=16, arch=arch,
                                            attn_gate=gate)
            model = model_module.GPT(config)
            for kind in ("adamw", "muon", "muon_all"):
                names = group_names(model, build_optimizers(model, optimizer=kind, learning_rate=0.01))
                assert set().union(*names.values()) == set(dict(model.named_parameters()))
                if kind != "adamw":
                    assert len(names["muon_qkv"]) == 2 and all("c_attn" in name for name in names["muon_qkv"])


def test_bad_settings_are_named():
    """Wrong names and shapes: a ValueError with the allowed values."""
    for call, words in [
        (lambda: build_optimizers(tiny_model(), optimizer="sgd", learning_rate=1), "adamw, muon, muon_all"),
        (lambda: Muon(make_params(), adjust_lr_fn="rms"), "original, match_rms_adamw, sqrt_max"),
        (lambda: Muon(make_params([(4,)])), r"shape \(4,\)"),
        (lambda: Muon([{"params": make_params([(4, 4)]), "qkv": True}]), r"\(3 d, d\)"),
        (lambda: Muon(make_params(), rank=2, world_size=2), "rank 2"),
        (lambda: build_optimizers(torch.nn.LayerNorm(4), optimizer="muon", learning_rate=1), "no matrix"),
        (lambda: lr_multiplier(0, schedule="linear", max_steps=10), "cosine, trapezoid"),
        (lambda: lr_multiplier(0, max_steps=10, decay_frac=1.5), "between 0 and 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


# ----------------------------------------------------------------------------------------------------------------------
# schedules


def test_schedule_values():
    """The multiplier at the corners of both schedules."""
    cosine = [lr_multiplier(s, schedule="cosine", max_steps=30, warmup=10, decay_frac=0.1) for s in range(31)]
    assert cosine[0] == 0.1 and cosine[9] == 1.0 and cosine[10] == 1.0
    assert cosine[20] == pytest.approx(0.55) and cosine[30] == pytest.approx(0.1)
    trapezoid = [lr_multiplier(s, schedule="trapezoid", max_steps=30, warmup=5, warmdown=10) for s in range(31)]
    assert trapezoid[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and set(trapezoid[5:21]) == {1.0}
    assert trapezoid[21] == pytest.approx(0.9) and trapezoid[29] == pytest.approx(0.1) and trapezoid[30] == 0.0
    assert lr_multiplier(29, schedule="trapezoid", max_steps=30, warmdown=10, decay_frac=0.5) == pytest.approx(0.55)
    for schedule in ("cosine", "trapezoid"):
        assert lr_multiplier(0, schedule=schedule, max_steps=1) == 1.0
        assert lr_multiplier(99, schedule=schedule, max_steps=30, warmdown=10) == pytest.approx(0.0)
        assert lr_multiplier(9, schedule=schedule, max_steps=10, warmup=10) == 1.0


@pytest.mark.parametrize("decay_frac", [0.0, 0.1, 1.0])
def test_schedules_do_not_jump(decay_frac):
    """The largest change between two steps: the largest slope of the formula, whatever the corner (also warmup 0)."""
    for max_steps, warmup, warmdown in [(50, 0, 0), (50, 1, 1), (50, 10, 40), (50, 25, 25), (50, 0, 50), (50, 7, 13)]:
        cosine_steps = max(max_steps - warmup, 1)
        slopes = {"cosine": math.pi / 2 / cosine_steps, "trapezoid": 1 / warmdown if warmdown else 0.0}
        for schedule, decay_slope in slopes.items():
            m = [lr_multiplier(s, schedule=schedule, max_steps=max_steps, warmup=warmup, warmdown=warmdown,
                               decay_frac=decay_frac) for s in range(max_steps + 5)]
            bound = max(1 / warmup if warmup else 0.0, decay_slope * (1 - decay_frac)) + 1e-12
            assert max(abs(b - a) for a, b in zip(m, m[1:], strict=False)) <= bound
            assert max(m) == 1.0 and min(m) >= min(decay_frac, m[0]) - 1e-12
            assert m[0] == (1 / warmup if warmup else 1.0)


@pytest.mark.parametrize("schedule", ["cosine", "trapezoid"])
def test_warmup_and_warmdown_must_fit(schedule):
    """warmup + warmdown > steps: refused, with the three numbers."""
    with pytest.raises(ValueError, match="warmup 60 .* warmdown 50 .* 100 steps"):
        lr_multiplier(0, schedule=schedule, max_steps=100, warmup=60, warmdown=50)
    lr_multiplier(0, schedule=schedule, max_steps=110, warmup=60, warmdown=50)
