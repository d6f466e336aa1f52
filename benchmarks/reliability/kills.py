"""Kills runs at random moments, resumes them, and compares them with a run that was not killed.

    python benchmarks/reliability/kills.py [--kills 50] [--verbs fit score parts ask suite predict] [--processes 1 2]
        [--jobs 1]

A tiny pair on the CPU. Every other kill is SIGKILL, the others SIGTERM, to the whole group of processes; a run is
killed up to three times before it may end. `fit` resumes from the newest checkpoint, the others by the same command
 (`parts` is `score --model.parts 6`; what `ask` asks is a server of this script). Weights (of one process) must
be the same bit for bit, records, tables and answers row by row. Writes benchmarks/results/kills.json; ends with 1 if
anything was lost.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import ROOT, figures_of, git_commit, write_result

IN_A_ROW = 3
PORT = 8765
FILES = ["--data.train", "train.csv", "--data.validation", "dev.csv"]
SWIFT = ["--model", "SwiftModule", "--model.layers", "1", "--model.super_records", "super.parquet"]
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
QUIET += ["--trainer.enable_model_summary", "false"]


def prepare(home: Path) -> None:
    """Models, data and what the verbs start from."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import write_data, write_model

    write_model(home / "base")
    write_data(home / "train.csv", 400, 1)
    write_data(home / "dev.csv", 101, 2)
    frame = pd.read_csv(write_data(home / "many.csv", 3000, 3))
    (home / "many.txt").write_text("\n".join(frame["text"]) + "\n", "utf-8")
    fit = ["fit", "--model.model", "base", *data(), *QUIET, "--trainer.logger", "false", "--model.lr", "5e-3"]
    fit += ["--trainer.enable_checkpointing", "false", "--trainer.max_epochs", "1"]
    score = ["score", "--model.model", "super", "--model.output", "super.parquet", *data(), *QUIET]
    for command in ([*fit, "--model.output", "super"], score, [*fit, *SWIFT, "--model.output", "swift"]):
        run(command, home)


def data(processes: int = 1) -> list[str]:
    return [*FILES, "--data.batch_size", "16", "--trainer.devices", str(processes)]


def serve_answers() -> None:
    """A Super behind HTTP, in a thread: some time for each request, and answers that follow from the texts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts = json.loads(self.rfile.read(int(self.headers["content-length"])))["texts"]
            time.sleep(0.1)
            said = json.dumps({"answers": [("bad", "good")[len(text) % 2] for text in texts]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    # Of clients that were killed.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()


def command_of(verb: str, folder: Path, processes: int) -> list[str]:
    """The command whose results lie in ``folder``."""
    if verb == "fit":
        every = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_top_k": -1}}
        options = ["--model.model", "base", "--trainer.max_epochs", "4", "--trainer.default_root_dir", str(folder)]
        options += ["--trainer.callbacks", json.dumps([every]), "--trainer.logger", "false"]
        return ["fit", *SWIFT, *options, "--model.output", f"{folder}/swift", *data(processes), *QUIET]
    if verb in ("score", "parts"):
        parts = ["--model.parts", "6"] if verb == "parts" else []
        given = ["--model.model", "super", "--model.output", f"{folder}/r.parquet", *parts]
        return ["score", *given, *data(processes), *QUIET]
    if verb == "ask":
        given = ["--url", f"http://127.0.0.1:{PORT}", "--output", f"{folder}/r.parquet", *FILES]
        return ["ask", *given, "--concurrent", "2", "--batch_size", "4"]
    if verb == "predict":
        models = ["--swift_model", "swift", "--super_model", "super", "--threshold", "defer 30%", "--chunk", "64"]
        return ["predict", *models, "--input", "many.txt", "--output", f"{folder}/out.jsonl"]
    plan: dict[str, Any] = {"swift_model": "base", "super_model": "base", "super": {"trainer": {"max_epochs": 1}}}
    plan |= {"swift": {"model": {"layers": 1}, "trainer": {"max_epochs": 1}}, "joint": {}}
    plan["all"] = {
        "trainer": {"accelerator": "cpu", "logger": False, "devices": processes, "enable_progress_bar": False}
    }
    task = {"train": "train.csv", "validation": "dev.csv", "batch_size": 16}
    plan["tasks"] = {"one": {"all": {"data": task}}}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan), "utf-8")
    return ["suite", "one", "--config", f"{folder}/plan.yaml", "--output", f"{folder}/runs"]


def start(command: list[str], home: Path) -> "subprocess.Popen[str]":
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    full = [sys.executable, "-m", "elang", *command]
    out = subprocess.PIPE
    return subprocess.Popen(full, cwd=home, env=env, text=True, stdout=out, stderr=out, start_new_session=True)


def run(command: list[str], home: Path) -> float:
    """Run to the end; seconds."""
    begin, process = time.monotonic(), start(command, home)
    said = process.communicate(timeout=600)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}: {said[1][-2000:]}")
    return time.monotonic() - begin


def newest(folder: Path) -> list[str]:
    found = sorted(
        folder.rglob("*.ckpt"), key=lambda path: int(path.name.split("step=")[1].split(".")[0].split("-")[0])
    )
    return ["--ckpt_path", str(found[-1])] if found else []


def result_of(verb: str, there: Path, processes: int) -> Any:
    """What two runs must have in common."""
    if verb == "fit":
        weights = (there / "swift" / "model.safetensors").read_bytes()
        return hashlib.sha256(weights).hexdigest() if processes == 1 else len(weights)
    if verb == "predict":
        rows = [json.loads(line) for line in (there / "out.jsonl").read_text("utf-8").splitlines()]
        return [(row["label"], row["answered_by"], round(row["score"], 4)) for row in rows]
    paths = [there / "r.parquet"] if verb in ("score", "parts", "ask") else sorted(there.rglob("records.parquet"))
    return [pd.read_parquet(path).to_json(double_precision=5) for path in paths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="of each verb, shared out among --processes")
    parser.add_argument("--verbs", nargs="+", default=["fit", "score", "parts", "ask", "suite", "predict"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="verbs at a time")
    args = parser.parse_args()
    # Figures of verbs that are not run now stay, with the commit of their run.
    figures = figures_of("kills")
    with tempfile.TemporaryDirectory() as where:
        home = Path(where)
        prepare(home)
        if "ask" in args.verbs:
            serve_answers()
        share = -(-args.kills // len(args.processes))
        alone = [verb for verb in args.verbs if verb in ("ask", "predict")]
        todo = [(verb, n, home, share) for verb in args.verbs if verb not in alone for n in args.processes]
        todo += [(verb, 1, home, args.kills) for verb in alone]
        with ThreadPoolExecutor(args.jobs) as pool:
            every = pool.map(lambda one: survive(*one), todo)
            for (verb, n, *_), found in zip(todo, every, strict=True):
                figures[f"{verb}, {n} process{'es' if n > 1 else ''}"] = {"commit": git_commit(), **found}
                print(verb, n, found, flush=True)
    write_result("kills", figures, ("torch", "lightning"))
    if any(found["lost"] for found in figures.values()):
        raise SystemExit(1)


def survive(verb: str, processes: int, home: Path, kills: int) -> dict[str, Any]:
    """Kill one verb so often, up to ``IN_A_ROW`` times in one folder, and compare what it ends with."""
    draw = random.Random(f"{verb} {processes}")
    whole = Path(f"{verb}-{processes}-whole")
    (home / whole).mkdir()
    seconds = run(command_of(verb, home / whole, processes), home)
    expected = result_of(verb, home / whole, processes)
    found: dict[str, Any] = {"kills": 0, "runs": 0, "lost": 0, "half-written": 0, "seconds of a whole run": seconds}
    while found["kills"] < kills:
        folder = home / f"{verb}-{processes}-{found['runs']}"
        folder.mkdir()
        found["runs"] += 1
        command = command_of(verb, folder, processes)
        for _ in range(IN_A_ROW):
            process = start([*command, *(newest(folder) if verb == "fit" else [])], home)
            time.sleep(draw.uniform(0.3, 1.0) * seconds)
            if process.poll() is not None or found["kills"] == kills:
                break
            os.killpg(process.pid, (signal.SIGKILL, signal.SIGTERM)[found["kills"] % 2])
            found["kills"] += 1
            process.communicate(timeout=300)
        else:
            process = start([*command, *(newest(folder) if verb == "fit" else [])], home)
        said = process.communicate(timeout=600)[1]
        try:
            same = process.returncode == 0 and result_of(verb, folder, processes) == expected
        except (OSError, ValueError) as error:
            same, said = False, f"{said}\n{error}"
        if not same:
            print(verb, processes, folder.name, process.returncode, said[-2000:], flush=True)
        found["lost"] += not same
        found["half-written"] += len([path for path in folder.rglob("*.part*") if path.is_file()])
    return found


if __name__ == "__main__":
    main()
