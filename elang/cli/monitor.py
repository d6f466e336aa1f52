"""`elang monitor`: whether a promise still holds, from the log of `elang serve --shadow`."""

import csv
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from elang.errors import InputError, listed
from elang.evaluation.promises import manifest_file
from elang.evaluation.report.watch_page import FILES, write_watch
from elang.evaluation.report.watch_words import HEAD, answer, exposition, notes, table
from elang.evaluation.watch_log import Run, WatchLog, add_labels, read_log
from elang.evaluation.watch_stream import stream_of
from elang.evaluation.watching import Kind, Promise, Watched, promised_entry, watched
from elang.files import check_folder, check_output_file, write_atomically
from elang.locks import output_lock
from elang.notices import notice
from elang.records.manifest import Manifest
from elang.terminal import say, say_table, say_wrapped

EXIT_CODES = {"holds": 0, "broken": 1, "undecided": 3}
"""Of the process; 2 is bad input."""


def monitor(
    log: str,
    promise: str | None = None,
    threshold: str | None = None,
    max_regret: float | None = None,
    max_drop: float | None = None,
    max_disagreement: float | None = None,
    max_deferred: float | None = None,
    labels: str | None = None,
    metric: str | None = None,
    confidence: float = 0.95,
    since: str | None = None,
    output: str = "watch",
    prometheus: str | None = None,
    to_label: str | None = None,
) -> int:
    """Say whether promises hold on the inputs that `elang serve --shadow` sampled, however often it is asked.

    The exit code is 0 if all promises hold, 1 if one is broken, 3 if that is undecided, and 2 after bad input. Regret
    and drop need labels only where the two answers differ; without labels the regret is at most the disagreement.

    Args:
        log: The file that `elang serve --shadow_log` writes.
        promise: The ``elang.json``, or its folder, with the certified threshold that the server answers with.
        threshold: Its name there; by default the one whose number is that of the log.
        max_regret: A promise by its number: at most this share of an answer's worth is lost to the Super.
        max_drop: The same: the answers are worth at most this much less than the Super's, on average.
        max_disagreement: The same: for at most this share of inputs the Swift's answer is used and differs from the
            Super's. It needs no labels.
        max_deferred: The same: at most this share of inputs is deferred.
        labels: A table with the columns ``id`` and ``label``, or ``id``, ``swift`` and ``super``: what the two answers
            are worth, 0 to 1. Labels that were sent to the server are in the log.
        metric: What a generated text is worth beside its label: a metric of texts, by default ``exact_text``.
        confidence: Of each verdict and each interval.
        since: Only inputs from this time on, such as 2026-12-01 or 2026-12-01T08:00 (UTC).
        output: Folder for a page, its figure, and the numbers.
        prometheus: A file for the gauges as text, as the node exporter reads it; its name ends in .prom.
        to_label: A CSV file for the inputs whose labels would tell something.
    """
    path, folder = Path(log), Path(output)
    _check_outputs(folder, [log, labels], prometheus, to_label)
    content, at = read_log(path), _time(since)
    if labels is not None:
        add_labels(content, Path(labels))
    if content.orphans:
        notice("unknown-ids", f"{content.orphans:,} labels or answers are of ids that the log does not have.")
    score, number = content.threshold()
    entry = {} if promise is None else _entry(promise, threshold, score=score, number=number)
    numbers: dict[Kind, float | None] = {"disagreement": max_disagreement, "deferred": max_deferred}
    for kind, value in (("regret", max_regret), ("drop", max_drop)):
        numbers[kind] = entry.get(f"max_{kind}") if value is None else value  # type: ignore[index]
    runs = _runs(content, score, number, at)
    promises = [Promise(kind, value) for kind, value in numbers.items() if value is not None]
    result = watched(runs, promises, confidence, entry, metric)
    with output_lock(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_watch(folder, result, f"The watch of {path.name}")
    _write_others(result, runs, prometheus, to_label, metric)
    _print(result, folder)
    return EXIT_CODES[result.verdict]


def _check_outputs(folder: Path, inputs: list[str | None], prometheus: str | None, to_label: str | None) -> None:
    check_folder(folder, inputs, FILES)
    for name, file, ending in (("--prometheus", prometheus, ".prom"), ("--to_label", to_label, ".csv")):
        if file is not None:
            if not file.endswith(ending):
                raise InputError(f"{name} must end in {ending}, but it is '{file}'.")
            check_output_file(file, inputs, option=name)


def _entry(promise: str, name: str | None, *, score: str, number: float) -> dict[str, Any]:
    """The entry of the threshold that the server answers with."""
    path = manifest_file(promise)
    named = Manifest.read(path).thresholds.get(score, {})
    if name is not None:
        if name not in named:
            raise InputError(f"'{path}' has no threshold '{name}' of '{score}', only {listed(list(named))}.")
        named = {name: named[name]}
    if (entry := promised_entry(named, number)) is None:
        raise InputError(
            f"'{path}' has no certified threshold {number:g} of '{score}', which the log is of"
            f"{f', by the name {name}' if name else ''}. Give the file that the server reads, certify one with `elang "
            "calibrate`, or give --max_regret or another bound."
        )
    return entry


def _runs(content: WatchLog, score: str, threshold: float, since: float) -> list[Run]:
    """The runs that are judged, with a notice of what is left out."""
    runs = content.at(score, threshold, since)
    if left := sum(len(run.sampled) for run in content.runs) - sum(len(run.sampled) for run in runs):
        notice("other-inputs", f"{left:,} sampled inputs are of another threshold, or from before --since: left out.")
    return runs


def _time(since: str | None) -> float:
    if since is None:
        return 0.0
    try:
        time = datetime.fromisoformat(since)
    except ValueError as error:
        raise InputError(f"--since must be a date or time such as 2026-12-01T08:00, but it is '{since}'.") from error
    return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()


def _write_others(
    result: Watched, runs: list[Run], prometheus: str | None, to_label: str | None, metric: str | None
) -> None:
    if prometheus is not None:
        with write_atomically(prometheus) as aside:
            aside.write_text(exposition(result), "utf-8")
    if to_label is not None:
        _write_waiting(runs, Path(to_label), metric)


def _write_waiting(runs: list[Run], path: Path, metric: str | None) -> None:
    """The inputs whose labels would tell something: ids, answers and, if they were logged, texts."""
    stream = stream_of(runs, metric)
    sampled = {name: one for run in runs for name, one in run.sampled.items()}
    with write_atomically(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "input", "swift_answer", "super_answer", "label"])
        for name, waits in zip(stream.ids, stream.waiting.tolist(), strict=True):
            if waits:
                one = sampled[name]
                out.writerow([name, one.text or "", one.swift or "", one.super_ or "", ""])


def _print(result: Watched, folder: Path) -> None:
    say_wrapped(answer(result))
    say_table("Means over all inputs, kept and deferred", HEAD, table(result), [])
    say_wrapped(*notes(result))
    say(f"All of this is a page, {folder}/watch.html; the numbers are beside it.")
