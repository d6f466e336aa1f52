"""`fit`, `score` and `validate` on 1, 2 and 4 processes, on two hosts, and sharded: the same weights and records.

    python benchmarks/scale/cluster.py [--work FOLDER]  # CPU; as root for two hosts (network namespaces)

A Swift without dropout is fitted on made-up sentences, by processes in step and by one that accumulates as many
batches; 61 and 301 examples are scored and evaluated, in batches of 64 and 8, so that some processes have nothing.
Seconds show the cost of starting, because the cores are shared. Writes benchmarks/results/cluster.json and exits with 1
where something differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import ROOT, write_result

QUIET = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
HOSTS = {"elang-a": "10.77.0.1", "elang-b": "10.77.0.2"}
PORT = "29777"


def prepare(home: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import write_data, write_model

    write_model(home / "base", 2)
    config = json.loads((home / "base" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (home / "base" / "config.json").write_text(json.dumps(config))
    write_data(home / "train.csv", 240, 1)
    write_data(home / "dev.csv", 61, 2)


@contextmanager
def hosts() -> Any:
    """Two connected network namespaces with their own addresses."""

    def ip(*args: str) -> None:
        subprocess.run(["ip", *args], check=True, capture_output=True)

    try:
        for name in HOSTS:
            ip("netns", "add", name)
        ip("link", "add", "elang0", "netns", "elang-a", "type", "veth", "peer", "name", "elang0", "netns", "elang-b")
        for name, address in HOSTS.items():
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "elang0")
            for device in ("lo", "elang0"):
                ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        for name in HOSTS:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


def elang(home: Path, *args: str, processes: int = 1, nodes: int = 1, strategy: str = "ddp") -> float:
    """Run a verb and return its seconds."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "elang", *args, *QUIET, "--trainer.devices", str(processes)]
    if processes * nodes > 1:
        command += ["--trainer.strategy", strategy, "--trainer.num_nodes", str(nodes)]
    start = time.perf_counter()
    running = []
    for rank, name in enumerate(list(HOSTS)[:nodes]):
        own = environment
        inside: list[str] = []
        if nodes > 1:
            own = own | {"MASTER_ADDR": HOSTS["elang-a"], "MASTER_PORT": PORT, "NODE_RANK": str(rank)}
            own |= {"GLOO_SOCKET_IFNAME": "elang0"}
            inside = ["ip", "netns", "exec", name]
        running.append(subprocess.Popen([*inside, *command], cwd=home, env=own, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, said = process.communicate(timeout=300)
        if process.returncode:
            raise SystemExit(f"{args} ended with {process.returncode}: {said[-3000:]}")
    return time.perf_counter() - start


def weights_apart(one: Path, other: Path) -> float:
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def records_apart(one: Path, other: Path) -> dict[str, Any]:
    a, b = (pd.read_parquet(path) for path in (one, other))
    logits = [np.stack(frame["logits"]) for frame in (a, b)] if "logits" in a else []
    rest = [frame[["split", "id", *(c for c in frame if "prediction" in c)]] for frame in (a, b)]
    return {
        "examples": len(b),
        "same answers": rest[0].equals(rest[1]),
        "logits apart": float(np.abs(logits[0] - logits[1]).max()) if logits else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    two_hosts = os.geteuid() == 0 and subprocess.run(["ip", "netns"], capture_output=True, check=False).returncode == 0
    ways = {"2 processes": (2, 1, "ddp"), "4 processes": (4, 1, "ddp"), "2 processes, sharded": (2, 1, "sharded")}
    if two_hosts:
        ways |= {
            "2 hosts": (1, 2, "ddp"),
            "2 hosts of 2 processes": (2, 2, "ddp"),
            "2 hosts, sharded": (1, 2, "sharded"),
        }
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.work) as where, hosts() if two_hosts else nullcontext():
        home = Path(where)
        prepare(home)
        data = ["--data.train", "train.csv", "--data.validation", "dev.csv", "--data.routing_fraction", "0"]
        fit = ["fit", "--model", "SwiftModule", "--model.model", "base", "--model.distill_weight", "0"]
        fit += ["--model.hard", "error", "--model.margin_weight", "0.1", "--model.lr", "1e-3", *data]
        fit += ["--data.batch_size", "15", "--trainer.max_epochs", "2"]
        fit += ["--trainer.enable_checkpointing", "false"]
        for count in (1, 2, 4):
            accumulate = ["--trainer.accumulate_grad_batches", str(count)]
            figures[f"alone, {count} batches a step"] = {
                "fit seconds": elang(home, *fit, "--model.output", f"alone-{count}", *accumulate)
            }
        super_ = "alone-1"
        score = ["score", "--model.model", super_, *data, "--data.eval_batch_size"]
        pair = ["validate", "--model.swift_model", "alone-2", "--model.super_model", super_, *data]
        for size in ("8", "64"):
            elang(home, *score, size, "--model.output", f"one-{size}.parquet")
            elang(home, *pair, "--data.eval_batch_size", size, "--model.output", f"one-{size}")
        for name, (processes, nodes, strategy) in ways.items():
            spread: dict[str, Any] = {"processes": processes, "nodes": nodes, "strategy": strategy}
            seconds = elang(home, *fit, "--model.output", "fitted", **spread)
            found: dict[str, Any] = {
                "fit seconds": seconds,
                "weights apart": weights_apart(home / f"alone-{processes * nodes}", home / "fitted"),
            }
            for size in ("8", "64"):
                elang(home, *score, size, "--model.output", "more.parquet", **spread)
                elang(home, *pair, "--data.eval_batch_size", size, "--model.output", "more", **spread)
                found[f"score, batches of {size}"] = records_apart(home / f"one-{size}.parquet", home / "more.parquet")
                joint = records_apart(home / f"one-{size}" / "records.parquet", home / "more" / "records.parquet")
                curves = [(home / folder / "curve.csv").read_text() for folder in (f"one-{size}", "more")]
                found[f"validate, batches of {size}"] = joint | {"same curve": curves[0] == curves[1]}
            parts = [part for key, part in found.items() if isinstance(part, dict)]
            exact = strategy == "ddp"
            found["met"] = found["weights apart"] < 1e-5 and all(
                part["same answers"] and part["logits apart"] <= (0 if exact else 1e-5) for part in parts
            )
            figures[name] = found
            print(name, json.dumps(found), flush=True)
    figures["met"] = all(one.get("met", True) for one in figures.values())
    print(f"written to {write_result('cluster', figures, ('torch', 'lightning', 'transformers'))}")
    sys.exit(not figures["met"])


if __name__ == "__main__":
    main()
