"""compiling.py owns what --compile does: which parts of a training torch.compile makes faster, and what it needs.

    forward = compiling.compile_training(args, model, forward, world_size)
"""

import os
import shutil

import torch

from lab import chunks, gradients
from lab.loss import compile_softmax
from lab.schema import check

# device: the variable that names torch.compile's compiler, and what it tries; a GPU's kernels are started from C
COMPILERS = {"cpu": ("CXX", "g++", "clang++", "cl"), "cuda": ("CC", "gcc", "clang")}


def compiles(args, device) -> bool:
    if args.compile == "auto":
        return device.type == "cuda" and not missing_compiler(device)
    return args.compile == "on"


def missing_compiler(device) -> str:
    """The compiler that torch.compile needs for a device and does not find; "" when nothing is missing."""
    variable, first, *others = COMPILERS.get(device.type, ("", ""))
    found = not first or any(map(shutil.which, (os.environ.get(variable, first), *others)))
    return "" if found else first


def compile_training(args, model, forward, world_size=1):
    """forward, which reads rows with a model in training, or what does so faster, if --compile says so.

    world_size > 1: the blocks are compiled in parts, so that gradients can be summed over the ranks while others are
    still computed. sft.py and grpo.py do not pass it, as their forward does more than the model's: their gradients come
    at the end of the backward pass, and are summed then."""
    device = model.transformer["wte"].weight.device
    if not compiles(args, device):
        return forward
    compiler = missing_compiler(device)
    check(not compiler, "--compile on needs a compiler, and none is on the PATH: "
                        f"install {compiler}, or leave it out.")
    if device.type == "cuda":
        compile_softmax()
    if model.writes:
        chunks.compile_blocks(model)
        return forward  # calls the compiled block, as below
    if world_size > 1:
        gradients.compile_parts(model)
        return forward
    return torch.compile(forward)
