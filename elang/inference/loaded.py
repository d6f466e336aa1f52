"""A cascade whose models are loaded from folders and addresses: a pair, or a chain as `elang choose` writes it."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from elang.errors import InputError
from elang.inference.cascade import Cascade, Stage
from elang.inference.loading import StageModel, load_models
from elang.inference.options import PairOptions
from elang.inference.routing import make_runners, routing_of, set_sampling
from elang.records.chain_file import Chain
from elang.records.manifest import Manifest
from elang.tasks.text_task import TextTask

# In a stream a later stage runs once this many of its batches are full: the last, partly filled one matters little.
_FULL_BATCHES, _USUAL_LENGTH = 8, 32
_OF_STAGES = ("threshold", "score", "thresholds")


class LoadedCascade(Cascade):
    """A cascade of models that are loaded, each on the same device.

    Args:
        stages: Where their models are.
        options: How they run; threshold and score are those of the stages.
        about: What is asked, where the first model does not say it.

    Attributes:
        first: The first model, which says what is asked.
        manifest: Its thresholds, or those that were given for it.
        device: The device of all models.
        sampling: How texts are drawn; ``None`` if they are not.
    """

    def __init__(self, stages: Sequence[StageModel], options: PairOptions, about: Manifest | None = None) -> None:
        self.device = options.place()
        loaded = load_models(stages, options, about, device=self.device)
        self.first: Any = loaded.first
        self.manifest = loaded.manifests[stages[0].name]
        self.manifests = loaded.manifests
        routing: dict[str, tuple[str | None, float]] = {stages[-1].name: (None, math.inf)}
        for stage, following in pairwise(stages):
            known = stage.name in loaded.manifests
            # A model that is elsewhere routes there.
            routing[stage.name] = routing_of(loaded, stage, following) if known else _elsewhere(stage)
        scores = {name: score for name, (score, _) in routing.items() if score is not None}
        first_score = scores.get(stages[0].name) or options.score or self.manifest.score
        self.sampling = set_sampling(loaded, options, stages[0], first_score)
        here: dict[str, Any] = {**loaded.remote, **make_runners(loaded, stages, options, scores, self.device)}
        made = []
        for place, stage in enumerate(stages):
            tokens = options.budgets(self.device)[place == len(stages) - 1]
            collect = _FULL_BATCHES * max(1, tokens // _USUAL_LENGTH) if place else 1
            backend = here.get(stage.name) or MissingModel(stage.name, self.first.task)
            score, limit = routing[stage.name]
            made.append(Stage(stage.name, backend, score, threshold=limit, collect=collect, cost=stage.cost))
        super().__init__(made, self.first.task)

    @property
    def label_names(self) -> list[str]:
        """Class names in the order of the first model's logits."""
        names: list[str] = self.first.label_names
        return names

    @property
    def threshold(self) -> float:
        """Inputs that score above it leave the first stage, in a pair for the Super; infinite with one stage alone."""
        return self.stages[0].threshold

    @threshold.setter
    def threshold(self, threshold: float) -> None:
        self.set_threshold(threshold)


class ChainPredictor(LoadedCascade):
    """Answers texts with a chain of models: each stage keeps what its score trusts it with, and passes on the rest.

    Args:
        chain: The file or folder that `elang choose` or `elang curve` wrote, or a chain.
        models: The models by the names of their stages, where the chain does not name them: a folder, a hub id, an
            address, ``person``, a loaded model, or an object of these fields: ``model``, ``score``, ``threshold``,
            ``thresholds``, ``cost``.
        only: Load only the first model and that of this stage, for a process that asks no others.
        options: Those of :class:`~elang.inference.options.PairOptions` on how models run, such as ``device``.

    >>> predictor = ChainPredictor("choice", {"small": "runs/small", "large": "runs/large"})  # doctest: +SKIP
    >>> predictor(["what is energy ?"])  # doctest: +SKIP
    [Prediction(id=0, label='DESC', probability=0.96, score=-0.96, answered_by='small')]
    """

    def __init__(
        self,
        chain: Chain | str | Path,
        models: Mapping[str, Any] | None = None,
        only: str | None = None,
        **options: Any,
    ) -> None:
        if taken := [name for name in options if name in _OF_STAGES]:
            raise InputError(f"Each stage of a chain has its own '{taken[0]}': leave it out, or give it in `models`.")
        try:
            ways = PairOptions(**options)
        except TypeError as error:
            raise InputError(f"A chain has no such option: {error}.") from error
        chain = chain if isinstance(chain, Chain) else Chain.read(chain)
        self.chain = chain.with_models(models or {})
        stages = [
            StageModel(
                one.name,
                one.model if only in (None, one.name) or one is self.chain.stages[0] else None,
                math.inf if one.threshold is None else one.threshold,
                one.score,
                one.thresholds,
                one.cost,
            )
            for one in self.chain.stages
        ]
        known = self.chain.label_names or self.chain.task
        about = Manifest(self.chain.label_names, self.chain.task or None) if known else None
        super().__init__(stages, ways, about)


class MissingModel:
    """In the place of a model that is elsewhere."""

    def __init__(self, name: str, task: TextTask) -> None:
        self.name, self.task = name, task

    def answer(self, examples: Any) -> NoReturn:
        """Refuse to answer."""
        raise no_model(self.name)


def no_model(name: str) -> InputError:
    """The error of a predictor whose model for a stage is elsewhere."""
    if name == "super":
        return InputError("This predictor was made without a Super; give super_model.")
    return InputError(f"This predictor was made without the model of its stage '{name}'; give one.")


def _elsewhere(stage: StageModel) -> tuple[str, float]:
    number = float(stage.threshold) if not isinstance(stage.threshold, str) else math.inf
    return stage.score or "", number
