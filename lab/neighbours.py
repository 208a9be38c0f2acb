"""neighbours.py owns the checkpoints of nanoGPT (ckpt.pt) and build-nanogpt (model_*.pt): read as data, no code runs.

    python model.py import out/ckpt.pt OUT               # nanoGPT
    python model.py import log/model_19072.pt OUT        # build-nanogpt

    nanoGPT         {"model", "optimizer", "model_args": dict, "iter_num", "best_val_loss", "config"}
    build-nanogpt   {"model", "config": GPTConfig, "step", "val_loss"}

torch.save writes a zip of uncompressed records: data.pkl, the pickled objects, and data/<key>, the
bytes of each storage, all with a CRC-32. A pickle is a program, so data.pkl meets an unpickler that
knows the few names below and no other; GPTConfig, a class of the file's own `__main__`, becomes a
record of its fields. Storages are read last, once names, shapes and sizes are known to fit, and an
optimizer's never.
"""

from __future__ import annotations

import collections
import math
import pickle
import pickletools
import zipfile
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch

from lab import files
from lab.schema import ANY_NAME, ANYTHING, COUNT, check, misfit
from model import GPT, GPTConfig, check_shapes, load_exactly

LARGEST_PICKLE = 2**24  # bytes; nanoGPT's is about 50 kB
FLAG = "true or false", lambda value: isinstance(value, bool)
SHAPE = dict.fromkeys("n_layer n_head n_embd block_size vocab_size".split(), COUNT)
SETTINGS = {ANY_NAME: ANYTHING, **SHAPE, "bias?": FLAG}  # bias: nanoGPT's, since 2023
WRAPPERS = {"_orig_mod", "module"}  # in a weight's name: torch.compile, DistributedDataParallel
CAUSAL_MASKS = (".attn.bias", ".attn.masked_bias")  # buffers that old files hold
GELU = {"exact": "nanogpt", "tanh": "gpt2"}  # the flag --gelu -> the architecture


class Layout(NamedTuple):
    """How a project's file is laid out."""

    name: str
    settings: str  # the key of the model's shape
    step: str  # the key of the number of updates
    gelu: str  # which one its network has; the file does not say


LAYOUTS = (
    Layout("nanoGPT", "model_args", "iter_num", "exact"),
    Layout("build-nanogpt", "config", "step", "tanh"),
)


# ----------------------------------------------------------------------------------------------------------------------
# what a pickle may hold


class Fields:
    """An object of a class that is not imported: its state, and nothing that runs."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        self.state = None

    def __setstate__(self, state):
        self.state = state


class Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    numel: int


class Stored(NamedTuple):
    """A tensor whose bytes are still in the archive."""

    storage: Storage
    offset: int
    shape: tuple
    stride: tuple


def rebuild_tensor(*arguments) -> Stored:
    """What torch's functions of this name get: first these four, then gradients and hooks."""
    return Stored(*arguments[:4])


def ordered(*pairs) -> collections.OrderedDict:
    """OrderedDict's pickle makes an empty one, and then sets its items."""
    check(not pairs, "its pickle is damaged")
    return collections.OrderedDict()


DTYPES = dict(
    Double=torch.float64, Float=torch.float32, Half=torch.float16, BFloat16=torch.bfloat16,
    Long=torch.int64, Int=torch.int32, Short=torch.int16, Char=torch.int8, Byte=torch.uint8,
    Bool=torch.bool)
FORKS = (  # what they keep beside the weights: settings, paths (_local: of Python 3.13), numbers of numpy
    "argparse.Namespace torch.device torch.Size pathlib.Path pathlib.PosixPath pathlib.WindowsPath "
    "pathlib._local.Path pathlib._local.PosixPath pathlib._local.WindowsPath "
    "numpy.dtype numpy.core.multiarray.scalar numpy._core.multiarray.scalar _codecs.encode"
).split()
ALLOWED = {
    **{f"torch.{name}Storage": dtype for name, dtype in DTYPES.items()},
    **dict.fromkeys(FORKS, Fields),
    "collections.OrderedDict": ordered,
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}


def check_keys(keys) -> None:
    """The hash of a key of tuples in tuples, a few bytes that name each other, would take for ever."""
    check(not any(isinstance(key, tuple) for key in keys), "its pickle has a tuple as a key")


class Unpickler(pickle._Unpickler):
    """pickle's own in Python, which has a table of opcodes."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def load_setitem(self):
        check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self):
        check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self):
        check_keys(self.stack[::2])
        super().load_dict()

    def refuse_set(self):
        raise ValueError("its pickle holds a set")

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.FROZENSET[0]] = dispatch[pickle.ADDITEMS[0]] = refuse_set

    def find_class(self, module, name):
        if name == "GPTConfig":
            return Fields
        full = f"{module}.{name}"
        check(full in ALLOWED, f"its pickle asks for {full}, which is no data; nothing of it was run")
        return ALLOWED[full]

    def persistent_load(self, pid):
        _, dtype, key, _, numel = pid
        check(isinstance(key, str) and isinstance(dtype, torch.dtype), "its pickle is damaged")
        return Storage(key, dtype, numel)


def unpickle(data: bytes):
    """The objects of data.pkl. Some exception when it is damaged, or asks for anything but data."""
    for opcode, argument, _ in pickletools.genops(data):  # which also checks every length in it
        # The memo is an array: one entry at 2**31 would take 16 GB.
        check("PUT" not in opcode.name or argument <= len(data), "its pickle is damaged")
    return Unpickler(BytesIO(data)).load()


# ----------------------------------------------------------------------------------------------------------------------
# the archive


class Archive:
    """An open file of torch.save: its objects, and the tensors that they name."""

    def __init__(self, path: Path, zipped: zipfile.ZipFile):
        self.zip, self.size, self.storages = zipped, path.stat().st_size, {}
        records = zipped.infolist()
        plain = all(record.compress_type == zipfile.ZIP_STORED for record in records)
        total = sum(record.file_size for record in records)
        check(plain and total <= self.size,
              f"it unpacks to {total:,} bytes, more than torch.save puts into a file of {self.size:,}")
        names = [name for name in zipped.namelist() if name.endswith("/data.pkl")]
        check(len(names) == 1, "it is a zip, but none of torch.save's")
        self.root = names[0].removesuffix("data.pkl")
        check(self.read("byteorder", b"little") == b"little", "its numbers are big-endian")
        data = self.read("data.pkl")
        check(len(data) <= LARGEST_PICKLE, f"its pickle has {len(data):,} bytes without weights")
        self.objects = unpickle(data)

    def read(self, name: str, default=None) -> bytes:
        if default is not None and self.root + name not in self.zip.NameToInfo:
            return default
        return self.zip.read(self.root + name)  # which checks the CRC-32

    def tensor(self, stored: Stored) -> torch.Tensor:
        """The tensor in fp32, from its storage, which is read once."""
        key, dtype, _ = stored.storage
        if key not in self.storages:
            self.storages[key] = bytearray(self.read(f"data/{key}"))
        flat = torch.frombuffer(self.storages[key], dtype=dtype)
        return flat.as_strided(stored.shape, stored.stride, stored.offset).float()


def read_checkpoint(path, gelu: str | None = None) -> tuple[GPT, list[str]]:
    """(the model in a checkpoint of either project, sentences on what a user should know of it).

    gelu: "exact" or "tanh"; None: the project's. ValueError, a sentence, for any other file."""
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as zipped:
            return build(Archive(path, zipped), gelu)
    except Exception as error:  # whatever zipfile, pickle and torch make of a damaged file
        reason = files.first_line(error)
        if not zipfile.is_zipfile(path):
            reason = "no whole zip of torch.save: cut off, of a torch before 1.6, or something else"
        raise ValueError(f"{path} cannot be imported ({reason}); name nanoGPT's ckpt.pt, "
                         "build-nanogpt's model_*.pt, or a folder with a Hugging Face GPT-2") from error


# ----------------------------------------------------------------------------------------------------------------------
# the model


def build(archive: Archive, gelu: str | None) -> tuple[GPT, list[str]]:
    layout, settings = layout_of(archive.objects)
    gelu = gelu or layout.gelu
    step = archive.objects.get(layout.step)
    at = f" of step {step}" if isinstance(step, int) else ""
    notes = [f"{layout.name}'s checkpoint{at}, {gelu} GELU"]
    if layout.name == "nanoGPT":
        notes[0] += " (its own since May 2023; for an older file: --gelu tanh)"
    state = weights_of(archive.objects["model"])
    head = state.pop("lm_head.weight", None)
    check_size(state, settings, archive.size)

    # Every row is the network's own: its softmax is over all of them, the 47 of padding too.
    shape = {name: settings[name] for name in SHAPE}
    bias = "on" if settings.get("bias", True) else "off"
    config = GPTConfig(**shape, arch=GELU[gelu], bias=bias, unused_ids=())
    with torch.device("meta"):
        net = GPT(config, seed=None)
    check_shapes(net, state, "its weights")

    tensors = {name: archive.tensor(stored) for name, stored in state.items()}
    rows = tensors["transformer.wte.weight"]
    # the shape first: nothing bounds that of a head, which may repeat one number without end
    is_tied = head is None or (tuple(head.shape) == rows.shape and torch.equal(archive.tensor(head), rows))
    check(is_tied, "it has a head of its own, lm_head.weight, where GPT-2 uses its token rows")
    model = GPT(config, seed=None)
    load_exactly(model, tensors, "its weights")
    return model, notes


def layout_of(objects) -> tuple[Layout, dict]:
    """(whose file it is, its network's settings). ValueError for another project's."""
    check(isinstance(objects, dict), "it is no dictionary")
    for layout in LAYOUTS:
        settings = objects.get(layout.settings)
        if isinstance(settings, Fields):
            settings = settings.state
        if isinstance(settings, dict) and SHAPE.keys() <= settings.keys() and "model" in objects:
            fault = misfit(settings, SETTINGS)
            check(not fault, f"of its {layout.settings}, {fault}")
            return layout, settings
    keys = ", ".join(map(str, list(objects)[:6]))
    raise ValueError(f"its keys, {keys[:80]}, are not those of either project's checkpoint")


def weights_of(model) -> dict[str, Stored]:
    """The weights by their names in GPT, without buffers."""
    check(isinstance(model, dict), "its model is no dictionary")
    state: dict = {}
    for key, stored in model.items():
        name = ".".join(part for part in str(key).split(".") if part not in WRAPPERS)
        check(isinstance(stored, Stored) and isinstance(stored.storage, Storage), f"{name} is no tensor")
        fault = misfit([*stored.shape, *stored.stride, stored.offset], [COUNT], name)
        check(not fault, fault)
        check(name not in state, f"it has {name} twice")
        check(stored.storage.dtype.is_floating_point, f"{name} holds {stored.storage.dtype}")
        if not name.endswith(CAUSAL_MASKS):
            state[name] = stored
    return state


def check_size(state: dict[str, Stored], settings: dict, size: int) -> None:
    """ValueError unless the weights can be in a file of `size` bytes, and are as wide and deep as
    the settings say: nothing else bounds what a model of those settings would take."""
    total = sum(math.prod(one.shape) * one.storage.dtype.itemsize for one in state.values())
    check(total <= size, f"its weights are {total:,} bytes, in a file of {size:,}")
    layers = {name.split(".")[2] for name in state if name.startswith("transformer.h.")}
    check(len(layers) == settings["n_layer"],
          f"it holds {len(layers)} layers, and its settings say {settings['n_layer']}")
    rows, expected = state["transformer.wte.weight"].shape, (settings["vocab_size"], settings["n_embd"])
    check(tuple(rows) == expected, f"its token rows are {tuple(rows)}, and its settings say {expected}")
