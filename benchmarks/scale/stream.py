"""Memory on an endless stream: generated inputs through a tiny pair.

    python benchmarks/scale/stream.py [--inputs 10000000]

Prints the figures and writes benchmarks/results/stream.json.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from elang import JointPredictor
from elang.inference.speed import share_threshold

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import ROOT, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000_000)
    args = parser.parse_args()
    figures = memory(args.inputs)
    print(figures)
    write_result("stream", figures, ("torch", "transformers"))


def memory(count: int) -> dict[str, float]:
    """Resident megabytes of a process that streams inputs through a tiny pair: early, and the peak afterwards."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import write_model

    with tempfile.TemporaryDirectory() as folder:
        for name, layers in (("swift", 1), ("super", 2)):
            write_model(Path(folder) / name, layers=layers, labels=("bad", "good"))
        predictor = JointPredictor(f"{folder}/swift", f"{folder}/super", "inf")
        texts = [f"{a} {b} {c}" for a, b, c in itertools.product(["good film", "bad plot"], ["the", "a", "was"], "xyz")]
        scores = torch.tensor([one.score for one in predictor.map(texts)])
        predictor.threshold = share_threshold(scores, 0.25)
        start, early, most, deferred = time.perf_counter(), 0.0, 0.0, 0
        for i, one in enumerate(predictor.map(itertools.islice(itertools.cycle(texts), count)), 1):
            deferred += one.answered_by == "super"
            if i % max(1, count // 100) == 0:
                resident = resident_megabytes()
                early = resident if i <= count // 20 else early
                most = max(most, resident)
        seconds = time.perf_counter() - start
    return {"inputs": count, "deferred": deferred / count, "after 5%, MB": early, "most, MB": most, "seconds": seconds}


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
