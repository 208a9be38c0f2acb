"""Fast weights under torch.compile (CPU inductor): the same losses and gradients, from few graphs, made once."""

import functools
import shutil

import pytest
import torch
from conftest import REPO, losses, tiny_documents, write_dataset
from test_memory import make, tokens

import train_gpt
from lab import chunks, compiling

needs_compiler = pytest.mark.skipif(bool(compiling.missing_compiler(torch.device("cpu"))),
                                    reason="torch.compile needs a C++ compiler and none is on the PATH")
ONE_BLOCK = dict(n_layer=1, memory_layers=1)
STEPS, LENGTH, CHUNK = 3, 32, 8


@pytest.fixture
def counters():
    """Dynamo's counters, from zero; its settings are put back afterwards."""
    from torch import _dynamo
    from torch._dynamo.utils import counters
    from torch._functorch import config
    from torch._inductor import config as inductor

    limits = _dynamo.config.patch(recompile_limit=_dynamo.config.recompile_limit)
    with limits, config.patch(donated_buffer=config.donated_buffer), inductor.patch(compile_threads=1):
        _dynamo.reset()
        counters.clear()
        yield counters
        _dynamo.reset()


def learn(model, after_step=lambda: None):
    """(losses of STEPS steps, each on other sequences; the last step's gradients)"""
    optimizer, found = torch.optim.SGD(model.parameters(), 0.5), []
    for step in range(STEPS):
        optimizer.zero_grad()
        idx, targets = tokens(rows=2, length=LENGTH, seed=step)
        loss = model(idx, targets)
        loss.backward()
        found.append(loss.item())
        after_step()
        if step < STEPS - 1:
            optimizer.step()
    return found, {name: p.grad for name, p in model.named_parameters()}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("arm", "write", "arch", "shape", "most", "backend"), [
    # one graph at a window's beginning and one behind it: of plain blocks, and of those with memory. The kernels of
    # these are compiled for both architectures, which takes most of the time; the other graphs run as traced.
    ("hope_attention", "stop", "speedrun", {}, 4, "aot_eager"),
    ("hope_attention", "through", "speedrun", ONE_BLOCK, 2, "inductor"),
    ("titan", "stop", "gpt2", ONE_BLOCK, 2, "aot_eager"),
    ("hope", "stop", "gpt2", ONE_BLOCK, 2, "inductor")])
def test_compiled_learns_the_same(arm, write, arch, shape, most, backend, counters, monkeypatch):
    """Losses and gradients to 1e-4; at most two graphs (without and with fast weights) times the number of lengths of
    the past; none is made after the first sequences."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    wanted, wanted_grads = learn(make(arm, write, arch, **shape))
    assert counters["stats"]["unique_graphs"] == 0
    model, graphs = make(arm, write, arch, **shape), []
    chunks.compile_blocks(model)
    found, grads = learn(model, lambda: graphs.append(counters["stats"]["unique_graphs"]))
    assert found == pytest.approx(wanted, abs=1e-4)
    for name, wanted_grad in wanted_grads.items():
        torch.testing.assert_close(grads[name], wanted_grad, rtol=1e-3, atol=1e-4)
    assert 0 < graphs[0] <= most <= 2 * LENGTH // CHUNK
    assert graphs == graphs[:1] * STEPS
    assert not counters["graph_break"]


@needs_compiler
@pytest.mark.slow
def test_the_trainer_compiles_a_memory(counters, tmp_path):
    """train_gpt.py --compile on: the losses of the same run without, to 1e-4, and as many graphs for its look ahead,
    4 steps and 2 evaluations as for one step."""
    write_dataset(tmp_path / "data", tiny_documents(40, 20, 120))
    flags = ("--n_layer 1 --n_head 2 --n_embd 16 --seq_len 32 --micro_batch_size 2 --total_batch_tokens 128 "
             "--device cpu --learning_rate 1e-2 --max_train_steps 4 --eval_every 4 --num_workers 0 --arch speedrun "
             "--memory hope_attention --cms_periods 8,0 --inner_lr 20").split()
    for compile in ("off", "on"):
        train_gpt.main(["--data_dir", str(tmp_path / "data"), "--out_dir", str(tmp_path / compile), "--results_csv", "",
                        "--compile", compile, *flags])
    assert losses(tmp_path / "on") == pytest.approx(losses(tmp_path / "off"), abs=1e-4)
    assert 0 < counters["stats"]["unique_graphs"] <= 2


def test_no_compiler_is_a_sentence(monkeypatch):
    """--compile on, on a CPU without a C++ compiler: refused before anything is written."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    args = train_gpt.parse_args(["--data_dir", str(REPO), "--compile", "on", "--memory", "hope_attention"])
    with pytest.raises(ValueError, match="install g\\+\\+"):
        compiling.compile_training(args, make("hope_attention"), None)
