"""Why a stream of inputs of many lengths does not use cuDNN's attention, which is planned for each shape.

python benchmarks/speed/attention.py --sst2 SST-2/dev.tsv         # on a GPU; writes benchmarks/results/attention.json
python benchmarks/speed/attention.py --sst2 SST-2/dev.tsv --tiny  # tiny shapes on the CPU; writes nothing

Random weights in bf16, every input to both models. Each way is run by a process of its own, whose first stream plans
what the second has ready: "cold" and "warm" seconds, the minimum over the processes. In the same process, other inputs
of the same lengths follow, as a service would get them: "more".
"""

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import elang.inference.runner
from elang import JointPredictor

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import wait_for_gpu, write_result
from scale.large import save, words_of, write_texts
from speed.runtime import word_tokenizer
from speed.shapes import shapes

WAYS = ("cuDNN", "without")
PROCESSES = 2


def measure(home: Path, pair: str, texts: str, way: str) -> dict[str, float]:
    """Seconds of three streams."""
    if way == "cuDNN":
        elang.inference.runner.any_shape = contextlib.nullcontext
    predictor = JointPredictor(str(home / f"{pair}-0"), str(home / f"{pair}-1"), "-inf", dtype="bfloat16")
    # Plan one shape, so that the cost of the first call is not counted.
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


def prepare(home: Path, args: argparse.Namespace, texts: dict[str, tuple[int, list[int]]]) -> None:
    """The two models of each pair, of one shape, and two sets of texts of each kind."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for pair, (_, configs) in shapes(args.tiny).items():
        # T5-Large and BERT-Base: two of them are beside each other in any GPU.
        config = list(configs.values())[0 if pair == "T5" else 1]
        config.max_position_embeddings = 512
        tokenizer = word_tokenizer(config.vocab_size)
        for i in (0, 1):
            save(config, tokenizer, home / f"{pair}-{i}", device)
    for name, (count, words) in texts.items():
        for part in (0, 1):
            # Words that the model with the fewest, which is the last, knows.
            write_texts(home / f"{name}-{part}.csv", words, count, config.vocab_size - 5, part)


def once(command: list[str]) -> dict[str, float]:
    """Run :func:`measure` in a process of its own."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


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
    texts = {"SST-2": (20_000, words_of(args.sst2)), "10 to 400 words": (4_000, list(range(10, 401)))}
    if args.tiny:
        texts = {name: (40, words) for name, (_, words) in texts.items()}
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as where:
        prepare(Path(where), args, texts)
        for pair, name in itertools.product(shapes(args.tiny), texts):
            command = [sys.executable, __file__, "--sst2", str(args.sst2), "--one", where, pair, name]
            rounds = [{way: once([*command, way]) for way in WAYS} for _ in range(1 if args.tiny else PROCESSES)]
            found = {way: {which: min(one[way][which] for one in rounds) for which in rounds[0][way]} for way in WAYS}
            figures[f"{pair}, {name}"] = {"inputs": texts[name][0], **found}
            for way, seconds in found.items():
                print(pair, name, way, {which: round(one, 3) for which, one in seconds.items()}, flush=True)
            if not args.tiny:
                write_result("attention", figures, ("torch", "transformers"))


if __name__ == "__main__":
    main()
