"""Why a stream of inputs of many lengths leaves cuDNN's attention out, which is planned for each shape.

python benchmarks/attention.py --sst2 SST-2/dev.tsv         # on a GPU; writes benchmarks/results/attention.json
python benchmarks/attention.py --sst2 SST-2/dev.tsv --tiny  # tiny shapes on the CPU; writes nothing

Random weights in bf16, every input to both models. Each way is run by a process of its own, whose first stream plans
what the second has ready: "cold" and "warm" seconds, the less of so many processes. In the same process, other inputs
of the same lengths follow, as a service would get them: "more".
"""

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import wait_for_gpu, write_result
from large import save, write_texts
from runtime import word_tokenizer
from shapes import shapes

import elang.passes
from elang import JointPredictor

WAYS = ("cuDNN", "without")
PROCESSES = 2
LONG = list(range(10, 401))


def measure(home: Path, pair: str, texts: str, way: str) -> dict[str, float]:
    """Seconds of three streams."""
    if way == "cuDNN":
        elang.passes.any_shape = contextlib.nullcontext
    predictor = JointPredictor(str(home / f"{pair}-0"), str(home / f"{pair}-1"), "-inf", dtype="bfloat16")
    # So that what every first call pays is not counted: one shape, planned.
    list(predictor.map(["w1 w2 w3"]))
    found = {}
    for name, part in (("cold", 0), ("warm", 0), ("more", 1)):
        rows = pd.read_csv(home / f"{texts}-{part}.csv")["text"].tolist()
        wait_for_gpu()
        start = time.perf_counter()
        answered = sum(one.answered_by == "super" for one in predictor.map(rows))
        found[name] = time.perf_counter() - start
        assert answered == len(rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sst2", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        home, *what = args.one
        print(json.dumps(measure(Path(home), *what)))
        return
    counts = {"SST-2": 40 if args.tiny else 20_000, "10 to 400 words": 40 if args.tiny else 4_000}
    said = pd.read_csv(args.sst2, sep="\t", quoting=3)["sentence"].str.split().map(len).tolist()
    lengths = {"SST-2": said, "10 to 400 words": LONG}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as where:
        home = Path(where)
        for pair, (_, configs) in shapes(args.tiny).items():
            config = list(configs.values())[0 if pair == "T5" else 1]
            config.max_position_embeddings = 512
            tokenizer = word_tokenizer(config.vocab_size)
            for i in (0, 1):
                # Both as large as fits beside each other in any GPU: T5-Large, BERT-Base.
                save(config, tokenizer, home / f"{pair}-{i}", device)
        for texts, words in lengths.items():
            for part in (0, 1):
                write_texts(home / f"{texts}-{part}.csv", words, counts[texts], config.vocab_size - 5, part)
        for pair in shapes(args.tiny):
            for texts in lengths:
                found: dict[str, dict[str, float]] = {way: {} for way in WAYS}
                for _ in range(1 if args.tiny else PROCESSES):
                    for way in WAYS:
                        command = [sys.executable, __file__, "--sst2", str(args.sst2), "--one", where, pair, texts, way]
                        done = subprocess.run(command, capture_output=True, text=True, check=False)
                        if done.returncode:
                            raise SystemExit(done.stderr[-4000:])
                        for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                            found[way][name] = min(found[way].get(name, math.inf), seconds)
                figures[f"{pair}, {texts}"] = {"inputs": counts[texts], **found}
                for way, seconds in found.items():
                    print(pair, texts, way, {name: round(one, 3) for name, one in seconds.items()}, flush=True)
                if not args.tiny:
                    write_result("attention", figures, ("torch", "transformers"))


if __name__ == "__main__":
    main()
