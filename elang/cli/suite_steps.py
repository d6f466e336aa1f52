"""Steps that are run once, each in a process of its own."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from elang.errors import InputError
from elang.notices import notice
from elang.terminal import ended_at_sigterm, say

STAGES = ("super", "score", "swift", "joint")
_READS = ("model", "super_records", "swift_model", "super_model")
VERBS = {"super": "fit", "score": "score", "swift": "fit", "joint": "validate"}
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
        return [VERBS[self.stage], "--config", str(self.file)]

    @property
    def runs(self) -> Path:
        """Where a training that is not finished keeps its checkpoints."""
        return self.file.with_name(f"{self.stage}-run")


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
            shutil.rmtree(step.made.parent) if VERBS[step.stage] == "fit" else step.made.unlink()
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
