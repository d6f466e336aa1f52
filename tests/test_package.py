"""What is built holds what the README names and the tests need; versions are bounded and tried at both ends."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


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
    assert not [name for name in names if not name.startswith(("elang/", "elang_joint-"))]
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
