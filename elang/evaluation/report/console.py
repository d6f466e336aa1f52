"""What an evaluation prints in the terminal: what the pair saves, then tables of its thresholds and of all scores."""

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

from elang.evaluation.report.words import (
    allowance,
    better_scores,
    default_point,
    meanings,
    outcome,
    quality_text,
    score_rows,
    speedup_text,
    statement_lines,
)
from elang.evaluation.summary import NO_PAIR, SWIFT_ALONE, JointSummary
from elang.evaluation.units import words_of
from elang.records.manifest import Manifest
from elang.terminal import say, say_table, say_wrapped, without_repeats

# Share of one label from which accuracy alone hides how the other labels are answered.
_MOSTLY_ONE = 0.8


def print_summary(summary: JointSummary, folder: Path) -> None:
    """Print what the pair saves, after what denies that and before what limits it, then tables and everything else."""
    chosen, points = summary.first.scores[summary.score], summary.operating_points.get(summary.score, {})
    usual = default_point(summary)
    where, _, name = usual.partition(", ")
    point = chosen.point(usual)
    assert point is not None, "a curve has the default point"
    to_super = points[usual].to_super if usual in points else None
    if to_super is not None and summary.worth.largest:
        scale = dict.fromkeys(("difference", "low", "high"), 1 / summary.worth.largest)
        to_super = {name: value * scale.get(name, 1.0) for name, value in to_super.items()}
    answer, *details = outcome(summary, point, to_super)
    chosen_on = summary.thresholds_from
    if where == "read here":
        chosen_on = "these same examples, which is optimistic: there is no held-out one"
    details.append(
        f"This is at the threshold '{name}' ({point.threshold:.4g}): inputs that are harder, by "
        f"the difficulty score {summary.score}, go to the Super. It was chosen on {chosen_on}."
    )
    warned = [f"Caution: {caution}." for caution in summary.cautions]
    say_wrapped(*warned[: summary.denied], answer, " ".join(details), *warned[summary.denied :])
    told = _print_thresholds(summary)
    _print_labels(summary, name)
    _print_scores(summary, usual, told)
    _print_times(summary)
    say("")
    say_wrapped(
        *_more(summary),
        f"Records, curves, plot and all numbers are in {folder}/ (see curve.png); docs/reading.md explains them.",
    )


def print_commands(summary: JointSummary, file: str, columns: list[str], thresholds: list[str]) -> None:
    """Print the command that times the pair on a file, and last which models to use, with the command for that.

    Args:
        summary: Of the evaluation.
        file: The evaluated one; empty if the models or the texts are not here, and then there are no commands.
        columns: Its text columns.
        thresholds: The option that names the file of the thresholds, if they are not the Swift's own.
    """
    pair = ["--swift_model", summary.swift_model, "--super_model", summary.super_model]
    read = ["--input", file, "--text", *columns]
    if file:
        counted = words_of(summary.flops_convention).name
        say_wrapped(f"Speed-ups here count {counted}. What the pair saves in seconds on this machine:")
        say(f"  {shlex.join(['elang', 'bench', *pair, *thresholds, *read])}")
    where, _, name = default_point(summary).partition(", ")
    point = summary.first.scores[summary.score].point(f"{where}, {name}")
    everything = point is not None and point.threshold == -math.inf
    if everything or summary.advises(NO_PAIR):
        why = f"at '{name}' every input goes to the Super" if everything else "no threshold helps"
        say_wrapped(f"Do not build this pair: {why}. Ask the Super alone, or train a better Swift.")
        return
    used = f"To use the pair at '{name}'; another name or number of the table is given with --threshold"
    routing = [*pair, *thresholds]
    if summary.advises(SWIFT_ALONE) or (point is not None and point.threshold == math.inf):
        used, routing = "Use the Swift alone", pair[:2]
    elif where == "read here" and point is not None:
        routing.append(f"--threshold={point.threshold:.6g}")
    say_wrapped(f"{used}:" if file else f"{used}.")
    if file:
        say(f"  {shlex.join(['elang', 'predict', *routing, *read, '--output', 'answers.jsonl'])}")


def thresholds_option(own: Manifest | None, chosen: Manifest | None, path: str) -> list[str]:
    """The option of `elang predict` for thresholds that an evaluation has ``chosen``, if they are not the Swift's own.

    The two may differ by rounding.
    """
    if chosen is None:
        return []
    here, there = (m.thresholds.get(chosen.score, {}) if m else {} for m in (chosen, own))
    same = own is not None and own.super_sha256 == chosen.super_sha256
    same = same and all(
        math.isclose(float(entry["threshold"]), float(there.get(name, {}).get("threshold", math.nan)), rel_tol=1e-4)
        for name, entry in here.items()
    )
    return [] if same else ["--thresholds", path]


def _print_labels(summary: JointSummary, name: str) -> None:
    """How often each label is found, if there are few."""
    rows = [
        [label, f"{of['examples']:,}", *(f"{of[who]:.1%}" for who in ("swift", "pair", "super"))]
        for label, of in (summary.recalls or {}).items()
    ]
    if rows:
        title = f"How many of the examples of each label are found, the pair at '{name}'"
        say_table(title, ["label", "examples", "Swift", "pair", "Super"], rows, [])


def _print_thresholds(summary: JointSummary) -> list[str]:
    """A row for each threshold of the score that routes, and both models alone; returns the words that it explains."""
    score, qualities = summary.score, summary.qualities
    metrics, first = list(qualities), summary.first

    def row(name: str, values: dict[str, float], share: float, speedup: float) -> list[str]:
        cells = [quality_text(metric, values.get(metric, math.nan)) for metric in metrics]
        return [name, *cells, f"{share:.1%}", speedup_text(speedup)]

    alone = [{m: getattr(q, who).quality for m, q in qualities.items()} for who in ("swift", "super")]
    rows, above = [], {"Swift alone": math.inf, "Super alone": -math.inf}
    for name, point in first.scores[score].held_out.items():
        values = {metric: quality.scores[score].held_out[name].quality for metric, quality in qualities.items()}
        rows.append(row(f"held out, {name}", values, point.deferred_share, point.speedup))
        above[f"held out, {name}"] = point.threshold
    for name, at in summary.operating_points.get(score, {}).items():
        if name.startswith("read here"):
            rows.append(row(name, at.qualities, at.deferred_share, at.speedup))
            above[name] = at.threshold
    for name, other in (("at random, 99%", "random"), ("oracle, 99%", "oracle")):
        point = first.scores[other].on_this_set["99%"]
        # Where all are kept, or all deferred, the other metrics are known.
        ends = {0.0: alone[0], 1.0: alone[1]}
        values = ends.get(point.deferred_share, {}) | {metrics[0]: point.quality}
        rows.append(row(name, values, point.deferred_share, point.speedup))
    # Thresholds that stand for the Super alone are named after it, which is the last row.
    rows.insert(0, row("Super alone", alone[1], 1.0, 0 * first.super.cost + 1))
    rows, notes = without_repeats(rows)
    rows.append(rows.pop(0))
    rows.insert(0, row("Swift alone", alone[0], 0.0, first.swift.speedup))
    about = {"metric": metrics[0], "chosen_on": summary.thresholds_from, "allowed": allowance(summary)}
    about["cost"] = words_of(summary.flops_convention).name
    if (one := summary.most_frequent) is not None:
        reached = [quality_text(metric, one["qualities"].get(metric, math.nan)) for metric in metrics]
        rows.insert(0, ["most frequent label", *reached, "-", "-"])
        about |= {"label": one["label"], "share": f"{one['share']:.1%}"}
        if one["share"] > _MOSTLY_ONE and metrics == ["accuracy"]:
            notes.append(
                f"{one['share']:.1%} of the labels are '{one['label']}', so accuracy hardly shows how the others are "
                'answered: --model.quality "[accuracy, f1_macro]" shows both.'
            )
    head = ["threshold", "score above", *metrics, "deferred", "speed-up"]
    rows = [[name, f"{above[name]:.4g}" if name in above else "-", *cells] for name, *cells in rows]
    title = f"{metrics[0]} on {first.num_examples:,} examples of {summary.evaluated_on}, by thresholds of {score}"
    words = [*head, *(row[0] for row in rows), *notes]
    title = f"{summary.task}: {title}" if summary.task else title
    say_table(title, head, rows, [*notes, *meanings(words, **about)])
    return words


def _print_scores(summary: JointSummary, usual: str, told: list[str]) -> None:
    """A row for each score at its own threshold of a name; the score that routes comes first."""
    quality, lengths = summary.first, summary.lengths or {}
    metric, by_length = quality.quality_name, lengths.get("generated", lengths.get("source"))
    head = ["score", "area", *["difference"] * bool(summary.areas), *["by length"] * bool(by_length)]
    head = [*head, metric, "deferred", "speed-up"]
    rows = score_rows(summary, usual)
    rows, notes = without_repeats(rows)
    rows[0][0] += "*"
    if len(rows) == 1 and not notes:
        return
    notes += ["*: the score that routes. Other thresholds of the other scores are in summary.json."]
    notes += better_scores(summary)
    notes += meanings([*head, *(row[0] for row in rows), *notes], told, metric=metric, score=summary.score)
    say_table(f"All scores, each at its own threshold '{usual}'", head, rows, notes)


def _print_times(summary: JointSummary) -> None:
    """Measured milliseconds, if there are any."""
    rows = []
    for what, times in (summary.latency or {}).items():
        one, many = (f"{1e3 * times[batch]:.{digits}f}" for batch, digits in (("batch 1", 2), ("at best batch", 3)))
        rows.append([what.capitalize(), str(times["tokens"]), one, many, str(times["best batch"])])
    if rows:
        say_table("Measured time of an input", ["model", "tokens", "ms one by one", "ms in batches", "of"], rows, [])


def _more(summary: JointSummary) -> Iterator[str]:
    """Everything else that was found."""
    for name, signature in (summary.signatures or {}).items():
        if signature != name:
            yield f"{name}: {signature}"
    if summary.lengths and "decoder_share" in summary.lengths:
        saved = f"{summary.lengths['decoder_share']:.1%} of the Swift's {words_of(summary.flops_convention).of}"
        yield f"An input that is deferred before the Swift decodes saves {saved}."
    for statement in summary.statements or []:
        yield " ".join([f"{statement['name']} ({statement['score']}):", *statement_lines(statement)])
