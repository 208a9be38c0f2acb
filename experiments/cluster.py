"""cluster.py tokenises the parts of a corpus through datatrove: on one machine, under Slurm, or on a Ray cluster.

    pip install -e '.[cluster]'
    python experiments/cluster.py --tasks 8 --workers 4 -- --dataset 'corpus/*.parquet' --out_dir D
    python experiments/cluster.py --executor slurm --partition cpu --tasks 64 -- --dataset 'more/*.jsonl' --out_dir D
    python experiments/cluster.py --executor ray --tasks 64 -- --dataset 'more/*.jsonl' --out_dir D
    python prepare_fineweb.py --dataset 'more/*.jsonl' --out_dir D --merge              # when all of them are done

After `--` come the flags of prepare_fineweb.py. Task i of n is `prepare_fineweb.py … --part i/n`, so the parts are as
from any other way (lab/parts.py), and tasks that are run again skip what is finished. All nodes must see the files, the
repo and its Python under the paths of this machine. With Slurm this script returns when the job is queued.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from lab import disk, flags, parts, processes  # noqa: E402
from lab.token_files import require  # noqa: E402

EXECUTORS = ("local", "slurm", "ray")


def part_step(prepare_flags: list[str], failures: Path | None):
    """The one step of the pipeline: task `rank` of `world_size` makes its share of the parts.

    failures: the folder where a task writes why it failed; None: it raises ValueError, of which datatrove prints the
    traceback. The class is made here, as datatrove is optional and carries a step to other machines by value."""
    from datatrove.pipeline.base import PipelineStep

    command, here = [sys.executable, str(ROOT / "prepare_fineweb.py"), *prepare_flags], os.getcwd()

    class MakeParts(PipelineStep):
        name, type = "parts", "Tokenizer"

        def run(self, data, rank: int = 0, world_size: int = 1):
            import os  # what this file has imported does not travel with the step
            import signal
            import subprocess
            import threading

            part = ["--part", f"{rank}/{world_size}"]
            with self.track_time():
                child = subprocess.Popen([*command, *part], cwd=here, stderr=subprocess.PIPE, text=True)

                def stop(number, frame):
                    child.terminate()
                    child.wait()
                    os._exit(128 + number)  # a pool's worker that unwinds may wait for the pool

                is_main = threading.current_thread() is threading.main_thread()
                before = signal.signal(signal.SIGTERM, stop) if is_main else None
                _, errors = child.communicate()
                if is_main:
                    signal.signal(signal.SIGTERM, before)
            if child.returncode:
                *_, last = [f"it ended with {child.returncode}", *errors.strip().splitlines()]
                sentence = f"{' '.join(part)}: {last}"
                if failures is None:
                    raise ValueError(sentence)
                (failures / f"{rank:05d}.txt").write_text(sentence)
            return data

    return MakeParts()


def executor_of(args, failures: Path):
    """datatrove's executor. What is finished is told by the parts, not by its own log of finished tasks. failures: see
    part_step; elsewhere than here the task itself must fail."""
    step = part_step(args.prepare, failures if args.executor == "local" else None)
    common = {"pipeline": [step], "tasks": args.tasks, "workers": args.workers or -1,
              "logging_dir": args.logging_dir, "skip_completed": False}
    if args.executor == "slurm":
        from datatrove.executor import SlurmPipelineExecutor

        activate = f'export PATH="{Path(sys.executable).parent}:$PATH"'  # launch_pickled_pipeline is there
        return SlurmPipelineExecutor(**common, job_name="parts", partition=args.partition, time=args.time, qos=args.qos,
                                     cpus_per_task=args.cpus_per_task, env_command=activate)
    if args.executor == "ray":
        from datatrove.executor import RayPipelineExecutor

        return RayPipelineExecutor(**common, cpus_per_task=args.cpus_per_task)
    from datatrove.executor import LocalPipelineExecutor

    return LocalPipelineExecutor(**common)


def main() -> None:
    parser = flags.Parser(
        description="The parts of a corpus through datatrove.",
        epilog="example: python experiments/cluster.py --tasks 8 -- --dataset 'corpus/*.parquet' --out_dir D")
    add = parser.add_argument_group("where").add_argument
    add("--executor", choices=EXECUTORS, default="local", help="who runs the tasks (default: local)")
    add("--tasks", type=int, required=True, help="shares of the source files; more than files are of no use")
    add("--workers", type=int, default=0, help="tasks at once (default: 0 = all)")
    add("--cpus_per_task", type=int, default=1, help="slurm, ray: as many as --num_proc after -- (default: 1)")
    add("--partition", help="slurm: partition")
    add("--time", default="24:00:00", help="slurm: limit of a task (default: 24:00:00)")
    add("--qos", default="normal", help="slurm: quality of service; '' asks for none (default: normal)")
    add("--logging_dir", default="logs/parts", help="logs and statistics of datatrove (default: logs/parts)")
    parser.add_argument("prepare", nargs="+", help="flags of prepare_fineweb.py, after --")
    args = parser.parse_args()
    enough = args.tasks > 0 and args.workers >= 0 and args.cpus_per_task > 0
    require(enough, "--tasks and --cpus_per_task are 1 or more",
            "pass others, and --workers 0 for all at once")
    require(args.executor != "slurm" or args.partition, "--executor slurm needs --partition", "sinfo lists them")
    require(args.executor != "slurm" or shutil.which("sbatch"),
            "--executor slurm needs Slurm's sbatch, and none is here",
            "run this on a login node, or choose another --executor")
    require(args.executor != "ray" or importlib.util.find_spec("ray"), "--executor ray needs the package ray",
            "pip install ray, then run the command again")
    check_prepare(args.prepare)
    failures = Path(args.logging_dir).absolute() / "failed"
    disk.make_folder(failures, "--logging_dir")
    for old in failures.glob("*.txt"):
        old.unlink()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ctrl-C: its processes would outlive it
    executor = executor_of(args, failures)
    try:
        executor.run()
    except Exception as error:  # of a task, through the layers of an executor
        raise ValueError(f"{error} Logs are in {args.logging_dir}; the same command makes what is missing.") from error
    failed = sorted(failures.glob("*.txt"))
    if failed:
        raise ValueError(f"{len(failed)} of {args.tasks} tasks failed, the first with {failed[0].read_text()} "
                         f"(the others: {failures}). The finished parts stay, and the same command makes the others.")
    print("When all tasks are done, run prepare_fineweb.py or prepare_bos_rows.py with the same flags and --merge.")


def check_prepare(words: list[str]) -> None:
    """Ends, before anything is queued, when prepare_fineweb.py would not take these flags."""
    import prepare_fineweb

    given = [word for word in words if word.split("=")[0] in ("--part", "--merge")]
    require(not given, "each task has a --part of its own, and --merge comes when all are done",
            f"leave {', '.join(given)} out")
    parser = flags.Parser(prog="prepare_fineweb.py")
    prepare_fineweb.add_shared_arguments(parser)
    prepare_args = parser.parse_args([*words, "--part", "0/1"])
    parts.check_arguments(prepare_args)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "cluster.py", "stopped; the finished parts stay.")
