"""Low-rank adapters (LoRA) in a model that is trained, by peft: only they and the heads learn.

A linear layer of the body with the weights ``W`` computes ``W x + (alpha / rank) B A x``, with a drawn ``A`` and a
``B`` that starts at 0. After training ``W + (alpha / rank) B A`` is written as its weights, or ``A`` and ``B`` alone.

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from elang.backends.loading.adapters import ADAPTER_WEIGHTS, PREFIX
from elang.backends.loading.source import Source
from elang.backends.loading.weights import is_head
from elang.backends.text_model import TextModel
from elang.errors import InputError, listed, need
from elang.notices import notice

# The default of a full training.
_LOW_RATE = 5e-5
_OWN = re.compile(r"\.(lora_[AB])\.default\.")


@dataclass(frozen=True)
class LoraOptions:
    """The options of LoRA, as :class:`elang.FinetuneModule` explains them; without a ``rank`` there is none."""

    rank: int | None = None
    alpha: float | None = None
    dropout: float = 0.0
    modules: list[str] | None = None
    merge: bool = True

    def __post_init__(self) -> None:
        """Refuse options that mean nothing, and those of LoRA without a rank or without peft."""
        if self.rank is None:
            if others := [name for name, value in asdict(self).items() if value != getattr(LoraOptions, name)]:
                raise InputError(f"--model.lora_{others[0]} needs --model.lora_rank, say 16.")
            return
        limits = {
            "rank": self.rank >= 1,
            "alpha": self.alpha is None or self.alpha > 0,
            "dropout": 0 <= self.dropout < 1,
        }
        if wrong := [name for name, right in limits.items() if not right]:
            raise InputError(
                f"--model.lora_{wrong[0]} is {getattr(self, wrong[0])}. The rank is a whole number from 1 on, alpha "
                "above 0, and dropout in [0, 1)."
            )
        need("--model.lora_rank", "peft", "peft")

    @property
    def scale(self) -> float:
        """Alpha, by default twice the rank."""
        return 2.0 * (self.rank or 0) if self.alpha is None else self.alpha


class Lora:
    """Adapters that were put into a model, in place. Everything else but its heads is frozen.

    Args:
        model: The model.
        options: The options; without a rank nothing is done, here and by the methods.
        path: Where the model is from, for an adapter's folder.
        lr: The learning rate of a training that begins, for a notice if it is too low for adapters.
    """

    def __init__(self, model: TextModel, options: LoraOptions, path: str, lr: float | None = None) -> None:
        self.options = options
        self._low: list[Any] = []  # layers with weights that begin has put into bfloat16
        if options.rank is not None:
            self._put_into(model, path)
        if options.rank is not None and lr is not None and lr <= _LOW_RATE:
            notice(
                "low-rate",
                f"--model.lr is {lr:g}, which is low for LoRA: it needs a higher learning rate than a full training. "
                "Start with --model.lr 5e-4.",
            )

    def _put_into(self, model: TextModel, path: str) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        options, backbone = self.options, model.backbone
        self.source = Source.find(path)
        if not options.merge and self.source.adapter is not None:
            raise InputError(
                f"'{path}' is an adapter, and an adapter on an adapter cannot be written: leave out --model.lora_merge "
                "false."
            )
        # A model that answers in words has no head of the task: its language-model head is an embedding table.
        heads = {name for name, _ in backbone.named_parameters() if not model.text_to_text and is_head(name, backbone)}
        layers = _chosen(_linear_layers(backbone, heads), options.modules, path)
        kinds = {"encoder": "SEQ_CLS", "words": "SEQ_2_SEQ_LM" if backbone.config.is_encoder_decoder else "CAUSAL_LM"}
        self.config = LoraConfig(
            r=int(options.rank or 0),
            lora_alpha=options.scale,
            lora_dropout=options.dropout,
            target_modules=layers,
            modules_to_save=sorted({_module_of(name, backbone) for name in heads}) or None,
            task_type=kinds["words" if model.text_to_text else "encoder"],
            fan_in_fan_out=isinstance(backbone.get_submodule(layers[0]), Conv1D),
            inference_mode=False,
        )
        injected = {**self.config.to_dict(), "modules_to_save": None}
        with warnings.catch_warnings():
            # Of layers that hold their weights the other way round, which it then does by itself.
            warnings.simplefilter("ignore")
            inject_adapter_in_model(LoraConfig(**injected), backbone)
        for name, weight in backbone.named_parameters():
            weight.requires_grad_("lora_" in name or name in heads)
        for layer in _adapted(backbone).values():
            # Under autocast it would convert each input to float32 first, and keep both.
            layer.cast_input_dtype_enabled = False

    def describe(self, model: TextModel) -> dict[str, Any] | None:
        """What a checkpoint keeps of it: the options, and the hash of the weights that are not in the checkpoint."""
        if self.options.rank is None:
            return None
        return {"options": asdict(self.options), "base": model.weights_sha256}

    def frozen(self, model: TextModel) -> list[str]:
        """The names of the backbone's weights that are not trained because of it, in the model's ``state_dict``."""
        if self.options.rank is None:
            return []
        named = model.backbone.named_parameters(prefix="backbone", remove_duplicate=False)
        return [name for name, weight in named if not weight.requires_grad]

    def strip(self, state: dict[str, Any], model: TextModel, prefix: str) -> None:
        """Take the weights that are not trained out of a checkpoint's ``state_dict``."""
        for name in self.frozen(model):
            state.pop(prefix + name, None)

    def fill(self, state: dict[str, Any], model: TextModel, prefix: str, *, about: dict[str, Any] | None) -> None:
        """Put the model's into a checkpoint's ``state_dict`` again; ``about`` is from :meth:`describe`.

        Raises InputError if they are not those with which the checkpoint was written.
        """
        own, lacking = model.state_dict(), [name for name in self.frozen(model) if prefix + name not in state]
        if lacking and about is not None:
            check_base(about, model.weights_sha256, self.source.path)
            state.update({prefix + name: own[name] for name in lacking})

    def begin(self, model: TextModel, precision: str) -> None:
        """Make a model ready for a training: adapters apart, and frozen weights in bfloat16 if autocast computes in it.

        Autocast would convert them in every pass. Only weights of linear layers whose values stay the same, as of
        models that were published in bfloat16.
        """
        self.merge(model, False)
        self._restore()
        if self.options.rank is None or precision != "bf16-mixed":
            return
        tables = {module.weight for module in model.backbone.modules() if isinstance(module, nn.Embedding)}
        for layer in _layers(model.backbone):
            low = layer.weight.detach().bfloat16()
            if not layer.weight.requires_grad and layer.weight not in tables and torch.equal(low, layer.weight):
                layer.weight.data = low
                self._low.append(layer)

    def _restore(self) -> None:
        for layer in self._low:
            layer.weight.data = layer.weight.data.float()
        self._low = []

    def merge(self, model: TextModel, merged: bool = True) -> None:
        """Add the adapters to the weights of their layers, in place, or take them off again."""
        if merged:
            self._restore()
        for layer in _adapted(model.backbone).values():
            if bool(layer.merged) != merged:
                (layer.merge if merged else layer.unmerge)()

    def take_out(self, model: TextModel) -> dict[str, Any]:
        """Take the adapters out of a model, so that its weights have their own names; they are returned by name."""
        layers = _adapted(model.backbone)
        for name, layer in layers.items():
            _replace(model.backbone, name, layer.get_base_layer())
        return layers

    @contextmanager
    def plain(self, model: TextModel) -> Iterator[None]:
        """:meth:`take_out` for a while."""
        layers = self.take_out(model)
        try:
            yield
        finally:
            for name, layer in layers.items():
                _replace(model.backbone, name, layer)

    def write(self, model: TextModel, folder: Path) -> None:
        """Write the folder of an adapter: its weights and the heads', and the configurations."""
        source, backbone = self.source, model.backbone
        state: dict[str, Tensor] = backbone.state_dict()
        trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
        weights = {PREFIX + _OWN.sub(r".\1.", name): state[name].detach().cpu().contiguous() for name in trained}
        save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        self.config.base_model_name_or_path = source.name if source.folder is None else os.path.abspath(source.folder)
        self.config.inference_mode = True
        self.config.revision = source.options.get("revision")
        self.config.save_pretrained(str(folder))
        backbone.config.save_pretrained(folder)
        if getattr(backbone, "generation_config", None) is not None and model.text_to_text:
            backbone.generation_config.save_pretrained(folder)


def check_base(about: dict[str, Any], digest: str, path: str) -> None:
    """Refuse a checkpoint of a LoRA training, which holds only what it trains, beside other weights than its own."""
    if about["base"] != digest:
        raise InputError(
            f"The checkpoint holds only the weights that LoRA trains, and the other ones, those of '{path}', are not "
            f"what they were ({digest[:12]}…, not {about['base'][:12]}…). Put that model back, or train anew."
        )


def _adapted(backbone: nn.Module) -> dict[str, Any]:
    """The layers that have an adapter, by every name that they have."""
    modules = dict(backbone.named_modules(remove_duplicate=False))
    return {name: module for name, module in modules.items() if hasattr(module, "get_base_layer")}


def _layers(backbone: nn.Module) -> Iterator[Any]:
    """All linear layers, those inside of adapters, too."""
    return (module for module in backbone.modules() if isinstance(module, nn.Linear | Conv1D))


def _replace(backbone: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(backbone.get_submodule(parent), child, module)


def _module_of(weight: str, backbone: Any) -> str:
    """The outermost module of a weight that is part of the head as a whole."""
    inside, _, _ = weight.removeprefix(body := f"{backbone.base_model_prefix}.").partition(".")
    return f"{body}{inside}" if weight.startswith(body) else inside


def _linear_layers(backbone: Any, heads: set[str]) -> list[str]:
    """The names of the linear layers of the body."""
    output = backbone.get_output_embeddings()
    return [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output and f"{name}.weight" not in heads
    ]


def _chosen(layers: list[str], wanted: list[str] | None, path: str) -> list[str]:
    """Those of the layers whose names end with one of the wanted ones; by default all."""
    known = sorted({name.rpartition(".")[2] for name in layers})
    if not layers:
        raise InputError(f"'{path}' has no linear layers that LoRA could adapt. Leave out --model.lora_rank.")
    if wanted is None:
        return layers
    if unknown := [one for one in wanted if not any(f".{name}".endswith(f".{one}") for name in layers)]:
        raise InputError(
            f"--model.lora_modules names {listed(unknown)}, and no linear layer of '{path}' is called so. It has "
            f"{listed(known)}."
        )
    return [name for name in layers if any(f".{name}".endswith(f".{one}") for one in wanted)]
