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
from elang.notices import notice
from elang.records.manifest import FILENAME, Manifest
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


def output_names(config: Any) -> list[str]:
    """The names of a configuration's outputs, in the order of the logits."""
    return [str(config.id2label[i]) for i in range(len(config.id2label))]


def check_kind(own: TextTask | None, task: TextTask | None, path: str) -> None:
    """Refuse to ask another kind of task of a finished model than it was trained for.

    Raises:
        InputError: Naming both.
    """
    if own and task and own.kind is not task.kind:
        raise InputError(
            f"'{path}' was trained for a {own.problem}, but a {task.problem} is asked of it. Give the model that "
            "was trained on this task."
        )


def task_in_words(own: TextTask | None, task: TextTask | None, path: str, *, fine_tune: bool) -> TextTask:
    """The task that an encoder-decoder answers: its own, or the data's where it has none or is trained anew.

    Raises:
        InputError: If there is none, or the data asks otherwise than it was trained to be asked.
    """
    if task is None and own is None:
        raise InputError(
            f"'{path}' is an encoder-decoder without {FILENAME}, so what it can answer is not known. Fine-tune "
            "it with `elang fit`, or evaluate it on data that gives prompt and answers."
        )
    if own and task and not fine_tune and not task.kind.generates:
        check_words(own, task, path)
    answered = own if own and not fine_tune else task
    assert answered is not None
    return answered


def check_words(own: TextTask, task: TextTask, path: str) -> None:
    """Refuse to ask a text-to-text model otherwise than it was trained to be asked."""
    if own.languages != task.languages:
        raise InputError(
            f"'{path}' was trained for the languages {own.languages}, the data gives {task.languages}. Set "
            "--data.source_language and --data.target_language to its own."
        )
    ours, theirs = (
        dict(zip(t.label_names, t.answers, strict=False)) if own.kind.chooses else t.answers for t in (own, task)
    )
    if own.prompt != task.prompt or ours != theirs:
        raise InputError(
            f"'{path}' was trained with the prompt '{own.prompt}' and the answers {own.answers[:8]}, the data gives "
            f"'{task.prompt}' and {task.answers[:8]}. Set --data.prompt and --data.answers to its own."
        )


def task_of_outputs(
    config: Any, own: TextTask | None, task: TextTask | None, *, manifest: Manifest | None, path: str, fine_tune: bool
) -> TextTask:
    """The task that a classifier answers: its own, or the data's where it is trained anew or has no classes.

    A configuration that is trained anew gets the outputs of the task.

    Raises:
        InputError: If a finished model's outputs are not those of the task.
    """
    names = output_names(config)
    if own and own.kind.has_classes and names != own.label_names:
        notice(
            "labels-of-config",
            f"'{path}' names its outputs {names[:8]} in config.json (id2label) and {own.label_names[:8]} in "
            f"{FILENAME} (label_names); those of config.json are used.",
        )
    answered = task if fine_tune or (task and not task.kind.has_classes) else own
    if answered is None or (answered is own and own.kind.has_classes):
        # The names in config.json are those of the logits, whoever wrote them there.
        answered = TextTask.of(names, manifest.task if manifest else None)
    if fine_tune:
        config.id2label = dict(enumerate(answered.label_names[: answered.num_outputs]))
        config.label2id = {label: i for i, label in config.id2label.items()}
    elif answered.num_outputs != len(names):
        raise InputError(
            f"'{path}' has {len(names)} outputs, {names[:8]}, and a {answered.problem} task needs "
            f"{answered.num_outputs}. Fine-tune it with `elang fit`."
        )
    elif config.problem_type == "multi_label_classification" and manifest is None:
        raise InputError(
            f"'{path}' gives any number of labels to a text (its config.json has the problem_type "
            "multi_label_classification), and elang needs exactly one. Fine-tune it with `elang fit`."
        )
    return answered


def keep_layers(config: Any, layers: int, path: str) -> None:
    """Cut a configuration to its first layers; an encoder-decoder's decoder keeps as many, if it has them."""
    if not 1 <= layers <= config.num_hidden_layers:
        raise InputError(f"'{path}' has {config.num_hidden_layers} layers; its first {layers} cannot be kept.")
    config.num_hidden_layers = layers
    for name in ("num_decoder_layers", "decoder_layers"):
        if getattr(config, name, None):
            setattr(config, name, min(layers, getattr(config, name)))


def forget_training(config: Any, task: TextTask) -> None:
    """Take out of a configuration what its base was trained for, before the new model is written with it."""
    kinds = {"classification": "single_label_classification", "regression": "regression"}
    config.problem_type = None if has_decoder(config) else kinds.get(task.problem)
    for name in ("finetuning_task", "auto_map"):
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
