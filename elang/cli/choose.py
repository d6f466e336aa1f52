"""`elang choose`: the best single model, pair or chain of a pool, from a table of answers."""

import csv
import json
from dataclasses import asdict
from pathlib import Path

from elang.evaluation.answer_table import read_answers
from elang.evaluation.choice import Choice, Row
from elang.evaluation.choice import choose as chosen_from
from elang.evaluation.report.choice_figure import plot_choice
from elang.evaluation.statements import LEDGER
from elang.evaluation.table_columns import TableColumns
from elang.evaluation.target import Target
from elang.files import check_folder, plain, write_atomically
from elang.locks import output_lock
from elang.notices import write_made
from elang.terminal import say, say_table, say_wrapped, waiting

_FILES = ("choice.json", "path.csv", "choice.png", "made.json")


def choose(
    answers: str,
    columns: TableColumns,
    target: Target,
    unit: str = "units of cost",
    output: str = "choice",
    ledger: str | None = None,
) -> None:
    """The best single model, pair or chain of several models for a budget or a quality, from a table of their answers.

    The table is that of `elang curve`. A half of the rows, or those of the split ``routing``, choose, and the others
    prove what the choice promises.

    Args:
        answers: A parquet, JSONL or CSV file.
        columns: What its columns are.
        target: What is wanted.
        unit: What costs are counted in: FLOPs, seconds, USD, or any word.
        output: Folder for the choice, all candidates that were tested, and a plot.
        ledger: The file that counts attempts on the rows that prove; by default ``slices.json`` beside the output.
    """
    folder = Path(output)
    check_folder(folder, [answers], _FILES)
    with waiting("reading the answers"):
        table = read_answers(answers, columns)
    with output_lock(folder), waiting("comparing models, pairs and chains"):
        folder.mkdir(parents=True, exist_ok=True)
        choice = chosen_from(table, target, Path(ledger) if ledger else folder.resolve().parent / LEDGER, unit)
        _write(choice, folder)
    _print(choice, answers, folder)


def _write(choice: Choice, folder: Path) -> None:
    write_made(folder)
    with write_atomically(folder / "path.csv") as aside, aside.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["models", "thresholds", "worth", "cost", "proved_worth", "proved_cost"])
        for row in choice.path:
            out.writerow([" ".join(map(str, v)) if isinstance(v, list) else v for v in row.values()])
    plot_choice(folder / "choice.png", choice)
    with write_atomically(folder / "choice.json") as aside:
        aside.write_text(json.dumps(plain({"format": 1} | asdict(choice)), indent=2) + "\n", "utf-8")


def _print(choice: Choice, answers: str, folder: Path) -> None:
    names = " then ".join(choice.chosen.models)
    say_wrapped(f"Chosen: {names}.", choice.alone, choice.statement)
    rows = [_cells(row) for row in [*choice.rows, choice.chosen]]
    rows[-1][0] = f"chosen: {rows[-1][0]}"
    head = ["", choice.metric, "95% interval", f"cost ({choice.unit})", "answered by each"]
    title = f"On the {choice.num_examples['prove']:,} examples that prove"
    notes = ["Pairs and chains above the chosen one are the best by the rows that choose, without a margin for chance."]
    say_table(title, head, rows, notes)
    for place, (name, threshold) in enumerate(zip(choice.chosen.models, choice.chosen.thresholds, strict=False)):
        after = choice.chosen.models[place + 1]
        say_wrapped(f"An input goes from {name} to {after} where {name}'s score is above {threshold:.6g}.")
    say_wrapped(f"All numbers are in {folder}/ (see choice.png).")
    if len(choice.chosen.models) == 2:
        first, second = choice.chosen.models
        say("Its curve, thresholds and page:")
        say(f"  elang curve {answers} --swift {first} --super {second}")


def _cells(row: Row) -> list[str]:
    worth, low, high = row.worth
    shares = ", ".join(f"{share:.0%}" for share in row.shares)
    return [" > ".join(row.models), f"{worth:.4f}", f"{low:.4f} to {high:.4f}", f"{row.cost[0]:.4g}", shares]
