"""A whole benchmark with one command: every task's pair is fitted or loaded, evaluated, and set into one table.

Each step is an ordinary command with a configuration file of its own, left beside what it made, and runs in a process
of its own. A step whose output is there is not run again, so a suite goes on where it was stopped.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from threading import Event
from typing import TYPE_CHECKING, Any

import yaml

from elang.columns import is_table
from elang.data.tasks import TASKS, Task, find_tasks
from elang.errors import InputError
from elang.evaluate import FRACTIONS
from elang.locks import lock_output, unlock_output
from elang.notices import notice
from elang.options import read_yaml
from elang.outputs import check_folder, ended_at_sigterm, say
from elang.scores import BEFORE_DECODER, SCORES
from elang.sequence_scores import SEQUENCE_SCORES
from elang.suite_table import print_tables, read_row, write_tables

if TYPE_CHECKING:
    from elang.data.module import TextData

STAGES = ("super", "score", "swift", "joint")
_READS = ("model", "super_records", "swift_model", "super_model")
_VERBS = {"super": "fit", "score": "score", "swift": "fit", "joint": "validate"}
_MODULES = {"super": "FinetuneModule", "score": "ScoreModule", "swift": "SwiftModule", "joint": "JointModule"}
# Not all of it, for aliases make a few lines of YAML as long as one likes.
_SHORT = Repr()
_SHORT.maxlevel = 2
_KEYS = ("swift_model", "super_model", "all", *STAGES, "tasks")


# Seconds between looks at steps that are to end, and in which they have to.
_GLANCE, _PATIENCE = 0.2, 30.0
_running: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class Step:
    """One command of a suite.

    Attributes:
        task: Its task's name.
        stage: One of :data:`STAGES`.
        config: What its configuration file says.
        file: That file.
        made: What is there once it is done.
        device: The GPU that it is to use, where not any.
    """

    task: str
    stage: str
    config: dict[str, Any]
    file: Path
    made: Path
    device: str | None = None

    @property
    def command(self) -> list[str]:
        """Its arguments for `elang`."""
        return [_VERBS[self.stage], "--config", str(self.file)]

    @property
    def runs(self) -> Path:
        """Where a training that is not finished keeps its checkpoints."""
        return self.file.with_name(f"{self.stage}-run")


def suite(
    tasks: str,
    config: str | None = None,
    folder: str | None = None,
    output: str = "runs/suite",
    seed: int = 0,
    points: list[str] | str | None = None,
    score: str | None = None,
    jobs: int = 1,
    dry_run: bool = False,
) -> None:
    """Fit or load and evaluate the pairs of a benchmark's tasks, and print one table in the shape of the paper's.

    Args:
        tasks: glue, superglue, the name of a task (glue/rte), of a task of the file's own, or several with commas.
        config: The suite's YAML file: models, options of each stage, and what differs for single tasks.
        folder: The benchmark's own files; by default the data is the hub's.
        output: Folder for everything, one folder a task. Give it again to go on after a stop.
        seed: Of all training.
        points: The operating point to show, or a list of them, a table each; by default `held out, parity` and
            `read here, parity`.
        score: The score that routes, where a task's Swift has it; by default each Swift's own.
        jobs: Tasks that are fitted at a time, on one device; evaluations, which are timed, follow one by one.
        dry_run: Only check the configuration and the data's files, and print the commands.

    Raises:
        InputError: If an option, the file or the data's files are wrong, or of the first step that fails.
    """
    known = [f"{where}, {name}" for where in ("held out", "read here") for name in FRACTIONS]
    points = [points] if isinstance(points, str) else points or ["held out, parity", "read here, parity"]
    if unknown := [point for point in points if point not in known]:
        raise InputError(f"There is no operating point '{unknown[0]}'; there are {', '.join(map(repr, known))}.")
    scores = (*SCORES, *SEQUENCE_SCORES, "router", *BEFORE_DECODER)
    if score is not None and score not in scores:
        raise InputError(f"There is no score '{score}'; there are {', '.join(scores)}.")
    if config is None:
        raise InputError("A suite needs its YAML file: set --config, as to one of configs/suite.")
    plan = read_plan(config)
    root = Path(output)
    names = chosen_tasks(tasks, plan)
    chains = [list(task_steps(name, plan, folder, root, seed)) for name in names]
    written = [str(step.file.relative_to(root)) for chain in chains for step in chain]
    check_folder(root, [config], ["suite.json", *written])
    lock_output(root)
    try:
        _run_suite(chains, names, root, points, score, jobs, dry_run)
    finally:
        unlock_output(root)


def _run_suite(
    chains: list[list[Step]],
    names: list[str],
    root: Path,
    points: list[str],
    score: str | None,
    jobs: int,
    dry_run: bool,
) -> None:
    """Run what is not done, and set it into a table."""
    write_configs([step for chain in chains for step in chain])
    if dry_run:
        for step in (step for chain in chains for step in chain):
            say("elang " + " ".join(step.command))
        return
    forget_stale([step for chain in chains for step in chain])
    if jobs > 1:
        run_chains([[step for step in chain if step.stage != "joint"] for chain in chains], jobs)
    run_chains(chains)
    rows = [read_row(name, root / name / "joint" / "summary.json", score) for name in names]
    for row in rows:
        if score not in (None, row["score"]):
            notice("another-score", f"{row['task']} has no score '{score}'; its row is by {row['score']}.")
    write_tables(root / "suite.json", rows)
    print_tables(rows, points)
    for row in rows:
        for said in row["cautions"]:
            say(f"{row['task']}: caution: {said}.")
    say(f"everything is in {root}/, the table in suite.json")


def run_chains(chains: list[list[Step]], jobs: int = 1) -> None:
    """Run the steps that are not done, each chain in its order, so many chains at a time.

    Raises:
        InputError: Of the first step that fails; no further one is begun.
    """
    failed = Event()

    def work(chain: list[Step]) -> None:
        try:
            for step in chain:
                if not step.made.exists() and not failed.is_set():
                    run_step(step)
        except BaseException:
            failed.set()
            raise

    with ended_at_sigterm(), ThreadPoolExecutor(max(1, jobs)) as pool:
        futures: list[Future[None]] = []
        try:
            futures += [pool.submit(work, chain) for chain in chains]
            for future in as_completed(futures):
                future.result()
        except (KeyboardInterrupt, SystemExit):
            failed.set()
            _end_steps(futures)
            raise


def _end_steps(futures: list[Future[None]]) -> None:
    """End the steps that run, also one that is just beginning; their trainings go on from their checkpoints."""
    end, told = time.monotonic() + _PATIENCE, set()
    while not all(future.done() for future in futures):
        for process in list(_running):
            if time.monotonic() > end:
                process.kill()
            elif process not in told:
                # Once, for a training ends by itself then, and a second time would cut off what it writes.
                process.terminate()
                told.add(process)
        time.sleep(_GLANCE)


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
        if _VERBS[stage] == "fit":
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
    from elang.lightning_cli import run

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
            run(_VERBS[step.stage], ["--config", str(step.file)], parse_only=True)
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


def forget_stale(steps: list[Step]) -> None:
    """Unmark what was made from a model, or from answers, that will be made anew.

    Args:
        steps: All of them, those that make something before those that read it.
    """
    anew: set[str] = set()
    for step in steps:
        options = step.config["model"]["init_args"]
        stale = anew & {options.get(name) for name in _READS}
        if stale and step.made.exists():
            notice(
                "step-made-anew",
                f"{step.task}: what the stage '{step.stage}' made is deleted and made anew, because '{min(stale)}' is.",
            )
            # A model's folder is left whole or not at all.
            shutil.rmtree(step.made.parent) if _VERBS[step.stage] == "fit" else step.made.unlink()
        if not step.made.exists():
            anew.add(options["output"])


def run_step(step: Step) -> None:
    """Run one step in a process of its own; training goes on from its last checkpoint.

    Raises:
        InputError: If it fails, with the end of its log.
    """
    command = [sys.executable, "-m", "elang", *step.command]
    if checkpoints := sorted(step.runs.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime):
        command += ["--ckpt_path", str(checkpoints[-1])]
    log = step.file.with_suffix(".log")
    say(f"{step.task}: elang {' '.join(step.command)}")
    start = time.perf_counter()
    with log.open("a", encoding="utf-8") as file:
        env = None if step.device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": step.device}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
        _running.add(process)
        try:
            code = process.wait()
        finally:
            _running.discard(process)
    say(f"{step.task}: {step.stage} took {time.perf_counter() - start:.0f} s")
    if code:
        said = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()][-5:]
        raise InputError(
            f"{step.task} stopped at its stage '{step.stage}' (its log is '{log}'): " + " | ".join(said) + ". Mend it "
            "and run the same again; what is done is kept."
        )
    # The model's folder has the same weights.
    shutil.rmtree(step.runs, ignore_errors=True)
