"""Cross-fitting: what Swifts that were trained without an example say of it.

A Swift comes to know its training file, so few of its examples look hard to it. Each part of the file is therefore
answered by a Swift that was trained on all the others; ``--model.out_of_fold`` reads the answers.
"""

import json
import os
from pathlib import Path
from typing import Any

from elang.cli.suite_plan import write_configs
from elang.cli.suite_steps import Step, forget_stale, run_chains
from elang.errors import InputError
from elang.files import written_aside
from elang.locks import lock_output, unlock_output
from elang.records.merging import joined_made
from elang.records.table import check_output
from elang.terminal import say


def crossfit(fit: list[str], output: str = "out_of_fold.parquet", folds: int = 5, jobs: int | None = None) -> None:
    """Train a Swift without each part of the training file, and keep what each says of the part that it lacks.

    Args:
        fit: The options of `elang fit`.
        output: The parquet file to write. What is done is kept beside it, and is not done again.
        folds: Parts of the training file.
        jobs: Swifts that are trained at a time; by default as many as there are GPUs, each on one of its own.

    Raises:
        InputError: If an option is wrong, or of the first step that fails.
    """
    import torch

    from elang.cli.lightning import run
    from elang.cli.options import texts_in

    if folds < 2:
        raise InputError(f"--folds must be at least 2, but it is {folds}.")
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs must be at least 1, but it is {jobs}.")
    config = run("fit", fit, parse_only=True)
    check_output(output, "--output", texts_in([config["data"], config["model"]]))
    if "fold" not in config["data"]["init_args"]:
        raise InputError(f"{config['data']['class_path'].rsplit('.', 1)[-1]} has no --data.fold, so it has no parts.")
    devices = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(i) for i in range(devices)]
    root = Path(output).with_suffix("")
    chains = [_chain(config, k, folds, root, names[k % devices] if devices > 1 else None) for k in range(folds)]
    steps = [step for chain in chains for step in chain]
    lock_output(root)
    try:
        write_configs(steps)
        forget_stale(steps)
        run_chains(chains, jobs or max(1, devices))
        _join([chain[-1].made for chain in chains], output)
    finally:
        unlock_output(root)


def _chain(config: dict[str, Any], k: int, folds: int, root: Path, device: str | None) -> list[Step]:
    """The two steps of one fold."""
    name, home = f"fold-{k}", root / f"fold-{k}"
    data = {**config["data"], "init_args": {**config["data"]["init_args"], "fold": f"{k}/{folds}"}}
    model = {**config["model"], "init_args": {**config["model"]["init_args"], "output": str(home / "swift")}}
    # The command line takes these from the data.
    for linked in ("label_names", "task"):
        model["init_args"].pop(linked, None)
    trainer = {**config["trainer"], "default_root_dir": str(home / "swift-run"), "logger": False}
    if device is not None:
        trainer["devices"] = 1
    records, seed = home / "swift.parquet", {"seed_everything": config["seed_everything"]}
    hardware = {key: trainer[key] for key in ("accelerator", "precision") if trainer.get(key) is not None}
    scored = {"class_path": "ScoreModule", "init_args": {"model": str(home / "swift"), "output": str(records)}}
    fit = {**seed, "trainer": trainer, "model": model, "data": data}
    score = {**seed, "trainer": hardware, "model": scored, "data": data}
    return [
        Step(name, "swift", fit, home / "swift.yaml", home / "swift" / "elang.json", device),
        Step(name, "score", score, home / "score.yaml", records, device),
    ]


def _join(parts: list[Path], output: str) -> None:
    """Put the folds' records together, by id."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(part) for part in parts]
    abouts = [json.loads(table.schema.metadata[b"elang"]) for table in tables]
    about = abouts[0] | {"model": "", "weights_sha256": "", "folds": len(parts), "made": joined_made(abouts)}
    joined = pa.concat_tables(table.replace_schema_metadata(None) for table in tables).sort_by("id")
    with written_aside(output) as aside:
        pq.write_table(joined.replace_schema_metadata({b"elang": json.dumps(about).encode()}), aside)
    say(f"{len(joined)} answers out of fold are in {output}")
