"""A watch in words: its answer, its table, what to do next, and its gauges for Prometheus."""

from datetime import datetime, timezone

from elang.evaluation.statements import percent
from elang.evaluation.watching import MEANINGS, Reading, Watched

HEAD = ["", "promised", "observed", "interval", "verdict"]
_NAMES = {"quality": "worth of the answers used"}
# 1 - holds, 0 - undecided, -1 - broken, for a gauge.
_VERDICTS = {"holds": 1, "undecided": 0, "broken": -1}


def at(time: float | None) -> str:
    """A time, in UTC."""
    return "-" if time is None else datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def answer(watched: Watched) -> str:
    """The verdict, in a sentence."""
    broken = [reading for reading in watched.readings if reading.verdict == "broken"]
    if broken:
        first = min(broken, key=lambda reading: reading.shown or 0.0)
        return (
            f"Broken: since about {at(first.since)} it is no longer true that {_claim(first)}. This was shown at "
            f"{at(first.shown)}."
        )
    promised = [reading for reading in watched.readings if reading.verdict]
    if not promised:
        return "Nothing was promised: give --promise, --max_regret, --max_drop, --max_disagreement or --max_deferred."
    if watched.verdict == "holds":
        return f"Holds: {' and '.join(map(_claim, promised))}."
    open_ = [reading for reading in promised if reading.verdict == "undecided"]
    return f"Undecided: whether {' and '.join(map(_claim, open_))} is not shown yet."


def _claim(reading: Reading) -> str:
    share = f"at most {100 * (reading.allowed or 0.0):.4g}%"
    if reading.kind == "drop":
        return f"the answers are worth {share} of an answer less than the Super's"
    if reading.kind == "regret":
        return f"{share} of an answer's worth is lost to the Super"
    return f"{share} of the inputs are {MEANINGS[reading.kind]}"  # type: ignore[index]


def table(watched: Watched) -> list[list[str]]:
    """A row for each reading, for :data:`HEAD`."""
    rows = []
    for reading in watched.readings:
        allowed = "-" if reading.allowed is None else f"{100 * reading.allowed:.4g}%"
        mean, ends = "-", "-"
        if reading.mean is not None:
            mean = " to ".join(dict.fromkeys(f"{100 * end:.2f}%" for end in reading.mean))
            ends = f"{100 * reading.low:.2f} to {100 * reading.high:.2f}%"
        name = _NAMES.get(reading.kind) or f"{reading.kind}: {MEANINGS[reading.kind]}"  # type: ignore[index]
        rows.append([name, allowed, mean, ends, reading.verdict or "-"])
    return rows


def notes(watched: Watched) -> list[str]:
    """What else there is to know, one sentence or two each."""
    counts, said = watched.counts, []
    said.append(
        f"{counts['sampled']:,} of {counts['seen']:,} inputs were sampled from {at(watched.first)} to "
        f"{at(watched.last)}; the Swift's answer was used for {counts['kept']:,} of them. Each interval and each "
        f"verdict has {percent(watched.confidence)} confidence, whenever one looks."
    )
    share, low, high = watched.deferred
    if counts["seen"]:
        text = f"Deferred: {share:.2%} of all inputs ({low:.2%} to {high:.2%})"
        if "deferred_share" in watched.known:
            text += f"; it was {watched.known['deferred_share']:.2%} when the threshold was chosen"
        if watched.speedup is not None:
            text += (
                f". The FLOPs speed-up is {watched.speedup:.2f}x at this share, and was {watched.known['speedup']:.2f}x"
            )
        said.append(f"{text}.")
    said += [f"The {name} has cost {amount:.6g} by the server's prices." for name, amount in watched.cost.items()]
    if watched.drift is not None:
        p = watched.drift["p_value"] or 0.0
        shown = at(watched.drift["shown"])
        said.append(
            f"The scores have drifted since the threshold was chosen (shown at {shown}, p = {p:.2g})."
            if watched.drift["shown"] is not None
            else f"No drift of the scores is shown (p = {p:.2g})."
        )
    if counts["waiting"]:
        said.append(
            f"Labels of {counts['waiting']:,} inputs would tell more: the two answers differ there. The regret is "
            "between what is known and what it would be if the Super were right in all of them. --to_label lists them."
        )
    if counts["unanswered"]:
        said.append(
            f"{counts['unanswered']:,} sampled inputs have no answer of the Super yet, and count for the worst."
        )
    if counts["unwatched"]:
        said.append(f"{counts['unwatched']:,} inputs came while the budget was spent or the queue full: unwatched.")
    if counts["fallbacks"]:
        said.append(f"{counts['fallbacks']:,} deferred inputs were answered by the Swift, because the Super did not.")
    return said


def gauges(watched: Watched) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Gauges by name, each a list of labels and a value; ``elang_watch_verdict`` is 1, 0 or -1 (broken)."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {"elang_watch_verdict": [({}, _VERDICTS[watched.verdict])]}
    for reading in watched.readings:
        of = {"of": reading.kind}
        for end, value in (("low", reading.low), ("high", reading.high)):
            found.setdefault("elang_watch_mean", []).append((of | {"end": end}, value))
        if reading.allowed is not None and reading.verdict is not None:
            found.setdefault("elang_watch_allowed", []).append((of, reading.allowed))
            found.setdefault("elang_watch_promise", []).append((of, _VERDICTS[reading.verdict]))
            found.setdefault("elang_watch_p_value", []).append((of, reading.p_value))
    found["elang_watch_inputs"] = [({"of": name}, float(count)) for name, count in watched.counts.items()]
    if watched.counts["seen"]:
        found["elang_watch_deferred_share"] = [({}, watched.deferred[0])]
    if watched.drift is not None:
        found["elang_watch_drift_p_value"] = [({}, watched.drift["p_value"] or 0.0)]
    if watched.last is not None:
        found["elang_watch_last_input_seconds"] = [({}, watched.last)]
    return found


GAUGES = {
    "elang_watch_verdict": "1: the promises hold, 0: undecided, -1: one is broken",
    "elang_watch_mean": "Ends of the interval of a mean",
    "elang_watch_allowed": "What was promised of a mean",
    "elang_watch_promise": "1: the promise holds, 0: undecided, -1: it is broken",
    "elang_watch_p_value": "p-value of: the mean was at no time above its bound",
    "elang_watch_inputs": "Inputs of the watch",
    "elang_watch_deferred_share": "Deferred share of all inputs",
    "elang_watch_drift_p_value": "p-value of: the scores are distributed as when the threshold was chosen",
    "elang_watch_last_input_seconds": "When the last input was sampled, in seconds since 1970",
}
"""What each gauge is."""


def exposition(watched: Watched) -> str:
    """The gauges as text, for the node exporter's textfile collector."""
    lines = []
    for name, values in gauges(watched).items():
        lines += [f"# HELP {name} {GAUGES[name]}", f"# TYPE {name} gauge"]
        for labels, value in values:
            inside = ",".join(f'{key}="{text}"' for key, text in labels.items())
            lines.append(f"{name}{f'{{{inside}}}' if inside else ''} {value!r}")
    return "\n".join(lines) + "\n"
