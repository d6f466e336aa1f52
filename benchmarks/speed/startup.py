"""Start-up of the command line, as ratios to what it cannot do without, in one run.

python benchmarks/speed/startup.py

Prints a table, writes benchmarks/results/startup.json and fails when a bar is missed.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

LIGHTNING = (
    "import lightning.pytorch.cli\n"
    "from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification"
)
CASES = [
    ("elang --help", ["-m", "elang", "--help"], "import torch", "import torch", 1.0),
    ("elang --version", ["-m", "elang", "--version"], "import torch", "import torch", 1.0),
    ("import elang", ["-c", "import elang"], "import torch", "import torch", 0.1),
    ("elang fit --help", ["-m", "elang", "fit", "--help"], "lightning.pytorch.cli and model classes", LIGHTNING, 1.2),
]


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(rounds: int = 7) -> int:
    blank = statistics.median(seconds(["-c", "pass"]) for _ in range(rounds))
    rows = []
    for name, command, against, code, bar in CASES:
        seconds(command), seconds(["-c", code])
        pairs = [(seconds(command), seconds(["-c", code])) for _ in range(rounds)]
        # `import` alone is what is asked for where both sides import: the interpreter's own start is taken off.
        off = blank if name.startswith("import") else 0.0
        ratio = statistics.median((a - off) / (b - off) for a, b in pairs)
        rows.append({"what": name, "against": against, "ratio": round(ratio, 4), "bar": bar, "met": ratio <= bar})
        print(f"{name:18} {ratio:7.3f} x {against:40} (bar {bar}) {'ok' if ratio <= bar else 'MISSED'}", flush=True)
    write_result("startup", {"rounds": rounds, "rows": rows}, ("torch", "lightning", "transformers", "jsonargparse"))
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
