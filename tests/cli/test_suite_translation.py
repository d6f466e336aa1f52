"""The shipped configurations of translation: parsed whole, and run for two steps on tiny models."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import QUIET, write_parallel, write_seq2seq

from elang.cli import suite_steps as suites
from elang.cli.suite import suite
from elang.cli.suite_plan import read_plan
from elang.cli.verbs import main

CONFIGS = Path(__file__).parents[2] / "configs" / "suite"
NAMES = sorted(path.stem for path in CONFIGS.glob("*translation*.yaml"))
OPTIONS = {
    flag.removeprefix("--trainer."): value == "true" for flag, value in zip(QUIET[2::2], QUIET[3::2], strict=True)
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return [str(write_seq2seq(folder / f"t5-{layers}", layers=layers)) for layers in (1, 2)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    write_parallel(tmp_path / "data" / "train", 120, 1)
    write_parallel(tmp_path / "data" / "val", 21, 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_names():
    assert NAMES == ["marian-translation", "own-translation", "t5-translation-paper", "t5-translation-small"]


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_parsed(name, here, capsys, monkeypatch):
    # Its models are not here.
    monkeypatch.setattr("elang.cli.suite_plan._check_models", lambda *_: None)
    plan = read_plan(str(CONFIGS / f"{name}.yaml"))
    tasks = list(plan["tasks"])
    suite(",".join(tasks), str(CONFIGS / f"{name}.yaml"), output="dry", dry_run=True)
    # A Super that only answers is not fitted.
    assert len(capsys.readouterr().out.splitlines()) == (4 if "super" in plan else 3) * len(tasks)
    for task in tasks:
        joint = yaml.safe_load((here / "dry" / task / "joint.yaml").read_text("utf-8"))
        assert joint["data"]["class_path"] == "Seq2SeqData"
        assert joint["trainer"]["precision"] == "32-true"
        given = joint["data"]["init_args"]
        if "hub" in given:
            assert len(given["hub"].partition("@")[2]) == 40
            assert given["hub_config"] in (
                f"{given['source']}-{given['target']}",
                f"{given['target']}-{given['source']}",
            )
            # The official test set, and nothing of it before.
            assert given["validation"] == "test"
            swift = yaml.safe_load((here / "dry" / task / "swift.yaml").read_text("utf-8"))
            assert swift["data"]["init_args"]["validation"] == "validation"


@pytest.mark.parametrize("name", NAMES)
def test_every_config_runs(name, here, tiny, monkeypatch):
    plan = read_plan(str(CONFIGS / f"{name}.yaml"))
    plan["swift_model"], plan["super_model"] = tiny
    task = next(iter(plan["tasks"]))
    files = {"train": "data/train", "validation": "data/val", "source": "en", "target": "de"}
    own = plan["tasks"][task]["all"]["data"]
    plan["tasks"] = {task: {"all": {"data": {**({"prompt": own["prompt"]} if "prompt" in own else {}), **files}}}}
    plan["all"]["data"] |= {
        "routing_fraction": 0.4,
        "max_length": 32,
        "max_target_length": 12,
    }
    plan["joint"].pop("data", None)
    plan["joint"]["model"]["latency"] = False
    for stage in ("super", "score", "swift", "joint"):
        if stage in plan:
            plan[stage]["trainer"] = {
                **plan[stage].get("trainer", {}),
                **OPTIONS,
                "accelerator": "cpu",
                "precision": "32-true",
            }
            if stage in ("super", "swift"):
                plan[stage]["trainer"] |= {"max_steps": 2, "enable_checkpointing": False}
    Path("plan.yaml").write_text(yaml.safe_dump(plan), "utf-8")
    monkeypatch.setattr(suites, "run_step", lambda step: main(step.command))
    suite(task, "plan.yaml", output="runs")
    (row,) = json.loads(Path("runs/suite.json").read_text("utf-8"))["tasks"]
    assert (row["task"], row["examples"], row["metrics"]) == (task, 21, ["bleu"])
    # The router routes where so few examples show it to be better.
    asked = plan["swift"]["model"].get("score")
    assert row["score"] in ([asked] if asked else ["nll_mean", "router"])
    # Points of 100, as a share.
    assert 0 <= row["super"] <= 1
    summary = json.loads(Path(f"runs/{task}/joint/summary.json").read_text("utf-8"))
    assert row["swift"] == pytest.approx(summary["qualities"]["bleu"]["swift"]["quality"] / 100)
    assert Path(f"runs/{task}/joint/lengths.png").stat().st_size > 1000


def test_missing_files_are_told_before_anything_runs(here, fails, monkeypatch):
    (here / "data" / "val.de").unlink()
    args = ["--config", str(CONFIGS / "own-translation.yaml"), "--output", "out", "--dry_run", "true"]
    fails(["suite", "manuals", *args], "manuals: There is no folder 'runs/large-base'", "hub id")
    monkeypatch.setattr("elang.cli.suite_plan._check_models", lambda *_: None)
    fails(["suite", "manuals", *args], "manuals: There is no file 'data/val.de'", "--data.target")
