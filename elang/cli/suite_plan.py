"""A suite's file, and the steps that it asks for."""

import errno
from collections.abc import Iterator
from pathlib import Path
from reprlib import Repr
from typing import TYPE_CHECKING, Any

import yaml

from elang.cli.options import read_yaml
from elang.cli.suite_steps import INPUTS, STAGES, VERBS, Step
from elang.data.glue.table import TASKS, find_tasks
from elang.errors import InputError
from elang.tables import is_table

if TYPE_CHECKING:
    from elang.data.module import TextData

_MODULES = {"super": "FinetuneModule", "score": "ScoreModule", "swift": "SwiftModule", "joint": "JointModule"}
_KEYS = ("swift_model", "super_model", "all", *STAGES, "tasks")
# Shortens values in messages: with aliases, a few lines of YAML can be arbitrarily long.
_SHORT = Repr()
_SHORT.maxlevel = 2


def read_plan(path: str) -> dict[str, Any]:
    """Read a suite's file; each of its parts must be known, and each task known or with data of its own."""
    try:
        plan = read_yaml(path)
    except OSError as error:
        if error.errno == errno.ENOENT:
            copy = "Correct its path, or copy configs/suite/own-task.yaml and set its models and data."
            raise InputError(f"There is no suite's file '{path}' (--config). {copy}") from error
        folder = "it is a folder; give one of the files in it" if Path(path).is_dir() else error.strerror
        raise InputError(f"The suite's file '{path}' (--config) cannot be read: {folder}.") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"The suite's file '{path}' cannot be read: {error}.") from error
    if not isinstance(plan, dict) or not {"swift_model", "super_model", "joint"} <= plan.keys():
        raise InputError(f"The suite's file '{path}' must have at least swift_model, super_model and joint.")
    _checked(plan, path, "", known=_KEYS)
    tasks = _checked(plan.get("tasks"), path, "tasks: ").items()
    plan["tasks"] = {str(name): _checked(part, path, f"{name}: ", known=("all", *STAGES)) for name, part in tasks}
    for name, part in [("", plan), *plan["tasks"].items()]:
        if name.startswith(("glue/", "superglue/")):
            find_tasks(name)
        for stage in ("all", *STAGES):
            where = f"{name}: {stage}: " if name else f"{stage}: "
            for section, options in _checked(part.get(stage), path, where).items():
                if section in ("model", "data", "trainer"):
                    _checked(options, path, f"{where}{section}: ")
    for name in plan["tasks"]:
        data = _merged(plan, name, "joint").get("data", {})
        if name not in TASKS and not {"train", "validation", "test"} & data.keys():
            message = f"'{name}' is a whole benchmark."
            try:
                find_tasks(name)
            except InputError as error:
                message = str(error)
            raise InputError(f"'{path}' has the task '{name}', but no data of its own for it. {message}")
    return plan


def _checked(part: Any, path: str, where: str, known: tuple[str, ...] = ()) -> dict[str, Any]:
    """Refuse a part of a suite's file that is not a mapping, or has a key that is not known."""
    if part is not None and not isinstance(part, dict):
        value = part if isinstance(part, str) else _SHORT.repr(part)
        raise InputError(f"'{path}' has '{where}{value}', where names with their values are needed.")
    checked: dict[str, Any] = part or {}
    if unknown := [key for key in checked if known and key not in known]:
        raise InputError(f"'{path}' has the unknown part '{where}{unknown[0]}'; known are {', '.join(known)}.")
    return checked


def chosen_tasks(names: str, plan: dict[str, Any]) -> list[str]:
    """The tasks that are named, separated by commas: benchmarks, their tasks, and the file's own tasks."""
    own_tasks = [name for name in plan["tasks"] if name not in TASKS]
    tasks: dict[str, None] = {}
    for name in (name.strip() for name in names.split(",")):
        for task in [name] if name in own_tasks else [task.name for task in find_tasks(name, own_tasks)]:
            # The task whose models answer another one comes before it.
            if task in TASKS and (trained_on := TASKS[task].trained_on):
                tasks[trained_on] = None
            tasks[task] = None
    return list(tasks)


def task_steps(name: str, plan: dict[str, Any], folder: str | None, *, root: Path, seed: int) -> Iterator[Step]:
    """The steps of one task, in order; the model of a stage that the file leaves out is loaded instead."""
    task = TASKS.get(name)
    trained_on = task.trained_on if task and task.trained_on else name
    home, models = root / name, root / trained_on
    fits = {stage: stage in plan or stage in plan["tasks"].get(trained_on, {}) for stage in ("super", "swift")}
    loaded = {role: str(plan[f"{role}_model"]).replace("{task}", trained_on) for role in ("swift", "super")}
    used = {role: str(models / role) if fits[role] else loaded[role] for role in loaded}
    if trained_on != name and is_table(used["super"]):
        # One model answers both halves of MNLI, but a table only one of them.
        used["super"] = str(plan["super_model"]).replace("{task}", name)
    records = loaded["super"] if is_table(loaded["super"]) else str(models / "super.parquet")
    stages = {
        "super": ({"model": loaded["super"]}, used["super"]),
        "score": ({"model": used["super"]}, records),
        "swift": ({"model": loaded["swift"], "super_records": records}, used["swift"]),
        "joint": ({"swift_model": used["swift"], "super_model": used["super"]}, str(home / "joint")),
    }
    needed = {**fits, "score": fits["swift"] and records != loaded["super"], "joint": True}
    for stage, (inputs, output) in stages.items():
        if not needed[stage] or (trained_on != name and stage != "joint"):
            continue
        options = _merged(plan, name, stage, trained_on=trained_on)
        model = {**inputs, **options.pop("model", {}), "output": output}
        if stage == "swift" and model.get("hidden_weight"):
            # The records do not have the hidden states that it learns.
            model.setdefault("super_model", used["super"])
        options["data"] = _data(name, stage, options.pop("data", {}), folder=folder)
        if VERBS[stage] == "fit":
            options["trainer"] = {"default_root_dir": str(home / f"{stage}-run"), **options.get("trainer", {})}
        config = {"seed_everything": seed, **options, "model": {"class_path": _MODULES[stage], "init_args": model}}
        made = {"score": "", "joint": "summary.json"}.get(stage, "elang.json")
        yield Step(name, stage, config=config, file=home / f"{stage}.yaml", made=Path(output) / made)


def _data(name: str, stage: str, options: dict[str, Any], folder: str | None) -> dict[str, Any]:
    """The data module of a step, with the options of the suite's file."""
    # The Swift learns from answers to the training file; the pair answers the other files itself.
    if name in TASKS:
        splits = {"splits": ["train"]} if stage == "score" else {}
        options = {"task": name, **({"folder": folder} if folder else {}), **splits, **options}
        return {"class_path": "TaskData", "init_args": options}
    if stage == "score":
        options = {key: value for key, value in options.items() if key not in ("validation", "test")}
    kind = "Seq2SeqData" if {"source", "target"} & options.keys() else "TextClassificationData"
    return {"class_path": kind, "init_args": options}


def _merged(plan: dict[str, Any], name: str, stage: str, trained_on: str = "") -> dict[str, Any]:
    """A stage's options: for all stages and tasks, for the stage, for the task, for both; later ones win."""
    tasks = plan["tasks"]
    merged: dict[str, Any] = {}
    for source in (plan, tasks.get(trained_on, {}), tasks.get(name, {})):
        for part in ("all", stage):
            for section, values in (source.get(part) or {}).items():
                if isinstance(values, dict):
                    merged[section] = {**merged.get(section, {}), **values}
                elif values is not None:
                    merged[section] = values
    return merged


def write_configs(steps: list[Step], parse: bool = True, hub: bool = True) -> None:
    """Write every step's file and, by default, check it, its models and its data, before any step runs.

    Without ``hub`` only local models are looked for.
    """
    from elang.cli.lightning import run

    # What the steps make, or what is known to be there.
    found = {step.config["model"]["init_args"]["output"] for step in steps}
    for step in steps:
        text = yaml.safe_dump(step.config, sort_keys=False)
        existing = [path for path in (step.made, step.runs) if path.exists()]
        if existing and step.file.is_file() and step.file.read_text("utf-8") != text:
            path = step.made.parent if existing[0] == step.made and step.stage != "score" else existing[0]
            raise InputError(
                f"'{path}' was made with other options than those of now ('{step.file}'). Give another --output, or "
                "delete it."
            )
        step.file.parent.mkdir(parents=True, exist_ok=True)
        step.file.write_text(text, "utf-8")
        if parse:
            run(VERBS[step.stage], ["--config", str(step.file)], parse_only=True)
            try:
                if not step.made.exists():
                    _check_models(step, found, hub)
                _check_data(step)
            except InputError as error:
                raise InputError(f"{step.task}: {error}") from error


def _check_models(step: Step, found: set[str], hub: bool) -> None:
    """Refuse models and records that are not there; those that are ``found`` need no look."""
    # Imported here, because it imports torch.
    from elang.backends.loading.load import check_model

    options = step.config["model"]["init_args"]
    for name in (*INPUTS, "out_of_fold"):
        path = options.get(name)
        if not isinstance(path, str) or path in found or "://" in path or ("@" in path and not hub):
            continue
        if is_table(path):
            if not Path(path).is_file():
                raise InputError(f"There is no file '{path}' ({step.stage}: model: {name}). Correct its path.")
        else:
            check_model(path)
        found.add(path)


def _check_data(step: Step) -> None:
    # Imported here, because they import Lightning.
    from elang.data.benchmarks import TaskData
    from elang.data.seq2seq import Seq2SeqData
    from elang.data.text_classification import TextClassificationData

    name = step.config["data"]["class_path"].rsplit(".", 1)[-1]
    for cls in (TaskData, Seq2SeqData, TextClassificationData):
        if cls.__name__ == name:
            data: TextData = cls(**step.config["data"]["init_args"])
            data.check_files()
