"""A classifier with its tokenizer, label names and (a Swift's) router head; loading and saving it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from elang.cost import FlopsConvention, flops_by_length
from elang.errors import InputError
from elang.manifest import FILENAME, Manifest, file_sha256
from elang.records import align_labels
from elang.router import RouterHead, masked_mean
from elang.scores import all_scores

ROUTER_FILE = "router.safetensors"
CHECKPOINT_KEY = "elang"


@dataclass(frozen=True)
class Answer:
    """What a classifier says of a batch.

    Attributes:
        logits: float32 ``(B, C)``.
        pooled: Mean last hidden state, ``(B, D)``; ``None`` without a router head.
    """

    logits: Tensor
    pooled: Tensor | None


class Classifier(nn.Module):
    """Any ``AutoModelForSequenceClassification``, with what is needed to use it.

    Args:
        backbone: The model; its ``config.id2label`` names the classes.
        tokenizer: Its tokenizer.
        router: A router head, for a Swift that has one.
    """

    def __init__(self, backbone: Any, tokenizer: Any, router: RouterHead | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.router = router
        self.tokenizer = tokenizer
        self.manifest: Manifest | None = None
        self.original_names: list[str] = self.label_names
        self.weights: Path | None = None

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of the folder or checkpoint that the weights are from; empty for those from the hub."""
        if self.weights is None:
            return ""
        return folder_sha256(self.weights) if self.weights.is_dir() else file_sha256(self.weights)

    @property
    def label_names(self) -> list[str]:
        """Class names in the order of the logits."""
        names = self.backbone.config.id2label
        return [str(names[i]) for i in range(len(names))]

    def forward(self, inputs: dict[str, Tensor]) -> Answer:
        """Answer a batch of model inputs, logits in float32 whatever the precision."""
        out = self.backbone(**inputs, output_hidden_states=self.router is not None)
        pooled = None
        if self.router is not None:
            pooled = masked_mean(out.hidden_states[-1].detach(), inputs["attention_mask"])
        return Answer(out.logits.float(), pooled)

    def scores(self, answer: Answer, temperature: float = 1.0) -> dict[str, Tensor]:
        """Every difficulty score of a batch, each ``(B,)``; larger is harder."""
        found = all_scores(answer.logits, temperature)
        if self.router is not None and answer.pooled is not None:
            found["router"] = self.router(answer.pooled, answer.logits).sigmoid()
        return found

    def flops(self, lengths: Tensor, convention: FlopsConvention = "exact") -> Tensor:
        """FLOPs of each input, the router's included, float64 ``(N,)``."""
        weights = sum(p.numel() for p in self.router.parameters()) if self.router is not None else 0
        return flops_by_length(self.backbone.config, lengths, convention) + 2.0 * weights

    def class_order(self, label_names: list[str], who: str) -> list[int]:
        """Where each of the data's classes stands among this model's logits.

        Raises:
            InputError: If the names differ.
        """
        return align_labels(self.label_names, label_names, who)

    def save(self, folder: str | Path, manifest: Manifest) -> None:
        """Write a folder that loads with plain ``transformers``: whole, or not at all.

        Args:
            folder: Its path; a folder of ours that is there already is replaced.
            manifest: Becomes ``elang.json``, with the hash of these weights.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        check_output_folder(folder)
        aside = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        with _quiet():
            self.backbone.save_pretrained(aside)
        self.tokenizer.save_pretrained(aside)
        if self.router is not None:
            save_file({k: v.contiguous() for k, v in self.router.state_dict().items()}, aside / ROUTER_FILE)
        manifest.weights_sha256 = folder_sha256(aside)
        manifest.write(aside / FILENAME)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)


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


def folder_sha256(folder: Path) -> str:
    """Hash of a folder's weights: every safetensors file, in the order of their names."""
    return file_sha256(*sorted(folder.glob("*.safetensors")))


def load_classifier(
    path: str, label_names: list[str] | None = None, layers: int | None = None, router: bool = False
) -> Classifier:
    """Load a pretrained model to be fine-tuned, or a finished one.

    Args:
        path: A folder of ``transformers``, a ``.ckpt`` of :class:`elang.FinetuneModule` or
            :class:`elang.SwiftModule`, or a hub id, ``owner/name@revision``.
        label_names: The classes to fine-tune on; by default those of the model.
        layers: Keep only the first so many layers.
        router: Give it a router head if it has none.

    Raises:
        InputError: If it cannot be loaded.
    """
    if path.endswith(".ckpt"):
        found = _from_checkpoint(path)
        if label_names is not None:
            raise InputError(
                f"A module starts from a model folder, and '{path}' is a checkpoint. Give the folder that `elang fit` "
                "wrote, or go on from the checkpoint with --ckpt_path."
            )
        return found
    name, revision = _locate(path)
    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        config = AutoConfig.from_pretrained(name, **options)
        if layers is not None:
            if not 1 <= layers <= config.num_hidden_layers:
                raise InputError(f"'{path}' has {config.num_hidden_layers} layers; its first {layers} cannot be kept.")
            config.num_hidden_layers = layers
        if getattr(config, "is_encoder_decoder", False):
            raise InputError(
                f"'{path}' is an encoder-decoder, which elang does not classify with yet; give an encoder."
            )
        original = [str(config.id2label[i]) for i in range(len(config.id2label))]
        if label_names is not None:
            config.id2label = dict(enumerate(label_names))
            config.label2id = {label: i for i, label in enumerate(label_names)}
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        with _quiet():
            backbone = AutoModelForSequenceClassification.from_pretrained(
                name,
                config=config,
                # transformers loads in the file's own precision; weights that are trained stay float32.
                dtype=torch.float32,
                use_safetensors=True,
                # A head for another number of classes is replaced, the body must fit.
                ignore_mismatched_sizes=label_names is not None,
                **options,
            )
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The model '{path}' cannot be loaded ({type(error).__name__}: {str(error).strip().splitlines()[0]}). It "
            "must be a folder with config.json, model.safetensors and a tokenizer, a .ckpt, or a hub id that is "
            "reachable or cached."
        ) from error
    _limit_length(tokenizer, config)
    found = Classifier(backbone, tokenizer)
    found.original_names = original
    folder = Path(name)
    found.weights = folder if folder.is_dir() else None
    finished = label_names is None or (router and label_names == original and layers is None)
    if finished and (folder / ROUTER_FILE).is_file():
        found.router = _load_router(folder / ROUTER_FILE)
    elif router:
        found.router = RouterHead(config.hidden_size, len(found.label_names))
    if (folder / FILENAME).is_file():
        found.manifest = Manifest.read(folder)
    return found


def _locate(path: str) -> tuple[str, str | None]:
    """Tell a folder from a hub id, and split off the id's revision."""
    if Path(path).is_dir():
        return path, None
    name, _, revision = path.partition("@")
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).is_file():
        raise InputError(f"There is no model folder '{path}'. Run `elang fit` to make it, or mend the path.")
    if not revision:
        raise InputError(
            f"There is no folder '{path}', and as a hub id it may change under you: pin it, as in "
            f"'{name}@<commit hash>'."
        )
    return name, revision


def _limit_length(tokenizer: Any, config: Any) -> None:
    """Keep texts within the position table, which some tokenizers do not know of."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions and positions > 0:
        # RoBERTa and MPNet count positions from padding_idx + 1.
        offset = config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions - offset)


_OFFSET_POSITIONS = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "ibert"}
)


def _load_router(path: Path) -> RouterHead:
    from safetensors.torch import load_file

    try:
        state = load_file(path)
        width, hidden_size = state["project.weight"].shape
        head = RouterHead(hidden_size, state["logits.weight"].shape[1] - 3, width)
        head.load_state_dict(state)
    except Exception as error:
        raise InputError(f"The router head '{path}' cannot be read ({error}). Run `elang fit` again.") from error
    return head


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a Lightning checkpoint of ours; only tensors and plain values are ever loaded.

    Raises:
        InputError: If it is missing, truncated, or not one of ours.
    """
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


def _from_checkpoint(path: str) -> Classifier:
    checkpoint = read_checkpoint(path)
    about = checkpoint[CHECKPOINT_KEY]
    fields = dict(about["config"])
    try:
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        name, revision = _locate(about["tokenizer"])
        tokenizer = AutoTokenizer.from_pretrained(name, **({"revision": revision} if revision else {}))
    except Exception as error:
        raise InputError(
            f"The tokenizer '{about['tokenizer']}' that the checkpoint '{path}' names cannot be loaded ({error}). Use "
            "the folder that `elang fit` writes at its end."
        ) from error
    found = Classifier(AutoModelForSequenceClassification.from_config(config), tokenizer)
    if about["router"]:
        found.router = RouterHead(config.hidden_size, len(found.label_names))
    prefix = "classifier."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    try:
        found.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"The checkpoint '{path}' does not fit the model that it describes: {error}") from error
    _limit_length(tokenizer, config)
    found.weights = Path(path)
    return found
