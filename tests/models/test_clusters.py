"""Many processes, started in every way there is: the weights and answers of one."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import QUIET
from safetensors.torch import load_file

from elang.cli.verbs import main
from elang.models.answering import EvaluationModule
from elang.records.reading import read_metadata
from elang.records.table import Records, write_records

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def run(*command, environment=None):
    """A command that must succeed; what it said."""
    given = {**ENVIRONMENT, **(environment or {})}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=given, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def elang(*args, launcher=(), environment=None):
    return run(sys.executable, *launcher, "-m", "elang", *args, environment=environment)


def spread(strategy, processes):
    return ["--trainer.strategy", strategy, "--trainer.devices", processes]


def largest_difference(one, other):
    one, other = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def without_dropout(base_model, tmp_path_factory):
    """For the processes draw numbers of their own."""
    folder = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(base_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def fit_args(without_dropout, pair, files):
    """16 batches of training, so that 2 and 4 processes take no batch twice."""
    return [
        *("fit", "--model", "SwiftModule", "--model.model", without_dropout, "--model.super_records", pair["records"]),
        *("--model.margin_weight", "0.1", "--model.lr", "1e-3", "--trainer.max_epochs", "2"),
        *("--data.train", files[0], "--data.validation", files[1], "--data.routing_fraction", "0"),
        *("--data.batch_size", "15", *QUIET),
    ]


@pytest.fixture
def score_args(pair, data_args):
    """What gave the pair's records, in one process."""
    return ["score", "--model.model", str(pair["super"]), *data_args, *QUIET]


@pytest.fixture(scope="module")
def alone(fit_args, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "model"
    elang(*fit_args, "--model.output", folder, "--trainer.accumulate_grad_batches", 2, "--trainer.logger", "false")
    return folder


@pytest.mark.parametrize(
    ("strategy", "options"), [("ddp", []), ("sharded", ["--model.gradient_checkpointing", "true"])]
)
def test_training_in_step_is_accumulation(fit_args, alone, strategy, options, tmp_path):
    args = [*fit_args, "--model.output", tmp_path / "model", "--trainer.default_root_dir", tmp_path, *options]
    elang(*args, *spread(strategy, 2))
    assert largest_difference(alone, tmp_path / "model") < 1e-5


def test_a_sharded_swift_has_thresholds(base_model, pair, data_args, tmp_path):
    """Its router is fitted on the held-out slice by all processes, as in DDP, and a run goes on from a checkpoint."""
    args = ["fit", "--model", "SwiftModule", "--model.model", base_model, "--model.super_records", pair["records"]]
    args += [*data_args, *QUIET, *spread("sharded", 2), "--trainer.default_root_dir", tmp_path]
    elang(*args, "--model.output", tmp_path / "one", "--trainer.max_epochs", 1)
    thresholds = json.loads((tmp_path / "one" / "elang.json").read_text())["thresholds"]
    assert thresholds["free_energy"]["parity"]["num_examples"] > 30
    assert thresholds["router"]["parity"]["num_examples"] > 30
    assert load_file(tmp_path / "one" / "router.safetensors")["router.fitted"]
    (kept,) = (tmp_path / "checkpoints").glob("*.ckpt")
    elang(*args, "--model.output", tmp_path / "two", "--trainer.max_epochs", 2, "--ckpt_path", kept)
    assert largest_difference(tmp_path / "one", tmp_path / "two") > 0


def test_a_checkpoint_in_parts(base_model, pair, data_args, joint_args, tmp_path, fails):
    """It is gone on from where that is asked for, for it holds pickles, and ends as one in a single file does."""
    strategy = {"class_path": "elang.ShardedStrategy", "init_args": {"save_distributed_checkpoint": True}}
    args = ["fit", "--model.model", base_model, *data_args, *QUIET, "--trainer.devices", "2"]
    parts = ["--trainer.strategy", json.dumps(strategy)]
    first = ["--trainer.max_epochs", 1, "--trainer.default_root_dir", tmp_path / "runs"]
    elang(*args, *parts, *first, "--model.output", tmp_path / "one")
    (kept,) = (tmp_path / "runs" / "checkpoints").glob("*.ckpt")
    assert (kept / ".metadata").is_file()
    again = ["--trainer.max_epochs", 2, "--trainer.enable_checkpointing", "false", "--ckpt_path", kept]
    elang(*args, *parts, *again, "--model.output", tmp_path / "two")
    assert largest_difference(tmp_path / "one", tmp_path / "two") > 0
    alone = [*map(str, args[:-1]), "1", "--trainer.strategy", "sharded", *map(str, again)]
    fails([*alone, "--model.output", str(tmp_path / "three")], kept, "holds pickles", "save_distributed_checkpoint")
    joint = [str(kept) if arg == str(pair["super"]) else arg for arg in joint_args]
    fails(["validate", *joint, "--model.output", str(tmp_path / "joint")], kept, "checkpoint in parts", "--ckpt_path")


@pytest.mark.parametrize(("processes", "dtype"), [(3, "float32"), (2, "bfloat16")])
def test_a_sharded_super_answers_alike(pair, score_args, tmp_path, processes, dtype):
    """In bfloat16 the head stays in float32, so parts are of two kinds."""
    args, alone = [*score_args, "--model.dtype", dtype], pair["records"]
    if dtype != "float32":
        alone = tmp_path / "one.parquet"
        elang(*args, "--model.output", alone)
    elang(*args, "--model.output", tmp_path / "more.parquet", *spread("sharded", processes))
    one, more = pd.read_parquet(alone), pd.read_parquet(tmp_path / "more.parquet")
    assert len(one) == 240 + 61
    logits = [torch.tensor(np.stack(frame.pop("logits"))) for frame in (one, more)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)
    pd.testing.assert_frame_equal(one, more, check_exact=True)


def test_a_pair_with_a_sharded_super(joint_args, tmp_path):
    for name, options in (("one", []), ("more", spread("sharded", 2))):
        elang("validate", *joint_args, "--model.output", tmp_path / name, *options)
    a, b = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "more"))
    assert a["qualities"]["accuracy"]["swift"] == b["qualities"]["accuracy"]["swift"]
    assert a["qualities"]["accuracy"]["super"] == b["qualities"]["accuracy"]["super"]
    assert a["operating_points"].keys() == b["operating_points"].keys()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_torchrun_starts_the_processes(pair, score_args, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    said = elang(*score_args, "--model.output", tmp_path / "two.parquet", *spread("ddp", 2), launcher=launcher)
    assert "MEMBER: 2/2" in said
    one, two = pd.read_parquet(pair["records"]), pd.read_parquet(tmp_path / "two.parquet")
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_srun_starts_the_processes(pair, score_args, tmp_path):
    """Two hosts of one task each, as their scheduler describes them."""
    args = [*score_args, "--trainer.num_nodes", "2", *spread("ddp", 1)]
    common = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "score", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}
    common |= {"SLURM_NNODES": "2", "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(free_port()), "SLURM_LOCALID": "0"}
    command = [sys.executable, "-m", "elang", *map(str, args), "--model.output", str(tmp_path / "two.parquet")]
    started = []
    for rank in ("0", "1"):
        environment = ENVIRONMENT | common | {"SLURM_PROCID": rank, "SLURM_NODEID": rank}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]
        assert "MEMBER:" in said
    one, two = pd.read_parquet(pair["records"]), pd.read_parquet(tmp_path / "two.parquet")
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_other_ways_to_spread_are_refused(pair, data_args, fails):
    strategy = json.dumps({"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"})
    args = ["score", "--model.model", str(pair["super"]), *data_args, *QUIET, "--trainer.strategy", strategy]
    fails([*args, "--trainer.devices", "1"], "ModelParallelStrategy", "sharded")


def test_parts_make_the_whole(pair, score_args, tmp_path, capsys, caplog):
    """An array's jobs, in any order, and one run that asks for the parts that are left."""
    assert main([*score_args, "--model.output", str(tmp_path / "parts.parquet"), "--model.parts", "5"]) == 0
    assert not (tmp_path / "parts.parquet.parts").exists()
    for part in (3, 0):
        args = [*score_args, "--model.output", str(tmp_path / "array.parquet"), "--model.parts", "5"]
        assert main([*args, "--model.part", str(part)]) == 0
    folder = tmp_path / "array.parquet.parts"
    assert [path.name for path in sorted(folder.iterdir())] == ["0-of-5.parquet", "3-of-5.parquet"]
    assert main(["merge", str(folder), "--output", str(tmp_path / "early.parquet")]) == 2
    assert "Of 5 parts 3 are missing, the first one is 1" in capsys.readouterr().err
    done = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for part in (1, 2, 4, 3):
        assert main([*args, "--model.part", str(part)]) == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    files = sorted(folder.iterdir(), reverse=True)
    assert main(["merge", *map(str, files), "--output", str(tmp_path / "merged.parquet")]) == 0
    assert main(args) == 0
    assert "5 of 5 parts are in" in caplog.text
    assert not folder.exists()
    one = pd.read_parquet(pair["records"])
    assert len(one) == 240 + 61
    for name in ("parts", "merged", "array"):
        found = pd.read_parquet(tmp_path / f"{name}.parquet")
        for frame in (found, one):
            # A batch's other texts move the last bits.
            assert np.stack(frame["logits"]).shape == (301, 2)
        np.testing.assert_allclose(np.stack(found["logits"]), np.stack(one["logits"]), atol=1e-5)
        columns = [column for column in one.columns if column != "logits"]
        pd.testing.assert_frame_equal(found[columns], one[columns], check_exact=True)
        assert read_metadata(tmp_path / f"{name}.parquet") == read_metadata(pair["records"])


def test_parts_on_two_processes(score_args, tmp_path):
    """One part is smaller than two batches, so a process has nothing in it."""
    elang(*score_args, "--model.output", tmp_path / "one.parquet", "--model.parts", 8)
    elang(*score_args, "--model.output", tmp_path / "two.parquet", "--model.parts", 8, *spread("ddp", 2))
    one, two = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_parts_that_do_not_fit(score_args, pair, tmp_path, fails):
    output = ["--model.output", str(tmp_path / "r.parquet")]
    assert main([*score_args, *output, "--model.parts", "3", "--model.part", "1"]) == 0
    swift = [str(pair["swift"]) if arg == str(pair["super"]) else arg for arg in score_args]
    fails([*swift, *output, "--model.parts", "3"], "of another run", "'model'", "Delete them")
    other = [*score_args, *output, "--model.parts", "3", "--data.routing_fraction", "0.5"]
    fails(other, "of another run", "'examples'")
    fails([*score_args, *output, "--model.parts", "3", "--model.part", "3"], "--model.part 3", "from 0 to 2")
    fails([*score_args, *output, "--model.parts", "0"], "--model.parts 0")
    fails([*score_args, *output, "--model.parts", "500"], "--model.parts 500", "more than")
    fails([*score_args, *output, "--model.parts", "3", "--data.max_length", "9"], "of another run", "'how'")
    few = ["--model.parts", "3", "--trainer.limit_val_batches", "1"]
    fails([*score_args, *output, *few], "must be complete", "--trainer.limit_val_batches")
    (file,) = (tmp_path / "r.parquet.parts").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    fails([*score_args, *output, "--model.parts", "3"], file, "cannot be read")


def test_what_cannot_be_merged(tmp_path, fails):
    def write(name, ids, split="validation", **about):
        records = Records(torch.tensor(ids), torch.zeros(len(ids), dtype=torch.int64))
        write_records(tmp_path / name, {split: records}, ["a", "b"], **about)
        return str(tmp_path / name)

    first, other = write("1.parquet", [0, 4, 2]), write("2.parquet", [1, 4])
    output = ["--output", str(tmp_path / "m.parquet")]
    fails(["merge", first, *output], first, "do not ascend")
    first = write("1.parquet", [0, 2, 4])
    fails(["merge", first, other, *output], "example 4 of 'validation'", "more than once")
    fails(["merge", first, first, *output], "example 0")
    fails(["merge", first, write("3.parquet", [7], model="x"), *output], "3.parquet", "of another run", "'model'")
    fails(["merge", str(tmp_path / "none.parquet"), *output], "no records file", "none.parquet")
    (tmp_path / "empty").mkdir()
    fails(["merge", str(tmp_path / "empty"), *output], "no records", "empty")
    fails(["merge", first, "--output", str(tmp_path / "m.csv")], "m.csv")
    half, quarter = (write(f"{n}.parquet", [n], part=[1, n]) for n in (2, 4))
    fails(["merge", half, quarter, *output], "of several runs", "one of 2 parts and one of 4 parts")
    fails(["merge", half, first, *output], "of several runs", "whole ones")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 no PAR1")
    fails(["merge", first, str(tmp_path / "damaged.parquet"), *output], "cannot be read")
    table = pq.read_table(first)
    ids = pa.array([0, None, 4])
    for name, odd, *words in (
        ("float", table.set_column(1, "id", pa.array([0.0, 2.0, 4.0])), "whole numbers"),
        ("null", table.set_column(1, "id", ids), "an id is missing or below 0"),
        ("below", table.set_column(1, "id", pa.array([-5, -1, 0])), "an id is missing or below 0"),
        ("nowhere", table.set_column(0, "split", pa.array(["test", None, "test"])), "split of some rows is missing"),
        ("less", table.drop_columns("prediction"), "no records of ours"),
        ("more", table.append_column("flops", ids), "has the columns", "'flops'"),
    ):
        pq.write_table(odd, tmp_path / f"{name}.parquet")
        fails(["merge", first, str(tmp_path / f"{name}.parquet"), *output], *words)
    for part in ("x", [0, "1"], [2, 2], [0, 10**9]):
        odd = write("part.parquet", [1], part=part)
        fails(["merge", odd, *output], *(["the part", "of a run"] if part != [0, 10**9] else ["999999999 are missing"]))
    # Only a column that is read late.
    content = bytearray(Path(first).read_bytes())
    start = pq.ParquetFile(first).metadata.row_group(0).column(2).data_page_offset
    content[start : start + 9] = b"\xff" * 9
    (tmp_path / "damaged.parquet").write_bytes(content)
    fails(["merge", str(tmp_path / "damaged.parquet"), *output], "damaged.parquet", "cannot be read")
    assert not (tmp_path / "m.parquet").exists()
    test = write("4.parquet", [0, 1], "test")
    assert main(["merge", test, write("5.parquet", [1, 3]), first, *output]) == 0
    merged = pd.read_parquet(tmp_path / "m.parquet")
    assert merged[["split", "id"]].values.tolist() == [
        *(["test", i] for i in (0, 1)),
        *(["validation", i] for i in (0, 1, 2, 3, 4)),
    ]
    # What is left of many files comes in one piece, not a piece for each.
    many = [write(f"part{n}.parquet", [n, n + 50]) for n in range(50)]
    assert main(["merge", *many, *output]) == 0
    assert pq.ParquetFile(tmp_path / "m.parquet").num_row_groups == 2
    assert pd.read_parquet(tmp_path / "m.parquet")["id"].tolist() == list(range(100))


def test_cudnns_attention_is_left_out_while_a_module_runs(score_args, tmp_path, monkeypatch):
    """It is planned anew for each shape of a batch; afterwards it is as it was."""
    seen = []
    step = EvaluationModule.validation_step

    def watched(self, *args):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return step(self, *args)

    monkeypatch.setattr(EvaluationModule, "validation_step", watched)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    assert main([*score_args, "--model.output", str(tmp_path / "r.parquet")]) == 0
    assert set(seen) == {False}
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_job_files(pair, data_args, tmp_path):
    """With a scheduler's variables, and srun as a plain call."""
    slurm = Path(__file__).resolve().parents[2] / "configs" / "slurm"
    for file in slurm.iterdir():
        run("bash", "-n", file)
    tools = tmp_path / "bin"
    tools.mkdir()
    said = tmp_path / "said"
    for name, does in (("srun", 'exec "$@"'), ("elang", f'printf "%s\\0" "$@" > {said}')):
        (tools / name).write_text(f"#!/bin/bash\n{does}\n")
        (tools / name).chmod(0o755)
    (tmp_path / "step.yaml").write_text(json.dumps({"model": {"init_args": {"model": str(pair["super"])}}}))
    (tmp_path / "cpu.yaml").write_text(json.dumps({"trainer": {"accelerator": "cpu", "devices": 1}}))
    environment = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "TRAINER": tmp_path / "cpu.yaml"}
    for job in ("0", "1"):
        given = environment | {"SLURM_ARRAY_TASK_ID": job}
        given = {name: str(value) for name, value in given.items()}
        run(
            "bash",
            slurm / "score.sbatch",
            tmp_path / "step.yaml",
            tmp_path / "r.parquet",
            "2",
            *data_args,
            environment=given,
        )
        elang(*said.read_text().split("\0")[:-1], environment=given)
    elang("merge", tmp_path / "r.parquet.parts", "--output", tmp_path / "r.parquet")
    assert len(pd.read_parquet(tmp_path / "r.parquet")) == 240 + 61
