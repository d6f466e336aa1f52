"""What a watch says: whether promises hold on today's inputs, since when one is broken, and whether scores drift."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from elang.errors import InputError
from elang.evaluation.watch_log import Run, same_threshold
from elang.evaluation.watch_stream import Stream, stream_of
from elang.method.watching import drift_evidence, exceeded, highest_mean, lowest_mean, share_bounds

Kind = Literal["regret", "drop", "disagreement", "deferred"]
Verdict = Literal["holds", "broken", "undecided"]
# Places at which an interval is drawn.
_DRAWN = 200
MEANINGS: dict[Kind, str] = {
    "regret": "lost to the Super where the Swift's answer is used",
    "drop": "below the Super's mean worth",
    "disagreement": "answered otherwise than by the Super",
    "deferred": "deferred",
}


@dataclass(frozen=True)
class Promise:
    """A bound of a mean over all inputs, kept and deferred ones; what is deferred loses nothing to the Super.

    Attributes:
        kind: ``regret`` and ``drop`` as of :mod:`elang.method.certificate`; ``disagreement``: the share of inputs of
            which the Swift's answer is used and differs from the Super's; ``deferred``: the share that is deferred.
        allowed: The bound, in (0, 1).
    """

    kind: Kind
    allowed: float

    def __post_init__(self) -> None:
        if not 0 < self.allowed < 1:
            raise InputError(f"--max_{self.kind} must be above 0 and below 1, but it is {self.allowed}.")


@dataclass(frozen=True)
class Reading:
    """What is known of a mean.

    Attributes:
        kind: Of which.
        allowed: What was promised; ``None`` if nothing was.
        low: Lower end of the interval of the mean so far.
        high: Its upper end.
        mean: What was observed: the least and the most that it may be, as not everything is known.
        verdict: ``None`` without a promise.
        p_value: Of "the mean was at no time above what is allowed", for all looks together.
        shown: When that was refuted, in seconds since 1970.
        since: When the mean most likely rose, if it was refuted.
        course: The interval after some of the inputs: times, lower and upper ends.
    """

    kind: str
    allowed: float | None
    low: float
    high: float
    mean: tuple[float, float] | None = None
    verdict: Verdict | None = None
    p_value: float = 1.0
    shown: float | None = None
    since: float | None = None
    course: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Watched:
    """What a watch says.

    Attributes:
        verdict: ``broken`` if a promise is, ``holds`` if all hold, otherwise ``undecided``.
        readings: Of each promise, and of what nothing was promised of.
        confidence: Of each interval and each alarm.
        score: The score that routes, and ``threshold`` its threshold.
        counts: Inputs ``seen``, ``deferred``, ``fallbacks`` and ``unwatched`` (while nothing could be sampled);
            ``sampled``, ``kept``, ``labelled``, ``unanswered`` and ``waiting`` (that a label would tell something of).
        deferred: The deferred share of all inputs, with the ends of its interval.
        known: What was measured when the threshold was chosen: ``deferred_share``, ``speedup``, as far as known.
        speedup: In FLOPs at today's deferred share, if those are known.
        drift: ``p_value`` of "scores are distributed as when the threshold was chosen", and ``since``; or ``None``.
        first: When the first input was sampled, and ``last`` the last one, in seconds since 1970.
    """

    verdict: Verdict
    readings: list[Reading]
    confidence: float
    score: str
    threshold: float
    counts: dict[str, int]
    deferred: list[float]
    known: dict[str, float]
    speedup: float | None
    drift: dict[str, float | None] | None
    cost: dict[str, float]
    first: float | None
    last: float | None


def promised_entry(named: dict[str, dict[str, Any]], threshold: float) -> dict[str, Any] | None:
    """The certified one among named entries with a threshold; of several the last, which was certified last."""
    fitting = [
        entry
        for entry in named.values()
        if {"max_regret", "max_drop"} & entry.keys() and same_threshold(float(entry["threshold"]), threshold)
    ]
    return fitting[-1] if fitting else None


def promises_of(entry: dict[str, Any]) -> list[Promise]:
    """What an entry of ``elang.json`` promises."""
    kinds: tuple[Kind, ...] = "regret", "drop"
    return [Promise(kind, float(entry[f"max_{kind}"])) for kind in kinds if f"max_{kind}" in entry]


def watched(
    runs: list[Run],
    promises: list[Promise],
    confidence: float = 0.95,
    entry: dict[str, Any] | None = None,
    metric: str | None = None,
) -> Watched:
    """Judge the sampled inputs of some runs, which all answer with the same threshold.

    However often this is asked of a log that grows, with a probability of at least ``confidence`` no promise is called
    broken that held at all times, and none is said to hold whose mean so far is above its bound. What is not known yet
    (labels that have not come, answers that the Super did not give) counts for the worst in either case.

    Args:
        runs: From :meth:`elang.evaluation.watch_log.WatchLog.at`.
        promises: What is to be judged.
        confidence: Of each of them.
        entry: The threshold's entry of ``elang.json``, with what was measured when it was chosen.
        metric: What a generated text is worth beside its label.
    """
    if not 0 < confidence < 1:
        raise InputError(f"--confidence must be between 0 and 1, but it is {confidence}.")
    entry = entry or {}
    stream = stream_of(runs, metric)
    allowed = {promise.kind: promise.allowed for promise in promises}
    kinds: list[Kind] = ["regret", "disagreement", *(kind for kind in ("drop", "deferred") if kind in allowed)]
    readings = [_reading(kind, stream, allowed.get(kind), confidence) for kind in kinds]
    if bool(stream.known.any()):
        readings.append(_interval("quality", stream.worth, stream, confidence, 0.0))
    verdicts = [reading.verdict for reading in readings if reading.verdict]
    verdict: Verdict = "undecided"
    if "broken" in verdicts:
        verdict = "broken"
    elif verdicts and set(verdicts) == {"holds"}:
        verdict = "holds"
    counts = {name: sum(run.counts[name] for run in runs) for name in ("seen", "deferred", "fallbacks", "unwatched")}
    counts |= {name: int(values.sum()) for name, values in _counted(stream).items()} | {"sampled": len(stream.ids)}
    ends = share_bounds(counts["deferred"], counts["seen"], confidence)
    known = {name: float(entry[name]) for name in ("deferred_share", "speedup") if entry.get(name) is not None}
    share = counts["deferred"] / counts["seen"] if counts["seen"] else math.nan
    about: dict[str, Any] = runs[-1].about if runs else {"score": "", "threshold": math.nan}
    return Watched(
        verdict=verdict,
        readings=readings,
        confidence=confidence,
        score=about["score"],
        threshold=float(about["threshold"]),
        counts=counts,
        deferred=[share, *ends],
        known=known,
        speedup=_speedup(known, share),
        drift=_drift(stream, entry, 1 - confidence),
        cost={name: sum(run.cost.get(name, 0.0) for run in runs) for run in runs for name in run.cost},
        first=float(stream.time[0]) if len(stream.time) else None,
        last=float(stream.time[-1]) if len(stream.time) else None,
    )


def _counted(stream: Stream) -> dict[str, Tensor]:
    unanswered = stream.kept & (stream.differs[0] != stream.differs[1])
    return {"kept": stream.kept, "labelled": stream.known, "waiting": stream.waiting, "unanswered": unanswered}


def _reading(kind: Kind, stream: Stream, allowed: float | None, confidence: float) -> Reading:
    bounds: dict[Kind, Callable[[], Tensor]] = {
        "regret": lambda: stream.gain.clamp_min(0),
        "drop": lambda: stream.gain,
        "disagreement": lambda: stream.differs,
        "deferred": lambda: (~stream.kept).double().expand(2, -1),
    }
    values, minimum = bounds[kind](), -1.0 if kind == "drop" else 0.0
    reading = _interval(kind, values, stream, confidence, minimum)
    if allowed is None:
        return reading
    alarm = exceeded(values[0], allowed, 1 - confidence, minimum)
    verdict: Verdict = "holds" if reading.mean and reading.high <= allowed else "undecided"
    judged = replace(reading, allowed=allowed, verdict=verdict, p_value=alarm.p_value)
    if alarm.place is None or alarm.since is None:
        return judged
    shown, since = float(stream.time[alarm.place]), float(stream.time[alarm.since])
    return replace(judged, verdict="broken", shown=shown, since=since)


def _interval(kind: str, values: Tensor, stream: Stream, confidence: float, minimum: float) -> Reading:
    # An alarm takes all inputs, a mean only as many of each time as of the others.
    (lowest, highest), time = values[:, stream.even], stream.time[stream.even]
    if not len(time):
        return Reading(kind, None, minimum, 1.0)
    at = torch.linspace(0, len(time) - 1, min(len(time), _DRAWN)).round().long()
    half = (1 + confidence) / 2
    low, high = lowest_mean(lowest, at, half, minimum), highest_mean(highest, at, half, minimum)
    mean = (float(lowest.mean()), float(highest.mean()))
    return Reading(
        kind, None, float(low[-1]), float(high[-1]), mean, course=[t.tolist() for t in (time[at], low, high)]
    )


def _speedup(known: dict[str, float], share: float) -> float | None:
    """The speed-up at another deferred share: what the Swift costs beside the Super follows from the known one."""
    if "speedup" not in known or "deferred_share" not in known or not math.isfinite(share) or not known["speedup"] > 0:
        return None
    return 1 / (1 / known["speedup"] - known["deferred_share"] + share)


def _drift(stream: Stream, entry: dict[str, Any], level: float) -> dict[str, float | None] | None:
    score, time = stream.score[~stream.score.isnan()], stream.time[~stream.score.isnan()]
    if "score_quantiles" not in entry or not len(score):
        return None
    known = float(entry.get("effective_number", entry["num_examples"]))
    evidence = drift_evidence(score, entry["score_quantiles"], known)
    above = (evidence >= -math.log(level)).nonzero()
    p_value = min(1.0, math.exp(-float(evidence.max())))
    return {"p_value": p_value, "shown": float(time[int(above[0])]) if len(above) else None}
