"""`elang choose`: the best single model, pair or chain of a pool, from a table of answers."""

import base64
import csv
import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

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
from elang.records.chain_file import FILENAME, chain_of
from elang.terminal import say, say_table, say_wrapped, waiting

_FILES = (FILENAME, "choice.json", "choice.html", "choice.png", "path.csv", "made.json")
_NOTE = "Other pairs and chains are the best of their kind by the rows that choose, without a margin for chance."


def choose(
    answers: str,
    columns: TableColumns,
    target: Target,
    unit: str = "units of cost",
    output: str = "choice",
    ledger: str | None = None,
    models: dict[str, Any] | None = None,
) -> None:
    """The best single model, pair or chain of several models for a budget or a quality, from a table of their answers.

    The table is that of `elang curve`. A half of the rows, or those of the split ``routing``, choose, and the others
    prove what the choice promises.

    Args:
        answers: A parquet, JSONL or CSV file.
        columns: What its columns are.
        target: What is wanted.
        unit: What costs are counted in: FLOPs, seconds, USD, or any word.
        output: Folder for the choice, a page that shows it, and all candidates that were tested.
        ledger: The file that counts attempts on the rows that prove; by default ``slices.json`` beside the output.
        models: Where the models are, by name, for `elang predict --chain`: a folder, a hub id or an
            address, or an object with `model` and `score`. They can also be named there.
    """
    folder = Path(output)
    check_folder(folder, [answers], _FILES)
    with waiting("reading the answers"):
        table = read_answers(answers, columns)
    for name in models or {}:
        table.model(name)
    with output_lock(folder), waiting("comparing models, pairs and chains"):
        folder.mkdir(parents=True, exist_ok=True)
        choice = chosen_from(table, target, Path(ledger) if ledger else folder.resolve().parent / LEDGER, unit)
        _write(choice, folder, Path(answers).stem)
        costs = {name: float(cost.mean()) for name, cost in table.cost.items()}
        chain = chain_of(choice.chosen.models, choice.chosen.thresholds, choice.scores, costs, models or {})
        replace(chain, unit=unit, statement=choice.statement).write(folder / FILENAME)
    _print(choice, answers, folder)


def _write(choice: Choice, folder: Path, title: str) -> None:
    from jinja2 import Environment, PackageLoader

    write_made(folder)
    with write_atomically(folder / "path.csv") as aside, aside.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(choice.path[0])
        for row in choice.path:
            out.writerow([" ".join(map(str, v)) if isinstance(v, list) else v for v in row.values()])
    plot_choice(folder / "choice.png", choice)
    image = base64.b64encode((folder / "choice.png").read_bytes()).decode()
    head, rows = _table(choice)
    parts = {"head": head, "rows": rows, "rules": _rules(choice), "answer": _answer(choice), "note": _NOTE}
    environment = Environment(loader=PackageLoader("elang"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("choice.html").render(choice=choice, title=title, image=image, **parts)
    with write_atomically(folder / "choice.html") as aside:
        aside.write_text(page, "utf-8")
    with write_atomically(folder / "choice.json") as aside:
        aside.write_text(json.dumps(plain({"format": 1} | asdict(choice)), indent=2) + "\n", "utf-8")


def _print(choice: Choice, answers: str, folder: Path) -> None:
    say_wrapped(_answer(choice), choice.alone, choice.statement)
    say_table(f"On the {choice.num_examples['prove']:,} examples that prove", *_table(choice), [_NOTE])
    say_wrapped(*_rules(choice), f"All of this is a page, {folder}/choice.html; the numbers are beside it.")
    say("Use it:", f"  elang predict --chain {folder} --input INPUTS --output answers.jsonl")
    if len(choice.chosen.models) == 2:
        first, second = choice.chosen.models
        say("Its curve, and thresholds by name:")
        say(f"  {shlex.join(['elang', 'curve', answers, '--swift', first, '--super', second])}")


def _answer(choice: Choice) -> str:
    return f"Chosen: {' then '.join(choice.chosen.models)}."


def _table(choice: Choice) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, and a row for each candidate."""
    rows = [_cells(row) for row in [*choice.rows, choice.chosen]]
    rows[-1][0] = f"chosen: {rows[-1][0]}"
    return ["", choice.metric, "95% interval", f"cost ({choice.unit})", "answered by each"], rows


def _cells(row: Row) -> list[str]:
    worth, low, high = row.worth
    shares = ", ".join(f"{share:.0%}" for share in row.shares)
    return [" > ".join(row.models), f"{worth:.4f}", f"{low:.4f} to {high:.4f}", f"{row.cost[0]:.4g}", shares]


def _rules(choice: Choice) -> list[str]:
    """When each model passes an input on."""
    chosen, rules = choice.chosen, []
    for name, after, threshold in zip(chosen.models, chosen.models[1:], chosen.thresholds, strict=False):
        kind = choice.scores[name]
        when = f"{kind} is below {-threshold:.6g}" if kind == "confidence" else f"{kind} is above {threshold:.6g}"
        rules.append(f"An input goes from {name} on to {after} where {name}'s {when}.")
    return rules
