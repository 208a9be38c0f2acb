"""hf.py owns Hugging Face in and out: weights, configuration, and the folder that transformers loads."""

import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F

from model import GPT, GPTConfig, load_exactly

# Hugging Face stores these as Conv1D, (in, out): always transposed, by name. By shape, square ones would be missed.
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def from_hf_state(model: GPT, hf_state: dict) -> GPT:
    """Fills a gpt2-arch model without a gate from a GPT2LMHeadModel (or GPT2Model) state dict, and returns it.

    A vocabulary of at most config.vocab_size rows is taken; rows beyond it become zero. A zero row's logit is 0, far
    above GPT-2's usual ones, so ids that are never trained afterwards belong in config.unused_ids. ValueError for a
    head that is not the token rows."""
    if model.config.arch != "gpt2" or model.config.attn_gate != "none":
        raise ValueError("Hugging Face weights fit arch gpt2 without a gate only; use arch='gpt2', attn_gate='none'")
    state, head = {}, hf_state.get("lm_head.weight")
    for name, value in hf_state.items():
        name = name.removeprefix("transformer.")
        if name == "lm_head.weight" or name.endswith((".attn.bias", ".attn.masked_bias")):  # tied copy; causal masks
            continue
        state["transformer." + name] = value.t() if name.endswith(CONV1D) else value
    wte = state.get("transformer.wte.weight")
    if wte is not None:
        if head is not None and not torch.equal(head, wte):
            raise ValueError("the weights have a head of their own (lm_head.weight is not wte.weight), and this model "
                             "shares one matrix between the two; use a GPT-2 with tie_word_embeddings=True")
        missing = model.config.vocab_size - wte.size(0)
        if missing < 0:
            raise ValueError(f"the weights have {wte.size(0)} token rows, more than vocab_size "
                             f"{model.config.vocab_size}; use vocab_size={wte.size(0)}")
        rows = missing + model.config.padded_vocab_size - model.config.vocab_size
        state["transformer.wte.weight"] = F.pad(wte, (0, 0, 0, rows))
    load_exactly(model, state, "the Hugging Face state")
    return model


def to_hf_state(model: GPT) -> dict[str, torch.Tensor]:
    """A GPT2LMHeadModel state dict (n_inner and vocab_size as in the config, padding rows dropped), as copies."""
    if model.config.arch != "gpt2" or model.config.attn_gate != "none":
        raise ValueError("only arch gpt2 without a gate has a Hugging Face form; save this model with GPT.save")
    state = {}
    for name, value in model.state_dict().items():
        value = value[: model.config.vocab_size] if name.endswith("wte.weight") else value
        state[name] = (value.t() if name.endswith(CONV1D) else value).clone().contiguous()
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


SILENT_LOGIT = -1000.0  # what an exported padding id scores; GPT-2's own logits stay above about -200


def silent_row(model: GPT) -> torch.Tensor | None:
    """A row w (C,) whose logit is SILENT_LOGIT whatever the input, or None when the last norm allows none.

    Hugging Face's GPT-2 has no mask over padding ids, and a zero row's logit of 0 would win every softmax. The head
    reads h = gain * z + bias with sum(z) = 0, so (1 / gain) . h = sum(bias / gain) is a constant, and w a multiple of
    1 / gain. It must be small enough to survive bf16's rounding; with untrained biases (all 0) there is none."""
    ln = model.transformer["ln_f"]
    gain, bias = ln.weight.detach().double(), ln.bias.detach().double()
    if gain.abs().min() == 0:
        return None
    constant = (bias / gain).sum()
    noise = 2.0**-9 * (1 + bias / gain).norm()  # of bf16 rows, relative to the multiple
    return (SILENT_LOGIT / constant / gain).float() if constant.abs() > 2 * noise else None


def check_new_folder(out_dir: Path) -> None:
    """ValueError unless out_dir can be made, or is an empty folder."""
    there = next(path for path in (out_dir.absolute(), *out_dir.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written to" if there.is_dir() else "is a file"
        raise ValueError(f"{out_dir} cannot be made, because {there} {why}; choose another folder")
    if out_dir.exists() and any(out_dir.iterdir()):
        raise ValueError(f"{out_dir} is not empty; choose another folder, or delete it")


def export_hf(model: GPT, out_dir, write_tokenizer=None) -> list[str]:
    """Writes out_dir as Hugging Face's GPT2LMHeadModel reads it: config.json, model.safetensors (tied head, vocabulary
    cropped to config.vocab_size), generation_config.json, and what write_tokenizer(folder) adds. Reloads the folder
    with transformers and compares logits on random ids before it takes its name. Returns warnings.

    ValueError for an architecture or gate that GPT-2 cannot represent, an out_dir that exists or cannot be made, a
    vocabulary that the tokenizer's ids exceed, or unequal logits."""
    import shutil

    from safetensors.torch import save_file
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    out_dir, c, warnings = Path(out_dir), model.config, []
    check_new_folder(out_dir)
    state, end = to_hf_state(model), 50256 if c.vocab_size > 50256 else None  # <|endoftext|>
    if end is None and write_tokenizer is not None:
        raise ValueError(f"the model's vocabulary of {c.vocab_size} lacks ids of GPT-2's tokenizer (0 to 50256), which "
                         "an exported folder holds; train it with vocab_size of at least 50257")
    del state["lm_head.weight"]
    unused = [i for a, b in c.masked_ranges for i in range(a, min(b, c.vocab_size))]
    if unused:
        row = silent_row(model)
        state["transformer.wte.weight"][unused] = 0.0 if row is None else row
        if row is None:
            warnings.append(f"the {len(unused)} padding ids score 0 in the exported model, because its last norm has "
                            "(nearly) no bias: mask them yourself before a softmax; generate() suppresses them")
    tmp = out_dir.with_name(out_dir.name + ".tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    try:
        config = GPT2Config(
            vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head,
            n_inner=c.n_inner, activation_function="gelu_new", layer_norm_epsilon=1e-5, tie_word_embeddings=True,
            bos_token_id=end, eos_token_id=end, architectures=["GPT2LMHeadModel"])
        config.save_pretrained(tmp)
        GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end,
                         suppress_tokens=unused or None).save_pretrained(tmp)
        save_file(state, tmp / "model.safetensors", metadata={"format": "pt"})
        if write_tokenizer is not None:
            write_tokenizer(tmp)
        reloaded = GPT2LMHeadModel.from_pretrained(tmp).eval()
        ids = torch.randint(c.vocab_size, (2, min(c.block_size, 64)), generator=torch.Generator().manual_seed(0))
        ids = torch.where(torch.isin(ids, torch.tensor(unused)), 0, ids) if unused else ids
        with torch.no_grad():
            ours, theirs = model.eval()(ids)[..., : c.vocab_size], reloaded(ids).logits
        scored = ours > -math.inf
        worst = (ours - theirs)[scored].abs().max().item()
        if not worst <= 1e-4 * max(1.0, ours[scored].abs().max().item()):
            raise ValueError(f"the exported model's logits differ by {worst:.1e} from this one's; nothing was written, "
                             "please report it with the checkpoint's model.json")
        tmp.replace(out_dir)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    return warnings


def import_hf(source: str, vocab_size: int | None = None) -> GPT:
    """The GPT of a Hugging Face GPT-2, from a local folder or the hub. ValueError for a model that is not GPT-2's, or
    whose weights are not exactly its configuration's.

    vocab_size above the source's (50349 to fine-tune with multiplication tokens): each new token's row is the mean of
    the old rows (Hewitt 2021, "Initializing new word embeddings for pretrained language models"). The source's own rows
    are never padding, unless it has our 50349."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its report on weights that do not fit is an error here, in a sentence
    try:
        hf = transformers.AutoConfig.from_pretrained(source)
        if hf.model_type != "gpt2":
            raise ValueError(f"it is a {hf.model_type} model")
        expected = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
                    "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
        if wrong := [f"{k} {getattr(hf, k)}" for k, v in expected.items() if getattr(hf, k) != v]:
            raise ValueError(f"this GPT-2 differs in {', '.join(wrong)}")
        net, report = transformers.GPT2LMHeadModel.from_pretrained(
            source, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True)
        for fault in ("missing", "mismatched", "unexpected"):
            names = sorted(key if isinstance(key, str) else key[0] for key in report[f"{fault}_keys"])
            # old files hold the causal masks
            if names := [name for name in names if not name.endswith((".attn.bias", ".attn.masked_bias"))]:
                raise ValueError(f"{fault} weights: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}")
    except Exception as error:  # whatever transformers, torch and safetensors come up with
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{source} cannot be imported ({reason}); name a folder that holds a Hugging Face GPT-2, or a "
                         "GPT-2 on the hub such as openai-community/gpt2") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    n_old = hf.vocab_size
    first_new = 0 if n_old == GPTConfig.vocab_size else n_old
    unused = tuple((max(a, first_new), b) for a, b in GPTConfig.unused_ids if first_new <= b)
    model = GPT(GPTConfig(vocab_size=vocab_size or n_old, block_size=hf.n_positions, n_layer=hf.n_layer,
                          n_head=hf.n_head, n_embd=hf.n_embd, n_inner=hf.n_inner or 4 * hf.n_embd,
                          unused_ids=unused), seed=None)
    from_hf_state(model, net.state_dict())
    with torch.no_grad():
        wte = model.transformer["wte"].weight
        wte[n_old : model.config.vocab_size] = wte[:n_old].mean(0)
    return model
