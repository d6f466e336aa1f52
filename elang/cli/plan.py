"""`elang plan`: how many examples a promise takes, before any is labelled, and what so many can promise."""

from pathlib import Path
from typing import Literal

from elang.errors import InputError
from elang.evaluation.piloted import draw_certificates, least_deferral, sizes_for
from elang.evaluation.slices import read_slice
from elang.evaluation.statements import percent
from elang.evaluation.summary_file import read_summary
from elang.method.bounds import least_examples
from elang.method.planning import Losses, chance, examples_needed, least_promise
from elang.terminal import say_table, say_wrapped, waiting

# What may be expected, as parts of what is allowed.
_PARTS = (0.0, 0.25, 0.5, 0.75)
_SMALLEST = 1e-6


def plan(
    max_regret: float | None = None,
    max_drop: float | None = None,
    quality: float | None = None,
    expected: float | None = None,
    better: float = 0.0,
    examples: int | None = None,
    confidence: float = 0.95,
    power: float = 0.9,
    worths: bool = False,
    pilot: str | None = None,
    split: Literal["routing", "validation", "test"] | None = None,
    score: str | None = None,
) -> None:
    """Say how many independent examples a promise takes, or what so many can promise, by the tests of certificates.

    A promise is made if its test passes, which is chance: --power says how often it is to pass if the truth is what you
    expect. Without --expected a table shows several truths. With a --pilot, an evaluation by `elang validate` or
    `elang curve`, it also shows what would be deferred.

    Args:
        max_regret: The promise: for at most this share of inputs the Swift's answer is used and wrong although the
            Super's is right.
        max_drop: The promise: the mean worth is at most this much below the Super's.
        quality: The promise of `elang choose`: the mean worth is at least this.
        expected: The true regret, quality, or share of inputs for which the Swift's answer is used and worse.
        better: Of a drop: the share of inputs for which the Swift's answer is used and better than the Super's.
        examples: How many there will be: say what these can promise, or how often the promise will be made.
        confidence: Of the promise.
        power: How often the promise is to be made if what you expect is true.
        worths: Answers are worth anything from 0 to 1, not just right or wrong.
        pilot: Folder of an evaluation, whose examples stand for those to come.
        split: Of the pilot's records; by default what was evaluated.
        score: The pilot's score; by default the one that routes.
    """
    given = {"max_regret": max_regret, "max_drop": max_drop, "quality": quality}
    promises = {kind: value for kind, value in given.items() if value is not None}
    _check(given, expected=expected, better=better, examples=examples, confidence=confidence, power=power)
    sure = f"{percent(confidence)} confidence"
    if not promises:
        assert examples is not None
        _say_least(examples, 0.0 if expected is None else expected, worths, confidence=confidence, power=power)
        return
    ((kind, amount),) = promises.items()
    allowed = 1 - amount if kind == "quality" else amount
    # A drop has two tests, which share the error.
    needed = least_examples(allowed, (1 + confidence) / 2 if kind == "max_drop" else confidence)
    bound = f"a {kind.removeprefix('max_')} of at {'least' if kind == 'quality' else 'most'} {amount:g}"
    say_wrapped(
        f"To promise {bound} with {sure} takes at least {needed:,} independent examples, even without any loss."
    )
    true = None if expected is None else 1 - expected if kind == "quality" else expected
    parts = [part * allowed for part in _PARTS] if true is None else [true]
    truths = [Losses(mean, better if kind == "max_drop" else None, exact=not worths) for mean in parts]
    _say_needed(kind, allowed, truths, examples, confidence=confidence, power=power)
    if pilot is not None:
        if kind == "quality":
            raise InputError("--pilot is for --max_regret and --max_drop.")
        sizes = [examples] if examples is not None else sizes_for(allowed, confidence)
        _say_pilot(Path(pilot), kind, allowed, sizes=sizes, confidence=confidence, split=split, score=score)


def _check(
    promises: dict[str, float | None],
    *,
    expected: float | None,
    better: float,
    examples: int | None,
    confidence: float,
    power: float,
) -> None:
    given = [kind for kind, value in promises.items() if value is not None]
    if len(given) > 1 or (not given and examples is None):
        raise InputError(
            "Give one of --max_regret, --max_drop and --quality, or --examples to see what they can promise."
        )
    shares = {**promises, "confidence": confidence, "power": power}
    for name, value in shares.items():
        if value is not None and not _SMALLEST <= value <= 1 - _SMALLEST:
            raise InputError(f"--{name} must be above 0 and below 1, but it is {value}.")
    for name, value in {"expected": expected, "better": better}.items():
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"--{name} must be a share from 0 to 1, but it is {value}.")
    if examples is not None and not 1 <= examples <= 100_000_000:
        raise InputError(f"--examples must be from 1 to 100 million, but it is {examples}.")


def _say_needed(
    kind: str, allowed: float, truths: list[Losses], examples: int | None, *, confidence: float, power: float
) -> None:
    """A table of how many examples the promise takes, by what is true."""
    rows = []
    for losses in truths:
        count = examples_needed(allowed, losses, confidence, power)
        shown = f"{1 - losses.mean if kind == 'quality' else losses.mean:.4g}"
        cells = [shown, "never" if count is None else f"{count:,}"]
        if examples is not None:
            cells.append(f"{chance(examples, allowed, losses, confidence):.1%}")
        rows.append(cells)
    what = "share of worse answers" if kind == "max_drop" else kind.removeprefix("max_")
    head = [f"if the true {what} is", f"examples for {power:.0%}"]
    if examples is not None:
        head.append(f"chance with {examples:,}")
    counted = "Groups that belong together count as one example, and equal texts once."
    if kind == "quality":
        counted += " These are the examples that prove: `elang choose` needs others to choose, by default as many."
    say_table(f"How often the promise is made ({power:.0%} wanted)", head, rows, [counted])


def _say_least(examples: int, expected: float, worths: bool, *, confidence: float, power: float) -> None:
    least = least_promise(examples, Losses(expected, exact=not worths), confidence, power)
    if least is None:
        say_wrapped(f"{examples:,} examples can promise nothing with {percent(confidence)} confidence.")
        return
    say_wrapped(
        f"If the true regret is {expected:g}, {examples:,} independent examples promise a regret of at most "
        f"{least:.4g} with {percent(confidence)} confidence, in {power:.0%} of cases. A quality of {1 - expected:g} is "
        f"in the same way promised to be at least {1 - least:.4g}."
    )


def _say_pilot(
    folder: Path,
    kind: str,
    allowed: float,
    *,
    sizes: list[int],
    confidence: float,
    split: str | None,
    score: str | None,
) -> None:
    """What certificates would defer, by the pilot."""
    summary = read_summary(folder)
    examples = read_slice(folder, split or summary.evaluated_on, score or summary.score)
    with waiting("drawing certificates from the pilot"):
        drawn = draw_certificates(examples, kind, allowed, sizes, confidence)
    rows = []
    for one in drawn:
        low, middle, high = (f"{share:.1%}" for share in one.deferred)
        rows.append([f"{one.examples:,}", f"{one.certified:.0%}", middle, f"{low} to {high}"])
    least = least_deferral(examples, kind, allowed)
    notes = [
        f"With any number of examples at least {least:.1%} is deferred: there the pilot itself keeps the bound.",
        f"Drawn from the {examples.units:,} {examples.noun} of the pilot, which stand for all inputs.",
    ]
    head = ["examples", "keep anything", "deferred, median", "10% to 90%"]
    say_table(f"What the certificate defers, by the pilot '{folder}'", head, rows, notes, texts=0)
