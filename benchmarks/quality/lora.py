"""Is LoRA as good as full fine-tuning, at which learning rate, and how much memory does it need?

    python benchmarks/quality/lora.py --model MODEL [--options "--data.train ..."] [--full 5e-5 1e-4] [--lora 2e-4 5e-4]
        [--rank 16] [--seeds 0] [--name r8]

Fine-tunes MODEL at each learning rate, fully and with LoRA, with the same options of `elang fit` (by default the news
stories that `make demo` left in runs/demo), and writes the metrics of the validation file, seconds a step, and bytes of
weights, gradients and optimizer states; on a GPU also the peak of allocated memory. With `--options` that end in
`--trainer.limit_val_batches 0`, only memory and time count. The bars: LoRA needs at most 40% of the memory (on a GPU by
the peak, else by the bytes), and its best learning rate comes within half a point of the best full one.
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
from common import figures_of, gpu, wait_for_gpu, write_result

DEMO = "--data.train runs/demo/train.csv --data.validation runs/demo/validation.csv --data.max_length 32"
QUIET = [
    "--trainer.logger",
    "false",
    "--trainer.enable_checkpointing",
    "false",
    "--trainer.enable_progress_bar",
    "false",
]
MEMORY_BAR, QUALITY_BAR = 0.4, 0.005


class Watch(pl.Callback):
    """The end of each step in seconds, bytes after the last one, and the metrics of the last evaluation."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.bytes: dict[str, int] = {}
        self.metrics: dict[str, float] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the time, and count what training keeps."""
        wait_for_gpu()
        self.times.append(time.perf_counter())
        weights = list(module.classifier.parameters())
        states = [value for state in trainer.optimizers[0].state.values() for value in state.values()]
        kept = {"weights": weights, "gradients": [w.grad for w in weights if w.grad is not None], "states": states}
        self.bytes = {name: sum(t.numel() * t.element_size() for t in tensors) for name, tensors in kept.items()}
        self.bytes["trained"] = sum(w.numel() for w in weights if w.requires_grad)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Keep the metrics."""
        names = [name for name in trainer.callback_metrics if name.startswith("validation/")]
        self.metrics = {name: round(float(trainer.callback_metrics[name]), 4) for name in names}


def measure(args: argparse.Namespace, more: list[str], seed: int) -> dict[str, Any]:
    """One training."""
    watch = Watch()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    model = [
        "--model.model",
        args.model,
        "--model.output",
        f"runs/bench-lora/{args.name}",
        "--seed_everything",
        str(seed),
    ]
    run("fit", [*model, *QUIET, *args.options.split(), *more], callbacks=[watch])
    half = len(watch.times) // 2
    found: dict[str, Any] = {"steps": len(watch.times), "bytes": watch.bytes, **watch.metrics}
    found["ms a step"] = round(1e3 * (watch.times[-1] - watch.times[half]) / max(1, len(watch.times) - 1 - half), 1)
    if torch.cuda.is_available():
        found["peak"] = torch.cuda.max_memory_allocated()
    return found


def memory_of(found: dict[str, Any]) -> int:
    """Bytes that a training needs: the peak on a GPU, else what is kept between steps."""
    return int(found["peak"] if "peak" in found else sum(found["bytes"][n] for n in ("weights", "gradients", "states")))


def quality_of(runs: dict[str, dict[str, Any]], way: str) -> float | None:
    """The best mean over seeds, among learning rates, of the task's first metric that is not the loss."""
    rates: dict[str, list[float]] = {}
    for name, found in runs.items():
        metrics = [value for key, value in found.items() if key.startswith("validation/") and key != "validation/loss"]
        if name.startswith(way) and metrics:
            rates.setdefault(name.split(", seed")[0], []).append(metrics[0])
    return max((sum(values) / len(values) for values in rates.values()), default=None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--options", default=DEMO)
    parser.add_argument("--full", nargs="*", default=["5e-5", "1e-4", "2e-4"])
    parser.add_argument("--lora", nargs="*", default=["5e-5", "2e-4", "5e-4", "1e-3", "2e-3"])
    parser.add_argument("--rank", default="16")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--name", default="r8")
    args = parser.parse_args()
    runs = figures_of("lora").get(args.name, {}).get("runs", {})
    ways = [("full", rate, []) for rate in args.full]
    ways += [("lora", rate, ["--model.lora_rank", args.rank]) for rate in args.lora]
    for way, rate, more in ways:
        for seed in args.seeds:
            name = f"{way} {rate}, seed {seed}" if way == "full" else f"{way} {rate}, rank {args.rank}, seed {seed}"
            runs[name] = measure(args, [*more, "--model.lr", rate], seed)
            print(name, runs[name], flush=True)
    about: dict[str, Any] = {"model": Path(args.model).name, "options": args.options, "runs": runs, "gpu": gpu()}
    full, lora = ([found for name, found in runs.items() if name.startswith(way)] for way in ("full", "lora"))
    missed = False
    if full and lora:
        about["share of memory"] = round(max(map(memory_of, lora)) / min(map(memory_of, full)), 4)
        missed = about["share of memory"] > MEMORY_BAR
        pair = [quality_of(runs, way) for way in ("full", "lora")]
        if pair[0] is not None and pair[1] is not None:
            about["difference"] = round(pair[1] - pair[0], 4)
            missed |= about["difference"] < -QUALITY_BAR
        print({name: about[name] for name in about if name not in ("runs", "options")})
    write_result("lora", {**figures_of("lora"), args.name: about}, ("torch", "lightning", "transformers", "peft"))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
