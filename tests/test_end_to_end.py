"""The three verbs on a tiny pair, and what they leave behind."""

import json
import os
import shlex
import stat
import subprocess
import sys

import pandas as pd
import pytest
import torch
from conftest import FAST, QUIET, read_curve

from elang.cli.verbs import main
from elang.inference.predictor import JointPredictor
from elang.records.manifest import Manifest


@pytest.fixture(scope="module")
def joint(tmp_path_factory, joint_args):
    folder = tmp_path_factory.mktemp("joint")
    options = [
        "--model.output",
        str(folder),
        "--model.quality",
        "[accuracy, f1, matthews]",
        "--model.latency",
        "true",
    ]
    assert main(["validate", *joint_args, *options]) == 0
    return folder


def test_training_works(pair, data_args):
    """The Super learns what the sentiment words say; the Swift has one of its layers."""
    frame = pd.read_parquet(pair["records"])
    validation = frame[frame["split"] == "validation"]
    truth = pd.read_csv(data_args[3])["label"]
    assert (validation["prediction"].to_numpy() == truth.to_numpy()).mean() > 0.85
    assert json.loads((pair["swift"] / "config.json").read_text())["num_hidden_layers"] == 1


def test_the_folder_loads_with_plain_transformers(pair):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(pair["swift"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(pair["swift"])
    inputs = tokenizer(["the film was great"], return_tensors="pt", padding=True)
    with torch.no_grad():
        label = model.config.id2label[int(model(**inputs).logits.argmax())]
    found = JointPredictor(str(pair["swift"]), str(pair["super"]), threshold="inf")(["the film was great"])
    assert (found[0].label, found[0].answered_by) == (label, "swift")


def test_outputs_are_readable_by_whom_the_umask_says(base_model, pair, data_args, tmp_path):
    """The library of safetensors makes its files readable by their owner alone."""
    args = ["fit", "--model.model", str(base_model), "--model.output", str(tmp_path / "m"), *data_args, *FAST]
    before = os.umask(0o027)
    try:
        assert main([*args, "--trainer.max_steps", "1", "--trainer.default_root_dir", str(tmp_path)]) == 0
    finally:
        os.umask(before)
    for folder, mode in ((tmp_path, 0o640), (pair["swift"], 0o666 & ~before), (pair["root"], 0o666 & ~before)):
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
        assert {path.suffix for path in modes} >= {".json", ".safetensors"}
        assert {path: oct(found) for path, found in modes.items() if found != mode} == {}


def test_validate_ends_with_the_command_that_measures_seconds_and_the_verdict(
    pair, joint_args, files, tmp_path, capsys
):
    assert main(["validate", *joint_args, "--model.output", str(tmp_path / "joint")]) == 0
    lines = capsys.readouterr().out.splitlines()
    (place,) = [number for number, line in enumerate(lines) if "elang bench" in line]
    said, command, *verdict = lines[place - 1 :]
    assert "FLOPs" in said
    # This pair's default threshold defers everything.
    assert " ".join(verdict).startswith("Do not build this pair: at '1-SE' every input goes to the Super.")
    assert "seconds" in said
    expected = ["elang", "bench", "--swift_model", pair["swift"], "--super_model", pair["super"]]
    assert shlex.split(command) == [*map(str, [*expected, "--input", files[1], "--text", "text"])]
    # Records cannot be timed.
    args = [str(pair["records"]) if part == str(pair["super"]) else part for part in joint_args]
    assert main(["validate", *args, "--model.output", str(tmp_path / "recorded")]) == 0
    assert "elang bench" not in capsys.readouterr().out


def test_the_folder_goes_back_into_fit(pair, data_args, tmp_path):
    args = ["fit", "--model.model", str(pair["swift"]), "--model.output", str(tmp_path / "again")]
    assert main([*args, *data_args, *FAST, "--trainer.max_steps", "2"]) == 0
    # The thresholds were those of the old weights.
    assert Manifest.read(tmp_path / "again").thresholds == {}


def test_records_hold_every_example_in_order(joint, files):
    frame = pd.read_parquet(joint / "records.parquet")
    validation = frame[frame["split"] == "validation"]
    assert validation["id"].tolist() == list(range(len(pd.read_csv(files[1]))))
    names = ["bad", "good"]
    assert [names[i] for i in validation["label"]] == pd.read_csv(files[1])["label"].tolist()
    routing = frame[frame["split"] == "routing"]
    assert 0 < len(routing) < len(pd.read_csv(files[0])) / 2
    assert {"score_free_energy", "score_router", "swift_flops", "super_tokens", "key"} <= set(frame)


def test_curve_and_summary_agree_with_the_records(joint):
    frame = pd.read_parquet(joint / "records.parquet")
    frame = frame[frame["split"] == "validation"]
    summary = json.loads((joint / "summary.json").read_text())
    curve = read_curve(joint)
    for score in ("free_energy", "max_softmax", "router"):
        for row in curve[curve["score"] == score].itertuples():
            deferred = frame[f"score_{score}"] > row.threshold
            answer = frame["super_prediction"].where(deferred, frame["swift_prediction"])
            assert row.accuracy == pytest.approx((answer == frame["label"]).mean(), abs=1e-9)
            # Where everything is deferred unseen, the Swift does not run.
            scored = row.threshold > -float("inf")
            cost = (scored * frame["swift_flops"] + deferred * frame["super_flops"]).mean()
            assert row.flops == pytest.approx(cost, rel=1e-9)
    assert summary["qualities"].keys() == {"accuracy", "f1", "matthews"}
    assert summary["curve_points"]["written"] == summary["curve_points"]["of"] == len(curve)
    assert set(summary["latency"]) == {"swift", "super"}
    assert all(0 < found["at best batch"] <= found["batch 1"] for found in summary["latency"].values())
    assert (joint / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_thresholds_are_chosen_on_the_routing_slice(joint, pair):
    """The held-out entries use only the slice: recomputed by hand from its rows."""
    frame = pd.read_parquet(joint / "records.parquet")
    routing = frame[frame["split"] == "routing"]
    manifest = Manifest.read(joint / "elang.json")
    entry = manifest.thresholds["max_softmax"]["parity"]
    best = (routing["super_prediction"] == routing["label"]).mean()
    points = [float("inf"), *sorted(routing["score_max_softmax"].unique(), reverse=True)[1:], float("-inf")]
    for threshold in points:
        deferred = routing["score_max_softmax"] > threshold
        answer = routing["super_prediction"].where(deferred, routing["swift_prediction"])
        # One that costs as much as the Super alone is passed over.
        cost = (routing["swift_flops"] + routing["super_flops"] * deferred).mean()
        if (answer == routing["label"]).mean() >= best - 1e-12 and cost < routing["super_flops"].mean():
            break
    assert float(entry["threshold"]) == threshold
    assert entry["num_examples"] == len(routing)
    assert manifest.weights_sha256 == Manifest.read(pair["swift"]).weights_sha256


def test_fit_and_validate_choose_the_same_thresholds(joint, pair):
    """`fit` knows the Super from its records, `validate` runs it: one slice, one answer."""
    assert Manifest.read(joint / "elang.json").thresholds == Manifest.read(pair["swift"]).thresholds


def test_a_super_from_records_gives_the_same_report(joint, joint_args, pair, tmp_path):
    args = [str(pair["records"]) if a == str(pair["super"]) else a for a in joint_args]
    assert main(["validate", *args, "--model.output", str(tmp_path)]) == 0
    a, b = (pd.read_parquet(f / "records.parquet") for f in (joint, tmp_path))
    pd.testing.assert_frame_equal(a[sorted(b)], b[sorted(b)], check_exact=True)


def test_both_from_records_need_no_model(pair, joint_args, tmp_path):
    swift = tmp_path / "swift.parquet"
    data = joint_args[4:]
    assert main(["score", "--model.model", str(pair["swift"]), "--model.output", str(swift), *data]) == 0
    args = ["--model.swift_model", str(swift), "--model.super_model", str(pair["records"]), *data]
    assert main(["validate", *args, "--model.output", str(tmp_path / "joint")]) == 0
    assert len(pd.read_parquet(tmp_path / "joint" / "records.parquet")) > 61


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_black_box_super(pair, joint_args, files, tmp_path, suffix):
    """A table of bare answers is enough; its cost is given by hand."""
    answers = pd.read_csv(files[1])[["label"]].rename(columns={"label": "prediction"})
    answers.insert(0, "id", range(len(answers)))
    path = tmp_path / f"super.{suffix}"
    answers.to_csv(path, index=False) if suffix == "csv" else answers.to_json(path, orient="records", lines=True)
    args = [str(path) if a == str(pair["super"]) else a for a in joint_args]
    args = [
        *args,
        "--model.super_flops",
        "1e9",
        "--model.output",
        str(tmp_path),
    ]
    assert main(["validate", *args]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["qualities"]["accuracy"]["super"] == {"quality": 1.0, "cost": 1e9}
    assert "threshold file" in summary["thresholds_from"]


def test_test_split(joint_args, files, tmp_path):
    assert main(["test", *joint_args, "--data.test", str(files[1]), "--model.output", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["evaluated_on"] == "test"


def test_predictor_routes_as_the_thresholds_say(pair, files):
    texts = pd.read_csv(files[1])["text"].tolist()
    swift_only = JointPredictor(str(pair["swift"]), str(pair["super"]), threshold="inf")(texts)
    super_only = JointPredictor(str(pair["swift"]), str(pair["super"]), threshold="-inf")(texts)
    assert {p.answered_by for p in swift_only} == {"swift"}
    assert {p.answered_by for p in super_only} == {"super"}
    middle = sorted(p.score for p in swift_only)[30]
    mixed = JointPredictor(str(pair["swift"]), str(pair["super"]), threshold=middle)(texts)
    for kept, deferred, found in zip(swift_only, super_only, mixed, strict=True):
        by = deferred if found.score > middle else kept
        assert (found.id, found.label, found.answered_by) == (by.id, by.label, by.answered_by)
        # In batches of other inputs.
        assert found.probability == pytest.approx(by.probability, abs=1e-5)
        # Where nothing is kept, the Swift does not run, and there is no score.
        assert (found.score, deferred.score) == (kept.score, None)
    assert [one.id for one in mixed] == list(range(61))
    assert sum(p.answered_by == "super" for p in mixed) == 30


@pytest.mark.parametrize("score", ["router", "max_softmax"])
def test_predictor_with_other_scores_and_a_named_threshold(pair, files, score):
    texts = pd.read_csv(files[1])["text"].tolist()
    found = JointPredictor(str(pair["swift"]), str(pair["super"]), "defer 30%", score)(texts)
    assert 0 < sum(p.answered_by == "super" for p in found) < len(texts)


def test_predict_verb_from_file_table_and_standard_input(pair, files, tmp_path):
    models = ["--swift_model", str(pair["swift"]), "--super_model", str(pair["super"])]
    assert (
        main(
            [
                "predict",
                *models,
                "--input",
                str(files[1]),
                "--text",
                "[text]",
                "--output",
                str(tmp_path / "a"),
            ]
        )
        == 0
    )
    texts = pd.read_csv(files[1])["text"]
    (tmp_path / "lines.txt").write_text("\n".join(texts) + "\n")
    lines = str(tmp_path / "lines.txt")
    assert main(["predict", *models, "--input", lines, "--output", str(tmp_path / "b"), "--chunk", "7"]) == 0
    a, b = ([json.loads(x) for x in (tmp_path / n).read_text().splitlines()] for n in "ab")
    assert len(a) == 61
    assert list(a[0]) == ["id", "label", "probability", "score", "answered_by"]
    assert [x["id"] for x in a] == list(range(61))
    assert all(0.5 <= x["probability"] <= 1 for x in a)
    for x, y in zip(a, b, strict=True):
        assert (x["label"], x["answered_by"]) == (y["label"], y["answered_by"])
    done = subprocess.run(
        [sys.executable, "-m", "elang", "predict", *models],
        forked=False,
        input="great film\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label"] in ("good", "bad")


def test_the_predictor_needs_no_lightning(pair):
    code = (
        "import sys; from elang import JointPredictor\n"
        f"JointPredictor({str(pair['swift'])!r}, {str(pair['super'])!r})(['a great film'])\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('lightning', 'pytorch_lightning', 'torchmetrics')]\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_is_lazy():
    code = "import sys, elang; assert not {'torch', 'lightning', 'transformers'} & set(sys.modules); elang.SCORES"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_can_be_imported():
    import elang

    assert all(getattr(elang, name) is not None for name in elang.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = elang.nothing


def test_swift_without_a_super(base_model, data_args, tmp_path):
    """With hard='error' and no distillation no Super is needed; thresholds are by share."""
    args = [
        "fit",
        "--model",
        "SwiftModule",
        "--model.model",
        str(base_model),
        "--model.output",
        str(tmp_path / "s"),
    ]
    options = ["--model.distill_weight", "0", "--model.hard", "error", "--trainer.max_steps", "3"]
    assert main([*args, *options, *data_args, *FAST]) == 0
    manifest = Manifest.read(tmp_path / "s")
    assert set(manifest.thresholds["router"]) == {"defer 10%", "defer 20%", "defer 30%", "defer 50%"}
    assert 0 < manifest.thresholds["free_energy"]["defer 30%"]["deferred_share"] <= 0.3


@pytest.mark.parametrize("margin", ["pairwise", "ranking", "hinge"])
@pytest.mark.parametrize("off", ["distill", "margin", "router"])
def test_every_term_can_be_switched_off(base_model, data_args, pair, tmp_path, margin, off):
    args = [
        "fit",
        "--model",
        "SwiftModule",
        "--model.model",
        str(base_model),
        "--model.output",
        str(tmp_path / "s"),
    ]
    options = [
        "--model.super_records",
        str(pair["records"]),
        *(["--model.router", "false"] if off == "router" else [f"--model.{off}_weight", "0"]),
        "--model.margin",
        margin,
    ]
    assert main([*args, *options, *data_args, *FAST, "--trainer.max_steps", "2"]) == 0
    assert (tmp_path / "s" / "router.safetensors").exists() == (off != "router")


def test_a_checkpoint_can_stand_for_a_folder(base_model, data_args, pair, tmp_path):
    args = [
        "fit",
        "--model.model",
        str(base_model),
        "--model.output",
        str(tmp_path / "m"),
        *data_args,
        *QUIET,
    ]
    assert main([*args, "--trainer.max_steps", "3", "--trainer.default_root_dir", str(tmp_path)]) == 0
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    for model, out in ((checkpoint, "a"), (tmp_path / "m", "b")):
        out = str(tmp_path / f"{out}.parquet")
        assert main(["score", "--model.model", str(model), "--model.output", out, *data_args, *QUIET]) == 0
    a, b = (pd.read_parquet(tmp_path / f"{n}.parquet") for n in "ab")
    pd.testing.assert_frame_equal(a, b)


def test_differences_to_the_super_are_told_with_their_intervals(joint, joint_args, tmp_path, capsys):
    frame = pd.read_parquet(joint / "records.parquet").query("split == 'validation'")
    summary = json.loads((joint / "summary.json").read_text())
    for score, points in summary["operating_points"].items():
        for point in points.values():
            kept = frame[f"score_{score}"] <= float(point["threshold"])
            found, lost = point["to_super"], frame["gain"] * kept
            assert found["difference"] == pytest.approx(-lost.mean())
            assert found["low"] <= found["difference"] <= found["high"]
            assert (found.get("worse", 0), found.get("better", 0)) == ((lost > 0).sum(), (lost < 0).sum())
            super_ = summary["qualities"]["accuracy"]["super"]["quality"]
            assert point["qualities"]["accuracy"] == pytest.approx(super_ + found["difference"])
    assert main(["validate", *joint_args, "--model.output", str(tmp_path / "again")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    # Where everything is deferred, no answer differs.
    at = summary["operating_points"]["max_softmax"]["held out, 1-SE"]
    assert ("(right answers)" in said) == (at["deferred_share"] < 1)
    assert ("(McNemar's test: p = " in said) == ("p" in at["to_super"])
    assert "difference: the area minus that of max_softmax" in said


def test_validate_one_model(pair, data_args, capsys):
    args = ["validate", "--model", "FinetuneModule", "--model.model", str(pair["super"]), *data_args, *QUIET]
    assert main(args) == 0
    assert "accuracy on 61 examples of validation" in capsys.readouterr().out


def test_python_m_and_version():
    done = subprocess.run(
        [sys.executable, "-m", "elang", "--version"], forked=False, capture_output=True, text=True, check=True
    )
    import elang

    assert done.stdout.strip() == f"elang {elang.__version__}"


def test_one_data_module_serves_two_tokenizers(pair, files, tmp_path):
    """The second module reads the text through its own tokenizer, though both call it by the same name."""
    from conftest import VOCABULARY, write_model
    from lightning.pytorch import Trainer

    from elang import ScoreModule, TextClassificationData

    other = write_model(tmp_path / "other", labels=("bad", "good"), vocabulary=[*VOCABULARY[:5], *VOCABULARY[:4:-1]])
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    shared = TextClassificationData(validation=str(files[1]))
    for data, name in (
        (shared, "first"),
        (shared, "shared"),
        (TextClassificationData(validation=str(files[1])), "own"),
    ):
        model = str(pair["super"] if name == "first" else other)
        module = ScoreModule(model, ["bad", "good"], output=str(tmp_path / f"{name}.parquet"))
        Trainer(**quiet).validate(module, datamodule=data, verbose=False)
    a, b = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("shared", "own"))
    pd.testing.assert_frame_equal(a, b)


def test_a_head_of_other_labels_is_not_evaluated(pair, data_args, capsys):
    args = ["validate", "--model", "FinetuneModule", "--model.model", str(pair["super"]), *data_args, *QUIET]
    assert main([*args, "--data.label_names", "[good, bad]"]) == 2
    assert "cannot be evaluated" in capsys.readouterr().err


def test_test_one_model(pair, data_args, files, capsys):
    args = ["test", "--model", "FinetuneModule", "--model.model", str(pair["super"]), *data_args, *QUIET]
    assert main([*args, "--data.test", str(files[1])]) == 0
    assert "accuracy on 61 examples of test" in capsys.readouterr().out
    assert main(args) == 2
    assert "--data.test" in capsys.readouterr().err


def test_evaluation_modules_do_not_fit(joint_args, capsys):
    assert main(["fit", "--model", "JointModule", *joint_args]) == 2
    assert "only evaluates" in capsys.readouterr().err


def test_a_finetuned_swift_folder_starts_without_its_old_router(pair, data_args, tmp_path):
    args = ["fit", "--model.model", str(pair["swift"]), "--model.output", str(tmp_path / "again")]
    assert main([*args, *data_args, *FAST, "--trainer.max_steps", "1"]) == 0
    assert not (tmp_path / "again" / "router.safetensors").exists()


def test_a_report_folder_is_not_replaced_by_a_model(joint, base_model, data_args, capsys):
    args = ["fit", "--model.model", str(base_model), "--model.output", str(joint), *data_args, *FAST]
    assert main(args) == 2
    assert "not a model folder" in capsys.readouterr().err
    assert (joint / "records.parquet").exists()


def test_budgets_are_read_off(joint):
    summary = json.loads((joint / "summary.json").read_text())["qualities"]["accuracy"]
    point = summary["scores"]["free_energy"]["on_this_set"]["75% of the FLOPs"]
    assert point["cost"] <= 0.75 * summary["super"]["cost"]


def test_the_demo_keeps_the_supers_quality():
    """Read off what `make demo` left behind, as the notebooks do."""
    import os
    from pathlib import Path

    path = Path(os.environ.get("ELANG_DEMO", "runs/demo")) / "joint" / "summary.json"
    if not path.is_file():
        if os.environ.get("CI"):
            pytest.fail("ELANG_DEMO must name the demo's folder in CI")
        pytest.skip("run `make demo` first, or set ELANG_DEMO to its folder")
    summary = json.loads(path.read_text())
    pair = summary["operating_points"][summary["score"]]["held out, 1-SE"]
    # Answers of a few stories depend on the processor's rounding.
    assert pair["to_super"]["difference"] >= -0.01
    assert pair["speedup"] >= 2.5
    assert summary["qualities"]["accuracy"]["super"]["quality"] > 0.94
