"""Mistakes in options end in one paragraph: the option, its value and the remedy, without usage and types."""

from functools import wraps
from importlib import import_module

import pytest

from elang.cli.lightning import run
from elang.cli.verbs import main

URL = ["--url", "http://localhost:1"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("validate --model.model X", ["JointModule has no option --model.model", "put --model FinetuneModule before"]),
        ("fit --model.score x --model SwiftModule", ["SwiftModule has it: put --model SwiftModule before it"]),
        ("fit --model.lr fast", ["--model.lr must be a number, but it is 'fast'", "`elang fit --model.help Finetune"]),
        ("fit --model.layers two", ["--model.layers must be an integer, but it is 'two'"]),
        ("fit --model SwiftModul", ["no class 'SwiftModul' for --model", "Did you mean 'SwiftModule'?"]),
        ("fit --model elang.SwiftModul", ["no class 'elang.SwiftModul'", "Did you mean 'SwiftModule'?"]),
        ("fit --model runs/swift", ["no class 'runs/swift'", "name or folder is --model.model"]),
        ("fit --data Seq2SeqDate", ["no class 'Seq2SeqDate' for --data", "Did you mean 'Seq2SeqData'?"]),
        ("fit --model.laers 2", ["no option --model.laers", "Did you mean '--model.layers'?"]),
        ("fit --data.train_file x", ["no option --data.train_file", "Did you mean '--data.train'?"]),
        ("fit --data Seq2SeqData --data.label_words true", ["Seq2SeqData has no option --data.label_words", "have it"]),
        ("fit --data Seq2SeqData --data.sorce x", ["Seq2SeqData has no option --data.sorce", "'--data.source'?"]),
        ("validate --model.sampling.topp 1", ["Sampling has no option --model.sampling.topp", "sampling.top_p'?"]),
        ("predict --sampling.topp 1", ["Sampling has no option --sampling.topp", "Did you mean '--sampling.top_p'"]),
        ("predict --sampling 0.7", ["--sampling must be a mapping of 'temperature', 'top_p'", "but it is '0.7'"]),
        ("validate --model.sampling 0.7", ["--model.sampling must be a mapping", 'as "{temperature: 1}"']),
        ("fit --trainer.max_epoch 3", ["no option --trainer.max_epoch", "Did you mean '--trainer.max_epochs'?"]),
        ("fit --trainer.max_epochs many", ["--trainer.max_epochs must be an integer, but it is 'many'"]),
        ("fit --trainer.callbacks EarlyStoping", ["no class 'EarlyStoping'", "Did you mean 'EarlyStopping'?"]),
        ("fit --trainer.callbacks EarlyStopping", ["EarlyStopping needs --trainer.callbacks.monitor"]),
        ("fit --trainer.callbacks builtins.open", ["--trainer.callbacks needs a Callback, but it is 'builtins.open'"]),
        ("fit --model SwiftModule", ["SwiftModule needs --model.model", "`elang fit --model.help SwiftModule`"]),
        ("fit --model", ["--model, or one of its options --model.NAME, has no value"]),
        ("fit --data bad.csv", ["--data is the name of a class", "it is the file 'bad.csv'", "--data.train"]),
        ("ask --data bad.csv --url x", ["--data is the name of a class", "it is the file 'bad.csv'"]),
        ("ask", ["elang ask needs --url"]),
        ("predict --batch_size many", ["--batch_size must be an integer, but it is 'many'"]),
        ("augment --model x --output y.csv --candidates maskd", ["one of 'auto', 'masked'", "Did you mean 'masked'?"]),
        ("suite", ["elang suite needs an argument, TASKS"]),
        ("report a --output x.html b c", ["'b c' belongs to no option"]),
        ("crossfit --folds x", ["--folds", "'x'"]),
        ("fit --config no.yaml", ["--config: File does not exist", "no.yaml"]),
    ],
)
def test_a_mistake_on_the_command_line(line, words, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text("text,label\na,b\n")
    assert len(message(fails, line.split(), words)) < 400


@pytest.mark.parametrize(
    ("line", "option", "value"),
    [
        ("sweep joint --score a b --points 5", "score", ["a", "b"]),
        ("sweep --score a joint", "score", "a"),
        ("calibrate joint --max_regret 0.02 .01", "max_regret", [0.02, 0.01]),
        ("calibrate --score energy joint --max_drop -.1", "score", "energy"),
        ("suite glue --points read_here other", "points", ["read_here", "other"]),
        ("predict --swift_model a --super_model b --text question answer", "text", ["question", "answer"]),
        ("predict --swift_model a --super_model b --text question", "text", "question"),
        ("augment --model a --input b --output c --text 1 2", "text", ["1", "2"]),
        ("bench --swift_model a --super_model b --input c --shares .5 0.25", "shares", [0.5, 0.25]),
    ],
)
def test_several_values_are_a_list_in_all_verbs(line, option, value, monkeypatch):
    verb, *args = line.split()
    module, taken = import_module(f"elang.cli.{verb}"), {}
    function = getattr(module, verb)
    monkeypatch.setattr(module, verb, wraps(function)(lambda **options: taken.update(options)))
    assert main([verb, *args]) == 0
    assert taken[option] == value


def test_several_values_are_a_list_of_a_class(files):
    data = [
        "--model.swift_model",
        "a",
        "--model.super_model",
        "b",
        "--data.train",
        str(files[0]),
        "--data.text",
        "question",
        "no, it isn't",
        "--data.label",
        "intent",
    ]
    data += ["--data.label_names", "on", "1", "null"]
    config = run(
        "validate", [*data, "--model.quality", "accuracy", "f1", "--trainer.devices", "0", "1"], parse_only=True
    )
    found = config["data"]["init_args"]
    assert (found["text"], found["label"]) == (["question", "no, it isn't"], "intent")
    assert found["label_names"] == ["on", "1", "null"]
    assert (config["model"]["init_args"]["quality"], config["trainer"]["devices"]) == (["accuracy", "f1"], [0, 1])
    config = run(
        "fit", ["--model", "SwiftModule", "--model.model", "m", "--model.layer_map", "0", "3"], parse_only=True
    )
    assert config["model"]["init_args"]["layer_map"] == [0, 3]


def test_ask_takes_several_columns(tmp_path, fails):
    (tmp_path / "x.csv").write_text("a,b,label\n1,2,x\n3,4,y\n")
    args = [
        "ask",
        *URL,
        "--data.train",
        tmp_path / "x.csv",
        "--data.text",
        "a",
        "c",
        "--output",
        tmp_path / "r.parquet",
    ]
    fails(args, "has no column 'c'")


def test_a_value_that_only_the_trainer_knows_to_be_wrong(base_model, data_args, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The wrong value comes last and counts.
    args = ["fit", "--model.model", base_model, *data_args, "--trainer.accelerator", "cpu"]
    for option, words in (("accelerator", "accelerator='3x'"), ("strategy", "strategy='3x'"), ("devices", "`devices`")):
        message(fails, [*args, f"--trainer.{option}", "3x"], ["an option of --trainer", words])


@pytest.mark.parametrize(
    ("verb", "text", "words"),
    [
        ("fit", "trainer: {max_epochs: many}", ["--trainer.max_epochs must be an integer, but it is 'many'"]),
        ("fit", "model: {class_path: SwiftModule, init_args: {lr: fast}}", ["--model.lr must be a number", "'fast'"]),
        ("fit", "model: {class_path: SwiftModule, init_args: {laers: 2}}", ["SwiftModule has no option --model.laers"]),
        ("fit", "data: {class_path: Seq2SeqData, init_args: {fold: 0/2}}", ["Seq2SeqData has no option --data.fold"]),
        ("fit", "trainr: {max_epochs: 3}", ["no option trainr.max_epochs", "Did you mean '--trainer.max_epochs'?"]),
        ("fit", "data: {class_path: Seq2SeqDate}", ["no class 'Seq2SeqDate' for --data", "'Seq2SeqData'?"]),
        ("predict", "swift_modle: x", ["no option swift_modle", "Did you mean '--swift_model'?"]),
        ("predict", "swift_model: [a", ["A file of options cannot be read", "line 1"]),
    ],
)
def test_a_mistake_in_a_file_of_options(verb, text, words, fails, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    message(fails, [verb, "--config", path], words)


def message(fails, args, words):
    """What a command says that must fail, which is nothing but its error."""
    said = fails(args, *words)
    assert "usage:" not in said
    assert "class '" not in said.replace("no class '", "")
    return said
