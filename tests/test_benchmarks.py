"""Every benchmark is in the table of benchmarks/README.md, is short, and imports what there is."""

import ast
import json
import re
import runpy
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
FILES = {path.relative_to(BENCHMARKS).as_posix(): path for path in sorted(BENCHMARKS.glob("*/*.py"))}
SCRIPTS = {name for name, path in FILES.items() if '__name__ == "__main__"' in path.read_text("utf-8")}
ROWS = re.findall(
    r"^\| \[`(\S+)`\]\((\S+)\) \|.*\| ([^|]*) \|$", (BENCHMARKS / "README.md").read_text("utf-8"), re.MULTILINE
)


def test_the_table_has_every_script():
    assert len(ROWS) == len(SCRIPTS)
    assert {name for name, _, _ in ROWS} == {link for _, link, _ in ROWS} == SCRIPTS


@pytest.mark.parametrize(("script", "_", "last"), ROWS, ids=[name for name, _, _ in ROWS])
def test_the_last_result_is_the_files(script, _, last):
    path = BENCHMARKS / "results" / f"{Path(script).stem}.json"
    if last == "not run yet":
        assert not path.exists()
        return
    result = json.loads(path.read_text("utf-8"))
    # Where answers of another machine were only put into tables, theirs counts.
    made = result.get("records", result)
    assert last == f"{made['date'][:10]}, {made['hardware']['gpu'] or str(made['hardware']['cores']) + ' cores'}"


@pytest.mark.parametrize("name", FILES)
def test_a_benchmark_imports_what_there_is(name):
    text = FILES[name].read_text("utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "elang":
            module = import_module(str(node.module))
            assert not [name.name for name in node.names if not hasattr(module, name.name)]


def test_mutation_testing_names_what_there_is():
    mutants = runpy.run_path(str(FILES["reliability/mutants.py"]))
    root = BENCHMARKS.parent
    assert all([*root.glob(f"elang/method/{name}.py")] for name in mutants["CORE"])
    assert all((root / path).exists() for path in (*mutants["MODULES"], *mutants["TESTS"]))
    calibration = (root / mutants["CALIBRATE"]).read_text("utf-8")
    assert all(re.search(rf"def test_\w*{name}", calibration) for name in mutants["PAIR"])
