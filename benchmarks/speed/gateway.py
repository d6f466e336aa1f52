"""What `elang serve --api openai` adds to a Super: asked directly, and through a pair that defers everything.

    python benchmarks/speed/gateway.py [--clients 64] [--seconds 20] [--delay 0.3] [--rounds 3]

The Super is a server of a fixed delay, because its own time is the same on both ways. The pair is asked twice: at the
threshold -inf, where the Swift is not asked, and with a tiny random Swift that reads every prompt and defers it by
`prompt_router`. Ways take turns; the medians of the rounds count. Prints a table and writes
benchmarks/results/gateway.json; exits with 1 where the pair without its Swift adds more than 5 ms to the median, or
takes 10% of the throughput. It needs idle cores: with other work beside it, look at the CPU time of the server.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import running, write_result

ADDED_MS, TAKEN = 5.0, 0.10
QUESTION = "The plot of this film is long, and then comes a longer one, which nobody has understood. What is it about?"
CHAT = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20, help="of each way in each round")
    parser.add_argument("--delay", type=float, default=0.3, help="seconds of the Super")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--super-port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.super_port:
        return serve_super(args.super_port, args.delay)
    load_before = os.getloadavg()[0]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        swift = write_swift(Path(folder))
        own = [__file__, "--delay", str(args.delay), "--super-port"]
        ways: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}
        ways["direct"] = stack.enter_context(running([sys.executable, *own, "PORT"], stdout=subprocess.DEVNULL))
        pair = ["--api", "openai", "--swift_model", swift, "--super_model", f"openai:large@{ways['direct'][0]}/v1"]
        pair += ["--score", "prompt_router", "--model_name", "large", "--device", "cpu", "--port", "PORT"]
        serve = [sys.executable, "-m", "elang", "serve", *pair, "--threshold"]
        ways["pair, threshold -inf"] = stack.enter_context(running([*serve, "-inf"], stdout=subprocess.DEVNULL))
        ways["pair, Swift reads"] = stack.enter_context(running([*serve, "-1e9"], stdout=subprocess.DEVNULL))
        figures = measure(ways, args)
    missed = []
    for count in (1, args.clients):
        part = figures[f"{count} clients"]
        for way, found in part.items():
            print(f"{count} clients, {way}:", {name: round(value, 4) for name, value in found.items()})
        added = part["pair, threshold -inf"]["added to p50, ms"]
        if added > ADDED_MS:
            missed.append(f"{count} clients: {added:.1f} ms added to the median")
    taken = figures[f"{args.clients} clients"]["pair, threshold -inf"]["throughput taken"]
    if taken > TAKEN:
        missed.append(f"{args.clients} clients: {taken:.0%} of the throughput taken")
    figures |= {"delay, s": args.delay, "load of the machine before": load_before, "missed": missed}
    write_result("gateway", figures, ("torch", "fastapi", "uvicorn", "httpx"))
    for line in missed:
        print(f"MISSED: {line}", file=sys.stderr)
    return 1 if missed else 0


def measure(ways: dict[str, tuple[str, "subprocess.Popen[bytes]"]], args: argparse.Namespace) -> dict[str, Any]:
    """The medians over the rounds, for one client and for many."""
    figures: dict[str, Any] = {}
    for count in (1, args.clients):
        found: dict[str, list[tuple[float, ...]]] = {way: [] for way in ways}
        for number in range(args.rounds):
            # In turns, each way first once.
            names = list(ways)
            for way in names[number % len(names) :] + names[: number % len(names)]:
                address, process = ways[way]
                asyncio.run(load(address, count, 1.0))
                cpu, start = cpu_seconds(process.pid), time.perf_counter()
                p50, p99, rate = asyncio.run(load(address, count, args.seconds))
                asked = rate * (time.perf_counter() - start)
                found[way].append((p50, p99, rate, 1e3 * (cpu_seconds(process.pid) - cpu) / asked))
        medians = {
            way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in found.items()
        }
        base = medians["direct"]
        figures[f"{count} clients"] = {
            way: {"p50, ms": p50, "p99, ms": p99, "requests a second": rate, "CPU of the server, ms a request": cpu}
            | {"added to p50, ms": p50 - base[0], "throughput taken": 1 - rate / base[2]}
            for way, (p50, p99, rate, cpu) in medians.items()
        }
    return figures


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(address: str, clients: int, seconds: float) -> tuple[float, float, float]:
    """p50 and p99 in ms, and requests a second, of clients that ask one request after the other."""
    times: list[float] = []
    body = json.dumps(
        {"model": "large", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64}
    ).encode()
    headers = {"content-type": "application/json"}
    tls = httpx.create_ssl_context()
    start = time.perf_counter()

    async def one(number: int) -> None:
        # Spread over the first delay, so that they do not all ask at once.
        await asyncio.sleep(0.3 * number / clients)
        # Of its own: the time that one takes for a request grows with its connections.
        async with httpx.AsyncClient(base_url=address, timeout=60, verify=tls, headers=headers) as client:
            while (before := time.perf_counter()) - start < seconds:
                response = await client.post("/v1/chat/completions", content=body)
                response.raise_for_status()
                times.append(1e3 * (time.perf_counter() - before))

    await asyncio.gather(*map(one, range(clients)))
    took = time.perf_counter() - start
    times.sort()
    return times[len(times) // 2], times[int(0.99 * len(times))], len(times) / took


def serve_super(port: int, delay: float) -> int:
    """Answer every chat after the delay."""
    import uvicorn

    reply = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "large",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "It is about. " * 20}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 30, "completion_tokens": 60, "total_tokens": 90},
    }
    body = json.dumps(reply).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            while (await receive()).get("more_body"):
                pass
            await asyncio.sleep(delay)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(app, port=port, log_level="error", lifespan="off", interface="asgi3")
    return 0


def write_swift(folder: Path) -> str:
    """A tiny random Llama of bytes that chats, with an unfitted router."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from elang.backends.loading.checkpoints import save_model
    from elang.backends.loading.load import load_model
    from elang.records.manifest import Manifest
    from elang.tasks.text_task import TextTask

    special = ["<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>"]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 1024}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=CHAT, additional_special_tokens=special[3:], **names
    ).save_pretrained(folder / "base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(words), bos_token_id=0, eos_token_id=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    task = TextTask([], "sequence", segments=[], qualities=["exact_text"], prompt="{text}", label_words="chat")
    model = load_model(str(folder / "base"), task, generate=True).eval()
    model.add_heads()
    for head in model.routers.values():
        head.fitted.fill_(1)
    save_model(model, folder / "swift", Manifest([], task.plain(), "prompt_router", max_length=512))
    return str(folder / "swift")


if __name__ == "__main__":
    sys.exit(main())
