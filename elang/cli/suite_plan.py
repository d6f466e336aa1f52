"""A suite's file, and the steps that it asks for."""

from collections.abc import Iterator
from pathlib import Path
from reprlib import Repr
from typing import TYPE_CHECKING, Any

import yaml

from elang.cli.options import read_yaml
from elang.cli.suite_steps import STAGES, VERBS, Step
from elang.data.glue.table import TASKS, find_tasks
from elang.data.glue.task import Task
from elang.errors import InputError
from elang.tables import is_table

if TYPE_CHECKING:
    from elang.data.module import TextData

_MODULES = {"super": "FinetuneModule", "score": "ScoreModule", "swift": "SwiftModule", "joint": "JointModule"}
# Not all of it, for aliases make a few lines of YAML as long as one likes.
_SHORT = Repr()
_SHORT.maxlevel = 2
_KEYS = ("swift_model", "super_model", "all", *STAGES, "tasks")


def read_plan(path: str) -> dict[str, Any]:
    """Read a suite's file.

    Raises:
        InputError: If it cannot be read, has an unknown part, or a task that neither is known nor has data.
    """
    try:
        plan = read_yaml(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"The suite's file '{path}' cannot be read: {error}.") from error
    if not isinstance(plan, dict) or not {"swift_model", "super_model", "joint"} <= plan.keys():
        raise InputError(f"The suite's file '{path}' must have at least swift_model, super_model and joint.")
    _checked(plan, path, "", _KEYS)
    tasks = _checked(plan.get("tasks"), path, "tasks: ").items()
    plan["tasks"] = {str(name): _checked(own, path, f"{name}: ", ("all", *STAGES)) for name, own in tasks}
    for name, part in [("", plan), *plan["tasks"].items()]:
        if name.startswith(("glue/", "superglue/")):
            find_tasks(name)
        for stage in ("all", *STAGES):
            where = f"{name}: {stage}: " if name else f"{stage}: "
            for section, options in _checked(part.get(stage), path, where).items():
                if section in ("model", "data", "trainer"):
                    _checked(options, path, f"{where}{section}: ")
    for name in plan["tasks"]:
        data = _merged(plan, name, name, "joint").get("data", {})
        if name not in TASKS and not {"train", "validation", "test"} & data.keys():
            raise InputError(f"'{path}' has the task '{name}', but no data of its own for it. {_unknown(name)}")
    return plan


def _unknown(name: str) -> str:
    try:
        find_tasks(name)
    except InputError as error:
        return str(error)
    return f"'{name}' is a whole benchmark."


def _checked(part: Any, path: str, where: str, known: tuple[str, ...] = ()) -> dict[str, Any]:
    """A part of a suite's file that must be names with values, and only known names."""
    if part is not None and not isinstance(part, dict):
        said = part if isinstance(part, str) else _SHORT.repr(part)
        raise InputError(f"'{path}' has '{where}{said}', where names with their values are needed.")
    found: dict[str, Any] = part or {}
    if unknown := [key for key in found if known and key not in known]:
        raise InputError(f"'{path}' has the unknown part '{where}{unknown[0]}'; known are {', '.join(known)}.")
    return found


def chosen_tasks(wanted: str, plan: dict[str, Any]) -> list[str]:
    """The names of the tasks that were asked for; the file's own tasks are known, too."""
    own = [name for name in plan["tasks"] if name not in TASKS]
    asked = [name.strip() for name in wanted.split(",")]
    found = [[name] if name in own else [t.name for t in find_tasks(name, own)] for name in asked]
    names = [name for part in found for name in part]
    # Those whose models answer another come before it.
    makers = {name: TASKS[name].trained_on for name in names if name in TASKS}
    return list(dict.fromkeys(one for name in names for one in (makers.get(name), name) if one))


def task_steps(name: str, plan: dict[str, Any], folder: str | None, root: Path, seed: int) -> Iterator[Step]:
    """The steps of one task, in order; a stage that the file leaves out is a model to load."""
    task: Task | None = TASKS.get(name)
    of = task.trained_on if task and task.trained_on else name
    home, models = root / name, root / of
    fits = {stage: stage in plan or stage in plan["tasks"].get(of, {}) for stage in ("super", "swift")}
    ready = {role: str(plan[f"{role}_model"]).replace("{task}", of) for role in ("swift", "super")}
    used = {role: str(models / role) if fits[role] else ready[role] for role in ready}
    if of != name and is_table(used["super"]):
        # A model answers both halves of MNLI, but a table only its own.
        used["super"] = str(plan["super_model"]).replace("{task}", name)
    records = ready["super"] if is_table(ready["super"]) else str(models / "super.parquet")
    made = {"super": Path(used["super"]), "score": Path(records), "swift": Path(used["swift"]), "joint": home / "joint"}
    given: dict[str, dict[str, Any]] = {
        "super": {"model": ready["super"]},
        "score": {"model": used["super"]},
        "swift": {"model": ready["swift"], "super_records": records},
        "joint": {"swift_model": used["swift"], "super_model": used["super"]},
    }
    for stage in STAGES:
        if of != name and stage != "joint":
            continue
        needless = stage == "score" and (not fits["swift"] or records == ready["super"])
        if needless or (stage in fits and not fits[stage]):
            continue
        options = _merged(plan, name, of, stage)
        model = {**given[stage], **options.pop("model", {}), "output": str(made[stage])}
        # The hidden states it learns are not in the records.
        if stage == "swift" and model.get("hidden_weight"):
            model.setdefault("super_model", used["super"])
        if task is not None:
            only = {"splits": ["train"]} if stage == "score" else {}
            data = {"task": name, **({"folder": folder} if folder else {}), **only, **options.pop("data", {})}
            options["data"] = {"class_path": "TaskData", "init_args": data}
        else:
            data = options.pop("data", {})
            if stage == "score":
                # The Swift learns from answers to the training file, and the pair answers the rest itself.
                data = {key: value for key, value in data.items() if key not in ("validation", "test")}
            kind = "Seq2SeqData" if {"source", "target"} & data.keys() else "TextClassificationData"
            options["data"] = {"class_path": kind, "init_args": data}
        if VERBS[stage] == "fit":
            options["trainer"] = {"default_root_dir": str(home / f"{stage}-run"), **options.get("trainer", {})}
        config = {"seed_everything": seed, **options, "model": {"class_path": _MODULES[stage], "init_args": model}}
        done = made[stage] / {"joint": "summary.json"}.get(stage, "elang.json") if stage != "score" else made[stage]
        yield Step(name, stage, config, home / f"{stage}.yaml", done)


def _merged(plan: dict[str, Any], name: str, of: str, stage: str) -> dict[str, Any]:
    """A stage's options: for all stages and tasks, for the stage, for the task, for both; later ones win."""
    own = plan["tasks"]
    found: dict[str, Any] = {}
    for source in (plan, own.get(of, {}), own.get(name, {})):
        for part in ("all", stage):
            for section, values in (source.get(part) or {}).items():
                if isinstance(values, dict):
                    found[section] = {**found.get(section, {}), **values}
                elif values is not None:
                    found[section] = values
    return found


def write_configs(steps: list[Step], parse: bool = True) -> None:
    """Write every step's file and, unless that is left out, parse it and look for its data, before any is run.

    Raises:
        InputError: If one is wrong, or something is there that other options made or began.
    """
    from elang.cli.lightning import run

    for step in steps:
        text = yaml.safe_dump(step.config, sort_keys=False)
        there = [path for path in (step.made, step.runs) if path.exists()]
        if there and step.file.is_file() and step.file.read_text("utf-8") != text:
            what = step.made.parent if there[0] == step.made and step.stage != "score" else there[0]
            raise InputError(
                f"'{what}' was made with other options than those of now ('{step.file}'). Give another --output, or "
                "delete it."
            )
        step.file.parent.mkdir(parents=True, exist_ok=True)
        step.file.write_text(text, "utf-8")
        if parse:
            run(VERBS[step.stage], ["--config", str(step.file)], parse_only=True)
            _find_data(step)


def _find_data(step: Step) -> None:
    # Here, for they import Lightning.
    from elang.data.benchmarks import TaskData
    from elang.data.seq2seq import Seq2SeqData
    from elang.data.text_classification import TextClassificationData

    kinds = {kind.__name__: kind for kind in (TaskData, Seq2SeqData, TextClassificationData)}
    given = step.config["data"]
    kind = kinds.get(given["class_path"].rsplit(".", 1)[-1])
    if kind is None:
        return
    data: TextData = kind(**given["init_args"])
    try:
        data.check_files()
    except InputError as error:
        raise InputError(f"{step.task}: {error}") from error
