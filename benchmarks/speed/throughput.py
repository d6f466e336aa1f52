"""A pair in seconds: many inputs at a time, one at a time, by each engine, and the router's own share.

    python benchmarks/speed/throughput.py [--demo runs/demo]

Takes the pair that `elang demo` made and its evaluation set. Prints tables and writes
benchmarks/results/throughput.json.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from elang import JointPredictor
from elang.cli.bench import _print
from elang.data.batches import token_batches
from elang.inference.speed import share_threshold, time_pair

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

SHARES = [0.1, 0.25, 0.5]
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    args = parser.parse_args()
    texts = pd.read_csv(args.demo / "validation.csv")["text"].tolist()
    predictor = JointPredictor(str(args.demo / "swift"), str(args.demo / "super"), "inf")
    pair = time_pair(predictor, texts, SHARES, texts[:100], REPEATS)
    _print(pair)
    figures: dict[str, Any] = {
        "pair": pair,
        "loop": against_a_loop(predictor, texts),
        "router": router_share(str(args.demo), texts),
    }
    for name in ("loop", "router"):
        print(f"{name}: {figures[name]}")
    figures["engines"] = engines(args.demo, texts)
    write_result("throughput", figures, ("torch", "transformers"))


def against_a_loop(predictor: JointPredictor, texts: list[str]) -> dict[str, float]:
    """The stream compared with one input after the other, with a quarter deferred."""
    scores = torch.tensor([one.score for one in predictor.map(texts)])
    predictor.threshold = share_threshold(scores, 0.25)
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


def engines(demo: Path, texts: list[str]) -> dict[str, Any]:
    """Seconds per input, many at a time and one by one: plain torch, compiled torch, and ONNX Runtime."""
    ways: dict[str, dict[str, Any]] = {"eager": {}, "compile": {"compile": True}, "onnx": {"onnx": True}}
    found = {}
    for name, options in ways.items():
        predictor = JointPredictor(str(demo / "swift"), str(demo / "super"), "inf", few=1, **options)
        passes = time_pair(predictor, texts, [0.25], texts[:100], 3)["passes"]
        found[name] = {
            what: {
                "many": one["median"],
                "one by one": one["one by one"]["median"],
                "speedup": one["one by one"]["speedup"],
            }
            for what, one in passes.items()
        }
        print(f"{name}: {found[name]}")
    return found


@torch.inference_mode()
def router_share(demo: str, texts: list[str]) -> dict[str, float]:
    """Time of the router, the decision and the bookkeeping over the Swift's own pass on the same batches."""
    predictor = JointPredictor(f"{demo}/swift", f"{demo}/super", "inf", "router")
    rows = [(text,) for text in texts]
    window = predictor._prepare(rows, None)
    assert window.encoded is not None
    batches = [
        window.encoded.batch(b.tolist())
        for b in token_batches(window.encoded.lengths, predictor.runners["swift"].tokens)
    ]
    times: dict[str, list[float]] = {"Swift": [], "with router and bookkeeping": []}
    for repeat in range(2 * REPEATS + 1):
        start = time.perf_counter()
        for inputs in batches:
            predictor.swift.backbone(**inputs).logits.argmax(-1)
        middle = time.perf_counter()
        for inputs in batches:
            said = predictor.swift(inputs)
            score = predictor.swift.score_of("router", said)
            torch.stack([score.double(), said.prediction.double(), predictor.swift.checksum(said.logits).double()], 1)
        if repeat:
            times["Swift"].append(middle - start)
            times["with router and bookkeeping"].append(time.perf_counter() - middle)
    # Once per window: the decision and the answers.
    start = time.perf_counter()
    for _ in range(10):
        predictor._first(window)
    found = {name: statistics.median(values) for name, values in times.items()}
    return found | {"share": found["with router and bookkeeping"] / found["Swift"] - 1}


if __name__ == "__main__":
    main()
