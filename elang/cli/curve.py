"""`elang curve`: everything that `elang validate` says of a pair, from a table of answers, without a model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from elang.evaluation.answer_table import AnswerTable, read_answers
from elang.evaluation.report.console import print_summary
from elang.evaluation.report.files import EVALUATION_FILES
from elang.evaluation.table_columns import TableColumns
from elang.evaluation.table_pair import TablePair, table_pair
from elang.files import check_folder
from elang.locks import output_lock
from elang.records import DEFAULT_THRESHOLD
from elang.records.chain_file import FILENAME, chain_of
from elang.records.manifest import known_name
from elang.terminal import say, waiting


def curve(
    answers: str,
    columns: TableColumns,
    swift: str | None = None,
    super: str | None = None,  # noqa: A002 - the option's name
    score: str | None = None,
    unit: str = "units of cost",
    output: str = "joint",
    models: dict[str, Any] | None = None,
) -> None:
    """The exact curve of two models, thresholds and a report, from a table of their answers.

    The table has a row for each example, and for each model NAME the columns ``NAME.correct`` (0 or 1) or
    ``NAME.worth`` (0 to 1), ``NAME.cost``, and ``NAME.score`` (larger is harder) or ``NAME.confidence`` (larger is
    surer) if it can be the Swift. A hash picks half of the rows to choose thresholds on; the others show what these do.

    Args:
        answers: A parquet, JSONL or CSV file.
        columns: What its columns are.
        swift: The model that is asked first; by default the cheapest one with a score.
        super: The model that is asked where the Swift's score is above a threshold; by default the most expensive one.
        score: The Swift's score that routes; by default its first.
        unit: What costs are counted in: FLOPs, seconds, USD, or any word.
        output: Folder for the records, curves, plot, thresholds and summary, which `elang calibrate` and `report` read.
        models: Where the models are, by name, for `elang predict --chain` and `serve --chain`, as in `elang choose`.
    """
    folder = Path(output)
    check_folder(folder, [answers], EVALUATION_FILES)
    with waiting("reading the answers"):
        table = read_answers(answers, columns)
    ordered = table.by_cost()
    super_ = super or next((name for name in reversed(ordered) if name != swift), ordered[-1])
    swift = swift or next((name for name in ordered if table.scores[name] and name != super_), ordered[0])
    with output_lock(folder):
        pair = table_pair(table, swift, super_, score, unit)
        pair.write(folder)
        _write_chain(pair, table, (swift, super_), models or {}, folder, unit)
    print_summary(pair.summary, folder)
    say("", "A threshold with a promise, and all of this as a page:")
    say(f"  elang calibrate {output} --max_regret 0.02", f"  elang report {output}")


def _write_chain(
    pair: TablePair, table: AnswerTable, names: tuple[str, str], models: dict[str, Any], folder: Path, unit: str
) -> None:
    """Write the pair as a chain with the default threshold."""
    score = pair.manifest.score
    threshold = pair.manifest.threshold(known_name(pair.manifest.thresholds[score], DEFAULT_THRESHOLD))
    costs = {name: float(cost.mean()) for name, cost in table.cost.items()}
    chain = chain_of(names, [threshold], {names[0]: score}, costs, models)
    replace(chain, unit=unit).write(folder / FILENAME)
