"""How much two runs of `elang fit` with one seed differ, and one with another seed, on this machine's accelerator.

    python benchmarks/reliability/determinism.py [--layers 6] [--width 384] [--rows 4000] [--precision 32-true 16-mixed]

A Swift with random weights learns synthetic sentences, with dropout. Reported are the largest difference of weights,
and how many of the evaluation's answers and scores differ, and by how much. Writes benchmarks/results/determinism.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import ROOT, gpu, write_result

DATA = ["--data.train", "train.csv", "--data.validation", "dev.csv", "--data.routing_fraction", "0.1"]
QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.devices", "1"]


def prepare(home: Path, layers: int, width: int, rows: int) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import write_data, write_model
    from transformers import AutoModelForSequenceClassification

    write_model(home / "base", layers)
    write_data(home / "train.csv", rows, 1, noise=0.2)
    write_data(home / "dev.csv", 1001, 2, noise=0.2)
    found = AutoModelForSequenceClassification.from_pretrained(home / "base").config
    found.hidden_size, found.intermediate_size, found.num_attention_heads = width, 4 * width, width // 32
    AutoModelForSequenceClassification.from_config(found).save_pretrained(home / "base")


def elang(home: Path, *args: str) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "elang", *args], cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{args} ended with {done.returncode}: {done.stderr[-2000:]}")


def trained(home: Path, name: str, seed: int, precision: str) -> tuple[dict[str, Any], pd.DataFrame]:
    """Weights, and their answers to the evaluation set."""
    from safetensors.torch import load_file

    swift = ["fit", "--model", "SwiftModule", "--model.model", "base", "--model.margin_weight", "0.1"]
    swift += ["--model.distill_weight", "0", "--model.hard", "error"]
    options = ["--seed_everything", str(seed), "--trainer.precision", precision, "--trainer.max_epochs", "2"]
    options += ["--trainer.enable_checkpointing", "false"]
    elang(home, *swift, "--model.output", name, *DATA, *QUIET, *options)
    elang(home, "score", "--model.model", name, "--model.output", f"{name}.parquet", *DATA, *QUIET)
    return load_file(home / name / "model.safetensors"), pd.read_parquet(home / f"{name}.parquet")


def apart(one: tuple[dict[str, Any], pd.DataFrame], other: tuple[dict[str, Any], pd.DataFrame]) -> dict[str, float]:
    import torch

    weights = max(float((one[0][name] - other[0][name]).abs().max()) for name in one[0])
    logits = [torch.tensor(frame["logits"].tolist()) for _, frame in (one, other)]
    return {
        "weights": weights,
        "logits": float((logits[0] - logits[1]).abs().max()),
        "answers": int((logits[0].argmax(1) != logits[1].argmax(1)).sum()),
        "examples": len(logits[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--precision", nargs="+", default=["32-true", "16-mixed"])
    args = parser.parse_args()
    figures: dict[str, Any] = {"layers": args.layers, "width": args.width, "rows": args.rows, "on": gpu() or "cpu"}
    with tempfile.TemporaryDirectory() as where:
        home = Path(where)
        prepare(home, args.layers, args.width, args.rows)
        for precision in args.precision:
            first = trained(home, f"first-{precision}", 0, precision)
            figures[precision] = {
                "the same seed": apart(first, trained(home, f"again-{precision}", 0, precision)),
                "another seed": apart(first, trained(home, f"other-{precision}", 1, precision)),
            }
            print(precision, figures[precision], flush=True)
    print(f"written to {write_result('determinism', figures, ('torch', 'lightning', 'transformers'))}")


if __name__ == "__main__":
    main()
