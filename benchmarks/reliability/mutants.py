"""Whether the tests notice changes to the core: mutation testing with mutmut.

    python benchmarks/reliability/mutants.py --work FOLDER            # hours; resumes; needs pip install mutmut
    python benchmarks/reliability/mutants.py --work FOLDER --collect  # only reads what a run in FOLDER found

Modules are changed in a copy of the last commit, one place at a time, and their tests run: first those that need no
trained pair, then, for changes that survived or were not reached, those that need one. Writes
benchmarks/results/mutants.json with every change that no test notices. Code that runs at import is not changed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import ROOT, write_result

CORE = ("scores", "losses", "certificate", "bounds", "curve/*", "quality/*")
MODULES = [
    *(str(path.relative_to(ROOT)) for name in CORE for path in sorted(ROOT.glob(f"elang/method/{name}.py"))),
    "elang/evaluation/promises.py",
    "elang/evaluation/statements.py",
]
CALIBRATE = "tests/evaluation/test_calibrate.py"
TESTS = ["tests/method", "tests/backends/test_cost.py", "tests/test_metrics.py", CALIBRATE]
SLOW = "not large_t5 and not over_processes and not known_models"
PAIR = (
    "certificate_from_records", "does_not_hold_is_told", "other_points", "cannot_be_promised", "what_it_was_fitted_on",
    "another_scale", "another_swift", "small_slice_defers",
)  # fmt: skip
# mutmut's exit codes by mutant: 0 is a run of the tests without failure, 33 that none reaches it.
SURVIVED, UNREACHED = 0, 33
BAR = 0.9


def configure(copy: Path, selection: list[str], chosen: str) -> None:
    lists = {
        "source_paths": MODULES,
        "also_copy": ["elang", "tests", "configs", "pyproject.toml", "README.md", "CHANGELOG.md", "docs"],
        "pytest_add_cli_args": ["--doctest-modules", "-k", chosen],
        "pytest_add_cli_args_test_selection": selection,
    }
    lines = ["[mutmut]"]
    for name, values in lists.items():
        lines += [f"{name}=", *(f"    {value}" for value in values)]
    (copy / "setup.cfg").write_text("\n".join(lines) + "\n")
    # mutmut finds out again which tests reach which code.
    (copy / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)


def exit_codes(copy: Path) -> dict[str, dict[str, int | None]]:
    """Exit codes by module and mutant."""
    metas = {name: copy / "mutants" / f"{name}.meta" for name in MODULES}
    return {name: json.loads(path.read_text())["exit_code_by_key"] for name, path in metas.items() if path.is_file()}


def mutmut(copy: Path, *args: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "mutmut", *args], cwd=copy, env=environment, capture_output=True, text=True, check=False
    ).stdout


def run(copy: Path, children: int) -> None:
    if not copy.exists():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    configure(copy, [*TESTS, *MODULES], f"{SLOW} and {' and '.join(f'not {name}' for name in PAIR)}")
    mutmut(copy, "run", "--max-children", str(children))
    left = [key for codes in exit_codes(copy).values() for key, code in codes.items() if code in (SURVIVED, UNREACHED)]
    configure(copy, [CALIBRATE], " or ".join(PAIR))
    mutmut(
        copy, "run", "--max-children", str(children), *(key for key in left if "evaluation" in key or "certif" in key)
    )


def change(copy: Path, key: str) -> list[str]:
    """The changed lines of a mutant."""
    return [line for line in mutmut(copy, "show", key).splitlines() if re.match(r"[-+] ", line)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--children", type=int, default=os.cpu_count())
    parser.add_argument("--collect", action="store_true")
    args = parser.parse_args()
    copy = args.work / "elang"
    if not args.collect:
        run(copy, args.children)
    figures: dict[str, Any] = {"modules": {}, "survivors": {}}
    for name, codes in exit_codes(copy).items():
        kinds = Counter(codes.values())
        survived = sorted(key for key, code in codes.items() if code in (SURVIVED, UNREACHED, None))
        figures["modules"][name] = {
            "mutants": len(codes),
            "killed": len(codes) - len(survived),
            "share": round(1 - len(survived) / len(codes), 4),
            "not reached": kinds[UNREACHED] + kinds[None],
        }
        figures["survivors"][name] = {key: change(copy, key) for key in survived}
        print(name, figures["modules"][name], flush=True)
    total = {k: sum(one[k] for one in figures["modules"].values()) for k in ("mutants", "killed")}
    figures["all"] = total | {"share": round(total["killed"] / total["mutants"], 4)}
    print(figures["all"], f"written to {write_result('mutants', figures, ('mutmut', 'pytest'))}")
    sys.exit(figures["all"]["share"] < BAR)


if __name__ == "__main__":
    main()
