"""Mistakes in options end in one paragraph: the option, its value and the remedy, without usage and types."""

import pytest

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
