"""Using a pair: the Swift answers, and only hard inputs go to the Super. Needs no Lightning."""

import math
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from typing import Any, NoReturn

from torch import Tensor

from elang.backends import DType
from elang.backends.text_model import TextModel
from elang.errors import InputError
from elang.inference.cascade import Cascade, Stage
from elang.inference.loading import Pair, load_pair, make_ready, model_or_path, routing_of
from elang.inference.options import PairOptions
from elang.inference.prediction import Prediction
from elang.inference.runner import BatchLimits, ModelRunner
from elang.tasks.text_task import TextTask

# In a stream the Super is run once so many of its batches are full: the rest of the last one is then a small part.
_FULL_BATCHES, _USUAL_LENGTH = 8, 32
_NO_SUPER = "This predictor was made without a Super; give super_model."


class JointPredictor(Cascade):
    """Answers texts with a Swift and a Super: a cascade of two stages.

    Inputs over the length that the Swift was trained on are cut and counted in :attr:`truncated`, those that the
    Super's tokens make too long in :attr:`super_truncated`.

    Args:
        swift_model: The Swift's folder, as `elang fit` writes it; ``None`` where only :meth:`ask_super` is used.
        super_model: The Super's folder, or a hub id; ``None`` where it is elsewhere and only :meth:`ask_swift` is used.
        threshold: This and all further options are those of :class:`~elang.inference.options.PairOptions`.

    Models that are there already (:class:`elang.backends.text_model.TextModel`) can be given in the place of folders.

    Attributes:
        runners: What runs the models that are here, by the names of their stages, ``swift`` and ``super``.
        swift: The Swift; without one the Super is here, too.
        score: The score that routes.
        manifest: Of the Swift, or of ``thresholds``.
        device: Where both models are.

    >>> predictor = JointPredictor("runs/swift", "runs/super")  # doctest: +SKIP
    >>> predictor(["what is energy ?"])  # doctest: +SKIP
    [Prediction(label='DESC', score=-0.96, answered_by='swift')]
    """

    def __init__(
        self,
        swift_model: str | PathLike[str] | TextModel | None,
        super_model: str | PathLike[str] | TextModel | None,
        threshold: str | float = "parity",
        score: str | None = None,
        thresholds: str | None = None,
        device: str | None = None,
        batch_size: int | None = None,
        tokens: int | None = None,
        super_tokens: int | None = None,
        few: int = 0,
        dtype: DType = "float32",
        compile: bool = False,  # noqa: A002 - the option's name
        super_int8: bool = False,
        onnx: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in PairOptions.__dataclass_fields__}
        options = PairOptions(**given)
        swift_model, super_model = model_or_path(swift_model), model_or_path(super_model)
        self.device = options.place()
        pair = load_pair(swift_model, super_model, options, self.device)
        self.swift, self.manifest = pair.swift, pair.manifest
        self.score, limit = options.score or pair.manifest.score, math.inf
        if swift_model is not None:
            self.score, limit = routing_of(pair, options, super_model)
        make_ready(pair, options, self.score)
        self.runners = self._runners(pair, options, swift_model is None)
        stages = []
        if swift_model is not None:
            stages.append(Stage("swift", self.runners["swift"], self.score, limit))
        collect = _FULL_BATCHES * max(1, options.budgets(self.device)[1] // _USUAL_LENGTH)
        super().__init__(
            [*stages, Stage("super", self.runners.get("super") or _Missing(pair.swift.task), collect=collect)]
        )

    def _runners(self, pair: Pair, options: PairOptions, alone: bool) -> dict[str, ModelRunner]:
        budgets, runners = dict(zip(("swift", "super"), options.budgets(self.device), strict=True)), {}
        models = {"swift": None if alone else pair.swift, "super": pair.super_}
        for name, model in models.items():
            if model is not None:
                runners[name] = ModelRunner(
                    model,
                    name.capitalize(),
                    BatchLimits(
                        pair.manifest.max_length,
                        budgets[name],
                        options.batch_size,
                        options.few,
                        "tokens" if name == "swift" else "super_tokens",
                    ),
                    device=self.device,
                    task=model.task if model.manifest is not None else pair.swift.task,
                    any_pairs=model.manifest is None and pair.swift.manifest is None,
                    scoring=(self.score, pair.manifest.temperature) if name == "swift" else None,
                    order=pair.order if name == "super" else None,
                )
        return runners

    @property
    def label_names(self) -> list[str]:
        """Class names in the order of the Swift's logits."""
        return self.swift.label_names

    @property
    def threshold(self) -> float:
        """What scores above it goes to the Super; without a Swift nothing is scored, and it is infinite."""
        return self.stages[0].threshold

    @threshold.setter
    def threshold(self, threshold: float) -> None:
        self.set_threshold(threshold)

    @property
    def super_(self) -> TextModel:
        """The Super.

        Raises:
            InputError: If it is not here.
        """
        if "super" not in self.runners:
            raise InputError(_NO_SUPER)
        return self.runners["super"].model

    @property
    def truncated(self) -> int:
        """Inputs that were cut for the Swift."""
        return self.runners["swift"].truncated if "swift" in self.runners else 0

    @property
    def super_truncated(self) -> int:
        """Inputs that the Super's tokens made too long."""
        return self.runners["super"].truncated if "super" in self.runners else 0

    def super_map(self, texts: Iterable[str] | Iterable[tuple[str, ...]], window: int = 4096) -> Iterator[Prediction]:
        """Answer a stream by the Super alone, in the same way; the scores are infinite."""
        yield from Cascade(self.stages[-1:]).map(texts, window)

    def batches(self, model: TextModel, texts: Sequence[Any]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The batches of one of the two models: which texts they are of, and the model's inputs."""
        runner = next(one for one in self.runners.values() if one.model is model)
        rows = self.rows(texts)
        encoded = runner.encode(rows, self.task_for(len(rows[0])).choices_of(rows))
        for chosen in runner.batches(encoded.lengths):
            yield chosen, runner.inputs(encoded, chosen)

    def ask_swift(
        self, rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None = None, keep: bool = False
    ) -> list[tuple[str | float | None, float, bool]]:
        """The Swift's part of :meth:`answer`: of each input its answer, its score, and whether it is to be deferred.

        Args:
            rows: Texts, as :meth:`rows` gives them.
            choices: Each example's candidates, where the task has its own for each.
            keep: Answer all of them, whatever they score.

        Returns:
            Its answer is ``None`` where the score decided before the decoder.
        """
        window = self._prepare(rows, choices)
        scored = self._scored(0, window, math.inf if keep else self.threshold)
        labels = self._labels(self.stages[0], window, scored.answers)
        return list(zip(labels, scored.scores, scored.deferred, strict=True))

    def ask_super(
        self, rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None = None
    ) -> list[str | float]:
        """The Super's answers to texts, as :meth:`rows` gives them."""
        if "super" not in self.runners:
            raise InputError(_NO_SUPER)
        window, stage = self._window(rows, choices), self.stages[-1]
        labels = self._labels(stage, window, self.runners["super"].answer(window))
        return [label for label in labels if label is not None]


class _Missing:
    """In the place of a Super that is elsewhere."""

    def __init__(self, task: TextTask) -> None:
        self.task = task

    def answer(self, examples: Any) -> NoReturn:
        """Refuse to answer.

        Raises:
            InputError: Always.
        """
        raise InputError(_NO_SUPER)
