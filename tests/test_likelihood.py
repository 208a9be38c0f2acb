"""score_endings beside one forward pass per ending, F.log_softmax over all its logits, and Hugging Face's GPT-2."""

import functools
import itertools
import math
import random

import pytest
import torch

import model as m
from lab import hf, inference, log_probs, trees
from lab.architecture import ARCHS
from lab.inference import iter_scores, score_endings
from model import GPT, GPTConfig

torch.set_num_threads(1)

PADDING = range(90, 97)  # unused ids of TINY; 211..223 pad its vocabulary
TINY = dict(block_size=24, n_layer=2, n_head=4, n_embd=32, vocab_size=211, unused_ids=((90, 97),),
            padded_vocab_size=224)
V_LOGICAL = 211 - len(PADDING)


@functools.cache
def lively(**arm):
    """A model whose every weight matters, the rows of its padding ids included."""
    net = GPT(GPTConfig(**{**TINY, **arm}), seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    return net


def make_items(n, seed=0, longest=40, vocab=90):
    """Contexts of 1 to `longest` tokens, many that begin alike; 1 to 5 endings, many that begin alike or are equal."""
    rand = random.Random(seed)
    ids = lambda size: [rand.randrange(vocab) for _ in range(size)]
    common, items = ids(12), []
    for _ in range(n):
        context = common[: rand.randrange(13)] + ids(rand.randrange(1, longest - 11))
        endings = [ids(rand.randrange(1, 9)) for _ in range(rand.randrange(1, 4))]
        if rand.random() < 0.6:
            endings += [endings[0] + ids(1), endings[0][:-1] + ids(3), list(endings[0])][: rand.randrange(1, 4)]
        rand.shuffle(endings)
        items.append((context, endings))
    return items


@torch.no_grad()
def one_by_one(net, items):
    """The literal rule: every ending alone, all logits, log_softmax in fp64, the last block_size + 1 tokens."""
    scores = []
    for context, endings in items:
        scores.append([])
        for ending in endings:
            seen = torch.tensor([[*context, *ending][-(net.config.block_size + 1) :]])
            log_p = net(seen[:, :-1])[0].double().log_softmax(-1)
            scores[-1].append(log_p[-len(ending) :].gather(1, torch.tensor(ending)[:, None])[:, 0])
    return scores


def assert_same(got, want, tol=1e-5):
    assert [len(endings) for endings in got] == [len(endings) for endings in want]
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        for x, y in zip(a, b, strict=True):
            assert x.dtype == torch.float32 and x.device.type == "cpu" and x.shape == y.shape and not x.requires_grad
            torch.testing.assert_close(x.double(), y.double(), rtol=0, atol=tol, msg=f"item {i}: {x} {y}")


def predictions(scores):
    """The ending with the largest sum, and with the largest mean, of every item."""
    best = lambda values: max(range(len(values)), key=values.__getitem__)
    return [(best([x.sum().item() for x in s]), best([x.mean().item() for x in s])) for s in scores]


# ----------------------------------------------------------------------------------------------------------------------
# equal to the literal rule


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("gate", [("none", "sdpa"), *itertools.product([*m.GATES][1:], m.GATE_POSITIONS)], ids="-".join)
def test_equals_separate_forwards(arch, gate):
    """Every score of every arm: the tree, its positions, the gates of the last block's few queries, truncation."""
    net = lively(arch=arch, attn_gate=gate[0], gate_pos=gate[1])
    items = make_items(40)
    assert 0 < inference.n_truncated(items, 24) < sum(len(endings) for _, endings in items)
    assert_same(score_endings(net, items), one_by_one(net, items))


@pytest.mark.parametrize("n_layer", [1, 3])
def test_any_depth(n_layer):
    """A model of one block is all last block; in deeper ones only the last may drop queries."""
    net = lively(n_layer=n_layer)
    items = make_items(12, seed=1)
    assert_same(score_endings(net, items), one_by_one(net, items))


def test_equals_hugging_face():
    """Accuracy on any benchmark: the scores are those of transformers' GPT2LMHeadModel with the same weights."""
    transformers = pytest.importorskip("transformers")
    net = lively(unused_ids=(), padded_vocab_size=211)
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=211, n_positions=24, n_embd=32, n_layer=2,
                                                                n_head=4)).eval()
    peer.load_state_dict(hf.to_hf_state(net))
    items = make_items(25, seed=2, longest=30, vocab=211)
    with torch.no_grad():
        want = [[peer(torch.tensor([(c + e)[-25:-1]])).logits[0].log_softmax(-1)[-len(e) :]
                 .gather(1, torch.tensor(e)[:, None])[:, 0] for e in endings] for c, endings in items]
    got = score_endings(net, items)
    assert_same(got, want)
    assert predictions(got) == predictions(want)


def test_long_items_of_a_wider_model():
    """Trees beyond QUERY_ROWS queries and several trees in one pass, at the default constants."""
    net = lively(block_size=256, vocab_size=5000, padded_vocab_size=5056)
    items = make_items(12, seed=3, longest=250, vocab=5000)
    assert inference.n_truncated(items, 256) == 0
    assert_same(score_endings(net, items), one_by_one(net, items), tol=2e-5)


def test_extreme_logits():
    """Logits of hundreds, as a diverged run has them: the running maximum keeps log p exact instead of inf or nan."""
    net = GPT(GPTConfig(**{**TINY, "vocab_size": 5000, "padded_vocab_size": 5056}), seed=0)
    with torch.no_grad():
        net.transformer["wte"].weight[:5000].normal_(0, 40, generator=torch.Generator().manual_seed(0))
    items = make_items(10, seed=4, vocab=5000)
    want = one_by_one(net, items)
    assert min(x.min() for endings in want for x in endings) < -500
    assert_same(score_endings(net, items), want, tol=5e-3)


# ----------------------------------------------------------------------------------------------------------------------
# truncation, ties, padding ids


def test_truncation_is_lm_evals_rule():
    """Scores of items longer than the block: the last block_size + 1 tokens, for each ending by its own length; an
    off-by-one here changes every score of a long item."""
    net = lively()
    context = list(range(30))
    items = [(context[:n], [[40] * e for e in (1, 2, 5, 23, 24)]) for n in (1, 2, 19, 20, 22, 23, 24, 25, 30)]
    counted = sum(n + e > 25 for n in (1, 2, 19, 20, 22, 23, 24, 25, 30) for e in (1, 2, 5, 23, 24))
    assert inference.n_truncated(items, 24) == counted
    scores = score_endings(net, items)
    assert_same(scores, one_by_one(net, items))
    # What has fallen off has no influence: not one bit of it.
    changed = [([89] * 4 + context[4:], [[40] * 5]), (context, [[40] * 5])]
    a, b = (score_endings(net, [item])[0][0] for item in changed)
    assert torch.equal(a, b)
    # And the first token that stays has.
    first = len(context) + 5 - 25
    a, b = (score_endings(net, [(context[:first] + [t] + context[first + 1 :], [[40] * 5])])[0][0] for t in (first, 89))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("batch_size", [1, 7, 64, None])
def test_identical_endings_tie_exactly(batch_size):
    """The count of ties, worth 1/n each: equal endings have equal bits, whole contexts or cut ones."""
    net = lively()
    items = [(c, [*endings, list(endings[0]), list(endings[-1])]) for c, endings in make_items(20, seed=5)]
    items += [([*range(40)], [[1] * 9, [2] * 9, [1] * 9])]
    for (_, endings), scores in zip(items, score_endings(net, items, batch_size), strict=True):
        for ending, score in zip(endings, scores, strict=True):
            assert torch.equal(score, scores[endings.index(ending)])


def test_uniform_model_ties_everywhere():
    """Chance level: a model that knows nothing gives exactly -log(logical ids) to each token, so all endings of equal
    length tie."""
    net = GPT(GPTConfig(**TINY), seed=0)
    torch.nn.init.zeros_(net.transformer["wte"].weight)
    expected = torch.tensor(-math.log(V_LOGICAL), dtype=torch.float32)
    for batch_size in (1, 7, None):
        for endings in score_endings(net, make_items(20, seed=6), batch_size):
            for score in endings:
                assert (score == expected).all()


def test_padding_ids_have_no_probability():
    """log p over logical ids only: a padding id in an ending is -inf there and an ordinary input after it, and however
    large the padding rows' logits are, no other score moves."""
    net = lively()
    for wrong in (90, 96, 211, 223):
        items = [([1, 2, 3], [[5, wrong, 6], [5, 7, 6]])]
        got = score_endings(net, items)
        assert [x.isinf().tolist() for x in got[0]] == [[False, True, False], [False] * 3]
        assert got[0][0][1] == -math.inf
        assert_same([[x[[0, 2]] for x in got[0]]], [[x[[0, 2]] for x in one_by_one(net, items)[0]]])
    loud = GPT(net.config, seed=None)
    loud.load_state_dict(net.state_dict())
    with torch.no_grad():
        for a, b in net.config.masked_ranges:
            loud.transformer["wte"].weight[a:b] = 1e3
    items = make_items(10, seed=7)
    assert_same(score_endings(loud, items), score_endings(net, items), tol=0)
    # A probability that is none sums to one over the logical ids.
    whole = score_endings(net, [([1, 2], [[t] for t in range(224)])])[0]
    assert torch.cat(whole).double().exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert sum(x.isinf().item() for x in whole) == 224 - V_LOGICAL


# ----------------------------------------------------------------------------------------------------------------------
# the same for any batch, order, kernel path and wrapper


def test_batches_and_order_change_nothing():
    """Benchmarks on other machines and batch sizes: scores equal to 1e-5, predictions equal, for batches of 1, 7, 64,
    any number of tokens, shuffled items."""
    net = lively(arch="speedrun", attn_gate="headwise")
    items = make_items(70, seed=8)
    want = score_endings(net, items)
    shuffled = list(range(len(items)))
    random.Random(0).shuffle(shuffled)
    for kwargs in (dict(batch_size=1), dict(batch_size=7), dict(batch_size=64), dict(batch_tokens=1),
                   dict(batch_tokens=300), dict(batch_size=5, batch_tokens=200)):
        again = score_endings(net, [items[i] for i in shuffled], **kwargs)
        again = [again[shuffled.index(i)] for i in range(len(items))]
        assert_same(again, want)
        assert predictions(again) == predictions(want)


@pytest.mark.parametrize("pad", [0, 8])
def test_small_pieces_and_padding_change_nothing(pad, monkeypatch):
    """The GPU's padded attention (here on the CPU), and logits, queries and trees in many pieces: same scores."""
    net = lively(arch="speedrun", attn_gate="elementwise", gate_pos="value")
    items = make_items(30, seed=9)
    want = one_by_one(net, items)
    monkeypatch.setitem(trees.PAD_TREES, "cpu", pad)
    monkeypatch.setitem(log_probs.HEAD_COLUMNS, "cpu", 13)  # so that some pieces are padding ids alone
    monkeypatch.setitem(log_probs.CHUNK_ROWS, "cpu", 11)
    monkeypatch.setattr(trees, "QUERY_ROWS", 3)
    monkeypatch.setattr(trees, "TREE_TOKENS", 30)
    for kwargs in ({}, dict(batch_size=1), dict(batch_size=7)):
        got = score_endings(net, items, **kwargs)
        assert_same(got, want)
        for (_, endings), scores in zip(items, got, strict=True):
            assert all(torch.equal(s, scores[endings.index(e)]) for e, s in zip(endings, scores, strict=True))


def test_trees_share_every_beginning_once(monkeypatch):
    """The cost of an item: as many nodes as its sequences have different beginnings, less the last tokens, which are
    no inputs; and nodes see exactly themselves and what is before them in their sequence."""
    sequences = [c + e[:-1] for c, endings in make_items(6, seed=10) for e in endings]
    tokens, depths, ends, spans, nodes_of = trees.grow(sequences, n_embd=10**9)
    assert len(tokens) == len({tuple(s[: i + 1]) for s in sequences for i in range(len(s))})
    assert [a for a, _ in spans] + [len(tokens)] == [0] + [b for _, b in spans]
    nodes = torch.arange(len(tokens))
    visible = trees.visible(nodes, nodes, torch.tensor(ends))
    for sequence, nodes in zip(sequences, nodes_of, strict=True):
        assert [tokens[i] for i in nodes] == sequence and [depths[i] for i in nodes] == list(range(len(sequence)))
        for i, node in enumerate(nodes):
            assert visible[node].nonzero()[:, 0].tolist() == nodes[: i + 1]
    # With little to save, items stay apart, and identical sequences together.
    tokens, _, _, spans, nodes_of = trees.grow(
        [[1, *range(2, 40)], [1, *range(40, 80)], [1, *range(2, 40)]], 8)
    assert spans == [(0, 39), (39, 80)] and nodes_of[0] == nodes_of[2]
    # Nor does the limit on a tree's size part them.
    monkeypatch.setattr(trees, "TREE_TOKENS", 20)
    _, _, _, spans, nodes_of = trees.grow([[*range(30)], [*range(31)], [*range(30)]], 10**9)
    assert spans == [(0, 30), (30, 61)] and nodes_of[0] == nodes_of[2]
    monkeypatch.undo()

    # One pass of a HellaSwag-shaped item: context + endings - 4 inputs, and logits for the endings' tokens alone.
    net, seen = lively(), {}
    monkeypatch.setattr(GPT, "embed", lambda self, idx, wte=None, positions=None, f=GPT.embed:
                        seen.update(inputs=idx.numel()) or f(self, idx, wte, positions))
    monkeypatch.setattr(inference, "head_log_probs", lambda x, *args, f=inference.head_log_probs:
                        seen.update(rows=len(x)) or f(x, *args))
    score_endings(net, [(list(range(10)), [[20 + i] * (3 + i) for i in range(4)])])
    assert seen == {"inputs": 10 + (3 + 4 + 5 + 6) - 4, "rows": 1 + (2 + 3 + 4 + 5)}
    # Items that share a beginning share its pass, wherever they stand (8 tokens; the last pass has items 1 and 3).
    score_endings(net, [([first, *range(1, 8), last], [[30], [31]]) for last in (40, 41) for first in (0, 50)], 2)
    assert seen == {"inputs": 8 + 1 + 1, "rows": 2}


def test_logits_are_never_whole(monkeypatch):
    """Peak memory: no more than CHUNK_ROWS x HEAD_COLUMNS logits are asked for, however many positions are scored."""
    asked = []
    monkeypatch.setattr(log_probs, "workspace", lambda rows, cols, device, f=log_probs.workspace:
                        asked.append((rows, cols)) or f(rows, cols, device))
    monkeypatch.setitem(log_probs.CHUNK_ROWS, "cpu", 50)
    score_endings(lively(vocab_size=5000, padded_vocab_size=5056), make_items(40, seed=11))
    assert asked and max(rows for rows, _ in asked) <= 50 and max(cols for _, cols in asked) <= 2048


@pytest.mark.parametrize("arm", [{}, {"arch": "speedrun", "attn_gate": "elementwise", "gate_pos": "value"}])
def test_packed_products_change_nothing(arm, monkeypatch):
    """The same log-probabilities where weights are packed for oneDNN (big passes on x86), where the machine cannot, and
    by single forwards; the copies are gone afterwards, also when a pass stops half way."""
    net, items = lively(**arm), make_items(30, seed=14)
    packed, packed_linear = [], m.packed_linear
    monkeypatch.setattr(log_probs, "packed_linear", lambda *a: packed.append(a[0].shape) or packed_linear(*a))
    want = one_by_one(net, items)
    for module in (inference, log_probs):
        monkeypatch.setattr(module, "PACK_ROWS", 1)
    assert_same(score_endings(net, items), want)
    assert bool(packed) == log_probs.can_pack(net.transformer["wte"].weight)
    packed.clear()
    with monkeypatch.context() as patch:
        patch.setattr(log_probs.platform, "machine", lambda: "arm64")
        assert_same(score_endings(net, items), want)
    assert not packed
    monkeypatch.setattr(inference, "head_log_probs", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score_endings(net, items)
    assert all(getattr(module, "packed", None) is None for module in net.modules())


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_wrapper(backend):
    """Evals during a compiled run: the wrapper forwards to the module, before and after it has compiled something."""
    net = lively()
    wrapped = torch.compile(net, backend=backend)
    items = make_items(6, seed=12)
    want = score_endings(net, items)
    assert_same(score_endings(wrapped, items), want, tol=0)
    with torch.no_grad():
        wrapped(torch.tensor([[1, 2, 3]]))
    assert_same(score_endings(wrapped, items), want, tol=0)


def test_autocast_is_the_callers():
    """bf16 only when the caller opens an autocast; even then log p is formed and returned in fp32."""
    net, items = lively(), make_items(10, seed=13)
    want = one_by_one(net, items)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = score_endings(net, items)
    assert_same(rough, want, tol=0.3)
    gap = max((x - y).abs().max().item() for a, b in zip(rough, want, strict=True) for x, y in zip(a, b, strict=True))
    assert gap > 1e-4
    values = torch.cat([x for endings in rough for x in endings])
    assert (values.bfloat16().float() != values).float().mean() > 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_equals_cpu():
    """Scores do not depend on the device, for any batch size."""
    for arm in (dict(), dict(arch="speedrun", attn_gate="headwise", gate_pos="value")):
        net, items = lively(**arm), make_items(60, seed=14)
        want = score_endings(net, items)
        on_gpu = GPT(net.config, seed=None)
        on_gpu.load_state_dict(net.state_dict())
        on_gpu.cuda()
        for batch_size in (1, 7, None):
            assert_same(score_endings(on_gpu, items, batch_size), want, tol=1e-4)


# ----------------------------------------------------------------------------------------------------------------------
# progress, side effects, bad input


def test_iter_scores_hands_over_after_each_pass(monkeypatch):
    """An interrupted eval keeps what it has: results come pass by pass, every index once, batch_size items a pass."""
    net, items, passes = lively(), make_items(20, seed=15), []
    monkeypatch.setattr(inference, "_forward_trees", lambda model, plan, f=inference._forward_trees:
                        passes.append(len(plan.lengths)) or f(model, plan))
    stream = iter_scores(net, items, batch_size=6)
    assert passes == []  # the first pass is made when the first result is asked for
    order = []
    for i, scores in stream:
        order.append(i)
        assert len(passes) == -(-len(order) // 6) and len(scores) == len(items[i][1])
    assert sorted(order) == list(range(20)) and len(passes) == 4
    assert sum(passes) == sum(len(endings) for _, endings in items)
    passes.clear()
    next(iter_scores(net, items, batch_size=6))
    assert len(passes) == 1
    # batch_tokens is kept, but for an item that alone is more.
    six_tokens = [([i, 1, 2], [[3, 4], [5]]) for i in range(10)]
    for limit, in_a_pass in ((1, 1), (6, 1), (12, 2), (17, 2), (59, 9), (60, 10)):
        passes.clear()
        score_endings(net, six_tokens, batch_tokens=limit)
        assert passes[0] == 2 * in_a_pass and sum(passes) == 20 and len(passes) == -(-10 // in_a_pass)


def test_nothing_else_changes():
    """Training with evals is bit-identical to training without: no random number is drawn, the mode, the gradients and
    the weights stay, and gradients are still recorded between two results."""
    net = GPT(GPTConfig(**TINY), seed=0).train()
    net(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]])).backward()
    before = {name: (p.clone(), p.grad.clone()) for name, p in net.named_parameters()}
    torch.manual_seed(0)
    random.seed(0)
    states = torch.get_rng_state(), random.getstate()
    for _, scores in iter_scores(net, make_items(10, seed=16), batch_size=3):
        assert torch.is_grad_enabled() and not scores[0].requires_grad
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert net.training and all(p.requires_grad for p in net.parameters())
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name][0]) and torch.equal(p.grad, before[name][1])


def test_nothing_to_score():
    """No items, and items without endings, are no error and shift no other item's scores."""
    net, items = lively(), make_items(3, seed=17)
    assert score_endings(net, []) == []
    mixed = [items[0], ([1], []), items[1], items[2]]
    got = score_endings(net, iter(mixed))
    assert got[1] == []
    assert_same([got[0], got[2], got[3]], one_by_one(net, items))
    assert score_endings(net, [([1], [])]) == [[]]


@pytest.mark.parametrize("items, message", [
    ([([1], [[2]]), ([], [[2]])], "item 1 has an empty context.*BOS"),
    ([([1], [[2], []])], "item 0 has an empty ending"),
    ([([1], [[2] * 25])], "ending of 25 tokens.*block_size is 24"),
    ([([1, 224], [[2]])], "token id 224, outside this model's 224 ids"),
    ([([1], [[2], [-1]])], "token id -1"),
])
def test_bad_items(items, message):
    """One sentence that names the item, before the first pass, instead of a wrong score."""
    with pytest.raises(ValueError, match=message):
        iter_scores(lively(), items)
    with pytest.raises(ValueError, match=message):
        score_endings(lively(), items)


@pytest.mark.parametrize("kwargs", [dict(batch_size=0), dict(batch_tokens=-1)])
def test_bad_batches(kwargs):
    """A batch of nothing would never end."""
    with pytest.raises(ValueError, match="give at least 1, or None"):
        score_endings(lively(), [([1], [[2]])], **kwargs)
