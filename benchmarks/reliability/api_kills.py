"""Kills a run that asks an API, at random moments, and resumes it until it ends.

    python benchmarks/reliability/api_kills.py [--texts 2000] [--kills 30] [--concurrent 8]

The backend of `openai:MODEL@URL` asks a server of this script, which answers after 2 to 20 ms. Each run is a process of
its own, forked where Python has loaded elang, and is killed by SIGKILL. Compares the kept replies with those of a run
without a kill, and counts what the server did: each text once, and again only those that were under way at a kill. Does
so twice: with a server that does not look at the header Idempotency-Key, as most, and with one that sends what it has
for a key that it knows, and does nothing twice. Writes benchmarks/results/api_kills.json; ends with 1 if a reply was
lost or kept twice, was asked for again although it was kept, or if the second server did anything twice.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "backends"))
from common import write_result
from openai_server import Api

from elang.backends.loading.load import open_backend
from elang.data.examples import Examples
from elang.tasks.text_task import TextTask

TASK = TextTask(["bad", "good"], answers=["bad", "good"])


class Once(Api):
    """A server that does the work for each Idempotency-Key once: others with the same key wait for it, and get it."""

    def __init__(self, write: Any) -> None:
        super().__init__(write)
        self.work = dict[str, Future[Any]]()
        self.repeated = 0

    def payload_of(self, headers: Any, body: Any) -> Any:
        """The reply to a request; only the first one with its key takes work."""
        key, mine = headers["Idempotency-Key"], Future[Any]()
        future = self.work.setdefault(key, mine)
        if future is not mine:
            self.repeated += 1
            return future.result(60)
        future.set_result(super().payload_of(headers, body))
        return future.result()


def started(settings: Path, journal: Path, texts: list[str], log: Path) -> int:
    """Ask for all texts in a process of its own, and return its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 2)
        backend = open_backend(str(settings), TASK)
        backend.keep_answers(journal)
        backend.answer(Examples.of([(text,) for text in texts], torch.full((len(texts),), -1)))
        code = 0
    finally:
        os._exit(code)


def kept_in(journal: Path) -> dict[str, str]:
    """The kept replies by their requests; the last line may be incomplete."""
    lines = journal.read_bytes().split(b"\n")[:-1] if journal.is_file() else []
    rows = [json.loads(line) for line in lines[1:]]
    kept = {row["request"]: json.dumps(row["reply"]) for row in rows}
    if len(kept) < len(rows):
        raise SystemExit("a reply is kept twice")
    return kept


def killed(server: Api, home: Path, texts: list[str], options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """The figures of a run that is killed again and again, and whether nothing was lost or asked for in vain."""
    rng, home = random.Random(0), Path(tempfile.mkdtemp(dir=home))
    settings, calm, journal, log = (home / name for name in ("super.yaml", "calm.jsonl", "killed.jsonl", "log"))
    settings.write_text(json.dumps({"model": f"openai:large@{server.url}", "concurrent": options.concurrent}))
    start = time.monotonic()
    os.waitpid(started(settings, calm, texts, log), 0)
    seconds = time.monotonic() - start
    server.asked.clear()
    kept, under_way, moments = dict[str, str](), 0, []
    for number in range(options.kills):
        answered, asked = sum(server.asked.values()), len(server.seen)
        process = started(settings, journal, texts, log)
        # At a random request of those that are left, so that the last kill comes when little is.
        left = options.texts - len(kept)
        moment = asked + max(1, min(left, int(rng.uniform(0, 1.9) * left / (options.kills - number))))
        until = time.monotonic() + 60
        while len(server.seen) < moment and time.monotonic() < until:
            time.sleep(0.001)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        time.sleep(0.2)
        now = kept_in(journal)
        if not kept.items() <= now.items():
            raise SystemExit("a reply is lost")
        under_way += sum(server.asked.values()) - answered - (len(now) - len(kept))
        kept = now
        moments.append(len(kept))
    code = os.waitpid(started(settings, journal, texts, log), 0)[1]
    again, equal = sum(server.asked.values()) - len(server.asked), code == 0 and kept_in(calm) == kept_in(journal)
    figures = {
        "seconds of a whole run": seconds,
        "kept at each kill": moments,
        "done by the server twice": again,
        "replies equal to those of a run without a kill": equal,
    }
    if isinstance(server, Once):
        figures["done at a kill and not kept: sent again from what the server had"] = server.repeated
    else:
        figures["done at a kill and not kept"] = under_way
    # What was kept is not asked again: all that was asked twice had been under way.
    return figures, equal and len(server.asked) == options.texts and again <= max(0, under_way)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("texts", 2000), ("kills", 30), ("concurrent", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rng, home = random.Random(0), Path(tempfile.mkdtemp(prefix="elang-kills-"))
    texts = [f"text {number} {'x' * rng.randint(0, 60)}" for number in range(options.texts)]

    def write(body: Any) -> str:
        time.sleep(rng.uniform(0.002, 0.02))
        return Api.answer(Api.question(body))

    usual, usual_fine = killed(Api(write), home, texts, options)
    once, once_fine = killed(Once(write), home, texts, options)
    figures = {
        "texts": options.texts,
        "kills": options.kills,
        "requests at a time": options.concurrent,
        "a server without Idempotency-Key": usual,
        "a server with Idempotency-Key": once,
    }
    write_result("api_kills", figures, ("torch",))
    print(json.dumps(figures, indent=2))
    return 0 if usual_fine and once_fine and once["done by the server twice"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
