"""Tasks x Swifts x recipes x seeds: which training makes a Swift that knows when it is wrong.

    python benchmarks/ablate.py --data DATA --models MODELS [--tasks rte cola] [--swifts l6x1 l3]
        [--recipes plain distil] [--seeds 0 1 2] [--jobs 6] [--minutes 9] [--out runs/ablate]
    python benchmarks/ablate.py --out runs/ablate --table [--result ablate]

DATA holds glue/SST-2, glue/RTE, glue/CoLA, superglue/WiC-full, banking77 (the benchmarks' own files) and trec (the
train.csv and validation.csv that `elang demo` writes); MODELS holds minilm-l3, minilm-l6 and mpnet-base, plain folders.
Every run leaves its answers to the routing slice and the evaluation set in OUT; what is there is not run again, and
after --minutes nothing new is begun. --table reads them all, prints the tables and writes
benchmarks/results/ablate.json. Supers of another run are other Supers, and their tables are of their own.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
import warnings
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from common import ROOT, about

RECIPES = ROOT / "configs" / "recipes"
FOLDS = 3
# With text without labels.
TRANSFER = ("distil-transfer", "distil-hidden-transfer")
# Of the Super's size, at the same time: their memory adds up.
MOST_SUPERS = 10


@dataclass(frozen=True)
class Setup:
    """A task: where its files are, its metric, and how long each model trains.

    A Super's batches are half as large, but on SST-2.
    """

    folder: str
    metric: str
    super_epochs: int
    swift_epochs: int
    batch: int
    routing: float
    # New texts for each one; none where the task is about words of its texts.
    copies: int


SETUPS = {
    "sst2": Setup("glue/SST-2", "accuracy", 2, 3, 64, 0.05, 1),
    "rte": Setup("glue/RTE", "accuracy", 6, 20, 32, 0.15, 10),
    "cola": Setup("glue/CoLA", "matthews", 5, 20, 64, 0.1, 10),
    "wic": Setup("superglue/WiC-full", "accuracy", 6, 20, 64, 0.1, 0),
    "banking77": Setup("banking77", "accuracy", 10, 25, 64, 0.1, 5),
    "trec": Setup("trec", "accuracy", 5, 20, 64, 0.15, 10),
}
# The folder, how many layers, and the learning rate.
SWIFTS = {
    "l6x1": ("minilm-l6", 1, 5e-4),
    "l6x2": ("minilm-l6", 2, 4e-4),
    "l6x3": ("minilm-l6", 3, 3e-4),
    "l3": ("minilm-l3", None, 3e-4),
    "l6": ("minilm-l6", None, 2e-4),
}


@dataclass(frozen=True)
class Job:
    """One training, and its answers."""

    kind: str
    task: str
    seed: int
    swift: str = ""
    recipe: str = ""
    fold: str = ""

    def path(self, out: Path) -> Path:
        """What it leaves."""
        name = f"{self.kind}-{self.task}-{self.seed}"
        if self.swift:
            name += f"-{self.swift}-{self.recipe}"
        return out / f"{name}{'-' + self.fold.replace('/', 'of') if self.fold else ''}.npz"

    def model(self, out: Path) -> Path:
        """The model's folder, if it is needed later."""
        return self.path(out).with_suffix("")


def data_of(job: Job, data: Path, out: Path, transfer: bool = False) -> Any:
    """The task's data module."""
    from elang.data.benchmarks import TaskData
    from elang.data.text_classification import TextClassificationData

    setup = SETUPS[job.task]
    folder = data / setup.folder
    options: dict[str, Any] = {
        "batch_size": setup.batch // 2 if job.kind == "super" and job.task != "sst2" else setup.batch,
        "eval_batch_size": 256,
        "max_length": 128,
        "routing_fraction": setup.routing,
        "transfer": str(transfer_file(job.task, out)) if transfer else None,
        "fold": job.fold or None,
    }
    if job.task in ("banking77", "trec"):
        names = {"banking77": ("train.csv", "test.csv", "text", "category")}.get(job.task)
        train, dev, text, label = names or ("train.csv", "validation.csv", "text", "label")
        files = {"train": str(folder / train), "validation": str(folder / dev)}
        return TextClassificationData(**files, text=text, label=label, **options)
    name = {"wic": "superglue/wic"}.get(job.task, f"glue/{job.task}")
    return TaskData(name, str(folder), ["train", "validation"], **options)


def transfer_file(task: str, out: Path) -> Path:
    """Text like the task's, without labels."""
    return out / f"transfer-{task}.csv"


def trainer_of(epochs: int, device: str, large: bool) -> Any:
    """A trainer that only trains; casts would cost a small model more than they save it."""
    from lightning.pytorch import Trainer

    return Trainer(
        max_epochs=epochs,
        accelerator=device,
        devices=1,
        precision="bf16-mixed" if large and device == "gpu" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        log_every_n_steps=10**9,
    )


def answers_of(module: Any, data: Any, splits: list[str], device: str) -> dict[str, np.ndarray]:
    """A model's answers to some splits, as arrays named by split and column."""
    from elang.data.encoding import encode_examples
    from elang.data.slices import fold_of

    place = torch.device("cuda" if device == "gpu" else "cpu")
    model = module.classifier.to(place).eval()
    order, found = list(range(len(module.label_names))), {}
    for split in splits:
        examples = data.examples(split)
        encoded = encode_examples(model.reader, data.text_task, examples.texts, examples.choices, 128)
        parts = []
        for rows in encoded.lengths.argsort(stable=True).split(512):
            inputs = {name: column.to(place) for name, column in encoded.batch(rows.tolist()).items()}
            fold = fold_of(examples.key[rows]).to(place) if split == "routing" else None
            with torch.no_grad():
                answer = model.answer_columns(inputs, order, fold=fold)
            parts.append({"row": rows, **{name: column.cpu() for name, column in answer.items()}})
        table = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        place_of = table.pop("row").argsort()
        for name in ("logits", "flops", *model.head_scores):
            found[f"{split}_{name}"] = table[name][place_of].float().numpy()
        found |= {f"{split}_id": examples.id.numpy(), f"{split}_key": examples.key.numpy()}
        found[f"{split}_label"] = examples.label.numpy()
    return found


def write_super_records(job: Job, out: Path, found: dict[str, np.ndarray], names: list[str]) -> None:
    """The Super's answers in the form that a Swift's training reads."""
    from elang.records.table import Records, join_records, write_records

    def part(split: str) -> Records:
        logits = torch.tensor(found[f"{split}_logits"])
        columns = {name: torch.tensor(found[f"{split}_{name}"]) for name in ("id", "key")}
        return Records(columns["id"], logits.argmax(-1), logits, columns["key"])

    splits = {"train": join_records([part(split) for split in ("train", "routing")])}
    if "transfer_logits" in found:
        splits["transfer"] = part("transfer")
    write_records(job.model(out).with_suffix(".parquet"), splits, names, routing_fraction=SETUPS[job.task].routing)


def save(path: Path, **columns: Any) -> None:
    """Write aside and rename."""
    aside = path.with_name(f".{path.name}")
    np.savez_compressed(aside, **columns)
    os.replace(aside, path)


def run_super(job: Job, args: argparse.Namespace, device: str) -> None:
    """Fine-tune a Super and keep it and its answers."""
    from elang.models.finetune import FinetuneModule

    setup, out = SETUPS[job.task], args.out
    data = data_of(job, args.data, out)
    base = str(args.models / args.super)
    start = time.perf_counter()
    module = FinetuneModule(base, data.label_names, data.task_fields, lr=args.super_lr, output=str(job.model(out)))
    trainer_of(setup.super_epochs, device, True).fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    found = answers_of(module, data, ["train", "routing", "validation"], device)
    write_super_records(job, out, found, data.label_names)
    kept = {name: column for name, column in found.items() if not name.startswith("train")}
    save(job.path(out), seconds=seconds, **kept)


def run_texts(job: Job, args: argparse.Namespace, device: str) -> None:
    """Make text like a task's, by the backbone as it came: fine-tuning has moved its embeddings."""
    import pandas as pd

    from elang.cli.augment import augment

    start = time.perf_counter()
    data, out = data_of(job, args.data, args.out), args.out
    examples, columns = data.examples("train"), data.text_columns
    source = out / f"source-{job.task}.csv"
    pd.DataFrame(examples.texts, columns=columns).to_csv(source, index=False)
    options = {"copies": SETUPS[job.task].copies, "device": "cuda" if device == "gpu" else "cpu"}
    augment(str(args.models / args.super), str(transfer_file(job.task, out)), str(source), columns, **options)
    save(job.path(out), seconds=time.perf_counter() - start)


def run_scored(job: Job, args: argparse.Namespace, device: str) -> None:
    """Add a Super's answers to the text that was made."""
    from elang.backends.loading.load import load_model

    out, super_ = args.out, Job("super", job.task, job.seed)
    start = time.perf_counter()
    data = data_of(job, args.data, out, transfer=True)
    module = argparse.Namespace(classifier=load_model(str(super_.model(out))), label_names=data.label_names)
    found = answers_of(module, data, ["train", "routing", "transfer"], device)
    write_super_records(super_, out, found, data.label_names)
    save(job.path(out), seconds=time.perf_counter() - start)


def run_swift(job: Job, args: argparse.Namespace, device: str) -> None:
    """Train a Swift by a recipe and keep its answers."""
    from elang.models.swift import SwiftModule

    setup, out = SETUPS[job.task], args.out
    folder, layers, lr = SWIFTS[job.swift]
    recipe = yaml.safe_load((RECIPES / f"{job.recipe}.yaml").read_text("utf-8"))["model"]["init_args"]
    super_ = Job("super", job.task, job.seed)
    data = data_of(job, args.data, out, transfer=job.recipe in TRANSFER)
    options: dict[str, Any] = {"model": str(args.models / folder), "layers": layers, "lr": lr} | recipe
    # The words that only the evaluation set has stay beside those that are trained on.
    options["freeze_embeddings"] = True
    options["super_records"] = str(super_.model(out).with_suffix(".parquet"))
    epochs = setup.swift_epochs
    if job.recipe == "gatekeeper":
        start_from = Job("swift", job.task, job.seed, job.swift, "plain")
        options |= {"model": str(start_from.model(out)), "layers": None, "lr": lr / 3}
        epochs = max(1, epochs // 3)
    if job.recipe in TRANSFER:
        # As many steps as twice the others.
        rows = len(data.examples("train"))
        epochs = max(1, round(2 * epochs * rows / (rows + len(data.examples("transfer")))))
    if recipe.get("hidden_weight"):
        options["super_model"] = str(super_.model(out))
    if needs_folds(job.recipe):
        options["out_of_fold"] = str(out / f"fold-{job.task}-{job.seed}-{job.swift}.parquet")
        join_folds(job, args)
    start = time.perf_counter()
    module = SwiftModule(label_names=data.label_names, task=data.task_fields, output=str(job.model(out)), **options)
    trainer_of(epochs, device, "super_model" in options).fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    found = answers_of(module, data, ["fold"] if job.fold else ["routing", "validation"], device)
    save(job.path(out), seconds=seconds, router=json.dumps(module.router_report), **found)
    if job.recipe != "plain" or job.fold:
        shutil.rmtree(job.model(out))


@cache
def needs_folds(recipe: str) -> bool:
    """Whether it reads what Swifts say that have not seen an example."""
    return "OUT_OF_FOLD" in (RECIPES / f"{recipe}.yaml").read_text("utf-8")


def fold_jobs(job: Job) -> list[Job]:
    """The Swifts that answer out of fold, one set for each task, Swift and seed."""
    folds = [f"{k}/{FOLDS}" for k in range(FOLDS)]
    return [Job("fold", job.task, job.seed, job.swift, "plain", fold) for fold in folds]


def join_folds(job: Job, args: argparse.Namespace) -> None:
    """Put the folds' answers together."""
    from elang.records.table import Records, join_records, write_records

    parts = []
    for one in fold_jobs(job):
        found = np.load(one.path(args.out))
        logits = torch.tensor(found["fold_logits"])
        ids, key = (torch.tensor(found[f"fold_{name}"]) for name in ("id", "key"))
        parts.append(Records(ids, logits.argmax(-1), logits, key))
    path = args.out / f"fold-{job.task}-{job.seed}-{job.swift}.parquet"
    if not path.exists():
        names = data_of(job, args.data, args.out).label_names
        write_records(path, {"train": join_records(parts)}, names)


def start_worker(threads: int) -> None:
    """What each process says and uses."""
    import logging

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")


def work(job: Job, args: argparse.Namespace) -> None:
    """Run one job; what fails is said, and others go on."""
    from lightning.pytorch import seed_everything

    device = "gpu" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    seed_everything(job.seed, verbose=False)
    try:
        {"super": run_super, "texts": run_texts, "scored": run_scored}.get(job.kind, run_swift)(job, args, device)
        print(f"{job.path(args.out).stem}: {time.perf_counter() - start:.0f} s", flush=True)
    except Exception as error:
        print(f"{job.path(args.out).stem} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    # The next job may be another process's, and the memory is shared.
    torch.cuda.empty_cache()


def needs(job: Job) -> list[Job]:
    """What has to be there before."""
    if job.kind in ("super", "texts"):
        return []
    first = [Job("super", job.task, job.seed)]
    if job.kind == "scored":
        return [*first, Job("texts", job.task, 0)]
    if job.recipe in TRANSFER:
        first.append(Job("scored", job.task, job.seed))
    if job.recipe == "gatekeeper":
        first.append(Job("swift", job.task, job.seed, job.swift, "plain"))
    return first + (fold_jobs(job) if needs_folds(job.recipe) else [])


def run_all(jobs: list[Job], args: argparse.Namespace) -> bool:
    """Run what is not done, side by side, each as soon as what it needs is there; whether all is done now."""
    until = time.time() + 60 * args.minutes
    waiting = [job for job in jobs if not job.path(args.out).exists()]
    running: dict[Any, Job] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, context, start_worker, (args.threads,)) as pool:
        while True:
            supers = sum(job.kind == "super" for job in running.values())
            for job in [*waiting] if time.time() < until else []:
                if len(running) == args.jobs:
                    break
                if job.kind == "super" and supers == MOST_SUPERS:
                    continue
                if all(one.path(args.out).exists() for one in needs(job)):
                    supers += job.kind == "super"
                    waiting.remove(job)
                    running[pool.submit(work, job, args)] = job
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                del running[future]
                future.result()
    return all(job.path(args.out).exists() for job in jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=SETUPS, default=list(SETUPS))
    parser.add_argument("--swifts", nargs="+", choices=SWIFTS, default=list(SWIFTS))
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    parser.add_argument("--recipes", nargs="+", choices=known, default=known)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--super", default="mpnet-base")
    parser.add_argument("--super_lr", type=float, default=3e-5)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--out", type=Path, default=Path("runs/ablate"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--result", default="ablate", help="name of the results file")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.table:
        from ablate_table import write_table

        write_table(args.out, args.result)
        return
    swifts = [
        Job("swift", task, seed, swift, recipe)
        for seed in args.seeds
        for recipe in args.recipes
        for task in args.tasks
        for swift in args.swifts
        if recipe not in TRANSFER or SETUPS[task].copies
    ]
    todo: list[Job] = []
    for job in swifts:
        todo += [one for first in needs(job) for one in [*needs(first), first]] + [job]
    # The Supers first: much waits for them.
    todo = sorted(dict.fromkeys(todo), key=lambda job: job.kind not in ("super", "texts"))
    made = args.out / "made.json"
    if not made.exists():
        made.write_text(json.dumps(about(("torch", "lightning", "transformers")) | {"jobs": args.jobs}))
    done = run_all(todo, args)
    print("all is done" if done else "not all is done: run it again")


if __name__ == "__main__":
    main()
