"""Loading and saving the models of a task: folders, checkpoints and hub ids, of every family."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file, find_adapter_config_file
from transformers.utils import logging as transformers_logging

from elang.data.format import TextTask
from elang.errors import HUB_PATIENCE, InputError, first_line
from elang.manifest import FILENAME, Manifest
from elang.models.families import check_family, check_padding, settle_padding
from elang.models.seq2seq import Seq2Seq
from elang.models.text_model import Classifier, TextModel, folder_sha256
from elang.models.text_to_text import TextToText
from elang.models.weights import check_parts, check_precision, check_state, check_weights, is_body
from elang.notices import notice, write_made
from elang.outputs import settle

ROUTER_FILE = "router.safetensors"
CHECKPOINT_KEY = "elang"
SHARDED_ABOUT = "meta.pt"
_COMMIT = re.compile("[0-9a-f]{40}")
# The library's own empty vocabularies have up to one token that is not special.
_FEWEST_WORDS = 2
# Classes of tokenizers that are what their tokenizer.json says.
_AS_WRITTEN = ("PreTrainedTokenizerFast", "TokenizersBackend")
_SAMPLE, _ALIKE = 400, 0.9


def save_model(model: TextModel, folder: str | Path, manifest: Manifest) -> None:
    """Write a folder that loads with plain ``transformers``: whole, or not at all.

    Args:
        model: What is written.
        folder: Its path; a folder of ours that is there already is replaced.
        manifest: Becomes ``elang.json``, with the hash of these weights.
    """
    from safetensors.torch import save_file

    # A link to a folder stays one.
    folder = Path(os.path.realpath(folder))
    check_output_folder(folder)
    aside, old = (folder.with_name(f".{folder.name}.{what}") for what in ("part", "old"))
    for path in (aside, old):
        shutil.rmtree(path, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with _quiet():
            model.backbone.save_pretrained(aside)
        model.tokenizer.save_pretrained(aside)
        if model.heads:
            save_file({k: v.contiguous() for k, v in model.heads.state_dict().items()}, aside / ROUTER_FILE)
        manifest.weights_sha256 = folder_sha256(aside)
        manifest.write(aside / FILENAME)
        write_made(aside)
        for path in (*aside.iterdir(), aside):
            settle(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if folder.exists():
        shutil.copymode(folder, aside)
        folder.rename(old)
    aside.rename(folder)
    settle(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers: a new head and dropped layers are what was asked for, not news."""
    previous, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(previous)
        if bars:
            transformers_logging.enable_progress_bar()


def check_output_folder(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but a model of ours."""
    ours = (folder / FILENAME).is_file() and (folder / "config.json").is_file()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not ours)):
        raise InputError(f"'{folder}' exists and is not a model folder of elang; choose another --model.output.")
    if ours:
        notice("replaced-model", f"The model in '{folder}' is replaced by the new one when the training ends.")


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
    name, options = _locate(path)
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
        raise _not_loaded(path, error) from error
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
    name, options = _locate(path)
    try:
        with _quiet():
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


def load_tokenizer(name: str, options: dict[str, Any]) -> Any:
    """Load a tokenizer as its ``tokenizer.json`` has it: for some families the library builds another of its words.

    Args:
        name: A folder or a hub id.
        options: What else the library is to be told.

    Raises:
        ValueError: If it knows no words.
        OSError: If there is none.
    """
    found = None
    file = _tokenizer_file(name, options)
    if file is None or get_tokenizer_config(name, **options).get("tokenizer_class") not in _AS_WRITTEN:
        found = AutoTokenizer.from_pretrained(name, **options)
        own = type(found) is not PreTrainedTokenizerFast
        if file and own and _agreement(Tokenizer.from_file(file), found) < _ALIKE:
            notice(
                "tokenizer-as-written",
                f"'{name}' names a tokenizer that would split texts otherwise than its tokenizer.json does, "
                f"{type(found).__name__}: tokenizer.json is used. Set tokenizer_class in tokenizer_config.json to "
                "PreTrainedTokenizerFast.",
            )
            found = None
    if found is None:
        found = PreTrainedTokenizerFast.from_pretrained(name, **options)
    # Where its files are missing the library makes one of special tokens alone, to which all texts are the same.
    words = set(found.get_vocab().values()) - set(found.all_special_ids)
    if len(words) < _FEWEST_WORDS:
        raise ValueError(f"its tokenizer's files are missing or empty: it knows {len(words)} tokens")
    return found


def _tokenizer_file(name: str, options: dict[str, Any]) -> str | None:
    try:
        found: str | None = cached_file(name, "tokenizer.json", **options)
    except OSError:
        return None
    return found


def _agreement(written: Tokenizer, other: Any) -> float:
    """The share of tokens of texts made of a tokenizer's own words on which another one agrees."""
    written.no_padding()
    written.no_truncation()
    special = {token.content for token in written.get_added_tokens_decoder().values()}
    known = sorted((i, word) for word, i in written.get_vocab().items() if word not in special)
    # What options of a tokenizer's class may rightly change, as capitals and accents, is left out.
    plain = [i for i, word in known if word.isascii() and word == word.lower()] or [i for i, _ in known]
    plain = plain[:: max(1, len(plain) // _SAMPLE)]
    words = [written.decode([i]).strip() for i in plain]
    texts = [" ".join(words[i : i + 20]) for i in range(0, len(words), 20)]
    if not texts:
        return 1.0
    pairs = [
        [Counter(one) for one in (written.encode(text, add_special_tokens=False).ids, ids)]
        for text, ids in zip(texts, other(texts, add_special_tokens=False)["input_ids"], strict=True)
    ]
    total = sum(first.total() for first, _ in pairs)
    return sum((first & second).total() for first, second in pairs) / total if total else 1.0


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
    with _quiet():
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


def _not_loaded(path: str, error: Exception) -> InputError:
    return InputError(
        f"The model '{path}' cannot be loaded ({type(error).__name__}: {first_line(error)}). It "
        "must be a folder with config.json, model.safetensors and a tokenizer, a .ckpt, or a hub id that is reachable "
        "or cached."
    )


def check_model(path: str) -> None:
    """Look for a model as far as that goes without its weights.

    Raises:
        InputError: If :func:`load_model` would not find it.
    """
    if path.endswith(".ckpt"):
        read_checkpoint(path)
        return
    name, options = _locate(path)
    try:
        AutoConfig.from_pretrained(name, **options)
    except Exception as error:
        raise _not_loaded(path, error) from error


def _locate(path: str, weights: bool = True) -> tuple[str, dict[str, Any]]:
    """Tell a folder from a hub id: its name, and what else the library is to be told, whose ``weights`` are needed."""
    from huggingface_hub import constants

    if Path(path).is_dir():
        return path, {}
    name, _, revision = path.partition("@")
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).is_file():
        raise InputError(f"There is no model folder '{path}'. Run `elang fit` to make it, or mend the path.")
    if not revision and Path(path).parent != Path() and Path(path).parent.is_dir():
        raise InputError(
            f"There is no model folder '{path}', only '{Path(path).parent}' above it. `elang fit` writes it at its "
            "very end: run it (again), or mend the path."
        )
    if not revision:
        raise InputError(
            f"There is no folder '{path}', and as a hub id it may change under you: pin it, as in "
            f"'{name}@<commit hash>'."
        )
    cached = _is_cached(name, revision, weights)
    if not cached and not constants.HF_HUB_OFFLINE:
        _ask_hub(path, name, revision)
    return name, {"revision": revision, "local_files_only": cached}


def _ask_hub(path: str, name: str, revision: str) -> None:
    """Ask the hub for one file once: the library asks a silent one for each file again and again, for minutes."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=HUB_PATIENCE)
    except Exception as error:
        raise _not_loaded(path, error) from error


def _is_cached(name: str, revision: str, weights: bool) -> bool:
    """Whether a model of the hub is here as a whole, so that a hub that is slow or silent need not be asked."""
    from huggingface_hub import try_to_load_from_cache

    if not _COMMIT.fullmatch(revision):
        # A branch moves.
        return False

    def find(file: str) -> Path | None:
        found = try_to_load_from_cache(name, file, revision=revision)
        return Path(found) if isinstance(found, str) else None

    try:
        config = find("config.json")
        assert config is not None
        decoder = json.loads(config.read_text("utf-8")).get("is_encoder_decoder", False)
        # It says how texts are generated, and may be missing as well as not fetched.
        if decoder and try_to_load_from_cache(name, "generation_config.json", revision=revision) is None:
            return False
        index = find("model.safetensors.index.json")
        shards = json.loads(index.read_text("utf-8"))["weight_map"].values() if index else ["model.safetensors"]
        # It may need files that only its own class knows.
        load_tokenizer(name, {"revision": revision, "local_files_only": True})
    except Exception:
        return False
    return not weights or all(map(find, set(shards)))


def _load_heads(model: TextModel, path: Path) -> None:
    from safetensors.torch import load_file

    model.add_heads()
    try:
        model.heads.load_state_dict(load_file(path))
    except Exception as error:
        raise InputError(f"The router heads '{path}' cannot be read ({error}). Run `elang fit` again.") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a Lightning checkpoint of ours; only tensors and plain values are ever loaded.

    Raises:
        InputError: If it is missing, truncated, or not one of ours.
    """
    if (Path(path) / SHARDED_ABOUT).is_file():
        # One in parts; what it says of itself is no part of the weights.
        path = Path(path) / SHARDED_ABOUT
    if not Path(path).is_file():
        raise InputError(f"There is no checkpoint '{path}'.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"The checkpoint '{path}' cannot be read: it is truncated, damaged or holds more than tensors and plain "
            f"values ({type(error).__name__}). Use an earlier one."
        ) from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEY not in checkpoint:
        raise InputError(f"The checkpoint '{path}' is of another class: it was not written by elang.")
    return checkpoint


def describe(model: TextModel, path: str) -> dict[str, Any]:
    """What a checkpoint keeps besides the weights: enough to rebuild the model without the folder it came from."""
    return {
        "config": model.backbone.config.to_dict() | {"dtype": None},
        "generation": model.backbone.generation_config.to_diff_dict() if model.text_to_text else {},
        "tokenizer": path,
        "router": bool(model.heads),
        "label_names": model.label_names,
        "task": model.task.plain(),
    }


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
        name, options = _locate(about["tokenizer"], weights=False)
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
