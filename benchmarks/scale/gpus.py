"""Two GPUs against one: `elang fit` under DDP and FSDP, `elang validate`, and a T5-11B whose weights are shared out.

python benchmarks/scale/gpus.py --data SST-2 --swift MINILM-L3         # 2 GPUs of 80 GB, NCCL; writes results/gpus.json
python benchmarks/scale/gpus.py --data SST-2 --swift MINILM-L3 --tiny  # on 2 processes of the CPU; writes nothing

SST-2 is a folder with train.tsv and dev.tsv, MINILM-L3 any small BERT. It trains on SST-2, with as many examples a
step on one GPU as on two, and with six seeds on one; what is timed beside it has random weights, and as much to do on
every GPU as on one alone. Exits with 1 where a bar is missed.
"""

import argparse
import gc
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import ROOT, figures_of, git_commit, write_result
from large import ANSWERS, PROMPT, save, words_of, write_texts
from speed.runtime import word_tokenizer
from speed.shapes import shapes

EFFICIENCY = 0.9
# How much a label's logit of T5-11B in bfloat16 depends on the other inputs of the batch.
NEAR_BF16 = 0.1
PARTS = ["metrics", "fits", "scoring"]
QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]


def start(home: Path, name: str, processes: int, *args: str, gpu: int = 0, skip: int = 10) -> "subprocess.Popen[bytes]":
    """Run a verb on some GPUs, timed under a name."""
    clock = {"class_path": "clock.Clock", "init_args": {"path": str(home / name), "skip": skip}}
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks" / "scale"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "4"}
    if processes == 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    command = [sys.executable, "-m", "elang", *args, *QUIET, "--trainer.devices", str(processes)]
    command += ["--trainer.callbacks", json.dumps([clock])]
    return subprocess.Popen(command, cwd=home, env=environment, stdout=(home / f"{name}.log").open("wb"), stderr=-2)


def finish(home: Path, name: str, process: "subprocess.Popen[bytes]") -> dict[str, float]:
    if process.wait():
        raise SystemExit(f"{name} ended with {process.returncode}:\n{(home / f'{name}.log').read_text()[-4000:]}")
    parts = [json.loads(path.read_text()) for path in home.glob(f"{name}.[0-9]")]
    # Each process counts its own.
    rate = sum(one["tokens"] / one["seconds"] for one in parts)
    seconds = max(one["seconds"] for one in parts)
    print(f"{name}: {rate:.0f} tokens/s, {seconds:.2f} s, {sum(one['batches'] for one in parts)} batches", flush=True)
    more = {"accuracy": parts[0]["accuracy"]} if "accuracy" in parts[0] else {}
    return {"tokens a second": rate, "seconds": seconds, **more}


def timed(home: Path, name: str, processes: int, *args: str, skip: int = 10) -> dict[str, float]:
    return finish(home, name, start(home, name, processes, *args, skip=skip))


def of_twice(one: dict[str, float], two: dict[str, float]) -> float:
    """The speed of two GPUs relative to twice the speed of one."""
    return two["tokens a second"] / (2 * one["tokens a second"])


def side_by_side(home: Path, runs: dict[str, list[str]], skips: dict[str, int] | None = None) -> dict[str, Any]:
    """Runs on one GPU each: two share the host, as where both GPUs work on one; a third shares a GPU, too."""
    going = {
        name: start(home, name, 1, *args, gpu=i % 2, skip=(skips or {}).get(name, 10))
        for i, (name, args) in enumerate(runs.items())
    }
    try:
        return {name: finish(home, name, process) for name, process in going.items()}
    finally:
        for process in going.values():
            process.kill()


def prepare(home: Path, args: argparse.Namespace) -> None:
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    for name in ("train", "dev"):
        frame = pd.read_csv(args.data / f"{name}.tsv", sep="\t", quoting=3)
        frame = pd.DataFrame({"text": frame["sentence"], "label": frame["label"].map(dict(enumerate(ANSWERS)))})
        frame.head(args.rows if name == "train" else 872).to_csv(home / f"{name}.csv", index=False)
    tokenizer = AutoTokenizer.from_pretrained(args.swift)
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    sizes: dict[str, dict[str, int]] = {"base": {}, "large": large}
    if args.tiny:
        tiny = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
        sizes = {"base": tiny | {"num_hidden_layers": 1}, "large": tiny | {"num_hidden_layers": 2}}
    torch.manual_seed(0)
    for name, size in sizes.items():
        labels = {"id2label": dict(enumerate(ANSWERS)), "label2id": {n: i for i, n in enumerate(ANSWERS)}}
        BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **size, **labels)).save_pretrained(
            home / name
        )
        tokenizer.save_pretrained(home / name)
    # One token each.
    draw, words = random.Random(0), [word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha()][:2000]
    # In training one GPU and two have the same to do in every step only where all texts are as long.
    for name, count, shortest, longest in (("long", args.long, 160, 160), ("odd", args.odd, 60, 260)):
        texts = [" ".join(draw.choices(words, k=draw.randint(shortest, longest))) for _ in range(count)]
        labels = [draw.choice(ANSWERS) for _ in texts]
        pd.DataFrame({"text": texts, "label": labels}).to_csv(home / f"{name}.csv", index=False)


def metrics(home: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The Swift on SST-2: six seeds on one GPU, and one on two with the same batches."""

    def swift(name: str, batch: int, seed: int) -> list[str]:
        options = ["--data.train", "train.csv", "--data.validation", "dev.csv", "--data.batch_size", str(batch)]
        options += ["--model", "SwiftModule", "--model.model", str(args.swift.resolve()), "--model.output", name]
        options += ["--model.distill_weight", "0", "--model.hard", "error", "--model.lr", "1e-4"]
        return ["fit", *options, "--seed_everything", str(seed), "--trainer.max_epochs", "2", *args.device]

    alone = side_by_side(home, {f"seed{seed}": swift(f"seed{seed}", 64, seed) for seed in range(6)})
    found = {name: one["accuracy"] for name, one in alone.items()}
    seeds = list(found.values())
    # The range of so few seeds says little.
    spread = 3 * float(np.std(seeds, ddof=1))
    found["both"] = timed(home, "both", 2, *swift("both", 32, 0), "--trainer.strategy", "ddp")["accuracy"]
    return found | {"spread": spread, "met": abs(found["both"] - float(np.mean(seeds))) <= spread}


def fits(home: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of training on one GPU and two: the Swift in DDP, the Super in FSDP."""
    found: dict[str, Any] = {}
    common = ["--data.train", "long.csv", "--data.validation", "dev.csv", "--data.routing_fraction", "0"]
    common += ["--trainer.max_steps", str(args.steps), "--trainer.max_epochs", "10"]
    common += ["--trainer.limit_val_batches", "0", "--trainer.enable_checkpointing", "false", *args.device]
    common += ["--trainer.precision", args.precision, "--data.batch_size"]
    swift = ["fit", "--model", "SwiftModule", "--model.model", "base", "--model.distill_weight", "0"]
    swift += ["--model.hard", "error", "--model.score", "free_energy", *common, str(2 * args.batch)]
    # On smaller batches the host has more to do than a GPU, most of all in FSDP.
    super_ = ["fit", "--model.model", "large", "--model.gradient_checkpointing", "true", *common, str(3 * args.batch)]
    runs = {"DDP": swift, "FSDP": super_}
    alone = side_by_side(home, {name: [*given, "--model.output", f"{name}-1-model"] for name, given in runs.items()})
    for name, strategy in (("DDP", "ddp"), ("FSDP", "sharded")):
        one, given = alone[name], runs[name]
        two = timed(home, f"{name}-2", 2, *given, "--model.output", f"{name}-2-model", "--trainer.strategy", strategy)
        efficiency = of_twice(one, two)
        found[name] = {"one": one, "two": two, "efficiency": efficiency, "met": efficiency >= EFFICIENCY}
    return found


def scoring(home: Path, args: argparse.Namespace) -> dict[str, Any]:
    """`elang validate` of a pair, and `elang score` of a Super in parts, each on one GPU and on two."""
    args.saving.join()
    if args.saving.exitcode:
        raise SystemExit("T5-11B's shape could not be written")
    common = ["--data.label_names", json.dumps(ANSWERS), *args.device, "--data.eval_batch_size"]
    joint = ["validate", "--model.swift_model", "base", "--model.super_model", "large", "--data.validation", "odd.csv"]
    t5 = ["score", "--model.model", "t5", "--data.validation", "words.csv", "--data.prompt", PROMPT]
    t5 += ["--data.answers", json.dumps(ANSWERS), "--model.dtype", "bfloat16"]
    # Each layer's weights are gathered as long for a small batch as for a large one.
    joint += [*common, str(args.batch), "--model.output"]
    t5 += [*common, str(8 * args.batch), "--model.output"]
    # Longest first, so that the same batches are counted on one GPU as on two.
    skips = {"joint-1": 20, "t5-1": 4}
    times = side_by_side(home, {"joint-1": [*joint, "joint-1"], "t5-1": [*t5, "t5-1.parquet"]}, skips)
    times["joint-2"] = timed(home, "joint-2", 2, *joint, "joint-2", "--trainer.strategy", "ddp")
    times["t5-2"] = timed(home, "t5-2", 2, *t5, "t5-2.parquet", "--trainer.strategy", "sharded", skip=2)
    return {"validate": validated(home, times, args.odd), "sharded": answered(home, times, args.sharded)}


def validated(home: Path, times: dict[str, Any], count: int) -> dict[str, Any]:
    """The answers of two GPUs to an odd number of examples in float32, compared with one."""
    one, two = (pd.read_parquet(home / f"joint-{n}" / "records.parquet") for n in (1, 2))
    answers = ["swift_prediction", "super_prediction"]
    scores = [column for column in one if column.startswith("score_")]
    differ = int((one[answers] != two[answers]).any(axis=1).sum())
    curves = [(home / f"joint-{n}" / "curve.csv").read_text() for n in (1, 2)]
    same = curves[0] == curves[1]
    lost = abs(len(two) - count) + int(two["id"].duplicated().sum())
    efficiency = of_twice(times["joint-1"], times["joint-2"])
    return {
        "one": times["joint-1"],
        "two": times["joint-2"],
        "examples": len(one),
        "lost or doubled": lost,
        "decisions that differ": differ,
        "scores apart": float((one[scores] - two[scores]).abs().max().max()),
        "same curves": same,
        "efficiency": efficiency,
        "met": efficiency >= EFFICIENCY and differ == 0 and lost == 0 and same,
    }


def answered(home: Path, times: dict[str, Any], count: int) -> dict[str, Any]:
    """The answers of T5-11B's shape in bfloat16 in parts, compared with the whole."""
    one, both = (np.stack(pd.read_parquet(home / f"t5-{n}.parquet")["logits"]) for n in (1, 2))
    margin, differ = np.abs(one[:, 0] - one[:, 1]), one.argmax(1) != both.argmax(1)
    outside = int((differ & (margin > NEAR_BF16)).sum())
    efficiency = of_twice(times["t5-1"], times["t5-2"])
    return {
        "one": times["t5-1"],
        "two": times["t5-2"],
        "examples": len(both),
        "logits apart": float(np.abs(one - both).max()),
        "answers that differ": int(differ.sum()),
        "beyond the distance": outside,
        "efficiency": efficiency,
        "met": efficiency >= EFFICIENCY and outside == 0 and len(both) == count,
    }


def write_t5(home: Path, data: Path, count: int, tiny: bool) -> None:
    """T5-11B's shape with random weights, and sentences of SST-2's mean length."""
    config = list(shapes(tiny)["T5"][1].values())[1]
    # Of only ten batches of all lengths the longer one of each step would be waited for.
    write_texts(home / "words.csv", [round(np.mean(words_of(data / "dev.tsv")))], count, config.vocab_size - 5, 0)
    save(config, word_tokenizer(config.vocab_size), home / "t5", torch.device("cpu" if tiny else "cuda"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--swift", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    args.rows, args.batch, args.steps, args.odd, args.sharded = 12000, 128, 40, 8001, 10239
    args.device, args.precision = ["--trainer.accelerator", "gpu"], "bf16-mixed"
    if args.tiny:
        args.rows, args.batch, args.steps, args.odd, args.sharded = 400, 8, 16, 201, 401
        args.device, args.precision = ["--trainer.accelerator", "cpu"], "32-true"
    # No example comes twice on two GPUs.
    args.long = 2 * 3 * args.batch * (args.steps + 1)
    # Figures that are not measured now stay, with the commit of their run.
    figures = {} if args.tiny else figures_of("gpus")
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as where:
        home = Path(where)
        # Beside what is not timed.
        given = (home, args.data, args.sharded, args.tiny)
        args.saving = multiprocessing.get_context("spawn").Process(target=write_t5, args=given)
        args.saving.start()
        prepare(home, args)
        for part in (metrics, fits, scoring):
            if part.__name__ in args.only:
                figures[part.__name__] = part(home, args) | {"commit": git_commit()}
                print(
                    part.__name__,
                    json.dumps(figures[part.__name__]),
                    f"{time.perf_counter() - begun:.0f} s",
                    flush=True,
                )
                gc.collect()
                figures["met"] = {"metrics": figures["metrics"]["met"]} if "metrics" in figures else {}
                figures["met"] |= {
                    name: one["met"]
                    for part in ("fits", "scoring")
                    for name, one in figures.get(part, {}).items()
                    if name != "commit"
                }
                if not args.tiny:
                    print(f"written to {write_result('gpus', figures, ('torch', 'lightning', 'transformers'))}")
    print(figures["met"])
    if not args.tiny:
        sys.exit(not all(figures["met"].values()))


if __name__ == "__main__":
    main()
