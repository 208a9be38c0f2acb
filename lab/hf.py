"""hf.py owns Hugging Face in and out: weights, configuration, and the folder that transformers loads.

    python model.py export experiments/runs/<run> gpt2_hf
    python model.py import openai-community/gpt2 gpt2
    python model.py import out/ckpt.pt mine             # files of nanoGPT and build-nanogpt: lab/neighbours.py
"""


import contextlib
import dataclasses
import functools
import math
import os
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from lab import architecture, disk, files, flags, neighbours, runs
from lab.schema import check
from lab.tokenizer import BOS_ID, FIRST_MUL_ID, VOCAB_SIZE, advice_for, use_of, write_hf_tokenizer
from lab.tokenizer_files import check_tokenizer
from lab.tokenizer_json import TokenizerOfFile
from lab.tokenizer_json import load as load_tokenizer
from model import GPT, GPTConfig, load_exactly

# Hugging Face stores these as Conv1D, (in, out): always transposed, by name. By shape, square ones would be missed.
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
SHAPE = ("n_layer", "n_head", "n_embd", "n_inner")  # what both sides call alike
ACTIVATIONS = {"gelu": "gelu_new", "gelu_exact": "gelu"}  # MLP (lab/architecture.py) -> activation_function
FORM = dict(  # what these two build of GPT2Config's variants
    layer_norm_epsilon=1e-5, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False,
    add_cross_attention=False)
CAUSAL_MASKS = (".attn.bias", ".attn.masked_bias")  # buffers that old files hold
FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")  # no name on the hub ends like this
SILENT_LOGIT = -1000.0  # of an exported padding id; GPT-2's own logits stay above about -200


def is_gpt2(c: GPTConfig) -> bool:
    """Whether transformers' GPT-2 has such parts. How the weights began does not matter, and a bias may be zero."""
    parts = architecture.parts_of(c)._replace(weight_init=architecture.GPT2.weight_init, bias=architecture.GPT2.bias)
    gpt2 = any(parts == architecture.GPT2._replace(mlp=mlp) for mlp in ACTIVATIONS)
    return gpt2 and c.attn_gate == "none" and c.memory == "none"


def from_hf_state(model: GPT, hf_state: dict) -> GPT:
    """Fills a model of GPT-2's parts from a GPT2LMHeadModel (or GPT2Model) state dict, and returns it.

    Rows from the state's vocabulary up to config.vocab_size become zero. Their logit of 0 is far above GPT-2's usual
    ones: ids that are never trained belong in config.unused_ids. ValueError for weights that do not fit."""
    c = model.config
    check(is_gpt2(c) and architecture.build(c).bias,
          "Hugging Face weights fit only arch='gpt2' (or 'nanogpt') with attn_gate='none'; use these")
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


def gpt2_shapes(c: GPTConfig) -> dict[str, tuple]:
    """{name: shape} of the weights of a GPT-2, in our orientation."""
    C, inner = c.n_embd, c.n_inner
    shapes = {"wte.weight": (c.padded_vocab_size, C), "wpe.weight": (c.block_size, C),
              "ln_f.weight": (C,), "ln_f.bias": (C,)}
    for i in range(c.n_layer):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{norm}.{part}": (C,) for part in ("weight", "bias")}
        for linear, rows, columns in (("attn.c_attn", 3 * C, C), ("attn.c_proj", C, C),
                                      ("mlp.c_fc", inner, C), ("mlp.c_proj", C, inner)):
            shapes |= {f"h.{i}.{linear}.weight": (rows, columns), f"h.{i}.{linear}.bias": (rows,)}
    return {f"transformer.{name}": shape for name, shape in shapes.items()}


def to_hf_state(model: GPT) -> dict[str, torch.Tensor]:
    """A GPT2LMHeadModel state dict, as copies, with the config's vocab_size token rows."""
    c = model.config
    check(is_gpt2(c) and model.attention_only,
          "only arch='gpt2' or 'nanogpt' with all of its parts, without a gate and without a memory has a Hugging Face "
          "form; use GPT.save")
    state, plain = dict(model.state_dict()), gpt2_shapes(c)
    if architecture.parts_of(c).bias == "off":
        zeros = {name: torch.zeros(shape) for name, shape in plain.items() if name.endswith(".bias")}
        state = zeros | state
    own = {name: tuple(value.shape) for name, value in state.items()}
    others = sorted(name for name in own | plain if own.get(name) != plain.get(name))
    check(not others, f"this network is not GPT-2's, by {', '.join(others[:3])}: where you changed "
                      "it, transformers' GPT-2 cannot be it; use GPT.save")
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
    if norm.bias is None:
        return None
    gain, bias = norm.weight.detach().double(), norm.bias.detach().double()
    if gain.abs().min() == 0:
        return None
    constant = (bias / gain).sum()
    noise = 2.0**-9 * (1 + bias / gain).norm()  # of bf16 rows, relative to the multiple
    if constant.abs() <= 2 * noise:
        return None
    return (SILENT_LOGIT / constant / gain).float()


def check_new_folder(out_dir: Path) -> None:
    """ValueError unless out_dir can be made, or is an empty folder (but for what a file manager leaves in it)."""
    existing = out_dir.absolute()
    while not existing.exists():
        existing = existing.parent
    refused = f"{out_dir} cannot be made, because {existing}"
    check(existing.is_dir(), f"{refused} is a file; choose another folder")
    check(os.access(existing, os.W_OK | os.X_OK), f"{refused} is read-only; choose another folder")
    check(existing != out_dir.absolute() or {path.name for path in out_dir.iterdir()} <= disk.FILE_MANAGERS,
          f"{out_dir} is not empty; choose another folder, or delete it")


@contextlib.contextmanager
def made_whole(out_dir: Path):
    """A folder that becomes out_dir when the block is through, and leaves nothing when it fails. It
    is made in one of a name that nobody has. ValueError when it cannot be written."""
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}.", dir=out_dir.parent) as box:
            folder = Path(box, out_dir.name)
            folder.mkdir()
            yield folder
            for name in disk.FILE_MANAGERS:
                (out_dir / name).unlink(missing_ok=True)
            folder.replace(out_dir)
    except (OSError, SafetensorError) as error:
        why, remedy = disk.reason_of(error, named=True), disk.remedy_of(error)
        raise ValueError(f"{out_dir} cannot be written ({why}); {remedy}, or choose another folder") from error


def export_hf(model: GPT, out_dir, write_tokenizer=None, end: int = BOS_ID) -> list[str]:
    """Writes out_dir as Hugging Face's GPT2LMHeadModel reads it: config.json, model.safetensors (tied head, vocabulary
    cropped to config.vocab_size), generation_config.json, and what write_tokenizer(folder) adds. The folder takes its
    name after transformers has reloaded it with equal logits. Returns warnings. end: the id that ends a text.

    ValueError: no such form, an out_dir in use, a vocabulary without all of the tokenizer's ids, unequal logits."""
    out_dir, c, warnings = Path(out_dir), model.config, []
    check_new_folder(out_dir)
    state = to_hf_state(model)
    del state["lm_head.weight"]
    check(write_tokenizer is None or c.vocab_size > end,
          f"the model's vocabulary of {c.vocab_size} lacks ids of its tokenizer, which has "
          f"{end + 1:,} or more: {advice_for(c.vocab_size)}")
    unused = [i for first, last in c.masked_ranges for i in range(first, min(last, c.vocab_size))]
    if unused:
        row = silent_row(model)
        if row is None:
            row = torch.zeros(c.n_embd)
            warnings.append(f"the {len(unused)} padding ids score 0 in the exported model, because its last "
                            "norm has (nearly) no bias: mask them; generate() suppresses them")
        state["transformer.wte.weight"][unused] = row
    with made_whole(out_dir) as folder:
        _write_folder(folder, c, state, unused, end)
        if write_tokenizer is not None:
            write_tokenizer(folder)
        _compare_logits(model, folder, unused)
    return warnings


def _write_folder(folder: Path, c: GPTConfig, state: dict, unused: list[int], end: int | None) -> None:
    from safetensors.torch import save_file
    from transformers import GenerationConfig, GPT2Config

    end = end if c.vocab_size > end else None
    shape = {name: getattr(c, name) for name in SHAPE}
    GPT2Config(
        **shape, **FORM, activation_function=ACTIVATIONS[architecture.parts_of(c).mlp], vocab_size=c.vocab_size,
        n_positions=c.block_size, tie_word_embeddings=True, bos_token_id=end, eos_token_id=end,
        architectures=["GPT2LMHeadModel"],
    ).save_pretrained(folder)
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
          "written; where you changed the network, transformers' GPT-2 cannot be it; else report it with the "
          "checkpoint's model.json")


def import_hf(source: str, vocab_size: int | None = None) -> GPT:
    """The GPT of a Hugging Face GPT-2, from a local folder or the hub. ValueError for a model that is not GPT-2's, or
    whose weights are not exactly its configuration's.

    vocab_size: see grown. The source's own rows are never padding, unless it has our 50349."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # weights that do not fit are an error here
    try:
        net = _load_gpt2(source)
    except Exception as error:  # whatever transformers, torch and safetensors come up with
        reason = files.first_line(error)
        raise ValueError(f"{source} cannot be imported ({reason}); name a folder that holds a Hugging Face "
                         "GPT-2, or one on the hub such as openai-community/gpt2") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    c = net.config
    shape = {name: getattr(c, name) for name in SHAPE}
    mlp = next(mlp for mlp, name in ACTIVATIONS.items() if name == c.activation_function)
    named = next(name for name, parts in architecture.ARCHS.items() if parts == architecture.GPT2._replace(mlp=mlp))
    config = GPTConfig(**shape, arch=named, vocab_size=c.vocab_size, block_size=c.n_positions,
                       unused_ids=unused_ids(c.vocab_size))
    return grown(from_hf_state(GPT(config, seed=None), net.state_dict()), vocab_size)


def unused_ids(n_old: int) -> tuple:
    """Which ids are padding in a model that came with n_old rows."""
    first_new = 0 if n_old == GPTConfig.vocab_size else n_old
    return tuple((max(a, first_new), b) for a, b in GPTConfig.unused_ids if first_new <= b)


@torch.no_grad()
def grown(model: GPT, vocab_size: int | None) -> GPT:
    """The model with a vocabulary of vocab_size (None: its own; 50349: to fine-tune with multiplication tokens).

    Each new row is the mean of the old ones (Hewitt 2021, "Initializing new word embeddings for pretrained language
    models"). ValueError for less than it has."""
    n_old = model.config.vocab_size
    if vocab_size in (None, n_old):
        return model
    check(vocab_size > n_old, f"the weights have more than {vocab_size} token rows; use vocab_size={n_old}")
    config = dataclasses.replace(model.config, vocab_size=vocab_size, padded_vocab_size=vocab_size,
                                 unused_ids=unused_ids(n_old))
    state = model.state_dict()
    wte = state["transformer.wte.weight"]
    state["transformer.wte.weight"] = torch.cat([wte, wte.mean(0).expand(vocab_size - n_old, -1)])
    larger = GPT(config, seed=None)
    load_exactly(larger, state, "the larger model")
    return larger


def _load_gpt2(source: str):
    """The GPT2LMHeadModel in source, in fp32; an error unless GPT2 of lab/architecture.py, with an MLP
    in ACTIVATIONS, is it, and whole."""
    from transformers import AutoConfig, GPT2LMHeadModel

    config = AutoConfig.from_pretrained(source)
    check(config.model_type == "gpt2", f"it is a {config.model_type} model")
    possible = {name: [value] for name, value in FORM.items()}
    possible["activation_function"] = list(ACTIVATIONS.values())
    for name, values in possible.items():
        own = getattr(config, name)
        check(own in values, f"this GPT-2 has {name} {own}, not {' or '.join(map(str, values))}")
    net, report = GPT2LMHeadModel.from_pretrained(
        source, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True)
    for fault in ("missing", "mismatched", "unexpected"):
        names = sorted(key if isinstance(key, str) else key[0] for key in report[f"{fault}_keys"])
        names = [name for name in names if not name.endswith(CAUSAL_MASKS)]
        check(not names, f"{fault} weights: {', '.join(names[:4])}")
    return net


def finder(source: str):
    """find(name) -> the file of that name beside the weights, in a folder or on the hub, or None."""

    def find(name: str):
        path = Path(source)
        if path.exists():
            file = path / name if path.is_dir() else path.with_name(name)
            return file if file.is_file() else None
        from transformers.utils import cached_file

        try:
            return cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        except OSError:  # of a hub that answered a moment ago, with the weights
            return None

    return find


def own_tokenizer(find, vocab_size: int) -> TokenizerOfFile | None:
    """The tokenizer.json beside the weights, where it is not GPT-2's and can be used here; else None."""
    path = find("tokenizer.json")
    if path is None:
        return None
    try:
        own = load_tokenizer(path)
    except ValueError:
        return None
    with contextlib.suppress(ValueError):
        check_tokenizer(find, vocab_size)
        return None
    return own if own.vocab_size <= vocab_size else None


def import_checkpoint(source: str, out_dir: Path, new_vocab_size: int, gelu: str | None) -> None:
    """The command: a Hugging Face GPT-2, or a neighbour's file, as a checkpoint of ours."""
    check_new_folder(out_dir)
    path, notes = Path(source), []
    check(path.exists() or path.suffix not in FILES, f"{source} does not exist; name a file that does")
    check(path.suffix != ".safetensors", f"{source} holds weights alone; name the folder it lies in")
    if path.is_file():
        model, notes = neighbours.read_checkpoint(path, gelu)
    else:
        names = sorted(file.name for file in path.glob("*.pt"))
        check(not names or (path / "config.json").exists(),
              f"{source} is a folder with {', '.join(names[:3])}; name one of the files")
        check(gelu is None, f"--gelu is for nanoGPT's files; leave it out, as {source} says what it has")
        model = import_hf(source)
    own = own_tokenizer(finder(source), model.config.vocab_size)
    warnings = []
    if own is None:
        try:
            warnings = check_tokenizer(finder(source), model.config.vocab_size)
        except ValueError as error:
            raise ValueError(f"{source} cannot be imported: {error}") from None
    model = grown(model, new_vocab_size or None)
    with made_whole(out_dir) as folder:
        model.save(folder)
        if own is not None:
            own.save(folder)
            notes = [*notes, f"its own tokenizer of {own.vocab_size:,} ids goes along"]
    for line in [*notes, *(f"WARNING: {warning}" for warning in warnings)]:
        print(line)
    size, vocab_size = model.num_params()["total"], model.config.vocab_size
    print(f"wrote {out_dir}: {source}, {size:,} parameters, vocabulary {vocab_size}; "
          "use it with train_gpt.py --init_from, sft.py --init, or an eval's --checkpoint")


def main(argv) -> None:
    command = argv[0]
    parser = flags.Parser(prog=f"model.py {command}")
    add = parser.add_argument
    if command == "export":
        add("checkpoint", help="a run's folder (its newest whole checkpoint), or a checkpoint's folder")
    else:
        add("source", help="a folder with a Hugging Face GPT-2, or its name on the hub; nanoGPT's "
                           "ckpt.pt; build-nanogpt's model_*.pt")
        add("--new_vocab_size", type=int, default=0,
            help="tokens (0 = the source's; 50349 = room for the multiplication tokens)")
        add("--gelu", choices=neighbours.GELU,
            help="of nanoGPT's file (default: exact; tanh: of before May 2023)")
    add("folder", nargs="?", type=Path, metavar="OUT_DIR", help="folder to make; or --out_dir")
    add("--out_dir", type=Path, help="the same")
    args = vars(parser.parse_args(argv[1:]))
    folder = args.pop("folder")
    if (folder is None) == (args["out_dir"] is None):
        parser.error("name one folder to make, as OUT_DIR or with --out_dir")
    args["out_dir"] = folder or args["out_dir"]
    run = {"export": export_checkpoint, "import": import_checkpoint}[command]
    run(**args)


def export_checkpoint(checkpoint: str, out_dir: Path) -> None:
    folder, step, _ = runs.resolve_checkpoint(checkpoint, flag="export")
    model, own = GPT.load(folder), use_of(folder)
    # The multiplication tokens go along, unless their ids mean something else in this model.
    reserved = any(last == FIRST_MUL_ID for _, last in model.config.unused_ids)
    mul_tokens = reserved and model.config.vocab_size >= VOCAB_SIZE
    write_tokenizer = functools.partial(write_hf_tokenizer, mul_tokens=mul_tokens)
    if not own.is_gpt2:
        write_tokenizer = own.write_hf
    for warning in export_hf(model, out_dir, write_tokenizer, own.bos_id):
        print(f"WARNING: {warning}")
    source = str(folder) if step is None else f"{folder} (step {step})"
    print(f"wrote {out_dir}: {source}, {model.num_params()['total']:,} parameters; "
          "transformers reloads it with equal logits")
