"""Training switches on a T5, each in a short run on the GPU: bf16, accumulation, checkpointed gradients, compilation.

    python benchmarks/speed/switches.py --data GLUE/SST-2 [--base T5-FOLDER] [--steps 60]

Each run fine-tunes the same random T5 (T5-Small's shape by default) with one switch of the configuration more, and
prints its loss at the end, seconds per step and peak memory. Writes benchmarks/results/switches.json.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from elang.cli.lightning import run

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result
from quality.t5 import make_tokenizer, write_base

T5_SMALL = {"d_model": 512, "d_ff": 2048, "layers": 6, "heads": 8}
SWITCHES: dict[str, list[str]] = {
    "float32": [],
    "bf16": ["--trainer.precision", "bf16-mixed"],
    "bf16, accumulation of 4": ["--trainer.precision", "bf16-mixed", "--trainer.accumulate_grad_batches", "4"],
    "bf16, gradient checkpointing": ["--trainer.precision", "bf16-mixed", "--model.gradient_checkpointing", "true"],
    "bf16, compile": ["--trainer.precision", "bf16-mixed", "--model.compile", "true"],
}


class Clock(pl.Callback):
    """Seconds of each step, after waiting for the device, and the losses."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Note a step's end and its loss."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tiny", action="store_true", help="a smoke test that writes nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-switches"))
    args = parser.parse_args()
    base = args.base
    if base is None:
        lines = (args.data / "train.tsv").read_text("utf-8").splitlines()[1:20_000]
        tokenizer = make_tokenizer([line.split("\t")[0] for line in lines] + ["sst2 sentence: positive negative"])
        shape = {"d_model": 32, "d_ff": 64, "layers": 1, "heads": 2} if args.tiny else T5_SMALL
        base = str(write_base(args.out / "base", tokenizer, **shape))
    found = {}
    for name, options in SWITCHES.items():
        clock = Clock()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        train(base, args, options, clock)
        # The first half warms up and compiles.
        half = len(clock.times) // 2
        seconds = (clock.times[-1] - clock.times[half]) / (len(clock.times) - 1 - half)
        memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
        tail = clock.losses[-10:]
        found[name] = {
            "steps": len(clock.times),
            "first loss": clock.losses[0],
            "last loss": sum(tail) / len(tail),
            "ms a batch": 1e3 * seconds,
            "peak GiB": memory,
        }
        print(name, {k: round(v, 3) for k, v in found[name].items()}, flush=True)
    if not args.tiny:
        write_result("switches", found, ("torch", "lightning", "transformers"))


def train(base: str, args: argparse.Namespace, options: list[str], clock: Clock) -> None:
    data = ["--data", "TaskData", "--data.task", "glue/sst2", "--data.folder", str(args.data)]
    data += ["--data.batch_size", "64", "--data.max_length", "128"]
    quiet = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false"]
    quiet += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    steps = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", str(args.steps)]
    steps += ["--trainer.limit_val_batches", "0"]
    model = ["--model.model", base, "--model.output", str(args.out / "model"), "--model.lr", "1e-3"]
    run("fit", [*model, *data, *quiet, *steps, *options], callbacks=[clock])


if __name__ == "__main__":
    main()
