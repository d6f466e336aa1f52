"""`elang bench`: what a pair saves in time, beside what it saves in FLOPs, in one run on real inputs."""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

import torch

from elang.errors import InputError
from elang.few import DType
from elang.models.seq2seq import Seq2Seq
from elang.models.text_model import TextModel
from elang.notices import made, notice
from elang.outputs import check_output_file, console, written_aside
from elang.predict import input_columns, read_inputs
from elang.predictor import JointPredictor, Prediction
from elang.scores import BEFORE_DECODER


def bench(
    swift_model: str,
    super_model: str,
    input: str,  # noqa: A002 - the option's name
    text: list[str] | str | None = None,
    score: str | None = None,
    shares: list[float] | float | None = None,
    examples: int = 2000,
    single: int = 100,
    repeats: int = 5,
    device: str | None = None,
    tokens: int | None = None,
    super_tokens: int | None = None,
    few: int = 0,
    dtype: DType = "float32",
    compile: bool = False,  # noqa: A002 - the option's name
    super_int8: bool = False,
    onnx: bool = False,
    output: str | None = None,
) -> None:
    """Time Swift, Super and the pair on real inputs, and compare with what FLOPs predict.

    The Super runs by the same way as the pair: the same batches, the same overlap. All are timed in turns.

    Args:
        swift_model: The Swift's folder.
        super_model: The Super's folder or hub id.
        input: A text file with one input a line, or a table (.csv, .tsv, .jsonl, .parquet) with --text.
        text: The text column of the table, or two for pairs.
        score: Which score routes; by default the Swift's own.
        shares: Deferred shares of the pair, each by the threshold that gives it on these inputs; by default 10%, 25%
            and 50%.
        examples: Inputs that are answered in each pass, taken from the beginning.
        single: How many of them are also answered one by one; 0 leaves that out.
        repeats: Passes of each.
        device: By default a GPU if there is one.
        tokens: Tokens in a batch of the Swift's; by default what suits the device.
        super_tokens: The same for the Super.
        few: 1 answers one by one the short way, by captured graphs on a GPU; 0 the same way as many.
        dtype: Precision of both models' weights; in another than float32 it is counted where its decisions differ.
        compile: Compile both models.
        super_int8: Keep the matrices of the Super's layers as int8; what it answers otherwise is counted.
        onnx: Run both encoders by ONNX Runtime on the CPU.
        output: A JSON file for all figures.
    """
    wanted = [0.1, 0.25, 0.5] if shares is None else shares if isinstance(shares, list) else [shares]
    for name, value, least in (("examples", examples, 2), ("single", single, 0), ("repeats", repeats, 1)):
        if value < least:
            raise InputError(f"--{name} must be at least {least}, but it is {value}.")
    if wrong := [share for share in wanted if not 0 <= share <= 1]:
        raise InputError(f"--shares must be from 0 to 1, but there is {wrong[0]}.")
    if output is not None:
        check_output_file(output, [input, swift_model, super_model])
    columns = input_columns(input, text)
    options: dict[str, Any] = {"score": score, "device": device, "tokens": tokens, "super_tokens": super_tokens}
    ways: dict[str, Any] = {"dtype": dtype, "compile": compile, "super_int8": super_int8, "onnx": onnx}
    predictor = JointPredictor(swift_model, super_model, "inf", **options, **ways, few=few)
    sequence = predictor.task.problem == "sequence"
    rows = list(islice(read_inputs(input, columns, sequence), examples))
    if not rows:
        raise InputError(f"The input '{input}' is empty: there is nothing to time.")
    found = time_pair(predictor, rows, wanted, rows[:single], repeats)
    if dtype != "float32" or super_int8:
        try:
            plain = JointPredictor(swift_model, super_model, "inf", **options)
            found["differences"] = differences(predictor, plain, rows, wanted)
        except torch.OutOfMemoryError:
            notice(
                "differences-not-counted",
                "The pair in float32 does not fit beside this one: differences are not counted.",
            )
    found |= {"made": made(), **ways, "swift_model": swift_model, "super_model": super_model, "input": input}
    _print(found)
    if output is not None:
        with written_aside(output) as aside:
            aside.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def time_pair(
    predictor: JointPredictor, rows: list[Any], shares: list[float], single: list[Any], repeats: int
) -> dict[str, Any]:
    """Time a pair.

    Args:
        predictor: The pair.
        rows: Inputs for the passes over many.
        shares: Deferred shares.
        single: Inputs that are answered one by one.
        repeats: Passes of each, in turns, after one that is not counted.

    Returns:
        For ``swift``, ``super`` and each share: seconds an input as ``median``, ``least`` and ``most`` of the passes,
        ``one by one`` (median and 95th percentile), the ``deferred`` share, ``speedup`` over the Super as measured and
        as FLOPs ``predict`` it, and their ``ratio``.
    """
    scores = torch.tensor([one.score for one in predictor.map(rows)])
    costs = {
        name: flops_of(predictor, model, rows)
        for name, model in (("swift", predictor.swift), ("super", predictor.super_))
    }
    super_cost, kept = costs["super"]["flops"], costs["swift"]["flops"] + costs["swift"]["score_flops"]
    away = kept
    if predictor.score in BEFORE_DECODER:
        # Known before the decoder runs, and of a kept input nothing else is scored.
        kept, away = costs["swift"]["flops"], costs["swift"]["early_flops"]
    thresholds = {f"defer {share:.0%}": _threshold(scores, share) for share in shares}

    def stream(threshold: float, some: list[Any]) -> Any:
        predictor.threshold = threshold
        return list(predictor.map(some))

    def one(threshold: float, some: list[Any]) -> Any:
        predictor.threshold = threshold
        return predictor(some)

    calls: dict[str, Callable[[list[Any]], Any]] = {"super": lambda some: list(predictor.super_map(some))}
    limits = {"swift": math.inf} | thresholds
    calls |= {name: partial(stream, threshold) for name, threshold in limits.items()}
    many: dict[str, list[float]] = {name: [] for name in calls}
    ones: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            seconds = _timed(call, rows, predictor.device)
            if repeat:
                many[name].append(seconds / len(rows))
    warm = min(10, len(single))
    alone: dict[str, Callable[[list[Any]], Any]] = {name: partial(one, t) for name, t in limits.items()}
    alone["super"] = lambda some: predictor.ask_super(predictor.rows(some))
    for i, row in enumerate(single[:warm] + single):
        for name, call in alone.items():
            seconds = _timed(call, [row], predictor.device)
            if i >= warm:
                ones[name].append(seconds)
    found: dict[str, Any] = {"inputs": len(rows), "device": str(predictor.device), "passes": {}}
    base = statistics.median(many["super"])
    for name, passes in many.items():
        hard = scores > thresholds[name] if name in thresholds else torch.full((len(rows),), name == "super")
        own = super_cost.sum()
        if name != "super":
            own = kept[~hard].sum() + (away + super_cost)[hard].sum()
        entry: dict[str, Any] = {
            "deferred": float(hard.double().mean()),
            "median": statistics.median(passes),
            "least": min(passes),
            "most": max(passes),
            "speedup": base / statistics.median(passes),
            "predicted": float(super_cost.sum() / own),
        }
        entry["ratio"] = entry["speedup"] / entry["predicted"]
        if single:
            ordered = sorted(ones[name])
            entry["one by one"] = {
                "median": statistics.median(ordered),
                "95%": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
                "speedup": statistics.fmean(ones["super"]) / statistics.fmean(ordered),
            }
        found["passes"][name] = entry
    return found


def differences(
    predictor: JointPredictor, plain: JointPredictor, rows: list[Any], shares: list[float]
) -> dict[str, dict[str, float]]:
    """What two ways of the same pair say otherwise, at the thresholds that give these deferred shares.

    Returns:
        For each share ``labels`` and ``decisions``, how many inputs are answered, or routed, otherwise, and
        ``distance``: how far from the threshold, in the plain way's score, such an input lies at most.
    """
    scores = torch.tensor([one.score for one in plain.map(rows)], dtype=torch.float64)
    found = {}
    for share in shares:
        threshold = predictor.threshold = plain.threshold = _threshold(scores, share)
        found[f"defer {share:.0%}"] = disagreement(predictor.map(rows), plain.map(rows), threshold)
    return found


def disagreement(found: Iterable[Prediction], plain: Iterable[Prediction], threshold: float) -> dict[str, float]:
    """What two ways of a pair say otherwise at a threshold: an entry of :func:`differences`."""
    both = list(zip(found, plain, strict=True))
    return {
        # A regression's values hardly ever agree to the last bit.
        "labels": sum(a.label != b.label for a, b in both if isinstance(a.label, str)),
        "decisions": sum(a.answered_by != b.answered_by for a, b in both),
        "distance": max((abs(b.score - threshold) for a, b in both if a.answered_by != b.answered_by), default=0.0),
    }


def _threshold(scores: torch.Tensor, share: float) -> float:
    """The threshold above which about this share of the scores lies."""
    place = len(scores) - round(share * len(scores))
    ordered = scores.double().sort().values
    return -math.inf if place == 0 else float(ordered[place - 1])


def _timed(call: Callable[[list[Any]], Any], rows: list[Any], device: torch.device) -> float:
    start = time.perf_counter()
    call(rows)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.inference_mode()
def flops_of(predictor: JointPredictor, model: TextModel, rows: list[Any]) -> dict[str, torch.Tensor]:
    """What a model spends on each input by its true length, float64 ``(N,)`` each.

    ``flops``, ``early_flops`` (of one that is deferred before the decoder) and ``score_flops`` (of a score after it,
    where that is not read off on the way).
    """
    zero = torch.zeros(len(rows), dtype=torch.float64)
    found = {name: zero.clone() for name in ("flops", "early_flops", "score_flops")}
    for chosen, inputs in predictor.batches(model, rows):
        steps = None
        if isinstance(model, Seq2Seq):
            steps = model.generate(model.encode(inputs), scored=False).steps
        for name, cost in model.flops(inputs, steps=steps).items():
            found[name][chosen] = cost.cpu()
    return found


def _print(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(
        title=f"{found['inputs']} inputs on {found['device']}",
        caption="Speed-ups over the Super alone, which runs by the same way. Spread: least and most of the passes.",
    )
    for column in (
        "",
        "deferred",
        "inputs a second",
        "speed-up",
        "by FLOPs",
        "ratio",
        "one by one, ms (95%)",
        "speed-up",
    ):
        table.add_column(column, justify="left" if not column else "right")
    for name, entry in found["passes"].items():
        row = [name, f"{entry['deferred']:.1%}"]
        row.append(f"{1 / entry['median']:,.0f} ({1 / entry['most']:,.0f} to {1 / entry['least']:,.0f})")
        row += [f"{entry['speedup']:.2f}x", f"{entry['predicted']:.2f}x", f"{entry['ratio']:.0%}"]
        if one := entry.get("one by one"):
            row += [f"{1e3 * one['median']:.2f} ({1e3 * one['95%']:.2f})", f"{one['speedup']:.2f}x"]
        table.add_row(*row)
    terminal = console(140)
    terminal.print(table)
    for name, one in found.get("differences", {}).items():
        terminal.print(
            f"{name}: of {found['inputs']} inputs {one['decisions']} are routed and {one['labels']} answered otherwise "
            f"than in float32, at most {one['distance']:.3g} from the threshold"
        )
