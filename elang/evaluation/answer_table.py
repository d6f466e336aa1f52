"""A table of answers that models gave: what each is worth, what it cost, and how hard it was, read from one file."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.data.examples import in_slice
from elang.errors import InputError, listed
from elang.evaluation.pair import PairAnswers
from elang.evaluation.table_columns import WORTH, TableColumns, columns_of_models, hashed, table_frame, texts
from elang.method.certificate import mixed
from elang.method.pool import PERSON
from elang.records.columns import numbers, rows_of

SPLITS = ("routing", "validation", "test")
"""Values of a split column: ``routing`` rows choose thresholds, those of another one show what they do."""


@dataclass
class AnswerTable:
    """Answers of ``M`` models to ``N`` examples.

    Attributes:
        source: The file's name, for messages.
        worth: What each model's answers are worth by its name, 0 to 1, float64 ``(N,)``.
        cost: What they cost, in any unit, float64 ``(N,)``.
        scores: Of each model that can be a Swift, its scores by name, float64 ``(N,)``; larger is harder.
        key: Hash of each example, int64 ``(N,)``.
        unit: Its group, int64 ``(N,)``, if rows belong together.
        split: Its part, one of :data:`SPLITS`.
        text: The inputs, if they are known.
        answers: The answers as texts, by model, if they are known.
    """

    source: str
    worth: dict[str, Tensor]
    cost: dict[str, Tensor]
    scores: dict[str, dict[str, Tensor]]
    key: Tensor
    split: np.ndarray[Any, Any]
    unit: Tensor | None = None
    text: list[str] | None = None
    answers: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.key)

    @cached_property
    def binary(self) -> bool:
        """Whether each answer is right or wrong, nothing in between."""
        return all(bool(((worth == 0) | (worth == 1)).all()) for worth in self.worth.values())

    @cached_property
    def evaluated_on(self) -> str:
        """The split that shows what was chosen."""
        return "test" if "validation" not in self.split else "validation"

    def model(self, name: str, scored: bool = False) -> str:
        """Check that there is a model of this name, with a score if it is ``scored``, and return the name."""
        if name not in self.worth:
            raise InputError(f"'{self.source}' has no model '{name}'; it has {listed(list(self.worth))}.")
        if scored and not self.scores.get(name):
            raise InputError(
                f"'{self.source}' has no score of '{name}', so it cannot say when to ask another model. Add a column "
                f"'{name}.score' (larger is harder) or '{name}.confidence' (larger is surer)."
            )
        return name

    def by_cost(self) -> list[str]:
        """The models, the cheapest first, and a person last."""
        return sorted(self.worth, key=lambda name: (name == PERSON, float(self.cost[name].mean())))

    def pair(self, swift: str, super_: str, split: str, scored: bool = True) -> PairAnswers:
        """Two models' answers to one split, as `elang validate` has them; a ``scored`` Swift must have a score."""
        swift, super_ = self.model(swift, scored), self.model(super_)
        rows = torch.from_numpy(np.flatnonzero(self.split == split))
        if not len(rows):
            raise InputError(f"No row of '{self.source}' is in the split '{split}'.")
        more: dict[str, Any] = {"input": self.text} | {
            f"{who}_text": self.answers.get(name) for who, name in (("swift", swift), ("super", super_))
        }
        chosen = rows.tolist()
        zero = torch.zeros(len(rows), dtype=torch.int64)
        return PairAnswers(
            id=rows,
            key=self.key[rows],
            # A prediction says which of the two answers is meant.
            label=zero,
            swift=zero,
            super_=zero + 1,
            scores={name: score[rows] for name, score in self.scores[swift].items()},
            swift_flops=self.cost[swift][rows],
            super_flops=self.cost[super_][rows],
            more={name: [values[row] for row in chosen] for name, values in more.items() if values is not None},
            targets={"worth": torch.stack([self.worth[swift][rows], self.worth[super_][rows]], 1)},
            problem="choice",
            unit=None if self.unit is None else self.unit[rows],
        )


def read_answers(source: str | Path | Any, about: TableColumns | None = None) -> AnswerTable:
    """Read a parquet, JSONL or CSV file, or a data frame, with a row for each example.

    Each model NAME has ``NAME.correct`` (0 or 1, true or false), ``NAME.worth`` (0 to 1) or, with a reference,
    ``NAME.answer``; ``NAME.cost``; and, to be a Swift, ``NAME.score`` (larger is harder), ``NAME.score_KIND`` or
    ``NAME.confidence`` (larger is surer). A slash or an underscore may stand for the dot.

    Raises:
        InputError: Naming the column and the rows, if a value is missing, no number or outside its bounds, an id comes
            twice, or there is no model.
    """
    about = about or TableColumns()
    if not 0 < about.held_out < 1:
        raise InputError(f"--held_out must be between 0 and 1, but it is {about.held_out}.")
    path = Path(source) if isinstance(source, str | Path) else Path("the table")
    frame, names = table_frame(source, path, about)
    return _table(frame, columns_of_models(names, about, path), about, path)


def _table(frame: Any, models: dict[str, dict[str, str]], about: TableColumns, path: Path) -> AnswerTable:
    def column(name: str, least: float = -np.inf) -> Tensor:
        values: Tensor = torch.from_numpy(numbers(frame, name, str(path), least=least))
        return values

    worth, cost, scores, answers = {}, {}, {}, {}
    for model, columns in models.items():
        kind = next(kind for kind in WORTH if kind in columns)
        if "answer" in columns:
            answers[model] = texts(frame, columns["answer"])
        worth[model] = _right(answers[model], frame, about) if kind == "answer" else column(columns[kind], 0.0)
        bad = worth[model] > 1 if kind != "correct" else (worth[model] != 0) & (worth[model] != 1)
        if bool(bad.any()):
            needed = "0 or 1 is needed (0.5 and the like is a 'worth')" if kind == "correct" else "0 to 1 is needed"
            raise InputError(
                f"'{path}' has {float(worth[model][bad][0]):g} as its '{columns[kind]}' in "
                f"{rows_of(bad.numpy(), frame)}, where {needed}. Divide by the largest worth, or correct the rows."
            )
        constant = about.costs.get(model)
        if constant is not None and not 0 <= constant < np.inf:
            raise InputError(f"--costs must be finite and not negative, but '{model}' has {constant}.")
        cost[model] = column(columns["cost"], 0.0) if constant is None else torch.full_like(worth[model], constant)
        kinds = {kind: name for kind, name in columns.items() if kind.startswith(("score", "confidence"))}
        scores[model] = {
            kind.removeprefix("score_"): column(name) * (-1 if kind == "confidence" else 1)
            for kind, name in kinds.items()
        }
        if taken := {"random", "oracle"} & scores[model].keys():
            raise InputError(f"A score cannot be called '{min(taken)}', which every report has. Rename the column.")
    if not any(bool(paid.any()) for paid in cost.values()):
        raise InputError(f"All costs in '{path}' are 0, so nothing can be saved. Give what answers cost, in any unit.")
    scored = [score for own in scores.values() for score in own.values()]
    key = _keys(frame, about, path, [*worth.values(), *cost.values(), *scored])
    if about.person:
        worth[PERSON] = torch.full((len(frame),), about.person.get("right", 1.0), dtype=torch.float64)
        cost[PERSON], scores[PERSON] = torch.full_like(worth[PERSON], about.person["cost"]), {}
    unit = None if about.group is None else hashed(frame, about.group, path)
    return AnswerTable(
        str(path),
        worth,
        cost,
        scores,
        key=key,
        split=_splits(frame, about, key if unit is None else unit, path),
        unit=unit,
        text=None if about.text is None else texts(frame, about.text),
        answers=answers,
    )


def _right(answers: list[str], frame: Any, about: TableColumns) -> Tensor:
    """Whether each answer is that of the reference; an empty one is wrong."""
    reference = texts(frame, str(about.reference))
    if empty := [row for row, text in enumerate(reference) if not text]:
        raise InputError(f"'{about.reference}' is empty in row {empty[0]} (counted from 0). Fill it in.")
    return torch.tensor([float(a == b) for a, b in zip(answers, reference, strict=True)], dtype=torch.float64)


def _keys(frame: Any, about: TableColumns, path: Path, values: list[Tensor]) -> Tensor:
    """The hash of each example: of its text, or of its id, or else of its row and all that is known of it."""
    name = about.id or ("id" if "id" in frame else None)
    if name is not None:
        repeated = frame[name].duplicated(keep=False).to_numpy()
        if repeated.any():
            raise InputError(
                f"The id {frame[name][repeated].iloc[0]!r} of the column '{name}' comes more than once, in "
                f"{rows_of(repeated, frame)}. Give each example an id of its own, or name another column with --id."
            )
    if about.text is not None or name is not None:
        return hashed(frame, str(about.text or name), path)
    key = torch.arange(len(frame))
    for column in values:
        key = mixed(key ^ torch.from_numpy(column.numpy().view(np.int64)))
    return key


def _splits(frame: Any, about: TableColumns, unit: Tensor, path: Path) -> np.ndarray[Any, Any]:
    """The split of each row; without a column a hash of its unit decides."""
    if about.split is None:
        split = np.where(in_slice(unit, about.held_out).numpy(), "routing", "validation")
    else:
        split = np.array(texts(frame, about.split))
        unknown, name = ~np.isin(split, SPLITS), about.group or about.text
        if unknown.any():
            raise InputError(
                f"'{path}' has {split[unknown][0]!r} as its '{about.split}' in {rows_of(unknown, frame)}, where one of "
                f"{listed(list(SPLITS))} is needed: 'routing' rows choose, the others show what was chosen."
            )
        chose = split == "routing"
        if (both := torch.isin(unit, unit[torch.from_numpy(chose)]).numpy() & ~chose).any():
            raise InputError(
                f"'{path}' has the same '{name}' in 'routing' and in '{split[both][0]}', there in "
                f"{rows_of(both, frame)}. What chose a threshold cannot show what it does: remove one of the two, or "
                "leave out --split, and elang keeps them together."
            )
    if "routing" not in split or len(np.unique(split)) < 2:
        raise InputError(
            f"'{path}' needs rows that choose ('routing') and others that show what was chosen ('validation'), but all "
            f"{len(split):,} are '{split[0]}'. Give more rows, or another --split or --held_out."
        )
    return split
