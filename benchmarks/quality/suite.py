"""The suite over several seeds: quality, speed-ups and costs of every task's pair, as mean and spread.

    python benchmarks/quality/suite.py --config configs/suite/bert-small.yaml --swift MINILM --super MPNET \
        --folders glue=GLUE superglue=SUPERGLUE --tasks glue/sst2 glue/rte glue/cola superglue/wic [--seeds 0 1 2]

The models are folders of transformers. Fits run in parallel (--jobs), the timed evaluations of the first seed one by
one. Run it again to resume (--until stops it after a stage). Prints a table and writes
benchmarks/results/suite.json.
"""

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from elang.cli.suite_plan import read_plan, task_steps, write_configs
from elang.cli.suite_steps import STAGES, Step, forget_stale, run_chains
from elang.cli.suite_table import read_row

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

POINTS = ("held out, parity", "read here, parity", "read here, 99.5%", "read here, 99%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--swift", required=True)
    parser.add_argument("--super", required=True)
    parser.add_argument("--folders", nargs="+", required=True, help="benchmark=folder or task=folder")
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--until", choices=STAGES, default="joint")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-suite"))
    parser.add_argument("--name", default="suite", help="of the results file")
    args = parser.parse_args()
    plan = read_plan(str(args.config)) | {"swift_model": args.swift, "super_model": args.super}
    folders = dict(part.split("=", 1) for part in args.folders)
    chains: dict[tuple[int, str], list[Step]] = {}
    for seed in args.seeds:
        # One timing is enough, and a second would run in parallel with other work.
        joint = plan["joint"].get("model", {}) | {"latency": seed == args.seeds[0]}
        for task in args.tasks:
            folder = folders.get(task) or folders[task.partition("/")[0]]
            own = plan | {"joint": plan["joint"] | {"model": joint}}
            chains[seed, task] = list(task_steps(task, own, folder, root=args.out / f"seed{seed}", seed=seed))
    steps = [step for chain in chains.values() for step in chain]
    write_configs(steps, parse=False)
    forget_stale(steps)
    start = time.perf_counter()
    stages = STAGES[: STAGES.index(args.until) + 1]

    def timed(key: tuple[int, str], step: Step) -> bool:
        return step.stage == "joint" and key[0] == args.seeds[0]

    # Long tasks first, so that none is left alone at the end.
    order = sorted(chains, key=lambda key: args.tasks.index(key[1]))
    run_chains([[s for s in chains[k] if s.stage in stages and not timed(k, s)] for k in order], args.jobs)
    print(f"fits and untimed evaluations: {time.perf_counter() - start:.0f} s")
    if args.until != "joint":
        return
    run_chains([chains[args.seeds[0], task] for task in args.tasks])
    rows = {key: read_row(key[1], chain[-1].made) for key, chain in chains.items()}
    areas = {key: areas_of(chain[-1].made) for key, chain in chains.items()}
    figures = {task: figures_of(task, [rows[seed, task] for seed in args.seeds]) for task in args.tasks}
    for task in args.tasks:
        figures[task]["areas of all scores"] = spread_of([areas[seed, task] for seed in args.seeds])
        show(task, figures[task])
    versions = ("torch", "lightning", "transformers", "torchmetrics")
    write_result(args.name, {"config": args.config.name, "seeds": args.seeds, "tasks": figures}, versions)


def areas_of(path: Path) -> dict[str, float]:
    """Each score's area, of one run; NaN where random and oracle are one."""
    first = next(iter(json.loads(path.read_text("utf-8"))["qualities"].values()))
    scores = {name: found["area"] for name, found in first["scores"].items() if name not in ("random", "oracle")}
    return {name: math.nan if area is None else area for name, area in scores.items()}


def spread(values: list[float]) -> dict[str, Any]:
    if any(math.isnan(value) for value in values):
        return {"mean": math.nan, "deviation": math.nan, "runs": values}
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "runs": values}


def spread_of(runs: list[dict[str, float]]) -> dict[str, Any]:
    return {name: spread([run[name] for run in runs]) for name in runs[0]}


def figures_of(task: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"metrics": rows[0]["metrics"], "examples": rows[0]["examples"], "score": rows[0]["score"]}
    for name in ("swift", "super", "swift_gflops", "super_gflops", "area"):
        found[name] = spread([row[name] for row in rows])
    found["ms of the first seed"] = rows[0]["ms"]
    for point in POINTS:
        points = [row["points"][point] for row in rows]
        found[point] = {name: spread([p[name] for p in points]) for name in ("quality", "kept", "gflops", "speedup")}
        found[point]["ms of the first seed"] = points[0]["ms"]
    return found


def show(task: str, found: dict[str, Any]) -> None:
    def cell(value: dict[str, Any], scale: float = 100, digits: int = 1) -> str:
        return f"{scale * value['mean']:.{digits}f} ± {scale * value['deviation']:.{digits}f}"

    print(f"{task} ({', '.join(found['metrics'])}): Swift {cell(found['swift'])}, Super {cell(found['super'])}")
    for point in POINTS:
        p = found[point]
        print(
            f"  {point:18} joint {cell(p['quality'])}, kept {cell(p['kept'], digits=0)} %, {cell(p['gflops'], 1, 2)} "
            f"GFLOPs, {cell(p['speedup'], 1, 2)}x, ms {p['ms of the first seed']}"
        )
    for what, times in found["ms of the first seed"].items():
        print(f"  {what}: {times['batch 1']:.2f} ms at batch 1, {times['best batch']:.4f} ms at the best batch")


if __name__ == "__main__":
    main()
