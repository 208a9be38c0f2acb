"""hf.py owns Hugging Face in and out: weights, configuration, and the folder that transformers loads.

    python model.py export experiments/runs/<run> gpt2_hf
    python model.py import openai-community/gpt2 gpt2
"""

import functools
import math
import os
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F

from lab import disk, flags, runs
from lab.tokenizer import FIRST_MUL_ID, VOCAB_SIZE, write_hf_tokenizer
from model import GPT, GPTConfig, check, load_exactly

# Hugging Face stores these as Conv1D, (in, out): always transposed, by name. By shape, square ones would be missed.
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
SHAPE = ("n_layer", "n_head", "n_embd", "n_inner")  # what both sides call alike
FORM = dict(  # what GPTConfig(arch="gpt2") builds of GPT2Config's variants
    activation_function="gelu_new", layer_norm_epsilon=1e-5, scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
CAUSAL_MASKS = (".attn.bias", ".attn.masked_bias")  # buffers that old files hold
END_OF_TEXT = 50256  # <|endoftext|>
SILENT_LOGIT = -1000.0  # of an exported padding id; GPT-2's own logits stay above about -200


def from_hf_state(model: GPT, hf_state: dict) -> GPT:
    """Fills a gpt2-arch model without a gate from a GPT2LMHeadModel (or GPT2Model) state dict, and returns it.

    Rows from the state's vocabulary up to config.vocab_size become zero. Their logit of 0 is far above GPT-2's usual
    ones: ids that are never trained belong in config.unused_ids. ValueError for weights that do not fit."""
    c = model.config
    check(c.arch == "gpt2" and c.attn_gate == "none",
          "Hugging Face weights fit only arch='gpt2' with attn_gate='none'; use these")
    state = {}
    for name, value in hf_state.items():
        if name != "lm_head.weight" and not name.endswith(CAUSAL_MASKS):
            oriented = value.t() if name.endswith(CONV1D) else value
            state["transformer." + name.removeprefix("transformer.")] = oriented
    wte = state.get("transformer.wte.weight")
    if wte is not None:
        check(torch.equal(hf_state.get("lm_head.weight", wte), wte),
              "the weights have a head of their own (lm_head.weight is not wte.weight); "
              "use a GPT-2 with tie_word_embeddings=True")
        check(len(wte) <= c.vocab_size, f"the weights have more than {c.vocab_size} token rows; "
                                        f"use vocab_size={len(wte)}")
        state["transformer.wte.weight"] = F.pad(wte, (0, 0, 0, c.padded_vocab_size - len(wte)))
    load_exactly(model, state, "the Hugging Face state")
    return model


def to_hf_state(model: GPT) -> dict[str, torch.Tensor]:
    """A GPT2LMHeadModel state dict, as copies, with the config's vocab_size token rows."""
    c = model.config
    check(c.arch == "gpt2" and c.attn_gate == "none" and model.attention_only,
          "only arch='gpt2' with attn_gate='none' (without a gate) has a Hugging Face form; use GPT.save")
    state = dict(model.state_dict())
    state["transformer.wte.weight"] = state["transformer.wte.weight"][: c.vocab_size]
    for name, value in state.items():
        oriented = value.t() if name.endswith(CONV1D) else value
        state[name] = oriented.clone().contiguous()
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def silent_row(model: GPT) -> torch.Tensor | None:
    """A row w (C,) whose logit is SILENT_LOGIT whatever the input, or None when the last norm allows none.
    Hugging Face's GPT-2 does not mask padding ids, and a zero row's logit of 0 would win every softmax. The head reads
    h = gain * z + bias with sum(z) = 0, so (1 / gain) . h = sum(bias / gain) is constant, and w a multiple of 1 / gain,
    small enough to survive bf16's rounding; with untrained biases (all 0) there is none."""
    norm = model.transformer["ln_f"]
    gain, bias = norm.weight.detach().double(), norm.bias.detach().double()
    if gain.abs().min() == 0:
        return None
    constant = (bias / gain).sum()
    noise = 2.0**-9 * (1 + bias / gain).norm()  # of bf16 rows, relative to the multiple
    if constant.abs() <= 2 * noise:
        return None
    return (SILENT_LOGIT / constant / gain).float()


def check_new_folder(out_dir: Path) -> None:
    """ValueError unless out_dir can be made, or is an empty folder."""
    existing = out_dir.absolute()
    while not existing.exists():
        existing = existing.parent
    refused = f"{out_dir} cannot be made, because {existing}"
    check(existing.is_dir(), f"{refused} is a file; choose another folder")
    check(os.access(existing, os.W_OK | os.X_OK), f"{refused} is read-only; choose another folder")
    check(existing != out_dir.absolute() or not any(out_dir.iterdir()),
          f"{out_dir} is not empty; choose another folder, or delete it")


def export_hf(model: GPT, out_dir, write_tokenizer=None) -> list[str]:
    """Writes out_dir as Hugging Face's GPT2LMHeadModel reads it: config.json, model.safetensors (tied head, vocabulary
    cropped to config.vocab_size), generation_config.json, and what write_tokenizer(folder) adds. The folder takes its
    name after transformers has reloaded it with equal logits. Returns warnings.

    ValueError: no such form, an out_dir in use, a vocabulary without all of the tokenizer's ids, unequal logits."""
    out_dir, c, warnings = Path(out_dir), model.config, []
    check_new_folder(out_dir)
    state = to_hf_state(model)
    del state["lm_head.weight"]
    check(write_tokenizer is None or c.vocab_size > END_OF_TEXT,
          f"the model's vocabulary of {c.vocab_size} lacks ids of GPT-2's tokenizer; "
          f"train with vocab_size of at least {END_OF_TEXT + 1}")
    unused = [i for first, last in c.masked_ranges for i in range(first, min(last, c.vocab_size))]
    if unused:
        row = silent_row(model)
        if row is None:
            row = torch.zeros(c.n_embd)
            warnings.append(f"the {len(unused)} padding ids score 0 in the exported model, because its last "
                            "norm has (nearly) no bias: mask them; generate() suppresses them")
        state["transformer.wte.weight"][unused] = row
    tmp = out_dir.with_name(out_dir.name + ".tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    try:
        _write_folder(tmp, c, state, unused)
        if write_tokenizer is not None:
            write_tokenizer(tmp)
        _compare_logits(model, tmp, unused)
        tmp.replace(out_dir)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    return warnings


def _write_folder(folder: Path, c: GPTConfig, state: dict, unused: list[int]) -> None:
    from safetensors.torch import save_file
    from transformers import GenerationConfig, GPT2Config

    end = END_OF_TEXT if c.vocab_size > END_OF_TEXT else None
    shape = {name: getattr(c, name) for name in SHAPE}
    GPT2Config(
        **shape, **FORM, vocab_size=c.vocab_size, n_positions=c.block_size, tie_word_embeddings=True,
        bos_token_id=end, eos_token_id=end, architectures=["GPT2LMHeadModel"]).save_pretrained(folder)
    ids = dict(bos_token_id=end, eos_token_id=end, pad_token_id=end)
    GenerationConfig(**ids, suppress_tokens=unused or None).save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    disk.share(folder / "model.safetensors")


@torch.no_grad()
def _compare_logits(model: GPT, folder: Path, unused: list[int]) -> None:
    """ValueError unless transformers' model in folder has model's logits, on random ids."""
    from transformers import GPT2LMHeadModel

    c, generator = model.config, torch.Generator().manual_seed(0)
    ids = torch.randint(c.vocab_size, (2, min(c.block_size, 64)), generator=generator)
    ids[torch.isin(ids, torch.tensor(unused))] = 0
    ours = model.eval()(ids)[..., : c.vocab_size]
    theirs = GPT2LMHeadModel.from_pretrained(folder).eval()(ids).logits
    scored = ours > -math.inf
    worst = (ours - theirs)[scored].abs().max().item()
    check(worst <= 1e-4 * max(1.0, ours[scored].abs().max().item()),
          f"the exported model's logits differ by {worst:.1e} from this one's, so nothing was "
          "written; report it with the checkpoint's model.json")


def import_hf(source: str, vocab_size: int | None = None) -> GPT:
    """The GPT of a Hugging Face GPT-2, from a local folder or the hub. ValueError for a model that is not GPT-2's, or
    whose weights are not exactly its configuration's.

    vocab_size above the source's (50349 to fine-tune with multiplication tokens): each new row is the mean of the old
    ones (Hewitt 2021, "Initializing new word embeddings for pretrained language models"). The source's own rows are
    never padding, unless it has our 50349."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # weights that do not fit are an error here
    try:
        net = _load_gpt2(source)
    except Exception as error:  # whatever transformers, torch and safetensors come up with
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{source} cannot be imported ({reason}); name a folder that holds a Hugging Face "
                         "GPT-2, or one on the hub such as openai-community/gpt2") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    c = net.config
    n_old = c.vocab_size
    first_new = 0 if n_old == GPTConfig.vocab_size else n_old
    unused = tuple((max(a, first_new), b) for a, b in GPTConfig.unused_ids if first_new <= b)
    shape = {name: getattr(c, name) for name in SHAPE}
    config = GPTConfig(**shape, vocab_size=vocab_size or n_old, block_size=c.n_positions, unused_ids=unused)
    model = from_hf_state(GPT(config, seed=None), net.state_dict())
    with torch.no_grad():
        wte = model.transformer["wte"].weight
        wte[n_old : config.vocab_size] = wte[:n_old].mean(0)
    return model


def _load_gpt2(source: str):
    """The GPT2LMHeadModel in source, in fp32; an error unless it is what GPTConfig(arch="gpt2") builds, and whole."""
    from transformers import AutoConfig, GPT2LMHeadModel

    config = AutoConfig.from_pretrained(source)
    check(config.model_type == "gpt2", f"it is a {config.model_type} model")
    for name, value in FORM.items():
        own = getattr(config, name)
        check(own == value, f"this GPT-2 has {name} {own}, not {value}")
    net, report = GPT2LMHeadModel.from_pretrained(
        source, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True)
    for fault in ("missing", "mismatched", "unexpected"):
        names = sorted(key if isinstance(key, str) else key[0] for key in report[f"{fault}_keys"])
        names = [name for name in names if not name.endswith(CAUSAL_MASKS)]
        check(not names, f"{fault} weights: {', '.join(names[:4])}")
    return net


def main(argv) -> None:
    parser = flags.Parser(prog=f"model.py {argv[0]}")
    add = parser.add_argument
    if argv[0] == "export":
        add("checkpoint", help="a run's folder (its newest whole checkpoint), or a checkpoint's folder")
        add("out_dir", type=Path, help="folder to make, for transformers")
        return export_checkpoint(**vars(parser.parse_args(argv[1:])))
    add("source", help="Hugging Face GPT-2: a folder, or a name on the hub")
    add("out_dir", type=Path, help="folder to make, for --init_from, sft.py and the evals")
    add("--new_vocab_size", type=int, default=0,
        help="tokens (0 = the source's; 50349 = room for the multiplication tokens)")
    args = parser.parse_args(argv[1:])
    check_new_folder(args.out_dir)
    model = import_hf(args.source, args.new_vocab_size or None)
    model.save(args.out_dir)
    size, vocab_size = model.num_params()["total"], model.config.vocab_size
    print(f"wrote {args.out_dir}: {args.source}, {size:,} parameters, vocabulary {vocab_size}; "
          "use it with train_gpt.py --init_from, sft.py --init, or an eval's --checkpoint")


def export_checkpoint(checkpoint: str, out_dir: Path) -> None:
    folder, step, _ = runs.resolve_checkpoint(checkpoint, flag="export")
    model = GPT.load(folder)
    # The multiplication tokens go along, unless their ids mean something else in this model.
    reserved = any(last == FIRST_MUL_ID for _, last in model.config.unused_ids)
    mul_tokens = reserved and model.config.vocab_size >= VOCAB_SIZE
    write_tokenizer = functools.partial(write_hf_tokenizer, mul_tokens=mul_tokens)
    for warning in export_hf(model, out_dir, write_tokenizer):
        print(f"WARNING: {warning}")
    source = str(folder) if step is None else f"{folder} (step {step})"
    print(f"wrote {out_dir}: {source}, {model.num_params()['total']:,} parameters; "
          "transformers reloads it with equal logits")
