"""Which class answers with a model of ``transformers``: one line a family, chosen by configuration and task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from elang.backends.encoder import Classifier
from elang.backends.generator import Seq2Seq
from elang.backends.label_decoder import TextToText
from elang.backends.loading.padding import has_decoder
from elang.backends.text_model import TextModel
from elang.errors import InputError
from elang.tasks.text_task import TextTask


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        model: The class that answers; it is made of a backbone, a tokenizer and a task.
        backbone: The class of ``transformers`` that loads the weights.
        takes: Whether a model is of it, by its configuration and by whether texts are to be generated.
        options: What else ``model`` is made of, by the names of :func:`elang.backends.loading.load.load_model`.
    """

    model: Callable[..., TextModel]
    backbone: Any
    takes: Callable[[Any, bool], bool]
    options: tuple[str, ...] = ()

    def make(self, backbone: Any, tokenizer: Any, task: TextTask, options: dict[str, Any]) -> TextModel:
        """A model of it, with those of the options that it knows."""
        return self.model(backbone, tokenizer, task, **{name: options[name] for name in self.options})


# The first one that takes a model answers with it.
FAMILIES = [
    Family(Classifier, AutoModelForSequenceClassification, lambda config, texts: not has_decoder(config) and not texts),
    Family(Seq2Seq, AutoModelForSeq2SeqLM, lambda config, texts: has_decoder(config) and texts, ("num_beams",)),
    Family(TextToText, AutoModelForSeq2SeqLM, lambda config, texts: has_decoder(config), ("generate",)),
]


def family_of(config: Any, task: TextTask | None, path: str) -> Family:
    """The family that answers a task with a model; by default one with labels.

    Raises:
        InputError: If there is none.
    """
    texts = task is not None and task.kind.generates
    for family in FAMILIES:
        if family.takes(config, texts):
            return family
    raise InputError(
        f"'{path}' is a '{config.model_type}' without a decoder, so it cannot generate texts. Give an encoder-decoder "
        "(T5, Marian, BART, NLLB)."
    )
