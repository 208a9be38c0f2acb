"""Models for the tests of the evaluations: fakes with known answers, and a small real one."""

import math
from types import SimpleNamespace

import pytest
import torch

from lab import inference
from model import GPT, GPTConfig


@pytest.fixture(autouse=True)
def ask_the_fake(monkeypatch):
    """lab.inference's functions call the fake's method of the same name; for a GPT they compute."""
    compute = {name: getattr(inference, name) for name in ("iter_scores", "score_endings", "generate")}
    for name in compute:

        def ask(model, *args, name=name, **options):
            if isinstance(model, GPT):
                return compute[name](model, *args, **options)
            return getattr(model, name)(*args, **options)

        monkeypatch.setattr(inference, name, ask)


class Fake:
    """A model whose tokens' log-probs are log_probs(context ids, ending ids)."""

    def __init__(self, log_probs, vocab_size=50349, block_size=1024):
        self.log_probs, self.training = log_probs, True
        self.config = SimpleNamespace(vocab_size=vocab_size, block_size=block_size)

    def eval(self):
        return self.train(False)

    def train(self, mode=True):
        self.training = mode
        return self

    def iter_scores(self, items, batch_size=None, batch_tokens=None, known=(), stop=None):
        assert not self.training
        for i in reversed(range(len(items))):  # any order is allowed
            if stop is not None and stop.asked:
                return
            if i in known:
                continue
            yield i, [torch.tensor(self.log_probs(items[i][0], ending)) for ending in items[i][1]]


def uniform(context, ending):
    return [-math.log(50302)] * len(ending)


def small(block_size=256, seed=1, **config):
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=block_size, padded_vocab_size=50432, **config)
    model = GPT(config, seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)  # so that the context matters
    return model
