"""What a pair's answers cost in seconds or money, in place of FLOPs."""

import math
from dataclasses import replace
from typing import Any, get_args

from torch import Tensor

from elang.backends.openai.backend import OpenAIBackend
from elang.backends.seconds import pair_latency
from elang.backends.text_model import TextModel
from elang.errors import InputError
from elang.evaluation.pair import PairAnswers, Thresholds
from elang.evaluation.units import MONEY, SECONDS, Cost, counted_in


class PairCosts:
    """Counts costs as ``--model.cost`` says.

    A model that runs here takes its seconds an input at its best batch size, measured once; an input has its part of
    them by its FLOPs. In money an hour of the machine has a price, and the answers of an API have theirs.

    Args:
        cost: ``flops``, ``seconds`` or ``money``.
        hour_price: The price of an hour of the machine.
        prices: What tokens cost, for each model behind an API: :class:`elang.backends.openai.settings.Prices`.
        asked: The models behind an API that will be asked.
    """

    def __init__(
        self, cost: Cost, hour_price: float | None, prices: list[dict[str, Any]], asked: list[OpenAIBackend]
    ) -> None:
        if cost not in get_args(Cost):
            raise InputError(f"--model.cost must be one of {', '.join(get_args(Cost))}, but it is '{cost}'.")
        if hour_price is not None and (cost != "money" or not 0 <= hour_price < math.inf):
            raise InputError(
                f"--model.hour_price {hour_price} is the price of an hour of the machine on which models run here, a "
                "finite number of at least 0: it goes with --model.cost money."
            )
        currencies = list(dict.fromkeys(str(one.get("currency", "USD")) for one in prices))
        if cost == "money" and len(currencies) > 1:
            raise InputError(
                f"The prices of the two models are in {' and '.join(currencies)}. Give both in one currency."
            )
        self.cost, self.hour_price = cost, hour_price
        self._check_asked(asked)
        self.currency = next(iter(currencies), "USD")
        # Of a FLOP of each model that runs here.
        self._rates: dict[str, float] = {}

    def convention(self, flops_convention: str) -> str:
        """What a summary calls the way in which costs were counted."""
        return {"money": f"{MONEY}{self.currency}", "seconds": SECONDS}.get(self.cost, flops_convention)

    def _check_asked(self, asked: list[OpenAIBackend]) -> None:
        """Refuse models behind an API whose answers would not have such a cost, before they are asked."""
        for backend in asked:
            if self.cost == "seconds" or (self.cost == "money" and backend.settings.prices is None):
                remedy = "Set 'prices' in its settings" if self.cost == "money" else "Leave --model.cost out"
                raise InputError(
                    f"What '{backend.address}' costs in {self.cost} is not known. {remedy} (docs/super.md)."
                )

    def named(self, thresholds: Thresholds) -> Thresholds:
        """Thresholds that keep what their speed-ups count, unless that is FLOPs."""
        counted = counted_in(self.convention(""))
        return {s: {name: entry | counted for name, entry in named.items()} for s, named in thresholds.items()}

    def counted(
        self, answers: PairAnswers, models: dict[str, TextModel], precision: Any, *, paths: dict[str, str]
    ) -> PairAnswers:
        """Answers with such costs; ``models`` are those that run here and fit one device, ``paths`` are for messages.

        Raises:
            InputError: If a cost is not known.
        """
        if self.cost == "flops":
            return answers
        if models and not self._rates and (self.cost == "seconds" or self.hour_price is not None):
            times, price = measured(models, answers, precision), 1.0
            if self.hour_price is not None:
                price = self.hour_price / 3600
            flops = {"swift": answers.swift_flops, "super": answers.super_flops}
            self._rates = {name: price * times[name]["at best batch"] / float(flops[name].mean()) for name in models}
        swift = self._of("swift", answers, answers.swift_flops, paths)
        super_ = self._of("super", answers, answers.super_flops, paths)
        more = {name: getattr(answers, name) for name in ("early_flops", "score_flops")}
        scaled = {name: values * self._rates["swift"] for name, values in more.items() if values is not None}
        own = {name: values * self._rates["swift"] for name, values in answers.own_flops.items()}
        return replace(answers, swift_flops=swift, super_flops=super_, own_flops=own, **scaled)

    def _of(self, name: str, answers: PairAnswers, flops: Tensor, paths: dict[str, str]) -> Tensor:
        """What a model's answers cost."""
        price = answers.more.get(f"{name}_price")
        if self.cost == "money" and isinstance(price, Tensor) and not price.isnan().any():
            return price.double()
        if name in self._rates and not flops.isnan().any():
            return flops * self._rates[name]
        here = "it must run here, on one device"
        if self.cost == "money" and isinstance(price, Tensor) and not price.isnan().all():
            raise InputError(
                f"What {int(price.isnan().sum()):,} of the {len(price):,} answers of '{paths[name]}' cost is not "
                "known, as its server did not say what they took. Count FLOPs (--model.super_flops), or take another."
            )
        if self.cost == "money":
            here = f"the settings of its API must have prices, or {here}, with --model.hour_price"
        raise InputError(f"What '{paths[name]}' costs in {self.cost} is not known: {here}.")


def measured(models: dict[str, TextModel], answers: PairAnswers, precision: Any) -> dict[str, Any]:
    """Seconds of models at the median length (:func:`elang.backends.seconds.pair_latency`), in a ``precision``."""
    columns: dict[str, Any] = answers.more
    tokens = {name: int(columns[f"{name}_tokens"].median()) for name in models}
    steps = {name: int(columns[f"{name}_steps"].median()) for name in models if f"{name}_steps" in columns}
    candidates = int((columns["swift_logits"] > -math.inf).sum(-1).median()) if "swift_logits" in columns else 0
    # In the evaluation's precision, which Lightning sets up only for steps.
    with precision.forward_context():
        return pair_latency(models, tokens, candidates=candidates, steps=steps)
