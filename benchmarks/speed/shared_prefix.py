"""How much time does it save to read what all prompts begin with once?

    python benchmarks/speed/shared_prefix.py MODEL DATA [--rows 16]

MODEL is the folder of a decoder-only model, such as SmolLM2-135M-Instruct; DATA has glue/SST-2. Rows of SST-2's
development set, drawn with a fixed seed, are answered after four examples from its training file: in label words, and
by texts of eight tokens. Each batch is answered in turn with the shared tokens read once and with all tokens read; the
ratio of their times is the median over the batches. Beginnings of other lengths before the same texts show from how
many tokens on it pays. The bars: label words and the first tokens of texts are the same, and in float32 their scores
agree to 1e-4; with four examples both take at most .7 of the time; a beginning of the least length that is shared takes
at most 1.05.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

from elang.backends import shared_prefix
from elang.backends.loading.load import load_model
from elang.data.encoding import encode_examples
from elang.data.text_classification import TextClassificationData
from elang.tasks.text_task import TextTask

EXAMPLES, BATCH, NEW, PAIRS = 4, 8, 8, 3
LENGTHS = (4, 8, 16, 32, 64)
ROUNDING, TIME_BAR, LEAST_BAR = 1e-4, 0.7, 1.05


def data_of(folder: Path) -> TextClassificationData:
    """SST-2 after examples."""
    files = {
        split: str(folder / "glue/SST-2" / name) for split, name in (("train", "train.tsv"), ("validation", "dev.tsv"))
    }
    prompt = {"prompt": "Review: {sentence}\nSentiment:", "answers": ["negative", "positive"], "examples": EXAMPLES}
    return TextClassificationData(**files, text="sentence", label="label", **prompt)


def both_ways(model: Any, run: Callable[[], Any]) -> tuple[list[Any], list[float]]:
    """What a run returns, and the seconds that it takes: with the beginning read once, and with all tokens read."""
    results, seconds, prefix = [], [], model.prefix
    for way in (prefix, shared_prefix.SharedPrefix(model.backbone.config, ())):
        model.prefix = way
        start = time.perf_counter()
        results.append(run())
        seconds.append(time.perf_counter() - start)
    model.prefix = prefix
    return results, seconds


def answers_of(model: Any, given: Any, run: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Ratios of times and costs, and by how much scores differ."""
    ratios, costs, differences, largest, same = [], [], [], 0.0, True
    steps = torch.full((BATCH,), NEW) if model.max_new_tokens else None
    for rows in given.lengths.argsort().split(BATCH):
        inputs = given.batch(rows.tolist())
        if not ratios:
            # So that the beginning is read before it is timed.
            run(inputs)
        found, seconds = both_ways(model, lambda inputs=inputs: run(inputs))
        cost, _ = both_ways(model, lambda inputs=inputs: model.flops(inputs, steps=steps)["flops"].sum().item())
        ratios.append(seconds[0] / seconds[1])
        costs.append(cost[0] / cost[1])
        differences.append(float((found[0][1] - found[1][1]).abs().max()))
        largest = max(largest, float(found[1][1].abs().max()))
        same &= torch.equal(found[0][0], found[1][0])
    return {
        "time": round(median(ratios), 3),
        "FLOPs": round(median(costs), 3),
        "tokens of a prompt": int(given.lengths.median()),
        "shared": len(model.prefix.tokens),
        "same answers": same,
        "difference": max(differences),
        "largest score": round(largest, 2),
    }


def by_length(model: Any, given: Any) -> dict[str, Any]:
    """The ratio of times after beginnings of some lengths, for the text of median length alone and in a batch."""
    whole, figures = model.prefix.tokens, dict[str, Any]()
    prompt = given.batch([int(given.lengths.argsort()[len(given.lengths) // 2])])["input_ids"]
    rest = prompt[0, len(whole) :]
    for size in (1, BATCH):
        for length in LENGTHS:
            model.prefix.tokens = whole[:length]
            model.prefix.forget()
            ids = torch.cat([torch.tensor(whole[:length]), rest]).expand(size, -1)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            model(inputs)
            pairs = [both_ways(model, lambda inputs=inputs: model(inputs))[1] for _ in range(PAIRS)]
            figures[f"{length} tokens, batch of {size}"] = round(median(a / b for a, b in pairs), 3)
    model.prefix.tokens = whole
    return figures


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    args = parser.parse_args()
    start, figures = time.perf_counter(), dict[str, Any]()
    data = data_of(args.data)
    words = data.text_task
    shown = {"fields": words.fields, "prompt": words.prompt, "examples": words.examples}
    texts = TextTask([], "sequence", segments=[], qualities=["exact_text"], **shown)
    examples = data.examples("validation")
    chosen = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[: args.rows].tolist()

    def classified(inputs: dict[str, Any]) -> tuple[Any, Any]:
        answer = model(inputs)
        return answer.prediction, answer.logits

    def written(inputs: dict[str, Any]) -> tuple[Any, Any]:
        made = model.generate(model.encode(inputs), exactly=NEW)
        return made.ids[:, 0], made.scores[:, :1]

    for name, task, run in (("label words", words, classified), ("texts", texts, written)):
        model: Any = load_model(args.model, task).eval()
        if task is texts:
            model.configure_generation(NEW)
        limit = model.reader.limit(512)
        given = encode_examples(model.reader, task, [examples.texts[i] for i in chosen], None, limit)
        figures[name] = answers_of(model, given, run)
        print(name, figures[name], flush=True)
        if task is words:
            least, shared_prefix.LEAST = shared_prefix.LEAST, 1
            figures["by length"] = by_length(model, given)
            shared_prefix.LEAST = least
            print(figures["by length"], flush=True)
            model.cast(torch.bfloat16)
            figures["label words in bf16"] = answers_of(model, given, run)
            print(figures["label words in bf16"], flush=True)
    ways = [figures[name] for name in ("label words", "texts")]
    met = {
        "same answers": all(way["same answers"] and way["difference"] <= ROUNDING for way in ways)
        and figures["label words in bf16"]["same answers"],
        "time": all(way["time"] <= TIME_BAR for way in ways),
        "least": all(figures["by length"][f"{least} tokens, batch of {n}"] <= LEAST_BAR for n in (1, BATCH)),
    }
    figures |= {"met": met, "seconds": round(time.perf_counter() - start)}
    print(met)
    write_result("shared_prefix", figures, ("torch", "transformers"))
    raise SystemExit(0 if all(met.values()) else "A bar was missed.")


if __name__ == "__main__":
    main()
