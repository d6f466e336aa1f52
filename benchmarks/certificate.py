"""Certificates in simulation: how often the promise is broken, beside the naive choice and MAPIE's control.

    python benchmarks/certificate.py [--records runs/demo/joint/records.parquet] [--repeats 1000]

The records of a real pair are the population; slices are drawn from it with replacement, a threshold is chosen on each,
and its regret on the population, which is known, is compared with the promise. MAPIE (`pip install mapie`) is asked
with its own p-values and fixed-sequence control on the same slices. Prints a table and writes
benchmarks/results/certificate.json; exits with 1 where the promise is broken too often.
"""

import argparse
import math
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import write_result

from elang.calibrate import drops
from elang.certificate import certify_regret, regret_at

TARGETS, CONFIDENCES, SIZES = (0.005, 0.01, 0.02, 0.05), (0.9, 0.95), (1000, 4000)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=Path, default=Path("runs/demo/joint/records.parquet"))
    parser.add_argument("--score", default="free_energy")
    parser.add_argument("--repeats", type=int, default=1000)
    args = parser.parse_args()
    frame = pd.read_parquet(args.records)
    score, gain = (torch.tensor(frame[name].to_numpy()) for name in (f"score_{args.score}", "gain"))
    rows, missed = [], []
    for size in SIZES:
        for target in TARGETS:
            for confidence in CONFIDENCES:
                row = simulate(score, gain, size, target, confidence, args.repeats)
                rows.append(row)
                show(row)
                error = 3 * math.sqrt(confidence * (1 - confidence) / args.repeats)
                if row["broken"] > 1 - confidence + error:
                    missed.append(f"the promise of {target:.1%} at {confidence:.0%} is broken in {row['broken']:.1%}")
                if row["mapie"] is not None and row["kept"] < row["mapie"]["kept"] - 0.02:
                    missed.append(
                        f"MAPIE keeps {row['mapie']['kept']:.1%} at {target:.1%}, {row['kept']:.1%} are kept here"
                    )
    figures = {"population": len(score), "score": args.score, "repeats": args.repeats, "rows": rows, "missed": missed}
    figures["bootstrap of 2,000 resamples, 10,000 examples, s"] = bootstrap_time()
    print(f"bootstrap of a whole curve: {figures['bootstrap of 2,000 resamples, 10,000 examples, s']:.2f} s")
    write_result("certificate", figures, ("torch", *(["mapie"] if find_spec("mapie") else [])))
    for line in missed:
        print(f"MISSED: {line}", file=sys.stderr)
    return 1 if missed else 0


def simulate(
    score: torch.Tensor, gain: torch.Tensor, size: int, target: float, confidence: float, repeats: int
) -> dict[str, Any]:
    """Choose on slices, judge on the population."""
    generator = torch.Generator().manual_seed(0)
    names = ["certificate", "naive", *(["mapie"] if find_spec("mapie") else [])]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    nothing = 0
    for _ in range(repeats):
        chosen = torch.randint(len(score), (size,), generator=generator)
        own_score, own_gain = score[chosen], gain[chosen]
        certificate = certify_regret(own_score, own_gain, target, confidence)
        nothing += certificate is None
        thresholds = {
            "certificate": -math.inf if certificate is None else certificate.threshold,
            "naive": naive(own_score, own_gain, target),
        }
        if "mapie" in found:
            thresholds["mapie"] = by_mapie(own_score, own_gain, target, confidence)
        for name, threshold in thresholds.items():
            regret = float(regret_at(score, gain, threshold).mean())
            found[name].append((regret, float((score <= threshold).double().mean())))
    each = {
        name: {
            "broken": float(np.mean([regret > target + 1e-12 for regret, _ in runs])),
            "kept": float(np.mean([kept for _, kept in runs])),
        }
        for name, runs in found.items()
    }
    about = {"slice": size, "target": target, "confidence": confidence, "nothing certified": nothing / repeats}
    return about | each["certificate"] | {"naive": each["naive"], "mapie": each.get("mapie")}


def along(score: torch.Tensor, gain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Thresholds that keep more and more, and the regret at each."""
    order = score.argsort(stable=True)
    ranked = score[order].double()
    ends = torch.cat([ranked[1:] != ranked[:-1], torch.tensor([True])])
    regret = gain.clamp_min(0).double()[order].cumsum(0)[ends] / len(score)
    none = torch.zeros(1, dtype=torch.float64)
    return torch.cat([none - math.inf, ranked[ends]]), torch.cat([none, regret])


def naive(score: torch.Tensor, gain: torch.Tensor, target: float) -> float:
    """The threshold that just meets the target on the slice itself."""
    thresholds, regret = along(score, gain)
    return float(thresholds[int((regret <= target).nonzero()[-1])])


def by_mapie(score: torch.Tensor, gain: torch.Tensor, target: float, confidence: float) -> float:
    """What MAPIE's p-values and its fixed-sequence testing choose."""
    from mapie.risk_control import FWERFixedSequenceTesting
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value

    thresholds, regret = along(score, gain)
    p = compute_hoeffding_bentkus_p_value(regret.numpy(), len(score), target, binary=True).reshape(-1)
    passed = FWERFixedSequenceTesting().run(p, 1 - confidence)
    return float(thresholds[int(passed[-1])]) if len(passed) else -math.inf


def bootstrap_time() -> float:
    """Seconds of the bootstrap that `elang calibrate --max_drop` makes."""
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(10_000, generator=generator)
    gain = (torch.rand(10_000, generator=generator) < 0.1).double()
    start = time.perf_counter()
    drops(score, gain, times=2000, grid=10_001)
    return time.perf_counter() - start


def show(row: dict[str, Any]) -> None:
    line = f"{row['slice']} examples, {row['target']:.1%} at {row['confidence']:.0%}: "
    for name, part in (("certificate", row), ("naive", row["naive"]), ("MAPIE", row["mapie"])):
        if part is not None:
            line += f"{name} broken {part['broken']:.1%}, keeps {part['kept']:.1%}; "
    print(line + f"nothing certified in {row['nothing certified']:.1%}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
