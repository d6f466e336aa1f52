"""What earlier versions wrote, kept in tests/artefacts as they wrote it, is read today and says the same."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import QUIET

from elang import JointPredictor
from elang.cli.verbs import main
from elang.records.manifest import _FORMAT as MANIFEST_FORMAT
from elang.records.table import FORMAT

KEPT = sorted(Path(__file__).with_name("artefacts").glob("format-*"))


@pytest.fixture(params=KEPT, ids=lambda folder: folder.name)
def old(request, tmp_path, monkeypatch):
    """The files of one format, copied, in the current folder."""
    folder = shutil.copytree(request.param, tmp_path / "old")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def data():
    files = ["--data.train", "train.csv", "--data.validation", "dev.csv", "--data.routing_fraction", "0.25"]
    return [*files, "--data.batch_size", "16", *QUIET]


def test_every_format_is_kept():
    """`python tests/artefacts.py FORMAT` makes those of a new one."""
    numbers = {int(folder.name.removeprefix("format-")) for folder in KEPT}
    assert numbers == set(range(1, max(FORMAT, MANIFEST_FORMAT) + 1))


def test_an_old_pair_is_evaluated_as_it_was(old, data):
    models = ["--model.swift_model", "swift", "--model.super_model", "super.parquet"]
    assert main(["validate", *models, "--model.output", "again", *data]) == 0
    before, now = (json.loads((old / name / "summary.json").read_text()) for name in ("joint", "again"))
    for name, entry in before["qualities"].items():
        for model in ("swift", "super"):
            assert now["qualities"][name][model]["quality"] == pytest.approx(entry[model]["quality"], abs=1e-9)
    columns = [
        "split",
        "id",
        "key",
        "label",
        "swift_prediction",
        "super_prediction",
        "score_max_softmax",
        "score_router",
    ]
    a, b = (pd.read_parquet(old / name / "records.parquet") for name in ("joint", "again"))
    pd.testing.assert_frame_equal(a[columns], b[columns], atol=1e-4, rtol=1e-4)


def test_an_old_evaluation_is_certified_and_reported(old):
    assert main(["calibrate", "joint", "--max_regret", "0.4", "--confidence", "0.5", "--name", "anew"]) == 0
    thresholds = json.loads((old / "joint" / "elang.json").read_text())["thresholds"]["max_softmax"]
    assert thresholds["anew"]["threshold"] == pytest.approx(thresholds["certified"]["threshold"], abs=1e-6)
    assert main(["report", "joint", "--output", "page.html"]) == 0
    assert "parity" in (old / "page.html").read_text("utf-8")


def test_an_old_swift_has_another_default_threshold(old):
    manifest = json.loads((old / "swift" / "elang.json").read_text())
    kept = manifest["thresholds"]["max_softmax"]["parity"]
    with pytest.warns(UserWarning, match=r"no '1-SE', so 'parity' is used\. `elang validate`"):
        predictor = JointPredictor("swift", None, score="max_softmax")
    assert predictor.threshold == float(kept["threshold"])


@pytest.mark.parametrize("threshold", ["parity", "99%", "defer 30%", "certified"])
def test_an_old_swift_predictions_by_its_thresholds(old, threshold):
    kept = json.loads((old / "joint" / "elang.json").read_text())["thresholds"]["max_softmax"][threshold]
    records = pd.read_parquet(old / "joint" / "records.parquet").query("split == 'validation'")
    texts = pd.read_csv("dev.csv")["text"].tolist()
    predictor = JointPredictor("swift", None, threshold, thresholds="joint")
    assert predictor.threshold == float(kept["threshold"])
    asked = predictor.ask_swift(predictor.rows(texts))
    assert [score for _, score, _ in asked] == pytest.approx(records["score_max_softmax"].tolist(), abs=1e-4)
    assert [label for label, _, _ in asked] == [["bad", "good"][i] for i in records["swift_prediction"]]


def test_an_old_checkpoint_is_gone_on_with_and_evaluated(old, data):
    swift = ["--model", "SwiftModule", "--model.super_records", "super.parquet", "--model.score", "max_softmax"]
    swift += ["--model.layers", "1", "--model.lr", "5e-3", "--trainer.enable_checkpointing", "false"]
    fit = ["fit", "--model.model", "base", "--model.output", "more", "--trainer.max_epochs", "3"]
    assert main([fit[0], *swift[:2], *fit[1:], *swift[2:], *data, "--ckpt_path", "swift.ckpt"]) == 0
    assert (old / "more" / "elang.json").is_file()
    models = ["--model.swift_model", "swift.ckpt", "--model.super_model", "super.parquet"]
    assert main(["validate", *models, "--model.output", "again", *data]) == 0
    before, now = (json.loads((old / name / "summary.json").read_text()) for name in ("joint", "again"))
    own = [summary["qualities"]["accuracy"]["swift"]["quality"] for summary in (before, now)]
    assert own[0] == pytest.approx(own[1], abs=1e-9)
