"""Large models on one GPU: T5-11B's shape scored by the modules of `score` and `validate`, T5-Large's fitted.

python benchmarks/scale/large.py --sst2 SST-2/dev.tsv         # one GPU of 80 GB; writes benchmarks/results/large.json
python benchmarks/scale/large.py --sst2 SST-2/dev.tsv --tiny  # the same on tiny shapes on the CPU; writes nothing

Weights are random, words are made up, lengths are drawn from the sentences of SST-2. Scoring runs in bfloat16; a pair,
validated, is predicted to take what its two models take by themselves. Fitting is compared with the library's own
Trainer: the same batches in tokens, precision, optimizer and loss, in one run, in turn; tokens are real ones.
"""

import argparse
import csv
import gc
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from elang import JointModule, ScoreModule, SwiftModule, TextClassificationData
from elang.records.manifest import Manifest

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import wait_for_gpu, write_result
from speed.runtime import TASK, word_tokenizer
from speed.shapes import build, shapes

ANSWERS = ["bad", "good"]
PROMPT = "sst2 sentence: {text}"
BARS = {"validate over predicted": 1.05, "fit": 1.0}


def words_of(path: Path) -> list[int]:
    """The number of words of each sentence in a file of SST-2."""
    return [len(line.split("\t")[0].split()) for line in path.read_text("utf-8").splitlines()[1:]]


def write_texts(path: Path, words: list[int], count: int, known: int, seed: int) -> None:
    """Made-up sentences as long as the real ones."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for _ in range(count):
            said = " ".join(f"w{draw.randrange(known)}" for _ in range(draw.choice(words)))
            rows.writerow([said, draw.choice(ANSWERS)])


def save(config: Any, tokenizer: Any, folder: Path, device: torch.device) -> None:
    config.pad_token_id, config.eos_token_id, config.decoder_start_token_id = 0, 1, 0
    build(config, device).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    task = TASK.plain() | {"prompt": PROMPT, "answers": ANSWERS}
    Manifest(label_names=ANSWERS, task=task).write(folder / "elang.json")
    gc.collect()
    torch.cuda.empty_cache()


class _Clock(Callback):
    """Seconds of the batches after the first few."""

    def __init__(self, skip: int) -> None:
        self.skip, self.seen, self.tokens, self.start, self.seconds = skip, 0, 0, 0.0, 0.0
        self.lengths: list[int] = []

    def tick(self, tokens: int) -> None:
        self.seen += 1
        if self.seen <= self.skip:
            if self.seen == self.skip:
                wait_for_gpu()
                self.start = time.perf_counter()
            return
        self.tokens += tokens

    def stop(self) -> None:
        wait_for_gpu()
        self.seconds = time.perf_counter() - self.start

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    def on_validation_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int, loader: int = 0) -> None:
        self.tick(len(batch["id"]))

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        self.stop()

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int) -> None:
        # On the host: a batch is counted before it is sent.
        self.tick(self.lengths.pop(0))

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.stop()


def lightning(clock: _Clock, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        accelerator="auto", devices=1, callbacks=[clock], enable_checkpointing=False, num_sanity_val_steps=0,
        **quiet, **options,
    )  # fmt: skip


def scoring(home: Path, args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"examples": args.examples, "batch": args.batch}
    task = TASK.plain() | {"prompt": PROMPT, "answers": ANSWERS}
    common = {"label_names": ANSWERS, "task": task, "dtype": "bfloat16"}
    for name in ("swift", "super", "pair"):
        data = TextClassificationData(
            validation=str(home / "dev.csv"), prompt=PROMPT, answers=ANSWERS, eval_batch_size=args.batch
        )
        begun = time.perf_counter()
        module: Any
        if name == "pair":
            models = {"swift_model": str(home / "swift"), "super_model": str(home / "super")}
            module = JointModule(**models, **common, output=str(home / "joint"))
        else:
            module = ScoreModule(str(home / name), **common, output=str(home / f"{name}.parquet"))
        loaded = time.perf_counter() - begun
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        # Once to warm up: loads kernels and counts costs by length.
        for _ in range(2):
            clock = _Clock(args.skip)
            lightning(clock).validate(module, datamodule=data, verbose=False)
        found[name] = {"load seconds": loaded, "seconds": clock.seconds, "examples a second": clock.rate}
        if torch.cuda.is_available():
            found[name]["peak GB"] = torch.cuda.max_memory_allocated() / 2**30
        print(name, found[name], flush=True)
        del module
        gc.collect()
        torch.cuda.empty_cache()
    predicted = found["swift"]["seconds"] + found["super"]["seconds"]
    found["validate over predicted"] = found["pair"]["seconds"] / predicted
    return found


def fit_ours(home: Path, args: argparse.Namespace) -> float:
    data = TextClassificationData(
        train=str(home / "train.csv"), prompt=PROMPT, answers=ANSWERS, batch_size=args.fit_batch, routing_fraction=0
    )
    task = TASK.plain() | {"prompt": PROMPT, "answers": ANSWERS}
    module = SwiftModule(
        str(home / "large"), ANSWERS, task, lr=1e-5, distill_weight=0, hard="error", output=str(home / "fitted")
    )
    clock = _Clock(args.skip)
    precision = "bf16-mixed" if torch.cuda.is_available() else "32-true"
    trainer = lightning(clock, max_epochs=1, precision=precision)
    # Without what comes after: thresholds and the model's folder.

    def counted(batch: Any, loader: int) -> Any:
        clock.lengths.append(int(batch["model"]["attention_mask"].sum()))
        return batch

    module.on_before_batch_transfer = counted  # type: ignore[method-assign]
    module.on_train_end = module.on_fit_end = lambda: None  # type: ignore[method-assign]
    trainer.fit(module, datamodule=data)
    return float(clock.tokens) / clock.seconds


def fit_library(home: Path, args: argparse.Namespace, strategy: str) -> float:
    import transformers

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick(tokens.pop(0))

        def on_train_end(self, *_: Any, **__: Any) -> None:
            clock.stop()

    clock, tokens = _Clock(args.skip), []
    tokenizer = transformers.AutoTokenizer.from_pretrained(home / "large")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(home / "large", dtype=torch.float32)
    with (home / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    texts = tokenizer([PROMPT.format(text=row["text"]) for row in rows])["input_ids"]
    labels = tokenizer([row["label"] for row in rows])["input_ids"]
    examples = [
        {"input_ids": a, "attention_mask": [1] * len(a), "labels": b, "length": len(a)}
        for a, b in zip(texts, labels, strict=True)
    ]
    collate = transformers.DataCollatorForSeq2Seq(tokenizer, model)

    def counted(some: list[dict[str, Any]]) -> Any:
        tokens.append(sum(one["length"] for one in some))
        return collate([{k: v for k, v in one.items() if k != "length"} for one in some])

    settings = transformers.TrainingArguments(
        output_dir=str(home / "library"), per_device_train_batch_size=args.fit_batch, num_train_epochs=1,
        learning_rate=1e-5, warmup_steps=0.1, weight_decay=0.01, max_grad_norm=0.0, bf16=torch.cuda.is_available(),
        optim="adamw_torch_fused", train_sampling_strategy=strategy, save_strategy="no", report_to="none",
        logging_strategy="no", disable_tqdm=True, remove_unused_columns=False, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    transformers.Trainer(
        model=model, args=settings, train_dataset=examples, data_collator=counted, callbacks=[Watch()]
    ).train()
    return float(clock.tokens) / clock.seconds


def fitting(home: Path, args: argparse.Namespace) -> dict[str, Any]:
    ways = {
        "elang": lambda: fit_ours(home, args),
        "library, in order of length": lambda: fit_library(home, args, "group_by_length"),
        "library": lambda: fit_library(home, args, "random"),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, run in ways.items():
            rates[name].append(run())
            print(f"{name}: {rates[name][-1]:.0f} tokens/s", flush=True)
            gc.collect()
            torch.cuda.empty_cache()
    found: dict[str, Any] = {name: statistics.median(values) for name, values in rates.items()}
    pairs = zip(rates["elang"], rates["library, in order of length"], strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    return {"batch": args.fit_batch, "tokens a second": found, "rounds": rates, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sst2", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--train", type=int, default=5120)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--fit_batch", type=int, default=64)
    parser.add_argument("--skip", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.tiny:
        args.examples, args.train, args.batch, args.fit_batch, args.skip, args.repeats = 65, 64, 8, 8, 2, 1
    device = torch.device("cpu" if args.tiny else "cuda")
    torch.manual_seed(0)
    small, large = shapes(args.tiny)["T5"][1].values()
    tokenizer = word_tokenizer(small.vocab_size)
    words = words_of(args.sst2)
    with tempfile.TemporaryDirectory() as where:
        home = Path(where)
        for name, count, seed in (("dev", args.examples, 0), ("train", args.train, 1)):
            write_texts(home / f"{name}.csv", words, count, small.vocab_size - 5, seed)
        save(small, tokenizer, home / "large", device)
        figures: dict[str, Any] = {"fit": fitting(home, args)}
        save(small, tokenizer, home / "swift", device)
        save(large, tokenizer, home / "super", device)
        figures["score"] = scoring(home, args)
    print(figures)
    met = {
        "validate over predicted": figures["score"]["validate over predicted"] <= BARS["validate over predicted"],
        "fit": figures["fit"]["ratio"] >= BARS["fit"],
    }
    print(met)
    if not args.tiny:
        print(f"written to {write_result('large', figures | {'met': met}, ('torch', 'lightning', 'transformers'))}")
        sys.exit(not all(met.values()))


if __name__ == "__main__":
    main()
