"""What `elang serve --api openai` adds to a Super: asked directly, and through a pair that defers everything.

    python benchmarks/speed/gateway.py [--clients 64] [--seconds 3] [--delays 0.1 0.5] [--rounds 4]

The Super is a server that answers after as long as it is asked to, 0.1 to 0.5 s as a real one for a short text. A
request's time without that is what counts. The pair is asked twice: at the threshold -inf, where the Swift is not
asked, and with a tiny random Swift that reads every prompt and defers it by `prompt_router`. Ways take turns of some
seconds; each round gives a difference to the Super asked directly, and the medians of these count. The CPU time of a
request is that of each process apart: the server, its Swift, the Super, and the clients, which share the cores. What
other programs use of the cores meanwhile is told, too: with more than a tenth of one, look at the CPU times.

Takes two minutes. Prints a table and writes benchmarks/results/gateway.json; exits with 1 where the pair without its
Swift adds more than 5 ms to the median, or takes 10% of the throughput.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import running, write_result

ADDED_MS, TAKEN = 5.0, 0.10
# Ways, and seconds before a turn that do not count.
DIRECT, PAIR, SWIFT, WARM = "direct", "pair, threshold -inf", "pair, Swift reads", 1.0
DELAY = re.compile(rb'([0-9.]+)"')
TICKS = os.sysconf("SC_CLK_TCK")
QUESTION = "The plot of this film is long, and then comes a longer one, which nobody has understood. What is it about?"
CHAT = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
Way = tuple[str, dict[str, int]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3, help="of each way in each round")
    parser.add_argument("--delays", type=float, nargs=2, default=(0.1, 0.5), help="seconds of the Super, from and to")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--super-port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.super_port:
        return serve_super(args.super_port)
    figures: dict[str, Any] = {"delays, s": list(args.delays), "load of the machine before": os.getloadavg()[0]}
    with ExitStack() as stack:
        swift = write_swift(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        quiet: Any = {"stdout": subprocess.DEVNULL}
        own = [sys.executable, __file__, "--super-port", "PORT"]
        address, behind = stack.enter_context(running(own, **quiet))
        ways: dict[str, Way] = {DIRECT: (address, {"Super": behind.pid})}
        pair = ["--api", "openai", "--swift_model", swift, "--super_model", f"openai:large@{address}/v1"]
        pair += ["--score", "prompt_router", "--model_name", "large", "--device", "cpu", "--port", "PORT"]
        for way, threshold in ((PAIR, "-inf"), (SWIFT, "-1e9")):
            command = [sys.executable, "-m", "elang", "serve", *pair, "--threshold", threshold]
            address, process = stack.enter_context(running(command, **quiet))
            ways[way] = address, {"server": process.pid, "Swift": swift_of(process.pid), "Super": behind.pid}
        # One client waits for nobody but the server; its turns may be few.
        for count, rounds in ((1, min(3, args.rounds)), (args.clients, args.rounds)):
            figures[f"{count} clients"] = measure(ways, count, rounds, args.seconds, args.delays)
    figures["missed"] = missed = misses(figures)
    write_result("gateway", figures, ("torch", "fastapi", "uvicorn", "aiohttp"))
    for line in missed:
        print(f"MISSED: {line}", file=sys.stderr)
    return 1 if missed else 0


def measure(
    ways: dict[str, Way], count: int, rounds: int, seconds: float, delays: tuple[float, float]
) -> dict[str, Any]:
    """The medians over the rounds of what so many clients find, by way."""
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(rounds):
        # Each is the first once.
        names = list(ways)
        for way in names[number % len(names) :] + names[: number % len(names)]:
            turns[way].append(asyncio.run(turn(*ways[way], count, seconds, delays)))
    figures = {}
    for way, rows in turns.items():
        for row, base in zip(rows, turns[DIRECT], strict=True):
            row["added to p50, ms"] = row["p50 beside the delay, ms"] - base["p50 beside the delay, ms"]
            row["throughput taken"] = 1 - row["requests a second"] / base["requests a second"]
        figures[way] = {name: round(statistics.median(row[name] for row in rows), 4) for name in rows[0]}
        print(f"{count} clients, {way}:", figures[way], flush=True)
    return figures


async def turn(
    address: str, processes: dict[str, int], clients: int, seconds: float, delays: tuple[float, float]
) -> dict[str, float]:
    """What clients find that ask one request after the other, and the CPU time of a request in each process."""
    url, times, counts = f"{address}/v1/chat/completions", list[float](), False

    async def one(http: aiohttp.ClientSession, number: int) -> None:
        # The same delays on each way. With one for all, clients that once wait together would do so for ever.
        rng = random.Random(number)
        while (before := time.perf_counter()) < end:
            delay = round(rng.uniform(*delays), 3)
            message = {"role": "user", "content": f"{QUESTION} {delay}"}
            body = json.dumps({"model": "large", "messages": [message], "max_tokens": 64}).encode()
            async with http.post(url, data=body) as response:
                assert response.status == 200
                await response.read()
            if counts:
                times.append(1e3 * (time.perf_counter() - before - delay))

    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as http:
        end = time.perf_counter() + WARM + seconds
        asking = [asyncio.ensure_future(one(http, number)) for number in range(clients)]
        await asyncio.sleep(WARM)
        counts, start, before = True, time.perf_counter(), cpu_times(processes)
        await asyncio.sleep(end - time.perf_counter())
        took, after, count = time.perf_counter() - start, cpu_times(processes), len(times)
        await asyncio.gather(*asking)
    times = sorted(times[:count])
    spent = {name: after[name] - before[name] for name in after}
    others = spent.pop("all") - sum(spent.values())
    figures = {"p50 beside the delay, ms": times[count // 2], "p99 beside the delay, ms": times[int(0.99 * count)]}
    figures["requests a second"] = count / took
    figures |= {f"CPU of {name}, ms a request": 1e3 * value / count for name, value in spent.items()}
    return figures | {"cores used by other programs": max(0.0, others / took)}


def cpu_times(processes: dict[str, int]) -> dict[str, float]:
    """Seconds of CPU time of processes so far, of this one, which has the clients, and of all."""
    found = {name: of_process(pid) for name, pid in processes.items()} | {"clients": time.process_time()}
    # Without idle time and waiting for disks; the last two are in the first ones already.
    user, nice, system, _, _, *others = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    return found | {"all": sum(map(int, (user, nice, system, *others))) / TICKS}


def of_process(pid: int) -> float:
    """CPU time of a process so far, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def swift_of(pid: int) -> int:
    """The process of the Swift: of those that a server has started, the one that has taken most time."""
    return max(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()), key=of_process)


def misses(figures: dict[str, Any]) -> list[str]:
    """Which of the bars are missed."""
    missed = []
    for name, part in figures.items():
        if not name.endswith("clients"):
            continue
        if (added := part[PAIR]["added to p50, ms"]) > ADDED_MS:
            missed.append(f"{name}: {added:.1f} ms added to the median")
        if (taken := part[PAIR]["throughput taken"]) > TAKEN:
            missed.append(f"{name}: {taken:.0%} of the throughput taken")
    return missed


def serve_super(port: int) -> int:
    """Answer every chat after the delay at the end of its message."""
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
            asked = b""
            while (message := await receive()).get("more_body"):
                asked += message["body"]
            await asyncio.sleep(float(DELAY.search(asked + message["body"])[1]))  # type: ignore[index]
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
