"""A training step of the Swift with the energy margin, against a plain fine-tuning step, paired.

python benchmarks/speed/step.py [--root runs/demo] [--layers 6 1]  # after `make demo`, whose model and data it takes

Both modules take the same batches in turn (forward, backward, AdamW); the ratio is the median over pairs. Writes
benchmarks/results/step.json and fails where the Swift's step is more than 5% slower.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from elang import FinetuneModule, SwiftModule, TextClassificationData
from elang.data.batches import LengthBatches
from elang.data.encoding import encode

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

BAR = 1.05


def step(module: Any, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> float:
    device = batch["label"].device
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    terms = module.loss(batch, module.classifier(batch["model"], batch["label"]))
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(root: Path, layers: int, pairs: int) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = TextClassificationData(train=str(root / "train.csv"))
    options = {"model": str(root / "minilm-l6"), "label_names": data.label_names, "layers": layers}
    plain = FinetuneModule(**options).to(device)
    swift = SwiftModule(**options, distill_weight=0, margin_weight=0.1, hard="error").to(device)
    examples = data.examples("train")
    encoded = encode(plain.classifier.tokenizer, examples.texts, 128)
    fused = device.type == "cpu" or None
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-5, fused=fused) for m in (plain, swift)]
    ratios = []
    for i, rows in enumerate(list(LengthBatches(encoded.lengths, 32, shuffle=True))[: pairs + 5]):
        inputs = {name: value.to(device) for name, value in encoded.batch(rows).items()}
        batch: dict[str, Any] = {"model": inputs, "label": examples.label[rows].to(device), "targets": {}}
        batch["id"] = examples.id[rows].to(device)
        # The order changes from pair to pair, so that neither always finds warm caches.
        pair = [(swift, optimizers[1]), (plain, optimizers[0])]
        found = {id(m): step(m, o, batch) for m, o in (pair if i % 2 else reversed(pair))}
        if i >= 5:
            ratios.append(found[id(swift)] / found[id(plain)])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"layers": layers, "pairs": len(ratios), "ratio": middle, "quartiles": [low, high], "met": middle <= BAR}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=Path("runs/demo"))
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 1])
    parser.add_argument("--pairs", type=int, default=60)
    args = parser.parse_args()
    rows = [measure(args.root, layers, args.pairs) for layers in args.layers]
    for row in rows:
        low, high = row["quartiles"]
        print(f"{row['layers']} layers: ratio {row['ratio']:.4f} (quartiles {low:.3f} to {high:.3f}), bar {BAR}")
    write_result("step", {"bar": BAR, "rows": rows}, ("torch", "transformers"))
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
