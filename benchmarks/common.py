"""What every benchmark writes down beside its figures: date, hardware, commit and versions."""

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def hardware() -> str:
    """The GPU, or the processor with the number of its cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str:
    """The commit, with a mark where the tree differs from it; ELANG_COMMIT names it outside a checkout."""
    found = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude", "*"], capture_output=True, text=True)
    return os.environ.get("ELANG_COMMIT") or found.stdout.strip() or "unknown"


def write_results(name: str, figures: dict[str, Any]) -> None:
    """Write ``results/name.json``."""
    about = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "commit": commit(),
        "versions": {p: version(p) for p in ("torch", "lightning", "transformers", "torchmetrics")},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**about, **figures}, indent=2) + "\n")
