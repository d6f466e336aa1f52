"""`elang suite`: a whole benchmark with one command, from training to one table of all tasks."""

from pathlib import Path
from typing import Any

from elang.cli.suite_plan import chosen_tasks, read_plan, task_steps, write_configs
from elang.cli.suite_steps import Step, forget_stale, run_chains
from elang.cli.suite_table import print_tables, read_row, write_tables
from elang.errors import InputError
from elang.evaluation.pair import BY_QUALITY
from elang.files import check_folder
from elang.locks import output_lock
from elang.method.scores import ASKED_SCORES, BEFORE_DECODER, SCORES, SEQUENCE_SCORES
from elang.notices import notice
from elang.records.manifest import known_name
from elang.terminal import say, say_wrapped


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

    Each step is an ordinary command with its own configuration file. It is not run again if its output exists.

    Args:
        tasks: glue, superglue, the name of a task (glue/rte), of a task of the file's own, or several with commas.
        config: The suite's YAML file: models, options of each stage, and what differs for single tasks.
        folder: The benchmark's own files; by default the data is the hub's.
        output: Folder for everything, one folder a task. Give it again to resume.
        seed: Of all training.
        points: Operating points to show, a table each; by default `held out, 1-SE` and `read here, 1-SE`.
        score: The score that routes, where a task's Swift has it; by default each Swift's own.
        jobs: Tasks that are fitted at a time, on one device; evaluations, which are timed, follow one by one.
        dry_run: Only check the configuration and the files of models and data, and print the commands.
    """
    known = [f"{where}, {name}" for where in ("held out", "read here") for name in BY_QUALITY]
    points = [points] if isinstance(points, str) else points
    if unknown := [point for point in points or () if point not in known]:
        raise InputError(f"There is no operating point '{unknown[0]}'; there are {', '.join(map(repr, known))}.")
    scores = (*SCORES, *SEQUENCE_SCORES, "router", *BEFORE_DECODER, *ASKED_SCORES)
    if score is not None and score not in scores:
        raise InputError(f"There is no score '{score}'; there are {', '.join(scores)}.")
    if config is None:
        if tasks.lower().endswith((".yaml", ".yml")):
            raise InputError(f"'{tasks}' is where the tasks stand. Give their names, then the file: --config {tasks}.")
        raise InputError("A suite needs its YAML file: set --config, as to one of configs/suite.")
    plan, root = read_plan(config), Path(output)
    chains = [list(task_steps(name, plan, folder, root=root, seed=seed)) for name in chosen_tasks(tasks, plan)]
    steps = [step for chain in chains for step in chain]
    check_folder(root, [config], ["suite.json", *(str(step.file.relative_to(root)) for step in steps)])
    with output_lock(root):
        write_configs(steps, hub=not dry_run)
        if dry_run:
            say(*(f"elang {' '.join(step.command)}" for step in steps))
            return
        rows = _run(chains, score, jobs)
        write_tables(root / "suite.json", rows)
    print_tables(rows, points or _usual_points(rows))
    say_wrapped(*(f"{row['task']}: caution: {caution}." for row in rows for caution in row["cautions"]))
    say(f"everything is in {root}/, the table in suite.json")


def _usual_points(rows: list[dict[str, Any]]) -> list[str]:
    """The points at the default threshold; evaluations of an earlier version have those of another one."""
    names = {name for row in rows for name in row["points"]}
    wheres = ("held out", "read here")
    return [f"{where}, {known_name([name.removeprefix(f'{where}, ') for name in names])}" for where in wheres]


def _run(chains: list[list[Step]], score: str | None, jobs: int) -> list[dict[str, Any]]:
    """Run the steps that are not done, and read the figures of each task."""
    forget_stale([step for chain in chains for step in chain])
    if jobs > 1:
        run_chains([[step for step in chain if step.stage != "joint"] for chain in chains], jobs)
    run_chains(chains)
    rows = [read_row(chain[-1].task, chain[-1].made, score) for chain in chains]
    for row in rows:
        if score not in (None, row["score"]):
            notice("another-score", f"{row['task']} has no score '{score}'; its row is by {row['score']}.")
    return rows
