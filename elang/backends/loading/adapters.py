"""Folders of peft's adapters (LoRA): where their base is, and how they are merged into it.

A model that is loaded from such a folder is the merged one, so it answers, and costs, as a plain model does.
"""

import json
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from transformers.utils import find_adapter_config_file

from elang.backends.loading.hub import explained, loading, locate
from elang.backends.loading.weights import python_command
from elang.errors import InputError, listed
from elang.json_files import read_object

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts in front of the names of an adapter's weights."""
_HEADS = re.compile(r"(?:^|\.)(?:score|classifier|out_proj)\.weight$")


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder."""

    path: str  # as it was given
    folder: Path
    base: str  # the folder or the hub id of the model that it was trained on
    options: dict[str, Any]  # for ``from_pretrained`` of the base
    task_type: str  # by peft's names; empty if it does not say

    @classmethod
    def find(cls, path: str, name: str, options: dict[str, Any]) -> "Adapter | None":
        """The adapter at a place of :func:`~elang.backends.loading.hub.locate`; ``None`` for a whole model."""
        folder = Path(name)
        if not folder.is_dir():
            with loading(path):
                # Without peft the library would ignore it; with peft, its base may be a model that is not pinned.
                found = find_adapter_config_file(name, **options)
            if found:
                raise InputError(
                    f"'{path}' is an adapter of peft on the hub. Download it into a folder, `hf download {name} "
                    f"--revision {options.get('revision')} --local-dir FOLDER`, and give the folder."
                )
            return None
        if not (folder / ADAPTER_CONFIG).is_file():
            return None
        if find_spec("peft") is None:
            raise InputError(
                f"'{path}' is an adapter of peft, which is not installed: pip install 'elang-joint[peft]', or merge it "
                f"where peft is (`AutoPeftModel...from_pretrained('{path}').merge_and_unload()`) and save that."
            )
        with explained(f"The adapter '{path}' cannot be read", f"Correct its {ADAPTER_CONFIG}."):
            fields = read_object(folder / ADAPTER_CONFIG)
        base, options = _base_of(path, str(fields.get("base_model_name_or_path") or ""), fields.get("revision"))
        return cls(path, folder, base, options, task_type=str(fields.get("task_type") or ""))

    def describe(self, config: Any) -> None:
        """Put what the adapter says of the task into the configuration of its base, if it has none of its own."""
        if self.task_type != "SEQ_CLS":
            return
        # Their sizes are in the file's header, so it is not loaded for them.
        with self._readable(), safe_open(self._file(), "pt") as weights:
            shapes = [weights.get_slice(name).get_shape() for name in filter(_is_head, weights.keys())]
        if sizes := [shape[0] for shape in shapes if len(shape) == 2]:
            config.num_labels = sizes[-1]
        if model := AutoModelForSequenceClassification._model_mapping.get(type(config), None):
            config.architectures = [model.__name__]

    def _file(self) -> Path:
        """The file of its weights, which may still be missing."""
        file = self.folder / ADAPTER_WEIGHTS
        if not file.is_file() and (pickle := file.with_suffix(".bin")).is_file():
            code = (
                f"import torch, safetensors.torch as s; s.save_file(torch.load({json.dumps(str(pickle))}, "
                f"weights_only=True), {json.dumps(str(file))})"
            )
            raise InputError(
                f"'{self.path}' holds its adapter as a pickle, which elang does not load. Convert it: "
                f"{python_command(code)}"
            )
        return file

    def _readable(self) -> AbstractContextManager[None]:
        """Around what reads its weights."""
        return explained(f"The weights of the adapter '{self.path}' cannot be read", f"It must hold {ADAPTER_WEIGHTS}.")

    def merge_into(self, backbone: Any) -> set[str]:
        """Put the adapter on its base, merge it, and return the names of the base's weights that it replaced."""
        from peft import PeftConfig, PeftModel, set_peft_model_state_dict

        with self._readable():
            weights: dict[str, Any] = load_file(self._file())
        trained = {id(weight): weight.requires_grad for weight in backbone.parameters()}
        does_not_fit = f"The adapter '{self.path}' does not fit its base '{self.base}'"
        remedy = "Give the base that it was trained on, as base_model_name_or_path of its adapter_config.json."
        with explained(does_not_fit, remedy):
            config: Any = PeftConfig.from_pretrained(str(self.folder))
            config.inference_mode = True
            if config.is_prompt_learning:
                raise InputError(
                    f"The adapter '{self.path}' is a {config.peft_type.value}, which cannot be merged into its base. "
                    "elang loads LoRA and other adapters that change weights."
                )
            whole: Any = PeftModel(backbone, config)
            # Some versions of peft change the dictionary.
            result = set_peft_model_state_dict(whole, dict(weights))
            kinds = (whole.base_model.prefix, ".modules_to_save.")
            missing = [name for name in result.missing_keys if any(kind in name for kind in kinds)]
            if wrong := missing or result.unexpected_keys:
                what = "lacks" if missing else "has, and the base has no place for,"
                raise InputError(f"{does_not_fit}: it {what} {listed(sorted(wrong))}. {remedy}")
            whole.merge_and_unload()
        for weight in backbone.parameters():
            weight.requires_grad_(trained.get(id(weight), True))
        return {name.removeprefix(PREFIX) for name in weights} & set(backbone.state_dict())


def _is_head(name: str) -> bool:
    """Whether a weight of an adapter is a whole classification head's."""
    return bool(_HEADS.search(name)) and "lora_" not in name


def _base_of(path: str, base: str, revision: Any) -> tuple[str, dict[str, Any]]:
    """The folder or the hub id of an adapter's base, and options for ``from_pretrained``."""
    for place in (Path(base), Path(path) / base):
        if base and place.is_dir():
            if (place / ADAPTER_CONFIG).is_file():
                raise InputError(
                    f"The base of the adapter '{path}' is '{place}', itself an adapter. Merge that into a plain folder."
                )
            return str(place), {}
    where = f"base_model_name_or_path in its {ADAPTER_CONFIG}"
    name, _, pinned = base.partition("@")
    if not base or base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise InputError(f"The base of the adapter '{path}' is not there: '{base}'. Correct {where}.")
    if not (revision := revision or pinned):
        raise InputError(
            f"The base of the adapter '{path}', '{base}', is no folder here, and a hub id without a revision may "
            f'change. Set "revision" in its {ADAPTER_CONFIG} to a commit hash, or {where} to a folder.'
        )
    try:
        return locate(f"{name}@{revision}")
    except InputError as error:
        raise InputError(f"The base of the adapter '{path}' is not there. {error}") from error
