"""Outputs that are inputs, links, pipes and devices; readers that go away; options and names of every kind."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from functools import partial
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from conftest import FAST, QUIET
from jsonargparse import ArgumentParser

from elang.cli import verbs
from elang.cli.arguments import checked_arguments, renamed
from elang.cli.verbs import main
from elang.errors import InputError
from elang.files import check_folder, check_output_file, write_atomically
from elang.inference.inputs import each_text
from elang.inference.predictor import JointPredictor
from elang.notices import notices


@pytest.fixture(scope="module")
def joint(tmp_path_factory, joint_args):
    folder = tmp_path_factory.mktemp("command") / "joint"
    assert main(["validate", *joint_args, "--model.output", str(folder)]) == 0
    return folder


@pytest.fixture
def made(tmp_path, pair, joint, files, base_model):
    """Copies of all that a verb may read, for it to spoil."""
    for name, source in {"swift": pair["swift"], "super": pair["super"], "joint": joint, "base": base_model}.items():
        shutil.copytree(source, tmp_path / name)
    shutil.copy(pair["records"], tmp_path / "super.parquet")
    pd.read_csv(files[0]).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "lines.txt").write_text("the film was good\na dull plot\n")
    return tmp_path


@pytest.fixture
def models(pair):
    return ["--swift_model", str(pair["swift"]), "--super_model", str(pair["super"])]


# What each verb is given, what is to be written, and the input that would be lost.
AT_INPUTS = {
    "predict": ("predict --swift_model swift --super_model super --input lines.txt --output lines.txt", "lines.txt"),
    "predict a model": (
        "predict --swift_model swift --super_model super --input lines.txt --output swift/config.json",
        "swift/config.json",
    ),
    "predict thresholds": (
        "predict --swift_model swift --super_model super --input lines.txt --thresholds joint "
        "--output joint/elang.json",
        "joint/elang.json",
    ),
    "predict an earlier run's": (
        "predict --swift_model swift --super_model super --input .out.part --output out",
        ".out.part",
    ),
    "bench": ("bench --swift_model swift --super_model super --input lines.txt --output lines.txt", "lines.txt"),
    "augment": ("augment --model base --input train.parquet --output train.parquet", "train.parquet"),
    "report": ("report joint --output page.html", "joint/summary.json"),
    "merge": ("merge super.parquet --output super.parquet", "super.parquet"),
    "merge a folder": ("merge parts --output parts/super.parquet", "parts/super.parquet"),
    "sweep": ("sweep joint --output joint", "joint/summary.json"),
    "score": (
        "score --model.model super --data.validation train.parquet --data.train train.parquet "
        "--model.output train.parquet",
        "train.parquet",
    ),
    "crossfit": (
        "crossfit --output train.parquet --model SwiftModule --model.model base --model.super_records super.parquet "
        "--data.train train.parquet",
        "train.parquet",
    ),
    "ask": (
        "ask --url http://127.0.0.1:9 --data.validation train.parquet --data.train train.parquet "
        "--output train.parquet",
        "train.parquet",
    ),
    "fit": ("fit --model.model base --data.train train.parquet --model.output base", "base/config.json"),
    "fit around its data": (
        "fit --model.model base --data.train swift/train.parquet --model.output swift",
        "swift/train.parquet",
    ),
    "validate": (
        "validate --model.swift_model swift --model.super_model super --data.validation train.parquet "
        "--model.output swift",
        "swift/elang.json",
    ),
    "predict's configuration": (
        "predict --swift_model swift --super_model super --input lines.txt --config run.yaml --output run.yaml",
        "run.yaml",
    ),
    "fit's configuration": (
        "fit --config swift/run.yaml --model.model base --data.train train.parquet --model.output swift",
        "swift/run.yaml",
    ),
    "suite": ("suite glue --config suite.json --output .", "suite.json"),
    "calibrate": ("calibrate joint --super_share 0.5 --output joint/summary.json", "joint/summary.json"),
}


@pytest.mark.parametrize("name", AT_INPUTS)
def test_an_output_is_no_input(name, made, monkeypatch, fails):
    monkeypatch.chdir(made)
    (made / "parts").mkdir()
    shutil.copy("super.parquet", "parts")
    shutil.copy("train.parquet", "swift")
    shutil.copy("lines.txt", ".out.part")
    Path("run.yaml").write_text("chunk: 8\n")
    Path("swift/run.yaml").write_text("seed_everything: 1\n")
    os.link("joint/summary.json", "page.html")
    (made / "suite.json").write_text('{"swift_model": "swift", "super_model": "super", "joint": {}}')
    args, lost = AT_INPUTS[name]
    before = (made / lost).read_bytes()
    verb = args.split()[0]
    quiet = QUIET if verb in ("fit", "validate", "score") else []
    said = fails([*args.split(), *quiet], Path(lost).parent if str(Path(lost).parent) != "." else lost)
    assert "which would be lost" in said or name == "calibrate"
    assert (made / lost).read_bytes() == before


def test_an_input_under_another_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "a.txt"
    source.write_text("a")
    Path("soft").symlink_to("a.txt")
    os.link("a.txt", "hard")
    Path("folder").symlink_to(".")
    for output in ("a.txt", "./a.txt", source, "soft", "hard", "folder/a.txt", f"../{tmp_path.name}/a.txt"):
        with pytest.raises(InputError, match=r"a\.txt"):
            check_output_file(output, ["b.txt", None, "a.txt"])
        with pytest.raises(InputError, match=r"soft"):
            check_output_file(output, ["soft"])
    check_output_file("b.txt", ["a.txt", "missing"])
    check_output_file("/dev/null", ["/dev/null"])
    with pytest.raises(InputError, match=r"'folder' is or holds"):
        check_folder("folder", ["folder/a.txt"], None)
    check_folder("folder", ["folder/a.txt"], ["b.txt"])


def test_standard_streams_are_files_too(models, made):
    """As a shell makes them: `< FILE --output FILE` and `--input FILE >> FILE`."""
    before = (made / "lines.txt").read_bytes()
    with (made / "lines.txt").open("a+b") as file:
        for more in (["--output", "lines.txt"], ["--input", "lines.txt"]):
            done = subprocess.run(
                [sys.executable, "-m", "elang", "predict", *models, *more],
                cwd=made,
                stdin=file if "--output" in more else subprocess.DEVNULL,
                stdout=file if "--input" in more else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert done.returncode == 2
            assert "which would be lost" in done.stderr
    assert (made / "lines.txt").read_bytes() == before


def through(path, args):
    """What comes out of a pipe that a command writes to."""
    got = []
    reader = threading.Thread(target=lambda: got.append(Path(path).read_bytes()), daemon=True)
    reader.start()
    assert main([str(arg) for arg in args]) == 0
    reader.join(20)
    assert stat.S_ISFIFO(os.stat(path).st_mode)
    return got[0]


def test_a_pipe_is_written_through(made, models, monkeypatch):
    """Line by line, or when all is there."""
    monkeypatch.chdir(made)
    for name in ("pipe", "pipe.parquet", "pipe.html", "pipe.csv"):
        os.mkfifo(name)
    answers = through("pipe", ["predict", *models, "--input", "lines.txt", "--threshold", "inf", "--output", "pipe"])
    assert [json.loads(line)["answered_by"] for line in answers.splitlines()] == ["swift", "swift"]
    bench = ["bench", *models, "--input", "lines.txt", "--repeats", "1", "--single", "0", "--output", "pipe"]
    assert json.loads(through("pipe", bench))["inputs"] == 2
    records = through("pipe.parquet", ["merge", "super.parquet", "--output", "pipe.parquet"])
    Path("again.parquet").write_bytes(records)
    assert len(pd.read_parquet("again.parquet")) == len(pd.read_parquet("super.parquet"))
    assert through("pipe.html", ["report", "joint", "--output", "pipe.html"]).startswith(b"<!")
    texts = ["--input", "train.parquet", "--copies", "1", "--output", "pipe.csv"]
    assert through("pipe.csv", ["augment", "--model", "base", *texts]).startswith(b"text,source_key")
    assert not list(made.rglob("*.part*"))


def test_a_device_stays_one(made, models, monkeypatch, capfd):
    monkeypatch.chdir(made)
    Path("null").symlink_to("/dev/null")
    for output in ("/dev/null", "null", "/dev/stdout", "/dev/fd/1"):
        capfd.readouterr()
        assert main(["predict", *models, "--input", "lines.txt", "--output", output]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert len([line for line in lines if "answered_by" in line]) == 2 * (output not in ("/dev/null", "null"))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert Path("null").is_symlink()
    with write_atomically("/dev/null") as aside:
        aside.write_text("x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_reader_of_a_pipe_that_goes_away(made, models, monkeypatch):
    monkeypatch.chdir(made)
    os.mkfifo("pipe")
    Path("many.txt").write_text("the film was good\n" * 5000)
    reader = threading.Thread(target=lambda: Path("pipe").open("rb").close(), daemon=True)
    reader.start()
    assert main(["predict", *models, "--input", "many.txt", "--output", "pipe"]) == 141


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one(there, made, models, monkeypatch):
    """What it leads to is written, and keeps who may read it; also where that is yet to be made."""
    monkeypatch.chdir(made)
    (made / "far").mkdir()
    target = made / "far" / "target.jsonl"
    if there:
        target.write_text("old")
        target.chmod(0o640)
    Path("link.jsonl").symlink_to("far/target.jsonl")
    assert main(["predict", *models, "--input", "lines.txt", "--output", "link.jsonl"]) == 0
    assert Path("link.jsonl").is_symlink()
    assert len(target.read_text().splitlines()) == 2
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == (0o640 if there else 0o666 & ~umask)
    assert [path.name for path in (made / "far").iterdir()] == ["target.jsonl"]
    with write_atomically("link.jsonl") as aside:
        assert aside.parent == target.parent
        aside.write_text("new")
    assert Path("link.jsonl").is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == (0o640 if there else 0o666 & ~umask)


def test_a_link_to_a_folder_stays_one(made, base_model, data_args, monkeypatch):
    monkeypatch.chdir(made)
    (made / "far").mkdir()
    Path("model").symlink_to("far", target_is_directory=True)
    fit = ["fit", "--model.model", str(base_model), *data_args, *FAST, "--trainer.max_steps", "1"]
    assert main([*fit, "--model.output", "model"]) == 0
    assert Path("model").is_symlink()
    assert (made / "far" / "elang.json").is_file()


def test_places_that_cannot_be_written_are_told_first(tmp_path, monkeypatch, fails):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("kept").write_text("x")
    Path("kept").chmod(0o444)
    Path("loop").symlink_to("loop")
    # No model is there: it is not come to.
    args = ["predict", "--swift_model", "none", "--super_model", "none", "--input", "lines.txt", "--output"]
    for output, said in {"kept": "read-only", "file/x": "'", ".": "folder", "loop": "link"}.items():
        fails([*args, output], f"'{output}'", said)
    fails(["sweep", "none", "--output", "file"], "'file'", "folder")
    fails(["demo", "--output", "file"], "'file'", "folder")
    assert Path("kept").read_text() == "x"


def begin(args, folder, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "elang", *args], cwd=folder, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_reader_that_goes_away(made, models):
    Path(made / "many.txt").write_text("the film was good\n" * 3000)
    process = begin(["predict", *models, "--input", "many.txt", "--chunk", "64"], made, stdout=subprocess.PIPE)
    assert "answered_by" in process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(60) == 141
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_an_error_that_nobody_reads(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as broken:
        monkeypatch.setattr(sys, "stderr", broken)
        monkeypatch.setattr("elang.terminal._is_broken", lambda number: number == 2)
        assert main(["nosuch"]) == 141
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)


def test_a_table_that_nobody_reads(joint, monkeypatch):
    """A console of rich ends by itself where its pipe is broken, with another code; so would what Python flushes."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        monkeypatch.setattr("elang.terminal._is_broken", lambda number: number == 1)
        assert main(["calibrate", str(joint), "--super_share", "0.5", "--output", str(joint)]) == 141
        assert main(["--version"]) == 141
        from elang.terminal import console

        monkeypatch.setattr("elang.cli.calibrate.say", lambda *lines: console(80).print(*lines))
        assert main(["calibrate", str(joint), "--super_share", "0.5", "--output", str(joint)]) == 141
        monkeypatch.undo()
        # What is left cannot be written, and is not to be complained of here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)


def test_ctrl_c_leaves_what_can_be_gone_on_with(made, models, monkeypatch, capfd):
    monkeypatch.chdir(made)
    Path("many.txt").write_text("the film was good\n" * 30000)
    args = ["predict", *models, "--input", "many.txt", "--output", "out.jsonl", "--chunk", "64"]
    process = begin(args, made)
    part, end = Path(".out.jsonl.part"), time.monotonic() + 60
    while not part.is_file() or not part.stat().st_size:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(60) == 130
    assert "Traceback" not in said
    assert "the same command goes on" in said
    assert main(args) == 0
    assert "inputs answered before" in capfd.readouterr().err
    assert Path("out.jsonl").read_bytes().count(b"\n") == 30000


@pytest.mark.parametrize("verb", ["predict", "bench", "report", "merge", "sweep", "calibrate", "suite", "augment"])
def test_ctrl_c_in_any_verb(verb, made, models, monkeypatch):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    places = {
        "predict": "elang.cli.predict.JointPredictor",
        "bench": "elang.cli.bench.JointPredictor",
        "report": "elang.cli.report.Evaluation",
        "merge": "elang.records.merging._check_files",
        "sweep": "elang.cli.sweep.Joint",
        "calibrate": "elang.cli.calibrate.read_summary",
        "suite": "elang.cli.suite.read_plan",
        "augment": "elang.cli.augment.Replacements",
    }
    args = {
        "predict": [*models, "--input", "lines.txt"],
        "bench": [*models, "--input", "lines.txt"],
        "report": ["joint"],
        "merge": ["super.parquet"],
        "sweep": ["joint"],
        "calibrate": ["joint", "--super_share", "0.5"],
        "suite": ["glue", "--config", "x"],
        "augment": ["--model", "base", "--input", "train.parquet", "--output", "x.csv"],
    }
    monkeypatch.chdir(made)
    monkeypatch.setattr(places[verb], pressed)
    assert main([verb, *args[verb]]) == 130


def test_ctrl_c_in_a_training(base_model, data_args, tmp_path, monkeypatch):
    """Lightning ends by itself then, with a failure's code."""
    from elang.models.finetune import FinetuneModule

    def pressed(*_):
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(FinetuneModule, "training_step", pressed)
    fit = ["fit", "--model.model", str(base_model), *data_args, *FAST, "--model.output", str(tmp_path / "model")]
    try:
        assert main(fit) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_steps_end_with_what_began_them(number, tmp_path, monkeypatch):
    """Of `elang suite` and `elang crossfit`: no process is left behind."""
    from elang.cli.suite_steps import Step, run_chains

    script = tmp_path / "slow"
    script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid.$$\nmv {tmp_path}/pid.$$ {tmp_path}/there\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr("elang.cli.suite_steps.sys.executable", str(script))

    def press():
        end = time.monotonic() + 20
        while not (tmp_path / "there").exists() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=press, daemon=True).start()
    steps = [Step("a", "swift", {}, tmp_path / f"{name}.yaml", tmp_path / "none") for name in "ab"]
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        run_chains([steps])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "there").read_text()), 0)
    # The second one was not begun.
    assert not (tmp_path / "b.log").exists()


def test_closed_standard_streams(made, models):
    """A file that is opened then must not get what others print; answers that nobody can take are refused."""
    args = [sys.executable, "-m", "elang", "predict", *models, "--input", "lines.txt"]
    done = subprocess.run(
        [*args, "--output", "out.jsonl"], forked=False, cwd=made, preexec_fn=partial(os.closerange, 0, 3)
    )
    assert done.returncode == 0
    assert all(json.loads(line)["answered_by"] for line in (made / "out.jsonl").read_text().splitlines())
    done = subprocess.run(args, cwd=made, preexec_fn=partial(os.close, 1), stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "elang: error: Standard output is closed" in done.stderr


@pytest.mark.parametrize(
    "value", ["-5e-1", "-inf", "-1e-3", "-.5", "-5E-1", "-Infinity", "-0.5", "-1", "-1e+0", "-nan"]
)
def test_negative_numbers_in_any_notation(value):
    assert checked_arguments(["--threshold", value, "x"]) == [f"--threshold={value}", "x"]
    assert checked_arguments([f"--threshold={value}"]) == [f"--threshold={value}"]


def test_arguments_that_are_left_as_they_are():
    for args in (["--input", "-"], ["--a", "--b", "x"], ["a", "b", "-c", "x"], ["--model.help"], ["--t", "defer 30%"]):
        assert checked_arguments(args) == args
    for args in (["--score", ""], ["--score="], [""], ["a", ""], ["-c", ""]):
        with pytest.raises(InputError, match="empty"):
            checked_arguments(args)


@pytest.mark.parametrize(
    ("threshold", "by"),
    [
        ("-5e-1", "swift"),
        ("-inf", "super"),
        ("-1e-3", "swift"),
        ("+0.5", "swift"),
        (" 5e1 ", "swift"),
        ("inf", "swift"),
    ],
)
def test_thresholds_in_any_notation(threshold, by, made, models, monkeypatch, capsys):
    monkeypatch.chdir(made)
    assert main(["predict", *models, "--input", "lines.txt", "--threshold", threshold]) == 0
    assert {json.loads(line)["answered_by"] for line in capsys.readouterr().out.splitlines()} == {by}


@pytest.mark.parametrize("threshold", ["nan", " nan", "-nan", "NaN", "1_0", "٣", "abc"])
def test_thresholds_that_are_none(threshold, models, fails):
    said = "NaN" if "nan" in threshold.lower() else threshold
    fails(["predict", *models, "--threshold", threshold], "threshold", said)


def test_negative_numbers_reach_our_own_messages(joint, models, joint_args, fails, tmp_path):
    """Of all parsers: plain functions' and Lightning's."""
    fails(["bench", *models, "--input", "x", "--shares", "-1e-1"], "--shares", "-0.1")
    fails(["calibrate", joint, "--max_regret", "-1e-2"], "--max_regret", "-0.01")
    fails(
        ["validate", *joint_args, "--model.temperature", "-1e0", "--model.output", tmp_path / "j"], "temperature", "-1"
    )


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["predict", "--swift_model", "a", "--super_model", "b", "--thresh", "0"], "--threshold"),
        (["predict", "--swift_model", "a", "--super_model", "b", "--tresholds", "0"], "--thresholds"),
        (["calibrate", "joint", "--max_regre", "0.1"], "--max_regret"),
        (["fit", "--trainer.max_epoch", "3", "--model.model", "x"], "--trainer.max_epochs"),
        (["merge", "a", "--outpu", "b.parquet"], "--output"),
    ],
)
def test_options_are_not_guessed(args, meant, fails):
    fails(args, f"Did you mean '{meant}'?", "--help")


def test_an_option_that_is_given_twice_is_told(recwarn):
    checked_arguments(["--threshold", "0", "--threshold=0", "--config", "a", "--config", "b"])
    # Each is of the callback before it.
    checked_arguments(["--c+=A", "--c.x", "1", "--c+=B", "--c.x", "2"])
    assert not recwarn.list
    assert checked_arguments(["--text", "a", "--text", "b"]) == ["--text", "a", "--text", "b"]
    assert "--text is given as 'a' and as 'b': the last one counts" in str(recwarn.pop(UserWarning).message)


ODD = "[bold]x[/] $a_b$ [/nothing]\x1b[2J:smile:"


def odd_pair(folder, pair, joint_args):
    """The pair with such a label, in a folder of such a name."""
    args = [*joint_args]
    for name in ("swift", "super"):
        copy = shutil.copytree(pair[name], folder / f"{name} [/]\x1b[31m")
        for file in ("config.json", "elang.json"):
            text = (copy / file).read_text("utf-8")
            (copy / file).write_text(text.replace('"good"', json.dumps(ODD)), "utf-8")
        args[args.index(str(pair[name]))] = str(copy)
    for option in ("--data.train", "--data.validation"):
        place = args.index(option) + 1
        frame = pd.read_csv(args[place]).replace({"label": {"good": ODD}})
        args[place] = str(folder / f"[bold]{Path(args[place]).name}")
        frame.to_csv(args[place], index=False)
    return args


def test_names_are_only_names(tmp_path, pair, joint_args, capfd, fails):
    """In tables, pages, figures, messages and notices."""
    args = odd_pair(tmp_path, pair, joint_args)
    folder = tmp_path / "joint [/]\x1b[2J $x$" / "my [bold]task[red]"
    assert main(["validate", *args, "--model.output", str(folder)]) == 0
    assert main(["sweep", str(folder), "--output", str(tmp_path / "[/]\x1b[1m")]) == 0
    assert main(["calibrate", str(folder), "--super_share", "0.5", "--name", "[/]$x$\x1b[7m"]) == 0
    page = tmp_path / "[/]\x1b[2J.html"
    assert main(["report", str(folder), "--threshold", "[/]$x$\x1b[7m", "--output", str(page)]) == 0
    bare = ["--input", str(tmp_path / "[/]\x1b[2J.csv")]
    models = ["--swift_model", args[1], "--super_model", args[3]]
    assert main(["bench", *models, *bare, "--text", "[/]\x1b[2J"]) == 2
    assert main(["predict", *models, "--threshold", "[/]\x1b[2J\nelang: x"]) == 2
    said = capfd.readouterr()
    for part in (said.out, said.err):
        assert "\x1b[2J" not in part
        assert "\x1b[7m" not in part
        assert "\x1b[1m" not in part
        assert "\nelang: x" not in part
    assert r"my [bold]task[red]" in said.out.replace("\n", "")
    html = page.read_text("utf-8")
    assert "<h1>Joint inference: [bold]validation.csv (label)</h1>" in html
    assert "[bold]validation.csv (label): accuracy on 61 examples" in " ".join(said.out.split())
    assert ODD in html.replace("&#39;", "'")


def test_tables_of_suites_and_benchmarks_take_names_as_they_are(capsys):
    from elang.cli.bench import _print
    from elang.cli.suite_table import print_tables

    point = {"quality": 0.5, "qualities": {}, "to_super": None, "kept": 0.5, "gflops": 1.0, "speedup": 2.0}
    point |= {"ms": {"batch 1": 1.0, "best batch": 1.0}}
    row = {"task": "[/] [bold]t[/bold]\x1b[2J", "score": "[/]", "examples": 3, "swift": 0.5, "super": 0.5, "ms": {}}
    row |= {"swift_gflops": 1.0, "super_gflops": 2.0, "points": {"p [/]": point}}
    print_tables([row], ["p [/]", "q [/]\x1b[2J"])
    entry = {"deferred": 0.5, "median": 1.0, "most": 1.0, "least": 1.0, "speedup": 1.0, "predicted": 1.0, "ratio": 1.0}
    _print({"inputs": 1, "device": "[/]\x1b[2J", "repeats": 1, "passes": {"[/x]\x1b[2J": entry}})
    said = capsys.readouterr().out
    assert "[bold]t[/bold]" in said
    assert "[/x]" in said
    assert "\x1b" not in said


def test_figures_take_dollars_for_dollars(joint, monkeypatch):
    """A name that is no formula, but looks like the beginning of one, would not be drawn."""
    from matplotlib.figure import Figure

    from elang.evaluation.report.figures import plain_texts

    with plain_texts():
        figure = Figure()
        assert not figure.text(0, 0, r"$\frac$ x_y").get_parse_math()
        figure.savefig(os.devnull, format="png")


TEXTS = ["the film was good", "a dull plot"]


@pytest.fixture(scope="module")
def predictor(pair):
    return JointPredictor(str(pair["swift"]), str(pair["super"]), "inf", device="cpu")


def columns():
    import datasets
    import numpy as np
    import pyarrow as pa

    table = datasets.Dataset.from_dict({"text": TEXTS})
    return {
        "tuple": tuple(TEXTS),
        "lists": [[text] for text in TEXTS],
        "tuples": [(text,) for text in TEXTS],
        "generator": (text for text in TEXTS),
        "values": dict(enumerate(TEXTS)).values(),
        "series": pd.Series(TEXTS, index=[7, 3]),
        "string series": pd.Series(TEXTS, dtype="string"),
        "index": pd.Index(TEXTS),
        "categories": pd.Categorical(TEXTS),
        "numpy": np.array(TEXTS),
        "numpy's own strings": [np.str_(text) for text in TEXTS],
        "numpy, a column": np.array(TEXTS)[:, None],
        "objects": np.array(TEXTS, dtype=object),
        "arrow": pa.array(TEXTS),
        "chunks": pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
        "column": table["text"],
    }


def test_columns_of_texts_are_answered(predictor):
    wanted = predictor(TEXTS)
    for name, given in columns().items():
        assert predictor(given) == wanted, name
    for name, given in columns().items():
        assert list(predictor.map(given)) == wanted, name
    for name, given in columns().items():
        rows = predictor.rows(given)
        assert rows == [(text,) for text in TEXTS], name
        assert set(map(type, rows[0])) == {str}
    for name, given in columns().items():
        assert predictor.answer(given) == wanted, name
    for given in columns().values():
        assert [label for label, _, _ in predictor.ask_swift(given, keep=True)] == [one.label for one in wanted]
    assert predictor.ask_super(pd.Series(TEXTS)) == predictor.ask_super([(text,) for text in TEXTS])


def no_texts():
    import datasets
    import pyarrow as pa

    table = datasets.Dataset.from_dict({"text": TEXTS})
    return {
        "DataFrame": pd.DataFrame({"text": TEXTS}),
        "dict": {"text": TEXTS},
        "str": "the film",
        "bytes": b"the film",
        "set": set(TEXTS),
        "frozenset": frozenset(TEXTS),
        "NoneType": None,
        "int": 3,
        "Dataset": table,
        "DatasetDict": datasets.DatasetDict(train=table),
        "IterableDataset": table.to_iterable_dataset(),
        "Table": pa.table({"text": TEXTS}),
        "RecordBatch": pa.record_batch({"text": TEXTS}),
        "bytes ": [b"the film"],
        "float": pd.Series([TEXTS[0], float("nan")]),
        "float ": [float("nan")],
        "NoneType ": [None],
        "int ": [1, 2],
        "dict ": [{"text": "the film"}],
        "has 2 text(s)": [("a", "b")],
        "half a character": ["a \ud800"],
    }


@pytest.mark.parametrize("way", ["__call__", "map", "super_map", "rows", "answer", "ask_swift", "ask_super"])
def test_tables_and_what_is_no_text_are_refused(way, predictor):
    """Their columns' names would be answered, or their characters; the type is named."""
    for name, given in no_texts().items():
        with pytest.raises(InputError) as error:
            list(getattr(predictor, way)(given))
        assert name.strip() in str(error.value), name


def test_options_of_one_meaning_have_one_name():
    """Of all verbs that are functions; those of Lightning have theirs behind --model, --data and --trainer."""
    by_name = {}
    for verb in verbs._FUNCTIONS:
        function = getattr(import_module(f"elang.cli.{verb}"), verb)
        parser = ArgumentParser()
        verbs.add_options(parser, function)
        for name in parser.get_defaults(skip_validation=True).as_dict():
            by_name.setdefault(name, set()).add(verb)
    other_names = {"batch": "batch_size", "accelerator": "device", "out": "output", "data_file": "input", "quiet": ""}
    assert not other_names.keys() & by_name.keys()
    assert by_name["batch_size"] == {"ask", "augment", "bench", "predict", "serve"}
    assert by_name["device"] == {"augment", "bench", "predict", "serve"}
    assert by_name["threshold"] == {"bench", "monitor", "predict", "report", "serve"}
    assert by_name["thresholds"] == by_name["super_int8"] == {"bench", "predict", "serve"}
    assert by_name["output"] == {*verbs._FUNCTIONS} - {"plan", "serve"}


@pytest.mark.parametrize("joined", [True, False])
def test_earlier_names_of_options(joined, recwarn):
    old, new = [["--accelerator", "cpu", "--batch", "4"], ["--device", "cpu", "--batch_size", "4"]]
    if joined:
        old, new = (["=".join(args[:2]), "=".join(args[2:])] for args in (old, new))
    assert renamed("serve", old) == new
    assert renamed("predict", old) == old
    assert [str(one.message).split()[0] for one in recwarn] == ["--accelerator", "--batch"]


def test_candidates_that_are_a_text_alone(predictor):
    for choices in (["yes", "no"], "ab"):
        with pytest.raises(InputError, match="choices"):
            predictor(TEXTS, choices)


def test_a_model_that_is_none():
    for model in (pd.DataFrame(), 3, {"a": 1}):
        with pytest.raises(InputError, match=type(model).__name__):
            JointPredictor(model, None)


def test_texts_are_not_copied():
    assert each_text(TEXTS) is TEXTS


def test_answers_that_are_replaced_are_told(made, models, monkeypatch, recwarn):
    """Before they are; not of an empty file, and not of a new one."""
    monkeypatch.chdir(made)
    Path("new.jsonl").touch()
    predict = ["predict", *models, "--input", "lines.txt", "--output", "new.jsonl"]
    assert main(predict) == 0
    assert not [w for w in recwarn if "is replaced" in str(w.message)]
    before = Path("new.jsonl").read_bytes()
    assert main([*predict, "--threshold", "inf"]) == 0
    (said,) = [str(w.message) for w in recwarn if "is replaced" in str(w.message)]
    assert said.startswith("'new.jsonl' is there already")
    assert Path("new.jsonl").read_bytes() != before


def test_what_predict_cuts_is_told(made, models, monkeypatch):
    monkeypatch.chdir(made)
    Path("long.txt").write_text("the film was good\n" + "film " * 100 + "\n")
    with pytest.warns(UserWarning, match="tokens that the Swift reads at most"):
        assert main(["predict", *models, "--input", "long.txt", "--threshold", "-1e9", "--output", "out.jsonl"]) == 0
    assert [one["kind"] for one in notices()] == ["cut-inputs", "cut-inputs"]
    assert all("Of 2 inputs, 1 longer than the" in one["text"] for one in notices())
    assert all(one["text"].endswith(" did not read the rest. First numbers, from 0: 1.") for one in notices())
    # Not the model's own limit, but that of its training. A text of just so many tokens is whole.
    shutil.copytree(models[1], "short")
    about = json.loads(Path("short/elang.json").read_text())
    Path("short/elang.json").write_text(json.dumps(about | {"max_length": 6}))
    Path("long.txt").write_text("the film was good\n" * 3 + "the film was very good\n" * 9)
    args = ["--swift_model", "short", *models[2:], "--input", "long.txt", "--threshold", "inf", "--output", "out.jsonl"]
    assert main(["predict", *args]) == 0
    (said,) = [one["text"] for one in notices() if one["kind"] == "cut-inputs"]
    assert "Of 12 inputs, 9 longer than 6 tokens, the --data.max_length that the Swift was trained with" in said
    assert said.endswith("the Swift did not read the rest. First numbers, from 0: 3, 4, 5.")
    # The short way of a few inputs counts as well.
    predictor = JointPredictor("short", models[3], threshold="inf")
    predictor(["the film was good", "the film was very good"])
    assert predictor.runners["swift"].first_cut == [1]


@pytest.mark.parametrize(("threshold", "passed"), [("inf", "nothing is"), ("-inf", "everything is")])
def test_predict_says_in_words_what_an_infinite_threshold_does(threshold, passed, made, models, monkeypatch, capfd):
    monkeypatch.chdir(made)
    Path("one.txt").write_text("the film was good\n")
    assert main(["predict", *models, "--input", "one.txt", f"--threshold={threshold}", "--output", "one.jsonl"]) == 0
    said = capfd.readouterr().err
    assert said.splitlines()[-1].startswith(
        f"1 input, {threshold.count('i') - threshold.count('-')} answered by the Swift and {threshold.count('-')} ("
    )
    assert f"threshold {threshold} of max_softmax: {passed} passed on to the Super" in said


@pytest.mark.parametrize(("value", "by"), [("0.5", "swift"), ("-5e-1", "swift"), ("-.inf", "super"), ("inf", "swift")])
def test_thresholds_of_a_configuration(value, by, made, models, monkeypatch, capfd, fails):
    """Numbers of YAML are numbers there, too, and an empty value is not the default."""
    monkeypatch.chdir(made)
    Path("c.yaml").write_text(f"threshold: {value}\n")
    assert main(["predict", *models, "--input", "lines.txt", "--config", "c.yaml"]) == 0
    assert {json.loads(line)["answered_by"] for line in capfd.readouterr().out.splitlines()} == {by}
    Path("c.yaml").write_text("score: ''\n")
    fails(["predict", *models, "--input", "lines.txt", "--config", "c.yaml"], "--score", "empty")


def test_read_only_files_are_not_replaced(made, monkeypatch, fails):
    """Whoever runs it: in each verb, for what all write by says so."""
    monkeypatch.chdir(made)
    Path("joint/elang.json").chmod(0o444)
    before = Path("joint/elang.json").read_bytes()
    fails(["calibrate", "joint", "--super_share", "0.5"], "'joint/elang.json'", "read-only")
    assert Path("joint/elang.json").read_bytes() == before
    with pytest.raises(InputError, match="'joint' is a folder"), write_atomically("joint"):
        pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_standard_output():
    with open("/dev/full", "w") as full:
        process = begin(["--version"], None, stdout=full)
        said = process.stderr.read()
    assert process.wait(60) == 2
    assert said.count("elang: error: ") == 1
    assert "Traceback" not in said
