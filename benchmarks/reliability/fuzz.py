"""Fuzzes every reader of files, configurations and requests: only our own error may come out.

    pip install atheris
    python benchmarks/reliability/fuzz.py [--runs 100000] [--targets csv records.parquet] [--name fuzz]

Each target runs in a process of its own, guided by the coverage of `elang` (libFuzzer, through atheris), from small
valid files. Counts refused cases, accepted cases and other outcomes; a case that takes more than 10 seconds or
2 GB ends the target. Writes benchmarks/results/fuzz.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

SEEDS = {
    "csv": b'text,label\n"a, b",good\nc d,bad\n',
    "tsv": b"text\tlabel\na b\tgood\nc\tbad\n",
    "jsonl": b'{"text": "a b", "label": "good"}\n{"text": "c", "label": "bad"}\n',
    "lines": "a b\nc d\nä ß\n".encode(),
    "records.csv": b"split,id,prediction,tokens,flops\nvalidation,0,good,3,1e9\nvalidation,1,bad,4,2e9\n",
    "records.jsonl": b'{"split": "test", "id": 0, "logits": [0.5, 1]}\n{"split": "test", "id": 1, "logits": [2, 1]}\n',
    "elang.json": b'{"format": 1, "label_names": ["bad", "good"], "score": "max_softmax", "thresholds": '
    b'{"max_softmax": {"parity": {"threshold": -0.5, "speedup": 1.2}, "99%": {"threshold": "inf"}}}}',
    "suite.yaml": b"swift_model: a\nsuper_model: b\nall:\n  trainer: {max_epochs: 1}\njoint: {}\ntasks:\n  one:\n"
    b"    all: {data: {train: x.csv}}\n",
    "answers": b'{"answers": ["good", "bad"]}',
    "request": b'{"texts": ["a", ["b", "c"]], "deadline": 1.5}',
}
TARGETS = [*SEEDS, "parquet", "records.parquet", "joint.parquet", "part.parquet", "swept.parquet", "asked.jsonl"]


@cache
def asked_data(folder: Path) -> Any:
    """Two examples."""
    from elang.data.text_classification import TextClassificationData

    (folder / "data.csv").write_bytes(SEEDS["csv"])
    return TextClassificationData(validation=str(folder / "data.csv"))


def journal_of(folder: Path, name: str) -> Any:
    """The journal of `elang ask` about them."""
    from elang.backends.remote import RemoteBackend
    from elang.cli.ask import _Journal

    data = asked_data(folder)
    return _Journal(folder / name, RemoteBackend("http://u", data.text_task, tries=1), data)


def seed_of(target: str, folder: Path) -> bytes:
    """A small valid file."""
    if target in SEEDS:
        return SEEDS[target]
    if target == "asked.jsonl":
        journal = journal_of(folder, target)
        journal.keep(list(journal.left()), ["good", "good"], [])
        return (folder / target).read_bytes()
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"text": ["a b", "c"], "label": ["good", "bad"]}
    about: dict[str, Any] = {"label_names": ["bad", "good"]}
    if target == "part.parquet":
        columns = {"split": ["test"] * 2, "id": [0, 2], "prediction": ["good", "bad"]}
        about |= {"part": [0, 1], "examples": "x"}
    if target == "swept.parquet":
        columns = {"split": ["test"] * 2, "id": [0, 1], "label": [0, 1], "score_max_softmax": [-0.5, -0.9]}
        columns |= {"swift_prediction": [0, 0], "super_prediction": [0, 1]}
        columns |= {"swift_flops": [1.0, 2.0], "super_flops": [3.0, 4.0]}
        about |= {"weights": {"swift": "a", "super": "b"}, "temperature": 1.0}
    if target == "joint.parquet":
        columns = {"split": ["test"] * 2, "key": [5, 6], "score_x": [-0.5, -0.9], "gain": [0.0, 1.0]}
        columns |= {"swift_flops": [1.0, 2.0], "super_flops": [3.0, 4.0]}
        about["worth"] = {"unit": "accuracy", "largest": 1.0}
    if target == "records.parquet":
        columns = {"split": ["test"] * 2, "id": [0, 1], "logits": [[0.5, 1.0], [2.0, 1.0]], "key": [5, 6]}
    out = io.BytesIO()
    table = pa.table(columns).replace_schema_metadata({"elang": json.dumps(about)})
    pq.write_table(table, out, compression="none")
    return out.getvalue()


def reader_of(target: str, folder: Path) -> tuple[Callable[[bytes], None], tuple[type[Exception], ...]]:
    """The function that reads a case, and our own errors."""
    from elang.errors import InputError

    kind = target.rpartition(".")[2]
    path = folder / (target if target in ("elang.json", "suite.yaml") else f"case.{kind}")
    ours: tuple[type[Exception], ...] = (InputError,)

    def table() -> None:
        from elang.data.columns import read_frame, texts_of
        from elang.data.labels import label_index, label_values

        frame = read_frame(str(path))
        texts_of(frame, ["text"], "it")
        label_index(label_values(frame, "label", "it"), ["bad", "good"], "it")

    def records() -> None:
        from elang.records.reading import read_records

        read_records(path, ["bad", "good"])

    def manifest() -> None:
        from elang.records.manifest import Manifest

        found = Manifest.read(path)
        found.threshold("parity", "max_softmax")

    def plan() -> None:
        from elang.cli.suite_plan import chosen_tasks, read_plan

        chosen_tasks("one", read_plan(str(path)))

    def lines() -> None:
        from elang.inference.inputs import read_inputs

        for _ in read_inputs(str(path), None):
            pass

    def joint() -> None:
        from elang.evaluation.slices import read_slice

        path.replace(folder / "records.parquet")
        read_slice(folder, "test", "x")

    def part() -> None:
        from elang.cli.merge import merge

        merge([str(path)], str(folder / "merged.parquet"))

    def swept() -> None:
        from elang.cli.sweep import sweep

        sweep([str(path)], str(folder / "swept"), split="test")

    def asked() -> None:
        journal_of(folder, path.name)

    def answers() -> None:
        import asyncio

        import httpx

        journal = journal_of(folder, "none")
        server = httpx.MockTransport(lambda _: httpx.Response(200, content=path.read_bytes()))

        async def some() -> list[Any]:
            async with httpx.AsyncClient(transport=server) as client:
                answers, _ = await journal.server._answers(client, list(journal.left()))
                return list(answers)

        for answer in asyncio.run(some()):
            journal.server.read(answer)

    readers = {"elang.json": manifest, "suite.yaml": plan, "lines": lines, "joint.parquet": joint}
    readers |= {"part.parquet": part, "swept.parquet": swept, "asked.jsonl": asked, "answers": answers}
    reader = readers.get(target, records if target.startswith("records.") else table)
    if target == "request":
        from fastapi import HTTPException

        from elang.inference.serving.schema import Limits, parse_question

        return lambda data: parse_question(data, Limits()), (HTTPException,)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        reader()

    return read, ours


def fuzz(target: str, runs: int, folder: Path) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["elang"]):
        read, ours = reader_of(target, folder)
        counts: Counter[str] = Counter()
        odd: dict[str, dict[str, str]] = {}
        seed = seed_of(target, folder)
        read(seed)
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(seed)

    def one(data: bytes) -> None:
        try:
            read(data)
            counts["taken"] += 1
        except ours:
            counts["refused"] += 1
        except Exception as error:
            counts["odd"] += 1
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "elang" in f.filename]
            where = f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"
            odd.setdefault(where, {"error": str(error)[:300], "case": repr(data[:400])})
        if sum(counts.values()) >= runs:
            (folder / "found.json").write_text(json.dumps({**counts, "kinds of odd": odd}))

    warnings.simplefilter("ignore")
    options = [f"-runs={runs + 1000}", "-timeout=10", "-rss_limit_mb=2048", "-verbosity=0", "-seed=1"]
    options.append(f"-max_len={max(2000, 2 * len(seed))}")
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS)
    parser.add_argument("--name", default="fuzz")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        fuzz(args.targets[0], args.runs, args.one)
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from common import figures_of, git_commit, write_result

    # Figures of readers that are not fuzzed now stay, with the commit of their run.
    figures = figures_of(args.name)
    for target in args.targets:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            command = [sys.executable, __file__, "--one", folder, "--runs", str(args.runs), "--targets", target]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found = Path(folder) / "found.json"
            if found.is_file():
                figures[target] = json.loads(found.read_text()) | {"commit": git_commit()}
            else:
                figures[target] = {"ended": done.stderr[-2000:]}
        print(target, json.dumps(figures[target], indent=1), flush=True)
    write_result(args.name, figures, ("atheris", "pandas", "pyarrow", "pydantic", "PyYAML"))


if __name__ == "__main__":
    main()
