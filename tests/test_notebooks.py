"""The notebooks run, on what the demo left behind, and are kept without outputs."""

import os
import re
from pathlib import Path

import forking
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_kept(path):
    import nbformat

    cells = nbformat.read(path, 4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    demo = Path(os.environ.get("ELANG_DEMO", "runs/demo")).resolve()
    if not (demo / "joint" / "records.parquet").is_file():
        if os.environ.get("CI"):
            pytest.fail("ELANG_DEMO must name the demo's folder in CI")
        pytest.skip("run `make demo` first, or set ELANG_DEMO to its folder")
    monkeypatch.setenv("ELANG_DEMO", str(demo))
    if path == NOTEBOOKS[0]:
        # One in a process as a reader has it, which imports all anew.
        monkeypatch.setattr(forking, "MODULES", ())
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        # Every cell runs, but how good the models become is not looked at.
        cell.source = re.sub(r"\btrainer\((\d+)", lambda found: f"trainer({max(2, int(found[1]) // 4)}", cell.source)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
