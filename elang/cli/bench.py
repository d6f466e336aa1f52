"""`elang bench`: what a pair saves in time, beside what it saves in FLOPs, in one run on real inputs."""

import json
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from elang.cli.arguments import check_minimum
from elang.errors import InputError
from elang.files import check_output_file, write_atomically
from elang.inference.inputs import input_columns, read_inputs
from elang.inference.options import PairOptions
from elang.inference.predictor import JointPredictor
from elang.inference.speed import differences, time_pair
from elang.notices import made, notice
from elang.terminal import console

_COLUMNS = ("deferred", "inputs a second", "speed-up", "by FLOPs", "ratio", "one by one, ms (95%)", "speed-up")


def bench(
    swift_model: str,
    super_model: str,
    pair: PairOptions,
    input: str,  # noqa: A002 - the option's name
    text: list[str] | str | None = None,
    shares: list[float] | float | None = None,
    examples: int = 2000,
    single: int = 100,
    repeats: int = 5,
    output: str | None = None,
) -> None:
    """Time Swift, Super and the pair on real inputs, and compare with what FLOPs predict.

    The Super runs in the same way as the pair: the same batches, the same overlap. All are timed in turns. If the
    models run in another precision than float32, the answers that this changes are counted.

    Args:
        swift_model: The Swift's folder.
        super_model: The Super's folder or hub id.
        pair: How the pair routes and runs.
        input: A text file with one input a line, or a table (.csv, .tsv, .jsonl, .parquet) with --text.
        text: The text column of the table, or two for pairs.
        shares: Deferred shares, each by the threshold that gives it on these inputs; by default 0.1, 0.25 and 0.5.
        examples: Inputs that are answered in each pass, the first ones.
        single: How many of them are also answered one by one; 0 leaves that out.
        repeats: Passes of each.
        output: A JSON file for all figures.
    """
    shares = [0.1, 0.25, 0.5] if shares is None else shares if isinstance(shares, list) else [shares]
    check_minimum(2, examples=examples)
    check_minimum(0, single=single)
    check_minimum(1, repeats=repeats)
    if wrong := [share for share in shares if not 0 <= share <= 1]:
        raise InputError(f"--shares must be from 0 to 1, but there is {wrong[0]}.")
    if output is not None:
        check_output_file(output, [input, swift_model, super_model])
    columns = input_columns(input, text)
    predictor = JointPredictor(swift_model, super_model, **vars(replace(pair, threshold="inf")))
    rows = list(islice(read_inputs(input, columns, predictor.task.kind.generates), examples))
    if not rows:
        raise InputError(f"The input '{input}' is empty: there is nothing to time.")
    figures = time_pair(predictor, rows, shares, single=rows[:single], repeats=repeats)
    if pair.dtype != "float32" or pair.super_int8:
        exact = PairOptions("inf", pair.score, device=pair.device, tokens=pair.tokens, super_tokens=pair.super_tokens)
        try:
            exact_predictor = JointPredictor(swift_model, super_model, **vars(exact))
            figures["differences"] = differences(predictor, exact_predictor, rows, shares=shares)
        except torch.OutOfMemoryError:
            message = "The pair in float32 does not fit beside this one: differences are not counted."
            notice("differences-not-counted", message)
    figures |= {"made": made()} | {name: getattr(pair, name) for name in ("dtype", "compile", "super_int8", "onnx")}
    figures |= {"swift_model": swift_model, "super_model": super_model, "input": input}
    _print(figures)
    if output is not None:
        with write_atomically(output) as aside:
            aside.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def _print(figures: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(
        title=f"{figures['inputs']} inputs on {figures['device']}",
        caption="Speed-ups over the Super alone, which runs in the same way. Spread: slowest and fastest pass.",
    )
    table.add_column("")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for name, entry in figures["passes"].items():
        row = [name, f"{entry['deferred']:.1%}"]
        row.append(f"{1 / entry['median']:,.0f} ({1 / entry['most']:,.0f} to {1 / entry['least']:,.0f})")
        row += [f"{entry['speedup']:.2f}x", f"{entry['predicted']:.2f}x", f"{entry['ratio']:.0%}"]
        if single := entry.get("one by one"):
            row += [f"{1e3 * single['median']:.2f} ({1e3 * single['95%']:.2f})", f"{single['speedup']:.2f}x"]
        table.add_row(*row)
    terminal = console(140)
    terminal.print(table)
    for name, changed in figures.get("differences", {}).items():
        terminal.print(
            f"{name}: of {figures['inputs']} inputs {changed['decisions']} are routed and {changed['labels']} answered "
            f"otherwise than in float32, at most {changed['distance']:.3g} from the threshold"
        )
