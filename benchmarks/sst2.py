"""SST-2 whole, with the shipped configs: a Super, then Swifts of several depths, then the evaluation of each pair.

    python benchmarks/sst2.py --data GLUE/SST-2 --super MPNET --swift MINILM [--precision bf16-mixed] [--layers 6 3]

The models are folders of transformers. Prints a table and writes benchmarks/results/sst2.json.
"""

import argparse
import json
import time
from pathlib import Path

from common import write_result

from elang.cli import main as elang

CONFIGS = Path(__file__).parent.parent / "configs" / "sst2"


def run(verb: str, *options: str) -> float:
    start = time.perf_counter()
    if elang([verb, *options]) != 0:
        raise SystemExit(f"elang {verb} failed")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--super", required=True)
    parser.add_argument("--swift", required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-sst2"))
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="options for both fits")
    args = parser.parse_args()
    data = ["--data.train", str(args.data / "train.tsv"), "--data.validation", str(args.data / "dev.tsv")]
    data = ["--config", str(CONFIGS / "data.yaml"), *data]
    quiet = ["--trainer.enable_progress_bar", "false"]
    fit = [*quiet, "--trainer.precision", args.precision, "--trainer.logger", "false"]
    fit += ["--trainer.enable_checkpointing", "false", "--trainer.enable_model_summary", "false", *args.extra]
    rows = []
    for seed in args.seeds:
        out = args.out / f"seed{seed}"
        super_ = ["--model.model", args.super, "--model.output", str(out / "super"), "--seed_everything", str(seed)]
        seconds = {"fit super": run("fit", "--config", str(CONFIGS / "super.yaml"), *data, *super_, *fit)}
        records = str(out / "super.parquet")
        score = ["--model.model", str(out / "super"), "--model.output", records]
        seconds["score super"] = run("score", "--config", str(CONFIGS / "score.yaml"), *data, *score, *quiet)
        for layers in args.layers:
            swift, joint = out / f"swift{layers}", out / f"joint{layers}"
            options = ["--model.model", args.swift, "--model.layers", str(layers), "--model.super_records", records]
            options += ["--model.output", str(swift), "--seed_everything", str(seed)]
            seconds["fit swift"] = run("fit", "--config", str(CONFIGS / "swift.yaml"), *data, *options, *fit)
            pair = ["--model.swift_model", str(swift), "--model.super_model", str(out / "super")]
            pair += ["--model.output", str(joint)]
            seconds["validate"] = run("validate", "--config", str(CONFIGS / "joint.yaml"), *data, *pair, *quiet)
            rows.append({"seed": seed, "layers": layers, "seconds": dict(seconds), **read(joint / "summary.json")})
            print(json.dumps(rows[-1]), flush=True)
    show(rows)
    libraries = ("torch", "lightning", "transformers", "torchmetrics")
    write_result("sst2", {"precision of training": args.precision, "rows": rows}, libraries)


def read(path: Path) -> dict[str, object]:
    summary = json.loads(path.read_text())
    found = summary["qualities"]["accuracy"]
    pick = ("quality", "deferred_share", "speedup")
    scores = {}
    for name, score in found["scores"].items():
        points = {f"held out, {k}": v for k, v in score["held_out"].items() if k in ("parity", "99.5%", "99%")}
        points |= {f"read here, {k}": v for k, v in score["on_this_set"].items() if k in ("parity", "99.5%", "99%")}
        scores[name] = {"area": score["area"], **{k: {p: v[p] for p in pick} for k, v in points.items()}}
    models = {"swift": found["swift"]["quality"], "super": found["super"]["quality"]}
    flops = {"swift GFLOPs": found["swift"]["cost"] / 1e9, "super GFLOPs": found["super"]["cost"] / 1e9}
    return {**models, **flops, "scores": scores, "latency": summary.get("latency")}


def show(rows: list[dict[str, object]]) -> None:
    print("seed layers  swift  super  score            area   held out, parity      held out, 99%         read here")
    for row in rows:
        for name, score in row["scores"].items():
            cells = [score.get(k) for k in ("held out, parity", "held out, 99%", "read here, parity")]
            text = [f"{c['quality']:.4f} {c['deferred_share']:6.1%} {c['speedup']:5.2f}x" if c else "-" for c in cells]
            print(
                f"{row['seed']:4} {row['layers']:6}  {row['swift']:.4f} {row['super']:.4f} {name:15} "
                f"{score['area']:6.3f}   " + "   ".join(f"{t:19}" for t in text)
            )


if __name__ == "__main__":
    main()
