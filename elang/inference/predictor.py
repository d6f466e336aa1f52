"""Using a pair: the Swift answers, and only hard inputs go to the Super. Needs no Lightning."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import Tensor

from elang.backends import DType
from elang.backends.backend import Scored
from elang.backends.text_model import TextModel
from elang.inference.cascade import Cascade, Choices, Texts
from elang.inference.loaded import LoadedCascade, no_model
from elang.inference.loading import AnyModel, StageModel
from elang.inference.options import PairOptions
from elang.inference.runner import ModelRunner
from elang.inference.stream import Prediction
from elang.records import DEFAULT_THRESHOLD
from elang.tasks.sampling import Sampling


class JointPredictor(LoadedCascade):
    """Answers texts with a Swift and a Super: a cascade of two stages.

    Inputs over the length that the Swift was trained on are truncated.

    Args:
        swift_model: The Swift's folder, as `elang fit` writes it, or a loaded
            :class:`~elang.backends.text_model.TextModel`; the address of a model behind an API, with its
            ``thresholds``; ``None`` where only the Super is used.
        super_model: The same, a hub id, or the address of a server or of a model behind an API (docs/super.md);
            ``None`` where it is elsewhere and only :meth:`ask_swift` is used.
        threshold: This and all further options are those of :class:`~elang.inference.options.PairOptions`.

    Attributes:
        runners: What runs the two models, by the names of their stages, ``swift`` and ``super``.
        swift: The Swift; without one, the Super.
        score: The score that routes.
        manifest: Of the Swift, or of ``thresholds``.
        device: The device of both models.
        sampling: How texts are drawn; ``None`` if they are not.

    >>> predictor = JointPredictor("runs/swift", "runs/super")  # doctest: +SKIP
    >>> predictor(["what is energy ?"])  # doctest: +SKIP
    [Prediction(id=0, label='DESC', probability=0.96, score=-0.96, answered_by='swift')]
    """

    def __init__(
        self,
        swift_model: AnyModel,
        super_model: AnyModel,
        threshold: str | float = DEFAULT_THRESHOLD,
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
        sampling: Sampling | None = None,
    ) -> None:
        values = locals()
        options = PairOptions(**{name: values[name] for name in PairOptions.__dataclass_fields__})
        stages = [StageModel("super", super_model)]
        if swift_model is not None:
            stages.insert(0, StageModel("swift", swift_model, options.threshold, score, thresholds))
        super().__init__(stages, options)
        self.swift = cast(TextModel, self.first)
        self.score = self.stages[0].score or score or self.manifest.score

    @property
    def super_(self) -> TextModel:
        """The Super, which must be here."""
        runner = self.runners["super"]
        if not isinstance(runner, ModelRunner):
            raise no_model("super")
        return runner.model

    @property
    def truncated(self) -> int:
        """Inputs that were truncated for the Swift."""
        return int(self.runners["swift"].truncated) if "swift" in self.runners else 0

    @property
    def super_truncated(self) -> int:
        """Inputs that the Super's tokens made too long."""
        return int(self.runners["super"].truncated)

    def super_map(self, texts: Texts, window: int = 4096) -> Iterator[Prediction]:
        """Answer a stream by the Super alone, in the same way; there are no scores."""
        yield from Cascade(self.stages[-1:], self.task).map(texts, window)

    def batches(self, model: TextModel, texts: Sequence[Any]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The batches of one of the two models: the numbers of their texts, and the model's inputs."""
        name = "swift" if model is self.swift and "swift" in self.runners else "super"
        runner, rows = self.runners[name], self.rows(texts)
        encoded = runner.encode(rows, self.task_for(len(rows[0])).choices_of(rows))
        for chosen in runner.batches(encoded.lengths):
            yield chosen, runner.inputs(encoded, chosen)

    def ask_swift(
        self, rows: list[tuple[str, ...]], choices: Choices = None, keep: bool = False
    ) -> list[tuple[str | float | None, float, bool]]:
        """The Swift's part of :meth:`answer`: for each input its answer, its score, and whether it is to be deferred.

        The answer is ``None`` where the score decided before the decoder ran. ``keep`` defers none.
        """
        scored = self.score_swift(rows, choices, math.inf if keep else None)
        return list(zip(scored.answers, scored.scores, scored.deferred, strict=True))

    def score_swift(
        self, rows: list[tuple[str, ...]], choices: Choices = None, threshold: float | None = None
    ) -> Scored:
        """What :meth:`ask_swift` returns, with the probabilities; ``threshold`` takes the place of the stage's."""
        return self.score_stage(0, rows, choices, threshold)

    def ask_super(self, rows: list[tuple[str, ...]], choices: Choices = None) -> list[str | float]:
        """The Super's answers to texts, as :meth:`rows` gives them."""
        answers: list[Any] = [*self.score_super(rows, choices).answers]
        return answers

    def score_super(self, rows: list[tuple[str, ...]], choices: Choices = None) -> Scored:
        """What :meth:`ask_super` returns, with the probabilities; scores mean nothing."""
        return self.score_stage(len(self.stages) - 1, rows, choices)
