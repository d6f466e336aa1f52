"""Loading a model for a task."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
)
from transformers.utils import cached_file, find_adapter_config_file

from elang.backends.encoder import Classifier
from elang.backends.generator import Seq2Seq
from elang.backends.label_decoder import TextToText
from elang.backends.loading.checkpoints import CHECKPOINT_KEY, ROUTER_FILE, read_checkpoint
from elang.backends.loading.families import check_family, check_padding, settle_padding
from elang.backends.loading.hub import locate, not_loaded, quiet
from elang.backends.loading.tokenizer import load_tokenizer
from elang.backends.loading.weights import check_parts, check_precision, check_state, check_weights, is_body
from elang.backends.text_model import TextModel
from elang.errors import InputError, first_line
from elang.notices import notice
from elang.records.manifest import FILENAME, Manifest
from elang.tasks.text_task import TextTask


def load_model(
    path: str,
    task: TextTask | None = None,
    fine_tune: bool = False,
    layers: int | None = None,
    router: bool = False,
    generate: bool = False,
    num_beams: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> TextModel:
    """Load a pretrained model to be fine-tuned, or a finished one.

    Args:
        path: A folder of ``transformers``, a ``.ckpt`` of :class:`elang.FinetuneModule` or
            :class:`elang.SwiftModule`, or a hub id, ``owner/name@revision``.
        task: What it is to answer; by default what it was trained for.
        fine_tune: It gets a new head where its own is for another task.
        layers: Keep only the first so many layers (of an encoder-decoder, of both stacks).
        router: Give it router heads if it has none.
        generate: A text-to-text model answers by free generation.
        num_beams: Hypotheses that generated texts are chosen from; by default the model's own setting.
        dtype: Precision of the weights, for inference; logits and scores are float32 in any.

    Raises:
        InputError: If it cannot be loaded, answers another task, or overflows in this precision.
    """
    found: TextModel
    if path.endswith(".ckpt"):
        if fine_tune:
            read_checkpoint(path)
            raise InputError(
                f"A module starts from a model folder, and '{path}' is a checkpoint. Give the folder that `elang fit` "
                "wrote, or go on from the checkpoint with --ckpt_path."
            )
        found = _from_checkpoint(path, generate, num_beams)
        if dtype != torch.float32:
            found.cast(dtype)
        return found
    name, options = locate(path)
    folder = Path(name)
    manifest = Manifest.read(folder) if (folder / FILENAME).is_file() else None
    check_parts(path, fine_tune)
    try:
        config = AutoConfig.from_pretrained(name, **options)
        check_family(config, path)
        if layers is not None:
            _keep_layers(config, layers, path)
        original = [str(config.id2label[i]) for i in range(len(config.id2label))]
        own = TextTask.of(manifest.label_names, manifest.task) if manifest else None
        encoder = not getattr(config, "is_encoder_decoder", False)
        if own and own.problem == "classification" and encoder and original != own.label_names:
            notice(
                "labels-of-config",
                f"'{path}' names its outputs {original[:8]} in config.json (id2label) and {own.label_names[:8]} in "
                f"{FILENAME} (label_names); those of config.json are used.",
            )
        if own and task and not fine_tune and own.problem != task.problem:
            raise InputError(
                f"'{path}' was trained for a {own.problem}, but a {task.problem} is asked of it. Give the model that "
                "was trained on this task."
            )
        if getattr(config, "is_encoder_decoder", False):
            if task is None and own is None:
                raise InputError(
                    f"'{path}' is an encoder-decoder without {FILENAME}, so what it can answer is not known. Fine-tune "
                    "it with `elang fit`, or evaluate it on data that gives prompt and answers."
                )
            if own and task and not fine_tune and task.problem != "sequence":
                check_words(own, task, path)
            said = own if own and not fine_tune else task
            assert said is not None
            tokenizer = load_tokenizer(name, options)
            settle_padding(config, tokenizer, path)
            # Large ones are not to be there twice.
            backbone, info = _pretrained(AutoModelForSeq2SeqLM, name, config, options, dtype=dtype)
            new = check_weights(backbone, info, path, fine_tune, layers is not None)
            found = _text_to_text(backbone, tokenizer, said, generate, num_beams)
            original = found.label_names
        else:
            if task is not None and task.problem == "sequence":
                raise InputError(
                    f"'{path}' is a '{config.model_type}' without a decoder, so it cannot generate texts. Give an "
                    "encoder-decoder (T5, Marian, BART, NLLB)."
                )
            answers = task if fine_tune or (task and task.problem != "classification") else own
            if answers is None or (answers is own and own.problem == "classification"):
                # The names in config.json are those of the logits, whoever wrote them there.
                answers = TextTask.of(original, manifest.task if manifest else None)
            if fine_tune:
                config.id2label = dict(enumerate(answers.label_names[: answers.num_outputs]))
                config.label2id = {label: i for i, label in config.id2label.items()}
            elif answers.num_outputs != len(original):
                raise InputError(
                    f"'{path}' has {len(original)} outputs, {original[:8]}, and a {answers.problem} task needs "
                    f"{answers.num_outputs}. Fine-tune it with `elang fit`."
                )
            elif config.problem_type == "multi_label_classification" and manifest is None:
                raise InputError(
                    f"'{path}' gives any number of labels to a text (its config.json has the problem_type "
                    "multi_label_classification), and elang needs exactly one. Fine-tune it with `elang fit`."
                )
            tokenizer = load_tokenizer(name, options)
            settle_padding(config, tokenizer, path, fine_tune)
            backbone, info = _pretrained(AutoModelForSequenceClassification, name, config, options)
            new = check_weights(backbone, info, path, fine_tune, layers is not None)
            found = Classifier(backbone, tokenizer, answers)
            found.original_names = answers.label_names if len(original) == answers.num_outputs == 1 else original
    except InputError:
        raise
    except Exception as error:
        raise not_loaded(path, error) from error
    check_padding(backbone, tokenizer, path)
    if fine_tune:
        _forget(backbone.config, found.task)
    found.new_weights = new
    found.weights = folder if folder.is_dir() else None
    found.manifest = manifest
    same = not fine_tune or (router and layers is None and own is not None and own.plain() == found.task.plain())
    if same and (folder / ROUTER_FILE).is_file():
        _load_heads(found, folder / ROUTER_FILE)
    elif router:
        found.add_heads()
    if dtype != torch.float32:
        found.cast(dtype)
    return found


def load_masked(path: str) -> tuple[Any, Any, bool]:
    """A masked language model, its tokenizer, and whether its head came with it.

    Args:
        path: A folder of ``transformers`` or a hub id, ``owner/name@revision``.

    Raises:
        InputError: If it cannot be loaded or its kind knows no masked words.
    """
    name, options = locate(path)
    try:
        with quiet():
            tokenizer = load_tokenizer(name, options)
        config = AutoConfig.from_pretrained(name, **options)
        model, info = _pretrained(AutoModelForMaskedLM, name, config, options)
        # Neighbours of words need no head.
        head = {name for name in info["missing_keys"] if not is_body(name, model)}
        info["missing_keys"] = set(info["missing_keys"]) - head
        check_weights(model, info, path, fine_tune=False)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The model '{path}' cannot be loaded as a masked language model ({type(error).__name__}: "
            f"{first_line(error)}). Give an encoder such as BERT or MPNet."
        ) from error
    return model, tokenizer, not head


def _text_to_text(backbone: Any, tokenizer: Any, task: TextTask, generate: bool, num_beams: int | None) -> TextModel:
    if task.problem == "sequence":
        return Seq2Seq(backbone, tokenizer, task, num_beams)
    return TextToText(backbone, tokenizer, task, generate)


def _pretrained(kind: Any, name: str, config: Any, options: dict[str, Any], **more: Any) -> tuple[Any, dict[str, Any]]:
    if getattr(config, "quantization_config", None):
        raise ValueError("its config.json says that it is quantized (quantization_config), which is not supported")
    # Without peft it would be left out without a word, with peft perhaps be put on weights that are not pinned.
    if find_adapter_config_file(name, **options):
        raise ValueError("it has a PEFT adapter; save it with its adapter merged into its weights, merge_and_unload()")
    # transformers loads in the file's own precision; weights that are trained stay float32. Where peft is installed it
    # looks for an adapter again, which is to be at this revision, and at no hub if all is here.
    settings = {"dtype": torch.float32, "use_safetensors": True, "adapter_kwargs": options} | more | options
    # What it lacks, and what does not fit, is looked at by us.
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with quiet():
        model, info = kind.from_pretrained(name, config=config, **settings, **told)
    check_precision(Path(cached_file(name, "config.json", **options)).parent, name)
    return model, info


def _forget(config: Any, task: TextTask) -> None:
    """Take out of a configuration what its base was trained for, before the new model is written with it."""
    kinds = {"classification": "single_label_classification", "regression": "regression"}
    config.problem_type = None if getattr(config, "is_encoder_decoder", False) else kinds.get(task.problem)
    for name in ("finetuning_task", "auto_map"):
        if getattr(config, name, None) is not None:
            setattr(config, name, None)


def _keep_layers(config: Any, layers: int, path: str) -> None:
    """Cut a configuration to its first layers; an encoder-decoder's decoder keeps as many, if it has them."""
    if not 1 <= layers <= config.num_hidden_layers:
        raise InputError(f"'{path}' has {config.num_hidden_layers} layers; its first {layers} cannot be kept.")
    config.num_hidden_layers = layers
    for name in ("num_decoder_layers", "decoder_layers"):
        if getattr(config, name, None):
            setattr(config, name, min(layers, getattr(config, name)))


def check_words(own: TextTask, task: TextTask, path: str) -> None:
    """Refuse to ask a text-to-text model otherwise than it was trained to be asked."""
    numbers = own.problem == "regression"
    if own.languages != task.languages:
        raise InputError(
            f"'{path}' was trained for the languages {own.languages}, the data gives {task.languages}. Set "
            "--data.source_language and --data.target_language to its own."
        )
    ours, theirs = (t.answers if numbers else dict(zip(t.label_names, t.answers, strict=False)) for t in (own, task))
    if own.prompt != task.prompt or ours != theirs:
        raise InputError(
            f"'{path}' was trained with the prompt '{own.prompt}' and the answers {own.answers[:8]}, the data gives "
            f"'{task.prompt}' and {task.answers[:8]}. Set --data.prompt and --data.answers to its own."
        )


def check_model(path: str) -> None:
    """Look for a model as far as that goes without its weights.

    Raises:
        InputError: If :func:`load_model` would not find it.
    """
    if path.endswith(".ckpt"):
        read_checkpoint(path)
        return
    name, options = locate(path)
    try:
        AutoConfig.from_pretrained(name, **options)
    except Exception as error:
        raise not_loaded(path, error) from error


def _load_heads(model: TextModel, path: Path) -> None:
    from safetensors.torch import load_file

    model.add_heads()
    try:
        model.heads.load_state_dict(load_file(path))
    except Exception as error:
        raise InputError(f"The router heads '{path}' cannot be read ({error}). Run `elang fit` again.") from error


def _from_checkpoint(path: str, generate: bool, num_beams: int | None) -> TextModel:
    checkpoint = read_checkpoint(path)
    if "state_dict" not in checkpoint:
        raise InputError(
            f"'{path}' is a checkpoint in parts. Go on from it with --ckpt_path to the end of the training, which "
            "writes a model folder."
        )
    about = checkpoint[CHECKPOINT_KEY]
    fields = dict(about["config"])
    try:
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        name, options = locate(about["tokenizer"], weights=False)
        tokenizer = load_tokenizer(name, options)
        check_family(config, path)
        settle_padding(config, tokenizer, path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The tokenizer '{about['tokenizer']}' that the checkpoint '{path}' names cannot be loaded ({error}). Use "
            "the folder that `elang fit` writes at its end."
        ) from error
    task = TextTask.of(about["label_names"], about["task"])
    found: TextModel
    if getattr(config, "is_encoder_decoder", False):
        backbone = AutoModelForSeq2SeqLM.from_config(config)
        if about.get("generation"):
            backbone.generation_config = GenerationConfig.from_dict(about["generation"])
        found = _text_to_text(backbone, tokenizer, task, generate, num_beams)
    else:
        found = Classifier(AutoModelForSequenceClassification.from_config(config), tokenizer, task)
    if about["router"]:
        found.add_heads()
    prefix = "classifier."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    check_state(found, state, path, "Use the folder that `elang fit` writes at its end.")
    found.load_state_dict(state)
    # Router heads are fitted after training, so most checkpoints hold none.
    found.drop_routers(unfitted=True)
    check_padding(found.backbone.eval(), tokenizer, path)
    found.weights = Path(path)
    return found
