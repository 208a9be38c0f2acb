"""loader.py times the data loader beside nanoGPT's get_batch and build-nanogpt's DataLoaderLite.

    python experiments/bench/loader.py --nanogpt <checkout> --build_nanogpt <checkout>

Every loader delivers batches of shuffled windows as int64 (B, T) inputs and targets from the same tokens on disk. Peers
are run from their own source (paths on the command line): `get_batch` is taken by name out of nanoGPT's train.py,
`load_tokens` and `DataLoaderLite` out of build-nanogpt's train_gpt2.py. Figures are tokens per CPU-second, medians of
interleaved repetitions, and the longest single batch of a sequential pass over shard ends. Ours is timed with and
without its per-step checksum.
"""

import ast
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import flags  # noqa: E402

if __name__ == "__main__":
    flags.check_first(__file__)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from lab import data_order, processes, runs, shards  # noqa: E402
from lab.tokenizer import VOCAB_SIZE  # noqa: E402


def definitions(path: Path, names: tuple, namespace: dict) -> dict:
    """Execute only the named functions and classes of a script."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    exec(compile(tree, str(path), "exec"), namespace)
    return namespace


def rate(function, tokens: int) -> tuple[float, float]:
    """(tokens per CPU-second, per wall-second) of one call, in millions."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return tokens / 1e6 / max(time.process_time() - cpu, 1e-9), tokens / 1e6 / (time.perf_counter() - wall)


def main():
    p = flags.Parser(description=__doc__)
    p.add_argument("--nanogpt", type=Path, help="nanoGPT checkout ('' = leave out)")
    p.add_argument("--build_nanogpt", type=Path, help="build-nanogpt checkout ('' = leave out)")
    p.add_argument("--shard_tokens", type=int, default=20_000_000, help="tokens per shard (default 20M)")
    p.add_argument("--shards", type=int, default=3, help="shards (default 3)")
    p.add_argument("--repeats", type=int, default=9, help="interleaved repetitions (default 9)")
    p.add_argument("--check", action="store_true", help="exit 1 when a target is missed (>= 15 x nanoGPT, no stall)")
    args = p.parse_args()
    torch.set_num_threads(1)
    state = processes.machine_state(torch.device("cpu"))
    print(
        f"{state['hardware']['cpu']}, {os.cpu_count()} cores, {platform.system()}, "
        f"torch {torch.__version__}, numpy {np.__version__}"
    )
    failed = False
    args.nanogpt, args.build_nanogpt = (path and path.resolve() for path in (args.nanogpt, args.build_nanogpt))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # DataLoaderLite looks for its shards below the working directory
        rng, folder = np.random.default_rng(0), Path(folder)
        writer = shards.DatasetWriter(folder / "ours", {}, args.shard_tokens, 1)
        for _ in range(args.shards):
            writer.write(
                "train",
                rng.integers(0, 50257, args.shard_tokens, dtype=np.uint16),
                np.array([args.shard_tokens]),
                np.array([0]),
            )
        writer.commit({})
        writer.finish({"format": "stream", "vocab_size": VOCAB_SIZE, "condition": "baseline"})
        files, _ = shards.open_dataset(folder / "ours", verify=False)
        (folder / "nano").mkdir()
        (folder / "nano" / "train.bin").symlink_to(folder / "ours" / "train_000000.bin")
        if args.build_nanogpt:
            (folder / "edu_fineweb10B").mkdir()
            for i in range(args.shards):
                np.save(
                    folder / "edu_fineweb10B" / f"shard_train_{i:06d}.npy",
                    np.fromfile(folder / "ours" / f"train_{i:06d}.bin", "<u2"),
                )

        print(
            f"\n{'T':>5} {'B':>4} | {'ours':>8} {'+checksum':>10} {'nanoGPT':>8} | "
            "million tokens per CPU-second | ours / nanoGPT"
        )
        for seq_len, batch in ((1024, 12), (1024, 64), (256, 64)):
            steps = max(1, 2_000_000 // (seq_len * batch))
            ours = data_order.StepLoader(files, seq_len=seq_len, sequences_per_step=batch, seed=0, num_workers=0)
            ours.positions(0)  # the epoch's order is made once

            def run_ours(ours=ours, steps=steps, seq_len=seq_len, checksum=True):
                for s in range(steps):
                    if checksum:
                        tokens = ours.read_step(s)["tokens"]
                    else:
                        tokens = torch.from_numpy(files.read(ours.positions(s)[1], seq_len))
                    _ = tokens[:, :-1], tokens[:, 1:]

            variants = {"ours": lambda f=run_ours: f(checksum=False), "+checksum": run_ours}
            if args.nanogpt:
                nano = definitions(args.nanogpt / "train.py", ("get_batch",), {
                    "os": os, "np": np, "torch": torch, "data_dir": str(folder / "nano"), "block_size": seq_len,
                    "batch_size": batch,
                    "device_type": "cpu", "device": "cpu"})
                variants["nanoGPT"] = lambda get=nano["get_batch"], steps=steps: [get("train") for _ in range(steps)]
            figures = {name: [] for name in variants}
            for _ in range(args.repeats + 1):
                for name, function in variants.items():
                    figures[name].append(rate(function, steps * batch * seq_len)[0])
            median = {
                name: statistics.median(values[1:]) for name, values in figures.items()
            }  # the first touches the pages
            ratio = median["ours"] / median["nanoGPT"] if args.nanogpt else float("nan")
            failed |= ratio < 15
            print(f"{seq_len:5d} {batch:4d} | {median['ours']:8.0f} {median['+checksum']:10.0f} "
                  f"{median.get('nanoGPT', float('nan')):8.1f} | {'':29} | {ratio:6.1f} x (target 15)")

        print(
            "\nlongest batch near the shard ends of a sequential pass (B 16, T 1024), ms; and growth of peak memory, MB"
        )
        ours = data_order.StepLoader(
            files, seq_len=1024, sequences_per_step=16, seed=0, data_order="sequential", num_workers=0
        )
        passes = {"ours": ours.next_step}
        if args.build_nanogpt:
            build = definitions(args.build_nanogpt / "train_gpt2.py", ("load_tokens", "DataLoaderLite"),
                                {"os": os, "np": np, "torch": torch, "master_process": False})
            lite = build["DataLoaderLite"](16, 1024, 0, 1, "train")
            passes["build-nanogpt"] = lite.next_batch
        steps = int(args.shards * args.shard_tokens / (16 * 1024) * 0.95)
        for name, step in passes.items():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            times = []
            for _ in range(steps):
                start = time.perf_counter()
                step()
                times.append(1e3 * (time.perf_counter() - start))
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            typical = statistics.median(times)
            at_ends = [
                max(times[max(0, int(i * args.shard_tokens / 16384) - 2) : int(i * args.shard_tokens / 16384) + 3])
                for i in range(1, args.shards)
            ]
            print(f"{name:>14}: median {typical:7.3f}, longest within 2 batches of a shard end "
                  f"{max(at_ends):8.2f} = {max(at_ends) / typical:6.0f} x median; memory +{grown:.0f}")
            failed |= name == "ours" and max(at_ends) > 20 * typical and max(at_ends) > 20
        os.chdir(runs.REPO)
    sys.exit(1 if args.check and failed else 0)


if __name__ == "__main__":
    main()
