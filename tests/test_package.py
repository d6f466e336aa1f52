"""What is built works by itself and runs the README's commands; versions are bounded and tried at both ends."""

import json
import os
import re
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pandas as pd
import pytest
from conftest import FAST, QUIET, write_data, write_model
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import elang

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
OWN_PAIR = "\n".join(text for _, text in BLOCKS if "elang fit " in text)
# What stands between backticks in sentences.
PROSE = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL))
# What runs the README's commands that are not run here: a file and what it says.
RUN_BY = {
    "elang augment": ("tests/test_recipes.py", '["augment", '),
    "elang ask": ("tests/cli/test_ask.py", '["ask", '),
    "elang demo": ("Makefile", "elang demo"),
    "elang serve": ("tests/inference/test_serve.py", '"serve", '),
    "elang suite": ("tests/cli/test_suite.py", '["suite", '),
    "make demo": (".ci/run", "make demo"),
    "make test": (".ci/run", "make test"),
    "mkdocs serve": ("tests/test_docs.py", '"mkdocs", "build"'),
}
# What the README's commands get on top, to be over in a minute.
TINY = {
    "augment": ["--copies", "1", "--device", "cpu"],
    "fit": [*FAST, "--data.routing_fraction", "0.4"],
    "score": [*QUIET, "--data.routing_fraction", "0.4"],
    "validate": [*QUIET, "--data.routing_fraction", "0.4"],
}
# Without the extras, which `pip install .` leaves out.
STEPS = """
import json, sys
sys.modules.update(dict.fromkeys(["duckdb", "fastapi", "onnxruntime", "pytest", "sklearn", "torchao", "uvicorn"]))
import elang
from elang.cli import main
where, commands, blocks = json.load(sys.stdin)
assert elang.__file__.startswith(where), elang.__file__
for command in commands:
    assert main(command) == 0, command
for block in blocks:
    exec(block, {})
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist."""
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("built")
    builders = {"wheel": WheelBuilder, "sdist": SdistBuilder}
    return {
        name: Path(next(builder(str(ROOT)).build(directory=str(folder), versions=["standard"])))
        for name, builder in builders.items()
    }


def files_of(*folders):
    skipped = ("__pycache__", ".ipynb_checkpoints")
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not any(part in skipped for part in path.parts) and path.suffix != ".pyc":
                yield path.relative_to(ROOT).as_posix()


def test_the_wheel_has_the_configurations(built, tmp_path):
    """And finds them by the names that the README and the docs have for them."""
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(tmp_path)
    assert {*files_of("elang"), *(f"elang/{name}" for name in files_of("configs"))} <= names
    assert not [name for name in names if not name.startswith(("elang/", "elang_joint-")) or name.endswith(".pyc")]
    script = (
        "from elang.cli import arguments as a; print(a.checked_arguments(['--config', 'configs/trainer/ddp.yaml'])[1])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == tmp_path / "elang" / "configs" / "trainer" / "ddp.yaml"


def test_the_source_has_what_its_tests_read(built):
    with tarfile.open(built["sdist"]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    single = ["Makefile", "mkdocs.yml", "pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"]
    folders = ["elang", "tests", "configs", "docs", "notebooks", "benchmarks", ".ci"]
    assert {*single, *files_of(*folders)} <= names
    own = (".gitignore", "PKG-INFO", "SECURITY.md", *single, *(f"{folder}/" for folder in folders))
    assert not [name for name in names if not name.startswith(own) or name.endswith(".pyc")]


def test_the_source_builds_the_same_wheel(built, tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    with tarfile.open(built["sdist"]) as source:
        source.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (folder,) = tmp_path.iterdir()
    again = next(WheelBuilder(str(folder)).build(directory=str(tmp_path), versions=["standard"]))
    first, second = (
        {name: wheel.read(name) for name in wheel.namelist()} for wheel in map(zipfile.ZipFile, (built["wheel"], again))
    )
    assert Path(again).name == built["wheel"].name
    assert first == second


def test_what_the_wheel_says_of_itself(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        (folder,) = {name.partition("/")[0] for name in wheel.namelist() if not name.startswith("elang/")}
        said = message_from_bytes(wheel.read(f"{folder}/METADATA"))
        assert wheel.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        assert "elang = elang.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    assert (said["Name"], said["Version"]) == ("elang-joint", elang.__version__)
    assert said["License-Expression"] == "Apache-2.0"
    assert folder == f"elang_joint-{elang.__version__}.dist-info"
    assert said["Requires-Python"] == PROJECT["requires-python"]


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A virtual environment that has the wheel and borrows this one's libraries; and the variables to run in it."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", built["wheel"]], env=variables, check=True)
    (own,) = folder.glob("lib/python*/site-packages")
    # The folders are searched, but their own .pth files are not read. One of them may name this checkout.
    (own / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    return folder, variables | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def expanded(block, **models):
    """The arguments of each `elang` in a block of commands, as bash makes them."""
    for name, folder in models.items():
        block = re.sub(rf"\b{name}\b", str(folder), block)
    script = 'elang() { printf "%s\\0" "$@"; echo; }\n' + block
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    return [line.split("\0")[:-1] for line in done.stdout.splitlines()]


def written_out():
    """Commands with their options in the README's sentences."""
    words = [text.split() for text in PROSE if text.startswith("elang ") and "--" in text]
    return [args for _, *args in words if f"elang {args[0]}" not in RUN_BY]


def test_the_readmes_commands_run_from_the_wheel(installed, tmp_path):
    """Your own pair, step by step, and the Python in one process, the last step by the command that was installed."""
    folder, variables = installed
    models = {"LARGE": write_model(tmp_path / "large"), "SMALL": write_model(tmp_path / "small", 1)}
    *commands, last = expanded(OWN_PAIR, **models)
    commands += written_out()
    assert {args[0] for args in commands} >= {"fit", "score", "validate", "calibrate"}
    for name, rows, seed in (("train", 480, 1), ("dev", 60, 2), ("questions", 20, 3)):
        data = pd.read_csv(write_data(tmp_path / f"{name}.csv", rows, seed, noise=0))
        data.set_axis(["question", "intent"], axis=1).to_csv(tmp_path / f"{name}.csv", index=False)
        (tmp_path / f"{name}.txt").write_text("\n".join(data["text"]))
    run = {"cwd": tmp_path, "env": variables, "stdout": subprocess.PIPE, "text": True, "check": True}
    steps = [[*args, *TINY.get(args[0], [])] for args in commands]
    given = json.dumps([str(folder), steps, [text for language, text in BLOCKS if language == "python"]])
    said = subprocess.run([folder / "bin" / "python", "-c", STEPS], input=given, **run).stdout
    assert len(re.findall("^(?:good|bad) (?:swift|super)$", said, re.MULTILINE)) == 20
    subprocess.run([folder / "bin" / "elang", *last], **run)
    assert len(pd.read_json(tmp_path / last[last.index("--output") + 1], lines=True)) == 20


def test_the_command_is_the_wheels(installed, tmp_path):
    folder, variables = installed
    done = subprocess.run(
        [folder / "bin" / "elang", "--version"], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"elang {elang.__version__}"


def test_every_command_of_the_readme_is_run():
    """Here, or in the test that is named above; `pip install .` is what the wheel's environment does."""
    blocks = "\n".join(text for language, text in BLOCKS if language != "python" and "elang fit " not in text)
    found = re.findall(r"^(?:\S+=\S+ )*((?:elang|make|mkdocs) \w+)", "\n".join([blocks, *PROSE]), re.MULTILINE)
    assert found
    run = {f"elang {args[0]}" for args in (*expanded(OWN_PAIR), *written_out())}
    assert {*found} - run <= RUN_BY.keys()
    for name, words in RUN_BY.values():
        assert words in (ROOT / name).read_text("utf-8"), name


def test_nobody_is_told_to_install_another_project():
    """At the package index, elang is somebody else's."""
    folders = ["elang", "configs", "docs", "notebooks", "benchmarks", ".ci"]
    single = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "pyproject.toml"]
    texts = (ROOT / name for name in [*single, *files_of(*folders)] if not name.endswith((".png", ".parquet")))
    asked = re.findall(r"pip3? install[^\n`&|;]*\b(elang[-\w]*)", "\n".join(path.read_text("utf-8") for path in texts))
    assert len(asked) > 5
    assert {PROJECT["name"], *asked} == {"elang-joint"}


def pinned(name):
    lines = (line.partition("#")[0].strip() for line in (ROOT / ".ci" / name).read_text("utf-8").splitlines())
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1].split()[0] for line in lines if "==" in line}


def test_versions_that_are_tried_are_those_that_are_allowed():
    """The oldest of each, and what CI installs."""
    wanted = {canonicalize_name(r.name): r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    oldest = pinned("oldest.txt")
    least = {name: next(one.version for one in own if one.operator == ">=") for name, own in wanted.items()}
    assert wanted.keys() - {"torch"} == oldest.keys()
    for name, version in oldest.items():
        assert version in wanted[name]
        assert version == least[name] + ".0" * (2 - least[name].count("."))
    for name, version in {**pinned("lock.txt"), **pinned("constraints.txt")}.items():
        assert name not in wanted or version in wanted[name], (name, version)


def test_the_changelog_has_this_version_and_begins_each_with_a_few_lines():
    first, *versions = re.split("^## ", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert first.startswith("Unreleased\n")
    titles = [re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)", one.partition("\n")[0]).groups() for one in versions]
    assert titles[0][0] == elang.__version__
    assert [date for _, date in titles] == sorted((date for _, date in titles), reverse=True)
    for one in versions:
        summary, *groups = re.split("^### ", one, flags=re.MULTILINE)
        assert len(re.findall("^- ", summary, re.MULTILINE)) == len(summary.strip().splitlines()) - 2 <= 10
        names = [group.partition("\n")[0] for group in groups]
        assert names == [name for name in ("Added", "Changed", "Fixed") if name in names]


def test_the_badges_are_true():
    words = re.findall(r"<text[^>]*>([^<]*)", (ROOT / "docs" / "images" / "badges.svg").read_text("utf-8"))
    strict = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["mypy"]["strict"]
    least = PROJECT["requires-python"].replace(">=", "≥ ")
    assert words == ["python", least, "license", PROJECT["license"], "types", "mypy strict" if strict else ""]


def test_libraries_that_break_are_bounded():
    bounded = {canonicalize_name(r.name) for r in map(Requirement, PROJECT["dependencies"]) if "<" in str(r.specifier)}
    assert {
        "torch",
        "lightning",
        "transformers",
        "torchmetrics",
        "datasets",
        "huggingface-hub",
        "jsonargparse",
    } <= bounded


def test_a_configuration_that_is_here_comes_first(tmp_path, monkeypatch):
    from elang.cli.arguments import checked_arguments

    monkeypatch.chdir(tmp_path)
    own = tmp_path / "configs" / "trainer" / "ddp.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("trainer: {}\n")
    for given in (["--config", "configs/trainer/ddp.yaml"], ["--config=configs/trainer/ddp.yaml"]):
        assert checked_arguments(given) == given
    own.unlink()
    with pytest.warns(UserWarning, match="the package's own"):
        (found,) = checked_arguments(["--config=configs/trainer/ddp.yaml"])
    assert found == f"--config={ROOT / 'configs' / 'trainer' / 'ddp.yaml'}"
    for other in ("configs/nothing.yaml", "configs/../pyproject.toml", "elsewhere/configs/trainer/ddp.yaml"):
        assert checked_arguments(["--config", other]) == ["--config", other]
