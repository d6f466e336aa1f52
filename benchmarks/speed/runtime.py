"""FLOPs into seconds on a GPU: the paper's pairs by their shapes, with random weights, many inputs and one by one.

python benchmarks/speed/runtime.py --sst2 SST-2/dev.tsv --tokenizer MINILM  # writes runtime.json, runtime_texts.json
python benchmarks/speed/runtime.py --sst2 SST-2/dev.tsv --tokenizer MINILM --tiny  # tiny shapes, CPU; writes nothing

T5-Large and T5-11B answer inputs of 128 tokens, TinyBERT-4L-312D and BERT-Base the sentences of SST-2's development
set, which MINILM, any folder of a BERT, tokenises. Pair and Super run in the same way: the Super is optimised as much.
T5's shapes also generate texts of 32 tokens for inputs of 128; random weights decide how many end earlier.
"From tokens" leaves reading and tokenising out, where the host cannot keep up with the GPU.
"""

import argparse
import gc
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from elang import JointPredictor
from elang.backends.encoder import SequenceClassifier
from elang.backends.generator import TextGenerator
from elang.backends.label_decoder import LabelDecoder
from elang.backends.seconds import best_batch, measure_throughput
from elang.backends.text_model import TextModel
from elang.cli.bench import _print
from elang.inference.cascade import Cascade
from elang.inference.speed import disagreement, share_threshold, time_pair
from elang.inference.stream import Window, stream, windows
from elang.records.manifest import Manifest
from elang.tasks.text_task import TextTask

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result
from speed.shapes import build, caller, shapes

T5_SHARE, BERT_SHARE = 0.25, 0.32
TASK = TextTask.of(["bad", "good"])
TEXTS = TextTask([], "sequence", segments=[], qualities=["bleu"])
WINDOW = 4096


def word_tokenizer(words: int) -> Any:
    """A tokenizer that knows the words w0, w1, ...; every text ends like T5's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = {name: i for i, name in enumerate(["<pad>", "</s>", "<unk>", "bad", "good"])}
    known |= {f"w{i}": len(known) + i for i in range(words - len(known))}
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def word_texts(tokenizer: Any, count: int, length: int, task: TextTask = TASK) -> list[str]:
    """Texts with a number of tokens each."""
    draw = random.Random(0)
    around = len(tokenizer(task.prompt_text(("",)))["input_ids"])
    known = tokenizer.vocab_size - 5
    return [" ".join(f"w{draw.randrange(known)}" for _ in range(length - around)) for _ in range(count)]


def from_tokens(predictor: JointPredictor, texts: list[str], share: float, repeats: int) -> dict[str, float]:
    """Seconds an input of Super and pair without reading and tokenising, and the pair's speed-up."""
    scores = torch.tensor([one.score for one in predictor.map(texts)])
    predictor.set_threshold(share_threshold(scores, share))
    prepared = [predictor._prepare(predictor.rows(part), None) for _, part in windows(texts, WINDOW)]
    alone = Cascade(predictor.stages[-1:])
    supers = [alone._prepare(alone.rows(part), None) for _, part in windows(texts, WINDOW)]
    ways = {"super": (supers, alone), "pair": (prepared, predictor)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, (given, cascade) in ways.items():
            fresh = [Window(w.texts, None, w.encoded) for w in given]
            start = time.perf_counter()
            for _ in stream(iter(fresh), cascade._first, cascade._later()):
                pass
            if repeat:
                times[name].append((time.perf_counter() - start) / len(texts))
    found = {name: statistics.median(values) for name, values in times.items()}
    return found | {"speedup": found["super"] / found["pair"]}


def measure(
    name: str,
    models: tuple[TextModel, TextModel],
    texts: list[str],
    share: float,
    args: argparse.Namespace,
    **options: Any,
) -> dict[str, Any]:
    """Time one pair in one way."""
    print(f"\n{name}", flush=True)
    start = time.perf_counter()
    predictor = JointPredictor(*models, "inf", few=1, **options)
    print(f"ready after {time.perf_counter() - start:.1f} s", flush=True)
    found = time_pair(predictor, texts, [share], texts[: args.single], args.repeats)
    found["from tokens"] = from_tokens(predictor, texts, share, args.repeats)
    entry = found["passes"][f"defer {share:.0%}"]
    found["from tokens"]["ratio"] = found["from tokens"]["speedup"] / entry["predicted"]
    found["same answers"] = same_answers(predictor, texts[: args.single], share)
    _print(found)
    print({k: f"{v:.4g}" for k, v in found["from tokens"].items()}, found["same answers"], flush=True)
    return found


def same_answers(few: JointPredictor, texts: list[str], share: float) -> dict[str, float]:
    """Where answers one by one, by graphs, differ from those of many at a time."""
    scores = torch.tensor([one.score for one in few.map(texts)])
    few.threshold = share_threshold(scores, share)
    return disagreement([few([text])[0] for text in texts], few.map(texts), few.threshold)


def plain_library(model: Any, device: torch.device, tiny: bool) -> dict[str, float]:
    """Seconds an input of the library's plain call on 128 tokens, at its best batch."""
    sizes = (1, 2) if tiny else (16, 32, 64, 128, 256)
    size, seconds = best_batch(measure_throughput(caller(model, "all", device), sizes, 0.05 if tiny else 0.5))
    return {"batch": size, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sst2", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--pairs", nargs="+", choices=("BERT", "T5", "Texts"), default=["BERT", "T5", "Texts"])
    parser.add_argument("--single", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--inputs", type=int, default=20000)
    parser.add_argument("--t5_inputs", type=int, default=2048)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    device = torch.device("cpu" if args.tiny else "cuda")
    if args.tiny:
        args.single, args.repeats, args.inputs, args.t5_inputs = 5, 1, 60, 20
    torch.manual_seed(0)
    for name, parts in {"runtime": {"BERT": bert, "T5": t5}, "runtime_texts": {"Texts": generated}}.items():
        figures: dict[str, Any] = {}
        for pair, part in parts.items():
            if pair in args.pairs:
                figures |= part(args, device)
                gc.collect()
        if figures and not args.tiny:
            print(f"\nwritten to benchmarks/results/{write_result(name, figures, ('torch', 'transformers')).name}")


def bert(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """TinyBERT-4L-312D with BERT-Base, on SST-2's sentences."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    sentences = pd.read_csv(args.sst2, sep="\t", quoting=3)["sentence"].str.strip().tolist()
    texts = (sentences * (args.inputs // len(sentences) + 1))[: args.inputs]
    figures: dict[str, Any] = {}
    half = torch.bfloat16 if args.tiny else torch.float16
    ways = {"float16": (half, False), "float16, compiled": (half, True), "float32": (None, False)}
    for name, (dtype, compiled) in ways.items():
        torch.manual_seed(0)
        made = []
        for config in shapes(args.tiny)["BERT"][1].values():
            config.vocab_size = max(config.vocab_size, len(tokenizer))
            model = SequenceClassifier(build(config, device).float(), tokenizer, TASK)
            if dtype is not None:
                model.cast(dtype)
            made.append(model)
        what = f"TinyBERT and BERT-Base, {name}"
        figures[what] = measure(what, (made[0], made[1]), texts, BERT_SHARE, args, compile=compiled)
        gc.collect()
    return figures


def t5(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """T5-Large with T5-11B, on 128 tokens, in bfloat16."""
    configs = list(shapes(args.tiny)["T5"][1].values())
    for config in configs:
        config.decoder_start_token_id = config.pad_token_id
    backbones = [build(config, device) for config in configs]
    plain = plain_library(backbones[1], device, args.tiny)
    tokenizer = word_tokenizer(configs[0].vocab_size)
    texts = word_texts(tokenizer, args.t5_inputs, 16 if args.tiny else 128)
    swift, super_ = (LabelDecoder(backbone, tokenizer, TASK) for backbone in backbones)
    swift.add_heads()
    swift.heads.to(device)
    figures: dict[str, Any] = {}
    for score in ("max_softmax", "encoder_energy"):
        what = f"T5-Large and T5-11B, bfloat16, by {score}"
        found = figures[what] = measure(what, (swift, super_), texts, T5_SHARE, args, score=score)
        found["Super by the library's plain call"] = plain
        own = found["passes"]["super"]["median"]
        found["Super, times as fast as that"] = plain["seconds"] / own
        print(f"the library's plain call: {1e3 * plain['seconds']:.2f} ms, the Super here: {1e3 * own:.2f} ms")
    return figures


def generated(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """T5-Large with T5-11B as models that generate, in bfloat16, with the library's own way beside them."""
    configs = list(shapes(args.tiny)["T5"][1].values())
    tokenizer = word_tokenizer(configs[0].vocab_size)
    models = []
    for config in configs:
        config.decoder_start_token_id, config.use_cache = config.pad_token_id, True
        models.append(TextGenerator(build(config, device), tokenizer, TEXTS))
    swift, super_ = models
    swift.manifest = Manifest([], TEXTS.plain(), score="nll_mean", max_target_length=4 if args.tiny else 32)
    texts = word_texts(tokenizer, args.t5_inputs // 4, 16 if args.tiny else 128, TEXTS)
    args.single = min(args.single, 40)
    figures: dict[str, Any] = {}
    for score in ("nll_mean", "encoder_router"):
        swift.add_heads()
        for head in swift.routers.values():
            head.scale += 1
            head.weight += torch.randn(head.width) / head.width
        swift.heads.to(device)
        what = f"T5-Large and T5-11B generate, bfloat16, by {score}"
        found = figures[what] = measure(what, (swift, super_), texts, T5_SHARE, args, score=score)
        found["one by one by the library"] = plain = {}
        for name, model in (("swift", swift), ("super", super_)):
            model.short_path = None
            took = library_alone(model, tokenizer, texts[:8])
            plain[name] = {"seconds": took, "times": took / found["passes"][name]["one by one"]["median"]}
        print(plain, flush=True)
    return figures


@torch.inference_mode()
def library_alone(model: TextGenerator, tokenizer: Any, texts: list[str]) -> float:
    """Seconds in which the library generates one text, the median."""
    took = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt").to(model.backbone.device)
        start = time.perf_counter()
        model.texts(
            model.backbone.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False
            )
        )
        took.append(time.perf_counter() - start)
    return statistics.median(took[1:])


if __name__ == "__main__":
    main()
