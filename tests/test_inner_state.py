"""Blocks that are not attention, as a stranger would write them: their scores and texts are those of plain forwards."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import model as m
import sft
from lab.inference import Completion, generate, score_endings
from lab.mechanisms import gate_stats
from model import GPT, GPTConfig

torch.set_num_threads(1)

TINY = dict(vocab_size=211, block_size=24, n_layer=3, n_head=4, n_embd=32, unused_ids=((90, 97),),
            padded_vocab_size=224)


class RunningMean(nn.Module):
    """Every position adds the mean of a projection of all positions up to it."""

    def __init__(self, width):
        super().__init__()
        self.project = m.Linear(width, width)

    def forward(self, x, context):
        count = torch.arange(1, x.size(1) + 1, device=x.device)[:, None]
        return x + self.project(x).cumsum(1) / count


class FastWeights(nn.Module):
    """A memory matrix per sequence, written after each chunk of 4 tokens and read by the later ones; it needs gradients
    of its own, under no_grad too."""

    attention_only = False

    def __init__(self, width):
        super().__init__()
        self.key = m.Linear(width, width, bias=False)
        self.start = nn.Parameter(torch.empty(width, width))

    def forward(self, x, context):
        memory = self.start.expand(len(x), -1, -1)
        outputs = []
        for chunk in x.split(4, dim=1):
            keys = F.normalize(self.key(chunk), dim=-1)
            outputs.append(chunk + keys @ memory)
            with torch.enable_grad():
                leaf = memory.detach().requires_grad_()
                error = (keys.detach() @ leaf - chunk.detach()).square().sum()
                memory = memory - 0.2 * torch.autograd.grad(error, leaf)[0]
        return torch.cat(outputs, 1)


BLOCKS = {"running mean": RunningMean, "fast weights": FastWeights}


def with_memory(kind, **arm):
    """Attention, memory, attention; no weight is zero."""
    net = GPT(GPTConfig(**TINY, **arm))
    net.transformer["h"][1] = BLOCKS[kind](32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.transformer["h"][1].parameters():
            p.zero_()
        for name, p in net.named_parameters():
            alpha = 0.3 if "wte" in name or ".h.1." in name else 1.0 if p.dim() > 1 else 0.1
            p.add_(torch.randn(p.shape, generator=generator), alpha=alpha)
    return net


def some_ids(n, seed):
    numbers = random.Random(seed)
    return [numbers.randrange(90) for _ in range(n)]


ARMS = pytest.mark.parametrize("arm", [{}, dict(arch="speedrun", attn_gate="headwise")], ids=["gpt2", "speedrun"])
KINDS = pytest.mark.parametrize("kind", BLOCKS)


@KINDS
@ARMS
def test_greedy_text_is_the_plain_forwards(kind, arm):
    """Every sampled benchmark of a memory arm: token for token what full forwards give, in one batch of prompts of many
    lengths, on both sides of block_size."""
    net = with_memory(kind, **arm)
    prompts = [some_ids(n, n) for n in (3, 10, 1, 24, 23, 31, 9)]
    texts = generate(net, prompts, 26, temperature=0)
    gaps = []
    for prompt, text in zip(prompts, texts, strict=True):
        ids = list(prompt)
        for _ in range(26):
            with torch.no_grad():
                best = net(torch.tensor([ids[-24:]]))[0, -1].topk(2)
            gaps.append((best.values[0] - best.values[1]).item())
            ids.append(best.indices[0].item())
        assert text == Completion(ids[len(prompt) :], "length")
    assert min(gaps) > 1e-4 and len({tuple(text.ids) for text in texts}) > 4
    sampled = generate(net, prompts, 8, seed=3)
    assert [generate(net, [p], 8, seed=3, row_ids=[i])[0] for i, p in enumerate(prompts)] == sampled


@KINDS
@ARMS
def test_scores_are_those_of_separate_forwards(kind, arm):
    """Every likelihood benchmark of a memory arm: each ending alone, in a forward of its own, to 1e-5."""
    net = with_memory(kind, **arm)
    common = some_ids(8, 0)
    items = [(common[: i % 9] + some_ids(2 + 3 * i, i), [some_ids(1 + j, i + j) for j in range(3)]) for i in range(8)]
    items += [([5], []), (common, [[7, 8], [7, 8]])]
    scores = score_endings(net, items, batch_size=3)
    for (context, endings), item_scores in zip(items, scores, strict=True):
        assert len(item_scores) == len(endings)
        for ending, score in zip(endings, item_scores, strict=True):
            visible = torch.tensor([[*context, *ending][-25:]])
            with torch.no_grad():
                log_p = net(visible[:, :-1])[0].double().log_softmax(-1)[-len(ending) :]
            want = log_p.gather(1, torch.tensor(ending)[:, None])[:, 0]
            assert score.dtype == torch.float32 and (score - want).abs().max() < 1e-5
    assert torch.equal(*scores[-1])


@KINDS
def test_statistics_of_a_mixed_model(kind):
    """Counts, FLOPs and mechanism records of a memory arm: attention's where a block has it, nothing made up."""
    net = with_memory(kind, attn_gate="headwise")
    attention, memory, _ = gate_stats(net, torch.tensor([some_ids(12, 1)]))
    assert set(memory) == {"largest_activation"}
    assert {"gate_mean", "first_token_attention", "largest_activation"} < set(attention)
    own = sum(p.numel() for p in net.transformer["h"][1].parameters() if p.dim() == 2)
    matrices = 2 * (12 * 32 * 32 + 32 * 4) + own
    assert net.flops_per_token(16) == 6 * (matrices + 211 * 32) + 2 * 12 * 32 * 16
    assert net.num_params()["gate"] == 2 * 32 * 4


@KINDS
def test_training_and_packed_rows(kind):
    """The loss trains every weight; rows that hold several conversations are refused, because a memory would carry one
    over to the next."""
    net = with_memory(kind)
    idx = torch.tensor([some_ids(24, 1), some_ids(24, 2)])
    net(idx, idx).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    positions = torch.arange(24).expand(2, -1)
    alone = sft.hidden_states(net, idx, positions, None)
    assert torch.equal(alone, net.hidden(idx))
    with pytest.raises(ValueError, match="--packing off"):
        sft.hidden_states(net, idx, positions, torch.zeros(2, 24, dtype=torch.long))
