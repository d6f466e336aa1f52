"""Language models as pairs on six tasks: one Super a task, its answers kept, and several seeds of each Swift.

    python benchmarks/quality/language_models.py --data DATA --super MODEL --swifts small=FOLDER other=FOLDER
        [--tasks sst2 rte] [--larger other] [--seeds 0 1 2] [--lora sst2 banking77]
        [--supers-at-once 3] [--swifts-at-once 8] [--minutes 20] [--out runs/causal]
    python benchmarks/quality/language_models.py --out runs/causal --table

DATA holds glue/SST-2, glue/CoLA, glue/RTE, glue/MRPC and banking77 (the benchmarks' own files), and trec (train.csv and
validation.csv with the columns text and label). Models are folders of transformers. GLUE is answered in label words,
banking77, trec and `rte head` by a head on the last token, the tasks `... written` by generated texts, for the score
before generating. `--larger` names the Swifts that learn for fewer epochs at a lower rate, as models of half a billion
parameters need. `--lora` fits further Supers with adapters, to be compared with full training.
"""

import argparse
import json
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import yaml
from suite import areas_of, spread, spread_of

from elang.cli.suite_steps import Step, run_step
from elang.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import about, write_result


@dataclass(frozen=True)
class Setup:
    """A task's data, and how long the Super and the Swift learn it."""

    data: dict[str, Any]
    super: tuple[int, int, float] = (3, 32, 1e-5)
    swift: tuple[int, int, float] = (8, 32, 1e-4)
    routing: float = 0.1
    larger: tuple[int, int, float] = (4, 32, 2e-5)


def glue(name: str, folder: str, words: bool = True) -> dict[str, Any]:
    """A task of GLUE in label words, or by a head."""
    return {"class_path": "TaskData", "init_args": {"task": f"glue/{name}", "folder": folder, "label_words": words}}


def table(kind: str, folder: str, validation: str, **columns: Any) -> dict[str, Any]:
    """A task from two files."""
    files = {"train": f"{folder}/train.csv", "validation": f"{folder}/{validation}.csv"}
    return {"class_path": kind, "init_args": {**files, **columns}}


CLASS = {"text": "text", "label": "category"}
WRITTEN = {"source": "text", "prompt": "Question: {text}\nKind:", "qualities": ["exact_text"], "max_target_length": 16}
BANKING, TREC = ("banking77", "test"), ("trec", "validation")
# Epochs, batch size and peak learning rate.
SETUPS = {
    "sst2": Setup(glue("sst2", "glue/SST-2"), (1, 32, 1e-5), (3, 64, 1e-4), 0.05, larger=(1, 32, 2e-5)),
    "banking77": Setup(table("TextClassificationData", *BANKING, **CLASS), (3, 32, 2e-5), larger=(4, 32, 5e-5)),
    "cola": Setup(glue("cola", "glue/CoLA"), (3, 32, 1e-5), (10, 32, 1e-4)),
    "rte": Setup(glue("rte", "glue/RTE"), (4, 16, 1e-5), (10, 32, 1e-4)),
    "rte head": Setup(glue("rte", "glue/RTE", words=False), (4, 16, 1e-5), (10, 32, 1e-4)),
    "mrpc": Setup(glue("mrpc", "glue/MRPC"), (4, 32, 1e-5), (8, 32, 1e-4)),
    "trec": Setup(table("TextClassificationData", *TREC, text="text", label="label")),
    "banking77 written": Setup(table("Seq2SeqData", *BANKING, **WRITTEN, target="category"), swift=(6, 64, 2e-4)),
    "trec written": Setup(table("Seq2SeqData", *TREC, **WRITTEN, target="label"), swift=(6, 32, 1e-4)),
}
# GLUE's metric, and what must be reached (Super, Swift), in points.
BARS = {"sst2": (94.5, 91), "cola": (58, 47), "rte": (80, 70), "rte head": (80, 70)}
POINTS = ("held out, 1-SE", "held out, parity", "read here, parity", "read here, 99%")
BEFORE = "prompt_router"
LIBRARIES = ("torch", "lightning", "transformers")
# Adapters want a higher rate than full training.
LORA = {"lora_rank": 16, "lr": 2e-4}


class Runs:
    """The steps of all tasks, and where they are written."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.out: Path = args.out
        self.data, self.super_model = args.data, args.super
        self.swifts, self.larger = dict(part.split("=", 1) for part in args.swifts), args.larger

    def options(self, task: str, evaluated: int = 128) -> dict[str, Any]:
        """The data of a task."""
        setup = SETUPS[task]
        given = {k: self._found(v) for k, v in setup.data["init_args"].items()}
        shared = {"max_length": 256, "eval_batch_size": evaluated, "routing_fraction": setup.routing}
        return {**setup.data, "init_args": {**given, **shared}}

    def _found(self, value: Any) -> Any:
        return str(self.data / value) if isinstance(value, str) and (self.data / value).exists() else value

    def _fit(self, task: str, kind: str, home: Path, hyper: tuple[int, int, float], model: dict[str, Any]) -> Step:
        epochs, batch, lr = hyper
        data = self.options(task)
        data["init_args"]["batch_size"] = batch
        trainer = {"max_epochs": epochs, "precision": "bf16-mixed", "enable_checkpointing": False}
        options = {"lr": lr, "output": str(home), **model}
        stage = "swift" if kind == "SwiftModule" else "super"
        return step_of(task, stage, home, kind, options, data, trainer, home / "elang.json")

    def super_steps(self, task: str) -> list[Step]:
        """Fit the Super, and keep its answers to all splits."""
        home = self.home(task) / "super"
        fit = self._fit(task, "FinetuneModule", home, SETUPS[task].super, {"model": self.super_model})
        made = Path(f"{home}.parquet")
        options = {"model": str(home), "output": str(made), "dtype": "bfloat16"}
        return [fit, step_of(task, "score", home, "ScoreModule", options, self.options(task), {}, made)]

    def lora_steps(self, task: str) -> list[Step]:
        """Fit the Super with adapters, and put it beside the full one's answers."""
        home = self.home(task) / "super-lora"
        fit = self._fit(task, "FinetuneModule", home, SETUPS[task].super, {"model": self.super_model, **LORA})
        return [fit, self._joint(task, home, "bfloat16")]

    def swift_steps(self, task: str, swift: str, seed: int) -> list[Step]:
        """Fit a Swift on the Super's answers, and route by each of its scores."""
        home = self.home(task) / f"{swift}-{seed}"
        model = {"model": self.swifts[swift], "super_records": f"{self.home(task)}/super.parquet"}
        setup = SETUPS[task]
        fit = self._fit(task, "SwiftModule", home, setup.larger if swift in self.larger else setup.swift, model)
        steps = fit, self._joint(task, home, "float32")
        return [replace(step, config={**step.config, "seed_everything": seed}) for step in steps]

    def _joint(self, task: str, home: Path, dtype: str) -> Step:
        made = Path(f"{home}-joint/summary.json")
        options = {"swift_model": str(home), "super_model": f"{self.home(task)}/super.parquet", "dtype": dtype}
        options["output"] = str(made.parent)
        return step_of(task, "joint", home, "JointModule", options, self.options(task), {}, made)

    def home(self, task: str) -> Path:
        """The task's folder."""
        return self.out / task.replace(" ", "-")


def step_of(
    task: str, stage: str, home: Path, kind: str, model: dict[str, Any], data: Any, trainer: dict[str, Any], made: Path
) -> Step:
    """A step that prints little; its file and its log lie beside what it makes."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "devices": 1}
    module = {"class_path": kind, "init_args": model}
    config = {"seed_everything": 0, "trainer": quiet | trainer, "model": module, "data": data}
    return Step(task, stage, config=config, file=home.with_name(f"{home.name}-{stage}.yaml"), made=made)


class Devices:
    """The GPUs in turn, the one with the fewest jobs first."""

    def __init__(self) -> None:
        self._jobs = [0] * torch.cuda.device_count()
        self._lock = Lock()

    def run(self, steps: list[Step], until: float) -> bool:
        """Run the steps that are not done, before a time; whether all are done."""
        with self._lock:
            device = min(range(len(self._jobs)), key=self._jobs.__getitem__) if self._jobs else None
            if device is not None:
                self._jobs[device] += 1
        try:
            for step in steps:
                if not step.made.exists():
                    if time.monotonic() > until:
                        return False
                    step.file.parent.mkdir(parents=True, exist_ok=True)
                    step.file.write_text(yaml.safe_dump(step.config, sort_keys=False), "utf-8")
                    run_step(replace(step, device=None if device is None else str(device)))
            return True
        except InputError as error:
            # The others go on.
            print(error, flush=True)
            return False
        finally:
            if device is not None:
                with self._lock:
                    self._jobs[device] -= 1


def run_all(args: argparse.Namespace) -> None:
    """Supers side by side, each Swift as soon as its Super has answered; the first Swift's runs come first."""
    runs, devices, until = Runs(args), Devices(), time.monotonic() + 60 * args.minutes
    supers, swifts = ThreadPoolExecutor(args.supers_at_once), ThreadPoolExecutor(args.swifts_at_once)
    args.out.mkdir(parents=True, exist_ok=True)
    if not (made := args.out / "made.json").exists():
        made.write_text(json.dumps(about(LIBRARIES)), "utf-8")
    pending: dict[Future[bool], str] = {}
    for task in args.tasks:
        pending[supers.submit(devices.run, runs.super_steps(task), until)] = task
    while pending:
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            task = pending.pop(future)
            if not future.result() or not task:
                continue
            for swift in runs.swifts:
                for seed in args.seeds:
                    pending[swifts.submit(devices.run, runs.swift_steps(task, swift, seed), until)] = ""
            if task in args.lora:
                pending[supers.submit(devices.run, runs.lora_steps(task), until)] = ""
    for pool in (supers, swifts):
        pool.shutdown()


def figures_of(paths: list[Path]) -> dict[str, Any]:
    """Mean and deviation over a Swift's seeds; intervals of the difference to the Super, one a seed."""
    found = [json.loads(path.read_text("utf-8")) for path in paths]
    name, first = found[0]["score"], [next(iter(run["qualities"].values())) for run in found]
    figures: dict[str, Any] = {"metric": next(iter(found[0]["qualities"])), "examples": found[0]["num_examples"]}
    figures["score"] = name
    for model in ("swift", "super"):
        figures[model] = spread([run[model]["quality"] for run in first])
        figures[f"{model}_gflops"] = spread([run[model]["cost"] / 1e9 for run in first])
    for point in POINTS:
        at = [run["operating_points"][name][point] for run in found]
        figures[point] = {
            "quality": spread([p["quality"] for p in at]),
            "kept": spread([1 - p["deferred_share"] for p in at]),
            "speedup": spread([p["speedup"] for p in at]),
            "difference": [[p["to_super"][key] for key in ("difference", "low", "high")] for p in at],
        }
    figures["areas"] = spread_of([areas_of(path) for path in paths])
    return figures


def show(swift: str, found: dict[str, Any]) -> None:
    """A Swift's figures as lines."""

    def cell(value: dict[str, Any], scale: float = 100, digits: int = 1) -> str:
        return f"{scale * value['mean']:.{digits}f} ± {scale * value['deviation']:.{digits}f}"

    runs = len(found["swift"]["runs"])
    print(f"{swift}, {runs} seeds, {found['metric']}: {cell(found['swift'])}, Super {cell(found['super'])}")
    for point in POINTS:
        p = found[point]
        gaps = ", ".join(f"{100 * d:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]" for d, low, high in p["difference"])
        print(f"  {point:17} {cell(p['quality'])}, kept {cell(p['kept'], digits=0)}%, {cell(p['speedup'], 1)}x; {gaps}")
    areas = {name: area["mean"] for name, area in found["areas"].items() if area["mean"] == area["mean"]}
    best = sorted(areas.items(), key=lambda item: -item[1])
    print("  areas: " + ", ".join(f"{name} {area:.2f}" for name, area in best[:6]))
    if BEFORE in areas:
        after = max(area for name, area in areas.items() if name != BEFORE)
        print(
            f"  before generating: {BEFORE} {areas[BEFORE]:.2f}, {areas[BEFORE] / after:.2f} of the best score after it"
        )


def show_all(out: Path) -> None:
    """Print and write the figures of all finished runs."""
    found: dict[str, dict[str, Any]] = {}
    for task in SETUPS:
        paths: dict[str, list[Path]] = {}
        for path in sorted((out / task.replace(" ", "-")).glob("*-joint/summary.json")):
            paths.setdefault(path.parent.name.rsplit("-", 2)[0], []).append(path)
        if not paths:
            continue
        bars = f" (bars: Super {BARS[task][0]}, Swift {BARS[task][1]})" if task in BARS else ""
        print(f"\n# {task}{bars}")
        found[task] = {swift: figures_of(runs) for swift, runs in paths.items()}
        for swift, figures in found[task].items():
            show(swift, figures)
    made = json.loads((out / "made.json").read_text("utf-8"))
    setups = {
        name: {"super": s.super, "swift": s.swift, "larger": s.larger, "routing": s.routing}
        for name, s in SETUPS.items()
    }
    write_result("language_models", {"epochs, batch, rate": setups, "tasks": found}, LIBRARIES, made)


def main() -> None:
    """Run, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--super")
    parser.add_argument("--swifts", nargs="+", default=[], help="name=folder")
    parser.add_argument("--tasks", nargs="+", choices=SETUPS, default=list(SETUPS))
    parser.add_argument("--larger", nargs="*", default=[], help="names of Swifts")
    parser.add_argument("--lora", nargs="*", choices=SETUPS, default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--supers-at-once", type=int, default=3)
    parser.add_argument("--swifts-at-once", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--out", type=Path, default=Path("runs/causal"))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        run_all(args)
    show_all(args.out)


if __name__ == "__main__":
    main()
