"""Runs the tests closest to what differs from main, as long as there is time: `make quick`.

tests/ mirrors elang/: a change in elang/method/scores.py is tested by tests/method/test_scores.py, then by other files
of tests/method. Tests that have not started in time are skipped, so `make test` has the last word.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the first test on. Lint, types and imports take another 20 to 30 seconds, and the last test its own time.
SECONDS = 30
MAX_FILES = 6
ALWAYS = ["tests/test_structure.py"]
# If no test belongs to what has changed.
DEFAULT = ["tests/method/test_scores.py", "tests/method/test_curve.py", "tests/test_metrics.py"]
STARTED = pytest.StashKey[float]()


# This file is also a pytest plugin, loaded in each of its processes.
def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[STARTED] = time.monotonic()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() - item.config.stash[STARTED] > SECONDS:
        pytest.skip("out of time")


def git(*args: str) -> list[str]:
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def changed() -> list[str]:
    """Files that differ from where this branch left main, the newest first."""
    base = git("merge-base", "HEAD", "main") or git("merge-base", "HEAD", "origin/main") or ["HEAD"]
    names = {*git("diff", "--name-only", base[0]), *git("ls-files", "--others", "--exclude-standard")}
    existing = [name for name in names if (ROOT / name).is_file()]
    return sorted(existing, key=lambda name: (-(ROOT / name).stat().st_mtime, name))


def tests_of(names: list[str]) -> list[str]:
    """Test files: those that changed or are named after what changed, then others of its package, small ones first."""
    near, far = [], []
    for path in map(Path, names):
        if path.parts[0] == "tests" and path.name.startswith("test_"):
            near.append(path.as_posix())
        elif path.parts[0] == "benchmarks":
            near.append("tests/test_benchmarks.py")
        elif path.parts[0] == "elang":
            # method/curve/exact.py is tested by test_curve.py, and cli/suite_plan.py by test_suite.py.
            for word in (path.stem, *path.parts[2:-1], path.stem.partition("_")[0]):
                near += [file.relative_to(ROOT).as_posix() for file in sorted(ROOT.glob(f"tests/**/test_{word}.py"))]
            if len(path.parts) > 2:
                files = (ROOT / "tests" / path.parts[1]).glob("test_*.py")
                far += [
                    file.relative_to(ROOT).as_posix() for file in sorted(files, key=lambda file: file.stat().st_size)
                ]
    tests = [*dict.fromkeys([*near, *far])] or DEFAULT
    return [*dict.fromkeys([*ALWAYS, *tests[:MAX_FILES]])]


def main() -> int:
    tests = tests_of(changed())
    print("tests, as long as there is time:", *tests, flush=True)
    path = os.pathsep.join([str(ROOT / ".ci"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-r", "fE", "-W", "ignore", "-p", "quick", "-n", "2", *tests]
    return subprocess.run([*command, "--dist", "loadfile"], cwd=ROOT, env=os.environ | {"PYTHONPATH": path}).returncode


if __name__ == "__main__":
    sys.exit(main())
