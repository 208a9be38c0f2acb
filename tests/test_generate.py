"""generate beside a loop without a cache, and sampling beside its definition."""

import bisect
import itertools
import math
import random
from collections import Counter

import pytest
import torch

import model as m
from lab import hf, inference, log_probs
from lab.architecture import ARCHS
from lab.inference import Completion, choose_tokens, generate
from lab.tokenizer import get_tokenizer
from model import GPT, GPTConfig

torch.set_num_threads(1)

# 24 positions; ids 90-96 and 211-223 are padding
TINY = dict(vocab_size=211, block_size=24, n_layer=2, n_head=4, n_embd=32, unused_ids=((90, 97),),
            padded_vocab_size=224)
PADDING = [*range(90, 97), *range(211, 224)]
LENGTHS = (3, 10, 1, 24, 23, 31, 7, 10)  # of prompts: some reach 24 tokens, one is longer from the start


def decisive(seed=0, **changes):
    """A model whose best logit stands out (the tests check by how much), and whose text wanders."""
    net = GPT(GPTConfig(**{**TINY, **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():  # large blocks: a tied model of small ones repeats its last token
            alpha = 0.3 if "wte" in name else 1.0 if p.dim() > 1 else 0.1
            p.add_(torch.randn(p.shape, generator=generator), alpha=alpha)
    return net


def prompts(lengths=LENGTHS, seed=0):
    numbers = random.Random(seed)
    return [[numbers.randrange(90) for _ in range(n)] for n in lengths]


def plain(net, prompt, n, gap=None):
    """The definition: a full forward of the last block_size tokens for every token, no batch. gap: a list that gets,
    for each token, how far the best logit is above the second."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n):
            logits = net(torch.tensor([ids[-net.config.block_size:]]))[0, -1].float()
            best = logits.topk(2)
            ids.append(best.indices[0].item())
            if gap is not None:
                gap.append((best.values[0] - best.values[1]).item())
    return ids[len(prompt):]


def ids_of(completions):
    return [c.ids for c in completions]


# ----------------------------------------------------------------------------------------------------------------------
# greedy: the cache changes nothing


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("gate, pos", [("none", "sdpa"), *itertools.product([*m.GATES][1:], m.GATE_POSITIONS)])
def test_equals_loop_without_cache(arch, gate, pos):
    """Every greedy answer of every arm: the same tokens as full forwards give, for one prompt, for mixed lengths in one
    batch, and on both sides of block_size."""
    net = decisive(arch=arch, attn_gate=gate, gate_pos=pos)
    gaps = []
    want = [plain(net, p, 30, gaps) for p in prompts()]
    assert min(gaps) > 2e-4 and len({tuple(w) for w in want}) == len(want) and len(set(sum(want, []))) > 20
    assert ids_of(generate(net, prompts(), 30, temperature=0)) == want
    for p, w in zip(prompts(), want, strict=True):
        assert generate(net, [p], 30, temperature=0) == [Completion(w, "length")]


def test_equal_lengths_and_tensor():
    """Rows of one length take the path without a mask; a (B, T) tensor is the same as its lists."""
    net = decisive()
    batch = prompts((9, 9, 9))
    want = [plain(net, p, 20) for p in batch]
    assert ids_of(generate(net, batch, 20, temperature=0)) == want
    assert ids_of(generate(net, torch.tensor(batch), 20, temperature=0)) == want


def test_prefill_in_pieces(monkeypatch):
    """Prompts that are read a few at a time give the same text, and no forward reads more than the limit."""
    net = decisive(attn_gate="headwise")
    want = ids_of(generate(net, prompts(), 20, temperature=0))
    monkeypatch.setitem(inference.PREFILL_TOKENS, "cpu", 26)
    sizes = []
    embed = net.embed
    monkeypatch.setattr(net, "embed", lambda idx, *a, **kw: sizes.append(idx.shape) or embed(idx, *a, **kw))
    assert ids_of(generate(net, prompts(), 20, temperature=0)) == want
    read = [s for s in sizes if s[1] > 1]
    assert {(3, 7), (2, 10), (1, 24)} <= set(read) and all(a * b <= 26 for a, b in read)


def test_packed_weights(monkeypatch):
    """Packed weights, where the machine has them, give the same tokens, belong to one call, and are never stale."""
    net = decisive(attn_gate="elementwise")
    used = []
    packed_linear = m.packed_linear
    monkeypatch.setattr(m, "packed_linear", lambda *a: used.append(tuple(a[1].shape)) or packed_linear(*a))
    available = torch.backends.mkldnn.is_available() and log_probs.platform.machine() in ("x86_64", "AMD64")
    n_packed = lambda: sum(getattr(module, "packed", None) is not None for module in net.modules())
    want = [plain(net, p, 30) for p in prompts()]
    few = inference.PACK_FROM // 4 - 1
    assert ids_of(generate(net, prompts(), few, temperature=0)) == [w[:few] for w in want] and not used
    assert ids_of(generate(net, prompts()[:1], 30, temperature=0)) == want[:1] and not used
    assert ids_of(generate(net, prompts(), 30, temperature=0)) == want
    shapes = {(96, 32), (32, 32), (128, 32), (32, 128), (224, 32)}  # qkv, projection and gate, MLP, head
    assert set(used) == (shapes if available else set()) and n_packed() == 0
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(9)), alpha=0.3)
    changed = [plain(net, p, 30) for p in prompts()]
    assert changed != want and ids_of(generate(net, prompts(), 30, temperature=0)) == changed
    state = set(net.state_dict())
    with inference.packed_weights(net):
        assert n_packed() == (available and 5 * net.config.n_layer + 1) and set(net.state_dict()) == state
    with pytest.raises(KeyboardInterrupt), inference.packed_weights(net):
        raise KeyboardInterrupt
    assert n_packed() == 0
    idx = torch.tensor([prompts()[1]])
    net(idx, idx).backward()  # and training goes on
    assert all(p.grad is not None for p in net.parameters())


def test_equals_loop_without_packed_weights(monkeypatch):
    """On machines that cannot pack (ARM, no oneDNN), too."""
    monkeypatch.setattr(log_probs.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(m, "packed_linear", None)
    net = decisive()
    assert ids_of(generate(net, prompts(), 30, temperature=0)) == [plain(net, p, 30) for p in prompts()]


@pytest.mark.parametrize("arch", ARCHS)
def test_bf16_autocast(arch):
    """Under bf16 autocast, as on a GPU, the cache is bf16 like the keys and values; where the best logit is clear of
    bf16's rounding, the tokens are those of the loop under the same autocast."""
    net = decisive(arch=arch, attn_gate="headwise")
    agree = total = 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert inference._new_cache(net, 2, 8).dtype == torch.bfloat16
        assert inference._new_cache(net, 2, 8).shape == (2, 2, 2, 4, 8, 8)
        out = ids_of(generate(net, prompts(), 26, temperature=0))
        for p, ids in zip(prompts(), out, strict=True):
            for i, token in enumerate(ids):  # each choice on the text that generate itself made
                logits = net(torch.tensor([(p + ids[:i])[-24:]]))[0, -1].float()
                best = logits.topk(2)
                if best.values[0] - best.values[1] > 0.05 * best.values[0].abs():
                    total += 1
                    agree += token == best.indices[0].item()
    assert agree == total > 120
    assert inference._new_cache(net, 2, 8).dtype == torch.float32


def test_hugging_face_generates_the_same():
    """Hugging Face's generate with its cache, on left-padded prompts, gives the same greedy tokens."""
    transformers = pytest.importorskip("transformers")
    net = decisive(padded_vocab_size=211, unused_ids=())
    c = net.config
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head,
        bos_token_id=None, eos_token_id=None))
    peer.load_state_dict(hf.to_hf_state(net))
    batch = prompts((3, 10, 1, 7))
    padded = torch.tensor([[0] * (10 - len(p)) + p for p in batch])
    mask = torch.tensor([[0] * (10 - len(p)) + [1] * len(p) for p in batch])
    out = peer.eval().generate(padded, attention_mask=mask, max_new_tokens=14, min_new_tokens=14, do_sample=False,
                               pad_token_id=0)
    assert ids_of(generate(net, batch, 14, temperature=0)) == out[:, 10:].tolist()


# ----------------------------------------------------------------------------------------------------------------------
# sampling


@pytest.mark.parametrize("options", [{}, dict(top_k=20), dict(top_p=0.9), dict(temperature=2.5, top_k=50, top_p=0.8)])
def test_same_samples_whatever_the_batch(options):
    """A row's samples depend on (seed, row id) alone: not on the batch, its order, its padding, or max_new_tokens. So
    GSM8K scores at temperature > 0 do not depend on the batch size."""
    net = decisive(arch="speedrun", attn_gate="headwise")
    batch = prompts()
    whole = generate(net, batch, 20, seed=5, **options)
    assert whole == generate(net, batch, 20, seed=5, **options)
    assert whole[::-1] == generate(net, batch[::-1], 20, seed=5, row_ids=range(len(batch))[::-1], **options)
    for i in range(len(batch)):
        assert generate(net, [batch[i]], 20, seed=5, row_ids=[i], **options) == [whole[i]]
        assert generate(net, [batch[i]], 5, seed=5, row_ids=[i], **options)[0].ids == whole[i].ids[:5]
    pair = generate(net, [batch[6], batch[3]], 20, seed=5, row_ids=[6, 3], **options)
    assert pair == [whole[6], whole[3]]
    assert all(a != b for a, b in zip(whole, generate(net, batch, 20, seed=6, **options), strict=True))


def test_rows_draw_apart():
    """Rows with the same prompt are independent samples; rows with the same id are the same sample."""
    net = decisive()
    batch = [[7, 8]] * 12
    assert len({tuple(c.ids) for c in generate(net, batch, 20, temperature=3.0)}) == 12
    assert len({tuple(c.ids) for c in generate(net, batch, 20, temperature=3.0, row_ids=["a"] * 12)}) == 1


def test_samples_follow_the_model():
    """Frequencies of the first and the second sampled id follow softmax(logits / temperature): chi-square of 4,000
    draws beside its 99.9 % limit. A repeated or shared random number would break the second one."""
    net = decisive(vocab_size=16, padded_vocab_size=16, unused_ids=((13, 16),))
    with torch.no_grad():
        net.transformer["wte"].weight.mul_(0.4)
    pairs = [tuple(c.ids) for c in generate(net, [[7, 3]] * 4000, 2, temperature=1.5, seed=1)]

    def chi_square(draws, context):
        with torch.no_grad():
            p = (net(torch.tensor([context]))[0, -1] / 1.5).softmax(-1)[:13].double()
        counts = torch.tensor([Counter(draws)[i] for i in range(13)], dtype=torch.float64)
        assert counts.sum() == len(draws) and (p * len(draws)).min() > 4  # no draw is a padding id
        return ((counts - p * len(draws)) ** 2 / (p * len(draws))).sum().item()

    limit = 32.9  # 12 degrees of freedom
    assert chi_square([a for a, _ in pairs], [7, 3]) < limit
    first, n = Counter(a for a, _ in pairs).most_common(1)[0]
    assert n > 500 and chi_square([b for a, b in pairs if a == first], [7, 3, first]) < limit


def literal_filter(logits, temperature, top_k, top_p):
    """Probabilities after the filters, in the words of their definitions."""
    weights = [math.exp((z - max(logits)) / temperature) for z in logits]
    if top_k is not None:
        kth = sorted(logits, reverse=True)[min(top_k, len(logits)) - 1]
        weights = [w if z >= kth else 0.0 for w, z in zip(weights, logits, strict=True)]
    if top_p is not None:
        kept = []
        for i in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
            if math.fsum(weights[j] for j in kept) >= top_p * math.fsum(weights):
                break
            kept.append(i)
        weights = [w if i in kept else 0.0 for i, w in enumerate(weights)]
    return [w / math.fsum(weights) for w in weights]


@pytest.mark.parametrize("top_k, top_p", [(None, None), (1, None), (3, None), (40, None), (None, 0.5), (None, 1.0),
                                          (None, 1e-9), (5, 0.7), (2, 0.999)])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_top_k_and_top_p(temperature, top_k, top_p):
    """The share of [0, 1) that leads to each id is its probability after the literal filters: top_k, then the smallest
    set that reaches top_p, at least one id."""
    n, grid = 12, 4000
    generator = torch.Generator().manual_seed(3)
    u = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    for case in range(4):
        logits = torch.randn(n, generator=generator) * 2
        if case == 1:
            logits[2] = logits[9] = logits.max()  # ties
        if case == 2:
            logits[:3] = -math.inf  # padding
        if case == 3:
            logits[:] = 0.0
        want = literal_filter(logits.tolist(), temperature, top_k, top_p)
        ids = choose_tokens(logits.expand(grid, n), u, temperature, top_k, top_p)
        share = (torch.bincount(ids, minlength=n) / grid).tolist()
        assert all(abs(a - b) < 2 / grid and (b > 0 or a == 0) for a, b in zip(share, want, strict=True)), (case, share)
        assert ids.tolist() == sorted(ids.tolist())  # in the order of ids


def test_ties_of_one_row_are_its_own():
    """Ids that tie with the k-th stay in their row, and give the next row no more than its k."""
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0, -1.0], [1.0, 0.5, 0.0, -1.0, 3.0, 2.0]])
    u = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    drawn = [choose_tokens(logits, torch.stack([x, x]), 2.0, 2, None).tolist() for x in u]
    assert {a for a, _ in drawn} == {0, 1, 2, 3} and {b for _, b in drawn} == {4, 5}


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.999999])
def test_top_p_of_a_large_vocabulary(top_p):
    """The search for the smallest set begins with few ids and must end at the same set as a whole sort."""
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[8.0], [1.0], [0.01]])
    weights = (logits - logits.amax(1, keepdim=True)).exp()
    kept = inference.smallest_set(weights, top_p)
    assert torch.equal(kept[kept > 0], weights[kept > 0])
    for row, left in zip(weights.double(), kept, strict=True):
        order = row.argsort(descending=True)
        n = int((row[order].cumsum(0) < top_p * row.sum()).sum()) + 1
        assert abs(int((left > 0).sum()) - n) <= 1  # sums in another order
        assert set(order[:n - 1].tolist()) <= set(left.nonzero()[:, 0].tolist())
    ties = inference.smallest_set(torch.tensor([[1.0, 2.0, 1.0, 1.0, 1.0]]), 0.6)
    assert ties.tolist() == [[1.0, 2.0, 1.0, 0.0, 0.0]]


def test_edges_of_a_draw():
    """The largest uniform number still gives an id that has a probability; the smallest skips those that have none."""
    logits = torch.tensor([[-math.inf, 0.0, 1.0, -math.inf, -2000.0, -math.inf]])
    for u, want in ((0.0, 1), (1 - 2**-53, 2)):
        assert choose_tokens(logits, torch.tensor([u], dtype=torch.float64), 1.0, None, None).item() == want
    flat = torch.zeros(1, 50_349)
    flat[:, 49_000:] = -math.inf
    for top in (1 - 2**-53, 1.0):
        assert choose_tokens(flat, torch.tensor([top], dtype=torch.float64), 1.0, None, None).item() == 48_999


def test_sums_are_exact_in_a_large_vocabulary():
    """The border between two of 50,349 ids is where fp64 puts it, to 1e-9; in fp32 it would be off by 1e-8 and more."""
    logits = torch.randn(50_349, generator=torch.Generator().manual_seed(0))
    sums = list(itertools.accumulate((logits - logits.max()).exp().tolist()))
    u = [sums[at] / sums[-1] + side for at in range(25_000, 50_000, 250) for side in (-1e-9, 1e-9)]
    want = [bisect.bisect_right(sums, x * sums[-1]) for x in u]
    ids = choose_tokens(logits.expand(len(u), -1), torch.tensor(u, dtype=torch.float64), 1.0, None, None)
    assert ids.tolist() == want and want[:2] == [25_000, 25_001]


def test_tiny_temperature_is_greedy():
    """Temperatures down to 1e-300 do not overflow."""
    net = decisive()
    greedy = generate(net, prompts(), 12, temperature=0)
    assert generate(net, prompts(), 12, temperature=1e-6) == generate(net, prompts(), 12, temperature=1e-300) == greedy
    assert generate(net, prompts(), 12, temperature=9.0, top_k=1) == greedy


@pytest.mark.parametrize("options", [dict(temperature=0), dict(temperature=50.0), dict(temperature=50.0, top_k=224),
                                     dict(temperature=50.0, top_p=0.9999)])
def test_padding_ids_are_never_drawn(options):
    """Ids that stand for nothing are in no text, even where their rows would win every draw."""
    net = decisive()
    with torch.no_grad():
        net.transformer["wte"].weight[PADDING] *= 30
    drawn = {i for c in generate(net, [[7]] * 200, 12, **options) for i in c.ids}
    assert drawn.isdisjoint(PADDING)
    assert len(drawn) > 150 or options == dict(temperature=0)


# ----------------------------------------------------------------------------------------------------------------------
# stopping


def test_stop_ids():
    """A completion ends before its first stop id, and says so; the others go on to the end."""
    net = decisive()
    free = ids_of(generate(net, prompts(), 20, temperature=0))
    stops = {free[3][0], free[5][2], free[6][1]}
    want = []
    for ids in free:
        at = next((i for i, token in enumerate(ids) if token in stops), None)
        want.append(Completion(ids[:at], "length" if at is None else "stop_id"))
    assert {c.stopped for c in want} == {"length", "stop_id"} and want[3].ids == []
    assert generate(net, prompts(), 20, temperature=0, stop_ids=stops) == want
    assert generate(net, prompts(), 20, temperature=0, stop_ids=torch.tensor(sorted(stops))) == want
    assert free[6][-1] not in free[6][:-1]  # a stop id as the very last token is still one
    last = generate(net, prompts()[6:7], 20, temperature=0, stop_ids=[free[6][-1]])
    assert last == [Completion(free[6][:-1], "stop_id")]


def test_finished_rows_leave_the_batch(monkeypatch):
    """A finished row takes no further part in the products, and its leaving moves no other row's text: the work is the
    number of tokens made, not rows times the longest."""
    net = decisive()
    batch = prompts((3, 9, 4, 9, 2, 6, 8, 5, 7, 1))
    free = ids_of(generate(net, batch, 12, temperature=0))
    stops = {free[r][at] for r, at in ((0, 9), (1, 2), (2, 3), (3, 11), (4, 5), (5, 7), (8, 5), (9, 7))}
    want = [next((i for i, token in enumerate(ids) if token in stops), 12) for ids in free]
    assert len(set(want)) > 4 and max(want) > 8
    rows = []
    step = inference._decode_step
    monkeypatch.setattr(inference, "_decode_step",
                        lambda net, tokens, *a: rows.append(len(tokens)) or step(net, tokens, *a))
    out = generate(net, batch, 12, temperature=0, stop_ids=stops)
    assert ids_of(out) == [ids[:n] for ids, n in zip(free, want, strict=True)]
    assert rows == [sum(n > i and i + 1 < 12 for n in want) for i in range(len(rows))] and sum(rows) < 0.7 * 11 * 10


def test_compact():
    """Places of the cache after any set of rows has left: each row that stays still has its own keys and values."""
    for seed in range(50):
        numbers = random.Random(seed)
        n = numbers.randrange(1, 9)
        live = numbers.sample(range(100), n)
        cache = torch.tensor(live).view(1, 1, n, 1, 1, 1).repeat(2, 2, 1, 3, 4, 5)
        keep = [numbers.random() < 0.5 for _ in live]
        left = inference.compact(live, keep, cache)
        assert sorted(left) == sorted(r for r, k in zip(live, keep, strict=True) if k)
        assert cache[:, :, :len(left)].eq(torch.tensor(left).view(-1, 1, 1, 1)).all()


PIECES = ["a", "b", "ab", "\n", "Us", "er", ":", " User", "er:\n", "x:", "é", "日本", " "]
BYTES = [piece.encode() for piece in PIECES] + [b"\xc3", b"\xa9", b"\xe6\x97", b"\xa5"]  # and halves of characters


def decode_bytes(ids):
    return b"".join(BYTES[i % len(BYTES)] for i in ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("stop_strings", [["\n"], ["User:"], ["b:", "ba"], ["é"], ["日本", "r:\n"], ["\n", "er:\n"],
                                          ["never there"]])
def test_stop_strings(stop_strings):
    """The text up to the first stop string is exact, whatever the tokens' borders: it is compared with the text that
    would have been written without stopping. Where the string begins at a border of tokens, it is not in ids at all."""
    net = decisive()
    batch = prompts([*range(1, 25)] * 5, seed=2)
    asked = []

    def decode(ids):
        asked.append(len(ids))
        return decode_bytes(ids)

    free = ids_of(generate(net, batch, 20, temperature=2.0))
    out = generate(net, batch, 20, temperature=2.0, stop_strings=stop_strings, decode=decode)
    stopped = inside = 0
    for c, ids in zip(out, free, strict=True):
        first = next((n for n in range(1, 21) if any(s in decode_bytes(ids[:n]) for s in stop_strings)), None)
        if first is None:
            assert c == Completion(ids, "length")
            continue
        text = decode_bytes(ids[:first])
        before = text[:min(text.find(s) for s in stop_strings if s in text)]
        assert c.stopped == "stop_string" and c.ids == ids[:len(c.ids)]
        written = decode_bytes(c.ids)
        if any(s in written for s in stop_strings):
            inside += 1
            assert len(c.ids) == first and before not in [decode_bytes(ids[:n]) for n in range(first)]
            written = written[:min(written.find(s) for s in stop_strings if s in written)]
        assert written == before
        stopped += 1
    assert stopped > max(10, inside) or stop_strings == ["never there"]
    assert inside > 0 or stop_strings not in (["User:"], ["b:", "ba"])
    assert max(asked) <= max(len(s.encode()) for s in stop_strings) + 3


def test_stop_string_with_the_real_tokenizer():
    """The end of an answer in a chat: the marker of the next turn, as GPT-2 splits it, is cut away."""
    tokenizer = get_tokenizer()
    text = "#### 18\nUser: and then"
    ids = tokenizer.encode(text)
    for stop, want in (("\nUser:", "#### 18"), ("er:", "#### 18\nUs"), ("and", "#### 18\nUser: "), ("8", "#### 1")):
        seen = next(n for n in range(1, len(ids) + 1) if stop in tokenizer.decode(ids[:n]))
        tail = ids[:seen][-(len(stop.encode()) + 3):]
        kept = ids[:seen - inference.stop_string_cut(tail, [stop], tokenizer.decode)]
        assert tokenizer.decode(kept).partition(stop)[0] == want
    assert inference.stop_string_cut(ids, ["nowhere"], tokenizer.decode) is None


# ----------------------------------------------------------------------------------------------------------------------
# manners


def test_leaves_no_trace():
    """Training goes on as if nothing had been generated: no global random number, mode, weight or gradient changes."""
    net = decisive(attn_gate="headwise").train()
    before = {name: p.clone() for name, p in net.state_dict().items()}
    state = torch.get_rng_state()
    generate(net, prompts(), 30, temperature=1.0, top_k=9, top_p=0.5)
    assert torch.equal(torch.get_rng_state(), state) and net.training and torch.is_grad_enabled()
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    generate(net.eval(), prompts(), 3)
    assert not net.training


def test_nothing_to_do():
    """No new tokens, or no prompts, is no error."""
    net = decisive()
    assert generate(net, prompts(), 0) == [Completion([], "length")] * len(LENGTHS)
    assert generate(net, [], 5) == []


@pytest.mark.parametrize("change, says", [
    (dict(prompts=[[1], []]), "prompt 1 is empty"),
    (dict(prompts=torch.zeros(2, 0, dtype=torch.long)), "prompt 0 is empty"),
    (dict(prompts=[[1], [5, 211]]), "prompt 1 has ids from 5 to 211"),
    (dict(prompts=[[-1]]), "below vocab_size 211"),
    (dict(prompts=[1, 2, 3]), "put a single prompt into a list"),
    (dict(prompts=[[1.5]]), "lists of whole numbers"),
    (dict(max_new_tokens=-1), "use 0 or more"),
    (dict(temperature=-0.5), "use 0 for greedy"),
    (dict(temperature=math.nan), "temperature is nan"),
    (dict(top_k=0), "use at least 1"),
    (dict(top_p=0.0), "above 0 and up to 1"),
    (dict(top_p=1.1), "above 0 and up to 1"),
    (dict(stop_ids=5), "put it into a list"),
    (dict(stop_strings=["a"]), "pass decode"),
    (dict(stop_strings="a", decode=str), "use a list of strings"),
    (dict(stop_strings=["a", ""], decode=str), "use a list of strings"),
    (dict(row_ids=[1, 2]), "1 prompts but 2 row_ids"),
])
def test_refuses(change, says):
    """Bad input is one sentence that names the remedy, before anything is computed."""
    with pytest.raises(ValueError, match=says) as e:
        generate(decisive(), **{"prompts": [[1]], "max_new_tokens": 3, **change})
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_diverged_model_is_an_error(temperature):
    """A model of nan has no score of 0 on GSM8K; it has none."""
    net = decisive()
    with torch.no_grad():
        net.transformer["wte"].weight[5] = math.nan
    with pytest.raises(ValueError, match="not numbers"):
        generate(net, [[5, 6]], 3, temperature=temperature)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda():
    """On a GPU: the CPU's greedy and sampled tokens in fp32, and a whole run under bf16 autocast."""
    net = decisive(arch="speedrun", attn_gate="headwise")
    greedy, sampled = generate(net, prompts(), 30, temperature=0), generate(net, prompts(), 30, top_k=50, top_p=0.9)
    net = net.cuda()
    assert generate(net, prompts(), 30, temperature=0) == greedy
    assert generate(net, prompts(), 30, top_k=50, top_p=0.9) == sampled
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = generate(net, prompts(), 30, temperature=0)
        assert [len(c.ids) for c in out] == [30] * len(LENGTHS)
