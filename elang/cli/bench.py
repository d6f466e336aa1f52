"""`elang bench`: what a pair saves in time, beside what it saves in FLOPs, in one run on real inputs."""

import json
import math
from dataclasses import replace
from typing import Any

import torch

from elang.backends.loading.load import backend_of
from elang.cli.arguments import check_minimum, note_replaced
from elang.errors import InputError
from elang.evaluation.pair import SHARES
from elang.files import check_output_file, write_atomically
from elang.inference.inputs import input_columns, read_inputs
from elang.inference.options import PairOptions
from elang.inference.predictor import JointPredictor
from elang.inference.speed import Sizes, differences, time_inputs
from elang.notices import made, notice
from elang.records import DEFAULT_THRESHOLD
from elang.records.manifest import Manifest
from elang.tables import is_table
from elang.terminal import say_table, say_wrapped

_TOGETHER = ("deferred", "inputs a second", "speed-up", "by FLOPs", "ratio")
_ALONE = ("ms, median", "ms, 95%", "speed-up")
_NOTES = [
    "inputs a second: the median pass, and the slowest and the fastest one.",
    "speed-up: time of the Super alone, which runs in the same way, divided by that of this row.",
    "by FLOPs: what FLOPs predict for these inputs. ratio: the speed-up as a share of that.",
]


def bench(
    swift_model: str,
    super_model: str,
    pair: PairOptions,
    input: str,  # noqa: A002 - the option's name
    text: list[str] | str | None = None,
    shares: list[float] | float | None = None,
    seconds: float = 40.0,
    examples: int | None = None,
    single: int | None = None,
    repeats: int | None = None,
    output: str | None = None,
) -> None:
    """Time Swift, Super and the pair on real inputs, and compare with what FLOPs predict.

    The Super runs like the pair, with the same batches and overlap. All are timed in turns, the pair at --threshold and
    at some deferred shares. In another precision than float32, the answers that this changes are counted.

    Args:
        swift_model: The Swift's folder.
        super_model: The Super's folder or hub id.
        pair: How the pair routes and runs.
        input: A text file with one input a line, or a table (.csv, .tsv, .jsonl, .parquet) with --text.
        text: The text column of the table, or all of the task's.
        shares: Deferred shares, each by the threshold that gives it on these inputs; by default as in `elang validate`.
        seconds: Of measuring, about: the sizes below are chosen to fit. More time gives steadier figures.
        examples: Inputs that are answered in each pass, the first ones.
        single: How many of them are also answered one by one; 0 leaves that out.
        repeats: Passes of each, by default 5 if the time allows it.
        output: A JSON file for all figures.
    """
    shares = list(SHARES.values()) if shares is None else shares if isinstance(shares, list) else [shares]
    _check_sizes(sizes := Sizes(examples, single, repeats), shares, seconds)
    if output is not None:
        check_output_file(output, [input, swift_model, super_model], suffix=".json")
        note_replaced(output)
    columns = input_columns(input, text)
    if pair.threshold == DEFAULT_THRESHOLD and not _has_thresholds(pair.thresholds or swift_model):
        pair = replace(pair, threshold="inf")
    predictor = JointPredictor(*_checked_here(swift_model, super_model), **vars(pair))
    named = {f"at {pair.threshold}": predictor.threshold} if predictor.threshold < math.inf else {}
    inputs = read_inputs(input, columns, predictor.task.kind.generates)
    rows, figures = time_inputs(predictor, inputs, shares, named, sizes, seconds)
    if not rows:
        raise InputError(f"The input '{input}' is empty: there is nothing to time.")
    if pair.dtype != "float32" or pair.super_int8:
        as_here = replace(pair, threshold="inf", score=predictor.score)
        exact = replace(as_here, few=0, dtype="float32", compile=False, super_int8=False)
        try:
            exact_predictor = JointPredictor(swift_model, super_model, **vars(exact))
            figures["differences"] = differences(predictor, exact_predictor, rows, shares=shares)
        except torch.OutOfMemoryError:
            message = "The pair in float32 does not fit beside this one: differences are not counted."
            notice("differences-not-counted", message)
    ways = {name: getattr(pair, name) for name in ("dtype", "compile", "super_int8", "onnx")}
    figures |= {"made": made(), **ways, "swift_model": swift_model, "super_model": super_model, "input": input}
    _print(figures, None if examples else seconds)
    if output is not None:
        with write_atomically(output) as aside:
            aside.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def _checked_here(swift_model: str, super_model: str) -> tuple[str, str]:
    """Refuse models that do not run here, of which a file of records is refused later."""
    if elsewhere := [
        path for path in (swift_model, super_model) if backend_of(path) is not None and not is_table(path)
    ]:
        raise InputError(f"`elang bench` times models that run here, and '{elsewhere[0]}' does not. Give its folder.")
    return swift_model, super_model


def _check_sizes(sizes: Sizes, shares: list[float], seconds: float) -> None:
    check_minimum(2, examples=sizes.examples)
    check_minimum(0, single=sizes.single)
    check_minimum(1, repeats=sizes.repeats)
    if not 0 < seconds < math.inf:
        raise InputError(f"--seconds must be above 0 and finite, but it is {seconds}.")
    if wrong := [share for share in shares if not 0 <= share <= 1]:
        raise InputError(f"--shares must be from 0 to 1, but there is {wrong[0]}.")


def _has_thresholds(path: str) -> bool:
    """Whether a Swift's folder, or a threshold file, has any thresholds."""
    try:
        return any(Manifest.read(path).thresholds.values())
    except InputError:  # told when the models are loaded
        return False


def _print(figures: dict[str, Any], seconds: float | None = None) -> None:
    """Print tables of the figures; ``seconds`` chose how many inputs there are."""
    chosen = f"{figures['inputs']} inputs: of the first as many as --seconds {seconds} allows, or as --examples says."
    passes = figures["passes"].items()
    rows = [
        [
            *(name, f"{entry['deferred']:.1%}"),
            f"{1 / entry['median']:,.0f} ({1 / entry['most']:,.0f} to {1 / entry['least']:,.0f})",
            *(f"{entry['speedup']:.2f}x", f"{entry['predicted']:.2f}x", f"{entry['ratio']:.0%}"),
        ]
        for name, entry in passes
    ]
    title = f"{figures['inputs']} inputs on {figures['device']}, many at a time; passes: {figures['repeats']}"
    say_table(title, ["", *_TOGETHER], rows, [*[chosen] * (seconds is not None), *_NOTES])
    single = [(name, entry["one by one"]) for name, entry in passes if "one by one" in entry]
    if single:
        rows = [
            [name, f"{1e3 * entry['median']:.2f}", f"{1e3 * entry['95%']:.2f}", f"{entry['speedup']:.2f}x"]
            for name, entry in single
        ]
        say_table("One by one", ["", *_ALONE], rows, ["95%: 95 of 100 inputs take at most so long."])
    for name, changed in figures.get("differences", {}).items():
        say_wrapped(
            f"{name}: of {figures['inputs']} inputs {changed['decisions']} are routed and {changed['labels']} answered "
            f"otherwise than in float32, at most {changed['distance']:.3g} from the threshold"
        )
