"""Loading a tokenizer as its file has it, and the language codes of models that translate."""

from __future__ import annotations

import difflib
from collections import Counter
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from elang.errors import InputError
from elang.notices import notice

# The library's own empty vocabularies have up to one token that is not special.
_FEWEST_WORDS = 2
# Classes of tokenizers that are what their tokenizer.json says.
_AS_WRITTEN = ("PreTrainedTokenizerFast", "TokenizersBackend")
_SAMPLE, _ALIKE = 400, 0.9


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
