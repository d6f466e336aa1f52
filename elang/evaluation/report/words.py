"""What the results of an evaluation mean, in plain sentences, for the terminal and for the page."""

import math
import re
from collections.abc import Iterable
from typing import Any

from elang.evaluation.summary import JointSummary, Worth
from elang.evaluation.units import FLOPS, CostWords, words_of
from elang.method.curve.points import Point
from elang.method.quality.texts import full_mark

# If the pair may be this much worse than the Super, a share of an answer's worth, the examples are too few to tell.
_TOO_MUCH = 0.02
# By how much the pair may be worse and still answer as well as the Super.
_NO_MATTER = 0.0025
# By the words that are explained, which are looked for as they are written.
_MEANINGS = {
    "held out": "a threshold that was chosen on {chosen_on}; its row shows what it does here",
    "read here": "chosen on these same examples, which is optimistic: it promises nothing for new inputs",
    "1-SE": "the cheapest threshold at which {metric} is below the Super's by at most half a point or one standard "
    "error, whichever is larger{allowed}",
    "parity": "the cheapest threshold with all of the Super's {metric}",
    "99.5%, 99%": "the cheapest threshold with this share of the Super's {metric}",
    "Super alone": "also what 1-SE, parity and the shares stand for where no threshold that costs less is good enough",
    "random": "for comparison, deferring by chance",
    "oracle": "for comparison, a score that knows both models' answers",
    "most frequent label": "for comparison, always answering '{label}', the label of {share} of these examples",
    "score above": "inputs with a score above this number go to the Super; at inf none does, at -inf all do",
    "deferred": "share of the inputs that the Swift passes on to the Super",
    "defer 10%, defer 20%, defer 30%, defer 50%": "the threshold that defers at most this share of the examples that "
    "chose it",
    "speed-up": "{cost} of the Super alone divided by {cost} of the pair; below 1x the pair costs more",
    "area": "how well a score finds the inputs that the Super answers better, 0 (as by chance) to 1 (all of them); "
    "below 0 it is worse than chance",
    "difference, area minus": "the area minus that of {score}; '=' if that may be chance (the 95% interval includes 0)",
    "router": "predicts what deferring an input gains, from what `elang fit` found best on the held-out slice: one "
    "score, or all logits, perhaps with the hidden state",
    "by length": "rank correlation of the score with the number of generated tokens",
    "encoder_, prompt_router": "such a score decides before the Swift decodes its answer, which a deferred input saves",
    "p_true": "minus the probability that the Swift gives to Yes when it is asked whether its answer is right",
    "agreement": "1 minus the share of the most frequent answer among five samples of the Swift",
}


def meanings(texts: Iterable[str], told: Iterable[str] = (), **about: str) -> list[str]:
    """A line for each word in some texts that needs explaining, unless a text that was ``told`` has it, too.

    ``about`` are ``metric``, ``chosen_on`` and ``score``, ``allowed`` from :func:`allowance`, and ``label`` and
    ``share`` of the most frequent one.

    >>> [line.partition(":")[0] for line in meanings(["score", "area", "speed-up"], told=["speed-up"])]
    ['area']
    """
    usual = {"metric": "quality", "chosen_on": "held-out examples", "score": "the first score"}
    about = usual | {"label": "it", "share": "most", "allowed": "", "cost": "FLOPs"} | about
    found, before = ("\n".join(some) for some in (texts, told))
    lines = []
    for words, meaning in _MEANINGS.items():
        named = [word for word in words.split(", ") if word in found]
        if named and not any(word in before for word in named):
            lines.append(f"{', '.join(named)}: {meaning}".format(**about))
    return lines


def allowance(summary: JointSummary) -> str:
    """How much the default threshold was allowed to lose, and by how much the Super leads, and on which examples."""
    if summary.allowed_drop is None:
        return ""
    first = summary.first
    lead = first.super.quality - first.swift.quality
    allowed, lead = (100 * drop / full_mark(first.quality_name) for drop in (summary.allowed_drop, lead))
    leads = f"leads the Swift by {lead:.2f}" if lead > 0 else "does not lead the Swift"
    return (
        f" ({allowed:.2f} points on the examples that chose it; on the {first.num_examples:,} here the Super {leads})"
    )


def better_scores(summary: JointSummary) -> list[str]:
    """How to route by the score that finds best what the Super answers better, if it is not by chance."""
    better = {name: area for name, area in summary.areas.items() if area.get("difference_low", 0.0) > 0}
    if not better:
        return []
    best = max(better, key=lambda name: better[name]["difference"])
    return [
        f"By area, {best} is better than {summary.score} here by more than chance. To route by it, give "
        f"`--score {best}` to `elang predict`, `serve` and `calibrate`; confirm it on other examples than these."
    ]


def outcome(summary: JointSummary, point: Point, to_super: dict[str, Any] | None) -> list[str]:
    """What the pair saves at a point, and how its answers compare with the Super's; the first sentence answers both.

    ``to_super`` is from :func:`elang.method.bootstrap.lost_to_super` of gains as a share of the largest worth. Cautions
    that deny the success come before these sentences.
    """
    first, share = summary.first, point.deferred_share
    metric, task = first.quality_name, f"On {summary.task}, " if summary.task else ""
    swift, pair, super_ = (quality_text(metric, q) for q in (first.swift.quality, point.quality, first.super.quality))
    said = _compared(to_super, f"{metric} {pair}, the Super's {super_}", first.num_examples)
    who = "the pair" if share else "the Swift alone"
    words = words_of(summary.flops_convention)
    lines = [f"{who} {said} at {point.speedup:.2f}x {words.less}."]
    if share == 1:
        lines = ["the pair saves nothing: every input goes to the Super."]
    elif math.isnan(point.speedup):
        lines = [f"{who} {said}; what it saves is unknown."]
    elif point.speedup <= 1:
        lines = [f"{who} saves nothing: it {said} and takes {1 / point.speedup:.2f}x the Super's {words.of}."]
    if summary.denied:
        task = f"With this in mind: {task[:1].lower()}{task[1:]}"
    lines[0] = task + (lines[0] if task else "T" + lines[0][1:])
    if share == 0:
        lines.append("At this threshold the Super is never asked; others below ask it.")
    elif share < 1:
        lines.append(f"The Swift answers {1 - share:.1%} of the inputs by itself, and the Super the other {share:.1%}.")
    if share < 1 and to_super is not None:
        lines.append(_difference(to_super, summary.worth))
    lines += [f"The Swift alone has {metric} {swift}."] if share else []
    costs = {"the Swift alone": first.swift.cost, "the pair": point.cost if share else math.nan}
    costs["the Super alone"] = first.super.cost
    return lines + _costs(costs, words)


def _costs(costs: dict[str, float], words: CostWords) -> list[str]:
    """What an input costs by each, as far as it is known; in seconds or money, what 1,000 do."""
    what, unit = ("An input costs ", "GFLOPs") if words is FLOPS else ("1,000 inputs cost ", words.name)
    known = [f"{cost * words.scale:.3g}{{}} by {who}" for who, cost in costs.items() if not math.isnan(cost)]
    lines = [what + ", ".join(known).replace("{}", f" {unit}", 1).replace("{}", "") + "."] if known else []
    if math.isnan(costs["the Super alone"]):
        lines.append("What the Super costs is unknown: give it with --model.super_flops.")
    if math.isnan(costs["the Swift alone"]):
        lines.append("What the Swift costs is unknown: its records have no FLOPs.")
    return lines


def _compared(to_super: dict[str, Any] | None, values: str, examples: int) -> str:
    """How the pair answers, compared with the Super, with the ``values`` of the metric."""
    if to_super is None:
        return f"answers ({values})"
    low, high, how = to_super["low"], to_super["high"], "answers as well as"
    if low > 0 or high < 0:
        how = "answers better than" if low > 0 else "answers worse than"
    elif low < -_TOO_MUCH:
        how, values = "may answer worse than", f"{values}; {examples:,} examples are too few to tell"
    elif to_super["difference"] < -_NO_MATTER:
        how = "answers nearly as well as"
    return f"{how} the Super ({values})"


def _difference(to_super: dict[str, Any], worth: Worth) -> str:
    """A pair's difference from the Super, and whether it may be chance."""
    unit, points = worth.unit.split(",")[0], " points" if worth.largest else ""
    mean, low, high = ((100 if points else 1) * to_super[name] for name in ("difference", "low", "high"))
    if low == high == 0:
        return f"No answer differs from the Super's in worth ({unit})."
    verdict = "may be chance" if low <= 0 <= high else "is more than chance"
    test = f" (McNemar's test: p = {to_super['p']:.2g})" if "p" in to_super else ""
    includes = "which includes 0" if low <= 0 <= high else "without 0"
    return (
        f"The difference to the Super, {mean:+.2f}{points} ({unit}), {verdict}: its 95% interval is {low:+.2f} to "
        f"{high:+.2f}, {includes}{test}."
    )


def statement_lines(statement: dict[str, Any]) -> list[str]:
    """What a threshold promises, whether that holds here, and warnings."""
    lines = [statement["statement"]]
    if statement["same_slice"]:
        lines.append("It was chosen on these examples, so they cannot show whether it holds.")
    elif "verdict" in statement:
        verdict = statement["verdict"]
        meaning = {"not refuted": " (it is more, but that may be chance)", "broken": " (by more than chance explains)"}
        observed, allowed = statement["observed"], statement["allowed"]
        lines.append(f"Here: {verdict}, {observed:.3%} where {allowed:.3%} is allowed{meaning.get(verdict, '')}.")
    return [*lines, *(f"Warning: {warning}." for warning in statement["warnings"])]


def quality_text(metric: str, value: float) -> str:
    """A value of a metric with the digits that its scale needs.

    >>> quality_text("accuracy", 0.5), quality_text("bleu", 41.23)
    ('0.5000', '41.23')
    """
    return "-" if math.isnan(value) else f"{value:.{2 if full_mark(metric) > 1 else 4}f}"


def speedup_text(speedup: float) -> str:
    """A speed-up, or a dash if it is unknown."""
    return "-" if math.isnan(speedup) else f"{speedup:.2f}x"


def point_cells(point: Point | None, metric: str) -> list[str]:
    """Quality, deferred share and speed-up at a point, dashes where they are unknown."""
    if point is None:
        return ["-"] * 3
    return [quality_text(metric, point.quality), f"{point.deferred_share:.1%}", speedup_text(point.speedup)]


def area_difference(area: dict[str, float], interval: bool = True) -> str:
    """A score's area minus that of the score that routes, with its ``interval`` or without.

    It begins with ``=`` where the interval includes 0, and is no more than that if all of it is 0 as printed.

    >>> area_difference({"difference": -0.0121, "difference_low": -0.05, "difference_high": 0.03})
    '= -.012 (-.05, +.03)'
    """
    difference, low, high = (area.get(name, 0.0) for name in ("difference", "difference_low", "difference_high"))
    text = re.sub(r"(?<!\d)0\.", ".", f"{'= ' * (low <= 0 <= high)}{difference:+.3f} ({low:+.2f}, {high:+.2f})")
    if not re.search("[1-9]", text):
        return "="
    return text if interval else text.partition(" (")[0]


def default_point(summary: JointSummary) -> str:
    """The name of the point at the default threshold of the score that routes: a held-out one, if there is one."""
    chosen = summary.first.scores[summary.score]
    usual = chosen.usual("held out")
    return usual if chosen.point(usual) else chosen.usual("read here")


def score_rows(summary: JointSummary, usual: str) -> list[list[str]]:
    """A row of cells for each score at its threshold ``usual``, that of the score that routes first.

    Scores whose cells are equal are one row of the table, and one line of the plot.
    """
    quality, lengths = summary.first, summary.lengths or {}
    by_length = lengths.get("generated", lengths.get("source"))
    rows = []
    for name in sorted(quality.scores.keys() - {"random", "oracle"}, key=list(quality.scores).index):
        score = quality.scores[name]
        cells = [name, "-" if math.isnan(score.area) else f"{score.area:.3f}"]
        if summary.areas:
            cells.append(area_difference(summary.areas.get(name, {}), interval=False))
        if by_length:
            cells.append(f"{by_length.get(name, math.nan):.2f}".replace("nan", "-"))
        rows.append([*cells, *point_cells(score.point(usual), quality.quality_name)])
    return sorted(rows, key=lambda row: row[0] != summary.score)
