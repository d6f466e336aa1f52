"""How many tokens a second does a training step read with several texts in a row, and with one?

    python benchmarks/speed/packing.py [--shape small] [--batches 12] [--batch_size 32]

A model with random weights of a shape (small, for a CPU; tiny, which writes nothing; or one of causal.py's, for a
GPU) takes forward and backward passes over the batches that a training draws: of label words after prompts of SST-2's
lengths, and of generated answers whose lengths differ from 4 to 128 tokens after prompts of 16 to 96. Each batch is
read packed and plain in turn, and the ratio is the median over the batches; tokens are those of prompts and answers,
without padding. Also random batches, as they come where there are few examples for many processes. On a GPU in bf16
autocast.
"""

import argparse
import random
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from elang.backends.causal import CausalLabelDecoder
from elang.backends.causal_generator import CausalGenerator
from elang.backends.loading.padding import settle_padding
from elang.data.batches import LengthBatches
from elang.data.encoding import encode_examples
from elang.tasks.text_task import TextTask

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import wait_for_gpu, write_result
from speed.causal import FIELDS, LENGTHS, SHAPES, TASK
from speed.runtime import word_tokenizer

CPU_SHAPES = {"small": ("llama", (2000, 256, 704, 6, 8, 8, 1e4)), "tiny": ("llama", (500, 32, 64, 2, 4, 4, 1e4))}
TEXTS = TextTask([], "sequence", segments=[], qualities=["exact_text"], prompt="Question: {text} Answer:")
NAMES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def model_of(kind: Any, task: TextTask, shape: str, device: torch.device) -> Any:
    """A model with random weights, ready for training."""
    family, sizes = (CPU_SHAPES | SHAPES)[shape]
    fields = dict(zip((*NAMES, "num_key_value_heads", "rope_theta"), sizes, strict=True))
    config = AutoConfig.for_model(family, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, **fields)
    tokenizer = word_tokenizer(500)
    settle_padding(config, tokenizer, shape, after_prompt=True)
    torch.manual_seed(0)
    with device:
        backbone = AutoModelForCausalLM.from_config(config)
    model = kind(backbone, tokenizer, task).to(device)
    if task is TEXTS:
        model.configure_generation(160)
    model.prepare_training(0.0, freeze_embeddings=False, checkpointing=False, compiled=False, packing=True)
    return model


def made_up(count: int, lengths: tuple[int, ...], draw: random.Random) -> list[str]:
    """Texts of words that the tokenizer has, with numbers of words between two neighbouring ones of ``lengths``."""
    places = [draw.randrange(len(lengths) - 1) for _ in range(count)]
    return [" ".join(f"w{draw.randrange(400)}" for _ in range(draw.randint(*lengths[i : i + 2]))) for i in places]


def both_ways(model: Any, given: Any, batches: list[list[int]], device: torch.device) -> dict[str, float]:
    """Tokens a second, packed and plain, and the ratio."""
    rates: dict[str, list[float]] = {"packed": [], "plain": []}
    ratios, real, read = [], 0, 0
    for number, rows in enumerate([batches[0], *batches]):
        inputs = {name: value.to(device) for name, value in given.batch(rows).items()}
        target = torch.zeros(len(rows), dtype=torch.int64, device=device)
        added = (inputs["labels"] >= 0).sum() if "labels" in inputs else torch.tensor(len(rows))
        tokens = int(inputs["attention_mask"].sum() + added)
        for way, seconds in rates.items():
            model.packing = way == "packed"
            wait_for_gpu()
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = model(inputs, target, want_logits=False).loss
            loss.backward()
            model.zero_grad()
            wait_for_gpu()
            seconds.append(tokens / (time.perf_counter() - start))
        if number:
            ratios.append(rates["packed"][-1] / rates["plain"][-1])
            real += tokens
            width = inputs["labels"].shape[1] if "labels" in inputs else 1
            read += len(rows) * (inputs["input_ids"].shape[1] + width)
    figures = {"ratio": round(median(ratios), 3), "least": round(min(ratios), 3), "most": round(max(ratios), 3)}
    return figures | {way: round(median(found[1:])) for way, found in rates.items()} | {"real": round(real / read, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*CPU_SHAPES, *SHAPES], default="small")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args()
    device, figures = torch.device("cuda" if torch.cuda.is_available() else "cpu"), dict[str, Any]()
    draw, count, start = random.Random(0), 100 * args.batch_size, time.perf_counter()
    words = TextTask.of(TASK.label_names, {**FIELDS, "prompt": "Review: {text} Sentiment:"})  # type: ignore[dict-item]
    for name, task in (("label words", words), ("generated answers", TEXTS)):
        texts = made_up(count, LENGTHS if task is words else (16, 32, 48, 64, 80, 96), draw)
        answers = made_up(count, (4, 8, 16, 32, 64, 128), draw) if task is TEXTS else None
        model = model_of(CausalLabelDecoder if task is words else CausalGenerator, task, args.shape, device)
        rows = [(text,) for text in texts]
        given = encode_examples(model.reader, task, rows, None, 512, references=answers, max_target_length=160)
        drawn = list(LengthBatches(given.lengths, args.batch_size, shuffle=True))[: args.batches]
        chance = torch.randperm(count, generator=torch.Generator().manual_seed(0)).split(args.batch_size)
        for how, batches in (("", drawn), (", random batches", [part.tolist() for part in chance][: args.batches])):
            figures[name + how] = both_ways(model, given, batches, device)
            print(name + how, figures[name + how], flush=True)
    if args.shape != "tiny":
        about = {"shape": args.shape, "batch size": args.batch_size, "seconds": round(time.perf_counter() - start)}
        write_result("packing", about | figures, ("torch", "transformers"))


if __name__ == "__main__":
    main()
