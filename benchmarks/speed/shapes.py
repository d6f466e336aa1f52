"""What the paper's pairs of models cost by their shapes alone: FLOPs and time, with random weights.

python benchmarks/speed/shapes.py         # on a GPU that holds T5-11B in bf16; writes benchmarks/results/shapes.json
python benchmarks/speed/shapes.py --tiny  # the same steps on tiny shapes on the CPU; writes nothing

Every model answers inputs of 128 tokens in bf16, one model after the other. Each column is a cost of an input, and from
it follows the speed-up of the pair over its Super alone at a share that the Swift keeps. At the best batch every model
has its own, which takes a queue of requests and deferred inputs packed across batches.
"""

import argparse
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, BertConfig, T5Config

from elang.backends.flops import PAPER_LENGTH, FlopsPart, flops_by_length
from elang.backends.seconds import best_batch, measure_throughput

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

BERT_KEPT = 0.68  # the paper's mean over the tasks of GLUE
T5_KEPT = (0.5, 0.7, 0.9)  # the paper's share for T5 is not known task by task
COLUMNS = ("GFLOPs", "GFLOPs (paper)", "ms, batch 1", "ms, best batch")

TINYBERT = {"hidden_size": 312, "intermediate_size": 1200, "num_hidden_layers": 4, "num_attention_heads": 12}
T5_LARGE = {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16, "vocab_size": 32128}
T5_11B = T5_LARGE | {"d_kv": 128, "d_ff": 65536, "num_heads": 128}
T5_TINY = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
BERT_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

Pairs = dict[str, tuple[tuple[float, ...], dict[str, Any]]]


def shapes(tiny: bool) -> Pairs:
    """For each pair the shares that its Swift answers, and the configurations, the Swift's first."""
    t5 = {"T5-Large": T5_LARGE, "T5-11B": T5_11B}
    bert: dict[str, dict[str, int]] = {"TinyBERT-4L-312": TINYBERT, "BERT-Base": {}}
    if tiny:
        t5 = {"tiny T5": T5_TINY, "tiny T5, 4 layers": T5_TINY | {"num_layers": 4}}
        bert = {"tiny BERT": BERT_TINY, "tiny BERT, 4 layers": BERT_TINY | {"num_hidden_layers": 4}}
    return {
        # A label is scored by one decoder step, which leaves nothing to cache.
        "T5": (T5_KEPT, {name: T5Config(**shape, use_cache=False) for name, shape in t5.items()}),
        "BERT": ((BERT_KEPT,), {name: BertConfig(**shape) for name, shape in bert.items()}),
    }


def build(config: Any, device: torch.device) -> Any:
    """The model with the random weights of its own initialisation, drawn on the device and in bf16 from the start.

    The CPU would take minutes over 11 billion of them. T5 does not scale its attention, its initialisation makes up
    for that: other weights could give NaN.
    """
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForSequenceClassification
    with device:
        return kind.from_config(config, dtype=torch.bfloat16).eval()


def caller(model: Any, part: FlopsPart, device: torch.device) -> Callable[[int], Callable[[], Any]]:
    """A call of the model or of its encoder by batch size, as ``measure_throughput`` takes it."""
    run = model.get_encoder() if part == "encoder" else model

    def make(size: int) -> Callable[[], Any]:
        ids = torch.randint(1, model.config.vocab_size, (size, PAPER_LENGTH), device=device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if run is model and model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.zeros_like(ids[:, :1])

        def call() -> Any:
            with torch.inference_mode():
                return run(**inputs)

        return call

    return make


def parts_of(config: Any) -> tuple[FlopsPart, ...]:
    return ("all", "encoder") if config.is_encoder_decoder else ("all",)


def measure(name: str, config: Any, device: torch.device, sizes: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """Costs of an input by part and column, and milliseconds per input by part and batch size."""
    model = build(config, device)
    row: dict[str, Any] = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "cost": {},
        "batch": {},
        "ms": {},
    }
    for part in parts_of(config):
        make = caller(model, part, device)
        if not torch.isfinite(make(2)()[0]).all():
            raise RuntimeError(f"{name} ({part}) answers with NaN or infinity: its time would mean nothing")
        found = measure_throughput(make, sizes, seconds)
        batch, least = best_batch(found)
        length = torch.tensor([PAPER_LENGTH])
        exact, paper = (flops_by_length(config, length, kind, part).item() / 1e9 for kind in ("exact", "paper"))
        costs = (exact, paper, found[sizes[0]] * 1e3, least * 1e3)
        row["cost"][part] = dict(zip(COLUMNS, costs, strict=True))
        row["batch"][part] = batch
        row["ms"][part] = {size: value * 1e3 for size, value in found.items()}
        print_row(f"{name}{', encoder' if part == 'encoder' else ''}", row["cost"][part], f"batch {batch}")
    return row


def speedups(swift: dict[str, Any], super_: dict[str, Any], kept: float, placement: str) -> dict[str, float]:
    """Cost of the Super alone over the cost of the pair, by column.

    After the decoder every input pays the whole Swift; before it, a deferred one pays its encoder only.
    """
    deferred = 1 - kept
    found = {}
    for column in COLUMNS:
        cost = swift["all"][column]
        if placement == "before the decoder":
            cost = kept * cost + deferred * swift["encoder"][column]
        found[column] = super_["all"][column] / (cost + deferred * super_["all"][column])
    return found


def print_row(name: str, values: dict[str, float], more: str = "") -> None:
    print(f"{name:42}" + "".join(f"{values[column]:16.4g}" for column in COLUMNS) + f"  {more}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU, nothing is written")
    args = parser.parse_args()
    if not (args.tiny or torch.cuda.is_available()):
        parser.error("the shapes of the paper need a GPU; --tiny runs on the CPU")
    device = torch.device("cpu" if args.tiny else "cuda")
    sizes, seconds = ((1, 2, 4), 0.01) if args.tiny else (tuple(2**i for i in range(10)), 0.3)
    torch.manual_seed(0)

    print(f"{'cost of an input of 128 tokens':42}" + "".join(f"{column:>16}" for column in COLUMNS))
    models, pairs, asked = [], [], shapes(args.tiny)
    for _, configs in asked.values():
        for name, config in configs.items():
            models.append(measure(name, config, device, sizes, seconds))
            # Free the last model before the next one is built.
            gc.collect()
            torch.cuda.empty_cache()

    print(f"\n{'speed-up over the Super alone, by share kept':42}" + "".join(f"{column:>16}" for column in COLUMNS))
    costs = {row["model"]: row["cost"] for row in models}
    for pair, (shares, configs) in asked.items():
        swift, super_ = (costs[name] for name in configs)
        for placement in ("after the decoder", "before the decoder") if "encoder" in swift else ("after the model",):
            for kept in shares:
                found = speedups(swift, super_, kept, placement)
                pairs.append({"pair": pair, "placement": placement, "kept": kept, "speedup": found})
                print_row(f"{pair}, {placement}, {kept:.0%} kept", found)
    if not args.tiny:
        figures = {"length": PAPER_LENGTH, "dtype": "bfloat16", "models": models, "pairs": pairs}
        print(f"\nwritten to benchmarks/results/{write_result('shapes', figures, ('torch', 'transformers')).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
