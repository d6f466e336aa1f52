"""What a run shows: other libraries' noise is left out, and long steps tell how far they are."""

import contextlib
import logging
import re
import subprocess
import sys
import time
import warnings

import pytest

import elang.terminal
from elang import JointPredictor
from elang.cli.verbs import main
from elang.method.scores import SEQUENCE_SCORES
from elang.terminal import _NOISE, Progress, quiet_libraries, say_table, tell, told_to_users, waiting

SAID = [
    ("torchao", "Failed to load /x/torchao/_C_mxfp8.so: Could not load this library", False),
    ("torch.utils._pytree", "<enum 'K'> is an Enum subclass and is now natively supported by torch.compile", False),
    ("lightning.fabric.utilities.rank_zero", "Seed set to 0", False),
    ("lightning.pytorch.utilities.rank_zero", "GPU available: True (cuda), used: True", False),
    ("lightning.pytorch.utilities.rank_zero", "TPU available: False, using: 0 TPU cores", False),
    ("lightning.pytorch.utilities.rank_zero", "💡 Tip: For seamless cloud logging", False),
    ("lightning.pytorch.utilities.rank_zero", "`Trainer.fit` stopped: `max_epochs=3` reached.", False),
    ("lightning.pytorch.utilities.rank_zero", "`Trainer.fit` stopped: `max_time` reached.", True),
    ("lightning.pytorch.utilities.rank_zero", "the model is in super", True),
    ("lightning.pytorch.accelerators.cuda", "LOCAL_RANK: 0 - CUDA_VISIBLE_DEVICES: [0]", False),
    ("torch.utils._pytree", "another warning", True),
]
WARNED = [
    ("`isinstance(treespec, LeafSpec)` is deprecated", False),
    ("The 'train_dataloader' does not have many workers which may be a bottleneck.", False),
    ("`is_gradient_checkpointing` is deprecated and will be removed in v6. Use another instead.", False),
    ("`torch_dtype` is deprecated", True),
]


@pytest.fixture
def telling():
    """As within a verb."""
    with told_to_users():
        yield


@pytest.mark.parametrize("verbose", ["", "1"])
def test_noise_of_libraries_is_left_out(verbose, monkeypatch):
    monkeypatch.setenv("ELANG_VERBOSE", verbose)
    loggers = [logging.getLogger(name) for name in _NOISE]
    before = [list(logger.filters) for logger in loggers]
    for logger in loggers:
        logger.filters = []
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("default")
            quiet_libraries()
            for text, _ in WARNED:
                warnings.warn(text, FutureWarning, stacklevel=1)
        assert [str(one.message) for one in heard] == [text for text, kept in WARNED if kept or verbose]
        for name, text, kept in SAID:
            record = logging.LogRecord(name, logging.WARNING, "", 0, "%s", (text,), None)
            assert bool(logging.getLogger(name).filter(record)) == (kept or bool(verbose)), text
    finally:
        for logger, filters in zip(loggers, before, strict=True):
            logger.filters = filters


def test_a_run_leaves_out_the_noise_of_libraries(base_model, data_args, tmp_path):
    """Also what they say as they are imported, so in a process of its own; a note keeps its form beside Lightning's."""
    args = ["fit", "--model.model", str(base_model), "--model.output", str(tmp_path / "model"), *data_args]
    args += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--data.max_length", "6"]
    done = subprocess.run(
        [sys.executable, "-m", "elang", *args],
        forked=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    for noise in ("Failed to load", "Enum", "Seed set", "PU available", "Tip:", "Writing model shards", "many workers"):
        assert noise not in done.stdout + done.stderr
    assert "examples: " in done.stderr
    assert re.search(
        r"^elang: note: Inputs longer than 6 tokens were cut: \d+ of \d+ inputs of '", done.stderr, re.MULTILINE
    )
    assert "call.py" not in done.stderr


@pytest.mark.usefixtures("telling")
def test_a_long_step_tells_how_far_it_is(capfd, monkeypatch):
    now = iter([0, 30, 61, 90, 122, 130])
    monkeypatch.setattr("elang.terminal.time.monotonic", lambda: next(now))
    with Progress(12_000, "texts") as progress:
        for _ in range(4):
            progress.add(600)
    assert capfd.readouterr().err == (
        "elang: 600 of 12,000 texts, about 10 minutes left\nelang: 1,800 of 12,000 texts, about 8 minutes left\n"
    )


@pytest.mark.usefixtures("telling")
def test_after_a_line_without_a_time_the_next_comes_soon(capfd, monkeypatch):
    now = iter([0, 5, 10, 19, 21, 60, 79, 82])
    monkeypatch.setattr("elang.terminal.time.monotonic", lambda: next(now))
    progress = Progress(60, "batches evaluated", first=5.0)
    for _ in range(7):
        progress.add()
    assert capfd.readouterr().err == (
        "elang: 1 of 60 batches evaluated\nelang: 4 of 60 batches evaluated, about 5 minutes left\n"
        "elang: 7 of 60 batches evaluated, about 10 minutes left\n"
    )


@pytest.mark.parametrize(
    ("total", "done", "before", "line"),
    [
        (None, 1200, 0, "1,200 texts"),
        (None, 1, 0, "1 text"),
        (100, 100, 0, "100 texts"),
        (100, 99, 0, "99 of 100 texts, less than a minute left"),
        (100, 45, 0, "45 of 100 texts, about a minute left"),
        (100, 50, 50, "50 of 100 texts"),
        (100, 51, 50, "51 of 100 texts"),
        (100, 52, 50, "52 of 100 texts, about 24 minutes left"),
        (100_000, 200, 100, "200 of 100,000 texts, about 16 h 38 min left"),
    ],
)
def test_how_far_a_step_is(total, done, before, line):
    progress = Progress(total, "texts", before)
    progress.done = done
    assert progress.line(60) == line


@pytest.mark.usefixtures("telling")
def test_names_of_columns_break_before_those_of_rows(capsys):
    """In 80 columns, with the names and numbers that the table of all scores of generated texts has."""
    head = ["score", "area", "difference", "by length", "number_match", "deferred", "speed-up"]
    rows = [[name, "0.623", "= -0.012", "-0.31", "0.7834", "100.0%", "12.34x"] for name in SEQUENCE_SCORES]
    rows += [[f"{max(SEQUENCE_SCORES, key=len)}*", *rows[0][1:]]]
    say_table("All scores", head, rows, [])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 3 + len(rows), lines
    assert [line.split()[0] for line in lines[5:]] == [row[0] for row in rows]
    assert max(map(len, lines)) <= 80
    say_table("Narrow", [head[0], head[4]], [[row[0], row[4]] for row in rows], [])
    assert "number_match" in capsys.readouterr().out


@pytest.mark.usefixtures("telling")
def test_a_late_bar_leaves_short_steps_alone(capfd, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress(3, "curves", late=True) as progress:
        assert list(progress.each("abc")) == ["a", "b", "c"]
    assert progress.done == 3
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(elang.terminal, "_LATE", 0)
    with Progress(3, "curves", late=True) as progress:
        list(progress.each("abc"))
    assert "3/3" in capfd.readouterr().err


@pytest.mark.usefixtures("telling")
def test_of_several_processes_one_tells(capfd, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(elang.terminal, "_EVERY", 0)
    for terminal in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda shown=terminal: shown, raising=False)
        with Progress(3, "curves") as progress:
            list(progress.each("abc"))
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("telling")
def test_a_bar_on_a_terminal(capfd, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress(10, "texts") as progress:
        progress.add(10)
    assert "10/10" in capfd.readouterr().err


def test_verbs_tell_how_far_they_are(pair, base_model, files, data_args, tmp_path, capfd, monkeypatch):
    """The lines that come once a minute, all at once; the bars of Lightning would fill logs."""
    monkeypatch.setattr(elang.terminal, "_EVERY", 0)
    model = ["--trainer.accelerator", "cpu", "--model.model"]
    both = ["--swift_model", pair["swift"], "--super_model", pair["super"], "--input", files[1], "--text", "text"]
    evaluated = ["--model.swift_model", pair["swift"], "--model.super_model", pair["super"], "--model.output", "j"]
    evaluated += ["--trainer.accelerator", "cpu"]
    swift = ["--model", "SwiftModule", *model, base_model, "--model.super_records", pair["records"]]
    swift += ["--model.output", "swift", "--trainer.logger", "false"]
    for args, line in (
        (["fit", *model, base_model, "--model.output", "m", *data_args, "--trainer.max_steps", 2], "1 of 2 batches"),
        (
            ["fit", *model, base_model, "--model.output", "n", *data_args, "--trainer.max_epochs", 1],
            "elang: epoch 1 of 1: ",
        ),
        (
            ["score", *model, pair["super"], "--model.output", "s.parquet", *data_args],
            "batches of validation, the routing slice and train, less than a minute left",
        ),
        (["validate", *evaluated, *data_args], "elang: answering 17 batches of validation and the routing slice ..."),
        (["augment", "--model", base_model, "--input", files[0], "--output", "a.csv", "--batch_size", 8], "8 of "),
        (["bench", *both, "--examples", 4, "--single", 1, "--repeats", 1], "4 of 70 answers"),
        (["predict", *both, "--output", "p.jsonl"], "elang: 1 input\n"),
        (["validate", *evaluated, *data_args], " curves of the held-out slice"),
        (["report", "j"], "elang: 1 evaluation\n"),
        (["sweep", "j", "--score", "entropy", "margin"], "elang: 61 of 122 examples, less than a minute left"),
        (["merge", pair["records"], "--output", "merged.parquet"], " of 301 records, less than a minute left"),
        (["fit", *swift, *data_args, "--trainer.max_steps", 1], " steps of fitting 'router'"),
    ):
        monkeypatch.chdir(tmp_path)
        assert main(list(map(str, args))) == 0
        said = capfd.readouterr()
        assert line in said.err, args
        assert "it/s" not in said.out, args


def test_a_training_without_validation_tells_no_values(base_model, files, tmp_path, capfd):
    args = ["fit", "--model.model", base_model, "--model.output", tmp_path / "m", "--data.train", files[0]]
    args += ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--trainer.logger", "false"]
    args += ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", tmp_path]
    assert main(list(map(str, args))) == 0
    assert "epoch 1" not in capfd.readouterr().err


class _AtOnce:
    """A timer that does not wait."""

    def __init__(self, seconds, function, args):
        self.start = lambda: function(*args)

    def cancel(self):
        pass


def test_python_programs_are_told_nothing(pair, files, tmp_path, capfd, monkeypatch):
    """Verbs tell what they load and how far they are, and ``JointPredictor`` by itself does not."""
    monkeypatch.setattr(elang.terminal, "Timer", _AtOnce)
    monkeypatch.setattr(elang.terminal, "_EVERY", 0)
    models = [str(pair["swift"]), str(pair["super"])]
    for terminal in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda shown=terminal: shown, raising=False)
        predictor = JointPredictor(*models, device="cpu")
        assert len([*predictor.map(["good", "bad"])]) == 2
        with Progress(3, "texts") as progress:
            progress.add(3)
    assert capfd.readouterr() == ("", "")
    args = ["--input", files[1], "--text", "text", "--output", tmp_path / "p.jsonl", "--device", "cpu"]
    assert main(["predict", "--swift_model", models[0], "--super_model", models[1], *map(str, args)]) == 0
    assert f"elang: loading '{models[0]}' ...\n" in capfd.readouterr().err
    # The next one is again alone.
    JointPredictor(*models, device="cpu")
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("telling")
def test_a_silent_step_is_named_once_it_takes_long(capfd):
    with waiting("loading", 60):
        pass
    with waiting("computing", 0.01):
        time.sleep(0.2)
    assert capfd.readouterr().err == "elang: computing ...\n"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ("fit --model.model x", True),
        ("predict", True),
        ("crossfit", True),
        ("fit --help", False),
        ("validate --model.help JointModule", False),
        ("fit --print_config=skip_default", False),
        ("predict -h", False),
    ],
)
def test_libraries_that_load_for_long_are_told_but_not_in_help(args, told, monkeypatch, capfd):
    verb, *options = args.split()
    monkeypatch.setattr("elang.cli.verbs.waiting", lambda text: contextlib.nullcontext(tell(text)))
    with contextlib.suppress(SystemExit):
        main([verb, *options])
    assert ("loading libraries" in capfd.readouterr().err) == told
