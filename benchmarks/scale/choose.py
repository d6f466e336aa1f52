"""How long `elang choose` takes, and how much memory, on a table of five models.

    python benchmarks/scale/choose.py [--rows 1000000] [--work FOLDER] [--format parquet]

Writes a table of made-up answers, runs the command on it in a process of its own, and records seconds
and the largest resident memory in benchmarks/results/choose.json; exits with 1 above 2 minutes or 4 GB at a million
rows.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

MODELS = 5
MOST_SECONDS, MOST_BYTES = 120, 4 << 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as place:
        table = Path(place) / f"answers.{args.format}"
        write_table(table, args.rows)
        asked = ["--max_regret", "0.03", "--output", str(Path(place) / "choice"), "--unit", "USD"]
        start = time.perf_counter()
        command = [sys.executable, "-m", "elang", "choose", str(table), *asked]
        done = subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - start
        found = json.loads((Path(place) / "choice" / "choice.json").read_text("utf-8"))
    print(done.stdout.decode())
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    figures = {
        "rows": args.rows,
        "models": MODELS,
        "format": args.format,
        "seconds": round(seconds, 1),
        "gigabytes": round(memory / 2**30, 2),
        "tested": len(found["path"]),
        "certified": found["certified"],
    }
    print(figures)
    write_result("choose", figures, ("torch", "pandas"))
    return int(args.rows >= 1_000_000 and (seconds > MOST_SECONDS or memory > MOST_BYTES))


def write_table(path: Path, rows: int) -> None:
    """Answers of models of which each is four times as expensive as the one before, and better."""
    rng = np.random.default_rng(0)
    hard = rng.normal(size=rows)
    columns = {"id": np.arange(rows)}
    for place in range(MODELS):
        columns[f"m{place}.correct"] = (rng.normal(size=rows) / 2 + 0.5 * place > hard).astype(np.int8)
        columns[f"m{place}.cost"] = (4**place * (1 + rng.random(rows))).round(4)
        columns[f"m{place}.score"] = (hard + rng.normal(size=rows) / 2).round(6)
    frame = pd.DataFrame(columns)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)


if __name__ == "__main__":
    sys.exit(main())
