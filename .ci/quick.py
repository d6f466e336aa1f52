"""Runs the tests that are nearest to what differs from main, as long as there is time: `make quick`.

tests/ mirrors elang/: a change in elang/method/scores.py is tested by tests/method/test_scores.py, then by other files
of tests/method. Tests that are not begun in time are skipped, so `make test` has the last word.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the first test on; lint, types and imports take 20 to 30 seconds more, and the last test some.
SECONDS = 30
MOST_FILES = 6
ALWAYS = ["tests/test_structure.py"]
# Where nothing has changed that a test mirrors.
OTHERWISE = ["tests/method/test_scores.py", "tests/method/test_curve.py", "tests/test_metrics.py"]
BEGUN = pytest.StashKey[float]()


# This file is a plugin of pytest, too, in each of its processes.
def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[BEGUN] = time.monotonic()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() - item.config.stash[BEGUN] > SECONDS:
        pytest.skip("out of time")


def git(*args: str) -> list[str]:
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def changed() -> list[str]:
    """Files that are not as where this branch left main, the newest first."""
    base = git("merge-base", "HEAD", "main") or git("merge-base", "HEAD", "origin/main") or ["HEAD"]
    names = {*git("diff", "--name-only", base[0]), *git("ls-files", "--others", "--exclude-standard")}
    there = [name for name in names if (ROOT / name).is_file()]
    return sorted(there, key=lambda name: (-(ROOT / name).stat().st_mtime, name))


def tests_of(names: list[str]) -> list[str]:
    """Files of tests: those that changed or are called like what changed, then others of the packages by size."""
    near, far = [], []
    for path in map(Path, names):
        if path.parts[0] == "tests" and path.name.startswith("test_"):
            near.append(path.as_posix())
        elif path.parts[0] == "benchmarks":
            near.append("tests/test_benchmarks.py")
        elif path.parts[0] == "elang":
            near += [one.relative_to(ROOT).as_posix() for one in ROOT.glob(f"tests/**/test_{path.stem}.py")]
            if len(path.parts) > 2:
                far += sorted((ROOT / "tests" / path.parts[1]).glob("test_*.py"), key=lambda one: one.stat().st_size)
    found = [*dict.fromkeys([*near, *(one.relative_to(ROOT).as_posix() for one in far)])]
    return [*dict.fromkeys([*ALWAYS, *(found or OTHERWISE)[:MOST_FILES]])]


def main() -> int:
    tests = tests_of(changed())
    print("tests, as long as there is time:", *tests, flush=True)
    path = os.pathsep.join([str(ROOT / ".ci"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-r", "fE", "-W", "ignore", "-p", "quick", "-n", "2", *tests]
    return subprocess.run([*command, "--dist", "loadfile"], cwd=ROOT, env=os.environ | {"PYTHONPATH": path}).returncode


if __name__ == "__main__":
    sys.exit(main())
