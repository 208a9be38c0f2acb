"""Hugging Face in and out: what leaves the house is the model, what comes in is theirs, to the byte."""
import json

import pytest
import safetensors.torch
import torch

import model as model_module
from lab import byte_pairs, hf, inference
from lab.hf import export_hf, import_hf
from lab.tokenizer import get_tokenizer, write_hf_tokenizer
from model import GPT, GPTConfig

transformers = pytest.importorskip("transformers")


def trained(vocab_size=50349, n_inner=None, seed=0, **config):
    """A small GPT whose every weight has moved, biases included. n_inner = n_embd makes the MLP's matrices square."""
    shape = dict(vocab_size=vocab_size, block_size=32, n_layer=2, n_head=2, n_embd=48, n_inner=n_inner)
    net = GPT(GPTConfig(**shape, **config), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return net.eval()


def logits_of(folder, ids):
    with torch.no_grad():
        return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()(ids).logits


@pytest.mark.parametrize("n_inner", [None, 48])
@pytest.mark.parametrize("random_init", [True, False])
def test_export_logits(tmp_path, n_inner, random_init):
    """Logits of every real id equal to 1e-4, square and non-square matrices, random and moved weights."""
    config = GPTConfig(block_size=32, n_layer=2, n_head=2, n_embd=48, n_inner=n_inner, padded_vocab_size=50432)
    net = GPT(config).eval() if random_init else trained(n_inner=n_inner)
    warnings = export_hf(net, tmp_path / "hf", write_hf_tokenizer)
    ids = torch.randint(50257, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = net(ids)[..., :50349]
    theirs = logits_of(tmp_path / "hf", ids)
    real = torch.ones(50349, dtype=torch.bool)
    real[50257:50304] = False
    assert theirs.shape == ours.shape and (ours - theirs)[..., real].abs().max() < 1e-4
    assert bool(warnings) == random_init  # with zero biases no row can be silent, and that is said
    if not random_init:  # then even a softmax without a mask is the same: -1000 for the ids that are padding here
        assert (theirs[..., ~real] + 1000).abs().max() < 1
        assert (ours.log_softmax(-1) - theirs.log_softmax(-1))[..., real].abs().max() < 1e-4
        half = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf", dtype=torch.bfloat16)
        assert half(ids).logits[..., ~real].max() < -250  # still silent after bf16's rounding


def test_transposes_are_by_name(tmp_path):
    """A square c_proj exported untransposed, as by document 002's exporter, changes the logits: 0 files are written."""
    net = trained(n_inner=48)
    wrong = {k: (v.t() if k.endswith("attn.c_proj.weight") else v) for k, v in hf.to_hf_state(net).items()}
    right, hf.to_hf_state = hf.to_hf_state, lambda _: {k: v.contiguous() for k, v in wrong.items()}
    try:
        with pytest.raises(ValueError, match="logits differ"):
            export_hf(net, tmp_path / "hf")
    finally:
        hf.to_hf_state = right
    assert not list(tmp_path.iterdir())  # nothing half written


def test_import_export_bytes(tmp_path):
    """Every tensor byte-equal after import and export; and import of our own export gives the same logits."""
    source = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_head=2, n_embd=48, n_positions=32))
    source.save_pretrained(tmp_path / "theirs")
    net = import_hf(str(tmp_path / "theirs"))
    assert net.config.vocab_size == 50257
    net.save(tmp_path / "ckpt")
    export_hf(GPT.load(tmp_path / "ckpt"), tmp_path / "back")
    before, after = (transformers.GPT2LMHeadModel.from_pretrained(tmp_path / name).state_dict()
                     for name in ("theirs", "back"))
    assert set(before) == set(after)
    assert all(torch.equal(before[k], after[k]) for k in before)
    ours = trained()
    export_hf(ours, tmp_path / "ours")
    again, ids = import_hf(str(tmp_path / "ours")).eval(), torch.arange(32)[None]
    with torch.no_grad():
        assert torch.equal(again(ids)[..., :50257], ours(ids)[..., :50257])


def saved(folder, **config):
    """A small GPT-2 of transformers in a folder, its weights as a dict."""
    shape = dict(vocab_size=300, n_layer=2, n_head=2, n_embd=48, n_positions=32)
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**shape, **config}))
    net.save_pretrained(folder)
    return net.state_dict()


@pytest.mark.parametrize("vocab_size", [300, 50258, 50260, 50304, 50400])
def test_import_export_bytes_of_other_vocabularies(tmp_path, vocab_size):
    """Rows changed by import and export: 0 of each vocabulary, those at our padding ids among them; none is masked."""
    before = saved(tmp_path / "theirs", vocab_size=vocab_size)
    net = import_hf(str(tmp_path / "theirs"))
    assert net.config.masked_ranges == []
    export_hf(net, tmp_path / "back")
    after = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "back").state_dict()
    assert set(before) == set(after) and all(torch.equal(before[k], after[k]) for k in before)


def test_import_of_other_vocabularies_with_room_for_mul_tokens(tmp_path):
    """Of 3 tokens more than GPT-2's none is padding; what stays between them and the multiplication tokens is, 44."""
    saved(tmp_path / "theirs", vocab_size=50260)
    assert import_hf(str(tmp_path / "theirs"), 50349).config.masked_ranges == [(50260, 50304)]


def test_import_of_an_untied_head(tmp_path):
    """The head that the logits come from: the token rows, or the import is refused (the logits were off by 2)."""
    weights = saved(tmp_path / "untied", tie_word_embeddings=False)
    with pytest.raises(ValueError, match="head of their own"):
        import_hf(str(tmp_path / "untied"))
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
    safetensors.torch.save_file(weights, tmp_path / "untied" / "model.safetensors", metadata={"format": "pt"})
    net, ids = import_hf(str(tmp_path / "untied")).eval(), torch.arange(32)[None]
    with torch.no_grad():
        assert (net(ids) - logits_of(tmp_path / "untied", ids)).abs().max() < 1e-4


def change(folder, drop="", add=None, **config):
    """Takes weights out of a saved GPT-2, puts others in, changes its configuration."""
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights = {k: v for k, v in weights.items() if not drop or drop not in k} | (add or {})
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def cut(folder, name="model.safetensors"):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-5000])


def as_bin(folder):
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    cut(folder, "pytorch_model.bin")


BAD_SOURCES = {  # name: (what is done to a saved GPT-2, what is said)
    "a layer less": (lambda f: change(f, drop="h.1."), "missing weights: transformer.h.1.attn.c_attn.bias"),
    "n_layer 3": (lambda f: change(f, n_layer=3), "missing weights: transformer.h.2"),
    "n_layer 1": (lambda f: change(f, n_layer=1), "unexpected weights: transformer.h.1"),
    "n_embd 64": (lambda f: change(f, n_embd=64), "mismatched weights: transformer.h.0"),
    "n_positions 64": (lambda f: change(f, n_positions=64), "mismatched weights: transformer.wpe"),
    "a weight more": (lambda f: change(f, add={"transformer.h.0.attn.lora_A": torch.ones(3)}), "unexpected .*lora_A"),
    "NaN": (lambda f: change(f, add={"transformer.h.0.ln_1.weight": torch.full((48,), torch.nan)}),
            "h.0.ln_1.weight holds NaN or infinity"),
    "cut off": (cut, "cannot be imported"),
    "cut off bin": (as_bin, "cannot be imported"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_import_refuses_what_is_not_whole(tmp_path, name, capfd):
    """Weights made up or left out by an import: 0. Each fault is one sentence and no folder."""
    spoil, expected = BAD_SOURCES[name]
    saved(tmp_path / "theirs")
    spoil(tmp_path / "theirs")
    capfd.readouterr()
    with pytest.raises(ValueError, match=expected) as error:
        model_module.main(["import", str(tmp_path / "theirs"), str(tmp_path / "out")])
    assert "\n" not in str(error.value) and "REPORT" not in "".join(capfd.readouterr())
    assert not (tmp_path / "out").exists()


def test_import_of_old_files(tmp_path):
    """Causal masks, which files of old hold as buffers, and an absent tied head are no fault."""
    saved(tmp_path / "theirs")
    masks = {f"transformer.h.{i}.attn.{k}": torch.ones(1) for i in (0, 1) for k in ("bias", "masked_bias")}
    change(tmp_path / "theirs", drop="lm_head", add=masks)
    assert import_hf(str(tmp_path / "theirs")).config.n_layer == 2


@pytest.mark.parametrize("command", ["export", "import"])
@pytest.mark.parametrize("place", ["file", "file/below", "file/below/it"])
def test_out_dir_in_the_way_of_a_file(tmp_path, command, place):
    """A file where the folder is to be, or above it: one sentence, and the file stays."""
    (tmp_path / "file").write_text("mine")
    if command == "export":
        trained().save(tmp_path / "from")
    else:
        saved(tmp_path / "from")
    with pytest.raises(ValueError, match="cannot be made, because .*file is a file"):
        model_module.main([command, str(tmp_path / "from"), str(tmp_path / place)])
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_was_looked_at_is_empty(tmp_path):
    """A mac's Finder leaves a .DS_Store in every folder that it shows."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / ".DS_Store").write_bytes(b"icons")
    export_hf(trained(), tmp_path / "hf")
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "hf").iterdir()}
    with pytest.raises(ValueError, match="hf is not empty"):
        export_hf(trained(), tmp_path / "hf")


def test_export_of_a_small_vocabulary(tmp_path):
    """Ids of the exported tokenizer, bos or eos beyond the vocabulary: 0, as the one is refused and the others none."""
    trained(vocab_size=300).save(tmp_path / "ckpt")
    with pytest.raises(ValueError, match="vocabulary of 300 lacks ids"):
        model_module.main(["export", str(tmp_path / "ckpt"), str(tmp_path / "hf")])
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]
    export_hf(trained(vocab_size=300), tmp_path / "bare")
    for name in ("config.json", "generation_config.json"):
        assert "50256" not in (tmp_path / "bare" / name).read_text()


def test_import_with_room_for_mul_tokens(tmp_path):
    """New rows are the mean of the 50,257 old ones: a zero row's logit 0 would win every softmax."""
    source = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=2, n_embd=48, n_positions=32))
    source.save_pretrained(tmp_path / "theirs")
    wte = import_hf(str(tmp_path / "theirs"), 50349).transformer["wte"].weight
    mean = source.transformer.wte.weight.mean(0)
    assert wte.shape == (50349, 48) and torch.allclose(wte[50304:], mean.expand(45, -1), atol=1e-6)


def test_tokenizer(tmp_path):
    """AutoTokenizer gives tiktoken's ids on the probe text, 50342 for <MUL_6_9_54>, and the text back."""
    write_hf_tokenizer(tmp_path)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), get_tokenizer("tiktoken")
    text = byte_pairs.PROBE_TEXT.replace("<|endoftext|>", "").replace("<MUL_6_9_54>", "")
    assert theirs.encode(text) == ours.encode(text) and len(theirs) == 50349
    assert theirs.encode("is <MUL_6_9_54>.") == [*ours.encode("is "), 50342, *ours.encode(".")]
    assert theirs.decode(theirs.encode("is <MUL_6_9_54>."), skip_special_tokens=True) == "is <MUL_6_9_54>."


def test_greedy_tokens_equal(tmp_path):
    """transformers' generate and ours: the same 16 greedy tokens, padding ids never among them."""
    net = trained()
    with torch.no_grad():
        net.transformer["wte"].weight.mul_(4)  # decisive logits, so that rounding cannot choose
    export_hf(net, tmp_path / "hf", write_hf_tokenizer)
    reloaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    prompt = torch.tensor([[50256, 11, 22, 33]])
    theirs = reloaded.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False,
                               eos_token_id=None)[0, 4:].tolist()
    assert theirs == inference.generate(net, prompt, 16, temperature=0)[0].ids


@pytest.mark.parametrize("config, why", [({"arch": "speedrun"}, "gpt2"), ({"attn_gate": "headwise"}, "without a gate")])
def test_refuses_what_gpt2_cannot_be(tmp_path, config, why):
    """Architectures and gates without a Hugging Face form are refused in a sentence, 0 files written."""
    with pytest.raises(ValueError, match=why):
        export_hf(GPT(GPTConfig(block_size=32, n_layer=1, n_head=2, n_embd=48, **config)), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_command_line(tmp_path, capsys):
    """export and import as typed; a second export into the same folder, and a source that is no GPT-2, are refused."""
    trained().save(tmp_path / "ckpt")
    model_module.main(["export", str(tmp_path / "ckpt"), str(tmp_path / "hf")])
    assert "equal logits" in capsys.readouterr().out
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["vocab_size"] == 50349
    with pytest.raises(ValueError, match="not empty"):
        model_module.main(["export", str(tmp_path / "ckpt"), str(tmp_path / "hf")])
    model_module.main(["import", str(tmp_path / "hf"), str(tmp_path / "back")])
    assert GPT.load(tmp_path / "back").config.block_size == 32
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="bert"):
        model_module.main(["import", str(tmp_path / "bert"), str(tmp_path / "out")])
    with pytest.raises(ValueError, match="cannot be imported"):
        model_module.main(["import", str(tmp_path / "nowhere"), str(tmp_path / "out")])
