"""Language codes of models that translate between many."""

from __future__ import annotations

import difflib
from typing import Any

from elang.errors import InputError


def set_languages(backbone: Any, tokenizer: Any, languages: list[str]) -> None:
    """Tell a tokenizer of many languages, and the decoder, what is translated into what.

    Raises:
        InputError: If it does not know a code, or needs codes and has none.
    """
    many = hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")
    if not languages:
        if many and tokenizer.tgt_lang is None:
            raise InputError(
                f"A '{backbone.config.model_type}' model translates between many languages: set "
                "--data.source_language and --data.target_language to its codes."
            )
        return
    if not many:
        # The other model of a pair may need them.
        return
    known = language_codes(tokenizer)
    for code in languages:
        if code not in known:
            near = difflib.get_close_matches(code, known, 3, 0.3)
            raise InputError(
                f"The tokenizer does not know the language code '{code}'. "
                + (f"Did you mean {' or '.join(near)}? " if near else "")
                + f"It knows {len(known)} codes, such as {', '.join(sorted(known)[:5])}."
            )
    tokenizer.src_lang, tokenizer.tgt_lang = languages
    target = known[languages[1]]
    if tokenizer(text_target="x")["input_ids"][0] == target:
        backbone.generation_config.forced_bos_token_id = target
    else:
        # Targets do not begin with it, as mBART's: the decoder does.
        backbone.config.decoder_start_token_id = target
        backbone.generation_config.decoder_start_token_id = target
        backbone.generation_config.forced_bos_token_id = None


def language_codes(tokenizer: Any) -> dict[str, int]:
    """The language codes of a tokenizer with the token of each."""
    if given := getattr(tokenizer, "lang_code_to_id", None):
        return dict(given)
    special = getattr(tokenizer, "extra_special_tokens", None) or getattr(tokenizer, "additional_special_tokens", [])
    names = special.values() if isinstance(special, dict) else special
    tokens = [str(name) for name in names]
    return {token.strip("_"): int(tokenizer.convert_tokens_to_ids(token)) for token in tokens}
