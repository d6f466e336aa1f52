"""A pair from a table of answers, evaluated as `elang validate` evaluates two models."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.errors import InputError, listed
from elang.evaluation.answer_table import AnswerTable
from elang.evaluation.pair import PairAnswers, choose_thresholds
from elang.evaluation.report.files import write_report
from elang.evaluation.slices import describe_slice
from elang.evaluation.statements import report_dropped
from elang.evaluation.summarize import Curves, all_curves, summarize_pair
from elang.evaluation.summary import EvaluatedPair, JointSummary
from elang.evaluation.text_router import Routed, text_routers
from elang.evaluation.units import MONEY, SECONDS
from elang.method.quality.labels import worth
from elang.method.quality.metric import Quality
from elang.notices import write_made
from elang.records.manifest import FILENAME, Manifest


@dataclass
class TablePair:
    """What is known of a pair from a table.

    Attributes:
        pairs: Both models' answers, by split.
        curves: Of the evaluated split, by metric and score.
        summary: What is read off them.
        manifest: Thresholds that the ``routing`` rows chose.
        routed: What routers found that read the text, if they were asked for.
    """

    pairs: dict[str, PairAnswers]
    curves: Curves
    summary: JointSummary
    manifest: Manifest
    routed: Routed | None = None

    def write(self, folder: Path) -> None:
        """Write all that `elang validate` writes into a folder, from which `calibrate` and `report` read."""
        folder.mkdir(parents=True, exist_ok=True)
        report_dropped(folder / FILENAME)
        self.manifest.write(folder / FILENAME)
        write_made(folder)
        write_report(folder, self.pairs, self.summary.evaluated_on, self.curves, self.summary, [])


def table_quality(table: AnswerTable) -> Quality:
    """The metric of a table: accuracy if all answers are right or wrong, otherwise their mean worth."""
    quality = worth(0)
    return replace(quality, name="accuracy") if table.binary else quality


def convention_of(unit: str) -> str:
    """How a summary says what costs are counted in: FLOPs, seconds, or else like money.

    >>> convention_of("FLOPs"), convention_of("seconds"), convention_of("USD")
    ('', 'seconds', 'money, in USD')
    """
    return {"flops": "", SECONDS: SECONDS}.get(unit.lower(), f"{MONEY}{unit}")


@dataclass(frozen=True)
class RouterOption:
    """A router before any answer.

    Attributes:
        vectors: Of each text of the table, float32 ``(N, D)``; by default TF-IDF describes the texts.
        cost: Of the router for an input, or for each, in the unit of the table; ``None`` measures seconds.
        reads: What it is called in texts.
    """

    vectors: Tensor | None = None
    cost: float | Tensor | None = 0.0
    reads: str = "TF-IDF"


def table_pair(
    table: AnswerTable,
    swift: str,
    super_: str,
    score: str | None = None,
    unit: str = "units of cost",
    router: RouterOption | None = None,
) -> TablePair:
    """Evaluate a pair of a table's models.

    Args:
        table: From :func:`elang.evaluation.answer_table.read_answers`.
        swift: The model that is asked first.
        super_: The model that is asked where the Swift's score is above a threshold.
        score: The score that routes: one of the Swift's, ``text_router`` or ``text_score_router``; by default the
            Swift's first.
        unit: Of costs: ``FLOPs``, ``seconds``, ``USD`` or another word.
        router: Adds a router that reads the text alone, and one that also reads the Swift's score.

    Raises:
        InputError: If there is no such model, score or text.
    """
    if swift == super_:
        raise InputError(f"Swift and Super are both '{swift}'. Name two models of {listed(list(table.worth))}.")
    quality, evaluated = table_quality(table), table.evaluated_on
    pairs = {split: table.pair(swift, super_, split, scored=router is None) for split in ("routing", evaluated)}
    chosen_on, answers = pairs["routing"], pairs[evaluated]
    routed = None if router is None else _add_routers(table, pairs, router, score)
    routing: str = score or next(iter(answers.scores))
    if routing not in answers.scores:
        raise InputError(f"'{swift}' has no score '{routing}'; it has {listed(list(answers.scores))}.")
    curves = all_curves(answers, [quality])
    share = len(chosen_on) / (len(chosen_on) + len(answers))
    words = f"the rows of '{Path(table.source).name}' that are held out for it"
    manifest = Manifest(
        [],
        score=routing,
        routing_fraction=share,
        thresholds=choose_thresholds(chosen_on, quality, words),
        chosen_on=describe_slice(chosen_on.key, ""),
    )
    about: dict[str, Any] = {"swift_model": swift, "super_model": super_, "weights": {"swift": "", "super": ""}}
    source = f"{words}: {len(chosen_on)} examples"
    pair = EvaluatedPair(
        evaluated_on=evaluated,
        num_examples=len(answers),
        score=routing,
        temperature=1.0,
        flops_convention=convention_of(unit),
        thresholds=source,
        thresholds_from=source,
        task=f"{Path(table.source).stem}: {swift} before {super_}",
        **about,
    )
    # Scores of a file have no rounding of their own.
    summary = summarize_pair(pair, answers, curves, manifest.thresholds, [], len(answers), manifest=None, rounding=0.0)
    manifest.denial = summary.denial or ""
    return TablePair(pairs, curves, summary, manifest, routed)


def _add_routers(table: AnswerTable, pairs: dict[str, PairAnswers], option: RouterOption, score: str | None) -> Routed:
    """Fit routers of the text, and add their scores and costs to both splits."""
    if table.text is None:
        raise InputError("A router before any answer reads the text. Name its column with --text.")
    chosen_on, other = pairs.values()
    rows = torch.cat([chosen_on.id, other.id])
    cost = option.cost[rows] if isinstance(option.cost, Tensor) else option.cost
    features = [table.text[row] for row in rows.tolist()] if option.vectors is None else option.vectors[rows]
    own = score if score in other.scores else next(iter(other.scores), None)
    routed = text_routers(features, chosen_on, other, cost, own)
    for pair, part in ((chosen_on, slice(len(chosen_on))), (other, slice(len(chosen_on), None))):
        for values, found in (
            (pair.scores, routed.score),
            (pair.own_flops, routed.kept),
            (pair.deferred_flops, routed.deferred),
        ):
            values.update({name: each[part] for name, each in found.items()})
    return routed
