"""A small T5 pair trained from scratch on SST-2: the router before the Swift's decoder against scores after it.

    python benchmarks/quality/t5.py --data GLUE/SST-2 [--precision bf16-mixed] [--seeds 0 1 2] [--rows 2000]
        [--swift layers=1 epochs=2] [--super d_model=512 lr=3e-4]

Tokenizer and random weights are made here, so accuracies are those of models without pretraining. Prints a table and,
without --rows, writes benchmarks/results/t5.json.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from elang.cli.suite_plan import read_plan, task_steps, write_configs
from elang.cli.suite_steps import STAGES, forget_stale, run_chains
from elang.method.scores import BEFORE_DECODER

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import ROOT, write_result
from quality.suite import spread

CONFIG = ROOT / "configs" / "suite" / "t5-small.yaml"
SHAPES: dict[str, dict[str, float]] = {
    "swift": {"d_model": 128, "d_ff": 512, "layers": 1, "heads": 2, "dropout": 0.1, "lr": 1e-3, "epochs": 3},
    "super": {"d_model": 256, "d_ff": 1024, "layers": 2, "heads": 4, "dropout": 0.1, "lr": 1e-3, "epochs": 14},
}


def write_base(
    folder: Path, tokenizer: Any, d_model: int, d_ff: int, layers: int, heads: int, dropout: float = 0.1
) -> Path:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=d_model,
        d_kv=64,
        d_ff=d_ff,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        dropout_rate=dropout,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(texts: list[str], size: int = 12_000) -> Any:
    """SST-2 comes in words, and a model without pretraining gains nothing from their pieces."""
    found = Tokenizer(models.WordLevel(unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<pad>", "</s>", "<unk>"]
    found.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    found.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=found, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, help="only so many training rows")
    for role, shape in SHAPES.items():
        names = ", ".join(f"{name}={value:g}" for name, value in shape.items())
        parser.add_argument(f"--{role}", nargs="+", type=setting, default=[], help=f"what differs from {names}")
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--until", choices=STAGES, default="joint")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-t5"))
    args = parser.parse_args()
    data = args.out / "SST-2"
    data.mkdir(parents=True, exist_ok=True)
    lines = (args.data / "train.tsv").read_text("utf-8").splitlines()[: None if args.rows is None else args.rows + 1]
    (data / "train.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    (data / "dev.tsv").write_text((args.data / "dev.tsv").read_text("utf-8"), "utf-8")
    # Answers and prompt are words of the corpus, too.
    texts = [line.split("\t")[0] for line in lines[1:]] + ["sst2 sentence: negative", "sst2 sentence: positive"] * 500
    tokenizer = make_tokenizer(texts)
    shapes = {role: shape | dict(getattr(args, role)) for role, shape in SHAPES.items()}
    bases, model, trainer = {}, {}, {}
    for role, shape in shapes.items():
        model[role] = {"lr": shape["lr"]}
        trainer[role] = {"precision": args.precision, "max_epochs": int(shape["epochs"])}
        size = {name: int(shape[name]) for name in ("d_model", "d_ff", "layers", "heads")}
        bases[role] = str(write_base(args.out / f"{role}-base", tokenizer, **size, dropout=shape["dropout"]))
    plan = read_plan(str(CONFIG)) | {"swift_model": bases["swift"], "super_model": bases["super"], "tasks": {}}
    plan["all"] = plan["all"] | {
        "data": {"max_length": 128, "batch_size": 128, "eval_batch_size": 256, "routing_fraction": 0.05}
    }
    plan |= {
        "super": {"model": model["super"], "trainer": trainer["super"]},
        "swift": {"model": plan["swift"]["model"] | model["swift"], "trainer": trainer["swift"]},
        "joint": {"model": {"latency": False}, "trainer": {"precision": "32-true"}},
    }
    chains = [
        list(task_steps("glue/sst2", plan, str(args.out), root=args.out / f"seed{s}", seed=s)) for s in args.seeds
    ]
    steps = [step for chain in chains for step in chain]
    write_configs(steps, parse=False)
    forget_stale(steps)
    stages = STAGES[: STAGES.index(args.until) + 1]
    run_chains([[step for step in chain if step.stage in stages] for chain in chains], args.jobs)
    if args.until == "joint":
        report([json.loads(chain[-1].made.read_text("utf-8")) for chain in chains], shapes, args)


def setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in SHAPES["swift"]:
        raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(SHAPES['swift'])}")
    return name, float(value)


def report(summaries: list[dict[str, Any]], shapes: dict[str, Any], args: argparse.Namespace) -> None:
    runs = [summary["qualities"]["accuracy"] for summary in summaries]
    figures: dict[str, Any] = {
        "seeds": args.seeds,
        "shapes": shapes,
        "swift": spread([run["swift"]["quality"] for run in runs]),
        "super": spread([run["super"]["quality"] for run in runs]),
        "areas": {},
        "read here, 99%": {},
    }
    print(f"Swift {figures['swift']['mean']:.4f}, Super {figures['super']['mean']:.4f}; {len(runs)} runs")
    for name in runs[0]["scores"]:
        if name in ("random", "oracle"):
            continue
        areas = figures["areas"][name] = spread([run["scores"][name]["area"] or math.nan for run in runs])
        points = [summary["operating_points"][name]["read here, 99%"] for summary in summaries]
        found = figures["read here, 99%"][name] = {
            k: spread([p[k] for p in points]) for k in ("deferred_share", "speedup")
        }
        where = "before" if name in BEFORE_DECODER else "after"
        print(
            f"{name:20} {where:6} the decoder: area {areas['mean']:.3f} ± {areas['deviation']:.3f}; at 99% of the "
            f"Super {found['deferred_share']['mean']:.1%} deferred, {found['speedup']['mean']:.2f}x"
        )
    means = {name: found["mean"] for name, found in figures["areas"].items()}
    before = max(value for name, value in means.items() if name in BEFORE_DECODER)
    after = max(value for name, value in means.items() if name not in BEFORE_DECODER)
    figures["best before minus best after"] = before - after
    figures["encoder_energy minus free_energy"] = means["encoder_energy"] - means["free_energy"]
    print(f"before minus after: best {before - after:+.3f}, energy {figures['encoder_energy minus free_energy']:+.3f}")
    if args.rows is None:
        write_result("t5", figures, ("torch", "lightning", "transformers", "tokenizers"))


if __name__ == "__main__":
    main()
