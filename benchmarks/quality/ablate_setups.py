"""The ablation's tasks and Swifts, and what is trained on each."""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import ROOT

RECIPES = ROOT / "configs" / "recipes"
FOLDS = 3
# Recipes that train on text without labels.
TRANSFER = ("distil-transfer", "distil-hidden-transfer")


@dataclass(frozen=True)
class Setup:
    """A task: its files, its metric, and how long each model trains.

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


@cache
def needs_folds(recipe: str) -> bool:
    """Whether it reads answers of Swifts that have not seen the example."""
    return "OUT_OF_FOLD" in (RECIPES / f"{recipe}.yaml").read_text("utf-8")


def fold_jobs(job: Job) -> list[Job]:
    """The Swifts that answer out of fold, one set for each task, Swift and seed."""
    folds = [f"{k}/{FOLDS}" for k in range(FOLDS)]
    return [Job("fold", job.task, job.seed, job.swift, "plain", fold) for fold in folds]
