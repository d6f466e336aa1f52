"""A pair from a table of answers, evaluated as `elang validate` evaluates two models."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from elang.errors import InputError, listed
from elang.evaluation.answer_table import AnswerTable
from elang.evaluation.pair import PairAnswers, choose_thresholds
from elang.evaluation.report.files import write_report
from elang.evaluation.slices import describe_slice
from elang.evaluation.statements import report_dropped
from elang.evaluation.summarize import Curves, all_curves, summarize_pair
from elang.evaluation.summary import EvaluatedPair, JointSummary
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
    """

    pairs: dict[str, PairAnswers]
    curves: Curves
    summary: JointSummary
    manifest: Manifest

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


def table_pair(
    table: AnswerTable, swift: str, super_: str, score: str | None = None, unit: str = "units of cost"
) -> TablePair:
    """Evaluate a pair of a table's models.

    Args:
        table: From :func:`elang.evaluation.answer_table.read_answers`.
        swift: The model that is asked first.
        super_: The model that is asked where the Swift's score is above a threshold.
        score: The Swift's score that routes; by default its first.
        unit: Of costs: ``FLOPs``, ``seconds``, ``USD`` or another word.

    Raises:
        InputError: If there is no such model or score.
    """
    if swift == super_:
        raise InputError(f"Swift and Super are both '{swift}'. Name two models of {listed(list(table.worth))}.")
    quality, evaluated = table_quality(table), table.evaluated_on
    pairs = {split: table.pair(swift, super_, split) for split in ("routing", evaluated)}
    chosen_on, answers = pairs["routing"], pairs[evaluated]
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
    return TablePair(pairs, curves, summary, manifest)
