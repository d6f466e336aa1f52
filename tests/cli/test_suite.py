"""`elang suite`: one command from files to table, its steps, and every shipped configuration on every task."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from backends.test_adapters import needs_peft
from benchmark_files import ALL_TASKS, write_benchmarks
from conftest import write_data, write_model, write_t5

from elang.cli import suite_steps as suites
from elang.cli.suite import _usual_points, suite
from elang.cli.suite_plan import chosen_tasks, read_plan, task_steps
from elang.cli.suite_steps import STAGES
from elang.cli.suite_table import _pair_ms, average, print_tables, read_row
from elang.cli.verbs import main
from elang.data.benchmarks import TaskData
from elang.data.glue.table import TASKS
from elang.errors import InputError
from elang.metrics import ExampleTable
from elang.notices import Notice
from elang.records.reading import read_metadata
from elang.records.table import EXAMPLES

CONFIGS = Path(__file__).parents[2] / "configs" / "suite"
NAMES = ("bert-small", "bert-paper", "t5-small", "t5-paper")
CAUSAL = ("causal-small", "causal-paper-scale")
QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The benchmarks' folder, with both benchmarks in it."""
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, data):
    """Untrained models, each a Swift and a Super: ``bert``, ``t5`` and ``causal``."""
    root = tmp_path_factory.mktemp("tiny")
    corpus = []
    for task in ALL_TASKS:
        found = TaskData(task, str(data / task.partition("/")[0]), ["train"])
        corpus += [found.text_task.prompt_text(texts) for texts in found.read("train").texts]
        corpus += found.text_task.answers * 10
    questions = ["A B C D A. B. C. D. Answer: Question: plus = ####", *map(str, range(19))]
    return {
        "bert": [str(write_model(root / f"bert{n}", n)) for n in (1, 2)],
        "t5": [str(write_t5(root / f"t5{n}", corpus, n)) for n in (1, 2)],
        "causal": [write_causal(root / f"causal{n}", corpus + questions, n) for n in (1, 2)],
    }


def write_causal(folder, corpus, layers):
    """A tiny Llama that reads the words of a corpus, without a padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", *sorted({word for text in corpus for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 512}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(words), bos_token_id=0, eos_token_id=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def plan(tiny):
    """A suite's file, as plain values."""
    return {
        "swift_model": tiny["bert"][0],
        "super_model": tiny["bert"][1],
        "all": {"trainer": QUIET, "data": {"batch_size": 8, "routing_fraction": 0.3}},
        "super": {"trainer": {"max_epochs": 2}, "model": {"lr": 1e-2}},
        "swift": {"trainer": {"max_steps": 2}, "model": {"lr": 1e-2, "score": "free_energy"}},
        "joint": {"model": {"latency": False}},
        "tasks": {"glue/rte": {"joint": {"model": {"latency": True}}}, "superglue/copa": None},
    }


OWN = {"all": {"data": {"train": "nowhere.csv", "validation": "nowhere.csv"}}}


def written(plan, path):
    path.write_text(yaml.safe_dump(plan), "utf-8")
    return str(path)


@pytest.fixture(scope="session")
def whole(tmp_path_factory, plan, data):
    """A suite of two tasks, run as a user would; its folder, arguments and what it printed.

    The benchmarks' folders are side by side, so one folder has to hold both tasks'.
    """
    root = tmp_path_factory.mktemp("suite")
    shutil.copytree(data / "glue" / "RTE", root / "data" / "RTE")
    shutil.copytree(data / "superglue" / "COPA", root / "data" / "COPA")
    config = written(plan, root / "plan.yaml")
    args = ["glue/rte,superglue/copa", "--config", config, "--folder", str(root / "data"), "--output"]
    command = [sys.executable, "-m", "elang", "suite", *args, str(root / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "out", args, done.stdout


@pytest.fixture
def again(whole, tmp_path, monkeypatch):
    """A copy of the finished suite under its own name, and a function that runs the suite on it within this process.

    The function returns the stages that ran.
    """
    out, args, _ = whole
    kept = tmp_path / "kept"
    shutil.copytree(out, kept)
    ran = []

    def run_step(step):
        ran.append(f"{step.task}: {step.stage}")
        assert main(step.command) == 0

    def run(*options, real=False, config=None):
        ran.clear()
        if not real:
            monkeypatch.setattr(suites, "run_step", run_step)
        said = list(args)
        if config is not None:
            said[2] = config
        assert main(["suite", *said, str(out), *options]) == 0
        return list(ran)

    yield out, run
    # Paths are in the configurations, so it is the original that was worked on.
    shutil.rmtree(out)
    shutil.copytree(kept, out)


def test_table_is_printed(whole):
    out, _, said = whole
    steps = [(task, stage) for task in ("glue/rte", "superglue/copa") for stage in STAGES]
    lines = [line for line in said.splitlines() if ": caution: " not in line]
    told = [line for line in lines if re.match(r"\S+/\S+: ", line) and "threshold" not in line]
    cautions = [row["cautions"] for row in json.loads((out / "suite.json").read_text())["tasks"]]
    assert said.count(": caution: ") == sum(map(len, cautions)) > 0
    # The last line is the place of the table.
    assert max(len(line) for line in said[said.index("caution: ") :].splitlines()[:-1]) <= 80
    assert len(told) == 2 * len(steps)
    for i, (task, stage) in enumerate(steps):
        assert re.fullmatch(rf"{task}: elang \w+ --config {out}/{task}/{stage}.yaml", told[2 * i])
        assert re.fullmatch(rf"{task}: {stage} took \d+ s", told[2 * i + 1])
    assert [t in said for t in ("threshold: held out, 1-SE", "threshold: read here, 1-SE")] == [True, True]
    assert said.count("glue/rte ") >= 2
    assert len(re.findall(r"\nmean of ratios  ", said)) == len(re.findall(r"\nratio of means  ", said)) == 2
    assert max(len(line) for line in said[said.index("threshold: held out") :].split("\n")[:40]) <= 80
    assert f"everything is in {out}/, the table in suite.json" in " ".join(said.split())
    cells, costs = ([*re.split("  +", line.strip())] for line in re.findall("\nglue/rte  .*", said)[:2])
    first = json.loads((out / "suite.json").read_text())["tasks"][0]
    point = first["points"]["held out, 1-SE"]
    assert costs[:4] == ["glue/rte", "free_energy", "12", "GFLOPs"]
    qualities = [f"{100 * q:.1f}" for q in (first["swift"], first["super"], point["quality"])]
    same = "= " * (point["to_super"]["low"] <= 0 <= point["to_super"]["high"])
    assert cells[1:4] == [*qualities[:2], same + qualities[2]]
    assert costs[6] == f"{point['gflops']:.3g}"
    assert cells[4:6] == [f"{point['kept']:.0%}", f"{point['speedup']:.3g}x"]


def recomputed(folder, score, threshold):
    """A task's figures at a threshold, from the records of every example."""
    frame = pd.read_parquet(folder / "records.parquet").query("split == 'validation'")
    hard = frame[f"score_{score}"].to_numpy() > threshold
    mixed = frame["super_prediction"].where(hard, frame["swift_prediction"])
    # Where everything is deferred whatever its score, no Swift runs.
    flops = (frame["swift_flops"] * (threshold > -math.inf) + frame["super_flops"] * hard).mean()
    return {
        "swift": (frame["swift_prediction"] == frame["label"]).mean(),
        "super": (frame["super_prediction"] == frame["label"]).mean(),
        "joint": (mixed == frame["label"]).mean(),
        "kept": 1 - hard.mean(),
        "swift_gflops": frame["swift_flops"].mean() / 1e9,
        "super_gflops": frame["super_flops"].mean() / 1e9,
        "gflops": flops / 1e9,
        "speedup": frame["super_flops"].mean() / flops,
    }


def test_figures_are_those_of_the_records(whole):
    out = whole[0]
    found = json.loads((out / "suite.json").read_text())
    assert [row["task"] for row in found["tasks"]] == ["glue/rte", "superglue/copa"]
    points = set(found["averages"])
    assert points == {
        f"{where}, {p}" for where in ("held out", "read here") for p in ("1-SE", "parity", "99.5%", "99%")
    }
    for point in points:
        rows = []
        for row in found["tasks"]:
            folder = out / row["task"] / "joint"
            summary = json.loads((folder / "summary.json").read_text())
            threshold = float(summary["operating_points"][row["score"]][point]["threshold"])
            rows.append(recomputed(folder, row["score"], threshold))
            told = row["points"][point]
            for name in ("swift", "super", "swift_gflops", "super_gflops"):
                assert row[name] == pytest.approx(rows[-1][name])
            for name in ("kept", "gflops", "speedup"):
                assert told[name] == pytest.approx(rows[-1][name])
            assert told["quality"] == pytest.approx(rows[-1]["joint"])
            assert row["examples"] == 12
            assert row["metrics"] == ["accuracy"]
        mean = found["averages"][point]
        for name in ("swift", "super", "joint", "kept", "swift_gflops", "super_gflops", "gflops"):
            assert mean[name] == pytest.approx((rows[0][name] + rows[1][name]) / 2)
        assert mean["speedup, mean of ratios"] == pytest.approx((rows[0]["speedup"] + rows[1]["speedup"]) / 2)
        whole_ratio = (rows[0]["super_gflops"] + rows[1]["super_gflops"]) / (rows[0]["gflops"] + rows[1]["gflops"])
        assert mean["speedup, ratio of means"] == pytest.approx(whole_ratio)
    # The held-out threshold is the one that was chosen on the routing slice.
    for row in found["tasks"]:
        folder = out / row["task"] / "joint"
        chosen = json.loads((folder / "elang.json").read_text())["thresholds"]["free_energy"]["parity"]["threshold"]
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["operating_points"]["free_energy"]["held out, parity"]["threshold"] == chosen


def test_milliseconds_are_of_the_task_that_measured(whole):
    found = json.loads((whole[0] / "suite.json").read_text())["tasks"]
    latency = json.loads((whole[0] / "glue" / "rte" / "joint" / "summary.json").read_text())["latency"]
    assert set(latency) == {"swift", "super"}
    for batch, name in (("batch 1", "batch 1"), ("best batch", "at best batch")):
        swift, super_ = (1000 * latency[who][name] for who in ("swift", "super"))
        assert found[0]["ms"]["super"][batch] == pytest.approx(super_)
        point = found[0]["points"]["held out, parity"]
        assert point["ms"][batch] == pytest.approx(swift + (1 - point["kept"]) * super_)
    assert found[1]["ms"] == {}
    assert found[1]["points"]["held out, parity"]["ms"]["batch 1"] is None


def test_finished_steps_are_not_run_again(again):
    out, run = again
    assert run() == []
    home = out / "superglue" / "copa"
    shutil.rmtree(home / "joint")
    (out / "suite.json").unlink()
    assert run() == ["superglue/copa: joint"]
    assert (out / "suite.json").is_file()
    # What is written only in part has not its name yet.
    for name in ("swift", "joint"):
        shutil.rmtree(home / name)
    (home / "super.parquet").rename(home / ".super.parquet.17.part")
    (home / ".swift.part").mkdir()
    assert run() == [f"superglue/copa: {stage}" for stage in ("score", "swift", "joint")]
    assert run() == []


def stop_training(home, *options):
    """Leave what a kill leaves: a checkpoint in the run's folder, and no model."""
    shutil.rmtree(home / "super")
    assert main(["fit", "--config", str(home / "super.yaml"), *options]) == 0
    shutil.rmtree(home / "super")
    left = list((home / "super-run").rglob("*.ckpt"))
    assert len(left) == 1
    return str(left[0])


def test_a_stopped_training_goes_on_from_its_checkpoint(again, monkeypatch, fails):
    out, run = again
    home = out / "glue" / "rte"
    left = stop_training(home, "--trainer.max_epochs", "1")
    # Begun with other options, it is not gone on with.
    args = ["--folder", str(out.parent / "data"), "--output", str(out), "--seed", "1"]
    fails(["suite", "glue/rte", "--config", str(out.parent / "plan.yaml"), *args], "super-run' was made with other")
    commands, real = [], subprocess.Popen

    def spied(command, **options):
        commands.append(command)
        return real(command, **options)

    monkeypatch.setattr(subprocess, "Popen", spied)
    run(real=True)
    # What is made from it follows.
    assert [command[3] for command in commands] == ["fit", "score", "fit", "validate"]
    assert commands[0][3:] == ["fit", "--config", str(home / "super.yaml"), "--ckpt_path", left]
    assert f"Restoring states from the checkpoint path at {left}" in (home / "super.log").read_text()
    assert (home / "super" / "elang.json").is_file()
    assert not (home / "super-run").exists()


def test_a_training_that_was_stopped_at_its_end_is_finished(again):
    home = again[0] / "glue" / "rte"
    left = stop_training(home)
    assert main(["fit", "--config", str(home / "super.yaml"), "--ckpt_path", left]) == 0
    assert (home / "super" / "elang.json").is_file()
    # A Swift chooses its thresholds at the end, too.
    swift = ["fit", "--config", str(home / "swift.yaml")]
    before = json.loads((home / "swift" / "elang.json").read_text())["thresholds"]
    for _ in range(2):
        shutil.rmtree(home / "swift")
        assert main(swift) == 0
        swift = [*swift[:3], "--ckpt_path", str(next((home / "swift-run").rglob("*.ckpt")))]
    assert json.loads((home / "swift" / "elang.json").read_text())["thresholds"] == before


def test_other_options_are_refused(again, plan, tmp_path, fails):
    out, run = again
    for change in ({"swift": {"model": {"lr": 2e-2}}}, {"all": {"trainer": QUIET, "data": {"batch_size": 4}}}):
        config = written({**plan, **change}, tmp_path / "other.yaml")
        args = ["suite", "glue/rte", "--config", config, "--output", str(out)]
        fails([*args, "--folder", str(out.parent / "data")], "was made with other options", "--output", "glue/rte")
    # The seed is one, too. Nothing was changed by being refused.
    args = ["suite", "glue/rte", "--config", str(out.parent / "plan.yaml"), "--output", str(out)]
    fails([*args, "--folder", str(out.parent / "data"), "--seed", "1"], "was made with other options")
    assert run() == []


def test_a_failing_step_names_its_task_and_log(again, plan, tmp_path, fails):
    out, run = again
    home = out / "superglue" / "copa"
    shutil.rmtree(home / "swift")
    shutil.rmtree(home / "joint")
    broken = {**plan, "swift": {**plan["swift"], "model": {"score": "no_such_score"}}}
    args = ["--config", written(broken, tmp_path / "broken.yaml"), "--folder", str(out.parent / "data")]
    assert (
        fails(
            ["suite", "superglue/copa", *args, "--output", str(out)],
            "superglue/copa stopped at its stage 'swift'",
            str(home / "swift.log"),
            "no_such_score",
            "run the same again",
        ).count("error: ")
        == 1
    )
    assert not (home / "swift").exists()
    assert run() == ["superglue/copa: swift", "superglue/copa: joint"]


def test_points_and_score(again, capfd, fails):
    out, run = again
    capfd.readouterr()
    assert run("--points", '["read here, 99%"]', "--score", "max_softmax") == []
    said = capfd.readouterr().out
    assert "threshold: read here, 99%" in said
    assert "held out" not in said
    rows = json.loads((out / "suite.json").read_text())["tasks"]
    assert {row["score"] for row in rows} == {"max_softmax"}
    for row in rows:
        folder = out / row["task"] / "joint"
        summary = json.loads((folder / "summary.json").read_text())
        threshold = float(summary["operating_points"]["max_softmax"]["read here, 99%"]["threshold"])
        found = recomputed(folder, "max_softmax", threshold)
        assert row["points"]["read here, 99%"]["quality"] == pytest.approx(found["joint"])
        assert row["area"] == summary["qualities"]["accuracy"]["scores"]["max_softmax"]["area"] or math.isnan(
            row["area"]
        )
    args = ["suite", "glue/rte", "--config", str(out.parent / "plan.yaml"), "--output", str(out)]
    fails([*args, "--folder", str(out.parent / "data"), "--score", "guess"], "no score 'guess'", "free_energy")
    capfd.readouterr()
    with pytest.warns(Notice, match="glue/rte has no score 'encoder_energy'; its row is by free_energy"):
        assert run("--points", "held out, 99%", "--score", "encoder_energy") == []
    said = capfd.readouterr().out
    assert "threshold: held out, 99%" in said


def test_dry_run_only_prints(plan, data, tmp_path, capsys):
    config = written(plan, tmp_path / "plan.yaml")
    suite("glue/rte, glue/mnli-mm", config, str(data / "glue"), str(tmp_path / "out"), dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    verbs = [("super", "fit"), ("score", "score"), ("swift", "fit"), ("joint", "validate")]
    expected = [
        f"elang {verb} --config {tmp_path}/out/{task}/{stage}.yaml"
        # The half of MNLI that has the models comes before the other.
        for task in ("glue/rte", "glue/mnli", "glue/mnli-mm")
        for stage, verb in verbs
        if task != "glue/mnli-mm" or stage == "joint"
    ]
    assert lines == expected
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.suffix != ".yaml"]
    joint = yaml.safe_load((tmp_path / "out" / "glue" / "mnli-mm" / "joint.yaml").read_text())
    assert joint["model"]["init_args"]["swift_model"] == f"{tmp_path}/out/glue/mnli/swift"
    assert joint["model"]["init_args"]["super_model"] == f"{tmp_path}/out/glue/mnli/super"
    assert joint["data"]["init_args"]["task"] == "glue/mnli-mm"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": {}}, ["unknown part 'teacher'", "swift_model"]),
        ({"tasks": {"glue/rte": {"joined": {}}}}, ["unknown part 'glue/rte: joined'", "joint"]),
        ({"tasks": {"glue/rtee": {}}}, ["no task 'glue/rtee'", "glue/rte"]),
        ({"joint": None, "super": 3}, ["'super: 3'", "values"]),
        ({"tasks": ["glue/rte"]}, ["tasks: ['glue/rte']"]),
        ({"tasks": {"glue/rte": "long"}}, ["'glue/rte: long'"]),
        ({"tasks": {"glue/rte": {"swift": {"trainer": 5}}}}, ["'glue/rte: swift: trainer: 5'"]),
        ({"all": {"data": "train.csv"}}, ["'all: data: train.csv'"]),
    ],
)
def test_bad_plans(plan, tmp_path, fails, change, words):
    config = written({**plan, **change}, tmp_path / "plan.yaml")
    fails(["suite", "glue/rte", "--config", config, "--output", str(tmp_path / "out")], *words)
    assert not (tmp_path / "out").exists()


def test_several_tasks_at_a_time(plan, data, tmp_path, monkeypatch):
    """Fits run beside each other, evaluations after them one by one; a failure begins nothing more."""
    seen = []

    def run_step(step):
        seen.append((step.task, step.stage))
        if step.task == fails and step.stage == "score":
            raise InputError("no")
        step.made.parent.mkdir(parents=True, exist_ok=True)
        step.made.write_text("")

    monkeypatch.setattr(suites, "run_step", run_step)
    fails, names = None, ("glue/rte", "glue/sst2", "glue/cola")
    found = read_plan(str(written(plan, tmp_path / "plan.yaml")))
    chains = [list(task_steps(name, found, None, root=tmp_path, seed=0)) for name in names]
    suites.run_chains([[s for s in chain if s.stage != "joint"] for chain in chains], 2)
    for task in names:
        assert [stage for of, stage in seen if of == task] == ["super", "score", "swift"]
    suites.run_chains(chains)
    assert seen[9:] == [(task, "joint") for task in names]
    seen.clear()
    fails = "glue/rte"
    chains = [list(task_steps(name, found, None, root=tmp_path / "b", seed=0)) for name in names]
    with pytest.raises(InputError, match="no"):
        suites.run_chains(chains)
    assert seen == [("glue/rte", "super"), ("glue/rte", "score")]


def test_bad_arguments(plan, tmp_path, fails):
    config = written(plan, tmp_path / "plan.yaml")
    fails(["suite", "glue"], "--config", "configs/suite")
    none = fails(["suite", "glue", "--config", str(tmp_path / "none.yaml")], "no suite's file", "none.yaml", "--config")
    folder = fails(["suite", "glue", "--config", str(tmp_path)], tmp_path, "it is a folder")
    assert "Errno" not in none + folder
    fails(["suite", "x.yaml"], "--config x.yaml")
    fails(["suite", "glue/rtee", "--config", config], "'glue/rtee'", "Did you mean glue/rte")
    fails(["suite", "intents", "--config", config], "There is no task 'intents'")
    (tmp_path / "half.yaml").write_text("swift_model: a\n")
    fails(["suite", "glue", "--config", str(tmp_path / "half.yaml")], "at least swift_model, super_model and joint")
    (tmp_path / "bad.yaml").write_text("swift_model: [a\n")
    fails(["suite", "glue", "--config", str(tmp_path / "bad.yaml")], "bad.yaml", "cannot be read")


def test_misspelt_options_are_found_before_anything_runs(plan, data, tmp_path, fails):
    wrong = {**plan, "joint": {"model": {"latencyy": True}}}
    config = written(wrong, tmp_path / "plan.yaml")
    args = ["suite", "glue/rte", "--config", config, "--folder", data / "glue", "--output", tmp_path / "o"]
    fails(args, "latencyy", "Did you mean '--model.latency'?")
    assert not list(tmp_path.rglob("*.log"))


# Steps, without running them.


def steps_of(plan, task, path, seed=0):
    found = read_plan(written(plan, path / "steps.yaml"))
    return {step.stage: step for step in task_steps(task, found, "data", root=Path("out"), seed=seed)}


def test_later_options_win(plan, tmp_path):
    changed = {
        **plan,
        "all": {"data": {"batch_size": 8, "max_length": 32}, "trainer": {"precision": "bf16-mixed"}},
        "swift": {"trainer": {"max_epochs": 5, "gradient_clip_val": 1.0}, "data": {"batch_size": 4}},
        "tasks": {
            "glue/rte": {
                "all": {"data": {"max_length": 48}},
                "swift": {"trainer": {"max_epochs": 9}, "model": None},
                "joint": None,
            }
        },
    }
    found = steps_of(changed, "glue/rte", tmp_path)
    swift = found["swift"].config
    assert swift["data"]["init_args"] == {"task": "glue/rte", "folder": "data", "batch_size": 4, "max_length": 48}
    assert swift["trainer"] == {
        "default_root_dir": "out/glue/rte/swift-run",
        "precision": "bf16-mixed",
        "max_epochs": 9,
        "gradient_clip_val": 1.0,
    }
    assert found["super"].config["data"]["init_args"]["batch_size"] == 8
    assert steps_of(changed, "glue/mrpc", tmp_path)["swift"].config["trainer"]["max_epochs"] == 5
    assert steps_of(changed, "glue/mrpc", tmp_path, 7)["swift"].config["seed_everything"] == 7


def test_finished_models_are_loaded(plan, tmp_path):
    ready = {name: part for name, part in plan.items() if name not in ("super", "swift")}
    ready |= {"super_model": "models/{task}/super", "swift_model": "models/{task}/swift"}
    found = steps_of(ready, "glue/rte", tmp_path)
    assert list(found) == ["joint"]
    model = found["joint"].config["model"]["init_args"]
    assert (model["swift_model"], model["super_model"]) == ("models/glue/rte/swift", "models/glue/rte/super")
    # The mismatched half of MNLI has no models of its own.
    model = steps_of(ready, "glue/mnli-mm", tmp_path)["joint"].config["model"]["init_args"]
    assert (model["swift_model"], model["super_model"]) == ("models/glue/mnli/swift", "models/glue/mnli/super")
    # A finished Super is asked, and the Swift learns from it.
    found = steps_of({**ready, "swift": {}, "swift_model": "base"}, "glue/rte", tmp_path)
    assert list(found) == ["score", "swift", "joint"]
    assert found["score"].config["model"]["init_args"]["model"] == "models/glue/rte/super"
    swift = found["swift"].config["model"]["init_args"]
    assert (swift["model"], swift["super_records"]) == ("base", "out/glue/rte/super.parquet")
    assert found["joint"].config["model"]["init_args"]["swift_model"] == "out/glue/rte/swift"
    # The Super is loaded only where its hidden states are learned.
    assert "super_model" not in swift
    hidden = {**ready, "swift": {"model": {"hidden_weight": 1.0}}, "swift_model": "base"}
    swift = steps_of(hidden, "glue/rte", tmp_path)["swift"].config["model"]["init_args"]
    assert swift["super_model"] == "models/glue/rte/super"
    # One task's models may be trained where the others' are there; both halves of MNLI then use them.
    one = {**ready, "tasks": {"glue/mnli": {"super": None, "swift": {}}}}
    assert list(steps_of(one, "glue/rte", tmp_path)) == ["joint"]
    assert list(steps_of(one, "glue/mnli", tmp_path)) == list(STAGES)
    model = steps_of(one, "glue/mnli-mm", tmp_path)["joint"].config["model"]["init_args"]
    assert (model["swift_model"], model["super_model"]) == ("out/glue/mnli/swift", "out/glue/mnli/super")


def test_records_stand_in_for_the_super(plan, tmp_path):
    black_box = {name: part for name, part in plan.items() if name != "super"}
    black_box["super_model"] = "answers/{task}.csv"
    found = steps_of(black_box, "glue/mnli", tmp_path)
    assert list(found) == ["swift", "joint"]
    assert found["swift"].config["model"]["init_args"]["super_records"] == "answers/glue/mnli.csv"
    assert found["joint"].config["model"]["init_args"]["super_model"] == "answers/glue/mnli.csv"
    # They are answers to examples, of which the other half has others.
    model = steps_of(black_box, "glue/mnli-mm", tmp_path)["joint"].config["model"]["init_args"]
    assert (model["swift_model"], model["super_model"]) == ("out/glue/mnli/swift", "answers/glue/mnli-mm.csv")


def test_finished_models_and_records_are_run(again, plan, tmp_path, monkeypatch):
    """The pair that the suite made, once as models and once with the Super's records, gives the same table."""
    out, run = again
    first = json.loads((out / "suite.json").read_text())["tasks"][0]
    data = ["--folder", str(out.parent / "data")]
    run()
    # The suite's own are of the training file alone.
    score = ["--config", f"{out}/glue/rte/score.yaml", "--data.splits", "null"]
    assert main(["score", *score, "--model.output", f"{tmp_path}/glue/rte/super.parquet"]) == 0
    for name, model in (("models", f"{out}/{{task}}/super"), ("records", f"{tmp_path}/{{task}}/super.parquet")):
        ready = {**plan, "swift_model": f"{out}/{{task}}/swift", "super_model": model, "tasks": {}}
        ready = {key: part for key, part in ready.items() if key not in ("super", "swift")}
        config = written(ready, tmp_path / f"{name}.yaml")
        assert main(["suite", "glue/rte", "--config", config, "--output", str(tmp_path / name), *data]) == 0
        found = json.loads((tmp_path / name / "suite.json").read_text())["tasks"][0]
        assert not (tmp_path / name / "glue" / "rte" / "super").exists()
        for part in ("swift", "super", "area", "swift_gflops", "super_gflops"):
            assert found[part] == pytest.approx(first[part], nan_ok=True), (name, part)
        for point, told in first["points"].items():
            for part in ("quality", "kept", "gflops", "speedup"):
                assert found["points"][point][part] == pytest.approx(told[part]), (name, point, part)


def test_names_of_tasks(plan, tmp_path):
    found = read_plan(written({**plan, "tasks": {"intents": OWN, "glue/rte": None}}, tmp_path / "plan.yaml"))
    assert chosen_tasks("glue", found) == [task for task in TASKS if task.startswith("glue/")]
    assert chosen_tasks("intents,glue/rte", found) == ["intents", "glue/rte"]
    assert chosen_tasks("superglue/cb, superglue/cb ,intents", found) == ["superglue/cb", "intents"]
    assert chosen_tasks("glue/mnli-mm", found) == ["glue/mnli", "glue/mnli-mm"]
    # Whatever was asked for first, the other half waits for the models.
    assert chosen_tasks("glue/mnli-mm,glue/mnli", found) == ["glue/mnli", "glue/mnli-mm"]
    with pytest.raises(InputError, match=r"no task 'intent'\. Did you mean intents"):
        chosen_tasks("intent", found)


def test_a_task_needs_a_known_name_or_data(plan, tmp_path):
    for wrong, meant in (("cola", "glue/cola"), ("intents", None)):
        with pytest.raises(InputError, match=f"task '{wrong}', but no data") as caught:
            read_plan(written({**plan, "tasks": {wrong: {}}}, tmp_path / "plan.yaml"))
        assert meant is None or f"Did you mean {meant}" in str(caught.value)


def test_data_is_looked_for_before_anything_runs(plan, data, tmp_path, fails):
    config = written({**plan, "tasks": {"intents": OWN}}, tmp_path / "plan.yaml")
    args = ["--config", config, "--output", str(tmp_path / "out"), "--dry_run", "true", "--folder"]
    fails(["suite", "glue/rte", *args, str(tmp_path / "nope")], "no files of glue/rte", str(tmp_path / "nope"))
    fails(["suite", "intents", *args, str(data)], "intents: There is no data file", "nowhere.csv")


def test_models_are_looked_for_before_anything_runs(plan, data, tmp_path, fails, monkeypatch):
    """Of every task and stage; those that the suite makes are not there yet."""
    args = ["--output", str(tmp_path / "out"), "--folder", str(data / "glue")]
    gone, hub = str(tmp_path / "gone"), "owner/name@" + "0" * 40
    ready = {"swift_model": f"{tmp_path}/{{task}}/swift", "super_model": plan["super_model"], "joint": {}}
    write_model(tmp_path / "glue" / "rte" / "swift", 1)
    plans = {
        "swift": ({**plan, "swift_model": gone}, gone),
        "super": ({**plan, "super_model": gone, "tasks": {}}, gone),
        # The Super's answers, which one task lacks, and a Swift of another task.
        "records": ({**ready, "super_model": f"{tmp_path}/{{task}}.csv"}, "glue/rte.csv"),
        "task": (ready, "glue/mrpc/swift"),
        "option": ({**plan, "swift": {"model": {"out_of_fold": f"{gone}.parquet"}}}, "gone.parquet"),
        "hub": ({**plan, "swift_model": hub}, hub),
    }
    monkeypatch.setattr(suites, "run_step", None)
    for name, (wrong, word) in plans.items():
        config = written(wrong, tmp_path / f"{name}.yaml")
        said = fails(["suite", "glue/rte,glue/mrpc", "--config", config, *args], word)
        assert ("glue/mrpc: " if name == "task" else "glue/rte: ") in said
        if name == "hub":
            # A dry run asks no server.
            assert main(["suite", "glue/rte", "--config", config, *args, "--dry_run", "true"]) == 0
        shutil.rmtree(tmp_path / "out")


def test_what_an_old_model_made_comes_anew(again, recwarn):
    out, run = again
    shutil.rmtree(out / "glue" / "rte" / "super")
    stages = [f"glue/rte: {stage}" for stage in STAGES]
    assert run() == stages
    assert [one for one in recwarn if "what the stage 'joint' made is deleted" in str(one.message)]
    # Also where it was killed after the first of them.
    shutil.rmtree(out / "glue" / "rte" / "super")
    kept = suites.run_step

    def killed(step):
        kept(step)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites, "run_step", killed)
        with pytest.raises(KeyboardInterrupt):
            suite(**again_args(out))
    assert (out / "glue" / "rte" / "super" / "elang.json").is_file()
    assert run() == stages[1:]


def again_args(out):
    folder = str(out.parent / "data")
    return {"tasks": "glue/rte", "config": str(out.parent / "plan.yaml"), "folder": folder, "output": str(out)}


def test_a_half_of_mnli_comes_anew_with_the_models(plan, tmp_path):
    steps = [
        step for name in ("glue/mnli", "glue/mnli-mm") for step in task_steps(name, plan, "x", root=tmp_path, seed=0)
    ]
    for step in steps[1:]:
        step.made.parent.mkdir(parents=True, exist_ok=True)
        step.made.write_text("")
    suites.forget_stale(steps)
    assert not [step for step in steps if step.made.exists()]


# The table by hand.


def summary_of(quality, share, cost, super_cost, super_quality=0.9, swift_cost=1e9, score="free_energy", ms=None):
    """A summary of one metric with one point."""
    point = {"threshold": 0.5, "deferred_share": share, "quality": 0.5, "cost": cost, "speedup": super_cost / cost}
    points = {"read here, parity": {**point, "qualities": quality}}
    alone = {"swift": {"quality": 0.5, "cost": swift_cost}, "super": {"quality": super_quality, "cost": super_cost}}
    of = {"area": 0.25, "held_out": {}, "on_this_set": {"parity": point}}
    about = dict.fromkeys(("evaluated_on", "swift_model", "super_model", "thresholds_from"), "x")
    return (
        about
        | {
            "format": 1,
            "temperature": 1.0,
            "worth": {"unit": "examples", "largest": 1.0},
            "num_examples": 10,
            "score": score,
            "qualities": {name: {**alone, "num_examples": 10, "scores": {score: of}} for name in quality},
            "operating_points": {score: points},
        }
        | ({} if ms is None else {"latency": ms})
    )


def row_of(task, path, *args, **options):
    path.write_text(json.dumps(summary_of(*args, **options)))
    return read_row(task, path)


def test_a_row_is_read(tmp_path):
    times = {"swift": {"batch 1": 0.004, "at best batch": 0.001, "best batch": 8, "tokens": 9}}
    times |= {"super": {"batch 1": 0.02, "at best batch": 0.01, "best batch": 8, "tokens": 9}}
    row = row_of("x", tmp_path / "summary.json", {"accuracy": 0.8, "f1": 0.7}, 0.25, 4e9, 1.2e10, ms=times)
    point = row["points"].pop("read here, parity")
    assert row == {
        "task": "x",
        "metrics": ["accuracy", "f1"],
        "examples": 10,
        "score": "free_energy",
        "area": 0.25,
        "swift": 0.5,
        "super": 0.9,
        "swift_gflops": 1.0,
        "super_gflops": 12.0,
        "ms": {
            "swift": {"batch 1": 4.0, "best batch": 1.0},
            "super": {"batch 1": 20.0, "best batch": 10.0},
        },
        "cautions": [],
        "points": {},
    }
    # All inputs pay for the Swift, a quarter for the Super, too.
    assert point == {
        "quality": pytest.approx(0.75),
        "qualities": {"accuracy": 0.8, "f1": 0.7},
        # From a summary that has none.
        "to_super": None,
        "kept": 0.75,
        "gflops": 4.0,
        "speedup": 3.0,
        "ms": {"batch 1": pytest.approx(9.0), "best batch": pytest.approx(3.5)},
    }
    # Not every Swift has every score.
    assert read_row("x", tmp_path / "summary.json", "router")["score"] == "free_energy"


def test_a_decision_before_the_decoder_saves_it():
    ms = {"swift": {"b": 10.0}, "swift encoder": {"b": 4.0}, "super": {"b": 50.0}, "super encoder": {"b": 20.0}}
    # Three of four are answered by the whole Swift; the other by its encoder and the whole Super.
    assert _pair_ms(ms, "encoder_energy", 0.25, "b") == 0.75 * 10 + 0.25 * (4 + 50)
    assert _pair_ms(ms, "encoder_router", 1.0, "b") == 54.0
    assert _pair_ms(ms, "free_energy", 0.25, "b") == 10 + 0.25 * 50
    assert _pair_ms(ms, "router", 0.0, "b") == 10.0
    assert _pair_ms(ms, "router", 1.0, "b", alone=True) == 50.0
    # A language model reads its prompt first.
    read = {("swift prompt" if name == "swift encoder" else name): times for name, times in ms.items()}
    assert _pair_ms(read, "prompt_router", 1.0, "b") == 54.0
    # An encoder has no decoder to save.
    assert _pair_ms({"swift": {"b": 10.0}, "super": {"b": 50.0}}, "encoder_energy", 0.5, "b") == 35.0
    assert math.isnan(_pair_ms({"swift": {"b": 10.0}}, "free_energy", 0.5, "b"))


def test_averages_by_hand(tmp_path, capsys):
    """Four tasks, two of which are the halves of MNLI and count as one."""

    def made(task, quality, share, cost, super_cost, ms):
        times = {
            who: {"batch 1": ms[k] / 1000, "at best batch": ms[k] / 2000, "best batch": 2, "tokens": 5}
            for k, who in enumerate(("swift", "super"))
        }
        return row_of(task, tmp_path / "summary.json", quality, share, cost, super_cost, ms=times)

    rows = [
        made("glue/rte", {"accuracy": 0.8}, 0.5, 5e9, 10e9, (1, 10)),
        made("glue/mnli", {"accuracy": 0.6}, 0.0, 1e9, 4e9, (2, 20)),
        made("glue/mnli-mm", {"accuracy": 0.4}, 1.0, 6e9, 6e9, (2, 30)),
        made("glue/mrpc", {"accuracy": 0.9, "f1": 0.7}, 0.25, 2e9, 5e9, (1, 4)),
    ]
    found = average(rows, "read here, parity")
    assert found["joint"] == pytest.approx((0.8 + 0.5 + 0.8) / 3)
    assert found["swift"] == pytest.approx(0.5)
    assert found["kept"] == pytest.approx((0.5 + 0.5 + 0.75) / 3)
    assert found["super_gflops"] == pytest.approx((10 + 5 + 5) / 3)
    assert found["gflops"] == pytest.approx((5 + 3.5 + 2) / 3)
    assert found["speedup, mean of ratios"] == pytest.approx((2 + (4 + 1) / 2 + 2.5) / 3)
    assert found["speedup, ratio of means"] == pytest.approx(20 / 10.5)
    # Pair: 1 + 5, (2 + 0 and 2 + 30, so 17), 1 + 1. Super: 10, 25, 4.
    for batch in ("batch 1", "best batch"):
        assert found[f"time speedup at {batch}, ratio of means"] == pytest.approx((10 + 25 + 4) / (6 + 17 + 2))
        by_task = [10 / 6, (20 / 2 + 30 / 32) / 2, 4 / 2]
        assert found[f"time speedup at {batch}, mean of ratios"] == pytest.approx(sum(by_task) / 3)
    print_tables(rows, ["read here, parity"])
    said = capsys.readouterr().out
    averages = [
        re.split("  +", line.strip()) for line in said.splitlines() if re.match("(mean|ratio) of .* 70.0 ", line)
    ]
    assert [cells[0] for cells in averages] == ["mean of ratios", "ratio of means"]
    assert [cells[5] for cells in averages] == ["2.33x", "1.9x"]
    assert max(map(len, said.splitlines())) <= 80


def test_points_of_earlier_evaluations_are_shown_by_their_own_default(tmp_path):
    row = row_of("x", tmp_path / "summary.json", {"accuracy": 0.8}, 0.5, 5e9, 10e9)
    assert _usual_points([row]) == ["held out, 1-SE", "read here, parity"]
    row["points"]["read here, 1-SE"] = row["points"]["read here, parity"]
    assert _usual_points([row]) == ["held out, 1-SE", "read here, 1-SE"]


def test_what_is_not_known_is_a_dash(tmp_path, capsys):
    summary = summary_of({"accuracy": 0.8}, 0.5, 5e9, 10e9)
    point = summary["operating_points"]["free_energy"]["read here, parity"]
    point.update(cost=None, speedup=None)
    summary["qualities"]["accuracy"]["super"]["cost"] = None
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    row = read_row("intents", tmp_path / "summary.json")
    print_tables([row], ["read here, parity"])
    said = capsys.readouterr().out
    cells, costs = (re.split("  +", line.strip()) for line in said.splitlines() if line.startswith("intents "))
    assert (cells[4:], costs[3:]) == (["50%", "-"], ["GFLOPs", "1", "-", "-"])


def test_a_table_of_one_row_keeps_its_columns():
    """torchmetrics makes scalars of them, and a slice of one example could not be evaluated."""
    table = ExampleTable({"score": ((), torch.float64), "logits": ((1,), torch.float32)})
    table.update(id=torch.tensor([4]), score=torch.tensor([0.5], dtype=torch.float64), logits=torch.ones(1, 1))
    assert {name: tuple(column.shape) for name, column in table.compute().items()} == {
        "id": (1,),
        "score": (1,),
        "logits": (1, 1),
    }


# The configurations that are shipped.


@pytest.mark.parametrize("name", [*NAMES, *CAUSAL])
def test_every_config_is_parsed(name, tmp_path, capsys):
    """The first one for all tasks, the others for one task of each set of options, and both parts of MNLI."""
    plan = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text("utf-8"))
    sets = {str(plan["tasks"].get(task)): task for task in ALL_TASKS}
    tasks = ALL_TASKS if name == NAMES[0] else list(dict.fromkeys(["glue/mnli", "glue/mnli-mm", *sets.values()]))
    suite(",".join(tasks), str(CONFIGS / f"{name}.yaml"), None, str(tmp_path), dry_run=True)
    assert len(capsys.readouterr().out.splitlines()) == 4 * len(tasks) - 3
    for role in ("swift_model", "super_model"):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", plan[role])
    for task in tasks:
        home = tmp_path / task
        for stage in ("super", "swift") if task != "glue/mnli-mm" else ():
            config = yaml.safe_load((home / f"{stage}.yaml").read_text("utf-8"))
            assert config["trainer"]["precision"] == "bf16-mixed"
            assert config["model"]["init_args"]["model"] == plan[f"{stage}_model"]
        joint = yaml.safe_load((home / "joint.yaml").read_text("utf-8"))
        # Thresholds are chosen and compared in full precision.
        assert joint["trainer"]["precision"] == "32-true"
        # A Super that is shared by GPUs cannot be timed.
        shared = joint["trainer"].get("strategy") == "sharded"
        assert (joint["model"]["init_args"]["latency"], shared) == (not shared, name == "causal-paper-scale")
        # One slice for the whole of a task.
        fractions = {
            yaml.safe_load(path.read_text("utf-8"))["data"]["init_args"]["routing_fraction"]
            for path in (home if task != "glue/mnli-mm" else tmp_path / "glue" / "mnli").glob("*.yaml")
        }
        assert fractions == {joint["data"]["init_args"]["routing_fraction"]}


# Every task and every configuration; all of them are parsed for all tasks above. Tasks with labels in one column, of
# which there are many, by an encoder or by a T5, others by both.
PLAIN = [f"glue/{name}" for name in ("cola", "sst2", "mrpc", "qqp", "qnli", "rte", "wnli")]
PLAIN += ["superglue/boolq", "superglue/cb", "superglue/rte"]
RUNS = [(name, task) for place, task in enumerate(ALL_TASKS) for name in NAMES[place % 2 :: 2] if task not in PLAIN]
RUNS += [(NAMES[place % 4], task) for place, task in enumerate(PLAIN)]
# By language models each way to answer: labels, a number, a choice among two, and a head for candidates of its own.
RUNS += [("causal-small", task) for task in ("glue/stsb", "superglue/copa", "superglue/record")]
RUNS += [pytest.param("causal-paper-scale", "glue/rte", marks=needs_peft)]


@pytest.mark.parametrize(("name", "task"), RUNS)
def test_every_task_runs_as_configured(name, task, tiny, data, tmp_path):
    """Two training steps of tiny models with the options that are shipped, and the whole evaluation."""
    plan = read_plan(str(CONFIGS / f"{name}.yaml"))
    plan["swift_model"], plan["super_model"] = tiny[name.partition("-")[0]]
    of = TASKS[task].trained_on or task
    folder = str(data / task.partition("/")[0])
    steps = [step for one in dict.fromkeys([of, task]) for step in task_steps(one, plan, folder, root=tmp_path, seed=0)]
    for step in steps:
        config = step.config
        config["trainer"] = {**config.get("trainer", {}), **QUIET, "precision": "32-true"}
        config["trainer"].pop("strategy", None)
        if step.stage in ("super", "swift"):
            config["trainer"] |= {"max_steps": 2, "enable_checkpointing": False}
        if step.stage == "joint":
            config["model"]["init_args"]["latency"] = False
            if step.task != task:
                continue
        # Of few rows, a larger slice.
        config["data"]["init_args"]["routing_fraction"] = 0.3
        step.file.parent.mkdir(parents=True, exist_ok=True)
        step.file.write_text(yaml.safe_dump(config), "utf-8")
        assert main(step.command) == 0
        assert step.made.exists()
    row = read_row(task, tmp_path / task / "joint" / "summary.json")
    assert row["metrics"] == list(TASKS[task].qualities)
    assert row["examples"] == 12
    # The router routes where so few examples show it to be better.
    wanted = [plan["swift"]["model"]["score"]] if "score" in plan["swift"]["model"] else ["max_softmax", "router"]
    if task == "glue/stsb" or (name.startswith("t5") and task == "superglue/record"):
        wanted = ["encoder_router" if name.startswith("t5") else "router"]
    assert row["score"] in wanted
    for point in row["points"].values():
        assert point["gflops"] > 0
        assert math.isfinite(point["quality"])
    records = pd.read_parquet(tmp_path / task / "joint" / "records.parquet")
    assert set(records["split"]) == {"validation", "routing"}
    assert ("score_encoder_router" in records) == name.startswith("t5")
    for role in ("swift", "super") if name in CAUSAL else ():
        about = json.loads((tmp_path / of / role / "elang.json").read_text("utf-8"))["task"]
        # In ReCoRD by a head on the last token.
        assert about.get("label_words") == (None if task == "superglue/record" else "prompt")
        assert (tmp_path / of / role / "adapter_config.json").exists() == (role == "super" and "paper" in name)


def test_own_task(tiny, tmp_path, monkeypatch, capsys):
    """The file to copy, with other models and two steps of training."""
    for name, rows in (("train.csv", 60), ("test.csv", 21)):
        write_data(tmp_path / name, rows, rows)
        text = (tmp_path / name).read_text("utf-8").replace("text,label", "text,category", 1)
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    suite("intents", str(CONFIGS / "own-task.yaml"), output="dry", dry_run=True)
    assert len(capsys.readouterr().out.splitlines()) == 4
    plan = yaml.safe_load((CONFIGS / "own-task.yaml").read_text("utf-8"))
    plan["swift_model"], plan["super_model"] = tiny["bert"]
    plan["all"]["trainer"] |= QUIET
    plan["joint"]["model"]["latency"] = False
    for stage in ("super", "swift"):
        plan[stage]["trainer"] |= {"max_steps": 2, "enable_checkpointing": False}
    monkeypatch.setattr(suites, "run_step", lambda step: main(step.command))
    suite("intents", written(plan, tmp_path / "plan.yaml"), output="runs")
    found = json.loads((tmp_path / "runs" / "suite.json").read_text())["tasks"]
    assert [(row["task"], row["examples"], row["metrics"]) for row in found] == [("intents", 21, ["accuracy"])]
    frame = pd.read_parquet(tmp_path / "runs" / "intents" / "joint" / "records.parquet").query("split == 'validation'")
    texts = pd.read_csv(tmp_path / "test.csv")
    assert frame["label"].tolist() == [("bad", "good").index(label) for label in texts["category"]]


def test_own_questions(tiny, tmp_path, monkeypatch, capsys):
    """The file to copy for language models, on both of its tasks: the untrained Super is shown examples."""
    for name, rows in (("train", 60), ("test", 21)):
        pairs = [(n % 10, n // 10 + 6 * (name == "test")) for n in range(rows)]
        choices = [
            [f"{a} plus {b}", *range(a + b - n % 4, a + b - n % 4 + 4), "ABCD"[n % 4]] for n, (a, b) in enumerate(pairs)
        ]
        columns = ["question", *"ABCD", "answer"]
        pd.DataFrame(choices, columns=columns).to_csv(tmp_path / f"{name}.csv", index=False)
        sums = [{"question": f"{a} plus {b}", "answer": f"{a} plus {b} = {a + b} #### {a + b}"} for a, b in pairs]
        pd.DataFrame(sums).to_json(tmp_path / f"{name}.jsonl", orient="records", lines=True)
    monkeypatch.chdir(tmp_path)
    suite("choices,sums", str(CONFIGS / "own-questions.yaml"), output="dry", dry_run=True)
    assert len(capsys.readouterr().out.splitlines()) == 2 * 3
    plan = yaml.safe_load((CONFIGS / "own-questions.yaml").read_text("utf-8"))
    plan["swift_model"], plan["super_model"] = tiny["causal"]
    for stage in ("score", "swift", "joint"):
        plan[stage]["trainer"] |= {**QUIET, "precision": "32-true"}
    plan["all"]["data"] = {"routing_fraction": 0.3}
    plan["joint"]["model"]["latency"] = False
    plan["swift"]["trainer"] |= {"max_steps": 2, "enable_checkpointing": False}
    plan["tasks"]["sums"]["all"]["data"]["max_target_length"] = 8
    done = []
    monkeypatch.setattr(suites, "run_step", lambda step: done.append(main(step.command)))
    suite("choices,sums", written(plan, tmp_path / "plan.yaml"), output="runs")
    assert done == [0] * 6
    found = json.loads((tmp_path / "runs" / "suite.json").read_text())["tasks"]
    metrics = [("choices", 21, ["accuracy"]), ("sums", 21, ["number_match"])]
    assert [(row["task"], row["examples"], row["metrics"]) for row in found] == metrics
    for task, answer in (("choices", "[ABCD]"), ("sums", r"\d+ plus \d+ = (\d+) #### \1")):
        shown = read_metadata(tmp_path / "runs" / task / "super.parquet")[EXAMPLES]
        assert len(shown[1::2]) == 5
        assert all(re.fullmatch(answer, one) for one in shown[1::2])
        swift = json.loads((tmp_path / "runs" / task / "swift" / "elang.json").read_text())
        assert "examples" not in swift["task"]
        records = pd.read_parquet(tmp_path / "runs" / task / "joint" / "records.parquet")
        assert ("score_prompt_router" in records) == (task == "sums")
