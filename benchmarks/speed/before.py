"""Start-up, reading, fitting, the sweep and predicting, against another checkout: is a change paid for with time?

git worktree add ../before COMMIT
python benchmarks/speed/before.py ../before [--rounds 7] [--rows 100000]

Both checkouts do the same work in turn, each in a process of its own, whose start-up counts only in the "start" parts.
The ratio is the median over the rounds of this checkout's seconds to the other's. Writes
benchmarks/results/before.json and fails where this checkout is more than 3% slower.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import ROOT, write_result

BAR = 1.03
PARTS = ("start --help", "start fit --help", "read csv", "read tsv", "read jsonl", "fit", "sweep", "predict")
WORDS = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "ay", "ee", "or")]


def make(folder: Path, rows: int) -> None:
    """Write data in three formats, and a small pair that fits them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    chance = random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(5, 40))) for _ in range(rows)]
    labels = [chance.choice(["no", "yes"]) for _ in texts]
    for name, count in (("many", rows), ("few", 4096)):
        pairs = list(zip(texts[:count], labels, strict=False))
        csv = "".join(f'"{text}, {text[:9]}",{label}\n' for text, label in pairs)
        (folder / f"{name}.csv").write_text("text,label\n" + csv, "utf-8")
        (folder / f"{name}.tsv").write_text("text\tlabel\n" + "".join(f"{t}\t{k}\n" for t, k in pairs), "utf-8")
        lines = "".join(f'{{"text": "{text}", "label": "{label}"}}\n' for text, label in pairs)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    (folder / "lines.txt").write_text("\n".join(texts[:8192]) + "\n", "utf-8")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")}
    for name, layers in (("swift", 1), ("super", 4)):
        sizes = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256, "num_hidden_layers": layers}
        known = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}, "pad_token_id": 0}
        config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes, **known)
        BertForSequenceClassification(config).save_pretrained(folder / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder / name)


def work(part: str, folder: Path) -> float:
    """Do one part in this process, with the ``elang`` that is imported here; its seconds."""
    verb, _, suffix = part.partition(" ")
    if verb == "start":
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "elang", *suffix.split()], capture_output=True, check=True)
        return time.perf_counter() - start
    import torch

    from elang import JointPredictor, TextClassificationData, operating_curve
    from elang.cli import main

    if verb == "sweep":
        generator = torch.Generator().manual_seed(0)
        right = torch.rand(2, 2_000_000, 1, generator=generator) < torch.tensor([0.8, 0.9]).view(2, 1, 1)
        score = torch.rand(2_000_000, generator=generator)
        start = time.perf_counter()
        operating_curve(score, right[0], right[1], lambda sums: sums[:, 0] / 2_000_000)
        return time.perf_counter() - start
    if verb == "read":
        start = time.perf_counter()
        TextClassificationData(train=str(folder / f"many.{suffix}")).examples("train")
        return time.perf_counter() - start
    if verb == "predict":
        predictor = JointPredictor(str(folder / "swift"), str(folder / "super"), threshold=-0.7, device="cpu")
        texts = (folder / "lines.txt").read_text("utf-8").splitlines()
        predictor(texts[:256])
        start = time.perf_counter()
        list(predictor.map(texts))
        return time.perf_counter() - start
    import lightning.pytorch.cli  # noqa: F401 - start-up is a part of its own

    start = time.perf_counter()
    options = {
        "--model.model": str(folder / "super"),
        "--model.output": str(folder / f"fitted-{os.getpid()}"),
        "--data.train": str(folder / "few.csv"),
        "--data.validation": str(folder / "few.tsv"),
        "--trainer.max_epochs": "1",
        "--trainer.accelerator": "cpu",
        "--trainer.logger": "false",
        "--trainer.enable_checkpointing": "false",
        "--trainer.enable_progress_bar": "false",
    }
    assert main(["fit", *(word for pair in options.items() for word in pair)]) == 0
    return time.perf_counter() - start


def seconds(checkout: Path, part: str, folder: Path) -> float:
    """Seconds of one part in a checkout."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder), str(checkout)]
    env = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("other", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--part")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.part:
        print(work(args.part, args.folder))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, args.rows)
        for part in PARTS:
            pairs = []
            for i in range(args.rounds + 1):
                # The order changes from round to round, so that neither always finds warm caches.
                order = [ROOT, args.other.resolve()] if i % 2 else [args.other.resolve(), ROOT]
                took = {checkout: seconds(checkout, part, folder) for checkout in order}
                pairs.append((took[ROOT], took[args.other.resolve()]))
            ratios = [ours / theirs for ours, theirs in pairs[1:]]
            low, middle, high = statistics.quantiles(ratios, n=4)
            here = statistics.median(ours for ours, _ in pairs[1:])
            row = {"part": part, "seconds": round(here, 3), "ratio": round(middle, 4)}
            rows.append(row | {"quartiles": [round(low, 4), round(high, 4)], "met": middle <= BAR})
            print(f"{part:16} {here:7.2f} s {middle:6.3f} of before {'ok' if middle <= BAR else 'MISSED'}", flush=True)
    other = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=args.other, capture_output=True, text=True)
    figures = {"before": other.stdout.strip(), "rounds": args.rounds, "rows": args.rows, "parts": rows}
    write_result("before", figures, ("torch", "lightning", "transformers", "pandas"))
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
