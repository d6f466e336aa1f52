"""The families of models: which class answers, by configuration and task, and which task a loaded model answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from elang.backends.encoder import SequenceClassifier
from elang.backends.generator import TextGenerator
from elang.backends.label_decoder import LabelDecoder
from elang.backends.loading.padding import has_decoder
from elang.backends.text_model import TextModel
from elang.errors import InputError
from elang.notices import notice
from elang.records.manifest import FILENAME
from elang.tasks.text_task import TextTask


@dataclass(frozen=True)
class Family:
    """A family of models."""

    model: Callable[..., TextModel]  # the class that answers; it takes a backbone, a tokenizer and a task
    backbone: Any  # the class of transformers that loads the weights
    takes: Callable[[Any, bool], bool]  # whether it takes a configuration, and whether texts are to be generated
    options: tuple[str, ...] = ()  # options of load_model that `model` takes, too

    def make(self, backbone: Any, tokenizer: Any, task: TextTask, *, options: dict[str, Any]) -> TextModel:
        """Make a model, with the options that it takes."""
        return self.model(backbone, tokenizer, task, **{name: options[name] for name in self.options})


# The first family that takes a model is used.
FAMILIES = [
    Family(
        SequenceClassifier,
        AutoModelForSequenceClassification,
        lambda config, texts: not has_decoder(config) and not texts,
    ),
    Family(TextGenerator, AutoModelForSeq2SeqLM, lambda config, texts: has_decoder(config) and texts, ("num_beams",)),
    Family(LabelDecoder, AutoModelForSeq2SeqLM, lambda config, texts: has_decoder(config), ("generate",)),
]


def family_of(config: Any, task: TextTask | None, path: str) -> Family:
    """The family that answers a task with a model; without a task, one that answers with labels."""
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


def task_in_words(trained: TextTask | None, task: TextTask | None, path: str, *, fine_tune: bool) -> TextTask:
    """The task that an encoder-decoder answers: the one it was trained for, or the data's."""
    if trained and task and not fine_tune and not task.kind.generates:
        check_words(trained, task, path)
    answered = task if fine_tune or trained is None else trained
    if answered is None:
        raise InputError(
            f"'{path}' is an encoder-decoder without {FILENAME}, so its possible answers are not known. Fine-tune "
            "it with `elang fit`, or evaluate it on data that gives prompt and answers."
        )
    return answered


def check_words(trained: TextTask, task: TextTask, path: str) -> None:
    """Refuse data whose languages, prompt or answers are not those that a text-to-text model was trained with."""
    if trained.languages != task.languages:
        raise InputError(
            f"'{path}' was trained for the languages {trained.languages}, the data has {task.languages}. Set "
            "--data.source_language and --data.target_language to those of the model."
        )
    ours, theirs = (
        dict(zip(t.label_names, t.answers, strict=False)) if trained.kind.chooses else t.answers
        for t in (trained, task)
    )
    if trained.prompt != task.prompt or ours != theirs:
        raise InputError(
            f"'{path}' was trained with the prompt '{trained.prompt}' and the answers {trained.answers[:8]}, the data "
            f"has '{task.prompt}' and {task.answers[:8]}. Set --data.prompt and --data.answers to those of the model."
        )


def task_of_outputs(
    config: Any, trained: TextTask | None, task: TextTask | None, path: str, *, fine_tune: bool
) -> TextTask:
    """The task that a classifier answers: the one it was trained for, or the data's if it is trained or has no classes.

    In training the configuration gets the outputs of the task; a finished model's must be those of the task.
    """
    names = output_names(config)
    if trained and trained.kind.has_classes and names != trained.label_names:
        notice(
            "labels-of-config",
            f"'{path}' names its outputs {names[:8]} in config.json (id2label) and {trained.label_names[:8]} in "
            f"{FILENAME} (label_names); those of config.json are used.",
        )
    answered = task if fine_tune or (task and not task.kind.has_classes) else trained
    if answered is None or (answered is trained and trained.kind.has_classes):
        # The logits are in the order of config.json, whoever wrote it.
        answered = TextTask.of(names, trained.plain() if trained else None)
    if fine_tune:
        config.id2label = dict(enumerate(answered.label_names[: answered.num_outputs]))
        config.label2id = {label: i for i, label in config.id2label.items()}
    elif answered.num_outputs != len(names):
        raise InputError(
            f"'{path}' has {len(names)} outputs, {names[:8]}, and a {answered.problem} task needs "
            f"{answered.num_outputs}. Fine-tune it with `elang fit`."
        )
    elif config.problem_type == "multi_label_classification" and trained is None:
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
    """Remove from a configuration what the base was trained for, before the new model is saved with it."""
    kinds = {"classification": "single_label_classification", "regression": "regression"}
    config.problem_type = None if has_decoder(config) else kinds.get(task.problem)
    for name in ("finetuning_task", "auto_map"):
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
