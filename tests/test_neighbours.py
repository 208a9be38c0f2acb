"""Checkpoints of nanoGPT and build-nanogpt: their weights come in whole, their code never."""

import argparse
import collections
import errno
import json
import math
import os
import pathlib
import pickle
import random
import re
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_documents, write_dataset

import eval_gsm8k
import ewok
import hellaswag
import model as model_module
import sft
import train_gpt
from lab import hf, neighbours
from model import GPT

SHAPE = dict(n_layer=2, n_head=2, n_embd=16, block_size=32)


def weights(vocab_size=50304, bias=True, seed=0, n_layer=2, n_embd=16, block_size=32, **_):
    """A state dict as both projects save it: PyTorch's Linear layers, a head that shares the token rows' storage."""
    generator = torch.Generator().manual_seed(seed)
    state = collections.OrderedDict()

    def add(name, *shape):
        state[name] = torch.randn(shape, generator=generator) * 0.3

    def layer(name, *shape):
        add(f"{name}.weight", *shape)
        if bias:
            add(f"{name}.bias", shape[0])

    C = n_embd
    add("transformer.wte.weight", vocab_size, C)
    add("transformer.wpe.weight", block_size, C)
    for i in range(n_layer):
        h = f"transformer.h.{i}"
        layer(f"{h}.ln_1", C)
        layer(f"{h}.attn.c_attn", 3 * C, C)
        layer(f"{h}.attn.c_proj", C, C)
        layer(f"{h}.ln_2", C)
        layer(f"{h}.mlp.c_fc", 4 * C, C)
        layer(f"{h}.mlp.c_proj", C, 4 * C)
    layer("transformer.ln_f", C)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def reference_logits(state, idx, n_layer=2, n_head=2, gelu="none", **_):
    """What such a network computes, written out: pre-norm blocks, causal softmax attention, GELU, tied head."""
    state = {name.replace("_orig_mod.", "").replace("module.", ""): value.float() for name, value in state.items()}

    def part(name):
        return state[f"{name}.weight"], state.get(f"{name}.bias")

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], *part(name))

    T = idx.size(1)
    x = state["transformer.wte.weight"][idx] + state["transformer.wpe.weight"][:T]
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    for i in range(n_layer):
        h = f"transformer.h.{i}"
        q, k, v = (z.unflatten(-1, (n_head, -1)).transpose(1, 2) for z in
                   F.linear(norm(x, f"{h}.ln_1"), *part(f"{h}.attn.c_attn")).chunk(3, dim=-1))
        scores = (q @ k.transpose(2, 3) / math.sqrt(q.size(-1))).masked_fill(future, -math.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, *part(f"{h}.attn.c_proj"))
        hidden = F.gelu(F.linear(norm(x, f"{h}.ln_2"), *part(f"{h}.mlp.c_fc")), approximate=gelu)
        x = x + F.linear(hidden, *part(f"{h}.mlp.c_proj"))
    return F.linear(norm(x, "transformer.ln_f"), state["lm_head.weight"])


def nanogpt(state=None, vocab_size=50304, bias=True, **shape):
    """ckpt.pt's dictionary."""
    args = {**SHAPE, **shape, "vocab_size": vocab_size, "bias": bias, "dropout": 0.1}
    state = state or weights(**args)
    optimizer = torch.optim.AdamW([torch.zeros(2, requires_grad=True)])
    return {"model": state, "optimizer": optimizer.state_dict(), "model_args": args, "iter_num": 250,
            "best_val_loss": torch.tensor(3.5), "config": {"dataset": "openwebtext", "learning_rate": 6e-4}}


class GPTConfig:
    """A class of the saving script, which the importing process does not have."""


GPTConfig.__module__ = "__main__"


def build_nanogpt(monkeypatch, state=None, vocab_size=50304, **shape):
    """model_*.pt's dictionary; pickle wants the class to be found where its name says."""
    import __main__

    monkeypatch.setattr(__main__, "GPTConfig", GPTConfig, raising=False)
    config = GPTConfig()
    config.__dict__ |= {**SHAPE, **shape, "vocab_size": vocab_size}
    return {"model": state or weights(vocab_size, **shape), "config": config, "step": 19072, "val_loss": 3.05}


def save(content, path, **options):
    torch.save(content, path, **options)
    return path


def imported(path, out, *flags):
    model_module.main(["import", str(path), "--out_dir", str(out), *flags])
    return GPT.load(out).eval()


def largest_difference(net, state, **shape):
    idx = torch.randint(50257, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (net(idx) - reference_logits(state, idx, **shape)).abs().max().item()


VARIANTS = {
    "plain": {}, "no bias": dict(bias=False), "50257 rows": dict(vocab_size=50257), "one head": dict(n_head=1),
    "other heads and length": dict(n_head=4, n_embd=32, block_size=48, n_layer=3),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_of_nanogpt(tmp_path, name):
    """Logits of all rows within 1e-5 of the network's, whose GELU is the exact one; tanh's are off by more."""
    variant = VARIANTS[name]
    content = nanogpt(**variant)
    net = imported(save(content, tmp_path / "ckpt.pt"), tmp_path / "out")
    shape = {**SHAPE, **variant}
    assert net.config.arch == "nanogpt" and net.config.block_size == shape["block_size"]
    assert net.config.vocab_size == shape.get("vocab_size", 50304)
    assert largest_difference(net, content["model"], **shape) < 1e-5
    assert largest_difference(net, content["model"], **shape, gelu="tanh") > 3e-5
    assert net.config.bias == ("off" if name == "no bias" else "arch")


@pytest.mark.parametrize("vocab_size", [50257, 50304])
def test_logits_of_build_nanogpt(tmp_path, monkeypatch, capsys, vocab_size):
    """Logits within 1e-5 of the network's with tanh GELU; its GPTConfig is read as data, its class untouched."""
    content = build_nanogpt(monkeypatch, vocab_size=vocab_size)
    path = save(content, tmp_path / "model_19072.pt")
    monkeypatch.undo()
    net = imported(path, tmp_path / "out")
    assert net.config.arch == "gpt2" and "step 19072" in capsys.readouterr().out
    assert largest_difference(net, content["model"], gelu="tanh") < 1e-5


def renamed(prefix):
    return collections.OrderedDict((prefix + name, value) for name, value in weights().items())


def in_half(dtype):
    return collections.OrderedDict((name, value.to(dtype)) for name, value in weights().items())


STATES = {
    "compiled": lambda: renamed("_orig_mod."), "compiled in DDP": lambda: renamed("module._orig_mod."),
    "bfloat16": lambda: in_half(torch.bfloat16), "float16": lambda: in_half(torch.float16),
    "parameters": lambda: collections.OrderedDict((k, torch.nn.Parameter(v)) for k, v in weights().items()),
    "masks": lambda: weights() | {"transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32).tril()},
    "views": lambda: {name: torch.stack([value, -value], -1)[..., 0] for name, value in weights().items()},
    "protocol 4": weights, "no head": lambda: {k: v for k, v in weights().items() if k != "lm_head.weight"},
}


@pytest.mark.parametrize("name", STATES)
def test_forms_of_a_state(tmp_path, name):
    """Prefixes of compile and DDP, half precision, buffers of old, strided views: the same logits to 1e-5."""
    state = STATES[name]()
    protocol = dict(pickle_protocol=4) if name == "protocol 4" else {}
    net = imported(save(nanogpt(state), tmp_path / "ckpt.pt", **protocol), tmp_path / "out")
    full = state if name != "no head" else weights()
    assert largest_difference(net, full) < 1e-5


def test_gelu_of_old_files(tmp_path):
    """Files of before May 2023, which do not say so: --gelu tanh makes the logits theirs."""
    content = nanogpt()
    net = imported(save(content, tmp_path / "ckpt.pt"), tmp_path / "out", "--gelu", "tanh")
    assert largest_difference(net, content["model"], gelu="tanh") < 1e-5


def test_without_transformers(tmp_path, monkeypatch):
    """Files of the neighbours need neither transformers nor tokenizers."""
    for name in ("transformers", "tokenizers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert imported(save(nanogpt(), tmp_path / "ckpt.pt"), tmp_path / "out").config.n_layer == 2


def test_full_disk(tmp_path, monkeypatch):
    """A disk that fills while the weights are written: a sentence, nothing half written, a stranger's folder stays."""
    def fill(net, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(GPT, "save", fill)
    (tmp_path / "out.tmp").mkdir()
    path = save(nanogpt(), tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match="out cannot be written .*No space left.*free space"):
        model_module.main(["import", str(path), str(tmp_path / "out")])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ckpt.pt", "out.tmp"]


def test_room_for_mul_tokens(tmp_path):
    """50304 rows stay as they are, and 45 more are their mean."""
    content = nanogpt()
    net = imported(save(content, tmp_path / "ckpt.pt"), tmp_path / "out", "--new_vocab_size", "50349")
    rows = content["model"]["transformer.wte.weight"]
    wte = net.transformer["wte"].weight
    assert torch.equal(wte[:50304], rows) and torch.allclose(wte[50304:], rows.mean(0).expand(45, -1), atol=1e-6)
    assert net.config.masked_ranges == []


def test_export_of_nanogpt(tmp_path):
    """The exported folder has activation_function gelu, equal logits (export compares them), and comes back equal."""
    transformers = pytest.importorskip("transformers")
    content = nanogpt()
    hf.export_hf(imported(save(content, tmp_path / "ckpt.pt"), tmp_path / "out"), tmp_path / "hf")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "hf").activation_function == "gelu"
    net = imported(tmp_path / "hf", tmp_path / "again")
    assert net.config.arch == "nanogpt" and largest_difference(net, content["model"]) < 1e-5


# ----------------------------------------------------------------------------------------------------------------------
# files that are not what they should be


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def with_value(value):
    return lambda path: save(nanogpt() | {"config": value}, path)


def rezipped(path, change, compression=zipfile.ZIP_STORED):
    """The archive with its records changed by change(name, data)."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in records.items():
            new.writestr(name, change(name, data))


def compressed(path):
    save(nanogpt(weights() | {"transformer.wpe.weight": torch.zeros(32, 16)}), path)
    bomb = bytes(2**27)
    rezipped(path, lambda name, data: bomb if name.endswith("data/3") else data, zipfile.ZIP_DEFLATED)


def with_pickle(change):
    def write(path):
        save(nanogpt(), path)
        rezipped(path, lambda name, data: change(data) if name.endswith("data.pkl") else data)
    return write


def flipped(path):
    save(nanogpt(), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    save(nanogpt(), path)
    path.write_bytes(path.read_bytes()[:-5000])


def scripted(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def with_weight(name, value):
    return lambda path: save(nanogpt(weights() | {name: value}), path)


HUGE = torch.zeros(1).expand(2**40)
MEMO = b"\x80\x02}r\xff\xff\xff\x7f."
NEST = b"(K\x01t" + b"2\x86" * 60  # a tuple of itself twice, 60 times: 2**60 leaves in 123 bytes
SETTINGS = b"\x80\x02}(U\x05modelK\x01U\x0amodel_args}(" + b"".join(
    b"U" + bytes([len(name)]) + name.encode() + NEST for name in SHAPE | {"vocab_size": 1}) + b"uu."
NESTED = {  # where Python would look at all of it
    "key": b"\x80\x02}" + NEST + b"K\x01s.", "keys": b"\x80\x02}(" + NEST + b"K\x01u.",
    "dict": b"\x80\x02(" + NEST + b"K\x01d.", "frozenset": b"\x80\x04(" + NEST + b"\x91.",
    "set": b"\x80\x04\x8f(" + NEST + b"\x90.", "storage": b"\x80\x02(U\x01s" + NEST * 2 + b"U\x03cpuK\x01tQ.",
    "items": b"\x80\x02ccollections\nOrderedDict\n]" + NEST + b"K\x01\x86a\x85R.", "settings": SETTINGS,
}
FILES = {  # name: (what writes it, what is said)
    "os.system": (with_value(Call(os.system, "touch RAN")), "system, which is no data"),
    "eval": (with_value(Call(eval, "open('RAN', 'w')")), "eval, which is no data"),
    "exec behind data": (with_value([1, {"a": Call(exec, "open('RAN', 'w')")}]), "exec, which"),
    "getattr": (with_value(Call(getattr, "", "join")), "getattr, which"),
    "torch.load": (with_value(Call(torch.load, "other.pt")), "torch.serialization.load"),
    "call of an allowed class": (with_value(Call(collections.OrderedDict, 5)), "cannot be imported"),
    "state of an allowed class": (with_value(Call(collections.OrderedDict, state=5)), "cannot be imported"),
    "huge memo": (with_pickle(lambda _: MEMO), "damaged"),
    "pickle cut": (with_pickle(lambda data: data[:-9]), "cannot be imported"),
    "pickle empty": (with_pickle(lambda _: b""), "cannot be imported"),
    "bomb": (compressed, "it unpacks to .* bytes"),
    "huge view": (with_weight("transformer.wpe.weight", HUGE), "in a file of"),
    "repeated bytes": (with_weight("transformer.wte.weight", torch.zeros(16).expand(50304, 16)), "cannot be imported"),
    "legacy": (lambda path: save(nanogpt(), path, _use_new_zipfile_serialization=False), "before 1.6"),
    "cut off": (cut, "cut off"),
    "a bit flipped": (flipped, "CRC-32"),
    "text": (lambda path: path.write_text("step 0: train loss 1"), "something else"),
    "empty": (lambda path: path.write_bytes(b""), "something else"),
    "a zip": (lambda path: zipfile.ZipFile(path, "w").close(), "none of torch.save's"),
    "TorchScript": (scripted, "cannot be imported"),
    "weights alone": (lambda path: save(weights(), path), "its keys, transformer.wte.weight, "),
    "a tensor": (lambda path: save(torch.zeros(3), path), "it is no dictionary"),
    "another project": (lambda path: save({"state_dict": weights(), "epoch": 3}, path), "state_dict, epoch"),
    "n_embd large": (lambda path: save(nanogpt(weights(), n_embd=10**12), path), "its token rows are"),
    "block_size large": (lambda path: save(nanogpt(weights(), block_size=10**12), path), "block_size is 1000000000000"),
    "block_size wrong": (lambda path: save(nanogpt(weights(), block_size=10**6), path), "wpe.weight has shape"),
    "n_layer text": (lambda path: save(nanogpt(n_layer=2) | {"model_args": {**SHAPE, "vocab_size": 50304,
                                                                            "n_layer": "2"}}, path), "n_layer is"),
    "a layer less": (lambda path: save(nanogpt(weights(n_layer=1)), path), "1 layers, and its settings say 2"),
    "n_embd 64": (lambda path: save(nanogpt(weights(), n_embd=64), path), "its token rows are"),
    # fp16 of 2**38 numbers: a reader that converts it before it compares shapes takes 1 TB
    "a head without end": (with_weight("lm_head.weight", torch.zeros(1).half().expand(2**34, 16)), "a head of its own"),
    "untied": (with_weight("lm_head.weight", torch.ones(50304, 16)), "a head of its own"),
    "NaN": (with_weight("transformer.h.1.ln_1.weight", torch.full((16,), math.nan)), "h.1.ln_1.weight holds NaN"),
    "infinity": (with_weight("transformer.wpe.weight", torch.full((32, 16), math.inf)), "wpe.weight holds NaN or inf"),
    "whole numbers": (with_weight("transformer.wpe.weight", torch.ones(32, 16, dtype=torch.int8)), "int8"),
    "a weight more": (with_weight("transformer.h.0.attn.lora_A", torch.ones(3)), "lora_A"),
    "a name twice": (with_weight("module.transformer.wpe.weight", torch.ones(32, 16)), "twice"),
}


@pytest.mark.parametrize("name", FILES)
def test_refused_files(tmp_path, monkeypatch, capsys, name):
    """Each is one sentence that says what to do; code that ran, and folders written: 0."""
    write, expected = FILES[name]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=expected) as error:
        model_module.main(["import", "ckpt.pt", "out"])
    assert "\n" not in str(error.value) and "name nanoGPT's ckpt.pt" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


def test_import_refuses_a_tokenizer_of_its_own(tmp_path, capsys):
    """The commands, for Hugging Face's folder and nanoGPT's file: one sentence, and no folder."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "theirs"
    shape = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=32)
    transformers.GPT2LMHeadModel(shape).save_pretrained(folder)
    save(nanogpt(), folder / "ckpt.pt")
    for source in (folder, folder / "ckpt.pt"):
        model_module.main(["import", str(source), str(tmp_path / f"out{source.suffix}")])
    (folder / "vocab.json").write_text(json.dumps({"a": 0}))
    for source in (folder, folder / "ckpt.pt"):
        with pytest.raises(ValueError, match=f"{source.name} cannot be imported: its own tokenizer is not GPT-2's"):
            model_module.main(["import", str(source), str(tmp_path / "refused")])
    assert not (tmp_path / "refused").exists()


def test_characters(tmp_path):
    """A network of shakespeare_char's 65 ids, to which no text here fits: refused, and no folder."""
    path = save(nanogpt(vocab_size=65), tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match="ckpt.pt cannot be imported: its vocabulary of 65 ids is not GPT-2's 50,257"):
        model_module.main(["import", str(path), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NESTED)
def test_nested_tuples(tmp_path, name):
    """140 bytes of tuples that hold each other: a sentence at once, where their hash or text takes for ever."""
    with_pickle(lambda _: NESTED[name])(tmp_path / "ckpt.pt")
    begun = time.monotonic()
    with pytest.raises(ValueError, match="cannot be imported"):
        neighbours.read_checkpoint(tmp_path / "ckpt.pt")
    assert time.monotonic() - begun < 2


def test_damaged_pickles(tmp_path):
    """200 pickles with bytes changed, taken out or put in, behind a right CRC: a sentence or a model, no traceback."""
    path, rng = tmp_path / "ckpt.pt", random.Random(0)
    save(nanogpt(n_embd=2, n_head=1), path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    refused = 0
    for _ in range(200):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in records.items():
                if name.endswith("data.pkl"):
                    at, length = rng.randrange(len(data)), rng.randrange(4)
                    data = data[:at] + rng.randbytes(rng.randrange(4)) + data[at + length :]
                archive.writestr(name, data)
        try:
            neighbours.read_checkpoint(path)
        except ValueError as error:
            assert "cannot be imported" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100


def test_no_name_is_allowed_that_runs():
    """Names a pickle may ask for that torch or Python would run: none; each is a type here, or a maker of records."""
    for name, made in neighbours.ALLOWED.items():
        own = isinstance(made, torch.dtype) or getattr(made, "__module__", "") == "lab.neighbours"
        assert own, name


def test_what_forks_keep(tmp_path):
    """Paths, numpy's numbers and settings in a checkpoint do not stop it, and stay unread."""
    extra = {"config": argparse.Namespace(out=pathlib.Path("x")), "best_val_loss": np.float64(3.5),
             "args": torch.device("cpu"), "losses": [np.float32(1)]}
    assert imported(save(nanogpt() | extra, tmp_path / "ckpt.pt"), tmp_path / "out").config.n_layer == 2


@pytest.mark.parametrize("module", [b"pathlib", b"pathlib._local"])
def test_paths_of_every_python(module):
    """Paths as Python 3.13 pickles them, and as all others do, whichever reads them: no fault."""
    data = pickle.dumps({"out": pathlib.Path("x"), "step": 7}, protocol=2)
    data, n = re.subn(rb"(?<=c)pathlib(\._local)?(?=\n)", module, data)
    assert n == 1 and neighbours.unpickle(data)["step"] == 7


def test_optimizer_is_not_read(tmp_path):
    """A bit flipped in the optimizer's numbers changes nothing: they are never read."""
    content = nanogpt()
    content["optimizer"]["state"] = {0: {"exp_avg": torch.full((99991,), 7.0)}}
    path = save(content, tmp_path / "ckpt.pt")
    data = path.read_bytes()
    at = data.index(torch.full((64,), 7.0).numpy().tobytes())
    path.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    assert imported(path, tmp_path / "out").config.n_layer == 2


@pytest.mark.parametrize("command, said", [
    (["nowhere.pt", "out"], "nowhere.pt does not exist"), (["folder", "out"], "name one of the files"),
    (["w.safetensors", "out"], "name the folder it lies in"), (["ckpt.pt", "folder"], "not empty"),
])
def test_commands(tmp_path, monkeypatch, command, said):
    """Sources that are near a checkpoint, but none: a sentence each, no folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    save(nanogpt(), tmp_path / "folder" / "ckpt.pt")
    save(nanogpt(), tmp_path / "ckpt.pt")
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=said):
        model_module.main(["import", *command])
    assert not (tmp_path / "out").exists()
    for wrong in ([], ["a", "--out_dir", "b"]):
        with pytest.raises(SystemExit):
            model_module.main(["import", "ckpt.pt", *wrong])


# ----------------------------------------------------------------------------------------------------------------------
# what takes the result


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nanogpt")
    imported(save(nanogpt(bias=False, block_size=256), folder / "ckpt.pt"), folder / "model")
    return folder / "model"


def test_training_goes_on(tmp_path, monkeypatch, checkpoint):
    """--init_from takes the shape from the checkpoint, its GELU too, and starts from its weights."""
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "data", tiny_documents(40, 5, 60))
    flags = ("--data_dir data --out_dir run --seq_len 16 --micro_batch_size 4 --total_batch_tokens 64 --eval_every 1 "
             "--max_train_steps 1 --val_tokens 100 --device cpu --results_csv= --init_from")
    assert train_gpt.main([*flags.split(), str(checkpoint)]) == 0
    trained, start = GPT.load("run/ckpt/step_000001"), GPT.load(checkpoint)
    assert trained.config == start.config and trained.config.arch == "nanogpt"
    for name in ("wte", "wpe"):
        moved = (trained.transformer[name].weight - start.transformer[name].weight).abs().max()
        assert 0 < moved < 0.01


def test_sft_goes_on(tmp_path, monkeypatch, checkpoint):
    """sft.py --init tunes it from its own weights."""
    monkeypatch.chdir(tmp_path)
    flags = ("--stage gsm8k --data synthetic:40 --out_dir run --max_train_steps 1 --total_batch_conversations 4 "
             "--micro_batch_size 2 --eval_every 0 --device cpu --init")
    assert sft.main([*flags.split(), str(checkpoint)]) == 0
    assert GPT.load("run/ckpt/step_000001").config == GPT.load(checkpoint).config


@pytest.mark.parametrize("exam, flags", [
    (hellaswag, ""), (ewok, ""), (eval_gsm8k, "--max_new_tokens 4 --probes off --max_examples 2")])
def test_exams(tmp_path, checkpoint, exam, flags):
    """Each exam scores it."""
    folder = ["--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    assert exam.main([*folder, "--data", "synthetic:4", "--device", "cpu", *flags.split()]) == 0


def test_padding_ids_that_a_model_writes(tmp_path):
    """A network of 50,304 rows may answer with an id that stands for no text: it is marked wrong, and the exam ends."""
    state = weights(block_size=256)
    state["transformer.ln_f.weight"].zero_()
    state["transformer.wte.weight"][50300] = 100 * state["transformer.ln_f.bias"]  # wins every softmax
    content = nanogpt(state, block_size=256)
    imported(save(content, tmp_path / "ckpt.pt"), tmp_path / "model")
    flags = "--data synthetic:2 --max_new_tokens 4 --device cpu --probes off".split()
    assert eval_gsm8k.main(["--checkpoint", str(tmp_path / "model"), "--out", str(tmp_path), *flags]) == 0
    assert "\ufffd" * 4 in json.loads((tmp_path / "gsm8k_completions.jsonl").read_text().splitlines()[0])["completion"]
