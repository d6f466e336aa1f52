"""The steps of a suite: each runs once, in a process of its own."""

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

VERBS = {"super": "fit", "score": "score", "swift": "fit", "joint": "validate"}
STAGES = tuple(VERBS)
# Options of a step that name what an earlier step made.
INPUTS = ("model", "super_records", "swift_model", "super_model")
# Seconds between two looks at processes that are to end, and until they are killed.
_POLL, _GRACE = 0.2, 30.0
_running: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class Step:
    """One command of a suite, with its configuration and file; ``made`` exists once it is done."""

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
        """Where an unfinished training keeps its checkpoints."""
        return self.file.with_name(f"{self.stage}-run")


def run_chains(chains: list[list[Step]], jobs: int = 1) -> None:
    """Run the steps that are not done, ``jobs`` chains at a time; after the first failure no step is started."""
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
            _end_processes(futures)
            raise


def _end_processes(futures: list[Future[None]]) -> None:
    """End the steps that run, also one that is just starting; trainings resume from their checkpoints later."""
    deadline, terminated = time.monotonic() + _GRACE, set()
    while not all(future.done() for future in futures):
        for process in list(_running):
            if time.monotonic() > deadline:
                process.kill()
            elif process not in terminated:
                # Only once: a second signal would interrupt a training while it writes its checkpoint.
                process.terminate()
                terminated.add(process)
        time.sleep(_POLL)


def forget_stale(steps: list[Step]) -> None:
    """Delete what was made from a model, or from answers, that will be made anew by an earlier one of the steps."""
    anew: set[str] = set()
    for step in steps:
        options = step.config["model"]["init_args"]
        stale = anew & {options.get(name) for name in INPUTS}
        if stale and step.made.exists():
            notice(
                "step-made-anew",
                f"{step.task}: what the stage '{step.stage}' made is deleted and made anew, because '{min(stale)}' is.",
            )
            # A model's folder is deleted as a whole.
            shutil.rmtree(step.made.parent) if VERBS[step.stage] == "fit" else step.made.unlink()
        if not step.made.exists():
            anew.add(options["output"])


def run_step(step: Step) -> None:
    """Run one step in a process of its own; a training resumes from its last checkpoint."""
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
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        _, is_error, reason = lines[-1].partition("elang: error: ") if lines else ("", "", "")
        reason = reason if is_error else f"{' | '.join(lines[-5:])}."
        raise InputError(
            f"{step.task} stopped at its stage '{step.stage}' (its log is '{log}'): {reason} Fix it and run the "
            "same again; what is done is kept."
        )
    # The model's folder has the same weights.
    shutil.rmtree(step.runs, ignore_errors=True)
