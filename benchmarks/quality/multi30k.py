"""English to German on Multi30k: a pair trained from scratch, every score before and after the decoder.

    python benchmarks/quality/multi30k.py --data MULTI30K [--precision bf16-mixed] [--swift epochs=40]
        [--super d_model=256]

MULTI30K holds train, val and test_2016_flickr as .en.gz and .de.gz. Tokenizer and random weights are made here. Prints
a table and, without --rows, writes benchmarks/results/multi30k.json; exits with 1 where a bar is missed.
"""

import argparse
import gzip
import json
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import M2M100Config, M2M100ForConditionalGeneration, PreTrainedTokenizerFast

from elang.cli.suite_plan import read_plan, task_steps, write_configs
from elang.cli.suite_steps import STAGES, forget_stale, run_chains
from elang.method.quality.texts import bleu_value
from elang.tasks.kinds import text_targets

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import ROOT, write_result

CONFIG = ROOT / "configs" / "suite" / "own-translation.yaml"
# Layers of the encoder and of the decoder; dropout is what keeps a model this size from learning the set by heart.
SHAPES: dict[str, dict[str, float]] = {
    "swift": {"d_model": 128, "ffn": 256, "encoder": 3, "decoder": 2, "heads": 4, "dropout": 0.1}
    | {"lr": 2e-3, "epochs": 40, "batch_size": 128, "num_beams": 1},
    "super": {"d_model": 256, "ffn": 1024, "encoder": 4, "decoder": 4, "heads": 4, "dropout": 0.3}
    | {"lr": 1e-3, "epochs": 30, "batch_size": 128, "num_beams": 4},
}
RESAMPLES = 2_000
BLEU_BAR, FLOPS_BAR, GAP_BAR, PARITY = 35.0, 4.0, 4.0, 0.3


def lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[:-1]


def make_tokenizer(texts: list[str], size: int = 8_000) -> Any:
    """Subwords that restore every text exactly."""
    found = Tokenizer(models.BPE(unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    found.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    found.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, min_frequency=2, show_progress=False)
    )
    found.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def write_base(folder: Path, tokenizer: Any, shape: dict[str, float]) -> str:
    """A random pre-norm transformer with sinusoidal positions, its embeddings tied."""
    sides = {
        f"{side}_{name}": int(shape[key])
        for side in ("encoder", "decoder")
        for name, key in (("layers", side), ("attention_heads", "heads"), ("ffn_dim", "ffn"))
    }
    config = M2M100Config(
        vocab_size=len(tokenizer),
        d_model=int(shape["d_model"]),
        dropout=shape["dropout"],
        attention_dropout=0.0,
        activation_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        max_position_embeddings=128,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        **sides,
    )
    torch.manual_seed(0)
    model = M2M100ForConditionalGeneration(config)
    # Scaled by the root of the width as they are looked up.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=config.d_model**-0.5)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--rows", type=int, help="only so many training rows, and results are not written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", choices=STAGES, default="joint")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-multi30k"))
    for role, shape in SHAPES.items():
        names = ", ".join(f"{name}={value:g}" for name, value in shape.items())
        parser.add_argument(f"--{role}", nargs="+", type=setting, default=[], help=f"what differs from {names}")
    args = parser.parse_args()
    start = time.perf_counter()
    shapes = {role: shape | dict(getattr(args, role)) for role, shape in SHAPES.items()}
    chain = steps_of(args, shapes)
    write_configs(chain, parse=False)
    forget_stale(chain)
    resumed = any(step.made.exists() for step in chain)
    run_chains([[step for step in chain if step.stage in STAGES[: STAGES.index(args.until) + 1]]])
    if args.until != "joint":
        return 0
    seconds = None if resumed else time.perf_counter() - start
    return report(chain[-1].made.parent, args, shapes, seconds)


def steps_of(args: argparse.Namespace, shapes: dict[str, dict[str, float]]) -> list[Any]:
    """Make data, tokenizer and bases if missing, and the steps of the shipped configuration."""
    folder = args.out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    texts: list[str] = []
    for split in ("train", "val", "test_2016_flickr"):
        for side in ("en", "de"):
            found = lines(args.data / f"{split}.{side}.gz")
            if split == "train":
                found = found[: args.rows]
                texts += found
            (folder / f"{split}.{side}").write_text("\n".join(found) + "\n", "utf-8")
    tokenizer = make_tokenizer(texts)
    plan = read_plan(str(CONFIG))
    for role, shape in shapes.items():
        plan[f"{role}_model"] = write_base(args.out / f"{role}-base", tokenizer, shape)
        plan[role]["model"] |= {"lr": shape["lr"], "num_beams": int(shape["num_beams"])}
        plan[role]["data"] = {"batch_size": int(shape["batch_size"])}
        # Validation generates texts, so not too often.
        epochs = int(shape["epochs"])
        plan[role]["trainer"] |= {
            "max_epochs": epochs,
            "check_val_every_n_epoch": max(1, epochs // 3),
            "gradient_clip_val": 1.0,
        }
    plan["all"]["trainer"] |= {"precision": args.precision}
    plan["tasks"] = {}
    files = {"train": str(folder / "train"), "validation": str(folder / "val"), "source": "en", "target": "de"}
    plan["tasks"]["multi30k"] = {
        "all": {"data": files},
        "joint": {"data": {"validation": str(folder / "test_2016_flickr")}},
    }
    return list(task_steps("multi30k", plan, None, root=args.out / f"seed{args.seed}", seed=args.seed))


def setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in SHAPES["swift"]:
        raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(SHAPES['swift'])}")
    return name, float(value)


def report(joint: Path, args: argparse.Namespace, shapes: dict[str, Any], seconds: float | None) -> int:
    summary = json.loads((joint / "summary.json").read_text("utf-8"))
    found = summary["qualities"]["bleu"]
    frame = pd.read_parquet(joint / "records.parquet").query("split == 'validation'")
    references = lines(args.data / "test_2016_flickr.de.gz")
    texts = [frame[f"{role}_text"].tolist() for role in ("swift", "super")]
    swift, super_ = text_targets(["bleu"], references, *texts)["bleu"].double().unbind(1)
    figures: dict[str, Any] = {
        "shapes": shapes,
        "seconds in all, if run in one go": seconds,
        "signature": summary["signatures"]["bleu"],
        "swift": found["swift"],
        "super": found["super"],
        "chrf": {role: summary["qualities"]["chrf"][role]["quality"] for role in ("swift", "super")},
        "FLOPs of the Super over the Swift's": found["super"]["cost"] / found["swift"]["cost"],
        "decoder's share of the Swift's FLOPs": summary["lengths"]["decoder_share"],
        "scores": {},
    }
    curves = pd.read_csv(joint / "curve.csv")
    for name, row in found["scores"].items():
        if name in ("random", "oracle"):
            continue
        score = torch.tensor(frame[f"score_{name}"].to_numpy(), dtype=torch.float64)
        curve = curves[curves["score"] == name].reset_index(drop=True)
        least = curve[curve["bleu"] >= found["super"]["quality"] - PARITY].iloc[0]
        held_out = row["held_out"]["99%"]
        figures["scores"][name] = {
            "area": row["area"],
            "rank correlation with generated tokens": summary["lengths"]["generated"][name],
            f"within {PARITY} BLEU": {
                "deferred": least["deferred_share"],
                "difference": interval(score > float(least["threshold"]), swift, super_),
                "speed-up": least["speedup"],
            },
            "held out, 99%": {
                "deferred": held_out["deferred_share"],
                "difference": interval(score > float(held_out["threshold"]), swift, super_),
                "speed-up": held_out["speedup"],
            },
        }
    show(figures)
    missed = []
    if found["super"]["quality"] < BLEU_BAR:
        missed.append(f"the Super has {found['super']['quality']:.2f} BLEU, the bar is {BLEU_BAR}")
    if (cheaper := figures["FLOPs of the Super over the Swift's"]) < FLOPS_BAR:
        missed.append(f"the Swift is {cheaper:.2f} times cheaper, the bar is {FLOPS_BAR}")
    if found["super"]["quality"] - found["swift"]["quality"] > GAP_BAR:
        missed.append(f"the Swift is {found['super']['quality'] - found['swift']['quality']:.2f} BLEU behind")
    figures["missed"] = missed
    if args.rows is None:
        write_result("multi30k", figures, ("torch", "lightning", "transformers", "tokenizers", "sacrebleu"))
    for line in missed:
        print(f"MISSED: {line}", file=sys.stderr)
    return 1 if missed else 0


def interval(deferred: torch.Tensor, swift: torch.Tensor, super_: torch.Tensor) -> dict[str, float]:
    """BLEU of the pair minus the Super's, with a paired bootstrap's 95% interval over sentences."""
    mixed = torch.where(deferred[:, None], super_, swift)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(mixed), (RESAMPLES, len(mixed)), generator=generator)
    weight = torch.zeros(RESAMPLES, len(mixed), dtype=torch.float64)
    weight.scatter_add_(1, draws, torch.ones_like(weight))
    differences = bleu_value(weight @ mixed) - bleu_value(weight @ super_)
    low, high = differences.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"BLEU": float(bleu_value(mixed.sum(0)) - bleu_value(super_.sum(0))), "low": low, "high": high}


def show(figures: dict[str, Any]) -> None:
    for role in ("swift", "super"):
        print(f"{role}: BLEU {figures[role]['quality']:.2f}, {figures[role]['cost'] / 1e9:.4f} GFLOPs")
    for name in ("FLOPs of the Super over the Swift's", "decoder's share of the Swift's FLOPs"):
        print(f"{name}: {figures[name]:.3g}")
    print(f"{'score':<18}{'area':>7}{'length':>8}{'deferred':>10}{'BLEU to the Super, 95%':>30}{'speed-up':>10}")
    for name, row in sorted(figures["scores"].items(), key=lambda item: -(item[1]["area"] or 0)):
        point = row[f"within {PARITY} BLEU"]
        gap = point["difference"]
        said = f"{gap['BLEU']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]"
        length = row["rank correlation with generated tokens"]
        area, gain = row["area"] or 0.0, point["speed-up"]
        print(f"{name:<18}{area:>7.3f}{length:>8.2f}{point['deferred']:>10.1%}{said:>30}{gain:>9.2f}x")


if __name__ == "__main__":
    sys.exit(main())
