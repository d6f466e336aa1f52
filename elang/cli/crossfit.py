"""Answers to a training file by Swifts that have not seen the example, for ``--model.out_of_fold``."""

import json
import os
from pathlib import Path
from typing import Any

from elang.cli.arguments import check_minimum, note_replaced
from elang.cli.suite_plan import write_configs
from elang.cli.suite_steps import Step, forget_stale, run_chains
from elang.errors import InputError, counted
from elang.files import write_atomically
from elang.locks import output_lock
from elang.records.merging import merge_provenance
from elang.records.table import EXAMPLES, check_output
from elang.terminal import say


def crossfit(fit: list[str], output: str = "out_of_fold.parquet", folds: int = 5, jobs: int | None = None) -> None:
    """Train a Swift without each part of the training file, and record its answers to that part.

    Args:
        fit: The options of `elang fit`.
        output: The parquet file to write. Finished steps are kept beside it and not run again.
        folds: Parts of the training file.
        jobs: Swifts that are trained at a time; by default as many as there are GPUs, each on its own.
    """
    import torch

    from elang.cli.lightning import run
    from elang.cli.options import texts_in

    check_minimum(2, folds=folds)
    check_minimum(1, jobs=jobs)
    config = run("fit", fit, parse_only=True)
    check_output(output, "--output", texts_in([config["data"], config["model"]]))
    note_replaced(output)
    if "fold" not in config["data"]["init_args"]:
        raise InputError(f"{config['data']['class_path'].rsplit('.', 1)[-1]} has no --data.fold, so it has no parts.")
    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(count)]
    root = Path(output).with_suffix("")
    chains = [
        _chain(config, fold=f"{k}/{folds}", home=root / f"fold-{k}", device=devices[k % count] if count > 1 else None)
        for k in range(folds)
    ]
    steps = [step for chain in chains for step in chain]
    with output_lock(root):
        write_configs(steps)
        forget_stale(steps)
        run_chains(chains, jobs or max(1, count))
        _join([chain[-1].made for chain in chains], output)


def _chain(config: dict[str, Any], fold: str, home: Path, device: str | None) -> list[Step]:
    """The two steps of one fold: train without it, and answer it."""
    from elang.cli.lightning import LINKED

    data = {**config["data"], "init_args": {**config["data"]["init_args"], "fold": fold}}
    options = {name: value for name, value in config["model"]["init_args"].items() if name not in LINKED}
    model = {**config["model"], "init_args": {**options, "output": str(home / "swift")}}
    trainer = {**config["trainer"], "default_root_dir": str(home / "swift-run"), "logger": False}
    if device is not None:
        trainer["devices"] = 1
    records, seed = home / "swift.parquet", {"seed_everything": config["seed_everything"]}
    hardware = {key: trainer[key] for key in ("accelerator", "precision") if trainer.get(key) is not None}
    scored = {"class_path": "ScoreModule", "init_args": {"model": str(home / "swift"), "output": str(records)}}
    fit = {**seed, "trainer": trainer, "model": model, "data": data}
    score = {**seed, "trainer": hardware, "model": scored, "data": data}
    return [
        Step(home.name, "swift", fit, file=home / "swift.yaml", made=home / "swift" / "elang.json", device=device),
        Step(home.name, "score", score, file=home / "score.yaml", made=records, device=device),
    ]


def _join(parts: list[Path], output: str) -> None:
    """Join the folds' records, ordered by id."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(part) for part in parts]
    metadata = [json.loads(table.schema.metadata[b"elang"]) for table in tables]
    joined_metadata = metadata[0] | {"model": "", "weights_sha256": "", "folds": len(parts)}
    joined_metadata["made"] = merge_provenance(metadata)
    # Those of each fold are drawn outside it.
    joined_metadata.pop(EXAMPLES, None)
    joined = pa.concat_tables(table.replace_schema_metadata(None) for table in tables).sort_by("id")
    with write_atomically(output) as aside:
        pq.write_table(joined.replace_schema_metadata({b"elang": json.dumps(joined_metadata).encode()}), aside)
    say(f"{output} has {counted(len(joined), 'answers')} out of fold")
