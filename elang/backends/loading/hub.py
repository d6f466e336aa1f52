"""Where a model is: a folder, or a hub id, cached or not."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from elang.backends.loading.tokenizer import load_tokenizer
from elang.backends.loading.weights import convert_gguf
from elang.errors import HUB_PATIENCE, InputError, first_line
from elang.terminal import waiting

_COMMIT = re.compile("[0-9a-f]{40}")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers: new heads and dropped layers are intended here."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def explained(problem: str, remedy: str) -> Iterator[None]:
    """Turn any error of a library into an ``InputError`` that begins with the problem and ends with the remedy."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{problem} ({type(error).__name__}: {first_line(error)}). {remedy}") from error


@contextmanager
def loading(path: str) -> Iterator[None]:
    """:func:`explained` for whatever loads a model; a load of seconds is told."""
    remedy = (
        "It must be a folder with config.json, model.safetensors and a tokenizer, a .ckpt, or a hub id that is "
        "reachable or cached."
    )
    with waiting(f"loading '{path}'"), explained(f"The model '{path}' cannot be loaded", remedy):
        yield


def locate(path: str, weights: bool = True) -> tuple[str, dict[str, Any]]:
    """Find a folder or a pinned hub id: its name, and options for ``from_pretrained``. Raises InputError for others."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if Path(path).is_dir():
        return path, {}
    name, _, revision = path.partition("@")
    if path.lower().endswith(".gguf") and (file := Path(path)).is_file():
        raise InputError(f"'{path}' is a GGUF file, not a model folder. {convert_gguf(file.parent, file.name)}")
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).is_file():
        raise InputError(f"There is no model folder '{path}'. Run `elang fit` to make it, or correct the path.")
    if not revision and Path(path).parent != Path() and Path(path).parent.is_dir():
        raise InputError(
            f"There is no model folder '{path}', only '{Path(path).parent}' above it. `elang fit` writes it at its "
            "very end: run it (again), or correct the path."
        )
    if not revision:
        raise InputError(
            f"There is no folder '{path}', and a hub id without a revision may change: pin it, as in "
            f"'{name}@<commit hash>'."
        )
    cached = _is_cached(name, revision, weights)
    if not cached and not constants.HF_HUB_OFFLINE:
        # Only once: the library would ask a silent hub for each file, again and again, for minutes.
        with loading(path):
            get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=HUB_PATIENCE)
    return name, {"revision": revision, "local_files_only": cached}


def _is_cached(name: str, revision: str, weights: bool) -> bool:
    """Whether all files of a model are cached, so that a slow or silent hub need not be asked."""
    from huggingface_hub import try_to_load_from_cache

    if not _COMMIT.fullmatch(revision):
        # A branch moves.
        return False

    def find(file: str) -> Path | None:
        path = try_to_load_from_cache(name, file, revision=revision)
        return Path(path) if isinstance(path, str) else None

    try:
        config = find("config.json")
        assert config is not None
        decoder = json.loads(config.read_text("utf-8")).get("is_encoder_decoder", False)
        # The cache also records that a model has no such file; None means that nobody has asked yet.
        if decoder and try_to_load_from_cache(name, "generation_config.json", revision=revision) is None:
            return False
        index = find("model.safetensors.index.json")
        shards = json.loads(index.read_text("utf-8"))["weight_map"].values() if index else ["model.safetensors"]
        # Only the tokenizer's class knows the files that it needs.
        load_tokenizer(name, {"revision": revision, "local_files_only": True})
    except Exception:
        return False
    return not weights or all(map(find, set(shards)))
