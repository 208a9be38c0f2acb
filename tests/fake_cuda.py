"""A simulated CUDA device: tensors that say cuda:0 and hold real data on the CPU.

    with fake_cuda.device() as seen:
        train_gpt.main([..., "--device", "cuda", "--compile", "off"])
    seen.waits.total(), seen.launches.total()

    torchrun --standalone --nproc_per_node=2 tests/fake_cuda.py train_gpt.py ... --device cuda --compile off

What would fail on a card fails here: CUDA and CPU tensors in one operation, .numpy(), a collective over a CPU tensor,
an operation without a deterministic kernel in strict mode. Counted are kernels, and the places where the host waits
for the device: what reads a value (.item(), .tolist(), .cpu(), nonzero), copies from memory that is not pinned, and
torch.cuda.synchronize.

Limits: the kernels are the CPU's, compiled functions run as they are written, and autocast reaches only what asks for
its dtype. A thread other than the caller's sees CUDA tensors, but counts nothing.
"""

import collections
import contextlib
import importlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import safetensors.torch
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

REPO = str(Path(__file__).resolve().parents[1])
CUDA = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
NAME = "NVIDIA H100 80GB HBM3"
aten = torch.ops.aten

# operations that wait for the device, because the size or the value of what they return depends on data
WAITING = set("_local_scalar_dense is_nonzero nonzero masked_select unique_dim _unique2 unique_consecutive equal "
              "bincount".split())
# the floating-point ones of what torch.use_deterministic_algorithms refuses on CUDA
NOT_DETERMINISTIC = set("cumsum cumsum_ put_ histc bincount kthvalue median grid_sampler_2d_backward".split())
MIXING = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


@dataclass
class Seen:
    """What happened on the device so far."""

    waits: collections.Counter = field(default_factory=collections.Counter)  # (why, "file:line" of this repo)
    launches: collections.Counter = field(default_factory=collections.Counter)  # name of an operation


seen = Seen()


def place() -> str:
    """file:line of this repo's code that is being run."""
    frame = sys._getframe(1)
    while frame:
        path = frame.f_code.co_filename
        if path.startswith(REPO) and path != __file__ and "site-packages" not in path:
            return f"{os.path.relpath(path, REPO)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def wait(why: str) -> None:
    seen.waits[why, place()] += 1


class CudaTensor(torch.Tensor):
    """Wraps a CPU tensor. Autograd, which needs a device that exists, takes it for a CPU tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self):
        return f"CudaTensor({self.inner})"

    def __deepcopy__(self, memo):
        return CudaTensor(self.inner.clone())

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy; copy it to the CPU first")

    def tolist(self):
        wait("tolist")
        return self.inner.tolist()

    def cpu(self):
        wait("cpu")
        return self.detach().inner.clone()


def on_cpu(value):
    return value.inner if isinstance(value, CudaTensor) else value


def is_cuda(device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


# pinned memory: by the address of its storage, as views share it
pinned = {}


def pin(tensor):
    pinned[tensor.untyped_storage().data_ptr()] = tensor
    return tensor


def upload(tensor, non_blocking=False) -> CudaTensor:
    if not (non_blocking and tensor.untyped_storage().data_ptr() in pinned):
        wait("copy from memory that is not pinned, or blocking")
    return CudaTensor(tensor.detach().clone())


def run(func, args, kwargs):
    """An operation that has a CUDA tensor among its arguments, or makes one. What it makes is on the device, even where
    autograd, which believes to be on the CPU, names that."""
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    ours = {id(one.inner): one for one in tensors if isinstance(one, CudaTensor)}
    others = [one for one in tensors if not isinstance(one, CudaTensor)]
    name, target = func.overloadpacket.__name__, kwargs.get("device")
    if ours and func in INDEXING:
        check_indices(func, args)
    elif ours and func not in MIXING and any(one.dim() for one in others):
        shapes = [tuple(one.shape) for one in others]
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but {shapes} are on the CPU")
    if ours and name in WAITING:
        wait(name)
    floating = any(one.is_floating_point() for one in tensors)
    if ours and floating and name in NOT_DETERMINISTIC and torch.get_deterministic_debug_mode() == 2:
        raise RuntimeError(f"{name} does not have a deterministic implementation on CUDA")
    if func is aten.copy_.default and isinstance(args[0], CudaTensor) != isinstance(args[1], CudaTensor):
        wait("copy_ between devices")
    leaves = func is aten._to_copy.default and target is not None and not is_cuda(target)
    if ours and leaves:
        wait("copy to the CPU")
    kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    result = func(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs))
    if leaves:
        return result
    returns = func._schema.returns
    is_view = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
    if not is_view and name != "_unsafe_view":
        seen.launches[name] += 1

    def wrap(value):
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in ours:  # in place
            return ours[id(value)]
        return CudaTensor(value)

    return tree_map(wrap, result)


def check_indices(func, args) -> None:
    """A CUDA tensor may be indexed by CPU indices, which are sent to it, and a CPU tensor not by CUDA indices."""
    indices = [one for one in args[1] if one is not None]
    if not isinstance(args[0], CudaTensor):
        raise RuntimeError(f"{func}: indices should be either on cpu or on the same device as the indexed tensor")
    if not all(isinstance(one, CudaTensor) for one in indices):
        wait("indices on the CPU")
    if any(one.dtype == torch.bool for one in indices):
        wait("mask as index")
    if len(args) > 2 and not isinstance(args[2], CudaTensor) and args[2].dim():
        raise RuntimeError(f"{func}: expected values on the device of the tensor")


class Operations(TorchDispatchMode):
    """Sees what is made on the device, and what CPU tensors are called with."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_cuda(kwargs.get("device")) or any(isinstance(one, CudaTensor) for one in tree_leaves((args, kwargs))):
            return run(func, args, kwargs)
        return func(*args, **kwargs)


class Calls(TorchFunctionMode):
    """Sees what would never reach an operation, as both sides are on the CPU in truth, or as there is no CUDA."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.Tensor.to, torch.Tensor.cuda):
            return move(*args, **kwargs, func=func)
        if func in (torch.Tensor.pin_memory, torch.Tensor.is_pinned):
            storage = args[0].untyped_storage()
            return storage.data_ptr() in pinned if func is torch.Tensor.is_pinned else pin(args[0].clone())
        pinning = kwargs.pop("pin_memory", False)
        made_on_cuda = is_cuda(kwargs.get("device"))
        if made_on_cuda:
            del kwargs["device"]
        result = func(*args, **kwargs)
        if made_on_cuda and not isinstance(result, CudaTensor):
            if func in (torch.tensor, torch.as_tensor):
                return upload(result)
            seen.launches[func.__name__] += 1
            return CudaTensor(result.detach()).requires_grad_(result.requires_grad)
        return pin(result) if pinning else result


def move(tensor, *args, func=None, non_blocking=False, device=None, dtype=None, copy=False):
    """Tensor.to and Tensor.cuda"""
    if func is torch.Tensor.cuda:
        device = CUDA
    for arg in args:
        if isinstance(arg, torch.dtype):
            dtype = arg
        elif isinstance(arg, torch.Tensor):
            device, dtype = arg.device, arg.dtype
        elif isinstance(arg, bool):
            non_blocking = arg
        elif arg is not None:
            device = torch.device(arg)
    goes_to_cuda = is_cuda(device)
    if device is not None and goes_to_cuda != isinstance(tensor, CudaTensor):
        tensor = upload(tensor, non_blocking) if goes_to_cuda else tensor.cpu()
    if dtype is not None:
        tensor = tensor.to(dtype=dtype)
    return tensor.clone() if copy else tensor


# ----------------------------------------------------------------------------------------------------------------------
# what stands in for torch's own functions


def empty(*args, pin_memory=False, **kwargs):
    """torch.empty, in the threads of a loader, too."""
    result = originals.empty(*args, **kwargs)
    return pin(result) if pin_memory else result


def run_backward(*args, **kwargs):
    """The engine, in whose backward functions Calls must see what it sees elsewhere."""
    with Calls():
        return originals.run_backward(*args, **kwargs)


def saving(function):
    """torch.save and safetensors' save_file, which copy to the CPU first."""

    def save(values, *args, **kwargs):
        for one in tree_leaves(values):
            if isinstance(one, CudaTensor):
                wait("saving")
        return function(tree_map(on_cpu, values), *args, **kwargs)

    return save


def load(path, map_location=None, **kwargs):
    if not is_cuda(map_location):
        return originals.load(path, map_location=map_location, **kwargs)
    value = originals.load(path, map_location="cpu", **kwargs)
    return tree_map(lambda one: upload(one) if isinstance(one, torch.Tensor) else one, value)


def group_by_device(tensorlists, with_indices=False):
    """{(device, dtype): ...}, which optimizers ask for."""
    groups = originals.group(tensorlists, with_indices)
    return {(on[0][0].device, dtype): (on, indices) for (_, dtype), (on, indices) in groups.items()}


def of_cuda(function):
    """A collective of NCCL, which takes CUDA tensors alone."""

    def collective(tensor, *args, **kwargs):
        if not isinstance(tensor, CudaTensor):
            raise RuntimeError("No backend type associated with device type cpu")
        return function(tensor.inner, *args, **kwargs)

    return collective


def start_gloo(backend, device_id=None, **kwargs):
    assert backend == "nccl" and device_id == CUDA
    return originals.init_process_group("gloo", **kwargs)


def broadcast_objects(values, src=0, device=None):
    return originals.broadcast_object_list(values, src=src)


distributed = torch.distributed
originals = SimpleNamespace(
    empty=torch.empty, load=torch.load, run_backward=torch.autograd._engine_run_backward,
    group=torch._C._group_tensors_by_device_and_dtype,
    init_process_group=distributed.init_process_group, broadcast_object_list=distributed.broadcast_object_list)
STATE = torch.zeros(16, dtype=torch.uint8)
OF_CUDA = dict(
    is_available=lambda: True, is_bf16_supported=lambda including_emulation=True: True,
    device_count=lambda: 8, current_device=lambda: CUDA.index, set_device=lambda device: None,
    get_device_name=lambda device=None: NAME, synchronize=lambda device=None: wait("synchronize"),
    get_device_properties=lambda device=None: SimpleNamespace(total_memory=80 * 2**30),
    max_memory_allocated=lambda device=None: 2**30, reset_peak_memory_stats=lambda device=None: None,
    empty_cache=lambda: None, get_rng_state=lambda device=None: STATE.clone(),
    set_rng_state=lambda state, device=None: None)


@contextlib.contextmanager
def device():
    """Inside, torch has one CUDA device. Yields what it has seen since."""
    seen.waits.clear()
    seen.launches.clear()
    pinned.clear()
    with contextlib.ExitStack() as stack:
        patch = lambda *args, **kwargs: stack.enter_context(mock.patch.object(*args, **kwargs))
        stack.enter_context(mock.patch.multiple(torch.cuda, **OF_CUDA))
        patch(torch, "empty", empty)
        for module, name in ((torch, "save"), (safetensors.torch, "save_file")):
            patch(module, name, saving(getattr(module, name)))
        patch(torch, "load", load)
        patch(torch.autograd, "_engine_run_backward", run_backward)
        patch(torch.__future__, "_overwrite_module_params_on_conversion", True)  # or Module.to would fill the old ones
        patch(torch._C, "_group_tensors_by_device_and_dtype", group_by_device)
        # with a CUDA build of torch it asks the driver, and there may be none
        patch(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None)
        patch(distributed, "init_process_group", start_gloo)
        patch(distributed, "broadcast_object_list", broadcast_objects)
        for name in ("all_reduce", "broadcast"):
            patch(distributed, name, of_cuda(getattr(distributed, name)))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(Calls())
        stack.enter_context(Operations())
        yield seen


if __name__ == "__main__":
    sys.path.insert(0, REPO)
    script = importlib.import_module(sys.argv[1].removesuffix(".py"))
    with device():
        status = script.main(sys.argv[2:])
    sys.exit(status)
