"""What a newcomer runs into: untrained models, a slice too small, a run that was stopped, a table taken for text."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAST, QUIET, read_curve, write_data, write_model
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file, save_file

from elang import TextClassificationData
from elang.cli.progress import LogsEachEpoch, ProgressLines
from elang.cli.serve import _load_swift
from elang.cli.verbs import main
from elang.evaluation.cautions import cautions, little_to_gain
from elang.evaluation.labels import never_right
from elang.evaluation.slices import read_slice
from elang.evaluation.summary import Worth
from elang.files import folder_sha256
from elang.inference.options import PairOptions
from elang.inference.predictor import JointPredictor
from elang.models.course import Course, Evaluation
from elang.models.finetune import FinetuneModule
from elang.notices import forget_notices, notices
from elang.records.manifest import Manifest
from elang.tasks.kind import KINDS


@pytest.fixture(scope="module")
def joint(tmp_path_factory, joint_args):
    folder = tmp_path_factory.mktemp("first") / "intents" / "runs" / "joint"
    assert main(["validate", *joint_args, "--model.output", str(folder)]) == 0
    return folder


def test_a_class_that_was_not_learned_is_named(tmp_path, recwarn):
    """One example is too few to learn from, six that are all wrong too many to be chance."""
    frames = []
    for name, rows, odd, seed in (("train", 120, 1, 1), ("validation", 40, 6, 2)):
        frame = pd.read_csv(write_data(tmp_path / "whole.csv", rows, seed))
        frame.loc[: odd - 1, "label"] = "odd"
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
        frames.append(frame)
    base = write_model(tmp_path / "base")
    data = ["--data.train", str(tmp_path / "train.csv"), "--data.validation", str(tmp_path / "validation.csv")]
    data += ["--data.routing_fraction", "0"]
    fit = ["fit", "--model.model", str(base), *data, *FAST, "--model.output", str(tmp_path / "super")]
    # Once, at the very end, whatever ends the training and however often it is validated.
    assert main([*fit, "--trainer.max_steps", "9", "--trainer.val_check_interval", "0.5"]) == 0
    said = [str(w.message) for w in recwarn if "never right" in str(w.message)]
    assert len(said) == 1
    assert re.search(r"After \d+ steps", said[0])
    assert "'odd'" in said[0]
    assert re.search(r"\((\d+) of the \1 examples of '(good|odd)' are answered '(good|bad)'\)", said[0])
    assert re.search(r"say twice as long \(--trainer\.max_epochs \d+\)", said[0])


def test_a_super_that_is_no_better_is_told(pair, joint_args, files, tmp_path, capsys):
    """It says 'good', as the Swift does; the table, the page and the calibration tell their readers."""
    answers = pd.DataFrame({"prediction": ["good"] * len(pd.read_csv(files[1]))}).rename_axis("id").reset_index()
    answers.to_csv(tmp_path / "super.csv", index=False)
    args = [str(tmp_path / "super.csv") if a == str(pair["super"]) else a for a in joint_args]
    out = tmp_path / "joint"
    assert main(["validate", *args, "--model.super_flops", "1e9", "--model.output", str(out)]) == 0
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    found = json.loads((out / "summary.json").read_text())["cautions"]
    (useless,) = [one for one in found if one.startswith("the Super is right on ")]
    assert "always answering 'good' would be right on" in useless
    (gain,) = [one for one in found if "the Super is not shown to be better than the Swift" in one]
    assert printed.index(gain) < printed.index("With this in mind: on ")
    assert main(["report", str(out), "--output", str(tmp_path / "page.html")]) == 0
    page = re.sub(r"\s+", " ", (tmp_path / "page.html").read_text("utf-8")).replace("&#39;", "'")
    assert page.index(gain) < page.index("With this in mind: on ")
    shutil.copy(pair["swift"] / "elang.json", out)
    capsys.readouterr()
    assert main(["calibrate", str(out), "--max_regret", "0.1", "--split", "validation"]) == 0
    assert re.sub(r"\s+", " ", capsys.readouterr().out).startswith(f"Caution: {gain}.")
    for said in found:
        assert f"Caution: {said}." in printed
        assert f"Caution: {said}." in page


def test_a_pair_of_one_model_is_cautioned_of(pair, joint_args, tmp_path, capsys):
    args = [str(pair["swift"]) if a == str(pair["super"]) else a for a in joint_args]
    assert main(["validate", *args, "--model.output", str(tmp_path / "joint")]) == 0
    assert "Caution: Swift and Super are the same model." in capsys.readouterr().out


def test_a_super_of_unknown_cost_is_told(pair, joint_args, files, tmp_path, capsys):
    answers = pd.DataFrame({"prediction": pd.read_csv(files[1])["label"]}).rename_axis("id").reset_index()
    answers.to_csv(tmp_path / "super.csv", index=False)
    args = [str(tmp_path / "super.csv") if a == str(pair["super"]) else a for a in joint_args]
    assert main(["validate", *args, "--model.output", str(tmp_path / "joint")]) == 0
    said = capsys.readouterr().out
    assert "give it with --model.super_flops" in re.sub(r"\s+", " ", said)
    assert "-x" not in said
    assert re.search(r"held out, defer 10% +-[\d.]+ +[\d.]+ +[\d.]+% +- *\n", said)


@pytest.mark.parametrize(("given", "epochs"), [([], 3), (["--trainer.max_epochs", "1"], 1)])
def test_training_ends_by_itself(base_model, data_args, tmp_path, monkeypatch, capsys, given, epochs):
    """And says where what it has measured is."""
    monkeypatch.chdir(tmp_path)
    args = ["fit", "--model.model", str(base_model), "--model.output", str(tmp_path / "model"), *data_args]
    args += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", *given]
    said = []
    monkeypatch.setattr("elang.models.export.rank_zero_info", said.append)
    assert main(args) == 0
    assert ("training for 3 epochs" in capsys.readouterr().err) == (not given)
    (last,) = [one for one in said if one.startswith("the model is in")]
    assert "its weights are those of the last epoch; validation/accuracy" in last
    (folder,) = re.findall(r"metrics.csv in (\S+)", last)
    assert pd.read_csv(f"{folder}/metrics.csv")["epoch"].max() + 1 == epochs


def test_predict_says_who_answered_and_where_the_answers_are(pair, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = ["--swift_model", str(pair["swift"]), "--super_model", str(pair["super"])]
    args = ["predict", *models, "--input", str(files[1]), "--text", "text", "--threshold", "defer 30%"]
    assert main([*args, "--output", "answers.jsonl"]) == 0
    by = [json.loads(line)["answered_by"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    swift, super_ = by.count("swift"), by.count("super")
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"61 inputs, {swift} answered by the Swift and {super_} ({super_ / 61:.1%}) by the Super, at"
    )
    assert said.endswith("; answers in answers.jsonl")
    assert main(args) == 0
    assert "answers in" not in capsys.readouterr().err


def test_a_model_that_knows_its_training_texts_by_heart_is_told_of(pair, files, data_args, tmp_path):
    """As if: the labels of the validation file are the wrong way round."""

    def notes(args):
        forget_notices()
        records = str(tmp_path / "records.parquet")
        assert main(["score", "--model.model", str(pair["super"]), *args, *QUIET, "--model.output", records]) == 0
        return [one["text"] for one in notices() if one["kind"] == "learned-by-heart"]

    assert notes(data_args) == []
    other = str(write_data(tmp_path / "other.csv", 61, 2, noise=0.95))
    data = ["--data.train", str(files[0]), "--data.validation", other, "--data.routing_fraction", "0"]
    (said,) = notes(data)
    assert re.match(r"accuracy is 0\.\d+ on 'train' and 0\.\d+ on 'validation', so the model has learned", said)


def test_new_texts_are_advised_where_the_loss_fell(monkeypatch):
    forget_notices()
    found = Course("accuracy", [Evaluation(n, n, 1 / n, 0.01, 0.8, 900) for n in (1, 2)])
    monkeypatch.setattr("elang.models.course._right_in_training", lambda trainer: (0.95, 256))
    trainer = SimpleNamespace(optimizers=[SimpleNamespace(defaults={"lr": 1e-4})])
    found.note(trainer, 2, chosen=False)
    (said,) = [one["text"] for one in notices() if one["kind"] == "learned-by-heart"]
    assert said.endswith("fell to the end, so fewer epochs are no remedy, but new texts are: --data.transfer.")


def test_the_swift_alone_needs_no_super(pair, files, tmp_path, capfd, fails):
    args = ["predict", "--swift_model", pair["swift"], "--input", files[1], "--text", "text", "--output"]
    assert main([*map(str, args), str(tmp_path / "alone.jsonl")]) == 0
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("61 inputs, all answered by the Swift, as no --super_model was given; answers in ")
    both = [*map(str, args), str(tmp_path / "both.jsonl"), "--super_model", str(pair["super"]), "--threshold", "inf"]
    assert main(both) == 0
    assert (tmp_path / "alone.jsonl").read_bytes() == (tmp_path / "both.jsonl").read_bytes()
    fails([*args, tmp_path / "no.jsonl", "--threshold", "99%"], "--threshold 99% passes inputs on", "--super_model")


def test_a_swift_that_gives_one_label_is_told(pair, files, tmp_path):
    """Where it answers all there is no other label among the answers."""
    args = ["predict", "--swift_model", str(pair["swift"]), "--super_model", str(pair["super"])]
    args += ["--input", str(files[1]), "--text", "text", "--threshold"]
    for threshold, number in (("defer 50%", 1), ("inf", 0)):
        forget_notices()
        assert main([*args, threshold, "--output", str(tmp_path / f"{number}.jsonl")]) == 0
        said = [each["text"] for each in notices() if each["kind"] == "one-label"]
        assert len(said) == number
        assert all(re.match(r"100.0% of the \d+ inputs that the Swift answers get '\w+', and ", each) for each in said)


def test_an_evaluation_that_is_replaced_is_told(joint_args, tmp_path, recwarn):
    for again in (False, True):
        assert main(["validate", *joint_args, "--model.output", str(tmp_path / "joint")]) == 0
        assert _told(recwarn, f"The evaluation in '{tmp_path / 'joint'}' is replaced when this one ends") == again


def test_a_good_super_is_not_cautioned_of(joint):
    summary = json.loads((joint / "summary.json").read_text())
    assert summary["qualities"]["accuracy"]["super"]["quality"] > summary["qualities"]["accuracy"]["swift"]["quality"]
    assert not [said for said in summary["cautions"] if "the Super is" in said]
    assert little_to_gain(torch.tensor([1.0] * 30 + [0.0] * 70), "right answers") == ""
    assert "+0.00 to +0.00" in little_to_gain(torch.zeros(50), "right answers")


def test_a_regression_has_no_classes(joint):
    class Answers:
        kind, more = KINDS["regression"], {}
        gain, swift_flops, super_flops = torch.ones(9), torch.ones(9), torch.ones(9)

    assert cautions(Answers(), ["score"], Worth(None, "negative absolute error"))[1] == []


def test_many_classes_are_counted():
    class Answers:
        kind, more = KINDS["classification"], {}
        label = torch.arange(150).repeat(5)
        # Of the first class all are right, and one of the second: more than always answering one would be.
        swift, super_ = torch.zeros_like(label), label
        swift[1] = 1
        gain = (swift != label).double()
        swift_flops, super_flops, more = gain, gain, {}

    denied, limited = cautions(Answers(), [f"class {i}" for i in range(150)], Worth(1.0, "right answers"))
    assert len(limited) == 1
    assert "'class 9' and 140 more" in limited[0]
    assert not [said for said in denied if "always answering" in said]


def test_a_slice_that_is_too_small_names_the_ways_out(joint_args, tmp_path, fails):
    """First the split that has enough examples, then the share to hold out."""
    joint = tmp_path / "joint"
    assert main(["validate", *joint_args, "--model.output", str(joint), "--data.routing_fraction", "0.2"]) == 0
    held_out, evaluated = (len(read_slice(joint, split, "max_softmax").key) for split in ("routing", "validation"))
    assert held_out < evaluated
    allowed = 1 - 0.05 ** (1 / evaluated)
    said = fails(["calibrate", joint, "--max_regret", allowed + 1e-6], f"at least {evaluated}", f"slice has {held_out}")
    assert said.index(f"--split validation, which has {evaluated}") < said.index("--data.routing_fraction 0.")
    share = float(re.search(r"routing_fraction (0\.\d+) or above", said)[1])
    assert 0.2 * evaluated / held_out < share < 0.2 * 1.5 * evaluated / held_out
    said = fails(["calibrate", joint, "--max_regret", "1e-4"], "a larger --max_regret")
    assert "--split" not in said
    assert "--data.routing_fraction" not in said
    fails(["calibrate", joint, "--max_regret", "1e-4", "--split", "validation"], "more examples of 'validation'")


def test_the_bar_of_a_terminal_counts_from_one_and_names_splits(monkeypatch, files):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    trainer = Trainer(accelerator="cpu", logger=CSVLogger("."), max_epochs=3, enable_checkpointing=False)
    bar, data = trainer.progress_bar_callback, TextClassificationData(str(files[0]), str(files[1]))
    bar.setup(trainer, None, "fit")
    ProgressLines().setup(trainer, None, "fit")
    assert bar._get_train_description(0) == "epoch 1 of 3"
    assert "v_num" not in bar.get_metrics(trainer, None)
    trainer.datamodule = data
    assert bar.validation_description == data.eval_splits[0].replace("routing", "the routing slice")


def test_a_stopped_fit_is_no_success(base_model, data_args, tmp_path):
    """It ends with the signal's code, says what to go on from, and has left one folder."""
    args = ["fit", "--model.model", str(base_model), "--model.output", str(tmp_path / "model"), *data_args]
    args += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "100000", "--trainer.enable_progress_bar", "false"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "elang", *args], forked=False, cwd=tmp_path, stdout=said, stderr=said, env=os.environ
        )
        try:
            end = time.monotonic() + 240
            while not list(tmp_path.glob("runs/*/checkpoints/*.ckpt")):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 128 + signal.SIGTERM
        finally:
            process.kill()
    text = (tmp_path / "said").read_text()
    assert "Tip:" not in text
    kept = re.search(r"elang: SIGTERM stopped `elang fit`.*--ckpt_path (\S+)", text)[1]
    assert (tmp_path / kept).is_file()
    assert not (tmp_path / "model").exists()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["version_0"]
    names = {path.name.split(".")[0] for path in (tmp_path / "runs" / "version_0").iterdir()}
    assert {"config", "metrics", "events", "checkpoints"} <= names


def test_a_model_that_was_not_written_is_no_hub_id(pair, fails, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    models = ["--swift_model", "runs/swift", "--super_model", pair["super"]]
    said = fails(["predict", *models], "no model folder 'runs/swift'", "elang fit")
    assert "hub" not in said
    fails(["predict", "--swift_model", "runs/swift@abc", "--super_model", pair["super"]], "cannot be loaded", "hub id")


def test_a_table_is_not_taken_for_lines(pair, files, fails):
    models = ["--swift_model", pair["swift"], "--super_model", pair["super"]]
    for verb in ("predict", "bench"):
        fails([verb, *models, "--input", files[1]], "validation.csv", "--text")


def test_a_threshold_that_was_not_made_names_what_makes_it(pair, fails):
    models = ["--swift_model", pair["swift"], "--super_model", pair["super"]]
    fails(["predict", *models, "--threshold", "certified"], "'certified'", "elang calibrate", "'parity'")


def test_a_slice_that_the_swift_allows_to_be_wider(pair, joint_args, tmp_path, fails):
    joint = tmp_path / "joint"
    assert main(["validate", *joint_args, "--model.output", str(joint), "--data.routing_fraction", "0.05"]) == 0
    said = fails(["calibrate", joint, "--max_regret", "0.1", "--output", pair["swift"]], "29 examples")
    assert "run `elang validate` with --data.routing_fraction 0.25" in said
    assert "made anew" not in said


@pytest.mark.parametrize(
    ("speedup", "warned"), [(0.83, True), (1.2, False), (None, False), ("inf", False), (0.999, False)]
)
def test_a_pair_that_is_dearer_than_its_super_is_warned_of(pair, tmp_path, recwarn, speedup, warned):
    manifest = Manifest.read(pair["swift"])
    for name, entry in manifest.thresholds["max_softmax"].items():
        # Some are kept: what defers everything costs what the Super costs.
        entry |= {"threshold": -0.9, "speedup": {"1-SE": speedup, "defer 10%": 1.5}.get(name, 0.9)}
    manifest.write(tmp_path / "elang.json")
    JointPredictor(str(pair["swift"]), str(pair["super"]), thresholds=str(tmp_path / "elang.json"))
    assert any("costs more than the Super alone" in str(w.message) for w in recwarn) == warned
    if warned:
        assert any("0.83x" in str(w.message) and "at 'defer 10%'" in str(w.message) for w in recwarn)


def test_a_pair_that_saves_nothing_sends_all_to_the_super_and_says_so(pair, tmp_path, recwarn):
    manifest = Manifest.read(pair["swift"])
    manifest.thresholds["max_softmax"]["1-SE"].update(threshold=-math.inf, speedup=0.83)
    manifest.write(tmp_path / "elang.json")
    found = JointPredictor(str(pair["swift"]), str(pair["super"]), thresholds=str(tmp_path / "elang.json"))
    assert {answer.answered_by for answer in found(["good bad", "very good"])} == {"super"}
    (said,) = (str(w.message) for w in recwarn if "saves nothing at the quality of '1-SE'" in str(w.message))
    assert "every input goes to the Super, without the Swift" in said
    # It costs what the Super costs, also where an earlier version counted the Swift beside it.
    assert "0.83" not in said


def test_a_swift_of_an_earlier_version_is_served_by_parity(pair, tmp_path, recwarn):
    manifest = Manifest.read(pair["swift"])
    del manifest.thresholds["max_softmax"]["1-SE"]
    # As in files of before: parity could cost more than the Super alone.
    manifest.thresholds["max_softmax"]["parity"] |= {"threshold": -0.6, "speedup": 0.83}
    manifest.write(tmp_path / "elang.json")
    options = PairOptions(thresholds=str(tmp_path / "elang.json"))
    found = _load_swift(str(pair["swift"]), str(pair["super"]), pair=options, remote=False)
    assert found.threshold == manifest.threshold("parity")
    said = [str(w.message) for w in recwarn]
    assert any("no '1-SE', so 'parity' is used" in text for text in said)
    assert any("At the threshold 'parity' the pair costs more" in text for text in said)


def test_thresholds_know_their_speedup(joint, pair):
    """As the curve has it at their deferred share, in what `fit` writes and in what `validate` writes."""
    frame = pd.read_parquet(joint / "records.parquet").query("split == 'routing'")
    for folder in (joint, pair["swift"]):
        for entry in Manifest.read(folder).thresholds["max_softmax"].values():
            deferred = frame["score_max_softmax"] > float(entry["threshold"])
            scored = float(entry["threshold"]) > -math.inf
            cost = (scored * frame["swift_flops"] + frame["super_flops"] * deferred).mean()
            assert entry["speedup"] == pytest.approx(frame["super_flops"].mean() / cost, rel=1e-6)


def test_help_of_a_group_without_a_class(capsys):
    for option, words in (("--data.help", "--data.train"), ("--model.help", "--model.swift_model")):
        with pytest.raises(SystemExit) as end:
            main(["validate", option])
        assert end.value.code in (0, None)
        assert words in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["fit", "--model", "SwiftModule", "--model.help"])
    assert "--model.super_records" in capsys.readouterr().out


def test_help_begins_with_our_options(capsys):
    """Of the class that is asked for; Lightning's many come last, and a line says how to see fewer."""
    for args, ours in (([], "--model.label_smoothing"), (["--model", "SwiftModule"], "--model.super_records")):
        with pytest.raises(SystemExit):
            main(["fit", *args, "--help"])
        said = capsys.readouterr().out
        lines = [f"\n  {option}" for option in (ours, "--data.train", "--ckpt_path", "--trainer.max_epochs")]
        places = [said.index(line) for line in lines]
        assert places == sorted(places)
        assert places[0] < 8_000
        assert f"`elang fit --model.help {args[-1] if args else 'FinetuneModule'}`" in " ".join(said.split())
        assert "--model.label_names" not in said, "the data give them"
        assert ":class:" not in said[: places[3]]
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    assert "--model.top_k" in capsys.readouterr().out


def test_a_run_that_is_refused_leaves_no_folder_of_logs(base_model, data_args, tmp_path, monkeypatch, fails):
    """Whichever check refuses it; a run that has begun keeps its folder."""
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--model.model", base_model, *data_args, "--trainer.accelerator", "cpu"]
    fit += ["--trainer.enable_progress_bar", "false", "--model.output", tmp_path / "model"]
    (tmp_path / "empty.csv").write_text("text,label\n,good\n")
    # While data are read, and while the module is prepared.
    fails([*fit, "--data.validation", tmp_path / "empty.csv"], "empty.csv")
    fails([*fit, "--model", "SwiftModule"], "--model.super_records is not set")
    assert not [*(tmp_path / "runs").glob("version_*")]
    monkeypatch.setattr(FinetuneModule, "on_train_batch_end", _fails_late, raising=False)
    with pytest.raises(RuntimeError, match="late"):
        main([*map(str, fit)])
    assert [path.name for path in (tmp_path / "runs").glob("version_*")] == ["version_0"]


def test_a_run_that_is_stopped_before_its_first_step_leaves_no_folder_of_logs(
    base_model, data_args, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    # Before Lightning handles the signal, which it then does after a step.
    monkeypatch.setattr(LogsEachEpoch, "on_fit_start", lambda *about: os.kill(os.getpid(), signal.SIGTERM))
    fit = ["fit", "--model.model", base_model, *data_args, "--trainer.accelerator", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, fit), "--trainer.enable_progress_bar", "false", "--model.output", str(tmp_path / "model")])
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not [*(tmp_path / "runs").glob("version_*")]


def test_a_records_file_that_is_replaced_is_told_and_stays_the_same(pair, files, tmp_path, recwarn):
    """What says nothing about the answers is not kept with them."""
    score = ["score", "--model.model", pair["super"], "--data.validation", files[1], *QUIET, "--model.output"]
    merge = ["merge", tmp_path / "r.parquet", "--output"]
    for command, output in ((score, tmp_path / "r.parquet"), (merge, tmp_path / "m.parquet")):
        args, contents = [*map(str, [*command, output])], []
        for again in (False, True):
            assert main(args) == 0
            assert _told(recwarn, f"'{output}' is there already, and is replaced") == again
            contents.append(output.read_bytes())
        assert contents[0] == contents[1]
    # A part is written beside it.
    assert main([*map(str, [*score, tmp_path / "r.parquet"]), "--model.parts", "2", "--model.part", "0"]) == 0
    assert not _told(recwarn, "is replaced")


def _told(recwarn, text):
    """Whether a note says it, of those since the last call."""
    said = [str(w.message) for w in recwarn]
    recwarn.clear()
    return any(text in each for each in said)


def _fails_late(self, *batch):
    raise RuntimeError("late")


def test_a_swift_that_is_too_large_is_told_before_it_is_trained(
    pair, base_model, data_args, tmp_path, monkeypatch, recwarn
):
    """And at the end what its router reads, of which candidates."""
    said = []
    monkeypatch.setattr("elang.models.routing_slice.rank_zero_info", said.append)
    args = ["fit", "--model", "SwiftModule", "--model.model", base_model, "--model.super_records", pair["records"]]
    args += ["--trainer.max_steps", "1", "--model.output", tmp_path / "swift", *data_args, *FAST]
    assert main([*map(str, args)]) == 0
    (large,) = [str(w.message) for w in recwarn if "FLOPs, so no threshold" in str(w.message)]
    # Of the same layers, and with the router beside them.
    assert re.match(r"The Swift takes 10\d% of the Super's FLOPs, so no threshold saves anything", large)
    (router,) = said
    assert re.match(r"'router', the score that predicts how much asking the Super helps, reads [\w ]+$", router)


def test_the_page_is_named_after_the_task(joint, tmp_path, recwarn):
    for again in (False, True):
        assert main(["report", str(joint), "--output", str(tmp_path / "page.html")]) == 0
        assert _told(recwarn, "page.html' is there already, and is replaced") == again
    assert "<h1>Joint inference: validation.csv (label)</h1>" in (tmp_path / "page.html").read_text("utf-8")
    # An evaluation of an earlier version does not say what was asked; its folder does.
    summary = json.loads((joint / "summary.json").read_text())
    assert summary.pop("task") == "validation.csv (label)"
    earlier = tmp_path / "intents" / "joint"
    shutil.copytree(joint, earlier)
    (earlier / "summary.json").write_text(json.dumps(summary))
    assert main(["report", str(earlier), "--output", str(tmp_path / "page.html")]) == 0
    assert "<h1>Joint inference: intents</h1>" in (tmp_path / "page.html").read_text("utf-8")
    # Of two pairs on one task the folders are named, too.
    assert main(["report", str(joint), str(earlier), str(joint), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    assert (
        "<h1>Joint inference: validation.csv (label), intents 1, intents 2, validation.csv (label), intents 3</h1>"
        in page
    )


@pytest.mark.parametrize("folder", ["runs/joint", "runs/rte/joint"])
def test_the_working_directory_names_no_figure(folder, joint, tmp_path, monkeypatch):
    shutil.copytree(joint, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    name = "rte" if "rte" in folder else "page"
    for given in (folder, tmp_path / folder):
        assert main(["report", str(given), "--output", "page.html"]) == 0
    figures = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "page_files").iterdir()}
    assert figures == {name}


def test_equal_curves_share_a_line(joint_args, tmp_path, monkeypatch, capsys):
    """A router that is max_softmax would hide it."""
    from matplotlib.figure import Figure

    drawn = []
    legend = Figure.legend

    def spy(figure, handles, labels, **options):
        names = {"deferring at random": "random", "oracle (knows both answers)": "oracle"}
        drawn.extend(names.get(label, label) for label in labels)
        return legend(figure, handles, labels, **options)

    monkeypatch.setattr(Figure, "legend", spy)
    assert main(["validate", *joint_args, "--model.output", str(tmp_path / "joint")]) == 0
    curve, shares = read_curve(tmp_path / "joint"), np.linspace(0, 1, 101)
    points = {
        name: np.interp(shares, part["deferred_share"], part["accuracy"]) for name, part in curve.groupby("score")
    }
    groups = [label.split(" = ") for label in drawn if label.split(" = ")[0] in points]
    for first, *others in groups:
        # Ties of scores in float32 may move a point or two.
        assert all(np.abs(points[other] - points[first]).max() < 0.02 for other in others)
    assert sorted(name for group in groups for name in group) == sorted(points)
    # The table has the same rule: what it leaves out is in one label.
    told = dict(re.findall(r"Left out, equal to '(.*?)': (.*?)\.", " ".join(capsys.readouterr().out.split())))
    same = {(group[0], tuple(sorted(group[1:]))) for group in groups if len(group) > 1}
    left_out = {(first, tuple(sorted(re.findall("'(.*?)'", others)))) for first, others in told.items()}
    assert same == {group for group in left_out if group[0] in points}
    # Of two classes these two are always one order.
    assert any({"margin", "max_softmax"} <= set(label.split(" = ")) for label in drawn)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("review: {text}", "review: {text}"),
        ("{text}", "{text}"),
        ("[a] {text} # b", "[a] {text} # b"),
        ('"quoted": {text}', '"quoted": {text}'),
        ("ä\n{text}:", "ä\n{text}:"),
        ("null", None),
    ],
)
def test_a_prompt_is_taken_as_it_is(given, wanted, files):
    """YAML would make a mapping of it."""
    from elang.cli.lightning import run

    data = ["--data", "TextClassificationData", "--data.validation", str(files[1]), "--model.model", "m"]
    options = (["--data.prompt", given], [f"--data.prompt={given}"], [f"--data.init_args.prompt={given}"])
    for args in [*([*data, *option] for option in options), [*data[:2], *options[0], *data[2:]]]:
        assert run("score", args, parse_only=True)["data"]["init_args"]["prompt"] == wanted


def test_an_option_is_no_prompt(files, fails):
    args = ["--data.validation", files[1], "--model.model", "m", "--data.prompt", "--data.batch_size=1"]
    fails(["score", *args], "--data, or one of its options --data.NAME, has no value")


def test_another_super_is_told_wherever_a_threshold_is_used(pair, joint_args, tmp_path, capsys):
    """With whose answers thresholds and router were made is known from the records; a file of before says nothing."""
    manifest = Manifest.read(pair["swift"])
    assert manifest.super_sha256 == folder_sha256(pair["super"])
    other = tmp_path / "other"
    shutil.copytree(pair["super"], other)
    (weights,) = other.glob("*.safetensors")
    save_file({name: 1.01 * tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    own = Manifest.read(other)
    own.weights_sha256 = folder_sha256(other)
    own.write(other / "elang.json")

    def told(super_, **options):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            JointPredictor(str(pair["swift"]), str(super_), **options)
            _load_swift(str(pair["swift"]), str(super_), pair=PairOptions(**options), remote=False)
        return [str(w.message) for w in seen if "another Super" in str(w.message)]

    assert told(pair["super"]) == []
    assert told(other, threshold=0.0) == []
    for said in (found := told(other, threshold="99%")):
        assert f"'{other}'" in said
        assert "is it the right folder?" in said
        assert "--thresholds JOINT/elang.json" in said
    assert len(found) == 2
    args = [str(other) if a == str(pair["super"]) else a for a in joint_args]
    assert main(["validate", *args, "--model.output", str(tmp_path / "joint")]) == 0
    first = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "Caution: the Swift's router and thresholds were made with the answers of another Super" in first
    assert first.index("of another Super") < first.index("With this in mind")
    assert f"--super_model {other} --thresholds {tmp_path / 'joint' / 'elang.json'} --input" in first
    # Thresholds that were chosen with it are its own.
    assert told(other, thresholds=str(tmp_path / "joint" / "elang.json")) == []
    # A file of an earlier version.
    del manifest.chosen_on["super_sha256"]
    manifest.write(tmp_path / "elang.json")
    assert told(other, thresholds=str(tmp_path / "elang.json")) == []


def test_a_threshold_is_named_as_the_table_does(pair, fails, tmp_path):
    named = Manifest.read(pair["swift"]).thresholds["max_softmax"]
    predictor = JointPredictor(str(pair["swift"]), str(pair["super"]), threshold="held out, 99%")
    assert predictor.threshold == float(named["99%"]["threshold"])
    args = ["predict", "--swift_model", pair["swift"], "--super_model", pair["super"], "--text", "text"]
    args += ["--input", tmp_path / "in.csv", "--output", tmp_path / "out.jsonl"]
    (tmp_path / "in.csv").write_text("text\ngood\n")
    fails([*args, "--threshold", "read here, parity"], "on the evaluated examples themselves", "Give 'parity'")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([0, 0, 0], "'b', 'c' (6 of the 6 examples of 'b' are answered 'a')"),
        ([0, 2, 2], "'b' (6 of the 6 examples of 'b' are answered 'c')"),
        ([0, -1, 2], "'b' (6 of the 6 examples of 'b' are answered with none of the labels)"),
        ([0, 1, 2], ""),
    ],
)
def test_what_is_answered_in_place_of_a_class_is_told(answers, said):
    label = torch.tensor([0] * 5 + [1] * 6 + [2] * 5)
    assert never_right(torch.tensor(answers)[label], label, ["a", "b", "c"]) == said


@pytest.mark.parametrize(
    ("worse", "better", "words"),
    [
        (
            2,
            6,
            "not shown to be better than the Swift on these 200 examples (difference +2.00 points, right answers; ",
        ),
        (
            30,
            3,
            "worse than the Swift on these 200 examples (difference -13.50 points, right answers; 95% interval",
        ),
    ],
)
def test_a_super_that_is_worse_is_no_super_that_is_as_good(worse, better, words):
    gain = torch.tensor([-1.0] * worse + [1.0] * better + [0.0] * (200 - worse - better))
    said = little_to_gain(gain, "right answers")
    assert said.startswith(f"the Super is {words}")
    assert ("is it the right folder?" in said) == (worse > better)
    # An unbounded worth has no points.
    assert "points" not in little_to_gain(gain, "negative absolute error", bounded=False)


@pytest.mark.parametrize(("swift_wrong", "super_wrong", "verdict"), [(5, 2, True), (2, 2, True), (18, 12, False)])
def test_the_first_caution_says_which_model_to_use(swift_wrong, super_wrong, verdict):
    """Where the Super leads by little, and that may be chance; by more, there are too few examples to say so."""

    class Answers:
        kind = KINDS["classification"]
        label = torch.arange(2).repeat(100)
        swift, super_ = label.clone(), label.clone()
        swift[:swift_wrong] = 1 - label[:swift_wrong]
        super_[-super_wrong:] = 1 - label[-super_wrong:]
        gain = (super_ == label).double() - (swift == label).double()
        swift_flops, super_flops, more = torch.ones(200), torch.full((200,), 4.0), {}

    denied, _ = cautions(Answers(), ["a", "b"], Worth(1.0, "right answers"))
    lead = (swift_wrong - super_wrong) / 2
    assert len(denied) == 1 + verdict
    if verdict:
        assert denied[0].startswith("use the Swift alone, ")
        assert denied[0].endswith(f": 4.00x fewer FLOPs, {lead:.2f} points below the Super")
    assert denied[-1].startswith("the Super is not shown to be better")
