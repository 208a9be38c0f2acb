"""kernels.py owns which of a GPU's kernels are used where torch's own choice is wrong for us. Without
--deterministic a CPU's stay as they are.

    with kernels.for_many_shapes(): ...          # both also as decorators of functions
    with kernels.allow_nondeterministic(): ...
    kernels.make_deterministic(device)           # --deterministic
    kernels.avoid_cudnn()                        # where rows have a mask
"""

import contextlib

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def for_many_shapes():
    """Attention by any kernel but cuDNN's, which torch prefers from 2.11 on (H100, B200) and which makes a plan for
    each new shape: 23 to 37 ms, more than a step of decoding takes, and in decoding every token has a shape of its own.
    In training, with one shape, it is the faster one."""
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield


def avoid_cudnn() -> None:
    """From now on, attention by any kernel but cuDNN's: with a mask its backward pass gives NaN at some lengths, on
    torch 2.11 and later (pytorch's issue 196678). Where no mask is passed it is right, and the faster one."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def make_deterministic(device: torch.device) -> None:
    """The same bits in every run. On CUDA in strict mode, where an operation without such a kernel is an error: with
    warnings only, the backward pass of attention would stay as it is."""
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False  # no buffer here is read before it is written


@contextlib.contextmanager
def allow_nondeterministic():
    """Takes strict mode back to warnings: for sampling, whose cumulative sums CUDA may add in another order. In float64
    that moves a border by 1e-16."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(min(mode, 1))
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
