"""The families of models: which class answers, by configuration and task, and which task a loaded model answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from elang.backends.causal import CausalLabelDecoder
from elang.backends.causal_generator import CausalGenerator
from elang.backends.encoder import SequenceClassifier
from elang.backends.generator import TextGenerator
from elang.backends.label_decoder import LabelDecoder
from elang.backends.loading.padding import finds_last_by_padding, has_decoder
from elang.backends.text_model import TextModel
from elang.errors import InputError, counted, listed
from elang.notices import notice
from elang.records.manifest import FILENAME, Manifest
from elang.tasks.text_task import TextTask


@dataclass(frozen=True)
class Family:
    """A family of models."""

    model: Callable[..., TextModel]  # the class that answers; it takes a backbone, a tokenizer and a task
    backbone: Any  # the class of transformers that loads the weights
    takes: Callable[[Any, TextTask | None], bool]  # whether it answers a task with a model of a configuration
    options: tuple[str, ...] = ()  # options of load_model that `model` takes, too
    in_words: bool = True  # whether it answers in words, not by a head with an output for each label

    def make(self, backbone: Any, tokenizer: Any, task: TextTask, *, options: dict[str, Any]) -> TextModel:
        """Make a model, with the options that it takes."""
        return self.model(backbone, tokenizer, task, **{name: options[name] for name in self.options})


def _generates(task: TextTask | None) -> bool:
    return task is not None and task.kind.generates


def is_classifier(config: Any) -> bool:
    """Whether a configuration is that of a model with a classification head."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def is_decoder_only(config: Any) -> bool:
    """Whether a configuration is that of a decoder-only language model, whatever its head."""
    named = any(name.endswith("ForCausalLM") for name in config.architectures or [])
    return type(config) in AutoModelForCausalLM._model_mapping and (named or finds_last_by_padding(config))


def _continues(config: Any) -> bool:
    """Whether a configuration is that of a decoder-only model with its language-model head, which continues a text."""
    return is_decoder_only(config) and not is_classifier(config)


# The first family that takes a model is used.
FAMILIES = [
    Family(
        CausalGenerator,
        AutoModelForCausalLM,
        lambda config, task: _continues(config) and _generates(task),
        ("num_beams",),
    ),
    Family(
        CausalLabelDecoder,
        AutoModelForCausalLM,
        lambda config, task: _continues(config) and task is not None and bool(task.label_words),
        ("generate",),
    ),
    Family(
        SequenceClassifier,
        AutoModelForSequenceClassification,
        lambda config, task: not has_decoder(config) and not _generates(task),
        in_words=False,
    ),
    Family(
        TextGenerator,
        AutoModelForSeq2SeqLM,
        lambda config, task: has_decoder(config) and _generates(task),
        ("num_beams",),
    ),
    Family(LabelDecoder, AutoModelForSeq2SeqLM, lambda config, task: has_decoder(config), ("generate",)),
]


def family_of(config: Any, task: TextTask | None, path: str) -> Family:
    """The family that answers a task with a model; without a task, one that answers with labels."""
    for family in FAMILIES:
        if family.takes(config, task):
            return family
    raise InputError(
        f"'{path}' is a '{config.model_type}' without a decoder, or a classifier, so it cannot generate texts. Give an "
        "encoder-decoder (T5, Marian, BART, NLLB) or a language model (Llama, Qwen, GPT-2)."
    )


def tell_way(model: TextModel, path: str, *, finished: bool) -> None:
    """Notices of how a decoder-only model answers in words, if its files do not decide it, and of unread examples."""
    task, config = model.task, model.backbone.config
    if task.examples and model.text_to_text and model.shown_examples is None:
        notice(
            "other-examples",
            f"'{path}' is an encoder-decoder, which reads its input alone, without the {len(task.example_pairs)} "
            "examples of --data.examples.",
        )
    if finished or not (task.label_words or task.kind.generates) or not is_decoder_only(config):
        return
    chat = ", by its chat template" if task.label_words == "chat" else ""
    if task.kind.generates:
        notice("free-generation", f"'{path}' generates its answers after the prompt {task.prompt!r}{chat}.")
        return
    if not model.text_to_text:
        notice(
            "label-words",
            f"'{path}' is a classifier by its config.json (architectures), so it answers by the head on its last "
            "token. Label words (--data.label_words, --data.prompt, --data.answers) need a language model.",
        )
        return
    answers = f"{task.answers[:4]}" + (f" and {len(task.answers) - 4} more" if len(task.answers) > 4 else "")
    notice(
        "label-words",
        f"'{path}' is a decoder-only language model: it answers in label words, {answers}, after the prompt "
        f"{task.prompt!r}{chat}. For a head on its last token set --data.label_words false.",
    )


def output_names(config: Any) -> list[str]:
    """The names of a configuration's outputs, in the order of the logits."""
    return [str(config.id2label[i]) for i in range(len(config.id2label))]


def task_in_words(
    trained: TextTask | None, task: TextTask | None, path: str, *, fine_tune: bool, after_prompt: bool
) -> TextTask:
    """The task that a model answers in words (``after_prompt``: is decoder-only): its own, or the data's."""
    if trained and task and not fine_tune and not task.kind.generates:
        check_words(trained, task, path, after_prompt=after_prompt)
    answered = task if fine_tune or trained is None else trained
    if answered is None:
        raise InputError(
            f"'{path}' answers in words and is without {FILENAME}, so its possible answers are not known. Fine-tune "
            "it with `elang fit`, or evaluate it on data that gives prompt and answers."
        )
    return answered


def check_words(trained: TextTask, task: TextTask, path: str, after_prompt: bool) -> None:
    """Refuse data whose languages, prompt or answers are not those that a model was trained with.

    A model that answers ``after_prompt`` may also be asked in a chat; to a text-to-text model that is of no matter.
    """
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
    chats = [(t.label_words == "chat", t.system) for t in (trained, task)]
    if after_prompt and chats[0] != chats[1]:
        raise InputError(
            f"'{path}' was trained with --data.chat {str(chats[0][0]).lower()} and the system text '{chats[0][1]}', "
            f"the data has {str(chats[1][0]).lower()} and '{chats[1][1]}'. Set --data.chat and --data.system as in "
            "training."
        )
    if after_prompt and task.examples and trained.examples != task.examples:
        notice(
            "other-examples",
            f"'{path}' was trained with {counted(len(trained.example_pairs), 'examples')} in its prompt and is shown "
            f"these, not the {len(task.example_pairs)} others that it is asked with.",
        )


def check_finished(model: TextModel, path: str, task: TextTask, trained: Manifest | None) -> None:
    """Refuse to evaluate a model that was loaded for training if its head is new or for other labels than the task's.

    ``trained`` is its manifest, if it has one.
    """
    if model.new_weights:
        raise InputError(
            f"'{path}' has no head of its own ({listed(model.new_weights)} are new), so it cannot be evaluated. "
            "Fine-tune it first with `elang fit`."
        )
    if model.original_names != task.label_names:
        raise InputError(
            f"The model's labels are {model.original_names}, the data's {task.label_names}: its head cannot be "
            "evaluated. Fine-tune it first; if only the order differs, `elang score` aligns it."
        )
    if model.text_to_text and trained is not None:
        check_words(TextTask.of(trained.label_names, trained.task), task, path, bool(model.reader.prompt))


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


def keep_layers(config: Any, layers: int, path: str, whole: bool = True) -> None:
    """Cut a configuration to its first layers; an encoder-decoder's decoder keeps as many, if it has them.

    What is not ``whole`` is an adapter.
    """
    if not whole:
        raise InputError(f"--model.layers cannot cut the adapter '{path}'. Merge it into a plain folder first.")
    if not 1 <= layers <= config.num_hidden_layers:
        raise InputError(f"'{path}' has {config.num_hidden_layers} layers; its first {layers} cannot be kept.")
    # Qwen, Gemma and GPT-Neo list what each layer is.
    for name in ("layer_types", "attention_layers"):
        if getattr(config, name, None):
            setattr(config, name, getattr(config, name)[:layers])
            if name == "attention_layers":
                config.attention_types = [[config.attention_layers, 1]]
    config.num_hidden_layers = layers
    for name in ("num_decoder_layers", "decoder_layers"):
        if getattr(config, name, None):
            setattr(config, name, min(layers, getattr(config, name)))


def forget_training(config: Any, task: TextTask, in_words: bool) -> None:
    """Remove from a configuration what the base was trained for, before the new model is saved with it."""
    kinds = {"classification": "single_label_classification", "regression": "regression"}
    config.problem_type = None if in_words else kinds.get(task.problem)
    for name in ("finetuning_task", "auto_map"):
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
