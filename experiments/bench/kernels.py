"""kernels.py times what stands in for torch's kernels in bfloat16 training on a CPU: attention, GELU, the head.

    python experiments/bench/kernels.py
    python experiments/bench/kernels.py --threads 2 --rounds 51 --check

Forward and backward of 1,024 tokens, as GPT-2 has them (6 heads of 64; an MLP 1,536 wide), and of the head (50,304 ids,
width 384) the logits, the loss with its gradient in them, and the two products that give the gradients of its input and
weight; as these have no backward pass, all their time is in the first column. Ours and torch's in turn, in one process;
medians of the wall time. Where the CPU does not multiply bfloat16, --dtype auto trains in float32, and none of them is
used. Target: less time than torch's; for the head's products, which gain on some CPUs only, at most 1.1 of it.
"""

import os
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab.flags import Parser, check_first, check_flags  # noqa: E402

if __name__ == "__main__":
    check_first(__file__)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from lab import activations, attention, loss, precision, processes  # noqa: E402

TOKENS, HEADS, HEAD_DIM, INNER, IDS, WIDTH = 1024, 6, 64, 1536, 50304, 384


def seconds(function, inputs, grad) -> tuple[float, float]:
    """Of a forward pass, and of its backward pass, if there is one."""
    began = time.perf_counter()
    y = function(*inputs)
    between = time.perf_counter()
    if grad is not None:
        y.backward(grad)
    return between - began, time.perf_counter() - between


def of_attention(T: int):
    """(what makes q, k, v (B, H, T, dh) as a block has them: views of one projection; a gradient of the output)"""
    projected = torch.randn(TOKENS // T, T, 3, HEADS, HEAD_DIM, dtype=torch.bfloat16)

    def make():
        return [z.transpose(1, 2) for z in projected.clone().requires_grad_().unbind(2)]

    return make, torch.randn(TOKENS // T, HEADS, T, HEAD_DIM, dtype=torch.bfloat16)


def of_gelu():
    x = torch.randn(TOKENS, INNER, dtype=torch.bfloat16)
    return lambda: [x.clone().requires_grad_()], torch.randn_like(x)


def of_head():
    shapes = (TOKENS, IDS), (TOKENS, WIDTH), (IDS, WIDTH)
    inputs = [torch.randn(*shape, dtype=torch.bfloat16) for shape in shapes]
    return lambda: [*inputs, torch.empty(IDS, WIDTH), True], None


def of_logits():
    inputs = [torch.randn(*shape, dtype=torch.bfloat16) for shape in ((TOKENS, WIDTH), (IDS, WIDTH))]
    return lambda: inputs, None


def of_loss():
    x, weight = (torch.randn(*shape, dtype=torch.bfloat16) for shape in ((TOKENS, WIDTH), (IDS, WIDTH)))
    logits, targets = x @ weight.t() / 10, torch.randint(0, IDS, (TOKENS, 1))
    return lambda: [logits.clone(), x, weight, targets, []], None


def torchs_loss(logits, x, weight, targets, masked_ranges):
    log_p = torch.log_softmax(logits.float(), 1)
    probs = log_p.exp()
    probs.scatter_add_(1, targets, torch.full_like(targets, -1.0, dtype=torch.float32))
    return -log_p.gather(1, targets).squeeze(1), probs.to(logits.dtype)


def torchs_attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def torchs_gradients(grad_logits, x, weight, grad_w, is_first):
    grad_w.copy_(grad_logits.t() @ x)
    return grad_logits @ weight


def torchs_gelu(x):
    return F.gelu(x, approximate="tanh")


CASES = {
    "attention, T 256": (attention.causal_attention, torchs_attention, partial(of_attention, 256)),
    "attention, T 1024": (attention.causal_attention, torchs_attention, partial(of_attention, 1024)),
    "GELU": (activations.gelu, torchs_gelu, of_gelu),
    "logits of the head": (loss.form_logits, lambda x, weight: x @ weight.t(), of_logits),
    "loss and its gradient": (loss._bfloat16_gradients, torchs_loss, of_loss),
    "gradients of the head": (loss.head_backward, torchs_gradients, of_head),
}


ALLOWED = {"logits of the head": 1.1, "gradients of the head": 1.1}


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument("--rounds", type=int, default=51, help="repetitions, ours and torch's in turn (default: 51)")
    parser.add_argument("--check", action="store_true", help="exit 1 where ours takes longer")
    args = parser.parse_args()
    check_flags(parser, args, {"a whole number of at least 1": "rounds threads"})
    processes.tune_allocator()
    torch.set_num_threads(args.threads)
    native = precision.multiplies_bfloat16(torch.device("cpu"))
    hardware = processes.machine_state(torch.device("cpu"))["hardware"]
    print(f"{hardware['cpu']}, {os.cpu_count()} cores, {'native bf16' if native else 'no native bf16'}, torch "
          f"{torch.__version__}, {platform.system()}; {args.threads} thread(s), medians of {args.rounds}")
    print(f"{'ms, forward + backward':<24}{'ours':>16}{'torch':>16}  ours / torch")
    slower = []
    for name, (ours, torchs, build) in CASES.items():
        make, grad = build()
        rows = {ours: [], torchs: []}
        for _ in range(args.rounds + 3):  # the first ones fault pages in
            for function, row in rows.items():
                row.append(seconds(function, make(), grad))
        medians = [[1000 * statistics.median(part) for part in zip(*row[3:], strict=True)] for row in rows.values()]
        ratio = sum(medians[0]) / sum(medians[1])
        times = "".join(f"{forward:>8.2f} + {backward:5.2f}" for forward, backward in medians)
        print(f"{name:<24}{times}  {ratio:12.2f}", flush=True)
        if ratio >= ALLOWED.get(name, 1.0):
            slower.append(name)
    if slower and args.check:
        sys.exit(f"slower than torch's: {', '.join(slower)}")


if __name__ == "__main__":
    main()
