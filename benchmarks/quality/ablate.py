"""Tasks x Swifts x recipes x seeds: which training makes a Swift that knows when it is wrong.

    python benchmarks/quality/ablate.py --data DATA --models MODELS [--tasks rte cola] [--swifts l6x1 l3]
        [--recipes plain distil] [--seeds 0 1 2] [--jobs 6] [--minutes 9] [--out runs/ablate]
    python benchmarks/quality/ablate.py --out runs/ablate --table [--result ablate]

DATA holds glue/SST-2, glue/RTE, glue/CoLA, superglue/WiC-full, banking77 (the benchmarks' own files) and trec (the
train.csv and validation.csv that `elang demo` writes); MODELS holds minilm-l3, minilm-l6 and mpnet-base, plain folders.
Every run leaves its answers to the routing slice and the evaluation set in OUT. Finished runs are not repeated, and
after --minutes no run is started. --table reads all answers, prints the tables and writes
benchmarks/results/ablate.json. Another run has other Supers, so it needs its own tables.
"""

import argparse
import json
import multiprocessing
import sys
import time
import warnings
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from ablate_jobs import run_scored, run_super, run_swift, run_texts
from ablate_setups import RECIPES, SETUPS, SWIFTS, TRANSFER, Job, fold_jobs, needs_folds
from common import about

# Jobs of the Super's size at the same time: their memory adds up.
MOST_SUPERS = 10


def start_worker(threads: int) -> None:
    """Configure the output and threads of a process."""
    import logging

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")


def work(job: Job, args: argparse.Namespace) -> None:
    """Run one job; a failure is printed, and other jobs continue."""
    from lightning.pytorch import seed_everything

    device = "gpu" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    seed_everything(job.seed, verbose=False)
    try:
        {"super": run_super, "texts": run_texts, "scored": run_scored}.get(job.kind, run_swift)(job, args, device)
        print(f"{job.path(args.out).stem}: {time.perf_counter() - start:.0f} s", flush=True)
    except Exception as error:
        print(f"{job.path(args.out).stem} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    # The next job may be another process's, and the memory is shared.
    torch.cuda.empty_cache()


def needs(job: Job) -> list[Job]:
    """The jobs that must be done before."""
    if job.kind in ("super", "texts"):
        return []
    first = [Job("super", job.task, job.seed)]
    if job.kind == "scored":
        return [*first, Job("texts", job.task, 0)]
    if job.recipe in TRANSFER:
        first.append(Job("scored", job.task, job.seed))
    if job.recipe == "gatekeeper":
        first.append(Job("swift", job.task, job.seed, job.swift, "plain"))
    return first + (fold_jobs(job) if needs_folds(job.recipe) else [])


def run_all(jobs: list[Job], args: argparse.Namespace) -> bool:
    """Run unfinished jobs in parallel, each as soon as the jobs it needs are done; return whether all are done."""
    until = time.time() + 60 * args.minutes
    waiting = [job for job in jobs if not job.path(args.out).exists()]
    running: dict[Any, Job] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, context, start_worker, (args.threads,)) as pool:
        while True:
            supers = sum(job.kind == "super" for job in running.values())
            for job in [*waiting] if time.time() < until else []:
                if len(running) == args.jobs:
                    break
                if job.kind == "super" and supers == MOST_SUPERS:
                    continue
                if all(one.path(args.out).exists() for one in needs(job)):
                    supers += job.kind == "super"
                    waiting.remove(job)
                    running[pool.submit(work, job, args)] = job
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                del running[future]
                future.result()
    return all(job.path(args.out).exists() for job in jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=SETUPS, default=list(SETUPS))
    parser.add_argument("--swifts", nargs="+", choices=SWIFTS, default=list(SWIFTS))
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    parser.add_argument("--recipes", nargs="+", choices=known, default=known)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--super", default="mpnet-base")
    parser.add_argument("--super_lr", type=float, default=3e-5)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--out", type=Path, default=Path("runs/ablate"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--result", default="ablate", help="name of the results file")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.table:
        from ablate_table import write_table

        write_table(args.out, args.result)
        return
    swifts = [
        Job("swift", task, seed, swift, recipe)
        for seed in args.seeds
        for recipe in args.recipes
        for task in args.tasks
        for swift in args.swifts
        if recipe not in TRANSFER or SETUPS[task].copies
    ]
    todo: list[Job] = []
    for job in swifts:
        todo += [one for first in needs(job) for one in [*needs(first), first]] + [job]
    # The Supers first, because many jobs wait for them.
    todo = sorted(dict.fromkeys(todo), key=lambda job: job.kind not in ("super", "texts"))
    made = args.out / "made.json"
    if not made.exists():
        made.write_text(json.dumps(about(("torch", "lightning", "transformers")) | {"jobs": args.jobs}))
    done = run_all(todo, args)
    print("all is done" if done else "not all is done: run it again")


if __name__ == "__main__":
    main()
