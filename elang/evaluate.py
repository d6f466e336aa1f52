"""A pair's answers to one split, every score's curve side by side, and the operating points read off them."""

import math
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from elang.bootstrap import lost_to_super, mean_intervals
from elang.curve import (
    OperatingCurve,
    at_best,
    at_budget,
    at_parity,
    at_share,
    at_threshold,
    operating_curve,
    oracle_score,
    random_curve,
    random_rescored_curve,
    relative_area,
    rescored_curve,
)
from elang.data.format import Problem, TextTask
from elang.errors import InputError
from elang.manifest import threshold_entry
from elang.notices import notice
from elang.quality import Quality, spearman
from elang.records import Records, listed
from elang.scores import BEFORE_DECODER, all_scores, route
from elang.sequence_scores import SEQUENCE_SCORES
from elang.slices import FEW, MOSTLY, SOME, share_of_slice
from elang.text_quality import TEXT_METRICS, worth_metric

FRACTIONS = {"parity": 1.0, "99.5%": 0.995, "99%": 0.99}
ROUTING_SLICE = "routing slice, held out from training"
BUDGETS = {"25% of the FLOPs": 0.25, "50% of the FLOPs": 0.5, "75% of the FLOPs": 0.75}
SHARES = {"defer 10%": 0.1, "defer 20%": 0.2, "defer 30%": 0.3, "defer 50%": 0.5}
# Of fewer examples a class may be missed whole by chance.
_ENOUGH = 5


def reward(prediction: Tensor, label: Tensor, targets: dict[str, Tensor], problem: Problem) -> Tensor:
    """What each answer is worth by itself: 1 if right and 0 if wrong, the negative absolute error in a regression.

    Where several answers are right (``targets["answer_f1"]``), the answer's F1; of generated texts
    (``targets["worth"]``) that of the sentence. float64 ``(N,)``.
    """
    if problem == "regression":
        return -(prediction - label).abs().double()
    if table := {"answer_f1", "worth"} & targets.keys():
        worth = targets[min(table)].double()
        return worth.gather(1, prediction.clamp_min(0)[:, None]).squeeze(1) * (prediction >= 0)
    return (prediction == label).double()


def worth_of(problem: Problem, quality: str, targets: dict[str, Tensor]) -> dict[str, Any]:
    """The most that :func:`reward` says of an answer (``None`` where it has no bounds), and what it counts."""
    if problem == "sequence":
        unit = worth_metric(quality)
        return {"largest": 100.0 if unit == "chrf" else 1.0, "unit": f"{unit}, from 0 to 1"}
    if problem == "regression":
        return {"largest": None, "unit": "negative absolute error"}
    return {"largest": 1.0, "unit": "F1 of the answer" if "answer_f1" in targets else "right answers"}


def never_right(prediction: Tensor, label: Tensor, label_names: list[str]) -> list[str]:
    """The classes of five examples or more of which not one is answered right.

    Args:
        prediction: int64 ``(N,)``.
        label: int64 ``(N,)``; -1 where it is not known.
        label_names: ``C``.

    >>> never_right(torch.tensor([0] * 9), torch.tensor([0] * 4 + [1] * 5), ["a", "b"])
    ['b']
    """
    given, right = (x[x >= 0].bincount(minlength=len(label_names)) for x in (label, label[prediction == label]))
    return [
        name for name, n, k in zip(label_names, given.tolist(), right.tolist(), strict=True) if n >= _ENOUGH and not k
    ]


def little_to_gain(gain: Tensor) -> str:
    """Says it if the Super is not shown to be better than the Swift, by ``gain`` ``(N,)``; otherwise empty."""
    low = float(mean_intervals(gain[:, None])[0])
    if low > 0:
        return ""
    return (
        f"the Super is not shown to be better than the Swift on these {len(gain):,} examples (mean gain "
        f"{float(gain.mean()):+.4f}, 95% interval from {low:+.4f}): deferring has little to gain, and areas, "
        "thresholds and certificates say little. Train the Super longer, or use the Swift alone"
    )


def cautions(answers: "PairAnswers", label_names: list[str], largest: float | None) -> list[str]:
    """What makes a pair's figures say less than they seem to.

    Args:
        answers: The pair's.
        label_names: The classes.
        largest: The most that an answer is worth, if there is one.
    """
    found = []
    costs = [float(flops.mean()) for flops in (answers.swift_flops, answers.super_flops)]
    if costs[0] > costs[1]:
        found.append(
            f"the Swift costs more than the Super ({costs[0]:.3g} FLOPs an input, not {costs[1]:.3g}): are the two the "
            "other way round"
        )
    if answers.problem == "classification":
        for who, prediction in (("Swift", answers.swift), ("Super", answers.super_)):
            if names := never_right(prediction, answers.label, label_names):
                found.append(
                    f"the {who} is never right where the label is {listed(names)}: it has not learned that, or its "
                    "answers name it otherwise. Train it longer (--trainer.max_epochs, --model.lr), or mend its answers"
                )
    if said := little_to_gain(answers.gain / (largest or 1.0)):
        found.append(said)
    return found


def repeated(key: Tensor, unit: Tensor | None) -> list[str]:
    """Says it if examples are not independent: texts ``(N,)`` come twice, or belong together in groups ``(N,)``."""
    units = len((key if unit is None else unit).unique())
    if units >= (1 - FEW) * len(key):
        return []
    what = "distinct texts" if unit is None else "groups of texts"
    return [
        f"the {len(key):,} examples are {units:,} {what}, and intervals and p-values take each example as "
        "independent of the others, so they are too narrow. Certificates count each of these once"
    ]


def measure(quality: Quality, prediction: Tensor, label: Tensor, targets: dict[str, Tensor]) -> float:
    """A metric of one set of predictions, with the columns that it reads besides the label."""
    target = label if quality.target == "label" else targets[quality.target]
    return quality(prediction, target, targets.get("group"))


def check_qualities(names: list[str], task: TextTask) -> None:
    """Refuse metrics of texts where there are labels, and the other way round.

    Raises:
        InputError: Naming the first one.
    """
    if wrong := [name for name in names if (name in TEXT_METRICS) != (task.problem == "sequence")]:
        raise InputError(f"'{wrong[0]}' is no metric of a {task.problem} task; its own are {task.qualities}.")


def text_targets(
    qualities: list[str], references: list[str], swift: list[str], super_: list[str] | None = None
) -> dict[str, Tensor]:
    """What metrics of texts read: for each its statistics of the texts to choose from, and their ``worth``.

    Args:
        qualities: Names of :data:`elang.text_quality.TEXT_METRICS`; the first one says what a sentence is worth.
        references: ``N``.
        swift: The first text to choose.
        super_: The second.

    Returns:
        For each metric, and the one that tells the worth, ``(N, K, S)``; ``worth``, float64 ``(N, K)``.
    """
    choices = [swift, *([super_] if super_ is not None else [])]
    worth = worth_metric(qualities[0])
    needed = dict.fromkeys([*qualities, worth])
    found = {name: torch.stack([TEXT_METRICS[name][0](c, references) for c in choices], 1) for name in needed}
    return found | {"worth": TEXT_METRICS[worth][1](found[worth])}


@dataclass
class PairAnswers:
    """What Swift and Super answered to the examples of one split, row by row.

    Attributes:
        id: int64 ``(N,)``, ascending.
        key: int64 ``(N,)``.
        label: int64 ``(N,)``; float64 in a regression.
        swift: The Swift's predictions, of the label's type.
        super_: The Super's.
        scores: The Swift's difficulty scores by name, each ``(N,)``; larger is harder.
        swift_flops: float64 ``(N,)``.
        super_flops: float64 ``(N,)``; NaN where a black-box Super's cost is not known.
        more: Further columns that are recorded (logits, token counts).
        early_flops: What the Swift costs for an input that is deferred before its decoder runs; float64 ``(N,)``.
        targets: What metrics read besides the label.
        problem: The kind of task.
        score_flops: What a score after the decoder costs on top of the Swift's answer, where that is freely generated
            and its logits are not; float64 ``(N,)``.
        unit: The group of each row, int64 ``(N,)``, where rows belong together (a passage's questions).
    """

    id: Tensor
    key: Tensor
    label: Tensor
    swift: Tensor
    super_: Tensor
    scores: dict[str, Tensor]
    swift_flops: Tensor
    super_flops: Tensor
    more: dict[str, Tensor | list[str]]
    early_flops: Tensor | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)
    problem: Problem = "classification"
    score_flops: Tensor | None = None
    unit: Tensor | None = None

    def __len__(self) -> int:
        return len(self.id)

    @property
    def gain(self) -> Tensor:
        """How much better the Super's answer is than the Swift's, float64 ``(N,)``."""
        swift, super_ = (reward(p, self.label, self.targets, self.problem) for p in (self.swift, self.super_))
        return super_ - swift

    def flops(self, score: str) -> tuple[Tensor, Tensor, Tensor]:
        """What an input costs under a score: the Swift where it is kept, the Super, the Swift where it is deferred."""
        kept = deferred = self.swift_flops
        if score in BEFORE_DECODER and self.early_flops is not None:
            deferred = self.early_flops
        elif score in self.scores and self.score_flops is not None:
            kept = deferred = self.swift_flops + self.score_flops
        return kept, self.super_flops, deferred

    def quality_at(self, quality: Quality, score: str, threshold: float) -> float:
        """A metric of the mixed answers at one threshold, scored from scratch."""
        mixed = torch.where(route(self.scores[score], threshold), self.super_, self.swift)
        return measure(quality, mixed, self.label, self.targets)


def swift_cost_columns(score: str, known: Container[str]) -> tuple[list[str], list[str]]:
    """Columns of joint records that add up to :meth:`PairAnswers.flops` of the Swift: kept, and deferred.

    >>> swift_cost_columns("encoder_energy", ["swift_early_flops"])
    (['swift_flops'], ['swift_early_flops'])
    """
    if score in BEFORE_DECODER:
        return ["swift_flops"], ["swift_early_flops" if "swift_early_flops" in known else "swift_flops"]
    whole = ["swift_flops", *(["swift_score_flops"] if "swift_score_flops" in known else [])]
    return whole, whole


def pair_answers(
    table: dict[str, Tensor],
    swift: Records,
    super_: Records,
    problem: Problem,
    temperature: float,
    head_scores: dict[str, Tensor],
    early_flops: Tensor | None,
    targets: dict[str, Tensor],
    score_flops: Tensor | None = None,
) -> PairAnswers:
    """Bring both models' answers to one split together.

    Args:
        table: ``id``, ``key`` and ``label`` of its examples.
        swift: The Swift's answers to them, in their order, with logits.
        super_: The Super's.
        problem: The kind of task.
        temperature: Of the scores.
        head_scores: The scores of the Swift's heads.
        early_flops: As in :class:`PairAnswers`.
        targets: As in :class:`PairAnswers`.
        score_flops: As in :class:`PairAnswers`.
    """
    scores: dict[str, Tensor] = {}
    prediction, other = swift.prediction, super_.prediction
    if problem == "sequence":
        assert swift.scores is not None
        scores = dict(zip(SEQUENCE_SCORES, swift.scores.unbind(1), strict=True))
        # The first or the second of the two texts.
        prediction, other = torch.zeros_like(prediction), torch.ones_like(other)
    elif problem != "regression":
        assert swift.logits is not None
        scores = all_scores(swift.logits, temperature)
    unknown = torch.full((len(table["id"]),), math.nan, dtype=torch.float64)
    more: dict[str, Tensor | list[str]] = {}
    for name, found in (("swift", swift), ("super", super_)):
        columns = {"logits": found.logits, "tokens": found.tokens, "steps": found.steps, "text": found.texts}
        more |= {f"{name}_{column}": values for column, values in columns.items() if values is not None}
    return PairAnswers(
        table["id"],
        table["key"],
        table["label"],
        prediction,
        other,
        scores | head_scores,
        unknown if swift.flops is None else swift.flops,
        unknown if super_.flops is None else super_.flops,
        more,
        early_flops,
        targets,
        problem,
        score_flops,
    )


def pair_curves(answers: PairAnswers, quality: Quality) -> dict[str, OperatingCurve]:
    """The curve of every score, with ``random`` and ``oracle`` at the end."""
    scores = answers.scores | {"oracle": oracle_score(answers.gain)}
    costs = (answers.swift_flops, answers.super_flops)
    if quality.whole is not None:
        either = (answers.swift, answers.super_, answers.label, quality.whole)
        found = {name: rescored_curve(s, *either, *answers.flops(name)) for name, s in scores.items()}
        floor = random_rescored_curve(*either, *costs)
    else:
        target = answers.label if quality.target == "label" else answers.targets[quality.target]
        a, b = (quality.statistics(prediction, target) for prediction in (answers.swift, answers.super_))
        group = answers.targets.get("group")
        found = {
            name: operating_curve(s, a, b, quality.value, *answers.flops(name), group, quality.by_group)
            for name, s in scores.items()
        }
        floor = random_curve(a, b, quality.value, *costs, group=group, by_group=quality.by_group)
    oracle = found.pop("oracle")
    return found | {"random": floor, "oracle": oracle}


def check_curves(answers: PairAnswers, quality: Quality, curves: dict[str, OperatingCurve]) -> None:
    """Check each curve at both ends and, of the scores, in the middle against the mixed answers scored from scratch.

    Raises:
        RuntimeError: If one differs; nothing that is read off it can be trusted.
    """
    ends = {
        end: measure(quality, found, answers.label, answers.targets)
        for end, found in ((0, answers.swift), (-1, answers.super_))
    }
    for name, curve in curves.items():
        kept, super_, deferred = answers.flops(name)
        expected = {
            (quality.name, float(curve.threshold[end])): (float(curve.quality[end]), alone)
            for end, alone in ends.items()
        }
        if not (kept + super_ + deferred).isnan().any():
            for end, paid in ((0, kept), (-1, deferred + super_)):
                expected["mean cost", float(curve.threshold[end])] = (float(curve.cost[end]), float(paid.mean()))
        # A metric that is scored anew at each point is so at some points only.
        if name in answers.scores and quality.whole is None:
            middle = len(curve) // 2
            threshold = float(curve.threshold[middle])
            alone = answers.quality_at(quality, name, threshold)
            expected[quality.name, threshold] = (float(curve.quality[middle]), alone)
        for (what, threshold), (said, alone) in expected.items():
            same = math.isclose(said, alone, rel_tol=1e-6, abs_tol=1e-6)
            if not same and not (math.isnan(said) and math.isnan(alone)):
                raise RuntimeError(
                    f"The curve of '{name}' has a {what} of {said} at the threshold {threshold}, where it is {alone}. "
                    "This is a fault of elang; please report it with the records."
                )


def check_apart(evaluated: Tensor, train: Tensor, chosen_on: Tensor) -> None:
    """Refuse to evaluate on the training file, and tell of examples that thresholds are chosen on, too.

    Args:
        evaluated: The keys of the evaluation set, int64 ``(N,)``.
        train: Those of what is trained on.
        chosen_on: Those of the routing slice, the rest of the training file.

    Raises:
        InputError: If half of what is evaluated, or more, is in the training file.
    """
    slice_ = torch.isin(evaluated, chosen_on)
    known, chosen, n = int((slice_ | torch.isin(evaluated, train)).sum()), int(slice_.sum()), len(evaluated)
    if known >= MOSTLY * n:
        raise InputError(
            f"{known} of the {n} evaluated examples are in the training file, {chosen} of them in its {ROUTING_SLICE}, "
            "on which thresholds are chosen: are --data.train and --data.validation the same file? Give another one."
        )
    if chosen > FEW * n:
        notice(
            "evaluated-on-slice",
            f"{chosen} of the {n} evaluated examples are also in the {ROUTING_SLICE}, on which thresholds "
            "are chosen; the figures are too good by as much.",
        )


def check_not_chosen_on(evaluated: Tensor, about: dict[str, Any], what: str, fraction: float = 0.0) -> None:
    """Refuse to evaluate thresholds on the examples that they were chosen on.

    Args:
        evaluated: The keys of the evaluation set, int64 ``(N,)``.
        about: The examples that they were chosen on, :func:`elang.slices.slice_of`.
        what: The thresholds, in messages.
        fraction: Share of the training file that these are, if they are a slice of it, which a hash picked.

    Raises:
        InputError: If these are a tenth of what is evaluated, or so many that half of it is the training file.
    """
    share, n = share_of_slice(evaluated, about), len(evaluated)
    # A few may be chance.
    trained = share >= MOSTLY * fraction > 0 and share * n >= _ENOUGH
    if share >= SOME or trained:
        few = "these very examples" if share == 1 else f"examples of which about {share * n:.0f} are among these {n}"
        raise InputError(
            f"{what} chosen on {few}, so they cannot tell whether a statement holds. Evaluate on others than the "
            "training file and what was calibrated on."
        )
    if share > FEW:
        notice(
            "evaluated-on-slice",
            f"{what} chosen on examples of which about {share * n:.0f} are among the {n} evaluated ones; the figures "
            "are too good by as much.",
        )


def choose_thresholds(answers: PairAnswers, quality: Quality, chosen_on: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Choose each score's named thresholds on a held-out slice, for :class:`elang.manifest.Manifest`."""
    chosen: dict[str, dict[str, dict[str, Any]]] = {}
    for name, curve in pair_curves(answers, quality).items():
        if name in ("random", "oracle"):
            continue
        points = {
            key: (
                at_parity(curve, fraction),
                f"least deferral that reaches {fraction:.1%} of the Super's {quality.name}",
            )
            for key, fraction in FRACTIONS.items()
        }
        points |= {
            key: (at_share(curve, share), f"most deferral up to {share:.0%} of the inputs")
            for key, share in SHARES.items()
        }
        chosen[name] = {
            key: threshold_entry(curve[index], rule, chosen_on, len(answers)) for key, (index, rule) in points.items()
        }
    return chosen


def share_thresholds(scores: dict[str, Tensor], chosen_on: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Choose thresholds by deferred share alone, where no Super's answers are at hand."""
    chosen: dict[str, dict[str, dict[str, Any]]] = {}
    for name, score in scores.items():
        blank = torch.zeros(len(score), 1)
        curve = operating_curve(score, blank, blank, lambda sums: torch.full(sums.shape[:-1], math.nan).double())
        chosen[name] = {
            key: threshold_entry(
                curve[at_share(curve, share)],
                f"most deferral up to {share:.0%} of the inputs",
                chosen_on,
                len(score),
            )
            for key, share in SHARES.items()
        }
    return chosen


def summarize(
    answers: PairAnswers,
    quality: Quality,
    thresholds: dict[str, dict[str, dict[str, Any]]],
) -> dict[str, Any]:
    """Read everything off the curves of one evaluation set.

    Args:
        answers: The evaluation set's.
        quality: The task metric.
        thresholds: Chosen elsewhere, as by :func:`choose_thresholds`; reported on this set.

    Returns:
        Plain values: the two models alone, and for each score its area between random and oracle, the points read
        on this very set (``on_this_set``) and what the given thresholds do on it (``held_out``).
    """
    curves = pair_curves(answers, quality)
    check_curves(answers, quality, curves)
    random, oracle, gain = curves["random"], curves["oracle"], answers.gain
    scores: dict[str, Any] = {}
    for name, curve in curves.items():
        points = {key: at_parity(curve, fraction) for key, fraction in FRACTIONS.items()}
        points |= {key: at_share(curve, share) for key, share in SHARES.items()} | {"best": at_best(curve)}
        points |= {
            key: at_budget(curve, share * curve.super_cost)
            for key, share in BUDGETS.items()
            if float(curve.cost[0]) <= share * curve.super_cost
        }
        scores[name] = {
            "area": relative_area(curve, random, oracle),
            "on_this_set": {key: vars(curve[index]) for key, index in points.items()},
            "held_out": {
                key: vars(curve[at_threshold(curve, float(entry["threshold"]))])
                | {"threshold": float(entry["threshold"])}
                for key, entry in thresholds.get(name, {}).items()
            },
        }
    return {
        "num_examples": len(answers),
        "quality_name": quality.name,
        "swift": vars(random[0]),
        "super": {"quality": random[len(random) - 1].quality, "cost": random.super_cost},
        # In a regression: where it is nearer.
        "only_super_right": float((gain > 0).double().mean()),
        "only_swift_right": float((gain < 0).double().mean()),
        "scores": scores,
    }


def operating_points(
    answers: PairAnswers, qualities: list[Quality], thresholds: dict[str, dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    """All metrics at the same operating points, which the first one chose.

    Args:
        answers: The evaluation set's.
        qualities: Each is scored from scratch at each point.
        thresholds: Chosen elsewhere.

    Returns:
        For each score its points ``held out, <name>`` and ``read here, <name>``, each with its threshold, deferred
        share, cost, speed-up, ``qualities`` and ``to_super``, its difference to the Super as
        :func:`elang.bootstrap.lost_to_super` gives it.
    """
    curves = pair_curves(answers, qualities[0])
    found: dict[str, Any] = {}
    for name in answers.scores:
        curve = curves[name]
        points = {
            f"held out, {key}": vars(curve[at_threshold(curve, float(entry["threshold"]))])
            | {"threshold": float(entry["threshold"])}
            for key, entry in thresholds.get(name, {}).items()
            if key in FRACTIONS
        }
        points |= {f"read here, {key}": vars(curve[at_parity(curve, share)]) for key, share in FRACTIONS.items()}
        for point in points.values():
            point["qualities"] = {q.name: answers.quality_at(q, name, point["threshold"]) for q in qualities}
        found[name] = points
    each = [(answers.scores[name], point) for name, points in found.items() for point in points.values()]
    lost = torch.stack([answers.gain * ~route(score, point["threshold"]) for score, point in each], 1)
    for (_, point), difference in zip(each, lost_to_super(lost), strict=True):
        point["to_super"] = difference
    return found


def length_bias(answers: PairAnswers) -> dict[str, Any]:
    """How much each score of generated texts is one of their length, and what the decoder costs.

    Returns:
        ``source`` and ``generated``: for each score its Spearman correlation with the source's tokens and with the
        decoder's steps; ``gain``: the same of what deferring gains, which is what a score should follow;
        ``decoder_share``: the share of the Swift's FLOPs that an input saves which is deferred before the decoder.
    """
    columns: dict[str, Any] = answers.more
    ranked = spearman(0).whole
    assert ranked is not None
    sides = {"source": columns.get("swift_tokens"), "generated": columns.get("swift_steps")}
    found: dict[str, Any] = {
        side: {name: ranked(score.double(), length.double()) for name, score in answers.scores.items()}
        for side, length in sides.items()
        if length is not None
    }
    gain = answers.gain
    found["gain"] = {name: ranked(score.double(), gain) for name, score in answers.scores.items()}
    if answers.early_flops is not None:
        found["decoder_share"] = float(1 - answers.early_flops.sum() / answers.swift_flops.sum())
    return found


def share_near_threshold(score: Tensor, threshold: float, distance: float) -> float:
    """Share of examples whose score is within ``distance`` of a threshold, so whose decision may flip.

    Half precision and batch composition move energies by up to 0.004 (float32: 4e-7).
    """
    return float(((score - threshold).abs() <= distance).double().mean())
