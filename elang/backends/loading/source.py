"""Where a model's files are, whole or as an adapter on a base, and what is read from them."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, GenerationConfig
from transformers.utils import cached_file

from elang.backends.loading.adapters import Adapter
from elang.backends.loading.hub import locate, quiet
from elang.backends.loading.tokenizer import load_tokenizer
from elang.backends.loading.weights import check_format, check_precision, check_quantized, num_weights
from elang.errors import InputError
from elang.files import folder_sha256
from elang.notices import notice


@dataclass(frozen=True)
class Source:
    """The files of a model of ``transformers``."""

    path: str  # as it was given
    name: str  # the folder or hub id of the whole model, or of the adapter's base
    options: dict[str, Any]  # for ``from_pretrained``
    adapter: Adapter | None

    @classmethod
    def find(cls, path: str, weights: bool = True) -> "Source":
        """The files of a folder or a pinned hub id (``weights``: they are needed, too).

        Raises InputError if there are none, or none that elang reads.
        """
        name, options = locate(path, weights)
        adapter = Adapter.find(path, name, options)
        if adapter is not None:
            name, options = adapter.base, adapter.options
        if weights and Path(name).is_dir():
            check_format(Path(name), path)
        return cls(path, name, options, adapter)

    @property
    def title(self) -> str:
        """What messages call it."""
        if self.adapter is None:
            return self.path
        return f"{self.path}' on its base '{self.name}" + (f"@{r}" if (r := self.options.get("revision")) else "")

    @property
    def base(self) -> Path:
        """The folder of the whole model, or of the adapter's base; of a hub id, its cache."""
        return Path(cached_file(self.name, "config.json", **self.options)).parent

    @property
    def folder(self) -> Path | None:
        """The folder that was given; ``None`` for a hub id."""
        return Path(self.path) if Path(self.path).is_dir() else None

    @property
    def sha256(self) -> str:
        """Hash of the weights, of an adapter also of its base's; empty for a model from the hub."""
        bases = [self.base] if self.adapter else []
        return folder_sha256(self.folder, *bases) if self.folder is not None else ""

    def config(self) -> Any:
        """The configuration."""
        if self.adapter is None:
            return AutoConfig.from_pretrained(self.name, **self.options)
        if (self.adapter.folder / "config.json").is_file():
            return AutoConfig.from_pretrained(self.adapter.folder)
        config = AutoConfig.from_pretrained(self.name, **self.options)
        self.adapter.describe(config)
        return config

    def tokenizer(self) -> Any:
        """The tokenizer."""
        if self.adapter is not None and (self.adapter.folder / "tokenizer_config.json").is_file():
            return load_tokenizer(str(self.adapter.folder), {})
        return load_tokenizer(self.name, self.options)

    def weights(self, auto: Any, config: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, Any]]:
        """The model of a class of ``transformers``, and what ``output_loading_info`` tells of it."""
        check_quantized(config, self.path)
        # The library's default is the file's precision, but trained weights stay float32. Where peft is installed, the
        # library looks for an adapter: at this revision, and not on the hub if all files are cached.
        settings = {"dtype": dtype, "use_safetensors": True, "adapter_kwargs": self.options} | self.options
        # check_weights reports what is missing and what does not fit.
        reported = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        with quiet():
            model, info = auto.from_pretrained(self.name, config=config, **settings, **reported)
        check_precision(self.base, self.name)
        if self.adapter is not None:
            given = self.adapter.merge_into(model)
            if (self.adapter.folder / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(self.adapter.folder)
            # What else the base holds, a language model's head or layers that were cut, is known not to be needed.
            info |= {"missing_keys": set(info["missing_keys"]) - given, "unexpected_keys": set()}
            info["mismatched_keys"] = [each for each in info["mismatched_keys"] if each[0] not in given]
        return model, info


def weights_sha256(path: str | Path) -> str:
    """Hash of a model's weights, of an adapter also of its base's; empty for a model from the hub."""
    return Source.find(str(path), weights=False).sha256


def tell_if_larger(swift: str, size: int, super_: str, super_size: int = 0) -> None:
    """Give a notice if a Swift of this size, in weights, is larger than its Super.

    The Super's size is read from its files if it is not given; nothing is told where neither is at hand.
    """
    if not super_size and Path(super_).is_dir():
        # A Super that cannot be read is refused where it is needed.
        with suppress(InputError, OSError, ValueError, SafetensorError):
            super_size = num_weights(Source.find(super_, weights=False).base)
    if super_size and size > super_size:
        sizes = f"'{swift}' has {size:,} weights and the Super '{super_}' only {super_size:,}"
        notice("swapped-models", f"The Swift {sizes}: did you swap them?", stacklevel=3)
