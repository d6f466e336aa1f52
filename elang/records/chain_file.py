"""A chain of models as a file: who is asked in which order, and from which score on the next one is asked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from elang.errors import InputError, listed
from elang.files import plain, write_atomically
from elang.json_files import MEASURED, OBJECT, TEXT, TEXTS, Check, check_fields, is_number, shown, whole
from elang.method.pool import PERSON

FILENAME = "chain.yaml"
_FORMAT = 1
_OBJECTS: Check = ("a list of stages", lambda v: isinstance(v, list) and all(isinstance(one, dict) for one in v))
_OPTIONAL: Check = ("a text, or null", lambda v: v is None or isinstance(v, str))
_FIELDS: dict[str, Check] = {
    "format": whole(1),
    "unit": TEXT,
    "stages": _OBJECTS,
    "task": OBJECT,
    "label_names": TEXTS,
    "statement": TEXT,
}
_STAGE: dict[str, Check] = {
    "name": ("a name", lambda v: isinstance(v, str) and bool(v.strip()) and v.isprintable()),
    **dict.fromkeys(("model", "score", "thresholds"), _OPTIONAL),
    "threshold": (
        "a number, inf, -inf, or the name of a threshold",
        lambda v: MEASURED[1](v) or isinstance(v, str) or v in (math.inf, -math.inf),
    ),
    "cost": ("a number of at least 0, or null", lambda v: v is None or is_number(v, 0)),
}


@dataclass(frozen=True)
class ChainStage:
    """A stage of a chain.

    Attributes:
        name: Its name in ``answered_by``.
        model: Its folder, hub id or address, or ``person``; ``None`` where it is still to be named.
        score: The score by which it passes inputs on, larger is harder; by default the model's own.
        threshold: Inputs that score above it go to the next stage: a number, or a name of the model's thresholds.
        thresholds: Another threshold file than the model's own, as `elang validate` writes it.
        cost: What an answer costs on average, in the chain's unit.
    """

    name: str
    model: str | None = None
    score: str | None = None
    threshold: float | str | None = None
    thresholds: str | None = None
    cost: float | None = None


@dataclass(frozen=True)
class Chain:
    """Stages in the order in which they are asked.

    Attributes:
        stages: All of them; the last one has neither score nor threshold.
        unit: Of their costs.
        task: What is answered, :meth:`elang.tasks.text_task.TextTask.plain`, where the first model does not say it.
        label_names: Its classes.
        statement: What the chain promises.
    """

    stages: tuple[ChainStage, ...]
    unit: str = "units of cost"
    task: dict[str, Any] = field(default_factory=dict)
    label_names: list[str] = field(default_factory=list)
    statement: str = ""

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise InputError(f"A chain needs stages with names of their own, but these are {names}.")
        if missing := [stage.name for stage in self.stages[:-1] if stage.threshold is None]:
            raise InputError(f"The stage '{missing[0]}' has no threshold, so it cannot pass inputs on. Give it one.")
        if len(self.stages) > 1 and self.stages[-1].threshold is not None:
            raise InputError(f"'{names[-1]}' is the last stage, so it passes nothing on. Leave its threshold out.")

    def write(self, path: Path) -> None:
        """Write to a file of YAML, without what is not known."""
        values = {name: value for name, value in asdict(self).items() if value}
        values["stages"] = [{k: v for k, v in asdict(one).items() if v is not None} for one in self.stages]
        with write_atomically(path) as aside:
            text = yaml.safe_dump({"format": _FORMAT, **plain(values)}, sort_keys=False, allow_unicode=True, width=120)
            aside.write_text(text, "utf-8")

    @classmethod
    def read(cls, path: str | Path) -> "Chain":
        """Read a file of YAML or JSON, or ``chain.yaml`` in a folder; an ``InputError`` if it is missing or invalid."""
        path = Path(path)
        path = path / FILENAME if path.is_dir() else path
        try:
            data = yaml.safe_load(path.read_text("utf-8-sig"))
            if not isinstance(data, dict):
                raise ValueError(f"it is {shown(data)}, not an object with 'stages'")
            check_fields(data, _FIELDS, ("stages",))
            if (version := data.pop("format", _FORMAT)) != _FORMAT:
                raise ValueError(f"it has the format {version}, and this version knows {_FORMAT}")
            _check_names(data, Chain, "")
            for place, stage in enumerate(data["stages"]):
                check_fields(stage, _STAGE, ("name",), f"stages.{place}.")
                _check_names(stage, ChainStage, f"stages.{place}.")
        except FileNotFoundError as error:
            raise InputError(f"There is no chain '{path}'. `elang choose` and `elang curve` write it.") from error
        except (OSError, ValueError, yaml.YAMLError) as error:
            said = " ".join(str(error).split())
            raise InputError(f"'{path}' is no chain of this version ({said}). Correct it (docs/chains.md).") from error
        stages = [_found_beside(ChainStage(**stage), path.parent) for stage in data.pop("stages")]
        return cls(tuple(stages), **data)

    def with_models(self, models: Mapping[str, Any]) -> "Chain":
        """The chain with models by the names of their stages: an address, or an object that has further fields, too.

        Raises:
            InputError: If there is no such stage or field, or a stage has no model in the end.
        """
        names = [stage.name for stage in self.stages]
        stages = []
        if unknown := [name for name in models if name not in names]:
            raise InputError(f"--models names '{unknown[0]}', but the stages of the chain are {listed(names)}.")
        for stage in self.stages:
            stage = _named(stage, models.get(stage.name))
            if stage.model is None:
                raise InputError(
                    f"The chain does not say which model '{stage.name}' is. Give its folder, hub id or address: "
                    f"--models '{{{stage.name}: FOLDER}}', or as 'model' in its file."
                )
            stages.append(stage)
        return replace(self, stages=tuple(stages))


def chain_of(
    names: Sequence[str],
    thresholds: Sequence[float],
    scores: Mapping[str, str],
    costs: Mapping[str, float],
    models: Mapping[str, Any],
) -> Chain:
    """A chain that was chosen from a table of answers.

    ``scores`` are the kinds of a table's scores. A plain ``score`` or ``confidence`` is no name of a model's score: the
    model's own is used there, whose numbers the column must have (a confidence with the sign turned).
    """
    stages = []
    for place, name in enumerate(names):
        kind = scores.get(name) if place < len(thresholds) else None
        stage = ChainStage(
            name,
            model=PERSON if name == PERSON else None,
            score=None if kind in ("score", "confidence") else kind,
            threshold=thresholds[place] if place < len(thresholds) else None,
            cost=costs.get(name),
        )
        stages.append(_named(stage, models.get(name)))
    return Chain(tuple(stages))


def _named(stage: ChainStage, given: Any) -> ChainStage:
    """A stage with the model that was given for it."""
    if not isinstance(given, dict):
        return stage if given is None else replace(stage, model=given)
    try:
        check_fields(given, _STAGE)
        _check_names(given, ChainStage, "")
    except ValueError as error:
        raise InputError(f"--models says of '{stage.name}' what is not possible: {error}.") from error
    return replace(stage, **given)


def _check_names(values: dict[str, Any], made: type, where: str) -> None:
    """Refuse what is no field: a misspelt threshold would be none."""
    known = list(made.__dataclass_fields__)  # type: ignore[attr-defined]
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"it has the unknown '{where}{unknown[0]}'; there are {listed(known)}")


def _found_beside(stage: ChainStage, folder: Path) -> ChainStage:
    """A stage whose threshold file, if it is named by a relative path, is beside the chain's file."""
    if stage.thresholds is None or Path(stage.thresholds).is_absolute():
        return stage
    return replace(stage, thresholds=str(folder / stage.thresholds))
