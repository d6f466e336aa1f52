"""Merging and sweeping more records than memory holds, as a thousand ranks would leave them.

    python benchmarks/scale/scale.py [--examples 100000000] [--files 1000] [--only sweep merge] [--work FOLDER]

Joint records are made up, scattered over the files at random, and swept by `elang sweep` in a process of its own: its
wall-clock time and the most memory it held (what it spills to the disk aside). A hundredth as many are swept, too, and
compared with the curve in memory. As many records of a model in parts are joined by `elang merge`. Writes
benchmarks/results/scale.json, of another number of examples scale_NUMBER.json, and exits with 1 where a bar is missed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from elang.evaluation.database import Joint
from elang.evaluation.pair import FRACTIONS, SHARES
from elang.evaluation.sweep import swept
from elang.method.curve.exact import operating_curve
from elang.method.curve.points import Costs
from elang.method.curve.reading import at_parity, at_share
from elang.method.quality.registry import QUALITIES
from elang.records.table import PAGES

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import ROOT, figures_of, git_commit, write_result

NAMES = ["bad", "good"]
BAR_EXAMPLES, BAR_SECONDS, BAR_GB = 100_000_000, 120, 4


def rows(ids: np.ndarray, seed: int) -> pa.Table:
    """Joint records of some examples."""
    draw = np.random.default_rng(seed)
    n = len(ids)
    label = draw.integers(0, 2, n)
    score = -draw.beta(5, 1, n).astype(np.float32)
    swift = np.where(draw.random(n) < -score, label, 1 - label)
    super_ = np.where(draw.random(n) < 0.95, label, 1 - label)
    length = draw.integers(8, 128, n)
    columns = {"split": pa.array(["validation"]).take(pa.array(np.zeros(n, dtype=np.int32))), "id": ids}
    columns |= {"label": label, "swift_prediction": swift, "super_prediction": super_}
    columns |= {"swift_flops": 2.1e8 * length, "super_flops": 1.7e9 * length, "score_max_softmax": score}
    about = json.dumps({"format": 1, "label_names": NAMES, "worth": {}})
    return pa.table(columns).replace_schema_metadata({"elang": about})


def write_joint(folder: Path, examples: int, files: int) -> None:
    """Each file has random ids, in no order."""
    folder.mkdir()
    for i in range(files):
        ids = np.arange(i, examples, files)
        np.random.default_rng(i).shuffle(ids)
        pq.write_table(rows(ids, i), folder / f"{i:04}.parquet")


def write_parts(folder: Path, examples: int, files: int) -> None:
    folder.mkdir()
    about = {"format": 1, "label_names": NAMES, "model": "m", "weights_sha256": "", "generated": False}
    for i in range(files):
        ids = np.arange(i, examples, files)
        draw = np.random.default_rng(i)
        logits = draw.normal(size=2 * len(ids)).astype(np.float32)
        columns = {
            "split": pa.array(["validation"]).take(pa.array(np.zeros(len(ids), dtype=np.int32))),
            "id": ids,
            "prediction": pa.array(NAMES).take(pa.array((logits[::2] < logits[1::2]).astype(np.int32))),
            "logits": pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * len(ids) + 1, 2, dtype=np.int32)), logits),
            "key": draw.integers(-(2**62), 2**62, len(ids)),
            "tokens": draw.integers(8, 128, len(ids)),
            "flops": draw.random(len(ids)),
        }
        metadata = {"elang": json.dumps(about | {"part": [i, files], "examples": str(i)})}
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), folder / f"{i:04}.parquet", **PAGES)


def timed(*args: str) -> dict[str, float]:
    """Seconds and peak memory of a verb in a process of its own."""
    start = time.perf_counter()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-m", "elang", *args], env=os.environ | {"PYTHONPATH": path})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{args[0]} ended with {status}")
    found = {"seconds": time.perf_counter() - start, "peak GB": usage.ru_maxrss / 2**20}
    print(args[0], found, flush=True)
    return found


def compared(file: Path) -> dict[str, Any]:
    """One file swept, and its curve in memory."""
    frame = pd.read_parquet(file)
    metric = QUALITIES["accuracy"](2)
    found = swept(Joint([str(file)]), "max_softmax", metric)
    label, swift, super_ = (torch.tensor(frame[c]) for c in ("label", "swift_prediction", "super_prediction"))
    statistics = [metric.statistics(answer, label) for answer in (swift, super_)]
    costs = Costs(*(torch.tensor(frame[c]) for c in ("swift_flops", "super_flops")))
    score = torch.tensor(frame["score_max_softmax"].to_numpy())
    curve = operating_curve(score, *statistics, metric.value, costs)
    place = torch.searchsorted(curve.deferred, found.grid.deferred)
    named = {name: curve[at_parity(curve, fraction)] for name, fraction in FRACTIONS.items()}
    named |= {name: curve[at_share(curve, share)] for name, share in SHARES.items()}
    same = torch.equal(curve.deferred[place], found.grid.deferred)
    same &= torch.equal(curve.threshold[place], found.grid.threshold)
    return {
        "examples": len(frame),
        "points": len(found.grid),
        "same thresholds": same and all(found.points[k].threshold == p.threshold for k, p in named.items()),
        "quality apart": float((curve.quality[place] - found.grid.quality).abs().max()),
        "cost apart, relative": float((curve.cost[place] / found.grid.cost - 1).abs().max()),
    }


def in_order(file: Path, examples: int) -> bool:
    """Whether the ids of a file are 0, 1, 2 and so on."""
    done = 0
    for batch in pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False).iter_batches(1 << 20, columns=["id"]):
        if (batch["id"].to_numpy() != np.arange(done, done + len(batch))).any():
            return False
        done += len(batch)
    return done == examples


def sweeping(home: Path, examples: int, files: int) -> dict[str, Any]:
    """Joint records swept from the disk, and a hundredth as many in memory, too."""
    write_joint(home / "joint", examples, files)
    paths = sorted((home / "joint").iterdir(), key=lambda path: path.name[::-1])
    size = sum(path.stat().st_size for path in paths) / 2**30
    print(f"{examples:,} records in {files} files, {size:.1f} GB", flush=True)
    found = timed("sweep", *map(str, paths), "--output", str(home / "swept")) | {"GB on the disk": size}
    write_joint(home / "sample", max(1000, examples // 100), 1)
    return found | {"sample": compared(home / "sample" / "0000.parquet")}


def merging(home: Path, examples: int, files: int) -> dict[str, Any]:
    """Join records of a model in parts."""
    write_parts(home / "parts", examples, files)
    found = timed("merge", str(home / "parts"), "--output", str(home / "merged.parquet"))
    return found | {"in order": in_order(home / "merged.parquet", examples)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=BAR_EXAMPLES)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", nargs="+", default=["sweep", "merge"], choices=["sweep", "merge"])
    args = parser.parse_args()
    result = "scale" if args.examples == BAR_EXAMPLES else f"scale_{args.examples}"
    # Figures that are not measured now stay, with the commit of their run.
    figures = figures_of(result)
    for name, measure in (("sweep", sweeping), ("merge", merging)):
        if name not in args.only:
            continue
        with tempfile.TemporaryDirectory(dir=args.work) as where:
            found = measure(Path(where), args.examples, args.files)
        figures[name] = found | {"examples": args.examples, "files": args.files, "commit": git_commit()}
        print(name, figures[name], flush=True)
    sweep, merge = figures["sweep"], figures["merge"]
    time_met = {"time": sweep["seconds"] + merge["seconds"] < BAR_SECONDS} if args.examples == BAR_EXAMPLES else {}
    figures["met"] = time_met | {
        "memory": max(sweep["peak GB"], merge["peak GB"]) < BAR_GB,
        "same": sweep["sample"]["same thresholds"] and sweep["sample"]["quality apart"] < 1e-12,
        "order": merge["in order"],
    }
    print(figures["met"], f"written to {write_result(result, figures, ('duckdb', 'pyarrow', 'torch'))}")
    sys.exit(not all(figures["met"].values()))


if __name__ == "__main__":
    main()
