"""`elang curve`: everything that `elang validate` says of a pair, from a table of answers, without a model."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from elang.errors import InputError
from elang.evaluation.answer_table import AnswerTable, read_answers
from elang.evaluation.report.console import print_summary
from elang.evaluation.report.files import EVALUATION_FILES
from elang.evaluation.table_columns import TableColumns
from elang.evaluation.table_pair import RouterOption, TablePair, table_pair
from elang.evaluation.text_router import BOTH, TEXT
from elang.evaluation.units import SECONDS, words_of
from elang.files import check_folder
from elang.locks import output_lock
from elang.records import DEFAULT_THRESHOLD
from elang.records.chain_file import FILENAME, chain_of
from elang.records.manifest import known_name
from elang.terminal import say, say_wrapped, waiting


def curve(
    answers: str,
    columns: TableColumns,
    swift: str | None = None,
    super: str | None = None,  # noqa: A002 - the option's name
    score: str | None = None,
    unit: str = "units of cost",
    output: str = "joint",
    router: str | None = None,
    router_cost: float | None = None,
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
        score: The score that routes; by default the Swift's first.
        unit: What costs are counted in: FLOPs, seconds, USD, or any word.
        output: Folder for the records, curves, plot, thresholds and summary, which `elang calibrate` and `report` read.
        router: Adds a router that decides by the text before any model answers, and one that also reads the Swift's
            score: ``tfidf``, or an encoder that reads the text, a folder or a pinned hub id. It needs ``--text``.
        router_cost: Of the router for an input. By default it is counted for FLOPs, measured for seconds, and 0 for
            any other unit.
        models: Where the models are, by name, for `elang predict --chain`, as in `elang choose`.
    """
    folder = Path(output)
    check_folder(folder, [answers], EVALUATION_FILES)
    with waiting("reading the answers"):
        table = read_answers(answers, columns)
    ordered = table.by_cost()
    super_ = super or next((name for name in reversed(ordered) if name != swift), ordered[-1])
    swift = swift or next((name for name in ordered if (table.scores[name] or router) and name != super_), ordered[0])
    option = _option(router, table, unit, router_cost)
    with output_lock(folder):
        with waiting("fitting the router" if router else "computing the curve"):
            pair = table_pair(table, swift, super_, score, unit, option)
        pair.write(folder)
        _write_chain(pair, table, (swift, super_), models or {}, folder, unit)
    print_summary(pair.summary, folder)
    if pair.routed is not None and option is not None:
        say_wrapped(*_told(pair, option))
    say("", "A threshold with a promise, and all of this as a page:")
    say(f"  elang calibrate {output} --max_regret 0.02", f"  elang report {output}")


def _option(router: str | None, table: AnswerTable, unit: str, cost: float | None) -> RouterOption | None:
    """The router that was asked for, with what it costs."""
    if router is None:
        if cost is not None:
            raise InputError("--router_cost is that of a router. Name one with --router.")
        return None
    if cost is not None and not 0 <= cost < math.inf:
        raise InputError(f"--router_cost must be finite and not negative, but it is {cost}.")
    if table.text is None:
        raise InputError("--router reads the text. Name its column with --text.")
    kind = unit.lower()
    if router == "tfidf":
        # A product for each word and pair of words, and each of three gains.
        flops, vectors, reads = torch.tensor([12.0 * len(text.split()) for text in table.text]).double(), None, "TF-IDF"
        # Seconds are measured where it predicts.
        seconds = None
    else:
        from elang.backends.sentence import embed

        begin = time.perf_counter()
        with waiting(f"reading {len(table):,} texts with '{router}'"):
            vectors, flops = embed(router, table.text)
        seconds, reads = (time.perf_counter() - begin) / len(table), router
    counted: dict[str, Any] = {"flops": flops, SECONDS: seconds}
    return RouterOption(vectors, counted.get(kind, 0.0) if cost is None else cost, reads)


def _told(pair: TablePair, option: RouterOption) -> list[str]:
    """What the routers are, and what they cost."""
    routed, unit = pair.routed, words_of(pair.summary.flops_convention).name
    assert routed is not None, "it was asked for"
    each = float(routed.kept[TEXT].mean())
    cost = f"counted with {each:.4g} {unit} an input" if each else "counted as free; --router_cost says otherwise"
    what = f"{TEXT} reads the text alone ({option.reads}; {routed.about}; {cost})"
    said = [f"{what}. Where it defers, the Swift does not run."]
    if BOTH in routed.score:
        straight = float((routed.score[BOTH] > 1).double().mean())
        said.append(
            f"{BOTH} sends {straight:.1%} of the inputs straight to the Super, those that {TEXT} puts above "
            f"{routed.direct:.4g}, and decides on the others by the text and the Swift's score together."
        )
    return said


def _write_chain(
    pair: TablePair, table: AnswerTable, names: tuple[str, str], models: dict[str, Any], folder: Path, unit: str
) -> None:
    """Write the pair as a chain with the default threshold."""
    score = pair.manifest.score
    threshold = pair.manifest.threshold(known_name(pair.manifest.thresholds[score], DEFAULT_THRESHOLD))
    costs = {name: float(cost.mean()) for name, cost in table.cost.items()}
    chain = chain_of(names, [threshold], {names[0]: score}, costs, models)
    replace(chain, unit=unit).write(folder / FILENAME)
