"""What makes figures say less than they seem to: nothing to gain, repeated texts, examples known from elsewhere."""

from typing import Any

import torch
from torch import Tensor

from elang.errors import InputError, listed
from elang.evaluation.pair import ROUTING_SLICE, PairAnswers
from elang.evaluation.slices import FEW, MOSTLY, SOME, share_of_slice
from elang.method.bootstrap import mean_intervals
from elang.method.quality.labels import spearman
from elang.notices import notice
from elang.records.manifest import Manifest

# Of fewer examples a class may be missed whole by chance.
_ENOUGH = 5


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
    if answers.kind.has_classes:
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


def check_manifest_apart(evaluated: Tensor, manifest: Manifest, statements: bool) -> None:
    """Refuse to evaluate a manifest's thresholds on the examples that they were chosen on.

    Args:
        evaluated: The keys of the evaluation set, int64 ``(N,)``.
        manifest: With the thresholds.
        statements: Check calibrated thresholds, too, each of which may have been chosen on a slice of its own.

    Raises:
        InputError: As :func:`check_not_chosen_on` does.
    """
    fraction = manifest.routing_fraction
    check_not_chosen_on(evaluated, manifest.chosen_on, "Thresholds were", fraction)
    for named in manifest.thresholds.values() if statements else ():
        for name, entry in named.items():
            if "statement" in entry:
                part = fraction if entry["chosen_on"].startswith("routing") else 0.0
                check_not_chosen_on(evaluated, entry, f"The threshold '{name}' was", part)


def check_not_chosen_on(evaluated: Tensor, about: dict[str, Any], what: str, fraction: float = 0.0) -> None:
    """Refuse to evaluate thresholds on the examples that they were chosen on.

    Args:
        evaluated: The keys of the evaluation set, int64 ``(N,)``.
        about: The examples that they were chosen on, :func:`elang.evaluation.slices.slice_of`.
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


def share_near_threshold(score: Tensor, threshold: float, distance: float) -> float:
    """Share of examples whose score is within ``distance`` of a threshold, so whose decision may flip.

    Half precision and batch composition move energies by up to 0.004 (float32: 4e-7).
    """
    return float(((score - threshold).abs() <= distance).double().mean())


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
