"""Where a model is: a folder, or a hub id, cached or not."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from elang.backends.loading.tokenizer import load_tokenizer
from elang.errors import HUB_PATIENCE, InputError, first_line

_COMMIT = re.compile("[0-9a-f]{40}")


@contextmanager
def quiet() -> Iterator[None]:
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


def not_loaded(path: str, error: Exception) -> InputError:
    """The error of a model that cannot be loaded, with what lies behind it."""
    return InputError(
        f"The model '{path}' cannot be loaded ({type(error).__name__}: {first_line(error)}). It "
        "must be a folder with config.json, model.safetensors and a tokenizer, a .ckpt, or a hub id that is reachable "
        "or cached."
    )


def locate(path: str, weights: bool = True) -> tuple[str, dict[str, Any]]:
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
        raise not_loaded(path, error) from error


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
