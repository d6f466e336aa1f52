"""Tokens directly from a fast tokenizer's backend: wrapping its output in the library's objects takes as long again."""

from functools import cache
from typing import Any


def own_backend(tokenizer: Any) -> Any:
    """A fast tokenizer's backend, if it alone decides how texts are encoded; else ``None``."""
    kind: Any = type(tokenizer)
    return getattr(tokenizer, "backend_tokenizer", None) if _encodes_as_backend(kind) else None


@cache
def _encodes_as_backend(kind: Any) -> bool:
    """Whether a class of tokenizers overrides none of the library's encoding methods."""
    from transformers import PreTrainedTokenizerFast

    methods = ("__call__", "_encode_plus", "_batch_encode_plus", "batch_encode_plus", "encode_plus")
    return all(getattr(kind, method, None) is getattr(PreTrainedTokenizerFast, method, None) for method in methods)


def _ready(tokenizer: Any) -> Any:
    """:func:`own_backend`, which then neither cuts nor pads; a tokenizer's file can turn both on."""
    backend = own_backend(tokenizer)
    if backend is not None and backend.truncation is not None:
        backend.no_truncation()
    if backend is not None and backend.padding is not None:
        backend.no_padding()
    return backend


def bare_tokens(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The tokens of texts, without those that the tokenizer puts around them."""
    if (backend := _ready(tokenizer)) is not None:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    options = {"add_special_tokens": False, "padding": False, "truncation": False, "verbose": False}
    return [list(ids) for ids in tokenizer(texts, return_attention_mask=False, **options)["input_ids"]]


def backend_columns(tokenizer: Any, texts: list[tuple[str, ...]]) -> dict[str, list[list[int]]] | None:
    """Uncut tokens of texts or pairs, by column; ``None`` if the tokenizer does more than its backend."""
    if (backend := _ready(tokenizer)) is None:
        return None
    if len(texts) == 1:
        # For a single text, starting threads takes longer than tokenising.
        encodings = [backend.encode(*texts[0])]
    else:
        encodings = backend.encode_batch_fast([t[0] for t in texts] if len(texts[0]) == 1 else texts)
    columns = {"input_ids": [encoding.ids for encoding in encodings]}
    if "token_type_ids" in tokenizer.model_input_names:
        # The types of single texts are equal, and mostly 0.
        if len(texts[0]) == 1 < len(texts) and not any(backend.encode("a").type_ids):
            return columns
        columns["token_type_ids"] = [encoding.type_ids for encoding in encodings]
    return columns
