"""`elang predict --task`: a benchmark's test split answered by a pair, in the form that the benchmark takes."""

import json
import math
import re

import pytest
from benchmark_files import write_benchmarks
from conftest import QUIET, write_model

from elang import JointPredictor
from elang.cli.verbs import main
from elang.data.benchmarks import TaskData

TASKS = {
    "glue/rte": "RTE.tsv",
    "superglue/multirc": "MultiRC.jsonl",
    "superglue/record": "ReCoRD.jsonl",
    "glue/stsb": "STS-B.tsv",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """A pair of tiny encoders for a task, barely trained; made once."""
    made = {}

    def make(task):
        if task not in made:
            root = tmp_path_factory.mktemp("pair")
            base = write_model(root / "base")
            data = ["--data", "TaskData", "--data.task", task, "--data.folder", str(folders / task.partition("/")[0])]
            data += ["--data.routing_fraction", "0.3", "--data.batch_size", "8", "--data.max_length", "64"]
            fit = [*QUIET, "--trainer.max_epochs", "2", "--trainer.enable_checkpointing", "false"]
            for verb, *options in (
                ["fit", "--model.model", str(base), "--model.output", str(root / "super"), *fit],
                ["score", "--model.model", str(root / "super"), "--model.output", str(root / "s.parquet"), *QUIET],
                [
                    *("fit", "--model", "SwiftModule", "--model.model", str(base), "--model.layers", "1"),
                    *("--model.super_records", str(root / "s.parquet"), "--model.output", str(root / "swift"), *fit),
                ],
            ):
                assert main([verb, *options, *data]) == 0
            made[task] = root
        return made[task]

    return make


@pytest.mark.parametrize(("task", "name"), TASKS.items())
def test_test_splits_are_answered(task, name, trained, folders, tmp_path, capsys):
    root, folder = trained(task), str(folders / task.partition("/")[0])
    args = ["predict", "--swift_model", str(root / "swift"), "--super_model", str(root / "super"), "--score", "router"]
    args += ["--threshold", "defer 50%", "--chunk", "2"]
    assert main([*args, "--task", task, "--folder", folder, "--output", str(tmp_path / name)]) == 0
    data = TaskData(task, folder, ["test"])
    examples = data.read("test")
    assert f"{len(examples)} inputs" in capsys.readouterr().err
    predictor = JointPredictor(str(root / "swift"), str(root / "super"), "defer 50%", "router")
    said = [one.label for one in predictor.answer(examples.texts, examples.choices)]
    lines = (tmp_path / name).read_text("utf-8").splitlines()
    if task == "glue/rte":
        assert lines == ["index\tprediction", *(f"{i}\t{label}" for i, label in enumerate(said))]
    elif task == "glue/stsb":
        wanted = [f"{i}\t{min(5, max(0, value)):.3f}" for i, value in enumerate(said)]
        assert lines == ["index\tprediction", *wanted]
    elif task == "superglue/record":
        found = [json.loads(line) for line in lines]
        assert [one["label"] for one in found] == said
        assert all(one["label"] in row["entities"] for one, row in zip(found, data.rows("test"), strict=True))
    else:
        found = [
            (passage["idx"], question["idx"], answer["idx"], answer["label"])
            for passage in map(json.loads, lines)
            for question in passage["passage"]["questions"]
            for answer in question["answers"]
        ]
        wanted = [tuple(row["idx"].values()) for row in data.rows("test")]
        assert [one[:3] for one in found] == wanted
        assert [one[3] for one in found] == [int(label == "True") for label in said]


def test_how_far_a_submission_is(trained, folders, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("elang.terminal._EVERY", 0)
    root, folder = trained("glue/rte"), str(folders / "glue")
    args = ["predict", "--swift_model", str(root / "swift"), "--super_model", str(root / "super"), "--task", "glue/rte"]
    assert main([*args, "--folder", folder, "--output", str(tmp_path / "RTE.tsv"), "--chunk", "3"]) == 0
    count = len(TaskData("glue/rte", folder, ["test"]).read("test"))
    lines = re.findall(r"^elang: \d+.* inputs.*", capfd.readouterr().err, re.MULTILINE)
    assert [line.split()[1] for line in lines] == [*map(str, range(3, count, 3)), str(count)]


def test_pairs_of_texts_are_told_as_lists(trained, tmp_path):
    root = trained("glue/rte")
    rows = [{"nr": f"p{n}", "sentence1": f"good {n}", "sentence2": "bad"} for n in range(4)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    args = ["predict", "--swift_model", str(root / "swift"), "--super_model", str(root / "super"), "--id", "nr"]
    args += ["--input", str(tmp_path / "in.jsonl"), "--text", "[sentence1, sentence2]", "--texts", "true"]
    assert main([*args, "--threshold", "defer 50%", "--output", str(tmp_path / "out.jsonl")]) == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [one["id"] for one in found] == [row["nr"] for row in rows]
    assert [one["text"] for one in found] == [[row["sentence1"], row["sentence2"]] for row in rows]
    assert all(0.5 <= one["probability"] <= 1 for one in found)


def test_a_pair_of_another_task_is_refused(trained, folders, fails, tmp_path):
    root = trained("glue/rte")
    args = ["predict", "--swift_model", root / "swift", "--super_model", root / "super"]
    output = ["--output", tmp_path / "out.tsv"]
    fails([*args, "--task", "glue/qnli", "--folder", folders / "glue", *output], "sentence1", "glue/qnli", "question")
    # The same columns and labels are not yet the same task.
    fails([*args, "--task", "glue/wnli", "--folder", folders / "glue", *output], "another task than glue/wnli")
    fails([*args, "--task", "glue/rtee", "--folder", folders / "glue", *output], "glue/rte")
    fails([*args, "--task", "glue/rte", "--folder", folders / "glue"], "name a file as --output")
    fails([*args, "--folder", folders / "glue", *output], "only with --task")
    assert not (tmp_path / "out.tsv").exists()


def test_what_is_cut_is_counted_for_both(trained):
    root = trained("glue/rte")
    predictor = JointPredictor(str(root / "swift"), str(root / "super"), -1e9)
    for runner in predictor.runners.values():
        runner.max_length = 8
    predictor([("good " * 20, "bad"), ("good", "bad"), ("bad " * 9, "good")])
    assert (predictor.truncated, predictor.super_truncated) == (2, 2)
    predictor.threshold = math.inf
    predictor([("good " * 20, "bad")])
    assert (predictor.truncated, predictor.super_truncated) == (3, 2)
