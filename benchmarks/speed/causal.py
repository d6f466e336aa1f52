"""Is a pair of language models that answers in label words fast, beside the library's pipelines and its own FLOPs?

    python benchmarks/speed/causal.py SWIFT SUPER --data DATA [--compile]  # folders of models; DATA has glue/SST-2
    python benchmarks/speed/causal.py smollm2-135m qwen2.5-1.5b --tokenizer FOLDER  # their shapes, random weights
    python benchmarks/speed/causal.py --tiny                               # a smoke test that writes nothing

In bf16, on sentences of SST-2's development set, or on made-up ones of its lengths. Each model answers by elang's label
words, and by two pipelines of the library: text-generation, which writes as many tokens of the answer as tell the
labels apart, and text-classification, a head on the same body. All run at the best of several batch sizes, then in
turns. The pair runs at thresholds that keep 60 to 90%. "From tokens" leaves reading and tokenising out. `--compile`
also measures elang's compiled models, against the same pipelines. `--single 100` also answers texts one by one, by
captured graphs, without, and by the pipelines. The bars: Swift and Super answer twice as many texts
a second as the text-generation pipeline, and the pair reaches 80% of the speed-up that FLOPs predict.
"""

import argparse
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from elang import JointPredictor
from elang.backends.causal import CausalLabelDecoder
from elang.backends.fast.graphs import any_shape
from elang.backends.loading.load import load_model
from elang.backends.loading.padding import settle_padding
from elang.backends.network import InferenceOptions
from elang.backends.text_model import TextModel
from elang.cli.bench import _print
from elang.inference.cascade import Cascade
from elang.inference.speed import time_pair
from elang.tasks.text_task import TextTask

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import wait_for_gpu, write_result
from speed.runtime import word_tokenizer

PIPELINE_BAR, FLOPS_BAR = 2.0, 0.8
DEFERRED = (0.1, 0.2, 0.3, 0.4)
FIELDS = {"prompt": "Review: {text}\nSentiment:", "answers": ["bad", "good"], "label_words": "prompt"}
TASK = TextTask.of(["negative", "positive"], {**FIELDS})  # type: ignore[dict-item]
# Words of SST-2's development sentences, at each tenth of them.
LENGTHS = (2, 9, 11, 14, 16, 19, 21, 24, 27, 31, 47)
# Vocabulary, width, width of the MLP, layers, heads, heads of keys and values, and the base of the positions.
_FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_FIELDS += ("num_key_value_heads", "rope_theta")
SHAPES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "smollm2-135m": ("llama", (49152, 576, 1536, 30, 9, 3, 1e5)),
    "qwen2.5-0.5b": ("qwen2", (151936, 896, 4864, 24, 14, 2, 1e6)),
    "qwen2.5-1.5b": ("qwen2", (151936, 1536, 8960, 28, 12, 2, 1e6)),
    "tiny": ("llama", (500, 32, 64, 2, 4, 4, 1e4)),
    "tiny, 6 layers": ("llama", (500, 32, 64, 6, 4, 4, 1e4)),
}


def made_or_loaded(name: str, tokenizer: Any, device: torch.device) -> TextModel:
    """A folder's model, or one of a shape with random weights, which are drawn on the device, in bf16."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if name not in SHAPES:
        return load_model(name, TASK, dtype=torch.bfloat16).to(device).eval()
    # Generation would end at once if random weights preferred the end.
    family, sizes = SHAPES[name]
    fields = dict(zip(_FIELDS, sizes, strict=True)) | {"bos_token_id": None, "eos_token_id": None}
    config = AutoConfig.for_model(family, tie_word_embeddings=True, **fields)
    settle_padding(config, tokenizer, name, after_prompt=True)
    torch.manual_seed(0)
    with device:
        backbone = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return CausalLabelDecoder(backbone, tokenizer, TASK).to(device).eval()


def texts_of(args: argparse.Namespace) -> list[str]:
    """So many sentences, drawn from SST-2's, or of words that the tokenizer has."""
    draw = random.Random(0)
    if args.data is not None:
        rows = pd.read_csv(args.data / "glue" / "SST-2" / "dev.tsv", sep="\t", quoting=3)
        sentences = rows["sentence"].str.strip().tolist()
        return [draw.choice(sentences) for _ in range(args.texts)]
    known = (
        ["the", "a", "of", "film", "it", "is", "story", "funny", "plot", "never"]
        if args.tokenizer
        else [f"w{i}" for i in range(400)]
    )
    lengths = [round(draw.uniform(*LENGTHS[(i := draw.randrange(10)) : i + 2])) for _ in range(args.texts)]
    return [" ".join(draw.choices(known, k=length)) for length in lengths]


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call, the device's work included."""
    wait_for_gpu()
    start = time.perf_counter()
    call()
    wait_for_gpu()
    return time.perf_counter() - start


def best(make: Callable[[int], Callable[[], object]], sizes: tuple[int, ...], count: int) -> dict[str, Any]:
    """The size with the most texts a second, of those that fit into memory, and the texts a second of each."""
    rates: dict[int, float] = {}
    for size in sizes:
        call = make(size)
        try:
            # The first batches choose kernels and take memory.
            rates[size] = count / min(timed(call), timed(call))
        except torch.OutOfMemoryError:
            break
    size = max(rates, key=lambda size: rates[size])
    return {"size": size, "texts a second": round(rates[size]), "all": {str(k): round(v) for k, v in rates.items()}}


def pipelines(model: Any) -> dict[str, Callable[[list[str], int], object]]:
    """The library's pipelines, each a function of texts and a batch size."""
    from transformers import AutoModelForSequenceClassification, pipeline

    device, tokenizer, pad = model.backbone.device, model.tokenizer, model.tokenizer.pad_token_id
    writes = pipeline("text-generation", model=model.backbone, tokenizer=tokenizer, device=device)
    config = type(model.backbone.config).from_dict(model.backbone.config.to_dict() | {"pad_token_id": pad})
    config.num_labels = len(model.task.label_names)
    with device:
        head = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16).eval()
    reads = pipeline("text-classification", model=head, tokenizer=tokenizer, device=device)
    # As many tokens as tell the labels apart.
    options = {"max_new_tokens": model.trie.decoder[1], "do_sample": False, "return_full_text": False}

    def write(texts: list[str], size: int) -> object:
        prompts = [model.task.prompt_text((text,) * len(model.task.fields)) for text in texts]
        return writes(prompts, batch_size=size, pad_token_id=pad, **options)

    return {"text-generation": write, "text-classification": lambda texts, size: reads(texts, batch_size=size)}


@torch.inference_mode()
def from_tokens(predictor: Any, name: str, texts: list[str]) -> Callable[[], object]:
    """A call that answers batches which are on the device already."""
    runner = predictor.runners[name]
    model = runner.model
    batches = [inputs for _, inputs in predictor.batches(model, texts)]
    options = InferenceOptions(predictor.score if name == "swift" else None)

    @torch.inference_mode()
    def call() -> None:
        with any_shape():
            for inputs in batches:
                model.answer_batch(inputs, options)

    return call


def elang_calls(predictor: Any, texts: list[str]) -> dict[str, Callable[[int], Callable[[], object]]]:
    """Each model alone, as `predict` runs it: a call for each budget of tokens."""
    ways = {"swift": predictor.map, "super": predictor.super_map}

    def make(name: str) -> Callable[[int], Callable[[], object]]:
        def sized(size: int) -> Callable[[], object]:
            predictor.runners[name].tokens = size
            return lambda: list(ways[name](texts))

        return sized

    return {name: make(name) for name in ways}


def one_by_one(models: tuple[Any, Any], texts: list[str]) -> dict[str, Any]:
    """Milliseconds of a text alone, the median: of each model with and without captured graphs, and of pipelines."""
    figures: dict[str, Any] = {}
    short, plain = (JointPredictor(*models, "inf", few=few) for few in (1, 0))
    for name, model in zip(("swift", "super"), models, strict=True):
        ways: dict[str, Callable[[str], object]] = {}
        for way, predictor in (("graphs", short), ("no graphs", plain)):
            asked = Cascade(predictor.stages[:1] if name == "swift" else predictor.stages[-1:], predictor.task)
            ways[way] = lambda text, asked=asked: asked([text])  # type: ignore[misc]
        for kind, run in pipelines(model).items():
            ways[kind] = lambda text, run=run: run([text], 1)  # type: ignore[misc]
        calls = {way: [timed(partial(call, text)) for text in texts] for way, call in ways.items()}
        figures[name] = {way: round(1e3 * statistics.median(seconds), 3) for way, seconds in calls.items()}
        captured = short.runners[name].small_batches
        figures[name]["shapes"] = 0 if captured is None else len(captured.graphs)
        print(f"{name}, one by one: {figures[name]}", flush=True)
    return figures


def measured(
    models: tuple[Any, Any], texts: list[str], args: argparse.Namespace, plain: dict[str, Any] | None = None
) -> dict[str, Any]:
    """All figures of one way of running: plain, or compiled if there are figures of the ``plain`` way."""
    predictor = JointPredictor(*models, "inf", compile=plain is not None)
    ours, figures = elang_calls(predictor, texts), dict[str, Any]()
    # Pipelines are slower, so fewer texts are enough.
    few = texts[: args.pipeline_texts]
    for name, model in zip(("swift", "super"), models, strict=True):
        one: dict[str, Any] = {"elang": best(ours[name], args.budgets, len(texts))}
        size = one["elang"]["size"]
        calls = {"elang": ours[name](size), "elang, from tokens": from_tokens(predictor, name, texts)}
        # A compiled model would compile for them, too.
        for kind, run in (pipelines(model) if plain is None else {}).items():
            one[kind] = best(lambda size, run=run: partial(run, few, size), args.sizes, len(few))  # type: ignore[misc]
            calls[kind] = partial(run, few, one[kind]["size"])
        rates: dict[str, list[float]] = {kind: [] for kind in calls}
        for _ in range(args.rounds):
            for kind, call in calls.items():
                rates[kind].append(len(texts if kind.startswith("elang") else few) / timed(call))
        one["in turns"] = {kind: round(statistics.median(values)) for kind, values in rates.items()}
        theirs: dict[str, list[float]] = {kind: rates[kind] for kind in rates if not kind.startswith("elang")}
        if plain is not None:
            theirs = {kind: [plain[name]["in turns"][kind]] * args.rounds for kind in plain[name]["ratio"]}
        one["ratio"] = {
            kind: round(statistics.median(a / b for a, b in zip(rates["elang"], values, strict=True)), 2)
            for kind, values in theirs.items()
        }
        figures[name] = one
        print(f"{name}: {one['ratio']} {one}", flush=True)
        del calls
        gc.collect()
    pair = time_pair(predictor, texts, list(DEFERRED), [], args.rounds)
    _print(pair)
    return figures | {"pair": pair}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"SWIFT SUPER: folders, or of {', '.join(SHAPES)}")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokenizer", help="of models with random weights")
    parser.add_argument("--texts", type=int, default=8192)
    parser.add_argument("--pipeline_texts", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--budgets", type=int, nargs="+", default=[8192, 16384, 32768, 65536, 131072])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--single", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.tiny:
        args.models, args.texts, args.pipeline_texts, args.rounds = ["tiny", "tiny, 6 layers"], 96, 32, 2
        args.sizes, args.budgets, args.single = [4, 8], [128, 256], 3
    if len(args.models) != 2:
        parser.error("give SWIFT and SUPER, or --tiny")
    from transformers import AutoTokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer) if args.tokenizer else word_tokenizer(500)
    texts, figures = texts_of(args), dict[str, Any]()
    for way in ("plain", "compiled")[: 1 + args.compile]:
        models = tuple(made_or_loaded(name, tokenizer, device) for name in args.models)
        print(f"\n{way}", flush=True)
        figures[way] = measured(models, texts, args, figures.get("plain"))
        if args.single and way == "plain":
            figures[way]["one by one"] = one_by_one(models, texts[: args.single])
        met = bars(figures)
        print(met)
        if not args.tiny:
            texts_from = "SST-2" if args.data else "made up"
            about = {"models": args.models, "texts": texts_from, "count": len(texts), "met": met}
            write_result("causal", about | figures, ("torch", "transformers"))
        del models
        gc.collect()
    if not args.tiny:
        raise SystemExit(0 if all(met.values()) else "A bar was missed.")


def bars(figures: dict[str, Any]) -> dict[str, bool]:
    """Whether the best way of running meets each bar."""
    ways, kept = figures.values(), [f"defer {share:.0%}" for share in DEFERRED]
    met = {
        name: max(way[name]["ratio"]["text-generation"] for way in ways) >= PIPELINE_BAR for name in ("swift", "super")
    }
    passes = [way["pair"]["passes"] for way in ways]
    return met | {
        "pair": max(statistics.median(found[name]["ratio"] for name in kept) for found in passes) >= FLOPS_BAR
    }


if __name__ == "__main__":
    main()
