"""A pair in seconds: many inputs at a time, one at a time, the router's own share, and memory on an endless stream.

    python benchmarks/throughput.py [--demo runs/demo] [--streamed 10000000]

Takes the pair that `elang demo` made and its evaluation set. Prints tables and writes
benchmarks/results/throughput.json.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import ROOT, write_result

from elang import JointPredictor
from elang.bench import _print, _threshold, time_pair
from elang.throughput import token_batches

SHARES = [0.1, 0.25, 0.5]
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--streamed", type=int, default=10_000_000)
    args = parser.parse_args()
    texts = pd.read_csv(args.demo / "validation.csv")["text"].tolist()
    predictor = JointPredictor(str(args.demo / "swift"), str(args.demo / "super"), "inf")
    pair = time_pair(predictor, texts, SHARES, texts[:100], REPEATS)
    _print(pair)
    figures: dict[str, Any] = {
        "pair": pair,
        "loop": against_a_loop(predictor, texts),
        "router": router_share(str(args.demo), texts),
        "memory": memory(args.streamed),
    }
    for name in ("loop", "router", "memory"):
        print(f"{name}: {figures[name]}")
    write_result("throughput", figures, ("torch", "transformers"))


def against_a_loop(predictor: JointPredictor, texts: list[str]) -> dict[str, float]:
    """The stream against asking for one input after the other, with a quarter deferred."""
    scores = torch.tensor([one.score for one in predictor.map(texts)])
    predictor.threshold = _threshold(scores, 0.25)
    times: dict[str, list[float]] = {"stream": [], "loop": []}
    for _ in range(REPEATS):
        for name in times:
            start = time.perf_counter()
            if name == "stream":
                list(predictor.map(texts))
            else:
                for text in texts:
                    predictor([text])
            times[name].append(time.perf_counter() - start)
    found = {name: statistics.median(values) for name, values in times.items()}
    return found | {"times as fast": found["loop"] / found["stream"]}


@torch.inference_mode()
def router_share(demo: str, texts: list[str]) -> dict[str, float]:
    """What the router, the decision and the bookkeeping take, over the Swift's own pass on the same batches."""
    predictor = JointPredictor(f"{demo}/swift", f"{demo}/super", "inf", "router")
    rows = [(text,) for text in texts]
    window = predictor._prepare(rows, None)
    assert window.encoded is not None
    batches = [window.encoded.batch(b.tolist()) for b in token_batches(window.encoded.lengths, predictor.tokens)]
    times: dict[str, list[float]] = {"Swift": [], "with router and bookkeeping": []}
    for repeat in range(2 * REPEATS + 1):
        start = time.perf_counter()
        for inputs in batches:
            predictor.swift.backbone(**inputs).logits.argmax(-1)
        middle = time.perf_counter()
        for inputs in batches:
            said = predictor.swift(inputs)
            score = predictor.swift.score_of("router", said)
            torch.stack([score.double(), said.prediction.double(), predictor._odd(said.logits).double()], 1)
        if repeat:
            times["Swift"].append(middle - start)
            times["with router and bookkeeping"].append(time.perf_counter() - middle)
    # The rest, once a window: the decision and the answers.
    start = time.perf_counter()
    for _ in range(10):
        predictor._swift_window(window)
    found = {name: statistics.median(values) for name, values in times.items()}
    return found | {"share": found["with router and bookkeeping"] / found["Swift"] - 1}


def memory(count: int) -> dict[str, float]:
    """Resident megabytes of a process that streams so many inputs through a tiny pair, early and at its most later."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import write_model

    with tempfile.TemporaryDirectory() as folder:
        for name, layers in (("swift", 1), ("super", 2)):
            write_model(Path(folder) / name, layers=layers, labels=("bad", "good"))
        predictor = JointPredictor(f"{folder}/swift", f"{folder}/super", "inf")
        texts = [f"{a} {b} {c}" for a, b, c in itertools.product(["good film", "bad plot"], ["the", "a", "was"], "xyz")]
        scores = torch.tensor([one.score for one in predictor.map(texts)])
        predictor.threshold = _threshold(scores, 0.25)
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
