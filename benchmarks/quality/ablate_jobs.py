"""One training of the ablation: a Super, a Swift, or text without labels, and the answers that it writes."""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from ablate_setups import RECIPES, SETUPS, SWIFTS, TRANSFER, Job, data_of, fold_jobs, needs_folds, transfer_file


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
    from elang.data.examples import fold_of

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
    """Fine-tune a Super and save it with its answers."""
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
    """Make text like a task's with the backbone before fine-tuning, which moves the embeddings."""
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
    """Train a Swift by a recipe and save its answers."""
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
        # Twice as many steps as the others.
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


def join_folds(job: Job, args: argparse.Namespace) -> None:
    """Join the folds' answers."""
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
