"""model.py beside plain references: Hugging Face, F.cross_entropy, and a speedrun block written out here."""

import json
import math
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F

import lab.loss
import model as m
from lab import compiling, hf, mechanisms
from lab.architecture import ARCHS
from model import GPT, GPTConfig

torch.set_num_threads(1)

TINY = dict(vocab_size=211, block_size=24, n_layer=2, n_head=4, n_embd=32, unused_ids=((90, 97),))
ARMS = [(g, p, a) for g in m.GATES for p in m.GATE_POSITIONS for a in m.GATE_ACTIVATIONS]


def batch(rows=3, length=24, vocab=90, seed=0):
    """idx and targets (rows, length), the first five targets of row 0 ignored."""
    tokens = torch.randint(0, vocab, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    targets = tokens[:, 1:].clone()
    targets[0, :5] = -100
    return tokens[:, :-1].contiguous(), targets


def lively(config, seed=0):
    """A model whose every weight matters: no zero projection, no zero bias."""
    net = GPT(config, seed=seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    return net


def plain_loss(net, idx, targets, denominator=None):
    """F.cross_entropy on full logits; the reference of the chunked loss."""
    logits = F.linear(net.hidden(idx), net.transformer["wte"].weight).flatten(0, 1)
    for first, last in net.config.masked_ranges:
        logits[:, first:last] = -math.inf
    total = F.cross_entropy(logits, targets.flatten(), reduction="sum")
    return total / (denominator or (targets != -100).sum())


def grads(net, loss):
    net.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def assert_same_grads(got, want, tol=1e-5):
    for name in want:
        gap = (got[name] - want[name]).abs().max().item()
        assert gap <= tol * max(1.0, want[name].abs().max().item()), f"{name}: {gap}"


# ----------------------------------------------------------------------------------------------------------------------
# configuration and counts


def test_parameter_count_is_gpt2():
    """124,439,808 parameters, and the gates' 110,592 and 7,077,888: the counts every table of arms reports."""
    with torch.device("meta"):
        counts = GPT(GPTConfig(vocab_size=50257)).num_params()
        assert counts == {"total": 124_439_808, "non_embedding": 124_439_808 - (50257 + 1024) * 768, "gate": 0,
                          "padding": 0}
        for gate, extra in (("headwise", 110_592), ("elementwise", 7_077_888), ("const", 12 * 768)):
            gated = GPT(GPTConfig(vocab_size=50257, attn_gate=gate)).num_params()
            assert (gated["gate"], gated["total"]) == (extra, 124_439_808 + extra)
        padded = GPT(GPTConfig(padded_vocab_size=50432)).num_params()
    assert padded["total"] == 124_439_808 + (50349 - 50257) * 768
    assert padded["padding"] == (50432 - 50349) * 768


def test_flops_formula():
    """FLOPs per token, hence mfu and the equal-FLOPs matching, count each matrix product once, padding never."""
    base = dict(vocab_size=50257, padded_vocab_size=50304)
    L, C, V, T = 12, 768, 50257, 512
    plain = 6 * (L * 12 * C * C + V * C) + 12 * L * C * T
    with torch.device("meta"):
        assert GPT(GPTConfig(**base)).flops_per_token(T) == plain
        assert GPT(GPTConfig(**base, attn_gate="headwise")).flops_per_token(T) == plain + 6 * 110_592
        assert GPT(GPTConfig(**base, attn_gate="const")).flops_per_token(T) == plain
        assert GPT(GPTConfig(**base, arch="speedrun", n_head=6)).flops_per_token(T) == plain


@pytest.mark.parametrize("wrong, says", [
    (dict(n_embd=32, n_head=5), "use n_head 1, 2, 4, 8, 16, 32"),
    (dict(n_embd=32, n_head=32, arch="speedrun"), "use n_head 1, 2, 4, 8, 16$"),
    (dict(arch="gpt3"), "unknown arch 'gpt3'; use one of gpt2, speedrun"),
    (dict(attn_gate="head"), "unknown attn_gate 'head'"),
    (dict(gate_pos="k"), "unknown gate_pos"),
    (dict(gate_act="relu"), "unknown gate_act"),
    (dict(n_layer=0), "n_layer is 0"),
    (dict(block_size=1.5), "block_size is 1.5"),
    (dict(padded_vocab_size=50000), "padded_vocab_size 50000 is below vocab_size 50349"),
])
def test_config_refuses(wrong, says):
    """A shape that cannot be built names the values that can."""
    with pytest.raises(ValueError, match=says):
        GPTConfig(**wrong)


def test_config_round_trip():
    """config.json gives the same shape back, the masked ids included."""
    config = GPTConfig(**TINY, padded_vocab_size=256, attn_gate="const", gate_pos="value")
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.masked_ranges == [(90, 97), (211, 256)]
    assert GPTConfig(vocab_size=50257).masked_ranges == []
    assert GPTConfig(padded_vocab_size=50432).masked_ranges == [(50257, 50304), (50349, 50432)]
    with pytest.raises(ValueError, match="dropout"):
        GPTConfig.from_dict({**config.to_dict(), "dropout": 0.1})


# ----------------------------------------------------------------------------------------------------------------------
# initial weights


@pytest.mark.parametrize("arch", ARCHS)
def test_shared_weights_are_bit_identical_across_arms(arch):
    """A gate, padding, the thread count and the global generator shift no shared initial weight by a bit."""
    base = GPT(GPTConfig(**TINY, arch=arch), seed=3).state_dict()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    for gate, pos, act in ARMS:
        torch.set_num_threads(2)
        arm = GPT(GPTConfig(**TINY, arch=arch, attn_gate=gate, gate_pos=pos, gate_act=act, padded_vocab_size=224),
                  seed=3)
        torch.set_num_threads(1)
        for name, value in arm.state_dict().items():
            if name == "transformer.wte.weight":
                assert torch.equal(value[:211], base[name]) and not value[211:].any()
            elif ".gate" not in name:
                assert torch.equal(value, base[name]), name
    assert torch.equal(torch.get_rng_state(), before)
    other = GPT(GPTConfig(**TINY, arch=arch), seed=4).state_dict()
    assert not torch.equal(other["transformer.wte.weight"], base["transformer.wte.weight"])


def test_init_scales():
    """Standard deviations of the initial weights: 0.02, 0.02 / sqrt(2 n_layer) into the residual, speedrun's zeros."""
    size = dict(vocab_size=3000, block_size=64, n_layer=8, n_head=4, n_embd=128)
    net = GPT(GPTConfig(**size, attn_gate="elementwise"))
    for name, p in net.named_parameters():
        if p.dim() == 2:
            std = 0.02 / 4 if "c_proj" in name else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.05) and abs(p.mean().item()) < std / 10, name
        else:
            assert torch.equal(p, torch.ones_like(p) if name.endswith("weight") else torch.zeros_like(p)), name
    net = GPT(GPTConfig(**size, arch="speedrun", attn_gate="const"))
    for name, p in net.named_parameters():
        if "c_proj" in name or "gate_table" in name:
            assert not p.any(), name
        else:
            assert p.std().item() == pytest.approx(1 / math.sqrt(3 * 128), rel=0.05), name


# ----------------------------------------------------------------------------------------------------------------------
# the network


def test_logits_equal_hugging_face_both_ways():
    """Logits against GPT2LMHeadModel to 1e-4; n_inner == n_embd makes every Conv1D but c_attn square, where a transpose
    chosen by shape would be missed."""
    transformers = pytest.importorskip("transformers")
    peer_config = transformers.GPT2Config(vocab_size=211, n_positions=24, n_embd=32, n_layer=2, n_head=4, n_inner=32,
                                        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, initializer_range=0.3)
    torch.manual_seed(0)
    peer = transformers.GPT2LMHeadModel(peer_config).eval()
    config = GPTConfig(**{**TINY, "unused_ids": ()}, n_inner=32)
    idx, _ = batch(vocab=211)
    with torch.no_grad():
        want = peer(idx).logits
        ours = hf.from_hf_state(GPT(config), peer.state_dict())
        assert (ours(idx) - want).abs().max() < 1e-4
        assert want.std() > 0.1  # not a comparison of zeros
        headless = {k.removeprefix("transformer."): v for k, v in peer.state_dict().items() if k != "lm_head.weight"}
        assert torch.equal(hf.from_hf_state(GPT(config), headless)(idx), ours(idx))

        net = lively(config, seed=5)
        peer.load_state_dict(hf.to_hf_state(net))
        assert (peer(idx).logits - net(idx)).abs().max() < 1e-4
    assert sum(p.numel() for p in peer.parameters()) == net.num_params()["total"]


def test_hugging_face_vocabulary_smaller_than_ours():
    """Imported rows keep their places, rows beyond are zero, and export drops the padding again."""
    small = lively(GPTConfig(**{**TINY, "vocab_size": 100}))
    state = hf.to_hf_state(small)
    big = hf.from_hf_state(GPT(GPTConfig(**TINY, padded_vocab_size=224)), state)
    wte = big.transformer["wte"].weight
    assert wte.shape == (224, 32) and torch.equal(wte[:100], state["lm_head.weight"]) and not wte[100:].any()
    assert hf.to_hf_state(big)["transformer.wte.weight"].shape == (211, 32)
    with pytest.raises(ValueError, match="use vocab_size=211"):
        hf.from_hf_state(GPT(GPTConfig(**{**TINY, "vocab_size": 100})), hf.to_hf_state(big))
    with pytest.raises(ValueError, match="attn_gate='none'"):
        hf.from_hf_state(GPT(GPTConfig(**TINY, attn_gate="const")), state)
    with pytest.raises(ValueError, match="no gate|without a gate"):
        hf.to_hf_state(GPT(GPTConfig(**TINY, arch="speedrun")))
    with pytest.raises(ValueError, match="transformer.ln_f.bias has shape None"):
        hf.from_hf_state(GPT(GPTConfig(**TINY)), {k: v for k, v in state.items() if "ln_f" not in k})


def test_speedrun_equals_plain_reference():
    """The speedrun arm's logits beside RoPE, QK-norm, RMSNorm and ReLU^2 written out with loops and no SDPA."""
    net = lively(GPTConfig(**{**TINY, "unused_ids": ()}, arch="speedrun")).double()
    idx, _ = batch(rows=2, length=11)
    H, dh = 4, 8

    def rms(x):
        return x / (x.pow(2).mean(-1, keepdim=True) + torch.finfo(torch.float64).eps).sqrt()

    def rotate(row, pos):  # row (dh,): pair i and i + dh/2 turn by -pos * 10000^(-2i/dh)
        out = row.clone()
        for i in range(dh // 2):
            angle = pos * 10000 ** (-2 * i / dh)
            z = torch.complex(row[i], row[i + dh // 2]) * complex(math.cos(angle), -math.sin(angle))
            out[i], out[i + dh // 2] = z.real, z.imag
        return out

    weights = dict(net.named_parameters())
    with torch.no_grad():
        x = weights["transformer.wte.weight"][idx]
        for layer in range(2):
            block = f"transformer.h.{layer}."
            q, k, v = (rms(x) @ weights[block + "attn.c_attn.weight"].T).split(32, dim=-1)
            y = torch.zeros_like(x)
            for b in range(2):
                for h in range(H):
                    cut = slice(h * dh, (h + 1) * dh)
                    qs = rms(torch.stack([rotate(q[b, t, cut], t) for t in range(11)]))
                    ks = rms(torch.stack([rotate(k[b, t, cut], t) for t in range(11)]))
                    for t in range(11):
                        y[b, t, cut] = (qs[t] @ ks[: t + 1].T / math.sqrt(dh)).softmax(0) @ v[b, : t + 1, cut]
            x = x + y @ weights[block + "attn.c_proj.weight"].T
            x = x + (rms(x) @ weights[block + "mlp.c_fc.weight"].T).relu() ** 2 @ weights[block + "mlp.c_proj.weight"].T
        want = rms(x) @ weights["transformer.wte.weight"].T
        got = net(idx)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("gate, pos, act", ARMS)
def test_gate_at_one_equals_none(arch, gate, pos, act, monkeypatch):
    """Logits of every gated arm: equal to `none` with the activation forced to 1, different from it without."""
    idx, _ = batch()
    base = lively(GPTConfig(**TINY, arch=arch))
    arm = GPT(GPTConfig(**TINY, arch=arch, attn_gate=gate, gate_pos=pos, gate_act=act))
    arm.load_state_dict(base.state_dict(), strict=False)
    with torch.no_grad():
        want, live = base(idx), arm(idx)
        monkeypatch.setitem(m.GATE_ACTIVATIONS, act, torch.ones_like)
        assert torch.equal(arm(idx), want)
    assert torch.equal(live, want) == (gate == "none")


@pytest.mark.parametrize("gate", ["headwise", "elementwise", "const"])
@pytest.mark.parametrize("pos", m.GATE_POSITIONS)
def test_gate_formula(gate, pos):
    """The gated attention's output from the formula: act(x Wg) on SDPA's output or on the values, ns_sigmoid >= 0.5."""
    net = lively(GPTConfig(**TINY, attn_gate=gate, gate_pos=pos, gate_act="ns_sigmoid"))
    attn = net.transformer["h"][0].attn
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        q, k, v = (z.view(2, 9, 4, 8).transpose(1, 2) for z in attn.c_attn(x).split(32, dim=-1))
        z = attn.gate_table if gate == "const" else (x @ attn.gate.weight.T).view(2, 9, 4, -1)
        g = (0.5 + 0.5 / (1 + (-z).exp())).expand(2, 9, 4, 8).transpose(1, 2)
        mask = torch.ones(9, 9).triu(1).bool()
        weights = (q @ k.mT / math.sqrt(8)).masked_fill(mask, -math.inf).softmax(-1)
        y = weights @ (v * g) if pos == "value" else (weights @ v) * g
        want = attn.c_proj(y.transpose(1, 2).reshape(2, 9, 32))
        assert (attn(x, m.Context()) - want).abs().max() < 1e-5
    assert g.min() >= 0.5


def test_a_line_in_a_table_is_an_activation(monkeypatch, capsys):
    """A new activation is computed as its line says (another one was trained silently before), a new gate as its entry
    says, checked against hand-made values; flags follow the tables, and a name that is in none cannot be built."""
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
    with pytest.raises(ValueError, match="unknown gate_act 'tanh'"):
        GPTConfig(**TINY, attn_gate="const", gate_act="tanh")
    monkeypatch.setitem(m.GATE_ACTIVATIONS, "tanh", torch.tanh)
    monkeypatch.setitem(m.GATES, "first", m.Gate("gate", lambda c: m.Linear(1, c.n_head), lambda gate, x, c:
                                                 gate(x[..., :1])[..., None]))
    attn = lively(GPTConfig(**TINY, attn_gate="first", gate_act="tanh")).transformer["h"][0].attn
    want = (x[..., :1] * attn.gate.weight[:, 0] + attn.gate.bias).tanh()
    assert torch.allclose(attn.gate_values(x)[..., 0], want, atol=1e-6) and want.min() < 0
    m.main(["--attn_gate", "first"])
    assert "gate parameters" in capsys.readouterr().out
    monkeypatch.setitem(m.GATES, "promised", None)  # listed, but nothing behind the name
    with pytest.raises(AttributeError):
        GPT(GPTConfig(**TINY, attn_gate="promised"))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("pos", m.GATE_POSITIONS)
def test_causality(arch, pos):
    """No logit before position t moves when token t changes; the logits from t on do."""
    net = lively(GPTConfig(**TINY, arch=arch, attn_gate="elementwise", gate_pos=pos))
    idx, _ = batch()
    changed = idx.clone()
    changed[:, 13] = (changed[:, 13] + 1) % 90
    with torch.no_grad():
        a, b = net(idx).nan_to_num(neginf=0), net(changed).nan_to_num(neginf=0)
    assert (a[:, :13] - b[:, :13]).abs().max() < 1e-5
    assert (a[:, 13:] - b[:, 13:]).abs().amax(-1).min() > 1e-4


def test_too_long_sequence_is_refused():
    """A sequence beyond block_size has no positions: an error, not wrapped ones."""
    for arch in ARCHS:
        with pytest.raises(ValueError, match="25 tokens but the model's block_size is 24"):
            GPT(GPTConfig(**TINY, arch=arch))(torch.zeros(1, 25, dtype=torch.long))


# ----------------------------------------------------------------------------------------------------------------------
# the loss


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("chunk", [1, 7, 24, 4096])
@pytest.mark.parametrize("scale, denominator", [(1.0, None), (-2.7, 40)])
def test_chunked_loss_and_gradients_equal_plain(arch, chunk, scale, denominator, monkeypatch):
    """Loss and every gradient to 1e-5, with ignored targets, padding ids, an upstream factor and any chunking."""
    monkeypatch.setitem(lab.loss.CHUNK_ROWS, "cpu", chunk)
    net = lively(GPTConfig(**TINY, arch=arch, padded_vocab_size=224, attn_gate="headwise"))
    idx, targets = batch()
    loss, want = net(idx, targets, denominator), plain_loss(net, idx, targets, denominator)
    assert loss.shape == () and abs(loss.item() - want.item()) < 1e-5
    got = grads(net, loss * scale)
    assert_same_grads(got, grads(net, want * scale))
    assert got["transformer.wte.weight"][211:].abs().max() == 0
    assert got["transformer.wte.weight"][90:97].abs().max() == 0  # padding ids: in no input, and never pushed down
    with torch.no_grad():
        assert abs(net(idx, targets, denominator).item() - want.item()) < 1e-5


def test_workspace_does_not_leak_between_losses(monkeypatch):
    """Gradients of the first of two losses, when both were formed before either backward, and after the
    workspace was first used under inference_mode. A second backward, whose gradients are gone, is an error."""
    monkeypatch.setattr(lab.loss, "_local", threading.local())
    net = lively(GPTConfig(**TINY))
    with torch.inference_mode():
        net.per_token_loss(*batch())
    (i1, t1), (i2, t2) = batch(seed=1), batch(rows=2, seed=2)
    want1, want2 = grads(net, plain_loss(net, i1, t1)), grads(net, plain_loss(net, i2, t2))
    a, b = net(i1, t1), net(i2, t2)
    net.per_token_loss(i2, t2)
    assert_same_grads(grads(net, a), want1)
    assert_same_grads(grads(net, b), want2)
    a, b = net(i1, t1), net(i2, t2)
    assert_same_grads(grads(net, a + b), {n: want1[n] + want2[n] for n in want1})
    a = net(i1, t1)
    a.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        a.backward()


def test_accumulated_micro_batches_equal_one_batch():
    """Gradients of 3 micro-batches that share one denominator equal the whole batch's: what accumulation relies on."""
    net = lively(GPTConfig(**TINY))
    idx, targets = batch()
    want = grads(net, net(idx, targets))
    net.zero_grad(set_to_none=True)
    n = (targets != -100).sum()
    for row in range(3):
        net(idx[row:row + 1], targets[row:row + 1], loss_denominator=n).backward()
    assert_same_grads({name: p.grad for name, p in net.named_parameters()}, want)


def test_loss_is_exact_where_probabilities_underflow():
    """A target 400 nats below the best one costs 400 nats, not infinity; all targets ignored cost 0."""
    x = torch.tensor([[20.0, 0.0], [-20.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[20.0, 0.0], [0.0, 1.0], [-20.0, 0.0]], requires_grad=True)
    for targets in ([1, 1], [2, 2], [0, 2]):
        t = torch.tensor(targets)
        loss = m.chunked_cross_entropy(x, weight, t)
        assert loss.item() == pytest.approx(F.cross_entropy(x @ weight.T, t).item(), rel=1e-6, abs=1e-6)
    loss = m.chunked_cross_entropy(x, weight, torch.tensor([-100, -100]))
    loss.backward()
    assert loss.item() == 0 and not weight.grad.any() and not x.grad.any()


def test_no_full_logits_in_training(monkeypatch):
    """The largest tensor of a training step is the tied matrix or one chunk of logits, never (B*T, vocab)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, (tuple, list)) else [out])
                         if isinstance(t, torch.Tensor) and t.layout == torch.strided)
            return out

    monkeypatch.setitem(lab.loss.CHUNK_ROWS, "cpu", 8)
    net = GPT(GPTConfig(**{**TINY, "n_embd": 8, "n_layer": 1}))
    idx, targets = batch(rows=8)
    with Sizes():
        net(idx, targets).backward()
    limit = max(211 * 8, 8 * 211, 8 * 24 * 32)  # weight, chunk, widest activation (n_inner)
    assert len(sizes) > 50 and max(sizes) <= limit < 8 * 24 * 211


@pytest.mark.parametrize("ids, rows", [(64, 4096), (4096, 7), (64, 7)])
def test_bfloat16_head_in_blocks(ids, rows, monkeypatch):
    """Gradients of the head's input and weight, a few ids and rows at once: within 1 % of those in float64 (bfloat16's
    rounding is half of it)."""
    monkeypatch.setattr(lab.loss, "IDS_AT_ONCE", ids)
    monkeypatch.setitem(lab.loss.CHUNK_ROWS, "cpu", rows)
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 16, generator=generator) for n in (20, 211))
    targets = torch.randint(0, 90, (20,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        _, *found = lab.loss.head_gradients(x, weight, targets, [(90, 97)])
    exact = [z.bfloat16().double().requires_grad_() for z in (x, weight)]
    logits = exact[0] @ exact[1].t()
    logits[:, 90:97] = -math.inf
    F.cross_entropy(logits, targets, reduction="sum").backward()
    for ours, z in zip(found, exact, strict=True):
        assert (ours.double() - z.grad).norm() < 0.01 * z.grad.norm()


def bfloat16_head(spread=1.0):
    """x (20, 16), weight (211, 16), targets (20,), and the logits (20, 211) fp32 that their bfloat16 products are; ids
    90 to 96 are padding."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (spread * torch.randn(n, 16, generator=generator) for n in (20, 211))
    logits = (x.bfloat16() @ weight.bfloat16().t()).float()
    logits[:, 90:97] = -math.inf
    return x, weight, torch.randint(0, 90, (20,), generator=generator), logits


@pytest.mark.parametrize("rows", [1, 5, 4096])
def test_bfloat16_logits_in_float32_for_a_few_rows_only(rows, monkeypatch):
    """Where no gradient is formed: the loss, to the last bit, with the softmax of any number of rows at once; and how
    many rows of fp32 logits are asked for: SOFTMAX_ROWS a thread, where all would be the largest tensor of a score."""
    x, weight, targets, logits = bfloat16_head()
    asked = []
    workspace = lab.loss.workspace
    monkeypatch.setattr(lab.loss, "workspace", lambda n, *rest: asked.append(n) or workspace(n, *rest))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def nll(at_once):
        monkeypatch.setattr(lab.loss, "SOFTMAX_ROWS", at_once)
        with torch.autocast("cpu", torch.bfloat16):
            return lab.loss.chunked_cross_entropy(x, weight, targets, [(90, 97)], reduce=False)

    assert torch.equal(nll(rows), nll(7))
    assert asked == [min(20, 2 * rows), 14]
    assert (nll(1) - F.cross_entropy(logits, targets, reduction="none")).abs().max() < 1e-5


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_bfloat16_gradient_of_a_sure_prediction(spread):
    """The gradient in the logits, of targets at random and of each row's likeliest: within two roundings to bfloat16
    of the exact p and, at the target, of p - 1, also where p rounds to 1; the loss within 0.004."""
    x, weight, random, logits = bfloat16_head(spread)
    for targets in (random, logits.argmax(1)):
        nll, found = lab.loss._softmax_rows(x.bfloat16(), weight.bfloat16(), targets[:, None], [(90, 97)], True)
        exact = torch.softmax(logits.double(), 1)
        exact[range(20), targets] = 0.0
        exact[range(20), targets] = -exact.sum(1)
        assert found.dtype == torch.bfloat16
        assert ((found - exact).abs() <= 0.008 * exact.abs() + 1e-30).all()
        assert (nll - F.cross_entropy(logits, targets, reduction="none")).abs().max() < 0.004
    assert spread < 3.0 or (exact[range(20), targets] > -0.002).any()  # the case that this is about


def test_padding_ids_are_never_scored():
    """Logits of padding ids are -inf and the probabilities of the rest sum to 1; a padding target costs infinity."""
    net = lively(GPTConfig(**TINY, padded_vocab_size=224))
    idx, targets = batch()
    with torch.no_grad():
        logits = net(idx)
        masked = list(range(90, 97)) + list(range(211, 224))
        assert logits.shape == (3, 24, 224) and (logits[..., masked] == -math.inf).all()
        assert torch.isfinite(logits).sum() == 3 * 24 * (224 - len(masked))
        everything = torch.stack([net.per_token_loss(idx, torch.full_like(idx, t)) for t in range(224)])
    assert (everything[masked] == math.inf).all()
    assert (torch.exp(-everything).sum(0) - 1).abs().max() < 1e-5


def test_per_token_loss():
    """Each token's NLL beside log_softmax, 0 where ignored, the same to 1e-5 alone or in any batch, with any chunk."""
    net = lively(GPTConfig(**TINY))
    idx, targets = batch(rows=5)
    nll = net.per_token_loss(idx, targets)
    with torch.no_grad():
        want = F.cross_entropy(net(idx).transpose(1, 2), targets, reduction="none")
    assert nll.shape == targets.shape and nll.dtype == torch.float32 and not nll.requires_grad
    assert (nll - want).abs().max() < 1e-5 and not nll[0, :5].any()
    alone = torch.cat([net.per_token_loss(idx[i:i + 1], targets[i:i + 1]) for i in range(5)])
    assert (nll - alone).abs().max() < 1e-5
    short = net.per_token_loss(idx[:, :9], targets[:, :9])
    assert (nll[:, :9] - short).abs().max() < 1e-5
    assert net(idx, targets).item() == pytest.approx((nll.sum() / (targets != -100).sum()).item(), abs=1e-5)


def test_bf16_autocast_loss_and_gradients():
    """Under bf16 autocast the loss stays within bf16 rounding (2 %) of fp32, its gradients within 6 % in norm."""
    net = lively(GPTConfig(**TINY, padded_vocab_size=224, attn_gate="const"))
    idx, targets = batch()
    want_loss = net(idx, targets)
    want = grads(net, want_loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net(idx, targets)
        nll = net.per_token_loss(idx, targets)
    got = grads(net, loss)
    assert loss.dtype == nll.dtype == torch.float32
    assert loss.item() == pytest.approx(want_loss.item(), rel=0.02)
    assert nll.sum().item() / (targets != -100).sum().item() == pytest.approx(loss.item(), rel=1e-4)
    for name in want:
        assert got[name].dtype == torch.float32
        assert (got[name] - want[name]).norm() < 0.06 * want[name].norm() + 1e-6, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_bf16_loss_and_gradients(compiled, monkeypatch):
    """The same on a GPU, with the softmax compiled or not: the training precision of every reported run."""
    monkeypatch.setattr(lab.loss, "compiled", {})
    if compiled:
        lab.loss.compile_softmax()
    net = lively(GPTConfig(**TINY, padded_vocab_size=224, attn_gate="headwise"))
    idx, targets = batch()
    want_loss = net(idx, targets).item()
    want = grads(net, net(idx, targets))
    net, idx, targets = net.cuda(), idx.cuda(), targets.cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = net(idx, targets)
    got = grads(net, loss)
    assert loss.item() == pytest.approx(want_loss, rel=0.02)
    for name in want:
        assert (got[name].cpu() - want[name]).norm() < 0.06 * want[name].norm() + 1e-6, name


@pytest.mark.slow
@pytest.mark.skipif(bool(compiling.missing_compiler(torch.device("cpu"))),
                    reason="torch.compile needs a C++ compiler and none is on the PATH")
@pytest.mark.parametrize("arch", ARCHS)
def test_compiled_equals_eager(arch):
    """Losses and gradients under torch.compile (the graph breaks at the loss) equal the eager ones to 1e-5."""
    net = lively(GPTConfig(**{**TINY, "n_layer": 1}, arch=arch, attn_gate="headwise"))
    idx, targets = batch()
    want_loss = net(idx, targets)
    want = grads(net, want_loss)
    loss = torch.compile(net)(idx, targets)
    assert abs(loss.item() - want_loss.item()) < 1e-5
    assert_same_grads(grads(net, loss), want)


# ----------------------------------------------------------------------------------------------------------------------
# gate statistics, files


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("gate", m.GATES)
def test_gate_stats(arch, gate):
    """Per layer: gate mean, quantiles, share below 0.1, first-token attention share, largest activation, beside their
    definitions; no trace left."""
    net = lively(GPTConfig(**TINY, arch=arch, attn_gate=gate))
    with torch.no_grad():
        for block in net.transformer["h"]:
            if gate in ("headwise", "elementwise"):
                block.attn.gate.weight.mul_(10)
            elif gate == "const":
                block.attn.gate_table[:2] = -4.0
    idx, targets = batch()
    before = net(idx, targets).item()
    seen = []
    watch = lambda attn, args, out: seen.append((attn, args))
    hooks = [block.attn.register_forward_hook(watch) for block in net.transformer["h"]]
    largest = []
    hooks += [block.register_forward_hook(lambda _, args, out: largest.append(out.abs().max().item()))
              for block in net.transformer["h"]]
    with torch.no_grad():
        net(idx)
    for hook in hooks:
        hook.remove()
    stats = mechanisms.gate_stats(net, idx)
    assert len(stats) == 2 and net(idx, targets).item() == before and all(p.grad is None for p in net.parameters())
    assert [layer["largest_activation"] for layer in stats] == pytest.approx(largest, abs=1e-5)
    for layer, (attn, (x, context)) in zip(stats, seen, strict=True):
        with torch.no_grad():
            g = attn.gate_values(x)
            q, k, _ = attn.qkv(x, context)
            first = torch.zeros(24, 8)
            first[0] = 1  # values that are 1 at position 0 only: SDPA's output is the share paid to it
            v = first.expand(3, 4, 24, 8)
            share = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v, is_causal=True)[:, :, 1:]
        assert layer["first_token_attention"] == pytest.approx(share.mean().item(), abs=1e-6)
        if gate == "none":
            assert set(layer) == {"first_token_attention", "largest_activation"}
        else:
            exact = torch.quantile(g.float(), torch.tensor(mechanisms.GATE_QUANTILES), interpolation="nearest")
            assert layer["gate_quantiles"] == pytest.approx(exact.tolist(), abs=1e-6)
            assert layer["gate_mean"] == pytest.approx(g.mean().item(), abs=1e-6)
            below = (g < 0.1).float().mean().item()
            assert layer["gate_share_below_0.1"] == pytest.approx(below, abs=1e-6) and below > 0.02


def test_save_and_load(tmp_path):
    """Weights and configuration come back bit for bit, the tied matrix stored once."""
    net = lively(GPTConfig(**TINY, padded_vocab_size=224, attn_gate="elementwise", arch="speedrun"))
    net.save(tmp_path / "a" / "b")
    back = GPT.load(tmp_path / "a" / "b")
    assert back.config == net.config
    idx, targets = batch()
    assert torch.equal(back(idx), net(idx)) and back(idx, targets).item() == net(idx, targets).item()
    size = (tmp_path / "a" / "b" / "model.safetensors").stat().st_size
    assert size < 4 * sum(p.numel() for p in net.parameters()) + 4096


def test_load_refuses(tmp_path):
    """Each broken folder is one sentence that ends with what to do."""
    net = GPT(GPTConfig(**TINY))
    with pytest.raises(FileNotFoundError, match="has no model.json; pass a folder"):
        GPT.load(tmp_path / "nowhere")

    def broken(name, change):
        folder = tmp_path / name
        net.save(folder)
        change(folder)
        with pytest.raises((ValueError, FileNotFoundError)) as e:
            GPT.load(folder)
        assert "\n" not in str(e.value)
        return str(e.value)

    def edit(**changes):
        def change(folder):
            meta = json.loads((folder / "model.json").read_text())
            (folder / "model.json").write_text(json.dumps({**meta, **changes}))
        return change

    config = net.config.to_dict()
    assert "no model.safetensors" in broken("a", lambda f: (f / "model.safetensors").unlink())
    assert "not readable as JSON" in broken("b", lambda f: (f / "model.json").write_text("{"))
    assert "version 1 (found" in broken("c", edit(version=2)) and "found" in broken("d", edit(format="nanogpt"))
    assert "found" in broken("e", lambda f: (f / "model.json").write_text("[1]"))
    assert "unknown entries (dropout)" in broken("f", edit(config={**config, "dropout": 0}))
    assert "shape (24, 32), the configuration says (25, 32)" in broken("g", edit(config={**config, "block_size": 25}))
    assert "transformer.h.2" in broken("h", edit(config={**config, "n_layer": 3}))
    assert "damaged" in broken("i", lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100))
    cut = lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-50])
    assert "damaged" in broken("j", cut)


def test_command_line():
    """The printed counts are num_params' and flops_per_token's; a bad shape is one sentence, exit 1."""
    run = lambda *args: subprocess.run([sys.executable, m.__file__, *args], capture_output=True, text=True)
    out = run("--vocab_size", "50257")
    assert out.returncode == 0 and "124,439,808" in out.stdout and "854,438,400" in out.stdout
    bad = run("--n_head", "7")
    assert bad.returncode == 1 and "use n_head 1, 2, 3, 4, 6, 8, 12" in bad.stderr and "Traceback" not in bad.stderr


def test_weights_that_are_no_numbers(tmp_path):
    """NaN or infinity in a checkpoint, which would make every score of it NaN: one sentence with the weight's name."""
    for value in (math.nan, -math.inf):
        net = GPT(GPTConfig(**TINY))
        with torch.no_grad():
            net.transformer["wpe"].weight[3, 1] = value
        net.save(tmp_path)
        with pytest.raises(ValueError, match="transformer.wpe.weight holds NaN or infinity"):
            GPT.load(tmp_path)
