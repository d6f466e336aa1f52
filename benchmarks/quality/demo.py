"""How long the demo takes, what it reaches, and whether a second run prints the same.

    python benchmarks/quality/demo.py [--runs 3] [--wheels FOLDER]

Runs `elang demo` in folders of its own and reads what it wrote. The bars: each run in under three minutes on two idle
cores, downloads among them; at the default threshold, chosen on held-out stories, at least 2.5 times fewer FLOPs than
the Super, at most half a point below it, and a difference of 0 within the 95% interval.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

from elang.json_files import read_object

SECONDS, SPEEDUP, HALF_POINT = 180, 2.5, 0.005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--wheels", help="folder of the two wheels; by default each run downloads them")
    args = parser.parse_args()
    start, runs = time.perf_counter(), []
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(one_run(Path(folder) / "demo", ["--wheels", args.wheels] if args.wheels else []))
        print(runs[-1], flush=True)
    same = len({run["story"] for run in runs}) == 1
    met = same and all(
        run["seconds"] < SECONDS
        and run["speedup"] >= SPEEDUP
        and run["difference"] >= -HALF_POINT
        and run["low"] <= 0 <= run["high"]
        for run in runs
    )
    figures = {"runs": runs, "same answers": same, "met": met, "seconds": round(time.perf_counter() - start)}
    write_result("demo", figures, ("torch", "transformers"))
    raise SystemExit(0 if met else "A bar of the demo was missed.")


def one_run(folder: Path, options: list[str]) -> dict[str, Any]:
    """Run the demo, and say how long it took and what the pair reaches at the default threshold."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "elang", "demo", "--output", str(folder), *options]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - start
    summary = read_object(folder / "joint" / "summary.json")
    pair = summary["operating_points"][summary["score"]]["held out, 1-SE"]
    found = summary["qualities"]["accuracy"]
    # The lines after those of the steps, which end with seconds and folders.
    story = told.partition("right answers")[2].partition("Three things")[0]
    return {
        "seconds": round(seconds, 1),
        "swift": found["swift"]["quality"],
        "super": found["super"]["quality"],
        "pair": pair["quality"],
        "speedup": pair["speedup"],
        "deferred_share": pair["deferred_share"],
        **{key: pair["to_super"][key] for key in ("difference", "low", "high")},
        "examples": summary["num_examples"],
        "story": story,
    }


if __name__ == "__main__":
    main()
