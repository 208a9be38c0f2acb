"""Fast weights: what a write is, that it happens after the score, and that nothing but the sequence itself matters."""

import json
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lab import chunks, hf, memory, memory_settings
from lab.architecture import ARCHS, build
from lab.inference import generate, score_endings
from lab.loss import head_gradients
from model import GPT, GPTConfig, Linear

ARMS = [("titan", "stop"), ("hope_attention", "stop"), ("hope_attention", "through"), ("hope", "through")]
SMALL = dict(vocab_size=101, unused_ids=(), block_size=64, n_layer=3, n_head=2, n_embd=16, memory_layers=2)


def settings(arm, write="stop", **more):
    """Of a small model: periods of 8 tokens."""
    values = dict(memory=arm, write=write)
    if arm != "titan":
        values["cms_periods"] = (8, 0)
    if arm != "hope_attention":
        values["titan_period"] = 8
    if arm == "hope":
        values["self_modifier"] = "on"
    return SMALL | values | more


def make(arm, write="stop", arch="gpt2", **more):
    """A model without zero matrices, so that everything has an effect."""
    model = GPT(GPTConfig(arch=arch, **settings(arm, write, **more)), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if p.dim() == 2 and "wte" not in name:
            torch.nn.init.normal_(p, std=0.2, generator=generator)
    return model


def tokens(rows=3, length=64, seed=2):
    """idx, targets (rows, length)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 101, (rows, length + 1), generator=generator)
    return ids[:, :-1], ids[:, 1:]


def exact_head(x, weight, targets, masked_ranges, with_weight=True):
    """loss.head_gradients in fp64."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    with torch.enable_grad():
        nll = F.cross_entropy(x @ weight.T, targets, reduction="none", ignore_index=-100)
        grads = torch.autograd.grad(nll.sum(), [x, weight])
    return nll.detach(), *grads


@pytest.fixture
def fp64_loss(monkeypatch):
    monkeypatch.setattr(chunks, "head_gradients", exact_head)


each_arm = pytest.mark.parametrize(("arm", "write"), ARMS)
each_arch = pytest.mark.parametrize("arch", ARCHS)
both_archs = pytest.mark.parametrize("arch", ["gpt2", "speedrun"])

# ----------------------------------------------------------------------------------------------------------------------
# one write


@each_arch
def test_closed_form_is_the_gradient(arch):
    """g1 and g2 are autograd's gradients of the sum of <delta, y> in the fast weights, in fp64."""
    config = GPTConfig(arch=arch, **SMALL)
    level = memory.Level(config, build(config), Linear, 24, period=8).double()
    for p in level.parameters():
        torch.nn.init.normal_(p, std=0.3)
    pair = tuple(torch.randn(3, *shape, dtype=torch.float64).requires_grad_() for shape in ((16, 24), (24, 16)))
    x, delta = torch.randn(2, 3, 8, 16, dtype=torch.float64)
    seen = level(x, memory.Fast(pair))
    expected = torch.autograd.grad((seen.y * delta).sum(), pair, retain_graph=True)
    for g, wanted in zip(memory.gradients(seen, delta), expected, strict=True):
        torch.testing.assert_close(g, wanted, rtol=1e-12, atol=1e-12)


@both_archs
def test_a_period_of_two_chunks_adds_up(arch):
    """Two chunks of 8 tokens write what one chunk of 16 does."""
    config = GPTConfig(**settings("hope_attention", inner_clip=0.0, cms_periods=(16, 0)), arch=arch)
    level = memory.Level(config, build(config), Linear, 24, period=16).double()
    for p in level.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, delta = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    whole, halves = memory.Fast(), memory.Fast()
    memory.accumulate(level(x, whole), delta, config)
    for part in (slice(8), slice(8, 16)):
        assert halves.pair is None
        memory.accumulate(level(x[:, part], halves), delta[:, part], config)
    for one, other in zip(whole.pair, halves.pair, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_period_of_two_chunks_forgets_the_mean(fp64_loss):
    """The Titans memory with a period of 8 tokens, whether CMS levels that write nothing make chunks of 4 or of 8: the
    same losses and the same gradient of what is forgotten, which is much and differs from token to token."""
    losses, grads = [], []
    for chunk in (4, 8):
        more = dict(cms_periods=(chunk, 0), cms_widths=(8, 8), teach_scale=(0.0,), inner_lr=2.0)
        model, (idx, targets) = make("hope", **more).double(), tokens()
        alphas = [model.transformer["h"][i].memory.titan.alpha for i in (1, 2)]
        with torch.no_grad():
            for alpha in alphas:
                alpha.copy_(2 * torch.randn(16, generator=torch.Generator().manual_seed(4)))
        model(idx, targets).backward()
        losses.append(model.per_token_loss(idx, targets))
        grads.append(torch.cat([alpha.grad for alpha in alphas]))
    assert grads[0].abs().max() > 1e-6
    torch.testing.assert_close(*losses, rtol=0, atol=1e-12)
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


@each_arch
def test_a_write_lowers_the_loss_of_its_own_chunk(arch, fp64_loss):
    """By rate x |gradient|^2, as a step down the gradient does: the sign and the scale are right."""
    rate = 1e-4
    model = make("hope_attention", arch=arch, inner_lr=rate, inner_clip=0.0).double()
    idx, targets = tokens(length=8)
    reading = chunks.Reading(model)
    hidden = reading.read(idx)
    before, signal, _ = exact_head(hidden.flatten(0, 1), model.transformer["wte"].weight, targets.flatten(), ())
    reading.write(hidden, signal.view(hidden.shape))
    squares = torch.zeros(3, dtype=torch.float64)
    for layer in reading.layers.values():
        for fast in layer.by_level.values():
            squares += sum((w / rate).square().sum((1, 2)) for w in fast.pair)
    reading.restart_window()
    again = reading.read(idx)
    after, _, _ = exact_head(again.flatten(0, 1), model.transformer["wte"].weight, targets.flatten(), ())
    gain = (before - after).view(3, -1).sum(1)
    # the step is rate x the mean gradient of 8 tokens, the loss is their sum
    torch.testing.assert_close(gain, 8 * rate * squares, rtol=0.02, atol=0)


@each_arch
def test_a_titan_write_brings_values_closer(arch):
    """|M(k) - v|^2 of the chunk falls for every sequence."""
    model = make("titan", arch=arch, inner_lr=0.1).double()
    x = torch.randn(3, 8, 16, dtype=torch.float64)
    titan, layer = model.transformer["h"][-1].memory.titan, memory.LayerMemory()
    u = titan.ln_1(x)

    def distance():
        k = F.rms_norm(titan.key(u), (16,))
        error = titan.level(k, layer.fast("titan")).y - titan.value(u)
        return error.square().sum((1, 2))

    with torch.no_grad():
        before = distance()
        titan.write(u, layer)
        assert (distance() < before).all()


# ----------------------------------------------------------------------------------------------------------------------
# reading


def read_unwritten(model, idx):
    """Hidden states of idx (B, T), chunk by chunk, when nothing is ever written."""
    reading = chunks.Reading(model)
    with torch.no_grad():
        return torch.cat([reading.read(part, for_write=False) for part in idx.split(8, 1)], 1)


@each_arm
@each_arch
def test_rate_zero_is_the_static_model(arm, write, arch):
    """Bit for bit in chunks, and to rounding in one pass."""
    model, (idx, targets) = make(arm, write, arch, inner_lr=0.0), tokens()
    with torch.no_grad():
        written = chunks.hidden(model, idx)
    assert torch.equal(written, read_unwritten(model, idx))
    nll = model.per_token_loss(idx, targets)
    torch.testing.assert_close(nll, model.per_token_loss(idx, targets, write=False), rtol=0, atol=1e-5)


@each_arm
@each_arch
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_chunks_carry_keys_exactly(arm, write, arch, dtype, most):
    """Chunk by chunk = one pass."""
    model, (idx, _) = make(arm, write, arch).to(dtype), tokens()
    with torch.no_grad():
        whole = model.hidden(idx, write=False)
    assert (read_unwritten(model, idx) - whole).norm() < most * whole.norm()


@each_arm
@both_archs
def test_a_batch_of_3_is_3_batches_of_1_in_fp64(arm, write, arch, fp64_loss):
    model, (idx, targets) = make(arm, write, arch).double(), tokens()
    together = model.per_token_loss(idx, targets)
    alone = torch.cat([model.per_token_loss(x[None], y[None]) for x, y in zip(idx, targets, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@each_arm
@each_arch
def test_nothing_but_the_sequence_matters(arm, write, arch):
    """A batch of 3 = 3 batches of 1; train() = eval(); the loss trained on = the loss of validation."""
    model, (idx, targets) = make(arm, write, arch), tokens()
    together = model.per_token_loss(idx, targets)
    assert not torch.allclose(together, model.per_token_loss(idx, targets, write=False), atol=1e-4)
    alone = torch.cat([model.per_token_loss(x[None], y[None]) for x, y in zip(idx, targets, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)
    assert torch.equal(together, model.eval().per_token_loss(idx, targets))
    torch.testing.assert_close(model.train()(idx, targets), together.mean(), rtol=1e-6, atol=1e-6)


@each_arm
@both_archs
def test_a_token_is_scored_before_it_is_written(arm, write, arch):
    """A marker at position 20 changes no score before it, and as a target only its own score in its chunk."""
    model, (idx, targets) = make(arm, write, arch), tokens()
    before = model.per_token_loss(idx, targets)
    marked, marked_targets = idx.clone(), targets.clone()
    marked[:, 20], marked_targets[:, 19] = 7, 7
    after = model.per_token_loss(marked, marked_targets)
    assert torch.equal(before[:, :19], after[:, :19])
    only_target = model.per_token_loss(idx, marked_targets)
    same = (before == only_target)[:, :24].all(0)
    assert same.tolist() == [i != 19 for i in range(24)]
    if arm != "titan":  # which is written without targets
        assert not torch.equal(before[:, 24:], only_target[:, 24:])


@each_arm
def test_logits_are_those_of_the_loss(arm, write):
    """model(idx) reads and writes the same chunks as the loss of the next tokens."""
    model, (idx, targets) = make(arm, write), tokens()
    logits = model(idx)
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(idx.shape)
    torch.testing.assert_close(nll, model.per_token_loss(idx, targets), rtol=0, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# training


@pytest.mark.parametrize(("arm", "write", "more"), [
    *((*arm, {}) for arm in ARMS), ("hope", "stop", {}), ("hope", "off", {}), ("hope_attention", "off", {}),
    ("titan", "stop", dict(inner_lr_learned=True)), ("hope", "through", dict(inner_lr_learned=True)),
    ("hope_attention", "through", dict(inner_lr_learned=True, cms_periods=(8, 16, 0))),
    ("hope", "stop", dict(self_modifier="frozen"))])
@each_arch
def test_every_parameter_has_a_gradient(arm, write, more, arch):
    """Of those that are trained: all but a frozen self-modifier's."""
    model, (idx, targets) = make(arm, write, arch, **more), tokens()
    model(idx, targets).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) < len(list(model.parameters())) or more.get("self_modifier") != "frozen"
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []


THROUGH = ("levels.0.c_fc.weight levels.0.c_proj.weight attn.c_attn.weight titan.key.weight titan.value.weight "
           "titan.eta titan.alpha titan.level.c_fc.weight titan.modifier.c_proj.weight").split()


@both_archs
@pytest.mark.parametrize("arm", ["titan", "hope_attention", "hope"])
def test_through_is_the_gradient_with_delta_held(arm, arch, fp64_loss, monkeypatch):
    """write through: finite differences of the loss, with the teach signals of the unchanged model. The Titans memory's
    own signals are differentiated, too."""
    model, (idx, targets) = make(arm, "through", arch).double(), tokens(rows=2, length=24)
    deltas, original = [], memory.teach

    def remember(*args):
        deltas.append(original(*args).detach())
        return deltas[-1]

    monkeypatch.setattr(memory, "teach", remember)
    model(idx, targets).backward()

    def loss_with_these():
        left = iter(deltas)
        monkeypatch.setattr(memory, "teach", lambda *_: next(left))
        with torch.enable_grad():
            return chunks.loss(model, idx, targets).item()

    for name, p in model.named_parameters():
        if name.endswith(tuple(THROUGH)):
            direction = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(3))
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    p.add_(direction, alpha=sign * 1e-5)
                losses.append(loss_with_these())
                with torch.no_grad():
                    p.add_(direction, alpha=-sign * 1e-5)
            slope = (losses[0] - losses[1]) / 2e-5
            assert (p.grad * direction).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-8), name


def test_stop_has_another_gradient_than_through():
    """The same loss, but in stop no gradient flows through the writes."""
    grads, losses = [], []
    for write in ("stop", "through"):
        model, (idx, targets) = make("hope_attention", write), tokens()
        loss = model(idx, targets)
        loss.backward()
        losses.append(loss.item())
        grads.append(model.transformer["h"][1].memory.levels[0].c_fc.weight.grad)
    assert losses[0] == losses[1]
    assert not torch.allclose(*grads, atol=1e-5)


@each_arm
def test_gradients_add_up_over_micro_batches(arm, write):
    """Micro-batches of 1 and of 3 sequences give the same gradient."""
    idx, targets = tokens()
    grads = []
    for size in (1, 3):
        model = make(arm, write)
        for x, y in zip(idx.split(size), targets.split(size), strict=True):
            model(x, y, loss_denominator=idx.numel()).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


@each_arch
@pytest.mark.parametrize("arm", ["titan", "hope_attention", "hope"])
def test_parameters_are_matched(arm, arch):
    """To 0.5 % of a model without memory."""
    shape = dict(arch=arch, n_layer=4, n_head=4, n_embd=128)
    sizes = [GPT(GPTConfig(memory=name, **shape)).num_params()["total"] for name in ("none", arm)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.005)


@pytest.mark.parametrize(("change", "word"), [
    (dict(cms_periods=(12, 8, 0)), "multiple"), (dict(cms_periods=(64, 0)), "never read"),
    (dict(cms_periods=(0,)), "above 0"), (dict(cms_periods=(8, 16)), "cms_widths"),
    (dict(cms_widths=(8,)), "one of at least 1 per level"), (dict(memory="ttt"), "hope_attention"),
    (dict(write="through", inner_optimizer="rank1"), "write stop"), (dict(inner_lr_learned=True), "write through"),
    (dict(self_modifier="on"), "memory hope"), (dict(inner_decay=1.0), "below 1"), (dict(inner_lr=-1.0), "0 or more"),
    (dict(inner_lr=float("nan")), "0 or more"), (dict(teach_scale=(1.0, 2.0)), "one each"),
    (dict(memory_layers=9), "3 blocks"), (dict(memory_layers="2"), "memory_layers is '2'"),
    (dict(cms_periods=8), "list of numbers"), (dict(cms_periods=("8", 0)), "list of numbers"),
    (dict(inner_lr=None), "inner_lr is None"), (dict(inner_lr_learned=1), "like False"),
    (dict(memory="titan", titan_period=64, cms_periods=()), "never read"),
    (dict(memory="hope", titan_period=12), "multiple"),
    (dict(memory="titan", titan_width=500, titan_period=8, cms_periods=()), "lower titan_width"),
])
def test_impossible_settings_are_a_sentence(change, word):
    with pytest.raises(ValueError, match=word):
        GPTConfig(**settings("hope_attention") | change)


def test_a_configuration_without_memory_opens():
    """A model.json of before there was a memory."""
    values = GPTConfig().to_dict()
    older = {name: value for name, value in values.items() if not hasattr(memory_settings.Settings, name)}
    assert len(older) < len(values)
    assert GPTConfig.from_dict(older) == GPTConfig()


def test_an_older_checkpoint_opens(tmp_path):
    """A folder that was saved before there was a memory: the same losses."""
    model, (idx, targets) = GPT(GPTConfig(**SMALL | dict(memory_layers=0))), tokens()
    model.save(tmp_path)
    meta = json.loads((tmp_path / "model.json").read_text())
    config = {name: value for name, value in meta["config"].items() if not hasattr(memory_settings.Settings, name)}
    (tmp_path / "model.json").write_text(json.dumps(meta | {"config": config}))
    assert torch.equal(GPT.load(tmp_path).per_token_loss(idx, targets), model.per_token_loss(idx, targets))


@pytest.mark.parametrize("arm", ["titan", "hope_attention", "hope"])
def test_a_memory_has_no_hugging_face_form(arm):
    with pytest.raises(ValueError, match="without a memory has a Hugging Face form; use GPT.save"):
        hf.to_hf_state(make(arm))


@pytest.mark.parametrize("arm", ["titan", "hope_attention", "hope"])
def test_checkpoints_bring_the_memory_back(arm, tmp_path):
    model, (idx, targets) = make(arm), tokens()
    model.teach_factor.fill_(0.5)
    model.save(tmp_path)
    loaded = GPT.load(tmp_path)
    assert torch.equal(loaded.per_token_loss(idx, targets), model.per_token_loss(idx, targets))


# ----------------------------------------------------------------------------------------------------------------------
# knobs and controls


@pytest.mark.parametrize("change", [
    dict(teach_scale=(0.5,)), dict(teach_clip=1e-3), dict(surprise_threshold=0.5), dict(inner_clip=1e-3),
    dict(inner_decay=0.5), dict(inner_optimizer="momentum"), dict(inner_optimizer="rank1"), dict(inner_lr=0.5),
    dict(cms_periods=(16, 0)), dict(cms_periods=(8, 16, 0))])
def test_every_setting_changes_the_loss(change):
    idx, targets = tokens()
    base, other = (make("hope_attention", **more).per_token_loss(idx, targets) for more in ({}, change))
    assert not torch.equal(base, other)


@both_archs
@pytest.mark.parametrize(("arm", "change", "expected"), [
    ("hope_attention", {}, 7), ("hope_attention", dict(surprise_threshold=1e9), 0),
    ("hope_attention", dict(inner_lr=0.0), 0), ("hope_attention", dict(teach_scale=(0.0,)), 0),
    ("titan", {}, 7), ("titan", dict(inner_lr=0.0), 0)])
def test_writes_are_counted_when_their_norm_is_above_zero(arm, change, expected, arch):
    """7 writes of 8 tokens in 64 (the last one would not be read); none when every token is gated or the rate is 0."""
    model, (idx, targets) = make(arm, arch=arch, **change), tokens()
    reading = chunks.Reading(model)
    for _ in chunks.score(reading, idx, targets):
        pass
    rows = memory.records(reading.layers, model.transformer["h"])
    assert [row["layer"] for row in rows] == [1, 2]
    assert [row["updates"] for row in rows] == [expected] * 2
    assert all((row["delta_over_theta"] > 0) == (expected > 0) for row in rows)
    assert all((row["update_norm"] > 0) == (expected > 0) for row in rows)


def test_controls_keep_the_norm_and_lose_the_text():
    """random: other numbers, same norm; other: the writes of the sequence before."""
    step = torch.randn(3, 5, 4), torch.randn(3, 4, 5)
    for alter in (memory.random_steps(torch.Generator().manual_seed(0)), memory.other_steps):
        altered = alter(*step)
        assert not torch.allclose(altered[0], step[0])
        for one, other in zip(step, altered, strict=True):
            norms = [g.flatten(1).norm(dim=1).sort().values for g in (one, other)]
            torch.testing.assert_close(*norms)
    with pytest.raises(ValueError, match="at least two"):
        memory.other_steps(step[0][:1])


# ----------------------------------------------------------------------------------------------------------------------
# what a step costs


class Products(TorchDispatchMode):
    """Counts the FLOPs of matrix products, and attention's forward and backward passes, of which each is one kernel."""

    def __init__(self):
        super().__init__()
        self.flops = self.attention_forward = self.attention_backward = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result, name = op(*args, **(kwargs or {})), op.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "addmm_", "baddbmm"):
            *_, a, b = args
            self.flops += 2 * a.numel() * b.size(-1)
        elif "scaled_dot_product" in name and name.endswith("backward"):
            self.attention_backward += 1
        elif "scaled_dot_product" in name:
            self.attention_forward += 1
        return result


def counted_step(model, length) -> list[int]:
    """FLOPs of products, attention's forward and its backward passes of a training step on one row of length tokens."""
    idx, targets = tokens(rows=1, length=length)
    with Products() as counted:
        model(idx, targets).backward()
    return [counted.flops, counted.attention_forward, counted.attention_backward]


@pytest.mark.parametrize("shape", [
    dict(arch="gpt2"), dict(arch="speedrun", n_layer=4, n_embd=48, n_head=3, memory_layers=3)])
@pytest.mark.parametrize(("arm", "write", "more"), [
    ("none", "stop", {}), *((*arm, {}) for arm in ARMS), ("hope", "off", dict(self_modifier="off")),
    ("hope", "stop", dict(self_modifier="off")), ("hope", "stop", dict(self_modifier="on")),
    ("hope", "through", dict(self_modifier="frozen")), ("hope_attention", "stop", dict(attn_gate="headwise")),
    ("hope_attention", "stop", dict(attn_gate="const")),
    ("hope_attention", "stop", dict(cms_periods=(0, 8, 16, 0), cms_widths=(8, 12, 16, 20))),
    ("hope_attention", "through", dict(cms_periods=(16, 8), cms_widths=(24, 40))),
    ("hope", "stop", dict(titan_period=16, titan_width=24, cms_widths=(8, 12)))])
def test_flops_are_those_of_a_training_step(arm, write, more, shape):
    """Those per token that a longest period, 16 tokens, in the middle of a sequence adds: it is read with what was
    written before, and its writes are read. Equal, not about: MFU and what is compared at equal FLOPs would be off by
    as much as this."""
    config = GPTConfig(**settings(arm, write, vocab_size=128, **shape, **more))
    model = GPT(config, seed=0)
    assert config.padded_vocab_size == config.vocab_size
    three, four = counted_step(model, 48), counted_step(model, 64)
    flops, forward, backward = (b - a for a, b in zip(three, four, strict=True))
    without_attention, with_attention = model.flops_per_token(0), model.flops_per_token(1)
    assert flops == 16 * without_attention
    if arm != "none":  # which is read at once: no more passes for more tokens
        # the formula's: a pass is 4 per channel and token that is seen forward, and 8 backward
        passes = (4 * forward + 8 * backward) // (16 // memory_settings.chunk_size(config))
        assert passes * config.n_embd == with_attention - without_attention


# ----------------------------------------------------------------------------------------------------------------------
# scores and samples


def by_definition(model, prompt, more):
    """Logits behind prompt + more, with the prompt's whole chunks written and nothing else."""
    reading, n_written = chunks.read_prompt(model, prompt)
    return model.head(reading.read_only(prompt[n_written:] + more)[:, -1])


@each_arm
@both_archs
def test_scores_are_those_of_the_chunked_forward(arm, write, arch):
    """Endings behind contexts of 3, 8, 9 and 40 tokens: the context's whole chunks are written, endings never."""
    model, (idx, _) = make(arm, write, arch), tokens()
    row = idx[0].tolist()
    items = [(row[:n], [row[50:53], row[40:48], row[60:61]]) for n in (3, 8, 9, 40)]
    scores = score_endings(model, items)
    for (context, endings), given in zip(items, scores, strict=True):
        for ending, log_probs in zip(endings, given, strict=True):
            n_written = (len(context) - 1) // 8 * 8
            reading = chunks.Reading(model)
            x, y = torch.tensor([context + ending])[:, :-1], torch.tensor([context + ending])[:, 1:]
            if n_written:
                for part in range(0, n_written, 8):
                    hidden = reading.read(x[:, part : part + 8])
                    _, signal, _ = chunks.head_gradients(
                        hidden[0], model.transformer["wte"].weight, y[0, part : part + 8], ())
                    reading.write(hidden, signal.view(hidden.shape))
            with torch.no_grad():
                states = reading.read(x[:, n_written:], for_write=False)
                expected = model.head(states).log_softmax(-1)[0, -len(ending) :]
            wanted = expected.gather(1, torch.tensor(ending)[:, None])[:, 0]
            torch.testing.assert_close(log_probs, wanted, rtol=0, atol=2e-5)


@each_arm
@both_archs
def test_samples_are_those_of_the_chunked_forward(arm, write, arch):
    """Greedy, from prompts of several lengths together and beyond block_size."""
    model, (idx, _) = make(arm, write, arch), tokens()
    prompts = [idx[0, :5].tolist(), idx[1, :20].tolist(), idx[2, :60].tolist(), (idx.flatten()[:100]).tolist()]
    together = generate(model, prompts, 8, temperature=0)
    alone = [generate(model, [prompt], 8, temperature=0)[0] for prompt in prompts]
    assert together == alone
    for prompt, completion in zip(prompts[:2], together, strict=False):
        ids = []
        for _ in range(8):
            ids.append(by_definition(model, prompt, ids).argmax(-1).item())
        assert completion.ids == ids


def test_long_prompts_are_read_in_windows():
    """A prompt of 100 tokens, with a block_size of 64: each whole chunk is written once."""
    model, (idx, _) = make("hope_attention"), tokens()
    ids = idx.flatten()[:100].tolist()
    reading, n_written = chunks.read_prompt(model, ids)
    rows = memory.records(reading.layers, model.transformer["h"])
    assert [row["updates"] for row in rows] == [(100 - 1) // 8] * 2
    assert n_written == 96 and reading.position + len(ids) - n_written <= 64


def test_the_head_gradient_of_one_chunk_is_alive_at_a_time(monkeypatch):
    """Each is as large as the embedding, and with a write after every token there are as many as tokens."""
    alive, most = weakref.WeakSet(), 0

    def counted(*inputs):
        nonlocal most
        nll, signal, grad = head_gradients(*inputs)
        most = max(most, len(alive))
        alive.add(grad)
        return nll, signal, grad

    model, (idx, targets) = make("hope_attention", cms_periods=(1, 0)), tokens()
    loss = model(idx, targets)
    loss.backward()
    expected = model.transformer["wte"].weight.grad.clone()
    model.zero_grad()
    monkeypatch.setattr(chunks, "head_gradients", counted)
    again = model(idx, targets)
    again.backward()
    assert again == loss and torch.equal(model.transformer["wte"].weight.grad, expected)
    assert most <= 2  # the last one's, beside the sum
